use super::tests::*;
use super::*;
use crate::cidrs::FIRST;
use crate::rows::{
    Action, CidrGroupRef, CidrGroupRow, Entity, LabelSelector, NamedPort, PeerSelector, Requirement,
};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Rule(u8, u8, u8, u8),
    DropRule(u8),
    Group(u8, u8),
    DropGroup(u8),
    Identity(u8, u8),
    DropIdentity(u8),
    Endpoint(u8, u8),
    DropEndpoint(u8),
    Named(u8, u16),
    Release,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..5, 0u8..4, 0u8..11, 0u8..8).prop_map(|(a, b, c, d)| Step::Rule(a, b, c, d)),
        2 => (0u8..5).prop_map(Step::DropRule),
        1 => (0u8..2, 0u8..6).prop_map(|(a, b)| Step::Group(a, b)),
        1 => (0u8..2).prop_map(Step::DropGroup),
        2 => (0u8..6, 0u8..3).prop_map(|(a, b)| Step::Identity(a, b)),
        2 => (0u8..6).prop_map(Step::DropIdentity),
        1 => (0u8..4, 0u8..4).prop_map(|(a, b)| Step::Endpoint(a, b)),
        1 => (0u8..4).prop_map(Step::DropEndpoint),
        1 => (0u8..4, 1u16..4).prop_map(|(a, b)| Step::Named(a, b)),
        1 => Just(Step::Release),
    ]
}

const NETS: [&str; 6] = ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "fd00::/48", "fd00::/64", "192.0.2.7"];

fn some_peer(form: u8) -> PeerSelector {
    let nth = |n: u8| NETS[usize::from(n) % NETS.len()];
    match form {
        0..3 => pods(app(&format!("a{form}"))),
        3 => pods(with(anywhere(), Requirement::NotIn("any:app".into(), ["a1".into()].into()))),
        4 => PeerSelector::Entity(Entity::Cluster),
        5 => PeerSelector::Entity(Entity::World),
        6 => cidr("0.0.0.0/0", &[nth(1)]),
        7 => cidr(nth(0), &[nth(2)]),
        8 => cidr(nth(3), &[]),
        9 => PeerSelector::CidrGroup { group: CidrGroupRef::Name("g0".into()), except: BTreeSet::new() },
        _ => PeerSelector::CidrGroup {
            group: CidrGroupRef::Labels(LabelSelector::default()),
            except: [nth(2).parse().unwrap()].into(),
        },
    }
}

fn some_rule(number: u8, subject: u8, form: u8, kind: u8) -> RuleRow {
    let subject = if subject == 3 { shop() } else { app(&format!("a{subject}")) };
    let ports = if kind % 3 == 2 { vec![named(6, "http")] } else { vec![] };
    let mut block = block(vec![some_peer(form), some_peer((form + 3) % 11)], ports);
    block.action = [Action::Allow, Action::Deny, Action::Pass][usize::from(kind % 3)];
    block.priority = u32::from(kind);
    let (name, blocks) = (format!("r{number}"), Some(vec![block]));
    let mut row = if kind.is_multiple_of(2) {
        rule(&name, subject, blocks, None)
    } else {
        rule(&name, subject, None, blocks)
    };
    row.tier = Tier::ALL[usize::from(number) % 3];
    row
}

impl World {
    /// Does a step and says what changed.
    fn step(&mut self, step: &Step) -> Keys {
        let mut keys = Keys::default();
        let id = |number: &u8| IdentityId(70_000 + u32::from(*number));
        let own = |number: &u8| labels("east", "shop", &format!("a{}", number % 3));
        match step {
            Step::Rule(number, subject, form, kind) => {
                let row = some_rule(*number, *subject, *form, *kind);
                keys.rules.insert(row.key());
                self.rules.1.upsert(row);
            }
            Step::DropRule(number) => {
                let key = key(&format!("r{number}"));
                self.rules.1.remove(&key);
                keys.rules.insert(key);
            }
            Step::Group(number, first) => {
                let name: Arc<str> = format!("g{number}").into();
                let prefixes =
                    NETS.iter().skip(usize::from(*first)).take(2).map(|text| text.parse().unwrap());
                let (labels, prefixes) = (BTreeMap::new(), prefixes.collect());
                self.groups.1.upsert(CidrGroupRow {
                    source: Source::Manifests,
                    name: name.clone(),
                    labels,
                    prefixes,
                });
                keys.groups.insert(name);
            }
            Step::DropGroup(number) => {
                let name: Arc<str> = format!("g{number}").into();
                self.groups.1.remove(&name);
                keys.groups.insert(name);
            }
            Step::Identity(number, cluster) => {
                let name = match cluster {
                    0 => own(number),
                    1 => labels("east", "other", "a1"),
                    _ => labels("west", "shop", "a1"),
                };
                self.identities.1.upsert(identity(id(number), name));
                keys.identities.insert(id(number));
            }
            Step::DropIdentity(number) => {
                self.identities.1.remove(&(id(number), Source::Manifests));
                keys.identities.insert(id(number));
            }
            Step::Endpoint(number, of) => {
                self.endpoints.1.upsert(endpoint((*number).into(), Some(id(of)), own(of)));
                keys.endpoints.insert((*number).into());
            }
            Step::DropEndpoint(number) => {
                self.endpoints.1.remove(&(*number).into());
                keys.endpoints.insert((*number).into());
            }
            Step::Named(number, port) => {
                let port = NamedPort { name: "http".into(), protocol: 6, port: *port };
                self.named.insert(id(number), [port].into());
                keys.named_ports.insert(id(number));
            }
            // Of those that are waiting: the test fills them in.
            Step::Release => {}
        }
        keys
    }
}

/// All prefixes that have a number.
fn numbers(compiler: &Compiler) -> Vec<(Prefix, IdentityId)> {
    compiler.prefixes().chain(compiler.leaving()).collect()
}

proptest! {
    /// Whichever identities are still to come after a restart, no policy loses what the datapath holds for them before
    /// all sources have spoken; then it is what a compiler without a past makes of it.
    #[test]
    fn no_policy_shrinks_early(steps in prop::collection::vec(step(), 1..40), silent in prop::collection::btree_set(0u32..6, 0..6)) {
        let mut world = world();
        let mut first = compiler();
        for step in &steps {
            world.step(step);
        }
        world.update(&mut first, &Change::Everything, true);
        let left: BTreeMap<u32, PolicyRow> = first.policies().map(|row| (row.id, row.clone())).collect();
        for number in silent {
            world.identities.1.remove(&(IdentityId(70_000 + number), Source::Manifests));
        }
        let entries = left.values().map(|row| (row.id, row.entries.clone()));
        let mut second =
            compiler().with_ids(first.ids().clone()).with_entries(entries).with_prefixes(numbers(&first));
        world.update(&mut second, &Change::Everything, false);
        let known: BTreeSet<IdentityId> = world.identities.0.snapshot().iter().map(|row| row.id).collect();
        for row in second.policies() {
            let waiting = left[&row.id].entries.iter().filter(|(key, _)| key.identity.0 < FIRST && !key.identity.is_reserved() && !known.contains(&key.identity));
            for (key, verdict) in waiting {
                prop_assert_eq!(row.entries.get(key), Some(verdict), "policy {} lost {:?}", row.id, key);
            }
        }
        world.update(&mut second, &Change::Everything, true);
        let mut fresh = compiler().with_ids(first.ids().clone()).with_prefixes(numbers(&second));
        world.update(&mut fresh, &Change::Everything, true);
        prop_assert!(second.policies().eq(fresh.policies()));
    }

    /// Any sequence of changes, compiled one by one, ends where compiling everything does; and the deltas add up to it.
    #[test]
    fn increments_agree_with_the_full_pass(steps in prop::collection::vec(step(), 1..40)) {
        let mut world = world();
        world.endpoints.1.remove(&1);
        let mut compiler = compiler();
        world.update(&mut compiler, &Change::Everything, true);
        let (mut policies, mut endpoints) = (BTreeMap::new(), BTreeMap::new());
        let (mut prefixes, mut cookies) = (BTreeMap::new(), BTreeMap::new());
        for step in &steps {
            let mut keys = world.step(step);
            if matches!(step, Step::Release) {
                keys.released = compiler.leaving().map(|(prefix, _)| prefix).collect();
            }
            let delta = world.update(&mut compiler, &changed(keys), true);
            policies.extend(delta.policies.into_iter().map(|row| (row.id, row)));
            endpoints.extend(delta.endpoints.into_iter().map(|row| (row.endpoint, row.policy)));
            prefixes.extend(delta.prefixes);
            cookies.extend(delta.cookies.into_iter().map(|row| (row.cookie, row.rules)));
            delta.removed_endpoints.iter().for_each(|id| { endpoints.remove(id); });
            delta.removed_policies.iter().for_each(|id| { policies.remove(id); });
            delta.removed_prefixes.iter().for_each(|prefix| { prefixes.remove(prefix); });
            delta.removed_cookies.iter().for_each(|cookie| { cookies.remove(cookie); });
            prop_assert!(endpoints.values().all(|id| *id == 0 || policies.contains_key(id)));
            for (key, verdict) in policies.values().flat_map(|row| &row.entries) {
                prop_assert!(cookies.contains_key(&verdict.cookie), "{:?} is of no rule", key);
            }
        }
        let mut fresh = super::tests::compiler().with_ids(compiler.ids().clone()).with_prefixes(numbers(&compiler));
        let full = world.update(&mut fresh, &Change::Everything, true);
        let full_policies: BTreeMap<_, _> = full.policies.into_iter().map(|row| (row.id, row)).collect();
        let full_endpoints: BTreeMap<_, _> = full.endpoints.iter().map(|row| (row.endpoint, row.policy)).collect();
        let full_cookies: BTreeMap<_, _> = full.cookies.into_iter().map(|row| (row.cookie, row.rules)).collect();
        prop_assert_eq!(policies, full_policies);
        prop_assert_eq!(endpoints, full_endpoints);
        prop_assert_eq!(prefixes, full.prefixes.into_iter().collect::<BTreeMap<_, _>>());
        prop_assert_eq!(cookies, full_cookies);
        prop_assert_eq!(compiler.problems(), fresh.problems());
        // What the selectors hold is what looking anew finds, and nothing is left of rules that went.
        prop_assert_eq!(compiler.universe.selectors_held(), fresh.universe.selectors_held());
    }
}
