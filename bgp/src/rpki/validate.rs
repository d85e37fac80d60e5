//! Validation of a route's origin against the validated payloads of the RPKI (RFC 6811 section 2), as a lookup without I/O.

use std::fmt;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::wire::{AsPath, SegmentKind};

/// What the payloads say of a route (RFC 6811 section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Validity {
    /// A payload covers the prefix and names its origin and a length that long.
    Valid,
    /// No payload covers the prefix.
    NotFound,
    /// Payloads cover the prefix, and none of them matches.
    Invalid,
}

impl Validity {
    /// The number of the state in the extended community of RFC 8097.
    pub const fn code(self) -> u8 {
        match self {
            Self::Valid => 0,
            Self::NotFound => 1,
            Self::Invalid => 2,
        }
    }
}

impl fmt::Display for Validity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Valid => "valid",
            Self::NotFound => "not-found",
            Self::Invalid => "invalid",
        })
    }
}

/// A validated ROA payload: `asn` may originate `prefix`, and what is in it down to `max_len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Vrp {
    /// The prefix, without host bits.
    pub prefix: IpNet,
    /// Longest length allowed; at least that of the prefix.
    pub max_len: u8,
    /// The origin; 0 allows nobody (RFC 6483 section 4).
    pub asn: u32,
}

impl Vrp {
    /// A payload, if its lengths make sense. Host bits are cleared.
    pub fn new(prefix: IpNet, max_len: u8, asn: u32) -> Option<Self> {
        let sensible = (prefix.prefix_len()..=prefix.max_prefix_len()).contains(&max_len);
        sensible.then(|| Self { prefix: prefix.trunc(), max_len, asn })
    }
}

/// The origins named for one prefix.
type Origins = SmallVec<[(u32, u8); 2]>;

/// Validated payloads, ordered for lookup.
#[derive(Clone, Debug, Default)]
pub struct VrpTable {
    v4: PrefixMap<Ipv4Net, Origins>,
    v6: PrefixMap<Ipv6Net, Origins>,
    len: usize,
}

impl VrpTable {
    /// How many payloads there are.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a payload; false if it was there.
    pub fn insert(&mut self, vrp: Vrp) -> bool {
        let origins = match vrp.prefix {
            IpNet::V4(prefix) => self.v4.entry(prefix).or_default(),
            IpNet::V6(prefix) => self.v6.entry(prefix).or_default(),
        };
        let entry = (vrp.asn, vrp.max_len);
        match origins.binary_search(&entry) {
            Ok(_) => false,
            Err(at) => {
                origins.insert(at, entry);
                self.len += 1;
                true
            }
        }
    }

    /// Takes a payload out; false if it was not there.
    pub fn remove(&mut self, vrp: &Vrp) -> bool {
        let origins = match &vrp.prefix {
            IpNet::V4(prefix) => self.v4.get_mut(prefix),
            IpNet::V6(prefix) => self.v6.get_mut(prefix),
        };
        let Some(origins) = origins else { return false };
        let Ok(at) = origins.binary_search(&(vrp.asn, vrp.max_len)) else { return false };
        origins.remove(at);
        self.len -= 1;
        if origins.is_empty() {
            match &vrp.prefix {
                IpNet::V4(prefix) => drop(self.v4.remove(prefix)),
                IpNet::V6(prefix) => drop(self.v6.remove(prefix)),
            }
        }
        true
    }

    /// All payloads, by prefix, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = Vrp> + '_ {
        let v4 = self.v4.iter().map(|(prefix, origins)| (IpNet::V4(prefix), origins));
        let v6 = self.v6.iter().map(|(prefix, origins)| (IpNet::V6(prefix), origins));
        v4.chain(v6).flat_map(|(prefix, origins)| {
            origins.iter().map(move |(asn, max_len)| Vrp { prefix, max_len: *max_len, asn: *asn })
        })
    }

    /// What is to be made of a route (RFC 6811 section 2.1). `origin` is [`origin_of`] its path: `None` matches no payload.
    pub fn validate(&self, prefix: &IpNet, origin: Option<u32>) -> Validity {
        match prefix {
            IpNet::V4(net) => judge(self.v4.cover_values(net), prefix.prefix_len(), origin),
            IpNet::V6(net) => judge(self.v6.cover_values(net), prefix.prefix_len(), origin),
        }
    }
}

fn judge<'a>(covering: impl Iterator<Item = &'a Origins>, length: u8, origin: Option<u32>) -> Validity {
    // An AS 0 payload covers and never matches (RFC 6811 section 2).
    let origin = origin.filter(|asn| *asn != 0);
    let mut verdict = Validity::NotFound;
    for origins in covering {
        if origins.iter().any(|(asn, max_len)| Some(*asn) == origin && length <= *max_len) {
            return Validity::Valid;
        }
        verdict = Validity::Invalid;
    }
    verdict
}

/// The AS a route originates in (RFC 6811 section 2): the last AS of a path that ends in a sequence, `own_asn` for a path that is empty or
/// ends inside the confederation, and none for one that ends in a set.
pub fn origin_of(path: &AsPath, own_asn: u32) -> Option<u32> {
    match path.segments.last() {
        None => Some(own_asn),
        Some(segment) => match segment.kind {
            SegmentKind::Sequence => segment.asns.last().copied(),
            SegmentKind::ConfedSequence | SegmentKind::ConfedSet => Some(own_asn),
            SegmentKind::Set => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Segment;

    fn vrp(prefix: &str, max_len: u8, asn: u32) -> Vrp {
        Vrp::new(prefix.parse().unwrap(), max_len, asn).unwrap()
    }

    fn table(vrps: &[Vrp]) -> VrpTable {
        let mut table = VrpTable::default();
        vrps.iter().for_each(|vrp| assert!(table.insert(*vrp)));
        table
    }

    fn validate(table: &VrpTable, prefix: &str, origin: u32) -> Validity {
        table.validate(&prefix.parse().unwrap(), Some(origin))
    }

    #[test]
    fn a_route_is_valid_invalid_or_not_known_in_both_families() {
        let table = table(&[
            vrp("10.0.0.0/8", 16, 65001),
            vrp("10.1.0.0/16", 24, 65002),
            vrp("2001:db8::/32", 48, 65001),
            vrp("0.0.0.0/0", 0, 65009),
        ]);
        let cases = [
            ("10.0.0.0/8", 65001, Validity::Valid),
            ("10.9.0.0/16", 65001, Validity::Valid),
            ("10.9.0.0/17", 65001, Validity::Invalid),
            ("10.1.0.0/16", 65001, Validity::Valid),
            ("10.1.2.0/24", 65002, Validity::Valid),
            ("10.1.2.0/25", 65002, Validity::Invalid),
            ("10.0.0.0/8", 65002, Validity::Invalid),
            ("192.0.2.0/24", 65009, Validity::Invalid),
            ("2001:db8:1::/48", 65001, Validity::Valid),
            ("2001:db8:1::/48", 65002, Validity::Invalid),
            ("2001:db9::/32", 65001, Validity::NotFound),
            ("2001::/16", 65001, Validity::NotFound),
        ];
        for (prefix, origin, verdict) in cases {
            assert_eq!(validate(&table, prefix, origin), verdict, "{prefix} of {origin}");
        }
    }

    #[test]
    fn nobody_is_as_zero_and_a_set_matches_nothing() {
        let table = table(&[vrp("192.0.2.0/24", 24, 0), vrp("198.51.100.0/24", 24, 65001)]);
        assert_eq!(validate(&table, "192.0.2.0/24", 65001), Validity::Invalid);
        assert_eq!(validate(&table, "192.0.2.0/24", 0), Validity::Invalid);
        assert_eq!(table.validate(&"198.51.100.0/24".parse().unwrap(), None), Validity::Invalid);
        assert_eq!(table.validate(&"203.0.113.0/24".parse().unwrap(), None), Validity::NotFound);
    }

    #[test]
    fn the_origin_is_the_last_of_a_sequence() {
        let path = |segments: &[(SegmentKind, &[u32])]| AsPath {
            segments: segments
                .iter()
                .map(|(kind, asns)| Segment { kind: *kind, asns: asns.to_vec() })
                .collect(),
        };
        use SegmentKind::{ConfedSequence, Sequence, Set};
        assert_eq!(origin_of(&AsPath::default(), 65000), Some(65000));
        assert_eq!(origin_of(&AsPath::sequence(&[65001, 65002]), 65000), Some(65002));
        assert_eq!(origin_of(&path(&[(Sequence, &[65001]), (Set, &[65002])]), 65000), None);
        assert_eq!(origin_of(&path(&[(ConfedSequence, &[65001])]), 65000), Some(65000));
    }

    #[test]
    fn what_goes_in_comes_out_once() {
        let all = [
            vrp("10.0.0.0/8", 8, 1),
            vrp("10.0.0.0/8", 9, 1),
            vrp("10.0.0.0/8", 9, 2),
            vrp("2001:db8::/32", 48, 1),
        ];
        let mut table = table(&all);
        assert!(!table.insert(all[0]));
        assert_eq!(table.iter().collect::<Vec<_>>(), all);
        assert!(!table.remove(&vrp("10.0.0.0/8", 10, 1)));
        assert!(!table.remove(&vrp("10.0.0.0/9", 9, 1)));
        for (left, vrp) in (0..all.len()).rev().zip(&all) {
            assert!(table.remove(vrp));
            assert_eq!(table.len(), left);
        }
        assert!(table.is_empty() && table.v4.is_empty() && table.v6.is_empty());
        assert_eq!(validate(&table, "10.0.0.0/8", 1), Validity::NotFound);
        assert!(Vrp::new("10.0.0.0/8".parse().unwrap(), 7, 1).is_none());
        assert!(Vrp::new("10.0.0.0/8".parse().unwrap(), 33, 1).is_none());
    }
}
