//! What the command line, the supervisor and the nodes' init say to each other: JSON, one message a line, over
//! unix sockets in the lab directory.

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::plan::{NodeSpec, Plan};
use crate::process::Exit;

/// The longest message, in bytes. A plan of a thousand nodes stays well below.
const MESSAGE_LIMIT: u64 = 64 << 20;

/// What the supervisor is asked.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Run this plan; answers events until `Done` or `Failed`.
    Up(Box<Plan>),
    /// End everything.
    Down,
    /// Tell the state of everything.
    Inspect,
    /// Do something to one node.
    Node {
        /// Its short name.
        node: String,
        /// What.
        action: NodeAction,
    },
}

/// What can be done to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeAction {
    /// Cut both ends of its links, then kill it. Its disk stays.
    PowerOff,
    /// Start it again and reconnect its links.
    PowerOn,
    /// SIGKILL to its command; with `stay_down` it is not started again by itself.
    KillCommand {
        /// Keep it dead.
        stay_down: bool,
    },
    /// Stop its command in order.
    StopCommand,
    /// Start its command.
    StartCommand,
    /// CNI CHECK of all its pods.
    CniCheck,
    /// Empty its state: its private directories and those its image has below /var/lib. The command must be stopped.
    Wipe,
}

/// What the supervisor answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Event {
    /// One more step is done.
    Step {
        /// What was done.
        what: String,
        /// Steps done.
        done: usize,
        /// All steps.
        total: usize,
    },
    /// Something to know that is no failure.
    Warning(String),
    /// Finished.
    Done(String),
    /// Failed, and undone.
    Failed {
        /// The node or link.
        subject: String,
        /// Why.
        reason: String,
        /// The end of its log.
        log: String,
    },
    /// The plan changes nodes or links: the lab must be rebuilt.
    Rebuild(String),
    /// The answer to `Inspect`.
    State(LabState),
}

/// What runs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LabState {
    /// The lab's name.
    pub name: String,
    /// The topology file.
    pub file: String,
    /// The lab directory.
    pub lab_dir: String,
    /// Pid of the supervisor in the PID namespace of whoever asked.
    pub supervisor_pid: i32,
    /// Nodes by short name.
    pub nodes: BTreeMap<String, NodeState>,
}

/// What one node does.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct NodeState {
    /// `running`, `off`, `failed`.
    pub state: String,
    /// The image, as in the file.
    pub image: String,
    /// Labels of the file.
    pub labels: BTreeMap<String, String>,
    /// The supervised command.
    pub command: CommandState,
    /// Interfaces.
    pub interfaces: Vec<String>,
    /// Pods run by its kubelet.
    pub pods: Vec<PodState>,
}

/// The supervised command of a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CommandState {
    /// `none`, `running`, `waiting` (to be started again), `stopped`, `failed`.
    pub state: String,
    /// Its pid in the node.
    pub pid: Option<i32>,
    /// When it was started, while it runs.
    #[serde(skip)]
    pub since: Option<tokio::time::Instant>,
    /// Whether it has said that it is ready (sd_notify(3)).
    #[serde(default)]
    pub said_ready: bool,
    /// How often it was started again after ending by itself.
    pub restarts: u32,
    /// How it ended last.
    pub last_exit: Option<Exit>,
    /// Why it could not be started.
    pub error: Option<String>,
}

impl CommandState {
    /// Forgets what is true only of a running command.
    pub fn not_running(&mut self) {
        (self.pid, self.since, self.said_ready) = (None, None, false);
    }
}

/// A pod of a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PodState {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `Pending`, `Running`, `Succeeded`, `Failed`.
    pub phase: String,
    /// Whether it is ready.
    pub ready: bool,
    /// Addresses.
    pub addresses: Vec<String>,
    /// Why it is not running.
    pub reason: Option<String>,
    /// The network namespace, a path in the node.
    pub netns: String,
    /// The cgroup, a path in the node.
    pub cgroup: String,
    /// The hosts file, a path in the node.
    pub hosts: String,
    /// The `resolv.conf`, likewise.
    pub resolv: String,
}

/// What a node's init is asked.
#[derive(Debug, Serialize, Deserialize)]
pub enum InitRequest {
    /// Interfaces and binds are there: run.
    Start(Box<NodeSpec>),
    /// Run this instead; what is equal goes on.
    Reconfigure(Box<NodeSpec>),
    /// Signal the command; see [`NodeAction::KillCommand`].
    Kill {
        /// Keep it dead.
        stay_down: bool,
    },
    /// Stop the command.
    Stop,
    /// Start the command.
    StartCommand,
    /// CNI CHECK of all pods.
    CniCheck,
    /// Empty the node's state.
    Wipe,
    /// Tell the state.
    State,
}

/// What a node's init answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum InitReply {
    /// Done; what to know about it.
    Done(Vec<String>),
    /// Not done.
    Failed(String),
    /// The answer to `State`.
    State(Box<NodeState>),
}

/// A connection that carries messages.
#[derive(Debug)]
pub struct Connection {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Connection {
    /// Connects to a socket.
    ///
    /// # Errors
    /// Nobody listens.
    pub async fn open(path: &Path) -> std::io::Result<Self> {
        Ok(Self::new(UnixStream::connect(path).await?))
    }

    /// Wraps an accepted stream.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        let (reader, writer) = stream.into_split();
        Self { reader: BufReader::new(reader), writer }
    }

    /// The pid of the process that listens (or connected), in this process' PID namespace.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn peer_pid(&self) -> std::io::Result<nix::unistd::Pid> {
        let stream: &UnixStream = self.reader.get_ref().as_ref();
        let credentials = stream.peer_cred()?;
        let pid = credentials.pid().ok_or_else(|| std::io::Error::other("no pid of the peer"))?;
        Ok(nix::unistd::Pid::from_raw(pid))
    }

    /// Sends one message.
    ///
    /// # Errors
    /// The other side has gone.
    pub async fn send<T: Serialize>(&mut self, message: &T) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(message).map_err(std::io::Error::other)?;
        line.push(b'\n');
        self.writer.write_all(&line).await
    }

    /// Receives one message; `None` when the other side has hung up.
    ///
    /// # Errors
    /// Not a message of this kind, or longer than the limit.
    pub async fn receive<T: DeserializeOwned>(&mut self) -> std::io::Result<Option<T>> {
        let mut line = Vec::new();
        (&mut self.reader).take(MESSAGE_LIMIT).read_until(b'\n', &mut line).await?;
        if line.is_empty() {
            return Ok(None);
        }
        serde_json::from_slice(&line).map(Some).map_err(std::io::Error::other)
    }

    /// Resolves when the other side hangs up or says anything more.
    pub async fn hung_up(&mut self) {
        // Either way whoever asked is no longer waiting in silence.
        self.reader.fill_buf().await.ok();
    }
}
