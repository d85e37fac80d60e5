//! Who talked to whom: events with names put to addresses and numbers.

use crate::names;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_base::flow::{Capture, FlowEnd, FlowEvent, Verdict};
use tombolo_base::ids::IdentityId;
use tombolo_base::prefix::Prefix;
use tombolo_base::source::Source;
use tombolo_base::table::Snapshot;
use tombolo_topology::{EndpointRow, IdentityRow, NodeLookup, NodeRow, PrefixRow};

/// One end of a flow, named as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Address in the packet.
    pub ip: String,
    /// Port, 0 if the protocol has none.
    pub port: u16,
    /// Numeric identity.
    pub identity: u32,
    /// Kubernetes namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Pod name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// What the pod is one of; known of this cluster's pods.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub workloads: Vec<Workload>,
    /// Node name, if the address is a node's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Cluster name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// The identity's labels, `source:key=value`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
}

impl Peer {
    /// `namespace/pod:port`, a node, or the address.
    #[must_use]
    pub fn label(&self) -> String {
        let host = match (&self.namespace, &self.pod, &self.node) {
            (Some(namespace), Some(pod), _) => format!("{namespace}/{pod}"),
            (_, _, Some(node)) => format!("{node} ({})", self.ip),
            _ => self.ip.clone(),
        };
        if self.port == 0 { host } else { format!("{host}:{}", self.port) }
    }
}

/// Transport of a flow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct L4 {
    /// `TCP`, `UDP`, `ICMPv4`, `ICMPv6`, `SCTP` or a number.
    pub protocol: String,
    /// TCP flags as a number.
    #[serde(default)]
    pub tcp_flags: u8,
    /// ICMP type.
    #[serde(default)]
    pub icmp_type: u8,
    /// ICMP code.
    #[serde(default)]
    pub icmp_code: u8,
}

/// What keeps pods: a Deployment, a StatefulSet, ...
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Name.
    pub name: String,
    /// Kind, as in manifests.
    pub kind: String,
}

/// A service by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRef {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// An address and port before translation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Original {
    /// Address.
    pub ip: String,
    /// Port.
    pub port: u16,
}

/// A flow event with names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// Its number in this life of the agent; `tombolo why` takes it.
    #[serde(default)]
    pub id: u64,
    /// Nanoseconds since the epoch.
    pub time: u64,
    /// The node that saw it.
    pub node: String,
    /// What it was made for: `drop`, `trace`, or `policy-verdict` when a policy judged a new flow.
    #[serde(default)]
    pub event: String,
    /// `FORWARDED`, `DROPPED`, or `AUDIT`: passed on, though policy would have dropped it.
    pub verdict: String,
    /// The rules that decided, `Kind namespace/name direction rule`; of drops by policy and of verdicts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<String>,
    /// Cilium's reason number, 0 if forwarded; also of what is audited.
    pub drop_reason: u8,
    /// Cilium's reason name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub drop_reason_desc: String,
    /// The place in the programs that spoke.
    pub site: u16,
    /// File and line of the place, why, and what to try; for drops.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// What the policy entry that decided has, in Cilium's words: `l3-l4` an identity and a port; empty: none decided.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub policy_match: String,
    /// Why a map could not be written, an errno; 0 if that is not the reason.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub errno: u16,
    /// Cilium's observation point.
    pub trace_point: String,
    /// `egress` on the way out of a pod or of the node, else `ingress`.
    #[serde(default)]
    pub direction: String,
    /// Sender.
    pub source: Peer,
    /// Receiver.
    pub destination: Peer,
    /// Transport.
    pub l4: L4,
    /// The service that was addressed, if any.
    pub service: Option<ServiceRef>,
    /// Address and port before translation, if translated.
    pub original_destination: Option<Original>,
    /// Whether it is the answering direction.
    pub reply: bool,
    /// First packet of a flow at this place.
    pub new: bool,
    /// Whether it crosses the underlay encrypted.
    pub encrypted: bool,
    /// Bytes of the packet.
    pub length: u32,
    /// The packet's first bytes, where they were captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture: Option<Box<Capture>>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
const fn is_zero(number: &u16) -> bool {
    *number == 0
}

/// Finds objects of Kubernetes, which `observe` does not know itself.
pub trait ObjectNames {
    /// Namespace and name of the service that owns address, port and IP protocol.
    fn service(&self, address: IpAddr, port: u16, protocol: u8) -> Option<ServiceRef>;

    /// What a pod of this cluster is one of.
    fn workload(&self, namespace: &str, pod: &str) -> Option<Workload>;
}

/// The tables that names come from, as snapshots.
#[derive(Clone, Default)]
pub struct Names {
    /// This node's pods.
    pub endpoints: Snapshot<EndpointRow>,
    /// Everybody's addresses.
    pub prefixes: Snapshot<PrefixRow>,
    /// Everybody's identities.
    pub identities: Snapshot<IdentityRow>,
    /// Everybody's nodes.
    pub nodes: Snapshot<NodeRow>,
}

/// Puts names to events.
pub struct Enricher {
    /// This node's name.
    pub node: Arc<str>,
    /// This cluster's name.
    pub cluster: Arc<str>,
    /// What a site id means: `file:line: why; remedy`.
    pub sites: fn(u16) -> Option<String>,
}

impl Enricher {
    /// The event with names.
    #[must_use]
    pub fn enrich(&self, event: &FlowEvent, names: &Names, objects: &impl ObjectNames) -> Flow {
        let dropped = event.verdict == Verdict::Dropped;
        let frontend = event.original_destination;
        let service = frontend
            .and_then(|(ip, port)| objects.service(ip, port, event.protocol))
            .or_else(|| objects.service(event.destination.ip, event.destination.port, event.protocol));
        Flow {
            id: 0,
            time: event.time_ns,
            node: self.node.to_string(),
            event: if dropped { "drop" } else { "trace" }.to_owned(),
            verdict: match event.verdict {
                Verdict::Dropped => "DROPPED",
                Verdict::Audit => "AUDIT",
                Verdict::Forwarded => "FORWARDED",
            }
            .to_owned(),
            policies: Vec::new(),
            drop_reason: event.drop_reason,
            drop_reason_desc: names::drop_reason(event.drop_reason).to_owned(),
            site: event.site,
            why: if dropped { (self.sites)(event.site).unwrap_or_default() } else { String::new() },
            policy_match: names::match_type(event.matched).to_owned(),
            errno: event.error,
            trace_point: names::trace_point(event.trace_point).to_owned(),
            direction: if event.egress { "egress" } else { "ingress" }.to_owned(),
            source: self.peer(&event.source, names, objects),
            destination: self.peer(&event.destination, names, objects),
            l4: L4 {
                protocol: names::protocol(event.protocol),
                tcp_flags: event.tcp_flags,
                icmp_type: event.icmp.0,
                icmp_code: event.icmp.1,
            },
            service,
            original_destination: frontend.map(|(ip, port)| Original { ip: ip.to_string(), port }),
            reply: event.reply,
            new: event.new,
            encrypted: event.encrypted,
            length: event.length,
            capture: event.capture.clone(),
        }
    }

    /// Who is at an address, as the tables have it.
    #[must_use]
    pub fn peer(&self, end: &FlowEnd, names: &Names, objects: &impl ObjectNames) -> Peer {
        let mut peer =
            Peer { ip: end.ip.to_string(), port: end.port, identity: end.identity, ..Peer::default() };
        let row = names.prefixes.from_key(&(Prefix::host(end.ip), Source::Manifests)).next();
        if let Some(endpoint) = names.endpoints.by_index(&end.ip).next() {
            peer.namespace = Some(endpoint.namespace.to_string());
            peer.pod = Some(endpoint.pod.to_string());
            peer.cluster = Some(self.cluster.to_string());
            // Not every program has to look who it is.
            if let Some(identity) = endpoint.identity.filter(|_| peer.identity == 0) {
                peer.identity = identity.0;
            }
        } else if let Some(row) = row.filter(|row| row.prefix == Prefix::host(end.ip)) {
            peer.namespace = row.residence.namespace.as_ref().map(ToString::to_string);
            peer.pod = row.pod.as_ref().map(ToString::to_string);
            peer.cluster = self.cluster_of(&row.source);
            if peer.identity == 0 {
                peer.identity = row.identity.0;
            }
        } else if let Some(node) = names.nodes.by_index(&NodeLookup::Address(end.ip)).next() {
            peer.node = Some(node.name.to_string());
            peer.cluster = Some(node.cluster.to_string());
        }
        if let (Some(namespace), Some(pod)) = (&peer.namespace, &peer.pod)
            && peer.cluster.as_deref() == Some(&*self.cluster)
        {
            peer.workloads = objects.workload(namespace, pod).into_iter().collect();
        }
        peer.labels = labels(IdentityId(peer.identity), names);
        peer
    }

    fn cluster_of(&self, source: &Source) -> Option<String> {
        match source {
            Source::Cluster(name) => Some(name.to_string()),
            Source::Local | Source::Manifests => Some(self.cluster.to_string()),
            _ => None,
        }
    }
}

fn labels(id: IdentityId, names: &Names) -> Vec<String> {
    // A node that the API server is on remains a node.
    if id == IdentityId::KUBE_APISERVER {
        return vec!["reserved:kube-apiserver".to_owned(), "reserved:remote-node".to_owned()];
    }
    if let Some(name) = id.reserved_name() {
        return vec![format!("reserved:{name}")];
    }
    if id.is_node() {
        return vec!["reserved:remote-node".to_owned()];
    }
    // Of a prefix that a policy mentions: a number of this node alone.
    if id.0 >= 1 << 24 {
        return vec!["reserved:world".to_owned()];
    }
    let row = names.identities.from_key(&(id, Source::Manifests)).next().filter(|row| row.id == id);
    row.map(|row| row.labels.to_list()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tombolo_base::ids::ClusterName;
    use tombolo_base::labels::Labels;
    use tombolo_base::residence::Residence;
    use tombolo_base::table::Table;

    struct Web;
    impl ObjectNames for Web {
        fn workload(&self, namespace: &str, pod: &str) -> Option<Workload> {
            let web = (namespace, pod) == ("demo", "web-1");
            web.then(|| Workload { name: "web".to_owned(), kind: "Deployment".to_owned() })
        }

        fn service(&self, address: IpAddr, port: u16, protocol: u8) -> Option<ServiceRef> {
            let web = address == IpAddr::from([10, 101, 0, 10]) && (port, protocol) == (80, 6);
            web.then(|| ServiceRef { namespace: "demo".to_owned(), name: "web".to_owned() })
        }
    }

    fn end(ip: [u8; 4], port: u16, identity: u32) -> FlowEnd {
        FlowEnd { ip: ip.into(), port, identity, endpoint_id: 0 }
    }

    #[test]
    fn names_come_from_the_tables() {
        let west = Source::Cluster(ClusterName::new("west").unwrap());
        let (prefixes, writer_of_prefixes) = Table::new();
        writer_of_prefixes.upsert(PrefixRow {
            source: west,
            prefix: "10.2.1.5".parse().unwrap(),
            identity: IdentityId(131_400),
            residence: Residence::of(None, 0, "demo"),
            pod: Some("web-1".into()),
        });
        let (identities, writer) = Table::new();
        writer.upsert(IdentityRow {
            source: west,
            id: IdentityId(131_400),
            labels: Labels::k8s([("app", "web")]),
        });
        let names =
            Names { prefixes: prefixes.snapshot(), identities: identities.snapshot(), ..Names::default() };
        let event = FlowEvent {
            time_ns: 1,
            verdict: Verdict::Dropped,
            drop_reason: 133,
            site: 7,
            trace_point: 0,
            source: end([198, 51, 100, 1], 40000, 2),
            destination: end([10, 2, 1, 5], 8080, 131_400),
            protocol: 6,
            tcp_flags: 2,
            icmp: (0, 0),
            reply: false,
            new: true,
            encrypted: false,
            ifindex: 3,
            length: 60,
            original_destination: Some(([10, 101, 0, 10].into(), 80)),
            egress: false,
            matched: 2,
            error: 0,
            capture: None,
        };
        let enricher =
            Enricher { node: "n1".into(), cluster: "east".into(), sites: |id| Some(format!("site {id}")) };
        let flow = enricher.enrich(&event, &names, &Web);
        assert_eq!(flow.destination.label(), "demo/web-1:8080");
        assert_eq!(flow.destination.labels, ["k8s:app=web"]);
        assert_eq!(flow.source.labels, ["reserved:world"]);
        assert_eq!(labels(IdentityId((1 << 24) + 7), &names), ["reserved:world"], "by a prefix");
        assert_eq!((flow.drop_reason_desc.as_str(), flow.why.as_str()), ("POLICY_DENIED", "site 7"));
        assert_eq!((flow.direction.as_str(), flow.policy_match.as_str()), ("ingress", "l3-l4"));
        assert_eq!(flow.service.unwrap().name, "web");
        assert!(flow.destination.workloads.is_empty(), "another cluster's may have the same name");
        let mut row = prefixes.snapshot().iter().next().unwrap().clone();
        row.source = Source::Manifests;
        writer_of_prefixes.upsert(row);
        let names = Names { prefixes: prefixes.snapshot(), ..names };
        let flow = enricher.enrich(&event, &names, &Web);
        assert_eq!(flow.destination.workloads[0].kind, "Deployment");
        assert_eq!(labels(IdentityId((2 << 24) + 7), &names), ["reserved:remote-node"]);
    }
}
