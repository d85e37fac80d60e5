use super::*;
use crate::bgp::intent::{AdvertIntent, AdvertKind, Discovery, PeerIntent, ServiceAddress};
use crate::bgp::network::{Gateway, Interface};
use crate::bgp::{AdvertOrigin, Family, LimitAction, MaxPrefixes, Password, PeerMatch, PeerTuning};
use crate::rows::{AddressKind, NodeAddress};
use crate::selector::{LabelSelector, Requirement};
use tombolo_base::ids::{ClusterId, ClusterName, MaxClusters};
use tombolo_base::source::Source;

fn map(pairs: &[(&str, &str)]) -> BTreeMap<Arc<str>, Arc<str>> {
    pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
}

fn select(pairs: &[(&str, &str)]) -> LabelSelector {
    LabelSelector { labels: map(pairs), ..LabelSelector::default() }
}

fn addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// Everything that [`Inputs`] borrows, with a straight setting to vary.
#[derive(Clone, Debug)]
struct World {
    node: NodeRow,
    configs: Vec<ClusterConfigRow>,
    peer_configs: Vec<PeerConfigRow>,
    advertisements: Vec<AdvertisementRow>,
    overrides: Vec<OverrideRow>,
    policies: Vec<PeerPolicyRow>,
    pools: Vec<PodPoolRow>,
    secrets: Vec<SecretRow>,
    services: Vec<AdvertisedService>,
    network: Network,
}

fn peer(name: &str, address: &str) -> PeerIntent {
    PeerIntent {
        name: name.into(),
        address: Some(address.parse().unwrap()),
        zone: None,
        asn: 65100,
        discovery: None,
        peer_config: Some("tor".into()),
    }
}

fn entry(kind: AdvertKind, selector: Option<LabelSelector>) -> AdvertIntent {
    AdvertIntent {
        kind,
        selector,
        communities: BTreeSet::new(),
        large_communities: BTreeSet::new(),
        local_preference: None,
    }
}

fn of_services(kinds: &[ServiceAddress]) -> AdvertKind {
    AdvertKind::Service {
        addresses: kinds.iter().copied().collect(),
        aggregation_ipv4: None,
        aggregation_ipv6: None,
    }
}

fn world() -> World {
    let internal = |text: &str| NodeAddress { kind: AddressKind::Internal, ip: text.parse().unwrap() };
    let mut tor = PeerConfigRow::defaults(Source::Manifests, "tor".into());
    tor.graceful_restart_secs = Some(120);
    for family in &mut tor.families {
        family.advertisements = Some(select(&[("advertise", "bgp")]));
    }
    World {
        node: NodeRow {
            source: Source::Manifests,
            cluster: ClusterName::new("east").unwrap(),
            cluster_id: ClusterId::new(1, MaxClusters::C255).unwrap(),
            name: "east-n1".into(),
            addresses: vec![internal("fd00:20:11::2"), internal("172.20.11.2")],
            pod_cidrs: vec!["10.1.1.0/24".parse().unwrap(), "fd00:10:1:1::/64".parse().unwrap()],
            wireguard_key: None,
            encryption_key: 0,
            labels: map(&[("rack", "a")]).into(),
            ready: None,
            health: Default::default(),
        },
        configs: vec![ClusterConfigRow {
            source: Source::Manifests,
            name: "bgp".into(),
            node_selector: LabelSelector::default(),
            instances: vec![InstanceIntent {
                name: "main".into(),
                local_asn: Some(65111),
                local_port: Some(179),
                peers: vec![peer("tor-v6", "fd00:20:11::1"), peer("tor-v4", "172.20.11.1")],
            }],
        }],
        peer_configs: vec![tor],
        advertisements: vec![AdvertisementRow {
            source: Source::Manifests,
            name: "all".into(),
            labels: map(&[("advertise", "bgp")]),
            entries: vec![
                entry(AdvertKind::PodCidr, None),
                entry(of_services(&[ServiceAddress::LoadBalancerIP]), Some(LabelSelector::default())),
            ],
        }],
        overrides: vec![],
        policies: vec![],
        pools: vec![],
        secrets: vec![],
        network: Network::default(),
        services: vec![AdvertisedService {
            namespace: "shop".into(),
            name: "web".into(),
            labels: map(&[("app", "web")]),
            load_balancer_ips: addresses(&["203.0.113.1", "2001:db8:e::1"]),
            cluster_ips: addresses(&["10.101.0.1"]),
            external_ips: addresses(&["198.51.100.7"]),
            ..AdvertisedService::default()
        }],
    }
}

impl World {
    fn plan(&self) -> Plan {
        plan(&Inputs {
            node: &self.node,
            nodes: std::slice::from_ref(&self.node.labels),
            configs: &self.configs,
            peer_configs: &self.peer_configs,
            advertisements: &self.advertisements,
            overrides: &self.overrides,
            policies: &self.policies,
            pools: &self.pools,
            secrets: &self.secrets,
            secrets_namespace: "kube-system",
            services: &self.services,
            network: &self.network,
        })
    }

    fn to_v4_peer(&self) -> Vec<String> {
        let plan = self.plan();
        let mine = plan.adverts.iter().filter(|row| row.peer.as_ref() == "tor-v4");
        mine.map(|row| row.prefix.short()).collect()
    }

    fn service_entry(&mut self) -> &mut AdvertIntent {
        &mut self.advertisements[0].entries[1]
    }
}

#[test]
fn the_straight_setting_gives_both_sessions_and_both_families() {
    let plan = world().plan();
    let peers: Vec<_> = plan.peers.iter().map(|row| (row.name.as_ref(), row.address.to_string())).collect();
    assert_eq!(peers, [("tor-v4", "172.20.11.1".into()), ("tor-v6", "fd00:20:11::1".to_owned())]);
    let row = &plan.peers[0];
    assert_eq!((row.local_asn, row.asn, row.router_id.to_string()), (65111, 65100, "172.20.11.2".to_owned()));
    assert_eq!((row.graceful_restart_secs, row.families.len(), row.local_port), (Some(120), 2, Some(179)));
    let prefixes = world().to_v4_peer();
    assert_eq!(prefixes, ["10.1.1.0/24", "203.0.113.1", "2001:db8:e::1", "fd00:10:1:1::/64"]);
    assert!(plan.conditions.is_empty(), "{:?}", plan.conditions);
}

#[test]
fn nothing_is_advertised_without_a_matching_advertisement() {
    let mut world = world();
    world.peer_configs[0].families[1].advertisements = None;
    assert_eq!(world.to_v4_peer(), ["2001:db8:e::1", "fd00:10:1:1::/64"]);
    world.advertisements[0].labels = map(&[("advertise", "other")]);
    assert!(world.to_v4_peer().is_empty());
    assert_eq!(world.plan().peers.len(), 2);
}

#[test]
fn a_local_service_is_advertised_only_while_it_has_a_local_endpoint() {
    let mut world = world();
    world.services[0].external_local = true;
    assert_eq!(world.to_v4_peer(), ["10.1.1.0/24", "fd00:10:1:1::/64"]);
    world.services[0].local_ready = true;
    assert_eq!(world.to_v4_peer().len(), 4);
    // Cluster IPs look at the internal policy only.
    world.services[0] =
        AdvertisedService { external_local: true, local_ready: false, ..world.services[0].clone() };
    world.service_entry().kind = of_services(&[ServiceAddress::ClusterIP]);
    assert!(world.to_v4_peer().contains(&"10.101.0.1".to_owned()));
    world.services[0].internal_local = true;
    assert!(!world.to_v4_peer().contains(&"10.101.0.1".to_owned()));
}

#[test]
fn services_are_selected_by_labels_and_by_name() {
    let mut world = world();
    let mut with = |selector: Option<LabelSelector>| {
        world.service_entry().selector = selector;
        world.to_v4_peer().len() == 4
    };
    assert!(with(Some(select(&[("app", "web")]))));
    assert!(!with(Some(select(&[("app", "db")]))));
    assert!(with(Some(select(&[
        ("io.kubernetes.service.namespace", "shop"),
        ("io.kubernetes.service.name", "web")
    ]))));
    let not = Requirement::NotIn("app".into(), ["web".into()].into());
    assert!(!with(Some(LabelSelector { expressions: [not].into(), ..LabelSelector::default() })));
    assert!(!with(None));
}

#[test]
fn address_kinds_class_and_aggregation() {
    let mut world = world();
    world.service_entry().kind =
        of_services(&[ServiceAddress::LoadBalancerIP, ServiceAddress::ClusterIP, ServiceAddress::ExternalIP]);
    assert_eq!(world.to_v4_peer().len(), 6);
    world.services[0].load_balancer_class = Some("other.example/lb".into());
    assert_eq!(world.to_v4_peer().len(), 4);
    world.services[0].load_balancer_class = Some(LOAD_BALANCER_CLASS.into());
    world.service_entry().kind = AdvertKind::Service {
        addresses: [ServiceAddress::LoadBalancerIP].into(),
        aggregation_ipv4: Some(25),
        aggregation_ipv6: Some(112),
    };
    assert_eq!(world.to_v4_peer(), ["10.1.1.0/24", "203.0.113.0/25", "2001:db8:e::/112", "fd00:10:1:1::/64"]);
    world.services[0].external_local = true;
    world.services[0].local_ready = true;
    assert!(world.to_v4_peer().contains(&"203.0.113.1".to_owned()));
}

#[test]
fn overlapping_advertisements_unite_in_any_order() {
    let mut world = world();
    let mut second = world.advertisements[0].clone();
    second.name = "more".into();
    world.advertisements[0].entries[0].communities = [1].into();
    world.advertisements[0].entries[0].local_preference = Some(100);
    second.entries[0].communities = [2].into();
    second.entries[0].local_preference = Some(300);
    world.advertisements.push(second);
    let first = world.plan();
    let row = first.adverts.iter().find(|row| row.origin == AdvertOrigin::PodCidr).unwrap();
    // The peer is another AS: no local preference is sent to it.
    assert_eq!((row.communities.clone(), row.local_preference), ([1, 2].into(), None));
    world.configs[0].instances[0].local_asn = Some(65100);
    assert_eq!(world.plan().adverts[0].local_preference, Some(300));
    let straight = world.plan();
    world.advertisements.reverse();
    world.peer_configs.reverse();
    world.configs[0].instances[0].peers.reverse();
    assert_eq!(world.plan(), straight);
}

#[test]
fn node_selectors_and_conflicts() {
    let mut world = world();
    world.configs[0].node_selector = select(&[("rack", "b")]);
    let plan = world.plan();
    assert!(plan.peers.is_empty() && plan.adverts.is_empty());
    assert_eq!(plan.conditions.first().unwrap().about, ConditionType::NoMatchingNode);
    world.configs[0].node_selector = select(&[("rack", "a")]);
    let mut other = world.configs[0].clone();
    other.name = "a-first".into();
    other.instances[0].name = "other".into();
    world.configs.push(other);
    let plan = world.plan();
    assert!(plan.peers.iter().all(|row| row.instance.as_ref() == "other"));
    let condition = plan.conditions.first().unwrap();
    assert_eq!((condition.about, &*condition.name), (ConditionType::ConflictingClusterConfig, "bgp"));
}

#[test]
fn overrides_change_this_node_only() {
    let mut world = world();
    let change = InstanceOverride {
        name: "main".into(),
        router_id: Some(Ipv4Addr::new(9, 9, 9, 9)),
        local_port: Some(1790),
        local_asn: Some(64999),
        local_addresses: [("tor-v4".into(), "172.20.11.99".parse().unwrap())].into(),
    };
    world.overrides =
        vec![OverrideRow { source: Source::Manifests, name: "east-n2".into(), instances: vec![change] }];
    assert_eq!(world.plan().peers[0].local_asn, 65111);
    world.overrides[0].name = "east-n1".into();
    let row = &world.plan().peers[0];
    assert_eq!(
        (row.local_asn, row.local_port, row.router_id),
        (64999, Some(1790), Ipv4Addr::new(9, 9, 9, 9))
    );
    assert_eq!(row.local_address, Some("172.20.11.99".parse().unwrap()));
    assert_eq!(world.plan().peers[1].local_address, None);
}

#[test]
fn what_cannot_be_served_is_told_and_costs_itself_only() {
    let check = |change: &dyn Fn(&mut World), peers: usize, text: &str| {
        let mut world = world();
        change(&mut world);
        let plan = world.plan();
        assert_eq!(plan.peers.len(), peers, "{text}");
        assert!(plan.conditions.iter().any(|c| c.text.contains(text)), "{text}: {:?}", plan.conditions);
        assert!(plan.adverts.iter().all(|row| plan.peers.iter().any(|peer| peer.name == row.peer)), "{text}");
    };
    let first = |world: &mut World, change: &dyn Fn(&mut PeerIntent)| {
        change(&mut world.configs[0].instances[0].peers[0])
    };
    check(&|w| first(w, &|p| p.peer_config = Some("gone".into())), 1, "there is no CiliumBGPPeerConfig gone");
    check(&|w| first(w, &|p| p.address = Some("fe80::1".parse().unwrap())), 1, "link-local");
    check(
        &|w| first(w, &|p| (p.address, p.discovery) = (None, Some(Discovery::DefaultGateway { ipv4: true }))),
        1,
        "no IPv4 default route",
    );
    check(&|w| first(w, &|p| p.address = None), 1, "no peerAddress");
    check(&|w| w.configs[0].instances[0].local_asn = None, 0, "no localASN");
    check(&|w| w.node.addresses.truncate(1), 0, "router id");
    check(&|w| w.peer_configs[0].auth_secret = Some("s".into()), 2, "there is no Secret kube-system/s");
    check(&|w| w.peer_configs[0].source_interface = Some("eth9".into()), 0, "sourceInterface eth9");
    check(&|w| w.peer_configs[0].families[0].family = None, 2, "is not served");
    let interface = AdvertKind::Interface { name: "lo9".into() };
    check(&|w| w.advertisements[0].entries[0].kind = interface.clone(), 2, "interface lo9");
}

fn gateway(address: &str, interface: &str, metric: u32) -> Gateway {
    Gateway { address: address.parse().unwrap(), interface: interface.into(), metric }
}

#[test]
fn a_discovered_peer_follows_the_best_default_route_and_both_tors_of_an_ecmp_one() {
    let mut world = world();
    let discovered = |name: &str, ipv4| PeerIntent {
        address: None,
        discovery: Some(Discovery::DefaultGateway { ipv4 }),
        ..peer(name, "10.9.9.9")
    };
    world.configs[0].instances[0].peers = vec![discovered("gw4", true), discovered("gw6", false)];
    world.network.gateways = [
        gateway("172.20.11.1", "eth1", 0),
        gateway("10.0.0.1", "eth0", 100),
        gateway("fe80::1", "eth1", 1024),
    ]
    .into();
    let of = |world: &World| -> Vec<String> {
        world
            .plan()
            .peers
            .iter()
            .map(|p| format!("{} {} {:?}", p.name, p.address, p.interface.as_deref()))
            .collect()
    };
    let gw6 = "gw6@fe80::1%eth1 fe80::1 Some(\"eth1\")";
    assert_eq!(of(&world), ["gw4@172.20.11.1 172.20.11.1 None", gw6]);
    assert!(world.plan().peers.iter().all(|row| row.peer.starts_with("gw") && !row.peer.contains('@')));
    // A second next hop of the same route: a second session, and the first keeps its name.
    world.network.gateways.insert(gateway("172.20.12.1", "eth2", 0));
    assert_eq!(of(&world)[..2], ["gw4@172.20.11.1 172.20.11.1 None", "gw4@172.20.12.1 172.20.12.1 None"]);
    assert!(world.plan().adverts.iter().any(|row| row.peer.as_ref() == "gw4@172.20.12.1"));
    // The route goes: the next best one is taken.
    world.network.gateways.retain(|gateway| gateway.metric != 0);
    assert_eq!(of(&world), ["gw4@10.0.0.1 10.0.0.1 None", gw6]);
    // An address that is written wins.
    world.configs[0].instances[0].peers[0].address = Some("10.8.8.8".parse().unwrap());
    assert_eq!(of(&world)[0], "gw4 10.8.8.8 None");
}

#[test]
fn a_password_comes_from_the_secrets_namespace_only() {
    let mut world = world();
    let secret = |namespace: &str, password: Option<&str>| SecretRow {
        source: Source::Manifests,
        namespace: namespace.into(),
        name: "tor".into(),
        password: password.and_then(Password::new),
    };
    world.peer_configs[0].auth_secret = Some("tor".into());
    world.secrets = vec![secret("default", Some("no"))];
    let about = |plan: &Plan| plan.conditions.iter().map(|c| (c.kind, c.about)).collect::<Vec<_>>();
    let missing = [("CiliumBGPPeerConfig", ConditionType::MissingAuthSecret); 2];
    let plan = world.plan();
    assert_eq!(about(&plan), missing, "both sessions ask for it");
    assert!(plan.peers.iter().all(|row| row.password.is_none()), "as an empty password");
    world.secrets.push(secret("kube-system", None));
    assert_eq!(about(&world.plan()), missing);
    world.secrets.push(SecretRow { name: "other".into(), ..secret("kube-system", Some("x")) });
    world.secrets[1] = secret("kube-system", Some("hunter2"));
    let plan = world.plan();
    assert!(plan.conditions.is_empty(), "{:?}", plan.conditions);
    assert!(plan.peers.iter().all(|row| row.password.as_ref().map(Password::expose) == Some("hunter2")));
    let shown = format!("{plan:?} {}", serde_json::to_string(&plan.peers).unwrap());
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn the_source_interface_gives_the_local_address_and_an_override_wins() {
    let mut world = world();
    world.peer_configs[0].source_interface = Some("lo".into());
    let addresses = addresses(&["127.0.0.1", "10.255.0.1", "fe80::9", "fd00:ff::1"]);
    world.network.interfaces.insert("lo".into(), Interface { addresses, running: true });
    let locals = |world: &World| -> Vec<_> {
        world
            .plan()
            .peers
            .iter()
            .map(|row| row.local_address.map(|ip| ip.to_string()).unwrap_or_default())
            .collect()
    };
    assert_eq!(locals(&world), ["10.255.0.1", "fd00:ff::1"]);
    world.overrides = vec![OverrideRow {
        source: Source::Manifests,
        name: "east-n1".into(),
        instances: vec![InstanceOverride {
            name: "main".into(),
            router_id: None,
            local_port: None,
            local_asn: None,
            local_addresses: [("tor-v4".into(), "172.20.11.99".parse().unwrap())].into(),
        }],
    }];
    assert_eq!(locals(&world), ["172.20.11.99", "fd00:ff::1"]);
    world.overrides[0].instances[0].local_addresses = [("tor-v4".into(), "fd00::9".parse().unwrap())].into();
    let plan = world.plan();
    assert_eq!(plan.peers.len(), 1);
    assert_eq!(plan.conditions.first().unwrap().kind, "CiliumBGPNodeConfigOverride");
}

#[test]
fn a_node_without_ipv4_takes_its_router_id_from_its_device() {
    let mut world = world();
    world.node.addresses.truncate(1);
    world.network.fallback_router_id = Some(Ipv4Addr::new(1, 2, 3, 4));
    assert_eq!(world.plan().peers[0].router_id, Ipv4Addr::new(1, 2, 3, 4));
}

#[test]
fn link_local_peers_are_served_with_their_interface() {
    let mut world = world();
    let first = &mut world.configs[0].instances[0].peers[0];
    (first.address, first.zone) = (Some("fe80::1".parse().unwrap()), Some("eth1".into()));
    let plan = world.plan();
    assert_eq!((plan.peers[1].interface.as_deref(), plan.conditions.len()), (Some("eth1"), 0));
}

#[test]
fn pools_are_advertised_as_far_as_this_node_has_them() {
    let mut world = world();
    let pool = |name: &str, cidrs: &[&str]| PodPoolRow {
        source: Source::Manifests,
        name: name.into(),
        labels: map(&[("pool", name)]),
        cidrs: cidrs.iter().map(|text| text.parse().unwrap()).collect(),
    };
    world.pools = vec![pool("blue", &["10.1.0.0/16", "fd00:10:2::/48"]), pool("red", &["fd00:10:1::/48"])];
    world.advertisements[0].entries = vec![entry(AdvertKind::PodIpPool, Some(select(&[("pool", "blue")])))];
    assert_eq!(world.to_v4_peer(), ["10.1.1.0/24"]);
    let selector = |world: &mut World, selector| world.advertisements[0].entries[0].selector = selector;
    selector(&mut world, Some(select(&[("io.cilium.podippool.name", "red")])));
    assert_eq!(world.to_v4_peer(), ["fd00:10:1:1::/64"]);
    selector(&mut world, Some(LabelSelector::default()));
    assert_eq!(world.to_v4_peer(), ["10.1.1.0/24", "fd00:10:1:1::/64"]);
    selector(&mut world, None);
    assert!(world.to_v4_peer().is_empty(), "no selector selects nothing");
}

#[test]
fn interface_addresses_are_advertised_one_by_one_while_it_is_up() {
    let mut world = world();
    let all = ["127.0.0.1", "::1", "10.255.0.1", "fe80::9", "fd00:ff::1", "169.254.0.5", "::ffff:10.0.0.1"];
    world.network.interfaces.insert("lo".into(), Interface { addresses: addresses(&all), running: true });
    world.advertisements[0].entries = vec![entry(AdvertKind::Interface { name: "lo".into() }, None)];
    assert_eq!(world.to_v4_peer(), ["10.255.0.1", "fd00:ff::1"]);
    world.network.interfaces.get_mut("lo").unwrap().running = false;
    assert!(world.to_v4_peer().is_empty() && world.plan().conditions.is_empty());
}

#[test]
fn an_unnumbered_peer_is_its_interface() {
    let mut world = world();
    let first = &mut world.configs[0].instances[0].peers[0];
    (first.address, first.discovery) = (None, Some(Discovery::Unnumbered { interface: "eth1".into() }));
    let plan = world.plan();
    let row = plan.peers.iter().find(|row| row.name.as_ref() == "tor-v6").unwrap();
    assert!(row.unnumbered && row.address.is_unspecified() && row.local_address.is_none());
    assert_eq!((row.interface.as_deref(), plan.conditions.len()), (Some("eth1"), 0));
}

#[test]
fn a_peer_policy_tunes_the_peers_it_names_and_the_first_by_name_counts() {
    let mut world = world();
    let policy = |name: &str, one: PeerMatch, tuning: PeerTuning| PeerPolicyRow {
        source: Source::Manifests,
        name: name.into(),
        node_selector: LabelSelector::default(),
        peers: vec![one],
        tuning,
    };
    let none = PeerMatch { peer_config: None, instance: None, peer: None };
    let most = |max_prefixes, max_paths| PeerTuning {
        max_prefixes: Some(MaxPrefixes {
            limit: max_prefixes,
            warning_percent: 75,
            action: LimitAction::Stop,
        }),
        max_paths,
        ..PeerTuning::default()
    };
    world.policies = vec![
        policy("b", PeerMatch { peer_config: Some("tor".into()), ..none.clone() }, most(20, Some(4))),
        policy("a", PeerMatch { peer: Some("tor-v4".into()), ..none.clone() }, most(10, None)),
        policy("c", PeerMatch { peer_config: Some("other".into()), ..none }, most(30, Some(1))),
    ];
    let plan = world.plan();
    let of = |row: &PeerRow| {
        let limit = row.tuning.max_prefixes.map(|most| most.limit);
        (row.tuning.policy.clone().unwrap().to_string(), limit, row.tuning.max_paths)
    };
    assert_eq!(of(&plan.peers[0]), ("a".into(), Some(10), Some(4)), "one table: the least number of paths");
    assert_eq!(of(&plan.peers[1]), ("b".into(), Some(20), Some(4)));
    let conflict = plan.conditions.first().unwrap();
    assert_eq!((conflict.kind, &*conflict.name), ("BGPPeerPolicy", "b"));
    world.policies.truncate(1);
    world.policies[0].node_selector = select(&[("rack", "z")]);
    assert!(world.plan().peers.iter().all(|row| row.tuning == PeerTuning::default()), "another node's");
}

mod properties {
    use super::*;
    use proptest::prelude::*;

    /// A world out of small numbers: what is selected, policies of traffic, families, discovery, gateways.
    fn any_world() -> impl Strategy<Value = World> {
        let services = proptest::collection::vec((any::<u8>(), 0_u8..4, 0_u8..4), 0..5);
        let gateways = proptest::collection::vec((0_u8..6, 0_u32..3, any::<bool>()), 0..5);
        (services, gateways, any::<u16>()).prop_map(|(services, gateways, bits)| {
            let mut world = world();
            world.services =
                services.iter().enumerate().map(|(n, (bits, a, b))| service(n, *bits, *a, *b)).collect();
            world.network.gateways = gateways
                .iter()
                .map(|(n, metric, ipv4)| {
                    let address = if *ipv4 { format!("10.0.0.{n}") } else { format!("fe80::{n}") };
                    gateway(&address, "eth1", *metric)
                })
                .collect();
            let has = |bit: u32| bits & (1 << bit) != 0;
            let instance = &mut world.configs[0].instances[0];
            for (position, ipv4) in [(0, false), (1, true)] {
                if has(position) {
                    let peer = &mut instance.peers[usize::try_from(position).unwrap()];
                    (peer.address, peer.discovery) = (None, Some(Discovery::DefaultGateway { ipv4 }));
                }
            }
            instance.local_asn = if has(2) { Some(65100) } else { Some(65111) };
            if has(3) {
                world.peer_configs[0].families[0].advertisements = None;
            }
            let service = &mut world.advertisements[0].entries[1];
            service.selector = if has(4) { None } else { service.selector.clone() };
            service.local_preference = has(5).then_some(200);
            service.communities = [7].into();
            let kinds =
                [ServiceAddress::LoadBalancerIP, ServiceAddress::ClusterIP, ServiceAddress::ExternalIP];
            let kinds: Vec<_> =
                (6..9).zip(kinds).filter(|(bit, _)| has(*bit)).map(|(_, kind)| kind).collect();
            service.kind = AdvertKind::Service {
                addresses: kinds.into_iter().collect(),
                aggregation_ipv4: has(9).then_some(24),
                aggregation_ipv6: has(10).then_some(64),
            };
            let mut second = world.advertisements[0].clone();
            second.name = "second".into();
            second.entries[1].communities = [9].into();
            second.entries[1].local_preference = has(11).then_some(300);
            if has(12) {
                world.advertisements.push(second);
            }
            world
        })
    }

    fn service(n: usize, bits: u8, a: u8, b: u8) -> AdvertisedService {
        AdvertisedService {
            namespace: "shop".into(),
            name: format!("s{n}").into(),
            load_balancer_ips: addresses(&[&format!("203.0.113.{a}"), &format!("2001:db8:e::{a}")]),
            cluster_ips: addresses(&[&format!("10.101.0.{b}")]),
            external_ips: addresses(&[&format!("198.51.100.{b}")]),
            load_balancer_class: (bits & 8 != 0).then(|| "other.example/lb".into()),
            external_local: bits & 1 != 0,
            internal_local: bits & 2 != 0,
            local_ready: bits & 4 != 0,
            ..AdvertisedService::default()
        }
    }

    /// Whether a service has a reason to be announced here by an address of a kind.
    fn reason(service: &AdvertisedService, kind: ServiceAddress) -> bool {
        let local = match kind {
            ServiceAddress::ClusterIP => service.internal_local,
            _ => service.external_local,
        };
        let foreign = kind == ServiceAddress::LoadBalancerIP && service.load_balancer_class.is_some();
        !foreign && (!local || service.local_ready)
    }

    proptest! {
        /// The order in which objects come does not show, rows are unique, and every advert is of a session's family.
        #[test]
        fn order_does_not_show_and_rows_fit_each_other(world in any_world()) {
            let plan = world.plan();
            let mut other = world;
            other.services.reverse();
            other.advertisements.reverse();
            other.configs[0].instances[0].peers.reverse();
            prop_assert_eq!(&other.plan(), &plan);
            let names: BTreeSet<_> = plan.peers.iter().map(|row| (&row.instance, &row.name)).collect();
            prop_assert_eq!(names.len(), plan.peers.len());
            let keys: BTreeSet<_> = plan.adverts.iter().map(|row| (&row.instance, &row.peer, row.prefix)).collect();
            prop_assert_eq!(keys.len(), plan.adverts.len());
            for advert in &plan.adverts {
                let peer = plan.peers.iter().find(|row| row.name == advert.peer);
                let family = if advert.prefix.is_ipv4() { Family::Ipv4Unicast } else { Family::Ipv6Unicast };
                prop_assert!(peer.is_some_and(|row| row.families.contains(&family)), "{:?}", advert);
                let internal = peer.is_some_and(|row| row.asn == row.local_asn);
                prop_assert!(internal || advert.local_preference.is_none(), "{:?}", advert);
            }
        }

        /// A host route of a service address is announced if and only if a selected service has a reason for it here.
        #[test]
        fn a_service_address_is_announced_exactly_while_there_is_a_reason(world in any_world()) {
            let mut world = world;
            world.peer_configs[0].families.iter_mut().for_each(|f| f.advertisements = Some(LabelSelector::default()));
            let entry = world.service_entry().clone();
            let AdvertKind::Service { addresses: kinds, .. } = &entry.kind else { panic!() };
            world.service_entry().kind = of_services(&kinds.iter().copied().collect::<Vec<_>>());
            world.advertisements.truncate(1);
            let mut expected = BTreeSet::new();
            for service in world.services.iter().filter(|_| entry.selector.is_some()) {
                for kind in kinds.iter().filter(|kind| reason(service, **kind)) {
                    expected.extend(match kind {
                        ServiceAddress::LoadBalancerIP => service.load_balancer_ips.clone(),
                        ServiceAddress::ClusterIP => service.cluster_ips.clone(),
                        ServiceAddress::ExternalIP => service.external_ips.clone(),
                    });
                }
            }
            let plan = world.plan();
            for peer in &plan.peers {
                let told = plan.adverts.iter().filter(|row| row.peer == peer.name && row.origin != AdvertOrigin::PodCidr);
                let told: BTreeSet<IpAddr> = told.map(|row| row.prefix.address()).collect();
                prop_assert_eq!(&told, &expected);
            }
        }
    }
}
