//! Flow events of the lab's nodes: followed live, kept for a while, searched by the checks.
//!
//! One `tombolo flows --follow -o json` runs in every node for the whole test run. A check looks for the flow it
//! caused by its addresses and ports, so concurrent checks do not disturb each other.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::access::{Access, Place};
use super::check::Failure;

/// The command that prints flows as they happen, one JSON object a line.
const FOLLOW: [&str; 7] = ["tombolo", "flows", "--follow", "-o", "json", "--since=30s", "--last=1000"];
/// Most flows kept of one node; the oldest go first.
const MAX_KEPT: usize = 32_768;
/// Longest line taken for a flow, in bytes.
const MAX_LINE_BYTES: usize = 64 * 1024;
/// How long a flow event may take from packet to here.
const PATIENCE: Duration = Duration::from_secs(8);
/// Pause before a follower that ended (its agent was killed or restarted) is started again.
const RESTART_PAUSE: Duration = Duration::from_millis(500);

/// How far the clocks of the datapath (monotonic, shifted once) and of this program may differ.
const CLOCK_SLACK: Duration = Duration::from_millis(200);

/// The time from which flows count as caused by what is done next, in nanoseconds since the epoch.
pub(super) fn now_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(CLOCK_SLACK);
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// One flow event, as `tombolo flows -o json` prints it. Unknown fields are ignored.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Flow {
    /// When, in nanoseconds since the epoch.
    pub time: u64,
    /// Node that saw it.
    pub node: String,
    /// `FORWARDED` or `DROPPED`.
    pub verdict: String,
    /// Cilium's drop reason number, 0 when forwarded.
    pub drop_reason: u32,
    /// The reason in words.
    pub drop_reason_desc: String,
    /// Place in the programs.
    pub site: u32,
    /// File and line of that place, why, and what to try; of drops.
    pub why: String,
    /// Cilium's name of the observation point.
    pub trace_point: String,
    /// Sender.
    pub source: End,
    /// Receiver, after translation.
    pub destination: End,
    /// Transport.
    pub l4: L4,
    /// The service, when one was asked.
    pub service: Option<ServiceRef>,
    /// Whether it belongs to the answering direction.
    pub reply: bool,
    /// Address and port before translation: the service's frontend.
    pub original_destination: Option<Frontend>,
    /// Whether it crosses the underlay encrypted.
    pub encrypted: bool,
}

/// Where a packet was sent before translation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Frontend {
    /// Address.
    pub ip: IpAddr,
    /// Port.
    pub port: u16,
}

/// One end of a flow.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct End {
    /// Address.
    pub ip: Option<IpAddr>,
    /// Port, 0 if there is none.
    pub port: u16,
    /// Numeric identity.
    pub identity: u32,
    /// Pod name.
    pub pod: Option<String>,
    /// Namespace.
    pub namespace: Option<String>,
    /// Cluster.
    pub cluster: Option<String>,
    /// What the pod is one of.
    pub workloads: Vec<Workload>,
}

/// What keeps a pod.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Workload {
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
}

/// The transport of a flow.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct L4 {
    /// `TCP`, `UDP`, `ICMPv4`, `ICMPv6`.
    pub protocol: String,
}

/// The service of a flow.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ServiceRef {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Flow {
    /// The observation point in Cilium's spelling, whatever the case and separator.
    fn point(&self) -> String {
        self.trace_point.to_lowercase().replace('_', "-")
    }

    /// One line for messages.
    fn short(&self) -> String {
        let end = |end: &End| {
            let name = match (&end.namespace, &end.pod) {
                (Some(namespace), Some(pod)) => format!(" {namespace}/{pod}"),
                _ => String::new(),
            };
            let ip = end.ip.map(|ip| ip.to_string()).unwrap_or_default();
            format!("{ip}:{}{name} id {}", end.port, end.identity)
        };
        let why = if self.drop_reason == 0 {
            String::new()
        } else {
            format!(" {} {}", self.drop_reason, self.drop_reason_desc)
        };
        let (source, destination) = (end(&self.source), end(&self.destination));
        let mut words = format!(
            "{}{why} at {} {source} -> {destination} {}",
            self.verdict,
            self.point(),
            self.l4.protocol
        );
        for (told, word) in [(self.reply, " reply"), (self.encrypted, " encrypted")] {
            words.push_str(if told { word } else { "" });
        }
        if let Some(service) = &self.service {
            words.push_str(&format!(" via {}/{}", service.namespace, service.name));
        }
        words
    }
}

/// What must be known of one end of a flow. Fields that are `None` match everything.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WantEnd {
    /// Address.
    pub ip: Option<IpAddr>,
    /// Port.
    pub port: Option<u16>,
    /// Numeric identity.
    pub identity: Option<u32>,
    /// `NAMESPACE/NAME` of the pod.
    pub pod: Option<String>,
    /// Cluster.
    pub cluster: Option<String>,
    /// Kind and name of what the pod is one of; nodes know it of their own cluster's pods.
    pub workload: Option<String>,
}

/// Another node's identity.
pub(super) const REMOTE_NODE: u32 = 6;
/// That of one that the API server is on.
const KUBE_APISERVER: u32 = 7;

/// Whether an identity is the one that is meant. Other nodes are one kind, also where policies tell them apart: by the API
/// server, or by their addresses (2 in the upper byte).
fn is_meant(meant: u32, found: u32) -> bool {
    meant == found || meant == REMOTE_NODE && (found == KUBE_APISERVER || found >> 24 == 2)
}

impl WantEnd {
    fn matches(&self, end: &End) -> bool {
        let pod = match (&self.pod, &end.namespace, &end.pod) {
            (None, _, _) => true,
            (Some(want), Some(namespace), Some(pod)) => *want == format!("{namespace}/{pod}"),
            (Some(_), _, _) => false,
        };
        pod && (self.ip.is_none() || self.ip == end.ip)
            && self.port.is_none_or(|port| port == end.port)
            && self.identity.is_none_or(|identity| is_meant(identity, end.identity))
            && (self.cluster.is_none() || self.cluster == end.cluster)
            && self.workload.as_ref().is_none_or(|want| {
                end.workloads.iter().any(|found| *want == format!("{} {}", found.kind, found.name))
            })
    }

    fn describe(&self, words: &mut Vec<String>) {
        let mut add = |what: &str, value: Option<String>| {
            words.extend(value.map(|value| format!("{what} {value}")));
        };
        add("address", self.ip.map(|ip| ip.to_string()));
        add("port", self.port.map(|port| port.to_string()));
        add("identity", self.identity.map(|identity| identity.to_string()));
        add("pod", self.pod.clone());
        add("cluster", self.cluster.clone());
        add("of", self.workload.clone());
    }
}

/// What a check looks for. Fields that are `None` match everything.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Want {
    /// Not older than this, in nanoseconds since the epoch: another check's flow proves nothing.
    pub since_ns: u64,
    /// Who sends.
    pub source: WantEnd,
    /// Who receives, after translation.
    pub destination: WantEnd,
    /// Service that must be named.
    pub service: Option<ServiceRef>,
    /// Where it was sent before translation.
    pub frontend: Option<Frontend>,
    /// `TCP`, `UDP` or `ICMP` (either version).
    pub protocol: Option<&'static str>,
    /// Dropped for this reason, with site and words, or (zero) forwarded.
    pub drop_reason: u32,
    /// Observation point.
    pub point: Option<&'static str>,
    /// Whether it is the answering direction.
    pub reply: bool,
    /// Whether it crosses the underlay encrypted.
    pub encrypted: Option<bool>,
}

impl Want {
    /// Whether a flow is the one wanted.
    #[must_use]
    pub fn matches(&self, flow: &Flow) -> bool {
        let verdict = if self.drop_reason == 0 { "FORWARDED" } else { "DROPPED" };
        // A drop that does not say where and why helps nobody.
        let explained = self.drop_reason == 0
            || (flow.site != 0 && !flow.why.is_empty() && !flow.drop_reason_desc.is_empty());
        let protocol = self.protocol.is_none_or(|want| flow.l4.protocol.to_uppercase().starts_with(want));
        flow.time >= self.since_ns
            && flow.reply == self.reply
            && flow.verdict.eq_ignore_ascii_case(verdict)
            && flow.drop_reason == self.drop_reason
            && explained
            && self.source.matches(&flow.source)
            && self.destination.matches(&flow.destination)
            && (self.service.is_none() || self.service == flow.service)
            && (self.frontend.is_none() || self.frontend == flow.original_destination)
            && protocol
            && self.point.is_none_or(|point| point == flow.point())
            && self.encrypted.is_none_or(|encrypted| encrypted == flow.encrypted)
    }

    /// Whether a flow is about the same packet, right or wrong in the rest; for messages.
    fn resembles(&self, flow: &Flow) -> bool {
        let same = |want: Option<IpAddr>, have| want.is_some() && want == have;
        let port = |want: Option<u16>, have: u16| want.is_none_or(|port| port == have);
        flow.time >= self.since_ns
            && port(self.source.port, flow.source.port)
            && port(self.destination.port, flow.destination.port)
            && (same(self.source.ip, flow.source.ip) || same(self.destination.ip, flow.destination.ip))
    }

    fn describe(&self) -> String {
        let mut words = vec![if self.drop_reason == 0 {
            "FORWARDED".to_owned()
        } else {
            format!("DROPPED with reason {}, its site and words", self.drop_reason)
        }];
        let mut add = |what: &str, value: Option<String>| {
            words.extend(value.map(|value| format!("{what} {value}")));
        };
        add("at", self.point.map(str::to_owned));
        add("over", self.protocol.map(str::to_owned));
        add("service", self.service.as_ref().map(|one| format!("{}/{}", one.namespace, one.name)));
        add("sent to", self.frontend.map(|frontend| format!("{} port {}", frontend.ip, frontend.port)));
        add("encrypted", self.encrypted.map(|encrypted| encrypted.to_string()));
        if self.reply {
            words.push("answering".to_owned());
        }
        words.push("from".to_owned());
        self.source.describe(&mut words);
        words.push("to".to_owned());
        self.destination.describe(&mut words);
        words.join(" ")
    }
}

#[derive(Default)]
struct Kept {
    flows: VecDeque<Flow>,
    unreadable: u64,
    last_error: String,
}

/// The flows of one node.
struct Tap {
    kept: Mutex<Kept>,
    version: watch::Sender<u64>,
}

impl Tap {
    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, line: &str) {
        let mut kept = self.kept();
        match serde_json::from_str::<Flow>(line) {
            Ok(flow) => {
                if kept.flows.len() >= MAX_KEPT {
                    kept.flows.pop_front();
                }
                kept.flows.push_back(flow);
            }
            Err(error) => {
                kept.unreadable += 1;
                kept.last_error = format!("{error} in {}", line.get(..200).unwrap_or(line));
            }
        }
        drop(kept);
        self.version.send_modify(|version| *version += 1);
    }
}

/// The followers of all nodes; they end when this is dropped.
pub struct Flows {
    access: Access,
    taps: BTreeMap<String, Arc<Tap>>,
    stop: CancellationToken,
}

impl Drop for Flows {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Flows {
    /// Follows the flows of every given node.
    pub fn follow<'a>(access: &Access, nodes: impl IntoIterator<Item = &'a String>) -> Self {
        let stop = CancellationToken::new();
        let tracker = TaskTracker::new();
        let mut taps = BTreeMap::new();
        for node in nodes {
            let tap = Arc::new(Tap { kept: Mutex::default(), version: watch::Sender::new(0) });
            tracker.spawn(follow(access.clone(), node.clone(), Arc::clone(&tap), stop.clone()));
            taps.insert(node.clone(), tap);
        }
        Self { access: access.clone(), taps, stop }
    }

    /// Waits until `node` has reported a flow as wanted.
    ///
    /// # Errors
    /// Without one in time: what was wanted and the flows that resemble it.
    pub async fn expect(&self, node: &str, want: &Want) -> Result<Flow, Failure> {
        let look = self.access.shown(&Place::node(node), &["tombolo", "flows", "-o", "json"]);
        let Some(tap) = self.taps.get(node) else {
            return Err(Failure::new(format!("flow events of {node}"), "the node is not followed", look));
        };
        let mut changes = tap.version.subscribe();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            changes.mark_unchanged();
            if let Some(flow) = tap.kept().flows.iter().rev().find(|flow| want.matches(flow)) {
                return Ok(flow.clone());
            }
            let changed = tokio::time::timeout_at(deadline, changes.changed()).await;
            if !matches!(changed, Ok(Ok(()))) {
                return Err(miss(node, tap, want, look));
            }
        }
    }
}

fn miss(node: &str, tap: &Tap, want: &Want, look: String) -> Failure {
    let kept = tap.kept();
    let alike: Vec<String> =
        kept.flows.iter().rev().filter(|flow| want.resembles(flow)).take(4).map(Flow::short).collect();
    let got = match (alike.is_empty(), kept.flows.len(), kept.unreadable) {
        (false, _, _) => format!("only {}", alike.join(" | ")),
        (true, 0, 0) => format!("no flow event of {node} at all {}", kept.last_error),
        (true, 0, _) => format!("only lines that are no flows: {}", kept.last_error),
        (true, count, _) => format!("nothing like it among {count} flows of {node}"),
    };
    Failure::new(format!("a flow event of {node}: {}", want.describe()), got, look)
}

/// Keeps one node's follower running.
async fn follow(access: Access, node: String, tap: Arc<Tap>, stop: CancellationToken) {
    let place = Place::node(node);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            why = follow_once(&access, &place, &tap) => tap.kept().last_error = why,
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RESTART_PAUSE) => {}
        }
    }
}

/// Reads flows until the command ends; returns why it did.
async fn follow_once(access: &Access, place: &Place, tap: &Tap) -> String {
    let mut child = match access.spawn(place, &FOLLOW) {
        Ok(child) => child,
        Err(failure) => return failure.to_string(),
    };
    let (Some(stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return "its output could not be opened".to_owned();
    };
    let errors = async {
        use tokio::io::AsyncReadExt;
        let mut text = Vec::new();
        let mut first = (&mut stderr).take(4096);
        drop(first.read_to_end(&mut text).await);
        // What follows is not needed, but must not fill the pipe.
        drop(tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await);
        String::from_utf8_lossy(&text).trim().to_owned()
    };
    let lines = async {
        let mut lines = BufReader::new(stdout).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if line.len() <= MAX_LINE_BYTES {
                tap.take(&line);
            }
        }
    };
    let (said, ()) = tokio::join!(errors, lines);
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"time":1795414116086409544,"node":"east-n1","verdict":"FORWARDED","drop_reason":0,
        "trace_point":"to-endpoint","site":0,"reply":false,"encrypted":true,
        "source":{"ip":"10.1.1.5","port":40000,"identity":65793,"pod":"client-1","namespace":"demo","cluster":"east","labels":["k8s:app=client"]},
        "destination":{"ip":"10.1.1.2","port":8080,"identity":65794,"pod":"web-1","namespace":"demo","cluster":"east"},
        "l4":{"protocol":"TCP"},"service":{"namespace":"demo","name":"web"},"original_destination":{"ip":"10.101.0.5","port":80}}"#;

    fn pod(name: &str, ip: &str, port: u16, identity: u32) -> WantEnd {
        WantEnd {
            ip: Some(ip.parse().expect("literal")),
            port: Some(port),
            identity: Some(identity),
            pod: Some(name.into()),
            cluster: Some("east".into()),
            workload: None,
        }
    }

    #[test]
    fn a_printed_flow_is_read_and_matched() {
        let flow: Flow = serde_json::from_str(LINE).expect("a flow");
        let frontend = Frontend { ip: "10.101.0.5".parse().expect("literal"), port: 80 };
        let want = Want {
            since_ns: 1_795_414_116_086_409_544,
            source: pod("demo/client-1", "10.1.1.5", 40_000, 65_793),
            destination: pod("demo/web-1", "10.1.1.2", 8080, 65_794),
            service: Some(ServiceRef { namespace: "demo".into(), name: "web".into() }),
            frontend: Some(frontend),
            protocol: Some("TCP"),
            point: Some("to-endpoint"),
            encrypted: Some(true),
            ..Want::default()
        };
        assert!(want.matches(&flow));
        let destination = |change: fn(&mut WantEnd)| {
            let mut want = want.clone();
            change(&mut want.destination);
            want
        };
        for wrong in [
            Want { drop_reason: 133, ..want.clone() },
            Want { protocol: Some("UDP"), ..want.clone() },
            Want { since_ns: want.since_ns + 1, ..want.clone() },
            Want { encrypted: Some(false), ..want.clone() },
            Want { frontend: Some(Frontend { port: 81, ..frontend }), ..want.clone() },
            Want { reply: true, ..want.clone() },
            Want { source: WantEnd { port: Some(1), ..want.source.clone() }, ..want.clone() },
            destination(|end| end.identity = Some(65_795)),
            destination(|end| end.cluster = Some("west".into())),
            destination(|end| end.pod = Some("other/web-1".into())),
        ] {
            assert!(!wrong.matches(&flow), "{}", wrong.describe());
        }
        assert!(!want.matches(&Flow { reply: true, ..flow.clone() }));
        let spelled = Flow { trace_point: "TO_ENDPOINT".into(), ..flow };
        assert!(want.matches(&spelled), "the separator and case of a name are no reason to fail");
    }

    #[test]
    fn a_world_source_needs_no_names_but_a_drop_needs_words() {
        let line = r#"{"verdict":"DROPPED","drop_reason":133,"drop_reason_desc":"POLICY_DENIED","site":7,
            "why":"policy.h:49: no rule","source":{"ip":"fd00::1"},"service":null}"#;
        let flow: Flow = serde_json::from_str(line).expect("a flow");
        let want = Want { drop_reason: 133, ..Want::default() };
        assert!(want.matches(&flow));
        let source = WantEnd { pod: Some("a/b".into()), ..WantEnd::default() };
        assert!(!Want { source, ..want.clone() }.matches(&flow));
        assert!(!want.matches(&Flow { why: String::new(), ..flow.clone() }));
        assert!(!want.matches(&Flow { site: 0, ..flow }));
    }

    #[test]
    fn what_is_kept_is_bounded_and_errors_are_told() {
        let tap = Tap { kept: Mutex::default(), version: watch::Sender::new(0) };
        for _ in 0..MAX_KEPT + 10 {
            tap.take(r#"{"verdict":"FORWARDED"}"#);
        }
        tap.take("not json");
        assert_eq!(tap.kept().flows.len(), MAX_KEPT);
        assert_eq!(tap.kept().unreadable, 1);
        let failure = miss("n", &tap, &Want { drop_reason: 133, ..Want::default() }, String::new());
        assert!(failure.expected.contains("reason 133"), "{failure}");
    }
}
