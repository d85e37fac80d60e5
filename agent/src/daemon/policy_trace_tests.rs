use super::*;
use crate::daemon::policy_impact::{ImpactQuery, impact};
use crate::daemon::tables::{Desired, DesiredWriters, Intent, IntentWriters};
use std::path::Path;
use std::sync::Arc;
use tombolo_base::ids::{ClusterId, ClusterName, MaxClusters};
use tombolo_base::labels::Labels;
use tombolo_base::source::Source;
use tombolo_kubernetes::{ClusterIdentity, read_manifests};
use tombolo_observe::flow::{Flow, L4, Peer};
use tombolo_policy::Landmarks;
use tombolo_policy::compile::{Change, Compiler, Inputs, NamedPorts};
use tombolo_topology::{CidrIdentity, EndpointRow, EndpointState, IdentityRow};

const WEB: u32 = 70_001;
const CLIENT: u32 = 70_002;

const ALLOW: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from:
    - podSelector: {matchLabels: {app: client}}
    - ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}
    ports: [{port: 80}]
";

fn cluster() -> ClusterIdentity {
    let id = ClusterId::new(1, MaxClusters::C255).unwrap();
    ClusterIdentity { name: ClusterName::new("east").unwrap(), id }
}

fn endpoint(id: u16, app: &str, identity: u32) -> EndpointRow {
    EndpointRow {
        id,
        namespace: "shop".into(),
        pod: format!("{app}-1").into(),
        container_id: "c".into(),
        addresses: vec![format!("10.1.0.{id}").parse().unwrap()],
        host_interface: "lxc".into(),
        ifindex: 1,
        mac: [0; 6],
        host_mac: [0; 6],
        identity: Some(IdentityId(identity)),
        labels: labels(app),
        port_mappings: Default::default(),
        queued: false,
        state: EndpointState::Ready,
    }
}

fn labels(app: &str) -> Labels {
    let (cluster, namespace) = (tombolo_base::labels::CLUSTER_KEY, tombolo_base::labels::NAMESPACE_KEY);
    Labels::k8s([("app", app), (cluster, "east"), (namespace, "shop")])
}

struct World {
    intent: Intent,
    desired: Desired,
    _pens: (IntentWriters, DesiredWriters),
}

/// `web` and `client` under the policies of a text, compiled.
fn world(text: &str) -> World {
    let (kube, problems) = read_manifests(Path::new("now.yaml"), text, &cluster());
    assert!(problems.is_empty(), "{problems:?}");
    let (intent, sources) = Intent::new(kube);
    let (desired, plans) = Desired::new();
    for (id, app, identity) in [(1, "web", WEB), (2, "client", CLIENT)] {
        sources.endpoints.upsert(endpoint(id, app, identity));
        let row = IdentityRow { source: Source::Local, id: IdentityId(identity), labels: labels(app) };
        sources.identities.upsert(row);
    }
    let mut compiler = Compiler::new(cluster().name);
    let inputs = Inputs {
        rules: &intent.kube.rules.snapshot(),
        groups: &intent.kube.cidr_groups.snapshot(),
        identities: &intent.identities.snapshot(),
        endpoints: &intent.endpoints.snapshot(),
        named_ports: &NamedPorts::new(),
        may_shrink: true,
    };
    let delta = compiler.update(&inputs, &Change::Everything);
    for row in delta.policies {
        plans.policies.policies.upsert(row);
    }
    for row in delta.cookies {
        plans.policies.cookies.upsert(row);
    }
    for (prefix, identity) in delta.prefixes {
        plans.policies.cidrs.upsert(CidrIdentity { source: Source::Planner, prefix, identity });
    }
    World { intent, desired, _pens: (sources, plans) }
}

impl World {
    fn tables(&self) -> Tables {
        let node = (Labels::k8s([("role", "edge")]), Landmarks::default());
        Tables::read(cluster().name, node, &self.intent, &self.desired)
    }

    fn trace(&self, from: &str, to: &str, port: u16) -> Trace {
        let query = TraceQuery { from: from.to_owned(), to: to.to_owned(), protocol: 6, port };
        trace(&self.tables(), &query).unwrap()
    }
}

#[test]
fn a_trace_names_the_rule_and_what_would_change_it() {
    let world = world(ALLOW);
    let allowed = world.trace("shop/client-1", "10.1.0.1", 80);
    assert!(allowed.allowed);
    let ways: Vec<_> = allowed.ways.iter().map(|way| (way.direction.as_str(), way.reason)).collect();
    assert_eq!(ways, [("egress", 0), ("ingress", 0)]);
    let way = &allowed.ways[1];
    assert_eq!(way.by, ["NetworkPolicy shop/web ingress rule 0"]);
    assert_eq!((way.matching.len(), way.entries.len()), (1, 1));
    assert_eq!(way.entries[0].rules, way.by);
    assert_eq!(way.would_change.len(), 1, "entries and rules agree: {:?}", way.would_change);
    let text = "without NetworkPolicy shop/web ingress rule 0: dropped: default deny, and nothing allows it (NetworkPolicy shop/web)";
    assert_eq!(way.would_change[0], text);

    let dropped = world.trace("shop/client-1", "shop/web-1", 81);
    let way = &dropped.ways[1];
    assert_eq!((dropped.allowed, way.reason, way.entries.len()), (false, 133, 0));
    assert_eq!(way.by, ["NetworkPolicy shop/web"]);
    assert!(
        way.would_change[0].contains("an ingress rule that allows shop/client-1"),
        "{:?}",
        way.would_change
    );
    assert!(way.would_change[1].ends_with("allowed: no policy decides it"), "{:?}", way.would_change);
}

#[test]
fn addresses_are_known_by_the_prefixes_of_rules() {
    let world = world(ALLOW);
    for (from, allowed) in [("192.0.2.7", true), ("192.0.2.200", false), ("world", false)] {
        let trace = world.trace(from, "shop/web-1", 80);
        assert_eq!(trace.allowed, allowed, "{from}");
        assert_eq!(trace.ways[0].would_change.len(), if allowed { 1 } else { 2 }, "{from}: both agree");
        assert_eq!((trace.ways.len(), trace.notes.len()), (1, 1), "{from} is no pod");
    }
    // Of the node itself: its own policy, and that of the pod, which is never asked.
    let trace_of_host = world.trace("host", "shop/web-1", 80);
    let ways: Vec<_> = trace_of_host.ways.iter().map(|way| (way.subject.as_str(), way.allowed)).collect();
    assert_eq!(ways, [("host", true), ("shop/web-1", true)]);
    assert!(trace_of_host.ways[1].outcome.contains("always reaches its own pods"));
    let query = TraceQuery { from: "shop/nobody".to_owned(), to: "host".to_owned(), protocol: 6, port: 1 };
    assert!(trace(&world.tables(), &query).unwrap_err().contains("no pod shop/nobody"));
}

/// A table that is behind the rules is told of.
#[test]
fn entries_that_say_otherwise_are_told() {
    let world = world(ALLOW);
    let key = tombolo_policy::PolicyKind::NetworkPolicy;
    let row = world.intent.kube.rules.snapshot().iter().find(|row| row.kind == key).cloned().unwrap();
    let mut tables = world.tables();
    tables.rules = vec![RuleRow { ingress: None, ..row }];
    let query =
        TraceQuery { from: "shop/client-1".to_owned(), to: "shop/web-1".to_owned(), protocol: 6, port: 81 };
    let way = trace(&tables, &query).unwrap().ways.remove(1);
    assert!(way.would_change.last().unwrap().starts_with("the compiled entries say dropped"));
}

fn flow(from: u8, to: u8, port: u16, reply: bool) -> Arc<Flow> {
    let end = |n: u8, port| {
        let identity = if n == 1 { WEB } else { CLIENT };
        Peer { ip: format!("10.1.0.{n}"), port, identity, ..Peer::default() }
    };
    Arc::new(Flow {
        time: 1,
        node: "n1".to_owned(),
        event: "trace".into(),
        verdict: "FORWARDED".to_owned(),
        trace_point: "to-endpoint".to_owned(),
        source: end(from, 40_000),
        destination: end(to, port),
        l4: L4 { protocol: "TCP".to_owned(), ..L4::default() },
        reply,
        new: true,
        length: 60,
        ..Flow::default()
    })
}

#[test]
fn an_impact_lists_what_a_file_would_cut_and_open() {
    let world = world(ALLOW);
    let flows =
        [flow(2, 1, 80, false), flow(2, 1, 80, false), flow(1, 2, 40_000, true), flow(2, 1, 81, false)];
    let ask = |text: String| {
        impact(&world.tables(), &cluster(), &ImpactQuery { file: "new.yaml".to_owned(), text }, &flows)
    };
    // The same object, with another port.
    let found = ask(ALLOW.replace("port: 80", "port: 81"));
    assert_eq!((found.looked_at, found.changes.len(), found.objects.len()), (2, 2, 1));
    let cut = &found.changes[0];
    assert_eq!((cut.cut, cut.seen, cut.direction.as_str()), (true, 2, "ingress"));
    assert_eq!(cut.by, ["NetworkPolicy shop/web"]);
    assert!(!found.changes[1].cut && found.changes[1].to.ends_with(":81"));
    assert_eq!(ask(ALLOW.to_owned()).changes.len(), 0, "as it is");
    assert!(!ask("kind: [".to_owned()).problems.is_empty());
}
