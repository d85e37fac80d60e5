//! BGP: from the objects' intent to desired sessions and adverts. The adapter carries them to the speaker.

use super::drive::{Applied, Driver};
use super::tasks::Tasks;
use crate::config::AllowedPrefix;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::broadcast;
use tombolo_base::aggregate::HOLD;
use tombolo_base::ids::ClusterName;
use tombolo_base::reconcile::Progress;
use tombolo_base::source::{Source, SourceState};
use tombolo_base::table::{Table, Writer};
use tombolo_bgp::bfd::client::Unit;
use tombolo_bgp_node::{BgpNode, InstancePeer, InstanceRoute, Settings, Ways};
use tombolo_kubernetes::Tables;
use tombolo_netlink::Netlink;
use tombolo_service::{LbAssignment, ServiceRow, SliceRow, TrafficPolicy};
use tombolo_topology::LearnedRoute;
use tombolo_topology::bgp::health::{HealthPolicy, Readiness, Verdict, apply, judge};
use tombolo_topology::bgp::plan::{AdvertisedService, Condition, Inputs, plan};
use tombolo_topology::bgp::{AdvertRow, PeerRow};
use tombolo_tunnel::KernelRoutes;

/// What was asked for and cannot be served, for `tombolo status`.
pub(crate) type Conditions = Arc<Mutex<BTreeSet<Condition>>>;

/// A service as far as advertising it goes.
fn advertised(
    service: &ServiceRow,
    slices: &tombolo_base::table::Snapshot<SliceRow>,
    addresses: &tombolo_base::table::Snapshot<LbAssignment>,
    node: &Arc<str>,
) -> AdvertisedService {
    let mut endpoints = slices.by_index(&service.name).flat_map(|slice| &slice.endpoints);
    AdvertisedService {
        namespace: service.name.namespace.clone(),
        name: service.name.name.clone(),
        labels: service.labels.clone(),
        load_balancer_ips: addresses.get(&service.name).map(|row| row.addresses.clone()).unwrap_or_default(),
        cluster_ips: service.cluster_ips.iter().copied().collect(),
        external_ips: BTreeSet::new(),
        load_balancer_class: service.load_balancer_class.clone(),
        external_local: service.external_traffic_policy == TrafficPolicy::Local,
        internal_local: service.internal_traffic_policy == TrafficPolicy::Local,
        local_ready: endpoints.any(|endpoint| endpoint.ready && endpoint.node.as_ref() == Some(node)),
    }
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

/// Plans sessions and adverts until cancelled. Inputs are a handful of objects, so each step is a full pass.
pub(crate) async fn planner(
    driver: Driver,
    cluster: ClusterName,
    node: Arc<str>,
    tables: Tables,
    addresses: Table<LbAssignment>,
    out: (Writer<PeerRow>, Writer<AdvertRow>),
    (conditions, health): (Conditions, Health),
) {
    let mut nodes = tables.nodes.changes();
    let mut services = tables.services.changes();
    let mut slices = tables.slices.changes();
    let mut assigned = addresses.changes();
    let mut configs = tables.bgp_cluster_configs.changes();
    let mut peers = tables.bgp_peer_configs.changes();
    let mut adverts = tables.bgp_advertisements.changes();
    let mut overrides = tables.bgp_overrides.changes();
    let own = (Source::Manifests, cluster, node.clone());
    let mut ready = Readiness::default();
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
        }
        let (slices, addresses) = (tables.slices.snapshot(), addresses.snapshot());
        let services: Vec<_> = tables
            .services
            .snapshot()
            .iter()
            .map(|service| advertised(service, &slices, &addresses, &node))
            .collect();
        let nodes = tables.nodes.snapshot();
        let Some(row) = nodes.get(&own) else { continue };
        // Once ready stays ready: a cluster that joins later makes tables incomplete again, and no reason to withdraw.
        ready = ready.or(readiness(&driver.board.all()));
        let mut rows = plan(&Inputs {
            node: row,
            configs: &tables.bgp_cluster_configs.snapshot().iter().cloned().collect::<Vec<_>>(),
            peer_configs: &tables.bgp_peer_configs.snapshot().iter().cloned().collect::<Vec<_>>(),
            advertisements: &tables.bgp_advertisements.snapshot().iter().cloned().collect::<Vec<_>>(),
            overrides: &tables.bgp_overrides.snapshot().iter().cloned().collect::<Vec<_>>(),
            services: &services,
        });
        // A life that goes on where another ended has a datapath that serves: its peers still send.
        let seen = Readiness { datapath: ready.datapath || health.restarting, ..ready };
        let verdict = judge(seen, &row.health, &health.policy);
        apply(&verdict, &node, &mut rows);
        *conditions.lock().unwrap_or_else(PoisonError::into_inner) = rows.conditions;
        // Addresses come from etcd: until they are known, what an earlier life announced is not withdrawn.
        let complete = nodes.source_state(&Source::Manifests) == Some(SourceState::Initialized)
            && addresses.is_complete()
            && !matches!(verdict, Verdict::Hold(_));
        let state = if complete { SourceState::Initialized } else { SourceState::Pending };
        out.0.commit(|txn| {
            txn.replace_source(&Source::Planner, rows.peers);
            txn.set_source(&Source::Planner, state);
        });
        out.1.commit(|txn| {
            txn.replace_source(&Source::Planner, rows.adverts);
            txn.set_source(&Source::Planner, state);
        });
    }
}

/// Stands for the BGP instances that have not announced themselves yet, among the sources of learned routes.
pub(crate) fn starting() -> Source {
    Source::Peer("starting".into())
}

/// Starts the speaker and joins it: desired rows in, learned routes out. Stopping withdraws first.
pub(crate) fn start(
    driver: &Driver,
    import: &[AllowedPrefix],
    (restarting, bfd): (bool, Unit),
    (netlink, kernel): (Netlink, KernelRoutes),
    rows: (&Table<PeerRow>, &Table<AdvertRow>),
    learned: Arc<Writer<LearnedRoute>>,
    tasks: &mut Tasks,
) -> BgpNode {
    let allowed = |entry: &AllowedPrefix| tombolo_bgp::AllowedPrefix {
        prefix: entry.prefix.net(),
        min_len: entry.ge.unwrap_or(entry.prefix.prefix_len()),
        max_len: entry.le.unwrap_or(if entry.prefix.is_ipv4() { 32 } else { 128 }),
    };
    let settings = Settings {
        restarting,
        ways: Some(Ways { netlink, protocol: tombolo_tunnel::DEFAULT_PROTOCOL }),
        import: import.iter().map(allowed).collect(),
        jitter_seed: driver.seed,
        bfd: Some(bfd),
        ..Settings::default()
    };
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
    tasks.spawn("bgp/lost", lose(driver.clone(), node.lost_next_hops(), kernel));
    let (bgp, driver) = (node.clone(), driver.clone());
    tasks.spawn("bgp/export", async move {
        // End-of-RIB tells the routers to drop what they kept of the life before: not before all of it is planned.
        let complete = |all: &BTreeMap<&'static str, Progress>| {
            ["peers", "adverts", "frontends", "interfaces"].iter().all(|name| all.get(name).is_some_and(|p| p.pruned))
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
        if let Err(error) = bgp.shutdown("the agent was stopped").await {
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

/// A session as `tombolo bgp peers` prints it, one object for each family.
pub(crate) fn peer_json(peer: &InstancePeer) -> Vec<Value> {
    let state = &peer.state;
    let row = |family: &tombolo_bgp::FamilyState| {
        json!({
            "instance": peer.instance, "peer": state.name, "local_as": state.local_asn, "peer_as": state.peer_asn,
            "address": state.address, "state": state.state, "uptime_secs": state.established_secs,
            "family": family.family, "received": family.received, "accepted": family.accepted,
            "advertised": family.advertised, "stale": family.stale, "hold_time_secs": state.hold_time_secs,
            "last_error": state.last_error,
        })
    };
    state.families.iter().map(row).collect()
}

/// A route as `tombolo bgp routes` prints it.
pub(crate) fn route_json(row: &InstanceRoute) -> Value {
    let route = &row.route;
    json!({
        "instance": row.instance, "prefix": route.prefix, "peer": route.peer, "next_hop": route.next_hop,
        "best": route.best, "used": route.used, "stale": route.stale, "refused": route.refused,
        "attributes": route.attributes,
    })
}
