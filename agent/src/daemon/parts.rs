//! The parts of `tombolo status`: from what was just seen to ready or not, why, and what to try. Pure.

use super::mesh_view::Conflict;
use super::node::Device;
use super::status::Part;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tombolo_base::prefix::Prefix;
use tombolo_base::reconcile::Progress;
use tombolo_bgp_node::{InstanceCache, InstancePeer};
use tombolo_clustermesh::certificate::date;
use tombolo_clustermesh::follower::ClusterStatus;
use tombolo_clustermesh::publisher::PublisherStatus;
use tombolo_ebpf::{LostEvents, MapUsage};
use tombolo_kubernetes::FolderReport;
use tombolo_netlink::Link;
use tombolo_service::pools::LbPool;
use tombolo_service::{LbAssignment, ServiceName, ServiceRow};
use tombolo_topology::NodeRow;
use tombolo_topology::plan::PathMtus;
use tombolo_tunnel::{Backend, DeviceState};

/// Names said in full; the rest is counted.
const NAMED: usize = 5;
/// A WireGuard handshake younger than this stands for a session in use (its keys are renewed every two minutes).
const FRESH_HANDSHAKE: Duration = Duration::from_secs(180);

/// The first few of many, and how many more there are.
fn some(all: &[String]) -> String {
    let shown = all.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
    match all.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown}; and {more} more"),
    }
}

/// Start-up, and the tasks.
pub(crate) fn agent(stage: &str, ended: &[String]) -> Vec<Part> {
    let start = match stage {
        "" => Part::ready("agent", "running"),
        text => Part::failing("agent", text, "wait, or look at the agent's log"),
    };
    let tasks = (!ended.is_empty())
        .then(|| Part::failing("tasks", some(ended), "restart the agent, and report the log: this is a bug"));
    std::iter::once(start).chain(tasks).collect()
}

/// The folder of manifests.
pub(crate) fn manifests(report: Option<&FolderReport>) -> Part {
    let Some(report) = report else {
        return Part::failing("manifests", "not read yet", "wait");
    };
    let (objects, files, problems) = (report.objects, report.files, report.problems.len());
    let detail = format!("{objects} objects in {files} files, {problems} problems");
    if report.complete {
        Part::ready("manifests", detail)
    } else {
        let remedy = "wait for the first complete read; check the folder's permissions";
        Part::failing("manifests", detail, remedy)
    }
}

/// The node's own object: what it was set up from is read once.
pub(crate) fn node(started: &NodeRow, now: Option<&NodeRow>) -> Part {
    let restart = "restart the agent: a node is set up at start only";
    let Some(now) = now else {
        let detail =
            format!("Node {} is no longer among the manifests; the agent goes on as before", started.name);
        return Part::failing("node", detail, "put it back");
    };
    let list = |row: &NodeRow| row.pod_cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if now.pod_cidrs != started.pod_cidrs {
        let detail = format!("pod CIDRs changed from {} to {} since the start", list(started), list(now));
        return Part::failing("node", detail, restart);
    }
    if now.addresses != started.addresses {
        return Part::failing("node", "the Node's addresses changed since the start", restart);
    }
    Part::ready("node", format!("pod CIDRs {}", list(started)))
}

/// The node's devices and MTUs.
pub(crate) fn devices(wanted: &[Device], found: &[Link], mtu: PathMtus) -> Part {
    let mut wrong = Vec::new();
    for device in wanted {
        match found.iter().find(|link| link.index == device.index) {
            None => wrong.push(format!("{} is gone", device.name)),
            Some(link) if !link.up => wrong.push(format!("{} is down", device.name)),
            Some(link) if !link.carrier => wrong.push(format!("{} has no carrier", device.name)),
            Some(link) if link.mtu != device.mtu => {
                wrong.push(format!("{} has MTU {}, at start {}", device.name, link.mtu, device.mtu))
            }
            Some(_) => {}
        }
    }
    if !wrong.is_empty() {
        let remedy =
            "bring the underlay up; restart the agent, which makes its devices and computes MTUs anew";
        return Part::failing("devices", some(&wrong), remedy);
    }
    let names: Vec<_> = wanted.iter().map(|device| format!("{} {}", device.name, device.mtu)).collect();
    let path = |family: &str, mtu: Option<u16>| mtu.map(|mtu| format!("{mtu} over {family}"));
    let paths: Vec<_> = path("IPv4", mtu.ipv4).into_iter().chain(path("IPv6", mtu.ipv6)).collect();
    Part::ready("devices", format!("up with MTU {}; to other nodes {}", names.join(", "), paths.join(", ")))
}

/// Where programs of the datapath should run, and whether they do.
#[derive(Clone, Debug)]
pub(crate) struct Hooks {
    /// The interface.
    pub(crate) name: String,
    /// Wanted on what it (receives, sends).
    pub(crate) wanted: (bool, bool),
    /// There by the kernel's word.
    pub(crate) found: (bool, bool),
}

impl Hooks {
    fn missing(&self) -> Option<String> {
        let side = match (self.wanted.0 && !self.found.0, self.wanted.1 && !self.found.1) {
            (true, true) => "",
            (true, false) => " (ingress)",
            (false, true) => " (egress)",
            (false, false) => return None,
        };
        Some(format!("{}{side}", self.name))
    }
}

/// A map that is this full, in percent, is told while there is time to do something.
const NEARLY_FULL: u64 = 85;

/// Whether a map will refuse entries soon, or does already.
pub(crate) fn is_nearly_full(map: &MapUsage) -> bool {
    !map.evicts() && map.percent() >= NEARLY_FULL
}

/// The maps that are nearly full, and what to raise.
fn nearly_full(usage: &[MapUsage]) -> Option<(String, String)> {
    let full = usage.iter().filter(|map| is_nearly_full(map));
    let said = |map: &MapUsage| {
        let text = format!("{} is {}% full ({} of {})", map.map, map.percent(), map.entries, map.capacity);
        (text, map.option().map(|option| format!("datapath.maps.{option}")))
    };
    let (texts, options): (Vec<String>, Vec<Option<String>>) = full.map(said).unzip();
    let options: BTreeSet<String> = options.into_iter().flatten().collect();
    let raise = options.into_iter().collect::<Vec<_>>().join(", ");
    (!texts.is_empty())
        .then(|| (some(&texts), format!("raise {raise} and restart the agent: nothing is lost")))
}

/// The programs and their maps: `configured` is the datapath's node row, or why it cannot be read.
pub(crate) fn datapath(configured: Result<bool, String>, hooks: &[Hooks], usage: &[MapUsage]) -> Part {
    match configured {
        Err(error) => return Part::failing("datapath", error, "is bpffs mounted, and is the agent root?"),
        Ok(false) => {
            let detail = "waiting for the node's configuration: pods' packets are dropped (202)";
            return Part::failing("datapath", detail, "wait");
        }
        Ok(true) => {}
    }
    let missing: Vec<String> = hooks.iter().filter_map(Hooks::missing).collect();
    if missing.is_empty() {
        let detail = format!("programs run on {} interfaces", hooks.len());
        // It works as it is, so the part is ready; what is about to happen stands beside it.
        return match nearly_full(usage) {
            Some((full, remedy)) => Part { remedy, ..Part::ready("datapath", format!("{detail}; {full}")) },
            None => Part::ready("datapath", detail),
        };
    }
    let remedy = "restart the agent, which hooks them again; find out who removed them (`bpftool net`)";
    Part::failing("datapath", format!("no program runs on {}", some(&missing)), remedy)
}

/// The WireGuard device: `now` is the time since 1970.
pub(crate) fn wireguard(
    backend: Backend,
    state: Result<DeviceState, String>,
    wanted_peers: usize,
    now: Duration,
) -> Part {
    let backend = format!("{backend:?}").to_lowercase();
    let state = match state {
        Ok(state) => state,
        Err(error) => {
            let remedy =
                "restart the agent; the userspace backend logs to wireguard.log beside the agent's socket";
            return Part::failing("wireguard", format!("{backend} backend: {error}"), remedy);
        }
    };
    let fresh = |handshake: &Duration| now.saturating_sub(*handshake) < FRESH_HANDSHAKE;
    let sessions = state.peers.values().filter_map(|peer| peer.last_handshake).filter(fresh).count();
    let port = state.listen_port.map_or_else(|| "no port".to_owned(), |port| format!("port {port}"));
    let peers = state.peers.len();
    let detail =
        format!("{backend} backend, {port}, {peers} of {wanted_peers} peers, {sessions} sessions in use");
    if peers < wanted_peers || state.listen_port.is_none() {
        let remedy =
            "look at reconcile/wireguard-peers (`tombolo status --verbose`); do all nodes publish a key?";
        return Part::failing("wireguard", detail, remedy);
    }
    Part::ready("wireguard", detail)
}

/// The stream of flow events.
pub(crate) fn flows(seen: u64, lost: Result<LostEvents, String>, reading: bool) -> Part {
    if !reading {
        return Part::failing(
            "flows",
            "the event ring is not read",
            "restart the agent; traffic is not affected",
        );
    }
    let LostEvents { full, limited } = match lost {
        Err(error) => return Part::failing("flows", error, "is bpffs mounted, and is the agent root?"),
        Ok(lost) => lost,
    };
    if (full, limited) == (0, 0) {
        return Part::ready("flows", format!("{seen} events seen, none lost"));
    }
    // Under load some are always lost; that does not make the part useless.
    let detail = format!(
        "{seen} events seen in this life; since the maps were made {full} lost for want of room, {limited} beyond what \
         one interface may tell in a second"
    );
    let remedy = if full > 0 {
        "events come faster than they are read; counters (`/metrics`) lose nothing"
    } else {
        "`tombolo flows` shows a part of that interface's; raise datapath.events_per_second for more"
    };
    Part { remedy: remedy.to_owned(), ..Part::ready("flows", detail) }
}

/// LoadBalancer addresses; `problems` is what the elected agent found.
pub(crate) fn load_balancers(
    services: &[ServiceRow],
    pools: &[LbPool],
    assigned: &[LbAssignment],
    problems: &[String],
) -> Part {
    let served: Vec<&ServiceName> =
        services.iter().filter(|row| tombolo_service::pools::is_served(row)).map(|row| &row.name).collect();
    let given: BTreeSet<&ServiceName> =
        assigned.iter().filter(|row| !row.addresses.is_empty()).map(|row| &row.name).collect();
    let without: Vec<String> = served
        .iter()
        .filter(|name| !given.contains(*name))
        .map(|name| format!("{}/{}", name.namespace, name.name))
        .collect();
    let detail = format!("{} of {} services have an address", served.len() - without.len(), served.len());
    if !problems.is_empty() {
        let remedy = "add or widen a CiliumLoadBalancerIPPool that selects the service, or ask for a free address in it";
        return Part::failing("load-balancer", format!("{detail}: {}", some(problems)), remedy);
    }
    if without.is_empty() || pools.is_empty() {
        let pools = if pools.is_empty() { ", there is no pool" } else { "" };
        return Part::ready("load-balancer", format!("{detail}{pools}"));
    }
    let remedy = "wait for the elected agent, whose status (part etcd says `elected`) has the reason";
    Part::failing("load-balancer", format!("{detail}; none: {}", some(&without)), remedy)
}

/// Probes of other clusters' backends, if a service asks for them. Backends that fail are the other cluster's matter: new
/// flows go elsewhere, and this node is ready.
pub(crate) fn probes((probed, failing): (usize, usize)) -> Option<Part> {
    let part = || {
        Part::ready(
            "probes",
            format!("{probed} backends of other clusters are probed, {failing} do not answer"),
        )
    };
    let remedy = || "tombolo show failed-probes".to_owned();
    (probed > 0).then(|| if failing > 0 { Part { remedy: remedy(), ..part() } } else { part() })
}

/// What the endpoint store says of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Endpoints {
    /// How many are ready.
    pub(crate) ready: usize,
    /// Pods being made or taken away.
    pub(crate) unready: Vec<String>,
    /// Pods outside the node's pod CIDRs.
    pub(crate) strays: Vec<String>,
    /// Pool, in use, usable.
    pub(crate) addresses: Vec<(Prefix, usize, u64)>,
}

/// Endpoints and address pools.
pub(crate) fn endpoints(seen: &Endpoints) -> Part {
    let usage: Vec<_> =
        seen.addresses.iter().map(|(prefix, used, all)| format!("{used}/{all} of {prefix}")).collect();
    let detail = format!("{} ready, addresses {}", seen.ready, usage.join(", "));
    let full = |(_, used, all): &&(Prefix, usize, u64)| u64::try_from(*used).is_ok_and(|used| used >= *all);
    if let Some((prefix, ..)) = seen.addresses.iter().find(full) {
        let remedy = "delete pods, or give the node a larger CIDR in spec.podCIDRs";
        return Part::failing("endpoints", format!("{detail}; {prefix} is used up"), remedy);
    }
    if !seen.strays.is_empty() {
        let text = format!("{detail}; outside the node's pod CIDRs: {}", some(&seen.strays));
        let remedy = "delete these pods so that they come back with an address of the new CIDR; until then other nodes \
                      may not reach them";
        return Part::failing("endpoints", text, remedy);
    }
    if !seen.unready.is_empty() {
        let text = format!("{detail}; being made or taken away: {}", some(&seen.unready));
        return Part::failing(
            "endpoints",
            text,
            "wait; if it stays, the parts etcd and reconcile/… say what is missing",
        );
    }
    Part::ready("endpoints", detail)
}

/// A remote cluster.
pub(crate) fn mesh(cluster: &ClusterStatus) -> Part {
    let name = format!("mesh/{}", cluster.name);
    let stale = cluster.stale_secs.map(|secs| format!(" (stale for {secs}s)")).unwrap_or_default();
    let plain = if cluster.plaintext { ", PLAINTEXT" } else { "" };
    let refused = match cluster.refused_now {
        0 => String::new(),
        count => format!(", {count} entries refused"),
    };
    let detail = format!("{}{stale}{plain}{refused}", cluster.status);
    if cluster.ready {
        Part::ready(name, detail)
    } else {
        Part::failing(name, detail, "tombolo mesh troubleshoot")
    }
}

/// What several clusters claim: nothing stops for it, so the part is ready, and says where to look.
pub(crate) fn conflicts(all: &[Conflict]) -> Part {
    if all.is_empty() {
        return Part::ready("conflicts", "no two clusters claim the same");
    }
    let counted = super::mesh_view::counted(all).into_iter().filter(|(_, count)| *count > 0);
    let counted: Vec<_> = counted.map(|(kind, count)| format!("{count} {kind}")).collect();
    let total: u64 = all.iter().map(|conflict| conflict.count).sum();
    let detail = format!("{total} between clusters, each side's claim is judged: {}", counted.join(", "));
    Part { remedy: "tombolo mesh conflicts".to_owned(), ..Part::ready("conflicts", detail) }
}

/// The own cluster's etcd.
pub(crate) fn publisher(status: &PublisherStatus) -> Part {
    let role = if status.leader { "elected" } else { "follower" };
    let plain = if status.plaintext { ", PLAINTEXT" } else { "" };
    let detail = format!("{}{plain}, {role}, {} keys of this node", status.status, status.node_keys);
    if status.connected && status.published {
        Part::ready("etcd", detail)
    } else {
        Part::failing("etcd", detail, "check the cluster's etcd, its address and the certificates")
    }
}

/// The BGP sessions.
pub(crate) fn bgp(peers: &[InstancePeer]) -> Vec<Part> {
    let wide = |secs: u64| i64::try_from(secs).unwrap_or(i64::MAX);
    let part = |peer: &InstancePeer| {
        let state = &peer.state;
        let name = format!("bgp/{}/{}", peer.instance, state.name);
        let text = format!("{:?} with {} AS {}", state.state, state.address, state.peer_asn);
        if let Some(why) = &state.shutdown {
            // As the operator wants it.
            let since = peer.shutdown_since_unix_secs.map(|at| format!(" since {}", date(wide(at))));
            let why = if why.is_empty() { String::new() } else { format!(": {why}") };
            let text = format!("shut down by the operator{}{why}", since.unwrap_or_default());
            Part { remedy: format!("tombolo bgp start {}", state.name), ..Part::ready(name, text) }
        } else if state.state == tombolo_bgp::State::Established {
            Part::ready(name, text)
        } else {
            let error = state.last_error.clone().unwrap_or_default();
            let remedy = "can the router be reached, and do its AS numbers and addresses match?";
            Part::failing(name, format!("{text} {error}"), remedy)
        }
    };
    peers.iter().map(part).collect()
}

/// The RPKI caches of the instances that have none to judge routes by.
pub(crate) fn rpki(caches: &[InstanceCache]) -> Vec<Part> {
    let mut instances: BTreeMap<&str, Vec<&InstanceCache>> = BTreeMap::new();
    for cache in caches {
        instances.entry(&cache.instance).or_default().push(cache);
    }
    instances.retain(|_, caches| !caches.iter().any(|cache| cache.state.is_usable()));
    let part = |(instance, caches): (&str, Vec<&InstanceCache>)| {
        let one = |cache: &&InstanceCache| {
            let error = cache.state.last_error.as_deref().unwrap_or("no answer yet");
            format!("{} {}: {error}", cache.state.address, cache.state.state.name())
        };
        let texts: Vec<String> = caches.iter().map(one).collect();
        let detail =
            format!("no RPKI cache is usable, so no route is valid or invalid; {}", texts.join("; "));
        let remedy = "can the caches of bgp.rpki be reached? see tombolo bgp rpki";
        Part::failing(format!("bgp/{instance}/rpki"), detail, remedy)
    };
    instances.into_iter().map(part).collect()
}

/// A reconciler.
pub(crate) fn reconciler(table: &str, progress: Progress) -> Part {
    let name = format!("reconcile/{table}");
    let detail = format!("{} pending, {} failed", progress.pending, progress.failed);
    match progress.example {
        None if progress.pending == 0 => Part::ready(name, "in step"),
        None => Part::ready(name, detail),
        Some(example) => {
            let remedy = "it is tried again; the text says what is missing";
            Part::failing(name, format!("{detail}: {example}"), remedy)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tombolo_base::ids::{ClusterId, MaxClusters};
    use tombolo_base::source::Source;

    fn device(index: u32, mtu: u32) -> Device {
        Device { name: format!("dev{index}"), index, mtu, hooks: (true, true) }
    }

    fn link(index: u32, mtu: u32) -> Link {
        Link {
            index,
            name: format!("dev{index}"),
            kind: None,
            mac: None,
            mtu,
            up: true,
            carrier: true,
            running: true,
            no_arp: false,
            loopback: false,
            peer_index: None,
            controller: None,
            vxlan: None,
            stats: tombolo_netlink::LinkStats::default(),
        }
    }

    #[test]
    fn devices_that_changed_since_the_start_are_named() {
        let mtu = PathMtus { ipv4: Some(1450), ipv6: None };
        let wanted = [device(2, 1500), device(3, 1450)];
        let fine = devices(&wanted, &[link(2, 1500), link(3, 1450)], mtu);
        assert!(fine.ready && fine.detail.ends_with("1450 over IPv4"), "{fine:?}");
        let down = Link { up: false, ..link(3, 1450) };
        let bad = devices(&wanted, &[link(2, 1400), down], mtu);
        assert!(!bad.ready && !bad.remedy.is_empty(), "{bad:?}");
        assert_eq!(bad.detail, "dev2 has MTU 1400, at start 1500; dev3 is down");
        assert_eq!(devices(&wanted, &[link(2, 1500)], mtu).detail, "dev3 is gone");
    }

    #[test]
    fn a_missing_program_is_named_with_its_side() {
        let hook = |name: &str, found| Hooks { name: name.into(), wanted: (true, true), found };
        let one_way = Hooks { wanted: (true, false), ..hook("tombolo_wg", (true, false)) };
        assert!(datapath(Ok(true), &[hook("eth1", (true, true)), one_way], &[]).ready);
        let bad = datapath(Ok(true), &[hook("eth1", (true, false)), hook("tb1", (false, false))], &[]);
        assert_eq!((bad.ready, bad.detail.as_str()), (false, "no program runs on eth1 (egress); tb1"));
        assert!(!datapath(Ok(false), &[], &[]).ready && !datapath(Err("no bpffs".into()), &[], &[]).ready);
    }

    #[test]
    fn a_map_is_told_before_it_is_full() {
        let map = |map, entries| MapUsage { map, entries, capacity: 1000 };
        let seen = |usage: &[MapUsage]| datapath(Ok(true), &[], usage);
        let calm = seen(&[map("tb_ct", 849), map("tb_ct_half", 1000), map("tb_nat_half", 1000)]);
        assert!(calm.ready && calm.remedy.is_empty() && !calm.detail.contains("full"), "{calm:?}");
        let told = seen(&[map("tb_ct", 850), map("tb_nat", 1000), map("tb_rev_nat", 10)]);
        assert!(told.ready, "it still works");
        assert!(told.detail.contains("tb_ct is 85% full (850 of 1000); tb_nat is 100% full"), "{told:?}");
        assert!(told.remedy.contains("raise datapath.maps.conntrack, datapath.maps.nat and"), "{told:?}");
    }

    #[test]
    fn a_silent_wireguard_device_and_missing_peers_are_failures() {
        let now = Duration::from_secs(10_000);
        let silent = wireguard(Backend::Userspace, Err("no answer".into()), 1, now);
        assert!(
            !silent.ready && silent.detail.contains("userspace") && silent.remedy.contains("wireguard.log")
        );
    }

    #[test]
    fn full_pools_strays_and_stuck_pods_are_failures() {
        let pool = |used| vec![("10.1.1.0/29".parse().unwrap(), used, 5)];
        let fine = Endpoints { ready: 2, addresses: pool(2), ..Endpoints::default() };
        assert_eq!(endpoints(&fine).detail, "2 ready, addresses 2/5 of 10.1.1.0/29");
        let full = Endpoints { addresses: pool(5), ..fine.clone() };
        let stray = Endpoints { strays: vec!["default/old".into()], ..fine.clone() };
        let stuck = Endpoints { unready: vec!["default/new".into()], ..fine };
        for (seen, text) in [(full, "used up"), (stray, "default/old"), (stuck, "default/new")] {
            let part = endpoints(&seen);
            assert!(!part.ready && part.detail.contains(text) && !part.remedy.is_empty(), "{part:?}");
        }
    }

    #[test]
    fn caches_are_a_failure_only_where_none_of_an_instance_is_usable() {
        let cache = |instance: &str, age_secs| InstanceCache {
            instance: instance.into(),
            state: tombolo_bgp::rpki::CacheState {
                address: "[2001:db8::1]:323".parse().unwrap(),
                state: tombolo_bgp::rpki::CachePhase::Waiting,
                version: 1,
                session: None,
                serial: None,
                ipv4: 0,
                ipv6: 0,
                age_secs,
                expires_secs: None,
                last_error: Some("connection refused".into()),
            },
        };
        assert!(rpki(&[]).is_empty() && rpki(&[cache("a", None), cache("a", Some(3))]).is_empty());
        let parts = rpki(&[cache("a", Some(3)), cache("b", None)]);
        let [part] = parts.as_slice() else { panic!("{parts:?}") };
        assert_eq!((part.name.as_str(), part.ready), ("bgp/b/rpki", false));
        assert!(part.detail.ends_with("[2001:db8::1]:323 waiting: connection refused"), "{part:?}");
    }

    #[test]
    fn lost_events_and_dead_tasks_are_shown() {
        let none = LostEvents::default();
        assert!(flows(7, Ok(none), true).remedy.is_empty());
        let lossy = flows(7, Ok(LostEvents { full: 3, ..none }), true);
        assert!(
            lossy.ready && lossy.detail.contains("3 lost") && lossy.remedy.contains("faster"),
            "{lossy:?}"
        );
        let limited = flows(7, Ok(LostEvents { limited: 4, ..none }), true);
        assert!(
            limited.detail.contains("4 beyond") && limited.remedy.contains("events_per_second"),
            "{limited:?}"
        );
        assert!(!flows(7, Ok(none), false).ready);
        assert_eq!(agent("", &[]).len(), 1);
        let parts = agent("", &["flows ended".to_owned()]);
        assert!(parts.iter().any(|part| part.name == "tasks" && !part.ready && part.detail == "flows ended"));
    }

    #[test]
    fn a_node_object_that_changed_is_a_reason_to_restart() {
        let row = NodeRow {
            source: Source::Manifests,
            cluster: "east".parse().unwrap(),
            cluster_id: ClusterId::new(1, MaxClusters::C255).unwrap(),
            name: "e1".into(),
            addresses: Vec::new(),
            pod_cidrs: vec!["10.1.1.0/24".parse().unwrap()],
            wireguard_key: None,
            encryption_key: 0,
            labels: Default::default(),
            ready: None,
            health: Default::default(),
        };
        let labelled = NodeRow { ready: Some(true), ..row.clone() };
        assert!(node(&row, Some(&labelled)).ready);
        let moved = NodeRow { pod_cidrs: vec!["10.9.0.0/24".parse().unwrap()], ..row.clone() };
        let part = node(&row, Some(&moved));
        assert!(
            !part.ready && part.detail.contains("10.9.0.0/24") && part.remedy.contains("restart"),
            "{part:?}"
        );
        assert!(!node(&row, None).ready);
    }
}
