//! What a policy says (`ebpf/bpf/policy.h`): rules that all speak at once. Any deny wins.

use crate::node::WORLD;
use crate::outcome::Reason;
use crate::packet::Protocol;

/// The world as rules know it, for IPv4: 0.0.0.0/0 says nothing of IPv6.
pub const WORLD_IPV4: u32 = 9;
/// The world as rules know it, for IPv6.
pub const WORLD_IPV6: u32 = 10;

/// Whose traffic is asked about, as the pod sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

/// A rule. `None` matches anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// The peer's identity.
    pub identity: Option<u32>,
    /// The protocol.
    pub protocol: Option<Protocol>,
    /// The port that the flow is opened to; 0 for an echo.
    pub port: Option<u16>,
    /// Whether it denies.
    pub denies: bool,
}

/// The rules of a policy. `None` for a direction: not enforced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Rules for what the pods receive.
    pub ingress: Option<Vec<Rule>>,
    /// Rules for what the pods send.
    pub egress: Option<Vec<Rule>>,
}

/// What a policy is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The direction in which the flow was opened.
    pub direction: Direction,
    /// The peer's identity.
    pub identity: u32,
    /// The protocol.
    pub protocol: Protocol,
    /// The port that the flow was opened to.
    pub port: u16,
    /// The packet's family.
    pub ipv4: bool,
}

impl Rule {
    fn matches(&self, question: &Question) -> bool {
        let identity = match question.identity {
            WORLD if question.ipv4 => WORLD_IPV4,
            WORLD => WORLD_IPV6,
            other => other,
        };
        self.identity.is_none_or(|wanted| wanted == identity)
            && self.protocol.is_none_or(|wanted| wanted == question.protocol)
            && self.port.is_none_or(|wanted| wanted == question.port)
    }
}

impl Policy {
    /// Whether the flow may be.
    ///
    /// # Errors
    /// [`Reason::PolicyDeny`] if a rule denies it, [`Reason::Policy`] if none allows it.
    pub fn allows(&self, question: &Question) -> Result<(), Reason> {
        let rules = match question.direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        };
        let Some(rules) = rules else { return Ok(()) };
        let mut allowed = Err(Reason::Policy);
        for rule in rules.iter().filter(|rule| rule.matches(question)) {
            if rule.denies {
                return Err(Reason::PolicyDeny);
            }
            allowed = Ok(());
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: Rule = Rule { identity: None, protocol: None, port: None, denies: false };

    fn ask(rules: &[Rule], identity: u32, ipv4: bool) -> Result<(), Reason> {
        let policy = Policy { ingress: Some(rules.to_vec()), egress: None };
        let question = Question { direction: Direction::Ingress, identity, protocol: 6, port: 80, ipv4 };
        let other = Question { direction: Direction::Egress, ..question };
        assert_eq!(policy.allows(&other), Ok(()), "not enforced");
        policy.allows(&question)
    }

    #[test]
    fn what_no_rule_allows_is_dropped_and_any_deny_wins() {
        let deny = Rule { port: Some(80), protocol: Some(6), denies: true, ..ANY };
        assert_eq!(ask(&[], 1000, true), Err(Reason::Policy));
        assert_eq!(ask(&[ANY], 1000, true), Ok(()));
        assert_eq!(ask(&[Rule { port: Some(81), ..ANY }], 1000, true), Err(Reason::Policy));
        for rules in [[ANY, deny], [deny, ANY]] {
            assert_eq!(ask(&rules, 1000, true), Err(Reason::PolicyDeny));
        }
    }

    #[test]
    fn rules_know_a_world_of_each_family() {
        let of = |identity| [Rule { identity: Some(identity), ..ANY }];
        assert_eq!(ask(&of(WORLD_IPV4), WORLD, true), Ok(()));
        assert_eq!(ask(&of(WORLD_IPV4), WORLD, false), Err(Reason::Policy));
        assert_eq!(ask(&of(WORLD_IPV6), WORLD, false), Ok(()));
        assert_eq!(ask(&of(WORLD), WORLD, true), Err(Reason::Policy));
    }
}
