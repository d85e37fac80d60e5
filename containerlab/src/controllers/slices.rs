//! The EndpointSlice controller, pure: from Services, Pods and Nodes to the slices that Kubernetes would make.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Who made a slice; only slices that carry this are ever changed or removed.
pub const MANAGED_BY: &str = "endpointslice-controller.lab.tombolo.io";
/// Label that says so.
pub const MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
/// Label that names the Service.
pub const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// Most endpoints of one slice, as in Kubernetes.
const MAX_ENDPOINTS: usize = 1_000;

/// The slices of one Service: for each of its address families at least one, though it may be empty. Pods whose named
/// ports resolve differently lie in different slices. `nodes_down` are nodes known to be dead: their pods may still say
/// Ready, since nobody is left to say otherwise.
pub fn slices(service: &Service, pods: &[&Pod], nodes_down: &BTreeSet<String>) -> Vec<EndpointSlice> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let selector = spec.selector.clone().unwrap_or_default();
    if selector.is_empty() || spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    let namespace = service.metadata.namespace.as_deref();
    let selected: Vec<&Pod> = pods
        .iter()
        .copied()
        .filter(|pod| {
            pod.metadata.namespace.as_deref() == namespace && matches(pod, &selector) && !ended(pod)
        })
        .collect();
    let ports = spec.ports.clone().unwrap_or_default();
    let publish_not_ready = spec.publish_not_ready_addresses == Some(true);
    let mut slices = Vec::new();
    for family in families(service) {
        let mut groups: BTreeMap<Vec<PortKey>, Vec<Endpoint>> = BTreeMap::new();
        for pod in &selected {
            let Some(address) = address(pod, family) else { continue };
            let key = ports.iter().filter_map(|port| resolve(port, pod)).collect();
            let endpoint = endpoint(pod, address, publish_not_ready, nodes_down);
            groups.entry(key).or_default().push(endpoint);
        }
        if groups.is_empty() {
            groups.insert(Vec::new(), Vec::new());
        }
        let parts = groups.into_iter().flat_map(|(ports, mut endpoints)| {
            endpoints.sort_by(|a, b| a.addresses.cmp(&b.addresses));
            let chunks: Vec<Vec<Endpoint>> = match endpoints.len() {
                0 => vec![endpoints],
                _ => endpoints.chunks(MAX_ENDPOINTS).map(<[Endpoint]>::to_vec).collect(),
            };
            chunks.into_iter().map(move |chunk| (ports.clone(), chunk))
        });
        for (index, (ports, endpoints)) in parts.enumerate() {
            slices.push(slice(service, family, index, &ports, endpoints));
        }
    }
    slices
}

/// One resolved port, in an order that does not depend on the order of pods.
type PortKey = (String, String, i32, Option<String>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// The Service's families; without `ipFamilies` those of its cluster addresses, else IPv4.
fn families(service: &Service) -> Vec<Family> {
    let spec = service.spec.as_ref();
    let named = spec.and_then(|spec| spec.ip_families.clone()).unwrap_or_default();
    let mut families: Vec<Family> = named
        .iter()
        .filter_map(|name| match name.as_str() {
            "IPv4" => Some(Family::V4),
            "IPv6" => Some(Family::V6),
            _ => None,
        })
        .collect();
    if families.is_empty() {
        let addresses = spec.and_then(|spec| spec.cluster_ips.clone()).unwrap_or_default();
        families = addresses.iter().filter_map(|text| text.parse::<IpAddr>().ok()).map(family_of).collect();
    }
    if families.is_empty() {
        families.push(Family::V4);
    }
    families.dedup();
    families
}

fn family_of(address: IpAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}

fn matches(pod: &Pod, selector: &BTreeMap<String, String>) -> bool {
    let labels = pod.metadata.labels.as_ref();
    selector.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

/// A pod that ran to its end serves nothing any more.
fn ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn address(pod: &Pod, family: Family) -> Option<String> {
    let status = pod.status.as_ref()?;
    let many = status.pod_ips.iter().flatten().map(|entry| entry.ip.as_str());
    many.chain(status.pod_ip.as_deref()).find_map(|text| {
        let address: IpAddr = text.parse().ok()?;
        (family_of(address) == family).then(|| address.to_string())
    })
}

/// The number of the Service port in this pod; `None` when the pod has no port of that name.
fn resolve(port: &ServicePort, pod: &Pod) -> Option<PortKey> {
    let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
    let number = match port.target_port.clone().unwrap_or(IntOrString::Int(port.port)) {
        IntOrString::Int(0) => port.port,
        IntOrString::Int(number) => number,
        IntOrString::String(name) => named_port(pod, &name, &protocol)?,
    };
    Some((port.name.clone().unwrap_or_default(), protocol, number, port.app_protocol.clone()))
}

fn named_port(pod: &Pod, name: &str, protocol: &str) -> Option<i32> {
    let containers = &pod.spec.as_ref()?.containers;
    let ports = containers.iter().flat_map(|container| container.ports.iter().flatten());
    let mut fitting = ports.filter(|port| {
        port.name.as_deref() == Some(name) && port.protocol.as_deref().unwrap_or("TCP") == protocol
    });
    fitting.next().map(|port| port.container_port)
}

fn endpoint(pod: &Pod, address: String, publish_not_ready: bool, nodes_down: &BTreeSet<String>) -> Endpoint {
    let node_name = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    let alive = !node_name.as_ref().is_some_and(|node| nodes_down.contains(node));
    let serving = alive && is_ready(pod);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            ready: Some(publish_not_ready || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        node_name,
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn slice(
    service: &Service,
    family: Family,
    index: usize,
    ports: &[PortKey],
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    let name = service.metadata.name.clone().unwrap_or_default();
    let mut labels = BTreeMap::new();
    labels.insert(SERVICE_LABEL.to_owned(), name.clone());
    labels.insert(MANAGED_BY_LABEL.to_owned(), MANAGED_BY.to_owned());
    let headless = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None");
    if headless {
        labels.insert("service.kubernetes.io/headless".to_owned(), String::new());
    }
    let suffix = match index {
        0 => String::new(),
        more => format!("-{}", more.saturating_add(1)),
    };
    let ports = ports.iter().map(|(name, protocol, port, app_protocol)| EndpointPort {
        name: Some(name.clone()),
        protocol: Some(protocol.clone()),
        port: Some(*port),
        app_protocol: app_protocol.clone(),
    });
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(format!("{name}-{}{suffix}", family.name().to_ascii_lowercase())),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        address_type: family.name().to_owned(),
        endpoints,
        ports: Some(ports.collect()),
    }
}
