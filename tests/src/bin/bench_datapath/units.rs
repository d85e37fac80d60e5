//! The bench's own eBPF programs: single lookups to compare with, and the one that runs a program of the datapath many times.
//!
//! `repeat` of BPF_PROG_TEST_RUN gives the second run the packet as the first one left it. So the program that is timed puts the
//! packet back first and goes on in ours by a tail call; what that costs by itself is taken off. The least of many batches counts:
//! nothing makes a program faster than it is.

use std::path::Path;
use std::process::Command;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData, ProgramArray};
use aya::programs::{ProgramFd, SchedClassifier, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader, Pod};

use crate::Failure;

const SOURCE: &str = include_str!("units.bpf.c");
const HELPERS: &str = include_str!("../../../../ebpf/bpf/helpers.h");
const PROGRAMS: [&str; 8] =
    ["turn", "nothing", "idle", "lru_hit", "hash_three", "lpm_pair", "lpm_host", "hash_host"];
/// Runs in a batch; with clocks read twice a batch, that disturbs by less than a tenth of a nanosecond.
const BATCH: u32 = 2048;

/// Bytes of `struct turn`.
const TURN: usize = 5 * 4 + 76;

/// A packet, and which of its ports changes from run to run.
#[derive(Clone, Copy)]
pub(crate) struct Turn<'a> {
    pub(crate) packet: &'a [u8],
    /// The destination's port rather than the source's.
    pub(crate) destination: bool,
    /// The first port.
    pub(crate) first: u32,
    /// How many there are in turn; 1: always the same.
    pub(crate) flows: u32,
}

impl Turn<'_> {
    fn bytes(&self) -> [u8; TURN] {
        let v6 = self.packet.get(12) == Some(&0x86);
        let port_at = 14 + if v6 { 40 } else { 20 } + if self.destination { 2 } else { 0 };
        let numbers = [u32::from(v6), port_at, self.first, self.flows, 0];
        let mut bytes = [0; TURN];
        let parts = numbers.into_iter().flat_map(u32::to_ne_bytes);
        bytes.iter_mut().zip(parts.chain(self.packet.iter().copied())).for_each(|(to, from)| *to = from);
        bytes
    }
}

/// The least of many batches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Least(f64);

impl Default for Least {
    fn default() -> Self {
        Self(f64::INFINITY)
    }
}

impl Least {
    pub(crate) fn take(&mut self, ns: f64) {
        self.0 = self.0.min(ns);
    }

    /// Without what was measured of nothing.
    pub(crate) fn over(self, nothing: Self) -> f64 {
        self.0 - nothing.0
    }
}

/// What a run of a batch gave.
pub(crate) struct Batch {
    /// Nanoseconds of one run, on average.
    pub(crate) ns: f64,
    /// The last run's verdict.
    pub(crate) verdict: u32,
}

pub(crate) struct Units {
    object: Ebpf,
    jump: ProgramArray<MapData>,
    jump_xdp: ProgramArray<MapData>,
    turns: Array<MapData, [u8; TURN]>,
    batches: u32,
}

fn compile(folder: &Path) -> Result<(), Failure> {
    std::fs::write(folder.join("units.bpf.c"), SOURCE)?;
    std::fs::write(folder.join("helpers.h"), HELPERS)?;
    let chosen = std::env::var("BPF_CLANG").ok();
    let mut tried = Vec::new();
    for clang in chosen.as_deref().map_or(vec!["clang-19", "clang"], |path| vec![path]) {
        let done = Command::new(clang)
            .args(["-target", "bpf", "-mcpu=v3", "-O2", "-g", "-idirafter"])
            .arg(format!("/usr/include/{}-linux-gnu", std::env::consts::ARCH))
            .args(["-c", "units.bpf.c", "-o", "units.o"])
            .current_dir(folder)
            .output();
        match done {
            Ok(done) if done.status.success() => return Ok(()),
            Ok(done) => tried.push(format!("{clang}: {}", String::from_utf8_lossy(&done.stderr))),
            Err(error) => tried.push(format!("{clang}: {error}")),
        }
    }
    Err(format!(
        "units.bpf.c was not compiled: {}; apt-get install clang-19, or set BPF_CLANG",
        tried.join("; ")
    )
    .into())
}

fn program<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, Failure> {
    Ok(object.program_mut(name).ok_or_else(|| format!("units.bpf.c has no program {name}"))?.try_into()?)
}

fn turn_xdp(object: &mut Ebpf) -> Result<&mut Xdp, Failure> {
    Ok(object.program_mut("turn_xdp").ok_or("units.bpf.c has no program turn_xdp")?.try_into()?)
}

impl Units {
    /// Compiles and loads them; `pins` is the folder of the datapath's maps.
    pub(crate) fn load(pins: &Path, batches: u32) -> Result<Self, Failure> {
        let folder = tempfile::tempdir()?;
        compile(folder.path())?;
        let mut object =
            EbpfLoader::new().default_map_pin_directory(pins).load_file(folder.path().join("units.o"))?;
        for name in PROGRAMS {
            program(&mut object, name)?.load()?;
        }
        let jump = ProgramArray::try_from(object.take_map("jump").ok_or("map jump")?)?;
        turn_xdp(&mut object)?.load()?;
        let jump_xdp = ProgramArray::try_from(object.take_map("jump_xdp").ok_or("map jump_xdp")?)?;
        let turns = Array::try_from(object.take_map("turns").ok_or("map turns")?)?;
        Ok(Self { object, jump, jump_xdp, turns, batches })
    }

    fn run(&mut self, name: &str, packet: &[u8], context: &[u8], repeat: u32) -> Result<Batch, Failure> {
        let mut options = TestRunOptions::new();
        options.data_in = Some(packet);
        options.ctx_in = Some(context);
        options.repeat = repeat;
        let done = program(&mut self.object, name)?.test_run(options)?;
        let nanos = u32::try_from(done.duration.as_nanos())?;
        Ok(Batch { ns: f64::from(nanos), verdict: done.return_value })
    }

    /// What the next batches run: a program of the datapath, or nothing.
    pub(crate) fn aim(&mut self, target: Option<&ProgramFd>) -> Result<(), Failure> {
        match target {
            Some(target) => self.jump.set(0, target, 0)?,
            None => self.jump.set(0, program(&mut self.object, "nothing")?.fd()?, 0)?,
        }
        Ok(())
    }

    /// Which packet they are given, from the first port on.
    pub(crate) fn set(&mut self, turn: &Turn<'_>) -> Result<(), Failure> {
        Ok(self.turns.set(0, turn.bytes(), 0)?)
    }

    /// A batch of what was set, as if it had come in by `ifindex`; goes on with the port after the last one's.
    pub(crate) fn batch(&mut self, turn: &Turn<'_>, ifindex: u32, repeat: u32) -> Result<Batch, Failure> {
        let mut context = [0_u8; 192];
        context.iter_mut().skip(40).zip(ifindex.to_ne_bytes()).for_each(|(to, from)| *to = from);
        self.run("turn", turn.packet, &context, repeat)
    }

    /// Nanoseconds that `target` takes for a packet that it may have again and again, and ends with `verdict`.
    pub(crate) fn time(
        &mut self,
        target: &ProgramFd,
        ifindex: u32,
        turn: &Turn<'_>,
        verdict: u32,
    ) -> Result<f64, Failure> {
        let (mut with, mut without) = (Least::default(), Least::default());
        for _ in 0..self.batches {
            for (least, target, wanted) in [(&mut without, None, 0), (&mut with, Some(target), verdict)] {
                self.aim(target)?;
                self.set(turn)?;
                // The first runs find nothing warm.
                self.batch(turn, ifindex, turn.flows.clamp(64, BATCH))?;
                let batch = self.batch(turn, ifindex, BATCH.max(turn.flows))?;
                if batch.verdict != wanted {
                    return Err(format!("verdict {} rather than {wanted}", batch.verdict).into());
                }
                least.take(batch.ns);
            }
        }
        Ok(with.over(without))
    }

    /// The same of a program before socket buffers. `ifindex` has one natively. Without it the frame is passed (2).
    pub(crate) fn time_xdp(
        &mut self,
        target: &ProgramFd,
        ifindex: u32,
        turn: &Turn<'_>,
        verdict: u32,
    ) -> Result<f64, Failure> {
        let length = u32::try_from(turn.packet.len())?;
        let context: Vec<u8> = [0, length, 0, ifindex, 0, 0].into_iter().flat_map(u32::to_ne_bytes).collect();
        let (mut with, mut without) = (Least::default(), Least::default());
        for _ in 0..self.batches {
            for (least, target, wanted) in [(&mut without, None, 2), (&mut with, Some(target), verdict)] {
                match target {
                    Some(target) => self.jump_xdp.set(0, target, 0)?,
                    None => drop(self.jump_xdp.clear_index(&0)),
                }
                self.set(turn)?;
                for repeat in [turn.flows.clamp(64, BATCH), BATCH.max(turn.flows)] {
                    let mut options = TestRunOptions::new();
                    options.data_in = Some(turn.packet);
                    options.ctx_in = Some(&context);
                    options.repeat = repeat;
                    let done = turn_xdp(&mut self.object)?.test_run(options)?;
                    if done.return_value != wanted {
                        return Err(format!("verdict {} rather than {wanted}", done.return_value).into());
                    }
                    if repeat >= BATCH {
                        least.take(f64::from(u32::try_from(done.duration.as_nanos())?));
                    }
                }
            }
        }
        Ok(with.over(without))
    }

    /// What putting packets back costs by itself.
    pub(crate) fn nothing(&mut self, turn: &Turn<'_>, repeat: u32) -> Result<Least, Failure> {
        let mut least = Least::default();
        self.aim(None)?;
        self.set(turn)?;
        for _ in 0..self.batches {
            least.take(self.batch(turn, 0, repeat)?.ns);
        }
        Ok(least)
    }

    /// Nanoseconds of one of the lookups; of `keys` keys in turn.
    pub(crate) fn lookup(&mut self, name: &str, keys: u32) -> Result<f64, Failure> {
        let packet = [0_u8; 64];
        let turn = Turn { packet: &packet, destination: false, first: 0, flows: keys };
        let (mut with, mut without) = (Least::default(), Least::default());
        for _ in 0..self.batches {
            for (least, name) in [(&mut without, "idle"), (&mut with, name)] {
                self.set(&turn)?;
                self.run(name, &packet, &[0; 192], keys.clamp(64, BATCH))?;
                let batch = self.run(name, &packet, &[0; 192], BATCH.max(keys))?;
                if batch.verdict != 0 {
                    return Err(format!("{name} did not find its entry").into());
                }
                least.take(batch.ns);
            }
        }
        Ok(with.over(without))
    }

    fn hash<K: Pod, V: Pod>(&mut self, name: &str) -> Result<HashMap<&mut MapData, K, V>, Failure> {
        Ok(HashMap::try_from(self.object.map_mut(name).ok_or_else(|| format!("map {name}"))?)?)
    }

    fn trie<K: Pod, V: Pod>(&mut self, name: &str) -> Result<LpmTrie<&mut MapData, K, V>, Failure> {
        Ok(LpmTrie::try_from(self.object.map_mut(name).ok_or_else(|| format!("map {name}"))?)?)
    }

    /// Flows of the LRU hash.
    pub(crate) fn fill_lru(&mut self, count: u32) -> Result<(), Failure> {
        let mut map = self.hash::<[u32; 10], [u64; 14]>("lru")?;
        (0..count).try_for_each(|number| Ok(map.insert([number, 0, 0, 0, 0, 0, 0, 0, 0, 0], [1; 14], 0)?))
    }

    /// Services with a slot and a backend each.
    pub(crate) fn fill_services(&mut self, count: u32) -> Result<(), Failure> {
        let mut map = self.hash::<[u32; 3], [u32; 3]>("frontends")?;
        for number in 0..count {
            map.insert([number, 0, 0], [1, 1, 0], 0)?;
            map.insert([number, 1, 0], [number, 0, 0], 0)?;
        }
        let mut map = self.hash::<u32, u64>("ends")?;
        (0..count).try_for_each(|number| Ok(map.insert(number, 1, 0)?))
    }

    /// Policy entries in the form of a prefix trie: one of anybody, the others of an identity each.
    pub(crate) fn fill_policy(&mut self, from: u32, to: u32) -> Result<(), Failure> {
        let mut map = self.trie::<[u32; 2], u64>("policy")?;
        let tcp_8080 = u32::from_ne_bytes([0, 6, 0x1f, 0x90]);
        for number in from..to {
            let identity = if number == 0 { 0 } else { 65_535 + number };
            map.insert(&Key::new(64, [identity, tcp_8080]), 1, 0)?;
        }
        Ok(())
    }

    /// Addresses in a prefix trie, in the shape of an ipcache.
    pub(crate) fn fill_cache(&mut self, count: u32) -> Result<(), Failure> {
        let mut map = self.trie::<[u32; 5], [u32; 3]>("cache")?;
        let family = u32::from_ne_bytes([0, 0, 0, 1]);
        for number in 0..count {
            let address = (0x0a08_0000 + number).to_be();
            map.insert(&Key::new(64, [family, address, 0, 0, 0]), [1, 1, 0], 0)?;
        }
        Ok(())
    }
}
