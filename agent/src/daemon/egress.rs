//! Egress gateways: what is planned for pods that leave the mesh, and the way from there to the datapath.

use super::datapath::told;
use super::drive::{Applied, Driver};
use super::network::Seen;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::watch;
use tombolo_base::ids::{ClusterName, IdentityId};
use tombolo_base::labels::Labels;
use tombolo_base::prefix::Prefix;
use tombolo_base::reconcile::Target;
use tombolo_base::rows::Rows;
use tombolo_base::source::{Source, SourceState};
use tombolo_base::table::{Row, Snapshot, Table, Writer};
use tombolo_ebpf::{self as ebpf, Datapath};
use tombolo_topology::egress::plan::{Link, Machine, Planner, Pod};
use tombolo_topology::{
    EgressGatewayRow, EgressPolicyRow, EgressRow, EgressWay, EndpointRow, IdentityRow, NodeLookup, NodePath,
    NodeRow, PrefixRow,
};

/// What the planner reads.
pub(crate) struct Inputs {
    /// Policies.
    pub(crate) policies: Table<EgressPolicyRow>,
    /// Nodes.
    pub(crate) nodes: Table<NodeRow>,
    /// How to reach them.
    pub(crate) paths: Table<NodePath>,
    /// This node's pods.
    pub(crate) endpoints: Table<EndpointRow>,
    /// Addresses of all pods.
    pub(crate) prefixes: Table<PrefixRow>,
    /// What their identities stand for.
    pub(crate) identities: Table<IdentityRow>,
    /// This machine's interfaces.
    pub(crate) network: watch::Receiver<Option<Arc<Seen>>>,
}

/// The planner's pens.
pub(crate) struct Pens {
    /// Ways of pods.
    pub(crate) rows: Writer<EgressRow>,
    /// What policies' gateways come to.
    pub(crate) gateways: Writer<EgressGatewayRow>,
}

/// This machine as a gateway sees it.
fn machine(seen: &Seen) -> Machine {
    let addresses = |index: u32| {
        let of = seen.addresses.iter().filter(move |address| address.link == index && !address.tentative);
        of.map(|address| address.address.addr()).collect()
    };
    let link = |link: &tombolo_netlink::Link| {
        (link.name.as_str().into(), Link { index: link.index, addresses: addresses(link.index) })
    };
    let default = |ipv4: bool| {
        let of = seen.defaults.iter().filter(|route| route.destination.addr().is_ipv4() == ipv4);
        let best = of.min_by_key(|route| route.metric)?;
        let index = best.next_hops.iter().find_map(|hop| hop.link)?;
        seen.name(index).map(Arc::from)
    };
    // What loops back or is of our own making has hooks of other kinds, or must have none.
    let own = [
        tombolo_tunnel::VXLAN_DEVICE,
        tombolo_tunnel::WIREGUARD_DEVICE,
        tombolo_tunnel::HOST_DEVICE,
        tombolo_tunnel::NET_DEVICE,
    ];
    let leads_out = |link: &&tombolo_netlink::Link| link.name != "lo" && !own.contains(&link.name.as_str());
    Machine {
        links: seen.links.iter().filter(leads_out).map(link).collect(),
        default_link: [default(true), default(false)],
    }
}

/// Tables as they are now.
struct View {
    endpoints: Snapshot<EndpointRow>,
    prefixes: Snapshot<PrefixRow>,
    identities: Snapshot<IdentityRow>,
    nodes: Snapshot<NodeRow>,
}

struct Plan {
    planner: Planner,
    cluster: ClusterName,
    node: Arc<str>,
    inputs: Inputs,
    out: Pens,
    /// Addresses of this node's pods, by endpoint.
    local: BTreeMap<u16, Vec<IpAddr>>,
    /// Whether everything has been planned once.
    begun: bool,
}

fn has_spoken<R: Row>(snapshot: &Snapshot<R>, source: Source) -> bool {
    snapshot.source_state(&source).is_some_and(|state| state != SourceState::Pending)
}

impl Plan {
    fn view(&self) -> View {
        View {
            endpoints: self.inputs.endpoints.snapshot(),
            prefixes: self.inputs.prefixes.snapshot(),
            identities: self.inputs.identities.snapshot(),
            nodes: self.inputs.nodes.snapshot(),
        }
    }

    /// Finds gateways anew; false as long as it is not known what there is: until then nobody's way is decided.
    fn resolve(&mut self) -> bool {
        let (policies, nodes) = (self.inputs.policies.snapshot(), self.inputs.nodes.snapshot());
        let paths = self.inputs.paths.snapshot();
        let Some(seen) = self.inputs.network.borrow().clone() else { return false };
        if !has_spoken(&policies, Source::Manifests)
            || !has_spoken(&nodes, Source::Manifests)
            || !has_spoken(&paths, Source::Manifests)
        {
            return false;
        }
        // Without policies nobody asks who is where.
        let idle = policies.iter().next().is_none();
        let manifests: Vec<NodeRow> =
            nodes.by_source(&Source::Manifests).filter(|_| !idle).cloned().collect();
        let paths: Vec<NodePath> = paths.iter().filter(|_| !idle).cloned().collect();
        let told = self.planner.resolve(policies.iter(), &manifests, &paths, &machine(&seen));
        self.out.gateways.replace_source(&Source::Planner, told);
        true
    }

    fn labels<'a>(&self, view: &'a View, id: IdentityId) -> Option<&'a Labels> {
        let sources = [Source::Local, Source::Cluster(self.cluster)];
        sources.iter().find_map(|source| view.identities.get(&(id, *source))).map(|row| &row.labels)
    }

    fn local_rows(&self, view: &View, endpoint: &EndpointRow) -> Vec<EgressRow> {
        let Some(identity) = endpoint.identity else { return Vec::new() };
        let node = view.nodes.get(&(Source::Manifests, self.cluster, self.node.clone()));
        let row = |address: &IpAddr| {
            let labels = &endpoint.labels;
            self.planner.row(&Pod { address: *address, identity, labels, node, local: true })
        };
        endpoint.addresses.iter().filter_map(row).collect()
    }

    /// The row of another node's pod, if this one may be its gateway.
    fn remote_row(&self, view: &View, row: &PrefixRow) -> Option<EgressRow> {
        if row.source != Source::Cluster(self.cluster) || !row.prefix.is_host() {
            return None;
        }
        let address = row.prefix.address();
        // A pod of this node that comes back from etcd.
        if view.endpoints.by_index(&address).next().is_some() {
            return None;
        }
        let labels = self.labels(view, row.identity)?;
        let lookup = NodeLookup::Address(row.residence.host_ip?);
        let node = view.nodes.by_index(&lookup).find(|node| node.source == Source::Manifests);
        self.planner.row(&Pod { address, identity: row.identity, labels, node, local: false })
    }

    /// What may be pruned: nothing while pods of this node or the cluster are not all known.
    fn state(&self, view: &View) -> SourceState {
        let own = Source::Cluster(self.cluster);
        let states = [
            view.endpoints.source_state(&Source::Local).or(Some(SourceState::Pending)),
            view.prefixes.source_state(&own),
            view.identities.source_state(&own),
        ];
        states.into_iter().flatten().min().unwrap_or(SourceState::Pending)
    }

    fn everything(&mut self) {
        let view = self.view();
        let mut rows: BTreeMap<IpAddr, EgressRow> = BTreeMap::new();
        let own = Source::Cluster(self.cluster);
        let remote = view.prefixes.by_source(&own);
        for row in remote.take_while(|_| !self.planner.is_idle()) {
            rows.extend(self.remote_row(&view, row).map(|row| (row.pod, row)));
        }
        self.local = view.endpoints.iter().map(|row| (row.id, row.addresses.clone())).collect();
        for endpoint in view.endpoints.iter() {
            rows.extend(self.local_rows(&view, endpoint).into_iter().map(|row| (row.pod, row)));
        }
        let state = self.state(&view);
        self.out.rows.commit(|txn| {
            txn.replace_source(&Source::Planner, rows.into_values());
            txn.set_source(&Source::Planner, state);
        });
        self.begun = true;
    }

    /// Only what these changes are about.
    fn some(&mut self, endpoints: &BTreeSet<u16>, prefixes: &BTreeSet<Prefix>) {
        let view = self.view();
        let mut gone: BTreeSet<IpAddr> = BTreeSet::new();
        let mut rows = Vec::new();
        for id in endpoints {
            gone.extend(self.local.remove(id).into_iter().flatten());
            if let Some(endpoint) = view.endpoints.get(id) {
                self.local.insert(*id, endpoint.addresses.clone());
                rows.extend(self.local_rows(&view, endpoint));
            }
        }
        let own = Source::Cluster(self.cluster);
        // Without policies other nodes' pods are none of this one's business, and none has a row.
        let prefixes = prefixes.iter().filter(|prefix| prefix.is_host() && !self.planner.is_idle());
        for prefix in prefixes {
            if view.endpoints.by_index(&prefix.address()).next().is_some() {
                continue;
            }
            gone.insert(prefix.address());
            rows.extend(view.prefixes.get(&(*prefix, own)).and_then(|row| self.remote_row(&view, row)));
        }
        let state = self.state(&view);
        self.out.rows.commit(|txn| {
            let kept: BTreeSet<IpAddr> = rows.iter().map(|row| row.pod).collect();
            gone.difference(&kept).for_each(|pod| drop(txn.remove(pod)));
            for row in rows {
                txn.upsert(row);
            }
            txn.set_source(&Source::Planner, state);
        });
    }
}

/// Plans until cancelled. A change of policies, nodes or interfaces concerns every pod, a pod's only itself.
pub(crate) async fn planner(driver: Driver, who: (ClusterName, Arc<str>), inputs: Inputs, out: Pens) {
    out.rows.set_source(&Source::Planner, SourceState::Pending);
    let (mut policies, mut nodes) = (inputs.policies.changes(), inputs.nodes.changes());
    let (mut paths, mut endpoints) = (inputs.paths.changes(), inputs.endpoints.changes());
    let (mut prefixes, mut identities) = (inputs.prefixes.changes(), inputs.identities.changes());
    let mut network = inputs.network.clone();
    let (cluster, node) = who;
    let planner = Planner::new(cluster, node.clone());
    let mut plan = Plan { planner, cluster, node, inputs, out, local: BTreeMap::new(), begun: false };
    loop {
        let (mut pods, mut addresses, mut all) = (BTreeSet::new(), BTreeSet::new(), false);
        tokio::select! {
            () = driver.cancel.cancelled() => return,
            _ = policies.next() => all = true,
            _ = nodes.next() => all = true,
            _ = paths.next() => all = true,
            changed = network.changed() => if changed.is_err() { return } else { all = true },
            batch = endpoints.next() => pods.extend(batch.keys),
            batch = prefixes.next() => addresses.extend(batch.keys.into_iter().map(|(prefix, _)| prefix)),
            // An identity comes before the addresses that have it, but for one that etcd told out of order.
            _ = identities.next() => all = !plan.planner.is_idle(),
        }
        // What changed meanwhile goes into the same step.
        all |= policies.drain().is_some() | nodes.drain().is_some() | paths.drain().is_some();
        pods.extend(endpoints.drain().into_iter().flat_map(|batch| batch.keys));
        let more = prefixes.drain().into_iter().flat_map(|batch| batch.keys);
        addresses.extend(more.map(|(prefix, _)| prefix));
        if plan.begun && !all {
            plan.some(&pods, &addresses);
        } else if plan.resolve() {
            plan.everything();
        }
    }
}

/// [`EgressRow`] → ways of pods, and hooks where they leave.
pub(crate) struct Ways {
    datapath: Arc<Datapath>,
    /// What the datapath holds of nodes: a way never names a row that is not there.
    paths: Applied<NodePath>,
    /// What the map has, by pod.
    written: BTreeMap<IpAddr, BTreeSet<Prefix>>,
    /// Interfaces besides the underlay's by which packets leave; their answers come in there.
    hooked: BTreeSet<u32>,
}

impl Ways {
    /// Goes on from what an earlier life left.
    ///
    /// # Errors
    /// The map cannot be read.
    pub(crate) fn new(datapath: Arc<Datapath>, paths: Applied<NodePath>) -> Result<Self, String> {
        let mut written: BTreeMap<IpAddr, BTreeSet<Prefix>> = BTreeMap::new();
        for ((pod, net), _) in told(datapath.egress())? {
            written.entry(pod).or_default().insert(net.into());
        }
        Ok(Self { datapath, paths, written, hooked: BTreeSet::new() })
    }

    fn way(&mut self, way: EgressWay) -> Result<ebpf::EgressWay, String> {
        Ok(match way {
            EgressWay::Nowhere => ebpf::EgressWay::Nowhere,
            EgressWay::Excluded => ebpf::EgressWay::Excluded,
            EgressWay::Node(index) if self.paths.contains(&index) => ebpf::EgressWay::Node(index.0),
            EgressWay::Node(index) => return Err(format!("node {} is not in the datapath yet", index.0)),
            EgressWay::Here { address, ifindex } => {
                self.hook(ifindex)?;
                ebpf::EgressWay::Here { address, ifindex }
            }
        })
    }

    fn hook(&mut self, ifindex: u32) -> Result<(), String> {
        let uplink = told(self.datapath.config())?.uplink_ifindex;
        if ifindex == 0 || ifindex == uplink || self.hooked.contains(&ifindex) {
            return Ok(());
        }
        told(self.datapath.attach_uplink(ifindex))?;
        self.hooked.insert(ifindex);
        Ok(())
    }

    fn forget(&mut self, pod: IpAddr) -> Result<(), String> {
        for prefix in self.written.get(&pod).into_iter().flatten() {
            told(self.datapath.delete_egress(pod, prefix.net()))?;
        }
        self.written.remove(&pod);
        Ok(())
    }
}

impl Target<EgressRow> for Ways {
    async fn update(&mut self, row: &EgressRow) -> Result<(), String> {
        for (prefix, way) in &row.ways {
            let way = self.way(*way)?;
            told(self.datapath.upsert_egress(row.pod, prefix.net(), way))?;
            self.written.entry(row.pod).or_default().insert(*prefix);
        }
        // What is wanted stands before what is not goes: no packet meets a gap.
        let known = self.written.get(&row.pod).cloned().unwrap_or_default();
        for prefix in known.iter().filter(|prefix| !row.ways.contains_key(prefix)) {
            told(self.datapath.delete_egress(row.pod, prefix.net()))?;
            self.written.entry(row.pod).or_default().remove(prefix);
        }
        Ok(())
    }

    async fn delete(&mut self, row: &EgressRow) -> Result<(), String> {
        self.forget(row.pod)
    }

    async fn prune(&mut self, keep: &Rows<EgressRow>, held: &BTreeSet<Source>) -> Result<(), String> {
        if !held.is_empty() {
            return Ok(());
        }
        let gone: Vec<IpAddr> = self.written.keys().filter(|pod| !keep.contains_key(pod)).copied().collect();
        gone.into_iter().try_for_each(|pod| self.forget(pod))
    }
}

/// Whether a pod may be let out: how each of its addresses leaves is planned and in the datapath.
pub(crate) fn is_in_place(
    endpoint: &EndpointRow,
    planned: &Snapshot<EgressRow>,
    held: &Applied<EgressRow>,
) -> bool {
    endpoint.addresses.iter().all(|address| {
        let row = planned.get(address).filter(|row| Some(row.identity) == endpoint.identity);
        row.is_some_and(|row| held.get(address).as_ref() == Some(row))
    })
}
