//! The schedule on a clock of its own.

use super::*;
use crate::plan::tests::service;
use crate::spread::Spread;
use std::net::IpAddr;

fn backends(count: u32) -> BTreeSet<BackendKey> {
    (0..count).map(|n| (IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + n)), 80, Protocol::Tcp)).collect()
}

fn name() -> ServiceName {
    ServiceName { namespace: "shop".into(), name: "web".into() }
}

fn tcp() -> Probe {
    Spread::parse_probe("tcp").unwrap()
}

fn at(millis: u64) -> Moment {
    Moment::from_origin(Duration::from_millis(millis))
}

/// When each target was probed.
type Asked = BTreeMap<Target, Vec<u64>>;

/// Runs for a time; answers each probe at once. Probes by target, and verdicts with their time.
fn run(
    prober: &mut Prober,
    from: u64,
    to: u64,
    mut answer: impl FnMut(&Target, u64) -> Result<(), String>,
) -> (Asked, Vec<(u64, Verdict)>) {
    let (mut asked, mut verdicts): (Asked, _) = (BTreeMap::new(), Vec::new());
    let mut now = from;
    while now < to {
        while let Some(ask) = prober.next(at(now)) {
            asked.entry(ask.target.clone()).or_default().push(now);
            let verdict = prober.finish(&ask.target, answer(&ask.target, now), at(now));
            verdicts.extend(verdict.map(|verdict| (now, verdict)));
        }
        let next =
            prober.next_deadline().map_or(to, |next| u64::try_from(next.since_origin().as_millis()).unwrap());
        now = next.max(now + 1);
    }
    (asked, verdicts)
}

#[test]
fn three_failures_take_out_and_two_answers_bring_back() {
    let mut prober = Prober::new(1);
    prober.set_service(&name(), Some((tcp(), backends(2))), at(0));
    let bad = *backends(2).first().unwrap();
    // It fails from 60 to 120 s, the other one never.
    let (asked, verdicts) = run(&mut prober, 0, 200_000, |(_, backend), now| {
        if *backend == bad && (60_000..120_000).contains(&now) { Err("refused".to_owned()) } else { Ok(()) }
    });
    assert_eq!(verdicts.len(), 2, "{verdicts:?}");
    assert_eq!(verdicts[0].1, Verdict::Out((name(), bad), "refused".into()));
    assert!((60_000..75_000).contains(&verdicts[0].0), "a period and two retries: {verdicts:?}");
    assert_eq!(verdicts[1].1, Verdict::In((name(), bad)));
    assert!((120_000..133_000).contains(&verdicts[1].0), "{verdicts:?}");
    for (target, times) in &asked {
        let gaps: Vec<u64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.iter().all(|gap| (1_000..=11_000).contains(gap)), "{target:?}: {gaps:?}");
        assert!(gaps.iter().any(|gap| gap % 1000 != 0), "jitter: {gaps:?}");
    }
    // A single failure changes nothing.
    let mut once = true;
    let (_, verdicts) = run(&mut prober, 200_000, 260_000, |_, _| {
        if std::mem::take(&mut once) { Err("late".to_owned()) } else { Ok(()) }
    });
    assert!(verdicts.is_empty(), "{verdicts:?}");
}

#[test]
fn many_backends_or_nodes_are_probed_more_rarely() {
    let mut prober = Prober::new(7);
    prober.set_service(&name(), Some((tcp(), backends(5000))), at(0));
    let (asked, _) = run(&mut prober, 0, 300_000, |_, _| Ok(()));
    let all: Vec<u64> = asked.values().flatten().copied().collect();
    let rate = all.len() / 300;
    assert!((45..=55).contains(&rate), "{rate} probes a second for 5000 backends");
    assert_eq!(asked.len(), 5000, "each one has its turn");
    let mut seconds = BTreeMap::new();
    all.iter().for_each(|time| *seconds.entry(time / 1000).or_insert(0_usize) += 1);
    assert!(*seconds.values().max().unwrap() <= 51, "{:?}", seconds.values().max());
    let mut prober = Prober::new(7);
    prober.set_nodes(1000);
    prober.set_service(&name(), Some((tcp(), backends(1))), at(0));
    let (asked, _) = run(&mut prober, 0, 1_000_000, |_, _| Ok(()));
    let count = asked.values().next().unwrap().len();
    assert!(
        (8..=12).contains(&count),
        "a backend gets ten a second of a thousand nodes: {count} in 1000 s of this one"
    );
}

#[test]
fn what_is_under_way_is_bounded_and_what_is_not_wanted_is_forgotten() {
    let mut prober = Prober::new(3);
    prober.set_service(&name(), Some((tcp(), backends(500))), at(0));
    let late = |n: u64| at(60_000 + 20 * n);
    let asked: Vec<Ask> = (0..100).filter_map(|n| prober.next(late(n))).collect();
    assert_eq!((asked.len(), prober.next_deadline()), (IN_FLIGHT_MAX, None));
    prober.finish(&asked[0].target, Ok(()), late(100));
    assert!(prober.next(late(101)).is_some() && prober.next(late(102)).is_none());
    // One fails, then the service stops asking: it comes back, and a late answer changes nothing.
    let mut prober = Prober::new(3);
    prober.set_service(&name(), Some((tcp(), backends(1))), at(0));
    run(&mut prober, 0, 60_000, |_, _| Err("x".to_owned()));
    assert_eq!(prober.counts(), (1, 1));
    let target = (name(), *backends(1).first().unwrap());
    assert_eq!(prober.set_service(&name(), None, at(60_000)), [Verdict::In(target.clone())]);
    assert_eq!((prober.counts(), prober.next(at(900_000))), ((0, 0), None));
    assert_eq!(prober.finish(&target, Err("late".to_owned()), at(900_000)), None);
}

/// Repeated probes of backends that fail come out of the same rates.
#[test]
fn failing_backends_are_not_asked_more_often_than_the_rates_say() {
    let mut prober = Prober::new(5);
    prober.set_service(&name(), Some((tcp(), backends(1000))), at(0));
    let (asked, verdicts) = run(&mut prober, 0, 100_000, |_, _| Err("refused".to_owned()));
    assert_eq!(verdicts.len(), 1000, "all are out");
    let mut seconds = BTreeMap::new();
    asked.values().flatten().for_each(|time| *seconds.entry(time / 1000).or_insert(0_usize) += 1);
    assert!(*seconds.values().max().unwrap() <= 51, "{seconds:?}");
    let mut prober = Prober::new(5);
    prober.set_nodes(300);
    prober.set_service(&name(), Some((tcp(), backends(1))), at(0));
    let (asked, verdicts) = run(&mut prober, 0, 300_000, |_, _| Err("refused".to_owned()));
    let times = asked.values().next().unwrap();
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] >= 27_000), "ten a second of 300 nodes: {times:?}");
    assert_eq!(verdicts.len(), 1);
}

/// What an earlier life found out is found out again before a period has passed.
#[test]
fn what_is_new_is_probed_at_once() {
    let mut prober = Prober::new(9);
    prober.set_service(&name(), Some((tcp(), backends(50))), at(0));
    let (asked, verdicts) = run(&mut prober, 0, 5_000, |_, _| Err("refused".to_owned()));
    assert!(asked.len() == 50 && asked.values().all(|times| times[0] <= 1_100), "{asked:?}");
    assert_eq!(verdicts.len(), 50, "a period is ten seconds");
}

#[test]
fn who_found_no_room_is_probed_when_there_is_some() {
    let mut prober = Prober::new(11);
    let (first, second) = (name(), ServiceName { name: "zz".into(), ..name() });
    prober.set_service(&first, Some((tcp(), backends(65_535))), at(0));
    prober.set_service(&second, Some((tcp(), backends(3))), at(0));
    assert_eq!((prober.counts(), prober.waiting.len()), ((TARGETS_MAX, 0), 2));
    prober.set_service(&first, Some((tcp(), backends(65_534))), at(1));
    assert_eq!((prober.counts(), prober.waiting.len()), ((TARGETS_MAX, 0), 1));
    // One that is not wanted any more does not wait either.
    prober.set_service(&second, Some((tcp(), backends(1))), at(2));
    prober.set_service(&first, None, at(3));
    assert_eq!((prober.counts(), prober.waiting.len()), ((1, 0), 0));
    // Its first turn is where it was put among so many.
    let (asked, _) = run(&mut prober, 3, 65_538 * 20, |_, _| Ok(()));
    assert!(asked.keys().all(|(name, _)| *name == second) && asked.len() == 1);
}

#[test]
fn only_ready_tcp_backends_of_services_that_ask_are_probed() {
    use crate::rows::{RemoteBackend, RemotePort};
    let port = |name: &str, protocol, port| RemotePort { name: name.into(), protocol, port };
    let ports = [
        port("http", Protocol::Tcp, 8080),
        port("http", Protocol::Udp, 8080),
        port("other", Protocol::Tcp, 9),
    ];
    let backend =
        |state| RemoteBackend { ports: Arc::new(ports.clone().into()), state, ..RemoteBackend::default() };
    let states = [BackendState::Ready, BackendState::Serving, BackendState::NotReady];
    let ip = |n: u8| IpAddr::from([10, 2, 0, n]);
    let backends = (0..3).zip(states).map(|(n, state)| (ip(n), backend(state))).collect();
    let source = Source::Cluster(tombolo_base::ids::ClusterName::new("west").unwrap());
    let remote = RemoteService { source, name: name(), backends };
    let asking = ServiceRow { spread: Spread { probe: Some(tcp()), ..Spread::default() }, ..service() };
    let found: Vec<_> = targets(&asking, [&remote]).into_iter().map(|(ip, port, _)| (ip, port)).collect();
    assert_eq!(found, [(ip(0), 8080), (ip(1), 8080)]);
    assert!(
        targets(&service(), [&remote]).is_empty()
            && targets(&ServiceRow { global: false, ..asking }, [&remote]).is_empty()
    );
}
