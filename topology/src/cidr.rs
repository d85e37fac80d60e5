//! Identities of addresses outside the mesh.

use serde::Serialize;
use tombolo_base::ids::IdentityId;
use tombolo_base::prefix::Prefix;
use tombolo_base::source::Source;
use tombolo_base::table::{NoIndex, Row};

/// Desired: the identity that policies know addresses of a prefix by, if nothing of the mesh is there.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CidrIdentity {
    /// Always [`Source::Planner`].
    pub source: Source,
    /// The prefix.
    pub prefix: Prefix,
    /// A number that means something on this node alone; of `0.0.0.0/0` the world.
    pub identity: IdentityId,
}

impl CidrIdentity {
    /// IPv4 as a whole. IPv4 lives inside IPv6 in the datapath's trie, so that without this row an IPv6 prefix of zeros
    /// would catch it.
    pub const IPV4: Self =
        Self { source: Source::Planner, prefix: Prefix::LOWEST, identity: IdentityId::WORLD };
}

impl Row for CidrIdentity {
    type Key = Prefix;
    type Index = NoIndex;
    const TABLE: &'static str = "cidr-identities";
    fn key(&self) -> Prefix {
        self.prefix
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn columns() -> &'static [&'static str] {
        &["PREFIX", "IDENTITY"]
    }
    fn cells(&self) -> Vec<String> {
        vec![self.prefix.to_string(), self.identity.to_string()]
    }
}
