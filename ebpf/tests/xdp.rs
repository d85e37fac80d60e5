//! The program before socket buffers: the same words as `from_uplink` would find, and nothing where it leaves a packet to that.
#![cfg(test)]

mod support;
use support::space::Space;
use support::*;
use tombolo_ebpf::*;

const DROP: u32 = 1;
const PASS: u32 = 2;
const TX: u32 = 3;
const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 0x99];

/// A family's number in the numbers of services and backends.
fn number(family: usize) -> u32 {
    u32::try_from(family).unwrap()
}

/// A node whose uplink has the program, and whose other node is reached by routes.
fn node(config: impl Fn(NodeConfig) -> NodeConfig) -> Node {
    let node = Node::new();
    node.remote(NodePath::Direct, false);
    node.datapath.set_config(&config(node.config())).unwrap();
    node.datapath.attach_xdp(node.uplink, Acceleration::Native).unwrap();
    node
}

fn run(node: &Node, frame: &[u8]) -> (u32, Ran) {
    let (action, packet) = node.datapath.xdp_test_run(node.uplink, frame).unwrap();
    (action, Ran { action, packet, mark: 0 })
}

#[test]
fn both_programs_make_the_same_of_a_packet() {
    for lb_mode in [LbMode::Snat, LbMode::Dsr] {
        let config = move |config| NodeConfig { lb_mode, ..config };
        let (fast, slow) =
            (std::thread::spawn(move || frames(&node(config), true)), move || frames(&node(config), false));
        assert_eq!(fast.join().unwrap(), std::thread::spawn(slow).join().unwrap(), "{lb_mode:?}");
    }
}

/// What becomes of the packets of two flows of each family, as IP packets, and what conntrack has counted.
fn frames(node: &Node, fast: bool) -> (Vec<Vec<u8>>, Vec<(u64, u64)>) {
    let mut all = Vec::new();
    for f in FAMILIES {
        node.service(VIP[f], 80, Scope::External, 20 + number(f), &[(1 + number(f), REMOTE[f], 8080)]);
        let (client, vip) = ((CLIENT[f], 5000), (VIP[f], 80));
        let mut through = |frame: &[u8]| {
            let packet = if fast {
                let (action, ran) = run(node, frame);
                assert_eq!((action, ran.macs().0), (TX, ROUTER));
                ran.packet
            } else {
                node.run("from_uplink", node.uplink, frame).packet
            };
            let ran = Ran { action: 0, packet, mark: 0 };
            let seen = ran.seen();
            all.push(ran.packet[14..].to_vec());
            seen
        };
        let seen = through(&tcp(client, vip, "S"));
        through(&tcp(client, vip, "A"));
        through(&udp(client, vip, 9));
        through(&udp(client, vip, 300));
        if seen.source.0 == ip(GATEWAY[f]) {
            let back = (GATEWAY[f], seen.source.1);
            let answer = through(&tcp((REMOTE[f], 8080), back, "SA"));
            assert_eq!((answer.source, answer.destination), ((ip(VIP[f]), 80), (ip(CLIENT[f]), 5000)));
            through(&tcp(client, vip, "A"));
        }
    }
    let flows = node.datapath.conntrack().unwrap();
    let mut counts: Vec<_> = flows.iter().map(|flow| (flow.packets[0], flow.bytes[0])).collect();
    counts.sort_unstable();
    (all, counts)
}

/// Nothing is written down of what is left to the programs behind.
#[test]
fn what_it_does_not_do_is_passed_on_as_it_came() {
    let node = node(|config| config);
    for f in FAMILIES {
        let vip = (VIP[f], 80);
        let frame = tcp((CLIENT[f], 5000), vip, "S");
        let passes = |why: &str, frame: &[u8]| {
            let (action, ran) = run(&node, frame);
            assert_eq!(action, PASS, "{why}");
            assert_eq!(ran.packet, frame, "{why}");
            assert!(node.datapath.conntrack().unwrap().is_empty(), "{why}");
        };
        passes("no service", &frame);
        node.service(VIP[f], 80, Scope::External, 20, &[(1, POD_A[f], 8080)]);
        passes("a backend of this node", &frame);
        node.service(VIP[f], 80, Scope::External, 20, &[]);
        passes("no backend", &frame);
        node.service(VIP[f], 80, Scope::External, 20, &[(2, REMOTE[f], 8080)]);
        node.remote(NodePath::Overlay, false);
        passes("the tunnel", &frame);
        node.remote(NodePath::Direct, true);
        node.datapath.set_config(&NodeConfig { encrypt: true, ..node.config() }).unwrap();
        passes("encryption", &frame);
        node.datapath.set_config(&node.config()).unwrap();
        node.remote(NodePath::Direct, false);
        passes("larger than the path", &udp((CLIENT[f], 5000), vip, 1400));
        passes("a pod's address", &tcp((POD_A[f], 5000), vip, "S"));
        passes("another port", &tcp((CLIENT[f], 5000), (VIP[f], 81), "S"));
        passes("an error", &unreachable(CLIENT[f], VIP[f], &tcp(vip, (CLIENT[f], 5000), "A")));
        let mut last = frame.clone();
        last[14 + if f == 0 { 8 } else { 7 }] = 1;
        if f == 0 {
            // The sum takes the hops that are gone.
            let (sum, carry) = u16::from_be_bytes([last[24], last[25]]).overflowing_add(63 << 8);
            let sum = sum + u16::from(carry);
            last[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        passes("its last hop", &last);
        assert_eq!(run(&node, &frame).0, TX, "and what it does");
        let flows: Vec<_> = node.datapath.conntrack().unwrap().iter().map(|flow| flow.source.0).collect();
        assert_eq!(flows, [ip(CLIENT[f])]);
        node.datapath.forget_flows(&[ip(CLIENT[f])]).unwrap();
    }
}

#[test]
fn drops_and_flows_are_told() {
    let mut node = node(|config| NodeConfig { snat_ports: 20_000..=20_000, ..config });
    node.service(VIP[0], 80, Scope::External, 20, &[(1, REMOTE[0], 8080)]);
    assert_eq!(run(&node, &tcp((CLIENT[0], 5000), (VIP[0], 80), "S")).0, TX);
    let flow = node.traced().flow;
    assert_eq!((flow.source.ip, flow.original_destination), (ip(CLIENT[0]), Some((ip(VIP[0]), 80))));
    assert_eq!(run(&node, &tcp((CLIENT[0], 5001), (VIP[0], 80), "S")).0, DROP);
    assert_eq!(node.dropped().flow.drop_reason, 167);
    let metrics = node.datapath.metrics().unwrap();
    assert!(metrics.iter().any(|metric| metric.reason == 167 && metric.packets == 1));
}

#[test]
fn it_outlives_the_agent_and_is_replaced_in_place() {
    let node = Node::new();
    let d = &node.datapath;
    assert_eq!(d.xdp_attached(node.uplink), None);
    d.attach_xdp(node.uplink, Acceleration::Generic).unwrap();
    assert_eq!(d.xdp_attached(node.uplink), Some(Acceleration::Generic));
    d.attach_xdp(node.uplink, Acceleration::Native).unwrap();
    assert_eq!(d.xdp_attached(node.uplink), Some(Acceleration::Native), "one at a time");
    let again = node.reopen(Attach::Auto, small_sizes());
    assert_eq!(again.xdp_attached(node.uplink), Some(Acceleration::Native));
    again.attach_xdp(node.uplink, Acceleration::Native).unwrap();
    // Other map sizes: the old program's maps are nobody's any more.
    let sizes = MapSizes { conntrack: 2048, ..small_sizes() };
    let larger = node.reopen(Attach::Auto, sizes);
    assert_eq!(larger.xdp_attached(node.uplink), Some(Acceleration::Native));
    larger.detach(node.uplink).unwrap();
    assert_eq!(larger.xdp_attached(node.uplink), None, "with everything else of the interface");
    larger.attach_xdp(node.uplink, Acceleration::Native).unwrap();
    sh("ip link del upl");
    assert_eq!(larger.xdp_attached(node.uplink), None);
    let error = larger.attach_xdp(node.uplink, Acceleration::Native).unwrap_err().to_string();
    assert!(error.contains("native"), "{error}");
}

/// A UDP datagram with its checksum: of a socket's own the sum is left to a device, which a veth is not for XDP.
fn send(space: &Space, from: (&str, u16), to: (&str, u16)) {
    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
    let v4 = ip(to.0).is_ipv4();
    let family = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let datagram = udp(from, to, 9).split_off(if v4 { 34 } else { 54 });
    space.inside(|| {
        let fd = socket(family, SockType::Raw, SockFlag::empty(), SockProtocol::Udp).unwrap();
        let socket = std::net::UdpSocket::from(fd);
        socket.connect((ip(to.0), 0)).unwrap();
        socket.send(&datagram).unwrap();
    });
}

/// Frames on a wire, behind which one namespace is client, router and backend. No other program of ours is hooked.
fn on_a_wire(how: Acceleration) {
    let node = Node::new();
    node.remote(NodePath::Direct, false);
    let space = Space::new();
    sh(&format!("ip link set pupl netns {}", space.pid()));
    space.sh(
        "sysctl -qw net.ipv4.conf.all.accept_local=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
         sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
         ip link set lo up; ip link set pupl address 02:00:00:00:00:99; ip link set pupl up
         sysctl -qw net.ipv4.conf.pupl.rp_filter=0
         ip addr add 172.20.11.1/24 dev pupl; ip addr add fd00:20:11::1/64 dev pupl nodad",
    );
    let (length, via) = ([32, 128], ["172.20.11.2", "fd00:20:11::2"]);
    for f in FAMILIES {
        space.sh(&format!(
            "ip addr add {client}/{l} dev lo {nodad}; ip addr add {backend}/{l} dev lo {nodad}
             ip route add {vip} via {via} dev pupl src {client}; ip route add {node} via {via} dev pupl src {backend}",
            client = CLIENT[f],
            backend = REMOTE[f],
            vip = VIP[f],
            node = GATEWAY[f],
            via = via[f],
            l = length[f],
            nodad = ["", "nodad"][f],
        ));
    }
    node.datapath.attach_xdp(node.uplink, how).unwrap();
    // A veth hands frames on only to an end that has a program.
    space.inside(|| node.datapath.attach_xdp(index("pupl"), how)).unwrap();
    for f in FAMILIES {
        node.service(VIP[f], 80, Scope::External, 20 + number(f), &[(1 + number(f), REMOTE[f], 8080)]);
        let listen = |at: (&str, u16)| {
            let socket = space.inside(|| std::net::UdpSocket::bind((ip(at.0), at.1))).unwrap();
            socket.set_read_timeout(Some(std::time::Duration::from_secs(3))).unwrap();
            move || socket.recv_from(&mut [0; 64]).map(|(_, from)| (from.ip(), from.port()))
        };
        let (client, backend) = (listen((CLIENT[f], 5000)), listen((REMOTE[f], 8080)));
        send(&space, (CLIENT[f], 5000), (VIP[f], 80));
        let (address, port) = backend().unwrap();
        assert_eq!(address, ip(GATEWAY[f]), "{how:?}");
        send(&space, (REMOTE[f], 8080), (GATEWAY[f], port));
        assert_eq!(client().unwrap(), (ip(VIP[f]), 80), "{how:?}: the answer");
        node.datapath.forget_flows(&[ip(CLIENT[f])]).unwrap();
        node.datapath.set_config(&NodeConfig { lb_mode: LbMode::Dsr, ..node.config() }).unwrap();
        send(&space, (CLIENT[f], 5000), (VIP[f], 80));
        assert_eq!(backend().unwrap(), (ip(CLIENT[f]), 5000), "{how:?}: under the client's address");
        node.datapath.set_config(&node.config()).unwrap();
    }
}

#[test]
fn frames_go_out_where_they_came_in_natively() {
    on_a_wire(Acceleration::Native);
}

#[test]
fn frames_go_out_where_they_came_in_generically() {
    on_a_wire(Acceleration::Generic);
}
