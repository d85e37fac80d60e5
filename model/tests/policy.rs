//! The specification of policies against what the compiler makes of them: random rules of all kinds, identities and flows.
//!
//! `TOMBOLO_CASES` says how many sets of rules (default 500), `TOMBOLO_SEED` where to begin. Each set is asked for a few
//! thousand flows: every pair of parties, both directions, all ports that a rule could tell apart.

#![cfg(test)]

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_base::ids::{ClusterName, IdentityId};
use tombolo_base::labels::{CLUSTER_KEY, Labels, NAMESPACE_KEY};
use tombolo_base::source::Source;
use tombolo_base::table::Table;
use tombolo_model::policy::{Outcome, Party, Policies, Question};
use tombolo_model::{Reason, WORLD};
use tombolo_policy::compile::{Change, Compiler, Inputs};
use tombolo_policy::{
    Action, CidrGroupRef, CidrGroupRow, Direction, DirectionRules, EndpointSelector, Entity, LabelSelector,
    Landmarks, NamedPort, PeerSelector, PolicyKind, PolicyRow, PortMatch, PortRule, Requirement, RuleBlock,
    RuleRow, Subject, Tier,
};
use tombolo_topology::{EndpointRow, EndpointState, IdentityRow};

const APPS: [&str; 3] = ["web", "db", "client"];
const NAMESPACES: [&str; 2] = ["shop", "bank"];
const NETS: [&str; 9] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.0/24",
    "10.1.2.3/32",
    "::/0",
    "fd00::/16",
    "fd00:1::/32",
    "192.0.2.0/24",
];
const ADDRESSES: [&str; 9] = [
    "10.1.2.3",
    "10.1.2.4",
    "10.1.9.9",
    "10.9.9.9",
    "192.0.2.1",
    "198.51.100.1",
    "fd00:1::1",
    "fd00:2::1",
    "2001:db8::1",
];
const FIXED: [IdentityId; 7] = [
    IdentityId::HOST,
    IdentityId::UNMANAGED,
    IdentityId::HEALTH,
    IdentityId::INIT,
    IdentityId::REMOTE_NODE,
    IdentityId::KUBE_APISERVER,
    IdentityId::INGRESS,
];
/// Flows as (protocol, port that the datapath sees): for ICMP 0 is a request, anything else an answer.
const ASKED: [(u8, u16); 15] = [
    (6, 0),
    (6, 1),
    (6, 79),
    (6, 80),
    (6, 95),
    (6, 8080),
    (6, 8443),
    (6, 65535),
    (17, 53),
    (17, 80),
    (132, 80),
    (1, 0),
    (1, 9),
    (58, 0),
    (58, 9),
];

fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text}: give a number")),
        Err(_) => default,
    }
}

fn one_of<T: Clone + std::fmt::Debug + 'static>(all: &[T]) -> impl Strategy<Value = T> + use<T> {
    prop::sample::select(all.to_vec())
}

fn net() -> impl Strategy<Value = tombolo_base::prefix::Prefix> {
    one_of(&NETS).prop_map(|text| text.parse().unwrap())
}

fn requirement() -> impl Strategy<Value = Requirement> {
    let keys = [
        "any:app".to_owned(),
        "k8s:app".to_owned(),
        format!("k8s:{NAMESPACE_KEY}"),
        format!("k8s:{CLUSTER_KEY}"),
        "reserved:host".to_owned(),
        "any:world".to_owned(),
        "reserved:world-ipv6".to_owned(),
        "reserved:kube-apiserver".to_owned(),
        "reserved:remote-node".to_owned(),
    ];
    let values =
        prop::collection::btree_set(one_of(&["web", "db", "shop", "bank", "east", "west", ""]), 0..3);
    (one_of(&keys), values, 0u8..4).prop_map(|(key, values, kind)| {
        let (key, values): (Arc<str>, BTreeSet<Arc<str>>) =
            (key.into(), values.into_iter().map(Arc::from).collect());
        match kind {
            0 => Requirement::In(key, values),
            1 => Requirement::NotIn(key, values),
            2 => Requirement::Exists(key),
            _ => Requirement::DoesNotExist(key),
        }
    })
}

fn selector() -> impl Strategy<Value = EndpointSelector> {
    let app = prop::option::of(one_of(&APPS));
    let namespace = prop::option::of(one_of(&NAMESPACES));
    (app, namespace, prop::collection::btree_set(requirement(), 0..2)).prop_map(
        |(app, namespace, expressions)| {
            let app = app.map(|app| ("any:app".into(), app.into()));
            let namespace = namespace.map(|name| (format!("k8s:{NAMESPACE_KEY}").into(), name.into()));
            EndpointSelector(LabelSelector {
                labels: app.into_iter().chain(namespace).collect(),
                expressions,
            })
        },
    )
}

fn entity() -> impl Strategy<Value = Entity> {
    one_of(&[
        Entity::All,
        Entity::World,
        Entity::WorldIpv4,
        Entity::WorldIpv6,
        Entity::Cluster,
        Entity::Host,
        Entity::RemoteNode,
        Entity::Init,
        Entity::Health,
        Entity::Unmanaged,
        Entity::KubeApiserver,
        Entity::Ingress,
        Entity::None,
    ])
}

fn office() -> LabelSelector {
    LabelSelector { labels: [("kind".into(), "office".into())].into(), ..LabelSelector::default() }
}

fn edge() -> LabelSelector {
    LabelSelector { labels: [("role".into(), "edge".into())].into(), ..LabelSelector::default() }
}

/// What the node is labelled with.
fn node() -> Labels {
    Labels::k8s([("role", "edge")])
}

fn peer() -> impl Strategy<Value = PeerSelector> {
    let except = || prop::collection::btree_set(net(), 0..3);
    let group = one_of(&[
        CidrGroupRef::Name("a".into()),
        CidrGroupRef::Name("gone".into()),
        CidrGroupRef::Labels(office()),
    ]);
    prop_oneof![
        4 => selector().prop_map(PeerSelector::Endpoints),
        2 => entity().prop_map(PeerSelector::Entity),
        4 => (net(), except()).prop_map(|(prefix, except)| PeerSelector::Cidr { prefix, except }),
        2 => (group, except()).prop_map(|(group, except)| PeerSelector::CidrGroup { group, except }),
        1 => one_of(&[LabelSelector::default(), office()]).prop_map(PeerSelector::Nodes),
    ]
}

fn port() -> impl Strategy<Value = PortRule> {
    let end = || one_of(&[0u16, 1, 2, 53, 79, 80, 81, 96, 8000, 8080, 65534, 65535]);
    let of_ports = prop_oneof![
        1 => Just(PortMatch::All),
        4 => (end(), end()).prop_map(|(first, last)| PortMatch::Range(first, last)),
        2 => one_of(&["http", "dns", "gone"]).prop_map(|name| PortMatch::Named(name.into())),
    ];
    let icmp = prop_oneof![Just(PortMatch::All), one_of(&[0u8, 8, 128, 129]).prop_map(PortMatch::IcmpType),];
    prop_oneof![
        5 => (one_of(&[0u8, 6, 17, 132]), of_ports).prop_map(|(protocol, port)| PortRule { protocol, port }),
        1 => (one_of(&[1u8, 58]), icmp).prop_map(|(protocol, port)| PortRule { protocol, port }),
    ]
}

fn block() -> impl Strategy<Value = RuleBlock> {
    let action = one_of(&[Action::Allow, Action::Allow, Action::Deny, Action::Pass]);
    let priority = one_of(&[0u32, 1, 1, 7, 0x00FF_FFFE, u32::MAX]);
    let peers = prop::option::weighted(0.8, prop::collection::btree_set(peer(), 0..3));
    let ports = prop::option::weighted(0.6, prop::collection::btree_set(port(), 0..3));
    (action, priority, peers, ports).prop_map(|(action, priority, peers, ports)| RuleBlock {
        action,
        priority,
        peers,
        ports,
        name: None,
    })
}

fn side() -> impl Strategy<Value = Option<DirectionRules>> {
    let blocks = prop::collection::vec(block(), 0..4);
    prop::option::of(
        (any::<bool>(), blocks).prop_map(|(default_deny, blocks)| DirectionRules { default_deny, blocks }),
    )
}

fn rule() -> impl Strategy<Value = RuleRow> {
    let subject = prop_oneof![
        9 => selector().prop_map(Subject::Pods),
        2 => one_of(&[LabelSelector::default(), office(), edge()]).prop_map(Subject::Nodes),
    ];
    (one_of(&Tier::ALL), subject, side(), side()).prop_map(|(tier, subject, ingress, egress)| RuleRow {
        source: Source::Manifests,
        kind: PolicyKind::CiliumNetworkPolicy,
        namespace: "shop".into(),
        name: "r".into(),
        spec: 0,
        tier,
        subject,
        ingress,
        egress,
    })
}

fn group(name: &str, kind: &str) -> impl Strategy<Value = CidrGroupRow> + use<> {
    let (name, kind): (Arc<str>, Arc<str>) = (name.into(), kind.into());
    prop::collection::btree_set(net(), 0..4).prop_map(move |prefixes| CidrGroupRow {
        source: Source::Manifests,
        name: name.clone(),
        labels: [("kind".into(), kind.clone())].into(),
        prefixes,
    })
}

/// Rules, groups, and where the API server is; of these the last says whether prefixes take nodes.
type Case = (Vec<RuleRow>, Vec<CidrGroupRow>, (BTreeSet<IpAddr>, bool));

/// Other nodes, and this one.
const NODES: [&str; 3] = ["10.1.2.77", "192.0.2.7", "fd00:1::7"];
const OWN: [&str; 2] = ["10.9.0.1", "fd00:2::7"];

fn landmarks((apiservers, cidrs_take_nodes): &(BTreeSet<IpAddr>, bool)) -> Landmarks {
    let all = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let (apiservers, cidrs_take_nodes) = (apiservers.clone(), *cidrs_take_nodes);
    Landmarks { apiservers, own: all(&OWN), nodes: all(&NODES), cidrs_take_nodes }
}

fn case() -> impl Strategy<Value = Case> {
    let groups =
        (group("a", "office"), group("b", "office"), group("c", "home")).prop_map(|(a, b, c)| vec![a, b, c]);
    let places = [NODES[0], NODES[2], OWN[0], ADDRESSES[0], ADDRESSES[5], "203.0.113.9"];
    let apiservers =
        prop::collection::btree_set(one_of(&places).prop_map(|text| text.parse::<IpAddr>().unwrap()), 0..3);
    (prop::collection::vec(rule(), 1..7), groups, (apiservers, any::<bool>())).prop_map(
        |(mut rules, groups, places)| {
            for (number, rule) in rules.iter_mut().enumerate() {
                rule.name = format!("r{number}").into();
            }
            (rules, groups, places)
        },
    )
}

/// Somebody, the identity that the datapath knows them by (unless it is an address), and the family of their packets.
struct Known {
    party: Party,
    id: Option<IdentityId>,
}

fn pod(number: u32, cluster: &str, namespace: &str, app: &str) -> Known {
    let labels = Labels::k8s([("app", app), (CLUSTER_KEY, cluster), (NAMESPACE_KEY, namespace)]);
    let named = |name: &str, protocol, port| NamedPort { name: name.into(), protocol, port };
    let ports = match (cluster, app) {
        ("east", "web") => [named("http", 6, 8080), named("http", 6, 80), named("dns", 17, 53)].into(),
        ("east", "db") => [named("http", 6, 8443), named("dns", 6, 1)].into(),
        _ => BTreeSet::new(),
    };
    Known { party: Party::Pod { labels, ports }, id: Some(IdentityId(70_000 + number)) }
}

fn everybody() -> Vec<Known> {
    let pods = ["east", "west"].into_iter().flat_map(|cluster| {
        let of = move |namespace| APPS.into_iter().map(move |app| (cluster, namespace, app));
        NAMESPACES.into_iter().flat_map(of)
    });
    let pods = pods.zip(0..).map(|((cluster, namespace, app), number)| pod(number, cluster, namespace, app));
    let fixed = FIXED.into_iter().map(|id| Known { party: Party::Fixed(id), id: Some(id) });
    let addresses =
        ADDRESSES.into_iter().map(|text| Known { party: Party::Address(text.parse().unwrap()), id: None });
    let nodes = NODES.into_iter().map(|text| Known { party: Party::Node(text.parse().unwrap()), id: None });
    pods.chain(fixed).chain(addresses).chain(nodes).collect()
}

fn endpoint(number: u16, id: IdentityId, labels: Labels) -> EndpointRow {
    EndpointRow {
        id: number,
        namespace: "shop".into(),
        pod: format!("p{number}").into(),
        container_id: "c".into(),
        addresses: vec![],
        host_interface: "lxc".into(),
        ifindex: 1,
        mac: [0; 6],
        host_mac: [0; 6],
        identity: Some(id),
        labels,
        state: EndpointState::Ready,
    }
}

fn compiled(case: &Case, all: &[Known]) -> Compiler {
    let (rules, groups) = (Table::new(), Table::new());
    let (identities, endpoints) = (Table::new(), Table::new());
    for row in &case.0 {
        rules.1.upsert(row.clone());
    }
    for row in &case.1 {
        groups.1.upsert(row.clone());
    }
    let mut named_ports = BTreeMap::new();
    for (number, known) in all.iter().enumerate() {
        if let (Party::Pod { labels, ports }, Some(id)) = (&known.party, known.id) {
            identities.1.upsert(IdentityRow { source: Source::Manifests, id, labels: labels.clone() });
            if labels.cluster() == Some("east") {
                endpoints.1.upsert(endpoint(u16::try_from(number).unwrap() + 1, id, labels.clone()));
            }
            named_ports.insert(id, ports.clone());
        }
    }
    let inputs = Inputs {
        rules: &rules.0.snapshot(),
        groups: &groups.0.snapshot(),
        identities: &identities.0.snapshot(),
        endpoints: &endpoints.0.snapshot(),
        named_ports: &named_ports,
        may_shrink: true,
    };
    let mut compiler = Compiler::new(ClusterName::new("east").unwrap());
    compiler.set_node(node());
    compiler.set_landmarks(landmarks(&case.2));
    compiler.update(&inputs, &Change::Everything);
    compiler
}

/// A compiled policy as the datapath's model reads it.
fn model(row: &PolicyRow) -> tombolo_model::Policy {
    let side = |direction, enforced| {
        let entries = row.entries.iter().filter(|(key, _)| key.direction == direction);
        let rules = entries.map(|(key, verdict)| tombolo_model::Rule {
            tier: match key.tier {
                Tier::Admin => tombolo_model::Tier::Admin,
                Tier::Normal => tombolo_model::Tier::Normal,
                Tier::Baseline => tombolo_model::Tier::Baseline,
            },
            identity: (key.identity.0 != 0).then_some(key.identity.0),
            protocol: (key.protocol != 0).then_some(key.protocol),
            port: (key.port_bits != 0).then_some((key.port, key.port_bits)),
            action: match verdict.precedence.action() {
                Action::Pass => tombolo_model::Action::Pass,
                Action::Allow => tombolo_model::Action::Allow,
                Action::Deny => tombolo_model::Action::Deny,
            },
            priority: verdict.precedence.priority(),
        });
        tombolo_model::Side { enforced, rules: rules.collect() }
    };
    tombolo_model::Policy {
        ingress: side(Direction::Ingress, row.ingress_enforced),
        egress: side(Direction::Egress, row.egress_enforced),
        audit: false,
    }
}

/// The port as rules know it: of ICMP the type.
fn rule_port(protocol: u8, port: u16) -> u16 {
    match (protocol, port) {
        (1, 0) => 8 << 8,
        (1, _) => 0,
        (58, 0) => 128 << 8,
        (58, _) => 129 << 8,
        _ => port,
    }
}

/// How often each outcome was met: a comparison of nothing but open doors would show nothing.
#[derive(Debug, Default)]
struct Met {
    open: u64,
    allowed: [u64; 3],
    denied: [u64; 3],
    unsaid: u64,
}

impl Met {
    fn count(&mut self, outcome: Outcome) {
        let tier = |tier: Tier| Tier::ALL.iter().position(|other| *other == tier).unwrap();
        match outcome {
            Outcome::Open => self.open += 1,
            Outcome::Allowed(of) => self.allowed[tier(of)] += 1,
            Outcome::Denied(of) => self.denied[tier(of)] += 1,
            Outcome::Unsaid => self.unsaid += 1,
        }
    }
}

fn compare(case: &Case, all: &[Known], met: &mut Met) -> Result<(), String> {
    let cluster = ClusterName::new("east").unwrap();
    let (compiler, landmarks) = (compiled(case, all), landmarks(&case.2));
    let rows: BTreeMap<IdentityId, tombolo_model::Policy> =
        compiler.policies().map(|row| (row.subject, model(row))).collect();
    let policies =
        Policies { cluster: &cluster, rules: &case.0, groups: &case.1, node: &node(), landmarks: &landmarks };
    let local = |known: &&Known| match &known.party {
        Party::Pod { labels, .. } => labels.cluster() == Some("east"),
        Party::Fixed(id) => *id == IdentityId::HOST,
        Party::Node(_) | Party::Address(_) => false,
    };
    for subject in all.iter().filter(local) {
        let row = subject.id.and_then(|id| rows.get(&id));
        for peer in all {
            for (direction, (protocol, port)) in [Direction::Ingress, Direction::Egress]
                .into_iter()
                .flat_map(|way| ASKED.map(|asked| (way, asked)))
            {
                let rule_port = rule_port(protocol, port);
                let question = Question {
                    direction,
                    subject: &subject.party,
                    peer: &peer.party,
                    protocol,
                    port: rule_port,
                };
                let answer = policies.answer(&question);
                met.count(answer.outcome);
                let expected = match answer.outcome {
                    Outcome::Allowed(_) | Outcome::Open => Ok(()),
                    Outcome::Denied(_) => Err(Reason::PolicyDeny),
                    Outcome::Unsaid => Err(Reason::Policy),
                };
                let (identity, ipv4) = match peer.party {
                    Party::Address(ip) => (seen(&compiler, ip), ip.is_ipv4()),
                    Party::Node(ip) => (compiler.identity_of_node(ip).0, ip.is_ipv4()),
                    _ => (peer.id.unwrap_or_default().0, true),
                };
                let direction = match direction {
                    Direction::Ingress => tombolo_model::Direction::Ingress,
                    Direction::Egress => tombolo_model::Direction::Egress,
                };
                let asked = tombolo_model::Question { direction, identity, protocol, port, ipv4 };
                let found = row.map_or(Ok(()), |row| row.allows(&asked));
                if found != expected {
                    return Err(format!(
                        "{:?} and {:?}, {asked:?}: the specification says {answer:#?}, the entries {found:?}",
                        subject.party, peer.party
                    ));
                }
            }
        }
    }
    Ok(())
}

/// The identity that the datapath gives an address: without a row it is the world.
fn seen(compiler: &Compiler, address: IpAddr) -> u32 {
    match compiler.identity_of(address) {
        IdentityId::WORLD_IPV4 | IdentityId::WORLD_IPV6 => WORLD,
        id => id.0,
    }
}

#[test]
fn entries_mean_what_rules_say() {
    let (wanted, first) = (setting("TOMBOLO_CASES", 500), setting("TOMBOLO_SEED", 1));
    println!("TOMBOLO_SEED={first} TOMBOLO_CASES={wanted}");
    let all = everybody();
    let mut met = Met::default();
    for seed in first..first + wanted {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let config = Config { failure_persistence: None, ..Config::default() };
        let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
        let mut tree = case().new_tree(&mut runner).unwrap();
        let Err(mut difference) = compare(&tree.current(), &all, &mut met) else { continue };
        let mut smallest = tree.current();
        let mut more = tree.simplify();
        while more {
            more = match compare(&tree.current(), &all, &mut Met::default()) {
                Err(text) => {
                    (difference, smallest) = (text, tree.current());
                    tree.simplify()
                }
                Ok(()) => tree.complicate(),
            };
        }
        panic!("{smallest:#?}\n{difference}\nrepeat with TOMBOLO_SEED={seed} TOMBOLO_CASES=1");
    }
    println!("{met:?}");
    if wanted >= 100 {
        let counts = met.allowed.iter().chain(&met.denied).chain([&met.open, &met.unsaid]);
        assert!(counts.copied().all(|count| count > 0), "{met:?}: something is never met");
    }
}
