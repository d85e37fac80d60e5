//! UPDATE: routes that go and routes that come (RFC 4271 section 4.3), with errors handled as RFC 7606 asks.

use ipnet::IpNet;

use super::attributes::Attributes;
use super::nlri::Route;
use super::notification::Notification;
use super::view::{UpdateView, Verdict};
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
    /// The peer is in this speaker's confederation (RFC 5065), be it in the same member AS or in another.
    pub confederation: bool,
    /// Families in which the peer sends path identifiers: it offered to send, we to receive (RFC 7911 section 4).
    pub add_path: Vec<Family>,
    /// Families whose routes may come with IPv6 next hops: both sides offered it (RFC 8950).
    pub extended_next_hop: Vec<Family>,
}

impl UpdateContext {
    /// Whether equal attribute bytes mean the same in both sessions, so that one store of [`super::AttributeSet`]s can serve both.
    pub fn reads_like(&self, other: &Self) -> bool {
        let own =
            |context: &Self| (context.four_octet_as, context.ebgp, context.confederation, context.first_asn);
        own(self) == own(other)
    }
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
    /// The path identifier of each prefix (RFC 7911); empty where they were not agreed on: then all are 0.
    pub path_ids: Vec<u32>,
}

impl Reach {
    /// Prefixes with their path identifiers.
    pub fn routes(&self) -> impl Iterator<Item = Route> + '_ {
        routes(&self.prefixes, &self.path_ids)
    }
}

fn routes<'a>(prefixes: &'a [IpNet], path_ids: &'a [u32]) -> impl Iterator<Item = Route> + 'a {
    let path_ids = path_ids.iter().copied().chain(std::iter::repeat(0));
    prefixes.iter().zip(path_ids).map(|(prefix, path_id)| Route { prefix: *prefix, path_id })
}

/// A decoded UPDATE.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// Prefixes that are gone, of any family, including those treated as withdrawn.
    pub withdrawn: Vec<IpNet>,
    /// The path identifier of each withdrawn prefix, as in [`Reach::path_ids`].
    pub withdrawn_path_ids: Vec<u32>,
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
    /// Withdrawn prefixes with their path identifiers.
    pub fn withdrawn_routes(&self) -> impl Iterator<Item = Route> + '_ {
        routes(&self.withdrawn, &self.withdrawn_path_ids)
    }

    /// Decodes the body of an UPDATE into lists. Routes of families other than unicast are only in [`UpdateView`], which this is made from.
    ///
    /// # Errors
    /// Only where RFC 7606 keeps "session reset": see [`UpdateView::parse`] and [`UpdateView::judge`].
    pub fn decode(body: &[u8], context: &UpdateContext) -> Result<Self, Notification> {
        let view = UpdateView::parse(body, context)?;
        let mut set = view.attributes(context);
        let mut faults = view.faults().to_vec();
        let verdict = view.judge(&set, &mut faults)?;
        let end_of_rib = view.end_of_rib();
        let mut lists = Lists { with_ids: !context.add_path.is_empty(), ..Lists::default() };
        lists.extend(view.withdrawn_routes());
        let mut reach = Vec::new();
        for run in view.announced(&set) {
            match (verdict, run.next_hop) {
                (Verdict::Accept, Some(next_hop)) => {
                    let mut of_run = Lists { with_ids: lists.with_ids, ..Lists::default() };
                    of_run.extend(run.nlri.routes());
                    let Lists { prefixes, path_ids, .. } = of_run;
                    if !prefixes.is_empty() {
                        reach.push(Reach { family: run.nlri.family(), next_hop, prefixes, path_ids });
                    }
                }
                _ => lists.extend(run.nlri.routes()),
            }
        }
        faults.append(&mut set.faults);
        let attributes = match verdict {
            Verdict::Accept => set.attributes,
            Verdict::TreatAsWithdraw => Attributes::default(),
        };
        let Lists { prefixes: withdrawn, path_ids: withdrawn_path_ids, .. } = lists;
        Ok(Self { withdrawn, withdrawn_path_ids, reach, attributes, end_of_rib, faults })
    }
}

/// Prefixes and, where the session has them, path identifiers.
#[derive(Default)]
struct Lists {
    with_ids: bool,
    prefixes: Vec<IpNet>,
    path_ids: Vec<u32>,
}

impl Lists {
    fn extend(&mut self, routes: impl Iterator<Item = Route>) {
        if self.with_ids {
            for route in routes {
                self.prefixes.push(route.prefix);
                self.path_ids.push(route.path_id);
            }
        } else {
            self.prefixes.extend(routes.map(|route| route.prefix));
        }
    }
}

pub(super) const fn not_negotiated() -> Fault {
    Fault { attribute: 0, treatment: Treatment::Ignored, what: "routes of a family that was not negotiated" }
}
