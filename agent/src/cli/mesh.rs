//! `tombolo mesh`: how far the other clusters are read, and what came of it.

use super::client::{self, ClientError};
use super::commands::{cell, json};
use super::mesh_view;
use super::{
    ConnectArgs, DumpArgs, Format, MeshCommand, PartnerArgs, ReaderArgs, Reading, TroubleshootArgs, output,
};
use crate::config::{self, Etcd};
use serde_json::Value;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tombolo_base::ids::{ClusterId, ClusterName, MaxClusters};
use tombolo_base::source::SourceState;
use tombolo_clustermesh::MeshError;
use tombolo_clustermesh::etcd::EtcdConfig;
use tombolo_clustermesh::follower::{self, Change, Dump, Limits, MeshConfig, MeshHandle, MeshSink, Timers};
use tombolo_clustermesh::partner::{Invitation, Reads, invite, uninvite};
use tombolo_clustermesh::troubleshoot::{Step, Viewpoint, Walk, walk};
use tombolo_clustermesh::wire::ServicePreference;

pub(super) async fn run(command: MeshCommand) -> Result<ExitCode, ClientError> {
    match command {
        MeshCommand::Status(reading) => status(&reading).await,
        MeshCommand::Nodes(reading) => mesh_view::nodes(&reading).await,
        MeshCommand::Conflicts(reading) => mesh_view::conflicts(&reading).await,
        MeshCommand::Lag(reading) => mesh_view::lag(&reading).await,
        MeshCommand::Services(args) => super::mesh_services::run(args).await,
        MeshCommand::Troubleshoot(args) => troubleshoot(args).await,
        MeshCommand::Dump(args) => dump(*args).await,
        MeshCommand::Connect(args) => connect(*args).await,
        MeshCommand::Disconnect(args) => disconnect(args).await,
    }
}

const MESH_COLUMNS: [&str; 10] = [
    "CLUSTER",
    "STATE",
    "NODES",
    "ENDPOINTS",
    "IDENTITIES",
    "SERVICES",
    "REFUSED",
    "RECONNECTIONS",
    "CERTIFICATE",
    "STATUS",
];

/// The table of remote clusters.
async fn status(reading: &Reading) -> Result<ExitCode, ClientError> {
    let all: Vec<Value> = client::get(&reading.socket, "/v1/mesh").await?;
    let ready = |cluster: &Value| cluster.get("ready").and_then(Value::as_bool).unwrap_or(false);
    let count = all.iter().filter(|cluster| ready(cluster)).count();
    let list =
        |cluster: &Value, key: &str| cluster.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let code = if count == all.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if reading.output == Format::Json {
        json(&all)?;
        return Ok(code);
    }
    println!("ClusterMesh: {count}/{} remote clusters ready", all.len());
    let text = |cluster: &Value, key: &str| cluster.get(key).map_or_else(|| "-".to_owned(), cell);
    let rows = all.iter().map(|cluster| {
        vec![
            text(cluster, "name"),
            output::mark(ready(cluster)),
            text(cluster, "num-nodes"),
            text(cluster, "num-endpoints"),
            text(cluster, "num-identities"),
            text(cluster, "num-shared-services"),
            text(cluster, "refused-now"),
            text(cluster, "num-failures"),
            if cluster.get("plaintext") == Some(&Value::Bool(true)) {
                "PLAINTEXT".to_owned()
            } else {
                text(cluster, "certificate-left")
            },
            text(cluster, "status"),
        ]
    });
    output::table(&MESH_COLUMNS, rows.collect::<Vec<_>>());
    let conflicts: Vec<Value> = client::get(&reading.socket, "/v1/mesh/conflicts").await?;
    let count: u64 = conflicts.iter().filter_map(|conflict| conflict.get("count")?.as_u64()).sum();
    if count > 0 {
        println!("{count} conflicts between clusters: tombolo mesh conflicts");
    }
    for cluster in &all {
        let name = text(cluster, "name");
        list(cluster, "warnings").iter().for_each(|warning| println!("{name}: {}", cell(warning)));
        for entry in list(cluster, "refused") {
            let of = |key: &str| text(&entry, key);
            println!("{name}: refused {}: {}: {}; {}", of("key"), of("reason"), of("detail"), of("remedy"));
        }
    }
    Ok(code)
}

/// The walk of the running agent, or one from here.
async fn troubleshoot(args: TroubleshootArgs) -> Result<ExitCode, ClientError> {
    let only = args.cluster.as_deref();
    let walks: Vec<Walk> = match args.reader.clustermesh_config {
        None => {
            let path = only.map_or_else(String::new, |name| format!("?cluster={}", client::encode(name)));
            client::get(&args.reading.socket, &format!("/v1/mesh/troubleshoot{path}")).await?
        }
        Some(_) => walk(&viewpoint(args.reader)?, only).await.map_err(refused)?,
    };
    let code = if walks.iter().all(Walk::ok) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if args.reading.output == Format::Json {
        json(&walks)?;
        return Ok(code);
    }
    let row = |walk: &Walk, step: &Step| {
        vec![
            walk.cluster.clone(),
            walk.way.to_string(),
            step.step.clone(),
            output::mark(step.ok),
            step.at.clone(),
            step.detail.clone(),
        ]
    };
    let rows = walks.iter().flat_map(|walk| walk.steps.iter().map(|step| row(walk, step)));
    output::table(&["CLUSTER", "WAY", "STEP", "STATE", "AT", "FOUND"], rows.collect::<Vec<_>>());
    let good = walks.iter().filter(|walk| walk.ok()).count();
    println!("{good}/{} remote clusters can be read", walks.len());
    Ok(code)
}

fn viewpoint(reader: ReaderArgs) -> Result<Viewpoint, ClientError> {
    let id = reader.cluster_id.map(|id| ClusterId::new(id, reader.max_connected_clusters)).transpose();
    let folder = reader.clustermesh_config.unwrap_or_default();
    // A follower waits for a folder that is not there yet; who types its name wants to know.
    if let Err(error) = std::fs::read_dir(&folder) {
        let text = format!(
            "--clustermesh-config {}: {error}; give the folder with one file for each cluster",
            folder.display()
        );
        return Err(ClientError::Refused(text));
    }
    Ok(Viewpoint {
        folder,
        own: reader.cluster_name,
        own_id: id.map_err(|error| ClientError::Refused(format!("--cluster-id: {error}")))?,
        max: reader.max_connected_clusters,
        allow_plaintext: reader.allow_plaintext,
        preference: reader.service_preference,
        relay: None,
    })
}

/// What was accepted, from the running agent or read here and now.
async fn dump(args: DumpArgs) -> Result<ExitCode, ClientError> {
    let dump = match args.reader.clustermesh_config {
        None => client::get(&args.socket, "/v1/mesh/dump").await?,
        Some(_) => serde_json::to_value(read(viewpoint(args.reader)?, args.wait).await)?,
    };
    json(&dump)?;
    let clusters = dump.pointer("/status/clusters").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let all = clusters.iter().all(|cluster| cluster.get("ready") == Some(&Value::Bool(true)));
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Reads the clusters of a folder without an agent; what is not complete when the time is over is dumped as far as it is.
async fn read(from: Viewpoint, wait: Duration) -> Dump {
    let config = MeshConfig {
        cluster: from.own,
        cluster_id: from.own_id,
        max: from.max,
        folder: from.folder,
        snapshots: None,
        allow_plaintext: from.allow_plaintext,
        own: None,
        timers: Timers::default(),
        limits: Limits::default(),
        exports: true,
        preference: from.preference,
        mirror: false,
        relay: None,
    };
    let (sink, cancel) = (Arc::new(Waiter::default()), CancellationToken::new());
    let (mesh, task) = follower::start(config, sink.clone(), cancel.clone()).await;
    sink.all_ready(&mesh, Instant::now() + wait).await;
    let dump = mesh.dump().await;
    cancel.cancel();
    // A panic was reported by the runtime already.
    drop(task.await);
    dump
}

/// Keeps nothing and tells when a cluster's state changes: the followers know their entries themselves.
#[derive(Debug, Default)]
struct Waiter {
    changed: Notify,
}

impl Waiter {
    /// Waits until every cluster is ready, or that time has come.
    async fn all_ready(&self, mesh: &MeshHandle, until: Instant) {
        loop {
            let ready = mesh.status().await.iter().all(|cluster| cluster.ready);
            if ready || tokio::time::timeout_at(until, self.changed.notified()).await.is_err() {
                return;
            }
        }
    }
}

impl MeshSink for Waiter {
    fn apply(&self, _: &ClusterName, _: Vec<Change>) {}

    fn state(&self, _: &ClusterName, _: SourceState) {
        self.changed.notify_one();
    }

    fn gone(&self, _: &ClusterName) {
        self.changed.notify_one();
    }
}

/// This cluster's name, and its etcd as its administrator sees it.
fn ours(args: &PartnerArgs) -> Result<(ClusterName, EtcdConfig), ClientError> {
    let (config, identity) = config::load(&args.config).map_err(|problems| {
        ClientError::Refused(problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    })?;
    let mut etcd = config.etcd.as_ref().map(Etcd::client).unwrap_or_default();
    (etcd.cert_file, etcd.key_file) = (Some(args.cert.clone()), Some(args.key.clone()));
    if etcd.is_plaintext() || etcd.trusted_ca_file.is_none() {
        return Err(ClientError::Refused(
            "etcd is reached without TLS: there a partner cannot be told from anybody else; give it certificates first".to_owned(),
        ));
    }
    let own = identity.cluster;
    match (own == args.partner, reads(args)) {
        (true, Reads::Published) => Err(ClientError::Refused(format!(
            "{own} is this cluster itself; name the other one, or give --mirrors for what a relay mirrors here"
        ))),
        (false, Reads::Mirrors) => Err(ClientError::Refused(format!(
            "mirrors are for this cluster's own agents; name {own}, or leave --mirrors out"
        ))),
        _ => Ok((own, etcd)),
    }
}

const fn reads(args: &PartnerArgs) -> Reads {
    if args.mirrors { Reads::Mirrors } else { Reads::Published }
}

async fn connect(args: ConnectArgs) -> Result<ExitCode, ClientError> {
    let (cluster, etcd) = ours(&args.partner)?;
    let (partner, reads) = (args.partner.partner, reads(&args.partner));
    let endpoints = if args.endpoint.is_empty() { etcd.endpoints.clone() } else { args.endpoint };
    let invitation = Invitation {
        cluster,
        partner,
        reads,
        etcd,
        endpoints,
        ca_key: args.ca_key,
        days: args.days,
        out: args.out,
        folder_there: args.folder_there,
    };
    let invited = invite(&invitation).await.map_err(refused)?;
    let what = match reads {
        Reads::Published => format!("what {cluster} publishes"),
        Reads::Mirrors => "what a relay mirrors there".to_owned(),
    };
    println!(
        "etcd of {cluster}: user {} may read {what}; its certificate is good until {}",
        invited.user,
        invited.until()
    );
    println!(
        "proved: with it the configuration of {cluster} can be read; nothing outside can, and nothing can be written"
    );
    invited.files.iter().for_each(|file| println!("wrote {}", file.display()));
    let folder = "the folder that clustermesh.folder (Cilium: --clustermesh-config) names";
    match reads {
        Reads::Published => {
            println!(
                "next: copy these files to each node of {partner}, into {folder}; agents take them up by themselves"
            );
            println!("for the way back, run `tombolo mesh connect {cluster}` in {partner}");
        }
        Reads::Mirrors => println!(
            "next: copy the certificates and the key to each node here, into {folder}, and the file {cluster} once for each cluster that is mirrored, named after it; agents take them up by themselves"
        ),
    }
    Ok(ExitCode::SUCCESS)
}

async fn disconnect(args: PartnerArgs) -> Result<ExitCode, ClientError> {
    let (cluster, etcd) = ours(&args)?;
    let (partner, reads) = (&args.partner, reads(&args));
    let user = reads.user(partner);
    if !uninvite(&etcd, reads, partner).await.map_err(refused)? {
        return Err(ClientError::Refused(format!(
            "etcd of {cluster} has no user {user}; nothing was changed"
        )));
    }
    println!(
        "etcd of {cluster}: user {user} is gone; its requests are refused from now on, a watch that stands ends with its connection"
    );
    if reads == Reads::Mirrors {
        println!(
            "next: give this cluster's agents other files in clustermesh.folder: what is known stays in use until they read again"
        );
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "next: remove the file {partner} from clustermesh.folder on each node here: what is known of {partner} is taken away then; and that of {cluster} in {partner}"
    );
    Ok(ExitCode::SUCCESS)
}

fn refused(error: MeshError) -> ClientError {
    ClientError::Refused(error.to_string())
}

/// `60s`, `5m`, `1h`, `500ms`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let millis: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("give a number and ms, s, m or h, as 60s".to_owned()),
    };
    let number: u64 = number.parse().map_err(|error| format!("{number:?}: {error}"))?;
    number.checked_mul(millis).map(Duration::from_millis).ok_or_else(|| "too long".to_owned())
}

/// Cilium's words.
pub(super) fn preference(text: &str) -> Result<ServicePreference, String> {
    let all = ServicePreference::ALL;
    let words = || all.map(ServicePreference::word).join(", ");
    all.into_iter().find(|one| one.word() == text).ok_or_else(|| format!("give one of {}", words()))
}

/// 255 or 511.
pub(super) fn max_clusters(text: &str) -> Result<MaxClusters, String> {
    let number: u32 = text.parse().map_err(|error| format!("{error}"))?;
    MaxClusters::try_from(number).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preferences_are_those_of_the_configuration() {
        use crate::config::Preference;
        for (word, wanted) in [
            ("prefer-legacy", ServicePreference::Services),
            ("prefer-endpointslice", ServicePreference::Slices),
            ("only-endpointslice", ServicePreference::OnlySlices),
        ] {
            assert_eq!(preference(word), Ok(wanted));
            let configured: Preference = serde_json::from_value(word.into()).unwrap();
            assert_eq!(ServicePreference::from(configured), wanted);
        }
        assert!(preference("slices").unwrap_err().contains("only-endpointslice"));
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(duration("1500ms"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        for bad in ["", "60", "s", "1d", "-1s", "99999999999999999999s", "18446744073709551615h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
