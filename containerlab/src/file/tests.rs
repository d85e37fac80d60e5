//! Whole files, good and bad.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::*;

fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// Writes the text to a folder of its own, with the files it refers to.
fn load_text(text: &str, files: &[&str], env: &BTreeMap<String, String>) -> (tempfile::TempDir, Loaded) {
    let dir = tempfile::tempdir().unwrap();
    for file in files {
        std::fs::write(dir.path().join(file), "").unwrap();
    }
    let path = dir.path().join("lab.clab.yml");
    std::fs::write(&path, text).unwrap();
    let loaded = load(&path, env);
    (dir, loaded)
}

type Loaded = Result<(Topology, Vec<Warning>), Vec<Error>>;

const CLOS: &str = include_str!("samples/clos.clab.yml");
const EXTENDED: &str = include_str!("samples/extended.clab.yml");
const BROKEN: &str = include_str!("samples/broken.clab.yml");
const CLOS_FILES: &[&str] = &["shared.conf", "daemons", "leaf-daemons"];

fn clos() -> (tempfile::TempDir, Topology) {
    let (dir, loaded) = load_text(CLOS, CLOS_FILES, &BTreeMap::new());
    let (topology, warnings) = loaded.unwrap();
    assert_eq!(warnings, []);
    (dir, topology)
}

#[test]
fn single_values_come_from_the_most_specific_level() {
    let (_dir, topology) = clos();
    let node = |name: &str| &topology.nodes[name];
    assert_eq!(node("spine1").kind, "linux");
    assert_eq!(node("spine1").image.as_deref(), Some("frrouting/frr:v8.4.0"), "kind");
    assert_eq!(node("leaf1").image.as_deref(), Some("frrouting/frr:v8.5.0"), "group over kind");
    assert_eq!(node("leaf2").image.as_deref(), Some("frrouting/frr:v9.0"), "node over group");
    assert_eq!(node("spine1").startup_delay_secs, 1);
    assert_eq!(node("spine2").startup_delay_secs, 5);
    assert_eq!(topology.prefix, "__lab-name");
    assert!(node("leaf1").privileged);
}

#[test]
fn maps_are_merged_and_keep_their_spelling() {
    let (_dir, topology) = clos();
    let spine1 = &topology.nodes["spine1"];
    assert_eq!(spine1.env, env(&[("TZ", "UTC"), ("LEVEL", "2"), ("KIND", "linux"), ("GROUP", "spines")]));
    assert_eq!(spine1.labels, env(&[("site", "lab"), ("tier", "spine")]));
    assert_eq!(topology.nodes["spine2"].env["GROUP"], "own");
    assert_eq!(topology.nodes["host1"].sysctls["net.ipv4.ip_forward"], "1");
    let text = CLOS.replace("LEVEL: 2", "OTHER: 2");
    let (_dir, loaded) = load_text(&text, CLOS_FILES, &BTreeMap::new());
    assert_eq!(loaded.unwrap().0.nodes["spine1"].env["LEVEL"], "1.10", "a version is not a number");
}

#[test]
fn lists_are_joined_without_repetition_and_binds_replace_by_destination() {
    let (dir, topology) = clos();
    let leaf1 = &topology.nodes["leaf1"];
    let here = dir.path().canonicalize().unwrap();
    assert_eq!(leaf1.exec[..2], ["sysctl -w net.ipv6.conf.all.forwarding=1", "ip link set lo up"]);
    assert_eq!(leaf1.exec[2], format!("echo leaf1 in {}", topology.lab_dir.display()));
    let binds: Vec<String> = leaf1.binds.iter().map(ToString::to_string).collect();
    let expected = ["leaf-daemons:/etc/frr/daemons:ro", "shared.conf:/etc/shared.conf:ro"]
        .map(|bind| format!("{}/{bind}", here.display()));
    assert_eq!(binds, expected);
    assert!(leaf1.binds[0].read_only());
    assert!(!topology.nodes["spine1"].binds[0].read_only());
}

#[test]
fn ports_stages_and_the_rest() {
    let (_dir, topology) = clos();
    let ports = &topology.nodes["leaf1"].ports;
    assert_eq!(ports.len(), 6);
    assert_eq!((ports[1].host_ip, ports[1].host_port), (Some("127.0.0.1".parse().unwrap()), Some(5353)));
    assert_eq!((ports[1].protocol.as_str(), ports[1].node_port), ("udp", 53));
    assert_eq!((ports[4].host_port, ports[4].node_port), (Some(9002), 19002));
    assert_eq!((ports[5].host_port, ports[5].node_port), (None, 443));
    assert_eq!(topology.nodes["leaf2"].ports[0].host_ip, Some("::1".parse().unwrap()));
    let host1 = &topology.nodes["host1"];
    assert_eq!(host1.stages["create"].wait_for[0], WaitFor { node: "leaf1".into(), stage: "healthy".into() });
    let touch = format!("touch {}/host1/x", topology.lab_dir.display());
    assert_eq!(host1.stages["create"].exec[0].command, touch);
    assert_eq!(host1.stages["configure"].exec[0].phase, "on-exit");
    assert_eq!(host1.healthcheck.as_ref().map(|check| (check.interval_secs, check.retries)), Some((5, 3)));
    assert_eq!(host1.cpu, Some(1.5));
    let words = split_words(host1.cmd.as_deref().unwrap()).unwrap();
    assert_eq!(words, ["sh", "-c", "while true; do date; done"]);
    assert_eq!(topology.mgmt.as_ref().unwrap().bridge.as_deref(), Some("clos-br"));
}

#[test]
fn brief_links() {
    let (_dir, topology) = clos();
    let names: Vec<&str> = topology.links.iter().map(|link| link.link_type.name()).collect();
    assert_eq!(names, ["veth", "veth", "veth", "veth", "host", "mgmt-net", "macvlan"]);
    assert_eq!(topology.links[1].mtu, Some(9000));
    assert_eq!(topology.links[1].vars["list"], serde_json::json!(["a", "b"]));
    let LinkType::Veth { a, b } = &topology.links[2].link_type else { panic!("{:?}", topology.links[2]) };
    assert_eq!((a.ipv4, a.ipv6), (Some("192.0.2.1/31".parse().unwrap()), None));
    assert_eq!(
        (b.ipv4, b.ipv6),
        (Some("192.0.2.0/31".parse().unwrap()), Some("2001:db8::/127".parse().unwrap()))
    );
    let LinkType::Host { endpoint, host_interface } = &topology.links[4].link_type else { panic!() };
    assert_eq!((endpoint.interface.as_str(), host_interface.as_str()), ("eth9", "leaf2-out"));
    let LinkType::MgmtNet { endpoint, host_interface } = &topology.links[5].link_type else { panic!() };
    assert_eq!((endpoint.interface.as_str(), host_interface.as_str()), ("eth8", "leaf2-m"));
}

#[test]
fn extended_links_and_other_kinds() {
    let (dir, loaded) = load_text(EXTENDED, &[], &BTreeMap::new());
    let (topology, warnings) = loaded.unwrap();
    assert_eq!(warnings, []);
    assert_eq!(topology.prefix, "");
    let names: Vec<&str> = topology.links.iter().map(|link| link.link_type.name()).collect();
    let expected =
        ["veth", "host", "mgmt-net", "macvlan", "vxlan", "vxlan-stitch", "dummy", "veth-stitch", "veth"];
    assert_eq!(names, expected);
    let LinkType::Veth { a, b } = &topology.links[0].link_type else { panic!() };
    assert_eq!((a.mac, b.mac), (Some([2, 0, 0, 0, 0, 1]), Some([2, 0, 0, 0, 0, 2])));
    assert_eq!(a.ipv6, Some("2001:db8:1::1/64".parse().unwrap()));
    let LinkType::Vxlan { remote, vni, dst_port, src_port, .. } = &topology.links[4].link_type else {
        panic!()
    };
    let remote = remote.to_string();
    assert_eq!((remote.as_str(), *vni, *dst_port, *src_port), ("2001:db8::9", 100, 4789, Some(4790)));
    let srl = &topology.nodes["srl"];
    assert!(srl.startup_config.as_deref().unwrap().contains("banner"), "written in place");
    let license = dir.path().canonicalize().unwrap().join("license.key");
    assert_eq!(srl.license.as_deref(), license.to_str());
    assert_eq!(srl.other["certificate"]["sans"][0], "srl.example");
}

#[test]
fn what_is_not_deployed_is_said() {
    let (_dir, loaded) = load_text(EXTENDED, &[], &BTreeMap::new());
    let notices = undeployable(&loaded.unwrap().0, &|_| true);
    let skipped: Vec<&str> = notices.iter().filter(|n| n.skips).map(|n| n.subject.as_str()).collect();
    assert_eq!(skipped.len(), 9, "{notices:#?}");
    assert!(notices.iter().any(|n| n.skips && n.message == "its node srl is not deployed"), "{notices:#?}");
    assert!(skipped.contains(&"node srl") && skipped.contains(&"node switch"));
    assert!(notices.iter().all(|notice| notice.line > 0));
    let text = "name: x\ntopology:\n  nodes: {a: {kind: linux}}\n  links:\n    - endpoints: [a:eth1, host:longer-than-linux-allows]\n";
    let (_dir, loaded) = load_text(text, &[], &BTreeMap::new());
    let notices = undeployable(&loaded.unwrap().0, &|_| true);
    assert!(
        notices[0].skips && notices[0].line == 5 && notices[0].message.contains("15 bytes"),
        "{notices:?}"
    );
    let (_dir, topology) = clos();
    let notices = undeployable(&topology, &|_| true);
    assert!(notices.iter().any(|n| n.subject == "node leaf1" && n.message.starts_with("ports") && !n.skips));
    assert_eq!(notices.iter().filter(|notice| notice.skips).count(), 2, "{notices:#?}");
    assert!(notices.iter().all(|notice| notice.line > 0), "mgmt too: {notices:#?}");
}

/// Every key of a node is done, or said to have no effect with the line it stands on.
#[test]
fn no_key_is_ignored_in_silence() {
    const DONE: &[&str] = &[
        "kind",
        "group",
        "image",
        "startup-delay",
        "auto-remove",
        "restart-policy",
        "hostname",
        "entrypoint",
        "cmd",
        "exec",
        "binds",
        "env",
        "env-files",
        "labels",
        "sysctls",
    ];
    for (field, ..) in super::definition::FIELDS.iter().filter(|(field, ..)| !DONE.contains(field)) {
        let value = match *field {
            "image-pull-policy" => "always",
            "cgroupns-mode" | "network-mode" => "host",
            "link-apply-mode" => "live",
            "enforce-startup-config" | "suppress-startup-config" => "true",
            "privileged" => "false",
            "mgmt-ipv4" => "192.0.2.1",
            "mgmt-ipv6" => "2001:db8::1",
            "cpu" => "1",
            "volumes" => "[data:/data]",
            "ports" => "[80:80]",
            "devices" | "cap-add" | "security-opts" | "aliases" => "[x]",
            "tmpfs" => "{/x: rw}",
            "stages" => "{create: {exec: [{command: x, phase: on-exit}]}}",
            "dns" => "{servers: [192.0.2.1]}",
            "healthcheck" => "{test: [CMD, x]}",
            "certificate" => "{issue: true}",
            "credentials" => "{username: x}",
            "extras" => "{srl-agents: [x]}",
            "config" => "{vars: {a: b}}",
            "components" => "[{slot: A}]",
            _ => "x",
        };
        let text =
            format!("name: x\ntopology:\n  nodes:\n    a:\n      kind: linux\n      {field}: {value}\n");
        let (_dir, loaded) = load_text(&text, &[], &BTreeMap::new());
        let (topology, warnings) = loaded.unwrap_or_else(|errors| panic!("{field}: {errors:?}"));
        assert_eq!(warnings, [], "{field}");
        let notices = undeployable(&topology, &|_| true);
        let said = notices.iter().any(|notice| {
            notice.line == 6 && !notice.skips && notice.message.starts_with(&format!("{field} has no effect"))
        });
        assert!(said, "{field} is ignored in silence: {notices:#?}");
    }
}

#[test]
fn one_line_of_a_group_is_one_notice() {
    let text = "name: x\ntopology:\n  groups: {g: {ports: [80:80]}}\n  nodes:\n    a: {kind: linux, group: g}\n    b: {kind: linux, group: g}\n";
    let (_dir, loaded) = load_text(text, &[], &BTreeMap::new());
    let notices = undeployable(&loaded.unwrap().0, &|_| true);
    assert_eq!(notices.len(), 1, "{notices:#?}");
    assert_eq!((notices[0].line, notices[0].subject.as_str()), (3, "nodes a, b"));
}

#[test]
fn files_of_other_machines_matter_only_to_nodes_that_are_deployed() {
    let text = |kind: &str| {
        format!(
            "name: x\ntopology:\n  nodes:\n    a:\n      kind: {kind}\n      binds: [/no/such/modules:/m]\n"
        )
    };
    let (_dir, loaded) = load_text(&text("cvx"), &[], &BTreeMap::new());
    assert!(loaded.is_ok(), "{loaded:?}");
    let (_dir, loaded) = load_text(&text("linux"), &[], &BTreeMap::new());
    assert!(loaded.unwrap_err()[0].message.contains("/no/such/modules does not exist"));
}

#[test]
fn keys_below_keys_are_looked_at_too() {
    let text = "name: x\nsettings:\n  certificate-authority:\n    certt: a\ntopology:\n  nodes:\n    a:\n      kind: linux\n      certificate: {isue: true}\n";
    let (_dir, loaded) = load_text(text, &[], &BTreeMap::new());
    let (_, warnings) = loaded.unwrap();
    let lines: Vec<(u64, &str)> = warnings.iter().map(|w| (w.line, w.key.as_str())).collect();
    assert_eq!(
        lines,
        [(4, "settings.certificate-authority.certt"), (9, "topology.nodes.a.certificate.isue")]
    );
}

#[test]
fn all_errors_at_once_each_with_line_and_what_is_allowed() {
    let (_dir, loaded) = load_text(BROKEN, &[], &BTreeMap::new());
    let errors = loaded.unwrap_err();
    let text: Vec<String> = errors.iter().map(|e| format!("{} {} {}", e.line, e.key, e.message)).collect();
    for (line, part) in [
        (6, "startup-delay needs a whole number from 0 to 86400, has \"soon\""),
        (7, "is not one of always, never, ifnotpresent"),
        (11, "cpu needs a number"),
        (12, "auto-remove needs true or false"),
        (14, "\"just-one\": needs SOURCE:DESTINATION"),
        (15, "absent-file does not exist"),
        (16, "env needs a map of keys to values, has a list"),
        (17, "exec needs a list"),
        (18, "needs an IPv4 address"),
        (20, "is not [HOST-ADDRESS:]"),
        (21, "has no closing '"),
        (22, "is not one of host, none, bridge"),
        (24, "retries needs a whole number from 0"),
        (26, "stage that is one of create, create-links"),
        (23, "waits for \"n9\""),
        (27, "the node name \"bad/name\" cannot be used"),
        (29, "there is no node \"n3\"; known: bad/name, n1, n2"),
        (30, "needs exactly two endpoints NODE:INTERFACE, has 1"),
        (31, "\"a/b\" is no interface name"),
        (31, "n1:eth1 is already used"),
        (32, "\"wormhole\" is not one of veth"),
        (35, "needs both node and interface"),
        (35, "needs a MAC address"),
        (35, "needs an IPv4 address with prefix length"),
        (36, "dst-port missing"),
        (36, "remote missing"),
        (38, "vni needs a whole number from 1 to 16777215"),
        (40, "mtu needs a whole number from 68 to 65535"),
        (41, "needs an IPv6 address with prefix length"),
    ] {
        let found = text.iter().any(|t| t.starts_with(&format!("{line} ")) && t.contains(part));
        assert!(found, "line {line}: {part}\namong {text:#?}");
    }
    assert!(errors.windows(2).all(|pair| pair[0].line <= pair[1].line), "sorted");
}

#[test]
fn unknown_keys_are_warnings_with_line_and_hint() {
    let text = "name: x\ntopologi: 1\ntopology:\n  nodes:\n    n1:\n      kind: linux\n      imgae: a\n      \
                mgmt_ipv4: 1.2.3.4\n      wholly-new: 1\n  links: []\n";
    let (_dir, loaded) = load_text(text, &[], &BTreeMap::new());
    let (_, warnings) = loaded.unwrap();
    let lines: Vec<(u64, &str)> = warnings.iter().map(|w| (w.line, w.key.as_str())).collect();
    let node = "topology.nodes.n1";
    let keys = [format!("{node}.imgae"), format!("{node}.mgmt_ipv4"), format!("{node}.wholly-new")];
    assert_eq!(lines, [(2, "topologi"), (7, &keys[0]), (8, &keys[1]), (9, &keys[2])]);
    assert!(warnings[0].message.contains("did you mean \"topology\""));
    assert!(warnings[1].message.contains("did you mean \"image\""), "{}", warnings[1]);
    assert!(warnings[2].message.contains("use mgmt-ipv4"));
    assert!(warnings[3].to_string().contains("lab.clab.yml:9: topology.nodes.n1.wholly-new: unknown key"));
}

#[test]
fn variables_choose_files_and_unset_ones_warn() {
    let text = "name: x\ntopology:\n  nodes:\n    n1:\n      kind: linux\n      image: ${IMAGE}\n      \
                binds: [\"${VARIANT:=a}.yaml:/v.yaml\"]\n";
    let (_dir, loaded) = load_text(text, &["a.yaml", "b.yaml"], &env(&[("VARIANT", "b"), ("IMAGE", "i:1")]));
    let (topology, warnings) = loaded.unwrap();
    assert!(warnings.is_empty());
    assert!(topology.nodes["n1"].binds[0].source.ends_with("/b.yaml"));
    assert_eq!(topology.nodes["n1"].image.as_deref(), Some("i:1"));
    let (_dir, loaded) = load_text(text, &["a.yaml"], &BTreeMap::new());
    let (topology, warnings) = loaded.unwrap();
    assert!(topology.nodes["n1"].binds[0].source.ends_with("/a.yaml"));
    assert_eq!((warnings[0].line, warnings.len()), (6, 1));
    let (_dir, loaded) = load_text(text, &["a.yaml"], &env(&[("VARIANT", "typo")]));
    let errors = loaded.unwrap_err();
    assert!(errors[0].message.contains("typo.yaml does not exist"), "{}", errors[0]);
    assert_eq!(errors[0].line, 7);
}

#[test]
fn environment_files_lie_under_env() {
    let dir = tempfile::tempdir().unwrap();
    let content = "# comment\nexport A=1\nB=\"two words\"\nC='x' \nD=from file # note\n\n";
    std::fs::write(dir.path().join("vars.env"), content).unwrap();
    let path = dir.path().join("x.clab.yml");
    let text = "name: x\ntopology:\n  nodes:\n    n1: {kind: linux, env-files: [vars.env], env: {C: own}}\n";
    std::fs::write(&path, text).unwrap();
    let (topology, _) = load(&path, &BTreeMap::new()).unwrap();
    let expected = env(&[("A", "1"), ("B", "two words"), ("C", "own"), ("D", "from file")]);
    assert_eq!(topology.nodes["n1"].env, expected);
    assert_eq!(topology.nodes["n1"].env_files.len(), 1);
}

#[test]
fn files_that_are_no_topology_say_so() {
    for (text, part) in [
        ("", "name: missing"),
        ("name: x\n", "topology: missing"),
        ("name: x\ntopology: {nodes: {}}\n", "needs at least one node"),
        ("- a\n- b\n", "needs a map"),
        ("name: x\ntopology:\n  nodes: [\n", "not valid YAML"),
        ("name: x\nname: y\ntopology: {}\n", "not valid YAML"),
        (
            "name: x\ntopology:\n  nodes:\n    a: {kind: linux}\n    a: {kind: linux}\n",
            "lab.clab.yml:5: not valid YAML",
        ),
        ("name: x\ntopology:\n  nodes:\n{{- if .x }}\n    a:\n", "line 4 holds a Go template directive"),
        ("name: ../x\ntopology: {nodes: {a: {kind: linux}}}\n", "use at most 64 letters"),
        ("name: x\ntopology: {nodes: {a: {}}}\n", "no kind"),
    ] {
        let (_dir, loaded) = load_text(text, &[], &BTreeMap::new());
        let errors = loaded.unwrap_err();
        let all = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        assert!(all.contains(part), "{text:?} gives {all}");
    }
    let errors = load(Path::new("/nonexistent/x.clab.yml"), &BTreeMap::new()).unwrap_err();
    assert!(errors[0].message.contains("-t"), "{}", errors[0]);
}

#[test]
fn bounds_hold() {
    let mut text = String::from("name: x\ntopology:\n  defaults: {kind: linux}\n  nodes:\n");
    for index in 0..=MAX_NODES {
        text.push_str(&format!("    n{index}:\n"));
    }
    let (_dir, loaded) = load_text(&text, &[], &BTreeMap::new());
    assert!(loaded.unwrap_err()[0].message.contains("more than 2000"));
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("big.clab.yml");
    std::fs::File::create(&path).unwrap().set_len(MAX_BYTES + 1).unwrap();
    assert!(load(&path, &BTreeMap::new()).unwrap_err()[0].message.contains("more than"));
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n\
                d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n\
                g: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nh: [*g,*g,*g,*g,*g,*g,*g,*g,*g]\n";
    let (_dir, loaded) = load_text(bomb, &[], &BTreeMap::new());
    assert!(loaded.unwrap_err()[0].message.contains("not valid YAML"));
}

#[test]
fn two_copies_of_a_lab_have_two_directories() {
    let (a, b) = (lab_dir(Path::new("/a/x.clab.yml"), "x"), lab_dir(Path::new("/b/x.clab.yml"), "x"));
    assert_ne!(a, b);
    assert!(a.starts_with("/run/tombolo-lab"));
    assert_eq!(a.file_name().unwrap().len(), "x-".len() + 8);
}
