//! BGP in the local API: what can be asked and done, and how answers look. Their JSON is stable: keys may be added, none is renamed.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tombolo_bgp::{
    AsPath, Attributes, Family, NextHop, PeerAction, PolicyQuestion, PrefixFilter, RouteFilter, RouteView,
};
use tombolo_bgp_node::{BgpNode, InstancePeer, InstanceRoute, PeerName};
use tombolo_observe::metrics::{Metrics, PeerFamilyLabels, PeerLabels, PeerMessageLabels};

/// Which routes are asked for; what is absent does not matter.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct RouteQuery {
    /// From or to this peer: name, instance/name or address.
    pub(crate) peer: Option<String>,
    /// `ipv4` or `ipv6`.
    pub(crate) family: Option<String>,
    /// A prefix; an address stands for every prefix that holds it.
    pub(crate) prefix: Option<String>,
    /// Also what lies in the prefix.
    #[serde(default)]
    pub(crate) longer: bool,
    /// A community, standard or large; parts may be ranges or `*`.
    pub(crate) community: Option<String>,
}

/// Something to do to a peer, or to all.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Operation {
    /// Name, instance/name or address; none is all.
    pub(crate) peer: Option<PeerName>,
    /// What to do.
    #[serde(flatten)]
    pub(crate) action: PeerAction,
}

/// A route that does not exist, to be tried on the policy of a peer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RouteTrial {
    /// Name, instance/name or address.
    pub(crate) peer: PeerName,
    /// Try the export policy, as if the route were to be told to the peer; else the import policy.
    #[serde(default)]
    pub(crate) export: bool,
    /// For an export: the name of the peer it is from; none: this node originates it.
    pub(crate) from: Option<String>,
    /// The prefix.
    pub(crate) prefix: ipnet::IpNet,
    /// The next hop.
    pub(crate) next_hop: Option<std::net::IpAddr>,
    /// AS numbers, nearest first.
    #[serde(default)]
    pub(crate) as_path: Vec<u32>,
    /// `igp`, `egp` or `incomplete`.
    #[serde(default)]
    pub(crate) origin: tombolo_bgp::Origin,
    /// Standard and large communities.
    #[serde(default)]
    pub(crate) communities: Vec<String>,
    /// MULTI_EXIT_DISC.
    pub(crate) med: Option<u32>,
    /// LOCAL_PREF.
    pub(crate) local_pref: Option<u32>,
}

impl RouteTrial {
    fn question(self) -> Result<PolicyQuestion, String> {
        let mut attributes = Attributes {
            origin: self.origin,
            as_path: AsPath::sequence(&self.as_path),
            med: self.med,
            local_pref: self.local_pref,
            ..Attributes::default()
        };
        for text in &self.communities {
            if text.split(':').count() == 3 {
                attributes.large_communities.push(text.parse()?);
            } else {
                attributes.communities.push(text.parse()?);
            }
        }
        Ok(PolicyQuestion {
            peer: self.peer.0,
            import: !self.export,
            from: self.from,
            prefix: self.prefix.trunc(),
            next_hop: self.next_hop.map(NextHop::new),
            attributes,
        })
    }
}

fn prefix(text: &str, longer: bool) -> Result<PrefixFilter, String> {
    if let Ok(address) = text.parse::<std::net::IpAddr>() {
        let host = address.into();
        return Ok(if longer { PrefixFilter::Exact(host) } else { PrefixFilter::Covering(host) });
    }
    let net: ipnet::IpNet =
        text.parse().map_err(|_| format!("prefix {text:?}: write ADDRESS/LENGTH, or an address"))?;
    let net = net.trunc();
    Ok(if longer { PrefixFilter::OrLonger(net) } else { PrefixFilter::Exact(net) })
}

impl RouteQuery {
    /// The filter it stands for, the peer apart, whose name is looked up.
    pub(crate) fn filter(&self) -> Result<RouteFilter, String> {
        let family = match self.family.as_deref() {
            None => None,
            Some("ipv4" | "ipv4-unicast") => Some(Family::Ipv4Unicast),
            Some("ipv6" | "ipv6-unicast") => Some(Family::Ipv6Unicast),
            Some(other) => return Err(format!("family {other:?}: ipv4 or ipv6")),
        };
        Ok(RouteFilter {
            peer: None,
            family,
            prefix: self.prefix.as_deref().map(|text| prefix(text, self.longer)).transpose()?,
            community: self.community.as_deref().map(str::parse).transpose()?,
        })
    }
}

/// The view of a name.
pub(crate) fn view(kind: &str) -> Result<RouteView, String> {
    match kind {
        "received" => Ok(RouteView::Received),
        "advertised" => Ok(RouteView::Advertised),
        "best" => Ok(RouteView::Best),
        _ => Err(format!("no routes {kind:?}; there are: received, advertised, best")),
    }
}

/// Routes as `tombolo bgp routes` prints them.
pub(crate) async fn routes(bgp: &BgpNode, kind: &str, query: &RouteQuery) -> Result<Value, String> {
    let (view, filter) = (view(kind)?, query.filter()?);
    let peer = query.peer.clone().map(PeerName);
    if let Some(peer) = &peer {
        known(&bgp.peers().await.unwrap_or_default(), peer)?;
    }
    let rows = bgp.routes(view, peer, filter).await.unwrap_or_default();
    Ok(rows.iter().map(route_json).collect())
}

/// Everything about the peers of a name, or about all.
pub(crate) async fn states(bgp: &BgpNode, peer: Option<PeerName>) -> Result<Value, String> {
    let all = bgp.peers().await.unwrap_or_default();
    let Some(peer) = peer else { return Ok(json!(all)) };
    Ok(json!(known(&all, &peer)?))
}

/// What came of something done to peers.
pub(crate) async fn operate(bgp: &BgpNode, operation: Operation) -> Result<Value, String> {
    let peer = operation.peer.clone();
    let done = bgp.operate(operation.peer, operation.action).await.map_err(|error| error.to_string())?;
    if let (true, Some(peer)) = (done.is_empty(), peer) {
        known(&bgp.peers().await.unwrap_or_default(), &peer)?;
    }
    Ok(json!(done))
}

/// What a route would meet at the policy of the peers of a name.
pub(crate) async fn try_policy(bgp: &BgpNode, trial: RouteTrial) -> Result<Value, String> {
    let peer = trial.peer.clone();
    known(&bgp.peers().await.unwrap_or_default(), &peer)?;
    let tried = bgp.try_policy(peer, trial.question()?).await.map_err(|error| error.to_string())?;
    Ok(json!(tried))
}

/// The routes received as an MRT file.
pub(crate) async fn dump(bgp: &BgpNode, peer: Option<PeerName>) -> Result<Vec<u8>, String> {
    if let Some(peer) = &peer {
        known(&bgp.peers().await.unwrap_or_default(), peer)?;
    }
    bgp.dump(peer).await.map_err(|error| error.to_string())
}

/// Sets the gauges of BGP. Peers that are gone are not there any more.
pub(crate) fn gauges(peers: &[InstancePeer], metrics: &Metrics) {
    let wide = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    metrics.bgp_session_state.clear();
    metrics.bgp_advertised_routes.clear();
    metrics.bgp_received_routes.clear();
    metrics.bgp_messages.clear();
    metrics.bgp_sessions.clear();
    metrics.bgp_treated_as_withdraw.clear();
    for InstancePeer { state, .. } in peers {
        let vrouter = state.local_asn.to_string();
        let neighbor = std::net::SocketAddr::new(state.address, state.port).to_string();
        let neighbor_asn = state.peer_asn.to_string();
        let labels = PeerLabels {
            vrouter: vrouter.clone(),
            neighbor: neighbor.clone(),
            neighbor_asn: neighbor_asn.clone(),
        };
        let up = state.state == tombolo_bgp::State::Established;
        metrics.bgp_session_state.get_or_create(&labels).set(i64::from(up));
        metrics.bgp_sessions.get_or_create(&labels).set(wide(state.counters.sessions));
        let treated = state.counters.treated_as_withdraw;
        metrics.bgp_treated_as_withdraw.get_or_create(&labels).set(wide(treated));
        let (received, sent) = (state.counters.messages_received, state.counters.messages_sent);
        for (direction, messages) in [("received", received), ("sent", sent)] {
            let labels = PeerMessageLabels {
                vrouter: vrouter.clone(),
                neighbor: neighbor.clone(),
                neighbor_asn: neighbor_asn.clone(),
                direction: direction.to_owned(),
            };
            metrics.bgp_messages.get_or_create(&labels).set(wide(messages));
        }
        for family in &state.families {
            let afi = if family.family == Family::Ipv4Unicast { "ipv4" } else { "ipv6" };
            let labels = PeerFamilyLabels {
                vrouter: vrouter.clone(),
                neighbor: neighbor.clone(),
                neighbor_asn: neighbor_asn.clone(),
                afi: afi.to_owned(),
                safi: "unicast".to_owned(),
            };
            metrics.bgp_received_routes.get_or_create(&labels).set(count(family.received));
            metrics.bgp_advertised_routes.get_or_create(&labels).set(count(family.advertised));
        }
    }
}

/// The peers a name stands for; an error that names those there are if it stands for none.
fn known<'a>(all: &'a [InstancePeer], name: &PeerName) -> Result<Vec<&'a InstancePeer>, String> {
    let named: Vec<_> = all.iter().filter(|peer| name.names(&peer.instance, &peer.state)).collect();
    if named.is_empty() {
        let names: Vec<&str> = all.iter().map(|peer| peer.state.name.as_str()).collect();
        return Err(format!("no BGP peer is {:?}; there are: {}", name.0, names.join(", ")));
    }
    Ok(named)
}

/// A session as `tombolo bgp peers` prints it, one object for each family.
pub(crate) fn peer_json(peer: &InstancePeer) -> Vec<Value> {
    let state = &peer.state;
    let row = |family: &tombolo_bgp::FamilyState| {
        json!({
            "instance": peer.instance, "peer": state.name, "local_as": state.local_asn, "peer_as": state.peer_asn,
            "address": state.address, "state": state.state, "uptime_secs": state.established_secs,
            "family": family.family, "received": family.received, "accepted": family.accepted,
            "advertised": family.advertised, "stale": family.stale, "hold_time_secs": state.hold_time_secs,
            "last_error": state.last_error, "shutdown": state.shutdown,
            "shutdown_since_unix_secs": peer.shutdown_since_unix_secs,
        })
    };
    state.families.iter().map(row).collect()
}

fn route_json(row: &InstanceRoute) -> Value {
    let route = &row.route;
    json!({
        "instance": row.instance, "prefix": route.prefix, "peer": route.peer, "next_hop": route.next_hop,
        "best": route.best, "used": route.used, "stale": route.stale, "refused": route.refused,
        "attributes": route.attributes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_say_what_is_wrong_with_them() {
        let query = |prefix: &str| RouteQuery { prefix: Some(prefix.to_owned()), ..RouteQuery::default() };
        let exact = query("10.1.2.3/8").filter().unwrap();
        assert_eq!(exact.prefix, Some(PrefixFilter::Exact("10.0.0.0/8".parse().unwrap())), "host bits");
        let covering = query("2001:db8::1").filter().unwrap();
        assert_eq!(covering.prefix, Some(PrefixFilter::Covering("2001:db8::1/128".parse().unwrap())));
        let longer = RouteQuery { longer: true, ..query("10.0.0.0/8") }.filter().unwrap();
        assert_eq!(longer.prefix, Some(PrefixFilter::OrLonger("10.0.0.0/8".parse().unwrap())));
        assert!(query("ten").filter().unwrap_err().contains("ADDRESS/LENGTH"));
        let family = RouteQuery { family: Some("evpn".into()), ..RouteQuery::default() };
        assert!(family.filter().unwrap_err().contains("ipv4 or ipv6"));
        assert!(view("all").is_err());
    }

    #[test]
    fn an_operation_is_one_flat_object() {
        let text = r#"{"peer":"tor","action":"shutdown","text":"new cable"}"#;
        let operation: Operation = serde_json::from_str(text).unwrap();
        assert_eq!(operation.action, PeerAction::Shutdown { text: "new cable".into() });
        let all: Operation = serde_json::from_str(r#"{"action":"soft-both"}"#).unwrap();
        assert_eq!((all.peer, all.action), (None, PeerAction::SoftBoth));
    }
}
