//! NetworkPolicy.

use super::core::PROTOCOLS;
use super::{optional_selector, port, prefix, selector, word};
use crate::object::{Object, ObjectId};
use crate::problem::Issue;
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::collections::BTreeSet;
use tombolo_base::source::Source;
use tombolo_policy::{PeerSelector, PortRule, RuleBlock, RuleRow};

fn peer(at: &str, entry: NetworkPolicyPeer) -> Result<PeerSelector, Issue> {
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
        (None, pods, namespaces) => Ok(PeerSelector::Pods { pods: pods.unwrap_or_default(), namespaces }),
        (Some(_), _, _) => Err(Issue::new(at, "ipBlock stands beside a selector", "write them as two peers")),
    }
}

fn port_rule(at: &str, entry: NetworkPolicyPort) -> Result<PortRule, Issue> {
    let text = entry.protocol.as_deref().unwrap_or("TCP");
    let protocol = word(format!("{at}.protocol"), text, &PROTOCOLS)?;
    let mut rule = PortRule { protocol, port: None, end_port: None, named: None };
    match entry.port {
        Some(IntOrString::Int(number)) => rule.port = Some(port(format!("{at}.port"), number)?),
        Some(IntOrString::String(name)) if !name.is_empty() => rule.named = Some(name.into()),
        Some(IntOrString::String(_)) => {
            return Err(Issue::new(format!("{at}.port"), "the port's name is empty", "name or number it"));
        }
        None => {}
    }
    if let Some(last) = entry.end_port {
        let last = port(format!("{at}.endPort"), last)?;
        if rule.port.is_none_or(|first| first > last) {
            let remedy = "endPort needs a numeric port that is not above it";
            return Err(Issue::new(format!("{at}.endPort"), format!("{last} ends no range"), remedy));
        }
        rule.end_port = Some(last);
    }
    Ok(rule)
}

fn block(
    at: &str,
    direction: &str,
    peers: Option<Vec<NetworkPolicyPeer>>,
    ports: Option<Vec<NetworkPolicyPort>>,
) -> Result<RuleBlock, Issue> {
    let peers = peers.into_iter().flatten().enumerate();
    let ports = ports.into_iter().flatten().enumerate();
    Ok(RuleBlock {
        peers: peers
            .map(|(position, entry)| peer(&format!("{at}.{direction}[{position}]"), entry))
            .collect::<Result<_, _>>()?,
        ports: ports
            .map(|(position, entry)| port_rule(&format!("{at}.ports[{position}]"), entry))
            .collect::<Result<_, _>>()?,
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
        ingress.push(block(&format!("spec.ingress[{position}]"), "from", entry.from, entry.ports)?);
    }
    let mut egress = Vec::new();
    for (position, entry) in spec.egress.into_iter().flatten().enumerate() {
        egress.push(block(&format!("spec.egress[{position}]"), "to", entry.to, entry.ports)?);
    }
    Ok(Object::Rule(Box::new(RuleRow {
        source: Source::Manifests,
        namespace: id.namespace.clone(),
        name: id.name.clone(),
        subject: selector("spec.podSelector", spec.pod_selector.unwrap_or_default())?,
        ingress: types.contains("Ingress").then_some(ingress),
        egress: types.contains("Egress").then_some(egress),
    })))
}
