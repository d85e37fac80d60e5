//! One cluster of the simulation: its etcd, whoever publishes there, and the follower that reads it.

use super::etcd::{Etcd, bytes_of};
use super::random::Random;
use crate::follower::{
    Change, Failure, FailureKind, Follower, FollowerConfig, IdBook, Input, KeyEvent, Limits, Output, Scope,
    Ticket,
};
use crate::wire::{ExportMode, KINDS, Kind, Layout, Record, Remote, key};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use tombolo_base::clock::Moment;
use tombolo_base::ids::{ClusterId, ClusterName, MaxClusters};
use tombolo_base::source::SourceState;

/// Answers of one lane come in order; between lanes they come in any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lane {
    Control,
    Of(Scope),
}

enum Work {
    Config(String),
    Prove(i64),
    List { ticket: Ticket, scope: Scope, from: Vec<u8>, prefix: String, revision: i64, limit: i64 },
    Answer(Input),
}

struct Watch {
    ticket: Ticket,
    prefix: String,
    next: i64,
    created: bool,
    /// The etcd it is a stream of; after a change behind the address it stays with the old one, which is silent.
    etcd: u64,
}

/// What a follower told, as the tables have it.
type Known = BTreeMap<(Kind, String), Record>;

pub(crate) struct Site {
    pub(crate) name: String,
    pub(crate) id: u32,
    pub(crate) etcd: Etcd,
    pub(crate) backup: Option<Etcd>,
    /// What the cluster's agents mean to publish.
    pub(crate) want: BTreeMap<String, String>,
    pub(crate) up: bool,
    pub(crate) leader: bool,
    pub(crate) publishing: bool,
    /// The form of its backends.
    pub(crate) mode: ExportMode,
    pub(crate) denied: BTreeSet<Scope>,
    pub(crate) core: Follower,
    lanes: BTreeMap<Lane, VecDeque<Work>>,
    watches: BTreeMap<Scope, Watch>,
    connected: bool,
    /// Scopes of which a list was asked for on this connection.
    asked: BTreeSet<Scope>,
    /// Grows when etcd's data are replaced; a connection belongs to one life.
    life: u64,
    connected_in: u64,
    last_answer: Option<(Lane, Input)>,
    pub(crate) known: Known,
    pub(crate) state: SourceState,
    /// What may be deleted: an event said so, or a complete list lacked it.
    excused: BTreeSet<(Kind, String)>,
    /// What was published since all was quiet last, and may still be on its way.
    published: BTreeSet<(Kind, String)>,
    pub(crate) resumed: u64,
    pub(crate) listed: u64,
    /// The last things that happened, when a single world is repeated.
    trace: Option<VecDeque<String>>,
}

/// Every kind that a cluster may publish.
pub(crate) const ALL: [Kind; 6] =
    [KINDS[0], KINDS[1], KINDS[2], KINDS[3], Kind::ServiceExports, Kind::EndpointSlices];

/// Lines of the trace.
const TRACED: usize = 150;

impl Site {
    pub(crate) fn new(name: &str, id: u32, seed: u64, ids: &IdBook, limits: Limits) -> Self {
        let cluster = |text| ClusterName::new(text).unwrap();
        let config = FollowerConfig {
            own_id: Some(ClusterId::new(9, MaxClusters::C255).unwrap()),
            ids: ids.clone(),
            seed,
            limits,
            ..FollowerConfig::new(cluster(name), cluster("own"))
        };
        Self {
            name: name.to_owned(),
            id,
            etcd: Etcd::new(u64::from(id) * 1000),
            backup: None,
            want: BTreeMap::new(),
            up: true,
            leader: true,
            publishing: true,
            mode: ExportMode::Services,
            denied: BTreeSet::new(),
            core: Follower::new(config, Moment::ZERO),
            lanes: BTreeMap::new(),
            watches: BTreeMap::new(),
            connected: false,
            asked: BTreeSet::new(),
            life: 0,
            connected_in: 0,
            last_answer: None,
            known: BTreeMap::new(),
            state: SourceState::Pending,
            excused: BTreeSet::new(),
            published: BTreeSet::new(),
            resumed: 0,
            listed: 0,
            trace: None,
        }
    }

    pub(crate) fn config_text(&self) -> String {
        format!(
            r#"{{"id":{},"capabilities":{{"syncedCanaries":true,"maxConnectedClusters":255,"serviceExportsEnabled":true,"endpointSlicesExportMode":"{}"}}}}"#,
            self.id,
            self.mode.word()
        )
    }

    /// The kinds that it publishes.
    fn published_kinds(&self) -> Vec<Kind> {
        let mode = self.mode;
        let is = |kind: &Kind| match kind {
            Kind::Services => mode.services(),
            Kind::EndpointSlices => mode.slices(),
            _ => true,
        };
        ALL.into_iter().filter(is).collect()
    }

    /// What is to be published in the present form.
    fn wanted(&self) -> impl Iterator<Item = (&String, &String)> {
        let prefixes = self.published_kinds().into_iter().map(|kind| kind.prefix(Layout::State, &self.name));
        let prefixes: Vec<String> = prefixes.collect();
        self.want.iter().filter(move |(key, _)| prefixes.iter().any(|prefix| key.starts_with(prefix)))
    }

    pub(crate) fn feed(&mut self, now: Moment, input: Input) {
        self.note(|| format!("{:.2} {input:?}", now.since_origin().as_secs_f64()));
        let mut out = Vec::new();
        self.core.handle(now, input, &mut out);
        self.note(|| format!("    gives {out:?}"));
        self.carry_out(out);
    }

    pub(crate) fn note(&mut self, text: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            if trace.len() >= TRACED {
                trace.pop_front();
            }
            trace.push_back(text());
        }
    }

    /// What happened before, for a message.
    fn traced(&self) -> String {
        self.trace.iter().flatten().map(|line| format!("\n{}", line.replace("cilium/state/", ""))).collect()
    }

    pub(crate) fn carry_out(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Connect => {
                    self.connected = self.up;
                    self.connected_in = self.life;
                    let refused = Input::Disconnected(failure(FailureKind::Transport));
                    let answer = if self.up { Input::Connected } else { refused };
                    self.queue(Lane::Control, Work::Answer(answer));
                }
                Output::Disconnect => self.lose(),
                Output::GetConfig(key) => self.queue(Lane::Control, Work::Config(key)),
                Output::Prove(revision) => self.queue(Lane::Control, Work::Prove(revision)),
                Output::List { ticket, scope, from, prefix, revision, limit } => {
                    if revision == 0 {
                        // A new list replaces what was under way.
                        self.listed += u64::from(matches!(scope, Scope::Entries(_)));
                        self.watches.remove(&scope);
                        self.asked.insert(scope);
                    }
                    self.queue(Lane::Of(scope), Work::List { ticket, scope, from, prefix, revision, limit });
                }
                Output::Watch { ticket, scope, prefix, revision } => {
                    self.resumed += u64::from(!self.asked.contains(&scope));
                    let etcd = self.etcd.id;
                    self.watches
                        .insert(scope, Watch { ticket, prefix, next: revision, created: false, etcd });
                }
                Output::Change(change) => self.apply(change),
                Output::State(state) => self.state = state,
                Output::Gone => self.connected = false,
                Output::News(news) => panic!("{}: no mirror asked for {news:?}", self.name),
            }
        }
    }

    fn queue(&mut self, lane: Lane, work: Work) {
        self.lanes.entry(lane).or_default().push_back(work);
    }

    /// The rules that hold at every moment: entries are the cluster's own, and nothing goes without a reason.
    fn apply(&mut self, change: Change) {
        match change {
            Change::Upsert(record) => {
                self.assert_own(&record);
                self.known.insert(row(&record), record);
            }
            Change::Delete(record) => {
                let row = row(&record);
                let withheld = self.core.status(Moment::ZERO).withheld.contains_key(&row.0);
                let removed = self.known.remove(&row).is_some();
                assert!(removed || withheld, "{}: {row:?} was deleted twice", self.name);
                assert!(
                    withheld || self.excused.contains(&row) || self.is_replaced(row.0),
                    "{}: {row:?} was deleted although no event and no complete list said so{}",
                    self.name,
                    self.traced()
                );
            }
        }
    }

    /// Whether backends are read in the other form now, and those of that form are all known.
    fn is_replaced(&self, kind: Kind) -> bool {
        let other = match kind {
            Kind::Services => Kind::EndpointSlices,
            Kind::EndpointSlices => Kind::Services,
            _ => return false,
        };
        !self.core.stores.contains_key(&kind) && self.core.synced.get(&other) == Some(&true)
    }

    fn assert_own(&self, record: &Record) {
        // While a new number is being taken up the follower goes by the one it read.
        let id = self.core.remote.as_ref().unwrap().id;
        let range = id.identity_range(MaxClusters::C255);
        match record {
            Record::Identity(id, _) => assert!((range.0..=range.1).contains(id), "{}: {record:?}", self.name),
            Record::Node(node) => assert_eq!(node.cluster.as_ref(), self.name),
            Record::Service(service) => assert_eq!(service.cluster.as_ref(), self.name),
            Record::EndpointSlice(slice) => assert_eq!(slice.cluster.as_ref(), self.name),
            Record::ServiceExport(export) => assert_eq!(export.cluster.as_ref(), self.name),
            Record::Ip(entry) => assert!(
                entry.identity.is_reserved() || (range.0..=range.1).contains(&entry.identity),
                "{}: {record:?}",
                self.name
            ),
            Record::Raw(raw) => panic!("{}: no mirror asked for {raw:?}", self.name),
            Record::Assignment(..) => panic!("{}: no foreign cluster assigns our addresses", self.name),
        }
    }

    /// Answers of the connection do not arrive any more.
    fn lose(&mut self) {
        self.connected = false;
        self.lanes.clear();
        self.watches.clear();
        self.asked.clear();
        self.last_answer = None;
    }

    /// From now on what happens is kept for the message of a failure.
    pub(crate) fn keep_trace(&mut self) {
        self.trace = Some(VecDeque::new());
    }

    /// Another data directory from now on: streams end, requests on the old connection fail.
    pub(crate) fn live_again(&mut self, etcd: Etcd) {
        self.etcd = etcd;
        self.life += 1;
        self.end_watches(FailureKind::Transport, |_| true);
    }

    pub(crate) fn broken(&mut self, now: Moment) {
        if self.connected {
            self.lose();
            self.feed(now, Input::Disconnected(failure(FailureKind::Transport)));
        }
    }

    /// A second connection was made, and the first one is closed for it.
    pub(crate) fn renewed(&mut self, now: Moment) {
        if self.connected && self.up {
            self.lose();
            self.connected = true;
            self.connected_in = self.life;
            self.feed(now, Input::Replaced);
        }
    }

    /// A watch is ended by etcd.
    pub(crate) fn end_watches(&mut self, kind: FailureKind, only: impl Fn(Scope) -> bool) {
        let scopes: Vec<Scope> = self.watches.keys().copied().filter(|scope| only(*scope)).collect();
        for scope in scopes {
            if let Some(watch) = self.watches.remove(&scope) {
                let ended = Input::WatchEnded(watch.ticket, scope, failure(kind));
                self.queue(Lane::Of(scope), Work::Answer(ended));
            }
        }
    }

    pub(crate) fn watched(&self) -> Vec<Scope> {
        self.watches.keys().copied().collect()
    }

    /// Whether requests or answers are under way.
    pub(crate) fn is_busy(&self) -> bool {
        self.lanes.values().any(|lane| !lane.is_empty())
    }

    /// Whether all that its etcd has for the watches was told.
    pub(crate) fn is_caught_up(&self) -> bool {
        self.watches
            .values()
            .all(|watch| watch.created && self.etcd.changes(&watch.prefix, watch.next, 1).1.is_empty())
    }

    /// One request is carried out, or one answer arrives.
    pub(crate) fn work(&mut self, now: Moment, random: &mut Random) {
        let lanes: Vec<Lane> =
            self.lanes.iter().filter(|(_, lane)| !lane.is_empty()).map(|(lane, _)| *lane).collect();
        if lanes.is_empty() {
            return;
        }
        let lane = lanes[random.index(lanes.len())];
        let Some(work) = self.lanes.get_mut(&lane).and_then(VecDeque::pop_front) else { return };
        let answer = match work {
            Work::Answer(input) => {
                if matches!(input, Input::Events { .. }) {
                    self.last_answer = Some((lane, input.clone()));
                }
                return self.feed(now, input);
            }
            request => self.answer(request, random),
        };
        // In front: answers of a lane keep the order of its requests.
        self.lanes.entry(lane).or_default().push_front(Work::Answer(answer));
    }

    fn answer(&self, request: Work, random: &mut Random) -> Input {
        let trouble = match (self.up, self.leader) {
            (false, _) => Some(FailureKind::Transport),
            _ if self.connected_in != self.life => Some(FailureKind::Transport),
            (_, false) => Some(FailureKind::NoLeader),
            _ => None,
        };
        let header = self.etcd.header();
        match request {
            Work::Answer(input) => input,
            Work::Config(key) => match trouble {
                Some(kind) => Input::ConfigFailed(failure(kind)),
                None => Input::Config(header, self.etcd.get(&key).map(|text| text.as_bytes().to_vec())),
            },
            Work::Prove(revision) => match (trouble, self.etcd.get_at(key::HEARTBEAT, revision)) {
                (Some(kind), _) => Input::ProofFailed(failure(kind)),
                (None, Err(compacted)) => Input::ProofFailed(unreachable(compacted)),
                (None, Ok(found)) => {
                    Input::Proof(header, found.map(|(written, text)| (written, text.into_bytes())))
                }
            },
            Work::List { ticket, scope, from, prefix, revision, limit } => {
                let denied = self.denied.contains(&scope).then_some(FailureKind::Denied);
                let broken = random.once_in(400).then_some(FailureKind::Transport);
                let large = (limit > 16 && random.once_in(100)).then_some(FailureKind::TooLarge);
                if let Some(kind) = trouble.or(denied).or(broken).or(large) {
                    return Input::ListFailed(ticket, scope, failure(kind));
                }
                // Small pages, so that every list has several.
                let most = 1 + random.index(usize::try_from(limit).unwrap().min(12));
                match self.etcd.page(&from, &prefix, revision, most) {
                    Ok((entries, more)) => Input::Page { ticket, scope, header, entries, more },
                    Err(compacted) => Input::ListFailed(ticket, scope, unreachable(compacted)),
                }
            }
        }
    }

    /// Some watch tells what is new, makes progress, or tells the same again.
    pub(crate) fn tell(&mut self, random: &mut Random) {
        if !self.up || self.watches.is_empty() {
            return;
        }
        if random.once_in(40)
            && let Some((lane, input)) = self.last_answer.take()
        {
            return self.queue(lane, Work::Answer(input));
        }
        let scopes = self.watched();
        let scope = scopes[random.index(scopes.len())];
        let header = self.etcd.header();
        let Some(watch) = self.watches.get_mut(&scope) else { return };
        // A stream of an etcd that was replaced stays silent.
        if watch.etcd != self.etcd.id {
            return;
        }
        if watch.next <= self.etcd.compacted {
            return self.end_watches(FailureKind::Compacted, |other| other == scope);
        }
        let ticket = watch.ticket;
        if !std::mem::replace(&mut watch.created, true) {
            let created = Input::Events { ticket, scope, header, seen: 0, events: Vec::new() };
            return self.queue(Lane::Of(scope), Work::Answer(created));
        }
        let most = i64::try_from(1 + random.below(8)).unwrap();
        let (last, events) = self.etcd.changes(&watch.prefix, watch.next, most);
        if events.is_empty() && !random.once_in(30) {
            return;
        }
        let seen = if events.is_empty() { header.revision } else { last };
        watch.next = watch.next.max(seen + 1);
        self.excuse_short_lived(&events);
        self.queue(Lane::Of(scope), Work::Answer(Input::Events { ticket, scope, header, seen, events }));
    }

    /// What one response brings and takes away: in a backup's past it may have come and gone before the last quiet.
    fn excuse_short_lived(&mut self, events: &[KeyEvent]) {
        let mut brought = BTreeSet::new();
        for event in events {
            match event {
                KeyEvent::Put(key, _) => {
                    brought.insert(key);
                }
                KeyEvent::Delete(key) if brought.contains(key) => {
                    let row = std::str::from_utf8(key).ok().and_then(|key| self.row_of(key));
                    self.excused.extend(row);
                }
                KeyEvent::Delete(_) => {}
            }
        }
    }

    /// Whoever publishes makes one step towards what it wants; canaries come last.
    pub(crate) fn publish(&mut self) {
        if !self.up || !self.leader || !self.publishing {
            return;
        }
        let config = (key::cluster_config(&self.name), self.config_text());
        let kinds = self.published_kinds();
        let canary = |kind: &Kind| (kind.canary(Layout::State, &self.name), "now".to_owned());
        let canaries: Vec<_> = kinds.iter().map(canary).collect();
        // What stands in another form stays until its leases end.
        let prefixes: Vec<_> = kinds.iter().map(|kind| kind.prefix(Layout::State, &self.name)).collect();
        let inside = |key: &str| prefixes.iter().any(|prefix| key.starts_with(prefix.as_str()));
        let extra = self.etcd.content().find(|(key, _)| inside(key) && !self.want.contains_key(*key));
        if let Some(extra) = extra.map(|(key, _)| key.to_owned()) {
            self.etcd.delete(&[extra]);
            return self.excuse();
        }
        let differs = |(key, value): &(&String, &String)| self.etcd.get(key) != Some(value.as_str());
        let entries = self.wanted();
        let first = std::iter::once((&config.0, &config.1)).chain(entries).find(differs);
        if let Some((key, value)) = first.map(|(key, value)| (key.clone(), value.clone())) {
            self.published.extend(self.row_of(&key));
            // An export carries no number: it is taken under the one of before, and goes with it.
            if self.core.remote.as_ref().is_some_and(|remote| u32::from(remote.id.get()) != self.id) {
                self.excused.extend(self.row_of(&key));
            }
            let same_id = format!("{{\"id\":{},", self.id);
            if key == config.0 && !self.etcd.get(&key).is_some_and(|text| text.starts_with(&same_id)) {
                // It may give the cluster back a number that a restored backup had not.
                self.published
                    .extend(self.etcd.content().filter_map(|(key, _)| self.row_of(key)).collect::<Vec<_>>());
                self.excuse_all();
            }
            return self.etcd.put(&key, &value);
        }
        let missing = canaries.iter().find(|(key, _)| self.etcd.get(key).is_none());
        if let Some((key, value)) = missing {
            self.etcd.put(key, value);
            self.excuse_missing();
        }
    }

    /// The row that a key stands for, if it stands for one.
    fn row_of(&self, key: &str) -> Option<(Kind, String)> {
        let of = |kind: Kind| {
            let name = key.strip_prefix(&kind.prefix(Layout::State, &self.name))?;
            Some((kind, name.to_owned()))
        };
        ALL.into_iter().find_map(of)
    }

    /// What an event deleted may go.
    pub(crate) fn excuse(&mut self) {
        for key in self.etcd.take_deleted() {
            self.excused.extend(self.row_of(&key));
        }
    }

    /// A canary stands: what is not there now may go.
    pub(crate) fn excuse_missing(&mut self) {
        for (kind, name) in self.known.keys().chain(&self.published) {
            let canary = self.etcd.get(&kind.canary(Layout::State, &self.name)).is_some();
            let key = format!("{}{name}", kind.prefix(Layout::State, &self.name));
            if canary && self.etcd.get(&key).is_none() {
                self.excused.insert((*kind, name.clone()));
            }
        }
    }

    /// The cluster's number changes: everything of the old one may go.
    pub(crate) fn excuse_all(&mut self) {
        self.excused.extend(self.known.keys().chain(&self.published).cloned());
    }

    pub(crate) fn excuse_none(&mut self) {
        self.excused.clear();
        self.published.clear();
    }

    /// What the tables must have when all is quiet.
    pub(crate) fn truth(&self) -> Known {
        let remote = Remote {
            name: ClusterName::new(&self.name).unwrap(),
            id: ClusterId::new(self.id, MaxClusters::C255).unwrap(),
            max: MaxClusters::C255,
            own: false,
        };
        let mut truth = BTreeMap::new();
        // Of the form of backends that is not read nothing is known.
        let other = if self.mode.services() { Kind::EndpointSlices } else { Kind::Services };
        for (key, value) in self.etcd.content() {
            for kind in ALL.into_iter().filter(|kind| *kind != other) {
                let Some(name) = key.strip_prefix(&kind.prefix(Layout::State, &self.name)) else { continue };
                if let Ok(Some(record)) = Record::decode(&remote, kind, name, &bytes_of(value)) {
                    truth.insert((kind, name.to_owned()), record.kept());
                }
            }
        }
        truth
    }

    /// Whether everything that the cluster wants published is there, and nothing else.
    pub(crate) fn is_published(&self) -> bool {
        let canaries = self.published_kinds();
        let mut canaries = canaries.into_iter().map(|kind| kind.canary(Layout::State, &self.name));
        let entries = self.wanted().all(|(key, value)| self.etcd.get(key) == Some(value.as_str()));
        entries && canaries.all(|key| self.etcd.get(&key).is_some()) && self.is_configured()
    }

    /// Whether the cluster's configuration is there, and the present one.
    pub(crate) fn is_configured(&self) -> bool {
        self.etcd.get(&key::cluster_config(&self.name)) == Some(self.config_text().as_str())
    }
}

fn failure(kind: FailureKind) -> Failure {
    Failure { kind, text: format!("{kind:?} in the simulation") }
}

fn unreachable(compacted: bool) -> Failure {
    failure(if compacted { FailureKind::Compacted } else { FailureKind::Other })
}

/// The row's key in the tables.
fn row(record: &Record) -> (Kind, String) {
    (record.kind(), record.key_name())
}
