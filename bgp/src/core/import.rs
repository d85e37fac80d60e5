//! What becomes of routes as they come in: loops, import policy, graceful shutdown (RFC 8326), blackholes (RFC 7999).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use foldhash::fast::FixedState;
use ipnet::IpNet;

use crate::config::PeerConfig;
use crate::family::{Family, NextHop};
use crate::fsm::Identity;
use crate::policy::{Applied, Edited, NextHopAction, Policy, PrefixSet, Source, Subject};
use crate::rib::{PathSet, PathSets, Refusal};
use crate::routing::Role;
use crate::rpki::RpkiTable;
use crate::wire::Community;

/// Results kept for a peer; then all are forgotten.
const CACHE_MAX: usize = 4096;
/// The shortest prefixes that a covering one is looked for among: no peer may speak for more.
const COVERING_MIN: [u8; 2] = [8, 16];

/// What a policy says of everything that shares a set, and the set it makes of it.
type Cache<K, V> = HashMap<K, V, FixedState>;

/// A peer's import rules, ready to be asked.
#[derive(Debug)]
pub(super) struct Import {
    config: Arc<PeerConfig>,
    rules: Rules,
    /// What the policy says of a whole set, where it does not look at prefixes.
    whole: Cache<(u64, Family), Option<Applied>>,
    /// What the statements that a route met make of a set.
    made: Cache<(u64, u32, Applied, bool), Arc<PathSet>>,
}

#[derive(Debug)]
enum Rules {
    /// The allow-list: nothing is changed.
    List(PrefixSet),
    Policy {
        policy: Arc<Policy>,
        looks_at_prefix: bool,
    },
}

/// What is done to a route beside policy.
#[derive(Clone, Copy, Debug)]
struct Extra {
    /// Packets to it are discarded: it stays here (RFC 7999).
    blackhole: bool,
    /// It goes away soon (RFC 8326).
    shutdown: bool,
    /// It is marked as one for customers only, by this AS (RFC 9234).
    mark: Option<u32>,
}

/// What of the speaker and the session a judgement depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting<'a> {
    pub(super) identity: Identity,
    pub(super) cluster_id: Ipv4Addr,
    /// Our address on the session.
    pub(super) own_address: Option<IpAddr>,
    pub(super) ebgp: bool,
    /// The peer's AS.
    pub(super) peer_asn: u32,
    pub(super) rpki: &'a RpkiTable,
}

impl Import {
    pub(super) fn new(config: Arc<PeerConfig>) -> Self {
        let rules = match &config.import_policy {
            None => Rules::List(config.import.iter().copied().collect()),
            Some(policy) => {
                Rules::Policy { policy: Arc::clone(policy), looks_at_prefix: policy.looks_at_prefix() }
            }
        };
        Self { config, rules, whole: Cache::default(), made: Cache::default() }
    }

    /// Whether what it says depends on origin validation.
    pub(super) fn looks_at_rpki(&self) -> bool {
        matches!(&self.rules, Rules::Policy { policy, .. } if policy.looks_at_rpki())
    }

    /// Why no route of a set is to be considered, if so.
    pub(super) fn refusal(&self, setting: &Setting<'_>, set: &PathSet) -> Option<Refusal> {
        let attributes = set.attributes();
        let own_id = attributes.originator_id == Some(setting.identity.router_id)
            || attributes.cluster_list.contains(&setting.cluster_id);
        if attributes.as_path.contains(setting.identity.asn) {
            Some(Refusal::AsLoop)
        } else if own_id {
            Some(Refusal::OwnRouterId)
        } else if setting.own_address == Some(set.next_hop().address) {
            Some(Refusal::OwnNextHop)
        } else if setting.ebgp && self.leaks(setting, set) {
            Some(Refusal::RouteLeak)
        } else if matches!(&self.rules, Rules::List(list) if list.ranges().is_empty()) {
            Some(Refusal::Policy)
        } else {
            None
        }
    }

    /// Whether a route came where one for customers only must not (RFC 9234 section 5).
    fn leaks(&self, setting: &Setting<'_>, set: &PathSet) -> bool {
        let (Some(role), Some(marked)) = (self.config.role, set.attributes().only_to_customer()) else {
            return false;
        };
        match role {
            // From a customer, or a client of this route server.
            Role::Provider | Role::RouteServer => true,
            Role::Peer => marked != setting.peer_asn,
            Role::Customer | Role::RouteServerClient => false,
        }
    }

    /// The AS that a route is to be marked with as one for customers only, if it came from above or beside and has no mark.
    fn mark(&self, setting: &Setting<'_>, set: &PathSet) -> Option<u32> {
        let from_above = setting.ebgp && self.config.role.is_some_and(|role| !role.is_upstream());
        (from_above && set.attributes().only_to_customer().is_none()).then_some(setting.peer_asn)
    }

    /// What becomes of a route of a set that is not refused as a whole: the set it is kept with, and why it is refused.
    pub(super) fn judge(
        &mut self,
        setting: &Setting<'_>,
        sets: &mut PathSets,
        prefix: &IpNet,
        set: &Arc<PathSet>,
    ) -> (Arc<PathSet>, Option<Refusal>) {
        let applied = match &self.rules {
            Rules::List(list) => list.contains(prefix).then(Applied::new),
            Rules::Policy { policy, looks_at_prefix: true } => self.ask(policy, setting, *prefix, set),
            Rules::Policy { policy, looks_at_prefix: false } => {
                let key = (set.serial(), Family::of(prefix));
                match self.whole.get(&key) {
                    Some(known) => known.clone(),
                    None => {
                        let applied = self.ask(policy, setting, *prefix, set);
                        bounded(&mut self.whole).insert(key, applied.clone());
                        applied
                    }
                }
            }
        };
        let communities = &set.attributes().communities;
        let blackhole = self.config.accept_blackhole && communities.contains(&Community::BLACKHOLE);
        let applied = match applied {
            None if blackhole && self.covered(setting, prefix, set) => Some(Applied::new()),
            applied => applied,
        };
        let Some(applied) = applied else { return (Arc::clone(set), Some(Refusal::Policy)) };
        let shutdown = setting.ebgp && communities.contains(&Community::GRACEFUL_SHUTDOWN);
        let mark = self.mark(setting, set);
        if applied.is_empty() && !blackhole && !shutdown && mark.is_none() {
            return (Arc::clone(set), None);
        }
        let key = (set.serial(), set.path_id(), applied, prefix.addr().is_ipv4());
        if let Some(made) = self.made.get(&key) {
            return (Arc::clone(made), None);
        }
        let made =
            self.make(setting, sets, set, &key.2, Extra { blackhole, shutdown, mark }, Family::of(prefix));
        bounded(&mut self.made).insert(key, Arc::clone(&made));
        (made, None)
    }

    fn ask(&self, policy: &Policy, setting: &Setting<'_>, prefix: IpNet, set: &PathSet) -> Option<Applied> {
        policy.decide(&Subject {
            prefix,
            attributes: set.attributes(),
            next_hop: Some(*set.next_hop()),
            source: source(&self.config, setting.ebgp),
            local_asn: setting.identity.asn,
            rpki: setting.rpki,
        })
    }

    /// Whether the peer may speak for a shorter prefix around this one (RFC 7999 section 3.3).
    fn covered(&self, setting: &Setting<'_>, prefix: &IpNet, set: &PathSet) -> bool {
        let [v4, v6] = COVERING_MIN;
        let least = if prefix.addr().is_ipv4() { v4 } else { v6 };
        std::iter::successors(prefix.supernet(), IpNet::supernet)
            .take_while(|covering| covering.prefix_len() >= least)
            .any(|covering| match &self.rules {
                Rules::List(list) => list.contains(&covering),
                Rules::Policy { policy, .. } => self.ask(policy, setting, covering, set).is_some(),
            })
    }

    fn make(
        &self,
        setting: &Setting<'_>,
        sets: &mut PathSets,
        set: &Arc<PathSet>,
        applied: &[u16],
        extra: Extra,
        family: Family,
    ) -> Arc<PathSet> {
        let attributes = set.attributes();
        let Edited { mut attributes, next_hop, .. } = match &self.rules {
            Rules::List(_) => Edited::of(attributes),
            Rules::Policy { policy, .. } => policy.apply(applied, attributes, setting.identity.asn),
        };
        if extra.blackhole {
            // RFC 7999 section 3.2: it must not travel further than to those who agreed to it.
            add(&mut attributes.communities, Community::NO_EXPORT);
        }
        if let Some(asn) = extra.mark {
            attributes.set_only_to_customer(asn);
        }
        if extra.shutdown {
            // RFC 8326 section 4.2: whatever else there is, is better.
            attributes.local_pref = Some(0);
        }
        let next_hop = match next_hop {
            Some(NextHopAction::Address(address)) if Family::of_address(&address) == family => {
                NextHop::new(address)
            }
            _ => *set.next_hop(),
        };
        sets.edited(set, attributes, next_hop)
    }
}

/// Whom a route is from, as policies see it.
pub(super) fn source(config: &PeerConfig, external: bool) -> Source<'_> {
    Source::Peer { name: &config.name, group: config.group.as_deref(), external }
}

/// Adds a community to a sorted list.
pub(super) fn add(communities: &mut Vec<Community>, community: Community) {
    if let Err(at) = communities.binary_search(&community) {
        communities.insert(at, community);
    }
}

fn bounded<K, V>(cache: &mut Cache<K, V>) -> &mut Cache<K, V> {
    if cache.len() >= CACHE_MAX {
        cache.clear();
    }
    cache
}
