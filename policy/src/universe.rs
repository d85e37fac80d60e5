//! Who may be a peer: identities by label, prefixes by number, and what each selector of a rule takes of them.
//!
//! A selector is looked at once when a rule brings it; later changes of an identity ask only selectors that ask for one
//! of its labels.

use crate::cidrs::Cidrs;
use crate::index::{Handles, LabelIndex};
use crate::landmarks::{Landmarks, labelled, reserved};
use crate::rows::{CidrGroupRef, CidrGroupRow, EndpointSelector, Entity, PeerSelector, RuleKey};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_base::ids::{ClusterName, IdentityId};
use tombolo_base::labels::Labels;
use tombolo_base::prefix::Prefix;

/// Of the fixed identities those that are one party, and belong to this cluster.
const OURS: [IdentityId; 7] = [
    IdentityId::HOST,
    IdentityId::UNMANAGED,
    IdentityId::HEALTH,
    IdentityId::INIT,
    IdentityId::REMOTE_NODE,
    IdentityId::KUBE_APISERVER,
    IdentityId::INGRESS,
];

/// All addresses of a family.
pub(crate) fn everything(ipv4: bool) -> Prefix {
    let v6 = std::net::IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED);
    if ipv4 { Prefix::LOWEST } else { Prefix::new(v6, 0).unwrap_or(Prefix::LOWEST) }
}

/// What a selector takes.
#[derive(Clone, Debug)]
struct Taken {
    /// Identities that are in the tables, and fixed ones.
    ids: BTreeSet<IdentityId>,
    /// Worlds: `true` is that of IPv4.
    worlds: BTreeSet<bool>,
    /// Whether it takes the host, other nodes and addresses outside, if the API server is there.
    apiserver: Places,
    /// Rules that have it.
    users: BTreeSet<RuleKey>,
}

/// Where somebody is.
#[derive(Clone, Copy, Debug)]
struct Places {
    host: bool,
    node: bool,
    outside: bool,
}

/// Everybody that is known.
#[derive(Clone, Debug)]
pub(crate) struct Universe {
    pub(crate) cluster: ClusterName,
    pub(crate) cidrs: Cidrs,
    identities: BTreeMap<IdentityId, Labels>,
    /// Of those, this cluster's.
    own: BTreeSet<IdentityId>,
    /// Rules that take all of those.
    own_users: BTreeSet<RuleKey>,
    index: LabelIndex,
    selectors: BTreeMap<Arc<EndpointSelector>, Taken>,
    handles: Handles<Arc<EndpointSelector>>,
    groups: BTreeMap<Arc<str>, CidrGroupRow>,
    landmarks: Landmarks,
}

impl Universe {
    pub(crate) fn new(cluster: ClusterName) -> Self {
        Self {
            cluster,
            cidrs: Cidrs::default(),
            identities: BTreeMap::new(),
            own: BTreeSet::new(),
            own_users: BTreeSet::new(),
            index: LabelIndex::default(),
            selectors: BTreeMap::new(),
            handles: Handles::default(),
            groups: BTreeMap::new(),
            landmarks: Landmarks::default(),
        }
    }

    pub(crate) const fn landmarks(&self) -> &Landmarks {
        &self.landmarks
    }

    /// Takes in where the API server and the nodes are. Prefixes whose numbers are not what they were.
    pub(crate) fn set_landmarks(&mut self, landmarks: Landmarks) -> BTreeSet<Prefix> {
        let hosts = |all: &BTreeSet<IpAddr>| all.iter().map(|ip| Prefix::host(*ip)).collect::<BTreeSet<_>>();
        let nodes = if landmarks.cidrs_take_nodes { hosts(&landmarks.nodes) } else { BTreeSet::new() };
        let mut touched = self.cidrs.set_nodes(nodes);
        let (before, now) = (hosts(&self.landmarks.apiservers), hosts(&landmarks.apiservers));
        // Those that are on no node are addresses outside, and must be told from others.
        for prefix in now.difference(&before) {
            self.cidrs.mention(*prefix);
        }
        for prefix in before.difference(&now) {
            self.cidrs.forget(*prefix);
        }
        touched.extend(before.symmetric_difference(&now));
        self.landmarks = landmarks;
        touched
    }

    /// The numbers of addresses that the API server has, by whether they are another node's.
    fn apiservers(&self) -> impl Iterator<Item = (bool, IdentityId)> + '_ {
        let numbered =
            self.landmarks.apiservers.iter().filter_map(|ip| self.cidrs.exactly(Prefix::host(*ip)));
        numbered.map(|id| (id.is_node(), id))
    }

    pub(crate) fn knows(&self, id: IdentityId) -> bool {
        self.identities.contains_key(&id)
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = IdentityId> + '_ {
        self.identities.keys().copied()
    }

    /// Takes in the labels of an identity. Rules that take it now and did not, or the other way round.
    pub(crate) fn learn(
        &mut self,
        id: IdentityId,
        labels: Option<&Labels>,
        concerned: &mut BTreeSet<RuleKey>,
    ) {
        // The fixed ones have the labels that they have.
        if id.is_reserved() || self.identities.get(&id) == labels {
            return;
        }
        let was = self.identities.remove(&id);
        let mut lost: BTreeSet<Arc<EndpointSelector>> = BTreeSet::new();
        if let Some(was) = &was {
            self.index.remove(id, was);
            for selector in self.handles.candidates(was) {
                if self.selectors.get_mut(selector).is_some_and(|taken| taken.ids.remove(&id)) {
                    lost.insert(selector.clone());
                }
            }
        }
        if let Some(labels) = labels {
            self.index.insert(id, labels);
            for selector in self.handles.candidates(labels) {
                if selector.takes(labels, &self.cluster)
                    && let Some(taken) = self.selectors.get_mut(selector)
                    && taken.ids.insert(id)
                    && !lost.remove(selector)
                {
                    concerned.extend(taken.users.iter().cloned());
                }
            }
            self.identities.insert(id, labels.clone());
        }
        for selector in lost {
            concerned.extend(
                self.selectors.get(&selector).into_iter().flat_map(|taken| taken.users.iter().cloned()),
            );
        }
        let own = |labels: &Labels| labels.cluster().is_none_or(|name| name == self.cluster.as_str());
        let is_own = labels.is_some_and(own);
        if is_own {
            self.own.insert(id)
        } else {
            self.own.remove(&id)
        };
        if was.as_ref().is_some_and(own) != is_own {
            concerned.extend(self.own_users.iter().cloned());
        }
    }

    /// A rule asks for these peers.
    pub(crate) fn add_user(&mut self, peer: &PeerSelector, rule: &RuleKey) {
        match peer {
            PeerSelector::Endpoints(selector) => {
                if let Some(taken) = self.selectors.get_mut(selector) {
                    taken.users.insert(rule.clone());
                    return;
                }
                let shared = Arc::new(selector.clone());
                self.handles.insert(&selector.0, &shared);
                let mut taken = self.look(selector);
                taken.users.insert(rule.clone());
                self.selectors.insert(shared, taken);
            }
            PeerSelector::Entity(Entity::Cluster) => {
                self.own_users.insert(rule.clone());
            }
            _ => {}
        }
    }

    /// It does not any more.
    pub(crate) fn remove_user(&mut self, peer: &PeerSelector, rule: &RuleKey) {
        match peer {
            PeerSelector::Endpoints(selector) => {
                let Some(taken) = self.selectors.get_mut(selector) else { return };
                taken.users.remove(rule);
                if taken.users.is_empty() {
                    self.selectors.remove(selector);
                    self.handles.remove(&selector.0, &Arc::new(selector.clone()));
                }
            }
            PeerSelector::Entity(Entity::Cluster) => {
                self.own_users.remove(rule);
            }
            _ => {}
        }
    }

    /// What a selector takes of all that is known.
    fn look(&self, selector: &EndpointSelector) -> Taken {
        let takes = |id: &IdentityId| {
            self.identities.get(id).is_some_and(|labels| selector.takes(labels, &self.cluster))
        };
        let fixed = |id: IdentityId| selector.takes(&reserved(id), &self.cluster);
        let mut ids: BTreeSet<IdentityId> = match self.index.candidates(&selector.0) {
            Some(candidates) => candidates.filter(takes).collect(),
            None => self.ids().filter(takes).collect(),
        };
        ids.extend(OURS.into_iter().filter(|id| fixed(*id)));
        let of_family = |ipv4: &bool| {
            let id = if *ipv4 { IdentityId::WORLD_IPV4 } else { IdentityId::WORLD_IPV6 };
            fixed(IdentityId::WORLD) || fixed(id)
        };
        let worlds = [true, false].into_iter().filter(of_family).collect();
        let there = |id: IdentityId| selector.takes(&labelled(id, true), &self.cluster);
        let apiserver = Places {
            host: there(IdentityId::HOST),
            node: there(IdentityId::REMOTE_NODE),
            outside: there(IdentityId::WORLD),
        };
        Taken { ids, worlds, apiserver, users: BTreeSet::new() }
    }

    /// What a selector takes of nodes and of the API server, beside [`Taken::ids`].
    fn placed(&self, taken: &Taken, out: &mut BTreeSet<IdentityId>) {
        let mut put = |id: IdentityId, is: bool| if is { out.insert(id) } else { out.remove(&id) };
        if self.landmarks.own_apiserver() {
            put(IdentityId::HOST, taken.apiserver.host);
        }
        let nodes = taken.ids.contains(&IdentityId::REMOTE_NODE);
        for (_, id) in self.cidrs.nodes() {
            put(id, nodes);
        }
        for (node, id) in self.apiservers() {
            put(id, if node { taken.apiserver.node } else { taken.apiserver.outside });
        }
    }

    /// Takes in a group of prefixes.
    pub(crate) fn set_group(&mut self, name: &Arc<str>, row: Option<&CidrGroupRow>) {
        match row {
            Some(row) => drop(self.groups.insert(name.clone(), row.clone())),
            None => drop(self.groups.remove(name)),
        }
    }

    pub(crate) fn groups(&self) -> impl Iterator<Item = &Arc<str>> {
        self.groups.keys()
    }

    /// The prefixes of the groups that are meant.
    pub(crate) fn group(&self, group: &CidrGroupRef) -> BTreeSet<Prefix> {
        match group {
            CidrGroupRef::Name(name) => {
                self.groups.get(name).map(|row| row.prefixes.clone()).unwrap_or_default()
            }
            CidrGroupRef::Labels(selector) => {
                let meant = self.groups.values().filter(|row| selector.matches_map(&row.labels));
                meant.flat_map(|row| row.prefixes.iter().copied()).collect()
            }
        }
    }

    /// The prefixes that a peer takes addresses of.
    pub(crate) fn prefixes(&self, peer: &PeerSelector) -> BTreeSet<Prefix> {
        let worlds = |worlds: &[bool]| worlds.iter().map(|ipv4| everything(*ipv4)).collect();
        match peer {
            PeerSelector::Cidr { prefix, .. } => [*prefix].into(),
            PeerSelector::CidrGroup { group, .. } => self.group(group),
            PeerSelector::Entity(Entity::World) => worlds(&[true, false]),
            PeerSelector::Entity(Entity::WorldIpv4) => worlds(&[true]),
            PeerSelector::Entity(Entity::WorldIpv6) => worlds(&[false]),
            PeerSelector::Endpoints(selector) => {
                let taken = self.selectors.get(selector);
                taken.into_iter().flat_map(|taken| &taken.worlds).map(|ipv4| everything(*ipv4)).collect()
            }
            PeerSelector::Entity(_) | PeerSelector::Nodes(_) => BTreeSet::new(),
        }
    }

    /// The identities of an entity; 0 for everybody.
    fn entity(&self, entity: Entity, out: &mut BTreeSet<IdentityId>) {
        let one = match entity {
            Entity::All => IdentityId::UNKNOWN,
            Entity::Host => IdentityId::HOST,
            Entity::RemoteNode => {
                out.extend([IdentityId::REMOTE_NODE, IdentityId::KUBE_APISERVER]);
                return out.extend(self.cidrs.nodes().map(|(_, id)| id));
            }
            Entity::Init => IdentityId::INIT,
            Entity::Health => IdentityId::HEALTH,
            Entity::Unmanaged => IdentityId::UNMANAGED,
            Entity::KubeApiserver => {
                out.insert(IdentityId::KUBE_APISERVER);
                out.extend(self.landmarks.own_apiserver().then_some(IdentityId::HOST));
                return out.extend(self.apiservers().map(|(_, id)| id));
            }
            Entity::Ingress => IdentityId::INGRESS,
            Entity::Cluster => {
                out.extend(OURS);
                out.extend(self.cidrs.nodes().map(|(_, id)| id));
                return out.extend(&self.own);
            }
            // Of the worlds: by their prefixes.
            Entity::World | Entity::WorldIpv4 | Entity::WorldIpv6 | Entity::None => return,
        };
        out.insert(one);
    }

    /// The identities that a peer of a rule takes, without excepts that cannot be told: see [`Universe::untold`].
    pub(crate) fn taken(&self, peer: &PeerSelector, out: &mut BTreeSet<IdentityId>) {
        let none = BTreeSet::new();
        let except = match peer {
            PeerSelector::Cidr { except, .. } | PeerSelector::CidrGroup { except, .. } => except,
            _ => &none,
        };
        let by_address = matches!(peer, PeerSelector::Cidr { .. } | PeerSelector::CidrGroup { .. });
        let nodes = by_address && self.landmarks.cidrs_take_nodes;
        for prefix in self.prefixes(peer) {
            self.cidrs.within(prefix, except, nodes, out);
            let own = |ip: &IpAddr| prefix.contains(*ip) && !except.iter().any(|cut| cut.contains(*ip));
            if nodes && self.landmarks.own.iter().any(own) {
                out.insert(IdentityId::HOST);
            }
        }
        match peer {
            PeerSelector::Endpoints(selector) => {
                if let Some(taken) = self.selectors.get(selector) {
                    out.extend(&taken.ids);
                    self.placed(taken, out);
                }
            }
            PeerSelector::Entity(entity) => self.entity(*entity, out),
            PeerSelector::Nodes(selector) if selector.is_empty() => {
                out.extend([IdentityId::HOST, IdentityId::REMOTE_NODE, IdentityId::KUBE_APISERVER]);
                out.extend(self.cidrs.nodes().map(|(_, id)| id));
            }
            _ => {}
        }
    }

    /// Prefixes of a peer that have no number, for want of room: those it takes, and those it cuts out.
    pub(crate) fn untold(&self, peer: &PeerSelector) -> (Vec<Prefix>, Vec<Prefix>) {
        let (PeerSelector::Cidr { except, .. } | PeerSelector::CidrGroup { except, .. }) = peer else {
            return (Vec::new(), Vec::new());
        };
        let unknown = |prefix: &Prefix| !self.cidrs.knows(*prefix);
        (
            self.prefixes(peer).into_iter().filter(unknown).collect(),
            except.iter().copied().filter(unknown).collect(),
        )
    }
}

#[cfg(test)]
impl Universe {
    /// What each selector takes, and who has it.
    pub(crate) fn selectors_held(&self) -> Vec<String> {
        self.selectors.iter().map(|held| format!("{held:?}")).collect()
    }
}
