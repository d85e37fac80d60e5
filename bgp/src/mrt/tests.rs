use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::log::Writer;
use super::*;
use crate::event::{PeerState, RouteRow};
use crate::family::NextHop;
use crate::fsm::State;
use crate::wire::{AsPath, Attributes, Community};

fn entry(at_micros: u64, peer: &str, what: Happened) -> SessionEntry {
    let peer: IpAddr = peer.parse().unwrap();
    let local = if peer.is_ipv4() { "192.0.2.1" } else { "2001:db8::1" };
    SessionEntry {
        at: Duration::from_micros(at_micros),
        peer_asn: 65002,
        local_asn: 65001,
        peer_address: peer,
        local_address: local.parse().unwrap(),
        what,
    }
}

fn keepalive(sent: bool, four_octet_as: bool, add_path: bool) -> Happened {
    Happened::Message { sent, four_octet_as, add_path, bytes: crate::wire::keepalive().into() }
}

fn read(mut bytes: &[u8]) -> Vec<Record> {
    std::iter::from_fn(|| Record::next(&mut bytes).unwrap()).collect()
}

#[test]
fn every_form_of_entry_reads_back() {
    let bools = [false, true];
    let forms = bools.iter().flat_map(|sent| bools.iter().map(move |four| (*sent, *four)));
    let forms = forms.flat_map(|(sent, four)| bools.iter().map(move |paths| (sent, four, *paths)));
    let mut entries: Vec<SessionEntry> = forms
        .map(|(sent, four, paths)| entry(1_500_000, "192.0.2.2", keepalive(sent, four, paths)))
        .collect();
    let up = Happened::State { from: State::OpenConfirm, to: State::Established };
    entries.push(entry(7_000_001, "2001:db8::2", up));
    let mut bytes = Vec::new();
    entries.iter().for_each(|entry| entry.record().encode(&mut bytes));
    let records = read(&bytes);
    assert_eq!(records.iter().filter_map(SessionEntry::of).collect::<Vec<_>>(), entries);
    let subtypes: Vec<u16> = records.iter().map(|record| record.subtype).collect();
    assert_eq!(subtypes, [1, 8, 4, 9, 6, 10, 7, 11, 5], "numbers of RFC 6396 and RFC 8050");
    assert_eq!(entries[0].received().unwrap().kind, crate::wire::MessageType::Keepalive);
    assert_eq!(entries[4].received(), None, "we sent it");
}

#[test]
fn the_first_record_has_the_bytes_of_the_rfc() {
    let mut bytes = Vec::new();
    entry(2_000_003, "192.0.2.2", keepalive(false, true, false)).record().encode(&mut bytes);
    let head = [
        0, 0, 0, 2, 0, 17, 0, 4, 0, 0, 0, 43, 0, 0, 0, 3, 0, 0, 0xfd, 0xea, 0, 0, 0xfd, 0xe9, 0, 0, 0, 1,
        192, 0, 2, 2, 192, 0, 2, 1, 0xff,
    ];
    assert_eq!(bytes[..head.len()], head);
    assert_eq!(bytes.len(), 12 + 43);
}

#[test]
fn damaged_files_are_refused_without_harm() {
    let mut bytes = Vec::new();
    entry(1, "192.0.2.2", keepalive(false, true, false)).record().encode(&mut bytes);
    for len in 1..bytes.len() {
        assert_eq!(Record::next(&mut &bytes[..len]), Err(MrtError::Truncated), "{len}");
    }
    for at in 0..bytes.len() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] = value;
            let mut rest = &damaged[..];
            while let Ok(Some(record)) = Record::next(&mut rest) {
                drop(SessionEntry::of(&record).and_then(|entry| entry.received()));
            }
        }
    }
}

#[test]
fn files_are_rotated_by_size_and_the_oldest_go() {
    let folder = tempfile::tempdir().unwrap();
    let settings = MessageLog { folder: folder.path().join("messages"), file_bytes_max: 0, files: 3 };
    let mut writer = Writer::start(settings).unwrap();
    let bytes = Bytes::from(vec![0xff; 4000]);
    let message = |count| {
        entry(
            count,
            "192.0.2.2",
            Happened::Message { sent: true, four_octet_as: true, add_path: false, bytes: bytes.clone() },
        )
    };
    // 64 KiB hold 16 of these; 100 of them need seven files, of which three stay.
    (0..100).for_each(|count| writer.log("../tor/a", message(count)));
    let path = |suffix: &str| folder.path().join(format!("messages/_tor_a.mrt{suffix}"));
    let newest = || std::fs::read(path("")).map(|bytes| read_lenient(&bytes)).unwrap_or_default();
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while newest().last().is_none_or(|last| last.at != Duration::from_micros(99)) {
        assert!(std::time::Instant::now() < deadline, "{:?}", newest().last());
        std::thread::yield_now();
    }
    let count = |suffix| read(&std::fs::read(path(suffix)).unwrap()).len();
    assert_eq!([count(""), count(".1"), count(".2")], [4, 16, 16]);
    assert_eq!(std::fs::read_dir(folder.path().join("messages")).unwrap().count(), 3);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "a name does not leave the folder");
}

/// What can be read of a file that may still be written.
fn read_lenient(mut bytes: &[u8]) -> Vec<Record> {
    std::iter::from_fn(|| Record::next(&mut bytes).ok().flatten()).collect()
}

fn row(prefix: &str, peer: &str, hop: &str) -> RouteRow {
    let attributes = Attributes {
        as_path: AsPath::sequence(&[65002, 4_200_000_000]),
        communities: vec![Community(0xfdea_0007)],
        med: Some(50),
        ..Attributes::default()
    };
    RouteRow {
        prefix: prefix.parse().unwrap(),
        peer: peer.to_owned(),
        path_id: 0,
        next_hop: NextHop::new(hop.parse().unwrap()),
        attributes: Arc::new(attributes),
        best: true,
        used: true,
        stale: false,
        refused: None,
    }
}

fn peers() -> Vec<PeerState> {
    use crate::config::{PeerConfig, SpeakerConfig};
    let mut core = crate::core::Core::new(&SpeakerConfig::new(65001, [192, 0, 2, 1].into()));
    let now = std::time::Instant::now();
    for (name, address) in [("a", "192.0.2.2"), ("b", "2001:db8::2")] {
        core.add_peer(now, PeerConfig::new(name, address.parse().unwrap(), 65002)).unwrap();
    }
    core.peers(now)
}

/// Asks `bgpdump`, Debian's reader of these files.
fn bgpdump(bytes: &[u8]) -> Vec<String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let output = std::process::Command::new("bgpdump").args(["-m", "-v"]).arg(file.path()).output();
    let output = output.expect("install bgpdump");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn bgpdump_reads_our_tables() {
    let rows = [
        row("10.1.0.0/16", "a", "192.0.2.2"),
        RouteRow { path_id: 7, ..row("10.2.0.0/16", "a", "192.0.2.7") },
        row("10.1.0.0/16", "b", "192.0.2.9"),
        row("2001:db8:100::/48", "b", "2001:db8::2"),
        row("0.0.0.0/0", "a", "192.0.2.2"),
        row("10.9.0.0/16", "gone", "192.0.2.2"),
    ];
    let at = Duration::from_secs(1_700_000_000);
    let lines = bgpdump(&table_dump(at, [192, 0, 2, 1].into(), "master", &peers(), &rows));
    let line = |peer: &str, prefix: &str, hop: &str| {
        format!(
            "TABLE_DUMP2|1700000000|B|{peer}|65002|{prefix}|65002 4200000000|IGP|{hop}|0|50|65002:7|NAG||"
        )
    };
    let want = [
        line("192.0.2.2", "0.0.0.0/0", "192.0.2.2"),
        line("192.0.2.2", "10.1.0.0/16", "192.0.2.2"),
        line("2001:db8::2", "10.1.0.0/16", "192.0.2.9"),
        line("192.0.2.2", "10.2.0.0/16|7", "192.0.2.7").replace("DUMP2|", "DUMP2_AP|"),
        line("2001:db8::2", "2001:db8:100::/48", "2001:db8::2"),
    ];
    assert_eq!(lines, want);
}

#[test]
fn bgpdump_reads_our_message_logs() {
    let mut update = Vec::new();
    let (hop, prefix) =
        (NextHop::new("192.0.2.2".parse().unwrap()), "10.1.0.0/16".parse::<ipnet::IpNet>().unwrap());
    let attributes = Attributes { as_path: AsPath::sequence(&[65002]), ..Attributes::default() };
    let context = crate::wire::EncodeContext::default();
    crate::wire::announce(&attributes, &hop, crate::Family::Ipv4Unicast, &[prefix], context, &mut update)
        .unwrap();
    let message =
        Happened::Message { sent: false, four_octet_as: true, add_path: false, bytes: update.into() };
    let mut bytes = Vec::new();
    entry(1_700_000_000_000_005, "192.0.2.2", message).record().encode(&mut bytes);
    let up = Happened::State { from: State::OpenConfirm, to: State::Established };
    entry(1_700_000_001_000_000, "2001:db8::2", up).record().encode(&mut bytes);
    let lines = bgpdump(&bytes);
    assert!(
        lines[0].starts_with("BGP4MP_ET|1700000000.000005|A|192.0.2.2|65002|10.1.0.0/16|65002|IGP|192.0.2.2"),
        "{lines:?}"
    );
    assert!(lines[1].contains("STATE") && lines[1].ends_with("|5|6"), "{lines:?}");
}
