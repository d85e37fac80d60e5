//! The one task that owns the speakers of this node, one for each BGP instance.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tombolo_base::prefix::Prefix;
use tombolo_base::source::{Source, SourceState};
use tombolo_base::table::Writer;
use tombolo_bgp::mrt::table_dump;
use tombolo_bgp::{Error, PeerAction, PolicyQuestion, RouteFilter, RouteView, Scope, Speaker, SpeakerHandle};
use tombolo_topology::LearnedRoute;
use tombolo_topology::bgp::{AdvertRow, PeerRow};

use crate::learned;
use crate::operate::{Operated, PeerName, Tried};
use crate::settings::{Identity, Settings, announcement, listen_range, peer_config};
use crate::shutdowns::Shutdowns;
use crate::{InstanceCache, InstancePeer, InstanceRoute};

/// Longest wait for withdrawals to reach the peers' connections.
const FLUSH_MAX: Duration = Duration::from_secs(5);

/// Instance and peer name.
pub(crate) type PeerKey = (Arc<str>, Arc<str>);
/// Instance, peer name and prefix.
pub(crate) type AdvertKey = (Arc<str>, Arc<str>, Prefix);

/// What is asked of the task.
pub(crate) enum Request {
    UpdatePeer(Box<PeerRow>),
    DeletePeer(PeerKey),
    PrunePeers { keep: BTreeSet<PeerKey>, held: BTreeSet<Source> },
    UpdateAdvert(AdvertRow),
    DeleteAdvert(AdvertKey),
    PruneAdverts { keep: BTreeSet<AdvertKey>, held: BTreeSet<Source> },
    ExportComplete,
    WithdrawAll,
    Shutdown { text: String },
}

/// What comes to the task.
pub(crate) enum Message {
    Do(Request, oneshot::Sender<Result<(), Error>>),
    Peers(oneshot::Sender<Vec<InstancePeer>>),
    Caches(oneshot::Sender<Vec<InstanceCache>>),
    Routes(RouteView, Option<PeerName>, RouteFilter, oneshot::Sender<Vec<InstanceRoute>>),
    Try(PeerName, Box<PolicyQuestion>, oneshot::Sender<Vec<Tried>>),
    Dump(Option<PeerName>, oneshot::Sender<Vec<u8>>),
    Operate(Option<PeerName>, PeerAction, oneshot::Sender<Vec<Operated>>),
}

struct Instance {
    identity: Identity,
    speaker: SpeakerHandle,
    peers: BTreeMap<Arc<str>, PeerRow>,
    /// The task that writes learned routes; aborted when this is dropped.
    follower: JoinSet<()>,
    /// The task that answers for next hops; likewise.
    _resolver: JoinSet<()>,
}

pub(crate) struct Adapter {
    settings: Settings,
    learned: Arc<Writer<LearnedRoute>>,
    lost: broadcast::Sender<IpAddr>,
    /// Counts changes of sessions.
    sessions: watch::Sender<u64>,
    instances: BTreeMap<Arc<str>, Instance>,
    adverts: BTreeMap<AdvertKey, AdvertRow>,
    shutdowns: Shutdowns,
    /// Instances that were started before: the restart was theirs, not that of a later start.
    started: BTreeSet<Arc<str>>,
    complete: bool,
}

impl Adapter {
    pub(crate) fn new(
        settings: Settings,
        learned: Arc<Writer<LearnedRoute>>,
        lost: broadcast::Sender<IpAddr>,
        sessions: watch::Sender<u64>,
    ) -> Self {
        let shutdowns = Shutdowns::open(settings.shutdowns.clone());
        Self {
            settings,
            shutdowns,
            lost,
            learned,
            sessions,
            instances: BTreeMap::new(),
            adverts: BTreeMap::new(),
            started: BTreeSet::new(),
            complete: false,
        }
    }

    /// Works until every sender is gone; the speakers then break off without a word, as if the process had died.
    pub(crate) async fn run(mut self, mut messages: mpsc::Receiver<Message>) {
        while let Some(message) = messages.recv().await {
            let unheard = match message {
                Message::Do(request, reply) => {
                    let result = self.handle(request).await;
                    reply.send(result).is_err()
                }
                Message::Peers(reply) => reply.send(self.peers().await).is_err(),
                Message::Caches(reply) => reply.send(self.caches()).is_err(),
                Message::Routes(view, peer, filter, reply) => {
                    reply.send(self.routes(view, peer.as_ref(), &filter).await).is_err()
                }
                Message::Try(peer, question, reply) => {
                    reply.send(self.try_policy(&peer, &question).await).is_err()
                }
                Message::Dump(peer, reply) => reply.send(self.dump(peer.as_ref()).await).is_err(),
                Message::Operate(peer, action, reply) => {
                    reply.send(self.operate(peer.as_ref(), &action).await).is_err()
                }
            };
            if unheard {
                tracing::debug!("Nobody waits for this answer any more.");
            }
        }
    }

    async fn handle(&mut self, request: Request) -> Result<(), Error> {
        match request {
            Request::UpdatePeer(row) => self.update_peer(*row).await,
            Request::DeletePeer(key) => self.delete_peer(&key).await,
            Request::PrunePeers { keep, held } => self.prune_peers(&keep, &held).await,
            Request::UpdateAdvert(row) => self.update_advert(row).await,
            Request::DeleteAdvert(key) => self.delete_advert(&key).await,
            Request::PruneAdverts { keep, held } => self.prune_adverts(&keep, &held).await,
            Request::ExportComplete => self.export_complete().await,
            Request::WithdrawAll => self.withdraw_all().await,
            Request::Shutdown { text } => self.shutdown(&text).await,
        }
    }

    async fn update_peer(&mut self, row: PeerRow) -> Result<(), Error> {
        let identity = Identity::of(&row);
        if self.instances.get(&row.instance).is_some_and(|instance| instance.identity != identity) {
            self.stop(&row.instance, "the BGP instance changed its AS, router id or port").await;
        }
        if !self.instances.contains_key(&row.instance) {
            self.start(&row.instance, identity).await?;
        }
        let Some(instance) = self.instances.get_mut(&row.instance) else { return Ok(()) };
        let known = instance.peers.get(&row.name);
        let result = carry(&instance.speaker, &row, known, &self.settings).await;
        if result.is_ok() {
            instance.peers.insert(row.name.clone(), row);
            self.sessions.send_modify(|count| *count += 1);
        } else if instance.peers.is_empty() {
            let name = row.instance.clone();
            self.stop(&name, "").await;
        }
        result
    }

    async fn start(&mut self, name: &Arc<str>, identity: Identity) -> Result<(), Error> {
        let restarting = self.settings.restarting && !self.started.contains(name);
        let mut config = identity.speaker(name, &self.settings, restarting);
        config.shut_down = self.shutdowns.texts(name);
        let (speaker, events) = Speaker::start(config).await?;
        self.started.insert(name.clone());
        let source = Source::Peer(name.into());
        if self.learned.table().snapshot().source_state(&source).is_none() {
            self.learned.set_source(&source, SourceState::Pending);
        }
        for row in self.adverts.values().filter(|row| row.instance == *name) {
            announce(&speaker, row).await?;
        }
        if self.complete {
            speaker.export_complete().await?;
        }
        let mut follower = JoinSet::new();
        let writer = Arc::clone(&self.learned);
        let told = (self.sessions.clone(), self.lost.clone());
        follower.spawn(learned::follow(source, speaker.clone(), events, writer, told));
        let mut resolver = JoinSet::new();
        if let Some(ways) = &self.settings.ways {
            resolver.spawn(ways.clone().follow(speaker.clone(), self.lost.clone()));
        }
        let instance = Instance { identity, speaker, peers: BTreeMap::new(), follower, _resolver: resolver };
        self.instances.insert(name.clone(), instance);
        Ok(())
    }

    /// Stops an instance in order and removes what it learned.
    async fn stop(&mut self, name: &Arc<str>, text: &str) {
        let Some(mut instance) = self.instances.remove(name) else { return };
        if let Err(error) = instance.speaker.shutdown(text).await {
            tracing::warn!(instance = %name, %error, "The BGP speaker had ended by itself.");
        }
        while instance.follower.join_next().await.is_some() {}
        self.learned.drain_source(&Source::Peer(name.into()));
    }

    async fn delete_peer(&mut self, (name, peer): &PeerKey) -> Result<(), Error> {
        let Some(instance) = self.instances.get_mut(name) else { return Ok(()) };
        let Some(row) = instance.peers.remove(peer) else { return Ok(()) };
        self.sessions.send_modify(|count| *count += 1);
        if row.range.is_some() {
            instance.speaker.remove_range(peer).await?;
        } else {
            instance.speaker.remove_peer(peer).await?;
        }
        if instance.peers.is_empty() {
            self.stop(name, "the last peer of this instance was removed").await;
        }
        Ok(())
    }

    async fn prune_peers(&mut self, keep: &BTreeSet<PeerKey>, held: &BTreeSet<Source>) -> Result<(), Error> {
        let gone: Vec<PeerKey> = self
            .instances
            .iter()
            .flat_map(|(name, instance)| instance.peers.values().map(move |row| (name, row)))
            .filter(|(_, row)| !held.contains(&row.source))
            .map(|(name, row)| (name.clone(), row.name.clone()))
            .filter(|key| !keep.contains(key))
            .collect();
        for key in gone {
            self.delete_peer(&key).await?;
        }
        Ok(())
    }

    async fn update_advert(&mut self, row: AdvertRow) -> Result<(), Error> {
        let key = (row.instance.clone(), row.peer.clone(), row.prefix);
        if let Some(instance) = self.instances.get(&row.instance) {
            announce(&instance.speaker, &row).await?;
        }
        self.adverts.insert(key, row);
        Ok(())
    }

    async fn delete_advert(&mut self, key: &AdvertKey) -> Result<(), Error> {
        let (name, peer, prefix) = key;
        if self.adverts.remove(key).is_some()
            && let Some(instance) = self.instances.get(name)
        {
            instance.speaker.withdraw(scope(peer), prefix.net()).await?;
        }
        Ok(())
    }

    async fn prune_adverts(
        &mut self,
        keep: &BTreeSet<AdvertKey>,
        held: &BTreeSet<Source>,
    ) -> Result<(), Error> {
        let gone: Vec<AdvertKey> = self
            .adverts
            .iter()
            .filter(|(key, row)| !keep.contains(*key) && !held.contains(&row.source))
            .map(|(key, _)| key.clone())
            .collect();
        for key in gone {
            self.delete_advert(&key).await?;
        }
        Ok(())
    }

    async fn export_complete(&mut self) -> Result<(), Error> {
        self.complete = true;
        for instance in self.instances.values() {
            instance.speaker.export_complete().await?;
        }
        Ok(())
    }

    async fn withdraw_all(&mut self) -> Result<(), Error> {
        self.adverts.clear();
        for (name, instance) in &self.instances {
            match tokio::time::timeout(FLUSH_MAX, instance.speaker.withdraw_all()).await {
                Ok(result) => result?,
                Err(_) => {
                    tracing::warn!(instance = %name, "Some peers did not take the withdrawals in time.")
                }
            }
        }
        Ok(())
    }

    async fn shutdown(&mut self, text: &str) -> Result<(), Error> {
        let names: Vec<Arc<str>> = self.instances.keys().cloned().collect();
        for name in names {
            if let Some(instance) = self.instances.remove(&name) {
                instance.speaker.shutdown(text).await?;
            }
        }
        Ok(())
    }

    async fn peers(&self) -> Vec<InstancePeer> {
        let mut all = Vec::new();
        for (name, instance) in &self.instances {
            let states = instance.speaker.peers().await.unwrap_or_default();
            all.extend(states.into_iter().map(|state| InstancePeer {
                instance: name.clone(),
                shutdown_since_unix_secs: self.shutdowns.since(name, &state.name),
                state,
            }));
        }
        all
    }

    fn caches(&self) -> Vec<InstanceCache> {
        let of = |(name, instance): (&Arc<str>, &Instance)| {
            let name = name.clone();
            let states = instance.speaker.rpki_caches().into_iter();
            states.map(move |state| InstanceCache { instance: name.clone(), state }).collect::<Vec<_>>()
        };
        self.instances.iter().flat_map(of).collect()
    }

    async fn routes(
        &self,
        view: RouteView,
        peer: Option<&PeerName>,
        filter: &RouteFilter,
    ) -> Vec<InstanceRoute> {
        let Some(peer) = peer else {
            let mut all = Vec::new();
            for (name, instance) in &self.instances {
                let rows = instance.speaker.routes_where(view, filter.clone()).await.unwrap_or_default();
                all.extend(rows.into_iter().map(|route| InstanceRoute { instance: name.clone(), route }));
            }
            return all;
        };
        let mut all = Vec::new();
        for InstancePeer { instance: name, state, .. } in self.peers().await {
            let named = peer.names(&name, &state);
            let Some(instance) = self.instances.get(&name).filter(|_| named) else { continue };
            let filter = RouteFilter { peer: Some(state.name), ..filter.clone() };
            let rows = instance.speaker.routes_where(view, filter).await.unwrap_or_default();
            all.extend(rows.into_iter().map(|route| InstanceRoute { instance: name.clone(), route }));
        }
        all
    }

    async fn try_policy(&self, peer: &PeerName, question: &PolicyQuestion) -> Vec<Tried> {
        let mut all = Vec::new();
        for InstancePeer { instance: name, state, .. } in self.peers().await {
            let named = peer.names(&name, &state);
            let Some(instance) = self.instances.get(&name).filter(|_| named) else { continue };
            let question = PolicyQuestion { peer: state.name.clone(), ..question.clone() };
            let (evaluation, error) = match instance.speaker.try_policy(question).await {
                Ok(evaluation) => (Some(evaluation), None),
                Err(error) => (None, Some(error.to_string())),
            };
            all.push(Tried { instance: name, peer: state.name, evaluation, error });
        }
        all
    }

    /// What was received, in MRT's form, instance after instance.
    async fn dump(&self, peer: Option<&PeerName>) -> Vec<u8> {
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut all = Vec::new();
        for (name, instance) in &self.instances {
            let mut peers = instance.speaker.peers().await.unwrap_or_default();
            peers.retain(|state| peer.is_none_or(|peer| peer.names(name, state)));
            let rows = instance.speaker.routes(RouteView::Received).await.unwrap_or_default();
            all.extend(table_dump(at, instance.identity.router_id(), name, &peers, &rows));
        }
        all
    }

    async fn operate(&mut self, peer: Option<&PeerName>, action: &PeerAction) -> Vec<Operated> {
        let here = self.peers().await.into_iter();
        let here = here.filter(|found| peer.is_none_or(|peer| peer.names(&found.instance, &found.state)));
        let mut meant: BTreeSet<(Arc<str>, String)> =
            here.map(|InstancePeer { instance, state, .. }| (instance, state.name)).collect();
        if let (PeerAction::Start, Some(peer)) = (action, peer) {
            // One that is not there: it is to come up when it is.
            let held = self.shutdowns.names().filter(|(instance, name)| peer.is_called(instance, name));
            meant.extend(held.map(|(instance, name)| (instance.clone(), name.to_owned())));
        }
        let mut all = Vec::new();
        for (instance, peer) in meant {
            let error = self.operate_one(&instance, &peer, action).await.err();
            all.push(Operated { instance, peer, error });
        }
        self.sessions.send_modify(|count| *count += 1);
        all
    }

    async fn operate_one(
        &mut self,
        instance: &Arc<str>,
        peer: &str,
        action: &PeerAction,
    ) -> Result<(), String> {
        if let Some(found) = self.instances.get(instance) {
            found.speaker.operate(peer, action.clone()).await.map_err(|error| error.to_string())?;
        }
        match action {
            PeerAction::Shutdown { text } => self.shutdowns.add(instance, peer, text),
            PeerAction::Start => self.shutdowns.remove(instance, peer),
            _ => Ok(()),
        }
    }
}

/// An advert without a peer is for all.
fn scope(peer: &str) -> Scope {
    if peer.is_empty() { Scope::All } else { Scope::Peer(peer.to_owned()) }
}

/// Adds the peer or the range of peers of a row, or changes it. What was a peer and is a range now, or a range with other settings, starts anew.
async fn carry(
    speaker: &SpeakerHandle,
    row: &PeerRow,
    known: Option<&PeerRow>,
    settings: &Settings,
) -> Result<(), Error> {
    match (known, &row.range) {
        (Some(known), None) if known.range.is_none() => {
            return speaker.update_peer(peer_config(row, settings)?).await;
        }
        (Some(known), _) if known.range.is_some() => speaker.remove_range(&known.name).await?,
        (Some(known), _) => speaker.remove_peer(&known.name).await?,
        (None, _) => {}
    }
    match &row.range {
        Some(range) => speaker.add_range(listen_range(row, range, settings)?).await,
        None => speaker.add_peer(peer_config(row, settings)?).await,
    }
}

async fn announce(speaker: &SpeakerHandle, row: &AdvertRow) -> Result<(), Error> {
    speaker.announce(scope(&row.peer), row.prefix.net(), announcement(row)).await
}
