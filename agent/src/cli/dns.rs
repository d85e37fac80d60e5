//! `tombolo dns`: the unit itself, and what it says of itself. It is asked directly, for it lives on when the agent does not.

use super::{Format, fail, output};
use crate::config::{self, Log};
use crate::daemon::dns;
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tombolo_dns::{Settings, Status, client, unit};

/// Beside the agent's own socket.
const DEFAULT_DNS_SOCKET: &str = "/run/tombolo/dns.sock";

/// `tombolo dns`.
#[derive(Clone, Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct DnsArgs {
    #[command(subcommand)]
    command: Option<DnsCommand>,
    /// Run the unit with this agent.yaml, which must say where to listen; later ones are laid over earlier ones
    #[arg(long, required_unless_present = "settings")]
    config: Vec<PathBuf>,
    /// What an agent that starts the unit hands it
    #[arg(long, hide = true, conflicts_with = "config")]
    settings: Option<PathBuf>,
}

/// `tombolo dns …`.
#[derive(Clone, Debug, Subcommand)]
enum DnsCommand {
    /// What the unit knows, whom it hears, and what it answered
    Status {
        /// Output format
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
        /// The unit's control socket
        #[arg(long, env = "TOMBOLO_DNS_SOCKET", default_value = DEFAULT_DNS_SOCKET)]
        dns_socket: PathBuf,
    },
}

/// Runs the unit, or asks one. To be called before any thread is started.
pub(crate) fn run(args: &DnsArgs, logs: impl FnOnce(&Log) -> Result<(), String>) -> ExitCode {
    if let Some(DnsCommand::Status { output, dns_socket }) = &args.command {
        return super::block_on(status(*output, dns_socket));
    }
    let (settings, log) = match read(args) {
        Ok(read) => read,
        Err(error) => return fail(error),
    };
    if let Err(error) = logs(&log) {
        return fail(error);
    }
    match unit::run(&settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(error),
    }
}

fn read(args: &DnsArgs) -> Result<(Settings, Log), String> {
    if let Some(file) = &args.settings {
        let told =
            |error: &dyn std::fmt::Display| format!("{}: {error}; the agent writes it", file.display());
        let text = std::fs::read(file).map_err(|error| told(&error))?;
        return serde_json::from_slice(&text)
            .map(|settings| (settings, Log::default()))
            .map_err(|e| told(&e));
    }
    let (config, _) = config::load(&args.config).map_err(|problems| {
        problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\ntombolo: ")
    })?;
    Ok((dns::settings(&config, None), config.log))
}

/// Asks the unit and prints; fails unless it knows the cluster's names.
async fn status(format: Format, socket: &Path) -> ExitCode {
    let status = match client::status(socket).await {
        Ok(status) => status,
        Err(error) => return fail(error),
    };
    match format {
        Format::Json => match serde_json::to_string_pretty(&status) {
            Ok(text) => println!("{text}"),
            Err(error) => return fail(error),
        },
        Format::Table => print(&status),
    }
    if status.ready { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print(status: &Status) {
    let settings = &status.settings;
    let list = |addresses: &[std::net::SocketAddr]| {
        let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        if texts.is_empty() { "none, other names are refused".to_owned() } else { texts.join(", ") }
    };
    println!("DNS unit {}, up {}s: {}", status.pid, status.uptime_secs, output::mark(status.ready));
    let agent = match (status.agent_secs, &status.trouble, status.heard_secs) {
        (Some(secs), ..) => format!("speaks since {secs}s"),
        (None, trouble, heard) => {
            let heard =
                heard.map_or("not heard in this life".to_owned(), |secs| format!("heard last {secs}s ago"));
            let why = trouble.as_deref().unwrap_or("not asked yet");
            format!("does not speak, {heard}: {why}; what is known stays in use")
        }
    };
    let known = |known: bool| if known { "" } else { ", not told in full yet: what is missing is SERVFAIL" };
    let rows = [
        ("listens", list(&settings.listen)),
        ("upstreams", list(&settings.upstreams)),
        (&settings.cluster_domain, format!("{} names{}", status.names, known(status.ready))),
        (&settings.clusterset_domain, format!("{} names{}", status.imports, known(status.imports_known))),
        ("agent", agent),
    ];
    let answers: Vec<_> = status.answers.iter().map(|(code, count)| format!("{code} {count}")).collect();
    let rows = rows.into_iter().chain([("answers", answers.join(", "))]);
    output::table(&["WHAT", "STATE"], rows.map(|(what, state)| vec![what.to_owned(), state]));
}
