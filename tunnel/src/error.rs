//! What can go wrong with WireGuard.

use std::io;
use std::path::PathBuf;

/// A failed operation on WireGuard.
#[derive(Debug, thiserror::Error)]
pub enum WireguardError {
    /// The key file cannot be used.
    #[error("cannot use the WireGuard key in {path}: {reason}; {remedy}")]
    Key {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
        /// What to try.
        remedy: &'static str,
    },
    /// The device cannot be made or set up.
    #[error("cannot set up the WireGuard device: {0}")]
    Device(#[from] tombolo_netlink::Error),
    /// The userspace unit cannot be started or does not come up.
    #[error("cannot start the userspace WireGuard unit {program}: {reason}; see {log}")]
    Start {
        /// The program.
        program: PathBuf,
        /// The reason.
        reason: String,
        /// Where the unit writes its log.
        log: String,
    },
    /// The control socket does not work.
    #[error(
        "cannot {what} over the WireGuard control socket {socket}: {source}; see whether `tombolo wireguard` runs"
    )]
    Control {
        /// "read the state" or "change the device".
        what: &'static str,
        /// The socket.
        socket: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The device's answer breaks the protocol.
    #[error("cannot read the state of the WireGuard device: {0}")]
    Protocol(String),
    /// The kernel's device does not work.
    #[error("cannot {what} the kernel's WireGuard device {device}: {source}; see the kernel log (dmesg)")]
    Kernel {
        /// "read" or "change".
        what: &'static str,
        /// The device.
        device: String,
        /// The reason.
        source: io::Error,
    },
}
