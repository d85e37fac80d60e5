//! The lab: containerlab's topology files, run in namespaces of one machine.
//!
//! * [`file`] reads topology files, [`settings`] the `lab.yaml` beside one, [`pki`] makes its certificates.
//! * [`runner`] brings labs up and down, changes running ones, switches nodes off and on; [`runner::Lab`] is its API.
//! * [`init`] is PID 1 of every node, [`kubelet`] the part of it that runs pods.
//! * [`workload`] is what the pods run.
//! * [`cli`] mounts all of it: `tombolo lab ...` and the hidden commands the lab's processes are started with.
//!
//! A lab is a tree of processes under one supervisor, which is PID 1 of its own PID namespace and owns the enclosing
//! network namespace. Each node is an init in network, mount, PID, UTS, IPC and cgroup namespaces of its own, on an
//! overlay over the host's root. When the supervisor ends, the kernel ends the rest; mounts and interfaces go with
//! their namespaces, so that only cgroups and the lab directory are left to remove.
//!
//! ```no_run
//! use clap::Parser;
//! use tombolo_containerlab::cli::{HiddenCommand, LabArgs};
//!
//! #[derive(Parser)]
//! enum Command {
//!     Lab(LabArgs),
//!     #[command(flatten)]
//!     Hidden(HiddenCommand),
//! }
//!
//! // No thread and no runtime may have been started before this.
//! fn main() -> std::process::ExitCode {
//!     match Command::parse() {
//!         Command::Lab(lab) => lab.run(),
//!         Command::Hidden(hidden) => hidden.run(),
//!     }
//! }
//! ```
#![deny(unsafe_code)]

pub mod checks;
pub mod cli;
pub mod controllers;
pub mod enter;
mod error;
pub mod file;
pub mod graph;
pub mod init;
pub mod kubelet;
pub mod pki;
pub mod process;
pub mod runner;
pub mod settings;
pub mod workload;

pub use error::LabError;
