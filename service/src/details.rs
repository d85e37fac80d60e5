//! What of a Service does not change where its packets go here: what names are made of, and what exports say.

use crate::rows::Protocol;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Fields of a Service for DNS and for other clusters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ServiceDetails {
    /// `spec.externalName`.
    pub external_name: Option<Arc<str>>,
    /// `spec.sessionAffinity: ClientIP`.
    pub client_ip_affinity: bool,
    /// `spec.sessionAffinityConfig.clientIP.timeoutSeconds`.
    pub affinity_timeout_secs: Option<u32>,
    /// `appProtocol` of the ports that have one.
    #[serde(serialize_with = "by_port")]
    pub app_protocols: BTreeMap<(u16, Protocol), Arc<str>>,
    /// `spec.trafficDistribution`.
    pub traffic_distribution: Option<Arc<str>>,
}

/// Kubernetes' default of `timeoutSeconds`: three hours.
const AFFINITY_SECS: u32 = 10_800;
/// The longest that Kubernetes allows: a day. Other clusters may write more.
const AFFINITY_SECS_MAX: u32 = 86_400;

impl ServiceDetails {
    /// How long a client is sent to the same backend after it opened a flow; `None` without session affinity.
    #[must_use]
    pub fn affinity_secs(&self) -> Option<u32> {
        let secs = self.affinity_timeout_secs.unwrap_or(AFFINITY_SECS).clamp(1, AFFINITY_SECS_MAX);
        self.client_ip_affinity.then_some(secs)
    }
}

/// JSON has text keys only.
fn by_port<S: Serializer>(
    protocols: &BTreeMap<(u16, Protocol), Arc<str>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer
        .collect_map(protocols.iter().map(|((port, protocol), app)| (format!("{port}/{protocol}"), app)))
}
