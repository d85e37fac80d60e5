//! Errors of the etcd side.

use std::path::PathBuf;

/// What went wrong between this agent and an etcd, or with the files that describe one.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// A file could not be read.
    #[error("cannot read {what} {path}: {source}; check that it exists and that the agent may read it")]
    Read {
        /// What the file is.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file could not be written.
    #[error("cannot write {what} {path}: {source}; check space and rights of the state directory")]
    Write {
        /// What the file is.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// An etcd file that is no such thing.
    #[error("{file} is not a usable etcd client file: {reason}")]
    File {
        /// Which file.
        file: String,
        /// What is wrong and what to write instead.
        reason: String,
    },
    /// A certificate or key that cannot be used.
    #[error("{}: {reason}; {remedy}", .file.display())]
    Certificate {
        /// Which file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What to do.
        remedy: String,
    },
    /// A request failed.
    #[error("etcd: {what} failed: {why}")]
    Request {
        /// What was tried, on what.
        what: String,
        /// Why it failed and what to try.
        why: String,
        /// Whether asking again can help.
        kind: crate::follower::FailureKind,
    },
    /// A value that cannot be written.
    #[error("cannot encode {what}: {source}")]
    Encode {
        /// What it is.
        what: String,
        /// Why not.
        source: serde_json::Error,
    },
    /// A value is larger than etcd takes.
    #[error("the value of {key} has {bytes} bytes, more than etcd's limit of {limit}; split the object")]
    TooLarge {
        /// The key.
        key: String,
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// No number left.
    #[error(
        "all identities {first}..{last} of the cluster are in use; remove labels that differ per pod from the identity labels"
    )]
    Exhausted {
        /// First allocatable number.
        first: u32,
        /// Last number.
        last: u32,
    },
    /// An unknown label set while etcd cannot be asked.
    #[error(
        "no identity for labels {labels}: it is not known yet and etcd cannot be asked ({why}); pods with known labels still start"
    )]
    Unknown {
        /// The labels.
        labels: String,
        /// Why etcd did not answer.
        why: String,
    },
    /// The labels cannot be published.
    #[error("labels {labels} cannot be an identity of this cluster: {reason}")]
    Labels {
        /// The labels.
        labels: String,
        /// Which rule they break.
        reason: String,
    },
    /// The part was stopped.
    #[error("the cluster mesh part is stopping")]
    Stopped,
}
