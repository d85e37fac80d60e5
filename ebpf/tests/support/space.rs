//! Namespaces with pods in them, for tests with real traffic.

use super::*;
use std::fs::File;

/// A namespace kept by a sleeping process of ours; killed with the value.
pub struct Space(std::process::Child);

impl Space {
    pub fn new() -> Self {
        let child = Command::new("unshare").args(["--net", "sleep", "600"]).spawn().unwrap();
        let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let theirs = format!("/proc/{}/ns/net", child.id());
        // unshare(1) enters the namespace before it starts sleep; the link's change tells it has.
        let limit = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while std::fs::read_link(&theirs).is_ok_and(|now| now == own) {
            assert!(std::time::Instant::now() < limit, "unshare did not enter its namespace");
            std::thread::yield_now();
        }
        Self(child)
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn sh(&self, command: &str) {
        self.try_sh(command).unwrap_or_else(|text| panic!("{command}: {text}"));
    }

    pub fn try_sh(&self, command: &str) -> Result<String, String> {
        let net = format!("--net=/proc/{}/ns/net", self.pid());
        let out = Command::new("nsenter").args([&net, "sh", "-ec", command]).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        if out.status.success() { Ok(text) } else { Err(text) }
    }

    /// Runs `work` on this thread inside the namespace, then comes back.
    pub fn inside<T>(&self, work: impl FnOnce() -> T) -> T {
        let home = File::open("/proc/thread-self/ns/net").unwrap();
        let there = File::open(format!("/proc/{}/ns/net", self.pid())).unwrap();
        nix::sched::setns(there, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let result = work();
        nix::sched::setns(home, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        result
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A pod in its namespace, with addresses and a way to its gateway.
pub struct Pod {
    pub space: Space,
    pub ifindex: u32,
}

pub fn mac(last: u8) -> String {
    format!("02:00:00:00:01:{last:02x}")
}

/// Makes a pod on the node whose namespace the thread is in and writes its rows.
pub fn add_pod(datapath: &Datapath, node: u8, number: u8, identity: u32, attach_mtu: u32) -> Pod {
    let space = Space::new();
    let name = format!("tb{number}");
    let (v4, v6) = (format!("10.1.{node}.{number}"), format!("fd00:10:1:{node}::{number}"));
    let (gw4, gw6) = (format!("10.1.{node}.1"), format!("fd00:10:1:{node}::1"));
    let (pod_mac, host_mac) = (mac(number), mac(number + 100));
    sh(&format!(
        "ip link add {name} address {host_mac} type veth peer name eth0 address {pod_mac} netns {}
         ip link set {name} up mtu {attach_mtu}
         ip route add {v4}/32 dev {name}; ip -6 route add {v6}/128 dev {name}
         ip neigh add {v4} lladdr {pod_mac} dev {name}; ip neigh add {v6} lladdr {pod_mac} dev {name}",
        space.pid()
    ));
    space.sh(&format!(
        "ip link set lo up; ip link set eth0 up mtu {attach_mtu}
         ip addr add {v4}/32 dev eth0; ip addr add {v6}/128 dev eth0 nodad
         ip route add default via {gw4} dev eth0 onlink; ip -6 route add default via {gw6} dev eth0 onlink
         ip neigh add {gw4} lladdr {host_mac} dev eth0; ip neigh add {gw6} lladdr {host_mac} dev eth0"
    ));
    let ifindex = index(&name);
    let row = Interface {
        ready: true,
        identity,
        policy_id: 0,
        endpoint_id: u16::from(number),
        v4: v4.parse().ok(),
        v6: v6.parse().ok(),
        mac: [2, 0, 0, 0, 1, number],
        host_mac: [2, 0, 0, 0, 1, number + 100],
    };
    datapath.upsert_interface(ifindex, &row).unwrap();
    for address in [&v4, &v6] {
        datapath.upsert_local_address(ip(address), LocalAddress::Pod(ifindex)).unwrap();
    }
    datapath.attach_endpoint(ifindex).unwrap();
    Pod { space, ifindex }
}

pub fn open(attach: Attach, bpffs: &std::path::Path) -> Datapath {
    let config =
        DatapathConfig { bpffs: bpffs.to_owned(), sizes: small_sizes(), attach, ..DatapathConfig::default() };
    Datapath::open(&config).unwrap()
}

/// Packets dropped by reason, but for what every interface that comes up sends: listener reports and other
/// multicast.
pub fn drops(datapath: &Datapath) -> Vec<(u8, u64)> {
    let metrics = datapath.metrics().unwrap();
    let noise = |reason: u8| matches!(reason, 0 | 150 | 176);
    metrics.into_iter().filter(|m| !noise(m.reason)).map(|m| (m.reason, m.packets)).collect()
}

pub fn host_config() -> NodeConfig {
    NodeConfig {
        ready: true,
        cluster_id: 1,
        internal4: GATEWAY[0].parse().ok(),
        internal6: GATEWAY[1].parse().ok(),
        ..NodeConfig::default()
    }
}

/// Gives the node its internal addresses and forwarding.
pub fn prepare_node(datapath: &Datapath, node: u8) {
    sh(&format!(
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=0 \
         net.ipv4.conf.default.rp_filter=0
         ip link add host type veth peer name net; ip link set host up; ip link set net up
         ip addr add 10.1.{node}.1/32 dev host; ip addr add fd00:10:1:{node}::1/128 dev host nodad"
    ));
    for address in [format!("10.1.{node}.1"), format!("fd00:10:1:{node}::1")] {
        datapath.upsert_local_address(ip(&address), LocalAddress::Host).unwrap();
    }
}
