//! The supervised command of a node: started, started again with growing pauses when it ends, stopped in order.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::net::UnixDatagram;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use crate::process::{Exit, Reaper, Running};
use crate::runner::plan::Restart;
use crate::runner::protocol::CommandState;

/// The first pause before a command is started again.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A command that ran so long starts with the first pause again.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);
/// How long a command may take to end on SIGTERM.
const GRACE: Duration = Duration::from_secs(10);
/// Where a command says that it is ready, in the node (sd_notify(3)).
pub(super) const NOTIFY_SOCKET: &str = "/run/tombolo-lab/notify";

/// What to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandSpec {
    /// Program and arguments; empty for a plain host.
    pub argv: Vec<String>,
    /// Environment beside the basic one.
    pub env: BTreeMap<String, String>,
    /// When to start it again after it ended by itself.
    pub restart: Restart,
    /// Whether it says by itself when it is ready.
    pub notify: bool,
}

/// What to do with it.
#[derive(Debug)]
enum Order {
    Run(CommandSpec),
    Start,
    Stop,
    Restart,
    Kill { stay_down: bool },
}

/// A handle on the task that supervises the command.
#[derive(Clone, Debug)]
pub struct Supervised {
    orders: mpsc::Sender<(Order, oneshot::Sender<()>)>,
    /// What the command does now.
    pub state: watch::Receiver<CommandState>,
}

impl Supervised {
    /// Starts the task; nothing runs until [`Supervised::run`]. The command's word that it is ready comes on `notify`.
    #[must_use]
    pub fn new(reaper: Reaper, log: File, notify: UnixDatagram) -> Self {
        let (orders, receiver) = mpsc::channel(8);
        let (publish, state) =
            watch::channel(CommandState { state: "none".to_owned(), ..CommandState::default() });
        tokio::spawn(
            Task {
                reaper,
                log,
                notify,
                spec: CommandSpec::default(),
                wanted: false,
                orders: receiver,
                publish,
            }
            .run(),
        );
        Self { orders, state }
    }

    /// Runs this command, in place of what ran before.
    pub async fn run(&self, spec: CommandSpec) {
        self.order(Order::Run(spec)).await;
    }

    /// Starts it if it was stopped.
    pub async fn start(&self) {
        self.order(Order::Start).await;
    }

    /// Stops it in order: SIGTERM to its process group, SIGKILL after ten seconds.
    pub async fn stop(&self) {
        self.order(Order::Stop).await;
    }

    /// Stops it in order and starts it again at once.
    pub async fn restart(&self) {
        self.order(Order::Restart).await;
    }

    /// SIGKILL to the command alone, not to what it started.
    pub async fn kill(&self, stay_down: bool) {
        self.order(Order::Kill { stay_down }).await;
    }

    async fn order(&self, order: Order) {
        let (done, wait) = oneshot::channel();
        if self.orders.send((order, done)).await.is_ok() {
            // Without an answer the task has ended, and with it the node.
            wait.await.ok();
        }
    }
}

/// What follows after the command has ended or an order came.
enum Next {
    Again,
    Pause(Duration),
    Idle,
}

struct Task {
    reaper: Reaper,
    log: File,
    notify: UnixDatagram,
    spec: CommandSpec,
    wanted: bool,
    orders: mpsc::Receiver<(Order, oneshot::Sender<()>)>,
    publish: watch::Sender<CommandState>,
}

impl Task {
    async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        let mut next = Next::Idle;
        loop {
            let until = match next {
                Next::Again => None,
                Next::Pause(time) => Some(Instant::now() + time),
                Next::Idle => {
                    self.idle_state();
                    let Some((order, done)) = self.orders.recv().await else { return };
                    self.apply(&order);
                    pause = FIRST_PAUSE;
                    next = self.settle();
                    done.send(()).ok();
                    continue;
                }
            };
            if let Some(until) = until {
                tokio::select! {
                    () = sleep_until(until) => {}
                    order = self.orders.recv() => {
                        let Some((order, done)) = order else { return };
                        self.apply(&order);
                        pause = FIRST_PAUSE;
                        next = self.settle();
                        done.send(()).ok();
                        continue;
                    }
                }
            }
            let began = Instant::now();
            next = match self.start() {
                Ok(running) => self.attend(running).await,
                Err(error) => {
                    self.cannot_start(&error);
                    Next::Pause(pause)
                }
            };
            if began.elapsed() > HEALTHY_AFTER {
                pause = FIRST_PAUSE;
            }
            if let Next::Pause(time) = &mut next {
                *time = pause;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    fn runnable(&self) -> bool {
        self.wanted && !self.spec.argv.is_empty()
    }

    /// What follows an order, said before the order is answered: whoever gave it must not take the state of before for
    /// that of now.
    fn settle(&self) -> Next {
        if self.runnable() {
            self.publish.send_modify(|state| {
                "waiting".clone_into(&mut state.state);
                state.not_running();
                state.error = None;
            });
            return Next::Again;
        }
        self.idle_state();
        Next::Idle
    }

    fn idle_state(&self) {
        let none = self.spec.argv.is_empty();
        self.publish.send_modify(|state| {
            let name = if none {
                "none"
            } else if state.state == "ended" {
                "ended"
            } else {
                "stopped"
            };
            name.clone_into(&mut state.state);
            state.not_running();
        });
    }

    fn apply(&mut self, order: &Order) {
        match order {
            Order::Run(spec) => {
                self.spec = spec.clone();
                self.wanted = true;
            }
            Order::Start | Order::Restart => self.wanted = true,
            Order::Stop => self.wanted = false,
            Order::Kill { stay_down } => self.wanted = self.wanted && !stay_down,
        }
    }

    fn start(&self) -> io::Result<Running> {
        let mut command = command(&self.spec.argv, &self.spec.env, &self.log)?;
        if self.spec.notify {
            command.env("NOTIFY_SOCKET", NOTIFY_SOCKET);
        }
        // What an earlier run has said is not this one's word.
        while self.notify.try_recv(&mut [0]).is_ok() {}
        let running = self.reaper.spawn(&mut command)?;
        let pid = running.pid.as_raw();
        tracing::info!(pid, program = ?self.spec.argv.first(), "command started");
        self.publish.send_modify(|state| {
            "running".clone_into(&mut state.state);
            state.pid = Some(pid);
            state.since = Some(Instant::now());
            state.said_ready = false;
            state.error = None;
        });
        Ok(running)
    }

    fn cannot_start(&self, error: &io::Error) {
        let program = self.spec.argv.first().map_or("", String::as_str);
        tracing::warn!(program, %error, "command cannot be started");
        let text = format!("start {program}: {error}; is it installed on the host, or bound into the node?");
        self.publish.send_modify(|state| {
            "failed".clone_into(&mut state.state);
            state.not_running();
            state.error = Some(text);
            state.restarts += 1;
        });
    }

    /// Waits for the end of the command, or for an order that ends it.
    async fn attend(&mut self, mut running: Running) -> Next {
        loop {
            let (order, done) = tokio::select! {
                exit = running.wait() => return self.ended(exit),
                () = ready_said(&self.notify) => {
                    self.publish.send_modify(|state| state.said_ready = true);
                    continue;
                }
                order = self.orders.recv() => match order {
                    Some(order) => order,
                    None => return Next::Idle,
                },
            };
            let same = matches!(&order, Order::Run(spec) if *spec == self.spec);
            match order {
                _ if same => {}
                Order::Start => {}
                Order::Kill { .. } => {
                    self.apply(&order);
                    running.signal(Signal::SIGKILL);
                    let exit = running.wait().await;
                    done.send(()).ok();
                    return self.ended(exit);
                }
                Order::Run(_) | Order::Stop | Order::Restart => {
                    self.apply(&order);
                    let exit = end(&mut running).await;
                    self.publish.send_modify(|state| state.last_exit = Some(exit));
                    let next = self.settle();
                    done.send(()).ok();
                    return next;
                }
            }
            done.send(()).ok();
        }
    }

    fn ended(&self, exit: Exit) -> Next {
        tracing::warn!(%exit, "command ended");
        let again = self.wanted && self.spec.restart.again(exit.success());
        self.publish.send_modify(|state| {
            let name = match (again, self.wanted) {
                (true, _) => "waiting",
                (false, true) => "ended",
                (false, false) => "stopped",
            };
            name.clone_into(&mut state.state);
            state.not_running();
            state.last_exit = Some(exit);
            if again {
                state.restarts += 1;
            }
        });
        if again { Next::Pause(FIRST_PAUSE) } else { Next::Idle }
    }
}

/// Resolves when a command says `READY=1`.
async fn ready_said(notify: &UnixDatagram) {
    let mut message = [0_u8; 4096];
    loop {
        match notify.recv(&mut message).await {
            Ok(length) => {
                let text = message.get(..length).unwrap_or_default();
                if text.split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the command cannot be heard any more");
                return std::future::pending().await;
            }
        }
    }
}

/// Ends a command in order.
async fn end(running: &mut Running) -> Exit {
    running.signal_group(Signal::SIGTERM);
    if let Ok(exit) = tokio::time::timeout(GRACE, running.wait()).await {
        // What stayed in its process group goes too; what made its own session lives on (a tunnel, say).
        running.signal_group(Signal::SIGKILL);
        return exit;
    }
    tracing::warn!("command did not end on SIGTERM");
    running.signal_group(Signal::SIGKILL);
    running.wait().await
}

/// A command with the node's basic environment, its own process group, and its output in `log`.
///
/// # Errors
/// `argv` is empty, or the log cannot be used twice.
pub fn command(argv: &[String], env: &BTreeMap<String, String>, log: &File) -> io::Result<Command> {
    let (program, arguments) = argv.split_first().ok_or_else(|| io::Error::other("an empty command"))?;
    let mut command = Command::new(program);
    command.args(arguments);
    basic_env(&mut command, env);
    command
        .process_group(0)
        .stdin(std::process::Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log.try_clone()?);
    Ok(command)
}

/// Gives a command the node's basic environment and nothing of this process' own.
pub fn basic_env(command: &mut Command, env: &BTreeMap<String, String>) {
    command
        .env_clear()
        .env("PATH", NODE_PATH)
        .env("HOME", "/root")
        .env("LANG", "C.UTF-8")
        .env("TERM", "xterm")
        .current_dir("/")
        .envs(env);
}

/// PATH inside nodes and pods.
pub const NODE_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
