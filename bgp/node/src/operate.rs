//! How an operator names peers, and what came of what he did to them.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tombolo_bgp::PeerState;
use tombolo_bgp::policy::Evaluation;

/// A peer as an operator writes it: its name, `INSTANCE/NAME`, or its address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PeerName(pub String);

impl PeerName {
    /// Whether it stands for a peer of an instance.
    pub fn names(&self, instance: &str, peer: &PeerState) -> bool {
        let address = self.0.split_once('%').map_or(self.0.as_str(), |(address, _)| address);
        self.is_called(instance, &peer.name)
            || address.parse::<IpAddr>().is_ok_and(|address| address == peer.address)
    }

    /// Whether it is the name, plain or with its instance, of a peer.
    pub(crate) fn is_called(&self, instance: &str, name: &str) -> bool {
        let qualified = self.0.strip_prefix(instance).and_then(|rest| rest.strip_prefix('/'));
        self.0 == name || qualified == Some(name)
    }
}

/// What came of something done to a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operated {
    /// Its instance.
    pub instance: Arc<str>,
    /// Its name.
    pub peer: String,
    /// Why it could not be done, and what to try.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
}

/// What a route would meet at a peer's policy.
#[derive(Clone, Debug, Serialize)]
pub struct Tried {
    /// The peer's instance.
    pub instance: Arc<str>,
    /// Its name.
    pub peer: String,
    /// What it would meet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<Evaluation>,
    /// Why that cannot be said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
