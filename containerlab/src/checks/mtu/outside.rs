//! What the outside client sends to pods and LoadBalancer addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::path::{Fate, Mode, Path};
use super::{carried, link_mtu, underlays};
use crate::checks::access::Place;
use crate::checks::ask::{self, PodRef};
use crate::checks::check::{CheckResult, Failure, Family};
use crate::checks::context::Context;
use crate::checks::flows::{WantEnd, now_ns};
use crate::checks::inventory::PodFacts;
use crate::workload::{Outcome, ProbeReport};

/// Length of a UDP header, in bytes.
const UDP_HEADER_BYTES: u32 = 8;
/// Datagrams that come in through both nodes: the chance to miss one is 2 × 2^-24.
const DATAGRAMS: u32 = 24;

/// From the outside client, to a pod or to a service whose backends may be on another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutsideMtu {
    /// The pod that is pinged.
    pub pod: PodRef,
    /// A LoadBalancer service with policy Cluster and one backend, by cluster and `NAMESPACE/NAME`, and its UDP port.
    pub service: (String, String, u16),
    /// Family.
    pub family: Family,
}

impl OutsideMtu {
    /// Runs the check.
    ///
    /// # Errors
    /// The first packet whose fate is wrong.
    pub async fn run(&self, context: &Context, name: &str) -> CheckResult {
        let pod = context.pod(&self.pod.cluster, &self.pod.key)?;
        let link = link_mtu(context)?;
        let path = Path {
            context,
            family: self.family,
            place: Place::node(ask::client(context)?),
            target: context.pod_address(pod, self.family)?,
            token: context.token(name, false),
        };
        // A pod takes what its own interface would not send: the way to it is as wide as the links.
        path.want(link, Mode::Do, Fate::Passed).await?;
        path.want(link + 1, Mode::Do, Fate::TooBig { mtu: Some(link), from: None }).await?;
        let (cluster, service, port) = &self.service;
        let service = context.service(cluster, service)?;
        let address = context.load_balancer(cluster, service, self.family).await?;
        let backends = context.cluster(cluster)?.backends(service).collect::<Vec<_>>();
        let Some(backend) = backends.first() else {
            return Err(Failure::new(format!("a backend of {}", service.key()), "none", "its selector"));
        };
        let through = underlays(context, backend)?
            .first()
            .map_or(link, |family| carried(link, context.variant, *family));
        let path = Path { target: address, ..path };
        let lengths = self.through_both(&path, backend, *port, link, through).await;
        path.forget().await?;
        lengths
    }

    /// Through the backend's node everything fits; through the other one only what the path between nodes carries, and
    /// that node answers for the service's address.
    async fn through_both(
        &self,
        path: &Path<'_>,
        backend: &PodFacts,
        port: u16,
        link: u32,
        through: u32,
    ) -> CheckResult {
        let (report, look) = self.datagrams(path, port, through).await?;
        if report.answered != report.sent || report.sent == 0 {
            let got = format!("{} of {}: {:?}", report.answered, report.sent, fates(&report));
            return Err(Failure::new(format!("every datagram of {through} bytes is answered"), got, look));
        }
        if through == link {
            return Ok(vec![format!(
                "{link} bytes pass; the path between nodes is as wide as the client's link"
            )]);
        }
        let since_ns = now_ns();
        let (report, look) = self.datagrams(path, port, through + 1).await?;
        // A connected UDP socket is not told who sent the error, only that MTU.
        let too_big =
            |outcome: &Outcome| matches!(outcome, Outcome::TooBig { mtu: Some(mtu), .. } if *mtu == through);
        let wrong = report.attempts.iter().any(|one| !one.outcome.is_answer() && !too_big(&one.outcome));
        let both = report.answered > 0 && report.answered < report.sent;
        if wrong || !both {
            let what = format!(
                "of datagrams of {} bytes those through the backend's node are answered, the others told the MTU {through}",
                through + 1
            );
            return Err(Failure::new(what, format!("{:?}", fates(&report)), look));
        }
        let source =
            WantEnd { ip: Some(ask::client_address(path.context, self.family).await?), ..WantEnd::default() };
        let home = path.context.inventory.cluster_of(&backend.node);
        let Some((home, ingress)) = home
            .and_then(|home| home.nodes.keys().find(|node| **node != backend.node).map(|node| (home, node)))
        else {
            return Err(Failure::new("a second node", "none", "the topology file"));
        };
        let destination = path.end(backend, &home.name).await?;
        path.dropped(ingress, since_ns, source, destination).await?;
        Ok(vec![format!(
            "through another node {through} bytes pass, {} are answered with too-big",
            through + 1
        )])
    }

    /// Sends datagrams in IP packets of exactly `packet_bytes`, each from a port of its own.
    async fn datagrams(
        &self,
        path: &Path<'_>,
        port: u16,
        packet_bytes: u32,
    ) -> Result<(ProbeReport, String), Failure> {
        let size = packet_bytes.saturating_sub(self.family.header_bytes() + UDP_HEADER_BYTES).to_string();
        let (target, port, count) = (path.target.to_string(), port.to_string(), DATAGRAMS.to_string());
        let argv =
            ["udp", &target, &port, "--size", &size, "--df=probe", "--count", &count, "--token", &path.token];
        let full: Vec<&str> = ["tombolo", "lab-probe"].into_iter().chain(argv).collect();
        let look = path.context.access.shown(&path.place, &full);
        Ok((path.context.probe(&path.place, &argv).await?, look))
    }
}

fn fates(report: &ProbeReport) -> BTreeSet<(String, Option<IpAddr>, Option<u32>)> {
    let fate = |outcome: &Outcome| match outcome {
        Outcome::TooBig { mtu, from } => (outcome.kind().to_owned(), *from, *mtu),
        other => (other.kind().to_owned(), None, None),
    };
    report.attempts.iter().map(|attempt| fate(&attempt.outcome)).collect()
}
