//! The WireGuard device is a TUN: packets without a link layer. What comes out of it reaches pods, what must be encrypted
//! goes into it.
#![cfg(test)]
#![allow(unsafe_code)]

mod support;
use std::fs::File;
use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use support::space::*;
use support::*;
use tombolo_ebpf::*;

/// Opens the persistent TUN device `name` of this namespace.
fn open_tun(name: &str) -> File {
    let tun = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    let mut request = [0_u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    let flags: u16 = 0x0001 | 0x1000; // IFF_TUN, IFF_NO_PI
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: TUNSETIFF reads and writes one struct ifreq (40 bytes), which request is; the descriptor is open.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), 0x4004_54ca, request.as_mut_ptr()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    tun
}

/// The next UDP packet that leaves through the device, as an Ethernet frame for the checks.
fn read_udp(tun: &mut File) -> Ran {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let mut buffer = [0_u8; 2048];
    loop {
        let mut ready = [PollFd::new(tun.as_fd(), PollFlags::POLLIN)];
        assert_eq!(
            poll(&mut ready, PollTimeout::from(3000_u16)).unwrap(),
            1,
            "nothing left through WireGuard"
        );
        let size = tun.read(&mut buffer).unwrap();
        let (protocol, kind): (u8, [u8; 2]) =
            if buffer[0] >> 4 == 4 { (buffer[9], [8, 0]) } else { (buffer[6], [0x86, 0xdd]) };
        if protocol == 17 {
            let mut packet = vec![0; 12];
            packet.extend(kind);
            packet.extend(&buffer[..size]);
            return Ran { action: 0, packet, mark: 0 };
        }
    }
}

#[test]
fn pods_talk_through_the_wireguard_device() {
    let bpffs = isolate();
    let datapath = open(Attach::Auto, bpffs.path());
    prepare_node(&datapath, 1);
    sh("ip link add wire type veth peer name far; ip link set wire up; ip link set far up
        ip addr add 172.20.0.1/24 dev wire; ip addr add fd00:20::1/64 dev wire nodad
        ip neigh add 172.20.0.2 lladdr 02:00:00:00:00:99 dev wire
        ip neigh add fd00:20::2 lladdr 02:00:00:00:00:99 dev wire
        ip route add 10.1.2.0/24 via 172.20.0.2; ip -6 route add fd00:10:1:2::/64 via fd00:20::2
        ip tuntap add wg mode tun; ip link set wg up mtu 1420");
    let mut tun = open_tun("wg");
    sh("ip link set wg up");
    let config = NodeConfig {
        encrypt: true,
        uplink_ifindex: index("wire"),
        wireguard_ifindex: index("wg"),
        ..host_config()
    };
    datapath.set_config(&config).unwrap();
    let node = NodeEntry { tunnel: Some(ip("172.20.0.2")), path: NodePath::Direct, encrypt: true, mtu: 1420 };
    datapath.upsert_node(1, &node).unwrap();
    for f in FAMILIES {
        let prefix = PrefixEntry { identity: ID_REMOTE, node: 1, ..PrefixEntry::default() };
        datapath.upsert_prefix(ip(REMOTE[f]).into(), &prefix).unwrap();
    }
    let pod = add_pod(&datapath, 1, 2, ID_A, 1500);
    datapath.attach_uplink(index("wire")).unwrap();
    datapath.attach_wireguard(index("wg")).unwrap();
    for f in FAMILIES {
        let socket = pod.space.inside(|| UdpSocket::bind((ip(POD_A[f]), 7))).unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_secs(3))).unwrap();
        tun.write_all(&udp((REMOTE[f], 4000), (POD_A[f], 7), 32)[14..]).unwrap();
        let mut buffer = [0; 64];
        let (size, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!((size, from.ip(), from.port()), (32, ip(REMOTE[f]), 4000));
        socket.send_to(b"answer", from).unwrap();
        let seen = read_udp(&mut tun).seen();
        assert_eq!((seen.source, seen.destination), ((ip(POD_A[f]), 7), (ip(REMOTE[f]), 4000)));
    }
    let flows = datapath.conntrack().unwrap();
    let answered = flows.iter().filter(|flow| flow.identity == ID_REMOTE && flow.packets == [1, 1]);
    assert!(answered.count() == 2, "{flows:#?}");
    assert_eq!(drops(&datapath), vec![]);
    // Without the device nothing leaves.
    datapath.set_config(&NodeConfig { wireguard_ifindex: 0, ..config }).unwrap();
    let socket = pod.space.inside(|| UdpSocket::bind((ip(POD_A[0]), 8))).unwrap();
    socket.send_to(b"secret", (ip(REMOTE[0]), 4001)).unwrap();
    let unencrypted = || datapath.metrics().unwrap().into_iter().find(|m| m.reason == 195).map(|m| m.packets);
    assert_eq!(unencrypted(), Some(1));
    nix::mount::umount2(bpffs.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
}
