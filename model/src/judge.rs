//! What a pod may send and receive (`ebpf/bpf/endpoint.h`): conntrack first, then policy. An answer lives by the allow of
//! its flow, and ends with it.

use crate::ct::{Entry, Key, Kind, Signs, Way};
use crate::flight::Flight;
use crate::node::{HOST, Node};
use crate::outcome::Reason;
use crate::packet::Socket;
use crate::story::Step;
use crate::verdict::{Direction, Question};

/// What is known of a flow whose answer a packet is.
struct Answered {
    loopback: bool,
    rev_nat: u32,
    half: bool,
}

/// The node itself may always reach its pods, and a pod itself.
const fn policy_of(policy: u32, peer: u32, loopback: bool) -> u32 {
    if peer == HOST || loopback { 0 } else { policy }
}

impl Node {
    pub(crate) fn allows(
        &self,
        flight: &Flight<'_>,
        policy: u32,
        direction: Direction,
        identity: u32,
        port: u16,
    ) -> Result<(), Reason> {
        let (protocol, ipv4) = (flight.was.protocol, flight.was.is_ipv4());
        self.asks(policy, Question { direction, identity, protocol, port, ipv4 })
    }

    /// What a policy says; without one all is allowed.
    pub(crate) fn asks(&self, policy: u32, question: Question) -> Result<(), Reason> {
        let row = self.policies.get(&policy);
        let verdict = match row {
            _ if policy == 0 => Ok(()),
            Some(row) => row.allows(&question),
            None => Err(Reason::Policy),
        };
        let rule = row.and_then(|row| row.decisive(&question));
        self.tell(|| Step::Policy { policy, question, verdict, rule });
        verdict
    }

    /// Whether a flow is known, and still half-open.
    pub(crate) fn looks_up(
        &mut self,
        flight: &Flight<'_>,
        key: &Key,
        answer: bool,
    ) -> Option<(&mut Entry, bool)> {
        let known = self.conntrack.find(key, &flight.sight).map(|(_, half)| half);
        self.tell(|| Step::Flow { kind: key.kind, flow: key.tuple, known, answer });
        self.conntrack.find(key, &flight.sight)
    }

    /// Whether a packet of a pod answers a flow that came in. Its translation is undone, but for a flow of a pod to itself.
    pub(crate) fn answers(&mut self, flight: &mut Flight<'_>, policy: u32) -> Result<bool, Reason> {
        let key = Key { kind: Kind::Ingress, tuple: flight.was.reversed() };
        let Some((entry, half)) = self.looks_up(flight, &key, true) else { return Ok(false) };
        let (peer, flow) =
            (entry.identity, Answered { loopback: entry.loopback, rev_nat: entry.rev_nat, half });
        flight.reply = true;
        flight.destination_identity = peer;
        let policy = policy_of(policy, peer, flow.loopback);
        self.allows(flight, policy, Direction::Ingress, peer, flight.was.source.1)?;
        self.conntrack.touch(&key, &flight.sight, Way::Answering);
        flight.loopback = flow.loopback;
        if !flow.loopback {
            self.turn_back(flight, &flow, flight.was.destination);
        }
        Ok(true)
    }

    /// Whether a packet for a pod answers a flow that the pod opened. The frontend's address is put back.
    fn opened_here(&mut self, flight: &mut Flight<'_>, policy: u32) -> Result<bool, Reason> {
        let key = Key { kind: Kind::Egress, tuple: flight.becomes.reversed() };
        let Some((entry, half)) = self.looks_up(flight, &key, true) else { return Ok(false) };
        let (peer, flow) = (entry.identity, Answered { loopback: false, rev_nat: entry.rev_nat, half });
        flight.reply = true;
        self.allows(flight, policy, Direction::Egress, peer, flight.becomes.source.1)?;
        self.conntrack.touch(&key, &flight.sight, Way::Answering);
        self.turn_back(flight, &flow, flight.becomes.destination);
        Ok(true)
    }

    /// An answer of a backend becomes one of its frontend, whose memory hears of the first ones, and of an end.
    fn turn_back(&mut self, flight: &mut Flight<'_>, flow: &Answered, client: Socket) {
        if flow.rev_nat == 0 {
            return;
        }
        self.unmask(flight, flow.rev_nat);
        let signs = Signs::default().shown_by(&flight.sight, Way::Answering);
        if flow.half || signs.closing() {
            self.tell_service(flight, client, signs);
        }
    }

    /// A packet that a pod sends, and that answers nothing.
    pub(crate) fn sends(&mut self, flight: &mut Flight<'_>, policy: u32) -> Result<(), Reason> {
        let key = Key { kind: Kind::Egress, tuple: flight.becomes };
        let (peer, rev_nat) = (flight.destination_identity, flight.rev_nat);
        let known = self.known_for(flight, &key)?;
        self.allows(flight, policy, Direction::Egress, peer, flight.becomes.destination.1)?;
        self.goes_on(flight, key, known, Entry { identity: peer, rev_nat, ..Entry::default() });
        Ok(())
    }

    /// A packet for a pod of this node: conntrack and ingress policy.
    pub(crate) fn receives(&mut self, flight: &mut Flight<'_>, ifindex: u32) -> Result<(), Reason> {
        let pod = self.ready_pod(ifindex)?;
        let (identity, policy) = (pod.identity, pod.policy);
        flight.destination_identity = identity;
        if flight.loopback && flight.reply {
            return Ok(());
        }
        let key = Key { kind: Kind::Ingress, tuple: flight.becomes };
        let runs = self.conntrack.runs(&key, &flight.sight);
        if !runs && !flight.loopback && self.opened_here(flight, policy)? {
            return Ok(());
        }
        let (peer, rev_nat, loopback) = (flight.source_identity, flight.in_rev_nat, flight.loopback);
        let known = self.known_for(flight, &key)?;
        let policy = policy_of(policy, peer, loopback);
        self.allows(flight, policy, Direction::Ingress, peer, flight.becomes.destination.1)?;
        self.goes_on(flight, key, known, Entry { identity: peer, rev_nat, loopback, ..Entry::default() });
        Ok(())
    }

    /// Whether the flow is known. An error must speak of one that is.
    fn known_for(&mut self, flight: &Flight<'_>, key: &Key) -> Result<bool, Reason> {
        match self.looks_up(flight, key, false) {
            Some(_) => Ok(true),
            None if flight.sight.is_error => Err(Reason::UnknownCt),
            None => Ok(false),
        }
    }

    /// An allowed packet in the opening direction: of a flow that is known, or that begins as `new`.
    fn goes_on(&mut self, flight: &mut Flight<'_>, key: Key, known: bool, new: Entry) {
        if !known {
            self.conntrack.create(key, &flight.sight, new);
            flight.fresh = true;
            return;
        }
        let rev_nat = new.rev_nat;
        if let Some((entry, _)) = self.conntrack.find(&key, &flight.sight) {
            entry.identity = new.identity;
            // Two frontends of one backend, or the backend itself, may be one flow here: the last one counts.
            if !flight.sight.is_error {
                entry.rev_nat = rev_nat;
            }
        }
        let signs = self.conntrack.touch(&key, &flight.sight, Way::Opening);
        // The service's entry is new to a flow that was answered before.
        if flight.fresh && signs.replied && rev_nat != 0 {
            let told = Signs { replied: true, confirmed: signs.confirmed, ..Signs::default() };
            self.tell_service(flight, key.tuple.source, told);
        }
    }
}
