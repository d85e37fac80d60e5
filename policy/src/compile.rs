//! From rules and identities to one compiled policy per local identity.
//!
//! A subject is an identity that a pod of this node has. Its policy depends on the rules that select it, the identities
//! that these mention, and named ports; [`Compiler::update`] finds out which subjects a change concerns, and recompiling
//! those gives what compiling everything would. Subjects that no rule selects have policy 0 and no row.
//!
//! The node itself is a subject, too, of the rules about nodes: identity host, and endpoint [`HOST_ENDPOINT`], which no pod
//! has. Replies are the datapath's to allow; no entry speaks of them.

pub use crate::change::{Change, Delta, Entries, Inputs, NamedPorts};
use crate::cookies::{Cookies, block_title};
use crate::desired::{CookieRow, EndpointPolicy, PolicyRow, Verdict, VerdictKey};
pub use crate::entries::MAX_ENTRIES;
use crate::entries::{Collector, Said};
use crate::landmarks::Landmarks;
use crate::rows::{DirectionRules, RuleKey, RuleRow, Tier};
use crate::rulebook::{Noticed, Rulebook, selects};
use crate::universe::Universe;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tombolo_base::ids::{ClusterName, IdentityId};
use tombolo_base::labels::Labels;
use tombolo_base::prefix::Prefix;
use tombolo_base::source::Source;
use tombolo_base::table::Row;
use tombolo_topology::EndpointRow;

/// The endpoint that stands for the node itself.
pub const HOST_ENDPOINT: u16 = 0;

/// A subject as compiled last.
#[derive(Clone, Debug, Default)]
struct Subject {
    labels: Labels,
    endpoints: BTreeSet<u16>,
    /// The rules that select it, to tell a changed rule from a vanished identity.
    rules: Vec<Arc<RuleRow>>,
    /// Whether it was, in this life.
    compiled: bool,
    row: Option<PolicyRow>,
    cookies: BTreeSet<u32>,
    problems: BTreeSet<String>,
}

/// Compiles policies and remembers what it compiled.
#[derive(Clone, Debug)]
pub struct Compiler {
    ids: BTreeMap<IdentityId, u32>,
    next_id: u32,
    audit: bool,
    /// Whether the node is to be looked at again.
    node_changed: bool,
    /// Prefixes whose numbers changed because nodes or the API server are elsewhere; all is compiled again.
    moved: Option<BTreeSet<Prefix>>,
    /// Entries of an earlier life's policies by policy id, until everybody has spoken.
    earlier: BTreeMap<u32, Entries>,
    universe: Universe,
    rulebook: Rulebook,
    cookies: Cookies,
    subjects: BTreeMap<IdentityId, Subject>,
    /// The subjects that each rule selects.
    selected: BTreeMap<RuleKey, BTreeSet<IdentityId>>,
    endpoints: BTreeMap<u16, EndpointPolicy>,
    /// Which subject an endpoint has.
    endpoint_subjects: BTreeMap<u16, IdentityId>,
}

/// What a change leads to.
#[derive(Default)]
struct Concerned {
    rules: BTreeSet<RuleKey>,
    subjects: BTreeSet<IdentityId>,
    endpoints: BTreeSet<u16>,
    noticed: Noticed,
    born: BTreeSet<u32>,
    gone: BTreeSet<u32>,
}

impl Compiler {
    /// A compiler for a node of `cluster` that knows no policy ids yet.
    #[must_use]
    pub fn new(cluster: ClusterName) -> Self {
        Self {
            ids: BTreeMap::new(),
            next_id: 1,
            audit: false,
            node_changed: false,
            moved: None,
            earlier: BTreeMap::new(),
            universe: Universe::new(cluster),
            rulebook: Rulebook::default(),
            cookies: Cookies::default(),
            subjects: BTreeMap::new(),
            selected: BTreeMap::new(),
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
        // A number that nobody goes by any more means nothing now, and is given to nobody before its entries are gone.
        let highest = self.earlier.keys().max().map_or(0, |highest| highest.saturating_add(1));
        self.next_id = self.next_id.max(highest);
        let used: BTreeSet<u32> = self.ids.values().copied().collect();
        self.earlier.retain(|number, _| used.contains(number));
        self
    }

    /// Takes over the numbers that the datapath holds of prefixes. Other identities are passed over.
    #[must_use]
    pub fn with_prefixes(mut self, prefixes: impl IntoIterator<Item = (Prefix, IdentityId)>) -> Self {
        prefixes.into_iter().for_each(|(prefix, id)| self.universe.cidrs.restore(prefix, id));
        self
    }

    /// Marks all policies as audited: see [`PolicyRow::audit`].
    #[must_use]
    pub const fn with_audit(mut self, audit: bool) -> Self {
        self.audit = audit;
        self
    }

    /// Says what this node is labelled with: it is subject to policies for nodes. The next [`Compiler::update`] takes it in.
    pub fn set_node(&mut self, labels: Labels) {
        if self.subjects.get(&IdentityId::HOST).is_some_and(|subject| subject.labels == labels) {
            return;
        }
        let subject = self.subjects.entry(IdentityId::HOST).or_default();
        subject.labels = labels;
        subject.endpoints.insert(HOST_ENDPOINT);
        self.endpoint_subjects.insert(HOST_ENDPOINT, IdentityId::HOST);
        self.node_changed = true;
    }

    /// Says where the API server and the nodes are. The next [`Compiler::update`] takes it in.
    pub fn set_landmarks(&mut self, mut landmarks: Landmarks) {
        // Else nobody here asks where other nodes are, and a new one is no reason to compile.
        if !landmarks.cidrs_take_nodes {
            landmarks.nodes.clear();
        }
        if *self.universe.landmarks() != landmarks {
            let touched = self.universe.set_landmarks(landmarks);
            self.moved.get_or_insert_default().extend(touched);
        }
    }

    /// The policy ids by subject identity, to be kept for the next life.
    #[must_use]
    pub const fn ids(&self) -> &BTreeMap<IdentityId, u32> {
        &self.ids
    }

    /// What cannot be enforced as written; such parts match nothing.
    #[must_use]
    pub fn problems(&self) -> BTreeSet<String> {
        self.subjects.values().flat_map(|subject| subject.problems.iter().cloned()).collect()
    }

    /// The compiled policies now.
    pub fn policies(&self) -> impl Iterator<Item = &PolicyRow> {
        self.subjects.values().filter_map(|subject| subject.row.as_ref())
    }

    /// The prefixes that rules mention, and their numbers.
    pub fn prefixes(&self) -> impl Iterator<Item = (Prefix, IdentityId)> + '_ {
        self.universe.cidrs.wanted()
    }

    /// Prefixes that no rule mentions any more, and whose numbers policies still know: to be released
    /// ([`Change::Rows`]) when the datapath has no row of them.
    pub fn leaving(&self) -> impl Iterator<Item = (Prefix, IdentityId)> + '_ {
        self.universe.cidrs.leaving()
    }

    /// What the numbers in the entries stand for.
    pub fn cookies(&self) -> impl Iterator<Item = CookieRow> + '_ {
        self.cookies.rows()
    }

    /// The identity of an address that is nobody's of the mesh.
    #[must_use]
    pub fn identity_of(&self, address: std::net::IpAddr) -> IdentityId {
        self.universe.cidrs.of(Prefix::host(address))
    }

    /// The identity of another node's address.
    #[must_use]
    pub fn identity_of_node(&self, address: std::net::IpAddr) -> IdentityId {
        let own = self.universe.cidrs.exactly(Prefix::host(address)).filter(|id| id.is_node());
        let apiserver = self.universe.landmarks().apiservers.contains(&address);
        own.unwrap_or(if apiserver { IdentityId::KUBE_APISERVER } else { IdentityId::REMOTE_NODE })
    }

    /// Recompiles what a change concerns and says what to write.
    pub fn update(&mut self, inputs: &Inputs<'_>, change: &Change) -> Delta {
        let mut concerned = Concerned::default();
        match change {
            Change::Everything => {
                let all = self.everything(inputs);
                self.learn(inputs, &all, &mut concerned);
                concerned.subjects.extend(self.subjects.keys());
            }
            rows @ Change::Rows { .. } => self.learn(inputs, rows, &mut concerned),
        }
        if std::mem::take(&mut self.node_changed) {
            concerned.subjects.insert(IdentityId::HOST);
            concerned.endpoints.insert(HOST_ENDPOINT);
        }
        if let Some(touched) = self.moved.take() {
            concerned.noticed.touched.extend(touched);
            concerned.subjects.extend(self.subjects.keys());
        }
        if inputs.may_shrink {
            self.earlier.clear();
        }
        for rule in &concerned.rules {
            concerned.subjects.extend(self.selected.get(rule).into_iter().flatten());
        }
        let mut delta = Delta::default();
        for id in std::mem::take(&mut concerned.subjects) {
            if self.subjects.get(&id).is_some_and(|subject| !subject.endpoints.is_empty()) {
                self.compile(inputs, id, &mut delta, &mut concerned);
            } else {
                self.forget(id, &mut delta, &mut concerned);
            }
        }
        self.assign(&concerned.endpoints, &mut delta);
        self.tell(&concerned, &mut delta);
        delta
    }

    /// All keys, those that are known and those that are there.
    fn everything(&self, inputs: &Inputs<'_>) -> Change {
        Change::Rows {
            rules: inputs.rules.iter().map(Row::key).chain(self.rulebook.keys().cloned()).collect(),
            groups: inputs.groups.iter().map(Row::key).chain(self.universe.groups().cloned()).collect(),
            identities: inputs.identities.iter().map(|row| row.id).chain(self.universe.ids()).collect(),
            endpoints: inputs
                .endpoints
                .iter()
                .map(|row| row.id)
                .chain(self.endpoints.keys().copied().filter(|id| *id != HOST_ENDPOINT))
                .collect(),
            named_ports: BTreeSet::new(),
            released: BTreeSet::new(),
        }
    }

    /// Brings all that is known up to date. An identity said by several sources has the labels of the first.
    fn learn(&mut self, inputs: &Inputs<'_>, change: &Change, concerned: &mut Concerned) {
        let Change::Rows { rules, groups, identities, endpoints, named_ports, released } = change else {
            return;
        };
        for id in identities {
            let first = inputs.identities.from_key(&(*id, Source::Manifests)).next();
            let labels = first.filter(|row| row.id == *id).map(|row| &row.labels);
            self.universe.learn(*id, labels, &mut concerned.rules);
        }
        if !groups.is_empty() {
            groups.iter().for_each(|name| self.universe.set_group(name, inputs.groups.get(name)));
            for rule in self.rulebook.grouped().clone() {
                self.rulebook.look_again(&rule, &mut self.universe, &mut concerned.noticed);
                concerned.rules.insert(rule);
            }
        }
        for key in rules {
            self.learn_rule(key, inputs.rules.get(key), concerned);
        }
        for id in endpoints {
            self.learn_endpoint(*id, inputs.endpoints.get(id), concerned);
        }
        if !named_ports.is_empty() {
            concerned.rules.extend(self.rulebook.named().iter().cloned());
        }
        for prefix in released.iter().filter(|prefix| self.universe.cidrs.release(**prefix)) {
            concerned.rules.extend(self.rulebook.around(prefix).cloned());
        }
        if !released.is_empty() {
            for prefix in self.universe.cidrs.retry() {
                concerned.noticed.touched.insert(prefix);
                concerned.noticed.fresh.insert(prefix);
            }
        }
        for prefix in &concerned.noticed.fresh {
            concerned.rules.extend(self.rulebook.around(prefix).cloned());
        }
    }

    fn learn_rule(&mut self, key: &RuleKey, row: Option<&RuleRow>, concerned: &mut Concerned) {
        if self.rulebook.get(key).map(AsRef::as_ref) == row {
            return;
        }
        concerned.rules.insert(key.clone());
        self.rulebook.set(key, row, &mut self.universe, &mut concerned.noticed);
        if let Some(row) = row {
            let selected = |(id, subject): &(&IdentityId, &Subject)| {
                selects(row, **id, &subject.labels, &self.universe.cluster)
            };
            concerned.subjects.extend(self.subjects.iter().filter(selected).map(|(id, _)| *id));
        }
    }

    fn learn_endpoint(&mut self, id: u16, row: Option<&EndpointRow>, concerned: &mut Concerned) {
        let now = row.and_then(|row| Some((row.identity?, &row.labels)));
        let was = match now {
            Some((identity, _)) => self.endpoint_subjects.insert(id, identity),
            None => self.endpoint_subjects.remove(&id),
        };
        concerned.endpoints.insert(id);
        if let Some(was) = was.filter(|was| now.map(|(identity, _)| identity) != Some(*was))
            && let Some(subject) = self.subjects.get_mut(&was)
        {
            subject.endpoints.remove(&id);
            if subject.endpoints.is_empty() {
                concerned.subjects.insert(was);
            }
        }
        if let Some((identity, labels)) = now {
            let fresh = !self.subjects.contains_key(&identity);
            let subject = self.subjects.entry(identity).or_default();
            subject.endpoints.insert(id);
            if fresh || subject.labels != *labels {
                subject.labels = labels.clone();
                concerned.subjects.insert(identity);
            }
        }
    }

    fn compile(&mut self, inputs: &Inputs<'_>, id: IdentityId, delta: &mut Delta, concerned: &mut Concerned) {
        let Some(before) = self.subjects.remove(&id) else { return };
        let rules = self.rulebook.about(id, &before.labels, &self.universe.cluster);
        let mut subject = Subject {
            labels: before.labels.clone(),
            endpoints: before.endpoints.clone(),
            rules,
            compiled: true,
            ..Subject::default()
        };
        if !subject.rules.is_empty() {
            let mut collector = Collector::new(&self.universe, id, inputs.named_ports);
            collector.add(&subject.rules);
            let Collector { entries, origins, closed, problems, .. } = collector;
            let names: Vec<Arc<str>> = origins
                .iter()
                .filter_map(|origin| {
                    let rule = self.rulebook.get(&origin.rule)?;
                    Some(block_title(rule, origin.direction, origin.block).into())
                })
                .collect();
            let mut entries = self.number(entries, &names, &mut subject.cookies, &mut concerned.born);
            self.keep(inputs, id, &before, &subject.rules, &mut entries);
            for Verdict { cookie, .. } in entries.values() {
                if !subject.cookies.contains(cookie) && self.cookies.hold(*cookie) {
                    subject.cookies.insert(*cookie);
                }
            }
            subject.problems = problems;
            let mut row = self.row(id, &subject.rules, entries);
            row.ingress_enforced |= closed.contains(&crate::rows::Direction::Ingress);
            row.egress_enforced |= closed.contains(&crate::rows::Direction::Egress);
            subject.row = Some(row);
        }
        self.note_selected(id, &before.rules, &subject.rules);
        self.cookies.put_back(&before.cookies);
        concerned.gone.extend(before.cookies);
        let old = before.row;
        if old.as_ref().map(|row| row.id) != subject.row.as_ref().map(|row| row.id) {
            concerned.endpoints.extend(&subject.endpoints);
        }
        match (&old, &subject.row) {
            (_, Some(row)) if old.as_ref() != Some(row) => delta.policies.push(row.clone()),
            (Some(old), None) => delta.removed_policies.push(old.id),
            _ => {}
        }
        self.subjects.insert(id, subject);
    }

    /// Puts numbers for the rules that say it into what was collected.
    fn number(
        &mut self,
        said: BTreeMap<VerdictKey, Said>,
        names: &[Arc<str>],
        cookies: &mut BTreeSet<u32>,
        born: &mut BTreeSet<u32>,
    ) -> Entries {
        let mut known: BTreeMap<smallvec::SmallVec<[u32; 2]>, u32> = BTreeMap::new();
        let mut out = Entries::new();
        for (key, Said { precedence, origins }) in said {
            let cookie = match known.get(&origins) {
                Some(cookie) => *cookie,
                None => {
                    let name = |at: &u32| names.get(usize::try_from(*at).ok()?).cloned();
                    let (cookie, new) = self.cookies.take(origins.iter().filter_map(name).collect());
                    // Two lists of blocks may have the same names.
                    if !cookies.insert(cookie) {
                        self.cookies.put_back(&[cookie].into());
                    }
                    if new {
                        born.insert(cookie);
                    }
                    known.insert(origins, cookie);
                    cookie
                }
            };
            out.insert(key, Verdict { precedence, cookie });
        }
        out
    }

    /// Keeps what must not be lost yet: entries of identities that are not named any more, or not yet.
    fn keep(
        &mut self,
        inputs: &Inputs<'_>,
        id: IdentityId,
        before: &Subject,
        rules: &[Arc<RuleRow>],
        entries: &mut Entries,
    ) {
        let same = before.rules == *rules;
        if let Some(row) = before.row.as_ref().filter(|_| !inputs.may_shrink && same) {
            self.unnamed(&row.entries, entries);
        }
        // Which rules made an earlier life's entries is not known; a change seen in this life ends them.
        if before.compiled
            && !same
            && let Some(number) = self.ids.get(&id)
        {
            self.earlier.remove(number);
        }
        if let Some(earlier) = self.ids.get(&id).and_then(|number| self.earlier.get(number)) {
            self.unnamed(earlier, entries);
        }
    }

    /// Entries whose identity is no longer, or not yet, known. Numbers of prefixes are this node's own and always known.
    fn unnamed(&self, from: &Entries, to: &mut Entries) {
        let waits =
            |id: IdentityId| !id.is_reserved() && id.0 < crate::cidrs::FIRST && !self.universe.knows(id);
        for (key, verdict) in from.iter().filter(|(key, _)| waits(key.identity)) {
            to.entry(*key).or_insert(*verdict);
        }
    }

    fn row(&mut self, subject: IdentityId, rules: &[Arc<RuleRow>], entries: Entries) -> PolicyRow {
        let next = &mut self.next_id;
        let id = *self.ids.entry(subject).or_insert_with(|| {
            let id = *next;
            *next = next.saturating_add(1);
            id
        });
        let enforced = |of: fn(&RuleRow) -> Option<&DirectionRules>| {
            let normal = rules.iter().filter(|rule| rule.tier == Tier::Normal);
            normal.filter_map(|rule| of(rule)).any(|rules| rules.default_deny)
        };
        PolicyRow {
            source: Source::Planner,
            id,
            subject,
            ingress_enforced: enforced(|rule| rule.ingress.as_ref()),
            egress_enforced: enforced(|rule| rule.egress.as_ref()),
            entries,
            audit: self.audit,
            origins: rules.iter().map(|rule| rule.title().into()).collect(),
        }
    }

    fn note_selected(&mut self, id: IdentityId, before: &[Arc<RuleRow>], now: &[Arc<RuleRow>]) {
        for key in before.iter().map(|rule| rule.key()) {
            if let Some(subjects) = self.selected.get_mut(&key) {
                subjects.remove(&id);
                if subjects.is_empty() {
                    self.selected.remove(&key);
                }
            }
        }
        for key in now.iter().map(|rule| rule.key()) {
            self.selected.entry(key).or_default().insert(id);
        }
    }

    fn forget(&mut self, id: IdentityId, delta: &mut Delta, concerned: &mut Concerned) {
        self.ids.remove(&id);
        let Some(subject) = self.subjects.remove(&id) else { return };
        self.note_selected(id, &subject.rules, &[]);
        self.cookies.put_back(&subject.cookies);
        concerned.gone.extend(subject.cookies);
        delta.removed_policies.extend(subject.row.map(|row| row.id));
    }

    /// Tells endpoints their policies.
    fn assign(&mut self, concerned: &BTreeSet<u16>, delta: &mut Delta) {
        for endpoint in concerned {
            let subject = self.endpoint_subjects.get(endpoint).and_then(|id| self.subjects.get(id));
            let Some(subject) = subject else {
                if self.endpoints.remove(endpoint).is_some() {
                    delta.removed_endpoints.push(*endpoint);
                }
                continue;
            };
            let policy = subject.row.as_ref().map_or(0, |row| row.id);
            let row = EndpointPolicy { source: Source::Planner, endpoint: *endpoint, policy };
            if self.endpoints.get(endpoint) != Some(&row) {
                self.endpoints.insert(*endpoint, row.clone());
                delta.endpoints.push(row);
            }
        }
    }

    /// Says what became of prefixes and of the numbers of rules.
    fn tell(&self, concerned: &Concerned, delta: &mut Delta) {
        for prefix in &concerned.noticed.touched {
            match self.universe.cidrs.wants(*prefix) {
                Some(id) => delta.prefixes.push((*prefix, id)),
                None => delta.removed_prefixes.push(*prefix),
            }
        }
        delta.cookies = concerned.born.iter().filter_map(|cookie| self.cookies.row(*cookie)).collect();
        let gone = concerned.gone.iter().filter(|cookie| self.cookies.row(**cookie).is_none());
        delta.removed_cookies = gone.copied().collect();
    }
}

#[cfg(test)]
#[path = "compile_property_tests.rs"]
mod property_tests;
#[cfg(test)]
#[path = "scale_tests.rs"]
mod scale_tests;
#[cfg(test)]
#[path = "compile_tests.rs"]
mod tests;
