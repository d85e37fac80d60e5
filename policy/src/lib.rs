//! Network policy, pure: rules and identities in, verdict entries out.
#![forbid(unsafe_code)]

pub mod rows;

pub use rows::{
    Direction, EndpointPolicy, LabelSelector, PeerSelector, PolicyRow, PortRule, Requirement, RuleBlock,
    RuleRow, VerdictEntry,
};
