//! `tombolo bgp bfd`: what the BFD unit says of itself and its sessions. It is asked directly, for it lives on when the agent does not.

use super::{Format, fail, output};
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;
use tombolo_bgp::bfd::client::Client;
use tombolo_bgp::bfd::{SessionStatus, State, Status};

/// Beside the agent's own socket.
const DEFAULT_BFD_SOCKET: &str = "/run/tombolo/bfd.sock";

/// `tombolo bgp bfd`.
#[derive(Clone, Debug, Args)]
pub(crate) struct BfdArgs {
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// The unit's control socket
    #[arg(long, env = "TOMBOLO_BFD_SOCKET", default_value = DEFAULT_BFD_SOCKET)]
    bfd_socket: PathBuf,
}

/// Asks the unit and prints; fails unless every session that is not held down by intent is up.
pub(crate) async fn show(args: &BfdArgs) -> ExitCode {
    let status = match Client::new(&args.bfd_socket).status().await {
        Ok(status) => status,
        Err(error) => return fail(error),
    };
    match args.output {
        Format::Json => match serde_json::to_string_pretty(&status) {
            Ok(text) => println!("{text}"),
            Err(error) => return fail(error),
        },
        Format::Table => print(&status),
    }
    let fine = |session: &SessionStatus| matches!(session.state, State::Up | State::AdminDown);
    if status.sessions.iter().all(fine) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print(status: &Status) {
    let unit = &status.unit;
    println!(
        "BFD unit {}, up {}s, scheduling {}, memory {}, latest wake-up {} late, {} over 10 ms\n",
        unit.pid,
        unit.uptime_ms / 1000,
        unit.scheduling,
        unit.memory,
        millis(unit.late_max_us),
        unit.late_count
    );
    let rows = status.sessions.iter().map(|session| {
        let key = &session.key;
        vec![
            key.peer.to_string(),
            key.interface.clone().unwrap_or_else(|| "-".to_owned()),
            if key.multihop { "multi" } else { "single" }.to_owned(),
            session.state.to_string(),
            session.remote_state.to_string(),
            session.reason.clone(),
            millis(session.tx_interval_us),
            millis(session.detection_time_us),
            session.ups.to_string(),
            session.downs.to_string(),
            format!("{}s", session.changed_ms / 1000),
        ]
    });
    output::table(
        &["PEER", "INTERFACE", "HOPS", "STATE", "REMOTE", "REASON", "TX", "DETECT", "UPS", "DOWNS", "SINCE"],
        rows.collect::<Vec<_>>(),
    );
    if status.sessions.is_empty() {
        println!("(none)");
    }
    unit.problems.iter().for_each(|problem| println!("note: not served: {problem}"));
}

fn millis(us: u64) -> String {
    if us.is_multiple_of(1000) {
        format!("{}ms", us / 1000)
    } else {
        format!("{}.{:03}ms", us / 1000, us % 1000)
    }
}
