//! Scenarios whose requests other checks of the run send: nothing is asked twice. Each has its own name and result, and
//! brings its checks along when it is asked for alone.

use std::collections::BTreeSet;

use crate::checks::check::{Failure, Row, Status};

/// Such a scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Covered {
    /// As in Cilium's list.
    pub name: &'static str,
    /// How the names of its checks begin; of each there must be one at least.
    pub parts: &'static [&'static str],
    /// Whether it is about encryption, and belongs to encrypted variants alone.
    pub encrypted: bool,
}

const fn covered(name: &'static str, parts: &'static [&'static str]) -> Covered {
    Covered { name, parts, encrypted: false }
}

const fn encrypted(name: &'static str, parts: &'static [&'static str]) -> Covered {
    Covered { name, parts, encrypted: true }
}

/// All of them.
pub const COVERED: &[Covered] = &[
    covered(
        "no-policies",
        &[
            "pod-to-pod/same-node/",
            "pod-to-pod/other-node/",
            "client-to-client/",
            "pod-to-service/",
            "pod-to-world/",
            "pod-to-host/",
            "host-to-pod/",
        ],
    ),
    covered("no-policies-extra", &["pod-to-node-port/own-node", "pod-to-node-port/other-node"]),
    covered("no-policies-from-outside", &["outside-to-pod/", "outside/node-port"]),
    // Every flow of the pods of a Deployment must name it.
    covered("hubble-workload", &["pod-to-pod/same-node/", "pod-to-pod/other-node/"]),
    covered("pod-to-itself-via-service", &["pod-to-itself-via-service/"]),
    covered("pod-to-pod-no-frag", &["mtu/other-node/", "mtu/other-cluster/"]),
    covered("north-south-loadbalancing", &["outside/local", "outside/cluster", "outside/node-port"]),
    encrypted(
        "pod-to-pod-encryption",
        &["pod-to-pod/other-node/", "pod-to-pod/other-cluster/", "wire/no-plaintext"],
    ),
    encrypted(
        "pod-to-pod-encryption-v2",
        &[
            "pod-to-pod/other-node/",
            "pod-to-pod/other-cluster/",
            "client-to-client/",
            "pod-to-service/remote-backend/",
            "wire/no-plaintext",
        ],
    ),
    // To an address of pods without a row: dropped (195), and no capture sees it.
    encrypted("strict-mode-encryption", &["strict/pod-to-nowhere/first-node/tcp", "wire/no-plaintext"]),
    encrypted("strict-mode-encryption-v2", &["strict/pod-to-nowhere/", "wire/no-plaintext"]),
    encrypted("node-to-node-encryption", &["host-to-host/", "wire/no-plaintext"]),
    covered("clustermesh-endpointslice-sync", &["global-service/"]),
    covered("bgp-control-plane-v2", &["routes/", "sessions/"]),
    covered("no-interrupted-connections", &["fault/agent-killed/"]),
];

impl Covered {
    /// Whether a check is one of its.
    #[must_use]
    pub fn holds(&self, check: &str) -> bool {
        self.parts.iter().any(|part| check.starts_with(part))
    }

    /// What the rows of its checks come to.
    #[must_use]
    pub fn judge<'a>(&self, rows: impl Iterator<Item = &'a Row> + Clone) -> Status {
        let of = |part: &'static str| rows.clone().filter(move |row| row.check.starts_with(part));
        if let Some(part) = self.parts.iter().find(|part| of(part).next().is_none()) {
            let what = format!("a check {part}… of {}", self.name);
            return Status::Failed(Failure::new(what, "none ran", "`tombolo lab test` without --only"));
        }
        let mine: Vec<&Row> = rows.filter(|row| self.holds(&row.check)).collect();
        let failed: BTreeSet<&str> = mine
            .iter()
            .filter(|row| matches!(row.status, Status::Failed(_)))
            .map(|row| row.check.as_str())
            .collect();
        if !failed.is_empty() {
            let expected = format!("its {} checks pass", mine.len());
            return Status::Failed(Failure::new(expected, format!("failed: {failed:?}"), "their own rows"));
        }
        let skipped = mine.iter().find_map(|row| match &row.status {
            Status::Skipped { why } => Some(why.clone()),
            _ => None,
        });
        match skipped {
            Some(why) => Status::Skipped { why },
            None => Status::Passed { notes: vec![format!("{} checks", mine.len())] },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::Variant;

    fn row(check: &str, status: Status) -> Row {
        Row { variant: Variant::Overlay, check: check.to_owned(), duration_ms: 1, status }
    }

    #[test]
    fn a_scenario_is_as_good_as_its_worst_check() {
        let both = covered("x", &["a/", "b/"]);
        let good = || Status::Passed { notes: Vec::new() };
        let mut rows = vec![
            row("a/1", good()),
            row("b/1", good()),
            row("ab/1", Status::Failed(Failure::new("", "", ""))),
        ];
        assert!(matches!(both.judge(rows.iter()), Status::Passed { .. }));
        rows.push(row("b/2", Status::Skipped { why: "not today".to_owned() }));
        assert_eq!(both.judge(rows.iter()), Status::Skipped { why: "not today".to_owned() });
        rows.push(row("a/2", Status::Failed(Failure::new("", "", ""))));
        assert!(matches!(both.judge(rows.iter()), Status::Failed(_)));
        let one_side: Vec<Row> = rows.into_iter().filter(|row| row.check == "a/1").collect();
        assert!(matches!(both.judge(one_side.iter()), Status::Failed(_)), "b was not asked");
    }
}
