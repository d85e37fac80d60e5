//! Everything that was accepted from the other clusters, as one JSON object.

use super::core::Follower;
use super::status::ClusterStatus;
use super::store::Store;
use crate::wire::service::L4;
use crate::wire::slice::{Endpoint, Port};
use crate::wire::{EndpointSlice, Kind, Reason, Record, Service};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;

/// What was accepted and what was not. Objects that two clusters claim stand once: under the cluster that is first by name.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Dump {
    /// Nodes by `cluster/name`, in wire form.
    pub nodes: BTreeMap<String, Value>,
    /// Global services by `cluster/namespace/name`, in wire form.
    pub services: BTreeMap<String, Value>,
    /// Exports of the Multi-Cluster Services API by `cluster/namespace/name`, in wire form.
    pub exports: BTreeMap<String, Value>,
    /// Labels of identities, as text, by number.
    pub identities: BTreeMap<u32, String>,
    /// Addresses by prefix, single ones without a mask.
    pub ips: BTreeMap<String, DumpedIp>,
    /// How far each cluster is read.
    pub status: DumpStatus,
    /// Keys whose present value is refused, by reason, at most 1024 of each cluster and kind.
    pub rejected: BTreeMap<Reason, Vec<String>>,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DumpedIp {
    /// Its identity.
    pub id: u32,
    /// The underlay address of the node it lives on.
    pub host: Option<IpAddr>,
    /// The encryption key's number: 0 none, 255 WireGuard.
    pub key: u8,
}

/// The state of all clusters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DumpStatus {
    /// By name.
    pub clusters: Vec<DumpedCluster>,
}

/// The state of one cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DumpedCluster {
    /// Its name.
    pub name: String,
    /// Connected, configuration read, every kind listed.
    pub ready: bool,
    /// One sentence: what it is doing or what is wrong, and what to try.
    pub reason: String,
}

impl From<&ClusterStatus> for DumpedCluster {
    fn from(status: &ClusterStatus) -> Self {
        Self { name: status.name.clone(), ready: status.ready, reason: status.status.clone() }
    }
}

impl Dump {
    fn add(&mut self, cluster: &str, name: &str, record: &Record) -> Result<(), serde_json::Error> {
        let json = |record: &Record| record.encode().and_then(|value| serde_json::from_slice(&value));
        match record {
            Record::Node(node) => {
                self.nodes.entry(format!("{cluster}/{}", node.name)).or_insert(json(record)?);
            }
            Record::Service(_) => {
                self.services.entry(format!("{cluster}/{name}")).or_insert(json(record)?);
            }
            Record::Identity(id, labels) => {
                self.identities.entry(id.0).or_insert_with(|| labels.to_string());
            }
            Record::Ip(entry) => {
                let ip = DumpedIp {
                    id: entry.identity.0,
                    host: entry.residence.host_ip,
                    key: entry.residence.encryption_key,
                };
                self.ips.entry(entry.prefix.short()).or_insert(ip);
            }
            Record::ServiceExport(_) => {
                self.exports.entry(format!("{cluster}/{name}")).or_insert(json(record)?);
            }
            // Of the own cluster only, which is not dumped; slices are told as the services they make.
            Record::Assignment(..) | Record::EndpointSlice(_) | Record::Raw(_) => {}
        }
        Ok(())
    }

    /// Tells services that are published as slices only in the form of a service: what slices do not carry (frontends, selector) stays
    /// empty.
    fn add_slices(
        &mut self,
        cluster: &str,
        id: u32,
        slices: impl Iterator<Item = Arc<EndpointSlice>>,
    ) -> Result<(), serde_json::Error> {
        let mut made: BTreeMap<String, Service> = BTreeMap::new();
        for slice in slices {
            let Some(name) = slice.service() else { continue };
            let key = format!("{cluster}/{}/{name}", slice.namespace);
            let service =
                made.entry(key).or_insert_with(|| Service::new(cluster, id, &slice.namespace, name));
            (service.include_external, service.shared) = (true, true);
            let l4 = |port: &Port| {
                let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
                let name = port.name.clone().unwrap_or_else(|| "".into());
                Some((name, L4 { protocol, port: port.port? }))
            };
            let usable = |endpoint: &&Endpoint| {
                let ready = endpoint.ready.unwrap_or(true);
                ready || endpoint.serving.unwrap_or(ready)
            };
            for ip in slice.endpoints.iter().filter(usable).flat_map(|endpoint| &endpoint.addresses) {
                service.backends.entry(*ip).or_default().extend(slice.ports.iter().filter_map(l4));
            }
        }
        for (key, service) in made {
            if let Entry::Vacant(room) = self.services.entry(key) {
                room.insert(serde_json::to_value(&service)?);
            }
        }
        Ok(())
    }

    /// Takes the other's in; what both have stays as it is here.
    pub(super) fn merge(&mut self, other: Self) {
        fn take<K: Ord, V>(into: &mut BTreeMap<K, V>, from: BTreeMap<K, V>) {
            for (key, value) in from {
                if let Entry::Vacant(room) = into.entry(key) {
                    room.insert(value);
                }
            }
        }
        take(&mut self.nodes, other.nodes);
        take(&mut self.services, other.services);
        take(&mut self.exports, other.exports);
        take(&mut self.identities, other.identities);
        take(&mut self.ips, other.ips);
        for (reason, keys) in other.rejected {
            self.rejected.entry(reason).or_default().extend(keys);
        }
    }
}

impl Follower {
    /// What is known of this cluster; the status is the mesh's to fill in.
    pub(crate) fn dump(&self) -> Dump {
        let (mut dump, cluster) = (Dump::default(), self.config.cluster.as_str());
        for (name, record) in self.stores.values().flat_map(Store::iter) {
            if let Err(error) = dump.add(cluster, &name, &record) {
                tracing::error!(%cluster, %name, %error, "not in the dump: cannot be written as JSON");
            }
        }
        let slices = self.stores.get(&Kind::EndpointSlices).into_iter().flat_map(Store::iter);
        let slices = slices.filter_map(|(_, record)| match &*record {
            Record::EndpointSlice(slice) => Some(slice.clone()),
            _ => None,
        });
        let id = self.remote.as_ref().map_or(0, |remote| u32::from(remote.id.get()));
        if let Err(error) = dump.add_slices(cluster, id, slices) {
            tracing::error!(%cluster, %error, "services of slices are not in the dump: cannot be written as JSON");
        }
        for refused in self.stores.values().flat_map(|store| store.refused(usize::MAX)) {
            dump.rejected.entry(refused.reason).or_default().push(refused.key);
        }
        dump
    }
}
