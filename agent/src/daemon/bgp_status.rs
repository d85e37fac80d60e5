//! The status of the sessions in the shape of `CiliumBGPNodeConfig`: what a control plane would write, as a table.

use super::drive::Driver;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tombolo_base::source::{Source, SourceState};
use tombolo_base::table::{Row, Table, Writer};
use tombolo_bgp::{Family, State};
use tombolo_bgp_node::{BgpNode, InstancePeer};
use tombolo_clustermesh::certificate::{date, unix_now};
use tombolo_topology::bgp::{NodeConfigRow, PeerRow, PeerStatus, RouteCount};

/// How often routes are counted; sessions that come or go are told at once.
const COUNT: Duration = Duration::from_secs(10);

/// Follows the sessions until cancelled.
pub(crate) async fn follow(
    driver: Driver,
    node: Arc<str>,
    bgp: BgpNode,
    wanted: Table<PeerRow>,
    writer: Writer<NodeConfigRow>,
) {
    let mut sessions = bgp.session_changes();
    let mut interval = tokio::time::interval(COUNT);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = driver.cancel.cancelled() => return,
            _ = interval.tick() => {}
            changed = sessions.changed() => if changed.is_err() { return },
        }
        let peers = bgp.peers().await.unwrap_or_default();
        let wanted = wanted.snapshot();
        let rows = rows(&node, &peers, |key| wanted.get(key).cloned(), unix_now());
        writer.commit(|txn| {
            txn.replace_source(&Source::Local, rows);
            txn.set_source(&Source::Local, SourceState::Initialized);
        });
    }
}

fn rows(
    node: &Arc<str>,
    peers: &[InstancePeer],
    wanted: impl Fn(&<PeerRow as Row>::Key) -> Option<PeerRow>,
    now: i64,
) -> Vec<NodeConfigRow> {
    let mut instances: BTreeMap<Arc<str>, NodeConfigRow> = BTreeMap::new();
    for peer in peers {
        let Some(row) = wanted(&(peer.instance.clone(), peer.state.name.as_str().into())) else { continue };
        let instance = instances.entry(peer.instance.clone()).or_insert_with(|| NodeConfigRow {
            source: Source::Local,
            node: node.clone(),
            name: peer.instance.clone(),
            local_asn: row.local_asn,
            router_id: row.router_id,
            peers: Vec::new(),
        });
        instance.peers.push(status(&row, peer, now));
    }
    instances.into_values().collect()
}

fn status(row: &PeerRow, peer: &InstancePeer, now: i64) -> PeerStatus {
    let state = &peer.state;
    let up = state.state == State::Established;
    let established = state.established_secs.filter(|_| up);
    let since = |secs: u64| date(now.saturating_sub(i64::try_from(secs).unwrap_or(i64::MAX)));
    let text = serde_json::to_value(state.state).ok();
    let count = |family: &tombolo_bgp::FamilyState| {
        let afi = match family.family {
            Family::Ipv4Unicast => "ipv4",
            Family::Ipv6Unicast => "ipv6",
            _ => return None,
        };
        let (received, advertised) = (family.received, family.advertised);
        Some(RouteCount { afi, safi: "unicast", received, advertised })
    };
    PeerStatus {
        name: row.peer.clone(),
        peer_address: (!state.address.is_unspecified()).then_some(state.address),
        peer_asn: state.peer_asn,
        peering_state: text.as_ref().and_then(|text| text.as_str()).unwrap_or_default().to_owned(),
        applied_hold_time_seconds: state.hold_time_secs.filter(|_| up),
        applied_keepalive_seconds: state.keepalive_secs.filter(|_| up),
        established_time: established.map(since),
        route_count: state.families.iter().filter_map(count).collect(),
    }
}
