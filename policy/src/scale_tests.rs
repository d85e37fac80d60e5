//! What the compiler costs at the size that is normal: 50,000 identities, 1,000 policies, a node's pods. Prints, judges no times.

use super::tests::*;
use super::*;
use std::time::Instant;

/// Resident memory of this process, in MiB.
fn resident_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096 / (1 << 20)
}

const IDENTITIES: u32 = 50_000;
const POLICIES: u32 = 1_000;
const NAMESPACES: u32 = 200;
const PODS: u16 = 250;

fn names(n: u32) -> (String, String) {
    (format!("ns{}", n % NAMESPACES), format!("app{}", n / NAMESPACES % 250))
}

fn filled() -> World {
    let world = world();
    world.endpoints.1.remove(&1);
    world.identities.1.commit(|txn| {
        for n in 0..IDENTITIES {
            let (namespace, app) = names(n);
            txn.upsert(identity(IdentityId(100_000 + n), labels("east", &namespace, &app)));
        }
    });
    for n in 0..PODS {
        let (namespace, app) = names(u32::from(n));
        let labels = labels("east", &namespace, &app);
        world.endpoints.1.upsert(endpoint(n + 1, Some(IdentityId(100_000 + u32::from(n))), labels));
    }
    world.rules.1.commit(|txn| {
        for n in 0..POLICIES {
            txn.upsert(numbered_rule(n));
        }
    });
    world
}

/// Policies as clusters have them: a namespace to itself, an app from another's, DNS, a prefix with a hole.
fn numbered_rule(n: u32) -> RuleRow {
    let namespace = format!("ns{}", n % NAMESPACES);
    let peer = match n / NAMESPACES {
        0 => pods(in_namespace(&namespace)),
        1 => pods(in_namespace(&format!("ns{}", (n + 1) % NAMESPACES))),
        2 => pods(any_app(&format!("app{}", n % 250))),
        3 => cidr(&format!("10.{}.0.0/16", n % 200), &[&format!("10.{}.7.0/24", n % 200)]),
        _ => cidr("0.0.0.0/0", &["10.0.0.0/8"]),
    };
    let blocks = vec![block(vec![peer], vec![range(6, 80, 80), range(6, 8000, 8999)])];
    let (ingress, egress) = if n.is_multiple_of(2) { (Some(blocks), None) } else { (None, Some(blocks)) };
    let mut row = rule(&format!("r{n}"), in_namespace(&namespace), ingress, egress);
    row.namespace = namespace.into();
    row
}

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let out = work();
    println!("{what}: {:?}", start.elapsed());
    out
}

#[test]
fn at_the_size_that_is_normal() {
    let before = resident_mib();
    let world = filled();
    let rows = resident_mib();
    println!("{IDENTITIES} identities, {POLICIES} policies, {PODS} pods: rows take {} MiB", rows - before);
    let mut compiler = compiler();
    let delta = timed("everything", || world.update(&mut compiler, &Change::Everything, true));
    let entries: usize = delta.policies.iter().map(|row| row.entries.len()).sum();
    println!(
        "{} policies, {entries} entries, {} prefixes, {} cookies: {} MiB more",
        delta.policies.len(),
        delta.prefixes.len(),
        delta.cookies.len(),
        resident_mib() - rows
    );
    assert!(compiler.problems().is_empty(), "{:?}", compiler.problems());
    let subjects = usize::from(PODS);
    assert_eq!(delta.policies.len(), subjects);

    // One more pod somewhere in the mesh, that some of them concern.
    let id = IdentityId(100_000 + IDENTITIES);
    world.identities.1.upsert(identity(id, labels("east", "ns7", "app3")));
    let one = changed(Keys { identities: [id].into(), ..Keys::default() });
    let delta = timed("an identity comes", || world.update(&mut compiler, &one, true));
    println!("  {} policies written", delta.policies.len());
    assert!(!delta.policies.is_empty() && delta.policies.len() < subjects / 10, "what it concerns");
    world.identities.1.remove(&(id, Source::Manifests));
    timed("an identity goes", || world.update(&mut compiler, &one, true));
    // One that no rule takes.
    world.identities.1.upsert(identity(id, labels("west", "ns7", "app3")));
    let delta = timed("an identity that concerns nobody", || world.update(&mut compiler, &one, true));
    assert_eq!(delta, Delta::default());

    let key = numbered_rule(0).key();
    world.rules.1.remove(&key);
    let one = changed(Keys { rules: [key].into(), ..Keys::default() });
    let delta = timed("a rule goes", || world.update(&mut compiler, &one, true));
    println!("  {} policies written", delta.policies.len());
    world.rules.1.upsert(numbered_rule(0));
    timed("a rule comes", || world.update(&mut compiler, &one, true));
    let mut fresh =
        super::tests::compiler().with_ids(compiler.ids().clone()).with_prefixes(compiler.prefixes());
    world.update(&mut fresh, &Change::Everything, true);
    assert!(compiler.policies().eq(fresh.policies()), "and it is what compiling everything gives");
}
