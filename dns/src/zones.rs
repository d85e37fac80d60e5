//! What is known: names by namespace, addresses by name, and how much of the whole that is.

use crate::line::Line;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_service::names::{NameAnswer, NameEntry, NameZone};

/// What an address belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// Zone.
    pub zone: NameZone,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Service.
    pub name: Arc<str>,
    /// Name and cluster of an endpoint; `None` for the service itself.
    pub endpoint: Option<(Arc<str>, Arc<str>)>,
}

#[derive(Clone, Debug)]
struct Held {
    entry: NameEntry,
    /// The conversation with an agent in which it was said last.
    seen: u64,
}

type Names = HashMap<Arc<str>, HashMap<Arc<str>, Held>>;

/// All names. Readers see it between two batches only.
#[derive(Clone, Debug, Default)]
pub struct Zones {
    cluster: Names,
    clusterset: Names,
    /// Namespaces that are described, with the conversation that said so.
    namespaces: HashMap<Arc<str>, u64>,
    reverse: HashMap<IpAddr, BTreeSet<Owner>>,
    conversation: u64,
    /// The conversation in which the names of each zone that were not told again went.
    swept: (Option<u64>, Option<u64>),
    known: (bool, bool),
    /// Grows with every batch that says something new: the zones' serial number.
    serial: u32,
}

impl Zones {
    /// A new agent speaks: what it does not name before it says that it has named all is gone then.
    pub const fn begin(&mut self) {
        self.conversation = self.conversation.wrapping_add(1);
    }

    /// Takes lines in; whether they said anything new.
    pub fn take(&mut self, lines: impl IntoIterator<Item = Line>) -> bool {
        let mut changed = false;
        for line in lines {
            changed |= match line {
                Line::Entry(entry) => self.put(entry),
                Line::Gone { zone, namespace, name } => self.remove(zone, &namespace, &name),
                Line::Namespace { name, exists: true } => {
                    self.namespaces.insert(name, self.conversation).is_none()
                }
                Line::Namespace { name, exists: false } => self.namespaces.remove(&name).is_some(),
                Line::State { cluster, clusterset } => self.state(cluster, clusterset),
            };
        }
        if changed {
            self.serial = self.serial.wrapping_add(1);
        }
        changed
    }

    /// What was told in full; whether that is new, or something goes because it was not named.
    fn state(&mut self, cluster: bool, clusterset: bool) -> bool {
        let mut changed = false;
        // Once in a conversation: after that everything is told as it goes.
        if cluster && self.swept.0 != Some(self.conversation) {
            self.swept.0 = Some(self.conversation);
            changed |= self.sweep(NameZone::Cluster);
            let (conversation, before) = (self.conversation, self.namespaces.len());
            self.namespaces.retain(|_, seen| *seen == conversation);
            changed |= self.namespaces.len() != before;
        }
        if clusterset && self.swept.1 != Some(self.conversation) {
            self.swept.1 = Some(self.conversation);
            changed |= self.sweep(NameZone::ClusterSet);
        }
        // Never lowered: an agent that starts knows less than this unit.
        let known = (self.known.0 || cluster, self.known.1 || clusterset);
        changed |= std::mem::replace(&mut self.known, known) != known;
        changed
    }

    const fn names(&self, zone: NameZone) -> &Names {
        match zone {
            NameZone::Cluster => &self.cluster,
            NameZone::ClusterSet => &self.clusterset,
        }
    }

    const fn names_mut(&mut self, zone: NameZone) -> &mut Names {
        match zone {
            NameZone::Cluster => &mut self.cluster,
            NameZone::ClusterSet => &mut self.clusterset,
        }
    }

    /// Whether it is new.
    fn put(&mut self, entry: NameEntry) -> bool {
        let (zone, seen) = (entry.zone, self.conversation);
        let known = self.names(zone).get(&entry.namespace).and_then(|names| names.get(&entry.name));
        let new = known.is_none_or(|held| held.entry != entry);
        if new {
            self.remove(zone, &entry.namespace.clone(), &entry.name.clone());
            for (address, owner) in owners(&entry) {
                self.reverse.entry(address).or_default().insert(owner);
            }
        }
        let names = self.names_mut(zone).entry(entry.namespace.clone()).or_default();
        names.insert(entry.name.clone(), Held { entry, seen });
        new
    }

    /// Whether it was there.
    fn remove(&mut self, zone: NameZone, namespace: &str, name: &str) -> bool {
        let Some(names) = self.names_mut(zone).get_mut(namespace) else { return false };
        let Some(held) = names.remove(name) else { return false };
        if names.is_empty() {
            self.names_mut(zone).remove(namespace);
        }
        for (address, owner) in owners(&held.entry) {
            if let Some(all) = self.reverse.get_mut(&address) {
                all.remove(&owner);
                if all.is_empty() {
                    self.reverse.remove(&address);
                }
            }
        }
        true
    }

    /// Whether something went.
    fn sweep(&mut self, zone: NameZone) -> bool {
        let conversation = self.conversation;
        let all = self.names(zone).values().flat_map(HashMap::values);
        let old = all.filter(|held| held.seen != conversation);
        let old: Vec<_> = old.map(|held| (held.entry.namespace.clone(), held.entry.name.clone())).collect();
        for (namespace, name) in &old {
            self.remove(zone, namespace, name);
        }
        !old.is_empty()
    }

    /// A name.
    #[must_use]
    pub fn get(&self, zone: NameZone, namespace: &str, name: &str) -> Option<&NameEntry> {
        self.names(zone).get(namespace)?.get(name).map(|held| &held.entry)
    }

    /// Whether there is such a namespace: it is described, or something is in it.
    #[must_use]
    pub fn has_namespace(&self, zone: NameZone, namespace: &str) -> bool {
        self.namespaces.contains_key(namespace)
            || self.cluster.contains_key(namespace)
            || (zone == NameZone::ClusterSet && self.clusterset.contains_key(namespace))
    }

    /// Whose an address is: a name of this cluster, or else an import's.
    pub fn owners(&self, address: IpAddr) -> impl Iterator<Item = &Owner> {
        let all = self.reverse.get(&address).into_iter().flatten();
        let here = all.clone().any(|owner| owner.zone == NameZone::Cluster);
        all.filter(move |owner| !here || owner.zone == NameZone::Cluster)
    }

    /// Whether what is not there is nowhere.
    #[must_use]
    pub const fn is_known(&self, zone: NameZone) -> bool {
        match zone {
            NameZone::Cluster => self.known.0,
            NameZone::ClusterSet => self.known.1,
        }
    }

    /// The zones' serial number.
    #[must_use]
    pub const fn serial(&self) -> u32 {
        self.serial
    }

    /// How many names there are in a zone.
    #[must_use]
    pub fn len(&self, zone: NameZone) -> usize {
        self.names(zone).values().map(HashMap::len).sum()
    }

    /// Everything, as an agent would tell it.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        let names = self.cluster.values().chain(self.clusterset.values()).flat_map(HashMap::values);
        let entries = names.map(|held| Line::Entry(held.entry.clone()));
        let spaces = self.namespaces.keys().map(|name| Line::Namespace { name: name.clone(), exists: true });
        let state = Line::State { cluster: self.known.0, clusterset: self.known.1 };
        entries.chain(spaces).chain([state]).collect()
    }
}

/// The addresses of an entry, each with what its reverse name is.
fn owners(entry: &NameEntry) -> Vec<(IpAddr, Owner)> {
    let owner = |endpoint| Owner {
        zone: entry.zone,
        namespace: entry.namespace.clone(),
        name: entry.name.clone(),
        endpoint,
    };
    match &entry.answer {
        NameAnswer::Service { addresses, .. } => addresses.iter().map(|ip| (*ip, owner(None))).collect(),
        NameAnswer::Headless { endpoints } => {
            let one = |e: &tombolo_service::names::NameEndpoint| {
                (e.address, owner(Some((e.hostname.clone(), e.cluster.clone()))))
            };
            endpoints.iter().map(one).collect()
        }
        NameAnswer::Alias { .. } => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(zone: NameZone, name: &str, ip: &str) -> Line {
        let answer = NameAnswer::Service { addresses: [ip.parse().unwrap()].into(), ports: vec![] };
        Line::Entry(NameEntry { zone, namespace: "demo".into(), name: name.into(), answer })
    }

    fn state(cluster: bool, clusterset: bool) -> Line {
        Line::State { cluster, clusterset }
    }

    fn names(zones: &Zones) -> (usize, usize) {
        (zones.len(NameZone::Cluster), zones.len(NameZone::ClusterSet))
    }

    #[test]
    fn an_agent_that_restarts_takes_nothing_away_before_it_has_said_all() {
        use NameZone::{Cluster, ClusterSet};
        let mut zones = Zones::default();
        zones.begin();
        let space = |name: &str| Line::Namespace { name: name.into(), exists: true };
        zones.take([service(Cluster, "a", "10.0.0.1"), service(Cluster, "b", "10.0.0.2"), space("old")]);
        zones.take([service(ClusterSet, "a", "10.9.0.1"), state(false, false)]);
        assert!(!zones.is_known(Cluster) && !zones.is_known(ClusterSet));
        zones.take([state(true, true)]);
        assert!(zones.is_known(Cluster) && zones.is_known(ClusterSet));
        // Another life of the agent, which knows less at first.
        zones.begin();
        zones.take([service(Cluster, "a", "10.0.0.1"), state(false, false)]);
        assert_eq!(names(&zones), (2, 1));
        zones.take([state(true, false)]);
        assert_eq!(names(&zones), (1, 1), "imports wait for the other clusters");
        assert!(zones.is_known(ClusterSet) && !zones.has_namespace(Cluster, "old"));
        zones.take([state(true, true)]);
        assert_eq!(names(&zones), (1, 0));
        assert_eq!(zones.owners("10.0.0.2".parse().unwrap()).count(), 0);
        assert_eq!(zones.owners("10.0.0.1".parse().unwrap()).count(), 1);
        assert!(zones.has_namespace(Cluster, "demo"));
        zones.take([Line::Gone { zone: Cluster, namespace: "demo".into(), name: "a".into() }]);
        assert!(
            !zones.has_namespace(Cluster, "demo") && zones.owners("10.0.0.1".parse().unwrap()).count() == 0
        );
    }

    #[test]
    fn what_is_said_again_changes_nothing() {
        let mut zones = Zones::default();
        let space = |exists| Line::Namespace { name: "demo".into(), exists };
        let gone = || Line::Gone { zone: NameZone::Cluster, namespace: "demo".into(), name: "b".into() };
        let all = || [space(true), service(NameZone::Cluster, "a", "10.0.0.1"), gone(), state(true, true)];
        zones.begin();
        assert!(zones.take(all()));
        let serial = zones.serial();
        // Heartbeats, and another life of the agent that says the same.
        assert!(!zones.take([state(true, true)]));
        zones.begin();
        assert!(!zones.take(all()) && !zones.take([state(false, false)]));
        assert_eq!(zones.serial(), serial);
        for line in [service(NameZone::Cluster, "a", "10.0.0.2"), space(false)] {
            assert!(zones.take([line.clone()]) && !zones.take([line]));
        }
        // A third life, in which it is not named any more.
        zones.begin();
        assert!(zones.take([state(true, false)]) && !zones.take([state(true, true)]));
        assert_eq!((names(&zones), zones.serial()), ((0, 0), serial.wrapping_add(3)));
    }

    #[test]
    fn what_is_kept_comes_back() {
        let mut zones = Zones::default();
        zones.begin();
        zones.take([service(NameZone::Cluster, "a", "10.0.0.1"), state(true, false)]);
        let mut next = Zones::default();
        next.take(zones.lines());
        assert_eq!((names(&next), next.is_known(NameZone::Cluster)), ((1, 0), true));
        assert!(!next.is_known(NameZone::ClusterSet));
    }
}
