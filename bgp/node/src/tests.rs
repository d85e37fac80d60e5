//! The adapter against a plain speaker over loopback TCP.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tombolo_base::rows::Rows;
use tombolo_base::source::SourceState;
use tombolo_base::table::Table;
use tombolo_bgp::{
    AllowedPrefix, Announcement, Event, Events, PeerConfig, Scope, Speaker, SpeakerConfig, SpeakerHandle,
};
use tombolo_topology::bgp::{
    AddPath, AdvertOrigin, BfdProfile, Family, LimitAction, ListenRange, MaxPrefixes, Password, PeerTuning,
    PolicyDocument, Role,
};

use super::*;

const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 77, 1));
const TOR: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 77, 2));

fn free_port() -> u16 {
    std::net::TcpListener::bind((NODE, 0)).unwrap().local_addr().unwrap().port()
}

fn peer_row(port: u16) -> PeerRow {
    PeerRow {
        source: Source::Planner,
        instance: "main".into(),
        name: "tor".into(),
        peer: "tor".into(),
        peer_config: None,
        local_asn: 65111,
        router_id: Ipv4Addr::new(10, 0, 0, 1),
        local_port: Some(port),
        address: TOR,
        interface: None,
        unnumbered: false,
        range: None,
        port,
        asn: 65100,
        local_address: Some(NODE),
        families: BTreeSet::from([Family::Ipv4Unicast, Family::Ipv6Unicast]),
        connect_retry_secs: 1,
        hold_time_secs: 9,
        keepalive_secs: 3,
        graceful_restart_secs: Some(60),
        ebgp_multihop: 1,
        password: None,
        tuning: PeerTuning::default(),
    }
}

fn advert(prefix: &str) -> AdvertRow {
    AdvertRow {
        source: Source::Planner,
        instance: "main".into(),
        peer: "tor".into(),
        prefix: prefix.parse().unwrap(),
        origin: AdvertOrigin::PodCidr,
        communities: BTreeSet::from([0xfde8_0001]),
        large_communities: BTreeSet::from([(65111, 1, 2)]),
        local_preference: None,
    }
}

async fn tor(port: u16) -> (SpeakerHandle, Events) {
    let mut config = SpeakerConfig::new(65100, Ipv4Addr::new(10, 0, 0, 2));
    config.listen = vec![SocketAddr::new(TOR, port)];
    let (speaker, events) = Speaker::start(config).await.unwrap();
    let mut peer = PeerConfig::new("node", NODE, 65111);
    peer.port = port;
    peer.local_address = Some(TOR);
    peer.families = tombolo_bgp::Family::ALL.to_vec();
    peer.graceful_restart.enabled = true;
    peer.timers.connect_retry = std::time::Duration::from_secs(1);
    speaker.add_peer(peer).await.unwrap();
    for (prefix, next_hop) in
        [("192.0.2.0/24", "10.9.9.9"), ("198.51.100.0/24", "10.9.9.9"), ("2001:db8::/48", "fd00::9")]
    {
        let announcement =
            Announcement { next_hop: Some(next_hop.parse().unwrap()), ..Announcement::default() };
        speaker.announce(Scope::All, prefix.parse().unwrap(), announcement).await.unwrap();
    }
    speaker.export_complete().await.unwrap();
    (speaker, events)
}

fn settings() -> Settings {
    Settings {
        import: vec![
            AllowedPrefix::exact("192.0.2.0/24".parse().unwrap()),
            AllowedPrefix::or_longer("2001:db8::/32".parse().unwrap()),
        ],
        listen: vec![NODE],
        ..Settings::default()
    }
}

async fn until(events: &mut Events, wanted: impl Fn(&Event) -> bool) -> Event {
    let search = async {
        loop {
            let event = events.next().await.expect("the speaker runs");
            if wanted(&event) {
                return event;
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), search).await.expect("the event comes")
}

#[tokio::test]
async fn rows_become_sessions_adverts_and_learned_routes() {
    let port = free_port();
    let (learned, writer) = Table::new();
    let bgp = BgpNode::start(settings(), writer);
    let (mut peers, mut adverts) = (bgp.peer_target(), bgp.advert_target());
    // An advert may come before its peer.
    adverts.update(&advert("10.1.1.0/24")).await.unwrap();
    peers.update(&peer_row(port)).await.unwrap();
    let source = Source::Peer("main".into());
    assert_eq!(learned.snapshot().source_state(&source), Some(SourceState::Pending));
    bgp.export_complete().await.unwrap();
    let mut changes = learned.changes();
    let (tor, mut events) = tor(port).await;
    let both = async {
        loop {
            let batch = changes.next().await;
            let complete = batch.snapshot.source_state(&source) == Some(SourceState::Initialized);
            if complete && batch.snapshot.len() == 2 {
                return batch.snapshot;
            }
        }
    };
    let snapshot = tokio::time::timeout(std::time::Duration::from_secs(30), both).await.unwrap();
    let rows: Vec<String> = snapshot
        .iter()
        .map(|row| format!("{} {:?}", row.prefix, row.next_hops.first().map(|hop| hop.via)))
        .collect();
    assert_eq!(rows, ["192.0.2.0/24 Some(10.9.9.9)", "2001:db8::/48 Some(fd00::9)"]);

    // The node's own next hop is a loopback address here, which the other side must not accept: what was sent is checked on this side.
    until(&mut events, |event| matches!(event, Event::EndOfRib { .. })).await;
    let routes = bgp.routes(RouteView::Advertised, None, RouteFilter::default()).await.unwrap();
    let sent: Vec<String> = routes
        .iter()
        .map(|row| {
            let attributes = &row.route.attributes;
            format!("{} {} {:?}", row.route.prefix, attributes.as_path, attributes.communities)
        })
        .collect();
    assert_eq!(sent, ["10.1.1.0/24 65111 [Community(4259840001)]"]);
    let state = &bgp.peers().await.unwrap()[0];
    assert_eq!((&*state.instance, state.state.families[0].accepted), ("main", 1));

    // A withdrawn route leaves the table; a pruned advert leaves the peer.
    tor.withdraw(Scope::All, "192.0.2.0/24".parse().unwrap()).await.unwrap();
    let gone = async { while changes.next().await.snapshot.len() != 1 {} };
    tokio::time::timeout(std::time::Duration::from_secs(30), gone).await.unwrap();
    adverts.prune(&Rows::new(), &BTreeSet::from([Source::Planner])).await.unwrap();
    assert_eq!(
        bgp.routes(RouteView::Advertised, None, RouteFilter::default()).await.unwrap().len(),
        1,
        "held sources keep theirs"
    );
    adverts.prune(&Rows::new(), &BTreeSet::new()).await.unwrap();
    assert_eq!(bgp.routes(RouteView::Advertised, None, RouteFilter::default()).await.unwrap().len(), 0);

    // Without peers an instance ends, and what it learned goes.
    peers.delete(&peer_row(port)).await.unwrap();
    let down = until(&mut events, |event| matches!(event, Event::PeerDown { .. })).await;
    assert!(matches!(down, Event::PeerDown { routes_kept: false, .. }), "{down:?}");
    assert_eq!((learned.snapshot().len(), learned.snapshot().source_state(&source)), (0, None));
    assert_eq!(bgp.peers().await.unwrap(), []);
}

#[tokio::test]
async fn a_changed_identity_starts_the_instance_anew() {
    let port = free_port();
    let (_learned, writer) = Table::new();
    let bgp = BgpNode::start(settings(), writer);
    let mut peers = bgp.peer_target();
    peers.update(&peer_row(port)).await.unwrap();
    let (_tor, mut events) = tor(port).await;
    until(&mut events, |event| matches!(event, Event::PeerUp { .. })).await;
    peers.update(&PeerRow { local_asn: 65112, ..peer_row(port) }).await.unwrap();
    let down = until(&mut events, |event| matches!(event, Event::PeerDown { .. })).await;
    let Event::PeerDown { reason, .. } = down else { panic!() };
    assert!(reason.contains("changed its AS"), "{reason}");
    assert_eq!(bgp.peers().await.unwrap()[0].state.local_asn, 65112);
    bgp.shutdown("done").await.unwrap();
}

#[tokio::test]
async fn dropping_the_node_is_a_plain_death() {
    let port = free_port();
    let (_learned, writer) = Table::new();
    let bgp = BgpNode::start(settings(), writer);
    bgp.peer_target().update(&peer_row(port)).await.unwrap();
    let (_tor, mut events) = tor(port).await;
    until(&mut events, |event| matches!(event, Event::PeerUp { .. })).await;
    drop(bgp);
    let down = until(&mut events, |event| matches!(event, Event::PeerDown { .. })).await;
    assert!(matches!(down, Event::PeerDown { routes_kept: true, .. }), "{down:?}");
}

#[tokio::test]
async fn a_port_in_use_is_said_plainly() {
    let taken = std::net::TcpListener::bind((NODE, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let (_learned, writer) = Table::new();
    let bgp = BgpNode::start(settings(), writer);
    let error = bgp.peer_target().update(&peer_row(port)).await.unwrap_err();
    assert!(error.contains("another BGP daemon") && error.contains(&port.to_string()), "{error}");
}

fn long_lived_restart_has_a_default_where_there_is_graceful_restart(row: &PeerRow) {
    let node = Settings { long_lived_secs: Some(7200), ..Settings::default() };
    let kept = |row: &PeerRow, settings: &Settings| {
        let long_lived = settings::peer_config(row, settings).unwrap().long_lived;
        long_lived.enabled.then(|| long_lived.stale_time_secs.values().copied().collect::<BTreeSet<u32>>())
    };
    assert_eq!(kept(row, &node), Some([3600].into()), "the peer's own");
    let mut plain = row.clone();
    plain.tuning.long_lived_secs = None;
    assert_eq!((kept(&plain, &node), kept(&plain, &Settings::default())), (Some([7200].into()), None));
    plain.graceful_restart_secs = None;
    assert_eq!(kept(&plain, &node), None, "it is void without graceful restart");
}

/// Starts the instance as soon as the life before has let go of its port.
async fn start_again(bgp: &BgpNode, port: u16) {
    let started = async {
        while let Err(error) = bgp.peer_target().update(&peer_row(port)).await {
            assert!(error.contains("in use"), "{error}");
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), started).await.unwrap();
}

#[tokio::test]
async fn a_shutdown_outlives_the_process_until_it_is_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings { shutdowns: Some(folder.path().join("shutdowns.json")), ..settings() };
    let port = free_port();
    let (_tor, mut events) = tor(port).await;
    let (_learned, writer) = Table::new();
    let bgp = BgpNode::start(settings.clone(), writer);
    bgp.peer_target().update(&peer_row(port)).await.unwrap();
    until(&mut events, |event| matches!(event, Event::PeerUp { .. })).await;
    let name = || Some(PeerName("main/tor".to_owned()));
    let done = bgp.operate(name(), PeerAction::Shutdown { text: "new cable".into() }).await.unwrap();
    assert_eq!((done.len(), &done[0].error), (1, &None));
    until(&mut events, |event| matches!(event, Event::PeerDown { .. })).await;
    // As if the process had been killed.
    drop(bgp);

    let (_learned, writer) = Table::new();
    let bgp = BgpNode::start(settings.clone(), writer);
    start_again(&bgp, port).await;
    let peer = bgp.peers().await.unwrap().remove(0);
    assert_eq!(peer.state.shutdown.as_deref(), Some("new cable"));
    assert!(peer.shutdown_since_unix_secs.is_some());
    // The other side connects every second; three times as long without a session is the answer.
    let up = until(&mut events, |event| matches!(event, Event::PeerUp { .. }));
    assert!(tokio::time::timeout(std::time::Duration::from_secs(3), up).await.is_err());
    bgp.operate(name(), PeerAction::Start).await.unwrap();
    until(&mut events, |event| matches!(event, Event::PeerUp { .. })).await;
    drop(bgp);

    let (_learned, writer) = Table::new();
    let bgp = BgpNode::start(settings, writer);
    start_again(&bgp, port).await;
    let peer = bgp.peers().await.unwrap().remove(0);
    assert_eq!((peer.state.shutdown, peer.shutdown_since_unix_secs), (None, None));
}

#[test]
fn everything_a_row_says_reaches_the_speakers_settings() {
    let mut row = peer_row(179);
    row.password = Password::new("hunter2");
    row.interface = Some("eth1".into());
    row.tuning = PeerTuning {
        policy: Some("tors".into()),
        import: Some(PolicyDocument::new(r#"{"name":"i","default":"accept"}"#)),
        export: Some(PolicyDocument::new(r#"{"name":"e"}"#)),
        bfd: Some(BfdProfile {
            transmit_ms: 50,
            receive_ms: 60,
            echo_receive_ms: 0,
            detect_multiplier: 4,
            passive: true,
        }),
        max_prefixes: Some(MaxPrefixes { limit: 7, warning_percent: 80, action: LimitAction::Restart(9) }),
        role: Some((Role::Customer, true)),
        add_path: Some(AddPath { receive: true, send: Some(2) }),
        long_lived_secs: Some(3600),
        max_paths: Some(2),
        gtsm_hops: Some(1),
        group: Some("g".into()),
        extended_next_hop: Some(true),
        accept_blackhole: true,
        reflector_client: true,
        route_server_client: true,
        transit: true,
        passive: true,
        extended_messages: true,
        any_first_as: true,
        next_hop_ipv4: Some(Ipv4Addr::new(1, 2, 3, 4)),
        next_hop_ipv6: Some("fd00::1".parse().unwrap()),
    };
    let config = settings::peer_config(&row, &Settings::default()).unwrap();
    assert_eq!(config.transport.md5, Some(tombolo_bgp::Secret::new("hunter2".to_owned())));
    assert_eq!((config.transport.gtsm_hops, config.interface.as_deref()), (Some(1), Some("eth1")));
    let bfd = config.bfd.as_ref().unwrap();
    assert_eq!(
        (bfd.min_tx.as_millis(), bfd.min_rx.as_millis(), bfd.detect_mult, bfd.passive),
        (50, 60, 4, true)
    );
    assert_eq!(config.import_policy.as_ref().unwrap().default, tombolo_bgp::policy::Fallback::Accept);
    assert_eq!(config.export_policy.as_ref().unwrap().name, "e");
    assert_eq!(config.group.as_deref(), Some("g"));
    long_lived_restart_has_a_default_where_there_is_graceful_restart(&row);
    let limit = config.prefix_limits[0];
    assert_eq!((config.prefix_limits.len(), limit.max, limit.warning_percent), (2, 7, 80));
    assert_eq!(limit.action, tombolo_bgp::LimitAction::Restart { after_secs: 9 });
    assert_eq!((config.role, config.strict_role), (Some(tombolo_bgp::Role::Customer), true));
    assert!(config.add_path.receive && config.long_lived.enabled);
    let two = std::num::NonZeroU8::new(2).unwrap();
    assert_eq!(config.add_path.send, Some(tombolo_bgp::PathCount::Best(two)));
    assert!(config.long_lived.stale_time_secs.values().all(|secs| *secs == 3600));
    assert!(
        config.passive && config.extended_messages && !config.enforce_first_as && config.extended_next_hop
    );
    assert!(
        config.accept_blackhole
            && config.reflector_client
            && config.route_server_client
            && config.export_learned
    );
    assert_eq!((config.next_hop_ipv4, config.next_hop_ipv6.is_some()), (row.tuning.next_hop_ipv4, true));
    // The API's retry time is the least, the speaker's the most before RFC 4271's jitter of 0.75 to 1.
    row.connect_retry_secs = 120;
    let retry = settings::peer_config(&row, &Settings::default()).unwrap().timers.connect_retry;
    assert!(retry.mul_f64(0.75).as_secs() >= 120 && retry.as_secs() < 240, "{retry:?}");
    row.unnumbered = true;
    row.address = std::net::Ipv6Addr::UNSPECIFIED.into();
    assert!(settings::peer_config(&row, &Settings::default()).unwrap().unnumbered);
    row.tuning.export = Some(PolicyDocument::new("{"));
    assert!(settings::peer_config(&row, &Settings::default()).unwrap_err().to_string().contains("policy"));
}

#[tokio::test]
async fn whoever_connects_from_a_range_is_a_peer_and_hears_what_is_for_all() {
    let port = free_port();
    let (_learned, writer) = Table::new();
    let bgp = BgpNode::start(settings(), writer);
    let (mut peers, mut adverts) = (bgp.peer_target(), bgp.advert_target());
    let mut changes = bgp.session_changes();
    let range =
        ListenRange { prefix: "127.0.77.0/24".parse().unwrap(), limit: 2, asns: vec![(65100, 65199)] };
    let row =
        PeerRow { name: "rack".into(), range: Some(range), asn: 0, local_address: None, ..peer_row(port) };
    peers.update(&row).await.unwrap();
    adverts.update(&AdvertRow { peer: "".into(), ..advert("10.1.1.0/24") }).await.unwrap();
    bgp.export_complete().await.unwrap();
    changes.mark_unchanged();
    let (_tor, mut events) = tor(port).await;
    until(&mut events, |event| matches!(event, Event::EndOfRib { .. })).await;
    changes.changed().await.unwrap();
    let all = bgp.peers().await.unwrap();
    assert_eq!((all.len(), all[0].state.name.as_str()), (1, "rack-127.0.77.2"));
    let sent = bgp.routes(RouteView::Advertised, None, RouteFilter::default()).await.unwrap();
    assert_eq!(sent.iter().map(|row| row.route.prefix.to_string()).collect::<Vec<_>>(), ["10.1.1.0/24"]);
    peers.delete(&row).await.unwrap();
    until(&mut events, |event| matches!(event, Event::PeerDown { .. })).await;
}
