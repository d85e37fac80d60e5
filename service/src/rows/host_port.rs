//! Ports of the node that lead to a pod.

use super::{Claim, Protocol, ServiceName};
use serde::Serialize;
use std::collections::BTreeSet;
use std::net::IpAddr;
use tombolo_base::cells::list;
use tombolo_base::source::Source;
use tombolo_base::table::Row;
use tombolo_topology::HostPort;

/// Intent: a pod of this node with ports of the node that lead to it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HostPortRow {
    /// Namespace, and the name that its frontends have as a service: [`HostPortRow::name_of`].
    pub name: ServiceName,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// The ports.
    pub ports: BTreeSet<HostPort>,
}

impl HostPortRow {
    /// What a pod's frontends are called as a service: no Service can have this name.
    #[must_use]
    pub fn name_of(namespace: &str, pod: &str) -> ServiceName {
        ServiceName { namespace: namespace.into(), name: format!("{pod}/host-port").into() }
    }
}

impl Row for HostPortRow {
    type Key = ServiceName;
    type Index = Claim;
    const TABLE: &'static str = "host-ports";
    fn key(&self) -> ServiceName {
        self.name.clone()
    }
    fn source(&self) -> &Source {
        &Source::Local
    }
    fn indexes(&self) -> Vec<Claim> {
        // They are ports of the node's addresses, as node ports are.
        self.ports
            .iter()
            .filter_map(|port| Some(Claim::NodePort(port.host_port, Protocol::of(port.protocol)?)))
            .collect()
    }
    fn columns() -> &'static [&'static str] {
        &["NAMESPACE", "NAME", "ADDRESSES", "PORTS"]
    }
    fn cells(&self) -> Vec<String> {
        vec![
            self.name.namespace.to_string(),
            self.name.name.to_string(),
            list(&self.addresses),
            list(&self.ports),
        ]
    }
}
