//! A node's BGP sessions are those that its cluster's manifests ask for: peers, families, BFD.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

use super::access::{COMMAND_TIMEOUT, Place};
use super::check::{CheckResult, Failure, Family};
use super::context::Context;
use super::routers::Ends;

/// A session as the manifests have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Labels of the nodes that have it.
    selector: BTreeMap<String, String>,
    /// Name of the peer.
    peer: String,
    /// The peer's address; none if it is found by its router advertisements.
    address: Option<IpAddr>,
    families: BTreeSet<Family>,
    bfd: bool,
}

/// What manifests say of BGP sessions, document by document.
#[derive(Debug, Clone, Default)]
pub struct Sessions {
    instances: Vec<Value>,
    families: BTreeMap<String, BTreeSet<Family>>,
    with_bfd: BTreeSet<String>,
}

impl Sessions {
    /// Notes what a document says.
    pub fn take(&mut self, document: &Value) {
        let text = |at: &str| document.pointer(at).and_then(Value::as_str);
        let list = |at: &str| document.pointer(at).and_then(Value::as_array).into_iter().flatten();
        match text("/kind") {
            Some("CiliumBGPClusterConfig") => self.instances.push(document.clone()),
            Some("CiliumBGPPeerConfig") => {
                let family = |entry: &Value| match entry.get("afi").and_then(Value::as_str) {
                    Some("ipv4") => Some(Family::Ipv4),
                    Some("ipv6") => Some(Family::Ipv6),
                    _ => None,
                };
                let families = list("/spec/families").filter_map(family).collect();
                self.families.insert(text("/metadata/name").unwrap_or_default().to_owned(), families);
            }
            Some("BGPPeerPolicy") if document.pointer("/spec/bfd").is_some() => {
                let refs =
                    list("/spec/peers").filter_map(|peer| peer.pointer("/peerConfigRef/name")?.as_str());
                self.with_bfd.extend(refs.map(str::to_owned));
            }
            _ => {}
        }
    }

    /// The sessions of a node with these labels.
    fn of(&self, labels: &BTreeMap<String, String>) -> Vec<Wanted> {
        let all = self.instances.iter().flat_map(|document| self.wanted(document));
        all.filter(|wanted| wanted.selector.iter().all(|(key, value)| labels.get(key) == Some(value)))
            .collect()
    }

    fn wanted(&self, document: &Value) -> Vec<Wanted> {
        let selector = document.pointer("/spec/nodeSelector/matchLabels").and_then(Value::as_object);
        let label = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
        let selector: BTreeMap<String, String> = selector.into_iter().flatten().filter_map(label).collect();
        let array =
            |value: &Value, at: &str| value.get(at).and_then(Value::as_array).cloned().unwrap_or_default();
        let instances = document.pointer("/spec").map(|spec| array(spec, "bgpInstances")).unwrap_or_default();
        let peers = instances.iter().flat_map(|instance| array(instance, "peers"));
        peers
            .filter_map(|peer| {
                let config = peer.pointer("/peerConfigRef/name")?.as_str()?;
                Some(Wanted {
                    selector: selector.clone(),
                    peer: peer.get("name")?.as_str()?.to_owned(),
                    address: peer
                        .get("peerAddress")
                        .and_then(Value::as_str)
                        .and_then(|text| text.parse().ok()),
                    families: self.families.get(config).cloned().unwrap_or_default(),
                    bfd: self.with_bfd.contains(config),
                })
            })
            .collect()
    }
}

/// A row of `tombolo bgp peers`: a session and one family.
#[derive(Debug, Clone, Deserialize)]
struct PeerRow {
    peer: String,
    address: IpAddr,
    state: String,
    family: String,
}

#[derive(Debug, Deserialize)]
struct BfdStatus {
    sessions: Vec<BfdRow>,
}

#[derive(Debug, Deserialize)]
struct BfdRow {
    peer: IpAddr,
    state: String,
}

const PEERS: [&str; 5] = ["tombolo", "bgp", "peers", "-o", "json"];
const BFD: [&str; 5] = ["tombolo", "bgp", "bfd", "-o", "json"];

/// The check of one node.
///
/// # Errors
/// The first session that is not as it should be.
pub(super) async fn check(context: &Context, node: &str) -> CheckResult {
    let place = Place::node(node);
    let look = |argv: &[&str]| context.access.shown(&place, argv);
    let (cluster, facts) = context
        .inventory
        .clusters
        .values()
        .find_map(|cluster| Some((cluster, cluster.nodes.get(node)?)))
        .ok_or_else(|| Failure::new(format!("a node {node}"), "none", "the Node manifests"))?;
    let wanted = cluster.sessions.of(&facts.labels);
    if wanted.is_empty() {
        let what = format!("the manifests of {} give {node} BGP sessions", cluster.name);
        return Err(Failure::new(what, "none", cluster.manifests.display().to_string()));
    }
    let rows: Vec<PeerRow> = context.access.json(&place, &PEERS, COMMAND_TIMEOUT).await?;
    let ends = Ends::of_lab(context).await?;
    let tors: Vec<&str> = context.inventory.tors_of(&cluster.name).collect();
    let is_tor = |address: &IpAddr| ends.node(address).is_some_and(|node| tors.contains(&node));
    let mut notes = Vec::new();
    for session in &wanted {
        let held: Vec<&PeerRow> = rows.iter().filter(|row| row.peer == session.peer).collect();
        if let Some(wrong) = differs(session, &held, is_tor) {
            let what = format!("{node} has the session {session:?}, with a ToR of {}", cluster.name);
            return Err(Failure::new(what, wrong, look(&PEERS)));
        }
        let families: Vec<String> = session.families.iter().map(ToString::to_string).collect();
        let bfd = if session.bfd { " and BFD" } else { "" };
        let address = held.first().map(|row| row.address.to_string()).unwrap_or_default();
        notes.push(format!("{} at {address} with {}{bfd}", session.peer, families.join(", ")));
    }
    if let Some(extra) = rows.iter().find(|row| !wanted.iter().any(|wanted| wanted.peer == row.peer)) {
        return Err(Failure::new(format!("{node} has no other session"), format!("{extra:?}"), look(&PEERS)));
    }
    if wanted.iter().any(|session| session.bfd) {
        let status: BfdStatus = context.access.json(&place, &BFD, COMMAND_TIMEOUT).await?;
        let up = |address: IpAddr| {
            status.sessions.iter().any(|row| row.peer == address && row.state.eq_ignore_ascii_case("up"))
        };
        let with_bfd =
            rows.iter().filter(|row| wanted.iter().any(|wanted| wanted.bfd && wanted.peer == row.peer));
        if let Some(down) = with_bfd.map(|row| row.address).find(|address| !up(*address)) {
            let what = format!("BFD of {node} with {down} is up");
            return Err(Failure::new(what, format!("{status:?}"), look(&BFD)));
        }
    }
    Ok(notes)
}

/// What is not as wanted, in words.
fn differs(wanted: &Wanted, held: &[&PeerRow], is_tor: impl Fn(&IpAddr) -> bool) -> Option<String> {
    let families: BTreeSet<String> = held.iter().map(|row| row.family.clone()).collect();
    let expected: BTreeSet<String> =
        wanted.families.iter().map(|family| format!("{family}-unicast")).collect();
    let link_local = |address: &IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let right = |row: &&&PeerRow| {
        row.state == "established"
            && is_tor(&row.address)
            && wanted.address.map_or(link_local(&row.address), |address| address == row.address)
    };
    let fine = !held.is_empty() && families == expected && held.iter().filter(right).count() == held.len();
    (!fine).then(|| format!("{held:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFESTS: &str = r#"
kind: CiliumBGPClusterConfig
spec:
  nodeSelector: {matchLabels: {host: n1}}
  bgpInstances: [{name: a, peers: [
    {name: four, peerAddress: 192.0.2.1, peerConfigRef: {name: v4}},
    {name: both, autoDiscovery: {mode: Unnumbered}, peerConfigRef: {name: v46}}]}]
---
{kind: CiliumBGPPeerConfig, metadata: {name: v4}, spec: {families: [{afi: ipv4, safi: unicast}]}}
---
{kind: CiliumBGPPeerConfig, metadata: {name: v46}, spec: {families: [{afi: ipv4}, {afi: ipv6}]}}
---
{kind: BGPPeerPolicy, spec: {peers: [{peerConfigRef: {name: v46}}], bfd: {}}}
"#;

    fn sessions(host: &str) -> Vec<Wanted> {
        let mut sessions = Sessions::default();
        super::super::inventory::documents(MANIFESTS)
            .expect("YAML")
            .iter()
            .for_each(|one| sessions.take(one));
        sessions.of(&BTreeMap::from([("host".to_owned(), host.to_owned())]))
    }

    #[test]
    fn manifests_say_which_sessions_a_node_has() {
        assert_eq!(sessions("n2"), []);
        let all = sessions("n1");
        let told: Vec<_> = all
            .iter()
            .map(|one| (one.peer.as_str(), one.address.is_some(), one.families.len(), one.bfd))
            .collect();
        assert_eq!(told, [("four", true, 1, false), ("both", false, 2, true)]);
    }

    #[test]
    fn a_session_is_judged_by_state_address_and_families() {
        let row = |address: &str, state: &str, family: &str| PeerRow {
            peer: "x".into(),
            address: address.parse().expect("literal"),
            state: state.into(),
            family: family.into(),
        };
        let [four, both] = sessions("n1").try_into().expect("two");
        let wrong = |wanted: &Wanted, rows: &[PeerRow]| {
            differs(wanted, &rows.iter().collect::<Vec<_>>(), |address| address.to_string() != "fe80::9")
                .is_some()
        };
        assert!(!wrong(&four, &[row("192.0.2.1", "established", "ipv4-unicast")]));
        assert!(wrong(&four, &[]));
        assert!(wrong(&four, &[row("192.0.2.1", "active", "ipv4-unicast")]));
        assert!(wrong(&four, &[row("192.0.2.2", "established", "ipv4-unicast")]));
        assert!(wrong(&four, &[row("192.0.2.1", "established", "ipv6-unicast")]));
        let pair = |address: &str| {
            ["ipv4-unicast", "ipv6-unicast"].map(|family| row(address, "established", family))
        };
        assert!(!wrong(&both, &pair("fe80::1")));
        assert!(wrong(&both, &pair("fe80::9")), "not a ToR's");
        assert!(wrong(&both, &pair("fd00::1")), "not found by its advertisements");
        assert!(wrong(&both, &pair("fe80::1")[..1]));
    }
}
