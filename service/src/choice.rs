//! Which backends of a frontend take new flows, and how many: tiers of clusters, weights, overflow, hints. Pure.
//!
//! Tiers first: each takes as much of the traffic as its healthy share allows, the rest goes to the next. Within a tier
//! hints narrow the choice to this zone, then the clusters' weights divide it. Affinity is a preset of tiers.

use crate::plan::BackendKey;
use crate::rows::{BackendState, Distribution};
use crate::spread::Place;
use serde::{Serialize, Serializer};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// The whole traffic of a frontend, in the unit of a tier's load.
const WHOLE: u64 = 10_000;
/// Makes shares of a load whole numbers: a ten-thousandth among 10,000 backends is still ten.
const FINE: u64 = 100_000;

/// A backend that is known for a frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Address, port, protocol.
    pub key: BackendKey,
    /// Its cluster; `None` for this one.
    pub cluster: Option<Arc<str>>,
    /// How ready it is.
    pub state: BackendState,
    /// Whether it runs on this node.
    pub local_node: bool,
    /// Its zone.
    pub zone: Option<Arc<str>>,
    /// Zones that should use it.
    pub for_zones: Vec<Arc<str>>,
    /// Nodes of its cluster that should use it.
    pub for_nodes: Vec<Arc<str>>,
    /// Whether it does not answer this node's probes.
    pub failing: bool,
}

/// Where the choice is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Site {
    /// This node.
    pub node: Arc<str>,
    /// This cluster.
    pub cluster: Arc<str>,
    /// This node's zone.
    pub zone: Option<Arc<str>>,
}

/// What a service asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules<'a> {
    /// Tiers, first choice first.
    pub tiers: &'a [BTreeSet<Place>],
    /// Shares of clusters.
    pub weights: &'a BTreeMap<Place, u16>,
    /// Percentage of usable backends below which the next tier helps.
    pub overflow: Option<u8>,
    /// Preference by zone and node; `None`: hints are not looked at either.
    pub distribution: Option<Distribution>,
}

/// Why a known backend takes no new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Why {
    /// Its cluster is in a tier that is not used now; counted from 1.
    Tier(u8),
    /// Its cluster is in no tier.
    NoTier,
    /// Its cluster's weight is 0.
    Weight,
    /// It is not ready.
    NotReady,
    /// It only serves what it has.
    Serving,
    /// It does not answer probes.
    Probe,
    /// Hints or the traffic distribution prefer others for this zone.
    Zone,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tier(number) => write!(f, "tier-{number}"),
            Self::NoTier => f.write_str("no-tier"),
            Self::Weight => f.write_str("weight-0"),
            Self::NotReady => f.write_str("not-ready"),
            Self::Serving => f.write_str("serving"),
            Self::Probe => f.write_str("probe"),
            Self::Zone => f.write_str("zone"),
        }
    }
}

impl Serialize for Why {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A tier as it is used now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TierUse {
    /// Backends of its clusters, without those that terminate.
    pub known: u32,
    /// Those that may take new flows.
    pub usable: u32,
    /// Its part of the traffic, in ten-thousandths.
    pub load: u16,
}

impl fmt::Display for TierUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = f64::from(self.load) / 100.0;
        write!(f, "{}/{}:{percent}%", self.usable, self.known)
    }
}

/// A chosen backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Address, port, protocol.
    pub key: BackendKey,
    /// Its share beside the others'.
    pub weight: u32,
}

/// What was chosen for a frontend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Backends that take new flows, in the order of their keys.
    pub members: Vec<Member>,
    /// The others, in that order.
    pub spare: Vec<(BackendKey, Why)>,
    /// The tiers.
    pub tiers: Vec<TierUse>,
}

/// A cluster's place in the rules.
#[derive(Clone, Copy)]
struct Standing {
    tier: Option<usize>,
    /// 0 too where weights do not name it; 1 where there are none.
    weight: u16,
}

/// Chooses among candidates ordered by key, no key twice.
#[must_use]
pub fn choose(candidates: &[Candidate], rules: &Rules<'_>, site: &Site) -> Choice {
    let mut known: BTreeMap<Option<&Arc<str>>, Standing> = BTreeMap::new();
    let standings: Vec<Standing> = candidates
        .iter()
        .map(|c| *known.entry(c.cluster.as_ref()).or_insert_with(|| standing(c, rules, site)))
        .collect();
    let mut verdicts: Vec<Result<u32, Why>> =
        candidates.iter().zip(&standings).map(|(c, standing)| verdict(c, *standing)).collect();
    // Where nobody is as good as wanted, the next best are: first those that only serve what they have, then those that
    // are ready and do not answer this node, which may be this node's fault.
    let wanted = [None, Some(Why::Serving), Some(Why::Probe)];
    let found = wanted
        .into_iter()
        .position(|why| verdicts.iter().any(|found| why.map_or(found.is_ok(), |why| *found == Err(why))));
    let second_best = wanted.get(found.unwrap_or(0)).copied().flatten();
    if let Some(why) = second_best {
        verdicts.iter_mut().filter(|found| **found == Err(why)).for_each(|found| *found = Ok(0));
    }
    let overflow = if second_best.is_some() { None } else { rules.overflow };
    let tiers = tiers(candidates, &standings, &verdicts, rules.tiers.len(), overflow);
    for (number, tier) in tiers.iter().enumerate() {
        let of_tier: Vec<usize> = (0..candidates.len())
            .filter(|at| {
                standings.get(*at).is_some_and(|s| s.tier == Some(number))
                    && verdicts.get(*at).is_some_and(Result::is_ok)
            })
            .collect();
        share(candidates, &standings, &of_tier, (number, *tier), rules, site, &mut verdicts);
    }
    let mut choice = Choice { tiers, ..Choice::default() };
    for (candidate, verdict) in candidates.iter().zip(verdicts) {
        match verdict {
            Ok(weight) => choice.members.push(Member { key: candidate.key, weight }),
            Err(why) => choice.spare.push((candidate.key, why)),
        }
    }
    choice
}

/// The part of a list of rules that a cluster meets.
fn standing(candidate: &Candidate, rules: &Rules<'_>, site: &Site) -> Standing {
    let name = candidate.cluster.as_ref().unwrap_or(&site.cluster);
    let means = |place: &Place| match place {
        Place::Local => candidate.cluster.is_none(),
        Place::Cluster(cluster) => cluster.as_str() == &**name,
        Place::Rest => false,
    };
    let named = rules.tiers.iter().position(|tier| tier.iter().any(means));
    let tier = named.or_else(|| rules.tiers.iter().position(|tier| tier.contains(&Place::Rest)));
    let written = rules.weights.iter().find(|(place, _)| means(place)).map(|(_, weight)| *weight);
    let weight = match written.or_else(|| rules.weights.get(&Place::Rest).copied()) {
        Some(weight) => weight,
        None => u16::from(rules.weights.is_empty()),
    };
    Standing { tier, weight }
}

/// Whether a backend may take new flows at all.
fn verdict(candidate: &Candidate, standing: Standing) -> Result<u32, Why> {
    if standing.tier.is_none() {
        return Err(Why::NoTier);
    }
    if standing.weight == 0 {
        return Err(Why::Weight);
    }
    match candidate.state {
        BackendState::NotReady => Err(Why::NotReady),
        _ if candidate.failing => Err(Why::Probe),
        BackendState::Serving => Err(Why::Serving),
        BackendState::Ready => Ok(0),
    }
}

/// What each tier has, and what it takes: all it is asked for while enough of it is usable, else in proportion.
fn tiers(
    candidates: &[Candidate],
    standings: &[Standing],
    verdicts: &[Result<u32, Why>],
    count: usize,
    overflow: Option<u8>,
) -> Vec<TierUse> {
    let mut tiers = vec![TierUse::default(); count];
    for ((candidate, standing), verdict) in candidates.iter().zip(standings).zip(verdicts) {
        let Some(tier) = standing.tier.and_then(|tier| tiers.get_mut(tier)) else { continue };
        let usable = verdict.is_ok();
        tier.usable += u32::from(usable);
        // One that terminates was replaced, or is meant to go: it is not missing.
        let counts = candidate.state != BackendState::Serving && standing.weight > 0;
        tier.known += u32::from(usable || counts);
    }
    let mut left = WHOLE;
    let mut loads = Vec::with_capacity(count);
    for tier in &tiers {
        let able = match overflow {
            _ if tier.usable == 0 => 0,
            None => WHOLE,
            Some(percent) => {
                let enough = u64::from(tier.known) * u64::from(percent.max(1));
                (u64::from(tier.usable) * 100 * WHOLE / enough.max(1)).clamp(1, WHOLE)
            }
        };
        let load = (left * able / WHOLE).max(u64::from(able > 0 && left > 0));
        left -= load;
        loads.push(load);
    }
    // All tiers together are short of what is asked: what there is takes it all, in the same proportion.
    let taken = WHOLE - left;
    for (tier, load) in tiers.iter_mut().zip(loads) {
        let load = (load * WHOLE).checked_div(taken).unwrap_or(0);
        tier.load = u16::try_from(load).unwrap_or(u16::MAX);
    }
    tiers
}

/// Divides a tier's load between its usable backends.
fn share(
    candidates: &[Candidate],
    standings: &[Standing],
    usable: &[usize],
    (number, tier): (usize, TierUse),
    rules: &Rules<'_>,
    site: &Site,
    verdicts: &mut [Result<u32, Why>],
) {
    let mut set = |at: usize, verdict| {
        if let Some(slot) = verdicts.get_mut(at) {
            *slot = verdict;
        }
    };
    if tier.load == 0 {
        let number = u8::try_from(number + 1).unwrap_or(u8::MAX);
        usable.iter().for_each(|at| set(*at, Err(Why::Tier(number))));
        return;
    }
    // With weights each cluster has its part whatever zone it is in, so hints narrow each by itself.
    let mut groups: BTreeMap<Option<&Arc<str>>, (u64, Vec<usize>)> = BTreeMap::new();
    for at in usable {
        let (Some(candidate), Some(standing)) = (candidates.get(*at), standings.get(*at)) else { continue };
        let group = if rules.weights.is_empty() { None } else { candidate.cluster.as_ref() };
        let entry = groups.entry(group).or_insert_with(|| (u64::from(standing.weight), Vec::new()));
        entry.1.push(*at);
    }
    let all: u64 = groups.values().map(|(weight, _)| *weight).sum();
    for (weight, group) in groups.into_values() {
        let of = |at: &usize| candidates.get(*at);
        let near = narrow(&group.iter().filter_map(of).collect::<Vec<_>>(), rules.distribution, site);
        let count = near.iter().filter(|near| **near).count();
        let count = u64::try_from(count).unwrap_or(u64::MAX).max(1);
        let each = u64::from(tier.load) * FINE * weight / all.max(1).saturating_mul(count);
        let each = u32::try_from(each.max(1)).unwrap_or(u32::MAX);
        for (at, near) in group.into_iter().zip(near) {
            set(at, if near { Ok(each) } else { Err(Why::Zone) });
        }
    }
}

/// Which of the backends are for this node or zone. As Kubernetes does: hints count only if every backend has some and
/// one is for here; then what the service prefers, by where the backends run.
fn narrow(usable: &[&Candidate], distribution: Option<Distribution>, site: &Site) -> Vec<bool> {
    let Some(distribution) = distribution else { return vec![true; usable.len()] };
    let pick = |known: &dyn Fn(&Candidate) -> bool, here: &dyn Fn(&Candidate) -> bool| {
        let good = usable.iter().all(|c| known(c)) && usable.iter().any(|c| here(c));
        good.then(|| usable.iter().map(|c| here(c)).collect::<Vec<bool>>())
    };
    let zone = site.zone.as_ref();
    let node =
        pick(&|c| !c.for_nodes.is_empty(), &|c| c.cluster.is_none() && c.for_nodes.contains(&site.node));
    node.or_else(|| {
        pick(&|c| !c.for_zones.is_empty(), &|c| zone.is_some_and(|zone| c.for_zones.contains(zone)))
    })
    .or_else(|| pick(&|_| distribution == Distribution::SameNode, &|c| c.local_node))
    .or_else(|| {
        pick(&|c| distribution != Distribution::Any && c.zone.is_some(), &|c| {
            zone.is_some() && c.zone.as_ref() == zone
        })
    })
    .unwrap_or_else(|| vec![true; usable.len()])
}

#[cfg(test)]
#[path = "choice_tests.rs"]
mod tests;
