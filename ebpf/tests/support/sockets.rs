//! A node with pods whose sockets, and whose own, are below a cgroup of the test.

use super::space::*;
use super::*;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A process is in one cgroup at a time, and with it all its sockets: these tests go one by one.
static ONE_BY_ONE: Mutex<()> = Mutex::new(());

/// A cgroup that this process is in while the value lives.
pub struct Cgroup {
    tree: tempfile::TempDir,
    own: PathBuf,
    before: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

impl Cgroup {
    /// The thread has a mount namespace of its own.
    pub fn enter() -> Self {
        let turn = ONE_BY_ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let tree = tempfile::tempdir().unwrap();
        let none: Option<&str> = None;
        mount(Some("cgroup2"), tree.path(), Some("cgroup2"), MsFlags::empty(), none).unwrap();
        let list = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let before = list.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
        let before = tree.path().join(before).join("cgroup.procs");
        let own = tree.path().join(format!("tombolo-sockets-{}", std::process::id()));
        std::fs::create_dir(&own).unwrap();
        std::fs::write(own.join("cgroup.procs"), std::process::id().to_string()).unwrap();
        Self { tree, own, before, _turn: turn }
    }

    pub fn path(&self) -> &Path {
        &self.own
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        std::fs::write(&self.before, std::process::id().to_string()).ok();
        std::fs::remove_dir(&self.own).ok();
        nix::mount::umount2(self.tree.path(), nix::mount::MntFlags::MNT_DETACH).ok();
    }
}

/// A mount of this thread's namespace, so that the directory can be removed.
pub struct Mounted(tempfile::TempDir);

impl Drop for Mounted {
    fn drop(&mut self) {
        nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH).ok();
    }
}

/// A pod that answers each question at port 8080, by TCP and UDP, with its name and the address it was asked from.
pub struct Server {
    pub pod: Pod,
    ends: Arc<AtomicBool>,
    listeners: Vec<TcpListener>,
}

impl Server {
    fn new(pod: Pod, name: &'static str) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let mut listeners = Vec::new();
        for any in ["0.0.0.0", "::"] {
            let (tcp, udp) = pod.space.inside(|| listeners_of(any));
            listeners.push(tcp.try_clone().unwrap());
            std::thread::spawn(move || {
                while let Ok((mut stream, from)) = tcp.accept() {
                    std::thread::spawn(move || {
                        let mut question = [0; 64];
                        let answer = format!("{name} {}", from.ip());
                        while stream.read(&mut question).is_ok_and(|size| size > 0) {
                            stream.write_all(answer.as_bytes()).ok();
                        }
                    });
                }
            });
            udp.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            let ends = ends.clone();
            std::thread::spawn(move || {
                let mut question = [0; 64];
                while !ends.load(Ordering::Relaxed) {
                    if let Ok((_, from)) = udp.recv_from(&mut question) {
                        udp.send_to(format!("{name} {}", from.ip()).as_bytes(), from).ok();
                    }
                }
            });
        }
        Self { pod, ends, listeners }
    }
}

/// Listeners of one family alone, so that each sees addresses as they are.
fn listeners_of(any: &str) -> (TcpListener, UdpSocket) {
    use nix::sys::socket::*;
    let address = SockaddrStorage::from(SocketAddr::from((ip(any), 8080)));
    let family = if ip(any).is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let open = |kind| {
        let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
        if family == AddressFamily::Inet6 {
            setsockopt(&fd, sockopt::Ipv6V6Only, &true).unwrap();
        }
        bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &address).unwrap();
        fd
    };
    let (tcp, udp) = (open(SockType::Stream), open(SockType::Datagram));
    listen(&tcp, Backlog::new(64).unwrap()).unwrap();
    (tcp.into(), udp.into())
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        for listener in &self.listeners {
            // Whoever waits in accept is told.
            nix::sys::socket::shutdown(
                std::os::fd::AsRawFd::as_raw_fd(listener),
                nix::sys::socket::Shutdown::Both,
            )
            .ok();
        }
    }
}

/// A UDP socket of the family of `to`.
pub fn udp_socket(to: SocketAddr) -> UdpSocket {
    let any = if to.is_ipv4() { "0.0.0.0" } else { "::" };
    let socket = UdpSocket::bind((ip(any), 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    socket
}

/// The name of who answers an unconnected socket.
pub fn who(socket: &UdpSocket, to: SocketAddr) -> String {
    socket.send_to(b"who?", to).unwrap();
    let mut answer = [0; 64];
    let size = socket.recv(&mut answer).unwrap();
    let text = String::from_utf8_lossy(&answer[..size]).into_owned();
    text.split_whitespace().next().unwrap().to_owned()
}

/// A client and two servers: backends 1 and 2, of each family and protocol.
pub struct Lab {
    pub datapath: Datapath,
    events: Option<EventReader>,
    runtime: tokio::runtime::Runtime,
    pub client: Pod,
    pub one: Server,
    pub two: Server,
    pub cgroup: Cgroup,
    bpffs: Mounted,
}

impl Lab {
    pub fn new() -> Self {
        let bpffs = Mounted(isolate());
        let cgroup = Cgroup::enter();
        let datapath = open(Attach::Auto, bpffs.0.path());
        prepare_node(&datapath, 1);
        datapath.set_config(&Self::config()).unwrap();
        let client = add_pod(&datapath, 1, 2, ID_A, 1500);
        let one = Server::new(add_pod(&datapath, 1, 3, ID_B, 1500), "one");
        let two = Server::new(add_pod(&datapath, 1, 4, ID_B, 1500), "two");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let events = {
            let _guard = runtime.enter();
            Some(datapath.events().unwrap())
        };
        let lab = Self { datapath, events, runtime, client, one, two, cgroup, bpffs };
        lab.write_backends();
        lab.datapath.attach_sockets(lab.cgroup.path()).unwrap();
        lab
    }

    pub fn config() -> NodeConfig {
        NodeConfig { socket_lb: SocketLb::All, ..host_config() }
    }

    /// The number of a server's backend of a family and protocol.
    fn number(server: u32, f: usize, protocol: u8) -> u32 {
        server + 10 * u32::try_from(f).unwrap() + if protocol == 6 { 0 } else { 100 }
    }

    pub fn write_backends(&self) {
        for (server, f, protocol) in [1, 2].into_iter().flat_map(|server| {
            FAMILIES.into_iter().flat_map(move |f| [6, 17].map(|protocol| (server, f, protocol)))
        }) {
            let pods = [[POD_B[f], "10.1.1.4"], [POD_B[f], "fd00:10:1:1::4"]][f];
            let address = pods[usize::try_from(server).unwrap() - 1];
            let backend = Backend { ip: ip(address), port: 8080, protocol };
            self.datapath.upsert_backend(Self::number(server, f, protocol), &backend).unwrap();
        }
    }

    pub fn forget_backend(&self, server: u32, f: usize) {
        for protocol in [6, 17] {
            self.datapath.delete_backend(Self::number(server, f, protocol)).unwrap();
        }
    }

    /// A service for pods and the node, TCP and UDP, with the servers in `slots`.
    pub fn service(
        &self,
        address: &str,
        port: u16,
        number: u32,
        slots: &[u32],
        terms: impl Fn(ServiceEntry) -> ServiceEntry,
    ) {
        let f = usize::from(ip(address).is_ipv6());
        for (protocol, number) in [(6, number), (17, number + 100)] {
            let maglev = slots.iter().map(|server| Self::number(*server, f, protocol)).collect();
            let frontend = Frontend { ip: ip(address), port, protocol, scope: Scope::Internal };
            let entry = ServiceEntry {
                rev_nat: number + 1000 * u32::from(f == 1),
                maglev,
                ..ServiceEntry::default()
            };
            self.datapath.set_service(&frontend, &terms(entry)).unwrap();
        }
    }

    /// What has been told since the last time.
    pub fn flows(&mut self) -> Vec<DatapathEvent> {
        let Some(reader) = &mut self.events else { return Vec::new() };
        let mut found = Vec::new();
        self.runtime.block_on(async {
            while let Ok(event) = tokio::time::timeout(Duration::from_millis(200), reader.next()).await {
                found.push(event.unwrap());
            }
        });
        found
    }

    pub fn namespaces(&self) -> Vec<PathBuf> {
        let pods = [&self.client, &self.one.pod, &self.two.pod];
        pods.map(|pod| PathBuf::from(format!("/proc/{}/ns/net", pod.space.pid()))).to_vec()
    }

    /// The pinned links of sockets, by number.
    pub fn links(&self) -> Vec<(String, u64)> {
        let pins = self.bpffs.0.path().join("tombolo/v1/links");
        let names =
            std::fs::read_dir(&pins).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name.starts_with("sock_")).collect();
        names.sort();
        // A link that is made anew is pinned anew.
        let number = |name: &String| std::fs::metadata(pins.join(name)).unwrap().ino();
        names.into_iter().map(|name| (name.clone(), number(&name))).collect()
    }

    /// The agent is gone, and another one opens what it left.
    pub fn reopened(self, sizes: impl Fn(MapSizes) -> MapSizes) -> Self {
        let Self { datapath, runtime, client, one, two, cgroup, bpffs, .. } = self;
        drop(datapath);
        let config = DatapathConfig {
            bpffs: bpffs.0.path().to_owned(),
            sizes: sizes(small_sizes()),
            ..DatapathConfig::default()
        };
        let datapath = Datapath::open(&config).unwrap();
        Self { datapath, events: None, runtime, client, one, two, cgroup, bpffs }
    }
}
