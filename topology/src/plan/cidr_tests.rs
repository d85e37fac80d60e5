use super::tests::{World, config, node, pod};
use super::*;
use crate::rows::PathKind;
use tombolo_base::ids::IdentityId;
use tombolo_base::table::{Changes, Table};

struct Step {
    world: World,
    planner: Planner,
    cidrs: (Table<CidrIdentity>, Writer<CidrIdentity>),
    changes: (Changes<NodeRow>, Changes<PrefixRow>, Changes<CidrIdentity>),
}

impl Step {
    fn new() -> Self {
        let planner = Planner::new(config(PathKind::Overlay, false), NodeIndexes::default());
        let world = World::new();
        world.nodes.1.upsert(node(1, 0, true));
        let cidrs: (Table<CidrIdentity>, _) = Table::new();
        let changes = (world.nodes.0.changes(), world.prefixes.0.changes(), cidrs.0.changes());
        Self { world, planner, cidrs, changes }
    }

    fn cidr(&self, prefix: &str, identity: u32) {
        let (prefix, identity) = (prefix.parse().unwrap(), IdentityId(identity));
        self.cidrs.1.upsert(CidrIdentity { source: Source::Planner, prefix, identity });
    }

    /// All entries of addresses outside the mesh, after all that changed: as one by one, so at once.
    fn entries(&mut self) -> Vec<(String, u32)> {
        let mut fresh = Planner::new(config(PathKind::Overlay, false), NodeIndexes::default());
        let out = World::new().out;
        fresh.know_cidrs(self.cidrs.0.changes().drain().unwrap());
        fresh.step(self.world.nodes.0.changes().drain(), self.world.prefixes.0.changes().drain(), None, &out);
        if let Some(batch) = self.changes.2.drain() {
            self.planner.know_cidrs(batch);
        }
        self.planner.step(self.changes.0.drain(), self.changes.1.drain(), None, &self.world.out);
        let of = |out: &Outputs| -> Vec<(String, u32)> {
            let outside = |entry: &&PrefixEntry| entry.source == Source::Planner;
            let snapshot = out.entries.table().snapshot();
            snapshot.iter().filter(outside).map(|e| (e.prefix.to_string(), e.identity.0)).collect()
        };
        assert_eq!(of(&self.world.out), of(&out));
        of(&out)
    }
}

fn rows(all: &[(&str, u32)]) -> Vec<(String, u32)> {
    all.iter().map(|(prefix, id)| ((*prefix).to_owned(), *id)).collect()
}

#[test]
fn prefixes_of_rules_are_told_where_nothing_of_the_mesh_is() {
    let mut step = Step::new();
    step.cidrs.1.upsert(CidrIdentity::IPV4);
    step.cidr("10.0.0.0/8", 1 << 24);
    step.cidr("10.2.1.128/25", (1 << 24) + 1);
    step.cidr("172.20.2.1", (1 << 24) + 2);
    step.cidr("::/16", (1 << 24) + 3);
    let free = [
        ("0.0.0.0/0", 2),
        ("10.0.0.0/8", 1 << 24),
        ("10.2.1.128/25", (1 << 24) + 1),
        ("172.20.2.1/32", (1 << 24) + 2),
        ("::/16", (1 << 24) + 3),
    ];
    assert_eq!(step.entries(), rows(&free));
    // A node comes, with pods in one of them and the other as its address.
    step.world.nodes.1.upsert(node(2, 1, true));
    assert_eq!(step.entries(), rows(&[free[0], free[1], free[4]]));
    let at = |step: &Step, prefix: &str| step.world.entry(&step.world.out, prefix).unwrap();
    assert_eq!(at(&step, "172.20.2.1").identity, IdentityId::REMOTE_NODE);
    assert_ne!(at(&step, "10.2.1.0/24").node, NodeIndex::LOCAL, "its pods keep their path");
    // It goes again.
    step.world.nodes.1.remove(&node(2, 1, true).key());
    assert_eq!(step.entries(), rows(&free));
}

#[test]
fn an_address_of_the_mesh_wins_and_its_prefix_is_told_again_when_it_goes() {
    let mut step = Step::new();
    step.world.nodes.1.upsert(node(2, 1, true));
    let west = Source::Cluster(ClusterName::new("c2").unwrap());
    step.cidr("192.0.2.7", 1 << 24);
    let row = pod(west, "192.0.2.7", "172.20.2.1", 131_400);
    step.world.prefixes.1.upsert(row.clone());
    assert_eq!(step.entries(), []);
    step.world.prefixes.1.remove(&row.key());
    assert_eq!(step.entries(), rows(&[("192.0.2.7/32", 1 << 24)]));
    step.cidrs.1.remove(&"192.0.2.7".parse().unwrap());
    step.cidr("192.0.2.8", 1 << 24);
    assert_eq!(step.entries(), rows(&[("192.0.2.8/32", 1 << 24)]));
}

#[test]
fn another_node_has_the_identity_of_what_is_on_it() {
    let mut step = Step::new();
    step.world.nodes.1.upsert(node(2, 0, true));
    step.planner.step(step.changes.0.drain(), None, None, &step.world.out);
    let address = step.world.out.entries.table().snapshot();
    let remote: Vec<Prefix> = address
        .iter()
        .filter(|e| e.identity == IdentityId::REMOTE_NODE && e.node_address)
        .map(|e| e.prefix)
        .collect();
    let first = *remote.first().unwrap();
    let identity = |step: &Step| step.world.out.entries.table().snapshot().get(&first).unwrap().identity;
    step.planner.know_apiservers([first.address()].into());
    step.planner.step(None, None, None, &step.world.out);
    assert_eq!(identity(&step), IdentityId::KUBE_APISERVER);
    // A number of policies' own comes before it; one of an address outside is not for nodes.
    for (number, expected) in
        [((2 << 24) + 5, IdentityId((2 << 24) + 5)), ((1 << 24) + 5, IdentityId::KUBE_APISERVER)]
    {
        step.cidr(&first.to_string(), number);
        step.planner.know_cidrs(step.changes.2.drain().unwrap());
        step.planner.step(None, None, None, &step.world.out);
        assert_eq!(identity(&step), expected);
    }
    step.planner.know_apiservers(BTreeSet::new());
    step.planner.step(None, None, None, &step.world.out);
    assert_eq!(identity(&step), IdentityId::REMOTE_NODE);
}
