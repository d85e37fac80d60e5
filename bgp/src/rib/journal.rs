//! Which paths changed, for those who tell others of every one of them.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::PeerId;

/// Stands for the peer of a best path. Peers are counted from 1.
pub(crate) const LOC_RIB: PeerId = 0;

/// Whose path, to where, under which identifier of theirs.
pub(crate) type PathKey = (PeerId, IpNet, u32);

/// Off unless somebody takes from it. Taken after every step of the core, so it is bounded by what one step can change.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    on: bool,
    changed: BTreeSet<PathKey>,
}

impl Journal {
    pub(crate) const fn open(&mut self) {
        self.on = true;
    }

    pub(super) fn note(&mut self, peer: PeerId, prefix: IpNet, path_id: u32) {
        if self.on {
            self.changed.insert((peer, prefix, path_id));
        }
    }

    pub(crate) fn take(&mut self) -> BTreeSet<PathKey> {
        std::mem::take(&mut self.changed)
    }
}
