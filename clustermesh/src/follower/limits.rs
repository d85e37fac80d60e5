//! What one cluster may cost, and how long its entries are used without being confirmed.

use crate::wire::Kind;
use std::time::Duration;

/// Bounds of one followed cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most entries of all kinds together; more are refused (`too-many`), and asked for again when others have gone.
    pub max_entries: usize,
    /// Most bytes of keys' names and values, slices as they are unpacked; more are refused likewise.
    pub max_bytes: usize,
    /// How long services are used after they were confirmed last; `None` for ever.
    pub services_stale: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_entries: 1_000_000,
            max_bytes: 512 << 20,
            services_stale: Some(Duration::from_secs(15 * 60)),
        }
    }
}

impl Limits {
    /// How long entries of a kind are used without being confirmed. Only what a choice is made among has a limit: without
    /// a backend others are chosen, whereas without a node, an identity or an address traffic that works would be dropped.
    #[must_use]
    pub const fn stale_after(&self, kind: Kind) -> Option<Duration> {
        match kind {
            Kind::Services | Kind::EndpointSlices => self.services_stale,
            // An export chooses no backend, and an import that goes would lose its address.
            Kind::Nodes | Kind::Identities | Kind::Ips | Kind::ServiceExports | Kind::Assignments => None,
        }
    }

    /// Most entries of one kind, whatever else there is room for.
    pub(super) const fn max_of(kind: Kind) -> usize {
        match kind {
            Kind::Ips => usize::MAX,
            // As many as a cluster has numbers; nodes and services stay far below that.
            Kind::ServiceExports | Kind::Nodes | Kind::Services | Kind::Identities | Kind::Assignments => {
                65_536
            }
            // A service of 10,000 backends has a hundred.
            Kind::EndpointSlices => 262_144,
        }
    }
}

/// What the entries of one cluster cost, all kinds together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) entries: usize,
    pub(crate) bytes: usize,
}

impl Usage {
    /// Takes an entry of `bytes` in, in place of one of `instead` bytes.
    pub(super) const fn add(&mut self, bytes: usize, instead: Option<usize>) {
        match instead {
            Some(before) => self.bytes = self.bytes.saturating_sub(before),
            None => self.entries = self.entries.saturating_add(1),
        }
        self.bytes = self.bytes.saturating_add(bytes);
    }

    pub(super) const fn remove(&mut self, bytes: usize) {
        self.entries = self.entries.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}
