//! The etcd side of one follower: carries out what the core wants and brings back what etcd says.

use super::confirmed::{self, Confirmed, Stamp};
use super::connections::{Connection, Connections};
use super::core::Follower;
use super::dump::Dump;
use super::event::{Change, Failure, FailureKind, Input, News, Output, Scope, Ticket};
use super::requests;
use super::snapshot;
use super::status::ClusterStatus;
use super::times::Histogram;
use super::watches::{self, Order, Watch};
use crate::certificate::{Expiry, unix_now};
use crate::error::MeshError;
use crate::etcd::EtcdConfig;
use crate::wire::Kind;
use etcd_client::Client;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tombolo_base::clock::Moment;
use tombolo_base::ids::ClusterName;
use tombolo_base::source::SourceState;

/// Takes what the followers accept. Called in order, from one task per cluster; must not block.
pub trait MeshSink: Send + Sync + 'static {
    /// Accepted changes of one cluster, in order.
    fn apply(&self, cluster: &ClusterName, changes: Vec<Change>);
    /// How complete the cluster's entries are now.
    fn state(&self, cluster: &ClusterName, state: SourceState);
    /// The cluster was removed; its entries were deleted before, unless it was followed for a mirror.
    fn gone(&self, cluster: &ClusterName);
    /// For a mirror: what its readers have to know besides the entries.
    fn news(&self, _cluster: &ClusterName, _news: News) {}
    /// The folder was listed: the names of all its entries, whatever is in them.
    fn listed(&self, _names: &BTreeSet<String>) {}
}

/// What a follower's task can be asked.
#[derive(Debug)]
pub(crate) enum Command {
    /// Endpoints or certificates changed.
    Reconfigure(EtcdConfig),
    /// The file is gone: take everything away, then end.
    Drain(oneshot::Sender<()>),
    /// What `tombolo mesh status` shows.
    Status(oneshot::Sender<ClusterStatus>),
    /// What `tombolo mesh dump` shows.
    Dump(oneshot::Sender<Dump>),
}

/// How often a changed snapshot is written at most; more rarely when writing takes long.
const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(2);

/// How often it is noted that entries are current.
const CONFIRMATION_INTERVAL: Duration = Duration::from_secs(60);

/// What a task brings back, with the connection it belongs to.
struct Answer {
    epoch: u64,
    /// When it came from etcd.
    arrived: Instant,
    content: Content,
}

enum Content {
    Connected(Arc<Connection>, [u8; 32]),
    /// One that was made beside the one that stands, or why it could not be.
    Second(Result<(Arc<Connection>, [u8; 32]), String>),
    Input(Input),
}

/// A connection that has just answered, and what its certificate files were.
async fn connect(
    connections: &Connections,
    etcd: &EtcdConfig,
) -> Result<(Arc<Connection>, [u8; 32]), MeshError> {
    // Taken first: a renewal while connecting must not look like the files in use.
    let files = etcd.fingerprint().await;
    Ok((connections.open(etcd, files).await?, files))
}

/// One follower's task.
pub(crate) struct Driver {
    cluster: ClusterName,
    core: Follower,
    /// `None` while its file is not usable: what an earlier life knew is used.
    etcd: Option<EtcdConfig>,
    sink: Arc<dyn MeshSink>,
    snapshot: Option<PathBuf>,
    origin: Instant,
    epoch: u64,
    connection: Option<Arc<Connection>>,
    connections: Connections,
    tasks: JoinSet<()>,
    lists: BTreeMap<Scope, (Ticket, AbortHandle)>,
    /// The watches of this connection, and the tickets they have.
    watches: Option<mpsc::UnboundedSender<Order>>,
    watched: BTreeMap<Scope, Ticket>,
    answers: mpsc::Sender<Answer>,
    inbox: mpsc::Receiver<Answer>,
    expiry: Option<Expiry>,
    certificates: [u8; 32],
    /// Why renewed certificate files are not used.
    renewal: Option<String>,
    /// A second connection is being made, with these files.
    second: Option<[u8; 32]>,
    /// When the configuration was asked for: its answer measures the way.
    asked: Option<Instant>,
    /// From the arrival of an answer to its rows.
    commit: Histogram,
    certificate_interval: Duration,
    warned: Vec<String>,
    written: u64,
    confirmed: Confirmed,
    next_write: Instant,
}

impl Driver {
    pub(crate) fn new(
        cluster: ClusterName,
        core: Follower,
        etcd: Option<EtcdConfig>,
        sink: Arc<dyn MeshSink>,
        snapshot: Option<PathBuf>,
        (origin, connections): (Instant, Connections),
    ) -> Self {
        let certificates = core.config.timers.certificates;
        // A task whose answer does not fit waits with it, and etcd waits for the task.
        let (answers, inbox) = mpsc::channel(8);
        Self {
            cluster,
            core,
            etcd,
            sink,
            snapshot,
            origin,
            epoch: 0,
            connection: None,
            connections,
            tasks: JoinSet::new(),
            lists: BTreeMap::new(),
            watches: None,
            watched: BTreeMap::new(),
            answers,
            inbox,
            expiry: None,
            certificates: [0; 32],
            renewal: None,
            second: None,
            asked: None,
            commit: Histogram::default(),
            certificate_interval: certificates,
            warned: Vec::new(),
            written: 0,
            confirmed: Confirmed::default(),
            next_write: Instant::now(),
        }
    }

    fn now(&self) -> Moment {
        Moment::from_origin(self.origin.elapsed())
    }

    /// Runs until cancelled (what is known stays with the sink) or drained.
    pub(crate) async fn run(mut self, mut commands: mpsc::Receiver<Command>, cancel: CancellationToken) {
        self.restore().await;
        let mut certificate_check = tokio::time::interval(self.certificate_interval);
        let mut confirmation = tokio::time::interval(CONFIRMATION_INTERVAL);
        loop {
            let wake = self.origin.checked_add(self.core.next_deadline().since_origin());
            let wake = wake.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            let write = self.snapshot_due();
            tokio::select! {
                () = cancel.cancelled() => break,
                command = commands.recv() => match command {
                    Some(Command::Reconfigure(etcd)) => {
                        self.etcd = Some(etcd);
                        self.feed(Input::Reconfigured);
                    }
                    Some(Command::Status(reply)) => drop(reply.send(self.status())),
                    Some(Command::Dump(reply)) => drop(reply.send(self.core.dump())),
                    Some(Command::Drain(reply)) => {
                        self.drain().await;
                        reply.send(()).ok();
                        return;
                    }
                    None => break,
                },
                Some(answer) = self.inbox.recv() => {
                    self.take(answer);
                }
                Some(ended) = self.tasks.join_next_with_id() => {
                    if let Err(error) = ended {
                        self.task_failed(&error);
                    }
                }
                _ = certificate_check.tick() => self.check_certificates().await,
                _ = confirmation.tick() => self.write_confirmed().await,
                () = tokio::time::sleep_until(wake.into()) => self.feed(Input::Tick),
                () = tokio::time::sleep_until(write.unwrap_or(wake).into()), if write.is_some() => {
                    self.write_snapshot().await;
                }
            }
        }
        self.tasks.shutdown().await;
        self.write_confirmed().await;
        if self.snapshot_due().is_some() {
            self.write_snapshot().await;
        }
    }

    fn status(&self) -> ClusterStatus {
        let mut status = self.core.status(self.now());
        if let Some(etcd) = &self.etcd {
            status.endpoints.clone_from(&etcd.endpoints);
            status.plaintext = etcd.is_plaintext();
        }
        status.certificate_expires_unix_secs = self.expiry.as_ref().map(|expiry| expiry.not_after_unix_secs);
        status.certificate_left = self.expiry.as_ref().map(|expiry| expiry.short(unix_now()));
        status.warnings.extend(self.warnings());
        status.commit = self.commit.quantiles();
        status
    }

    /// What works now and will not for long, or not after a restart.
    fn warnings(&self) -> Vec<String> {
        let expiry = self.expiry.as_ref().and_then(|expiry| expiry.warning(unix_now()));
        let plaintext = self.etcd.as_ref().filter(|etcd| etcd.is_plaintext()).map(|etcd| {
            format!(
                "etcd is reached without TLS at {}: anybody on the way reads and forges entries; use https://",
                etcd.endpoints.join(" ")
            )
        });
        expiry.into_iter().chain(self.renewal.clone()).chain(plaintext).collect()
    }

    fn feed(&mut self, input: Input) {
        let mut out = Vec::new();
        self.core.handle(self.now(), input, &mut out);
        self.carry_out(out);
    }

    fn carry_out(&mut self, outputs: Vec<Output>) {
        let mut changes = Vec::with_capacity(outputs.len());
        for output in outputs {
            if let Output::Change(change) = output {
                changes.push(change);
                continue;
            }
            if !changes.is_empty() {
                self.sink.apply(&self.cluster, std::mem::take(&mut changes));
            }
            match output {
                Output::Change(_) => {}
                Output::State(state) => self.sink.state(&self.cluster, state),
                Output::News(news) => self.sink.news(&self.cluster, news),
                Output::Gone => self.sink.gone(&self.cluster),
                Output::Disconnect => self.disconnect(),
                Output::Connect => self.connect(),
                Output::GetConfig(key) => self.get_config(key),
                Output::Prove(revision) => self.prove(revision),
                Output::List { ticket, scope, from, prefix, revision, limit } => {
                    self.list(requests::Page { ticket, scope, from, prefix, revision, limit });
                }
                Output::Watch { ticket, scope, prefix, revision } => {
                    self.watch(Watch { ticket, scope, prefix, revision });
                }
            }
        }
        if !changes.is_empty() {
            self.sink.apply(&self.cluster, changes);
        }
    }

    fn disconnect(&mut self) {
        self.epoch += 1;
        self.tasks.abort_all();
        self.lists.clear();
        self.watched.clear();
        self.watches = None;
        if let Some(connection) = self.connection.take() {
            connection.retire();
        }
        (self.second, self.asked) = (None, None);
    }

    fn spawn(&mut self, task: impl Future<Output = Input> + Send + 'static) -> AbortHandle {
        let (answers, epoch) = (self.answers.clone(), self.epoch);
        // Boxed, or the task would have room for it twice: as what it is given and as what it waits for.
        let task = Box::pin(task);
        self.tasks.spawn(async move {
            let content = Content::Input(task.await);
            // A closed inbox means that the follower has ended.
            drop(answers.send(Answer { epoch, arrived: Instant::now(), content }).await);
        })
    }

    /// A task that panicked (the client library does on unknown event types) counts as a broken connection.
    fn task_failed(&mut self, error: &JoinError) {
        if error.is_panic() {
            let text =
                "an answer of etcd could not be understood; check what runs behind the endpoint".to_owned();
            self.feed(Input::Disconnected(Failure { kind: FailureKind::Other, text }));
        }
    }

    /// Answers of an earlier connection count no more.
    fn take(&mut self, answer: Answer) {
        if answer.epoch != self.epoch {
            return;
        }
        match answer.content {
            Content::Connected(connection, certificates) => {
                self.use_connection(connection, certificates);
                self.feed(Input::Connected);
            }
            Content::Second(Ok((connection, certificates))) => {
                tracing::info!(cluster = %self.cluster, "connected with the renewed certificate files; the old connection is closed");
                // What the old one still answers counts no more; the core goes on from where it was.
                self.disconnect();
                self.use_connection(connection, certificates);
                self.feed(Input::Replaced);
            }
            Content::Second(Err(error)) => {
                self.second = None;
                self.renewal = Some(format!(
                    "changed certificate files are not used, the connection with the old ones is kept: {error}"
                ));
            }
            Content::Input(input) => {
                if let Some(asked) = self.asked.take_if(|_| matches!(input, Input::Config(..))) {
                    self.core.round_trip(answer.arrived.duration_since(asked));
                }
                let events = matches!(&input, Input::Events { events, .. } if !events.is_empty());
                self.feed(input);
                if events {
                    self.commit.add(answer.arrived.elapsed());
                }
            }
        }
    }

    fn use_connection(&mut self, connection: Arc<Connection>, certificates: [u8; 32]) {
        self.renewal = None;
        self.expiry.clone_from(&connection.expiry);
        self.connection = Some(connection);
        self.certificates = certificates;
    }

    fn connect(&mut self) {
        let (etcd, answers, epoch) = (self.etcd.clone(), self.answers.clone(), self.epoch);
        let connections = self.connections.clone();
        self.tasks.spawn(async move {
            let content = match &etcd {
                None => {
                    let text = "there is no usable cluster file".to_owned();
                    Content::Input(Input::Disconnected(Failure { kind: FailureKind::Other, text }))
                }
                Some(etcd) => match connect(&connections, etcd).await {
                    Ok((connection, files)) => Content::Connected(connection, files),
                    Err(error) => Content::Input(Input::Disconnected(Failure::from(&error))),
                },
            };
            drop(answers.send(Answer { epoch, arrived: Instant::now(), content }).await);
        });
    }

    fn client(&self) -> Option<Client> {
        self.connection.as_ref().map(|connection| connection.client.clone())
    }

    fn get_config(&mut self, key: String) {
        if let Some(client) = self.client() {
            self.asked = Some(Instant::now());
            self.spawn(requests::get(client, key));
        }
    }

    fn prove(&mut self, revision: i64) {
        if let Some(client) = self.client() {
            self.spawn(requests::prove(client, revision));
        }
    }

    fn list(&mut self, page: requests::Page) {
        let Some(client) = self.client() else { return };
        let (scope, ticket) = (page.scope, page.ticket);
        self.forget(scope, ticket);
        let handle = self.spawn(requests::list(client, page));
        self.lists.insert(scope, (ticket, handle));
    }

    fn watch(&mut self, watch: Watch) {
        let Some(client) = self.client() else { return };
        self.forget(watch.scope, watch.ticket);
        self.watched.insert(watch.scope, watch.ticket);
        let (answers, epoch) = (self.answers.clone(), self.epoch);
        let tasks = &mut self.tasks;
        let orders = self.watches.get_or_insert_with(|| {
            let (orders, given) = mpsc::unbounded_channel();
            let tell = move |input| {
                let answers = answers.clone();
                let answer = Answer { epoch, arrived: Instant::now(), content: Content::Input(input) };
                async move { answers.send(answer).await.is_ok() }
            };
            tasks.spawn(watches::run(client, given, tell));
            orders
        });
        // Its task ends by itself only when this one does, or with a panic, which is told.
        orders.send(Order::Begin(watch)).ok();
    }

    /// Gives up what an earlier list of a scope has led to.
    fn forget(&mut self, scope: Scope, ticket: Ticket) {
        if let Some((_, list)) = self.lists.remove(&scope).filter(|(other, _)| *other != ticket) {
            list.abort();
        }
        if let Some(other) = self.watched.get(&scope).copied().filter(|other| *other != ticket) {
            self.watched.remove(&scope);
            if let Some(orders) = &self.watches {
                orders.send(Order::End(other)).ok();
            }
        }
    }

    /// Makes a second connection beside the one that stands.
    fn connect_beside(&mut self, etcd: EtcdConfig) {
        let (answers, epoch, connections) = (self.answers.clone(), self.epoch, self.connections.clone());
        self.tasks.spawn(async move {
            let opened = connect(&connections, &etcd).await.map_err(|error| error.to_string());
            drop(
                answers
                    .send(Answer { epoch, arrived: Instant::now(), content: Content::Second(opened) })
                    .await,
            );
        });
    }

    /// A renewed certificate is used at once, by a second connection that takes the place of the first one when it has been answered. The
    /// first one is kept for files that cannot be used, and while the other side does not take the new ones.
    async fn check_certificates(&mut self) {
        if let (Some(etcd), Some(_)) = (&self.etcd, &self.connection) {
            let files = etcd.fingerprint().await;
            let renewed = files != self.certificates && self.second != Some(files);
            match if renewed { etcd.certificates().await } else { Ok(None) } {
                Ok(None) if files == self.certificates => self.renewal = None,
                Ok(None) => {}
                Ok(Some(_)) => {
                    self.second = Some(files);
                    let etcd = etcd.clone();
                    self.connect_beside(etcd);
                }
                Err(error) => self.renewal = Some(format!("changed certificate files are not used: {error}")),
            }
        }
        let warnings = self.warnings();
        for text in warnings.iter().filter(|text| !self.warned.contains(text)) {
            tracing::warn!(cluster = %self.cluster, "{text}");
        }
        self.warned = warnings;
    }

    async fn restore(&mut self) {
        let Some(path) = self.snapshot.clone() else { return };
        let saved = match snapshot::read(&path).await {
            Ok(Some(saved)) => saved,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(cluster = %self.cluster, %error, "snapshot not used; entries come from etcd alone");
                return;
            }
        };
        let now = Stamp::now().await;
        self.confirmed = confirmed::read(&path).await.unwrap_or_default();
        let confirmed = &self.confirmed;
        let age = |kind: Kind| {
            let age = saved.at.age(&now);
            confirmed.age(kind, &now).map_or(age, |later| later.min(age))
        };
        let mut out = Vec::new();
        self.core.restore(self.now(), saved.id, saved.iter(), age, &mut out);
        self.written = self.core.revision();
        self.carry_out(out);
    }

    /// Only a complete picture may replace the one on disk.
    fn snapshot_due(&self) -> Option<Instant> {
        let changed = self.snapshot.is_some() && self.core.revision() != self.written;
        (changed && self.core.is_complete()).then_some(self.next_write)
    }

    async fn write_snapshot(&mut self) {
        let at = Stamp::now().await;
        let (Some(path), Some((id, entries))) = (self.snapshot.clone(), self.core.known()) else { return };
        let started = Instant::now();
        let saved = snapshot::Saved::new(&self.cluster, id, at, entries);
        self.written = self.core.revision();
        if let Err(error) = snapshot::write(&path, saved).await {
            tracing::warn!(cluster = %self.cluster, %error, "snapshot not written; a restart starts without it");
        }
        // Writing may take at most a twentieth of the time.
        self.next_write = Instant::now() + SNAPSHOT_INTERVAL.max(started.elapsed() * 20);
    }

    /// Notes on disk that what is known was current until now.
    async fn write_confirmed(&mut self) {
        let kinds = self.core.confirmed_now();
        let Some(path) = self.snapshot.as_ref().filter(|_| !kinds.is_empty()) else { return };
        self.confirmed.note(&Stamp::now().await, kinds);
        if let Err(error) = confirmed::write(path, self.confirmed.clone()).await {
            tracing::warn!(cluster = %self.cluster, %error, "after a restart its services may stop being used earlier");
        }
    }

    async fn drain(&mut self) {
        let mut out = Vec::new();
        self.core.drain(&mut out);
        self.carry_out(out);
        if let Some(path) = &self.snapshot {
            // Missing is as good as removed.
            drop(tokio::fs::remove_file(path).await);
            drop(tokio::fs::remove_file(confirmed::beside(path)).await);
        }
    }
}
