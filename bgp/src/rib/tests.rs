//! Whatever came and went: ranks are those of a decision from nothing, and the changes told lead from one best path to the next.

use proptest::prelude::*;

use super::*;
use crate::family::NextHop;
use crate::wire::{AsPath, Attributes};

#[derive(Clone, Debug)]
enum Step {
    Insert {
        peer: PeerId,
        path_id: u32,
        net: u8,
        preference: u32,
        med: u32,
        neighbour: u32,
        hop: u8,
        refused: bool,
    },
    Remove {
        peer: PeerId,
        path_id: u32,
        net: u8,
    },
    Gone {
        peer: PeerId,
    },
    Judge {
        peer: PeerId,
        most: u32,
    },
    Take,
}

fn step() -> impl Strategy<Value = Step> {
    let insert = (1u32..6, 0u32..3, 0u8..3, 0u32..2, 0u32..3, 1u32..3, 1u8..5, 0u8..4).prop_map(
        |(peer, path_id, net, preference, med, neighbour, hop, refused)| Step::Insert {
            peer,
            path_id,
            net,
            preference,
            med,
            neighbour,
            hop,
            refused: refused == 0,
        },
    );
    prop_oneof![
        8 => insert,
        4 => (1u32..6, 0u32..3, 0u8..3).prop_map(|(peer, path_id, net)| Step::Remove { peer, path_id, net }),
        1 => (1u32..6).prop_map(|peer| Step::Gone { peer }),
        1 => (1u32..6, 0u32..3).prop_map(|(peer, most)| Step::Judge { peer, most }),
        1 => Just(Step::Take),
    ]
}

fn prefix(net: u8) -> IpNet {
    ["10.0.0.0/8", "10.1.0.0/16", "2001:db8::/32"][usize::from(net)].parse().unwrap()
}

/// A table, and the best paths that follow from the changes it told.
struct Bench {
    rib: Rib,
    sets: PathSets,
    told: BTreeMap<IpNet, Best>,
}

impl Bench {
    fn new(config: &SpeakerConfig) -> Self {
        let mut rib = Rib::new(config);
        for peer in 1..6u32 {
            let address = IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + peer));
            let config = PeerConfig::new("peer", address, 0).into();
            rib.set_peer(peer, PeerFacts { router_id: Ipv4Addr::from(9 - peer), address, config });
        }
        Self { rib, sets: PathSets::new(1), told: BTreeMap::new() }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Insert { peer, path_id, net, preference, med, neighbour, hop, refused } => {
                let attributes = Attributes {
                    as_path: AsPath::sequence(&[neighbour, 7]),
                    local_pref: Some(preference),
                    med: Some(med),
                    ..Attributes::default()
                };
                let plain = self.sets.intern(attributes, NextHop::new([10, 0, 0, hop].into()));
                let set = self.sets.with_path_id(&plain, path_id);
                let refused = refused.then_some(Refusal::Policy);
                assert!(self.rib.insert(prefix(net), Route::new(peer, peer < 4, set, refused)));
            }
            Step::Remove { peer, path_id, net } => self.rib.remove(prefix(net), peer, path_id),
            Step::Gone { peer } => self.rib.remove_where(peer, |_, _| true),
            Step::Judge { peer, most } => self.rib.rejudge(peer, |_, set| {
                let refused = set.attributes().med > Some(most);
                (Arc::clone(set), refused.then_some(Refusal::Policy))
            }),
            Step::Take => self.take(),
        }
    }

    /// A prefix whose ranks are not those of a decision from nothing.
    fn misranked(&self, selection: &Selection) -> Option<IpNet> {
        let ranks = |routes: &[Route]| routes.iter().map(|route| route.rank).collect::<Vec<_>>();
        let wrong = |(prefix, destination): (IpNet, &Destination)| {
            let mut afresh = destination.routes.clone();
            afresh.iter_mut().for_each(|route| route.rank = 0);
            best::rank(&mut afresh, &self.rib.peers, selection, &self.rib.next_hops);
            (ranks(&destination.routes) != ranks(&afresh)).then_some(prefix)
        };
        self.rib.destinations().find_map(wrong)
    }

    fn take(&mut self) {
        for change in self.rib.take_batches().into_iter().flatten() {
            let before = self.told.get(&change.prefix);
            let same = match (before, &change.old) {
                (Some(before), Some(old)) => before.is(old),
                (None, None) => true,
                _ => false,
            };
            assert!(same, "a change starts from what was told: {change:?} after {before:?}");
            match change.new {
                Some(new) => self.told.insert(change.prefix, new),
                None => self.told.remove(&change.prefix),
            };
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn deciding_step_by_step_is_deciding_at_once(
        steps in prop::collection::vec(step(), 1..80),
        all_paths in any::<bool>(),
        max_paths in 1usize..4,
        always_compare_med in any::<bool>(),
        relax_multipath in any::<bool>(),
    ) {
        let mut config = SpeakerConfig::new(1, [1, 1, 1, 1].into());
        config.max_paths = max_paths;
        config.decision.always_compare_med = always_compare_med;
        config.decision.relax_multipath = relax_multipath;
        let mut bench = Bench::new(&config);
        bench.rib.tell_all_paths(all_paths);
        let selection = Selection::new(&config);
        for step in &steps {
            bench.step(step);
            prop_assert_eq!(bench.misranked(&selection), None, "after {:?}", step);
        }
        bench.take();
        let mut counts: BTreeMap<(PeerId, Family), usize> = BTreeMap::new();
        for (prefix, destination) in bench.rib.destinations() {
            let told = bench.told.get(&prefix);
            let best = Best::of(destination);
            prop_assert!(told.is_some() == best.is_some() && told.zip(best.as_ref()).is_none_or(|(a, b)| a.is(b)));
            let first = bench.rib.paths(&prefix).next();
            prop_assert!(first.is_none() == best.is_none());
            for route in &destination.routes {
                *counts.entry((route.peer, Family::of(&prefix))).or_default() += 1;
            }
            let mut sent: Vec<u32> = bench.rib.paths(&prefix).map(|(id, _)| id).collect();
            let all = sent.len();
            sent.sort_unstable();
            sent.dedup();
            prop_assert!(sent.len() == all && !sent.contains(&0), "identifiers are apart: {:?}", sent);
        }
        for peer in 1..6 {
            for family in Family::ALL {
                let held = counts.get(&(peer, family)).copied().unwrap_or_default();
                prop_assert_eq!(bench.rib.count(peer, family), held);
            }
        }
    }
}

#[test]
fn a_path_that_goes_makes_room_for_one_that_waited() {
    let mut config = SpeakerConfig::new(1, [1, 1, 1, 1].into());
    config.max_paths = 2;
    let mut bench = Bench::new(&config);
    let insert = |peer, med, neighbour| Step::Insert {
        peer,
        path_id: 0,
        net: 0,
        preference: 1,
        med,
        neighbour,
        hop: u8::try_from(peer).unwrap(),
        refused: false,
    };
    // The peer of the highest number has the lowest router identifier. The second waits for a place, the first loses to the third by its MED.
    for (peer, med, neighbour) in [(1, 5, 9), (2, 0, 7), (3, 0, 9), (5, 0, 8)] {
        bench.step(&insert(peer, med, neighbour));
    }
    let used = |bench: &Bench| -> Vec<PeerId> {
        bench.rib.destination(&prefix(0)).unwrap().used().map(|route| route.peer).collect()
    };
    let remove = |peer| Step::Remove { peer, path_id: 0, net: 0 };
    assert_eq!(used(&bench), [3, 2], "internal ones come after");
    bench.step(&remove(3));
    assert_eq!(used(&bench), [2, 1], "its MED counts again");
    bench.step(&remove(2));
    assert_eq!(used(&bench), [1]);
    bench.step(&remove(1));
    assert_eq!(used(&bench), [5]);
}
