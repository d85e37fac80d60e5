//! Typed objects to rows, with every value checked that a planner relies on.

mod advertisement;
mod bgp;
mod core;
mod egress;
mod mcs;
mod peer_policy;
mod policy;
mod pool;
mod secret;
mod service;

use crate::crd;
use crate::document::{MAX_UNKNOWN_KEYS, typed};
use crate::object::{Object, ObjectId};
use crate::problem::{Issue, shorten};
use k8s_openapi::api::core::v1 as core_v1;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_base::ids::{ClusterId, ClusterName};
use tombolo_base::prefix::Prefix;
use tombolo_policy::PolicyKind;
use tombolo_topology::selector::{LabelSelector, Requirement};

/// The cluster whose manifests are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterIdentity {
    /// Its name.
    pub name: ClusterName,
    /// Its id.
    pub id: ClusterId,
}

/// An object, and what looks wrong with it.
type Converted = (Object, Vec<Issue>);
type Convert = fn(&ObjectId, Value, &ClusterIdentity) -> Result<Converted, Issue>;

/// A kind that becomes rows.
pub(crate) struct KnownKind {
    pub(crate) kind: &'static str,
    pub(crate) namespaced: bool,
    pub(crate) convert: Convert,
}

fn via<T: DeserializeOwned + Serialize>(
    value: Value,
    convert: impl FnOnce(T) -> Result<Object, Issue>,
) -> Result<Converted, Issue> {
    via_doubtful(value, |object| convert(object).map(|object| (object, Vec::new())))
}

/// As [`via`], for conversions that leave parts out and say so.
fn via_doubtful<T: DeserializeOwned + Serialize>(
    value: Value,
    convert: impl FnOnce(T) -> Result<Converted, Issue>,
) -> Result<Converted, Issue> {
    let (object, unknown) = typed::<T>(value)?;
    let unknown = unknown.into_iter().take(MAX_UNKNOWN_KEYS);
    let mut doubts: Vec<Issue> = unknown
        .map(|path| Issue::new(path, "unknown key, ignored", "check its spelling and indentation"))
        .collect();
    let (object, more) = convert(object)?;
    doubts.extend(more);
    Ok((object, doubts))
}

/// As [`via_doubtful`], for policies: a key under their spec that nobody knows is the conversion's to judge, because with
/// a part of it left out a rule may let more through.
fn via_policy<T: DeserializeOwned + Serialize>(
    value: Value,
    convert: impl FnOnce(T, &[String]) -> Result<Converted, Issue>,
) -> Result<Converted, Issue> {
    let (object, unknown) = typed::<T>(value)?;
    let (within, beside): (Vec<_>, Vec<_>) = unknown.into_iter().partition(|path| path.starts_with("spec"));
    let (object, mut doubts) = convert(object, &within)?;
    let beside = beside.into_iter().take(MAX_UNKNOWN_KEYS);
    doubts.extend(
        beside.map(|path| Issue::new(path, "unknown key, ignored", "check its spelling and indentation")),
    );
    Ok((object, doubts))
}

/// As [`via`], but an unknown key is a mistake: in a kind of ours it asks for something that would not happen.
fn strict<T: DeserializeOwned + Serialize>(
    value: Value,
    convert: impl FnOnce(T) -> Result<Object, Issue>,
) -> Result<Converted, Issue> {
    let (object, unknown) = typed::<T>(value)?;
    match unknown.into_iter().find(|path| path.starts_with("spec")) {
        Some(path) => Err(Issue::new(path, "there is no such field", "see docs/bgp.md for those there are")),
        None => convert(object).map(|object| (object, Vec::new())),
    }
}

const KNOWN: [(&str, KnownKind); 23] = [
    ("v1", known("Namespace", false, |id, v, _| via(v, |o| core::namespace(id, o)))),
    ("v1", known("Node", false, |id, v, c| via(v, |o: core_v1::Node| core::node(id, o, c)))),
    ("v1", known("Pod", true, |id, v, _| via_doubtful(v, |o| core::pod(id, o)))),
    ("v1", known("Service", true, |id, v, _| via_doubtful(v, |o| service::service(id, o)))),
    ("v1", known("Secret", true, |id, v, _| Ok((secret::secret(id, &v)?, Vec::new())))),
    (
        "discovery.k8s.io/v1",
        known("EndpointSlice", true, |id, v, _| via(v, |o: EndpointSlice| service::slice(id, o))),
    ),
    (
        "networking.k8s.io/v1",
        known("NetworkPolicy", true, |id, v, _| via(v, |o: NetworkPolicy| policy::rule(id, o))),
    ),
    (
        "cilium.io/v2",
        known("CiliumNetworkPolicy", true, |id, v, _| {
            via_policy(v, |o, unknown| {
                policy::cilium::policy(PolicyKind::CiliumNetworkPolicy, id, o, unknown)
            })
        }),
    ),
    (
        "cilium.io/v2",
        known("CiliumClusterwideNetworkPolicy", false, |id, v, _| {
            let kind = PolicyKind::CiliumClusterwideNetworkPolicy;
            via_policy(v, |o, unknown| policy::cilium::policy(kind, id, o, unknown))
        }),
    ),
    (
        "cilium.io/v2",
        known("CiliumEgressGatewayPolicy", false, |id, v, _| {
            via_policy(v, |o, unknown| egress::policy(id, o, unknown))
        }),
    ),
    ("cilium.io", known("CiliumCIDRGroup", false, |id, v, _| via(v, |o| policy::cidr::group(id, o)))),
    (
        "policy.networking.k8s.io/v1alpha1",
        known("AdminNetworkPolicy", false, |id, v, _| {
            via_policy(v, |o, unknown| policy::admin::policy(PolicyKind::AdminNetworkPolicy, id, o, unknown))
        }),
    ),
    (
        "policy.networking.k8s.io/v1alpha1",
        known("BaselineAdminNetworkPolicy", false, |id, v, _| {
            let kind = PolicyKind::BaselineAdminNetworkPolicy;
            via_policy(v, |o, unknown| policy::admin::policy(kind, id, o, unknown))
        }),
    ),
    (
        "policy.networking.k8s.io/v1alpha2",
        known("ClusterNetworkPolicy", false, |id, v, _| {
            via_policy(v, |o, unknown| {
                policy::admin::policy(PolicyKind::ClusterNetworkPolicy, id, o, unknown)
            })
        }),
    ),
    (
        "cilium.io",
        known("CiliumBGPClusterConfig", false, |id, v, _| {
            via(v, |o: crd::Object<crd::ClusterConfigSpec>| bgp::cluster_config(id, o.spec))
        }),
    ),
    (
        "cilium.io",
        known("CiliumBGPPeerConfig", false, |id, v, _| {
            via(v, |o: crd::Object<crd::PeerConfigSpec>| bgp::peer_config(id, o.spec))
        }),
    ),
    (
        "cilium.io",
        known("CiliumBGPAdvertisement", false, |id, v, _| via(v, |o| advertisement::advertisement(id, o))),
    ),
    (
        "cilium.io",
        known("CiliumBGPNodeConfigOverride", false, |id, v, _| {
            via(v, |o: crd::Object<crd::OverrideSpec>| bgp::node_override(id, o.spec))
        }),
    ),
    (
        "cilium.io",
        known("CiliumLoadBalancerIPPool", false, |id, v, _| {
            via(v, |o: crd::Object<crd::PoolSpec>| pool::pool(id, o.spec))
        }),
    ),
    ("cilium.io", known("CiliumPodIPPool", false, |id, v, _| via(v, |o| pool::pod_pool(id, o)))),
    (
        "multicluster.x-k8s.io",
        known("ServiceExport", true, |id, v, _| via(v, |o: crd::ExportObject| mcs::export(id, o))),
    ),
    (
        "multicluster.x-k8s.io",
        known("ServiceImport", true, |id, v, _| {
            via(v, |o: crd::Object<crd::ImportSpec>| mcs::import(id, o.spec))
        }),
    ),
    (
        "tombolo.io/v1alpha1",
        known("BGPPeerPolicy", false, |id, v, _| {
            strict(v, |o: crd::Object<crd::PeerPolicySpec>| peer_policy::peer_policy(id, o.spec))
        }),
    ),
];

const fn known(kind: &'static str, namespaced: bool, convert: Convert) -> KnownKind {
    KnownKind { kind, namespaced, convert }
}

/// What to do with a kind; `None` for kinds that mean nothing here.
pub(crate) fn known_kind(api: &str, kind: &str) -> Option<&'static KnownKind> {
    const TABLE: &[(&str, KnownKind)] = &KNOWN;
    // Some kinds are the same in two versions.
    let group = match api {
        "cilium.io/v2" | "cilium.io/v2alpha1" => "cilium.io",
        "multicluster.x-k8s.io/v1alpha1" | "multicluster.x-k8s.io/v1beta1" => "multicluster.x-k8s.io",
        other => other,
    };
    let found = TABLE.iter().find(|(of, known)| [api, group].contains(of) && known.kind == kind);
    found.map(|(_, known)| known)
}

pub(crate) type Labels = BTreeMap<Arc<str>, Arc<str>>;

fn labels(map: Option<BTreeMap<String, String>>) -> Labels {
    map.into_iter().flatten().map(|(key, value)| (key.into(), value.into())).collect()
}

fn address(path: impl Into<String>, text: &str) -> Result<IpAddr, Issue> {
    text.parse().map_err(|_| {
        Issue::new(path, format!("{:?} is no IP address", shorten(text)), "write an IPv4 or IPv6 address")
    })
}

/// An address that means something beyond one host or link.
fn routed_address(path: String, text: &str) -> Result<IpAddr, Issue> {
    let ip = address(path.clone(), text)?;
    let local = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if local || ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() {
        let remedy = "use an address that routers can lead to this cluster";
        return Err(Issue::new(path, format!("{ip} means nothing beyond one host or link"), remedy));
    }
    Ok(ip)
}

fn prefix(path: impl Into<String>, text: &str) -> Result<Prefix, Issue> {
    text.parse().map_err(|_| {
        Issue::new(
            path,
            format!("{:?} is no prefix", shorten(text)),
            "write address/length, like 10.1.0.0/24",
        )
    })
}

/// A number within `low..=high`, as `T`.
fn number<T: TryFrom<i64>>(
    path: impl Into<String>,
    value: impl Into<i64>,
    low: i64,
    high: i64,
) -> Result<T, Issue> {
    let value = value.into();
    let in_range = (low..=high).contains(&value).then(|| T::try_from(value).ok()).flatten();
    in_range.ok_or_else(|| {
        let reason = format!("{value} is out of range");
        Issue::new(path, reason, format!("use a number from {low} to {high}"))
    })
}

fn port(path: impl Into<String>, value: impl Into<i64>) -> Result<u16, Issue> {
    number(path, value, 1, 65535)
}

/// One of several words.
fn word<T: Copy>(path: impl Into<String>, text: &str, allowed: &[(&str, T)]) -> Result<T, Issue> {
    let found = allowed.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
    found.ok_or_else(|| {
        let names: Vec<_> = allowed.iter().map(|(name, _)| *name).collect();
        let reason = format!("{:?} is not allowed", shorten(text));
        Issue::new(path, reason, format!("use one of: {}", names.join(", ")))
    })
}

fn selector(path: &str, selector: meta::LabelSelector) -> Result<LabelSelector, Issue> {
    let mut expressions = BTreeSet::new();
    for (position, line) in selector.match_expressions.into_iter().flatten().enumerate() {
        let at = format!("{path}.matchExpressions[{position}]");
        let values: BTreeSet<Arc<str>> = line.values.into_iter().flatten().map(Into::into).collect();
        let key: Arc<str> = line.key.into();
        let takes_values = matches!(line.operator.as_str(), "In" | "NotIn");
        if takes_values == values.is_empty() {
            let reason = format!("{} with {} values", line.operator, values.len());
            let remedy = "In and NotIn need at least one value, Exists and DoesNotExist none";
            return Err(Issue::new(format!("{at}.values"), reason, remedy));
        }
        expressions.insert(match line.operator.as_str() {
            "In" => Requirement::In(key, values),
            "NotIn" => Requirement::NotIn(key, values),
            "Exists" => Requirement::Exists(key),
            "DoesNotExist" => Requirement::DoesNotExist(key),
            other => {
                let reason = format!("operator {:?} is not known", shorten(other));
                let remedy = "use In, NotIn, Exists or DoesNotExist";
                return Err(Issue::new(format!("{at}.operator"), reason, remedy));
            }
        });
    }
    Ok(LabelSelector { labels: labels(selector.match_labels), expressions })
}

fn optional_selector(path: &str, value: Option<meta::LabelSelector>) -> Result<Option<LabelSelector>, Issue> {
    value.map(|value| selector(path, value)).transpose()
}
