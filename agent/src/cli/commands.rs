//! What each reading command asks for and prints.

use super::client::{self, ClientError};
use super::output;
use super::{BgpCommand, ConfigCommand, Format, MeshCommand, Reading, RelayCommand, fail};
use crate::daemon::show::Shown;
use crate::daemon::status::Status;
use serde_json::Value;
use std::path::Path;
use std::process::ExitCode;
use tombolo_clustermesh::certificate::unix_now;
use tombolo_clustermesh::etcd::EtcdConfig;

/// A reading command.
pub(crate) enum Query {
    /// `tombolo status`.
    Status(Reading, bool),
    /// `tombolo show`.
    Show(Reading, Option<String>),
    /// `tombolo conntrack`.
    Conntrack(super::conntrack::ConntrackCommand),
    /// `tombolo policy`.
    Policy(super::policy::PolicyCommand),
    /// `tombolo mesh`.
    Mesh(MeshCommand),
    /// `tombolo relay`.
    Relay(Option<RelayCommand>),
    /// `tombolo bgp`.
    Bgp(BgpCommand),
    /// `tombolo flows`.
    Flows(Box<super::flows::FlowsArgs>),
    /// `tombolo why`.
    Why(Box<super::why::WhyArgs>),
    /// `tombolo config`.
    Config(ConfigCommand),
}

/// A reader that goes away (`| head`) ends the command; `println!` would panic.
fn end_with_the_reader() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.payload_as_str().is_some_and(|text| text.starts_with("failed printing to stdout")) {
            std::process::exit(0);
        }
        usual(panic);
    }));
}

/// Runs a reading command on a small runtime of its own.
pub(crate) fn run(query: Query) -> ExitCode {
    end_with_the_reader();
    block_on(async {
        let outcome = match query {
            Query::Status(reading, verbose) => status(&reading, verbose).await,
            Query::Show(reading, table) => show(&reading, table.as_deref()).await,
            Query::Conntrack(command) => super::conntrack::run(command).await,
            Query::Policy(command) => super::policy::run(command).await,
            Query::Mesh(command) => super::mesh::run(command).await,
            Query::Relay(Some(RelayCommand::Status(reading))) => super::relay::status(&reading).await,
            Query::Relay(None) => Ok(fail("give --config FILE to run a relay, or status to ask one")),
            Query::Bgp(command) => super::bgp::run(command).await,
            Query::Flows(args) => super::flows::run(&args).await,
            Query::Why(args) => super::why::run(&args).await,
            Query::Config(ConfigCommand::Check { files }) => Ok(check(&files).await),
        };
        outcome.unwrap_or_else(fail)
    })
}

/// Runs one future on a small runtime of its own.
pub(crate) fn block_on(work: impl Future<Output = ExitCode>) -> ExitCode {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => fail(format_args!("cannot start: {error}")),
    }
}

pub(super) fn json(value: &impl serde::Serialize) -> Result<(), ClientError> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

async fn status(reading: &Reading, verbose: bool) -> Result<ExitCode, ClientError> {
    let status: Status = client::get(&reading.socket, "/v1/status").await?;
    let code = if status.ready { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if reading.output == Format::Json {
        json(&status)?;
        return Ok(code);
    }
    println!(
        "{} in cluster {} (tombolo {}, up {}s): {}",
        status.node,
        status.cluster,
        status.version,
        status.uptime_secs,
        output::mark(status.ready)
    );
    println!("path {}, encryption {}, pod MTU {} bytes\n", status.path, status.encryption, status.mtu);
    let shown =
        status.parts.iter().filter(|part| verbose || !part.name.starts_with("reconcile/") || !part.ready);
    let rows = shown.map(|part| {
        vec![part.name.clone(), output::mark(part.ready), part.detail.clone(), part.remedy.clone()]
    });
    output::table(&["PART", "STATE", "DETAIL", "TRY"], rows);
    if !status.problems.is_empty() {
        println!("\n{} problems in configuration and manifests:", status.problems.len());
        let shown = if verbose { status.problems.len() } else { 5 };
        status.problems.iter().take(shown).for_each(|problem| println!("  {problem}"));
        if status.problems.len() > shown {
            println!("  ... and more: tombolo status --verbose");
        }
    }
    Ok(code)
}

async fn show(reading: &Reading, table: Option<&str>) -> Result<ExitCode, ClientError> {
    let Some(table) = table else {
        let names: Vec<String> = client::get(&reading.socket, "/v1/tables").await?;
        match reading.output {
            Format::Json => json(&names)?,
            Format::Table => names.iter().for_each(|name| println!("{name}")),
        }
        return Ok(ExitCode::SUCCESS);
    };
    print_table(
        reading,
        client::get(&reading.socket, &format!("/v1/tables/{}", client::encode(table))).await?,
    )?;
    Ok(ExitCode::SUCCESS)
}

/// Prints a table as the reader wants it.
pub(super) fn print_table(reading: &Reading, shown: Shown) -> Result<(), ClientError> {
    match reading.output {
        Format::Json => json(&shown.rows)?,
        Format::Table => {
            output::table(&shown.columns, shown.cells);
            for (source, state) in shown.sources.iter().filter(|(_, state)| *state != "initialized") {
                println!("note: {source} is {state}: its rows are not confirmed");
            }
            shown.notes.iter().for_each(|note| println!("note: {note}"));
        }
    }
    Ok(())
}

pub(super) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(" "),
        Value::Object(map) => {
            map.iter().map(|(key, value)| format!("{key}={}", cell(value))).collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    }
}

/// What comes first in the table of sessions.
pub(super) const PEER_COLUMNS: [&str; 8] =
    ["instance", "peer", "address", "peer_as", "state", "uptime_secs", "family", "received"];

/// A list of objects: their keys are the columns, those named first in front.
pub(super) async fn objects(reading: &Reading, path: &str, first: &[&str]) -> Result<ExitCode, ClientError> {
    let rows: Vec<serde_json::Map<String, Value>> = client::get(&reading.socket, path).await?;
    if reading.output == Format::Json {
        json(&rows)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut columns: Vec<String> = first.iter().map(ToString::to_string).collect();
    for key in rows.iter().flat_map(|row| row.keys()) {
        if !columns.contains(key) {
            columns.push(key.clone());
        }
    }
    let headings: Vec<String> = columns.iter().map(|key| key.to_uppercase().replace('_', "-")).collect();
    let cells = rows
        .iter()
        .map(|row| columns.iter().map(|key| row.get(key).map_or_else(|| "-".to_owned(), cell)).collect());
    output::table(&headings, cells.collect::<Vec<_>>());
    if rows.is_empty() {
        println!("(none)");
    }
    Ok(ExitCode::SUCCESS)
}

/// Checks files by what they look like; every mistake on a line of its own.
async fn check(files: &[std::path::PathBuf]) -> ExitCode {
    let mut mistakes = 0;
    for file in files {
        let problems = problems_of(file).await;
        mistakes += problems.len();
        match problems.as_slice() {
            [] => println!("{}: ok", file.display()),
            problems => problems.iter().for_each(|problem| println!("{problem}")),
        }
    }
    if mistakes == 0 { ExitCode::SUCCESS } else { fail(format_args!("{mistakes} mistakes")) }
}

async fn problems_of(file: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let starts = |key: &str| text.lines().any(|line| line.starts_with(key));
    if file.to_string_lossy().contains(".clab.") || starts("topology:") {
        return match tombolo_containerlab::file::load(file, &std::env::vars().collect()) {
            Ok((_, warnings)) => {
                warnings.iter().for_each(|warning| println!("warning: {warning}"));
                Vec::new()
            }
            Err(errors) => errors.iter().map(ToString::to_string).collect(),
        };
    }
    if starts("endpoints:") && !starts("cluster:") {
        return match EtcdConfig::parse(file, &text, false) {
            Ok(etcd) => certificates(&etcd).await,
            Err(error) => vec![error.to_string()],
        };
    }
    if starts("kind:") || starts("apiVersion:") {
        // Whose objects they are does not matter for what is wrong with them.
        let name = tombolo_base::ids::ClusterName::new("check");
        let id = tombolo_base::ids::ClusterId::new(1, tombolo_base::ids::MaxClusters::default());
        let (Ok(name), Ok(id)) = (name, id) else { return Vec::new() };
        let cluster = tombolo_kubernetes::ClusterIdentity { name, id };
        return tombolo_kubernetes::check_file(file, &cluster).iter().map(ToString::to_string).collect();
    }
    if crate::relay::is_relay(&text) {
        return match crate::relay::load(file) {
            Ok((_, config)) => certificates(&config.etcd).await,
            Err(found) => found,
        };
    }
    if crate::router::is_router(&text) {
        return crate::router::load(file).err().unwrap_or_default();
    }
    match crate::config::load(&[file.to_owned()]) {
        Ok((config, _)) => match &config.etcd {
            Some(etcd) => certificates(&etcd.client()).await,
            None => Vec::new(),
        },
        Err(found) => found.iter().map(ToString::to_string).collect(),
    }
}

/// What is wrong with certificate files, or will be soon.
async fn certificates(etcd: &EtcdConfig) -> Vec<String> {
    match etcd.certificates().await {
        Ok(files) => files.and_then(|files| files.expiry.warning(unix_now())).into_iter().collect(),
        Err(error) => vec![error.to_string()],
    }
}
