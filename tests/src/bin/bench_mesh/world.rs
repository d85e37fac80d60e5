//! The clusters that are read: keys and values as an agent publishes them, in cache layout, many clusters in one etcd.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tombolo_base::ids::{ClusterId, ClusterName, IdentityId, MaxClusters};
use tombolo_base::labels::Labels;
use tombolo_base::prefix::Prefix;
use tombolo_clustermesh::wire::config::ClusterConfig;
use tombolo_clustermesh::wire::node::Address;
use tombolo_clustermesh::wire::{Capabilities, IpEntry, KINDS, Kind, Layout, Node};

use crate::Failure;

/// A key and its value.
pub(crate) type Entry = (String, Vec<u8>);

/// How much there is of what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) clusters: u32,
    /// Of each cluster.
    pub(crate) nodes: u32,
    pub(crate) identities: u32,
    pub(crate) endpoints: u32,
}

impl Size {
    /// The mesh that has room for them.
    pub(crate) const fn max(self) -> MaxClusters {
        if self.clusters > 255 { MaxClusters::C511 } else { MaxClusters::C255 }
    }

    pub(crate) const fn all_endpoints(self) -> u64 {
        self.clusters as u64 * self.endpoints as u64
    }
}

/// Before the moment in the names of pods that say when they were written.
pub(crate) const TIMED: &str = "at-";

/// The name of a cluster, from number 1 on.
pub(crate) fn name(cluster: u32) -> String {
    format!("c{cluster:03}")
}

/// One of the clusters. Every fourth one is of IPv6.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    number: u32,
    name: String,
    id: ClusterId,
    size: Size,
}

impl Cluster {
    pub(crate) fn new(number: u32, size: Size) -> Result<Self, Failure> {
        let id = ClusterId::new(number, size.max())?;
        Ok(Self { number, name: name(number), id, size })
    }

    const fn is_ipv6(&self) -> bool {
        self.number.is_multiple_of(4)
    }

    fn key(&self, kind: Kind, name: &str) -> String {
        kind.key(Layout::Cache, &self.name, name)
    }

    /// The underlay address of a node.
    fn host(&self, node: u32) -> IpAddr {
        if self.is_ipv6() {
            Ipv6Addr::from(
                0xfd10_0000_0000_0000_0000_0000_0000_0000_u128
                    + (u128::from(self.number) << 64)
                    + u128::from(node)
                    + 1,
            )
            .into()
        } else {
            Ipv4Addr::from(0xac10_0000 + self.number * 1024 + node).into()
        }
    }

    /// An address of a pod, from number 2 on, on a node; 1 is the node's own.
    fn pod(&self, node: u32, pod: u32) -> IpAddr {
        if self.is_ipv6() {
            let net = (u128::from(self.number) << 80) + (u128::from(node) << 64);
            Ipv6Addr::from(0xfd00_0010_0000_0000_0000_0000_0000_0000_u128 + net + u128::from(pod)).into()
        } else {
            Ipv4Addr::from(0x0a00_0000 + self.number * 8192 + node * 64 + pod).into()
        }
    }

    /// A node; `turn` makes it a little different.
    pub(crate) fn node(&self, node: u32, turn: u32) -> Result<Entry, Failure> {
        let name = format!("{}-worker-{node:03}", self.name);
        let mut entry = Node::new(&self.name, u32::from(self.id.get()), &name);
        entry.addresses = vec![
            Address { kind: "InternalIP".into(), ip: self.host(node) },
            Address { kind: "CiliumInternalIP".into(), ip: self.pod(node, 1) },
        ];
        let len = if self.is_ipv6() { 64 } else { 26 };
        let cidr = Prefix::new(self.pod(node, 0), len).ok_or("a pod CIDR")?;
        if self.is_ipv6() { &mut entry.ipv6_pod_cidrs } else { &mut entry.ipv4_pod_cidrs }.push(cidr);
        entry.source = "custom-resource".into();
        entry.boot_id =
            format!("7d1c9f6e-0a5b-4c3d-8e2f-{:012x}", u64::from(self.number) << 20 | u64::from(node)).into();
        let labels = [
            ("kubernetes.io/arch", "amd64".to_owned()),
            ("kubernetes.io/hostname", name.clone()),
            ("kubernetes.io/os", "linux".to_owned()),
            ("topology.kubernetes.io/region", "eu-central-1".to_owned()),
            (
                "topology.kubernetes.io/zone",
                format!("eu-central-1{}", if node.is_multiple_of(2) { 'a' } else { 'b' }),
            ),
        ];
        let turn = (turn > 0).then(|| ("turn", turn.to_string()));
        let labels = labels.into_iter().chain(turn).map(|(key, value)| (key.into(), value.into()));
        entry.labels = labels.collect();
        Ok((self.key(Kind::Nodes, &name), entry.encode()?))
    }

    fn identity_number(&self, identity: u32) -> IdentityId {
        let (first, _) = self.id.identity_range(self.size.max());
        IdentityId(first.0 + 256 + identity)
    }

    /// A set of labels.
    pub(crate) fn identity(&self, identity: u32, turn: u32) -> Entry {
        let namespace = format!("team-{:02}", identity % 10);
        let mut pairs = vec![
            ("app".to_owned(), format!("app-{identity:04}")),
            ("io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name".to_owned(), namespace.clone()),
            ("io.cilium.k8s.policy.cluster".to_owned(), self.name.clone()),
            ("io.cilium.k8s.policy.serviceaccount".to_owned(), "default".to_owned()),
            ("io.kubernetes.pod.namespace".to_owned(), namespace),
        ];
        if turn > 0 {
            pairs.push(("turn".to_owned(), turn.to_string()));
        }
        let number = self.identity_number(identity).0.to_string();
        (self.key(Kind::Identities, &number), Labels::k8s(pairs).to_string().into_bytes())
    }

    /// The address of a pod.
    pub(crate) fn endpoint(&self, endpoint: u32, turn: u32) -> Result<Entry, Failure> {
        let (node, pod) = (endpoint % self.size.nodes, endpoint / self.size.nodes + 2);
        let identity = (endpoint + turn) % self.size.identities;
        let pod_name =
            format!("app-{identity:04}-7c9f6d5b8c-{:05x}", endpoint.wrapping_mul(2_654_435_761) & 0xf_ffff);
        let namespace = format!("team-{:02}", identity % 10);
        let (ip, host) = (self.pod(node, pod), self.host(node));
        let entry = IpEntry::pod(ip, self.identity_number(identity), host, &namespace, &pod_name);
        Ok((self.key(Kind::Ips, &entry.key_name()), entry.encode()?))
    }

    /// The address of a pod whose name says when it was written.
    pub(crate) fn timed_endpoint(&self, endpoint: u32, micros: u64) -> Result<Entry, Failure> {
        let (node, pod) = (endpoint % self.size.nodes, endpoint / self.size.nodes + 2);
        let identity = self.identity_number(endpoint % self.size.identities);
        let name = format!("{TIMED}{micros}");
        let entry = IpEntry::pod(self.pod(node, pod), identity, self.host(node), "timed", &name);
        Ok((self.key(Kind::Ips, &entry.key_name()), entry.encode()?))
    }

    /// The configuration and the canaries.
    fn frame(&self) -> Result<Vec<Entry>, Failure> {
        let capabilities = Capabilities {
            synced_canaries: true,
            cached: true,
            max_connected_clusters: self.size.max().max(),
            ..Capabilities::default()
        };
        let config = ClusterConfig { id: u32::from(self.id.get()), capabilities };
        let canary = |kind: Kind| (kind.canary(Layout::Cache, &self.name), b"2026-11-27T00:00:00Z".to_vec());
        let config = (format!("cilium/cluster-config/{}", self.name), config.encode()?);
        Ok(KINDS.into_iter().map(canary).chain([config]).collect())
    }

    /// Everything that it publishes at first.
    pub(crate) fn entries(&self) -> Result<Vec<Entry>, Failure> {
        let mut entries = self.frame()?;
        for node in 0..self.size.nodes {
            entries.push(self.node(node, 0)?);
        }
        entries.extend((0..self.size.identities).map(|identity| self.identity(identity, 0)));
        for endpoint in 0..self.size.endpoints {
            entries.push(self.endpoint(endpoint, 0)?);
        }
        Ok(entries)
    }
}

/// The cluster that reads.
pub(crate) fn home() -> Result<ClusterName, Failure> {
    Ok(ClusterName::new("home")?)
}
