//! `tombolo/lb/<namespace>/<service>`: addresses of a LoadBalancer service; our own, read from the own cluster only.

use super::address;
use super::key;
use super::reject::{Reason, Reject};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_base::prefix::Prefix;
use tombolo_service::rows::ServiceName;

/// The value below `tombolo/lb/<namespace>/<service>`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Addresses of the service.
    pub addresses: BTreeSet<IpAddr>,
    /// The pools they come from.
    #[serde(default)]
    pub pools: BTreeSet<Arc<str>>,
}

impl Assignment {
    /// The key of a service's assignment.
    #[must_use]
    pub fn key(name: &ServiceName) -> String {
        format!("{}{}/{}", key::ASSIGNMENTS, name.namespace, name.name)
    }

    /// Reads and checks the value stored under `name` (`<namespace>/<service>`).
    ///
    /// # Errors
    /// [`Reject`] with the counted reason.
    pub fn decode(name: &str, value: &[u8]) -> Result<(ServiceName, Self), Reject> {
        let service = match name.split_once('/') {
            Some((namespace, name)) if !name.contains('/') => {
                ServiceName { namespace: namespace.into(), name: name.into() }
            }
            _ => return Err(Reject::new(Reason::KeyName, format!("{name:?} is not <namespace>/<service>"))),
        };
        let assignment: Self = serde_json::from_slice(value)
            .map_err(|error| Reject::new(Reason::Malformed, format!("no assignment: {error}")))?;
        for ip in &assignment.addresses {
            address::check_ownable(&Prefix::host(*ip))?;
        }
        Ok((service, assignment))
    }

    /// The value to publish.
    ///
    /// # Errors
    /// Those of the JSON encoder.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }
}
