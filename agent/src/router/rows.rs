//! From a router's configuration to desired rows: sessions, ranges of sessions, announced networks.

use super::config::{Dynamic, Family, Peer, PeerSettings, RouterConfig};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;
use tombolo_base::prefix::Prefix;
use tombolo_base::source::Source;
use tombolo_bgp::policy::Policy;
use tombolo_topology::bgp::{
    AddPath, AdvertOrigin, AdvertRow, BfdProfile, Family as RowFamily, LimitAction, ListenRange, MaxPrefixes,
    Password, PeerRow, PeerTuning, PolicyDocument,
};

/// The name of the one instance.
pub(crate) const INSTANCE: &str = "router";

/// What the configuration asks for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rows {
    /// Sessions, and ranges of them.
    pub(crate) peers: Vec<PeerRow>,
    /// Announced networks.
    pub(crate) adverts: Vec<AdvertRow>,
}

/// Reads everything that the configuration means.
///
/// # Errors
/// All mistakes, each with key, reason and remedy.
pub(crate) fn rows(config: &RouterConfig) -> Result<Rows, Vec<String>> {
    let mut problems = Vec::new();
    if config.asn == 0 {
        problems.push("asn: 0 is no AS number (give one from 1 to 4294967295)".to_owned());
    }
    if config.router_id.is_unspecified() {
        problems.push("router_id: 0.0.0.0 is none (give an IPv4 address of this router)".to_owned());
    }
    if !(1..=256).contains(&config.max_paths) {
        problems.push(format!("max_paths: {} is out of range (use 1 to 256)", config.max_paths));
    }
    let policies = policies(config, &mut problems);
    let reader = Reader { config, policies };
    let mut rows = Rows::default();
    for (name, peer) in &config.peers {
        match reader.peer(name, peer) {
            Ok(row) => rows.peers.push(row),
            Err(problem) => problems.push(format!("peers.{name}{problem}")),
        }
    }
    for (name, range) in &config.dynamic {
        match reader.dynamic(name, range) {
            Ok(row) => rows.peers.push(row),
            Err(problem) => problems.push(format!("dynamic.{name}{problem}")),
        }
    }
    let network = |prefix: &Prefix| announced(*prefix, AdvertOrigin::Network);
    rows.adverts = config.networks.iter().map(network).collect();
    if config.peers.is_empty() && config.dynamic.is_empty() {
        problems.push("peers: there are none (add peers or dynamic)".to_owned());
    }
    if problems.is_empty() { Ok(rows) } else { Err(problems) }
}

/// A prefix announced to all peers.
pub(crate) fn announced(prefix: Prefix, origin: AdvertOrigin) -> AdvertRow {
    AdvertRow {
        source: Source::Local,
        instance: INSTANCE.into(),
        peer: "".into(),
        prefix,
        origin,
        communities: BTreeSet::new(),
        large_communities: BTreeSet::new(),
        local_preference: None,
    }
}

type Policies = BTreeMap<String, PolicyDocument>;

fn policies(config: &RouterConfig, problems: &mut Vec<String>) -> Policies {
    let mut all = Policies::new();
    for (name, default) in [("all", "accept"), ("none", "reject")] {
        all.insert(
            name.to_owned(),
            PolicyDocument::new(json!({"name": name, "default": default}).to_string()),
        );
    }
    for (name, written) in &config.policies {
        if all.contains_key(name) {
            problems.push(format!("policies.{name}: the name is taken (all and none are there already)"));
            continue;
        }
        match policy(name, written) {
            Ok(document) => drop(all.insert(name.clone(), document)),
            Err(problem) => problems.push(format!("policies.{name}{problem}")),
        }
    }
    all
}

fn policy(name: &str, written: &Value) -> Result<PolicyDocument, String> {
    let mut map = written.as_object().cloned().ok_or(": is no map (give statements and default)")?;
    map.insert("name".to_owned(), Value::String(name.to_owned()));
    let policy: Policy = serde_path_to_error::deserialize(Value::Object(map)).map_err(|error| {
        let place = error.path().to_string();
        format!(".{place}: {} (docs/bgp.md lists conditions and actions)", error.into_inner())
    })?;
    let json = serde_json::to_string(&policy).map_err(|error| format!(": {error}"))?;
    Ok(PolicyDocument::new(json))
}

/// A problem as `.key: reason (remedy)`, to be put behind the peer's name.
type Problem = String;

struct Reader<'a> {
    config: &'a RouterConfig,
    policies: Policies,
}

impl Reader<'_> {
    /// The group's settings with the peer's own over them.
    fn settings(&self, group: Option<&str>, own: &Value) -> Result<PeerSettings, Problem> {
        let mut merged = Map::new();
        if let Some(name) = group {
            let group = self.config.groups.get(name);
            let group =
                group.ok_or_else(|| format!(".group: there is no group {name:?} (add it to groups)"))?;
            merged = to_map(serde_json::to_value(group).unwrap_or_default());
        }
        merged.extend(to_map(own.clone()));
        serde_path_to_error::deserialize(Value::Object(merged)).map_err(|error| {
            let place = error.path().to_string();
            let place = if place == "." { String::new() } else { format!(".{place}") };
            format!("{place}: {} (docs/router.md lists the keys)", error.into_inner())
        })
    }

    fn policy(&self, key: &str, name: Option<&str>) -> Result<PolicyDocument, Problem> {
        let name = name.unwrap_or("none");
        self.policies.get(name).cloned().ok_or_else(|| {
            format!(".{key}: there is no policy {name:?} (add it to policies, or use all or none)")
        })
    }

    fn peer(&self, name: &str, peer: &Peer) -> Result<PeerRow, Problem> {
        let settings = self.settings(peer.group.as_deref(), &peer.settings)?;
        let link_local = matches!(peer.address, Some(IpAddr::V6(v6)) if v6.is_unicast_link_local());
        if peer.interface.is_none() && (link_local || peer.address.is_none()) {
            return Err(".interface: is missing (a link-local or unnumbered peer is on one)".to_owned());
        }
        let unnumbered = peer.address.is_none();
        let address = peer.address.unwrap_or(Ipv6Addr::UNSPECIFIED.into());
        let mut row = self.row(name, peer.group.as_deref(), &settings, address, unnumbered)?;
        row.interface = peer.interface.as_deref().map(Into::into);
        row.unnumbered = unnumbered;
        Ok(row)
    }

    fn dynamic(&self, name: &str, range: &Dynamic) -> Result<PeerRow, Problem> {
        let settings = self.settings(range.group.as_deref(), &range.settings)?;
        let mut asns = Vec::new();
        for (position, span) in range.asns.iter().enumerate() {
            let bounds = span
                .bounds()
                .ok_or_else(|| format!(".asns[{position}]: is no range (write 65001 or 65001-65099)"))?;
            asns.push(bounds);
        }
        let mut row = self.row(name, range.group.as_deref(), &settings, range.prefix.address(), false)?;
        row.range = Some(ListenRange { prefix: range.prefix, limit: range.limit, asns });
        Ok(row)
    }

    fn row(
        &self,
        name: &str,
        group: Option<&str>,
        settings: &PeerSettings,
        address: IpAddr,
        both: bool,
    ) -> Result<PeerRow, Problem> {
        let families: BTreeSet<RowFamily> = match &settings.families {
            Some(all) => all.iter().map(|family| row_family(*family == Family::Ipv4)).collect(),
            None if both => [true, false].map(row_family).into(),
            None => [row_family(address.is_ipv4())].into(),
        };
        let hold_time_secs = settings.hold_time_secs.unwrap_or(90);
        let keepalive_secs = settings.keepalive_secs.unwrap_or((hold_time_secs / 3).max(1));
        if matches!(hold_time_secs, 1 | 2) || keepalive_secs > hold_time_secs.max(1) {
            let text = ".hold_time_secs: must be 0 or at least 3, and not under keepalive_secs (90 and 30 are usual)";
            return Err(text.to_owned());
        }
        Ok(PeerRow {
            source: Source::Local,
            instance: INSTANCE.into(),
            name: name.into(),
            peer: name.into(),
            peer_config: None,
            local_asn: self.config.asn,
            router_id: self.config.router_id,
            local_port: Some(self.config.port).filter(|port| *port != 0),
            address,
            interface: None,
            unnumbered: false,
            range: None,
            port: settings.port.unwrap_or(179),
            asn: settings.asn.unwrap_or(0),
            local_address: settings.local_address,
            families,
            connect_retry_secs: settings.connect_retry_secs.unwrap_or(30),
            hold_time_secs,
            keepalive_secs,
            graceful_restart_secs: settings.graceful_restart_secs,
            ebgp_multihop: settings.multihop.unwrap_or(1),
            password: settings.password_file.as_deref().map(password).transpose()?,
            tuning: self.tuning(group, settings)?,
        })
    }

    fn tuning(&self, group: Option<&str>, settings: &PeerSettings) -> Result<PeerTuning, Problem> {
        Ok(PeerTuning {
            import: Some(self.policy("import", settings.import.as_deref())?),
            export: Some(self.policy("export", settings.export.as_deref())?),
            bfd: settings.bfd.as_ref().map(|bfd| BfdProfile {
                transmit_ms: bfd.transmit_ms,
                receive_ms: bfd.receive_ms,
                echo_receive_ms: 0,
                detect_multiplier: bfd.multiplier,
                passive: false,
            }),
            max_prefixes: settings.max_prefixes.map(|limit| {
                let action = settings.restart_secs.map_or(LimitAction::Stop, LimitAction::Restart);
                MaxPrefixes { limit, warning_percent: 75, action }
            }),
            add_path: settings
                .add_path
                .as_ref()
                .map(|paths| AddPath { receive: paths.receive, send: paths.send }),
            long_lived_secs: settings.long_lived_secs,
            gtsm_hops: settings.gtsm_hops,
            group: group.map(Into::into),
            reflector_client: settings.reflector_client.unwrap_or(false),
            route_server_client: settings.route_server_client.unwrap_or(false),
            passive: settings.passive.unwrap_or(false),
            extended_messages: settings.extended_messages.unwrap_or(false),
            any_first_as: !settings.enforce_first_as.unwrap_or(true),
            next_hop_ipv4: settings.next_hop_ipv4,
            next_hop_ipv6: settings.next_hop_ipv6,
            ..PeerTuning::default()
        })
    }
}

fn to_map(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map.into_iter().filter(|(_, value)| !value.is_null()).collect(),
        _ => Map::new(),
    }
}

const fn row_family(ipv4: bool) -> RowFamily {
    if ipv4 { RowFamily::Ipv4Unicast } else { RowFamily::Ipv6Unicast }
}

fn password(file: &Path) -> Result<Password, Problem> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        format!(".password_file: {} cannot be read: {error} (check path and permissions)", file.display())
    })?;
    Password::new(text.trim_end_matches(['\n', '\r'])).ok_or_else(|| {
        let most = Password::MAX_BYTES;
        format!(".password_file: {} holds no key (1 to {most} bytes of text)", file.display())
    })
}

/// Adverts of the prefixes that the interfaces of the list are in now.
pub(crate) fn connected(seen: &crate::daemon::network::Seen, wanted: &[String]) -> Vec<AdvertRow> {
    let mut found: BTreeMap<Prefix, Arc<str>> = BTreeMap::new();
    for address in seen.addresses.iter().filter(|address| !address.tentative && !address.link_scope) {
        let Some(link) = seen.links.iter().find(|link| link.index == address.link) else { continue };
        let named = |pattern: &String| match pattern.strip_suffix('*') {
            Some(start) => link.name.starts_with(start),
            None => link.name == *pattern,
        };
        let usable = tombolo_topology::bgp::network::is_global(&address.address.addr());
        if link.running && usable && wanted.iter().any(named) {
            let net = address.address;
            if let Some(prefix) = Prefix::new(net.addr(), net.prefix_len()) {
                found.entry(prefix).or_insert_with(|| link.name.as_str().into());
            }
        }
    }
    let row = |(prefix, interface)| announced(prefix, AdvertOrigin::Connected { interface });
    found.into_iter().map(row).collect()
}

#[cfg(test)]
#[path = "rows_tests.rs"]
mod tests;
