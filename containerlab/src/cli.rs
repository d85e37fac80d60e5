//! The command line of the lab: `tombolo lab ...`, and the hidden commands its processes are started with.
//!
//! The binary mounts [`LabArgs`] as `lab` and flattens [`HiddenCommand`] into its top-level commands. Both must be
//! run **before any thread or async runtime is started**: they enter namespaces and make their own runtime.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};

use crate::error::LabError;
use crate::runner::progress::Progress;
use crate::runner::protocol::NodeAction;
use crate::runner::{Lab, Outcome, exec, supervisor, topology_file};

/// How reading commands print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// `tombolo lab`: run labs in namespaces of this machine.
#[derive(Debug, Args)]
pub struct LabArgs {
    /// The topology file; without it, the only *.clab.yml of the working directory.
    #[arg(short = 't', long = "topo", global = true, value_name = "FILE")]
    pub topology: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: LabCommand,
}

/// What can be done with a lab.
#[derive(Debug, Subcommand)]
pub enum LabCommand {
    /// Bring the lab up, or make a running one follow its files.
    Up,
    /// Take the lab down and say what is left of it (nothing).
    Down,
    /// Run a command in a node or one of its pods.
    Exec {
        /// The node, or NODE/NAMESPACE/POD.
        node: String,
        /// A pod of the node, NAMESPACE/NAME.
        #[arg(short = 'n', long, value_name = "NAMESPACE/NAME")]
        pod: Option<String>,
        /// The command.
        #[arg(last = true, required = true)]
        argv: Vec<String>,
    },
    /// Show what runs.
    Inspect {
        /// How to print it.
        #[arg(short, long, default_value = "table")]
        output: Format,
    },
    /// Draw the lab as Mermaid.
    Graph,
    /// Ask the running lab whether it does what it must.
    Test(crate::checks::TestArgs),
    /// Show what a node has written.
    Logs {
        /// The node; `supervisor` for the lab's own log.
        node: String,
        /// The node's init instead of its command.
        #[arg(long)]
        init: bool,
        /// A pod of the node instead, NAMESPACE/NAME.
        #[arg(short = 'n', long, value_name = "NAMESPACE/NAME")]
        pod: Option<String>,
        /// Go on as it is written.
        #[arg(short, long)]
        follow: bool,
    },
    /// Cut a node's links and kill it.
    #[command(hide = true)]
    PowerOff {
        /// The node.
        node: String,
    },
    /// Start a node that is off.
    #[command(hide = true)]
    PowerOn {
        /// The node.
        node: String,
    },
    /// SIGKILL a node's command.
    #[command(hide = true)]
    KillAgent {
        /// The node.
        node: String,
        /// Do not start it again.
        #[arg(long)]
        stay_down: bool,
    },
    /// Stop a node's command.
    #[command(hide = true)]
    StopCmd {
        /// The node.
        node: String,
    },
    /// Start a node's command.
    #[command(hide = true)]
    StartCmd {
        /// The node.
        node: String,
    },
    /// Ask the CNI plugins whether all pods of a node are attached as they should be (CNI CHECK).
    #[command(hide = true)]
    CniCheck {
        /// The node.
        node: String,
    },
    /// Empty the state of a node whose command is stopped.
    #[command(hide = true)]
    Wipe {
        /// The node.
        node: String,
    },
}

/// The commands the lab's own processes are started with; nobody types them.
#[derive(Debug, Subcommand)]
pub enum HiddenCommand {
    /// PID 1 of a node.
    #[command(hide = true)]
    LabInit {
        /// Its boot file.
        boot: PathBuf,
    },
    /// PID 1 of a lab.
    #[command(hide = true)]
    LabSupervisor {
        /// The lab directory.
        lab_dir: PathBuf,
    },
    /// Runs a command in a node.
    #[command(hide = true)]
    LabJoin {
        /// The control socket of the node's init.
        control: PathBuf,
        /// A pod of the node.
        #[arg(long)]
        pod: Option<String>,
        /// The command.
        #[arg(last = true, required = true)]
        argv: Vec<String>,
    },
    /// Runs a command in a pod, from within its node.
    #[command(hide = true)]
    LabEnter {
        /// The pod's network namespace.
        #[arg(long)]
        netns: PathBuf,
        /// The pod's cgroup.
        #[arg(long)]
        cgroup: PathBuf,
        /// The pod's hosts file.
        #[arg(long)]
        hosts: PathBuf,
        /// The pod's resolv.conf.
        #[arg(long)]
        resolv: PathBuf,
        /// The pod's host name.
        #[arg(long)]
        hostname: String,
        /// The command.
        #[arg(last = true, required = true)]
        argv: Vec<String>,
    },
}

impl HiddenCommand {
    /// Runs it. Logs go to standard error, which is a file of the lab directory.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let done: Result<i32, LabError> = match self {
            Self::LabInit { boot } => {
                log_to_stderr();
                crate::init::run(&boot).map(|()| 0).map_err(LabError::io("run the node's init"))
            }
            Self::LabSupervisor { lab_dir } => {
                log_to_stderr();
                supervisor::run(&lab_dir).map(|()| 0).map_err(LabError::io("run the lab's supervisor"))
            }
            Self::LabJoin { control, pod, argv } => join(&control, pod.as_deref(), &argv),
            Self::LabEnter { netns, cgroup, hosts, resolv, hostname, argv } => {
                let sandbox = exec::Sandbox {
                    netns: &netns,
                    cgroup: &cgroup,
                    hosts: &hosts,
                    resolv: &resolv,
                    hostname: &hostname,
                };
                match exec::enter_pod(&sandbox, &argv) {
                    Ok(never) => match never {},
                    Err(error) => Err(LabError::io(format!("enter pod {hostname}"))(error)),
                }
            }
        };
        finish(done)
    }
}

impl LabArgs {
    /// Runs it.
    #[must_use]
    pub fn run(self) -> ExitCode {
        finish(self.try_run())
    }

    fn try_run(self) -> Result<i32, LabError> {
        let lab = Lab::open(&topology_file(self.topology)?)?;
        match self.command {
            LabCommand::Exec { node, pod, argv } => {
                let (node, pod) = split_target(&node, pod.as_deref());
                // Asked for its own sake: an unknown node is told with the names of those there are.
                lab.log_tail(&node, 0)?;
                join(&lab.layout().control(&node), pod.as_deref(), &argv)
            }
            LabCommand::Logs { node, init, pod, follow } => {
                let path = log_path(&lab, &node, init, pod.as_deref())?;
                print_log(&path, follow).map_err(LabError::io(format!("show {}", path.display())))?;
                Ok(0)
            }
            LabCommand::Graph => {
                // Beside the picture, which shows the file: what of it would not be deployed.
                for warning in &lab.warnings {
                    writeln!(io::stderr(), "warning: {warning}").ok();
                }
                say(&crate::graph::mermaid(&lab.topology));
                Ok(0)
            }
            LabCommand::Test(arguments) => {
                let passed = runtime(true)?.block_on(crate::checks::test(&arguments, &lab.topology.file))?;
                Ok(i32::from(!passed))
            }
            command => block_on(act(&lab, command))?,
        }
    }
}

fn join(control: &Path, pod: Option<&str>, argv: &[String]) -> Result<i32, LabError> {
    let pod = match pod {
        None => None,
        Some(name) => Some(name.split_once('/').ok_or_else(|| LabError::Plan {
            subject: format!("pod {name:?}"),
            reason: "is not of the form NAMESPACE/NAME".to_owned(),
            remedy: "see `tombolo lab inspect` for the pods".to_owned(),
        })?),
    };
    block_on(exec::join(control, pod, argv))?
}

fn block_on<T>(work: impl Future<Output = T>) -> Result<T, LabError> {
    Ok(runtime(false)?.block_on(work))
}

fn runtime(threads: bool) -> Result<tokio::runtime::Runtime, LabError> {
    use tokio::runtime::Builder;
    let mut builder = if threads { Builder::new_multi_thread() } else { Builder::new_current_thread() };
    builder.enable_all().build().map_err(LabError::io("start a runtime"))
}

async fn act(lab: &Lab, command: LabCommand) -> Result<i32, LabError> {
    let (node, action) = match command {
        LabCommand::Up => {
            up(lab).await?;
            return Ok(0);
        }
        LabCommand::Down => {
            let residue = lab.down().await?;
            say(&format!("lab {} is down; left behind: {residue}", lab.topology.name));
            return if residue.is_clean() { Ok(0) } else { Err(LabError::Residue(Box::new(residue))) };
        }
        LabCommand::Inspect { output } => {
            inspect(lab, output).await?;
            return Ok(0);
        }
        LabCommand::PowerOff { node } => (node, NodeAction::PowerOff),
        LabCommand::PowerOn { node } => (node, NodeAction::PowerOn),
        LabCommand::KillAgent { node, stay_down } => (node, NodeAction::KillCommand { stay_down }),
        LabCommand::StopCmd { node } => (node, NodeAction::StopCommand),
        LabCommand::StartCmd { node } => (node, NodeAction::StartCommand),
        LabCommand::CniCheck { node } => (node, NodeAction::CniCheck),
        LabCommand::Wipe { node } => (node, NodeAction::Wipe),
        // Handled before a runtime was needed.
        LabCommand::Exec { .. } | LabCommand::Graph | LabCommand::Test(_) | LabCommand::Logs { .. } => {
            return Ok(2);
        }
    };
    say(&lab.node(&node, action).await?);
    Ok(0)
}

async fn up(lab: &Lab) -> Result<(), LabError> {
    let began = std::time::Instant::now();
    let mut progress = Progress::for_terminal();
    for warning in &lab.warnings {
        progress.warn(warning);
    }
    let outcome = lab.up(&mut progress).await?;
    progress.finish();
    let seconds = began.elapsed().as_secs_f64();
    match outcome {
        Outcome::Started(what) => {
            say(&format!("lab {} is up ({what}) after {seconds:.1} s", lab.topology.name))
        }
        Outcome::Changed(what) => {
            say(&format!("lab {} was running; {what} ({seconds:.1} s)", lab.topology.name))
        }
    }
    Ok(())
}

async fn inspect(lab: &Lab, output: Format) -> Result<(), LabError> {
    let state = lab.inspect().await?;
    if output == Format::Json {
        let text = serde_json::to_string_pretty(&state).map_err(io::Error::other);
        say(&text.map_err(LabError::io("print the state"))?);
        return Ok(());
    }
    say(&format!(
        "lab {} from {}, files in {}, supervisor pid {}",
        state.name, state.file, state.lab_dir, state.supervisor_pid
    ));
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["NODE", "STATE", "IMAGE", "COMMAND", "RESTARTS", "INTERFACES", "PODS READY"]);
    for (name, node) in &state.nodes {
        let ready = node.pods.iter().filter(|pod| pod.ready).count();
        table.add_row([
            name.clone(),
            node.state.clone(),
            node.image.clone(),
            node.command.state.clone(),
            node.command.restarts.to_string(),
            node.interfaces.join(" "),
            if node.pods.is_empty() { String::new() } else { format!("{ready}/{}", node.pods.len()) },
        ]);
    }
    say(&table.to_string());
    Ok(())
}

/// `NODE` or `NODE/NAMESPACE/POD`, and a pod named by option.
fn split_target(node: &str, pod: Option<&str>) -> (String, Option<String>) {
    match node.split_once('/') {
        Some((node, pod)) => (node.to_owned(), Some(pod.to_owned())),
        None => (node.to_owned(), pod.map(str::to_owned)),
    }
}

fn log_path(lab: &Lab, node: &str, init: bool, pod: Option<&str>) -> Result<PathBuf, LabError> {
    let layout = lab.layout();
    if node == "supervisor" && !lab.topology.nodes.contains_key(node) {
        return Ok(layout.supervisor_log());
    }
    lab.log_tail(node, 0)?;
    Ok(match (pod, init) {
        (Some(pod), _) => layout.pod_logs(node).join(format!("{}.log", pod.replace('/', "-"))),
        (None, true) => layout.init_log(node),
        (None, false) => layout.log(node),
    })
}

/// Prints a log; with `follow` also what is added to it, until interrupted.
fn print_log(path: &Path, follow: bool) -> io::Result<()> {
    use notify::Watcher;
    let mut file = std::fs::File::open(path)?;
    let mut out = io::stdout().lock();
    io::copy(&mut file, &mut out)?;
    out.flush()?;
    if !follow {
        return Ok(());
    }
    let (tell, told) = std::sync::mpsc::channel();
    let mut watcher = notify::recommended_watcher(tell).map_err(io::Error::other)?;
    watcher.watch(path, notify::RecursiveMode::NonRecursive).map_err(io::Error::other)?;
    // What was written between the first copy and the watch.
    io::copy(&mut file, &mut out)?;
    out.flush()?;
    while told.recv().is_ok() {
        io::copy(&mut file, &mut out)?;
        out.flush()?;
    }
    Ok(())
}

fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("TOMBOLO_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(false);
    // The binary may have set up its own already.
    logs.try_init().ok();
}

fn say(text: &str) {
    // A closed pipe (`| head`) ends the output, not the work.
    writeln!(io::stdout(), "{text}").ok();
}

fn finish(done: Result<i32, LabError>) -> ExitCode {
    match done {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(error) => {
            writeln!(io::stderr(), "error: {error}").ok();
            ExitCode::FAILURE
        }
    }
}
