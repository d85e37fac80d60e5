//! The daemons under test: their configuration, and what they use.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tombolo_tests::netns::{Daemon, Namespace};

use crate::Failure;

/// AS of every daemon.
const ASN: u32 = 65_001;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Ours,
    Bird,
    Frr,
    Openbgpd,
    Gobgp,
}

impl Kind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ours => "tombolo",
            Self::Bird => "BIRD",
            Self::Frr => "FRR",
            Self::Openbgpd => "OpenBGPD",
            Self::Gobgp => "GoBGP",
        }
    }

    /// Where Debian puts it.
    const fn program(self) -> Option<&'static str> {
        Some(match self {
            Self::Ours => return None,
            Self::Bird => "/usr/sbin/bird",
            Self::Frr => "/usr/lib/frr/bgpd",
            Self::Openbgpd => "/usr/sbin/bgpd",
            Self::Gobgp => "/usr/bin/gobgpd",
        })
    }
}

/// A peer as the daemon is told of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neighbor {
    pub(crate) address: Ipv4Addr,
    pub(crate) asn: u32,
    /// The daemon's address towards it.
    pub(crate) own: Ipv4Addr,
    /// It sends routes and gets none; else it gets routes and none are taken from it.
    pub(crate) injects: bool,
}

/// Starts a daemon in a namespace. `kernel`: it puts what it learns into the kernel's table, which here only ours and BIRD do.
pub(crate) fn start(
    kind: Kind,
    namespace: &Namespace,
    directory: &Path,
    neighbors: &[Neighbor],
    kernel: bool,
) -> Result<Daemon, Failure> {
    if let Some(program) = kind.program().filter(|program| !Path::new(program).exists()) {
        return Err(format!("{program} is not installed").into());
    }
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o777))?;
    let path = |name: &str| directory.join(name).display().to_string();
    let write = |text: String, mode: u32| -> Result<String, Failure> {
        let name = path("daemon.conf");
        std::fs::write(&name, text)?;
        std::fs::set_permissions(&name, std::fs::Permissions::from_mode(mode))?;
        Ok(name)
    };
    Ok(match kind {
        Kind::Ours => {
            let mut arguments = vec![ASN.to_string(), "10.99.0.1".to_owned()];
            let program = if kernel { std::env::current_exe()? } else { router()? };
            if kernel {
                arguments.insert(0, "fib".to_owned());
            }
            arguments.extend(neighbors.iter().map(|neighbor| {
                let direction = if neighbor.injects { "in" } else { "out" };
                format!("{}={}:{direction}", neighbor.address, neighbor.asn)
            }));
            namespace.spawn_quiet(
                &program.display().to_string(),
                &arguments.iter().map(String::as_str).collect::<Vec<_>>(),
            )
        }
        Kind::Bird => {
            let config = write(bird(neighbors, kernel), 0o644)?;
            namespace.spawn_quiet("/usr/sbin/bird", &["-f", "-c", &config, "-s", &path("bird.ctl")])
        }
        Kind::Frr => {
            let config = write(frr(neighbors), 0o644)?;
            let (pid, api, folder) = (path("pid"), path("zserv.api"), path(""));
            let arguments =
                ["-f", &config, "-S", "-n", "-Z", "-i", &pid, "-z", &api, "--vty_socket", &folder];
            namespace.spawn_quiet("/usr/lib/frr/bgpd", &[&arguments[..], &["-P", "0", "-e", "64"]].concat())
        }
        Kind::Openbgpd => {
            std::fs::create_dir_all("/run/openbgpd")?;
            let config = write(openbgpd(neighbors, &path("bgpd.sock")), 0o600)?;
            namespace.spawn_quiet("/usr/sbin/bgpd", &["-d", "-f", &config])
        }
        Kind::Gobgp => {
            let config = write(gobgp(neighbors), 0o644)?;
            let api = ["--api-hosts", "127.0.0.1:50051"];
            namespace.spawn_quiet("/usr/bin/gobgpd", &[&["-f", &config, "-l", "warn"][..], &api].concat())
        }
    })
}

/// The example of the crate, built beside this program.
fn router() -> Result<PathBuf, Failure> {
    let program = std::env::current_exe()?;
    let router = program.with_file_name("examples").join("router");
    if router.exists() {
        Ok(router)
    } else {
        Err(format!("{} is not there: use make bench-bgp", router.display()).into())
    }
}

fn bird(neighbors: &[Neighbor], kernel: bool) -> String {
    let mut out = String::from("router id 10.99.0.1;\nprotocol device {}\n");
    if kernel {
        out.push_str("protocol kernel { ipv4 { import none; export all; }; }\n");
    }
    for (number, neighbor) in neighbors.iter().enumerate() {
        let Neighbor { address, asn, own, injects } = neighbor;
        let (import, export) = if *injects { ("all", "none") } else { ("none", "all") };
        line(
            &mut out,
            format_args!(
                "protocol bgp p{number} {{ local {own} as {ASN}; neighbor {address} as {asn}; ipv4 {{ import {import}; export {export}; }}; passive; }}"
            ),
        );
    }
    out
}

fn frr(neighbors: &[Neighbor]) -> String {
    let mut out = format!(
        "router bgp {ASN}\n bgp router-id 10.99.0.1\n no bgp ebgp-requires-policy\n no bgp network import-check\n"
    );
    for Neighbor { address, asn, .. } in neighbors {
        line(
            &mut out,
            format_args!(
                " neighbor {address} remote-as {asn}\n neighbor {address} passive\n neighbor {address} advertisement-interval 0"
            ),
        );
    }
    out
}

fn openbgpd(neighbors: &[Neighbor], socket: &str) -> String {
    let mut out = format!("AS {ASN}\nrouter-id 10.99.0.1\nfib-update no\nsocket \"{socket}\"\n");
    let mut own: Vec<Ipv4Addr> = neighbors.iter().map(|neighbor| neighbor.own).collect();
    own.dedup();
    own.iter().for_each(|own| line(&mut out, format_args!("listen on {own}")));
    for Neighbor { address, asn, .. } in neighbors {
        line(&mut out, format_args!("neighbor {address} {{\n remote-as {asn}\n passive\n}}"));
    }
    out.push_str("allow from any\nallow to any\n");
    out
}

fn gobgp(neighbors: &[Neighbor]) -> String {
    let mut out = format!("[global.config]\nas={ASN}\nrouter-id=\"10.99.0.1\"\n");
    for Neighbor { address, asn, .. } in neighbors {
        line(
            &mut out,
            format_args!(
                "[[neighbors]]\n[neighbors.config]\nneighbor-address=\"{address}\"\npeer-as={asn}\n[neighbors.transport.config]\npassive-mode=true"
            ),
        );
    }
    out
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    if writeln!(out, "{text}").is_err() {
        out.clear();
    }
}

/// The packages of the daemons and their versions; what is not installed is not named.
pub(crate) fn versions() -> Result<String, Failure> {
    let packages = ["bird2", "frr", "openbgpd", "gobgpd"];
    let mut query = std::process::Command::new("dpkg-query");
    let output = query.args(["-W", "-f", "${Package} ${Version}  "]).args(packages).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
