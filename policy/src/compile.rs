//! From rules and identities to one compiled policy per local identity.
//!
//! A subject is an identity that a pod of this node has. Its policy depends on the rules that select it, the identities
//! that these mention, and named ports; [`Compiler::affected`] says which subjects a change concerns, and recompiling
//! those gives what compiling everything would. Subjects that no rule selects have policy 0 and no row.
//!
//! Replies and traffic of the node itself are the datapath's to allow; no entry speaks of them.

use crate::entries::{Collector, blocks, mentions, selects};
pub use crate::entries::{MAX_ENTRIES, NamedPorts};
use crate::rows::{
    Direction, DirectionRules, EndpointPolicy, PolicyRow, PortMatch, RuleKey, RuleRow, Verdict, VerdictKey,
};
use std::collections::{BTreeMap, BTreeSet};
use tombolo_base::ids::{ClusterName, IdentityId};
use tombolo_base::labels::Labels;
use tombolo_base::source::Source;
use tombolo_base::table::{Row, Snapshot};
use tombolo_topology::{EndpointRow, IdentityRow};

/// All that decides the node's policies.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// NetworkPolicies.
    pub rules: &'a Snapshot<RuleRow>,
    /// Identities of all clusters.
    pub identities: &'a Snapshot<IdentityRow>,
    /// Pods of this node.
    pub endpoints: &'a Snapshot<EndpointRow>,
    /// Ports that the pods of an identity name.
    pub named_ports: &'a NamedPorts,
    /// Whether all sources of identities have spoken (see [`tombolo_base::aggregate::Gate`]). While false, allows of
    /// identities that vanished stay, as long as the rules themselves are unchanged. When it becomes true, update with
    /// [`Change::Everything`].
    pub may_shrink: bool,
}

/// What changed since the last update.
#[derive(Clone, Debug)]
pub enum Change {
    /// Unknown or all: compile every subject.
    Everything,
    /// These rows.
    Rows {
        /// Keys of rules.
        rules: BTreeSet<RuleKey>,
        /// Identities that came, went or changed.
        identities: BTreeSet<IdentityId>,
        /// Endpoints that came, went or changed.
        endpoints: BTreeSet<u16>,
        /// Identities whose named ports changed.
        named_ports: BTreeSet<IdentityId>,
    },
}

/// What to write, in this order: policies, then endpoints, then removals.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delta {
    /// Rows that are new or differ.
    pub policies: Vec<PolicyRow>,
    /// Rows that are new or differ.
    pub endpoints: Vec<EndpointPolicy>,
    /// Endpoints that are gone or have no identity any more.
    pub removed_endpoints: Vec<u16>,
    /// Policy ids that nobody runs under any more.
    pub removed_policies: Vec<u32>,
}

/// A subject as compiled last.
#[derive(Clone, Debug)]
struct Subject {
    /// The rules that select it, to tell a changed rule from a vanished identity.
    rules: Vec<RuleRow>,
    row: Option<PolicyRow>,
    problems: BTreeSet<String>,
}

/// Entries of one policy.
pub type Entries = BTreeMap<VerdictKey, Verdict>;

/// Compiles policies and remembers what it compiled.
#[derive(Clone, Debug)]
pub struct Compiler {
    cluster: ClusterName,
    ids: BTreeMap<IdentityId, u32>,
    next_id: u32,
    /// Entries of an earlier life's policies by policy id, until everybody has spoken.
    earlier: BTreeMap<u32, Entries>,
    subjects: BTreeMap<IdentityId, Subject>,
    /// Labels as last seen; also of identities that are gone, until the next update has used them.
    identities: BTreeMap<IdentityId, Labels>,
    endpoints: BTreeMap<u16, EndpointPolicy>,
    /// Which subject an endpoint has.
    endpoint_subjects: BTreeMap<u16, IdentityId>,
}

impl Compiler {
    /// A compiler for a node of `cluster` that knows no policy ids yet.
    #[must_use]
    pub const fn new(cluster: ClusterName) -> Self {
        Self {
            cluster,
            ids: BTreeMap::new(),
            next_id: 1,
            earlier: BTreeMap::new(),
            subjects: BTreeMap::new(),
            identities: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            endpoint_subjects: BTreeMap::new(),
        }
    }

    /// Takes over the policy ids of an earlier life, so that endpoint rows in the kernel keep their meaning.
    #[must_use]
    pub fn with_ids(mut self, ids: impl IntoIterator<Item = (IdentityId, u32)>) -> Self {
        self.ids.extend(ids.into_iter().filter(|(_, id)| *id > 0));
        self.next_id = self.ids.values().max().map_or(1, |highest| highest.saturating_add(1));
        self
    }

    /// Takes over the entries that the datapath holds of an earlier life's policies. As long as [`Inputs::may_shrink`]
    /// is false, entries of identities that nobody has named yet stay.
    #[must_use]
    pub fn with_entries(mut self, entries: impl IntoIterator<Item = (u32, Entries)>) -> Self {
        self.earlier.extend(entries);
        self
    }

    /// The policy ids by subject identity, to be kept for the next life.
    #[must_use]
    pub const fn ids(&self) -> &BTreeMap<IdentityId, u32> {
        &self.ids
    }

    /// What cannot be enforced as written; such parts allow nothing.
    #[must_use]
    pub fn problems(&self) -> BTreeSet<String> {
        self.subjects.values().flat_map(|subject| subject.problems.iter().cloned()).collect()
    }

    /// The compiled policies now.
    pub fn policies(&self) -> impl Iterator<Item = &PolicyRow> {
        self.subjects.values().filter_map(|subject| subject.row.as_ref())
    }

    /// The subjects whose policy a change can touch.
    #[must_use]
    pub fn affected(&self, inputs: &Inputs<'_>, change: &Change) -> BTreeSet<IdentityId> {
        let present = subjects(inputs);
        let Change::Rows { rules, identities, endpoints, named_ports } = change else {
            return present.keys().chain(self.subjects.keys()).copied().collect();
        };
        let mut out: BTreeSet<IdentityId> = BTreeSet::new();
        for endpoint in endpoints {
            out.extend(self.endpoint_subjects.get(endpoint));
            out.extend(inputs.endpoints.get(endpoint).and_then(|row| row.identity));
        }
        let changed_rules: Vec<_> = rules.iter().filter_map(|key| inputs.rules.get(key)).collect();
        let labels: Vec<_> = identities
            .iter()
            .flat_map(|id| {
                let now = inputs
                    .identities
                    .from_key(&(*id, Source::Manifests))
                    .take_while(move |row| row.id == *id);
                now.map(|row| &row.labels).chain(self.identities.get(id))
            })
            .collect();
        for (id, own) in &present {
            let was = self.subjects.get(id);
            let had = was.is_some_and(|subject| {
                subject.rules.iter().any(|rule| {
                    rules.contains(&rule.key())
                        || labels.iter().any(|labels| mentions(rule, labels, &self.cluster))
                })
            });
            let gets = changed_rules.iter().any(|rule| selects(rule, own, &self.cluster));
            let ports =
                !named_ports.is_empty() && was.is_some_and(|subject| subject.rules.iter().any(names_ports));
            if was.is_none() || had || gets || ports {
                out.insert(*id);
            }
        }
        out.extend(self.subjects.keys().filter(|id| !present.contains_key(id)));
        out
    }

    /// Recompiles what a change concerns and says what to write.
    pub fn update(&mut self, inputs: &Inputs<'_>, change: &Change) -> Delta {
        let affected = self.affected(inputs, change);
        self.learn(inputs, change);
        if inputs.may_shrink {
            self.earlier.clear();
        }
        let present = subjects(inputs);
        let mut delta = Delta::default();
        for id in affected {
            match present.get(&id) {
                Some(labels) => self.compile(inputs, id, labels, &mut delta),
                None => self.forget(id, &mut delta),
            }
        }
        self.assign(inputs, &mut delta);
        delta
    }

    /// Brings the labels up to date. An identity said by several sources has the labels of the first.
    fn learn(&mut self, inputs: &Inputs<'_>, change: &Change) {
        match change {
            Change::Rows { identities, .. } => {
                for id in identities {
                    let first = inputs.identities.from_key(&(*id, Source::Manifests)).next();
                    match first.filter(|row| row.id == *id) {
                        Some(row) => self.identities.insert(*id, row.labels.clone()),
                        None => self.identities.remove(id),
                    };
                }
            }
            Change::Everything => {
                self.identities.clear();
                for row in inputs.identities.iter() {
                    self.identities.entry(row.id).or_insert_with(|| row.labels.clone());
                }
            }
        }
    }

    fn compile(&mut self, inputs: &Inputs<'_>, id: IdentityId, labels: &Labels, delta: &mut Delta) {
        let rules: Vec<_> =
            inputs.rules.iter().filter(|rule| selects(rule, labels, &self.cluster)).cloned().collect();
        let before = self.subjects.remove(&id);
        let mut subject = Subject { rules, row: None, problems: BTreeSet::new() };
        if !subject.rules.is_empty() {
            let mut collector = Collector {
                cluster: &self.cluster,
                subject: id,
                identities: &self.identities,
                named_ports: inputs.named_ports,
                entries: Entries::new(),
                problems: BTreeSet::new(),
            };
            for rule in &subject.rules {
                for (direction, rules) in
                    [(Direction::Ingress, &rule.ingress), (Direction::Egress, &rule.egress)]
                {
                    collector.add(rule, direction, rules.as_ref().map_or(&[], |rules| &rules.blocks));
                }
            }
            let (mut entries, problems) = (collector.entries, collector.problems);
            if let Some(before) =
                before.as_ref().filter(|before| !inputs.may_shrink && before.rules == subject.rules)
            {
                let row = before.row.as_ref();
                entries.extend(self.unnamed(row.into_iter().flat_map(|row| &row.entries)));
            }
            // Which rules made an earlier life's entries is not known; a change seen in this life ends them.
            if before.as_ref().is_some_and(|before| before.rules != subject.rules)
                && let Some(number) = self.ids.get(&id)
            {
                self.earlier.remove(number);
            }
            let earlier = self.ids.get(&id).and_then(|number| self.earlier.get(number));
            entries.extend(self.unnamed(earlier.into_iter().flatten()));
            subject.problems = problems;
            subject.row = Some(self.row(id, &subject.rules, entries));
        }
        let old = before.and_then(|before| before.row);
        match (&old, &subject.row) {
            (_, Some(row)) if old.as_ref() != Some(row) => delta.policies.push(row.clone()),
            (Some(old), None) => delta.removed_policies.push(old.id),
            _ => {}
        }
        self.subjects.insert(id, subject);
    }

    /// Entries whose identity is no longer, or not yet, known.
    fn unnamed<'a>(
        &'a self,
        entries: impl Iterator<Item = (&'a VerdictKey, &'a Verdict)> + 'a,
    ) -> impl Iterator<Item = (VerdictKey, Verdict)> + 'a {
        entries
            .filter(|(key, _)| !key.identity.is_reserved() && !self.identities.contains_key(&key.identity))
            .map(|(key, verdict)| (*key, *verdict))
    }

    fn row(&mut self, subject: IdentityId, rules: &[RuleRow], entries: Entries) -> PolicyRow {
        let next = &mut self.next_id;
        let id = *self.ids.entry(subject).or_insert_with(|| {
            let id = *next;
            *next = next.saturating_add(1);
            id
        });
        PolicyRow {
            source: Source::Planner,
            id,
            subject,
            ingress_enforced: rules.iter().any(|rule| denies_rest(rule.ingress.as_ref())),
            egress_enforced: rules.iter().any(|rule| denies_rest(rule.egress.as_ref())),
            entries,
            origins: rules.iter().map(|rule| format!("{}/{}", rule.namespace, rule.name).into()).collect(),
        }
    }

    fn forget(&mut self, id: IdentityId, delta: &mut Delta) {
        self.ids.remove(&id);
        if let Some(row) = self.subjects.remove(&id).and_then(|subject| subject.row) {
            delta.removed_policies.push(row.id);
        }
    }

    /// Tells every endpoint its policy.
    fn assign(&mut self, inputs: &Inputs<'_>, delta: &mut Delta) {
        let mut present = BTreeMap::new();
        for (endpoint, subject) in inputs.endpoints.iter().filter_map(|row| Some((row.id, row.identity?))) {
            let row = self.subjects.get(&subject).and_then(|subject| subject.row.as_ref());
            let policy = row.map_or(0, |row| row.id);
            present.insert(endpoint, EndpointPolicy { source: Source::Planner, endpoint, policy });
            self.endpoint_subjects.insert(endpoint, subject);
        }
        self.endpoint_subjects.retain(|endpoint, _| present.contains_key(endpoint));
        let changed = present.values().filter(|row| self.endpoints.get(&row.endpoint) != Some(row));
        delta.endpoints.extend(changed.cloned());
        delta.removed_endpoints.extend(self.endpoints.keys().filter(|id| !present.contains_key(id)));
        self.endpoints = present;
    }
}

/// The identities of this node's pods and the labels that make them.
fn subjects(inputs: &Inputs<'_>) -> BTreeMap<IdentityId, Labels> {
    inputs.endpoints.iter().filter_map(|row| Some((row.identity?, row.labels.clone()))).collect()
}

fn names_ports(rule: &RuleRow) -> bool {
    let mut ports = blocks(rule).flat_map(|block| block.ports.iter().flatten());
    ports.any(|rule| matches!(rule.port, PortMatch::Named(_)))
}

fn denies_rest(rules: Option<&DirectionRules>) -> bool {
    rules.is_some_and(|rules| rules.default_deny)
}

#[cfg(test)]
#[path = "compile_tests.rs"]
mod tests;
