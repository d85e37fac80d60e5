use super::*;
use crate::rows::{AddressKind, NodeAddress};
use crate::selector::Requirement;
use tombolo_base::ids::{ClusterId, ClusterName, MaxClusters};

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
struct World {
    node: NodeRow,
    configs: Vec<ClusterConfigRow>,
    peer_configs: Vec<PeerConfigRow>,
    advertisements: Vec<AdvertisementRow>,
    overrides: Vec<OverrideRow>,
    services: Vec<AdvertisedService>,
}

fn peer(name: &str, address: &str) -> PeerIntent {
    PeerIntent {
        name: name.into(),
        address: Some(address.parse().unwrap()),
        zone: None,
        asn: 65100,
        auto_discovery: None,
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
            labels: map(&[("rack", "a")]),
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
            configs: &self.configs,
            peer_configs: &self.peer_configs,
            advertisements: &self.advertisements,
            overrides: &self.overrides,
            services: &self.services,
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
    assert_eq!(world.plan(), Plan::default());
    world.configs[0].node_selector = select(&[("rack", "a")]);
    let mut other = world.configs[0].clone();
    other.name = "a-first".into();
    other.instances[0].name = "other".into();
    world.configs.push(other);
    let plan = world.plan();
    assert!(plan.peers.iter().all(|row| row.instance.as_ref() == "other"));
    let condition = plan.conditions.first().unwrap();
    assert!(condition.text.contains("ConflictingClusterConfig") && condition.object.ends_with(" bgp"));
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
    check(&|w| first(w, &|p| p.peer_config = Some("gone".into())), 1, "MissingPeerConfigs");
    check(&|w| first(w, &|p| p.zone = Some("eth0".into())), 1, "link-local");
    check(
        &|w| first(w, &|p| (p.address, p.auto_discovery) = (None, Some("DefaultGateway".into()))),
        1,
        "autoDiscovery",
    );
    check(&|w| w.configs[0].instances[0].local_asn = None, 0, "no localASN");
    check(&|w| w.node.addresses.truncate(1), 0, "router id");
    check(&|w| w.peer_configs[0].auth_secret = Some("s".into()), 0, "MissingAuthSecret");
    check(&|w| w.peer_configs[0].families[0].family = None, 2, "is not served");
    check(
        &|w| w.advertisements[0].entries[0].kind = AdvertKind::Unsupported("Interface".into()),
        2,
        "type Interface",
    );
}
