//! Nodes and pods in namespaces, with our datapath on a node or without: the same addresses, routes and MTU.

use std::net::SocketAddr;
use std::sync::Arc;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns};
use tombolo_ebpf::{
    Datapath, DatapathConfig, Interface, LocalAddress, MapSizes, NodeConfig, NodeEntry, NodePath, PrefixEntry,
};
use tombolo_tests::netns::Namespace;

use crate::Failure;
use crate::node::{PORT, TCP, UDP, ip};
use crate::rules::{allow, policy};

/// Of the overlay, and so of all.
const MTU: u32 = 1450;

/// A bpffs of its own; goes with the value.
pub(crate) struct Bpffs(tempfile::TempDir);

impl Bpffs {
    pub(crate) fn new() -> Result<Self, Failure> {
        let folder = tempfile::tempdir()?;
        mount(Some("bpf"), folder.path(), Some("bpf"), MsFlags::empty(), None::<&str>)?;
        Ok(Self(folder))
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        self.0.path()
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        if let Err(error) = umount2(self.0.path(), MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {error}", self.0.path().display());
        }
    }
}

/// Runs `work` on this thread inside a namespace, then comes back.
pub(crate) fn inside<T>(space: &Namespace, work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let home = std::fs::File::open("/proc/thread-self/ns/net")?;
    tombolo_tests::load::enter(space.name())?;
    let result = work();
    setns(home, CloneFlags::CLONE_NEWNET)?;
    result
}

/// Runs lines of a shell in a namespace.
pub(crate) fn sh(space: &Namespace, lines: &str) {
    space.run(&["sh", "-ec", lines]);
}

/// What joins a node's pods.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Joined {
    /// The node routes between their interfaces.
    Routed,
    /// A bridge, which is their gateway.
    Bridged,
}

pub(crate) struct Pod {
    pub(crate) space: Namespace,
    number: u8,
    node: u8,
}

impl Pod {
    pub(crate) fn address(&self) -> String {
        format!("10.1.{}.{}", self.node, self.number)
    }

    /// Where it serves.
    pub(crate) fn at(&self) -> Result<SocketAddr, Failure> {
        Ok((ip(&self.address())?, PORT).into())
    }

    fn device(&self) -> String {
        format!("pod{}", self.number)
    }

    fn identity(&self) -> u32 {
        66_000 + u32::from(self.node) * 100 + u32::from(self.number)
    }
}

pub(crate) struct Host {
    pub(crate) space: Namespace,
    number: u8,
    joined: Joined,
    pub(crate) pods: Vec<Pod>,
}

impl Host {
    /// A node that forwards, with so many pods.
    pub(crate) fn new(number: u8, pods: u8, joined: Joined) -> Self {
        let space = Namespace::new("bench");
        sh(
            &space,
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0",
        );
        if joined == Joined::Bridged {
            sh(
                &space,
                &format!(
                    "ip link add name pods type bridge; ip link set pods up mtu {MTU}; ip addr add 10.1.{number}.1/24 dev pods"
                ),
            );
        } else {
            sh(
                &space,
                &format!(
                    "ip link add host type veth peer name net; ip link set host up; ip link set net up; ip addr add 10.1.{number}.1/32 dev host"
                ),
            );
        }
        let mut host = Self { space, number, joined, pods: Vec::new() };
        for pod in 0..pods {
            host.add_pod(pod + 2);
        }
        host
    }

    fn add_pod(&mut self, number: u8) {
        let pod = Pod { space: Namespace::new("pod"), number, node: self.number };
        let (device, address) = (pod.device(), pod.address());
        let gateway = format!("10.1.{}.1", self.number);
        sh(
            &self.space,
            &format!(
                "ip link add {device} address 02:00:00:00:01:{:02x} mtu {MTU} type veth peer name eth0 address \
                 02:00:00:00:01:{number:02x} mtu {MTU} netns {}
                 ip link set {device} up",
                number + 100,
                pod.space.name()
            ),
        );
        let (length, route) = match self.joined {
            Joined::Routed => {
                sh(
                    &self.space,
                    &format!(
                        "ip route add {address}/32 dev {device}
                         ip neigh add {address} lladdr 02:00:00:00:01:{number:02x} dev {device}"
                    ),
                );
                (
                    32,
                    format!(
                        "ip route add default via {gateway} dev eth0 onlink; ip neigh add {gateway} lladdr 02:00:00:00:01:{:02x} dev eth0",
                        number + 100
                    ),
                )
            }
            Joined::Bridged => {
                sh(&self.space, &format!("ip link set {device} master pods"));
                (24, format!("ip route add default via {gateway}"))
            }
        };
        sh(
            &pod.space,
            &format!(
                "sysctl -qw net.ipv4.ip_local_port_range='1024 65535'
                 ip link set eth0 up; ip addr add {address}/{length} dev eth0; {route}"
            ),
        );
        self.pods.push(pod);
    }

    fn other(&self) -> u8 {
        3 - self.number
    }

    fn underlay(number: u8) -> String {
        format!("172.20.0.{number}")
    }

    /// Joins two nodes by a wire.
    pub(crate) fn wire(&self, other: &Self) {
        let peer = other.space.name();
        // Room for what the overlay adds.
        sh(&self.space, &format!("ip link add wire mtu 1500 type veth peer name wire mtu 1500 netns {peer}"));
        for host in [self, other] {
            sh(
                &host.space,
                &format!("ip link set wire up; ip addr add {}/24 dev wire", Self::underlay(host.number)),
            );
        }
    }

    /// The other node's pods are behind the wire, without more.
    pub(crate) fn route(&self) {
        let other = self.other();
        sh(
            &self.space,
            &format!(
                "ip route add 10.1.{other}.0/24 via {} src 10.1.{}.1",
                Self::underlay(other),
                self.number
            ),
        );
    }

    /// The other node's pods are behind the kernel's VXLAN, its tables written as flannel writes them.
    pub(crate) fn tunnel(&self) {
        let (own, other) = (self.number, self.other());
        let mac = |number: u8| format!("02:00:00:00:02:{number:02x}");
        sh(
            &self.space,
            &format!(
                "ip link add vx address {} mtu {MTU} type vxlan id 1 local {} dev wire dstport 8472 nolearning
                 ip addr add 10.1.{own}.0/32 dev vx; ip link set vx up
                 ip route add 10.1.{other}.0/24 via 10.1.{other}.0 dev vx onlink
                 ip neigh add 10.1.{other}.0 lladdr {} dev vx
                 bridge fdb add {} dev vx dst {}",
                mac(own),
                Self::underlay(own),
                mac(other),
                mac(other),
                Self::underlay(other)
            ),
        );
    }
}

/// A node with our datapath.
pub(crate) struct Ours {
    pub(crate) host: Host,
    pub(crate) datapath: Arc<Datapath>,
    /// Holds the pins for as long as the datapath is used.
    _bpffs: Bpffs,
    pub(crate) config: DatapathConfig,
}

impl Ours {
    /// One node, its pods under policies that allow what is measured and nothing else.
    pub(crate) fn new(host: Host, sizes: MapSizes) -> Result<Self, Failure> {
        let bpffs = Bpffs::new()?;
        let config = DatapathConfig { bpffs: bpffs.path().to_owned(), sizes, ..DatapathConfig::default() };
        let datapath = Arc::new(inside(&host.space, || Ok(Datapath::open(&config)?))?);
        let ours = Self { host, datapath, _bpffs: bpffs, config };
        let node = ours.node(NodeConfig::default());
        ours.datapath.set_config(&node)?;
        ours.datapath
            .upsert_local_address(ip(&format!("10.1.{}.1", ours.host.number))?, LocalAddress::Host)?;
        ours.police()?;
        for pod in &ours.host.pods {
            ours.attach(pod)?;
        }
        Ok(ours)
    }

    fn node(&self, change: NodeConfig) -> NodeConfig {
        NodeConfig {
            ready: true,
            cluster_id: 1,
            internal4: format!("10.1.{}.1", self.host.number).parse().ok(),
            ..change
        }
    }

    /// Peers are the pods of both nodes; before them stand nine entries of others.
    fn police(&self) -> Result<(), Failure> {
        let peers = [1, 2].into_iter().flat_map(|node| (2..=3).map(move |pod| 66_000 + node * 100 + pod));
        let tcp = (100_000..100_009).chain(peers).map(|peer| allow(Some(peer), TCP, PORT));
        let rules: Vec<_> = tcp.chain([allow(None, UDP, PORT)]).collect();
        let both = policy(Some(rules.clone()), Some(rules));
        Ok(self.datapath.set_policy(1, &both)?)
    }

    fn attach(&self, pod: &Pod) -> Result<(), Failure> {
        let row = Interface {
            ready: true,
            identity: pod.identity(),
            policy_id: 1,
            endpoint_id: u16::from(pod.number),
            v4: pod.address().parse().ok(),
            v6: None,
            mac: [2, 0, 0, 0, 1, pod.number],
            host_mac: [2, 0, 0, 0, 1, pod.number + 100],
            ..Interface::default()
        };
        inside(&self.host.space, || {
            let index = nix::net::if_::if_nametoindex(pod.device().as_str())?;
            self.datapath.upsert_interface(index, &row)?;
            self.datapath.upsert_local_address(ip(&pod.address())?, LocalAddress::Pod(index))?;
            Ok(self.datapath.attach_endpoint(index)?)
        })
    }

    /// Hooks the pods again, as an agent does that was started anew.
    pub(crate) fn attach_again(&self, datapath: &Datapath) -> Result<(), Failure> {
        inside(&self.host.space, || {
            for pod in &self.host.pods {
                datapath.attach_endpoint(nix::net::if_::if_nametoindex(pod.device().as_str())?)?;
            }
            Ok(())
        })
    }

    /// The other node's pods, through the tunnel or along the routes.
    pub(crate) fn reach(&self, path: NodePath) -> Result<(), Failure> {
        let (own, other) = (self.host.number, self.host.other());
        if path == NodePath::Overlay {
            sh(
                &self.host.space,
                &format!(
                    "ip link add vx type vxlan external dstport 8472; ip link set vx addrgenmode none
                     ip link set vx up mtu {MTU} arp off; ip route add 10.1.{other}.0/24 dev vx src 10.1.{own}.1"
                ),
            );
        } else {
            self.host.route();
        }
        inside(&self.host.space, || {
            let d = &self.datapath;
            let uplink_ifindex = nix::net::if_::if_nametoindex("wire")?;
            let overlay_ifindex =
                if path == NodePath::Overlay { nix::net::if_::if_nametoindex("vx")? } else { 0 };
            d.set_config(&self.node(NodeConfig {
                uplink_ifindex,
                overlay_ifindex,
                underlay4: Host::underlay(own).parse().ok(),
                ..NodeConfig::default()
            }))?;
            let tunnel = Some(ip(&Host::underlay(other))?);
            d.upsert_node(1, &NodeEntry { tunnel, path, encrypt: false, mtu: MTU })?;
            let there = PrefixEntry { node: 1, ..PrefixEntry::default() };
            let node = PrefixEntry { identity: 6, skip_tunnel: true, ..there };
            d.upsert_prefix(ip(&Host::underlay(other))?.into(), &node)?;
            for number in 2..=3 {
                let pod = PrefixEntry { identity: 66_000 + u32::from(other) * 100 + number, ..there };
                d.upsert_prefix(ip(&format!("10.1.{other}.{number}"))?.into(), &pod)?;
            }
            d.upsert_local_address(ip(&Host::underlay(own))?, LocalAddress::Host)?;
            d.attach_uplink(uplink_ifindex)?;
            if overlay_ifindex != 0 {
                d.attach_overlay(overlay_ifindex)?;
            }
            Ok(())
        })
    }
}
