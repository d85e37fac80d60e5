//! Where an address lives.

use crate::pool::Global;
use crate::text::shared;
use serde::Serialize;
use std::net::IpAddr;
use std::sync::Arc;

/// What the addresses of one namespace on one node have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Residence {
    /// The node they live on, by an underlay address.
    pub host_ip: Option<IpAddr>,
    /// Encryption key index: 255 for WireGuard, 0 for none.
    pub encryption_key: u8,
    /// Kubernetes namespace, of pods.
    pub namespace: Option<Arc<str>>,
}

static RESIDENCES: Global<Residence> = Global::new(Default::default);

impl Residence {
    /// The one copy: a million addresses live on some ten thousand nodes. No namespace is `""`.
    #[must_use]
    pub fn of(host_ip: Option<IpAddr>, encryption_key: u8, namespace: &str) -> Arc<Self> {
        let namespace = (!namespace.is_empty()).then(|| shared(namespace));
        RESIDENCES.get(&Self { host_ip, encryption_key, namespace })
    }
}

impl From<&Residence> for Arc<Residence> {
    fn from(residence: &Residence) -> Self {
        Self::new(residence.clone())
    }
}
