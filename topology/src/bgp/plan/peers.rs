//! Sessions: a peer of the cluster configuration with its peer configuration, its policy, and an address.

use super::{Inputs, OVERRIDE, PEER_CONFIG, PEER_POLICY, Plan, Speaker};
use crate::bgp::intent::{Discovery, FamilyIntent, PeerConfigRow, PeerIntent};
use crate::bgp::{ConditionType, Family, Password, PeerRow, PeerTuning};
use crate::selector::LabelSelector;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use tombolo_base::source::Source;

/// A session's families with the advertisements each selects.
pub(super) type Families = Vec<(Family, LabelSelector)>;

/// Where a peer is.
struct Place {
    /// Its key in the instance.
    name: Arc<str>,
    address: IpAddr,
    interface: Option<Arc<str>>,
    unnumbered: bool,
}

/// The sessions of a peer, with the advertisement selectors of their families; none if it cannot be served. A peer that
/// is discovered may have several.
pub(super) fn sessions(
    inputs: &Inputs<'_>,
    speaker: &Speaker<'_>,
    peer: &PeerIntent,
    plan: &mut Plan,
) -> Vec<(PeerRow, Families)> {
    let who = format!("instance {} peer {}", speaker.instance.name, peer.name);
    let Some(config) = peer_config(inputs, speaker, peer, &who, plan) else { return Vec::new() };
    let places = places(inputs, speaker, peer, &who, plan);
    if places.is_empty() {
        return Vec::new();
    }
    let password = password(inputs, &config, &who, plan);
    let families = families(&config, &who, plan);
    let tuning = tuning(inputs, speaker, peer, plan);
    let mut out = Vec::new();
    for place in places {
        let Ok(local_address) = local_address(inputs, speaker, peer, &config, &place, plan) else { continue };
        let row = PeerRow {
            source: Source::Planner,
            instance: speaker.instance.name.clone(),
            name: place.name,
            peer: peer.name.clone(),
            peer_config: peer.peer_config.clone(),
            local_asn: speaker.local_asn,
            router_id: speaker.router_id,
            local_port: speaker.local_port,
            address: place.address,
            interface: place.interface,
            unnumbered: place.unnumbered,
            range: None,
            port: config.peer_port,
            asn: peer.asn,
            local_address,
            families: families.iter().map(|(family, _)| *family).collect(),
            connect_retry_secs: config.connect_retry_secs,
            hold_time_secs: config.hold_time_secs,
            keepalive_secs: config.keepalive_secs,
            graceful_restart_secs: config.graceful_restart_secs,
            ebgp_multihop: config.ebgp_multihop,
            password: password.clone(),
            tuning: tuning.clone(),
        };
        let selected = families.iter().filter_map(|(family, selector)| Some((*family, selector.clone()?)));
        out.push((row, selected.collect()));
    }
    out
}

fn peer_config(
    inputs: &Inputs<'_>,
    speaker: &Speaker<'_>,
    peer: &PeerIntent,
    who: &str,
    plan: &mut Plan,
) -> Option<PeerConfigRow> {
    let Some(name) = &peer.peer_config else {
        return Some(PeerConfigRow::defaults(Source::Manifests, "".into()));
    };
    let found = inputs.peer_configs.iter().find(|config| config.name == *name).cloned();
    if found.is_none() {
        let text = format!("{who}: there is no CiliumBGPPeerConfig {name}; create it");
        plan.complain(speaker.object(), ConditionType::MissingPeerConfigs, text);
    }
    found
}

/// Where the peer is: as written, or as discovered.
fn places(
    inputs: &Inputs<'_>,
    speaker: &Speaker<'_>,
    peer: &PeerIntent,
    who: &str,
    plan: &mut Plan,
) -> Vec<Place> {
    if let Some(address) = peer.address {
        if is_link_local(address) && peer.zone.is_none() {
            let text =
                format!("{who}: {address} is link-local; write it with its interface, like {address}%eth1");
            plan.complain(speaker.object(), ConditionType::ReconcileError, text);
            return Vec::new();
        }
        let interface = peer.zone.clone();
        return vec![Place { name: peer.name.clone(), address, interface, unnumbered: false }];
    }
    let text = match &peer.discovery {
        Some(Discovery::DefaultGateway { ipv4 }) => {
            let found = gateways(inputs, peer, *ipv4);
            if !found.is_empty() {
                return found;
            }
            let family = if *ipv4 { "IPv4" } else { "IPv6" };
            format!(
                "{who}: autoDiscovery: the node has no {family} default route with a gateway; add one, or give peerAddress"
            )
        }
        Some(Discovery::Unnumbered { interface }) => {
            let (name, interface) = (peer.name.clone(), Some(interface.clone()));
            return vec![Place { name, address: Ipv6Addr::UNSPECIFIED.into(), interface, unnumbered: true }];
        }
        None => format!("{who}: no peerAddress; give one"),
    };
    plan.complain(speaker.object(), ConditionType::ReconcileError, text);
    Vec::new()
}

/// The gateways of the best default route. Their sessions are named by address: one that comes or goes resets no other.
fn gateways(inputs: &Inputs<'_>, peer: &PeerIntent, ipv4: bool) -> Vec<Place> {
    let mut places: Vec<Place> = Vec::new();
    for gateway in inputs.network.default_gateways(ipv4) {
        let link_local = is_link_local(gateway.address);
        let interface = link_local.then(|| gateway.interface.clone());
        let name = match &interface {
            Some(interface) => format!("{}@{}%{interface}", peer.name, gateway.address),
            None => format!("{}@{}", peer.name, gateway.address),
        };
        if !places.iter().any(|place| *place.name == *name) {
            let (name, address) = (name.into(), gateway.address);
            places.push(Place { name, address, interface, unnumbered: false });
        }
    }
    places
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// Our address on the session: as overridden, or that of the source interface, or the kernel's choice.
fn local_address(
    inputs: &Inputs<'_>,
    speaker: &Speaker<'_>,
    peer: &PeerIntent,
    config: &PeerConfigRow,
    place: &Place,
    plan: &mut Plan,
) -> Result<Option<IpAddr>, ()> {
    let who = format!("instance {} peer {}", speaker.instance.name, place.name);
    if let Some(local) = speaker.change.and_then(|change| change.local_addresses.get(&peer.name)).copied() {
        if local.is_ipv4() == place.address.is_ipv4() {
            return Ok(Some(local));
        }
        let text =
            format!("{who}: localAddress {local} is not of the family of {}; correct it", place.address);
        plan.complain((OVERRIDE, &inputs.node.name), ConditionType::ReconcileError, text);
        return Err(());
    }
    let Some(interface) = config.source_interface.as_ref() else { return Ok(None) };
    if is_link_local(place.address) || place.unnumbered {
        // Such a session is bound to its interface; an address of another one could not be used on it.
        return Ok(None);
    }
    let found = inputs.network.source_address(interface, place.address.is_ipv4());
    if found.is_none() {
        let family = if place.address.is_ipv4() { "IPv4" } else { "IPv6" };
        let text = format!(
            "{who}: transport.sourceInterface {interface} has no {family} address of use, so no session is opened; \
             give it one, or set localAddress in a CiliumBGPNodeConfigOverride"
        );
        plan.complain((PEER_CONFIG, &config.name), ConditionType::ReconcileError, text);
        return Err(());
    }
    Ok(found)
}

/// The TCP MD5 key. A missing one is an empty one, as the API has it: a peer that wants a key refuses the session.
fn password(inputs: &Inputs<'_>, config: &PeerConfigRow, who: &str, plan: &mut Plan) -> Option<Password> {
    let name = config.auth_secret.as_ref()?;
    let namespace = inputs.secrets_namespace;
    let secret = inputs.secrets.iter().find(|row| &*row.namespace == namespace && row.name == *name);
    let text = match secret.map(|row| &row.password) {
        Some(Some(password)) => return Some(password.clone()),
        Some(None) => {
            format!("{who}: Secret {namespace}/{name} has no key `password`; add it (1 to 80 bytes)")
        }
        None => format!("{who}: there is no Secret {namespace}/{name}; create it with the key `password`"),
    };
    let text = format!("{text}; until then the session has no TCP MD5 signature");
    plan.complain((PEER_CONFIG, &config.name), ConditionType::MissingAuthSecret, text);
    None
}

fn families(config: &PeerConfigRow, who: &str, plan: &mut Plan) -> Vec<(Family, Option<LabelSelector>)> {
    let mut out = Vec::new();
    for FamilyIntent { family, text, advertisements } in &config.families {
        match family {
            Some(family) => out.push((*family, advertisements.clone())),
            None => {
                let text = format!(
                    "{who}: family {text} is not served, only ipv4/unicast and ipv6/unicast are; remove it"
                );
                plan.complain((PEER_CONFIG, &config.name), ConditionType::ReconcileError, text);
            }
        }
    }
    out
}

/// What the policy for this peer says; that of the first by name if several are for it.
fn tuning(inputs: &Inputs<'_>, speaker: &Speaker<'_>, peer: &PeerIntent, plan: &mut Plan) -> PeerTuning {
    let instance = &speaker.instance.name;
    let mut matching: Vec<_> = inputs
        .policies
        .iter()
        .filter(|policy| policy.node_selector.matches_texts(&inputs.node.labels))
        .filter(|policy| {
            policy.peers.iter().any(|one| one.fits(instance, &peer.name, peer.peer_config.as_deref()))
        })
        .collect();
    matching.sort_by(|a, b| a.name.cmp(&b.name));
    let Some((first, others)) = matching.split_first() else { return PeerTuning::default() };
    for other in others {
        let text = format!(
            "instance {instance} peer {}: {} is for it too and is used; narrow one",
            peer.name, first.name
        );
        plan.complain((PEER_POLICY, &other.name), ConditionType::ReconcileError, text);
    }
    PeerTuning { policy: Some(first.name.clone()), ..first.tuning.clone() }
}
