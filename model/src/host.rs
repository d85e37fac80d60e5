//! The node's own traffic (`ebpf/bpf/host.h`): tracked only under a policy, and where the node itself is a backend for clients
//! outside.

use crate::ct::{Entry, Key, Kind, Way};
use crate::flight::Flight;
use crate::judge::Answered;
use crate::node::{Node, is_node};
use crate::outcome::Reason;
use crate::packet::{Fragment, UDP};
use crate::verdict::{Direction, Question};
use std::net::IpAddr;

impl Node {
    /// Whether a packet is for the node itself to judge, and not what carries the mesh, or an error. served: it may be of a flow
    /// to the node as a backend, and so may an error.
    fn judges_own(&self, flight: &Flight<'_>, peer: IpAddr, served: bool) -> bool {
        let port = flight.becomes.destination.1;
        let carrier = port == self.config.vxlan_port || Some(port) == self.config.wireguard_port;
        let known =
            || self.prefix_of(peer).is_some_and(|prefix| prefix.node != 0 && is_node(prefix.identity));
        (served || (self.config.host_policy != 0 && !flight.sight.is_error))
            && !(flight.was.protocol == UDP && carrier && known())
    }

    /// A packet for the node.
    pub(crate) fn host_receives(&mut self, flight: &mut Flight<'_>) -> Result<(), Reason> {
        let (peer, identity) = (flight.becomes.source.0, flight.source_identity);
        let served = flight.in_rev_nat != 0;
        if !self.judges_own(flight, peer, served)
            || self.host_answers(flight, Kind::HostOut, Direction::Egress)?
        {
            return Ok(());
        }
        self.host_flow(flight, Kind::HostIn, Direction::Ingress, identity)
    }

    /// A packet of the node.
    pub(crate) fn host_sends(&mut self, flight: &mut Flight<'_>) -> Result<(), Reason> {
        let (peer, identity) = (flight.becomes.destination.0, flight.destination_identity);
        let served = self.config.host_serves;
        if !self.judges_own(flight, peer, served)
            || self.host_answers(flight, Kind::HostIn, Direction::Ingress)?
        {
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
        self.asks(policy, Question { direction, identity, protocol, port: 0, ipv4 })
    }

    fn host_answers(
        &mut self,
        flight: &mut Flight<'_>,
        kind: Kind,
        direction: Direction,
    ) -> Result<bool, Reason> {
        let key = Key { kind, tuple: flight.becomes.reversed() };
        let Some((entry, half)) = self.looks_up(flight, &key, true) else { return Ok(false) };
        let (identity, flow) = (entry.identity, Answered { loopback: false, rev_nat: entry.rev_nat, half });
        flight.reply = true;
        self.allows(flight, self.config.host_policy, direction, identity, flight.becomes.source.1)?;
        self.conntrack.touch(&key, &flight.sight, Way::Answering);
        self.turn_back(flight, &flow, flight.becomes.destination);
        Ok(true)
    }

    fn host_flow(
        &mut self,
        flight: &mut Flight<'_>,
        kind: Kind,
        direction: Direction,
        identity: u32,
    ) -> Result<(), Reason> {
        if (self.config.host_policy == 0 && flight.in_rev_nat == 0) || flight.sight.is_error {
            return Ok(());
        }
        let key = Key { kind, tuple: flight.becomes };
        let known = self.looks_up(flight, &key, false).is_some();
        self.allows(flight, self.config.host_policy, direction, identity, flight.becomes.destination.1)?;
        let rev_nat = flight.in_rev_nat;
        self.goes_on(flight, key, known, Entry { identity, rev_nat, ..Entry::default() });
        Ok(())
    }
}
