//! The flow events that requests must leave: at the asker's node, where they come in from outside, and at the answerer's.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::answers::{answered, pod_key};
use super::{Ask, Denial, Origin, Peer, Protocol, Resolved, Target, underlay};
use crate::checks::check::{CheckResult, Failure, Variant};
use crate::checks::context::Context;
use crate::checks::flows::{Frontend, REMOTE_NODE, Want, WantEnd};
use crate::checks::inventory::PodFacts;
use crate::workload::{Answer, Attempt, Outcome, ProbeReport};

/// A packet that is given to a pod.
const TO_ENDPOINT: &str = "to-endpoint";
/// A packet that is given to the node itself.
const TO_HOST: &str = "to-host";
/// A packet that leaves along a route.
const TO_NETWORK: &str = "to-network";
/// A packet that leaves in the tunnel.
const TO_OVERLAY: &str = "to-overlay";
/// Cilium's reserved identities.
const HOST: u32 = 1;
const WORLD: u32 = 2;

/// One way that requests took: who answered, and through which node if another one translated them.
struct Way<'a> {
    pod: &'a PodFacts,
    cluster: String,
    attempt: &'a Attempt,
    answer: Option<&'a Answer>,
    ingress: Option<String>,
}

impl Ask {
    pub(super) async fn denied(
        &self,
        context: &Context,
        resolved: &Resolved<'_>,
        report: &ProbeReport,
        denial: Denial,
        look: &str,
    ) -> CheckResult {
        let silent =
            |attempt: &Attempt| matches!(attempt.outcome, Outcome::Timeout | Outcome::Unreachable { .. });
        if let Some(other) = report.attempts.iter().find(|attempt| !silent(attempt)) {
            return Err(Failure::new(
                "policy denies: no answer",
                format!("{:?}", other.outcome),
                format!("{look}; the manifests of the policies"),
            ));
        }
        let attempt = report.attempts.first().ok_or_else(|| nothing_sent(self))?;
        let (at, destination) = match (&resolved.target_pod, &resolved.asker) {
            (Some((pod, cluster)), _) => (&pod.node, self.pod(context, pod, cluster).await?),
            (None, Some((asker, _))) => {
                let at = if let Target::Host(node, _) = &self.to { node } else { &asker.node };
                (at, WantEnd { ip: Some(resolved.target), ..WantEnd::default() })
            }
            (None, None) => {
                return Err(Failure::new("a pod that asks or is asked", format!("{:?}", self.to), look));
            }
        };
        let at = resolved.asker.as_ref().filter(|_| denial.at_asker).map_or(at, |(asker, _)| &asker.node);
        let source = match &self.from {
            // The agent's own names differ: host here, a remote node elsewhere.
            Origin::Host(_) => WantEnd { identity: None, ..address(attempt.source, 0) },
            _ => self.asker(context, resolved, attempt).await?,
        };
        let want = Want { source, destination, drop_reason: denial.reason, ..self.want(resolved) };
        context.flows.expect(at, &known_at(context, at, want)).await?;
        Ok(vec!["the drop names site, reason, both pods and identities".to_owned()])
    }

    /// Waits for the events of every way the requests took; returns how many were found.
    pub(super) async fn judge_flows(
        &self,
        context: &Context,
        resolved: &Resolved<'_>,
        report: &ProbeReport,
    ) -> Result<u32, Failure> {
        let mut found = 0;
        for (node, want) in self.wanted(context, resolved, report).await? {
            context.flows.expect(&node, &known_at(context, &node, want)).await?;
            found += 1;
        }
        Ok(found)
    }

    async fn wanted(
        &self,
        context: &Context,
        resolved: &Resolved<'_>,
        report: &ProbeReport,
    ) -> Result<Vec<(String, Want)>, Failure> {
        let mut wanted = Vec::new();
        let to_node_port = self.is_at_another_node(resolved);
        if to_node_port || matches!(self.to, Target::Host(..) | Target::Client(_)) {
            let attempt = report.attempts.first().ok_or_else(|| nothing_sent(self))?;
            wanted.extend(self.out_of_pods(context, resolved, attempt).await?);
        }
        if to_node_port {
            return Ok(wanted);
        }
        for way in self.ways(context, resolved, report)? {
            wanted.extend(match &self.from {
                Origin::Pod(_) => self.between_pods(context, resolved, &way).await?,
                Origin::Host(_) => self.asked_by_host(context, resolved, &way).await?,
                Origin::Client => self.asked_from_outside(context, resolved, &way).await?,
            });
        }
        Ok(wanted)
    }

    /// Whether a pod asks a node or host port of another node, which alone knows that it is a service's.
    fn is_at_another_node(&self, resolved: &Resolved<'_>) -> bool {
        match (&self.to, &resolved.asker) {
            (Target::NodePort { node, .. }, Some((asker, _))) => asker.node != *node,
            (Target::HostPort(..), Some((asker, _))) => {
                resolved.backends.iter().all(|(pod, _)| pod.node != asker.node)
            }
            _ => false,
        }
    }

    /// One way for each answerer, and with a balanced one for each node that translated.
    fn ways<'a>(
        &self,
        context: &'a Context,
        resolved: &Resolved<'a>,
        report: &'a ProbeReport,
    ) -> Result<Vec<Way<'a>>, Failure> {
        if let Some((pod, cluster)) = &resolved.target_pod {
            let attempt = report.attempts.first().ok_or_else(|| nothing_sent(self))?;
            let answer = report.answers().next();
            return Ok(vec![Way { pod, cluster: cluster.clone(), attempt, answer, ingress: None }]);
        }
        let mut seen = BTreeSet::new();
        let mut ways = Vec::new();
        for (attempt, answer) in answered(report) {
            let cluster = answer.whoami.cluster.clone();
            let Some(pod) = context.inventory.pod_by_name(&cluster, &pod_key(answer)) else { continue };
            let by_others = matches!(self.peer, Peer::AskerOrOtherNode | Peer::OtherNode);
            let ingress = self.translator(context, answer).filter(|_| by_others).map(str::to_owned);
            if seen.insert((cluster.clone(), pod.key(), ingress.clone())) {
                ways.push(Way { pod, cluster, attempt, answer: Some(answer), ingress });
            }
        }
        Ok(ways)
    }

    /// What every event of this check has in common.
    fn want(&self, resolved: &Resolved<'_>) -> Want {
        Want { since_ns: resolved.since_ns, protocol: Some(self.protocol.in_flows()), ..Want::default() }
    }

    async fn pod(&self, context: &Context, pod: &PodFacts, cluster: &str) -> Result<WantEnd, Failure> {
        Ok(WantEnd {
            ip: Some(context.pod_address(pod, self.family)?),
            port: None,
            identity: Some(context.identity(pod, cluster).await?),
            pod: Some(pod.key()),
            cluster: Some(cluster.to_owned()),
            workload: pod.workload.clone(),
        })
    }

    /// The outside client, which has an identity of the node's own where a policy names its address.
    fn outsider(&self, attempt: &Attempt) -> WantEnd {
        let client = address(attempt.source, WORLD);
        WantEnd { identity: client.identity.filter(|_| !self.prefixes), ..client }
    }

    /// The asking pod, with the port it sent from.
    async fn asker(
        &self,
        context: &Context,
        resolved: &Resolved<'_>,
        attempt: &Attempt,
    ) -> Result<WantEnd, Failure> {
        match &resolved.asker {
            Some((pod, cluster)) => Ok(WantEnd {
                port: attempt.source.map(|source| source.port()),
                ..self.pod(context, pod, cluster).await?
            }),
            None => Ok(self.outsider(attempt)),
        }
    }

    /// A pod asks a pod, directly or through a service: the first packet with the names of both ends and the service at the
    /// asker's node, the packet given to the answerer at its node, and the answer given to the asker.
    async fn between_pods(
        &self,
        context: &Context,
        resolved: &Resolved<'_>,
        way: &Way<'_>,
    ) -> Result<Vec<(String, Want)>, Failure> {
        let Some((asker, _)) = &resolved.asker else { return Ok(Vec::new()) };
        // What a pod sends to itself stays in it.
        if resolved.is_asker(&way.cluster, &way.pod.key()) {
            return Ok(Vec::new());
        }
        let source = self.asker(context, resolved, way.attempt).await?;
        let destination = self.pod(context, way.pod, &way.cluster).await?;
        let crosses = asker.node != way.pod.node;
        let encrypted = Some(crosses && context.variant.encrypted());
        let frontend =
            resolved.service.as_ref().map(|_| Frontend { ip: resolved.target, port: resolved.port });
        let sent = Want {
            source: source.clone(),
            destination: destination.clone(),
            service: resolved.service.clone(),
            frontend,
            point: Some(if crosses { leaving(context.variant) } else { TO_ENDPOINT }),
            encrypted,
            ..self.want(resolved)
        };
        let mut wanted = vec![(asker.node.clone(), sent)];
        if crosses {
            let given = Want {
                source: source.clone(),
                destination: destination.clone(),
                point: Some(TO_ENDPOINT),
                encrypted,
                ..self.want(resolved)
            };
            wanted.push((way.pod.node.clone(), given));
        }
        let answer = Want {
            source: destination,
            destination: source,
            service: resolved.service.clone(),
            point: Some(TO_ENDPOINT),
            reply: true,
            encrypted,
            ..self.want(resolved)
        };
        wanted.push((asker.node.clone(), answer));
        Ok(wanted)
    }

    /// A pod asks a node, a node port of another one, or the outside client: where it leaves, and the answer.
    async fn out_of_pods(
        &self,
        context: &Context,
        resolved: &Resolved<'_>,
        attempt: &Attempt,
    ) -> Result<Vec<(String, Want)>, Failure> {
        let Some((asker, _)) = &resolved.asker else { return Ok(Vec::new()) };
        // Of several gateways the answer says which it was.
        let leaves_here = match &attempt.outcome {
            Outcome::Answered { answer } => {
                answer.peer_address == underlay(context, &asker.node, self.family)?
            }
            _ => self.gateways.contains(&asker.node),
        };
        let (identity, point, crosses) = match &self.to {
            Target::Host(node, _) if *node == asker.node => (HOST, TO_HOST, false),
            Target::Host(..) | Target::NodePort { .. } | Target::HostPort(..) => {
                (REMOTE_NODE, TO_NETWORK, true)
            }
            // In the tunnel to the gateway, also where pods are routed.
            _ if self.peer == Peer::Gateway && !leaves_here => (WORLD, TO_OVERLAY, true),
            _ => (WORLD, TO_NETWORK, false),
        };
        let source = self.asker(context, resolved, attempt).await?;
        let port = Some(resolved.port).filter(|_| self.protocol != Protocol::Icmp);
        let identity = (identity != WORLD || !self.prefixes).then_some(identity);
        let destination = WantEnd { ip: Some(resolved.target), port, identity, ..WantEnd::default() };
        let encrypted = Some(crosses && context.variant.encrypted());
        let common = Want { encrypted, ..self.want(resolved) };
        let sent = Want {
            source: source.clone(),
            destination: destination.clone(),
            point: Some(point),
            ..common.clone()
        };
        // Behind a node port a pod answers under the node's address, and in the tunnel with its own identity.
        let identity = destination
            .identity
            .filter(|_| !matches!(self.to, Target::NodePort { .. } | Target::HostPort(..)));
        let answer = Want {
            source: WantEnd { identity, ..destination },
            destination: source,
            point: Some(TO_ENDPOINT),
            reply: true,
            ..common
        };
        Ok(vec![(asker.node.clone(), sent), (asker.node.clone(), answer)])
    }

    /// A node asks a pod: the packet given to it, with the service if the node's socket is here, and its answer.
    async fn asked_by_host(
        &self,
        context: &Context,
        resolved: &Resolved<'_>,
        way: &Way<'_>,
    ) -> Result<Vec<(String, Want)>, Failure> {
        let crosses = resolved.place.node != way.pod.node;
        let peer = way.answer.map(|answer| SocketAddr::new(answer.peer_address, answer.peer_port));
        let source = address(peer.or(way.attempt.source), if crosses { REMOTE_NODE } else { HOST });
        let destination = self.pod(context, way.pod, &way.cluster).await?;
        let common = Want { encrypted: Some(crosses && context.variant.encrypted()), ..self.want(resolved) };
        let service = resolved.service.clone().filter(|_| !crosses);
        let frontend = service.as_ref().map(|_| Frontend { ip: resolved.target, port: resolved.port });
        let given = Want {
            source: source.clone(),
            destination: destination.clone(),
            service,
            frontend,
            point: Some(TO_ENDPOINT),
            ..common.clone()
        };
        let answer = Want { source: destination, destination: source, reply: true, ..common };
        Ok(vec![(way.pod.node.clone(), given), (way.pod.node.clone(), answer)])
    }

    /// The outside client asks: the service is named where its packet comes in; a backend on another node is given the
    /// packet under the address of that node.
    async fn asked_from_outside(
        &self,
        context: &Context,
        resolved: &Resolved<'_>,
        way: &Way<'_>,
    ) -> Result<Vec<(String, Want)>, Failure> {
        let destination = self.pod(context, way.pod, &way.cluster).await?;
        let client = self.outsider(way.attempt);
        let service = resolved.service.clone();
        let frontend = service.as_ref().map(|_| Frontend { ip: resolved.target, port: resolved.port });
        let encrypted = Some(way.ingress.is_some() && context.variant.encrypted());
        let common = Want { encrypted, ..self.want(resolved) };
        let came_in = Want {
            source: client.clone(),
            destination: destination.clone(),
            service: service.clone(),
            frontend,
            point: Some(if way.ingress.is_some() { leaving(context.variant) } else { TO_ENDPOINT }),
            ..common.clone()
        };
        // The way to the client is in the clear, whatever the way to the backend was.
        let answered = Want {
            source: destination.clone(),
            destination: client,
            service,
            point: Some(TO_NETWORK),
            reply: true,
            encrypted: Some(false),
            ..common.clone()
        };
        let at = way.ingress.clone().unwrap_or_else(|| way.pod.node.clone());
        let mut wanted = vec![(at.clone(), came_in), (at, answered)];
        if way.ingress.is_some() {
            let seen = way.answer.map(|answer| SocketAddr::new(answer.peer_address, answer.peer_port));
            let node = address(seen, REMOTE_NODE);
            let given = Want {
                source: node.clone(),
                destination: destination.clone(),
                point: Some(TO_ENDPOINT),
                ..common.clone()
            };
            let answer = Want { source: destination, destination: node, reply: true, ..common };
            wanted.extend([given, answer].map(|want| (way.pod.node.clone(), want)));
        }
        Ok(wanted)
    }
}

/// Without what a node does not know: of pods of other clusters, what they are one of.
fn known_at(context: &Context, node: &str, mut want: Want) -> Want {
    let home = context.inventory.cluster_of(node).map(|cluster| cluster.name.as_str());
    for end in [&mut want.source, &mut want.destination] {
        if end.cluster.as_deref() != home {
            end.workload = None;
        }
    }
    want
}

/// Where a packet between two nodes leaves the first.
fn leaving(variant: Variant) -> &'static str {
    match variant {
        Variant::Overlay | Variant::OverlayWireguard => TO_OVERLAY,
        Variant::Direct | Variant::DirectWireguard => TO_NETWORK,
    }
}

/// An end that is no pod.
fn address(socket: Option<SocketAddr>, identity: u32) -> WantEnd {
    WantEnd {
        // An attempt that nobody answered may know its port alone.
        ip: socket.map(|socket| socket.ip()).filter(|ip| !ip.is_unspecified()),
        port: socket.map(|socket| socket.port()),
        identity: Some(identity),
        ..WantEnd::default()
    }
}

fn nothing_sent(ask: &Ask) -> Failure {
    Failure::tool("lab-probe", "it reports no attempt", format!("{ask:?}"))
}
