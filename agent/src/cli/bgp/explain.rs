//! `tombolo bgp peer NAME`: one session on one screen.

use super::super::client::{self, ClientError};
use super::super::commands::{cell, json};
use super::super::{Format, Reading, output};
use super::summary::capitalized;
use super::{shut_down, text, uptime};
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::ExitCode;

/// Capabilities as the API names them, as people do, and where they are written.
const CAPABILITIES: [(&str, &str, &str); 12] = [
    ("multiprotocol", "Multiprotocol", "RFC 4760"),
    ("route-refresh", "Route refresh", "RFC 2918"),
    ("extended-next-hop", "Extended next hop", "RFC 8950"),
    ("extended-message", "Extended messages", "RFC 8654"),
    ("role", "Role", "RFC 9234"),
    ("graceful-restart", "Graceful restart", "RFC 4724"),
    ("four-octet-as", "Four-octet AS", "RFC 6793"),
    ("add-path", "ADD-PATH", "RFC 7911"),
    ("enhanced-refresh", "Enhanced route refresh", "RFC 7313"),
    ("long-lived-graceful-restart", "Long-lived graceful restart", "RFC 9494"),
    ("fqdn", "Host name", "draft"),
    ("software-version", "Software version", "draft"),
];

/// Prints the peers of a name; fails unless all are established.
pub(super) async fn print(reading: &Reading, name: &str) -> Result<ExitCode, ClientError> {
    let path = format!("/v1/bgp/states?peer={}", client::encode(name));
    let peers: Vec<Value> = client::get(&reading.socket, &path).await?;
    let up = peers.iter().all(|peer| text(peer, "state") == "established");
    match reading.output {
        Format::Json => json(&peers)?,
        Format::Table => peers.iter().for_each(explain),
    }
    Ok(if up { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn explain(peer: &Value) {
    heading(peer).iter().for_each(|line| println!("{line}"));
    println!("\nFamilies");
    let keys = ["family", "negotiated", "received", "accepted", "stale", "advertised", "end_of_rib"]
        .map(str::to_owned);
    let families = peer.get("families").and_then(Value::as_array).into_iter().flatten();
    output::table(
        &keys.clone().map(|key| key.to_uppercase().replace('_', "-")),
        families.map(|family| keys.iter().map(|key| text(family, key)).collect()),
    );
    println!("\nCapabilities");
    output::table(&["CAPABILITY", "DEFINED IN", "OURS", "THEIRS"], capabilities(peer));
    println!("\nCounters");
    let counters = peer.get("counters").and_then(Value::as_object).into_iter().flatten();
    output::table(&["WHAT", "COUNT"], counters.map(|(key, count)| vec![key.replace('_', " "), cell(count)]));
    let transitions: Vec<&Value> =
        peer.get("transitions").and_then(Value::as_array).into_iter().flatten().collect();
    if !transitions.is_empty() {
        println!("\nLast changes of state (events of RFC 4271 section 8.1)");
        let cells = |change: &&Value| {
            let state = |key| capitalized(&text(change, key));
            vec![
                state("from"),
                state("to"),
                format!("{} ({})", text(change, "event"), text(change, "number")),
            ]
        };
        output::table(&["FROM", "TO", "EVENT"], transitions.iter().map(cells));
    }
    println!();
}

/// Who, in what state, why, and what comes next.
fn heading(peer: &Value) -> Vec<String> {
    let get = |key: &str| text(peer, key);
    let since = peer.get("state_secs").and_then(Value::as_u64);
    let since = since.map(|secs| format!(" for {}", uptime(secs))).unwrap_or_default();
    let mut lines = vec![
        format!("BGP neighbor {} ({} of instance {})", get("address"), get("name"), get("instance")),
        format!(
            "  remote AS {}, local AS {}, router id {}",
            get("peer_asn"),
            get("local_asn"),
            get("router_id")
        ),
        format!("  {}{since}", capitalized(&get("state"))),
    ];
    if let Some(local) = peer.get("local_address") {
        lines.push(format!("  our address {}", cell(local)));
    }
    if peer.get("hold_time_secs").is_some() {
        lines.push(format!(
            "  hold time {} s, KEEPALIVE every {} s (the smaller of both sides' counts)",
            get("hold_time_secs"),
            get("keepalive_secs")
        ));
    }
    if let Some(outlook) = peer.get("outlook") {
        lines.push(format!("  next: {}", text(outlook, "next")));
        for timer in outlook.get("timers").and_then(Value::as_array).into_iter().flatten() {
            let left = timer.get("left_ms").and_then(Value::as_u64).unwrap_or_default();
            lines.push(format!(
                "  {} expires in {}.{} s",
                text(timer, "name"),
                left / 1000,
                left % 1000 / 100
            ));
        }
    }
    lines.extend(shut_down(peer).map(|text| format!("  {text}")));
    if let Some(error) = peer.get("last_error") {
        lines.push(format!("  last error: {}", cell(error)));
    }
    lines
}

/// Each capability with what either side said of it.
fn capabilities(peer: &Value) -> Vec<Vec<String>> {
    let mut sides: BTreeMap<(usize, String), [String; 2]> = BTreeMap::new();
    for (side, key) in ["offered", "capabilities"].into_iter().enumerate() {
        for capability in peer.get(key).and_then(Value::as_array).into_iter().flatten() {
            let (name, value) = match capability {
                Value::Object(map) => match map.iter().next() {
                    Some((name, value)) => (name.clone(), cell(value)),
                    None => continue,
                },
                other => (cell(other), "yes".to_owned()),
            };
            let place = CAPABILITIES.iter().position(|(known, ..)| *known == name);
            // Every family is a capability of its own.
            let (extra, value) =
                if name == "multiprotocol" { (value, "yes".to_owned()) } else { (String::new(), value) };
            let row = sides.entry((place.unwrap_or(usize::MAX), extra)).or_default();
            if let Some(cell) = row.get_mut(side) {
                let before = std::mem::take(cell);
                *cell = if before.is_empty() { value } else { format!("{before}; {value}") };
            }
        }
    }
    let named = |place: usize, extra: &str| match CAPABILITIES.get(place) {
        Some((_, name, rfc)) if extra.is_empty() => ((*name).to_owned(), (*rfc).to_owned()),
        Some((_, name, rfc)) => (format!("{name} {extra}"), (*rfc).to_owned()),
        None => ("others".to_owned(), "-".to_owned()),
    };
    let dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    sides
        .into_iter()
        .map(|((place, extra), [ours, theirs])| {
            let (name, rfc) = named(place, &extra);
            vec![name, rfc, dash(ours), dash(theirs)]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_sides_capabilities_stand_beside_each_other() {
        let peer = json!({
            "offered": [{"multiprotocol": "ipv4-unicast"}, "route-refresh", {"four-octet-as": 65001}],
            "capabilities": [
                {"multiprotocol": "ipv4-unicast"}, {"multiprotocol": "ipv6-unicast"}, {"four-octet-as": 65100},
                {"unknown": {"code": 200, "value": [1]}},
            ],
        });
        let rows = capabilities(&peer);
        let want = [
            ["Multiprotocol ipv4-unicast", "RFC 4760", "yes", "yes"],
            ["Multiprotocol ipv6-unicast", "RFC 4760", "-", "yes"],
            ["Route refresh", "RFC 2918", "yes", "-"],
            ["Four-octet AS", "RFC 6793", "65001", "65100"],
            ["others", "-", "-", "code=200 value=1"],
        ];
        assert_eq!(rows, want);
    }

    #[test]
    fn the_heading_says_why_and_what_next() {
        let peer = json!({
            "address": "192.0.2.1", "name": "tor", "instance": "main", "peer_asn": 65100, "local_asn": 65001,
            "state": "idle", "state_secs": 3, "last_error": "hold timer expired (4/0); check the path",
            "outlook": {
                "next": "rests after an error", "timers": [{"name": "IdleHoldTimer", "left_ms": 1250}],
            },
        });
        let text = heading(&peer).join("\n");
        for part in
            ["Idle for 00:00:03", "next: rests", "IdleHoldTimer expires in 1.2 s", "last error: hold timer"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
