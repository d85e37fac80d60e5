//! What peers hold from us, after export policy, for the collectors that want it (RFC 8671).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::Core;
use super::bmp::encode;
use crate::bmp;
use crate::family::Family;
use crate::rib::out::Said;
use crate::rib::{PathKey, PeerId};
use crate::wire::Route;

/// Routes that are sent with the same next hop and attributes, or are gone.
type Groups = BTreeMap<(Family, Option<Said>), Vec<Route>>;

impl Core {
    /// What a peer holds of a prefix under a path identifier (0 where none is sent), as soon as it has been sent all.
    pub(super) fn held_by(&self, id: PeerId, prefix: &IpNet, path_id: u32) -> Option<Said> {
        let peer = self.peers.get(&id)?;
        let view = peer.view.as_ref()?;
        if let Some(said) = peer.out.said(prefix).filter(|_| path_id == 0) {
            return Some(said.clone());
        }
        let (path, applied) = if peer.out.paths.is_some() {
            let wanted =
                self.wanted(id, view, prefix).into_iter().find(|wanted| wanted.path_id == path_id)?;
            (wanted.best, wanted.applied)
        } else {
            peer.out.place.filter(|_| !self.rib.is_local(prefix))?;
            view.choice(&self.rib, prefix).filter(|(path, _)| path.peer != id)?
        };
        let (next_hop, attributes) = view.learned(&self.rib, Family::of(prefix), &path, &applied)?;
        Some((next_hop, Arc::new(attributes)))
    }

    /// Path identifiers under which a peer may hold something of a prefix.
    fn path_ids(&self, id: PeerId, prefix: &IpNet) -> Vec<u32> {
        let Some(peer) = self.peers.get(&id) else { return Vec::new() };
        let own = peer.out.said(prefix).map(|_| 0);
        let learned = match &peer.out.paths {
            Some(paths) => paths.get(prefix).into_iter().flatten().map(|told| told.path_id).collect(),
            None => vec![0],
        };
        own.into_iter().filter(|own| !learned.contains(own)).chain(learned.iter().copied()).collect()
    }

    /// Whether any connected collector wants to know what peers are sent.
    pub(super) fn is_sending_watched(&self) -> bool {
        self.stations.watching_sent()
    }

    /// Marks what a peer is being told for the collectors that want to know.
    pub(super) fn note_told(&mut self, id: PeerId, routes: impl IntoIterator<Item = Route>) {
        for Route { prefix, path_id } in routes {
            self.stations.sent_links().for_each(|link| link.mark_sent((id, prefix, path_id)));
        }
    }

    /// The whole of a prefix, for a collector that begins.
    pub(super) fn mark_all_sent(&self, prefix: &IpNet, link: &mut bmp::StationLink) {
        for id in link.up.clone() {
            for path_id in self.path_ids(id, prefix) {
                if self.held_by(id, prefix, path_id).is_some() {
                    link.mark_sent((id, *prefix, path_id));
                }
            }
        }
    }

    /// Tells of what peers hold now.
    pub(super) fn tell_sent(&self, marks: Vec<PathKey>, at: Duration, out: &mut Vec<u8>) {
        let mut by_peer: BTreeMap<PeerId, Groups> = BTreeMap::new();
        for (id, prefix, path_id) in marks {
            let held = self.held_by(id, &prefix, path_id);
            let of_peer = by_peer.entry(id).or_default();
            of_peer.entry((Family::of(&prefix), held)).or_default().push(Route { prefix, path_id });
        }
        for (id, groups) in by_peer {
            let Some((head, _)) = self.head(id) else { continue };
            let view = self.peers.get(&id).and_then(|peer| peer.view.clone());
            for ((family, said), routes) in groups {
                let add_path = view.as_ref().is_some_and(|view| view.sends_path_ids(family));
                let said = said.as_ref().map(|(next_hop, attributes)| (attributes.as_ref(), next_hop));
                let updates = encode(family, said, &routes, add_path);
                bmp::route_monitoring(&head.post_policy().sent(), at, &updates, out);
            }
        }
    }
}
