//! From BGP intent to the sessions and advertised prefixes of one node.
//!
//! Small inputs, so one full pass: the same inputs give the same rows in the same order. What cannot be served becomes
//! a [`Condition`], not an error: the rest goes on.

mod adverts;
mod peers;

use super::intent::{
    AdvertisementRow, ClusterConfigRow, InstanceIntent, InstanceOverride, OverrideRow, PeerConfigRow,
    PodPoolRow, SecretRow,
};
use super::network::Network;
use super::{AdvertRow, Condition, ConditionType, PeerPolicyRow, PeerRow};
use crate::rows::NodeRow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use tombolo_base::texts::Texts;

/// The load balancer class that this control plane serves besides services without one.
pub const LOAD_BALANCER_CLASS: &str = "io.cilium/bgp-control-plane";

const CLUSTER_CONFIG: &str = "CiliumBGPClusterConfig";
const PEER_CONFIG: &str = "CiliumBGPPeerConfig";
const OVERRIDE: &str = "CiliumBGPNodeConfigOverride";
const PEER_POLICY: &str = "BGPPeerPolicy";

/// A service as far as advertising it goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdvertisedService {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Labels.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// Assigned LoadBalancer addresses.
    pub load_balancer_ips: BTreeSet<IpAddr>,
    /// `clusterIPs`.
    pub cluster_ips: BTreeSet<IpAddr>,
    /// `externalIPs`.
    pub external_ips: BTreeSet<IpAddr>,
    /// `loadBalancerClass`.
    pub load_balancer_class: Option<Arc<str>>,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// Whether a ready endpoint of the service runs on this node.
    pub local_ready: bool,
}

/// All that decides this node's BGP.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// This node.
    pub node: &'a NodeRow,
    /// The labels of every node of this cluster, this one included.
    pub nodes: &'a [Texts],
    /// `CiliumBGPClusterConfig`s.
    pub configs: &'a [ClusterConfigRow],
    /// `CiliumBGPPeerConfig`s.
    pub peer_configs: &'a [PeerConfigRow],
    /// `CiliumBGPAdvertisement`s.
    pub advertisements: &'a [AdvertisementRow],
    /// `CiliumBGPNodeConfigOverride`s.
    pub overrides: &'a [OverrideRow],
    /// `BGPPeerPolicy` objects.
    pub policies: &'a [PeerPolicyRow],
    /// `CiliumPodIPPool`s.
    pub pools: &'a [PodPoolRow],
    /// Secrets.
    pub secrets: &'a [SecretRow],
    /// The namespace in which `authSecretRef` is looked up.
    pub secrets_namespace: &'a str,
    /// Services.
    pub services: &'a [AdvertisedService],
    /// The node's interfaces and gateways.
    pub network: &'a Network,
}

/// The rows, each list ordered by key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Sessions.
    pub peers: Vec<PeerRow>,
    /// Advertised prefixes.
    pub adverts: Vec<AdvertRow>,
    /// What cannot be served.
    pub conditions: BTreeSet<Condition>,
}

impl Plan {
    fn complain(
        &mut self,
        (kind, name): (&'static str, &Arc<str>),
        about: ConditionType,
        text: impl Into<String>,
    ) {
        self.conditions.insert(Condition { kind, name: name.clone(), about, text: text.into() });
    }
}

/// Plans all sessions and adverts of the node.
#[must_use]
pub fn plan(inputs: &Inputs<'_>) -> Plan {
    let mut plan = Plan::default();
    unmatched(inputs, &mut plan);
    let Some(config) = choose_config(inputs, &mut plan) else { return plan };
    let mut adverts = BTreeMap::new();
    for instance in &config.instances {
        plan_instance(inputs, config, instance, &mut plan, &mut adverts);
    }
    plan.adverts = adverts.into_values().collect();
    plan.peers.sort_by(|a, b| (&a.instance, &a.name).cmp(&(&b.instance, &b.name)));
    plan
}

/// Configurations that no node of the cluster fits.
fn unmatched(inputs: &Inputs<'_>, plan: &mut Plan) {
    for config in inputs.configs {
        let fits = |labels: &Texts| config.node_selector.matches_texts(labels);
        if !fits(&inputs.node.labels) && !inputs.nodes.iter().any(fits) {
            let text = "no node has the labels of spec.nodeSelector; correct the selector or label a node";
            plan.complain((CLUSTER_CONFIG, &config.name), ConditionType::NoMatchingNode, text);
        }
    }
}

/// The configuration whose selector matches; the first by name if several do.
fn choose_config<'a>(inputs: &Inputs<'a>, plan: &mut Plan) -> Option<&'a ClusterConfigRow> {
    let mut matching: Vec<_> =
        inputs.configs.iter().filter(|c| c.node_selector.matches_texts(&inputs.node.labels)).collect();
    matching.sort_by(|a, b| a.name.cmp(&b.name));
    let (first, others) = matching.split_first()?;
    for other in others {
        let text = format!("{} selects this node too and is used; narrow one nodeSelector", first.name);
        plan.complain((CLUSTER_CONFIG, &other.name), ConditionType::ConflictingClusterConfig, text);
    }
    Some(first)
}

/// What all peers of an instance share.
struct Speaker<'a> {
    config: &'a ClusterConfigRow,
    instance: &'a InstanceIntent,
    change: Option<&'a InstanceOverride>,
    local_asn: u32,
    router_id: Ipv4Addr,
    local_port: Option<u16>,
}

impl Speaker<'_> {
    const fn object(&self) -> (&'static str, &Arc<str>) {
        (CLUSTER_CONFIG, &self.config.name)
    }
}

fn plan_instance(
    inputs: &Inputs<'_>,
    config: &ClusterConfigRow,
    instance: &InstanceIntent,
    plan: &mut Plan,
    adverts: &mut adverts::Adverts,
) {
    let object = (CLUSTER_CONFIG, &config.name);
    let change = inputs
        .overrides
        .iter()
        .find(|row| row.name == inputs.node.name)
        .and_then(|row| row.instances.iter().find(|change| change.name == instance.name));
    let Some(local_asn) = change.and_then(|change| change.local_asn).or(instance.local_asn) else {
        let text = format!(
            "instance {}: no localASN here nor in a CiliumBGPNodeConfigOverride; give one",
            instance.name
        );
        return plan.complain(object, ConditionType::ReconcileError, text);
    };
    let Some(router_id) = change.and_then(|change| change.router_id).or_else(|| router_id(inputs)) else {
        let text = format!(
            "instance {}: the node has neither an IPv4 address nor a device to take the router id from; \
             set routerID in a CiliumBGPNodeConfigOverride",
            instance.name
        );
        return plan.complain(object, ConditionType::ReconcileError, text);
    };
    let local_port = change.and_then(|change| change.local_port).or(instance.local_port);
    let speaker = Speaker { config, instance, change, local_asn, router_id, local_port };
    let mut sessions = Vec::new();
    for peer in &instance.peers {
        sessions.extend(peers::sessions(inputs, &speaker, peer, plan));
    }
    // One table serves all peers of an instance: the most careful of their policies counts for it.
    let max_paths = sessions.iter().filter_map(|(row, _)| row.tuning.max_paths).min();
    for (mut row, families) in sessions {
        row.tuning.max_paths = max_paths;
        adverts::of_peer(inputs, &row, &families, plan, adverts);
        plan.peers.push(row);
    }
}

/// The node's IPv4 address, or else what its own device gives.
fn router_id(inputs: &Inputs<'_>) -> Option<Ipv4Addr> {
    match inputs.node.underlay(true) {
        Some(IpAddr::V4(v4)) => Some(v4),
        _ => inputs.network.fallback_router_id.filter(|id| !id.is_unspecified()),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
