//! Names: what pods are told by the cluster's DNS, and that it goes on without an agent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::io::AsyncReadExt;

use super::access::{COMMAND_TIMEOUT, Place};
use super::check::{CheckResult, Failure, Family};
use super::context::Context;
use super::inventory::{Cluster, PodFacts, ServiceFacts};
use super::{poll, ready};
use crate::workload::{NamesReport, ProbeReport};

/// How long names may take until they are those of the manifests.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long an agent that was killed may take until it is ready again.
const AGENT_PATIENCE: Duration = Duration::from_secs(90);
/// How long is asked while the agent is killed; it starts within a few seconds.
const ASKED_SECS: u64 = 20;
/// Questions of each name that must have been answered in that time.
const ASKED_LEAST: u64 = 50;
/// Requests to an imported service: enough to meet the backends of every cluster.
const REQUESTS: &str = "40";

/// Names asked from a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamesCheck {
    /// Its cluster.
    pub cluster: String,
    /// The pod that asks, `NAMESPACE/NAME`.
    pub pod: String,
    /// The family of the servers and of the addresses.
    pub family: Family,
}

/// A row of `tombolo show service-imports`.
#[derive(Debug, Deserialize)]
struct Import {
    name: ImportName,
    ips: BTreeSet<IpAddr>,
    clusters: BTreeSet<String>,
}

#[derive(Debug, Deserialize)]
struct ImportName {
    namespace: String,
    name: String,
}

/// Question to the answer that is expected.
type Expected = BTreeMap<String, String>;

fn addresses(ips: impl IntoIterator<Item = IpAddr>, family: Family) -> String {
    let mut texts: Vec<String> =
        ips.into_iter().filter(|ip| family.holds(*ip)).map(|ip| ip.to_string()).collect();
    texts.sort();
    // Nobody who is ready is no name.
    if texts.is_empty() { "NXDOMAIN".to_owned() } else { format!("NOERROR {}", texts.join(" ")) }
}

impl NamesCheck {
    /// Runs the check.
    ///
    /// # Errors
    /// The first name that is told otherwise than the manifests say.
    pub async fn run(&self, context: &Context) -> CheckResult {
        let pod = context.pod(&self.cluster, &self.pod)?;
        let place = context.inside(pod);
        let imports = self.imports(context, &pod.node).await?;
        let expected = self.expected(context, &imports)?;
        for tcp in [false, true] {
            // Slices of pods that have just become ready are on their way.
            poll::until(PATIENCE, || self.ask(context, &place, &expected, tcp)).await?;
        }
        let met = self.import_answers(context, &place, &imports).await?;
        Ok(vec![format!(
            "{} names over UDP and TCP as the manifests say; an imported service answered from {met}",
            expected.len()
        )])
    }

    async fn ask(
        &self,
        context: &Context,
        place: &Place,
        expected: &Expected,
        tcp: bool,
    ) -> Result<(), Failure> {
        let mut argv = vec!["tombolo", "lab-probe", "names"];
        argv.extend(tcp.then_some("--tcp"));
        argv.extend(expected.keys().map(String::as_str));
        let report: NamesReport = context.access.json(place, &argv, COMMAND_TIMEOUT).await?;
        judge(&report, expected, self.family, context.access.shown(place, &["tombolo", "dns", "status"]))
            .map(drop)
    }

    async fn imports(&self, context: &Context, node: &str) -> Result<Vec<Import>, Failure> {
        let argv = ["tombolo", "show", "service-imports", "-o", "json"];
        context.access.json(&Place::node(node), &argv, COMMAND_TIMEOUT).await
    }

    /// What the manifests of all clusters come to.
    fn expected(&self, context: &Context, imports: &[Import]) -> Result<Expected, Failure> {
        let cluster = context.cluster(&self.cluster)?;
        let kind = match self.family {
            Family::Ipv4 => "A",
            Family::Ipv6 => "AAAA",
        };
        let mut expected = Expected::new();
        let mut add = |name: String, answer: String| drop(expected.insert(format!("{name}./{kind}"), answer));
        for service in cluster.services.values() {
            let name = format!("{}.{}.svc.cluster.local", service.name, service.namespace);
            if service.headless {
                let pods = everywhere(context, cluster, service);
                add(name.clone(), addresses(pods.iter().flat_map(|pod| pod.addresses.clone()), self.family));
            } else {
                add(name, addresses(service.cluster_ips.iter().copied(), self.family));
            }
        }
        for (key, exporters) in exported(context) {
            let Some((namespace, name)) = key.split_once('/') else { continue };
            let import =
                imports.iter().find(|import| import.name.namespace == namespace && import.name.name == name);
            let import = import.ok_or_else(|| {
                Failure::new(
                    format!("an import of {key}"),
                    "none",
                    "`tombolo show service-imports`, `tombolo show remote-exports`",
                )
            })?;
            if import.clusters != exporters {
                let got = format!("{:?}", import.clusters);
                return Err(Failure::new(
                    format!("{key} imported from {exporters:?}"),
                    got,
                    "`tombolo show service-imports`",
                ));
            }
            let name = format!("{name}.{namespace}.svc.clusterset.local");
            let headless = cluster.services.get(&key).filter(|service| service.headless);
            match headless {
                Some(service) => {
                    let pods = everywhere(context, cluster, service);
                    add(name, addresses(pods.iter().flat_map(|pod| pod.addresses.clone()), self.family));
                }
                None => add(name, addresses(import.ips.iter().copied(), self.family)),
            }
        }
        let pod = context.pod(&self.cluster, &self.pod)?;
        for (name, answer) in [
            ("nobody.demo.svc.cluster.local", "NXDOMAIN"),
            ("web.nowhere.svc.cluster.local", "NXDOMAIN"),
            ("nobody.demo.svc.clusterset.local", "NXDOMAIN"),
            ("demo.svc.cluster.local", "NOERROR"),
            ("example.org", "REFUSED"),
        ] {
            add(name.to_owned(), answer.to_owned());
        }
        if let Some(ip) = pod.address(self.family) {
            let dashed = ip.to_string().replace(['.', ':'], "-");
            add(format!("{dashed}.{}.pod.cluster.local", pod.namespace), format!("NOERROR {ip}"));
        }
        Ok(expected)
    }

    /// Asks an imported service that has an address by its name, from the pod as any program does; who answered.
    async fn import_answers(
        &self,
        context: &Context,
        place: &Place,
        imports: &[Import],
    ) -> Result<String, Failure> {
        let with_address = imports.iter().find(|import| import.ips.iter().any(|ip| self.family.holds(*ip)));
        let import = with_address.ok_or_else(|| {
            Failure::new(
                format!("an import with an {} address", self.family),
                "none",
                "`tombolo show service-imports`",
            )
        })?;
        let url = format!("http://{}.{}.svc.clusterset.local:80/", import.name.name, import.name.namespace);
        let family = match self.family {
            Family::Ipv4 => "-4",
            Family::Ipv6 => "-6",
        };
        let argv = ["tombolo", "lab-probe", "http", &url, "--count", REQUESTS, family];
        let report: ProbeReport = context.access.json(place, &argv, COMMAND_TIMEOUT).await?;
        let met: BTreeSet<String> = report.answers().map(|answer| answer.whoami.cluster.clone()).collect();
        if report.answered != report.sent || met != import.clusters {
            let got = format!("{} of {} answered, by {met:?}", report.answered, report.sent);
            let expected = format!("{url} is answered from all of {:?}", import.clusters);
            return Err(Failure::new(expected, got, context.access.shown(place, &argv)));
        }
        Ok(met.into_iter().collect::<Vec<_>>().join(" and "))
    }
}

/// The ready pods of a service in its cluster, and of the service of that name in the others if it is shared.
fn everywhere<'a>(context: &'a Context, cluster: &'a Cluster, service: &ServiceFacts) -> Vec<&'a PodFacts> {
    let shared = |home: &&Cluster| home.name == cluster.name || service.global;
    let homes = context.inventory.clusters.values().filter(shared);
    let pods = homes.flat_map(|home| {
        home.services.get(&service.key()).into_iter().flat_map(|there| home.backends(there))
    });
    pods.collect()
}

/// The services that clusters export, with the clusters that do.
fn exported(context: &Context) -> BTreeMap<String, BTreeSet<String>> {
    let mut exported: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for cluster in context.inventory.clusters.values() {
        for key in &cluster.exports {
            exported.entry(key.clone()).or_default().insert(cluster.name.clone());
        }
    }
    exported
}

/// Every server of the family has said what is expected, every time; how often at least.
fn judge(report: &NamesReport, expected: &Expected, family: Family, look: String) -> Result<u64, Failure> {
    let mut least = u64::MAX;
    for (question, answer) in expected {
        let of_question = report.answers.iter().filter_map(|(asked, said)| {
            let (asked, server) = asked.rsplit_once(" @")?;
            let server: IpAddr = server.parse().ok()?;
            (asked == question && family.holds(server)).then_some((server, said))
        });
        let mut servers = 0;
        for (server, said) in of_question {
            servers += 1;
            if said.len() != 1 || !said.contains_key(answer) {
                let got = said
                    .iter()
                    .map(|(text, count)| format!("{count}x {text:?}"))
                    .collect::<Vec<_>>()
                    .join(", ");
                return Err(Failure::new(format!("{question} from {server}: {answer:?}"), got, look));
            }
            least = least.min(said.values().sum());
        }
        if servers == 0 {
            return Err(Failure::new(
                format!("an {family} name server"),
                "none asked",
                "/etc/resolv.conf in the pod",
            ));
        }
    }
    Ok(least)
}

/// Names are asked from a pod while the agent of its node is killed: each question is answered, and answered right.
pub(super) async fn without_agent(context: &Context, node: &str) -> CheckResult {
    let cluster = context.inventory.cluster_of(node).ok_or_else(|| {
        Failure::new(format!("a cluster with the node {node}"), "none", "the Node manifests")
    })?;
    let pod = cluster.pods.values().find(|pod| pod.node == node && pod.namespace == "demo" && pod.ready);
    let pod =
        pod.ok_or_else(|| Failure::new(format!("a pod of demo on {node}"), "none", "the Pod manifests"))?;
    let (place, mut both) = (context.inside(pod), Vec::new());
    for family in Family::BOTH {
        let check = NamesCheck { cluster: cluster.name.clone(), pod: pod.key(), family };
        let imports = check.imports(context, node).await?;
        both.push((family, check.expected(context, &imports)?));
    }
    let questions: Vec<&str> =
        both.iter().flat_map(|(_, expected)| expected.keys().map(String::as_str)).collect();
    let seconds = ASKED_SECS.to_string();
    let argv = [&["tombolo", "lab-probe", "names", "--seconds", &seconds], questions.as_slice()].concat();
    let mut child = context.access.spawn(&place, &argv)?;
    let killed_at = Instant::now();
    context.access.verb("kill-agent", node).await?;
    let (_, took) = poll::until(AGENT_PATIENCE, || async {
        let status = ready::agent(&context.access, node).await?;
        if status.uptime_secs > killed_at.elapsed().as_secs() {
            let look = context.access.shown(&Place::node(node), &["tombolo", "status"]);
            return Err(Failure::new("a restarted agent", "the agent from before the kill", look));
        }
        Ok(())
    })
    .await?;
    let look = context.access.shown(&place, &argv);
    let mut text = Vec::new();
    let read = match &mut child.stdout {
        Some(stdout) => stdout.read_to_end(&mut text).await.map(drop),
        None => Ok(()),
    };
    read.map_err(|error| Failure::tool("the questions", error, look.clone()))?;
    let report: NamesReport =
        serde_json::from_slice(&text).map_err(|error| Failure::tool("the questions", error, look.clone()))?;
    let mut least = u64::MAX;
    for (family, expected) in &both {
        least = least.min(judge(&report, expected, *family, look.clone())?);
    }
    if least < ASKED_LEAST {
        let got = format!("{least} of one name");
        return Err(Failure::new(format!("{ASKED_LEAST} answers of each name in {ASKED_SECS} s"), got, look));
    }
    let names = questions.len();
    Ok(vec![format!(
        "{names} names asked for {ASKED_SECS} s in both families, each at least {least} times, every answer right; agent ready again after {:.1} s",
        took.as_secs_f64()
    )])
}
