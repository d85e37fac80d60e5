//! The init of a node, PID 1 of its namespaces: builds the node's root, supervises its command, runs its exec
//! lines, plays the kubelet, reaps orphans, and answers on a control socket.

pub mod command;
mod control;
pub mod root;

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};

use crate::runner::plan::NodeSpec;

/// What an init is started with.
#[derive(Debug, Serialize, Deserialize)]
pub struct Boot {
    /// The node.
    pub spec: NodeSpec,
    /// Its disk: the directory for what it writes.
    pub disk: PathBuf,
    /// Where to listen.
    pub control: PathBuf,
    /// Where the output of the command and of exec lines goes.
    pub log: PathBuf,
    /// Where the containers' output goes, one file a container.
    pub pod_logs: PathBuf,
}

/// What an init says on its standard output, one line, once it can be talked to.
pub const READY: &str = "ready";

/// Runs the init; returns only when it cannot go on.
///
/// Must be called before any thread was started: it changes the root and the cgroup namespace of the process.
///
/// # Errors
/// The step of the start that failed.
pub fn run(boot_file: &Path) -> io::Result<()> {
    let boot: Boot = serde_json::from_slice(&std::fs::read(boot_file)?)?;
    match prepare(&boot) {
        Ok((listener, log, pod_logs)) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(control::serve(boot.spec, listener, log, pod_logs))
        }
        Err(error) => {
            say(&format!("failed {error}"))?;
            Err(error)
        }
    }
}

fn prepare(boot: &Boot) -> io::Result<(UnixListener, File, crate::kubelet::LogFolder)> {
    // The process was started in its cgroup: from here on that is the root of what it sees.
    unshare(CloneFlags::CLONE_NEWCGROUP)?;
    nix::unistd::sethostname(&boot.spec.hostname)?;
    // Opened before the root changes; the lab directory is out of sight afterwards.
    match std::fs::remove_file(&boot.control) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&boot.control)?;
    listener.set_nonblocking(true)?;
    let log = File::options().create(true).append(true).open(&boot.log)?;
    std::fs::create_dir_all(&boot.pod_logs)?;
    let pod_logs = crate::kubelet::LogFolder::open(&boot.pod_logs)?;
    root::enter(&boot.disk, &boot.spec)?;
    sysctls(&boot.spec)?;
    Ok((listener, log, pod_logs))
}

/// Settings every node has: it forwards, takes asymmetric paths, and waits for no duplicate address detection.
const SYSCTLS: &[(&str, &str)] = &[
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
    ("net/ipv6/conf/all/disable_ipv6", "0"),
    ("net/ipv6/conf/default/disable_ipv6", "0"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv6/conf/default/forwarding", "1"),
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/dad_transmits", "0"),
    ("net/ipv6/conf/all/accept_ra", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/all/keep_addr_on_down", "1"),
    ("net/ipv6/conf/default/keep_addr_on_down", "1"),
];

fn sysctls(spec: &NodeSpec) -> io::Result<()> {
    for (key, value) in SYSCTLS {
        tombolo_netlink::set_sysctl(None, key, value).map_err(io::Error::other)?;
    }
    for (key, value) in &spec.sysctls {
        let key = key.replace('.', "/");
        tombolo_netlink::set_sysctl(None, &key, value).map_err(io::Error::other)?;
    }
    Ok(())
}

/// Says one line to the supervisor.
fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", line.replace('\n', " "))?;
    out.flush()
}
