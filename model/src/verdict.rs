//! What a policy says (`ebpf/bpf/policy.h`): rules that all speak at once. Any deny wins.

use crate::node::WORLD;
use crate::outcome::Reason;
use crate::packet::{ICMP, ICMPV6, Protocol};

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

/// Where a rule stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Asked first; what it allows or denies is final.
    Admin,
    /// Asked second, likewise; what it leaves unsaid is dropped where it is enforced.
    Normal,
    /// Asked last, where the normal tier is not enforced.
    Baseline,
}

/// What a rule says. Of rules of one priority the greater counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Ask the next tier.
    Pass,
    /// Let it through.
    Allow,
    /// Drop it.
    Deny,
}

/// A rule. `None` matches anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Where it stands.
    pub tier: Tier,
    /// The peer's identity.
    pub identity: Option<u32>,
    /// The protocol.
    pub protocol: Option<Protocol>,
    /// The port that the flow is opened to, and how many leading bits of it count; of ICMP the type, in the upper byte.
    pub port: Option<(u16, u8)>,
    /// What it says.
    pub action: Action,
    /// The smaller, the more urgent.
    pub priority: u32,
}

/// The rules of a policy for one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Side {
    /// Whether what the normal tier leaves unsaid is dropped.
    pub enforced: bool,
    /// The rules, in any order.
    pub rules: Vec<Rule>,
}

/// The rules of a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Rules for what the pods receive.
    pub ingress: Side,
    /// Rules for what the pods send.
    pub egress: Side,
    /// What would be dropped passes.
    pub audit: bool,
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
            && self.port.is_none_or(|(wanted, bits)| {
                let open = 16_u32.saturating_sub(bits.into());
                (wanted ^ question.rule_port()).checked_shr(open).unwrap_or(0) == 0
            })
    }
}

impl Question {
    /// The port that rules go by. Of ICMP only echo is tracked, whose flow has port 0 at the asked end.
    const fn rule_port(&self) -> u16 {
        let asked = self.port == 0;
        match self.protocol {
            ICMP if asked => 8 << 8,
            ICMP => 0,
            ICMPV6 if asked => 128 << 8,
            ICMPV6 => 129 << 8,
            _ => self.port,
        }
    }
}

impl Policy {
    /// Whether the flow may be.
    ///
    /// # Errors
    /// [`Reason::PolicyDeny`] if a rule denies it, [`Reason::Policy`] if none allows it.
    pub fn allows(&self, question: &Question) -> Result<(), Reason> {
        let side = match question.direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        };
        if self.audit { Ok(()) } else { side.allows(question) }
    }
}

impl Policy {
    /// The rule that decides on the flow; `None`: nobody said anything, and the default holds.
    #[must_use]
    pub fn decisive(&self, question: &Question) -> Option<Rule> {
        match question.direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
        .decisive(question)
    }
}

impl Side {
    fn decisive(&self, question: &Question) -> Option<Rule> {
        for tier in [Tier::Admin, Tier::Normal, Tier::Baseline] {
            if tier == Tier::Baseline && self.enforced {
                return None;
            }
            let matching = self.rules.iter().filter(|rule| rule.tier == tier && rule.matches(question));
            let decides = matching.max_by_key(|rule| (std::cmp::Reverse(rule.priority), rule.action));
            if let Some(rule) = decides.filter(|rule| rule.action != Action::Pass) {
                return Some(*rule);
            }
        }
        None
    }

    fn allows(&self, question: &Question) -> Result<(), Reason> {
        for tier in [Tier::Admin, Tier::Normal, Tier::Baseline] {
            let matching = self.rules.iter().filter(|rule| rule.tier == tier && rule.matches(question));
            let decides = matching.map(|rule| (std::cmp::Reverse(rule.priority), rule.action)).max();
            match decides.map(|(_, action)| action) {
                Some(Action::Deny) => return Err(Reason::PolicyDeny),
                Some(Action::Allow) => return Ok(()),
                Some(Action::Pass) | None if tier == Tier::Normal && self.enforced => {
                    return Err(Reason::Policy);
                }
                Some(Action::Pass) | None => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: Rule = Rule {
        tier: Tier::Normal,
        identity: None,
        protocol: None,
        port: None,
        action: Action::Allow,
        priority: 0,
    };
    const DENY: Rule = Rule { action: Action::Deny, ..ANY };

    fn side(enforced: bool, rules: &[Rule], (port, ipv4): (u16, bool), identity: u32) -> Result<(), Reason> {
        let policy = Policy { ingress: Side { enforced, rules: rules.to_vec() }, ..Policy::default() };
        let question = Question { direction: Direction::Ingress, identity, protocol: 6, port, ipv4 };
        let other = Question { direction: Direction::Egress, ..question };
        assert_eq!(policy.allows(&other), Ok(()), "not enforced");
        assert_eq!(Policy { audit: true, ..policy.clone() }.allows(&question), Ok(()));
        policy.allows(&question)
    }

    fn ask(rules: &[Rule], identity: u32, ipv4: bool) -> Result<(), Reason> {
        side(true, rules, (80, ipv4), identity)
    }

    #[test]
    fn what_no_rule_allows_is_dropped_and_any_deny_wins() {
        let deny = Rule { port: Some((80, 16)), protocol: Some(6), ..DENY };
        assert_eq!(ask(&[], 1000, true), Err(Reason::Policy));
        assert_eq!(ask(&[ANY], 1000, true), Ok(()));
        assert_eq!(ask(&[Rule { port: Some((81, 16)), ..ANY }], 1000, true), Err(Reason::Policy));
        for rules in [[ANY, deny], [deny, ANY]] {
            assert_eq!(ask(&rules, 1000, true), Err(Reason::PolicyDeny));
        }
    }

    #[test]
    fn ports_match_by_their_leading_bits() {
        let range = [Rule { port: Some((80, 12)), ..ANY }];
        for (port, passes) in [(79, false), (80, true), (95, true), (96, false)] {
            assert_eq!(side(true, &range, (port, true), 1).is_ok(), passes, "{port}");
        }
    }

    #[test]
    fn tiers_are_asked_in_turn_and_in_each_the_most_urgent_decides() {
        let at = |tier, priority, action| Rule { tier, priority, action, ..ANY };
        let cases = [
            (vec![at(Tier::Admin, 5, Action::Allow)], Ok(()), "before the default"),
            (vec![at(Tier::Admin, 5, Action::Allow), DENY], Ok(()), "before any deny of a later tier"),
            (
                vec![at(Tier::Admin, 5, Action::Allow), at(Tier::Admin, 4, Action::Deny)],
                Err(Reason::PolicyDeny),
                "urgent",
            ),
            (
                vec![at(Tier::Admin, 4, Action::Pass), at(Tier::Admin, 5, Action::Deny), ANY],
                Ok(()),
                "passed on",
            ),
            (
                vec![at(Tier::Admin, 4, Action::Pass), at(Tier::Baseline, 0, Action::Allow)],
                Err(Reason::Policy),
                "default",
            ),
        ];
        for (rules, expected, what) in cases {
            assert_eq!(ask(&rules, 1000, true), expected, "{what}");
        }
        let baseline = [at(Tier::Baseline, 0, Action::Deny)];
        assert_eq!(side(false, &baseline, (80, true), 1), Err(Reason::PolicyDeny), "nothing is enforced");
        assert_eq!(side(false, &[], (80, true), 1), Ok(()));
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
