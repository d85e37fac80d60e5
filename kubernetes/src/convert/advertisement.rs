//! CiliumBGPAdvertisement.

use super::bgp::{MAX_ASN, MAX_ENTRIES, at_most, interface, opt};
use super::{labels, number, optional_selector, word};
use crate::crd;
use crate::object::{Object, ObjectId};
use crate::problem::{Issue, shorten};
use std::collections::BTreeSet;
use tombolo_base::source::Source;
use tombolo_topology::bgp::intent::{AdvertIntent, AdvertKind, AdvertisementRow, ServiceAddress};

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

/// What an entry is about. As the API has it, a block must be there for its type, and only services and pools are selected.
fn advert_kind(at: &str, entry: &mut crd::Advertisement) -> Result<AdvertKind, Issue> {
    #[derive(Clone, Copy, PartialEq)]
    enum Type {
        PodCidr,
        Service,
        Pool,
        Interface,
    }
    const TYPES: [(&str, Type); 4] = [
        ("PodCIDR", Type::PodCidr),
        ("CiliumPodIPPool", Type::Pool),
        ("Service", Type::Service),
        ("Interface", Type::Interface),
    ];
    let kind = word(format!("{at}.advertisementType"), &entry.advertisement_type, &TYPES)?;
    if matches!(kind, Type::PodCidr | Type::Interface) && entry.selector.is_some() {
        let reason = format!("a selector is not allowed with {}", entry.advertisement_type);
        let remedy = "remove it; only Service and CiliumPodIPPool select";
        return Err(Issue::new(format!("{at}.selector"), reason, remedy));
    }
    match kind {
        Type::PodCidr => Ok(AdvertKind::PodCidr),
        Type::Pool => Ok(AdvertKind::PodIpPool),
        Type::Service => advertised_service(at, entry.service.take()),
        Type::Interface => {
            let block = entry.interface.take().ok_or_else(|| {
                Issue::new(
                    format!("{at}.interface"),
                    "type Interface without interface",
                    "add interface: {name: …}",
                )
            })?;
            Ok(AdvertKind::Interface { name: interface(format!("{at}.interface.name"), &block.name)? })
        }
    }
}

fn advert(at: &str, mut entry: crd::Advertisement) -> Result<AdvertIntent, Issue> {
    let kind = advert_kind(at, &mut entry)?;
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
