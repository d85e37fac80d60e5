//! Devices, routes and WireGuard against a real kernel, in private network namespaces. Needs root and /dev/net/tun: without
//! them the tests fail.

#![cfg(test)]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use tombolo_base::clock::Moment;
use tombolo_base::ids::ClusterName;
use tombolo_base::reconcile::{Change, Reconciler, Target};
use tombolo_base::rows::Rows;
use tombolo_base::source::{Source, SourceState};
use tombolo_base::table::{Row, Table};
use tombolo_netlink::{
    AddressOptions, Family, LinkSettings, NetNs, Netlink, NextHop, Route, RouteFilter, RouteKind, Rule,
    VethEnd, Watch,
};
use tombolo_topology::{LearnedNextHop, RouteEntry, RouteOrigin, WireguardPeer};
use tombolo_tunnel::mtu::{Underlay, inside_wireguard};
use tombolo_tunnel::{
    Backend, BackendChoice, DEFAULT_METRIC, DEFAULT_PORT, DEFAULT_PROTOCOL, DeviceConfig, Disturbance,
    Disturbances, FWMARK, HOST_DEVICE, KernelRoutes, RouteSettings, Unit, VXLAN_DEVICE, VXLAN_MAC,
    VxlanConfig, WIREGUARD_DEVICE, Wireguard, WireguardConfig, devices,
};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> ipnet::IpNet {
    text.parse().unwrap()
}

const UP: LinkSettings = LinkSettings {
    name: None,
    mtu: None,
    mac: None,
    no_arp: None,
    ipv6_link_local: Some(false),
    controller: None,
    up: Some(true),
};

/// A node: a namespace with one link to the other node, addresses of both families.
struct Node {
    ns: NetNs,
    netlink: Netlink,
    underlay: [IpAddr; 2],
    inner: [IpAddr; 2],
    directory: TempDir,
}

/// Two nodes on one link.
async fn nodes() -> (Node, Node) {
    let node = |n: u8| {
        let ns = NetNs::anonymous().expect("making a network namespace needs root");
        let netlink = Netlink::in_namespace(&ns).unwrap();
        let underlay = [ip(&format!("192.0.2.{n}")), ip(&format!("2001:db8::{n}"))];
        let inner = [ip(&format!("10.1.{n}.1")), ip(&format!("fd00:10:1:{n}::1"))];
        Node { ns, netlink, underlay, inner, directory: tempfile::tempdir().unwrap() }
    };
    let (a, b) = (node(1), node(2));
    let far = VethEnd { namespace: Some(b.ns.clone()), ..VethEnd::new("eth1") };
    let (near, far) = a.netlink.create_veth(&VethEnd::new("eth1"), &far).await.unwrap();
    for (node, link) in [(&a, near.index), (&b, far.index)] {
        node.netlink.set_up(1).await.unwrap();
        node.netlink.set_link(link, &UP).await.unwrap();
        for (address, length) in node.underlay.iter().zip([24, 64]) {
            let address = ipnet::IpNet::new(*address, length).unwrap();
            let options = AddressOptions { no_dad: true, ..AddressOptions::default() };
            node.netlink.add_address(link, address, options).await.unwrap();
        }
    }
    (a, b)
}

/// A test that fails must not leave its unit behind.
impl Drop for Node {
    fn drop(&mut self) {
        if let Some(pid) = self.wireguard_config().unit.pid() {
            let killed =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            eprintln!("the unit {pid} of node {} was still at work: {killed:?}", self.number());
        }
    }
}

impl Node {
    fn device_config(&self, vxlan: Option<u32>) -> DeviceConfig {
        DeviceConfig {
            vxlan: vxlan.map(|mtu| VxlanConfig { port: 8472, mtu }),
            internal: self.inner.to_vec(),
            host_mtu: 1450,
        }
    }

    fn wireguard_config(&self) -> WireguardConfig {
        let file = |name: &str| self.directory.path().join(name);
        WireguardConfig {
            interface: WIREGUARD_DEVICE.into(),
            port: DEFAULT_PORT,
            fwmark: FWMARK,
            mtu: inside_wireguard(1500, Underlay::V6).into(),
            key_file: file("wireguard.key"),
            backend: BackendChoice::Userspace,
            unit: Unit {
                program: env!("CARGO_BIN_EXE_tombolo-tunnel-test-unit").into(),
                arguments: Vec::new(),
                socket: file("run/wireguard.sock"),
                pid_file: file("run/wireguard.pid"),
                log_file: file("run/wireguard.log"),
            },
        }
    }

    async fn wireguard(&self) -> Wireguard {
        Wireguard::ensure(self.wireguard_config(), self.netlink.clone()).await.unwrap_or_else(|error| {
            panic!(
                "{error}: {}",
                std::fs::read_to_string(self.directory.path().join("run/wireguard.log")).unwrap_or_default()
            )
        })
    }

    /// The row by which the other node knows this one.
    fn peer(&self, wireguard: &Wireguard, underlay: usize) -> WireguardPeer {
        let allowed = [format!("10.1.{0}.0/24", self.number()), format!("fd00:10:1:{0}::/64", self.number())];
        WireguardPeer {
            source: Source::Local,
            key: wireguard.public_key(),
            cluster: ClusterName::new("east").unwrap(),
            node: format!("n{}", self.number()).as_str().into(),
            endpoint: SocketAddr::new(self.underlay[underlay], DEFAULT_PORT),
            allowed_ips: allowed.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    fn number(&self) -> u8 {
        match self.underlay[0] {
            IpAddr::V4(v4) => v4.octets()[3],
            IpAddr::V6(_) => unreachable!("the first is IPv4"),
        }
    }

    /// Inner addresses on the host pair, and the way to the other node's through WireGuard.
    async fn route_through_wireguard(&self, other: &Node) {
        devices::ensure(&self.netlink, &self.device_config(None)).await.unwrap();
        let wg = self.netlink.link(WIREGUARD_DEVICE).await.unwrap().index;
        for (to, from) in other.inner.iter().zip(self.inner) {
            let route = Route::unicast(ipnet::IpNet::from(*to), vec![NextHop::link(wg)]);
            self.netlink.replace_route(&Route { source: Some(from), ..route }).await.unwrap();
        }
    }

    async fn packets_on_the_link(&self) -> u64 {
        self.netlink.link("eth1").await.unwrap().stats.tx_packets
    }
}

/// One datagram of `size` bytes there and one back; true if both arrive.
fn exchange(from: &Node, to: &Node, family: usize, size: usize) -> bool {
    let server = to.ns.run(|| UdpSocket::bind((to.inner[family], 0)).unwrap()).unwrap();
    let client = from.ns.run(|| UdpSocket::bind((from.inner[family], 0)).unwrap()).unwrap();
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    }
    let mut buffer = vec![0; 2000];
    client.send_to(&vec![7; size], server.local_addr().unwrap()).is_ok()
        && server
            .recv_from(&mut buffer)
            .is_ok_and(|(length, peer)| length == size && server.send_to(b"back", peer).is_ok())
        && client.recv(&mut buffer).is_ok_and(|length| &buffer[..length] == b"back")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_devices_are_made_changed_and_removed() {
    let (a, _b) = nodes().await;
    let made = devices::ensure(&a.netlink, &a.device_config(Some(1450))).await.unwrap();
    let vxlan = made.vxlan.unwrap();
    assert_eq!((vxlan.mtu, vxlan.mac, vxlan.up, vxlan.no_arp), (1450, Some(VXLAN_MAC), true, true));
    assert!(made.host.up && made.net.up && made.host.no_arp);
    let addresses = a.netlink.addresses(Some(made.host.index)).await.unwrap();
    assert_eq!(addresses.iter().map(|a| a.address.addr()).collect::<Vec<_>>(), a.inner);
    assert_eq!(a.netlink.sysctl("net/ipv4/ip_forward").await.unwrap(), "1");
    assert_eq!(a.netlink.sysctl("net/ipv6/conf/all/forwarding").await.unwrap(), "1");

    let mut changed = a.device_config(Some(1430));
    changed.internal = vec![ip("10.9.9.1"), a.inner[1]];
    let again = devices::ensure(&a.netlink, &changed).await.unwrap();
    assert_eq!(again.vxlan.as_ref().map(|link| (link.index, link.mtu)), Some((vxlan.index, 1430)));
    assert_eq!(again.host.index, made.host.index);
    let addresses = a.netlink.addresses(Some(made.host.index)).await.unwrap();
    assert_eq!(addresses.iter().map(|a| a.address.addr()).collect::<Vec<_>>(), changed.internal);

    changed.vxlan = Some(VxlanConfig { port: 4789, mtu: 1430 });
    let moved = devices::ensure(&a.netlink, &changed).await.unwrap().vxlan.unwrap();
    assert_eq!(moved.vxlan.unwrap().port, 4789);
    changed.vxlan = None;
    assert!(devices::ensure(&a.netlink, &changed).await.unwrap().vxlan.is_none());
    assert!(a.netlink.find_link(VXLAN_DEVICE).await.unwrap().is_none(), "direct mode leaves no VXLAN device");
    devices::remove(&a.netlink).await.unwrap();
    devices::remove(&a.netlink).await.unwrap();
    assert!(a.netlink.find_link(HOST_DEVICE).await.unwrap().is_none());
}

fn learned(prefix: &str, via: &[&str]) -> RouteEntry {
    let hop = |via: &&str| LearnedNextHop::new(ip(via), None);
    RouteEntry {
        source: Source::Peer("tor".into()),
        prefix: prefix.parse().unwrap(),
        origin: RouteOrigin::Bgp,
        next_hops: via.iter().map(hop).collect(),
        device: None,
        source_address: None,
        mtu: Some(1400),
    }
}

fn overlay(prefix: &str, source: IpAddr) -> RouteEntry {
    RouteEntry {
        source: Source::Cluster(ClusterName::new("west").unwrap()),
        origin: RouteOrigin::Overlay,
        next_hops: BTreeSet::new(),
        device: Some(VXLAN_DEVICE.into()),
        source_address: Some(source),
        ..learned(prefix, &[])
    }
}

/// The end of this node's own pod prefix.
fn own(prefix: &str) -> RouteEntry {
    RouteEntry { source: Source::Manifests, origin: RouteOrigin::Own, mtu: None, ..learned(prefix, &[]) }
}

/// Carries out all that the reconciler asks for now.
async fn drive<R: Row>(reconciler: &mut Reconciler<R>, target: &mut impl Target<R>) -> Vec<String> {
    let now = Moment::default();
    let mut errors = Vec::new();
    while let Some(action) = reconciler.next(now, 3) {
        let outcomes = action.carry_out(target).await;
        errors.extend(outcomes.iter().filter_map(|outcome| outcome.clone().err()));
        reconciler.finish(outcomes, now);
    }
    errors
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_follow_their_rows_and_only_ours_are_pruned() {
    let (a, _b) = nodes().await;
    devices::ensure(&a.netlink, &a.device_config(Some(1450))).await.unwrap();
    let eth1 = a.netlink.link("eth1").await.unwrap().index;
    let leftover = |destination: &str, hops| Route {
        protocol: DEFAULT_PROTOCOL,
        metric: DEFAULT_METRIC,
        ..Route::unicast(net(destination), hops)
    };
    // Of an earlier life: one a peer's, one another cluster's; and an administrator's own.
    let of_peer = leftover("10.77.0.0/16", vec![NextHop::on_link(ip("192.0.2.2"), eth1)]);
    let of_cluster = leftover("fd00:77::/32", vec![NextHop::link(eth1)]);
    let foreign = Route::unicast(net("10.2.0.0/16"), vec![NextHop::link(eth1)]);
    for route in [&of_peer, &of_cluster, &foreign] {
        a.netlink.replace_route(route).await.unwrap();
    }

    let (table, writer) = Table::<RouteEntry>::new();
    let mut changes = table.changes();
    let mut target = KernelRoutes::new(a.netlink.clone(), RouteSettings::default());
    let mut reconciler = Reconciler::new(1);
    let peer = Source::Peer("tor".into());
    let west = Source::Cluster(ClusterName::new("west").unwrap());
    writer.set_source(&peer, SourceState::Pending);
    writer.set_source(&west, SourceState::Initialized);
    let rows = [
        learned("10.2.0.0/16", &["192.0.2.2"]),
        learned("fd00:20::/32", &["2001:db8::2", "2001:db8::3"]),
        overlay("10.3.1.0/24", a.inner[0]),
        overlay("fd00:10:3:1::/64", a.inner[1]),
    ];
    for row in &rows {
        writer.upsert(row.clone());
    }
    reconciler.observe(changes.drain().unwrap(), Moment::default());
    assert_eq!(drive(&mut reconciler, &mut target).await, Vec::<String>::new());

    let ours = RouteFilter { protocol: Some(DEFAULT_PROTOCOL), ..RouteFilter::default() };
    let destinations =
        |routes: &[Route]| routes.iter().map(|r| r.destination.to_string()).collect::<Vec<_>>();
    let there = a.netlink.routes(ours).await.unwrap();
    assert_eq!(
        destinations(&there),
        ["10.2.0.0/16", "10.3.1.0/24", "10.77.0.0/16", "fd00:10:3:1::/64", "fd00:20::/32"],
        "the other cluster's leftover is pruned, the peer's is held"
    );
    let ecmp = there.iter().find(|r| r.destination == net("fd00:20::/32")).unwrap();
    assert_eq!((ecmp.next_hops.len(), ecmp.mtu, ecmp.metric), (2, Some(1400), DEFAULT_METRIC));
    let overlaid = there.iter().find(|r| r.destination == net("10.3.1.0/24")).unwrap();
    assert_eq!(overlaid.source, Some(a.inner[0]));
    assert_eq!(overlaid.next_hops[0].link, Some(a.netlink.link(VXLAN_DEVICE).await.unwrap().index));

    writer.set_source(&peer, SourceState::Initialized);
    writer.upsert(learned("fd00:20::/32", &["2001:db8::3"]));
    writer.remove(&rows[0].prefix);
    reconciler.observe(changes.drain().unwrap(), Moment::default());
    assert_eq!(drive(&mut reconciler, &mut target).await, Vec::<String>::new());
    let there = a.netlink.routes(ours).await.unwrap();
    assert_eq!(destinations(&there), ["10.3.1.0/24", "fd00:10:3:1::/64", "fd00:20::/32"]);
    assert_eq!(there[2].next_hops.iter().map(|hop| hop.via).collect::<Vec<_>>(), [Some(ip("2001:db8::3"))]);
    let all = a.netlink.routes(RouteFilter::default()).await.unwrap();
    assert!(all.contains(&foreign.normalised()), "the administrator's route to the same prefix stands");

    let nowhere = RouteEntry { device: Some("missing0".into()), ..overlay("10.4.0.0/16", a.inner[0]) };
    let error = target.update(&nowhere).await.unwrap_err();
    assert!(error.contains("missing0"), "{error}");
}

/// RFC 8950 over an unnumbered link: IPv4 and IPv6 by the link-local address of the neighbour, found again after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn both_families_are_routed_over_link_local_next_hops() {
    let (a, _b) = nodes().await;
    let hop = LearnedNextHop::new(ip("fe80::2"), Some("eth1".into()));
    let mut target = KernelRoutes::new(a.netlink.clone(), RouteSettings::default());
    let rows = ["10.50.0.0/24", "fd00:50::/64"].map(|prefix| RouteEntry {
        next_hops: BTreeSet::from([hop.clone()]),
        mtu: None,
        ..learned(prefix, &[])
    });
    for row in &rows {
        target.update(row).await.unwrap();
    }
    let there = target.next_hops().await.unwrap();
    for row in &rows {
        assert_eq!(there[&row.prefix], row.next_hops);
    }
    for row in &rows {
        target.delete(row).await.unwrap();
    }
    assert!(target.next_hops().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn next_hops_share_by_weight_and_another_share_is_another_route() {
    let (a, _b) = nodes().await;
    let mut target = KernelRoutes::new(a.netlink.clone(), RouteSettings::default());
    for (prefix, vias) in
        [("10.50.0.0/24", ["192.0.2.2", "192.0.2.3"]), ("fd00:50::/64", ["2001:db8::2", "2001:db8::3"])]
    {
        let weighed = |weights: [u16; 2]| RouteEntry {
            next_hops: std::iter::zip(vias, weights)
                .map(|(via, weight)| LearnedNextHop { weight, ..LearnedNextHop::new(ip(via), None) })
                .collect(),
            ..learned(prefix, &[])
        };
        for weights in [[26, 256], [256, 26], [1, 1]] {
            let row = weighed(weights);
            target.update(&row).await.unwrap();
            assert_eq!(target.next_hops().await.unwrap()[&row.prefix], row.next_hops, "{weights:?}");
            let wanted = |row: &RouteEntry| [row.clone()].into_iter().collect();
            assert_eq!(target.audit(&wanted(&row)).await.unwrap(), Some(BTreeSet::new()));
            let other = weighed([2, 1]);
            assert_eq!(target.audit(&wanted(&other)).await.unwrap(), Some(BTreeSet::from([row.prefix])));
        }
        target.delete(&weighed([1, 1])).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_pod_has_is_unreachable() {
    let (a, _) = nodes().await;
    let mut target = KernelRoutes::new(a.netlink.clone(), RouteSettings::default());
    let ours = RouteFilter { protocol: Some(DEFAULT_PROTOCOL), ..RouteFilter::default() };
    let rows = ["10.9.0.0/24", "fd00:9::/64"].map(own);
    for row in &rows {
        target.update(row).await.unwrap();
    }
    let there = a.netlink.routes(ours).await.unwrap();
    assert_eq!(there.len(), 2);
    assert!(there.iter().all(|route| route.kind == RouteKind::Unreachable), "{there:?}");
    let wanted = rows.iter().cloned().collect();
    assert_eq!(target.audit(&wanted).await.unwrap(), Some(BTreeSet::new()), "found again as asked for");
    for row in &rows {
        target.delete(row).await.unwrap();
    }
    assert_eq!(a.netlink.routes(ours).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_and_devices_that_others_take_away_come_back() {
    let (a, _b) = nodes().await;
    devices::ensure(&a.netlink, &a.device_config(Some(1450))).await.unwrap();
    let (table, writer) = Table::<RouteEntry>::new();
    let mut changes = table.changes();
    let mut target = KernelRoutes::new(a.netlink.clone(), RouteSettings::default());
    let mut reconciler = Reconciler::new(1);
    let names = ["eth1", VXLAN_DEVICE].map(str::to_owned).into();
    let mut disturbances = Disturbances::listen(a.netlink.clone(), RouteSettings::default(), names).await;
    let routes = Disturbance { routes: true, devices: false };
    let everything = Disturbance { routes: true, devices: true };
    let rows = [
        learned("10.2.0.0/16", &["192.0.2.2"]),
        learned("fd00:20::/32", &["2001:db8::2", "2001:db8::3"]),
        overlay("10.3.1.0/24", a.inner[0]),
        overlay("fd00:10:3:1::/64", a.inner[1]),
    ];
    writer.replace_source(&Source::Peer("tor".into()), rows[..2].to_vec());
    writer.replace_source(&rows[2].source, rows[2..].to_vec());
    writer.upsert(learned("10.5.0.0/16", &["192.0.2.3"]));
    reconciler.observe(changes.drain().unwrap(), Moment::default());
    drive(&mut reconciler, &mut target).await;
    writer.remove(&"10.5.0.0/16".parse().unwrap());
    writer.upsert(learned("fd00:20::/32", &["2001:db8::3", "2001:db8::4"]));
    reconciler.observe(changes.drain().unwrap(), Moment::default());
    assert_eq!(drive(&mut reconciler, &mut target).await, Vec::<String>::new());
    let is_wanted = |prefix| table.snapshot().get(&prefix).is_some();
    let quiet = tokio::time::timeout(Duration::from_millis(500), disturbances.next(is_wanted)).await;
    assert!(quiet.is_err(), "what the reconciler writes and deletes itself is no disturbance: {quiet:?}");
    let sorted = |keys: Vec<tombolo_base::prefix::Prefix>| keys.into_iter().collect::<BTreeSet<_>>();
    assert_eq!(target.audit(reconciler.wanted()).await.unwrap(), Some(sorted(vec![])));

    // Two routes are deleted by hand in one burst, of both families.
    for row in [&rows[0], &rows[1]] {
        let there = Route {
            protocol: DEFAULT_PROTOCOL,
            metric: DEFAULT_METRIC,
            ..Route::unicast(row.prefix.net(), vec![])
        };
        assert!(a.netlink.delete_route(&there).await.unwrap());
    }
    assert_eq!(disturbances.next(is_wanted).await, routes);
    let missing = target.audit(reconciler.wanted()).await.unwrap().unwrap();
    assert_eq!(missing, sorted(vec![rows[0].prefix, rows[1].prefix]), "the cost follows the change");
    reconciler.recheck(missing);
    assert_eq!(drive(&mut reconciler, &mut target).await, Vec::<String>::new());
    assert_eq!(target.audit(reconciler.wanted()).await.unwrap(), Some(sorted(vec![])));

    // A link that falls takes its IPv4 routes along without a word about them.
    let eth1 = a.netlink.link("eth1").await.unwrap().index;
    a.netlink.set_link(eth1, &LinkSettings { up: Some(false), ..UP }).await.unwrap();
    assert_eq!(disturbances.next(is_wanted).await, everything);
    a.netlink.set_link(eth1, &UP).await.unwrap();
    let options = AddressOptions { no_dad: true, ..AddressOptions::default() };
    let address = ipnet::IpNet::new(a.underlay[1], 64).unwrap();
    a.netlink.add_address(eth1, address, options).await.unwrap();
    assert_eq!(disturbances.next(is_wanted).await, everything);
    let missing = target.audit(reconciler.wanted()).await.unwrap().unwrap();
    assert!(missing.contains(&rows[0].prefix));
    reconciler.recheck(missing);
    assert_eq!(drive(&mut reconciler, &mut target).await, Vec::<String>::new());

    // A device that is deleted is made again; its routes follow.
    a.netlink.delete_link(VXLAN_DEVICE).await.unwrap();
    assert_eq!(disturbances.next(is_wanted).await, everything);
    devices::ensure(&a.netlink, &a.device_config(Some(1450))).await.unwrap();
    let missing = target.audit(reconciler.wanted()).await.unwrap().unwrap();
    assert_eq!(missing, sorted(vec![rows[2].prefix, rows[3].prefix]));
    reconciler.recheck(missing);
    assert_eq!(drive(&mut reconciler, &mut target).await, Vec::<String>::new());
    assert_eq!(target.audit(reconciler.wanted()).await.unwrap(), Some(sorted(vec![])));
    let vias = |hops: &BTreeSet<LearnedNextHop>| hops.iter().map(|hop| hop.via).collect::<Vec<_>>();
    let left = target.next_hops().await.unwrap();
    assert_eq!(vias(&left[&rows[1].prefix]), [ip("2001:db8::3"), ip("2001:db8::4")]);
    assert!(left[&rows[2].prefix].is_empty(), "an overlay route has no gateway");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_units_carry_both_families_over_both_underlays() {
    let (a, b) = nodes().await;
    let (mut wg_a, mut wg_b) = (a.wireguard().await, b.wireguard().await);
    assert_eq!(wg_a.backend(), Backend::Userspace);
    a.route_through_wireguard(&b).await;
    b.route_through_wireguard(&a).await;
    for underlay in 0..2 {
        wg_a.update(&b.peer(&wg_b, underlay)).await.unwrap();
        wg_b.update(&a.peer(&wg_a, underlay)).await.unwrap();
        for family in 0..2 {
            let headers = if family == 0 { 28 } else { 48 };
            let largest = usize::from(inside_wireguard(1500, Underlay::V6)) - headers;
            assert!(exchange(&a, &b, family, 100), "underlay {underlay}, family {family}");
            assert!(
                exchange(&b, &a, family, largest),
                "the largest packet, underlay {underlay}, family {family}"
            );
        }
        let state = wg_a.state().await.unwrap();
        let peer = &state.peers[&wg_b.public_key()];
        assert_eq!(peer.endpoint, Some(SocketAddr::new(b.underlay[underlay], DEFAULT_PORT)));
        assert!(peer.rx_bytes > 1000 && peer.tx_bytes > 500 && peer.last_handshake.is_some(), "{peer:?}");
    }
    assert_eq!(wg_a.state().await.unwrap().fwmark, FWMARK);

    // The mark is on the packets: a rule that matches it can stop them.
    for family in [Family::V4, Family::V6] {
        a.netlink
            .add_rule(&Rule { mark: Some((FWMARK, u32::MAX)), ..Rule::new(family, 50, 99) })
            .await
            .unwrap();
    }
    for any in ["0.0.0.0/0", "::/0"] {
        let hole = Route { table: 99, kind: RouteKind::Blackhole, ..Route::unicast(net(any), vec![]) };
        a.netlink.replace_route(&hole).await.unwrap();
    }
    let before = a.packets_on_the_link().await;
    let sender = a.ns.run(|| UdpSocket::bind((a.inner[0], 0)).unwrap()).unwrap();
    for _ in 0..20 {
        sender.send_to(b"held", (b.inner[0], 9)).unwrap();
    }
    assert_eq!(a.packets_on_the_link().await, before, "marked packets take the rule's way");

    let (unit_a, unit_b) = (a.wireguard_config().unit, b.wireguard_config().unit);
    wg_a.remove().await.unwrap();
    wg_b.remove().await.unwrap();
    for (node, unit) in [(&a, unit_a), (&b, unit_b)] {
        assert_eq!((unit.pid(), unit.socket.exists(), unit.pid_file.exists()), (None, false, false));
        assert!(node.netlink.find_link(WIREGUARD_DEVICE).await.unwrap().is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unit_outlives_its_agent_and_is_found_again_without_a_new_session() {
    let (a, b) = nodes().await;
    let (mut wg_a, mut wg_b) = (a.wireguard().await, b.wireguard().await);
    a.route_through_wireguard(&b).await;
    b.route_through_wireguard(&a).await;
    wg_a.update(&b.peer(&wg_b, 1)).await.unwrap();
    wg_b.update(&a.peer(&wg_a, 1)).await.unwrap();
    assert!(exchange(&a, &b, 0, 100));
    let unit = a.wireguard_config().unit;
    let pid = unit.pid().unwrap();
    let parent = parent_of(pid);
    assert_ne!(parent, std::process::id().cast_signed(), "the unit is no child of the agent");
    let before = wg_a.state().await.unwrap();

    // The agent is gone; the unit works on.
    drop(wg_a);
    assert!(exchange(&b, &a, 1, 100));

    let mut again = a.wireguard().await;
    assert_eq!(unit.pid(), Some(pid), "found, not started anew");
    let (table, writer) = Table::<WireguardPeer>::new();
    let mut changes = table.changes();
    writer.replace_source(&Source::Local, [b.peer(&wg_b, 1)]);
    let mut reconciler = Reconciler::new(1);
    reconciler.observe(changes.drain().unwrap(), Moment::default());
    assert_eq!(drive(&mut reconciler, &mut again).await, Vec::<String>::new());
    let after = again.state().await.unwrap();
    let key = wg_b.public_key();
    assert_eq!(after.peers[&key].last_handshake, before.peers[&key].last_handshake, "no new session");
    assert!(after.peers[&key].tx_bytes > before.peers[&key].tx_bytes, "the counters went on");
    assert!(exchange(&a, &b, 1, 100));

    // A peer that nothing asks for is pruned once all sources are known, and its packets are not taken any more.
    let keep_out = Table::<WireguardPeer>::new();
    keep_out.1.set_source(&Source::Local, SourceState::Pending);
    let mut changes = keep_out.0.changes();
    let mut reconciler = Reconciler::new(1);
    reconciler.observe(changes.drain().unwrap(), Moment::default());
    drive(&mut reconciler, &mut again).await;
    assert_eq!(again.state().await.unwrap().peers.len(), 1, "held while a source is pending");
    keep_out.1.set_source(&Source::Local, SourceState::Initialized);
    reconciler.observe(changes.drain().unwrap(), Moment::default());
    drive(&mut reconciler, &mut again).await;
    assert_eq!(again.state().await.unwrap().peers.len(), 0);

    // One that was killed is started again with the same key.
    let public = again.public_key();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    while unit.pid().is_some() {
        tokio::task::yield_now().await;
    }
    let revived = a.wireguard().await;
    assert_ne!(unit.pid(), Some(pid));
    assert_eq!(revived.public_key(), public);
    revived.remove().await.unwrap();
    wg_b.remove().await.unwrap();
}

fn parent_of(pid: i32) -> i32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
    line.trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unit_that_cannot_start_says_why() {
    let (a, _b) = nodes().await;
    let mut config = a.wireguard_config();
    config.unit.program = Path::new("/nonexistent/tombolo").into();
    let error = Wireguard::ensure(config, a.netlink.clone()).await.unwrap_err().to_string();
    assert!(error.contains("/nonexistent/tombolo") && error.contains("wireguard.log"), "{error}");

    let mut config = a.wireguard_config();
    config.interface = "a-name-that-is-too-long".into();
    let error = Wireguard::ensure(config, a.netlink.clone()).await.unwrap_err().to_string();
    assert!(error.contains("a-name-that-is-too-long"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_router_is_one_change_however_many_prefixes_are_behind_it() {
    const PREFIXES: u32 = 10_000;
    let (a, _b) = nodes().await;
    let mut target = KernelRoutes::new(a.netlink.clone(), RouteSettings::default());
    let ours = RouteFilter { protocol: Some(DEFAULT_PROTOCOL), ..RouteFilter::default() };
    let prefix = |index: u32| format!("10.{}.{}.0/24", 100 + (index >> 8), index & 255);
    let both = ["192.0.2.2", "192.0.2.3"];
    let started = std::time::Instant::now();
    let mut changes: Vec<_> =
        (0..PREFIXES).map(|index| Change::Update(learned(&prefix(index), &both))).collect();
    // One that cannot be carried over fails alone.
    let nowhere = learned("10.99.0.0/24", &["198.51.100.9"]);
    changes.insert(700, Change::Update(nowhere.clone()));
    let mut failed = Vec::new();
    for batch in changes.chunks(<KernelRoutes as Target<RouteEntry>>::BATCH_MAX) {
        let outcomes = target.carry(batch).await;
        assert_eq!(outcomes.len(), batch.len());
        let bad = batch
            .iter()
            .zip(outcomes)
            .filter_map(|(change, outcome)| Some((change.row().prefix, outcome.err()?)));
        failed.extend(bad);
    }
    assert!(
        matches!(&failed[..], [(prefix, error)] if *prefix == nowhere.prefix && error.contains("198.51.100.9"))
    );
    let installed = started.elapsed();
    target.update(&learned("fd00:20::/32", &["2001:db8::2", "2001:db8::3"])).await.unwrap();
    assert_eq!(target.object_messages().await, 6, "four next hops and two groups");
    let there = a.netlink.routes(ours).await.unwrap();
    assert_eq!(there.len(), usize::try_from(PREFIXES).unwrap() + 1);
    assert!(there.iter().all(|route| route.object.is_some() && route.next_hops.len() == 2), "{:?}", there[0]);

    // One router is lost: one message for each group, and what the rows say later costs nothing.
    let started = std::time::Instant::now();
    assert_eq!(target.lose(ip("192.0.2.2")).await.unwrap(), 1);
    assert_eq!(target.lose(ip("2001:db8::3")).await.unwrap(), 1);
    let lost = started.elapsed();
    let vias = |routes: &[Route]| -> BTreeSet<Option<IpAddr>> {
        routes.iter().flat_map(|route| route.next_hops.iter().map(|hop| hop.via)).collect()
    };
    let left: BTreeSet<_> = [Some(ip("192.0.2.3")), Some(ip("2001:db8::2"))].into();
    assert_eq!(vias(&a.netlink.routes(ours).await.unwrap()), left);
    let mut changes = a.netlink.changes(Watch { routes: true, ..Watch::default() }).unwrap();
    for index in 0..PREFIXES {
        target.update(&learned(&prefix(index), &["192.0.2.3"])).await.unwrap();
    }
    let quiet = tokio::time::timeout(Duration::from_millis(200), changes.next()).await;
    assert!(quiet.is_err(), "no route was written again: {quiet:?}");
    assert_eq!(target.object_messages().await, 8);
    println!(
        "{PREFIXES} routes over a group installed in {installed:?}; a next hop lost in {lost:?}, 1 message"
    );

    // The next life finds groups and routes, keeps them, and clears away what nothing names.
    let mut next = KernelRoutes::new(a.netlink.clone(), RouteSettings::default());
    let rows: Vec<RouteEntry> = (0..PREFIXES).map(|index| learned(&prefix(index), &["192.0.2.3"])).collect();
    let wanted: Rows<RouteEntry> = rows.iter().cloned().collect();
    assert_eq!(next.audit(&wanted).await.unwrap(), Some(BTreeSet::new()));
    next.prune(&wanted, &BTreeSet::new()).await.unwrap();
    let objects = a.netlink.next_hop_objects().unwrap().list(DEFAULT_PROTOCOL).await.unwrap();
    assert_eq!(objects.len(), 2, "one group of one next hop: {objects:?}");
    assert_eq!(next.object_messages().await, 0);
    for row in &rows {
        next.delete(row).await.unwrap();
    }
    next.prune(&Rows::new(), &BTreeSet::new()).await.unwrap();
    assert_eq!(a.netlink.routes(ours).await.unwrap(), []);
    assert!(a.netlink.next_hop_objects().unwrap().list(DEFAULT_PROTOCOL).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn next_hops_are_reached_through_the_route_that_leads_to_them() {
    let (a, _b) = nodes().await;
    let mut target = KernelRoutes::new(a.netlink.clone(), RouteSettings::default());
    let far = learned("10.200.0.0/16", &["198.51.100.9"]);
    let error = target.update(&far).await.unwrap_err();
    assert!(error.contains("no route leads to the next hop 198.51.100.9"), "{error}");
    let eth1 = a.netlink.link("eth1").await.unwrap().index;
    let way = Route::unicast(net("198.51.100.0/24"), vec![NextHop::on_link(ip("192.0.2.2"), eth1)]);
    a.netlink.replace_route(&way).await.unwrap();
    let found = a.netlink.way_to(ip("198.51.100.9")).await.unwrap().unwrap();
    assert_eq!((found.via, found.link, found.protocol), (Some(ip("192.0.2.2")), eth1, 4));
    target.update(&far).await.unwrap();
    let ours = RouteFilter { protocol: Some(DEFAULT_PROTOCOL), ..RouteFilter::default() };
    let there = a.netlink.routes(ours).await.unwrap();
    assert_eq!(there[0].next_hops[0].via, Some(ip("192.0.2.2")));
    // A way that BGP itself taught leads nowhere.
    let around = learned("10.201.0.0/16", &["10.200.0.1"]);
    assert!(target.update(&around).await.is_err());
}
