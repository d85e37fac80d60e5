//! The node's own traffic under its policy (`ebpf/bpf/host.h`): tracked only while there is one.

use crate::ct::{Entry, Key, Kind, Way};
use crate::flight::Flight;
use crate::node::{Node, is_node};
use crate::outcome::Reason;
use crate::packet::{Fragment, UDP};
use crate::verdict::{Direction, Question};
use std::net::IpAddr;

impl Node {
    /// Whether a packet is for the node itself to judge, and not what carries the mesh, or an error.
    fn judges_own(&self, flight: &Flight<'_>, peer: IpAddr) -> bool {
        let port = flight.becomes.destination.1;
        let carrier = port == self.config.vxlan_port || Some(port) == self.config.wireguard_port;
        let known =
            || self.prefix_of(peer).is_some_and(|prefix| prefix.node != 0 && is_node(prefix.identity));
        self.config.host_policy != 0
            && !flight.sight.is_error
            && !(flight.was.protocol == UDP && carrier && known())
    }

    /// A packet for the node.
    pub(crate) fn host_receives(&mut self, flight: &mut Flight<'_>) -> Result<(), Reason> {
        let (peer, identity) = (flight.becomes.source.0, flight.source_identity);
        if !self.judges_own(flight, peer) || self.host_answers(flight, Kind::HostOut, Direction::Egress)? {
            return Ok(());
        }
        self.host_flow(flight, Kind::HostIn, Direction::Ingress, identity)
    }

    /// A packet of the node.
    pub(crate) fn host_sends(&mut self, flight: &mut Flight<'_>) -> Result<(), Reason> {
        let (peer, identity) = (flight.becomes.destination.0, flight.destination_identity);
        if !self.judges_own(flight, peer) || self.host_answers(flight, Kind::HostIn, Direction::Ingress)? {
            return Ok(());
        }
        self.host_flow(flight, Kind::HostOut, Direction::Egress, identity)
    }

    /// A packet for or of the node that cannot be tracked. Later fragments are nothing without the first.
    pub(crate) fn host_untracked(
        &self,
        flight: &Flight<'_>,
        direction: Direction,
        identity: u32,
    ) -> Result<(), Reason> {
        let (policy, packet) = (self.config.host_policy, flight.packet);
        let (protocol, ipv4) = (packet.protocol(), packet.source.is_ipv4());
        let later = matches!(packet.fragment, Fragment::Later(_));
        if policy == 0 || flight.sight.is_error || later {
            return Ok(());
        }
        let question = Question { direction, identity, protocol, port: 0, ipv4 };
        self.policies.get(&policy).ok_or(Reason::Policy)?.allows(&question)
    }

    fn host_answers(
        &mut self,
        flight: &mut Flight<'_>,
        kind: Kind,
        direction: Direction,
    ) -> Result<bool, Reason> {
        let key = Key { kind, tuple: flight.becomes.reversed() };
        let Some((entry, _)) = self.conntrack.find(&key, &flight.sight) else { return Ok(false) };
        let identity = entry.identity;
        flight.reply = true;
        self.allows(flight, self.config.host_policy, direction, identity, flight.becomes.source.1)?;
        self.conntrack.touch(&key, &flight.sight, Way::Answering);
        Ok(true)
    }

    fn host_flow(
        &mut self,
        flight: &mut Flight<'_>,
        kind: Kind,
        direction: Direction,
        identity: u32,
    ) -> Result<(), Reason> {
        let key = Key { kind, tuple: flight.becomes };
        let known = self.conntrack.find(&key, &flight.sight).is_some();
        self.allows(flight, self.config.host_policy, direction, identity, flight.becomes.destination.1)?;
        if !known {
            self.conntrack.create(key, &flight.sight, Entry { identity, ..Entry::default() });
            flight.fresh = true;
            return Ok(());
        }
        if let Some((entry, _)) = self.conntrack.find(&key, &flight.sight) {
            entry.identity = identity;
        }
        self.conntrack.touch(&key, &flight.sight, Way::Opening);
        Ok(())
    }
}
