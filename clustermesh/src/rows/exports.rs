//! Exports of the Multi-Cluster Services API between wire and rows.

use crate::wire::export::{
    ExportPort, ExportType, InternalTrafficPolicy, IpFamily, ServiceExport, SessionAffinity,
    TrafficDistribution,
};
use tombolo_base::ids::ClusterName;
use tombolo_base::source::Source;
use tombolo_service::mcs::{ExportSpec, ExportedPort, ImportType, RemoteExport};
use tombolo_service::rows::{Protocol, ServiceName, TrafficPolicy};

/// The row of an entry. A port of a protocol that services do not speak is left out.
#[must_use]
pub fn remote_export(source: &Source, entry: &ServiceExport) -> RemoteExport {
    let port = |port: &ExportPort| {
        let protocol = if port.protocol.is_empty() { "TCP" } else { &port.protocol };
        Some(ExportedPort {
            name: port.name.clone(),
            protocol: Protocol::parse(protocol)?,
            app_protocol: port.app_protocol.clone(),
            port: port.port,
        })
    };
    RemoteExport {
        source: *source,
        name: ServiceName { namespace: entry.namespace.clone(), name: entry.name.clone() },
        created_unix_secs: entry.created_unix_secs,
        spec: ExportSpec {
            ports: entry.ports.iter().filter_map(port).collect(),
            kind: match entry.kind {
                ExportType::ClusterSetIp => ImportType::ClusterSetIP,
                ExportType::Headless => ImportType::Headless,
            },
            client_ip_affinity: entry.session_affinity == SessionAffinity::ClientIp,
            affinity_timeout_secs: entry.affinity_timeout_secs,
            families_ipv4: entry.ip_families.iter().map(|family| *family == IpFamily::V4).collect(),
            internal_traffic_policy: entry.internal_traffic_policy.map(|policy| match policy {
                InternalTrafficPolicy::Cluster => TrafficPolicy::Cluster,
                InternalTrafficPolicy::Local => TrafficPolicy::Local,
            }),
            traffic_distribution: entry.traffic_distribution.map(|word| word.word().into()),
            labels: entry.labels.clone(),
            annotations: entry.annotations.clone(),
        },
    }
}

/// The entry of an export of this cluster.
#[must_use]
pub fn export_entry(
    cluster: &ClusterName,
    name: &ServiceName,
    created_unix_secs: i64,
    spec: &ExportSpec,
) -> ServiceExport {
    let mut entry = ServiceExport::new(cluster.as_str(), &name.namespace, &name.name, created_unix_secs);
    let port = |port: &ExportedPort| ExportPort {
        name: port.name.clone(),
        protocol: port.protocol.to_string().into(),
        app_protocol: port.app_protocol.clone(),
        port: port.port,
    };
    entry.ports = spec.ports.iter().map(port).collect();
    entry.kind = match spec.kind {
        ImportType::ClusterSetIP => ExportType::ClusterSetIp,
        ImportType::Headless => ExportType::Headless,
    };
    if spec.client_ip_affinity {
        entry.session_affinity = SessionAffinity::ClientIp;
    }
    entry.affinity_timeout_secs = spec.affinity_timeout_secs;
    let family = |ipv4: &bool| if *ipv4 { IpFamily::V4 } else { IpFamily::V6 };
    entry.ip_families = spec.families_ipv4.iter().map(family).collect();
    entry.internal_traffic_policy = spec.internal_traffic_policy.map(|policy| match policy {
        TrafficPolicy::Cluster => InternalTrafficPolicy::Cluster,
        TrafficPolicy::Local => InternalTrafficPolicy::Local,
    });
    // A word that the format does not know would make the whole entry unreadable.
    entry.traffic_distribution = spec.traffic_distribution.as_deref().and_then(TrafficDistribution::parse);
    entry.labels = spec.labels.clone();
    entry.annotations = spec.annotations.clone();
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_comes_back_as_it_was_published() {
        let name = ServiceName { namespace: "shop".into(), name: "web".into() };
        let port = |name: &str, number, protocol| ExportedPort {
            name: name.into(),
            protocol,
            app_protocol: (number == 80).then(|| "http".into()),
            port: number,
        };
        let spec = ExportSpec {
            ports: vec![port("http", 80, Protocol::Tcp), port("dns", 53, Protocol::Udp)],
            kind: ImportType::Headless,
            client_ip_affinity: true,
            affinity_timeout_secs: Some(60),
            families_ipv4: vec![false, true],
            internal_traffic_policy: Some(TrafficPolicy::Local),
            traffic_distribution: Some("PreferClose".into()),
            labels: [("a".into(), "b".into())].into(),
            annotations: [("c".into(), "d".into())].into(),
        };
        let source = Source::Cluster(ClusterName::new("east").unwrap());
        let entry = export_entry(&ClusterName::new("east").unwrap(), &name, 1_700_000_000, &spec);
        let row = RemoteExport { source, name, created_unix_secs: 1_700_000_000, spec };
        assert_eq!(remote_export(&source, &entry), row);
        let strange = ServiceExport {
            ports: vec![ExportPort { protocol: "QUIC".into(), ..entry.ports[0].clone() }],
            ..entry
        };
        assert!(remote_export(&source, &strange).spec.ports.is_empty(), "one bad port costs that port only");
    }
}
