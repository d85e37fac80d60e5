//! Adverts: what a session's advertisements name on this node now.

use super::{AdvertisedService, Inputs, LOAD_BALANCER_CLASS, Plan};
use crate::bgp::intent::{AdvertIntent, AdvertKind, ServiceAddress};
use crate::bgp::network::is_global;
use crate::bgp::{AdvertOrigin, AdvertRow, ConditionType, Family, PeerRow};
use crate::selector::LabelSelector;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tombolo_base::prefix::Prefix;
use tombolo_base::source::Source;

const ADVERTISEMENT: &str = "CiliumBGPAdvertisement";

/// Adverts by instance, peer and prefix.
pub(super) type Adverts = BTreeMap<(Arc<str>, Arc<str>, Prefix), AdvertRow>;

/// Adds what is advertised to a peer.
pub(super) fn of_peer(
    inputs: &Inputs<'_>,
    peer: &PeerRow,
    families: &[(Family, LabelSelector)],
    plan: &mut Plan,
    out: &mut Adverts,
) {
    for (family, selector) in families {
        for advertisement in inputs.advertisements.iter().filter(|row| selector.matches_map(&row.labels)) {
            for entry in &advertisement.entries {
                if let AdvertKind::Interface { name } = &entry.kind
                    && !inputs.network.interfaces.contains_key(name)
                {
                    let text = format!("interface {name}: this node has none of that name");
                    plan.complain((ADVERTISEMENT, &advertisement.name), ConditionType::ReconcileError, text);
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
        AdvertKind::PodCidr => {
            inputs.node.pod_cidrs.iter().map(|prefix| (*prefix, AdvertOrigin::PodCidr)).collect()
        }
        AdvertKind::PodIpPool => pool_prefixes(inputs, entry.selector.as_ref()),
        AdvertKind::Interface { name } => interface_prefixes(inputs, name),
        AdvertKind::Service { addresses, aggregation_ipv4, aggregation_ipv6 } => {
            let Some(selector) = &entry.selector else { return Vec::new() };
            let lengths = (*aggregation_ipv4, *aggregation_ipv6);
            let selected = inputs.services.iter().filter(|service| selects(selector, service));
            selected.flat_map(|service| service_prefixes(service, addresses, lengths)).collect()
        }
    }
}

/// What the node has of the selected pools.
fn pool_prefixes(inputs: &Inputs<'_>, selector: Option<&LabelSelector>) -> Vec<(Prefix, AdvertOrigin)> {
    let Some(selector) = selector else { return Vec::new() };
    let mut out = Vec::new();
    let selected = inputs.pools.iter().filter(|pool| {
        selector.matches(|key| match key {
            "io.cilium.podippool.name" => Some(pool.name.as_ref()),
            // Pools are of the whole cluster.
            "io.cilium.podippool.namespace" => Some(""),
            other => pool.labels.get(other).map(AsRef::as_ref),
        })
    });
    for pool in selected {
        let owned =
            inputs.node.pod_cidrs.iter().filter(|prefix| pool.cidrs.iter().any(|cidr| cidr.covers(prefix)));
        out.extend(owned.map(|prefix| (*prefix, AdvertOrigin::PodIpPool { name: pool.name.clone() })));
    }
    out
}

/// Every address of an interface that is up and that others can use.
fn interface_prefixes(inputs: &Inputs<'_>, name: &Arc<str>) -> Vec<(Prefix, AdvertOrigin)> {
    let Some(interface) = inputs.network.interfaces.get(name).filter(|interface| interface.running) else {
        return Vec::new();
    };
    let usable = interface.addresses.iter().filter(|address| is_global(address));
    usable.map(|address| (Prefix::host(*address), AdvertOrigin::Interface { name: name.clone() })).collect()
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
