//! What policies mean: rules read as they are written, one by one, for one question. No entries, no numbers, no shortcuts.
//!
//! This is the specification of `policy/`'s compiler, whose entries [`crate::verdict`] reads; tests hold the three
//! against each other. It is also what `tombolo policy trace` asks, since it knows which rules decided.
//!
//! # What holds
//! * Tiers are asked in the order admin, normal, baseline. In a tier the matching rule of the smallest priority decides;
//!   of equal ones a deny before an allow before a pass. Allow and deny are final, a pass asks the next tier.
//! * If a rule of the normal tier that selects the pod makes it default deny in this direction, what the normal tier did
//!   not allow is dropped, and the baseline is not asked. What nobody decides is allowed.
//! * A party of the mesh (pod, node) is known by its labels, whatever its address; everybody else by the address alone.
//!   Nodes are known by their addresses as well if [`Landmarks::cidrs_take_nodes`] says so.
//! * Whoever has an address of the API server is that, beside what they are: this node, another, or somebody outside.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::net::IpAddr;
use tombolo_base::ids::{ClusterName, IdentityId};
use tombolo_base::labels::Labels;
use tombolo_base::prefix::Prefix;
use tombolo_policy::{
    Action, CidrGroupRef, CidrGroupRow, Direction, Entity, Landmarks, NamedPort, PeerSelector, PortMatch,
    PortRule, RuleBlock, RuleRow, Subject, Tier, labelled,
};

/// Somebody.
#[derive(Clone, Debug)]
pub enum Party {
    /// A pod, of this cluster or another.
    Pod {
        /// Its identity's labels.
        labels: Labels,
        /// The ports that it names, as far as this node knows them.
        ports: BTreeSet<NamedPort>,
    },
    /// Somebody with a fixed identity that is not the world: this node, a pod nobody named yet, another node whose
    /// address is not known (its packets came in the tunnel).
    Fixed(IdentityId),
    /// Another node, by its address.
    Node(IpAddr),
    /// An address outside the mesh.
    Address(IpAddr),
}

/// Whether a flow may be opened.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Whose rules are asked, and which.
    pub direction: Direction,
    /// The pod that they are about, or this node.
    pub subject: &'a Party,
    /// The other end.
    pub peer: &'a Party,
    /// IP protocol.
    pub protocol: u8,
    /// Destination port; of ICMP the type in the upper byte and the code in the lower.
    pub port: u16,
}

/// A rule that has something to say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cited<'a> {
    /// Its object.
    pub rule: &'a RuleRow,
    /// Which of the object's blocks of that direction.
    pub block: usize,
}

/// What becomes of the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Rules allow it.
    Allowed(Tier),
    /// Rules deny it (181).
    Denied(Tier),
    /// The pod is default deny, and nothing allows it (133).
    Unsaid,
    /// Nothing is said of it.
    Open,
}

impl Outcome {
    /// Whether it passes.
    #[must_use]
    pub const fn passes(self) -> bool {
        matches!(self, Self::Allowed(_) | Self::Open)
    }
}

/// The answer, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer<'a> {
    /// What becomes of it.
    pub outcome: Outcome,
    /// The rules that decided: all of the deciding priority and action. If nothing allows it, the objects that make the
    /// pod default deny (their block is 0 and means nothing).
    pub deciding: Vec<Cited<'a>>,
    /// Rules that matched, by tier, also those that decided nothing.
    pub matching: Vec<(Tier, Cited<'a>)>,
}

/// All policies.
#[derive(Clone, Copy, Debug)]
pub struct Policies<'a> {
    /// The cluster they are written in.
    pub cluster: &'a ClusterName,
    /// The rules.
    pub rules: &'a [RuleRow],
    /// Prefixes with names.
    pub groups: &'a [CidrGroupRow],
    /// What this node is labelled with, plain keys: it is [`Party::Fixed`] with identity host.
    pub node: &'a Labels,
    /// Where the API server and the nodes are.
    pub landmarks: &'a Landmarks,
}

impl<'a> Policies<'a> {
    /// Answers a question.
    #[must_use]
    pub fn answer(&self, question: &Question<'_>) -> Answer<'a> {
        let about: Vec<&RuleRow> =
            self.rules.iter().filter(|rule| self.is_about(rule, question.subject)).collect();
        let mut matching = Vec::new();
        let mut decided = None;
        for tier in Tier::ALL {
            let of_tier = about.iter().filter(|rule| rule.tier == tier);
            let found: Vec<Cited<'a>> = of_tier.flat_map(|rule| self.matching(rule, question)).collect();
            matching.extend(found.iter().map(|cited| (tier, *cited)));
            if decided.is_some() {
                continue;
            }
            let best = found.iter().filter_map(|cited| weight(cited, question.direction)).max();
            let action = best.map(|(_, action)| action);
            let decisive = || -> Vec<Cited<'a>> {
                found.iter().filter(|cited| weight(cited, question.direction) == best).copied().collect()
            };
            decided = match action {
                Some(Action::Deny) => Some((Outcome::Denied(tier), decisive())),
                Some(Action::Allow) => Some((Outcome::Allowed(tier), decisive())),
                Some(Action::Pass) | None if tier == Tier::Normal => {
                    let closing = closing(&about, question.direction);
                    (!closing.is_empty()).then_some((Outcome::Unsaid, closing))
                }
                Some(Action::Pass) | None => None,
            };
        }
        let (outcome, deciding) = decided.unwrap_or((Outcome::Open, Vec::new()));
        Answer { outcome, deciding, matching }
    }

    fn is_about(&self, rule: &RuleRow, subject: &Party) -> bool {
        match (&rule.subject, subject) {
            (Subject::Pods(selector), Party::Pod { labels, .. }) => {
                labels.cluster().is_none_or(|name| name == self.cluster.as_str())
                    && selector.takes(labels, self.cluster)
            }
            (Subject::Nodes(selector), Party::Fixed(IdentityId::HOST)) => {
                selector.matches(|key| self.node.get(key))
            }
            _ => false,
        }
    }

    /// The blocks of a rule that match.
    fn matching(&self, rule: &'a RuleRow, question: &Question<'_>) -> Vec<Cited<'a>> {
        let blocks = blocks(rule, question.direction).iter().enumerate();
        let matches = |block: &RuleBlock| {
            let peer = block
                .peers
                .as_ref()
                .is_none_or(|peers| peers.iter().any(|peer| self.takes(block.action, peer, question.peer)));
            let receiver = match question.direction {
                Direction::Ingress => question.subject,
                Direction::Egress => question.peer,
            };
            let of_port = |port: &PortRule| is_port(port, question, receiver);
            peer && block.ports.as_ref().is_none_or(|ports| ports.iter().any(of_port))
        };
        blocks.filter(|(_, block)| matches(block)).map(|(block, _)| Cited { rule, block }).collect()
    }

    /// Whether a peer of a rule means somebody.
    fn takes(&self, action: Action, peer: &PeerSelector, who: &Party) -> bool {
        // While nobody knows where it is, what must not be let through is wherever it may be: on nodes, or outside.
        let apiserver = match peer {
            PeerSelector::Entity(entity) => *entity == Entity::KubeApiserver,
            PeerSelector::Endpoints(selector) => selector.0.names("reserved:kube-apiserver"),
            _ => false,
        };
        let unknown = apiserver && self.landmarks.apiservers.is_empty();
        if unknown && action != Action::Allow && (is_a_node(who) || matches!(who, Party::Address(_))) {
            return true;
        }
        match peer {
            PeerSelector::Endpoints(selector) => {
                let labelled =
                    |id: IdentityId| selector.takes(&labelled(id, self.is_apiserver(who)), self.cluster);
                match who {
                    Party::Pod { labels, .. } => selector.takes(labels, self.cluster),
                    Party::Fixed(IdentityId::KUBE_APISERVER) | Party::Node(_) => {
                        labelled(IdentityId::REMOTE_NODE)
                    }
                    Party::Fixed(id) => labelled(*id),
                    Party::Address(_) if self.is_apiserver(who) => labelled(IdentityId::WORLD),
                    Party::Address(address) => labelled(IdentityId::WORLD) || labelled(world(*address)),
                }
            }
            PeerSelector::Entity(entity) => self.is_of(*entity, who),
            PeerSelector::Cidr { prefix, except } => self.within(who, &[*prefix].into(), except),
            PeerSelector::CidrGroup { group, except } => {
                let meant = self.groups.iter().filter(|row| match group {
                    CidrGroupRef::Name(name) => row.name == *name,
                    CidrGroupRef::Labels(selector) => selector.matches_map(&row.labels),
                });
                self.within(who, &meant.flat_map(|row| row.prefixes.iter().copied()).collect(), except)
            }
            // Nodes are not told apart: a deny of some is one of all.
            PeerSelector::Nodes(selector) => {
                is_a_node(who) && (selector.is_empty() || action == Action::Deny)
            }
        }
    }

    /// Whether somebody has an address of the API server.
    fn is_apiserver(&self, who: &Party) -> bool {
        match who {
            Party::Fixed(IdentityId::KUBE_APISERVER) => true,
            Party::Fixed(IdentityId::HOST) => self.landmarks.own_apiserver(),
            Party::Node(ip) | Party::Address(ip) => self.landmarks.apiservers.contains(ip),
            Party::Fixed(_) | Party::Pod { .. } => false,
        }
    }

    /// Whether an address of somebody lies in one of these prefixes, and not in what is cut out.
    fn within(&self, who: &Party, prefixes: &BTreeSet<Prefix>, except: &BTreeSet<Prefix>) -> bool {
        let of = |all: &BTreeSet<Prefix>, ip: &IpAddr| all.iter().any(|prefix| prefix.contains(*ip));
        let is = |ip: &IpAddr| of(prefixes, ip) && !of(except, ip);
        match who {
            Party::Address(ip) => is(ip),
            Party::Node(ip) => self.landmarks.cidrs_take_nodes && is(ip),
            // This node has one identity for all its addresses.
            Party::Fixed(IdentityId::HOST) => {
                self.landmarks.cidrs_take_nodes
                    && prefixes.iter().any(|prefix| {
                        self.landmarks.own.iter().any(|ip| prefix.contains(*ip) && !of(except, ip))
                    })
            }
            Party::Fixed(_) | Party::Pod { .. } => false,
        }
    }

    fn is_of(&self, entity: Entity, who: &Party) -> bool {
        let is = |wanted| matches!(who, Party::Fixed(id) if *id == wanted);
        let outside = |ipv4: Option<bool>| match who {
            Party::Address(address) => ipv4.is_none_or(|ipv4| ipv4 == address.is_ipv4()),
            _ => false,
        };
        match entity {
            Entity::All => true,
            Entity::None => false,
            Entity::World => outside(None),
            Entity::WorldIpv4 => outside(Some(true)),
            Entity::WorldIpv6 => outside(Some(false)),
            Entity::Cluster => match who {
                Party::Pod { labels, .. } => {
                    labels.cluster().is_none_or(|name| name == self.cluster.as_str())
                }
                Party::Fixed(_) | Party::Node(_) => true,
                Party::Address(_) => false,
            },
            Entity::Host => is(IdentityId::HOST),
            Entity::RemoteNode => is_a_node(who) && !is(IdentityId::HOST),
            Entity::Init => is(IdentityId::INIT),
            Entity::Health => is(IdentityId::HEALTH),
            Entity::Unmanaged => is(IdentityId::UNMANAGED),
            Entity::KubeApiserver => self.is_apiserver(who),
            Entity::Ingress => is(IdentityId::INGRESS),
        }
    }
}

const fn world(address: IpAddr) -> IdentityId {
    if address.is_ipv4() { IdentityId::WORLD_IPV4 } else { IdentityId::WORLD_IPV6 }
}

/// The blocks of one direction.
fn blocks(rule: &RuleRow, direction: Direction) -> &[RuleBlock] {
    let rules = match direction {
        Direction::Ingress => &rule.ingress,
        Direction::Egress => &rule.egress,
    };
    rules.as_ref().map_or(&[], |rules| &rules.blocks)
}

/// How weighty a rule is within its tier.
fn weight(cited: &Cited<'_>, direction: Direction) -> Option<(Reverse<u32>, Action)> {
    let block = blocks(cited.rule, direction).get(cited.block)?;
    // Larger priorities than can be written count as the largest.
    Some((Reverse(block.priority.min(tombolo_policy::Precedence::MAX_PRIORITY)), block.action))
}

/// The rules that make a pod default deny.
fn closing<'a>(about: &[&'a RuleRow], direction: Direction) -> Vec<Cited<'a>> {
    let closes = |rule: &&&RuleRow| {
        let rules = match direction {
            Direction::Ingress => &rule.ingress,
            Direction::Egress => &rule.egress,
        };
        rule.tier == Tier::Normal && rules.as_ref().is_some_and(|rules| rules.default_deny)
    };
    about.iter().filter(closes).map(|rule| Cited { rule, block: 0 }).collect()
}

/// Whether somebody is a node: this one, another, the API server's.
const fn is_a_node(who: &Party) -> bool {
    matches!(
        who,
        Party::Node(_)
            | Party::Fixed(IdentityId::HOST | IdentityId::REMOTE_NODE | IdentityId::KUBE_APISERVER)
    )
}

/// Whether a port rule means the port that is asked for. A name means what the receiving pod calls so.
fn is_port(rule: &PortRule, question: &Question<'_>, receiver: &Party) -> bool {
    let Question { protocol, port, .. } = *question;
    let ported = [6, 17, 132].contains(&protocol);
    let any = rule.protocol == 0 && (ported || rule.port == PortMatch::All);
    if !any && rule.protocol != protocol {
        return false;
    }
    match &rule.port {
        PortMatch::All => true,
        // Port 0 is no port.
        PortMatch::Range(0 | 1, u16::MAX) => true,
        PortMatch::Range(first, last) => (*first..=*last).contains(&port),
        PortMatch::IcmpType(kind) => port >> 8 == u16::from(*kind),
        PortMatch::Named(name) => {
            let Party::Pod { ports, .. } = receiver else { return false };
            ports.iter().any(|named| named.name == *name && named.protocol == protocol && named.port == port)
        }
    }
}
