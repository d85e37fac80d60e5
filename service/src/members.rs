//! Who is known for a port of a service: this cluster's slices and what other clusters share. Pure.

use crate::choice::{Candidate, Site};
use crate::plan::Inputs;
use crate::rows::{BackendState, ServicePort, ServiceRow};
use std::sync::Arc;
use tombolo_base::source::Source;
use tombolo_base::table::Row;

/// The candidates of one port and family, ordered by key, no key twice: of two that say the same address this cluster's
/// counts before others', of those the readiest, so that no cluster takes another's backend out, and then the first by name.
pub(crate) fn candidates(
    inputs: &Inputs,
    service: &ServiceRow,
    port: &ServicePort,
    ipv4: bool,
    site: &Site,
) -> Vec<Candidate> {
    let mut all = Vec::new();
    local(inputs, service, port, ipv4, site, &mut all);
    if service.global {
        remote(inputs, service, port, ipv4, &mut all);
    }
    let order = |a: &Candidate, b: &Candidate| {
        let of_others = |candidate: &Candidate| (candidate.key, candidate.cluster.is_some(), candidate.state);
        of_others(a).cmp(&of_others(b)).then_with(|| a.cluster.cmp(&b.cluster))
    };
    all.sort_by(order);
    all.dedup_by(|later, first| later.key == first.key);
    if service.spread.probe.is_some() && !inputs.probes.is_empty() {
        for candidate in all.iter_mut().filter(|candidate| candidate.cluster.is_some()) {
            candidate.failing = inputs.probes.get(&(service.name.clone(), candidate.key)).is_some();
        }
    }
    all
}

/// With `publishNotReadyAddresses` whoever is there counts as ready.
const fn published(state: BackendState, service: &ServiceRow) -> BackendState {
    if service.publish_not_ready { BackendState::Ready } else { state }
}

/// This cluster's, matched by port name and protocol.
fn local(
    inputs: &Inputs,
    service: &ServiceRow,
    port: &ServicePort,
    ipv4: bool,
    site: &Site,
    out: &mut Vec<Candidate>,
) {
    for slice in inputs.slices.by_index(&service.name) {
        let matching = slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol);
        for (slice_port, endpoint) in matching.flat_map(|p| slice.endpoints.iter().map(move |e| (p, e))) {
            let state = BackendState::of(
                endpoint.ready || service.publish_not_ready,
                endpoint.serving,
                endpoint.terminating,
            );
            let Some(state) = state else { continue };
            for address in endpoint.addresses.iter().filter(|address| address.is_ipv4() == ipv4) {
                out.push(Candidate {
                    key: (*address, slice_port.port, port.protocol),
                    cluster: None,
                    state,
                    local_node: endpoint.node.as_ref() == Some(&site.node),
                    zone: endpoint.zone.clone(),
                    for_zones: endpoint.for_zones.clone(),
                    for_nodes: endpoint.for_nodes.clone(),
                    failing: false,
                });
            }
        }
    }
}

/// Other clusters', matched in the same way.
fn remote(inputs: &Inputs, service: &ServiceRow, port: &ServicePort, ipv4: bool, out: &mut Vec<Candidate>) {
    for row in inputs.remote.by_index(&service.name) {
        let cluster: Option<Arc<str>> = match row.source() {
            Source::Cluster(name) => Some(name.as_str().into()),
            _ => None,
        };
        for (ip, backend) in row.backends.iter().filter(|(ip, _)| ip.is_ipv4() == ipv4) {
            let of_port = backend.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol);
            out.extend(of_port.map(|p| Candidate {
                key: (*ip, p.port, p.protocol),
                cluster: cluster.clone(),
                state: published(backend.state, service),
                local_node: false,
                zone: backend.zone.clone(),
                for_zones: backend.for_zones.to_vec(),
                for_nodes: Vec::new(),
                failing: false,
            }));
        }
    }
}
