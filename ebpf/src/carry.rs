//! Rows of maps that an earlier run made in another shape: another size, another kind, or structs of another schema.
//!
//! The kernel keeps a map's BTF with it, so the structs of an earlier (or later) program can be read without knowing that
//! program: fields are copied by name. A field that one side does not know is left out, or zero. Hence the rule for
//! `bpf/abi.h`: a field keeps its name as long as it keeps its meaning, and a new meaning gets a new name.
//!
//! Nothing is lost if the agent dies on the way: a map that gives way stays pinned until all programs have left it.

use crate::datapath::{MapSizes, OBJECT};
use crate::error::DatapathError;
use crate::layout::{self, Fields, Structs};
use crate::sys::{self, MapShape};
use aya::maps::MapData;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// What a map's rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rows {
    /// Written by the agent, and what the programs go by until it has written all anew.
    Plan,
    /// Written by the programs for each flow.
    Flows,
}

/// A map whose rows are carried, and the structs of its keys and values (none: a number or an address).
struct Carried {
    name: &'static str,
    rows: Rows,
    key: Option<&'static str>,
    value: Option<&'static str>,
}

const fn plan(name: &'static str, key: Option<&'static str>, value: &'static str) -> Carried {
    Carried { name, rows: Rows::Plan, key, value: Some(value) }
}

const fn flows(name: &'static str, value: &'static str) -> Carried {
    Carried { name, rows: Rows::Flows, key: Some("tb_tuple"), value: Some(value) }
}

/// All but counters, events and fragments, which begin anew. What a row refers to comes before it.
const CARRIED: &[Carried] = &[
    plan("tb_config", None, "tb_config"),
    plan("tb_hosts", None, "tb_prefix"),
    plan("tb_prefixes", Some("tb_lpm_key"), "tb_prefix"),
    plan("tb_nodes", None, "tb_node"),
    plan("tb_backends", None, "tb_backend"),
    Carried { name: "tb_maglev", rows: Rows::Plan, key: None, value: None },
    plan("tb_rev_nat", None, "tb_rev_nat"),
    Carried { name: "tb_ranges", rows: Rows::Plan, key: Some("tb_range_key"), value: None },
    Carried { name: "tb_members", rows: Rows::Plan, key: Some("tb_member_key"), value: None },
    Carried { name: "tb_fronts", rows: Rows::Plan, key: Some("tb_front_key"), value: None },
    plan("tb_services", Some("tb_service_key"), "tb_service"),
    plan("tb_egw", Some("tb_egw_key"), "tb_egw"),
    Carried { name: "tb_unmasked", rows: Rows::Plan, key: Some("tb_lpm_key"), value: None },
    plan("tb_rules", Some("tb_rule_key"), "tb_rule"),
    plan("tb_policies", None, "tb_policy"),
    plan("tb_rates", Some("tb_rate_key"), "tb_rate"),
    plan("tb_ifaces", None, "tb_iface"),
    plan("tb_endpoints", None, "tb_endpoint"),
    Carried {
        name: "tb_affinity",
        rows: Rows::Flows,
        key: Some("tb_affinity_key"),
        value: Some("tb_affinity"),
    },
    Carried { name: "tb_sock_rev", rows: Rows::Flows, key: Some("tb_sock_key"), value: Some("tb_sock") },
    flows("tb_ct_half", "tb_ct"),
    flows("tb_ct", "tb_ct"),
    flows("tb_nat_half", "tb_nat"),
    flows("tb_nat", "tb_nat"),
];

/// How the bytes of one struct become those of another: (from, to, length) of each field that both have.
#[derive(Debug, PartialEq, Eq)]
struct Way {
    length: usize,
    moves: Vec<(usize, usize, usize)>,
}

impl Way {
    fn same(length: usize) -> Self {
        Self { length, moves: vec![(0, 0, length)] }
    }

    /// Integers are little endian on every machine that this runs on, so a field that grew keeps its value.
    fn between(old: &Fields, new: &Fields) -> Self {
        let moves = new.members.iter().filter_map(|(name, to, room)| {
            let (_, from, length) = old.members.iter().find(|(known, ..)| known == name)?;
            Some((*from, *to, *length.min(room)))
        });
        Self { length: new.size, moves: moves.collect() }
    }

    fn go(&self, old: &[u8]) -> Vec<u8> {
        let mut new = vec![0; self.length];
        for (from, to, length) in &self.moves {
            let field = old.get(*from..from + length);
            if let (Some(field), Some(place)) = (field, new.get_mut(*to..to + length)) {
                place.copy_from_slice(field);
            }
        }
        new
    }
}

/// A map of an earlier run, and how its rows are read.
struct Source {
    name: &'static str,
    rows: Rows,
    map: MapData,
    key: Way,
    value: Way,
}

impl Source {
    fn new(carried: &Carried, map: MapData, wanted: Wanted, new: &Structs) -> io::Result<Self> {
        let shape = sys::map_shape(map.fd().as_fd())?;
        let old = match shape.btf_id {
            0 => None,
            id => layout::structs_of_btf(&sys::btf(id)?),
        };
        let way = |of: Option<&str>, (from, to): (u32, u32)| {
            let known = of.and_then(|of| Some((old.as_ref()?.get(of)?, new.get(of)?)));
            match known {
                Some((old, new)) => Ok(Way::between(old, new)),
                None if from == to => Ok(Way::same(usize::try_from(to).map_err(io::Error::other)?)),
                None => {
                    Err(io::Error::other(format!("{from} bytes of unknown layout, where {to} are wanted")))
                }
            }
        };
        Ok(Self {
            name: carried.name,
            rows: carried.rows,
            key: way(carried.key, (shape.key_size, wanted.key_size))?,
            value: way(carried.value, (shape.value_size, wanted.value_size))?,
            map,
        })
    }

    /// What does not fit into a smaller map is left out; flows are carried as far as it goes.
    ///
    /// # Errors
    /// Rows that the programs go by could not be carried for another reason.
    fn carry(&self, directory: &Path) -> Result<(), DatapathError> {
        let (mut read, mut written) = (0_u64, 0_u64);
        let Err(error) = self.write(directory, &mut read, &mut written) else {
            tracing::info!(map = self.name, read, written, "rows carried over");
            return Ok(());
        };
        tracing::warn!(map = self.name, %error, read, written, "not all rows carried over");
        if self.rows == Rows::Flows || error.raw_os_error() == Some(libc::E2BIG) {
            return Ok(());
        }
        let operation = format!("carry over {written} of the rows, of {read} read,");
        Err(DatapathError::Map { operation, map: self.name, source: error })
    }

    fn write(&self, directory: &Path, read: &mut u64, written: &mut u64) -> io::Result<()> {
        let new = MapData::from_pin(directory.join(self.name)).map_err(io::Error::other)?;
        let new = new.fd().as_fd();
        // The elements of an array are all there, and zero is what nobody has written.
        let array = sys::map_shape(new)?.kind == sys::ARRAY;
        sys::each_entry(self.map.fd().as_fd(), |key, value| {
            if array && value.iter().all(|byte| *byte == 0) {
                return Ok(());
            }
            *read += 1;
            match sys::write_bytes(new, (&self.key.go(key), &self.value.go(value)), !array) {
                Ok(()) => *written += 1,
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                Err(error) => return Err(error),
            }
            Ok(())
        })
    }
}

/// The shape that a map is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

impl Wanted {
    const fn is(self, found: &MapShape) -> bool {
        self.kind == found.kind
            && self.key_size == found.key_size
            && self.value_size == found.value_size
            && self.max_entries == found.max_entries
    }
}

/// The object's pinned maps, in the sizes asked for.
fn wanted(sizes: &MapSizes) -> Result<BTreeMap<String, Wanted>, DatapathError> {
    let object = aya_obj::Object::parse(OBJECT)
        .map_err(|error| DatapathError::Load(Box::new(aya::EbpfError::ParseError(error))))?;
    let sizes: BTreeMap<&str, u32> = sizes.list().into_iter().collect();
    let pinned =
        object.maps.into_iter().filter(|(_, map)| map.pinning() == aya_obj::maps::PinningType::ByName);
    let shaped = pinned.map(|(name, map)| {
        let wanted = Wanted {
            kind: map.map_type(),
            key_size: map.key_size(),
            value_size: map.value_size(),
            max_entries: sizes.get(name.as_str()).copied().unwrap_or(map.max_entries()),
        };
        (name, wanted)
    });
    Ok(shaped.collect())
}

/// What is to be carried into the maps of a directory, and what can go afterwards.
pub(crate) struct Carrying {
    directory: PathBuf,
    sources: Vec<Source>,
    kept: Vec<PathBuf>,
    /// Directories of other schemas, with their maps and links.
    others: Vec<PathBuf>,
}

impl Carrying {
    /// Looks for maps of another shape, and makes way for the new ones. `None`: every map is as it should be.
    ///
    /// # Errors
    /// The pins cannot be read or renamed.
    pub(crate) fn prepare(directory: &Path, sizes: &MapSizes) -> Result<Option<Self>, DatapathError> {
        let wanted = wanted(sizes)?;
        let mut kept = Vec::new();
        for (name, wanted) in &wanted {
            let (path, old) = (directory.join(name), directory.join(kept_name(name)));
            if let Some(found) = shape_at(&path).filter(|found| !wanted.is(found)) {
                tracing::info!(map = name, ?found, ?wanted, "the map has another shape, making it anew");
                // Where one gave way before, this one is its copy, and perhaps an unfinished one.
                if old.exists() { remove(&path)? } else { rename(&path, &old)? }
            }
            if shape_at(&old).is_some() {
                kept.push(old);
            }
        }
        let others = other_schemas(directory)?;
        if kept.is_empty() && others.is_empty() {
            return Ok(None);
        }
        let mut sources = Vec::new();
        let new = layout::structs()?;
        for carried in CARRIED {
            let wanted = *wanted.get(carried.name).ok_or(DatapathError::Missing(carried.name))?;
            // Those come first whose programs are at work: another schema's, as long as it has links.
            let own = (false, directory.join(kept_name(carried.name)));
            let others = others.iter().map(|(at_work, other)| (*at_work, other.join(carried.name)));
            let mut places: Vec<(bool, PathBuf)> = std::iter::once(own).chain(others).collect();
            places.sort_by_key(|(at_work, _)| !at_work);
            let mut places = places.into_iter().map(|(_, path)| path);
            let Some(map) = places.find_map(|path| MapData::from_pin(path).ok()) else { continue };
            match Source::new(carried, map, wanted, &new) {
                Ok(source) => sources.push(source),
                Err(error) if carried.rows == Rows::Flows => {
                    tracing::warn!(map = carried.name, %error, "flows not carried over");
                }
                Err(source) => {
                    let operation = "carry over the rows".to_owned();
                    return Err(DatapathError::Map { operation, map: carried.name, source });
                }
            }
        }
        let others = others.into_iter().map(|(_, other)| other).collect();
        Ok(Some(Self { directory: directory.to_owned(), sources, kept, others }))
    }

    /// Writes all rows that the new maps do not have.
    ///
    /// # Errors
    /// Rows that the programs go by are missing: no hook may go to them.
    pub(crate) fn all_rows(&self) -> Result<(), DatapathError> {
        self.sources.iter().try_for_each(|source| source.carry(&self.directory))
    }

    /// Writes the flows that the old programs have begun since.
    ///
    /// # Errors
    /// None of today's kinds.
    pub(crate) fn late_flows(&self) -> Result<(), DatapathError> {
        let mut flows = self.sources.iter().filter(|source| source.rows == Rows::Flows);
        flows.try_for_each(|source| source.carry(&self.directory))
    }

    /// Where programs of other schemas may be linked.
    pub(crate) fn other_links(&self) -> Vec<PathBuf> {
        self.others.iter().map(|other| other.join(crate::datapath::LINKS)).collect()
    }

    /// Lets go of what nobody needs any more: maps that gave way, and other schemas with all that is theirs.
    ///
    /// # Errors
    /// A pin could not be removed.
    pub(crate) fn finish(self) -> Result<(), DatapathError> {
        drop(self.sources);
        for path in self.kept {
            remove(&path)?;
        }
        for other in self.others {
            tracing::info!(schema = %other.display(), "no program of the other schema is left, removing its maps");
            fs::remove_dir_all(&other).map_err(|source| failed("remove", &other, source))?;
        }
        Ok(())
    }
}

/// A map that gave way keeps its pin under this name until nothing needs it. (bpffs takes no dots.)
fn kept_name(name: &str) -> String {
    format!("{name}-old")
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> DatapathError {
    DatapathError::BpfFs { operation, path: path.to_owned(), source }
}

fn remove(path: &Path) -> Result<(), DatapathError> {
    fs::remove_file(path).map_err(|source| failed("unpin", path, source))
}

fn rename(from: &Path, to: &Path) -> Result<(), DatapathError> {
    fs::rename(from, to).map_err(|source| failed("rename", from, source))
}

/// The pin directories of other schemas, each with whether it has links, so that its programs are at work: those first,
/// and newer before older.
fn other_schemas(directory: &Path) -> Result<Vec<(bool, PathBuf)>, DatapathError> {
    let Some(root) = directory.parent() else { return Ok(Vec::new()) };
    let list = || fs::read_dir(root)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>();
    let mut found = Vec::new();
    for path in list().map_err(|source| failed("list", root, source))? {
        let number = path.file_name().and_then(|name| name.to_str()?.strip_prefix('v')?.parse::<u32>().ok());
        if let Some(number) = number.filter(|_| path != directory) {
            let links = fs::read_dir(path.join(crate::datapath::LINKS));
            let at_work = links.is_ok_and(|mut links| links.next().is_some());
            found.push((at_work, number, path));
        }
    }
    found.sort_by(|a, b| b.cmp(a));
    Ok(found.into_iter().map(|(at_work, _, path)| (at_work, path)).collect())
}

fn shape_at(path: &Path) -> Option<MapShape> {
    let map = MapData::from_pin(path).ok()?;
    sys::map_shape(map.fd().as_fd()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(size: usize, members: &[(&str, usize, usize)]) -> Fields {
        let members = members.iter().map(|(name, at, length)| ((*name).to_owned(), *at, *length)).collect();
        Fields { size, members }
    }

    #[test]
    fn fields_go_by_name_both_ways() {
        let old = fields(8, &[("flags", 0, 2), ("gone", 2, 2), ("count", 4, 4)]);
        let new = fields(16, &[("count", 0, 8), ("added", 8, 4), ("flags", 12, 2), ("pad", 14, 2)]);
        let row = [0x34, 0x12, 0xff, 0xff, 1, 2, 3, 4];
        let up = Way::between(&old, &new).go(&row);
        assert_eq!(up, [1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0x34, 0x12, 0, 0]);
        assert_eq!(Way::between(&new, &old).go(&up), [0x34, 0x12, 0, 0, 1, 2, 3, 4]);
    }

    /// Entries from before there were tiers, priorities and ports by prefix say what they said.
    #[test]
    fn policies_of_the_first_layout_keep_their_meaning() {
        let structs = layout::structs().unwrap();
        let way = |name: &str, size, members: &[(&str, usize, usize)]| {
            Way::between(&fields(size, members), &structs[name])
        };
        let key = [("policy_id", 0, 4), ("identity", 4, 4), ("port", 8, 2), ("proto", 10, 1), ("dir", 11, 1)];
        let old = [5, 0, 0, 0, 9, 0, 0, 0, 0, 80, 6, 1];
        let tier_and_open_bits = [0; 4];
        assert_eq!(way("tb_rule_key", 12, &key).go(&old), [&old[..], &tier_and_open_bits].concat());
        let rule = way("tb_rule", 8, &[("flags", 0, 4), ("cookie", 4, 4)]).go(&[1, 0, 0, 0, 7, 0, 0, 0]);
        assert_eq!(rule, [1, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], "a deny of the first priority");
        let members =
            [("flags", 0, 4), ("shapes_ingress", 4, 4), ("shapes_egress", 8, 4), ("revision", 12, 4)];
        let row: Vec<u8> = (1..=16).collect();
        assert_eq!(way("tb_policy", 16, &members).go(&row), [row.as_slice(), &[0; 48]].concat());
    }

    #[test]
    fn every_pinned_map_with_rows_is_carried() {
        let begin_anew = ["tb_events", "tb_frags", "tb_lost", "tb_metrics", "tb_sites", "tb_snat_full"];
        let mut named: Vec<&str> = CARRIED.iter().map(|carried| carried.name).chain(begin_anew).collect();
        named.sort_unstable();
        let wanted = wanted(&MapSizes::default()).unwrap();
        assert_eq!(wanted.keys().collect::<Vec<_>>(), named);
        let structs = layout::structs().unwrap();
        for carried in CARRIED {
            for of in carried.key.iter().chain(&carried.value) {
                assert!(structs.contains_key(*of), "{of}");
            }
        }
    }
}
