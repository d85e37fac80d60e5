//! A cluster that publishes what it likes harms its own entries and nothing else.

use super::sim::{Fault, World, identity, ip, service};
use super::*;
use crate::wire::{Kind, Reason, Record, key};
use std::time::Duration;

/// `c1` is honest, `c2` is not; both are read and quiet.
fn world(limits: Limits) -> World {
    let mut world = World::new(99, 2, limits);
    for at in 0..2 {
        let (name, id) = (world.sites[at].name.clone(), world.sites[at].id);
        for (key, value) in [ip(id, 2, 0), identity(&name, id, 0, 1), service(&name, id, 0, 2)] {
            world.sites[at].want.insert(key, value);
        }
    }
    world.settle();
    world
}

/// Takes in what `c2` published besides, by event and by list, and checks that `c1` is as it was.
fn publish(world: &mut World, entries: &[(String, String)]) -> ClusterStatus {
    let honest = world.sites[0].known.clone();
    for (key, value) in entries {
        world.sites[1].want.insert(key.clone(), value.clone());
    }
    world.settle();
    world.cause(1, Fault::Compaction);
    world.cause(1, Fault::Cut);
    world.settle();
    assert_eq!(world.sites[0].known, honest, "the honest cluster");
    assert!(world.sites[0].core.status(world.now).ready);
    world.sites[1].core.status(world.now)
}

fn of(kind: Kind, name: &str) -> String {
    format!("{}{name}", kind.prefix(crate::wire::Layout::State, "c2"))
}

#[test]
fn names_and_numbers_of_others_are_refused() {
    let mut world = world(Limits::default());
    let (_, theirs) = identity("c1", 1, 7, 1);
    let label = "k8s:io.cilium.k8s.policy.cluster";
    let number = |n: u32| of(Kind::Identities, &((2 << 16) + 300 + n).to_string());
    let entries = [
        // Numbers of c1, of this cluster (9), reserved, without a cluster, and of the scopes of a node.
        (of(Kind::Identities, "65900"), identity("c2", 2, 0, 1).1),
        (of(Kind::Identities, &((9 << 16) + 300).to_string()), identity("c2", 2, 0, 1).1),
        (of(Kind::Identities, "2"), identity("c2", 2, 0, 1).1),
        (of(Kind::Identities, "300"), identity("c2", 2, 0, 1).1),
        (of(Kind::Identities, "16777300"), identity("c2", 2, 0, 1).1),
        // Labels of c1: alone, beside its own in both orders, of another source, with its own as another label's value.
        (number(0), theirs),
        (number(1), format!("{label}=c1;{label}=c2;")),
        (number(2), format!("{label}=c2;{label}=c1;")),
        (number(3), "any:io.cilium.k8s.policy.cluster=c2;".to_owned()),
        (number(4), format!("k8s:app={label}=c2;")),
        (number(5), format!("{label}=c1;k8s:a=;{label};=c2;")),
        // Addresses with numbers of c1 and of this cluster, at keys that say something else.
        (of(Kind::Ips, "10.2.0.9"), ip(1, 2, 0).1.replace("10.1.0.2", "10.2.0.9")),
        (of(Kind::Ips, "10.2.0.10"), ip(9, 2, 0).1.replace("10.9.0.2", "10.2.0.10")),
        (of(Kind::Ips, "10.1.0.77"), ip(2, 2, 0).1),
        (
            of(Kind::Ips, "0.0.0.0/0"),
            r#"{"IP":"0.0.0.0","Mask":"AAAAAA==","HostIP":"192.0.2.1","ID":2}"#.to_owned(),
        ),
        // Objects of c1 under keys of c2.
        (of(Kind::Services, "shop/stolen"), service("c1", 1, 0, 2).1.replace("s0", "stolen")),
        (of(Kind::Services, "shop/other"), service("c2", 1, 0, 2).1.replace("s0", "other")),
        (of(Kind::Nodes, "../c1/n1"), "{}".to_owned()),
        (of(Kind::Nodes, "../../../../../cluster-config/c1"), "{}".to_owned()),
    ];
    let before = world.sites[1].known.len();
    let status = publish(&mut world, &entries);
    assert_eq!(world.sites[1].known.len(), before, "{:?}", world.sites[1].known.keys());
    for reason in [
        Reason::IdentityRange,
        Reason::ClusterLabel,
        Reason::KeyMismatch,
        Reason::Address,
        Reason::ClusterName,
        Reason::ClusterId,
        Reason::KeyName,
    ] {
        assert!(status.rejected.of(reason) > 0, "{reason}: {:?}", status.rejected);
    }
    assert_eq!(status.refused_now, entries.len());
    assert!(status.refused.iter().all(|refused| !refused.remedy.is_empty() && refused.detail.len() < 400));
}

#[test]
fn labels_and_annotations_that_name_others_stay_text() {
    let mut world = world(Limits::default());
    let mut node = crate::wire::Node::new("c2", 2, "n9");
    let keys = ["io.cilium.k8s.policy.cluster", "topology.kubernetes.io/cluster", "cluster"];
    node.annotations = keys.into_iter().map(|key| (key.into(), "c1".into())).collect();
    node.labels = node.annotations.clone().into();
    let text = String::from_utf8(node.encode().unwrap()).unwrap();
    publish(&mut world, &[(of(Kind::Nodes, "n9"), text)]);
    let Record::Node(taken) = &world.sites[1].known[&(Kind::Nodes, "n9".to_owned())] else { panic!() };
    assert_eq!((taken.cluster.as_ref(), taken.cluster_id), ("c2", 2));
}

#[test]
fn a_number_that_another_cluster_has_is_refused_and_named() {
    let mut world = world(Limits::default());
    let honest = world.sites[0].known.clone();
    let config = world.sites[1].config_text().replace("\"id\":2", "\"id\":1");
    world.sites[1].publishing = false;
    world.sites[1].excuse_all();
    world.sites[1].etcd.put(&key::cluster_config("c2"), &config);
    world.cause(1, Fault::Cut);
    for _ in 0..3_000 {
        world.step(false);
    }
    let status = world.sites[1].core.status(world.now);
    assert!(!status.ready && status.last_failure.is_some_and(|failure| failure.text.contains("cluster c1")));
    assert_eq!(world.sites[0].known, honest);
    assert!(world.sites[0].core.status(world.now).ready);
}

/// Steps in which the hostile cluster publishes nothing but heartbeats.
fn beat(world: &mut World, steps: u32) {
    for step in 0..steps {
        if step.is_multiple_of(500) {
            world.sites[1].etcd.put(key::HEARTBEAT, &step.to_string());
        }
        world.step(false);
    }
}

#[test]
fn too_many_and_too_large_entries_cost_a_bounded_amount() {
    let limits = Limits { max_entries: 100, max_bytes: 30_000, ..Limits::default() };
    let mut world = world(limits);
    let site = &mut world.sites[1];
    for host in 0..1_000_u32 {
        let address = format!("10.2.{}.{}", 1 + host / 250, host % 250);
        site.etcd.put(&of(Kind::Ips, &address), &ip(2, 2, 0).1.replace("10.2.0.2", &address));
    }
    site.etcd.put(&of(Kind::Nodes, "huge"), &"x".repeat(2_000_000));
    site.etcd.put(&of(Kind::Nodes, &"n".repeat(20_000)), "{}");
    site.publishing = false;
    let honest = world.sites[0].known.clone();
    beat(&mut world, 20_000);
    let status = world.sites[1].core.status(world.now);
    assert_eq!((status.counts.values().sum::<usize>(), world.sites[1].known.len()), (100, 100));
    assert!(status.bytes <= 30_000 && status.ready, "{status:?}");
    assert!(status.rejected.of(Reason::TooMany) > 800, "{:?}", status.rejected);
    assert!(status.rejected.of(Reason::TooBig) > 0 && status.rejected.of(Reason::KeyName) > 0);
    assert!(status.refused_now <= 2 * 1024 && status.refused.len() <= 2 * MAX_REFUSED);
    assert_eq!(world.sites[0].known, honest);
    // When there is room again, what was refused is taken in; not at once, but without anything else happening.
    let site = &mut world.sites[1];
    let keys: Vec<String> = site.known.keys().map(|(kind, name)| of(*kind, name)).collect();
    site.etcd.delete(&keys);
    site.excuse();
    beat(&mut world, 20_000);
    assert_eq!(world.sites[1].known.len(), 100);
}

/// Slices that unpack to far more than they are cost their own entries, in time that does not grow with what they claim to be.
#[test]
fn zip_bombs_are_refused_before_they_are_unpacked() {
    use crate::wire::{MAX_VALUE_BYTES, Record, Remote};
    use tombolo_base::ids::{ClusterId, ClusterName, MaxClusters};
    let remote = Remote {
        name: ClusterName::new("c2").unwrap(),
        id: ClusterId::new(2, MaxClusters::C255).unwrap(),
        max: MaxClusters::C255,
        own: false,
    };
    let level = ruzstd::encoding::CompressionLevel::Fastest;
    let bomb = |bytes: usize| {
        ruzstd::encoding::compress_to_vec(
            std::io::Read::take(std::io::repeat(0), u64::try_from(bytes).unwrap()),
            level,
        )
    };
    let start = std::time::Instant::now();
    for bytes in [MAX_VALUE_BYTES + 1, 64 << 20, 256 << 20] {
        let value = bomb(bytes);
        assert!(value.len() < MAX_VALUE_BYTES, "{} bytes on the wire", value.len());
        let unpacking = std::time::Instant::now();
        let refused = Record::decode(&remote, Kind::EndpointSlices, "shop/web-1", &value).unwrap_err();
        assert_eq!(refused.reason, Reason::TooBig, "{bytes}: {refused}");
        assert!(unpacking.elapsed() < Duration::from_secs(5), "{bytes}: {:?}", unpacking.elapsed());
    }
    // A bomb in a bomb is one more value that is no slice; many of them are refused one by one.
    let nested = ruzstd::encoding::compress_to_vec(&bomb(MAX_VALUE_BYTES - 1)[..], level);
    assert!(Record::decode(&remote, Kind::EndpointSlices, "shop/web-1", &nested).is_err());
    println!("{:?}", start.elapsed());
}

/// Clocks: canaries and heartbeats of any time, and beats that pretend any lag.
#[test]
fn clock_games_falsify_the_own_lag_at_most() {
    let mut world = world(Limits::default());
    let honest = world.sites[0].known.clone();
    world.sites[1].publishing = false;
    for text in ["0", "18446744073709551615", "-5", "1e99", "x", "", &"9".repeat(1_000)] {
        world.sites[1].etcd.put(key::BEAT, text);
        world.sites[1].etcd.put(&key::synced_prefix("c2"), text);
        beat(&mut world, 300);
        let status = world.sites[1].core.status(world.now);
        assert!(status.ready && status.reconnections == 0, "{text}: {status:?}");
        assert!(status.lag.is_none_or(|lag| lag.lag.count <= 2), "{text}");
    }
    assert_eq!(world.sites[0].known, honest);
    assert_eq!(world.sites[0].core.status(world.now).lag, None);
}

#[test]
fn heartbeats_are_judged_by_their_arrival() {
    let mut world = world(Limits::default());
    world.sites[1].publishing = false;
    world.sites[1].etcd.put(key::HEARTBEAT, "the last honest one");
    for (round, text) in ["2999-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "no date", "", &"9".repeat(100_000)]
        .iter()
        .enumerate()
    {
        for _ in 0..9 {
            world.now = world.now.after(Duration::from_secs(5));
            for _ in 0..60 {
                world.step(false);
            }
        }
        world.sites[1].etcd.put(key::HEARTBEAT, text);
        for _ in 0..250 {
            world.step(false);
        }
        let status = world.sites[1].core.status(world.now);
        assert!(status.ready && status.reconnections == 0, "round {round}: {status:?}");
        assert!(status.heartbeat_age_secs.is_some_and(|secs| secs < 30), "round {round}: {status:?}");
    }
    assert!(world.sites[0].core.status(world.now).ready);
}
