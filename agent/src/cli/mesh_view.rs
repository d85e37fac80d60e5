//! `tombolo mesh nodes`, `conflicts` and `lag`.

use super::client::{self, ClientError};
use super::commands::{cell, json};
use super::{Format, Reading, output};
use serde_json::Value;
use std::process::ExitCode;

fn text(row: &Value, key: &str) -> String {
    row.get(key).map_or_else(|| "-".to_owned(), cell)
}

fn age(row: &Value, key: &str) -> String {
    match row.get(key).and_then(Value::as_u64) {
        Some(secs) => span(secs),
        None => "-".to_owned(),
    }
}

/// A time for people: the two largest units.
fn span(secs: u64) -> String {
    match secs {
        0..60 => format!("{secs}s"),
        60..3_600 => format!("{}m{}s", secs / 60, secs % 60),
        3_600..86_400 => format!("{}h{}m", secs / 3_600, secs % 3_600 / 60),
        _ => format!("{}d{}h", secs / 86_400, secs % 86_400 / 3_600),
    }
}

/// Every node of every cluster.
pub(super) async fn nodes(reading: &Reading) -> Result<ExitCode, ClientError> {
    let all: Vec<Value> = client::get(&reading.socket, "/v1/mesh/nodes").await?;
    if reading.output == Format::Json {
        json(&all)?;
        return Ok(ExitCode::SUCCESS);
    }
    let columns = [
        "CLUSTER",
        "NODE",
        "ADDRESSES",
        "POD-CIDRS",
        "PATH",
        "TUNNEL",
        "MTU",
        "ENCRYPTION",
        "SOURCE",
        "STATE",
        "AGE",
        "NOT USED",
    ];
    let rows = all.iter().map(|node| {
        let of = |key: &str| text(node, key);
        let problems = node.get("problems").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let problems: Vec<_> = problems.iter().map(cell).collect();
        vec![
            of("cluster"),
            of("name"),
            of("addresses"),
            of("pod-cidrs"),
            of("path"),
            of("tunnel"),
            of("mtu"),
            of("encryption"),
            of("source"),
            of("source-state"),
            age(node, "age-secs"),
            if problems.is_empty() { "-".to_owned() } else { problems.join("; ") },
        ]
    });
    output::table(&columns, rows.collect::<Vec<_>>());
    Ok(ExitCode::SUCCESS)
}

/// What two clusters claim at once; the exit code says whether there is anything.
pub(super) async fn conflicts(reading: &Reading) -> Result<ExitCode, ClientError> {
    let all: Vec<Value> = client::get(&reading.socket, "/v1/mesh/conflicts").await?;
    let code = if all.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if reading.output == Format::Json {
        json(&all)?;
        return Ok(code);
    }
    if all.is_empty() {
        println!("no conflicts: no two clusters claim the same");
        return Ok(code);
    }
    let rows = all.iter().map(|row| {
        let of = |key: &str| text(row, key);
        vec![of("kind"), of("key"), of("chosen"), age(row, "since-secs"), of("detail"), of("remedy")]
    });
    output::table(&["KIND", "KEY", "CHOSEN", "SINCE", "FOUND", "TRY"], rows.collect::<Vec<_>>());
    Ok(code)
}

/// Microseconds for people.
fn micros(value: Option<&Value>) -> String {
    match value.and_then(Value::as_u64) {
        None => "-".to_owned(),
        Some(us) if us < 1_000 => format!("{us}us"),
        Some(us) if us < 10_000_000 => format!("{}.{}ms", us / 1_000, us % 1_000 / 100),
        Some(us) => span(us / 1_000_000),
    }
}

/// How long changes take: from the etcd there to the follower, to the rows, to the datapath's map.
pub(super) async fn lag(reading: &Reading) -> Result<ExitCode, ClientError> {
    let all: Value = client::get(&reading.socket, "/v1/mesh/lag").await?;
    if reading.output == Format::Json {
        json(&all)?;
        return Ok(ExitCode::SUCCESS);
    }
    let columns = [
        "CLUSTER",
        "BEATS",
        "P50",
        "P99",
        "MAX",
        "ASSUMED",
        "ROWS P50",
        "ROWS P99",
        "LAST EVENT",
        "HEARTBEAT",
    ];
    let clusters = all.get("clusters").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let rows = clusters.iter().map(|cluster| {
        let at = |path: &str| cluster.pointer(path);
        vec![
            text(cluster, "name"),
            at("/lag/lag/count").map_or_else(|| "-".to_owned(), cell),
            micros(at("/lag/lag/p50-us")),
            micros(at("/lag/lag/p99-us")),
            micros(at("/lag/lag/max-us")),
            micros(at("/lag/base-us")),
            micros(at("/commit/p50-us")),
            micros(at("/commit/p99-us")),
            age(cluster, "last-event-age-secs"),
            age(cluster, "heartbeat-age-secs"),
        ]
    });
    output::table(&columns, rows.collect::<Vec<_>>());
    let map = |key: &str| micros(all.pointer(&format!("/map/{key}")));
    if all.pointer("/map/count").and_then(Value::as_u64).unwrap_or(0) == 0 {
        println!("from rows to the datapath's map: nothing was written in the last hour");
    } else {
        println!(
            "from rows to the datapath's map: p50 {}, p99 {}, longest {}",
            map("p50-us"),
            map("p99-us"),
            map("max-us")
        );
    }
    if clusters.iter().any(|cluster| cluster.get("lag").is_none_or(Value::is_null)) {
        println!(
            "note: a cluster without figures writes no beats (Cilium's do not), or is read through a mirror"
        );
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_two_units() {
        for (secs, told) in [(0, "0s"), (59, "59s"), (61, "1m1s"), (3_600, "1h0m"), (90_000, "1d1h")] {
            assert_eq!(span(secs), told);
        }
    }
}
