//! `tombolo relay` as a process between two etcds on loopback: what it mirrors, shows, and leaves behind.

#![cfg(test)]

use serde_json::Value;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use tombolo_tests::netns::{eventually, run};

const TOMBOLO: &str = env!("CARGO_BIN_EXE_tombolo");

/// A process that ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// An etcd without TLS: what the relay does with certificates is tested where relays are.
struct Etcd {
    _process: Process,
    url: String,
}

impl Etcd {
    fn start(folder: &tempfile::TempDir, name: &str) -> Self {
        let (url, peer) =
            (format!("http://127.0.0.1:{}", free_port()), format!("http://127.0.0.1:{}", free_port()));
        let process = Command::new("etcd")
            .args(["--name", name, "--log-level", "error", "--data-dir"])
            .arg(folder.path().join(name))
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("{name}={peer}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let etcd = Self { _process: Process(process), url };
        eventually("etcd answers", || etcd.ask(&["endpoint", "health"]).map(drop));
        etcd
    }

    fn ask(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.url])
            .args(arguments)
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    fn get(&self, key: &str) -> String {
        self.ask(&["get", "--print-value-only", key]).unwrap().trim_end().to_owned()
    }
}

/// A folder with relay.yaml and the file of cluster `west`.
struct Rig {
    folder: tempfile::TempDir,
    west: Etcd,
    own: Etcd,
    metrics: u16,
}

impl Rig {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("tbt-relay-").tempdir().unwrap();
        let (west, own) = (Etcd::start(&folder, "west"), Etcd::start(&folder, "own"));
        let rig = Self { west, own, folder, metrics: free_port() };
        std::fs::create_dir(rig.path("remotes")).unwrap();
        std::fs::write(rig.path("remotes/west.yaml"), format!("endpoints: [\"{}\"]\n", rig.west.url))
            .unwrap();
        rig.configure("");
        rig
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text_path(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn configure(&self, etcd: &str) {
        let text = format!(
            "cluster: {{name: east, id: 1}}\nrelay: {{name: one, folder: {}, allow_plaintext: true, heartbeat: true}}\netcd: {{endpoints: [\"{}\"]{etcd}}}\napi: {{socket: {}}}\nmetrics: {{listen: \"127.0.0.1:{}\"}}\n",
            self.text_path("remotes"),
            self.own.url,
            self.text_path("relay.sock"),
            self.metrics
        );
        std::fs::write(self.path("relay.yaml"), text).unwrap();
    }

    fn tombolo(&self, arguments: &[&str]) -> Output {
        let socket = self.text_path("relay.sock");
        Command::new(TOMBOLO).args(arguments).args(["-o", "json", "--socket", &socket]).output().unwrap()
    }

    /// As people read it.
    fn table(&self, arguments: &[&str]) -> Output {
        let socket = self.text_path("relay.sock");
        Command::new(TOMBOLO).args(arguments).args(["--socket", &socket]).output().unwrap()
    }

    fn relay_status(&self) -> Value {
        serde_json::from_slice(&self.tombolo(&["relay", "status"]).stdout).unwrap_or_default()
    }

    fn scrape(&self) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.metrics)).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }
}

#[test]
fn a_relay_mirrors_shows_what_it_does_and_leaves_the_mirror_when_it_stops() {
    let rig = Rig::new();
    let check = |wanted: bool| {
        let output = Command::new(TOMBOLO).args(["config", "check", &rig.text_path("relay.yaml")]).output();
        let output = output.unwrap();
        assert_eq!(output.status.success(), wanted, "{}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(check(false).contains("etcd.endpoints[0]"), "plaintext needs to be said");
    rig.configure(", allow_plaintext: true");
    check(true);

    // No canaries are announced, so none are waited for.
    let node = r#"{"Name":"n1","Cluster":"west","ClusterID":2,"IPAddresses":[{"Type":"InternalIP","IP":"192.0.2.1"}]}"#;
    for (key, value) in [
        ("cilium/cluster-config/west", r#"{"id":2,"capabilities":{"later":true}}"#),
        ("cilium/.heartbeat", "now"),
        ("cilium/state/nodes/v1/west/n1", node),
        ("cilium/state/nodes/v1/west/n2", "{"),
    ] {
        rig.west.ask(&["put", key, value]).unwrap();
    }
    let relay =
        Command::new(TOMBOLO).args(["relay", "--config", &rig.text_path("relay.yaml")]).spawn().unwrap();
    let mut relay = Process(relay);
    eventually("the mirror is whole", || {
        let status = rig.relay_status();
        if status["clusters"][0]["mirror"]["complete"] == true { Ok(()) } else { Err(status.to_string()) }
    });
    assert_eq!(rig.own.get("cilium/cache/nodes/v1/west/n1"), node);
    let config = r#"{"capabilities":{"cached":true,"syncedCanaries":true},"id":2}"#;
    assert_eq!(rig.own.get("cilium/cluster-config/west"), config);
    eventually("a heartbeat", || {
        if rig.own.get("cilium/.heartbeat").is_empty() { Err("none yet".to_owned()) } else { Ok(()) }
    });

    for (command, wanted) in [
        (
            ["relay", "status"],
            vec![
                "relay one: elected",
                "1/1 clusters mirrored",
                "capabilities later",
                "nodes/v1/west/n2: malformed",
            ],
        ),
        (["mesh", "status"], vec!["1/1 remote clusters ready", "nodes/v1/west/n2: malformed"]),
        (["mesh", "troubleshoot"], vec!["1/1 remote clusters can be read"]),
    ] {
        let table = rig.table(&command);
        let text = String::from_utf8_lossy(&table.stdout);
        assert!(table.status.success(), "{command:?}: {text} {}", String::from_utf8_lossy(&table.stderr));
        for wanted in wanted {
            assert!(text.contains(wanted), "{wanted}: {text}");
        }
    }
    // What a relay does not have is told as that.
    let refused = rig.table(&["mesh", "nodes"]);
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && text.contains("relay.sock answers 404"), "{text}");
    let status = rig.tombolo(&["status"]);
    let shown: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert!(shown["parts"].as_array().unwrap().iter().any(|part| part["name"] == "mirror/west"), "{shown}");
    assert!(rig.tombolo(&["mesh", "status"]).status.success());
    let metrics = rig.scrape();
    for wanted in [
        "cilium_kvstoremesh_remote_cluster_readiness_status{target_cluster=\"west\"} 1",
        "cilium_kvstoremesh_kvstore_initial_sync_completed{source_cluster=\"west\"} 1",
        "cilium_kvstoremesh_kvstore_operations_duration_seconds_bucket{le=\"10.0\",scope=\"nodes/v1\",kind=\"read\",action=\"ListPrefix\",outcome=\"success\"}",
        "cilium_kvstoremesh_kvstore_operations_duration_seconds_bucket{le=\"10.0\",scope=\"cilium/synce\",kind=\"set\",action=\"Update\",outcome=\"success\"}",
        "tombolo_relay_elected 1",
        "tombolo_relay_refused_entries{source_cluster=\"west\"} 1",
    ] {
        assert!(metrics.contains(wanted), "{wanted}: {metrics}");
    }

    // SIGTERM: the election is given up at once, the mirror stays.
    assert!(rig.own.get("tombolo/election/relay").starts_with("one "));
    run("kill", &["-TERM", &relay.0.id().to_string()]);
    assert!(relay.0.wait().unwrap().success());
    assert_eq!(rig.own.get("tombolo/election/relay"), "");
    assert_eq!(rig.own.get("cilium/cache/nodes/v1/west/n1"), node);
    assert!(!rig.tombolo(&["relay", "status"]).status.success(), "nobody answers any more");
}
