//! `tombolo lab test`: asks the running lab whether it does what it must, in every path variant.
//!
//! Each check asserts the answer (who answered, whom it saw) **and** the flow events of the nodes concerned. What is
//! expected is computed from the topology, the settings and the manifests. The list is data: [`catalog`]. Checks
//! reach the lab only through `tombolo lab exec` and the power verbs, as an operator would.
//!
//! ```no_run
//! # async fn sketch(args: tombolo_containerlab::checks::TestArgs) -> Result<(), Box<dyn std::error::Error>> {
//! use std::path::Path;
//! use tombolo_containerlab::checks;
//! let summary = checks::run(&args, Path::new("two-clusters.clab.yml")).await?;
//! checks::print(&args, &summary)?;
//! let exit_status = i32::from(summary.failed > 0);
//! # let _ = exit_status; Ok(()) }
//! ```

mod access;
mod ask;
pub mod catalog;
mod check;
mod context;
mod etcd;
mod faults;
mod flows;
mod inventory;
mod mtu;
mod names;
mod poll;
mod ready;
mod routers;
mod run;
pub mod scenarios;
mod sessions;
mod summary;
mod wire;

use std::io::{self, Write};
use std::path::Path;

use clap::{Args, ValueEnum};

pub use check::{Check, Failure, Family, Phase, Row, Status, Task, Variant};
pub use inventory::Inventory;
pub use run::run;
pub use summary::Summary;

/// Why a test run could not even begin.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The path of this program is unknown, so it cannot be run in the nodes.
    #[error("cannot find out the path of this program: {0}; is /proc mounted?")]
    Program(#[source] io::Error),
    /// The lab does not run, or cannot be reconfigured.
    #[error("the lab cannot be tested: expected {}; got {}; try {}", .0.expected, .0.got, .0.look)]
    Lab(Box<Failure>),
    /// The run was ended by a signal; what a fault had broken was mended.
    #[error(
        "the test was interrupted; what it had broken was mended, and `tombolo lab inspect` shows the lab"
    )]
    Interrupted,
    /// No check has a name like the one asked for.
    #[error("no check matches --only {0:?}; leave it out to see all names")]
    NoSuchCheck(String),
    /// The result could not be printed.
    #[error("cannot print the result: {0}")]
    Output(#[from] io::Error),
    /// The result could not be encoded (a programming error).
    #[error("cannot encode the result as JSON: {0}")]
    Encode(#[from] serde_json::Error),
}

/// How the result is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// Arguments of `tombolo lab test`.
#[derive(Debug, Clone, Args)]
pub struct TestArgs {
    /// Path variant to test; the lab is reconfigured to it if another one runs
    #[arg(long, value_enum, conflicts_with = "all_variants")]
    pub variant: Option<Variant>,
    /// Reconfigure the lab through all four variants
    #[arg(long)]
    pub all_variants: bool,
    /// Only checks whose name contains this text (may be given more than once)
    #[arg(long, value_name = "TEXT")]
    pub only: Vec<String>,
    /// Whether to break things as well; by default in overlay and direct-wireguard when all variants run
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub faults: Option<bool>,
    /// Whether to run the scenarios of policies; by default in overlay alone when all variants run, else always
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub scenarios: Option<bool>,
    /// How long the etcd fault lasts, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(5..=600))]
    pub etcd_down_secs: u64,
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t)]
    pub output: OutputFormat,
}

impl TestArgs {
    fn scenarios_in(&self, variant: Variant) -> bool {
        self.scenarios.unwrap_or(!self.all_variants || variant.runs_scenarios())
    }

    /// Whether the scenarios about encryption run in a variant.
    fn encryption_scenarios_in(&self, variant: Variant) -> bool {
        let belongs =
            if self.all_variants { variant.runs_encryption_scenarios() } else { variant.encrypted() };
        self.scenarios.unwrap_or(true) && belongs
    }

    /// Whether faults run in a variant, and otherwise why not. `None`: they do not belong to it at all.
    fn faults_in(&self, variant: Variant) -> Option<Result<(), &'static str>> {
        match self.faults {
            Some(true) => Some(Ok(())),
            Some(false) => Some(Err("--faults=false")),
            None if self.all_variants => variant.runs_faults().then_some(Ok(())),
            None => Some(Err("faults run with --faults or --all-variants")),
        }
    }

    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|text| name.contains(text.as_str()))
    }
}

/// Prints the result of a run in the format asked for.
///
/// # Errors
/// When standard output cannot be written.
pub fn print(args: &TestArgs, summary: &Summary) -> Result<(), CheckError> {
    let mut out = io::stdout().lock();
    match args.output {
        OutputFormat::Table => writeln!(out, "{}", summary.table())?,
        OutputFormat::Json => {
            serde_json::to_writer_pretty(&mut out, summary)?;
            writeln!(out)?;
        }
    }
    out.flush()?;
    Ok(())
}

/// Runs the checks, prints the result and returns whether none failed.
///
/// # Errors
/// When the run could not begin, or nothing be printed.
pub async fn test(args: &TestArgs, topology: &Path) -> Result<bool, CheckError> {
    // Dropping the run mends what a fault has broken.
    let summary = tokio::select! {
        summary = run(args, topology) => summary?,
        () = crate::workload::stop_signal() => return Err(CheckError::Interrupted),
    };
    print(args, &summary)?;
    Ok(summary.failed == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: TestArgs,
    }

    fn args(words: &[&str]) -> TestArgs {
        let words = std::iter::once("test").chain(words.iter().copied());
        Cli::try_parse_from(words).expect("good arguments").args
    }

    #[test]
    fn scenarios_follow_the_options() {
        assert!(args(&[]).scenarios_in(Variant::Direct));
        assert!(!args(&["--scenarios=false"]).scenarios_in(Variant::Overlay));
        let all = args(&["--all-variants"]);
        assert!(all.scenarios_in(Variant::Overlay) && !all.scenarios_in(Variant::Direct));
        assert!(args(&["--all-variants", "--scenarios"]).scenarios_in(Variant::Direct));
        let about_encryption = |args: &TestArgs| {
            Variant::ALL
                .into_iter()
                .filter(|variant| args.encryption_scenarios_in(*variant))
                .collect::<Vec<_>>()
        };
        assert_eq!(about_encryption(&all), [Variant::OverlayWireguard]);
        assert_eq!(about_encryption(&args(&[])), [Variant::OverlayWireguard, Variant::DirectWireguard]);
        assert!(about_encryption(&args(&["--scenarios=false"])).is_empty());
    }

    #[test]
    fn faults_follow_the_options() {
        let all = args(&["--all-variants"]);
        assert_eq!(all.faults_in(Variant::Overlay), Some(Ok(())));
        assert_eq!(all.faults_in(Variant::Direct), None);
        assert!(matches!(args(&[]).faults_in(Variant::Overlay), Some(Err(_))));
        assert_eq!(args(&["--faults"]).faults_in(Variant::Direct), Some(Ok(())));
        assert!(matches!(
            args(&["--all-variants", "--faults=false"]).faults_in(Variant::Overlay),
            Some(Err(_))
        ));
    }

    #[test]
    fn names_are_chosen_by_text() {
        let some = args(&["--only", "mtu", "--only", "east/ipv6"]);
        assert!(some.wants("mtu/other-node/west/ipv4") && some.wants("policy/denied/tcp/east/ipv6"));
        assert!(!some.wants("policy/denied/tcp/east/ipv4"));
        assert_eq!(args(&["--variant", "direct-wireguard"]).variant, Some(Variant::DirectWireguard));
    }
}
