//! The `cilium.io` kinds as written. Numbers are wide, so that a value out of range is told with the range.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// What stands around every spec.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Object<S> {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) metadata: ObjectMeta,
    pub(crate) spec: S,
    /// Written by a control plane; not read.
    #[serde(default)]
    pub(crate) status: Value,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ClusterConfigSpec {
    pub(crate) node_selector: Option<LabelSelector>,
    pub(crate) bgp_instances: Vec<Instance>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Instance {
    pub(crate) name: String,
    #[serde(rename = "localASN")]
    pub(crate) local_asn: Option<i64>,
    pub(crate) local_port: Option<i64>,
    #[serde(default)]
    pub(crate) peers: Vec<Peer>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) peer_address: Option<String>,
    #[serde(rename = "peerASN")]
    pub(crate) peer_asn: Option<i64>,
    pub(crate) auto_discovery: Option<AutoDiscovery>,
    pub(crate) peer_config_ref: Option<Reference>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AutoDiscovery {
    pub(crate) mode: String,
    pub(crate) default_gateway: Option<DefaultGateway>,
    pub(crate) unnumbered: Option<Unnumbered>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DefaultGateway {
    pub(crate) address_family: String,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Unnumbered {
    pub(crate) interface: String,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Reference {
    pub(crate) name: String,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PeerConfigSpec {
    pub(crate) transport: Option<Transport>,
    pub(crate) timers: Option<Timers>,
    pub(crate) auth_secret_ref: Option<String>,
    pub(crate) graceful_restart: Option<GracefulRestart>,
    pub(crate) ebgp_multihop: Option<i64>,
    pub(crate) families: Option<Vec<Family>>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Transport {
    pub(crate) peer_port: Option<i64>,
    pub(crate) source_interface: Option<String>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Timers {
    pub(crate) connect_retry_time_seconds: Option<i64>,
    pub(crate) hold_time_seconds: Option<i64>,
    pub(crate) keep_alive_time_seconds: Option<i64>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GracefulRestart {
    pub(crate) enabled: bool,
    pub(crate) restart_time_seconds: Option<i64>,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Family {
    pub(crate) afi: String,
    pub(crate) safi: String,
    pub(crate) advertisements: Option<LabelSelector>,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct AdvertisementSpec {
    pub(crate) advertisements: Vec<Advertisement>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Advertisement {
    pub(crate) advertisement_type: String,
    pub(crate) service: Option<AdvertisedService>,
    pub(crate) interface: Option<AdvertisedInterface>,
    pub(crate) selector: Option<LabelSelector>,
    pub(crate) attributes: Option<Attributes>,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct AdvertisedService {
    pub(crate) addresses: Vec<String>,
    #[serde(rename = "aggregationLengthIPv4")]
    pub(crate) aggregation_length_ipv4: Option<i64>,
    #[serde(rename = "aggregationLengthIPv6")]
    pub(crate) aggregation_length_ipv6: Option<i64>,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct AdvertisedInterface {
    pub(crate) name: String,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Attributes {
    pub(crate) communities: Option<Communities>,
    pub(crate) local_preference: Option<i64>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Communities {
    #[serde(default)]
    pub(crate) standard: Vec<String>,
    #[serde(default)]
    pub(crate) well_known: Vec<String>,
    #[serde(default)]
    pub(crate) large: Vec<String>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OverrideSpec {
    pub(crate) bgp_instances: Vec<OverrideInstance>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OverrideInstance {
    pub(crate) name: String,
    #[serde(rename = "routerID")]
    pub(crate) router_id: Option<String>,
    pub(crate) local_port: Option<i64>,
    #[serde(rename = "localASN")]
    pub(crate) local_asn: Option<i64>,
    #[serde(default)]
    pub(crate) peers: Vec<OverridePeer>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OverridePeer {
    pub(crate) name: String,
    pub(crate) local_address: Option<String>,
    /// Deprecated there, without effect.
    pub(crate) local_port: Option<i64>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PoolSpec {
    #[serde(default)]
    pub(crate) blocks: Vec<Block>,
    /// The name of `blocks` before `cilium.io/v2alpha1` settled.
    #[serde(default)]
    pub(crate) cidrs: Vec<Block>,
    pub(crate) service_selector: Option<LabelSelector>,
    pub(crate) disabled: Option<bool>,
    #[serde(rename = "allowFirstLastIPs")]
    pub(crate) allow_first_last_ips: Option<String>,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Block {
    pub(crate) cidr: Option<String>,
    pub(crate) start: Option<String>,
    pub(crate) stop: Option<String>,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct PodPoolSpec {
    pub(crate) ipv4: Option<PodPoolFamily>,
    pub(crate) ipv6: Option<PodPoolFamily>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodPoolFamily {
    pub(crate) cidrs: Vec<String>,
    pub(crate) mask_size: i64,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EgressPolicySpec {
    pub(crate) selectors: Vec<EgressRule>,
    #[serde(rename = "destinationCIDRs")]
    pub(crate) destination_cidrs: Vec<String>,
    #[serde(rename = "excludedCIDRs", default)]
    pub(crate) excluded_cidrs: Vec<String>,
    pub(crate) egress_gateway: Option<EgressGateway>,
    #[serde(default)]
    pub(crate) egress_gateways: Vec<EgressGateway>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EgressRule {
    pub(crate) namespace_selector: Option<LabelSelector>,
    pub(crate) pod_selector: Option<LabelSelector>,
    pub(crate) node_selector: Option<LabelSelector>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EgressGateway {
    pub(crate) node_selector: Option<LabelSelector>,
    pub(crate) interface: Option<String>,
    #[serde(rename = "egressIP")]
    pub(crate) egress_ip: Option<String>,
}

/// `BGPPeerPolicy` of `tombolo.io/v1alpha1`: our own kind.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PeerPolicySpec {
    pub(crate) node_selector: Option<LabelSelector>,
    pub(crate) peers: Vec<PolicyPeer>,
    pub(crate) session: Option<PolicySession>,
    pub(crate) bfd: Option<PolicyBfd>,
    pub(crate) max_prefixes: Option<PolicyLimit>,
    pub(crate) add_path: Option<PolicyAddPath>,
    pub(crate) long_lived_graceful_restart: Option<PolicyLongLived>,
    pub(crate) multipath: Option<PolicyMultipath>,
    pub(crate) next_hops: Option<PolicyNextHops>,
    pub(crate) import: Option<PolicyRules>,
    pub(crate) export: Option<PolicyRules>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PolicyPeer {
    pub(crate) peer_config_ref: Option<Reference>,
    pub(crate) instance: Option<String>,
    pub(crate) peer: Option<String>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PolicySession {
    pub(crate) passive: Option<bool>,
    pub(crate) extended_messages: Option<bool>,
    #[serde(rename = "enforceFirstAS")]
    pub(crate) enforce_first_as: Option<bool>,
    pub(crate) ttl_security_hops: Option<i64>,
    pub(crate) extended_next_hop: Option<bool>,
    pub(crate) group: Option<String>,
    pub(crate) accept_blackhole: Option<bool>,
    pub(crate) role: Option<String>,
    pub(crate) strict_role: Option<bool>,
    pub(crate) reflector_client: Option<bool>,
    pub(crate) route_server_client: Option<bool>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PolicyBfd {
    pub(crate) transmit_interval_milliseconds: Option<i64>,
    pub(crate) receive_interval_milliseconds: Option<i64>,
    pub(crate) echo_receive_interval_milliseconds: Option<i64>,
    pub(crate) detect_multiplier: Option<i64>,
    pub(crate) passive: Option<bool>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PolicyLimit {
    pub(crate) limit: i64,
    pub(crate) warning_percent: Option<i64>,
    pub(crate) action: Option<String>,
    pub(crate) restart_seconds: Option<i64>,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct PolicyAddPath {
    pub(crate) receive: Option<bool>,
    pub(crate) send: Option<i64>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PolicyLongLived {
    pub(crate) stale_time_seconds: i64,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PolicyMultipath {
    pub(crate) max_paths: i64,
}

/// `import` or `export`: a policy of the speaker, with short forms for what is asked for most.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PolicyRules {
    /// Short for one statement that accepts these ranges.
    pub(crate) allow: Option<Vec<String>>,
    /// Export only: MULTI_EXIT_DISC.
    pub(crate) med: Option<i64>,
    /// Export only: how often the own AS is put in front once more.
    pub(crate) prepend: Option<i64>,
    /// The statements as the speaker has them.
    #[serde(default)]
    pub(crate) statements: Value,
    pub(crate) default: Option<String>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PolicyNextHops {
    pub(crate) ipv4: Option<String>,
    pub(crate) ipv6: Option<String>,
}

/// A ServiceExport; unlike the others it needs no spec.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ExportObject {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) metadata: ObjectMeta,
    pub(crate) spec: Option<ExportSpec>,
    /// Written by a control plane; not read.
    #[serde(default)]
    pub(crate) status: Value,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ExportSpec {
    pub(crate) exported_labels: Option<BTreeMap<String, String>>,
    pub(crate) exported_annotations: Option<BTreeMap<String, String>>,
}

/// A ServiceImport. What the exports decide is accepted and not read, as the status is.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ImportSpec {
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    #[serde(default)]
    pub(crate) ips: Vec<String>,
    #[serde(default)]
    pub(crate) ports: Value,
    #[serde(default)]
    pub(crate) ip_families: Value,
    #[serde(default)]
    pub(crate) session_affinity: Value,
    #[serde(default)]
    pub(crate) session_affinity_config: Value,
    #[serde(default)]
    pub(crate) internal_traffic_policy: Value,
    #[serde(default)]
    pub(crate) traffic_distribution: Value,
}
