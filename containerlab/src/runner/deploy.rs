//! Nodes and links come up, and go.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::try_join_all;
use nix::sched::CloneFlags;
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};
use tombolo_netlink::{MacAddr, NetNs, Netlink, VethEnd};

use super::cgroup;
use super::layout::{Layout, tail};
use super::plan::{EndSpec, LinkSpec, NodeSpec, Plan};
use super::protocol::{Connection, Event, InitReply, InitRequest, NodeState};
use crate::enter;
use crate::init::{Boot, READY};
use crate::process::{Exit, Reaper};

/// How long an init may take until it can be talked to.
const BOOT_PATIENCE: Duration = Duration::from_secs(30);
/// How long killed processes may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// Lines of a log shown with a failure.
const LOG_LINES: usize = 25;

/// Why something was not done.
#[derive(Debug)]
pub struct Failure {
    subject: String,
    reason: String,
    log: String,
}

impl Failure {
    /// A failure without a log.
    pub fn new(subject: &str, reason: &str) -> Self {
        Self { subject: subject.to_owned(), reason: reason.to_owned(), log: String::new() }
    }

    /// What to tell the command line.
    pub fn into_event(self) -> Event {
        Event::Failed { subject: self.subject, reason: self.reason, log: self.log }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.reason)
    }
}

/// What nodes are made with.
pub struct Fabric {
    /// Where the lab's files are.
    pub layout: Layout,
    /// The lab's cgroup.
    pub cgroup: PathBuf,
    /// Collects the inits' ends.
    pub reaper: Reaper,
    /// Netlink in the enclosing namespace.
    pub netlink: Netlink,
    /// The nodes whose init has ended, for whatever reason; what tells the clusters' controllers.
    pub dead: watch::Sender<BTreeSet<String>>,
    program: File,
}

/// A node that was started.
pub struct RunningNode {
    /// Its name.
    pub name: String,
    pid: Pid,
    namespace: NetNs,
    exit: watch::Receiver<Option<Exit>>,
    /// Interfaces that wait in the enclosing namespace while the node is off: (name there, name in the node).
    pub parked: Vec<(String, String)>,
    /// Whether it was switched off on purpose.
    pub off: bool,
}

impl RunningNode {
    /// Whether its init lives.
    pub fn is_on(&self) -> bool {
        self.exit.borrow().is_none()
    }

    /// What to call its state when it is not on.
    pub fn why_off(&self) -> &'static str {
        if self.off { "off" } else { "failed: its init died" }
    }

    /// The pid of its init in the supervisor's PID namespace, if it lives.
    pub fn pid(&self) -> Option<Pid> {
        self.is_on().then_some(self.pid)
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &NetNs {
        &self.namespace
    }

    /// Waits until its init has ended.
    pub async fn ended(&mut self) {
        // The sender goes away only after it has sent.
        self.exit.wait_for(Option::is_some).await.ok();
    }

    /// Asks the init for the node's state.
    ///
    /// # Errors
    /// The init does not answer.
    pub async fn state(&self, fabric: &Fabric) -> Result<NodeState, Failure> {
        match fabric.ask(&self.name, &InitRequest::State).await? {
            InitReply::State(state) => Ok(*state),
            other => Err(Failure::new(&self.name, &format!("answers {other:?} instead of its state"))),
        }
    }
}

impl Fabric {
    /// The means to make nodes in this namespace.
    ///
    /// # Errors
    /// Netlink or the own program cannot be opened.
    pub fn new(layout: Layout, cgroup: PathBuf, reaper: Reaper) -> io::Result<Self> {
        let netlink = Netlink::here().map_err(io::Error::other)?;
        let (dead, _) = watch::channel(BTreeSet::new());
        Ok(Self { layout, cgroup, reaper, netlink, dead, program: enter::own_program()? })
    }

    /// Brings up everything in a plan; what was started is in `nodes` also when it fails.
    ///
    /// # Errors
    /// The first node or link that did not come up.
    pub async fn deploy(
        &self,
        plan: &Plan,
        nodes: &mut BTreeMap<String, RunningNode>,
        events: &mpsc::Sender<Event>,
    ) -> Result<(), Failure> {
        let steps = Steps::new(plan.nodes.len() * 2 + plan.links.len(), events);
        let lo = self.netlink.link("lo").await.map_err(|error| Failure::new("lo", &error.to_string()))?;
        self.netlink.set_up(lo.index).await.map_err(|error| Failure::new("lo", &error.to_string()))?;

        let (made, mut arrivals) = mpsc::unbounded_channel();
        let boots = plan.nodes.values().map(|spec| {
            let (steps, made) = (&steps, &made);
            async move {
                let node = self.boot(spec).await?;
                // Handed over at once: what a later failure undoes must be known.
                made.send(node).ok();
                steps.did(format!("node {} made", spec.name)).await;
                Ok::<(), Failure>(())
            }
        });
        let booted = try_join_all(boots).await;
        while let Ok(node) = arrivals.try_recv() {
            nodes.insert(node.name.clone(), node);
        }
        booted?;

        let all = &*nodes;
        try_join_all(plan.links.iter().map(|link| {
            let steps = &steps;
            async move {
                self.link(link, all).await?;
                steps.did(format!("link {} made", describe(link))).await;
                Ok::<(), Failure>(())
            }
        }))
        .await?;

        try_join_all(plan.nodes.values().map(|spec| {
            let steps = &steps;
            async move {
                let notes = self.start(spec).await?;
                tell_notes(events, &spec.name, notes).await;
                steps.did(format!("node {} up", spec.name)).await;
                Ok::<(), Failure>(())
            }
        }))
        .await?;
        Ok(())
    }

    /// Makes a node's namespaces, starts its init, and binds what it is to see.
    ///
    /// # Errors
    /// The step that failed, with the init's log.
    pub async fn boot(&self, spec: &NodeSpec) -> Result<RunningNode, Failure> {
        let (node, output) = self.spawn_init(spec).map_err(|error| self.failure(spec, &error.to_string()))?;
        let mut line = String::new();
        let mut lines = BufReader::new(output);
        let said = tokio::time::timeout(BOOT_PATIENCE, lines.read_line(&mut line)).await;
        match said {
            Ok(Ok(_)) if line.trim() == READY => {}
            Ok(Ok(0)) => return Err(self.failure(spec, "its init died at start")),
            Ok(Ok(_)) => {
                let reason = line.trim().strip_prefix("failed ").unwrap_or(line.trim());
                return Err(self.failure(spec, reason));
            }
            Ok(Err(error)) => return Err(self.failure(spec, &error.to_string())),
            Err(_) => return Err(self.failure(spec, "its init does not get ready")),
        }
        let (pid, binds) = (node.pid, spec.binds.clone());
        let bound = tokio::task::spawn_blocking(move || {
            binds.iter().try_for_each(|bind| {
                enter::bind_across(pid, bind).map_err(|error| {
                    io::Error::new(
                        error.kind(),
                        format!("bind {} to {}: {error}", bind.host.display(), bind.node.display()),
                    )
                })
            })
        });
        match bound.await {
            Ok(Ok(())) => Ok(node),
            Ok(Err(error)) => Err(self.failure(spec, &error.to_string())),
            Err(error) => Err(self.failure(spec, &error.to_string())),
        }
    }

    fn spawn_init(&self, spec: &NodeSpec) -> io::Result<(RunningNode, pipe::Receiver)> {
        let layout = &self.layout;
        let named = |what: &str| {
            let what = what.to_owned();
            move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"))
        };
        std::fs::create_dir_all(layout.node(&spec.name)).map_err(named("make the node's directory"))?;
        let boot = Boot {
            spec: spec.clone(),
            disk: layout.disk(&spec.name),
            control: layout.control(&spec.name),
            log: layout.log(&spec.name),
            pod_logs: layout.pod_logs(&spec.name),
        };
        std::fs::write(layout.boot(&spec.name), serde_json::to_vec(&boot)?)
            .map_err(named("write boot.json"))?;
        let cgroup = self.cgroup.join(&spec.name);
        std::fs::create_dir_all(&cgroup).map_err(named("make the node's cgroup"))?;
        let cgroup = enter::open_directory(&cgroup)?;
        let log = File::options().create(true).append(true).open(layout.init_log(&spec.name))?;
        let nothing = File::open("/dev/null")?;
        let (output, input) =
            nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC | nix::fcntl::OFlag::O_NONBLOCK)?;
        // Non-blocking is a property of the open pipe, and the init writes two lines at most: its end blocks.
        nix::fcntl::fcntl(&input, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty()))?;
        let process = enter::NewProcess {
            program: self.program.as_fd(),
            args: enter::c_strings([
                "tombolo".as_ref(),
                "lab-init".as_ref(),
                layout.boot(&spec.name).as_os_str(),
            ])?,
            env: enter::c_strings(["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "RUST_BACKTRACE=1"])?,
            stdio: [nothing.as_fd(), input.as_fd(), log.as_fd()],
            cgroup: Some(cgroup.as_fd()),
            namespaces: CloneFlags::CLONE_NEWNET
                | CloneFlags::CLONE_NEWNS
                | CloneFlags::CLONE_NEWPID
                | CloneFlags::CLONE_NEWUTS
                | CloneFlags::CLONE_NEWIPC,
        };
        let mut handle: Option<OwnedFd> = None;
        let (pid, ended) = self.reaper.register(|| {
            let (pid, pidfd) = enter::spawn(&process)?;
            handle = Some(pidfd);
            Ok(pid)
        })?;
        let (report, exit) = watch::channel(None);
        let (name, dead) = (spec.name.clone(), self.dead.clone());
        tokio::spawn(async move {
            // Held until the end, so that the pid cannot mean another process.
            let _handle = handle;
            let how = ended.await.unwrap_or(Exit::Code(127));
            tracing::info!(node = %name, %how, "init ended");
            dead.send_if_modified(|dead| dead.insert(name));
            report.send_replace(Some(how));
        });
        let number = u32::try_from(pid.as_raw()).map_err(io::Error::other)?;
        let namespace = NetNs::of_pid(number).map_err(io::Error::other)?;
        let name = spec.name.clone();
        let node = RunningNode { name, pid, namespace, exit, parked: Vec::new(), off: false };
        Ok((node, pipe::Receiver::from_owned_fd(output)?))
    }

    /// Makes a veth pair with its ends where they belong.
    async fn link(&self, link: &LinkSpec, nodes: &BTreeMap<String, RunningNode>) -> Result<(), Failure> {
        let end = |end: &EndSpec| -> Result<VethEnd, Failure> {
            let namespace = match &end.node {
                None => None,
                Some(name) => match nodes.get(name) {
                    Some(node) => Some(node.namespace.clone()),
                    None => return Err(Failure::new(&describe(link), &format!("there is no node {name}"))),
                },
            };
            let name = end.interface.clone();
            Ok(VethEnd { name, namespace, mac: end.mac.map(MacAddr), mtu: Some(link.mtu) })
        };
        let (a, b) = (end(&link.a)?, end(&link.b)?);
        let failed = |error: tombolo_netlink::Error| Failure::new(&describe(link), &error.to_string());
        self.netlink.create_veth(&a, &b).await.map_err(failed)?;
        for end in [&link.a, &link.b].into_iter().filter(|end| end.node.is_none()) {
            let here = self.netlink.link(&end.interface).await.map_err(failed)?;
            self.netlink.set_up(here.index).await.map_err(failed)?;
        }
        Ok(())
    }

    /// Lets a node run: its interfaces are there.
    ///
    /// # Errors
    /// The node's reason, with the end of its log.
    pub async fn start(&self, spec: &NodeSpec) -> Result<Vec<String>, Failure> {
        let notes = self.tell(&spec.name, &InitRequest::Start(Box::new(spec.clone()))).await?;
        self.dead.send_if_modified(|dead| dead.remove(&spec.name));
        Ok(notes)
    }

    /// Asks a node's init for something to be done; answers what is to be known about it.
    ///
    /// # Errors
    /// The node's reason, with the end of its log.
    pub async fn tell(&self, node: &str, request: &InitRequest) -> Result<Vec<String>, Failure> {
        match self.ask(node, request).await? {
            InitReply::Done(notes) => Ok(notes),
            InitReply::Failed(reason) => Err(Failure {
                subject: format!("node {node}"),
                reason,
                log: tail(&self.layout.log(node), LOG_LINES),
            }),
            InitReply::State(_) => Err(Failure::new(node, "answers its state unasked")),
        }
    }

    async fn ask(&self, node: &str, request: &InitRequest) -> Result<InitReply, Failure> {
        let talk = async {
            let mut connection = Connection::open(&self.layout.control(node)).await?;
            connection.send(request).await?;
            connection.receive::<InitReply>().await
        };
        match talk.await {
            Ok(Some(reply)) => Ok(reply),
            Ok(None) => Err(self.silent(node, "its init hung up")),
            Err(error) => Err(self.silent(node, &format!("its init cannot be asked: {error}"))),
        }
    }

    fn silent(&self, node: &str, reason: &str) -> Failure {
        let log = tail(&self.layout.init_log(node), LOG_LINES);
        Failure { subject: format!("node {node}"), reason: reason.to_owned(), log }
    }

    fn failure(&self, spec: &NodeSpec, reason: &str) -> Failure {
        self.silent(&spec.name, reason)
    }

    /// Kills a node and waits until nothing of it runs. What it wrote stays.
    ///
    /// # Errors
    /// Processes are left.
    pub async fn kill(&self, node: &mut RunningNode) -> Result<(), Failure> {
        let cgroup = self.cgroup.join(&node.name);
        let failed = |error: io::Error| Failure::new("cgroup", &error.to_string());
        cgroup::kill(&cgroup).map_err(failed)?;
        node.ended().await;
        let emptied = tokio::task::spawn_blocking(move || {
            cgroup::wait_empty(&cgroup, KILL_PATIENCE)?;
            cgroup::remove(&cgroup)
        });
        match emptied.await {
            Ok(done) => done.map_err(failed),
            Err(error) => Err(Failure::new(&node.name, &error.to_string())),
        }
    }

    /// Ends all nodes.
    pub async fn end_all(&self, nodes: &mut BTreeMap<String, RunningNode>) {
        // Also those that a failed start never handed over.
        for entry in std::fs::read_dir(&self.cgroup).into_iter().flatten().flatten() {
            if let Err(error) = cgroup::kill(&entry.path()) {
                tracing::debug!(%error, path = %entry.path().display(), "not killed");
            }
        }
        for (name, node) in &mut *nodes {
            if let Err(failure) = self.kill(node).await {
                tracing::warn!(node = %name, %failure, "a node did not end");
            }
        }
        nodes.clear();
    }
}

/// `east-n1:eth1 - east-tor:eth2`.
pub fn describe(link: &LinkSpec) -> String {
    let end = |end: &EndSpec| format!("{}:{}", end.node.as_deref().unwrap_or("host"), end.interface);
    format!("{} - {}", end(&link.a), end(&link.b))
}

/// Tells what is to be known about a node.
pub async fn tell_notes(events: &mpsc::Sender<Event>, node: &str, notes: Vec<String>) {
    for note in notes {
        // Nobody listening is no reason to stop.
        events.send(Event::Warning(format!("node {node}: {note}"))).await.ok();
    }
}

/// Counts and tells the steps of a deployment.
pub struct Steps<'a> {
    total: usize,
    done: std::sync::atomic::AtomicUsize,
    events: &'a mpsc::Sender<Event>,
}

impl<'a> Steps<'a> {
    /// Of `total` steps none is done.
    pub fn new(total: usize, events: &'a mpsc::Sender<Event>) -> Self {
        Self { total, done: std::sync::atomic::AtomicUsize::new(0), events }
    }

    /// One more is done.
    pub async fn did(&self, what: String) {
        let done = self.done.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        // Nobody listening is no reason to stop.
        self.events.send(Event::Step { what, done, total: self.total }).await.ok();
    }
}
