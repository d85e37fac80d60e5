//! What holds for all kinds of policy: how much an object may hold, and what becomes of a rule that cannot be carried out.
//!
//! Such a rule fails closed: one that allows then allows nobody, one that denies or passes then denies everybody (on its
//! ports, where they can be read). The object's other rules and its default deny stand, and a problem tells of it.

use crate::convert::{Converted, port};
use crate::object::Object;
use crate::problem::{Issue, shorten};
use std::collections::BTreeSet;
use tombolo_policy::{Action, PortRule, RuleBlock};

/// Rules of one object.
const MAX_RULES: usize = 1_000;
/// Peers, ports and prefixes of one object, each.
const MAX_ENTRIES: usize = 16_384;
/// Keys that nobody knows, after which an object is not read on.
const MAX_UNKNOWN: usize = 100;
/// Rules told of one by one.
const MAX_TOLD: usize = 16;

/// Why a rule is not what was written.
#[derive(Debug)]
pub(super) enum Fault {
    /// The object is wrong and is refused.
    Object(Issue),
    /// The rule asks for what there is not, and fails closed.
    Rule(Issue),
}

impl From<Issue> for Fault {
    fn from(issue: Issue) -> Self {
        Self::Object(issue)
    }
}

/// What an object may still hold, and what was found on the way.
pub(super) struct Reader<'a> {
    unknown: &'a [String],
    rules: usize,
    entries: usize,
    closed: usize,
    doubts: Vec<Issue>,
}

impl<'a> Reader<'a> {
    /// Of an object with these keys (under `spec` or `specs`) that nobody knows.
    pub(super) fn new(unknown: &'a [String]) -> Result<Self, Issue> {
        if let (Some(path), true) = (unknown.first(), unknown.len() > MAX_UNKNOWN) {
            let reason = format!("{} unknown keys, this is the first", unknown.len());
            return Err(Issue::new(path, reason, "check apiVersion, kind and indentation"));
        }
        // What is not in a rule changes whom the object is about, or drops a part of it.
        if let Some(path) = unknown.iter().find(|path| !in_rule(path)) {
            let remedy = "check its spelling and indentation; a policy is not taken without a part of it";
            return Err(Issue::new(path, "there is no such field", remedy));
        }
        Ok(Self { unknown, rules: MAX_RULES, entries: MAX_ENTRIES, closed: 0, doubts: Vec::new() })
    }

    /// One rule more, at `at`.
    pub(super) fn rule(&mut self, at: &str) -> Result<(), Issue> {
        self.rules = self.rules.checked_sub(1).ok_or_else(|| {
            Issue::new(at, format!("more than {MAX_RULES} rules"), "split the object into several")
        })?;
        Ok(())
    }

    /// That many more peers, ports or prefixes, at `at`.
    pub(super) fn entries(&mut self, at: &str, count: usize) -> Result<(), Issue> {
        self.entries = self.entries.checked_sub(count).ok_or_else(|| {
            let reason = format!("more than {MAX_ENTRIES} peers, ports and prefixes in one object");
            Issue::new(at, reason, "split the object, or put prefixes into a CiliumCIDRGroup")
        })?;
        Ok(())
    }

    /// A key in the rule at `at` that nobody knows may narrow what the rule matches.
    pub(super) fn known(&self, at: &str) -> Result<(), Fault> {
        let inside = |path: &&String| path.strip_prefix(at).is_some_and(|rest| rest.starts_with(['.', '[']));
        match self.unknown.iter().find(inside) {
            Some(path) => Err(unsupported(path, "a field that is not known", "check its spelling")),
            None => Ok(()),
        }
    }

    /// Something worth telling about an object that is used.
    pub(super) fn doubt(&mut self, issue: Issue) {
        self.doubts.push(issue);
    }

    /// The rule, or what stands for one with this action, priority and, as far as they could be read, ports.
    pub(super) fn close(
        &mut self,
        at: &str,
        rule: Result<RuleBlock, Fault>,
        (action, priority, ports): (Action, u32, Option<BTreeSet<PortRule>>),
    ) -> Result<RuleBlock, Issue> {
        let issue = match rule {
            Ok(rule) => return Ok(rule),
            Err(Fault::Object(issue)) => return Err(issue),
            Err(Fault::Rule(issue)) => issue,
        };
        let (peers, action, ports, does) = match action {
            Action::Allow => (Some(BTreeSet::new()), Action::Allow, None, "allows nothing"),
            Action::Deny | Action::Pass => (None, Action::Deny, ports, "denies everybody"),
        };
        self.closed += 1;
        if self.closed <= MAX_TOLD {
            let reason = format!("{}: the rule {at} {does}", issue.reason);
            self.doubts.push(Issue { reason, ..issue });
        }
        Ok(RuleBlock { action, priority, peers, ports, name: None })
    }

    /// The object with all that is to be told of it.
    pub(super) fn done(mut self, object: Object) -> Converted {
        if self.closed > MAX_TOLD {
            let reason = format!("{} more rules cannot be carried out", self.closed - MAX_TOLD);
            self.doubts.push(Issue::new("spec", reason, "mend those that are told first"));
        }
        (object, self.doubts)
    }
}

/// Whether a key path leads into a rule: `spec.ingress[0].x`, `specs[2].egressDeny[1].x`.
fn in_rule(path: &str) -> bool {
    let section = path.split('.').nth(1).unwrap_or_default();
    let section = section.split('[').next().unwrap_or_default();
    matches!(section, "ingress" | "ingressDeny" | "egress" | "egressDeny") && path.matches('.').count() >= 2
}

/// A rule at a key that asks for something there is not.
pub(super) fn unsupported(at: &str, what: &str, remedy: &str) -> Fault {
    Fault::Rule(Issue::new(at, format!("{what} cannot be carried out"), remedy))
}

/// First to last port, both from 1.
pub(super) fn port_range(
    first: (String, i64),
    last: (String, i64),
) -> Result<tombolo_policy::PortMatch, Issue> {
    let low = port(first.0, first.1)?;
    let high = port(last.0.clone(), last.1)?;
    if low > high {
        let remedy = "the last port must not be below the first";
        return Err(Issue::new(last.0, format!("{high} ends no range from {low}"), remedy));
    }
    Ok(tombolo_policy::PortMatch::Range(low, high))
}

/// A port's name as Kubernetes and IANA write them: at most 15 letters, digits and single hyphens, with a letter.
pub(super) fn port_name(at: &str, text: &str) -> Result<std::sync::Arc<str>, Issue> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let good = (1..=15).contains(&text.len())
        && text.chars().all(allowed)
        && text.chars().any(|c| c.is_ascii_alphabetic())
        && !text.contains("--")
        && !text.starts_with('-')
        && !text.ends_with('-');
    if good {
        return Ok(text.to_ascii_lowercase().into());
    }
    let remedy = "use a number from 0 to 65535, or the name of a container's port";
    Err(Issue::new(at, format!("{:?} is no port", shorten(text)), remedy))
}
