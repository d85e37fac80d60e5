//! Flow events of the lab's nodes: followed live, kept for a while, searched by the checks.
//!
//! One `tombolo flows --follow -o json` runs in every node for the whole test run. A check looks for the flow it
//! caused by its addresses and ports, so concurrent checks do not disturb each other.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
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

/// One flow event, as `tombolo flows -o json` prints it. Unknown fields are ignored.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Flow {
    /// When, as printed.
    pub time: Value,
    /// Node that saw it.
    pub node: String,
    /// `FORWARDED` or `DROPPED`.
    pub verdict: String,
    /// Cilium's drop reason number, 0 when forwarded.
    pub drop_reason: u32,
    /// The reason in words.
    pub drop_reason_desc: String,
    /// Place in the programs.
    pub site: Value,
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
    /// Address and port before translation, in whatever form it is printed.
    pub original_destination: Value,
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
        format!("{}{why} at {} {source} -> {destination} {}", self.verdict, self.point(), self.l4.protocol)
    }
}

/// What a check looks for. Fields that are `None` match everything.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Want {
    /// Source address.
    pub source_ip: Option<IpAddr>,
    /// Source port.
    pub source_port: Option<u16>,
    /// `NAMESPACE/NAME` that must be known for the source.
    pub source_pod: Option<String>,
    /// Cluster that must be known for the source.
    pub source_cluster: Option<String>,
    /// Destination address (after translation).
    pub destination_ip: Option<IpAddr>,
    /// `NAMESPACE/NAME` that must be known for the destination.
    pub destination_pod: Option<String>,
    /// Service that must be named.
    pub service: Option<ServiceRef>,
    /// `TCP`, `UDP` or `ICMP` (either version).
    pub protocol: Option<&'static str>,
    /// Dropped for this reason, or (zero) forwarded.
    pub drop_reason: u32,
    /// Observation point.
    pub point: Option<&'static str>,
}

impl Want {
    /// Whether a flow is the one wanted.
    #[must_use]
    pub fn matches(&self, flow: &Flow) -> bool {
        let is = |want: &Option<IpAddr>, have: Option<IpAddr>| want.is_none() || *want == have;
        let named = |want: &Option<String>, end: &End| match (want, &end.namespace, &end.pod) {
            (None, _, _) => true,
            (Some(want), Some(namespace), Some(pod)) => *want == format!("{namespace}/{pod}") || want == pod,
            (Some(want), None, Some(pod)) => want == pod,
            (Some(_), _, None) => false,
        };
        let verdict = if self.drop_reason == 0 { "FORWARDED" } else { "DROPPED" };
        let protocol = self.protocol.is_none_or(|want| flow.l4.protocol.to_uppercase().starts_with(want));
        !flow.reply
            && flow.verdict.eq_ignore_ascii_case(verdict)
            && flow.drop_reason == self.drop_reason
            && is(&self.source_ip, flow.source.ip)
            && is(&self.destination_ip, flow.destination.ip)
            && self.source_port.is_none_or(|port| port == flow.source.port)
            && named(&self.source_pod, &flow.source)
            && named(&self.destination_pod, &flow.destination)
            && (self.source_cluster.is_none() || self.source_cluster == flow.source.cluster)
            && (self.service.is_none() || self.service == flow.service)
            && protocol
            && self.point.is_none_or(|point| point == flow.point())
    }

    /// Whether a flow is about the same packet, right or wrong in the rest; for messages.
    fn resembles(&self, flow: &Flow) -> bool {
        let same = |want: Option<IpAddr>, have| want.is_some() && want == have;
        self.source_port.is_none_or(|port| port == flow.source.port)
            && (same(self.source_ip, flow.source.ip) || same(self.destination_ip, flow.destination.ip))
    }

    fn describe(&self) -> String {
        let mut words = vec![if self.drop_reason == 0 {
            "FORWARDED".to_owned()
        } else {
            format!("DROPPED with reason {}", self.drop_reason)
        }];
        let mut add = |what: &str, value: Option<String>| {
            words.extend(value.map(|value| format!("{what} {value}")));
        };
        add("at", self.point.map(str::to_owned));
        add("from", self.source_ip.map(|ip| ip.to_string()));
        add("port", self.source_port.map(|port| port.to_string()));
        add("pod", self.source_pod.clone());
        add("cluster", self.source_cluster.clone());
        add("to", self.destination_ip.map(|ip| ip.to_string()));
        add("pod", self.destination_pod.clone());
        add("service", self.service.as_ref().map(|one| format!("{}/{}", one.namespace, one.name)));
        add("over", self.protocol.map(str::to_owned));
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

    const LINE: &str = r#"{"time":"2026-11-23T05:00:00Z","node":"east-n1","verdict":"FORWARDED","drop_reason":0,
        "trace_point":"to-endpoint","site":12,"reply":false,
        "source":{"ip":"10.1.1.5","port":40000,"identity":65793,"pod":"client-1","namespace":"demo","cluster":"east","labels":["k8s:app=client"]},
        "destination":{"ip":"10.1.1.2","port":8080,"identity":65794,"pod":"web-1","namespace":"demo","cluster":"east"},
        "l4":{"protocol":"TCP"},"service":{"namespace":"demo","name":"web"},"original_destination":{"ip":"10.101.0.5","port":80}}"#;

    #[test]
    fn a_printed_flow_is_read_and_matched() {
        let flow: Flow = serde_json::from_str(LINE).expect("a flow");
        let want = Want {
            source_ip: Some("10.1.1.5".parse().expect("literal")),
            source_port: Some(40_000),
            source_pod: Some("demo/client-1".into()),
            source_cluster: Some("east".into()),
            destination_pod: Some("demo/web-1".into()),
            service: Some(ServiceRef { namespace: "demo".into(), name: "web".into() }),
            protocol: Some("TCP"),
            point: Some("to-endpoint"),
            ..Want::default()
        };
        assert!(want.matches(&flow));
        assert!(!Want { drop_reason: 133, ..want.clone() }.matches(&flow));
        assert!(!Want { source_port: Some(1), ..want.clone() }.matches(&flow));
        assert!(!Want { protocol: Some("UDP"), ..want.clone() }.matches(&flow));
        assert!(!want.matches(&Flow { reply: true, ..flow.clone() }));
        let spelled = Flow { trace_point: "TO_ENDPOINT".into(), ..flow };
        assert!(want.matches(&spelled), "the separator and case of a name are no reason to fail");
    }

    #[test]
    fn a_world_source_needs_no_names() {
        let line = r#"{"verdict":"DROPPED","drop_reason":133,"source":{"ip":"fd00::1"},"service":null}"#;
        let flow: Flow = serde_json::from_str(line).expect("a flow");
        assert!(Want { drop_reason: 133, ..Want::default() }.matches(&flow));
        let named = Want { drop_reason: 133, source_pod: Some("a/b".into()), ..Want::default() };
        assert!(!named.matches(&flow));
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
