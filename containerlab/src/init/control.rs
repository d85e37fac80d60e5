//! The init's control socket: start, reconfigure, stop, state.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout_at};
use tombolo_netlink::{AddressOptions, Netlink};

use super::command::{CommandSpec, NOTIFY_SOCKET, Supervised, command};
use super::root;
use crate::kubelet::{Kubelet, LogFolder};
use crate::process::{Exit, Reaper};
use crate::runner::plan::{InterfaceSpec, NodeSpec, PROGRAM_IN_NODE, Sign};
use crate::runner::protocol::{CommandState, Connection, InitReply, InitRequest, NodeState};

/// How long one exec line may take.
const EXEC_PATIENCE: Duration = Duration::from_secs(60);
/// How often a readiness command is asked.
const READY_INTERVAL: Duration = Duration::from_millis(100);
/// A command that ended so often before the node was up is not going to run.
const FATAL_RESTARTS: u32 = 4;
/// How long a command must run to count as up, counted from its start, if it neither says so nor can be asked. There is
/// no event for "runs well": its end is the event, and what is awaited here is that it does not come.
const FIRST_RUN: Duration = Duration::from_millis(300);
/// The same for one that has ended already.
const SETTLED: Duration = Duration::from_secs(1);

/// The node as its init knows it.
struct Host {
    reaper: Reaper,
    netlink: Netlink,
    log: File,
    command: Supervised,
    /// What runs; `None` before the first start.
    spec: Mutex<NodeSpec>,
    kubelet: Option<Kubelet>,
}

/// Serves the control socket until the process is killed.
///
/// # Errors
/// The socket or the runtime cannot be used.
pub(super) async fn serve(
    spec: NodeSpec,
    listener: UnixListener,
    log: File,
    pod_logs: LogFolder,
) -> io::Result<()> {
    let reaper = Reaper::start()?;
    let netlink = Netlink::here().map_err(io::Error::other)?;
    up(&netlink, "lo").await.map_err(io::Error::other)?;
    let kubelet =
        spec.kubelet.then(|| Kubelet::new(spec.name.clone(), spec.dns.clone(), reaper.clone(), pod_logs));
    let host: &'static Host = Box::leak(Box::new(Host {
        command: Supervised::new(reaper.clone(), log.try_clone()?, notify_socket()?),
        reaper,
        netlink,
        log,
        spec: Mutex::new(spec),
        kubelet,
    }));
    let listener = tokio::net::UnixListener::from_std(listener)?;
    super::say(super::READY)?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let mut connection = Connection::new(stream);
            while let Ok(Some(request)) = connection.receive::<InitRequest>().await {
                let reply = host.answer(request).await;
                if connection.send(&reply).await.is_err() {
                    return;
                }
            }
        });
    }
}

fn notify_socket() -> io::Result<tokio::net::UnixDatagram> {
    if let Some(folder) = Path::new(NOTIFY_SOCKET).parent() {
        std::fs::create_dir_all(folder)?;
    }
    tokio::net::UnixDatagram::bind(NOTIFY_SOCKET)
}

async fn up(netlink: &Netlink, name: &str) -> Result<u32, tombolo_netlink::Error> {
    let link = netlink.link(name).await?;
    netlink.set_up(link.index).await?;
    Ok(link.index)
}

impl Host {
    async fn answer(&self, request: InitRequest) -> InitReply {
        let done = match request {
            InitRequest::State => return InitReply::State(Box::new(self.state().await)),
            InitRequest::Start(spec) => self.start(*spec).await,
            InitRequest::Reconfigure(spec) => self.reconfigure(*spec).await,
            InitRequest::Kill { stay_down } => {
                self.command.kill(stay_down).await;
                Ok(Vec::new())
            }
            InitRequest::Stop => {
                self.command.stop().await;
                Ok(Vec::new())
            }
            InitRequest::StartCommand => {
                self.command.start().await;
                Ok(Vec::new())
            }
            InitRequest::CniCheck => match &self.kubelet {
                Some(kubelet) => kubelet.check().await,
                None => Err("the node runs no pods".to_owned()),
            },
            InitRequest::Wipe => self.wipe().await.map(|()| Vec::new()),
        };
        done.map_or_else(InitReply::Failed, InitReply::Done)
    }

    async fn state(&self) -> NodeState {
        let spec = self.spec.lock().await;
        NodeState {
            state: "running".to_owned(),
            image: spec.image.clone(),
            labels: spec.labels.clone(),
            command: self.command.state.borrow().clone(),
            interfaces: spec.interfaces.iter().map(|interface| interface.name.clone()).collect(),
            pods: match &self.kubelet {
                Some(kubelet) => kubelet.state(),
                None => Vec::new(),
            },
        }
    }

    async fn start(&self, spec: NodeSpec) -> Result<Vec<String>, String> {
        root::directories(&spec.directories).map_err(|error| error.to_string())?;
        for interface in &spec.interfaces {
            self.interface(interface).await.map_err(|error| error.to_string())?;
        }
        if spec.startup_delay_secs > 0 {
            sleep(Duration::from_secs(u64::from(spec.startup_delay_secs))).await;
        }
        self.command.run(command_spec(&spec)).await;
        let mut notes = Vec::new();
        for line in &spec.exec {
            match self.exec(line, &spec.env).await {
                Ok(()) => {}
                // It may speak of an interface whose link is not deployed.
                Err(reason) if !spec.lacks.is_empty() => {
                    notes.push(format!("{reason}; the node lacks {}", spec.lacks.join(", ")));
                }
                Err(reason) => return Err(reason),
            }
        }
        self.ready(&spec).await?;
        if let Some(kubelet) = &self.kubelet {
            kubelet.start();
        }
        *self.spec.lock().await = spec;
        Ok(notes)
    }

    /// Runs what changed; what is equal goes on undisturbed. Binds were changed by the supervisor already.
    async fn reconfigure(&self, spec: NodeSpec) -> Result<Vec<String>, String> {
        let old = self.spec.lock().await.clone();
        let mut notes = Vec::new();
        root::directories(&spec.directories).map_err(|error| error.to_string())?;
        for (key, value) in &spec.sysctls {
            if let Err(error) = tombolo_netlink::set_sysctl(None, &key.replace('.', "/"), value) {
                notes.push(error.to_string());
            }
        }
        let command = command_spec(&spec);
        if command == command_spec(&old) && sees_new_files(&old, &spec) {
            self.command.restart().await;
        } else {
            self.command.run(command).await;
        }
        if spec.exec != old.exec {
            for line in &spec.exec {
                // On a running node a line may find its work done already (an address that exists).
                if let Err(note) = self.exec(line, &spec.env).await {
                    notes.push(note);
                }
            }
        }
        self.ready(&spec).await?;
        *self.spec.lock().await = spec;
        Ok(notes)
    }

    async fn wipe(&self) -> Result<(), String> {
        let state = self.command.state.borrow().state.clone();
        if state == "running" {
            return Err("its command runs; stop it first (stop-cmd)".to_owned());
        }
        root::wipe(&*self.spec.lock().await).map_err(|error| format!("empty its state: {error}"))
    }

    async fn interface(&self, interface: &InterfaceSpec) -> Result<(), tombolo_netlink::Error> {
        let index = up(&self.netlink, &interface.name).await?;
        let options = AddressOptions { no_dad: true, ..AddressOptions::default() };
        if let Some(address) = interface.ipv4 {
            self.netlink.add_address(index, address.into(), options).await?;
        }
        if let Some(address) = interface.ipv6 {
            self.netlink.add_address(index, address.into(), options).await?;
        }
        Ok(())
    }

    /// Runs one exec line; its output goes to the node's log.
    async fn exec(&self, argv: &[String], env: &BTreeMap<String, String>) -> Result<(), String> {
        let line = argv.join(" ");
        let mut log = &self.log;
        if let Err(error) = writeln!(log, "# exec: {line}") {
            tracing::warn!(%error, "the node's log cannot be written");
        }
        let started = command(argv, env, &self.log).and_then(|mut command| self.reaper.spawn(&mut command));
        let mut running = started.map_err(|error| format!("exec {line:?}: {error}"))?;
        match timeout_at(Instant::now() + EXEC_PATIENCE, running.wait()).await {
            Ok(Exit::Code(0)) => Ok(()),
            Ok(exit) => Err(format!("exec {line:?}: {exit}")),
            Err(_) => {
                running.signal_group(nix::sys::signal::Signal::SIGKILL);
                Err(format!("exec {line:?}: not done within {} s", EXEC_PATIENCE.as_secs()))
            }
        }
    }

    /// Waits until the node counts as up.
    async fn ready(&self, spec: &NodeSpec) -> Result<(), String> {
        let patience = spec.ready.as_ref().map_or(EXEC_PATIENCE, |r| Duration::from_secs(r.timeout_secs));
        let deadline = Instant::now() + patience;
        let base = self.command.state.borrow().restarts;
        let mut state = self.command.state.clone();
        loop {
            let now = state.borrow_and_update().clone();
            if let Some(verdict) = verdict(&now, base, spec.ready.is_some()) {
                return verdict;
            }
            let ask_again = match spec.ready.as_ref().map(|ready| &ready.sign) {
                Some(Sign::Notify) if now.said_ready => return Ok(()),
                Some(Sign::Notify) => deadline,
                Some(Sign::Command(argv)) if matches!(now.state.as_str(), "running" | "none") => {
                    if self.probe(argv, &spec.env).await {
                        return Ok(());
                    }
                    Instant::now() + READY_INTERVAL
                }
                Some(Sign::Command(_)) => deadline,
                None => {
                    let proof = if now.restarts == base { FIRST_RUN } else { SETTLED };
                    let proven = now.since.map_or(deadline, |since| since + proof);
                    if Instant::now() >= proven {
                        return Ok(());
                    }
                    proven
                }
            };
            if Instant::now() >= deadline {
                let sign = spec.ready.as_ref().map_or("it does not start".to_owned(), |r| r.sign.missing());
                return Err(format!("not ready after {} s: {sign}", patience.as_secs()));
            }
            // What happens to the command is noticed at once; a readiness command is asked from time to time. Either
            // way the loop looks anew, so that time is over is no error yet.
            timeout_at(ask_again.min(deadline), state.changed()).await.ok();
        }
    }

    async fn probe(&self, argv: &[String], env: &BTreeMap<String, String>) -> bool {
        let Some((program, arguments)) = argv.split_first() else { return true };
        let mut command = std::process::Command::new(program);
        command.args(arguments);
        super::command::basic_env(&mut command, env);
        let asked = tokio::time::timeout(Duration::from_secs(5), self.reaper.output(&mut command, b"")).await;
        matches!(asked, Ok(Ok(output)) if output.exit.success())
    }
}

/// Whether the command's state alone says that the node is up, or will not be. `base` is how often it had been started
/// again before.
fn verdict(command: &CommandState, base: u32, asked: bool) -> Option<Result<(), String>> {
    if let Some(error) = &command.error {
        return Some(Err(error.clone()));
    }
    let ended = command.state == "ended";
    if ended && command.last_exit.is_some_and(Exit::success) {
        return Some(Ok(()));
    }
    if ended || command.restarts.saturating_sub(base) >= FATAL_RESTARTS {
        let exit = command.last_exit.map(|exit| exit.to_string()).unwrap_or_default();
        return Some(Err(format!("its command does not stay up ({exit})")));
    }
    (!asked && matches!(command.state.as_str(), "none" | "stopped")).then_some(Ok(()))
}

fn command_spec(spec: &NodeSpec) -> CommandSpec {
    let notify = spec.ready.as_ref().is_some_and(|ready| ready.sign == Sign::Notify);
    CommandSpec { argv: spec.argv.clone(), env: spec.env.clone(), restart: spec.restart, notify }
}

/// Whether the command must start again to see what is bound in now. The `tombolo` program is in every node but
/// matters only where it is the command.
fn sees_new_files(old: &NodeSpec, new: &NodeSpec) -> bool {
    let is_tombolo = new.argv.first().is_some_and(|program| program.ends_with("tombolo"));
    let seen = |spec: &NodeSpec| -> Vec<crate::enter::Bind> {
        spec.binds
            .iter()
            .filter(|bind| is_tombolo || bind.node != Path::new(PROGRAM_IN_NODE))
            .cloned()
            .collect()
    };
    seen(old) != seen(new)
}
