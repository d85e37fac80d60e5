//! What a speaker and its peers are told about routes: how paths are compared, how many are taken and sent, and what neighbours are to each other.

use serde::{Deserialize, Serialize};

use crate::family::Family;

/// Choices within the decision process (RFC 4271 section 9.1.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Decision {
    /// Compare MEDs of paths through different neighbouring ASes as well.
    pub always_compare_med: bool,
    /// A path without MED is the least preferred, as if it had the greatest; else the most, as if it were 0.
    pub missing_med_is_worst: bool,
    /// Paths through different ASes are equal if they are equally long; else only those whose AS paths are the same are used together.
    pub relax_multipath: bool,
    /// Most equal paths from internal peers; none: as many as from external ones.
    pub max_internal_paths: Option<usize>,
}

impl Decision {
    pub(crate) const fn new() -> Self {
        Self {
            always_compare_med: false,
            missing_med_is_worst: false,
            relax_multipath: true,
            max_internal_paths: None,
        }
    }
}

impl Default for Decision {
    fn default() -> Self {
        Self::new()
    }
}

/// What a speaker is to its neighbour in another AS (RFC 9234 section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It gives the neighbour transit.
    Provider,
    /// It is a route server, the neighbour its client.
    RouteServer,
    /// The neighbour is its route server.
    RouteServerClient,
    /// It gets transit from the neighbour.
    Customer,
    /// Both exchange their own and their customers' routes.
    Peer,
}

impl Role {
    /// As the capability has it.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Provider => 0,
            Self::RouteServer => 1,
            Self::RouteServerClient => 2,
            Self::Customer => 3,
            Self::Peer => 4,
        }
    }

    /// What the neighbour must be.
    pub(crate) const fn opposite(self) -> Self {
        match self {
            Self::Provider => Self::Customer,
            Self::RouteServer => Self::RouteServerClient,
            Self::RouteServerClient => Self::RouteServer,
            Self::Customer => Self::Provider,
            Self::Peer => Self::Peer,
        }
    }

    /// Whether the neighbour may be told of routes that are for customers only.
    pub(crate) const fn is_upstream(self) -> bool {
        matches!(self, Self::Provider | Self::RouteServer)
    }
}

/// Several paths of one prefix with one peer (RFC 7911); used in the families in which the peer agrees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct AddPaths {
    /// Offer to take them.
    pub receive: bool,
    /// Offer to send them, and which; none: only the best path is sent.
    pub send: Option<PathCount>,
}

/// Which paths of a prefix are sent to a peer that takes several, of those that it may hear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PathCount {
    /// All.
    All,
    /// The best ones, this many.
    Best(std::num::NonZeroU8),
}

impl PathCount {
    pub(crate) fn most(self) -> usize {
        match self {
            Self::All => usize::MAX,
            Self::Best(count) => count.get().into(),
        }
    }
}

/// The most routes of a family that are taken from a peer, before policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PrefixLimit {
    /// The family.
    pub family: Family,
    /// The most routes.
    pub max: usize,
    /// Percentage of `max` from which on it is warned of; 1 to 100.
    #[serde(default = "default_warning_percent")]
    pub warning_percent: u8,
    /// What happens beyond `max`.
    pub action: LimitAction,
}

const fn default_warning_percent() -> u8 {
    75
}

/// What happens when a peer sends more routes than are to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LimitAction {
    /// It is warned of, and they are taken.
    Warn,
    /// New ones are not taken. Once there is room the peer is asked for them again (RFC 2918).
    Discard,
    /// The session ends, and begins again after a time.
    #[serde(rename_all = "camelCase")]
    Restart {
        /// Seconds until then; at least 1.
        after_secs: u32,
    },
    /// The session ends until the peer is changed or removed.
    Stop,
}

impl PrefixLimit {
    /// The number from which on it is warned of.
    pub(crate) fn warning(&self) -> usize {
        let percent = usize::from(self.warning_percent);
        // Rounded up, and without a product that could be too large.
        self.max / 100 * percent + (self.max % 100 * percent).div_ceil(100)
    }
}
