//! An agent of cluster a: a real publisher with one pod and one service.

use super::{Etcd, Pki, connection, until};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tombolo_base::ids::{ClusterId, ClusterName, IdentityId, MaxClusters};
use tombolo_base::labels::Labels;
use tombolo_clustermesh::MeshError;
use tombolo_clustermesh::publisher::{self, Desired, PublisherConfig, PublisherHandle};
use tombolo_clustermesh::rows::Assignment;
use tombolo_clustermesh::wire::export::ExportPort;
use tombolo_clustermesh::wire::{IpEntry, Node, Service, ServiceExport, node, service};

pub(crate) fn name(text: &str) -> ClusterName {
    ClusterName::new(text).unwrap()
}

pub(crate) fn id(number: u32) -> ClusterId {
    ClusterId::new(number, MaxClusters::C255).unwrap()
}

pub(crate) fn labels(app: &str) -> Labels {
    Labels::k8s([
        ("app", app),
        ("io.cilium.k8s.policy.cluster", "a"),
        ("io.kubernetes.pod.namespace", "shop"),
    ])
}

/// An agent of cluster a.
pub(crate) struct Agent {
    pub(crate) handle: PublisherHandle,
    task: JoinHandle<()>,
    cancel: CancellationToken,
    pub(crate) number: u8,
    exports: bool,
}

impl Agent {
    pub(crate) fn start(
        etcd: &Etcd,
        pki: &Pki,
        number: u8,
        state: &Path,
        change: impl FnOnce(&mut PublisherConfig),
    ) -> Self {
        let node = format!("n{number}");
        let state = state.join(&node);
        let mut config =
            PublisherConfig::new(name("a"), id(1), node.into(), etcd.config(pki, "admin-a"), state);
        config.connection = connection();
        change(&mut config);
        let exports = config.exports;
        let cancel = CancellationToken::new();
        let (handle, task) = publisher::start(config, cancel.clone());
        Self { handle, task, cancel, number, exports }
    }

    /// Its node, one pod, its part of the cluster's keys.
    pub(crate) async fn publish(&self, nodes: &[&str]) -> IdentityId {
        let identity = self.handle.identities();
        let mut found = Err(MeshError::Stopped);
        until("an identity", async || {
            found = identity.allocate(&labels("web")).await;
            found.is_ok()
        })
        .await;
        let identity = found.unwrap();
        let n = self.number;
        let host: IpAddr = [192, 0, 2, n].into();
        let mut node = Node::new("a", 1, &format!("n{n}"));
        node.addresses.push(node::Address { kind: "InternalIP".into(), ip: host });
        node.ipv4_pod_cidrs.push(format!("10.1.{n}.0/24").parse().unwrap());
        let four = IpEntry::pod([10, 1, n, 2].into(), identity, host, "shop", "web-0");
        let six = IpEntry::pod(format!("fd00:10:1:{n}::2").parse().unwrap(), identity, host, "shop", "web-0");
        self.handle.set_node([
            Desired::node(&node).unwrap(),
            Desired::ip(&four).unwrap(),
            Desired::ip(&six).unwrap(),
        ]);
        let mut web = Service::new("a", 1, "shop", "web");
        let port = service::L4 { protocol: "TCP".into(), port: 8080 };
        web.backends.insert([10, 1, 1, 2].into(), [(Arc::from("http"), port)].into());
        let service_name =
            tombolo_service::rows::ServiceName { namespace: "shop".into(), name: "web".into() };
        let assignment =
            Assignment { addresses: [IpAddr::from([203, 0, 113, 1])].into(), pools: BTreeSet::new() };
        let handle = self.handle.clone();
        let mut export = ServiceExport::new("a", "shop", "web", 1_700_000_000);
        let (name, protocol) = (Arc::from("http"), Arc::from("TCP"));
        export.ports.push(ExportPort { name, protocol, app_protocol: None, port: 80 });
        let mut cluster =
            vec![Desired::service(&web).unwrap(), Desired::assignment(&service_name, &assignment).unwrap()];
        cluster.extend(self.exports.then(|| Desired::export(&export).unwrap()));
        tokio::spawn(async move {
            let mut leader = handle.leader();
            while leader.wait_for(|leads| *leads).await.is_ok() {
                assert!(handle.set_cluster(cluster.clone()) || !*leader.borrow());
                leader.wait_for(|leads| !*leads).await.unwrap();
                assert!(!handle.set_cluster(cluster.clone()) || *leader.borrow());
            }
        });
        self.handle.set_nodes(nodes.iter().map(|node| Arc::from(*node)));
        identity
    }

    pub(crate) async fn stop(self) {
        self.cancel.cancel();
        self.task.await.unwrap();
    }
}

/// Keys of a prefix with their leases and revisions, as root sees them.
pub(crate) async fn raw(etcd: &Etcd, pki: &Pki, prefix: &str) -> Vec<(String, i64, i64)> {
    let options = etcd_client::GetOptions::new().with_prefix();
    let client = etcd.client(pki, "root").await;
    let found = client.kv_client().get(prefix, Some(options)).await.unwrap();
    let of = |kv: &etcd_client::KeyValue| (kv.key_str().unwrap().to_owned(), kv.lease(), kv.mod_revision());
    found.kvs().iter().map(of).collect()
}
