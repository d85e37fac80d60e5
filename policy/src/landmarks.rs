//! Addresses that policies know apart from others of their kind.

use std::collections::BTreeSet;
use std::net::IpAddr;
use tombolo_base::ids::IdentityId;
use tombolo_base::labels::Labels;

/// What is known of places.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Landmarks {
    /// Where the API server answers: the endpoints of Service `default/kubernetes`. Empty: nobody knows.
    pub apiservers: BTreeSet<IpAddr>,
    /// This node's own addresses in the underlay.
    pub own: BTreeSet<IpAddr>,
    /// Other nodes' addresses in the underlay.
    pub nodes: BTreeSet<IpAddr>,
    /// Whether rules about prefixes take nodes, too (`policy.cidr_match: [nodes]`).
    pub cidrs_take_nodes: bool,
}

impl Landmarks {
    /// Whether the API server is on this node.
    #[must_use]
    pub fn own_apiserver(&self) -> bool {
        !self.own.is_disjoint(&self.apiservers)
    }
}

/// Labels of a fixed identity, `reserved:NAME`. A node that the API server is on remains a node.
#[must_use]
pub fn reserved(id: IdentityId) -> Labels {
    match id {
        IdentityId::KUBE_APISERVER => labelled(IdentityId::REMOTE_NODE, true),
        _ => labelled(id, false),
    }
}

/// The same of a party at one of the API server's addresses, or not.
#[must_use]
pub fn labelled(id: IdentityId, apiserver: bool) -> Labels {
    let names = [id, IdentityId::KUBE_APISERVER].into_iter().take(if apiserver { 2 } else { 1 });
    Labels::reserved_all(names.filter_map(IdentityId::reserved_name))
}
