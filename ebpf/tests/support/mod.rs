//! A node for packet tests: private network and mount namespaces of the test's thread, a private bpffs, veth pairs in
//! place of pods and uplink, and the datapath opened on them. Everything goes away with the thread.
#![allow(dead_code)]
#![allow(clippy::cast_possible_truncation, missing_docs, unreachable_pub)]

pub mod sockets;
pub mod space;

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::net::IpAddr;
use std::process::Command;
use tombolo_base::flow::Capture;
use tombolo_ebpf::*;

pub const OK: u32 = 0;
pub const SHOT: u32 = 2;
pub const REDIRECT: u32 = 7;

pub const POD_A: [&str; 2] = ["10.1.1.2", "fd00:10:1:1::2"];
pub const POD_B: [&str; 2] = ["10.1.1.3", "fd00:10:1:1::3"];
pub const GATEWAY: [&str; 2] = ["10.1.1.1", "fd00:10:1:1::1"];
pub const REMOTE: [&str; 2] = ["10.1.2.2", "fd00:10:1:2::2"];
pub const REMOTE_NODE: [&str; 2] = ["172.20.12.2", "fd00:20:12::2"];
pub const NODE: [&str; 2] = ["172.20.11.2", "fd00:20:11::2"];
pub const CLIENT: [&str; 2] = ["172.20.200.10", "fd00:20:200::10"];
pub const VIP: [&str; 2] = ["203.0.113.5", "2001:db8:e::5"];
pub const CLUSTER_IP: [&str; 2] = ["10.101.0.5", "fd00:101::5"];

pub const ID_A: u32 = 66_001;
pub const ID_B: u32 = 66_002;
pub const ID_REMOTE: u32 = 66_003;

pub const MAC_A: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
pub const MAC_B: [u8; 6] = [2, 0, 0, 0, 0, 0xb];
pub const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn sh(command: &str) {
    let out = Command::new("sh").arg("-ec").arg(command).output().unwrap();
    assert!(out.status.success(), "{command}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Moves this thread into its own network and mount namespaces with a bpffs at the returned path.
pub fn isolate() -> tempfile::TempDir {
    assert!(
        nix::unistd::geteuid().is_root(),
        "these tests need root: they load programs and make namespaces"
    );
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).unwrap();
    let dir = tempfile::tempdir().unwrap();
    mount(Some("bpf"), dir.path(), Some("bpf"), MsFlags::empty(), none).unwrap();
    sh("ip link set lo up; sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0");
    dir
}

pub fn index(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}

pub struct Node {
    pub datapath: Datapath,
    pub events: EventReader,
    pub a: u32,
    pub b: u32,
    pub uplink: u32,
    pub overlay: u32,
    runtime: tokio::runtime::Runtime,
    replayer: Option<Replayer>,
    pub bpffs: tempfile::TempDir,
}

impl Drop for Node {
    fn drop(&mut self) {
        // The mount lives in this thread's namespace only; unmount so that the directory can be removed.
        nix::mount::umount2(self.bpffs.path(), nix::mount::MntFlags::MNT_DETACH).ok();
    }
}

pub fn small_sizes() -> MapSizes {
    MapSizes {
        conntrack: 1024,
        conntrack_half: 1024,
        nat: 1024,
        nat_half: 1024,
        maglev_slots: 4096,
        rules: 1024,
        hosts: 1024,
        prefixes: 1024,
        event_ring_bytes: 1 << 16,
        ..MapSizes::default()
    }
}

impl Node {
    /// Two pods, one remote node behind the overlay.
    pub fn new() -> Self {
        Self::with(Attach::Auto)
    }

    pub fn with(attach: Attach) -> Self {
        Self::made(attach, small_sizes())
    }

    pub fn with_sizes(sizes: MapSizes) -> Self {
        Self::made(Attach::Auto, sizes)
    }

    fn made(attach: Attach, sizes: MapSizes) -> Self {
        let bpffs = isolate();
        sh("for n in poda podb upl vxd; do ip link add $n type veth peer name p$n; ip link set $n up; ip link set p$n up; done
            sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.all.accept_dad=0
            ip addr add 172.20.11.2/24 dev upl; ip addr add fd00:20:11::2/64 dev upl nodad
            ip route add default via 172.20.11.1 dev upl; ip -6 route add default via fd00:20:11::1 dev upl
            ip neigh add 172.20.11.1 lladdr 02:00:00:00:00:99 dev upl
            ip neigh add fd00:20:11::1 lladdr 02:00:00:00:00:99 dev upl");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let config =
            DatapathConfig { bpffs: bpffs.path().to_owned(), sizes, attach, ..DatapathConfig::default() };
        let datapath = Datapath::open(&config).unwrap();
        let events = {
            let _guard = runtime.enter();
            datapath.events().unwrap()
        };
        let node = Self {
            datapath,
            events,
            a: index("poda"),
            b: index("podb"),
            uplink: index("upl"),
            overlay: index("vxd"),
            runtime,
            replayer: None,
            bpffs,
        };
        node.fill();
        node
    }

    pub fn config(&self) -> NodeConfig {
        NodeConfig {
            ready: true,
            cluster_id: 1,
            uplink_ifindex: self.uplink,
            overlay_ifindex: self.overlay,
            internal4: GATEWAY[0].parse().ok(),
            internal6: GATEWAY[1].parse().ok(),
            underlay4: NODE[0].parse().ok(),
            underlay6: NODE[1].parse().ok(),
            ..NodeConfig::default()
        }
    }

    /// Opens the datapath again on the same pins, as a restarted agent does.
    pub fn reopen(&self, attach: Attach, sizes: MapSizes) -> Datapath {
        let bpffs = self.bpffs.path().to_owned();
        Datapath::open(&DatapathConfig { bpffs, sizes, attach, ..DatapathConfig::default() }).unwrap()
    }

    fn fill(&self) {
        let d = &self.datapath;
        d.set_config(&self.config()).unwrap();
        d.upsert_interface(self.a, &pod(POD_A, ID_A, 1, MAC_A)).unwrap();
        d.upsert_interface(self.b, &pod(POD_B, ID_B, 2, MAC_B)).unwrap();
        for family in 0..2 {
            d.upsert_local_address(ip(POD_A[family]), LocalAddress::Pod(self.a)).unwrap();
            d.upsert_local_address(ip(POD_B[family]), LocalAddress::Pod(self.b)).unwrap();
            d.upsert_local_address(ip(GATEWAY[family]), LocalAddress::Host).unwrap();
            d.upsert_local_address(ip(NODE[family]), LocalAddress::Host).unwrap();
            d.upsert_prefix(
                ip(REMOTE[family]).into(),
                &PrefixEntry { identity: ID_REMOTE, node: 1, ..PrefixEntry::default() },
            )
            .unwrap();
            d.upsert_prefix(
                ip(REMOTE_NODE[family]).into(),
                &PrefixEntry { identity: 6, node: 1, skip_tunnel: true, ..PrefixEntry::default() },
            )
            .unwrap();
        }
        self.remote(NodePath::Overlay, false);
    }

    /// How the remote node is reached.
    pub fn remote(&self, path: NodePath, encrypt: bool) {
        let entry = NodeEntry { tunnel: Some(ip(REMOTE_NODE[0])), path, encrypt, mtu: 1400 };
        self.datapath.upsert_node(1, &entry).unwrap();
    }

    pub fn service(
        &self,
        address: &str,
        port: u16,
        scope: Scope,
        rev_nat: u32,
        backends: &[(u32, &str, u16)],
    ) {
        self.service_of(17, address, port, scope, rev_nat, backends);
        self.service_of(6, address, port, scope, rev_nat, backends);
    }

    fn service_of(
        &self,
        protocol: u8,
        address: &str,
        port: u16,
        scope: Scope,
        rev_nat: u32,
        backends: &[(u32, &str, u16)],
    ) {
        for (id, address, port) in backends {
            let backend = Backend { ip: ip(address), port: *port, protocol };
            self.datapath.upsert_backend(*id, &backend).unwrap();
        }
        let maglev = backends.iter().map(|(id, ..)| *id).collect();
        let frontend = Frontend { ip: ip(address), port, protocol, scope };
        self.datapath
            .set_service(&frontend, &ServiceEntry { rev_nat, maglev, ..ServiceEntry::default() })
            .unwrap();
    }

    /// Runs a packet through a program as if it had come to `ifindex`.
    pub fn run(&self, program: &'static str, ifindex: u32, packet: &[u8]) -> Ran {
        self.run_with(program, ifindex, packet, 0, 0)
    }

    pub fn run_with(&self, program: &'static str, ifindex: u32, packet: &[u8], mark: u32, gso: u32) -> Ran {
        let mut context = [0_u8; 192];
        context[8..12].copy_from_slice(&mark.to_ne_bytes());
        context[40..44].copy_from_slice(&ifindex.to_ne_bytes());
        context[176..180].copy_from_slice(&gso.to_ne_bytes());
        let (action, packet, after) = self.datapath.test_run(program, packet, &context).unwrap();
        let mark = u32::from_ne_bytes(after[8..12].try_into().unwrap());
        Ran { action, packet, mark }
    }

    /// Hides a policy's entries from the programs, which are told what shapes there are; the model looks at each.
    pub fn blind(&self, policy: u32) {
        let folder = std::fs::read_dir(self.bpffs.path().join("tombolo")).unwrap().next().unwrap().unwrap();
        let data = aya::maps::MapData::from_pin(folder.path().join("tb_policies")).unwrap();
        let mut map: aya::maps::HashMap<_, u32, [u8; 64]> =
            aya::maps::HashMap::try_from(aya::maps::Map::HashMap(data)).unwrap();
        let mut row = map.get(&policy, 0).unwrap();
        row[4..12].fill(0);
        map.insert(policy, row, 0).unwrap();
    }

    /// Takes all events that are there.
    pub fn events(&mut self) -> Vec<DatapathEvent> {
        let mut all = Vec::new();
        while let Some(event) = self.events.try_next() {
            all.push(event);
        }
        all
    }

    /// The only drop event there is, by reason.
    pub fn dropped(&mut self) -> DatapathEvent {
        let drops: Vec<_> = self.events().into_iter().filter(|e| e.kind == EventKind::Drop).collect();
        assert_eq!(drops.len(), 1, "{drops:#?}");
        let drop = drops[0].clone();
        assert!(site(drop.flow.site).is_some(), "unknown site {}", drop.flow.site);
        drop
    }

    /// The packet is dropped, for this reason; where. What was captured of it explains the drop: the model says the same,
    /// and so do the programs once more.
    pub fn drops(&mut self, program: &'static str, ifindex: u32, packet: &[u8], reason: u8) -> &'static Site {
        self.events();
        // As it is before: the drop itself may leave a fragment, or an entry of a service.
        let before = self.explain(&capture_of(program, ifindex, packet));
        assert_eq!(self.run(program, ifindex, packet).action, SHOT, "wanted: dropped for {reason}");
        let flow = self.dropped().flow;
        assert_eq!(flow.drop_reason, reason);
        let capture = flow.capture.clone().expect("drops are captured");
        assert_eq!(capture.frame, packet[..packet.len().min(128)]);
        for explained in [before, self.explain(&capture)] {
            assert_eq!(explained.difference, None, "{explained:#?}");
            assert_eq!(explained.programs, Err((reason, flow.site)), "{explained:#?}");
        }
        site(flow.site).unwrap()
    }

    /// Runs a captured packet once more, and sees to it that nothing is left of that.
    pub fn explain(&mut self, capture: &Capture) -> Explained {
        let told = self.events.try_next();
        assert!(told.is_none(), "take the events first: {told:#?}");
        let replayer = self.replayer.get_or_insert_with(|| self.datapath.replayer().unwrap());
        let counted = || (self.datapath.metrics().unwrap(), self.datapath.site_metrics().unwrap());
        let before = (raw_maps(self.bpffs.path()), counted());
        let explained = self.datapath.explain(replayer, capture).unwrap();
        let after = (raw_maps(self.bpffs.path()), counted());
        assert_eq!(before, after, "a replay leaves nothing behind");
        let told = self.events.try_next();
        assert!(told.is_none(), "a replay is not told: {told:#?}");
        explained
    }

    /// The last trace event.
    pub fn traced(&mut self) -> DatapathEvent {
        let events = self.events();
        events.iter().rfind(|e| e.kind == EventKind::Trace).unwrap_or_else(|| panic!("{events:#?}")).clone()
    }
}

/// What an event of this packet would have of it.
pub fn capture_of(program: &str, ifindex: u32, packet: &[u8]) -> Capture {
    let points = [
        ("from_endpoint", 5),
        ("to_endpoint", 7),
        ("from_overlay", 9),
        ("to_overlay", 4),
        ("from_uplink", 10),
        ("to_uplink", 11),
    ];
    let point = points.iter().find(|(name, _)| *name == program).unwrap().1;
    let tunnel = (program == "from_overlay").then(|| (ip("0.0.0.0"), 0));
    Capture {
        point,
        ifindex,
        mark: 0,
        segment: 0,
        length: packet.len() as u32,
        tunnel,
        frame: packet.to_vec(),
    }
}

/// Keys and values.
type RawRows = Vec<(Vec<u8>, Vec<u8>)>;

/// Every row of every pinned map, as bytes.
fn raw_maps(bpffs: &std::path::Path) -> std::collections::BTreeMap<String, RawRows> {
    let schemas = std::fs::read_dir(bpffs.join("tombolo")).unwrap();
    let schema = schemas.map(|entry| entry.unwrap().path()).next().unwrap();
    let pins = std::fs::read_dir(schema).unwrap().map(|entry| entry.unwrap().path());
    let maps =
        pins.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("tb_")));
    maps.map(|path| {
        (path.file_name().unwrap().to_string_lossy().into_owned(), tombolo_ebpf::raw_rows(&path).unwrap())
    })
    .collect()
}

pub fn pod(addresses: [&str; 2], identity: u32, endpoint_id: u16, mac: [u8; 6]) -> Interface {
    Interface {
        ready: true,
        identity,
        policy_id: 0,
        endpoint_id,
        v4: addresses[0].parse().ok(),
        v6: addresses[1].parse().ok(),
        mac,
        host_mac: HOST_MAC,
        ..Interface::default()
    }
}

/// What a program made of a packet.
pub struct Ran {
    pub action: u32,
    pub packet: Vec<u8>,
    pub mark: u32,
}

/// Addresses, ports and whether all checksums are right.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    pub source: (IpAddr, u16),
    pub destination: (IpAddr, u16),
    pub hops: u8,
}

impl Ran {
    /// Parses the packet and checks every checksum in it.
    pub fn seen(&self) -> Seen {
        let sliced = SlicedPacket::from_ethernet(&self.packet).unwrap();
        let (source, destination, hops) = match sliced.net.unwrap() {
            NetSlice::Ipv4(v4) => {
                let header = v4.header().to_header();
                assert_eq!(header.calc_header_checksum(), header.header_checksum, "IPv4 checksum");
                check_l4(&sliced.transport, Some(&header), None);
                (IpAddr::from(header.source), IpAddr::from(header.destination), header.time_to_live)
            }
            NetSlice::Ipv6(v6) => {
                let header = v6.header().to_header();
                check_l4(&sliced.transport, None, Some(&header));
                (header.source_addr().into(), header.destination_addr().into(), header.hop_limit)
            }
            other => panic!("{other:?}"),
        };
        let (sport, dport) = match &sliced.transport {
            Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
            Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
            _ => (0, 0),
        };
        Seen { source: (source, sport), destination: (destination, dport), hops }
    }

    pub fn macs(&self) -> ([u8; 6], [u8; 6]) {
        (self.packet[0..6].try_into().unwrap(), self.packet[6..12].try_into().unwrap())
    }

    /// What an ICMP error quotes, as if it were a packet of its own (its checksums are not looked at).
    pub fn quoted(&self) -> ((IpAddr, u16), (IpAddr, u16)) {
        let v6 = self.packet[12..14] == [0x86, 0xdd];
        let inner = &self.packet[if v6 { 14 + 48 } else { 14 + 28 }..];
        let (source, destination, l4): (IpAddr, IpAddr, &[u8]) = if v6 {
            let addr = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&inner[at..at + 16]).unwrap());
            (addr(8), addr(24), &inner[40..])
        } else {
            let mut sum = 0_u32;
            for pair in inner[..20].chunks(2) {
                sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
            }
            assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "quoted IPv4 checksum");
            let addr = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&inner[at..at + 4]).unwrap());
            (addr(12), addr(16), &inner[20..])
        };
        let port = |at: usize| u16::from_be_bytes([l4[at], l4[at + 1]]);
        ((source, port(0)), (destination, port(2)))
    }
}

fn check_l4(
    transport: &Option<TransportSlice<'_>>,
    v4: Option<&etherparse::Ipv4Header>,
    v6: Option<&etherparse::Ipv6Header>,
) {
    match (transport, v4, v6) {
        (Some(TransportSlice::Udp(udp)), Some(ip), _) => {
            assert_eq!(udp.to_header().calc_checksum_ipv4(ip, udp.payload()).unwrap(), udp.checksum(), "UDP");
        }
        (Some(TransportSlice::Udp(udp)), _, Some(ip)) => {
            assert_eq!(
                udp.to_header().calc_checksum_ipv6(ip, udp.payload()).unwrap(),
                udp.checksum(),
                "UDP6"
            );
        }
        (Some(TransportSlice::Tcp(tcp)), Some(ip), _) => {
            assert_eq!(tcp.to_header().calc_checksum_ipv4(ip, tcp.payload()).unwrap(), tcp.checksum(), "TCP");
        }
        (Some(TransportSlice::Tcp(tcp)), _, Some(ip)) => {
            assert_eq!(
                tcp.to_header().calc_checksum_ipv6(ip, tcp.payload()).unwrap(),
                tcp.checksum(),
                "TCP6"
            );
        }
        (Some(TransportSlice::Icmpv4(icmp)), ..) => {
            assert_eq!(icmp.icmp_type().calc_checksum(icmp.payload()), icmp.checksum(), "ICMP");
        }
        (Some(TransportSlice::Icmpv6(icmp)), _, Some(ip)) => {
            let sum = icmp.icmp_type().calc_checksum(ip.source, ip.destination, icmp.payload()).unwrap();
            assert_eq!(sum, icmp.checksum(), "ICMPv6");
        }
        other => panic!("no transport: {:?}", other.0),
    }
}

/// Which family a loop is in: index into the address tables.
pub const FAMILIES: [usize; 2] = [0, 1];

fn builder(src: &str, dst: &str) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    let ethernet = PacketBuilder::ethernet2(MAC_A, HOST_MAC);
    match (ip(src), ip(dst)) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            let mut header =
                etherparse::Ipv4Header::new(0, 64, etherparse::IpNumber(0), s.octets(), d.octets()).unwrap();
            header.dont_fragment = true;
            ethernet.ip(etherparse::IpHeaders::Ipv4(header, Default::default()))
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => ethernet.ipv6(s.octets(), d.octets(), 64),
        _ => panic!("mixed families"),
    }
}

pub fn udp(src: (&str, u16), dst: (&str, u16), payload: usize) -> Vec<u8> {
    let mut packet = Vec::new();
    builder(src.0, dst.0).udp(src.1, dst.1).write(&mut packet, &vec![7; payload]).unwrap();
    packet
}

/// TCP with the flags in `flags`: S, A, F, R.
pub fn tcp(src: (&str, u16), dst: (&str, u16), flags: &str) -> Vec<u8> {
    let mut step = builder(src.0, dst.0).tcp(src.1, dst.1, 1000, 64_000);
    for flag in flags.chars() {
        step = match flag {
            'S' => step.syn(),
            'A' => step.ack(1),
            'F' => step.fin(),
            'R' => step.rst(),
            other => panic!("{other}"),
        };
    }
    let mut packet = Vec::new();
    step.write(&mut packet, &[]).unwrap();
    packet
}

pub fn ping(src: &str, dst: &str, id: u16, request: bool) -> Vec<u8> {
    let mut packet = Vec::new();
    let step = builder(src, dst);
    match (ip(src).is_ipv4(), request) {
        (true, true) => step.icmpv4_echo_request(id, 1).write(&mut packet, &[1; 56]).unwrap(),
        (true, false) => step.icmpv4_echo_reply(id, 1).write(&mut packet, &[1; 56]).unwrap(),
        (false, true) => step.icmpv6_echo_request(id, 1).write(&mut packet, &[1; 56]).unwrap(),
        (false, false) => step.icmpv6_echo_reply(id, 1).write(&mut packet, &[1; 56]).unwrap(),
    }
    packet
}

/// ICMPv6 of any type and code, with the hop limit it arrives with.
pub fn icmp6(src: &str, dst: &str, (kind, code): (u8, u8), hops: u8) -> Vec<u8> {
    let (IpAddr::V6(s), IpAddr::V6(d)) = (ip(src), ip(dst)) else { panic!("{src} {dst}") };
    let mut packet = Vec::new();
    let step = PacketBuilder::ethernet2(MAC_A, HOST_MAC).ipv6(s.octets(), d.octets(), hops);
    step.icmpv6_raw(kind, code, [0; 4]).write(&mut packet, &[0; 24]).unwrap();
    packet
}

/// An ICMP port unreachable from `src` to `dst` that quotes the IP packet in `quoted` (an Ethernet frame).
pub fn unreachable(src: &str, dst: &str, quoted: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let payload = &quoted[14..quoted.len().min(14 + 128)];
    let step = builder(src, dst);
    if ip(src).is_ipv4() {
        let kind =
            etherparse::Icmpv4Type::DestinationUnreachable(etherparse::icmpv4::DestUnreachableHeader::Port);
        step.icmpv4(kind).write(&mut packet, payload).unwrap();
    } else {
        let kind =
            etherparse::Icmpv6Type::DestinationUnreachable(etherparse::icmpv6::DestUnreachableCode::Port);
        step.icmpv6(kind).write(&mut packet, payload).unwrap();
    }
    packet
}
