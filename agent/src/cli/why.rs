//! `tombolo why`: packets, explained.

use super::client::{self, ClientError};
use super::commands::json;
use super::flows::FilterArgs;
use super::{Format, Reading, fail};
use crate::daemon::why::{Outcome, Why, WhyQuery};
use clap::Args;
use std::net::IpAddr;
use std::process::ExitCode;

/// What is explained: the latest drops, a flow by its number, or a packet.
#[derive(Debug, Args)]
pub(crate) struct WhyArgs {
    /// Number of a flow, as tombolo flows shows it
    flow: Option<u64>,
    /// How many of the latest flows that match; drops, unless filters say otherwise
    #[arg(long, default_value_t = 3)]
    last: usize,
    /// A packet: an Ethernet frame or an IP packet in hexadecimal digits
    #[arg(long, value_name = "HEX", requires = "from", conflicts_with = "flow")]
    packet: Option<String>,
    /// Where the packet comes from: namespace/pod, uplink, overlay, wireguard or node
    #[arg(long, value_name = "WHERE", requires = "packet")]
    from: Option<String>,
    /// The identity that a packet from the overlay has in the tunnel; by default that of its source address
    #[arg(long, value_name = "N", requires = "packet")]
    tunnel_identity: Option<u32>,
    /// The node that a packet from the overlay comes from; by default that of its source address
    #[arg(long, value_name = "ADDRESS", requires = "packet")]
    outer: Option<IpAddr>,
    #[command(flatten)]
    reading: Reading,
    #[command(flatten)]
    filter: FilterArgs,
}

/// Asks, and prints. Fails if model and programs disagree.
pub(crate) async fn run(args: &WhyArgs) -> Result<ExitCode, ClientError> {
    let mut filter = args.filter.filter()?;
    let unsaid = filter.verdict.is_empty() && filter.kind.is_empty() && args.flow.is_none();
    if unsaid {
        filter.kind = vec!["drop".to_owned()];
    }
    filter.id = args.flow;
    let query = WhyQuery {
        filter,
        last: args.last,
        packet: args.packet.clone(),
        from: args.from.clone(),
        identity: args.tunnel_identity,
        outer: args.outer,
    };
    let found: Vec<Why> = client::post(&args.reading.socket, "/v1/why", &query).await?;
    match args.reading.output {
        Format::Json => json(&found)?,
        Format::Table => found.iter().for_each(print),
    }
    let differing = found.iter().filter(|why| !why.agree).count();
    if differing > 0 {
        return Ok(fail(format_args!(
            "model and programs disagree on {differing} of {} packets: that is a mistake of tombolo; report it with -o json",
            found.len()
        )));
    }
    Ok(ExitCode::SUCCESS)
}

fn outcome(outcome: &Outcome) -> String {
    if outcome.why.is_empty() { outcome.text.clone() } else { format!("{}: {}", outcome.text, outcome.why) }
}

fn print(why: &Why) {
    let which = if why.flow == 0 { String::new() } else { format!("flow {}: ", why.flow) };
    println!("{which}{} at {}", why.packet, why.program);
    if let Some(was) = &why.was {
        println!("  {:<12} {}", "was", outcome(was));
    }
    for step in &why.steps {
        println!("  {:<12} {}", step.step, step.text);
        step.by.iter().for_each(|rule| println!("  {:<12} by {rule}", ""));
    }
    if let Some(difference) = &why.difference {
        println!("  !!! MODEL AND PROGRAMS DISAGREE: {difference}");
        println!("  {:<12} {}", "model", outcome(&why.model));
        println!("  {:<12} {}", "programs", outcome(&why.programs));
    } else {
        println!("  {:<12} {}", "outcome", outcome(&why.programs));
    }
    why.notes.iter().for_each(|note| println!("  {:<12} {note}", "note"));
    println!();
}
