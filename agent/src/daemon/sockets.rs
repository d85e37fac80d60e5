//! Services at sockets: to which cgroup the programs are hooked, and the end of sockets whose backend is gone.

use super::backend::Daemon;
use super::drive::Driver;
use super::status::Part;
use crate::config::{self, SocketLb};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tombolo_ebpf::Datapath;

/// Backends that go together are looked for together: a walk through all sockets that were led.
const GATHER: Duration = Duration::from_millis(250);
/// However often backends go, walks take this part of a processor at most.
const SHARE: u32 = 10;

/// What was made of `datapath.socket_lb` at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sockets {
    /// It is `off`.
    Off,
    /// The programs are hooked to this cgroup.
    At(PathBuf, SocketLb),
    /// They are not, and why.
    Without(String),
}

/// What the datapath's row says of it.
pub(crate) const fn rows_word(wanted: SocketLb) -> tombolo_ebpf::SocketLb {
    match wanted {
        SocketLb::All => tombolo_ebpf::SocketLb::All,
        SocketLb::Host => tombolo_ebpf::SocketLb::Host,
        SocketLb::Off => tombolo_ebpf::SocketLb::Off,
    }
}

/// Hooks the programs, or takes them away. Without them packets are translated as before, so that nothing here ends the
/// start.
pub(crate) fn attach(config: &config::Datapath, datapath: &Datapath) -> anyhow::Result<Sockets> {
    if config.socket_lb == SocketLb::Off {
        datapath.detach_sockets()?;
        return Ok(Sockets::Off);
    }
    let cgroup = match &config.cgroup {
        Some(path) => Ok(path.clone()),
        None => std::fs::read_to_string("/proc/self/mountinfo")
            .map_err(|error| format!("cannot read /proc/self/mountinfo: {error}"))
            .and_then(|mounts| discover(&mounts)),
    };
    let attached = cgroup
        .and_then(|path| datapath.attach_sockets(&path).map(|()| path).map_err(|error| error.to_string()));
    Ok(match attached {
        Ok(path) => Sockets::At(path, config.socket_lb),
        Err(reason) => {
            tracing::warn!(reason, "services are not translated at sockets");
            Sockets::Without(reason)
        }
    })
}

/// The root of this cgroup namespace among the mounts (proc_pid_mountinfo(5)). A mount that shows another one's root, as
/// one inherited from the machine does, would reach processes that are not the node's.
fn discover(mounts: &str) -> Result<PathBuf, String> {
    let mut elsewhere = None;
    for line in mounts.lines() {
        let Some((place, kind)) = line.split_once(" - ") else { continue };
        let mut fields = place.split(' ').skip(3);
        let (Some(root), Some(point)) = (fields.next(), fields.next()) else { continue };
        match (kind.split(' ').next(), root) {
            (Some("cgroup2"), "/") => return Ok(Path::new(&unescaped(point)).to_owned()),
            (Some("cgroup2"), _) => elsewhere = Some(point),
            _ => {}
        }
    }
    Err(match elsewhere {
        Some(point) => format!(
            "cgroup2 at {point} shows a cgroup above this namespace's root; mount cgroup2 in it, or name one in datapath.cgroup"
        ),
        None => "no cgroup2 is mounted; mount -t cgroup2 none /sys/fs/cgroup, or name one in datapath.cgroup"
            .to_owned(),
    })
}

/// Spaces and the like stand as octal numbers there.
fn unescaped(text: &str) -> String {
    let plain = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    plain.into_iter().fold(text.to_owned(), |text, (code, letter)| text.replace(code, letter))
}

/// The part of the status: `running` is the kernel's word on whether all programs are hooked now.
pub(crate) fn part(sockets: &Sockets, running: bool, refused: u64) -> Part {
    match sockets {
        Sockets::Off => {
            Part::ready("sockets", "off: services are translated packet by packet, for pods alone")
        }
        Sockets::At(cgroup, wanted) if running => {
            let whose = match wanted {
                SocketLb::Host => "the node's sockets",
                SocketLb::All | SocketLb::Off => "sockets of pods and the node",
            };
            let at = format!("services are translated at {whose}, below {}", cgroup.display());
            match refused {
                0 => Part::ready("sockets", at),
                // New connections are led right, so the part is ready.
                _ => Part {
                    remedy: "run a kernel with CONFIG_INET_DIAG_DESTROY, or restart what still waits for a backend that is gone".to_owned(),
                    ..Part::ready("sockets", format!("{at}; the kernel would not end {refused} sockets to backends that are gone"))
                },
            }
        }
        Sockets::At(cgroup, _) => {
            let detail =
                format!("programs are missing at {}: the node reaches no services", cgroup.display());
            Part::failing(
                "sockets",
                detail,
                "restart the agent, which hooks them again; find out who removed them",
            )
        }
        // Pods have all that they need, so the part is ready; what the node lacks stands beside it.
        Sockets::Without(reason) => {
            let remedy =
                "give the node a cgroup2 mount and restart the agent, or set datapath.socket_lb: off"
                    .to_owned();
            let detail = format!(
                "not at sockets: services are translated packet by packet, for pods alone; the node reaches none: {reason}"
            );
            Part { remedy, ..Part::ready("sockets", detail) }
        }
    }
}

/// Ends sockets whose backend is gone: what went while no agent ran at once, and then whenever one goes.
pub(crate) async fn end_stale(driver: Driver, daemon: Arc<Daemon>) {
    loop {
        let all = daemon.endpoints.get().map(|store| [store.ready(), store.unready()]);
        let all = all.into_iter().flatten().flatten();
        let namespaces: Vec<PathBuf> = all.map(|endpoint| endpoint.netns.into()).collect();
        let (ending, began) = (daemon.datapath.clone(), Instant::now());
        match tokio::task::spawn_blocking(move || ending.end_stale_sockets(&namespaces)).await {
            Ok(Ok(stats)) if stats.stale > 0 => {
                daemon.sockets_refused.fetch_add(stats.refused, Ordering::Relaxed);
                tracing::info!(stats.ended, stats.stale, stats.seen, "sockets ended whose backend is gone");
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "sockets whose backend is gone cannot be looked for"),
            Err(error) => tracing::warn!(%error, "looking for sockets whose backend is gone broke off"),
        }
        let rest = GATHER.max(began.elapsed().saturating_mul(SHARE));
        tokio::select! {
            () = driver.cancel.cancelled() => return,
            () = daemon.datapath.backend_left() => {}
        }
        tokio::select! {
            () = driver.cancel.cancelled() => return,
            () = tokio::time::sleep(rest) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_is_the_root_of_the_own_namespace() {
        let machine = "29 23 0:25 /../.. /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        let own = "61 23 0:25 / /run/my\\040own rw - cgroup2 none rw\n";
        let old = "30 23 0:26 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu\n";
        assert_eq!(discover(&format!("{old}{machine}{own}")), Ok("/run/my own".into()));
        assert!(discover(&format!("{old}{machine}")).unwrap_err().contains("/sys/fs/cgroup"));
        assert!(discover(old).unwrap_err().contains("no cgroup2"));
        assert!(discover("cut - ").is_err());
    }

    #[test]
    fn what_is_missing_is_said_and_what_goes_on() {
        let at = Sockets::At("/sys/fs/cgroup".into(), SocketLb::All);
        assert!(
            part(&at, true, 0).ready && !part(&at, false, 0).ready && part(&at, true, 0).remedy.is_empty()
        );
        let refusing = part(&at, true, 3);
        assert!(refusing.ready && refusing.detail.contains("would not end 3"), "{refusing:?}");
        assert!(refusing.remedy.contains("INET_DIAG_DESTROY"));
        let without = part(&Sockets::Without("no cgroup2 is mounted".into()), false, 0);
        assert!(without.ready && without.detail.contains("no cgroup2") && !without.remedy.is_empty());
        assert!(part(&Sockets::Off, false, 0).ready);
    }
}
