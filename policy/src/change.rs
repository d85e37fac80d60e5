//! What the compiler is given, and what it gives back.

use crate::desired::{CookieRow, EndpointPolicy, PolicyRow, Verdict, VerdictKey};
use crate::rows::{CidrGroupRow, NamedPort, RuleKey, RuleRow};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tombolo_base::ids::IdentityId;
use tombolo_base::prefix::Prefix;
use tombolo_base::table::Snapshot;
use tombolo_topology::{EndpointRow, IdentityRow};

/// Entries of one policy.
pub type Entries = BTreeMap<VerdictKey, Verdict>;

/// Named ports of the pods of an identity.
pub type NamedPorts = BTreeMap<IdentityId, BTreeSet<NamedPort>>;

/// All that decides the node's policies.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// Rules of all kinds.
    pub rules: &'a Snapshot<RuleRow>,
    /// Prefixes that have a name.
    pub groups: &'a Snapshot<CidrGroupRow>,
    /// Identities of all clusters.
    pub identities: &'a Snapshot<IdentityRow>,
    /// Pods of this node.
    pub endpoints: &'a Snapshot<EndpointRow>,
    /// Ports that the pods of an identity name.
    pub named_ports: &'a NamedPorts,
    /// Whether all sources of identities have spoken (see [`tombolo_base::aggregate::Gate`]). While false, allows of
    /// identities that vanished stay, as long as the rules themselves are unchanged. When it becomes true, update with
    /// [`Change::Everything`].
    pub may_shrink: bool,
}

/// What changed since the last update.
#[derive(Clone, Debug)]
pub enum Change {
    /// Unknown or all: compile every subject.
    Everything,
    /// These rows.
    Rows {
        /// Keys of rules.
        rules: BTreeSet<RuleKey>,
        /// Names of groups of prefixes.
        groups: BTreeSet<Arc<str>>,
        /// Identities that came, went or changed.
        identities: BTreeSet<IdentityId>,
        /// Endpoints that came, went or changed.
        endpoints: BTreeSet<u16>,
        /// Identities whose named ports changed.
        named_ports: BTreeSet<IdentityId>,
        /// Prefixes of [`Compiler::leaving`](crate::compile::Compiler::leaving) that the datapath has no row of any more.
        released: BTreeSet<Prefix>,
    },
}

impl Change {
    /// None.
    #[must_use]
    pub const fn nothing() -> Self {
        Self::Rows {
            rules: BTreeSet::new(),
            groups: BTreeSet::new(),
            identities: BTreeSet::new(),
            endpoints: BTreeSet::new(),
            named_ports: BTreeSet::new(),
            released: BTreeSet::new(),
        }
    }
}

/// What to write, in this order: policies, then endpoints and prefixes, then removals of these, then of policies.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delta {
    /// Rows that are new or differ.
    pub policies: Vec<PolicyRow>,
    /// Rows that are new or differ.
    pub endpoints: Vec<EndpointPolicy>,
    /// Endpoints that are gone or have no identity any more.
    pub removed_endpoints: Vec<u16>,
    /// Policy ids that nobody runs under any more.
    pub removed_policies: Vec<u32>,
    /// Prefixes and their numbers, for the datapath: to be written once it has the policies.
    pub prefixes: Vec<(Prefix, IdentityId)>,
    /// Prefixes that no rule mentions any more. Policies go on naming them until they are released.
    pub removed_prefixes: Vec<Prefix>,
    /// What the numbers in entries stand for, of those that are new.
    pub cookies: Vec<CookieRow>,
    /// Numbers that no entry carries any more.
    pub removed_cookies: Vec<u32>,
}
