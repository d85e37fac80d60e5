//! UPDATEs out: one attribute set with as many prefixes as a message holds, flags canonical, attributes in type order.

use std::net::IpAddr;

use ipnet::IpNet;

use super::attributes::{Attributes, Origin};
use super::cursor::{len8, len16};
use super::nlri::Destination;
use super::walk::{FLAG_EXTENDED, FLAG_OPTIONAL, FLAG_PARTIAL, flags_of, kind};
use super::{HEADER_LEN, MESSAGE_MAX, MessageType, frame, next_hop};
use crate::family::{Family, NextHop};

/// Fixed bytes of an UPDATE: header and the two length fields.
const FIXED: usize = HEADER_LEN + 4;
/// AFI, SAFI, next hop length, reserved.
const MP_REACH_FIXED: usize = 5;
/// Flags, code, two-octet length.
const EXTENDED_HEAD: usize = 4;
/// Path identifier (RFC 7911 section 3).
const PATH_ID: usize = 4;
/// Room every message must leave: a /128 with its path identifier.
const ROUTE_MAX: usize = 17 + PATH_ID;

/// What the session agreed on, needed to write an UPDATE.
#[derive(Clone, Copy, Debug)]
pub struct EncodeContext {
    /// Both sides use four-octet AS numbers in AS_PATH.
    pub four_octet_as: bool,
    /// Path identifiers are written: the peer offered to receive them for this family, we to send (RFC 7911 section 4).
    pub add_path: bool,
    /// Longest message: 4096, or 65535 if the peer offered extended messages (RFC 8654 section 4).
    pub message_max: usize,
}

impl Default for EncodeContext {
    fn default() -> Self {
        Self { four_octet_as: true, add_path: false, message_max: MESSAGE_MAX }
    }
}

/// One set of attributes with its next hop, encoded once; routes are added to it for as many messages as they need.
#[derive(Clone, Debug)]
pub struct Announcer {
    family: Family,
    context: EncodeContext,
    block: Vec<u8>,
    /// AFI, SAFI, next hop, reserved octet: how the value of MP_REACH starts. None: the routes go into the NLRI field.
    reach: Option<Vec<u8>>,
}

impl Announcer {
    /// Encodes attributes for routes of one family.
    pub fn new(attributes: &Attributes, next_hop: &NextHop, family: Family, context: EncodeContext) -> Self {
        let plain = family == Family::Ipv4Unicast && next_hop.address.is_ipv4();
        let mut block = Vec::with_capacity(128);
        encode_attributes(attributes, plain.then_some(next_hop), context, &mut block);
        let reach = (!plain).then(|| {
            let mut hop = Vec::with_capacity(48);
            next_hop::encode(family, next_hop, &mut hop);
            let mut value = Vec::with_capacity(MP_REACH_FIXED + hop.len());
            value.extend(family.afi().to_be_bytes());
            value.extend([family.safi(), len8(hop.len())]);
            value.extend(hop);
            value.push(0);
            value
        });
        Self { family, context, block, reach }
    }

    /// The family of the routes.
    pub const fn family(&self) -> Family {
        self.family
    }

    /// The attributes as a table dump has them: MP_REACH is cut to the next hop (RFC 6396 section 4.3.4).
    pub(crate) fn table_attributes(&self) -> Vec<u8> {
        // Between AFI and SAFI, which the record says already, and the reserved octet.
        let hop = self.reach.as_ref().and_then(|reach| reach.get(3..reach.len().saturating_sub(1)));
        let mut out = Vec::with_capacity(EXTENDED_HEAD + 48 + self.block.len());
        if let Some(hop) = hop {
            out.extend([FLAG_OPTIONAL, kind::MP_REACH, len8(hop.len())]);
            out.extend(hop);
        }
        out.extend(&self.block);
        out
    }

    /// Appends the UPDATEs that announce `routes`.
    ///
    /// # Errors
    /// `Err(bytes)` when the attributes alone, of that many bytes, leave no room for a route; nothing is appended then.
    pub fn announce<D: Destination>(&self, routes: &[D], out: &mut Vec<u8>) -> Result<(), usize> {
        let head = self.reach.as_ref().map_or(0, |reach| EXTENDED_HEAD + reach.len());
        let room = self.context.message_max.saturating_sub(FIXED + self.block.len() + head);
        let longest = routes.iter().map(|route| wire_len(route, self.context)).max().unwrap_or_default();
        if room < longest.max(ROUTE_MAX) {
            return Err(self.block.len());
        }
        for packed in packs(routes, room, self.context) {
            frame(MessageType::Update, out, |out| {
                out.extend([0, 0]);
                match &self.reach {
                    None => {
                        out.extend(len16(self.block.len()).to_be_bytes());
                        out.extend(&self.block);
                        write(packed, self.context, out);
                    }
                    Some(reach) => {
                        let len: usize = packed.iter().map(|route| wire_len(route, self.context)).sum();
                        let len = reach.len() + len;
                        // RFC 7606 section 5.1: MP_REACH is the first attribute.
                        out.extend(len16(EXTENDED_HEAD + len + self.block.len()).to_be_bytes());
                        out.extend([FLAG_OPTIONAL | FLAG_EXTENDED, kind::MP_REACH]);
                        out.extend(len16(len).to_be_bytes());
                        out.extend(reach);
                        write(packed, self.context, out);
                        out.extend(&self.block);
                    }
                }
            });
        }
        Ok(())
    }
}

/// Appends the UPDATEs that announce `routes`, all of `family`.
///
/// # Errors
/// `Err(bytes)` when the attributes alone, of that many bytes, leave no room for a route; nothing is appended then.
pub fn announce<D: Destination>(
    attributes: &Attributes,
    next_hop: &NextHop,
    family: Family,
    routes: &[D],
    context: EncodeContext,
    out: &mut Vec<u8>,
) -> Result<(), usize> {
    Announcer::new(attributes, next_hop, family, context).announce(routes, out)
}

/// Appends the UPDATEs that withdraw `routes`, all of `family`, without path identifiers and in messages of 4096 bytes.
pub fn withdraw<D: Destination>(family: Family, routes: &[D], out: &mut Vec<u8>) {
    withdraw_with(family, routes, EncodeContext::default(), out);
}

/// Appends the UPDATEs that withdraw `routes`, all of `family`.
pub fn withdraw_with<D: Destination>(
    family: Family,
    routes: &[D],
    context: EncodeContext,
    out: &mut Vec<u8>,
) {
    let room = context.message_max.saturating_sub(FIXED + EXTENDED_HEAD + 3);
    for packed in packs(routes, room, context) {
        frame(MessageType::Update, out, |out| unreach(family, packed, context, out));
    }
}

/// Appends the End-of-RIB marker of a family (RFC 4724 section 2).
pub fn end_of_rib(family: Family, out: &mut Vec<u8>) {
    let nothing: &[IpNet] = &[];
    frame(MessageType::Update, out, |out| unreach(family, nothing, EncodeContext::default(), out));
}

fn unreach<D: Destination>(family: Family, routes: &[D], context: EncodeContext, out: &mut Vec<u8>) {
    let len: usize = routes.iter().map(|route| wire_len(route, context)).sum();
    if family == Family::Ipv4Unicast {
        out.extend(len16(len).to_be_bytes());
        write(routes, context, out);
        out.extend([0, 0]);
        return;
    }
    out.extend([0, 0]);
    out.extend(len16(EXTENDED_HEAD + 3 + len).to_be_bytes());
    out.extend([FLAG_OPTIONAL | FLAG_EXTENDED, kind::MP_UNREACH]);
    out.extend(len16(3 + len).to_be_bytes());
    out.extend(family.afi().to_be_bytes());
    out.push(family.safi());
    write(routes, context, out);
}

fn wire_len<D: Destination>(route: &D, context: EncodeContext) -> usize {
    route.encoded_len() + if context.add_path { PATH_ID } else { 0 }
}

fn write<D: Destination>(routes: &[D], context: EncodeContext, out: &mut Vec<u8>) {
    for route in routes {
        if context.add_path {
            out.extend(route.path_id().to_be_bytes());
        }
        route.encode(out);
    }
}

/// Cuts a list of routes into runs that fit `room` bytes each. A route that fits no message at all ends the list: callers exclude it.
fn packs<D: Destination>(routes: &[D], room: usize, context: EncodeContext) -> impl Iterator<Item = &[D]> {
    let mut rest = routes;
    std::iter::from_fn(move || {
        let mut used = 0;
        let fitting = rest
            .iter()
            .take_while(|route| {
                used += wire_len(*route, context);
                used <= room
            })
            .count();
        let (run, later) = rest.split_at_checked(fitting)?;
        rest = later;
        (!run.is_empty()).then_some(run)
    })
}

fn attribute(code: u8, value: &[u8], out: &mut Vec<u8>) {
    flagged(flags_of(code).unwrap_or_default(), code, value, out);
}

fn flagged(flags: u8, code: u8, value: &[u8], out: &mut Vec<u8>) {
    if value.len() > usize::from(u8::MAX) {
        out.extend([flags | FLAG_EXTENDED, code]);
        out.extend(len16(value.len()).to_be_bytes());
    } else {
        out.extend([flags, code, len8(value.len())]);
    }
    out.extend(value);
}

/// A known optional transitive attribute, with the partial bit it came with.
fn passed_on(attributes: &Attributes, code: u8, value: &[u8], out: &mut Vec<u8>) {
    let partial = if attributes.partial.contains(code) { FLAG_PARTIAL } else { 0 };
    flagged(flags_of(code).unwrap_or_default() | partial, code, value, out);
}

fn encode_attributes(
    attributes: &Attributes,
    next_hop: Option<&NextHop>,
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
    if let Some(IpAddr::V4(address)) = next_hop.map(|hop| hop.address) {
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
    passed_on(attributes, kind::AGGREGATOR, &value, out);
}

fn encode_lists(attributes: &Attributes, out: &mut Vec<u8>) {
    let list = |code, value: Vec<u8>, out: &mut Vec<u8>| {
        if !value.is_empty() {
            passed_on(attributes, code, &value, out);
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
        attributes.as_path.encode_as4(&mut value);
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
            passed_on(attributes, kind::LARGE_COMMUNITIES, &value, out);
        }
    };
    for raw in &attributes.unknown {
        if raw.code > kind::LARGE_COMMUNITIES {
            large(out);
        }
        // What does not fit a length field fits no message either: the caller sees a block too long.
        let value = raw.value.get(..raw.value.len().min(usize::from(u16::MAX))).unwrap_or_default();
        flagged(raw.flags, raw.code, value, out);
    }
    large(out);
}
