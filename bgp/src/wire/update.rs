//! UPDATE: routes that go and routes that come (RFC 4271 section 4.3), with errors handled as RFC 7606 asks.

use ipnet::IpNet;

use super::attributes::Attributes;
use super::cursor::Cursor;
use super::nlri;
use super::notification::{Notification, code};
use super::walk::{MpReach, MpUnreach, Walk};
use crate::family::{Family, NextHop};

/// What the session agreed on, needed to read an UPDATE.
#[derive(Clone, Debug, Default)]
pub struct UpdateContext {
    /// Both sides use four-octet AS numbers in AS_PATH.
    pub four_octet_as: bool,
    /// The peer is in another AS.
    pub ebgp: bool,
    /// The first AS every path must start with, if that is enforced (RFC 4271 section 6.3).
    pub first_asn: Option<u32>,
    /// Families both sides offered.
    pub families: Vec<Family>,
}

/// How a fault was treated (RFC 7606 section 2), mildest last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Treatment {
    /// The routes of the message count as withdrawn.
    TreatAsWithdraw,
    /// The attribute was dropped, the routes kept.
    AttributeDiscard,
    /// One prefix or one family was ignored.
    Ignored,
}

/// Something wrong with a message that did not cost the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Type code of the attribute; 0 when no single one is at fault.
    pub attribute: u8,
    /// What was done about it.
    pub treatment: Treatment,
    /// What was wrong.
    pub what: &'static str,
}

/// Prefixes of one family with their next hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// The family of all prefixes here.
    pub family: Family,
    /// Their next hop.
    pub next_hop: NextHop,
    /// The prefixes.
    pub prefixes: Vec<IpNet>,
}

/// A decoded UPDATE.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// Prefixes that are gone, of any family, including those treated as withdrawn.
    pub withdrawn: Vec<IpNet>,
    /// Prefixes that are there, all with the same attributes.
    pub reach: Vec<Reach>,
    /// The attributes of everything in `reach`.
    pub attributes: Attributes,
    /// The peer has sent all it has of this family (RFC 4724 section 2).
    pub end_of_rib: Option<Family>,
    /// What was wrong but not fatal.
    pub faults: Vec<Fault>,
}

impl Update {
    /// Decodes the body of an UPDATE.
    ///
    /// # Errors
    /// Only where RFC 7606 keeps "session reset": lengths that leave the NLRI unreadable, repeated or unreadable MP attributes, an
    /// unknown well-known attribute.
    pub fn decode(body: &[u8], context: &UpdateContext) -> Result<Self, Notification> {
        let mut cursor = Cursor::new(body);
        let malformed = || Notification::new(code::UPDATE, 1);
        let len = cursor.u16().ok_or_else(malformed)?;
        let withdrawn = cursor.take(usize::from(len)).ok_or_else(malformed)?;
        let len = cursor.u16().ok_or_else(malformed)?;
        let attributes = cursor.take(usize::from(len)).ok_or_else(malformed)?;
        let announced = cursor.rest();
        let bad_network = |_| Notification::new(code::UPDATE, 10);
        let withdrawn = nlri::decode(Family::Ipv4Unicast, withdrawn).ok_or(()).map_err(bad_network)?;
        let announced = nlri::decode(Family::Ipv4Unicast, announced).ok_or(()).map_err(bad_network)?;
        if body == [0; 4] {
            return Ok(Self { end_of_rib: Some(Family::Ipv4Unicast), ..Self::default() });
        }
        let only_attributes = withdrawn.is_empty() && announced.is_empty();
        let walk = Walk::over(attributes, context, !announced.is_empty())?;
        Ok(assemble(walk, withdrawn, announced, only_attributes, context))
    }
}

fn assemble(
    walk: Walk<'_>,
    withdrawn: Vec<IpNet>,
    announced: Vec<IpNet>,
    only_attributes: bool,
    context: &UpdateContext,
) -> Update {
    let (next_hop, mut done) = (walk.next_hop, walk.finish());
    let mut update = Update { withdrawn, faults: done.faults, ..Update::default() };
    let has_v4 = !(announced.is_empty() && update.withdrawn.is_empty());
    if has_v4 && !context.families.contains(&Family::Ipv4Unicast) {
        update.withdrawn.clear();
        update.faults.push(not_negotiated());
    } else if let (false, Some(address)) = (announced.is_empty(), next_hop) {
        update.reach.push(Reach {
            family: Family::Ipv4Unicast,
            next_hop: NextHop::new(address.into()),
            prefixes: announced,
        });
    } else {
        // Without a next hop the walk has already asked for treat-as-withdraw.
        update.withdrawn.extend(announced);
    }
    if let Some(MpUnreach { family, prefixes }) = done.mp_unreach {
        if only_attributes && prefixes.is_empty() && done.lone_unreach {
            update.end_of_rib = Some(family);
        }
        update.withdrawn.extend(prefixes);
    }
    if let Some(MpReach { family, next_hop, prefixes }) = done.mp_reach.take() {
        update.reach.push(Reach { family, next_hop, prefixes });
    }
    drop_what_is_no_destination(&mut update);
    if done.treat_as_withdraw {
        let lost = update.reach.drain(..).flat_map(|reach| reach.prefixes);
        update.withdrawn.extend(lost);
    } else {
        update.attributes = done.attributes;
    }
    update
}

pub(super) const fn not_negotiated() -> Fault {
    Fault { attribute: 0, treatment: Treatment::Ignored, what: "routes of a family that was not negotiated" }
}

fn drop_what_is_no_destination(update: &mut Update) {
    for reach in &mut update.reach {
        let before = reach.prefixes.len();
        reach.prefixes.retain(nlri::is_unicast);
        if reach.prefixes.len() != before {
            update.faults.push(Fault {
                attribute: 0,
                treatment: Treatment::Ignored,
                what: "a multicast or link-local prefix",
            });
        }
    }
    update.reach.retain(|reach| !reach.prefixes.is_empty());
}
