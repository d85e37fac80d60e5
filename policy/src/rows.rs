//! The rows that policy owns.

use serde::Serialize;
use std::collections::BTreeSet;
use std::sync::Arc;
use tombolo_base::ids::IdentityId;
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

/// One entry of `from` or `to`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum PeerSelector {
    /// Pods by labels. `namespaces: None` = the policy's own namespace.
    Pods {
        /// Pod labels.
        pods: LabelSelector,
        /// Namespace labels.
        namespaces: Option<LabelSelector>,
    },
    /// Addresses outside the mesh.
    Cidr {
        /// Allowed.
        prefix: Prefix,
        /// Cut out of it.
        except: BTreeSet<Prefix>,
    },
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

/// One entry of `ports`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct PortRule {
    /// IP protocol number.
    pub protocol: u8,
    /// First port; `None` = all ports.
    pub port: Option<u16>,
    /// Last port of a range.
    pub end_port: Option<u16>,
    /// A port by name, resolved per selected pod.
    pub named: Option<Arc<str>>,
}

/// One entry of `ingress` or `egress`: these peers on these ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct RuleBlock {
    /// Peers; empty = everybody.
    pub peers: BTreeSet<PeerSelector>,
    /// Ports; empty = all.
    pub ports: BTreeSet<PortRule>,
}

/// Intent: a NetworkPolicy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RuleRow {
    /// Who said it.
    pub source: Source,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// The pods it selects.
    pub subject: LabelSelector,
    /// Ingress blocks; `None` = ingress is not restricted by this policy.
    pub ingress: Option<Vec<RuleBlock>>,
    /// Egress blocks; `None` = egress is not restricted by this policy.
    pub egress: Option<Vec<RuleBlock>>,
}

impl Row for RuleRow {
    type Key = (Arc<str>, Arc<str>);
    type Index = NoIndex;
    const TABLE: &'static str = "rules";
    fn key(&self) -> Self::Key {
        (self.namespace.clone(), self.name.clone())
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn columns() -> &'static [&'static str] {
        &["NAMESPACE", "NAME", "INGRESS", "EGRESS"]
    }
    fn cells(&self) -> Vec<String> {
        let count = |blocks: &Option<Vec<RuleBlock>>| {
            blocks.as_ref().map_or_else(|| "-".to_owned(), |blocks| format!("{} rules", blocks.len()))
        };
        vec![self.namespace.to_string(), self.name.to_string(), count(&self.ingress), count(&self.egress)]
    }
}

/// Desired: a compiled policy, shared by all pods with equal subject labels.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PolicyRow {
    /// Always [`Source::Planner`].
    pub source: Source,
    /// Number on this node, 1..; 0 = no restriction.
    pub id: u32,
    /// The identity whose pods share it.
    pub subject: IdentityId,
    /// Whether ingress is default deny.
    pub ingress_enforced: bool,
    /// Whether egress is default deny.
    pub egress_enforced: bool,
    /// All entries, written before the row names them.
    pub entries: BTreeSet<VerdictEntry>,
    /// The policies it was made of, `namespace/name`.
    pub origins: BTreeSet<Arc<str>>,
}

/// One allow or deny of a compiled policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct VerdictEntry {
    /// Which way.
    pub direction: Direction,
    /// The peer; 0 = anybody.
    pub identity: IdentityId,
    /// IP protocol; 0 = any.
    pub protocol: u8,
    /// Destination port; 0 = any.
    pub port: u16,
    /// Deny instead of allow.
    pub deny: bool,
}

impl Row for PolicyRow {
    type Key = u32;
    type Index = IdentityId;
    const TABLE: &'static str = "policies";
    fn key(&self) -> u32 {
        self.id
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn indexes(&self) -> Vec<IdentityId> {
        vec![self.subject]
    }
    fn columns() -> &'static [&'static str] {
        &["ID", "SUBJECT", "INGRESS", "EGRESS", "ENTRIES", "POLICIES"]
    }
    fn cells(&self) -> Vec<String> {
        let mode = |enforced| if enforced { "enforced" } else { "open" }.to_owned();
        let origins: Vec<&str> = self.origins.iter().map(AsRef::as_ref).collect();
        vec![
            self.id.to_string(),
            self.subject.to_string(),
            mode(self.ingress_enforced),
            mode(self.egress_enforced),
            self.entries.len().to_string(),
            origins.join(" "),
        ]
    }
}

/// Desired: which policy an endpoint runs under.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EndpointPolicy {
    /// Always [`Source::Planner`].
    pub source: Source,
    /// Endpoint number.
    pub endpoint: u16,
    /// Policy number; 0 = no restriction.
    pub policy: u32,
}

impl Row for EndpointPolicy {
    type Key = u16;
    type Index = NoIndex;
    const TABLE: &'static str = "endpoint-policies";
    fn key(&self) -> u16 {
        self.endpoint
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn columns() -> &'static [&'static str] {
        &["ENDPOINT", "POLICY"]
    }
    fn cells(&self) -> Vec<String> {
        vec![self.endpoint.to_string(), self.policy.to_string()]
    }
}
