//! Namespaces with pods in them, for tests with real traffic.

use super::*;
use std::fs::File;

/// A namespace kept by a sleeping process of ours; killed with the value.
pub struct Space(std::process::Child);

impl Space {
    pub fn new() -> Self {
        let child = Command::new("unshare").args(["--net", "sleep", "600"]).spawn().unwrap();
        let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let theirs = format!("/proc/{}/ns/net", child.id());
        // unshare(1) enters the namespace before it starts sleep; the link's change tells it has.
        let limit = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while std::fs::read_link(&theirs).is_ok_and(|now| now == own) {
            assert!(std::time::Instant::now() < limit, "unshare did not enter its namespace");
            std::thread::yield_now();
        }
        Self(child)
    }

    /// The namespace that the thread is in, for those who want one like the others.
    pub fn here() -> Self {
        Self(Command::new("sleep").arg("600").spawn().unwrap())
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn sh(&self, command: &str) {
        self.try_sh(command).unwrap_or_else(|text| panic!("{command}: {text}"));
    }

    pub fn try_sh(&self, command: &str) -> Result<String, String> {
        let net = format!("--net=/proc/{}/ns/net", self.pid());
        let out = Command::new("nsenter").args([&net, "sh", "-ec", command]).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        if out.status.success() { Ok(text) } else { Err(text) }
    }

    /// Runs `work` on this thread inside the namespace, then comes back.
    pub fn inside<T>(&self, work: impl FnOnce() -> T) -> T {
        let home = File::open("/proc/thread-self/ns/net").unwrap();
        let there = File::open(format!("/proc/{}/ns/net", self.pid())).unwrap();
        nix::sched::setns(there, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let result = work();
        nix::sched::setns(home, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        result
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A pod in its namespace, with addresses and a way to its gateway.
pub struct Pod {
    pub space: Space,
    pub ifindex: u32,
}

pub fn mac(last: u8) -> String {
    format!("02:00:00:00:01:{last:02x}")
}

/// Makes a pod on the node whose namespace the thread is in and writes its rows.
pub fn add_pod(datapath: &Datapath, node: u8, number: u8, identity: u32, attach_mtu: u32) -> Pod {
    let space = Space::new();
    let name = format!("tb{number}");
    let (v4, v6) = (format!("10.1.{node}.{number}"), format!("fd00:10:1:{node}::{number}"));
    let (gw4, gw6) = (format!("10.1.{node}.1"), format!("fd00:10:1:{node}::1"));
    let (pod_mac, host_mac) = (mac(number), mac(number + 100));
    sh(&format!(
        "ip link add {name} address {host_mac} type veth peer name eth0 address {pod_mac} netns {}
         ip link set {name} up mtu {attach_mtu}
         ip route add {v4}/32 dev {name}; ip -6 route add {v6}/128 dev {name}
         ip neigh add {v4} lladdr {pod_mac} dev {name}; ip neigh add {v6} lladdr {pod_mac} dev {name}",
        space.pid()
    ));
    space.sh(&format!(
        "ip link set lo up; ip link set eth0 up mtu {attach_mtu}
         ip addr add {v4}/32 dev eth0; ip addr add {v6}/128 dev eth0 nodad
         ip route add default via {gw4} dev eth0 onlink; ip -6 route add default via {gw6} dev eth0 onlink
         ip neigh add {gw4} lladdr {host_mac} dev eth0; ip neigh add {gw6} lladdr {host_mac} dev eth0"
    ));
    let ifindex = index(&name);
    let row = Interface {
        ready: true,
        identity,
        policy_id: 0,
        endpoint_id: u16::from(number),
        v4: v4.parse().ok(),
        v6: v6.parse().ok(),
        mac: [2, 0, 0, 0, 1, number],
        host_mac: [2, 0, 0, 0, 1, number + 100],
        ..Interface::default()
    };
    datapath.upsert_interface(ifindex, &row).unwrap();
    for address in [&v4, &v6] {
        datapath.upsert_local_address(ip(address), LocalAddress::Pod(ifindex)).unwrap();
    }
    datapath.attach_endpoint(ifindex).unwrap();
    Pod { space, ifindex }
}

pub fn open(attach: Attach, bpffs: &std::path::Path) -> Datapath {
    let config =
        DatapathConfig { bpffs: bpffs.to_owned(), sizes: small_sizes(), attach, ..DatapathConfig::default() };
    Datapath::open(&config).unwrap()
}

/// Packets dropped by reason, but for what every interface that comes up sends: listener reports and other
/// multicast.
pub fn drops(datapath: &Datapath) -> Vec<(u8, u64)> {
    let metrics = datapath.metrics().unwrap();
    let noise = |reason: u8| matches!(reason, 0 | 150 | 176);
    metrics.into_iter().filter(|m| !noise(m.reason)).map(|m| (m.reason, m.packets)).collect()
}

pub fn host_config() -> NodeConfig {
    NodeConfig {
        ready: true,
        cluster_id: 1,
        internal4: GATEWAY[0].parse().ok(),
        internal6: GATEWAY[1].parse().ok(),
        ..NodeConfig::default()
    }
}

/// Gives the node its internal addresses and forwarding.
pub fn prepare_node(datapath: &Datapath, node: u8) {
    sh(&format!(
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=0 \
         net.ipv4.conf.default.rp_filter=0
         ip link add host type veth peer name net; ip link set host up; ip link set net up
         ip addr add 10.1.{node}.1/32 dev host; ip addr add fd00:10:1:{node}::1/128 dev host nodad"
    ));
    for address in [format!("10.1.{node}.1"), format!("fd00:10:1:{node}::1")] {
        datapath.upsert_local_address(ip(&address), LocalAddress::Host).unwrap();
    }
}

/// Sends `payload` by TCP and UDP from `client` to an echo in `server`; returns what came back and the peers seen.
pub fn converse(client: &Space, server: &Space, listen: (&str, u16), dial: (&str, u16)) {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    let second = Some(std::time::Duration::from_secs(3));
    let listen = (ip(listen.0), listen.1);
    let dial = std::net::SocketAddr::from((ip(dial.0), dial.1));
    let (tcp, udp) = server.inside(|| {
        // Sockets of the conversation before may still be closing.
        let bind = || Ok::<_, std::io::Error>((TcpListener::bind(listen)?, UdpSocket::bind(listen)?));
        let busy = |_: &u32| bind().is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse);
        (0..3000).take_while(busy).for_each(|_| std::thread::sleep(std::time::Duration::from_millis(10)));
        bind().unwrap()
    });
    udp.set_read_timeout(second).unwrap();
    let large = vec![42_u8; 200_000];
    let mut stream = client
        .inside(|| TcpStream::connect_timeout(&dial, std::time::Duration::from_secs(3)))
        .unwrap_or_else(|error| panic!("connect {dial}: {error}"));
    stream.set_read_timeout(second).unwrap();
    let (mut accepted, _) = tcp.accept().unwrap();
    accepted.set_read_timeout(second).unwrap();
    let sent = large.clone();
    let sender = std::thread::spawn(move || {
        stream.write_all(&sent).unwrap();
        stream
    });
    let mut got = vec![0; large.len()];
    accepted.read_exact(&mut got).unwrap();
    assert!(got == large);
    let mut stream = sender.join().unwrap();
    accepted.write_all(b"answer").unwrap();
    let mut answer = [0; 6];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");

    let any = if dial.is_ipv4() { "0.0.0.0" } else { "::" };
    let socket = client.inside(|| UdpSocket::bind((ip(any), 0))).unwrap();
    socket.set_read_timeout(second).unwrap();
    socket.connect(dial).unwrap();
    socket.send(b"question").unwrap();
    let mut buffer = [0; 64];
    let (size, from) = udp.recv_from(&mut buffer).unwrap_or_else(|error| panic!("UDP to {dial}: {error}"));
    assert_eq!(&buffer[..size], b"question");
    udp.send_to(b"reply", from).unwrap();
    assert_eq!(socket.recv(&mut buffer).unwrap(), 5, "the answer's source is the address that was asked");
}

/// What a TCP connection carries in five seconds, in bits per second as its receiver sees it.
pub fn goodput(client: &Space, server: &Space, to: std::net::SocketAddr) -> f64 {
    use std::io::{Read, Write};
    use std::time::{Duration, Instant};
    let listener = server.inside(|| std::net::TcpListener::bind(to)).unwrap();
    let mut stream =
        client.inside(|| std::net::TcpStream::connect_timeout(&to, Duration::from_secs(5))).unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    accepted.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let sender = std::thread::spawn(move || {
        let (chunk, end) = (vec![7; 1 << 16], Instant::now() + Duration::from_secs(5));
        while Instant::now() < end {
            stream.write_all(&chunk).unwrap();
        }
    });
    let (begin, mut total, mut buffer) = (Instant::now(), 0_u64, vec![0; 1 << 17]);
    loop {
        match accepted.read(&mut buffer).unwrap() {
            0 => break,
            size => total += size as u64,
        }
    }
    let elapsed = begin.elapsed().as_secs_f64();
    sender.join().unwrap();
    total as f64 * 8.0 / elapsed
}
