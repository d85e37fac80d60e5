//! Source NAT to the node's internal address (`ebpf/bpf/nat.h`): for backends on other nodes, and for pods that reach
//! themselves through a service.

use crate::ct::{Sight, Signs, Way};
use crate::flight::Flight;
use crate::hash::flow_hash;
use crate::node::Node;
use crate::outcome::Reason;
use crate::packet::{ICMP, ICMPV6, Socket, Tuple};
use std::collections::BTreeMap;

/// Ports that are tried for a flow.
const TRIES: u32 = 64;

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
    fn touch(&mut self, sight: &Sight, way: Way) {
        if !sight.is_error {
            self.signs = self.signs.and(self.signs.shown_by(sight, way));
            self.expires_ns = sight.now_ns + self.signs.life_ns(sight.protocol);
        }
    }
}

/// All translations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nat {
    /// A flow before its translation, and the source it gets.
    pub out: BTreeMap<Tuple, Socket>,
    /// The tuple of the answers, and where they belong.
    pub back: BTreeMap<Tuple, Mapping>,
}

impl Nat {
    /// Claims a source for the answers to `flow`. A mapping whose flow is over gives way.
    fn claim(&mut self, flow: &Tuple, source: Socket, sight: &Sight, new: &Mapping) -> bool {
        let answers = answers_of(flow, source);
        if let Some(known) = self.back.get_mut(&answers) {
            if known.source == new.source && known.rev_nat == new.rev_nat {
                // A new connection of the same tuple starts with no memory of the old one.
                if sight.opens() {
                    known.signs = Signs::default();
                }
                known.touch(sight, Way::Opening);
                return true;
            }
            if known.expires_ns >= sight.now_ns {
                return false;
            }
        }
        self.back.insert(answers, new.clone());
        true
    }

    /// User space deletes mappings whose flow is over, and ways out that lead to none, or to another flow's.
    pub(crate) fn collect(&mut self, now_ns: u64) {
        self.back.retain(|_, mapping| mapping.expires_ns >= now_ns);
        let back = &self.back;
        let leads = |flow: &Tuple, source: Socket| {
            back.get(&answers_of(flow, source)).is_some_and(|mapping| mapping.source == flow.source)
        };
        self.out.retain(|flow, source| leads(flow, *source));
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
        let flow = Tuple { source: flight.was.source, ..flight.becomes };
        let sight = flight.sight;
        let mut new =
            Mapping { expires_ns: 0, source: flow.source, rev_nat: flight.rev_nat, signs: Signs::default() };
        new.touch(&sight, Way::Opening);
        match self.nat.out.get(&flow).copied() {
            Some((_, port)) if self.nat.claim(&flow, (own, port), &sight, &new) => {
                flight.becomes.source = (own, port);
                return Ok(());
            }
            None if sight.is_error => return Err(Reason::UnknownCt),
            _ => {}
        }
        let mut ports = self.ports(&flow);
        let claimed = ports.find(|port| self.nat.claim(&flow, (own, *port), &sight, &new));
        let port = claimed.ok_or(Reason::NatNoMapping)?;
        self.nat.out.insert(flow, (own, port));
        flight.becomes.source = (own, port);
        Ok(())
    }

    /// The ports that a flow tries. Each walks in steps of its own, so that ports in use do not pile up into long runs.
    fn ports(&self, flow: &Tuple) -> impl Iterator<Item = u16> + use<> {
        let (first, last) = (*self.config.snat_ports.start(), *self.config.snat_ports.end());
        let range = u32::from(last.saturating_sub(first)) + 1;
        let hash = flow_hash(flow.source, flow.destination, flow.protocol);
        let step = hash >> 16 | 1;
        let place = move |n: u32| hash.wrapping_add(n.wrapping_mul(step)) % range;
        (0..TRIES).filter_map(move |n| u16::try_from(u32::from(first) + place(n)).ok())
    }

    /// Undoes it for an answer; false if it is none.
    pub(crate) fn unsnat(&mut self, flight: &mut Flight<'_>) -> bool {
        let Some(mapping) = self.nat.back.get_mut(&flight.was) else { return false };
        mapping.touch(&flight.sight, Way::Answering);
        let (client, rev_nat) = (mapping.source, mapping.rev_nat);
        flight.becomes.destination = client;
        flight.reply = true;
        if rev_nat != 0 {
            self.unmask(flight, rev_nat);
            let signs = Signs::default().shown_by(&flight.sight, Way::Answering);
            self.tell_service(flight, client, signs);
        }
        true
    }
}
