//! The list of all checks, as data. A new check of an existing kind is one line here.

use std::collections::BTreeSet;

use super::ask::{Ask, By, Denial, Origin, Peer, PodRef, Protocol, Target, UNENCRYPTED};
use super::check::{Check, Family, Phase, Task, Variant};
use super::etcd::EtcdRoles;
use super::faults::{Fault, MeshFault};
use super::inventory::{Cluster, Inventory, PodFacts};
use super::mtu::{MtuCheck, OutsideMtu};
use super::names::NamesCheck;
use super::routers::RouterCheck;
use super::scenarios::{COVERED, Final};
use crate::settings::Checks;

/// Ports of every echo server of the lab.
pub const HTTP_PORT: u16 = 8080;
/// Line echo over TCP.
pub const TCP_PORT: u16 = 9000;
/// Datagram echo.
pub const UDP_PORT: u16 = 9001;
/// HTTP port of the lab's services.
const SERVICE_PORT: u16 = 80;

/// Requests that are enough to see every backend of a service: with 4 equally likely ones the chance to miss one of
/// the two clusters is 2 × 2^-32, to miss one of two nodes 2 × 2^-48.
const SPREAD: u32 = 32;
const BALANCE: u32 = 48;

/// All checks of a variant, in the order of the table.
#[must_use]
pub fn checks(inventory: &Inventory, variant: Variant) -> Vec<Check> {
    let mut list = List::default();
    if inventory.checks == Checks::Mesh {
        mesh(inventory, &mut list);
        return list.0;
    }
    for cluster in inventory.clusters.values() {
        for family in Family::BOTH {
            match Scene::of(inventory, cluster, family) {
                Ok(scene) => {
                    scene.all(&mut list);
                    if variant.encrypted() {
                        scene.strict(&mut list);
                    }
                }
                Err(what) => list.missing(&format!("{}/{family}", cluster.name), &what),
            }
        }
        roles(inventory, cluster, &mut list);
    }
    if inventory.clusters.is_empty() {
        list.missing("lab", "a cluster");
    }
    if inventory.routers.is_empty() {
        list.missing("routes", "a router (label tombolo.io/role: tor or spine)");
    }
    for router in inventory.routers.keys() {
        for family in Family::BOTH {
            let task = Task::Router(RouterCheck { router: router.clone(), family });
            list.add(Phase::Routers, format!("routes/{router}/{family}"), task);
        }
    }
    for node in inventory.clusters.values().flat_map(|cluster| cluster.nodes.keys()) {
        list.add(Phase::Routers, format!("sessions/{node}"), Task::Sessions { node: node.clone() });
    }
    let wire = if variant.encrypted() { "wire/no-plaintext" } else { "wire/detector-finds-plaintext" };
    list.add(Phase::Wire, wire.to_owned(), Task::Wire);
    for (name, scenario) in super::scenarios::all(inventory) {
        list.add(Phase::Scenarios, name, Task::Scenario(scenario));
    }
    for one in Final::ALL {
        list.add(Phase::Finals, format!("scenario/{}", one.name()), Task::Final(one));
    }
    faults(inventory, &mut list);
    for covered in COVERED.iter().filter(|covered| !covered.encrypted || variant.encrypted()) {
        list.add(Phase::Covered, format!("scenario/{}", covered.name), Task::Covered(*covered));
    }
    list.0
}

/// What a node may do with the etcd of the other cluster.
fn roles(inventory: &Inventory, cluster: &Cluster, list: &mut List) {
    let (Some(other), Some(node)) = (inventory.other(&cluster.name), cluster.nodes.keys().next()) else {
        return list.missing(&format!("etcd/{}", cluster.name), "a node here and another cluster");
    };
    let task = EtcdRoles { node: node.clone(), remote: other.name.clone() };
    list.add(Phase::Traffic, format!("etcd/remote-reads-only/{}", cluster.name), Task::EtcdRoles(task));
}

fn faults(inventory: &Inventory, list: &mut List) {
    let mut clusters = inventory.clusters.values();
    let (Some(first), Some(second)) = (clusters.next(), clusters.next()) else {
        return list.missing("fault", "two clusters");
    };
    let mut add = |name: String, fault| list.add(Phase::Faults, name, Task::Fault(fault));
    for cluster in [first, second] {
        let name = cluster.name.clone();
        add(format!("fault/backends-deleted/{name}"), Fault::BackendsDeleted { cluster: name.clone() });
        add(format!("fault/local-endpoints-gone/{name}"), Fault::LocalEndpointsGone { cluster: name });
    }
    // One agent beside each kind of router.
    for cluster in [first, second] {
        if let Some(node) = cluster.nodes.keys().next() {
            add(format!("fault/agent-killed/{node}"), Fault::AgentKilled { node: node.clone() });
            add(format!("fault/names-without-agent/{node}"), Fault::NamesWithoutAgent { node: node.clone() });
        }
    }
    add(format!("fault/etcd-stopped/{}", first.name), Fault::EtcdStopped { cluster: first.name.clone() });
    add(format!("fault/etcd-wiped/{}", second.name), Fault::EtcdWiped { cluster: second.name.clone() });
    for cluster in [first, second] {
        if let Some(node) = cluster.nodes.keys().next_back() {
            add(format!("fault/node-powered-off/{node}"), Fault::NodePoweredOff { node: node.clone() });
        }
    }
}

/// What can happen to the etcds of a mesh. The last cluster by `lab.yaml`'s ids is the one that comes and goes.
fn mesh(inventory: &Inventory, list: &mut List) {
    let mut clusters: Vec<&Cluster> = inventory.clusters.values().collect();
    clusters.sort_by_key(|cluster| cluster.id);
    let [first, second, .., last] = clusters.as_slice() else {
        return list.missing("mesh", "three clusters");
    };
    let (first, second, guest) = (first.name.clone(), second.name.clone(), last.name.clone());
    let Some(relayed) = clusters.iter().find(|cluster| !cluster.relays.is_empty()) else {
        return list.missing("mesh", "a cluster with relays");
    };
    let relayed = relayed.name.clone();
    let faults = [
        MeshFault::Joins(guest.clone()),
        MeshFault::EtcdKilled(first.clone()),
        MeshFault::EtcdStopped(second.clone()),
        MeshFault::EtcdEmptied(first.clone()),
        MeshFault::EtcdRestored(second.clone()),
        MeshFault::EtcdCompacted(first.clone()),
        MeshFault::EtcdOutOfQuota(second.clone()),
        MeshFault::EtcdPartitioned(first.clone()),
        MeshFault::EtcdSlowDisk(first.clone()),
        MeshFault::MembersLost(guest.clone()),
        MeshFault::CertificateExpires(second.clone()),
        MeshFault::ClockJumps(second),
        MeshFault::AgentsKilled(first),
        MeshFault::RelaysKilled(relayed.clone()),
        MeshFault::RelaysLeft(relayed),
        MeshFault::Leaves(guest),
    ];
    for fault in faults {
        list.add(Phase::Faults, fault.name(), Task::Fault(Fault::Mesh(fault)));
    }
}

#[derive(Default)]
struct List(Vec<Check>);

impl List {
    fn add(&mut self, phase: Phase, name: String, task: Task) {
        self.0.push(Check { name, phase, task });
    }

    /// A row that fails: the checks of `group` need `what` and the lab has none. Leaving them out would look like passing.
    fn missing(&mut self, group: &str, what: &str) {
        self.add(Phase::Traffic, format!("missing/{group}: {what}"), Task::Missing(what.to_owned()));
    }
}

/// One cluster in one family, with the pods the checks use.
struct Scene<'a> {
    cluster: &'a Cluster,
    other: &'a Cluster,
    family: Family,
    near: String,
    far: String,
    beside: String,
    client: PodRef,
    client_far: PodRef,
    client_other: PodRef,
    web: PodRef,
    web_far: PodRef,
    web_other: PodRef,
    echo: PodRef,
}

impl<'a> Scene<'a> {
    /// What the checks need and the lab lacks is the error.
    fn of(inventory: &'a Inventory, cluster: &'a Cluster, family: Family) -> Result<Self, String> {
        let node = |cluster: &Cluster, node: Option<&String>| {
            node.cloned().ok_or_else(|| format!("a node of cluster {}", cluster.name))
        };
        let other =
            inventory.other(&cluster.name).ok_or_else(|| format!("a cluster beside {}", cluster.name))?;
        let near = node(cluster, cluster.nodes.keys().next())?;
        let far = node(cluster, cluster.nodes.keys().next_back())?;
        let beside = node(other, other.nodes.keys().next())?;
        if near == far {
            return Err(format!("a second node of cluster {}", cluster.name));
        }
        Ok(Self {
            cluster,
            other,
            family,
            client: pod(cluster, "client", Some(&near))?,
            client_far: pod(cluster, "client", Some(&far))?,
            client_other: pod(other, "client", Some(&beside))?,
            web: pod(cluster, "web", Some(&near))?,
            web_far: pod(cluster, "web", Some(&far))?,
            web_other: pod(other, "web", Some(&beside))?,
            echo: pod(cluster, "echo", None)?,
            near,
            far,
            beside,
        })
    }

    fn all(&self, list: &mut List) {
        self.pods(list);
        self.services(list);
        self.outside(list);
        self.node_ports(list);
        self.hosts(list);
        self.policy(list);
        self.mtu(list);
        self.names(list);
    }

    /// Each node's own unit is asked.
    fn names(&self, list: &mut List) {
        for (place, pod) in [("same-node", &self.client), ("other-node", &self.client_far)] {
            let (cluster, family) = (self.cluster.name.clone(), self.family);
            let name = format!("names/{place}/{cluster}/{family}");
            list.add(Phase::Traffic, name, Task::Names(NamesCheck { cluster, pod: pod.key.clone(), family }));
        }
    }

    fn ask(&self, from: Origin, to: Target, protocol: Protocol) -> Ask {
        Ask {
            from,
            to,
            protocol,
            family: self.family,
            count: 2,
            by: By::Target,
            peer: Peer::Asker,
            prefixes: false,
        }
    }

    fn add(&self, list: &mut List, what: &str, ask: Ask) {
        let protocol = match ask.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Http => "http",
            Protocol::Icmp => "ping",
        };
        let name = format!("{what}/{protocol}/{}/{}", self.cluster.name, self.family);
        list.add(Phase::Traffic, name, Task::Ask(ask));
    }

    fn pods(&self, list: &mut List) {
        let targets =
            [("same-node", &self.web), ("other-node", &self.web_far), ("other-cluster", &self.web_other)];
        for (place, target) in targets {
            for (protocol, port) in
                [(Protocol::Tcp, TCP_PORT), (Protocol::Udp, UDP_PORT), (Protocol::Http, HTTP_PORT)]
            {
                let to = Target::Pod(target.clone(), port);
                self.add(
                    list,
                    &format!("pod-to-pod/{place}"),
                    self.ask(Origin::Pod(self.client.clone()), to, protocol),
                );
            }
        }
        for (place, target) in [("other-node", &self.client_far), ("other-cluster", &self.client_other)] {
            let to = Target::Pod(target.clone(), 0);
            let ask = self.ask(Origin::Pod(self.client.clone()), to, Protocol::Icmp);
            self.add(list, &format!("client-to-client/{place}"), ask);
        }
        for (protocol, port) in [(Protocol::Tcp, TCP_PORT), (Protocol::Udp, UDP_PORT)] {
            let ask = self.ask(Origin::Pod(self.client.clone()), Target::Client(port), protocol);
            self.add(list, "pod-to-world", ask);
        }
    }

    fn cluster_ip(&self, service: &str, port: u16) -> Target {
        Target::ClusterIp { cluster: self.cluster.name.clone(), service: service.to_owned(), port }
    }

    fn services(&self, list: &mut List) {
        let own = BTreeSet::from([self.cluster.name.clone()]);
        let remote = BTreeSet::from([self.other.name.clone()]);
        let both: BTreeSet<String> = own.union(&remote).cloned().collect();
        let ports = [(Protocol::Tcp, TCP_PORT), (Protocol::Udp, UDP_PORT), (Protocol::Http, SERVICE_PORT)];
        for (place, from) in [("local-backend", &self.client), ("remote-backend", &self.client_far)] {
            for (protocol, port) in ports {
                let ask = self.ask(Origin::Pod(from.clone()), self.cluster_ip("demo/echo", port), protocol);
                let what = format!("pod-to-service/{place}");
                self.add(list, &what, Ask { by: By::Backends(own.clone()), ..ask });
            }
        }
        let cluster = self.cluster.name.clone();
        let to = Target::ServiceName { cluster, service: "demo/echo".to_owned(), port: SERVICE_PORT };
        let ask = self.ask(Origin::Pod(self.client.clone()), to, Protocol::Http);
        self.add(list, "pod-to-service/by-name", Ask { by: By::Backends(own.clone()), ..ask });
        for (protocol, port) in ports {
            let ask = self.ask(Origin::Pod(self.echo.clone()), self.cluster_ip("demo/echo", port), protocol);
            let by = By::Oneself(self.cluster.name.clone());
            // Translated at the socket, so it never leaves the pod; by packets it would come from the node.
            self.add(list, "pod-to-itself-via-service", Ask { by, ..ask });
        }
        for (affinity, service, wanted) in [
            ("none", "demo/web", &both),
            ("local", "demo/web-local", &own),
            ("remote", "demo/web-remote", &remote),
        ] {
            let to = self.cluster_ip(service, SERVICE_PORT);
            let ask = self.ask(Origin::Pod(self.client.clone()), to, Protocol::Http);
            let what = format!("global-service/affinity-{affinity}");
            self.add(list, &what, Ask { count: SPREAD, by: By::Backends(wanted.clone()), ..ask });
        }
    }

    /// What pods send to where pods are, and no known node is, must not leave in clear.
    fn strict(&self, list: &mut List) {
        for (place, from) in [("first-node", &self.client), ("second-node", &self.client_far)] {
            for (protocol, port) in [(Protocol::Tcp, TCP_PORT), (Protocol::Udp, UDP_PORT)] {
                let ask = self.ask(Origin::Pod(from.clone()), Target::Nowhere(port), protocol);
                let by = By::Nobody(Denial { reason: UNENCRYPTED, at_asker: true });
                self.add(list, &format!("strict/pod-to-nowhere/{place}"), Ask { by, count: 1, ..ask });
            }
        }
    }

    fn outside(&self, list: &mut List) {
        for (place, target) in [("first-node", &self.web), ("second-node", &self.web_far)] {
            for (protocol, port) in [(Protocol::Http, HTTP_PORT), (Protocol::Udp, UDP_PORT)] {
                let ask = self.ask(Origin::Client, Target::Pod(target.clone(), port), protocol);
                self.add(list, &format!("outside-to-pod/{place}"), ask);
            }
        }
        let to = |service: &str| Target::LoadBalancer {
            cluster: self.cluster.name.clone(),
            service: service.to_owned(),
            port: SERVICE_PORT,
        };
        let ask = self.ask(Origin::Client, to("demo/lb-local"), Protocol::Http);
        let by = By::EveryNode(self.cluster.name.clone());
        self.add(list, "outside/local-keeps-client-address-on-every-node", Ask { count: BALANCE, by, ..ask });
        let ask = self.ask(Origin::Client, to("demo/lb-cluster"), Protocol::Http);
        let by = By::Backends(BTreeSet::from([self.cluster.name.clone()]));
        let peer = Peer::AskerOrOtherNode;
        self.add(
            list,
            "outside/cluster-through-both-nodes-with-snat",
            Ask { count: BALANCE, by, peer, ..ask },
        );
    }

    /// The service has one backend, on the near node: the far one translates.
    fn node_ports(&self, list: &mut List) {
        let to = |service: &str, port, node: &str| Target::NodePort {
            cluster: self.cluster.name.clone(),
            service: service.to_owned(),
            port,
            node: node.to_owned(),
        };
        let by = By::Backends(BTreeSet::from([self.cluster.name.clone()]));
        let ports = [(Protocol::Http, SERVICE_PORT), (Protocol::Udp, UDP_PORT)];
        for (protocol, port) in ports {
            for (what, from, node, peer) in [
                ("outside/node-port-at-the-backend", Origin::Client, &self.near, Peer::Asker),
                ("outside/node-port-at-another-node", Origin::Client, &self.far, Peer::OtherNode),
                ("pod-to-node-port/own-node", Origin::Pod(self.client.clone()), &self.near, Peer::Asker),
                (
                    "pod-to-node-port/own-node-remote-backend",
                    Origin::Pod(self.client_far.clone()),
                    &self.far,
                    Peer::Asker,
                ),
                (
                    "pod-to-node-port/other-node",
                    Origin::Pod(self.client_far.clone()),
                    &self.near,
                    Peer::Asker,
                ),
                (
                    "pod-to-node-port/other-node-remote-backend",
                    Origin::Pod(self.client.clone()),
                    &self.far,
                    Peer::OtherNode,
                ),
            ] {
                let ask = self.ask(from, to("demo/node-port", port, node), protocol);
                self.add(list, what, Ask { by: by.clone(), peer, ..ask });
            }
        }
        let to = to("demo/node-port-local", SERVICE_PORT, &self.near);
        let ask = self.ask(Origin::Client, to, Protocol::Http);
        self.add(list, "outside/node-port-local-stays-on-the-node", Ask { count: SPREAD, by, ..ask });
    }

    fn hosts(&self, list: &mut List) {
        let sockets = [(Protocol::Tcp, TCP_PORT), (Protocol::Udp, UDP_PORT)];
        let targets =
            [("same-node", &self.web), ("other-node", &self.web_far), ("other-cluster", &self.web_other)];
        for (place, target) in targets {
            for (protocol, port) in sockets {
                let to = Target::Pod(target.clone(), port);
                let ask = self.ask(Origin::Host(self.near.clone()), to, protocol);
                self.add(list, &format!("host-to-pod/{place}"), Ask { peer: Peer::AskingNode, ..ask });
            }
        }
        for (place, node) in [("other-node", &self.far), ("other-cluster", &self.beside)] {
            for (protocol, port) in sockets {
                let ask =
                    self.ask(Origin::Host(self.near.clone()), Target::Host(node.clone(), port), protocol);
                self.add(list, &format!("host-to-host/{place}"), Ask { peer: Peer::AskingNode, ..ask });
            }
        }
        self.services_of_hosts(list);
        for (place, node) in
            [("same-node", &self.near), ("other-node", &self.far), ("other-cluster", &self.beside)]
        {
            for (protocol, port) in sockets.into_iter().chain([(Protocol::Icmp, 0)]) {
                let to = Target::Host(node.clone(), port);
                self.add(
                    list,
                    &format!("pod-to-host/{place}"),
                    self.ask(Origin::Pod(self.client.clone()), to, protocol),
                );
            }
        }
    }

    /// A node's own sockets are the only place where its services can be translated.
    fn services_of_hosts(&self, list: &mut List) {
        let by = By::Backends(BTreeSet::from([self.cluster.name.clone()]));
        let ports = [(Protocol::Tcp, TCP_PORT), (Protocol::Udp, UDP_PORT), (Protocol::Http, SERVICE_PORT)];
        for (place, node) in [("local-backend", &self.near), ("remote-backend", &self.far)] {
            for (protocol, port) in ports {
                let ask = self.ask(Origin::Host(node.clone()), self.cluster_ip("demo/echo", port), protocol);
                let what = format!("host-to-service/{place}");
                self.add(list, &what, Ask { by: by.clone(), peer: Peer::AskingNode, ..ask });
            }
            for (protocol, port) in [(Protocol::Http, SERVICE_PORT), (Protocol::Udp, UDP_PORT)] {
                let to = Target::NodePort {
                    cluster: self.cluster.name.clone(),
                    service: "demo/node-port".to_owned(),
                    port,
                    node: node.clone(),
                };
                let ask = self.ask(Origin::Host(node.clone()), to, protocol);
                let what = format!("host-to-node-port/own-node-{place}");
                self.add(list, &what, Ask { by: by.clone(), peer: Peer::AskingNode, ..ask });
            }
        }
    }

    fn policy(&self, list: &mut List) {
        let has_access = |pod: &&PodFacts| pod.labels.get("access").map(String::as_str) == Some("yes");
        let clients = || self.cluster.pods.values().filter(|pod| pod.namespace == "demo");
        let allowed = clients().find(has_access);
        let denied = clients().find(|pod| pod.labels.contains_key("access") && !has_access(pod));
        let (target, allowed, denied) = match (pod(self.cluster, "target", None), allowed, denied) {
            (Ok(target), Some(allowed), Some(denied)) => (target, allowed, denied),
            (Err(what), ..) => return self.missing(list, "policy", &what),
            (_, None, _) => return self.missing(list, "policy", "a pod of demo with access=yes"),
            (.., None) => return self.missing(list, "policy", "a pod of demo with another access"),
        };
        let origin =
            |pod: &PodFacts| Origin::Pod(PodRef { cluster: self.cluster.name.clone(), key: pod.key() });
        let to = |port| Target::Pod(target.clone(), port);
        self.add(list, "policy/allowed", self.ask(origin(allowed), to(HTTP_PORT), Protocol::Tcp).http());
        for (what, from, port) in [
            ("policy/denied-port", origin(allowed), TCP_PORT),
            ("policy/denied", origin(denied), HTTP_PORT),
            ("policy/denied-other-cluster", Origin::Pod(self.web_other.clone()), HTTP_PORT),
        ] {
            let ask = self.ask(from, to(port), Protocol::Tcp);
            self.add(list, what, Ask { by: By::Nobody(Denial::NOT_LET_IN), count: 1, ..ask });
        }
    }

    fn missing(&self, list: &mut List, group: &str, what: &str) {
        list.missing(&format!("{group}/{}/{}", self.cluster.name, self.family), what);
    }

    fn mtu(&self, list: &mut List) {
        let mut add = |place: &str, task| {
            list.add(Phase::Traffic, format!("mtu/{place}/{}/{}", self.cluster.name, self.family), task);
        };
        for (place, to) in [
            ("other-node", Some(&self.client_far)),
            ("other-cluster", Some(&self.client_other)),
            ("world", None),
        ] {
            let check = MtuCheck { from: self.client.clone(), to: to.cloned(), family: self.family };
            add(place, Task::Mtu(check));
        }
        let service = (self.cluster.name.clone(), "demo/lb-cluster".to_owned(), UDP_PORT);
        add("outside", Task::OutsideMtu(OutsideMtu { pod: self.web.clone(), service, family: self.family }));
    }
}

impl Ask {
    /// The same request over HTTP.
    fn http(self) -> Self {
        Self { protocol: Protocol::Http, ..self }
    }
}

/// The pod with a label `app`, or what is missing.
fn pod(cluster: &Cluster, app: &str, node: Option<&String>) -> Result<PodRef, String> {
    let wanted = |pod: &&PodFacts| {
        pod.labels.get("app").map(String::as_str) == Some(app) && node.is_none_or(|node| pod.node == *node)
    };
    let found = cluster.pods.values().find(wanted);
    let place = node.map(|node| format!(" on {node}")).unwrap_or_default();
    found
        .map(|pod| PodRef { cluster: cluster.name.clone(), key: pod.key() })
        .ok_or_else(|| format!("a pod app={app}{place} in cluster {}", cluster.name))
}

#[cfg(test)]
#[path = "catalog_tests.rs"]
mod tests;
