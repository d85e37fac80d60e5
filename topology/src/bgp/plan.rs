//! From BGP intent to the sessions and advertised prefixes of one node.
//!
//! Small inputs, so one full pass: the same inputs give the same rows in the same order. What cannot be served becomes
//! a [`Condition`], not an error: the rest goes on.

use super::intent::{
    AdvertIntent, AdvertKind, AdvertisementRow, ClusterConfigRow, FamilyIntent, InstanceIntent,
    InstanceOverride, OverrideRow, PeerConfigRow, PeerIntent, ServiceAddress,
};
use super::{AdvertOrigin, AdvertRow, Family, PeerRow};
use crate::rows::NodeRow;
use crate::selector::LabelSelector;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use tombolo_base::prefix::Prefix;
use tombolo_base::source::Source;

/// The load balancer class that this control plane serves besides services without one.
pub const LOAD_BALANCER_CLASS: &str = "io.cilium/bgp-control-plane";

/// A service as far as advertising it goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdvertisedService {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Labels.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// Assigned LoadBalancer addresses.
    pub load_balancer_ips: BTreeSet<IpAddr>,
    /// `clusterIPs`.
    pub cluster_ips: BTreeSet<IpAddr>,
    /// `externalIPs`.
    pub external_ips: BTreeSet<IpAddr>,
    /// `loadBalancerClass`.
    pub load_balancer_class: Option<Arc<str>>,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// Whether a ready endpoint of the service runs on this node.
    pub local_ready: bool,
}

/// All that decides this node's BGP.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// This node.
    pub node: &'a NodeRow,
    /// `CiliumBGPClusterConfig`s.
    pub configs: &'a [ClusterConfigRow],
    /// `CiliumBGPPeerConfig`s.
    pub peer_configs: &'a [PeerConfigRow],
    /// `CiliumBGPAdvertisement`s.
    pub advertisements: &'a [AdvertisementRow],
    /// `CiliumBGPNodeConfigOverride`s.
    pub overrides: &'a [OverrideRow],
    /// Services.
    pub services: &'a [AdvertisedService],
}

/// Something that was asked for and cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Condition {
    /// `Kind name`.
    pub object: String,
    /// What is wrong and what to try.
    pub text: String,
}

/// The rows, each list ordered by key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Sessions.
    pub peers: Vec<PeerRow>,
    /// Advertised prefixes.
    pub adverts: Vec<AdvertRow>,
    /// What cannot be served.
    pub conditions: BTreeSet<Condition>,
}

impl Plan {
    fn complain(&mut self, object: impl Into<String>, text: impl Into<String>) {
        self.conditions.insert(Condition { object: object.into(), text: text.into() });
    }
}

/// Plans all sessions and adverts of the node.
#[must_use]
pub fn plan(inputs: &Inputs<'_>) -> Plan {
    let mut plan = Plan::default();
    let Some(config) = choose_config(inputs, &mut plan) else { return plan };
    let mut adverts = BTreeMap::new();
    for instance in &config.instances {
        plan_instance(inputs, config, instance, &mut plan, &mut adverts);
    }
    plan.adverts = adverts.into_values().collect();
    plan.peers.sort_by(|a, b| (&a.instance, &a.name).cmp(&(&b.instance, &b.name)));
    plan
}

/// The configuration whose selector matches; the first by name if several do.
fn choose_config<'a>(inputs: &Inputs<'a>, plan: &mut Plan) -> Option<&'a ClusterConfigRow> {
    let mut matching: Vec<_> =
        inputs.configs.iter().filter(|c| c.node_selector.matches_map(&inputs.node.labels)).collect();
    matching.sort_by(|a, b| a.name.cmp(&b.name));
    let (first, others) = matching.split_first()?;
    for other in others {
        let text = format!(
            "ConflictingClusterConfig: {} selects this node too and is used; narrow one nodeSelector",
            first.name
        );
        plan.complain(format!("CiliumBGPClusterConfig {}", other.name), text);
    }
    Some(first)
}

type Adverts = BTreeMap<(Arc<str>, Arc<str>, Prefix), AdvertRow>;

fn plan_instance(
    inputs: &Inputs<'_>,
    config: &ClusterConfigRow,
    instance: &InstanceIntent,
    plan: &mut Plan,
    adverts: &mut Adverts,
) {
    let object = format!("CiliumBGPClusterConfig {}", config.name);
    let change = inputs
        .overrides
        .iter()
        .find(|row| row.name == inputs.node.name)
        .and_then(|row| row.instances.iter().find(|change| change.name == instance.name));
    let Some(local_asn) = change.and_then(|change| change.local_asn).or(instance.local_asn) else {
        let text = format!(
            "instance {}: no localASN here nor in a CiliumBGPNodeConfigOverride; give one",
            instance.name
        );
        return plan.complain(object, text);
    };
    let Some(router_id) = change.and_then(|change| change.router_id).or_else(|| node_ipv4(inputs.node))
    else {
        let text = format!(
            "instance {}: the node has no IPv4 address to take the router id from; \
             set routerID in a CiliumBGPNodeConfigOverride",
            instance.name
        );
        return plan.complain(object, text);
    };
    let local_port = change.and_then(|change| change.local_port).or(instance.local_port);
    let speaker = Speaker { instance, change, local_asn, router_id, local_port };
    for peer in &instance.peers {
        let Some((row, families)) = plan_peer(inputs, &object, &speaker, peer, plan) else { continue };
        plan_adverts(inputs, &row, &families, plan, adverts);
        plan.peers.push(row);
    }
}

fn node_ipv4(node: &NodeRow) -> Option<Ipv4Addr> {
    match node.underlay(true)? {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(_) => None,
    }
}

/// What all peers of an instance share.
struct Speaker<'a> {
    instance: &'a InstanceIntent,
    change: Option<&'a InstanceOverride>,
    local_asn: u32,
    router_id: Ipv4Addr,
    local_port: Option<u16>,
}

type Families = Vec<(Family, LabelSelector)>;

/// A peer's session and the advertisement selectors of its families; `None` if it cannot be served.
fn plan_peer(
    inputs: &Inputs<'_>,
    object: &str,
    speaker: &Speaker<'_>,
    peer: &PeerIntent,
    plan: &mut Plan,
) -> Option<(PeerRow, Families)> {
    let who = format!("instance {} peer {}", speaker.instance.name, peer.name);
    let address = peer_address(peer, &who, object, plan)?;
    let config = match &peer.peer_config {
        None => PeerConfigRow::defaults(Source::Manifests, "".into()),
        Some(name) => match inputs.peer_configs.iter().find(|config| config.name == *name) {
            Some(config) => config.clone(),
            None => {
                let text =
                    format!("MissingPeerConfigs: {who}: there is no CiliumBGPPeerConfig {name}; create it");
                plan.complain(object, text);
                return None;
            }
        },
    };
    let config_object = format!("CiliumBGPPeerConfig {}", config.name);
    if let Some(secret) = &config.auth_secret {
        // Without the password the session would run unauthenticated: rather none.
        let text = format!(
            "MissingAuthSecret: {who}: secret {secret} cannot be read from manifests, no session is opened; \
             remove authSecretRef"
        );
        plan.complain(config_object, text);
        return None;
    }
    let local_address = speaker.change.and_then(|change| change.local_addresses.get(&peer.name)).copied();
    if local_address.is_some_and(|local| local.is_ipv4() != address.is_ipv4()) {
        let text = format!("{who}: localAddress is not of peerAddress's family; correct the override");
        plan.complain(format!("CiliumBGPNodeConfigOverride {}", inputs.node.name), text);
        return None;
    }
    if config.source_interface.is_some() && local_address.is_none() {
        let text = format!(
            "{who}: transport.sourceInterface is not served, the kernel chooses the address; \
                            set localAddress in a CiliumBGPNodeConfigOverride"
        );
        plan.complain(config_object.clone(), text);
    }
    let families = families(&config.families, &who, &config_object, plan);
    let row = PeerRow {
        source: Source::Planner,
        instance: speaker.instance.name.clone(),
        name: peer.name.clone(),
        local_asn: speaker.local_asn,
        router_id: speaker.router_id,
        local_port: speaker.local_port,
        address,
        port: config.peer_port,
        asn: peer.asn,
        local_address,
        families: families.iter().map(|(family, _)| *family).collect(),
        connect_retry_secs: config.connect_retry_secs,
        hold_time_secs: config.hold_time_secs,
        keepalive_secs: config.keepalive_secs,
        graceful_restart_secs: config.graceful_restart_secs,
        ebgp_multihop: config.ebgp_multihop,
    };
    let selected = families.into_iter().filter_map(|(family, selector)| Some((family, selector?)));
    Some((row, selected.collect()))
}

fn peer_address(peer: &PeerIntent, who: &str, object: &str, plan: &mut Plan) -> Option<IpAddr> {
    let text = match (peer.address, &peer.zone, &peer.auto_discovery) {
        (Some(address), None, _) => return Some(address),
        (Some(_), Some(zone), _) => {
            format!("{who}: link-local peers (%{zone}) are not served; use a routed address")
        }
        (None, _, Some(mode)) => format!("{who}: autoDiscovery {mode} is not served; give peerAddress"),
        (None, _, None) => format!("{who}: no peerAddress; give one"),
    };
    plan.complain(object, text);
    None
}

fn families(
    wanted: &[FamilyIntent],
    who: &str,
    object: &str,
    plan: &mut Plan,
) -> Vec<(Family, Option<LabelSelector>)> {
    let mut out = Vec::new();
    for entry in wanted {
        match entry.family {
            Some(family) => out.push((family, entry.advertisements.clone())),
            None => {
                let text = format!("{who}: family {} is not served; remove it", entry.text);
                plan.complain(object, text);
            }
        }
    }
    out
}

fn plan_adverts(
    inputs: &Inputs<'_>,
    peer: &PeerRow,
    families: &[(Family, LabelSelector)],
    plan: &mut Plan,
    out: &mut Adverts,
) {
    for (family, selector) in families {
        for advertisement in inputs.advertisements.iter().filter(|row| selector.matches_map(&row.labels)) {
            for entry in &advertisement.entries {
                if let AdvertKind::Unsupported(kind) = &entry.kind {
                    let object = format!("CiliumBGPAdvertisement {}", advertisement.name);
                    plan.complain(object, format!("type {kind} is not served; use PodCIDR or Service"));
                }
                for (prefix, origin) in prefixes(inputs, entry) {
                    if prefix.is_ipv4() == (*family == Family::Ipv4Unicast) {
                        merge(out, advert(peer, entry, prefix, origin));
                    }
                }
            }
        }
    }
}

fn advert(peer: &PeerRow, entry: &AdvertIntent, prefix: Prefix, origin: AdvertOrigin) -> AdvertRow {
    // Local preference means nothing to another AS; an AS number still to be learned may be ours.
    let internal = peer.asn == 0 || peer.asn == peer.local_asn;
    AdvertRow {
        source: Source::Planner,
        instance: peer.instance.clone(),
        peer: peer.name.clone(),
        prefix,
        origin,
        communities: entry.communities.clone(),
        large_communities: entry.large_communities.clone(),
        local_preference: entry.local_preference.filter(|_| internal),
    }
}

/// Overlapping advertisements: communities unite, the highest local preference wins, the origin is the lesser one so
/// that the order of inputs does not show.
fn merge(out: &mut Adverts, new: AdvertRow) {
    let key = (new.instance.clone(), new.peer.clone(), new.prefix);
    let Some(old) = out.get_mut(&key) else {
        out.insert(key, new);
        return;
    };
    old.communities.extend(new.communities);
    old.large_communities.extend(new.large_communities);
    old.local_preference = old.local_preference.max(new.local_preference);
    if new.origin < old.origin {
        old.origin = new.origin;
    }
}

/// The prefixes that an entry names on this node now.
fn prefixes(inputs: &Inputs<'_>, entry: &AdvertIntent) -> Vec<(Prefix, AdvertOrigin)> {
    match &entry.kind {
        AdvertKind::Unsupported(_) => Vec::new(),
        AdvertKind::PodCidr => {
            inputs.node.pod_cidrs.iter().map(|prefix| (*prefix, AdvertOrigin::PodCidr)).collect()
        }
        AdvertKind::Service { addresses, aggregation_ipv4, aggregation_ipv6 } => {
            let Some(selector) = &entry.selector else { return Vec::new() };
            let lengths = (*aggregation_ipv4, *aggregation_ipv6);
            let selected = inputs.services.iter().filter(|service| selects(selector, service));
            selected.flat_map(|service| service_prefixes(service, addresses, lengths)).collect()
        }
    }
}

/// Whether the selector takes the service, by its labels and by the pseudo labels that name it.
fn selects(selector: &LabelSelector, service: &AdvertisedService) -> bool {
    selector.matches(|key| match key {
        "io.kubernetes.service.name" => Some(service.name.as_ref()),
        "io.kubernetes.service.namespace" => Some(service.namespace.as_ref()),
        other => service.labels.get(other).map(AsRef::as_ref),
    })
}

fn service_prefixes(
    service: &AdvertisedService,
    wanted: &BTreeSet<ServiceAddress>,
    (aggregate_ipv4, aggregate_ipv6): (Option<u8>, Option<u8>),
) -> Vec<(Prefix, AdvertOrigin)> {
    let mut out = Vec::new();
    for kind in wanted {
        let (addresses, local) = match kind {
            ServiceAddress::LoadBalancerIP => (&service.load_balancer_ips, service.external_local),
            ServiceAddress::ExternalIP => (&service.external_ips, service.external_local),
            ServiceAddress::ClusterIP => (&service.cluster_ips, service.internal_local),
        };
        let foreign = *kind == ServiceAddress::LoadBalancerIP
            && service.load_balancer_class.as_deref().is_some_and(|class| class != LOAD_BALANCER_CLASS);
        if foreign || (local && !service.local_ready) {
            continue;
        }
        for address in addresses {
            let length = if address.is_ipv4() { aggregate_ipv4 } else { aggregate_ipv6 };
            // A wider prefix would draw traffic for addresses whose endpoints run elsewhere.
            let wide = length.filter(|_| !local).and_then(|length| Prefix::new(*address, length));
            let name =
                AdvertOrigin::Service { namespace: service.namespace.clone(), name: service.name.clone() };
            out.push((wide.unwrap_or_else(|| Prefix::host(*address)), name));
        }
    }
    out
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
