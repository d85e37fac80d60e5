//! One run: a daemon between injectors and receivers, each side in a namespace of its own.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use tombolo_tests::netns::{Daemon, Namespace};
use tombolo_tests::usage::{Usage, settled};

use crate::Failure;
use crate::daemon::{Kind, Neighbor, start};
use crate::peer::{Peer, Place};
use crate::table::{Source, Table, internet, runs, single};

/// A run that takes longer is cut.
const PATIENCE: Duration = Duration::from_secs(300);
/// Two addresses of the daemon: one towards the injectors, one towards the receivers.
const OWN: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 99, 0, 1), Ipv4Addr::new(10, 98, 0, 1)];
/// The first prefix of a table: 1.0.0.0.
const FIRST: u32 = 0x0100_0000;
/// The prefix that flaps: of no table.
const FLAPPING: (u32, u8) = (0xdfff_ff00, 24);

/// What is sent and to whom.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// One injector, one receiver; prefixes and how many of them an UPDATE holds.
    Runs { count: usize, per: usize },
    /// One injector with a table of the internet's shape, one receiver.
    Internet { count: usize },
    /// Peers that all send the same prefixes, then all but the least preferred withdraw.
    Same { peers: u8, count: usize },
    /// Peers that each send prefixes of their own.
    Distinct { peers: u8, count: usize },
    /// One injector, many receivers.
    FanOut { receivers: u8, count: usize },
    /// One injector, no receiver; what is learned goes into the kernel.
    Kernel { count: usize },
    /// A table is there, and one prefix more comes and goes again and again.
    Flap { count: usize, flaps: usize },
}

/// What a run showed. The second part of a run, if it has one, is another of these.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measure {
    pub(crate) cpu_secs: f64,
    /// From the first byte sent to the last route received.
    pub(crate) wall_secs: f64,
    pub(crate) rss_per_prefix: f64,
    /// UPDATEs that all receivers got.
    pub(crate) updates: f64,
    /// Microseconds from UPDATE in to UPDATE out, sorted.
    pub(crate) latencies: Vec<f64>,
}

pub(crate) fn float(number: usize) -> f64 {
    u32::try_from(number).map_or(f64::MAX, f64::from)
}

/// The daemon and its peers.
struct Rig {
    daemon: Daemon,
    injectors: Vec<(Peer, Source)>,
    receivers: Vec<Peer>,
    base: Usage,
    // Last, so that it goes last.
    _namespaces: [Namespace; 3],
    _directory: tempfile::TempDir,
}

impl Rig {
    fn new(kind: Kind, injectors: u8, receivers: u8) -> Result<Self, Failure> {
        Self::with(kind, injectors, receivers, false)
    }

    fn with(kind: Kind, injectors: u8, receivers: u8, kernel: bool) -> Result<Self, Failure> {
        let [dut, inj, rcv] = ["dut", "inj", "rcv"].map(|role| Namespace::new(&format!("bgp{role}")));
        let address = |side: usize, number: u8| Ipv4Addr::new(10, if side == 0 { 99 } else { 98 }, 1, number);
        let mut neighbors = Vec::new();
        for (side, (other, count)) in [(&inj, injectors), (&rcv, receivers)].into_iter().enumerate() {
            let name = format!("eth{}", side + 1);
            dut.ip(&["link", "add", &name, "type", "veth", "peer", "name", "eth1", "netns", other.name()]);
            let own = OWN.get(side).copied().ok_or("two sides")?;
            dut.ip(&["addr", "add", &format!("{own}/16"), "dev", &name]);
            dut.ip(&["link", "set", &name, "up"]);
            for number in 1..=count {
                let address = address(side, number);
                other.ip(&["addr", "add", &format!("{address}/16"), "dev", "eth1"]);
                let asn = if side == 0 { 65_100 } else { 65_300 } + u32::from(number);
                neighbors.push(Neighbor { address, asn, own, injects: side == 0 });
            }
            other.ip(&["link", "set", "eth1", "up"]);
        }
        let directory = tempfile::Builder::new().prefix("tbt-bench-bgp-").tempdir()?;
        let daemon = start(kind, &dut, directory.path(), &neighbors, kernel)?;
        let establish = |neighbor: &Neighbor| {
            let namespace = if neighbor.injects { inj.name() } else { rcv.name() };
            let Neighbor { address: local, asn, own: remote, .. } = *neighbor;
            Peer::establish(&Place { namespace: namespace.to_owned(), local, remote, asn })
        };
        let (mut injectors, mut receivers) = (Vec::new(), Vec::new());
        for neighbor in &neighbors {
            let peer = establish(neighbor)?;
            if neighbor.injects {
                let source = Source { asn: neighbor.asn, next_hop: neighbor.address, farther: false };
                injectors.push((peer, source));
            } else {
                receivers.push(peer);
            }
        }
        let base = settled(daemon.id());
        Ok(Self { daemon, injectors, receivers, base, _namespaces: [dut, inj, rcv], _directory: directory })
    }

    /// Every injector sends its bytes, all at once; measured until the receivers have `expected` prefixes and the daemon rests.
    fn measure(&mut self, streams: &[Vec<u8>], expected: usize, prefixes: usize) -> Result<Measure, Failure> {
        let before: usize = self.receivers.iter().map(|peer| peer.with(|heard| heard.updates)).sum();
        let cpu_before = Usage::of(self.daemon.id()).cpu;
        let started = Instant::now();
        std::thread::scope(|scope| -> Result<(), Failure> {
            let senders: Vec<_> = self
                .injectors
                .iter()
                .zip(streams)
                .map(|((peer, _), stream)| scope.spawn(move || peer.send(stream)))
                .collect();
            for sender in senders {
                sender.join().map_err(|_| "a sender panicked")??;
            }
            Ok(())
        })?;
        for peer in &self.receivers {
            let what = format!("table of {expected} prefixes");
            peer.wait(&what, PATIENCE, |heard| (heard.present == expected).then_some(()))?;
        }
        let after = settled(self.daemon.id());
        let last = self.receivers.iter().filter_map(|peer| peer.with(|heard| heard.last)).max();
        let updates: usize = self.receivers.iter().map(|peer| peer.with(|heard| heard.updates)).sum();
        for peer in &self.receivers {
            peer.wait("table that stays", PATIENCE, |heard| (heard.present == expected).then_some(()))?;
        }
        let grown = u32::try_from(after.rss.saturating_sub(self.base.rss) / 1024).unwrap_or(u32::MAX);
        Ok(Measure {
            cpu_secs: (after.cpu - cpu_before).as_secs_f64(),
            wall_secs: last.map_or(0.0, |last| last.duration_since(started).as_secs_f64()),
            rss_per_prefix: f64::from(grown) * 1024.0 / float(prefixes),
            updates: float(updates - before),
            latencies: Vec::new(),
        })
    }

    fn source(&self, at: usize) -> Result<Source, Failure> {
        Ok(self.injectors.get(at).ok_or("no such injector")?.1)
    }
}

/// Runs a daemon once. Some work has two parts.
pub(crate) fn once(kind: Kind, work: Work) -> Result<Vec<Measure>, Failure> {
    match work {
        Work::Runs { count, per } => plain(kind, 1, |source| runs(source, FIRST, count, per)),
        Work::Internet { count } => plain(kind, 1, |source| internet(source, count)),
        Work::FanOut { receivers, count } => plain(kind, receivers, |source| runs(source, FIRST, count, 10)),
        Work::Same { peers, count } => same(kind, peers, count),
        Work::Distinct { peers, count } => distinct(kind, peers, count),
        Work::Kernel { count } => kernel(kind, count),
        Work::Flap { count, flaps } => flap(kind, count, flaps),
    }
}

fn plain(kind: Kind, receivers: u8, table: impl FnOnce(Source) -> Table) -> Result<Vec<Measure>, Failure> {
    let mut rig = Rig::new(kind, 1, receivers)?;
    let table = table(rig.source(0)?);
    let count = table.prefixes.len();
    Ok(vec![rig.measure(&[table.stream], count, count)?])
}

fn same(kind: Kind, peers: u8, count: usize) -> Result<Vec<Measure>, Failure> {
    let mut rig = Rig::new(kind, peers, 1)?;
    if let Some((_, last)) = rig.injectors.last_mut() {
        last.farther = true;
    }
    let tables: Vec<Table> =
        rig.injectors.iter().map(|(_, source)| runs(*source, FIRST, count, 10)).collect();
    let mut withdrawals: Vec<Vec<u8>> = tables.iter().map(Table::withdrawal).collect();
    withdrawals.pop();
    let streams: Vec<Vec<u8>> = tables.into_iter().map(|table| table.stream).collect();
    let together = rig.measure(&streams, count, count)?;
    let withdrawn = rig.measure(&withdrawals, count, count)?;
    Ok(vec![together, withdrawn])
}

fn distinct(kind: Kind, peers: u8, count: usize) -> Result<Vec<Measure>, Failure> {
    let mut rig = Rig::new(kind, peers, 1)?;
    let mut streams = Vec::new();
    for (number, (_, source)) in (0u32..).zip(&rig.injectors) {
        let first = FIRST + number * (u32::try_from(count)? << 8);
        streams.push(runs(*source, first, count, 10).stream);
    }
    let all = count * usize::from(peers);
    Ok(vec![rig.measure(&streams, all, all)?])
}

fn kernel(kind: Kind, count: usize) -> Result<Vec<Measure>, Failure> {
    let rig = Rig::with(kind, 1, 0, true)?;
    let (pid, table) = (rig.daemon.id(), runs(rig.source(0)?, FIRST, count, 10));
    let ((injector, _), there) = (rig.injectors.first().ok_or("an injector")?, kernel_prefixes(pid)?);
    let (cpu_before, started) = (Usage::of(pid).cpu, Instant::now());
    injector.send(&table.stream)?;
    while kernel_prefixes(pid)? < there + count {
        if started.elapsed() > PATIENCE {
            return Err(format!("{} of {count} routes in the kernel", kernel_prefixes(pid)? - there).into());
        }
        // The kernel counts by walking its table: not too often.
        std::thread::sleep(Duration::from_millis(20));
    }
    let wall_secs = started.elapsed().as_secs_f64();
    let after = settled(pid);
    let grown = u32::try_from(after.rss.saturating_sub(rig.base.rss) / 1024).unwrap_or(u32::MAX);
    Ok(vec![Measure {
        cpu_secs: (after.cpu - cpu_before).as_secs_f64(),
        wall_secs,
        rss_per_prefix: f64::from(grown) * 1024.0 / float(count),
        ..Measure::default()
    }])
}

/// Routes in the IPv4 tables of a process's namespace.
fn kernel_prefixes(pid: u32) -> Result<usize, Failure> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/fib_triestat"))?;
    let counts = text.lines().filter_map(|line| line.trim().strip_prefix("Prefixes:"));
    Ok(counts.filter_map(|count| count.trim().parse::<usize>().ok()).sum())
}

fn flap(kind: Kind, count: usize, flaps: usize) -> Result<Vec<Measure>, Failure> {
    let mut rig = Rig::new(kind, 1, 1)?;
    let source = rig.source(0)?;
    let mut measure = rig.measure(&[runs(source, FIRST, count, 10).stream], count, count)?;
    let ((injector, _), receiver) = rig.injectors.first().zip(rig.receivers.first()).ok_or("two peers")?;
    receiver.with(|heard| heard.watched = Some(FLAPPING));
    for (number, flap) in (0u32..).zip(0..flaps) {
        let update = single(source, number, FLAPPING);
        let sent = Instant::now();
        injector.send(&update)?;
        let noted = receiver.wait("flapping prefix", PATIENCE, |heard| heard.noted.get(flap).copied())?;
        measure.latencies.push(noted.duration_since(sent).as_secs_f64() * 1e6);
    }
    measure.latencies.sort_by(f64::total_cmp);
    Ok(vec![measure])
}
