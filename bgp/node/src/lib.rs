//! Between this node's desired BGP rows and the speaker: sessions and adverts go in, learned routes come out.
//!
//! ```text
//!  PeerRow ───► reconciler ──► PeerTarget ───┐                      ┌──► LearnedRoute (source peer:INSTANCE)
//!  AdvertRow ─► reconciler ──► AdvertTarget ─┴► one task, a speaker ┤
//!                                               for each instance   └──► peers(), routes() for `tombolo bgp`
//! ```
//!
//! ```no_run
//! # async fn sketch() -> Result<(), tombolo_bgp::Error> {
//! use tombolo_base::table::Table;
//! use tombolo_bgp_node::{BgpNode, Settings};
//! let (learned, writer) = Table::new();
//! let bgp = BgpNode::start(Settings { restarting: true, ..Settings::default() }, writer);
//! let (peers, adverts) = (bgp.peer_target(), bgp.advert_target()); // give each to the driver of its reconciler
//! bgp.export_complete().await?; // when both reconcilers have carried over complete tables: End-of-RIB goes out
//! bgp.withdraw_all().await?; // before this node stops serving
//! bgp.shutdown("node drains").await // Cease with the text; without it the peers keep the routes for the restart time
//! # }
//! ```
//!
//! The source `peer:INSTANCE` of the learned routes is pending until every peer has sent End-of-RIB for every family, or 60 s have passed.

#![forbid(unsafe_code)]

mod adapter;
mod learned;
mod operate;
mod settings;
mod shutdowns;
#[cfg(test)]
mod tests;
mod ways;

pub use operate::{Operated, PeerName, Tried};
pub use settings::Settings;
pub use ways::Ways;

use std::collections::BTreeSet;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tombolo_base::reconcile::Target;
use tombolo_base::rows::Rows;
use tombolo_base::source::Source;
use tombolo_base::table::{Row, Writer};
use tombolo_bgp::rpki::CacheState;
use tombolo_bgp::{Error, PeerAction, PeerState, PolicyQuestion, RouteFilter, RouteRow, RouteView};
use tombolo_topology::LearnedRoute;
use tombolo_topology::bgp::{AdvertRow, PeerRow};

use adapter::{Adapter, Message, Request};

/// Requests that may wait; the next caller waits for room.
const REQUEST_QUEUE: usize = 256;
/// Lost next hops that may wait for a slow reader.
const LOST_QUEUE: usize = 64;

/// A peer's state with the instance it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InstancePeer {
    /// Name of the instance.
    pub instance: Arc<str>,
    /// Since when it is shut down by the operator, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shutdown_since_unix_secs: Option<u64>,
    /// The state.
    #[serde(flatten)]
    pub state: PeerState,
}

/// A route with the instance it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InstanceRoute {
    /// Name of the instance.
    pub instance: Arc<str>,
    /// The route.
    #[serde(flatten)]
    pub route: RouteRow,
}

/// An RPKI cache with the instance that asks it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InstanceCache {
    /// Name of the instance.
    pub instance: Arc<str>,
    /// Where it stands with the cache.
    #[serde(flatten)]
    pub state: CacheState,
}

/// This node's BGP. Clones steer the same one; when all are dropped, sessions break off without a word.
#[derive(Clone, Debug)]
pub struct BgpNode {
    messages: mpsc::Sender<Message>,
    lost: broadcast::Sender<IpAddr>,
    sessions: watch::Receiver<u64>,
}

impl BgpNode {
    /// Starts the adapter's task on the current tokio runtime. Speakers start with the first peer of their instance.
    pub fn start(settings: Settings, learned: impl Into<Arc<Writer<LearnedRoute>>>) -> Self {
        let (messages, inbox) = mpsc::channel(REQUEST_QUEUE);
        let (lost, _) = broadcast::channel(LOST_QUEUE);
        let (changes, sessions) = watch::channel(0);
        tokio::spawn(Adapter::new(settings, learned.into(), lost.clone(), changes).run(inbox));
        Self { messages, lost, sessions }
    }

    /// Tells when a session comes or goes, or a peer has sent its first list. What it holds is a mere count.
    #[must_use]
    pub fn session_changes(&self) -> watch::Receiver<u64> {
        self.sessions.clone()
    }

    /// Next hops that are lost, told before the routes behind them change: the session of the router ended and its routes are not kept, or nothing
    /// leads to it any more. A reader that falls behind misses some, which only costs it time.
    pub fn lost_next_hops(&self) -> broadcast::Receiver<IpAddr> {
        self.lost.subscribe()
    }

    /// The target of the reconciler of [`PeerRow`]s.
    pub fn peer_target(&self) -> PeerTarget {
        PeerTarget(self.clone())
    }

    /// The target of the reconciler of [`AdvertRow`]s.
    pub fn advert_target(&self) -> AdvertTarget {
        AdvertTarget(self.clone())
    }

    async fn ask(&self, request: Request) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.messages.send(Message::Do(request, reply)).await.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)?
    }

    /// Says that the adverts carried over so far are all there are: End-of-RIB goes out, now and in every later session.
    ///
    /// # Errors
    /// A speaker has ended by itself.
    pub async fn export_complete(&self) -> Result<(), Error> {
        self.ask(Request::ExportComplete).await
    }

    /// Withdraws every advert and returns when the peers have been sent that, at most after 5 s for each instance.
    ///
    /// # Errors
    /// A speaker has ended by itself.
    pub async fn withdraw_all(&self) -> Result<(), Error> {
        self.ask(Request::WithdrawAll).await
    }

    /// Withdraws, then ends every session with Cease, administrative shutdown, and the text. Learned routes stay in their table.
    ///
    /// # Errors
    /// A speaker has ended by itself.
    pub async fn shutdown(&self, text: &str) -> Result<(), Error> {
        self.ask(Request::Shutdown { text: text.to_owned() }).await
    }

    /// The state of every peer, by instance and name.
    ///
    /// # Errors
    /// The adapter has ended.
    pub async fn peers(&self) -> Result<Vec<InstancePeer>, Error> {
        let (reply, answer) = oneshot::channel();
        self.messages.send(Message::Peers(reply)).await.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)
    }

    /// The RPKI caches of every instance.
    ///
    /// # Errors
    /// The adapter has ended.
    pub async fn rpki_caches(&self) -> Result<Vec<InstanceCache>, Error> {
        let (reply, answer) = oneshot::channel();
        self.messages.send(Message::Caches(reply)).await.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)
    }

    /// Routes received, in use or advertised, by instance, prefix and peer; of one peer if it is named, which the filter need not do.
    ///
    /// # Errors
    /// The adapter has ended.
    pub async fn routes(
        &self,
        view: RouteView,
        peer: Option<PeerName>,
        filter: RouteFilter,
    ) -> Result<Vec<InstanceRoute>, Error> {
        let (reply, answer) = oneshot::channel();
        let message = Message::Routes(view, peer, filter, reply);
        self.messages.send(message).await.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)
    }

    /// What a route would meet at the policy of the peers of a name; the name in the question does not matter.
    ///
    /// # Errors
    /// The adapter has ended.
    pub async fn try_policy(&self, peer: PeerName, question: PolicyQuestion) -> Result<Vec<Tried>, Error> {
        let (reply, answer) = oneshot::channel();
        let message = Message::Try(peer, Box::new(question), reply);
        self.messages.send(message).await.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)
    }

    /// The routes received, of all peers or those of a name, as an MRT file (TABLE_DUMP_V2, RFC 6396).
    ///
    /// # Errors
    /// The adapter has ended.
    pub async fn dump(&self, peer: Option<PeerName>) -> Result<Vec<u8>, Error> {
        let (reply, answer) = oneshot::channel();
        self.messages.send(Message::Dump(peer, reply)).await.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)
    }

    /// Does something to the peers of a name, or to all; says what came of it for each, nothing if there is none of that name.
    /// A shutdown lasts until it is taken back, also through lives of this process if [`Settings::shutdowns`] names a file. A start is also for a peer
    /// that is not there any more.
    ///
    /// # Errors
    /// The adapter has ended.
    pub async fn operate(&self, peer: Option<PeerName>, action: PeerAction) -> Result<Vec<Operated>, Error> {
        let (reply, answer) = oneshot::channel();
        let message = Message::Operate(peer, action, reply);
        self.messages.send(message).await.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)
    }
}

/// Carries [`PeerRow`]s to the speakers.
#[derive(Clone, Debug)]
pub struct PeerTarget(BgpNode);

/// Carries [`AdvertRow`]s to the speakers. An advert of a peer that does not exist yet waits for it.
#[derive(Clone, Debug)]
pub struct AdvertTarget(BgpNode);

fn tell(node: &BgpNode, request: Request) -> impl Future<Output = Result<(), String>> + Send + use<> {
    let node = node.clone();
    async move { node.ask(request).await.map_err(|error| error.to_string()) }
}

impl Target<PeerRow> for PeerTarget {
    fn update(&mut self, row: &PeerRow) -> impl Future<Output = Result<(), String>> + Send {
        tell(&self.0, Request::UpdatePeer(Box::new(row.clone())))
    }

    fn delete(&mut self, row: &PeerRow) -> impl Future<Output = Result<(), String>> + Send {
        tell(&self.0, Request::DeletePeer(row.key()))
    }

    fn prune(
        &mut self,
        keep: &Rows<PeerRow>,
        held: &BTreeSet<Source>,
    ) -> impl Future<Output = Result<(), String>> + Send {
        tell(&self.0, Request::PrunePeers { keep: keep.keys().collect(), held: held.clone() })
    }

    /// The speaker lives in this process: nobody else changes what it holds.
    async fn audit(&mut self, _: &Rows<PeerRow>) -> Result<Option<BTreeSet<<PeerRow as Row>::Key>>, String> {
        Ok(Some(BTreeSet::new()))
    }
}

impl Target<AdvertRow> for AdvertTarget {
    fn update(&mut self, row: &AdvertRow) -> impl Future<Output = Result<(), String>> + Send {
        tell(&self.0, Request::UpdateAdvert(row.clone()))
    }

    fn delete(&mut self, row: &AdvertRow) -> impl Future<Output = Result<(), String>> + Send {
        tell(&self.0, Request::DeleteAdvert(row.key()))
    }

    fn prune(
        &mut self,
        keep: &Rows<AdvertRow>,
        held: &BTreeSet<Source>,
    ) -> impl Future<Output = Result<(), String>> + Send {
        tell(&self.0, Request::PruneAdverts { keep: keep.keys().collect(), held: held.clone() })
    }

    /// The speaker lives in this process: nobody else changes what it holds.
    async fn audit(
        &mut self,
        _: &Rows<AdvertRow>,
    ) -> Result<Option<BTreeSet<<AdvertRow as Row>::Key>>, String> {
        Ok(Some(BTreeSet::new()))
    }
}
