//! `tombolo bgp`: sessions and routes in the columns that users of other speakers know, and what can be done to them.

mod explain;
mod policy;
mod rpki;
mod summary;

use super::client::{self, ClientError};
use super::commands::{PEER_COLUMNS, cell, json, objects};
use super::{Format, Reading, output};
use crate::daemon::bgp_api::Operation;
use clap::{Args, Subcommand, ValueEnum};
use http_body_util::BodyExt;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tombolo_bgp::PeerAction;
use tombolo_bgp_node::{Operated, PeerName};

/// `tombolo bgp`.
#[derive(Debug, Subcommand)]
pub(crate) enum BgpCommand {
    /// One line for each session, by address family
    Summary(Reading),
    /// Sessions, one line for each family
    Peers(Reading),
    /// All about one session: capabilities of both sides, timers, counters, last error, what comes next
    Peer {
        /// Name, instance/name or address
        name: String,
        #[command(flatten)]
        reading: Reading,
    },
    /// BFD sessions with the peers, as their unit keeps them
    Bfd(super::bfd::BfdArgs),
    /// Routes: received, advertised or best
    Routes {
        /// Which routes
        #[arg(default_value = "best")]
        kind: String,
        /// Only from, or told to, this peer
        #[arg(long)]
        peer: Option<String>,
        #[command(flatten)]
        filter: FilterArgs,
        #[command(flatten)]
        reading: Reading,
    },
    /// What a peer was told
    Advertised {
        /// Name, instance/name or address
        peer: String,
        #[command(flatten)]
        filter: FilterArgs,
        #[command(flatten)]
        reading: Reading,
    },
    /// What a peer told, with what was refused and why
    Received {
        /// Name, instance/name or address
        peer: String,
        #[command(flatten)]
        filter: FilterArgs,
        #[command(flatten)]
        reading: Reading,
    },
    /// Policies: what each peer's routes meet, and what a given route would
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// RPKI caches: where the exchange with each stands, and what it says
    Rpki(Reading),
    /// Write the routes received to an MRT file (TABLE_DUMP_V2), as bgpdump reads it
    Dump {
        /// The file; - is standard output
        file: PathBuf,
        /// Only from this peer: name, instance/name or address
        #[arg(long)]
        peer: Option<String>,
        /// The agent's local API
        #[arg(long, env = "TOMBOLO_SOCKET", default_value = crate::config::DEFAULT_SOCKET)]
        socket: PathBuf,
    },
    /// Reset sessions, or with --soft exchange routes again without a reset
    Clear {
        /// Name, instance/name or address
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        peer: Option<String>,
        /// All sessions of this node
        #[arg(long)]
        all: bool,
        /// Keep the session: ask for the routes again, tell all again, or both
        #[arg(long, value_enum)]
        soft: Option<Soft>,
        /// Text for the other operator (RFC 9003)
        #[arg(long, default_value = "", conflicts_with = "soft")]
        message: String,
        #[command(flatten)]
        reading: Reading,
    },
    /// End a session and keep it down until `start`, also if the agent starts again
    Shutdown {
        /// Name, instance/name or address
        peer: String,
        /// Text for the other operator (RFC 9003)
        #[arg(long)]
        message: String,
        #[command(flatten)]
        reading: Reading,
    },
    /// Take a shutdown back
    Start {
        /// Name, instance/name or address
        peer: String,
        #[command(flatten)]
        reading: Reading,
    },
}

/// Which direction is exchanged again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Soft {
    /// What the peer tells (RFC 2918).
    In,
    /// What the peer is told.
    Out,
    /// Both.
    Both,
}

/// Which routes.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct FilterArgs {
    /// Only this prefix; an address stands for every prefix that holds it
    #[arg(long)]
    prefix: Option<String>,
    /// Also what lies in the prefix
    #[arg(long, requires = "prefix")]
    longer: bool,
    /// Only this family: ipv4 or ipv6
    #[arg(long)]
    family: Option<String>,
    /// Only with this community, standard or large; parts may be ranges or *
    #[arg(long)]
    community: Option<String>,
}

/// Runs a command.
pub(crate) async fn run(command: BgpCommand) -> Result<ExitCode, ClientError> {
    match command {
        BgpCommand::Summary(reading) => summary::print(&reading).await,
        BgpCommand::Peers(reading) => objects(&reading, "/v1/bgp/peers", &PEER_COLUMNS).await,
        BgpCommand::Peer { name, reading } => explain::print(&reading, &name).await,
        BgpCommand::Bfd(args) => Ok(super::bfd::show(&args).await),
        BgpCommand::Routes { kind, peer, filter, reading } => {
            routes(&reading, &kind, peer.as_deref(), &filter).await
        }
        BgpCommand::Advertised { peer, filter, reading } => {
            routes(&reading, "advertised", Some(&peer), &filter).await
        }
        BgpCommand::Received { peer, filter, reading } => {
            routes(&reading, "received", Some(&peer), &filter).await
        }
        BgpCommand::Policy(command) => policy::run(command).await,
        BgpCommand::Rpki(reading) => rpki::print(&reading).await,
        BgpCommand::Dump { file, peer, socket } => dump(&socket, peer.as_deref(), &file).await,
        BgpCommand::Clear { peer, soft, message, reading, .. } => {
            let action = match soft {
                None => PeerAction::Clear { text: message },
                Some(Soft::In) => PeerAction::SoftIn,
                Some(Soft::Out) => PeerAction::SoftOut,
                Some(Soft::Both) => PeerAction::SoftBoth,
            };
            operate(&reading, peer, action).await
        }
        BgpCommand::Shutdown { peer, message, reading } => {
            operate(&reading, Some(peer), PeerAction::Shutdown { text: message }).await
        }
        BgpCommand::Start { peer, reading } => operate(&reading, Some(peer), PeerAction::Start).await,
    }
}

async fn operate(
    reading: &Reading,
    peer: Option<String>,
    action: PeerAction,
) -> Result<ExitCode, ClientError> {
    let operation = Operation { peer: peer.map(PeerName), action };
    let done: Vec<Operated> = client::post(&reading.socket, "/v1/bgp/operate", &operation).await?;
    match reading.output {
        Format::Json => json(&done)?,
        Format::Table => done.iter().for_each(|one| match &one.error {
            None => println!("{}/{}: done", one.instance, one.peer),
            Some(error) => eprintln!("tombolo: {}/{}: {error}", one.instance, one.peer),
        }),
    }
    let failed = done.iter().any(|one| one.error.is_some());
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn dump(socket: &Path, peer: Option<&str>, file: &Path) -> Result<ExitCode, ClientError> {
    let query = peer.map(|peer| format!("?peer={}", client::encode(peer))).unwrap_or_default();
    let mut body = client::open(socket, &format!("/v1/bgp/dump{query}")).await?;
    let failed = |error: std::io::Error| {
        ClientError::Refused(format!("cannot write {}: {error}; is there room?", file.display()))
    };
    let mut out: Box<dyn std::io::Write> = match file.to_str() {
        Some("-") => Box::new(std::io::stdout().lock()),
        _ => Box::new(std::fs::File::create(file).map_err(failed)?),
    };
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ClientError::Broken(socket.to_owned(), error))?;
        out.write_all(frame.data_ref().map_or(&[][..], |data| data)).map_err(failed)?;
    }
    out.flush().map_err(failed)?;
    Ok(ExitCode::SUCCESS)
}

/// The path of a query for routes.
fn routes_path(kind: &str, peer: Option<&str>, filter: &FilterArgs) -> String {
    let texts = [
        ("peer", peer),
        ("prefix", filter.prefix.as_deref()),
        ("family", filter.family.as_deref()),
        ("community", filter.community.as_deref()),
        ("longer", filter.longer.then_some("true")),
    ];
    let given = texts.iter().filter_map(|(key, value)| Some(format!("{key}={}", client::encode((*value)?))));
    let query: Vec<String> = given.collect();
    format!("/v1/bgp/routes/{}?{}", client::encode(kind), query.join("&"))
}

async fn routes(
    reading: &Reading,
    kind: &str,
    peer: Option<&str>,
    filter: &FilterArgs,
) -> Result<ExitCode, ClientError> {
    let rows: Vec<Value> = client::get(&reading.socket, &routes_path(kind, peer, filter)).await?;
    if reading.output == Format::Json {
        json(&rows)?;
        return Ok(ExitCode::SUCCESS);
    }
    println!("{} routes. > best, = equal, S stale, r refused\n", rows.len());
    output::table(
        &["", "NETWORK", "NEXT-HOP", "MED", "LOCPRF", "PATH", "PEER", "COMMUNITIES", "REFUSED"],
        rows.iter().map(route_cells).collect::<Vec<_>>(),
    );
    Ok(ExitCode::SUCCESS)
}

fn text(value: &Value, key: &str) -> String {
    value.get(key).map_or_else(|| "-".to_owned(), cell)
}

fn route_cells(route: &Value) -> Vec<String> {
    let is = |key: &str| route.get(key) == Some(&Value::Bool(true));
    let refused = route.get("refused").is_some_and(|value| !value.is_null());
    let marks = [(is("best"), '>'), (is("used") && !is("best"), '='), (is("stale"), 'S'), (refused, 'r')];
    let null = Value::Null;
    let attributes = route.get("attributes").unwrap_or(&null);
    let hop = route.get("next_hop").unwrap_or(&null);
    let origin = match text(attributes, "origin").as_str() {
        "igp" => "i",
        "egp" => "e",
        _ => "?",
    };
    let path = text(attributes, "as_path");
    let communities: Vec<String> = ["communities", "large_communities"]
        .iter()
        .map(|key| text(attributes, key))
        .filter(|text| text != "-" && !text.is_empty())
        .collect();
    vec![
        marks.iter().filter(|(set, _)| *set).map(|(_, mark)| *mark).collect(),
        text(route, "prefix"),
        hop.get("link_local").map_or_else(|| text(hop, "address"), |_| cell(hop)),
        text(attributes, "med"),
        text(attributes, "local_pref"),
        if path == "-" || path.is_empty() { origin.to_owned() } else { format!("{path} {origin}") },
        text(route, "peer"),
        communities.join(" "),
        text(route, "refused"),
    ]
}

/// Since when, and why, the operator shut a session down; none if he did not.
fn shut_down(peer: &Value) -> Option<String> {
    let why = peer.get("shutdown").filter(|why| !why.is_null()).map(cell)?;
    let since = peer.get("shutdown_since_unix_secs").and_then(Value::as_i64);
    let since = since.map(|secs| format!(" since {}", tombolo_clustermesh::certificate::date(secs)));
    let why = if why.is_empty() { String::new() } else { format!(": {why}") };
    Some(format!("shut down by the operator{}{why}", since.unwrap_or_default()))
}

/// Time as operators of routers read it: `00:03:21`, `2d03h15m`, `5w2d`.
fn uptime(secs: u64) -> String {
    let (days, hours, minutes) = (secs / 86_400, secs / 3600 % 24, secs / 60 % 60);
    match days {
        0 => format!("{hours:02}:{minutes:02}:{:02}", secs % 60),
        1..=6 => format!("{days}d{hours:02}h{minutes:02}m"),
        _ => format!("{}w{}d", days / 7, days % 7),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_query_is_encoded() {
        let filter = FilterArgs {
            prefix: Some("2001:db8::/32".into()),
            longer: true,
            community: Some("65000:*".into()),
            ..FilterArgs::default()
        };
        assert_eq!(
            routes_path("received", Some("tor/a"), &filter),
            "/v1/bgp/routes/received?peer=tor%2Fa&prefix=2001%3Adb8%3A%3A%2F32&community=65000%3A%2A&longer=true"
        );
    }

    #[test]
    fn a_route_is_a_line() {
        let route = json!({
            "prefix": "10.0.0.0/8", "peer": "tor", "next_hop": {"address": "192.0.2.1"}, "best": true, "used": true,
            "stale": true, "refused": null,
            "attributes": {"as_path": "65001 65002", "origin": "igp", "med": 7, "communities": ["65000:1"]},
        });
        assert_eq!(
            route_cells(&route),
            [">S", "10.0.0.0/8", "192.0.2.1", "7", "-", "65001 65002 i", "tor", "65000:1", "-"]
        );
    }

    #[test]
    fn times_are_read_as_on_routers() {
        let times = [0, 201, 184_500, 3_196_800].map(uptime);
        assert_eq!(times, ["00:00:00", "00:03:21", "2d03h15m", "5w2d"]);
    }
}
