//! Structs as BTF describes them. Those of [`crate::abi`] are compared with the object's before anything is loaded: an
//! object that was built from another header must not touch the maps.

use crate::abi::LAYOUTS;
use crate::error::DatapathError;
use std::collections::BTreeMap;

/// One type record of BTF, as far as structs need it.
struct Type<'a> {
    name: &'a str,
    kind: u32,
    size: u32,
    /// (name offset, type, bit offset) of each member.
    members: Vec<(&'a str, u32)>,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<usize> {
    let value = bytes.get(at..at.checked_add(8)?)?.try_into().ok().map(u64::from_le_bytes)?;
    usize::try_from(value).ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    bytes.get(at..at.checked_add(2)?)?.try_into().ok().map(u16::from_le_bytes).map(usize::from)
}

fn index(value: u32) -> Option<usize> {
    usize::try_from(value).ok()
}

fn text(bytes: &[u8], at: usize) -> Option<&str> {
    let rest = bytes.get(at..)?;
    let end = rest.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(rest.get(..end)?).ok()
}

/// A section of a little-endian ELF64 file.
fn section<'a>(elf: &'a [u8], wanted: &str) -> Option<&'a [u8]> {
    let (table, size, count) = (u64_at(elf, 40)?, u16_at(elf, 58)?, u16_at(elf, 60)?);
    let header = |number: usize| Some(table + number.checked_mul(size)?);
    let body = |number: usize| {
        let at = header(number)?;
        let offset = u64_at(elf, at + 24)?;
        elf.get(offset..offset.checked_add(u64_at(elf, at + 32)?)?)
    };
    let names = body(u16_at(elf, 62)?)?;
    (0..count).find_map(|number| {
        let name = text(names, index(u32_at(elf, header(number)?)?)?)?;
        if name == wanted { body(number) } else { None }
    })
}

const INT: u32 = 1;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const DECL_TAG: u32 = 17;
const ENUM64: u32 = 19;

fn types(btf: &[u8]) -> Option<Vec<Type<'_>>> {
    let header = index(u32_at(btf, 4)?)?;
    let start = header.checked_add(index(u32_at(btf, 8)?)?)?;
    let end = start.checked_add(index(u32_at(btf, 12)?)?)?;
    let strings = btf.get(header.checked_add(index(u32_at(btf, 16)?)?)?..)?;
    let mut all = Vec::new();
    let mut at = start;
    while at < end {
        let info = u32_at(btf, at + 4)?;
        let (kind, count) = (info >> 24 & 0x1f, index(info & 0xffff)?);
        let mut found = Type {
            name: text(strings, index(u32_at(btf, at)?)?)?,
            kind,
            size: u32_at(btf, at + 8)?,
            members: Vec::new(),
        };
        at += 12;
        if kind == STRUCT || kind == UNION {
            for member in 0..count {
                let record = at + member * 12;
                let name = text(strings, index(u32_at(btf, record)?)?)?;
                found.members.push((name, u32_at(btf, record + 8)? & 0x00ff_ffff));
            }
        }
        at += match kind {
            INT | VAR | DECL_TAG => 4,
            ARRAY => 12,
            STRUCT | UNION | DATASEC | ENUM64 => count * 12,
            ENUM | FUNC_PROTO => count * 8,
            _ => 0,
        };
        all.push(found);
    }
    Some(all)
}

/// `ServiceKey` is `tb_service_key` in C.
fn c_name(rust: &str) -> String {
    let mut name = String::from("tb");
    for letter in rust.chars() {
        if letter.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name
}

/// A struct: its size, and (name, offset, length) of each field, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fields {
    pub(crate) size: usize,
    pub(crate) members: Vec<(String, usize, usize)>,
}

/// Structs by their name in C.
pub(crate) type Structs = BTreeMap<String, Fields>;

/// The structs of a BTF blob; `None` if it cannot be read. A field reaches to the next one, since `bpf/abi.h` names its
/// padding.
pub(crate) fn structs_of_btf(btf: &[u8]) -> Option<Structs> {
    let known = types(btf)?;
    let found = known.into_iter().filter(|found| found.kind == STRUCT).filter_map(|found| {
        let size = index(found.size)?;
        let starts: Option<Vec<usize>> = found.members.iter().map(|(_, bits)| index(bits / 8)).collect();
        let starts = starts?;
        let ends = starts.iter().skip(1).copied().chain([size]);
        let members = found.members.iter().zip(starts.iter().zip(ends));
        let members = members
            .map(|((name, _), (start, end))| ((*name).to_owned(), *start, end.saturating_sub(*start)))
            .collect();
        Some((found.name.to_owned(), Fields { size, members }))
    });
    Some(found.collect())
}

/// The structs of the embedded object.
///
/// # Errors
/// Its BTF cannot be read.
pub(crate) fn structs() -> Result<Structs, DatapathError> {
    section(crate::datapath::OBJECT, ".BTF").and_then(structs_of_btf).ok_or_else(unreadable)
}

fn unreadable() -> DatapathError {
    let why = "its BTF cannot be read; rebuild with clang -g";
    DatapathError::Invalid { what: "eBPF object".into(), why }
}

/// Checks size and every field's offset of every struct that the object knows.
///
/// # Errors
/// A struct that is missing or laid out differently.
pub(crate) fn verify(object: &[u8]) -> Result<(), DatapathError> {
    let invalid = |what: String, why| DatapathError::Invalid { what, why };
    let btf = section(object, ".BTF").and_then(types).ok_or_else(unreadable)?;
    for (rust, size, fields) in LAYOUTS {
        let name = c_name(rust);
        let found = btf.iter().find(|found| found.kind == STRUCT && found.name == name);
        let found =
            found.ok_or_else(|| invalid(format!("struct {name}"), "not in the object's BTF; rebuild"))?;
        let sizes_agree = index(found.size) == Some(*size);
        let offsets = found.members.iter().map(|(_, bits)| index(bits / 8));
        let offsets_agree = offsets.eq(fields.iter().map(|(_, offset)| Some(*offset)));
        if !sizes_agree || !offsets_agree {
            return Err(invalid(
                format!("struct {name}"),
                "object and crate disagree on its layout; rebuild",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_object_agrees_and_a_changed_one_does_not() {
        let object = crate::datapath::OBJECT;
        verify(object).unwrap();
        let btf = section(object, ".BTF").unwrap();
        let known = types(btf).unwrap();
        let event = known.iter().find(|found| found.name == "tb_event").unwrap();
        assert_eq!((event.size, event.members[7].0, event.members[7].1), (112, "src", 128));
        let mut other = object.to_vec();
        // The size field of struct tb_ct: found by its neighbourhood, name offset and kind.
        let name_at = btf.windows(6).position(|w| w == b"tb_ct\0").unwrap();
        let strings = usize::try_from(u32_at(btf, 4).unwrap() + u32_at(btf, 16).unwrap()).unwrap();
        let name = u32::try_from(name_at - strings).unwrap().to_le_bytes();
        let record = btf.windows(12).position(|w| w[..4] == name && w[7] & 0x1f == 4 && w[8] == 112).unwrap();
        let start = object.windows(btf.len()).position(|w| w == btf).unwrap();
        other[start + record + 8] = 120;
        assert!(verify(&other).unwrap_err().to_string().contains("tb_ct"));
        assert!(verify(&object[..100]).is_err());
    }

    #[test]
    fn names_follow_one_rule() {
        assert_eq!(c_name("ServiceKey"), "tb_service_key");
        assert_eq!(c_name("Ct"), "tb_ct");
    }
}
