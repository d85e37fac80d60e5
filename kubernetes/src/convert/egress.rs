//! CiliumEgressGatewayPolicy.

use super::bgp::{MAX_ENTRIES, at_most, interface};
use super::policy::keyed;
use super::{Converted, address, optional_selector, prefix};
use crate::crd;
use crate::object::{Object, ObjectId};
use crate::problem::Issue;
use std::collections::BTreeSet;
use std::sync::Arc;
use tombolo_base::labels::{NAMESPACE_KEY, NAMESPACE_LABEL_PREFIX};
use tombolo_base::prefix::Prefix;
use tombolo_base::source::Source;
use tombolo_topology::selector::Requirement;
use tombolo_topology::{EgressPolicyRow, EgressSelector, GatewayIntent};

/// Pods by their labels and those of their namespaces; a namespace is not taken for granted as in policies.
fn selector(at: &str, entry: crd::EgressRule) -> Result<EgressSelector, Issue> {
    let pods = optional_selector(&format!("{at}.podSelector"), entry.pod_selector)?;
    let namespaces = optional_selector(&format!("{at}.namespaceSelector"), entry.namespace_selector)?;
    if pods.is_none() && namespaces.is_none() {
        let remedy = "give podSelector or namespaceSelector; {} takes all";
        return Err(Issue::new(at, "the entry selects no pods", remedy));
    }
    let pods = pods.unwrap_or_default();
    let keys = pods.labels.keys().chain(pods.expressions.iter().map(Requirement::key));
    if let Some(key) = keys.map(AsRef::as_ref).find(|key: &&str| key.contains(':')) {
        let reason = format!("the key {key:?} would match no label: sources of labels are not read here");
        return Err(Issue::new(format!("{at}.podSelector"), reason, "write the label's key alone, as app"));
    }
    let mut all = keyed(&pods, "");
    if let Some(namespaces) = namespaces {
        let of = keyed(&namespaces, NAMESPACE_LABEL_PREFIX);
        all.labels.extend(of.labels);
        all.expressions.extend(of.expressions);
    }
    let key: Arc<str> = format!("k8s:{NAMESPACE_KEY}").into();
    all.expressions.insert(Requirement::Exists(key));
    let nodes = optional_selector(&format!("{at}.nodeSelector"), entry.node_selector)?;
    Ok(EgressSelector { pods: all, nodes })
}

fn prefixes(at: &str, texts: &[String]) -> Result<BTreeSet<Prefix>, Issue> {
    at_most(at, texts, MAX_ENTRIES)?;
    let of = |(position, text): (usize, &String)| prefix(format!("{at}[{position}]"), text);
    texts.iter().enumerate().map(of).collect()
}

fn gateway(at: &str, entry: crd::EgressGateway) -> Result<GatewayIntent, Issue> {
    // What Go writes of a string that is not set.
    let set = |text: Option<String>| text.filter(|text| !text.is_empty());
    let link = set(entry.interface).map(|text| interface(format!("{at}.interface"), &text)).transpose()?;
    let ip = set(entry.egress_ip).map(|text| address(format!("{at}.egressIP"), text.trim())).transpose()?;
    if link.is_some() && ip.is_some() {
        let remedy =
            "give one of them: the address says on which interface it is, the interface which address it has";
        return Err(Issue::new(at, "interface stands beside egressIP", remedy));
    }
    let Some(nodes) = optional_selector(&format!("{at}.nodeSelector"), entry.node_selector)? else {
        let remedy = "name the labels of the gateway's node; {} takes any";
        return Err(Issue::new(format!("{at}.nodeSelector"), "the gateway is no node", remedy));
    };
    Ok(GatewayIntent { nodes, interface: link, address: ip })
}

pub(super) fn policy(
    id: &ObjectId,
    object: crd::Object<crd::EgressPolicySpec>,
    unknown: &[String],
) -> Result<Converted, Issue> {
    // With a part of it left out, pods could leave under other addresses than wanted.
    if let Some(path) = unknown.first() {
        let remedy = "check its spelling and indentation; docs/egress-gateway.md names the fields";
        return Err(Issue::new(path.clone(), "there is no such field", remedy));
    }
    let spec = object.spec;
    at_most("spec.selectors", &spec.selectors, MAX_ENTRIES)?;
    let selectors = spec.selectors.into_iter().enumerate();
    let selectors =
        selectors.map(|(position, entry)| selector(&format!("spec.selectors[{position}]"), entry));
    let destinations = prefixes("spec.destinationCIDRs", &spec.destination_cidrs)?;
    if destinations.is_empty() {
        let remedy = "name them; 0.0.0.0/0 and ::/0 are all addresses outside the mesh";
        return Err(Issue::new("spec.destinationCIDRs", "there are no destinations", remedy));
    }
    at_most("spec.egressGateways", &spec.egress_gateways, MAX_ENTRIES)?;
    let gateways = if spec.egress_gateways.is_empty() {
        let alone = spec.egress_gateway.ok_or_else(|| {
            Issue::new("spec.egressGateway", "there is no gateway", "give egressGateway or egressGateways")
        })?;
        vec![gateway("spec.egressGateway", alone)?]
    } else {
        let all = spec.egress_gateways.into_iter().enumerate();
        let all = all.map(|(position, entry)| gateway(&format!("spec.egressGateways[{position}]"), entry));
        all.collect::<Result<_, _>>()?
    };
    let row = EgressPolicyRow {
        source: Source::Manifests,
        name: id.name.clone(),
        selectors: selectors.collect::<Result<_, _>>()?,
        destinations,
        excluded: prefixes("spec.excludedCIDRs", &spec.excluded_cidrs)?,
        gateways,
    };
    Ok((Object::EgressPolicy(Box::new(row)), Vec::new()))
}
