//! The controllers over real folders.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::*;

fn pod(name: &str, node: &str, addresses: &[&str], ready: bool) -> Value {
    let ips: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "demo", "uid": format!("uid-{name}"), "labels": {"app": "web"}},
        "spec": {"nodeName": node, "containers": [{"name": "c", "ports": [
            {"name": "http", "containerPort": 8080}, {"name": "http", "containerPort": 9, "protocol": "UDP"}]}]},
        "status": {"phase": "Running", "podIPs": ips,
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
    })
}

fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "demo"},
        "spec": {"selector": {"app": "web"}, "ipFamilies": ["IPv4", "IPv6"],
            "ports": [{"name": "http", "port": 80, "targetPort": "http"}, {"name": "raw", "port": 7, "targetPort": 7}]},
    })
}

fn node(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "LabNodeUp"}]}})
}

/// JSON is YAML.
fn put(dir: &Path, file: &str, value: &Value) {
    let temporary = dir.join(format!(".{file}"));
    fs::write(&temporary, value.to_string()).unwrap();
    fs::rename(temporary, dir.join(file)).unwrap();
}

fn read_slice(dir: &Path, file: &str) -> Option<EndpointSlice> {
    let text = fs::read_to_string(dir.join(file)).ok()?;
    Some(serde_saphyr::from_str(&text).unwrap())
}

fn dead(nodes: &[&str]) -> BTreeSet<String> {
    nodes.iter().map(|node| (*node).to_owned()).collect()
}

const V4: &str = "endpointslice-demo-web-ipv4.yaml";
const V6: &str = "endpointslice-demo-web-ipv6.yaml";

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "service-demo-web.yaml", &service());
    put(dir.path(), "pod-demo-web-1.yaml", &pod("web-1", "n1", &["10.0.0.2", "fd00::2"], true));
    put(dir.path(), "pod-demo-web-2.yaml", &pod("web-2", "n2", &["10.0.1.2", "fd00:0::1:2"], false));
    put(dir.path(), "node-n1.yaml", &node("n1"));
    put(dir.path(), "node-n2.yaml", &node("n2"));
    dir
}

fn conditions(slice: &EndpointSlice) -> Vec<(String, bool, bool, bool)> {
    slice
        .endpoints
        .iter()
        .map(|endpoint| {
            let c = endpoint.conditions.clone().unwrap();
            (endpoint.addresses[0].clone(), c.ready.unwrap(), c.serving.unwrap(), c.terminating.unwrap())
        })
        .collect()
}

#[test]
fn a_slice_for_each_family_with_resolved_ports() {
    let dir = folder();
    let pass = Controller::new(dir.path()).pass(&dead(&[])).unwrap();
    assert_eq!((pass.written, pass.problems), (vec![V4.to_owned(), V6.to_owned()], vec![]));
    let v4 = read_slice(dir.path(), V4).unwrap();
    assert_eq!(v4.address_type, "IPv4");
    assert_eq!(v4.metadata.labels.as_ref().unwrap()[SERVICE_LABEL], "web");
    assert_eq!(
        conditions(&v4),
        [("10.0.0.2".into(), true, true, false), ("10.0.1.2".into(), false, false, false)]
    );
    assert_eq!(v4.endpoints[0].node_name.as_deref(), Some("n1"));
    assert_eq!(v4.endpoints[0].target_ref.as_ref().unwrap().uid.as_deref(), Some("uid-web-1"));
    let ports: Vec<_> = v4.ports.unwrap().into_iter().map(|p| (p.name.unwrap(), p.port.unwrap())).collect();
    assert_eq!(ports, [("http".to_owned(), 8080), ("raw".to_owned(), 7)]);
    let v6 = read_slice(dir.path(), V6).unwrap();
    assert_eq!(conditions(&v6)[0].0, "fd00::1:2", "canonical spelling");
}

#[test]
fn nothing_is_written_twice_and_stale_slices_go() {
    let dir = folder();
    let mut controller = Controller::new(dir.path());
    controller.pass(&dead(&[])).unwrap();
    let before = fs::metadata(dir.path().join(V4)).unwrap().modified().unwrap();
    assert_eq!(controller.pass(&dead(&[])).unwrap(), Pass::default());
    assert_eq!(Controller::new(dir.path()).pass(&dead(&[])).unwrap(), Pass::default(), "after a restart");
    assert_eq!(fs::metadata(dir.path().join(V4)).unwrap().modified().unwrap(), before);
    let mut foreign = serde_json::to_value(read_slice(dir.path(), V4).unwrap()).unwrap();
    foreign["metadata"]["labels"][MANAGED_BY_LABEL] = json!("somebody else");
    put(dir.path(), "endpointslice-foreign.yaml", &foreign);
    fs::remove_file(dir.path().join("service-demo-web.yaml")).unwrap();
    let pass = controller.pass(&dead(&[])).unwrap();
    assert_eq!(pass.removed, [V4, V6]);
    assert!(dir.path().join("endpointslice-foreign.yaml").exists(), "not ours");
}

#[test]
fn pods_come_go_and_terminate() {
    let dir = folder();
    let mut controller = Controller::new(dir.path());
    controller.pass(&dead(&[])).unwrap();
    let mut leaving = pod("web-1", "n1", &["10.0.0.2", "fd00::2"], true);
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    put(dir.path(), "pod-demo-web-1.yaml", &leaving);
    put(dir.path(), "pod-demo-web-2.yaml", &pod("web-2", "n2", &["10.0.1.2", "fd00::1:2"], true));
    assert_eq!(controller.pass(&dead(&[])).unwrap().written, [V4, V6]);
    let v4 = read_slice(dir.path(), V4).unwrap();
    assert_eq!(
        conditions(&v4),
        [("10.0.0.2".into(), false, true, true), ("10.0.1.2".into(), true, true, false)]
    );
    let mut ended = pod("web-2", "n2", &["10.0.1.2"], true);
    ended["status"]["phase"] = json!("Succeeded");
    put(dir.path(), "pod-demo-web-2.yaml", &ended);
    fs::remove_file(dir.path().join("pod-demo-web-1.yaml")).unwrap();
    controller.pass(&dead(&[])).unwrap();
    let v4 = read_slice(dir.path(), V4).unwrap();
    assert!(v4.endpoints.is_empty(), "the slice stays, empty");
    assert!(v4.ports.unwrap().is_empty());
}

#[test]
fn pods_with_other_ports_lie_in_another_slice() {
    let dir = folder();
    let mut other = pod("web-2", "n2", &["10.0.1.2"], true);
    other["spec"]["containers"][0]["ports"][0]["containerPort"] = json!(9999);
    put(dir.path(), "pod-demo-web-2.yaml", &other);
    Controller::new(dir.path()).pass(&dead(&[])).unwrap();
    let text = fs::read_to_string(dir.path().join(V4)).unwrap();
    let slices: Vec<EndpointSlice> = serde_saphyr::from_multiple(&text).unwrap();
    let found: Vec<_> = slices
        .iter()
        .map(|s| (s.metadata.name.clone().unwrap(), s.ports.as_ref().unwrap()[0].port, s.endpoints.len()))
        .collect();
    assert_eq!(found, [("web-ipv4".into(), Some(8080), 1), ("web-ipv4-2".into(), Some(9999), 1)]);
}

#[test]
fn services_without_selector_are_left_alone() {
    let dir = folder();
    let mut service = service();
    service["spec"]["selector"] = json!({});
    put(dir.path(), "service-demo-web.yaml", &service);
    assert_eq!(Controller::new(dir.path()).pass(&dead(&[])).unwrap(), Pass::default());
}

#[test]
fn a_dead_node_is_not_ready_and_so_are_its_endpoints_until_it_is_back() {
    let dir = folder();
    let mut controller = Controller::new(dir.path());
    controller.pass(&dead(&[])).unwrap();
    let ready = |dir: &Path| {
        let node: Value =
            serde_saphyr::from_str(&fs::read_to_string(dir.join("node-n1.yaml")).unwrap()).unwrap();
        node["status"]["conditions"][0]["status"].as_str().unwrap().to_owned()
    };
    let pass = controller.pass(&dead(&["n1"])).unwrap();
    assert_eq!(pass.written, ["node-n1.yaml", V4, V6]);
    assert_eq!(ready(dir.path()), "False");
    assert!(!conditions(&read_slice(dir.path(), V4).unwrap())[0].1);
    assert_eq!(controller.pass(&dead(&["n1"])).unwrap(), Pass::default());
    assert_eq!(controller.pass(&dead(&[])).unwrap().written, ["node-n1.yaml", V4, V6]);
    assert_eq!(ready(dir.path()), "True");
    assert!(conditions(&read_slice(dir.path(), V4).unwrap())[0].1);
}

#[test]
fn a_node_that_somebody_else_calls_not_ready_stays_so() {
    let dir = folder();
    let mut other = node("n1");
    other["status"]["conditions"][0] = json!({"type": "Ready", "status": "Unknown", "reason": "Other"});
    put(dir.path(), "node-n1.yaml", &other);
    let pass = Controller::new(dir.path()).pass(&dead(&[])).unwrap();
    assert_eq!(pass.written, [V4, V6]);
    assert!(!conditions(&read_slice(dir.path(), V4).unwrap())[0].1);
}

#[test]
fn one_bad_manifest_costs_that_manifest_only() {
    let dir = folder();
    fs::write(dir.path().join("pod-broken.yaml"), "kind: Pod\n  metadata: [").unwrap();
    put(
        dir.path(),
        "service-evil.yaml",
        &json!({"kind": "Service", "metadata": {"name": "../../x", "namespace": "demo"}}),
    );
    put(
        dir.path(),
        "pod-odd.yaml",
        &json!({"kind": "Pod", "metadata": {"name": "odd"}, "spec": {"containers": 7}}),
    );
    let mut controller = Controller::new(dir.path());
    let pass = controller.pass(&dead(&[])).unwrap();
    assert_eq!(pass.written, [V4, V6]);
    let problems = pass.problems.join("\n");
    for part in
        ["pod-broken.yaml: is not YAML", "service-evil.yaml: Service: metadata.name", "pod-odd.yaml: Pod: "]
    {
        assert!(problems.contains(part), "{part} in {problems}");
    }
    fs::write(dir.path().join("pod-demo-web-1.yaml"), "{half").unwrap();
    let pass = controller.pass(&dead(&[])).unwrap();
    assert!(pass.problems.iter().any(|p| p.contains("last good content stays in force")), "{pass:?}");
    assert!(pass.written.is_empty() && pass.removed.is_empty());
}

#[tokio::test]
async fn the_driver_follows_the_folder_and_the_power() {
    let dir = folder();
    let path = dir.path().to_owned();
    let (power, state) = watch::channel(dead(&[]));
    let stop = CancellationToken::new();
    let running = tokio::spawn({
        let (path, stop) = (path.clone(), stop.clone());
        async move { run(&path, state, stop).await }
    });
    let reached = |what: &'static str, test: Box<dyn Fn(&EndpointSlice) -> bool + Send>| {
        let path = path.clone();
        async move {
            let (tell, mut told) = mpsc::channel(16);
            let mut watcher = notify::recommended_watcher(move |_| {
                tell.try_send(()).ok();
            })
            .unwrap();
            watcher.watch(&path, RecursiveMode::NonRecursive).unwrap();
            let wait = async {
                while !read_slice(&path, V4).is_some_and(|slice| test(&slice)) {
                    told.recv().await.unwrap();
                }
            };
            tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| panic!("{what}"));
        }
    };
    reached("first slices", Box::new(|slice| slice.endpoints.len() == 2)).await;
    put(&path, "pod-demo-web-3.yaml", &pod("web-3", "n2", &["10.0.1.3"], true));
    reached("a new pod", Box::new(|slice| slice.endpoints.len() == 3)).await;
    power.send(dead(&["n1"])).unwrap();
    reached("a dead node", Box::new(|slice| !conditions(slice)[0].1)).await;
    power.send(dead(&[])).unwrap();
    reached("the node is back", Box::new(|slice| conditions(slice)[0].1)).await;
    stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_folder_that_is_not_there_is_an_error_with_a_remedy() {
    let (_power, state) = watch::channel(dead(&[]));
    let error = run(Path::new("/nonexistent/manifests"), state, CancellationToken::new()).await.unwrap_err();
    assert!(error.to_string().contains("must exist"), "{error}");
}
