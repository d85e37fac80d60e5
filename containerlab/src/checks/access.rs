//! How checks reach the lab: commands in nodes and pods, and the power verbs, all through the `tombolo lab` command
//! line, as an operator would.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

use super::check::{Failure, Variant};

/// Most output read from one command, in bytes.
const MAX_OUTPUT_BYTES: u64 = 64 << 20;
/// How long an ordinary command may take.
pub(super) const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
/// How long reconfiguring the lab may take.
const UP_TIMEOUT: Duration = Duration::from_secs(300);

/// Where a command runs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Short name of the node.
    pub node: String,
    /// `NAMESPACE/NAME` of a pod on it; `None` for the node itself.
    pub pod: Option<String>,
}

impl Place {
    /// A node itself.
    pub fn node(node: impl Into<String>) -> Self {
        Self { node: node.into(), pod: None }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.pod {
            None => formatter.write_str(&self.node),
            Some(pod) => write!(formatter, "{pod} on {}", self.node),
        }
    }
}

/// What a command left.
#[derive(Debug)]
pub struct Output {
    /// Exit status.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error, as text.
    pub stderr: String,
}

/// The running lab, reached through this program's own command line.
#[derive(Debug, Clone)]
pub struct Access {
    program: PathBuf,
    topology: PathBuf,
}

impl Access {
    /// Access to the lab of a topology file by the program that is running now.
    ///
    /// # Errors
    /// When the path of this program cannot be found out.
    pub fn new(topology: &Path) -> std::io::Result<Self> {
        Ok(Self { program: std::env::current_exe()?, topology: topology.to_owned() })
    }

    /// The topology file.
    #[must_use]
    pub fn topology(&self) -> &Path {
        &self.topology
    }

    /// Fails at once when the lab does not run.
    ///
    /// # Errors
    /// With the command that brings it up.
    pub async fn running(&self) -> Result<(), Failure> {
        let mut command = self.lab("inspect");
        command.args(["-o", "json"]);
        let look = format!("`tombolo lab up -t {}`", self.topology.display());
        finish(run(command, COMMAND_TIMEOUT).await, "lab inspect (the lab is up)", look)
    }

    fn lab(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("lab").arg(verb).arg("-t").arg(&self.topology).kill_on_drop(true);
        command
    }

    /// The command line an operator types to run `argv` at `place`; for messages.
    #[must_use]
    pub fn shown(&self, place: &Place, argv: &[&str]) -> String {
        let pod = place.pod.as_ref().map(|pod| format!(" --pod {pod}")).unwrap_or_default();
        format!("`tombolo lab exec -t {}{pod} {} -- {}`", self.topology.display(), place.node, argv.join(" "))
    }

    fn exec_command(&self, place: &Place, argv: &[&str]) -> Command {
        let mut command = self.lab("exec");
        if let Some(pod) = &place.pod {
            command.arg("--pod").arg(pod);
        }
        command.arg(&place.node).arg("--").args(argv);
        command
    }

    /// Runs `argv` at `place` to its end.
    ///
    /// # Errors
    /// When it cannot be started, prints too much or does not end in time; its exit status is the caller's to judge.
    pub async fn exec(&self, place: &Place, argv: &[&str], timeout: Duration) -> Result<Output, Failure> {
        let command = self.exec_command(place, argv);
        run(command, timeout).await.map_err(|why| {
            let what = format!("{} in {place}", argv.join(" "));
            Failure::tool(&what, why, self.shown(place, argv))
        })
    }

    /// Runs `argv` and reads its standard output as one JSON document, whatever its exit status.
    ///
    /// # Errors
    /// As [`Access::exec`], and when the output is no JSON of the wanted shape.
    pub async fn json<T: DeserializeOwned>(
        &self,
        place: &Place,
        argv: &[&str],
        timeout: Duration,
    ) -> Result<T, Failure> {
        let output = self.exec(place, argv, timeout).await?;
        serde_json::from_slice(&output.stdout).map_err(|error| {
            let said = if output.stdout.is_empty() {
                output.stderr.trim().to_owned()
            } else {
                String::from_utf8_lossy(output.stdout.get(..300).unwrap_or(&output.stdout)).into_owned()
            };
            Failure::new(
                format!("JSON from {} in {place}", argv.join(" ")),
                format!("{error} ({}): {said}", output.status),
                self.shown(place, argv),
            )
        })
    }

    /// Runs `argv` and returns its output as text; a failing exit status is an error.
    ///
    /// # Errors
    /// As [`Access::exec`], and when the command fails.
    pub async fn text(&self, place: &Place, argv: &[&str]) -> Result<String, Failure> {
        let output = self.exec(place, argv, COMMAND_TIMEOUT).await?;
        if !output.status.success() {
            return Err(Failure::new(
                format!("{} in {place} succeeds", argv.join(" ")),
                format!("{}: {}", output.status, output.stderr.trim()),
                self.shown(place, argv),
            ));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts `argv` at `place` in the background with all three streams piped. Dropping the child kills the
    /// command that entered the node; closing its input ends the probes that were started `--until-eof`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, place: &Place, argv: &[&str]) -> Result<Child, Failure> {
        let mut command = self.exec_command(place, argv);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().map_err(|error| {
            Failure::tool(&format!("{} in {place}", argv.join(" ")), error, self.shown(place, argv))
        })
    }

    /// A verb of the lab on one node: `power-off`, `power-on`, `kill-agent`, `stop-cmd`, `start-cmd`, `wipe`.
    ///
    /// # Errors
    /// When the verb fails.
    pub async fn verb(&self, verb: &str, node: &str) -> Result<(), Failure> {
        let mut command = self.lab(verb);
        command.arg(node);
        let look = self.verb_shown(verb, node);
        finish(run(command, COMMAND_TIMEOUT * 2).await, &format!("lab {verb} {node}"), look)
    }

    /// What a node's command has logged.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn log(&self, node: &str) -> Result<String, Failure> {
        let mut command = self.lab("logs");
        command.arg(node);
        let (what, look) = (format!("lab logs {node}"), self.verb_shown("logs", node));
        match run(command, COMMAND_TIMEOUT).await {
            Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            Ok(output) => Err(Failure::tool(&what, output.stderr.trim(), look)),
            Err(why) => Err(Failure::tool(&what, why, look)),
        }
    }

    /// `argv` at `place` as a command of the standard library, for where nothing can be awaited.
    #[must_use]
    pub fn exec_command_now(&self, place: &Place, argv: &[&str]) -> std::process::Command {
        self.exec_command(place, argv).into_std()
    }

    /// A verb as a command of the standard library, for where nothing can be awaited.
    #[must_use]
    pub fn verb_command(&self, verb: &str, node: &str) -> std::process::Command {
        let mut command = std::process::Command::new(&self.program);
        command.arg("lab").arg(verb).arg("-t").arg(&self.topology).arg(node);
        command
    }

    /// The verb as an operator types it; for messages.
    #[must_use]
    pub fn verb_shown(&self, verb: &str, node: &str) -> String {
        format!("`tombolo lab {verb} -t {} {node}`", self.topology.display())
    }

    /// Reconfigures the running lab to another path variant.
    ///
    /// # Errors
    /// When `lab up` fails.
    pub async fn up(&self, variant: Variant) -> Result<(), Failure> {
        let mut command = self.lab("up");
        command.env("TOMBOLO_VARIANT", variant.name());
        let look = format!("`TOMBOLO_VARIANT={variant} tombolo lab up -t {}`", self.topology.display());
        finish(run(command, UP_TIMEOUT).await, &format!("lab up as {variant}"), look)
    }
}

fn finish(result: Result<Output, String>, what: &str, look: String) -> Result<(), Failure> {
    match result {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(Failure::tool(what, format!("{}: {}", output.status, output.stderr.trim()), look)),
        Err(why) => Err(Failure::tool(what, why, look)),
    }
}

async fn run(mut command: Command, timeout: Duration) -> Result<Output, String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err("its output could not be opened".to_owned());
    };
    let work = async {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut stdout = stdout.take(MAX_OUTPUT_BYTES);
        let mut stderr = stderr.take(1 << 16);
        let read = tokio::join!(stdout.read_to_end(&mut out), stderr.read_to_end(&mut err));
        read.0.and(read.1).map_err(|error| error.to_string())?;
        let status = child.wait().await.map_err(|error| error.to_string())?;
        Ok(Output { status, stdout: out, stderr: String::from_utf8_lossy(&err).into_owned() })
    };
    tokio::time::timeout(timeout, work)
        .await
        .unwrap_or_else(|_| Err(format!("no end within {} s", timeout.as_secs())))
}
