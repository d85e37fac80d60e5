//! The tables of the data flow picture, left to right: intent, desired, and what the targets hold of the desired.

use super::drive::Applied;
use super::interfaces::InterfaceRow;
use super::show::Catalogue;
use std::sync::Arc;
use tombolo_base::table::{Row, Table, Writer};
use tombolo_kubernetes::Tables;
use tombolo_policy::{CookieRow, EndpointPolicy, PolicyRow};
use tombolo_service::mcs::{ExportStatus, ImportRow, RemoteExport};
use tombolo_service::names::NameRow;
use tombolo_service::{BackendRow, FailedProbe, FrontendRow, HostPortRow, LbAssignment, RemoteService};
use tombolo_topology::bgp::{AdvertRow, ConditionRow, NodeConfigRow, PeerRow};
use tombolo_topology::{
    CidrIdentity, ConflictRow, EgressGatewayRow, EgressRow, EndpointRow, IdentityRow, LearnedRoute, NodePath,
    PrefixEntry, PrefixRow, ReservedRow, RouteEntry, WireguardPeer,
};

/// A table and its writer shared by several sources.
fn shared<R: Row>() -> (Table<R>, Arc<Writer<R>>) {
    let (table, writer) = Table::new();
    (table, Arc::new(writer))
}

/// What is known and wanted, as the sources say it.
#[derive(Clone)]
pub(crate) struct Intent {
    /// Kubernetes objects; nodes also from etcd.
    pub(crate) kube: Tables,
    /// Identities of all clusters.
    pub(crate) identities: Table<IdentityRow>,
    /// Addresses of pods and nodes everywhere.
    pub(crate) prefixes: Table<PrefixRow>,
    /// What other clusters share.
    pub(crate) remote_services: Table<RemoteService>,
    /// What other clusters export by the MCS API, and this one as it stands in etcd.
    pub(crate) exports: Table<RemoteExport>,
    /// LoadBalancer addresses and clusterset IPs.
    pub(crate) addresses: Table<LbAssignment>,
    /// Which backends answer this node's probes.
    pub(crate) probes: Table<FailedProbe>,
    /// What BGP peers taught.
    pub(crate) learned: Table<LearnedRoute>,
    /// What this cluster has besides pods and nodes.
    pub(crate) reserved: Table<ReservedRow>,
    /// This node's pods.
    pub(crate) endpoints: Table<EndpointRow>,
    /// Those of them with ports of the node.
    pub(crate) host_ports: Table<HostPortRow>,
}

/// The pens of the intent tables that the rooms write.
pub(crate) struct IntentWriters {
    /// Of the identities: the mesh and the local pods.
    pub(crate) identities: Arc<Writer<IdentityRow>>,
    /// Of the prefixes: the mesh and the local pods.
    pub(crate) prefixes: Arc<Writer<PrefixRow>>,
    /// Of what other clusters share: the mesh.
    pub(crate) remote_services: Arc<Writer<RemoteService>>,
    /// Of the exports: the mesh.
    pub(crate) exports: Arc<Writer<RemoteExport>>,
    /// Of the LoadBalancer addresses: the mesh, which follows the own cluster's etcd too.
    pub(crate) addresses: Arc<Writer<LbAssignment>>,
    /// Of the probes: the prober.
    pub(crate) probes: Arc<Writer<FailedProbe>>,
    /// Of the learned routes: BGP.
    pub(crate) learned: Arc<Writer<LearnedRoute>>,
    /// Of the reserved prefixes: the configuration and the pools of the manifests.
    pub(crate) reserved: Arc<Writer<ReservedRow>>,
    /// Of the pods: the endpoint store.
    pub(crate) endpoints: Writer<EndpointRow>,
    /// Of the host ports: the pods and the endpoints together.
    pub(crate) host_ports: Arc<Writer<HostPortRow>>,
}

impl Intent {
    /// Empty tables beside those of the manifests.
    pub(crate) fn new(kube: Tables) -> (Self, IntentWriters) {
        let (identities, identity_writer) = shared();
        let (prefixes, prefix_writer) = shared();
        let (remote_services, remote_writer) = shared();
        let (exports, export_writer) = shared();
        let (addresses, address_writer) = shared();
        let (probes, probe_writer) = shared();
        let (learned, learned_writer) = shared();
        let (reserved, reserved_writer) = shared();
        let (endpoints, endpoint_writer) = Table::new();
        let (host_ports, host_port_writer) = shared();
        let writers = IntentWriters {
            identities: identity_writer,
            prefixes: prefix_writer,
            remote_services: remote_writer,
            exports: export_writer,
            addresses: address_writer,
            probes: probe_writer,
            learned: learned_writer,
            reserved: reserved_writer,
            endpoints: endpoint_writer,
            host_ports: host_port_writer,
        };
        (
            Self {
                kube,
                identities,
                prefixes,
                remote_services,
                exports,
                addresses,
                probes,
                learned,
                reserved,
                endpoints,
                host_ports,
            },
            writers,
        )
    }

    fn list(&self, catalogue: &mut Catalogue) {
        catalogue.add(&self.kube.nodes);
        catalogue.add(&self.kube.services);
        catalogue.add(&self.kube.slices);
        catalogue.add(&self.kube.pods);
        catalogue.add(&self.kube.namespaces);
        catalogue.add(&self.kube.rules);
        catalogue.add(&self.kube.cidr_groups);
        catalogue.add(&self.kube.exports);
        catalogue.add(&self.kube.imports);
        catalogue.add(&self.kube.pools);
        catalogue.add(&self.kube.bgp_cluster_configs);
        catalogue.add(&self.kube.bgp_peer_configs);
        catalogue.add(&self.kube.bgp_advertisements);
        catalogue.add(&self.kube.bgp_overrides);
        catalogue.add(&self.kube.bgp_peer_policies);
        catalogue.add(&self.kube.egress_policies);
        catalogue.add(&self.kube.pod_pools);
        catalogue.add(&self.kube.bgp_secrets);
        catalogue.add(&self.identities);
        catalogue.add(&self.prefixes);
        catalogue.add(&self.remote_services);
        catalogue.add(&self.exports);
        catalogue.add(&self.addresses);
        catalogue.add(&self.probes);
        catalogue.add(&self.learned);
        catalogue.add(&self.reserved);
        catalogue.add(&self.endpoints);
        catalogue.add(&self.host_ports);
    }
}

/// What the planners want the targets to hold.
#[derive(Clone)]
pub(crate) struct Desired {
    /// How to reach each node.
    pub(crate) paths: Table<NodePath>,
    /// Which address is whose, at which node.
    pub(crate) entries: Table<PrefixEntry>,
    /// Kernel routes.
    pub(crate) routes: Table<RouteEntry>,
    /// WireGuard peers.
    pub(crate) peers: Table<WireguardPeer>,
    /// What several clusters claim.
    pub(crate) conflicts: Table<ConflictRow>,
    /// Services' addresses.
    pub(crate) frontends: Table<FrontendRow>,
    /// Services' members.
    pub(crate) backends: Table<BackendRow>,
    /// The status of this cluster's `ServiceExport` objects.
    pub(crate) service_exports: Table<ExportStatus>,
    /// What is imported from the clusters that export it.
    pub(crate) service_imports: Table<ImportRow>,
    /// What DNS says.
    pub(crate) names: Table<NameRow>,
    /// Compiled policies.
    pub(crate) policies: Table<PolicyRow>,
    /// Which pod has which policy.
    pub(crate) endpoint_policies: Table<EndpointPolicy>,
    /// Identities of addresses outside the mesh.
    pub(crate) cidrs: Table<CidrIdentity>,
    /// What the numbers in policies' entries stand for.
    pub(crate) policy_rules: Table<CookieRow>,
    /// Pods' hooks.
    pub(crate) interfaces: Table<InterfaceRow>,
    /// How pods leave the mesh.
    pub(crate) egress: Table<EgressRow>,
    /// What the gateways of egress policies come to.
    pub(crate) egress_gateways: Table<EgressGatewayRow>,
    /// BGP sessions.
    pub(crate) bgp_peers: Table<PeerRow>,
    /// BGP adverts.
    pub(crate) bgp_adverts: Table<AdvertRow>,
    /// What the BGP objects ask for and cannot have: their status.
    pub(crate) bgp_conditions: Table<ConditionRow>,
    /// The sessions as they are: the status of `CiliumBGPNodeConfig`.
    pub(crate) bgp_node_configs: Table<NodeConfigRow>,
}

/// The planners' pens.
pub(crate) struct DesiredWriters {
    /// Of the topology planner.
    pub(crate) topology: tombolo_topology::plan::Outputs,
    /// Of the service planner.
    pub(crate) services: tombolo_service::plan::Outputs,
    /// Of the planner of exports and imports; it also writes services and slices of the intent.
    pub(crate) mcs: (Writer<ExportStatus>, Writer<ImportRow>),
    /// Of the planner of names.
    pub(crate) names: Writer<NameRow>,
    /// Of the policy compiler.
    pub(crate) policies: super::policy::Pens,
    /// Of the interface planner.
    pub(crate) interfaces: Writer<InterfaceRow>,
    /// Of the planner of egress gateways.
    pub(crate) egress: super::egress::Pens,
    /// Of the BGP planner.
    pub(crate) bgp: super::bgp::Pens,
    /// Of whoever follows the sessions.
    pub(crate) bgp_status: Writer<NodeConfigRow>,
}

impl Desired {
    /// Empty tables.
    pub(crate) fn new() -> (Self, DesiredWriters) {
        let (paths, entries, routes, peers) = (Table::new(), Table::new(), Table::new(), Table::new());
        let conflicts = Table::new();
        let (frontends, backends) = (Table::new(), Table::new());
        let (service_exports, service_imports, names) = (Table::new(), Table::new(), Table::new());
        let (policies, endpoint_policies, interfaces) = (Table::new(), Table::new(), Table::new());
        let (cidrs, policy_rules) = (Table::new(), Table::new());
        let (bgp_peers, bgp_adverts, bgp_conditions) = (Table::new(), Table::new(), Table::new());
        let bgp_node_configs = Table::new();
        let (egress, egress_gateways) = (Table::new(), Table::new());
        let writers = DesiredWriters {
            topology: tombolo_topology::plan::Outputs {
                paths: paths.1,
                entries: entries.1,
                routes: routes.1,
                peers: peers.1,
                conflicts: conflicts.1,
            },
            services: tombolo_service::plan::Outputs { frontends: frontends.1, backends: backends.1 },
            mcs: (service_exports.1, service_imports.1),
            names: names.1,
            policies: super::policy::Pens {
                policies: policies.1,
                endpoints: endpoint_policies.1,
                cidrs: cidrs.1,
                cookies: policy_rules.1,
            },
            interfaces: interfaces.1,
            egress: super::egress::Pens { rows: egress.1, gateways: egress_gateways.1 },
            bgp: super::bgp::Pens {
                peers: bgp_peers.1,
                adverts: bgp_adverts.1,
                conditions: bgp_conditions.1,
            },
            bgp_status: bgp_node_configs.1,
        };
        let tables = Self {
            paths: paths.0,
            entries: entries.0,
            routes: routes.0,
            peers: peers.0,
            conflicts: conflicts.0,
            frontends: frontends.0,
            backends: backends.0,
            service_exports: service_exports.0,
            service_imports: service_imports.0,
            names: names.0,
            policies: policies.0,
            endpoint_policies: endpoint_policies.0,
            cidrs: cidrs.0,
            policy_rules: policy_rules.0,
            interfaces: interfaces.0,
            egress: egress.0,
            egress_gateways: egress_gateways.0,
            bgp_peers: bgp_peers.0,
            bgp_adverts: bgp_adverts.0,
            bgp_conditions: bgp_conditions.0,
            bgp_node_configs: bgp_node_configs.0,
        };
        (tables, writers)
    }

    fn list(&self, catalogue: &mut Catalogue) {
        catalogue.add(&self.paths);
        catalogue.add(&self.entries);
        catalogue.add(&self.routes);
        catalogue.add(&self.peers);
        catalogue.add(&self.conflicts);
        catalogue.add(&self.frontends);
        catalogue.add(&self.backends);
        catalogue.add(&self.service_exports);
        catalogue.add(&self.service_imports);
        catalogue.add(&self.names);
        catalogue.add(&self.policies);
        catalogue.add(&self.endpoint_policies);
        catalogue.add(&self.cidrs);
        catalogue.add(&self.policy_rules);
        catalogue.add(&self.interfaces);
        catalogue.add(&self.egress);
        catalogue.add(&self.egress_gateways);
        catalogue.add(&self.bgp_peers);
        catalogue.add(&self.bgp_adverts);
        catalogue.add(&self.bgp_conditions);
        catalogue.add(&self.bgp_node_configs);
    }
}

/// What the datapath holds of the desired rows, for those who must not go on before it does.
#[derive(Clone, Default)]
pub(crate) struct Held {
    /// Node rows.
    pub(crate) paths: Applied<NodePath>,
    /// Prefix rows.
    pub(crate) entries: Applied<PrefixEntry>,
    /// Services.
    pub(crate) frontends: Applied<FrontendRow>,
    /// Backends.
    pub(crate) backends: Applied<BackendRow>,
    /// Policies.
    pub(crate) policies: Applied<PolicyRow>,
    /// Hooks.
    pub(crate) interfaces: Applied<InterfaceRow>,
    /// Ways out of the mesh.
    pub(crate) egress: Applied<EgressRow>,
}

/// Every table under its name, for `tombolo show`.
pub(crate) fn catalogue(intent: &Intent, desired: &Desired) -> Catalogue {
    let mut catalogue = Catalogue::default();
    intent.list(&mut catalogue);
    desired.list(&mut catalogue);
    catalogue
}
