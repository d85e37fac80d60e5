//! What can go wrong between user space and the kernel's datapath.

use std::io;
use std::path::PathBuf;

/// A failed operation on programs, maps, links or events.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The pin directory could not be made or read.
    #[error(
        "{operation} {path}: {source}; is a bpffs mounted there (mount -t bpf bpf /sys/fs/bpf) and is the agent root?"
    )]
    BpfFs {
        /// What was tried.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The object could not be loaded.
    #[error("load eBPF object: {0}; needs Linux 6.1 or later with BTF and CAP_BPF, CAP_NET_ADMIN")]
    Load(#[source] Box<aya::EbpfError>),
    /// A program was refused by the verifier or could not be found.
    #[error("load program {program}: {source}; please report this with the kernel's version")]
    Program {
        /// The program.
        program: &'static str,
        /// Why it failed.
        source: Box<aya::programs::ProgramError>,
    },
    /// The object lacks a program or map that this crate expects: object and crate are out of step.
    #[error("eBPF object lacks {0}; rebuild tombolo")]
    Missing(&'static str),
    /// A program could not be attached.
    #[error("attach {program} to interface {ifindex} ({mode}): {reason}; does the interface still exist?")]
    Attach {
        /// The program.
        program: &'static str,
        /// The interface's index.
        ifindex: u32,
        /// `tcx` or `clsact`.
        mode: &'static str,
        /// Why it failed.
        reason: String,
    },
    /// Services cannot be translated at sockets.
    #[error(
        "{operation} {place}: {reason}; services are translated packet by packet for pods, and not at all for the node"
    )]
    Sockets {
        /// What was tried.
        operation: &'static str,
        /// On what: the cgroup, the program or the network namespace.
        place: String,
        /// Why it failed, and what to try.
        reason: String,
    },
    /// A map operation failed.
    #[error("{operation} in map {map}: {source}{}", remedy(map, source))]
    Map {
        /// What was tried, with the key.
        operation: String,
        /// The map.
        map: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The flat Maglev array has no gap of the size asked for.
    #[error("service {service}: no room for {slots} Maglev slots; raise datapath.maps.maglev_slots")]
    MaglevFull {
        /// The frontend.
        service: String,
        /// Slots asked for.
        slots: usize,
    },
    /// A row that contradicts itself.
    #[error("{what}: {why}")]
    Invalid {
        /// Which row.
        what: String,
        /// What is wrong, and what to do.
        why: &'static str,
    },
    /// The event ring could not be opened.
    #[error("open the event ring: {0}; only one reader may hold it")]
    Events(#[source] io::Error),
}

impl DatapathError {
    /// Whether there was no room for a new entry.
    pub(crate) fn is_full(&self) -> bool {
        matches!(self, Self::Map { source, .. } if source.raw_os_error() == Some(libc::E2BIG))
    }
}

fn remedy(map: &str, source: &io::Error) -> String {
    match source.raw_os_error() {
        Some(libc::E2BIG | libc::ENOSPC) => match option_of(map) {
            Some(option) => format!("; the map is full: raise datapath.maps.{option} and restart the agent"),
            None => "; the map is full".into(),
        },
        Some(libc::EPERM) => "; the agent needs root or CAP_BPF".into(),
        _ => String::new(),
    }
}

/// Which of the agent's `datapath.maps` gives a map its size.
pub(crate) fn option_of(map: &str) -> Option<&'static str> {
    let option = match map {
        "tb_ifaces" | "tb_endpoints" | "tb_rates" => "endpoints",
        "tb_hosts" | "tb_prefixes" => "prefixes",
        "tb_nodes" => "nodes",
        "tb_services" => "services",
        "tb_backends" => "backends",
        "tb_ranges" => "source_ranges",
        "tb_affinity" => "affinity",
        "tb_members" | "tb_fronts" => "backends",
        "tb_egw" => "egress",
        "tb_sock_rev" => "sockets",
        "tb_ct" | "tb_ct_half" => "conntrack",
        "tb_nat" | "tb_nat_half" => "nat",
        "tb_policies" => "policies",
        "tb_rules" => "policy",
        "tb_maglev" => "maglev_slots",
        _ => return None,
    };
    Some(option)
}
