//! What a relay says about the clusters it mirrors: how far it reads each, and the configuration it passes on.

use super::config::{ClusterConfig, ConfigError};
use super::json::{self, JsonError, Member, Value};
use serde::{Deserialize, Serialize};

/// Largest report that is read, in bytes.
pub const MAX_REPORT_BYTES: usize = 16 * 1024;
/// Longest text of a report that is shown.
const MAX_TEXT: usize = 1000;
/// Most fields of a configuration that are passed on without being known.
const MAX_UNKNOWN: usize = 32;
/// Longest name or text of such a field.
const MAX_UNKNOWN_TEXT: usize = 256;

/// `tombolo/relay/<cluster>/status`: how far the elected relay reads a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RelayReport {
    /// The relay's name.
    pub relay: String,
    /// Whether its connection stands.
    pub connected: bool,
    /// Whether everything in the mirror was confirmed on this connection.
    pub ready: bool,
    /// Seconds, when this was written, since the entries were confirmed last; absent while they are current, and when
    /// they were never confirmed in the relay's life.
    #[serde(default)]
    pub stale_secs: Option<u64>,
    /// One sentence: what it does or what is wrong, and what to try.
    pub status: String,
}

impl RelayReport {
    /// Reads a report; `None` if it is none.
    #[must_use]
    pub fn decode(value: &[u8]) -> Option<Self> {
        let mut report: Self =
            (value.len() <= MAX_REPORT_BYTES).then(|| serde_json::from_slice(value).ok()).flatten()?;
        for text in [&mut report.relay, &mut report.status] {
            *text = text.chars().filter(|letter| !letter.is_control()).take(MAX_TEXT).collect();
        }
        Some(report)
    }
}

/// A cluster's configuration as a mirror passes it on.
#[derive(Clone, Debug, PartialEq)]
pub struct Mirrored {
    /// What the cluster says.
    pub config: ClusterConfig,
    /// What is written: the same, in the cache layout and with canaries.
    pub text: Vec<u8>,
    /// Capabilities that were left out: a reader that knows them might wait for entries that are not mirrored.
    pub left_out: Vec<String>,
}

/// Rewrites a cluster's configuration for its mirror.
///
/// Unknown fields beside the capabilities are passed on if they are flags, numbers or texts. Of the unknown capabilities
/// only numbers are: so far these have been limits, whereas each flag and mode has announced entries of a new kind, for
/// whose canary a reader waits.
///
/// # Errors
/// Those of [`ClusterConfig::decode`].
pub fn mirrored(value: &[u8]) -> Result<Mirrored, ConfigError> {
    let mut config = ClusterConfig::decode(value)?;
    let parsed = json::parse(value)?;
    let said = config.clone();
    config.capabilities.cached = true;
    config.capabilities.synced_canaries = true;
    let unreadable = |_| ConfigError::Malformed(JsonError::field("capabilities", "cannot be written again"));
    let mut text = serde_json::to_value(&config).map_err(unreadable)?;
    let (mut left_out, mut kept) = (Vec::new(), 0_usize);
    for (name, value) in members(&parsed) {
        let known = |known: &str| name.eq_ignore_ascii_case(known);
        if known("capabilities") {
            for (name, value) in members(value) {
                let is_known = CAPABILITIES.iter().any(|known| name.eq_ignore_ascii_case(known));
                match number(value).filter(|_| fits(name) && kept < MAX_UNKNOWN) {
                    _ if is_known => {}
                    Some(number) => {
                        kept += 1;
                        put(text.get_mut("capabilities"), name, number);
                    }
                    None => left_out.push(name.chars().take(80).collect()),
                }
            }
        } else if !known("id")
            && fits(name)
            && kept < MAX_UNKNOWN
            && let Some(scalar) = scalar(value)
        {
            kept += 1;
            put(Some(&mut text), name, scalar);
        }
    }
    left_out.truncate(MAX_UNKNOWN);
    let text = json::write(&text).map_err(unreadable)?;
    Ok(Mirrored { config: said, text, left_out })
}

/// The capabilities that are known.
const CAPABILITIES: [&str; 5] =
    ["syncedCanaries", "cached", "maxConnectedClusters", "serviceExportsEnabled", "endpointSlicesExportMode"];

fn members<'a, 'b>(value: &'b Value<'a>) -> &'b [Member<'a>] {
    match value {
        Value::Object(members) => members,
        _ => &[],
    }
}

fn fits(name: &str) -> bool {
    name.len() <= MAX_UNKNOWN_TEXT
}

fn put(object: Option<&mut serde_json::Value>, name: &str, value: serde_json::Value) {
    if let Some(object) = object.and_then(serde_json::Value::as_object_mut) {
        object.insert(name.to_owned(), value);
    }
}

fn number(value: &Value<'_>) -> Option<serde_json::Value> {
    match value {
        Value::Number(text) => serde_json::from_str(text).ok(),
        _ => None,
    }
}

fn scalar(value: &Value<'_>) -> Option<serde_json::Value> {
    match value {
        Value::Bool(flag) => Some((*flag).into()),
        Value::String(text) if fits(text) => Some(text.as_ref().into()),
        other => number(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &str) -> (String, Vec<String>) {
        let mirrored = mirrored(value.as_bytes()).unwrap();
        (String::from_utf8(mirrored.text).unwrap(), mirrored.left_out)
    }

    #[test]
    fn the_mirror_says_cached_and_canaries_and_what_the_cluster_says_besides() {
        let (text, left_out) = text(
            r#"{"id":7,"capabilities":{"syncedCanaries":false,"maxConnectedClusters":511,"serviceExportsEnabled":false,"endpointSlicesExportMode":"services-and-endpointslices"}}"#,
        );
        let read = ClusterConfig::decode(text.as_bytes()).unwrap();
        assert_eq!((read.id, read.capabilities.max_connected_clusters), (7, 511));
        assert!(read.capabilities.cached && read.capabilities.synced_canaries && left_out.is_empty());
        assert_eq!(read.capabilities.service_exports_enabled, Some(false));
        assert!(read.capabilities.export_mode.slices() && read.capabilities.export_mode.services());
        // What is absent stays absent.
        let plain = mirrored(br#"{"id":7}"#).unwrap().text;
        assert_eq!(plain, br#"{"capabilities":{"cached":true,"syncedCanaries":true},"id":7}"#);
        // A mirror of a mirror.
        assert_eq!(mirrored(&plain).unwrap().text, plain);
    }

    #[test]
    fn unknown_limits_are_passed_on_and_unknown_promises_are_not() {
        let (text, left_out) = text(
            r#"{"id":7,"zone":"<a>","later":{"x":1},"capabilities":{"CACHED":false,"maxPods":5,"policies":true,"mode":"new","deep":{}}}"#,
        );
        assert_eq!(
            text,
            r#"{"capabilities":{"cached":true,"maxPods":5,"syncedCanaries":true},"id":7,"zone":"\u003ca\u003e"}"#
        );
        assert_eq!(left_out, ["policies", "mode", "deep"]);
        assert!(mirrored(br#"{"id":7,"capabilities":{"endpointSlicesExportMode":"x"}}"#).is_err());
        assert!(mirrored(b"{").is_err());
        let many: String = (0..100).map(|n| format!(",\"f{n}\":1")).collect();
        let written = mirrored(format!("{{\"id\":1{many}}}").as_bytes()).unwrap().text;
        assert!(written.len() < 1000, "{}", written.len());
    }

    #[test]
    fn reports_are_bounded_text() {
        let report =
            RelayReport { relay: "n1".into(), status: "a\u{1b}[31m".into(), ..RelayReport::default() };
        let value = serde_json::to_vec(&report).unwrap();
        assert_eq!(RelayReport::decode(&value).unwrap().status, "a[31m");
        for bad in ["", "{", "[]", "7", r#"{"relay":1}"#] {
            assert_eq!(RelayReport::decode(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(RelayReport::decode(&vec![b' '; MAX_REPORT_BYTES + 1]), None);
        let long = RelayReport { status: "x".repeat(5000), ..RelayReport::default() };
        assert_eq!(RelayReport::decode(&serde_json::to_vec(&long).unwrap()).unwrap().status.len(), 1000);
    }
}
