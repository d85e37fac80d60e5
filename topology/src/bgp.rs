//! BGP as rows: what the `cilium.io` kinds ask for, and which peers this node speaks to and what it advertises to them.
//!
//! The objects `CiliumBGPClusterConfig`, `CiliumBGPPeerConfig`, `CiliumBGPAdvertisement` and
//! `CiliumBGPNodeConfigOverride`, and our own `BGPPeerPolicy`, arrive as [`intent`] rows; [`plan::plan`] turns them, the
//! node, its pod prefixes, its network and the services into [`PeerRow`]s, [`AdvertRow`]s and [`Condition`]s.

mod condition;
pub mod health;
pub mod intent;
pub mod network;
mod password;
pub mod plan;
mod rows;
mod status;
mod tuning;

pub use condition::{Condition, ConditionRow, ConditionType};
pub use password::Password;
pub use rows::{AdvertOrigin, AdvertRow, Family, ListenRange, PeerRow};
pub use status::{NodeConfigRow, PeerStatus, RouteCount};
pub use tuning::{
    AddPath, BfdProfile, LimitAction, MaxPrefixes, PeerMatch, PeerPolicyRow, PeerTuning, PolicyDocument, Role,
};
