//! Kernel routes: to remote pods through the overlay, to whatever BGP taught otherwise, and an end for what comes to this
//! node's own pod prefixes.

use super::Known;
use crate::rows::{LearnedRoute, PathKind, RouteEntry, RouteOrigin};
use tombolo_base::prefix::Prefix;
use tombolo_base::source::Source;
use tombolo_base::table::Snapshot;

/// The desired route of one prefix.
///
/// In overlay mode a remote pod prefix goes to the tunnel device whatever BGP says; in direct mode BGP's route, or
/// the node's default route, carries it. This node's own pod prefix is unreachable but for its pods: without that a packet
/// to a pod that is gone would follow the default route back to the router that sent it, in circles and unencrypted.
#[must_use]
pub fn route_entry(prefix: Prefix, known: Known<'_>, learned: &Snapshot<LearnedRoute>) -> Option<RouteEntry> {
    let config = known.config;
    let local = known.local();
    let source_address = local
        .as_ref()
        .and_then(|view| view.internal.iter().copied().find(|ip| ip.is_ipv4() == prefix.is_ipv4()));
    let owner = known.of_cidr(prefix);
    let remote = owner.as_ref().filter(|view| !view.is_local(config));
    if let (PathKind::Overlay, Some(view)) = (config.path, remote) {
        let underlay = view.tunnel_endpoint(local.as_ref())?;
        return Some(RouteEntry {
            source: view.source,
            prefix,
            origin: RouteOrigin::Overlay,
            next_hops: std::collections::BTreeSet::new(),
            device: Some(config.overlay_device.clone()),
            source_address,
            mtu: Some(config.mtu.towards(underlay)),
        });
    }
    if let Some(view) = owner.as_ref().filter(|view| view.is_local(config)) {
        return Some(RouteEntry {
            source: view.source,
            prefix,
            origin: RouteOrigin::Own,
            next_hops: std::collections::BTreeSet::new(),
            device: None,
            source_address: None,
            mtu: None,
        });
    }
    if config.connected.contains(&prefix) {
        return None;
    }
    let row = learned.from_key(&(prefix, Source::Manifests)).next().filter(|row| row.prefix == prefix)?;
    Some(RouteEntry {
        source: row.source,
        prefix,
        origin: RouteOrigin::Bgp,
        next_hops: row.next_hops.clone(),
        device: None,
        // Remote pods see the node by its internal address, so that the answer takes the same path back.
        source_address: remote.and(source_address),
        mtu: remote.map(|_| config.mtu.smallest()),
    })
}
