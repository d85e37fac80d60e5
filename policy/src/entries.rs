//! One subject's rules to verdict entries.

use crate::compile::NamedPorts;
use crate::cookies::Origin;
use crate::desired::{Precedence, VerdictKey};
use crate::rows::{
    Action, Direction, Entity, LabelSelector, PeerSelector, PortMatch, PortRule, RuleBlock, RuleRow,
};
use crate::universe::Universe;
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tombolo_base::ids::IdentityId;
use tombolo_base::prefix::Prefix;
use tombolo_base::table::Row;

/// Entries of one policy; the rest is refused, so that one rule cannot fill the datapath's map. Allows are refused first.
pub const MAX_ENTRIES: usize = 16_384;

/// What an entry says, and which blocks say it, by their place in [`Collector::origins`].
#[derive(Clone, Debug)]
pub(crate) struct Said {
    pub(crate) precedence: Precedence,
    pub(crate) origins: SmallVec<[u32; 2]>,
}

/// Collects the entries of one subject.
pub(crate) struct Collector<'a> {
    pub(crate) universe: &'a Universe,
    pub(crate) subject: IdentityId,
    pub(crate) named_ports: &'a NamedPorts,
    pub(crate) entries: BTreeMap<VerdictKey, Said>,
    pub(crate) origins: Vec<Origin>,
    /// Directions whose denies and passes did not all fit: nothing is allowed there.
    pub(crate) closed: BTreeSet<Direction>,
    pub(crate) problems: BTreeSet<String>,
}

/// A block and where it stands.
#[derive(Clone, Copy)]
struct Place<'a> {
    rule: &'a RuleRow,
    direction: Direction,
    block: &'a RuleBlock,
    origin: u32,
}

impl<'a> Collector<'a> {
    pub(crate) const fn new(
        universe: &'a Universe,
        subject: IdentityId,
        named_ports: &'a NamedPorts,
    ) -> Self {
        Self {
            universe,
            subject,
            named_ports,
            entries: BTreeMap::new(),
            origins: Vec::new(),
            closed: BTreeSet::new(),
            problems: BTreeSet::new(),
        }
    }

    /// Takes all rules: what denies first, so that what finds no room is an allow.
    pub(crate) fn add(&mut self, rules: &[Arc<RuleRow>]) {
        for action in [Action::Deny, Action::Pass, Action::Allow] {
            for rule in rules {
                for (direction, of) in
                    [(Direction::Ingress, &rule.ingress), (Direction::Egress, &rule.egress)]
                {
                    let blocks = of.iter().flat_map(|rules| rules.blocks.iter().enumerate());
                    for (number, block) in blocks.filter(|(_, block)| block.action == action) {
                        let origin = u32::try_from(self.origins.len()).unwrap_or(u32::MAX);
                        self.origins.push(Origin { rule: rule.key(), direction, block: number });
                        self.block(Place { rule, direction, block, origin });
                    }
                }
            }
        }
        let closed = std::mem::take(&mut self.closed);
        self.entries.retain(|key, said| {
            said.precedence.action() != Action::Allow || !closed.contains(&key.direction)
        });
        self.closed = closed;
    }

    /// The identities of a block's peers; `0` alone for everybody.
    fn peers(&mut self, place: Place<'_>) -> BTreeSet<IdentityId> {
        let Some(peers) = &place.block.peers else { return [IdentityId::UNKNOWN].into() };
        let mut out = BTreeSet::new();
        for peer in peers {
            let (taken, cut) = self.universe.untold(peer);
            if !taken.is_empty() || !cut.is_empty() {
                self.untold(place, &taken, &cut, peer, &mut out);
                continue;
            }
            // Of its own: a selector also takes back, as nodes that it names otherwise.
            let mut taken = BTreeSet::new();
            self.universe.taken(peer, &mut taken);
            out.append(&mut taken);
            match peer {
                PeerSelector::Nodes(selector) if !selector.is_empty() => {
                    if place.block.action == Action::Deny {
                        let all = PeerSelector::Nodes(LabelSelector::default());
                        self.universe.taken(&all, &mut out);
                        let text = "nodes are not told apart by their labels: all of them are denied";
                        self.complain(place, text);
                    } else {
                        let text = "nodes are not told apart by their labels: this peer matches nobody; use all nodes";
                        self.complain(place, text);
                    }
                }
                peer if names_apiserver(peer) && self.universe.landmarks().apiservers.is_empty() => {
                    if place.block.action == Action::Allow {
                        let text = "nobody knows where the API server is (Service default/kubernetes has no endpoints): \
                                    this peer matches nobody; use host and remote-node, or its addresses";
                        self.complain(place, text);
                    } else {
                        // Wherever it is: on nodes, or outside.
                        for entity in [Entity::Host, Entity::RemoteNode, Entity::World] {
                            self.universe.taken(&PeerSelector::Entity(entity), &mut out);
                        }
                        let text = "nobody knows where the API server is (Service default/kubernetes has no endpoints): \
                                    all nodes and the world are meant";
                        self.complain(place, text);
                    }
                }
                _ => {}
            }
        }
        if out.contains(&IdentityId::UNKNOWN) { [IdentityId::UNKNOWN].into() } else { out }
    }

    /// A peer some of whose prefixes have no number. A deny takes what is around those; else the peer takes nobody.
    fn untold(
        &mut self,
        place: Place<'_>,
        taken: &[Prefix],
        cut: &[Prefix],
        peer: &PeerSelector,
        out: &mut BTreeSet<IdentityId>,
    ) {
        let first = taken.iter().chain(cut).next();
        let text = format!(
            "{} has no number: {} prefixes have one already",
            first.map(ToString::to_string).unwrap_or_default(),
            crate::cidrs::MAX_PREFIXES
        );
        if place.block.action == Action::Deny {
            self.universe.taken(peer, out);
            out.extend(taken.iter().map(|prefix| self.universe.cidrs.of(*prefix)));
            self.complain(place, &format!("{text}; what is around it is denied"));
        } else if place.block.action == Action::Pass {
            self.closed.insert(place.direction);
            self.complain(place, &format!("{text}; nothing is allowed, lest a later rule let it through"));
        } else {
            self.complain(place, &format!("{text}; this peer matches nobody"));
        }
    }

    fn block(&mut self, place: Place<'_>) {
        let peers = self.peers(place);
        let Some(ports) = &place.block.ports else {
            for peer in &peers {
                self.put(place, (*peer, 0, (0, 0)));
            }
            return;
        };
        for rule in ports {
            for protocol in protocols(rule) {
                if let PortMatch::Named(name) = &rule.port {
                    self.named(place, (protocol, name), &peers);
                    continue;
                }
                for prefix in prefixes(&rule.port) {
                    for peer in &peers {
                        self.put(place, (*peer, protocol, prefix));
                    }
                }
            }
        }
    }

    /// A port by name stands for what the pods at the receiving end call so.
    fn named(&mut self, place: Place<'_>, (protocol, name): (u8, &str), peers: &BTreeSet<IdentityId>) {
        let known = self.named_ports;
        let numbers = |identity: &IdentityId| {
            let ports = known.get(identity).into_iter().flatten();
            ports.filter(|port| port.name.as_ref() == name && port.protocol == protocol).map(|port| port.port)
        };
        let everybody = peers.contains(&IdentityId::UNKNOWN);
        let mut found: Vec<(IdentityId, u16)> = Vec::new();
        match place.direction {
            Direction::Ingress => {
                for port in numbers(&self.subject) {
                    found.extend(peers.iter().map(|peer| (*peer, port)));
                }
            }
            // Everybody is then everybody whose pods name the port: a name says nothing about others.
            Direction::Egress => {
                let all = known.keys().filter(|_| everybody);
                for peer in peers.iter().chain(all) {
                    found.extend(numbers(peer).map(|port| (*peer, port)));
                }
                self.unknown_ports(place, (protocol, name), peers);
            }
        }
        if found.is_empty() && place.direction == Direction::Ingress && !peers.is_empty() {
            self.complain(
                place,
                &format!("no container of the selected pods names port {name}; it matches nothing"),
            );
        }
        for (peer, port) in found {
            self.put(place, (peer, protocol, (port, 16)));
        }
    }

    /// What pods of other nodes name is not known here. What may not be let through is then all of the protocol.
    fn unknown_ports(
        &mut self,
        place: Place<'_>,
        (protocol, name): (u8, &str),
        peers: &BTreeSet<IdentityId>,
    ) {
        let known = self.named_ports;
        let is_pod =
            |id: &IdentityId| *id != IdentityId::UNKNOWN && !id.is_reserved() && id.0 < crate::cidrs::FIRST;
        let unknown: Vec<IdentityId> =
            peers.iter().filter(|id| is_pod(id) && !known.contains_key(id)).copied().collect();
        if unknown.is_empty() {
            return;
        }
        let meant = match place.block.action {
            Action::Deny => {
                unknown.iter().for_each(|peer| self.put(place, (*peer, protocol, (0, 0))));
                "all their ports of the protocol are denied"
            }
            Action::Pass => {
                self.closed.insert(place.direction);
                "nothing is allowed, lest a later rule let it through"
            }
            Action::Allow => "it matches none of theirs; give its number",
        };
        let text = format!("pods of other nodes may name port {name}, which is not known here: {meant}");
        self.complain(place, &text);
    }

    fn put(
        &mut self,
        place: Place<'_>,
        (identity, protocol, (port, port_bits)): (IdentityId, u8, (u16, u8)),
    ) {
        let Place { rule, direction, block, origin } = place;
        let key = VerdictKey { direction, tier: rule.tier, identity, protocol, port, port_bits };
        let precedence = Precedence::new(block.priority, block.action);
        if let Some(present) = self.entries.get_mut(&key) {
            if present.precedence < precedence {
                *present = Said { precedence, origins: SmallVec::from_slice(&[origin]) };
            } else if present.precedence == precedence && present.origins.last() != Some(&origin) {
                present.origins.push(origin);
            }
            return;
        }
        if self.entries.len() >= MAX_ENTRIES {
            let rest = if block.action == Action::Allow {
                "the rest allows nothing"
            } else {
                self.closed.insert(direction);
                "what denies does not fit, so nothing is allowed"
            };
            let text = format!("more than {MAX_ENTRIES} entries for identity {}; {rest}", self.subject);
            return self.complain(place, &text);
        }
        self.entries.insert(key, Said { precedence, origins: SmallVec::from_slice(&[origin]) });
    }

    fn complain(&mut self, place: Place<'_>, text: &str) {
        self.problems.insert(format!("{}: {text}", place.rule.title()));
    }
}

/// Whether a peer is the API server, by either name.
fn names_apiserver(peer: &PeerSelector) -> bool {
    match peer {
        PeerSelector::Entity(entity) => *entity == Entity::KubeApiserver,
        PeerSelector::Endpoints(selector) => selector.0.names("reserved:kube-apiserver"),
        _ => false,
    }
}

/// The protocols of a port rule: a port of any protocol is one of each that has ports.
fn protocols(rule: &PortRule) -> SmallVec<[u8; 3]> {
    if rule.protocol == 0 && rule.port != PortMatch::All {
        SmallVec::from_slice(&[6, 17, 132])
    } else {
        SmallVec::from_slice(&[rule.protocol])
    }
}

/// A range of ports as the fewest prefixes that cover it exactly: value and number of leading bits.
fn prefixes(ports: &PortMatch) -> Vec<(u16, u8)> {
    let (first, last) = match ports {
        PortMatch::All | PortMatch::Named(_) => return vec![(0, 0)],
        PortMatch::IcmpType(kind) => return vec![(u16::from(*kind) << 8, 8)],
        // Port 0 is no port: with it a range that ends at the top is all.
        PortMatch::Range(0 | 1, u16::MAX) => return vec![(0, 0)],
        PortMatch::Range(first, last) => (u32::from(*first), u32::from(*last)),
    };
    let mut out = Vec::new();
    let mut next = first;
    while next <= last {
        let aligned = if next == 0 { 16 } else { next.trailing_zeros().min(16) };
        let fits = (last - next + 1).ilog2();
        let size = aligned.min(fits);
        let (Ok(value), Ok(bits)) = (u16::try_from(next), u8::try_from(16 - size)) else { break };
        out.push((value, bits));
        next += 1 << size;
    }
    out
}
