//! A set of prefix ranges that is asked often: a list as configured, and a trie once it is long.

use std::fmt;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::pattern::PrefixRange;
use crate::config::AllowedPrefix;

/// Ranges that are simply compared one after the other.
const LINEAR_MAX: usize = 8;

/// Shortest and longest length allowed below a prefix.
type Lengths = SmallVec<[(u8, u8); 2]>;

/// Prefix ranges; a prefix is in the set if any contains it.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(from = "Vec<PrefixRange>", into = "Vec<PrefixRange>")]
pub struct PrefixSet {
    ranges: Vec<PrefixRange>,
    /// The same, where there are many.
    tries: Option<Box<Tries>>,
}

#[derive(Clone, Default)]
struct Tries {
    v4: PrefixMap<Ipv4Net, Lengths>,
    v6: PrefixMap<Ipv6Net, Lengths>,
}

impl PrefixSet {
    /// Whether a prefix is in the set.
    pub fn contains(&self, prefix: &IpNet) -> bool {
        let Some(tries) = &self.tries else {
            return self.ranges.iter().any(|range| range.0.allows(prefix));
        };
        let within = |lengths: &Lengths| {
            let len = prefix.prefix_len();
            lengths.iter().any(|(min, max)| (*min..=*max).contains(&len))
        };
        match prefix {
            IpNet::V4(prefix) => tries.v4.cover_values(prefix).any(within),
            IpNet::V6(prefix) => tries.v6.cover_values(prefix).any(within),
        }
    }

    /// The ranges as configured.
    pub fn ranges(&self) -> &[PrefixRange] {
        &self.ranges
    }
}

impl From<Vec<PrefixRange>> for PrefixSet {
    fn from(ranges: Vec<PrefixRange>) -> Self {
        if ranges.len() <= LINEAR_MAX {
            return Self { ranges, tries: None };
        }
        let mut tries = Box::new(Tries::default());
        for PrefixRange(range) in &ranges {
            let lengths = match range.prefix {
                IpNet::V4(prefix) => tries.v4.entry(prefix).or_default(),
                IpNet::V6(prefix) => tries.v6.entry(prefix).or_default(),
            };
            lengths.push((range.min_len, range.max_len));
        }
        Self { ranges, tries: Some(tries) }
    }
}

impl From<PrefixSet> for Vec<PrefixRange> {
    fn from(set: PrefixSet) -> Self {
        set.ranges
    }
}

impl FromIterator<AllowedPrefix> for PrefixSet {
    fn from_iter<T: IntoIterator<Item = AllowedPrefix>>(ranges: T) -> Self {
        ranges.into_iter().map(PrefixRange::from).collect::<Vec<_>>().into()
    }
}

impl PartialEq for PrefixSet {
    fn eq(&self, other: &Self) -> bool {
        self.ranges == other.ranges
    }
}

impl Eq for PrefixSet {}

impl fmt::Debug for PrefixSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ranges.iter().map(|range| range.to_string())).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range() -> impl Strategy<Value = AllowedPrefix> {
        (any::<u8>(), any::<bool>(), 0u8..=32, 0u8..=32, 0u8..=32).prop_map(|(byte, v6, len, a, b)| {
            let prefix: IpNet = if v6 {
                IpNet::new(std::net::Ipv6Addr::from(u128::from(byte) << 96).into(), len).unwrap()
            } else {
                IpNet::new(std::net::Ipv4Addr::from(u32::from(byte) << 8).into(), len).unwrap()
            };
            AllowedPrefix { prefix: prefix.trunc(), min_len: a.min(b).max(len), max_len: a.max(b).max(len) }
        })
    }

    proptest! {
        #[test]
        fn a_long_set_answers_as_its_ranges_do(ranges in prop::collection::vec(range(), 9..40), asked in range()) {
            let set: PrefixSet = ranges.iter().copied().collect();
            let expected = ranges.iter().any(|range| range.allows(&asked.prefix));
            prop_assert_eq!(set.contains(&asked.prefix), expected);
        }
    }
}
