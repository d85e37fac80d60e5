//! What is in the kernel's maps rather than in a table of ours: flows, source translations, how full each map is,
//! and what became of packets.

use super::show::Shown;
use serde_json::json;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tombolo_ebpf::{
    ConntrackKind, Datapath, DatapathError, Direction, FlowFilter, MapUsage, Metric, SiteMetric, Translation,
};
use tombolo_observe::names;

/// Their names, beside those of the tables.
pub(crate) const NAMES: [&str; 5] = ["conntrack", "drops", "maps", "packets", "snat"];

/// Rows that one answer holds at most; a filter finds the others.
const MOST: usize = 20_000;

/// A kernel table by its name; `None` if it is none. Walks whole maps, on a thread of its own.
pub(crate) async fn show(
    datapath: &Arc<Datapath>,
    name: &str,
    filter: FlowFilter,
) -> Option<Result<Shown, String>> {
    let read: fn(&Datapath, &FlowFilter) -> Result<Shown, DatapathError> = match name {
        "conntrack" => flows,
        "snat" => translations,
        "drops" => |datapath, _| drops(datapath),
        "maps" => |datapath, _| Ok(maps(&datapath.usage())),
        "packets" => |datapath, _| Ok(packets(datapath.metrics()?)),
        _ => return None,
    };
    let datapath = datapath.clone();
    let read = tokio::task::spawn_blocking(move || read(&datapath, &filter)).await;
    Some(read.map_err(|error| error.to_string()).and_then(|shown| shown.map_err(|error| error.to_string())))
}

/// Makes the datapath forget flows; how many entries went.
pub(crate) async fn flush(datapath: &Arc<Datapath>, filter: FlowFilter) -> Result<serde_json::Value, String> {
    let datapath = datapath.clone();
    let flushed = tokio::task::spawn_blocking(move || datapath.flush(&filter)).await;
    let flushed = flushed.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    tracing::info!(entries = flushed, "flows forgotten, as the command line asked");
    Ok(json!({ "flushed": flushed }))
}

fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        132 => "sctp".to_owned(),
        other => other.to_string(),
    }
}

fn end((ip, port): (IpAddr, u16)) -> String {
    SocketAddr::new(ip, port).to_string()
}

fn seconds_left(expires_ns: u64) -> u64 {
    expires_ns.saturating_sub(tombolo_ebpf::monotonic_ns()) / 1_000_000_000
}

const fn state(answered: bool, closing: bool) -> &'static str {
    match (answered, closing) {
        (_, true) => "closing",
        (true, false) => "established",
        (false, false) => "half-open",
    }
}

fn table<const N: usize>(columns: [&str; N], rows: Vec<(Vec<String>, serde_json::Value)>) -> Shown {
    let total = rows.len();
    let (cells, rows): (Vec<_>, Vec<_>) = rows.into_iter().take(MOST).unzip();
    let notes = (total > MOST)
        .then(|| format!("{} more; give --ip, --port or --protocol (tombolo conntrack)", total - MOST));
    Shown {
        columns: columns.iter().map(ToString::to_string).collect(),
        cells,
        rows,
        notes: notes.into_iter().collect(),
        ..Shown::default()
    }
}

fn flows(datapath: &Datapath, filter: &FlowFilter) -> Result<Shown, DatapathError> {
    let mut found = datapath.flows(filter)?;
    found.sort_by_key(|flow| (flow.source, flow.destination, flow.protocol, flow.kind));
    let mut frontends = HashMap::new();
    let mut rows = Vec::new();
    for flow in found {
        let frontend = match frontends.get(&flow.rev_nat) {
            Some(known) => *known,
            None => *frontends.entry(flow.rev_nat).or_insert(datapath.frontend_of(flow.rev_nat)?),
        };
        let kind = match flow.kind {
            ConntrackKind::Egress => "egress",
            ConntrackKind::Ingress => "ingress",
            ConntrackKind::Service => "service",
            ConntrackKind::HostIn => "host-in",
            ConntrackKind::HostOut => "host-out",
        };
        // A service's entry has the frontend as its destination.
        let service = frontend.filter(|_| flow.kind != ConntrackKind::Service).map(end);
        let (left, state) = (seconds_left(flow.expires_ns), state(flow.established, flow.closing));
        let cells = vec![
            kind.to_owned(),
            protocol(flow.protocol),
            end(flow.source),
            end(flow.destination),
            service.clone().unwrap_or_else(|| "-".to_owned()),
            state.to_owned(),
            flow.identity.to_string(),
            format!("{}/{}", flow.packets[0], flow.packets[1]),
            format!("{}/{}", flow.bytes[0], flow.bytes[1]),
            format!("{left}s"),
        ];
        let value = json!({
            "kind": kind, "protocol": protocol(flow.protocol), "source": end(flow.source),
            "destination": end(flow.destination), "frontend": service, "state": state,
            "identity": flow.identity, "packets": flow.packets, "bytes": flow.bytes,
            "expires_secs": left, "backend": flow.backend,
        });
        rows.push((cells, value));
    }
    let columns =
        ["KIND", "PROTOCOL", "SOURCE", "DESTINATION", "VIA", "STATE", "IDENTITY", "PACKETS", "BYTES", "LEFT"];
    Ok(table(columns, rows))
}

fn translations(datapath: &Datapath, filter: &FlowFilter) -> Result<Shown, DatapathError> {
    let mut found = datapath.translations(filter)?;
    found.sort_by_key(|flow| (flow.client, flow.backend, flow.protocol));
    let row = |flow: Translation| {
        let (left, state) = (seconds_left(flow.expires_ns), state(flow.answered, flow.closing));
        let ends = [flow.client, flow.backend, flow.node].map(end);
        let value = json!({
            "protocol": protocol(flow.protocol), "client": ends[0], "backend": ends[1], "node": ends[2],
            "state": state, "expires_secs": left,
        });
        let [client, backend, node] = ends;
        let cells =
            vec![protocol(flow.protocol), client, backend, node, state.to_owned(), format!("{left}s")];
        (cells, value)
    };
    let columns = ["PROTOCOL", "CLIENT", "BACKEND", "AS", "STATE", "LEFT"];
    Ok(table(columns, found.into_iter().map(row).collect()))
}

/// Where packets were dropped since the maps were made, the busiest places first.
fn drops(datapath: &Datapath) -> Result<Shown, DatapathError> {
    let mut found = datapath.site_metrics()?;
    found.sort_by_key(|metric| (std::cmp::Reverse(metric.packets), metric.site));
    let row = |metric: SiteMetric| {
        let direction = if metric.direction == Direction::Ingress { "ingress" } else { "egress" };
        // A place of an earlier program, whose lines were others.
        let (reason, place, why, remedy) = match tombolo_ebpf::site(metric.site) {
            Some(site) => (site.number, format!("{}:{}", site.file, site.line), site.why, site.remedy),
            None => (0, metric.site.to_string(), "a place of an earlier version's programs", "-"),
        };
        let name = if reason == 0 { "not dropped".to_owned() } else { names::drop_reason(reason).to_owned() };
        let value = json!({
            "reason": reason, "reason_desc": name, "site": metric.site, "place": place, "direction": direction,
            "packets": metric.packets, "bytes": metric.bytes, "why": why, "remedy": remedy,
        });
        let number = if reason == 0 { "-".to_owned() } else { reason.to_string() };
        let (packets, bytes) = (metric.packets.to_string(), metric.bytes.to_string());
        let texts = [why.to_owned(), remedy.to_owned()];
        let cells =
            [number, name, place, direction.to_owned(), packets, bytes].into_iter().chain(texts).collect();
        (cells, value)
    };
    let columns = ["REASON", "NAME", "PLACE", "DIRECTION", "PACKETS", "BYTES", "WHY", "TRY"];
    Ok(table(columns, found.into_iter().map(row).collect()))
}

fn maps(usage: &[MapUsage]) -> Shown {
    let row = |map: &MapUsage| {
        let percent = map.percent();
        let option = map.option().map(|option| format!("datapath.maps.{option}"));
        let value = json!({
            "map": map.map, "entries": map.entries, "capacity": map.capacity, "percent": percent,
            "option": option, "evicts": map.evicts(),
        });
        let full = if map.evicts() { "the oldest go" } else { "refused" };
        let cells = vec![
            map.map.to_owned(),
            map.entries.to_string(),
            map.capacity.to_string(),
            format!("{percent}%"),
            full.to_owned(),
            option.unwrap_or_else(|| "-".to_owned()),
        ];
        (cells, value)
    };
    table(["MAP", "ENTRIES", "CAPACITY", "USED", "WHEN-FULL", "OPTION"], usage.iter().map(row).collect())
}

/// Packets and bytes by what became of them, as the metrics count them.
fn packets(mut counted: Vec<Metric>) -> Shown {
    counted.sort_by_key(|metric| (metric.reason, metric.direction == Direction::Egress));
    let row = |metric: Metric| {
        let reason = if metric.reason == 0 { "FORWARDED" } else { names::drop_reason(metric.reason) };
        let direction = if metric.direction == Direction::Ingress { "ingress" } else { "egress" };
        let value = json!({
            "number": metric.reason, "reason": reason, "direction": direction,
            "packets": metric.packets, "bytes": metric.bytes,
        });
        let cells = vec![
            reason.to_owned(),
            metric.reason.to_string(),
            direction.to_owned(),
            metric.packets.to_string(),
            metric.bytes.to_string(),
        ];
        (cells, value)
    };
    table(["REASON", "NUMBER", "DIRECTION", "PACKETS", "BYTES"], counted.into_iter().map(row).collect())
}
