//! Which clients a service takes: prefixes under the number of its frontend.

use crate::abi::Addr;
use crate::datapath::{Datapath, lock};
use crate::error::DatapathError;
use crate::places::{trie_length, trie_prefix};
use crate::sets::Sets;
use crate::tables::Tables;
use ipnet::IpNet;
use std::collections::BTreeSet;

/// A prefix as the trie has it: length and address.
type Range = (u32, [u8; 16]);
/// Prefixes by number.
pub(crate) type Ranges = Sets<u32, Range>;

/// The number stands before the address, so each number has a trie of its own.
const NUMBER_BITS: u32 = u32::BITS;

fn key(number: u32, (length, addr): Range) -> (u32, [u8; 20]) {
    let mut bytes = [0; 20];
    let (front, back) = bytes.split_at_mut(4);
    front.copy_from_slice(&number.to_ne_bytes());
    back.copy_from_slice(&addr);
    (NUMBER_BITS + length, bytes)
}

fn from_key(length: u32, bytes: [u8; 20]) -> Option<(u32, Range)> {
    let (front, back) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_ne_bytes(*front), (length.checked_sub(NUMBER_BITS)?, back.try_into().ok()?)))
}

/// The prefixes that an earlier life left.
pub(crate) fn recover(tables: &Tables) -> Result<Ranges, DatapathError> {
    let rows = tables.ranges.dump()?.into_iter();
    Ok(Sets::recover(rows.filter_map(|(length, bytes, _)| from_key(length, bytes))))
}

fn ranges(wanted: Option<&BTreeSet<IpNet>>) -> BTreeSet<Range> {
    let of = |net: &IpNet| (trie_length(*net), Addr::from(net.network()).0);
    wanted.into_iter().flatten().map(of).collect()
}

impl Datapath {
    /// Admits the prefixes of clients that a service shall take, before its row says that it takes only those.
    pub(crate) fn admit(&self, number: u32, wanted: Option<&BTreeSet<IpNet>>) -> Result<(), DatapathError> {
        let write = |range| {
            let (length, bytes) = key(number, range);
            self.tables.ranges.upsert(length, bytes, 1)
        };
        lock(&self.ranges).widen(number, &ranges(wanted), write)
    }

    /// Forgets the prefixes that it shall not take any more, after its row was written.
    pub(crate) fn admit_only(
        &self,
        number: u32,
        wanted: Option<&BTreeSet<IpNet>>,
    ) -> Result<(), DatapathError> {
        let delete = |range| {
            let (length, bytes) = key(number, range);
            self.tables.ranges.delete(length, bytes)
        };
        lock(&self.ranges).narrow(&number, &ranges(wanted), delete)
    }

    /// The prefixes that a service takes.
    pub(crate) fn admitted(&self, number: u32) -> BTreeSet<IpNet> {
        lock(&self.ranges).of(&number).filter_map(|(length, addr)| trie_prefix(length, addr)).collect()
    }
}
