//! Single faults, told one by one: what the core does and what an operator is told.

use super::sim::{Fault, Site, World, identity, ip, service};
use super::*;
use crate::wire::{Kind, Reason, key};
use std::time::Duration;
use tombolo_base::clock::Moment;
use tombolo_base::source::SourceState;

/// One cluster `c1`, read and quiet, with an address, an identity and a service.
fn ready() -> World {
    ready_with(Limits::default())
}

fn ready_with(limits: Limits) -> World {
    let mut world = World::new(42, 1, limits);
    want(&mut world, ip(1, 2, 0));
    want(&mut world, identity("c1", 1, 0, 1));
    want(&mut world, service("c1", 1, 0, 2));
    world.settle();
    world
}

fn want(world: &mut World, (key, value): (String, String)) {
    world.sites[0].want.insert(key, value);
}

fn site(world: &mut World) -> &mut Site {
    &mut world.sites[0]
}

fn status(world: &World) -> ClusterStatus {
    world.sites[0].core.status(world.now)
}

fn applied(world: &World) -> Applied {
    status(world).applied[&Kind::Ips]
}

/// Lets time pass without answers until the status says so.
fn tick_until(world: &mut World, done: impl Fn(&ClusterStatus) -> bool) -> Duration {
    let start = world.now;
    while !done(&status(world)) {
        let next = world.sites[0].core.next_deadline();
        assert!(next.since(start) < Duration::from_secs(7200), "{:?}", status(world));
        world.now = next;
        let now = world.now;
        site(world).feed(now, Input::Tick);
    }
    world.now.since(start)
}

fn run(world: &mut World, steps: usize) {
    for _ in 0..steps {
        world.step(false);
    }
}

#[test]
fn a_denied_range_is_stale_and_not_asked_for_in_a_loop() {
    let mut world = ready();
    let scope = Scope::Entries(Kind::Ips);
    site(&mut world).denied.insert(scope);
    let lists = site(&mut world).listed;
    site(&mut world).end_watches(FailureKind::Denied, |other| other == scope);
    run(&mut world, 200);
    assert!(status(&world).status.contains("Denied"), "{:?}", status(&world));
    assert!(
        !status(&world).ready && !status(&world).synced[&Kind::Ips] && status(&world).synced[&Kind::Nodes]
    );
    assert_eq!((site(&mut world).state, site(&mut world).known.len()), (SourceState::Stale, 3));
    assert_eq!((site(&mut world).listed, status(&world).reconnections), (lists, 0), "no list at once");
    world.settle();
    assert!(status(&world).ready && status(&world).reconnections == 0);
}

#[test]
fn a_silent_heartbeat_ends_the_connection_and_keeps_everything() {
    let mut world = ready();
    let waited = tick_until(&mut world, |status| status.reconnections > 0).as_secs();
    assert!((110..180).contains(&waited), "two minutes and three checks, not {waited} s");
    let seen = status(&world);
    assert!(!seen.ready && seen.last_failure.is_some_and(|failure| failure.text.contains("heartbeat")));
    assert_eq!((site(&mut world).known.len(), site(&mut world).state), (3, SourceState::Stale));
}

#[test]
fn a_cluster_without_its_configuration_is_not_ready_and_keeps_what_is_known() {
    let mut world = ready();
    let lists = site(&mut world).listed;
    site(&mut world).publishing = false;
    site(&mut world).etcd.delete(&[key::cluster_config("c1")]);
    let deadline = world.now.after(Duration::from_secs(61));
    while status(&world).ready && world.now < deadline {
        world.step(false);
    }
    let seen = status(&world);
    assert!(
        seen.status.starts_with("its configuration is gone") && !seen.ready && seen.connected,
        "{seen:?}"
    );
    assert_eq!((site(&mut world).known.len(), site(&mut world).state), (3, SourceState::Stale));
    world.settle();
    assert!(status(&world).ready);
    assert_eq!((site(&mut world).listed, status(&world).reconnections), (lists, 0), "nothing was missed");
}

#[test]
fn a_lost_connection_is_taken_up_where_it_broke_and_lists_nothing() {
    let mut world = ready();
    // A heartbeat is the witness.
    world.now = world.now.after(Duration::from_secs(61));
    run(&mut world, 400);
    let before = (applied(&world), site(&mut world).listed);
    let (gone, _) = ip(1, 2, 0);
    site(&mut world).want.remove(&gone);
    want(&mut world, ip(1, 3, 1));
    world.cause(0, Fault::Cut);
    assert_eq!(site(&mut world).state, SourceState::Stale);
    world.settle();
    assert_eq!(site(&mut world).listed, before.1, "no list was asked for");
    assert_eq!(site(&mut world).resumed, 5, "one watch of each kind");
    let after = applied(&world);
    assert_eq!((after.upserts - before.0.upserts, after.deletes - before.0.deletes), (1, 1));
    assert_eq!(status(&world).stale_secs, None);
}

#[test]
fn another_history_with_the_same_id_is_read_anew() {
    for fault in [Fault::Wipe, Fault::Restore] {
        let mut world = ready();
        world.cause(0, Fault::Backup);
        world.now = world.now.after(Duration::from_secs(61));
        run(&mut world, 400);
        world.cause(0, fault);
        // Its revisions overtake the old ones before anybody asks.
        for number in 0..200 {
            site(&mut world).etcd.put("other/key", &number.to_string());
        }
        world.settle();
        assert_eq!(site(&mut world).resumed, 0, "{fault:?}");
        assert_eq!(
            applied(&world),
            Applied { upserts: 1, deletes: 0 },
            "{fault:?}: a diff, and nothing differs"
        );
    }
}

#[test]
fn what_was_learned_after_the_last_heartbeat_is_listed_again_later() {
    let mut world = ready();
    world.now = world.now.after(Duration::from_secs(61));
    run(&mut world, 400);
    world.cause(0, Fault::Backup);
    // Younger than the heartbeat, and lost with the etcd.
    want(&mut world, ip(1, 4, 1));
    world.settle();
    world.cause(0, Fault::Restore);
    let (lost, _) = ip(1, 4, 1);
    site(&mut world).want.remove(&lost);
    world.settle();
    assert_eq!(site(&mut world).resumed, 5);
    assert!(site(&mut world).known.keys().all(|(_, name)| name != "10.1.0.4"));
}

#[test]
fn a_late_page_of_an_earlier_list_counts_no_more() {
    let mut world = ready();
    let (scope, now) = (Scope::Entries(Kind::Ips), world.now);
    let old = world.sites[0].core.tickets[&scope];
    let failure = Failure { kind: FailureKind::Compacted, text: "compacted".to_owned() };
    site(&mut world).feed(now, Input::WatchEnded(old, scope, failure));
    let header = site(&mut world).etcd.header();
    site(&mut world).feed(now, Input::Page { ticket: old, scope, header, entries: Vec::new(), more: false });
    assert_eq!(site(&mut world).known.len(), 3, "an empty late page would have deleted everything");
    world.settle();
}

/// Requests are connected anew in silence, watches are not: a list may be answered by another life of the same etcd.
#[test]
fn a_list_that_another_life_of_etcd_answers_deletes_nothing() {
    let scope = Scope::Entries(Kind::Ips);
    let newer = |world: &World, term| Header {
        revision: world.sites[0].etcd.revision + 5,
        term,
        ..world.sites[0].etcd.header()
    };
    let older = |world: &World, term| Header { revision: 1, term, ..world.sites[0].etcd.header() };
    // First page from before what was seen; second page from before the first; second page of an earlier term.
    for case in 0..3 {
        let mut world = ready();
        let now = world.now;
        let failure = Failure { kind: FailureKind::Compacted, text: "compacted".to_owned() };
        let ticket = world.sites[0].core.tickets[&scope];
        site(&mut world).feed(now, Input::WatchEnded(ticket, scope, failure));
        let ticket = world.sites[0].core.tickets[&scope];
        let header = if case == 0 { older(&world, 5) } else { newer(&world, 5) };
        let entries = vec![(key::range_end("cilium/state/ip/v1/default"), Vec::new())];
        site(&mut world).feed(now, Input::Page { ticket, scope, header, entries, more: case > 0 });
        if case > 0 {
            let header = if case == 1 { older(&world, 5) } else { newer(&world, 4) };
            let page = Input::Page { ticket, scope, header, entries: Vec::new(), more: false };
            site(&mut world).feed(now, page);
        }
        assert_eq!(status(&world).reconnections, 1, "case {case}");
        assert!(status(&world).status.contains("went back in time"), "{}", status(&world).status);
        assert_eq!(site(&mut world).known.len(), 3);
    }
}

#[test]
fn services_that_nobody_confirms_are_not_used_and_come_back() {
    let mut world = ready();
    world.cause(0, Fault::Outage);
    let waited = tick_until(&mut world, |status| !status.withheld.is_empty());
    let minutes = Duration::from_secs(15 * 60);
    assert!(waited <= minutes && waited + Duration::from_secs(61) >= minutes, "{waited:?} since the loss");
    let seen = status(&world);
    assert_eq!(seen.withheld, [(Kind::Services, 1)].into());
    assert!(seen.warnings[0].contains("1 services") && seen.warnings[0].contains("services_stale_secs"));
    assert_eq!(seen.counts[&Kind::Services], 1, "it stays known");
    let kinds: Vec<Kind> = site(&mut world).known.keys().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [Kind::Identities, Kind::Ips], "what traffic that works needs stays in use");
    world.settle();
    assert!(status(&world).withheld.is_empty() && site(&mut world).known.len() == 3);
    let mut world = ready_with(Limits { services_stale: None, ..Limits::default() });
    world.cause(0, Fault::Outage);
    let end = world.now.after(Duration::from_secs(3600));
    while world.now < end {
        world.now = world.sites[0].core.next_deadline();
        let now = world.now;
        site(&mut world).feed(now, Input::Tick);
    }
    assert!(status(&world).withheld.is_empty());
}

#[test]
fn a_thousand_readers_come_back_one_by_one() {
    let mut cores: Vec<World> = (0..1000).map(|seed| World::new(seed, 1, Limits::default())).collect();
    let broken = || Input::Disconnected(Failure { kind: FailureKind::Transport, text: "broken".to_owned() });
    let start = Moment::ZERO;
    for attempt in 0..7 {
        let mut waits = Vec::new();
        for world in &mut cores {
            world.now = world.sites[0].core.next_deadline();
            let now = world.now;
            site(world).feed(now, Input::Tick);
            site(world).feed(now, broken());
            waits.push(world.sites[0].core.next_deadline().since(now).as_millis());
        }
        waits.sort_unstable();
        let spread = waits[950] - waits[50];
        assert!(spread >= 2_000, "attempt {attempt}: 90 % come back within {spread} ms");
        let most = waits.windows(2).filter(|pair| pair[0] == pair[1]).count();
        assert!(most < 600, "attempt {attempt}: {most} of them at a moment that another has, too");
        assert!(waits[999] <= 33_000, "attempt {attempt}: bounded, not {} ms", waits[999]);
    }
    assert!(cores[0].now.since(start) < Duration::from_secs(200));
}

#[test]
fn pages_that_are_too_large_are_asked_for_in_smaller_parts() {
    let mut world = ready();
    let scope = Scope::Entries(Kind::Services);
    let now = world.now;
    let large = || Failure { kind: FailureKind::TooLarge, text: "message length too large".to_owned() };
    let ticket = world.sites[0].core.tickets[&scope];
    let mut out = Vec::new();
    world.sites[0].core.handle(now, Input::WatchEnded(ticket, scope, large()), &mut out);
    let mut limits = Vec::new();
    for _ in 0..3 {
        let Some(Output::List { ticket, limit, .. }) = out.pop() else { panic!("{out:?}") };
        limits.push(limit);
        world.sites[0].core.handle(now, Input::ListFailed(ticket, scope, large()), &mut out);
    }
    assert_eq!(limits, [256, 16, 1]);
    assert!(out.contains(&Output::Disconnect), "one value alone is too large: {out:?}");
    assert_eq!(world.sites[0].core.stores[&Kind::Services].len(), 1);
}

#[test]
fn a_new_id_drains_and_a_taken_id_is_refused() {
    let mut world = ready();
    site(&mut world).id = 2;
    site(&mut world).excuse_all();
    world.cause(0, Fault::Cut);
    run(&mut world, 4_000);
    let seen = status(&world);
    assert_eq!(seen.config.cluster_id, Some(2));
    assert!(site(&mut world).known.is_empty(), "the old entries do not fit the new id");
    assert!(seen.rejected.of(Reason::IdentityRange) > 0, "{seen:?}");
    let book = IdBook::default();
    let name = |text| ClusterName::new(text).unwrap();
    let id = ClusterId::new(3, MaxClusters::C255).unwrap();
    book.reserve(&name("x"), id).unwrap();
    assert_eq!(book.reserve(&name("y"), id), Err(name("x")));
    book.release(&name("x"));
    assert_eq!(book.reserve(&name("y"), id), Ok(()));
}

#[test]
fn removal_drains_everything_and_restored_entries_are_stale() {
    let mut world = ready();
    let mut out = Vec::new();
    world.sites[0].core.drain(&mut out);
    let deletes = out.iter().filter(|output| matches!(output, Output::Change(Change::Delete(_)))).count();
    assert_eq!((deletes, out.last()), (3, Some(&Output::Gone)));
    let mut again = World::new(7, 1, Limits::default());
    let (name, value) = ip(1, 8, 3);
    let entry = (Kind::Ips, name.rsplit('/').next().unwrap(), value.as_bytes().into());
    let mut out = Vec::new();
    let id = ClusterId::new(1, MaxClusters::C255).unwrap();
    again.sites[0].core.restore(Moment::ZERO, id, [entry], |_| Duration::ZERO, &mut out);
    assert!(
        matches!(&out[..], [Output::Change(Change::Upsert(_)), Output::State(SourceState::Stale)]),
        "{out:?}"
    );
}

/// Ids are corrected by giving a cluster another one and restarting its agents: the snapshots of before must not undo it.
#[test]
fn a_snapshot_of_before_a_cluster_got_its_id_is_not_taken() {
    let name = |text| ClusterName::new(text).unwrap();
    let id = |id| ClusterId::new(id, MaxClusters::C255).unwrap();
    // The follower, what its snapshot says, and the id that entries are checked against afterwards. Our own id is 9.
    for (cluster, saved, taken, after) in
        [("own", 1, 0, Some(9)), ("own", 9, 1, Some(9)), ("c1", 9, 0, None), ("c1", 1, 1, Some(1))]
    {
        let config =
            FollowerConfig { own_id: Some(id(9)), ..FollowerConfig::new(name(cluster), name("own")) };
        let mut core = Follower::new(config, Moment::ZERO);
        let (key, value) = ip(saved, 8, 3);
        let entry = (Kind::Ips, key.rsplit('/').next().unwrap(), value.as_bytes().into());
        let mut out = Vec::new();
        core.restore(Moment::ZERO, id(saved), [entry], |_| Duration::ZERO, &mut out);
        let changes = out.iter().filter(|output| matches!(output, Output::Change(_))).count();
        assert_eq!(changes, taken, "{cluster} with id {saved}: {out:?}");
        assert_eq!(core.remote.map(|remote| u32::from(remote.id.get())), after, "{cluster} with id {saved}");
    }
}

/// A follower that starts from a snapshot whose services were confirmed so long ago, of a cluster that does not answer.
fn restarted(age: Duration) -> World {
    let mut world = World::new(7, 1, Limits::default());
    world.cause(0, Fault::Outage);
    let (name, value) = service("c1", 1, 0, 2);
    let name = name.split_once("/v1/c1/").unwrap().1;
    let entry = (Kind::Services, name, value.as_bytes().into());
    let (id, mut out) = (ClusterId::new(1, MaxClusters::C255).unwrap(), Vec::new());
    world.sites[0].core.restore(Moment::ZERO, id, [entry], |_| age, &mut out);
    world.sites[0].carry_out(out);
    assert_eq!(world.sites[0].known.len(), 1);
    world
}

#[test]
fn a_restart_does_not_make_the_services_of_a_dead_cluster_fresh() {
    for (age, used) in [(0, 900), (600, 300), (880, 60), (1_000_000, 60)] {
        let mut world = restarted(Duration::from_secs(age));
        let withheld = tick_until(&mut world, |status| !status.withheld.is_empty()).as_secs();
        assert!((used..used + 40).contains(&withheld), "confirmed {age} s ago, used for {withheld} s");
        assert!(world.sites[0].known.is_empty());
    }
    // A cluster that lives confirms them in time, and its next silence has the whole time.
    let mut world = restarted(Duration::from_secs(1_000_000));
    want(&mut world, service("c1", 1, 0, 2));
    world.settle();
    assert!(status(&world).withheld.is_empty() && site(&mut world).known.len() == 1);
    world.cause(0, Fault::Outage);
    let withheld = tick_until(&mut world, |status| !status.withheld.is_empty()).as_secs();
    assert!((840..960).contains(&withheld), "{withheld}");
}

#[test]
fn renewed_certificates_cost_no_reconnection_and_no_list() {
    let mut world = ready();
    world.now = world.now.after(Duration::from_secs(61));
    run(&mut world, 400);
    let before = (status(&world), site(&mut world).listed);
    want(&mut world, ip(1, 3, 1));
    world.cause(0, Fault::Renewal);
    world.settle();
    let after = status(&world);
    assert_eq!((after.reconnections, site(&mut world).listed), (before.0.reconnections, before.1));
    assert_eq!((site(&mut world).resumed, after.last_failure), (5, before.0.last_failure));
    let ips = (after.applied[&Kind::Ips], before.0.applied[&Kind::Ips]);
    assert_eq!((ips.0.upserts - ips.1.upserts, ips.0.deletes), (1, ips.1.deletes));
}

#[test]
fn an_id_that_changes_or_is_used_twice_is_a_conflict_that_says_what_to_do() {
    let mut world = World::new(42, 2, Limits::default());
    for at in 0..2 {
        let (name, id) = (world.sites[at].name.clone(), world.sites[at].id);
        let (key, value) = identity(&name, id, 0, 1);
        world.sites[at].want.insert(key, value);
    }
    world.settle();
    assert!(status(&world).conflicts.is_empty());
    let publish_as = |world: &mut World, id: u32| {
        let site = &mut world.sites[1];
        let text = site.config_text().replace(&format!("\"id\":{}", site.id), &format!("\"id\":{id}"));
        site.publishing = false;
        site.excuse_all();
        site.etcd.put(&key::cluster_config("c2"), &text);
        world.cause(1, Fault::Cut);
        (0..3_000).for_each(|_| world.step(false));
        world.sites[1].core.status(world.now).conflicts
    };
    // That of another cluster, and our own.
    for (id, holder) in [(1, "c1"), (9, "own")] {
        let found = publish_as(&mut world, id);
        let [conflict] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!(
            (conflict.kind, conflict.key.as_str()),
            (ClusterConflictKind::ClusterId, &*id.to_string())
        );
        assert_eq!((conflict.with.as_deref(), conflict.chosen.as_deref()), (Some(holder), Some(holder)));
        assert!(conflict.remedy.contains("renumber"), "{conflict:?}");
    }
    // A free one: its identities still carry the old number.
    let found = publish_as(&mut world, 77);
    let [conflict] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((conflict.kind, conflict.key.as_str()), (ClusterConflictKind::IdChange, "77"));
    assert!(
        conflict.detail.contains("from 2 to 77") && conflict.detail.contains("1 entries"),
        "{conflict:?}"
    );
    assert!(conflict.remedy.contains("restart the agents, then the pods"), "{conflict:?}");
    // Back again: nobody renumbers twice.
    let found = publish_as(&mut world, 2);
    assert_eq!(found[0].kind, ClusterConflictKind::ClusterName, "{found:?}");
    // Each was counted when it began, and not at every look.
    let counted = &world.sites[1].core.status(world.now).conflicts_found;
    let of = |kind| counted.get(&kind).copied().unwrap_or(0);
    let all = ClusterConflictKind::ALL.map(of);
    assert_eq!(all, [2, 1, 2, 0], "{counted:?}");
    assert!(world.sites[0].core.status(world.now).conflicts.is_empty(), "the other one has none");
}

#[test]
fn services_that_are_published_as_slices_only_are_in_the_dump_as_services() {
    use crate::wire::slice::{Endpoint, Port, SERVICE_LABEL};
    use crate::wire::{EndpointSlice, Record};
    let mut world = ready();
    let mut slice = EndpointSlice::new("c1", 1, "shop", "web-1", true);
    slice.labels.insert(SERVICE_LABEL.into(), "web".into());
    let endpoint = |ip: &str, ready| Endpoint {
        addresses: vec![ip.parse().unwrap()],
        ready: Some(ready),
        ..Endpoint::default()
    };
    slice.endpoints = vec![endpoint("10.1.0.7", true), endpoint("10.1.0.8", false)];
    slice.ports = vec![Port { name: Some("http".into()), protocol: None, port: Some(8080) }];
    let value = Record::EndpointSlice(std::sync::Arc::new(slice)).encode().unwrap();
    let entry = (Kind::EndpointSlices, "shop/web-1", value.into());
    let (id, mut out) = (ClusterId::new(1, MaxClusters::C255).unwrap(), Vec::new());
    let now = world.now;
    site(&mut world).core.restore(now, id, [entry], |_| Duration::ZERO, &mut out);
    assert!(matches!(&out[0], Output::Change(Change::Upsert(Record::EndpointSlice(_)))), "{out:?}");
    let dump = site(&mut world).core.dump();
    let service = &dump.services["c1/shop/web"];
    assert_eq!(service["backends"]["10.1.0.7"]["http"]["Port"], 8080);
    assert!(service["backends"].get("10.1.0.8").is_none() && service["shared"] == true, "{service}");
    assert!(dump.services.contains_key("c1/shop/s0"));
}

#[test]
fn beats_are_those_of_the_cluster_itself_and_not_of_the_etcd_that_mirrors_it() {
    let mut world = ready();
    let beats = |world: &World| status(world).lag.map_or(0, |lag| lag.lag.count);
    site(&mut world).etcd.put(key::BEAT, "1700000000000000000");
    run(&mut world, 200);
    assert_eq!(beats(&world), 1);
    site(&mut world).core.published.as_mut().unwrap().capabilities.cached = true;
    site(&mut world).etcd.put(key::BEAT, "1700000005000000000");
    run(&mut world, 200);
    assert_eq!((beats(&world), status(&world).reconnections), (1, 0));
}
