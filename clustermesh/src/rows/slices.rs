//! Endpoint slices of other clusters, joined to the services they belong to.

use crate::wire::EndpointSlice;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_base::ids::ClusterName;
use tombolo_base::source::Source;
use tombolo_service::rows::{BackendState, Protocol, RemoteBackend, RemotePort, RemoteService, ServiceName};

type Backends = BTreeMap<IpAddr, RemoteBackend>;

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
        let known = self.0.entry(*cluster).or_default();
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
        let (mut backends, mut unions) = (Backends::new(), Unions::new());
        for (ip, backend) in slices.values().flatten() {
            match backends.entry(*ip) {
                Entry::Vacant(place) => drop(place.insert(backend.clone())),
                Entry::Occupied(mut place) => join(place.get_mut(), backend, &mut unions),
            }
        }
        Some(RemoteService { source: Source::Cluster(*cluster), name: name.clone(), backends })
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

/// The ports of two sets, by the sets: the addresses of two slices have one union, not each its own.
type Unions = BTreeMap<[*const BTreeSet<RemotePort>; 2], Arc<BTreeSet<RemotePort>>>;

/// An address in two slices: while Kubernetes moves an endpoint, or for ports that differ. Ready is who is it in one.
fn join(known: &mut RemoteBackend, other: &RemoteBackend, unions: &mut Unions) {
    if known.ports != other.ports {
        let union = || Arc::new(known.ports.union(&other.ports).cloned().collect());
        let sets = [&known.ports, &other.ports].map(Arc::as_ptr);
        let ports = unions.entry(sets).or_insert_with(union).clone();
        known.ports = ports;
    }
    known.state = known.state.min(other.state);
}

/// The endpoints with their conditions, unknown counting as Kubernetes says; one that terminates and does not serve any
/// more is as good as gone.
fn backends(slice: &EndpointSlice) -> Backends {
    let port = |port: &crate::wire::slice::Port| {
        let name = port.name.clone().unwrap_or_else(|| "".into());
        Some(RemotePort {
            name,
            protocol: Protocol::parse(port.protocol.as_deref().unwrap_or("TCP"))?,
            port: port.port?,
        })
    };
    let ports: Arc<BTreeSet<RemotePort>> = Arc::new(slice.ports.iter().filter_map(port).collect());
    let mut all = Backends::new();
    for endpoint in &slice.endpoints {
        let ready = endpoint.ready.unwrap_or(true);
        let serving = endpoint.serving.unwrap_or(ready);
        let state = BackendState::of(ready, serving, endpoint.terminating.unwrap_or(false));
        let Some(state) = state else { continue };
        let backend = RemoteBackend {
            ports: ports.clone(),
            state,
            zone: endpoint.zone.clone().filter(|zone| !zone.is_empty()),
            for_zones: endpoint.for_zones.as_deref().unwrap_or_default().into(),
            hostname: None,
            node: endpoint.node.clone().filter(|node| !node.is_empty()),
        };
        all.extend(endpoint.addresses.iter().map(|ip| (*ip, backend.clone())));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::slice::{Endpoint, Port, SERVICE_LABEL};

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
        slice.endpoints[3].terminating = Some(true);
        slice.endpoints[0].zone = Some("a".into());
        slice.endpoints[0].for_zones = Some(vec!["b".into()]);
        let mut book = SliceBook::default();
        // Another slice says that the second one is ready: it is being moved.
        book.take(&cluster(), [(slice.clone(), true)]);
        let states = |book: &SliceBook| {
            let row = book.row(&cluster(), &name("web")).unwrap();
            row.backends.values().map(|backend| backend.state).collect::<Vec<_>>()
        };
        use BackendState::{NotReady, Ready, Serving};
        assert_eq!(states(&book), [Ready, NotReady, Serving], "the last one ends and does not serve");
        let row = book.row(&cluster(), &name("web")).unwrap();
        let tcp = RemotePort { name: "".into(), protocol: Protocol::Tcp, port: 80 };
        assert!(row.backends.values().all(|backend| *backend.ports == BTreeSet::from([tcp.clone()])));
        let first = &row.backends[&"10.1.0.1".parse().unwrap()];
        assert_eq!((first.zone.as_deref(), &*first.for_zones[0]), (Some("a"), "b"));
        let mut other = self::slice("b", "web", &["10.1.0.2"]);
        other.ports[0].name = Some("http".into());
        book.take(&cluster(), [(other, true)]);
        assert_eq!(states(&book), [Ready, Ready, Serving]);
        let row = book.row(&cluster(), &name("web")).unwrap();
        assert_eq!(
            row.backends[&"10.1.0.2".parse().unwrap()].ports.len(),
            2,
            "both names of one port number"
        );
    }

    /// A hostile cluster may name a thousand times a hundred addresses: what they have in common stands in memory once.
    #[test]
    fn addresses_share_zones_and_ports_also_those_of_two_slices() {
        let mut one = slice("a", "web", &["10.1.0.1"]);
        one.endpoints[0].addresses.extend(["10.1.0.2", "10.1.0.3"].map(|ip| ip.parse::<IpAddr>().unwrap()));
        one.endpoints[0].for_zones = Some(vec!["z".into()]);
        let mut other = one.clone();
        (other.name, other.ports[0].port) = ("b".into(), Some(81));
        let mut book = SliceBook::default();
        book.take(&cluster(), [(one, true), (other, true)]);
        let row = book.row(&cluster(), &name("web")).unwrap();
        let backends: Vec<_> = row.backends.values().collect();
        assert_eq!((backends.len(), backends[0].ports.len()), (3, 2));
        for backend in &backends {
            assert!(Arc::ptr_eq(&backend.ports, &backends[0].ports));
            assert!(Arc::ptr_eq(&backend.for_zones, &backends[0].for_zones));
        }
    }
}
