use super::*;
use crate::cidrs::FIRST;
use crate::desired::Precedence;
use crate::rows::{
    Action, CidrGroupRef, CidrGroupRow, Direction, EndpointSelector, Entity, LabelSelector, NamedPort,
    PeerSelector, PolicyKind, PortMatch, PortRule, Requirement, RuleBlock, Subject,
};
use tombolo_base::labels::{CLUSTER_KEY, NAMESPACE_KEY};
use tombolo_base::table::{Table, Writer};
use tombolo_topology::{EndpointState, IdentityRow};

pub(super) fn labels(cluster: &str, namespace: &str, app: &str) -> Labels {
    Labels::k8s([
        ("app", app),
        (CLUSTER_KEY, cluster),
        (NAMESPACE_KEY, namespace),
        ("io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name", namespace),
    ])
}

fn namespace_key() -> Arc<str> {
    format!("k8s:{NAMESPACE_KEY}").into()
}

/// Pods of namespace `shop` with this `app`.
pub(super) fn app(name: &str) -> EndpointSelector {
    let labels = [("k8s:app".into(), name.into()), (namespace_key(), "shop".into())].into();
    EndpointSelector(LabelSelector { labels, ..LabelSelector::default() })
}

/// All pods of namespace `shop`.
pub(super) fn shop() -> EndpointSelector {
    in_namespace("shop")
}

pub(super) fn in_namespace(name: &str) -> EndpointSelector {
    let labels = [(namespace_key(), name.into())].into();
    EndpointSelector(LabelSelector { labels, ..LabelSelector::default() })
}

/// Pods of any namespace with this `app`.
pub(super) fn any_app(name: &str) -> EndpointSelector {
    let labels = [("any:app".into(), name.into())].into();
    EndpointSelector(LabelSelector { labels, ..LabelSelector::default() })
}

/// With this requirement besides.
pub(super) fn with(mut selector: EndpointSelector, requirement: Requirement) -> EndpointSelector {
    selector.0.expressions.insert(requirement);
    selector
}

pub(super) fn anywhere() -> EndpointSelector {
    with(EndpointSelector::default(), Requirement::Exists(namespace_key()))
}

pub(super) fn pods(selector: EndpointSelector) -> PeerSelector {
    PeerSelector::Endpoints(selector)
}

pub(super) fn range(protocol: u8, first: u16, last: u16) -> PortRule {
    PortRule { protocol, port: PortMatch::Range(first, last) }
}

pub(super) fn named(protocol: u8, name: &str) -> PortRule {
    PortRule { protocol, port: PortMatch::Named(name.into()) }
}

/// An allow; no peer is everybody, no port all of them.
pub(super) fn block(peers: Vec<PeerSelector>, ports: Vec<PortRule>) -> RuleBlock {
    RuleBlock {
        action: Action::Allow,
        priority: 0,
        peers: (!peers.is_empty()).then(|| peers.into_iter().collect()),
        ports: (!ports.is_empty()).then(|| ports.into_iter().collect()),
        name: None,
    }
}

fn deny(block: RuleBlock) -> RuleBlock {
    RuleBlock { action: Action::Deny, ..block }
}

pub(super) fn rule(
    name: &str,
    subject: EndpointSelector,
    ingress: Option<Vec<RuleBlock>>,
    egress: Option<Vec<RuleBlock>>,
) -> RuleRow {
    let rules = |blocks| DirectionRules { default_deny: true, blocks };
    RuleRow {
        source: Source::Manifests,
        kind: PolicyKind::NetworkPolicy,
        namespace: "shop".into(),
        name: name.into(),
        spec: 0,
        tier: Tier::Normal,
        subject: Subject::Pods(subject),
        ingress: ingress.map(rules),
        egress: egress.map(rules),
    }
}

pub(super) fn key(name: &str) -> RuleKey {
    (PolicyKind::NetworkPolicy, "shop".into(), name.into(), 0)
}

/// Tables with `web` (300), `client` (301), `other/client` (302), `west web` (600), and a pod of `web` here.
pub(super) struct World {
    pub(super) rules: (Table<RuleRow>, Writer<RuleRow>),
    pub(super) groups: (Table<CidrGroupRow>, Writer<CidrGroupRow>),
    pub(super) identities: (Table<IdentityRow>, Writer<IdentityRow>),
    pub(super) endpoints: (Table<EndpointRow>, Writer<EndpointRow>),
    pub(super) named: NamedPorts,
}

const WEB: IdentityId = IdentityId(65_836);
const CLIENT: IdentityId = IdentityId(65_837);
const STRANGER: IdentityId = IdentityId(65_838);
const WEST: IdentityId = IdentityId(131_372);
const ANY: IdentityId = IdentityId::UNKNOWN;

pub(super) fn identity(id: IdentityId, labels: Labels) -> IdentityRow {
    let source =
        if id == WEST { Source::Cluster(ClusterName::new("west").unwrap()) } else { Source::Manifests };
    IdentityRow { source, id, labels }
}

pub(super) fn endpoint(id: u16, identity: Option<IdentityId>, labels: Labels) -> EndpointRow {
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
        port_mappings: Default::default(),
        queued: false,
        state: EndpointState::Ready,
    }
}

pub(super) fn world() -> World {
    let world = World {
        rules: Table::new(),
        groups: Table::new(),
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

pub(super) fn compiler() -> Compiler {
    Compiler::new(ClusterName::new("east").unwrap())
}

impl World {
    pub(super) fn update(&self, compiler: &mut Compiler, change: &Change, may_shrink: bool) -> Delta {
        let (rules, groups) = (self.rules.0.snapshot(), self.groups.0.snapshot());
        let (identities, endpoints) = (self.identities.0.snapshot(), self.endpoints.0.snapshot());
        let inputs = Inputs {
            rules: &rules,
            groups: &groups,
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
        row.entries.keys().map(|entry| (entry.identity, entry.protocol, entry.port)).collect()
    }
}

/// Which of the known identities a peer takes.
#[test]
fn peers_take_whom_kubernetes_says() {
    let cluster = |requirement: fn(Arc<str>) -> Requirement| {
        with(app("client"), requirement(format!("k8s:{CLUSTER_KEY}").into()))
    };
    let west = cluster(|key| Requirement::In(key, ["west".into()].into()));
    let not_web = with(shop(), Requirement::NotIn("any:app".into(), ["web".into()].into()));
    let clients = any_app("client");
    let host = with(EndpointSelector::default(), Requirement::Exists("reserved:host".into()));
    let cases: Vec<(&str, Vec<PeerSelector>, Vec<IdentityId>)> = vec![
        ("no peer is everybody", vec![], vec![ANY]),
        ("pods of the own namespace", vec![pods(app("client"))], vec![CLIENT]),
        ("all pods of the own namespace", vec![pods(shop())], vec![WEB, CLIENT]),
        ("all pods of all namespaces", vec![pods(anywhere())], vec![WEB, CLIENT, STRANGER]),
        ("clients anywhere", vec![pods(clients)], vec![CLIENT, STRANGER]),
        ("a namespace by label", vec![pods(in_namespace("other"))], vec![STRANGER]),
        ("expression", vec![pods(not_web)], vec![CLIENT]),
        ("two peers add up", vec![pods(app("web")), pods(in_namespace("other"))], vec![WEB, STRANGER]),
        ("another cluster when named", vec![pods(west)], vec![WEST]),
        ("any cluster when named", vec![pods(cluster(Requirement::Exists))], vec![CLIENT, WEST]),
        ("nobody has the label", vec![pods(app("gone"))], vec![]),
        ("a fixed identity by label", vec![pods(host)], vec![IdentityId::HOST]),
    ];
    for (what, peers, expected) in cases {
        let entries = world().allowed(vec![block(peers, vec![])]);
        let identities: Vec<_> = entries.iter().map(|entry| entry.0).collect();
        assert_eq!(identities, expected, "{what}");
        assert!(entries.iter().all(|entry| (entry.1, entry.2) == (0, 0)), "{what}");
    }
}

#[test]
fn entities_take_whom_their_names_say() {
    use Entity::{
        All, Cluster, Health, Host, Ingress, Init, None as Nobody, RemoteNode, Unmanaged, World as Outside,
        WorldIpv4, WorldIpv6,
    };
    let cluster = [1, 3, 4, 5, 6, 7, 8, WEB.0, CLIENT.0, STRANGER.0];
    let cases: Vec<(Entity, Vec<u32>)> = vec![
        (All, vec![0]),
        (Outside, vec![9, 10, FIRST, FIRST + 1]),
        (WorldIpv4, vec![9, FIRST]),
        (WorldIpv6, vec![10, FIRST + 1]),
        (Cluster, cluster.to_vec()),
        (Host, vec![1]),
        (RemoteNode, vec![6, 7]),
        (Init, vec![5]),
        (Health, vec![4]),
        (Unmanaged, vec![3]),
        (Ingress, vec![8]),
        (Nobody, vec![]),
    ];
    for (entity, expected) in cases {
        let world = world();
        // Another rule mentions prefixes: they are the world's, too.
        let other = vec![block(vec![cidr("10.0.0.0/8", &[]), cidr("fd00::/64", &[])], vec![])];
        let peer = PeerSelector::Entity(entity);
        let ingress = vec![block(vec![peer], vec![])];
        world.rules.1.upsert(rule("o", app("nobody"), Some(other), None));
        world.rules.1.upsert(rule("r", app("web"), Some(ingress), None));
        let mut compiler = compiler();
        world.update(&mut compiler, &Change::Everything, true);
        let row = compiler.policies().next().unwrap();
        let ids: Vec<u32> = row.entries.keys().map(|key| key.identity.0).collect();
        assert_eq!(ids, expected, "{entity:?}");
    }
}

pub(super) fn cidr(prefix: &str, except: &[&str]) -> PeerSelector {
    let except = except.iter().map(|text| text.parse().unwrap()).collect();
    PeerSelector::Cidr { prefix: prefix.parse().unwrap(), except }
}

#[test]
fn prefixes_are_numbers_of_this_node() {
    let w = world();
    let taken = |peers: Vec<PeerSelector>| -> Vec<u32> {
        w.allowed(vec![block(peers, vec![])]).into_iter().map(|entry| entry.0.0).collect()
    };
    assert_eq!(taken(vec![cidr("0.0.0.0/0", &[]), cidr("::/0", &[])]), [9, 10]);
    // In the order of prefixes: 10.0.0.0/8 is the first, what it cuts out the second.
    assert_eq!(taken(vec![cidr("10.0.0.0/8", &["10.1.0.0/16"])]), [FIRST]);
    assert_eq!(taken(vec![cidr("0.0.0.0/0", &["10.1.0.0/16"]), cidr("10.1.2.0/24", &[])]), [9, FIRST + 1]);
    assert_eq!(taken(vec![cidr("fd00::/48", &[]), cidr("fd00::/64", &[])]), [FIRST, FIRST + 1]);
}

#[test]
fn groups_are_prefixes_that_have_a_name() {
    let world = world();
    let group = |name: &str, prefixes: &[&str]| CidrGroupRow {
        source: Source::Manifests,
        name: name.into(),
        labels: [("kind".into(), "office".into())].into(),
        prefixes: prefixes.iter().map(|text| text.parse().unwrap()).collect(),
    };
    let office =
        LabelSelector { labels: [("kind".into(), "office".into())].into(), ..LabelSelector::default() };
    let peer = |group| PeerSelector::CidrGroup { group, except: ["192.0.2.1".parse().unwrap()].into() };
    let mut compiler = compiler();
    world.rules.1.upsert(rule(
        "r",
        app("web"),
        Some(vec![block(
            vec![peer(CidrGroupRef::Name("a".into())), peer(CidrGroupRef::Labels(office))],
            vec![],
        )]),
        None,
    ));
    world.update(&mut compiler, &Change::Everything, true);
    assert!(compiler.policies().next().unwrap().entries.is_empty(), "no such group yet");
    let change = |name: &str| changed(Keys { groups: [name.into()].into(), ..Keys::default() });
    let taken = |compiler: &Compiler| -> Vec<String> {
        let of: BTreeMap<IdentityId, Prefix> =
            compiler.prefixes().chain(compiler.leaving()).map(|(prefix, id)| (id, prefix)).collect();
        let row = compiler.policies().next().unwrap();
        row.entries.keys().map(|key| of[&key.identity].to_string()).collect()
    };
    world.groups.1.upsert(group("a", &["192.0.2.0/24"]));
    let delta = world.update(&mut compiler, &change("a"), true);
    assert_eq!(taken(&compiler), ["192.0.2.0/24"]);
    assert_eq!(delta.prefixes.len(), 2, "what is cut out is told as well");
    world.groups.1.upsert(group("b", &["fd00::/64"]));
    world.update(&mut compiler, &change("b"), true);
    assert_eq!(taken(&compiler), ["192.0.2.0/24", "fd00::/64"]);
    world.groups.1.remove(&"b".into());
    let delta = world.update(&mut compiler, &change("b"), true);
    assert_eq!((taken(&compiler), delta.removed_prefixes.len()), (vec!["192.0.2.0/24".to_owned()], 1));
}

/// An address never has a number that policies do not know: prefixes go before their numbers go from policies.
#[test]
fn a_number_leaves_policies_after_the_datapath_let_go_of_it() {
    let world = world();
    let mut compiler = compiler();
    let allow = |peer| Some(vec![block(vec![peer], vec![])]);
    world.rules.1.upsert(rule("wide", app("web"), allow(cidr("10.0.0.0/8", &[])), None));
    let first = world.update(&mut compiler, &Change::Everything, true);
    world.rules.1.upsert(rule("narrow", app("nobody"), allow(cidr("10.1.0.0/16", &[])), None));
    let change = changed(Keys { rules: [key("narrow")].into(), ..Keys::default() });
    let delta = world.update(&mut compiler, &change, true);
    let numbers = |delta: &Delta| -> Vec<u32> {
        delta.policies[0].entries.keys().map(|key| key.identity.0 - FIRST).collect()
    };
    assert_eq!(
        (numbers(&first), numbers(&delta)),
        (vec![0], vec![0, 1]),
        "what is inside is the wide rule's, too"
    );
    assert_eq!(delta.prefixes, [("10.1.0.0/16".parse().unwrap(), IdentityId(FIRST + 1))]);
    world.rules.1.remove(&key("narrow"));
    let delta = world.update(&mut compiler, &change, true);
    let inner: Prefix = "10.1.0.0/16".parse().unwrap();
    assert_eq!((delta.policies.len(), delta.removed_prefixes), (0, vec![inner]));
    assert_eq!(compiler.leaving().collect::<Vec<_>>(), [(inner, IdentityId(FIRST + 1))]);
    let released = changed(Keys { released: [inner].into(), ..Keys::default() });
    assert_eq!(numbers(&world.update(&mut compiler, &released, true)), [0]);
    assert_eq!(compiler.leaving().count(), 0);
}

#[test]
fn ports_by_number_range_and_name() {
    let mut world = world();
    let port = |name: &str, protocol, port| NamedPort { name: name.into(), protocol, port };
    world.named.insert(WEB, [port("http", 6, 8080), port("http", 6, 8081), port("http", 17, 9)].into());
    let of = |ports: Vec<PortRule>| -> Vec<(u8, u16, u8)> {
        let (row, problems) = world.under(rule("r", app("web"), Some(vec![block(vec![], ports)]), None));
        assert!(problems.is_empty(), "{problems:?}");
        row.unwrap().entries.keys().map(|key| (key.protocol, key.port, key.port_bits)).collect()
    };
    let all = |protocol| PortRule { protocol, port: PortMatch::All };
    assert_eq!(of(vec![]), [(0, 0, 0)]);
    assert_eq!(of(vec![range(6, 80, 80), range(17, 53, 53)]), [(6, 80, 16), (17, 53, 16)]);
    assert_eq!(of(vec![all(6)]), [(6, 0, 0)]);
    assert_eq!(of(vec![range(6, 80, 82)]), [(6, 80, 15), (6, 82, 16)]);
    assert_eq!(of(vec![range(6, 1, 65535)]), [(6, 0, 0)]);
    assert_eq!(of(vec![named(6, "http")]), [(6, 8080, 16), (6, 8081, 16)]);
    assert_eq!(of(vec![range(6, 65535, 65535)]), [(6, 65535, 16)]);
    assert_eq!(of(vec![range(6, 1000, 1999)]).len(), 7, "1,000 ports");
    assert_eq!(of(vec![range(6, 2, 65534)]).len(), 29, "the most that a range can come to, but one");
    assert_eq!(of(vec![range(0, 80, 80)]), [(6, 80, 16), (17, 80, 16), (132, 80, 16)]);
    assert_eq!(of(vec![PortRule { protocol: 58, port: PortMatch::IcmpType(128) }]), [(58, 128 << 8, 8)]);
    let none = RuleBlock { ports: Some(BTreeSet::new()), ..block(vec![], vec![]) };
    let (row, _) = world.under(rule("r", app("web"), Some(vec![none]), None));
    assert!(row.unwrap().entries.is_empty(), "no port, not all of them");
}

#[test]
fn egress_names_are_the_receivers() {
    let mut world = world();
    let dns = NamedPort { name: "dns".into(), protocol: 17, port: 5353 };
    world.named.insert(CLIENT, [dns].into());
    for peers in [vec![pods(app("client"))], vec![]] {
        let egress = vec![block(peers, vec![named(17, "dns")])];
        let (row, _) = world.under(rule("r", app("web"), None, Some(egress)));
        let row = row.unwrap();
        let entries: Vec<_> =
            row.entries.keys().map(|e| (e.direction, e.identity, e.protocol, e.port)).collect();
        assert_eq!(entries, [(Direction::Egress, CLIENT, 17, 5353)]);
        assert!(row.egress_enforced && !row.ingress_enforced);
    }
}

#[test]
fn what_cannot_be_enforced_matches_nobody_and_is_told() {
    let world = world();
    let zone = LabelSelector { labels: [("zone".into(), "a".into())].into(), ..LabelSelector::default() };
    let cases = [
        (block(vec![PeerSelector::Nodes(zone)], vec![]), "not told apart by their labels", vec![]),
        (block(vec![PeerSelector::Entity(Entity::KubeApiserver)], vec![]), "API server", vec![7]),
        (block(vec![], vec![named(6, "nope")]), "names port nope", vec![]),
    ];
    for (block, text, entries) in cases {
        let (row, problems) = world.under(rule("r", app("web"), Some(vec![block]), None));
        let row = row.unwrap();
        assert_eq!(row.entries.keys().map(|key| key.identity.0).collect::<Vec<_>>(), entries, "{text}");
        assert!(row.ingress_enforced);
        assert!(
            problems[0].starts_with("NetworkPolicy shop/r: ") && problems[0].contains(text),
            "{problems:?}"
        );
    }
    let zone = LabelSelector { labels: [("zone".into(), "a".into())].into(), ..LabelSelector::default() };
    let (row, problems) = world.under(rule(
        "r",
        app("web"),
        Some(vec![deny(block(vec![PeerSelector::Nodes(zone)], vec![]))]),
        None,
    ));
    let denied: Vec<u32> = row.unwrap().entries.keys().map(|key| key.identity.0).collect();
    assert_eq!(denied, [1, 6, 7], "a deny of some is one of all");
    assert!(problems[0].contains("all of them are denied"), "{problems:?}");
    let all = block(vec![PeerSelector::Nodes(LabelSelector::default())], vec![]);
    let ids: Vec<u32> = world.allowed(vec![all]).into_iter().map(|entry| entry.0.0).collect();
    assert_eq!(ids, [1, 6, 7], "all nodes can be told");
}

/// More than fits costs allows first; where not even what denies fits, nothing is allowed.
#[test]
fn a_rule_that_does_not_fit_opens_nothing() {
    let ports = |first: u16, last: u16| (first..=last).map(|port| range(6, port, port)).collect();
    let world = world();
    let (allowed, denied) = (block(vec![], ports(1, 16_384)), deny(block(vec![], ports(20_000, 20_009))));
    let mut fits = rule("r", app("web"), Some(vec![allowed.clone(), denied]), None);
    fits.ingress.as_mut().unwrap().default_deny = false;
    let (row, problems) = world.under(fits.clone());
    let row = row.unwrap();
    let denies =
        |row: &PolicyRow| row.entries.values().filter(|v| v.precedence.action() == Action::Deny).count();
    assert_eq!((row.entries.len(), denies(&row), row.ingress_enforced), (16_384, 10, false));
    assert!(problems[0].contains("the rest allows nothing"), "{problems:?}");
    fits.ingress.as_mut().unwrap().blocks.push(deny(block(vec![], ports(30_000, 50_000))));
    let (row, problems) = world.under(fits);
    let row = row.unwrap();
    assert_eq!((row.entries.len(), denies(&row), row.ingress_enforced), (16_384, 16_384, true));
    assert!(problems.iter().any(|text| text.contains("nothing is allowed")), "{problems:?}");
}

/// Of equal entries the most urgent stays, of equally urgent ones the deny, and the number names all that say it.
#[test]
fn priorities_tiers_and_the_names_of_rules() {
    let world = world();
    let all = || block(vec![], vec![]);
    let mut admin = rule("admin", shop(), None, None);
    admin.kind = PolicyKind::AdminNetworkPolicy;
    admin.namespace = "".into();
    admin.tier = Tier::Admin;
    let named =
        |name: &str, priority, action| RuleBlock { priority, action, name: Some(name.into()), ..all() };
    let blocks =
        vec![named("late", 7, Action::Deny), named("first", 3, Action::Pass), named("also", 3, Action::Pass)];
    admin.ingress = Some(DirectionRules { default_deny: true, blocks });
    world.rules.1.upsert(admin);
    world.rules.1.upsert(rule("a", app("web"), None, Some(vec![all(), deny(all())])));
    let mut compiler = compiler();
    world.update(&mut compiler, &Change::Everything, true);
    let row = compiler.policies().next().unwrap();
    assert!(!row.ingress_enforced && row.egress_enforced, "only the middle tier is default deny");
    let rules: BTreeMap<u32, Vec<String>> = compiler
        .cookies()
        .map(|row| (row.cookie, row.rules.iter().map(ToString::to_string).collect()))
        .collect();
    let told: Vec<_> = row
        .entries
        .iter()
        .map(|(key, verdict)| (key.tier, verdict.precedence, rules[&verdict.cookie].clone()))
        .collect();
    let title = |text: &str| text.to_owned();
    let passes =
        ["also", "first"].map(|name| title(&format!("AdminNetworkPolicy admin ingress rule {name:?}")));
    assert_eq!(
        told,
        [
            (Tier::Admin, Precedence::new(3, Action::Pass), passes.to_vec()),
            (
                Tier::Normal,
                Precedence::new(0, Action::Deny),
                vec![title("NetworkPolicy shop/a egress rule 1")]
            ),
        ]
    );
    world.rules.1.remove(&key("a"));
    let change = changed(Keys { rules: [key("a")].into(), ..Keys::default() });
    let delta = world.update(&mut compiler, &change, true);
    assert_eq!((delta.cookies.len(), delta.removed_cookies.len()), (0, 1));
    assert_eq!(compiler.cookies().count(), 1);
}

/// Without default deny a rule only adds.
#[test]
fn default_deny_can_be_switched_off() {
    let world = world();
    let mut row = rule("r", app("web"), Some(vec![deny(block(vec![pods(app("client"))], vec![]))]), None);
    row.ingress.as_mut().unwrap().default_deny = false;
    let (row, _) = world.under(row);
    let row = row.unwrap();
    assert!(!row.ingress_enforced && row.entries.len() == 1 && !row.audit);
}

#[test]
fn rules_add_up_and_only_those_that_select() {
    let world = world();
    let mut compiler = compiler();
    world.rules.1.upsert(rule("deny", shop(), Some(vec![]), Some(vec![])));
    let delta = world.update(&mut compiler, &Change::Everything, true);
    let row = &delta.policies[0];
    assert!(row.ingress_enforced && row.egress_enforced && row.entries.is_empty());
    assert_eq!((row.id, delta.endpoints[0].policy), (1, 1));
    world.rules.1.upsert(rule(
        "allow",
        app("web"),
        Some(vec![block(vec![pods(app("client"))], vec![])]),
        None,
    ));
    world.rules.1.upsert(rule("unrelated", app("db"), Some(vec![block(vec![], vec![])]), None));
    let of_nodes = RuleRow {
        subject: Subject::Nodes(LabelSelector::default()),
        ..rule("nodes", shop(), Some(vec![block(vec![], vec![])]), None)
    };
    world.rules.1.upsert(of_nodes);
    let delta = world.update(&mut compiler, &Change::Everything, true);
    let row = &delta.policies[0];
    let origins: Vec<_> = row.origins.iter().map(AsRef::as_ref).collect();
    assert_eq!(origins, ["NetworkPolicy shop/allow", "NetworkPolicy shop/deny"]);
    assert_eq!(row.entries.keys().map(|entry| entry.identity).collect::<Vec<_>>(), [CLIENT]);
    // The id stayed, so the endpoint's row need not be written.
    assert!(row.id == 1 && delta.endpoints.is_empty());
}

/// The node is a subject like a pod, of rules about nodes alone, as long as its labels are what they ask for.
#[test]
fn rules_about_nodes_make_the_policy_of_this_one() {
    let world = world();
    let mut compiler = compiler();
    let edge = LabelSelector { labels: [("role".into(), "edge".into())].into(), ..LabelSelector::default() };
    let of_nodes = RuleRow {
        subject: Subject::Nodes(edge),
        ..rule("nodes", shop(), Some(vec![block(vec![pods(app("client"))], vec![])]), None)
    };
    world.rules.1.upsert(of_nodes.clone());
    let delta = world.update(&mut compiler, &Change::Everything, true);
    assert!(delta.policies.is_empty(), "nothing is known of the node");
    let nothing_changed = Change::Rows {
        rules: BTreeSet::new(),
        groups: BTreeSet::new(),
        identities: BTreeSet::new(),
        endpoints: BTreeSet::new(),
        named_ports: BTreeSet::new(),
        released: BTreeSet::new(),
    };
    compiler.set_node(Labels::k8s([("role", "edge")]));
    let delta = world.update(&mut compiler, &nothing_changed, true);
    let [row] = delta.policies.as_slice() else { panic!("{delta:?}") };
    assert_eq!((row.subject, row.ingress_enforced, row.egress_enforced), (IdentityId::HOST, true, false));
    assert_eq!(row.entries.keys().map(|key| key.identity).collect::<Vec<_>>(), [CLIENT]);
    let of_host = |delta: &Delta| delta.endpoints.iter().find(|row| row.endpoint == HOST_ENDPOINT).cloned();
    assert_eq!(of_host(&delta).unwrap().policy, row.id);
    let id = row.id;
    // It outlives a full pass, follows its rule, and ends with the label.
    assert_eq!(world.update(&mut compiler, &Change::Everything, true), Delta::default());
    world.rules.1.upsert(RuleRow { ingress: None, egress: of_nodes.ingress.clone(), ..of_nodes.clone() });
    let changed = Change::Rows {
        rules: [of_nodes.key()].into(),
        groups: BTreeSet::new(),
        identities: BTreeSet::new(),
        endpoints: BTreeSet::new(),
        named_ports: BTreeSet::new(),
        released: BTreeSet::new(),
    };
    let delta = world.update(&mut compiler, &changed, true);
    assert!(delta.policies[0].egress_enforced && !delta.policies[0].ingress_enforced);
    compiler.set_node(Labels::k8s([("role", "core")]));
    let delta = world.update(&mut compiler, &nothing_changed, true);
    assert_eq!((delta.removed_policies.as_slice(), of_host(&delta).unwrap().policy), (&[id][..], 0));
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
    world.rules.1.remove(&key("deny"));
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
    let allow = |name: &str| rule("r", app("web"), Some(vec![block(vec![pods(app(name))], vec![])]), None);
    world.rules.1.upsert(allow("client"));
    world.update(&mut compiler, &Change::Everything, true);
    world.identities.1.remove(&(CLIENT, Source::Manifests));
    let gone = changed(Keys { identities: [CLIENT].into(), ..Keys::default() });
    assert_eq!(world.update(&mut compiler, &gone, false), Delta::default());
    let mut kept = compiler.clone();
    // A changed rule takes effect at once, whatever is pending.
    world.rules.1.upsert(allow("nobody"));
    assert!(world.update(&mut kept, &Change::Everything, false).policies[0].entries.is_empty());
    world.rules.1.upsert(allow("client"));
    assert!(world.update(&mut compiler, &Change::Everything, true).policies[0].entries.is_empty());
}

/// What changed, by key.
#[derive(Default)]
pub(super) struct Keys {
    pub(super) rules: BTreeSet<RuleKey>,
    pub(super) groups: BTreeSet<Arc<str>>,
    pub(super) identities: BTreeSet<IdentityId>,
    pub(super) endpoints: BTreeSet<u16>,
    pub(super) named_ports: BTreeSet<IdentityId>,
    pub(super) released: BTreeSet<Prefix>,
}

pub(super) fn changed(keys: Keys) -> Change {
    let Keys { rules, groups, identities, endpoints, named_ports, released } = keys;
    Change::Rows { rules, groups, identities, endpoints, named_ports, released }
}
