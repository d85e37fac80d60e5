//! Egress gateways: which pods leave the mesh by which node, and under which address.

pub mod plan;
#[cfg(test)]
mod plan_tests;

use crate::rows::NodeIndex;
use crate::selector::LabelSelector;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_base::cells::{list, opt};
use tombolo_base::ids::IdentityId;
use tombolo_base::prefix::Prefix;
use tombolo_base::source::Source;
use tombolo_base::table::{NoIndex, Row};

/// `spec.selectors[]`: pods by the labels of their identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EgressSelector {
    /// Over keys written `source:key`; a namespace and its labels are among them, as in policies.
    pub pods: LabelSelector,
    /// `nodeSelector`: only pods of these nodes.
    pub nodes: Option<LabelSelector>,
}

/// `spec.egressGateway`, or one of `spec.egressGateways[]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GatewayIntent {
    /// `nodeSelector`: of the nodes that it takes and that are ready, the first by name is the gateway.
    pub nodes: LabelSelector,
    /// `interface`.
    pub interface: Option<Arc<str>>,
    /// `egressIP`.
    pub address: Option<IpAddr>,
}

/// Intent: a `CiliumEgressGatewayPolicy`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EgressPolicyRow {
    /// Who said it.
    pub source: Source,
    /// Object name.
    pub name: Arc<str>,
    /// `selectors`.
    pub selectors: Vec<EgressSelector>,
    /// `destinationCIDRs`.
    pub destinations: BTreeSet<Prefix>,
    /// `excludedCIDRs`.
    pub excluded: BTreeSet<Prefix>,
    /// `egressGateways`, or `egressGateway` alone.
    pub gateways: Vec<GatewayIntent>,
}

impl Row for EgressPolicyRow {
    type Key = Arc<str>;
    type Index = NoIndex;
    const TABLE: &'static str = "egress-policies";
    fn key(&self) -> Self::Key {
        self.name.clone()
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn columns() -> &'static [&'static str] {
        &["NAME", "SELECTORS", "DESTINATIONS", "EXCLUDED", "GATEWAYS"]
    }
    fn cells(&self) -> Vec<String> {
        vec![
            self.name.to_string(),
            self.selectors.len().to_string(),
            list(&self.destinations),
            list(&self.excluded),
            self.gateways.len().to_string(),
        ]
    }
}

/// What an egress policy's gateway comes to, as this node sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EgressGatewayRow {
    /// Who planned it.
    pub source: Source,
    /// The policy.
    pub policy: Arc<str>,
    /// Its position among the policy's gateways.
    pub position: usize,
    /// The node; `None`: none that is taken is ready.
    pub node: Option<Arc<str>>,
    /// On the gateway itself: the interface by which packets leave.
    pub interface: Option<Arc<str>>,
    /// On the gateway itself: the source they get, of each family at most one.
    pub addresses: Vec<IpAddr>,
    /// What is wrong, and what to try; empty if nothing is.
    pub problem: String,
}

impl Row for EgressGatewayRow {
    type Key = (Arc<str>, usize);
    type Index = NoIndex;
    const TABLE: &'static str = "egress-gateways";
    fn key(&self) -> Self::Key {
        (self.policy.clone(), self.position)
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn columns() -> &'static [&'static str] {
        &["POLICY", "GATEWAY", "NODE", "INTERFACE", "ADDRESSES", "PROBLEM"]
    }
    fn cells(&self) -> Vec<String> {
        vec![
            self.policy.to_string(),
            self.position.to_string(),
            opt(self.node.as_ref()),
            opt(self.interface.as_ref()),
            list(&self.addresses),
            if self.problem.is_empty() { "-".to_owned() } else { self.problem.clone() },
        ]
    }
}

/// Which way a pod's packets to a destination outside the mesh go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EgressWay {
    /// A policy wants a gateway, and there is none: dropped.
    Nowhere,
    /// As without the policy.
    Excluded,
    /// To that node, which is the gateway.
    Node(NodeIndex),
    /// This node is the gateway.
    Here {
        /// The source they get; `None`: dropped.
        address: Option<IpAddr>,
        /// By this interface.
        ifindex: u32,
    },
}

/// Desired: how the packets of one address leave. Each address of a pod of this node has a row, most of them an empty one;
/// pods of other nodes have one where this node may be their gateway.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EgressRow {
    /// Who planned it.
    pub source: Source,
    /// The pod's address.
    pub pod: IpAddr,
    /// The identity that it was planned for.
    pub identity: IdentityId,
    /// By destination; the longest prefix counts.
    pub ways: BTreeMap<Prefix, EgressWay>,
}

impl Row for EgressRow {
    type Key = IpAddr;
    type Index = NoIndex;
    const TABLE: &'static str = "egress";
    fn key(&self) -> IpAddr {
        self.pod
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn columns() -> &'static [&'static str] {
        &["POD", "IDENTITY", "WAYS"]
    }
    fn cells(&self) -> Vec<String> {
        let way = |(prefix, way): (&Prefix, &EgressWay)| match way {
            EgressWay::Nowhere => format!("{prefix} nowhere"),
            EgressWay::Excluded => format!("{prefix} excluded"),
            EgressWay::Node(index) => format!("{prefix} node {}", index.0),
            EgressWay::Here { address, ifindex } => format!("{prefix} here {} ({ifindex})", opt(*address)),
        };
        vec![self.pod.to_string(), self.identity.to_string(), list(self.ways.iter().map(way))]
    }
}
