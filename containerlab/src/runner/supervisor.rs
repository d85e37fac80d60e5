//! The supervisor: PID 1 of the lab's PID namespace, owner of the enclosing network namespace. It starts the
//! nodes' inits, joins them by links, runs the controllers, and serves the command line. When it ends, the kernel
//! ends everything in the lab.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use nix::mount::{MsFlags, mount};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, mpsc};

use super::cgroup;
use super::clusters::Controllers;
use super::deploy::{Fabric, Failure, RunningNode};
use super::layout::Layout;
use super::plan::Plan;
use super::protocol::{Connection, Event, LabState, NodeAction, NodeState, Request};
use super::{power, rebind};
use crate::init::READY;
use crate::process::Reaper;

/// Runs the supervisor of the lab in `lab_dir`; returns when the lab was taken down.
///
/// Must be called before any thread was started, in fresh mount, PID and network namespaces.
///
/// # Errors
/// The step of the start that failed.
pub fn run(lab_dir: &Path) -> io::Result<()> {
    let layout = Layout::new(lab_dir);
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none)?;
    let cgroup = cgroup::mount_tree(&layout)?;
    std::fs::create_dir_all(layout.disks())?;
    // Nodes write here: fast, and gone with the supervisor. Overlay refuses an upper directory on an overlay,
    // which the host's root may be.
    mount(Some("disks"), &layout.disks(), Some("tmpfs"), MsFlags::empty(), Some("mode=0755,size=75%"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve(layout, cgroup))
}

/// What the supervisor knows.
struct Supervisor {
    fabric: Fabric,
    lab: Mutex<Lab>,
    /// Says that the lab is down and the process is to end.
    ended: mpsc::Sender<()>,
}

/// What is deployed.
#[derive(Default)]
pub(super) struct Lab {
    /// The plan that runs.
    pub(super) plan: Option<Plan>,
    /// The nodes that are on or were.
    pub(super) nodes: BTreeMap<String, RunningNode>,
    /// What keeps the clusters' manifests in step.
    controllers: Option<Controllers>,
}

async fn serve(layout: Layout, cgroup: std::path::PathBuf) -> io::Result<()> {
    let reaper = Reaper::start()?;
    let listener = UnixListener::bind(layout.supervisor_socket())?;
    let (ended, mut end) = mpsc::channel(1);
    let fabric = Fabric::new(layout, cgroup, reaper)?;
    let supervisor = Arc::new(Supervisor { fabric, lab: Mutex::default(), ended });
    {
        let mut out = io::stdout().lock();
        writeln!(out, "{READY}")?;
        out.flush()?;
    }
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted?.0,
            _ = end.recv() => return Ok(()),
        };
        let supervisor = Arc::clone(&supervisor);
        tokio::spawn(async move {
            if let Err(error) = supervisor.talk(stream).await {
                tracing::debug!(%error, "a connection of the command line ended");
            }
        });
    }
}

impl Supervisor {
    async fn talk(&self, stream: UnixStream) -> io::Result<()> {
        let mut connection = Connection::new(stream);
        let Some(request) = connection.receive::<Request>().await? else { return Ok(()) };
        match request {
            Request::Up(plan) => self.up(*plan, &mut connection).await,
            Request::Down => {
                let mut lab = self.lab.lock().await;
                lab.controllers = None;
                self.fabric.end_all(&mut lab.nodes).await;
                let said = connection.send(&Event::Done("down".to_owned())).await;
                self.finish().await;
                said
            }
            Request::Inspect => {
                let state = self.state().await;
                connection.send(&Event::State(state)).await
            }
            Request::Node { node, action } => {
                let event = match self.act(&node, action).await {
                    Ok(done) => Event::Done(done),
                    Err(failure) => failure.into_event(),
                };
                connection.send(&event).await
            }
        }
    }

    async fn finish(&self) {
        // A full channel means that the end was said already.
        self.ended.send(()).await.ok();
    }

    async fn up(&self, plan: Plan, connection: &mut Connection) -> io::Result<()> {
        let mut lab = self.lab.lock().await;
        let (events, mut receiver) = mpsc::channel(256);
        let fresh = lab.plan.is_none();
        let gone;
        let outcome = {
            let work = async {
                let events = events;
                if fresh {
                    deploy(&self.fabric, &mut lab, plan, &events).await
                } else {
                    let done = rebind::apply(&self.fabric, &mut lab, plan, &events).await;
                    if let Some(plan) = &lab.plan {
                        // Nodes that were switched on have new namespaces, also if another one failed.
                        record(&self.fabric, &lab, plan);
                    }
                    done
                }
            };
            tokio::pin!(work);
            loop {
                tokio::select! {
                    Some(event) = receiver.recv() => connection.send(&event).await.unwrap_or_else(|error| {
                        tracing::debug!(%error, "nobody reads the progress");
                    }),
                    outcome = &mut work => {
                        gone = false;
                        break outcome;
                    }
                    () = connection.hung_up() => {
                        gone = true;
                        break Err(Failure::new("the command line", "went away before the lab was up"));
                    }
                }
            }
        };
        while let Ok(event) = receiver.try_recv() {
            if connection.send(&event).await.is_err() {
                break;
            }
        }
        let failed = outcome.is_err();
        let event = match outcome {
            Ok(event) => event,
            Err(failure) => failure.into_event(),
        };
        if failed && fresh {
            tracing::warn!(?event, "the lab did not come up; undoing");
            lab.controllers = None;
            self.fabric.end_all(&mut lab.nodes).await;
        }
        let said = if gone { Ok(()) } else { connection.send(&event).await };
        if failed && fresh {
            self.finish().await;
        }
        said
    }

    async fn act(&self, node: &str, action: NodeAction) -> Result<String, Failure> {
        let mut lab = self.lab.lock().await;
        let lab = &mut *lab;
        let Some(plan) = &lab.plan else { return Err(Failure::new(node, "no lab is deployed")) };
        let Some(running) = lab.nodes.get_mut(node) else {
            return Err(Failure::new(node, "there is no such node in this lab"));
        };
        let done = power::act(&self.fabric, plan, running, action).await?;
        if action == NodeAction::PowerOn {
            record(&self.fabric, lab, plan);
        }
        Ok(done)
    }

    async fn state(&self) -> LabState {
        let lab = self.lab.lock().await;
        let mut state = LabState { supervisor_pid: 1, ..LabState::default() };
        let Some(plan) = &lab.plan else { return state };
        state.name.clone_from(&plan.name);
        state.file = plan.file.display().to_string();
        state.lab_dir = plan.lab_dir.display().to_string();
        for (name, running) in &lab.nodes {
            let node = if running.is_on() {
                running.state(&self.fabric).await.unwrap_or_else(|failure| NodeState {
                    state: format!("failed: {failure}"),
                    ..NodeState::default()
                })
            } else {
                NodeState { state: running.why_off().to_owned(), ..NodeState::default() }
            };
            state.nodes.insert(name.clone(), node);
        }
        state
    }
}

async fn deploy(
    fabric: &Fabric,
    lab: &mut Lab,
    plan: Plan,
    events: &mpsc::Sender<Event>,
) -> Result<Event, Failure> {
    // Slices are written while the nodes come up.
    lab.controllers = Some(Controllers::start(&plan.clusters, &fabric.dead));
    fabric.deploy(&plan, &mut lab.nodes, events).await?;
    let mut text = format!("{} nodes, {} links", plan.nodes.len(), plan.links.len());
    if !plan.skipped.is_empty() {
        text.push_str(&format!("; not deployed: {}", plan.skipped.join(", ")));
    }
    record(fabric, lab, &plan);
    lab.plan = Some(plan);
    Ok(Event::Done(text))
}

/// Writes down what `down` and the residue check want to know later, beside what was written before: a node that was
/// off had namespaces too.
fn record(fabric: &Fabric, lab: &Lab, plan: &Plan) {
    let mut inodes: std::collections::BTreeSet<String> = std::fs::read_to_string(fabric.layout.namespaces())
        .unwrap_or_default()
        .lines()
        .map(str::to_owned)
        .collect();
    let pids = lab.nodes.values().filter_map(RunningNode::pid).map(nix::unistd::Pid::as_raw);
    for pid in pids.chain([1]) {
        // The supervisor shares the other kinds with the host.
        let kinds: &[&str] =
            if pid == 1 { &["net", "mnt", "pid"] } else { &["net", "mnt", "pid", "uts", "ipc", "cgroup"] };
        for kind in kinds {
            if let Ok(meta) = std::fs::metadata(format!("/proc/{pid}/ns/{kind}")) {
                inodes.insert(format!("{kind} {}", meta.ino()));
            }
        }
    }
    let write = || -> io::Result<()> {
        let text: String = inodes.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(fabric.layout.namespaces(), text)?;
        std::fs::write(fabric.layout.plan(), serde_json::to_vec_pretty(plan)?)
    };
    if let Err(error) = write() {
        tracing::warn!(%error, "the record of the lab could not be written");
    }
}
