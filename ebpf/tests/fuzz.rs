//! Anything at all through every program: valid packets, damaged ones, bytes. Whatever it is,
//!
//! * the verdict is one that the kernel knows, and it is counted; a drop has a reason and a place that agree, and both count;
//! * a pod under default deny without a rule is sent nothing but answers to what it has sent, and its node's own packets;
//! * each address translation has both its ways.
//!
//! `TOMBOLO_CASES` says how many packets (default 20,000, the twentieth part of `make fuzz-datapath`), `TOMBOLO_SEED` from where.

#![cfg(test)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use support::*;
use tombolo_ebpf::*;
use tombolo_model::{Fragment, Fragments, Frame, Ip, Tuple};

/// Small, fast and the same everywhere (xorshift64*).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % limit
    }

    fn small(&mut self, limit: usize) -> u16 {
        u16::try_from(self.below(limit)).unwrap()
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[5]
    }

    fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }
}

/// A family's number in the numbers of services and backends.
fn number(family: usize) -> u32 {
    u32::try_from(family).unwrap()
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: give a number")))
}

const HOSTS: [[&str; 2]; 10] =
    [POD_A, POD_B, REMOTE, CLIENT, CLUSTER_IP, VIP, GATEWAY, NODE, REMOTE_NODE, ["224.0.0.5", "ff02::5"]];
const PROGRAMS: [&str; 7] = [
    "from_endpoint",
    "to_endpoint",
    "from_uplink",
    "to_uplink",
    "from_overlay",
    "to_overlay",
    "from_wireguard",
];
/// The pod under default deny.
const GUARDED: u32 = 7;

struct World {
    node: Node,
    dice: Dice,
    /// The last packets, as they were sent, and as they went on.
    seen: Vec<Vec<u8>>,
    /// The flows that the guarded pod has sent packets of.
    opened: BTreeSet<Tuple>,
    fragments: Fragments,
    /// To whom it has sent later fragments, and of which protocol: their ports are what anybody's first fragment said.
    portless: BTreeSet<(IpAddr, u8)>,
    /// Its packets, for who looks into a failure.
    spoken: Vec<String>,
    counted: u64,
    reasons: BTreeMap<u8, u64>,
    delivered: u64,
    /// Frames that the kernel did not take, by their length.
    refused: BTreeMap<usize, u64>,
}

impl World {
    fn new(seed: u64) -> Self {
        let node = Node::with_sizes(MapSizes {
            conntrack: 1 << 16,
            conntrack_half: 1 << 16,
            nat: 1 << 16,
            nat_half: 1 << 16,
            event_ring_bytes: 1 << 20,
            ..small_sizes()
        });
        let d = &node.datapath;
        for f in FAMILIES {
            let (cluster, vip) = (CLUSTER_IP[f], VIP[f]);
            node.service(
                cluster,
                80,
                Scope::Internal,
                1 + number(f) * 10,
                &[(1 + number(f) * 10, POD_B[f], 8080), (2 + number(f) * 10, REMOTE[f], 8080)],
            );
            node.service(
                vip,
                80,
                Scope::External,
                2 + number(f) * 10,
                &[(3 + number(f) * 10, REMOTE[f], 8080), (4 + number(f) * 10, POD_B[f], 8080)],
            );
            node.service(vip, 81, Scope::External, 3 + number(f) * 10, &[]);
        }
        let deny = PolicySet { ingress: PolicySide::only(Vec::new()), ..PolicySet::default() };
        d.set_policy(GUARDED, &deny).unwrap();
        d.upsert_interface(node.b, &Interface { policy_id: GUARDED, ..pod(POD_B, ID_B, 2, MAC_B) }).unwrap();
        Self {
            node,
            dice: Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
            seen: Vec::new(),
            opened: BTreeSet::new(),
            fragments: Fragments::new(),
            portless: BTreeSet::new(),
            spoken: Vec::new(),
            counted: 0,
            reasons: BTreeMap::new(),
            delivered: 0,
            refused: BTreeMap::new(),
        }
    }

    /// A packet that somebody might send.
    fn valid(&mut self) -> Vec<u8> {
        let f = self.dice.below(2);
        let (from, to) = (self.dice.of(&HOSTS)[f], self.dice.of(&HOSTS)[f]);
        let ports = (4000 + self.dice.small(3), self.dice.of(&[80_u16, 81, 8080, 8472, 22]));
        match self.dice.below(8) {
            0 => ping(from, to, 1 + self.dice.small(3), self.dice.one_in(2)),
            1 if f == 1 => icmp6(
                from,
                to,
                (self.dice.of(&[133_u8, 134, 135, 136, 137, 143, 130]), 0),
                self.dice.of(&[255, 64, 1]),
            ),
            2 => match self.earlier() {
                Some(earlier) if ip_of(&earlier).is_ipv4() == (f == 0) => unreachable(from, to, &earlier),
                _ => udp((from, ports.0), (to, ports.1), 20),
            },
            3..5 => udp((from, ports.0), (to, ports.1), self.dice.of(&[0, 20, 1300, 1480])),
            _ => tcp((from, ports.0), (to, ports.1), self.dice.of(&["S", "SA", "A", "FA", "R", ""])),
        }
    }

    fn earlier(&mut self) -> Option<Vec<u8>> {
        let position = self.dice.below(self.seen.len().max(1));
        self.seen
            .get(position)
            .filter(|frame| matches!(Frame::read(frame, 0), Frame::Ip(_)) && frame.len() > 60)
            .cloned()
    }

    /// The answer to an earlier one: ends and ports change places.
    fn answer(&mut self) -> Option<Vec<u8>> {
        let mut frame = self.earlier()?;
        let v4 = frame[12] == 8;
        let (source, length, l4) = if v4 { (26, 4, 34) } else { (22, 16, 54) };
        for n in 0..length {
            frame.swap(source + n, source + length + n);
        }
        if frame.len() >= l4 + 4 {
            frame.swap(l4, l4 + 2);
            frame.swap(l4 + 1, l4 + 3);
        }
        Some(frame)
    }

    fn damage(&mut self, frame: &mut Vec<u8>) {
        for _ in 0..=self.dice.below(3) {
            let position = self.dice.below(frame.len().max(1));
            match self.dice.below(9) {
                0 => frame.truncate(position.max(14)),
                1 => (0..self.dice.below(40)).for_each(|_| frame.push(self.dice.byte())),
                2 => frame[position] = self.dice.byte(),
                3 => frame[position] ^= 1 << self.dice.below(8),
                // A fragment; more of it, or a later one.
                4 if frame[12] == 8 && frame.len() > 22 => {
                    frame[20] = self.dice.of(&[0x20, 0x00, 0x20, 0x40]);
                    frame[21] = self.dice.of(&[0, 0, 1, 8, 185]);
                }
                // Extension headers.
                4 | 5 if frame[12] == 0x86 && frame.len() > 54 => {
                    let (next, kind) = (frame[20], self.dice.of(&[0, 43, 44, 51, 60]));
                    let more = self.dice.of(&[0, 0, 1, 9]);
                    let header = [
                        next,
                        if kind == 44 { 0 } else { self.dice.of(&[0, 0, 1, 255]) },
                        0,
                        more,
                        0,
                        0,
                        0,
                        7,
                    ];
                    frame[20] = kind;
                    frame.splice(54..54, header);
                }
                // Options.
                5 if frame[12] == 8 && frame.len() > 34 => {
                    frame[14] = 0x46;
                    frame.splice(34..34, [1, 1, 1, 0]);
                }
                // A VLAN.
                6 if self.dice.one_in(4) => drop(frame.splice(12..12, [0x81, 0, 0, 5])),
                7 if frame.len() > 40 => {
                    let at = 14 + self.dice.below(frame.len() - 14);
                    frame[at] = self.dice.of(&[0, 1, 6, 17, 58, 44, 0x45, 0x4f, 0x60, 0xff]);
                }
                _ if self.dice.one_in(20) => (14..frame.len()).for_each(|n| frame[n] = self.dice.byte()),
                _ => {}
            }
        }
    }

    fn packet(&mut self) -> Vec<u8> {
        let mut frame = match self.dice.below(10) {
            0..3 => self.answer().unwrap_or_else(|| self.valid()),
            3 => self.earlier().unwrap_or_else(|| self.valid()),
            _ => self.valid(),
        };
        if self.dice.one_in(3) {
            self.damage(&mut frame);
        }
        frame
    }

    /// The guarded pod speaks, and is answered where its packet went: by its receiver, or by who says that it is.
    fn talk(&mut self) {
        let f = self.dice.below(2);
        let to = self.dice.of(&[POD_A[f], REMOTE[f], CLIENT[f], CLUSTER_IP[f]]);
        let ports = (4000 + self.dice.small(50), self.dice.of(&[80_u16, 8080, 22]));
        let asks = if self.dice.one_in(2) {
            udp((POD_B[f], ports.0), (to, ports.1), 20)
        } else {
            tcp((POD_B[f], ports.0), (to, ports.1), "S")
        };
        let Some(ran) = self.meet("from_endpoint", self.node.b, asks, 0, 0) else { return };
        let here = ran.packet[..6] == MAC_A;
        let (program, ifindex) =
            if here { ("from_endpoint", self.node.a) } else { ("from_uplink", self.node.uplink) };
        if ran.action == SHOT {
            return;
        }
        self.seen = vec![ran.packet];
        for _ in 0..3 {
            let Some(mut answer) = self.answer() else { return };
            if self.dice.one_in(3) {
                self.damage(&mut answer);
            }
            self.meet(program, ifindex, answer, 0, 0);
            self.seen.truncate(1);
        }
    }

    fn step(&mut self) {
        if self.dice.one_in(30) {
            return self.talk();
        }
        let program = self.dice.of(&PROGRAMS);
        let mut frame = self.packet();
        let (a, b) = (self.node.a, self.node.b);
        let ifindex = match program {
            "from_endpoint" | "to_endpoint" => self.dice.of(&[a, b, b]),
            "from_overlay" | "to_overlay" => self.node.overlay,
            _ => self.node.uplink,
        };
        if program == "from_wireguard" && frame.len() > 60 {
            // Its packets have no link layer; where a test run looks for the type, a source address begins.
            let kind = [frame[12], frame[13]];
            frame.drain(..14);
            frame[12..14].copy_from_slice(&kind);
        }
        let mark = self.dice.of(&[0, 0, 0, 0, 0x0f00, 0x0300, 0x0d00, 0x1e00]);
        let gso = self.dice.of(&[0, 0, 0, 1400]);
        self.meet(program, ifindex, frame, mark, gso);
    }

    /// A packet meets a program, and what comes of it is looked at.
    fn meet(
        &mut self,
        program: &'static str,
        ifindex: u32,
        frame: Vec<u8>,
        mark: u32,
        gso: u32,
    ) -> Option<Ran> {
        // Also what is dropped on its way: the flow was opened by then.
        if program == "from_endpoint"
            && ifindex == self.node.b
            && let Frame::Ip(ip) = Frame::read(&frame, 0)
        {
            self.note(&ip);
            self.spoken.push(format!("{} [{}]", hex(&frame), ip.packet));
        }
        let ran = self.run(program, ifindex, &frame, mark, gso)?;
        let what = || format!("{program} at {ifindex}, mark {mark:#x}: {}", hex(&frame));
        let answered = self.accounts(&ran, &what);
        if !answered {
            self.delivers(program, ifindex, &ran, &what);
        }
        if self.seen.len() < 64 {
            self.seen.push(frame);
        } else {
            let place = self.dice.below(64);
            self.seen[place] = if ran.action == SHOT { frame } else { ran.packet.clone() };
        }
        Some(ran)
    }

    /// `None`: the kernel does not take such a frame for a test run.
    fn run(&mut self, program: &'static str, ifindex: u32, frame: &[u8], mark: u32, gso: u32) -> Option<Ran> {
        let mut context = [0_u8; 192];
        context[8..12].copy_from_slice(&mark.to_ne_bytes());
        context[40..44].copy_from_slice(&ifindex.to_ne_bytes());
        context[176..180].copy_from_slice(&gso.to_ne_bytes());
        match self.node.datapath.test_run(program, frame, &context) {
            Ok((action, packet, _)) => Some(Ran { action, packet, mark }),
            Err(_) => {
                *self.refused.entry(frame.len()).or_default() += 1;
                None
            }
        }
    }

    /// The verdict is known and counted. Whether a dropped packet became the answer to itself.
    fn accounts(&mut self, ran: &Ran, what: &dyn Fn() -> String) -> bool {
        assert!([OK, SHOT, REDIRECT].contains(&ran.action), "verdict {} of {}", ran.action, what());
        let counted: u64 = self.node.datapath.metrics().unwrap().iter().map(|metric| metric.packets).sum();
        let drops: Vec<_> =
            self.node.events().into_iter().filter(|event| event.kind == EventKind::Drop).collect();
        let answered = ran.action == REDIRECT && !drops.is_empty();
        let expected = self.counted + 1 + u64::from(answered);
        assert_eq!(counted, expected, "counted otherwise: {}", what());
        self.counted = counted;
        assert_eq!(drops.len(), usize::from(ran.action == SHOT || answered), "{drops:?} of {}", what());
        for drop in drops {
            let place = site(drop.flow.site).unwrap_or_else(|| panic!("{drop:?} of {}", what()));
            assert_eq!(place.number, drop.flow.drop_reason, "{place:?} of {}", what());
            *self.reasons.entry(drop.flow.drop_reason).or_default() += 1;
        }
        answered
    }

    /// What reaches the guarded pod is an answer to what it has sent.
    fn delivers(&mut self, program: &str, ifindex: u32, ran: &Ran, what: &dyn Fn() -> String) {
        let b = self.node.b;
        // Its node answers it, and it may reach itself through a service.
        if ran.action == SHOT || (program == "from_endpoint" && ifindex == b) {
            return;
        }
        let to_guarded = match program {
            "to_endpoint" => ifindex == b,
            "to_uplink" | "to_overlay" => false,
            _ => ran.action == REDIRECT && ran.packet[..6] == MAC_B,
        };
        let Frame::Ip(Ip { packet, link: None, .. }) = Frame::read(&ran.packet, 0) else { return };
        let of_node = || [GATEWAY, NODE].iter().flatten().any(|own| ip(own) == packet.source);
        // The stack has a route for each pod, so it sends none what is another's.
        let of_stack = || of_node() || !POD_B.iter().any(|own| ip(own) == packet.destination);
        if !to_guarded || (program == "to_endpoint" && of_stack()) {
            return;
        }
        self.delivered += 1;
        let flow = packet.flow(&self.fragments).reversed();
        if self.portless.contains(&(flow.destination.0, flow.protocol)) {
            return;
        }
        let answered = match packet.fragment {
            Fragment::Later(_) => self
                .opened
                .iter()
                .any(|flow| (flow.source.0, flow.destination.0) == (packet.destination, packet.source)),
            Fragment::Whole | Fragment::First(_) => self.opened.contains(&flow),
        };
        let about = FlowFilter { port: Some(flow.source.1), ..FlowFilter::default() };
        let known = || format!("{:#?}", self.node.datapath.flows(&about).unwrap());
        let told = || format!("{}\nknown: {}", self.spoken.join("\n"), known());
        assert!(
            answered,
            "a pod under default deny was sent [{packet}] by {}, and had sent\n{}",
            what(),
            told()
        );
    }

    fn note(&mut self, ip: &Ip) {
        let flow = ip.packet.flow(&self.fragments);
        if let Fragment::First(id) = ip.packet.fragment {
            let ends = (ip.packet.source, ip.packet.destination, id, ip.packet.protocol());
            self.fragments.insert(ends, (flow.source.1, flow.destination.1));
        }
        if matches!(ip.packet.fragment, Fragment::Later(_)) {
            self.portless.insert((flow.destination.0, flow.protocol));
        }
        self.opened.insert(flow);
    }

    /// Every translation leads out and back.
    fn balanced(&self) {
        let schema = std::fs::read_dir(self.node.bpffs.path().join("tombolo")).unwrap();
        let schema: PathBuf = schema.map(|entry| entry.unwrap().path()).next().unwrap();
        let rows = ["tb_nat", "tb_nat_half"].map(|name| raw_rows(&schema.join(name)).unwrap()).concat();
        let end = |bytes: &[u8], address: usize, port: usize| {
            (bytes[address..address + 16].to_vec(), bytes[port..port + 2].to_vec())
        };
        let (mut out, mut back) = (BTreeMap::new(), BTreeMap::new());
        for (key, value) in rows {
            let ends = (end(&key, 0, 32), end(&key, 16, 34), key[36]);
            let other = end(&value, 8, 24);
            match key[37] {
                3 => drop(out.insert(ends, other)),
                4 => drop(back.insert(ends, other)),
                kind => panic!("a translation of kind {kind}"),
            }
        }
        for ((backend, node, protocol), client) in &back {
            assert_eq!(
                out.get(&(client.clone(), backend.clone(), *protocol)),
                Some(node),
                "no way out to {backend:?}"
            );
        }
        assert_eq!(out.len(), back.len(), "ways out that lead to no way back");
    }
}

fn ip_of(frame: &[u8]) -> IpAddr {
    match Frame::read(frame, 0) {
        Frame::Ip(ip) => ip.packet.source,
        Frame::Foreign => panic!("no IP"),
    }
}

fn hex(frame: &[u8]) -> String {
    frame.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn nothing_confuses_the_programs() {
    let (wanted, seed) = (setting("TOMBOLO_CASES", 20_000), setting("TOMBOLO_SEED", 1));
    println!("TOMBOLO_SEED={seed} TOMBOLO_CASES={wanted}");
    let mut world = World::new(seed);
    // Encryption, the host's policy, and the path to the other node take turns.
    let turns = 8;
    for turn in 0..turns {
        let config = NodeConfig {
            encrypt: turn & 1 != 0,
            wireguard_ifindex: if turn & 2 != 0 { world.node.overlay } else { 0 },
            host_policy_id: if turn & 4 != 0 { GUARDED } else { 0 },
            ..world.node.config()
        };
        world.node.datapath.set_config(&config).unwrap();
        let path = if turn & 2 != 0 { NodePath::Direct } else { NodePath::Overlay };
        world.node.remote(path, turn & 1 != 0);
        (0..wanted / turns).for_each(|_| world.step());
        world.balanced();
    }
    println!("not taken, by length: {:?}", world.refused);
    println!("{} to the guarded pod, drops by reason: {:?}", world.delivered, world.reasons);
    if wanted >= 20_000 {
        assert!(world.delivered > 20, "{}: a pod that is never answered shows nothing", world.delivered);
        for reason in [132, 133, 134, 135, 136, 139, 142, 147, 150, 156, 158, 163, 170, 175, 176, 195] {
            assert!(
                world.reasons.contains_key(&reason),
                "nothing was dropped for {reason}: {:?}",
                world.reasons
            );
        }
    }
}
