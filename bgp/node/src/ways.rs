//! What the kernel knows and a speaker must hear: whether next hops can be reached and at what cost, and links and addresses that go.
//!
//! ```text
//!  kernel: links, addresses, routes ──► paths that went ──► SpeakerHandle::link_down, addresses_gone     at once
//!                                  └──► next hops of all paths, asked anew ──► next_hop_resolved         after a short rest
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::time::{Instant, sleep_until};
use tombolo_bgp::{Error, SpeakerHandle};
use tombolo_netlink::{Address, Change, Changes, Link, Netlink, Watch};

/// How long changes are gathered before next hops are asked for anew: a router that comes up brings many.
const REST: Duration = Duration::from_millis(20);
/// Wait before the kernel is listened to again after that failed.
const AGAIN: Duration = Duration::from_secs(5);

/// Where the speaker's paths lead through.
#[derive(Clone, Debug)]
pub struct Ways {
    /// The kernel to ask and to listen to.
    pub netlink: Netlink,
    /// The owner (RTPROT_*) of the routes that BGP itself writes: a next hop is not reached by them.
    pub protocol: u8,
}

/// Links that are up, and this node's addresses, by interface index.
#[derive(Debug, Default)]
struct Ground {
    up: BTreeMap<u32, String>,
    addresses: BTreeMap<u32, BTreeSet<IpAddr>>,
}

/// What a change takes away.
#[derive(Debug, PartialEq, Eq)]
enum Gone {
    Link(String, Vec<IpAddr>),
    Address(IpAddr),
}

impl Ground {
    fn new(links: &[Link], addresses: &[Address]) -> Self {
        let mut ground = Self::default();
        links.iter().for_each(|link| drop(ground.link(link, true)));
        for address in addresses {
            ground.addresses.entry(address.link).or_default().insert(address.address.addr());
        }
        ground
    }

    fn link(&mut self, link: &Link, exists: bool) -> Option<Gone> {
        if exists && link.up && link.carrier {
            self.up.insert(link.index, link.name.clone());
            return None;
        }
        let name = self.up.remove(&link.index)?;
        let own = self.addresses.get(&link.index);
        Some(Gone::Link(name, own.map(|own| own.iter().copied().collect()).unwrap_or_default()))
    }

    fn take(&mut self, change: &Change) -> Option<Gone> {
        match change {
            Change::Link(link) => self.link(link, true),
            Change::LinkGone(link) => {
                let gone = self.link(link, false);
                self.addresses.remove(&link.index);
                gone
            }
            Change::Address(address) => {
                self.addresses.entry(address.link).or_default().insert(address.address.addr());
                None
            }
            Change::AddressGone(address) => {
                let known = self.addresses.get_mut(&address.link)?;
                known.remove(&address.address.addr()).then(|| Gone::Address(address.address.addr()))
            }
            _ => None,
        }
    }
}

impl Ways {
    fn listen(&self) -> Option<Changes> {
        let watch = Watch { links: true, addresses: true, routes: true, ..Watch::default() };
        self.netlink
            .changes(watch)
            .inspect_err(
                |error| tracing::warn!(%error, "The kernel's routes cannot be followed; trying again."),
            )
            .ok()
    }

    async fn ground(&self) -> Ground {
        let told = |error: &tombolo_netlink::Error| {
            tracing::warn!(%error, "The kernel's links and addresses cannot be read; until one changes, its loss is not noticed at once.");
        };
        let links = self.netlink.links().await.inspect_err(told).unwrap_or_default();
        let addresses = self.netlink.addresses(None).await.inspect_err(told).unwrap_or_default();
        Ground::new(&links, &addresses)
    }

    /// The cost of the way to a next hop, none if there is no way. A kernel that does not answer is no reason to drop routes.
    async fn cost(&self, next_hop: IpAddr) -> Option<u32> {
        match self.netlink.way_to(next_hop).await {
            Ok(found) => found.filter(|found| found.protocol != self.protocol).map(|found| found.metric),
            Err(error) => {
                tracing::warn!(%next_hop, %error, "The way to a next hop cannot be asked for; it counts as reachable.");
                Some(0)
            }
        }
    }

    /// Serves one speaker until it ends. Next hops that were reachable and are not any more are told to `lost`.
    pub(crate) async fn follow(self, speaker: SpeakerHandle, lost: broadcast::Sender<IpAddr>) {
        let mut wanted = speaker.next_hops();
        let mut answers: BTreeMap<IpAddr, Option<u32>> = BTreeMap::new();
        let mut changes = self.listen();
        let mut ground = self.ground().await;
        let mut ask_at = Some(Instant::now());
        loop {
            let change = async {
                match &mut changes {
                    Some(changes) => changes.next().await,
                    None => {
                        tokio::time::sleep(AGAIN).await;
                        None
                    }
                }
            };
            let ask = async {
                match ask_at {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let done = tokio::select! {
                news = wanted.changed() => {
                    if news.is_err() {
                        return;
                    }
                    ask_at = Some(Instant::now());
                    Ok(())
                }
                change = change => match change {
                    Some(Change::Route(route) | Change::RouteGone(route)) if route.protocol == self.protocol => Ok(()),
                    Some(change) => {
                        ask_at = ask_at.or(Some(Instant::now() + REST));
                        if change == Change::Lost {
                            ground = self.ground().await;
                        }
                        tell(&speaker, ground.take(&change)).await
                    }
                    None => {
                        changes = self.listen();
                        ground = self.ground().await;
                        ask_at = Some(Instant::now());
                        Ok(())
                    }
                },
                () = ask => {
                    ask_at = None;
                    let next_hops = wanted.borrow_and_update().clone();
                    self.answer(&speaker, next_hops, &mut answers, &lost).await
                }
            };
            if done.is_err() {
                return;
            }
        }
    }

    async fn answer(
        &self,
        speaker: &SpeakerHandle,
        next_hops: BTreeSet<IpAddr>,
        answers: &mut BTreeMap<IpAddr, Option<u32>>,
        lost: &broadcast::Sender<IpAddr>,
    ) -> Result<(), Error> {
        answers.retain(|next_hop, _| next_hops.contains(next_hop));
        for next_hop in next_hops {
            let cost = self.cost(next_hop).await;
            let before = answers.insert(next_hop, cost);
            if before == Some(cost) {
                continue;
            }
            if matches!(before, Some(Some(_))) && cost.is_none() {
                tracing::info!(%next_hop, "A BGP next hop cannot be reached any more.");
                // Nobody listens: nothing to hurry for.
                drop(lost.send(next_hop));
            }
            speaker.next_hop_resolved(next_hop, cost).await?;
        }
        Ok(())
    }
}

async fn tell(speaker: &SpeakerHandle, gone: Option<Gone>) -> Result<(), Error> {
    match gone {
        Some(Gone::Link(name, own)) => speaker.link_down(&name, own).await.map(drop),
        Some(Gone::Address(address)) => speaker.addresses_gone(vec![address]).await.map(drop),
        None => Ok(()),
    }
}
