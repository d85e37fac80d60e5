//! What the nodes' datapaths counted: `tombolo show packets`.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::checks::access::{Access, COMMAND_TIMEOUT, Place};
use crate::checks::check::Failure;
use crate::checks::context::Context;

/// The command that shows them.
const COMMAND: [&str; 5] = ["tombolo", "show", "packets", "-o", "json"];

/// A row of it.
#[derive(Debug, Deserialize)]
struct Counted {
    number: u8,
    reason: String,
    direction: String,
    packets: u64,
}

/// Packets by node, and there by reason (number and name; 0 = forwarded) and direction.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::checks) struct Packets(BTreeMap<(String, u8, String, String), u64>);

impl Packets {
    /// Of the nodes of one cluster.
    pub(super) async fn read(context: &Context, cluster: &str) -> Result<Self, Failure> {
        Self::of(&context.access, context.cluster(cluster)?.nodes.keys()).await
    }

    /// Of some nodes.
    pub(in crate::checks) async fn of(
        access: &Access,
        nodes: impl Iterator<Item = &String>,
    ) -> Result<Self, Failure> {
        let mut all = Self::default();
        for node in nodes {
            let rows: Vec<Counted> = access.json(&Place::node(node), &COMMAND, COMMAND_TIMEOUT).await?;
            let keyed = rows
                .into_iter()
                .map(|row| ((node.clone(), row.number, row.reason, row.direction), row.packets));
            all.0.extend(keyed);
        }
        Ok(all)
    }

    /// How many more than before, of each.
    fn since(&self, before: &Self) -> impl Iterator<Item = (&(String, u8, String, String), u64)> {
        let more = self.0.iter().map(|(key, packets)| {
            // Counters of a datapath that was made anew begin at 0.
            let earlier = before.0.get(key).copied().unwrap_or(0);
            (key, packets.checked_sub(earlier).unwrap_or(*packets))
        });
        more.filter(|(_, packets)| *packets > 0)
    }

    /// Forwarded packets of both directions must have been counted for `requests` requests.
    pub(super) fn forwarded_more_than(&self, before: &Self, requests: usize) -> Result<(), Failure> {
        let mut found: BTreeMap<&str, u64> = BTreeMap::from([("ingress", 0), ("egress", 0)]);
        for ((_, number, _, direction), packets) in self.since(before) {
            if let Some(sum) = found.get_mut(direction.as_str()).filter(|_| *number == 0) {
                *sum += packets;
            }
        }
        let wanted = u64::try_from(requests).unwrap_or(u64::MAX);
        if found.values().all(|packets| *packets >= wanted) {
            return Ok(());
        }
        let expected = format!("{wanted} more packets counted as forwarded in each direction");
        Err(Failure::new(expected, format!("{found:?}"), "`tombolo show packets` in the nodes"))
    }

    /// What was dropped since for a reason that is none of `expected`, in words; and whether anything was counted at all.
    pub(super) fn dropped(&self, before: &Self, expected: &[u8]) -> (Vec<String>, bool) {
        let mut counted = false;
        let mut drops = Vec::new();
        for ((node, number, reason, direction), packets) in self.since(before) {
            counted |= *number == 0;
            if *number != 0 && !expected.contains(number) {
                drops.push(format!("{packets} of {number} {reason} {direction} on {node}"));
            }
        }
        (drops, counted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packets(rows: &[(u8, &str, u64)]) -> Packets {
        let key = |number, direction: &str| ("n1".to_owned(), number, "WHY".to_owned(), direction.to_owned());
        Packets(rows.iter().map(|(number, direction, packets)| (key(*number, direction), *packets)).collect())
    }

    #[test]
    fn what_is_forwarded_must_be_counted_both_ways() {
        let before = packets(&[(0, "ingress", 10), (0, "egress", 10)]);
        let enough = packets(&[(0, "ingress", 14), (0, "egress", 20)]);
        assert!(enough.forwarded_more_than(&before, 4).is_ok());
        assert!(enough.forwarded_more_than(&before, 5).is_err());
        assert!(packets(&[(0, "egress", 20)]).forwarded_more_than(&before, 4).is_err());
    }

    #[test]
    fn only_drops_of_this_run_for_other_reasons_are_told() {
        let before = packets(&[(0, "ingress", 10), (132, "egress", 3), (133, "ingress", 1)]);
        let after =
            packets(&[(0, "ingress", 12), (132, "egress", 3), (133, "ingress", 9), (169, "egress", 2)]);
        assert_eq!(after.dropped(&before, &[133]), (vec!["2 of 169 WHY egress on n1".to_owned()], true));
        assert_eq!(before.dropped(&before, &[133]), (Vec::new(), false));
        let anew = packets(&[(132, "egress", 2)]);
        assert_eq!(anew.dropped(&before, &[]).0.len(), 1, "counters that begin again");
    }
}
