//! The policies that the bench writes, in the datapath's types: nothing else here knows their shape.

use tombolo_ebpf::{PolicySet, RuleAction, RuleEntry, RuleMatch};

/// One that allows a protocol's port to an identity, or to anybody.
pub(crate) fn allow(identity: Option<u32>, protocol: u8, port: u16) -> RuleEntry {
    (RuleMatch { identity, protocol: Some(protocol), port: Some(port) }, RuleAction::Allow, 1)
}

/// What may come in and go out; a direction without entries of its own is not enforced.
pub(crate) fn policy(ingress: Option<Vec<RuleEntry>>, egress: Option<Vec<RuleEntry>>) -> PolicySet {
    PolicySet { ingress, egress }
}
