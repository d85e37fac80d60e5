use super::*;
use crate::object::Object;
use tombolo_base::ids::{ClusterId, ClusterName, MaxClusters};
use tombolo_policy::DirectionRules;
use tombolo_service::{Affinity, TrafficPolicy};
use tombolo_topology::bgp::intent::{AdvertKind, ServiceAddress};

fn east() -> ClusterIdentity {
    let id = ClusterId::new(1, MaxClusters::C255).unwrap();
    ClusterIdentity { name: ClusterName::new("east").unwrap(), id }
}

pub(super) fn read(text: &str) -> Parsed {
    parse(Path::new("x.yaml"), text, &east())
}

pub(super) fn only(text: &str) -> Object {
    let mut parsed = read(text);
    assert!(parsed.problems.is_empty(), "{:?}", parsed.problems);
    assert_eq!(parsed.objects.len(), 1);
    parsed.objects.pop_first().unwrap().1
}

/// The one problem of a document, as `line path: reason`.
pub(super) fn complaint(text: &str) -> String {
    let parsed = read(text);
    assert_eq!(parsed.problems.len(), 1, "{:?}", parsed.problems);
    let problem = &parsed.problems[0];
    assert!(!problem.remedy.is_empty());
    format!("{} {}: {}", problem.line, problem.path, problem.reason)
}

#[test]
fn a_node_gets_its_internal_addresses_from_its_pod_prefixes() {
    let object = only(
        "apiVersion: v1\nkind: Node\nmetadata: {name: east-n1, labels: {rack: a}}\n\
         spec: {podCIDRs: [10.1.1.0/24, 'fd00:10:1:1::/64']}\nstatus:\n  addresses:\n\
         \x20 - {type: InternalIP, address: 172.20.11.2}\n  - {type: InternalIP, address: 'fd00:20:11::2'}\n\
         \x20 - {type: Hostname, address: east-n1}\n  conditions: [{type: Ready, status: 'True'}]\n",
    );
    let Object::Node(node) = object else { panic!("{object:?}") };
    assert_eq!(node.internal(true).unwrap().to_string(), "10.1.1.1");
    assert_eq!(node.internal(false).unwrap().to_string(), "fd00:10:1:1::1");
    assert_eq!(node.underlay(true).unwrap().to_string(), "172.20.11.2");
    assert_eq!(node.underlay(false).unwrap().to_string(), "fd00:20:11::2");
    assert_eq!((node.ready, node.addresses.len(), node.cluster.as_str()), (Some(true), 4, "east"));
}

#[test]
fn a_pod_with_named_ports_and_status() {
    let object = only(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web-0, namespace: shop, labels: {app: web}}\n\
         spec:\n  nodeName: east-n1\n  containers:\n  - name: c\n    image: echo\n    resources: {limits: {cpu: '1'}}\n\
         \x20   ports: [{name: http, containerPort: 8080}, {containerPort: 53, protocol: UDP, name: dns}]\n\
         status: {phase: Running, podIPs: [{ip: 10.1.1.5}, {ip: 'fd00:10:1:1::5'}], \
         conditions: [{type: Ready, status: 'True'}]}\n",
    );
    let Object::Pod(pod) = object else { panic!("{object:?}") };
    let ports: Vec<_> = pod.named_ports.iter().map(|p| (p.name.as_ref(), p.protocol, p.port)).collect();
    assert_eq!(ports, [("dns", 17, 53), ("http", 6, 8080)]);
    assert_eq!((pod.addresses.len(), pod.ready, pod.service_account.as_ref()), (2, true, "default"));
}

#[test]
fn a_global_service_with_its_annotations_and_policies() {
    let object = only(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n  namespace: shop\n  annotations:\n\
         \x20   service.cilium.io/global: 'true'\n    service.cilium.io/affinity: remote\n\
         \x20   lbipam.cilium.io/ips: '203.0.113.9, 2001:db8:e::9'\n\
         spec:\n  type: LoadBalancer\n  clusterIPs: [10.101.0.1, 'fd00:101::1']\n  ipFamilyPolicy: RequireDualStack\n\
         \x20 externalTrafficPolicy: Local\n  ports: [{port: 80, targetPort: http, name: http}]\n",
    );
    let Object::Service(service) = object else { panic!("{object:?}") };
    assert!(service.global && service.shared && !service.headless);
    assert_eq!(service.affinity, Affinity::Remote);
    assert_eq!(service.external_traffic_policy, TrafficPolicy::Local);
    assert_eq!(service.internal_traffic_policy, TrafficPolicy::Cluster);
    assert_eq!(service.families_ipv4, [true, false]);
    assert_eq!(service.requested_addresses.len(), 2);
}

#[test]
fn exports_and_imports_of_both_versions() {
    for version in ["v1alpha1", "v1beta1"] {
        let head = format!("apiVersion: multicluster.x-k8s.io/{version}\n");
        let object = only(&format!(
            "{head}kind: ServiceExport\nmetadata:\n  {{name: web, namespace: shop, creationTimestamp: '2023-11-14T22:13:20Z'}}\n\
             spec: {{exportedLabels: {{a: b}}, exportedAnnotations: {{service.cilium.io/affinity: local}}}}\n"
        ));
        let Object::Export(row) = object else { panic!("{object:?}") };
        assert_eq!(
            (row.name.to_string(), row.created_unix_secs),
            ("shop/web".to_owned(), Some(1_700_000_000))
        );
        assert_eq!((row.labels.len(), row.annotations.len()), (1, 1));
        let object = only(&format!("{head}kind: ServiceExport\nmetadata: {{name: web}}\n"));
        let Object::Export(row) = object else { panic!("{object:?}") };
        assert_eq!((row.created_unix_secs, row.labels.len()), (None, 0));
        let import = |spec: &str| {
            parse(
                Path::new("x.yaml"),
                &format!(
                    "{head}kind: ServiceImport\nmetadata: {{name: web, namespace: shop}}\nspec: {spec}\n"
                ),
                &east(),
            )
        };
        let parsed = import(
            "{type: ClusterSetIP, ips: [10.111.0.9, 'fd00:111::9'], ports: [{port: 80}], ipFamilies: [IPv4]}",
        );
        assert!(parsed.problems.is_empty(), "{:?}", parsed.problems);
        let Some(Object::Import(row)) = parsed.objects.values().next() else {
            panic!("{:?}", parsed.objects)
        };
        assert_eq!(row.ips.len(), 2);
        for (spec, told) in [
            ("{type: ClusterSetIP, ips: [10.0.0.1, 10.0.0.2]}", "second address"),
            ("{type: ClusterSetIP, ips: [here]}", "no IP address"),
            ("{type: ClusterSetIP, ips: [127.0.0.1]}", "beyond one host"),
            ("{type: ClusterSetIP, ips: ['fe80::1']}", "beyond one host"),
            ("{type: Other}", "not allowed"),
        ] {
            let problems = import(spec).problems;
            assert!(problems.len() == 1 && problems[0].to_string().contains(told), "{problems:?}");
        }
    }
    let object = only(
        "apiVersion: v1\nkind: Service\nmetadata: {name: db}\nspec: {type: ExternalName, externalName: db.example., \
         sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}, \
         ports: [{port: 80, appProtocol: http}], trafficDistribution: PreferClose}\n",
    );
    let Object::Service(service) = object else { panic!("{object:?}") };
    let details = &service.details;
    assert_eq!(details.external_name.as_deref(), Some("db.example."));
    assert!(details.client_ip_affinity && details.affinity_timeout_secs == Some(60));
    assert_eq!(details.app_protocols.len(), 1);
    assert_eq!(details.traffic_distribution.as_deref(), Some("PreferClose"));
}

#[test]
fn policy_types_default_as_kubernetes_does() {
    let text = |rest: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p}}\nspec: {{podSelector: {{}}{rest}}}\n"
        )
    };
    let of = |rest: &str| match only(&text(rest)) {
        Object::Rules(rows) => {
            let count = |rules: &Option<DirectionRules>| rules.as_ref().map(|rules| rules.blocks.len());
            (count(&rows[0].ingress), count(&rows[0].egress))
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(of(""), (Some(0), None));
    assert_eq!(of(", egress: [{}]"), (Some(0), Some(1)));
    assert_eq!(of(", policyTypes: [Egress]"), (None, Some(0)));
    assert_eq!(of(", policyTypes: [Egress], ingress: [{}]"), (None, Some(0)));
    assert_eq!(of(", ingress: [{}], policyTypes: [Ingress, Egress]"), (Some(1), Some(0)));
}

#[test]
fn bgp_kinds_with_defaults_under_both_versions() {
    for version in ["v2", "v2alpha1"] {
        let object = only(&format!(
            "apiVersion: cilium.io/{version}\nkind: CiliumBGPPeerConfig\nmetadata: {{name: tor}}\nspec:\n  \
             gracefulRestart: {{enabled: true}}\n  families:\n  - {{afi: ipv4, safi: unicast, \
             advertisements: {{matchLabels: {{a: b}}}}}}\n  - {{afi: l2vpn, safi: evpn}}\n"
        ));
        let Object::PeerConfig(config) = object else { panic!("{object:?}") };
        let timers =
            (config.peer_port, config.connect_retry_secs, config.hold_time_secs, config.keepalive_secs);
        assert_eq!(timers, (179, 120, 90, 30));
        assert_eq!((config.graceful_restart_secs, config.ebgp_multihop), (Some(120), 1));
        assert!(config.families[0].family.is_some() && config.families[1].family.is_none());
    }
    let object = only(
        "apiVersion: cilium.io/v2\nkind: CiliumBGPAdvertisement\nmetadata: {name: a, labels: {advertise: bgp}}\nspec:\n\
         \x20 advertisements:\n  - advertisementType: PodCIDR\n  - advertisementType: Service\n\
         \x20   service: {addresses: [LoadBalancerIP]}\n    selector: {}\n    attributes: {communities: \
         {standard: ['65001:100', '7'], wellKnown: [no-export], large: ['1:2:3']}}\n",
    );
    let Object::Advertisement(row) = object else { panic!("{object:?}") };
    assert!(row.entries[0].selector.is_none() && row.entries[1].selector.is_some());
    assert_eq!(row.entries[1].communities, [7, 65001 << 16 | 100, 0xffff_ff01].into());
    let AdvertKind::Service { addresses, .. } = &row.entries[1].kind else { panic!("{row:?}") };
    assert!(addresses.contains(&ServiceAddress::LoadBalancerIP));
}

#[test]
fn cluster_config_and_override() {
    let object = only(
        "apiVersion: cilium.io/v2\nkind: CiliumBGPClusterConfig\nmetadata: {name: c}\nspec:\n  bgpInstances:\n\
         \x20 - name: i\n    localASN: 65111\n    peers:\n    - {name: tor, peerAddress: 172.20.11.1, peerASN: 65100, \
         peerConfigRef: {name: tor}}\n    - {name: ll, peerAddress: 'fe80::1%eth1'}\n",
    );
    let Object::ClusterConfig(row) = object else { panic!("{object:?}") };
    let peers = &row.instances[0].peers;
    assert_eq!((peers[0].asn, peers[1].asn, peers[1].zone.as_deref()), (65100, 0, Some("eth1")));
    let object = only(
        "apiVersion: cilium.io/v2\nkind: CiliumBGPNodeConfigOverride\nmetadata: {name: n1}\nspec:\n  bgpInstances:\n\
         \x20 - {name: i, routerID: 1.2.3.4, localASN: 5, peers: [{name: tor, localAddress: 10.0.0.1}]}\n",
    );
    let Object::Override(row) = object else { panic!("{object:?}") };
    assert_eq!(row.instances[0].local_addresses.len(), 1);
}

#[test]
fn pools_cut_first_and_last_only_if_asked() {
    let of = |rest: &str| match only(&format!(
        "apiVersion: cilium.io/v2\nkind: CiliumLoadBalancerIPPool\nmetadata: {{name: p}}\nspec: {{{rest}}}\n"
    )) {
        Object::Pool(pool) => {
            pool.blocks.iter().map(|b| format!("{}-{}", b.first, b.last)).collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(of("blocks: [{cidr: 203.0.113.0/25}]"), ["203.0.113.0-203.0.113.127"]);
    assert_eq!(
        of(
            "blocks: [{cidr: 203.0.113.0/25}, {cidr: '2001:db8::/112'}, {cidr: 10.0.0.0/31}], allowFirstLastIPs: 'No'"
        ),
        ["203.0.113.1-203.0.113.126", "2001:db8::1-2001:db8::fffe", "10.0.0.0-10.0.0.1"]
    );
    assert_eq!(of("blocks: [{start: 10.0.0.5, stop: 10.0.0.7}]"), ["10.0.0.5-10.0.0.7"]);
}

#[test]
fn each_mistake_is_told_with_line_key_and_reason() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec:\n  ports:\n  - port: 80\n  - port: 70000\n";
    assert_eq!(complaint(service), "7 spec.ports[1].port: 70000 is out of range");
    let typed = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec:\n  ports:\n  - port: many\n";
    assert!(
        complaint(typed).starts_with("6 spec.ports[0].port: invalid type: string \"many\""),
        "{}",
        complaint(typed)
    );
    let node = "# head\n---\napiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec:\n  podCIDRs:\n  - 10.0.0.0/40\n";
    assert_eq!(complaint(node), "8 spec.podCIDRs[0]: \"10.0.0.0/40\" is no prefix");
    let hold = "apiVersion: cilium.io/v2\nkind: CiliumBGPPeerConfig\nmetadata: {name: p}\nspec:\n  timers:\n    holdTimeSeconds: 2\n";
    assert_eq!(complaint(hold), "6 spec.timers.holdTimeSeconds: 2 is out of range");
    let nameless = "apiVersion: v1\nkind: Pod\nmetadata:\n  labels: {}\n";
    assert!(complaint(nameless).contains("metadata.name"));
    let syntax = complaint("apiVersion: v1\nkind: Pod\nmetadata: {name: a\nspec: [\n");
    assert!(syntax.contains("cannot be parsed"), "{syntax}");
}

#[test]
fn unknown_keys_are_warned_about_and_the_object_is_used() {
    let parsed = read(
        "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec:\n  typ: LoadBalancer\n  ports: [{port: 80}]\n",
    );
    assert_eq!(parsed.objects.len(), 1);
    let problem = &parsed.problems[0];
    assert_eq!((problem.line, problem.path.as_str(), problem.severity), (5, "spec.typ", Severity::Warning));
}

#[test]
fn lists_unknown_kinds_and_broken_neighbours() {
    let parsed = read(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n---\n# nothing\n---\nkind: [\n---\n\
         apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: a}\n\
         - apiVersion: v1\n  kind: Node\n  metadata: {name: n1}\n  spec: {podCIDRs: [x]}\n---\n\
         apiVersion: v1\nkind: NamespaceList\nitems: [{metadata: {name: b}}]\n",
    );
    let names: Vec<_> = parsed.objects.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["Namespace a", "Namespace b"]);
    let unknown = parsed.unknown_kinds.get("apps/v1/Deployment");
    assert_eq!(unknown, Some(&Unknown { count: 1, line: 2 }));
    assert!(parsed.nameless && parsed.broken.len() == 1);
    let lines: Vec<_> = parsed.problems.iter().map(|problem| problem.line).collect();
    assert_eq!(lines.len(), 2);
    assert!((7..=8).contains(&lines[0]) && lines[1] == 18, "{:?}", parsed.problems);
}

#[test]
fn json_is_read_as_json() {
    let text = "{\"apiVersion\": \"v1\", \"kind\": \"Namespace\",\n\t\"metadata\": {\"name\": \"a\"}}";
    let parsed = parse(Path::new("a.json"), text, &east());
    assert!(parsed.problems.is_empty() && parsed.objects.len() == 1, "{:?}", parsed.problems);
}

#[test]
fn hostile_text_costs_a_problem_and_no_panic() {
    let deep = format!("apiVersion: v1\nkind: Pod\nmetadata: {}", "[".repeat(5000));
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n\
                d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n\
                g: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nh: [*g,*g,*g,*g,*g,*g,*g,*g,*g]\n";
    for text in
        [deep.as_str(), bomb, "\u{0}", "- a\n- b\n", "just text", "? [a]\n: b", "--- !!binary x", "&a *a"]
    {
        let parsed = read(text);
        assert!(!parsed.problems.is_empty() && parsed.objects.is_empty(), "{text:.40} {:?}", parsed.problems);
    }
}
