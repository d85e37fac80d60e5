//! Identifiers under which paths are sent to peers that take several (RFC 7911 section 3). A path keeps its own as long as it is there.

use std::collections::BTreeMap;

use super::PeerId;

/// From here on identifiers are for paths that came with one; below, a peer's number is that of its only path.
const FIRST: u32 = 1 << 31;

/// Identifiers of paths that came with one, by peer and that.
#[derive(Debug, Default)]
pub(super) struct PathIds {
    known: BTreeMap<(PeerId, u32), Id>,
    free: Vec<u32>,
    /// How many were ever made.
    next: u32,
}

#[derive(Debug)]
struct Id {
    id: u32,
    paths: u32,
}

impl PathIds {
    /// The identifier of a path; 0, which names no learned path, if there is none such.
    pub(super) fn of(&self, peer: PeerId, path_id: u32) -> u32 {
        match path_id {
            0 => peer,
            _ => self.known.get(&(peer, path_id)).map_or(0, |id| id.id),
        }
    }

    /// One more path has this identifier of its peer.
    pub(super) fn hold(&mut self, peer: PeerId, path_id: u32) {
        let (free, next) = (&mut self.free, &mut self.next);
        let known = self.known.entry((peer, path_id)).or_insert_with(|| {
            let id = free.pop().unwrap_or_else(|| {
                *next += 1;
                FIRST | *next
            });
            Id { id, paths: 0 }
        });
        known.paths += 1;
    }

    /// One path less has it; after the last another path may get what it was sent as.
    pub(super) fn release(&mut self, peer: PeerId, path_id: u32) {
        let Some(known) = self.known.get_mut(&(peer, path_id)) else { return };
        known.paths = known.paths.saturating_sub(1);
        if known.paths == 0 {
            self.free.push(known.id);
            self.known.remove(&(peer, path_id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_stay_while_paths_do_and_are_used_again() {
        let mut ids = PathIds::default();
        assert_eq!(ids.of(7, 0), 7);
        ids.hold(7, 1);
        ids.hold(7, 1);
        ids.hold(8, 1);
        let (first, second) = (ids.of(7, 1), ids.of(8, 1));
        assert!(first >= FIRST && second >= FIRST && first != second);
        ids.release(7, 1);
        assert_eq!(ids.of(7, 1), first);
        ids.release(7, 1);
        assert_eq!(ids.of(7, 1), 0);
        for round in 0..1000 {
            ids.hold(7, round + 2);
            assert_eq!(ids.of(7, round + 2), first, "no growth");
            ids.release(7, round + 2);
        }
    }
}
