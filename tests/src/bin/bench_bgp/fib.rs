//! `bench_bgp fib ASN ROUTER-ID PEER=ASN ...`: the speaker with the routes it learns in the kernel, by way of the agent's netlink crate.

use std::net::{IpAddr, Ipv4Addr};

use futures_util::FutureExt as _;
use tombolo_bgp::{AllowedPrefix, Event, Events, Path, PeerConfig, Speaker, SpeakerConfig};
use tombolo_netlink::{Netlink, NextHop, Route, Write};

use crate::Failure;

/// Changes that are written together, as the agent does.
const BATCH: usize = 512;
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

/// Carries every change to the kernel, as many together as have come and [`BATCH`] allows.
async fn install(mut events: Events, netlink: &Netlink) -> Result<(), Failure> {
    let mut writes = Vec::new();
    while let Some(first) = events.next().await {
        let mut next = Some(first);
        while let Some(event) = next {
            if let Event::Route { prefix, paths } = event {
                writes.push(change(prefix, &paths));
            }
            next = if writes.len() < BATCH { events.next().now_or_never().flatten() } else { None };
        }
        for outcome in netlink.write_all(&writes).await {
            outcome?;
        }
        writes.clear();
    }
    Ok(())
}

fn change(prefix: ipnet::IpNet, paths: &[Path]) -> Write {
    let hops = paths.iter().map(|path| NextHop::via(path.next_hop.address)).collect();
    let route = Route::unicast(prefix, hops);
    if paths.is_empty() { Write::DeleteRoute(route) } else { Write::ReplaceRoute(route) }
}
