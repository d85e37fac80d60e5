//! Services (`ebpf/bpf/lb.h`): frontend to backend by the flow's hash, remembered per client.

use crate::ct::{Entry, Key, Kind, Signs, Way};
use crate::flight::{Flight, Place};
use crate::hash::flow_hash;
use crate::node::{Node, Prefix};
use crate::outcome::Reason;
use crate::packet::{Protocol, SCTP, Socket, TCP, Tuple, UDP};
use crate::story::Step;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Packets that enter at the uplink.
    External,
    /// Packets of the node's pods.
    Internal,
}

/// A service address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Frontend {
    /// The address.
    pub address: IpAddr,
    /// The port; 0 with protocol 0: all else that comes to the address is dropped.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// The scope.
    pub scope: Scope,
}

/// What a frontend leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// The number of the reverse translation.
    pub rev_nat: u32,
    /// The Maglev table, of backends' numbers.
    pub slots: Vec<u32>,
}

/// Session affinity: whom clients met, and whom they may meet again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Affinity {
    /// How long a client is sent to the same backend after it opened a flow, in seconds, by frontend.
    pub seconds: BTreeMap<Frontend, u32>,
    /// By client and number of the reverse translation: when it opened a flow last, and to which backend.
    pub met: BTreeMap<(IpAddr, u32), (u64, u32, Socket)>,
    /// Backends that take new flows, by number of the reverse translation.
    pub members: BTreeSet<(u32, u32, Scope)>,
}

/// A backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its address and port.
    pub socket: Socket,
}

/// The slot of a table of `slots` that a new flow to a frontend gets; `None` of an empty one.
fn slot(flow: &Tuple, slots: usize) -> Option<usize> {
    let hash = flow_hash(flow.source, flow.destination, flow.protocol);
    usize::try_from(hash).ok()?.checked_rem(slots)
}

impl Node {
    /// Leads a packet to a service on to a backend; false if its destination is no service's.
    pub(crate) fn serve(&mut self, flight: &mut Flight<'_>, scope: Scope) -> Result<bool, Reason> {
        let (address, port) = flight.was.destination;
        let asked = Frontend { address, port, protocol: flight.was.protocol, scope };
        let Some(service) = self.services.get(&asked).cloned() else {
            // What is not served of an address of the node is the node's.
            let closed = flight.place != Place::Host && self.closes_rest(address, scope);
            self.tell(|| Step::Service {
                frontend: (address, port),
                scope,
                backend: None,
                remembered: false,
            });
            return if closed { Err(Reason::NoService) } else { Ok(false) };
        };
        // Nodes alone do that, and to pods.
        if flight.named.is_some() {
            return Err(Reason::Invalid);
        }
        if !self.takes(flight, &asked) {
            return Err(Reason::NotInRange);
        }
        let key = Key { kind: Kind::Service, tuple: flight.was };
        let entry = self.looks_up(flight, &key, false);
        let (remembered, one_sided) =
            entry.map_or((None, false), |(entry, _)| (entry.backend, entry.one_sided));
        let backend = match remembered.filter(|known| self.is_still(*known)) {
            Some((_, socket)) => {
                flight.one_sided = one_sided;
                self.conntrack.touch(&key, &flight.sight, Way::Opening);
                socket
            }
            // Of a flow that another node leads: all choose alike, so this is its backend, and its node knows the flow.
            None if flight.sight.is_error && scope == Scope::External => {
                flight.guessed = true;
                self.by_hash(flight, &asked, &service).map_err(|_| Reason::UnknownCt)?.1
            }
            None if flight.sight.is_error => return Err(Reason::UnknownCt),
            None => {
                let (number, socket) = self.choose(flight, &asked, &service)?;
                let backend = Some((number, socket));
                let entry = Entry { rev_nat: service.rev_nat, backend, ..Entry::default() };
                self.conntrack.create(key, &flight.sight, entry);
                flight.fresh = true;
                socket
            }
        };
        if flight.was.protocol == SCTP && backend.1 != port {
            return Err(Reason::NatProtocol);
        }
        let (frontend, remembered) = (flight.was.destination, !flight.fresh);
        self.tell(|| Step::Service { frontend, scope, backend: Some(backend), remembered });
        flight.rev_nat = service.rev_nat;
        flight.frontend = Some(flight.was.destination);
        flight.becomes.destination = backend;
        Ok(true)
    }

    /// Whether all that no service has of an address is dropped.
    pub(crate) fn closes_rest(&self, address: IpAddr, scope: Scope) -> bool {
        self.services.contains_key(&Frontend { address, port: 0, protocol: 0, scope })
    }

    /// Whether a backend's number still means the same.
    fn is_still(&self, (number, socket): (u32, Socket)) -> bool {
        self.backends.get(&number).is_some_and(|backend| backend.socket == socket)
    }

    /// Whether a frontend takes the packet's client.
    fn takes(&self, flight: &Flight<'_>, asked: &Frontend) -> bool {
        let client = flight.was.source.0;
        self.ranges.get(asked).is_none_or(|ranges| ranges.iter().any(|range| range.contains(&client)))
    }

    /// Whether the backend's node shall answer the client of a flow that begins. Not for clients in the mesh, whose address
    /// may be that node's own; nor where the frontend is not known, as in other clusters and of this node's own addresses; nor through WireGuard under the
    /// client's address, which the other end does not take.
    pub(crate) fn answered_there(&mut self, flight: &Flight<'_>, prefix: Prefix) -> bool {
        let (tcp, udp) = self.config.direct_return;
        let wanted = match flight.was.protocol {
            TCP => tcp,
            UDP => udp,
            _ => false,
        };
        let never = prefix.remote_cluster || prefix.skip_tunnel || (prefix.encrypt && self.config.encrypt);
        let own = self.local.contains_key(&flight.was.destination.0);
        let begins = flight.fresh && wanted && flight.outsider && prefix.node != 0 && !never && !own;
        let key = Key { kind: Kind::Service, tuple: flight.was };
        if begins && let Some(entry) = self.conntrack.half.get_mut(&key) {
            entry.one_sided = true;
        }
        begins || flight.one_sided || flight.guessed
    }

    /// A packet for a pod of this node names a frontend: it must be known here, with this backend.
    pub(crate) fn named_here(&self, flight: &mut Flight<'_>) -> Result<(), Reason> {
        let Some((address, port)) = flight.named else { return Ok(()) };
        // No node does that: the answers' ports cannot be changed.
        if flight.was.protocol == SCTP {
            return Err(Reason::Invalid);
        }
        let asked = Frontend { address, port, protocol: flight.was.protocol, scope: Scope::External };
        let rev_nat = self.services.get(&asked).ok_or(Reason::NoService)?.rev_nat;
        if !self.takes(flight, &asked) {
            return Err(Reason::NotInRange);
        }
        let backends = self.fronts.get(&asked).ok_or(Reason::Invalid)?;
        if !backends.contains(&flight.becomes.destination) {
            return Err(Reason::Invalid);
        }
        flight.in_rev_nat = rev_nat;
        Ok(())
    }

    fn choose(
        &mut self,
        flight: &Flight<'_>,
        asked: &Frontend,
        service: &Service,
    ) -> Result<(u32, Socket), Reason> {
        let Some(seconds) = self.affinity.seconds.get(asked).copied().filter(|_| !service.slots.is_empty())
        else {
            return self.by_hash(flight, asked, service);
        };
        let (now, client) = (flight.sight.now_ns, flight.was.source.0);
        let known = self.affinity.met.get(&(client, service.rev_nat)).copied();
        let met = known.filter(|(last, number, socket)| {
            last.saturating_add(u64::from(seconds) * 1_000_000_000) >= now
                && self.affinity.members.contains(&(service.rev_nat, *number, asked.scope))
                && self.is_still((*number, *socket))
        });
        let (number, socket) = match met {
            Some((_, number, socket)) => (number, socket),
            None => self.by_hash(flight, asked, service)?,
        };
        self.affinity.met.insert((client, service.rev_nat), (now, number, socket));
        Ok((number, socket))
    }

    /// By the flow, or with affinity by the client alone: then all nodes choose alike for it.
    fn by_hash(
        &self,
        flight: &Flight<'_>,
        asked: &Frontend,
        service: &Service,
    ) -> Result<(u32, Socket), Reason> {
        let (client, port) = flight.was.source;
        let port = if self.affinity.seconds.contains_key(asked) { 0 } else { port };
        let slot = slot(&Tuple { source: (client, port), ..flight.was }, service.slots.len());
        let number = slot.and_then(|slot| service.slots.get(slot)).ok_or(Reason::NoService)?;
        let backend = self.backends.get(number).ok_or(Reason::NoService)?;
        Ok((*number, backend.socket))
    }

    /// The flow behind a frontend shows signs of life or death: what remembers its backend is told.
    pub(crate) fn tell_service(&mut self, flight: &Flight<'_>, client: Socket, signs: Signs) {
        let Some(frontend) = flight.frontend.filter(|_| !flight.sight.is_error) else { return };
        let tuple = Tuple { source: client, destination: frontend, protocol: flight.was.protocol };
        self.conntrack.answered(&Key { kind: Kind::Service, tuple }, &flight.sight, signs);
    }
}
