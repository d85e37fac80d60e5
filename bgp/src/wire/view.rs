//! An UPDATE as it lies in its buffer: checked, not copied. Routes are read one by one, attributes only when their bytes are new.
//!
//! ```text
//!  body ─► UpdateView::parse ─┬─ key(): the attribute bytes ──► the caller's store ──► known: its AttributeSet
//!                             │                                                 └────► new: attributes() decodes them once
//!                             └─ judge(&AttributeSet) ─► Verdict ─► withdrawn() · announced(): iterators over the buffer
//! ```
//! [`super::Update`] does all of this at once for callers that want owned lists.

use std::hash::{Hash, Hasher};
use std::net::IpAddr;

use super::cursor::Cursor;
use super::next_hop::mp_next_hop;
use super::nlri::{Nlri, Route};
use super::notification::{Notification, code};
use super::update::{Fault, Treatment, UpdateContext, not_negotiated};
use super::walk::{AttributeSet, FLAG_OPTIONAL, flags_of, kind, next_attribute};
use crate::family::{Family, NextHop};

/// Routes of one family that are there, with their next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReachView<'a> {
    /// Where their packets go; none for FlowSpec, whose routes are no destinations (RFC 8955 section 4).
    pub next_hop: Option<NextHop>,
    /// The routes.
    pub nlri: Nlri<'a>,
}

/// What is to be done with the announced routes of an UPDATE (RFC 7606 section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They are routes.
    Accept,
    /// They count as withdrawn.
    TreatAsWithdraw,
}

/// The bytes that make the attributes: everything but MP_REACH and MP_UNREACH. Equal keys in sessions that read alike
/// ([`UpdateContext::reads_like`]) give equal [`AttributeSet`]s.
#[derive(Clone, Copy, Debug)]
pub struct AttributeKey<'a> {
    parts: [&'a [u8]; 3],
}

impl<'a> AttributeKey<'a> {
    /// How many bytes.
    pub fn len(&self) -> usize {
        self.parts.iter().map(|part| part.len()).sum()
    }

    /// Whether there are no attributes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes if they lie together, which they do unless a speaker puts MP_REACH among the others (RFC 7606 section 5.1: it is first).
    pub const fn contiguous(&self) -> Option<&'a [u8]> {
        match self.parts {
            [one, [], []] | [[], one, []] | [[], [], one] => Some(one),
            _ => None,
        }
    }

    /// Appends the bytes: what a store keeps to compare with.
    pub fn append_to(&self, out: &mut Vec<u8>) {
        self.parts.iter().for_each(|part| out.extend(*part));
    }

    /// Whether these are the bytes of a kept key.
    pub fn is(&self, kept: &[u8]) -> bool {
        let mut rest = kept;
        self.parts.iter().all(|part| match rest.split_at_checked(part.len()) {
            Some((head, tail)) => {
                rest = tail;
                head == *part
            }
            None => false,
        }) && rest.is_empty()
    }

    /// A hash of the bytes, the same however they are split. `seed` is the store's secret: without one a peer could choose collisions.
    pub fn hash64(&self, seed: u64) -> u64 {
        let mut state = Folded::new(seed);
        match self.contiguous() {
            Some(bytes) => state.all(bytes),
            None => {
                let mut joined = Vec::with_capacity(self.len());
                self.append_to(&mut joined);
                state.all(&joined);
            }
        }
        state.0
    }
}

impl PartialEq for AttributeKey<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len()
            && self
                .parts
                .iter()
                .flat_map(|part| part.iter())
                .eq(other.parts.iter().flat_map(|part| part.iter()))
    }
}

impl Eq for AttributeKey<'_> {}

impl Hash for AttributeKey<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash64(0));
    }
}

/// Multiply and fold, eight bytes at a time.
struct Folded(u64);

impl Folded {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

    const fn new(seed: u64) -> Self {
        Self(seed ^ 0x243f_6a88_85a3_08d3)
    }

    fn word(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * u128::from(Self::FACTOR);
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = product.to_le_bytes();
        self.0 = u64::from_le_bytes([a, b, c, d, e, f, g, h]) ^ u64::from_le_bytes([i, j, k, l, m, n, o, p]);
    }

    fn all(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.word(u64::from_le_bytes(*word)));
        let mut last = [0u8; 8];
        last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        self.word(u64::from_le_bytes(last));
        // The length tells trailing zeros from padding.
        self.word(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
    }
}

/// Which attribute types were there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Present([u64; 4]);

impl Present {
    /// Marks a type; false if it was marked before.
    pub(super) fn insert(&mut self, code: u8) -> bool {
        let bit = 1u64 << (code & 63);
        let Some(word) = self.0.get_mut(usize::from(code >> 6)) else { return true };
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    pub(super) fn contains(&self, code: u8) -> bool {
        self.0.get(usize::from(code >> 6)).is_some_and(|word| word & (1u64 << (code & 63)) != 0)
    }
}

/// A checked UPDATE in its buffer.
#[derive(Clone, Debug)]
pub struct UpdateView<'a> {
    withdrawn: Nlri<'a>,
    announced: Nlri<'a>,
    attributes: &'a [u8],
    key: AttributeKey<'a>,
    present: Present,
    count: usize,
    mp_reach: Option<ReachView<'a>>,
    mp_unreach: Option<Nlri<'a>>,
    /// Routes were announced in a family that was not agreed on.
    foreign: bool,
    faults: Vec<Fault>,
}

impl<'a> UpdateView<'a> {
    /// Checks the framing, the attribute headers, all NLRI, and the MP attributes. Attribute values are left to [`Self::attributes`].
    ///
    /// # Errors
    /// Where RFC 7606 keeps "session reset": lengths that leave the NLRI unreadable, repeated or unreadable MP attributes, an unknown
    /// well-known attribute.
    pub fn parse(body: &'a [u8], context: &UpdateContext) -> Result<Self, Notification> {
        let mut cursor = Cursor::new(body);
        let malformed = || Notification::new(code::UPDATE, 1);
        let len = cursor.u16().ok_or_else(malformed)?;
        let withdrawn = cursor.take(usize::from(len)).ok_or_else(malformed)?;
        let len = cursor.u16().ok_or_else(malformed)?;
        let attributes = cursor.take(usize::from(len)).ok_or_else(malformed)?;
        let v4 = |bytes| {
            let add_path = context.add_path.contains(&Family::Ipv4Unicast);
            Nlri::check(Family::Ipv4Unicast, add_path, bytes)
                .ok_or_else(|| Notification::new(code::UPDATE, 10))
        };
        let mut view = Self {
            withdrawn: v4(withdrawn)?,
            announced: v4(cursor.rest())?,
            attributes,
            key: AttributeKey { parts: [&[]; 3] },
            present: Present::default(),
            count: 0,
            mp_reach: None,
            mp_unreach: None,
            foreign: false,
            faults: Vec::new(),
        };
        if !context.families.contains(&Family::Ipv4Unicast) && body != [0; 4] {
            view.drop_ipv4();
        }
        view.heads(context)?;
        view.note_dropped();
        Ok(view)
    }

    fn drop_ipv4(&mut self) {
        if !(self.withdrawn.is_empty() && self.announced.is_empty()) {
            self.foreign = !self.announced.is_empty();
            self.withdrawn = Nlri::none(Family::Ipv4Unicast);
            self.announced = Nlri::none(Family::Ipv4Unicast);
            self.faults.push(not_negotiated());
        }
    }

    /// Walks the attribute headers: where each is, whether it may be there at all, and what the MP attributes say.
    fn heads(&mut self, context: &UpdateContext) -> Result<(), Notification> {
        let mut cursor = Cursor::new(self.attributes);
        let (mut part, mut start) = (0, 0);
        while !cursor.is_empty() {
            let whole = cursor;
            let at = self.attributes.len() - whole.rest().len();
            let Some((flags, code, value)) = next_attribute(&mut cursor) else {
                // RFC 7606 section 3 (j): routes that cannot be read cannot be withdrawn. Of another type, an attribute that overruns is
                // found again, and judged, by the decoder (section 4).
                if matches!(whole.rest(), [_, kind::MP_REACH | kind::MP_UNREACH, ..]) {
                    return Err(Notification::new(code::UPDATE, 1));
                }
                break;
            };
            let end = self.attributes.len() - cursor.rest().len();
            let raw = self.attributes.get(at..end).unwrap_or_default();
            self.count += 1;
            let first = self.present.insert(code);
            if matches!(code, kind::MP_REACH | kind::MP_UNREACH) {
                if !first {
                    // RFC 7606 section 3 (g).
                    return Err(Notification::new(code::UPDATE, 1));
                }
                self.cut_key(&mut part, start, at);
                start = end;
                self.multiprotocol(flags, code, value, raw, context)?;
            } else if flags & FLAG_OPTIONAL == 0 && flags_of(code).is_none() {
                // RFC 4271 section 6.3: the data is the attribute.
                return Err(Notification::with_data(code::UPDATE, 2, raw));
            }
        }
        self.cut_key(&mut part, start, self.attributes.len());
        Ok(())
    }

    fn cut_key(&mut self, part: &mut usize, start: usize, end: usize) {
        if let (Some(slot), Some(bytes)) = (self.key.parts.get_mut(*part), self.attributes.get(start..end))
            && !bytes.is_empty()
        {
            *slot = bytes;
            *part += 1;
        }
    }

    fn multiprotocol(
        &mut self,
        flags: u8,
        code: u8,
        value: &'a [u8],
        raw: &[u8],
        context: &UpdateContext,
    ) -> Result<(), Notification> {
        // RFC 7606 sections 5.3, 7.11 and 7.12: what cannot be located resets the session; the data is the attribute (RFC 4760 section 7).
        let malformed = || Notification::with_data(code::UPDATE, 9, raw);
        let mut cursor = Cursor::new(value);
        let (afi, safi) = (cursor.u16().ok_or_else(malformed)?, cursor.u8().ok_or_else(malformed)?);
        let hop = if code == kind::MP_REACH {
            let len = usize::from(cursor.u8().ok_or_else(malformed)?);
            let hop = cursor.take(len).ok_or_else(malformed)?;
            cursor.u8().ok_or_else(malformed)?;
            hop
        } else {
            &[]
        };
        let Some(family) = Family::from_codes(afi, safi).filter(|family| context.families.contains(family))
        else {
            self.foreign |= code == kind::MP_REACH;
            self.faults.push(not_negotiated());
            return Ok(());
        };
        let wrong_flags = flags & super::walk::FLAG_KIND != FLAG_OPTIONAL;
        let nlri =
            Nlri::check(family, context.add_path.contains(&family), cursor.rest()).ok_or_else(malformed)?;
        if code == kind::MP_UNREACH {
            if wrong_flags {
                self.fault(code, Treatment::TreatAsWithdraw, "wrong attribute flags");
            }
            self.mp_unreach = Some(nlri);
            return Ok(());
        }
        let next_hop =
            mp_next_hop(family, hop, context.extended_next_hop.contains(&family)).ok_or_else(malformed)?;
        if wrong_flags {
            self.fault(code, Treatment::TreatAsWithdraw, "wrong attribute flags");
        }
        if next_hop.is_some_and(|hop| !hop.is_usable()) {
            self.fault(code, Treatment::TreatAsWithdraw, "the next hop is no host address");
        }
        self.mp_reach = Some(ReachView { next_hop, nlri });
        Ok(())
    }

    fn fault(&mut self, attribute: u8, treatment: Treatment, what: &'static str) {
        self.faults.push(Fault { attribute, treatment, what });
    }

    fn note_dropped(&mut self) {
        let runs = [Some(self.announced), self.mp_reach.map(|reach| reach.nlri)];
        for run in runs.into_iter().flatten().filter(|run| run.dropped() > 0) {
            let what = if run.family().is_unicast() {
                "a multicast or link-local prefix"
            } else {
                "a route that says nothing"
            };
            self.fault(0, Treatment::Ignored, what);
        }
    }

    /// The bytes to look the attributes up by.
    pub const fn key(&self) -> AttributeKey<'a> {
        self.key
    }

    /// All attribute bytes as received, MP_REACH and MP_UNREACH included.
    pub const fn attribute_bytes(&self) -> &'a [u8] {
        self.attributes
    }

    /// Decodes the attributes. The result depends on [`Self::key`] and on the session alone, never on the routes.
    pub fn attributes(&self, context: &UpdateContext) -> AttributeSet {
        AttributeSet::decode(self.attributes, context)
    }

    /// What was wrong with the message outside its attribute values.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// The peer has sent all it has of this family (RFC 4724 section 2).
    pub fn end_of_rib(&self) -> Option<Family> {
        let nothing = self.withdrawn.is_empty() && self.announced.is_empty() && self.faults.is_empty();
        match (nothing, self.count, &self.mp_unreach) {
            (true, 0, None) if self.attributes.is_empty() => Some(Family::Ipv4Unicast),
            (true, 1, Some(unreach)) if unreach.is_empty() && self.key.is_empty() => Some(unreach.family()),
            _ => None,
        }
    }

    fn announces(&self) -> bool {
        !self.announced.is_empty() || self.mp_reach.is_some_and(|reach| !reach.nlri.is_empty())
    }

    /// What becomes of the announced routes, with `set` from [`Self::attributes`] or from a store; new faults go to `faults`.
    ///
    /// # Errors
    /// RFC 7606 section 5.2: an attribute error worse than "discard" in a message that announces nothing, so that the routes it is about may
    /// have been lost, resets the session.
    pub fn judge(&self, set: &AttributeSet, faults: &mut Vec<Fault>) -> Result<Verdict, Notification> {
        let before = faults.len();
        let withdraw = Treatment::TreatAsWithdraw;
        let mut note = |attribute, what| faults.push(Fault { attribute, treatment: withdraw, what });
        if self.announces() {
            for code in [kind::ORIGIN, kind::AS_PATH] {
                if !self.present.contains(code) {
                    note(code, "a mandatory attribute is missing");
                }
            }
        }
        if !self.announced.is_empty() {
            match set.next_hop {
                Some(address) if !NextHop::new(IpAddr::V4(address)).is_usable() => {
                    note(kind::NEXT_HOP, "NEXT_HOP is no host address");
                }
                None if !self.present.contains(kind::NEXT_HOP) => {
                    note(kind::NEXT_HOP, "a mandatory attribute is missing")
                }
                _ => {}
            }
        }
        let own = self.faults.iter().any(|fault| fault.treatment == withdraw);
        let bad = own || faults.len() > before || set.treat_as_withdraw;
        if bad && !self.announces() && !self.foreign && !self.only_withdraws() {
            return Err(Notification::new(code::UPDATE, 1));
        }
        Ok(if bad { Verdict::TreatAsWithdraw } else { Verdict::Accept })
    }

    /// Whether there are no attributes but MP_UNREACH, whose routes are known.
    fn only_withdraws(&self) -> bool {
        self.key.is_empty() && self.mp_reach.is_none()
    }

    /// Runs of routes that are gone.
    pub fn withdrawn(&self) -> impl Iterator<Item = Nlri<'a>> + use<'a> {
        [Some(self.withdrawn), self.mp_unreach].into_iter().flatten().filter(|run| !run.is_empty())
    }

    /// Runs of routes that are there, if [`Self::judge`] accepts them, or gone, if it does not.
    pub fn announced(&self, set: &AttributeSet) -> impl Iterator<Item = ReachView<'a>> + use<'a> {
        let next_hop = set.next_hop.map(|address| NextHop::new(IpAddr::V4(address)));
        let plain = Some(ReachView { next_hop, nlri: self.announced });
        [plain, self.mp_reach].into_iter().flatten().filter(|reach| !reach.nlri.is_empty())
    }

    /// All unicast routes that are gone.
    pub fn withdrawn_routes(&self) -> impl Iterator<Item = Route> + use<'a> {
        self.withdrawn().flat_map(|run| run.routes())
    }
}
