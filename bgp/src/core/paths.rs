//! Telling peers that take several paths of a prefix (RFC 7911). What such a peer holds is remembered, as numbers: it does not follow from the best path.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use ipnet::IpNet;

use super::Core;
use super::export::{View, too_long};
use super::peer::Peer;
use crate::family::Family;
use crate::policy::Applied;
use crate::rib::out::{Said, Told};
use crate::rib::{Best, PeerId};
use crate::wire::{self, Route};

/// A path that a peer is to hear of.
pub(super) struct Wanted {
    pub(super) path_id: u32,
    pub(super) best: Best,
    pub(super) applied: Applied,
}

impl Wanted {
    fn told(&self) -> Told {
        Told { path_id: self.path_id, peer: self.best.peer, serial: self.best.set.serial() }
    }
}

/// What one group of messages announces: content, whose, statements that apply.
type Key = (u64, PeerId, Family, Applied);

impl Core {
    /// The paths of a prefix that a peer is to hear of, best first.
    pub(super) fn wanted(&self, id: PeerId, view: &View, prefix: &IpNet) -> Vec<Wanted> {
        let Some(peer) = self.peers.get(&id).filter(|peer| peer.config.passes_on()) else {
            return Vec::new();
        };
        if self.rib.is_local(prefix) {
            return Vec::new();
        }
        let pass = |(path_id, best): (u32, Best)| {
            let applied = view.passes(&self.rib, prefix, &best).filter(|_| best.peer != id)?;
            Some(Wanted { path_id, best, applied })
        };
        if !view.sends_path_ids(Family::of(prefix)) {
            let choice = view.choice(&self.rib, prefix).filter(|(best, _)| best.peer != id);
            return choice.map(|(best, applied)| Wanted { path_id: 0, best, applied }).into_iter().collect();
        }
        let most = peer.config.add_path.send.map_or(1, crate::routing::PathCount::most);
        self.rib.paths(prefix).filter_map(pass).take(most).collect()
    }

    /// What a peer is to hear about prefixes as they are now, after what it was told.
    pub(super) fn look_at_paths(&mut self, id: PeerId, view: &View, marks: Vec<(IpNet, bool)>) -> Vec<Bytes> {
        let mut withdrawn: Vec<Route> = Vec::new();
        let mut originated: Vec<(IpNet, Said)> = Vec::new();
        let mut groups: HashMap<Key, usize, foldhash::fast::FixedState> = HashMap::default();
        let mut runs: Vec<(Wanted, Vec<Route>)> = Vec::new();
        for (prefix, _) in marks {
            let wanted = self.wanted(id, view, &prefix);
            let Some(peer) = self.peers.get_mut(&id) else { return Vec::new() };
            let announcement = self.rib.announcement(&prefix, &peer.config.name);
            match announcement.and_then(|announcement| view.originated(&prefix, announcement)) {
                Some(said) if peer.out.said(&prefix) == Some(&said) => {}
                Some(said) => {
                    peer.out.remember(prefix, said.clone());
                    originated.push((prefix, said));
                }
                None if peer.out.forget(&prefix) => withdrawn.push(prefix.into()),
                None => {}
            }
            let before = peer.out.replace_paths(prefix, wanted.iter().map(Wanted::told).collect());
            for told in &before {
                if !wanted.iter().any(|wanted| wanted.path_id == told.path_id) {
                    withdrawn.push(Route { prefix, path_id: told.path_id });
                }
            }
            for wanted in wanted {
                if before.contains(&wanted.told()) {
                    continue;
                }
                let route = Route { prefix, path_id: wanted.path_id };
                let told = wanted.told();
                let key = (told.serial, told.peer, Family::of(&prefix), wanted.applied.clone());
                let run = *groups.entry(key).or_insert_with(|| {
                    runs.push((wanted, Vec::new()));
                    runs.len() - 1
                });
                runs.get_mut(run).into_iter().for_each(|(_, routes)| routes.push(route));
            }
        }
        if self.is_sending_watched() {
            let told = runs.iter().flat_map(|(_, routes)| routes.iter().copied());
            let told: Vec<Route> = told.chain(withdrawn.iter().copied()).collect();
            self.note_told(id, told.into_iter().chain(originated.iter().map(|(prefix, _)| (*prefix).into())));
        }
        self.encode_paths(view, &withdrawn, originated, runs)
    }

    fn encode_paths(
        &self,
        view: &View,
        withdrawn: &[Route],
        originated: Vec<(IpNet, Said)>,
        runs: Vec<(Wanted, Vec<Route>)>,
    ) -> Vec<Bytes> {
        let mut out = Vec::new();
        let mut by_family: BTreeMap<Family, Vec<Route>> = BTreeMap::new();
        for route in withdrawn {
            by_family.entry(Family::of(&route.prefix)).or_default().push(*route);
        }
        for (family, routes) in by_family {
            wire::withdraw_with(family, &routes, view.context(family), &mut out);
        }
        view.announcements(originated, &mut out);
        for (wanted, routes) in runs {
            let Some(family) = routes.first().map(|route| Family::of(&route.prefix)) else { continue };
            let learned = view.learned(&self.rib, family, &wanted.best, &wanted.applied);
            let Some((next_hop, attributes)) = learned else { continue };
            let context = view.context(family);
            let sent = wire::announce(&attributes, &next_hop, family, &routes, context, &mut out);
            if let Err(bytes) = sent {
                too_long(bytes, routes.len());
                wire::withdraw_with(family, &routes, context, &mut out);
            }
        }
        if out.is_empty() { Vec::new() } else { vec![out.into()] }
    }

    /// Whether anybody hears of several paths, or of another than the best: then the table tells of all changes.
    pub(super) fn note_path_hearers(&mut self) {
        let chooses = |peer: &Peer| peer.view.as_ref().is_some_and(|view| view.chooses());
        let any = self.peers.values().any(|peer| peer.out.paths.is_some() || chooses(peer));
        self.rib.tell_all_paths(any);
    }
}
