//! Every field of the BGP kinds: defaults, ranges, conditions between fields.

use super::tests::{complaint, only, read};
use crate::object::Object;
use std::collections::BTreeSet;
use tombolo_topology::bgp::intent::{AdvertKind, Discovery};
use tombolo_topology::bgp::{LimitAction, Password, PolicyDocument};

fn manifest(kind: &str, spec: &str) -> String {
    let api = if kind == "BGPPeerPolicy" { "tombolo.io/v1alpha1" } else { "cilium.io/v2" };
    format!("apiVersion: {api}\nkind: {kind}\nmetadata: {{name: x}}\nspec: {spec}\n")
}

fn refused(kind: &str, spec: &str, path: &str) {
    let text = complaint(&manifest(kind, spec));
    let found = text.split_once(' ').and_then(|(_, rest)| rest.split_once(": ")).map(|(path, _)| path);
    assert_eq!(found, Some(path), "{spec}: {text}");
}

fn accepted(kind: &str, spec: &str) -> Object {
    only(&manifest(kind, spec))
}

#[test]
fn cluster_configs_are_bounded() {
    const KIND: &str = "CiliumBGPClusterConfig";
    let instance = |rest: &str| format!("{{bgpInstances: [{{name: i, {rest}}}]}}");
    let peer = |rest: &str| instance(&format!("peers: [{{name: p, {rest}}}]"));
    let at = |key: &str| format!("spec.bgpInstances[0].{key}");
    for (spec, path) in [
        (instance("localASN: 0"), at("localASN")),
        (instance("localASN: 4294967296"), at("localASN")),
        (instance("localPort: 0"), at("localPort")),
        (instance("localPort: 65536"), at("localPort")),
        (peer("peerASN: -1, peerAddress: 10.0.0.1"), at("peers[0].peerASN")),
        (peer("peerASN: 4294967296, peerAddress: 10.0.0.1"), at("peers[0].peerASN")),
        (peer("peerASN: 1"), at("peers[0].peerAddress")),
        (peer("peerAddress: tor.example"), at("peers[0].peerAddress")),
        (peer("peerAddress: 0.0.0.0"), at("peers[0].peerAddress")),
        (peer("peerAddress: 'ff02::1'"), at("peers[0].peerAddress")),
        (peer("peerAddress: '10.0.0.1%eth0'"), at("peers[0].peerAddress")),
        (peer("peerAddress: 'fe80::1%'"), at("peers[0].peerAddress")),
        (peer("peerAddress: 'fe80::1%interface-too-long'"), at("peers[0].peerAddress")),
        (peer("autoDiscovery: {mode: Magic}"), at("peers[0].autoDiscovery.mode")),
        (peer("autoDiscovery: {mode: DefaultGateway}"), at("peers[0].autoDiscovery")),
        (
            peer("autoDiscovery: {mode: DefaultGateway, unnumbered: {interface: eth1}}"),
            at("peers[0].autoDiscovery"),
        ),
        (
            peer("autoDiscovery: {mode: DefaultGateway, defaultGateway: {addressFamily: IPv4}}"),
            at("peers[0].autoDiscovery.defaultGateway.addressFamily"),
        ),
        (peer("autoDiscovery: {mode: Unnumbered}"), at("peers[0].autoDiscovery")),
        (
            peer("autoDiscovery: {mode: Unnumbered, unnumbered: {interface: ''}}"),
            at("peers[0].autoDiscovery.unnumbered.interface"),
        ),
        (peer("peerAddress: 10.0.0.1, peerConfigRef: {name: ''}"), at("peers[0].peerConfigRef.name")),
        ("{bgpInstances: [{name: ''}]}".to_owned(), at("name")),
        (format!("{{bgpInstances: [{{name: {}}}]}}", "n".repeat(256)), at("name")),
        ("{bgpInstances: [{name: i}, {name: i}]}".to_owned(), "spec.bgpInstances[1].name".to_owned()),
        (
            instance("peers: [{name: p, peerAddress: 10.0.0.1}, {name: p, peerAddress: 10.0.0.2}]"),
            at("peers[1].name"),
        ),
        (
            format!(
                "{{bgpInstances: [{}]}}",
                (0..17).map(|n| format!("{{name: i{n}}}")).collect::<Vec<_>>().join(",")
            ),
            "spec.bgpInstances".to_owned(),
        ),
    ] {
        refused(KIND, &spec, &path);
    }
    let Object::ClusterConfig(row) = accepted(
        KIND,
        "{bgpInstances: [{name: i, localASN: 4294967295, localPort: 65535, peers: [\
         {name: a, peerAddress: 'fe80::1%eth1', peerASN: 4294967295}, \
         {name: b, autoDiscovery: {mode: DefaultGateway, defaultGateway: {addressFamily: ipv6}}}, \
         {name: c, autoDiscovery: {mode: Unnumbered, unnumbered: {interface: eth2}}}]}]}",
    ) else {
        panic!()
    };
    let peers = &row.instances[0].peers;
    assert!(row.node_selector.is_empty(), "none selects all nodes");
    assert_eq!((peers[0].zone.as_deref(), peers[1].asn), (Some("eth1"), 0));
    assert_eq!(peers[1].discovery, Some(Discovery::DefaultGateway { ipv4: false }));
    assert_eq!(peers[2].discovery, Some(Discovery::Unnumbered { interface: "eth2".into() }));
}

#[test]
fn peer_configs_have_the_apis_defaults_and_ranges() {
    const KIND: &str = "CiliumBGPPeerConfig";
    for (spec, path) in [
        ("{transport: {peerPort: 0}}", "spec.transport.peerPort"),
        ("{transport: {sourceInterface: 'a/b'}}", "spec.transport.sourceInterface"),
        ("{timers: {connectRetryTimeSeconds: 0}}", "spec.timers.connectRetryTimeSeconds"),
        ("{timers: {connectRetryTimeSeconds: 2147483648}}", "spec.timers.connectRetryTimeSeconds"),
        ("{timers: {holdTimeSeconds: 65536}}", "spec.timers.holdTimeSeconds"),
        ("{timers: {keepAliveTimeSeconds: 0}}", "spec.timers.keepAliveTimeSeconds"),
        ("{timers: {holdTimeSeconds: 9, keepAliveTimeSeconds: 10}}", "spec.timers.keepAliveTimeSeconds"),
        // The default of 30 s is longer than this hold time.
        ("{timers: {holdTimeSeconds: 9}}", "spec.timers.keepAliveTimeSeconds"),
        (
            "{gracefulRestart: {enabled: true, restartTimeSeconds: 4096}}",
            "spec.gracefulRestart.restartTimeSeconds",
        ),
        (
            "{gracefulRestart: {enabled: true, restartTimeSeconds: 0}}",
            "spec.gracefulRestart.restartTimeSeconds",
        ),
        ("{ebgpMultihop: 0}", "spec.ebgpMultihop"),
        ("{ebgpMultihop: 256}", "spec.ebgpMultihop"),
        ("{families: [{afi: ipv5, safi: unicast}]}", "spec.families[0].afi"),
        ("{families: [{afi: ipv4, safi: anycast}]}", "spec.families[0].safi"),
    ] {
        refused(KIND, spec, path);
    }
    let Object::PeerConfig(row) = accepted(KIND, "{}") else { panic!() };
    assert_eq!((row.peer_port, row.ebgp_multihop, row.graceful_restart_secs), (179, 1, None));
    let families: Vec<_> =
        row.families.iter().map(|family| (&*family.text, &family.advertisements)).collect();
    assert_eq!(families, [("ipv6/unicast", &None), ("ipv4/unicast", &None)]);
}

#[test]
fn every_advertisement_type_with_its_blocks() {
    const KIND: &str = "CiliumBGPAdvertisement";
    let one = |entry: &str| format!("{{advertisements: [{{{entry}}}]}}");
    let attributes = |text: &str| one(&format!("advertisementType: PodCIDR, attributes: {{{text}}}"));
    let at = |key: &str| format!("spec.advertisements[0].{key}");
    let service = "advertisementType: Service, service:";
    for (spec, path) in [
        (one("advertisementType: Everything"), at("advertisementType")),
        (one("advertisementType: PodCIDR, selector: {}"), at("selector")),
        (one("advertisementType: Interface, interface: {name: lo}, selector: {}"), at("selector")),
        (one("advertisementType: Interface"), at("interface")),
        (one("advertisementType: Interface, interface: {name: ''}"), at("interface.name")),
        (one("advertisementType: Service"), at("service.addresses")),
        (one(&format!("{service} {{addresses: []}}")), at("service.addresses")),
        (one(&format!("{service} {{addresses: [PodIP]}}")), at("service.addresses[0]")),
        (
            one(&format!("{service} {{addresses: [ClusterIP], aggregationLengthIPv4: 32}}")),
            at("service.aggregationLengthIPv4"),
        ),
        (
            one(&format!("{service} {{addresses: [ClusterIP], aggregationLengthIPv6: 128}}")),
            at("service.aggregationLengthIPv6"),
        ),
        (attributes("localPreference: -1"), at("attributes.localPreference")),
        (attributes("communities: {standard: ['65536:1']}"), at("attributes.communities.standard[0]")),
        (attributes("communities: {wellKnown: [no-such]}"), at("attributes.communities.wellKnown[0]")),
        (attributes("communities: {large: ['1:2']}"), at("attributes.communities.large[0]")),
    ] {
        refused(KIND, &spec, &path);
    }
    let Object::Advertisement(row) = accepted(
        KIND,
        "{advertisements: [{advertisementType: CiliumPodIPPool, selector: {matchLabels: {a: b}}}, \
         {advertisementType: Interface, interface: {name: lo}}, {advertisementType: Service, \
         service: {addresses: [ExternalIP], aggregationLengthIPv4: 0, aggregationLengthIPv6: 127}}]}",
    ) else {
        panic!()
    };
    assert_eq!((&row.entries[0].kind, row.entries[0].selector.is_some()), (&AdvertKind::PodIpPool, true));
    assert_eq!(row.entries[1].kind, AdvertKind::Interface { name: "lo".into() });
    assert!(row.entries[2].selector.is_none());
}

#[test]
fn overrides_are_checked() {
    const KIND: &str = "CiliumBGPNodeConfigOverride";
    let instance = |rest: &str| format!("{{bgpInstances: [{{name: i, {rest}}}]}}");
    let at = |key: &str| format!("spec.bgpInstances[0].{key}");
    for (rest, path) in [
        ("routerID: 0.0.0.0", "routerID"),
        ("routerID: '::1'", "routerID"),
        ("localPort: 0", "localPort"),
        ("localASN: 0", "localASN"),
        ("peers: [{name: p, localAddress: here}]", "peers[0].localAddress"),
    ] {
        refused(KIND, &instance(rest), &at(path));
    }
    // The port of a peer is deprecated there and has no effect, here neither.
    let Object::Override(row) = accepted(KIND, &instance("peers: [{name: p, localPort: 1790}]")) else {
        panic!()
    };
    assert!(row.instances[0].local_addresses.is_empty());
}

#[test]
fn a_secret_gives_its_password_and_no_message_says_it() {
    let text = |rest: &str| {
        format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: tor, namespace: kube-system}}\n{rest}\n")
    };
    let password = |rest: &str| match only(&text(rest)) {
        Object::Secret(row) => row.password.as_ref().map(|p| Password::expose(p).to_owned()),
        other => panic!("{other:?}"),
    };
    assert_eq!(password("data: {password: aHVudGVyMg==}").as_deref(), Some("hunter2"));
    assert_eq!(
        password("stringData: {password: hunter3}\ndata: {password: aHVudGVyMg==}").as_deref(),
        Some("hunter3")
    );
    assert_eq!(password("data: {other: aHVudGVyMg==}"), None);
    assert_eq!(password("type: Opaque"), None);
    for rest in
        ["data: {password: hunter2}", "stringData: {password: [hunter2]}", "stringData: {password: ''}"]
    {
        let parsed = read(&text(rest));
        assert_eq!((parsed.objects.len(), parsed.problems.len()), (0, 1), "{rest}");
        assert!(!format!("{:?}", parsed.problems).contains("hunter2"), "{:?}", parsed.problems);
    }
}

#[test]
fn pod_pools_are_read_and_their_families_kept_apart() {
    const KIND: &str = "CiliumPodIPPool";
    refused(KIND, "{ipv4: {cidrs: ['fd00::/64'], maskSize: 24}}", "spec.ipv4.cidrs[0]");
    refused(KIND, "{ipv4: {cidrs: [10.0.0.0/8], maskSize: 33}}", "spec.ipv4.maskSize");
    refused(KIND, "{ipv6: {cidrs: [], maskSize: 64}}", "spec.ipv6.cidrs");
    let Object::PodPool(row) = accepted(
        KIND,
        "{ipv4: {cidrs: [10.1.0.0/16], maskSize: 24}, ipv6: {cidrs: ['fd00:10::/48'], maskSize: 64}}",
    ) else {
        panic!()
    };
    let cidrs: BTreeSet<String> = row.cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(cidrs, ["10.1.0.0/16".to_owned(), "fd00:10::/48".to_owned()].into());
}

#[test]
fn a_peer_policy_takes_only_what_works() {
    const KIND: &str = "BGPPeerPolicy";
    let with = |rest: &str| format!("{{peers: [{{peer: p}}], {rest}}}");
    for (spec, path) in [
        ("{peers: []}".to_owned(), "spec.peers"),
        ("{peers: [{peerConfigRef: {name: ''}}]}".to_owned(), "spec.peers[0]"),
        (with("bfd: {detectMultiplier: 0}"), "spec.bfd.detectMultiplier"),
        (with("bfd: {transmitIntervalMilliseconds: 0}"), "spec.bfd.transmitIntervalMilliseconds"),
        (with("bfd: {echoReceiveIntervalMilliseconds: -1}"), "spec.bfd.echoReceiveIntervalMilliseconds"),
        (with("maxPrefixes: {limit: 0}"), "spec.maxPrefixes.limit"),
        (with("maxPrefixes: {limit: 1, action: Explode}"), "spec.maxPrefixes.action"),
        (with("maxPrefixes: {limit: 1, warningPercent: 101}"), "spec.maxPrefixes.warningPercent"),
        (with("maxPrefixes: {limit: 1, restartSeconds: 5}"), "spec.maxPrefixes.restartSeconds"),
        (with("addPath: {send: 256}"), "spec.addPath.send"),
        (
            with("longLivedGracefulRestart: {staleTimeSeconds: 16777216}"),
            "spec.longLivedGracefulRestart.staleTimeSeconds",
        ),
        (with("multipath: {maxPaths: 257}"), "spec.multipath.maxPaths"),
        (with("session: {role: Boss}"), "spec.session.role"),
        (with("session: {strictRole: true}"), "spec.session.strictRole"),
        (with("session: {ttlSecurityHops: 255}"), "spec.session.ttlSecurityHops"),
        (with("import: {allow: [10.0.0.0/40]}"), "spec.import.allow"),
        (with("import: {med: 5}"), "spec.import.med"),
        (with("export: {med: 4294967296}"), "spec.export.med"),
        (with("export: {prepend: 33}"), "spec.export.prepend"),
        (with("export: {default: maybe}"), "spec.export.default"),
        (with("export: {statements: 5}"), "spec.export.statements"),
        (
            with("export: {med: 1, statements: [{name: a}, {name: b, when: [{prefixes: [x]}]}]}"),
            "spec.export.statements[1].when[0].prefixes[0]",
        ),
        (with("import: {statements: [{name: a, actions: [{nextHop: self}]}]}"), "spec.import"),
        (with("nextHops: {ipv4: 'fd00::1'}"), "spec.nextHops.ipv4"),
        // A field that does not exist is no warning here: what it asks for would silently not happen.
        (with("session: {teleport: true}"), "spec.session.teleport"),
    ] {
        refused(KIND, &spec, path);
    }
    let Object::PeerPolicy(row) = accepted(
        KIND,
        &with(
            "bfd: {}, session: {passive: true, extendedMessages: true, enforceFirstAS: false}, maxPrefixes: {limit: 5000, action: Restart}, addPath: {receive: true, send: 0}, longLivedGracefulRestart: {staleTimeSeconds: 3600}, \
             multipath: {maxPaths: 4}, nextHops: {ipv6: 'fd00::1'}, import: {allow: ['10.0.0.0/8 ge 16']}, \
             export: {med: 0, prepend: 2, statements: [{name: rest, when: [{not: {sources: [own]}}], then: reject}]}",
        ),
    ) else {
        panic!()
    };
    let tuning = &row.tuning;
    let bfd = tuning.bfd.as_ref().unwrap();
    assert_eq!(
        (bfd.transmit_ms, bfd.receive_ms, bfd.echo_receive_ms, bfd.detect_multiplier),
        (300, 300, 0, 3)
    );
    assert_eq!((tuning.passive, tuning.extended_messages, tuning.any_first_as), (true, true, true));
    assert_eq!((tuning.max_prefixes.map(|most| most.limit), tuning.max_paths), (Some(5000), Some(4)));
    let most = tuning.max_prefixes.unwrap();
    assert_eq!((most.warning_percent, most.action), (75, LimitAction::Restart(300)));
    assert_eq!((tuning.add_path.unwrap().send, tuning.long_lived_secs), (Some(0), Some(3600)));
    let policy = |document: &PolicyDocument| {
        serde_json::from_str::<tombolo_bgp::policy::Policy>(document.json()).unwrap()
    };
    let (import, export) = (policy(tuning.import.as_ref().unwrap()), policy(tuning.export.as_ref().unwrap()));
    assert_eq!((import.name.as_str(), import.statements.len()), ("x/import", 1));
    let names: Vec<_> = export.statements.iter().map(|statement| statement.name.as_str()).collect();
    assert_eq!((names, export.statements[0].actions.len()), (vec!["all", "rest"], 2));
}

#[test]
fn external_ips_of_services_are_read_and_must_mean_something_to_routers() {
    let service = |ips: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s}}\nspec: {{ports: [{{port: 80}}], externalIPs: [{ips}]}}\n"
        )
    };
    let Object::Service(row) = only(&service("198.51.100.7, '2001:db8::7', 198.51.100.7")) else { panic!() };
    assert_eq!(row.external_ips.len(), 2);
    for bad in ["127.0.0.1", "0.0.0.0", "'fe80::1'", "224.0.0.1"] {
        assert!(complaint(&service(bad)).contains("spec.externalIPs[0]"), "{bad}");
    }
}

#[test]
fn what_ciliums_operator_writes_is_told_to_be_computed_here() {
    let parsed = read(&manifest("CiliumBGPNodeConfig", "{bgpInstances: []}"));
    let (kind, unknown) = parsed.unknown_kinds.first_key_value().unwrap();
    let problem = unknown.problem(kind, std::path::Path::new("x.yaml"));
    assert!(
        problem.reason.contains("computed") && problem.remedy.contains("bgp-node-configs"),
        "{problem:?}"
    );
}

/// The example manifests of the documentation are good, and what they show is what the planner makes of it.
#[test]
fn the_examples_pass() {
    let folder = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/examples/bgp");
    let mut kinds = BTreeSet::new();
    for name in ["peers.yaml", "advertisements.yaml", "policy.yaml"] {
        let text = std::fs::read_to_string(folder.join(name)).unwrap();
        let parsed = read(&text);
        assert!(
            parsed.problems.is_empty() && parsed.unknown_kinds.is_empty(),
            "{name}: {:?}",
            parsed.problems
        );
        kinds.extend(parsed.objects.keys().map(|id| id.kind));
    }
    assert_eq!(kinds.len(), 7, "{kinds:?}");
}

/// Every field of the schema that users apply is one the reader knows, and the reverse.
#[test]
fn the_schema_of_the_peer_policy_names_the_fields_that_are_read() {
    let file = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("crds/bgppeerpolicies.yaml");
    let text = std::fs::read_to_string(file).unwrap();
    let schema: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
    let spec = schema.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties").unwrap();
    let names = |value: &serde_json::Value| -> BTreeSet<String> {
        value.as_object().unwrap().keys().cloned().collect()
    };
    let of = |block: &str| names(spec.pointer(&format!("/{block}/properties")).unwrap());
    // A document with every field, each of a wrong type: what is not known would be told as such.
    for block in [
        "session",
        "bfd",
        "maxPrefixes",
        "addPath",
        "longLivedGracefulRestart",
        "multipath",
        "nextHops",
        "import",
        "export",
    ] {
        for field in of(block) {
            let parsed = read(&manifest(
                "BGPPeerPolicy",
                &format!("{{peers: [{{peer: p}}], {block}: {{{field}: {{x: y}}}}}}"),
            ));
            let problems = format!("{:?}", parsed.problems);
            assert!(
                !problems.contains(&format!("spec.{block}.{field}\", reason: \"there is no such field")),
                "{problems}"
            );
        }
    }
    let known = [
        "nodeSelector",
        "peers",
        "session",
        "bfd",
        "maxPrefixes",
        "addPath",
        "longLivedGracefulRestart",
        "multipath",
        "nextHops",
        "import",
        "export",
    ];
    let known: BTreeSet<String> = known.map(str::to_owned).into();
    assert_eq!(names(spec), known);
}
