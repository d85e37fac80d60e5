use super::*;
use crate::rows::{LabelSelector, NamedPort, PeerSelector, PortRule, Requirement, RuleBlock};
use proptest::prelude::*;
use tombolo_base::labels::{CLUSTER_KEY, NAMESPACE_KEY};
use tombolo_base::table::{Table, Writer};
use tombolo_topology::EndpointState;

fn labels(cluster: &str, namespace: &str, app: &str) -> Labels {
    Labels::k8s([
        ("app", app),
        (CLUSTER_KEY, cluster),
        (NAMESPACE_KEY, namespace),
        ("io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name", namespace),
    ])
}

fn app(name: &str) -> LabelSelector {
    LabelSelector { labels: [("app".into(), name.into())].into(), ..LabelSelector::default() }
}

fn namespace(name: &str) -> LabelSelector {
    let key: Arc<str> = "kubernetes.io/metadata.name".into();
    LabelSelector { labels: [(key, name.into())].into(), ..LabelSelector::default() }
}

fn pods(pods: LabelSelector, namespaces: Option<LabelSelector>) -> PeerSelector {
    PeerSelector::Pods { pods, namespaces }
}

fn port(protocol: u8, first: Option<u16>, last: Option<u16>, named: Option<&str>) -> PortRule {
    PortRule { protocol, port: first, end_port: last, named: named.map(Into::into) }
}

fn block(peers: Vec<PeerSelector>, ports: Vec<PortRule>) -> RuleBlock {
    RuleBlock { peers: peers.into_iter().collect(), ports: ports.into_iter().collect() }
}

fn rule(
    name: &str,
    subject: LabelSelector,
    ingress: Option<Vec<RuleBlock>>,
    egress: Option<Vec<RuleBlock>>,
) -> RuleRow {
    RuleRow {
        source: Source::Manifests,
        namespace: "shop".into(),
        name: name.into(),
        subject,
        ingress,
        egress,
    }
}

/// Tables with `web` (300), `client` (301), `other/client` (302), `west web` (600), and a pod of `web` here.
struct World {
    rules: (Table<RuleRow>, Writer<RuleRow>),
    identities: (Table<IdentityRow>, Writer<IdentityRow>),
    endpoints: (Table<EndpointRow>, Writer<EndpointRow>),
    named: NamedPorts,
}

const WEB: IdentityId = IdentityId(65_836);
const CLIENT: IdentityId = IdentityId(65_837);
const STRANGER: IdentityId = IdentityId(65_838);
const WEST: IdentityId = IdentityId(131_372);
const ANY: IdentityId = IdentityId::UNKNOWN;

fn identity(id: IdentityId, labels: Labels) -> IdentityRow {
    let source =
        if id == WEST { Source::Cluster(ClusterName::new("west").unwrap()) } else { Source::Manifests };
    IdentityRow { source, id, labels }
}

fn endpoint(id: u16, identity: Option<IdentityId>, labels: Labels) -> EndpointRow {
    EndpointRow {
        id,
        namespace: "shop".into(),
        pod: format!("p{id}").into(),
        container_id: "c".into(),
        addresses: vec![],
        host_interface: "lxc".into(),
        ifindex: 1,
        mac: [0; 6],
        host_mac: [0; 6],
        identity,
        labels,
        state: EndpointState::Ready,
    }
}

fn world() -> World {
    let world = World {
        rules: Table::new(),
        identities: Table::new(),
        endpoints: Table::new(),
        named: NamedPorts::new(),
    };
    world.identities.1.upsert(identity(WEB, labels("east", "shop", "web")));
    world.identities.1.upsert(identity(CLIENT, labels("east", "shop", "client")));
    world.identities.1.upsert(identity(STRANGER, labels("east", "other", "client")));
    world.identities.1.upsert(identity(WEST, labels("west", "shop", "client")));
    world.identities.1.upsert(identity(IdentityId::HOST, Labels::reserved("host")));
    world.endpoints.1.upsert(endpoint(1, Some(WEB), labels("east", "shop", "web")));
    world
}

fn compiler() -> Compiler {
    Compiler::new(ClusterName::new("east").unwrap())
}

impl World {
    fn update(&self, compiler: &mut Compiler, change: &Change, may_shrink: bool) -> Delta {
        let (rules, identities, endpoints) =
            (self.rules.0.snapshot(), self.identities.0.snapshot(), self.endpoints.0.snapshot());
        let inputs = Inputs {
            rules: &rules,
            identities: &identities,
            endpoints: &endpoints,
            named_ports: &self.named,
            may_shrink,
        };
        compiler.update(&inputs, change)
    }

    /// The policy of `web` under one rule, and what is complained about.
    fn under(&self, rule: RuleRow) -> (Option<PolicyRow>, Vec<String>) {
        let mut compiler = compiler();
        self.rules.1.commit(|txn| txn.drain_source(&Source::Manifests));
        self.rules.1.upsert(rule);
        self.update(&mut compiler, &Change::Everything, true);
        let row = compiler.policies().find(|row| row.subject == WEB).cloned();
        (row, compiler.problems().into_iter().collect())
    }

    /// Entries as (identity, protocol, port).
    fn allowed(&self, ingress: Vec<RuleBlock>) -> Vec<(IdentityId, u8, u16)> {
        let (row, problems) = self.under(rule("r", app("web"), Some(ingress), None));
        assert!(problems.is_empty(), "{problems:?}");
        let row = row.unwrap();
        assert!(row.ingress_enforced && !row.egress_enforced);
        row.entries.iter().map(|entry| (entry.identity, entry.protocol, entry.port)).collect()
    }
}

/// Which of the known identities a peer takes.
#[test]
fn peers_take_whom_kubernetes_says() {
    let everywhere = LabelSelector::default;
    let cluster =
        |name: &str| LabelSelector { labels: [(CLUSTER_KEY.into(), name.into())].into(), ..app("client") };
    let not_web = LabelSelector {
        expressions: [Requirement::NotIn("app".into(), ["web".into()].into())].into(),
        ..LabelSelector::default()
    };
    let any_cluster =
        LabelSelector { expressions: [Requirement::Exists(CLUSTER_KEY.into())].into(), ..app("client") };
    let cases: Vec<(&str, Vec<PeerSelector>, Vec<IdentityId>)> = vec![
        ("no peer is everybody", vec![], vec![ANY]),
        ("pods of the own namespace", vec![pods(app("client"), None)], vec![CLIENT]),
        ("all pods of the own namespace", vec![pods(everywhere(), None)], vec![WEB, CLIENT]),
        (
            "all pods of all namespaces",
            vec![pods(everywhere(), Some(everywhere()))],
            vec![WEB, CLIENT, STRANGER],
        ),
        ("clients anywhere", vec![pods(app("client"), Some(everywhere()))], vec![CLIENT, STRANGER]),
        ("a namespace by label", vec![pods(everywhere(), Some(namespace("other")))], vec![STRANGER]),
        ("expression", vec![pods(not_web, None)], vec![CLIENT]),
        (
            "two peers add up",
            vec![pods(app("web"), None), pods(everywhere(), Some(namespace("other")))],
            vec![WEB, STRANGER],
        ),
        ("another cluster when named", vec![pods(cluster("west"), None)], vec![WEST]),
        ("any cluster when named", vec![pods(any_cluster, None)], vec![CLIENT, WEST]),
        ("nobody has the label", vec![pods(app("gone"), None)], vec![]),
        (
            "the world",
            vec![cidr("0.0.0.0/0", &[]), cidr("::/0", &[])],
            vec![IdentityId::WORLD_IPV4, IdentityId::WORLD_IPV6],
        ),
        ("that of IPv4", vec![cidr("0.0.0.0/0", &[])], vec![IdentityId::WORLD_IPV4]),
        ("that of IPv6", vec![cidr("::/0", &[])], vec![IdentityId::WORLD_IPV6]),
    ];
    for (what, peers, expected) in cases {
        let entries = world().allowed(vec![block(peers, vec![])]);
        let identities: Vec<_> = entries.iter().map(|entry| entry.0).collect();
        assert_eq!(identities, expected, "{what}");
        assert!(entries.iter().all(|entry| (entry.1, entry.2) == (0, 0)), "{what}");
    }
}

fn cidr(prefix: &str, except: &[&str]) -> PeerSelector {
    let except = except.iter().map(|text| text.parse().unwrap()).collect();
    PeerSelector::Cidr { prefix: prefix.parse().unwrap(), except }
}

#[test]
fn ports_by_number_range_and_name() {
    let mut world = world();
    let named = |name: &str, protocol, port| NamedPort { name: name.into(), protocol, port };
    world.named.insert(WEB, [named("http", 6, 8080), named("http", 6, 8081), named("http", 17, 9)].into());
    let of = |ports: Vec<PortRule>| -> Vec<(u8, u16)> {
        world.allowed(vec![block(vec![], ports)]).into_iter().map(|entry| (entry.1, entry.2)).collect()
    };
    assert_eq!(of(vec![]), [(0, 0)]);
    assert_eq!(of(vec![port(6, Some(80), None, None), port(17, Some(53), None, None)]), [(6, 80), (17, 53)]);
    assert_eq!(of(vec![port(6, None, None, None)]), [(6, 0)]);
    assert_eq!(of(vec![port(6, Some(80), Some(82), None)]), [(6, 80), (6, 81), (6, 82)]);
    assert_eq!(of(vec![port(6, Some(1), Some(65535), None)]), [(6, 0)]);
    assert_eq!(of(vec![port(6, None, None, Some("http"))]), [(6, 8080), (6, 8081)]);
    assert_eq!(of(vec![port(6, Some(65535), Some(65535), None)]), [(6, 65535)]);
    assert_eq!(of(vec![port(6, Some(1000), Some(1999), None)]).len(), 1000);
}

#[test]
fn egress_names_are_the_receivers() {
    let mut world = world();
    let dns = NamedPort { name: "dns".into(), protocol: 17, port: 5353 };
    world.named.insert(CLIENT, [dns].into());
    for peers in [vec![pods(app("client"), None)], vec![]] {
        let egress = vec![block(peers, vec![port(17, None, None, Some("dns"))])];
        let (row, _) = world.under(rule("r", app("web"), None, Some(egress)));
        let row = row.unwrap();
        let entries: Vec<_> =
            row.entries.iter().map(|e| (e.direction, e.identity, e.protocol, e.port)).collect();
        assert_eq!(entries, [(Direction::Egress, CLIENT, 17, 5353)]);
        assert!(row.egress_enforced && !row.ingress_enforced);
    }
}

#[test]
fn what_cannot_be_enforced_allows_nothing_and_is_told() {
    let world = world();
    let cases = [
        (block(vec![cidr("10.0.0.0/8", &[])], vec![]), "not enforced yet"),
        (block(vec![cidr("0.0.0.0/0", &["10.0.0.0/8"])], vec![]), "with except is not enforced"),
        (block(vec![], vec![port(6, Some(1), Some(1001), None)]), "1001 ports"),
        (block(vec![], vec![port(6, None, None, Some("nope"))]), "names port nope"),
    ];
    for (block, text) in cases {
        let (row, problems) = world.under(rule("r", app("web"), Some(vec![block]), None));
        let row = row.unwrap();
        assert!(row.entries.is_empty() && row.ingress_enforced, "{text}");
        assert!(
            problems[0].starts_with("NetworkPolicy shop/r: ") && problems[0].contains(text),
            "{problems:?}"
        );
    }
}

#[test]
fn rules_add_up_and_only_those_that_select() {
    let world = world();
    let mut compiler = compiler();
    world.rules.1.upsert(rule("deny", LabelSelector::default(), Some(vec![]), Some(vec![])));
    let delta = world.update(&mut compiler, &Change::Everything, true);
    let row = &delta.policies[0];
    assert!(row.ingress_enforced && row.egress_enforced && row.entries.is_empty());
    assert_eq!((row.id, delta.endpoints[0].policy), (1, 1));
    world.rules.1.upsert(rule(
        "allow",
        app("web"),
        Some(vec![block(vec![pods(app("client"), None)], vec![])]),
        None,
    ));
    world.rules.1.upsert(rule("unrelated", app("db"), Some(vec![block(vec![], vec![])]), None));
    let mut elsewhere = rule("elsewhere", app("web"), Some(vec![block(vec![], vec![])]), None);
    elsewhere.namespace = "other".into();
    world.rules.1.upsert(elsewhere);
    let delta = world.update(&mut compiler, &Change::Everything, true);
    let row = &delta.policies[0];
    let origins: Vec<_> = row.origins.iter().map(AsRef::as_ref).collect();
    assert_eq!(origins, ["shop/allow", "shop/deny"]);
    assert_eq!(row.entries.iter().map(|entry| entry.identity).collect::<Vec<_>>(), [CLIENT]);
    // The id stayed, so the endpoint's row need not be written.
    assert!(row.id == 1 && delta.endpoints.is_empty());
}

#[test]
fn endpoints_without_rules_run_open_and_without_identity_not_at_all() {
    let world = world();
    world.endpoints.1.upsert(endpoint(2, None, labels("east", "shop", "new")));
    let mut compiler = compiler();
    let delta = world.update(&mut compiler, &Change::Everything, true);
    assert!(delta.policies.is_empty());
    assert_eq!(delta.endpoints.iter().map(|row| (row.endpoint, row.policy)).collect::<Vec<_>>(), [(1, 0)]);
    world.endpoints.1.remove(&1);
    let delta = world.update(&mut compiler, &Change::Everything, true);
    assert_eq!(delta.removed_endpoints, [1]);
}

#[test]
fn ids_outlive_the_rules_and_the_process_but_not_the_subject() {
    let world = world();
    let mut first = compiler().with_ids([(WEB, 7), (CLIENT, 9)]);
    world.rules.1.upsert(rule("deny", app("web"), Some(vec![]), None));
    assert_eq!(world.update(&mut first, &Change::Everything, true).policies[0].id, 7);
    world.rules.1.remove(&("shop".into(), "deny".into()));
    let gone = world.update(&mut first, &Change::Everything, true);
    assert_eq!((gone.removed_policies, gone.endpoints[0].policy), (vec![7], 0));
    world.rules.1.upsert(rule("deny", app("web"), Some(vec![]), None));
    assert_eq!(world.update(&mut first, &Change::Everything, true).policies[0].id, 7);
    let ids = first.ids().clone();
    assert_eq!(world.update(&mut compiler().with_ids(ids), &Change::Everything, true).policies[0].id, 7);
    world.endpoints.1.remove(&1);
    world.update(&mut first, &Change::Everything, true);
    world.endpoints.1.upsert(endpoint(3, Some(WEB), labels("east", "shop", "web")));
    assert_eq!(world.update(&mut first, &Change::Everything, true).policies[0].id, 10);
}

#[test]
fn vanished_identities_stay_allowed_until_all_sources_have_spoken() {
    let world = world();
    let mut compiler = compiler();
    let allow =
        |name: &str| rule("r", app("web"), Some(vec![block(vec![pods(app(name), None)], vec![])]), None);
    world.rules.1.upsert(allow("client"));
    world.update(&mut compiler, &Change::Everything, true);
    world.identities.1.remove(&(CLIENT, Source::Manifests));
    let gone = Change::Rows {
        rules: BTreeSet::new(),
        identities: [CLIENT].into(),
        endpoints: BTreeSet::new(),
        named_ports: BTreeSet::new(),
    };
    assert_eq!(world.update(&mut compiler, &gone, false), Delta::default());
    let mut kept = compiler.clone();
    // A changed rule takes effect at once, whatever is pending.
    world.rules.1.upsert(allow("nobody"));
    assert!(world.update(&mut kept, &Change::Everything, false).policies[0].entries.is_empty());
    world.rules.1.upsert(allow("client"));
    assert!(world.update(&mut compiler, &Change::Everything, true).policies[0].entries.is_empty());
}

#[derive(Clone, Debug)]
enum Step {
    Rule(u8, u8, u8),
    DropRule(u8),
    Identity(u8, u8),
    DropIdentity(u8),
    Endpoint(u8, u8),
    DropEndpoint(u8),
    Named(u8, u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u8..4, 0u8..4, 0u8..6).prop_map(|(a, b, c)| Step::Rule(a, b, c)),
        (0u8..4).prop_map(Step::DropRule),
        (0u8..6, 0u8..2).prop_map(|(a, b)| Step::Identity(a, b)),
        (0u8..6).prop_map(Step::DropIdentity),
        (0u8..4, 0u8..4).prop_map(|(a, b)| Step::Endpoint(a, b)),
        (0u8..4).prop_map(Step::DropEndpoint),
        (0u8..4, 1u16..4).prop_map(|(a, b)| Step::Named(a, b)),
    ]
}

fn some_rule(number: u8, subject: u8, form: u8) -> RuleRow {
    let subject = if subject == 3 { LabelSelector::default() } else { app(&format!("a{subject}")) };
    let peer = pods(app(&format!("a{}", form % 3)), (form > 3).then(LabelSelector::default));
    let ports = if form == 2 { vec![port(6, None, None, Some("http"))] } else { vec![] };
    let blocks = Some(vec![block(vec![peer], ports)]);
    let name = format!("r{number}");
    if form.is_multiple_of(2) {
        rule(&name, subject, blocks, None)
    } else {
        rule(&name, subject, None, blocks)
    }
}

impl World {
    /// Does a step and says what changed.
    fn step(&mut self, step: &Step) -> Change {
        let (mut rules, mut identities, mut endpoints, mut named_ports) =
            (BTreeSet::new(), BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let id = |number: &u8| IdentityId(70_000 + u32::from(*number));
        let own = |number: &u8| labels("east", "shop", &format!("a{}", number % 3));
        match step {
            Step::Rule(number, subject, form) => {
                let row = some_rule(*number, *subject, *form);
                rules.insert((row.namespace.clone(), row.name.clone()));
                self.rules.1.upsert(row);
            }
            Step::DropRule(number) => {
                let key = (Arc::from("shop"), Arc::from(format!("r{number}")));
                self.rules.1.remove(&key);
                rules.insert(key);
            }
            Step::Identity(number, cluster) => {
                let name = if *cluster == 0 { own(number) } else { labels("east", "other", "a1") };
                self.identities.1.upsert(identity(id(number), name));
                identities.insert(id(number));
            }
            Step::DropIdentity(number) => {
                self.identities.1.remove(&(id(number), Source::Manifests));
                identities.insert(id(number));
            }
            Step::Endpoint(number, of) => {
                self.endpoints.1.upsert(endpoint((*number).into(), Some(id(of)), own(of)));
                endpoints.insert((*number).into());
            }
            Step::DropEndpoint(number) => {
                self.endpoints.1.remove(&(*number).into());
                endpoints.insert((*number).into());
            }
            Step::Named(number, port) => {
                let port = NamedPort { name: "http".into(), protocol: 6, port: *port };
                self.named.insert(id(number), [port].into());
                named_ports.insert(id(number));
            }
        }
        Change::Rows { rules, identities, endpoints, named_ports }
    }
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
        let mut second = compiler().with_ids(first.ids().clone()).with_entries(entries);
        world.update(&mut second, &Change::Everything, false);
        let known: BTreeSet<IdentityId> = world.identities.0.snapshot().iter().map(|row| row.id).collect();
        for row in second.policies() {
            let waiting = left[&row.id].entries.iter().filter(|entry| !entry.identity.is_reserved() && !known.contains(&entry.identity));
            for entry in waiting {
                prop_assert!(row.entries.contains(entry), "policy {} lost {entry:?}", row.id);
            }
        }
        world.update(&mut second, &Change::Everything, true);
        let mut fresh = compiler().with_ids(first.ids().clone());
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
        for step in &steps {
            let change = world.step(step);
            let delta = world.update(&mut compiler, &change, true);
            policies.extend(delta.policies.into_iter().map(|row| (row.id, row)));
            endpoints.extend(delta.endpoints.into_iter().map(|row| (row.endpoint, row.policy)));
            delta.removed_endpoints.iter().for_each(|id| { endpoints.remove(id); });
            delta.removed_policies.iter().for_each(|id| { policies.remove(id); });
            prop_assert!(endpoints.values().all(|id| *id == 0 || policies.contains_key(id)));
        }
        let mut fresh = super::tests::compiler().with_ids(compiler.ids().clone());
        let full = world.update(&mut fresh, &Change::Everything, true);
        let full_policies: BTreeMap<_, _> = full.policies.into_iter().map(|row| (row.id, row)).collect();
        let full_endpoints: BTreeMap<_, _> = full.endpoints.iter().map(|row| (row.endpoint, row.policy)).collect();
        prop_assert_eq!(policies, full_policies);
        prop_assert_eq!(endpoints, full_endpoints);
        prop_assert_eq!(compiler.problems(), fresh.problems());
    }
}
