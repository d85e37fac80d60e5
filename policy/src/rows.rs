//! Intent: the rules as they are written, whatever kind of object they stand in.

use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tombolo_base::ids::ClusterName;
use tombolo_base::labels::{CLUSTER_KEY, Labels};
use tombolo_base::prefix::Prefix;
use tombolo_base::source::Source;
use tombolo_base::table::{NoIndex, Row};

pub use tombolo_topology::selector::{LabelSelector, Requirement};

/// Which way, seen from the selected pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

/// What a rule does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Leave it to the next tier.
    Pass,
    /// Let it through.
    Allow,
    /// Drop it (181).
    Deny,
}

/// Where a policy stands: an earlier tier's allow or deny is final, a pass or silence asks the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// AdminNetworkPolicy; ClusterNetworkPolicy of tier `Admin`.
    Admin,
    /// NetworkPolicy, CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy. Where one of them enforces, what it leaves
    /// unsaid is dropped (133) and no baseline is asked.
    Normal,
    /// BaselineAdminNetworkPolicy; ClusterNetworkPolicy of tier `Baseline`.
    Baseline,
}

impl Tier {
    /// All, in the order in which they are asked.
    pub const ALL: [Self; 3] = [Self::Admin, Self::Normal, Self::Baseline];
}

/// Which kind of object a rule was written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum PolicyKind {
    /// `networking.k8s.io/v1`.
    NetworkPolicy,
    /// `cilium.io/v2`, in a namespace.
    CiliumNetworkPolicy,
    /// `cilium.io/v2`, for all namespaces or for nodes.
    CiliumClusterwideNetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha1`.
    AdminNetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha1`.
    BaselineAdminNetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha2`: the successor of the two.
    ClusterNetworkPolicy,
}

impl PolicyKind {
    /// As in manifests.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "NetworkPolicy",
            Self::CiliumNetworkPolicy => "CiliumNetworkPolicy",
            Self::CiliumClusterwideNetworkPolicy => "CiliumClusterwideNetworkPolicy",
            Self::AdminNetworkPolicy => "AdminNetworkPolicy",
            Self::BaselineAdminNetworkPolicy => "BaselineAdminNetworkPolicy",
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
        }
    }
}

/// Identities by their labels. Keys are written `source:key`; source `any` takes a label of any source.
///
/// The source of manifests makes namespaces explicit: a NetworkPolicy's `podSelector` without `namespaceSelector` names
/// `k8s:io.kubernetes.pod.namespace`, one for all namespaces asks that this key exists, so that reserved identities
/// are taken only by whom names them (`reserved:host`). The cluster is not made explicit: see [`EndpointSelector::takes`].
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct EndpointSelector(pub LabelSelector);

impl EndpointSelector {
    /// Whether it takes an identity with these labels. Without naming a cluster it means `cluster`, its own.
    #[must_use]
    pub fn takes(&self, labels: &Labels, cluster: &ClusterName) -> bool {
        self.names_cluster_or_own(labels, cluster) && self.0.matches(|key| value(labels, key))
    }

    fn names_cluster_or_own(&self, labels: &Labels, cluster: &ClusterName) -> bool {
        labels.cluster().is_none_or(|name| name == cluster.as_str())
            || self.0.names(&format!("k8s:{CLUSTER_KEY}"))
            || self.0.names(&format!("any:{CLUSTER_KEY}"))
    }
}

/// The value of a label written `source:key`.
fn value<'a>(labels: &'a Labels, key: &str) -> Option<&'a str> {
    let (source, key) = key.split_once(':')?;
    let label = labels.label(key)?;
    (source == "any" || label.source.as_ref() == source).then_some(label.value.as_ref())
}

/// Groups of peers that have a name of their own (`fromEntities`, `toEntities`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Entity {
    /// Everybody.
    All,
    /// What is outside the clusters: identities 2, 9, 10 and all of address prefixes.
    World,
    /// Of it, IPv4.
    WorldIpv4,
    /// Of it, IPv6.
    WorldIpv6,
    /// All of this cluster: its pods, host, remote nodes, health, init, unmanaged, the API server, ingress.
    Cluster,
    /// This node.
    Host,
    /// The other nodes.
    RemoteNode,
    /// Pods without identity.
    Init,
    /// Health endpoints.
    Health,
    /// Pods that are not ours.
    Unmanaged,
    /// The API server.
    KubeApiserver,
    /// The ingress proxy.
    Ingress,
    /// Nobody.
    None,
}

/// Prefixes that have a name (`CiliumCIDRGroup`), by it or by labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum CidrGroupRef {
    /// By name.
    Name(Arc<str>),
    /// By labels of the group, plain keys.
    Labels(LabelSelector),
}

/// One entry of `from` or `to`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum PeerSelector {
    /// Identities by labels.
    Endpoints(EndpointSelector),
    /// A named group.
    Entity(Entity),
    /// Addresses outside the mesh.
    Cidr {
        /// Taken.
        prefix: Prefix,
        /// Cut out of it.
        except: BTreeSet<Prefix>,
    },
    /// The same, by named group.
    CidrGroup {
        /// Taken.
        group: CidrGroupRef,
        /// Cut out of it.
        except: BTreeSet<Prefix>,
    },
    /// Nodes by the labels of their Node objects.
    Nodes(LabelSelector),
}

/// A port that a container names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct NamedPort {
    /// Port name.
    pub name: Arc<str>,
    /// IP protocol number.
    pub protocol: u8,
    /// Port number.
    pub port: u16,
}

/// One entry of `ports`, or of `icmps`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct PortRule {
    /// IP protocol number; 0 = any (only with [`PortMatch::All`]; with a port, the source writes TCP, UDP and SCTP apart).
    pub protocol: u8,
    /// Which ports of it.
    pub port: PortMatch,
}

/// Destination ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortMatch {
    /// All, or all types of ICMP.
    All,
    /// First to last, both included.
    Range(u16, u16),
    /// By name, resolved per receiving pod.
    Named(Arc<str>),
    /// A type of ICMP (protocol 1) or ICMPv6 (58).
    IcmpType(u8),
}

/// One entry of `ingress` or `egress`: these peers on these ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct RuleBlock {
    /// What is done with it.
    pub action: Action,
    /// The more urgent the smaller; compared only within a tier.
    pub priority: u32,
    /// Peers; `None` = everybody, empty = nobody.
    pub peers: Option<BTreeSet<PeerSelector>>,
    /// Ports; `None` = all, empty = none.
    pub ports: Option<BTreeSet<PortRule>>,
    /// Its own name, where the kind has names for rules.
    pub name: Option<Arc<str>>,
}

/// The blocks of one direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DirectionRules {
    /// Whether the selected pods are default deny in this direction ([`Tier::Normal`] only).
    pub default_deny: bool,
    /// In the order written.
    pub blocks: Vec<RuleBlock>,
}

/// Whom a policy is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Subject {
    /// Pods of this cluster.
    Pods(EndpointSelector),
    /// Nodes of this cluster by the labels of their Node objects (host policy).
    Nodes(LabelSelector),
}

/// Key of a rule: kind, namespace (empty = of all), name, and which of the object's specs.
pub type RuleKey = (PolicyKind, Arc<str>, Arc<str>, u16);

/// Intent: one spec of a policy object.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RuleRow {
    /// Who said it.
    pub source: Source,
    /// Kind of object.
    pub kind: PolicyKind,
    /// Its namespace; empty for kinds without.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Which of its specs, from 0.
    pub spec: u16,
    /// Where it stands.
    pub tier: Tier,
    /// Whom it is about.
    pub subject: Subject,
    /// Ingress; `None` = not restricted by this spec.
    pub ingress: Option<DirectionRules>,
    /// Egress; `None` = not restricted by this spec.
    pub egress: Option<DirectionRules>,
}

impl RuleRow {
    /// `Kind namespace/name`, as people are told of it.
    #[must_use]
    pub fn title(&self) -> String {
        let kind = self.kind.name();
        if self.namespace.is_empty() {
            format!("{kind} {}", self.name)
        } else {
            format!("{kind} {}/{}", self.namespace, self.name)
        }
    }
}

impl Row for RuleRow {
    type Key = RuleKey;
    type Index = NoIndex;
    const TABLE: &'static str = "rules";

    fn key(&self) -> Self::Key {
        (self.kind, self.namespace.clone(), self.name.clone(), self.spec)
    }

    fn source(&self) -> &Source {
        &self.source
    }

    fn columns() -> &'static [&'static str] {
        &["KIND", "NAMESPACE", "NAME", "SPEC", "INGRESS", "EGRESS"]
    }

    fn cells(&self) -> Vec<String> {
        let count = |direction: &Option<DirectionRules>| {
            direction.as_ref().map_or_else(|| "-".to_owned(), |rules| format!("{} rules", rules.blocks.len()))
        };
        vec![
            self.kind.name().to_owned(),
            self.namespace.to_string(),
            self.name.to_string(),
            self.spec.to_string(),
            count(&self.ingress),
            count(&self.egress),
        ]
    }
}

/// Intent: a CiliumCIDRGroup.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CidrGroupRow {
    /// Who said it.
    pub source: Source,
    /// Its name.
    pub name: Arc<str>,
    /// Its labels.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// Its prefixes.
    pub prefixes: BTreeSet<Prefix>,
}

impl Row for CidrGroupRow {
    type Key = Arc<str>;
    type Index = NoIndex;
    const TABLE: &'static str = "cidr-groups";

    fn key(&self) -> Self::Key {
        self.name.clone()
    }

    fn source(&self) -> &Source {
        &self.source
    }

    fn columns() -> &'static [&'static str] {
        &["NAME", "PREFIXES"]
    }

    fn cells(&self) -> Vec<String> {
        let prefixes: Vec<_> = self.prefixes.iter().map(ToString::to_string).collect();
        vec![self.name.to_string(), prefixes.join(" ")]
    }
}
