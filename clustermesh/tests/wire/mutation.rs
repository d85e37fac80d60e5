//! Damaged values: no input may panic, hang, cost unbounded time or memory, or be accepted as something that we could
//! not write again.
//!
//! The kept records are damaged by a seeded generator. `TOMBOLO_MESH_MUTATIONS` says how often (default 500,000),
//! `TOMBOLO_SEED` from where. A value that ever broke something is added to `foreign/` or to the tests of its decoder.

use super::*;
use std::time::{Duration, Instant};
use tombolo_clustermesh::wire::slice::EndpointSlice;
use tombolo_clustermesh::wire::{ClusterConfig, json};

/// Most that the process may grow while all values are decoded and dropped, in KiB.
const GROWTH_MAX_KIB: u64 = 64 * 1024;
/// Longest that one value may take, with the checks of what was accepted.
const SLOW: Duration = Duration::from_millis(200);

/// A seeded generator (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound.max(1)).unwrap()).unwrap()
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[3]
    }
}

/// Pieces that mean something to one of the decoders.
const PIECES: &[&[u8]] = &[
    b"null",
    b"\"",
    b"\\",
    b"\\ud800",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"-1",
    b"1e9",
    b"4294967296",
    b"\xff",
    b"{\"a\":",
    b"\"ID\":1,",
    b"\"Mask\":\"AAAAAA==\",",
    b"::",
    b"/0",
    b";",
    b"k8s:",
    b"=",
    b"\x0a\x02",
    b"\x42\x00",
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
    b"\x28\xb5\x2f\xfd",
    b"\x50\x2a\x4d\x18\x00\x00\x00\x00",
];

/// Damages a value in one to five places, with pieces of another.
fn mutate(value: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    for _ in 0..=random.below(4) {
        let at = random.below(value.len());
        let end = at + random.below((value.len() - at).min(16));
        match random.below(8) {
            0 | 1 if at < value.len() => value[at] = random.byte(),
            2 if at < value.len() => {
                value[at] = value[at].wrapping_add([1, 0xff, 0x80, 0x20][random.below(4)])
            }
            3 => drop(value.drain(at..end)),
            4 => {
                let piece = PIECES[random.below(PIECES.len())];
                value.splice(at..at, piece.iter().copied());
            }
            5 => {
                let start = random.below(other.len());
                let piece: Vec<u8> = other.iter().skip(start).take(1 + random.below(40)).copied().collect();
                value.splice(at..at, piece);
            }
            // Something twice, as duplicate fields and endless lists are.
            6 => {
                let piece: Vec<u8> = value[at..end].to_vec();
                value.splice(at..at, piece.repeat(1 + random.below(4)));
            }
            _ => value.truncate(at.max(1)),
        }
    }
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[derive(Default)]
struct Tally {
    accepted: u64,
    refused: u64,
}

#[test]
fn no_damage_panics_hangs_or_grows() {
    let corpus: Vec<Kept> = kept("golden").into_iter().chain(kept("foreign")).collect();
    let rounds = setting("TOMBOLO_MESH_MUTATIONS", 500_000);
    let seed = setting("TOMBOLO_SEED", 0x5eed_cafe_f00d_d00d);
    println!("seed {seed}, {rounds} values from {} kept ones", corpus.len());
    let mut random = Random(seed);
    let mut tallies: Vec<Tally> = corpus.iter().map(|_| Tally::default()).collect();
    let (mut slowest, mut before) = (Duration::ZERO, 0);
    for round in 0..rounds {
        let at = random.below(corpus.len());
        let (kept, other) = (&corpus[at], &corpus[random.below(corpus.len())]);
        // Damage of a compressed value rarely gets past the checksum: half of the time it is done within.
        let within = !kept.message.is_empty() && round % 2 == 0;
        let mut value = if within { kept.message.clone() } else { kept.value.clone() };
        mutate(&mut value, if within { &other.message } else { &other.value }, &mut random);
        let start = Instant::now();
        let accepted = hear(kept, &value, within);
        let mut elapsed = start.elapsed();
        // The machine may have looked elsewhere: what is slow must be slow again.
        for _ in 0..5 {
            if elapsed < SLOW {
                break;
            }
            let start = Instant::now();
            hear(kept, &value, within);
            elapsed = elapsed.min(start.elapsed());
        }
        slowest = slowest.max(elapsed);
        let tally = &mut tallies[at];
        *if accepted { &mut tally.accepted } else { &mut tally.refused } += 1;
        if round == rounds / 10 {
            before = resident_kib();
        }
    }
    for (kept, Tally { accepted, refused }) in corpus.iter().zip(&tallies) {
        println!("{:<30} {accepted} accepted, {refused} refused", kept.file);
        // Damage that is always noticed, or never, has missed the decoder.
        assert!(accepted + refused < 1000 || *accepted.min(refused) > 10, "{}", kept.file);
    }
    println!("slowest {slowest:?}");
    assert!(slowest < SLOW, "one value took {slowest:?}");
    let grown = resident_kib().saturating_sub(before);
    assert!(grown < GROWTH_MAX_KIB, "grew by {grown} KiB");
}

/// Decodes one value. What was accepted can be written again, and reads back the same.
fn hear(kept: &Kept, value: &[u8], within: bool) -> bool {
    let Some(kind) = kept.kind else {
        let Ok(config) = ClusterConfig::decode(value) else { return false };
        assert_eq!(ClusterConfig::decode(&config.encode().unwrap()).unwrap(), config);
        return true;
    };
    if within {
        let Ok(slice) = EndpointSlice::from_message(&c1(), &kept.name, value) else { return false };
        let again = EndpointSlice::from_message(&c1(), &kept.name, &slice.to_message()).unwrap();
        assert_eq!(again, slice);
        return true;
    }
    if matches!(kind, Kind::Nodes | Kind::Services) {
        check_json(value);
    }
    match decode(kind, &kept.name, value) {
        Ok(Some(record)) => {
            assert_eq!(record.key_name(), kept.name);
            assert_eq!(decode(kind, &kept.name, &record.encode().unwrap()).unwrap(), Some(record));
            true
        }
        Ok(None) => true,
        Err(reject) => {
            assert!(reject.detail.chars().count() <= 200);
            false
        }
    }
}

/// Whatever a strict reader takes, ours takes as well.
fn check_json(value: &[u8]) {
    let strict = serde_json::from_slice::<serde_json::Value>(value).is_ok();
    assert!(!strict || json::parse(value).is_ok(), "{}", value.escape_ascii());
}

/// Damaged key names with sound values.
#[test]
fn no_name_panics() {
    let corpus = kept("golden");
    let mut random = Random(setting("TOMBOLO_SEED", 0x5eed_cafe_f00d_d00d));
    for _ in 0..20_000 {
        let kept = &corpus[random.below(corpus.len())];
        let Some(kind) = kept.kind else { continue };
        let mut name = kept.name.clone().into_bytes();
        mutate(&mut name, corpus[random.below(corpus.len())].name.as_bytes(), &mut random);
        let name = String::from_utf8_lossy(&name);
        if let Ok(Some(record)) = decode(kind, &name, &kept.value) {
            assert_eq!(record.key_name(), name);
        }
    }
}
