//! What the exports of one name agree on, and where they do not.
//!
//! The oldest export decides, of equal age the one of the cluster that comes first by name. Ports are joined. Families
//! are those that all have; a cluster that has none of them is left out.

use super::rows::{ExportSpec, ExportedPort, ImportType};
use super::share::PORTS_OF_EXPORT_MAX;
use crate::rows::Protocol;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// An export of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constituent {
    /// The cluster.
    pub cluster: Arc<str>,
    /// When it was exported, seconds since 1970.
    pub created_unix_secs: i64,
    /// What it says.
    pub spec: ExportSpec,
}

/// What of an export differs from what the import became; in the words of the MCS API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// A port is missing or has another name or application protocol.
    PortConflict,
    /// Headless or not.
    TypeConflict,
    /// Whether clients stay with their backend.
    SessionAffinityConflict,
    /// For how long.
    SessionAffinityConfigConflict,
    /// Exported labels.
    LabelsConflict,
    /// Exported annotations.
    AnnotationsConflict,
    /// `internalTrafficPolicy`.
    InternalTrafficPolicyConflict,
    /// `trafficDistribution`.
    TrafficDistributionConflict,
    /// IP families.
    IPFamilyConflict,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// One deviation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    /// The cluster whose export deviates.
    pub cluster: Arc<str>,
    /// In what.
    pub reason: Reason,
    /// How, and what is used instead.
    pub message: String,
}

/// What the exports of one name become.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// The import.
    pub spec: ExportSpec,
    /// The clusters whose endpoints it can have.
    pub clusters: BTreeSet<Arc<str>>,
    /// Every deviation, by cluster.
    pub conflicts: Vec<Conflict>,
}

/// Joins exports; `None` if there is none.
#[must_use]
pub fn resolve(exports: &[Constituent]) -> Option<Resolved> {
    let mut sorted: Vec<&Constituent> = exports.iter().collect();
    sorted.sort_by(|a, b| (a.created_unix_secs, &a.cluster).cmp(&(b.created_unix_secs, &b.cluster)));
    let (first, others) = sorted.split_first()?;
    let mut join = Join {
        first,
        families: families(&first.spec),
        ports: Ports::default(),
        out: Resolved {
            spec: first.spec.clone(),
            clusters: [first.cluster.clone()].into(),
            conflicts: Vec::new(),
        },
    };
    join.ports(first);
    for other in others {
        if join.families(other) {
            join.out.clusters.insert(other.cluster.clone());
            join.ports(other);
            join.words(other);
        }
    }
    Some(join.finish(&sorted))
}

/// The families that an export says it has; all if it says nothing.
fn families(spec: &ExportSpec) -> BTreeSet<bool> {
    match spec.families_ipv4.is_empty() {
        true => [true, false].into(),
        false => spec.families_ipv4.iter().copied().collect(),
    }
}

fn family_names(families: &BTreeSet<bool>) -> String {
    let names: Vec<_> = families.iter().rev().map(|ipv4| if *ipv4 { "IPv4" } else { "IPv6" }).collect();
    names.join(" and ")
}

/// Ports in the order of the exports that brought them.
#[derive(Default)]
struct Ports {
    taken: Vec<(ExportedPort, Arc<str>)>,
    by_number: BTreeMap<(u16, Protocol), usize>,
    by_name: BTreeMap<Arc<str>, usize>,
}

struct Join<'a> {
    first: &'a Constituent,
    families: BTreeSet<bool>,
    ports: Ports,
    out: Resolved,
}

impl Join<'_> {
    fn tell(&mut self, cluster: &Arc<str>, reason: Reason, message: String) {
        self.out.conflicts.push(Conflict { cluster: cluster.clone(), reason, message });
    }

    /// Narrows the families; false if the export has none of them.
    fn families(&mut self, other: &Constituent) -> bool {
        let theirs = families(&other.spec);
        let common: BTreeSet<bool> = self.families.intersection(&theirs).copied().collect();
        if common.is_empty() {
            let (has, used) = (family_names(&theirs), family_names(&self.families));
            let message = format!("it has {has}, the older exports {used}: its endpoints are not used");
            self.tell(&other.cluster, Reason::IPFamilyConflict, message);
            return false;
        }
        self.families = common;
        true
    }

    fn ports(&mut self, other: &Constituent) {
        if other.spec.ports.len() > PORTS_OF_EXPORT_MAX {
            let message = format!(
                "it exports {} ports, of which the first {PORTS_OF_EXPORT_MAX} are used",
                other.spec.ports.len()
            );
            self.tell(&other.cluster, Reason::PortConflict, message);
        }
        for port in other.spec.ports.iter().take(PORTS_OF_EXPORT_MAX) {
            let number = (port.port, port.protocol);
            let same = |place: &usize| self.ports.taken.get(*place);
            let at = format!("port {}/{}", port.port, port.protocol);
            if let Some((known, owner)) = self.ports.by_number.get(&number).and_then(same) {
                let differs = (known.name != port.name).then_some("name");
                let differs =
                    differs.or_else(|| (known.app_protocol != port.app_protocol).then_some("appProtocol"));
                if let Some(what) = differs {
                    let message =
                        format!("the {what} of {at} differs from that of cluster {owner}, which is used");
                    self.tell(&other.cluster, Reason::PortConflict, message);
                }
            } else if let Some((known, owner)) = self.ports.by_name.get(&port.name).and_then(same) {
                let message = format!(
                    "{at} is left out, for its name {:?} is that of port {}/{} of cluster {owner}",
                    port.name, known.port, known.protocol
                );
                self.tell(&other.cluster, Reason::PortConflict, message);
            } else {
                let place = self.ports.taken.len();
                self.ports.by_number.insert(number, place);
                self.ports.by_name.insert(port.name.clone(), place);
                self.ports.taken.push((port.clone(), other.cluster.clone()));
            }
        }
    }

    /// Everything that the first export alone decides.
    fn words(&mut self, other: &Constituent) {
        let (ours, theirs, owner) = (&self.first.spec, &other.spec, &self.first.cluster);
        let said = |mine: bool, other: bool| mine && other;
        let affinity = |spec: &ExportSpec| if spec.client_ip_affinity { "ClientIP" } else { "None" };
        let secs =
            |spec: &ExportSpec| spec.affinity_timeout_secs.map_or("default".to_owned(), |s| s.to_string());
        let word = |word: &Option<Arc<str>>| word.as_deref().unwrap_or("none").to_owned();
        let kind = |kind: ImportType| format!("{kind:?}");
        let policies = (ours.internal_traffic_policy, theirs.internal_traffic_policy);
        let timeouts = ours.client_ip_affinity && theirs.client_ip_affinity;
        let distribution = said(ours.traffic_distribution.is_some(), theirs.traffic_distribution.is_some());
        let found = [
            (Reason::TypeConflict, ours.kind != theirs.kind, kind(theirs.kind), kind(ours.kind)),
            (
                Reason::SessionAffinityConflict,
                ours.client_ip_affinity != theirs.client_ip_affinity,
                format!("session affinity {}", affinity(theirs)),
                affinity(ours).to_owned(),
            ),
            (
                Reason::SessionAffinityConfigConflict,
                timeouts && ours.affinity_timeout_secs != theirs.affinity_timeout_secs,
                format!("session affinity timeout {}", secs(theirs)),
                secs(ours),
            ),
            (
                Reason::LabelsConflict,
                ours.labels != theirs.labels,
                "its labels".to_owned(),
                "other ones".to_owned(),
            ),
            (
                Reason::AnnotationsConflict,
                ours.annotations != theirs.annotations,
                "its annotations".to_owned(),
                "other ones".to_owned(),
            ),
            (
                Reason::InternalTrafficPolicyConflict,
                matches!(policies, (Some(a), Some(b)) if a != b),
                format!("internalTrafficPolicy {:?}", theirs.internal_traffic_policy.unwrap_or_default()),
                format!("{:?}", ours.internal_traffic_policy.unwrap_or_default()),
            ),
            (
                Reason::TrafficDistributionConflict,
                distribution && ours.traffic_distribution != theirs.traffic_distribution,
                format!("trafficDistribution {}", word(&theirs.traffic_distribution)),
                word(&ours.traffic_distribution),
            ),
        ];
        let owner = owner.clone();
        for (reason, differs, theirs, ours) in found {
            if differs {
                let message =
                    format!("{theirs}, where the older export of cluster {owner} has {ours}, which is used");
                self.tell(&other.cluster, reason, message);
            }
        }
    }

    /// What only the whole shows: ports and families that not all have.
    fn finish(mut self, all: &[&Constituent]) -> Resolved {
        for one in all.iter().filter(|one| self.out.clusters.contains(&one.cluster)).collect::<Vec<_>>() {
            let has: BTreeSet<_> = one.spec.ports.iter().map(|port| (port.port, port.protocol)).collect();
            let lacks =
                self.ports.taken.iter().filter(|(port, _)| !has.contains(&(port.port, port.protocol)));
            let lacks: Vec<_> = lacks.map(|(port, _)| format!("{}/{}", port.port, port.protocol)).collect();
            if !lacks.is_empty() {
                let message = format!("it has no port {}, which others export", lacks.join(", "));
                self.tell(&one.cluster, Reason::PortConflict, message);
            }
            let theirs = families(&one.spec);
            if !one.spec.families_ipv4.is_empty() && theirs != self.families {
                let (has, used) = (family_names(&theirs), family_names(&self.families));
                let message = format!("it has {has}, only {used} is common to all exports and used");
                self.tell(&one.cluster, Reason::IPFamilyConflict, message);
            }
        }
        let said = all.iter().any(|one| !one.spec.families_ipv4.is_empty());
        self.out.spec.families_ipv4 =
            if said { self.families.iter().rev().copied().collect() } else { Vec::new() };
        self.out.spec.ports = self.ports.taken.into_iter().map(|(port, _)| port).collect();
        self.out.conflicts.sort();
        self.out
    }
}
