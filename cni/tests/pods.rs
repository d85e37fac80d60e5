//! The endpoint store against a real kernel: a node's namespace and pods' namespaces, all private. Needs root: without it
//! the tests fail. Identity and datapath are the agent's business; the gate here only records when it was asked, and lets
//! the kernel forward.

#![cfg(test)]

use std::collections::BTreeMap;
use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tombolo_base::ids::IdentityId;
use tombolo_base::labels::Labels;
use tombolo_base::source::{Source, SourceState};
use tombolo_base::table::Table;
use tombolo_cni::interface::{ROUTE_PROTOCOL, host_name};
use tombolo_cni::protocol::{AddResult, NetworkConfiguration, Request};
use tombolo_cni::{DatapathGate, EndpointSpec, EndpointStore, GateError, Identity, StoreConfig, plugin};
use tombolo_netlink::{AddressOptions, LinkSettings, NetNs, Netlink, RouteFilter, VethEnd};
use tombolo_topology::{EndpointRow, EndpointState};

/// What the gate does at a step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    Open,
    RefuseIdentity,
    NeverApply,
}

#[derive(Clone)]
struct Gate {
    mood: Arc<Mutex<Mood>>,
    calls: Arc<Mutex<Vec<String>>>,
}

impl Gate {
    fn note(&self, step: &str, endpoint: &EndpointSpec) {
        self.calls.lock().unwrap().push(format!("{step} {}", endpoint.pod));
    }
}

impl DatapathGate for Gate {
    async fn identify(&self, endpoint: &EndpointSpec) -> Result<Identity, GateError> {
        self.note("identify", endpoint);
        if *self.mood.lock().unwrap() == Mood::RefuseIdentity {
            return Err(GateError::fatal("etcd is down and the labels are unknown"));
        }
        Ok(Identity {
            id: IdentityId(65536 + u32::from(endpoint.id)),
            labels: Labels::k8s([("app", &endpoint.pod)]),
        })
    }

    fn mac(&self, _: &str, pod: &str) -> Option<[u8; 6]> {
        (pod == "with-mac").then_some([2, 0, 0x5e, 0x10, 0, 1])
    }

    async fn apply(&self, endpoint: &EndpointSpec) -> Result<(), GateError> {
        self.note("apply", endpoint);
        let netns = NetNs::open(&endpoint.netns).unwrap();
        let pod = Netlink::in_namespace(&netns).unwrap();
        assert!(
            !pod.link(&endpoint.ifname).await.unwrap().up,
            "the pod cannot send before the datapath is there"
        );
        if *self.mood.lock().unwrap() == Mood::NeverApply {
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    async fn remove(&self, endpoint: &EndpointSpec) -> Result<(), GateError> {
        self.note("remove", endpoint);
        Ok(())
    }

    async fn check(&self, endpoint: &EndpointSpec) -> Result<(), GateError> {
        self.note("check", endpoint);
        Ok(())
    }
}

/// A node: its namespace with the internal addresses, its state directory, its store.
struct Node {
    host: Netlink,
    directory: TempDir,
    gate: Gate,
    store: Arc<EndpointStore<Gate>>,
    endpoints: Table<EndpointRow>,
}

const INTERNAL: [&str; 2] = ["10.1.1.1", "fd00:10:1:1::1"];

fn config(directory: &Path) -> StoreConfig {
    StoreConfig {
        state_dir: directory.to_owned(),
        pod_cidrs: vec!["10.1.1.0/24".parse().unwrap(), "fd00:10:1:1::/64".parse().unwrap()],
        pod_mtu: 1450,
        path_mtu: 1400,
        apply_timeout: Duration::from_secs(1),
    }
}

async fn node() -> Node {
    let ns = NetNs::anonymous().expect("making a network namespace needs root");
    let host = Netlink::in_namespace(&ns).unwrap();
    host.set_up(1).await.unwrap();
    let (inner, outer) =
        host.create_veth(&VethEnd::new("tombolo_host"), &VethEnd::new("tombolo_net")).await.unwrap();
    for link in [inner.index, outer.index] {
        let up = LinkSettings { up: Some(true), ipv6_link_local: Some(false), ..LinkSettings::default() };
        host.set_link(link, &up).await.unwrap();
    }
    for address in INTERNAL {
        let address: IpAddr = address.parse().unwrap();
        let options = AddressOptions { no_dad: true, no_prefix_route: true };
        host.add_address(inner.index, address.into(), options).await.unwrap();
    }
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        host.set_sysctl(key, "1").await.unwrap();
    }
    for key in ["all", "default"] {
        host.set_sysctl(&format!("net/ipv4/conf/{key}/rp_filter"), "0").await.unwrap();
    }
    let gate = Gate { mood: Arc::new(Mutex::new(Mood::Open)), calls: Arc::default() };
    let directory = tempfile::tempdir().unwrap();
    let (endpoints, rows) = Table::new();
    let store =
        EndpointStore::open(config(directory.path()), host.clone(), gate.clone(), rows).await.unwrap();
    Node { host, directory, gate, store, endpoints }
}

impl Node {
    /// The agent dies and is started again, perhaps with other settings.
    async fn restart(self, edit: impl FnOnce(&mut StoreConfig)) -> Self {
        let Self { host, directory, gate, .. } = self;
        let (endpoints, rows) = Table::new();
        let mut config = config(directory.path());
        edit(&mut config);
        let store = EndpointStore::open(config, host.clone(), gate.clone(), rows).await.unwrap();
        Self { host, directory, gate, store, endpoints }
    }

    fn rows(&self) -> Vec<EndpointRow> {
        self.endpoints.snapshot().iter().cloned().collect()
    }

    async fn host_interfaces(&self) -> Vec<String> {
        let links = self.host.links().await.unwrap();
        let ours = links.into_iter().map(|link| link.name).filter(|name| name.starts_with("tb"));
        ours.collect()
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.directory.path().join("endpoints")).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths.filter(|path| !path.ends_with("memory.json")).collect()
    }
}

/// A pod's namespace, bound to a path as a runtime does.
struct Sandbox {
    name: String,
    path: PathBuf,
    _kept: TempDir,
}

impl Sandbox {
    fn new(name: &str) -> Self {
        let kept = tempfile::tempdir().unwrap();
        let path = kept.path().join("netns");
        NetNs::create(&path).unwrap();
        Self { name: name.to_owned(), path, _kept: kept }
    }

    fn netns(&self) -> NetNs {
        NetNs::open(&self.path).unwrap()
    }

    fn request(&self) -> Request {
        let args = [("K8S_POD_NAMESPACE", "default"), ("K8S_POD_NAME", self.name.as_str())];
        Request {
            container_id: format!("id-{}", self.name),
            ifname: "eth0".into(),
            netns: Some(self.path.display().to_string()),
            args: args.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            configuration: serde_json::from_str(r#"{"cniVersion":"1.1.0","name":"tombolo"}"#).unwrap(),
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        NetNs::remove(&self.path).unwrap();
    }
}

fn addresses(result: &AddResult) -> Vec<IpAddr> {
    result.ips.iter().map(|ip| ip.address.split('/').next().unwrap().parse().unwrap()).collect()
}

/// One datagram there and one back; true if both arrive.
fn exchange(from: &NetNs, to: &NetNs, from_ip: IpAddr, to_ip: IpAddr) -> bool {
    let server = to.run(|| UdpSocket::bind((to_ip, 0)).unwrap()).unwrap();
    let client = from.run(|| UdpSocket::bind((from_ip, 0)).unwrap()).unwrap();
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    }
    let mut buffer = [0; 16];
    client.send_to(b"there", server.local_addr().unwrap()).is_ok()
        && server.recv_from(&mut buffer).is_ok_and(|(_, peer)| server.send_to(b"back", peer).is_ok())
        && client.recv(&mut buffer).is_ok_and(|length| &buffer[..length] == b"back")
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_get_addresses_of_both_families_and_reach_each_other_and_their_node() {
    let node = node().await;
    let (one, two) = (Sandbox::new("one"), Sandbox::new("two"));
    let first = node.store.add(&one.request()).await.unwrap();
    let second = node.store.add(&two.request()).await.unwrap();
    let (first_ips, second_ips) = (addresses(&first), addresses(&second));
    assert_eq!(first_ips, ["10.1.1.2", "fd00:10:1:1::2"].map(|ip| ip.parse::<IpAddr>().unwrap()));
    assert_eq!(second_ips, ["10.1.1.3", "fd00:10:1:1::3"].map(|ip| ip.parse::<IpAddr>().unwrap()));
    assert_eq!(first.interfaces[1].sandbox.as_deref(), Some(one.path.to_str().unwrap()));
    assert_eq!(first.interfaces[0].name, host_name("id-one", "eth0"));
    assert_eq!(first.routes.iter().map(|route| route.mtu).collect::<Vec<_>>(), [Some(1400), Some(1400)]);

    for family in 0..2 {
        assert!(
            exchange(&one.netns(), &two.netns(), first_ips[family], second_ips[family]),
            "family {family}"
        );
        let host_ns = node.host.namespace().unwrap();
        let internal: IpAddr = INTERNAL[family].parse().unwrap();
        assert!(exchange(host_ns, &one.netns(), internal, first_ips[family]), "host to pod, family {family}");
        assert!(
            exchange(&two.netns(), host_ns, second_ips[family], internal),
            "pod to host, family {family}"
        );
        // The host speaks to pods from its internal address without being told.
        let target = first_ips[family];
        let chosen = host_ns.run(|| {
            let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).unwrap();
            socket.connect((target, 9)).unwrap();
            socket.local_addr().unwrap().ip()
        });
        assert_eq!(chosen.unwrap(), internal);
    }
    let pod = Netlink::in_namespace(&one.netns()).unwrap();
    let learned: Vec<_> = pod.neighbours(None).await.unwrap().into_iter().filter(|n| !n.permanent).collect();
    let of_eth0: Vec<_> =
        learned.iter().filter(|n| !n.address.is_multicast() && !n.address.is_loopback()).collect();
    assert_eq!(of_eth0, Vec::<&tombolo_netlink::Neighbour>::new(), "nothing was resolved by ARP or ND");

    let rows = node.rows();
    assert_eq!(
        rows.iter().map(|row| (row.id, row.state)).collect::<Vec<_>>(),
        [(1, EndpointState::Ready), (2, EndpointState::Ready)]
    );
    assert_eq!(rows[0].identity, Some(IdentityId(65537)));
    assert_eq!((&*rows[0].namespace, &*rows[0].pod), ("default", "one"));
    assert_eq!(rows[0].labels, Labels::k8s([("app", "one")]));
    assert_eq!(rows[0].ifindex, node.host.link(&first.interfaces[0].name).await.unwrap().index);
    assert_eq!(*node.gate.calls.lock().unwrap(), ["identify one", "apply one", "identify two", "apply two"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_has_the_ethernet_address_that_it_asks_for() {
    let node = node().await;
    let (one, other) = (Sandbox::new("with-mac"), Sandbox::new("without"));
    let result = node.store.add(&one.request()).await.unwrap();
    assert_eq!(result.interfaces[1].mac, "02:00:5e:10:00:01");
    let pod = Netlink::in_namespace(&one.netns()).unwrap();
    let link = pod.link("eth0").await.unwrap();
    assert_eq!(link.mac.unwrap().to_string(), "02:00:5e:10:00:01");
    let second = node.store.add(&other.request()).await.unwrap();
    let (first_ips, second_ips) = (addresses(&result), addresses(&second));
    for family in 0..2 {
        assert!(
            exchange(&other.netns(), &one.netns(), second_ips[family], first_ips[family]),
            "family {family}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_finds_what_is_missing_and_del_takes_everything_and_may_be_repeated() {
    let node = node().await;
    let sandbox = Sandbox::new("web");
    let request = sandbox.request();
    let result = node.store.add(&request).await.unwrap();
    let mut check = request.clone();
    check.configuration.previous = Some(serde_json::to_value(&result).unwrap());
    node.store.check(&check).await.unwrap();

    let pod = Netlink::in_namespace(&sandbox.netns()).unwrap();
    let eth0 = pod.link("eth0").await.unwrap().index;
    let v6 = addresses(&result)[1];
    pod.delete_address(eth0, v6.into()).await.unwrap();
    let routes = pod.routes(RouteFilter::default()).await.unwrap();
    let to = |net: &str| routes.iter().find(|r| r.destination == net.parse().unwrap()).unwrap();
    let default = to("0.0.0.0/0");
    assert_eq!(default.mtu, Some(1400));
    assert_eq!(to("10.1.1.0/24").mtu, None, "pods of the same node are reached over no wire");
    pod.delete_route(default).await.unwrap();
    let error = node.store.check(&check).await.unwrap_err();
    assert_eq!(error.code, 103);
    assert!(error.details.contains("fd00:10:1:1::2 is not on eth0"), "{error}");
    assert!(error.details.contains("0.0.0.0/0"), "{error}");

    check.configuration.previous = Some(serde_json::json!({"ips": [{"address": "10.1.1.2/32"}]}));
    let error = node.store.check(&check).await.unwrap_err();
    assert!(error.details.contains("result lacks fd00:10:1:1::2"), "{error}");

    node.store.del(&request).await.unwrap();
    assert!(node.host_interfaces().await.is_empty());
    assert!(pod.find_link("eth0").await.unwrap().is_none());
    assert_eq!((node.rows().len(), node.files().len()), (0, 0));
    let ours = RouteFilter { protocol: Some(ROUTE_PROTOCOL), ..RouteFilter::default() };
    assert_eq!(node.host.routes(ours).await.unwrap(), []);
    node.store.del(&request).await.unwrap();
    assert_eq!(node.store.check(&request).await.unwrap_err().code, 3);
    // The address is not handed out again while others are free.
    let next = node.store.add(&request).await.unwrap();
    assert_eq!(addresses(&next)[0], "10.1.1.3".parse::<IpAddr>().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn del_works_when_the_namespace_or_the_interface_is_gone_already() {
    let node = node().await;
    let sandbox = Sandbox::new("gone");
    let mut request = sandbox.request();
    node.store.add(&request).await.unwrap();
    node.host.delete_link(&host_name("id-gone", "eth0")).await.unwrap();
    drop(sandbox);
    request.netns = None;
    node.store.del(&request).await.unwrap();
    assert_eq!((node.rows().len(), node.files().len()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_add_leaves_nothing_behind() {
    let node = node().await;
    let sandbox = Sandbox::new("web");
    for (mood, code) in [(Mood::RefuseIdentity, 102), (Mood::NeverApply, 11)] {
        *node.gate.mood.lock().unwrap() = mood;
        let error = node.store.add(&sandbox.request()).await.unwrap_err();
        assert_eq!(error.code, code, "{error}");
        assert!(node.host_interfaces().await.is_empty());
        assert_eq!((node.rows().len(), node.files().len()), (0, 0));
        assert_eq!(node.store.address_usage()[0].1, 0);
        assert!(node.gate.calls.lock().unwrap().last().unwrap().starts_with("remove"));
    }
    let mut nowhere = sandbox.request();
    nowhere.netns = Some("/nonexistent/netns".into());
    assert_eq!(node.store.add(&nowhere).await.unwrap_err().code, 3);
    *node.gate.mood.lock().unwrap() = Mood::Open;
    node.store.add(&sandbox.request()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_add_that_is_repeated_gives_the_same_answer() {
    let node = node().await;
    let sandbox = Sandbox::new("web");
    let first = node.store.add(&sandbox.request()).await.unwrap();
    // The second apply finds the pod's end up, which only a first must not.
    let pod = Netlink::in_namespace(&sandbox.netns()).unwrap();
    pod.set_down(pod.link("eth0").await.unwrap().index).await.unwrap();
    assert_eq!(node.store.add(&sandbox.request()).await.unwrap(), first);
    assert_eq!(node.rows().len(), 1);
    // The same sandbox id in a new namespace is another sandbox.
    let mut again = Sandbox::new("web");
    again.name = "web".into();
    let moved = node.store.add(&again.request()).await.unwrap();
    assert_ne!(addresses(&moved), addresses(&first));
    assert_eq!((node.rows().len(), node.host_interfaces().await.len()), (1, 1));
    assert!(pod.find_link("eth0").await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn adds_side_by_side_get_different_addresses_and_numbers() {
    let node = node().await;
    let sandboxes: Vec<Sandbox> = (0..8).map(|n| Sandbox::new(&format!("pod{n}"))).collect();
    let adds = sandboxes.iter().map(|sandbox| {
        let (store, request) = (node.store.clone(), sandbox.request());
        tokio::spawn(async move { store.add(&request).await.unwrap() })
    });
    let mut seen = BTreeMap::new();
    for add in adds.collect::<Vec<_>>() {
        for address in addresses(&add.await.unwrap()) {
            *seen.entry(address).or_insert(0) += 1;
        }
    }
    assert_eq!((seen.len(), seen.values().max()), (16, Some(&1)));
    assert_eq!(node.rows().iter().map(|row| row.id).collect::<Vec<_>>(), (1..=8).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_keeps_ready_pods_and_takes_halves_and_strays_away() {
    let node = node().await;
    let (keep, half, lost) = (Sandbox::new("keep"), Sandbox::new("half"), Sandbox::new("lost"));
    node.store.add(&keep.request()).await.unwrap();
    node.store.add(&lost.request()).await.unwrap();
    let before = node.rows().remove(0);

    // Killed amid an ADD: the record says creating, the interface is there.
    *node.gate.mood.lock().unwrap() = Mood::NeverApply;
    let (store, request) = (node.store.clone(), half.request());
    let add = tokio::spawn(async move { store.add(&request).await });
    let half_name = host_name("id-half", "eth0");
    while node.host.find_link(&half_name).await.unwrap().is_none() {
        tokio::task::yield_now().await;
    }
    add.abort();
    assert!(add.await.unwrap_err().is_cancelled());
    *node.gate.mood.lock().unwrap() = Mood::Open;
    // A pod whose interface went while nobody looked, and an interface nobody owns.
    node.host.delete_link(&host_name("id-lost", "eth0")).await.unwrap();
    node.host.create_veth(&VethEnd::new("tb0123456789a"), &VethEnd::new("stray")).await.unwrap();
    // Somebody took the host's route away.
    let ours = RouteFilter { protocol: Some(ROUTE_PROTOCOL), ..RouteFilter::default() };
    for route in node.host.routes(ours).await.unwrap() {
        node.host.delete_route(&route).await.unwrap();
    }

    let node = node.restart(|config| (config.pod_mtu, config.path_mtu) = (1400, 1350)).await;
    assert_eq!(node.rows(), [before], "as it was, identity included, before anything else is up");
    assert_eq!(node.endpoints.snapshot().source_state(&Source::Local), Some(SourceState::Initialized));
    assert_eq!(node.host_interfaces().await, [host_name("id-keep", "eth0")]);
    assert_eq!(node.files().len(), 1);
    assert_eq!(node.host.routes(ours).await.unwrap().len(), 2, "the host's routes to the pod are back");
    let mut check = keep.request();
    check.configuration.previous = None;
    node.store.check(&check).await.unwrap();
    let pod = Netlink::in_namespace(&keep.netns()).unwrap();
    assert_eq!(pod.link("eth0").await.unwrap().mtu, 1400);

    // Numbers and addresses go on where they were.
    let next = node.store.add(&half.request()).await.unwrap();
    assert_eq!(addresses(&next)[0], "10.1.1.5".parse::<IpAddr>().unwrap());
    let quarantined = std::fs::read_to_string(node.directory.path().join("endpoints/memory.json")).unwrap();
    for address in ["10.1.1.3", "10.1.1.4"] {
        assert!(quarantined.contains(address), "the half's and the lost one's addresses rest: {quarantined}");
    }
    node.store.del(&lost.request()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_outside_the_nodes_pod_cidr_survives_a_change_of_it_and_is_named() {
    let node = node().await;
    let (old, new) = (Sandbox::new("old"), Sandbox::new("new"));
    node.store.add(&old.request()).await.unwrap();
    let before = node.rows();
    let node = node.restart(|config| config.pod_cidrs = vec!["10.9.0.0/24".parse().unwrap()]).await;
    assert_eq!(node.rows(), before, "a running pod is not cut off");
    assert_eq!(node.host_interfaces().await, [host_name("id-old", "eth0")]);
    assert_eq!(node.store.strays().len(), 1);
    let added = node.store.add(&new.request()).await.unwrap();
    assert_eq!(addresses(&added), ["10.9.0.2".parse::<IpAddr>().unwrap()]);
    node.store.del(&old.request()).await.unwrap();
    assert_eq!((node.store.strays().len(), node.rows().len()), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_collection_leaves_what_the_runtime_still_knows() {
    let node = node().await;
    let (one, two) = (Sandbox::new("one"), Sandbox::new("two"));
    for sandbox in [&one, &two] {
        node.store.add(&sandbox.request()).await.unwrap();
    }
    let mut gc = one.request();
    assert_eq!(node.store.gc(&gc).await.unwrap_err().code, 7);
    gc.configuration.valid_attachments = Some(vec![two.request().attachment()]);
    node.store.gc(&gc).await.unwrap();
    assert_eq!(node.rows().iter().map(|row| row.pod.to_string()).collect::<Vec<_>>(), ["two"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn relabelling_changes_the_row_only() {
    let node = node().await;
    let sandbox = Sandbox::new("web");
    node.store.add(&sandbox.request()).await.unwrap();
    let identity = Identity { id: IdentityId(70000), labels: Labels::k8s([("app", "other")]) };
    assert!(node.store.relabel(1, &identity).unwrap());
    assert!(!node.store.relabel(2, &identity).unwrap());
    let row = node.rows().remove(0);
    assert_eq!(
        (row.identity, row.labels, row.state),
        (Some(identity.id), identity.labels, EndpointState::Ready)
    );
}

/// Serves HTTP/1.1 on a unix socket as far as the plugin needs it, with the store behind.
async fn serve(path: PathBuf, store: Arc<EndpointStore<Gate>>) {
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        let (head, body) = loop {
            assert!(stream.read_buf(&mut request).await.unwrap() > 0);
            let text = String::from_utf8(request.clone()).unwrap();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
            if body.len() == length.parse::<usize>().unwrap() {
                break (head.to_owned(), body.to_owned());
            }
        };
        let command = head.split(' ').nth(1).unwrap().strip_prefix("/v1/cni/").unwrap().to_owned();
        let reply = store.serve(&command, body.as_bytes()).await;
        let head = format!("HTTP/1.1 {} X\r\nContent-Length: {}\r\n\r\n", reply.status, reply.body.len());
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&reply.body).await.unwrap();
    }
}

/// Debian's `tuning` plugin (CNI 1.0.0) chained behind ours: takes our result and gives it on.
fn tuned(netns: &str, previous: &serde_json::Value) -> serde_json::Value {
    use std::io::Write;
    let configuration = serde_json::json!({
        "cniVersion": "1.0.0", "name": "tombolo", "type": "tuning",
        "sysctl": {"net.core.somaxconn": "512"}, "prevResult": previous,
    });
    let mut child = std::process::Command::new("/usr/lib/cni/tuning")
        .env_clear()
        .envs([("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "id-web"), ("CNI_IFNAME", "eth0")])
        .envs([("CNI_NETNS", netns), ("CNI_PATH", "/usr/lib/cni")])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("needs Debian's containernetworking-plugins");
    child.stdin.take().unwrap().write_all(configuration.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["ips"], previous["ips"]);
    result
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_way_from_a_runtimes_call_to_the_interface_and_back() {
    let node = node().await;
    let socket = node.directory.path().join("agent.sock");
    let server = tokio::spawn(serve(socket.clone(), node.store.clone()));
    while !socket.exists() {
        tokio::task::yield_now().await;
    }
    let sandbox = Sandbox::new("web");
    let netns = sandbox.path.display().to_string();
    let call = |command: &'static str, configuration: serde_json::Value| {
        let netns = netns.clone();
        tokio::task::spawn_blocking(move || {
            let variable = |name: &str| match name {
                "CNI_COMMAND" => Some(command.to_owned()),
                "CNI_CONTAINERID" => Some("id-web".to_owned()),
                "CNI_IFNAME" => Some("eth0".to_owned()),
                "CNI_NETNS" => Some(netns.clone()),
                "CNI_ARGS" => Some("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web".to_owned()),
                _ => None,
            };
            plugin::serve(&variable, configuration.to_string().as_bytes())
        })
    };
    for version in ["1.0.0", "1.1.0"] {
        let configuration = serde_json::json!({
            "cniVersion": version, "name": "tombolo", "type": "tombolo-cni", "socket": socket,
        });
        let result = call("ADD", configuration.clone()).await.unwrap().unwrap().unwrap();
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["ips"].as_array().unwrap().len(), 2);
        assert_eq!(result["interfaces"][1]["mtu"].is_null(), version == "1.0.0");
        let mut with_result = configuration.clone();
        with_result["prevResult"] = if version == "1.0.0" { tuned(&netns, &result) } else { result };
        assert_eq!(call("CHECK", with_result.clone()).await.unwrap().unwrap(), None);
        assert_eq!(call("DEL", with_result.clone()).await.unwrap().unwrap(), None);
        assert_eq!(call("DEL", with_result.clone()).await.unwrap().unwrap(), None);
        assert_eq!(call("CHECK", with_result).await.unwrap().unwrap_err().code, 3);
        assert_eq!(call("STATUS", configuration).await.unwrap().unwrap(), None);
    }
    server.abort();
    let configuration: NetworkConfiguration = serde_json::from_str("{}").unwrap();
    assert_eq!(configuration.socket, "/run/tombolo/agent.sock");
    assert!(node.host_interfaces().await.is_empty());
}
