//! What a collector is told, read back with a small reader of its own.

use super::bmp::StationOutput;
use super::tests::*;
use super::*;
use crate::bmp::BmpStation;
use crate::wire::{Update, UpdateContext};

/// One message: type, type of the peer, flags, address' last octets, and the body behind the per-peer header.
#[derive(Debug)]
struct Told {
    kind: u8,
    peer_kind: u8,
    flags: u8,
    body: Vec<u8>,
}

fn read(mut bytes: &[u8]) -> Vec<Told> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        assert_eq!(bytes[0], 3, "version");
        let len = u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
        let (message, rest) = bytes.split_at(len);
        let kind = message[5];
        let about_peer = kind < 4;
        let (peer_kind, flags) = if about_peer { (message[6], message[7]) } else { (0, 0) };
        let body = message[if about_peer { 48 } else { 6 }..].to_vec();
        all.push(Told { kind, peer_kind, flags, body });
        bytes = rest;
    }
    all
}

/// Routes of a Route Monitoring message: announced, withdrawn, family whose table ends.
fn routes(told: &Told) -> (Vec<IpNet>, Vec<IpNet>, Option<Family>) {
    assert_eq!(told.kind, 0);
    let context =
        UpdateContext { four_octet_as: true, families: Family::ALL.to_vec(), ..UpdateContext::default() };
    let update = Update::decode(&told.body[19..], &context).unwrap();
    assert!(update.faults.is_empty(), "{:?}", update.faults);
    let announced = update.reach.iter().flat_map(|reach| reach.prefixes.clone()).collect();
    (announced, update.withdrawn.clone(), update.end_of_rib)
}

/// Takes all a collector is to be told, as if it read at once.
fn pump(core: &mut Core) -> Vec<Told> {
    let mut all = Vec::new();
    loop {
        let outputs = core.pump_stations(Duration::from_secs(1));
        if outputs.is_empty() {
            return all;
        }
        for (id, output) in outputs {
            let StationOutput::Send(bytes) = output else { panic!("cut off") };
            all.extend(read(&bytes));
            core.station_drained(id, bytes.len());
        }
    }
}

fn monitored() -> Pair {
    let mut pair = Pair::new();
    let station = BmpStation::new("192.0.2.9:1790".parse().unwrap());
    pair.cores[0].set_stations(&[station]);
    for text in ["10.1.0.0/16", "2001:db8:1::/48", "172.16.0.0/16"] {
        pair.cores[1].announce(Scope::All, prefix(text), Announcement::default()).unwrap();
    }
    pair.wait(30);
    pair
}

/// What of the told is about the given kind of peer and policy: announced, withdrawn, ends of tables.
fn sorted(told: &[Told], peer_kind: u8, flags: u8) -> (Vec<String>, Vec<String>, usize) {
    let (mut announced, mut withdrawn, mut ends) = (Vec::new(), Vec::new(), 0);
    for one in told.iter().filter(|one| one.kind == 0 && one.peer_kind == peer_kind && one.flags == flags) {
        let (more, gone, end) = routes(one);
        announced.extend(more.iter().map(ToString::to_string));
        withdrawn.extend(gone.iter().map(ToString::to_string));
        ends += usize::from(end.is_some());
    }
    announced.sort();
    withdrawn.sort();
    (announced, withdrawn, ends)
}

#[test]
fn a_collector_is_told_who_is_up_and_the_table_before_and_after_policy() {
    let mut pair = monitored();
    assert!(pump(&mut pair.cores[0]).is_empty(), "nobody is connected");
    pair.cores[0].station_up(0);
    let told = pump(&mut pair.cores[0]);
    assert_eq!(
        told.iter().take(3).map(|one| (one.kind, one.peer_kind)).collect::<Vec<_>>(),
        [(4, 0), (3, 3), (3, 0)]
    );
    let allowed = vec!["10.1.0.0/16".to_owned(), "2001:db8:1::/48".to_owned()];
    let all: Vec<String> = ["10.1.0.0/16", "172.16.0.0/16", "2001:db8:1::/48"].map(str::to_owned).to_vec();
    assert_eq!(sorted(&told, 0, 0), (all, vec![], 2), "pre-policy");
    let (announced, withdrawn, ends) = sorted(&told, 0, 0x40);
    assert_eq!(
        (announced, withdrawn, ends),
        (allowed.clone(), vec!["172.16.0.0/16".to_owned()], 2),
        "post-policy"
    );
    assert_eq!(sorted(&told, 3, 0), (allowed, vec![], 2), "Loc-RIB");
    // The OPENs in Peer Up are those that passed: behind addresses and ports.
    let up = &told[2].body[20..];
    let sent_len = usize::from(u16::from_be_bytes([up[16], up[17]]));
    assert_eq!((up[18], up[sent_len + 18]), (1, 1), "two OPENs");
    assert_eq!(u16::from_be_bytes([up[sent_len + 20], up[sent_len + 21]]), 65002, "the second is the peer's");
}

#[test]
fn changes_follow_and_a_lost_session_is_one_message() {
    let mut pair = monitored();
    pair.cores[0].station_up(0);
    drop(pump(&mut pair.cores[0]));
    pair.cores[1].withdraw(&Scope::All, &prefix("10.1.0.0/16"));
    pair.cores[1].announce(Scope::All, prefix("10.2.0.0/16"), Announcement::default()).unwrap();
    pair.wait(1);
    let told = pump(&mut pair.cores[0]);
    let change = (vec!["10.2.0.0/16".to_owned()], vec!["10.1.0.0/16".to_owned()], 0);
    for (kind, flags) in [(0, 0), (0, 0x40), (3, 0)] {
        assert_eq!(sorted(&told, kind, flags), change, "{kind} {flags:#x}");
    }
    // What came and went between two looks is not there.
    pair.cores[1].announce(Scope::All, prefix("10.3.0.0/16"), Announcement::default()).unwrap();
    pair.wait(1);
    pair.cores[1].withdraw(&Scope::All, &prefix("10.3.0.0/16"));
    pair.wait(1);
    assert_eq!(sorted(&pump(&mut pair.cores[0]), 0, 0).0, Vec::<String>::new());
    pair.cores[0].station_statistics(0);
    let told = pump(&mut pair.cores[0]);
    assert_eq!((told.len(), told[0].kind), (1, 1));
    let held = told[0].body.windows(12).any(|tlv| tlv == [0, 7, 0, 8, 0, 0, 0, 0, 0, 0, 0, 3]);
    assert!(held, "three routes: {:?}", told[0].body);
    pair.sever();
    let told = pump(&mut pair.cores[0]);
    let downs: Vec<&Told> = told.iter().filter(|one| one.peer_kind == 0).collect();
    assert_eq!((downs.len(), downs[0].kind, downs[0].body[0]), (1, 2, 4), "closed without a word: {told:?}");
}

#[test]
fn a_collector_that_wants_it_is_told_what_peers_are_sent() {
    let mut pair = monitored();
    let station = BmpStation { adj_rib_out: true, ..BmpStation::new("192.0.2.9:1790".parse().unwrap()) };
    pair.cores[0].set_stations(&[station]);
    let announce = |pair: &mut Pair, texts: &[&str]| {
        for text in texts {
            pair.cores[0].announce(Scope::All, prefix(text), Announcement::default()).unwrap();
        }
        pair.wait(1);
    };
    announce(&mut pair, &["10.9.0.0/16", "2001:db8:9::/48"]);
    pair.cores[0].station_up(0);
    let post_out = 0x50;
    let first = sorted(&pump(&mut pair.cores[0]), 0, post_out);
    assert_eq!(first, (vec!["10.9.0.0/16".to_owned(), "2001:db8:9::/48".to_owned()], vec![], 2));
    announce(&mut pair, &["10.10.0.0/16"]);
    pair.cores[0].withdraw(&Scope::All, &prefix("10.9.0.0/16"));
    pair.wait(1);
    let told = pump(&mut pair.cores[0]);
    assert_eq!(
        sorted(&told, 0, post_out),
        (vec!["10.10.0.0/16".to_owned()], vec!["10.9.0.0/16".to_owned()], 0)
    );
    let path: Vec<_> = told.iter().filter(|one| one.kind == 0 && one.flags == post_out).collect();
    let as_path = [2, 1, 0, 0, 0xfd, 0xe9];
    assert!(
        path.iter().any(|one| one.body.windows(6).any(|part| part == as_path)),
        "as it was sent: {path:?}"
    );
}

#[test]
fn a_slow_collector_holds_nobody_up_and_begins_anew() {
    let mut pair = monitored();
    pair.cores[0].station_up(0);
    // It takes nothing: what is under way is bounded, and what waits is the newest state of each path.
    let mut restarted = false;
    for round in 0..6000u32 {
        pair.cores[0].station_statistics(0);
        for (_, output) in pair.cores[0].pump_stations(Duration::from_secs(round.into())) {
            restarted |= matches!(output, StationOutput::Restart);
        }
        if restarted {
            break;
        }
    }
    // Each report takes about 120 bytes: a MiB under way and 4096 waiting are less than that many.
    if !restarted {
        (0..6000).for_each(|_| pair.cores[0].station_statistics(0));
        let outputs = pair.cores[0].pump_stations(Duration::from_secs(1));
        restarted = outputs.iter().any(|(_, output)| matches!(output, StationOutput::Restart));
    }
    assert!(restarted);
    pair.cores[1].announce(Scope::All, prefix("10.4.0.0/16"), Announcement::default()).unwrap();
    pair.wait(1);
    assert!(pump(&mut pair.cores[0]).is_empty(), "until it is back");
    pair.cores[0].station_up(0);
    let told = pump(&mut pair.cores[0]);
    assert_eq!(told[0].kind, 4);
    assert!(sorted(&told, 0, 0).0.contains(&"10.4.0.0/16".to_owned()));
    pair.cores[0].stop_stations();
    assert_eq!(pump(&mut pair.cores[0])[0].kind, 5);
}
