//! One subject's rules to verdict entries.

use crate::rows::{
    Direction, NamedPort, PeerSelector, PortMatch, Precedence, RuleBlock, RuleRow, Subject, Verdict,
    VerdictKey,
};
use std::collections::{BTreeMap, BTreeSet};
use tombolo_base::ids::{ClusterName, IdentityId};
use tombolo_base::labels::Labels;

/// Entries of one policy; the rest is refused, so that one rule cannot fill the datapath's map.
pub const MAX_ENTRIES: usize = 16_384;

/// Named ports of the pods of an identity.
pub type NamedPorts = BTreeMap<IdentityId, BTreeSet<NamedPort>>;

/// Whether the rule is about pods with these labels.
pub(crate) fn selects(rule: &RuleRow, labels: &Labels, cluster: &ClusterName) -> bool {
    match &rule.subject {
        Subject::Pods(selector) => {
            labels.cluster().is_none_or(|name| name == cluster.as_str()) && selector.takes(labels, cluster)
        }
        Subject::Nodes(_) => false,
    }
}

/// The blocks of both directions.
pub(crate) fn blocks(rule: &RuleRow) -> impl Iterator<Item = &RuleBlock> {
    rule.ingress.iter().chain(&rule.egress).flat_map(|rules| &rules.blocks)
}

/// Whether any peer of the rule takes an identity with these labels.
pub(crate) fn mentions(rule: &RuleRow, labels: &Labels, cluster: &ClusterName) -> bool {
    blocks(rule).flat_map(|block| block.peers.iter().flatten()).any(|peer| match peer {
        PeerSelector::Endpoints(selector) => selector.takes(labels, cluster),
        _ => false,
    })
}

/// Collects the entries of one subject.
pub(crate) struct Collector<'a> {
    pub(crate) cluster: &'a ClusterName,
    pub(crate) subject: IdentityId,
    /// All known identities, each once.
    pub(crate) identities: &'a BTreeMap<IdentityId, Labels>,
    pub(crate) named_ports: &'a NamedPorts,
    pub(crate) entries: BTreeMap<VerdictKey, Verdict>,
    pub(crate) problems: BTreeSet<String>,
}

impl Collector<'_> {
    /// Takes one rule's blocks of one direction.
    pub(crate) fn add(&mut self, rule: &RuleRow, direction: Direction, blocks: &[RuleBlock]) {
        for block in blocks {
            let peers = self.peers(rule, block);
            self.block(rule, direction, block, &peers);
        }
    }

    /// The identities of a block's peers; `0` alone for everybody.
    fn peers(&mut self, rule: &RuleRow, block: &RuleBlock) -> BTreeSet<IdentityId> {
        let Some(peers) = &block.peers else { return [IdentityId::UNKNOWN].into() };
        let mut out = BTreeSet::new();
        for peer in peers {
            match peer {
                PeerSelector::Endpoints(selector) => {
                    let taken =
                        self.identities.iter().filter(|(_, labels)| selector.takes(labels, self.cluster));
                    out.extend(taken.map(|(id, _)| *id));
                }
                PeerSelector::Cidr { prefix, except } if prefix.prefix_len() == 0 && except.is_empty() => {
                    let ipv4 = prefix.is_ipv4();
                    out.insert(if ipv4 { IdentityId::WORLD_IPV4 } else { IdentityId::WORLD_IPV6 });
                }
                PeerSelector::Cidr { prefix, except } => {
                    let cut = if except.is_empty() { "" } else { " with except" };
                    self.complain(
                        rule,
                        &format!(
                            "ipBlock {prefix}{cut} is not enforced yet and allows nothing; \
                             use 0.0.0.0/0 or ::/0 without except"
                        ),
                    );
                }
                other => self.complain(rule, &format!("{other:?} is not enforced yet and allows nothing")),
            }
        }
        out
    }

    fn block(
        &mut self,
        rule: &RuleRow,
        direction: Direction,
        block: &RuleBlock,
        peers: &BTreeSet<IdentityId>,
    ) {
        let Some(ports) = &block.ports else {
            for peer in peers {
                self.put(rule, direction, block, (*peer, 0, (0, 0)));
            }
            return;
        };
        for ports in ports {
            match &ports.port {
                PortMatch::Named(name) => self.named(rule, direction, block, (ports.protocol, name), peers),
                numbered => {
                    for prefix in prefixes(numbered) {
                        for peer in peers {
                            self.put(rule, direction, block, (*peer, ports.protocol, prefix));
                        }
                    }
                }
            }
        }
    }

    /// A port by name stands for what the pods at the receiving end call so.
    fn named(
        &mut self,
        rule: &RuleRow,
        direction: Direction,
        block: &RuleBlock,
        (protocol, name): (u8, &str),
        peers: &BTreeSet<IdentityId>,
    ) {
        let known = self.named_ports;
        let numbers = |identity: &IdentityId| {
            let ports = known.get(identity).into_iter().flatten();
            ports.filter(|port| port.name.as_ref() == name && port.protocol == protocol).map(|port| port.port)
        };
        let everybody = peers.contains(&IdentityId::UNKNOWN);
        let mut found: Vec<(IdentityId, u16)> = Vec::new();
        match direction {
            Direction::Ingress => {
                for port in numbers(&self.subject) {
                    found.extend(peers.iter().map(|peer| (*peer, port)));
                }
            }
            // Everybody is then everybody whose pods name the port: a name says nothing about others.
            Direction::Egress => {
                let all = self.named_ports.keys().filter(|_| everybody);
                for peer in peers.iter().chain(all) {
                    found.extend(numbers(peer).map(|port| (*peer, port)));
                }
            }
        }
        if found.is_empty() && direction == Direction::Ingress && !peers.is_empty() {
            self.complain(
                rule,
                &format!("no container of the selected pods names port {name}; it allows nothing"),
            );
        }
        for (peer, port) in found {
            self.put(rule, direction, block, (peer, protocol, (port, 16)));
        }
    }

    fn put(
        &mut self,
        rule: &RuleRow,
        direction: Direction,
        block: &RuleBlock,
        (identity, protocol, (port, port_bits)): (IdentityId, u8, (u16, u8)),
    ) {
        let key = VerdictKey { direction, tier: rule.tier, identity, protocol, port, port_bits };
        let verdict = Verdict { precedence: Precedence::new(block.priority, block.action), cookie: 0 };
        if self.entries.len() >= MAX_ENTRIES && !self.entries.contains_key(&key) {
            let text = format!(
                "more than {MAX_ENTRIES} entries for identity {}; the rest allows nothing",
                self.subject
            );
            return self.complain(rule, &text);
        }
        let present = self.entries.entry(key).or_insert(verdict);
        *present = (*present).max(verdict);
    }

    fn complain(&mut self, rule: &RuleRow, text: &str) {
        self.problems.insert(format!("{}: {text}", rule.title()));
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
