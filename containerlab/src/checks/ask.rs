//! Requests from a place to a target: who must answer, whom the answerer must see, and which flow events tell of it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::access::Place;
use super::check::{CheckResult, Failure, Family};
use super::context::Context;
use super::flows::{ServiceRef, Want};
use super::inventory::PodFacts;
use crate::workload::{Answer, Attempt, Outcome, ProbeReport};

/// Drop reason of a packet that policy denies, as Cilium numbers it.
pub(super) const POLICY_DENIED: u32 = 133;
/// Observation point of a packet that is given to a pod.
const TO_ENDPOINT: &str = "to-endpoint";

/// A pod of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodRef {
    /// Cluster.
    pub cluster: String,
    /// `NAMESPACE/NAME`.
    pub key: String,
}

/// Where requests come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A pod.
    Pod(PodRef),
    /// A node's own namespace.
    Host(String),
    /// The outside client.
    Client,
}

/// Where requests go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A pod's own address.
    Pod(PodRef, u16),
    /// A service's cluster address, as `from`'s cluster knows it.
    ClusterIp {
        /// Cluster whose manifest holds the service.
        cluster: String,
        /// `NAMESPACE/NAME`.
        service: String,
        /// Port.
        port: u16,
    },
    /// A service's LoadBalancer address.
    LoadBalancer {
        /// Cluster that owns the address.
        cluster: String,
        /// `NAMESPACE/NAME`.
        service: String,
        /// Port.
        port: u16,
    },
    /// A node's underlay address (ping only).
    Host(String),
    /// The outside client.
    Client(u16),
}

/// The protocol of the requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP line echo.
    Tcp,
    /// UDP echo.
    Udp,
    /// HTTP.
    Http,
    /// ICMP echo.
    Icmp,
}

impl Protocol {
    fn in_flows(self) -> &'static str {
        match self {
            Self::Tcp | Self::Http => "TCP",
            Self::Udp => "UDP",
            Self::Icmp => "ICMP",
        }
    }
}

/// Who must answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    /// The target itself.
    Target,
    /// Ready backends of the service, and at least one of each of these clusters.
    Backends(BTreeSet<String>),
    /// Ready backends, and at least one of each node of the cluster.
    EveryNode(String),
    /// Backends, at least once the asking pod itself.
    Oneself(String),
    /// Nobody: denied by policy at the target's node.
    NobodyDenied,
}

/// Whom the answerer must see as its peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// The asker's own address.
    Asker,
    /// The asker's own address, or that of another node where it was translated; both must occur.
    AskerOrOtherNode,
    /// The asker's own address, or a node-internal one when a pod reaches itself.
    AskerOrNode,
    /// The node-internal or an underlay address of the asking node.
    AskingNode,
    /// Not judged.
    Any,
}

/// One check of requests and their flows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// From where.
    pub from: Origin,
    /// To where.
    pub to: Target,
    /// How.
    pub protocol: Protocol,
    /// Address family.
    pub family: Family,
    /// How many requests, each from its own port.
    pub count: u32,
    /// Who answers.
    pub by: By,
    /// Whom it sees.
    pub peer: Peer,
}

/// An ask with every name replaced by what the lab says it is.
struct Resolved<'a> {
    place: Place,
    asker: Option<&'a PodFacts>,
    asker_cluster: Option<String>,
    target: IpAddr,
    port: u16,
    target_pod: Option<(&'a PodFacts, String)>,
    service: Option<ServiceRef>,
    backends: Vec<(&'a PodFacts, String)>,
}

impl Ask {
    /// Runs the check.
    ///
    /// # Errors
    /// The first thing that is not as expected.
    pub async fn run(&self, context: &Context, name: &str) -> CheckResult {
        let resolved = self.resolve(context).await?;
        let token = context.token(name, self.crosses_nodes(&resolved));
        let report = self.probe(context, &resolved, &token).await?;
        let look = self.look(context, &resolved);
        if self.by == By::NobodyDenied {
            return self.denied(context, &resolved, &report, &look).await;
        }
        if report.answered != report.sent || report.sent == 0 {
            return Err(unanswered(&report, look));
        }
        if self.protocol != Protocol::Icmp {
            self.judge_answers(context, &resolved, &report, &token, &look)?;
        }
        self.judge_flows(context, &resolved, &report).await?;
        Ok(Vec::new())
    }

    /// Whether the answer can only have come over an underlay link between two nodes of clusters.
    fn crosses_nodes(&self, resolved: &Resolved<'_>) -> bool {
        let other = |pod: &PodFacts| pod.node != resolved.place.node;
        if self.by == By::NobodyDenied || matches!(self.from, Origin::Client) {
            return false;
        }
        match (&self.to, &resolved.target_pod) {
            (Target::Pod(..), Some((pod, _))) => other(pod),
            (Target::ClusterIp { .. }, _) => {
                !resolved.backends.is_empty() && resolved.backends.iter().all(|(pod, _)| other(pod))
            }
            _ => false,
        }
    }

    async fn resolve<'a>(&self, context: &'a Context) -> Result<Resolved<'a>, Failure> {
        let (place, asker, asker_cluster) = self.resolve_from(context)?;
        let mut resolved = Resolved {
            place,
            asker,
            asker_cluster,
            target: IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
            port: 0,
            target_pod: None,
            service: None,
            backends: Vec::new(),
        };
        match &self.to {
            Target::Pod(pod, port) => {
                let facts = context.pod(&pod.cluster, &pod.key)?;
                resolved.target = context.pod_address(facts, self.family)?;
                resolved.port = *port;
                resolved.target_pod = Some((facts, pod.cluster.clone()));
            }
            Target::ClusterIp { cluster, service, port }
            | Target::LoadBalancer { cluster, service, port } => {
                let facts = context.service(cluster, service)?;
                resolved.target = match self.to {
                    Target::LoadBalancer { .. } => context.load_balancer(cluster, facts, self.family).await?,
                    _ => facts.cluster_ip(self.family).ok_or_else(|| {
                        Failure::new(
                            format!("service {service} has an {} cluster address", self.family),
                            format!("{:?}", facts.cluster_ips),
                            format!("the Service manifest of {service} in {cluster}"),
                        )
                    })?,
                };
                resolved.port = *port;
                resolved.service =
                    Some(ServiceRef { namespace: facts.namespace.clone(), name: facts.name.clone() });
                for home in context.inventory.clusters.values() {
                    // A global service's backends live in every cluster that has the service.
                    if let Some(there) = home.services.get(service) {
                        resolved.backends.extend(home.backends(there).map(|pod| (pod, home.name.clone())));
                    }
                }
            }
            Target::Host(node) => resolved.target = underlay(context, node, self.family)?,
            Target::Client(port) => {
                resolved.target = client_address(context, self.family).await?;
                resolved.port = *port;
            }
        }
        Ok(resolved)
    }

    fn resolve_from<'a>(
        &self,
        context: &'a Context,
    ) -> Result<(Place, Option<&'a PodFacts>, Option<String>), Failure> {
        Ok(match &self.from {
            Origin::Pod(pod) => {
                let facts = context.pod(&pod.cluster, &pod.key)?;
                (context.inside(facts), Some(facts), Some(pod.cluster.clone()))
            }
            Origin::Host(node) => (Place::node(node), None, None),
            Origin::Client => (Place::node(client(context)?), None, None),
        })
    }

    fn look(&self, context: &Context, resolved: &Resolved<'_>) -> String {
        let target = resolved.target.to_string();
        let port = resolved.port.to_string();
        let argv: Vec<&str> = match self.protocol {
            Protocol::Icmp => vec!["tombolo", "lab-probe", "ping", &target],
            Protocol::Udp => vec!["tombolo", "lab-probe", "udp", &target, &port],
            Protocol::Tcp | Protocol::Http => vec!["tombolo", "lab-probe", "tcp", &target, &port],
        };
        let flows = context.access.shown(&Place::node(&resolved.place.node), &["tombolo", "flows"]);
        format!("{} and {flows}", context.access.shown(&resolved.place, &argv))
    }

    async fn probe(
        &self,
        context: &Context,
        resolved: &Resolved<'_>,
        token: &str,
    ) -> Result<ProbeReport, Failure> {
        let (target, port, count) =
            (resolved.target.to_string(), resolved.port.to_string(), self.count.to_string());
        let url = match resolved.target {
            IpAddr::V4(address) => format!("http://{address}:{port}/"),
            IpAddr::V6(address) => format!("http://[{address}]:{port}/"),
        };
        let mut argv: Vec<&str> = match self.protocol {
            Protocol::Tcp => vec!["tcp", &target, &port],
            Protocol::Udp => vec!["udp", &target, &port],
            Protocol::Http => vec!["http", &url],
            Protocol::Icmp => vec!["ping", &target],
        };
        argv.extend(["--count", &count, "--token", token]);
        if self.count > 8 && self.protocol != Protocol::Icmp {
            argv.extend(["--parallel", "4"]);
        }
        if self.by == By::NobodyDenied {
            // Long enough for a SYN to be repeated once, short enough for a quick check.
            argv.extend(["--timeout-ms", "1500"]);
        }
        context.probe(&resolved.place, &argv).await
    }

    async fn denied(
        &self,
        context: &Context,
        resolved: &Resolved<'_>,
        report: &ProbeReport,
        look: &str,
    ) -> CheckResult {
        let silent =
            |attempt: &Attempt| matches!(attempt.outcome, Outcome::Timeout | Outcome::Unreachable { .. });
        if let Some(other) = report.attempts.iter().find(|attempt| !silent(attempt)) {
            return Err(Failure::new(
                "policy denies: no answer",
                format!("{:?}", other.outcome),
                format!("{look}; the NetworkPolicy manifests"),
            ));
        }
        let Some((pod, _)) = resolved.target_pod.as_ref() else { return Ok(Vec::new()) };
        let want = Want {
            source_ip: resolved.asker.and_then(|asker| asker.address(self.family)),
            source_port: report.attempts.first().and_then(|one| one.source).map(|source| source.port()),
            source_pod: resolved.asker.map(PodFacts::key),
            source_cluster: resolved.asker_cluster.clone(),
            destination_pod: Some(pod.key()),
            protocol: Some(self.protocol.in_flows()),
            drop_reason: POLICY_DENIED,
            ..Want::default()
        };
        context.flows.expect(&pod.node, &want).await?;
        Ok(Vec::new())
    }

    fn judge_answers(
        &self,
        context: &Context,
        resolved: &Resolved<'_>,
        report: &ProbeReport,
        token: &str,
        look: &str,
    ) -> Result<(), Failure> {
        let answers: Vec<&Answer> = report.answers().collect();
        if let Some(wrong) = answers.iter().find(|answer| !answer.payload.contains(token)) {
            let got = format!("{:?} from {}", wrong.payload, wrong.whoami.pod);
            return Err(Failure::new(format!("the token {token} in every answer"), got, look));
        }
        self.judge_answerers(context, resolved, &answers, look)?;
        self.judge_peers(context, resolved, report, look)
    }

    fn judge_answerers(
        &self,
        context: &Context,
        resolved: &Resolved<'_>,
        answers: &[&Answer],
        look: &str,
    ) -> Result<(), Failure> {
        let who = |answer: &Answer| {
            (answer.whoami.cluster.clone(), format!("{}/{}", answer.whoami.namespace, answer.whoami.pod))
        };
        let got: BTreeSet<(String, String)> = answers.iter().map(|answer| who(answer)).collect();
        let nodes: BTreeSet<String> = answers.iter().map(|answer| answer.whoami.node.clone()).collect();
        let clusters: BTreeSet<String> = got.iter().map(|(cluster, _)| cluster.clone()).collect();
        let shown = format!("{got:?} on nodes {nodes:?}");
        let fail = |expected: String| Err(Failure::new(expected, &shown, look));
        let known = |allowed: &BTreeSet<String>| {
            got.iter().all(|(cluster, key)| {
                allowed.contains(cluster)
                    && resolved.backends.iter().any(|(pod, home)| home == cluster && pod.key() == *key)
            })
        };
        match &self.by {
            By::Target => match (&resolved.target_pod, &self.to) {
                (Some((pod, cluster)), _) => {
                    let wanted = BTreeSet::from([(cluster.clone(), pod.key())]);
                    if got == wanted { Ok(()) } else { fail(format!("answers of {wanted:?}")) }
                }
                (None, Target::Client(_)) => {
                    let client = client(context)?;
                    if nodes == BTreeSet::from([client.to_owned()])
                        || clusters == BTreeSet::from([String::new()])
                    {
                        Ok(())
                    } else {
                        fail(format!("answers of {client}"))
                    }
                }
                _ => Ok(()),
            },
            By::Backends(wanted) => {
                if clusters == *wanted && known(wanted) {
                    Ok(())
                } else {
                    fail(format!("answers of backends in exactly the clusters {wanted:?}"))
                }
            }
            By::EveryNode(cluster) => {
                let home = context.cluster(cluster)?;
                let all: BTreeSet<String> = home.nodes.keys().cloned().collect();
                let allowed = BTreeSet::from([cluster.clone()]);
                if nodes == all && known(&allowed) {
                    Ok(())
                } else {
                    fail(format!("answers of backends on every node {all:?}"))
                }
            }
            By::Oneself(cluster) => {
                let oneself = resolved.asker.map(|asker| (cluster.clone(), asker.key()));
                if oneself.as_ref().is_some_and(|oneself| got.contains(oneself)) {
                    Ok(())
                } else {
                    fail(format!("at least one answer of the asking pod {oneself:?} itself"))
                }
            }
            By::NobodyDenied => Ok(()),
        }
    }

    fn judge_peers(
        &self,
        context: &Context,
        resolved: &Resolved<'_>,
        report: &ProbeReport,
        look: &str,
    ) -> Result<(), Failure> {
        let internal: BTreeSet<IpAddr> = context
            .inventory
            .clusters
            .values()
            .flat_map(|cluster| cluster.nodes.values())
            .filter_map(|node| node.internal(self.family))
            .collect();
        let (mut kept, mut translated) = (0_u32, 0_u32);
        for (attempt, answer) in report.attempts.iter().zip(report.answers()) {
            let own = attempt.source.is_some_and(|source| source.ip() == answer.peer_address);
            let own_port = attempt.source.is_some_and(|source| source.port() == answer.peer_port);
            let by_node = internal.contains(&answer.peer_address);
            kept += u32::from(own);
            translated += u32::from(by_node && !own);
            let asking_node = || own || self.node_address(context, &resolved.place.node, answer.peer_address);
            let (good, expected) = match self.peer {
                Peer::Any => (true, ""),
                Peer::Asker => (own && own_port, "the asker's own address and port"),
                Peer::AskerOrOtherNode => {
                    (own || by_node, "the asker's address or a node's internal address")
                }
                Peer::AskerOrNode => {
                    let oneself = resolved.asker.is_some_and(|asker| asker.name == answer.whoami.pod);
                    (own || (oneself && by_node), "the asker's address, or a node's when it reaches itself")
                }
                Peer::AskingNode => (asking_node(), "an address of the asking node"),
            };
            if !good {
                let got = format!(
                    "{}:{} as seen by {} on {} (sent from {:?})",
                    answer.peer_address,
                    answer.peer_port,
                    answer.whoami.pod,
                    answer.whoami.node,
                    attempt.source
                );
                return Err(Failure::new(format!("the server sees {expected}"), got, look));
            }
        }
        if self.peer == Peer::AskerOrOtherNode && translated == 0 {
            return Err(Failure::new(
                "some requests reach the backend through another node, translated to its internal address",
                format!("{kept} with the client's own address, {translated} translated"),
                look,
            ));
        }
        Ok(())
    }

    fn node_address(&self, context: &Context, node: &str, address: IpAddr) -> bool {
        let facts = context.inventory.cluster_of(node).and_then(|cluster| cluster.nodes.get(node));
        facts.is_some_and(|facts| {
            facts.internal(self.family) == Some(address) || facts.underlay(self.family) == Some(address)
        })
    }

    /// At the asking pod's node: its first packet, with its name and the service's. At the answering pod's node: the
    /// packet given to the pod, with the names of both ends.
    async fn judge_flows(
        &self,
        context: &Context,
        resolved: &Resolved<'_>,
        report: &ProbeReport,
    ) -> Result<(), Failure> {
        let Some(attempt) = report.attempts.first() else { return Ok(()) };
        let answer = report.answers().next();
        let protocol = Some(self.protocol.in_flows());
        let source_port = attempt.source.map(|source| source.port()).filter(|port| *port != 0);
        let asker_address = resolved.asker.and_then(|asker| asker.address(self.family));
        let answered_at = answer.map(|answer| answer.local_address).or(match self.to {
            Target::Pod(..) => Some(resolved.target),
            _ => None,
        });
        if let Some(asker) = resolved.asker {
            let want = Want {
                source_ip: asker_address,
                source_port,
                source_pod: Some(asker.key()),
                source_cluster: resolved.asker_cluster.clone(),
                destination_ip: answered_at.or(Some(resolved.target)),
                service: resolved.service.clone(),
                protocol,
                ..Want::default()
            };
            context.flows.expect(&asker.node, &want).await?;
        }
        let answerer = self.answerer(context, resolved, answer);
        let Some((pod, _)) = answerer else { return Ok(()) };
        let peer = answer.map(|answer| (answer.peer_address, answer.peer_port));
        // A pod that reaches itself is seen before its address is translated: the flow names the pod, not the node.
        let oneself = resolved.asker.is_some_and(|asker| asker.key() == pod.key());
        let own =
            oneself || asker_address.is_none() || peer.is_none() || peer.map(|(ip, _)| ip) == asker_address;
        let peer = peer.filter(|_| !oneself);
        let want = Want {
            source_ip: peer.map(|(ip, _)| ip).or(asker_address),
            source_port: peer.map(|(_, port)| port).or(source_port),
            source_pod: resolved.asker.filter(|_| own).map(PodFacts::key),
            source_cluster: resolved.asker_cluster.clone().filter(|_| own),
            destination_ip: pod.address(self.family),
            destination_pod: Some(pod.key()),
            protocol,
            point: Some(TO_ENDPOINT),
            ..Want::default()
        };
        context.flows.expect(&pod.node, &want).await?;
        Ok(())
    }

    fn answerer<'a>(
        &self,
        context: &'a Context,
        resolved: &Resolved<'a>,
        answer: Option<&Answer>,
    ) -> Option<(&'a PodFacts, String)> {
        match (&resolved.target_pod, answer) {
            (Some(target), _) => Some(target.clone()),
            (None, Some(answer)) => {
                let key = format!("{}/{}", answer.whoami.namespace, answer.whoami.pod);
                let pod = context.inventory.pod_by_name(&answer.whoami.cluster, &key)?;
                Some((pod, answer.whoami.cluster.clone()))
            }
            (None, None) => None,
        }
    }
}

fn unanswered(report: &ProbeReport, look: String) -> Failure {
    let kinds: BTreeSet<String> = report
        .attempts
        .iter()
        .filter(|attempt| !attempt.outcome.is_answer())
        .map(|attempt| match &attempt.outcome {
            Outcome::Failed { why } => format!("failed ({why})"),
            Outcome::Unreachable { code, from } => format!("unreachable (code {code:?} from {from:?})"),
            other => other.kind().to_owned(),
        })
        .collect();
    let expected = format!("{} answers over {} from {}", report.sent, report.protocol, report.target);
    Failure::new(expected, format!("{} answered, the others: {kinds:?}", report.answered), look)
}

/// The outside client's node name.
///
/// # Errors
/// When the topology has no node with the role `client`.
pub(super) fn client(context: &Context) -> Result<&str, Failure> {
    context
        .inventory
        .client
        .as_deref()
        .ok_or_else(|| Failure::new("a node labelled tombolo.io/role: client", "none", "the topology file"))
}

/// The outside client's address: its first global one on eth1.
///
/// # Errors
/// When it has none of the family.
pub(super) async fn client_address(context: &Context, family: Family) -> Result<IpAddr, Failure> {
    let place = Place::node(client(context)?);
    let addresses = super::routers::addresses(context, &place).await?;
    let found = addresses.into_iter().find(|net| family.holds(net.addr()));
    found.map(|net| net.addr()).ok_or_else(|| {
        let look = context.access.shown(&place, &["ip", "address"]);
        Failure::new(format!("an {family} address of the client"), "none", look)
    })
}

/// A node's underlay address.
///
/// # Errors
/// When its Node manifest names none of the family.
pub(super) fn underlay(context: &Context, node: &str, family: Family) -> Result<IpAddr, Failure> {
    let cluster = context.inventory.cluster_of(node);
    let facts = cluster.and_then(|cluster| cluster.nodes.get(node));
    facts.and_then(|facts| facts.underlay(family)).ok_or_else(|| {
        Failure::new(
            format!("an {family} InternalIP of {node}"),
            "none",
            format!("the Node manifest of {node}"),
        )
    })
}
