//! `tombolo bgp rpki`: the caches whose payloads routes are judged by.

use super::super::client::{self, ClientError};
use super::super::commands::json;
use super::super::{Format, Reading, output};
use super::{text, uptime};
use serde_json::Value;
use std::process::ExitCode;

const COLUMNS: [&str; 10] =
    ["CACHE", "INSTANCE", "STATE", "V", "SESSION", "SERIAL", "IPV4", "IPV6", "AGE", "LAST-ERROR"];

/// Prints; fails if there are caches and none of an instance is usable.
pub(super) async fn print(reading: &Reading) -> Result<ExitCode, ClientError> {
    let caches: Vec<Value> = client::get(&reading.socket, "/v1/bgp/rpki").await?;
    let code = if judged(&caches) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    match reading.output {
        Format::Json => json(&caches)?,
        Format::Table if caches.is_empty() => println!("(no RPKI caches: bgp.rpki names none)"),
        Format::Table => output::table(&COLUMNS, caches.iter().map(cells)),
    }
    Ok(code)
}

/// Whether every instance has a cache to judge by.
fn judged(caches: &[Value]) -> bool {
    let usable = |cache: &&Value| cache.get("age_secs").is_some_and(Value::is_u64);
    let instances: std::collections::BTreeSet<String> =
        caches.iter().map(|cache| text(cache, "instance")).collect();
    instances.into_iter().all(|instance| {
        caches.iter().filter(|cache| text(cache, "instance") == instance).any(|cache| usable(&cache))
    })
}

fn cells(cache: &Value) -> Vec<String> {
    let age = cache.get("age_secs").and_then(Value::as_u64);
    let mut cells: Vec<String> =
        ["address", "instance", "state", "version", "session", "serial", "ipv4", "ipv6"]
            .iter()
            .map(|key| text(cache, key))
            .collect();
    cells.push(age.map_or_else(|| "never".to_owned(), uptime));
    cells.push(text(cache, "last_error"));
    cells
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_cache_is_a_line_and_each_instance_needs_one() {
        let cache = |instance: &str, age: Option<u64>| {
            json!({
                "instance": instance, "address": "192.0.2.1:323", "state": "synchronised", "version": 1,
                "session": 7, "serial": 100, "ipv4": 4, "ipv6": 6, "age_secs": age, "expires_secs": 7000,
                "last_error": null,
            })
        };
        assert_eq!(
            cells(&cache("tor", Some(61))),
            ["192.0.2.1:323", "tor", "synchronised", "1", "7", "100", "4", "6", "00:01:01", "-"]
        );
        assert_eq!(cells(&cache("tor", None))[8], "never");
        assert!(judged(&[]) && judged(&[cache("a", None), cache("a", Some(0))]));
        assert!(!judged(&[cache("a", Some(0)), cache("b", None)]));
    }
}
