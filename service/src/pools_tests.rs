use super::*;
use proptest::prelude::*;

fn name(text: &str) -> ServiceName {
    ServiceName { namespace: "shop".into(), name: text.into() }
}

fn service(text: &str, families: &[bool]) -> ServiceRow {
    ServiceRow {
        kind: ServiceType::LoadBalancer,
        families_ipv4: families.to_vec(),
        labels: BTreeMap::from([("app".into(), text.into())]),
        ..ServiceRow::new(Source::Manifests, name(text))
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pool(text: &str, ranges: &[(&str, &str)]) -> LbPool {
    let blocks = ranges.iter().map(|(first, last)| PoolBlock { first: ip(first), last: ip(last) }).collect();
    LbPool { source: Source::Manifests, name: text.into(), blocks, selector: None, disabled: false }
}

fn dual() -> LbPool {
    pool("dual", &[("203.0.113.0", "203.0.113.2"), ("2001:db8:e::", "2001:db8:e::2")])
}

fn memory(assigned: &Assigned) -> BTreeMap<ServiceName, BTreeSet<IpAddr>> {
    assigned.rows.iter().map(|row| (row.name.clone(), row.addresses.clone())).collect()
}

fn of(assigned: &Assigned, text: &str) -> Vec<String> {
    let row = assigned.rows.iter().find(|row| row.name == name(text));
    row.into_iter().flat_map(|row| &row.addresses).map(ToString::to_string).collect()
}

#[test]
fn both_families_as_asked_and_the_lowest_first() {
    let services = [service("b", &[true, false]), service("a", &[false]), service("c", &[])];
    let out = assign(&[dual()], &services, &BTreeMap::new());
    assert!(out.problems.is_empty(), "{:?}", out.problems);
    assert_eq!(of(&out, "a"), ["2001:db8:e::"]);
    assert_eq!(of(&out, "b"), ["203.0.113.0", "2001:db8:e::1"]);
    assert_eq!(of(&out, "c"), ["203.0.113.1"]);
    assert_eq!(out.rows[0].pools, ["dual".into()].into());
}

#[test]
fn a_valid_address_never_changes_and_an_invalid_one_does() {
    let before =
        BTreeMap::from([(name("b"), [ip("203.0.113.2")].into()), (name("c"), [ip("192.0.2.1")].into())]);
    let services = [service("a", &[true]), service("b", &[true]), service("c", &[true])];
    let out = assign(&[dual()], &services, &before);
    assert_eq!(
        (of(&out, "a"), of(&out, "b"), of(&out, "c")),
        (vec!["203.0.113.0".to_owned()], vec!["203.0.113.2".to_owned()], vec!["203.0.113.1".to_owned()],)
    );
    // A disabled pool keeps what it gave and gives nothing new.
    let closed = LbPool { disabled: true, ..dual() };
    let again = assign(&[closed], &[services[1].clone(), service("new", &[true])], &memory(&out));
    assert_eq!(of(&again, "b"), ["203.0.113.2"]);
    assert!(of(&again, "new").is_empty() && again.problems[0].contains("no enabled pool"));
}

#[test]
fn requests_are_honoured_unless_taken_or_out_of_pool() {
    let mut a = service("a", &[true]);
    let mut b = service("b", &[true]);
    b.requested_addresses = vec![ip("203.0.113.0"), ip("2001:db8:e::2")];
    let out = assign(&[dual()], &[a.clone(), b.clone()], &BTreeMap::new());
    assert_eq!(of(&out, "b"), ["203.0.113.0", "2001:db8:e::2"]);
    assert_eq!(of(&out, "a"), ["203.0.113.1"]);
    // The holder keeps it; the one that asks later is told who has it.
    a.requested_addresses = vec![ip("203.0.113.0"), ip("198.51.100.1")];
    let again = assign(&[dual()], &[a, b], &memory(&out));
    assert_eq!(of(&again, "b"), ["203.0.113.0", "2001:db8:e::2"]);
    assert!(of(&again, "a").is_empty());
    assert!(
        again.problems[0].contains("belongs to service shop/b") && again.problems[1].contains("198.51.100.1")
    );
}

#[test]
fn exhaustion_and_conflicts_are_told() {
    let many: Vec<_> = ["a", "b", "c", "d"].iter().map(|text| service(text, &[true])).collect();
    let out = assign(&[dual()], &many, &BTreeMap::new());
    assert_eq!(out.rows.len(), 3);
    assert!(out.problems[0].contains("Service shop/d") && out.problems[0].contains("used up"));
    let other = pool("other", &[("203.0.113.2", "203.0.113.9")]);
    let out = assign(&[other, dual()], &many, &BTreeMap::new());
    assert!(
        out.problems[0].contains("pool other") || out.problems[0].contains("IPPool other"),
        "{:?}",
        out.problems
    );
    assert_eq!(out.rows.len(), 3);
}

#[test]
fn selectors_types_and_classes_decide_who_is_served() {
    let mut picky = dual();
    picky.selector = Some(LabelSelector {
        labels: [("io.kubernetes.service.name".into(), "a".into())].into(),
        ..LabelSelector::default()
    });
    let mut cluster_ip = service("c", &[true]);
    cluster_ip.kind = ServiceType::ClusterIP;
    let mut foreign = service("d", &[true]);
    foreign.load_balancer_class = Some("x/y".into());
    let mut ours = service("e", &[true]);
    ours.load_balancer_class = Some(LOAD_BALANCER_CLASS.into());
    let services = [service("a", &[true]), service("b", &[true]), cluster_ip, foreign, ours];
    let named = |out: &Assigned| out.rows.iter().map(|row| row.name.name.to_string()).collect::<Vec<_>>();
    assert_eq!(named(&assign(&[picky], &services, &BTreeMap::new())), ["a"]);
    assert_eq!(named(&assign(&[dual()], &services, &BTreeMap::new())), ["a", "b", "e"]);
}

#[test]
fn the_end_of_the_address_space_is_no_trap() {
    let edge = pool("edge", &[("255.255.255.255", "255.255.255.255")]);
    let out = assign(&[edge], &[service("a", &[true]), service("b", &[true])], &BTreeMap::new());
    assert_eq!((out.rows.len(), out.problems.len()), (1, 1));
}

fn services(seed: &[(u8, u8, Option<u8>)]) -> Vec<ServiceRow> {
    let mut rows = BTreeMap::new();
    for (id, families, request) in seed {
        let families: &[bool] = match families % 3 {
            0 => &[true],
            1 => &[false],
            _ => &[true, false],
        };
        let mut row = service(&format!("s{}", id % 12), families);
        row.requested_addresses =
            request.map(|last| IpAddr::from([203, 0, 113, last % 8])).into_iter().collect();
        rows.insert(row.name.clone(), row);
    }
    rows.into_values().collect()
}

proptest! {
    /// Running again changes nothing; nobody shares an address; what stays valid stays.
    #[test]
    fn assignments_are_unique_and_stable(
        first in prop::collection::vec((any::<u8>(), any::<u8>(), prop::option::weighted(0.2, any::<u8>())), 0..16),
        second in prop::collection::vec((any::<u8>(), any::<u8>(), prop::option::weighted(0.2, any::<u8>())), 0..16),
    ) {
        let pools = [pool("p", &[("203.0.113.0", "203.0.113.5"), ("2001:db8::", "2001:db8::4")])];
        let (before, after) = (services(&first), services(&second));
        let start = assign(&pools, &before, &BTreeMap::new());
        let repeat = assign(&pools, &before, &memory(&start));
        prop_assert_eq!(&start.rows, &repeat.rows);
        let next = assign(&pools, &after, &memory(&start));
        for out in [&start, &next] {
            let all: Vec<_> = out.rows.iter().flat_map(|row| &row.addresses).collect();
            prop_assert_eq!(all.len(), all.iter().collect::<BTreeSet<_>>().len());
        }
        for row in &start.rows {
            let same = |list: &[ServiceRow]| list.iter().find(|service| service.name == row.name).cloned();
            if same(&before).is_some() && same(&before) == same(&after) {
                let kept = next.rows.iter().find(|other| other.name == row.name).map(|other| &other.addresses);
                prop_assert!(kept.is_some_and(|kept| row.addresses.is_subset(kept)));
            }
        }
    }
}
