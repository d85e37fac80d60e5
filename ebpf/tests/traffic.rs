//! Real traffic: pods in namespaces of their own, two nodes with a real VXLAN device between them, everything through
//! the hooked programs. One group forces clsact.
#![cfg(test)]

mod support;
use support::space::*;
use support::*;
use tombolo_ebpf::*;

/// Two echo requests from the thread's namespace; the kernel's ping socket matches the answers.
fn ping_from_here(to: &str) -> bool {
    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
    sh("sysctl -qw net.ipv4.ping_group_range='0 0'");
    let to = ip(to);
    let (family, protocol, request) = match to.is_ipv4() {
        true => (AddressFamily::Inet, SockProtocol::Icmp, 8),
        false => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128),
    };
    let fd = socket(family, SockType::Datagram, SockFlag::empty(), protocol).unwrap();
    let socket = std::net::UdpSocket::from(fd);
    socket.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
    socket.connect((to, 0)).unwrap();
    (0..2_u8).all(|sequence| {
        let mut message = [0_u8; 64];
        message[0] = request;
        message[7] = sequence;
        let mut answer = [0_u8; 64];
        socket.send(&message).is_ok() && socket.recv(&mut answer).is_ok() && answer[7] == sequence
    })
}

/// What the namespace has learned about the path to `to` after sending `size` bytes of UDP in one packet.
fn learned_mtu(space: &Space, to: &str, size: usize) -> String {
    let any = if ip(to).is_ipv4() { "0.0.0.0" } else { "::" };
    let socket = space.inside(|| std::net::UdpSocket::bind((ip(any), 0))).unwrap();
    socket.send_to(&vec![0; size], (ip(to), 9)).unwrap();
    space.try_sh(&format!("ip route get {to}")).unwrap()
}

fn one_node(attach: Attach) {
    let bpffs = isolate();
    let datapath = open(attach, bpffs.path());
    prepare_node(&datapath, 1);
    datapath.set_config(&host_config()).unwrap();
    let a = add_pod(&datapath, 1, 2, ID_A, 1500);
    let b = add_pod(&datapath, 1, 3, ID_B, 1500);
    for f in FAMILIES {
        assert!(a.space.inside(|| ping_from_here(POD_B[f])), "pod to pod");
        assert!(ping_from_here(POD_A[f]), "node to pod");
        assert!(a.space.inside(|| ping_from_here(GATEWAY[f])), "pod to node");
        converse(&a.space, &b.space, (POD_B[f], 80), (POD_B[f], 80));
        let backend = Backend { ip: ip(POD_B[f]), port: 8080, protocol: 6 };
        for protocol in [6, 17] {
            datapath.upsert_backend(1, &Backend { protocol, ..backend }).unwrap();
            let frontend = Frontend { ip: ip(CLUSTER_IP[f]), port: 80, protocol, scope: Scope::Internal };
            let entry = ServiceEntry { rev_nat: 1, maglev: vec![1; 7], ..ServiceEntry::default() };
            datapath.set_service(&frontend, &entry).unwrap();
        }
        converse(&a.space, &b.space, (POD_B[f], 8080), (CLUSTER_IP[f], 80));
        // A pod to itself through its service.
        converse(&b.space, &b.space, (POD_B[f], 8080), (CLUSTER_IP[f], 80));
    }
    assert_eq!(drops(&datapath), vec![], "nothing was dropped");
    for f in FAMILIES {
        // Without a backend the pod is told so, and need not wait.
        let frontend = Frontend { ip: ip(CLUSTER_IP[f]), port: 81, protocol: 6, scope: Scope::Internal };
        datapath.set_service(&frontend, &ServiceEntry { rev_nat: 2, ..ServiceEntry::default() }).unwrap();
        let to = std::net::SocketAddr::from((ip(CLUSTER_IP[f]), 81));
        let wait = std::time::Duration::from_secs(3);
        let answer = a.space.inside(|| std::net::TcpStream::connect_timeout(&to, wait));
        assert_eq!(answer.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    }
    datapath.delete_interface(b.ifindex).unwrap();
    assert!(!a.space.inside(|| ping_from_here(POD_B[0])), "fail closed");
    assert!(drops(&datapath).iter().any(|(reason, _)| *reason == 203));
    nix::mount::umount2(bpffs.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
}

#[test]
fn pods_of_one_node_with_tcx() {
    one_node(Attach::Tcx);
}

#[test]
fn pods_of_one_node_with_clsact() {
    one_node(Attach::Clsact);
}

/// A node with a VXLAN device on its end of the wire.
struct Host {
    datapath: Datapath,
    pod: Pod,
}

fn build_host(bpffs: &std::path::Path, node: u8, other: u8, path: NodePath, attach: Attach) -> Host {
    let datapath = open(attach, bpffs);
    prepare_node(&datapath, node);
    sh(&format!(
        "ip link set lo up; ip link set wire up
         ip addr add 172.20.0.10{node}/24 dev wire; ip addr add 172.20.0.{node}/24 dev wire
         ip addr add fd00:20::{node}/64 dev wire nodad
         ip link add vx type vxlan external dstport 8472; ip link set vx up mtu 1450 arp off
         ip link set vx addrgenmode none"
    ));
    let routes = match path {
        NodePath::Overlay => format!(
            "ip route add 10.1.{other}.0/24 dev vx src 10.1.{node}.1
             ip -6 route add fd00:10:1:{other}::/64 dev vx src fd00:10:1:{node}::1"
        ),
        _ => format!(
            "ip route add 10.1.{other}.0/24 via 172.20.0.{other} src 10.1.{node}.1
             ip -6 route add fd00:10:1:{other}::/64 via fd00:20::{other} src fd00:10:1:{node}::1"
        ),
    };
    sh(&routes);
    let config = NodeConfig {
        uplink_ifindex: index("wire"),
        overlay_ifindex: index("vx"),
        internal4: format!("10.1.{node}.1").parse().ok(),
        internal6: format!("fd00:10:1:{node}::1").parse().ok(),
        // Not the address that routing would choose as source.
        underlay4: format!("172.20.0.{node}").parse().ok(),
        underlay6: format!("fd00:20::{node}").parse().ok(),
        ..host_config()
    };
    datapath.set_config(&config).unwrap();
    let tunnel = format!("172.20.0.{other}");
    let entry = NodeEntry { tunnel: Some(ip(&tunnel)), path, encrypt: false, mtu: 1450 };
    datapath.upsert_node(1, &entry).unwrap();
    for cidr in [format!("10.1.{other}.0/24"), format!("fd00:10:1:{other}::/64")] {
        let prefix = PrefixEntry { identity: 6, node: 1, ..PrefixEntry::default() };
        datapath.upsert_prefix(cidr.parse().unwrap(), &prefix).unwrap();
    }
    for address in [format!("172.20.0.{other}"), format!("fd00:20::{other}")] {
        let row = PrefixEntry { identity: 6, node: 1, skip_tunnel: true, ..PrefixEntry::default() };
        datapath.upsert_prefix(ip(&address).into(), &row).unwrap();
    }
    for address in [format!("172.20.0.{node}"), format!("fd00:20::{node}")] {
        datapath.upsert_local_address(ip(&address), LocalAddress::Host).unwrap();
    }
    let pod = add_pod(&datapath, node, 2, 66_000 + u32::from(node), 1500);
    datapath.attach_uplink(index("wire")).unwrap();
    datapath.attach_overlay(index("vx")).unwrap();
    Host { datapath, pod }
}

/// Sends a tunnel packet from an address of this namespace to the first node.
fn tunnelled(from: &str, to: &str, vni: u32, inner: &[u8]) {
    let socket = std::net::UdpSocket::bind((ip(from), 0)).unwrap();
    let mut packet = vec![8, 0, 0, 0];
    packet.extend((vni << 8).to_be_bytes());
    packet.extend(inner);
    socket.send_to(&packet, (ip(to), 8472)).unwrap();
}

/// What the first node makes of tunnel packets: the outer source must be a node, and without an identity the inner
/// one must not be a local address.
fn forged_tunnel_packets(one: &Host, second: &Space) {
    let count =
        |reason: u8| drops(&one.datapath).iter().find(|drop| drop.0 == reason).map_or(0, |drop| drop.1);
    let counts = || (count(172), count(132));
    second.sh("ip addr add 172.20.0.77/24 dev wire; ip addr add fd00:20::77/64 dev wire nodad");
    for f in FAMILIES {
        let (stranger, node) = (["172.20.0.77", "fd00:20::77"][f], ["172.20.0.2", "fd00:20::2"][f]);
        let to = ["172.20.0.1", "fd00:20::1"][f];
        let (before, pod) = (counts(), ["10.1.1.2", "fd00:10:1:1::2"][f]);
        let from = |source: &str| udp((source, 1), (pod, 53), 9);
        let outside = ["198.51.100.9", "2001:db8::9"][f];
        second.inside(|| tunnelled(stranger, to, 66_002, &from(outside)));
        assert_eq!(counts(), (before.0 + 1, before.1), "a stranger");
        for source in [["10.1.1.1", "fd00:10:1:1::1"][f], to, pod] {
            second.inside(|| tunnelled(node, to, 0, &from(source)));
        }
        assert_eq!(counts(), (before.0 + 1, before.1 + 3), "VNI 0 and an address of the receiver");
        let forbidden = || {
            let all = one.datapath.metrics().unwrap();
            all.iter().find(|m| m.reason == 176 && m.direction == Direction::Ingress).map_or(0, |m| m.packets)
        };
        let seen = forbidden();
        let discovery = icmp6("fe80::9", "fd00:10:1:1::2", (136, 0), 255);
        second.inside(|| tunnelled(node, to, 66_002, &discovery));
        assert_eq!(forbidden(), seen + 1, "discovery out of the tunnel");
        second.inside(|| tunnelled(node, to, 0, &from(outside)));
        let known = one.datapath.conntrack().unwrap();
        assert!(known.iter().any(|flow| flow.source.0 == ip(outside) && flow.identity == 2), "{known:#?}");
    }
}

/// The second node's node ports, asked by the first one's pod: under both addresses of the node, which are reached by the
/// uplink and in overlay mode by the tunnel, with the backend there and with the asking pod itself as backend.
fn node_ports(one: &Host, two: &Host) {
    for f in FAMILIES {
        let addresses = [["172.20.0.2", "10.1.2.1"], ["fd00:20::2", "fd00:10:1:2::1"]][f];
        let (far, near) = (["10.1.2.2", "fd00:10:1:2::2"][f], ["10.1.1.2", "fd00:10:1:1::2"][f]);
        for (address, (number, backend, pod)) in addresses
            .into_iter()
            .flat_map(|address| [(address, (5, far, &two.pod)), (address, (6, near, &one.pod))])
        {
            for protocol in [6, 17] {
                let row = Backend { ip: ip(backend), port: 8080, protocol };
                two.datapath.upsert_backend(number, &row).unwrap();
                let frontend = Frontend { ip: ip(address), port: 30_080, protocol, scope: Scope::External };
                let entry = ServiceEntry { rev_nat: 5, maglev: vec![number], ..ServiceEntry::default() };
                two.datapath.set_service(&frontend, &entry).unwrap();
            }
            converse(&one.pod.space, &pod.space, (backend, 8080), (address, 30_080));
            two.datapath.forget_flows(&[ip(near)]).unwrap();
        }
    }
    let dropped = |host: &Host| drops(&host.datapath).into_iter().filter(|drop| drop.0 != 136).count();
    assert_eq!((dropped(one), dropped(two)), (0, 0));
}

/// Backends in the hosts' networks, asked from the second node's stack at the first one's LoadBalancer address: the first node
/// itself, and the second.
fn host_backends(one: &Host, two: &Host, second: &Space) {
    let here = Space::here();
    for f in FAMILIES {
        let [first, other] = [["172.20.0.1", "172.20.0.2"], ["fd00:20::1", "fd00:20::2"]][f];
        for (number, address, space) in [(7, first, &here), (8, other, second)] {
            for protocol in [6, 17] {
                let row = Backend { ip: ip(address), port: 6443, protocol };
                one.datapath.upsert_backend(number, &row).unwrap();
                let frontend = Frontend { ip: ip(VIP[f]), port: 443, protocol, scope: Scope::External };
                let entry = ServiceEntry { rev_nat: 7, maglev: vec![number], ..ServiceEntry::default() };
                one.datapath.set_service(&frontend, &entry).unwrap();
            }
            converse(second, space, (address, 6443), (VIP[f], 443));
            one.datapath.forget_flows(&[ip(other)]).unwrap();
        }
        // The first node's pod asks the second node's node port, whose backend is the second node: by the uplink, and in
        // overlay mode by the tunnel.
        for address in [other, ["10.1.2.1", "fd00:10:1:2::1"][f]] {
            for protocol in [6, 17] {
                let row = Backend { ip: ip(other), port: 6443, protocol };
                two.datapath.upsert_backend(9, &row).unwrap();
                let frontend = Frontend { ip: ip(address), port: 30_443, protocol, scope: Scope::External };
                let entry = ServiceEntry { rev_nat: 9, maglev: vec![9], ..ServiceEntry::default() };
                two.datapath.set_service(&frontend, &entry).unwrap();
            }
            converse(&one.pod.space, second, (other, 6443), (address, 30_443));
            two.datapath.forget_flows(&[ip(["10.1.1.2", "fd00:10:1:1::2"][f])]).unwrap();
        }
    }
    let dropped = |host: &Host| drops(&host.datapath).into_iter().filter(|drop| drop.0 != 136).count();
    assert_eq!((dropped(one), dropped(two)), (0, 0));
}

/// The first node's pod leaves the mesh by the second node, on an interface that is not its uplink: whoever is asked sees
/// that interface's address, and nothing leaves while there is no gateway.
fn leaves_by_the_other(one: &Host, two: &Host, second: &Space) {
    let world = Space::new();
    world.sh("sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0");
    second.sh(&format!(
        "ip link add out type veth peer name eth0 netns {}; ip link set out up
         ip addr add 192.0.2.1/24 dev out; ip addr add 2001:db8:9::1/64 dev out nodad",
        world.pid()
    ));
    world.sh("ip link set lo up; ip link set eth0 up
         ip addr add 192.0.2.9/24 dev eth0; ip addr add 2001:db8:9::9/64 dev eth0 nodad");
    let out = second.inside(|| {
        two.datapath.attach_uplink(index("out")).unwrap();
        index("out")
    });
    for f in FAMILIES {
        let (pod, asked) = (["10.1.1.2", "fd00:10:1:1::2"][f], ["192.0.2.9", "2001:db8:9::9"][f]);
        let address = Some(ip(["192.0.2.1", "2001:db8:9::1"][f]));
        let all = ["0.0.0.0/0", "::/0"][f].parse().unwrap();
        one.datapath.upsert_egress(ip(pod), all, EgressWay::Node(1)).unwrap();
        two.datapath.upsert_egress(ip(pod), all, EgressWay::Here { address, ifindex: out }).unwrap();
        assert!(one.pod.space.inside(|| ping_from_here(asked)), "echo, whose identifier is translated");
        let listener = world.inside(|| std::net::TcpListener::bind((ip(asked), 8081))).unwrap();
        let dial = std::net::SocketAddr::from((ip(asked), 8081));
        let limit = std::time::Duration::from_secs(3);
        one.pod.space.inside(|| std::net::TcpStream::connect_timeout(&dial, limit)).unwrap();
        assert_eq!(Some(listener.accept().unwrap().1.ip()), address, "the address that was seen outside");
        converse(&one.pod.space, &world, (asked, 8080), (asked, 8080));
    }
}

/// A client outside with a way to each node. The first has no route to the client: only the second can answer it.
fn client_outside(second: &Space) -> Space {
    let client = Space::new();
    let pid = client.pid();
    let quiet = "sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0";
    client.sh(&format!(
        "{quiet} net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0; ip link set lo up"
    ));
    let end = |node: u8| {
        format!(
            "ip link add out type veth peer name out{node} netns {pid}; ip link set out up
             ip addr add 172.30.{node}.1/24 dev out; ip addr add fd00:30:{node}::1/64 dev out nodad"
        )
    };
    sh(&end(1));
    second.sh(&end(2));
    client.sh("for n in 1 2; do ip link set out$n up; ip addr add 172.30.$n.2/24 dev out$n
               ip addr add fd00:30:$n::2/64 dev out$n nodad; done
               ip addr add 172.30.0.9/32 dev lo; ip addr add fd00:30::9/128 dev lo nodad");
    second.sh(
        "ip route add 172.30.0.9 via 172.30.2.2 dev out; ip -6 route add fd00:30::9 via fd00:30:2::2 dev out",
    );
    client.sh(&format!(
        "ip route add {} via 172.30.1.1 dev out1 src 172.30.0.9
         ip -6 route add {} via fd00:30:1::1 dev out1 src fd00:30::9",
        VIP[0], VIP[1]
    ));
    client
}

/// The first node leads an outside client to the second's pod, and the second answers it directly.
fn direct_return(path: NodePath) {
    let (bpffs, other_bpffs, second) = (isolate(), mounted(), Space::new());
    let (one, two) = wired(bpffs.path(), other_bpffs.path(), &second, path, Attach::Auto);
    let client = client_outside(&second);
    one.datapath.attach_uplink(index("out")).unwrap();
    let config = one.datapath.config().unwrap();
    one.datapath.set_config(&NodeConfig { lb_mode: LbMode::Dsr, ..config }).unwrap();
    for f in FAMILIES {
        let backend = ["10.1.2.2", "fd00:10:1:2::2"][f];
        for (number, protocol) in [(1, 6), (2, 17)] {
            for host in [&one, &two] {
                let row = Backend { ip: ip(backend), port: 8080, protocol };
                host.datapath.upsert_backend(number, &row).unwrap();
                let frontend = Frontend { ip: ip(VIP[f]), port: 80, protocol, scope: Scope::External };
                let entry = ServiceEntry { rev_nat: number, maglev: vec![number], ..ServiceEntry::default() };
                host.datapath.set_service(&frontend, &entry).unwrap();
            }
        }
        converse(&client, &two.pod.space, (backend, 8080), (VIP[f], 80));
        let address = ip(["172.30.0.9", "fd00:30::9"][f]);
        let seen = two.datapath.conntrack().unwrap();
        let of_client = seen.iter().filter(|flow| flow.source.0 == address);
        let identities: Vec<u32> = of_client.map(|flow| flow.identity).collect();
        assert_eq!(identities, [2, 2], "the pod's policy meets the client: {seen:#?}");
    }
    let others =
        |host: &Host| drops(&host.datapath).into_iter().filter(|drop| drop.0 != 136).collect::<Vec<_>>();
    assert_eq!((others(&one), others(&two)), (vec![], vec![]));
    for path in [bpffs.path(), other_bpffs.path()] {
        nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn a_client_is_answered_directly_over_vxlan() {
    direct_return(NodePath::Overlay);
}

#[test]
fn a_client_is_answered_directly_by_routes() {
    direct_return(NodePath::Direct);
}

/// A bpffs of its own for a second node.
fn mounted() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let none: Option<&str> = None;
    nix::mount::mount(Some("bpf"), directory.path(), Some("bpf"), nix::mount::MsFlags::empty(), none)
        .unwrap();
    directory
}

/// Two nodes with a wire between them: this thread's namespace, and `second`.
fn wired(
    bpffs: &std::path::Path,
    other_bpffs: &std::path::Path,
    second: &Space,
    path: NodePath,
    attach: Attach,
) -> (Host, Host) {
    // The wire's link-local addresses must be usable at once: neighbour discovery needs them.
    second.sh("sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0");
    sh(&format!("ip link add wire type veth peer name wire netns {}", second.pid()));
    let one = build_host(bpffs, 1, 2, path, attach);
    let two = second.inside(|| build_host(other_bpffs, 2, 1, path, attach));
    (one, two)
}

fn two_nodes(path: NodePath, attach: Attach) {
    let (bpffs, other_bpffs, second) = (isolate(), mounted(), Space::new());
    let (one, two) = wired(bpffs.path(), other_bpffs.path(), &second, path, attach);
    let far = ["10.1.2.2", "fd00:10:1:2::2"];
    let far_host = ["10.1.2.1", "fd00:10:1:2::1"];
    for f in FAMILIES {
        let v = if f == 0 { "-4" } else { "-6" };
        assert!(one.pod.space.inside(|| ping_from_here(far[f])), "pod to pod of the other node");
        assert!(ping_from_here(far[f]), "node to pod of the other node");
        assert!(one.pod.space.inside(|| ping_from_here(far_host[f])), "pod to the other node");
        // The largest packet passes, one byte more is answered.
        let fits = if f == 0 { 1422 } else { 1402 };
        assert!(!learned_mtu(&one.pod.space, far[f], fits).contains("mtu"));
        let learned = learned_mtu(&one.pod.space, far[f], fits + 1);
        assert!(learned.contains("mtu 1450"), "{learned}");
        converse(&one.pod.space, &two.pod.space, (far[f], 80), (far[f], 80));
        // LoadBalancer on the first node, backend on the second: asked from the second node's stack.
        for protocol in [6, 17] {
            let backend = Backend { ip: ip(far[f]), port: 8080, protocol };
            one.datapath.upsert_backend(1, &backend).unwrap();
            let frontend = Frontend { ip: ip(VIP[f]), port: 80, protocol, scope: Scope::External };
            let entry = ServiceEntry { rev_nat: 1, maglev: vec![1], ..ServiceEntry::default() };
            one.datapath.set_service(&frontend, &entry).unwrap();
        }
        let via = ["172.20.0.1", "fd00:20::1"][f];
        second.sh(&format!("ip {v} route add {} via {via} dev wire", VIP[f]));
        converse(&second, &two.pod.space, (far[f], 8080), (VIP[f], 80));
    }
    let too_big =
        |drops: Vec<(u8, u64)>| drops.into_iter().filter(|(reason, _)| *reason != 136).collect::<Vec<_>>();
    assert_eq!(too_big(drops(&one.datapath)), vec![]);
    assert_eq!(too_big(drops(&two.datapath)), vec![]);
    let seen = two.datapath.conntrack().unwrap();
    let identities: Vec<u32> =
        seen.iter().filter(|c| c.source.0 == ip("10.1.1.2")).map(|c| c.identity).collect();
    let expected = if path == NodePath::Overlay { 66_001 } else { 6 };
    assert!(!identities.is_empty() && identities.iter().all(|id| *id == expected), "{seen:#?}");
    leaves_by_the_other(&one, &two, &second);
    node_ports(&one, &two);
    host_backends(&one, &two, &second);
    if path == NodePath::Overlay {
        forged_tunnel_packets(&one, &second);
    }
    for path in [bpffs.path(), other_bpffs.path()] {
        nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn two_nodes_over_vxlan() {
    two_nodes(NodePath::Overlay, Attach::Auto);
}

#[test]
fn two_nodes_over_vxlan_with_clsact() {
    two_nodes(NodePath::Overlay, Attach::Clsact);
}

#[test]
fn two_nodes_by_routes() {
    two_nodes(NodePath::Direct, Attach::Auto);
}
