//! The whole of what a router holds, and what each node said to its ToR before any filter.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::rib::{
    BirdSession, parse_bird, parse_bird_sessions, parse_frr_peers, parse_frr_received, parse_tombolo,
    tombolo_peers,
};
use super::{
    Ends, Routes, addresses, default_route, difference, fib, held, on_shared_link, router, told_by, unicast,
    wrong_fib,
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
    let held = unicast(fib(context, name, family).await?, family);
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
        let (said, look) = said(context, name, family, node).await?;
        if let Some(difference) = difference(&expected, &said) {
            let what = format!(
                "{node} announces to {name} exactly its {family} pod CIDRs and LoadBalancer addresses"
            );
            return Err(Failure::new(what, difference, format!("{look} and `tombolo bgp routes` on {node}")));
        }
    }
    Ok(Some(format!("{} nodes announce nothing else", cluster.nodes.len())))
}

/// What a node has said to a router before any filter, over whichever of its sessions, and the command that shows it.
async fn said(
    context: &Context,
    name: &str,
    family: Family,
    node: &str,
) -> Result<(Routes, String), Failure> {
    let ends = Ends::of_lab(context).await?;
    let (said, look) = match &router(context, name)?.daemon {
        Daemon::Frr(directory) => said_to_frr(context, name, family, node, directory.as_deref()).await?,
        Daemon::Bird(socket) => said_to_bird(context, name, node, socket).await?,
        Daemon::Tombolo => said_to_tombolo(context, name, node).await?,
    };
    Ok((told_by(&ends, said, family, name), look))
}

async fn said_to_frr(
    context: &Context,
    name: &str,
    family: Family,
    node: &str,
    directory: Option<&str>,
) -> Result<(Routes, String), Failure> {
    let place = Place::node(name);
    let ends = Ends::of_lab(context).await?;
    let argv = |question: &str| {
        let mut argv = vec!["vtysh".to_owned()];
        argv.extend(
            directory.iter().flat_map(|directory| ["--vty_socket".to_owned(), (*directory).to_owned()]),
        );
        argv.extend(["-c".to_owned(), question.to_owned()]);
        argv
    };
    let ask = |question: String| {
        let (argv, place) = (argv(&question), &place);
        async move {
            let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
            Ok::<_, Failure>((context.access.text(place, &argv).await?, context.access.shown(place, &argv)))
        }
    };
    let unread = |why: String, look: &str| {
        let remedy = format!("{look}; `soft-reconfiguration inbound` in its frr.conf");
        Failure::new(format!("{name} keeps what {node} announces"), why, remedy)
    };
    let (text, mut look) = ask("show bgp neighbors json".to_owned()).await?;
    let peers = parse_frr_peers(&text, family).map_err(|why| unread(why, &look))?;
    let mut said = Routes::new();
    let mut sessions = 0;
    for peer in peers.iter().filter(|peer| ends.node(&peer.address) == Some(node)) {
        let question = format!("show bgp {family} unicast neighbors {} received-routes json", peer.name);
        let text;
        (text, look) = ask(question).await?;
        for (prefix, hops) in parse_frr_received(&text).map_err(|why| unread(why, &look))? {
            said.entry(prefix).or_default().extend(hops);
        }
        sessions += 1;
    }
    if sessions == 0 {
        return Err(unread(format!("no session with {node} carries {family} routes"), &look));
    }
    Ok((said, look))
}

async fn said_to_bird(
    context: &Context,
    name: &str,
    node: &str,
    socket: &str,
) -> Result<(Routes, String), Failure> {
    let place = Place::node(name);
    let ends = Ends::of_lab(context).await?;
    let argv = ["birdc", "-s", socket, "show", "protocols", "all"];
    let mut look = context.access.shown(&place, &argv);
    let sessions = parse_bird_sessions(&context.access.text(&place, &argv).await?);
    let with_node = |session: &&BirdSession| {
        session.neighbour.is_some_and(|neighbour| ends.node(&neighbour) == Some(node))
    };
    let sessions: Vec<&BirdSession> = sessions.iter().filter(with_node).collect();
    if sessions.is_empty() || !sessions.iter().all(|session| session.keeps_filtered) {
        return Err(Failure::new(
            format!("{name} has a session with {node} and keeps what its filter rejects"),
            format!("{sessions:?}"),
            format!("{look}; `import keep filtered` in its bird.conf"),
        ));
    }
    let mut said = Routes::new();
    for session in sessions {
        let accepted = ["birdc", "-s", socket, "show", "route", "all", "protocol", &session.name];
        let rejected = ["birdc", "-s", socket, "show", "route", "all", "filtered", "protocol", &session.name];
        for argv in [accepted.as_slice(), rejected.as_slice()] {
            for (prefix, hops) in parse_bird(&context.access.text(&place, argv).await?).all {
                said.entry(prefix).or_default().extend(hops);
            }
        }
        look = context.access.shown(&place, &rejected);
    }
    Ok((said, look))
}

async fn said_to_tombolo(context: &Context, name: &str, node: &str) -> Result<(Routes, String), Failure> {
    let place = Place::node(name);
    let ends = Ends::of_lab(context).await?;
    let peers = ["tombolo", "bgp", "peers", "-o", "json"];
    let received = ["tombolo", "bgp", "routes", "received", "-o", "json"];
    let look = context.access.shown(&place, &received);
    let tool = |why| Failure::tool("tombolo", why, look.clone());
    let sessions = tombolo_peers(&context.access.text(&place, &peers).await?).map_err(tool)?;
    let with_node = sessions.iter().filter(|(_, address)| ends.node(address) == Some(node));
    let names: BTreeSet<&str> = with_node.map(|(peer, _)| peer.as_str()).collect();
    if names.is_empty() {
        let what = format!("{name} has a session with {node}");
        return Err(Failure::new(what, format!("{sessions:?}"), context.access.shown(&place, &peers)));
    }
    let said = parse_tombolo(&context.access.text(&place, &received).await?, Some(&names)).map_err(tool)?;
    Ok((said.all, look))
}
