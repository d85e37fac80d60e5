//! The other daemons with everything of the matrix switched on, and how each is asked.

use std::path::PathBuf;
use std::process::Command;

use tombolo_tests::matrix::Peer;
use tombolo_tests::netns::{Daemon, Namespace, eventually, run};

/// A daemon under test, in its namespace.
pub(crate) struct Subject {
    pub(crate) peer: Peer,
    daemons: Vec<Daemon>,
    namespace: String,
    folder: tempfile::TempDir,
}

const FRR: &str = "log file LOG informational
router bgp 65002
 bgp router-id 10.77.0.2
 no bgp ebgp-requires-policy
 no bgp network import-check
 no bgp default ipv4-unicast
 bgp log-neighbor-changes
 bgp graceful-restart
 bgp long-lived-graceful-restart stale-time 60
 neighbor 10.77.0.1 remote-as 65001
 neighbor 10.77.0.1 timers 3 9
 neighbor 10.77.0.1 timers connect 2
 neighbor fd00:77::1 remote-as 65001
 neighbor fd00:77::1 timers 3 9
 neighbor fd00:77::1 timers connect 2
 neighbor fd00:77::1 capability extended-nexthop
 neighbor 10.79.0.3 remote-as 65003
 neighbor 10.79.0.3 timers connect 2
 address-family ipv4 unicast
  network 198.51.100.0/24 route-map tag
  network 203.0.113.0/24
  neighbor 10.77.0.1 activate
  neighbor 10.77.0.1 addpath-tx-all-paths
  neighbor 10.77.0.1 maximum-prefix 20
  neighbor fd00:77::1 activate
  neighbor 10.79.0.3 activate
 exit-address-family
 address-family ipv6 unicast
  network 2001:db8:100::/48
  neighbor fd00:77::1 activate
 exit-address-family
route-map tag permit 10
 set large-community 65002:7:8
";

const BIRD: &str = "log \"LOG\" all;
router id 10.77.0.2;
protocol device {}
protocol static { ipv4; route 198.51.100.0/24 blackhole { bgp_large_community.add((65002, 7, 8)); }; route 203.0.113.0/24 blackhole; }
protocol static { ipv6; route 2001:db8:100::/48 blackhole; }
template bgp node { local as 65002; graceful restart on; long lived graceful restart on; long lived stale time 60; enable extended messages on;
  hold time 9; connect retry time 2; connect delay time 1; error wait time 1, 2; }
protocol bgp v4 from node { local 10.77.0.2; neighbor 10.77.0.1 as 65001;
  ipv4 { import all; export where source = RTS_STATIC || bgp_path.first = 65003; next hop self; add paths on; import limit 20 action restart; }; }
protocol bgp v6 from node { local fd00:77::2; neighbor fd00:77::1 as 65001;
  ipv4 { extended next hop on; import all; export where source = RTS_STATIC; next hop self; };
  ipv6 { import all; export where source = RTS_STATIC; next hop self; }; }
protocol bgp third from node { local 10.79.0.2; neighbor 10.79.0.3 as 65003; ipv4 { import all; export none; }; }
";

const OPENBGPD: &str = "socket \"SOCKET\"
AS 65002
router-id 10.77.0.2
fib-update no
listen on 10.77.0.2
listen on 10.79.0.2
listen on fd00:77::2
network 198.51.100.0/24 set large-community 65002:7:8
network 203.0.113.0/24
network 2001:db8:100::/48
neighbor 10.77.0.1 {
 remote-as 65001
 holdtime 9
 announce IPv4 unicast
 announce add-path recv yes
 announce add-path send all
 announce restart yes
 max-prefix 20
}
neighbor fd00:77::1 {
 remote-as 65001
 holdtime 9
 announce IPv6 unicast
}
neighbor 10.79.0.3 {
 remote-as 65003
 holdtime 9
 announce IPv4 unicast
}
allow from any
allow to any
";

const EXABGP: &str = "process watch { run FOLDER/watch; encoder json; }
template { neighbor node {
  router-id 10.77.0.2; local-as 65002; peer-as 65001; hold-time 9; group-updates true;
  api { processes [ watch ]; receive { parsed; update; open; notification; refresh; } neighbor-changes; }
} }
neighbor 10.77.0.1 { inherit node; local-address 10.77.0.2; md5-password \"tor-secret\"; adj-rib-out true;
  capability { add-path send/receive; graceful-restart 60; route-refresh enable; extended-message enable; }
  family { ipv4 unicast; }
  add-path { ipv4 unicast; }
  static {
    route 198.51.100.0/24 next-hop 10.77.0.2 large-community [ 65002:7:8 ] path-information 1;
    route 203.0.113.0/24 next-hop 10.77.0.2 path-information 1;
    route 203.0.113.0/24 next-hop 10.77.0.2 as-path [ 65002 65003 ] path-information 2;
  }
}
neighbor fd00:77::1 { inherit node; local-address fd00:77::2; incoming-ttl 255; outgoing-ttl 255;
  capability { nexthop enable; }
  family { ipv4 unicast; ipv6 unicast; }
  nexthop { ipv4 unicast ipv6; }
  static { route 198.51.100.0/24 next-hop fd00:77::2; route 2001:db8:100::/48 next-hop fd00:77::2; }
}
";

fn gobgp() -> String {
    let mut text = "[global.config]\nas = 65002\nrouter-id = \"10.77.0.2\"\n".to_owned();
    for (address, asn, families) in [
        ("10.77.0.1", 65001, &["ipv4-unicast"][..]),
        ("fd00:77::1", 65001, &["ipv4-unicast", "ipv6-unicast"]),
        ("10.79.0.3", 65003, &["ipv4-unicast"]),
    ] {
        text += &format!(
            "[[neighbors]]
[neighbors.config]
neighbor-address = \"{address}\"
peer-as = {asn}
[neighbors.timers.config]
hold-time = 9
keepalive-interval = 3
connect-retry = 2
idle-hold-time-after-reset = 2
[neighbors.graceful-restart.config]
enabled = true
restart-time = 3
long-lived-enabled = true
"
        );
        for family in families {
            text += &format!(
                "[[neighbors.afi-safis]]
[neighbors.afi-safis.config]
afi-safi-name = \"{family}\"
[neighbors.afi-safis.mp-graceful-restart.config]
enabled = true
[neighbors.afi-safis.long-lived-graceful-restart.config]
enabled = true
restart-time = 60
"
            );
            if address == "10.77.0.1" {
                text += "[neighbors.afi-safis.add-paths.config]\nreceive = true\nsend-max = 8
[neighbors.afi-safis.prefix-limit.config]\nmax-prefixes = 20\n";
            }
        }
    }
    text
}

impl Subject {
    pub(crate) fn start(peer: Peer, namespace: &Namespace) -> Self {
        let folder = tempfile::Builder::new().prefix("tbt-matrix-").tempdir().unwrap();
        let mut subject = Self { peer, daemons: Vec::new(), namespace: namespace.name().to_owned(), folder };
        subject.daemons = subject.launch(namespace);
        if peer == Peer::GoBgp {
            subject.originate();
        }
        subject
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.folder.path().join(name), text).unwrap();
        self.file(name)
    }

    fn launch(&self, namespace: &Namespace) -> Vec<Daemon> {
        let (log, folder) = (self.file("log"), self.file(""));
        let started = match self.peer {
            Peer::Bird => {
                let (config, pid) = (self.write("conf", &BIRD.replace("LOG", &log)), self.file("pid"));
                vec![
                    namespace.spawn(
                        "/usr/sbin/bird",
                        &["-f", "-c", &config, "-s", &self.file("control"), "-P", &pid],
                    ),
                ]
            }
            Peer::Frr => {
                let configs =
                    [self.write("zebra.conf", ""), self.write("bgpd.conf", &FRR.replace("LOG", &log))];
                run("chmod", &["755", &folder]);
                run("chown", &["-R", "frr:frr", &folder]);
                let api = self.file("api");
                let start = |(daemon, config): (&str, &String)| {
                    let pid = self.file(&format!("{daemon}.pid"));
                    let arguments =
                        ["-f", config, "-i", &pid, "-z", &api, "--vty_socket", &folder, "-P", "0"];
                    let started = namespace.spawn(&format!("/usr/lib/frr/{daemon}"), &arguments);
                    self.wait_for_file(&format!("{daemon}.vty"));
                    started
                };
                ["zebra", "bgpd"].into_iter().zip(&configs).map(start).collect()
            }
            Peer::GoBgp => {
                let config = self.write("conf.toml", &gobgp());
                vec![
                    namespace
                        .spawn_quiet("/usr/bin/gobgpd", &["-f", &config, "--api-hosts", "127.0.0.1:50051"]),
                ]
            }
            Peer::OpenBgpd => {
                let config = self.write("conf", &OPENBGPD.replace("SOCKET", &self.file("control")));
                run("chmod", &["600", &config]);
                std::fs::create_dir_all("/run/openbgpd").unwrap();
                vec![namespace.spawn_quiet("/usr/sbin/bgpd", &["-d", "-f", &config])]
            }
            Peer::ExaBgp => {
                // What it says is appended to a file; what is written to the pipe is done.
                run("mkfifo", &[&self.file("pipe")]);
                let script = format!("#!/bin/sh\ncat <>{} &\nexec cat >>{log}\n", self.file("pipe"));
                run("chmod", &["755", &self.write("watch", &script)]);
                let config = self.write("conf", &EXABGP.replace("FOLDER", folder.trim_end_matches('/')));
                let settings = [
                    "exabgp.daemon.user=root",
                    "exabgp.tcp.delay=0",
                    "exabgp.api.ack=false",
                    "exabgp.log.all=false",
                ];
                vec![namespace.spawn_quiet("env", &[&settings[..], &["/usr/sbin/exabgp", &config]].concat())]
            }
        };
        match self.peer {
            Peer::Bird | Peer::OpenBgpd => self.wait_for_file("control"),
            Peer::ExaBgp => self.wait_for_file("log"),
            Peer::Frr | Peer::GoBgp => {}
        }
        started
    }

    fn wait_for_file(&self, name: &str) {
        let path = PathBuf::from(self.file(name));
        eventually(&format!("{} opens {name}", self.peer.name()), || {
            if path.exists() { Ok(()) } else { Err("not yet".into()) }
        });
    }

    fn originate(&self) {
        for route in [
            "ipv4 198.51.100.0/24 large-community 65002:7:8",
            "ipv4 203.0.113.0/24",
            "ipv6 2001:db8:100::/48 nexthop fd00:77::2",
        ] {
            let (family, route) = route.split_once(' ').unwrap();
            eventually("GoBGP takes a route", || {
                let answer = self.ask(&format!("global rib add -a {family} {route}"));
                if answer.is_empty() { Ok(()) } else { Err(answer) }
            });
        }
    }

    /// What the daemon's tool answers, complaints included.
    pub(crate) fn ask(&self, question: &str) -> String {
        let folder = self.file("");
        let control = self.file("control");
        let words = shell_words(question);
        let (program, before) = match self.peer {
            Peer::Bird => ("/usr/sbin/birdc", vec!["-s", &control]),
            Peer::Frr => ("/usr/bin/vtysh", vec!["--vty_socket", &folder, "-d", "bgpd"]),
            Peer::GoBgp => ("/usr/bin/gobgp", vec![]),
            Peer::OpenBgpd => ("/usr/sbin/bgpctl", vec!["-s", &control]),
            Peer::ExaBgp => {
                run("sh", &["-c", "printf '%s\\n' \"$1\" >\"$2\"", "sh", question, &self.file("pipe")]);
                return String::new();
            }
        };
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, program]).args(before);
        match self.peer {
            Peer::Frr => drop(command.args(question.split('\n').flat_map(|line| ["-c", line]))),
            Peer::Bird => drop(command.arg(question)),
            _ => drop(command.args(words)),
        }
        let output = command.output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    /// What it has said by itself.
    pub(crate) fn told(&mut self) -> String {
        let mut text = std::fs::read_to_string(self.file("log")).unwrap_or_default();
        self.daemons.iter_mut().for_each(|daemon| text += &daemon.seen().join("\n"));
        text
    }

    /// What it knows of a prefix.
    pub(crate) fn route(&mut self, prefix: &str) -> String {
        let family = if prefix.contains(':') { "ipv6" } else { "ipv4" };
        match self.peer {
            Peer::Bird => self.ask(&format!("show route all for {prefix}")),
            Peer::Frr => self.ask(&format!("show bgp {family} unicast {prefix}")),
            Peer::GoBgp => self.ask(&format!("global rib -a {family} {prefix}")),
            Peer::OpenBgpd => self.ask(&format!("show rib detail {prefix}")),
            Peer::ExaBgp => {
                let text = self.told();
                let wanted = format!("\"{prefix}\"");
                text.lines().filter(|line| line.contains(&wanted)).collect::<Vec<_>>().join("\n")
            }
        }
    }
}

/// Words, of which those in double quotes hold blanks.
fn shell_words(text: &str) -> Vec<String> {
    let parts = text.split('"').enumerate();
    parts
        .flat_map(|(at, part)| match at % 2 {
            0 => part.split_whitespace().map(str::to_owned).collect::<Vec<_>>(),
            _ => vec![part.to_owned()],
        })
        .collect()
}
