//! Which addresses live on a node. Pods of a node mostly have addresses of few blocks, so the blocks are noted and not each
//! address: an index of addresses would be as large as the rows.

use crate::rows::PrefixRow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use tombolo_base::prefix::Prefix;
use tombolo_base::source::Source;
use tombolo_base::table::Snapshot;

/// Rows by the node's address and the block around the row's prefix, counted.
#[derive(Debug, Default)]
pub(super) struct Hosts(BTreeMap<(IpAddr, Prefix), u32>);

/// Bits of the rest of a block: 256 addresses, the size of a node's pod CIDR in most clusters.
const REST: u8 = 8;

/// The block around a prefix; one that is larger is its own.
fn block(prefix: Prefix) -> Prefix {
    let len = if prefix.is_ipv4() { 32 - REST } else { 128 - REST };
    Prefix::new(prefix.address(), len.min(prefix.prefix_len())).unwrap_or(prefix)
}

impl Hosts {
    /// Takes in what became of one row.
    pub(super) fn change(&mut self, old: Option<&PrefixRow>, new: Option<&PrefixRow>) {
        let place = |row: &PrefixRow| Some((row.residence.host_ip?, block(row.prefix)));
        let (old, new) = (old.and_then(place), new.and_then(place));
        if old == new {
            return;
        }
        if let Some(place) = new {
            *self.0.entry(place).or_default() += 1;
        }
        if let Some(place) = old
            && let Some(count) = self.0.get_mut(&place)
        {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&place);
            }
        }
    }

    /// The prefixes of rows that live at an address.
    pub(super) fn at(&self, host: IpAddr, rows: &Snapshot<PrefixRow>) -> impl Iterator<Item = Prefix> {
        // The lowest prefix of all comes first, and IPv4 before IPv6.
        let first = (host, Prefix::LOWEST);
        let blocks = self.0.range(first..).map(|(place, _)| *place).take_while(move |(at, _)| *at == host);
        blocks.flat_map(move |(_, around)| {
            let inside = rows.from_key(&(around, Source::Manifests));
            let here = inside.take_while(move |row| block(row.prefix) == around);
            here.filter(move |row| row.residence.host_ip == Some(host)).map(|row| row.prefix)
        })
    }

    /// How many blocks are noted.
    #[cfg(test)]
    pub(super) fn blocks(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::planner::tests::pod;
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use tombolo_base::table::Table;

    #[test]
    fn pods_of_a_node_are_one_block_in_each_family() {
        let mut hosts = Hosts::default();
        for n in 0..200 {
            hosts.change(None, Some(&pod(Source::Local, &format!("10.1.7.{n}"), "192.0.2.1", 1)));
            hosts.change(None, Some(&pod(Source::Local, &format!("fd00:10:1:7::{n:x}"), "192.0.2.1", 1)));
        }
        assert_eq!(hosts.blocks(), 2);
    }

    proptest! {
        /// It finds what a walk over all rows finds, and nothing stays of what is gone.
        #[test]
        fn like_a_walk(ops in prop::collection::vec((0u8..2, 0u8..3, any::<u8>(), 0u8..4, 0u8..3), 0..200)) {
            let (table, writer) = Table::new();
            let (mut hosts, host) = (Hosts::default(), |n: u8| -> IpAddr { format!("192.0.2.{n}").parse().unwrap() });
            let mut before = table.snapshot();
            for (six, net, low, len, at) in ops {
                let text = match (six, len) {
                    (0, 0) => format!("10.{net}.0.0/16"),
                    (0, 1) => format!("10.{net}.1.0/24"),
                    (0, 2) => format!("10.{net}.1.{}/30", low & 0xfc),
                    (0, _) => format!("10.{net}.1.{low}"),
                    (_, 0) => format!("fd00:{net}::/64"),
                    (_, 1) => format!("fd00:{net}::{low:x}00/120"),
                    _ => format!("fd00:{net}::{low:x}"),
                };
                let row = pod(Source::Planner, &text, &host(at).to_string(), 1);
                let key = (row.prefix, row.source);
                if before.get(&key) == Some(&row) {
                    writer.remove(&key);
                } else {
                    writer.upsert(row);
                }
                let now = table.snapshot();
                hosts.change(before.get(&key), now.get(&key));
                before = now;
                for at in 0..3 {
                    let walked: BTreeSet<_> = before
                        .iter()
                        .filter(|row| row.residence.host_ip == Some(host(at)))
                        .map(|row| row.prefix)
                        .collect();
                    prop_assert_eq!(hosts.at(host(at), &before).collect::<BTreeSet<_>>(), walked);
                }
            }
            for row in before.iter() {
                hosts.change(Some(row), None);
            }
            prop_assert_eq!(hosts.blocks(), 0);
        }
    }
}
