//! The wire: golden records byte for byte, what must be accepted and what must be refused and why, round trips, and
//! damaged values.
//!
//! `golden/` holds records that are read and written byte for byte, `foreign/` ones that are read only: forms of other
//! producers. The first line is the kind and the key's name, the second one the value; in `.hex` files the message and
//! the value, the value made by the `zstd` program from what `protoc` made.

#![cfg(test)]

mod follow;
mod golden;
mod mutation;
mod reject;
mod round_trip;

use tombolo_base::ids::{ClusterId, ClusterName, MaxClusters};
use tombolo_clustermesh::wire::{Kind, Record, Reject, Remote};

fn remote(name: &str, id: u32, max: MaxClusters) -> Remote {
    let (name, id) = (ClusterName::new(name).unwrap(), ClusterId::new(id, max).unwrap());
    Remote { name, id, max, own: false }
}

fn c1() -> Remote {
    remote("c1", 1, MaxClusters::C255)
}

fn decode(kind: Kind, name: &str, value: &[u8]) -> Result<Option<Record>, Reject> {
    Record::decode(&c1(), kind, name, value)
}

/// A kept record.
struct Kept {
    file: String,
    /// `None` for cluster configurations.
    kind: Option<Kind>,
    name: String,
    value: Vec<u8>,
    /// The message within, of slices.
    message: Vec<u8>,
}

fn kind(word: &str) -> Option<Kind> {
    let kinds = [
        Kind::Nodes,
        Kind::Identities,
        Kind::Ips,
        Kind::Services,
        Kind::EndpointSlices,
        Kind::ServiceExports,
        Kind::Assignments,
    ];
    kinds.into_iter().find(|kind| kind.to_string() == word)
}

/// All records of a folder, by file name.
fn kept(folder: &str) -> Vec<Kept> {
    let files = std::fs::read_dir(format!("tests/wire/{folder}")).unwrap();
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    let read = |path: &std::path::PathBuf| {
        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let (word, name) = lines[0].split_once(' ').unwrap();
        let hex = path.extension().is_some_and(|extension| extension == "hex");
        let (message, value) =
            if hex { (bytes(lines[1]), bytes(lines[2])) } else { (Vec::new(), lines[1].as_bytes().to_vec()) };
        assert_eq!(kind(word).is_none(), word == "config", "{}", path.display());
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        Kept { file, kind: kind(word), name: name.to_owned(), value, message }
    };
    let kept: Vec<Kept> = paths.iter().map(read).collect();
    assert!(!kept.is_empty());
    kept
}

fn bytes(hex: &str) -> Vec<u8> {
    let pairs = hex.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

/// The value of a golden file as text.
fn golden(file: &str) -> String {
    let kept = kept("golden").into_iter().find(|kept| kept.file == file).unwrap();
    String::from_utf8(kept.value).unwrap()
}
