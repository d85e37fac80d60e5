//! One subject's rules to verdict entries.

use crate::rows::{Direction, NamedPort, PeerSelector, PortRule, RuleBlock, RuleRow, VerdictEntry};
use std::collections::{BTreeMap, BTreeSet};
use tombolo_base::ids::{ClusterName, IdentityId};
use tombolo_base::labels::{CLUSTER_KEY, Labels, NAMESPACE_LABEL_PREFIX};
use tombolo_topology::selector::LabelSelector;

/// Ports of one range that become entries; a wider range that is not the whole is refused.
pub const MAX_RANGE_PORTS: u32 = 1000;
/// Entries of one policy; the rest is refused, so that one rule cannot fill the datapath's map.
pub const MAX_ENTRIES: usize = 16_384;

/// Named ports of the pods of an identity.
pub type NamedPorts = BTreeMap<IdentityId, BTreeSet<NamedPort>>;

/// A Kubernetes label of an identity; labels of other sources are not selectable.
fn value<'a>(labels: &'a Labels, key: &str) -> Option<&'a str> {
    labels.label(key).filter(|label| label.source.as_ref() == "k8s").map(|label| label.value.as_ref())
}

/// Whether the rule's `podSelector` takes pods with these labels.
pub(crate) fn selects(rule: &RuleRow, labels: &Labels, cluster: &ClusterName) -> bool {
    labels.cluster().is_none_or(|name| name == cluster.as_str())
        && labels.namespace() == Some(rule.namespace.as_ref())
        && rule.subject.matches(|key| value(labels, key))
}

/// Whether a peer selector of a policy in `namespace` takes an identity.
pub(crate) fn takes(
    pods: &LabelSelector,
    namespaces: Option<&LabelSelector>,
    namespace: &str,
    cluster: &ClusterName,
    labels: &Labels,
) -> bool {
    // Only pods have a namespace: reserved identities are never selected by labels.
    let Some(of_peer) = labels.namespace() else { return false };
    // Without naming a cluster a selector means the policy's own.
    let here = pods.names(CLUSTER_KEY) || labels.cluster().is_none_or(|name| name == cluster.as_str());
    here && pods.matches(|key| value(labels, key))
        && match namespaces {
            None => of_peer == namespace,
            Some(selector) => {
                selector.matches(|key| value(labels, &format!("{NAMESPACE_LABEL_PREFIX}{key}")))
            }
        }
}

/// Whether any peer of the rule takes an identity with these labels.
pub(crate) fn mentions(rule: &RuleRow, labels: &Labels, cluster: &ClusterName) -> bool {
    let blocks = rule.ingress.iter().chain(&rule.egress).flatten();
    blocks.flat_map(|block| &block.peers).any(|peer| match peer {
        PeerSelector::Pods { pods, namespaces } => {
            takes(pods, namespaces.as_ref(), &rule.namespace, cluster, labels)
        }
        PeerSelector::Cidr { .. } => false,
    })
}

/// Collects the entries of one subject.
pub(crate) struct Collector<'a> {
    pub(crate) cluster: &'a ClusterName,
    pub(crate) subject: IdentityId,
    /// All known identities, each once.
    pub(crate) identities: &'a BTreeMap<IdentityId, Labels>,
    pub(crate) named_ports: &'a NamedPorts,
    pub(crate) entries: BTreeSet<VerdictEntry>,
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
        if block.peers.is_empty() {
            return [IdentityId::UNKNOWN].into();
        }
        let mut out = BTreeSet::new();
        for peer in &block.peers {
            match peer {
                PeerSelector::Pods { pods, namespaces } => {
                    let taken = self.identities.iter().filter(|(_, labels)| {
                        takes(pods, namespaces.as_ref(), &rule.namespace, self.cluster, labels)
                    });
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
        if block.ports.is_empty() {
            for peer in peers {
                self.allow(rule, direction, *peer, 0, 0);
            }
        }
        for ports in &block.ports {
            match &ports.named {
                None => {
                    for port in self.numbers(rule, ports) {
                        for peer in peers {
                            self.allow(rule, direction, *peer, ports.protocol, port);
                        }
                    }
                }
                Some(name) => self.named(rule, direction, ports.protocol, name, peers),
            }
        }
    }

    /// The port numbers of an entry, `0` for all.
    fn numbers(&mut self, rule: &RuleRow, ports: &PortRule) -> Vec<u16> {
        let Some(first) = ports.port else { return vec![0] };
        let last = ports.end_port.unwrap_or(first);
        if first <= 1 && last == u16::MAX {
            return vec![0];
        }
        let count = (u32::from(last) + 1).saturating_sub(first.into());
        if count > MAX_RANGE_PORTS {
            self.complain(
                rule,
                &format!(
                    "port range {first}-{last} has {count} ports and allows nothing; \
                     use at most {MAX_RANGE_PORTS} ports, or 1-65535"
                ),
            );
            return Vec::new();
        }
        (first..=last).collect()
    }

    /// A port by name stands for what the pods at the receiving end call so.
    fn named(
        &mut self,
        rule: &RuleRow,
        direction: Direction,
        protocol: u8,
        name: &str,
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
            self.allow(rule, direction, peer, protocol, port);
        }
    }

    fn allow(&mut self, rule: &RuleRow, direction: Direction, identity: IdentityId, protocol: u8, port: u16) {
        let entry = VerdictEntry { direction, identity, protocol, port, deny: false };
        if self.entries.len() >= MAX_ENTRIES && !self.entries.contains(&entry) {
            let text = format!(
                "more than {MAX_ENTRIES} entries for identity {}; the rest allows nothing",
                self.subject
            );
            return self.complain(rule, &text);
        }
        self.entries.insert(entry);
    }

    fn complain(&mut self, rule: &RuleRow, text: &str) {
        self.problems.insert(format!("NetworkPolicy {}/{}: {text}", rule.namespace, rule.name));
    }
}
