//! UPDATEs out: one attribute set with as many prefixes as a message holds, flags canonical, attributes in type order.

use std::net::IpAddr;

use ipnet::IpNet;

use super::attributes::{Attributes, Origin};
use super::cursor::{len8, len16};
use super::walk::{FLAG_EXTENDED, flags_of, kind};
use super::{HEADER_LEN, MESSAGE_MAX, MessageType, frame, nlri};
use crate::family::{Family, NextHop};

/// Fixed bytes of an UPDATE: header and the two length fields.
const FIXED: usize = HEADER_LEN + 4;
/// AFI, SAFI, next hop length, reserved.
const MP_REACH_FIXED: usize = 5;
/// Flags, code, two-octet length.
const EXTENDED_HEAD: usize = 4;

/// What the session agreed on, needed to write an UPDATE.
#[derive(Clone, Copy, Debug)]
pub struct EncodeContext {
    /// Both sides use four-octet AS numbers in AS_PATH.
    pub four_octet_as: bool,
}

/// Appends the UPDATEs that announce `prefixes`, all of `family`.
///
/// # Errors
/// `Err(bytes)` when the attributes alone, of that many bytes, leave no room for a prefix; nothing is appended then.
pub fn announce(
    attributes: &Attributes,
    next_hop: &NextHop,
    family: Family,
    prefixes: &[IpNet],
    context: EncodeContext,
    out: &mut Vec<u8>,
) -> Result<(), usize> {
    let mut block = Vec::new();
    encode_attributes(attributes, next_hop, family, context, &mut block);
    let hop = mp_next_hop(next_hop);
    let overhead = match family {
        Family::Ipv4Unicast => FIXED + block.len(),
        Family::Ipv6Unicast => FIXED + block.len() + EXTENDED_HEAD + MP_REACH_FIXED + hop.len(),
    };
    let room = MESSAGE_MAX.saturating_sub(overhead);
    if room < 17 {
        return Err(block.len());
    }
    for packed in packs(prefixes, room) {
        frame(MessageType::Update, out, |out| match family {
            Family::Ipv4Unicast => {
                out.extend([0, 0]);
                out.extend(len16(block.len()).to_be_bytes());
                out.extend(&block);
                packed.iter().for_each(|prefix| nlri::encode(prefix, out));
            }
            Family::Ipv6Unicast => {
                let mut value = Vec::with_capacity(room);
                value.extend(family.afi().to_be_bytes());
                value.extend([family.safi(), len8(hop.len())]);
                value.extend(&hop);
                value.push(0);
                packed.iter().for_each(|prefix| nlri::encode(prefix, &mut value));
                out.extend([0, 0]);
                out.extend(len16(EXTENDED_HEAD + value.len() + block.len()).to_be_bytes());
                extended(kind::MP_REACH, &value, out);
                out.extend(&block);
            }
        });
    }
    Ok(())
}

/// Appends the UPDATEs that withdraw `prefixes`, all of `family`.
pub fn withdraw(family: Family, prefixes: &[IpNet], out: &mut Vec<u8>) {
    for packed in packs(prefixes, MESSAGE_MAX - FIXED - EXTENDED_HEAD - 3) {
        frame(MessageType::Update, out, |out| {
            let mut routes = Vec::new();
            packed.iter().for_each(|prefix| nlri::encode(prefix, &mut routes));
            unreach(family, &routes, out);
        });
    }
}

/// Appends the End-of-RIB marker of a family (RFC 4724 section 2).
pub fn end_of_rib(family: Family, out: &mut Vec<u8>) {
    frame(MessageType::Update, out, |out| unreach(family, &[], out));
}

fn unreach(family: Family, routes: &[u8], out: &mut Vec<u8>) {
    match family {
        Family::Ipv4Unicast => {
            out.extend(len16(routes.len()).to_be_bytes());
            out.extend(routes);
            out.extend([0, 0]);
        }
        Family::Ipv6Unicast => {
            let mut value = Vec::with_capacity(3 + routes.len());
            value.extend(family.afi().to_be_bytes());
            value.push(family.safi());
            value.extend(routes);
            out.extend([0, 0]);
            out.extend(len16(EXTENDED_HEAD + value.len()).to_be_bytes());
            extended(kind::MP_UNREACH, &value, out);
        }
    }
}

/// Cuts a list of prefixes into runs that fit `room` bytes each.
fn packs(prefixes: &[IpNet], room: usize) -> impl Iterator<Item = &[IpNet]> {
    let mut rest = prefixes;
    std::iter::from_fn(move || {
        let mut used = 0;
        let fitting = rest
            .iter()
            .take_while(|prefix| {
                used += nlri::encoded_len(prefix);
                used <= room
            })
            .count();
        let (run, later) = rest.split_at_checked(fitting)?;
        rest = later;
        (!run.is_empty()).then_some(run)
    })
}

fn mp_next_hop(next_hop: &NextHop) -> Vec<u8> {
    let mut out = Vec::with_capacity(32);
    match next_hop.address {
        IpAddr::V4(address) => out.extend(address.octets()),
        IpAddr::V6(address) => out.extend(address.octets()),
    }
    if let Some(link_local) = next_hop.link_local {
        out.extend(link_local.octets());
    }
    out
}

fn attribute(code: u8, value: &[u8], out: &mut Vec<u8>) {
    if value.len() > usize::from(u8::MAX) {
        return extended(code, value, out);
    }
    out.extend([flags_of(code).unwrap_or_default(), code, len8(value.len())]);
    out.extend(value);
}

fn extended(code: u8, value: &[u8], out: &mut Vec<u8>) {
    out.extend([flags_of(code).unwrap_or_default() | FLAG_EXTENDED, code]);
    out.extend(len16(value.len()).to_be_bytes());
    out.extend(value);
}

fn encode_attributes(
    attributes: &Attributes,
    next_hop: &NextHop,
    family: Family,
    context: EncodeContext,
    out: &mut Vec<u8>,
) {
    let origin = match attributes.origin {
        Origin::Igp => 0,
        Origin::Egp => 1,
        Origin::Incomplete => 2,
    };
    attribute(kind::ORIGIN, &[origin], out);
    let mut path = Vec::new();
    attributes.as_path.encode(context.four_octet_as, &mut path);
    attribute(kind::AS_PATH, &path, out);
    if let (Family::Ipv4Unicast, IpAddr::V4(address)) = (family, next_hop.address) {
        attribute(kind::NEXT_HOP, &address.octets(), out);
    }
    if let Some(med) = attributes.med {
        attribute(kind::MED, &med.to_be_bytes(), out);
    }
    if let Some(preference) = attributes.local_pref {
        attribute(kind::LOCAL_PREF, &preference.to_be_bytes(), out);
    }
    if attributes.atomic_aggregate {
        attribute(kind::ATOMIC_AGGREGATE, &[], out);
    }
    encode_aggregator(attributes, context, out);
    encode_lists(attributes, out);
    encode_as4(attributes, context, out);
    encode_tail(attributes, out);
}

fn encode_aggregator(attributes: &Attributes, context: EncodeContext, out: &mut Vec<u8>) {
    let Some(aggregator) = attributes.aggregator else { return };
    let mut value = Vec::new();
    if context.four_octet_as {
        value.extend(aggregator.asn.to_be_bytes());
    } else {
        value.extend(u16::try_from(aggregator.asn).unwrap_or(super::AS_TRANS).to_be_bytes());
    }
    value.extend(aggregator.address.octets());
    attribute(kind::AGGREGATOR, &value, out);
}

fn encode_lists(attributes: &Attributes, out: &mut Vec<u8>) {
    let list = |code, value: Vec<u8>, out: &mut Vec<u8>| {
        if !value.is_empty() {
            attribute(code, &value, out);
        }
    };
    list(
        kind::COMMUNITIES,
        attributes.communities.iter().flat_map(|community| community.0.to_be_bytes()).collect(),
        out,
    );
    if let Some(originator) = attributes.originator_id {
        attribute(kind::ORIGINATOR_ID, &originator.octets(), out);
    }
    list(
        kind::CLUSTER_LIST,
        attributes.cluster_list.iter().flat_map(|cluster| cluster.octets()).collect(),
        out,
    );
    list(
        kind::EXTENDED_COMMUNITIES,
        attributes.extended_communities.iter().flat_map(|community| community.to_be_bytes()).collect(),
        out,
    );
}

/// For an old speaker the true numbers travel beside AS_TRANS (RFC 6793 section 4.2.2).
fn encode_as4(attributes: &Attributes, context: EncodeContext, out: &mut Vec<u8>) {
    if context.four_octet_as {
        return;
    }
    if attributes.as_path.needs_four_octets() {
        let mut value = Vec::new();
        attributes.as_path.encode(true, &mut value);
        attribute(kind::AS4_PATH, &value, out);
    }
    if let Some(aggregator) = attributes.aggregator.filter(|found| found.asn > u32::from(u16::MAX)) {
        let mut value = aggregator.asn.to_be_bytes().to_vec();
        value.extend(aggregator.address.octets());
        attribute(kind::AS4_AGGREGATOR, &value, out);
    }
}

fn encode_tail(attributes: &Attributes, out: &mut Vec<u8>) {
    let mut large_sent = attributes.large_communities.is_empty();
    let mut large = |out: &mut Vec<u8>| {
        if !large_sent {
            large_sent = true;
            let value: Vec<u8> = attributes
                .large_communities
                .iter()
                .flat_map(|community| [community.global, community.local1, community.local2])
                .flat_map(u32::to_be_bytes)
                .collect();
            attribute(kind::LARGE_COMMUNITIES, &value, out);
        }
    };
    for raw in &attributes.unknown {
        if raw.code > kind::LARGE_COMMUNITIES {
            large(out);
        }
        let value = raw.value.get(..raw.value.len().min(MESSAGE_MAX)).unwrap_or_default();
        if value.len() > usize::from(u8::MAX) {
            out.extend([raw.flags | FLAG_EXTENDED, raw.code]);
            out.extend(len16(value.len()).to_be_bytes());
        } else {
            out.extend([raw.flags, raw.code, len8(value.len())]);
        }
        out.extend(value);
    }
    large(out);
}
