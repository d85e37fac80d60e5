//! What the lab holds, read from its topology, its settings and the clusters' manifests: checks compute what they
//! expect from here and type no address by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use serde_json::Value;

use super::check::Family;
use super::sessions::Sessions;
use crate::file;
use crate::settings::{Certificates, Checks, Settings};

/// Most files read of one manifest folder.
const MAX_FILES: usize = 20_000;

/// The lab as the checks see it.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    /// Clusters by name.
    pub clusters: BTreeMap<String, Cluster>,
    /// Routers (ToRs and spine) by node name.
    pub routers: BTreeMap<String, Router>,
    /// The outside client's node name.
    pub client: Option<String>,
    /// The smallest MTU of all links, in bytes; `None` if a link leaves it to the runner.
    pub link_mtu: Option<u32>,
    /// Which checks the lab is made for.
    pub checks: Checks,
    /// The lab's directory.
    pub lab_dir: PathBuf,
    /// The certificates of the lab's CA.
    pub certificates: Certificates,
    /// A node of the kernel's own that forwards between all (label `tombolo.io/role: core`).
    pub core: Option<String>,
}

/// One cluster.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    /// Name.
    pub name: String,
    /// Its id in the mesh.
    pub id: u32,
    /// Folder of its running manifests.
    pub manifests: PathBuf,
    /// Folder of the running etcd client files of other clusters.
    pub clustermesh: PathBuf,
    /// Folder of the running etcd client files that its relays read.
    pub remotes: PathBuf,
    /// Nodes of its relays; none if its agents read the other clusters themselves.
    pub relays: Vec<String>,
    /// Node of its etcd.
    pub etcd: String,
    /// Nodes of all members of its etcd.
    pub members: Vec<String>,
    /// Nodes by name.
    pub nodes: BTreeMap<String, ClusterNode>,
    /// Pods by `NAMESPACE/NAME`.
    pub pods: BTreeMap<String, PodFacts>,
    /// Services by `NAMESPACE/NAME`.
    pub services: BTreeMap<String, ServiceFacts>,
    /// Services that it exports, by `NAMESPACE/NAME`.
    pub exports: BTreeSet<String>,
    /// First and last address of each block of its LoadBalancer pools.
    pub pools: Vec<(IpAddr, IpAddr)>,
    /// Address types of services that its BGP advertisements name (`ClusterIP`, `LoadBalancerIP`, ...).
    pub advertised: BTreeSet<String>,
    /// Whether pod CIDRs are advertised.
    pub advertises_pod_cidrs: bool,
    /// BGP sessions of its nodes.
    pub sessions: Sessions,
}

/// A node of a cluster.
#[derive(Debug, Clone, Default)]
pub struct ClusterNode {
    /// Pod CIDRs.
    pub pod_cidrs: Vec<IpNet>,
    /// Underlay addresses (`InternalIP`).
    pub underlay: Vec<IpAddr>,
    /// Whether its Ready condition says that it is not.
    pub not_ready: bool,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl ClusterNode {
    /// The node-internal address of a family: the first usable one of its pod CIDR.
    #[must_use]
    pub fn internal(&self, family: Family) -> Option<IpAddr> {
        let cidr = self.pod_cidrs.iter().find(|cidr| family.holds(cidr.addr()))?;
        cidr.hosts().find(|address| *address != cidr.network())
    }

    /// The underlay address of a family.
    #[must_use]
    pub fn underlay(&self, family: Family) -> Option<IpAddr> {
        self.underlay.iter().copied().find(|address| family.holds(*address))
    }
}

/// A pod.
#[derive(Debug, Clone, Default)]
pub struct PodFacts {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Node.
    pub node: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Addresses the kubelet reported.
    pub addresses: Vec<IpAddr>,
    /// Whether its Ready condition is true.
    pub ready: bool,
    /// `Deployment NAME` that keeps it.
    pub workload: Option<String>,
    /// The Ethernet address that its annotation asks for.
    pub mac: Option<String>,
    /// The manifest it came from.
    pub file: PathBuf,
}

impl PodFacts {
    /// `NAMESPACE/NAME`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Its address of a family.
    #[must_use]
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| family.holds(*address))
    }
}

/// A service.
#[derive(Debug, Clone, Default)]
pub struct ServiceFacts {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Cluster addresses.
    pub cluster_ips: Vec<IpAddr>,
    /// Whether it has no address of its own.
    pub headless: bool,
    /// Whether it is shared with the other clusters.
    pub global: bool,
    /// Whether it has a LoadBalancer address.
    pub load_balancer: bool,
    /// Whether external traffic goes to local backends only.
    pub local: bool,
    /// Ports of the nodes' addresses, by the service's port.
    pub node_ports: BTreeMap<u16, u16>,
    /// Selector.
    pub selector: BTreeMap<String, String>,
    /// The manifest it came from.
    pub file: PathBuf,
}

impl ServiceFacts {
    /// `NAMESPACE/NAME`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Its cluster address of a family.
    #[must_use]
    pub fn cluster_ip(&self, family: Family) -> Option<IpAddr> {
        self.cluster_ips.iter().copied().find(|address| family.holds(*address))
    }
}

impl Cluster {
    /// The ready pods behind a service of this cluster.
    pub fn backends(&self, service: &ServiceFacts) -> impl Iterator<Item = &PodFacts> {
        self.pods.values().filter(move |pod| {
            pod.namespace == service.namespace
                && pod.ready
                && !service.selector.is_empty()
                && service.selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
        })
    }

    /// The folder whose files name the etcds of the other clusters themselves: that of its relays, if it has any.
    #[must_use]
    pub fn sources(&self) -> &Path {
        if self.relays.is_empty() { &self.clustermesh } else { &self.remotes }
    }

    /// The nodes that must advertise a service's LoadBalancer address: all, or with external traffic policy Local
    /// those with a ready backend.
    #[must_use]
    pub fn advertisers(&self, service: &ServiceFacts) -> BTreeSet<String> {
        if service.local {
            self.backends(service).map(|pod| pod.node.clone()).collect()
        } else {
            self.nodes.keys().cloned().collect()
        }
    }
}

/// How a router is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Daemon {
    /// BIRD; the path of its control socket.
    Bird(String),
    /// FRR; the directory of its vty sockets.
    Frr(Option<String>),
    /// `tombolo router`, asked through its local API.
    Tombolo,
}

/// A router of the lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Router {
    /// How to ask it.
    pub daemon: Daemon,
    /// The cluster whose nodes it serves; `None` for the spine.
    pub cluster: Option<String>,
}

impl Inventory {
    /// Reads everything.
    ///
    /// # Errors
    /// One sentence when the topology, the settings or a manifest folder cannot be read.
    pub fn read(topology_file: &Path) -> Result<Self, String> {
        let env = std::env::vars_os()
            .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let (topology, _) = file::load(topology_file, &env)
            .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))?;
        let settings = Settings::beside(topology_file, &env).map_err(|error| error.to_string())?;
        let mut inventory = Self {
            checks: settings.checks,
            lab_dir: topology.lab_dir.clone(),
            certificates: settings.certificates.clone(),
            ..Self::default()
        };
        for node in topology.nodes.values() {
            match node.labels.get("tombolo.io/role").map(String::as_str) {
                Some("tor" | "spine") => {
                    let cluster = node.labels.get("tombolo.io/cluster").cloned();
                    let daemon =
                        daemon(node.image.as_deref().unwrap_or(""), node.cmd.as_deref().unwrap_or(""));
                    inventory.routers.insert(node.name.clone(), Router { daemon, cluster });
                }
                Some("client") => inventory.client = Some(node.name.clone()),
                Some("core") => inventory.core = Some(node.name.clone()),
                _ => {}
            }
        }
        let mtus: Option<Vec<u32>> = topology.links.iter().map(|link| link.mtu).collect();
        inventory.link_mtu = mtus.and_then(|mtus| mtus.into_iter().min());
        for cluster in &settings.clusters {
            let folder = cluster.live_manifests(&topology.lab_dir);
            let mut read = read_cluster(&folder)?;
            read.name.clone_from(&cluster.name);
            read.id = cluster.id;
            read.etcd.clone_from(&cluster.etcd);
            read.clustermesh = cluster.live_clustermesh(&topology.lab_dir);
            read.remotes = cluster.live_remotes(&topology.lab_dir);
            read.relays.clone_from(&cluster.relays);
            read.members =
                if cluster.members.is_empty() { vec![cluster.etcd.clone()] } else { cluster.members.clone() };
            inventory.clusters.insert(cluster.name.clone(), read);
        }
        Ok(inventory)
    }

    /// Any cluster other than `name`.
    #[must_use]
    pub fn other(&self, name: &str) -> Option<&Cluster> {
        self.clusters.values().find(|cluster| cluster.name != name)
    }

    /// The ToRs of a cluster.
    pub fn tors_of<'a>(&'a self, cluster: &'a str) -> impl Iterator<Item = &'a str> {
        let tors = self.routers.iter().filter(move |(_, router)| router.cluster.as_deref() == Some(cluster));
        tors.map(|(name, _)| name.as_str())
    }

    /// The cluster of a node.
    #[must_use]
    pub fn cluster_of(&self, node: &str) -> Option<&Cluster> {
        self.clusters.values().find(|cluster| cluster.nodes.contains_key(node))
    }

    /// The pod with an address, and its cluster.
    #[must_use]
    pub fn pod_by_name(&self, cluster: &str, key: &str) -> Option<&PodFacts> {
        self.clusters.get(cluster)?.pods.get(key)
    }
}

fn daemon(image: &str, cmd: &str) -> Daemon {
    let words: Vec<&str> = cmd.split(|c: char| c.is_whitespace() || c == '\'' || c == '"').collect();
    let after = |flag: &str| {
        let at = words.iter().position(|word| *word == flag)?;
        words.get(at + 1).map(|word| (*word).to_owned())
    };
    if words.windows(2).any(|pair| pair == ["tombolo", "router"]) {
        Daemon::Tombolo
    } else if image.contains("bird") || cmd.contains("bird ") {
        Daemon::Bird(after("-s").unwrap_or_else(|| "/run/bird/bird.ctl".to_owned()))
    } else {
        Daemon::Frr(after("--vty_socket"))
    }
}

fn read_cluster(folder: &Path) -> Result<Cluster, String> {
    let mut cluster = Cluster { manifests: folder.to_owned(), ..Cluster::default() };
    let failed = |error: std::io::Error| format!("cannot read {}: {error}; is the lab up?", folder.display());
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let yaml = [".yaml", ".yml", ".json"].iter().any(|suffix| name.ends_with(suffix));
        if yaml && !name.starts_with('.') && paths.len() < MAX_FILES {
            paths.push(path);
        }
    }
    paths.sort();
    for path in paths {
        // A file that vanished since, or is broken on purpose by another check, costs only itself.
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let Ok(documents) = documents(&text) else { continue };
        for document in documents {
            cluster.take(document, &path);
        }
    }
    Ok(cluster)
}

/// The documents of a manifest file.
///
/// # Errors
/// The parser's message.
pub(super) fn documents(text: &str) -> Result<Vec<Value>, String> {
    serde_saphyr::from_multiple::<Value>(text).map_err(|error| error.to_string())
}

fn pairs<'a>(map: impl IntoIterator<Item = (&'a String, &'a String)>) -> BTreeMap<String, String> {
    map.into_iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

impl Cluster {
    fn take(&mut self, document: Value, path: &Path) {
        self.sessions.take(&document);
        match document.get("kind").and_then(Value::as_str).unwrap_or("") {
            "Node" => self.take_node(document),
            "Pod" => self.take_pod(document, path),
            "Service" => self.take_service(document, path),
            "ServiceExport" => {
                let text = |pointer: &str| document.pointer(pointer).and_then(Value::as_str);
                let namespace = text("/metadata/namespace").unwrap_or("default");
                self.exports.extend(text("/metadata/name").map(|name| format!("{namespace}/{name}")));
            }
            "CiliumLoadBalancerIPPool" => self.take_pool(&document),
            "CiliumBGPAdvertisement" => self.take_advertisement(&document),
            _ => {}
        }
    }

    fn take_node(&mut self, document: Value) {
        let Ok(node) = serde_json::from_value::<Node>(document) else { return };
        let (Some(name), spec, status) =
            (node.metadata.name, node.spec.unwrap_or_default(), node.status.unwrap_or_default())
        else {
            return;
        };
        let cidrs = spec.pod_cidrs.unwrap_or_else(|| spec.pod_cidr.into_iter().collect());
        let addresses = status.addresses.unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        let underlay = addresses.iter().filter(|address| address.type_ == "InternalIP");
        let facts = ClusterNode {
            pod_cidrs: cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect(),
            underlay: underlay.filter_map(|address| address.address.parse().ok()).collect(),
            not_ready: conditions.iter().any(|one| one.type_ == "Ready" && one.status != "True"),
            labels: node.metadata.labels.unwrap_or_default(),
        };
        self.nodes.insert(name, facts);
    }

    fn take_pod(&mut self, document: Value, path: &Path) {
        let Ok(pod) = serde_json::from_value::<Pod>(document) else { return };
        let Some(name) = pod.metadata.name else { return };
        let status = pod.status.unwrap_or_default();
        let ips = status.pod_ips.unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        let (annotations, owners) = (pod.metadata.annotations, pod.metadata.owner_references);
        // The lab's pods with owners are all of Deployments.
        let owner = owners.iter().flatten().find_map(|owner| owner.name.rsplit_once('-'));
        let facts = PodFacts {
            workload: owner.map(|(name, _)| format!("Deployment {name}")),
            mac: annotations.and_then(|all| all.get("cni.cilium.io/mac-address").cloned()),
            namespace: pod.metadata.namespace.unwrap_or_else(|| "default".to_owned()),
            name,
            node: pod.spec.and_then(|spec| spec.node_name).unwrap_or_default(),
            labels: pod.metadata.labels.as_ref().map(pairs).unwrap_or_default(),
            addresses: ips.iter().filter_map(|ip| ip.ip.parse().ok()).collect(),
            ready: conditions.iter().any(|one| one.type_ == "Ready" && one.status == "True"),
            file: path.to_owned(),
        };
        self.pods.insert(facts.key(), facts);
    }

    fn take_service(&mut self, document: Value, path: &Path) {
        let Ok(service) = serde_json::from_value::<Service>(document) else { return };
        let (Some(name), Some(spec)) = (service.metadata.name, service.spec) else { return };
        let ips = spec.cluster_ips.unwrap_or_else(|| spec.cluster_ip.into_iter().collect());
        let annotations = service.metadata.annotations.unwrap_or_default();
        let ports = spec.ports.iter().flatten();
        let node_ports = ports
            .filter_map(|port| Some((u16::try_from(port.port).ok()?, u16::try_from(port.node_port?).ok()?)));
        let facts = ServiceFacts {
            namespace: service.metadata.namespace.unwrap_or_else(|| "default".to_owned()),
            name,
            headless: ips.iter().any(|ip| ip == "None"),
            global: annotations.get("service.cilium.io/global").is_some_and(|text| text == "true"),
            cluster_ips: ips.iter().filter_map(|ip| ip.parse().ok()).collect(),
            load_balancer: spec.type_.as_deref() == Some("LoadBalancer"),
            local: spec.external_traffic_policy.as_deref() == Some("Local"),
            node_ports: node_ports.collect(),
            selector: spec.selector.as_ref().map(pairs).unwrap_or_default(),
            file: path.to_owned(),
        };
        self.services.insert(facts.key(), facts);
    }

    fn take_pool(&mut self, document: &Value) {
        let blocks = document.pointer("/spec/blocks").and_then(Value::as_array);
        for block in blocks.into_iter().flatten() {
            let field = |key: &str| block.get(key).and_then(Value::as_str);
            let range = match (field("cidr"), field("start"), field("stop")) {
                (Some(cidr), _, _) => cidr.parse::<IpNet>().ok().map(|net| (net.network(), net.broadcast())),
                (None, Some(start), stop) => {
                    let first = start.parse().ok();
                    first.zip(stop.unwrap_or(start).parse().ok())
                }
                _ => None,
            };
            self.pools.extend(range);
        }
    }

    fn take_advertisement(&mut self, document: &Value) {
        let all = document.pointer("/spec/advertisements").and_then(Value::as_array);
        for one in all.into_iter().flatten() {
            match one.get("advertisementType").and_then(Value::as_str) {
                Some("PodCIDR") => self.advertises_pod_cidrs = true,
                Some("Service") => {
                    let types = one.pointer("/service/addresses").and_then(Value::as_array);
                    let types = types.into_iter().flatten().filter_map(Value::as_str);
                    self.advertised.extend(types.map(str::to_owned));
                }
                _ => {}
            }
        }
    }

    /// Whether an address lies in one of the LoadBalancer pools.
    #[must_use]
    pub fn in_pools(&self, address: IpAddr) -> bool {
        self.pools.iter().any(|(first, last)| {
            first.is_ipv4() == address.is_ipv4() && *first <= address && address <= *last
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFESTS: &str = r#"
apiVersion: v1
kind: Node
metadata: {name: east-n1}
spec: {podCIDRs: [10.1.1.0/24, "fd00:10:1:1::/64"]}
status: {addresses: [{type: InternalIP, address: 172.20.11.2}, {type: InternalIP, address: "fd00:20:11::2"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: demo, labels: {app: web}}
spec: {nodeName: east-n1, containers: [{name: web, image: x}]}
status:
  podIPs: [{ip: 10.1.1.2}, {ip: "fd00:10:1:1::2"}]
  conditions: [{type: Ready, status: "True"}]
---
apiVersion: v1
kind: Service
metadata: {name: lb-local, namespace: demo}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  clusterIPs: [10.101.0.5, "fd00:101::5"]
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080, nodePort: 30080}]
---
apiVersion: cilium.io/v2
kind: CiliumLoadBalancerIPPool
metadata: {name: pool}
spec: {blocks: [{cidr: 203.0.113.0/25}, {start: "2001:db8:e::1", stop: "2001:db8:e::ff"}]}
---
apiVersion: cilium.io/v2
kind: CiliumBGPAdvertisement
metadata: {name: adverts}
spec: {advertisements: [{advertisementType: PodCIDR}, {advertisementType: Service, service: {addresses: [LoadBalancerIP]}}]}
"#;

    #[test]
    fn a_folder_of_manifests_becomes_facts() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("all.yaml"), MANIFESTS).expect("written");
        std::fs::write(folder.path().join(".hidden.yaml"), "kind: Node\nmetadata: {name: ghost}\n")
            .expect("written");
        std::fs::write(folder.path().join("broken.yaml"), "a: [").expect("written");
        let cluster = read_cluster(folder.path()).expect("readable");
        let node = &cluster.nodes["east-n1"];
        assert_eq!(cluster.nodes.len(), 1);
        assert_eq!(node.internal(Family::Ipv4), Some("10.1.1.1".parse().expect("literal")));
        assert_eq!(node.internal(Family::Ipv6), Some("fd00:10:1:1::1".parse().expect("literal")));
        assert_eq!(node.underlay(Family::Ipv6), Some("fd00:20:11::2".parse().expect("literal")));
        let service = &cluster.services["demo/lb-local"];
        assert_eq!(cluster.backends(service).map(PodFacts::key).collect::<Vec<_>>(), ["demo/web-1"]);
        assert_eq!(service.node_ports, BTreeMap::from([(80, 30_080)]));
        assert_eq!(cluster.advertisers(service), BTreeSet::from(["east-n1".to_owned()]));
        assert!(cluster.in_pools("203.0.113.9".parse().expect("literal")));
        assert!(!cluster.in_pools("203.0.113.200".parse().expect("literal")));
        assert!(cluster.in_pools("2001:db8:e::7".parse().expect("literal")));
        assert!(cluster.advertises_pod_cidrs && cluster.advertised.contains("LoadBalancerIP"));
    }

    #[test]
    fn routers_are_recognised() {
        let bird = daemon("bird:2", "bird -f -c /etc/bird/bird.conf -s /run/bird/x.ctl");
        assert_eq!(bird, Daemon::Bird("/run/bird/x.ctl".into()));
        let frr = daemon("quay.io/frrouting/frr:8.4", "sh -c 'zebra --vty_socket /run/frr -d'");
        assert_eq!(frr, Daemon::Frr(Some("/run/frr".into())));
        let ours = daemon("tombolo:dev", "tombolo router --config /etc/tombolo/router.yaml");
        assert_eq!(ours, Daemon::Tombolo);
    }
}
