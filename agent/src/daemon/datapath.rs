//! Desired rows to eBPF maps: one target per table. What a row becomes in a map is said here and nowhere else.

use super::drive::Applied;
use super::interfaces::InterfaceRow;
use super::stages::MapTimer;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_base::ids::{ClusterId, ClusterName, MaxClusters};
use tombolo_base::prefix::Prefix;
use tombolo_base::reconcile::Target;
use tombolo_base::rows::Rows;
use tombolo_base::source::Source;
use tombolo_ebpf::{
    self as ebpf, Datapath, DatapathError, LocalAddress, PortPrefix, RuleAction, RuleEntry, RuleTier,
};
use tombolo_policy::{Action, Direction, PolicyRow, Tier, Verdict, VerdictKey};
use tombolo_service::{BackendRow, FrontendKey, FrontendRow, Scope};
use tombolo_topology::{NodeIndex, NodePath, NodeRow, PathKind, PrefixEntry, Shaping};

type Held = BTreeSet<Source>;

fn text(error: &DatapathError) -> String {
    let mut out = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        out = format!("{out}: {cause}");
        source = cause.source();
    }
    out
}

pub(super) fn told<T>(result: Result<T, DatapathError>) -> Result<T, String> {
    result.map_err(|error| text(&error))
}

/// [`NodePath`] → node rows.
pub(crate) struct Paths(pub(crate) Arc<Datapath>);

impl Target<NodePath> for Paths {
    async fn update(&mut self, row: &NodePath) -> Result<(), String> {
        let path = match row.path {
            PathKind::Local => ebpf::NodePath::Local,
            PathKind::Overlay => ebpf::NodePath::Overlay,
            PathKind::Direct => ebpf::NodePath::Direct,
        };
        let entry =
            ebpf::NodeEntry { tunnel: row.underlay, path, encrypt: row.encrypt, mtu: u32::from(row.mtu) };
        told(self.0.upsert_node(row.index.0, &entry))
    }

    async fn delete(&mut self, row: &NodePath) -> Result<(), String> {
        told(self.0.delete_node(row.index.0))
    }

    async fn prune(&mut self, keep: &Rows<NodePath>, held: &Held) -> Result<(), String> {
        // A number does not tell whose node it was: as long as anybody has not spoken, all stay.
        if !held.is_empty() {
            return Ok(());
        }
        for (index, _) in told(self.0.nodes())? {
            if !keep.contains_key(&NodeIndex(index)) {
                told(self.0.delete_node(index))?;
            }
        }
        Ok(())
    }
}

/// Tells who may have said a leftover, by the cluster whose range its identity lies in.
pub(crate) struct Owners {
    /// All nodes: they tell which cluster has which id.
    pub(crate) nodes: tombolo_base::table::Table<NodeRow>,
    /// This cluster.
    pub(crate) own: ClusterName,
    /// Its id.
    pub(crate) own_id: ClusterId,
}

impl Owners {
    /// Possible owners by cluster id. Of this cluster's addresses this node says some itself, manifests may say some,
    /// and the cluster's etcd says the others'.
    fn by_id(&self) -> BTreeMap<u32, BTreeSet<Source>> {
        let snapshot = self.nodes.snapshot();
        let remote = snapshot.iter().filter(|row| row.cluster != self.own);
        let mut owners: BTreeMap<u32, BTreeSet<Source>> = BTreeMap::new();
        for row in remote {
            let source = Source::Cluster(row.cluster);
            owners.entry(u32::from(row.cluster_id.get())).or_default().insert(source);
        }
        let own = [Source::Local, Source::Manifests, Source::Cluster(self.own)];
        owners.insert(u32::from(self.own_id.get()), own.into());
        owners
    }
}

/// Whether one of a leftover's possible owners is held. Without a known owner it may be anybody's who is.
fn stays(cluster: Option<u32>, owners: &BTreeMap<u32, BTreeSet<Source>>, held: &Held) -> bool {
    match cluster.and_then(|id| owners.get(&id)) {
        Some(owners) => !owners.is_disjoint(held),
        None => !held.is_empty(),
    }
}

/// [`PrefixEntry`] → prefix rows.
pub(crate) struct Prefixes {
    /// The datapath.
    pub(crate) datapath: Arc<Datapath>,
    /// Whether packets to other nodes must be encrypted.
    pub(crate) encrypt: bool,
    /// Where pods are, wherever that is.
    pub(crate) strict: Vec<Prefix>,
    /// The mesh's size: tells whose identity a leftover carries.
    pub(crate) max_clusters: MaxClusters,
    /// Whose leftovers are whose.
    pub(crate) owners: Owners,
    /// What the datapath holds of nodes: a prefix never names a row that is not there.
    pub(crate) paths: Applied<NodePath>,
    /// Measures the way from the rows.
    pub(crate) timer: MapTimer,
}

impl Prefixes {
    /// Writes the prefixes where pods are, unless something better is known of them: before anything else is told.
    pub(crate) fn close(&self) -> Result<(), String> {
        for prefix in &self.strict {
            if told(self.datapath.prefix(prefix.net()))?.is_none_or(|row| row.node == 0) {
                told(self.datapath.upsert_prefix(prefix.net(), &UNKNOWN_PODS))?;
            }
        }
        Ok(())
    }

    /// Whether pods are there.
    fn is_strict(&self, prefix: &Prefix) -> bool {
        self.strict.iter().any(|strict| strict.covers(prefix))
    }
}

/// What is known of a place where pods are, if nobody has said whose.
const UNKNOWN_PODS: ebpf::PrefixEntry = ebpf::PrefixEntry {
    identity: 2,
    node: 0,
    encrypt: false,
    remote_cluster: false,
    skip_tunnel: false,
    strict: true,
};

impl Target<PrefixEntry> for Prefixes {
    async fn update(&mut self, row: &PrefixEntry) -> Result<(), String> {
        if row.node != NodeIndex::LOCAL && self.paths.get(&row.node).is_none() {
            return Err(format!("node {} is not in the datapath yet", row.node.0));
        }
        let entry = ebpf::PrefixEntry {
            identity: row.identity.0,
            node: row.node.0,
            encrypt: self.encrypt && row.node != NodeIndex::LOCAL,
            remote_cluster: row.remote_cluster,
            skip_tunnel: row.node_address,
            // Of what policies mention outside the mesh; all else is somebody's.
            strict: row.source == Source::Planner && self.is_strict(&row.prefix),
        };
        told(self.datapath.upsert_prefix(row.prefix.net(), &entry))?;
        self.timer.written(std::time::Instant::now(), row.prefix);
        Ok(())
    }

    async fn delete(&mut self, row: &PrefixEntry) -> Result<(), String> {
        if self.strict.contains(&row.prefix) {
            return told(self.datapath.upsert_prefix(row.prefix.net(), &UNKNOWN_PODS));
        }
        told(self.datapath.delete_prefix(row.prefix.net()))
    }

    async fn prune(&mut self, keep: &Rows<PrefixEntry>, held: &Held) -> Result<(), String> {
        let owners = self.owners.by_id();
        for (net, entry) in told(self.datapath.prefixes())? {
            let cluster = tombolo_base::ids::IdentityId(entry.identity).cluster(self.max_clusters);
            let strict = self.strict.contains(&Prefix::from(net));
            if !strict && !keep.contains_key(&Prefix::from(net)) && !stays(cluster, &owners, held) {
                told(self.datapath.delete_prefix(net))?;
            }
        }
        Ok(())
    }
}

/// [`BackendRow`] → backends.
pub(crate) struct Backends {
    /// The datapath.
    pub(crate) datapath: Arc<Datapath>,
    /// What the datapath holds of frontends: a backend goes after all of them have let go of it.
    pub(crate) frontends: Applied<FrontendRow>,
}

impl Target<BackendRow> for Backends {
    async fn update(&mut self, row: &BackendRow) -> Result<(), String> {
        let backend = ebpf::Backend { ip: row.address, port: row.port, protocol: row.protocol.number() };
        told(self.datapath.upsert_backend(row.id, &backend))
    }

    async fn delete(&mut self, row: &BackendRow) -> Result<(), String> {
        if self.frontends.any(|frontend| frontend.backends.contains(&row.id)) {
            return Err(format!("backend {} is still named by a frontend", row.id));
        }
        told(self.datapath.delete_backend(row.id))
    }

    async fn prune(&mut self, keep: &Rows<BackendRow>, held: &Held) -> Result<(), String> {
        if !held.is_empty() {
            return Ok(());
        }
        for id in told(self.datapath.backends())?.into_keys().filter(|id| !keep.contains_key(id)) {
            told(self.datapath.delete_backend(id))?;
        }
        Ok(())
    }
}

/// [`FrontendRow`] → services and their Maglev tables.
pub(crate) struct Frontends {
    datapath: Arc<Datapath>,
    /// What the datapath holds of backends: a frontend never names one that is not there.
    backends: Applied<BackendRow>,
    /// Rows as they were written last: what differs from them is all that is written.
    written: BTreeMap<FrontendKey, FrontendRow>,
    /// Frontends by addresses that are the services' alone: other packets to them are refused, never sent on.
    whole: BTreeMap<(IpAddr, Scope), BTreeSet<FrontendKey>>,
}

impl Frontends {
    /// A target without frontends.
    pub(crate) const fn new(datapath: Arc<Datapath>, backends: Applied<BackendRow>) -> Self {
        Self { datapath, backends, written: BTreeMap::new(), whole: BTreeMap::new() }
    }

    /// All other packets to a frontend's address.
    fn rest_of(key: &FrontendKey) -> ebpf::Frontend {
        ebpf::Frontend { port: 0, protocol: 0, ..frontend(key) }
    }

    fn rest_entry() -> ebpf::ServiceEntry {
        // The number of a translation that never happens; the programs drop before they look at it.
        ebpf::ServiceEntry { rev_nat: u32::MAX, ..ebpf::ServiceEntry::default() }
    }

    /// Notes whether a frontend has its address whole, and refuses the rest of the address as long as one has.
    fn keep_rest(&mut self, key: &FrontendKey, whole: bool) -> Result<(), String> {
        let place = (key.address, key.scope);
        if whole {
            self.whole.entry(place).or_default().insert(*key);
            return told(self.datapath.set_service(&Self::rest_of(key), &Self::rest_entry()));
        }
        let Some(keys) = self.whole.get_mut(&place) else { return Ok(()) };
        keys.remove(key);
        if keys.is_empty() {
            told(self.datapath.delete_service(&Self::rest_of(key)))?;
            self.whole.remove(&place);
        }
        Ok(())
    }
}

fn frontend(key: &FrontendKey) -> ebpf::Frontend {
    let scope = match key.scope {
        Scope::External => ebpf::Scope::External,
        Scope::Internal => ebpf::Scope::Internal,
    };
    ebpf::Frontend { ip: key.address, port: key.port, protocol: key.protocol.number(), scope }
}

/// As the datapath takes it.
fn service(row: &FrontendRow) -> ebpf::ServiceEntry {
    ebpf::ServiceEntry {
        rev_nat: u32::from(row.id),
        maglev: row.slots().collect(),
        local_only: row.local_only,
        source_ranges: row.source_ranges.as_ref().map(|all| all.iter().map(Prefix::net).collect()),
        affinity_secs: row.affinity_secs.unwrap_or(0),
        node_port: row.node_port,
        host_port: row.host_port,
    }
}

impl Target<FrontendRow> for Frontends {
    async fn update(&mut self, row: &FrontendRow) -> Result<(), String> {
        // Until it is written whole it is not known what the maps hold.
        let old = self.written.remove(&row.key);
        // The same row again: somebody wants it compared with the maps themselves.
        let old = old.filter(|old| old != row);
        let named: BTreeSet<u32> = old.iter().flat_map(|old| &old.backends).copied().collect();
        let fresh = row.backends.iter().filter(|id| !named.contains(id));
        if let Some(missing) = fresh.copied().find(|id| !self.backends.contains(id)) {
            self.written.extend(old.map(|old| (old.key, old)));
            return Err(format!("backend {missing} is not in the datapath yet"));
        }
        let (key, entry) = (frontend(&row.key), service(row));
        match old {
            Some(old) => drop(told(self.datapath.change_service(&key, &service(&old), &entry))?),
            None => told(self.datapath.set_service(&key, &entry))?,
        }
        self.written.insert(row.key, row.clone());
        self.keep_rest(&row.key, row.whole_address)
    }

    async fn delete(&mut self, row: &FrontendRow) -> Result<(), String> {
        self.written.remove(&row.key);
        told(self.datapath.delete_service(&frontend(&row.key)))?;
        self.keep_rest(&row.key, false)
    }

    async fn prune(&mut self, keep: &Rows<FrontendRow>, held: &Held) -> Result<(), String> {
        if !held.is_empty() {
            return Ok(());
        }
        let mut wanted: BTreeSet<ebpf::Frontend> = keep.keys().map(|key| frontend(&key)).collect();
        let whole = keep.values().filter(|row| row.whole_address);
        wanted.extend(whole.map(|row| Self::rest_of(&row.key)));
        for key in told(self.datapath.services())?.into_keys().filter(|key| !wanted.contains(key)) {
            told(self.datapath.delete_service(&key))?;
        }
        Ok(())
    }
}

/// [`PolicyRow`] → policies.
pub(crate) struct Policies(pub(crate) Arc<Datapath>);

fn side(row: &PolicyRow, direction: Direction, enforced: bool) -> ebpf::PolicySide {
    let entries = row.entries.iter().filter(|(key, _)| key.direction == direction);
    let entry = |(key, verdict): (&VerdictKey, &Verdict)| RuleEntry {
        tier: match key.tier {
            Tier::Admin => RuleTier::Admin,
            Tier::Normal => RuleTier::Normal,
            Tier::Baseline => RuleTier::Baseline,
        },
        identity: (key.identity.0 != 0).then_some(key.identity.0),
        protocol: (key.protocol != 0).then_some(key.protocol),
        port: (key.port_bits != 0).then_some(PortPrefix { first: key.port, bits: key.port_bits }),
        action: match verdict.precedence.action() {
            Action::Pass => RuleAction::Pass,
            Action::Allow => RuleAction::Allow,
            Action::Deny => RuleAction::Deny,
        },
        priority: verdict.precedence.priority(),
        cookie: verdict.cookie,
    };
    ebpf::PolicySide { enforced, entries: entries.map(entry).collect() }
}

impl Policies {
    /// The node may have been given the policy since that was looked at.
    fn drop_policy(&self, id: u32) -> Result<(), String> {
        match told(self.0.delete_policy_of_others(id))? {
            true => Ok(()),
            false => Err(format!("policy {id} is still named by the node")),
        }
    }

    /// Policies that interfaces or the node name: without one everything is dropped, so what names it goes over first.
    fn named(&self) -> Result<BTreeSet<u32>, String> {
        let interfaces = told(self.0.interfaces())?.into_iter().map(|(_, row)| row.policy_id);
        Ok(interfaces.chain([told(self.0.config())?.host_policy_id]).collect())
    }
}

impl Target<PolicyRow> for Policies {
    async fn update(&mut self, row: &PolicyRow) -> Result<(), String> {
        let set = ebpf::PolicySet {
            ingress: side(row, Direction::Ingress, row.ingress_enforced),
            egress: side(row, Direction::Egress, row.egress_enforced),
            audit: row.audit,
        };
        told(self.0.set_policy(row.id, &set))
    }

    async fn delete(&mut self, row: &PolicyRow) -> Result<(), String> {
        if self.named()?.contains(&row.id) {
            return Err(format!("policy {} is still named by an interface or the node", row.id));
        }
        self.drop_policy(row.id)
    }

    async fn prune(&mut self, keep: &Rows<PolicyRow>, held: &Held) -> Result<(), String> {
        if !held.is_empty() {
            return Ok(());
        }
        let named = self.named()?;
        let gone = told(self.0.policies())?.into_keys().filter(|id| !keep.contains_key(id));
        let (waiting, free): (Vec<u32>, Vec<u32>) = gone.partition(|id| named.contains(id));
        for id in free {
            self.drop_policy(id)?;
        }
        match waiting.first() {
            Some(id) => Err(format!("policy {id} is still named by an interface or the node")),
            None => Ok(()),
        }
    }
}

/// [`InterfaceRow`] → interface rows, local addresses and hooks.
pub(crate) struct Interfaces {
    datapath: Arc<Datapath>,
    /// Addresses of pods that went, whose flows the datapath may still know. They end by themselves in time; only a
    /// pod that gets such an address earlier costs a walk through the flows.
    left: BTreeSet<IpAddr>,
}

impl Interfaces {
    pub(crate) const fn new(datapath: Arc<Datapath>) -> Self {
        Self { datapath, left: BTreeSet::new() }
    }

    async fn forget_flows(&mut self, addresses: &[IpAddr]) -> Result<(), String> {
        if !addresses.iter().any(|address| self.left.contains(address)) {
            return Ok(());
        }
        let (datapath, left) = (self.datapath.clone(), self.left.iter().copied().collect::<Vec<_>>());
        let forgotten = tokio::task::spawn_blocking(move || datapath.forget_flows(&left));
        told(forgotten.await.map_err(|error| error.to_string())?)?;
        self.left.clear();
        Ok(())
    }
}

impl Target<InterfaceRow> for Interfaces {
    async fn update(&mut self, row: &InterfaceRow) -> Result<(), String> {
        let v4 = row.addresses.iter().find_map(|ip| if let IpAddr::V4(v4) = ip { Some(*v4) } else { None });
        let v6 = row.addresses.iter().find_map(|ip| if let IpAddr::V6(v6) = ip { Some(*v6) } else { None });
        let interface = ebpf::Interface {
            ready: row.ready,
            identity: row.identity,
            policy_id: row.policy,
            endpoint_id: row.endpoint,
            v4,
            v6,
            mac: row.mac,
            host_mac: row.host_mac,
            limits: ebpf::Limits {
                egress: row.shaping.egress,
                ingress: row.shaping.ingress,
                priority: row.shaping.priority,
            },
            queued: row.queued,
        };
        self.forget_flows(&row.addresses).await?;
        told(self.datapath.upsert_interface(row.ifindex, &interface))?;
        for address in &row.addresses {
            told(self.datapath.upsert_local_address(*address, LocalAddress::Pod(row.ifindex)))?;
        }
        // Rows first, hooks afterwards: a hook never runs without its row.
        told(self.datapath.attach_endpoint(row.ifindex))
    }

    async fn delete(&mut self, row: &InterfaceRow) -> Result<(), String> {
        for address in &row.addresses {
            told(self.datapath.delete_local_address(*address))?;
            self.left.insert(*address);
        }
        told(self.datapath.delete_interface(row.ifindex))?;
        told(self.datapath.detach(row.ifindex))
    }

    async fn prune(&mut self, keep: &Rows<InterfaceRow>, held: &Held) -> Result<(), String> {
        if !held.is_empty() {
            return Ok(());
        }
        for (ip, place) in told(self.datapath.local_addresses())? {
            if let LocalAddress::Pod(ifindex) = place
                && keep.get(&ifindex).is_none_or(|row| !row.addresses.contains(&ip))
            {
                told(self.datapath.delete_local_address(ip))?;
                self.left.insert(ip);
            }
        }
        for (ifindex, _) in told(self.datapath.interfaces())? {
            if !keep.contains_key(&ifindex) {
                told(self.datapath.delete_interface(ifindex))?;
                told(self.datapath.detach(ifindex))?;
            }
        }
        Ok(())
    }
}

/// What an earlier life left in the datapath, to go on from.
pub(crate) struct Remembered {
    /// Node numbers by underlay address.
    pub(crate) nodes: Vec<(IpAddr, NodeIndex)>,
    /// At which node (its tunnel endpoint) each prefix and address of another cluster is.
    pub(crate) claims: Vec<(Prefix, IpAddr)>,
    /// Backend numbers.
    pub(crate) backends: Vec<(tombolo_service::plan::BackendKey, u32)>,
    /// Frontend numbers and members.
    pub(crate) frontends: Vec<(FrontendKey, u16, BTreeSet<tombolo_service::plan::BackendKey>)>,
    /// Pods' interfaces.
    pub(crate) interfaces: BTreeMap<u32, InterfaceRow>,
}

fn interface(ifindex: u32, row: &ebpf::Interface) -> InterfaceRow {
    let v4 = row.v4.map(IpAddr::from);
    InterfaceRow {
        ifindex,
        endpoint: row.endpoint_id,
        addresses: v4.into_iter().chain(row.v6.map(IpAddr::from)).collect(),
        mac: row.mac,
        host_mac: row.host_mac,
        identity: row.identity,
        policy: row.policy_id,
        ready: row.ready,
        shaping: Shaping {
            egress: row.limits.egress,
            ingress: row.limits.ingress,
            priority: row.limits.priority,
        },
        queued: row.queued,
    }
}

fn protocol(number: u8) -> Option<tombolo_service::Protocol> {
    use tombolo_service::Protocol::{Sctp, Tcp, Udp};
    [Tcp, Udp, Sctp].into_iter().find(|protocol| protocol.number() == number)
}

/// Reads it.
pub(crate) fn remember(datapath: &Datapath) -> Result<Remembered, String> {
    let nodes = told(datapath.nodes())?;
    let nodes: Vec<_> =
        nodes.into_iter().filter_map(|(index, node)| Some((node.tunnel?, NodeIndex(index)))).collect();
    let tunnels: BTreeMap<u32, IpAddr> = nodes.iter().map(|(ip, index)| (index.0, *ip)).collect();
    let claims = told(datapath.prefixes())?
        .into_iter()
        // What is the own cluster's is so without memory.
        .filter(|(_, entry)| entry.remote_cluster)
        .filter_map(|(net, entry)| Some((Prefix::from(net), *tunnels.get(&entry.node)?)))
        .collect();
    let backends: BTreeMap<u32, _> = told(datapath.backends())?
        .into_iter()
        .filter_map(|(id, backend)| Some((id, (backend.ip, backend.port, protocol(backend.protocol)?))))
        .collect();
    let mut frontends = Vec::new();
    for (key, entry) in told(datapath.services())? {
        let (Some(protocol), Ok(number)) = (protocol(key.protocol), u16::try_from(entry.rev_nat)) else {
            continue;
        };
        let scope = match key.scope {
            ebpf::Scope::External => Scope::External,
            ebpf::Scope::Internal => Scope::Internal,
        };
        let members = entry.maglev.iter().filter_map(|id| backends.get(id).copied()).collect();
        frontends.push((FrontendKey { address: key.ip, port: key.port, protocol, scope }, number, members));
    }
    let interfaces = told(datapath.interfaces())?;
    let interfaces = interfaces.iter().map(|(ifindex, row)| (*ifindex, interface(*ifindex, row))).collect();
    let backends = backends.into_iter().map(|(id, key)| (key, id)).collect();
    Ok(Remembered { nodes, claims, backends, frontends, interfaces })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tombolo_base::table::Table;

    fn cluster(name: &str) -> ClusterName {
        ClusterName::new(name).unwrap()
    }

    fn node(name: &str, id: u32, source: Source) -> NodeRow {
        NodeRow {
            source,
            cluster: cluster(name),
            cluster_id: ClusterId::new(id, MaxClusters::C255).unwrap(),
            name: "n1".into(),
            addresses: vec![],
            pod_cidrs: vec![],
            wireguard_key: None,
            encryption_key: 0,
            labels: BTreeMap::new().into(),
            ready: None,
            health: Default::default(),
        }
    }

    #[test]
    fn a_leftover_stays_while_any_possible_owner_is_silent() {
        let (nodes, writer) = Table::new();
        // The own nodes are told by the manifests, which are ready at once.
        writer.upsert(node("east", 1, Source::Manifests));
        writer.upsert(node("west", 2, Source::Cluster(cluster("west"))));
        let own_id = ClusterId::new(1, MaxClusters::C255).unwrap();
        let owners = Owners { nodes, own: cluster("east"), own_id }.by_id();
        let held = |sources: &[Source]| sources.iter().cloned().collect::<BTreeSet<_>>();
        let (east, west) = (Source::Cluster(cluster("east")), Source::Cluster(cluster("west")));
        for silent in [Source::Local, Source::Manifests, east] {
            assert!(stays(Some(1), &owners, &held(std::slice::from_ref(&silent))), "{silent}");
            assert!(!stays(Some(2), &owners, &held(&[silent])), "west has spoken");
        }
        assert!(
            stays(Some(2), &owners, &held(std::slice::from_ref(&west)))
                && !stays(Some(1), &owners, &held(&[west]))
        );
        for unknown in [Some(3), None] {
            assert!(
                stays(unknown, &owners, &held(std::slice::from_ref(&east)))
                    && !stays(unknown, &owners, &held(&[]))
            );
        }
    }
}
