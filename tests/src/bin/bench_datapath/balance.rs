//! E3 to E7: a pod opens connections to a service, one of many.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tombolo_ebpf::{Backend, Frontend, MapSizes, Scope, ServiceEntry};
use tombolo_tests::load::Kind;
use tombolo_tests::report::{Figure, Goal, Report};

use crate::Failure;
use crate::abba::{Comparison, Side, Wanted};
use crate::node::{PORT, TCP, ip};
use crate::spaces::{Host, Joined, Ours};
use crate::ways::{serving, side, sizes};

const SERVICE_PORT: u16 = 80;
/// Who serves them all.
pub(crate) const SERVER: &str = "10.1.1.3";

/// The address of a service, by number.
pub(crate) fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a65_0000 + number)
}

/// Rules as kube-proxy writes them for iptables: a chain for each service and for each endpoint.
pub(crate) fn chains(count: u32) -> String {
    let (mut declared, mut rules) = (String::new(), String::new());
    for number in 0..count {
        let address = address(number);
        // Writing to a String does not fail.
        write!(declared, ":KUBE-SVC-{number} -\n:KUBE-SEP-{number} -\n").ok();
        write!(
            rules,
            "-A KUBE-SERVICES -d {address}/32 -p tcp -m tcp --dport {SERVICE_PORT} -j KUBE-SVC-{number}\n\
             -A KUBE-SVC-{number} -j KUBE-SEP-{number}\n\
             -A KUBE-SEP-{number} -p tcp -m tcp -j DNAT --to-destination {SERVER}:{PORT}\n"
        )
        .ok();
    }
    format!(
        "*nat\n:PREROUTING ACCEPT\n:KUBE-SERVICES -\n{declared}-A PREROUTING -j KUBE-SERVICES\n{rules}COMMIT\n"
    )
}

/// A map from frontend to backend, as the least that nftables can do.
pub(crate) fn map(count: u32) -> String {
    let mut elements = String::new();
    for number in 0..count {
        writeln!(elements, "{} . {SERVICE_PORT} : {SERVER} . {PORT},", address(number)).ok();
    }
    format!(
        "flush ruleset\ntable ip services {{\n map frontends {{ type ipv4_addr . inet_service : ipv4_addr . inet_service; \
         elements = {{ {elements} }} }}\n chain prerouting {{ type nat hook prerouting priority dstnat; \
         dnat ip addr . port to ip daddr . tcp dport map @frontends; }}\n}}\n"
    )
}

/// Hands a long text to a program that reads it from a file.
pub(crate) fn read_by(
    space: &tombolo_tests::netns::Namespace,
    program: &[&str],
    text: &str,
) -> Result<(), Failure> {
    let mut file = tempfile::NamedTempFile::new()?;
    std::io::Write::write_all(&mut file, text.as_bytes())?;
    let path = file.path().to_str().ok_or("a path that is no text")?;
    space.run(&[program, &[path]].concat());
    Ok(())
}

/// The services from one number to another.
fn write(ours: &Ours, from: u32, to: u32) -> Result<(), Failure> {
    for number in from..to {
        let id = number + 1;
        ours.datapath.upsert_backend(id, &Backend { ip: ip(SERVER)?, port: PORT, protocol: TCP })?;
        let frontend = Frontend {
            ip: address(number).into(),
            port: SERVICE_PORT,
            protocol: TCP,
            scope: Scope::Internal,
        };
        let entry = ServiceEntry { rev_nat: id, maglev: vec![id], ..ServiceEntry::default() };
        ours.datapath.set_service(&frontend, &entry)?;
    }
    Ok(())
}

/// To the last of so many services.
fn to_last(host: &Host, count: u32) -> Result<Side<'_>, Failure> {
    let last: IpAddr = address(count - 1).into();
    Ok(Side { target: SocketAddr::from((last, SERVICE_PORT)), ..side(host, host)? })
}

/// What iptables is to be beaten by, at so many services.
fn goal(count: u32) -> Goal {
    match count {
        10 => Goal::RatioLeast(0.9),
        1_000 => Goal::RatioLeast(1.1),
        5_000 => Goal::RatioLeast(2.0),
        10_000 => Goal::RatioLeast(3.0),
        _ => Goal::None,
    }
}

pub(crate) fn bench(comparison: &mut Comparison<'_>, counts: &[u32]) -> Result<(), Failure> {
    let most = counts.last().copied().unwrap_or_default();
    let sizes = MapSizes { services: most + 64, backends: most + 64, conntrack_half: 131_072, ..sizes() };
    let host = || serving(Host::new(1, 2, Joined::Routed));
    let (ours, chained, mapped) = (Ours::new(host()?, sizes)?, host()?, host()?);
    let collect = || Ok(ours.datapath.gc().map(drop)?);
    let mut written = 0;
    for count in counts.iter().copied() {
        write(&ours, written, count)?;
        written = count;
        read_by(&chained.space, &["iptables-restore"], &chains(count))?;
        read_by(&mapped.space, &["nft", "-f"], &map(count))?;
        let what = format!("TCP_CRR to a service, the last of {count}");
        let id = if count == 10 { "E3" } else { "E4" };
        for (id, peer, host, goal) in [
            (id, "iptables, a chain each", &chained, goal(count)),
            ("E5", "nftables, one map", &mapped, Goal::RatioLeast(1.05)),
        ] {
            let id = format!("{id}-{count}");
            let wanted = Wanted { id: &id, what: &what, kind: Kind::Crr, peer, goal };
            comparison.row(&wanted, [to_last(&ours.host, count)?, to_last(host, count)?], collect)?;
        }
    }
    // The same node with few services: what many cost.
    let few = Ours::new(host()?, crate::ways::sizes())?;
    write(&few, 0, 10)?;
    let what = format!("TCP_CRR to a service, the last of {most}");
    let (peer, goal) = ("ours with 10 services", Goal::RatioLeast(0.97));
    let wanted = Wanted { id: "E6", what: &what, kind: Kind::Crr, peer, goal };
    comparison.row(&wanted, [to_last(&ours.host, most)?, to_last(&few.host, 10)?], || {
        few.datapath.gc()?;
        collect()
    })
}

/// What is not there yet.
pub(crate) fn absent(report: &mut Report) {
    let (what, peer) = ("TCP_RR by socket load balancing", Some((None, "the pod's own address")));
    let figure = Figure { id: "E7", what, unit: "/s", ours: None, peer, goal: Goal::RatioLeast(0.99) };
    report.add_noted(&figure, "not measured here: ebpf/tests/sockets.rs has a measurement of it");
}
