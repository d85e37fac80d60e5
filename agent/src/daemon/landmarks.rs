//! Where the API server and the nodes are, as policies know them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use tombolo_base::table::{Row, Snapshot};
use tombolo_policy::Landmarks;
use tombolo_service::{ServiceName, SliceRow};
use tombolo_topology::{AddressKind, NodeRow};

/// The API server's own service.
pub(crate) fn service() -> ServiceName {
    ServiceName { namespace: "default".into(), name: "kubernetes".into() }
}

/// The addresses that the API server answers at: the endpoints of Service `default/kubernetes`, also those that are not
/// ready, since they may be asked again at any time.
pub(crate) fn apiservers(slices: &Snapshot<SliceRow>) -> BTreeSet<IpAddr> {
    let of_it = slices.by_index(&service()).flat_map(|slice| &slice.endpoints);
    of_it.flat_map(|endpoint| &endpoint.addresses).copied().collect()
}

/// All that policies know of places.
pub(crate) fn landmarks(
    slices: &Snapshot<SliceRow>,
    nodes: &Snapshot<NodeRow>,
    own: &<NodeRow as Row>::Key,
    cidrs_take_nodes: bool,
) -> Landmarks {
    let mut all = Landmarks { apiservers: apiservers(slices), cidrs_take_nodes, ..Landmarks::default() };
    for node in nodes.iter() {
        let here = node.cluster == own.1 && node.name == own.2;
        let underlay = node.addresses.iter().filter(|address| address.kind != AddressKind::CiliumInternal);
        let of = if here { &mut all.own } else { &mut all.nodes };
        of.extend(underlay.map(|address| address.ip));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use tombolo_base::source::Source;
    use tombolo_base::table::Table;
    use tombolo_service::SliceEndpoint;

    #[test]
    fn the_api_server_is_where_its_service_says() {
        let (slices, writer) = Table::new();
        let name =
            |namespace: &str, name: &str| ServiceName { namespace: namespace.into(), name: name.into() };
        let endpoint = |ip: &str, ready| SliceEndpoint {
            addresses: vec![ip.parse().expect("literal")],
            ready,
            serving: ready,
            terminating: false,
            node: None,
            zone: None,
            for_zones: Vec::new(),
            for_nodes: Vec::new(),
            hostname: None,
        };
        for (slice, service, ip, ready) in [
            (name("default", "kubernetes"), name("default", "kubernetes"), "192.0.2.1", true),
            (name("default", "kubernetes-6"), name("default", "kubernetes"), "2001:db8::1", false),
            (name("default", "web"), name("default", "web"), "192.0.2.2", true),
            (name("shop", "kubernetes"), name("shop", "kubernetes"), "192.0.2.3", true),
        ] {
            writer.upsert(SliceRow {
                source: Source::Manifests,
                name: slice,
                service,
                ports: Vec::new(),
                endpoints: vec![endpoint(ip, ready)],
            });
        }
        let found: Vec<String> = apiservers(&slices.snapshot()).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.1", "2001:db8::1"]);
    }
}
