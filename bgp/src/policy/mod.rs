//! Routing policy: ordered statements, each with conditions, actions and what comes after it. The first that accepts or rejects decides; a route that none
//! decides about meets the policy's default, which is to reject (RFC 8212).
//!
//! A policy is a value: written as YAML or JSON, compared, and applied without further preparation. It knows nothing of peers or tables; a route is a
//! [`Subject`]. [`Policy::evaluate`] says what a route would meet, and why.

mod action;
mod condition;
mod pattern;
mod prefix_set;
#[cfg(test)]
mod tests;

pub use action::{Action, NextHopAction, Number, Prepend};
pub use condition::{Bounds, Condition, SourceKind};
pub use pattern::{
    AsSpan, CommunityPattern, ExtendedCommunity, ExtendedCommunityPattern, ExtendedParts,
    LargeCommunityPattern, PrefixRange,
};
pub use prefix_set::PrefixSet;

pub(crate) use action::Edited;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::config::AllowedPrefix;
use crate::family::NextHop;
use crate::rpki::RpkiTable;
use crate::wire::Attributes;

/// What comes after a statement whose conditions hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Then {
    /// The route is taken, with all that was done to it.
    Accept,
    /// The route is refused.
    Reject,
    /// The next statement is asked.
    #[default]
    Next,
}

/// What happens to routes that no statement decides about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Fallback {
    /// They are taken.
    Accept,
    /// They are refused.
    #[default]
    Reject,
}

/// One statement of a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Statement {
    /// What it is called in traces.
    pub name: String,
    /// Conditions; all must hold. None: it is for every route.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub when: Vec<Condition>,
    /// What is done to the route, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub actions: Vec<Action>,
    /// What comes after.
    #[serde(default)]
    pub then: Then,
}

/// A policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    /// What it is called.
    pub name: String,
    /// Statements in order.
    #[serde(default)]
    pub statements: Vec<Statement>,
    /// What routes meet that no statement decides about. Own announcements under an export policy are the exception: they are accepted, since
    /// announcing them was the permission.
    #[serde(default)]
    pub default: Fallback,
}

/// Where a route comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source<'a> {
    /// This speaker originates it.
    Own,
    /// A peer sent it.
    Peer {
        /// Its name.
        name: &'a str,
        /// Its group.
        group: Option<&'a str>,
        /// It is in another AS.
        external: bool,
    },
}

/// A route as a policy sees it.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The prefix.
    pub prefix: IpNet,
    /// Its attributes.
    pub attributes: &'a Attributes,
    /// Its next hop; none for an own announcement that leaves it to the session.
    pub next_hop: Option<NextHop>,
    /// Where it is from.
    pub source: Source<'a>,
    /// This speaker's AS.
    pub local_asn: u32,
    /// For origin validation.
    pub rpki: &'a RpkiTable,
}

/// Statements of which at most a policy consists.
const STATEMENTS_MAX: usize = 4096;

/// The statements with actions that an accepted route met, in order: with the attributes it came with, it tells what becomes of it.
pub(crate) type Applied = SmallVec<[u16; 4]>;

/// What a policy says of a route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Evaluation {
    /// Whether the route is taken.
    pub accepted: bool,
    /// The statement that decided; none: the default did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<String>,
    /// The attributes the route leaves with.
    pub attributes: Attributes,
    /// What becomes of the next hop, if a statement said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_hop: Option<NextHopAction>,
    /// Every statement that was asked, in order.
    pub trace: Vec<Step>,
}

/// What one statement made of a route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// The statement.
    pub statement: String,
    /// The first condition that did not hold; none: the statement applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// What it did.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub actions: Vec<String>,
    /// What came after; without meaning if it did not apply.
    pub then: Then,
}

impl Policy {
    /// Takes every route as it is.
    pub fn accept_all(name: &str) -> Self {
        Self { name: name.to_owned(), statements: Vec::new(), default: Fallback::Accept }
    }

    /// Takes what the ranges name, and nothing else.
    pub fn allow_list(name: &str, ranges: &[AllowedPrefix]) -> Self {
        let allowed = Statement {
            name: "allowed".to_owned(),
            when: vec![Condition::Prefixes(ranges.iter().copied().collect())],
            then: Then::Accept,
            ..Statement::default()
        };
        let statements = if ranges.is_empty() { Vec::new() } else { vec![allowed] };
        Self { name: name.to_owned(), statements, default: Fallback::Reject }
    }

    /// What a route would meet, and which statement decides.
    pub fn evaluate(&self, subject: &Subject<'_>) -> Evaluation {
        let mut trace = Vec::new();
        let verdict = self.run(subject, self.takes_undecided(subject), |statement, failed| {
            let held = failed.is_none();
            trace.push(Step {
                statement: statement.name.clone(),
                failed: failed.map(ToString::to_string),
                actions: if held {
                    statement.actions.iter().map(ToString::to_string).collect()
                } else {
                    Vec::new()
                },
                then: if held { statement.then } else { Then::Next },
            });
        });
        let edited =
            self.apply(verdict.as_deref().unwrap_or_default(), subject.attributes, subject.local_asn);
        Evaluation {
            accepted: verdict.is_some(),
            decided_by: trace
                .last()
                .filter(|step| step.then != Then::Next)
                .map(|step| step.statement.clone()),
            attributes: edited.attributes,
            next_hop: edited.next_hop,
            trace,
        }
    }

    /// Whether a route is accepted, and then which statements are to be applied to it.
    pub(crate) fn decide(&self, subject: &Subject<'_>) -> Option<Applied> {
        self.run(subject, self.takes_undecided(subject), |_, _| {})
    }

    const fn takes_undecided(&self, subject: &Subject<'_>) -> bool {
        matches!(self.default, Fallback::Accept) || matches!(subject.source, Source::Own)
    }

    fn run(
        &self,
        subject: &Subject<'_>,
        default: bool,
        mut note: impl FnMut(&Statement, Option<&Condition>),
    ) -> Option<Applied> {
        let mut applied = Applied::new();
        // Later statements see what earlier ones did.
        let mut edited: Option<Edited> = None;
        for (at, statement) in (0u16..).zip(&self.statements) {
            let attributes = edited.as_ref().map_or(subject.attributes, |edited| &edited.attributes);
            let hop = match edited.as_ref().and_then(|edited| edited.next_hop) {
                Some(NextHopAction::Address(address)) => Some(NextHop::new(address)),
                _ => subject.next_hop,
            };
            let holds = |condition: &&Condition| !condition.holds(subject, attributes, hop.as_ref());
            let failed = statement.when.iter().find(holds);
            note(statement, failed);
            if failed.is_some() {
                continue;
            }
            if !statement.actions.is_empty() {
                applied.push(at);
            }
            match statement.then {
                Then::Accept => return Some(applied),
                Then::Reject => return None,
                Then::Next if statement.actions.is_empty() => {}
                Then::Next => {
                    let edited = edited.get_or_insert_with(|| Edited::of(subject.attributes));
                    statement.actions.iter().for_each(|action| action.apply(subject.local_asn, edited));
                }
            }
        }
        default.then_some(applied)
    }

    /// A route after what [`Policy::decide`] found.
    pub(crate) fn apply(&self, applied: &[u16], attributes: &Attributes, local_asn: u32) -> Edited {
        let mut edited = Edited::of(attributes);
        let statements = applied.iter().filter_map(|at| self.statements.get(usize::from(*at)));
        statements
            .flat_map(|statement| &statement.actions)
            .for_each(|action| action.apply(local_asn, &mut edited));
        edited
    }

    /// What the statements that [`Policy::decide`] found do to the next hop.
    pub(crate) fn next_hop(&self, applied: &[u16]) -> Option<NextHopAction> {
        let statements = applied.iter().filter_map(|at| self.statements.get(usize::from(*at)));
        let actions = statements.flat_map(|statement| &statement.actions);
        let next_hops = actions
            .filter_map(|action| if let Action::NextHop(action) = action { Some(*action) } else { None });
        // The last one counts.
        next_hops.fold(None, |_, action| Some(action))
    }

    /// Whether what it says depends on the prefix beyond its family: if not, it says the same of all prefixes that share attributes.
    pub(crate) fn looks_at_prefix(&self) -> bool {
        self.has(|condition| matches!(condition, Condition::Prefixes(_) | Condition::Rpki(_)))
    }

    /// Whether what it says depends on origin validation.
    pub(crate) fn looks_at_rpki(&self) -> bool {
        self.has(|condition| matches!(condition, Condition::Rpki(_)))
    }

    fn has(&self, which: impl Fn(&Condition) -> bool) -> bool {
        self.statements.iter().flat_map(|statement| &statement.when).any(|condition| condition.has(&which))
    }

    /// Whether it can be used. `import`: it judges what comes in.
    ///
    /// # Errors
    /// What is wrong with it, and what to do about it.
    pub fn check(&self, import: bool) -> Result<(), (&'static str, &'static str)> {
        if self.statements.len() > STATEMENTS_MAX {
            return Err(("a policy of over 4096 statements", "put prefixes into one condition"));
        }
        for statement in &self.statements {
            if statement.when.iter().any(|condition| condition.depth() > condition::DEPTH_MAX) {
                return Err(("conditions nested over 16 deep", "split the statement"));
            }
            for action in &statement.actions {
                action.check().map_err(|what| (what, "correct the action"))?;
                if import && matches!(action, Action::NextHop(NextHopAction::Own | NextHopAction::Unchanged))
                {
                    return Err((
                        "an import policy sets the next hop to `self` or `unchanged`",
                        "give an address, or do it in an export policy",
                    ));
                }
            }
        }
        Ok(())
    }
}

impl Edited {
    /// Nothing is done yet.
    pub(crate) fn of(attributes: &Attributes) -> Self {
        Self { attributes: attributes.clone(), next_hop: None, med: false }
    }
}
