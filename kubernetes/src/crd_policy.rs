//! The policy kinds beside NetworkPolicy as written. Numbers are wide, so that a value out of range is told with the range.
//! A list that is missing and one that is empty differ in meaning, so lists are optional.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CiliumPolicy {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) metadata: ObjectMeta,
    pub(crate) spec: Option<CiliumSpec>,
    pub(crate) specs: Option<Vec<CiliumSpec>>,
    /// Written by a control plane; not read.
    #[serde(default)]
    pub(crate) status: Value,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct CiliumSpec {
    pub(crate) endpoint_selector: Option<LabelSelector>,
    pub(crate) node_selector: Option<LabelSelector>,
    pub(crate) ingress: Vec<IngressRule>,
    pub(crate) ingress_deny: Vec<IngressRule>,
    pub(crate) egress: Vec<EgressRule>,
    pub(crate) egress_deny: Vec<EgressRule>,
    pub(crate) enable_default_deny: DefaultDeny,
    /// Notes for people and for logs; not read.
    pub(crate) labels: Value,
    pub(crate) description: Value,
    pub(crate) log: Value,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct DefaultDeny {
    pub(crate) ingress: Option<bool>,
    pub(crate) egress: Option<bool>,
}

/// A rule of either direction, and the same as read: the keys of one direction are unknown in the other.
macro_rules! rules {
    ($(#[$doc:meta])* $common:ident { $($name:ident: $type:ty = $ingress:literal | $egress:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub(crate) struct $common {
            $(pub(crate) $name: $type,)*
            pub(crate) to_ports: Option<Vec<CiliumPorts>>,
            pub(crate) icmps: Option<Vec<Icmps>>,
            pub(crate) authentication: Option<Authentication>,
        }
        rules!(@one IngressRule $common { $($name: $type = $ingress,)* });
        rules!(@one EgressRule $common { $($name: $type = $egress,)* });
    };
    (@one $read:ident $common:ident { $($name:ident: $type:ty = $key:literal,)* }) => {
        #[derive(Debug, Default, Deserialize, Serialize)]
        #[serde(rename_all = "camelCase", default)]
        pub(crate) struct $read {
            $(#[serde(rename = $key)] $name: $type,)*
            to_ports: Option<Vec<CiliumPorts>>,
            icmps: Option<Vec<Icmps>>,
            authentication: Option<Authentication>,
        }

        impl From<$read> for $common {
            fn from(read: $read) -> Self {
                let $read { $($name,)* to_ports, icmps, authentication } = read;
                Self { $($name,)* to_ports, icmps, authentication }
            }
        }
    };
}

rules! {
    /// Peers and ports; `None` = the key is not there.
    CiliumRule {
        endpoints: Option<Vec<LabelSelector>> = "fromEndpoints" | "toEndpoints",
        entities: Option<Vec<String>> = "fromEntities" | "toEntities",
        cidrs: Option<Vec<String>> = "fromCIDR" | "toCIDR",
        cidr_sets: Option<Vec<CidrRule>> = "fromCIDRSet" | "toCIDRSet",
        nodes: Option<Vec<LabelSelector>> = "fromNodes" | "toNodes",
        groups: Option<Vec<Value>> = "fromGroups" | "toGroups",
        requires: Option<Vec<Value>> = "fromRequires" | "toRequires",
        services: Option<Vec<Value>> = "fromServices" | "toServices",
        fqdns: Option<Vec<Value>> = "fromFQDNs" | "toFQDNs",
    }
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Authentication {
    pub(crate) mode: String,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct CidrRule {
    pub(crate) cidr: Option<String>,
    pub(crate) cidr_group_ref: Option<String>,
    pub(crate) cidr_group_selector: Option<LabelSelector>,
    pub(crate) except: Vec<String>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct CiliumPorts {
    pub(crate) ports: Vec<CiliumPort>,
    /// What only a proxy could decide.
    pub(crate) rules: Value,
    pub(crate) listener: Value,
    #[serde(rename = "terminatingTLS")]
    pub(crate) terminating_tls: Value,
    #[serde(rename = "originatingTLS")]
    pub(crate) originating_tls: Value,
    pub(crate) server_names: Value,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct CiliumPort {
    pub(crate) port: String,
    pub(crate) end_port: Option<i64>,
    pub(crate) protocol: String,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct Icmps {
    pub(crate) fields: Vec<IcmpField>,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct IcmpField {
    #[serde(default)]
    pub(crate) family: String,
    #[serde(rename = "type")]
    pub(crate) kind: IntOrString,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CidrGroupSpec {
    #[serde(rename = "externalCIDRs")]
    pub(crate) external_cidrs: Vec<String>,
}

/// AdminNetworkPolicy, BaselineAdminNetworkPolicy and ClusterNetworkPolicy: fields that a kind lacks are refused when read.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AdminSpec {
    pub(crate) tier: Option<String>,
    pub(crate) priority: Option<i64>,
    pub(crate) subject: AdminSubject,
    #[serde(default)]
    pub(crate) ingress: Vec<AdminRule>,
    #[serde(default)]
    pub(crate) egress: Vec<AdminRule>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct AdminSubject {
    pub(crate) namespaces: Option<LabelSelector>,
    pub(crate) pods: Option<NamespacedPods>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NamespacedPods {
    pub(crate) namespace_selector: LabelSelector,
    pub(crate) pod_selector: LabelSelector,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AdminRule {
    pub(crate) name: Option<String>,
    pub(crate) action: String,
    pub(crate) from: Option<Vec<AdminPeer>>,
    pub(crate) to: Option<Vec<AdminPeer>>,
    /// Of the kinds of `v1alpha1`.
    pub(crate) ports: Option<Vec<AdminPort>>,
    /// Of ClusterNetworkPolicy.
    pub(crate) protocols: Option<Vec<AdminProtocol>>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct AdminPeer {
    pub(crate) namespaces: Option<LabelSelector>,
    pub(crate) pods: Option<NamespacedPods>,
    pub(crate) nodes: Option<LabelSelector>,
    pub(crate) networks: Option<Vec<String>>,
    pub(crate) domain_names: Option<Vec<Value>>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct AdminPort {
    pub(crate) port_number: Option<PortNumber>,
    pub(crate) named_port: Option<String>,
    pub(crate) port_range: Option<PortRange>,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct PortNumber {
    pub(crate) protocol: Option<String>,
    pub(crate) port: i64,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct PortRange {
    pub(crate) protocol: Option<String>,
    pub(crate) start: i64,
    pub(crate) end: i64,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct AdminProtocol {
    pub(crate) tcp: Option<ProtocolPorts>,
    pub(crate) udp: Option<ProtocolPorts>,
    pub(crate) sctp: Option<ProtocolPorts>,
    pub(crate) destination_named_port: Option<String>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ProtocolPorts {
    pub(crate) destination_port: Option<DestinationPort>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct DestinationPort {
    pub(crate) number: Option<i64>,
    pub(crate) range: Option<NumberRange>,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct NumberRange {
    pub(crate) start: i64,
    pub(crate) end: i64,
}
