//! Prefixes of this cluster that are neither pods' nor nodes': no other cluster has pods there.

use serde::Serialize;
use std::fmt;
use tombolo_base::prefix::Prefix;
use tombolo_base::source::Source;
use tombolo_base::table::{NoIndex, Row};

/// What a reserved prefix is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// A subnet of this node's underlay link.
    Link,
    /// A member of this cluster's etcd.
    Etcd,
    /// Addresses of LoadBalancer services.
    LbPool,
    /// Addresses of imported services.
    Clusterset,
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Link => "link",
            Self::Etcd => "etcd",
            Self::LbPool => "lb-pool",
            Self::Clusterset => "clusterset",
        })
    }
}

/// Intent: a prefix that is reserved.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReservedRow {
    /// Who said it.
    pub source: Source,
    /// The prefix.
    pub prefix: Prefix,
    /// What it is for.
    pub purpose: Purpose,
}

impl Row for ReservedRow {
    type Key = (Prefix, Purpose);
    type Index = NoIndex;
    const TABLE: &'static str = "reserved-prefixes";
    fn key(&self) -> Self::Key {
        (self.prefix, self.purpose)
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn columns() -> &'static [&'static str] {
        &["PREFIX", "PURPOSE", "SOURCE"]
    }
    fn cells(&self) -> Vec<String> {
        vec![self.prefix.to_string(), self.purpose.to_string(), self.source.to_string()]
    }
}
