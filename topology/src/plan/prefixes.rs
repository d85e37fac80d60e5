//! Prefixes: who is behind an address and on which node, decided among all sources.

use super::claims::{OWN, Party};
use super::{Known, NodeIndexes, NodeView, PlanConfig};
use crate::conflict::{Claimant, Claimed};
use crate::rows::{NodeIndex, PrefixEntry, PrefixRow};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_base::ids::{ClusterName, IdentityId};
use tombolo_base::prefix::Prefix;
use tombolo_base::source::Source;
use tombolo_base::table::Snapshot;

/// Precedence among sources, lowest first: this node, manifests, this cluster's etcd, other clusters.
fn rank(source: &Source, config: &PlanConfig) -> u8 {
    match source {
        Source::Local => 0,
        Source::Manifests => 1,
        Source::Cluster(name) if *name == config.cluster => 2,
        Source::Cluster(_) => 3,
        _ => 4,
    }
}

/// Who had a prefix before, and whether that counts.
#[derive(Clone, Copy)]
pub struct Holder<'a> {
    /// The source of the present entry.
    pub(super) source: Option<&'a Source>,
    /// At which node (its tunnel endpoint) the earlier life had it, until all founders have spoken.
    pub(super) restored: Option<IpAddr>,
    /// Sources in their first list: among those the cluster id decides, so that every node decides alike.
    pub(super) founding: &'a BTreeSet<Source>,
}

/// What was decided of a prefix.
#[derive(Clone, Debug, PartialEq)]
pub struct Decided {
    /// The desired entry; `None` if nobody (reachable) claims it.
    pub entry: Option<PrefixEntry>,
    /// Everybody who claims it, if those are several clusters, or one of them must not.
    pub contest: Vec<Claimant>,
}

/// The nodes that addresses live on, as far as they are known. Addresses are planned in their order, and those of a node lie
/// together: the last one is remembered.
pub struct Views<'a> {
    known: Known<'a>,
    last: Option<(IpAddr, ClusterName, Option<NodeView>)>,
}

impl<'a> Views<'a> {
    pub(super) const fn new(known: Known<'a>) -> Self {
        Self { known, last: None }
    }

    fn at(&mut self, address: IpAddr, cluster: &ClusterName) -> Option<&NodeView> {
        if !self.last.as_ref().is_some_and(|(ip, of, _)| *ip == address && of == cluster) {
            self.last = Some((address, *cluster, self.known.at(address, Some(cluster))));
        }
        self.last.as_ref().and_then(|(_, _, view)| view.as_ref())
    }
}

/// A claim whose node is known.
struct Claim<'a> {
    row: &'a PrefixRow,
    party: Party,
    node: Arc<str>,
    entry: PrefixEntry,
    refused: bool,
    /// The earlier life had it there.
    restored: bool,
}

/// The desired entry of one prefix. The own cluster comes first; of the others who has the pod prefix around the address, then
/// who had the address in the earlier life, then who had it before, then the lower cluster id.
#[must_use]
pub fn prefix_entry(
    prefix: Prefix,
    prefixes: &Snapshot<PrefixRow>,
    views: &mut Views<'_>,
    indexes: &NodeIndexes,
    holder: Holder<'_>,
) -> Decided {
    let known = views.known;
    let rows = prefixes.from_key(&(prefix, Source::Manifests)).take_while(|row| row.prefix == prefix);
    let mut claims: Vec<Claim<'_>> =
        rows.filter_map(|row| claimed(row, views, indexes, holder.restored)).collect();
    let by_id = claims.iter().any(|claim| holder.founding.contains(&claim.row.source));
    claims.sort_by_key(|claim| {
        let had = by_id || holder.source != Some(&claim.row.source);
        (claim.refused, rank(&claim.row.source, known.config), !claim.restored, had, claim.party)
    });
    let chosen = claims.first().filter(|claim| !claim.refused);
    let party = chosen.map(|claim| claim.party);
    let contested = claims.iter().any(|claim| claim.refused || Some(claim.party) != party);
    let contest = if contested { contest(&claims, party, known) } else { Vec::new() };
    let entry = chosen.map(|claim| claim.entry.clone()).or_else(|| node_owned(prefix, known, indexes));
    Decided { entry, contest }
}

fn cluster<'a>(source: &'a Source, config: &'a PlanConfig) -> &'a ClusterName {
    match source {
        Source::Cluster(name) => name,
        _ => &config.cluster,
    }
}

fn contest(claims: &[Claim<'_>], chosen: Option<Party>, known: Known<'_>) -> Vec<Claimant> {
    let mut all: Vec<Claimant> = Vec::new();
    for claim in claims {
        let used = Some(claim.party) == chosen && !claim.refused;
        let cluster = *cluster(&claim.row.source, known.config);
        // This cluster may say an address in several places.
        if !all.iter().any(|other| other.cluster == cluster) {
            let claimed = Claimed::Prefix(claim.row.prefix);
            all.push(Claimant { cluster, node: Some(claim.node.clone()), claimed, used });
        }
    }
    // Refused because it lies in what another cluster has: that one is a side, too.
    for claim in claims.iter().filter(|claim| claim.refused) {
        if let Some((around, owner)) = known.claims.rival(claim.row.prefix, claim.party)
            && let Some(node) = known.holder(around, owner)
            && !all.iter().any(|other| other.cluster == node.cluster)
        {
            let claimed = Claimed::Prefix(around);
            all.push(Claimant { cluster: node.cluster, node: Some(node.name), claimed, used: true });
        }
    }
    let refused = claims.iter().filter(|claim| claim.refused);
    if let Some(reserved) = refused.filter_map(|claim| known.reserved(claim.row.prefix)).next()
        && !all.iter().any(|other| other.cluster == reserved.cluster)
    {
        all.push(reserved);
    }
    all.sort_by(|left, right| right.used.cmp(&left.used).then_with(|| left.cmp(right)));
    all
}

fn index_of(view: &NodeView, indexes: &NodeIndexes, config: &PlanConfig) -> Option<NodeIndex> {
    if view.is_local(config) { Some(NodeIndex::LOCAL) } else { indexes.get(&view.cluster, &view.name) }
}

/// A source's own claim. A row whose node is unknown yet waits: the node's pod prefix serves it meanwhile. A cluster can speak of its own
/// nodes only.
fn claimed<'a>(
    row: &'a PrefixRow,
    views: &mut Views<'_>,
    indexes: &NodeIndexes,
    restored: Option<IpAddr>,
) -> Option<Claim<'a>> {
    let known = views.known;
    let config = known.config;
    let entry = |identity, node, remote_cluster| PrefixEntry {
        source: row.source,
        prefix: row.prefix,
        identity,
        node,
        node_address: false,
        remote_cluster,
    };
    if row.source == Source::Local {
        let entry = entry(row.identity, NodeIndex::LOCAL, false);
        let node = config.node.clone();
        return Some(Claim { row, party: OWN, node, entry, refused: false, restored: false });
    }
    let view = views.at(row.residence.host_ip?, cluster(&row.source, config))?;
    // What another source says of this node's own pods is an echo, or a mistake.
    let node = index_of(view, indexes, config).filter(|index| *index != NodeIndex::LOCAL)?;
    let within = |cidrs: &[Prefix]| cidrs.iter().any(|cidr| cidr.covers(&row.prefix));
    let lost = within(&view.refused) && !within(&view.pod_cidrs);
    let reserved = || known.claims.reserved.at(row.prefix).is_some() && !view.holds(row.prefix);
    let rival = || known.claims.rival(row.prefix, view.party).is_some();
    let refused = view.party != OWN && (lost || reserved() || rival());
    let identity = if row.identity == IdentityId::HOST { IdentityId::REMOTE_NODE } else { row.identity };
    let entry = entry(identity, node, view.party != OWN);
    let restored = restored.is_some_and(|ip| view.underlay.contains(&ip));
    Some(Claim { row, party: view.party, node: view.name.clone(), entry, refused, restored })
}

/// A node's own address, or its pod prefix for pods that nobody has named yet.
fn node_owned(prefix: Prefix, known: Known<'_>, indexes: &NodeIndexes) -> Option<PrefixEntry> {
    let of_cidr = known.of_cidr(prefix);
    let by_cidr = of_cidr.is_some();
    let view = match of_cidr {
        Some(view) => view,
        None if prefix.is_host() => known.at(prefix.address(), None)?,
        None => return None,
    };
    let local = view.is_local(known.config);
    if by_cidr && local {
        return None;
    }
    let identity = match (by_cidr, local) {
        // Not the world: a rule that allows the world must not open pods whose identity is late.
        (true, _) => IdentityId::UNMANAGED,
        (false, true) => IdentityId::HOST,
        (false, false) => IdentityId::REMOTE_NODE,
    };
    Some(PrefixEntry {
        source: view.source,
        prefix,
        identity,
        node: index_of(&view, indexes, known.config)?,
        node_address: view.underlay.iter().any(|ip| Prefix::host(*ip) == prefix),
        remote_cluster: view.party != OWN,
    })
}
