//! Desired: what rules come to in the datapath.

use crate::rows::{Action, Direction, Tier};
use serde::{Serialize, Serializer};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tombolo_base::ids::IdentityId;
use tombolo_base::source::Source;
use tombolo_base::table::{NoIndex, Row};

/// How weighty an entry is within its tier; the largest that matches decides.
///
/// The upper 24 bits are `0xFF_FFFF` less the priority as written (0 is the most urgent), the lowest byte the action: 255
/// deny, 1 allow, 0 pass. So at one priority a deny beats an allow and an allow a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Precedence(u32);

impl Precedence {
    /// The highest priority that can be written; larger ones are taken for it.
    pub const MAX_PRIORITY: u32 = 0x00FF_FFFE;

    /// Of a rule.
    #[must_use]
    pub const fn new(priority: u32, action: Action) -> Self {
        let priority = if priority > Self::MAX_PRIORITY { Self::MAX_PRIORITY } else { priority };
        let action = match action {
            Action::Deny => 255,
            Action::Allow => 1,
            Action::Pass => 0,
        };
        Self((0x00FF_FFFF - priority) << 8 | action)
    }

    /// From the number in the datapath's maps; `None` for 0, which is no entry.
    #[must_use]
    pub const fn from_raw(raw: u32) -> Option<Self> {
        if raw == 0 { None } else { Some(Self(raw)) }
    }

    /// The number in the datapath's maps.
    #[must_use]
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// As written: the smaller, the more urgent.
    #[must_use]
    pub const fn priority(self) -> u32 {
        0x00FF_FFFF - (self.0 >> 8)
    }

    /// What it says.
    #[must_use]
    pub const fn action(self) -> Action {
        match self.0 & 0xFF {
            0 => Action::Pass,
            255 => Action::Deny,
            _ => Action::Allow,
        }
    }
}

/// Desired: a compiled policy, shared by all pods with equal subject labels.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PolicyRow {
    /// Always [`Source::Planner`].
    pub source: Source,
    /// Number on this node, 1..; 0 = no restriction.
    pub id: u32,
    /// The identity whose pods share it.
    pub subject: IdentityId,
    /// Whether ingress is default deny.
    pub ingress_enforced: bool,
    /// Whether egress is default deny.
    pub egress_enforced: bool,
    /// All entries, written before the row names them.
    #[serde(serialize_with = "as_list")]
    pub entries: BTreeMap<VerdictKey, Verdict>,
    /// Whether what it drops is let through, and only told (`policy.audit`).
    pub audit: bool,
    /// The policies it was made of, `Kind namespace/name`.
    pub origins: BTreeSet<Arc<str>>,
}

/// JSON has no keys but texts: entries are told as a list.
fn as_list<S: Serializer>(entries: &BTreeMap<VerdictKey, Verdict>, to: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Entry<'a> {
        #[serde(flatten)]
        key: &'a VerdictKey,
        action: Action,
        priority: u32,
        #[serde(flatten)]
        verdict: &'a Verdict,
    }
    to.collect_seq(entries.iter().map(|(key, verdict)| {
        let (action, priority) = (verdict.precedence.action(), verdict.precedence.priority());
        Entry { key, action, priority, verdict }
    }))
}

/// What an entry of a compiled policy matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct VerdictKey {
    /// Which way.
    pub direction: Direction,
    /// Where it stands.
    pub tier: Tier,
    /// The peer; 0 = anybody.
    pub identity: IdentityId,
    /// IP protocol; 0 = any.
    pub protocol: u8,
    /// Destination port; of ICMP the type in the upper byte, the code in the lower. Bits below `port_bits` are 0.
    pub port: u16,
    /// How many leading bits of `port` must match, 0..=16; 0 = any port. Needs a protocol.
    pub port_bits: u8,
}

/// What it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Verdict {
    /// How weighty, and which action.
    pub precedence: Precedence,
    /// Number of the rules that it comes from, unique on this node; 0 = not told.
    pub cookie: u32,
}

impl Row for PolicyRow {
    type Key = u32;
    type Index = IdentityId;
    const TABLE: &'static str = "policies";

    fn key(&self) -> u32 {
        self.id
    }

    fn source(&self) -> &Source {
        &self.source
    }

    fn indexes(&self) -> Vec<IdentityId> {
        vec![self.subject]
    }

    fn columns() -> &'static [&'static str] {
        &["ID", "SUBJECT", "INGRESS", "EGRESS", "ENTRIES", "POLICIES"]
    }

    fn cells(&self) -> Vec<String> {
        let mode = |enforced| if enforced { "enforced" } else { "open" }.to_owned();
        let origins: Vec<&str> = self.origins.iter().map(AsRef::as_ref).collect();
        vec![
            self.id.to_string(),
            self.subject.to_string(),
            mode(self.ingress_enforced),
            mode(self.egress_enforced),
            self.entries.len().to_string(),
            origins.join(" "),
        ]
    }
}

/// Desired: which policy an endpoint runs under.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EndpointPolicy {
    /// Always [`Source::Planner`].
    pub source: Source,
    /// Endpoint number.
    pub endpoint: u16,
    /// Policy number; 0 = no restriction.
    pub policy: u32,
}

impl Row for EndpointPolicy {
    type Key = u16;
    type Index = NoIndex;
    const TABLE: &'static str = "endpoint-policies";
    fn key(&self) -> u16 {
        self.endpoint
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn columns() -> &'static [&'static str] {
        &["ENDPOINT", "POLICY"]
    }
    fn cells(&self) -> Vec<String> {
        vec![self.endpoint.to_string(), self.policy.to_string()]
    }
}

/// Desired: what an entry's number stands for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CookieRow {
    /// Always [`Source::Planner`].
    pub source: Source,
    /// The number.
    pub cookie: u32,
    /// The rules that say so: `Kind namespace/name ingress rule 0`, or the rule's own name.
    pub rules: BTreeSet<Arc<str>>,
}

impl Row for CookieRow {
    type Key = u32;
    type Index = NoIndex;
    const TABLE: &'static str = "policy-rules";
    fn key(&self) -> u32 {
        self.cookie
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn columns() -> &'static [&'static str] {
        &["COOKIE", "RULES"]
    }
    fn cells(&self) -> Vec<String> {
        let rules: Vec<&str> = self.rules.iter().map(AsRef::as_ref).collect();
        vec![format!("{:#010x}", self.cookie), rules.join("; ")]
    }
}
