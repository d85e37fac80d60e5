//! Which routes of a listing are wanted.

use std::str::FromStr;

use ipnet::IpNet;

use crate::event::RouteRow;
use crate::family::Family;
use crate::policy::{CommunityPattern, LargeCommunityPattern};

/// Which prefixes are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixFilter {
    /// This one.
    Exact(IpNet),
    /// This one and what lies in it.
    OrLonger(IpNet),
    /// Those that hold all of it, itself included: where packets to it would go.
    Covering(IpNet),
}

impl PrefixFilter {
    fn matches(&self, prefix: &IpNet) -> bool {
        match self {
            Self::Exact(wanted) => wanted == prefix,
            Self::OrLonger(wanted) => wanted.contains(prefix),
            Self::Covering(wanted) => prefix.contains(wanted),
        }
    }
}

/// A standard or a large community, or a pattern of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommunityFilter {
    /// RFC 1997.
    Standard(CommunityPattern),
    /// RFC 8092.
    Large(LargeCommunityPattern),
}

impl FromStr for CommunityFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split(':').count() {
            3 => text.parse().map(Self::Large),
            _ => text.parse().map(Self::Standard),
        }
    }
}

/// What a route must be to be listed; what is not given does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteFilter {
    /// From or to the peer of this name.
    pub peer: Option<String>,
    /// Of this family.
    pub family: Option<Family>,
    /// For these prefixes.
    pub prefix: Option<PrefixFilter>,
    /// With such a community.
    pub community: Option<CommunityFilter>,
}

impl RouteFilter {
    /// Whether a route is wanted.
    pub fn matches(&self, row: &RouteRow) -> bool {
        let community = |wanted: &CommunityFilter| match wanted {
            CommunityFilter::Standard(pattern) => {
                row.attributes.communities.iter().any(|community| pattern.matches(*community))
            }
            CommunityFilter::Large(pattern) => {
                row.attributes.large_communities.iter().any(|community| pattern.matches(community))
            }
        };
        self.peer.as_ref().is_none_or(|peer| *peer == row.peer)
            && self.family.is_none_or(|family| family == Family::of(&row.prefix))
            && self.prefix.as_ref().is_none_or(|prefix| prefix.matches(&row.prefix))
            && self.community.as_ref().is_none_or(community)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::family::NextHop;
    use crate::wire::{Attributes, Community, LargeCommunity};

    fn row(prefix: &str, peer: &str) -> RouteRow {
        let attributes = Attributes {
            communities: vec![Community(0xfde8_0001)],
            large_communities: vec![LargeCommunity { global: 65000, local1: 1, local2: 2 }],
            ..Attributes::default()
        };
        RouteRow {
            prefix: prefix.parse().unwrap(),
            peer: peer.to_owned(),
            path_id: 0,
            next_hop: NextHop::new([192, 0, 2, 1].into()),
            attributes: Arc::new(attributes),
            best: true,
            used: true,
            stale: false,
            refused: None,
        }
    }

    #[test]
    fn each_filter_and_all_together() {
        let (v4, v6) = (row("10.1.2.0/24", "a"), row("2001:db8:1::/48", "b"));
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let by_prefix = |prefix| RouteFilter { prefix: Some(prefix), ..RouteFilter::default() };
        let by_community =
            |text: &str| RouteFilter { community: Some(text.parse().unwrap()), ..RouteFilter::default() };
        for (filter, want) in [
            (RouteFilter::default(), (true, true)),
            (RouteFilter { peer: Some("a".into()), ..RouteFilter::default() }, (true, false)),
            (RouteFilter { family: Some(Family::Ipv6Unicast), ..RouteFilter::default() }, (false, true)),
            (by_prefix(PrefixFilter::Exact(net("10.1.2.0/24"))), (true, false)),
            (by_prefix(PrefixFilter::Exact(net("10.1.0.0/16"))), (false, false)),
            (by_prefix(PrefixFilter::OrLonger(net("10.1.0.0/16"))), (true, false)),
            (by_prefix(PrefixFilter::OrLonger(net("2001:db8::/32"))), (false, true)),
            (by_prefix(PrefixFilter::Covering(net("10.1.2.3/32"))), (true, false)),
            (by_prefix(PrefixFilter::Covering(net("2001:db8:1::1/128"))), (false, true)),
            (by_community("65000:1"), (true, true)),
            (by_community("65000:2"), (false, false)),
            (by_community("65000:1:*"), (true, true)),
            (by_community("65000:1:3"), (false, false)),
            (
                RouteFilter { peer: Some("a".into()), ..by_prefix(PrefixFilter::OrLonger(net("::/0"))) },
                (false, false),
            ),
        ] {
            assert_eq!((filter.matches(&v4), filter.matches(&v6)), want, "{filter:?}");
        }
        assert!("65000:x".parse::<CommunityFilter>().is_err());
    }
}
