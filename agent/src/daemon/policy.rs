//! Runs the policy compiler: rules, identities and endpoints in, compiled policies out.

use super::backend::Texts;
use super::drive::Driver;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;
use tombolo_base::aggregate::Gate;
use tombolo_base::ids::{ClusterName, IdentityId};
use tombolo_base::source::{Source, SourceState};
use tombolo_base::table::{Table, Writer};
use tombolo_ebpf::{RuleAction, RuleEntry};
use tombolo_kubernetes::PodRow;
use tombolo_policy::compile::{self, Change, Compiler, NamedPorts};
use tombolo_policy::{Direction, EndpointPolicy, NamedPort, PolicyRow, RuleRow, VerdictEntry};
use tombolo_topology::{EndpointRow, IdentityRow};

/// The tables the compiler reads.
pub(crate) struct Inputs {
    /// NetworkPolicies.
    pub(crate) rules: Table<RuleRow>,
    /// Identities of all clusters.
    pub(crate) identities: Table<IdentityRow>,
    /// Pods of this node.
    pub(crate) endpoints: Table<EndpointRow>,
    /// Pods of the manifests, for named ports.
    pub(crate) pods: Table<PodRow>,
}

/// Ports that this node's pods name, by identity.
fn named_ports(endpoints: &Table<EndpointRow>, pods: &Table<PodRow>) -> NamedPorts {
    let pods = pods.snapshot();
    let mut out: NamedPorts = BTreeMap::new();
    for endpoint in endpoints.snapshot().iter() {
        let (Some(identity), Some(pod)) =
            (endpoint.identity, pods.get(&(endpoint.namespace.clone(), endpoint.pod.clone())))
        else {
            continue;
        };
        let port = |port: &tombolo_kubernetes::NamedPort| NamedPort {
            name: port.name.clone(),
            protocol: port.protocol,
            port: port.port,
        };
        out.entry(identity).or_default().extend(pod.named_ports.iter().map(port));
    }
    out.retain(|_, ports| !ports.is_empty());
    out
}

/// Compiles until cancelled.
pub(crate) async fn planner(
    driver: Driver,
    cluster: ClusterName,
    inputs: Inputs,
    out: (Writer<PolicyRow>, Writer<EndpointPolicy>),
    earlier: Earlier,
    problems: Texts,
) {
    let mut compiler = Compiler::new(cluster).with_ids(earlier.ids).with_entries(earlier.entries);
    let mut gate = Gate::new(driver.clock.now());
    let (mut rules, mut identities) = (inputs.rules.changes(), inputs.identities.changes());
    let (mut endpoints, mut pods) = (inputs.endpoints.changes(), inputs.pods.changes());
    let mut ports_before = NamedPorts::new();
    let mut could_shrink = false;
    loop {
        let (mut a, mut b, mut c) = (None, None, None);
        tokio::select! {
            () = driver.cancel.cancelled() => return,
            batch = rules.next() => a = Some(batch),
            batch = identities.next() => b = Some(batch),
            batch = endpoints.next() => c = Some(batch),
            _ = pods.next() => {}
            () = driver.clock.sleep_until((!could_shrink).then(|| gate.opens_at())) => {}
        }
        let (a, b, c) =
            (a.or_else(|| rules.drain()), b.or_else(|| identities.drain()), c.or_else(|| endpoints.drain()));
        let (rule_rows, identity_rows, endpoint_rows) =
            (inputs.rules.snapshot(), inputs.identities.snapshot(), inputs.endpoints.snapshot());
        gate.observe(rule_rows.sources().chain(identity_rows.sources()));
        let may_shrink = gate.is_open(driver.clock.now());
        let ports = named_ports(&inputs.endpoints, &inputs.pods);
        let renamed: BTreeSet<IdentityId> = ports
            .keys()
            .chain(ports_before.keys())
            .filter(|id| ports.get(id) != ports_before.get(id))
            .copied()
            .collect();
        let change = if may_shrink != could_shrink {
            Change::Everything
        } else {
            Change::Rows {
                rules: a.map(|batch| batch.keys).unwrap_or_default(),
                identities: b
                    .map(|batch| batch.keys.into_iter().map(|(id, _)| id).collect())
                    .unwrap_or_default(),
                endpoints: c.map(|batch| batch.keys).unwrap_or_default(),
                named_ports: renamed,
            }
        };
        (could_shrink, ports_before) = (may_shrink, ports);
        let delta = compiler.update(
            &compile::Inputs {
                rules: &rule_rows,
                identities: &identity_rows,
                endpoints: &endpoint_rows,
                named_ports: &ports_before,
                may_shrink,
            },
            &change,
        );
        // What an earlier life enforced is pruned once the rules are read and its pods are known.
        let known = rule_rows.is_complete()
            && endpoint_rows.source_state(&Source::Local) == Some(SourceState::Initialized);
        let state = if known { SourceState::Initialized } else { SourceState::Pending };
        // Before the rules are read no endpoint is let loose: its hook keeps dropping, or keeps its earlier policy.
        if rule_rows.is_complete() {
            out.0.commit(|txn| {
                for row in delta.policies {
                    txn.upsert(row);
                }
                delta.removed_policies.iter().for_each(|id| drop(txn.remove(id)));
                txn.set_source(&Source::Planner, state);
            });
            out.1.commit(|txn| {
                for row in delta.endpoints {
                    txn.upsert(row);
                }
                delta.removed_endpoints.iter().for_each(|id| drop(txn.remove(id)));
                txn.set_source(&Source::Planner, state);
            });
        } else {
            // Nothing of it was written: compile all of it again once they are.
            could_shrink = !may_shrink;
        }
        *problems.lock().unwrap_or_else(PoisonError::into_inner) = compiler.problems().into_iter().collect();
    }
}

/// What an earlier life left in the datapath.
#[derive(Default)]
pub(crate) struct Earlier {
    /// Policy numbers by subject.
    ids: Vec<(IdentityId, u32)>,
    /// Entries by policy number.
    entries: Vec<(u32, BTreeSet<VerdictEntry>)>,
}

/// Reads it.
pub(crate) fn earlier(datapath: &tombolo_ebpf::Datapath) -> Earlier {
    let interfaces = datapath.interfaces().unwrap_or_default();
    let named = interfaces.into_iter().filter(|(_, row)| row.policy_id != 0);
    let ids = named.map(|(_, row)| (IdentityId(row.identity), row.policy_id)).collect();
    let policies = datapath.policies().unwrap_or_default();
    let entries = policies.into_iter().map(|(id, set)| {
        let of = |direction, rules: Option<Vec<RuleEntry>>| {
            rules.into_iter().flatten().map(move |(matching, action, _)| VerdictEntry {
                direction,
                identity: IdentityId(matching.identity.unwrap_or(0)),
                protocol: matching.protocol.unwrap_or(0),
                port: matching.port.unwrap_or(0),
                deny: action == RuleAction::Deny,
            })
        };
        (id, of(Direction::Ingress, set.ingress).chain(of(Direction::Egress, set.egress)).collect())
    });
    Earlier { ids, entries: entries.collect() }
}
