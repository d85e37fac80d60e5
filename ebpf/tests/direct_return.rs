//! Direct server return: a node that names the frontend to the backend's node, that node, and who must not be believed.
//! The bytes of the options are written down here as Cilium writes them.
#![cfg(test)]

mod support;
use std::net::IpAddr;
use std::time::Duration;
use support::*;
use tombolo_ebpf::*;

const OTHER_VIP: [&str; 2] = ["203.0.113.6", "2001:db8:e::6"];

/// A family's number in the numbers of services and backends.
fn number(family: usize) -> u32 {
    u32::try_from(family).unwrap()
}

/// The frontend's port 80 and address in an option: of IPv4 turned round, of IPv6 in a whole extension header.
fn option(frontend: &str, next: u8) -> Vec<u8> {
    match ip(frontend) {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            vec![0x9a, 8, 80, 0, d, c, b, a]
        }
        IpAddr::V6(address) => [&[next, 2, 0x1b, 20][..], &address.octets(), &[0, 80, 0, 0]].concat(),
    }
}

/// The frame with the option in it.
fn naming(frame: &[u8], frontend: &str) -> Vec<u8> {
    let v4 = frame[12] == 8;
    let header = if v4 { 20 } else { 40 };
    let mut ip_header = frame[14..14 + header].to_vec();
    let option = option(frontend, frame[20]);
    if v4 {
        ip_header[0] = 0x47;
        let length = u16::from_be_bytes([ip_header[2], ip_header[3]]) + 8;
        ip_header[2..4].copy_from_slice(&length.to_be_bytes());
        ip_header[10..12].fill(0);
        let words = ip_header.iter().chain(&option).copied().collect::<Vec<_>>();
        let sum =
            words.chunks(2).fold(0_u32, |sum, word| sum + u32::from(u16::from_be_bytes([word[0], word[1]])));
        let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
        ip_header[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        let length = u16::from_be_bytes([ip_header[4], ip_header[5]]) + 24;
        ip_header[4..6].copy_from_slice(&length.to_be_bytes());
        ip_header[6] = 60;
    }
    [&frame[..14], &ip_header, &option, &frame[14 + header..]].concat()
}

fn named(packet: &[u8]) -> bool {
    if packet[12] == 8 {
        packet[14] == 0x47 && packet[34] == 0x9a
    } else {
        packet[20] == 60 && packet[56] == 0x1b
    }
}

fn mode(node: &Node, lb_mode: LbMode) {
    node.datapath.set_config(&NodeConfig { lb_mode, ..node.config() }).unwrap();
}

#[test]
fn the_first_packets_name_the_frontend_under_the_clients_address() {
    for (path, room) in [(NodePath::Overlay, [8, 24]), (NodePath::Direct, [8, 24])] {
        let node = Node::new();
        node.remote(path, false);
        mode(&node, LbMode::Dsr);
        for f in FAMILIES {
            node.service(VIP[f], 80, Scope::External, 20 + number(f), &[(1 + number(f), REMOTE[f], 8080)]);
            let (client, vip) = ((CLIENT[f], 5000), (VIP[f], 80));
            let syn = tcp(client, vip, "S");
            let ran = node.run("from_uplink", node.uplink, &syn);
            assert_eq!(ran.action, REDIRECT);
            assert_eq!(ran.packet.len(), syn.len() + room[f]);
            let seen = ran.seen();
            assert_eq!((seen.source, seen.destination), ((ip(CLIENT[f]), 5000), (ip(REMOTE[f]), 8080)));
            assert_eq!(seen.hops, 63);
            let header = if f == 0 { 34 } else { 54 };
            assert_eq!(ran.packet[header..header + room[f]], option(VIP[f], 6), "as Cilium writes it");
            let ran = node.run("from_uplink", node.uplink, &tcp(client, vip, "A"));
            assert!(!named(&ran.packet), "the connection is known by then");
            assert_eq!(ran.seen().source, (ip(CLIENT[f]), 5000));
            for _ in 0..2 {
                let ran = node.run("from_uplink", node.uplink, &udp(client, vip, 9));
                assert!(named(&ran.packet), "of UDP nobody here sees which was answered");
                assert_eq!(ran.seen().destination, (ip(REMOTE[f]), 8080));
            }
        }
    }
}

#[test]
fn hybrid_is_for_tcp() {
    let node = Node::new();
    mode(&node, LbMode::Hybrid);
    for f in FAMILIES {
        node.service(VIP[f], 80, Scope::External, 20 + number(f), &[(1 + number(f), REMOTE[f], 8080)]);
        let ran = node.run("from_uplink", node.uplink, &tcp((CLIENT[f], 5000), (VIP[f], 80), "S"));
        assert!(named(&ran.packet));
        let ran = node.run("from_uplink", node.uplink, &udp((CLIENT[f], 5000), (VIP[f], 80), 9));
        assert_eq!(ran.seen().source.0, ip(GATEWAY[f]));
    }
}

/// Whom the backend's node would not take it from, or who could not be answered from there.
#[test]
fn clients_of_the_mesh_other_clusters_and_wireguard_are_served_through_the_node() {
    for f in FAMILIES {
        let case = |encrypt: bool, client: &str, row: PrefixEntry| {
            let node = Node::new();
            node.remote(NodePath::Direct, false);
            node.datapath.set_config(&NodeConfig { lb_mode: LbMode::Dsr, encrypt, ..node.config() }).unwrap();
            node.datapath.upsert_prefix(ip(REMOTE[f]).into(), &row).unwrap();
            node.service(VIP[f], 80, Scope::External, 20, &[(1, REMOTE[f], 8080)]);
            let ran = node.run("from_uplink", node.uplink, &tcp((client, 5000), (VIP[f], 80), "S"));
            (named(&ran.packet), ran.seen().source.0)
        };
        let row = PrefixEntry { identity: ID_REMOTE, node: 1, ..PrefixEntry::default() };
        let (direct, snat) = ((true, ip(CLIENT[f])), (false, ip(GATEWAY[f])));
        assert_eq!(case(false, CLIENT[f], row), direct);
        assert_eq!(case(false, CLIENT[f], PrefixEntry { encrypt: true, ..row }), direct, "encryption is off");
        assert_eq!(case(true, CLIENT[f], PrefixEntry { encrypt: true, ..row }), snat);
        assert_eq!(case(false, CLIENT[f], PrefixEntry { remote_cluster: true, ..row }), snat);
        assert_eq!(
            case(false, CLIENT[f], PrefixEntry { skip_tunnel: true, ..row }),
            snat,
            "a node's own address"
        );
        assert_eq!(case(false, CLIENT[f], PrefixEntry { node: 0, ..row }), snat);
        assert_eq!(case(false, REMOTE_NODE[f], row), snat);
    }
}

#[test]
fn what_does_not_fit_with_the_option_is_answered() {
    let mut node = Node::new();
    mode(&node, LbMode::Dsr);
    for f in FAMILIES {
        node.service(VIP[f], 80, Scope::External, 20 + number(f), &[(1 + number(f), REMOTE[f], 8080)]);
        // The path takes 1400 bytes.
        let payload = if f == 0 { 1400 - 28 - 8 } else { 1400 - 48 - 24 };
        let ran = node.run("from_uplink", node.uplink, &udp((CLIENT[f], 5000), (VIP[f], 80), payload));
        assert!(named(&ran.packet));
        assert_eq!(ran.packet.len(), 1414);
        node.events();
        let ran = node.run("from_uplink", node.uplink, &udp((CLIENT[f], 5000), (VIP[f], 80), payload + 1));
        assert_eq!(node.dropped().flow.drop_reason, 136);
        let mtu = if f == 0 { &ran.packet[14 + 26..14 + 28] } else { &ran.packet[14 + 46..14 + 48] };
        let room = if f == 0 { 8 } else { 24 };
        assert_eq!(u16::from_be_bytes([mtu[0], mtu[1]]), 1400 - room, "the client leaves room for it");
        assert_eq!(ran.seen().destination.0, ip(CLIENT[f]));
    }
}

/// Half-open entries live a minute, and nobody here sees the answers: the client's going on keeps the connection.
#[test]
fn a_connection_keeps_its_backend_without_its_answers() {
    let node = Node::new();
    let at = |seconds: u64| {
        let test_clock_offset = Duration::from_secs(seconds);
        let config = NodeConfig { lb_mode: LbMode::Dsr, test_clock_offset, ..node.config() };
        node.datapath.set_config(&config).unwrap();
    };
    for f in FAMILIES {
        at(0);
        node.service(VIP[f], 80, Scope::External, 20, &[(1, REMOTE[f], 8080)]);
        let send = |port: u16, flags: &str| {
            let ran = node.run("from_uplink", node.uplink, &tcp((CLIENT[f], port), (VIP[f], 80), flags));
            ran.seen().destination.1
        };
        ["S", "A", "A"].into_iter().for_each(|flags| assert_eq!(send(5000, flags), 8080));
        send(5001, "S");
        node.service(VIP[f], 80, Scope::External, 20, &[(2, REMOTE[f], 9090)]);
        at(7000);
        assert_eq!(send(5000, "A"), 8080, "it lives as long as a connection");
        assert_eq!(send(5001, "S"), 9090, "an attempt does not");
        let flows = node.datapath.conntrack().unwrap();
        assert!(
            flows.iter().all(|flow| !flow.established),
            "forged packets cannot fill the other table: {flows:#?}"
        );
    }
}

fn receiving(node: &Node, f: usize) {
    node.service(VIP[f], 80, Scope::External, 20, &[(1, POD_A[f], 8080), (2, REMOTE[f], 8080)]);
    node.service(OTHER_VIP[f], 80, Scope::External, 21, &[(3, POD_B[f], 8080)]);
}

#[test]
fn the_backends_node_answers_as_the_frontend() {
    let mut node = Node::new();
    for f in FAMILIES {
        receiving(&node, f);
        let (client, pod) = ((CLIENT[f], 5000), (POD_A[f], 8080));
        for (opening, going, answer) in [
            (tcp(client, pod, "S"), tcp(client, pod, "A"), tcp(pod, client, "SA")),
            (udp(client, pod, 9), naming(&udp(client, pod, 9), VIP[f]), udp(pod, client, 9)),
        ] {
            node.events();
            let ran = node.run("from_uplink", node.uplink, &naming(&opening, VIP[f]));
            assert_eq!((ran.action, ran.macs().0), (REDIRECT, MAC_A));
            assert_eq!(ran.packet.len(), opening.len(), "the pod does not see it");
            assert!(!named(&ran.packet));
            let seen = ran.seen();
            assert_eq!((seen.source, seen.destination), ((ip(CLIENT[f]), 5000), (ip(POD_A[f]), 8080)));
            let flow = node.traced().flow;
            assert_eq!(flow.original_destination, Some((ip(VIP[f]), 80)));
            assert_eq!(flow.source.identity, 2, "the client's own");
            let ran = node.run("from_endpoint", node.a, &answer);
            assert_eq!((ran.seen().source, ran.seen().destination.0), ((ip(VIP[f]), 80), ip(CLIENT[f])));
            // What names no frontend changes nothing.
            assert_eq!(node.run("from_uplink", node.uplink, &going).action, REDIRECT);
            assert_eq!(node.run("from_endpoint", node.a, &answer).seen().source, (ip(VIP[f]), 80));
        }
        let direct = udp(client, pod, 9);
        node.run("from_uplink", node.uplink, &direct);
        let ran = node.run("from_endpoint", node.a, &udp(pod, client, 9));
        assert_eq!(ran.seen().source, (ip(POD_A[f]), 8080), "asked directly");
    }
}

#[test]
fn nobody_makes_a_pod_speak_for_a_service_that_it_is_not_of() {
    let mut node = Node::new();
    for f in FAMILIES {
        receiving(&node, f);
        let to_a = tcp((CLIENT[f], 5000), (POD_A[f], 8080), "S");
        node.drops("from_uplink", node.uplink, &naming(&to_a, OTHER_VIP[f]), 134);
        let other_port = tcp((CLIENT[f], 5000), (POD_A[f], 9), "S");
        node.drops("from_uplink", node.uplink, &naming(&other_port, VIP[f]), 134);
        node.drops("from_uplink", node.uplink, &naming(&to_a, CLUSTER_IP[f]), 158);
        let to_vip = tcp((CLIENT[f], 5000), (VIP[f], 80), "S");
        node.drops("from_uplink", node.uplink, &naming(&to_vip, OTHER_VIP[f]), 134);
        let of_pod = tcp((POD_B[f], 5000), (POD_A[f], 8080), "S");
        node.drops("from_endpoint", node.b, &naming(&of_pod, VIP[f]), 134);
        assert_eq!(node.datapath.conntrack().unwrap().len(), 0, "none of it left a flow");
        // A service that takes some clients only does so here, too.
        let frontend = Frontend { ip: ip(VIP[f]), port: 80, protocol: 6, scope: Scope::External };
        let ranges = Some(["192.0.2.0/24".parse().unwrap()].into());
        let entry =
            ServiceEntry { rev_nat: 20, maglev: vec![1], source_ranges: ranges, ..ServiceEntry::default() };
        node.datapath.set_service(&frontend, &entry).unwrap();
        node.drops("from_uplink", node.uplink, &naming(&to_a, VIP[f]), 177);
        // A backend that the frontend has no more.
        let entry = ServiceEntry { rev_nat: 20, maglev: vec![2], ..ServiceEntry::default() };
        node.datapath.set_service(&frontend, &entry).unwrap();
        node.drops("from_uplink", node.uplink, &naming(&to_a, VIP[f]), 134);
    }
}

/// Routers send errors about a frontend's answers to any node that announces it.
#[test]
fn an_error_of_no_known_flow_goes_to_the_backend_that_all_nodes_choose() {
    let mut node = Node::new();
    for f in FAMILIES {
        let answer = tcp((VIP[f], 80), (CLIENT[f], 5000), "A");
        let error = unreachable(NODE_ROUTER[f], VIP[f], &answer);
        node.service(VIP[f], 80, Scope::External, 20, &[(1, REMOTE[f], 8080)]);
        let ran = node.run("from_uplink", node.uplink, &error);
        assert_eq!(ran.action, REDIRECT);
        assert_eq!(
            ran.seen().destination.0,
            ip(REMOTE[f]),
            "to the backend's node, which knows the flow or not"
        );
        assert_eq!(ran.quoted(), ((ip(REMOTE[f]), 8080), (ip(CLIENT[f]), 5000)));
        // The backend is here: its flow takes it, and none is made for it.
        node.service(VIP[f], 80, Scope::External, 20, &[(2, POD_A[f], 8080)]);
        node.drops("from_uplink", node.uplink, &error, 163);
        node.run("from_uplink", node.uplink, &naming(&tcp((CLIENT[f], 5000), (POD_A[f], 8080), "S"), VIP[f]));
        let ran = node.run("from_uplink", node.uplink, &error);
        assert_eq!((ran.action, ran.macs().0), (REDIRECT, MAC_A));
        assert_eq!(ran.quoted(), ((ip(POD_A[f]), 8080), (ip(CLIENT[f]), 5000)));
        node.service(VIP[f], 80, Scope::External, 20, &[]);
        let stray = unreachable(NODE_ROUTER[f], VIP[f], &tcp((VIP[f], 80), (CLIENT[f], 6000), "A"));
        node.drops("from_uplink", node.uplink, &stray, 163);
    }
}

const NODE_ROUTER: [&str; 2] = ["198.51.100.1", "2001:db8:f::1"];
