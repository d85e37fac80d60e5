//! A cluster is let in and put out by `tombolo mesh connect|disconnect`, as its operator would, while the others run.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::super::known::{Known, RemoteState};
use super::super::load;
use super::super::scene::{SETTLE, loads_between};
use super::mirror;
use crate::checks::access::Place;
use crate::checks::check::{CheckResult, Failure};
use crate::checks::context::Context;
use crate::checks::inventory::Cluster;
use crate::checks::poll;
use crate::checks::ready;

/// How long a cluster may take until it is in sync with another, or gone.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where `tombolo mesh connect` writes on the node of an etcd.
const OUT: &str = "/run/for";
/// What is needed on the node of an etcd: the CA's key and a certificate of its root user.
const AS_ROOT: &str =
    "--config /etc/tombolo/agent.yaml --cert /etc/etcd/pki/root.crt --key /etc/etcd/pki/root.key";

/// The pairs of a cluster with every other.
fn others<'a>(context: &'a Context, cluster: &str) -> Result<(&'a Cluster, Vec<&'a Cluster>), Failure> {
    let own = context.cluster(cluster)?;
    Ok((own, context.inventory.clusters.values().filter(|other| other.name != own.name).collect()))
}

/// Clusters that read this one or are read by it now.
fn reads(from: &Cluster, what: &str) -> bool {
    [what.to_owned(), format!("{what}.yaml")].iter().any(|name| from.clustermesh.join(name).exists())
}

/// Lets in what is not in yet.
pub(super) async fn all_in(context: &Context) -> Result<(), Failure> {
    for cluster in context.inventory.clusters.values() {
        for other in others(context, &cluster.name)?.1 {
            if !reads(other, &cluster.name) {
                connect(context, cluster, other).await?;
            }
        }
    }
    for cluster in context.inventory.clusters.values() {
        in_sync(context, cluster, &others(context, &cluster.name)?.1).await?;
    }
    Ok(())
}

/// Makes the users again that others were let in with, in an etcd that has lost them.
pub(super) async fn again(context: &Context, cluster: &str) -> Result<(), Failure> {
    let (own, others) = others(context, cluster)?;
    for other in others {
        if other.clustermesh.join(cluster).exists() {
            poll::until(PATIENCE, || connect(context, own, other)).await?;
        }
    }
    Ok(())
}

/// `reader` is to read `cluster`: made there, and copied to where the reader's agents look; or its relays, whose mirror the
/// agents are told to read then.
async fn connect(context: &Context, cluster: &Cluster, reader: &Cluster) -> Result<(), Failure> {
    let place = Place::node(&cluster.etcd);
    let out = format!("{OUT}-{}", reader.name);
    let name = &reader.name;
    let script = format!(
        "rm -rf {out}; tombolo mesh connect {name} {AS_ROOT} --ca-key /etc/tombolo/pki/ca.key --out {out} >&2; ls {out}"
    );
    let listed = context.access.text(&place, &["sh", "-ec", &script]).await?;
    let mut files = BTreeMap::new();
    for file in listed.lines().map(str::trim).filter(|file| !file.is_empty()) {
        let path = format!("{out}/{file}");
        files.insert(file.to_owned(), context.access.text(&place, &["cat", &path]).await?);
    }
    let client = files.remove(&cluster.name).ok_or_else(|| {
        Failure::new(
            format!("a file {} from tombolo mesh connect", cluster.name),
            listed,
            context.access.shown(&place, &["ls", &out]),
        )
    })?;
    for (file, text) in files.iter().chain([(&cluster.name, &client)]) {
        copy(&reader.sources().join(file), text)?;
    }
    if !reader.relays.is_empty() {
        copy(&reader.clustermesh.join(&cluster.name), &mirrors_file(reader)?)?;
    }
    context.access.text(&place, &["rm", "-r", &out]).await?;
    Ok(())
}

/// The file by which the agents of a cluster read what its relays mirror: the same for each mirrored cluster.
fn mirrors_file(reader: &Cluster) -> Result<String, Failure> {
    let failed = |why: String| {
        Failure::tool("the file for what relays mirror", why, reader.clustermesh.display().to_string())
    };
    let entries = std::fs::read_dir(&reader.clustermesh).map_err(|error| failed(error.to_string()))?;
    let yaml = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "yaml");
    let any = entries.filter_map(Result::ok).map(|entry| entry.path()).find(yaml);
    let any = any.ok_or_else(|| failed("there is none of another cluster".to_owned()))?;
    std::fs::read_to_string(any).map_err(|error| failed(error.to_string()))
}

/// Writes by rename: no agent sees half.
pub(super) fn copy(path: &Path, text: &str) -> Result<(), Failure> {
    let failed = |error: std::io::Error| {
        Failure::tool("copying an etcd client file", error, path.display().to_string())
    };
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let hidden = path.with_file_name(format!(".{name}.new"));
    std::fs::remove_file(&hidden).or_else(|error| {
        if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(failed(error)) }
    })?;
    let mut file =
        std::fs::File::options().write(true).create_new(true).mode(0o600).open(&hidden).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    std::fs::rename(&hidden, path).map_err(failed)
}

async fn disconnect(context: &Context, cluster: &Cluster, reader: &Cluster) -> Result<(), Failure> {
    let script = format!("tombolo mesh disconnect {} {AS_ROOT}", reader.name);
    context.access.text(&Place::node(&cluster.etcd), &["sh", "-ec", &script]).await?;
    for folder in BTreeSet::from([reader.sources(), reader.clustermesh.as_path()]) {
        let file = folder.join(&cluster.name);
        std::fs::remove_file(&file).map_err(|error| {
            Failure::tool("removing an etcd client file", error, file.display().to_string())
        })?;
    }
    Ok(())
}

/// Waits until two clusters are in sync with each other at every node.
async fn in_sync(context: &Context, cluster: &Cluster, with: &[&Cluster]) -> Result<Duration, Failure> {
    let (_, took) = poll::until(PATIENCE, || async {
        for other in with {
            for (reader, read) in [(cluster, *other), (*other, cluster)] {
                for node in reader.nodes.keys() {
                    let state = RemoteState::of(context, node, &read.name).await?;
                    if state != RemoteState::Ready {
                        let what = format!("{node} is in sync with {}", read.name);
                        let look = context.access.shown(&Place::node(node), &["tombolo", "mesh", "status"]);
                        return Err(Failure::new(what, format!("{state:?}"), look));
                    }
                }
            }
        }
        Ok(())
    })
    .await?;
    Ok(took)
}

/// The uptimes of all agents, to show that none was restarted.
async fn uptimes(context: &Context) -> Result<BTreeMap<String, u64>, Failure> {
    let mut all = BTreeMap::new();
    for node in context.inventory.clusters.values().flat_map(|cluster| cluster.nodes.keys()) {
        all.insert(node.clone(), ready::status(&context.access, node).await?.uptime_secs);
    }
    Ok(all)
}

async fn none_restarted(
    context: &Context,
    before: &BTreeMap<String, u64>,
    since: Instant,
) -> Result<(), Failure> {
    let elapsed = since.elapsed().as_secs();
    for (node, now) in uptimes(context).await? {
        let was = before.get(&node).copied().unwrap_or_default();
        if now < was + elapsed.saturating_sub(1) {
            let what = format!("the agent of {node} is not restarted");
            let got = format!("up {was} s before, {now} s after {elapsed} s more");
            return Err(Failure::new(
                what,
                got,
                context.access.shown(&Place::node(&node), &["tombolo", "status"]),
            ));
        }
    }
    Ok(())
}

pub(super) async fn joins(context: &Context, cluster: &str) -> CheckResult {
    let (own, others) = others(context, cluster)?;
    if others.iter().any(|other| reads(other, cluster)) {
        return Err(Failure::new(
            format!("{cluster} is not in yet"),
            "it is",
            "run the check `leaves` first",
        ));
    }
    let (before, began) = (uptimes(context).await?, Instant::now());
    let mut loads = loads_between(context, &others).await?;
    let seen = known_of_each_other(context, &others).await?;
    for other in &others {
        connect(context, own, other).await?;
        connect(context, other, own).await?;
    }
    let joined = Instant::now();
    in_sync(context, own, &others).await?;
    let took = joined.elapsed();
    // It takes part: connections to and from it, by address and by global service.
    let all: Vec<&Cluster> = context.inventory.clusters.values().collect();
    let mut more = loads_between(context, &all).await?;
    load::all_settled(&mut more, SETTLE).await?;
    load::all_settled(&mut loads, SETTLE).await?;
    let (reports, new) = (load::stop_all(loads).await?, load::stop_all(more).await?);
    unchanged(context, &others, &seen).await?;
    load::unharmed(&reports, &format!("while {cluster} is let in"))?;
    load::unharmed(&new, &format!("after {cluster} was let in"))?;
    none_restarted(context, &before, began).await?;
    Ok(vec![
        format!(
            "in sync in both directions with {} clusters {:.1} s after the last file, no agent restarted",
            others.len(),
            took.as_secs_f64()
        ),
        format!("between the others: {}", load::sum(&reports)),
        format!("between all: {}", load::sum(&new)),
    ])
}

pub(super) async fn leaves(context: &Context, cluster: &str) -> CheckResult {
    all_in(context).await?;
    let (own, others) = others(context, cluster)?;
    let (before, began) = (uptimes(context).await?, Instant::now());
    let mut loads = loads_between(context, &others).await?;
    let seen = known_of_each_other(context, &others).await?;
    let kept = mirror::kept_of(context, own, &others).await?;
    for other in &others {
        disconnect(context, own, other).await?;
        disconnect(context, other, own).await?;
    }
    let (_, took) = poll::until(PATIENCE, || gone(context, own, &others)).await?;
    let mirrors = mirror::all_gone(context, own, &kept).await?;
    load::all_settled(&mut loads, SETTLE).await?;
    let reports = load::stop_all(loads).await?;
    unchanged(context, &others, &seen).await?;
    load::unharmed(&reports, &format!("while {cluster} is put out"))?;
    none_restarted(context, &before, began).await?;
    let mut notes = vec![
        format!(
            "nothing of it is known to the others after {:.1} s, nor of them to it; no agent restarted",
            took.as_secs_f64()
        ),
        format!("between the others: {}", load::sum(&reports)),
    ];
    notes.extend(mirrors);
    Ok(notes)
}

/// What clusters know of each other.
async fn known_of_each_other(context: &Context, clusters: &[&Cluster]) -> Result<Vec<Known>, Failure> {
    let mut all = Vec::new();
    for of in clusters {
        let readers = clusters.iter().copied().filter(|reader| reader.name != of.name);
        all.push(Known::read_at(context, of, readers).await?);
    }
    Ok(all)
}

async fn unchanged(context: &Context, clusters: &[&Cluster], before: &[Known]) -> Result<(), Failure> {
    for (was, now) in before.iter().zip(known_of_each_other(context, clusters).await?) {
        was.unchanged(&now, context)?;
    }
    Ok(())
}

/// Fails while somebody knows something of a cluster that was put out, or it of them.
async fn gone(context: &Context, own: &Cluster, others: &[&Cluster]) -> Result<(), Failure> {
    for other in others {
        for (reader, read) in [(own, *other), (*other, own)] {
            for node in reader.nodes.keys() {
                let rows = Known::rows_of(context, node, &read.name).await?;
                let state = RemoteState::of(context, node, &read.name).await?;
                if rows > 0 || state != RemoteState::Unknown {
                    let what = format!("{node} knows nothing of {} any more", read.name);
                    let look = context.access.shown(&Place::node(node), &["tombolo", "mesh", "status"]);
                    return Err(Failure::new(what, format!("{rows} rows, {state:?}"), look));
                }
            }
        }
    }
    Ok(())
}
