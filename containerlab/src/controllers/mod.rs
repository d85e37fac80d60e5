//! What a control plane would do for the lab's clusters, over a folder of manifests: keeps EndpointSlices in step with
//! Services and Pods, and marks the nodes that the lab knows to be dead NotReady. One [`run`] for each cluster's folder,
//! inside the lab's supervisor.
//!
//! ```no_run
//! # use std::{collections::BTreeSet, path::Path};
//! # use tokio::sync::watch;
//! # use tokio_util::sync::CancellationToken;
//! # use tombolo_containerlab::controllers;
//! # async fn example() -> Result<(), controllers::ControllerError> {
//! let (power, dead) = watch::channel(BTreeSet::new());
//! let stop = CancellationToken::new();
//! let running = controllers::run(Path::new("/run/tombolo-lab/x/east/manifests"), dead, stop.clone());
//! power.send_modify(|dead| { dead.insert("east-n2".to_owned()); }); // NotReady, its endpoints not ready
//! power.send_modify(|dead| { dead.remove("east-n2"); });            // and back
//! # running.await }
//! ```

pub(crate) mod folder;
mod nodes;
mod slices;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Pod, Service};
use notify::{RecursiveMode, Watcher};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub use nodes::{mark, not_ready};
pub use slices::{MANAGED_BY, MANAGED_BY_LABEL, SERVICE_LABEL, slices};

use folder::Folder;

/// Why the controllers of a folder had to stop.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// The folder cannot be watched.
    #[error(
        "watching the manifests in {folder}: {source}; the folder must exist, and fs.inotify.max_user_instances must allow one more"
    )]
    Watch {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: notify::Error,
    },
    /// The folder cannot be read or written.
    #[error(
        "{operation} in the manifest folder {folder}: {source}; is the lab still up and its disk not full?"
    )]
    Folder {
        /// What was tried.
        operation: &'static str,
        /// The folder.
        folder: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// What one pass did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Pass {
    /// Files written, by name.
    pub written: Vec<String>,
    /// Files removed, by name.
    pub removed: Vec<String>,
    /// What is wrong with single manifests; they are left out, the rest goes on.
    pub problems: Vec<String>,
}

/// Keeps one folder in step until `stop` is cancelled. `dead` holds the names of the nodes that are powered off.
///
/// # Errors
/// The folder cannot be watched, read or written. Wrong manifests are only logged.
pub async fn run(
    folder: &Path,
    mut dead: watch::Receiver<BTreeSet<String>>,
    stop: CancellationToken,
) -> Result<(), ControllerError> {
    let failed = |source| ControllerError::Watch { folder: folder.to_owned(), source };
    // One slot is enough: a pass looks at everything, so a second wake-up while one is waiting says nothing new.
    let (wake, mut woken) = mpsc::channel(1);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.map_or(true, |event| matters(&event)) {
            // Full means that a pass is due anyway; closed that nobody wants one.
            wake.try_send(()).ok();
        }
    })
    .map_err(failed)?;
    watcher.watch(folder, RecursiveMode::NonRecursive).map_err(failed)?;
    let mut controller = Controller::new(folder);
    let mut dead_open = true;
    loop {
        let down = dead.borrow_and_update().clone();
        let pass = controller.pass(&down)?;
        for problem in &pass.problems {
            tracing::warn!(folder = %folder.display(), "manifest left out: {problem}");
        }
        for name in pass.written.iter().chain(&pass.removed) {
            tracing::debug!(folder = %folder.display(), file = %name, "controllers changed a manifest");
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            event = woken.recv() => if event.is_none() { return Ok(()) },
            changed = dead.changed(), if dead_open => dead_open = changed.is_ok(),
        }
    }
}

/// Reads and writes of other files than manifests (temporary ones above all) need no pass; nor does reading.
fn matters(event: &notify::Event) -> bool {
    let reads = matches!(event.kind, notify::EventKind::Access(_));
    let manifest =
        |path: &PathBuf| path.file_name().and_then(|name| name.to_str()).is_some_and(folder::is_manifest);
    event.need_rescan() || (!reads && event.paths.iter().any(manifest))
}

/// The controllers of one folder, without the watching: a pass at a time.
#[derive(Debug)]
pub struct Controller {
    folder: Folder,
}

impl Controller {
    /// Controllers of this folder.
    pub fn new(folder: &Path) -> Self {
        Self { folder: Folder::new(folder) }
    }

    /// Reads what changed, and brings slices and node conditions in step. Writes nothing that is right already.
    ///
    /// # Errors
    /// The folder cannot be read or written.
    pub fn pass(&mut self, dead: &BTreeSet<String>) -> Result<Pass, ControllerError> {
        let folder = self.folder.path().to_owned();
        let failed = |operation| {
            let folder = folder.clone();
            move |source| ControllerError::Folder { operation, folder, source }
        };
        let mut pass =
            Pass { problems: self.folder.scan().map_err(failed("listing files"))?, ..Pass::default() };
        for (name, text) in self.marked_nodes(dead, &mut pass.problems) {
            if self.folder.write(&name, &text).map_err(failed("writing a Node"))? {
                pass.written.push(name);
            }
        }
        let wanted = self.wanted_slices(dead, &mut pass.problems);
        for (name, text) in &wanted {
            if self.folder.write(name, text).map_err(failed("writing an EndpointSlice"))? {
                pass.written.push(name.clone());
            }
        }
        let stale: Vec<String> = self
            .folder
            .names()
            .filter(|name| !wanted.contains_key(*name) && self.is_ours(name))
            .map(str::to_owned)
            .collect();
        for name in stale {
            self.folder.remove(&name).map_err(failed("removing an EndpointSlice"))?;
            pass.removed.push(name);
        }
        Ok(pass)
    }

    /// Whether a file holds nothing but slices these controllers made.
    fn is_ours(&self, name: &str) -> bool {
        let documents = self.folder.file(name);
        !documents.is_empty()
            && documents.iter().all(|document| {
                let label =
                    document.pointer("/metadata/labels").and_then(|labels| labels.get(MANAGED_BY_LABEL));
                kind(document) == "EndpointSlice" && label.and_then(Value::as_str) == Some(MANAGED_BY)
            })
    }

    /// The files of slices that should be there, by name.
    fn wanted_slices(&self, dead: &BTreeSet<String>, problems: &mut Vec<String>) -> BTreeMap<String, String> {
        let (mut services, mut pods) = (Vec::new(), Vec::new());
        let mut not_ready_nodes = dead.clone();
        for (file, document) in self.folder.documents() {
            match kind(document) {
                "Service" => services.extend(typed::<Service>(file, document, problems)),
                "Pod" => pods.extend(typed::<Pod>(file, document, problems)),
                "Node" => not_ready_nodes.extend(not_ready(document)),
                _ => {}
            }
        }
        // A node that the lab knows to run again is believed over what its file still says.
        not_ready_nodes.retain(|node| dead.contains(node) || !self.just_marked(node));
        let pods: Vec<&Pod> = pods.iter().collect();
        let mut files: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for service in &services {
            for slice in slices(service, &pods, &not_ready_nodes) {
                let namespace = service.metadata.namespace.as_deref().unwrap_or("default");
                let name = service.metadata.name.as_deref().unwrap_or_default();
                let family = slice.address_type.to_ascii_lowercase();
                match serde_saphyr::to_string(&slice) {
                    Ok(text) => files
                        .entry(format!("endpointslice-{namespace}-{name}-{family}.yaml"))
                        .or_default()
                        .push(text),
                    Err(error) => problems.push(format!("slice of {namespace}/{name}: {error}")),
                }
            }
        }
        files.into_iter().map(|(name, documents)| (name, documents.join("---\n"))).collect()
    }

    /// Whether the NotReady in the node's file is of our making (and so is about to be taken back).
    fn just_marked(&self, node: &str) -> bool {
        self.folder.documents().any(|(_, document)| nodes::marked_by_lab(document) == Some(node))
    }

    /// Files of Nodes whose Ready condition has to change, with their new text.
    fn marked_nodes(&self, dead: &BTreeSet<String>, problems: &mut Vec<String>) -> Vec<(String, String)> {
        let mut files = Vec::new();
        for name in self.folder.names() {
            let mut documents = self.folder.file(name).to_vec();
            let mut changed = false;
            for document in documents.iter_mut().filter(|document| kind(document) == "Node") {
                let node =
                    document.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
                changed |= mark(document, dead.contains(&node));
            }
            if !changed {
                continue;
            }
            match documents.iter().map(serde_saphyr::to_string).collect::<Result<Vec<_>, _>>() {
                Ok(texts) => files.push((name.to_owned(), texts.join("---\n"))),
                Err(error) => problems.push(format!("{name}: {error}")),
            }
        }
        files
    }
}

fn kind(document: &Value) -> &str {
    document.get("kind").and_then(Value::as_str).unwrap_or_default()
}

/// The document as a Kubernetes type; a wrong one is a problem of its own. Names become file names and are checked.
fn typed<T: serde::de::DeserializeOwned>(
    file: &str,
    document: &Value,
    problems: &mut Vec<String>,
) -> Option<T> {
    let plain = |field: &str, optional: bool| {
        let text = document.pointer(field).and_then(Value::as_str);
        text.map_or(optional, |text| {
            !text.is_empty()
                && text.len() <= 253
                && text
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.'))
                && !text.starts_with('.')
        })
    };
    if !plain("/metadata/name", false) || !plain("/metadata/namespace", true) {
        let message = "metadata.name and metadata.namespace must be lower case letters, digits, '-' and '.'";
        problems.push(format!("{file}: {}: {message}", kind(document)));
        return None;
    }
    match serde_json::from_value(document.clone()) {
        Ok(typed) => Some(typed),
        Err(error) => {
            problems.push(format!("{file}: {}: {error}", kind(document)));
            None
        }
    }
}

#[cfg(test)]
mod tests;
