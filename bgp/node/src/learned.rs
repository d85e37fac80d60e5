//! The speaker's events become rows: learned routes, and whether the first list is complete.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, watch};
use tokio::time::Instant;
use tombolo_base::prefix::Prefix;
use tombolo_base::source::{Source, SourceState};
use tombolo_base::table::Writer;
use tombolo_bgp::{Event, Events, Family, FamilyState, Path, PeerState, SpeakerHandle, State};
use tombolo_topology::{LearnedNextHop, LearnedRoute};

/// A first list counts as complete after this long even if a peer never came: old kernel routes must not stay for ever.
const FIRST_LIST_MAX: Duration = Duration::from_secs(60);

/// Follows one speaker until it ends. The rows stay; whoever ended the speaker removes them.
pub(crate) async fn follow(
    source: Source,
    speaker: SpeakerHandle,
    mut events: Events,
    writer: Arc<Writer<LearnedRoute>>,
    (sessions, lost): (watch::Sender<u64>, broadcast::Sender<IpAddr>),
) {
    let deadline = Instant::now() + FIRST_LIST_MAX;
    let mut complete = false;
    let mut lists = Lists::default();
    let mut changes = sessions.subscribe();
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = tokio::time::sleep_until(deadline), if !complete => {
                tracing::warn!(%source, "Not every BGP peer sent its first list in time; going on without it.");
                complete = true;
                writer.set_source(&source, SourceState::Initialized);
                continue;
            }
            // A peer that others waited for may have been removed or shut down.
            Ok(()) = changes.changed(), if !complete => {
                complete = lists.are_complete(&speaker).await;
                if complete {
                    writer.set_source(&source, SourceState::Initialized);
                }
                continue;
            }
        };
        lists.note(event.as_ref());
        if matches!(event, Some(Event::PeerUp { .. } | Event::PeerDown { .. } | Event::EndOfRib { .. })) {
            sessions.send_modify(|count| *count += 1);
        }
        match event {
            None => return,
            Some(Event::Route { prefix, paths }) => {
                if let Some(prefix) = Prefix::new(prefix.addr(), prefix.prefix_len()) {
                    store(&writer, &source, prefix, &paths);
                }
            }
            Some(Event::PeerDown { peer, routes_kept: false, .. }) => {
                if let Some(router) = router(&speaker, &peer).await {
                    // Nobody listens: nothing to hurry for.
                    drop(lost.send(router));
                }
            }
            Some(_) => {}
        }
    }
}

/// The next hop that goes with a peer: an external one is that of its routes.
async fn router(speaker: &SpeakerHandle, name: &str) -> Option<IpAddr> {
    let peers = speaker.peers().await.ok()?;
    let peer = peers.into_iter().find(|peer| peer.name == name)?;
    (peer.peer_asn != peer.local_asn).then_some(peer.address)
}

fn store(writer: &Writer<LearnedRoute>, source: &Source, prefix: Prefix, paths: &[Path]) {
    if paths.is_empty() {
        writer.remove(&(prefix, *source));
        return;
    }
    // Without a way to go the kernel is told to drop what is for the prefix (RFC 7999).
    let forwarded = paths.first().filter(|best| !best.blackhole).map(|_| paths).unwrap_or_default();
    let next_hops: BTreeSet<LearnedNextHop> = forwarded.iter().map(next_hop).collect();
    let stale = paths.iter().all(|path| path.stale);
    writer.upsert(LearnedRoute { source: *source, prefix, next_hops, stale });
}

/// A link-local next hop is only good together with its interface; without one the global address serves.
fn next_hop(path: &Path) -> LearnedNextHop {
    let interface: Option<Arc<str>> = path.interface.as_deref().map(Arc::from);
    match (path.next_hop.link_local, interface) {
        (Some(link_local), Some(interface)) => {
            LearnedNextHop { weight: path.weight, ..LearnedNextHop::new(link_local.into(), Some(interface)) }
        }
        (_, interface) => {
            LearnedNextHop { weight: path.weight, ..LearnedNextHop::new(path.next_hop.address, interface) }
        }
    }
}

/// The first lists whose end was read here, behind their routes: the speaker itself knows of an end before its routes have come.
#[derive(Default)]
struct Lists(BTreeSet<(String, Family)>);

impl Lists {
    fn note(&mut self, event: Option<&Event>) {
        match event {
            Some(Event::EndOfRib { peer, family }) => drop(self.0.insert((peer.clone(), *family))),
            Some(Event::PeerDown { peer, .. }) => self.0.retain(|(of, _)| of != peer),
            _ => {}
        }
    }

    /// Whether every peer is up and has sent End-of-RIB for everything agreed on. Nothing comes from one that the operator keeps down.
    async fn are_complete(&self, speaker: &SpeakerHandle) -> bool {
        let Ok(peers) = speaker.peers().await else { return false };
        let ended = |peer: &PeerState, family: &FamilyState| {
            !family.negotiated || self.0.contains(&(peer.name.clone(), family.family))
        };
        let spoken = |peer: &PeerState| {
            let all = peer.families.iter().all(|family| ended(peer, family));
            peer.shutdown.is_some() || (peer.state == State::Established && all)
        };
        !peers.is_empty() && peers.iter().all(spoken)
    }
}
