//! C5 to C7: an agent that starts anew under load, a flow table that is full, and memory.

use std::time::{Duration, Instant};

use tombolo_ebpf::{Datapath, DatapathConfig, MapSizes, PrefixEntry};
use tombolo_tests::load::{self, Kind, Load};
use tombolo_tests::netns::Namespace;
use tombolo_tests::report::{Figure, Goal, Report};
use tombolo_tests::usage::map_bytes;

use crate::Failure;
use crate::abba::carry_out;
use crate::node::{Node, POD_A, POD_B, PORT, ip, tcp};
use crate::spaces::{Bpffs, Host, Joined, Ours, inside};
use crate::units::{Turn, Units};
use crate::ways::{serving, side};

/// Datagrams per second.
const RATE: u32 = 10_000;

fn float(count: u64) -> f64 {
    u32::try_from(count).map_or(f64::MAX, f64::from)
}

/// C5: the programs are loaded and hooked again, and maps made anew, while datagrams and idle connections are there.
pub(crate) fn restarts(report: &mut Report, short: bool) -> Result<(), Failure> {
    let (seconds, idle) = if short { (2, 50) } else { (20, 1_000) };
    let small = MapSizes { conntrack: 16_384, conntrack_half: 8_192, ..MapSizes::default() };
    let large = MapSizes { conntrack: 32_768, rules: 32_768, ..small.clone() };
    let ours = Ours::new(serving(Host::new(1, 2, Joined::Routed))?, small.clone())?;
    let way = side(&ours.host, &ours.host)?;
    let target = way.target;
    let mut open = inside(way.client, || {
        (0..idle).map(|_| Ok(load::converse(target)?)).collect::<Result<Vec<_>, Failure>>()
    })?;
    let dropped = |datapath: &Datapath| -> Result<u64, Failure> {
        // Not what every interface that comes up sends: listener reports and other multicast.
        let counted = |reason: u8| !matches!(reason, 0 | 150 | 176);
        let metrics = datapath.metrics()?;
        Ok(metrics.iter().filter(|metric| counted(metric.reason)).map(|metric| metric.packets).sum())
    };
    let before = dropped(&ours.datapath)?;
    let (mut restarts, mut swaps) = (0_u32, 0_u32);
    let load = Load { kind: Kind::Udp, target, duration: Duration::from_secs(seconds), rate: Some(RATE) };
    let (done, last) = std::thread::scope(|scope| -> Result<_, Failure> {
        let running = scope.spawn(|| carry_out(way.client, load));
        let mut last = None;
        let mut sizes = [&large, &small].into_iter().cycle();
        while !running.is_finished() {
            // The same maps, twice; then others.
            let sizes = if (restarts + swaps) % 3 == 2 {
                swaps += 1;
                sizes.next().unwrap_or(&large).clone()
            } else {
                restarts += 1;
                last.as_ref().map_or(&small, |(sizes, _)| sizes).clone()
            };
            let config = DatapathConfig { sizes: sizes.clone(), ..ours.config.clone() };
            let datapath = inside(&ours.host.space, || Ok(Datapath::open(&config)?))?;
            ours.attach_again(&datapath)?;
            last = Some((sizes, datapath));
        }
        Ok((running.join().map_err(|_| "the load's thread panicked")??, last))
    })?;
    let resets = open.iter_mut().map(load::ask_again).filter(Result::is_err).count();
    let after = match &last {
        Some((_, datapath)) => dropped(datapath)?,
        None => before,
    };
    let note = format!(
        "{restarts} restarts and {swaps} swaps of maps in {seconds} s under {RATE} datagrams a second, both ways: {} answered, \
         slowest {} us; {} drops counted by the programs",
        done.answered,
        done.max_us,
        after.saturating_sub(before)
    );
    let (what, goal) = ("datagrams lost in restarts and swaps", Goal::Most(0.0));
    let ours = Some(float(done.failed));
    report.add_noted(&Figure { id: "C5", what, unit: "", ours, peer: None, goal }, &note);
    let what = format!("of {idle} idle connections broken");
    let ours = Some(f64::from(u32::try_from(resets)?));
    report.add(&Figure { id: "C5-idle", what: &what, unit: "", ours, peer: None, goal });
    Ok(())
}

/// C6: the table of established flows is full, and twice as many new ones come.
pub(crate) fn full_table(report: &mut Report, short: bool) -> Result<(), Failure> {
    let space = Namespace::new("full");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    inside(&space, || {
        let bpffs = Bpffs::new()?;
        let table = if short { 1_024 } else { 8_192 };
        let sizes = MapSizes { conntrack: table, conntrack_half: table, ..MapSizes::default() };
        let config = DatapathConfig { bpffs: bpffs.path().to_owned(), sizes, ..DatapathConfig::default() };
        let mut node = Node::new(&config, &runtime)?;
        // An answer that belongs to no flow is dropped.
        node.strict()?;
        let mut units = Units::load(&node.pins, 1)?;
        fill(report, &mut node, &mut units, table)
    })
}

fn fill(report: &mut Report, node: &mut Node, units: &mut Units, table: u32) -> Result<(), Failure> {
    let (client, server) = ((ip(POD_A[0])?, 1024), (ip(POD_B[0])?, PORT));
    let (syn, answer, ack) =
        (tcp(client, server, "S")?, tcp(server, client, "SA")?, tcp(client, server, "A")?);
    let spoken = tcp(server, client, "A")?;
    let target = node.datapath.program_handle("from_endpoint")?;
    let (a, b) = (node.a, node.b);
    units.aim(Some(&target))?;
    let mut send = |node: &mut Node, packet: &[u8], first: u32, flows: u32| -> Result<u64, Failure> {
        let destination = packet.get(34..36) == Some(&PORT.to_be_bytes());
        let turn = Turn { packet, destination, first, flows };
        let before = node.drops()?;
        units.set(&turn)?;
        units.batch(&turn, if destination { b } else { a }, flows)?;
        node.drain();
        Ok(node.drops()? - before)
    };
    // Two entries a flow: one for each pod.
    let (held, first, few) = (table / 2, 1024, 128);
    let mut open = |node: &mut Node, from: u32, count: u32| -> Result<u64, Failure> {
        let mut refused = 0;
        for start in (from..from + count).step_by(few) {
            for packet in [&syn, &answer, &ack, &spoken] {
                refused += send(node, packet, start, u32::try_from(few)?)?;
            }
        }
        Ok(refused)
    };
    let refused = open(node, first, held)?;
    let full = node.datapath.conntrack()?.iter().filter(|flow| flow.established).count();
    if refused > 0 || full < usize::try_from(table)? * 99 / 100 {
        return Err(format!("{refused} refused while filling, {full} of {table} entries").into());
    }
    let churn = table * 2;
    let refused = open(node, first + held, churn)?;
    // The answering side speaks on each of the first flows.
    let lost = send(node, &spoken, first, held)?;
    // So that this shows something: the same of a flow that was never opened is dropped.
    let strangers = 16;
    if send(node, &spoken, first + held + churn, strangers)? != u64::from(strangers) {
        return Err("an answer to no flow was passed on".into());
    }
    let part = |lost: u64, of: u32| Some(100.0 * (1.0 - float(lost) / f64::from(of)));
    let note = format!("{held} flows fill {table} entries; {churn} others open and are answered meanwhile");
    let what = "established flows that live on, table full, twice as many new";
    let (ours, goal) = (part(lost, held), Goal::Least(99.9));
    report.add_noted(&Figure { id: "C6", what, unit: "%", ours, peer: None, goal }, &note);
    let what = "packets of the new flows that pass";
    let (ours, goal) = (part(refused, churn * 4), Goal::Least(100.0));
    report.add(&Figure { id: "C6-new", what, unit: "%", ours, peer: None, goal });
    Ok(())
}

/// Kernel memory of a datapath of these sizes.
fn bytes_of(sizes: MapSizes) -> Result<u64, Failure> {
    let bpffs = Bpffs::new()?;
    let before = map_bytes()?;
    let config = DatapathConfig { bpffs: bpffs.path().to_owned(), sizes, ..DatapathConfig::default() };
    let datapath = Datapath::open(&config)?;
    let bytes = map_bytes()?.saturating_sub(before);
    drop(datapath);
    Ok(bytes)
}

/// C7: what a pod, a remote pod and a policy entry take.
pub(crate) fn memory(report: &mut Report, short: bool) -> Result<(), Failure> {
    let pods = if short { 1_000 } else { 50_000 };
    let plain = MapSizes { hosts: pods + 1024, ..MapSizes::default() };
    let base = bytes_of(plain.clone())?;
    let mut add = |id: &str, what: &str, bytes: f64, goal: Goal| {
        report.add(&Figure { id, what, unit: "B", ours: Some(bytes), peer: None, goal });
    };
    let more = bytes_of(MapSizes { endpoints: plain.endpoints * 2, ..plain.clone() })?;
    let each = float(more.saturating_sub(base)) / f64::from(plain.endpoints);
    add("C7-pod", "kernel memory for a pod of the node", each, Goal::Most(2048.0));
    let more = bytes_of(MapSizes { rules: plain.rules * 2, ..plain.clone() })?;
    let each = float(more.saturating_sub(base)) / f64::from(plain.rules);
    add("C7-rule", "kernel memory for a policy entry", each, Goal::None);
    let bpffs = Bpffs::new()?;
    let config = DatapathConfig { bpffs: bpffs.path().to_owned(), sizes: plain, ..DatapathConfig::default() };
    let datapath = Datapath::open(&config)?;
    let (before, begun) = (map_bytes()?, Instant::now());
    for number in 0..pods {
        let address = std::net::Ipv4Addr::from(0x0a08_0000 + number);
        let row = PrefixEntry { identity: 70_000, node: 1, ..PrefixEntry::default() };
        datapath.upsert_prefix(std::net::IpAddr::from(address).into(), &row)?;
    }
    let took = begun.elapsed().as_secs_f64() * 1e6 / f64::from(pods);
    let each = float(map_bytes()?.saturating_sub(before)) / f64::from(pods);
    let what = format!("kernel memory for a remote pod, {pods} of them");
    let note = format!("{took:.1} us to write each; what the agent takes in user space for them: bench_mesh");
    let figure =
        Figure { id: "C7", what: &what, unit: "B", ours: Some(each), peer: None, goal: Goal::Most(2048.0) };
    report.add_noted(&figure, &note);
    Ok(())
}

/// What has no row yet.
pub(crate) fn absent(report: &mut Report) {
    for (id, what, unit, goal, why) in [
        (
            "C2",
            "250 rules on 100 endpoints, event to enforced, p99",
            "ms",
            Goal::Most(200.0),
            "the policy compiler is being changed",
        ),
        (
            "C7-rss",
            "agent with 50,000 remote pods",
            "MiB",
            Goal::Most(150.0),
            "make bench-mesh measures the tables: sync-rss",
        ),
    ] {
        let figure = Figure { id, what, unit, ours: None, peer: None, goal };
        report.add_noted(&figure, &format!("not measured: {why}"));
    }
}
