//! Runs labs: brings them up, asks them, changes them, takes them down.
//!
//! ```no_run
//! # use std::path::Path;
//! # use tombolo_containerlab::runner::{Lab, progress::Progress, protocol::NodeAction};
//! # async fn sketch() -> Result<(), tombolo_containerlab::LabError> {
//! let lab = Lab::open(Path::new("two-clusters.clab.yml"))?;
//! lab.up(&mut Progress::for_terminal()).await?;
//! lab.node("east-n2", NodeAction::PowerOff).await?;
//! let mut ping = lab.exec_command("client", None, &["ping", "-c1", "172.20.11.2"])?;
//! assert!(ping.status().is_ok_and(|status| status.success()));
//! let residue = lab.down().await?;
//! assert!(residue.is_clean());
//! # Ok(()) }
//! ```

mod bpf;
pub mod cgroup;
mod clusters;
pub mod deploy;
pub mod exec;
pub mod layout;
pub mod plan;
mod power;
pub mod progress;
pub mod protocol;
mod rebind;
mod residue;
pub mod supervisor;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sched::CloneFlags;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;

use self::layout::{Layout, tail};
use self::plan::Plan;
use self::progress::Progress;
use self::protocol::{Connection, Event, LabState, NodeAction, Request};
pub use self::residue::{Residue, residue};
use crate::enter;
use crate::error::LabError;
use crate::file::{self, About, Notice, Topology};
use crate::init::READY;
use crate::settings::Settings;

/// How long the supervisor may take to end in order before it is killed.
const DOWN_PATIENCE: Duration = Duration::from_secs(20);

/// A lab, by its topology file; running or not.
#[derive(Debug)]
pub struct Lab {
    /// The topology.
    pub topology: Topology,
    /// `lab.yaml` beside it.
    pub settings: Settings,
    /// What the files say that is unknown or not deployed; one line each.
    pub warnings: Vec<String>,
    /// What is not deployed, or has no effect.
    pub notices: Vec<Notice>,
    layout: Layout,
}

/// What `up` did.
#[derive(Debug)]
pub enum Outcome {
    /// The lab was not running and is now.
    Started(String),
    /// It was running; this has changed.
    Changed(String),
}

impl Lab {
    /// Reads a topology file and the settings beside it. Variables come from this process' environment.
    ///
    /// # Errors
    /// All mistakes of the file, or those of lab.yaml.
    pub fn open(path: &Path) -> Result<Self, LabError> {
        let env: BTreeMap<String, String> = std::env::vars().collect();
        Self::open_with(path, &env)
    }

    /// The same with another environment (`TOMBOLO_VARIANT`, say).
    ///
    /// # Errors
    /// As [`Lab::open`].
    pub fn open_with(path: &Path, env: &BTreeMap<String, String>) -> Result<Self, LabError> {
        let (topology, warnings) = file::load(path, env).map_err(|errors| LabError::File {
            file: path.to_owned(),
            errors: errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
        })?;
        let settings = Settings::beside(&topology.file, env)?;
        let notices = file::undeployable(&topology, &|image| settings.runs(image));
        let name = topology.file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let told = notices.iter().map(|notice| {
            let word = if notice.skips { "not deployed: " } else { "" };
            format!("{word}{name}:{}: {}: {}", notice.line, notice.subject, notice.message)
        });
        let warnings = warnings.iter().map(ToString::to_string).chain(told).collect();
        let layout = Layout::new(&topology.lab_dir);
        Ok(Self { warnings, notices, settings, layout, topology })
    }

    /// Where the lab's files are.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Brings the lab up, or makes a running one follow the files. What fails is undone.
    ///
    /// # Errors
    /// What cannot be done, which node did not come up, and the end of its log.
    pub async fn up(&self, progress: &mut Progress) -> Result<Outcome, LabError> {
        let _lock = self.lock()?;
        let program = std::env::current_exe().map_err(LabError::io("find the own program"))?;
        // Also checks everything before anything is touched.
        let plan = Plan::new(&self.topology, &self.settings, &self.notices, &program)?;
        if let Ok(connection) = self.connect().await {
            if let Some(text) = self.ask_up(connection, &plan, progress).await? {
                return Ok(Outcome::Changed(text));
            }
            self.end().await?;
        }
        self.clean().await?;
        self.prepare()?;
        // Binds of certificates and manifests exist only now.
        let plan = Plan::new(&self.topology, &self.settings, &self.notices, &program)?;
        let started = async {
            self.start_supervisor().await?;
            let connection = self.connect().await?;
            self.ask_up(connection, &plan, progress).await
        };
        match started.await {
            Ok(text) => Ok(Outcome::Started(text.unwrap_or_default())),
            Err(error) => {
                // The reason is what matters; what cannot be undone is told by the next `down`.
                if let Err(left) = self.end().await {
                    progress.warn(&left.to_string());
                }
                Err(error)
            }
        }
    }

    /// Takes the lab down and counts what is left: nothing, or the count says what.
    ///
    /// # Errors
    /// Something could not be removed.
    pub async fn down(&self) -> Result<Residue, LabError> {
        let _lock = self.lock()?;
        let known = residue::Known::read(&self.layout);
        self.end().await?;
        residue(&self.layout, &known).map_err(LabError::io("count what is left of the lab"))
    }

    /// What runs.
    ///
    /// # Errors
    /// The lab is not running.
    pub async fn inspect(&self) -> Result<LabState, LabError> {
        let mut connection = self.connect().await?;
        let pid = connection.peer_pid().map_err(LabError::io("ask for the supervisor's pid"))?;
        match self.exchange(&mut connection, &Request::Inspect).await? {
            Event::State(mut state) => {
                state.supervisor_pid = pid.as_raw();
                Ok(state)
            }
            other => Err(self.unexpected(&other)),
        }
    }

    /// Whether the lab runs.
    pub async fn is_running(&self) -> bool {
        self.connect().await.is_ok()
    }

    /// Does something to a node; answers what was done.
    ///
    /// # Errors
    /// No such lab or node, or the node's reason.
    pub async fn node(&self, node: &str, action: NodeAction) -> Result<String, LabError> {
        self.check_node(node)?;
        let mut connection = self.connect().await?;
        match self.exchange(&mut connection, &Request::Node { node: node.to_owned(), action }).await? {
            Event::Done(text) => Ok(text),
            Event::Failed { subject, reason, log } => Err(LabError::Deploy { subject, reason, log }),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Cuts both ends of all links of a node, then kills it. Its disk stays.
    ///
    /// # Errors
    /// As [`Lab::node`].
    pub async fn power_off(&self, node: &str) -> Result<String, LabError> {
        self.node(node, NodeAction::PowerOff).await
    }

    /// Starts a node again on its disk, with its links.
    ///
    /// # Errors
    /// As [`Lab::node`].
    pub async fn power_on(&self, node: &str) -> Result<String, LabError> {
        self.node(node, NodeAction::PowerOn).await
    }

    /// SIGKILL to the node's command alone; it is started again, unless `stay_down` (then [`Lab::start_cmd`]).
    ///
    /// # Errors
    /// As [`Lab::node`].
    pub async fn kill_agent(&self, node: &str, stay_down: bool) -> Result<String, LabError> {
        self.node(node, NodeAction::KillCommand { stay_down }).await
    }

    /// Stops the node's command in order.
    ///
    /// # Errors
    /// As [`Lab::node`].
    pub async fn stop_cmd(&self, node: &str) -> Result<String, LabError> {
        self.node(node, NodeAction::StopCommand).await
    }

    /// Starts the node's command.
    ///
    /// # Errors
    /// As [`Lab::node`].
    pub async fn start_cmd(&self, node: &str) -> Result<String, LabError> {
        self.node(node, NodeAction::StartCommand).await
    }

    /// Empties the state of a node whose command is stopped: its private directories and those its image has below
    /// /var/lib, the data of a database.
    ///
    /// # Errors
    /// As [`Lab::node`].
    pub async fn wipe(&self, node: &str) -> Result<String, LabError> {
        self.node(node, NodeAction::Wipe).await
    }

    /// A command that runs `argv` in a node, or in its pod (namespace, name), with this process' standard streams.
    ///
    /// # Errors
    /// No such node, or the own program cannot be found.
    pub fn exec_command<S: AsRef<str>>(
        &self,
        node: &str,
        pod: Option<(&str, &str)>,
        argv: &[S],
    ) -> Result<std::process::Command, LabError> {
        self.check_node(node)?;
        let program = std::env::current_exe().map_err(LabError::io("find the own program"))?;
        let mut command = std::process::Command::new(program);
        command.arg("lab-join").arg(self.layout.control(node));
        if let Some((namespace, name)) = pod {
            command.arg("--pod").arg(format!("{namespace}/{name}"));
        }
        command.arg("--").args(argv.iter().map(AsRef::as_ref));
        Ok(command)
    }

    /// The end of a node's log.
    ///
    /// # Errors
    /// No such node.
    pub fn log_tail(&self, node: &str, lines: usize) -> Result<String, LabError> {
        self.check_node(node)?;
        Ok(tail(&self.layout.log(node), lines))
    }

    fn check_node(&self, node: &str) -> Result<(), LabError> {
        let about = About::Node(node.to_owned());
        if let Some(notice) = self.notices.iter().find(|notice| notice.skips && notice.about == about) {
            return Err(LabError::Plan {
                subject: notice.subject.clone(),
                reason: "is not deployed".to_owned(),
                remedy: notice.message.clone(),
            });
        }
        if self.topology.nodes.contains_key(node) {
            return Ok(());
        }
        let nodes = self.topology.nodes.keys().cloned().collect::<Vec<_>>().join(", ");
        Err(LabError::NoNode { node: node.to_owned(), nodes })
    }

    /// One `up` or `down` at a time: the lock is the topology file itself, so that nothing is left behind.
    fn lock(&self) -> Result<File, LabError> {
        let path = &self.topology.file;
        let file = File::open(path).map_err(LabError::io(format!("open {}", path.display())))?;
        file.lock().map_err(LabError::io(format!("lock {}", path.display())))?;
        Ok(file)
    }

    async fn connect(&self) -> Result<Connection, LabError> {
        Connection::open(&self.layout.supervisor_socket())
            .await
            .map_err(|_| LabError::NotRunning { file: self.topology.file.clone() })
    }

    async fn exchange(&self, connection: &mut Connection, request: &Request) -> Result<Event, LabError> {
        connection.send(request).await.map_err(|error| self.talk(&format!("cannot be asked: {error}")))?;
        match connection.receive().await {
            Ok(Some(event)) => Ok(event),
            Ok(None) => Err(self.talk("hung up")),
            Err(error) => Err(self.talk(&format!("answers nonsense: {error}"))),
        }
    }

    fn talk(&self, reason: &str) -> LabError {
        LabError::Talk {
            peer: "the lab's supervisor".to_owned(),
            reason: reason.to_owned(),
            log: self.layout.supervisor_log().display().to_string(),
        }
    }

    fn unexpected(&self, event: &Event) -> LabError {
        self.talk(&format!("answered {event:?}"))
    }

    /// Asks the supervisor to run the plan; `None` if the lab must be rebuilt for it.
    async fn ask_up(
        &self,
        mut connection: Connection,
        plan: &Plan,
        progress: &mut Progress,
    ) -> Result<Option<String>, LabError> {
        connection
            .send(&Request::Up(Box::new(plan.clone())))
            .await
            .map_err(|error| self.talk(&format!("cannot be asked: {error}")))?;
        loop {
            match connection.receive::<Event>().await {
                Ok(Some(Event::Step { what, done, total })) => progress.step(&what, done, total),
                Ok(Some(Event::Warning(text))) => progress.warn(&text),
                Ok(Some(Event::Done(text))) => {
                    progress.finish();
                    return Ok(Some(text));
                }
                Ok(Some(Event::Rebuild(why))) => {
                    progress.note(&format!("{why}: the lab is built anew"));
                    return Ok(None);
                }
                Ok(Some(Event::Failed { subject, reason, log })) => {
                    progress.finish();
                    return Err(LabError::Deploy { subject, reason, log });
                }
                Ok(Some(other)) => return Err(self.unexpected(&other)),
                Ok(None) => return Err(self.talk("hung up")),
                Err(error) => return Err(self.talk(&format!("answers nonsense: {error}"))),
            }
        }
    }

    /// Makes the lab directory with certificates and the clusters' manifests.
    fn prepare(&self) -> Result<(), LabError> {
        let dir = self.layout.dir();
        let made = |path: &Path| LabError::io(format!("make {}", path.display()));
        std::fs::create_dir_all(dir).map_err(made(dir))?;
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).map_err(made(dir))?;
        for node in self.topology.nodes.keys() {
            let path = self.layout.node(node);
            std::fs::create_dir_all(&path).map_err(made(&path))?;
        }
        if !self.settings.certificates.ca.is_empty() {
            crate::pki::issue_all(&self.settings.certificates, &self.layout.pki())?;
        }
        for cluster in &self.settings.clusters {
            let copies = [
                ("manifests", cluster.live_manifests(dir), &cluster.manifests),
                ("etcd client files", cluster.live_clustermesh(dir), &cluster.clustermesh),
                ("relays' etcd client files", cluster.live_remotes(dir), &cluster.remotes),
            ];
            for (what, target, folders) in copies {
                std::fs::create_dir_all(&target).map_err(made(&target))?;
                for folder in folders {
                    let source = self.topology.file.with_file_name("").join(folder);
                    copy_tree(&source, &target).map_err(LabError::io(format!(
                        "copy the {what} of cluster {} from {} to {}",
                        cluster.name,
                        source.display(),
                        target.display()
                    )))?;
                }
            }
        }
        Ok(())
    }

    /// Starts the supervisor in its namespaces and waits until it listens.
    async fn start_supervisor(&self) -> Result<(), LabError> {
        let layout = &self.layout;
        let start = || -> io::Result<pipe::Receiver> {
            let program = enter::own_program()?;
            let cgroup = cgroup::create(layout)?;
            let nothing = File::open("/dev/null")?;
            let log = File::options().create(true).append(true).open(layout.supervisor_log())?;
            let (output, input) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
            let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
            enter::spawn(&enter::NewProcess {
                program: program.as_fd(),
                args: enter::c_strings([
                    "tombolo".as_ref(),
                    "lab-supervisor".as_ref(),
                    layout.dir().as_os_str(),
                ])?,
                env: enter::c_strings([format!("PATH={path}"), "RUST_BACKTRACE=1".to_owned()])?,
                stdio: [nothing.as_fd(), input.as_fd(), log.as_fd()],
                cgroup: Some(cgroup.as_fd()),
                namespaces: CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID,
            })?;
            nix::fcntl::fcntl(&output, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
            pipe::Receiver::from_owned_fd(output)
        };
        let output = start().map_err(LabError::io("start the lab's supervisor"))?;
        let mut line = String::new();
        let read = BufReader::new(output).read_line(&mut line).await;
        if read.is_ok() && line.trim() == READY {
            return Ok(());
        }
        Err(LabError::Deploy {
            subject: "the lab's supervisor".to_owned(),
            reason: "died at start".to_owned(),
            log: tail(&layout.supervisor_log(), 25),
        })
    }

    /// Ends the supervisor, in order if it can, and removes what the lab had on the host.
    async fn end(&self) -> Result<(), LabError> {
        if let Ok(mut connection) = self.connect().await {
            let pid = connection.peer_pid().map_err(LabError::io("ask for the supervisor's pid"))?;
            let handle = enter::pidfd(pid).map_err(LabError::io(format!("open process {pid}")))?;
            let asked =
                tokio::time::timeout(DOWN_PATIENCE, self.exchange(&mut connection, &Request::Down)).await;
            if !matches!(asked, Ok(Ok(Event::Done(_)))) {
                tracing::warn!("the supervisor does not end in order; it is killed");
                // Its death is that of all in its PID namespace; that it has just gone by itself is fine.
                nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).ok();
            }
            let ended = tokio::task::spawn_blocking(move || enter::wait_end(&handle, DOWN_PATIENCE)).await;
            if !matches!(ended, Ok(Ok(true))) {
                return Err(self.talk("does not end"));
            }
            // If this very process has started it, its exit is collected here; else there is nothing to collect.
            nix::sys::wait::waitpid(pid, Some(nix::sys::wait::WaitPidFlag::WNOHANG)).ok();
        }
        self.clean().await
    }

    /// Removes the cgroups and files of a lab whose supervisor is gone.
    async fn clean(&self) -> Result<(), LabError> {
        let layout = self.layout.clone();
        let work = move || {
            cgroup::with_tree(&layout, |cgroup| {
                cgroup::kill(cgroup)?;
                cgroup::wait_empty(cgroup, DOWN_PATIENCE)?;
                cgroup::remove(cgroup)
            })?;
            match std::fs::remove_dir_all(layout.dir()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            if let Some(parent) = layout.dir().parent() {
                // Other labs may be in it.
                std::fs::remove_dir(parent).ok();
            }
            Ok(())
        };
        let done = tokio::task::spawn_blocking(work).await.map_err(io::Error::other).flatten();
        done.map_err(LabError::io(format!("remove what is left of {}", self.layout.dir().display())))
    }
}

/// The topology file to use: the one named, or the only one in the working directory.
///
/// # Errors
/// None is named and there is none, or more than one.
pub fn topology_file(named: Option<PathBuf>) -> Result<PathBuf, LabError> {
    if let Some(path) = named {
        return Ok(path);
    }
    let here = std::fs::read_dir(".").map_err(LabError::io("list the working directory"))?;
    let is_topology = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.ends_with(".clab.yml") || name.ends_with(".clab.yaml")
    };
    let mut found: Vec<PathBuf> = here.flatten().map(|entry| entry.path()).filter(is_topology).collect();
    match (found.pop(), found.is_empty()) {
        (Some(path), true) => Ok(path),
        (first, _) => Err(LabError::Plan {
            subject: "the topology file".to_owned(),
            reason: if first.is_some() {
                "there is more than one *.clab.yml here".to_owned()
            } else {
                "there is no *.clab.yml here".to_owned()
            },
            remedy: "name one with -t FILE".to_owned(),
        }),
    }
}

fn copy_tree(source: &Path, target: &Path) -> io::Result<()> {
    std::fs::create_dir_all(target)?;
    for entry in std::fs::read_dir(source)? {
        let entry = entry?;
        let to = target.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &to)?;
        } else {
            std::fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}
