//! The whole of what a router holds, and what each node said to its ToR before any filter.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::rib::{parse_bird, parse_bird_sessions, parse_frr_received, parse_tombolo, tombolo_peer};
use super::{
    Routes, addresses, default_route, difference, fib, held, on_shared_link, router, unicast, wrong_fib,
};
use crate::checks::access::Place;
use crate::checks::check::{Failure, Family};
use crate::checks::context::Context;
use crate::checks::inventory::Daemon;

/// Compares the best paths and the FIB, the underlay and the default route included; returns how many prefixes there are.
///
/// # Errors
/// The difference.
pub(super) async fn whole(
    context: &Context,
    name: &str,
    family: Family,
    services: &Routes,
) -> Result<usize, Failure> {
    let mut expected = links(context, name, family).await?;
    expected.extend(services.iter().map(|(prefix, hops)| (*prefix, hops.clone())));
    let best = unicast(held(context, name, family).await?.best, family);
    if let Some(difference) = difference(&expected, &best) {
        let what =
            format!("the {family} RIB of {name} holds exactly the expected best paths, underlay and default");
        return Err(Failure::new(what, difference, format!("`tombolo lab exec {name}` with birdc or vtysh")));
    }
    let held = unicast(fib(context, name, family, &expected).await?, family);
    match difference(&expected, &held) {
        None => Ok(expected.len()),
        Some(difference) => Err(wrong_fib(context, name, family, difference)),
    }
}

/// The subnets of the routers' links and the default route, as a router must hold them: its own links without next hop,
/// the others through the router that has them (the spine, and from the spine the ToR). The spine is where the default
/// route comes from: it has none.
async fn links(context: &Context, name: &str, family: Family) -> Result<Routes, Failure> {
    let subnets = async |of: &str| -> Result<BTreeSet<IpNet>, Failure> {
        let all = addresses(context, &Place::node(of)).await?;
        Ok(all.iter().map(IpNet::trunc).filter(|subnet| family.holds(subnet.addr())).collect())
    };
    let own = subnets(name).await?;
    let is_tor = router(context, name)?.cluster.is_some();
    let mut routes: Routes = own.iter().map(|subnet| (*subnet, BTreeSet::new())).collect();
    let mut up = BTreeSet::new();
    let mut beyond = BTreeSet::new();
    for (other, facts) in context.inventory.routers.iter().filter(|(other, _)| *other != name) {
        let hops = on_shared_link(context, name, other, family).await?;
        let there = subnets(other).await?.into_iter().filter(|subnet| !own.contains(subnet));
        if is_tor {
            beyond.extend(there);
            if facts.cluster.is_none() {
                up.extend(hops);
            }
        } else {
            routes.extend(there.map(|subnet| (subnet, hops.clone())));
        }
    }
    beyond.extend(default_route(family).filter(|_| is_tor));
    routes.extend(beyond.into_iter().map(|prefix| (prefix, up.clone())));
    Ok(routes)
}

/// What each node of a ToR's cluster has said to it, before the ToR's import filter, must be exactly its pod CIDRs and the
/// LoadBalancer addresses it serves: the filter must not be what keeps a leak out. Nothing to say of the spine.
///
/// # Errors
/// The first node that said something else, or a ToR that does not keep what it was told.
pub(super) async fn received(
    context: &Context,
    name: &str,
    family: Family,
) -> Result<Option<String>, Failure> {
    let Some(cluster) = router(context, name)?.cluster.as_ref() else { return Ok(None) };
    let cluster = context.cluster(cluster)?;
    for (node, facts) in &cluster.nodes {
        let own = crate::checks::ask::underlay(context, node, family)?;
        let mut expected = Routes::new();
        let mut add = |prefix: IpNet| drop(expected.insert(prefix, BTreeSet::from([own])));
        if cluster.advertises_pod_cidrs {
            facts
                .pod_cidrs
                .iter()
                .filter(|cidr| family.holds(cidr.addr()))
                .for_each(|cidr| add(cidr.trunc()));
        }
        if cluster.advertised.contains("LoadBalancerIP") {
            for service in cluster.services.values().filter(|service| service.load_balancer) {
                if cluster.advertisers(service).contains(node) {
                    add(IpNet::from(context.load_balancer(&cluster.name, service, family).await?));
                }
            }
        }
        let (said, look) = said(context, name, family, own).await?;
        if let Some(difference) = difference(&expected, &said) {
            let what = format!(
                "{node} announces to {name} exactly its {family} pod CIDRs and LoadBalancer addresses"
            );
            return Err(Failure::new(what, difference, format!("{look} and `tombolo bgp routes` on {node}")));
        }
    }
    Ok(Some(format!("{} nodes announce nothing else", cluster.nodes.len())))
}

/// What the peer `node` has said to a router before any filter, and the command that shows it.
async fn said(
    context: &Context,
    name: &str,
    family: Family,
    node: IpAddr,
) -> Result<(Routes, String), Failure> {
    let place = Place::node(name);
    match &router(context, name)?.daemon {
        Daemon::Frr(directory) => {
            let question = format!("show bgp {family} unicast neighbors {node} received-routes json");
            let mut argv = vec!["vtysh"];
            argv.extend(directory.iter().flat_map(|directory| ["--vty_socket", directory]));
            argv.extend(["-c", &question]);
            let look = context.access.shown(&place, &argv);
            let text = context.access.text(&place, &argv).await?;
            let said = parse_frr_received(&text).map_err(|why| {
                let remedy = format!("{look}; `soft-reconfiguration inbound` in its frr.conf");
                Failure::new(format!("{name} keeps what {node} announces"), why, remedy)
            })?;
            Ok((said, look))
        }
        Daemon::Tombolo => {
            let peers = ["tombolo", "bgp", "peers", "-o", "json"];
            let received = ["tombolo", "bgp", "routes", "received", "-o", "json"];
            let look = context.access.shown(&place, &received);
            let tool = |why| Failure::tool("tombolo", why, look.clone());
            let session = tombolo_peer(&context.access.text(&place, &peers).await?, node).map_err(tool)?;
            let Some(session) = session else {
                let what = format!("{name} has a session with {node}");
                return Err(Failure::new(
                    what,
                    "none has this address",
                    context.access.shown(&place, &peers),
                ));
            };
            let said = parse_tombolo(&context.access.text(&place, &received).await?, Some(&session));
            Ok((said.map_err(tool)?.all, look))
        }
        Daemon::Bird(socket) => {
            let argv = ["birdc", "-s", socket, "show", "protocols", "all"];
            let sessions = parse_bird_sessions(&context.access.text(&place, &argv).await?);
            let session = sessions.iter().find(|session| session.neighbour == Some(node));
            let Some(session) = session.filter(|session| session.keeps_filtered) else {
                let remedy = format!(
                    "{}; `import keep filtered` in its bird.conf",
                    context.access.shown(&place, &argv)
                );
                return Err(Failure::new(
                    format!("{name} has a session with {node} and keeps what its filter rejects"),
                    format!("{session:?}"),
                    remedy,
                ));
            };
            let accepted = ["birdc", "-s", socket, "show", "route", "all", "protocol", &session.name];
            let rejected =
                ["birdc", "-s", socket, "show", "route", "all", "filtered", "protocol", &session.name];
            let mut said = Routes::new();
            for argv in [accepted.as_slice(), rejected.as_slice()] {
                for (prefix, hops) in parse_bird(&context.access.text(&place, argv).await?).all {
                    said.entry(prefix).or_default().extend(hops);
                }
            }
            Ok((said, context.access.shown(&place, &rejected)))
        }
    }
}
