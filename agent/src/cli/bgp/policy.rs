//! `tombolo bgp policy`: what policies there are, and what a route would meet at one.

use super::super::client::{self, ClientError};
use super::super::commands::{cell, json};
use super::super::{Format, Reading, output};
use super::text;
use crate::daemon::bgp_api::RouteTrial;
use clap::{Args, Subcommand};
use serde_json::Value;
use std::net::IpAddr;
use std::process::ExitCode;
use tombolo_bgp_node::PeerName;

/// `tombolo bgp policy`.
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// The policies of all peers, or of one, statement by statement
    Show {
        /// Name, instance/name or address
        peer: Option<String>,
        #[command(flatten)]
        reading: Reading,
    },
    /// What a given route would meet, and which statement decides
    Test(Box<TestArgs>),
}

/// `tombolo bgp policy test`.
#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// Whose policy: name, instance/name or address
    peer: String,
    /// The route's prefix
    prefix: ipnet::IpNet,
    /// Try the export policy, as if the route were to be told to the peer
    #[arg(long)]
    export: bool,
    /// With --export: the name of the peer it is from; without, this node originates it
    #[arg(long, requires = "export")]
    from: Option<String>,
    /// AS numbers, nearest first
    #[arg(long, value_delimiter = ',')]
    as_path: Vec<u32>,
    /// igp, egp or incomplete
    #[arg(long, default_value = "igp")]
    origin: String,
    /// The next hop
    #[arg(long)]
    next_hop: Option<IpAddr>,
    /// A standard or large community; may be given several times
    #[arg(long)]
    community: Vec<String>,
    /// MULTI_EXIT_DISC
    #[arg(long)]
    med: Option<u32>,
    /// LOCAL_PREF
    #[arg(long)]
    local_pref: Option<u32>,
    #[command(flatten)]
    reading: Reading,
}

/// Runs a command.
pub(super) async fn run(command: PolicyCommand) -> Result<ExitCode, ClientError> {
    match command {
        PolicyCommand::Show { peer, reading } => show(&reading, peer.as_deref()).await,
        PolicyCommand::Test(args) => test(*args).await,
    }
}

async fn show(reading: &Reading, peer: Option<&str>) -> Result<ExitCode, ClientError> {
    let query = peer.map(|peer| format!("?peer={}", client::encode(peer))).unwrap_or_default();
    let peers: Vec<Value> = client::get(&reading.socket, &format!("/v1/bgp/states{query}")).await?;
    let null = Value::Null;
    let policies: Vec<Value> = peers
        .iter()
        .map(|peer| {
            let get = |key: &str| peer.get(key).unwrap_or(&null);
            serde_json::json!({
                "instance": get("instance"), "peer": get("name"), "import": get("import"), "export": get("export"),
            })
        })
        .collect();
    if reading.output == Format::Json {
        json(&policies)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows = policies.iter().flat_map(|peer| {
        ["import", "export"].into_iter().flat_map(move |direction| {
            let policy = peer.get(direction).unwrap_or(&Value::Null);
            statements(policy).into_iter().map(move |statement| {
                let mut row = vec![text(peer, "peer"), direction.to_owned(), text(policy, "name")];
                row.extend(statement);
                row
            })
        })
    });
    output::table(
        &["PEER", "DIRECTION", "POLICY", "STATEMENT", "WHEN", "DO", "THEN"],
        rows.collect::<Vec<_>>(),
    );
    Ok(ExitCode::SUCCESS)
}

/// Name, conditions, actions and what follows, of each statement; the default comes last.
fn statements(policy: &Value) -> Vec<Vec<String>> {
    let all = policy.get("statements").and_then(Value::as_array).into_iter().flatten();
    let list = |statement: &Value, key: &str| {
        let items = statement.get(key).and_then(Value::as_array).into_iter().flatten();
        items.map(cell).collect::<Vec<_>>().join("; ")
    };
    let mut rows: Vec<Vec<String>> = all
        .map(|statement| {
            let (when, actions) = (list(statement, "when"), list(statement, "actions"));
            vec![text(statement, "name"), when, actions, text(statement, "then")]
        })
        .collect();
    rows.push(vec!["(default)".to_owned(), String::new(), String::new(), text(policy, "default")]);
    rows
}

async fn test(args: TestArgs) -> Result<ExitCode, ClientError> {
    let trial = RouteTrial {
        peer: PeerName(args.peer),
        export: args.export,
        from: args.from,
        prefix: args.prefix,
        next_hop: args.next_hop,
        as_path: args.as_path,
        origin: serde_json::from_value(Value::String(args.origin.clone())).map_err(|_| {
            ClientError::Refused(format!("--origin {:?}: igp, egp or incomplete", args.origin))
        })?,
        communities: args.community,
        med: args.med,
        local_pref: args.local_pref,
    };
    let tried: Vec<Value> = client::post(&args.reading.socket, "/v1/bgp/policy/test", &trial).await?;
    if args.reading.output == Format::Json {
        json(&tried)?;
    } else {
        tried.iter().for_each(print);
    }
    let accepted = tried.iter().all(|one| verdict(one) == Some(true));
    Ok(if accepted { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn verdict(tried: &Value) -> Option<bool> {
    tried.get("evaluation")?.get("accepted")?.as_bool()
}

fn print(tried: &Value) {
    let peer = text(tried, "peer");
    let Some(evaluation) = tried.get("evaluation") else {
        println!("{peer}: {}", text(tried, "error"));
        return;
    };
    let word = if verdict(tried) == Some(true) { "accepted" } else { "refused" };
    let by = evaluation
        .get("decidedBy")
        .map_or_else(|| "the default".to_owned(), |name| format!("statement {}", cell(name)));
    println!("{peer}: {word} by {by}\n");
    let trace = evaluation.get("trace").and_then(Value::as_array).into_iter().flatten();
    let rows = trace.map(|step| {
        let outcome = match step.get("failed") {
            Some(condition) => format!("no: {}", cell(condition)),
            None => "applies".to_owned(),
        };
        let then = if step.get("failed").is_some() { "-".to_owned() } else { text(step, "then") };
        vec![text(step, "statement"), outcome, text(step, "actions"), then]
    });
    output::table(&["STATEMENT", "APPLIES", "DOES", "THEN"], rows.collect::<Vec<_>>());
    if word == "accepted"
        && let Some(attributes) = evaluation.get("attributes")
    {
        println!("\nleaves with: {}", cell(attributes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_policy_is_listed_with_its_default() {
        let policy = json!({
            "name": "in", "default": "reject",
            "statements": [{"name": "ours", "when": [{"prefixes": ["10.0.0.0/8 le 24"]}], "then": "accept"}],
        });
        let rows = statements(&policy);
        assert_eq!(rows[0], ["ours", "prefixes=10.0.0.0/8 le 24", "", "accept"]);
        assert_eq!(rows[1], ["(default)", "", "", "reject"]);
        assert_eq!(verdict(&json!({"evaluation": {"accepted": false}})), Some(false));
    }
}
