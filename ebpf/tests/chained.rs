//! Debian's CNI plugins behind ours, on the interfaces of pods whose packets the programs forward: what they set up in the
//! kernel must be met.
#![cfg(test)]
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod support;
use std::net::SocketAddr;
use support::space::*;
use support::*;
use tombolo_ebpf::*;

/// The node's addresses on its uplink, and a machine's beyond.
const OWN: [&str; 2] = ["172.20.0.1", "fd00:20::1"];
const OUTSIDE: [&str; 2] = ["172.20.0.9", "fd00:20::9"];

struct Chain {
    bpffs: tempfile::TempDir,
    datapath: Datapath,
    outside: Space,
    pod: Pod,
    other: Pod,
}

impl Chain {
    fn new() -> Self {
        let bpffs = isolate();
        let datapath = open(Attach::Auto, bpffs.path());
        prepare_node(&datapath, 1);
        let outside = Space::new();
        outside.sh("sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0");
        sh(&format!(
            "ip link add wire type veth peer name wire netns {}; ip link set wire up
             ip addr add 172.20.0.1/24 dev wire; ip addr add fd00:20::1/64 dev wire nodad",
            outside.pid()
        ));
        outside.sh("ip link set lo up; ip link set wire up
             ip addr add 172.20.0.9/24 dev wire; ip addr add fd00:20::9/64 dev wire nodad
             ip route add 10.1.1.0/24 via 172.20.0.1; ip -6 route add fd00:10:1:1::/64 via fd00:20::1");
        let config = NodeConfig { uplink_ifindex: index("wire"), ..host_config() };
        datapath.set_config(&config).unwrap();
        for address in OWN {
            datapath.upsert_local_address(ip(address), LocalAddress::Host).unwrap();
        }
        let pod = add_pod(&datapath, 1, 2, ID_A, 1500);
        let other = add_pod(&datapath, 1, 3, ID_B, 1500);
        datapath.attach_uplink(index("wire")).unwrap();
        Self { bpffs, datapath, outside, pod, other }
    }

    /// Calls a plugin as a runtime does, with the result that ours has for the pod.
    fn plugin(&self, name: &str, mut configuration: serde_json::Value) {
        use std::io::Write;
        let netns = format!("/proc/{}/ns/net", self.pod.space.pid());
        let result = serde_json::json!({
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "tb2"}, {"name": "eth0", "sandbox": netns}],
            "ips": [
                {"address": format!("{}/32", POD_A[0]), "gateway": GATEWAY[0], "interface": 1},
                {"address": format!("{}/128", POD_A[1]), "gateway": GATEWAY[1], "interface": 1},
            ],
            "routes": [],
        });
        let rest = [
            ("cniVersion", "1.0.0".into()),
            ("name", "tombolo".into()),
            ("type", name.into()),
            ("prevResult", result),
        ];
        for (key, value) in rest {
            configuration[key] = value;
        }
        let mut child = std::process::Command::new(format!("/usr/lib/cni/{name}"))
            .envs([("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "chained"), ("CNI_IFNAME", "eth0")])
            .envs([("CNI_NETNS", netns.as_str()), ("CNI_PATH", "/usr/lib/cni")])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("needs Debian's containernetworking-plugins");
        child.stdin.take().unwrap().write_all(configuration.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stdout));
    }

    /// As the agent writes it where the configuration says `queues`.
    fn queue(&self) {
        let rows = self.datapath.interfaces().unwrap();
        let row = rows.into_iter().find(|(index, _)| *index == self.pod.ifindex).unwrap().1;
        self.datapath.upsert_interface(self.pod.ifindex, &Interface { queued: true, ..row }).unwrap();
        sh("sysctl -qw net.ipv4.conf.tb2.accept_local=1");
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        nix::mount::umount2(self.bpffs.path(), nix::mount::MntFlags::MNT_DETACH).ok();
    }
}

#[test]
fn a_port_of_portmap_is_reached_from_outside_and_from_pods() {
    let chain = Chain::new();
    let mapping = |protocol| serde_json::json!({"hostPort": 8080, "containerPort": 80, "protocol": protocol});
    chain.plugin(
        "portmap",
        serde_json::json!({"snat": true, "runtimeConfig": {"portMappings": [mapping("tcp"), mapping("udp")]}}),
    );
    for f in FAMILIES {
        for client in [&chain.outside, &chain.other.space] {
            converse(client, &chain.pod.space, (POD_A[f], 80), (OWN[f], 8080));
        }
    }
    assert_eq!(drops(&chain.datapath), vec![]);
}

/// The plugin's limits in bits per second.
const RATE: f64 = 20e6;

#[test]
fn the_queues_of_bandwidth_are_passed_both_ways_and_all_else_works_on() {
    let chain = Chain::new();
    chain.queue();
    let rate = RATE as u64;
    chain.plugin(
        "bandwidth",
        serde_json::json!({
            "ingressRate": rate, "ingressBurst": rate / 10, "egressRate": rate, "egressBurst": rate / 10,
        }),
    );
    for f in FAMILIES {
        for protocol in [6, 17] {
            chain.datapath.upsert_backend(1, &Backend { ip: ip(POD_A[f]), port: 80, protocol }).unwrap();
            let frontend = Frontend { ip: ip(OWN[f]), port: 30_080, protocol, scope: Scope::External };
            let entry = ServiceEntry { rev_nat: 1, maglev: vec![1], ..ServiceEntry::default() };
            chain.datapath.set_service(&frontend, &entry).unwrap();
        }
        converse(&chain.outside, &chain.pod.space, (POD_A[f], 80), (OWN[f], 30_080));
        converse(&chain.other.space, &chain.pod.space, (POD_A[f], 81), (POD_A[f], 81));
        converse(&chain.pod.space, &chain.other.space, (POD_B[f], 81), (POD_B[f], 81));
        converse(&chain.pod.space, &Space::here(), (GATEWAY[f], 82), (GATEWAY[f], 82));
        let (pod, outside) = ((&chain.pod.space, POD_A[f]), (&chain.outside, OUTSIDE[f]));
        for (what, client, (server, address)) in [("ingress", outside.0, pod), ("egress", pod.0, outside)] {
            let got = goodput(client, server, SocketAddr::from((ip(address), 5000 + f as u16)));
            println!("{what} {address}: {:.1} % of the limit", got * 100.0 / RATE);
            assert!((0.6 * RATE..=1.1 * RATE).contains(&got), "{what} {address}: {got}");
        }
    }
    assert_eq!(drops(&chain.datapath), vec![]);
}
