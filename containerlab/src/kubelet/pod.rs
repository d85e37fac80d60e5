//! The life of one pod on its node.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tombolo_netlink::{NetNs, Netlink};

use super::cni::{self, Attachment};
use super::manifests::{ContainerSpec, EnvValue, PodSpec, expand, hosts_file, resolv_conf};
use super::status::{self, Status};
use super::{Shared, probe};
use crate::init::command::command;
use crate::process::Exit;
use crate::runner::cgroup;
use crate::runner::exec::pod_command;
use crate::runner::plan::Restart;
use crate::runner::protocol::PodState;

/// The first and the longest pause between two tries of something that failed.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How often a container is asked until it is ready for the first time.
const EAGER_PERIOD: Duration = Duration::from_millis(200);
/// Where hosts files are, in the node.
const HOSTS_FOLDER: &str = "/run/tombolo-lab/hosts";
/// Where their `resolv.conf` files are, in the node.
const RESOLV_FOLDER: &str = "/run/tombolo-lab/resolv";

/// A running pod's handle.
#[derive(Debug)]
pub(super) struct Handle {
    spec: PodSpec,
    shared: Arc<Shared>,
    stop: CancellationToken,
    /// Ends when the pod is gone; a pod that takes its place waits for it.
    gone: CancellationToken,
}

impl Handle {
    /// Ends the pod; its task cleans up.
    pub(super) fn end(&self) {
        self.stop.cancel();
    }

    /// Replaces the pod if its specification has changed.
    pub(super) fn change(&mut self, spec: PodSpec) {
        if spec == self.spec {
            return;
        }
        tracing::info!(pod = %spec.name, "the pod's manifest has changed: it is replaced");
        self.stop.cancel();
        *self = start_after(Arc::clone(&self.shared), spec, Some(self.gone.clone()));
    }
}

/// Starts a pod.
pub(super) fn start(shared: Arc<Shared>, spec: PodSpec) -> Handle {
    // A pod of that name that was removed a moment ago may still be going.
    start_after(shared, spec, None)
}

fn start_after(shared: Arc<Shared>, spec: PodSpec, before: Option<CancellationToken>) -> Handle {
    let (stop, gone) = (CancellationToken::new(), CancellationToken::new());
    let handle =
        Handle { spec: spec.clone(), shared: Arc::clone(&shared), stop: stop.clone(), gone: gone.clone() };
    tokio::spawn(async move {
        let _gone = gone.drop_guard();
        if let Some(before) = before {
            before.cancelled().await;
        }
        Life::new(shared, spec, stop).run().await;
    });
    handle
}

/// One pod, from its namespace to its removal.
struct Life {
    shared: Arc<Shared>,
    spec: Arc<PodSpec>,
    stop: CancellationToken,
    attachment: Attachment,
    /// Held while ADD runs.
    attaching: Arc<tokio::sync::Mutex<()>>,
    cgroup: PathBuf,
    hosts: PathBuf,
    resolv: PathBuf,
    addresses: Vec<IpAddr>,
    status: Status,
}

impl Life {
    fn new(shared: Arc<Shared>, spec: PodSpec, stop: CancellationToken) -> Self {
        let id = sandbox_id(&spec);
        let attachment = Attachment {
            netns: Path::new("/run/netns").join(format!("cni-{}", id.get(..32).unwrap_or(&id))),
            container_id: id.clone(),
            namespace: spec.namespace.clone(),
            name: spec.name.clone(),
            uid: spec.uid.clone(),
            result: None,
        };
        Self {
            cgroup: Path::new("/sys/fs/cgroup/pods").join(id.get(..32).unwrap_or(&id)),
            hosts: Path::new(HOSTS_FOLDER).join(id.get(..32).unwrap_or(&id)),
            resolv: Path::new(RESOLV_FOLDER).join(id.get(..32).unwrap_or(&id)),
            spec: Arc::new(spec),
            shared,
            stop,
            attachment,
            attaching: Arc::default(),
            addresses: Vec::new(),
            status: Status { phase: "Pending", ..Status::default() },
        }
    }

    async fn run(mut self) {
        self.publish().await;
        if let Some(refused) = self.spec.refused.clone() {
            self.report(Some(refused)).await;
            self.stop.cancelled().await;
            self.forget();
            return;
        }
        let stop = self.stop.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.live() => {}
        }
        self.tear_down().await;
        self.forget();
    }

    /// Ends only when the containers have ended for good and nothing is left but to be removed.
    async fn live(&mut self) {
        let mut pause = PAUSES.0;
        while let Err(reason) = self.sandbox().await {
            self.report(Some(reason)).await;
            sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
        let mut pause = PAUSES.0;
        loop {
            match self.add().await {
                Ok(addresses) => {
                    self.addresses = addresses;
                    break;
                }
                Err(error) => self.report(Some(error)).await,
            }
            // As runtimes do: what a failed ADD has left is taken away before the next.
            if let Err(error) = cni::del(&self.shared.reaper, &self.attachment).await {
                tracing::debug!(pod = %self.spec.name, %error, "DEL after a failed ADD");
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
        self.status.addresses.clone_from(&self.addresses);
        self.write_hosts();
        self.write_resolv();
        tracing::info!(pod = %self.spec.name, addresses = ?self.addresses, "attached");
        self.publish().await;
        self.containers().await;
        self.stop.cancelled().await;
    }

    /// One ADD, and the CHECK that it has done what it says. Runtimes may ask CHECK at any time after ADD has succeeded
    /// (CNI specification 1.0, section 2); asked here, for every pod of every lab, it is an answer the plugins have to
    /// give and not only code that could. ADD is never broken off: a pod that is removed meanwhile waits for its end
    /// before DEL.
    async fn add(&mut self) -> Result<Vec<IpAddr>, String> {
        let busy = Arc::clone(&self.attaching).lock_owned().await;
        let (reaper, mut attachment) = (self.shared.reaper.clone(), self.attachment.clone());
        let call = tokio::spawn(async move {
            let added = cni::add(&reaper, &mut attachment).await;
            drop(busy);
            (added, attachment)
        });
        let (added, attachment) = call.await.map_err(|error| error.to_string())?;
        self.attachment = attachment;
        let addresses = added.map_err(|error| error.to_string())?;
        cni::check(&self.shared.reaper, &self.attachment).await.map_err(|error| error.to_string())?;
        Ok(addresses)
    }

    /// The pod's cgroup and network namespace; fine if they are there.
    async fn sandbox(&self) -> Result<(), String> {
        std::fs::create_dir_all(&self.cgroup).map_err(|error| format!("make its cgroup: {error}"))?;
        if self.attachment.netns.exists() {
            return Ok(());
        }
        let namespace = NetNs::create(&self.attachment.netns).map_err(|error| error.to_string())?;
        let netlink = Netlink::in_namespace(&namespace).map_err(|error| error.to_string())?;
        let loopback = netlink.link("lo").await.map_err(|error| error.to_string())?;
        netlink.set_up(loopback.index).await.map_err(|error| error.to_string())?;
        // What container runtimes set in every pod: pings and low ports without privileges.
        for (key, value) in
            [("net/ipv4/ping_group_range", "0 2147483647"), ("net/ipv4/ip_unprivileged_port_start", "0")]
        {
            netlink.set_sysctl(key, value).await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Runs the init containers, then all others until they have ended for good.
    async fn containers(&mut self) {
        for container in &self.spec.clone().init_containers {
            let mut pause = PAUSES.0;
            loop {
                match self.run_once(container).await {
                    Ok(Exit::Code(0)) => break,
                    Ok(exit) => {
                        self.report(Some(format!("init container {}: {exit}", container.name))).await;
                    }
                    Err(error) => {
                        self.report(Some(format!("init container {}: {error}", container.name))).await;
                    }
                }
                sleep(pause).await;
                pause = (pause * 2).min(PAUSES.1);
            }
        }
        let (tell, mut told) = watch::channel(vec![ContainerState::default(); self.spec.containers.len()]);
        let tell = Arc::new(tell);
        let mut tasks = JoinSet::new();
        for (index, container) in self.spec.containers.iter().enumerate() {
            tasks.spawn(self.container(index, container.clone()).supervise(Arc::clone(&tell)));
        }
        drop(tell);
        let mut services = self.shared.services.subscribe();
        loop {
            let states = told.borrow_and_update().clone();
            self.update(&states).await;
            tokio::select! {
                changed = told.changed() => if changed.is_err() {
                    // All have ended for good.
                    let states = told.borrow().clone();
                    self.update(&states).await;
                    return;
                },
                Ok(()) = services.changed() => self.write_hosts(),
            }
        }
    }

    fn container(&self, index: usize, spec: ContainerSpec) -> ContainerTask {
        ContainerTask {
            shared: Arc::clone(&self.shared),
            pod: self.state(),
            index,
            environment: self.environment(&spec),
            address: self.addresses.first().copied(),
            restart: self.spec.restart,
            spec,
        }
    }

    async fn run_once(&self, container: &ContainerSpec) -> std::io::Result<Exit> {
        let task = self.container(0, container.clone());
        Ok(task.spawn()?.wait().await)
    }

    async fn update(&mut self, states: &[ContainerState]) {
        let all = |what: fn(&ContainerState) -> bool| states.iter().all(what);
        let over = all(|state| state.ended.is_some());
        self.status.phase = match over {
            false if states.iter().any(|state| state.running || state.restarts > 0) => "Running",
            false => "Pending",
            true if all(|state| state.ended == Some(true)) => "Succeeded",
            true => "Failed",
        };
        self.status.ready = !over && all(|state| state.ready);
        let named = || self.spec.containers.iter().zip(states);
        self.status.containers = named()
            .map(|(spec, state)| (spec.name.clone(), state.running, state.ready, state.restarts))
            .collect();
        self.status.reason = named().find_map(|(spec, state)| {
            state.trouble.as_ref().map(|trouble| format!("container {}: {trouble}", spec.name))
        });
        self.publish().await;
    }

    /// The container's variables, with fields of the pod resolved.
    fn environment(&self, container: &ContainerSpec) -> BTreeMap<String, String> {
        let mut environment = BTreeMap::from([("HOSTNAME".to_owned(), self.spec.name.clone())]);
        for (name, value) in &container.env {
            let text = match value {
                EnvValue::Text(text) => expand(text, &environment),
                EnvValue::Field(path) => self.field(path),
            };
            environment.insert(name.clone(), text);
        }
        environment
    }

    fn field(&self, path: &str) -> String {
        let all: Vec<String> = self.addresses.iter().map(IpAddr::to_string).collect();
        match path {
            "metadata.name" => self.spec.name.clone(),
            "metadata.namespace" => self.spec.namespace.clone(),
            "metadata.uid" => self.spec.uid.clone(),
            "spec.nodeName" => self.shared.node.clone(),
            "status.podIP" => all.first().cloned().unwrap_or_default(),
            "status.podIPs" => all.join(","),
            other => {
                tracing::warn!(pod = %self.spec.name, field = other, "a field the lab does not know; the variable is empty");
                String::new()
            }
        }
    }

    fn write_hosts(&self) {
        let text = hosts_file(&self.spec, &self.addresses, &self.shared.services.borrow());
        // Written in place: the pod has this very file bound to /etc/hosts.
        let written = std::fs::create_dir_all(HOSTS_FOLDER).and_then(|()| std::fs::write(&self.hosts, text));
        if let Err(error) = written {
            tracing::warn!(pod = %self.spec.name, %error, "the pod's hosts file cannot be written");
        }
    }

    fn write_resolv(&self) {
        let text = resolv_conf(&self.spec, self.shared.dns.as_ref());
        let written =
            std::fs::create_dir_all(RESOLV_FOLDER).and_then(|()| std::fs::write(&self.resolv, text));
        if let Err(error) = written {
            tracing::warn!(pod = %self.spec.name, %error, "the pod's resolv.conf cannot be written");
        }
    }

    fn state(&self) -> PodState {
        PodState {
            namespace: self.spec.namespace.clone(),
            name: self.spec.name.clone(),
            phase: self.status.phase.to_owned(),
            ready: self.status.ready,
            addresses: self.addresses.iter().map(IpAddr::to_string).collect(),
            reason: self.status.reason.clone(),
            netns: self.attachment.netns.display().to_string(),
            cgroup: self.cgroup.display().to_string(),
            hosts: self.hosts.display().to_string(),
            resolv: self.resolv.display().to_string(),
        }
    }

    async fn report(&mut self, reason: Option<String>) {
        if reason != self.status.reason {
            tracing::warn!(pod = %self.spec.name, reason = reason.as_deref().unwrap_or_default(), "pod waits");
        }
        self.status.reason = reason;
        self.publish().await;
    }

    async fn publish(&self) {
        let key = (self.spec.namespace.clone(), self.spec.name.clone());
        let state = self.state();
        self.shared.states.lock().unwrap_or_else(PoisonError::into_inner).insert(key, state);
        status::write(&self.shared, &self.spec, &self.status).await;
    }

    fn forget(&self) {
        let key = (self.spec.namespace.clone(), self.spec.name.clone());
        let netns = self.attachment.netns.display().to_string();
        let mut states = self.shared.states.lock().unwrap_or_else(PoisonError::into_inner);
        // One that has taken its place meanwhile stays.
        if states.get(&key).is_some_and(|state| state.netns == netns) {
            states.remove(&key);
        }
    }

    /// Ends the containers, detaches the pod, removes its namespace and cgroup.
    async fn tear_down(&self) {
        let (cgroup, grace) = (self.cgroup.clone(), self.spec.grace);
        let ended = tokio::task::spawn_blocking(move || end_processes(&cgroup, grace)).await;
        if let Ok(Err(error)) = ended {
            tracing::warn!(pod = %self.spec.name, %error, "the pod's cgroup is not empty");
        }
        drop(self.attaching.lock().await);
        detach(&self.shared, &self.attachment).await;
        if let Err(error) = NetNs::remove(&self.attachment.netns) {
            tracing::warn!(pod = %self.spec.name, %error, "the pod's namespace is left");
        }
        for file in [&self.hosts, &self.resolv] {
            if let Err(error) = std::fs::remove_file(file) {
                tracing::debug!(pod = %self.spec.name, %error, file = %file.display(), "no file to remove");
            }
        }
        tracing::info!(pod = %self.spec.name, "removed");
    }
}

/// CNI DEL until it succeeds.
pub(super) async fn detach(shared: &Shared, attachment: &Attachment) {
    let mut pause = PAUSES.0;
    while let Err(error) = cni::del(&shared.reaper, attachment).await {
        if pause == PAUSES.0 {
            tracing::warn!(pod = %attachment.name, %error, "cannot be detached; it is tried again");
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// SIGTERM, then after the grace SIGKILL, to all in a cgroup; then it is removed.
fn end_processes(cgroup: &Path, grace: Duration) -> std::io::Result<()> {
    if !cgroup.exists() {
        return Ok(());
    }
    for line in std::fs::read_to_string(cgroup.join("cgroup.procs"))?.lines() {
        if let Ok(pid) = line.parse() {
            // One that has ended meanwhile needs no signal.
            kill(Pid::from_raw(pid), Signal::SIGTERM).ok();
        }
    }
    if cgroup::wait_empty(cgroup, grace).is_err() {
        cgroup::kill(cgroup)?;
        cgroup::wait_empty(cgroup, Duration::from_secs(5))?;
    }
    cgroup::remove(cgroup)
}

/// An id as container runtimes give: 64 hex digits, another one for each life of a pod.
fn sandbox_id(spec: &PodSpec) -> String {
    use sha2::{Digest, Sha256};
    use std::fmt::Write;
    static LIVES: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let life = LIVES.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let now = std::time::SystemTime::now();
    let mut id = String::new();
    for byte in Sha256::digest(format!("{}/{}/{}/{life}/{now:?}", spec.namespace, spec.name, spec.uid)) {
        // Writing to a String cannot fail.
        write!(id, "{byte:02x}").ok();
    }
    id
}

/// What one container does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ContainerState {
    running: bool,
    ready: bool,
    restarts: u32,
    /// Ended for good, and whether with success.
    ended: Option<bool>,
    trouble: Option<String>,
}

/// One container's task.
struct ContainerTask {
    shared: Arc<Shared>,
    pod: PodState,
    index: usize,
    spec: ContainerSpec,
    environment: BTreeMap<String, String>,
    address: Option<IpAddr>,
    restart: Restart,
}

impl ContainerTask {
    fn spawn(&self) -> std::io::Result<crate::process::Running> {
        let argv: Vec<String> = self.spec.argv.iter().map(|word| expand(word, &self.environment)).collect();
        let log = self.shared.logs.append(&self.pod.namespace, &self.pod.name)?;
        let mut process = command(&pod_command(&self.pod, &argv), &self.environment, &log)?;
        self.shared.reaper.spawn(&mut process)
    }

    /// Runs the container, again and again as its pod wants.
    async fn supervise(self, tell: Arc<watch::Sender<Vec<ContainerState>>>) {
        let set = |change: &dyn Fn(&mut ContainerState)| {
            tell.send_if_modified(|states| {
                let Some(state) = states.get_mut(self.index) else { return false };
                let before = state.clone();
                change(state);
                *state != before
            });
        };
        let mut pause = PAUSES.0;
        loop {
            let began = tokio::time::Instant::now();
            let ended = match self.spawn() {
                Ok(mut running) => {
                    set(&|state| {
                        state.running = true;
                        state.ready = self.spec.readiness.is_none();
                        state.trouble = None;
                    });
                    let ready = |yes: bool| set(&|state| state.ready = yes);
                    tokio::select! {
                        exit = running.wait() => Ok(exit),
                        () = self.watch_readiness(&ready) => Err("its readiness is not watched any more".to_owned()),
                    }
                }
                Err(error) => Err(error.to_string()),
            };
            let success = ended.as_ref().is_ok_and(|exit| exit.success());
            let again = self.restart.again(success);
            let trouble = match &ended {
                Ok(exit) => exit.to_string(),
                Err(error) => error.clone(),
            };
            tracing::warn!(pod = %self.pod.name, container = %self.spec.name, %trouble, again, "container ended");
            set(&|state| {
                state.running = false;
                state.ready = false;
                state.trouble = (!success).then(|| trouble.clone());
                if again {
                    state.restarts += 1;
                } else {
                    state.ended = Some(success);
                }
            });
            if !again {
                return;
            }
            if began.elapsed() > Duration::from_secs(10) {
                pause = PAUSES.0;
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Asks the readiness probe for as long as the container runs; never ends.
    async fn watch_readiness(&self, ready: &(dyn Fn(bool) + Sync)) {
        let Some(readiness) = &self.spec.readiness else {
            return std::future::pending().await;
        };
        sleep(readiness.initial_delay).await;
        let (mut failures, mut first) = (0, true);
        loop {
            if probe::ask(&self.shared.reaper, readiness, &self.pod, self.address).await {
                ready(true);
                (failures, first) = (0, false);
            } else {
                failures += 1;
                if failures >= readiness.failures {
                    ready(false);
                }
            }
            sleep(if first { EAGER_PERIOD.min(readiness.period) } else { readiness.period }).await;
        }
    }
}
