//! N1 to N8: what the programs take, without any network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use aya::programs::ProgramFd;
use tokio::runtime::Runtime;
use tombolo_ebpf::{
    Acceleration, Backend, DatapathConfig, Frontend, LbMode, MapSizes, NodePath, PrefixEntry, Scope,
    ServiceEntry,
};
use tombolo_tests::netns::{Namespace, run};
use tombolo_tests::report::{Figure, Goal, Report};

use crate::Failure;
use crate::node::{CLIENT, Node, POD_A, POD_B, PORT, REDIRECT, REMOTE, SHOT, TCP, UNDERLAY, ip, sizes, tcp};
use crate::spaces::{Bpffs, inside};
use crate::units::{Least, Turn, Units};

/// First port of the clients.
const FIRST: u32 = 1024;
/// New flows in a batch.
const NEW: u32 = 1024;
/// Flows whose entries stay in the processor's caches.
const HOT: u32 = 256;
/// A frame leaves where it came in.
const XDP_TX: u32 = 3;
const FAMILIES: [(usize, &str); 2] = [(0, "IPv4"), (1, "IPv6")];
/// Where services stand.
const SERVICE_PORT: u16 = 80;

/// How much is measured.
#[derive(Clone, Copy)]
pub(crate) struct Amount {
    pub(crate) batches: u32,
    /// Flows and keys in turn where nothing is to be warm.
    pub(crate) cold: u32,
    pub(crate) services: u32,
    pub(crate) hosts: u32,
    /// Entries of a large policy.
    pub(crate) rules: u32,
}

/// From whom to whom; the port that a client is seen with changes.
struct Flow {
    syn: Vec<u8>,
    answer: Vec<u8>,
    ack: Vec<u8>,
}

impl Flow {
    /// From A to `to`, where B answers.
    fn new(family: usize, to: (IpAddr, u16)) -> Result<Self, Failure> {
        let of = |both: [&str; 2]| ip(both.get(family).copied().unwrap_or_default());
        let client = (of(POD_A)?, 1024);
        let server = (of(POD_B)?, PORT);
        Ok(Self {
            syn: tcp(client, to, "S")?,
            answer: tcp(server, client, "SA")?,
            ack: tcp(client, to, "A")?,
        })
    }

    fn turn(packet: &[u8], flows: u32) -> Turn<'_> {
        Turn { packet, destination: false, first: FIRST, flows }
    }
}

/// A service of many, by number.
fn service(family: usize, number: u32) -> Result<(IpAddr, u16), Failure> {
    let ip: IpAddr = match family {
        0 => Ipv4Addr::from(0x0a65_0000 + number).into(),
        _ => Ipv6Addr::from((0xfd00_0101_u128 << 96) + u128::from(number)).into(),
    };
    Ok((ip, SERVICE_PORT))
}

/// A node and what times its programs.
struct Timed {
    node: Node,
    units: Units,
    from_endpoint: ProgramFd,
    batches: u32,
}

impl Timed {
    fn new(node: Node, batches: u32) -> Result<Self, Failure> {
        let units = Units::load(&node.pins, batches)?;
        let from_endpoint = node.datapath.program_handle("from_endpoint")?;
        Ok(Self { node, units, from_endpoint, batches })
    }

    /// Makes established flows of so many ports.
    fn establish(&mut self, flow: &Flow, flows: u32) -> Result<(), Failure> {
        self.node.flush()?;
        let (a, b) = (self.node.a, self.node.b);
        self.units.aim(Some(&self.from_endpoint))?;
        for (packet, from, destination) in
            [(&flow.syn, a, false), (&flow.answer, b, true), (&flow.ack, a, false)]
        {
            let turn = Turn { packet, destination, first: FIRST, flows };
            self.units.set(&turn)?;
            let batch = self.units.batch(&turn, from, flows)?;
            if batch.verdict != REDIRECT {
                return Err(format!("a flow's packet was not passed on: verdict {}", batch.verdict).into());
            }
        }
        self.node.drain();
        Ok(())
    }

    /// An established flow's packet, always the same or of many flows in turn.
    fn established(&mut self, flow: &Flow, flows: u32) -> Result<f64, Failure> {
        self.establish(flow, flows)?;
        let ns =
            self.units.time(&self.from_endpoint, self.node.a, &Flow::turn(&flow.ack, flows), REDIRECT)?;
        self.node.drain();
        Ok(ns)
    }

    /// The first packets of flows that nobody has seen, so many ports in turn. All are forgotten before a port comes again.
    fn new_flow(&mut self, flow: &Flow, ports: u32) -> Result<f64, Failure> {
        let turn = Flow::turn(&flow.syn, ports);
        let each = ports.min(NEW);
        let nothing = self.units.nothing(&turn, each)?;
        let mut least = Least::default();
        for _ in 0..self.batches.div_ceil(ports / each) {
            self.node.flush()?;
            self.units.aim(Some(&self.from_endpoint))?;
            self.units.set(&turn)?;
            for _ in 0..ports / each {
                self.node.drain();
                let batch = self.units.batch(&turn, self.node.a, each)?;
                if batch.verdict != REDIRECT {
                    return Err(format!("a new flow was not passed on: verdict {}", batch.verdict).into());
                }
                least.take(batch.ns);
            }
        }
        Ok(least.over(nothing))
    }
}

pub(crate) struct Programs<'a> {
    /// Large tables.
    large: Timed,
    /// Tables that stay in the processor's caches, in a namespace of its own.
    small: Timed,
    space: Namespace,
    report: &'a mut Report,
    amount: Amount,
    /// Nanoseconds of one LRU-hash hit.
    unit: f64,
}

impl<'a> Programs<'a> {
    /// `folder` is where pins of the large tables go.
    pub(crate) fn new(
        folder: &Path,
        runtime: &Runtime,
        report: &'a mut Report,
        amount: Amount,
    ) -> Result<Self, Failure> {
        let node = |folder: &Path, sizes| {
            Node::new(
                &DatapathConfig { bpffs: folder.to_owned(), sizes, ..DatapathConfig::default() },
                runtime,
            )
        };
        let sizes = sizes(amount.cold, amount.services, amount.hosts);
        let mut large = Timed::new(node(folder, sizes.clone())?, amount.batches)?;
        let space = Namespace::new("small");
        let small = inside(&space, || {
            let bpffs = Bpffs::new()?;
            let flows = HOT * 16;
            let sizes =
                MapSizes { conntrack: flows, conntrack_half: flows, nat_half: 1024, nat: 1024, ..sizes };
            // The maps are held by descriptors; the pins may go.
            Timed::new(node(bpffs.path(), sizes)?, amount.batches * 4)
        })?;
        large.units.fill_lru(amount.cold)?;
        let unit = large.units.lookup("lru_hit", 1)?;
        let cold = large.units.lookup("lru_hit", amount.cold)?;
        let what = "one LRU-hash hit: the unit U";
        report.add_noted(
            &Figure { id: "N0", what, unit: "ns", ours: Some(unit), peer: None, goal: Goal::None },
            &format!("cold (in turn of {} keys): {cold:.0} ns", amount.cold),
        );
        Ok(Self { large, small, space, report, amount, unit })
    }

    /// The first packet of a flow, where tables are warm and where they are not.
    fn new_flow(&mut self, flow: &Flow) -> Result<[f64; 2], Failure> {
        let warm = inside(&self.space, || self.small.new_flow(flow, HOT))?;
        Ok([warm, self.large.new_flow(flow, self.amount.cold)?])
    }

    /// Does one thing for 10 s, so that a profiler sees nothing else.
    pub(crate) fn hold(mut self, what: &str) -> Result<(), Failure> {
        let flow = Flow::new(0, (ip(POD_B[0])?, PORT))?;
        let begun = std::time::Instant::now();
        while begun.elapsed().as_secs() < 10 {
            match what {
                "established" => drop(self.large.established(&flow, 1)?),
                "new" => drop(inside(&self.space, || self.small.new_flow(&flow, HOT))?),
                "new-cold" => drop(self.large.new_flow(&flow, self.amount.cold)?),
                other => return Err(format!("hold={other}: it is established, new or new-cold").into()),
            }
        }
        Ok(())
    }

    pub(crate) fn all(mut self) -> Result<(), Failure> {
        self.pods()?;
        self.policy()?;
        self.addresses()?;
        self.services()?;
        self.before_buffers()?;
        self.ports()?;
        self.verifier();
        Ok(())
    }

    fn in_units(&mut self, id: &str, what: &str, ns: f64, goal: Goal, note: &str) {
        let peer = Some((Some(self.unit), "one LRU-hash hit (U)"));
        self.report.add_noted(&Figure { id, what, unit: "ns", ours: Some(ns), peer, goal }, note);
    }

    /// N1, N2.
    fn pods(&mut self) -> Result<(), Failure> {
        for (family, name) in FAMILIES {
            let to = (ip(POD_B.get(family).copied().unwrap_or_default())?, PORT);
            let flow = Flow::new(family, to)?;
            let hot = self.large.established(&flow, 1)?;
            let cold = self.large.established(&flow, self.amount.cold)?;
            let note = format!(
                "cold: {cold:.0} ns, {} flows in turn (their conntrack entries, twice)",
                self.amount.cold
            );
            let what = format!("established flow, pod to pod, policy on, {name}");
            self.in_units(&format!("N1-{name}"), &what, hot, Goal::Ratio(10.0), &note);
            let [warm, cold] = self.new_flow(&flow)?;
            let note = format!("cold: {cold:.0} ns, tables of {} flows", self.amount.cold);
            let what = format!("new flow: two verdicts, two entries, events, {name}");
            self.in_units(&format!("N2-{name}"), &what, warm, Goal::Ratio(30.0), &note);
        }
        Ok(())
    }

    /// N3: what a new flow costs more with a policy than without, so one verdict.
    fn policy(&mut self) -> Result<(), Failure> {
        let flow = Flow::new(0, (ip(POD_B[0])?, PORT))?;
        self.small.node.configure(|config| config.verdict_events = false)?;
        let most = self.amount.rules;
        let counts = [0, 10, 1_000, most];
        let mut least = [f64::INFINITY; 4];
        for _ in 0..5 {
            for (count, least) in counts.into_iter().zip(&mut least) {
                self.small.node.police(None, (count > 0).then_some(count))?;
                let warm = inside(&self.space, || self.small.new_flow(&flow, HOT))?;
                *least = least.min(warm);
            }
        }
        self.small.node.configure(|config| config.verdict_events = true)?;
        self.small.node.police(Some(10), Some(10))?;
        let [none, few, some, many] = least;
        let [few, some, many] = [few, some, many].map(|ns| ns - none);
        let mut tries = Vec::new();
        let mut filled = 0;
        for count in [10, 1_000, most] {
            self.large.units.fill_policy(filled, count)?;
            filled = count;
            tries.push(self.large.units.lookup("lpm_pair", 1)?);
        }
        let tries: Vec<String> = tries.iter().map(|ns| format!("{ns:.0}")).collect();
        let note = format!(
            "one verdict at 10, 1,000, {most} entries: {few:.0}, {some:.0}, {many:.0} ns; of a prefix trie twice: {} ns",
            tries.join(", ")
        );
        let what = format!("policy verdict: {most} entries beside 10");
        let peer = Some((Some(few), "the same with 10"));
        let goal = Goal::Ratio(1.5);
        let figure = Figure { id: "N3-growth", what: &what, unit: "ns", ours: Some(many), peer, goal };
        self.report.add_noted(&figure, &note);
        let trie = self.large.units.lookup("lpm_pair", 1)?;
        let what = format!("policy verdict with {most} entries");
        let peer = Some((Some(trie), "prefix trie, twice"));
        let goal = Goal::Ratio(0.5);
        self.report.add(&Figure { id: "N3", what: &what, unit: "ns", ours: Some(many), peer, goal });
        Ok(())
    }

    /// N4.
    fn addresses(&mut self) -> Result<(), Failure> {
        let hosts = self.amount.hosts;
        for number in 0..hosts {
            let address: IpAddr = Ipv4Addr::from(0x0a08_0000 + number).into();
            let row = PrefixEntry { identity: 70_000, node: 1, ..PrefixEntry::default() };
            self.large.node.datapath.upsert_prefix(address.into(), &row)?;
        }
        self.large.units.fill_cache(hosts)?;
        for (id, what, keys) in [("N4", "hot", 1), ("N4-cold", "cold", hosts)] {
            let ours = Some(self.large.units.lookup("hash_host", keys)?);
            let trie = Some(self.large.units.lookup("lpm_host", keys)?);
            let what = format!("address to identity and node, {hosts} addresses, {what}");
            let goal = Goal::Ratio(0.5);
            let peer = Some((trie, "prefix trie"));
            self.report.add(&Figure { id, what: &what, unit: "ns", ours, peer, goal });
        }
        Ok(())
    }

    /// N5: what a packet to a service costs more than one to the pod.
    fn services(&mut self) -> Result<(), Failure> {
        let count = self.amount.services;
        self.large.units.fill_services(count)?;
        let three = self.large.units.lookup("hash_three", 1)?;
        for (family, name) in FAMILIES {
            let pod = (ip(POD_B.get(family).copied().unwrap_or_default())?, PORT);
            write_services(&self.large.node, family, pod.0, count)?;
            write_services(&self.small.node, family, pod.0, count)?;
            let direct = Flow::new(family, pod)?;
            let through = Flow::new(family, service(family, count - 1)?)?;
            let mut least = [f64::INFINITY; 6];
            for _ in 0..3 {
                let hot = [self.large.established(&direct, 1)?, self.large.established(&through, 1)?];
                let new = [self.new_flow(&direct)?, self.new_flow(&through)?];
                let now = [hot, new[0], new[1]].into_iter().flatten();
                least.iter_mut().zip(now).for_each(|(least, now)| *least = least.min(now));
            }
            let cold = self.large.established(&through, self.amount.cold)?;
            let [direct, through, direct_new, direct_cold, through_new, through_cold] = least;
            let mut add = |id: &str, what: &str, ns: f64, goal: f64, note: &str| {
                let (id, what) = (format!("{id}-{name}"), format!("{what}, {count} services, {name}"));
                let peer = Some((Some(three), "three hash hits"));
                let goal = Goal::Ratio(goal);
                let figure = Figure { id: &id, what: &what, unit: "ns", ours: Some(ns), peer, goal };
                self.report.add_noted(&figure, note);
            };
            let note = format!(
                "a packet to the pod itself {direct:.0} ns, through the service {through:.0}, cold {cold:.0}"
            );
            add("N5", "translation of an established flow", through - direct, 1.3, &note);
            let note = format!(
                "to the pod itself {direct_new:.0} ns, through the service {through_new:.0}; cold {direct_cold:.0} and {through_cold:.0}"
            );
            add("N5-new", "translation of a new flow", through_new - direct_new, 2.5, &note);
            [&self.large.node, &self.small.node].into_iter().try_for_each(clear_services)?;
        }
        Ok(())
    }

    /// N6: a node port before socket buffers, its backend on another node that answers by itself.
    fn before_buffers(&mut self) -> Result<(), Failure> {
        let node = &mut self.large.node;
        let router = ["172.20.11.1", "lladdr", "02:00:00:00:00:99", "dev", "upl"];
        run("sysctl", &["-qw", "net.ipv4.ip_forward=1"]);
        run("ip", &["addr", "add", "172.20.11.2/24", "dev", "upl"]);
        run("ip", &["route", "add", "10.1.2.0/24", "via", "172.20.11.1", "dev", "upl"]);
        run("ip", &[&["neigh", "add"], &router[..]].concat());
        node.configure(|config| config.lb_mode = LbMode::Dsr)?;
        node.remote(NodePath::Direct)?;
        node.datapath.attach_xdp(node.uplink, Acceleration::Native)?;
        let number = 1_u32;
        node.datapath.upsert_backend(number, &Backend { ip: ip(REMOTE[0])?, port: PORT, protocol: TCP })?;
        let at = (ip(UNDERLAY[0])?, 30_080);
        let frontend = Frontend { ip: at.0, port: at.1, protocol: TCP, scope: Scope::External };
        let slots = vec![number; 251];
        let entry = ServiceEntry { rev_nat: 1, maglev: slots, node_port: true, ..ServiceEntry::default() };
        node.datapath.set_service(&frontend, &entry)?;
        let packet = tcp((ip(CLIENT[0])?, 1024), at, "A")?;
        let target = node.datapath.xdp_handle()?;
        let uplink = node.uplink;
        let mut time =
            |flows| self.large.units.time_xdp(&target, uplink, &Flow::turn(&packet, flows), XDP_TX);
        let timed = match time(1) {
            Ok(hot) => time(self.amount.cold).map(|cold| (hot, cold)),
            Err(error) => Err(error),
        };
        let what = "XDP NodePort with DSR and Maglev, 64 bytes";
        let (ours, note) = match timed {
            Ok((hot, cold)) => {
                let (rate, flows) = (1e3 / hot, self.amount.cold);
                let note = format!(
                    "{rate:.2} million packets a second and processor; of {flows} flows in turn {cold:.0} ns"
                );
                (Some(hot), note)
            }
            Err(error) => (None, format!("not measured: {error}")),
        };
        let peer = Some((Some(self.unit), "one LRU-hash hit (U)"));
        let figure = Figure { id: "N6", what, unit: "ns", ours, peer, goal: Goal::Ratio(8.0) };
        self.report.add_noted(&figure, &note);
        let node = &mut self.large.node;
        node.datapath.delete_service(&frontend)?;
        node.datapath.detach_xdp(node.uplink)?;
        node.configure(|config| config.lb_mode = LbMode::Snat)?;
        node.remote(NodePath::Overlay)
    }

    /// N7: clients from outside, one backend on another node, and only so many ports to be seen with.
    fn ports(&mut self) -> Result<(), Failure> {
        let (first, last) = (10_240_u16, 32_767_u16);
        let range = u32::from(last - first) + 1;
        self.large.node.configure(|config| config.snat_ports = first..=last)?;
        let backend = Backend { ip: ip(REMOTE[0])?, port: PORT, protocol: TCP };
        self.large.node.datapath.upsert_backend(1, &backend)?;
        let (vip, port) = service(0, 0)?;
        let frontend = Frontend { ip: vip, port, protocol: TCP, scope: Scope::External };
        let entry = ServiceEntry { rev_nat: 1, maglev: vec![1], ..ServiceEntry::default() };
        self.large.node.datapath.set_service(&frontend, &entry)?;
        let syn = tcp((ip(CLIENT[0])?, 1024), (vip, port), "S")?;
        let turn = Flow::turn(&syn, 60_000);
        let target = self.large.node.datapath.program_handle("from_uplink")?;
        let nothing = self.large.units.nothing(&turn, 64)?;
        let mut figures = Vec::new();
        for percent in [1, 90] {
            self.large.node.flush()?;
            self.large.units.aim(Some(&target))?;
            self.large.units.set(&turn)?;
            // Half of what is measured lies before, half behind.
            let (rounds, each) = (10, 64);
            let before = (range * percent / 100).saturating_sub(rounds * each / 2).max(1);
            self.large.units.batch(&turn, self.large.node.uplink, before)?;
            self.large.node.drain();
            let (mut least, failed) = (Least::default(), self.large.node.dropped(NO_MAPPING)?);
            for _ in 0..rounds {
                let batch = self.large.units.batch(&turn, self.large.node.uplink, each)?;
                if batch.verdict != REDIRECT && batch.verdict != SHOT {
                    return Err(format!("a client's packet: verdict {}", batch.verdict).into());
                }
                least.take(batch.ns);
                self.large.node.drain();
            }
            let failed = f64::from(u32::try_from(self.large.node.dropped(NO_MAPPING)? - failed)?);
            let tried = f64::from(rounds * each);
            figures.push((least.over(nothing), 100.0 * (tried - failed) / tried));
        }
        let (few, many) = (figures.first().copied(), figures.get(1).copied());
        let peer = Some((few.map(|(ns, _)| ns), "with 1 % of them used"));
        let what = format!("SNAT, new flow, 90 % of {range} ports used");
        let (ours, goal) = (many.map(|(ns, _)| ns), Goal::Ratio(3.0));
        self.report.add(&Figure { id: "N7", what: &what, unit: "ns", ours, peer, goal });
        let what = "SNAT, new flows that found a port, 90 % used";
        let (ours, goal) = (many.map(|(_, part)| part), Goal::Least(100.0));
        let peer = Some((few.map(|(_, part)| part), "with 1 % of them used"));
        self.report.add(&Figure { id: "N7-success", what, unit: "%", ours, peer, goal });
        Ok(())
    }

    fn verifier(&mut self) {
        let Ok(all) = self.large.node.datapath.verified_instructions() else { return };
        let Some((name, most)) = all.into_iter().max_by_key(|(_, count)| *count) else { return };
        let what = format!("instructions that the verifier walks, most ({name})");
        let ours = Some(f64::from(most)).filter(|most| *most > 0.0);
        let goal = Goal::Most(600_000.0);
        self.report.add(&Figure { id: "N8", what: &what, unit: "", ours, peer: None, goal });
    }
}

/// Reason of a drop: no port to be seen with.
const NO_MAPPING: u8 = 167;

fn write_services(node: &Node, family: usize, pod: IpAddr, count: u32) -> Result<(), Failure> {
    for number in 0..count {
        let backend = Backend { ip: pod, port: PORT, protocol: TCP };
        node.datapath.upsert_backend(number + 1, &backend)?;
        let (ip, port) = service(family, number)?;
        let frontend = Frontend { ip, port, protocol: TCP, scope: Scope::Internal };
        let entry = ServiceEntry { rev_nat: number + 1, maglev: vec![number + 1], ..ServiceEntry::default() };
        node.datapath.set_service(&frontend, &entry)?;
    }
    Ok(())
}

fn clear_services(node: &Node) -> Result<(), Failure> {
    node.flush()?;
    for frontend in node.datapath.services()?.keys() {
        node.datapath.delete_service(frontend)?;
    }
    for id in node.datapath.backends()?.keys() {
        node.datapath.delete_backend(*id)?;
    }
    Ok(())
}
