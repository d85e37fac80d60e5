//! Damaged policy manifests through parser and compiler. Whatever stands in a manifest,
//!
//! * nothing panics, and what is not taken is told;
//! * what is compiled is what the specification says of the rules that were read: no flow more, none less;
//! * a value of a wrong type in a rule lets nothing through that the rule as it was did not.
//!
//! `TOMBOLO_CASES` says how many manifests (default 500, the twentieth part of `make fuzz-policy`), `TOMBOLO_SEED` from where.

#![cfg(test)]

use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tombolo_base::ids::{ClusterId, ClusterName, IdentityId, MaxClusters};
use tombolo_base::labels::{CLUSTER_KEY, Labels, NAMESPACE_KEY};
use tombolo_base::source::Source;
use tombolo_base::table::Table;
use tombolo_kubernetes::{ClusterIdentity, read_manifests};
use tombolo_model::policy::{Party, Policies, Question};
use tombolo_model::{Reason, WORLD};
use tombolo_policy::compile::{Change, Compiler, Inputs};
use tombolo_policy::{Action, CidrGroupRow, Direction, Landmarks, NamedPort, PolicyRow, RuleRow, Tier};
use tombolo_topology::{EndpointRow, EndpointState, IdentityRow};

const NETWORK_POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: np, namespace: shop}
spec:
  podSelector: {matchLabels: {app: shop}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - podSelector: {matchLabels: {app: a}}
      namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: In, values: [default, demo]}]}
    - ipBlock: {cidr: 10.0.0.0/8, except: [10.96.0.0/12]}
    ports: [{port: 80, endPort: 90}, {protocol: UDP, port: http}]
  egress:
  - to: [{namespaceSelector: {}}]
";
const SAMPLES: [&str; 6] = [
    include_str!("../src/samples/cilium-l3l4.yaml"),
    include_str!("../src/samples/cilium-lists.yaml"),
    include_str!("../src/samples/cilium-cidr.yaml"),
    include_str!("../src/samples/cilium-clusterwide.yaml"),
    include_str!("../src/samples/cilium-closed.yaml"),
    include_str!("../src/samples/admin.yaml"),
];
const ADDRESSES: [&str; 6] = ["10.1.2.3", "10.96.0.1", "192.0.2.7", "203.0.113.9", "2001:db8::1", "fd00::7"];
/// Protocol and port as the datapath has them; of ICMP 0 is a request.
const ASKED: [(u8, u16); 10] =
    [(6, 22), (6, 80), (6, 85), (6, 8080), (6, 9100), (17, 53), (17, 150), (132, 5), (1, 0), (58, 0)];

struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33).unwrap() % limit
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: give a number")))
}

fn documents() -> Vec<Value> {
    let texts = SAMPLES.iter().flat_map(|text| text.split("\n---\n")).chain([NETWORK_POLICY]);
    texts.map(|text| serde_saphyr::from_str(text).unwrap()).collect()
}

/// Every place of a value, as JSON pointers.
fn places(value: &Value, at: &str, out: &mut Vec<String>) {
    out.push(at.to_owned());
    match value {
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(n, item)| places(item, &format!("{at}/{n}"), out));
        }
        Value::Object(entries) => entries.iter().for_each(|(key, item)| {
            places(item, &format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")), out);
        }),
        _ => {}
    }
}

/// Somebody, and the identity that the datapath knows them by, unless it is an address.
struct Known {
    party: Party,
    id: Option<IdentityId>,
}

fn everybody() -> Vec<Known> {
    let mut all = Vec::new();
    let mut number = 70_000;
    for (cluster, namespace) in
        [("east", "shop"), ("east", "default"), ("east", "demo"), ("east", "ops"), ("west", "shop")]
    {
        for app in ["shop", "a", "good", "web", "prom"] {
            let team =
                format!("io.cilium.k8s.namespace.labels.{}", if app == "a" { "team" } else { "tenant" });
            let name = "io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name";
            let labels = Labels::k8s([
                ("app", app),
                ("tier", "front"),
                (team.as_str(), "a"),
                (name, namespace),
                (CLUSTER_KEY, cluster),
                (NAMESPACE_KEY, namespace),
            ]);
            let http = NamedPort { name: "http".into(), protocol: 6, port: 8080 };
            let ports = if app == "web" { [http].into() } else { BTreeSet::new() };
            all.push(Known { party: Party::Pod { labels, ports }, id: Some(IdentityId(number)) });
            number += 1;
        }
    }
    let fixed = [IdentityId::HOST, IdentityId::REMOTE_NODE, IdentityId::HEALTH, IdentityId::INIT];
    all.extend(fixed.map(|id| Known { party: Party::Fixed(id), id: Some(id) }));
    all.extend(ADDRESSES.map(|text| Known { party: Party::Address(text.parse().unwrap()), id: None }));
    all
}

fn node() -> Labels {
    Labels::k8s([("node-role", "worker"), ("rack", "r1")])
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
        port_mappings: BTreeSet::new(),
        queued: false,
    }
}

fn compiled(rules: &[RuleRow], groups: &[CidrGroupRow], all: &[Known]) -> Compiler {
    let (rule_table, group_table) = (Table::new(), Table::new());
    let (identities, endpoints) = (Table::new(), Table::new());
    for row in rules {
        rule_table.1.upsert(row.clone());
    }
    for row in groups {
        group_table.1.upsert(row.clone());
    }
    let mut named_ports = BTreeMap::new();
    for (number, known) in (1..).zip(all) {
        if let (Party::Pod { labels, ports }, Some(id)) = (&known.party, known.id) {
            identities.1.upsert(IdentityRow { source: Source::Manifests, id, labels: labels.clone() });
            if labels.cluster() == Some("east") {
                endpoints.1.upsert(endpoint(number, id, labels.clone()));
            }
            named_ports.insert(id, ports.clone());
        }
    }
    let inputs = Inputs {
        rules: &rule_table.0.snapshot(),
        groups: &group_table.0.snapshot(),
        identities: &identities.0.snapshot(),
        endpoints: &endpoints.0.snapshot(),
        named_ports: &named_ports,
        may_shrink: true,
    };
    let mut compiler = Compiler::new(ClusterName::new("east").unwrap());
    compiler.set_node(node());
    compiler.update(&inputs, &Change::Everything);
    compiler
}

/// A compiled policy as the datapath's model reads it.
fn entries(row: &PolicyRow) -> tombolo_model::Policy {
    let side = |direction, enforced| {
        let of = row.entries.iter().filter(|(key, _)| key.direction == direction);
        let rules = of.map(|(key, verdict)| tombolo_model::Rule {
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

/// What a manifest lets through, one flag a question; and whether it was taken.
struct Through {
    flags: Vec<bool>,
    taken: bool,
    about: Vec<tombolo_policy::Subject>,
}

/// Reads and compiles, and holds the entries against the specification.
fn through(document: &Value, all: &[Known]) -> Through {
    let cluster = ClusterName::new("east").unwrap();
    let east = ClusterIdentity { name: cluster, id: ClusterId::new(1, MaxClusters::C255).unwrap() };
    let (tables, problems) = read_manifests(Path::new("x.json"), &document.to_string(), &east);
    let rules: Vec<RuleRow> = tables.rules.snapshot().iter().cloned().collect();
    let groups: Vec<CidrGroupRow> = tables.cidr_groups.snapshot().iter().cloned().collect();
    assert!(
        !rules.is_empty() || !groups.is_empty() || !problems.is_empty() || document.is_null(),
        "untold: {document}"
    );
    let compiler = compiled(&rules, &groups, all);
    let rows: BTreeMap<IdentityId, tombolo_model::Policy> =
        compiler.policies().map(|row| (row.subject, entries(row))).collect();
    let landmarks = Landmarks::default();
    let policies =
        Policies { cluster: &cluster, rules: &rules, groups: &groups, node: &node(), landmarks: &landmarks };
    let local = |known: &&Known| match &known.party {
        Party::Pod { labels, .. } => labels.cluster() == Some("east"),
        Party::Fixed(id) => *id == IdentityId::HOST,
        Party::Node(_) | Party::Address(_) => false,
    };
    let mut flags = Vec::new();
    for subject in all.iter().filter(local) {
        let row = subject.id.and_then(|id| rows.get(&id));
        for peer in all {
            for (direction, way) in [
                (Direction::Ingress, tombolo_model::Direction::Ingress),
                (Direction::Egress, tombolo_model::Direction::Egress),
            ] {
                for (protocol, port) in ASKED {
                    let kind = match protocol {
                        1 => 8 << 8,
                        58 => 128 << 8,
                        _ => port,
                    };
                    let question = Question {
                        direction,
                        subject: &subject.party,
                        peer: &peer.party,
                        protocol,
                        port: kind,
                    };
                    let passes = policies.answer(&question).outcome.passes();
                    let (identity, ipv4) = match peer.party {
                        Party::Address(ip) => match compiler.identity_of(ip) {
                            IdentityId::WORLD_IPV4 | IdentityId::WORLD_IPV6 => (WORLD, ip.is_ipv4()),
                            id => (id.0, ip.is_ipv4()),
                        },
                        _ => (peer.id.unwrap_or_default().0, true),
                    };
                    let asked = tombolo_model::Question { direction: way, identity, protocol, port, ipv4 };
                    let found: Result<(), Reason> = row.map_or(Ok(()), |row| row.allows(&asked));
                    assert_eq!(
                        found.is_ok(),
                        passes,
                        "{document}\n{:?} and {:?}, {asked:?}: the entries say {found:?}",
                        subject.party,
                        peer.party
                    );
                    flags.push(passes);
                }
            }
        }
    }
    let about = rules.iter().map(|rule| rule.subject.clone()).collect();
    Through { flags, taken: !rules.is_empty(), about }
}

/// Something else in the place of a value: another sample's word for it, or what no sample has.
fn mutate(document: &mut Value, donors: &[Value], dice: &mut Dice) -> String {
    let mut all = Vec::new();
    places(document, "", &mut all);
    let at = all.swap_remove(dice.below(all.len()));
    let other = {
        let donor = &donors[dice.below(donors.len())];
        let mut from = Vec::new();
        places(donor, "", &mut from);
        let key = at.rsplit('/').next().unwrap_or_default();
        let same: Vec<&String> = from.iter().filter(|place| place.rsplit('/').next() == Some(key)).collect();
        let place =
            if same.is_empty() { &from[dice.below(from.len())] } else { same[dice.below(same.len())] };
        donor.pointer(place).cloned().unwrap_or_default()
    };
    let damages = [
        Value::Null,
        json!(-1),
        json!(""),
        json!([]),
        json!({}),
        json!([{}]),
        json!("0.0.0.0/0"),
        json!(65535),
    ];
    let Some(place) = document.pointer_mut(&at) else { return at };
    match (dice.below(6), place) {
        (0, Value::Object(entries)) if !entries.is_empty() => {
            let key = entries.keys().nth(dice.below(entries.len())).cloned().unwrap();
            entries.remove(&key);
        }
        (0, Value::Array(items)) if !items.is_empty() => drop(items.remove(dice.below(items.len()))),
        (1, Value::Object(entries)) => drop(entries.insert("unknown".to_owned(), other)),
        (1, Value::Array(items)) => items.push(other),
        (2, Value::Object(entries)) if !entries.is_empty() => {
            let key = entries.keys().nth(dice.below(entries.len())).cloned().unwrap();
            let value = entries.remove(&key).unwrap();
            entries.insert(format!("{key}s"), value);
        }
        (3, place) => *place = damages[dice.below(damages.len())].clone(),
        (_, place) => *place = other,
    }
    at
}

#[test]
fn no_manifest_lets_through_what_the_specification_does_not() {
    let (wanted, seed) = (setting("TOMBOLO_CASES", 500), setting("TOMBOLO_SEED", 1));
    println!("TOMBOLO_SEED={seed} TOMBOLO_CASES={wanted}");
    let (all, documents) = (everybody(), documents());
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut taken = 0;
    for _ in 0..wanted {
        let mut document = documents[dice.below(documents.len())].clone();
        for _ in 0..=dice.below(3) {
            mutate(&mut document, &documents, &mut dice);
        }
        taken += u64::from(through(&document, &all).taken);
    }
    println!("{taken} were taken");
    assert!(wanted < 100 || taken * 10 > wanted, "{taken} of {wanted} are too few to show anything");
}

#[test]
fn a_wrong_type_in_a_rule_opens_nothing() {
    let all = everybody();
    let mut cases = 0;
    for document in documents() {
        let before = through(&document, &all);
        if !before.taken {
            continue;
        }
        let mut at = Vec::new();
        places(&document, "", &mut at);
        let in_rules = |at: &&String| at.contains("gress") && at.matches('/').count() > 3;
        for at in at.iter().filter(in_rules) {
            let mut damaged = document.clone();
            let place = damaged.pointer_mut(at).unwrap();
            let damage = if place.is_boolean() { json!([1]) } else { json!(true) };
            *place = damage;
            let after = through(&damaged, &all);
            // What is refused as a whole leaves the last good one in force; another subject is another question.
            if !after.taken || after.about != before.about {
                continue;
            }
            cases += 1;
            let opened = before.flags.iter().zip(&after.flags).position(|(before, after)| *after && !before);
            assert_eq!(opened, None, "{at} of {document}: more is let through than before");
        }
    }
    assert!(cases > 20, "{cases}");
}
