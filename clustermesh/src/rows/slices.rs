//! Endpoint slices of other clusters, joined to the services they belong to.

use crate::wire::EndpointSlice;
use crate::wire::slice::Endpoint;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_base::ids::ClusterName;
use tombolo_base::source::Source;
use tombolo_service::rows::{Protocol, RemotePort, RemoteService, ServiceName};

type Backends = BTreeMap<IpAddr, BTreeSet<RemotePort>>;

/// The slices of all clusters that publish their backends as slices. A service's row is made of all its slices; one
/// slice that changes costs its own service only.
#[derive(Debug, Default)]
pub(super) struct SliceBook(BTreeMap<ClusterName, Cluster>);

#[derive(Debug, Default)]
struct Cluster {
    /// Which service a slice belongs to, by namespace and name of the slice.
    services: BTreeMap<(Arc<str>, Arc<str>), ServiceName>,
    /// Each service's slices by name.
    slices: BTreeMap<ServiceName, BTreeMap<Arc<str>, Backends>>,
}

impl SliceBook {
    /// Takes slices in (`true`) or out, and gives the services whose rows are to be made anew.
    pub(super) fn take(
        &mut self,
        cluster: &ClusterName,
        changes: impl IntoIterator<Item = (EndpointSlice, bool)>,
    ) -> BTreeSet<ServiceName> {
        let known = self.0.entry(cluster.clone()).or_default();
        let mut touched = BTreeSet::new();
        for (slice, keep) in changes {
            touched.extend(known.remove(&slice));
            if keep {
                touched.extend(known.insert(&slice));
            }
        }
        touched
    }

    /// The row of a service; `None` when no slice of it is left.
    pub(super) fn row(&self, cluster: &ClusterName, name: &ServiceName) -> Option<RemoteService> {
        let slices = self.0.get(cluster)?.slices.get(name)?;
        let mut backends = Backends::new();
        for (ip, ports) in slices.values().flatten() {
            backends.entry(*ip).or_default().extend(ports.iter().cloned());
        }
        Some(RemoteService { source: Source::Cluster(cluster.clone()), name: name.clone(), backends })
    }

    /// Forgets a cluster.
    pub(super) fn forget(&mut self, cluster: &ClusterName) {
        self.0.remove(cluster);
    }
}

impl Cluster {
    fn remove(&mut self, slice: &EndpointSlice) -> Option<ServiceName> {
        let service = self.services.remove(&(slice.namespace.clone(), slice.name.clone()))?;
        if let Some(slices) = self.slices.get_mut(&service) {
            slices.remove(&slice.name);
            if slices.is_empty() {
                self.slices.remove(&service);
            }
        }
        Some(service)
    }

    /// A slice without a service's label is no part of any.
    fn insert(&mut self, slice: &EndpointSlice) -> Option<ServiceName> {
        let service = ServiceName { namespace: slice.namespace.clone(), name: slice.service()?.into() };
        self.services.insert((slice.namespace.clone(), slice.name.clone()), service.clone());
        self.slices.entry(service.clone()).or_default().insert(slice.name.clone(), backends(slice));
        Some(service)
    }
}

/// Endpoints that may be chosen: ready, or serving while they terminate; unknown counts as ready.
fn backends(slice: &EndpointSlice) -> Backends {
    let port = |port: &crate::wire::slice::Port| {
        let name = port.name.clone().unwrap_or_else(|| "".into());
        Some(RemotePort {
            name,
            protocol: Protocol::parse(port.protocol.as_deref().unwrap_or("TCP"))?,
            port: port.port?,
        })
    };
    let ports: BTreeSet<RemotePort> = slice.ports.iter().filter_map(port).collect();
    let usable = |endpoint: &&Endpoint| {
        let ready = endpoint.ready.unwrap_or(true);
        ready || endpoint.serving.unwrap_or(ready)
    };
    let usable = slice.endpoints.iter().filter(usable);
    usable.flat_map(|endpoint| endpoint.addresses.iter().map(|ip| (*ip, ports.clone()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::slice::{Port, SERVICE_LABEL};

    fn cluster() -> ClusterName {
        ClusterName::new("c1").unwrap()
    }

    fn slice(name: &str, service: &str, ips: &[&str]) -> EndpointSlice {
        let mut slice = EndpointSlice::new("c1", 1, "shop", name, true);
        slice.labels.insert(SERVICE_LABEL.into(), service.into());
        let endpoint = |ip: &&str| Endpoint { addresses: vec![ip.parse().unwrap()], ..Endpoint::default() };
        slice.endpoints = ips.iter().map(endpoint).collect();
        slice.ports = vec![Port { name: None, protocol: None, port: Some(80) }, Port::default()];
        slice
    }

    fn name(name: &str) -> ServiceName {
        ServiceName { namespace: "shop".into(), name: name.into() }
    }

    fn ips(book: &SliceBook, service: &str) -> Option<Vec<String>> {
        let row = book.row(&cluster(), &name(service))?;
        Some(row.backends.keys().map(ToString::to_string).collect())
    }

    #[test]
    fn a_service_is_all_its_slices() {
        let mut book = SliceBook::default();
        let touched = book.take(
            &cluster(),
            [(slice("a", "web", &["10.1.0.1"]), true), (slice("b", "web", &["10.1.0.2", "10.1.0.1"]), true)],
        );
        assert_eq!(touched, BTreeSet::from([name("web")]));
        assert_eq!(ips(&book, "web").unwrap(), ["10.1.0.1", "10.1.0.2"]);
        // One slice goes: what the other one has stays.
        book.take(&cluster(), [(slice("b", "web", &[]), false)]);
        assert_eq!(ips(&book, "web").unwrap(), ["10.1.0.1"]);
        // A slice moves to another service; both rows are made anew.
        let touched = book.take(&cluster(), [(slice("a", "api", &["10.1.0.1"]), true)]);
        assert_eq!(touched, BTreeSet::from([name("web"), name("api")]));
        assert_eq!((ips(&book, "web"), ips(&book, "api").unwrap().len()), (None, 1));
        book.take(&cluster(), [(slice("c", "", &["10.1.0.9"]), true)]);
        assert_eq!(ips(&book, ""), None);
        book.forget(&cluster());
        assert_eq!(ips(&book, "api"), None);
    }

    #[test]
    fn conditions_decide_and_ports_have_defaults() {
        let mut slice = slice("a", "web", &["10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4"]);
        slice.endpoints[1].ready = Some(false);
        (slice.endpoints[2].ready, slice.endpoints[2].serving) = (Some(false), Some(true));
        (slice.endpoints[3].ready, slice.endpoints[3].serving) = (Some(false), Some(false));
        let mut book = SliceBook::default();
        book.take(&cluster(), [(slice, true)]);
        assert_eq!(ips(&book, "web").unwrap(), ["10.1.0.1", "10.1.0.3"]);
        let row = book.row(&cluster(), &name("web")).unwrap();
        let tcp = RemotePort { name: "".into(), protocol: Protocol::Tcp, port: 80 };
        assert!(row.backends.values().all(|ports| *ports == BTreeSet::from([tcp.clone()])));
    }
}
