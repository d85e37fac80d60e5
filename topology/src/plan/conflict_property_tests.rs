//! With conflicts too the incremental pass equals the full one, and nothing of one cluster lies in what another one has.

use super::conflict_tests::{Rig, reserved, source, with};
use super::tests::pod;
use super::*;
use crate::rows::{AddressKind, NodeAddress};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Node(u8, u8, u8, u8, Inside, u8),
    DropNode(u8, u8),
    Pod(u8, u8, u8, u8),
    DropPod(u8, u8, u8),
    Reserve(u8, u8),
    Look,
}

/// What a node says of itself inside its pod CIDR.
#[derive(Debug, Clone, Copy)]
enum Inside {
    Nothing,
    Internal,
    Underlay,
}

fn some_cidr(a: u8, len: u8) -> Prefix {
    Prefix::new([10, 0, a, a * 64].into(), len).unwrap()
}

proptest! {
    #[test]
    fn with_conflicts_too_the_incremental_pass_equals_the_full_one(
        steps in prop::collection::vec(prop_oneof![
            (1u8..5, 0u8..3, 0u8..4, 22u8..27, prop_oneof![Just(Inside::Nothing), Just(Inside::Internal), Just(Inside::Underlay)], 0u8..4).prop_map(|(c, n, a, l, i, k)| Step::Node(c, n, a, l, i, k)),
            (2u8..5, 0u8..3).prop_map(|(c, n)| Step::DropNode(c, n)),
            (2u8..5, 0u8..3, 0u8..4, 24u8..33).prop_map(|(c, n, a, l)| Step::Pod(c, n, a, l)),
            (2u8..5, 0u8..4, 24u8..33).prop_map(|(c, a, l)| Step::DropPod(c, a, l)),
            (0u8..4, 24u8..33).prop_map(|(a, l)| Step::Reserve(a, l)),
            Just(Step::Look),
        ], 1..60),
    ) {
        let mut rig = Rig::new(PathKind::Overlay);
        for step in steps.into_iter().chain([Step::Look]) {
            match step {
                Step::Node(c, n, a, len, inside, key) if (c, n) != (1, 0) => {
                    let mut row = with(c, n, &[]);
                    row.pod_cidrs = vec![some_cidr(a, len)];
                    let address = |kind| NodeAddress { kind, ip: [10, 0, a, a * 64 + 1].into() };
                    row.wireguard_key = (key > 0).then_some(WireguardKey([key; 32]));
                    match inside {
                        Inside::Nothing => {}
                        Inside::Internal => row.addresses.push(address(AddressKind::CiliumInternal)),
                        Inside::Underlay => row.addresses = vec![address(AddressKind::Internal)],
                    }
                    rig.put(row);
                }
                Step::Node(..) => {}
                Step::DropNode(c, n) => rig.take(&with(c, n, &[])),
                Step::Pod(c, n, a, len) => {
                    let row = pod(source(c), "10.0.0.0", &format!("172.20.{c}.{n}"), 300);
                    rig.world.prefixes.1.upsert(PrefixRow { prefix: some_cidr(a, len), ..row });
                }
                Step::DropPod(c, a, len) => { rig.world.prefixes.1.remove(&(some_cidr(a, len), source(c))); }
                Step::Reserve(a, len) => rig.planner.reserve(&reserved(&[&some_cidr(a, len).to_string()])),
                Step::Look => rig.look(),
            }
        }
        let Rig { world, planner, .. } = &rig;
        // The claims, made anew out of the nodes; who has something is the history that the incremental pass has.
        let nodes = &planner.inputs.nodes;
        let names: BTreeSet<_> = nodes.iter().map(|row| (row.cluster, row.name.clone())).collect();
        let made: Vec<_> = names.iter().filter_map(|(cluster, name)| node_view(nodes, &planner.claims.reserved, &planner.config, cluster, name)).flat_map(|view| view.claimed().into_iter().map(move |prefix| (prefix, view.party))).collect();
        let mut claims = Claims::default();
        claims.reserved = planner.claims.reserved.clone();
        for refused in [false, true] {
            for (prefix, party) in made.iter().filter(|(prefix, party)| planner.claims.is_refused(*prefix, *party) == refused) {
                let standing = match (*party, refused) {
                    (OWN, _) => Standing::Own,
                    (_, false) => Standing::Restored,
                    (_, true) => Standing::Later,
                };
                claims.add(*prefix, *party, standing, &mut Changed::new());
            }
        }
        for (prefix, party) in &made {
            prop_assert_eq!(claims.is_refused(*prefix, *party), planner.claims.is_refused(*prefix, *party));
        }
        let keyed: Vec<_> = names.iter().filter_map(|(cluster, name)| node_view(nodes, &planner.claims.reserved, &planner.config, cluster, name)).filter_map(|view| Some((view.wireguard_key?, view.party, (view.cluster, view.name)))).collect();
        for (key, party, node) in &keyed {
            let holder = planner.claims.keys.holder(*key);
            let had = keyed.iter().any(|(other, whose, node)| (other, whose) == (key, party) && Some(node) == holder);
            claims.keys.add(*key, *party, node.clone(), if had { Standing::Restored } else { Standing::Later });
        }
        // Every key of every output, by the functions that a full pass calls.
        let known = Known { nodes, claims: &claims, config: &planner.config };
        let (entries, routes) = (world.out.entries.table().snapshot(), world.out.routes.table().snapshot());
        let rows = planner.inputs.prefixes.iter().map(|row| row.prefix);
        let addresses = nodes.iter().flat_map(|row| row.addresses.iter().map(|address| Prefix::host(address.ip)).chain(row.pod_cidrs.iter().copied()));
        let keys: BTreeSet<Prefix> = rows.chain(addresses).chain(made.iter().map(|(prefix, _)| *prefix)).chain(entries.iter().map(|entry| entry.prefix)).chain(routes.iter().map(|route| route.prefix)).collect();
        let founding = BTreeSet::new();
        let mut told = BTreeMap::new();
        for key in keys {
            let holder = Holder { source: entries.get(&key).map(|entry| &entry.source), restored: None, founding: &founding };
            let decided = prefix_entry(key, &planner.inputs.prefixes, &mut Views::new(known), &planner.indexes, holder);
            prop_assert_eq!(decided.entry.as_ref(), entries.get(&key), "{}", key);
            let route = route_entry(key, known, &planner.inputs.learned);
            prop_assert_eq!(route.as_ref(), routes.get(&key), "{}", key);
            if !decided.contest.is_empty() {
                told.insert((ConflictKind::Address, Claimed::Prefix(key)), decided.contest);
            }
            if let Some((kind, claimants)) = claim_conflict(key, known) {
                told.insert((kind, Claimed::Prefix(key)), claimants);
            }
        }
        let mut peers = Vec::new();
        let local = known.local();
        for (cluster, name) in &names {
            let view = known.node(cluster, name).unwrap();
            peers.extend(known.peer(&view, local.as_ref()));
            if let Some(key) = view.wireguard_key {
                let claimants = key_conflict(key, known);
                told.extend((!claimants.is_empty()).then_some(((ConflictKind::WireguardKey, Claimed::Key(key)), claimants)));
            }
        }
        peers.sort_by_key(|peer| peer.key);
        prop_assert!(world.out.peers.table().snapshot().iter().eq(peers.iter()));
        let rows: BTreeMap<_, _> = world.out.conflicts.table().snapshot().iter().map(|row| (row.key(), row.claimants.clone())).collect();
        prop_assert_eq!(rows, told);
        // Nothing of one cluster lies in what another one has.
        for entry in entries.iter() {
            let party = match &entry.source { Source::Cluster(name) => u16::from(name.as_str().as_bytes()[1] - b'0'), _ => OWN };
            prop_assert!(party == OWN || claims.rival(entry.prefix, party).is_none(), "{:?}", entry);
        }
        // Where a tunnel ends an entry says that it is encrypted.
        for path in world.out.paths.table().snapshot().iter() {
            let entry = path.underlay.map(|ip| entries.get(&Prefix::host(ip)));
            prop_assert!(entry.is_none_or(|entry| entry.is_some()), "{:?}", path);
        }
    }
}
