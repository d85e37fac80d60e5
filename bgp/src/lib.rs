//! A BGP-4 speaker that stands alone: codec, state machine, RIB, import policy, sessions on tokio.
//!
//! Layers, each usable by itself and each without knowledge of the one above:
//! [`wire`] (bytes to messages) → the state machine of a peer → the RIB → a sans-IO core → the driver on tokio, which is [`Speaker`].
//!
//! ```no_run
//! # async fn sketch() -> Result<(), tombolo_bgp::Error> {
//! use tombolo_bgp::{AllowedPrefix, Announcement, Event, PeerConfig, Scope, Speaker, SpeakerConfig};
//! let mut config = SpeakerConfig::new(65111, [172, 20, 11, 2].into());
//! config.listen = vec![([0, 0, 0, 0], 179).into()];
//! config.restarting = false; // true if the previous process died and its routes are still in the forwarding plane
//! let (speaker, mut events) = Speaker::start(config).await?;
//! let mut tor = PeerConfig::new("tor", [172, 20, 11, 1].into(), 65100);
//! tor.graceful_restart.enabled = true;
//! tor.import = vec![AllowedPrefix::or_longer("10.1.0.0/16".parse().unwrap())]; // nothing else is accepted
//! speaker.add_peer(tor).await?;
//! speaker.announce(Scope::All, "10.1.1.0/24".parse().unwrap(), Announcement::default()).await?;
//! speaker.export_complete().await?; // now End-of-RIB may go out
//! while let Some(event) = events.next().await {
//!     if let Event::Route { prefix, paths } = event { /* no paths: remove it from the kernel */ }
//! }
//! speaker.shutdown("node drains").await // withdraws, waits until that is sent, then Cease with the text
//! # }
//! ```
//!
//! RFCs: 4271, 4724 (both roles), 4760, 2918, 5492, 6286, 6608, 6793, 7606, 7607, 8092, 8654, 9003, 9072, 9384 with BFD ([`bfd`]). Next hops of
//! IPv6 by 2545. The codec reads and writes more than sessions offer yet: see `docs/rfc.md`.

#![deny(unsafe_code)]

pub mod bfd;
mod bmp;
mod config;
mod core;
mod driver;
mod dynamic;
mod error;
mod event;
mod family;
mod filter;
mod fsm;
pub mod mrt;
mod operate;
pub mod policy;
mod rib;
mod routing;
pub mod rpki;
mod transport;
mod unnumbered;
pub mod wire;

pub use bmp::BmpStation;
pub use config::{
    AllowedPrefix, Announcement, BfdUnit, Damping, GracefulRestart, LongLivedRestart, PeerConfig, Scope,
    SpeakerConfig, Timers,
};
pub use core::PolicyQuestion;
pub use driver::{Events, Speaker, SpeakerHandle};
pub use dynamic::{AsnRange, ListenRange};
pub use error::Error;
pub use event::{Counters, Event, FamilyState, Path, PeerState, RouteRow, RouteView};
pub use family::{Family, NextHop};
pub use filter::{CommunityFilter, PrefixFilter, RouteFilter};
pub use fsm::{FsmEvent, State, Transition};
pub use operate::{Outlook, PeerAction, RunningTimer};
pub use rib::Refusal;
pub use routing::{AddPaths, Decision, LimitAction, PathCount, PrefixLimit, Role};
pub use transport::{AoAlgorithm, AoKey, Secret, Transport};
pub use wire::{AsPath, Attributes, Community, LargeCommunity, Origin};
