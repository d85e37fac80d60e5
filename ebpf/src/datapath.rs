//! Opening the datapath: pinned maps, programs, hooks, and the plain rows.

use crate::abi;
use crate::affinity::Members;
use crate::attach::{Attach, Links, Side};
use crate::carry::Carrying;
use crate::error::DatapathError;
use crate::events::EventReader;
use crate::fronts::Fronts;
use crate::maglev::Slots as MaglevSlots;
use crate::policies::{Known, Revisions};
use crate::ranges::Ranges;
use crate::rev_nats::Released;
use crate::rows::{
    Aggregation, CaptureOf, Direction, LbMode, LostEvents, MapUsage, Metric, NodeConfig, SiteMetric, SocketLb,
};
use crate::sockets::SocketHooks;
use crate::tables::Tables;
use crate::xdp::XdpHooks;
use aya::programs::SchedClassifier;
use aya::{Ebpf, EbpfLoader};
use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The programs on packets, and every map.
pub(crate) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/datapath.o"));

/// How many entries each map holds. The defaults suit a lab node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapSizes {
    /// Pods on this node.
    pub endpoints: u32,
    /// Single addresses (/32, /128) of the mesh.
    pub hosts: u32,
    /// Wider prefixes.
    pub prefixes: u32,
    /// Nodes of the mesh.
    pub nodes: u32,
    /// Frontends, both scopes counted.
    pub services: u32,
    /// Backends.
    pub backends: u32,
    /// Slots of all Maglev tables together.
    pub maglev_slots: u32,
    /// Prefixes of clients, of all services that take some only.
    pub source_ranges: u32,
    /// Clients of services with session affinity.
    pub affinity: u32,
    /// Sockets that were led to a backend.
    pub sockets: u32,
    /// Half-open flows.
    pub conntrack_half: u32,
    /// Established flows.
    pub conntrack: u32,
    /// SNAT entries of flows that nobody has answered yet, two a flow.
    pub nat_half: u32,
    /// SNAT entries of answered flows, two a flow.
    pub nat: u32,
    /// Destinations of pods that have egress policies, one row for each pod and prefix.
    pub egress: u32,
    /// Policies.
    pub policies: u32,
    /// Policy entries.
    pub rules: u32,
    /// Bytes of the event ring, a power of two and a multiple of the page size.
    pub event_ring_bytes: u32,
}

impl Default for MapSizes {
    fn default() -> Self {
        Self {
            endpoints: 1024,
            hosts: 16_384,
            prefixes: 16_384,
            nodes: 1024,
            services: 4096,
            backends: 8192,
            maglev_slots: 131_072,
            source_ranges: 4096,
            affinity: 16_384,
            sockets: 16_384,
            conntrack_half: 16_384,
            conntrack: 16_384,
            nat_half: 16_384,
            nat: 16_384,
            egress: 16_384,
            policies: 1024,
            rules: 16_384,
            event_ring_bytes: 1 << 20,
        }
    }
}

impl MapSizes {
    pub(crate) fn list(&self) -> Vec<(&'static str, u32)> {
        vec![
            ("tb_ifaces", self.endpoints),
            // Three ways a pod.
            ("tb_rates", self.endpoints.saturating_mul(3)),
            ("tb_endpoints", self.endpoints.saturating_mul(2).saturating_add(64)),
            ("tb_hosts", self.hosts),
            ("tb_prefixes", self.prefixes),
            ("tb_nodes", self.nodes),
            // Each frontend, and for its address a row that stands for all its other ports.
            ("tb_services", self.services.saturating_mul(2)),
            ("tb_backends", self.backends),
            ("tb_maglev", self.maglev_slots),
            ("tb_ranges", self.source_ranges),
            ("tb_affinity", self.affinity),
            ("tb_sock_rev", self.sockets),
            // A backend is a member of each address and port that it serves, in both scopes.
            ("tb_members", self.backends.saturating_mul(8)),
            ("tb_fronts", self.backends.saturating_mul(8)),
            // One for every number a service can have: those of services that went stay while flows need them.
            ("tb_rev_nat", 65_536),
            ("tb_ct_half", self.conntrack_half),
            ("tb_ct", self.conntrack),
            ("tb_nat_half", self.nat_half),
            ("tb_nat", self.nat),
            ("tb_snat_full", 1024),
            ("tb_egw", self.egress),
            ("tb_unmasked", UNMASKED),
            ("tb_policies", self.policies),
            ("tb_rules", self.rules),
            ("tb_frags", 1024),
            ("tb_events", self.event_ring_bytes),
        ]
    }
}

/// How the datapath is opened.
#[derive(Clone, Debug)]
pub struct DatapathConfig {
    /// Where bpffs is mounted.
    pub bpffs: PathBuf,
    /// Map sizes; a map whose size differs from its pin is made anew, with its rows.
    pub sizes: MapSizes,
    /// How programs are hooked.
    pub attach: Attach,
    /// Under which schema's number the maps are pinned. The program's own; tests move a node from one to another.
    pub schema: u32,
}

impl Default for DatapathConfig {
    fn default() -> Self {
        Self {
            bpffs: PathBuf::from("/sys/fs/bpf"),
            sizes: MapSizes::default(),
            attach: Attach::Auto,
            schema: abi::SCHEMA,
        }
    }
}

/// The node's datapath. Dropping it changes nothing in the kernel: maps and links are pinned.
pub struct Datapath {
    pub(crate) tables: Tables,
    pub(crate) maglev: Mutex<MaglevSlots>,
    pub(crate) revisions: Revisions,
    pub(crate) released: Mutex<Released>,
    pub(crate) rules: Mutex<Known>,
    /// Held while the node's policy is named, or one is deleted that it is not to go by.
    host_policy: Mutex<()>,
    pub(crate) ranges: Mutex<Ranges>,
    pub(crate) members: Mutex<Members>,
    pub(crate) fronts: Mutex<Fronts>,
    object: Mutex<Ebpf>,
    pub(crate) sockets: Mutex<SocketHooks>,
    pub(crate) xdp: Mutex<XdpHooks>,
    /// Told when a backend or a service has gone.
    pub(crate) left: tokio::sync::Notify,
    links: Links,
    pub(crate) directory: PathBuf,
    /// Whether the kernel knows `BPF_F_IPV6`.
    csum6: bool,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is guarded is consistent after each step, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Prefixes that a node does not masquerade to.
const UNMASKED: u32 = 1024;

/// The folder of a schema's pinned links.
pub(crate) const LINKS: &str = "links";

pub(crate) const PROGRAMS: [&str; 7] = [
    "from_endpoint",
    "to_endpoint",
    "from_overlay",
    "to_overlay",
    "from_uplink",
    "to_uplink",
    "from_wireguard",
];

impl Datapath {
    /// Makes or reuses the pinned maps and loads the programs.
    ///
    /// Usually nothing is hooked yet: interfaces keep running the programs of the run before, on the same maps, until they
    /// are attached again; attach after the rows are written. Where a map has to be made anew, because it has another
    /// size, kind or schema, all its rows are carried over and every hook of the run before goes to the new programs
    /// in one pass: there must not be two, each with a part of the flows.
    ///
    /// # Errors
    /// No bpffs, no rights, or a kernel that refuses the programs. What ran before goes on.
    pub fn open(config: &DatapathConfig) -> Result<Self, DatapathError> {
        crate::layout::verify(OBJECT)?;
        let directory = config.bpffs.join("tombolo").join(format!("v{}", config.schema));
        let links = directory.join(LINKS);
        fs::create_dir_all(&links).map_err(|source| DatapathError::BpfFs {
            operation: "create",
            path: links.clone(),
            source,
        })?;
        let carrying = Carrying::prepare(&directory, &config.sizes)?;
        let mut object = load(OBJECT, &directory, &config.sizes)?;
        for name in PROGRAMS.into_iter().chain([PROBE]) {
            program(&mut object, name)?
                .load()
                .map_err(|source| DatapathError::Program { program: name, source: Box::new(source) })?;
        }
        if let Some(carrying) = &carrying {
            carrying.all_rows()?;
        }
        let csum6 = knows_csum6(&mut object)?;
        let tables = Tables::take(&mut object)?;
        let maglev = MaglevSlots::recover(&tables)?;
        let released = crate::rev_nats::recover(&tables)?;
        let ranges = crate::ranges::recover(&tables)?;
        let members = crate::affinity::recover(&tables)?;
        let fronts = Fronts::recover(&tables)?;
        let datapath = Self {
            tables,
            maglev: Mutex::new(maglev),
            revisions: Revisions::default(),
            released: Mutex::new(released),
            rules: Mutex::new(None),
            host_policy: Mutex::new(()),
            ranges: Mutex::new(ranges),
            members: Mutex::new(members),
            fronts: Mutex::new(fronts),
            object: Mutex::new(object),
            left: tokio::sync::Notify::new(),
            sockets: Mutex::new(SocketHooks::new(&directory, &config.sizes)),
            xdp: Mutex::new(XdpHooks::new(&directory, &config.sizes)),
            links: Links::new(links, config.attach),
            directory,
            csum6,
        };
        if let Some(carrying) = carrying {
            datapath.take_over(&carrying.other_links())?;
            lock(&datapath.sockets).take_over(&carrying.other_links());
            lock(&datapath.xdp).take_over(&carrying.other_links());
            carrying.late_flows()?;
            carrying.finish()?;
        }
        Ok(datapath)
    }

    /// Puts these programs where an earlier run's are, also another schema's.
    fn take_over(&self, other_links: &[PathBuf]) -> Result<(), DatapathError> {
        let mut object = lock(&self.object);
        for hook in self.links.hooks(other_links)? {
            let names = crate::attach::tcx_programs(hook.ifindex, hook.side)?;
            // None: the interface is gone, and its link with it.
            let Some(name) = PROGRAMS.into_iter().find(|ours| names.iter().any(|name| name == ours)) else {
                continue;
            };
            self.links.take_over(name, program(&mut object, name)?, &hook)?;
        }
        if !self.links.without_tcx() {
            return Ok(());
        }
        // Filters have no pins: what rows there are says where they must be.
        let node = self.tables.config.get(0)?;
        let pods = self.tables.ifaces.dump()?.into_iter().filter(|(_, row)| row.flags & abi::IF_READY != 0);
        let pods = pods.flat_map(|(ifindex, _)| {
            [(ifindex, "from_endpoint", Side::Ingress), (ifindex, "to_endpoint", Side::Egress)]
        });
        let devices = [
            (node.uplink_ifindex, "from_uplink", Side::Ingress),
            (node.uplink_ifindex, "to_uplink", Side::Egress),
            (node.overlay_ifindex, "from_overlay", Side::Ingress),
            (node.overlay_ifindex, "to_overlay", Side::Egress),
            (node.wireguard_ifindex, "from_wireguard", Side::Ingress),
        ];
        for (ifindex, name, side) in devices.into_iter().chain(pods) {
            if ifindex != 0 && nix::net::if_::if_indextoname(ifindex).is_ok() {
                self.links.attach(name, program(&mut object, name)?, ifindex, side)?;
            }
        }
        Ok(())
    }

    fn attach(&self, name: &'static str, ifindex: u32, side: Side) -> Result<(), DatapathError> {
        let mut object = lock(&self.object);
        self.links.attach(name, program(&mut object, name)?, ifindex, side)
    }

    /// Hooks the programs of the underlay interface.
    ///
    /// # Errors
    /// The interface is gone or the kernel refuses.
    pub fn attach_uplink(&self, ifindex: u32) -> Result<(), DatapathError> {
        self.attach("from_uplink", ifindex, Side::Ingress)?;
        self.attach("to_uplink", ifindex, Side::Egress)
    }

    /// Hooks the programs of the VXLAN device (collect-metadata mode).
    ///
    /// # Errors
    /// The interface is gone or the kernel refuses.
    pub fn attach_overlay(&self, ifindex: u32) -> Result<(), DatapathError> {
        self.attach("from_overlay", ifindex, Side::Ingress)?;
        self.attach("to_overlay", ifindex, Side::Egress)
    }

    /// Hooks the program of the WireGuard device (no Ethernet header).
    ///
    /// # Errors
    /// The interface is gone or the kernel refuses.
    pub fn attach_wireguard(&self, ifindex: u32) -> Result<(), DatapathError> {
        self.attach("from_wireguard", ifindex, Side::Ingress)
    }

    /// Hooks the programs of a pod, at the host's end of its veth. Until its [`Interface`] row is ready, they drop.
    ///
    /// # Errors
    /// The interface is gone or the kernel refuses.
    pub fn attach_endpoint(&self, ifindex: u32) -> Result<(), DatapathError> {
        self.attach("from_endpoint", ifindex, Side::Ingress)?;
        self.attach("to_endpoint", ifindex, Side::Egress)
    }

    /// Unhooks everything from an interface; fine if there is nothing.
    ///
    /// # Errors
    /// The pin could not be removed.
    pub fn detach(&self, ifindex: u32) -> Result<(), DatapathError> {
        self.detach_xdp(ifindex)?;
        self.links.detach(ifindex).map_err(|source| DatapathError::BpfFs {
            operation: "remove link pin below",
            path: self.directory.clone(),
            source,
        })
    }

    /// Interface indexes with pinned (tcx) links, also of earlier runs.
    ///
    /// # Errors
    /// The pin directory cannot be read.
    pub fn attached(&self) -> Result<Vec<u32>, DatapathError> {
        self.links.attached().map_err(|source| DatapathError::BpfFs {
            operation: "list link pins below",
            path: self.directory.clone(),
            source,
        })
    }

    /// Whether the kernel runs programs of ours by tcx at an interface's (ingress, egress). Neither where the interface is
    /// gone, the kernel has no tcx, or clsact is used.
    #[must_use]
    pub fn tcx_hooks(&self, ifindex: u32) -> (bool, bool) {
        let runs = |side| {
            let names = crate::attach::tcx_programs(ifindex, side).unwrap_or_default();
            names.iter().any(|name| PROGRAMS.contains(&name.as_str()))
        };
        (runs(Side::Ingress), runs(Side::Egress))
    }

    /// Runs a program once on a packet without any interface, as the kernel's BPF_PROG_TEST_RUN does.
    /// For tests and benches. `context` is a `struct __sk_buff`. Returns the verdict and the packet after it.
    ///
    /// # Errors
    /// No such program, or the kernel refuses the packet.
    pub fn test_run(
        &self,
        name: &'static str,
        packet: &[u8],
        context: &[u8],
    ) -> Result<(u32, Vec<u8>, Vec<u8>), DatapathError> {
        let mut object = lock(&self.object);
        run(program(&mut object, name)?, name, packet, context)
    }

    /// A handle of a loaded program, for a bench that calls it many times from a program of its own.
    ///
    /// # Errors
    /// No such program.
    pub fn program_handle(&self, name: &'static str) -> Result<aya::programs::ProgramFd, DatapathError> {
        let mut object = lock(&self.object);
        let refused = |source| DatapathError::Program { program: name, source: Box::new(source) };
        let handle = program(&mut object, name)?.fd().map_err(refused)?.try_clone();
        handle.map_err(|io_error| refused(aya::sys::SyscallError { call: "dup", io_error }.into()))
    }

    /// Verified instructions of each program (0 where the kernel does not say), for the complexity budget.
    ///
    /// # Errors
    /// The programs at sockets cannot be loaded.
    pub fn verified_instructions(&self) -> Result<Vec<(&'static str, u32)>, DatapathError> {
        let mut object = lock(&self.object);
        let packets = PROGRAMS.iter().map(|name| {
            let count = program(&mut object, name)
                .ok()
                .and_then(|p| p.info().ok())
                .and_then(|info| info.verified_instruction_count());
            (*name, count.unwrap_or_default())
        });
        let sockets = lock(&self.sockets).verified_instructions()?;
        Ok(packets.chain(sockets).chain([self.xdp_instructions()?]).collect())
    }

    /// The stream of flow events; the ring has one reader.
    ///
    /// # Errors
    /// It was taken before, or no tokio runtime is running.
    pub fn events(&self) -> Result<EventReader, DatapathError> {
        let ring = self.tables.take_events().ok_or_else(|| {
            DatapathError::Events(std::io::Error::other("the ring's reader was already taken"))
        })?;
        EventReader::new(ring)
    }

    /// Events that nobody got since the maps were made.
    ///
    /// # Errors
    /// The counter cannot be read.
    pub fn lost_events(&self) -> Result<LostEvents, DatapathError> {
        self.tables.lost_events()
    }

    /// Packet counters by drop reason and direction.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn metrics(&self) -> Result<Vec<Metric>, DatapathError> {
        let sums = self.tables.metric_sums()?;
        Ok(sums
            .into_iter()
            .map(|(key, sum)| Metric {
                reason: u8::try_from(key.reason).unwrap_or(u8::MAX),
                direction: if key.dir == 0 { Direction::Ingress } else { Direction::Egress },
                packets: sum.packets,
                bytes: sum.bytes,
            })
            .collect())
    }

    /// Packets that met a place in the programs: where they were dropped, or what else should not happen often.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn site_metrics(&self) -> Result<Vec<SiteMetric>, DatapathError> {
        let sums = self.tables.site_sums()?;
        Ok(sums
            .into_iter()
            .map(|(key, sum)| SiteMetric {
                site: key.site,
                direction: if key.dir == 0 { Direction::Ingress } else { Direction::Egress },
                packets: sum.packets,
                bytes: sum.bytes,
            })
            .collect())
    }

    /// How full each map is, without a walk: maps of flows as of the last collection ([`Self::gc`]).
    #[must_use]
    pub fn usage(&self) -> Vec<MapUsage> {
        let t = &self.tables;
        let (used, capacity) = lock(&self.maglev).usage();
        vec![
            t.ifaces.usage(),
            t.rates.usage(),
            t.endpoints.usage(),
            t.hosts.usage(),
            t.prefixes.usage(),
            t.nodes.usage(),
            t.services.usage(),
            t.backends.usage(),
            MapUsage { map: "tb_maglev", entries: used, capacity },
            t.ranges.usage(),
            t.egress.usage(),
            t.unmasked.usage(),
            t.affinity.usage(),
            t.members.usage(),
            t.fronts.usage(),
            t.socks.usage(),
            t.rev_nat.usage(),
            t.ct_half.usage(),
            t.ct.usage(),
            t.nat_half.usage(),
            t.nat.usage(),
            t.policies.usage(),
            t.rules.usage(),
        ]
    }

    /// Writes what the programs know of this node, in one step.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn set_config(&self, config: &NodeConfig) -> Result<(), DatapathError> {
        let flag = |on: bool, bit: u32| if on { bit } else { 0 };
        let interval = u64::try_from(config.report_interval.as_nanos()).unwrap_or(u64::MAX);
        let row = abi::Config {
            schema: abi::SCHEMA,
            flags: flag(config.ready, abi::CFG_READY)
                | flag(config.encrypt, abi::CFG_ENCRYPT)
                | flag(config.verdict_events, abi::CFG_VERDICTS)
                | flag(self.csum6, abi::CFG_CSUM6)
                | flag(config.masquerade4, abi::CFG_MASQ4)
                | flag(config.masquerade6, abi::CFG_MASQ6)
                | flag(config.paced, abi::CFG_PACED)
                | flag(config.host_serves, abi::CFG_HOST_SERVES)
                | flag(config.capture != CaptureOf::Nothing, abi::CFG_CAPTURE)
                | flag(config.capture == CaptureOf::All, abi::CFG_CAPTURE_ALL)
                | flag(config.socket_lb != SocketLb::Off, abi::CFG_SOCK_HOST)
                | flag(config.socket_lb == SocketLb::All, abi::CFG_SOCK_PODS)
                | flag(config.lb_mode != LbMode::Snat, abi::CFG_DSR_TCP)
                | flag(config.lb_mode == LbMode::Dsr, abi::CFG_DSR_UDP),
            cluster_id: config.cluster_id,
            uplink_ifindex: config.uplink_ifindex,
            overlay_ifindex: config.overlay_ifindex,
            wireguard_ifindex: config.wireguard_ifindex,
            snat_port_min: *config.snat_ports.start(),
            snat_port_max: *config.snat_ports.end(),
            snat_walk: walk(&config.snat_ports),
            vxlan_port: config.vxlan_port,
            wireguard_port: config.wireguard_port.unwrap_or(0),
            host_policy_id: config.host_policy_id,
            events_per_sec: config.events_per_sec,
            report_flags: config.report_flags,
            aggregation: match config.aggregation {
                Aggregation::Flows => abi::AGG_FLOWS,
                Aggregation::Sent => abi::AGG_SENT,
                Aggregation::None => abi::AGG_NONE,
            },
            report_interval_ns: interval,
            internal4: config.internal4.into(),
            internal6: config.internal6.into(),
            underlay4: config.underlay4.into(),
            underlay6: config.underlay6.into(),
            clock_offset_ns: u64::try_from(config.test_clock_offset.as_nanos()).unwrap_or(u64::MAX),
            netns_cookie: crate::sys::netns_cookie().unwrap_or_default(),
            ..abi::Config::default()
        };
        self.tables.config.set(0, row)?;
        // Which destinations had no port left was found with other ports.
        self.search_again()
    }

    /// Names the policy of the node's own traffic, 0 for none, and leaves the rest of the node's row as it is.
    ///
    /// # Errors
    /// There is no such policy: everything of the node would be dropped. Or the map cannot be read or written.
    pub fn set_host_policy(&self, policy: u32) -> Result<(), DatapathError> {
        let _held = lock(&self.host_policy);
        if policy != 0 && self.tables.policies.get(policy)?.is_none() {
            let why =
                "it is not there any more, so the node keeps the one it has; the next plan names another";
            return Err(DatapathError::Invalid { what: format!("policy {policy} of the node"), why });
        }
        let row = self.tables.config.get(0)?;
        self.tables.config.set(0, abi::Config { host_policy_id: policy, ..row })
    }

    /// Deletes a policy, unless the node's own traffic goes by it ([`Self::set_host_policy`]): then false.
    ///
    /// # Errors
    /// A map cannot be read or written.
    pub fn delete_policy_of_others(&self, policy: u32) -> Result<bool, DatapathError> {
        let _held = lock(&self.host_policy);
        if self.tables.config.get(0)?.host_policy_id == policy {
            return Ok(false);
        }
        self.delete_policy(policy).map(|()| true)
    }

    /// Reads the node's row back.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn config(&self) -> Result<NodeConfig, DatapathError> {
        let row = self.tables.config.get(0)?;
        Ok(NodeConfig {
            ready: row.flags & abi::CFG_READY != 0,
            encrypt: row.flags & abi::CFG_ENCRYPT != 0,
            verdict_events: row.flags & abi::CFG_VERDICTS != 0,
            paced: row.flags & abi::CFG_PACED != 0,
            host_serves: row.flags & abi::CFG_HOST_SERVES != 0,
            cluster_id: row.cluster_id,
            uplink_ifindex: row.uplink_ifindex,
            overlay_ifindex: row.overlay_ifindex,
            wireguard_ifindex: row.wireguard_ifindex,
            snat_ports: row.snat_port_min..=row.snat_port_max,
            vxlan_port: row.vxlan_port,
            wireguard_port: (row.wireguard_port != 0).then_some(row.wireguard_port),
            host_policy_id: row.host_policy_id,
            events_per_sec: row.events_per_sec,
            report_flags: row.report_flags,
            aggregation: match row.aggregation {
                abi::AGG_SENT => Aggregation::Sent,
                abi::AGG_NONE => Aggregation::None,
                _ => Aggregation::Flows,
            },
            capture: match row.flags & (abi::CFG_CAPTURE | abi::CFG_CAPTURE_ALL) {
                0 => CaptureOf::Nothing,
                abi::CFG_CAPTURE => CaptureOf::Drops,
                _ => CaptureOf::All,
            },
            report_interval: Duration::from_nanos(row.report_interval_ns),
            internal4: row.internal4.v4(),
            internal6: row.internal6.v6(),
            masquerade4: row.flags & abi::CFG_MASQ4 != 0,
            masquerade6: row.flags & abi::CFG_MASQ6 != 0,
            underlay4: row.underlay4.v4(),
            underlay6: row.underlay6.v6(),
            test_clock_offset: Duration::from_nanos(row.clock_offset_ns),
            lb_mode: match row.flags & (abi::CFG_DSR_TCP | abi::CFG_DSR_UDP) {
                0 => LbMode::Snat,
                abi::CFG_DSR_TCP => LbMode::Hybrid,
                _ => LbMode::Dsr,
            },
            socket_lb: match row.flags & (abi::CFG_SOCK_HOST | abi::CFG_SOCK_PODS) {
                0 => SocketLb::Off,
                abi::CFG_SOCK_HOST => SocketLb::Host,
                _ => SocketLb::All,
            },
        })
    }
}

pub(crate) fn program<'a>(
    object: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut SchedClassifier, DatapathError> {
    let program = object.program_mut(name).ok_or(DatapathError::Missing(name))?;
    program.try_into().map_err(|source| DatapathError::Program { program: name, source: Box::new(source) })
}

/// How long the walk through so many SNAT ports is: the least prime that is not below their number, so that steps of any
/// length come by each of them.
fn walk(ports: &RangeInclusive<u16>) -> u32 {
    let count = u32::from(ports.end().saturating_sub(*ports.start())) + 1;
    let prime = |n: &u32| (2..).take_while(|d| d * d <= *n).all(|d| !n.is_multiple_of(d));
    (count.max(2)..).find(prime).unwrap_or(count)
}

/// Never hooked: it asks the kernel what it knows.
const PROBE: &str = "probe_csum6";

/// Whether the kernel takes the flag that keeps `CHECKSUM_COMPLETE` right when an IPv6 address changes (Linux 6.16 and
/// maintained older series). Without it such packets are summed once more, or, where a driver trusts the sum, dropped.
fn knows_csum6(object: &mut Ebpf) -> Result<bool, DatapathError> {
    // Ethernet, IPv6 and TCP headers of zeros, but for the type: the helper looks at none of it.
    let mut packet = [0_u8; 14 + 40 + 20];
    packet[12..14].copy_from_slice(&[0x86, 0xdd]);
    let (verdict, ..) = run(program(object, PROBE)?, PROBE, &packet, &[0; 192])?;
    Ok(verdict == 0)
}

/// Runs a program on a packet: verdict, packet and context after it.
pub(crate) fn run(
    program: &SchedClassifier,
    name: &'static str,
    packet: &[u8],
    context: &[u8],
) -> Result<(u32, Vec<u8>, Vec<u8>), DatapathError> {
    use aya::programs::{TestRun, TestRunOptions};
    let mut data_out = vec![0; packet.len() + 512];
    let mut ctx_out = vec![0; context.len()];
    let mut options = TestRunOptions::new();
    options.data_in = Some(packet);
    options.data_out = Some(&mut data_out);
    options.ctx_in = Some(context);
    options.ctx_out = Some(&mut ctx_out);
    let result = program
        .test_run(options)
        .map_err(|source| DatapathError::Program { program: name, source: Box::new(source) })?;
    data_out.truncate(usize::try_from(result.data_size_out).unwrap_or_default());
    Ok((result.return_value, data_out, ctx_out))
}

/// Loads an object on the pinned maps of a directory.
pub(crate) fn load(object: &[u8], directory: &Path, sizes: &MapSizes) -> Result<Ebpf, DatapathError> {
    let sizes = sizes.list();
    let mut loader = EbpfLoader::new();
    loader.default_map_pin_directory(directory);
    for (name, size) in sizes {
        loader.map_max_entries(name, size);
    }
    loader.load(object).map_err(|error| DatapathError::Load(Box::new(error)))
}
