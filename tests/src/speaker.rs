//! Our speaker as a process, asked over its standard input.

use serde_json::Value;

use crate::netns::{Daemon, Namespace, eventually};

/// A running `bgp_speaker`.
#[derive(Debug)]
pub struct Speaker(Daemon);

impl Speaker {
    /// Starts `program` with peers given as JSON and other arguments.
    pub fn start(program: &str, namespace: &Namespace, peers: &[Value], arguments: &[&str]) -> Self {
        let peers: Vec<String> = peers.iter().map(|peer| format!("peer-json={peer}")).collect();
        let all: Vec<&str> = arguments.iter().copied().chain(peers.iter().map(String::as_str)).collect();
        let mut daemon = namespace.spawn(program, &all);
        daemon.wait_for("start", |line| line.contains("started").then_some(()));
        Self(daemon)
    }

    /// Says something that is not answered.
    pub fn tell(&mut self, command: &str) {
        self.0.tell(command);
    }

    /// Says something and gives what is answered under `key`.
    pub fn ask(&mut self, command: &str, key: &str) -> Value {
        self.0.tell(command);
        self.0.wait_for(command, |line| serde_json::from_str::<Value>(line).ok()?.get(key).cloned())
    }

    /// Waits for an event with a text in it; those before count.
    pub fn tells(&mut self, text: &str) {
        if !self.0.seen().iter().any(|line| line.contains(text)) {
            self.0.wait_for(text, |line| line.contains(text).then_some(()));
        }
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.0.kill();
    }

    /// The state of a peer.
    pub fn peer(&mut self, name: &str) -> Value {
        let peers = self.ask("peers", "peers");
        let of_name = |peer: &&Value| peer.get("name").and_then(Value::as_str) == Some(name);
        peers.as_array().into_iter().flatten().find(of_name).cloned().unwrap_or_default()
    }

    /// All that came from a peer.
    pub fn received(&mut self, peer: &str) -> Vec<Value> {
        let rows = self.ask("received", "received");
        let of_peer = |row: &&Value| row.get("peer").and_then(Value::as_str) == Some(peer);
        rows.as_array().into_iter().flatten().filter(of_peer).cloned().collect()
    }

    /// Waits until what came from a peer is as wanted, and gives it.
    pub fn receives(&mut self, peer: &str, what: &str, wanted: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        eventually(what, || {
            let rows = self.received(peer);
            if wanted(&rows) { Ok(rows) } else { Err(format!("{rows:?}")) }
        })
    }

    /// Changes a peer.
    pub fn update(&mut self, settings: &Value) {
        self.ask(&format!("update {settings}"), "updated");
    }
}
