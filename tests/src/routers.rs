//! Other BGP daemons in namespaces, started with a configuration and asked through their own tools.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::netns::{Daemon, Namespace, eventually, run};

/// A folder for what a daemon needs; removed with the guard.
#[derive(Debug)]
pub struct Folder(tempfile::TempDir);

impl Folder {
    /// A new one.
    #[expect(clippy::panic, reason = "a test cannot go on without it")]
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("tbt-bgp-").tempdir();
        Self(folder.unwrap_or_else(|error| panic!("cannot make a folder: {error}")))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn name(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    #[expect(clippy::panic, reason = "a test cannot go on without it")]
    fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        if let Err(error) = std::fs::write(&path, text) {
            panic!("cannot write {}: {error}", path.display());
        }
        path.to_string_lossy().into_owned()
    }
}

impl Default for Folder {
    fn default() -> Self {
        Self::new()
    }
}

fn wait_for_socket(what: &str, path: &str) {
    eventually(what, || if Path::new(path).exists() { Ok(()) } else { Err(format!("no {path}")) });
}

/// BIRD.
#[derive(Debug)]
pub struct Bird {
    _daemon: Daemon,
    folder: Folder,
}

impl Bird {
    /// Starts it; its static routes and BGP routes go into the namespace's kernel table.
    pub fn start(namespace: &Namespace, config: &str) -> Self {
        let folder = Folder::new();
        let config = folder.write("bird.conf", config);
        let (control, pid) = (folder.name("bird.ctl"), folder.name("bird.pid"));
        let daemon = namespace.spawn("/usr/sbin/bird", &["-f", "-c", &config, "-s", &control, "-P", &pid]);
        wait_for_socket("BIRD opens its control socket", &control);
        Self { _daemon: daemon, folder }
    }

    /// What it answers.
    pub fn ask(&self, question: &str) -> String {
        let control = self.folder.name("bird.ctl");
        // birdc fails when there is no such route, which is an answer too.
        let output = Command::new("/usr/sbin/birdc").args(["-s", &control, question]).output();
        output.map_or_else(
            |error| error.to_string(),
            |output| String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    }
}

/// FRR: zebra and bgpd.
#[derive(Debug)]
pub struct Frr {
    _daemons: [Daemon; 2],
    folder: Folder,
}

impl Frr {
    /// Starts both.
    #[expect(clippy::panic, reason = "a test cannot go on without it")]
    pub fn start(namespace: &Namespace, bgpd: &str) -> Self {
        let folder = Folder::new();
        let configs = [
            ("zebra", folder.write("zebra.conf", "hostname zebra\n")),
            ("bgpd", folder.write("bgpd.conf", bgpd)),
        ];
        let directory = folder.0.path().to_string_lossy().into_owned();
        let readable = std::fs::Permissions::from_mode(0o755);
        if let Err(error) = std::fs::set_permissions(folder.0.path(), readable) {
            panic!("cannot open {directory} for FRR: {error}");
        }
        run("chown", &["-R", "frr:frr", &directory]);
        let api = folder.name("zserv.api");
        let daemons = configs.map(|(daemon, config)| {
            let pid = folder.name(&format!("{daemon}.pid"));
            let arguments = ["-f", &config, "-i", &pid, "-z", &api, "--vty_socket", &directory, "-P", "0"];
            let started = namespace.spawn(&format!("/usr/lib/frr/{daemon}"), &arguments);
            wait_for_socket(daemon, &folder.name(&format!("{daemon}.vty")));
            started
        });
        Self { _daemons: daemons, folder }
    }

    /// What bgpd answers.
    pub fn ask(&self, question: &str) -> String {
        let directory = self.folder.0.path().to_string_lossy().into_owned();
        run("/usr/bin/vtysh", &["--vty_socket", &directory, "-d", "bgpd", "-c", question])
    }

    /// Gives bgpd lines of configuration.
    pub fn configure(&self, lines: &[&str]) {
        let directory = self.folder.0.path().to_string_lossy().into_owned();
        let mut arguments = vec!["--vty_socket", &directory, "-d", "bgpd", "-c", "configure terminal"];
        lines.iter().for_each(|line| arguments.extend(["-c", line]));
        run("/usr/bin/vtysh", &arguments);
    }
}

/// GoBGP.
#[derive(Debug)]
pub struct GoBgp {
    _daemon: Daemon,
    _folder: Folder,
}

impl GoBgp {
    /// Starts it and originates routes: prefix and next hop.
    pub fn start(namespace: &Namespace, config: &str, routes: &[(&str, &str)]) -> Self {
        let folder = Folder::new();
        let config = folder.write("gobgp.toml", config);
        let arguments = ["-f", &config, "-l", "warn", "--api-hosts", "127.0.0.1:50051"];
        let daemon = namespace.spawn_quiet("/usr/bin/gobgpd", &arguments);
        for (prefix, next_hop) in routes {
            let family = if prefix.contains(':') { "ipv6" } else { "ipv4" };
            eventually("GoBGP takes a route", || {
                let command = ["netns", "exec", namespace.name(), "/usr/bin/gobgp", "global", "rib", "-a"];
                let route = [family, "add", prefix, "nexthop", next_hop];
                let output = Command::new("ip").args(command).args(route).output();
                let output = output.map_err(|error| error.to_string())?;
                if output.status.success() {
                    Ok(())
                } else {
                    Err(String::from_utf8_lossy(&output.stderr).into_owned())
                }
            });
        }
        Self { _daemon: daemon, _folder: folder }
    }
}

/// OpenBGPD.
#[derive(Debug)]
pub struct OpenBgpd {
    _daemon: Daemon,
    _folder: Folder,
}

impl OpenBgpd {
    /// Starts it. The configuration gets a control socket of its own.
    #[expect(clippy::panic, reason = "a test cannot go on without it")]
    pub fn start(namespace: &Namespace, config: &str) -> Self {
        let folder = Folder::new();
        let socket = folder.name("bgpd.sock");
        let config = folder.write("bgpd.conf", &format!("socket \"{socket}\"\n{config}"));
        // It refuses a configuration that others may read, and wants its run folder.
        let private = std::fs::set_permissions(&config, std::fs::Permissions::from_mode(0o600));
        if let Err(error) = private.and_then(|()| std::fs::create_dir_all("/run/openbgpd")) {
            panic!("cannot prepare OpenBGPD: {error}");
        }
        let daemon = namespace.spawn_quiet("/usr/sbin/bgpd", &["-d", "-f", &config]);
        wait_for_socket("OpenBGPD opens its control socket", &socket);
        Self { _daemon: daemon, _folder: folder }
    }
}
