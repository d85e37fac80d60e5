//! `tombolo policy impact`: which of the flows seen lately a changed policy would cut, or let through.

use super::policy_parties::{End, Tables};
use super::policy_trace::outcome;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use tombolo_base::table::Row;
use tombolo_kubernetes::{ClusterIdentity, read_manifests};
use tombolo_model::policy::{Answer, Policies, Question};
use tombolo_observe::flow::Flow;
use tombolo_policy::{CidrGroupRow, Direction, RuleRow};

/// Manifests that are not in force.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ImpactQuery {
    /// The file's name, for problems.
    pub(crate) file: String,
    /// Its text.
    pub(crate) text: String,
}

/// What they would change.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Impact {
    /// The policies and groups of the file.
    pub(crate) objects: Vec<String>,
    /// Flows that were looked at: each pair and port once.
    pub(crate) looked_at: usize,
    /// Flows whose verdict would be another.
    pub(crate) changes: Vec<Change>,
    /// What is wrong with the file.
    pub(crate) problems: Vec<String>,
}

/// A flow whose verdict would be another.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Change {
    /// Who opens it.
    pub(crate) from: String,
    /// To whom.
    pub(crate) to: String,
    /// Transport.
    pub(crate) protocol: String,
    /// How many of its packets or events were seen.
    pub(crate) seen: u64,
    /// The last, in nanoseconds since the epoch.
    pub(crate) last: u64,
    /// Whether it would be cut; else it would be let through.
    pub(crate) cut: bool,
    /// `egress` of the opener or `ingress` of the receiver.
    pub(crate) direction: String,
    /// The outcome now.
    pub(crate) before: String,
    /// With the file.
    pub(crate) after: String,
    /// The objects that would decide.
    pub(crate) by: Vec<String>,
}

/// What identifies a flow here.
type Key = (String, u32, String, u32, u8, u16);

/// Compares.
pub(crate) fn impact(
    tables: &Tables,
    cluster: &ClusterIdentity,
    query: &ImpactQuery,
    flows: &[Arc<Flow>],
) -> Impact {
    let (read, problems) = read_manifests(Path::new(&query.file), &query.text, cluster);
    let (rules, groups) = (read.rules.snapshot(), read.cidr_groups.snapshot());
    let mut out = Impact {
        problems: problems.iter().map(ToString::to_string).collect(),
        objects: rules.iter().map(RuleRow::title).collect::<BTreeSet<_>>().into_iter().collect(),
        ..Impact::default()
    };
    out.objects.extend(groups.iter().map(|row| format!("CiliumCIDRGroup {}", row.name)));
    let (new_rules, new_groups) = merged(tables, rules.iter(), groups.iter());
    let now = Policies {
        cluster: &tables.cluster,
        rules: &tables.rules,
        groups: &tables.groups,
        node: &tables.node,
        landmarks: &tables.landmarks,
    };
    let then = Policies {
        cluster: &tables.cluster,
        rules: &new_rules,
        groups: &new_groups,
        node: &tables.node,
        landmarks: &tables.landmarks,
    };
    let mut seen: BTreeMap<Key, (u64, &Arc<Flow>)> = BTreeMap::new();
    for flow in flows.iter().filter(|flow| !flow.reply) {
        if let Some((protocol, port)) = asked(flow) {
            let (source, destination) = (&flow.source, &flow.destination);
            let key = (
                source.ip.clone(),
                source.identity,
                destination.ip.clone(),
                destination.identity,
                protocol,
                port,
            );
            let entry = seen.entry(key).or_insert((0, flow));
            *entry = (entry.0 + 1, flow);
        }
    }
    out.looked_at = seen.len();
    for ((from, from_id, to, to_id, protocol, port), (count, flow)) in &seen {
        let (Some(from), Some(to)) = (tables.seen(from, *from_id), tables.seen(to, *to_id)) else { continue };
        let ends = [(Direction::Egress, &from, &to), (Direction::Ingress, &to, &from)];
        for (direction, subject, peer) in
            ends.into_iter().filter(|(way, subject, peer)| tables.is_subject(subject) && is_asked(*way, peer))
        {
            let question = question((direction, subject, peer), (*protocol, *port));
            let (before, after) = (now.answer(&question), then.answer(&question));
            if before.outcome.passes() != after.outcome.passes() {
                out.changes.push(change((*count, flow), direction, &before, &after));
            }
        }
    }
    out.changes.sort_by_key(|change| std::cmp::Reverse((change.cut, change.seen)));
    out
}

/// Whether a policy is asked: a node always reaches its own pods, and flows of identity host are of this one.
fn is_asked(way: Direction, peer: &End) -> bool {
    way == Direction::Egress || peer.identity != tombolo_base::ids::IdentityId::HOST
}

/// All rules and groups with those of the file: an object of the same name is replaced, with all its specs.
fn merged<'a>(
    tables: &Tables,
    rules: impl Iterator<Item = &'a RuleRow>,
    groups: impl Iterator<Item = &'a CidrGroupRow>,
) -> (Vec<RuleRow>, Vec<CidrGroupRow>) {
    let (rules, groups): (Vec<&RuleRow>, Vec<&CidrGroupRow>) = (rules.collect(), groups.collect());
    let object = |rule: &RuleRow| (rule.kind, rule.namespace.clone(), rule.name.clone());
    let replaced: BTreeSet<_> = rules.iter().map(|rule| object(rule)).collect();
    let named: BTreeSet<_> = groups.iter().map(|row| row.key()).collect();
    let kept = tables.rules.iter().filter(|rule| !replaced.contains(&object(rule)));
    let kept_groups = tables.groups.iter().filter(|row| !named.contains(&row.key()));
    (kept.chain(rules).cloned().collect(), kept_groups.chain(groups).cloned().collect())
}

const fn question<'a>(
    (direction, subject, peer): (Direction, &'a End, &'a End),
    (protocol, port): (u8, u16),
) -> Question<'a> {
    Question { direction, subject: &subject.party, peer: &peer.party, protocol, port }
}

/// Protocol and port as policies know them.
fn asked(flow: &Flow) -> Option<(u8, u16)> {
    let icmp = u16::from(flow.l4.icmp_type) << 8;
    Some(match flow.l4.protocol.as_str() {
        "TCP" => (6, flow.destination.port),
        "UDP" => (17, flow.destination.port),
        "SCTP" => (132, flow.destination.port),
        "ICMPv4" => (1, icmp),
        "ICMPv6" => (58, icmp),
        other => (other.parse().ok()?, 0),
    })
}

fn change(
    (seen, flow): (u64, &Flow),
    direction: Direction,
    before: &Answer<'_>,
    after: &Answer<'_>,
) -> Change {
    let by: BTreeSet<String> = after.deciding.iter().map(|cited| cited.rule.title()).collect();
    Change {
        from: flow.source.label(),
        to: flow.destination.label(),
        protocol: flow.l4.protocol.clone(),
        seen,
        last: flow.time,
        cut: !after.outcome.passes(),
        direction: format!("{direction:?}").to_lowercase(),
        before: outcome(before.outcome),
        after: outcome(after.outcome),
        by: by.into_iter().collect(),
    }
}
