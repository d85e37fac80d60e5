//! What the routers hold: BIRD's and FRR's RIB and the kernel's FIB, compared with what the manifests say they must.
//!
//! [`compare`] judges pod CIDRs and LoadBalancer addresses, and is what others wait for; the checks themselves judge the
//! underlay, the default route and what each node said as well ([`exact`]).

mod ends;
mod exact;
mod rib;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::Deserialize;

use super::access::{COMMAND_TIMEOUT, Place};
use super::check::{CheckResult, Failure, Family};
use super::context::Context;
use super::inventory::{Cluster, Daemon, Router};
pub(super) use ends::{Ends, Way};
use rib::{Held, parse_bird, parse_frr, parse_tombolo, parse_tombolo_own};

/// Prefixes and their next hops.
pub(super) type Routes = BTreeMap<IpNet, BTreeSet<IpAddr>>;

/// One router in one family: RIB and FIB must be exactly as expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterCheck {
    /// Node name of the router.
    pub router: String,
    /// Family.
    pub family: Family,
}

impl RouterCheck {
    /// Runs the check.
    ///
    /// # Errors
    /// The difference between what the router holds and what it must.
    pub async fn run(&self, context: &Context) -> CheckResult {
        let expected = expected(context, &self.router, self.family).await?;
        compare(context, &self.router, self.family, &expected).await?;
        let all = exact::whole(context, &self.router, self.family, &expected).await?;
        let mut notes = vec![format!("{} prefixes, {all} with the underlay", expected.len())];
        notes.extend(exact::received(context, &self.router, self.family).await?);
        Ok(notes)
    }
}

/// Asks a router for its RIB and FIB and compares both with `expected`.
///
/// # Errors
/// The difference.
pub(super) async fn compare(
    context: &Context,
    name: &str,
    family: Family,
    expected: &Routes,
) -> Result<(), Failure> {
    let place = Place::node(name);
    let underlay = underlay(context).await?;
    let held = held(context, name, family).await?;
    // Every path, best or not: a second one that nobody expects must not hide behind the first.
    for (which, routes) in [("every path", held.all), ("best and multipath", held.best)] {
        if let Some(difference) = difference(expected, &beside_underlay(routes, family, &underlay)) {
            let argv = rib_command(router(context, name)?, family);
            let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
            let what = format!(
                "the {family} RIB of {name} ({which}) holds exactly the expected prefixes and next hops"
            );
            return Err(Failure::new(what, difference, context.access.shown(&place, &argv)));
        }
    }
    let held = beside_underlay(fib(context, name, family).await?, family, &underlay);
    if let Some(difference) = difference(expected, &held) {
        return Err(wrong_fib(context, name, family, difference));
    }
    Ok(())
}

fn wrong_fib(context: &Context, name: &str, family: Family, difference: String) -> Failure {
    let what = format!("the {family} FIB of {name} holds exactly the expected prefixes and next hops");
    Failure::new(what, difference, context.access.shown(&Place::node(name), &fib_command(family)))
}

fn router<'a>(context: &'a Context, name: &str) -> Result<&'a Router, Failure> {
    context.inventory.routers.get(name).ok_or_else(|| {
        Failure::new(format!("a router {name}"), "none with the role tor or spine", "the topology file")
    })
}

/// What a router must hold beside the underlay: pod CIDRs and LoadBalancer addresses of every cluster.
///
/// # Errors
/// When addresses of the lab cannot be found out.
pub(super) async fn expected(context: &Context, name: &str, family: Family) -> Result<Routes, Failure> {
    let router = router(context, name)?;
    let mut routes = Routes::new();
    for cluster in context.inventory.clusters.values() {
        let own = router.cluster.as_deref() == Some(&cluster.name);
        let towards = if own { None } else { Some(neighbour_towards(context, name, cluster, family).await?) };
        let via = |node: &str| -> BTreeSet<IpAddr> {
            match &towards {
                Some(neighbours) => neighbours.clone(),
                None => cluster.nodes.get(node).and_then(|node| node.underlay(family)).into_iter().collect(),
            }
        };
        if cluster.advertises_pod_cidrs {
            for (node, facts) in &cluster.nodes {
                for cidr in facts.pod_cidrs.iter().filter(|cidr| family.holds(cidr.addr())) {
                    routes.entry(cidr.trunc()).or_default().extend(via(node));
                }
            }
        }
        if cluster.advertised.contains("LoadBalancerIP") {
            for service in cluster.services.values().filter(|service| service.load_balancer) {
                let address = context.load_balancer(&cluster.name, service, family).await?;
                for node in cluster.advertisers(service) {
                    routes.entry(IpNet::from(address)).or_default().extend(via(&node));
                }
            }
        }
    }
    Ok(routes)
}

/// The addresses of the neighbouring router through which `name` reaches a cluster that is not its own: the other
/// end of the one link between routers that leads there.
async fn neighbour_towards(
    context: &Context,
    name: &str,
    cluster: &Cluster,
    family: Family,
) -> Result<BTreeSet<IpAddr>, Failure> {
    let is_tor = router(context, name)?.cluster.is_some();
    let mut found = BTreeSet::new();
    for (other, facts) in &context.inventory.routers {
        // A ToR reaches other clusters through the spine; the spine through that cluster's ToR.
        let leads_there =
            if is_tor { facts.cluster.is_none() } else { facts.cluster.as_deref() == Some(&cluster.name) };
        if other != name && leads_there {
            found.extend(on_shared_link(context, name, other, family).await?);
        }
    }
    Ok(found)
}

/// The addresses of `other` on links that it shares with `name`.
async fn on_shared_link(
    context: &Context,
    name: &str,
    other: &str,
    family: Family,
) -> Result<BTreeSet<IpAddr>, Failure> {
    let here = addresses(context, &Place::node(name)).await?;
    let there = addresses(context, &Place::node(other)).await?;
    let shared =
        |address: &IpAddr| family.holds(*address) && here.iter().any(|subnet| subnet.contains(address));
    Ok(there.iter().map(IpNet::addr).filter(shared).collect())
}

/// Subnets of the underlay: whatever the routers have on their links.
async fn underlay(context: &Context) -> Result<BTreeSet<IpNet>, Failure> {
    let mut subnets = BTreeSet::new();
    for name in context.inventory.routers.keys() {
        subnets.extend(addresses(context, &Place::node(name)).await?.iter().map(IpNet::trunc));
    }
    Ok(subnets)
}

fn beside_underlay(routes: Routes, family: Family, underlay: &BTreeSet<IpNet>) -> Routes {
    // An address on a link is the router's own; a more specific route inside a link's subnet is not.
    let mut routes = unicast(routes, family);
    routes.retain(|prefix, _| prefix.prefix_len() != 0 && !underlay.contains(prefix));
    routes
}

/// The routes of a family but for those that every interface has by itself.
fn unicast(routes: Routes, family: Family) -> Routes {
    let of_links = |prefix: &IpNet| match prefix {
        IpNet::V4(net) => net.network().is_link_local() || net.network().is_multicast(),
        IpNet::V6(net) => net.network().is_unicast_link_local() || net.network().is_multicast(),
    };
    routes.into_iter().filter(|(prefix, _)| family.holds(prefix.addr()) && !of_links(prefix)).collect()
}

/// The command that prints a router's RIB.
fn rib_command(router: &Router, family: Family) -> Vec<String> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    match &router.daemon {
        Daemon::Bird(socket) => words(&["birdc", "-s", socket, "show", "route", "all"]),
        Daemon::Frr(directory) => {
            let mut argv = words(&["vtysh"]);
            if let Some(directory) = directory {
                argv.extend(words(&["--vty_socket", directory]));
            }
            argv.extend(words(&["-c", &format!("show bgp {family} unicast json")]));
            argv
        }
        Daemon::Tombolo => words(&["tombolo", "bgp", "routes", "received", "-o", "json"]),
    }
}

/// The RIB of a router beside the underlay, every path, best or not.
///
/// # Errors
/// When it cannot be asked or its answer not be read.
pub(super) async fn rib(context: &Context, name: &str, family: Family) -> Result<Routes, Failure> {
    let held = held(context, name, family).await?;
    Ok(beside_underlay(held.all, family, &underlay(context).await?))
}

/// The whole RIB of a router.
async fn held(context: &Context, name: &str, family: Family) -> Result<Held, Failure> {
    let router = router(context, name)?;
    let argv = rib_command(router, family);
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    let place = Place::node(name);
    let text = context.access.text(&place, &argv).await?;
    let mut held = match router.daemon {
        Daemon::Bird(_) => parse_bird(&text),
        Daemon::Frr(_) => parse_frr(&text)
            .map_err(|why| Failure::tool("vtysh", why, context.access.shown(&place, &argv)))?,
        Daemon::Tombolo => {
            let tool = |why| Failure::tool("tombolo", why, context.access.shown(&place, &argv));
            let mut held = parse_tombolo(&text, None).map_err(tool)?;
            // Its own networks are no received routes; they win over any.
            let own = context.access.text(&place, &["tombolo", "show", "adverts", "-o", "json"]).await?;
            for prefix in parse_tombolo_own(&own).map_err(tool)? {
                held.all.entry(prefix).or_default();
                held.best.insert(prefix, BTreeSet::new());
            }
            held
        }
    };
    let ends = Ends::of_lab(context).await?;
    for routes in [&mut held.all, &mut held.best] {
        *routes = told_by(&ends, std::mem::take(routes), family, name);
    }
    Ok(held)
}

/// The routes of a family, with next hops as the addresses of that family.
fn told_by(ends: &Ends, routes: Routes, family: Family, router: &str) -> Routes {
    let way = Way { router, interface: None };
    let of_family = routes.into_iter().filter(|(prefix, _)| family.holds(prefix.addr()));
    of_family
        .map(|(prefix, hops)| (prefix, hops.into_iter().map(|hop| ends.known_as(hop, family, way)).collect()))
        .collect()
}

fn fib_command(family: Family) -> [&'static str; 5] {
    ["ip", "-j", if family == Family::Ipv4 { "-4" } else { "-6" }, "route", "show"]
}

/// The FIB of a router.
///
/// # Errors
/// When it cannot be asked or its answer not be read.
pub(super) async fn fib(context: &Context, name: &str, family: Family) -> Result<Routes, Failure> {
    let place = Place::node(name);
    let entries: Vec<KernelRoute> =
        context.access.json(&place, &fib_command(family), COMMAND_TIMEOUT).await?;
    Ok(kernel_routes(&entries, family, &*Ends::of_lab(context).await?, name))
}

/// The unicast routes of a FIB.
fn kernel_routes(entries: &[KernelRoute], family: Family, ends: &Ends, router: &str) -> Routes {
    let mut routes = Routes::new();
    let mut metrics: BTreeMap<IpNet, u32> = BTreeMap::new();
    for entry in entries {
        let Some(prefix) = parse_prefix(&entry.dst, family) else { continue };
        if !matches!(entry.kind.as_deref(), None | Some("unicast")) {
            continue;
        }
        // Of several routes to one prefix the kernel uses that of the lowest metric; equal ones are one multipath route.
        let known_metric = *metrics.entry(prefix).or_insert(entry.metric);
        if entry.metric > known_metric {
            continue;
        }
        if entry.metric < known_metric {
            metrics.insert(prefix, entry.metric);
            routes.remove(&prefix);
        }
        let hops = entry
            .next_hops()
            .into_iter()
            .map(|(gateway, interface)| ends.known_as(gateway, family, Way { router, interface }));
        routes.entry(prefix).or_default().extend(hops);
    }
    routes
}

/// What differs, in words; `None` when nothing does.
fn difference(expected: &Routes, held: &Routes) -> Option<String> {
    let mut words = Vec::new();
    for (prefix, hops) in expected {
        match held.get(prefix) {
            None => words.push(format!("{prefix} is missing (via {hops:?})")),
            Some(other) if other != hops => {
                words.push(format!("{prefix} is via {other:?} instead of {hops:?}"))
            }
            Some(_) => {}
        }
    }
    let extra = held.iter().filter(|(prefix, _)| !expected.contains_key(*prefix));
    words.extend(extra.map(|(prefix, hops)| format!("{prefix} via {hops:?} should not be there")));
    (!words.is_empty()).then(|| words.join("; "))
}

#[derive(Debug, Deserialize)]
struct KernelRoute {
    dst: String,
    #[serde(rename = "type")]
    kind: Option<String>,
    gateway: Option<IpAddr>,
    via: Option<KernelVia>,
    dev: Option<String>,
    #[serde(default)]
    metric: u32,
    #[serde(default)]
    nexthops: Vec<KernelHop>,
}

#[derive(Debug, Deserialize)]
struct KernelHop {
    gateway: Option<IpAddr>,
    via: Option<KernelVia>,
    dev: Option<String>,
}

/// A next hop of the other family.
#[derive(Debug, Deserialize)]
struct KernelVia {
    host: Option<IpAddr>,
}

impl KernelRoute {
    fn next_hops(&self) -> Vec<(IpAddr, Option<&str>)> {
        let other = |via: &Option<KernelVia>| via.as_ref().and_then(|via| via.host);
        let first = self.gateway.or(other(&self.via)).map(|hop| (hop, self.dev.as_deref()));
        let more = self.nexthops.iter();
        let more = more.filter_map(|hop| Some((hop.gateway.or(other(&hop.via))?, hop.dev.as_deref())));
        first.into_iter().chain(more).collect()
    }
}

/// What one line of `ip -o monitor route` says about a route of the main table.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Notified {
    /// Whether the route is gone; otherwise it is there now as the line says.
    pub deleted: bool,
    /// Its prefix.
    pub prefix: IpNet,
    /// Its next hops; none of a route that leads nowhere.
    pub hops: BTreeSet<IpAddr>,
}

/// Reads a line of `ip -o monitor route`.
#[must_use]
pub(super) fn notified(line: &str, ends: &Ends, router: &str) -> Option<Notified> {
    let (deleted, rest) = line.strip_prefix("Deleted ").map_or((false, line), |rest| (true, rest));
    let words: Vec<&str> =
        rest.split(|c: char| c.is_whitespace() || c == '\\').filter(|w| !w.is_empty()).collect();
    let after = |word: &str, from: usize| {
        let at = words.iter().skip(from).position(|other| *other == word)?;
        words.get(from + at + 1).copied()
    };
    if after("table", 0).is_some_and(|table| table != "main") {
        return None;
    }
    // `unreachable`, `blackhole` and the like precede the prefix and have no next hop. Of a default route only the
    // gateway tells the family.
    let of_gateway = if words.iter().any(|word| word.contains(':')) { Family::Ipv6 } else { Family::Ipv4 };
    let prefix = words.iter().take(2).find_map(|word| parse_prefix(word, of_gateway))?;
    let family = if prefix.addr().is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
    let vias = words.iter().enumerate().filter(|(_, word)| **word == "via").map(|(at, _)| at);
    let nexthops = vias.filter_map(|at| {
        let first = words.get(at + 1).copied()?;
        let address = if first.starts_with("inet") { words.get(at + 2).copied()? } else { first };
        Some(KernelHop { gateway: address.parse().ok(), via: None, dev: after("dev", at).map(str::to_owned) })
    });
    let route = KernelRoute {
        dst: prefix.to_string(),
        kind: None,
        gateway: None,
        via: None,
        dev: None,
        nexthops: nexthops.collect(),
        metric: 0,
    };
    let hops = kernel_routes(&[route], family, ends, router).remove(&prefix).unwrap_or_default();
    Some(Notified { deleted, prefix, hops })
}

/// A prefix as `ip` prints it: `default`, a prefix, or a bare address.
fn parse_prefix(text: &str, family: Family) -> Option<IpNet> {
    if text == "default" {
        return default_route(family);
    }
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

fn default_route(family: Family) -> Option<IpNet> {
    let any = match family {
        Family::Ipv4 => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        Family::Ipv6 => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    IpNet::new(any, 0).ok()
}

#[derive(Deserialize)]
struct LinkAddresses {
    ifname: String,
    #[serde(default)]
    addr_info: Vec<AddressInfo>,
}

#[derive(Deserialize)]
struct AddressInfo {
    local: Option<IpAddr>,
    prefixlen: Option<u8>,
    scope: Option<String>,
}

impl LinkAddresses {
    fn all(&self) -> impl Iterator<Item = IpAddr> {
        self.addr_info.iter().filter_map(|info| info.local)
    }

    fn global(&self) -> impl Iterator<Item = IpNet> {
        let global = self.addr_info.iter().filter(|info| info.scope.as_deref() == Some("global"));
        global.filter_map(|info| IpNet::new(info.local?, info.prefixlen?).ok())
    }
}

/// Whether an interface is on a link of the lab.
fn on_a_link(link: &LinkAddresses) -> bool {
    link.ifname.starts_with("eth")
}

/// Every global address of a node's links, with its prefix length.
///
/// # Errors
/// When the node cannot be asked.
pub(super) async fn addresses(context: &Context, place: &Place) -> Result<Vec<IpNet>, Failure> {
    if let Some(known) = context.known_addresses(&place.node).await {
        return Ok(known);
    }
    let argv = ["ip", "-j", "address", "show"];
    let links: Vec<LinkAddresses> = context.access.json(place, &argv, COMMAND_TIMEOUT).await?;
    let found: Vec<IpNet> =
        links.iter().filter(|link| on_a_link(link)).flat_map(LinkAddresses::global).collect();
    context.remember_addresses(&place.node, found.clone()).await;
    Ok(found)
}

#[cfg(test)]
#[path = "routers_tests.rs"]
mod tests;
