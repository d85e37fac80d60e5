//! What a statement does to a route.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::pattern::{CommunityPattern, ExtendedCommunity, ExtendedCommunityPattern, LargeCommunityPattern};
use crate::rib::DEFAULT_LOCAL_PREF;
use crate::wire::{Attributes, Community, LargeCommunity};

/// How often an AS may be prepended by one action.
const PREPEND_MAX: u8 = 32;

/// A new number, or a change of the one that is there; sums stop at 0 and 4294967295.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Number {
    /// This one.
    Set(u32),
    /// More by this.
    Add(u32),
    /// Less by this.
    Subtract(u32),
}

impl Number {
    const fn of(self, before: u32) -> u32 {
        match self {
            Self::Set(value) => value,
            Self::Add(more) => before.saturating_add(more),
            Self::Subtract(less) => before.saturating_sub(less),
        }
    }
}

/// Where packets are to go. In an import policy only an address makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NextHopAction {
    /// To this address, of the prefix's family.
    Address(IpAddr),
    /// To this speaker: the default towards external peers.
    #[serde(rename = "self")]
    Own,
    /// To where it was received from: the default towards internal peers.
    Unchanged,
}

/// One change of a route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// Adds communities.
    AddCommunities(Vec<Community>),
    /// Removes the communities that match.
    RemoveCommunities(Vec<CommunityPattern>),
    /// Replaces all communities.
    SetCommunities(Vec<Community>),
    /// Adds large communities.
    AddLargeCommunities(Vec<LargeCommunity>),
    /// Removes the large communities that match.
    RemoveLargeCommunities(Vec<LargeCommunityPattern>),
    /// Replaces all large communities.
    SetLargeCommunities(Vec<LargeCommunity>),
    /// Adds extended communities.
    AddExtendedCommunities(Vec<ExtendedCommunity>),
    /// Removes the extended communities that match.
    RemoveExtendedCommunities(Vec<ExtendedCommunityPattern>),
    /// Replaces all extended communities.
    SetExtendedCommunities(Vec<ExtendedCommunity>),
    /// LOCAL_PREF; a missing one counts as 100.
    LocalPref(Number),
    /// MULTI_EXIT_DISC; a missing one counts as 0. In an export policy it is what the peer hears, also an external one.
    Med(Number),
    /// Takes MULTI_EXIT_DISC away.
    RemoveMed,
    /// Puts an AS in front of the path, beyond what the protocol asks for.
    Prepend(Prepend),
    /// Next hop.
    NextHop(NextHopAction),
}

/// What is put in front of an AS path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Prepend {
    /// The AS; none means this speaker's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asn: Option<u32>,
    /// How often; 1 to 32.
    pub times: u8,
}

/// A route under change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Edited {
    pub(crate) attributes: Attributes,
    /// What becomes of the next hop, if a policy said so.
    pub(crate) next_hop: Option<NextHopAction>,
    /// A policy decided about MULTI_EXIT_DISC.
    pub(crate) med: bool,
}

impl Action {
    pub(super) fn apply(&self, local_asn: u32, route: &mut Edited) {
        let attributes = &mut route.attributes;
        match self {
            Self::AddCommunities(more) => add(&mut attributes.communities, more.iter().copied()),
            Self::RemoveCommunities(which) => {
                attributes.communities.retain(|had| !which.iter().any(|pattern| pattern.matches(*had)));
            }
            Self::SetCommunities(all) => set(&mut attributes.communities, all.iter().copied()),
            Self::AddLargeCommunities(more) => add(&mut attributes.large_communities, more.iter().copied()),
            Self::RemoveLargeCommunities(which) => {
                attributes.large_communities.retain(|had| !which.iter().any(|pattern| pattern.matches(had)));
            }
            Self::SetLargeCommunities(all) => set(&mut attributes.large_communities, all.iter().copied()),
            Self::AddExtendedCommunities(more) => {
                add(&mut attributes.extended_communities, more.iter().map(|community| community.0));
            }
            Self::RemoveExtendedCommunities(which) => attributes
                .extended_communities
                .retain(|had| !which.iter().any(|pattern| pattern.matches(ExtendedCommunity(*had)))),
            Self::SetExtendedCommunities(all) => {
                set(&mut attributes.extended_communities, all.iter().map(|community| community.0));
            }
            Self::LocalPref(number) => {
                let before = attributes.local_pref.unwrap_or(DEFAULT_LOCAL_PREF);
                attributes.local_pref = Some(number.of(before));
            }
            Self::Med(number) => {
                attributes.med = Some(number.of(attributes.med.unwrap_or_default()));
                route.med = true;
            }
            Self::RemoveMed => {
                attributes.med = None;
                route.med = true;
            }
            Self::Prepend(Prepend { asn, times }) => {
                let asn = asn.unwrap_or(local_asn);
                (0..*times).for_each(|_| attributes.as_path.prepend(asn));
            }
            Self::NextHop(action) => route.next_hop = Some(*action),
        }
    }

    /// What is wrong with it, if anything.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        match self {
            Self::Prepend(Prepend { times, .. }) if !(1..=PREPEND_MAX).contains(times) => {
                Err("an AS is prepended 0 or more than 32 times")
            }
            Self::Prepend(Prepend { asn: Some(0), .. }) => Err("AS 0 is prepended"),
            Self::NextHop(NextHopAction::Address(address))
                if !crate::family::NextHop::new(*address).is_usable() =>
            {
                Err("a next hop is set that is no host address")
            }
            _ => Ok(()),
        }
    }
}

/// As it is written in configuration.
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).unwrap_or_default())
    }
}

fn add<T: Ord>(list: &mut Vec<T>, more: impl Iterator<Item = T>) {
    list.extend(more);
    list.sort_unstable();
    list.dedup();
}

fn set<T: Ord>(list: &mut Vec<T>, all: impl Iterator<Item = T>) {
    list.clear();
    add(list, all);
}
