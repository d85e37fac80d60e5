//! Selectors and peers of Cilium's policies.

use super::cidr::excepts;
use super::closed::{Fault, Reader, unsupported};
use crate::convert::{prefix, selector, word};
use crate::crd_policy::{CidrRule, CiliumRule};
use crate::problem::{Issue, shorten};
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tombolo_base::labels::{CLUSTER_KEY, NAMESPACE_KEY, NAMESPACE_LABEL_PREFIX};
use tombolo_policy::{
    CidrGroupRef, Direction, EndpointSelector, Entity, LabelSelector, PeerSelector, Requirement,
};

/// The entities that are one of ours. `cluster-mesh` is written with two peers.
const ENTITIES: [(&str, Option<Entity>); 14] = [
    ("all", Some(Entity::All)),
    ("world", Some(Entity::World)),
    ("world-ipv4", Some(Entity::WorldIpv4)),
    ("world-ipv6", Some(Entity::WorldIpv6)),
    ("cluster", Some(Entity::Cluster)),
    ("cluster-mesh", None),
    ("host", Some(Entity::Host)),
    ("remote-node", Some(Entity::RemoteNode)),
    ("init", Some(Entity::Init)),
    ("health", Some(Entity::Health)),
    ("unmanaged", Some(Entity::Unmanaged)),
    ("kube-apiserver", Some(Entity::KubeApiserver)),
    ("ingress", Some(Entity::Ingress)),
    ("none", Some(Entity::None)),
];

/// Which pods a selector that names no namespace means.
pub(super) struct Scope<'a> {
    /// The policy's namespace; empty = it is for all.
    pub(super) namespace: &'a Arc<str>,
    /// Its subject are pods without identity, which have no namespace.
    pub(super) init: bool,
}

/// A label key with its source. A key without means any source.
fn with_source(at: &str, key: &str) -> Result<Arc<str>, Fault> {
    let (source, name) = match key.split_once(':') {
        None | Some(("", _)) => ("any", key.trim_start_matches(':')),
        Some(parts) => parts,
    };
    if name.is_empty() {
        let reason = format!("{:?} is no label key", shorten(key));
        return Err(Issue::new(at, reason, "write key or source:key").into());
    }
    match source {
        "any" | "k8s" | "reserved" => Ok(format!("{source}:{name}").into()),
        other => {
            let what = format!("a label of source {:?}", shorten(other));
            Err(unsupported(at, &what, "use labels of source k8s, any or reserved; fromCIDR for prefixes"))
        }
    }
}

/// A plain key; its source may only be one of `sources`.
fn without_source(at: &str, key: &str, sources: &[&str]) -> Result<Arc<str>, Fault> {
    match key.split_once(':') {
        None => Ok(key.into()),
        Some((source, name)) if sources.contains(&source) && !name.is_empty() => Ok(name.into()),
        Some((source, _)) => {
            let what = format!("a label of source {:?} here", shorten(source));
            Err(unsupported(at, &what, "write the key of the object's own label"))
        }
    }
}

/// A selector with other keys. Two keys that become one must both hold.
fn rekeyed(
    at: &str,
    written: &meta::LabelSelector,
    rekey: impl Fn(&str, &str) -> Result<Arc<str>, Fault>,
) -> Result<LabelSelector, Fault> {
    let plain = selector(at, written.clone())?;
    let mut out = LabelSelector::default();
    for (name, value) in &plain.labels {
        let key = rekey(&format!("{at}.matchLabels.{name}"), name)?;
        if out.labels.get(&key).is_some_and(|other| other != value) {
            out.expressions.insert(Requirement::In(key, BTreeSet::from([value.clone()])));
        } else {
            out.labels.insert(key, value.clone());
        }
    }
    for line in &plain.expressions {
        out.expressions.insert(line.with_key(rekey(&format!("{at}.matchExpressions"), line.key())?));
    }
    Ok(out)
}

/// A selector of identities as it is written.
pub(super) fn sourced(at: &str, written: &meta::LabelSelector) -> Result<LabelSelector, Fault> {
    rekeyed(at, written, with_source)
}

/// A selector of nodes.
pub(super) fn nodes(at: &str, written: &meta::LabelSelector) -> Result<LabelSelector, Fault> {
    rekeyed(at, written, |at, key| without_source(at, key, &["k8s", "any", "node"]))
}

pub(super) fn keys(selector: &LabelSelector) -> impl Iterator<Item = &str> {
    selector.labels.keys().chain(selector.expressions.iter().map(Requirement::key)).map(AsRef::as_ref)
}

/// The key of a pod's namespace.
pub(super) fn namespace_key() -> Arc<str> {
    format!("k8s:{NAMESPACE_KEY}").into()
}

impl Scope<'_> {
    /// Identities as peers. Without a namespace: of the policy's own, or, in a policy for all, of any.
    fn endpoints(&self, at: &str, written: &meta::LabelSelector) -> Result<EndpointSelector, Fault> {
        let mut out = sourced(at, written)?;
        if keys(&out).any(|key| key.starts_with("reserved:")) {
            return Ok(EndpointSelector(out));
        }
        let key = namespace_key();
        let any = format!("any:{NAMESPACE_KEY}");
        let by_labels = |key: &str| {
            let name = key.split_once(':').map_or(key, |(_, name)| name);
            name.starts_with(NAMESPACE_LABEL_PREFIX)
        };
        let named = keys(&out).any(|name| name == &*key || name == any || by_labels(name));
        if !named && !self.namespace.is_empty() {
            out.labels.insert(key, self.namespace.clone());
        } else if !self.init {
            // Cilium asks for the own cluster's label, which only pods have.
            out.expressions.insert(Requirement::Exists(key));
        }
        Ok(EndpointSelector(out))
    }
}

/// Peers of a rule; `None` = none of its keys is there.
pub(super) fn peers(
    reader: &mut Reader<'_>,
    at: &str,
    rule: &CiliumRule,
    direction: Direction,
    scope: &Scope<'_>,
) -> Result<Option<BTreeSet<PeerSelector>>, Fault> {
    let word = match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    unknown_peers(at, rule, word)?;
    let lists = [
        rule.endpoints.as_ref().map(Vec::len),
        rule.entities.as_ref().map(Vec::len),
        rule.cidrs.as_ref().map(Vec::len),
        rule.cidr_sets.as_ref().map(Vec::len),
        rule.nodes.as_ref().map(Vec::len),
    ];
    if lists.iter().flatten().filter(|count| **count > 0).count() > 1 {
        let remedy = "write each of the lists as a rule of its own";
        return Err(Issue::new(at, "several lists of peers stand in one rule", remedy).into());
    }
    reader.entries(at, lists.iter().flatten().sum())?;
    let mut out = BTreeSet::new();
    for (position, entry) in rule.endpoints.iter().flatten().enumerate() {
        let endpoints = scope.endpoints(&format!("{at}.{word}Endpoints[{position}]"), entry)?;
        out.insert(PeerSelector::Endpoints(endpoints));
    }
    for (position, entry) in rule.entities.iter().flatten().enumerate() {
        out.extend(entity(&format!("{at}.{word}Entities[{position}]"), entry)?);
    }
    for (position, entry) in rule.cidrs.iter().flatten().enumerate() {
        let prefix = prefix(format!("{at}.{word}CIDR[{position}]"), entry)?;
        out.insert(PeerSelector::Cidr { prefix, except: BTreeSet::new() });
    }
    for (position, entry) in rule.cidr_sets.iter().flatten().enumerate() {
        out.insert(cidr_set(reader, &format!("{at}.{word}CIDRSet[{position}]"), entry)?);
    }
    for (position, entry) in rule.nodes.iter().flatten().enumerate() {
        out.insert(PeerSelector::Nodes(nodes(&format!("{at}.{word}Nodes[{position}]"), entry)?));
    }
    let others = [&rule.groups, &rule.requires, &rule.services, &rule.fqdns];
    let there = lists.iter().any(Option::is_some) || others.into_iter().any(Option::is_some);
    Ok(there.then_some(out))
}

/// What is asked of a peer and cannot be known here.
fn unknown_peers(at: &str, rule: &CiliumRule, word: &str) -> Result<(), Fault> {
    let lists = [
        ("Groups", &rule.groups, "a group of a cloud provider", "write its prefixes as a CIDR set"),
        ("Requires", &rule.requires, "a requirement", "write it into the selectors of the peers"),
        ("Services", &rule.services, "a service as a peer", "select its pods, or its prefixes, as peers"),
        ("FQDNs", &rule.fqdns, "a name as a peer", "write its prefixes as a CIDR set"),
    ];
    for (list, entries, what, remedy) in lists {
        if entries.as_ref().is_some_and(|entries| !entries.is_empty()) {
            return Err(unsupported(&format!("{at}.{word}{list}"), what, remedy));
        }
    }
    match &rule.authentication {
        Some(asked) if asked.mode != "disabled" => {
            let remedy = "remove authentication, or write disabled; see docs/tunnel.md for encryption";
            Err(unsupported(&format!("{at}.authentication"), "mutual authentication", remedy))
        }
        _ => Ok(()),
    }
}

fn entity(at: &str, text: &str) -> Result<Vec<PeerSelector>, Issue> {
    let clusters = || {
        let key: Arc<str> = format!("k8s:{CLUSTER_KEY}").into();
        let selector = LabelSelector {
            labels: BTreeMap::new(),
            expressions: BTreeSet::from([Requirement::Exists(key)]),
        };
        vec![PeerSelector::Entity(Entity::Cluster), PeerSelector::Endpoints(EndpointSelector(selector))]
    };
    let found = word(at, text, &ENTITIES)?;
    Ok(found.map_or_else(clusters, |entity| vec![PeerSelector::Entity(entity)]))
}

fn cidr_set(reader: &mut Reader<'_>, at: &str, entry: &CidrRule) -> Result<PeerSelector, Fault> {
    let except_at = format!("{at}.except");
    match (&entry.cidr, &entry.cidr_group_ref, &entry.cidr_group_selector) {
        (Some(text), None, None) => {
            let prefix = prefix(format!("{at}.cidr"), text)?;
            let except = excepts(reader, &except_at, Some(&prefix), &entry.except)?;
            Ok(PeerSelector::Cidr { prefix, except })
        }
        (None, Some(name), None) => {
            let group = CidrGroupRef::Name(name.as_str().into());
            Ok(PeerSelector::CidrGroup { group, except: excepts(reader, &except_at, None, &entry.except)? })
        }
        (None, None, Some(written)) => {
            let rekey = |at: &str, key: &str| without_source(at, key, &["k8s", "any", "cidrgroup"]);
            let selector = rekeyed(&format!("{at}.cidrGroupSelector"), written, rekey)?;
            let group = CidrGroupRef::Labels(selector);
            Ok(PeerSelector::CidrGroup { group, except: excepts(reader, &except_at, None, &entry.except)? })
        }
        _ => {
            let remedy = "write exactly one of cidr, cidrGroupRef and cidrGroupSelector";
            Err(Issue::new(at, "the entry names no prefixes, or twice", remedy).into())
        }
    }
}
