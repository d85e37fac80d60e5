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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::net::{IpAddr, Ipv4Addr};
    use tombolo_base::reconcile::Target;
    use tombolo_bgp_node::Settings;
    use tombolo_topology::bgp::{Family as RowFamily, PeerTuning};

    const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 78, 1));
    const TOR: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 78, 2));

    fn row(asns: (u32, u32), port: u16, local: IpAddr, remote: IpAddr) -> PeerRow {
        PeerRow {
            source: Source::Planner,
            instance: "main".into(),
            name: format!("gateway@{remote}").into(),
            peer: "gateway".into(),
            peer_config: None,
            local_asn: asns.0,
            router_id: Ipv4Addr::from(asns.0),
            local_port: Some(port),
            address: remote,
            interface: None,
            unnumbered: false,
            range: None,
            port,
            asn: asns.1,
            local_address: Some(local),
            families: BTreeSet::from([RowFamily::Ipv4Unicast]),
            connect_retry_secs: 1,
            hold_time_secs: 9,
            keepalive_secs: 3,
            graceful_restart_secs: None,
            ebgp_multihop: 1,
            password: None,
            tuning: PeerTuning::default(),
        }
    }

    fn node(listen: IpAddr) -> BgpNode {
        let (_, learned) = Table::new();
        BgpNode::start(Settings { listen: vec![listen], ..Settings::default() }, learned)
    }

    #[tokio::test]
    async fn the_status_is_told_in_the_shape_of_ciliums_object() {
        let port = std::net::TcpListener::bind((NODE, 0)).unwrap().local_addr().unwrap().port();
        let wanted = row((65111, 65100), port, NODE, TOR);
        let of = |peers: &[InstancePeer]| {
            rows(&"n1".into(), peers, |key| (*key == wanted.key()).then(|| wanted.clone()), 1_800_000_000)
        };
        let bgp = node(NODE);
        bgp.peer_target().update(&wanted).await.unwrap();
        let down = of(&bgp.peers().await.unwrap());
        let peer = &down[0].peers[0];
        assert_eq!((&*peer.name, peer.peer_address, peer.peer_asn), ("gateway", Some(TOR), 65100));
        assert!(peer.established_time.is_none() && peer.applied_hold_time_seconds.is_none());

        let tor = node(TOR);
        tor.peer_target().update(&row((65100, 65111), port, TOR, NODE)).await.unwrap();
        let mut changes = bgp.session_changes();
        let up = async {
            loop {
                changes.changed().await.unwrap();
                let rows = of(&bgp.peers().await.unwrap());
                if rows[0].peers[0].established_time.is_some() {
                    return rows;
                }
            }
        };
        let up = tokio::time::timeout(Duration::from_secs(30), up).await.unwrap();
        let value = serde_json::to_value(&up[0]).unwrap();
        let at = |pointer: &str| value.pointer(pointer).cloned().unwrap_or_default();
        assert_eq!(
            (at("/node"), at("/localASN"), at("/routerID")),
            ("n1".into(), 65111.into(), "0.0.254.87".into())
        );
        assert_eq!(
            (at("/peers/0/peeringState"), at("/peers/0/peerASN")),
            ("established".into(), 65100.into())
        );
        assert_eq!(
            (at("/peers/0/appliedHoldTimeSeconds"), at("/peers/0/routeCount/0/afi")),
            (9.into(), "ipv4".into())
        );
        assert!(at("/peers/0/establishedTime").as_str().unwrap().starts_with("2027-01-15T"), "{value}");
        bgp.shutdown("done").await.unwrap();
    }
}
