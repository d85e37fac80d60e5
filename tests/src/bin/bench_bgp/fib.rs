//! `bench_bgp fib ASN ROUTER-ID PEER=ASN ...`: the speaker with the routes it learns in the kernel, by way of the agent's netlink crate.

use std::net::{IpAddr, Ipv4Addr};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tombolo_bgp::{AllowedPrefix, Event, Events, Path, PeerConfig, Speaker, SpeakerConfig};
use tombolo_netlink::{Error, Netlink, NextHop, Route};

use crate::Failure;

/// Requests the kernel has not acknowledged yet.
const IN_FLIGHT: usize = 256;
/// Events that may wait.
const EVENTS: usize = 4096;

/// Runs until the speaker ends.
pub(crate) fn run(arguments: &[String]) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(speak(arguments))
}

async fn speak(arguments: &[String]) -> Result<(), Failure> {
    let [asn, router_id, peers @ ..] = arguments else { return Err("fib ASN ROUTER-ID PEER=ASN ...".into()) };
    let router_id: Ipv4Addr = router_id.parse()?;
    let mut config = SpeakerConfig::new(asn.parse()?, router_id);
    config.listen = vec![([0, 0, 0, 0], 179).into()];
    config.event_queue = EVENTS;
    let (speaker, events) = Speaker::start(config).await?;
    for peer in peers {
        let (address, asn) = peer.split_once('=').ok_or("a peer is PEER=ASN")?;
        let asn = asn.split_once(':').map_or(asn, |(asn, _)| asn);
        let address: IpAddr = address.parse()?;
        let mut config = PeerConfig::new(&address.to_string(), address, asn.parse()?);
        config.passive = true;
        config.max_prefixes = usize::MAX;
        config.import = vec![AllowedPrefix::or_longer("0.0.0.0/0".parse()?)];
        speaker.add_peer(config).await?;
    }
    install(events, &Netlink::here()?).await
}

/// Carries every change to the kernel, as many at a time as [`IN_FLIGHT`].
async fn install(mut events: Events, netlink: &Netlink) -> Result<(), Failure> {
    let mut open = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(done) = open.next(), if !open.is_empty() => {
                let done: Result<(), Error> = done;
                done?;
            }
            event = events.next(), if open.len() < IN_FLIGHT => match event {
                Some(Event::Route { prefix, paths }) => open.push(change(netlink, prefix, paths)),
                Some(_) => {}
                None => return Ok(()),
            },
        }
    }
}

async fn change(netlink: &Netlink, prefix: ipnet::IpNet, paths: Vec<Path>) -> Result<(), Error> {
    let hops = paths.iter().map(|path| NextHop::via(path.next_hop.address)).collect();
    let route = Route::unicast(prefix, hops);
    if paths.is_empty() {
        netlink.delete_route(&route).await.map(drop)
    } else {
        netlink.replace_route(&route).await
    }
}
