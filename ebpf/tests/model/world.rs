//! A small world, so that things meet: two pods, a remote pod behind the tunnel and one that is routed, a client outside,
//! and services with few backends in common. Everything in both families.

use crate::kept::Kept;
use crate::rows::Rows;
use crate::support::*;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::Range;
use std::time::Duration;
use tombolo_ebpf::{
    EgressWay, Interface, LbMode, LocalAddress, NodeConfig, NodeEntry, NodePath, PrefixEntry, monotonic_ns,
};
use tombolo_model::{Frontend, Scope};

/// A routed pod of another node.
const DIRECT: [&str; 2] = ["10.1.3.2", "fd00:10:1:3::2"];
/// An address that nobody named.
const NOBODY: [&str; 2] = ["198.51.100.9", "2001:db8:f::9"];
/// A service's address that lies in the remote node's pod CIDR.
const REMOTE_VIP: [&str; 2] = ["10.1.2.77", "fd00:10:1:2::77"];
const CLIENT_B: [&str; 2] = ["172.20.200.11", "fd00:20:200::11"];
/// The address of an egress gateway.
const EGRESS: [&str; 2] = ["172.20.11.9", "fd00:20:11::9"];
const GROUP: [&str; 2] = ["224.0.0.5", "ff02::5"];

/// Who sends and receives.
pub const HOSTS: [[&str; 2]; 14] = [
    POD_A,
    POD_B,
    REMOTE,
    DIRECT,
    CLIENT,
    CLUSTER_IP,
    VIP,
    GATEWAY,
    NODE,
    REMOTE_NODE,
    NOBODY,
    REMOTE_VIP,
    CLIENT_B,
    GROUP,
];
/// Positions in [`HOSTS`], for the strategies.
pub const A: usize = 0;
pub const B: usize = 1;
/// More of them.
pub mod at {
    pub const CLIENT: usize = 4;
    pub const CLUSTER_IP: usize = 5;
    pub const VIP: usize = 6;
    pub const REMOTE_NODE: usize = 9;
}

pub const ID_DIRECT: u32 = 66_004;
/// The first SNAT port; there are so few that flows get in each other's way.
const SNAT_PORT: u16 = 20_000;
/// Numbers of policies.
pub const POLICIES: Range<u32> = 1..4;
/// Slots of a service's table.
const SLOTS: usize = 7;

/// Backends of a family, by position: host and port. Of ICMP echo there are no ports.
const BACKENDS: [([&str; 2], u16); 9] = [
    (POD_A, 8080),
    (POD_B, 8080),
    (REMOTE, 8080),
    (DIRECT, 8080),
    (REMOTE_NODE, 8472),
    (NOBODY, 8080),
    (GATEWAY, 8080),
    (POD_A, 0),
    (REMOTE, 0),
];

/// Services of a family, by position: address, port, and the backends they start with. Those with a port are served of TCP,
/// UDP and SCTP, the others of ICMP echo.
const SERVICES: [([&str; 2], u16, &[usize]); 11] = [
    (CLUSTER_IP, 80, &[0, 1, 2, 3]),
    (CLUSTER_IP, 81, &[0, 1]),
    (CLUSTER_IP, 82, &[4]),
    (VIP, 80, &[2, 3, 0]),
    (VIP, 81, &[2]),
    (VIP, 82, &[4]),
    (NODE, 80, &[1, 3]),
    (REMOTE_VIP, 80, &[5]),
    (VIP, 0, &[7, 8]),
    // With the number of their backends' port, as SCTP needs it.
    (CLUSTER_IP, 8080, &[0, 1, 2, 3]),
    (VIP, 8080, &[2, 3, 0, 6]),
];
pub const SERVICE_COUNT: usize = SERVICES.len();
pub const BACKEND_COUNT: usize = BACKENDS.len();

pub fn host(position: usize, family: usize) -> IpAddr {
    ip(HOSTS[position][family])
}

/// What of the node's own row changes.
#[derive(Clone, Copy, Debug)]
pub struct Switches {
    pub ready: bool,
    pub encrypt: bool,
    pub overlay: bool,
    pub wireguard: bool,
    /// How many SNAT ports there are.
    pub ports: u16,
    /// The policy of the node's own traffic.
    pub host: u32,
    pub lb_mode: LbMode,
    /// Whether pods leave the mesh under the node's address.
    pub masquerade: bool,
}

/// How a pod leaves the mesh by a policy.
#[derive(Clone, Copy, Debug)]
pub enum Leaving {
    Nowhere,
    Excluded,
    /// By the node behind the tunnel.
    Remote,
    /// By a node that nobody knows.
    Unknown,
    /// By this node.
    Here,
    /// By this node, which has no address for it.
    Nameless,
}

/// How the node behind the tunnel is reached.
#[derive(Clone, Copy, Debug)]
pub struct Reached {
    pub direct: bool,
    pub tunnel: bool,
    pub encrypt: bool,
}

const SWITCHES: Switches = Switches {
    ready: true,
    encrypt: false,
    overlay: true,
    wireguard: false,
    ports: 2,
    host: 0,
    lb_mode: LbMode::Snat,
    masquerade: false,
};
const REACHED: Reached = Reached { direct: false, tunnel: true, encrypt: true };

/// A row that streams change, so that it has to be put back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Row {
    Config,
    Remote,
    Pod(usize),
    Policy(u32),
    Backend(usize, usize),
    Service(usize, usize),
    Identity(usize, bool),
    Leaving(usize, usize, bool),
}

pub struct World {
    pub rows: Rows,
    pub kept: Kept,
    touched: BTreeSet<Row>,
    switches: Switches,
    /// How far time was moved.
    ahead_ns: u64,
    /// The model's time when the stream began.
    began_ns: u64,
    /// Packets so far: time never stands still.
    ticks: u64,
}

impl World {
    pub fn new() -> Self {
        let real = Node::new();
        let schema = std::fs::read_dir(real.bpffs.path().join("tombolo")).unwrap().next().unwrap().unwrap();
        let kept = Kept::open(&schema.path());
        let rows = Rows { real, model: tombolo_model::Node::default() };
        let mut world = Self {
            rows,
            kept,
            touched: BTreeSet::new(),
            switches: SWITCHES,
            ahead_ns: 0,
            began_ns: 0,
            ticks: 0,
        };
        world.fill();
        world
    }

    fn fill(&mut self) {
        let (a, b) = (self.rows.real.a, self.rows.real.b);
        self.configure(SWITCHES);
        self.rows.unmasked(&["172.20.200.11/32", "fd00:20:200::11/128"]);
        let prefix = |identity, node, skip_tunnel| PrefixEntry {
            identity,
            node,
            encrypt: false,
            remote_cluster: false,
            skip_tunnel,
            strict: false,
        };
        // As if pods were about the client, who is on no node.
        let strict = PrefixEntry { strict: true, ..prefix(2, 0, false) };
        self.rows.prefix(&format!("{}/29", CLIENT[0]), strict);
        for f in FAMILIES {
            for (address, place) in [
                (POD_A[f], LocalAddress::Pod(a)),
                (POD_B[f], LocalAddress::Pod(b)),
                (GATEWAY[f], LocalAddress::Host),
                (NODE[f], LocalAddress::Host),
            ] {
                self.rows.local(ip(address), place);
            }
            let (length, subnet) = if f == 0 { (32, 24) } else { (128, 64) };
            for (address, length, row) in
                [(REMOTE[f], subnet, prefix(2, 1, false)), (REMOTE_NODE[f], length, prefix(6, 1, true))]
            {
                self.rows.prefix(&format!("{address}/{length}"), row);
            }
            self.identity(f, false, ID_REMOTE);
            self.identity(f, true, ID_DIRECT);
            (0..BACKEND_COUNT).for_each(|backend| self.backend(f, backend, Some(0)));
            (0..SERVICE_COUNT).for_each(|service| self.service(f, service, Some(SERVICES[service].2)));
            let rest = Frontend { address: ip(VIP[f]), port: 0, protocol: 0, scope: Scope::External };
            self.rows.service(&rest, 0, Some(&[]));
        }
        let direct = NodeEntry { path: NodePath::Direct, ..NodeEntry::default() };
        self.rows.node(2, &direct);
        self.remote(REACHED);
        [A, B].into_iter().for_each(|pod| self.assign(pod, 0, true, false));
    }

    /// Puts every row back, forgets every flow, and lets the model's time begin.
    pub fn reset(&mut self) {
        self.ahead_ns = 0;
        for row in std::mem::take(&mut self.touched) {
            match row {
                Row::Config => self.configure(SWITCHES),
                Row::Remote => self.remote(REACHED),
                Row::Identity(family, true) => self.identity(family, true, ID_DIRECT),
                Row::Identity(family, false) => self.identity(family, false, ID_REMOTE),
                Row::Pod(pod) => self.assign(pod, 0, true, false),
                Row::Policy(number) => self.policy(number, None),
                Row::Backend(family, backend) => self.backend(family, backend, Some(0)),
                Row::Service(family, service) => self.service(family, service, Some(SERVICES[service].2)),
                Row::Leaving(family, pod, wide) => self.leaving(family, pod, wide, None),
            }
        }
        self.touched.clear();
        self.kept.take();
        // Destinations without a port left are forgotten with flows.
        self.rows.real.datapath.forget_flows(&[]).unwrap();
        self.rows.real.events();
        self.rows.model.conntrack = Default::default();
        self.rows.model.nat = Default::default();
        self.rows.model.fragments.clear();
        self.began_ns = monotonic_ns();
        self.ticks = 0;
    }

    /// How long the stream has been running, in nanoseconds of real time.
    pub fn age_ns(&self) -> u64 {
        monotonic_ns() - self.began_ns
    }

    /// The model's time: as the programs' but for the time that the stream takes.
    pub fn tick(&mut self) -> u64 {
        self.ticks += 1;
        self.began_ns + self.ahead_ns + self.ticks
    }

    pub fn configure(&mut self, switches: Switches) {
        self.touched.insert(Row::Config);
        self.switches = switches;
        let real = &self.rows.real;
        let config = NodeConfig {
            ready: switches.ready,
            encrypt: switches.encrypt,
            overlay_ifindex: if switches.overlay { real.overlay } else { 0 },
            wireguard_ifindex: if switches.wireguard { real.overlay } else { 0 },
            verdict_events: false,
            wireguard_port: Some(51_871),
            host_policy_id: switches.host,
            lb_mode: switches.lb_mode,
            masquerade4: switches.masquerade,
            masquerade6: switches.masquerade,
            snat_ports: SNAT_PORT..=SNAT_PORT + switches.ports - 1,
            test_clock_offset: Duration::from_nanos(self.ahead_ns),
            host_serves: self.rows.model.config.host_serves,
            ..real.config()
        };
        self.rows.config(&config);
    }

    pub fn wait(&mut self, time: Duration) {
        self.ahead_ns += u64::try_from(time.as_nanos()).unwrap();
        self.configure(self.switches);
    }

    /// User space collects what is over: twice, as a way out is seen before what it leads to.
    pub fn collect(&mut self) {
        let datapath = &self.rows.real.datapath;
        for _ in 0..2 {
            datapath.gc_at(monotonic_ns() + self.ahead_ns).unwrap();
        }
        let now = self.tick();
        self.rows.model.collect(now);
    }

    /// Deletes all services; flows live on.
    pub fn retire(&mut self) {
        for family in FAMILIES {
            (0..SERVICE_COUNT).for_each(|service| self.service(family, service, None));
        }
        self.collect();
    }

    pub fn remote(&mut self, reached: Reached) {
        self.touched.insert(Row::Remote);
        let entry = NodeEntry {
            tunnel: reached.tunnel.then(|| ip(REMOTE_NODE[0])),
            path: if reached.direct { NodePath::Direct } else { NodePath::Overlay },
            encrypt: reached.encrypt,
            mtu: 1400,
        };
        self.rows.node(1, &entry);
    }

    /// What the pod at this position of [`HOSTS`] goes by.
    pub fn assign(&mut self, pod: usize, policy: u32, ready: bool, renamed: bool) {
        self.touched.insert(Row::Pod(pod));
        let (ifindex, addresses, identity, mac) = if pod == A {
            (self.rows.real.a, POD_A, ID_A, MAC_A)
        } else {
            (self.rows.real.b, POD_B, ID_B, MAC_B)
        };
        let number = if pod == A { 1 } else { 2 };
        let identity = if renamed { identity + 100 } else { identity };
        let pod = crate::support::pod(addresses, identity, number, mac);
        let row = Interface { ready, policy_id: policy, ..pod };
        self.rows.pod(ifindex, &row);
    }

    /// Names one of the remote pods. What is the world's is another cluster's.
    pub fn identity(&mut self, family: usize, direct: bool, identity: u32) {
        self.touched.insert(Row::Identity(family, direct));
        let (address, node) = if direct { (DIRECT[family], 2) } else { (REMOTE[family], 1) };
        let length = if family == 0 { 32 } else { 128 };
        let remote_cluster = identity == 2;
        let row = PrefixEntry { identity, node, encrypt: direct, remote_cluster, ..PrefixEntry::default() };
        self.rows.prefix(&format!("{address}/{length}"), row);
    }

    /// How a pod leaves for everywhere, or for some.
    pub fn leaving(&mut self, family: usize, pod: usize, wide: bool, way: Option<Leaving>) {
        self.touched.insert(Row::Leaving(family, pod, wide));
        let net = match (family, wide) {
            (0, true) => "0.0.0.0/0",
            (0, false) => "198.51.100.0/24",
            (_, true) => "::/0",
            (_, false) => "2001:db8:f::/64",
        };
        let ifindex = self.rows.real.uplink;
        let way = way.map(|way| match way {
            Leaving::Nowhere => EgressWay::Nowhere,
            Leaving::Excluded => EgressWay::Excluded,
            Leaving::Remote => EgressWay::Node(1),
            Leaving::Unknown => EgressWay::Node(77),
            Leaving::Here => EgressWay::Here { address: Some(ip(EGRESS[family])), ifindex },
            Leaving::Nameless => EgressWay::Here { address: None, ifindex },
        });
        self.rows.egress(host(pod, family), net.parse().unwrap(), way);
    }

    /// User space forgets the flows of the pod at this position of [`HOSTS`].
    pub fn forget(&mut self, pod: usize) {
        let addresses = FAMILIES.map(|family| host(pod, family));
        self.rows.real.datapath.forget_flows(&addresses).unwrap();
        self.rows.model.forget(&addresses);
    }

    pub fn policy(&mut self, number: u32, policy: Option<&tombolo_model::Policy>) {
        self.touched.insert(Row::Policy(number));
        self.rows.policy(number, policy);
    }

    /// Writes a backend as it is, under another port (`Some(1)`), or not at all.
    pub fn backend(&mut self, family: usize, backend: usize, shift: Option<u16>) {
        self.touched.insert(Row::Backend(family, backend));
        let (address, port) = BACKENDS[backend];
        let socket = shift.map(|shift| (ip(address[family]), port + if port == 0 { 0 } else { shift }));
        self.rows.backend(number(family, backend), socket);
    }

    /// Writes a service with these backends, or deletes it.
    pub fn service(&mut self, family: usize, service: usize, backends: Option<&[usize]>) {
        self.touched.insert(Row::Service(family, service));
        let (address, port, _) = SERVICES[service];
        let slots = |backends: &[usize]| -> Vec<u32> {
            backends.iter().map(|backend| number(family, *backend)).cycle().take(SLOTS).collect()
        };
        let slots = backends.map(slots);
        let protocols: &[u8] = match (port, family) {
            (0, 0) => &[1],
            (0, _) => &[58],
            _ => &[6, 17, 132],
        };
        for (n, protocol) in (0..).zip(protocols.iter().copied()) {
            // Numbers differ with address, port and protocol; both scopes share one.
            let rev_nat = u32::try_from(1 + service + SERVICE_COUNT * family).unwrap() * 3 + n;
            for scope in [Scope::External, Scope::Internal] {
                let frontend = Frontend { address: ip(address[family]), port, protocol, scope };
                self.rows.service(&frontend, rev_nat, slots.as_deref());
            }
        }
    }
}

/// Whether a service may have the backend: of ICMP echo neither has a port.
pub fn fits(service: usize, backend: usize) -> bool {
    (SERVICES[service].1 == 0) == (BACKENDS[backend].1 == 0)
}

fn number(family: usize, backend: usize) -> u32 {
    u32::try_from(1 + backend + BACKEND_COUNT * family).unwrap()
}
