//! The `cilium.io` BGP kinds.

use super::{address, number, optional_selector, port, selector, word};
use crate::crd;
use crate::object::{Object, ObjectId};
use crate::problem::{Issue, shorten};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_base::source::Source;
use tombolo_topology::bgp::Family;
use tombolo_topology::bgp::intent::{
    ClusterConfigRow, Discovery, FamilyIntent, InstanceIntent, InstanceOverride, OverrideRow, PeerConfigRow,
    PeerIntent,
};

pub(super) const MAX_ASN: i64 = u32::MAX as i64;
/// `bgpInstances` that the API allows.
const MAX_INSTANCES: usize = 16;
/// Peers of one instance and entries of one advertisement that are read.
pub(super) const MAX_ENTRIES: usize = 1024;

fn name(at: &str, text: &str, seen: &mut BTreeSet<Arc<str>>) -> Result<Arc<str>, Issue> {
    let at = format!("{at}.name");
    if text.is_empty() || text.len() > 255 {
        return Err(Issue::new(at, "the name needs 1 to 255 characters", "name it"));
    }
    let name: Arc<str> = text.into();
    if !seen.insert(name.clone()) {
        return Err(Issue::new(at, format!("{text:?} stands twice"), "names must be unique in their list"));
    }
    Ok(name)
}

pub(super) fn at_most<T>(at: &str, list: &[T], most: usize) -> Result<(), Issue> {
    if list.len() <= most {
        return Ok(());
    }
    Err(Issue::new(at, format!("{} entries", list.len()), format!("use at most {most}")))
}

pub(super) fn opt<T>(
    value: Option<i64>,
    read: impl FnOnce(i64) -> Result<T, Issue>,
) -> Result<Option<T>, Issue> {
    value.map(read).transpose()
}

/// The name of an interface as the kernel takes it (IFNAMSIZ).
pub(super) fn interface(at: String, text: &str) -> Result<Arc<str>, Issue> {
    let fits = (1..=15).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/')
        && !matches!(text, "." | "..");
    if fits {
        return Ok(text.into());
    }
    let reason = format!("{:?} is no interface name", shorten(text));
    Err(Issue::new(at, reason, "write it as `ip link` shows it, 1 to 15 characters"))
}

fn discovery(at: &str, entry: crd::AutoDiscovery) -> Result<Discovery, Issue> {
    let missing = |block: &str| {
        let reason = format!("mode {} needs the block {block}", entry.mode);
        Issue::new(at, reason, "add the block")
    };
    let gateway =
        word(format!("{at}.mode"), &entry.mode, &[("DefaultGateway", true), ("Unnumbered", false)])?;
    if gateway {
        let block = entry.default_gateway.as_ref().ok_or_else(|| missing("defaultGateway"))?;
        let at = format!("{at}.defaultGateway.addressFamily");
        let ipv4 = word(at, &block.address_family, &[("ipv4", true), ("ipv6", false)])?;
        return Ok(Discovery::DefaultGateway { ipv4 });
    }
    let block = entry.unnumbered.as_ref().ok_or_else(|| missing("unnumbered"))?;
    Ok(Discovery::Unnumbered {
        interface: interface(format!("{at}.unnumbered.interface"), &block.interface)?,
    })
}

/// An address, with the interface of a link-local one behind a `%`.
fn peer_address(at: &str, text: &str) -> Result<(IpAddr, Option<Arc<str>>), Issue> {
    let (host, zone) = text.split_once('%').map_or((text, None), |(host, zone)| (host, Some(zone)));
    let ip = address(at, host)?;
    if ip.is_unspecified() || ip.is_multicast() {
        return Err(Issue::new(at, format!("{ip} is no host's address"), "give the peer's own address"));
    }
    let link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
    if zone.is_some() && !link_local {
        let remedy = "only link-local addresses (fe80::/10) have one; leave %... out";
        return Err(Issue::new(at, format!("{ip} with an interface"), remedy));
    }
    Ok((ip, zone.map(|zone| interface(at.to_owned(), zone)).transpose()?))
}

fn peer(at: &str, entry: crd::Peer, seen: &mut BTreeSet<Arc<str>>) -> Result<PeerIntent, Issue> {
    let name = name(at, &entry.name, seen)?;
    let place = entry.peer_address.as_deref().map(|text| peer_address(&format!("{at}.peerAddress"), text));
    let (ip, zone) = place.transpose()?.map_or((None, None), |(ip, zone)| (Some(ip), zone));
    let discovery =
        entry.auto_discovery.map(|block| discovery(&format!("{at}.autoDiscovery"), block)).transpose()?;
    if ip.is_none() && discovery.is_none() {
        let remedy = "give the peer's address, or autoDiscovery";
        return Err(Issue::new(format!("{at}.peerAddress"), "the peer has no address", remedy));
    }
    let peer_config = entry.peer_config_ref.map(|reference| reference.name);
    if peer_config.as_ref().is_some_and(String::is_empty) {
        let at = format!("{at}.peerConfigRef.name");
        return Err(Issue::new(
            at,
            "the name is empty",
            "name a CiliumBGPPeerConfig, or leave peerConfigRef out",
        ));
    }
    Ok(PeerIntent {
        name,
        address: ip,
        zone,
        asn: number(format!("{at}.peerASN"), entry.peer_asn.unwrap_or(0), 0, MAX_ASN)?,
        discovery,
        peer_config: peer_config.map(Into::into),
    })
}

pub(super) fn cluster_config(id: &ObjectId, spec: crd::ClusterConfigSpec) -> Result<Object, Issue> {
    at_most("spec.bgpInstances", &spec.bgp_instances, MAX_INSTANCES)?;
    let (mut instances, mut names) = (Vec::new(), BTreeSet::new());
    for (position, entry) in spec.bgp_instances.into_iter().enumerate() {
        let at = format!("spec.bgpInstances[{position}]");
        at_most(&format!("{at}.peers"), &entry.peers, MAX_ENTRIES)?;
        let (mut peers, mut seen) = (Vec::new(), BTreeSet::new());
        for (place, one) in entry.peers.into_iter().enumerate() {
            peers.push(peer(&format!("{at}.peers[{place}]"), one, &mut seen)?);
        }
        instances.push(InstanceIntent {
            name: name(&at, &entry.name, &mut names)?,
            local_asn: opt(entry.local_asn, |asn| number(format!("{at}.localASN"), asn, 1, MAX_ASN))?,
            local_port: opt(entry.local_port, |number| port(format!("{at}.localPort"), number))?,
            peers,
        });
    }
    Ok(Object::ClusterConfig(Box::new(ClusterConfigRow {
        source: Source::Manifests,
        name: id.name.clone(),
        node_selector: selector("spec.nodeSelector", spec.node_selector.unwrap_or_default())?,
        instances,
    })))
}

const AFIS: [(&str, &str); 5] =
    [("ipv4", "ipv4"), ("ipv6", "ipv6"), ("l2vpn", "l2vpn"), ("ls", "ls"), ("opaque", "opaque")];
const SAFIS: [(&str, &str); 15] = [
    ("unicast", "unicast"),
    ("multicast", "multicast"),
    ("mpls_label", "mpls_label"),
    ("encapsulation", "encapsulation"),
    ("vpls", "vpls"),
    ("evpn", "evpn"),
    ("ls", "ls"),
    ("sr_policy", "sr_policy"),
    ("mup", "mup"),
    ("mpls_vpn", "mpls_vpn"),
    ("mpls_vpn_multicast", "mpls_vpn_multicast"),
    ("route_target_constraints", "route_target_constraints"),
    ("flowspec_unicast", "flowspec_unicast"),
    ("flowspec_vpn", "flowspec_vpn"),
    ("key_value", "key_value"),
];

fn family(position: usize, entry: crd::Family) -> Result<FamilyIntent, Issue> {
    let at = format!("spec.families[{position}]");
    let afi = word(format!("{at}.afi"), &entry.afi, &AFIS)?;
    let safi = word(format!("{at}.safi"), &entry.safi, &SAFIS)?;
    Ok(FamilyIntent {
        family: match (afi, safi) {
            ("ipv4", "unicast") => Some(Family::Ipv4Unicast),
            ("ipv6", "unicast") => Some(Family::Ipv6Unicast),
            _ => None,
        },
        text: format!("{afi}/{safi}").into(),
        advertisements: optional_selector(&format!("{at}.advertisements"), entry.advertisements)?,
    })
}

pub(super) fn peer_config(id: &ObjectId, spec: crd::PeerConfigSpec) -> Result<Object, Issue> {
    let mut row = PeerConfigRow::defaults(Source::Manifests, id.name.clone());
    if let Some(transport) = spec.transport {
        if let Some(number) = transport.peer_port {
            row.peer_port = port("spec.transport.peerPort", number)?;
        }
        let named = transport.source_interface.as_deref().filter(|name| !name.is_empty());
        row.source_interface =
            named.map(|name| interface("spec.transport.sourceInterface".to_owned(), name)).transpose()?;
    }
    if let Some(timers) = spec.timers {
        if let Some(secs) = timers.connect_retry_time_seconds {
            row.connect_retry_secs =
                number("spec.timers.connectRetryTimeSeconds", secs, 1, i64::from(i32::MAX))?;
        }
        if let Some(secs) = timers.hold_time_seconds {
            row.hold_time_secs = number("spec.timers.holdTimeSeconds", secs, 3, 65535)?;
        }
        if let Some(secs) = timers.keep_alive_time_seconds {
            row.keepalive_secs = number("spec.timers.keepAliveTimeSeconds", secs, 1, 65535)?;
        }
    }
    if row.keepalive_secs > row.hold_time_secs {
        let reason =
            format!("{} s is longer than the hold time of {} s", row.keepalive_secs, row.hold_time_secs);
        return Err(Issue::new(
            "spec.timers.keepAliveTimeSeconds",
            reason,
            "use at most the hold time; a third of it is usual",
        ));
    }
    if let Some(restart) = spec.graceful_restart.filter(|restart| restart.enabled) {
        let secs = restart.restart_time_seconds.unwrap_or(120);
        row.graceful_restart_secs = Some(number("spec.gracefulRestart.restartTimeSeconds", secs, 1, 4095)?);
    }
    row.ebgp_multihop = number("spec.ebgpMultihop", spec.ebgp_multihop.unwrap_or(1), 1, 255)?;
    row.auth_secret = spec.auth_secret_ref.filter(|secret| !secret.is_empty()).map(Into::into);
    if let Some(families) = spec.families.filter(|families| !families.is_empty()) {
        at_most("spec.families", &families, MAX_ENTRIES)?;
        row.families = families
            .into_iter()
            .enumerate()
            .map(|(position, entry)| family(position, entry))
            .collect::<Result<_, _>>()?;
    }
    Ok(Object::PeerConfig(Box::new(row)))
}

pub(super) fn node_override(id: &ObjectId, spec: crd::OverrideSpec) -> Result<Object, Issue> {
    at_most("spec.bgpInstances", &spec.bgp_instances, MAX_INSTANCES)?;
    let (mut instances, mut names) = (Vec::new(), BTreeSet::new());
    for (position, entry) in spec.bgp_instances.into_iter().enumerate() {
        let at = format!("spec.bgpInstances[{position}]");
        let router_id = entry.router_id.map(|text| {
            let read = text.parse().ok().filter(|id: &std::net::Ipv4Addr| !id.is_unspecified());
            read.ok_or_else(|| {
                let reason = format!("{:?} is no router id", shorten(&text));
                Issue::new(format!("{at}.routerID"), reason, "write it like an IPv4 address, not 0.0.0.0")
            })
        });
        let (mut local_addresses, mut seen) = (BTreeMap::new(), BTreeSet::new());
        for (place, peer) in entry.peers.iter().enumerate().take(MAX_ENTRIES) {
            let at = format!("{at}.peers[{place}]");
            let peer_name = name(&at, &peer.name, &mut seen)?;
            if let Some(text) = &peer.local_address {
                local_addresses.insert(peer_name, address(format!("{at}.localAddress"), text)?);
            }
        }
        instances.push(InstanceOverride {
            name: name(&at, &entry.name, &mut names)?,
            router_id: router_id.transpose()?,
            local_port: opt(entry.local_port, |number| port(format!("{at}.localPort"), number))?,
            local_asn: opt(entry.local_asn, |asn| number(format!("{at}.localASN"), asn, 1, MAX_ASN))?,
            local_addresses,
        });
    }
    Ok(Object::Override(Box::new(OverrideRow {
        source: Source::Manifests,
        name: id.name.clone(),
        instances,
    })))
}
