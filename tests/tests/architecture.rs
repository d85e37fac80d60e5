//! The house keeps its shape: arrows point down only, and every dependency may be used under our licence.

#![allow(clippy::expect_used, reason = "a test that cannot read the workspace has failed")]

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};
use std::collections::{BTreeMap, BTreeSet};

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
    ],
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

fn edges(metadata: &Metadata) -> BTreeMap<String, BTreeSet<String>> {
    let ours = |name: &str| name == "tombolo" || name.starts_with("tombolo-");
    let uses = |package: &cargo_metadata::Package| {
        let normal = package.dependencies.iter().filter(|d| d.kind == DependencyKind::Normal);
        normal.map(|d| d.name.clone()).filter(|name| ours(name)).collect()
    };
    metadata
        .workspace_packages()
        .into_iter()
        .map(|package| (package.name.to_string(), uses(package)))
        .collect()
}

#[test]
fn arrows_point_down_only() {
    let floor = |name: &str| FLOORS.iter().position(|floor| floor.contains(&name));
    let mut wrong = Vec::new();
    for (user, used) in edges(&metadata()) {
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

#[test]
fn every_crate_has_its_floor() {
    let placed: BTreeSet<&str> = FLOORS.iter().flat_map(|floor| floor.iter().copied()).collect();
    for name in edges(&metadata()).keys() {
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

#[test]
fn dependencies_stand_once_in_the_workspace() {
    let root = std::fs::read_to_string("../Cargo.toml").expect("the workspace manifest");
    assert!(root.contains("[workspace.dependencies]"));
    for package in metadata().workspace_packages() {
        let manifest = std::fs::read_to_string(&package.manifest_path).expect("a member's manifest");
        for (at, line) in manifest.lines().enumerate() {
            let versioned = line.contains(" = \"") && line.chars().next().is_some_and(|c| c.is_ascii_digit());
            assert!(
                !(versioned || line.contains("version = \"") && line.contains('{')),
                "{}:{}: give the version in the workspace's manifest",
                package.manifest_path,
                at + 1
            );
        }
    }
}
