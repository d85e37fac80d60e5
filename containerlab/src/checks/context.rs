//! What every running check shares.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::{OnceCell, RwLock};

use super::access::{Access, COMMAND_TIMEOUT, Place};
use super::check::{Failure, Family, Variant};
use super::flows::Flows;
use super::inventory::{Cluster, Inventory, PodFacts, ServiceFacts};
use super::routers::Ends;
use super::scenarios::Packets;
use super::wire::Wiretap;
use crate::workload::ProbeReport;

/// A token's plain meaning, for the wire check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenUse {
    /// The check that sends it.
    pub check: String,
    /// Whether its packets must cross an underlay link between nodes of the clusters.
    pub between_nodes: bool,
}

/// Shared by all checks of one variant.
pub struct Context {
    /// Commands in nodes and pods.
    pub access: Access,
    /// What the lab holds.
    pub inventory: Inventory,
    /// The running variant.
    pub variant: Variant,
    /// Flow events of all nodes.
    pub flows: Flows,
    /// The captures on the routers; taken by the wire check.
    pub wiretap: tokio::sync::Mutex<Option<Wiretap>>,
    /// Beginning of every token of this run.
    pub token_prefix: String,
    /// What the datapaths had counted when the run began.
    pub(super) packets_before: Packets,
    /// How long etcd is stopped by the fault check.
    pub etcd_down: Duration,
    /// Tokens given out.
    pub tokens: Mutex<BTreeMap<String, TokenUse>>,
    /// Held by the check that has raised the MTU of pods' interfaces.
    pub raised_mtu: tokio::sync::Mutex<()>,
    /// By cluster: held by the scenario whose policies are in force there.
    pub(super) scenes: BTreeMap<String, tokio::sync::Mutex<()>>,
    /// The ends of the lab's links, once they were asked for; links do not change during a run.
    pub(super) ends: OnceCell<Arc<Ends>>,
    load_balancers: RwLock<BTreeMap<(String, String), Vec<IpAddr>>>,
    addresses: RwLock<BTreeMap<String, Vec<IpNet>>>,
    endpoints: RwLock<BTreeMap<String, Vec<Endpoint>>>,
}

/// A pod as its node's agent knows it (`tombolo show endpoints`).
#[derive(Debug, Clone, Deserialize)]
pub struct Endpoint {
    namespace: String,
    pod: String,
    identity: Option<u32>,
    /// The node's end of the pod's interface.
    pub host_interface: String,
}

impl Context {
    /// A context without any cached answer.
    pub(super) fn new(
        access: Access,
        inventory: Inventory,
        variant: Variant,
        flows: Flows,
        token_prefix: String,
        packets_before: Packets,
        etcd_down: Duration,
    ) -> Self {
        Self {
            scenes: inventory
                .clusters
                .keys()
                .map(|name| (name.clone(), tokio::sync::Mutex::default()))
                .collect(),
            access,
            inventory,
            variant,
            flows,
            wiretap: tokio::sync::Mutex::new(None),
            token_prefix,
            packets_before,
            etcd_down,
            tokens: Mutex::default(),
            raised_mtu: tokio::sync::Mutex::default(),
            ends: OnceCell::new(),
            load_balancers: RwLock::default(),
            addresses: RwLock::default(),
            endpoints: RwLock::default(),
        }
    }

    /// A token that only `check` uses.
    pub fn token(&self, check: &str, between_nodes: bool) -> String {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let token = format!("{}{:04x}", self.token_prefix, tokens.len());
        tokens.insert(token.clone(), TokenUse { check: check.to_owned(), between_nodes });
        token
    }

    /// The addresses of a node's links as they were asked for before; links do not change during a run.
    pub async fn known_addresses(&self, node: &str) -> Option<Vec<IpNet>> {
        self.addresses.read().await.get(node).cloned()
    }

    /// Keeps the addresses of a node's links.
    pub async fn remember_addresses(&self, node: &str, addresses: Vec<IpNet>) {
        self.addresses.write().await.insert(node.to_owned(), addresses);
    }

    /// A cluster by name.
    ///
    /// # Errors
    /// When the lab has none of that name.
    pub fn cluster(&self, name: &str) -> Result<&Cluster, Failure> {
        self.inventory.clusters.get(name).ok_or_else(|| missing(&format!("cluster {name}"), "lab.yaml"))
    }

    /// A pod by cluster and `NAMESPACE/NAME`, with an address.
    ///
    /// # Errors
    /// When there is none.
    pub fn pod(&self, cluster: &str, key: &str) -> Result<&PodFacts, Failure> {
        let folder = self.cluster(cluster)?.manifests.display().to_string();
        self.inventory
            .pod_by_name(cluster, key)
            .ok_or_else(|| missing(&format!("pod {key} in {cluster}"), &folder))
    }

    /// A service by cluster and `NAMESPACE/NAME`.
    ///
    /// # Errors
    /// When there is none.
    pub fn service(&self, cluster: &str, key: &str) -> Result<&ServiceFacts, Failure> {
        let cluster = self.cluster(cluster)?;
        let folder = cluster.manifests.display().to_string();
        cluster
            .services
            .get(key)
            .ok_or_else(|| missing(&format!("service {key} in {}", cluster.name), &folder))
    }

    /// A pod's address of a family.
    ///
    /// # Errors
    /// When the kubelet has not reported one.
    pub fn pod_address(&self, pod: &PodFacts, family: Family) -> Result<IpAddr, Failure> {
        pod.address(family).ok_or_else(|| {
            Failure::new(
                format!("pod {} has an {family} address", pod.key()),
                format!("its status names {:?}", pod.addresses),
                format!("{} and `tombolo lab logs {} --init`", pod.file.display(), pod.node),
            )
        })
    }

    /// A pod as its node's agent knows it.
    ///
    /// # Errors
    /// When that agent does not know it.
    pub async fn endpoint(&self, pod: &PodFacts) -> Result<Endpoint, Failure> {
        let named = |one: &&Endpoint| one.namespace == pod.namespace && one.pod == pod.name;
        if let Some(known) = self.endpoints.read().await.get(&pod.node).and_then(|all| all.iter().find(named))
        {
            return Ok(known.clone());
        }
        let place = Place::node(&pod.node);
        let argv = ["tombolo", "show", "endpoints", "-o", "json"];
        let all: Vec<Endpoint> = self.access.json(&place, &argv, COMMAND_TIMEOUT).await?;
        let found = all.iter().find(named).cloned();
        self.endpoints.write().await.insert(pod.node.clone(), all);
        found.ok_or_else(|| {
            let what = format!("{} knows the endpoint {}", pod.node, pod.key());
            Failure::new(what, "it does not", self.access.shown(&place, &argv))
        })
    }

    /// A pod's numeric identity as its own node has it; the cluster's id stands in it, from bit 16.
    ///
    /// # Errors
    /// When it has none, or one of another cluster.
    pub async fn identity(&self, pod: &PodFacts, cluster: &str) -> Result<u32, Failure> {
        let identity = self.endpoint(pod).await?.identity;
        let id = self.cluster(cluster)?.id;
        identity.filter(|identity| identity >> 16 == id).ok_or_else(|| {
            let argv = ["tombolo", "show", "endpoints"];
            Failure::new(
                format!("{} has an identity of cluster {cluster}, id {id}", pod.key()),
                format!("{identity:?}"),
                self.access.shown(&Place::node(&pod.node), &argv),
            )
        })
    }

    /// The place inside a pod.
    #[must_use]
    pub fn inside(&self, pod: &PodFacts) -> Place {
        Place { node: pod.node.clone(), pod: Some(pod.key()) }
    }

    /// Runs `tombolo lab-probe ...` at a place and reads its report.
    ///
    /// # Errors
    /// When the probe itself cannot run.
    pub async fn probe(&self, place: &Place, argv: &[&str]) -> Result<ProbeReport, Failure> {
        let mut full = vec!["tombolo", "lab-probe"];
        full.extend(argv);
        self.access.json(place, &full, COMMAND_TIMEOUT * 4).await
    }

    /// The LoadBalancer address of a service that its cluster's agents have assigned.
    ///
    /// # Errors
    /// When no node knows one inside the cluster's pools.
    pub async fn load_balancer(
        &self,
        cluster: &str,
        service: &ServiceFacts,
        family: Family,
    ) -> Result<IpAddr, Failure> {
        let key = (cluster.to_owned(), service.key());
        if let Some(known) = self.load_balancers.read().await.get(&key)
            && let Some(address) = known.iter().copied().find(|address| family.holds(*address))
        {
            return Ok(address);
        }
        let facts = self.cluster(cluster)?;
        let node = facts
            .nodes
            .keys()
            .next()
            .ok_or_else(|| missing("a node", &facts.manifests.display().to_string()))?;
        let place = Place::node(node);
        let argv = ["tombolo", "show", "lb-addresses", "-o", "json"];
        let table: Value = self.access.json(&place, &argv, COMMAND_TIMEOUT).await?;
        let found = assigned(&table, service, facts);
        let address = found.iter().copied().find(|address| family.holds(*address));
        self.load_balancers.write().await.insert(key, found.clone());
        address.ok_or_else(|| {
            Failure::new(
                format!(
                    "an {family} LoadBalancer address of {} out of the pools of {cluster}",
                    service.key()
                ),
                format!("{found:?}"),
                self.access.shown(&place, &argv),
            )
        })
    }
}

fn missing(what: &str, look: &str) -> Failure {
    Failure::new(format!("{what} exists"), "the lab's files name none", look)
}

/// Every address out of the cluster's pools in the rows of a printed table that are about a service.
fn assigned(table: &Value, service: &ServiceFacts, cluster: &Cluster) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for row in rows(table) {
        if mentions(row, &service.namespace, &service.name) {
            strings(row, &mut |text| {
                if let Some(address) = address_in(text).filter(|address| cluster.in_pools(*address))
                    && !found.contains(&address)
                {
                    found.push(address);
                }
            });
        }
    }
    found
}

/// The rows of a table that `tombolo show -o json` printed.
#[must_use]
pub(super) fn rows(table: &Value) -> &[Value] {
    table.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Calls `visit` with every string inside a JSON value.
pub(super) fn strings(value: &Value, visit: &mut impl FnMut(&str)) {
    match value {
        Value::String(text) => visit(text),
        Value::Array(items) => items.iter().for_each(|item| strings(item, visit)),
        Value::Object(fields) => fields.values().for_each(|field| strings(field, visit)),
        _ => {}
    }
}

/// An address, also when a prefix length or a port follows it.
fn address_in(text: &str) -> Option<IpAddr> {
    let bare = text.split('/').next().unwrap_or(text);
    bare.parse().ok().or_else(|| bare.parse::<std::net::SocketAddr>().ok().map(|socket| socket.ip()))
}

/// Whether a row is about `namespace/name`: as one string, or as two.
fn mentions(row: &Value, namespace: &str, name: &str) -> bool {
    let joined = format!("{namespace}/{name}");
    let (mut together, mut first, mut second) = (false, false, false);
    strings(row, &mut |text| {
        together |= text == joined || text.ends_with(&format!("/{joined}"));
        first |= text == namespace;
        second |= text == name;
    });
    together || (first && second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn load_balancer_addresses_are_found_in_any_shape() {
        let cluster = Cluster {
            pools: vec![("203.0.113.0".parse().expect("literal"), "203.0.113.127".parse().expect("literal"))],
            ..Cluster::default()
        };
        let service = ServiceFacts { namespace: "demo".into(), name: "lb".into(), ..ServiceFacts::default() };
        let address: IpAddr = "203.0.113.5".parse().expect("literal");
        for table in [
            json!([{"name": "demo/lb", "addresses": ["10.101.0.1", "203.0.113.5"]}, {"name": "demo/other", "addresses": ["203.0.113.6"]}]),
            json!([{"name": {"namespace": "demo", "name": "lb"}, "frontends": [{"address": "203.0.113.5:80"}]}]),
            json!([{"namespace": "demo", "name": "lb", "lb": {"v4": "203.0.113.5/32"}}]),
        ] {
            assert_eq!(assigned(&table, &service, &cluster), [address], "{table}");
        }
    }
}
