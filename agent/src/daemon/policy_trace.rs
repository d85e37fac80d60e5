//! `tombolo policy trace`: what becomes of a flow, by which rule of which object, and what would change it.
//!
//! The answer is the specification's ([`tombolo_model::policy`]), which knows the rules; the compiled entries stand beside
//! it, and a difference between both is said.

use super::policy_parties::{End, Tables};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use tombolo_base::ids::IdentityId;
use tombolo_model::policy::{Answer, Cited, Outcome, Policies, Question};
use tombolo_policy::{Action, Direction, PolicyRow, RuleRow, Tier, Verdict, VerdictKey, block_title};

/// What is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TraceQuery {
    /// Who opens the flow: namespace/pod, address or entity.
    pub(crate) from: String,
    /// To whom.
    pub(crate) to: String,
    /// IP protocol.
    pub(crate) protocol: u8,
    /// Destination port; of ICMP the type in the upper byte.
    pub(crate) port: u16,
}

/// What becomes of the flow.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Trace {
    /// Who opens it.
    pub(crate) from: String,
    /// To whom.
    pub(crate) to: String,
    /// Whether policies let it through, as far as they are known here.
    pub(crate) allowed: bool,
    /// Each end that policies are about.
    pub(crate) ways: Vec<Way>,
    /// What a reader should know.
    pub(crate) notes: Vec<String>,
}

/// One end's policies.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Way {
    /// `egress` of the opener or `ingress` of the receiver.
    pub(crate) direction: String,
    /// Whose policies.
    pub(crate) subject: String,
    /// Whether they let it through.
    pub(crate) allowed: bool,
    /// In words.
    pub(crate) outcome: String,
    /// The drop reason; 0 if allowed.
    pub(crate) reason: u8,
    /// The rules that decide.
    pub(crate) by: Vec<String>,
    /// All rules that match, in the order in which they are asked.
    pub(crate) matching: Vec<Matching>,
    /// The compiled entries that match.
    pub(crate) entries: Vec<Entry>,
    /// What would change the outcome.
    pub(crate) would_change: Vec<String>,
}

/// A rule that matches.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Matching {
    /// Its tier.
    pub(crate) tier: String,
    /// Its place.
    pub(crate) rule: String,
    /// What it says.
    pub(crate) action: String,
    /// How urgent.
    pub(crate) priority: u32,
}

/// A compiled entry that matches.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Its tier.
    pub(crate) tier: String,
    /// The peer; `any`.
    pub(crate) identity: String,
    /// Protocol and port.
    pub(crate) port: String,
    /// What it says.
    pub(crate) action: String,
    /// How urgent.
    pub(crate) priority: u32,
    /// The rules it is made of.
    pub(crate) rules: Vec<String>,
}

/// A word of an enum.
pub(crate) fn word(value: impl std::fmt::Debug) -> String {
    format!("{value:?}").to_lowercase()
}

/// Answers.
///
/// # Errors
/// An end that is not known.
pub(crate) fn trace(tables: &Tables, query: &TraceQuery) -> Result<Trace, String> {
    let named = |text: &str| tables.end(text).map(|end| End { name: text.to_owned(), ..end });
    let (from, to) = (named(&query.from)?, named(&query.to)?);
    let ends = [(Direction::Egress, &from, &to), (Direction::Ingress, &to, &from)];
    let asked = ends.iter().filter(|(_, subject, _)| tables.is_subject(subject));
    let ways: Vec<Way> =
        asked.map(|(direction, subject, peer)| way(tables, query, (*direction, subject, peer))).collect();
    let elsewhere = ends.iter().filter(|(_, subject, _)| !tables.is_subject(subject));
    let note = |(direction, subject, _): &(Direction, &End, &End)| {
        let why = match &subject.party {
            tombolo_model::policy::Party::Pod { labels, .. } => format!(
                "is a pod of cluster {}: policies about it are that cluster's, ask an agent there",
                labels.cluster().unwrap_or("?")
            ),
            _ => "is neither a pod of this cluster nor this node: no policy here is about it".to_owned(),
        };
        format!("{} of {}: {why}", word(direction), subject.name)
    };
    Ok(Trace {
        from: from.name.clone(),
        to: to.name.clone(),
        allowed: ways.iter().all(|way| way.allowed),
        notes: elsewhere.map(note).collect(),
        ways,
    })
}

fn way(tables: &Tables, query: &TraceQuery, (direction, subject, peer): (Direction, &End, &End)) -> Way {
    let pod = matches!(subject.party, tombolo_model::policy::Party::Pod { .. });
    // To a pod of another node this one is a node among others.
    let elsewhere;
    let peer = if pod && peer.identity == IdentityId::HOST && !subject.here {
        elsewhere = End { name: peer.name.clone(), ..tables.of_identity(IdentityId::REMOTE_NODE) };
        &elsewhere
    } else {
        peer
    };
    if pod && direction == Direction::Ingress && peer.identity == IdentityId::HOST {
        return Way {
            direction: word(direction),
            subject: subject.name.clone(),
            allowed: true,
            outcome: "allowed: a node always reaches its own pods".to_owned(),
            reason: 0,
            by: Vec::new(),
            matching: Vec::new(),
            entries: Vec::new(),
            would_change: vec!["nothing: no policy is asked".to_owned()],
        };
    }
    let question = Question {
        direction,
        subject: &subject.party,
        peer: &peer.party,
        protocol: query.protocol,
        port: query.port,
    };
    let policies = Policies {
        cluster: &tables.cluster,
        rules: &tables.rules,
        groups: &tables.groups,
        node: &tables.node,
        landmarks: &tables.landmarks,
    };
    let answer = policies.answer(&question);
    let titled = |cited: &Cited<'_>| block_title(cited.rule, direction, cited.block);
    let by = match answer.outcome {
        Outcome::Unsaid => answer.deciding.iter().map(|cited| cited.rule.title()).collect(),
        _ => answer.deciding.iter().map(titled).collect(),
    };
    let matching = answer.matching.iter().filter_map(|(tier, cited)| {
        let block = block(cited, direction)?;
        let (action, priority) = (word(block.action), block.priority);
        Some(Matching { tier: word(tier), rule: titled(cited), action, priority })
    });
    let matching = matching.collect();
    let row = tables.policies.by_index(&subject.identity).next();
    let entries = row.map(|row| entries(tables, row, query, (direction, peer.identity))).unwrap_or_default();
    let mut would_change = would_change(tables, &question, &answer, (subject, peer));
    // A pod of another node has no row here.
    if let Some(row) = row {
        let found = evaluate(row, &entries, direction);
        if found != answer.outcome.passes() {
            would_change.push(format!(
                "the compiled entries say {}: this agent is behind, or this is a mistake of it; compare \
                 tombolo show policies and tombolo status",
                if found { "allowed" } else { "dropped" }
            ));
        }
    }
    Way {
        direction: word(direction),
        subject: subject.name.clone(),
        allowed: answer.outcome.passes(),
        outcome: outcome(answer.outcome),
        reason: reason(answer.outcome),
        by,
        matching,
        entries: entries.into_iter().map(|(_, _, entry)| entry).collect(),
        would_change,
    }
}

fn block<'a>(cited: &Cited<'a>, direction: Direction) -> Option<&'a tombolo_policy::RuleBlock> {
    let rules = match direction {
        Direction::Ingress => &cited.rule.ingress,
        Direction::Egress => &cited.rule.egress,
    };
    rules.as_ref()?.blocks.get(cited.block)
}

/// In words.
pub(crate) fn outcome(outcome: Outcome) -> String {
    match outcome {
        Outcome::Allowed(tier) => format!("allowed by the {} tier", word(tier)),
        Outcome::Denied(tier) => format!("denied by the {} tier", word(tier)),
        Outcome::Unsaid => "dropped: default deny, and nothing allows it".to_owned(),
        Outcome::Open => "allowed: no policy decides it".to_owned(),
    }
}

const fn reason(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Allowed(_) | Outcome::Open => 0,
        Outcome::Denied(_) => 181,
        Outcome::Unsaid => 133,
    }
}

type Found = (VerdictKey, Verdict, Entry);

/// The entries that match.
fn entries(
    tables: &Tables,
    row: &PolicyRow,
    query: &TraceQuery,
    (direction, peer): (Direction, IdentityId),
) -> Vec<Found> {
    let matches = |key: &VerdictKey| {
        let open = 16_u32.saturating_sub(key.port_bits.into());
        key.direction == direction
            && (key.identity == IdentityId::UNKNOWN || key.identity == peer)
            && (key.protocol == 0 || key.protocol == query.protocol)
            && (key.port ^ query.port).checked_shr(open).unwrap_or(0) == 0
    };
    let found = row.entries.iter().filter(|(key, _)| matches(key));
    let entry = |(key, verdict): (&VerdictKey, &Verdict)| {
        let any = key.identity == IdentityId::UNKNOWN;
        let rules = tables
            .cookies
            .get(&verdict.cookie)
            .map(|row| row.rules.iter().map(ToString::to_string).collect());
        let entry = Entry {
            tier: word(key.tier),
            identity: if any { "any".to_owned() } else { key.identity.to_string() },
            port: format!("{}/{} of protocol {}", key.port, key.port_bits, key.protocol),
            action: word(verdict.precedence.action()),
            priority: verdict.precedence.priority(),
            rules: rules.unwrap_or_default(),
        };
        (*key, *verdict, entry)
    };
    found.map(entry).collect()
}

/// Whether the entries that match let it through.
fn evaluate(row: &PolicyRow, found: &[Found], direction: Direction) -> bool {
    let enforced = match direction {
        Direction::Ingress => row.ingress_enforced,
        Direction::Egress => row.egress_enforced,
    };
    for tier in Tier::ALL {
        let of_tier = found.iter().filter(|(key, ..)| key.tier == tier);
        match of_tier.map(|(_, verdict, _)| verdict.precedence).max().map(tombolo_policy::Precedence::action)
        {
            Some(Action::Allow) => return true,
            Some(Action::Deny) => return false,
            Some(Action::Pass) | None if tier == Tier::Normal && enforced => return false,
            Some(Action::Pass) | None => {}
        }
    }
    true
}

/// What it would be without the rules that decide, or with which rule it would be allowed.
fn would_change(
    tables: &Tables,
    question: &Question<'_>,
    answer: &Answer<'_>,
    (subject, peer): (&End, &End),
) -> Vec<String> {
    let way = word(question.direction);
    let titles: BTreeSet<String> = match answer.outcome {
        Outcome::Unsaid => answer.deciding.iter().map(|cited| cited.rule.title()).collect(),
        _ => {
            let titled = |cited: &Cited<'_>| block_title(cited.rule, question.direction, cited.block);
            answer.deciding.iter().map(titled).collect()
        }
    };
    let titles = titles.into_iter().collect::<Vec<_>>().join(", ");
    match answer.outcome {
        Outcome::Open => {
            vec![format!(
                "a policy that selects {} and makes it default deny in {way} drops it",
                subject.name
            )]
        }
        Outcome::Unsaid => vec![
            format!(
                "an {way} rule that allows {} on this port, in any policy that selects {}",
                peer.name, subject.name
            ),
            format!("without the default deny of {titles}: {}", without(tables, question, answer)),
        ],
        Outcome::Allowed(_) | Outcome::Denied(_) => {
            vec![format!("without {titles}: {}", without(tables, question, answer))]
        }
    }
}

/// The outcome without what decides it.
fn without(tables: &Tables, question: &Question<'_>, answer: &Answer<'_>) -> String {
    let cut = |rule: &RuleRow| {
        let mut row = rule.clone();
        let rules = match question.direction {
            Direction::Ingress => row.ingress.as_mut(),
            Direction::Egress => row.egress.as_mut(),
        };
        let deciding = answer.deciding.iter().filter(|cited| std::ptr::eq(cited.rule, rule));
        let blocks: BTreeSet<usize> = deciding.map(|cited| cited.block).collect();
        if let (Some(rules), false) = (rules, blocks.is_empty()) {
            if answer.outcome == Outcome::Unsaid {
                rules.default_deny = false;
            } else {
                let mut number = 0;
                rules.blocks.retain(|_| {
                    number += 1;
                    !blocks.contains(&(number - 1))
                });
            }
        }
        row
    };
    let rules: Vec<RuleRow> = tables.rules.iter().map(cut).collect();
    let policies = Policies {
        cluster: &tables.cluster,
        rules: &rules,
        groups: &tables.groups,
        node: &tables.node,
        landmarks: &tables.landmarks,
    };
    let other = policies.answer(question);
    let by: BTreeSet<String> = other.deciding.iter().map(|cited| cited.rule.title()).collect();
    let by = by.into_iter().collect::<Vec<_>>().join(", ");
    if by.is_empty() { outcome(other.outcome) } else { format!("{} ({by})", outcome(other.outcome)) }
}

#[cfg(test)]
#[path = "policy_trace_tests.rs"]
mod tests;
