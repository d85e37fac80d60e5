//! `tombolo relay status`: what is mirrored, and what cannot be.

use super::client::{self, ClientError};
use super::commands::{cell, json};
use super::{Format, output};
use crate::relay::DEFAULT_SOCKET;
use clap::{Args, Subcommand};
use serde_json::Value;
use std::path::PathBuf;
use std::process::ExitCode;

/// `tombolo relay`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub(crate) struct RelayArgs {
    /// Configuration file: run the relay
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Option<RelayCommand>,
}

/// What a running relay can be asked.
#[derive(Debug, Subcommand)]
pub(crate) enum RelayCommand {
    /// The mirrored clusters: how far each is read and written
    Status(RelayReading),
}

/// Where the relay is and how to print what it says.
#[derive(Clone, Debug, Args)]
pub(crate) struct RelayReading {
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// The relay's local API
    #[arg(long, env = "TOMBOLO_RELAY_SOCKET", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
}

const COLUMNS: [&str; 8] =
    ["CLUSTER", "READ", "MIRROR", "ENTRIES", "QUEUED", "REFUSED", "RECONNECTIONS", "STATUS"];

/// The table of mirrored clusters. Fails when one is not read, or not mirrored by the elected relay.
pub(super) async fn status(reading: &RelayReading) -> Result<ExitCode, ClientError> {
    let relay: Value = client::get(&reading.socket, "/v1/relay").await?;
    let flag = |value: &Value, at: &str| value.pointer(at).and_then(Value::as_bool).unwrap_or(false);
    let list =
        |value: &Value, at: &str| value.pointer(at).and_then(Value::as_array).cloned().unwrap_or_default();
    let (leader, clusters) = (flag(&relay, "/leader"), list(&relay, "/clusters"));
    let clusters_kept = clusters.iter().filter(|one| !flag(one, "/mirror/removing"));
    let good = |one: &Value| flag(one, "/remote/ready") && (!leader || flag(one, "/mirror/complete"));
    let (total, ready) =
        clusters_kept.fold((0, 0), |(total, ready), one| (total + 1, ready + u32::from(good(one))));
    let fine = flag(&relay, "/connected") && total == ready;
    let code = if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if reading.output == Format::Json {
        json(&relay)?;
        return Ok(code);
    }
    let text = |value: &Value, at: &str| value.pointer(at).map_or_else(|| "-".to_owned(), cell);
    println!("relay {}: {}", text(&relay, "/name"), text(&relay, "/status"));
    println!("{ready}/{total} clusters {}", if leader { "mirrored" } else { "read" });
    let rows = clusters.iter().map(|one| {
        let mirror = match (flag(one, "/mirror/removing"), leader) {
            (true, _) => "removing".to_owned(),
            (false, false) => "-".to_owned(),
            (false, true) => output::mark(flag(one, "/mirror/complete")),
        };
        let status = one.pointer("/mirror/problem").filter(|problem| !problem.is_null());
        vec![
            text(one, "/remote/name"),
            output::mark(flag(one, "/remote/ready")),
            mirror,
            text(one, "/mirror/entries"),
            text(one, "/mirror/queued"),
            text(one, "/remote/refused-now"),
            text(one, "/remote/reconnections"),
            status.map_or_else(|| text(one, "/remote/status"), cell),
        ]
    });
    output::table(&COLUMNS, rows.collect::<Vec<_>>());
    list(&relay, "/warnings").iter().for_each(|warning| println!("{}", cell(warning)));
    for one in &clusters {
        let name = text(one, "/remote/name");
        let warnings = list(one, "/remote/warnings").into_iter().chain(list(one, "/mirror/warnings"));
        warnings.for_each(|warning| println!("{name}: {}", cell(&warning)));
        for entry in list(one, "/remote/refused") {
            let of = |at: &str| text(&entry, at);
            println!(
                "{name}: refused {}: {}: {}; {}",
                of("/key"),
                of("/reason"),
                of("/detail"),
                of("/remedy")
            );
        }
    }
    Ok(code)
}
