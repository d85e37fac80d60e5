//! Service and EndpointSlice.

use super::{Converted, address, labels, number, port, prefix, routed_address, word};
use crate::object::{Object, ObjectId};
use crate::problem::{Issue, shorten};
use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use tombolo_base::prefix::Prefix;
use tombolo_base::source::Source;
use tombolo_service::{
    Affinity, Distribution, Protocol, ServiceDetails, ServiceName, ServicePort, ServiceRow, ServiceType,
    SliceEndpoint, SlicePort, SliceRow, Spread, TrafficPolicy,
};

const TYPES: [(&str, ServiceType); 4] = [
    ("ClusterIP", ServiceType::ClusterIP),
    ("NodePort", ServiceType::NodePort),
    ("LoadBalancer", ServiceType::LoadBalancer),
    ("ExternalName", ServiceType::ExternalName),
];
const POLICIES: [(&str, TrafficPolicy); 2] =
    [("Cluster", TrafficPolicy::Cluster), ("Local", TrafficPolicy::Local)];
const PROTOCOLS: [(&str, Protocol); 3] =
    [("TCP", Protocol::Tcp), ("UDP", Protocol::Udp), ("SCTP", Protocol::Sctp)];
const AFFINITIES: [(&str, Affinity); 4] = [
    ("none", Affinity::None),
    ("", Affinity::None),
    ("local", Affinity::Local),
    ("remote", Affinity::Remote),
];
const DISTRIBUTIONS: [(&str, Distribution); 4] = [
    ("", Distribution::Any),
    ("PreferClose", Distribution::SameZone),
    ("PreferSameZone", Distribution::SameZone),
    ("PreferSameNode", Distribution::SameNode),
];
const BOOLEANS: [(&str, bool); 2] = [("true", true), ("false", false)];

/// An annotation under its name of today or its older one, with its key path.
fn annotation<'a>(annotations: &'a BTreeMap<String, String>, names: [&str; 2]) -> Option<(String, &'a str)> {
    names.into_iter().find_map(|name| {
        annotations.get(name).map(|value| (format!("metadata.annotations.{name}"), value.as_str()))
    })
}

fn cluster_ips(spec: &ServiceSpec) -> Result<(Vec<IpAddr>, bool), Issue> {
    let (path, written) = match (&spec.cluster_ips, &spec.cluster_ip) {
        (Some(all), _) if !all.is_empty() => ("spec.clusterIPs", all.clone()),
        (_, one) => ("spec.clusterIP", one.iter().cloned().collect()),
    };
    let headless = written.iter().chain(&spec.cluster_ip).any(|text| text == "None");
    let mut ips = Vec::new();
    for (position, text) in written.iter().enumerate() {
        if !text.is_empty() && text != "None" {
            let at = if path.ends_with('s') { format!("{path}[{position}]") } else { path.to_owned() };
            ips.push(address(at, text)?);
        }
    }
    if headless && !ips.is_empty() {
        return Err(Issue::new(path, "None beside addresses", "write either None or addresses"));
    }
    Ok((ips, headless))
}

/// `ipFamilies`, or what the API server would fill in from addresses and `ipFamilyPolicy`.
fn families(spec: &ServiceSpec, ips: &[IpAddr]) -> Result<Vec<bool>, Issue> {
    let mut families = Vec::new();
    for (position, text) in spec.ip_families.iter().flatten().enumerate() {
        families.push(word(
            format!("spec.ipFamilies[{position}]"),
            text,
            &[("IPv4", true), ("IPv6", false)],
        )?);
    }
    let policies = [("SingleStack", false), ("PreferDualStack", true), ("RequireDualStack", true)];
    let dual = match spec.ip_family_policy.as_deref() {
        Some(text) => word("spec.ipFamilyPolicy", text, &policies)?,
        None => false,
    };
    if families.is_empty() {
        families = ips.iter().map(IpAddr::is_ipv4).collect();
    }
    let first = families.first().copied().unwrap_or(true);
    match families.len() {
        0 if dual => families = vec![true, false],
        0 => families = vec![true],
        1 if dual => families.push(!first),
        _ => {}
    }
    families.dedup();
    Ok(families)
}

fn external_ips(spec: &ServiceSpec) -> Result<Vec<IpAddr>, Issue> {
    let mut ips = Vec::new();
    for (position, text) in spec.external_ips.iter().flatten().enumerate() {
        let at = format!("spec.externalIPs[{position}]");
        let ip = routed_address(at, text)?;
        if !ips.contains(&ip) {
            ips.push(ip);
        }
    }
    Ok(ips)
}

/// `loadBalancerSourceRanges`. One that cannot be read is told and admits nobody, so that no service is open to all by a
/// slip of the pen.
fn source_ranges(spec: &ServiceSpec, kind: ServiceType, doubts: &mut Vec<Issue>) -> Option<BTreeSet<Prefix>> {
    let written = spec.load_balancer_source_ranges.as_ref().filter(|ranges| !ranges.is_empty())?;
    if kind != ServiceType::LoadBalancer {
        let reason = "it means nothing, for only LoadBalancer addresses are narrowed";
        let path = "spec.loadBalancerSourceRanges";
        doubts.push(Issue::new(path, reason, "use type LoadBalancer, or a NetworkPolicy"));
        return None;
    }
    let mut ranges = BTreeSet::new();
    for (position, text) in written.iter().enumerate() {
        match prefix(format!("spec.loadBalancerSourceRanges[{position}]"), text.trim()) {
            Ok(range) => drop(ranges.insert(range)),
            Err(issue) => doubts.push(issue),
        }
    }
    Some(ranges)
}

fn requested(spec: &ServiceSpec, annotations: &BTreeMap<String, String>) -> Result<Vec<IpAddr>, Issue> {
    let (path, text) = match annotation(annotations, ["lbipam.cilium.io/ips", "io.cilium/lb-ipam-ips"]) {
        Some(found) => found,
        None => ("spec.loadBalancerIP".to_owned(), spec.load_balancer_ip.as_deref().unwrap_or("")),
    };
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts.map(|part| address(path.clone(), part)).collect()
}

fn ports(spec: &ServiceSpec) -> Result<Vec<ServicePort>, Issue> {
    let mut ports = Vec::new();
    for (position, entry) in spec.ports.iter().flatten().enumerate() {
        let at = format!("spec.ports[{position}]");
        let text = entry.protocol.as_deref().unwrap_or("TCP");
        ports.push(ServicePort {
            name: entry.name.as_deref().unwrap_or("").into(),
            protocol: word(format!("{at}.protocol"), text, &PROTOCOLS)?,
            port: port(format!("{at}.port"), entry.port)?,
            node_port: match entry.node_port {
                None | Some(0) => None,
                Some(number) => Some(port(format!("{at}.nodePort"), number)?),
            },
        });
    }
    Ok(ports)
}

/// Takes node ports away from a service that cannot have any.
fn without_node_ports(ports: &mut [ServicePort], doubts: &mut Vec<Issue>) {
    for (position, port) in ports.iter_mut().enumerate().filter(|(_, port)| port.node_port.is_some()) {
        port.node_port = None;
        let path = format!("spec.ports[{position}].nodePort");
        let reason = "it means nothing, for the service is not on nodes";
        doubts.push(Issue::new(path, reason, "use type NodePort or LoadBalancer, with a cluster address"));
    }
}

/// A service's annotations. One that cannot be read is told and left out: the service goes on without it.
struct Annotations<'a> {
    written: &'a BTreeMap<String, String>,
    doubts: Vec<Issue>,
}

impl Annotations<'_> {
    fn doubt(&mut self, path: String, text: &str, why: &str, remedy: &str) {
        let reason = format!("{:?} is not used: {}", shorten(text), shorten(why));
        self.doubts.push(Issue::new(path, reason, remedy));
    }

    /// One of several words, in whatever case.
    fn word<T: Copy>(&mut self, names: [&str; 2], allowed: &[(&str, T)], default: T) -> T {
        let Some((path, text)) = annotation(self.written, names) else { return default };
        match word(path.clone(), &text.trim().to_ascii_lowercase(), allowed) {
            Ok(value) => value,
            Err(issue) => {
                self.doubt(path, text, "it is none of the words there are", &issue.remedy);
                default
            }
        }
    }

    /// What `read` makes of one of ours.
    fn read<T: Default>(&mut self, name: &str, remedy: &str, read: fn(&str) -> Result<T, String>) -> T {
        let path = format!("service.tombolo.io/{name}");
        let Some(text) = self.written.get(&path) else { return T::default() };
        read(text).unwrap_or_else(|why| {
            self.doubt(format!("metadata.annotations.{path}"), text, &why, remedy);
            T::default()
        })
    }

    fn spread(&mut self, global: bool, affinity: Affinity) -> Spread {
        let spread = Spread {
            tiers: self.read(
                "tiers",
                "write clusters apart by commas and tiers by semicolons, as east,west;*",
                Spread::parse_tiers,
            ),
            weights: self.read(
                "weights",
                "write clusters with weights, as east=80,*=20",
                Spread::parse_weights,
            ),
            overflow: self.read("overflow", "write a percentage, as 50%", |text| {
                Spread::parse_overflow(text).map(Some)
            }),
            probe: self.read(
                "probe",
                "write tcp or http:/path, then period=10s timeout=2s if you like",
                |text| Spread::parse_probe(text).map(Some),
            ),
        };
        let ours: Vec<String> =
            self.written.keys().filter(|key| key.starts_with("service.tombolo.io/")).cloned().collect();
        for name in ours {
            let path = format!("metadata.annotations.{name}");
            if !["tiers", "weights", "overflow", "probe"]
                .iter()
                .any(|known| name.ends_with(&format!("/{known}")))
            {
                let remedy = "there are tiers, weights, overflow and probe";
                self.doubts.push(Issue::new(path, "there is no such annotation, it is ignored", remedy));
            } else if !global {
                let remedy = "write service.cilium.io/global: \"true\" beside it";
                self.doubts.push(Issue::new(path, "it means nothing, for the service is not global", remedy));
            }
        }
        if !spread.tiers.is_empty() && affinity != Affinity::None {
            let path = "metadata.annotations.service.cilium.io/affinity";
            self.doubts.push(Issue::new(
                path,
                "it is not used, for the service has tiers",
                "write one of the two",
            ));
        }
        spread
    }
}

/// `trafficDistribution`; a word that is not known here counts as none, as Kubernetes says.
fn distribution(spec: &ServiceSpec, doubts: &mut Vec<Issue>) -> Distribution {
    let Some(text) = spec.traffic_distribution.as_deref() else { return Distribution::Any };
    word("spec.trafficDistribution", text, &DISTRIBUTIONS).unwrap_or_else(|issue| {
        doubts.push(issue);
        Distribution::Any
    })
}

pub(super) fn service(id: &ObjectId, object: Service) -> Result<Converted, Issue> {
    let spec = object.spec.unwrap_or_default();
    let annotations = object.metadata.annotations.unwrap_or_default();
    let (cluster_ips, headless) = cluster_ips(&spec)?;
    let mut notes = Annotations { written: &annotations, doubts: Vec::new() };
    let global = notes.word(["service.cilium.io/global", "io.cilium/global-service"], &BOOLEANS, false);
    let shared =
        notes.word(["service.cilium.io/shared", "io.cilium/shared-service"], &BOOLEANS, true) && global;
    let affinity =
        notes.word(["service.cilium.io/affinity", "io.cilium/service-affinity"], &AFFINITIES, Affinity::None);
    let spread = notes.spread(global, affinity);
    let mut doubts = notes.doubts;
    let distribution = distribution(&spec, &mut doubts);
    let kind = word("spec.type", spec.type_.as_deref().unwrap_or("ClusterIP"), &TYPES)?;
    let mut ports = ports(&spec)?;
    if headless || !matches!(kind, ServiceType::NodePort | ServiceType::LoadBalancer) {
        without_node_ports(&mut ports, &mut doubts);
    }
    let source_ranges = source_ranges(&spec, kind, &mut doubts);
    let policy = |path, text: &Option<String>| {
        text.as_deref().map_or(Ok(TrafficPolicy::Cluster), |text| word(path, text, &POLICIES))
    };
    let row = ServiceRow {
        source: Source::Manifests,
        name: ServiceName { namespace: id.namespace.clone(), name: id.name.clone() },
        kind,
        headless,
        ports,
        external_traffic_policy: policy("spec.externalTrafficPolicy", &spec.external_traffic_policy)?,
        internal_traffic_policy: policy("spec.internalTrafficPolicy", &spec.internal_traffic_policy)?,
        load_balancer_class: spec.load_balancer_class.as_deref().map(Into::into),
        families_ipv4: families(&spec, &cluster_ips)?,
        external_ips: external_ips(&spec)?,
        source_ranges,
        requested_addresses: requested(&spec, &annotations)?,
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        cluster_ips,
        global,
        shared,
        affinity,
        spread,
        distribution,
        labels: labels(object.metadata.labels),
        details: details(&spec)?,
        selector: labels(spec.selector),
    };
    Ok((Object::Service(Box::new(row)), doubts))
}

/// What names and other clusters are told of it.
fn details(spec: &ServiceSpec) -> Result<ServiceDetails, Issue> {
    let affinity = spec.session_affinity.as_deref().unwrap_or("None");
    let client_ip_affinity =
        word("spec.sessionAffinity", affinity, &[("None", false), ("ClientIP", true), ("", false)])?;
    let client = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let timeout = client.and_then(|client| client.timeout_seconds).filter(|_| client_ip_affinity);
    let path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
    let mut app_protocols = BTreeMap::new();
    for (entry, read) in spec.ports.iter().flatten().zip(ports(spec)?) {
        if let Some(app) = entry.app_protocol.as_deref().filter(|app| !app.is_empty()) {
            app_protocols.insert((read.port, read.protocol), app.into());
        }
    }
    Ok(ServiceDetails {
        external_name: spec.external_name.as_deref().filter(|name| !name.is_empty()).map(Into::into),
        client_ip_affinity,
        affinity_timeout_secs: timeout.map(|secs| number(path, secs, 1, 86_400)).transpose()?,
        app_protocols,
        traffic_distribution: spec.traffic_distribution.as_deref().map(Into::into),
    })
}

fn slice_port(position: usize, entry: &EndpointPort) -> Result<Option<SlicePort>, Issue> {
    let at = format!("ports[{position}]");
    // No number means "all ports", which only headless consumers can use.
    let Some(number) = entry.port else { return Ok(None) };
    Ok(Some(SlicePort {
        name: entry.name.as_deref().unwrap_or("").into(),
        protocol: word(format!("{at}.protocol"), entry.protocol.as_deref().unwrap_or("TCP"), &PROTOCOLS)?,
        port: port(format!("{at}.port"), number)?,
    }))
}

fn endpoint(position: usize, entry: Endpoint, ipv4: bool) -> Result<SliceEndpoint, Issue> {
    let mut addresses = Vec::new();
    for (place, text) in entry.addresses.iter().enumerate() {
        let at = format!("endpoints[{position}].addresses[{place}]");
        let ip = address(at.clone(), text)?;
        if ip.is_ipv4() != ipv4 {
            let remedy = "put the other family into a slice of its own";
            return Err(Issue::new(at, format!("{ip} is not of the slice's addressType"), remedy));
        }
        addresses.push(ip);
    }
    let conditions = entry.conditions.unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    let hints = entry.hints.unwrap_or_default();
    Ok(SliceEndpoint {
        addresses,
        ready,
        serving: conditions.serving.unwrap_or(ready),
        terminating: conditions.terminating.unwrap_or(false),
        node: entry.node_name.map(Into::into),
        zone: entry.zone.filter(|zone| !zone.is_empty()).map(Into::into),
        for_zones: hints.for_zones.into_iter().flatten().map(|hint| hint.name.into()).collect(),
        for_nodes: hints.for_nodes.into_iter().flatten().map(|hint| hint.name.into()).collect(),
        hostname: entry.hostname.filter(|name| !name.is_empty()).map(Into::into),
    })
}

pub(super) fn slice(id: &ObjectId, object: EndpointSlice) -> Result<Object, Issue> {
    let ipv4 = word("addressType", &object.address_type, &[("IPv4", true), ("IPv6", false)])?;
    let service = object.metadata.labels.and_then(|mut labels| labels.remove("kubernetes.io/service-name"));
    let Some(service) = service else {
        let remedy = "name the service in this label";
        return Err(Issue::new("metadata.labels.kubernetes.io/service-name", "the label is missing", remedy));
    };
    let mut ports = Vec::new();
    for (position, entry) in object.ports.iter().flatten().enumerate() {
        ports.extend(slice_port(position, entry)?);
    }
    let mut endpoints = Vec::new();
    for (position, entry) in object.endpoints.into_iter().enumerate() {
        endpoints.push(endpoint(position, entry, ipv4)?);
    }
    let name = |name| ServiceName { namespace: id.namespace.clone(), name };
    Ok(Object::Slice(Box::new(SliceRow {
        source: Source::Manifests,
        name: name(id.name.clone()),
        service: name(service.into()),
        ports,
        endpoints,
    })))
}
