//! Namespace, Node, Pod.

use super::{ClusterIdentity, address, labels, port, prefix, word};
use crate::object::{Object, ObjectId};
use crate::problem::Issue;
use crate::rows::{NamedPort, NamespaceRow, PodRow, Workload};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use tombolo_base::prefix::Prefix;
use tombolo_base::source::Source;
use tombolo_topology::{AddressKind, NodeAddress, NodeHealth, NodeRow};

/// Whether a namespace's services may be shared with other clusters.
const GLOBAL: &str = "clustermesh.cilium.io/global";
/// Prefixes of one node; more are a mistake.
const MAX_POD_CIDRS: usize = 16;

pub(super) fn namespace(id: &ObjectId, object: Namespace) -> Result<Object, Issue> {
    let global = match object.metadata.annotations.unwrap_or_default().get(GLOBAL) {
        Some(text) => {
            word(format!("metadata.annotations.{GLOBAL}"), text, &[("true", true), ("false", false)])?
        }
        None => true,
    };
    let mut labels = labels(object.metadata.labels);
    // The API server adds this label to every namespace; policies select by it.
    labels.insert("kubernetes.io/metadata.name".into(), id.name.clone());
    Ok(Object::Namespace(NamespaceRow { source: Source::Manifests, name: id.name.clone(), labels, global }))
}

/// The address after the network's own; the network's own where the prefix holds nothing else.
fn first_usable(prefix: &Prefix) -> IpAddr {
    let step = u8::from(!prefix.is_host());
    match prefix.address() {
        IpAddr::V4(v4) => Ipv4Addr::from(u32::from(v4).saturating_add(step.into())).into(),
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6).saturating_add(step.into())).into(),
    }
}

pub(super) fn node(id: &ObjectId, object: Node, cluster: &ClusterIdentity) -> Result<Object, Issue> {
    let spec = object.spec.unwrap_or_default();
    let status = object.status.unwrap_or_default();
    let written = match (spec.pod_cidrs, spec.pod_cidr) {
        (Some(all), _) if !all.is_empty() => all,
        (_, first) => first.into_iter().collect(),
    };
    if written.len() > MAX_POD_CIDRS {
        let reason = format!("{} prefixes", written.len());
        return Err(Issue::new("spec.podCIDRs", reason, format!("use at most {MAX_POD_CIDRS}")));
    }
    let mut pod_cidrs = Vec::new();
    for (position, text) in written.iter().enumerate() {
        pod_cidrs.push(prefix(format!("spec.podCIDRs[{position}]"), text)?);
    }
    let mut addresses = Vec::new();
    for (position, entry) in status.addresses.into_iter().flatten().enumerate() {
        let kind = match entry.type_.as_str() {
            "InternalIP" => AddressKind::Internal,
            "ExternalIP" => AddressKind::External,
            "CiliumInternalIP" => AddressKind::CiliumInternal,
            // Host names say nothing about reachability.
            _ => continue,
        };
        let ip = address(format!("status.addresses[{position}].address"), &entry.address)?;
        addresses.push(NodeAddress { kind, ip });
    }
    for ip in pod_cidrs.iter().map(first_usable) {
        let internal =
            |a: &NodeAddress| a.kind == AddressKind::CiliumInternal && a.ip.is_ipv4() == ip.is_ipv4();
        if !addresses.iter().any(internal) {
            addresses.push(NodeAddress { kind: AddressKind::CiliumInternal, ip });
        }
    }
    let conditions = status.conditions.unwrap_or_default();
    let condition = |name: &str| conditions.iter().find(|condition| condition.type_ == name);
    let holds = |name| condition(name).map(|condition| condition.status == "True");
    let health = NodeHealth {
        unschedulable: spec.unschedulable.unwrap_or(false),
        taints: spec.taints.into_iter().flatten().map(|taint| taint.key.into()).collect(),
        disk_pressure: holds("DiskPressure").unwrap_or(false),
    };
    Ok(Object::Node(Box::new(NodeRow {
        source: Source::Manifests,
        cluster: cluster.name,
        cluster_id: cluster.id,
        name: id.name.clone(),
        addresses,
        pod_cidrs,
        wireguard_key: None,
        encryption_key: 0,
        labels: labels(object.metadata.labels).into(),
        ready: holds("Ready"),
        health,
    })))
}

/// IP protocol numbers by Kubernetes' names.
pub(super) const PROTOCOLS: [(&str, u8); 3] = [("TCP", 6), ("UDP", 17), ("SCTP", 132)];

fn named_ports(spec: &PodSpec) -> Result<BTreeSet<NamedPort>, Issue> {
    let mut ports = BTreeSet::new();
    for (c, container) in spec.containers.iter().enumerate() {
        for (p, entry) in container.ports.iter().flatten().enumerate() {
            let at = format!("spec.containers[{c}].ports[{p}]");
            let number = port(format!("{at}.containerPort"), entry.container_port)?;
            let text = entry.protocol.as_deref().unwrap_or("TCP");
            let protocol = word(format!("{at}.protocol"), text, &PROTOCOLS)?;
            if let Some(name) = entry.name.as_deref().filter(|name| !name.is_empty()) {
                ports.insert(NamedPort { name: name.into(), protocol, port: number });
            }
        }
    }
    Ok(ports)
}

/// The Ethernet address that a pod asks for.
const MAC: &str = "cni.cilium.io/mac-address";
/// What a Deployment puts at the end of its ReplicaSets' names.
const TEMPLATE_HASH: &str = "pod-template-hash";

/// Reads six bytes in hexadecimal of an address that one interface can have.
fn mac(text: &str) -> Option<[u8; 6]> {
    let parts =
        text.split(':').map(|part| (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok()).flatten());
    let bytes: [u8; 6] = parts.collect::<Option<Vec<u8>>>()?.try_into().ok()?;
    // The lowest bit is that of groups.
    (bytes[0] & 1 == 0 && bytes != [0; 6]).then_some(bytes)
}

/// What keeps a pod: of a ReplicaSet its Deployment, of a Job its CronJob, told by how these name what they make.
fn workload(meta: &ObjectMeta) -> Option<Workload> {
    let owner = meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))?;
    let label = |key: &str| meta.labels.as_ref().and_then(|labels| labels.get(key));
    let (kind, name) = match owner.kind.as_str() {
        "ReplicaSet" => {
            let deployment = label(TEMPLATE_HASH)
                .and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-'));
            deployment.map_or(("ReplicaSet", owner.name.as_str()), |name| ("Deployment", name))
        }
        "Job" => {
            let at_time =
                |digits: &str| (8..=10).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
            let cron = owner.name.rsplit_once('-').filter(|(_, digits)| at_time(digits));
            cron.map_or(("Job", owner.name.as_str()), |(name, _)| ("CronJob", name))
        }
        kind => (kind, owner.name.as_str()),
    };
    Some(Workload { kind: kind.into(), name: name.into() })
}

pub(super) fn pod(id: &ObjectId, object: Pod) -> Result<Object, Issue> {
    let asked = object.metadata.annotations.as_ref().and_then(|all| all.get(MAC));
    let mac = asked.map(|text| {
        mac(text).ok_or_else(|| {
            let reason = format!("{text:?} is no address of one interface");
            Issue::new(
                format!("metadata.annotations.{MAC}"),
                reason,
                "write six bytes as 02:00:5e:10:00:01, the first even",
            )
        })
    });
    let (mac, workload) = (mac.transpose()?, workload(&object.metadata));
    let spec = object.spec.unwrap_or_default();
    let status = object.status.unwrap_or_default();
    let named_ports = named_ports(&spec)?;
    let mut written: Vec<_> = status.pod_ips.into_iter().flatten().map(|entry| entry.ip).collect();
    if written.is_empty() {
        written.extend(status.pod_ip);
    }
    let mut addresses = Vec::new();
    for (position, text) in written.iter().enumerate().filter(|(_, text)| !text.is_empty()) {
        addresses.push(address(format!("status.podIPs[{position}].ip"), text)?);
    }
    let account = spec.service_account_name.or(spec.service_account).filter(|name| !name.is_empty());
    let ready = status.conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    Ok(Object::Pod(Box::new(PodRow {
        source: Source::Manifests,
        namespace: id.namespace.clone(),
        name: id.name.clone(),
        uid: object.metadata.uid.unwrap_or_default().into(),
        labels: labels(object.metadata.labels),
        node: spec.node_name.filter(|name| !name.is_empty()).map(Into::into),
        service_account: account.map_or_else(|| "default".into(), Into::into),
        named_ports,
        host_network: spec.host_network.unwrap_or(false),
        addresses,
        phase: status.phase.map(Into::into),
        ready,
        workload,
        mac,
    })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

    #[test]
    fn a_pod_is_one_of_what_keeps_it() {
        let of = |kind: &str, name: &str, controller| {
            let owner = OwnerReference {
                kind: kind.to_owned(),
                name: name.to_owned(),
                controller: Some(controller),
                ..OwnerReference::default()
            };
            let labels = Some([(TEMPLATE_HASH.to_owned(), "7d9f".to_owned())].into());
            let found = workload(&ObjectMeta {
                owner_references: Some(vec![owner]),
                labels,
                ..ObjectMeta::default()
            });
            found.map(|workload| format!("{} {}", workload.kind, workload.name))
        };
        assert_eq!(of("ReplicaSet", "web-7d9f", true).as_deref(), Some("Deployment web"));
        assert_eq!(of("ReplicaSet", "web-other", true).as_deref(), Some("ReplicaSet web-other"));
        assert_eq!(of("Job", "backup-28912345", true).as_deref(), Some("CronJob backup"));
        assert_eq!(of("Job", "backup-1", true).as_deref(), Some("Job backup-1"));
        assert_eq!(of("StatefulSet", "db", true).as_deref(), Some("StatefulSet db"));
        assert_eq!(of("StatefulSet", "db", false), None, "not its controller");
        assert_eq!(workload(&ObjectMeta::default()), None);
    }

    #[test]
    fn addresses_of_interfaces() {
        assert_eq!(mac("02:00:5e:10:00:0A"), Some([2, 0, 0x5e, 0x10, 0, 10]));
        for bad in [
            "",
            "02:00:5e:10:00",
            "02:00:5e:10:00:01:02",
            "03:00:5e:10:00:01",
            "00:00:00:00:00:00",
            "2:0:0:0:0:+1",
            "02-00-5e-10-00-01",
        ] {
            assert_eq!(mac(bad), None, "{bad}");
        }
    }
}
