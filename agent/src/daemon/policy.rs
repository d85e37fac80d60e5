//! Runs the policy compiler: rules, identities and endpoints in, compiled policies out.

use super::backend::Texts;
use super::drive::Driver;
use std::collections::BTreeMap;
use std::sync::PoisonError;
use tombolo_base::aggregate::Gate;
use tombolo_base::clock::Moment;
use tombolo_base::ids::{ClusterName, IdentityId};
use tombolo_base::source::{Source, SourceState};
use tombolo_base::table::{Batch, Table, Writer};
use tombolo_ebpf::{PolicySide, PortPrefix, RuleAction, RuleEntry, RuleTier};
use tombolo_kubernetes::PodRow;
use tombolo_policy::compile::{self, Change, Compiler, Entries, NamedPorts};
use tombolo_policy::{
    Action, Direction, EndpointPolicy, NamedPort, PolicyRow, Precedence, RuleRow, Tier, Verdict, VerdictKey,
};
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

/// The pens of compiled policies, and of which pod has which.
pub(crate) type Pens = (Writer<PolicyRow>, Writer<EndpointPolicy>);

/// A compiler that goes on with the policies an earlier life left in the datapath.
pub(crate) fn compiler(cluster: &ClusterName, datapath: &tombolo_ebpf::Datapath) -> Compiler {
    let earlier = earlier(datapath);
    Compiler::new(*cluster).with_ids(earlier.ids).with_entries(earlier.entries)
}

/// Compiles until cancelled.
pub(crate) async fn planner(driver: Driver, compiler: Compiler, inputs: Inputs, out: Pens, problems: Texts) {
    let (mut rules, mut identities) = (inputs.rules.changes(), inputs.identities.changes());
    let (mut endpoints, mut pods) = (inputs.endpoints.changes(), inputs.pods.changes());
    let gate = Gate::new(driver.clock.now());
    let mut compiling =
        Compiling { compiler, gate, inputs, ports: NamedPorts::new(), could_shrink: false, out };
    loop {
        let (mut a, mut b, mut c) = (None, None, None);
        tokio::select! {
            () = driver.cancel.cancelled() => return,
            batch = rules.next() => a = Some(batch),
            batch = identities.next() => b = Some(batch),
            batch = endpoints.next() => c = Some(batch),
            _ = pods.next() => {}
            () = driver.clock.sleep_until(compiling.deadline()) => {}
        }
        let changed = Changed {
            rules: a.or_else(|| rules.drain()),
            identities: b.or_else(|| identities.drain()),
            endpoints: c.or_else(|| endpoints.drain()),
        };
        compiling.step(changed, driver.clock.now());
        *problems.lock().unwrap_or_else(PoisonError::into_inner) =
            compiling.compiler.problems().into_iter().collect();
    }
}

/// What changed since the last step.
struct Changed {
    rules: Option<Batch<RuleRow>>,
    identities: Option<Batch<IdentityRow>>,
    endpoints: Option<Batch<EndpointRow>>,
}

/// The compiler with what it must remember between two steps.
struct Compiling {
    compiler: Compiler,
    gate: Gate,
    inputs: Inputs,
    ports: NamedPorts,
    could_shrink: bool,
    out: Pens,
}

impl Compiling {
    /// When policies may shrink at the latest, if they may not yet.
    fn deadline(&self) -> Option<Moment> {
        (!self.could_shrink).then(|| self.gate.opens_at())
    }

    fn step(&mut self, changed: Changed, now: Moment) {
        let rules = self.inputs.rules.snapshot();
        let identities = self.inputs.identities.snapshot();
        let endpoints = self.inputs.endpoints.snapshot();
        self.gate.observe(changed.rules.as_ref());
        self.gate.observe(changed.identities.as_ref());
        let may_shrink = self.gate.is_open(now);
        let ports = named_ports(&self.inputs.endpoints, &self.inputs.pods);
        let change = self.change(changed, &ports, may_shrink);
        (self.could_shrink, self.ports) = (may_shrink, ports);
        let read = compile::Inputs {
            rules: &rules,
            identities: &identities,
            endpoints: &endpoints,
            named_ports: &self.ports,
            may_shrink,
        };
        let delta = self.compiler.update(&read, &change);
        // Before the rules are read no endpoint is let loose: its hook keeps dropping, or keeps its earlier policy.
        if !rules.is_complete() {
            // Nothing of it was written: compile all of it again once they are.
            self.could_shrink = !may_shrink;
            return;
        }
        // What an earlier life enforced is pruned once its pods are known.
        let known = endpoints.source_state(&Source::Local) == Some(SourceState::Initialized);
        self.write(delta, if known { SourceState::Initialized } else { SourceState::Pending });
    }

    /// What must be compiled again.
    fn change(&self, changed: Changed, ports: &NamedPorts, may_shrink: bool) -> Change {
        if may_shrink != self.could_shrink {
            return Change::Everything;
        }
        let renamed = ports.keys().chain(self.ports.keys());
        let identity = |(id, _): (IdentityId, _)| id;
        Change::Rows {
            rules: changed.rules.into_iter().flat_map(|batch| batch.keys).collect(),
            identities: changed
                .identities
                .map(|batch| batch.keys.into_iter().map(identity).collect())
                .unwrap_or_default(),
            endpoints: changed.endpoints.into_iter().flat_map(|batch| batch.keys).collect(),
            named_ports: renamed.filter(|id| ports.get(id) != self.ports.get(id)).copied().collect(),
        }
    }

    fn write(&self, delta: compile::Delta, state: SourceState) {
        self.out.0.commit(|txn| {
            for row in delta.policies {
                txn.upsert(row);
            }
            delta.removed_policies.iter().for_each(|id| drop(txn.remove(id)));
            txn.set_source(&Source::Planner, state);
        });
        self.out.1.commit(|txn| {
            for row in delta.endpoints {
                txn.upsert(row);
            }
            for id in &delta.removed_endpoints {
                txn.remove(id);
            }
            txn.set_source(&Source::Planner, state);
        });
    }
}

/// What an earlier life left in the datapath.
struct Earlier {
    /// Policy numbers by subject.
    ids: Vec<(IdentityId, u32)>,
    /// Entries by policy number.
    entries: Vec<(u32, Entries)>,
}

/// Reads it.
fn earlier(datapath: &tombolo_ebpf::Datapath) -> Earlier {
    let interfaces = datapath.interfaces().unwrap_or_default();
    let named = interfaces.into_iter().filter(|(_, row)| row.policy_id != 0);
    let ids = named.map(|(_, row)| (IdentityId(row.identity), row.policy_id)).collect();
    let policies = datapath.policies().unwrap_or_default();
    let entries = policies.into_iter().map(|(id, set)| {
        let of = |direction, side: PolicySide| {
            side.entries.into_iter().map(move |entry| verdict(direction, &entry))
        };
        (id, of(Direction::Ingress, set.ingress).chain(of(Direction::Egress, set.egress)).collect())
    });
    Earlier { ids, entries: entries.collect() }
}

/// An entry of the datapath as the compiler writes them.
fn verdict(direction: Direction, entry: &RuleEntry) -> (VerdictKey, Verdict) {
    let port = entry.port.unwrap_or(PortPrefix { first: 0, bits: 0 });
    let key = VerdictKey {
        direction,
        tier: match entry.tier {
            RuleTier::Admin => Tier::Admin,
            RuleTier::Normal => Tier::Normal,
            RuleTier::Baseline => Tier::Baseline,
        },
        identity: IdentityId(entry.identity.unwrap_or(0)),
        protocol: entry.protocol.unwrap_or(0),
        port: port.first,
        port_bits: port.bits,
    };
    let action = match entry.action {
        RuleAction::Pass => Action::Pass,
        RuleAction::Allow => Action::Allow,
        RuleAction::Deny => Action::Deny,
    };
    (key, Verdict { precedence: Precedence::new(entry.priority, action), cookie: entry.cookie })
}
