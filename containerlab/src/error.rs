//! What can go wrong with a lab.

use std::io;
use std::path::PathBuf;

/// Why a lab could not be brought up, asked or taken down.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The topology file or lab.yaml asks for something that cannot be done.
    #[error("{subject}: {reason}; {remedy}")]
    Plan {
        /// The node, link or key.
        subject: String,
        /// What is wrong.
        reason: String,
        /// What to try.
        remedy: String,
    },
    /// The topology file has errors; each is one line.
    #[error("the topology file {file} cannot be used:\n{errors}")]
    File {
        /// The file.
        file: PathBuf,
        /// One error a line.
        errors: String,
    },
    /// `lab.yaml` cannot be used.
    #[error(transparent)]
    Settings(#[from] crate::settings::SettingsError),
    /// Certificates could not be made.
    #[error(transparent)]
    Pki(#[from] crate::pki::PkiError),
    /// The checks could not be run.
    #[error(transparent)]
    Checks(#[from] crate::checks::CheckError),
    /// A system call or file operation failed.
    #[error("{what}: {source}{}", remedy(source))]
    Io {
        /// What was tried, on what.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A node, a link or the lab did not come up.
    #[error("{subject}: {reason}{}", log_tail(log))]
    Deploy {
        /// The node or link.
        subject: String,
        /// Why.
        reason: String,
        /// The end of the node's log; empty if there is none.
        log: String,
    },
    /// There is no such lab running.
    #[error("no lab is running from {file}; start it with `tombolo lab up -t {file}`")]
    NotRunning {
        /// The topology file.
        file: PathBuf,
    },
    /// No such node.
    #[error("the lab has no node {node}; its nodes are {nodes}")]
    NoNode {
        /// What was asked for.
        node: String,
        /// What there is.
        nodes: String,
    },
    /// The other side of a socket spoke something else, or hung up.
    #[error("{peer} {reason}; see {log}")]
    Talk {
        /// Who.
        peer: String,
        /// What happened.
        reason: String,
        /// Where to look.
        log: String,
    },
    /// Something was left behind.
    #[error("the lab left something behind:\n{0}")]
    Residue(Box<crate::runner::Residue>),
}

impl LabError {
    /// Wraps an I/O error with what was tried.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; the lab needs root",
        io::ErrorKind::StorageFull => "; free some space below /run or in memory",
        _ => "",
    }
}

fn log_tail(log: &str) -> String {
    if log.trim().is_empty() {
        String::new()
    } else {
        format!("\n--- end of its log ---\n{}", log.trim_end())
    }
}
