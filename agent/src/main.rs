//! `tombolo`: the node daemon, its command line, and the small units it runs as. Wiring only.
#![forbid(unsafe_code)]

mod cli;
mod config;
mod daemon;
mod relay;
mod router;

use clap::Parser;
use cli::{Cli, Command, RelayArgs, fail};
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    // A container runtime calls plugins by file name and environment, not by subcommand.
    if std::env::var_os("CNI_COMMAND").is_some() {
        return tombolo_cni::plugin::run();
    }
    // Commands that enter namespaces come first: they must run before any thread is started.
    match Cli::parse().command {
        Command::Lab(lab) => lab.run(),
        Command::LabUnits(unit) => unit.run(),
        Command::Workload(workload) => cli::block_on(workload.run()),
        Command::Cni => tombolo_cni::plugin::run(),
        Command::Wireguard { arguments } => tombolo_tunnel::userspace::run(arguments.into_iter()),
        Command::Bfd { arguments } => tombolo_bgp::bfd::unit::run(arguments.into_iter()),
        Command::Dns(dns) => cli::dns::run(&dns, logs),
        Command::Agent { config } => agent(&config),
        Command::Router { config } => router(&config),
        Command::Relay(RelayArgs { config: Some(config), .. }) => relay(&config),
        Command::Relay(RelayArgs { command, .. }) => cli::run(cli::Query::Relay(command)),
        Command::Status { reading, verbose } => cli::run(cli::Query::Status(reading, verbose)),
        Command::Show { table, reading } => cli::run(cli::Query::Show(reading, table)),
        Command::Policy(command) => cli::run(cli::Query::Policy(command)),
        Command::Conntrack(command) => cli::run(cli::Query::Conntrack(command)),
        Command::Mesh(mesh) => cli::run(cli::Query::Mesh(mesh)),
        Command::Bgp(bgp) => cli::run(cli::Query::Bgp(bgp)),
        Command::Flows(flows) => cli::run(cli::Query::Flows(flows)),
        Command::Why(why) => cli::run(cli::Query::Why(why)),
        Command::Config(config) => cli::run(cli::Query::Config(config)),
    }
}

fn agent(files: &[PathBuf]) -> ExitCode {
    let (config, identity) = match config::load(files) {
        Ok(loaded) => loaded,
        Err(problems) => return refused(&problems),
    };
    serve(&config.log, daemon::run(config.clone(), identity))
}

fn relay(file: &std::path::Path) -> ExitCode {
    match relay::load(file) {
        Ok((file, config)) => {
            let log = file.log.clone();
            serve(&log, relay::run(file, config))
        }
        Err(problems) => refused(&problems),
    }
}

/// Says what is wrong with a configuration.
fn refused<P: std::fmt::Display>(problems: &[P]) -> ExitCode {
    problems.iter().for_each(|problem| eprintln!("tombolo: {problem}"));
    fail(format_args!("{} mistakes in the configuration; nothing was started", problems.len()))
}

fn router(file: &std::path::Path) -> ExitCode {
    match router::load(file) {
        Ok(checked) => {
            let log = checked.log().clone();
            serve(&log, router::run(checked))
        }
        Err(problems) => refused(&problems),
    }
}

/// Runs a daemon to its end.
fn serve(log: &config::Log, daemon: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    if let Err(error) = logs(log) {
        return fail(error);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(format_args!("cannot start: {error}")),
    };
    match runtime.block_on(daemon) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Sets logs up; to standard error, where systemd and the lab pick them up.
fn logs(log: &config::Log) -> Result<(), String> {
    let filter = tracing_subscriber::EnvFilter::try_new(&log.level).map_err(|error| {
        format!("log.level {:?}: {error}; give error, warn, info, debug or trace", log.level)
    })?;
    let logs =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    let done = match log.format {
        config::LogFormat::Text => logs.try_init(),
        config::LogFormat::Json => logs.json().try_init(),
    };
    done.map_err(|error| format!("cannot set up logs: {error}"))
}
