//! Policy manifests against what they come to, and every single damage to them. `TOMBOLO_BLESS=1` writes the expected files anew.

use super::tests::{complaint, read};
use super::*;
use serde_json::json;
use std::fmt::Write;
use std::path::PathBuf;
use tombolo_policy::{
    Action, CidrGroupRef, DirectionRules, LabelSelector, PeerSelector, PortMatch, PortRule, Requirement,
    RuleBlock, RuleRow, Subject,
};

const SAMPLES: [&str; 6] =
    ["cilium-l3l4", "cilium-lists", "cilium-cidr", "cilium-clusterwide", "cilium-closed", "admin"];

fn sample(name: &str) -> (String, PathBuf) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/samples");
    (
        std::fs::read_to_string(folder.join(format!("{name}.yaml"))).unwrap(),
        folder.join(format!("{name}.txt")),
    )
}

fn selector(of: &LabelSelector) -> String {
    let labels = of.labels.iter().map(|(key, value)| format!("{key}={value}"));
    let set = |values: &BTreeSet<Arc<str>>| values.iter().map(AsRef::as_ref).collect::<Vec<_>>().join("|");
    let expressions = of.expressions.iter().map(|line| match line {
        Requirement::In(key, values) => format!("{key}={}", set(values)),
        Requirement::NotIn(key, values) => format!("{key}!={}", set(values)),
        Requirement::Exists(key) => format!("+{key}"),
        Requirement::DoesNotExist(key) => format!("-{key}"),
    });
    format!("{{{}}}", labels.chain(expressions).collect::<Vec<_>>().join(", "))
}

fn peer(of: &PeerSelector) -> String {
    let cut = |except: &BTreeSet<_>| except.iter().map(|cut| format!(" less {cut}")).collect::<String>();
    match of {
        PeerSelector::Endpoints(of) => format!("pods {}", selector(&of.0)),
        PeerSelector::Entity(entity) => format!("entity {entity:?}"),
        PeerSelector::Cidr { prefix, except } => format!("{prefix}{}", cut(except)),
        PeerSelector::CidrGroup { group: CidrGroupRef::Name(name), except } => {
            format!("group {name}{}", cut(except))
        }
        PeerSelector::CidrGroup { group: CidrGroupRef::Labels(of), except } => {
            format!("groups {}{}", selector(of), cut(except))
        }
        PeerSelector::Nodes(of) => format!("nodes {}", selector(of)),
    }
}

fn port(of: &PortRule) -> String {
    let ports = match &of.port {
        PortMatch::All => "all".to_owned(),
        PortMatch::Range(first, last) => format!("{first}-{last}"),
        PortMatch::Named(name) => name.to_string(),
        PortMatch::IcmpType(kind) => format!("type {kind}"),
    };
    format!("{}/{ports}", of.protocol)
}

fn block(out: &mut String, of: &RuleBlock) {
    let name = of.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    writeln!(out, "    {:?} at {}{name}", of.action, of.priority).unwrap();
    match &of.peers {
        None => writeln!(out, "      everybody").unwrap(),
        Some(peers) if peers.is_empty() => writeln!(out, "      nobody").unwrap(),
        Some(peers) => peers.iter().for_each(|one| writeln!(out, "      {}", peer(one)).unwrap()),
    }
    if let Some(ports) = &of.ports {
        let ports: Vec<_> = ports.iter().map(port).collect();
        writeln!(out, "      ports [{}]", ports.join(", ")).unwrap();
    }
}

fn row(out: &mut String, of: &RuleRow) {
    let subject = match &of.subject {
        Subject::Pods(of) => format!("pods {}", selector(&of.0)),
        Subject::Nodes(of) => format!("nodes {}", selector(of)),
    };
    writeln!(out, "{} spec {} tier {:?}: {subject}", of.title(), of.spec, of.tier).unwrap();
    for (word, rules) in [("ingress", &of.ingress), ("egress", &of.egress)] {
        if let Some(DirectionRules { default_deny, blocks }) = rules {
            let mode = if *default_deny { "default deny" } else { "open" };
            writeln!(out, "  {word}, {mode}").unwrap();
            blocks.iter().for_each(|of| block(out, of));
        }
    }
}

fn rendered(parsed: &Parsed) -> String {
    let mut out = String::new();
    for object in parsed.objects.values() {
        match object {
            Object::Rules(rows) => rows.iter().for_each(|of| row(&mut out, of)),
            Object::CidrGroup(of) => {
                writeln!(
                    out,
                    "group {} {:?}: {:?}",
                    of.name,
                    of.labels,
                    of.prefixes.iter().map(ToString::to_string).collect::<Vec<_>>()
                )
                .unwrap();
            }
            other => panic!("{other:?}"),
        }
    }
    for problem in &parsed.problems {
        writeln!(out, "{:?} {problem}", problem.severity).unwrap();
    }
    out
}

#[test]
fn samples_come_to_what_is_expected() {
    for name in SAMPLES {
        let (text, expected) = sample(name);
        let got = rendered(&read(&text));
        if std::env::var_os("TOMBOLO_BLESS").is_some() {
            std::fs::write(&expected, &got).unwrap();
        }
        assert_eq!(got, std::fs::read_to_string(&expected).unwrap_or_default(), "{name}");
    }
}

/// The documents of the samples as JSON values.
fn documents() -> Vec<Value> {
    let parts = SAMPLES.iter().flat_map(|name| {
        let (text, _) = sample(name);
        text.split("\n---\n").map(str::to_owned).collect::<Vec<_>>()
    });
    parts.map(|text| serde_saphyr::from_str(&text).unwrap()).collect()
}

/// Every place of a value, as JSON pointers.
fn places(value: &Value, at: &str, out: &mut Vec<String>) {
    out.push(at.to_owned());
    match value {
        Value::Array(items) => {
            items
                .iter()
                .enumerate()
                .for_each(|(position, item)| places(item, &format!("{at}/{position}"), out));
        }
        Value::Object(entries) => entries.iter().for_each(|(key, item)| {
            places(item, &format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")), out);
        }),
        _ => {}
    }
}

fn parsed(document: &Value) -> Parsed {
    let east = ClusterIdentity {
        name: tombolo_base::ids::ClusterName::new("east").unwrap(),
        id: tombolo_base::ids::ClusterId::new(1, tombolo_base::ids::MaxClusters::C255).unwrap(),
    };
    parse(Path::new("x.json"), &document.to_string(), &east)
}

#[test]
fn no_damage_to_a_policy_panics_or_goes_untold() {
    let long = "x".repeat(10_000);
    let many: Vec<Value> = (0..20_000).map(|number| json!(number.to_string())).collect();
    let damages = [
        Value::Null,
        json!(true),
        json!(-1),
        json!(70_000),
        json!(1e300),
        json!(""),
        json!(":"),
        json!("x:y"),
        json!("10.0.0.0/99"),
        json!([]),
        json!({}),
        json!([null]),
        json!({"a": {"b": []}}),
        json!(long),
    ];
    let mut cases = 0;
    for document in documents() {
        let mut all = Vec::new();
        places(&document, "", &mut all);
        for at in all {
            for damage in damages.iter().chain(std::iter::once(&json!(many)).filter(|_| at.ends_with("CIDR")))
            {
                let mut damaged = document.clone();
                *damaged.pointer_mut(&at).unwrap() = damage.clone();
                let found = parsed(&damaged);
                let told = !found.problems.is_empty() || !found.unknown_kinds.is_empty();
                assert!(told || found.objects.len() == 1 || damaged.is_null(), "{at} {damage}");
                cases += 1;
            }
        }
    }
    assert!(cases > 5_000, "{cases}");
}

/// The block that a key path of a rule leads to.
fn block_at<'a>(parsed: &'a Parsed, at: &str) -> Option<&'a RuleBlock> {
    let Some(Object::Rules(rows)) = parsed.objects.values().next() else { return None };
    let parts: Vec<&str> = at.split('/').collect();
    let (spec, section, position) = match parts.get(1..)? {
        ["spec", section, position, ..] => (0, *section, *position),
        ["specs", spec, section, position, ..] => (spec.parse().ok()?, *section, *position),
        _ => return None,
    };
    let row = rows.get::<usize>(spec)?;
    let rules = if section.starts_with("ingress") { &row.ingress } else { &row.egress }.as_ref()?;
    let denies = section.ends_with("Deny");
    let allows = rules.blocks.iter().filter(|block| block.action == Action::Allow).count();
    let offset = if denies && row.tier == tombolo_policy::Tier::Normal { allows } else { 0 };
    rules.blocks.get(offset + position.parse::<usize>().ok()?)
}

#[test]
fn a_key_that_nobody_knows_never_lets_more_through() {
    let mut cases = 0;
    let policies =
        documents().into_iter().filter(|document| document["kind"].as_str().unwrap().ends_with("Policy"));
    for document in policies {
        let mut all = Vec::new();
        places(&document, "", &mut all);
        // Labels are free to be any, and what a proxy would decide is refused as a whole already.
        let free =
            ["matchLabels", "metadata", "/rules", "/labels", "domainNames", "toFQDNs", "Requires", "Groups"];
        let more = ["toServices", "listener", "TLS", "log"];
        for at in all
            .iter()
            .filter(|at| at.starts_with("/spec") && !free.iter().chain(&more).any(|key| at.contains(key)))
        {
            let mut damaged = document.clone();
            let Some(Value::Object(entries)) = damaged.pointer_mut(at) else { continue };
            entries.insert("narrower".to_owned(), json!(1));
            let found = parsed(&damaged);
            assert!(!found.problems.is_empty(), "{at}");
            cases += 1;
            if !found.is_good() {
                continue;
            }
            let block = block_at(&found, at)
                .unwrap_or_else(|| panic!("{at} is in no rule, and the object was taken"));
            let nobody = block.peers.as_ref().is_some_and(BTreeSet::is_empty);
            match block.action {
                Action::Allow => assert!(nobody, "{at}: {block:?}"),
                Action::Deny => assert!(block.peers.is_none(), "{at}: {block:?}"),
                Action::Pass => panic!("{at}: {block:?}"),
            }
        }
    }
    assert!(cases > 60, "{cases}");
}

const HEAD: &str = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p}\n";

#[test]
fn mistakes_in_policies_are_told_with_line_key_and_reason() {
    let ingress = |rule: &str| format!("{HEAD}spec:\n  endpointSelector: {{}}\n  ingress:\n  - {rule}\n");
    let port = |port: &str| ingress(&format!("toPorts: [{{ports: [{{{port}}}]}}]"));
    let many = vec!["{port: '1'}"; 41].join(", ");
    let cases = [
        (HEAD.to_owned(), "the policy has no spec"),
        (format!("{HEAD}spec: {{endpointSelector: {{}}}}\n"), "the spec has no rules"),
        (format!("{HEAD}spec: {{ingress: [{{}}]}}\n"), "does not say whom it is about"),
        (format!("{HEAD}spec: {{nodeSelector: {{}}, ingress: [{{}}]}}\n"), "nodes have no namespace"),
        (
            format!("{HEAD}spec: {{endpointSelector: {{}}, nodeSelector: {{}}, ingress: [{{}}]}}\n"),
            "beside endpointSelector",
        ),
        (
            format!("{HEAD}spec: {{endpointSelector: {{matchLabel: {{a: b}}}}, ingress: [{{}}]}}\n"),
            "there is no such field",
        ),
        (
            format!("{HEAD}spec: {{endpointSelector: {{}}, ingres: [{{}}], egress: [{{}}]}}\n"),
            "there is no such field",
        ),
        (ingress("{fromEndpoints: [{}], fromEntities: [all]}"), "several lists of peers"),
        (ingress("fromEntities: [everyone]"), "\"everyone\" is not allowed"),
        (ingress("fromCIDR: [10.0.0.0/40]"), "is no prefix"),
        (ingress("fromCIDRSet: [{cidr: 10.0.0.0/8, except: [11.0.0.0/8]}]"), "does not lie within"),
        (ingress("fromCIDRSet: [{}]"), "names no prefixes"),
        (ingress("fromEndpoints: [{matchLabels: {'k8s:': a}}]"), "is no label key"),
        (ingress("{icmps: [{fields: [{type: 8}]}], toPorts: [{ports: [{port: '1'}]}]}"), "beside toPorts"),
        (ingress("icmps: [{fields: [{type: 256}]}]"), "256 is out of range"),
        (ingress("icmps: [{fields: [{family: IPv6, type: Photuris}]}]"), "\"Photuris\" is not allowed"),
        (port("port: '70000'"), "\"70000\" is out of range"),
        (port("port: 80"), "invalid type"),
        (port("port: a--b"), "is no port"),
        (port("protocol: TCP"), "the port is missing"),
        (port("port: '80', protocol: GRE"), "GRE has no ports"),
        (port("port: '80', protocol: QUIC"), "\"QUIC\" is not allowed"),
        (port("port: '80', endPort: 70"), "70 ends no range from 80"),
        (port("port: http, endPort: 70"), "a name starts no range"),
        (ingress(&format!("toPorts: [{{ports: [{many}]}}]")), "41 entries"),
    ];
    for (text, reason) in cases {
        let told = complaint(&text);
        assert!(told.contains(reason), "{told}\n{text}");
        assert!(!told.starts_with("0 "), "{told}");
    }
}

#[test]
fn objects_are_bounded() {
    let rules = |count: usize, rule: &str| {
        let rules = vec![format!("  - {rule}\n"); count].concat();
        format!("{HEAD}spec:\n  endpointSelector: {{}}\n  ingress:\n{rules}")
    };
    assert!(read(&rules(1000, "{}")).problems.is_empty());
    assert!(complaint(&rules(1001, "{}")).contains("spec.ingress[1000]: more than 1000 rules"));
    let peers = format!("fromCIDR: [{}]", vec!["10.0.0.1"; 1000].join(", "));
    assert!(complaint(&rules(17, &peers)).contains("more than 16384"));
    let closed = read(&rules(100, "toFQDNs: [{}]"));
    // The keys of the other direction are unknown, more of them than are looked at.
    assert_eq!((closed.problems.len(), closed.is_good()), (17, true), "{:?}", closed.problems);
    assert!(closed.problems.iter().any(|problem| problem.reason.contains("84 more rules")));
    assert!(complaint(&rules(101, "toFQDNs: [{}]")).contains("101 unknown keys"));
}
