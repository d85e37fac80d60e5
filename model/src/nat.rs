//! Source NAT (`ebpf/bpf/nat.h`): to the node's internal address for backends on other nodes and for pods that reach
//! themselves through a service, to an address of the outside for what pods send out of the mesh.

use crate::ct::{Sight, Signs, Way};
use crate::flight::Flight;
use crate::hash::flow_hash;
use crate::node::Node;
use crate::outcome::Reason;
use crate::packet::{ICMP, ICMPV6, SCTP, Socket, Tuple};
use crate::story::Step;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Ports among which the mapping of a flow under way is looked for.
const TRIES: u32 = 64;
/// How long a destination whose ports are all taken is not searched again, unless one of them ends before.
const FULL_NS: u64 = 100_000_000;

/// How a flow's answers find their way back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// When it may be given to another flow, in nanoseconds of the caller's clock.
    pub expires_ns: u64,
    /// Who sent the flow.
    pub source: Socket,
    /// The number of the reverse translation.
    pub rev_nat: u32,
    /// What the flow has shown.
    pub signs: Signs,
}

impl Mapping {
    fn is_of(&self, new: &Self) -> bool {
        self.source == new.source && self.rev_nat == new.rev_nat
    }

    fn touch(&mut self, sight: &Sight, way: Way) {
        if !sight.is_error {
            self.signs = self.signs.and(self.signs.shown_by(sight, way));
            self.expires_ns = sight.now_ns + self.signs.life_ns(sight.protocol);
        }
    }
}

/// Translations, in both directions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    /// A flow before its translation, and the source it gets.
    pub out: BTreeMap<Tuple, Socket>,
    /// The tuple of the answers, and where they belong.
    pub back: BTreeMap<Tuple, Mapping>,
}

/// All translations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nat {
    /// Of flows that nobody has answered yet; where room is short, the oldest go.
    pub half: Ways,
    /// Of answered ones.
    pub answered: Ways,
    /// Until when a destination, as answers without a port name it, has no port left.
    pub full: BTreeMap<Tuple, u64>,
}

/// Where a claimed mapping is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claimed {
    Half,
    Answered,
}

impl Nat {
    /// The way out of a flow.
    fn way_out(&self, flow: &Tuple) -> Option<Socket> {
        self.answered.out.get(flow).or_else(|| self.half.out.get(flow)).copied()
    }

    fn way_back(&mut self, answers: &Tuple) -> Option<(&mut Mapping, Claimed)> {
        match self.answered.back.get_mut(answers) {
            Some(mapping) => Some((mapping, Claimed::Answered)),
            None => self.half.back.get_mut(answers).map(|mapping| (mapping, Claimed::Half)),
        }
    }

    /// Both ways of a flow move when it has shown that it lasts.
    fn promote(&mut self, answers: &Tuple) {
        let Some(mapping) = self.half.back.remove(answers) else { return };
        let flow = Tuple { source: mapping.source, destination: answers.source, ..*answers };
        self.half.out.remove(&flow);
        self.answered.out.insert(flow, answers.destination);
        self.answered.back.insert(*answers, mapping);
    }

    /// User space has freed ports, or there are others.
    pub fn search_again(&mut self) {
        self.full.clear();
    }

    /// The first port that can be claimed. Where none can, nobody searches until one may be free.
    fn claim_any(
        &mut self,
        flow: &Tuple,
        own: IpAddr,
        ports: impl Iterator<Item = u16>,
        (sight, new): (&Sight, &Mapping),
    ) -> Option<(u16, Claimed)> {
        let destination = answers_of(flow, (own, 0));
        if flow.protocol != SCTP && self.full.get(&destination).is_some_and(|until| *until > sight.now_ns) {
            return None;
        }
        let mut ends = sight.now_ns + FULL_NS;
        for port in ports {
            if let Some(place) = self.claim(flow, (own, port), sight, new) {
                return Some((port, place));
            }
            if let Some((taken, _)) = self.way_back(&answers_of(flow, (own, port))) {
                ends = ends.min(taken.expires_ns);
            }
        }
        if flow.protocol != SCTP {
            self.full.insert(destination, ends);
        }
        None
    }

    /// Whether the answers to `flow` from `source` are known to be this flow's.
    fn is_mine(&mut self, flow: &Tuple, source: Socket, new: &Mapping) -> bool {
        self.way_back(&answers_of(flow, source)).is_some_and(|(known, _)| known.is_of(new))
    }

    /// Claims a source for the answers to `flow`. A mapping whose flow is over gives way.
    fn claim(&mut self, flow: &Tuple, source: Socket, sight: &Sight, new: &Mapping) -> Option<Claimed> {
        let answers = answers_of(flow, source);
        if let Some((known, place)) = self.way_back(&answers) {
            if known.is_of(new) {
                // A new connection of the same tuple starts with no memory of the old one.
                if sight.opens() {
                    known.signs = Signs::default();
                }
                known.touch(sight, Way::Opening);
                if place == Claimed::Half && !sight.is_error && known.signs.last() {
                    self.promote(&answers);
                }
                return Some(place);
            }
            if known.expires_ns >= sight.now_ns {
                return None;
            }
        }
        self.answered.back.remove(&answers);
        self.half.back.insert(answers, new.clone());
        Some(Claimed::Half)
    }

    /// Notes the way out, and forgets one that led elsewhere.
    fn lead_out(&mut self, flow: Tuple, source: Socket, place: Claimed) {
        let (to, other) = match place {
            Claimed::Half => (&mut self.half, &mut self.answered),
            Claimed::Answered => (&mut self.answered, &mut self.half),
        };
        to.out.insert(flow, source);
        other.out.remove(&flow);
    }

    /// User space deletes mappings whose flow is over, and ways out that lead to none, or to another flow's. Those that
    /// nobody has answered are left to the map, which replaces the oldest.
    pub(crate) fn collect(&mut self, now_ns: u64) {
        let Ways { out, back } = &mut self.answered;
        back.retain(|_, mapping| mapping.expires_ns >= now_ns);
        let leads = |flow: &Tuple, source: Socket| {
            back.get(&answers_of(flow, source)).is_some_and(|mapping| mapping.source == flow.source)
        };
        out.retain(|flow, source| leads(flow, *source));
    }
}

/// The tuple of the answers to a flow that has got another source. The identifier of an echo stands in the source port
/// alone.
fn answers_of(flow: &Tuple, source: Socket) -> Tuple {
    let (address, port) = flow.destination;
    let port = if matches!(flow.protocol, ICMP | ICMPV6) { 0 } else { port };
    Tuple { source: (address, port), destination: source, protocol: flow.protocol }
}

impl Node {
    /// Gives a packet the node's internal address as source, and a port that leads its answers back.
    pub(crate) fn snat(&mut self, flight: &mut Flight<'_>) -> Result<(), Reason> {
        let own = self.config.internal(flight.was.is_ipv4()).ok_or(Reason::NatNoMapping)?;
        self.snat_to(flight, own, flight.rev_nat)
    }

    /// Gives a packet this address as source. `rev_nat` is undone with the answers.
    pub(crate) fn snat_to(
        &mut self,
        flight: &mut Flight<'_>,
        own: IpAddr,
        rev_nat: u32,
    ) -> Result<(), Reason> {
        let flow = Tuple { source: flight.was.source, ..flight.becomes };
        let sight = flight.sight;
        let mut new = Mapping { expires_ns: 0, source: flow.source, rev_nat, signs: Signs::default() };
        new.touch(&sight, Way::Opening);
        let mut claimed = None;
        match self.nat.way_out(&flow).filter(|(address, _)| *address == own) {
            Some((_, port)) if self.nat.claim(&flow, (own, port), &sight, &new).is_some() => {
                flight.becomes.source = (own, port);
                self.tell(|| Step::Snat { from: flow.source, to: (own, port) });
                return Ok(());
            }
            Some(_) => {}
            None if sight.is_error => return Err(Reason::UnknownCt),
            // The flow is under way, and its service knows it: of its two entries the other may be left, and names the port
            // that its backend knows.
            None if sight.under_way() && !flight.fresh => {
                let known = self.steps(&flow, TRIES).find(|port| self.nat.is_mine(&flow, (own, *port), &new));
                claimed =
                    known.and_then(|port| Some((port, self.nat.claim(&flow, (own, port), &sight, &new)?)));
            }
            None => {}
        }
        let all = self.steps(&flow, u32::MAX);
        let free = || self.nat.claim_any(&flow, own, all, (&sight, &new));
        let (port, place) = claimed.or_else(free).ok_or(Reason::NatNoMapping)?;
        self.nat.lead_out(flow, (own, port), place);
        flight.becomes.source = (own, port);
        self.tell(|| Step::Snat { from: flow.source, to: (own, port) });
        Ok(())
    }

    /// The ports that a flow comes by in its first steps. Each walks in steps of its own, so that ports in use do not pile up
    /// into long runs; as it walks modulo a prime, it comes by all of them. SCTP keeps its own port, or has none.
    fn steps(&self, flow: &Tuple, most: u32) -> impl Iterator<Item = u16> + use<> {
        let (first, last) = (*self.config.snat_ports.start(), *self.config.snat_ports.end());
        let range = u64::from(last.saturating_sub(first)) + 1;
        let prime = (range.max(2)..).find(|n| (2..*n).take_while(|d| d * d <= *n).all(|d| n % d != 0));
        let prime = prime.unwrap_or(range);
        let hash = u64::from(flow_hash(flow.source, flow.destination, flow.protocol));
        let step = 1 + (hash >> 16) % (prime - 1);
        let place = move |n: u64| (hash + n * step) % prime;
        let kept = (flow.protocol == SCTP).then_some(flow.source.1).filter(|port| *port != 0);
        let walked = if flow.protocol == SCTP { 0 } else { prime.min(u64::from(most)) };
        let places = (0..walked).map(place).filter(move |place| *place < range);
        kept.into_iter().chain(places.filter_map(move |place| u16::try_from(u64::from(first) + place).ok()))
    }

    /// Undoes it for an answer; false if it is none.
    pub(crate) fn unsnat(&mut self, flight: &mut Flight<'_>) -> bool {
        let now_ns = flight.sight.now_ns;
        let known = self.nat.way_back(&flight.was).filter(|(mapping, _)| mapping.expires_ns >= now_ns);
        let Some((mapping, place)) = known else { return false };
        mapping.touch(&flight.sight, Way::Answering);
        let (client, rev_nat) = (mapping.source, mapping.rev_nat);
        let lasts = !flight.sight.is_error && mapping.signs.last();
        if place == Claimed::Half && lasts {
            self.nat.promote(&flight.was);
        }
        flight.becomes.destination = client;
        flight.reply = true;
        self.tell(|| Step::Unsnat { to: client });
        if rev_nat != 0 {
            self.unmask(flight, rev_nat);
            let signs = Signs::default().shown_by(&flight.sight, Way::Answering);
            self.tell_service(flight, client, signs);
        }
        true
    }
}
