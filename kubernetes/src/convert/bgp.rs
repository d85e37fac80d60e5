//! The `cilium.io` BGP kinds.

use super::{address, labels, number, optional_selector, port, selector, word};
use crate::crd;
use crate::object::{Object, ObjectId};
use crate::problem::{Issue, shorten};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tombolo_base::source::Source;
use tombolo_topology::bgp::Family;
use tombolo_topology::bgp::intent::{
    AdvertIntent, AdvertKind, AdvertisementRow, ClusterConfigRow, FamilyIntent, InstanceIntent,
    InstanceOverride, OverrideRow, PeerConfigRow, PeerIntent, ServiceAddress,
};

const MAX_ASN: i64 = u32::MAX as i64;
/// `bgpInstances` that the API allows.
const MAX_INSTANCES: usize = 16;
/// Peers of one instance and entries of one advertisement that are read.
const MAX_ENTRIES: usize = 1024;

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

fn at_most<T>(at: &str, list: &[T], most: usize) -> Result<(), Issue> {
    if list.len() <= most {
        return Ok(());
    }
    Err(Issue::new(at, format!("{} entries", list.len()), format!("use at most {most}")))
}

fn opt<T>(value: Option<i64>, read: impl FnOnce(i64) -> Result<T, Issue>) -> Result<Option<T>, Issue> {
    value.map(read).transpose()
}

fn peer(at: &str, entry: crd::Peer, seen: &mut BTreeSet<Arc<str>>) -> Result<PeerIntent, Issue> {
    let name = name(at, &entry.name, seen)?;
    let (mut ip, mut zone) = (None, None);
    if let Some(text) = &entry.peer_address {
        let (host, scope) =
            text.split_once('%').map_or((text.as_str(), None), |(host, zone)| (host, Some(zone)));
        ip = Some(address(format!("{at}.peerAddress"), host)?);
        zone = scope.map(Into::into);
    }
    let mode = entry.auto_discovery.map(|discovery| {
        let modes = [("DefaultGateway", "defaultGateway"), ("Unnumbered", "unnumbered")];
        let block = word(format!("{at}.autoDiscovery.mode"), &discovery.mode, &modes)?;
        let given = if block == "unnumbered" { &discovery.unnumbered } else { &discovery.default_gateway };
        if given.is_null() {
            let reason = format!("mode {} needs the block {block}", discovery.mode);
            return Err(Issue::new(format!("{at}.autoDiscovery"), reason, "add the block"));
        }
        Ok(Arc::from(discovery.mode))
    });
    let auto_discovery = mode.transpose()?;
    if ip.is_none() && auto_discovery.is_none() {
        let remedy = "give the peer's address, or autoDiscovery";
        return Err(Issue::new(format!("{at}.peerAddress"), "the peer has no address", remedy));
    }
    Ok(PeerIntent {
        name,
        address: ip,
        zone,
        asn: number(format!("{at}.peerASN"), entry.peer_asn.unwrap_or(0), 0, MAX_ASN)?,
        auto_discovery,
        peer_config: entry.peer_config_ref.map(|reference| reference.name.into()),
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
        row.source_interface = transport.source_interface.map(Into::into);
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

/// RFC 1997 and its registry of well-known communities, as far as the API names them.
const WELL_KNOWN: [(&str, u32); 14] = [
    ("internet", 0),
    ("planned-shut", 0xffff_0000),
    ("accept-own", 0xffff_0001),
    ("route-filter-translated-v4", 0xffff_0002),
    ("route-filter-v4", 0xffff_0003),
    ("route-filter-translated-v6", 0xffff_0004),
    ("route-filter-v6", 0xffff_0005),
    ("llgr-stale", 0xffff_0006),
    ("no-llgr", 0xffff_0007),
    ("blackhole", 0xffff_029a),
    ("no-export", 0xffff_ff01),
    ("no-advertise", 0xffff_ff02),
    ("no-export-subconfed", 0xffff_ff03),
    ("no-peer", 0xffff_ff04),
];

fn standard(at: String, text: &str) -> Result<u32, Issue> {
    let pair = || {
        let (high, low) = text.split_once(':')?;
        Some(u32::from(high.parse::<u16>().ok()?) << 16 | u32::from(low.parse::<u16>().ok()?))
    };
    text.parse().ok().or_else(pair).ok_or_else(|| {
        let reason = format!("{:?} is no community", shorten(text));
        Issue::new(at, reason, "write AS:VALUE with two numbers up to 65535, or one number of 32 bits")
    })
}

/// RFC 8092.
fn large(at: String, text: &str) -> Result<(u32, u32, u32), Issue> {
    let read = || {
        let mut parts = text.split(':').map(|part| part.parse().ok());
        let out = (parts.next()??, parts.next()??, parts.next()??);
        parts.next().is_none().then_some(out)
    };
    read().ok_or_else(|| {
        let reason = format!("{:?} is no large community", shorten(text));
        Issue::new(at, reason, "write three numbers of 32 bits, like 64512:1:2")
    })
}

type CommunitySets = (BTreeSet<u32>, BTreeSet<(u32, u32, u32)>);

fn communities(at: &str, entry: Option<crd::Communities>) -> Result<CommunitySets, Issue> {
    let (mut all, mut larges) = (BTreeSet::new(), BTreeSet::new());
    let Some(entry) = entry else { return Ok((all, larges)) };
    for (position, text) in entry.standard.iter().enumerate() {
        all.insert(standard(format!("{at}.standard[{position}]"), text)?);
    }
    for (position, text) in entry.well_known.iter().enumerate() {
        all.insert(word(format!("{at}.wellKnown[{position}]"), text, &WELL_KNOWN)?);
    }
    for (position, text) in entry.large.iter().enumerate() {
        larges.insert(large(format!("{at}.large[{position}]"), text)?);
    }
    Ok((all, larges))
}

fn advertised_service(at: &str, entry: Option<crd::AdvertisedService>) -> Result<AdvertKind, Issue> {
    const KINDS: [(&str, ServiceAddress); 3] = [
        ("LoadBalancerIP", ServiceAddress::LoadBalancerIP),
        ("ClusterIP", ServiceAddress::ClusterIP),
        ("ExternalIP", ServiceAddress::ExternalIP),
    ];
    let at = format!("{at}.service");
    let entry = entry.filter(|entry| !entry.addresses.is_empty()).ok_or_else(|| {
        let remedy = "list LoadBalancerIP, ClusterIP or ExternalIP";
        Issue::new(format!("{at}.addresses"), "type Service without addresses", remedy)
    })?;
    let mut addresses = BTreeSet::new();
    for (position, text) in entry.addresses.iter().enumerate() {
        addresses.insert(word(format!("{at}.addresses[{position}]"), text, &KINDS)?);
    }
    let length = |key: &str, value, high| {
        opt(value, |value| number(format!("{at}.aggregationLength{key}"), value, 0, high))
    };
    Ok(AdvertKind::Service {
        addresses,
        aggregation_ipv4: length("IPv4", entry.aggregation_length_ipv4, 31)?,
        aggregation_ipv6: length("IPv6", entry.aggregation_length_ipv6, 127)?,
    })
}

fn advert(at: &str, entry: crd::Advertisement) -> Result<AdvertIntent, Issue> {
    let types = [("PodCIDR", 0), ("Service", 1), ("CiliumPodIPPool", 2), ("Interface", 2)];
    let kind = match word(format!("{at}.advertisementType"), &entry.advertisement_type, &types)? {
        0 => AdvertKind::PodCidr,
        1 => advertised_service(at, entry.service)?,
        _ => AdvertKind::Unsupported(entry.advertisement_type.into()),
    };
    let (wanted, preference) = entry
        .attributes
        .map_or((None, None), |attributes| (attributes.communities, attributes.local_preference));
    let (standard, large) = communities(&format!("{at}.attributes.communities"), wanted)?;
    Ok(AdvertIntent {
        kind,
        selector: optional_selector(&format!("{at}.selector"), entry.selector)?,
        communities: standard,
        large_communities: large,
        local_preference: opt(preference, |value| {
            number(format!("{at}.attributes.localPreference"), value, 0, MAX_ASN)
        })?,
    })
}

pub(super) fn advertisement(
    id: &ObjectId,
    object: crd::Object<crd::AdvertisementSpec>,
) -> Result<Object, Issue> {
    at_most("spec.advertisements", &object.spec.advertisements, MAX_ENTRIES)?;
    let mut entries = Vec::new();
    for (position, entry) in object.spec.advertisements.into_iter().enumerate() {
        entries.push(advert(&format!("spec.advertisements[{position}]"), entry)?);
    }
    Ok(Object::Advertisement(Box::new(AdvertisementRow {
        source: Source::Manifests,
        name: id.name.clone(),
        labels: labels(object.metadata.labels),
        entries,
    })))
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
