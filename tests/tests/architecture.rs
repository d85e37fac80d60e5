//! The house keeps its shape: arrows point down only, and every dependency may be used under our licence.

#![cfg(test)]

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Floors from the top; a crate may use crates of lower floors only. `bgp` stands alone; containerlab and tests stand
/// beside the house and may look at what is named for them.
const FLOORS: &[&[&str]] = &[
    &["tombolo"],
    &["tombolo-observe"],
    &[
        "tombolo-kubernetes",
        "tombolo-cni",
        "tombolo-clustermesh",
        "tombolo-bgp-node",
        "tombolo-tunnel",
        "tombolo-ebpf",
        "tombolo-dns",
    ],
    &["tombolo-model"],
    &["tombolo-service", "tombolo-policy"],
    &["tombolo-topology"],
    &["tombolo-netlink", "tombolo-base", "tombolo-bgp"],
];

/// Crates that may use less than what lies below them.
const NARROW: &[(&str, &[&str])] = &[
    ("tombolo-observe", &["tombolo-topology", "tombolo-base"]),
    ("tombolo-containerlab", &["tombolo-base", "tombolo-netlink"]),
    ("tombolo-topology", &["tombolo-base"]),
    ("tombolo-bgp", &[]),
    ("tombolo-base", &[]),
    ("tombolo-netlink", &[]),
];

/// Licences of dependencies that Apache-2.0 code may be linked with.
const LICENCES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "LGPL-2.1-or-later",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "MPL-2.0+",
    "OpenSSL",
    "Unicode-3.0",
    "Unicode-DFS-2016",
    "Unlicense",
    // The TUN crate of the userspace WireGuard; no conditions at all.
    "WTFPL",
    "Zlib",
];

fn metadata() -> Metadata {
    MetadataCommand::new().manifest_path("../Cargo.toml").exec().expect("cargo metadata of the workspace")
}

fn edges(metadata: &Metadata, kinds: &[DependencyKind]) -> BTreeMap<String, BTreeSet<String>> {
    let ours = |name: &str| name == "tombolo" || name.starts_with("tombolo-");
    let uses = |package: &cargo_metadata::Package| {
        let counted = package.dependencies.iter().filter(|d| kinds.contains(&d.kind));
        counted.map(|d| d.name.clone()).filter(|name| ours(name)).collect()
    };
    metadata
        .workspace_packages()
        .into_iter()
        .map(|package| (package.name.to_string(), uses(package)))
        .collect()
}

/// What is built into a program.
const BUILT: &[DependencyKind] = &[DependencyKind::Normal, DependencyKind::Build];

#[test]
fn arrows_point_down_only() {
    let floor = |name: &str| FLOORS.iter().position(|floor| floor.contains(&name));
    let mut wrong = Vec::new();
    for (user, used) in edges(&metadata(), BUILT) {
        let narrow = NARROW.iter().find(|(name, _)| *name == user).map(|(_, allowed)| *allowed);
        for target in &used {
            let fine = match (narrow, floor(&user), floor(target)) {
                (Some(allowed), _, _) => allowed.contains(&target.as_str()),
                // The binary mounts the lab's command line.
                (None, Some(0), None) => target == "tombolo-containerlab",
                (None, Some(from), Some(to)) => from < to,
                (None, None, _) => user == "tombolo-tests",
                (None, Some(_), None) => false,
            };
            if !fine {
                wrong.push(format!("{user} -> {target}"));
            }
        }
    }
    assert!(wrong.is_empty(), "arrows that do not point down: {wrong:?}");
}

/// Tests may use what they compare with or run against, also beside or above, but not in a circle and not the binary: a
/// crate that only its own tests can pull up would be rebuilt with every room above it.
#[test]
fn tests_arrows_go_in_no_circle() {
    let all =
        edges(&metadata(), &[DependencyKind::Normal, DependencyKind::Build, DependencyKind::Development]);
    for (user, used) in edges(&metadata(), &[DependencyKind::Development]) {
        let mut reached = BTreeSet::new();
        let mut open: Vec<String> = used.into_iter().collect();
        while let Some(name) = open.pop() {
            if reached.insert(name.clone()) {
                open.extend(all.get(&name).into_iter().flatten().cloned());
            }
        }
        assert!(!reached.contains(&user), "the tests of {user} use it in a circle: {reached:?}");
        let binary = reached.contains("tombolo") && user != "tombolo-tests";
        assert!(!binary, "the tests of {user} use the binary; put them into tests/");
    }
}

#[test]
fn every_crate_has_its_floor() {
    let placed: BTreeSet<&str> = FLOORS.iter().flat_map(|floor| floor.iter().copied()).collect();
    for name in edges(&metadata(), BUILT).keys() {
        let beside = ["tombolo-containerlab", "tombolo-tests"].contains(&name.as_str());
        assert!(placed.contains(name.as_str()) || beside, "{name} stands on no floor: add it to FLOORS");
    }
}

/// Whether an SPDX expression can be satisfied: every AND part by one of its OR alternatives.
fn acceptable(expression: &str) -> bool {
    let cleaned = expression.replace(['(', ')'], " ").replace('/', " OR ");
    cleaned.split(" AND ").all(|part| part.split(" OR ").any(|licence| LICENCES.contains(&licence.trim())))
}

#[test]
fn licences_fit() {
    let wrong: Vec<String> = metadata()
        .packages
        .iter()
        .filter(|package| !package.license.as_deref().is_some_and(acceptable))
        .map(|package| format!("{} {}: {:?}", package.name, package.version, package.license))
        .collect();
    assert!(wrong.is_empty(), "licences not on the list: {wrong:#?}");
    assert!(!acceptable("GPL-3.0-only") && acceptable("(MIT OR Apache-2.0) AND Unicode-3.0"));
}

const KINDS: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];

/// Dependencies of a member that do not come from the workspace, each with the table it stands in.
fn own_dependencies(manifest: &toml::Table) -> Vec<String> {
    let sub = |table: &toml::Table, key: &str| table.get(key).and_then(toml::Value::as_table).cloned();
    let targets = sub(manifest, "target").unwrap_or_default();
    let targets = targets.values().filter_map(toml::Value::as_table).cloned();
    let mut wrong = Vec::new();
    for place in targets.chain([manifest.clone()]) {
        for (kind, entries) in KINDS.iter().filter_map(|kind| Some((*kind, sub(&place, kind)?))) {
            let shared =
                |value: &toml::Value| value.get("workspace").and_then(toml::Value::as_bool) == Some(true);
            wrong.extend(
                entries.iter().filter(|(_, value)| !shared(value)).map(|(name, _)| format!("{kind}.{name}")),
            );
        }
    }
    wrong
}

fn manifest(path: &str) -> toml::Table {
    let text = std::fs::read_to_string(path).expect("a manifest of the workspace");
    text.parse().expect("a manifest in TOML")
}

#[test]
fn dependencies_stand_once_in_the_workspace() {
    let root = manifest("../Cargo.toml");
    assert!(root.get("workspace").and_then(|workspace| workspace.get("dependencies")).is_some());
    for package in metadata().workspace_packages() {
        let wrong = own_dependencies(&manifest(package.manifest_path.as_str()));
        assert!(wrong.is_empty(), "{}: {wrong:?} must say `workspace = true`", package.manifest_path);
    }
}

#[test]
fn a_version_in_a_member_is_found_wherever_it_stands() {
    let text = r#"
        [dependencies]
        serde = "1"
        bytes.workspace = true
        tokio = { workspace = true, features = ["net"] }
        [dev-dependencies.rand]
        version = "0.9"
        [target.'cfg(unix)'.build-dependencies]
        cc = { version = "1" }
    "#;
    let wrong = own_dependencies(&text.parse().expect("TOML"));
    assert_eq!(wrong, ["build-dependencies.cc", "dependencies.serde", "dev-dependencies.rand"]);
}

/// Where unsafe code may stand: raw bpf(2) and ABI structs, entering namespaces, and socket options that no crate offers.
const UNSAFE: &[&str] = &["ebpf/", "containerlab/src/enter.rs", "bgp/src/transport/sockopt.rs"];

/// Rust files of a member, its bins, tests, benches and build script too.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder of the workspace") {
        let path = entry.expect("an entry of a folder").path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The workspace denies unsafe code in every target; only named places may lift that.
#[test]
fn unsafe_code_stands_only_where_the_design_allows_it() {
    let deny = manifest("../Cargo.toml");
    let deny = deny.get("workspace").and_then(|w| w.get("lints")?.get("rust")?.get("unsafe_code")?.as_str());
    assert_eq!(deny, Some("deny"));
    let metadata = metadata();
    let root = metadata.workspace_root.as_std_path();
    for package in metadata.workspace_packages() {
        let member = manifest(package.manifest_path.as_str());
        let inherits = member.get("lints").and_then(|lints| lints.get("workspace")?.as_bool());
        assert_eq!(inherits, Some(true), "{}: give it `[lints] workspace = true`", package.name);
        let mut files = Vec::new();
        sources(package.manifest_path.parent().expect("a member's folder").as_std_path(), &mut files);
        for file in files {
            let name = file.strip_prefix(root).unwrap_or(&file).to_string_lossy().into_owned();
            let text = std::fs::read_to_string(&file).expect("a source file");
            // In pieces, so that this file is not found.
            let lifts = ["allow", "warn", "expect"].iter().any(|level| {
                text.match_indices(&format!("{level}(")).any(|(at, _)| {
                    text.get(at..)
                        .and_then(|rest| rest.split(')').next())
                        .is_some_and(|inner| inner.contains("unsafe_code"))
                })
            });
            let allowed = UNSAFE.iter().any(|place| name.starts_with(place));
            assert!(
                !lifts || allowed || name == "tests/tests/architecture.rs",
                "{name} lifts the lint on unsafe code"
            );
        }
    }
}

/// Names of functions in all members that the test harness, or a property, runs.
fn tests_of_the_house() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for package in metadata().workspace_packages() {
        let mut files = Vec::new();
        sources(package.manifest_path.parent().expect("a member's folder").as_std_path(), &mut files);
        for file in files {
            let text = std::fs::read_to_string(&file).expect("a source file");
            let mut attributed = false;
            for line in text.lines().map(str::trim_start) {
                attributed |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
                let function = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
                let name = function.and_then(|rest| rest.split_once('(')).map(|(name, _)| name.to_owned());
                names.extend(name.filter(|_| std::mem::take(&mut attributed)));
            }
        }
    }
    names
}

/// Each answer to what hurts elsewhere is shown by a test, or says that it is none.
#[test]
fn the_tests_that_answer_what_hurts_elsewhere_exist() {
    let text = std::fs::read_to_string("../docs/clustermesh.md").expect("docs/clustermesh.md");
    let section = text.split("\n## ").find(|section| section.starts_with("Where others hurt\n"));
    let rows = section.into_iter().flat_map(str::lines).filter(|line| line.starts_with("| "));
    let rows: Vec<Vec<&str>> = rows.map(|row| row.split('|').map(str::trim).collect()).collect();
    let rows = rows.iter().filter(|cells| cells.get(1).is_some_and(|number| number.parse::<u8>().is_ok()));
    let known = tests_of_the_house();
    let mut answered = 0;
    for cells in rows {
        let (answer, tests) = (cells[3], cells[4]);
        let named: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        assert!(named.is_empty() == answer.starts_with("not answered"), "{cells:?}");
        for name in named {
            assert!(known.contains(name), "docs/clustermesh.md names the test {name}, which does not exist");
        }
        answered += 1;
    }
    assert_eq!(answered, 25, "pains in docs/clustermesh.md");
}
