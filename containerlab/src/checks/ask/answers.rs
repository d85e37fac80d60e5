//! Who answered, and whom it saw as its peer.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{Ask, By, Peer, Resolved, Target, client, underlay};
use crate::checks::check::Failure;
use crate::checks::context::Context;
use crate::workload::{Answer, Attempt, ProbeReport};

/// The attempts that were answered by an echo server, with its answer.
pub(super) fn answered(report: &ProbeReport) -> impl Iterator<Item = (&Attempt, &Answer)> {
    // All were answered, or the check has failed before.
    report.attempts.iter().zip(report.answers())
}

/// `NAMESPACE/NAME` of the pod that answered.
pub(super) fn pod_key(answer: &Answer) -> String {
    format!("{}/{}", answer.whoami.namespace, answer.whoami.pod)
}

impl Ask {
    pub(super) fn judge_answers(
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
        let got: BTreeSet<(String, String)> =
            answers.iter().map(|answer| (answer.whoami.cluster.clone(), pod_key(answer))).collect();
        let nodes: BTreeSet<String> = answers.iter().map(|answer| answer.whoami.node.clone()).collect();
        let clusters: BTreeSet<String> = got.iter().map(|(cluster, _)| cluster.clone()).collect();
        let known = |allowed: &BTreeSet<String>| {
            got.iter().all(|(cluster, key)| {
                allowed.contains(cluster)
                    && resolved.backends.iter().any(|(pod, home)| home == cluster && pod.key() == *key)
            })
        };
        let (good, expected) = match &self.by {
            By::Target => self.by_target(context, resolved, answers)?,
            By::Backends(wanted) => (
                clusters == *wanted && known(wanted),
                format!("answers of backends in exactly the clusters {wanted:?}"),
            ),
            By::EveryNode(cluster) => {
                let all: BTreeSet<String> = context.cluster(cluster)?.nodes.keys().cloned().collect();
                let allowed = BTreeSet::from([cluster.clone()]);
                (nodes == all && known(&allowed), format!("answers of backends on every node {all:?}"))
            }
            By::Oneself(cluster) => (
                got.iter().any(|(home, key)| resolved.is_asker(home, key))
                    && known(&BTreeSet::from([cluster.clone()])),
                "answers of backends, and at least one of the asking pod itself".to_owned(),
            ),
            By::Nobody(_) => (true, String::new()),
        };
        if good { Ok(()) } else { Err(Failure::new(expected, format!("{got:?} on nodes {nodes:?}"), look)) }
    }

    /// Whether the target itself gave every answer, and who that is.
    fn by_target(
        &self,
        context: &Context,
        resolved: &Resolved<'_>,
        answers: &[&Answer],
    ) -> Result<(bool, String), Failure> {
        Ok(match (&resolved.target_pod, &self.to) {
            (Some((pod, cluster)), _) => {
                let by_pod = |answer: &&Answer| {
                    answer.whoami.cluster == *cluster
                        && answer.whoami.node == pod.node
                        && pod_key(answer) == pod.key()
                };
                (answers.iter().all(by_pod), format!("answers of {} in {cluster} on {}", pod.key(), pod.node))
            }
            (None, Target::Client(_)) => {
                let node = client(context)?;
                (answers.iter().all(|answer| outside_pods(answer, node, "")), format!("answers of {node}"))
            }
            (None, Target::Host(node, _)) => {
                let cluster =
                    context.inventory.cluster_of(node).map(|home| home.name.clone()).unwrap_or_default();
                let good = answers.iter().all(|answer| outside_pods(answer, node, &cluster));
                (good, format!("answers of the node {node} itself"))
            }
            _ => (false, "a target that answers for itself".to_owned()),
        })
    }

    fn judge_peers(
        &self,
        context: &Context,
        resolved: &Resolved<'_>,
        report: &ProbeReport,
        look: &str,
    ) -> Result<(), Failure> {
        let (mut kept, mut translated) = (0_u32, 0_u32);
        for (attempt, answer) in answered(report) {
            let own = attempt.source.is_some_and(|source| source.ip() == answer.peer_address);
            let own_port = attempt.source.is_some_and(|source| source.port() == answer.peer_port);
            let ingress = self.translator(context, answer);
            kept += u32::from(own);
            translated += u32::from(ingress.is_some());
            let (good, expected) = match self.peer {
                Peer::Asker => (own && own_port, "the asker's own address and port"),
                Peer::AskerOrOtherNode => (
                    (own && own_port) || ingress.is_some_and(|node| node != answer.whoami.node),
                    "the asker's address and port, or the internal address of another node of the backend's cluster",
                ),
                Peer::OtherNode => (
                    ingress.is_some_and(|node| node != answer.whoami.node),
                    "the internal address of another node of the backend's cluster",
                ),
                Peer::AskingNode => (
                    own || self.node_address(context, &resolved.place.node, answer.peer_address),
                    "an address of the asking node",
                ),
                Peer::Gateway => (
                    self.gateways.iter().any(|node| {
                        underlay(context, node, self.family).is_ok_and(|ip| ip == answer.peer_address)
                    }),
                    "an underlay address of an egress gateway",
                ),
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
        if self.peer == Peer::AskerOrOtherNode && (translated == 0 || kept == 0) {
            return Err(Failure::new(
                "the ToR balances: some requests come in at the backend's node with the client's own address, and some \
                 through another node, translated to its internal address",
                format!("{kept} with the client's own address, {translated} translated"),
                look,
            ));
        }
        Ok(())
    }

    /// The node of the answerer's cluster whose internal address the answerer saw.
    pub(super) fn translator<'a>(&self, context: &'a Context, answer: &Answer) -> Option<&'a str> {
        let home = context.inventory.clusters.get(&answer.whoami.cluster)?;
        let mut nodes = home.nodes.iter();
        let (name, _) = nodes.find(|(_, node)| node.internal(self.family) == Some(answer.peer_address))?;
        Some(name)
    }

    fn node_address(&self, context: &Context, node: &str, address: IpAddr) -> bool {
        let facts = context.inventory.cluster_of(node).and_then(|cluster| cluster.nodes.get(node));
        facts.is_some_and(|facts| {
            facts.internal(self.family) == Some(address) || facts.underlay(self.family) == Some(address)
        })
    }
}

/// Whether the echo server that runs on a node itself, in no pod, gave an answer.
fn outside_pods(answer: &Answer, node: &str, cluster: &str) -> bool {
    answer.whoami.namespace.is_empty() && answer.whoami.node == node && answer.whoami.cluster == cluster
}
