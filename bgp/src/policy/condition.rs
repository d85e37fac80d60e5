//! What a statement asks of a route.

use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::pattern::{
    AsSpan, CommunityPattern, ExtendedCommunity, ExtendedCommunityPattern, LargeCommunityPattern,
};
use super::prefix_set::PrefixSet;
use super::{Source, Subject};
use crate::family::{Family, NextHop};
use crate::rib::DEFAULT_LOCAL_PREF;
use crate::rpki::Validity;
use crate::wire::{Attributes, Origin};

/// Bounds of a number, both inclusive; what is left out does not bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Bounds {
    /// At least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<u32>,
    /// At most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
}

impl Bounds {
    /// Exactly this number.
    pub const fn exactly(value: u32) -> Self {
        Self { min: Some(value), max: Some(value) }
    }

    fn hold(self, value: u32) -> bool {
        self.min.is_none_or(|min| min <= value) && self.max.is_none_or(|max| value <= max)
    }
}

/// Where a route comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceKind {
    /// This speaker originates it.
    Own,
    /// From a peer of another AS.
    External,
    /// From a peer of the same AS.
    Internal,
}

/// One condition. A list in it holds if one entry does; an empty list never holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Condition {
    /// The prefix is in one of these ranges.
    Prefixes(PrefixSet),
    /// The family of the prefix.
    Families(Vec<Family>),
    /// Length of the AS path as the decision process counts it (a set is one).
    AsPathLength(Bounds),
    /// The AS path goes through one of these.
    AsPathContains(Vec<AsSpan>),
    /// The last AS of the path, this speaker's own if it is empty; a path that ends with a set has none.
    OriginAs(Vec<AsSpan>),
    /// The first AS of the path; an empty path has none.
    NeighbourAs(Vec<AsSpan>),
    /// It has one of these communities.
    Communities(Vec<CommunityPattern>),
    /// It has one of these large communities.
    LargeCommunities(Vec<LargeCommunityPattern>),
    /// It has one of these extended communities.
    ExtendedCommunities(Vec<ExtendedCommunityPattern>),
    /// The next hop, as received or as announced, lies in one of these prefixes; never that of an own announcement without one.
    NextHops(Vec<IpNet>),
    /// The peer the route is from, by name.
    Peers(Vec<String>),
    /// The group of the peer the route is from.
    PeerGroups(Vec<String>),
    /// Own, from another AS, or from the same.
    Sources(Vec<SourceKind>),
    /// ORIGIN.
    Origins(Vec<Origin>),
    /// Origin validation (RFC 6811).
    Rpki(Vec<Validity>),
    /// LOCAL_PREF; 100 if there is none.
    LocalPref(Bounds),
    /// MULTI_EXIT_DISC; one that is missing is within no bounds.
    Med(Bounds),
    /// All of these hold.
    All(Vec<Condition>),
    /// One of these holds.
    Any(Vec<Condition>),
    /// This does not hold.
    Not(Box<Condition>),
}

/// Nesting of conditions that is read at most.
pub(super) const DEPTH_MAX: usize = 16;

impl Condition {
    /// Whether it holds for a route whose attributes are, after what earlier statements did, `attributes`.
    pub(super) fn holds(
        &self,
        subject: &Subject<'_>,
        attributes: &Attributes,
        next_hop: Option<&NextHop>,
    ) -> bool {
        let path = &attributes.as_path;
        match self {
            Self::Prefixes(set) => set.contains(&subject.prefix),
            Self::Families(families) => families.contains(&Family::of(&subject.prefix)),
            Self::AsPathLength(bounds) => bounds.hold(u32::try_from(path.hops()).unwrap_or(u32::MAX)),
            Self::AsPathContains(spans) => path
                .segments
                .iter()
                .flat_map(|segment| &segment.asns)
                .any(|asn| spans.iter().any(|span| span.contains(*asn))),
            Self::OriginAs(spans) => {
                path.origin(subject.local_asn).is_some_and(|asn| spans.iter().any(|span| span.contains(asn)))
            }
            Self::NeighbourAs(spans) => {
                path.first().is_some_and(|asn| spans.iter().any(|span| span.contains(asn)))
            }
            Self::Communities(patterns) => {
                attributes.communities.iter().any(|had| patterns.iter().any(|pattern| pattern.matches(*had)))
            }
            Self::LargeCommunities(patterns) => attributes
                .large_communities
                .iter()
                .any(|had| patterns.iter().any(|pattern| pattern.matches(had))),
            Self::ExtendedCommunities(patterns) => attributes
                .extended_communities
                .iter()
                .any(|had| patterns.iter().any(|pattern| pattern.matches(ExtendedCommunity(*had)))),
            Self::NextHops(prefixes) => {
                next_hop.is_some_and(|hop| prefixes.iter().any(|prefix| prefix.contains(&hop.address)))
            }
            Self::Peers(names) => {
                subject.source.peer().is_some_and(|peer| names.iter().any(|name| name == peer))
            }
            Self::PeerGroups(names) => {
                subject.source.group().is_some_and(|group| names.iter().any(|name| name == group))
            }
            Self::Sources(kinds) => kinds.contains(&subject.source.kind()),
            Self::Origins(origins) => origins.contains(&attributes.origin),
            Self::Rpki(states) => {
                let origin = path.origin(subject.local_asn);
                states.contains(&subject.rpki.validity(&subject.prefix, origin))
            }
            Self::LocalPref(bounds) => bounds.hold(attributes.local_pref.unwrap_or(DEFAULT_LOCAL_PREF)),
            Self::Med(bounds) => attributes.med.is_some_and(|med| bounds.hold(med)),
            Self::All(all) => all.iter().all(|condition| condition.holds(subject, attributes, next_hop)),
            Self::Any(any) => any.iter().any(|condition| condition.holds(subject, attributes, next_hop)),
            Self::Not(not) => !not.holds(subject, attributes, next_hop),
        }
    }

    /// Whether this or a condition in it is one that `which` names.
    pub(super) fn has(&self, which: &impl Fn(&Self) -> bool) -> bool {
        which(self)
            || match self {
                Self::All(nested) | Self::Any(nested) => nested.iter().any(|condition| condition.has(which)),
                Self::Not(nested) => nested.has(which),
                _ => false,
            }
    }

    /// Levels of conditions in conditions, this one included.
    pub(super) fn depth(&self) -> usize {
        1 + match self {
            Self::All(nested) | Self::Any(nested) => nested.iter().map(Self::depth).max().unwrap_or_default(),
            Self::Not(nested) => nested.depth(),
            _ => 0,
        }
    }
}

/// As it is written in configuration.
impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Whatever derives Serialize with string keys can be written as JSON.
        f.write_str(&serde_json::to_string(self).unwrap_or_default())
    }
}

impl Source<'_> {
    fn peer(&self) -> Option<&str> {
        match self {
            Self::Own => None,
            Self::Peer { name, .. } => Some(name),
        }
    }

    fn group(&self) -> Option<&str> {
        match self {
            Self::Own => None,
            Self::Peer { group, .. } => *group,
        }
    }

    const fn kind(&self) -> SourceKind {
        match self {
            Self::Own => SourceKind::Own,
            Self::Peer { external: true, .. } => SourceKind::External,
            Self::Peer { external: false, .. } => SourceKind::Internal,
        }
    }
}
