use std::time::{Duration, Instant};

use super::client::{CacheClient, CacheOutput};
use super::{CachePhase, RpkiTable, Vrp};

fn unit(version: u8, kind: u8, session: u16, body: &[u8]) -> Vec<u8> {
    let mut out = vec![version, kind];
    out.extend(session.to_be_bytes());
    out.extend(u32::try_from(body.len() + 8).unwrap().to_be_bytes());
    out.extend(body);
    out
}

fn vrp(prefix: &str, max_len: u8, asn: u32) -> Vrp {
    Vrp { prefix: prefix.parse().unwrap(), max_len, asn }
}

fn prefix(version: u8, announced: bool, vrp: Vrp) -> Vec<u8> {
    let mut body = vec![u8::from(announced), vrp.prefix.prefix_len(), vrp.max_len, 0];
    let kind = match vrp.prefix.network() {
        std::net::IpAddr::V4(address) => {
            body.extend(address.octets());
            4
        }
        std::net::IpAddr::V6(address) => {
            body.extend(address.octets());
            6
        }
    };
    body.extend(vrp.asn.to_be_bytes());
    unit(version, kind, 0, &body)
}

fn end(version: u8, session: u16, serial: u32, intervals: [u32; 3]) -> Vec<u8> {
    let mut body = serial.to_be_bytes().to_vec();
    if version > 0 {
        intervals.iter().for_each(|secs| body.extend(secs.to_be_bytes()));
    }
    unit(version, 7, session, &body)
}

/// A client with a clock, and what it last did.
struct Rig {
    client: CacheClient,
    now: Instant,
    sent: Vec<Vec<u8>>,
    tables: Vec<Vec<Vrp>>,
    connects: usize,
    closes: usize,
}

impl Rig {
    fn new() -> Self {
        let now = Instant::now();
        let (sent, tables) = (Vec::new(), Vec::new());
        let mut rig = Self { client: CacheClient::new(now), now, sent, tables, connects: 0, closes: 0 };
        rig.wait(0);
        assert_eq!(rig.connects, 1);
        rig.connect();
        rig
    }

    fn connect(&mut self) {
        self.client.connected(self.now);
        self.take();
    }

    fn take(&mut self) {
        while let Some(output) = self.client.next_output() {
            match output {
                CacheOutput::Connect => self.connects += 1,
                CacheOutput::Send(bytes) => self.sent.push(bytes),
                CacheOutput::Close => self.closes += 1,
                CacheOutput::Table(table) => self.tables.push(table.iter().collect()),
            }
        }
    }

    fn hear(&mut self, units: &[Vec<u8>]) {
        self.client.received(self.now, &units.concat());
        self.take();
    }

    fn wait(&mut self, secs: u64) {
        let end = self.now + Duration::from_secs(secs);
        while let Some(at) = self.client.next_deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.client.tick(self.now);
            self.take();
        }
        self.now = end;
    }

    fn filled(version: u8) -> Self {
        let mut rig = Self::new();
        let all = [vrp("10.0.0.0/8", 24, 65001), vrp("2001:db8::/32", 48, 65002)];
        let mut units = vec![unit(version, 3, 7, &[])];
        units.extend(all.map(|vrp| prefix(version, true, vrp)));
        units.push(end(version, 7, 100, [60, 30, 600]));
        rig.hear(&units);
        assert_eq!(rig.tables, [all]);
        rig
    }
}

#[test]
fn a_report_says_how_old_the_payloads_are_and_what_went_wrong() {
    let address = "192.0.2.1:323".parse().unwrap();
    let mut rig = Rig::new();
    let state = |rig: &Rig| rig.client.report(address).at(rig.now);
    assert_eq!((state(&rig).state, state(&rig).is_usable()), (CachePhase::Asking, false));
    rig = Rig::filled(1);
    rig.wait(20);
    let filled = state(&rig);
    assert_eq!((filled.session, filled.serial), (Some(7), Some(100)));
    assert_eq!((filled.ipv4, filled.ipv6, filled.last_error), (1, 1, None));
    assert_eq!((filled.age_secs, filled.expires_secs), (Some(20), Some(580)));
    rig.client.lost(rig.now, "closed by the cache");
    let lost = state(&rig);
    assert_eq!((lost.state, lost.is_usable()), (CachePhase::Waiting, true));
    assert_eq!(lost.last_error.as_deref(), Some("closed by the cache"));
    rig.wait(600);
    let expired = state(&rig);
    assert_eq!((expired.is_usable(), expired.ipv4, expired.serial), (false, 0, None));
}

#[test]
fn everything_comes_first_then_what_changed() {
    let mut rig = Rig::filled(1);
    assert_eq!(rig.sent, [unit(1, 2, 0, &[])], "Reset Query");
    rig.wait(59);
    assert_eq!(rig.sent.len(), 1);
    rig.wait(1);
    assert_eq!(rig.sent[1], unit(1, 1, 7, &100u32.to_be_bytes()), "Serial Query when it is time to refresh");
    let (gone, new) = (vrp("10.0.0.0/8", 24, 65001), vrp("192.0.2.0/24", 24, 65003));
    rig.hear(&[
        unit(1, 3, 7, &[]),
        prefix(1, false, gone),
        prefix(1, true, new),
        end(1, 7, 101, [60, 30, 600]),
    ]);
    assert_eq!(rig.tables[1], [new, vrp("2001:db8::/32", 48, 65002)]);
    rig.hear(&[unit(1, 0, 7, &101u32.to_be_bytes())]);
    assert_eq!(rig.sent.len(), 2, "a notify of what is known");
    rig.hear(&[unit(1, 0, 7, &102u32.to_be_bytes())]);
    assert_eq!(rig.sent[2], unit(1, 1, 7, &101u32.to_be_bytes()));
    rig.hear(&[unit(1, 8, 0, &[])]);
    assert_eq!(rig.sent[3], unit(1, 2, 0, &[]), "Cache Reset leads to Reset Query");
    rig.hear(&[unit(1, 3, 7, &[]), end(1, 7, 103, [60, 30, 600])]);
    assert_eq!(rig.tables[2], []);
    assert_eq!(rig.closes, 0);
}

#[test]
fn bytes_may_come_one_at_a_time() {
    let mut rig = Rig::new();
    let all = [vrp("10.0.0.0/8", 8, 1)];
    let bytes = [unit(1, 3, 7, &[]), prefix(1, true, all[0]), end(1, 7, 1, [60, 30, 600])].concat();
    for byte in bytes {
        rig.hear(&[vec![byte]]);
    }
    assert_eq!(rig.tables, [all]);
}

#[test]
fn an_older_cache_is_spoken_to_in_its_version() {
    let mut rig = Rig::filled(0);
    rig.wait(3600);
    assert_eq!(rig.sent[1], unit(0, 1, 7, &100u32.to_be_bytes()), "refreshed after an hour, in version 0");
    let mut rig = Rig::new();
    let mut report = 8u32.to_be_bytes().to_vec();
    report.extend(unit(1, 2, 0, &[]));
    report.extend(0u32.to_be_bytes());
    rig.hear(&[unit(0, 10, 4, &report)]);
    assert_eq!(rig.closes, 1);
    rig.wait(0);
    assert_eq!(rig.connects, 2, "at once");
    rig.connect();
    assert_eq!(rig.sent[1], unit(0, 2, 0, &[]));
}

#[test]
fn payloads_outlive_the_connection_until_they_expire() {
    let mut rig = Rig::filled(1);
    rig.client.lost(rig.now, "reset");
    rig.take();
    rig.wait(1);
    assert_eq!(rig.connects, 2);
    rig.connect();
    assert_eq!(rig.sent[1], unit(1, 1, 7, &100u32.to_be_bytes()), "it goes on where it was");
    rig.wait(60);
    assert_eq!(rig.closes, 1, "no answer");
    for _ in 0..40 {
        rig.wait(30);
        rig.client.lost(rig.now, "refused");
    }
    rig.take();
    assert_eq!(rig.tables.len(), 2);
    assert_eq!(rig.tables[1], [], "after 600 s without a word");
    assert!(rig.connects <= 45, "no more often than the retry time: {}", rig.connects);
    rig.wait(30);
    rig.connect();
    assert_eq!(rig.sent.last().unwrap(), &unit(1, 2, 0, &[]));
}

#[test]
fn a_new_session_of_the_cache_means_everything_again() {
    let mut rig = Rig::filled(1);
    rig.wait(60);
    rig.hear(&[unit(1, 3, 8, &[])]);
    assert_eq!(rig.closes, 1);
    rig.wait(1);
    rig.connect();
    assert_eq!(rig.sent.last().unwrap(), &unit(1, 2, 0, &[]));
    assert_eq!(rig.tables.len(), 1, "until then the old payloads count");
}

#[test]
fn what_makes_no_sense_is_reported_and_never_half_taken() {
    let known = vrp("10.0.0.0/8", 24, 65001);
    let response = || unit(1, 3, 7, &[]);
    let last = || end(1, 7, 101, [60, 30, 600]);
    let short = unit(1, 4, 0, &[1, 8, 7, 0, 10, 0, 0, 0, 0, 0, 0, 1]);
    let long = [1, 0, 0, 7, 0xff, 0xff, 0xff, 0xff].to_vec();
    for (units, code) in [
        (vec![response(), prefix(1, true, known), last()], 7),
        (vec![response(), prefix(1, false, vrp("10.0.0.0/9", 9, 1)), last()], 6),
        (vec![response(), short], 0),
        (vec![response(), unit(1, 77, 0, &[])], 5),
        (vec![long], 0),
        (vec![response(), unit(0, 8, 0, &[])], 8),
        (vec![prefix(1, true, known)], 0),
    ] {
        let mut rig = Rig::filled(1);
        rig.wait(60);
        rig.hear(&units);
        let report = rig.sent.last().unwrap();
        assert_eq!((report[1], report[3]), (10, code), "{units:?}");
        assert_eq!((rig.closes, rig.tables.len()), (1, 1), "{units:?}");
        assert!(rig.client.last_error().is_some());
    }
}

#[test]
fn damaged_units_do_no_harm() {
    let good = [
        unit(1, 3, 7, &[]),
        prefix(1, true, vrp("10.0.0.0/8", 8, 1)),
        prefix(1, true, vrp("2001:db8::/32", 48, 1)),
        unit(1, 9, 0, &[0; 40]),
        end(1, 7, 1, [60, 30, 600]),
        unit(1, 10, 2, &[0; 8]),
    ]
    .concat();
    for at in 0..good.len() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut bytes = good.clone();
            bytes[at] = value;
            let mut rig = Rig::new();
            rig.hear(&[bytes]);
            assert!(rig.tables.iter().all(|table| table.len() <= 2));
        }
    }
    let empty: Vec<Vrp> = RpkiTable::default().iter().collect();
    assert!(empty.is_empty());
}
