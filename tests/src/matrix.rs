//! The interoperability matrix: tests record what they have proved of which daemon, and `docs/interop.md` is rendered from that.
//!
//! Tests run as several processes, in parallel: each cell is a small file of its own in `target/interop`, written at once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::netns::{run, unique};

/// Another BGP daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "names of programs")]
pub enum Peer {
    Bird,
    Frr,
    GoBgp,
    OpenBgpd,
    ExaBgp,
}

impl Peer {
    /// All, in the order of the table's columns.
    pub const ALL: [Self; 5] = [Self::Bird, Self::Frr, Self::GoBgp, Self::OpenBgpd, Self::ExaBgp];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bird => "BIRD",
            Self::Frr => "FRR",
            Self::GoBgp => "GoBGP",
            Self::OpenBgpd => "OpenBGPD",
            Self::ExaBgp => "ExaBGP",
        }
    }

    /// The version it says it is.
    #[expect(clippy::panic, reason = "a test fails this way")]
    pub fn version(self) -> String {
        let text = match self {
            // It answers where errors go.
            Self::Bird => run("sh", &["-c", "/usr/sbin/bird --version 2>&1"]),
            Self::Frr => run("/usr/lib/frr/bgpd", &["--version"]),
            Self::GoBgp => run("/usr/bin/gobgpd", &["--version"]),
            Self::OpenBgpd => run("sh", &["-c", "/usr/sbin/bgpd -V 2>&1"]),
            Self::ExaBgp => run("/usr/sbin/exabgp", &["--version"]),
        };
        let numeric = |word: &&str| word.starts_with(|first: char| first.is_ascii_digit());
        let version = text.split_whitespace().find(numeric).map(str::to_owned);
        version.unwrap_or_else(|| panic!("{self:?} does not tell its version: {text}"))
    }
}

/// What two daemons may do together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "see `Feature::text`")]
pub enum Feature {
    Ipv4,
    Ipv6,
    ExtendedNextHop,
    Md5,
    Gtsm,
    GracefulRestart,
    LongLived,
    AddPath,
    RouteRefresh,
    Bfd,
    ExtendedMessage,
    LargeCommunities,
    MaxPrefix,
    ShutdownText,
}

impl Feature {
    /// All, in the order of the table's rows.
    pub const ALL: [Self; 14] = [
        Self::Ipv4,
        Self::Ipv6,
        Self::ExtendedNextHop,
        Self::Md5,
        Self::Gtsm,
        Self::GracefulRestart,
        Self::LongLived,
        Self::AddPath,
        Self::RouteRefresh,
        Self::Bfd,
        Self::ExtendedMessage,
        Self::LargeCommunities,
        Self::MaxPrefix,
        Self::ShutdownText,
    ];

    /// What it is, with its RFC.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Ipv4 => "IPv4 unicast (4271)",
            Self::Ipv6 => "IPv6 unicast (4760)",
            Self::ExtendedNextHop => "IPv4 over IPv6 next hops (8950)",
            Self::Md5 => "TCP MD5 (2385)",
            Self::Gtsm => "GTSM (5082)",
            Self::GracefulRestart => "graceful restart (4724)",
            Self::LongLived => "long-lived graceful restart (9494)",
            Self::AddPath => "ADD-PATH (7911)",
            Self::RouteRefresh => "route refresh (2918)",
            Self::Bfd => "BFD (5880)",
            Self::ExtendedMessage => "extended messages (8654)",
            Self::LargeCommunities => "large communities (8092)",
            Self::MaxPrefix => "maximum-prefix (4486)",
            Self::ShutdownText => "shutdown text (9003)",
        }
    }
}

/// Why there can be no test of a cell: what the peer, in the version it was looked at, lacks.
const LACKING: &[(Peer, Feature, &str)] = &[
    (Peer::OpenBgpd, Feature::ExtendedNextHop, "7.7 knows no such capability"),
    (Peer::OpenBgpd, Feature::LongLived, "7.7 knows no such capability"),
    (Peer::ExaBgp, Feature::LongLived, "4.2.21 knows no such capability, and keeps no routes"),
    (Peer::GoBgp, Feature::Bfd, "3.10 has none; 4.6 does"),
    (Peer::OpenBgpd, Feature::Bfd, "7.7 has none"),
    (Peer::ExaBgp, Feature::Bfd, "4.2.21 has none"),
    (Peer::GoBgp, Feature::ExtendedMessage, "3.10 knows no such capability"),
    (Peer::OpenBgpd, Feature::ExtendedMessage, "7.7 knows no such capability"),
    (Peer::ExaBgp, Feature::MaxPrefix, "4.2.21 keeps no routes, and counts none"),
];

/// Whether a peer lacks a feature.
pub fn lacks(peer: Peer, feature: Feature) -> bool {
    lacking((peer, feature)).is_some()
}

/// `target/interop` of the workspace.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/interop")
}

/// Records that the test that calls this, of the file named `file`, has proved a cell. Called last: a test that fails leaves the cell out.
#[expect(clippy::panic, reason = "a test fails this way")]
pub fn cell(peer: Peer, feature: Feature, file: &str) {
    let test = std::thread::current().name().unwrap_or("main").to_owned();
    let (folder, name) = (folder(), format!("{peer:?}-{feature:?}-{}", unique()));
    let (draft, finished) = (folder.join(format!(".{name}")), folder.join(name));
    let written = std::fs::create_dir_all(&folder)
        .and_then(|()| std::fs::write(&draft, format!("{file}::{test}")))
        .and_then(|()| std::fs::rename(&draft, &finished));
    if let Err(error) = written {
        panic!("cannot record {peer:?} {feature:?}: {error}");
    }
}

/// The tests that proved each cell.
pub type Proved = BTreeMap<(Peer, Feature), Vec<String>>;

/// What was recorded since `target/interop` was emptied.
///
/// # Errors
/// If there is nothing, or it cannot be read.
pub fn proved() -> std::io::Result<Proved> {
    let mut proved = Proved::new();
    for entry in std::fs::read_dir(folder())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let of = |(peer, feature): &(Peer, Feature)| name.starts_with(&format!("{peer:?}-{feature:?}-"));
        if let Some(cell) = cells().find(of) {
            let tests = proved.entry(cell).or_default();
            tests.push(std::fs::read_to_string(entry.path())?);
            tests.sort();
            tests.dedup();
        }
    }
    Ok(proved)
}

fn cells() -> impl Iterator<Item = (Peer, Feature)> {
    Feature::ALL.into_iter().flat_map(|feature| Peer::ALL.map(|peer| (peer, feature)))
}

fn lacking(cell: (Peer, Feature)) -> Option<usize> {
    LACKING.iter().position(|(peer, feature, _)| (*peer, *feature) == cell)
}

/// Renders the table, or says which cells are neither proved nor excused, or both.
///
/// # Errors
/// The list of those cells.
pub fn render(proved: &Proved, version: impl Fn(Peer) -> String) -> Result<String, String> {
    let wrong = |cell: &(Peer, Feature)| proved.contains_key(cell) == lacking(*cell).is_some();
    let wrong: Vec<_> = cells().filter(wrong).collect();
    if !wrong.is_empty() {
        return Err(format!("neither proved nor excused, or both: {wrong:?}"));
    }
    let mut text = String::from(
        "# Interoperability

Written by `make interop` (`TOMBOLO_BLESS=1 make interop` after a change) from what its tests have proved: each cell is a real session in network
namespaces. A number says why there is none.
",
    );
    let mut row = |cells: Vec<String>| text.push_str(&format!("| {} |\n", cells.join(" | ")));
    let heads = Peer::ALL.map(|peer| format!("{} {}", peer.name(), version(peer)));
    row([vec!["feature (RFC)".to_owned()], heads.to_vec()].concat());
    row(vec!["---".to_owned(); Peer::ALL.len() + 1]);
    for feature in Feature::ALL {
        let of = |peer| lacking((peer, feature)).map_or("yes".to_owned(), |at| format!("- ({})", at + 1));
        row([vec![feature.text().to_owned()], Peer::ALL.map(of).to_vec()].concat());
    }
    text = text.replacen("| feature", "\n| feature", 1);
    text.push_str("\n## What the peers lack\n\n");
    for (at, (peer, feature, reason)) in LACKING.iter().enumerate() {
        text.push_str(&format!("{}. {}, {}: {reason}\n", at + 1, peer.name(), feature.text()));
    }
    text.push_str(
        "
One direction only: GoBGP never asks for a route refresh. OpenBGPD counts ours, but nothing came again. ExaBGP asks for one, but closes
the connection when it is asked. ExaBGP's shutdown text is fixed, and ours is not tried on it. ExaBGP keeps no routes: it is its restart that we bridge.
The limit of maximum-prefix is the peer's; only BIRD also meets ours. Of the restarts it is the peers that keep routes, and BIRD and FRR that we keep
routes of as well. No wrong key and no router too far away was tried with ExaBGP.
",
    );
    text.push_str("\n## Which tests show it\n");
    for feature in Feature::ALL {
        text.push_str(&format!("\n{}:\n", feature.text()));
        for peer in Peer::ALL {
            for test in proved.get(&(peer, feature)).into_iter().flatten() {
                text.push_str(&format!("* {}: `{test}`\n", peer.name()));
            }
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_proved_or_excused() {
        let all = || cells().filter(|cell| lacking(*cell).is_none());
        let mut proved: Proved = all().map(|cell| (cell, vec!["file::test".to_owned()])).collect();
        let text = render(&proved, |_| "1.0".to_owned()).unwrap();
        assert!(text.contains("| IPv4 unicast (4271) | yes |"), "{text}");
        proved.remove(&(Peer::Bird, Feature::Md5));
        assert!(render(&proved, |_| String::new()).unwrap_err().contains("(Bird, Md5)"));
    }
}
