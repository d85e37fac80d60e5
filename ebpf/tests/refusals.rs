//! What clients are told by services that take nothing, by BPF_PROG_TEST_RUN.
#![cfg(test)]

mod support;
use support::*;
use tombolo_ebpf::*;

/// The service's other ports are refused in this scope.
fn whole(node: &Node, address: &str, scope: Scope) {
    let rest = Frontend { ip: ip(address), port: 0, protocol: 0, scope };
    node.datapath.set_service(&rest, &ServiceEntry::default()).unwrap();
}

/// The packet is counted as a drop of reason 158 and answered: TCP with a reset of the service, UDP with port unreachable,
/// which quotes it.
fn refused(
    node: &mut Node,
    hook: (&'static str, u32),
    packet: &[u8],
    client: &str,
    service: (&str, u16),
) -> Ran {
    node.events();
    let ran = node.run(hook.0, hook.1, packet);
    assert_eq!((ran.action, node.dropped().flow.drop_reason), (REDIRECT, 158));
    let seen = ran.seen();
    let f = usize::from(!ip(client).is_ipv4());
    let is_tcp = packet[[23, 20][f]] == 6;
    if is_tcp {
        assert_eq!((seen.source, seen.destination), ((ip(service.0), service.1), (ip(client), 4000)));
        let segment = &ran.packet[[34, 54][f]..];
        let (sequence, acknowledged) = (&segment[4..8], &segment[8..12]);
        assert_eq!((segment.len(), segment[13]), (20, 0x14), "a reset that acknowledges the SYN");
        let sent = u32::from_be_bytes(packet[[38, 58][f]..][..4].try_into().unwrap());
        assert_eq!((sequence, acknowledged), (&[0; 4][..], &(sent + 1).to_be_bytes()[..]));
        return ran;
    }
    assert_eq!((seen.source.0, seen.destination.0), (ip(GATEWAY[f]), ip(client)));
    assert_eq!(ran.quoted(), ((ip(client), 4000), (ip(service.0), service.1)));
    let icmp = if f == 0 { &ran.packet[34..36] } else { &ran.packet[54..56] };
    assert_eq!(icmp, [[3, 3], [1, 4]][f]);
    ran
}

#[test]
fn a_connection_under_way_is_reset_where_its_end_expects_it_and_a_reset_is_never_answered() {
    let mut node = Node::new();
    for f in FAMILIES {
        node.service(CLUSTER_IP[f], 80, Scope::Internal, 10, &[]);
        let mut segment = tcp((POD_A[f], 4000), (CLUSTER_IP[f], 80), "A");
        let at = [34, 54][f];
        let acknowledged: [u8; 4] = segment[at + 8..at + 12].try_into().unwrap();
        let ran = node.run("from_endpoint", node.a, &segment);
        assert_eq!((ran.action, ran.seen().source), (REDIRECT, (ip(CLUSTER_IP[f]), 80)));
        let reset = &ran.packet[at..];
        assert_eq!((&reset[4..8], reset[13], reset.len()), (&acknowledged[..], 4, 20));
        segment[at + 13] |= 4;
        node.drops("from_endpoint", node.a, &segment, 158);
    }
}

#[test]
fn a_pod_is_told_that_a_service_has_no_backend_or_no_such_port() {
    let mut node = Node::new();
    for f in FAMILIES {
        node.service(CLUSTER_IP[f], 80, Scope::Internal, 10, &[]);
        whole(&node, CLUSTER_IP[f], Scope::Internal);
        let hook = ("from_endpoint", node.a);
        for port in [80, 81] {
            let service = (CLUSTER_IP[f], port);
            for packet in [tcp((POD_A[f], 4000), service, "S"), udp((POD_A[f], 4000), service, 9)] {
                let ran = refused(&mut node, hook, &packet, POD_A[f], service);
                assert_eq!(ran.macs(), (MAC_A, HOST_MAC), "back to the pod");
            }
        }
        node.drops(hook.0, hook.1, &ping(POD_A[f], CLUSTER_IP[f], 3, true), 158);
        // An error is never answered with an error.
        let quoted = udp((CLUSTER_IP[f], 81), (POD_A[f], 4000), 9);
        node.drops(hook.0, hook.1, &unreachable(POD_A[f], CLUSTER_IP[f], &quoted), 158);
    }
}

#[test]
fn outside_clients_are_told_of_a_port_without_backend_alone() {
    let mut node = Node::new();
    for f in FAMILIES {
        node.service(VIP[f], 80, Scope::External, 20, &[]);
        whole(&node, VIP[f], Scope::External);
        node.service(NODE[f], 30_080, Scope::External, 21, &[]);
        let hook = ("from_uplink", node.uplink);
        for service in [(VIP[f], 80), (NODE[f], 30_080)] {
            for packet in [tcp((CLIENT[f], 4000), service, "S"), udp((CLIENT[f], 4000), service, 9)] {
                let ran = refused(&mut node, hook, &packet, CLIENT[f], service);
                // The packets of these tests go from MAC_A to HOST_MAC.
                assert_eq!(ran.macs(), (MAC_A, HOST_MAC), "back where it came from");
            }
        }
        node.drops(hook.0, hook.1, &tcp((CLIENT[f], 4000), (VIP[f], 81), "S"), 158);
    }
}

#[test]
fn with_the_policy_local_nobody_is_told() {
    let mut node = Node::new();
    for f in FAMILIES {
        for (scope, hook, client) in [
            (Scope::External, ("from_uplink", node.uplink), CLIENT[f]),
            (Scope::Internal, ("from_endpoint", node.a), POD_A[f]),
        ] {
            let frontend = Frontend { ip: ip(VIP[f]), port: 80, protocol: 6, scope };
            let entry = ServiceEntry { rev_nat: 20, local_only: true, ..ServiceEntry::default() };
            node.datapath.set_service(&frontend, &entry).unwrap();
            node.drops(hook.0, hook.1, &tcp((client, 4000), (VIP[f], 80), "S"), 158);
        }
    }
}

#[test]
fn a_flood_is_not_answered_packet_by_packet() {
    let mut node = Node::new();
    node.service(VIP[0], 80, Scope::External, 20, &[]);
    let packet = udp((CLIENT[0], 4000), (VIP[0], 80), 9);
    let began = monotonic_ns();
    let answered = (0..20_000).filter(|_| {
        let ran = node.run("from_uplink", node.uplink, &packet);
        ran.action == REDIRECT
    });
    let answered = u64::try_from(answered.count()).unwrap();
    let seconds = (monotonic_ns() - began) / 1_000_000_000 + 1;
    let cpus = u64::try_from(std::thread::available_parallelism().unwrap().get()).unwrap();
    assert!((1000..=1000 * cpus * (seconds + 1)).contains(&answered), "{answered} in {seconds} s");
    node.events();
}
