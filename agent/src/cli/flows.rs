//! `tombolo flows`: who talks to whom, and which of it.

use super::client::{self, ClientError};
use super::commands::cell;
use super::{Format, Reading};
use clap::Args;
use http_body_util::BodyExt;
use serde_json::Value;
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};
use tombolo_observe::filter::{End, Filter};
use tombolo_observe::flow::Flow;

/// `tombolo flows`.
#[derive(Debug, Args)]
pub(crate) struct FlowsArgs {
    #[command(flatten)]
    pub(crate) reading: Reading,
    /// Go on with what follows
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// How many of the latest flows
    #[arg(long, default_value_t = 100)]
    pub(crate) last: usize,
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
}

/// Which flows. Each option may be given several times: then any of its values will do.
#[derive(Debug, Args)]
#[command(next_help_heading = "Which flows (given several times, any of the values will do)")]
pub(crate) struct FilterArgs {
    /// Not older than this: seconds ago (30s, 5m) or nanoseconds since the epoch
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Not younger
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Pod of either end: name or namespace/name
    #[arg(long, value_name = "NS/POD")]
    pod: Vec<String>,
    /// Namespace of either end
    #[arg(short, long, value_name = "NS")]
    namespace: Vec<String>,
    /// Address of either end, or a prefix around it; also before translation
    #[arg(long, value_name = "ADDRESS")]
    ip: Vec<String>,
    /// Port of either end; also before translation
    #[arg(long, value_name = "PORT")]
    port: Vec<u16>,
    /// Identity of either end
    #[arg(long, value_name = "N")]
    identity: Vec<u32>,
    /// A label of either end: key=value or key, with its source (k8s:key=value) or of any
    #[arg(short, long, value_name = "LABEL")]
    label: Vec<String>,
    /// Cluster of either end
    #[arg(long, value_name = "NAME")]
    cluster: Vec<String>,
    /// Name of either end, if it is a node
    #[arg(long, value_name = "NAME")]
    node: Vec<String>,
    /// Service that either end stands for: name or namespace/name
    #[arg(long, value_name = "NS/NAME")]
    service: Vec<String>,
    /// Pod of the sender: name or namespace/name
    #[arg(long, value_name = "NS/POD")]
    from_pod: Vec<String>,
    /// Namespace of the sender
    #[arg(long, value_name = "NS")]
    from_namespace: Vec<String>,
    /// Address of the sender, or a prefix around it; also before translation
    #[arg(long, value_name = "ADDRESS")]
    from_ip: Vec<String>,
    /// Port of the sender; also before translation
    #[arg(long, value_name = "PORT")]
    from_port: Vec<u16>,
    /// Identity of the sender
    #[arg(long, value_name = "N")]
    from_identity: Vec<u32>,
    /// A label of the sender: key=value or key, with its source (k8s:key=value) or of any
    #[arg(long, value_name = "LABEL")]
    from_label: Vec<String>,
    /// Cluster of the sender
    #[arg(long, value_name = "NAME")]
    from_cluster: Vec<String>,
    /// Name of the sender, if it is a node
    #[arg(long, value_name = "NAME")]
    from_node: Vec<String>,
    /// Service that the sender stands for: name or namespace/name
    #[arg(long, value_name = "NS/NAME")]
    from_service: Vec<String>,
    /// Pod of the receiver: name or namespace/name
    #[arg(long, value_name = "NS/POD")]
    to_pod: Vec<String>,
    /// Namespace of the receiver
    #[arg(long, value_name = "NS")]
    to_namespace: Vec<String>,
    /// Address of the receiver, or a prefix around it; also before translation
    #[arg(long, value_name = "ADDRESS")]
    to_ip: Vec<String>,
    /// Port of the receiver; also before translation
    #[arg(long, value_name = "PORT")]
    to_port: Vec<u16>,
    /// Identity of the receiver
    #[arg(long, value_name = "N")]
    to_identity: Vec<u32>,
    /// A label of the receiver: key=value or key, with its source (k8s:key=value) or of any
    #[arg(long, value_name = "LABEL")]
    to_label: Vec<String>,
    /// Cluster of the receiver
    #[arg(long, value_name = "NAME")]
    to_cluster: Vec<String>,
    /// Name of the receiver, if it is a node
    #[arg(long, value_name = "NAME")]
    to_node: Vec<String>,
    /// Service that the receiver stands for: name or namespace/name
    #[arg(long, value_name = "NS/NAME")]
    to_service: Vec<String>,
    /// tcp, udp, icmp, icmpv4, icmpv6
    #[arg(long)]
    protocol: Vec<String>,
    /// forwarded, dropped or audit
    #[arg(long)]
    verdict: Vec<String>,
    /// Drop reason number, as 133
    #[arg(long, value_name = "N")]
    reason: Vec<u8>,
    /// drop, trace or policy-verdict
    #[arg(short = 't', long = "type", value_name = "TYPE", value_parser = ["drop", "trace", "policy-verdict"])]
    kind: Vec<String>,
    /// Observation point, as to-endpoint or to-overlay
    #[arg(long, value_name = "POINT")]
    trace_point: Vec<String>,
    /// Where the program stands: on the way in or out
    #[arg(long, value_name = "WAY", value_parser = ["ingress", "egress"])]
    traffic_direction: Option<String>,
    /// Answers alone (true), or none (false)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    reply: Option<bool>,
}

impl FilterArgs {
    /// As the agent takes it.
    ///
    /// # Errors
    /// A time that cannot be read.
    pub(super) fn filter(&self) -> Result<Filter, ClientError> {
        let time = |text: &Option<String>| text.as_deref().map(since).transpose();
        Ok(Filter {
            either: End {
                pod: self.pod.clone(),
                namespace: self.namespace.clone(),
                ip: self.ip.clone(),
                port: self.port.clone(),
                identity: self.identity.clone(),
                label: self.label.clone(),
                cluster: self.cluster.clone(),
                node: self.node.clone(),
                service: self.service.clone(),
            },
            from: End {
                pod: self.from_pod.clone(),
                namespace: self.from_namespace.clone(),
                ip: self.from_ip.clone(),
                port: self.from_port.clone(),
                identity: self.from_identity.clone(),
                label: self.from_label.clone(),
                cluster: self.from_cluster.clone(),
                node: self.from_node.clone(),
                service: self.from_service.clone(),
            },
            to: End {
                pod: self.to_pod.clone(),
                namespace: self.to_namespace.clone(),
                ip: self.to_ip.clone(),
                port: self.to_port.clone(),
                identity: self.to_identity.clone(),
                label: self.to_label.clone(),
                cluster: self.to_cluster.clone(),
                node: self.to_node.clone(),
                service: self.to_service.clone(),
            },
            protocol: self.protocol.clone(),
            verdict: self.verdict.clone(),
            reason: self.reason.clone(),
            kind: self.kind.clone(),
            point: self.trace_point.clone(),
            direction: self.traffic_direction.clone(),
            reply: self.reply,
            id: None,
            since: time(&self.since)?,
            until: time(&self.until)?,
        })
    }
}

/// `30s`, `5m`, `2h`, or nanoseconds since the epoch.
fn since(text: &str) -> Result<u64, ClientError> {
    let wrong =
        || ClientError::Refused(format!("{text:?}: give 30s, 5m, 2h, or nanoseconds since the epoch"));
    let units = [('s', 1), ('m', 60), ('h', 3600)];
    let Some((unit, secs)) = units.into_iter().find(|(unit, _)| text.ends_with(*unit)) else {
        return text.parse().map_err(|_| wrong());
    };
    let ago: u64 = text.trim_end_matches(unit).parse().map_err(|_| wrong())?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let from = now.saturating_sub(Duration::from_secs(ago.saturating_mul(secs)));
    Ok(u64::try_from(from.as_nanos()).unwrap_or(u64::MAX))
}

/// Asks, and prints.
pub(super) async fn run(args: &FlowsArgs) -> Result<ExitCode, ClientError> {
    let filter = args.filter.filter()?;
    let filter = client::encode(&serde_json::to_string(&filter)?);
    let path = format!("/v1/flows?filter={filter}&last={}&follow={}", args.last, args.follow);
    let mut body = client::open(&args.reading.socket, &path).await?;
    let mut pending = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ClientError::Broken(args.reading.socket.clone(), error))?;
        pending.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            if !print_flow(&line, args.reading.output)? {
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints one line; false when nobody reads any more.
fn print_flow(line: &[u8], format: Format) -> Result<bool, ClientError> {
    let mut out = std::io::stdout().lock();
    let written = match format {
        Format::Json => out.write_all(line),
        Format::Table => match serde_json::from_slice::<Flow>(line) {
            Ok(flow) => writeln!(out, "{}", sentence(&flow)),
            Err(_) => {
                let missed: Value = serde_json::from_slice(line)?;
                writeln!(
                    out,
                    "... {} flows missed: too many for this reader",
                    missed.get("missed").map_or_else(String::new, cell)
                )
            }
        },
    };
    Ok(written.and_then(|()| out.flush()).is_ok())
}

/// One flow as one line.
fn sentence(flow: &Flow) -> String {
    let secs = flow.time / 1_000_000_000;
    let (h, m, s) = (secs / 3600 % 24, secs / 60 % 60, secs % 60);
    let arrow = if flow.reply { "<-" } else { "->" };
    let ends = if flow.reply {
        (flow.destination.label(), flow.source.label())
    } else {
        (flow.source.label(), flow.destination.label())
    };
    let service =
        flow.service.as_ref().map(|s| format!(" via service {}/{}", s.namespace, s.name)).unwrap_or_default();
    let cluster = flow.destination.cluster.as_ref().map(|name| format!(" [{name}]")).unwrap_or_default();
    let crypt = if flow.encrypted { " encrypted" } else { "" };
    let by =
        if flow.policies.is_empty() { String::new() } else { format!(" by {}", flow.policies.join(", ")) };
    let verdict = match flow.verdict.as_str() {
        "DROPPED" => {
            let errno = if flow.errno == 0 { String::new() } else { format!(" (errno {})", flow.errno) };
            let why =
                if flow.capture.is_some() { format!("; tombolo why {}", flow.id) } else { String::new() };
            let reason = format!("{} {}{errno}", flow.drop_reason, flow.drop_reason_desc);
            format!("DROPPED {reason}{by}: {}{why}", flow.why)
        }
        "AUDIT" => {
            format!("AUDIT {} {}{by} at {}", flow.drop_reason, flow.drop_reason_desc, flow.trace_point)
        }
        _ if flow.event == "policy-verdict" => format!("ALLOWED{by} at {}", flow.trace_point),
        _ => format!("FORWARDED {}", flow.trace_point),
    };
    let (millis, protocol) = (flow.time / 1_000_000 % 1000, &flow.l4.protocol);
    format!(
        "{h:02}:{m:02}:{s:02}.{millis:03} {} {arrow} {}{cluster} {protocol}{service}{crypt} {verdict}",
        ends.0, ends.1
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flows: FlowsArgs,
    }

    fn filter(line: &str) -> Filter {
        let words = std::iter::once("flows").chain(line.split_whitespace());
        Line::try_parse_from(words).unwrap().flows.filter.filter().unwrap()
    }

    #[test]
    fn every_option_becomes_its_condition() {
        let strings = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let line = "--pod a --pod b/c -n ns --ip 10.0.0.0/8 --port 80 --identity 7 -l app --cluster x --node n --service s";
        let end = End {
            pod: strings(&["a", "b/c"]),
            namespace: strings(&["ns"]),
            ip: strings(&["10.0.0.0/8"]),
            port: vec![80],
            identity: vec![7],
            label: strings(&["app"]),
            cluster: strings(&["x"]),
            node: strings(&["n"]),
            service: strings(&["s"]),
        };
        assert_eq!(filter(line), Filter { either: end.clone(), ..Filter::default() });
        let sided = |side: &str| {
            line.replace("-n ", "--namespace ")
                .replace("-l ", "--label ")
                .replace("--", &format!("--{side}-"))
        };
        assert_eq!(filter(&sided("from")), Filter { from: end.clone(), ..Filter::default() });
        assert_eq!(filter(&sided("to")), Filter { to: end, ..Filter::default() });
        let rest = filter(
            "--protocol tcp --verdict dropped --reason 133 -t drop --trace-point to-host --traffic-direction egress --reply --since 5 --until 9",
        );
        let wanted = Filter {
            protocol: strings(&["tcp"]),
            verdict: strings(&["dropped"]),
            reason: vec![133],
            kind: strings(&["drop"]),
            point: strings(&["to-host"]),
            direction: Some("egress".into()),
            reply: Some(true),
            since: Some(5),
            until: Some(9),
            ..Filter::default()
        };
        assert_eq!(rest, wanted);
        assert_eq!(filter("--reply=false").reply, Some(false));
        assert!(since("yesterday").is_err());
    }
}
