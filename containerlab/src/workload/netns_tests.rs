//! The probes over real links: a client and a server on either side of a router whose far link has a smaller MTU.
//! Needs root; everything lives in namespaces of its own.

use std::fs::File;
use std::net::IpAddr;
use std::process::Command;
use std::sync::mpsc;

use nix::sched::{CloneFlags, setns};

use super::attempt::{DontFragment, SourceArgs};
use super::capture::{self, CaptureArgs};
use super::echo::{self, EchoArgs};
use super::load::{self, LoadArgs, LoadProtocol};
use super::ping::{self, PingArgs};
use super::probe::{self, CommonArgs, SocketArgs};
use super::{Attempt, FamilyArgs, Outcome};

/// MTU of the router's far link, in bytes.
const FAR_MTU: u32 = 1400;
const TCP_PORT: u16 = 9000;
const UDP_PORT: u16 = 9001;

fn ip(words: &str) {
    let output = Command::new("ip").args(words.split_whitespace()).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Three namespaces in a row, removed on drop.
struct Row {
    names: [String; 3],
}

impl Drop for Row {
    fn drop(&mut self) {
        for name in &self.names {
            drop(Command::new("ip").args(["netns", "delete", name]).status());
        }
    }
}

impl Row {
    fn new(label: &str) -> Self {
        let id = std::process::id();
        let row =
            Self { names: ["client", "router", "server"].map(|role| format!("t4-{label}-{role}-{id}")) };
        let [client, router, server] = &row.names;
        for (position, name) in row.names.iter().enumerate() {
            ip(&format!("netns add {name}"));
            ip(&format!("-n {name} link set lo up"));
            // Without this a router's link-local address is tentative for a second, and its first answers are lost.
            row.within(position, || {
                // The kernel takes the larger of the two.
                for scope in ["all", "default"] {
                    let path = format!("/proc/sys/net/ipv6/conf/{scope}/accept_dad");
                    std::fs::write(path, "0").expect("no DAD");
                }
            });
        }
        ip(&format!(
            "link add eth0 netns {client} mtu 1500 type veth peer name eth1 netns {router} mtu 1500"
        ));
        ip(&format!(
            "link add eth0 netns {server} mtu {FAR_MTU} type veth peer name eth2 netns {router} mtu {FAR_MTU}"
        ));
        let ends =
            [(client, "eth0", 1, 2), (router, "eth1", 1, 1), (router, "eth2", 2, 1), (server, "eth0", 2, 2)];
        for (name, device, net, host) in ends {
            ip(&format!("-n {name} address add 10.77.{net}.{host}/24 dev {device}"));
            ip(&format!("-n {name} -6 address add fd77:0:0:{net}::{host}/64 dev {device} nodad"));
            ip(&format!("-n {name} link set {device} up"));
        }
        for (name, net) in [(client, 1), (server, 2)] {
            ip(&format!("-n {name} route add default via 10.77.{net}.1"));
            ip(&format!("-n {name} -6 route add default via fd77:0:0:{net}::1"));
        }
        row.within(1, || {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forwarding");
            std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").expect("forwarding");
        });
        row
    }

    /// Runs `work` on a thread of its own inside the namespace of the given position.
    fn within<T: Send>(&self, position: usize, work: impl FnOnce() -> T + Send) -> T {
        let name = &self.names[position];
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                let namespace = File::open(format!("/run/netns/{name}")).expect("it was just made");
                setns(namespace, CloneFlags::CLONE_NEWNET).expect("root may enter it");
                work()
            });
            inside.join().expect("the work inside succeeds")
        })
    }

    fn client<T: Send>(&self, work: impl AsyncFnOnce() -> T + Send) -> T {
        self.within(0, || block_on(work()))
    }

    /// Waits until both families cross the router: the kernel delivers to a new IPv6 address and router a moment after
    /// it has acknowledged them.
    fn reachable(&self) {
        for server in SERVERS {
            let answered = self.client(async || {
                for _ in 0..20 {
                    if udp_once(server, 16).await.outcome.is_answer() {
                        return true;
                    }
                }
                false
            });
            assert!(answered, "{server} is reachable");
        }
    }

    /// Serves echoes in the server's namespace while `work` runs.
    fn while_serving(&self, work: impl FnOnce() + Send) {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (tell, told) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                self.within(2, || {
                    block_on(async {
                        let _servers = echo::start(&echo_args()).expect("the namespace is new");
                        tell.send(()).expect("the test waits");
                        drop(stopped.await);
                    });
                });
            });
            told.recv().expect("the server starts");
            self.reachable();
            work();
            drop(stop);
        });
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
}

fn echo_args() -> EchoArgs {
    EchoArgs {
        http: Vec::new(),
        tcp: vec![TCP_PORT],
        udp: vec![UDP_PORT],
        listen: Vec::new(),
        until_eof: false,
        pod: "server".into(),
        namespace: "ns".into(),
        node: "n1".into(),
        cluster: "east".into(),
    }
}

const SERVERS: [&str; 2] = ["10.77.2.2", "fd77:0:0:2::2"];
const ROUTERS: [&str; 2] = ["10.77.1.1", "fd77:0:0:1::1"];
const IP_HEADERS: [u32; 2] = [20, 40];

fn size_of(packet_bytes: u32, header_bytes: u32) -> usize {
    usize::try_from(packet_bytes - header_bytes - 8).expect("small")
}

async fn ping_once(host: &str, size: usize, df: Option<DontFragment>) -> Attempt {
    let args = PingArgs {
        host: host.into(),
        count: 1,
        size: Some(size),
        df,
        timeout_ms: 2000,
        token: "token".into(),
        source: None,
        family: FamilyArgs::default(),
    };
    ping::ping(args).await.expect("root may ping").attempts.remove(0)
}

async fn udp_once(host: &str, size: usize) -> Attempt {
    let common = CommonArgs {
        count: 1,
        parallel: 1,
        timeout_ms: 2000,
        token: "token".into(),
        source: SourceArgs::default(),
        family: FamilyArgs::default(),
    };
    let df = Some(DontFragment::Probe);
    let args = SocketArgs { host: host.into(), port: UDP_PORT, size: Some(size), df, common };
    probe::udp(&args).await.expect("a socket").attempts.remove(0)
}

#[test]
fn the_largest_packet_passes_and_one_byte_more_is_too_big() {
    let row = Row::new("mtu");
    row.while_serving(|| {
        for ((server, router), header) in SERVERS.into_iter().zip(ROUTERS).zip(IP_HEADERS) {
            let from: IpAddr = router.parse().expect("literal");
            let (fits, too_big) = (size_of(FAR_MTU, header), size_of(FAR_MTU + 1, header));
            row.client(async || {
                let target: IpAddr = server.parse().expect("literal");
                let reply = Outcome::Reply { from: target, reply_bytes: u64::try_from(fits).expect("small") };
                assert_eq!(ping_once(server, fits, Some(DontFragment::Probe)).await.outcome, reply);
                let told = Outcome::TooBig { mtu: Some(FAR_MTU), from: Some(from) };
                assert_eq!(ping_once(server, too_big, Some(DontFragment::Probe)).await.outcome, told);
                // Unconnected raw sockets teach the host's routes: now its own stack refuses.
                let known = Outcome::TooBig { mtu: Some(FAR_MTU), from: None };
                assert_eq!(ping_once(server, too_big, Some(DontFragment::Do)).await.outcome, known);
                let beyond = ping_once(server, size_of(1501, header), Some(DontFragment::Probe)).await;
                assert!(matches!(beyond.outcome, Outcome::TooBig { from: None, .. }), "{beyond:?}");
                let whole = ping_once(server, too_big, None).await;
                assert!(whole.outcome.is_answer(), "without DF it is fragmented: {whole:?}");
                assert!(udp_once(server, fits).await.outcome.is_answer());
                let refused = udp_once(server, too_big).await;
                assert!(matches!(refused.outcome, Outcome::TooBig { mtu: Some(FAR_MTU), .. }), "{refused:?}");
            });
        }
    });
}

#[test]
fn a_place_without_route_is_unreachable() {
    let row = Row::new("away");
    for (away, router) in ["10.88.0.1", "fd88::1"].into_iter().zip(ROUTERS) {
        let from: IpAddr = router.parse().expect("literal");
        let heard = row.client(async || ping_once(away, 16, None).await.outcome);
        assert_eq!(heard, Outcome::Unreachable { code: Some(0), from: Some(from) });
    }
}

#[test]
fn the_capture_on_the_router_sees_tokens_on_both_links() {
    let row = Row::new("wire");
    row.while_serving(|| {
        let (began, begin) = mpsc::channel();
        let report = std::thread::scope(|scope| {
            let router = scope.spawn(|| {
                row.within(1, || {
                    block_on(async {
                        let args = CaptureArgs {
                            prefix: "tombolo-check-77-".into(),
                            flag_udp: Vec::new(),
                            flag_net: vec!["10.0.0.0/8".parse().expect("literal")],
                            duration_ms: Some(1500),
                            until_eof: false,
                        };
                        let running = tokio::spawn(capture::capture(args));
                        // The socket is open once the task has run up to its first await.
                        tokio::task::yield_now().await;
                        began.send(()).expect("the test waits");
                        running.await.expect("no panic").expect("root may capture")
                    })
                })
            });
            begin.recv().expect("the capture begins");
            row.client(async || {
                for server in SERVERS {
                    let args = LoadArgs {
                        protocol: LoadProtocol::Tcp,
                        host: server.into(),
                        port: TCP_PORT,
                        connections: 2,
                        rate: 40,
                        duration_ms: Some(300),
                        until_eof: false,
                        timeout_ms: 1000,
                        token: "tombolo-check-77-0001".into(),
                        family: FamilyArgs::default(),
                    };
                    let report = load::drive(args, None).await.expect("a load");
                    assert!(report.sent > 4 && report.failed == 0, "{report:?}");
                    assert_eq!((report.connections, report.broken_connections), (2, 0));
                    assert_eq!(report.by_node.get("n1"), Some(&report.answered));
                }
            });
            router.join().expect("the capture ends")
        });
        for server in SERVERS {
            let server: IpAddr = server.parse().expect("literal");
            for interface in ["eth1", "eth2"] {
                let seen = report
                    .sightings
                    .iter()
                    .find(|one| one.destination == Some(server) && one.interface == interface);
                let seen = seen.unwrap_or_else(|| panic!("{server} on {interface} in {report:?}"));
                assert_eq!(seen.token, "tombolo-check-77-0001");
                assert_eq!((seen.protocol, seen.destination_port), (Some(6), Some(TCP_PORT)));
            }
        }
    });
}
