//! The table of validated ROA payloads, and what it says of a route (RFC 6811).

use std::collections::BTreeSet;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;
use serde::{Deserialize, Serialize};

/// A validated ROA payload: `asn` may originate what lies within `prefix` and is no longer than `max_len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Vrp {
    /// The covering prefix.
    pub prefix: IpNet,
    /// Longest prefix length allowed.
    pub max_len: u8,
    /// The AS; 0 forbids every origin (RFC 6483 section 4).
    pub asn: u32,
}

/// What origin validation says of a route (RFC 6811 section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Validity {
    /// A payload covers the prefix and names its origin.
    Valid,
    /// Payloads cover the prefix, but none names its origin at this length.
    Invalid,
    /// No payload covers the prefix.
    NotFound,
}

impl std::fmt::Display for Validity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Valid => "valid",
            Self::Invalid => "invalid",
            Self::NotFound => "not-found",
        })
    }
}

/// Length and AS of the payloads of one prefix.
type Entries = BTreeSet<(u8, u32)>;

/// Validated ROA payloads of all caches together. The owner fills a copy and hands it to the speaker whole, so that routes are judged by one state.
#[derive(Clone, Debug, Default)]
pub struct RpkiTable {
    v4: PrefixMap<Ipv4Net, Entries>,
    v6: PrefixMap<Ipv6Net, Entries>,
    /// Payloads of IPv4 and of IPv6.
    lens: (usize, usize),
}

impl RpkiTable {
    /// Adds a payload; false if it is there already, or its length says nothing: shorter than the prefix, or longer than the family has bits.
    pub fn insert(&mut self, vrp: &Vrp) -> bool {
        if !(vrp.prefix.prefix_len()..=vrp.prefix.max_prefix_len()).contains(&vrp.max_len) {
            return false;
        }
        let (entries, len) = match vrp.prefix.trunc() {
            IpNet::V4(prefix) => (self.v4.entry(prefix).or_default(), &mut self.lens.0),
            IpNet::V6(prefix) => (self.v6.entry(prefix).or_default(), &mut self.lens.1),
        };
        let new = entries.insert((vrp.max_len, vrp.asn));
        *len += usize::from(new);
        new
    }

    /// Takes a payload out; false if it is not there.
    pub fn remove(&mut self, vrp: &Vrp) -> bool {
        let entry = (vrp.max_len, vrp.asn);
        let (gone, len) = match vrp.prefix.trunc() {
            IpNet::V4(prefix) => (take(&mut self.v4, &prefix, entry), &mut self.lens.0),
            IpNet::V6(prefix) => (take(&mut self.v6, &prefix, entry), &mut self.lens.1),
        };
        *len -= usize::from(gone);
        gone
    }

    /// How many payloads there are.
    pub const fn len(&self) -> usize {
        self.lens.0 + self.lens.1
    }

    /// How many are for IPv4, and how many for IPv6.
    pub const fn lens(&self) -> (usize, usize) {
        self.lens
    }

    /// Whether there are none: then every route is [`Validity::NotFound`].
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every payload, by prefix.
    pub fn iter(&self) -> impl Iterator<Item = Vrp> + '_ {
        let vrps = |prefix: IpNet, entries: &Entries| {
            let entries: Vec<(u8, u32)> = entries.iter().copied().collect();
            entries.into_iter().map(move |(max_len, asn)| Vrp { prefix, max_len, asn })
        };
        let v4 = self.v4.iter().flat_map(move |(prefix, entries)| vrps(IpNet::V4(prefix), entries));
        v4.chain(self.v6.iter().flat_map(move |(prefix, entries)| vrps(IpNet::V6(prefix), entries)))
    }

    /// Judges a route by its prefix and origin AS. `origin`: the last AS of its path, this speaker's own if the path is empty, none if the path ends with
    /// a set ([`crate::AsPath::origin`]): such a route is never valid.
    pub fn validity(&self, prefix: &IpNet, origin: Option<u32>) -> Validity {
        match prefix {
            IpNet::V4(prefix) => judge(self.v4.cover_values(prefix), prefix.prefix_len(), origin),
            IpNet::V6(prefix) => judge(self.v6.cover_values(prefix), prefix.prefix_len(), origin),
        }
    }
}

impl PartialEq for RpkiTable {
    fn eq(&self, other: &Self) -> bool {
        self.lens == other.lens && self.iter().eq(other.iter())
    }
}

impl Eq for RpkiTable {}

impl Extend<Vrp> for RpkiTable {
    fn extend<T: IntoIterator<Item = Vrp>>(&mut self, vrps: T) {
        vrps.into_iter().for_each(|vrp| {
            self.insert(&vrp);
        });
    }
}

impl FromIterator<Vrp> for RpkiTable {
    fn from_iter<T: IntoIterator<Item = Vrp>>(vrps: T) -> Self {
        let mut table = Self::default();
        table.extend(vrps);
        table
    }
}

fn take<P: prefix_trie::Prefix>(map: &mut PrefixMap<P, Entries>, prefix: &P, entry: (u8, u32)) -> bool {
    let Some(entries) = map.get_mut(prefix) else { return false };
    let gone = entries.remove(&entry);
    if entries.is_empty() {
        map.remove(prefix);
    }
    gone
}

fn judge<'a>(covering: impl Iterator<Item = &'a Entries>, len: u8, origin: Option<u32>) -> Validity {
    let mut validity = Validity::NotFound;
    for (max_len, asn) in covering.flatten() {
        // AS 0 names nobody, so it matches no origin (RFC 6811 section 2).
        if *asn != 0 && Some(*asn) == origin && len <= *max_len {
            return Validity::Valid;
        }
        validity = Validity::Invalid;
    }
    validity
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vrp(prefix: &str, max_len: u8, asn: u32) -> Vrp {
        Vrp { prefix: prefix.parse().unwrap(), max_len, asn }
    }

    #[test]
    fn routes_are_judged_as_rfc_6811_says() {
        let table: RpkiTable = [
            vrp("192.0.2.0/24", 26, 65001),
            vrp("192.0.2.0/24", 24, 65002),
            vrp("198.51.100.0/22", 24, 0),
            vrp("2001:db8::/32", 48, 65001),
        ]
        .into_iter()
        .collect();
        for (prefix, origin, expected) in [
            ("192.0.2.0/24", Some(65001), Validity::Valid),
            ("192.0.2.64/26", Some(65001), Validity::Valid),
            ("192.0.2.0/27", Some(65001), Validity::Invalid),
            ("192.0.2.0/24", Some(65002), Validity::Valid),
            ("192.0.2.0/25", Some(65002), Validity::Invalid),
            ("192.0.2.0/24", Some(65003), Validity::Invalid),
            ("192.0.2.0/24", None, Validity::Invalid),
            ("192.0.0.0/16", Some(65001), Validity::NotFound),
            ("198.51.100.0/24", Some(0), Validity::Invalid),
            ("2001:db8:1::/48", Some(65001), Validity::Valid),
            ("2001:db8:1::/49", Some(65001), Validity::Invalid),
            ("2001:db9::/32", Some(65001), Validity::NotFound),
        ] {
            assert_eq!(table.validity(&prefix.parse().unwrap(), origin), expected, "{prefix} of {origin:?}");
        }
    }

    #[test]
    fn payloads_come_and_go() {
        let mut table = RpkiTable::default();
        let one = vrp("10.0.0.0/8", 16, 1);
        assert!(table.insert(&one) && !table.insert(&one) && table.insert(&vrp("10.0.0.0/8", 16, 2)));
        assert!(!table.insert(&vrp("10.0.0.0/8", 7, 1)) && !table.insert(&vrp("10.0.0.0/8", 33, 1)));
        table.insert(&vrp("2001:db8::/32", 48, 1));
        assert_eq!((table.len(), table.iter().count(), table.lens()), (3, 3, (2, 1)));
        assert!(table.remove(&vrp("2001:db8::/32", 48, 1)) && table.lens() == (2, 0));
        assert!(table.remove(&one) && !table.remove(&one));
        assert_eq!(table.validity(&one.prefix, Some(1)), Validity::Invalid);
        assert!(table.remove(&vrp("10.0.0.0/8", 16, 2)) && table.is_empty());
        assert_eq!(table.validity(&one.prefix, Some(1)), Validity::NotFound);
    }
}
