//! A node for packets: veth pairs in place of two pods, uplink and tunnel, the datapath on them, and another node behind the tunnel.
//!
//! All in the namespaces of the bench itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use etherparse::PacketBuilder;
use tombolo_ebpf::{
    Datapath, DatapathConfig, EventReader, FlowFilter, Interface, LocalAddress, MapSizes, NodeConfig,
    NodeEntry, NodePath, PrefixEntry, RuleEntry,
};
use tombolo_tests::netns::run;

use crate::Failure;
use crate::rules::{allow, policy};

/// Verdicts of a program at a hook.
pub(crate) const SHOT: u32 = 2;
pub(crate) const REDIRECT: u32 = 7;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// One of two by family.
pub(crate) type Both<T> = [T; 2];

pub(crate) const POD_A: Both<&str> = ["10.1.1.2", "fd00:10:1:1::2"];
pub(crate) const POD_B: Both<&str> = ["10.1.1.3", "fd00:10:1:1::3"];
pub(crate) const REMOTE: Both<&str> = ["10.1.2.2", "fd00:10:1:2::2"];
pub(crate) const CLIENT: Both<&str> = ["172.20.200.10", "fd00:20:200::10"];
const INTERNAL: Both<&str> = ["10.1.1.1", "fd00:10:1:1::1"];
pub(crate) const UNDERLAY: Both<&str> = ["172.20.11.2", "fd00:20:11::2"];
const OTHER_NODE: &str = "172.20.12.2";

const ID_A: u32 = 66_001;
const ID_B: u32 = 66_002;
const ID_REMOTE: u32 = 66_003;
/// The policies of A and B.
const POLICIES: [u32; 2] = [1, 2];

/// The port that the pods serve at.
pub(crate) const PORT: u16 = 80;

/// A TCP packet with some of the flags SYN, ACK.
pub(crate) fn tcp(from: (IpAddr, u16), to: (IpAddr, u16), flags: &str) -> Result<Vec<u8>, Failure> {
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 0xa], [2, 0, 0, 0, 0, 1]);
    let ip = match (from.0, to.0) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        _ => return Err(format!("{} and {} are of two families", from.0, to.0).into()),
    };
    let mut step = ip.tcp(from.1, to.1, 1000, 64_000);
    step = if flags.contains('S') { step.syn() } else { step };
    step = if flags.contains('A') { step.ack(1) } else { step };
    let mut packet = Vec::new();
    // With the 10 bytes of payload it fills the least frame of IPv4.
    step.write(&mut packet, &[7; 10])?;
    Ok(packet)
}

/// An address that is written here.
pub(crate) fn ip(text: &str) -> Result<IpAddr, Failure> {
    Ok(text.parse()?)
}

pub(crate) struct Node {
    pub(crate) datapath: Datapath,
    pub(crate) a: u32,
    pub(crate) b: u32,
    pub(crate) uplink: u32,
    config: NodeConfig,
    events: EventReader,
    pub(crate) pins: PathBuf,
}

/// Room for so many flows, services and addresses.
pub(crate) fn sizes(flows: u32, services: u32, hosts: u32) -> MapSizes {
    // Two entries each, and a service's.
    let flows = (flows * 4).next_power_of_two();
    MapSizes {
        hosts: hosts + 1024,
        services: services + 64,
        backends: services + 64,
        conntrack_half: flows,
        conntrack: flows,
        nat_half: 65_536,
        rules: 32_768,
        event_ring_bytes: 1 << 22,
        ..MapSizes::default()
    }
}

fn index(name: &str) -> Result<u32, Failure> {
    Ok(nix::net::if_::if_nametoindex(name)?)
}

fn pod(number: u8, identity: u32) -> Interface {
    Interface {
        ready: true,
        identity,
        policy_id: 0,
        endpoint_id: u16::from(number),
        v4: Some(Ipv4Addr::new(10, 1, 1, number)),
        v6: Some(Ipv6Addr::new(0xfd00, 0x10, 1, 1, 0, 0, 0, u16::from(number))),
        mac: [2, 0, 0, 0, 0, number],
        host_mac: [2, 0, 0, 0, 0, 1],
        ..Interface::default()
    }
}

/// So many entries, the last of which allows `identity`.
fn entries(count: u32, identity: u32) -> Vec<RuleEntry> {
    let peers = (1..count).map(|number| 100_000 + number).chain([identity]);
    peers.map(|peer| allow(Some(peer), TCP, PORT)).collect()
}

impl Node {
    pub(crate) fn new(config: &DatapathConfig, runtime: &tokio::runtime::Runtime) -> Result<Self, Failure> {
        for name in ["poda", "podb", "upl", "vxd"] {
            run("ip", &["link", "add", name, "type", "veth", "peer", "name", &format!("p{name}")]);
            run("ip", &["link", "set", name, "up"]);
            run("ip", &["link", "set", &format!("p{name}"), "up"]);
        }
        let datapath = Datapath::open(config)?;
        let events = {
            let _guard = runtime.enter();
            datapath.events()?
        };
        let node = Self {
            a: index("poda")?,
            b: index("podb")?,
            uplink: index("upl")?,
            config: NodeConfig {
                ready: true,
                cluster_id: 1,
                uplink_ifindex: index("upl")?,
                overlay_ifindex: index("vxd")?,
                internal4: INTERNAL[0].parse().ok(),
                internal6: INTERNAL[1].parse().ok(),
                underlay4: UNDERLAY[0].parse().ok(),
                underlay6: UNDERLAY[1].parse().ok(),
                ..NodeConfig::default()
            },
            pins: config.bpffs.join("tombolo").join(format!("v{}", config.schema)),
            datapath,
            events,
        };
        node.fill()?;
        Ok(node)
    }

    fn fill(&self) -> Result<(), Failure> {
        let d = &self.datapath;
        d.set_config(&self.config)?;
        for address in INTERNAL.into_iter().chain(UNDERLAY) {
            d.upsert_local_address(ip(address)?, LocalAddress::Host)?;
        }
        for (address, place) in POD_A.map(|a| (a, self.a)).into_iter().chain(POD_B.map(|b| (b, self.b))) {
            d.upsert_local_address(ip(address)?, LocalAddress::Pod(place))?;
        }
        let there = PrefixEntry { identity: ID_REMOTE, node: 1, ..PrefixEntry::default() };
        for address in REMOTE {
            d.upsert_prefix(ip(address)?.into(), &there)?;
        }
        self.remote(NodePath::Overlay)?;
        self.police(Some(10), Some(10))
    }

    /// How the other node is reached.
    pub(crate) fn remote(&self, path: NodePath) -> Result<(), Failure> {
        let tunnel = Some(ip(OTHER_NODE)?);
        Ok(self.datapath.upsert_node(1, &NodeEntry { tunnel, path, encrypt: false, mtu: 1450 })?)
    }

    /// How many entries the policies of A (egress) and B (ingress) have; `None`: not enforced.
    pub(crate) fn police(&self, egress: Option<u32>, ingress: Option<u32>) -> Result<(), Failure> {
        let d = &self.datapath;
        let egress = egress.map(|count| entries(count, ID_B));
        d.set_policy(POLICIES[0], &policy(None, egress))?;
        let ingress = ingress.map(|count| entries(count, ID_A));
        d.set_policy(POLICIES[1], &policy(ingress, None))?;
        d.upsert_interface(self.a, &Interface { policy_id: POLICIES[0], ..pod(2, ID_A) })?;
        d.upsert_interface(self.b, &Interface { policy_id: POLICIES[1], ..pod(3, ID_B) })?;
        Ok(())
    }

    /// Both may speak to each other as A opens it, and that is all.
    pub(crate) fn strict(&self) -> Result<(), Failure> {
        let policies = [(Some(vec![]), Some(entries(10, ID_B))), (Some(entries(10, ID_A)), Some(vec![]))];
        for (id, (ingress, egress)) in POLICIES.into_iter().zip(policies) {
            self.datapath.set_policy(id, &policy(ingress, egress))?;
        }
        Ok(())
    }

    /// The node's row, with something changed.
    pub(crate) fn configure(&mut self, change: impl FnOnce(&mut NodeConfig)) -> Result<(), Failure> {
        change(&mut self.config);
        Ok(self.datapath.set_config(&self.config)?)
    }

    /// Takes all events that are there: a full ring is cheaper than one with room.
    pub(crate) fn drain(&mut self) {
        while self.events.try_next().is_some() {}
    }

    /// Forgets all flows.
    pub(crate) fn flush(&self) -> Result<(), Failure> {
        self.datapath.flush(&FlowFilter::default())?;
        Ok(())
    }

    /// Packets dropped so far for a reason.
    pub(crate) fn dropped(&self, reason: u8) -> Result<u64, Failure> {
        let metrics = self.datapath.metrics()?;
        Ok(metrics.iter().filter(|metric| metric.reason == reason).map(|metric| metric.packets).sum())
    }

    /// Packets dropped so far.
    pub(crate) fn drops(&self) -> Result<u64, Failure> {
        let metrics = self.datapath.metrics()?;
        Ok(metrics.iter().filter(|metric| metric.reason != 0).map(|metric| metric.packets).sum())
    }
}
