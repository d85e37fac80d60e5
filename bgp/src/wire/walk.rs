//! The walk over path attributes: flags, lengths, duplicates, with the RFC 7606 treatment of each attribute.

use std::net::Ipv4Addr;

use super::as_path::{AS_TRANS, AsPath};
use super::attributes::{Aggregator, Attributes, Community, LargeCommunity, Origin, RawAttribute};
use super::cursor::Cursor;
use super::update::{Fault, Treatment, UpdateContext};
use super::view::Present;

pub(super) const FLAG_OPTIONAL: u8 = 0x80;
pub(super) const FLAG_TRANSITIVE: u8 = 0x40;
pub(super) const FLAG_PARTIAL: u8 = 0x20;
pub(super) const FLAG_EXTENDED: u8 = 0x10;
/// The two flags an attribute's type decides.
pub(super) const FLAG_KIND: u8 = FLAG_OPTIONAL | FLAG_TRANSITIVE;

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
    pub(in crate::wire) const IPV6_EXTENDED_COMMUNITIES: u8 = 25;
    pub(in crate::wire) const LARGE_COMMUNITIES: u8 = 32;
    pub(in crate::wire) const ONLY_TO_CUSTOMER: u8 = 35;
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
        | kind::IPV6_EXTENDED_COMMUNITIES
        | kind::LARGE_COMMUNITIES
        | kind::ONLY_TO_CUSTOMER => FLAG_OPTIONAL | FLAG_TRANSITIVE,
        _ => return None,
    })
}

/// The decoded attributes of an UPDATE, with what was wrong with them: all that depends on the attribute bytes and the session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttributeSet {
    /// The attributes; only to be used if the verdict on the message is to accept it.
    pub attributes: Attributes,
    /// NEXT_HOP, for the routes outside MP_REACH.
    pub next_hop: Option<Ipv4Addr>,
    /// What was wrong.
    pub faults: Vec<Fault>,
    /// One of the faults costs the routes.
    pub treat_as_withdraw: bool,
}

/// What the walk has gathered so far.
struct Walk<'a> {
    context: &'a UpdateContext,
    set: AttributeSet,
    as4_path: Option<AsPath>,
    as4_aggregator: Option<Aggregator>,
}

type Outcome = Result<(), (Treatment, &'static str)>;

const WITHDRAW: Treatment = Treatment::TreatAsWithdraw;
const DISCARD: Treatment = Treatment::AttributeDiscard;

impl AttributeSet {
    /// Decodes attributes whose headers [`super::UpdateView`] has walked: MP_REACH and MP_UNREACH are its own, unknown well-known ones ended
    /// the session there.
    pub(super) fn decode(bytes: &[u8], context: &UpdateContext) -> Self {
        let mut walk = Walk { context, set: Self::default(), as4_path: None, as4_aggregator: None };
        let mut present = Present::default();
        let mut cursor = Cursor::new(bytes);
        while !cursor.is_empty() {
            let Some((flags, code, value)) = next_attribute(&mut cursor) else {
                // RFC 7606 section 4: the rest is unreadable, but the NLRI field's place is known.
                walk.fault(0, WITHDRAW, "an attribute longer than the attribute field");
                break;
            };
            if matches!(code, kind::MP_REACH | kind::MP_UNREACH) {
                continue;
            }
            if !present.insert(code) {
                // RFC 7606 section 3 (g): the first one counts.
                walk.fault(code, DISCARD, "the attribute appears twice");
                continue;
            }
            if let Err((treatment, what)) = walk.attribute(flags, code, value) {
                walk.fault(code, treatment, what);
            }
        }
        walk.merge_four_octet();
        let mut set = walk.set;
        set.attributes.unknown.sort_unstable_by_key(|attribute| attribute.code);
        set.treat_as_withdraw = set.faults.iter().any(|fault| fault.treatment == WITHDRAW);
        set
    }
}

impl Walk<'_> {
    fn fault(&mut self, attribute: u8, treatment: Treatment, what: &'static str) {
        self.set.faults.push(Fault { attribute, treatment, what });
    }

    fn attribute(&mut self, flags: u8, code: u8, value: &[u8]) -> Outcome {
        let Some(expected) = flags_of(code) else {
            self.unknown(flags, code, value);
            return Ok(());
        };
        if flags & FLAG_KIND != expected {
            // RFC 7606 section 3 (c); RFC 6793 section 6 has its own rule for the AS4 attributes.
            let discard = matches!(code, kind::AS4_PATH | kind::AS4_AGGREGATOR);
            return Err((if discard { DISCARD } else { WITHDRAW }, "wrong attribute flags"));
        }
        let outcome = match code {
            kind::ORIGIN | kind::AS_PATH | kind::NEXT_HOP => self.mandatory(code, value),
            kind::LOCAL_PREF | kind::ORIGINATOR_ID | kind::CLUSTER_LIST => self.internal(code, value),
            kind::COMMUNITIES | kind::EXTENDED_COMMUNITIES | kind::LARGE_COMMUNITIES => {
                self.communities(code, value)
            }
            kind::AS4_PATH | kind::AS4_AGGREGATOR => self.four_octet(code, value),
            kind::IPV6_EXTENDED_COMMUNITIES => self.ipv6_communities(flags, code, value),
            kind::ONLY_TO_CUSTOMER => self.only_to_customer(flags, code, value),
            _ => self.other(code, value),
        };
        if outcome.is_ok() && flags & FLAG_PARTIAL != 0 && expected == FLAG_KIND {
            // RFC 4271 section 5: once set it stays set.
            self.set.attributes.partial.insert(code);
        }
        outcome
    }

    /// RFC 4271 section 5: an unknown transitive attribute goes on with the partial bit, another one stops here.
    fn unknown(&mut self, flags: u8, code: u8, value: &[u8]) {
        if flags & FLAG_TRANSITIVE != 0 {
            let flags = FLAG_OPTIONAL | FLAG_TRANSITIVE | FLAG_PARTIAL;
            self.set.attributes.unknown.push(RawAttribute { flags, code, value: value.to_vec() });
        }
    }

    fn mandatory(&mut self, code: u8, value: &[u8]) -> Outcome {
        let attributes = &mut self.set.attributes;
        match code {
            kind::ORIGIN => {
                attributes.origin = match value {
                    [0] => Origin::Igp,
                    [1] => Origin::Egp,
                    [2] => Origin::Incomplete,
                    _ => return Err((WITHDRAW, "ORIGIN is not one of 0, 1, 2")),
                };
            }
            kind::AS_PATH => {
                let path = AsPath::decode(value, self.context.four_octet_as)
                    .ok_or((WITHDRAW, "malformed AS_PATH"))?;
                if path.has_confederation() && !self.context.confederation {
                    // RFC 5065 section 5.
                    return Err((WITHDRAW, "AS_PATH with confederation segments from outside"));
                }
                if self.context.first_asn.is_some_and(|asn| path.first() != Some(asn)) {
                    return Err((WITHDRAW, "AS_PATH does not start with the peer's AS"));
                }
                attributes.as_path = path;
            }
            // Whether it is a host address matters only where it is used: see UpdateView::judge.
            _ => self.set.next_hop = Some(ipv4(value).ok_or((WITHDRAW, "NEXT_HOP is not four bytes long"))?),
        }
        Ok(())
    }

    fn internal(&mut self, code: u8, value: &[u8]) -> Outcome {
        // RFC 5065 section 4: members of a confederation exchange LOCAL_PREF although their ASes differ.
        if self.context.ebgp && !self.context.confederation {
            return Err((DISCARD, "an attribute of internal peers from an external one"));
        }
        let attributes = &mut self.set.attributes;
        match code {
            kind::LOCAL_PREF => {
                attributes.local_pref = Some(number(value).ok_or((WITHDRAW, "LOCAL_PREF length"))?);
            }
            kind::ORIGINATOR_ID => {
                attributes.originator_id = Some(ipv4(value).ok_or((WITHDRAW, "ORIGINATOR_ID length"))?);
            }
            _ => {
                let list = chunks::<4>(value).ok_or((WITHDRAW, "CLUSTER_LIST length"))?;
                attributes.cluster_list = list.iter().copied().map(Ipv4Addr::from).collect();
            }
        }
        Ok(())
    }

    fn communities(&mut self, code: u8, value: &[u8]) -> Outcome {
        let length = (WITHDRAW, "communities of a wrong length");
        let attributes = &mut self.set.attributes;
        match code {
            kind::COMMUNITIES => {
                let list = chunks::<4>(value).ok_or(length)?;
                attributes.communities =
                    sorted(list.iter().map(|bytes| Community(u32::from_be_bytes(*bytes))));
            }
            kind::EXTENDED_COMMUNITIES => {
                let list = chunks::<8>(value).ok_or(length)?;
                attributes.extended_communities = sorted(list.iter().copied().map(u64::from_be_bytes));
            }
            _ => {
                let list = chunks::<12>(value).ok_or(length)?;
                attributes.large_communities = sorted(list.iter().map(|bytes| {
                    let [a, b, c, d, e, f, g, h, i, j, k, l] = *bytes;
                    LargeCommunity {
                        global: u32::from_be_bytes([a, b, c, d]),
                        local1: u32::from_be_bytes([e, f, g, h]),
                        local2: u32::from_be_bytes([i, j, k, l]),
                    }
                }));
            }
        }
        Ok(())
    }

    /// RFC 7606 section 7.15; otherwise passed on as it came, and known, so without our adding the partial bit.
    fn ipv6_communities(&mut self, flags: u8, code: u8, value: &[u8]) -> Outcome {
        chunks::<20>(value).ok_or((WITHDRAW, "communities of a wrong length"))?;
        let flags = flags & (FLAG_KIND | FLAG_PARTIAL);
        self.set.attributes.unknown.push(RawAttribute { flags, code, value: value.to_vec() });
        Ok(())
    }

    /// From a peer that speaks four octets itself they are discarded (RFC 6793 section 4.1); malformed ones as well (section 6).
    /// RFC 9234 section 5: of another length it withdraws.
    fn only_to_customer(&mut self, flags: u8, code: u8, value: &[u8]) -> Outcome {
        number(value).ok_or((WITHDRAW, "OTC is not four bytes long"))?;
        let flags = flags & (FLAG_KIND | FLAG_PARTIAL);
        self.set.attributes.unknown.push(RawAttribute { flags, code, value: value.to_vec() });
        Ok(())
    }

    fn four_octet(&mut self, code: u8, value: &[u8]) -> Outcome {
        if self.context.four_octet_as {
            return Err((DISCARD, "an attribute for two-octet speakers from a four-octet one"));
        }
        if code == kind::AS4_PATH {
            let path = AsPath::decode(value, true).filter(|path| !path.segments.is_empty());
            // RFC 6793 section 6: confederation segments are dropped, the rest is used.
            self.as4_path = Some(path.ok_or((DISCARD, "malformed AS4_PATH"))?.without_confederation());
        } else {
            let found = aggregator(value, true).ok_or((DISCARD, "malformed AS4_AGGREGATOR"))?;
            self.as4_aggregator = Some(found);
        }
        Ok(())
    }

    fn other(&mut self, code: u8, value: &[u8]) -> Outcome {
        let attributes = &mut self.set.attributes;
        match code {
            kind::MED => attributes.med = Some(number(value).ok_or((WITHDRAW, "MED length"))?),
            kind::ATOMIC_AGGREGATE => {
                if !value.is_empty() {
                    return Err((DISCARD, "ATOMIC_AGGREGATE with a value"));
                }
                attributes.atomic_aggregate = true;
            }
            kind::AGGREGATOR => {
                let found = aggregator(value, self.context.four_octet_as);
                attributes.aggregator = Some(found.ok_or((DISCARD, "malformed AGGREGATOR"))?);
            }
            _ => {}
        }
        Ok(())
    }

    /// Merges what old speakers split (RFC 6793 section 4.2.3).
    fn merge_four_octet(&mut self) {
        let attributes = &mut self.set.attributes;
        if let (Some(aggregator), Some(wide)) = (attributes.aggregator, self.as4_aggregator) {
            if aggregator.asn != u32::from(AS_TRANS) {
                // An old speaker aggregated anew: both AS4 attributes are of the past.
                return;
            }
            attributes.aggregator = Some(wide);
        }
        if let Some(as4_path) = self.as4_path.take() {
            attributes.as_path = std::mem::take(&mut attributes.as_path).merged(&as4_path);
        }
    }
}

pub(super) fn next_attribute<'a>(cursor: &mut Cursor<'a>) -> Option<(u8, u8, &'a [u8])> {
    let (flags, code) = (cursor.u8()?, cursor.u8()?);
    let len = if flags & FLAG_EXTENDED != 0 { usize::from(cursor.u16()?) } else { usize::from(cursor.u8()?) };
    Some((flags, code, cursor.take(len)?))
}

fn ipv4(value: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from)
}

fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

/// `None` for a wrong length (RFC 7606 section 7.7) and for AS 0 (RFC 7607 section 2).
fn aggregator(value: &[u8], four_octet_as: bool) -> Option<Aggregator> {
    let mut cursor = Cursor::new(value);
    let asn = if four_octet_as { cursor.u32()? } else { u32::from(cursor.u16()?) };
    let address = Ipv4Addr::from(cursor.u32()?);
    (cursor.is_empty() && asn != 0).then_some(Aggregator { asn, address })
}

/// Splits into pieces of N bytes; `None` if empty or if something is left over.
fn chunks<const N: usize>(value: &[u8]) -> Option<&[[u8; N]]> {
    let (whole, rest) = value.as_chunks::<N>();
    (rest.is_empty() && !whole.is_empty()).then_some(whole)
}

fn sorted<T: Ord>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut items: Vec<T> = items.collect();
    items.sort_unstable();
    items.dedup();
    items
}
