//! Requests from a place to a target: who must answer, whom the answerer must see ([`answers`]), and which flow events
//! tell of it ([`events`]).

mod answers;
mod events;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::access::Place;
use super::check::{CheckResult, Failure, Family};
use super::context::Context;
use super::flows::ServiceRef;
use super::inventory::PodFacts;
use crate::workload::{Outcome, ProbeReport};

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
    /// A service by its name, as the pod resolves it: by DNS, or in a lab without it by its /etc/hosts.
    ServiceName {
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
    /// A service's node port at a node's underlay address.
    NodePort {
        /// Cluster of service and node.
        cluster: String,
        /// `NAMESPACE/NAME`.
        service: String,
        /// The service's own port.
        port: u16,
        /// The node that is asked.
        node: String,
    },
    /// A pod's host port at the underlay address of its node.
    HostPort(PodRef, u16),
    /// A node's underlay address; the port of an echo server there, 0 for ping.
    Host(String, u16),
    /// The outside client.
    Client(u16),
    /// An address where pods may be, and on no node.
    Nowhere(u16),
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
    /// Nobody: policy drops the packet.
    Nobody(Denial),
}

/// Where and why policy drops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denial {
    /// Drop reason as Cilium numbers it: [`NO_RULE`] or [`DENIED`].
    pub reason: u32,
    /// At the asker's node, by its pod's egress; otherwise at the target's, by ingress.
    pub at_asker: bool,
}

/// Addresses within the lab's `datapath.strict_encryption` that are in no node's pod CIDR.
const NOWHERE: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(10, 14, 0, 9), Ipv6Addr::new(0xfd00, 0x10, 0xe, 0, 0, 0, 0, 9));

/// It would leave in clear.
pub(super) const UNENCRYPTED: u32 = 195;
/// No rule allows it.
pub(super) const NO_RULE: u32 = 133;
/// A rule denies it.
pub(super) const DENIED: u32 = 181;

impl Denial {
    /// No rule of the target lets it in.
    pub const NOT_LET_IN: Self = Self { reason: NO_RULE, at_asker: false };
}

/// Whom the answerer must see as its peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// The asker's own address.
    Asker,
    /// The asker's own address, or the internal one of another node of the service's cluster where it was translated;
    /// both must occur.
    AskerOrOtherNode,
    /// The internal address of another node of the service's cluster, which translated.
    OtherNode,
    /// The node-internal or an underlay address of the asking node.
    AskingNode,
    /// An underlay address of one of the ask's gateways, which translated.
    Gateway,
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
    /// Whether a policy names prefixes outside: what is there then has identities of the node's own.
    pub prefixes: bool,
    /// With [`Peer::Gateway`]: nodes by one of which the requests leave the mesh.
    pub gateways: Vec<String>,
}

/// An ask with every name replaced by what the lab says it is.
struct Resolved<'a> {
    place: Place,
    asker: Option<AskingPod<'a>>,
    target: IpAddr,
    /// A name to ask for instead of the address.
    name: Option<String>,
    port: u16,
    target_pod: Option<(&'a PodFacts, String)>,
    service: Option<ServiceRef>,
    backends: Vec<(&'a PodFacts, String)>,
    /// Nothing that happened before this, in nanoseconds since the epoch, is of this check.
    since_ns: u64,
}

impl Resolved<'_> {
    /// `cluster` and `NAMESPACE/NAME` of the pod that asks.
    fn is_asker(&self, cluster: &str, key: &str) -> bool {
        self.asker.as_ref().is_some_and(|(pod, home)| home == cluster && pod.key() == key)
    }
}

/// A pod that asks, and its cluster.
type AskingPod<'a> = (&'a PodFacts, String);

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
        if let By::Nobody(denial) = self.by {
            return self.denied(context, &resolved, &report, denial, &look).await;
        }
        if report.answered != report.sent || report.sent == 0 {
            return Err(unanswered(&report, look));
        }
        if self.protocol == Protocol::Icmp {
            judge_replies(&report, resolved.target, look)?;
        } else {
            self.judge_answers(context, &resolved, &report, &token, &look)?;
        }
        let flows = self.judge_flows(context, &resolved, &report).await?;
        Ok(vec![format!("{flows} flow events")])
    }

    /// Whether the answer can only have come over an underlay link between two nodes of clusters.
    fn crosses_nodes(&self, resolved: &Resolved<'_>) -> bool {
        let other = |pod: &PodFacts| pod.node != resolved.place.node;
        if matches!(self.by, By::Nobody(_)) || matches!(self.from, Origin::Client) {
            return false;
        }
        match (&self.to, &resolved.target_pod) {
            (Target::Pod(..), Some((pod, _))) => other(pod),
            (Target::ClusterIp { .. } | Target::ServiceName { .. }, _) => {
                !resolved.backends.is_empty() && resolved.backends.iter().all(|(pod, _)| other(pod))
            }
            (Target::Host(node, _), _) => {
                matches!(self.from, Origin::Host(_)) && resolved.place.node != *node
            }
            _ => false,
        }
    }

    async fn resolve<'a>(&self, context: &'a Context) -> Result<Resolved<'a>, Failure> {
        let (place, asker) = self.resolve_from(context)?;
        let mut resolved = Resolved {
            place,
            asker,
            target: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            name: None,
            port: 0,
            target_pod: None,
            service: None,
            backends: Vec::new(),
            since_ns: super::flows::now_ns(),
        };
        match &self.to {
            Target::Pod(pod, port) => {
                let facts = context.pod(&pod.cluster, &pod.key)?;
                resolved.target = context.pod_address(facts, self.family)?;
                resolved.port = *port;
                resolved.target_pod = Some((facts, pod.cluster.clone()));
            }
            Target::ClusterIp { cluster, service, port }
            | Target::ServiceName { cluster, service, port }
            | Target::LoadBalancer { cluster, service, port } => {
                self.resolve_service(context, &mut resolved, cluster, service).await?;
                resolved.port = *port;
            }
            Target::NodePort { cluster, service, port, node } => {
                self.resolve_service(context, &mut resolved, cluster, service).await?;
                resolved.target = underlay(context, node, self.family)?;
                resolved.port = node_port(context, cluster, service, *port)?;
            }
            Target::HostPort(pod, port) => {
                let facts = context.pod(&pod.cluster, &pod.key)?;
                resolved.target = underlay(context, &facts.node, self.family)?;
                resolved.port = *port;
                // What such ports are called as a service.
                let name = format!("{}/host-port", facts.name);
                resolved.service = Some(ServiceRef { namespace: facts.namespace.clone(), name });
                resolved.backends.push((facts, pod.cluster.clone()));
            }
            Target::Host(node, port) => {
                resolved.target = underlay(context, node, self.family)?;
                resolved.port = *port;
            }
            Target::Client(port) => {
                resolved.target = client_address(context, self.family).await?;
                resolved.port = *port;
            }
            Target::Nowhere(port) => {
                resolved.target = match self.family {
                    Family::Ipv4 => NOWHERE.0.into(),
                    Family::Ipv6 => NOWHERE.1.into(),
                };
                resolved.port = *port;
            }
        }
        Ok(resolved)
    }

    async fn resolve_service<'a>(
        &self,
        context: &'a Context,
        resolved: &mut Resolved<'a>,
        cluster: &str,
        service: &str,
    ) -> Result<(), Failure> {
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
        if matches!(self.to, Target::ServiceName { .. }) {
            resolved.name = Some(format!("{}.{}.svc.cluster.local", facts.name, facts.namespace));
        }
        resolved.service = Some(ServiceRef { namespace: facts.namespace.clone(), name: facts.name.clone() });
        for home in context.inventory.clusters.values() {
            // A global service's backends live in every cluster that has the service.
            if let Some(there) = home.services.get(service) {
                resolved.backends.extend(home.backends(there).map(|pod| (pod, home.name.clone())));
            }
        }
        Ok(())
    }

    fn resolve_from<'a>(&self, context: &'a Context) -> Result<(Place, Option<AskingPod<'a>>), Failure> {
        Ok(match &self.from {
            Origin::Pod(pod) => {
                let facts = context.pod(&pod.cluster, &pod.key)?;
                (context.inside(facts), Some((facts, pod.cluster.clone())))
            }
            Origin::Host(node) => (Place::node(node), None),
            Origin::Client => (Place::node(client(context)?), None),
        })
    }

    fn look(&self, context: &Context, resolved: &Resolved<'_>) -> String {
        let target = resolved.name.clone().unwrap_or_else(|| resolved.target.to_string());
        let port = resolved.port.to_string();
        let argv: Vec<&str> = match self.protocol {
            Protocol::Icmp => vec!["tombolo", "lab-probe", "ping", &target],
            Protocol::Udp => vec!["tombolo", "lab-probe", "udp", &target, &port],
            Protocol::Tcp | Protocol::Http => vec!["tombolo", "lab-probe", "tcp", &target, &port],
        };
        // The outside client runs no agent: a node of the target tells.
        let mut targets = resolved.target_pod.iter().chain(&resolved.backends).map(|(pod, _)| &pod.node);
        let agent = match self.from {
            Origin::Client => targets.next_back().unwrap_or(&resolved.place.node),
            _ => &resolved.place.node,
        };
        let flows = context.access.shown(&Place::node(agent), &["tombolo", "flows"]);
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
        let target = resolved.name.clone().unwrap_or(target);
        let url = match (&resolved.name, resolved.target) {
            (None, IpAddr::V6(address)) => format!("http://[{address}]:{port}/"),
            _ => format!("http://{target}:{port}/"),
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
        if resolved.name.is_some() {
            argv.push(if self.family == Family::Ipv4 { "-4" } else { "-6" });
        }
        if matches!(self.by, By::Nobody(_)) {
            // Long enough for a SYN to be repeated once, short enough for a quick check.
            argv.extend(["--timeout-ms", "1500"]);
        }
        context.probe(&resolved.place, &argv).await
    }
}

/// The node port of a service's port.
fn node_port(context: &Context, cluster: &str, service: &str, port: u16) -> Result<u16, Failure> {
    let facts = context.service(cluster, service)?;
    facts.node_ports.get(&port).copied().ok_or_else(|| {
        Failure::new(
            format!("a nodePort of port {port} of service {service}"),
            format!("{:?}", facts.node_ports),
            format!("the Service manifest of {service} in {cluster}"),
        )
    })
}

/// A reply to a ping must come from the address that was asked.
fn judge_replies(report: &ProbeReport, target: IpAddr, look: String) -> Result<(), Failure> {
    let wrong = report.attempts.iter().find_map(|attempt| match &attempt.outcome {
        Outcome::Reply { from, .. } if *from == target => None,
        other => Some(other),
    });
    match wrong {
        None => Ok(()),
        Some(other) => Err(Failure::new(format!("a reply from {target} itself"), format!("{other:?}"), look)),
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
