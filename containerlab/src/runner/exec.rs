//! Runs a command inside a node or a pod, as `docker exec` would.

use std::io::{self, IsTerminal};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::mpsc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

use super::plan::PROGRAM_IN_NODE;
use super::protocol::{Connection, InitReply, InitRequest, PodState};
use crate::enter::{self, Namespaces};
use crate::error::LabError;
use crate::init::command::basic_env;

/// Runs `argv` in the node whose init listens at `control`, in `pod` (namespace, name) if given, and waits.
///
/// This process moves into the node's cgroup: it must have no other business.
///
/// # Errors
/// The node does not answer, has no such pod, or the command cannot be started.
pub async fn join(control: &Path, pod: Option<(&str, &str)>, argv: &[String]) -> Result<i32, LabError> {
    let node = control.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
    let mut connection = Connection::open(control).await.map_err(|source| LabError::Io {
        what: format!("reach node {node} at {}; is the lab up and the node on?", control.display()),
        source,
    })?;
    let pid = connection.peer_pid().map_err(LabError::io(format!("ask for the pid of node {node}")))?;
    let (argv, env) = match pod {
        None => (argv.to_vec(), std::collections::BTreeMap::new()),
        Some((namespace, name)) => {
            let found = find_pod(&mut connection, &node, namespace, name).await?;
            (pod_command(&found, argv), std::collections::BTreeMap::new())
        }
    };
    let failed = LabError::io(format!("run {:?} in node {node}", argv.first().map_or("", String::as_str)));
    let status = run(pid, argv, env).await.map_err(failed)?;
    Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()))
}

async fn find_pod(
    connection: &mut Connection,
    node: &str,
    namespace: &str,
    name: &str,
) -> Result<PodState, LabError> {
    let asked = async {
        connection.send(&InitRequest::State).await?;
        connection.receive::<InitReply>().await
    };
    let reply = asked.await.map_err(LabError::io(format!("ask node {node} for its pods")))?;
    let Some(InitReply::State(state)) = reply else {
        return Err(LabError::Talk {
            peer: format!("node {node}"),
            reason: "did not answer with its state".to_owned(),
            log: "its init.log in the lab directory".to_owned(),
        });
    };
    let all: Vec<String> = state.pods.iter().map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect();
    state.pods.into_iter().find(|pod| pod.namespace == namespace && pod.name == name).ok_or_else(|| {
        LabError::Plan {
            subject: format!("pod {namespace}/{name}"),
            reason: format!("is not on node {node}"),
            remedy: format!(
                "its pods are: {}",
                if all.is_empty() { "none".to_owned() } else { all.join(", ") }
            ),
        }
    })
}

/// The command that enters a pod from within its node and becomes `argv`.
#[must_use]
pub fn pod_command(pod: &PodState, argv: &[String]) -> Vec<String> {
    let mut command = vec![PROGRAM_IN_NODE.to_owned(), "lab-enter".to_owned()];
    for (option, value) in [
        ("--netns", &pod.netns),
        ("--cgroup", &pod.cgroup),
        ("--hosts", &pod.hosts),
        ("--resolv", &pod.resolv),
        ("--hostname", &pod.name),
    ] {
        command.push(option.to_owned());
        command.push(value.clone());
    }
    command.push("--".to_owned());
    command.extend_from_slice(argv);
    command
}

/// Runs a command in all namespaces of process `pid`; SIGTERM, SIGHUP and SIGINT go on to it.
async fn run(
    pid: Pid,
    argv: Vec<String>,
    env: std::collections::BTreeMap<String, String>,
) -> io::Result<ExitStatus> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // On a terminal the child gets Ctrl-C by itself, being in the same process group.
    let forward_interrupt = !io::stdin().is_terminal();
    let namespaces = Namespaces::of(pid, true)?;
    let (tell, told) = mpsc::sync_channel(1);
    let waiting = tokio::task::spawn_blocking(move || {
        namespaces.run(move || {
            let (program, arguments) =
                argv.split_first().ok_or_else(|| io::Error::other("no command given"))?;
            let mut command = Command::new(program);
            command.args(arguments);
            let terminal = std::env::var("TERM").unwrap_or_else(|_| "xterm".to_owned());
            basic_env(&mut command, &env);
            command.env("TERM", terminal);
            enter::die_with_parent(&mut command);
            let mut child = command.spawn()?;
            // A receiver that has gone wants no pid.
            tell.send(child.id()).ok();
            child.wait()
        })
    });
    tokio::pin!(waiting);
    let mut child = None;
    loop {
        let passed = tokio::select! {
            ended = &mut waiting => return ended.map_err(io::Error::other)?,
            _ = terminate.recv() => Signal::SIGTERM,
            _ = hang_up.recv() => Signal::SIGHUP,
            _ = interrupt.recv() => Signal::SIGINT,
        };
        child = child.or_else(|| told.try_recv().ok());
        let pid = child.and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid.filter(|_| passed != Signal::SIGINT || forward_interrupt) {
            // It may have ended in this moment.
            kill(Pid::from_raw(pid), passed).ok();
        }
    }
}

/// What a process of a pod needs to get into it.
#[derive(Clone, Debug)]
pub struct Sandbox<'a> {
    /// The pod's network namespace.
    pub netns: &'a Path,
    /// The pod's cgroup directory.
    pub cgroup: &'a Path,
    /// The file that becomes /etc/hosts.
    pub hosts: &'a Path,
    /// The file that becomes /etc/resolv.conf.
    pub resolv: &'a Path,
    /// The host name.
    pub hostname: &'a str,
}

/// Enters a pod and becomes `argv`; returns only on failure. Must be called before any thread was started.
///
/// # Errors
/// The step that failed.
pub fn enter_pod(sandbox: &Sandbox<'_>, argv: &[String]) -> io::Result<std::convert::Infallible> {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, setns, unshare};
    use std::os::unix::process::CommandExt;
    let named = |what: &str, error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
    let step = |what: &str, done: nix::Result<()>| done.map_err(|errno| named(what, errno.into()));
    std::fs::write(sandbox.cgroup.join("cgroup.procs"), "0")
        .map_err(|error| named("join the pod's cgroup", error))?;
    let netns =
        std::fs::File::open(sandbox.netns).map_err(|error| named("open the pod's namespace", error))?;
    step("enter the pod's namespace", setns(&netns, CloneFlags::CLONE_NEWNET))?;
    step("own mounts", unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS))?;
    let none = None::<&str>;
    step("private mounts", mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none))?;
    step("bind the hosts file", mount(Some(sandbox.hosts), "/etc/hosts", none, MsFlags::MS_BIND, none))?;
    let resolv = mount(Some(sandbox.resolv), "/etc/resolv.conf", none, MsFlags::MS_BIND, none);
    step("bind resolv.conf", resolv)?;
    // A fresh sysfs shows the pod's interfaces instead of the node's.
    step("mount /sys", mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none))?;
    step(
        "mount the cgroup tree",
        mount(Some("cgroup2"), "/sys/fs/cgroup", Some("cgroup2"), MsFlags::empty(), none),
    )?;
    step("set the host name", nix::unistd::sethostname(sandbox.hostname))?;
    let (program, arguments) = argv.split_first().ok_or_else(|| io::Error::other("no command given"))?;
    let error = Command::new(program).args(arguments).exec();
    Err(named(&format!("run {program}"), error))
}
