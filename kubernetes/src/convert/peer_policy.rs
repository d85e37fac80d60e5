//! BGPPeerPolicy, our own kind: what the `cilium.io` kinds have no field for.

use super::bgp::{MAX_ASN, MAX_ENTRIES, at_most, opt};
use super::{number, selector, word};
use crate::crd;
use crate::object::{Object, ObjectId};
use crate::problem::{Issue, shorten};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;
use tombolo_base::source::Source;
use tombolo_bgp::policy::Policy;
use tombolo_topology::bgp::{
    AddPath, BfdProfile, LimitAction, MaxPrefixes, PeerMatch, PeerPolicyRow, PeerTuning, PolicyDocument, Role,
};

/// Longest interval that a BFD packet's field holds, in milliseconds.
const BFD_MAX_MS: i64 = 4_294_000;
/// What this node may be to a peer (RFC 9234).
const ROLES: [(&str, Role); 5] = [
    ("Provider", Role::Provider),
    ("RouteServer", Role::RouteServer),
    ("RouteServerClient", Role::RouteServerClient),
    ("Customer", Role::Customer),
    ("Peer", Role::Peer),
];
/// How often the speaker prepends at most.
const MAX_PREPEND: i64 = 32;
/// Longest time that RFC 9494 has room for, in seconds.
const LONGEST_STALE_SECS: i64 = 16_777_215;
/// Most next hops of one kernel route that anybody asks for.
const MAX_PATHS: i64 = 256;

fn peers(entries: Vec<crd::PolicyPeer>) -> Result<Vec<PeerMatch>, Issue> {
    if entries.is_empty() {
        return Err(Issue::new(
            "spec.peers",
            "no peer is selected",
            "name a peerConfigRef, an instance or a peer",
        ));
    }
    at_most("spec.peers", &entries, MAX_ENTRIES)?;
    let mut out = Vec::new();
    for (position, entry) in entries.into_iter().enumerate() {
        let text = |text: Option<String>| text.filter(|text| !text.is_empty()).map(Arc::from);
        let one = PeerMatch {
            peer_config: text(entry.peer_config_ref.map(|reference| reference.name)),
            instance: text(entry.instance),
            peer: text(entry.peer),
        };
        if one.peer_config.is_none() && one.instance.is_none() && one.peer.is_none() {
            let remedy = "give peerConfigRef.name, instance or peer";
            return Err(Issue::new(format!("spec.peers[{position}]"), "it selects nothing", remedy));
        }
        out.push(one);
    }
    Ok(out)
}

fn limit(entry: &crd::PolicyLimit) -> Result<MaxPrefixes, Issue> {
    const ACTIONS: [(&str, &str); 4] =
        [("Warn", "Warn"), ("Discard", "Discard"), ("Restart", "Restart"), ("Stop", "Stop")];
    let action = word("spec.maxPrefixes.action", entry.action.as_deref().unwrap_or("Stop"), &ACTIONS)?;
    if action != "Restart" && entry.restart_seconds.is_some() {
        let remedy = "leave it out, or use action: Restart";
        return Err(Issue::new("spec.maxPrefixes.restartSeconds", "it is for the action Restart", remedy));
    }
    let secs = number("spec.maxPrefixes.restartSeconds", entry.restart_seconds.unwrap_or(300), 1, 86_400)?;
    Ok(MaxPrefixes {
        limit: number("spec.maxPrefixes.limit", entry.limit, 1, i64::from(u32::MAX))?,
        warning_percent: number(
            "spec.maxPrefixes.warningPercent",
            entry.warning_percent.unwrap_or(75),
            1,
            100,
        )?,
        action: match action {
            "Warn" => LimitAction::Warn,
            "Discard" => LimitAction::Discard,
            "Restart" => LimitAction::Restart(secs),
            _ => LimitAction::Stop,
        },
    })
}

fn bfd(entry: crd::PolicyBfd) -> Result<BfdProfile, Issue> {
    let interval = |key: &str, value: Option<i64>, low, default| {
        number(format!("spec.bfd.{key}IntervalMilliseconds"), value.unwrap_or(default), low, BFD_MAX_MS)
    };
    Ok(BfdProfile {
        transmit_ms: interval("transmit", entry.transmit_interval_milliseconds, 1, 300)?,
        receive_ms: interval("receive", entry.receive_interval_milliseconds, 1, 300)?,
        echo_receive_ms: interval("echoReceive", entry.echo_receive_interval_milliseconds, 0, 0)?,
        detect_multiplier: number("spec.bfd.detectMultiplier", entry.detect_multiplier.unwrap_or(3), 1, 255)?,
        passive: entry.passive.unwrap_or(false),
    })
}

/// Statements that the short forms stand for. They come first; MED and prepend are done to whatever is accepted later.
fn short_forms(at: &str, rules: &crd::PolicyRules, import: bool) -> Result<Vec<Value>, Issue> {
    let mut statements = Vec::new();
    for (key, there) in [("med", rules.med.is_some()), ("prepend", rules.prepend.is_some())] {
        if import && there {
            let remedy = "write it under spec.export, or as an action of a statement";
            return Err(Issue::new(format!("{at}.{key}"), "it is for what is advertised", remedy));
        }
    }
    let med = opt(rules.med, |med| number::<u32>(format!("{at}.med"), med, 0, MAX_ASN))?;
    let times = opt(rules.prepend, |times| number::<u8>(format!("{at}.prepend"), times, 1, MAX_PREPEND))?;
    let med = med.map(|med| json!({"med": {"set": med}}));
    let prepend = times.map(|times| json!({"prepend": {"times": times}}));
    let actions: Vec<Value> = med.into_iter().chain(prepend).collect();
    if !actions.is_empty() {
        statements.push(json!({"name": "all", "actions": actions, "then": "next"}));
    }
    if let Some(ranges) = &rules.allow {
        at_most(&format!("{at}.allow"), ranges, MAX_ENTRIES)?;
        statements.push(json!({"name": "allow", "when": [{"prefixes": ranges}], "then": "accept"}));
    }
    Ok(statements)
}

/// A policy of the speaker, read by the speaker's own types: what it would refuse is refused here, with its place.
fn policy(
    at: &str,
    name: &str,
    rules: Option<crd::PolicyRules>,
    import: bool,
) -> Result<Option<PolicyDocument>, Issue> {
    let Some(rules) = rules else { return Ok(None) };
    let mut statements = short_forms(at, &rules, import)?;
    let before = statements.len();
    match rules.statements {
        Value::Null => {}
        Value::Array(written) => statements.extend(written),
        _ => {
            return Err(Issue::new(format!("{at}.statements"), "it is no list", "write statements with `-`"));
        }
    }
    let mut document = json!({"name": name, "statements": statements});
    if let (Some(text), Some(map)) = (rules.default, document.as_object_mut()) {
        map.insert("default".to_owned(), Value::String(text));
    }
    let read: Policy = serde_path_to_error::deserialize(&document).map_err(|error| {
        let place = error.path().to_string();
        let reason = shorten(&error.into_inner().to_string());
        Issue::new(written_place(at, &place, before), reason, "docs/bgp.md lists conditions and actions")
    })?;
    read.check(import).map_err(|(what, remedy)| Issue::new(at, what, remedy))?;
    let json = serde_json::to_string(&read)
        .map_err(|error| Issue::new(at, error.to_string(), "report this: it is a bug"))?;
    Ok(Some(PolicyDocument::new(json)))
}

/// Where a part of the document stands in the manifest: short forms come before what is written.
fn written_place(at: &str, place: &str, before: usize) -> String {
    let Some((index, rest)) = place.strip_prefix("statements[").and_then(|rest| rest.split_once(']')) else {
        return format!("{at}.{place}");
    };
    match index.parse::<usize>().ok().map(|index| index.checked_sub(before)) {
        Some(Some(index)) => format!("{at}.statements[{index}]{rest}"),
        // The ranges are the only short form whose content the speaker reads.
        _ => format!("{at}.allow"),
    }
}

fn next_hop<A: FromStr>(at: &str, text: Option<String>, family: &str) -> Result<Option<A>, Issue> {
    let read = |text: String| {
        text.parse().map_err(|_| {
            let reason = format!("{:?} is no {family} address", shorten(&text));
            Issue::new(at, reason, format!("write an {family} address of this node"))
        })
    };
    text.map(read).transpose()
}

fn tuning(name: &str, spec: crd::PeerPolicySpec) -> Result<PeerTuning, Issue> {
    let mut tuning = PeerTuning::default();
    if let Some(session) = spec.session {
        tuning.passive = session.passive.unwrap_or(false);
        tuning.extended_messages = session.extended_messages.unwrap_or(false);
        tuning.any_first_as = !session.enforce_first_as.unwrap_or(true);
        tuning.extended_next_hop = session.extended_next_hop;
        tuning.accept_blackhole = session.accept_blackhole.unwrap_or(false);
        let strict = session.strict_role.unwrap_or(false);
        let role = session.role.as_deref().map(|text| word("spec.session.role", text, &ROLES)).transpose()?;
        if role.is_none() && session.strict_role.is_some() {
            let remedy = "give spec.session.role, or leave strictRole out";
            return Err(Issue::new("spec.session.strictRole", "there is no role", remedy));
        }
        tuning.role = role.map(|role| (role, strict));
        tuning.reflector_client = session.reflector_client.unwrap_or(false);
        tuning.route_server_client = session.route_server_client.unwrap_or(false);
        tuning.gtsm_hops =
            opt(session.ttl_security_hops, |hops| number("spec.session.ttlSecurityHops", hops, 1, 254))?;
        tuning.group = session.group.filter(|name| !name.is_empty()).map(Into::into);
    }
    tuning.bfd = spec.bfd.map(bfd).transpose()?;
    tuning.max_prefixes = spec.max_prefixes.as_ref().map(limit).transpose()?;
    if let Some(entry) = spec.add_path {
        let send = opt(entry.send, |count| number("spec.addPath.send", count, 0, 255))?;
        tuning.add_path = Some(AddPath { receive: entry.receive.unwrap_or(false), send });
    }
    if let Some(entry) = spec.long_lived_graceful_restart {
        let at = "spec.longLivedGracefulRestart.staleTimeSeconds";
        tuning.long_lived_secs = Some(number(at, entry.stale_time_seconds, 1, LONGEST_STALE_SECS)?);
    }
    if let Some(multipath) = spec.multipath {
        tuning.max_paths = Some(number("spec.multipath.maxPaths", multipath.max_paths, 1, MAX_PATHS)?);
    }
    if let Some(hops) = spec.next_hops {
        tuning.next_hop_ipv4 = next_hop::<Ipv4Addr>("spec.nextHops.ipv4", hops.ipv4, "IPv4")?;
        tuning.next_hop_ipv6 = next_hop::<Ipv6Addr>("spec.nextHops.ipv6", hops.ipv6, "IPv6")?;
    }
    tuning.import = policy("spec.import", &format!("{name}/import"), spec.import, true)?;
    tuning.export = policy("spec.export", &format!("{name}/export"), spec.export, false)?;
    Ok(tuning)
}

pub(super) fn peer_policy(id: &ObjectId, mut spec: crd::PeerPolicySpec) -> Result<Object, Issue> {
    Ok(Object::PeerPolicy(Box::new(PeerPolicyRow {
        source: Source::Manifests,
        name: id.name.clone(),
        node_selector: selector("spec.nodeSelector", spec.node_selector.take().unwrap_or_default())?,
        peers: peers(std::mem::take(&mut spec.peers))?,
        tuning: tuning(&id.name, spec)?,
    })))
}
