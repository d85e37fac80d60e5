//! `tombolo bgp summary`: one table for each instance and family.

use super::super::client::{self, ClientError};
use super::super::commands::{cell, json};
use super::super::{Format, Reading, output};
use super::{shut_down, text, uptime};
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::ExitCode;

const COLUMNS: [&str; 9] =
    ["NEIGHBOR", "V", "AS", "MSGRCVD", "MSGSENT", "OUTQ", "UP/DOWN", "STATE/PFXRCD", "PFXSNT"];

/// Prints; fails unless every session that is not shut down is established.
pub(super) async fn print(reading: &Reading) -> Result<ExitCode, ClientError> {
    let peers: Vec<Value> = client::get(&reading.socket, "/v1/bgp/states").await?;
    let fine = |peer: &Value| text(peer, "state") == "established" || peer.get("shutdown").is_some();
    let code = if peers.iter().all(fine) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if reading.output == Format::Json {
        json(&peers)?;
        return Ok(code);
    }
    let mut tables: BTreeMap<(String, String, String), Vec<Vec<String>>> = BTreeMap::new();
    for peer in &peers {
        for family in peer.get("families").and_then(Value::as_array).into_iter().flatten() {
            let key = (text(family, "family"), text(peer, "instance"), text(peer, "local_asn"));
            tables.entry(key).or_default().push(cells(peer, family));
        }
    }
    for ((family, instance, asn), rows) in tables {
        println!("{family}, instance {instance}, local AS {asn}, {} neighbors", rows.len());
        let headings: Vec<&str> = COLUMNS.into_iter().chain(["DESC"]).collect();
        output::table(&headings, rows);
        println!();
    }
    for (peer, why) in peers.iter().filter_map(|peer| Some((peer, shut_down(peer)?))) {
        println!("{}/{}: {why}", text(peer, "instance"), text(peer, "name"));
    }
    if peers.is_empty() {
        println!("(no BGP peers)");
    }
    Ok(code)
}

fn cells(peer: &Value, family: &Value) -> Vec<String> {
    let null = Value::Null;
    let counters = peer.get("counters").unwrap_or(&null);
    let established = text(peer, "state") == "established";
    let negotiated = family.get("negotiated") == Some(&Value::Bool(true));
    let since = peer.get("state_secs").and_then(Value::as_u64);
    let state = match (established, negotiated) {
        (true, true) => text(family, "received"),
        (true, false) => "NoNeg".to_owned(),
        (false, _) if peer.get("shutdown").is_some() => "Idle (Admin)".to_owned(),
        (false, _) => capitalized(&text(peer, "state")),
    };
    vec![
        peer.get("address").map_or_else(|| "-".to_owned(), cell),
        "4".to_owned(),
        text(peer, "peer_asn"),
        text(counters, "messages_received"),
        text(counters, "messages_sent"),
        text(peer, "unsent_bytes"),
        since.map_or_else(|| "never".to_owned(), uptime),
        state,
        text(family, "advertised"),
        text(peer, "name"),
    ]
}

/// The states as RFC 4271 writes them.
pub(super) fn capitalized(state: &str) -> String {
    match state {
        "opensent" => "OpenSent".to_owned(),
        "openconfirm" => "OpenConfirm".to_owned(),
        other => {
            let mut letters = other.chars();
            letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_neighbor_is_a_line_as_in_other_speakers() {
        let family = json!({"family": "ipv4-unicast", "negotiated": true, "received": 12, "advertised": 3});
        let mut peer = json!({
            "name": "tor", "address": "192.0.2.1", "peer_asn": 65100, "state": "established", "state_secs": 3661,
            "counters": {"messages_received": 40, "messages_sent": 41}, "unsent_bytes": 0,
        });
        let line = ["192.0.2.1", "4", "65100", "40", "41", "0", "01:01:01", "12", "3", "tor"];
        assert_eq!(cells(&peer, &family), line);
        peer["state"] = json!("opensent");
        assert_eq!(cells(&peer, &family)[7], "OpenSent");
        assert_eq!(shut_down(&peer), None);
        peer["shutdown"] = json!("");
        assert_eq!(cells(&peer, &family)[7], "Idle (Admin)");
        assert_eq!(shut_down(&peer).unwrap(), "shut down by the operator");
        (peer["shutdown"], peer["shutdown_since_unix_secs"]) = (json!("new cable"), json!(1_800_000_000));
        assert_eq!(
            shut_down(&peer).unwrap(),
            "shut down by the operator since 2027-01-15T08:00:00Z: new cable"
        );
    }
}
