//! AdminNetworkPolicy, BaselineAdminNetworkPolicy and ClusterNetworkPolicy.
//!
//! Rules are tried by the object's priority, then in the order written: a rule's priority is the object's times 1000 plus
//! its place. Nothing here makes a pod default deny.

use super::closed::{Fault, Reader, port_name, port_range, unsupported};
use super::endpoints;
use crate::convert::core::PROTOCOLS;
use crate::convert::{Converted, number, prefix, selector, word};
use crate::crd::Object as Written;
use crate::crd_policy::{
    AdminPeer, AdminPort, AdminProtocol, AdminRule, AdminSpec, AdminSubject, NamespacedPods, ProtocolPorts,
};
use crate::object::{Object, ObjectId};
use crate::problem::{Issue, shorten};
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use std::collections::BTreeSet;
use std::sync::Arc;
use tombolo_base::source::Source;
use tombolo_policy::{
    Action, Direction, DirectionRules, EndpointSelector, LabelSelector, PeerSelector, PolicyKind, PortMatch,
    PortRule, RuleBlock, RuleRow, Subject, Tier,
};

/// Rules of one direction; with [`RULES_PER_PRIORITY`] the place of a rule never reaches the next object's priority.
const MAX_RULES: usize = 100;
/// Lists of peers and ports within a rule.
const MAX_LISTED: usize = 100;
const MAX_PRIORITY: i64 = 1000;
const RULES_PER_PRIORITY: u32 = 1000;
const MAX_NAME: usize = 100;

pub(in crate::convert) fn policy(
    kind: PolicyKind,
    id: &ObjectId,
    object: Written<AdminSpec>,
    unknown: &[String],
) -> Result<Converted, Issue> {
    let spec = object.spec;
    let (tier, priority) = place(kind, id, &spec)?;
    let mut reader = Reader::new(unknown)?;
    let subject = Subject::Pods(subject(&spec.subject)?);
    let first = priority * RULES_PER_PRIORITY;
    let mut direction = |key: &str, rules: &[AdminRule], direction| {
        if rules.len() > MAX_RULES {
            let reason = format!("{} rules", rules.len());
            return Err(Issue::new(format!("spec.{key}"), reason, format!("use at most {MAX_RULES}")));
        }
        let mut blocks = Vec::new();
        for (position, rule) in (0_u32..).zip(rules) {
            let at = format!("spec.{key}[{position}]");
            let place = Place { at, kind, direction, priority: first + position };
            blocks.push(place.block(&mut reader, rule)?);
        }
        Ok((!blocks.is_empty()).then_some(DirectionRules { default_deny: false, blocks }))
    };
    let ingress = direction("ingress", &spec.ingress, Direction::Ingress)?;
    let egress = direction("egress", &spec.egress, Direction::Egress)?;
    Ok(reader.done(Object::Rules(vec![RuleRow {
        source: Source::Manifests,
        kind,
        namespace: id.namespace.clone(),
        name: id.name.clone(),
        spec: 0,
        tier,
        subject,
        ingress,
        egress,
    }])))
}

/// The object's tier and priority.
fn place(kind: PolicyKind, id: &ObjectId, spec: &AdminSpec) -> Result<(Tier, u32), Issue> {
    let foreign = |key: &str| {
        let reason = format!("{} has no such field", kind.name());
        Issue::new(format!("spec.{key}"), reason, "remove it, or check the kind")
    };
    let priority = || {
        let missing =
            || Issue::new("spec.priority", "the priority is missing", "write a number from 0 to 1000");
        number("spec.priority", spec.priority.ok_or_else(missing)?, 0, MAX_PRIORITY)
    };
    match kind {
        PolicyKind::ClusterNetworkPolicy => {
            let tiers = [("Admin", Tier::Admin), ("Baseline", Tier::Baseline)];
            Ok((word("spec.tier", spec.tier.as_deref().unwrap_or_default(), &tiers)?, priority()?))
        }
        _ if spec.tier.is_some() => Err(foreign("tier")),
        PolicyKind::AdminNetworkPolicy => Ok((Tier::Admin, priority()?)),
        _ if spec.priority.is_some() => Err(foreign("priority")),
        _ if id.name.as_ref() != "default" => {
            let reason = "there is one BaselineAdminNetworkPolicy, named default";
            Err(Issue::new("metadata.name", reason, "name it default"))
        }
        _ => Ok((Tier::Baseline, 0)),
    }
}

fn namespaces(at: &str, written: &meta::LabelSelector) -> Result<EndpointSelector, Issue> {
    let of = selector(at, written.clone())?;
    Ok(endpoints(&LabelSelector::default(), Some(&of), &Arc::from("")))
}

fn pods(at: &str, written: &NamespacedPods) -> Result<EndpointSelector, Issue> {
    let of = selector(&format!("{at}.namespaceSelector"), written.namespace_selector.clone())?;
    let pods = selector(&format!("{at}.podSelector"), written.pod_selector.clone())?;
    Ok(endpoints(&pods, Some(&of), &Arc::from("")))
}

fn subject(written: &AdminSubject) -> Result<EndpointSelector, Issue> {
    match (&written.namespaces, &written.pods) {
        (Some(of), None) => namespaces("spec.subject.namespaces", of),
        (None, Some(of)) => pods("spec.subject.pods", of),
        _ => {
            let remedy = "write exactly one of namespaces and pods";
            Err(Issue::new("spec.subject", "the subject is not one selector", remedy))
        }
    }
}

/// A rule's place.
struct Place {
    at: String,
    kind: PolicyKind,
    direction: Direction,
    priority: u32,
}

impl Place {
    fn block(&self, reader: &mut Reader<'_>, rule: &AdminRule) -> Result<RuleBlock, Issue> {
        let at = &self.at;
        reader.rule(at)?;
        let action = self.action(rule)?;
        let name = match rule.name.as_deref() {
            None | Some("") => None,
            Some(name) if name.len() <= MAX_NAME => Some(Arc::from(name)),
            Some(name) => {
                let reason = format!("{:?} is longer than {MAX_NAME} bytes", shorten(name));
                return Err(Issue::new(format!("{at}.name"), reason, "shorten the name"));
            }
        };
        let ports = reader.known(at).and_then(|()| self.ports(reader, rule));
        let readable = ports.as_ref().ok().cloned().flatten();
        let read = ports.and_then(|ports| {
            let peers = self.peers(reader, rule)?;
            Ok(RuleBlock { action, priority: self.priority, peers, ports, name: None })
        });
        let block = reader.close(at, read, (action, self.priority, readable))?;
        Ok(RuleBlock { name, ..block })
    }

    fn action(&self, rule: &AdminRule) -> Result<Action, Issue> {
        let path = format!("{}.action", self.at);
        let (deny, pass) = (("Deny", Action::Deny), ("Pass", Action::Pass));
        match self.kind {
            PolicyKind::ClusterNetworkPolicy => {
                word(path, &rule.action, &[("Accept", Action::Allow), deny, pass])
            }
            PolicyKind::BaselineAdminNetworkPolicy => {
                word(path, &rule.action, &[("Allow", Action::Allow), deny])
            }
            _ => word(path, &rule.action, &[("Allow", Action::Allow), deny, pass]),
        }
    }

    /// The peers; `None` = everybody.
    fn peers(
        &self,
        reader: &mut Reader<'_>,
        rule: &AdminRule,
    ) -> Result<Option<BTreeSet<PeerSelector>>, Fault> {
        let (key, own, other) = match self.direction {
            Direction::Ingress => ("from", &rule.from, &rule.to),
            Direction::Egress => ("to", &rule.to, &rule.from),
        };
        let at = format!("{}.{key}", self.at);
        let listed = own.as_deref().unwrap_or_default();
        if listed.is_empty() || other.is_some() {
            let remedy = format!("write at least one peer under {key}");
            return Err(Issue::new(
                at,
                format!("the rule has no peers of its own, or others than {key}"),
                &*remedy,
            )
            .into());
        }
        limited(reader, &at, listed.len())?;
        let mut out = BTreeSet::new();
        for (position, peer) in listed.iter().enumerate() {
            self.peer(reader, &format!("{at}[{position}]"), peer, &mut out)?;
        }
        // The nodes that are not told apart from those meant must not be let through by a later rule.
        let some_nodes = |peer: &PeerSelector| matches!(peer, PeerSelector::Nodes(of) if !of.is_empty());
        if rule.action == "Pass" && out.iter().any(some_nodes) {
            let remedy = "pass all nodes: `nodes: {}`";
            return Err(unsupported(&at, "a pass of nodes by their labels", remedy));
        }
        // All addresses of both families are everybody: prefixes take pods as well here.
        let whole = |prefix: &str| {
            let all =
                prefix.parse().ok().map(|prefix| PeerSelector::Cidr { prefix, except: BTreeSet::new() });
            all.is_some_and(|all| out.contains(&all))
        };
        Ok(if whole("0.0.0.0/0") && whole("::/0") { None } else { Some(out) })
    }

    fn peer(
        &self,
        reader: &mut Reader<'_>,
        at: &str,
        peer: &AdminPeer,
        out: &mut BTreeSet<PeerSelector>,
    ) -> Result<(), Fault> {
        let AdminPeer { namespaces: of, pods: both, nodes, networks, domain_names } = peer;
        let outside = [nodes.is_some(), networks.is_some(), domain_names.is_some()];
        let written = usize::from(of.is_some()) + usize::from(both.is_some());
        if written + outside.iter().filter(|there| **there).count() != 1 {
            return Err(unsupported(at, "a peer that is not exactly one thing", "write one peer for each"));
        }
        if self.direction == Direction::Ingress && outside.contains(&true) {
            return Err(unsupported(at, "a peer that is no pod, at ingress", "use namespaces or pods"));
        }
        if let Some(of) = of {
            out.insert(PeerSelector::Endpoints(namespaces(&format!("{at}.namespaces"), of)?));
        } else if let Some(both) = both {
            out.insert(PeerSelector::Endpoints(pods(&format!("{at}.pods"), both)?));
        } else if let Some(nodes) = nodes {
            out.insert(PeerSelector::Nodes(selector(&format!("{at}.nodes"), nodes.clone())?));
        } else if let Some(networks) = networks {
            let at = format!("{at}.networks");
            if networks.is_empty() {
                return Err(
                    Issue::new(at, "the list of networks is empty", "write at least one prefix").into()
                );
            }
            limited(reader, &at, networks.len())?;
            for (position, text) in networks.iter().enumerate() {
                let prefix = prefix(format!("{at}[{position}]"), text)?;
                out.insert(PeerSelector::Cidr { prefix, except: BTreeSet::new() });
            }
        } else {
            let remedy = "write the addresses as networks";
            return Err(unsupported(&format!("{at}.domainNames"), "a name as a peer", remedy));
        }
        Ok(())
    }

    /// The ports; `None` = all.
    fn ports(&self, reader: &mut Reader<'_>, rule: &AdminRule) -> Result<Option<BTreeSet<PortRule>>, Fault> {
        let mut out = BTreeSet::new();
        let newer = self.kind == PolicyKind::ClusterNetworkPolicy;
        let (key, count) = match (&rule.ports, &rule.protocols) {
            (None, None) => return Ok(None),
            (Some(ports), None) if !newer => ("ports", ports.len()),
            (None, Some(protocols)) if newer => ("protocols", protocols.len()),
            _ => {
                let (key, right) = if newer { ("ports", "protocols") } else { ("protocols", "ports") };
                let at = format!("{}.{key}", self.at);
                return Err(unsupported(&at, "a field of another kind", &format!("write {right}")));
            }
        };
        let at = format!("{}.{key}", self.at);
        if count == 0 {
            return Err(Issue::new(at, "the list is empty", "leave it out to mean all ports").into());
        }
        limited(reader, &at, count)?;
        for (position, entry) in rule.ports.iter().flatten().enumerate() {
            numbered(&format!("{at}[{position}]"), entry, &mut out)?;
        }
        for (position, entry) in rule.protocols.iter().flatten().enumerate() {
            by_protocol(&format!("{at}[{position}]"), entry, &mut out)?;
        }
        Ok(Some(out))
    }
}

fn limited(reader: &mut Reader<'_>, at: &str, count: usize) -> Result<(), Issue> {
    if count > MAX_LISTED {
        return Err(Issue::new(at, format!("{count} entries"), format!("use at most {MAX_LISTED}")));
    }
    reader.entries(at, count)
}

/// A port by its name, whatever its protocol.
fn named(at: String, name: &str, out: &mut BTreeSet<PortRule>) -> Result<(), Issue> {
    let name = port_name(&at, name)?;
    out.extend(PROTOCOLS.map(|(_, protocol)| PortRule { protocol, port: PortMatch::Named(name.clone()) }));
    Ok(())
}

/// An entry of `ports`.
fn numbered(at: &str, entry: &AdminPort, out: &mut BTreeSet<PortRule>) -> Result<(), Fault> {
    let protocol = |key: &str, text: &Option<String>| {
        word(format!("{at}.{key}.protocol"), text.as_deref().unwrap_or("TCP"), &PROTOCOLS)
    };
    match (&entry.port_number, &entry.named_port, &entry.port_range) {
        (Some(one), None, None) => {
            let path = format!("{at}.portNumber.port");
            let port = port_range((path.clone(), one.port), (path, one.port))?;
            out.insert(PortRule { protocol: protocol("portNumber", &one.protocol)?, port });
        }
        (None, Some(name), None) => named(format!("{at}.namedPort"), name, out)?,
        (None, None, Some(range)) => {
            let first = (format!("{at}.portRange.start"), range.start);
            let port = port_range(first, (format!("{at}.portRange.end"), range.end))?;
            out.insert(PortRule { protocol: protocol("portRange", &range.protocol)?, port });
        }
        _ => {
            return Err(unsupported(at, "an entry that is not exactly one port", "write one entry for each"));
        }
    }
    Ok(())
}

/// An entry of `protocols`.
fn by_protocol(at: &str, entry: &AdminProtocol, out: &mut BTreeSet<PortRule>) -> Result<(), Fault> {
    let protocols = [("tcp", 6, &entry.tcp), ("udp", 17, &entry.udp), ("sctp", 132, &entry.sctp)];
    let written = protocols.iter().filter(|(.., ports)| ports.is_some()).count();
    if written + usize::from(entry.destination_named_port.is_some()) != 1 {
        return Err(unsupported(at, "an entry that is not exactly one protocol", "write one entry for each"));
    }
    for (key, protocol, ports) in protocols {
        if let Some(ports) = ports {
            out.insert(PortRule { protocol, port: destination(&format!("{at}.{key}"), ports)? });
        }
    }
    match &entry.destination_named_port {
        Some(name) => Ok(named(format!("{at}.destinationNamedPort"), name, out)?),
        None => Ok(()),
    }
}

fn destination(at: &str, ports: &ProtocolPorts) -> Result<PortMatch, Fault> {
    let at = format!("{at}.destinationPort");
    let Some(port) = &ports.destination_port else { return Ok(PortMatch::All) };
    Ok(match (port.number, &port.range) {
        (Some(one), None) => {
            let path = format!("{at}.number");
            port_range((path.clone(), one), (path, one))?
        }
        (None, Some(range)) => {
            port_range((format!("{at}.range.start"), range.start), (format!("{at}.range.end"), range.end))?
        }
        _ => return Err(unsupported(&at, "a port that is not one number or range", "write number or range")),
    })
}
