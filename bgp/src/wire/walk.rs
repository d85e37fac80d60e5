//! The walk over path attributes: flags, lengths, order, duplicates, with the RFC 7606 treatment of each attribute.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::as_path::{AS_TRANS, AsPath};
use super::attributes::{Aggregator, Attributes, Community, LargeCommunity, Origin, RawAttribute};
use super::cursor::Cursor;
use super::nlri;
use super::notification::{Notification, code};
use super::update::{Fault, Treatment, UpdateContext, not_negotiated};
use crate::family::{Family, NextHop};

pub(super) const FLAG_OPTIONAL: u8 = 0x80;
pub(super) const FLAG_TRANSITIVE: u8 = 0x40;
const FLAG_PARTIAL: u8 = 0x20;
pub(super) const FLAG_EXTENDED: u8 = 0x10;

/// Attribute type codes.
pub(super) mod kind {
    pub(in crate::wire) const ORIGIN: u8 = 1;
    pub(in crate::wire) const AS_PATH: u8 = 2;
    pub(in crate::wire) const NEXT_HOP: u8 = 3;
    pub(in crate::wire) const MED: u8 = 4;
    pub(in crate::wire) const LOCAL_PREF: u8 = 5;
    pub(in crate::wire) const ATOMIC_AGGREGATE: u8 = 6;
    pub(in crate::wire) const AGGREGATOR: u8 = 7;
    pub(in crate::wire) const COMMUNITIES: u8 = 8;
    pub(in crate::wire) const ORIGINATOR_ID: u8 = 9;
    pub(in crate::wire) const CLUSTER_LIST: u8 = 10;
    pub(in crate::wire) const MP_REACH: u8 = 14;
    pub(in crate::wire) const MP_UNREACH: u8 = 15;
    pub(in crate::wire) const EXTENDED_COMMUNITIES: u8 = 16;
    pub(in crate::wire) const AS4_PATH: u8 = 17;
    pub(in crate::wire) const AS4_AGGREGATOR: u8 = 18;
    pub(in crate::wire) const LARGE_COMMUNITIES: u8 = 32;
}

/// The optional and transitive bits each known attribute must have.
pub(super) const fn flags_of(code: u8) -> Option<u8> {
    Some(match code {
        kind::ORIGIN | kind::AS_PATH | kind::NEXT_HOP | kind::LOCAL_PREF | kind::ATOMIC_AGGREGATE => {
            FLAG_TRANSITIVE
        }
        kind::MED | kind::ORIGINATOR_ID | kind::CLUSTER_LIST | kind::MP_REACH | kind::MP_UNREACH => {
            FLAG_OPTIONAL
        }
        kind::AGGREGATOR
        | kind::COMMUNITIES
        | kind::EXTENDED_COMMUNITIES
        | kind::AS4_PATH
        | kind::AS4_AGGREGATOR
        | kind::LARGE_COMMUNITIES => FLAG_OPTIONAL | FLAG_TRANSITIVE,
        _ => return None,
    })
}

pub(super) struct MpReach {
    pub(super) family: Family,
    pub(super) next_hop: NextHop,
    pub(super) prefixes: Vec<IpNet>,
}

pub(super) struct MpUnreach {
    pub(super) family: Family,
    pub(super) prefixes: Vec<IpNet>,
}

/// What the walk has gathered so far.
pub(super) struct Walk<'a> {
    context: &'a UpdateContext,
    seen: [bool; 256],
    count: usize,
    has_v4_routes: bool,
    attributes: Attributes,
    pub(super) next_hop: Option<Ipv4Addr>,
    as4_path: Option<AsPath>,
    as4_aggregator: Option<Aggregator>,
    mp_reach: Option<MpReach>,
    mp_unreach: Option<MpUnreach>,
    faults: Vec<Fault>,
}

/// What a finished walk hands over.
pub(super) struct Walked {
    pub(super) attributes: Attributes,
    pub(super) mp_reach: Option<MpReach>,
    pub(super) mp_unreach: Option<MpUnreach>,
    pub(super) faults: Vec<Fault>,
    pub(super) treat_as_withdraw: bool,
    /// MP_UNREACH was the only attribute, the mark of End-of-RIB.
    pub(super) lone_unreach: bool,
}

type Outcome = Result<(), (Treatment, &'static str)>;

const WITHDRAW: Treatment = Treatment::TreatAsWithdraw;
const DISCARD: Treatment = Treatment::AttributeDiscard;

impl<'a> Walk<'a> {
    pub(super) fn over(
        bytes: &[u8],
        context: &'a UpdateContext,
        has_v4_routes: bool,
    ) -> Result<Self, Notification> {
        let mut walk = Self {
            context,
            seen: [false; 256],
            count: 0,
            has_v4_routes,
            attributes: Attributes::default(),
            next_hop: None,
            as4_path: None,
            as4_aggregator: None,
            mp_reach: None,
            mp_unreach: None,
            faults: Vec::new(),
        };
        let mut cursor = Cursor::new(bytes);
        while !cursor.is_empty() {
            let whole = cursor;
            let Some((flags, code, value)) = next_attribute(&mut cursor) else {
                // RFC 7606 section 4: the rest is unreadable, but the NLRI field's place is known.
                walk.fault(0, WITHDRAW, "an attribute longer than the attribute field");
                break;
            };
            let consumed = whole.rest().len() - cursor.rest().len();
            walk.attribute(flags, code, value, whole.rest().get(..consumed).unwrap_or_default())?;
        }
        Ok(walk)
    }

    fn fault(&mut self, attribute: u8, treatment: Treatment, what: &'static str) {
        self.faults.push(Fault { attribute, treatment, what });
    }

    fn attribute(&mut self, flags: u8, code: u8, value: &[u8], raw: &[u8]) -> Result<(), Notification> {
        self.count += 1;
        if let Some(seen) = self.seen.get_mut(usize::from(code)) {
            if *seen {
                if matches!(code, kind::MP_REACH | kind::MP_UNREACH) {
                    return Err(Notification::new(code::UPDATE, 1));
                }
                self.fault(code, DISCARD, "the attribute appears twice");
                return Ok(());
            }
            *seen = true;
        }
        let Some(expected) = flags_of(code) else { return self.unknown(flags, code, value, raw) };
        if flags & (FLAG_OPTIONAL | FLAG_TRANSITIVE) != expected {
            let discard = matches!(code, kind::AS4_PATH | kind::AS4_AGGREGATOR);
            self.fault(code, if discard { DISCARD } else { WITHDRAW }, "wrong attribute flags");
            if discard {
                return Ok(());
            }
        }
        let outcome = match code {
            kind::MP_REACH => return self.mp_reach(value, raw),
            kind::MP_UNREACH => return self.mp_unreach(value, raw),
            kind::ORIGIN | kind::AS_PATH | kind::NEXT_HOP | kind::AS4_PATH => self.mandatory(code, value),
            kind::LOCAL_PREF | kind::ORIGINATOR_ID | kind::CLUSTER_LIST => self.internal(code, value),
            kind::COMMUNITIES | kind::EXTENDED_COMMUNITIES | kind::LARGE_COMMUNITIES => {
                self.communities(code, value)
            }
            _ => self.other(code, value),
        };
        if let Err((treatment, what)) = outcome {
            self.fault(code, treatment, what);
        }
        Ok(())
    }

    fn unknown(&mut self, flags: u8, code: u8, value: &[u8], raw: &[u8]) -> Result<(), Notification> {
        if flags & FLAG_OPTIONAL == 0 {
            return Err(Notification::with_data(code::UPDATE, 2, raw));
        }
        if flags & FLAG_TRANSITIVE != 0 {
            let flags = FLAG_OPTIONAL | FLAG_TRANSITIVE | FLAG_PARTIAL;
            self.attributes.unknown.push(RawAttribute { flags, code, value: value.to_vec() });
        }
        Ok(())
    }

    fn mandatory(&mut self, code: u8, value: &[u8]) -> Outcome {
        match code {
            kind::ORIGIN => {
                self.attributes.origin = match value {
                    [0] => Origin::Igp,
                    [1] => Origin::Egp,
                    [2] => Origin::Incomplete,
                    _ => return Err((WITHDRAW, "ORIGIN is not one of 0, 1, 2")),
                };
            }
            kind::AS_PATH => {
                let path = AsPath::decode(value, self.context.four_octet_as)
                    .ok_or((WITHDRAW, "malformed AS_PATH"))?;
                if self.context.first_asn.is_some_and(|asn| path.first() != Some(asn)) {
                    return Err((WITHDRAW, "AS_PATH does not start with the peer's AS"));
                }
                self.attributes.as_path = path;
            }
            kind::AS4_PATH => {
                if !self.context.four_octet_as {
                    let path = AsPath::decode(value, true).ok_or((DISCARD, "malformed AS4_PATH"))?;
                    self.as4_path = Some(path);
                }
            }
            _ => {
                let address = ipv4(value).ok_or((WITHDRAW, "NEXT_HOP is not four bytes long"))?;
                let usable = NextHop::new(IpAddr::V4(address)).is_usable();
                if !usable && self.has_v4_routes {
                    return Err((WITHDRAW, "NEXT_HOP is no host address"));
                }
                self.next_hop = Some(address);
            }
        }
        Ok(())
    }

    fn internal(&mut self, code: u8, value: &[u8]) -> Outcome {
        if self.context.ebgp {
            return Err((DISCARD, "an attribute of internal peers from an external one"));
        }
        match code {
            kind::LOCAL_PREF => {
                self.attributes.local_pref = Some(number(value).ok_or((WITHDRAW, "LOCAL_PREF length"))?);
            }
            kind::ORIGINATOR_ID => {
                self.attributes.originator_id = Some(ipv4(value).ok_or((WITHDRAW, "ORIGINATOR_ID length"))?);
            }
            _ => {
                let list = chunks::<4>(value).ok_or((WITHDRAW, "CLUSTER_LIST length"))?;
                self.attributes.cluster_list = list.into_iter().map(Ipv4Addr::from).collect();
            }
        }
        Ok(())
    }

    fn communities(&mut self, code: u8, value: &[u8]) -> Outcome {
        let length = (WITHDRAW, "communities of a wrong length");
        let attributes = &mut self.attributes;
        match code {
            kind::COMMUNITIES => {
                let list = chunks::<4>(value).ok_or(length)?;
                attributes.communities =
                    sorted(list.into_iter().map(|bytes| Community(u32::from_be_bytes(bytes))));
            }
            kind::EXTENDED_COMMUNITIES => {
                let list = chunks::<8>(value).ok_or(length)?;
                attributes.extended_communities = sorted(list.into_iter().map(u64::from_be_bytes));
            }
            _ => {
                let list = chunks::<12>(value).ok_or(length)?;
                attributes.large_communities = sorted(list.into_iter().filter_map(|bytes| {
                    let mut cursor = Cursor::new(&bytes);
                    let (global, local1, local2) = (cursor.u32()?, cursor.u32()?, cursor.u32()?);
                    Some(LargeCommunity { global, local1, local2 })
                }));
            }
        }
        Ok(())
    }

    fn other(&mut self, code: u8, value: &[u8]) -> Outcome {
        match code {
            kind::MED => self.attributes.med = Some(number(value).ok_or((WITHDRAW, "MED length"))?),
            kind::ATOMIC_AGGREGATE => {
                if !value.is_empty() {
                    return Err((DISCARD, "ATOMIC_AGGREGATE with a value"));
                }
                self.attributes.atomic_aggregate = true;
            }
            kind::AGGREGATOR => {
                let found = aggregator(value, self.context.four_octet_as);
                self.attributes.aggregator = Some(found.ok_or((DISCARD, "AGGREGATOR length"))?);
            }
            kind::AS4_AGGREGATOR if !self.context.four_octet_as => {
                self.as4_aggregator =
                    Some(aggregator(value, true).ok_or((DISCARD, "AS4_AGGREGATOR length"))?);
            }
            _ => {}
        }
        Ok(())
    }

    /// MP_REACH_NLRI (RFC 4760 section 3). What cannot be located resets the session (RFC 7606 section 7.11).
    fn mp_reach(&mut self, value: &[u8], raw: &[u8]) -> Result<(), Notification> {
        let malformed = || Notification::with_data(code::UPDATE, 9, raw);
        let mut cursor = Cursor::new(value);
        let (afi, safi) = (cursor.u16().ok_or_else(malformed)?, cursor.u8().ok_or_else(malformed)?);
        let len = usize::from(cursor.u8().ok_or_else(malformed)?);
        let next_hop = cursor.take(len).ok_or_else(malformed)?;
        cursor.u8().ok_or_else(malformed)?;
        let Some(family) = self.negotiated(afi, safi) else { return Ok(()) };
        let next_hop = mp_next_hop(family, next_hop).ok_or_else(malformed)?;
        let prefixes = nlri::decode(family, cursor.rest()).ok_or_else(malformed)?;
        if !next_hop.is_usable() {
            self.fault(kind::MP_REACH, WITHDRAW, "the next hop is no host address");
        }
        self.mp_reach = Some(MpReach { family, next_hop, prefixes });
        Ok(())
    }

    /// MP_UNREACH_NLRI (RFC 4760 section 4).
    fn mp_unreach(&mut self, value: &[u8], raw: &[u8]) -> Result<(), Notification> {
        let malformed = || Notification::with_data(code::UPDATE, 9, raw);
        let mut cursor = Cursor::new(value);
        let (afi, safi) = (cursor.u16().ok_or_else(malformed)?, cursor.u8().ok_or_else(malformed)?);
        let Some(family) = self.negotiated(afi, safi) else { return Ok(()) };
        let prefixes = nlri::decode(family, cursor.rest()).ok_or_else(malformed)?;
        self.mp_unreach = Some(MpUnreach { family, prefixes });
        Ok(())
    }

    fn negotiated(&mut self, afi: u16, safi: u8) -> Option<Family> {
        let family = Family::from_codes(afi, safi).filter(|family| self.context.families.contains(family));
        if family.is_none() {
            self.faults.push(not_negotiated());
        }
        family
    }

    /// Checks what must be there and merges what old speakers split (RFC 6793 section 4.2.3).
    pub(super) fn finish(mut self) -> Walked {
        let has_routes =
            self.has_v4_routes || self.mp_reach.as_ref().is_some_and(|reach| !reach.prefixes.is_empty());
        let mut required = vec![kind::ORIGIN, kind::AS_PATH];
        if self.has_v4_routes {
            required.push(kind::NEXT_HOP);
        }
        for code in required {
            if has_routes && self.seen.get(usize::from(code)) != Some(&true) {
                self.fault(code, WITHDRAW, "a mandatory attribute is missing");
            }
        }
        self.merge_four_octet();
        self.attributes.unknown.sort_unstable_by_key(|attribute| attribute.code);
        let treat_as_withdraw = self.faults.iter().any(|fault| fault.treatment == WITHDRAW);
        Walked {
            attributes: self.attributes,
            mp_reach: self.mp_reach,
            lone_unreach: self.count == 1 && self.mp_unreach.is_some() && self.faults.is_empty(),
            mp_unreach: self.mp_unreach,
            faults: self.faults,
            treat_as_withdraw,
        }
    }

    fn merge_four_octet(&mut self) {
        if let (Some(aggregator), Some(wide)) = (self.attributes.aggregator, self.as4_aggregator) {
            if aggregator.asn != u32::from(AS_TRANS) {
                return;
            }
            self.attributes.aggregator = Some(wide);
        }
        if let Some(as4_path) = self.as4_path.take() {
            self.attributes.as_path = std::mem::take(&mut self.attributes.as_path).merged(&as4_path);
        }
    }
}

fn next_attribute<'a>(cursor: &mut Cursor<'a>) -> Option<(u8, u8, &'a [u8])> {
    let (flags, code) = (cursor.u8()?, cursor.u8()?);
    let len = if flags & FLAG_EXTENDED != 0 { usize::from(cursor.u16()?) } else { usize::from(cursor.u8()?) };
    Some((flags, code, cursor.take(len)?))
}

fn mp_next_hop(family: Family, bytes: &[u8]) -> Option<NextHop> {
    match family {
        Family::Ipv4Unicast => Some(NextHop::new(IpAddr::V4(ipv4(bytes)?))),
        Family::Ipv6Unicast => {
            let mut cursor = Cursor::new(bytes);
            let address = Ipv6Addr::from(cursor.array::<16>()?);
            let second = if cursor.is_empty() { None } else { Some(Ipv6Addr::from(cursor.array::<16>()?)) };
            if !cursor.is_empty() {
                return None;
            }
            Some(match second {
                // RFC 2545 means a link-local second half; some speakers repeat it in both, or leave the global half empty.
                Some(link_local) if address.is_unspecified() => NextHop::new(link_local.into()),
                Some(link_local) if link_local.is_unicast_link_local() && link_local != address => {
                    NextHop { address: address.into(), link_local: Some(link_local) }
                }
                _ => NextHop::new(address.into()),
            })
        }
    }
}

fn ipv4(value: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from)
}

fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

fn aggregator(value: &[u8], four_octet_as: bool) -> Option<Aggregator> {
    let mut cursor = Cursor::new(value);
    let asn = if four_octet_as { cursor.u32()? } else { u32::from(cursor.u16()?) };
    let address = Ipv4Addr::from(cursor.u32()?);
    cursor.is_empty().then_some(Aggregator { asn, address })
}

/// Splits into pieces of N bytes; `None` if empty or if something is left over.
fn chunks<const N: usize>(value: &[u8]) -> Option<Vec<[u8; N]>> {
    let (whole, rest) = value.as_chunks::<N>();
    (rest.is_empty() && !whole.is_empty()).then(|| whole.to_vec())
}

fn sorted<T: Ord>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut items: Vec<T> = items.collect();
    items.sort_unstable();
    items.dedup();
    items
}
