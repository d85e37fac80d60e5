//! Services (`ebpf/bpf/lb.h`): frontend to backend by the flow's hash, remembered per client.

use crate::ct::{Entry, Key, Kind, Signs, Way};
use crate::flight::{Flight, Place};
use crate::hash::flow_hash;
use crate::node::Node;
use crate::outcome::Reason;
use crate::packet::{Protocol, Socket, Tuple};
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
        let takes =
            |ranges: &Vec<ipnet::IpNet>| ranges.iter().any(|range| range.contains(&flight.was.source.0));
        if !self.ranges.get(&asked).is_none_or(takes) {
            return Err(Reason::NotInRange);
        }
        let key = Key { kind: Kind::Service, tuple: flight.was };
        let remembered = self.looks_up(flight, &key, false).and_then(|(entry, _)| entry.backend);
        let backend = match remembered.filter(|known| self.is_still(*known)) {
            Some((_, socket)) => {
                self.conntrack.touch(&key, &flight.sight, Way::Opening);
                socket
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

    fn choose(
        &mut self,
        flight: &Flight<'_>,
        asked: &Frontend,
        service: &Service,
    ) -> Result<(u32, Socket), Reason> {
        let Some(seconds) = self.affinity.seconds.get(asked).copied().filter(|_| !service.slots.is_empty())
        else {
            return self.hashed(&flight.was, service);
        };
        let (now, client) = (flight.sight.now_ns, flight.was.source.0);
        let known = self.affinity.met.get(&(client, service.rev_nat)).copied();
        let met = known.filter(|(last, number, socket)| {
            last.saturating_add(u64::from(seconds) * 1_000_000_000) >= now
                && self.affinity.members.contains(&(service.rev_nat, *number, asked.scope))
                && self.is_still((*number, *socket))
        });
        // By the client alone: then all nodes choose alike for it.
        let of_client = Tuple { source: (client, 0), ..flight.was };
        let (number, socket) = match met {
            Some((_, number, socket)) => (number, socket),
            None => self.hashed(&of_client, service)?,
        };
        self.affinity.met.insert((client, service.rev_nat), (now, number, socket));
        Ok((number, socket))
    }

    fn hashed(&self, flow: &Tuple, service: &Service) -> Result<(u32, Socket), Reason> {
        let slot = slot(flow, service.slots.len());
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
