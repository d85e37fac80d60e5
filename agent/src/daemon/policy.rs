//! Runs the policy compiler: rules, identities and endpoints in, compiled policies out.
//!
//! Prefixes that rules mention have identities of their own, which must be in policies as long as the datapath gives them
//! to addresses: their rows are told when the datapath has the policies that name them, and policies forget them when it
//! has let go of the rows.

use super::backend::Texts;
use super::drive::{Applied, Driver};
use super::landmarks::landmarks;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tombolo_base::aggregate::Gate;
use tombolo_base::clock::Moment;
use tombolo_base::ids::{ClusterName, IdentityId};
use tombolo_base::labels::Labels;
use tombolo_base::prefix::Prefix;
use tombolo_base::source::{Source, SourceState};
use tombolo_base::table::{Batch, Row, Snapshot, Table, Writer};
use tombolo_ebpf::{Datapath, PolicySide, PortPrefix, RuleAction, RuleEntry, RuleTier};
use tombolo_kubernetes::PodRow;
use tombolo_policy::compile::{self, Change, Compiler, Entries, NamedPorts};
use tombolo_policy::{
    Action, CidrGroupRow, CookieRow, Direction, EndpointPolicy, Landmarks, NamedPort, PolicyRow, Precedence,
    RuleRow, Tier, Verdict, VerdictKey,
};
use tombolo_service::SliceRow;
use tombolo_topology::{CidrIdentity, EndpointRow, IdentityRow, NodeRow, PrefixEntry};

/// The tables the compiler reads.
pub(crate) struct Inputs {
    /// Rules of all kinds.
    pub(crate) rules: Table<RuleRow>,
    /// Prefixes with names.
    pub(crate) groups: Table<CidrGroupRow>,
    /// Identities of all clusters.
    pub(crate) identities: Table<IdentityRow>,
    /// Pods of this node.
    pub(crate) endpoints: Table<EndpointRow>,
    /// Pods of the manifests, for named ports.
    pub(crate) pods: Table<PodRow>,
    /// Nodes of the manifests, and which of them is this one: for policies about nodes.
    pub(crate) nodes: (Table<NodeRow>, <NodeRow as Row>::Key),
    /// EndpointSlices, for the API server's.
    pub(crate) slices: Table<SliceRow>,
    /// Whether rules about prefixes take nodes.
    pub(crate) cidrs_take_nodes: bool,
}

impl Inputs {
    /// Where the API server and the nodes are.
    fn landmarks(&self) -> Landmarks {
        let (nodes, slices) = (self.nodes.0.snapshot(), self.slices.snapshot());
        landmarks(&slices, &nodes, &self.nodes.1, self.cidrs_take_nodes)
    }

    /// What this node is labelled with; `None` while its object is not read.
    fn node_labels(&self) -> Option<Labels> {
        self.nodes.0.snapshot().get(&self.nodes.1).map(labels_of)
    }
}

/// A node's labels as policies ask for them.
pub(crate) fn labels_of(node: &NodeRow) -> Labels {
    Labels::k8s(node.labels.iter().map(|(key, value)| (key, value)))
}

/// Ports that this node's pods name, by identity.
pub(crate) fn named_ports(endpoints: &Table<EndpointRow>, pods: &Table<PodRow>) -> NamedPorts {
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
    out
}

/// The pens of what the compiler makes.
pub(crate) struct Pens {
    /// Compiled policies.
    pub(crate) policies: Writer<PolicyRow>,
    /// Which pod has which.
    pub(crate) endpoints: Writer<EndpointPolicy>,
    /// Identities of addresses outside the mesh.
    pub(crate) cidrs: Writer<CidrIdentity>,
    /// What the numbers in entries stand for.
    pub(crate) cookies: Writer<CookieRow>,
}

/// What the datapath holds.
pub(crate) struct InPlace {
    /// Of policies.
    pub(crate) policies: Applied<PolicyRow>,
    /// Of prefixes.
    pub(crate) entries: Applied<PrefixEntry>,
    /// What it shall hold of them.
    pub(crate) wanted: Table<PrefixEntry>,
    /// To ask for a prefix that an earlier life may have left.
    pub(crate) datapath: Arc<Datapath>,
}

/// How long prefixes wait for policies that name them.
const HELD_AT_MOST: Duration = Duration::from_secs(2);

/// Prefixes asked for in one step.
const ASKED_MAX: usize = 32;

impl InPlace {
    /// Whether a policy is there as it is wanted, or is not wanted any more.
    fn has_policy(&self, wanted: &Snapshot<PolicyRow>, id: u32) -> bool {
        wanted.get(&id).is_none_or(|row| self.policies.get(&id).as_ref() == Some(row))
    }

    /// Whether addresses have that identity by that prefix. What cannot be read may be so, and what an earlier life left
    /// is not taken away before all have spoken.
    fn has(&self, prefix: Prefix, id: IdentityId, left: bool) -> bool {
        if let Some(row) = self.entries.get(&prefix) {
            return row.identity == id;
        }
        if left && !self.wanted.snapshot().unconfirmed_sources().is_empty() {
            return true;
        }
        let held = self.datapath.prefix(prefix.net());
        held.map_or(true, |row| row.is_some_and(|row| row.identity == id.0))
    }
}

/// A compiler that goes on with the policies an earlier life left in the datapath.
pub(crate) fn compiler(cluster: &ClusterName, datapath: &Datapath, audit: bool) -> Compiler {
    let earlier = earlier(datapath);
    let prefixes = datapath.prefixes().unwrap_or_default();
    let prefixes = prefixes.into_iter().map(|(net, row)| (Prefix::from(net), IdentityId(row.identity)));
    let compiler = Compiler::new(*cluster).with_ids(earlier.ids).with_entries(earlier.entries);
    compiler.with_prefixes(prefixes).with_audit(audit)
}

/// Compiles until cancelled.
pub(crate) async fn planner(
    driver: Driver,
    compiler: Compiler,
    inputs: Inputs,
    (out, in_place): (Pens, InPlace),
    problems: Texts,
) {
    let (mut rules, mut identities) = (inputs.rules.changes(), inputs.identities.changes());
    let mut groups = inputs.groups.changes();
    let (mut endpoints, mut pods) = (inputs.endpoints.changes(), inputs.pods.changes());
    let (mut nodes, mut slices) = (inputs.nodes.0.changes(), inputs.slices.changes());
    let gate = Gate::new(driver.clock.now());
    let left = compiler.leaving().map(|(prefix, _)| prefix).collect();
    let mut compiling = Compiling {
        compiler,
        gate,
        inputs,
        ports: NamedPorts::new(),
        could_shrink: false,
        behind: true,
        out,
        fresh: BTreeMap::new(),
        unwritten: BTreeSet::new(),
        held_since: None,
        left,
    };
    loop {
        let (mut a, mut b, mut c, mut d, mut e) = (None, None, None, None, false);
        // Whatever the datapath takes over from here on is told.
        let (policies, entries) = (in_place.policies.changed(), in_place.entries.changed());
        compiling.tell_prefixes(&in_place, driver.clock.now());
        let released = compiling.released(&in_place);
        if !released.is_empty() {
            compiling.step(Changed { released, ..Changed::default() }, driver.clock.now());
            continue;
        }
        tokio::select! {
            () = driver.cancel.cancelled() => return,
            batch = rules.next() => a = Some(batch),
            batch = identities.next() => b = Some(batch),
            batch = endpoints.next() => c = Some(batch),
            batch = groups.next() => d = Some(batch),
            _ = pods.next() => e = true,
            _ = nodes.next() => {}
            batch = slices.next() => if !compiling.concerns(&batch) { continue },
            () = policies, if compiling.waits_for_policies() => continue,
            () = entries, if compiling.waits_for_prefixes() => continue,
            () = driver.clock.sleep_until(compiling.deadline()) => {}
        }
        let changed = Changed {
            rules: a.or_else(|| rules.drain()),
            identities: b.or_else(|| identities.drain()),
            endpoints: c.or_else(|| endpoints.drain()),
            groups: d.or_else(|| groups.drain()),
            pods: e || pods.drain().is_some(),
            released: BTreeSet::new(),
        };
        compiling.step(changed, driver.clock.now());
        *problems.lock().unwrap_or_else(PoisonError::into_inner) =
            compiling.compiler.problems().into_iter().collect();
    }
}

/// What changed since the last step.
#[derive(Default)]
struct Changed {
    released: BTreeSet<Prefix>,
    pods: bool,
    groups: Option<Batch<CidrGroupRow>>,
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
    /// Whether changes were passed over because the rules were not read yet.
    behind: bool,
    out: Pens,
    /// Identities of prefixes that the datapath is told when it has the policies that name them.
    fresh: BTreeMap<Prefix, IdentityId>,
    /// Policies that the datapath had not when last looked at.
    unwritten: BTreeSet<u32>,
    /// Since when prefixes wait for policies.
    held_since: Option<Moment>,
    /// Prefixes that an earlier life told and this one did not.
    left: BTreeSet<Prefix>,
}

impl Compiling {
    /// When there is something to do at the latest: policies may shrink, or prefixes have waited long enough.
    fn deadline(&self) -> Option<Moment> {
        let shrink = (!self.could_shrink).then(|| self.gate.opens_at());
        let tell = self.held_since.map(|since| since.after(HELD_AT_MOST));
        shrink.into_iter().chain(tell).min()
    }

    /// Whether slices that changed may have moved the API server.
    fn concerns(&self, batch: &Batch<SliceRow>) -> bool {
        // One that is gone no longer says whose it was.
        let service = super::landmarks::service();
        batch.keys.iter().any(|key| batch.snapshot.get(key).is_none_or(|row| row.service == service))
    }

    fn step(&mut self, changed: Changed, now: Moment) {
        let (rules, groups) = (self.inputs.rules.snapshot(), self.inputs.groups.snapshot());
        let identities = self.inputs.identities.snapshot();
        let endpoints = self.inputs.endpoints.snapshot();
        self.gate.observe(changed.rules.as_ref());
        self.gate.observe(changed.groups.as_ref());
        self.gate.observe(changed.identities.as_ref());
        // Before the rules are read no endpoint is let loose: its hook keeps dropping, or keeps its earlier policy.
        if !rules.is_complete() || !groups.is_complete() {
            self.behind = true;
            return;
        }
        if let Some(labels) = self.inputs.node_labels() {
            self.compiler.set_node(labels);
        }
        self.compiler.set_landmarks(self.inputs.landmarks());
        let may_shrink = self.gate.is_open(now);
        let walk = self.behind || changed.pods || changed.endpoints.is_some();
        let ports = walk.then(|| named_ports(&self.inputs.endpoints, &self.inputs.pods));
        let change = self.change(changed, ports.as_ref(), may_shrink);
        (self.could_shrink, self.behind) = (may_shrink, false);
        self.ports = ports.unwrap_or_else(|| std::mem::take(&mut self.ports));
        let read = compile::Inputs {
            rules: &rules,
            groups: &groups,
            identities: &identities,
            endpoints: &endpoints,
            named_ports: &self.ports,
            may_shrink,
        };
        let delta = self.compiler.update(&read, &change);
        // What an earlier life enforced is pruned once its pods are known.
        let known = endpoints.source_state(&Source::Local) == Some(SourceState::Initialized);
        self.write(delta, if known { SourceState::Initialized } else { SourceState::Pending });
    }

    /// What must be compiled again.
    fn change(&self, changed: Changed, ports: Option<&NamedPorts>, may_shrink: bool) -> Change {
        if self.behind || may_shrink != self.could_shrink {
            return Change::Everything;
        }
        let renamed = ports
            .into_iter()
            .flat_map(|ports| ports.keys().chain(self.ports.keys()).map(move |id| (id, ports)));
        let identity = |(id, _): (IdentityId, _)| id;
        Change::Rows {
            rules: changed.rules.into_iter().flat_map(|batch| batch.keys).collect(),
            groups: changed.groups.into_iter().flat_map(|batch| batch.keys).collect(),
            released: changed.released,
            identities: changed
                .identities
                .map(|batch| batch.keys.into_iter().map(identity).collect())
                .unwrap_or_default(),
            endpoints: changed.endpoints.into_iter().flat_map(|batch| batch.keys).collect(),
            named_ports: renamed
                .filter(|(id, ports)| ports.get(id) != self.ports.get(id))
                .map(|(id, _)| *id)
                .collect(),
        }
    }

    fn write(&mut self, delta: compile::Delta, state: SourceState) {
        self.unwritten.extend(delta.policies.iter().map(|row| row.id));
        self.out.policies.commit(|txn| {
            for row in delta.policies {
                txn.upsert(row);
            }
            delta.removed_policies.iter().for_each(|id| drop(txn.remove(id)));
            txn.set_source(&Source::Planner, state);
        });
        self.out.endpoints.commit(|txn| {
            for row in delta.endpoints {
                txn.upsert(row);
            }
            for id in &delta.removed_endpoints {
                txn.remove(id);
            }
            txn.set_source(&Source::Planner, state);
        });
        self.out.cookies.commit(|txn| {
            for row in delta.cookies {
                txn.upsert(row);
            }
            delta.removed_cookies.iter().for_each(|cookie| drop(txn.remove(cookie)));
            txn.set_source(&Source::Planner, state);
        });
        self.fresh.extend(delta.prefixes);
        self.out.cidrs.commit(|txn| {
            for prefix in delta.removed_prefixes {
                self.fresh.remove(&prefix);
                txn.remove(&prefix);
            }
        });
    }

    /// Tells the identities of prefixes once the datapath has the policies that name them. A policy that cannot be written
    /// holds them up for a while only: other policies deny them.
    fn tell_prefixes(&mut self, in_place: &InPlace, now: Moment) {
        if !self.waits_for_policies() {
            self.held_since = None;
            return;
        }
        let wanted = self.out.policies.table().snapshot();
        self.unwritten.retain(|id| !in_place.has_policy(&wanted, *id));
        let since = *self.held_since.get_or_insert(now);
        if !self.unwritten.is_empty() {
            if now < since.after(HELD_AT_MOST) {
                return;
            }
            tracing::warn!(
                policies = ?self.unwritten,
                "policies could not be written; prefixes that they mention get their identities all the same, and these \
                 policies allow less than they say: `tombolo status` says why"
            );
            self.unwritten.clear();
        }
        self.held_since = None;
        self.out.cidrs.commit(|txn| {
            for (prefix, identity) in std::mem::take(&mut self.fresh) {
                self.left.remove(&prefix);
                txn.upsert(CidrIdentity { source: Source::Planner, prefix, identity });
            }
            txn.set_source(&Source::Planner, SourceState::Initialized);
        });
    }

    /// Whether all prefixes that rules mentioned once are told: before, what an earlier life left counts.
    fn has_told(&self) -> bool {
        let told = self.out.cidrs.table().snapshot();
        told.source_state(&Source::Planner) == Some(SourceState::Initialized)
    }

    /// Whether prefixes are told when the datapath has the policies.
    fn waits_for_policies(&self) -> bool {
        !self.behind && (!self.fresh.is_empty() || !self.has_told())
    }

    /// Whether a prefix is on its way out.
    fn waits_for_prefixes(&self) -> bool {
        self.compiler.leaving().next().is_some()
    }

    /// Prefixes that no rule mentions and the datapath has no more.
    fn released(&self, in_place: &InPlace) -> BTreeSet<Prefix> {
        // Before the rules are read nobody knows which they mention.
        if !self.has_told() {
            return BTreeSet::new();
        }
        let told = self.out.cidrs.table().snapshot();
        let leaving = self.compiler.leaving().filter(|(prefix, _)| told.get(prefix).is_none());
        let gone = leaving
            .take(ASKED_MAX)
            .filter(|(prefix, id)| !in_place.has(*prefix, *id, self.left.contains(prefix)));
        gone.map(|(prefix, _)| prefix).collect()
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
fn earlier(datapath: &Datapath) -> Earlier {
    let interfaces = datapath.interfaces().unwrap_or_default();
    let named = interfaces.into_iter().filter(|(_, row)| row.policy_id != 0);
    let host = datapath.config().map_or(0, |row| row.host_policy_id);
    let ids = named.map(|(_, row)| (IdentityId(row.identity), row.policy_id));
    let ids = ids.chain([(IdentityId::HOST, host)]).collect();
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
