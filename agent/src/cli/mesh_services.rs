//! `tombolo mesh services`: which clusters export a global service, what is used of it, and why the rest is not.

use super::client::{self, ClientError};
use super::commands::{cell, json};
use super::{Format, ServicesArgs, output};
use serde_json::Value;
use std::process::ExitCode;

const COLUMNS: [&str; 9] = [
    "NAMESPACE",
    "NAME",
    "CLUSTERS (READY/KNOWN)",
    "PORT",
    "FAMILY",
    "TIER",
    "TIERS",
    "OVERFLOW",
    "CONFLICTS",
];
const BACKENDS: [&str; 8] = ["PORT", "ADDRESS", "CLUSTER", "ZONE", "STATE", "PROBE", "SHARE", "NOT-CHOSEN"];

fn text(value: &Value, key: &str) -> String {
    value.get(key).map_or_else(|| "-".to_owned(), cell)
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Prints the services; with a name also each of their backends.
pub(super) async fn run(args: ServicesArgs) -> Result<ExitCode, ClientError> {
    let path =
        args.service.as_deref().map_or_else(String::new, |name| format!("?service={}", client::encode(name)));
    let answer: Value = client::get(&args.reading.socket, &format!("/v1/mesh/services{path}")).await?;
    let services = list(&answer, "services");
    if let Some(name) = args.service.as_deref().filter(|_| services.is_empty()) {
        return Err(ClientError::Refused(format!(
            "no cluster has a global service {name}; see `tombolo mesh services`, or `tombolo show services` for those that are not global"
        )));
    }
    if args.reading.output == Format::Json {
        json(&answer)?;
        return Ok(ExitCode::SUCCESS);
    }
    output::table(&COLUMNS, services.iter().flat_map(rows));
    for (service, conflict) in services.iter().flat_map(|s| list(s, "conflicts").iter().map(move |c| (s, c)))
    {
        println!("{}/{}: {}", text(service, "namespace"), text(service, "name"), cell(conflict));
    }
    for (cluster, count) in answer.get("withheld").and_then(Value::as_object).into_iter().flatten() {
        println!(
            "{cluster}: {count} services or slices are withheld: not confirmed for too long; see `tombolo mesh status`"
        );
    }
    if args.service.is_some() {
        println!();
        output::table(
            &BACKENDS,
            services.iter().flat_map(|service| list(service, "ports")).flat_map(backends),
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// One row a port and family.
fn rows(service: &Value) -> Vec<Vec<String>> {
    let clusters = service.get("clusters").and_then(Value::as_object);
    let cluster = |(name, view): (&String, &Value)| {
        let stale = view.get("stale-secs").and_then(Value::as_u64);
        let stale = stale.map(|secs| format!(" (stale {secs}s)")).unwrap_or_default();
        format!("{name} {}/{}{stale}", text(view, "ready"), text(view, "known"))
    };
    let clusters: Vec<String> = clusters.into_iter().flatten().map(cluster).collect();
    let conflicts = list(service, "conflicts").len().to_string();
    let head = || vec![text(service, "namespace"), text(service, "name"), clusters.join(", ")];
    let tail = |port: [String; 5]| [head(), port.into(), vec![conflicts.clone()]].concat();
    let ports = list(service, "ports");
    if ports.is_empty() {
        return vec![tail(["-", "-", "-", "-", "-"].map(str::to_owned))];
    }
    ports.iter().map(|port| tail(used(port))).collect()
}

/// Port, family, the tier in use, each tier's usable and known backends with its part of the traffic, overflow.
fn used(port: &Value) -> [String; 5] {
    let tier = |tier: &Value| {
        let load = tier.get("load").and_then(Value::as_f64).unwrap_or(0.0) / 100.0;
        format!("{}/{}:{load}%", text(tier, "usable"), text(tier, "known"))
    };
    let tiers: Vec<String> = list(port, "tiers").iter().map(tier).collect();
    let overflowing = port.get("overflowing").and_then(Value::as_bool).unwrap_or(false);
    let in_use = match port.get("tier-in-use").and_then(Value::as_u64) {
        Some(0) | None => "NONE".to_owned(),
        Some(tier) => tier.to_string(),
    };
    [
        name(port),
        text(port, "family"),
        in_use,
        tiers.join(" "),
        if overflowing { "yes" } else { "no" }.to_owned(),
    ]
}

fn name(port: &Value) -> String {
    let name = port.get("name").and_then(Value::as_str).unwrap_or("");
    let colon = if name.is_empty() { "" } else { ":" };
    format!("{name}{colon}{}/{}", text(port, "port"), text(port, "protocol"))
}

fn backends(port: &Value) -> Vec<Vec<String>> {
    let one = |backend: &Value| {
        let percent = backend.get("percent").and_then(Value::as_f64).unwrap_or(0.0);
        let failing = backend.get("failing").and_then(Value::as_bool).unwrap_or(false);
        vec![
            name(port),
            text(backend, "backend"),
            text(backend, "cluster"),
            text(backend, "zone"),
            text(backend, "state"),
            if failing { "FAILED" } else { "-" }.to_owned(),
            format!("{percent:.1}%"),
            text(backend, "why"),
        ]
    };
    list(port, "backends").iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_service_in_cells() {
        let service = json!({
            "namespace": "shop", "name": "web", "conflicts": ["x"],
            "clusters": {"east": {"known": 2, "ready": 1, "stale-secs": null}, "west": {"known": 3, "ready": 3, "stale-secs": 70}},
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "family": "IPv4", "tier-in-use": 1, "overflowing": true,
                "tiers": [{"usable": 1, "known": 2, "load": 5000}, {"usable": 3, "known": 3, "load": 5000}],
                "backends": [{"backend": "10.1.1.5 8080/TCP", "cluster": "east", "zone": null, "state": "not-ready",
                    "failing": false, "percent": 0.0, "why": "not-ready"}]}],
        });
        assert_eq!(
            rows(&service),
            [[
                "shop",
                "web",
                "east 1/2, west 3/3 (stale 70s)",
                "http:80/TCP",
                "IPv4",
                "1",
                "1/2:50% 3/3:50%",
                "yes",
                "1"
            ]]
        );
        let backend =
            ["http:80/TCP", "10.1.1.5 8080/TCP", "east", "-", "not-ready", "-", "0.0%", "not-ready"];
        assert_eq!(backends(&service["ports"][0]), [backend]);
        let unused =
            json!({"namespace": "shop", "name": "api", "clusters": {}, "ports": [], "conflicts": []});
        assert_eq!(rows(&unused), [["shop", "api", "", "-", "-", "-", "-", "-", "0"]]);
    }
}
