//! The tables that a source of Kubernetes objects writes.

use crate::rows::{NamespaceRow, PodRow};
use std::sync::Arc;
use tombolo_base::source::{Source, SourceState};
use tombolo_base::table::{Table, Writer};
use tombolo_policy::{CidrGroupRow, RuleRow};
use tombolo_service::mcs::{ExportRow, ImportRequest};
use tombolo_service::pools::LbPool;
use tombolo_service::{ServiceRow, SliceRow};
use tombolo_topology::bgp::PeerPolicyRow;
use tombolo_topology::bgp::intent::{
    AdvertisementRow, ClusterConfigRow, OverrideRow, PeerConfigRow, PodPoolRow, SecretRow,
};
use tombolo_topology::{EgressPolicyRow, NodeRow};

macro_rules! tables {
    ($($(#[$doc:meta])* $field:ident: $row:ty),* $(,)?) => {
        /// The reading side of every table a source of Kubernetes objects writes.
        #[derive(Clone, Debug)]
        pub struct Tables {
            $($(#[$doc])* pub $field: Table<$row>,)*
        }

        /// The writing side; writers are shared where other sources write the same table.
        #[derive(Clone, Debug)]
        pub struct Writers {
            $($(#[$doc])* pub $field: Arc<Writer<$row>>,)*
        }

        impl Tables {
            /// Empty tables and their writers.
            #[must_use]
            pub fn new() -> (Self, Writers) {
                $(let $field = Table::<$row>::new();)*
                (Self { $($field: $field.0,)* }, Writers { $($field: Arc::new($field.1),)* })
            }
        }

        impl Writers {
            /// Sets how far `source` has come in all tables.
            pub(crate) fn set_source(&self, source: &Source, state: SourceState) {
                $(self.$field.set_source(source, state);)*
            }
        }
    };
}

tables! {
    /// Nodes; remote clusters' nodes come from other sources.
    nodes: NodeRow,
    /// Namespaces.
    namespaces: NamespaceRow,
    /// Pods.
    pods: PodRow,
    /// Services.
    services: ServiceRow,
    /// EndpointSlices.
    slices: SliceRow,
    /// ServiceExports.
    exports: ExportRow,
    /// ServiceImports: addresses asked for.
    imports: ImportRequest,
    /// Policies of all kinds.
    rules: RuleRow,
    /// CiliumCIDRGroups.
    cidr_groups: CidrGroupRow,
    /// CiliumLoadBalancerIPPools.
    pools: LbPool,
    /// CiliumBGPClusterConfigs.
    bgp_cluster_configs: ClusterConfigRow,
    /// CiliumBGPPeerConfigs.
    bgp_peer_configs: PeerConfigRow,
    /// CiliumBGPAdvertisements.
    bgp_advertisements: AdvertisementRow,
    /// CiliumBGPNodeConfigOverrides.
    bgp_overrides: OverrideRow,
    /// BGPPeerPolicies.
    bgp_peer_policies: PeerPolicyRow,
    /// CiliumEgressGatewayPolicies.
    egress_policies: EgressPolicyRow,
    /// CiliumPodIPPools.
    pod_pools: PodPoolRow,
    /// Secrets, as far as BGP may use them.
    bgp_secrets: SecretRow,
}
