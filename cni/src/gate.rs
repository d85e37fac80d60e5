//! The border to the rest of the agent: who allocates identities and says when the datapath is in place.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use tombolo_base::ids::IdentityId;
use tombolo_base::labels::Labels;
use tombolo_topology::HostPort;

/// What is known of an endpoint before it has an identity. Does not change during its life, except `ifindex` when the
/// node was restarted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSpec {
    /// Number on this node, 1..=65535.
    pub id: u16,
    /// The runtime's sandbox id.
    pub container_id: String,
    /// The interface's name in the pod.
    pub ifname: String,
    /// Path of the pod's network namespace.
    pub netns: String,
    /// Kubernetes namespace (K8S_POD_NAMESPACE); empty if the runtime gave none.
    pub namespace: String,
    /// Pod name (K8S_POD_NAME); empty if the runtime gave none.
    pub pod: String,
    /// Pod UID (K8S_POD_UID), if the runtime gave one.
    pub pod_uid: Option<String>,
    /// One address per family at most.
    pub addresses: Vec<IpAddr>,
    /// The host side's interface name.
    pub host_interface: String,
    /// The host side's interface index; 0 before it is made.
    pub ifindex: u32,
    /// The pod's Ethernet address.
    pub mac: [u8; 6],
    /// The host side's Ethernet address, the pod's gateway.
    pub host_mac: [u8; 6],
    /// Ports of the node that the runtime wants to lead to the pod.
    #[serde(default)]
    pub port_mappings: BTreeSet<HostPort>,
    /// Whether plugins behind ours keep traffic in queues of the host's interface.
    #[serde(default)]
    pub queued: bool,
}

/// The identity of an endpoint and the labels that make it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The number.
    pub id: IdentityId,
    /// The labels.
    pub labels: Labels,
}

/// Why the gate did not open.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct GateError {
    /// What was tried, why it failed and what to try.
    pub message: String,
    /// The runtime shall simply call again (the agent is still starting, etcd is away).
    pub retry: bool,
}

impl GateError {
    /// A failure that calling again will not cure by itself.
    pub fn fatal(message: impl Into<String>) -> Self {
        Self { message: message.into(), retry: false }
    }

    /// A failure that is expected to pass.
    pub fn retry(message: impl Into<String>) -> Self {
        Self { message: message.into(), retry: true }
    }
}

/// Identity and datapath of endpoints; implemented by the agent. Every call may be repeated for the same endpoint.
pub trait DatapathGate: Send + Sync + 'static {
    /// Looks the pod up, derives its labels and allocates its identity. The endpoint's row is in the table already
    /// (creating, without identity) and its host interface exists, up but without carrier.
    fn identify(&self, endpoint: &EndpointSpec) -> impl Future<Output = Result<Identity, GateError>> + Send;

    /// The Ethernet address that a pod asks for, if it is known and does. Asked before anything is made.
    fn mac(&self, namespace: &str, pod: &str) -> Option<[u8; 6]>;

    /// Returns once the datapath forwards for the endpoint: programs attached, endpoint, identity and policy applied,
    /// its address published. Its row (creating, with identity) is in the table. The pod's end comes up afterwards.
    fn apply(&self, endpoint: &EndpointSpec) -> impl Future<Output = Result<(), GateError>> + Send;

    /// Returns once the datapath knows nothing of the endpoint any more. Its row says deleting. It may never have
    /// come as far as `identify`.
    fn remove(&self, endpoint: &EndpointSpec) -> impl Future<Output = Result<(), GateError>> + Send;

    /// CHECK: whether the datapath still has the endpoint as it should be.
    fn check(&self, endpoint: &EndpointSpec) -> impl Future<Output = Result<(), GateError>> + Send;
}
