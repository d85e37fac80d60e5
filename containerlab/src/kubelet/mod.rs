//! The kubelet's part of a node's init: runs the pods that the manifests place on the node.
//!
//! The cluster's manifest folder is watched. Each pod of the node has a task of its own ([`pod`]): network namespace
//! and cgroup, CNI ADD until it succeeds, containers, readiness, status written into the pod's own manifest, CNI DEL
//! when the manifest goes. Nothing of it depends on the agent once ADD has succeeded: pods go on while it is dead.

mod cni;
mod logs;
mod manifests;
mod pod;
mod probe;
mod status;

pub use logs::LogFolder;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use notify::{RecursiveMode, Watcher};
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use crate::controllers::folder::{Folder, is_manifest};
use crate::process::Reaper;
use crate::runner::plan::MANIFESTS_IN_NODE;
use crate::runner::protocol::PodState;
use crate::settings::Dns;
use manifests::{PodKey, PodSpec, ServiceName};

/// What all pods of a node share.
#[derive(Debug)]
struct Shared {
    node: String,
    reaper: Reaper,
    logs: LogFolder,
    /// What `inspect` shows.
    states: Mutex<BTreeMap<PodKey, PodState>>,
    /// What pods ask for names; without it they have hosts files only.
    dns: Option<Dns>,
    /// The services' names, for hosts files.
    services: watch::Sender<Vec<ServiceName>>,
    /// One writer of manifests at a time.
    writing: tokio::sync::Mutex<()>,
}

/// Runs the pods of one node.
#[derive(Clone, Debug)]
pub struct Kubelet {
    shared: Arc<Shared>,
}

impl Kubelet {
    /// A kubelet that does nothing before [`Kubelet::start`].
    #[must_use]
    pub fn new(node: String, dns: Option<Dns>, reaper: Reaper, logs: LogFolder) -> Self {
        let shared = Shared {
            node,
            dns,
            reaper,
            logs,
            states: Mutex::default(),
            services: watch::channel(Vec::new()).0,
            writing: tokio::sync::Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Starts to run pods, in a task of its own.
    pub fn start(&self) {
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            if let Err(error) = run(&shared).await {
                tracing::error!(%error, folder = MANIFESTS_IN_NODE, "the kubelet stopped: the folder cannot be watched");
            }
        });
    }

    /// Asks the CNI plugins whether the pods are attached as they should be; answers which were asked about.
    ///
    /// # Errors
    /// What the plugins say of the first pod that is not.
    pub async fn check(&self) -> Result<Vec<String>, String> {
        let mut asked = Vec::new();
        for attachment in cni::attached() {
            // What an earlier life has left is no pod of now.
            if !attachment.netns.exists() {
                continue;
            }
            let name = format!("{}/{}", attachment.namespace, attachment.name);
            cni::check(&self.shared.reaper, &attachment)
                .await
                .map_err(|error| format!("pod {name}: {error}"))?;
            asked.push(name);
        }
        Ok(asked)
    }

    /// The pods.
    #[must_use]
    pub fn state(&self) -> Vec<PodState> {
        self.shared.states.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

async fn run(shared: &Arc<Shared>) -> Result<(), notify::Error> {
    let place = Path::new(MANIFESTS_IN_NODE);
    // One slot: a pass looks at everything.
    let (wake, mut woken) = mpsc::channel(1);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let matters = match &event {
            Err(_) => true,
            Ok(event) => {
                let manifest = |name: &std::ffi::OsStr| name.to_str().is_some_and(is_manifest);
                let named = event.paths.iter().any(|path| path.file_name().is_some_and(manifest));
                event.need_rescan() || (named && !matches!(event.kind, notify::EventKind::Access(_)))
            }
        };
        if matters {
            // Full: a pass is due anyway.
            wake.try_send(()).ok();
        }
    })?;
    watcher.watch(place, RecursiveMode::NonRecursive)?;
    detach_left_overs(shared).await;
    let mut folder = Folder::new(place);
    let mut running: BTreeMap<PodKey, pod::Handle> = BTreeMap::new();
    loop {
        pass(shared, &mut folder, &mut running);
        if woken.recv().await.is_none() {
            return Ok(());
        }
    }
}

/// Reads what changed and starts, replaces and ends pods accordingly.
fn pass(shared: &Arc<Shared>, folder: &mut Folder, running: &mut BTreeMap<PodKey, pod::Handle>) {
    let mut problems = match folder.scan() {
        Ok(problems) => problems,
        Err(error) => {
            tracing::warn!(%error, "the manifest folder cannot be read; pods go on as they are");
            return;
        }
    };
    let documents = || folder.documents();
    // Where there is DNS, nobody needs them.
    let services = if shared.dns.is_some() { Vec::new() } else { manifests::services(documents()) };
    shared.services.send_if_modified(|old| {
        let changed = *old != services;
        *old = services;
        changed
    });
    let wanted = manifests::pods(documents(), &shared.node, &mut problems);
    for problem in problems {
        tracing::warn!("manifest left out: {problem}");
    }
    running.retain(|key, handle| {
        let stays = wanted.contains_key(key);
        if !stays {
            handle.end();
        }
        stays
    });
    for (key, spec) in wanted {
        match running.get_mut(&key) {
            Some(handle) => handle.change(spec),
            None => {
                running.insert(key, pod::start(Arc::clone(shared), spec));
            }
        }
    }
}

/// Detaches what an earlier life of this node attached: its namespaces are gone, the plugin's records are not.
async fn detach_left_overs(shared: &Arc<Shared>) {
    for attachment in cni::attached() {
        let shared = Arc::clone(shared);
        tokio::spawn(async move { pod::detach(&shared, &attachment).await });
    }
}

/// The document of a pod in a file's documents.
fn is_pod(document: &Value, spec: &PodSpec) -> bool {
    let word = |pointer: &str| document.pointer(pointer).and_then(Value::as_str);
    word("/kind") == Some("Pod")
        && word("/metadata/name") == Some(&spec.name)
        && word("/metadata/namespace").unwrap_or("default") == spec.namespace
}
