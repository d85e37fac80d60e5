//! What is planned: frontends and the backends that they choose from.

use super::{BackendState, Protocol, ServiceName};
use crate::choice::{TierUse, Why};
use serde::Serialize;
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_base::cells::list;
use tombolo_base::prefix::Prefix;
use tombolo_base::source::Source;
use tombolo_base::table::{NoIndex, Row};

/// Who may use a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Traffic that enters from outside the cluster.
    External,
    /// Traffic of pods and of the node.
    Internal,
}

/// Address, port, protocol and scope of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct FrontendKey {
    /// Service address.
    pub address: IpAddr,
    /// Service port.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Who may use it.
    pub scope: Scope,
}

/// Desired: a frontend with its chosen backends.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FrontendRow {
    /// Always [`Source::Planner`]: built from several.
    pub source: Source,
    /// Address, port, protocol, scope.
    pub key: FrontendKey,
    /// Number for reverse translation, stable over restarts, 1..=65535.
    pub id: u16,
    /// The service.
    pub service: ServiceName,
    /// Ids of the backends that take new flows, in Maglev order; empty drops (158).
    pub backends: Vec<u32>,
    /// Their shares, beside each other; empty when all are alike.
    pub weights: Arc<[u32]>,
    /// The tiers of clusters, first choice first: what each has, and how much of the traffic it gets.
    pub tiers: Arc<[TierUse]>,
    /// Known backends that take no new flows, and why. They keep the flows they have.
    pub spare: Arc<[(u32, Why)]>,
    /// The Maglev table: positions into `backends`. Empty when there is at most one backend.
    pub maglev: Arc<[u16]>,
    /// Whether only backends of this node are used and the client's address is kept.
    pub local_only: bool,
    /// Whether the address is the services' alone: packets to its other ports are refused, never sent on.
    pub whole_address: bool,
    /// The clients that it takes; `None`: anybody. Others are dropped (177).
    pub source_ranges: Option<Arc<[Prefix]>>,
    /// Session affinity: how long a client is sent to the same backend after it opened a flow; `None`: not at all.
    pub affinity_secs: Option<u32>,
    /// Whether it is a node port at one of the node's addresses.
    pub node_port: bool,
    /// Whether it is a pod's host port.
    pub host_port: bool,
}

impl Row for FrontendRow {
    type Key = FrontendKey;
    type Index = ServiceName;
    const TABLE: &'static str = "frontends";
    fn key(&self) -> FrontendKey {
        self.key
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn indexes(&self) -> Vec<ServiceName> {
        vec![self.service.clone()]
    }
    fn columns() -> &'static [&'static str] {
        &[
            "ADDRESS",
            "PORT",
            "PROTOCOL",
            "SCOPE",
            "ID",
            "SERVICE",
            "BACKENDS",
            "TIERS",
            "NOT-CHOSEN",
            "CLIENTS",
            "AFFINITY",
        ]
    }
    fn cells(&self) -> Vec<String> {
        vec![
            self.key.address.to_string(),
            self.key.port.to_string(),
            self.key.protocol.to_string(),
            format!("{:?}", self.key.scope).to_lowercase(),
            self.id.to_string(),
            self.service.to_string(),
            list(self.shares().map(|(id, percent)| match percent {
                Some(percent) => format!("{id}:{percent:.1}%"),
                None => id.to_string(),
            })),
            list(self.tiers.iter()),
            list(self.spare.iter().map(|(id, why)| format!("{id}:{why}"))),
            match self.source_ranges.as_deref() {
                None => "-".to_owned(),
                Some([]) => "none".to_owned(),
                Some(ranges) => list(ranges),
            },
            self.affinity_secs.map_or_else(|| "-".to_owned(), |secs| format!("{secs}s")),
        ]
    }
}

impl FrontendRow {
    /// The backend of each slot, as packets find it.
    pub fn slots(&self) -> impl Iterator<Item = u32> {
        let single = self.backends.iter().copied().filter(|_| self.maglev.is_empty());
        let slots = self.maglev.iter().filter_map(|slot| self.backends.get(usize::from(*slot)).copied());
        single.chain(slots)
    }

    /// The ids, and the percentage of new flows of each where they are not alike.
    pub fn shares(&self) -> impl Iterator<Item = (u32, Option<f64>)> {
        let all: f64 = self.weights.iter().map(|weight| f64::from(*weight)).sum();
        self.backends.iter().enumerate().map(move |(position, id)| {
            (*id, self.weights.get(position).map(|weight| f64::from(*weight) * 100.0 / all))
        })
    }
}

/// Desired: a backend. Shared by all frontends that choose it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BackendRow {
    /// Always [`Source::Planner`].
    pub source: Source,
    /// Number, stable over restarts, 1..
    pub id: u32,
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Whether it runs on this node.
    pub local: bool,
    /// The cluster it runs in; `None` for this one.
    pub cluster: Option<Arc<str>>,
    /// How ready it is.
    pub state: BackendState,
    /// Its zone.
    pub zone: Option<Arc<str>>,
    /// Whether it does not answer this node's probes.
    pub failing: bool,
}

impl Row for BackendRow {
    type Key = u32;
    type Index = NoIndex;
    const TABLE: &'static str = "backends";
    fn key(&self) -> u32 {
        self.id
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn columns() -> &'static [&'static str] {
        &["ID", "ADDRESS", "PORT", "PROTOCOL", "LOCAL", "CLUSTER", "ZONE", "STATE", "PROBE"]
    }
    fn cells(&self) -> Vec<String> {
        vec![
            self.id.to_string(),
            self.address.to_string(),
            self.port.to_string(),
            self.protocol.to_string(),
            self.local.to_string(),
            self.cluster.as_deref().unwrap_or("-").to_owned(),
            self.zone.as_deref().unwrap_or("-").to_owned(),
            self.state.to_string(),
            if self.failing { "FAILED" } else { "-" }.to_owned(),
        ]
    }
}
