//! What the model says of the flows that matter most; that the programs say the same is shown in `ebpf/tests/model`.

use crate::nat::Ways;
use crate::*;
use std::net::IpAddr;

const SECOND: u64 = 1_000_000_000;
const A: (&str, u32) = ("10.1.1.2", 7);
const B: (&str, u32) = ("10.1.1.3", 8);
const REMOTE: &str = "10.1.2.2";
const CLIENT: &str = "172.20.200.10";
const VIP: &str = "203.0.113.5";
const INTERNAL: &str = "10.1.1.1";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Two pods, one more on a node behind the tunnel, and a service on the latter.
fn node() -> Node {
    let config = Config { ready: true, overlay: true, internal4: INTERNAL.parse().ok(), ..Config::default() };
    let mut node = Node { config: Config { snat_ports: 20_000..=20_001, ..config }, ..Node::default() };
    for ((address, ifindex), identity) in [(A, 1001), (B, 1002)] {
        let pod = Pod { ready: true, identity, addresses: vec![ip(address)], policy: 0 };
        node.pods.insert(ifindex, pod);
        node.local.insert(ip(address), Local::Pod(ifindex));
    }
    node.local.insert(ip(INTERNAL), Local::Host);
    let prefix = Prefix { identity: 1003, node: 1, ..Prefix::default() };
    node.prefixes.insert(ip(REMOTE).into(), prefix);
    node.nodes.insert(1, RemoteNode { tunnel: Some(ip(CLIENT)), path: Path::Overlay, encrypt: false });
    node.backends.insert(1, Backend { socket: (ip(REMOTE), 8080) });
    for scope in [Scope::External, Scope::Internal] {
        let frontend = Frontend { address: ip(VIP), port: 80, protocol: 6, scope };
        node.services.insert(frontend, Service { rev_nat: 5, slots: vec![1] });
    }
    node.rev_nats.insert(5, (ip(VIP), 80));
    node
}

fn tcp(from: (&str, u16), to: (&str, u16), flags: TcpFlags) -> Packet {
    let payload = Payload::Tcp { ports: (from.1, to.1), flags };
    Packet {
        source: ip(from.0),
        destination: ip(to.0),
        hops: 64,
        length: 40,
        fragment: Fragment::Whole,
        frontend: None,
        payload,
    }
}

fn error(from: &str, to: &str, quoted: Packet) -> Packet {
    let payload = Payload::Error(Box::new(quoted));
    Packet {
        source: ip(from),
        destination: ip(to),
        hops: 64,
        length: 56,
        fragment: Fragment::Whole,
        frontend: None,
        payload,
    }
}

fn passed(outcome: Outcome) -> (To, Packet) {
    match outcome {
        Outcome::Pass { to, packet } => (to, packet),
        Outcome::Drop(reason) => panic!("dropped: {reason:?}"),
    }
}

#[test]
fn a_flow_is_established_when_its_opener_speaks_after_the_answer() {
    let mut node = node();
    let (opener, server) = ((A.0, 4000), (B.0, 80));
    node.from_endpoint(1, A.1, &tcp(opener, server, TcpFlags::SYN));
    node.from_endpoint(2, B.1, &tcp(server, opener, TcpFlags::SYN | TcpFlags::ACK));
    assert_eq!(node.conntrack.half.len(), 2, "what leaves A and what comes to B: anybody's SYN is answered");
    assert!(node.conntrack.half.values().all(|flow| flow.expires_ns <= 2 + 60 * SECOND));
    node.from_endpoint(3, A.1, &tcp(opener, server, TcpFlags::ACK));
    assert_eq!((node.conntrack.half.len(), node.conntrack.established.len()), (0, 2));
    assert!(node.conntrack.established.values().all(|flow| flow.expires_ns == 3 + 8000 * SECOND));
}

#[test]
fn a_closed_flow_ends_soon_and_a_syn_opens_another() {
    let mut node = node();
    let (opener, server) = ((A.0, 4000), (B.0, 80));
    let end = TcpFlags::FIN | TcpFlags::ACK;
    node.from_endpoint(1, A.1, &tcp(opener, server, TcpFlags::SYN));
    node.from_endpoint(2, B.1, &tcp(server, opener, TcpFlags::SYN | TcpFlags::ACK));
    node.from_endpoint(3, A.1, &tcp(opener, server, end));
    assert!(node.conntrack.established.values().all(|flow| flow.expires_ns == 3 + 120 * SECOND));
    node.from_endpoint(4, B.1, &tcp(server, opener, end));
    assert!(node.conntrack.established.values().all(|flow| flow.expires_ns == 4 + 10 * SECOND));
    node.from_endpoint(5, A.1, &tcp(opener, server, TcpFlags::SYN));
    assert_eq!((node.conntrack.half.len(), node.conntrack.established.len()), (2, 0));
}

#[test]
fn an_answer_ends_with_the_allow_of_its_flow() {
    let mut node = node();
    node.pods.entry(B.1).and_modify(|pod| pod.policy = 3);
    let web = Rule {
        tier: Tier::Normal,
        identity: Some(1001),
        protocol: Some(6),
        port: Some((80, 16)),
        action: Action::Allow,
        priority: 0,
    };
    let only = |rules| Side { enforced: true, rules };
    node.policies.insert(3, Policy { ingress: only(vec![web]), egress: only(vec![]), audit: false });
    let (opener, server) = ((A.0, 4000), (B.0, 80));
    let answer = tcp(server, opener, TcpFlags::SYN | TcpFlags::ACK);
    assert_eq!(node.from_endpoint(1, B.1, &answer), Outcome::Drop(Reason::Policy), "of nothing");
    node.from_endpoint(2, A.1, &tcp(opener, server, TcpFlags::SYN));
    assert_eq!(passed(node.from_endpoint(3, B.1, &answer)).0, To::Pod(A.1), "egress policy is not asked");
    node.policies.insert(3, Policy { ingress: only(vec![]), ..Policy::default() });
    assert_eq!(node.from_endpoint(4, B.1, &answer), Outcome::Drop(Reason::Policy));
}

#[test]
fn a_pods_service_is_answered_under_its_own_name() {
    let mut node = node();
    let (to, packet) = passed(node.from_endpoint(1, A.1, &tcp((A.0, 4000), (VIP, 80), TcpFlags::SYN)));
    assert_eq!((to, packet.hops), (To::Overlay, 63));
    assert_eq!(packet, Packet { hops: 63, ..tcp((A.0, 4000), (REMOTE, 8080), TcpFlags::SYN) });
    let answer = tcp((REMOTE, 8080), (A.0, 4000), TcpFlags::SYN | TcpFlags::ACK);
    let (to, packet) = passed(node.from_uplink(2, &answer));
    assert_eq!((to, packet.source), (To::Pod(A.1), ip(VIP)));
    node.backends.remove(&1);
    let again = tcp((A.0, 4000), (VIP, 80), TcpFlags::ACK);
    assert_eq!(node.from_endpoint(3, A.1, &again), Outcome::Drop(Reason::NoService), "nobody is left");
}

#[test]
fn snat_leads_answers_and_errors_back_and_gives_ports_that_are_over_again() {
    let mut node = node();
    let open = |port: u16| tcp((CLIENT, port), (VIP, 80), TcpFlags::SYN);
    let (to, sent) = passed(node.from_uplink(1, &open(4000)));
    assert_eq!((to, sent.source), (To::Overlay, ip(INTERNAL)));
    let Payload::Tcp { ports: (port, 8080), .. } = sent.payload else { panic!("{sent}") };
    let answer = tcp((REMOTE, 8080), (INTERNAL, port), TcpFlags::SYN | TcpFlags::ACK);
    let (to, packet) = passed(node.from_uplink(2, &answer));
    assert_eq!((to, packet.source, packet.destination), (To::Network, ip(VIP), ip(CLIENT)));
    // The backend's node says that it is unreachable.
    let (_, packet) = passed(node.from_uplink(3, &error(REMOTE, INTERNAL, sent)));
    assert_eq!(packet.destination, ip(CLIENT));
    let Payload::Error(quoted) = packet.payload else { panic!("{packet}") };
    assert_eq!((quoted.source, quoted.destination), (ip(CLIENT), ip(VIP)));
    passed(node.from_uplink(4, &open(4001)));
    assert_eq!(node.from_uplink(5, &open(4002)), Outcome::Drop(Reason::NatNoMapping), "both are in use");
    passed(node.from_uplink(6 + 60 * SECOND, &open(4002)));
}

#[test]
fn collecting_takes_what_is_over() {
    let mut node = node();
    passed(node.from_uplink(1, &tcp((CLIENT, 4000), (VIP, 80), TcpFlags::SYN)));
    let ways = |ways: &Ways| (ways.out.len(), ways.back.len());
    assert_eq!((ways(&node.nat.half), ways(&node.nat.answered)), ((1, 1), (0, 0)));
    let port = node.nat.half.back.keys().next().unwrap().destination.1;
    passed(node.from_uplink(2, &tcp((REMOTE, 8080), (INTERNAL, port), TcpFlags::SYN | TcpFlags::ACK)));
    passed(node.from_uplink(3, &tcp((CLIENT, 4000), (VIP, 80), TcpFlags::ACK)));
    assert_eq!((ways(&node.nat.half), ways(&node.nat.answered)), ((0, 0), (1, 1)));
    node.collect(8000 * SECOND);
    assert_eq!(ways(&node.nat.answered), (1, 1));
    node.collect(4 + 8000 * SECOND);
    assert_eq!(ways(&node.nat.answered), (0, 0));
}
