//! What can go wrong, with the operation, its object, the kernel's reason and what to try next.

use std::io;

use nix::libc;

/// An operation of this crate that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a request (see the errno in `source`).
    #[error("cannot {what} {object}: {source}; {}", hint(.source))]
    Kernel {
        /// What was tried: "create the veth pair", "replace the route", ...
        what: &'static str,
        /// On what: names, addresses, the route as `ip route` would print it.
        object: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// An object of that name or address is there already, but is not the one that was asked for.
    #[error(
        "cannot {what} {object}: it exists already and is different ({found}); delete it first, or choose another name"
    )]
    Conflict {
        /// What was tried.
        what: &'static str,
        /// On what.
        object: String,
        /// What stands there instead.
        found: String,
    },
    /// Nothing of that name is in the namespace.
    #[error(
        "there is no {object} in the network namespace {namespace}; list the interfaces there with `ip -d link`"
    )]
    NotFound {
        /// What was looked for.
        object: String,
        /// In which namespace.
        namespace: String,
    },
    /// A network namespace cannot be opened, made, entered or removed.
    #[error("cannot {what} the network namespace {namespace}: {source}; {}", hint(.source))]
    Namespace {
        /// What was tried: "open", "create", "enter", "remove".
        what: &'static str,
        /// Path or description of the namespace.
        namespace: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The netlink socket of this handle is gone (its runtime was shut down).
    #[error("cannot {what} {object}: the netlink socket is closed; open a new handle")]
    Closed {
        /// What was tried.
        what: &'static str,
        /// On what.
        object: String,
    },
    /// An argument that can be told wrong before the kernel is asked.
    #[error("cannot {what} {object}: {reason}")]
    Invalid {
        /// What was tried.
        what: &'static str,
        /// On what.
        object: String,
        /// Which argument is wrong, and what is allowed.
        reason: String,
    },
    /// A sysctl cannot be read or written.
    #[error("cannot {what} the sysctl {key} in the network namespace {namespace}: {source}; {}", hint(.source))]
    Sysctl {
        /// "read" or "set to VALUE".
        what: String,
        /// The key with slashes, as below /proc/sys.
        key: String,
        /// In which namespace.
        namespace: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    /// The errno of the kernel's answer, where there is one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Kernel { source, .. } | Self::Namespace { source, .. } | Self::Sysctl { source, .. } => {
                source.raw_os_error()
            }
            _ => None,
        }
    }

    /// True when the object of the operation does not exist (an interface gone, a namespace gone).
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
            || matches!(self.errno(), Some(libc::ENODEV | libc::ENOENT | libc::ESRCH | libc::ENXIO))
    }
}

/// What the operator may try for an errno; one clause.
fn hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "run with CAP_NET_ADMIN (and CAP_SYS_ADMIN for namespaces)",
        Some(libc::ENODEV | libc::ENXIO) => "the interface is gone: see `ip link` in that namespace",
        Some(libc::EEXIST) => "something of that name exists: see `ip -d link`, `ip addr`, `ip route`",
        Some(libc::EOPNOTSUPP) => "this kernel lacks that kind of device or attribute: see its configuration",
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH) => {
            "the next hop is not reachable through an interface that is up: bring it up or mark the hop on-link"
        }
        Some(libc::ENETDOWN) => "the interface is down: bring it up first",
        Some(libc::EINVAL) => {
            "the kernel finds an attribute out of range: compare with `ip -d` on this kernel"
        }
        Some(libc::ENOENT) => "it does not exist there: check the path or name",
        Some(libc::ENOBUFS) => {
            "the kernel had no room for its answer: try again, and raise net.core.rmem_default if it comes back"
        }
        Some(libc::ENOTCONN) => "its socket cannot be opened: see the log's lines before",
        Some(libc::EBUSY) => "it is in use: stop what uses it",
        _ => "see the kernel log (dmesg) for more",
    }
}
