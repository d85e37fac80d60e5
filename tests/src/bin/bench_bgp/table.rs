//! What injectors send: whole tables as the bytes of their UPDATEs.

use std::net::Ipv4Addr;

/// Prefixes in one message that withdraws.
const WITHDRAWN_PER_MESSAGE: usize = 800;

/// A prefix: address and length.
pub(crate) type Prefix = (u32, u8);

/// Who sends a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source {
    pub(crate) asn: u32,
    pub(crate) next_hop: Ipv4Addr,
    /// Its paths are one AS longer than others': any other is preferred.
    pub(crate) farther: bool,
}

/// A table of one injector.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) stream: Vec<u8>,
    pub(crate) updates: usize,
    pub(crate) prefixes: Vec<Prefix>,
}

impl Table {
    fn update(&mut self, attributes: &[u8], prefixes: &[Prefix]) {
        self.updates += 1;
        self.prefixes.extend(prefixes);
        message(&mut self.stream, |out| {
            out.extend([0, 0]);
            sized(out, |out| out.extend(attributes));
            prefixes.iter().for_each(|prefix| nlri(*prefix, out));
        });
    }

    /// The messages that withdraw all of it.
    pub(crate) fn withdrawal(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for prefixes in self.prefixes.chunks(WITHDRAWN_PER_MESSAGE) {
            message(&mut out, |out| {
                sized(out, |out| prefixes.iter().for_each(|prefix| nlri(*prefix, out)));
                out.extend([0, 0]);
            });
        }
        out
    }
}

/// One UPDATE with one prefix; `number` chooses its attributes.
pub(crate) fn single(source: Source, number: u32, prefix: Prefix) -> Vec<u8> {
    let mut table = Table::default();
    table.update(&attributes(source, number), &[prefix]);
    table.stream
}

/// Prefixes of 24 bits one after another from `first` on, `per` of them in each UPDATE, a new set of attributes in each.
pub(crate) fn runs(source: Source, first: u32, count: usize, per: usize) -> Table {
    let mut table = Table::default();
    let all: Vec<Prefix> = (0u32..).take(count).map(|at| (first + (at << 8), 24)).collect();
    for (number, prefixes) in (0u32..).zip(all.chunks(per)) {
        table.update(&attributes(source, number), prefixes);
    }
    table
}

/// Prefixes of each length, of 1000. Most of the table is /24 and the mean is 22.9 bits, as in the table of 5 November 2025
/// (bgp.potaroo.net/as2.0/bgp-active.html: 1,036,829 entries, mean length 22.93).
const LENGTHS: [(u8, u64); 13] = [
    (24, 623),
    (23, 103),
    (22, 113),
    (21, 51),
    (20, 44),
    (19, 25),
    (18, 14),
    (17, 8),
    (16, 14),
    (15, 2),
    (14, 1),
    (13, 1),
    (12, 1),
];
/// Into prefixes shorter than this more specific ones follow.
const COVERING: u8 = 20;
/// A table in the shape of today's internet. Lengths as above; how many prefixes share a set of attributes (six in the mean, few with very many), how
/// long paths are (four to five in the mean) and how many communities they carry are assumptions, not taken from a source. The origins come in
/// no order, the prefixes of one origin together.
pub(crate) fn internet(source: Source, count: usize) -> Table {
    let mut random = Random(7);
    let mut sets: Vec<Vec<Prefix>> = Vec::new();
    let (mut next, mut left) = (0x0100_0000u32, count);
    while left > 0 {
        // One in fifty has up to a hundred prefixes, the others up to seven.
        let most = if random.below(50) == 0 { 100 } else { 7 };
        let size = usize::try_from(1 + random.below(most)).unwrap_or(1).min(left);
        left -= size;
        sets.push((0..size).map(|_| allocate(&mut random, &mut next)).collect());
    }
    for at in (1..sets.len()).rev() {
        let other = usize::try_from(random.below(u64::try_from(at).unwrap_or(1))).unwrap_or_default();
        sets.swap(at, other);
    }
    let mut table = Table::default();
    for prefixes in sets {
        table.update(&internet_attributes(source, &mut random), &prefixes);
    }
    table
}

fn allocate(random: &mut Random, next: &mut u32) -> Prefix {
    let mut at = random.below(1000);
    let mut len = 24;
    for (of, share) in LENGTHS {
        len = of;
        if at < share {
            break;
        }
        at -= share;
    }
    let size = 1u32 << (32 - u32::from(len));
    let mut address = next.div_ceil(size) * size;
    if address >> 24 == 127 {
        // Speakers take no loopback.
        address = 0x8000_0000;
    }
    *next = address + if len < COVERING { size / 4 } else { size };
    (address, len)
}

fn internet_attributes(source: Source, random: &mut Random) -> Vec<u8> {
    let asn = |random: &mut Random| {
        let wide = random.below(3) == 0;
        u32::try_from(if wide { 131_072 + random.below(80_000) } else { 1000 + random.below(60_000) })
            .unwrap_or(1)
    };
    let mut path = vec![source.asn];
    let hops = 2 + random.below(4) + random.below(2) * random.below(3);
    path.extend((0..hops).map(|_| asn(random)));
    let communities = random.below(10);
    let communities: Vec<u32> = (0..communities).map(|_| asn(random) << 16 | asn(random) & 0x3ff).collect();
    let large = if random.below(7) == 0 { 1 + random.below(3) } else { 0 };
    let large: Vec<u32> = (0..large * 3).map(|_| asn(random)).collect();
    encode(source, &path, &communities, &large)
}

/// Distinct for each number below some hundred thousands; a path of four ASes and three communities.
fn attributes(source: Source, number: u32) -> Vec<u8> {
    let mut path = vec![source.asn, 3000 + number % 5000, 20_000 + number % 7919, 40_000 + number % 9973];
    if source.farther {
        path.push(64_000);
    }
    let community = |asn: u32, value: u32| asn << 16 | value;
    let communities =
        [community(65_000, number % 1000), community(65_000, number % 77), community(65_001, number % 13)];
    encode(source, &path, &communities, &[])
}

fn encode(source: Source, path: &[u32], communities: &[u32], large: &[u32]) -> Vec<u8> {
    let mut out = vec![0x40, 1, 1, 0];
    out.extend([0x40, 2, len8(2 + path.len() * 4), 2, len8(path.len())]);
    out.extend(path.iter().flat_map(|asn| asn.to_be_bytes()));
    out.extend([0x40, 3, 4]);
    out.extend(source.next_hop.octets());
    for (code, numbers) in [(8, communities), (32, large)] {
        if !numbers.is_empty() {
            out.extend([0xc0, code, len8(numbers.len() * 4)]);
            out.extend(numbers.iter().flat_map(|number| number.to_be_bytes()));
        }
    }
    out
}

fn nlri((address, len): Prefix, out: &mut Vec<u8>) {
    out.push(len);
    out.extend(address.to_be_bytes().iter().take(usize::from(len.div_ceil(8))));
}

fn len8(len: usize) -> u8 {
    u8::try_from(len).unwrap_or(u8::MAX)
}

/// Appends what `write` writes, with its length in two octets before it.
fn sized(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend([0, 0]);
    write(out);
    let len = u16::try_from(out.len() - at - 2).unwrap_or(u16::MAX);
    if let Some(field) = out.get_mut(at..at + 2) {
        field.copy_from_slice(&len.to_be_bytes());
    }
}

/// Appends an UPDATE.
fn message(out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend([0xff; 16]);
    out.extend([0, 0, 2]);
    body(out);
    let len = u16::try_from(out.len() - start).unwrap_or(u16::MAX);
    if let Some(field) = out.get_mut(start + 16..start + 18) {
        field.copy_from_slice(&len.to_be_bytes());
    }
}

/// The same numbers in every run (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % bound.max(1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use bytes::BytesMut;
    use tombolo_bgp::Family;
    use tombolo_bgp::wire::{Frame, Update, UpdateContext};

    use super::*;

    fn read(stream: &[u8]) -> Vec<Update> {
        let mut buffer = BytesMut::from(stream);
        let context = UpdateContext {
            four_octet_as: true,
            ebgp: true,
            families: vec![Family::Ipv4Unicast],
            ..UpdateContext::default()
        };
        let frames = std::iter::from_fn(|| Frame::next(&mut buffer).unwrap());
        frames.map(|frame| Update::decode(&frame.body, &context).unwrap()).collect()
    }

    const SOURCE: Source = Source { asn: 65_002, next_hop: Ipv4Addr::new(10, 0, 0, 2), farther: false };

    #[test]
    fn tables_are_what_they_say() {
        for table in [runs(SOURCE, 0x0100_0000, 1005, 10), internet(SOURCE, 20_000)] {
            let updates = read(&table.stream);
            assert_eq!(updates.len(), table.updates);
            assert!(updates.iter().all(|update| update.faults.is_empty()));
            let all: BTreeSet<_> =
                updates.iter().flat_map(|update| &update.reach).flat_map(|reach| &reach.prefixes).collect();
            assert_eq!(all.len(), table.prefixes.len());
            let gone = read(&table.withdrawal());
            assert_eq!(gone.iter().map(|update| update.withdrawn.len()).sum::<usize>(), table.prefixes.len());
        }
    }

    #[test]
    fn the_internet_has_its_mean_length() {
        let table = internet(SOURCE, 800_000);
        let all: BTreeSet<&Prefix> = table.prefixes.iter().collect();
        assert_eq!(all.len(), 800_000);
        let taken = |address: u32| address < 0xe000_0000 && address >> 24 != 127;
        assert!(all.iter().all(|(address, _)| taken(*address)), "multicast and loopback are refused");
        let bits: usize = table.prefixes.iter().map(|(_, len)| usize::from(*len)).sum();
        assert!((2285..=2298).contains(&(bits / 8000)), "{bits}");
        assert!((45..60).contains(&(table.prefixes.len() * 10 / table.updates)), "{}", table.updates);
    }
}
