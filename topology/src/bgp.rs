//! BGP as rows: what the `cilium.io` kinds ask for, and which peers this node speaks to and what it advertises to them.
//!
//! The objects `CiliumBGPClusterConfig`, `CiliumBGPPeerConfig`, `CiliumBGPAdvertisement` and
//! `CiliumBGPNodeConfigOverride` arrive as [`intent`] rows; [`plan::plan`] turns them, the node, its pod prefixes and
//! the services into [`PeerRow`]s and [`AdvertRow`]s.

pub mod health;
pub mod intent;
pub mod plan;
mod rows;

pub use rows::{AdvertOrigin, AdvertRow, Family, PeerRow};
