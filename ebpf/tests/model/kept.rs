//! What the programs keep in their pinned maps, in the model's terms.

use aya::maps::{HashMap, Map, MapData};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;
use tombolo_model::ct::{Conntrack, Entry, Key, Kind, Signs};
use tombolo_model::nat::{Mapping, Nat, Ways};
use tombolo_model::{Datagram, Fragments, Socket, Tuple};

/// How far the programs' clock may be ahead of the model's, which stands still while a stream runs. Lives and waits are
/// multiples of five seconds.
pub const TOLERANCE_NS: u64 = 4_000_000_000;

type Raw<const VALUE: usize> = HashMap<MapData, [u8; 40], [u8; VALUE]>;

/// The maps of flows: `struct tb_tuple` to `struct tb_ct` and `struct tb_nat` (`ebpf/bpf/abi.h`).
pub struct Kept {
    half: Raw<112>,
    established: Raw<112>,
    nat_half: Raw<48>,
    nat: Raw<48>,
    /// `struct tb_frag_key` to `struct tb_frag`.
    fragments: Raw<4>,
}

/// What they hold.
pub struct Tables {
    flows: Conntrack,
    nat: Nat,
    fragments: Fragments,
}

fn open<const VALUE: usize>(folder: &Path, name: &str, kind: fn(MapData) -> Map) -> Raw<VALUE> {
    let data = MapData::from_pin(folder.join(name)).unwrap();
    HashMap::try_from(kind(data)).unwrap()
}

fn take<const VALUE: usize>(map: &mut Raw<VALUE>) -> Vec<([u8; 40], [u8; VALUE])> {
    let rows: Vec<_> = map.iter().map(Result::unwrap).collect();
    for (key, _) in &rows {
        map.remove(key).unwrap();
    }
    rows
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn socket(bytes: &[u8], address: usize, port: usize) -> Socket {
    let v6 = Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[address..address + 16]).unwrap());
    let ip = v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4);
    (ip, u16::from_be(u16_at(bytes, port)))
}

fn tuple(key: &[u8; 40]) -> Tuple {
    Tuple { source: socket(key, 0, 32), destination: socket(key, 16, 34), protocol: key[36] }
}

fn signs(flags: u16) -> Signs {
    let has = |bit: u16| flags & 1 << bit != 0;
    Signs { replied: has(0), closing_opener: has(1), closing_answerer: has(2), confirmed: has(4) }
}

fn entry((key, value): &([u8; 40], [u8; 112])) -> (Key, Entry) {
    let kind = match key[37] {
        0 => Kind::Egress,
        1 => Kind::Ingress,
        2 => Kind::Service,
        5 => Kind::HostIn,
        6 => Kind::HostOut,
        other => panic!("a flow of kind {other}"),
    };
    let flags = u16_at(value, 90);
    let entry = Entry {
        expires_ns: u64_at(value, 0),
        packets: [u64_at(value, 16), u64_at(value, 24)],
        bytes: [u64_at(value, 32), u64_at(value, 40)],
        identity: u32_at(value, 64),
        rev_nat: u32_at(value, 68),
        signs: signs(flags),
        loopback: flags & 8 != 0,
        one_sided: flags & 1 << 6 != 0,
        named: flags & 1 << 7 != 0,
        by_stack: flags & 1 << 11 != 0,
        backend: (kind == Kind::Service).then(|| (u32_at(value, 80), socket(value, 96, 94))),
    };
    (Key { kind, tuple: tuple(key) }, entry)
}

fn ways(rows: Vec<([u8; 40], [u8; 48])>) -> Ways {
    let mut ways = Ways::default();
    for (key, value) in rows {
        let other = socket(&value, 8, 24);
        if key[37] == 3 {
            ways.out.insert(tuple(&key), other);
            continue;
        }
        let mapping = Mapping {
            expires_ns: u64_at(&value, 32),
            source: other,
            rev_nat: u32_at(&value, 28),
            signs: signs(u16_at(&value, 26)),
        };
        ways.back.insert(tuple(&key), mapping);
    }
    ways
}

/// The identification stands in network order, of IPv4 in the lower half.
fn fragment((key, value): &([u8; 40], [u8; 4])) -> (Datagram, (u16, u16)) {
    let (source, destination) = (socket(key, 0, 32).0, socket(key, 16, 32).0);
    let id = if source.is_ipv4() {
        u32::from(u16::from_be(u16_at(key, 32)))
    } else {
        u32::from_be(u32_at(key, 32))
    };
    let ports = (u16::from_be(u16_at(value, 0)), u16::from_be(u16_at(value, 2)));
    ((source, destination, id, key[36]), ports)
}

impl Kept {
    /// `folder` is where the maps of this schema are pinned.
    pub fn open(folder: &Path) -> Self {
        Self {
            half: open(folder, "tb_ct_half", Map::LruHashMap),
            established: open(folder, "tb_ct", Map::HashMap),
            nat_half: open(folder, "tb_nat_half", Map::LruHashMap),
            nat: open(folder, "tb_nat", Map::HashMap),
            fragments: open(folder, "tb_frags", Map::LruHashMap),
        }
    }

    /// Empties the maps.
    pub fn take(&mut self) -> Tables {
        let rows = |map| take(map).iter().map(entry).collect();
        let flows = Conntrack { half: rows(&mut self.half), established: rows(&mut self.established) };
        let half = ways(take(&mut self.nat_half));
        let nat = Nat { half, answered: ways(take(&mut self.nat)), ..Nat::default() };
        let fragments = take(&mut self.fragments).iter().map(fragment).collect();
        Tables { flows, nat, fragments }
    }
}

/// What differs between two tables, a line each.
fn differences<K: Ord + Debug, V: PartialEq + Debug>(
    table: &str,
    programs: &BTreeMap<K, V>,
    model: &BTreeMap<K, V>,
) -> Vec<String> {
    let keys: std::collections::BTreeSet<&K> = programs.keys().chain(model.keys()).collect();
    let differing = keys.into_iter().filter(|key| programs.get(key) != model.get(key));
    let line = |key: &K| {
        let show = |row: Option<&V>| row.map_or("none".to_owned(), |row| format!("{row:?}"));
        format!(
            "{table}: {key:?}\n  programs: {}\n  model:    {}",
            show(programs.get(key)),
            show(model.get(key))
        )
    };
    differing.map(line).collect()
}

/// An end that is within the tolerance is the model's.
fn settle(programs: &mut u64, model: u64) {
    if programs.abs_diff(model) < TOLERANCE_NS {
        *programs = model;
    }
}

/// How what the programs kept differs from what the model did.
pub fn compare(kept: Tables, model: &tombolo_model::Node) -> Vec<String> {
    let Tables { mut flows, mut nat, fragments } = kept;
    let Conntrack { half, established } = &model.conntrack;
    for (programs, model) in [(&mut flows.half, half), (&mut flows.established, established)] {
        for (key, entry) in programs.iter_mut() {
            if let Some(model) = model.get(key) {
                settle(&mut entry.expires_ns, model.expires_ns);
            }
        }
    }
    let places = [
        ("half-open SNAT", &mut nat.half, &model.nat.half),
        ("answered SNAT", &mut nat.answered, &model.nat.answered),
    ];
    let mut all = differences("half-open flows", &flows.half, half);
    all.extend(differences("established flows", &flows.established, established));
    for (name, programs, model) in places {
        for (key, mapping) in &mut programs.back {
            if let Some(model) = model.back.get(key) {
                settle(&mut mapping.expires_ns, model.expires_ns);
            }
        }
        all.extend(differences(&format!("{name}, way out"), &programs.out, &model.out));
        all.extend(differences(&format!("{name}, way back"), &programs.back, &model.back));
    }
    all.extend(differences("fragments", &fragments, &model.fragments));
    all
}
