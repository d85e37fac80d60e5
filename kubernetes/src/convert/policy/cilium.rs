//! CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy.
//!
//! A rule without any list of peers means everybody if it has ports, and nobody if it has none: `ingress: [{}]` is default
//! deny. An empty list of peers is nobody, and so is a list of ports that names none.

use super::closed::{Fault, Reader};
use super::peers::{Scope, keys, namespace_key, nodes, peers, sourced};
use super::ports::ports;
use crate::convert::Converted;
use crate::crd_policy::{CiliumPolicy, CiliumRule, CiliumSpec};
use crate::object::{Object, ObjectId};
use crate::problem::Issue;
use std::collections::BTreeSet;
use tombolo_base::labels::NAMESPACE_KEY;
use tombolo_base::source::Source;
use tombolo_policy::{
    Action, Direction, DirectionRules, EndpointSelector, PolicyKind, RuleBlock, RuleRow, Subject, Tier,
};

/// Specs of one object.
const MAX_SPECS: usize = 100;

pub(in crate::convert) fn policy(
    kind: PolicyKind,
    id: &ObjectId,
    object: CiliumPolicy,
    unknown: &[String],
) -> Result<Converted, Issue> {
    let specs = object.specs.unwrap_or_default();
    if specs.len() > MAX_SPECS {
        let reason = format!("{} specs", specs.len());
        return Err(Issue::new("specs", reason, format!("use at most {MAX_SPECS} in one object")));
    }
    let mut written: Vec<(String, CiliumSpec)> =
        object.spec.into_iter().map(|spec| ("spec".to_owned(), spec)).collect();
    written
        .extend(specs.into_iter().enumerate().map(|(position, spec)| (format!("specs[{position}]"), spec)));
    if written.is_empty() {
        return Err(Issue::new("spec", "the policy has no spec", "write spec or specs"));
    }
    let mut reader = Reader::new(unknown)?;
    let mut rows = Vec::new();
    for (number, (at, spec)) in (0_u16..).zip(written) {
        let subject = subject(&mut reader, kind, id, &at, &spec)?;
        let scope = Scope { namespace: &id.namespace, init: names_init(&subject) };
        let switches = (spec.enable_default_deny.ingress, spec.enable_default_deny.egress);
        if [&spec.ingress, &spec.ingress_deny].iter().all(|rules| rules.is_empty())
            && [&spec.egress, &spec.egress_deny].iter().all(|rules| rules.is_empty())
        {
            let remedy = "write ingress, ingressDeny, egress or egressDeny; `ingress: [{}]` allows nothing";
            return Err(Issue::new(at, "the spec has no rules", remedy));
        }
        let ingress = Section {
            at: &at,
            direction: Direction::Ingress,
            allow: spec.ingress.into_iter().map(Into::into).collect(),
            deny: spec.ingress_deny.into_iter().map(Into::into).collect(),
            default_deny: switches.0,
        };
        let egress = Section {
            at: &at,
            direction: Direction::Egress,
            allow: spec.egress.into_iter().map(Into::into).collect(),
            deny: spec.egress_deny.into_iter().map(Into::into).collect(),
            default_deny: switches.1,
        };
        rows.push(RuleRow {
            source: Source::Manifests,
            kind,
            namespace: id.namespace.clone(),
            name: id.name.clone(),
            spec: number,
            tier: Tier::Normal,
            ingress: ingress.rules(&mut reader, &scope)?,
            egress: egress.rules(&mut reader, &scope)?,
            subject,
        });
    }
    Ok(reader.done(Object::Rules(rows)))
}

/// Whom a spec is about.
fn subject(
    reader: &mut Reader<'_>,
    kind: PolicyKind,
    id: &ObjectId,
    at: &str,
    spec: &CiliumSpec,
) -> Result<Subject, Issue> {
    // Whom a policy is about must be certain: what a rule may leave open refuses the object here.
    let certain = |found: Result<_, Fault>| {
        found.map_err(|fault| match fault {
            Fault::Object(issue) | Fault::Rule(issue) => issue,
        })
    };
    match (&spec.endpoint_selector, &spec.node_selector) {
        (Some(pods), None) => {
            let at = format!("{at}.endpointSelector");
            let mut selector = certain(sourced(&at, pods))?;
            if !id.namespace.is_empty() {
                let key = namespace_key();
                let any = format!("any:{NAMESPACE_KEY}");
                let other = |key: &str| selector.labels.get(key).is_some_and(|value| *value != id.namespace);
                if other(&key) || other(&any) {
                    let reason =
                        "a policy is about pods of its own namespace only: this namespace is not heeded";
                    reader.doubt(Issue::new(
                        at,
                        reason,
                        "remove it, or write a CiliumClusterwideNetworkPolicy",
                    ));
                }
                selector.labels.remove(any.as_str());
                selector.labels.insert(key, id.namespace.clone());
            }
            Ok(Subject::Pods(EndpointSelector(selector)))
        }
        (None, Some(_)) if kind == PolicyKind::CiliumNetworkPolicy => {
            let remedy = "write a CiliumClusterwideNetworkPolicy";
            Err(Issue::new(format!("{at}.nodeSelector"), "nodes have no namespace", remedy))
        }
        (None, Some(selector)) => {
            Ok(Subject::Nodes(certain(nodes(&format!("{at}.nodeSelector"), selector))?))
        }
        (Some(_), Some(_)) => {
            let remedy = "write pods and nodes as two specs";
            Err(Issue::new(
                format!("{at}.nodeSelector"),
                "nodeSelector stands beside endpointSelector",
                remedy,
            ))
        }
        (None, None) => {
            let remedy = "write endpointSelector; {} means all pods";
            Err(Issue::new(at, "the spec does not say whom it is about", remedy))
        }
    }
}

/// Whether the subject are pods that have no identity yet.
fn names_init(subject: &Subject) -> bool {
    matches!(subject, Subject::Pods(selector) if keys(&selector.0).any(|key| key == "reserved:init"))
}

/// One direction of a spec.
struct Section<'a> {
    at: &'a str,
    direction: Direction,
    allow: Vec<CiliumRule>,
    deny: Vec<CiliumRule>,
    default_deny: Option<bool>,
}

impl Section<'_> {
    fn rules(self, reader: &mut Reader<'_>, scope: &Scope<'_>) -> Result<Option<DirectionRules>, Issue> {
        let has_rules = !self.allow.is_empty() || !self.deny.is_empty();
        let default_deny = self.default_deny.unwrap_or(has_rules);
        let (allow, deny) = match self.direction {
            Direction::Ingress => ("ingress", "ingressDeny"),
            Direction::Egress => ("egress", "egressDeny"),
        };
        let mut blocks = Vec::new();
        for (key, action, rules) in [(allow, Action::Allow, &self.allow), (deny, Action::Deny, &self.deny)] {
            for (position, rule) in rules.iter().enumerate() {
                let at = format!("{}.{key}[{position}]", self.at);
                reader.rule(&at)?;
                blocks.push(block(reader, &at, rule, (self.direction, action), scope)?);
            }
        }
        Ok((has_rules || default_deny).then_some(DirectionRules { default_deny, blocks }))
    }
}

fn block(
    reader: &mut Reader<'_>,
    at: &str,
    rule: &CiliumRule,
    (direction, action): (Direction, Action),
    scope: &Scope<'_>,
) -> Result<RuleBlock, Issue> {
    let known = reader.known(at);
    let ports = known.and_then(|()| ports(reader, at, rule));
    let readable = ports.as_ref().ok().cloned().flatten();
    let read = ports.and_then(|ports| {
        let peers = peers(reader, at, rule, direction, scope)?;
        // Neither peers nor ports: nothing is matched.
        let peers = if peers.is_none() && ports.is_none() { Some(BTreeSet::new()) } else { peers };
        Ok(RuleBlock { action, priority: 0, peers, ports, name: None })
    });
    reader.close(at, read, (action, 0, readable))
}
