//! Packets once more: through the model, which tells each decision, and through the real programs. What is forwarded is not
//! disturbed, and nothing is left behind: the programs are loaded a second time, on maps of their own for all that they
//! write (flows, counters, events, the configuration), and on the living ones for what they only read.

use crate::abi;
use crate::datapath::{Datapath, OBJECT, program, run};
use crate::error::DatapathError;
use crate::events::{self, DatapathEvent, EventKind};
use crate::scene::{MOST_FLOWS, Scene};
use crate::sys;
use crate::tables::{Hash, Slots};
use aya::maps::{MapData, RingBuf};
use aya::{Ebpf, EbpfLoader};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};
use tombolo_base::flow::Capture;
use tombolo_model as model;
use tombolo_model::{Frame, Hook, Packet, Reason, Step, To};

/// Maps that no program on packets writes. All others are made anew for a replay.
const READ_ONLY: [&str; 17] = [
    "tb_ifaces",
    "tb_endpoints",
    "tb_hosts",
    "tb_prefixes",
    "tb_nodes",
    "tb_services",
    "tb_ranges",
    "tb_fronts",
    "tb_egw",
    "tb_unmasked",
    "tb_members",
    "tb_backends",
    "tb_maglev",
    "tb_sock_rev",
    "tb_rev_nat",
    "tb_policies",
    "tb_rules",
];

/// The longest frame that a test run takes as one page.
const MOST_BYTES: usize = 3000;

/// What both make of a packet.
#[derive(Clone, Debug)]
pub struct Explained {
    /// The program.
    pub program: &'static str,
    /// The packet as it was read.
    pub frame: Frame,
    /// Each decision of the model, with the number that the deciding policy entry goes by; 0: none decided.
    pub steps: Vec<(Step, u32)>,
    /// Where the model sends it, or why it drops it.
    pub model: Result<(To, Option<Packet>), Reason>,
    /// The same, by the programs: a drop with reason and place.
    pub programs: Result<To, (u8, u16)>,
    /// The packet behind the program.
    pub after: Vec<u8>,
    /// The program's last event, if there was one.
    pub event: Option<DatapathEvent>,
    /// How both differ; `None`: they agree.
    pub difference: Option<String>,
    /// What a reader should know.
    pub notes: Vec<&'static str>,
}

/// What the programs say: where it goes, or reason and place of a drop; the packet behind them; their last event.
type Said = (Result<To, (u8, u16)>, Vec<u8>, Option<DatapathEvent>);

/// The second copy of the programs.
pub struct Replayer {
    object: Ebpf,
    config: Slots<abi::Config>,
    flows: [Hash<abi::Tuple, abi::Ct>; 2],
    nat: [Hash<abi::Tuple, abi::Nat>; 2],
    affinity: Hash<abi::AffinityKey, abi::Affinity>,
    fragments: MapData,
    events: RingBuf<MapData>,
    loaded: BTreeSet<&'static str>,
}

/// The program that begins at an observation point, and what the model calls it. The WireGuard device's program is the
/// uplink's, for packets without link layer; a test run always gives one.
fn hook_of(capture: &Capture) -> Option<(&'static str, Hook)> {
    let mark = capture.mark & 0x1F00;
    Some(match capture.point {
        5 => ("from_endpoint", Hook::FromEndpoint(capture.ifindex)),
        7 => ("to_endpoint", Hook::ToEndpoint(capture.ifindex)),
        9 => {
            let (sender, key) = capture.tunnel.unwrap_or((IpAddr::from([0; 16]), 0));
            ("from_overlay", Hook::FromOverlay(sender, key))
        }
        4 => ("to_overlay", Hook::ToOverlay(mark == 0x0F00)),
        10 | 12 => ("from_uplink", Hook::FromUplink),
        11 => ("to_uplink", Hook::ToUplink { ciphertext: mark == 0x1E00, forwarded: mark == 0x0300 }),
        _ => return None,
    })
}

impl Datapath {
    /// Loads the programs a second time; each program is verified when it is first run.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn replayer(&self) -> Result<Replayer, DatapathError> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let root = self.directory.parent().unwrap_or(&self.directory);
        let own = root.join(format!("replay-{}-{number}", std::process::id()));
        let failed = |operation| {
            move |source| DatapathError::BpfFs { operation, path: self.directory.clone(), source }
        };
        std::fs::create_dir_all(&own).map_err(failed("create a folder beside"))?;
        let loaded = self.load_copy(&own);
        // The maps live as long as the copy has them.
        std::fs::remove_dir_all(&own).map_err(failed("remove a folder beside"))?;
        loaded
    }

    fn load_copy(&self, own: &std::path::Path) -> Result<Replayer, DatapathError> {
        let mut loader = EbpfLoader::new();
        loader.default_map_pin_directory(own).override_global("tb_replay", &1_u32, true);
        for name in READ_ONLY {
            loader.map_pin_path(name, self.directory.join(name));
        }
        let rows = u32::try_from(MOST_FLOWS).unwrap_or(u32::MAX).saturating_mul(2);
        for name in ["tb_ct_half", "tb_ct", "tb_nat_half", "tb_nat"] {
            loader.map_max_entries(name, rows);
        }
        loader.map_max_entries("tb_affinity", 1024).map_max_entries("tb_events", 1 << 16);
        let mut object = loader.load(OBJECT).map_err(|error| DatapathError::Load(Box::new(error)))?;
        let mut map = |name: &'static str| object.take_map(name).ok_or(DatapathError::Missing(name));
        let open = |name: &'static str| {
            move |error: aya::maps::MapError| DatapathError::Map {
                operation: "open".into(),
                map: name,
                source: std::io::Error::other(error),
            }
        };
        Ok(Replayer {
            config: Slots::new("tb_config", map("tb_config")?)?,
            flows: [Hash::new("tb_ct_half", map("tb_ct_half")?)?, Hash::new("tb_ct", map("tb_ct")?)?],
            nat: [Hash::new("tb_nat_half", map("tb_nat_half")?)?, Hash::new("tb_nat", map("tb_nat")?)?],
            affinity: Hash::new("tb_affinity", map("tb_affinity")?)?,
            fragments: MapData::from_pin(own.join("tb_frags"))
                .map_err(|error| DatapathError::Events(std::io::Error::other(error)))?,
            events: RingBuf::try_from(map("tb_events")?).map_err(open("tb_events"))?,
            loaded: BTreeSet::new(),
            object,
        })
    }

    /// Runs a captured packet through model and programs. Walks the tables of flows: call it from a blocking thread, in the
    /// node's network namespace.
    ///
    /// # Errors
    /// A map cannot be read, the kernel refuses the packet, or no program begins at the capture's point.
    pub fn explain(&self, replayer: &mut Replayer, capture: &Capture) -> Result<Explained, DatapathError> {
        let why =
            "give one of from-endpoint, to-endpoint, from-network, to-network, from-overlay, to-overlay";
        let what = format!("observation point {}", capture.point);
        let (program, hook) = hook_of(capture).ok_or(DatapathError::Invalid { what, why })?;
        let frame = Frame::read(&capture.frame, capture.segment);
        let tunnel = capture.tunnel.map(|(sender, _)| sender);
        let mut scene = self.scene(&frame, tunnel)?;
        let config = self.tables.config.get(0)?;
        let now = sys::monotonic_ns().saturating_add(config.clock_offset_ns);
        scene.model.listen();
        let model = scene.model.meet(now, &hook, &frame);
        let steps = scene.model.told().into_iter().map(|step| with_cookie(step, &scene)).collect();
        replayer.prepare(config, &scene)?;
        let (programs, after, event) = self.programs_say(replayer, program, capture)?;
        let mut notes = Vec::new();
        if scene.cut {
            notes.push("more flows of these addresses are known than are looked at: some were left out");
        }
        let mut difference = difference(&model, &programs, &after, &mut notes);
        // Only a policy of the node asks for it.
        let by_type = |ip: &model::Ip| matches!(ip.packet.payload, model::Payload::Other(1 | 58));
        if difference.is_some() && matches!(&frame, Frame::Ip(ip) if by_type(ip)) {
            notes.push("an ICMP message that is no echo is judged by its type, which the model does not know; the program's word counts");
            difference = None;
        }
        // The programs send such a pod's packets through the stack, so that they meet its queues.
        let queued = |ifindex| {
            Ok::<bool, DatapathError>(self.interfaces()?.iter().any(|(of, row)| *of == ifindex && row.queued))
        };
        if difference.is_some()
            && let Hook::FromEndpoint(ifindex) | Hook::ToEndpoint(ifindex) = hook
            && queued(ifindex)?
        {
            notes.push("the interface has queues of a chained plugin, which the model does not know; the program's word counts");
            difference = None;
        }
        Ok(Explained { program, frame, steps, model, programs, after, event, difference, notes })
    }

    fn programs_say(
        &self,
        replayer: &mut Replayer,
        name: &'static str,
        capture: &Capture,
    ) -> Result<Said, DatapathError> {
        let (action, after) = replayer.run(name, capture)?;
        let told = replayer.told();
        let drop = told.iter().find(|event| event.kind == EventKind::Drop);
        let last = told.iter().rev().find(|event| event.kind == EventKind::Trace);
        let point = last.map(|event| event.flow.trace_point);
        let programs = match (drop, action, point) {
            (Some(drop), ..) => Err((drop.flow.drop_reason, drop.flow.site)),
            (None, 2, _) => Err((0, 0)),
            (None, 7, Some(0)) => {
                let endpoint = last.map_or(0, |event| event.flow.destination.endpoint_id);
                let pods = self.interfaces()?;
                let pod = pods.iter().find(|(_, row)| row.endpoint_id == endpoint);
                Ok(To::Pod(pod.map_or(0, |(ifindex, _)| *ifindex)))
            }
            (None, 7, Some(4)) => Ok(To::Overlay),
            (None, 7, Some(13)) => Ok(To::WireGuard),
            (None, 7, _) => Ok(To::Network),
            _ => Ok(To::Kernel),
        };
        Ok((programs, after, drop.or(last).cloned()))
    }
}

fn with_cookie(step: Step, scene: &Scene) -> (Step, u32) {
    let cookie = match &step {
        Step::Policy { policy, question, rule: Some(rule), .. } => {
            scene.cookies.get(&(*policy, question.direction, *rule)).copied()
        }
        _ => None,
    };
    (step, cookie.unwrap_or_default())
}

impl Replayer {
    /// Fills the private maps for one packet.
    fn prepare(&self, config: abi::Config, scene: &Scene) -> Result<(), DatapathError> {
        let told = abi::CFG_VERDICTS | abi::CFG_CAPTURE | abi::CFG_CAPTURE_ALL;
        let config = abi::Config {
            flags: config.flags & !told,
            events_per_sec: 0,
            aggregation: abi::AGG_SENT,
            ..config
        };
        self.config.set(0, config)?;
        for (table, rows) in self.flows.iter().zip(&scene.flows) {
            fill(table, rows)?;
        }
        for (table, rows) in self.nat.iter().zip(&scene.nat) {
            fill(table, rows)?;
        }
        fill(&self.affinity, &scene.affinity)?;
        // Those of earlier packets stay: a datagram's first fragment is what it is.
        let written = scene
            .fragments
            .iter()
            .try_for_each(|(key, value)| sys::write_bytes(self.fragments.fd().as_fd(), (key, value), false));
        written.map_err(|source| DatapathError::Map { operation: "write".into(), map: "tb_frags", source })
    }

    fn run(&mut self, name: &'static str, capture: &Capture) -> Result<(u32, Vec<u8>), DatapathError> {
        let program = program(&mut self.object, name)?;
        if self.loaded.insert(name) {
            program
                .load()
                .map_err(|source| DatapathError::Program { program: name, source: Box::new(source) })?;
        }
        let mut context = [0_u8; 192];
        let mut set = |at: usize, value: u32| {
            if let Some(place) = context.get_mut(at..at + 4) {
                place.copy_from_slice(&value.to_ne_bytes());
            }
        };
        // Offsets of mark, ifindex, cb and gso_size in struct __sk_buff.
        set(8, capture.mark);
        set(40, capture.ifindex);
        set(176, capture.segment);
        if let Some((sender, key)) = capture.tunnel {
            set(48, key);
            for (n, word) in abi::Addr::from(sender).0.chunks_exact(4).enumerate() {
                let word = word.first_chunk().copied().unwrap_or_default();
                set(52 + 4 * n, u32::from_ne_bytes(word));
            }
        }
        // What was cut off is nothing that a program reads, but it must be there.
        let mut frame = capture.frame.clone();
        let whole = usize::try_from(capture.length).unwrap_or(usize::MAX).clamp(14, MOST_BYTES);
        frame.resize(whole.max(frame.len()), 0);
        let (action, after, _) = run(program, name, &frame, &context)?;
        Ok((action, after))
    }

    /// All that was told since.
    fn told(&mut self) -> Vec<DatapathEvent> {
        let mut told = Vec::new();
        while let Some(item) = self.events.next() {
            told.extend(events::decode(&item, 0));
        }
        told
    }
}

/// Makes a private map hold these rows and no others.
fn fill<K, V>(table: &Hash<K, V>, rows: &[(K, V)]) -> Result<(), DatapathError>
where
    K: aya::Pod + std::fmt::Debug + Default,
    V: aya::Pod + std::fmt::Debug + Default + PartialEq,
{
    for (key, _) in table.dump()? {
        table.delete(key)?;
    }
    rows.iter().try_for_each(|(key, value)| table.upsert(*key, *value))
}

/// What model and programs do not say alike. What a routing table says is left to it.
fn difference(
    model: &Result<(To, Option<Packet>), Reason>,
    programs: &Result<To, (u8, u16)>,
    after: &[u8],
    notes: &mut Vec<&'static str>,
) -> Option<String> {
    match (model, programs) {
        (Err(reason), Err((number, _))) if reason.number() == *number => None,
        (Ok((To::Network, _)), Ok(To::Kernel) | Err((169 | 136, _))) => {
            notes.push("where the routing table leads is not the model's affair; the program's word counts");
            None
        }
        (Ok((to, packet)), Ok(other)) if to == other => {
            let wanted = packet.as_ref()?;
            let Frame::Ip(seen) = Frame::read(after, 0) else {
                return Some("the packet behind the program is no IP".to_owned());
            };
            let same = (&seen.packet.source, &seen.packet.destination, &seen.packet.payload)
                == (&wanted.source, &wanted.destination, &wanted.payload);
            let unread = matches!(wanted.fragment, model::Fragment::Later(_))
                || matches!(wanted.payload, model::Payload::Broken { .. } | model::Payload::Error(_));
            (!same && !unread)
                .then(|| format!("the model makes it [{wanted}], the program [{}]", seen.packet))
        }
        (model, programs) => {
            let of_model = match model {
                Ok((to, _)) => format!("{to:?}"),
                Err(reason) => format!("drop {}", reason.number()),
            };
            let of_programs = match programs {
                Ok(to) => format!("{to:?}"),
                Err((number, _)) => format!("drop {number}"),
            };
            Some(format!("the model says {of_model}, the program says {of_programs}"))
        }
    }
}
