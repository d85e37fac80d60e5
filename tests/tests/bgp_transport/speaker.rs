//! The speaker of the tests as a process, and the settings it is given.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tombolo_tests::netns::{Daemon, Namespace, eventually};

use crate::{OURS, REFUSED_FOR, SPEAKER, THEIRS};

/// A speaker of ours that announces `OURS` and takes `THEIRS`.
pub(crate) struct Speaker(pub(crate) Daemon);

impl Speaker {
    pub(crate) fn start(namespace: &Namespace, asn: u32, arguments: &[String]) -> Self {
        let mut all = vec![format!("asn={asn}"), format!("router-id=10.77.{}.1", asn % 250)];
        all.extend(OURS.map(|prefix| format!("announce={prefix}")));
        all.extend(THEIRS.iter().chain(&OURS).map(|prefix| format!("allow={prefix}")));
        all.extend(arguments.iter().cloned());
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let mut daemon = namespace.spawn(SPEAKER, &all);
        daemon.wait_for("start", |line| line.contains("started").then_some(()));
        Self(daemon)
    }

    pub(crate) fn ask(&mut self, command: &str, key: &str) -> Value {
        self.0.tell(command);
        self.0.wait_for(command, |line| serde_json::from_str::<Value>(line).ok()?.get(key).cloned())
    }

    pub(crate) fn peers(&mut self) -> Vec<Value> {
        self.ask("peers", "peers").as_array().unwrap().clone()
    }

    pub(crate) fn peer(&mut self, name: &str) -> Value {
        self.peers().into_iter().find(|peer| peer["name"] == name).unwrap_or_default()
    }

    pub(crate) fn up(&mut self, name: &str) {
        eventually(&format!("{name} is up"), || {
            let peer = self.peer(name);
            if peer["state"] == "established" { Ok(()) } else { Err(peer.to_string()) }
        });
    }

    /// The session does not come up while there was time for it.
    pub(crate) fn stays_down(&mut self, name: &str) {
        let end = Instant::now() + REFUSED_FOR;
        while Instant::now() < end {
            let peer = self.peer(name);
            assert_eq!(peer["counters"]["sessions"], 0, "{peer}");
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Prefix and next hop of what is received and used.
    pub(crate) fn routes(&mut self) -> Vec<(String, String)> {
        let rows = self.ask("received", "received");
        let used = rows.as_array().unwrap().iter().filter(|row| row.get("refused").is_none());
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut routes: Vec<_> =
            used.map(|row| (text(&row["prefix"]), text(&row["next_hop"]["address"]))).collect();
        routes.sort();
        routes.dedup();
        routes
    }

    pub(crate) fn learns(&mut self, wanted: &[(&str, &str)]) {
        let wanted: Vec<(String, String)> =
            wanted.iter().map(|(prefix, hop)| ((*prefix).to_owned(), (*hop).to_owned())).collect();
        eventually(&format!("we learn {wanted:?}"), || {
            let seen = self.routes();
            if seen == wanted { Ok(()) } else { Err(format!("{seen:?}")) }
        });
    }

    pub(crate) fn update(&mut self, settings: &Value) {
        self.ask(&format!("update {settings}"), "updated");
    }
}

pub(crate) fn peer(name: &str, address: &str, more: &Value) -> Value {
    let mut settings = json!({"name": name, "address": address, "peer_asn": 65002});
    for (key, value) in more.as_object().unwrap() {
        settings[key] = value.clone();
    }
    settings
}

pub(crate) fn both(more: &Value) -> Vec<String> {
    [("v4", "10.77.0.2"), ("v6", "fd00:77::2")]
        .map(|(name, address)| format!("peer-json={}", peer(name, address, more)))
        .to_vec()
}
