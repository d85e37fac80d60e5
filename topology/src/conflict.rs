//! What two clusters, or two nodes, claim at once: who has it, since when, and what to do.

use crate::rows::WireguardKey;
use serde::{Serialize, Serializer};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tombolo_base::ids::ClusterName;
use tombolo_base::prefix::Prefix;
use tombolo_base::source::Source;
use tombolo_base::table::{NoIndex, Row};

/// What kind of thing is claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConflictKind {
    /// Pod prefixes of two nodes overlap, or one holds another cluster's node addresses.
    PodCidr,
    /// A node's address is another node's, or lies in another cluster's pod prefix.
    NodeAddress,
    /// An address (of a pod) is said by two clusters, or by one although it lies in another's pod prefix.
    Address,
    /// Two nodes publish one WireGuard key.
    WireguardKey,
}

impl ConflictKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::PodCidr, Self::NodeAddress, Self::Address, Self::WireguardKey];

    /// Its name in JSON, metrics and tables.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::PodCidr => "pod-cidr",
            Self::NodeAddress => "node-address",
            Self::Address => "address",
            Self::WireguardKey => "wireguard-key",
        }
    }

    /// What to do about it.
    #[must_use]
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::PodCidr => {
                "give one of the clusters other pod CIDRs; until then the refused one's pods are not reached from here"
            }
            Self::NodeAddress => {
                "give one of the nodes another address, or remove the node that is gone; until then the refused one is not reached from here"
            }
            Self::Address => {
                "find out which cluster the address belongs to; the other one publishes what it does not own, or its pod CIDRs are not the ones it published"
            }
            Self::WireguardKey => {
                "give one of the nodes a key of its own (delete wireguard.key in its state_dir and restart its agent), or remove the node that is gone; until then packets to the refused one are dropped"
            }
        }
    }
}

impl fmt::Display for ConflictKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What can be claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Claimed {
    /// A prefix or address.
    Prefix(Prefix),
    /// The public key of a node.
    Key(WireguardKey),
}

impl fmt::Display for Claimed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefix(prefix) => f.write_str(&prefix.short()),
            Self::Key(key) => key.fmt(f),
        }
    }
}

impl Serialize for Claimed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One side of a conflict.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Claimant {
    /// Its cluster.
    pub cluster: ClusterName,
    /// Its node, where that is known.
    pub node: Option<Arc<str>>,
    /// What it claims.
    pub claimed: Claimed,
    /// Whether the claim is in use here.
    pub used: bool,
}

impl fmt::Display for Claimant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = self.node.as_deref().unwrap_or("-");
        write!(f, "{}/{node}", self.cluster)?;
        match self.claimed {
            Claimed::Prefix(prefix) => write!(f, " {}", prefix.short()),
            // Long, and the same on every side.
            Claimed::Key(_) => Ok(()),
        }
    }
}

/// Most claimants that a row names.
pub const MAX_CLAIMANTS: usize = 8;
/// Most rows of one kind. Of a conflict past that only the key is kept, until there is room.
pub const MAX_CONFLICTS: usize = 1024;

/// How many conflicts there are, by kind.
#[derive(Debug, Default)]
pub struct ConflictCounts {
    found: PerKind,
    hidden: PerKind,
}

#[derive(Debug, Default)]
struct PerKind([AtomicU64; 4]);

impl PerKind {
    fn of(&self, kind: ConflictKind) -> &AtomicU64 {
        let [cidr, node, address, key] = &self.0;
        match kind {
            ConflictKind::PodCidr => cidr,
            ConflictKind::NodeAddress => node,
            ConflictKind::Address => address,
            ConflictKind::WireguardKey => key,
        }
    }
}

impl ConflictCounts {
    /// One more was found.
    pub(crate) fn add(&self, kind: ConflictKind) {
        self.found.of(kind).fetch_add(1, Ordering::Relaxed);
    }

    /// How many were found since the agent started.
    #[must_use]
    pub fn found(&self, kind: ConflictKind) -> u64 {
        self.found.of(kind).load(Ordering::Relaxed)
    }

    pub(crate) fn set_hidden(&self, kind: ConflictKind, count: usize) {
        self.hidden.of(kind).store(count.try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How many stand that the table has no room for.
    #[must_use]
    pub fn hidden(&self, kind: ConflictKind) -> u64 {
        self.hidden.of(kind).load(Ordering::Relaxed)
    }
}

/// A conflict that stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ConflictRow {
    /// What is claimed.
    pub kind: ConflictKind,
    /// The claim that is refused, or what several say.
    pub key: Claimed,
    /// Who claims it, those in use first.
    pub claimants: Vec<Claimant>,
    /// Who has it here; nobody if none of the claims can be used.
    pub chosen: Option<ClusterName>,
    /// When this agent noticed it first, seconds since 1970.
    pub since_unix_secs: u64,
    /// What to do.
    pub remedy: &'static str,
}

impl ConflictRow {
    /// Those whose claim is used, or those whose is not; empty if there are none.
    fn names(&self, used: bool) -> String {
        let all = self.claimants.iter().filter(|claimant| claimant.used == used);
        all.map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    /// Who has it and who has not, as a part of a sentence.
    #[must_use]
    pub fn found(&self) -> String {
        match (self.names(true), self.names(false)) {
            (used, refused) if used.is_empty() => format!("refused: {refused}"),
            (used, refused) if refused.is_empty() => format!("used by all of {used}"),
            (used, refused) => format!("used: {used}; refused: {refused}"),
        }
    }
}

impl fmt::Display for ConflictRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}; {}", self.kind, self.key, self.found(), self.remedy)
    }
}

impl Row for ConflictRow {
    type Key = (ConflictKind, Claimed);
    type Index = NoIndex;
    const TABLE: &'static str = "conflicts";
    fn key(&self) -> Self::Key {
        (self.kind, self.key)
    }
    fn source(&self) -> &Source {
        &Source::Planner
    }
    fn columns() -> &'static [&'static str] {
        &["KIND", "KEY", "USED", "REFUSED", "SINCE", "TRY"]
    }
    fn cells(&self) -> Vec<String> {
        let names =
            |used| Some(self.names(used)).filter(|all| !all.is_empty()).unwrap_or_else(|| "-".to_owned());
        vec![
            self.kind.to_string(),
            self.key.to_string(),
            names(true),
            names(false),
            self.since_unix_secs.to_string(),
            self.remedy.to_owned(),
        ]
    }
}
