//! The policies that the bench writes, in the datapath's types: nothing else here knows their shape.

use tombolo_ebpf::{PolicySet, PolicySide, RuleEntry};

/// One that allows a protocol's port to an identity, or to anybody.
pub(crate) fn allow(identity: Option<u32>, protocol: u8, port: u16) -> RuleEntry {
    let port = Some(port.into());
    RuleEntry { identity, protocol: Some(protocol), port, cookie: 1, ..RuleEntry::default() }
}

/// What may come in and go out; a direction without entries of its own is not enforced.
pub(crate) fn policy(ingress: Option<Vec<RuleEntry>>, egress: Option<Vec<RuleEntry>>) -> PolicySet {
    let side = |entries: Option<Vec<RuleEntry>>| entries.map(PolicySide::only).unwrap_or_default();
    PolicySet { ingress: side(ingress), egress: side(egress), audit: false }
}
