//! `tombolo policy`: what policies do to a flow, and what a policy would do to the flows there are.

use super::client::{self, ClientError};
use super::commands::json;
use super::{Format, Reading, output};
use crate::daemon::policy_impact::{Impact, ImpactQuery};
use crate::daemon::policy_trace::{Trace, TraceQuery, Way};
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// What is asked.
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Whether a flow is allowed, by which rule of which object, and what would change it
    Trace(TraceArgs),
    /// Which of the flows seen lately a file of policies would cut or let through
    Impact(ImpactArgs),
}

/// `tombolo policy trace`.
#[derive(Debug, Args)]
pub(crate) struct TraceArgs {
    /// Who opens the flow: namespace/pod, an address, or an entity (host, remote-node, world, world-ipv6, ...)
    from: String,
    /// To whom, likewise
    to: String,
    /// PORT, PORT/PROTOCOL (tcp, udp, sctp), or TYPE/icmp, TYPE/icmpv6
    #[arg(value_parser = port)]
    port: Port,
    #[command(flatten)]
    reading: Reading,
}

/// `tombolo policy impact`.
#[derive(Debug, Args)]
pub(crate) struct ImpactArgs {
    /// Manifests as they would be: an object of the same name is replaced
    file: PathBuf,
    #[command(flatten)]
    reading: Reading,
}

/// A port as policies know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Port {
    protocol: u8,
    port: u16,
}

fn port(text: &str) -> Result<Port, String> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let bad = || format!("{text:?}: give PORT, PORT/tcp|udp|sctp or TYPE/icmp|icmpv6, as 80, 53/udp, 8/icmp");
    let of_type = |protocol| {
        let kind: u8 = number.parse().map_err(|_| bad())?;
        Ok(Port { protocol, port: u16::from(kind) << 8 })
    };
    let of_port = |protocol| Ok(Port { protocol, port: number.parse().map_err(|_| bad())? });
    match protocol.to_lowercase().as_str() {
        "tcp" => of_port(6),
        "udp" => of_port(17),
        "sctp" => of_port(132),
        "icmp" | "icmpv4" => of_type(1),
        "icmpv6" => of_type(58),
        _ => Err(bad()),
    }
}

/// Runs one. A flow that is dropped is a failure to scripts.
pub(crate) async fn run(command: PolicyCommand) -> Result<ExitCode, ClientError> {
    match command {
        PolicyCommand::Trace(args) => trace(&args).await,
        PolicyCommand::Impact(args) => impact(&args).await,
    }
}

async fn trace(args: &TraceArgs) -> Result<ExitCode, ClientError> {
    let Port { protocol, port } = args.port;
    let query = TraceQuery { from: args.from.clone(), to: args.to.clone(), protocol, port };
    let trace: Trace = client::post(&args.reading.socket, "/v1/policy/trace", &query).await?;
    let code = if trace.allowed { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if args.reading.output == Format::Json {
        json(&trace)?;
        return Ok(code);
    }
    println!("{} -> {}: {}", trace.from, trace.to, if trace.allowed { "ALLOWED" } else { "DROPPED" });
    trace.ways.iter().for_each(print_way);
    trace.notes.iter().for_each(|note| println!("\n{note}"));
    Ok(code)
}

fn print_way(way: &Way) {
    let reason = if way.reason == 0 { String::new() } else { format!(" ({})", way.reason) };
    println!("\n{} of {}: {}{reason}", way.direction, way.subject, way.outcome);
    way.by.iter().for_each(|rule| println!("  by {rule}"));
    if !way.matching.is_empty() {
        let rows = way.matching.iter().map(|rule| {
            vec![rule.tier.clone(), rule.action.clone(), rule.priority.to_string(), rule.rule.clone()]
        });
        println!();
        output::table(&["TIER", "ACTION", "PRIORITY", "MATCHING RULE"], rows);
    }
    if !way.entries.is_empty() {
        let rows = way.entries.iter().map(|entry| {
            let (tier, action) = (entry.tier.clone(), entry.action.clone());
            vec![
                tier,
                action,
                entry.priority.to_string(),
                entry.identity.clone(),
                entry.port.clone(),
                entry.rules.join("; "),
            ]
        });
        println!();
        output::table(&["TIER", "ACTION", "PRIORITY", "IDENTITY", "PORT/BITS", "ENTRY OF"], rows);
    }
    println!("\n  What would change it:");
    way.would_change.iter().for_each(|text| println!("  - {text}"));
}

async fn impact(args: &ImpactArgs) -> Result<ExitCode, ClientError> {
    let file = args.file.display().to_string();
    let text = std::fs::read_to_string(&args.file)
        .map_err(|error| ClientError::Refused(format!("{file}: {error}; check the path")))?;
    let query = ImpactQuery { file, text };
    let impact: Impact = client::post(&args.reading.socket, "/v1/policy/impact", &query).await?;
    let code = if impact.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if args.reading.output == Format::Json {
        json(&impact)?;
        return Ok(code);
    }
    impact.problems.iter().for_each(|problem| println!("{problem}"));
    println!(
        "{}: {} of {} flows seen lately on this node would change",
        if impact.objects.is_empty() {
            "no policy in the file".to_owned()
        } else {
            impact.objects.join(", ")
        },
        impact.changes.len(),
        impact.looked_at
    );
    if !impact.changes.is_empty() {
        let rows = impact.changes.iter().map(|change| {
            let what = if change.cut { "CUT" } else { "opened" };
            let flow = format!("{} -> {} {}", change.from, change.to, change.protocol);
            vec![
                what.to_owned(),
                flow,
                change.seen.to_string(),
                change.direction.clone(),
                change.after.clone(),
                change.by.join(", "),
            ]
        });
        output::table(&["CHANGE", "FLOW", "SEEN", "DIRECTION", "THEN", "BY"], rows);
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_types() {
        assert_eq!(port("80"), Ok(Port { protocol: 6, port: 80 }));
        assert_eq!(port("53/UDP"), Ok(Port { protocol: 17, port: 53 }));
        assert_eq!(port("8/icmp"), Ok(Port { protocol: 1, port: 8 << 8 }));
        for bad in ["http", "80/ip", "65536", "256/icmp", ""] {
            assert!(port(bad).unwrap_err().contains("53/udp"), "{bad}");
        }
    }
}
