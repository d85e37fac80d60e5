//! NetworkPolicy; beneath it the other kinds of policy.

pub(super) mod admin;
pub(super) mod cidr;
pub(super) mod cilium;
mod closed;
mod peers;
mod ports;

use super::core::PROTOCOLS;
use super::{optional_selector, port, prefix, selector, word};
use crate::object::{Object, ObjectId};
use crate::problem::Issue;
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::collections::BTreeSet;
use std::sync::Arc;
use tombolo_base::labels::{NAMESPACE_KEY, NAMESPACE_LABEL_PREFIX};
use tombolo_base::source::Source;
use tombolo_policy::{
    Action, DirectionRules, EndpointSelector, LabelSelector, PeerSelector, PolicyKind, PortMatch, PortRule,
    Requirement, RuleBlock, RuleRow, Subject, Tier,
};

/// Keys of Kubernetes labels as policy writes them.
pub(super) fn keyed(selector: &LabelSelector, before: &str) -> LabelSelector {
    let key = |key: &Arc<str>| -> Arc<str> { format!("k8s:{before}{key}").into() };
    LabelSelector {
        labels: selector.labels.iter().map(|(name, value)| (key(name), value.clone())).collect(),
        expressions: selector.expressions.iter().map(|line| line.with_key(key(line.key()))).collect(),
    }
}

/// Pods by their labels: of `namespace`, or of those that `namespaces` takes.
fn endpoints(
    pods: &LabelSelector,
    namespaces: Option<&LabelSelector>,
    namespace: &Arc<str>,
) -> EndpointSelector {
    let mut out = keyed(pods, "");
    let key: Arc<str> = format!("k8s:{NAMESPACE_KEY}").into();
    match namespaces {
        None => drop(out.labels.insert(key, namespace.clone())),
        Some(selector) => {
            let of = keyed(selector, NAMESPACE_LABEL_PREFIX);
            out.labels.extend(of.labels);
            out.expressions.extend(of.expressions);
            out.expressions.insert(Requirement::Exists(key));
        }
    }
    EndpointSelector(out)
}

fn peer(at: &str, namespace: &Arc<str>, entry: NetworkPolicyPeer) -> Result<PeerSelector, Issue> {
    let pods = optional_selector(&format!("{at}.podSelector"), entry.pod_selector)?;
    let namespaces = optional_selector(&format!("{at}.namespaceSelector"), entry.namespace_selector)?;
    match (entry.ip_block, pods, namespaces) {
        (Some(block), None, None) => {
            let allowed = prefix(format!("{at}.ipBlock.cidr"), &block.cidr)?;
            let mut except = BTreeSet::new();
            for (position, text) in block.except.iter().flatten().enumerate() {
                let at = format!("{at}.ipBlock.except[{position}]");
                let cut = prefix(at.clone(), text)?;
                if !allowed.covers(&cut) {
                    let reason = format!("{cut} does not lie within {allowed}");
                    return Err(Issue::new(at, reason, "except may only cut out of cidr"));
                }
                except.insert(cut);
            }
            Ok(PeerSelector::Cidr { prefix: allowed, except })
        }
        (None, None, None) => {
            let remedy = "give podSelector, namespaceSelector or ipBlock";
            Err(Issue::new(at, "the peer selects nothing", remedy))
        }
        (None, pods, namespaces) => {
            let pods = pods.unwrap_or_default();
            Ok(PeerSelector::Endpoints(endpoints(&pods, namespaces.as_ref(), namespace)))
        }
        (Some(_), _, _) => Err(Issue::new(at, "ipBlock stands beside a selector", "write them as two peers")),
    }
}

fn port_rule(at: &str, entry: NetworkPolicyPort) -> Result<PortRule, Issue> {
    let text = entry.protocol.as_deref().unwrap_or("TCP");
    let protocol = word(format!("{at}.protocol"), text, &PROTOCOLS)?;
    let mut first = None;
    let mut rule = PortRule { protocol, port: PortMatch::All };
    match entry.port {
        Some(IntOrString::Int(number)) => {
            let number = port(format!("{at}.port"), number)?;
            first = Some(number);
            rule.port = PortMatch::Range(number, number);
        }
        Some(IntOrString::String(name)) if !name.is_empty() => rule.port = PortMatch::Named(name.into()),
        Some(IntOrString::String(_)) => {
            return Err(Issue::new(format!("{at}.port"), "the port's name is empty", "name or number it"));
        }
        None => {}
    }
    if let Some(last) = entry.end_port {
        let last = port(format!("{at}.endPort"), last)?;
        let Some(first) = first.filter(|first| *first <= last) else {
            let remedy = "endPort needs a numeric port that is not above it";
            return Err(Issue::new(format!("{at}.endPort"), format!("{last} ends no range"), remedy));
        };
        rule.port = PortMatch::Range(first, last);
    }
    Ok(rule)
}

fn block(
    at: &str,
    namespace: &Arc<str>,
    direction: &str,
    peers: Option<Vec<NetworkPolicyPeer>>,
    ports: Option<Vec<NetworkPolicyPort>>,
) -> Result<RuleBlock, Issue> {
    // Here an empty list is as good as none: everybody, all ports.
    let peers: Vec<_> = peers.unwrap_or_default();
    let ports: Vec<_> = ports.unwrap_or_default();
    let (everybody, all_ports) = (peers.is_empty(), ports.is_empty());
    let peers = peers.into_iter().enumerate();
    let peers =
        peers.map(|(position, entry)| peer(&format!("{at}.{direction}[{position}]"), namespace, entry));
    let ports = ports.into_iter().enumerate();
    let ports = ports.map(|(position, entry)| port_rule(&format!("{at}.ports[{position}]"), entry));
    let (peers, ports) = (peers.collect::<Result<_, _>>()?, ports.collect::<Result<_, _>>()?);
    Ok(RuleBlock {
        action: Action::Allow,
        priority: 0,
        peers: (!everybody).then_some(peers),
        ports: (!all_ports).then_some(ports),
        name: None,
    })
}

pub(super) fn rule(id: &ObjectId, object: NetworkPolicy) -> Result<Object, Issue> {
    let spec = object.spec.unwrap_or_default();
    let mut types = BTreeSet::new();
    for (position, text) in spec.policy_types.iter().flatten().enumerate() {
        let allowed = [("Ingress", "Ingress"), ("Egress", "Egress")];
        types.insert(word(format!("spec.policyTypes[{position}]"), text, &allowed)?);
    }
    // Without policyTypes a policy is about ingress, and about egress if it has such rules.
    if types.is_empty() {
        types.insert("Ingress");
        if spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()) {
            types.insert("Egress");
        }
    }
    let mut ingress = Vec::new();
    for (position, entry) in spec.ingress.into_iter().flatten().enumerate() {
        ingress.push(block(
            &format!("spec.ingress[{position}]"),
            &id.namespace,
            "from",
            entry.from,
            entry.ports,
        )?);
    }
    let mut egress = Vec::new();
    for (position, entry) in spec.egress.into_iter().flatten().enumerate() {
        egress.push(block(&format!("spec.egress[{position}]"), &id.namespace, "to", entry.to, entry.ports)?);
    }
    let pods = selector("spec.podSelector", spec.pod_selector.unwrap_or_default())?;
    let direction =
        |of: &str, blocks| types.contains(of).then_some(DirectionRules { default_deny: true, blocks });
    Ok(Object::Rules(vec![RuleRow {
        source: Source::Manifests,
        kind: PolicyKind::NetworkPolicy,
        namespace: id.namespace.clone(),
        name: id.name.clone(),
        spec: 0,
        tier: Tier::Normal,
        subject: Subject::Pods(endpoints(&pods, None, &id.namespace)),
        ingress: direction("Ingress", ingress),
        egress: direction("Egress", egress),
    }]))
}
