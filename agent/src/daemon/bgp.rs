//! BGP: from the objects' intent to desired sessions and adverts. The adapter carries them to the speaker.

use super::drive::{Applied, Driver};
use super::network::Seen;
use super::tasks::Tasks;
use crate::config::AllowedPrefix;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::{broadcast, watch};
use tombolo_base::aggregate::HOLD;
use tombolo_base::ids::ClusterName;
use tombolo_base::reconcile::Progress;
use tombolo_base::source::{Source, SourceState};
use tombolo_base::table::{Row, Snapshot, Table, Writer};
use tombolo_bgp::BmpStation;
use tombolo_bgp::bfd::client::Unit;
use tombolo_bgp::mrt::MessageLog;
use tombolo_bgp::rpki::RpkiCache;
use tombolo_bgp_node::{BgpNode, Settings, Ways};
use tombolo_kubernetes::Tables;
use tombolo_netlink::Netlink;
use tombolo_service::{LbAssignment, ServiceRow, SliceRow, TrafficPolicy};
use tombolo_topology::LearnedRoute;
use tombolo_topology::bgp::health::{HealthPolicy, Readiness, Verdict, apply, judge};
use tombolo_topology::bgp::plan::{AdvertisedService, Inputs, plan};
use tombolo_topology::bgp::{AdvertRow, ConditionRow, PeerRow};
use tombolo_tunnel::KernelRoutes;

/// The operator's shutdowns, in the state directory.
pub(crate) const SHUTDOWNS: &str = "bgp-shutdowns.json";

/// The pens of the planner's tables.
pub(crate) struct Pens {
    /// Sessions.
    pub(crate) peers: Writer<PeerRow>,
    /// Adverts.
    pub(crate) adverts: Writer<AdvertRow>,
    /// What was asked for and cannot be served.
    pub(crate) conditions: Writer<ConditionRow>,
}

/// Whose BGP is planned.
pub(crate) struct Who {
    /// This cluster.
    pub(crate) cluster: ClusterName,
    /// This node.
    pub(crate) node: Arc<str>,
    /// How the node's own state is judged.
    pub(crate) health: Health,
    /// Where `authSecretRef` is looked up.
    pub(crate) secrets_namespace: Arc<str>,
}

/// A service as far as advertising it goes.
fn advertised(
    service: &ServiceRow,
    slices: &Snapshot<SliceRow>,
    addresses: &Snapshot<LbAssignment>,
    node: &Arc<str>,
) -> AdvertisedService {
    let mut endpoints = slices.by_index(&service.name).flat_map(|slice| &slice.endpoints);
    AdvertisedService {
        namespace: service.name.namespace.clone(),
        name: service.name.name.clone(),
        labels: service.labels.clone(),
        load_balancer_ips: addresses.get(&service.name).map(|row| row.addresses.clone()).unwrap_or_default(),
        cluster_ips: service.cluster_ips.iter().copied().collect(),
        external_ips: service.external_ips.iter().copied().collect(),
        load_balancer_class: service.load_balancer_class.clone(),
        external_local: service.external_traffic_policy == TrafficPolicy::Local,
        internal_local: service.internal_traffic_policy == TrafficPolicy::Local,
        local_ready: endpoints.any(|endpoint| {
            (endpoint.ready || service.publish_not_ready) && endpoint.node.as_ref() == Some(node)
        }),
    }
}

/// The services that may be advertised: those of the manifests. A derived one carries an import, whose clusterset IP means
/// something in this cluster only.
fn all_advertised(
    services: &Snapshot<ServiceRow>,
    slices: &Snapshot<SliceRow>,
    addresses: &Snapshot<LbAssignment>,
    node: &Arc<str>,
) -> Vec<AdvertisedService> {
    let own = services.by_source(&Source::Manifests);
    own.map(|service| advertised(service, slices, addresses, node)).collect()
}

/// How this node judges its own state.
pub(crate) struct Health {
    /// What counts.
    pub(crate) policy: HealthPolicy,
    /// The previous process died and its datapath is still at work.
    pub(crate) restarting: bool,
}

/// Whether the datapath has been given, at least once, all that it needs to serve.
fn readiness(board: &BTreeMap<&'static str, Progress>) -> Readiness {
    let complete = |names: &[&str]| names.iter().all(|name| board.get(name).is_some_and(|p| p.pruned));
    Readiness {
        datapath: complete(&["frontends", "interfaces", "policies"]),
        mesh: complete(&["prefix-entries", "paths"]),
    }
}

fn rows<R: Row>(table: &Table<R>) -> Vec<R> {
    table.snapshot().iter().cloned().collect()
}

/// Plans sessions and adverts until cancelled. Inputs are a handful of objects, so each step is a full pass.
pub(crate) async fn planner(
    driver: Driver,
    who: Who,
    tables: Tables,
    addresses: Table<LbAssignment>,
    mut network: watch::Receiver<Option<Arc<Seen>>>,
    out: Pens,
) {
    let mut nodes = tables.nodes.changes();
    let mut services = tables.services.changes();
    let mut slices = tables.slices.changes();
    let mut assigned = addresses.changes();
    let mut configs = tables.bgp_cluster_configs.changes();
    let mut peers = tables.bgp_peer_configs.changes();
    let mut adverts = tables.bgp_advertisements.changes();
    let mut overrides = tables.bgp_overrides.changes();
    let mut ready = Readiness::default();
    let mut policies = tables.bgp_peer_policies.changes();
    let mut pools = tables.pod_pools.changes();
    let mut secrets = tables.bgp_secrets.changes();
    loop {
        tokio::select! {
            () = driver.cancel.cancelled() => return,
            _ = nodes.next() => {}
            _ = services.next() => {}
            _ = slices.next() => {}
            _ = assigned.next() => {}
            _ = configs.next() => {}
            _ = peers.next() => {}
            _ = adverts.next() => {}
            _ = overrides.next() => {}
            () = driver.board.wait(|board| readiness(board).adds_to(ready)) => {}
            _ = policies.next() => {}
            _ = pools.next() => {}
            _ = secrets.next() => {}
            changed = network.changed() => if changed.is_err() { return },
        }
        // Once ready stays ready: a cluster that joins later makes tables incomplete again, and no reason to withdraw.
        ready = ready.or(readiness(&driver.board.all()));
        let seen = network.borrow_and_update().clone();
        if let Some(seen) = seen {
            step((&who, ready), &tables, &addresses, &seen, &out);
        }
    }
}

/// One full pass over a cluster's objects and this node's network.
fn step(
    (who, ready): (&Who, Readiness),
    tables: &Tables,
    addresses: &Table<LbAssignment>,
    seen: &Seen,
    out: &Pens,
) {
    let (slices, addresses) = (tables.slices.snapshot(), addresses.snapshot());
    let services = all_advertised(&tables.services.snapshot(), &slices, &addresses, &who.node);
    let nodes = tables.nodes.snapshot();
    let own = (Source::Manifests, who.cluster, who.node.clone());
    let Some(node) = nodes.get(&own) else { return };
    let of_cluster = nodes.iter().filter(|row| row.source == Source::Manifests);
    let mut plan = plan(&Inputs {
        node,
        nodes: &of_cluster.map(|row| row.labels.clone()).collect::<Vec<_>>(),
        configs: &rows(&tables.bgp_cluster_configs),
        peer_configs: &rows(&tables.bgp_peer_configs),
        advertisements: &rows(&tables.bgp_advertisements),
        overrides: &rows(&tables.bgp_overrides),
        policies: &rows(&tables.bgp_peer_policies),
        pools: &rows(&tables.pod_pools),
        secrets: &rows(&tables.bgp_secrets),
        secrets_namespace: &who.secrets_namespace,
        services: &services,
        network: &seen.network(tombolo_tunnel::DEFAULT_PROTOCOL, tombolo_tunnel::HOST_DEVICE),
    });
    // A life that goes on where another ended has a datapath that serves: its peers still send.
    let ready = Readiness { datapath: ready.datapath || who.health.restarting, ..ready };
    let verdict = judge(ready, &node.health, &who.health.policy);
    apply(&verdict, &who.node, &mut plan);
    // Addresses come from etcd: until they are known, what an earlier life announced is not withdrawn.
    let complete = nodes.source_state(&Source::Manifests) == Some(SourceState::Initialized)
        && addresses.is_complete()
        && !matches!(verdict, Verdict::Hold(_));
    let state = if complete { SourceState::Initialized } else { SourceState::Pending };
    out.peers.commit(|txn| {
        txn.replace_source(&Source::Planner, plan.peers);
        txn.set_source(&Source::Planner, state);
    });
    out.adverts.commit(|txn| {
        txn.replace_source(&Source::Planner, plan.adverts);
        txn.set_source(&Source::Planner, state);
    });
    let condition = |condition| ConditionRow { source: Source::Planner, condition };
    out.conditions.commit(|txn| {
        txn.replace_source(&Source::Planner, plan.conditions.into_iter().map(condition));
        txn.set_source(&Source::Planner, state);
    });
}

/// Stands for the BGP instances that have not announced themselves yet, among the sources of learned routes.
pub(crate) fn starting() -> Source {
    Source::Peer("starting".into())
}

pub(crate) fn message_log(config: &crate::config::MessageLog) -> MessageLog {
    MessageLog {
        folder: config.folder.clone(),
        file_bytes_max: u64::from(config.file_mib) * 1024 * 1024,
        files: config.files.into(),
    }
}

pub(crate) const fn cache(config: &crate::config::RpkiCache) -> RpkiCache {
    RpkiCache { address: config.address }
}

pub(crate) fn station(config: &crate::config::BmpCollector, system_name: &str) -> BmpStation {
    BmpStation {
        pre_policy: config.pre_policy,
        post_policy: config.post_policy,
        loc_rib: config.loc_rib,
        adj_rib_out: config.adj_rib_out,
        statistics_every: std::time::Duration::from_secs(config.statistics_secs.into()),
        system_name: system_name.to_owned(),
        ..BmpStation::new(config.address)
    }
}

/// What the adapter is told once, from the configuration.
pub(crate) fn settings(
    config: &crate::config::Bgp,
    system_name: &str,
    jitter_seed: u64,
    bfd: Unit,
) -> Settings {
    let allowed = |entry: &AllowedPrefix| tombolo_bgp::AllowedPrefix {
        prefix: entry.prefix.net(),
        min_len: entry.ge.unwrap_or(entry.prefix.prefix_len()),
        max_len: entry.le.unwrap_or(if entry.prefix.is_ipv4() { 32 } else { 128 }),
    };
    Settings {
        // For peers that no policy is for.
        import: config.import.allow.iter().map(allowed).collect(),
        jitter_seed,
        bfd: Some(bfd),
        message_log: config.message_log.as_ref().map(message_log),
        stations: config.bmp.iter().map(|collector| station(collector, system_name)).collect(),
        caches: config.rpki.iter().map(cache).collect(),
        long_lived_secs: config.long_lived_secs,
        ..Settings::default()
    }
}

/// How the speaker is run.
pub(crate) struct Session {
    /// What the adapter is told once.
    pub(crate) settings: Settings,
    /// Tables whose first pass must be done before End-of-RIB.
    pub(crate) before_end_of_rib: &'static [&'static str],
    /// What peers are told at a stop.
    pub(crate) stop_text: &'static str,
    /// Whose groups of next hops lost routers leave at once.
    pub(crate) kernel: Option<KernelRoutes>,
}

impl Session {
    /// A node's: what it announces must also work.
    pub(crate) fn of_node(settings: Settings, restarting: bool) -> Self {
        Self {
            settings: Settings { restarting, ..settings },
            before_end_of_rib: &["peers", "adverts", "frontends", "interfaces"],
            stop_text: "the agent was stopped",
            kernel: None,
        }
    }

    /// The same with the kernel's word on next hops and links, and with lost routers taken out of its routes.
    pub(crate) fn over(mut self, netlink: Netlink, kernel: KernelRoutes) -> Self {
        self.settings.ways = Some(Ways { netlink, protocol: tombolo_tunnel::DEFAULT_PROTOCOL });
        self.kernel = Some(kernel);
        self
    }
}

/// Starts the speaker and joins it: desired rows in, learned routes out. Stopping withdraws first.
pub(crate) fn start(
    driver: &Driver,
    session: Session,
    rows: (&Table<PeerRow>, &Table<AdvertRow>),
    learned: Arc<Writer<LearnedRoute>>,
    tasks: &mut Tasks,
) -> BgpNode {
    let Session { settings, before_end_of_rib, stop_text, kernel } = session;
    let node = BgpNode::start(settings, learned.clone());
    tasks.spawn("bgp/peers", driver.clone().run(rows.0.clone(), node.peer_target(), Applied::default()));
    tasks.spawn("bgp/adverts", driver.clone().run(rows.1.clone(), node.advert_target(), Applied::default()));
    let instances = driver.clone();
    tasks.spawn_work("bgp/start", async move {
        // From here on every instance answers for itself: its source is pending until its peers have spoken. What
        // is silent after the hold holds nothing any more.
        tokio::select! {
            () = instances.cancel.cancelled() => return,
            () = instances.board.wait(|all| all.get("peers").is_some_and(|p| p.pruned)) => {}
            () = tokio::time::sleep(HOLD) => {}
        }
        learned.drain_source(&starting());
    });
    if let Some(kernel) = kernel {
        tasks.spawn("bgp/lost", lose(driver.clone(), node.lost_next_hops(), kernel));
    }
    let (bgp, driver) = (node.clone(), driver.clone());
    tasks.spawn("bgp/export", async move {
        // End-of-RIB tells the routers to drop what they kept of the life before: not before all of it is planned.
        let complete = |all: &BTreeMap<&'static str, Progress>| {
            before_end_of_rib.iter().all(|name| all.get(name).is_some_and(|p| p.pruned))
        };
        tokio::select! {
            () = driver.cancel.cancelled() => {}
            () = driver.board.wait(complete) => {
                if let Err(error) = bgp.export_complete().await {
                    tracing::warn!(%error, "End-of-RIB could not be sent; routers keep stale routes until their timer ends");
                }
                driver.cancel.cancelled().await;
            }
        }
        if let Err(error) = bgp.shutdown(stop_text).await {
            tracing::warn!(%error, "routes could not be withdrawn before stopping");
        }
    });
    node
}

/// Takes lost routers out of the kernel's groups of next hops, ahead of the rows of the prefixes behind them.
async fn lose(driver: Driver, mut lost: broadcast::Receiver<IpAddr>, kernel: KernelRoutes) {
    loop {
        let router = tokio::select! {
            () = driver.cancel.cancelled() => return,
            router = lost.recv() => match router {
                Ok(router) => router,
                Err(broadcast::error::RecvError::Lagged(_)) => continue,
                Err(broadcast::error::RecvError::Closed) => return,
            },
        };
        match kernel.lose(router).await {
            Ok(groups) => {
                tracing::info!(%router, groups, "a router is lost; its next hop left the kernel's groups")
            }
            Err(error) => {
                tracing::warn!(%router, %error, "a lost next hop could not be taken out of its groups")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tombolo_service::{Protocol, ServiceName, ServicePort, ServiceType, SliceEndpoint, SlicePort};

    fn service(publish_not_ready: bool) -> ServiceRow {
        ServiceRow {
            kind: ServiceType::LoadBalancer,
            ports: vec![ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None }],
            external_traffic_policy: TrafficPolicy::Local,
            families_ipv4: vec![true],
            external_ips: vec!["198.51.100.7".parse().unwrap()],
            publish_not_ready,
            ..ServiceRow::new(Source::Manifests, ServiceName { namespace: "shop".into(), name: "web".into() })
        }
    }

    fn slice(node: &str, ready: bool, terminating: bool) -> SliceRow {
        let web = ServiceName { namespace: "shop".into(), name: "web".into() };
        SliceRow {
            source: Source::Manifests,
            name: ServiceName { name: "web-1".into(), ..web.clone() },
            service: web,
            ports: vec![SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }],
            endpoints: vec![SliceEndpoint {
                addresses: vec!["10.1.1.5".parse().unwrap()],
                ready,
                serving: true,
                terminating,
                node: Some(node.into()),
                ..SliceEndpoint::default()
            }],
        }
    }

    #[test]
    fn an_endpoint_counts_while_it_is_ready_and_here() {
        let (slices, writer) = Table::new();
        let (addresses, _kept) = Table::new();
        let seen = |node: &str, ready, terminating, publish| {
            writer.upsert(slice(node, ready, terminating));
            let row = service(publish);
            let row = advertised(&row, &slices.snapshot(), &addresses.snapshot(), &"n1".into());
            assert!(row.external_local && row.external_ips.len() == 1);
            row.local_ready
        };
        assert!(seen("n1", true, false, false));
        assert!(!seen("n1", false, false, false), "not ready: withdrawn, though it is still there");
        assert!(!seen("n1", false, true, false), "it ends, and still serves: withdrawn before it is gone");
        assert!(!seen("n2", true, false, false), "another node's");
        assert!(seen("n1", false, false, true), "publishNotReadyAddresses");
    }

    #[test]
    fn what_carries_an_import_is_not_advertised() {
        let (services, writer) = Table::new();
        let (addresses, given) = Table::new();
        let (slices, _kept) = Table::new();
        let derived = ServiceName { namespace: "shop".into(), name: "derived-scaifns3gd".into() };
        let row = ServiceRow { source: Source::Planner, name: derived.clone(), ..service(false) };
        for row in [row, service(false)] {
            given.upsert(LbAssignment {
                source: Source::Planner,
                name: row.name.clone(),
                addresses: ["203.0.113.1".parse().unwrap()].into(),
                pools: ["pool".into()].into(),
            });
            writer.upsert(row);
        }
        let all =
            all_advertised(&services.snapshot(), &slices.snapshot(), &addresses.snapshot(), &"n1".into());
        let found: Vec<_> = all.iter().map(|row| (&*row.name, row.load_balancer_ips.len())).collect();
        assert_eq!(found, [("web", 1)]);
    }
}
