//! The lab's file must stay valid for the real containerlab, whose published JSON schema (`schemas/clab.schema.json` of
//! srl-labs/containerlab) is the reference. It is not copied here: what follows are the facts of it, read in its version
//! of August 2026: which keys there are and what each may hold. The tests hold our own tables of keys and our own
//! files against them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use super::definition::{BELOW, FIELDS};
use super::links::{ENDPOINT_KEYS, KEYS, MACVLAN_MODES, TYPES};
use super::load::{AUTHORITY_KEYS, FILE_KEYS, MGMT_KEYS, TOPOLOGY_KEYS};
use super::resolve::{DNS_KEYS, HEALTHCHECK_KEYS, STAGES};
use super::substitute::substitute;

/// What a key may hold.
#[derive(Clone, Copy, Debug)]
enum Holds {
    Text,
    /// Not the empty one.
    SomeText,
    TextOrNumber,
    Whole,
    Number,
    Truth,
    OneOf(&'static [&'static str]),
    /// Texts, at least so many, none twice if so told.
    Texts(usize, bool),
    /// A map to texts, numbers, and truth values if so told.
    Map(bool),
    /// A map with these keys only.
    Keys(&'static [(&'static str, Holds)]),
    /// A list of maps with these keys only.
    Entries(&'static [(&'static str, Holds)]),
    Anything,
}

use Holds::{Anything, Entries, Keys, Map, Number, OneOf, SomeText, Text, TextOrNumber, Texts, Truth, Whole};

const STAGE: Holds =
    Keys(&[("wait-for", Entries(&[("node", Text), ("stage", OneOf(STAGE_NAMES))])), ("exec", Anything)]);
const STAGE_NAMES: &[&str] = &["create", "create-links", "configure", "healthy", "exit"];

/// A node, a group, a kind, the defaults.
const NODE: &[(&str, Holds)] = &[
    ("image", Text),
    ("image-pull-policy", OneOf(&["always", "Always", "never", "Never", "ifnotpresent", "IfNotPresent"])),
    (
        "restart-policy",
        OneOf(&[
            "no",
            "No",
            "on-failure",
            "On-failure",
            "Always",
            "always",
            "unless-stopped",
            "Unless-stopped",
        ]),
    ),
    // An enumeration of a hundred in the schema; ours deploys one of them.
    ("kind", SomeText),
    ("license", Text),
    ("type", Text),
    ("group", Text),
    ("startup-config", Text),
    ("startup-delay", Whole),
    ("enforce-startup-config", Truth),
    ("suppress-startup-config", Truth),
    ("auto-remove", Truth),
    ("exec", Texts(1, false)),
    ("binds", Texts(1, true)),
    ("volumes", Texts(1, true)),
    ("ports", Texts(0, false)),
    ("env", Map(true)),
    ("credentials", Keys(&[("username", Text), ("password", Text)])),
    ("env-files", Texts(1, true)),
    ("user", TextOrNumber),
    ("hostname", SomeText),
    ("entrypoint", Text),
    ("cmd", Text),
    ("labels", Map(false)),
    ("runtime", OneOf(&["docker", "podman"])),
    ("mgmt-ipv4", Text),
    ("mgmt-ipv6", Text),
    ("network-mode", SomeText),
    ("link-apply-mode", OneOf(&["live", "restart", "recreate"])),
    ("cpu", Number),
    ("memory", Text),
    ("cpu-set", Text),
    ("extras", Keys(&[("ceos-copy-to-flash", Texts(1, true))])),
    ("config", Keys(&[("vars", Anything)])),
    (
        "stages",
        Keys(&[
            ("create", STAGE),
            ("create-links", STAGE),
            ("configure", STAGE),
            ("healthy", STAGE),
            ("exit", STAGE),
        ]),
    ),
    ("dns", Keys(&[("servers", Texts(0, true)), ("search", Texts(0, true)), ("options", Texts(0, true))])),
    (
        "certificate",
        Keys(&[
            ("issue", Anything),
            ("sans", Texts(0, true)),
            ("key-size", Whole),
            ("validity-duration", Text),
        ]),
    ),
    (
        "healthcheck",
        Keys(&[
            ("test", Texts(0, false)),
            ("interval", Whole),
            ("retries", Whole),
            ("timeout", Whole),
            ("start-period", Whole),
        ]),
    ),
    ("components", Anything),
    ("aliases", Texts(0, true)),
    ("shm-size", SomeText),
    ("cap-add", Texts(0, true)),
    ("privileged", Truth),
    ("cgroupns-mode", OneOf(&["host", "private"])),
    ("cgroup-parent", Text),
    ("pid-mode", Text),
    ("tmpfs", Map(false)),
    ("security-opts", Texts(0, true)),
    ("sysctls", Map(false)),
    ("devices", Texts(0, true)),
];

const MGMT: &[(&str, Holds)] = &[
    ("network", Text),
    ("bridge", Text),
    ("ipv4-subnet", SomeText),
    ("ipv6-subnet", SomeText),
    ("ipv4-gw", SomeText),
    ("ipv6-gw", SomeText),
    ("ipv4-range", SomeText),
    ("ipv6-range", SomeText),
    ("mtu", Number),
    ("external-access", Truth),
    ("skip-when-unused", Truth),
    ("driver-opts", Map(true)),
];

const AUTHORITY: &[(&str, Holds)] =
    &[("cert", Text), ("key", Text), ("key-size", Whole), ("validity-duration", Text)];

const ENDPOINT: &[(&str, Holds)] = &[
    ("node", Text),
    ("interface", Text),
    ("mac", SomeText),
    ("ipv4", SomeText),
    ("ipv6", SomeText),
    ("vars", Anything),
];

/// `type` of a link to its keys; the first of them are needed. The empty type is the brief form, which has no labels.
const LINKS: &[(&str, &[&str], &[&str])] = &[
    ("", &["endpoints"], &["mtu", "ipv4", "ipv6", "vars"]),
    ("veth", &["type", "endpoints"], &["mtu", "ipv4", "ipv6", "vars", "labels"]),
    ("veth-stitch", &["type", "endpoints"], &["mtu", "vars", "labels"]),
    ("mgmt-net", &["type", "endpoint", "host-interface"], &["mtu", "vars", "labels"]),
    ("macvlan", &["type", "endpoint", "host-interface"], &["mode", "mtu", "vars", "labels"]),
    ("host", &["type", "endpoint", "host-interface"], &["mtu", "vars", "labels"]),
    ("vxlan", &["type", "endpoint", "remote", "vni", "dst-port"], &["src-port", "mtu", "vars", "labels"]),
    (
        "vxlan-stitch",
        &["type", "endpoint", "remote", "vni", "dst-port"],
        &["src-port", "mtu", "vars", "labels"],
    ),
    ("dummy", &["type", "endpoint"], &["mtu", "vars", "labels"]),
];

/// What is wrong with `value`; nothing if it may stand at `key`.
fn wrong(value: &Value, holds: Holds, key: &str) -> Vec<String> {
    let fits = match holds {
        Text => value.is_string(),
        SomeText => value.as_str().is_some_and(|text| !text.is_empty()),
        TextOrNumber => value.is_string() || value.is_number(),
        Whole => value.is_i64() || value.is_u64(),
        Number => value.is_number(),
        Truth => value.is_boolean(),
        OneOf(words) => value.as_str().is_some_and(|text| words.contains(&text)),
        Texts(least, once) => value.as_array().is_some_and(|list| {
            let texts: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
            let different: BTreeSet<&str> = texts.iter().copied().collect();
            texts.len() == list.len() && list.len() >= least && (!once || different.len() == texts.len())
        }),
        Map(truth) => value.as_object().is_some_and(|map| {
            map.values().all(|value| value.is_string() || value.is_number() || (truth && value.is_boolean()))
        }),
        Keys(keys) => return wrong_map(value, keys, key),
        Entries(keys) => {
            let Some(list) = value.as_array() else { return vec![format!("{key}: {value} is no list")] };
            return list.iter().flat_map(|entry| wrong_map(entry, keys, key)).collect();
        }
        Anything => true,
    };
    if fits { Vec::new() } else { vec![format!("{key}: {value} is not {holds:?}")] }
}

fn wrong_map(value: &Value, keys: &[(&str, Holds)], above: &str) -> Vec<String> {
    let Some(map) = value.as_object() else { return vec![format!("{above}: {value} is no map")] };
    let check = |(name, value): (&String, &Value)| match keys.iter().find(|(key, _)| key == name) {
        Some((_, holds)) => wrong(value, *holds, &format!("{above}.{name}")),
        None => vec![format!("{above}.{name}: no such key")],
    };
    map.iter().flat_map(check).collect()
}

fn wrong_link(link: &Value, key: &str) -> Vec<String> {
    let Some(map) = link.as_object() else { return vec![format!("{key}: no map")] };
    let kind = map.get("type").and_then(Value::as_str).unwrap_or_default();
    let Some((_, needed, more)) = LINKS.iter().find(|(name, ..)| *name == kind) else {
        return vec![format!("{key}: type {kind:?}")];
    };
    let mut found = Vec::new();
    found.extend(
        needed.iter().filter(|name| !map.contains_key(**name)).map(|name| format!("{key}: no {name}")),
    );
    for (name, value) in map {
        let path = format!("{key}.{name}");
        if !needed.contains(&name.as_str()) && !more.contains(&name.as_str()) {
            found.push(format!("{path}: no such key"));
        }
        found.extend(match name.as_str() {
            "endpoints" if kind.is_empty() => wrong(value, Texts(2, true), &path),
            "endpoints" => wrong(value, Entries(ENDPOINT), &path),
            "endpoint" => wrong(value, Keys(ENDPOINT), &path),
            "ipv4" | "ipv6" => wrong(value, Texts(1, true), &path),
            "mtu" => wrong(value, Number, &path),
            "vni" | "dst-port" | "src-port" => wrong(value, Whole, &path),
            "mode" => wrong(value, OneOf(&["private", "vepa", "bridge", "passthru", "source"]), &path),
            "labels" => wrong(value, Map(false), &path),
            "type" | "host-interface" | "remote" => wrong(value, SomeText, &path),
            _ => Vec::new(),
        });
    }
    found
}

/// What containerlab would refuse in a whole file.
fn wrong_file(text: &str) -> Vec<String> {
    let (text, _) = substitute(text, &BTreeMap::new());
    let file: Value = serde_saphyr::from_str(&text).unwrap();
    let mut found = wrong(
        &file,
        Keys(&[
            ("name", SomeText),
            ("prefix", Text),
            ("mgmt", Keys(MGMT)),
            ("settings", Keys(&[("certificate-authority", Keys(AUTHORITY))])),
            ("debug", Anything),
            (
                "topology",
                Keys(&[
                    ("defaults", Keys(NODE)),
                    ("kinds", Anything),
                    ("groups", Anything),
                    ("nodes", Anything),
                    ("links", Anything),
                ]),
            ),
        ]),
        "",
    );
    found.extend(
        ["name", "topology"].iter().filter(|key| file.get(**key).is_none()).map(|key| format!("no {key}")),
    );
    for level in ["kinds", "groups", "nodes"] {
        for (name, value) in file["topology"][level].as_object().into_iter().flatten() {
            // A node may be left empty.
            if !(level == "nodes" && value.is_null()) {
                found.extend(wrong(value, Keys(NODE), &format!("topology.{level}.{name}")));
            }
        }
    }
    for (position, link) in file["topology"]["links"].as_array().into_iter().flatten().enumerate() {
        found.extend(wrong_link(link, &format!("topology.links[{position}]")));
    }
    found
}

fn names<'a>(keys: impl IntoIterator<Item = &'a str>) -> BTreeSet<&'a str> {
    keys.into_iter().collect()
}

#[test]
fn our_tables_of_keys_are_complete() {
    let ours = names(FIELDS.iter().map(|(key, ..)| *key));
    let theirs = names(NODE.iter().map(|(key, _)| *key));
    assert_eq!(theirs.difference(&ours).collect::<Vec<_>>(), Vec::<&&str>::new(), "keys we do not know");
    // containerlab's program reads it, its schema has forgotten it.
    assert_eq!(ours.difference(&theirs).copied().collect::<Vec<_>>(), ["position"]);
    assert_eq!(names(MGMT_KEYS.iter().copied()), names(MGMT.iter().map(|(key, _)| *key)));
    assert_eq!(names(AUTHORITY_KEYS.iter().copied()), names(AUTHORITY.iter().map(|(key, _)| *key)));
    assert_eq!(names(ENDPOINT_KEYS.iter().copied()), names(ENDPOINT.iter().map(|(key, _)| *key)));
    assert_eq!(
        names(FILE_KEYS.iter().copied()),
        names(["name", "prefix", "mgmt", "topology", "settings", "debug"])
    );
    assert_eq!(
        names(TOPOLOGY_KEYS.iter().copied()),
        names(["nodes", "groups", "kinds", "defaults", "links"])
    );
    assert_eq!(names(STAGES.iter().copied()), names(STAGE_NAMES.iter().copied()));
    let link_keys = LINKS.iter().flat_map(|(_, needed, more)| needed.iter().chain(*more).copied());
    assert_eq!(names(KEYS.iter().copied()), names(link_keys));
    let types = LINKS.iter().map(|(name, ..)| if name.is_empty() { "brief" } else { name });
    assert_eq!(names(TYPES.iter().copied()), names(types));
    assert_eq!(MACVLAN_MODES, ["private", "vepa", "bridge", "passthru", "source"]);
    for (key, ours) in [("dns", DNS_KEYS), ("healthcheck", HEALTHCHECK_KEYS)].iter().chain(BELOW) {
        let Some((_, Keys(theirs))) = NODE.iter().find(|(name, _)| name == key) else { panic!("{key}") };
        let missing: Vec<&str> =
            theirs.iter().map(|(name, _)| *name).filter(|name| !ours.contains(name)).collect();
        assert_eq!(missing, Vec::<&str>::new(), "keys of {key} we do not know");
    }
}

#[test]
fn our_lab_is_valid_for_containerlab() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("labs/two-clusters/two-clusters.clab.yml");
    assert_eq!(wrong_file(&std::fs::read_to_string(path).unwrap()), Vec::<String>::new());
}

#[test]
fn what_containerlab_refuses_is_found() {
    let node = |text: &str| format!("name: x\ntopology: {{nodes: {{a: {{kind: linux, {text}}}}}}}\n");
    let link = |text: &str| format!("name: x\ntopology: {{nodes: {{a: }}, links: [{{{text}}}]}}\n");
    for (text, part) in [
        (node("pods: 1"), "nodes.a.pods: no such key"),
        (node("exec: ip link"), "nodes.a.exec"),
        (node("exec: []"), "nodes.a.exec"),
        (node("binds: [a:b, a:b]"), "nodes.a.binds"),
        (node("startup-delay: \"5\""), "startup-delay"),
        (node("privileged: maybe"), "privileged"),
        (node("sysctls: {a: true}"), "sysctls"),
        (node("stages: {create: {wait-for: [{node: b, stage: soon}]}}"), "stage"),
        (node("healthcheck: {every: 1}"), "healthcheck.every: no such key"),
        (link("endpoints: [a:eth1, b:eth1], labels: {x: y}"), "labels: no such key"),
        (link("type: veth-stitch, endpoints: [], ipv4: [1.2.3.4/24]"), "ipv4: no such key"),
        (link("type: dummy"), "no endpoint"),
        (link("type: wormhole"), "wormhole"),
        ("name: x\nclusters: 1\ntopology: {nodes: {}}\n".to_owned(), "clusters: no such key"),
    ] {
        let found = wrong_file(&text);
        assert!(found.iter().any(|line| line.contains(part)), "{text} gives {found:?}");
    }
}
