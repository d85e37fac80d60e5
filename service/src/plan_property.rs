//! Whatever comes in whatever order: the rows are those of a plan from scratch.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Service(u8, u8),
    DropService(u8),
    Slice(u8, u8),
    DropSlice(u8),
    Remote(u8, u8, u8),
    DropRemote(u8, u8),
    Address(u8, bool),
    Probe(u8, u8, u8),
    Zone(u8),
    Initialize(u8),
    Wait(u64),
    Look,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0u8..3, any::<u8>()).prop_map(|(n, bits)| Step::Service(n, bits)),
        1 => (0u8..3).prop_map(Step::DropService),
        3 => (0u8..3, any::<u8>()).prop_map(|(n, bits)| Step::Slice(n, bits)),
        1 => (0u8..3).prop_map(Step::DropSlice),
        3 => (0u8..2, 0u8..3, any::<u8>()).prop_map(|(c, n, bits)| Step::Remote(c, n, bits)),
        1 => (0u8..2, 0u8..3).prop_map(|(c, n)| Step::DropRemote(c, n)),
        1 => (0u8..3, any::<bool>()).prop_map(|(n, on)| Step::Address(n, on)),
        1 => (0u8..2, 0u8..3, any::<u8>()).prop_map(|(c, n, bits)| Step::Probe(c, n, bits)),
        1 => (0u8..3).prop_map(Step::Zone),
        1 => (0u8..4).prop_map(Step::Initialize),
        1 => (0u64..30).prop_map(Step::Wait),
        4 => Just(Step::Look),
    ]
}

fn named(n: u8) -> ServiceName {
    ServiceName { namespace: "demo".into(), name: format!("s{n}").into() }
}

fn remote_cluster(c: u8) -> Source {
    Source::Cluster(ClusterName::new(&format!("c{c}")).unwrap())
}

fn own() -> Source {
    Source::Cluster(ClusterName::new("own").unwrap())
}

/// Two services share the same backends.
fn backends(bits: u8) -> impl Iterator<Item = u8> {
    (0..3).filter(move |bit| bits & (1 << bit) != 0)
}

/// The last service also has annotations; who is probed is said by another table.
fn spread_of(n: u8, bits: u8) -> Spread {
    let probe = Some(Spread::parse_probe("tcp").unwrap());
    match (n, bits >> 6) {
        (0, _) => Spread::default(),
        (1, _) => Spread { probe, ..Spread::default() },
        (_, 0) => Spread { tiers: Spread::parse_tiers("c1;local,c0").unwrap(), ..Spread::default() },
        (_, 1) => {
            Spread { weights: Spread::parse_weights("east=3,*=1").unwrap(), probe, ..Spread::default() }
        }
        _ => {
            let tiers = Spread::parse_tiers("c0;*").unwrap();
            let weights = Spread::parse_weights("c0=5,c1=1,local=0").unwrap();
            Spread { tiers, weights, overflow: Some(70), probe }
        }
    }
}

fn service_of(n: u8, bits: u8) -> ServiceRow {
    let pick = |bit: u8| if bits & bit != 0 { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
    ServiceRow {
        name: named(n),
        kind: if bits & 1 != 0 { ServiceType::LoadBalancer } else { ServiceType::ClusterIP },
        // Of one number, so that services want the same and external addresses meet it.
        ports: vec![ServicePort { node_port: (bits & 12 == 12).then_some(80), ..service().ports[0].clone() }],
        families_ipv4: if bits & 2 != 0 { vec![true] } else { vec![true, false] },
        cluster_ips: vec![format!("10.101.0.{n}").parse().unwrap()],
        // Two services each share one, and one of those may be another service's LoadBalancer address.
        external_ips: match bits & 48 {
            16 => vec![format!("198.51.100.{}", n / 2).parse().unwrap()],
            32 => vec![NODE[0].parse().unwrap()],
            48 => vec!["203.0.113.0".parse().unwrap()],
            _ => vec![],
        },
        external_traffic_policy: pick(2),
        internal_traffic_policy: pick(4),
        global: bits & 8 != 0,
        affinity: [Affinity::None, Affinity::Local, Affinity::Remote, Affinity::None][usize::from(bits >> 6)],
        spread: spread_of(n, bits),
        distribution: if bits & 32 != 0 { Distribution::SameZone } else { Distribution::Any },
        ..service()
    }
}

/// A frontend as packets meet it: key, service, whether local only, members, and the backend of each slot; and who is
/// not chosen, and why; whether the address is the services' alone.
type Seen =
    (FrontendKey, ServiceName, bool, BTreeSet<BackendKey>, Vec<BackendKey>, Vec<(BackendKey, Why)>, bool);
/// A frontend of an earlier life: its number and members.
type Restored = (FrontendKey, u16, BTreeSet<BackendKey>);

impl World {
    fn take(&mut self, step: &Step, secs: &mut u64) {
        match *step {
            Step::Service(n, bits) => drop(self.services.1.upsert(service_of(n, bits))),
            Step::DropService(n) => drop(self.services.1.remove(&named(n))),
            Step::Slice(n, bits) => {
                let pod = |bit: u8| {
                    endpoint(&format!("10.1.1.{bit}"), &format!("n{}", bit % 2), bits & (8 << bit) == 0)
                };
                let row = SliceRow {
                    service: named(n),
                    name: named(n),
                    ..slice(backends(bits).map(pod).collect())
                };
                self.slices.1.upsert(row);
            }
            Step::DropSlice(n) => drop(self.slices.1.remove(&slice_key(n))),
            Step::Remote(c, n, bits) => {
                let ips: Vec<_> = backends(bits).map(|bit| format!("10.2.{c}.{bit}")).collect();
                let ips: Vec<_> = ips.iter().map(String::as_str).collect();
                let mut row = RemoteService { source: remote_cluster(c), name: named(n), ..remote(&ips) };
                for (n, backend) in row.backends.values_mut().enumerate() {
                    let states = [BackendState::Ready, BackendState::Serving, BackendState::NotReady];
                    backend.state = states[(usize::from(bits >> 3) + n) % 3];
                    backend.zone = Some(if bits & 64 == 0 { "a" } else { "b" }.into());
                    backend.for_zones = backend.zone.iter().filter(|_| bits & 128 != 0).cloned().collect();
                }
                self.remote.1.upsert(row);
            }
            Step::DropRemote(c, n) => drop(self.remote.1.remove(&(named(n), remote_cluster(c)))),
            Step::Address(n, true) => {
                let addresses = [format!("203.0.113.{n}").parse().unwrap()].into();
                self.addresses.1.upsert(LbAssignment {
                    source: own(),
                    name: named(n),
                    addresses,
                    pools: BTreeSet::new(),
                });
            }
            Step::Address(n, false) => drop(self.addresses.1.remove(&named(n))),
            Step::Probe(c, n, bits) => {
                let backend = (format!("10.2.{c}.{}", bits % 3).parse().unwrap(), 8080, Protocol::Tcp);
                let row =
                    FailedProbe { source: Source::Local, service: named(n), backend, failure: "".into() };
                if bits & 128 == 0 {
                    self.probes.1.upsert(row);
                } else {
                    self.probes.1.remove(&row.key());
                }
            }
            Step::Zone(n) => self.zone = ["a", "b"].get(usize::from(n)).map(|zone| (*zone).into()),
            Step::Initialize(0) => {
                self.services.1.set_source(&Source::Manifests, SourceState::Initialized);
                self.slices.1.set_source(&Source::Manifests, SourceState::Initialized);
            }
            Step::Initialize(1) => self.addresses.1.set_source(&own(), SourceState::Initialized),
            Step::Initialize(c) => self.remote.1.set_source(&remote_cluster(c - 2), SourceState::Initialized),
            Step::Wait(more) => *secs += more,
            Step::Look => self.step(*secs),
        }
    }

    fn announce(&self) {
        self.services.1.set_source(&Source::Manifests, SourceState::Pending);
        self.slices.1.set_source(&Source::Manifests, SourceState::Pending);
        self.addresses.1.set_source(&own(), SourceState::Pending);
        (0..2).for_each(|c| self.remote.1.set_source(&remote_cluster(c), SourceState::Pending));
    }

    /// The rows with backends by what they are: numbers depend on the order of arrival.
    fn view(&self) -> Vec<Seen> {
        let backends = self.out.backends.table().snapshot();
        let of = |id: &u32| {
            backends
                .get(id)
                .map(|row| (row.address, row.port, row.protocol))
                .expect("every named backend has a row")
        };
        let frontend = |row: &FrontendRow| {
            let maglev = row.maglev.iter().map(|slot| of(&row.backends[usize::from(*slot)])).collect();
            let spare = row.spare.iter().map(|(id, why)| (of(id), *why)).collect();
            (
                row.key,
                row.service.clone(),
                row.local_only,
                row.backends.iter().map(of).collect(),
                maglev,
                spare,
                row.whole_address,
            )
        };
        self.out.frontends.table().snapshot().iter().map(frontend).collect()
    }

    fn backend_keys(&self) -> BTreeSet<BackendKey> {
        self.out.backends.table().snapshot().iter().map(|row| (row.address, row.port, row.protocol)).collect()
    }
}

fn slice_key(n: u8) -> <SliceRow as Row>::Key {
    SliceRow { service: named(n), name: named(n), ..slice(vec![]) }.key()
}

/// What an earlier life left: some frontends with members, all of them with numbers.
fn earlier(bits: &[u8]) -> (Vec<(BackendKey, u32)>, Vec<Restored>) {
    let member = |bit: u8| (format!("10.2.0.{bit}").parse().unwrap(), 8080, Protocol::Tcp);
    let key = |n: usize| FrontendKey {
        address: format!("10.101.0.{n}").parse().unwrap(),
        port: 80,
        protocol: Protocol::Tcp,
        scope: Scope::Internal,
    };
    let frontends = bits
        .iter()
        .enumerate()
        .map(|(n, bits)| (key(n), u16::try_from(n).unwrap() + 40, backends(*bits).map(member).collect()));
    ((0..3).map(|bit| (member(bit), 70 + u32::from(bit))).collect(), frontends.collect())
}

proptest! {
    /// Whatever comes in whatever order, the rows are those of a plan from scratch; and as long as somebody has not
    /// spoken and 60 s are not over, no frontend loses a member that the earlier life's datapath gives it.
    #[test]
    fn incremental_equals_full_and_nothing_shrinks_early(
        steps in prop::collection::vec(step(), 1..60),
        bits in prop::collection::vec(any::<u8>(), 3),
    ) {
        let (numbers, frontends) = earlier(&bits);
        let mut world = World::new();
        world.planner.restore(numbers.clone(), frontends.clone());
        world.announce();
        let mut changes = (world.services.0.changes(), world.slices.0.changes(), world.remote.0.changes(), world.addresses.0.changes(), world.probes.0.changes());
        let mut secs = 0;
        let mut spoken = BTreeSet::new();
        for step in steps.iter().chain([&Step::Look]) {
            if let Step::Initialize(n) = step { spoken.insert(*n); }
            if !matches!(step, Step::Look) {
                world.take(step, &mut secs);
                continue;
            }
            let now = Moment::from_origin(Duration::from_secs(secs));
            let batch = InputChanges { services: changes.0.drain(), slices: changes.1.drain(), remote: changes.2.drain(), addresses: changes.3.drain(), probes: changes.4.drain(), host_ports: None, zone: Some(world.zone.clone()) };
            world.planner.step(batch, now, &world.out);
            let shut = spoken.len() < 4 && secs < 60;
            let rows = world.view();
            if shut {
                for (key, _, _, members, ..) in &rows {
                    let before = frontends.iter().find(|(other, _, _)| other == key).map(|(_, _, before)| before.clone()).unwrap_or_default();
                    prop_assert!(before.is_subset(members), "{key:?} lost {:?}", before.difference(members));
                }
            }
            prop_assert_eq!(world.out.frontends.table().snapshot().unconfirmed_sources().is_empty(), !shut);
        }
        let mut fresh = World::new();
        fresh.planner.restore(numbers, frontends);
        fresh.services = world.services.clone();
        (fresh.slices, fresh.remote, fresh.addresses) = (world.slices.clone(), world.remote.clone(), world.addresses.clone());
        (fresh.probes, fresh.zone) = (world.probes.clone(), world.zone.clone());
        fresh.step(secs);
        prop_assert_eq!(world.view(), fresh.view());
        // Those that are known and not chosen keep their rows: flows that they have go on.
        let used: BTreeSet<BackendKey> =
            world.view().into_iter().flat_map(|row| row.3.into_iter().chain(row.5.into_iter().map(|(key, _)| key))).collect();
        if spoken.len() == 4 || secs >= 60 {
            prop_assert_eq!(world.backend_keys(), used);
        } else {
            prop_assert!(used.is_subset(&world.backend_keys()));
        }
    }
}
