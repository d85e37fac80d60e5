//! What a node may advertise in the state it is in: nothing before it can serve, no services when it is sick, and services as a last resort while it
//! is being drained (RFC 8326).

use super::plan::Plan;
use super::{AdvertOrigin, Condition, ConditionType};
use crate::rows::NodeHealth;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The community that asks a peer to prefer any other path (RFC 8326).
pub const GRACEFUL_SHUTDOWN: u32 = 0xffff_0000;

/// What a sign of trouble does to the advertised services. Pod prefixes stay: pods that still run are nowhere else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reaction {
    /// Nothing.
    #[default]
    Ignore,
    /// They are advertised with the community of RFC 8326, and with local preference 0 to internal peers: traffic goes elsewhere while
    /// connections drain.
    Drain,
    /// They are withdrawn.
    Withdraw,
}

/// Which signs count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct HealthPolicy {
    /// `spec.unschedulable`: the node is cordoned.
    pub cordon: Reaction,
    /// Taints by key, whatever their value and effect.
    pub taints: BTreeMap<Arc<str>, Reaction>,
    /// The condition DiskPressure.
    pub disk_pressure: Reaction,
    /// Nothing is advertised before the other clusters' entries are there.
    pub wait_for_mesh: bool,
}

impl Default for HealthPolicy {
    /// A cordoned node is drained; one that is out of service or about to be deleted advertises no services.
    fn default() -> Self {
        let taints = [
            ("node.kubernetes.io/out-of-service", Reaction::Withdraw),
            ("node.kubernetes.io/unreachable", Reaction::Withdraw),
            ("ToBeDeletedByClusterAutoscaler", Reaction::Drain),
        ];
        Self {
            cordon: Reaction::Drain,
            taints: taints.into_iter().map(|(key, reaction)| (key.into(), reaction)).collect(),
            disk_pressure: Reaction::Ignore,
            wait_for_mesh: false,
        }
    }
}

/// What the node's own parts say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// The datapath holds what it needs to serve: frontends, policies, pods' interfaces.
    pub datapath: bool,
    /// The datapath holds the other clusters' entries, or has waited long enough for them.
    pub mesh: bool,
}

impl Readiness {
    /// Ready where either is.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self { datapath: self.datapath || other.datapath, mesh: self.mesh || other.mesh }
    }

    /// Whether this is ready where the other is not.
    #[must_use]
    pub fn adds_to(self, other: Self) -> bool {
        other.or(self) != other
    }
}

/// What follows for the adverts, with the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All are advertised.
    Announce,
    /// None is yet: an earlier life's stay as peers keep them.
    Hold(String),
    /// Services are affected.
    Services(Reaction, String),
}

/// The verdict of a policy on a node. The strongest reaction counts; its reasons are all told.
#[must_use]
pub fn judge(readiness: Readiness, node: &NodeHealth, policy: &HealthPolicy) -> Verdict {
    if !readiness.datapath {
        return Verdict::Hold("the datapath is not ready to serve yet".to_owned());
    }
    if policy.wait_for_mesh && !readiness.mesh {
        return Verdict::Hold("the other clusters' entries are not complete yet".to_owned());
    }
    let mut signs: Vec<(Reaction, String)> = Vec::new();
    if node.unschedulable {
        signs.push((policy.cordon, "the node is cordoned".to_owned()));
    }
    if node.disk_pressure {
        signs.push((policy.disk_pressure, "the node is under disk pressure".to_owned()));
    }
    let tainted = node.taints.iter().filter_map(|key| Some((*policy.taints.get(key)?, key)));
    signs.extend(tainted.map(|(reaction, key)| (reaction, format!("the node has the taint {key}"))));
    let strongest = signs.iter().map(|(reaction, _)| *reaction).max().unwrap_or_default();
    if strongest == Reaction::Ignore {
        return Verdict::Announce;
    }
    let reasons = signs.into_iter().filter(|(reaction, _)| *reaction == strongest).map(|(_, reason)| reason);
    Verdict::Services(strongest, reasons.collect::<Vec<_>>().join(", "))
}

/// Carries a verdict out on a plan.
pub fn apply(verdict: &Verdict, node: &str, plan: &mut Plan) {
    let is_service = |origin: &AdvertOrigin| matches!(origin, AdvertOrigin::Service { .. });
    let (what, reason) = match verdict {
        Verdict::Announce | Verdict::Services(Reaction::Ignore, _) => return,
        Verdict::Hold(reason) => {
            plan.adverts.clear();
            ("nothing is advertised over BGP", reason)
        }
        Verdict::Services(Reaction::Withdraw, reason) => {
            plan.adverts.retain(|row| !is_service(&row.origin));
            ("no service is advertised over BGP", reason)
        }
        Verdict::Services(Reaction::Drain, reason) => {
            for row in plan.adverts.iter_mut().filter(|row| is_service(&row.origin)) {
                row.communities.insert(GRACEFUL_SHUTDOWN);
                // Sent to internal peers only.
                row.local_preference = Some(0);
            }
            ("services are advertised over BGP as a last resort", reason)
        }
    };
    plan.conditions.insert(Condition {
        kind: "Node",
        name: node.into(),
        about: ConditionType::ReconcileError,
        text: format!("{what}: {reason}"),
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bgp::AdvertRow;
    use tombolo_base::source::Source;

    const READY: Readiness = Readiness { datapath: true, mesh: true };

    fn plan() -> Plan {
        let advert = |prefix: &str, origin| AdvertRow {
            source: Source::Planner,
            instance: "main".into(),
            peer: "tor".into(),
            prefix: prefix.parse().unwrap(),
            origin,
            communities: [7].into(),
            large_communities: Default::default(),
            local_preference: Some(200),
        };
        let service = AdvertOrigin::Service { namespace: "shop".into(), name: "web".into() };
        Plan {
            adverts: vec![
                advert("10.1.1.0/24", AdvertOrigin::PodCidr),
                advert("203.0.113.0/32", service.clone()),
                advert("2001:db8::1/128", service),
            ],
            ..Plan::default()
        }
    }

    fn after(readiness: Readiness, node: &NodeHealth, policy: &HealthPolicy) -> Plan {
        let mut plan = plan();
        apply(&judge(readiness, node, policy), "n1", &mut plan);
        plan
    }

    #[test]
    fn nothing_is_advertised_before_the_node_can_serve() {
        let (healthy, policy) = (NodeHealth::default(), HealthPolicy::default());
        assert_eq!(after(READY, &healthy, &policy), plan());
        let early = after(Readiness { datapath: false, mesh: true }, &healthy, &policy);
        assert!(early.adverts.is_empty() && early.conditions.len() == 1);
        let alone = Readiness { datapath: true, mesh: false };
        assert!(READY.adds_to(alone) && !alone.adds_to(READY) && alone.or(READY) == READY);
        assert_eq!(after(alone, &healthy, &policy), plan(), "the mesh counts only where it is asked for");
        let policy = HealthPolicy { wait_for_mesh: true, ..policy };
        assert!(after(alone, &healthy, &policy).adverts.is_empty());
        assert_eq!(after(READY, &healthy, &policy), plan());
    }

    #[test]
    fn a_cordoned_node_drains_its_services_and_keeps_its_pods() {
        let node = NodeHealth { unschedulable: true, ..NodeHealth::default() };
        let drained = after(READY, &node, &HealthPolicy::default());
        let [pods, services @ ..] = drained.adverts.as_slice() else { panic!() };
        assert_eq!(*pods, plan().adverts[0]);
        for row in services {
            assert_eq!((&row.communities, row.local_preference), (&[7, GRACEFUL_SHUTDOWN].into(), Some(0)));
        }
        let condition = drained.conditions.first().unwrap();
        assert!(condition.kind == "Node" && condition.text.contains("cordoned"), "{condition:?}");
    }

    #[test]
    fn the_strongest_sign_counts_and_what_nobody_asked_for_does_not() {
        let mut node = NodeHealth { unschedulable: true, disk_pressure: true, ..NodeHealth::default() };
        node.taints = ["node.kubernetes.io/out-of-service".into(), "some/other".into()].into();
        let withdrawn = after(READY, &node, &HealthPolicy::default());
        assert_eq!(withdrawn.adverts, plan().adverts[..1]);
        let ignoring =
            HealthPolicy { cordon: Reaction::Ignore, taints: BTreeMap::new(), ..Default::default() };
        assert_eq!(after(READY, &node, &ignoring), plan());
        let disk = HealthPolicy { disk_pressure: Reaction::Withdraw, ..ignoring };
        let Verdict::Services(Reaction::Withdraw, reason) = judge(READY, &node, &disk) else { panic!() };
        assert_eq!(reason, "the node is under disk pressure");
    }
}
