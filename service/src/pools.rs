//! Addresses for LoadBalancer services: what pools offer, and who gets which.

use serde::Serialize;
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_base::source::Source;
use tombolo_base::table::{NoIndex, Row};
use tombolo_topology::selector::LabelSelector;

/// A contiguous range of one family that a pool may hand out, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct PoolBlock {
    /// First address.
    pub first: IpAddr,
    /// Last address.
    pub last: IpAddr,
}

/// Intent: a `CiliumLoadBalancerIPPool`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LbPool {
    /// Who said it.
    pub source: Source,
    /// Object name.
    pub name: Arc<str>,
    /// Ranges, with first and last address of a CIDR already cut off where `allowFirstLastIPs` is `No`.
    pub blocks: Vec<PoolBlock>,
    /// `serviceSelector`; `None` and empty select all services.
    pub selector: Option<LabelSelector>,
    /// `disabled`: hands out nothing new, keeps what it gave.
    pub disabled: bool,
}

impl Row for LbPool {
    type Key = Arc<str>;
    type Index = NoIndex;
    const TABLE: &'static str = "lb-pools";
    fn key(&self) -> Self::Key {
        self.name.clone()
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn columns() -> &'static [&'static str] {
        &["NAME", "BLOCKS", "DISABLED"]
    }
    fn cells(&self) -> Vec<String> {
        let blocks: Vec<_> = self.blocks.iter().map(|b| format!("{}-{}", b.first, b.last)).collect();
        vec![self.name.to_string(), blocks.join(" "), self.disabled.to_string()]
    }
}
