//! The speaker as its owner sees it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot, watch};

use super::{Command, Driver};
use crate::config::{Announcement, PeerConfig, Scope, SpeakerConfig};
use crate::core::{Core, PolicyQuestion};
use crate::dynamic::ListenRange;
use crate::error::Error;
use crate::event::{Event, PeerState, RouteRow, RouteView};
use crate::filter::RouteFilter;
use crate::operate::PeerAction;
use crate::policy::Evaluation;
use crate::rpki::{CacheReport, CacheState, RpkiCache, RpkiTable};
use crate::transport;

/// Commands that may wait while the speaker is busy; the next caller waits for room.
const COMMAND_QUEUE: usize = 256;

/// Starts speakers.
#[derive(Debug)]
pub struct Speaker;

impl Speaker {
    /// Opens the listeners and starts the speaker's task on the current tokio runtime.
    ///
    /// The task ends when every handle is dropped (sessions then just break, as if the process had died: helpers keep the routes) or by
    /// [`SpeakerHandle::shutdown`].
    ///
    /// # Errors
    /// Settings that make no sense, or an address that cannot be listened on.
    pub async fn start(config: SpeakerConfig) -> Result<(SpeakerHandle, Events), Error> {
        config.check()?;
        let (commands, command_inbox) = mpsc::channel(COMMAND_QUEUE);
        let (event_outlet, events) = mpsc::channel(config.event_queue.max(1));
        let (tracked, next_hops) = watch::channel(BTreeSet::new());
        let report = |cache: &RpkiCache| watch::channel(CacheReport::new(cache.address));
        let (reports, caches): (Vec<_>, Vec<_>) = config.caches.iter().map(report).unzip();
        let driver = Driver::new(&config, event_outlet, tracked, reports)?;
        tokio::spawn(driver.run(command_inbox));
        Ok((SpeakerHandle { commands, next_hops, caches: caches.into() }, Events { events }))
    }
}

/// Steers a running speaker. Clones steer the same one.
#[derive(Clone, Debug)]
pub struct SpeakerHandle {
    commands: mpsc::Sender<Command>,
    next_hops: watch::Receiver<BTreeSet<IpAddr>>,
    caches: Arc<[watch::Receiver<CacheReport>]>,
}

impl SpeakerHandle {
    async fn call<T: Send + 'static>(
        &self,
        action: impl FnOnce(&mut Core, Instant) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let call = Command::Call(Box::new(move |core, now| {
            // A caller that went away does not want the answer.
            drop(reply.send(action(core, now)));
        }));
        self.commands.send(call).await.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)
    }

    /// Adds a peer and starts its session.
    ///
    /// # Errors
    /// Settings that make no sense, or a name or address already in use.
    pub async fn add_peer(&self, config: PeerConfig) -> Result<(), Error> {
        serves(&config)?;
        self.call(|core, now| core.add_peer(now, config)).await?
    }

    /// Removes a peer, its session (Cease, peer de-configured) and its routes.
    ///
    /// # Errors
    /// No peer of that name.
    pub async fn remove_peer(&self, name: &str) -> Result<(), Error> {
        let name = name.to_owned();
        self.call(move |core, now| core.remove_peer(now, &name)).await?
    }

    /// Changes the settings of the peer of that name; the session is reset only if it must be.
    ///
    /// # Errors
    /// Settings that make no sense, or no peer of that name.
    pub async fn update_peer(&self, config: PeerConfig) -> Result<(), Error> {
        serves(&config)?;
        self.call(|core, now| core.update_peer(now, config)).await?
    }

    /// Accepts peers from a range of addresses, each with the settings of the range's template. They are removed when they go.
    ///
    /// # Errors
    /// Settings that make no sense, or a name or prefix already in use.
    pub async fn add_range(&self, range: ListenRange) -> Result<(), Error> {
        serves(&range.template)?;
        self.call(|core, _| core.add_range(range)).await?
    }

    /// Removes a range and ends the sessions that came from it (Cease, peer de-configured).
    ///
    /// # Errors
    /// No range of that name.
    pub async fn remove_range(&self, name: &str) -> Result<(), Error> {
        let name = name.to_owned();
        self.call(move |core, now| core.remove_range(now, &name)).await?
    }

    /// Originates a prefix, or changes what is said about it.
    ///
    /// # Errors
    /// A next hop of another family than the prefix.
    pub async fn announce(
        &self,
        scope: Scope,
        prefix: IpNet,
        announcement: Announcement,
    ) -> Result<(), Error> {
        self.call(move |core, _| core.announce(scope, prefix, announcement)).await?
    }

    /// Ends what [`SpeakerHandle::announce`] began for the same scope and prefix.
    ///
    /// # Errors
    /// Only if the speaker has stopped.
    pub async fn withdraw(&self, scope: Scope, prefix: IpNet) -> Result<(), Error> {
        self.call(move |core, _| core.withdraw(&scope, &prefix)).await
    }

    /// Withdraws everything and returns once all peers have been sent that: before a node stops serving.
    ///
    /// # Errors
    /// Only if the speaker has stopped.
    pub async fn withdraw_all(&self) -> Result<(), Error> {
        self.call(|core, _| core.withdraw_all()).await?;
        self.flushed().await
    }

    /// Returns once every established peer has been sent all there is to say.
    ///
    /// # Errors
    /// Only if the speaker has stopped.
    pub async fn flushed(&self) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Flush(reply)).await.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)
    }

    /// Says that everything originated so far is complete: End-of-RIB goes to peers that support graceful restart, now and in every later
    /// session. Until then a helper keeps the routes this speaker's predecessor announced.
    ///
    /// # Errors
    /// Only if the speaker has stopped.
    pub async fn export_complete(&self) -> Result<(), Error> {
        self.call(|core, _| core.export_complete()).await
    }

    /// Takes another table for origin validation (RFC 6811): what import and export policies say by it is said anew, no session is reset.
    ///
    /// # Errors
    /// Only if the speaker has stopped.
    pub async fn set_rpki(&self, table: Arc<RpkiTable>) -> Result<(), Error> {
        self.call(move |core, _| core.set_rpki(table)).await
    }

    /// Says to all peers that the paths through this speaker go away soon, so that they look for others while these still work: by the GRACEFUL_SHUTDOWN
    /// community, and inside the AS by LOCAL_PREF 0 (RFC 8326). False takes it back. [`SpeakerHandle::flushed`] tells when it is said.
    ///
    /// # Errors
    /// Only if the speaker has stopped.
    pub async fn drain(&self, draining: bool) -> Result<(), Error> {
        self.call(move |core, _| core.set_draining(draining)).await
    }

    /// What a route would meet at a peer's policy, and which statement decides.
    ///
    /// # Errors
    /// No peer of a name given.
    pub async fn try_policy(&self, question: PolicyQuestion) -> Result<Evaluation, Error> {
        self.call(move |core, _| core.try_policy(&question)).await?
    }

    /// Asks a peer to send its routes again (RFC 2918). False if there is no session, or the peer does not support it.
    ///
    /// # Errors
    /// No peer of that name.
    pub async fn refresh(&self, name: &str) -> Result<bool, Error> {
        let name = name.to_owned();
        self.call(move |core, _| core.refresh(&name)).await?
    }

    /// The link of an interface went down; `addresses` are ours on it. Sessions with directly connected external peers over it end at once, and
    /// their routes go even if graceful restart would keep them ([`PeerConfig::fast_fallover`]). How many sessions ended.
    ///
    /// # Errors
    /// Only if the speaker has stopped.
    pub async fn link_down(&self, interface: &str, addresses: Vec<IpAddr>) -> Result<usize, Error> {
        let interface = interface.to_owned();
        self.call(move |core, now| core.path_lost(now, Some(&interface), &addresses)).await
    }

    /// Addresses are not ours any more: the same for the sessions that run from them.
    ///
    /// # Errors
    /// Only if the speaker has stopped.
    pub async fn addresses_gone(&self, addresses: Vec<IpAddr>) -> Result<usize, Error> {
        self.call(move |core, now| core.path_lost(now, None, &addresses)).await
    }

    /// With [`SpeakerConfig::track_next_hops`]: the next hops of all paths, to be answered by [`Self::next_hop_resolved`] now and whenever the
    /// answer changes. A next hop without an answer is not used. Link-local ones are not asked for: they are on the session's link.
    pub fn next_hops(&self) -> watch::Receiver<BTreeSet<IpAddr>> {
        self.next_hops.clone()
    }

    /// The answer for a next hop: the cost of the way there, which decides between internal paths that are equal otherwise (RFC 4271 section 9.1.2.2 e);
    /// `None`: there is no way.
    ///
    /// # Errors
    /// Only if the speaker has stopped.
    pub async fn next_hop_resolved(&self, next_hop: IpAddr, metric: Option<u32>) -> Result<(), Error> {
        self.call(move |core, _| core.next_hop_resolved(next_hop, metric)).await
    }

    /// Withdraws everything, waits until that is sent (at most 5 s), ends every session with Cease, administrative shutdown, and the text
    /// (RFC 9003), and stops. Returns when the connections are closed.
    ///
    /// # Errors
    /// Only if the speaker has stopped already.
    pub async fn shutdown(&self, text: &str) -> Result<(), Error> {
        let (done, answer) = oneshot::channel();
        let shutdown = Command::Shutdown { text: text.to_owned(), done };
        self.commands.send(shutdown).await.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)
    }

    /// Does something to the peer of that name: reset, refresh, shutdown, start.
    ///
    /// # Errors
    /// No peer of that name, or it cannot do that as things stand.
    pub async fn operate(&self, name: &str, action: PeerAction) -> Result<(), Error> {
        let name = name.to_owned();
        self.call(move |core, now| core.operate(now, &name, &action)).await?
    }

    /// Where it stands with each RPKI cache, in the order of the settings. Nothing waits for the speaker.
    #[must_use]
    pub fn rpki_caches(&self) -> Vec<CacheState> {
        let now = Instant::now();
        self.caches.iter().map(|cache| cache.borrow().at(now)).collect()
    }

    /// The state of every peer, by name.
    ///
    /// # Errors
    /// Only if the speaker has stopped.
    pub async fn peers(&self) -> Result<Vec<PeerState>, Error> {
        self.call(|core, now| core.peers(now)).await
    }

    /// Routes received, in use, or advertised, by prefix and peer.
    ///
    /// # Errors
    /// Only if the speaker has stopped.
    pub async fn routes(&self, view: RouteView) -> Result<Vec<RouteRow>, Error> {
        self.routes_where(view, RouteFilter::default()).await
    }

    /// Those of them that are wanted.
    ///
    /// # Errors
    /// Only if the speaker has stopped.
    pub async fn routes_where(&self, view: RouteView, filter: RouteFilter) -> Result<Vec<RouteRow>, Error> {
        let rows = self.call(move |core, _| core.routes(view));
        Ok(rows.await?.into_iter().filter(|row| filter.matches(row)).collect())
    }
}

/// What this kernel cannot do.
fn serves(config: &PeerConfig) -> Result<(), Error> {
    if config.transport.ao.as_ref().is_some_and(|key| !transport::has_ao(key)) {
        return Err(Error::Peer {
            peer: config.name.clone(),
            what: "this kernel has no TCP-AO, or not the algorithm asked for",
            remedy: "use Linux 6.7 or newer with CONFIG_TCP_AO, or TCP MD5",
        });
    }
    Ok(())
}

/// Changes in order. A reader that falls behind misses intermediate states of a prefix, never its newest one.
#[derive(Debug)]
pub struct Events {
    events: mpsc::Receiver<Event>,
}

impl Events {
    /// The next event; `None` when the speaker has ended.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }
}
