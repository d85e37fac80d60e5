//! The scenarios. Pods `client-1` and `client-2` are on two nodes and differ in `access`; `web-1` is beside the first, `web-2`
//! beside the second; `echo-1` is beside the first.

use super::{Asked, Asker, Denial, Plan, Question};
use crate::checks::ask::{DENIED, NO_RULE, Protocol};

const NOT_LET_IN: Denial = Denial { reason: NO_RULE, at_asker: false };
const NOT_LET_OUT: Denial = Denial { reason: NO_RULE, at_asker: true };
const DENIED_IN: Denial = Denial { reason: DENIED, at_asker: false };
const DENIED_OUT: Denial = Denial { reason: DENIED, at_asker: true };

const CLIENTS: &[&str] = &["client-1", "client-2"];
const WEBS: &[&str] = &["web-1", "web-2"];
const BOTH: &[&str] = &["client-1", "client-2", "web-1", "web-2"];
const HOSTS: &[&str] = &["host of client-1", "host of client-2"];
const ALL: &[&str] = &["client-1", "client-2", "echo-1", "web-1", "web-2"];

const fn yes(from: Asker, to: Asked) -> Question {
    Question { from, to, denied: None }
}

const fn no(from: Asker, to: Asked, denied: Denial) -> Question {
    Question { from, to, denied: Some(denied) }
}

// What policies of different kinds that say the same are asked.

const CLIENT_INGRESS: &[Question] = &[
    yes(Asker::Pod("client-2"), Asked::Pod("client-1", Protocol::Http, 8080)),
    no(Asker::Pod("client-1"), Asked::Pod("client-2", Protocol::Http, 8080), NOT_LET_IN),
    no(Asker::Pod("web-1"), Asked::Pod("client-1", Protocol::Http, 8080), NOT_LET_IN),
];

const CLIENT_EGRESS: &[Question] = &[
    yes(Asker::Pod("client-1"), Asked::Pod("web-1", Protocol::Http, 8080)),
    yes(Asker::Pod("client-1"), Asked::Pod("web-2", Protocol::Http, 8080)),
    yes(Asker::Pod("client-2"), Asked::Pod("web-1", Protocol::Http, 8080)),
    no(Asker::Pod("client-1"), Asked::Pod("web-1", Protocol::Tcp, 9000), NOT_LET_OUT),
    no(Asker::Pod("client-1"), Asked::Pod("echo-1", Protocol::Http, 8080), NOT_LET_OUT),
    no(Asker::Pod("client-1"), Asked::World(Protocol::Tcp, 9000), NOT_LET_OUT),
];

const ECHO_INGRESS: &[Question] = &[
    yes(Asker::Pod("client-2"), Asked::Pod("web-1", Protocol::Http, 8080)),
    yes(Asker::Pod("client-2"), Asked::Pod("web-2", Protocol::Http, 8080)),
    no(Asker::Pod("client-1"), Asked::Pod("web-1", Protocol::Http, 8080), NOT_LET_IN),
    no(Asker::Pod("client-1"), Asked::Pod("web-2", Protocol::Http, 8080), NOT_LET_IN),
];

const CLIENT_EGRESS_EXPRESSION: &[Question] = &[
    yes(Asker::Pod("client-1"), Asked::Pod("web-2", Protocol::Http, 8080)),
    no(Asker::Pod("client-1"), Asked::Pod("echo-1", Protocol::Http, 8080), NOT_LET_OUT),
    yes(Asker::Pod("client-2"), Asked::Pod("echo-1", Protocol::Http, 8080)),
];

const ALL_INGRESS_DENY: &[Question] = &[
    no(Asker::Pod("client-1"), Asked::Pod("web-1", Protocol::Http, 8080), NOT_LET_IN),
    no(Asker::Pod("client-1"), Asked::Pod("web-2", Protocol::Http, 8080), NOT_LET_IN),
    no(Asker::Pod("client-2"), Asked::Pod("client-1", Protocol::Icmp, 0), NOT_LET_IN),
    yes(Asker::Pod("client-1"), Asked::World(Protocol::Tcp, 9000)),
];

const ALL_EGRESS_DENY: &[Question] = &[
    no(Asker::Pod("client-1"), Asked::Pod("web-1", Protocol::Http, 8080), NOT_LET_OUT),
    no(Asker::Pod("client-1"), Asked::Pod("web-2", Protocol::Http, 8080), NOT_LET_OUT),
    no(Asker::Pod("client-2"), Asked::Pod("client-1", Protocol::Icmp, 0), NOT_LET_OUT),
    no(Asker::Pod("client-1"), Asked::World(Protocol::Tcp, 9000), NOT_LET_OUT),
];

const POLICY_LOCAL_CLUSTER_EGRESS: &[Question] = &[
    yes(Asker::Pod("client-1"), Asked::Pod("web-2", Protocol::Http, 8080)),
    no(Asker::Pod("client-1"), Asked::OtherCluster("web-1", Protocol::Http, 8080), NOT_LET_OUT),
];

const TO_CIDR_EXTERNAL: &[Question] = &[
    yes(Asker::Pod("client-1"), Asked::World(Protocol::Tcp, 9000)),
    yes(Asker::Pod("client-2"), Asked::World(Protocol::Tcp, 9000)),
    no(Asker::Pod("client-1"), Asked::Pod("web-1", Protocol::Http, 8080), NOT_LET_OUT),
];

const INGRESS_CCNP_EGRESS_CNP: &[Question] = &[
    yes(Asker::Pod("client-1"), Asked::Pod("web-1", Protocol::Http, 8080)),
    yes(Asker::Pod("client-2"), Asked::Pod("web-1", Protocol::Http, 8080)),
    no(Asker::Pod("echo-1"), Asked::Pod("web-1", Protocol::Http, 8080), NOT_LET_IN),
    no(Asker::Pod("client-1"), Asked::Pod("echo-1", Protocol::Http, 8080), NOT_LET_OUT),
];

const CLIENT_EGRESS_TO_CIDR_DENY: &[Question] = &[
    no(Asker::Pod("client-1"), Asked::World(Protocol::Tcp, 9000), DENIED_OUT),
    yes(Asker::Pod("client-1"), Asked::Pod("web-1", Protocol::Http, 8080)),
    yes(Asker::Pod("client-2"), Asked::Pod("web-1", Protocol::Http, 8080)),
];

const ALLOW_ALL_EXCEPT_WORLD: &[Question] = &[
    yes(Asker::Pod("client-1"), Asked::Pod("web-1", Protocol::Http, 8080)),
    yes(Asker::Pod("client-1"), Asked::Pod("web-2", Protocol::Http, 8080)),
    yes(Asker::HostOf("client-1"), Asked::Pod("web-2", Protocol::Http, 8080)),
    no(Asker::Pod("client-1"), Asked::World(Protocol::Tcp, 9000), NOT_LET_OUT),
];

const CLUSTER_ENTITY: &[Question] = &[
    yes(Asker::Pod("client-1"), Asked::Pod("web-1", Protocol::Http, 8080)),
    yes(Asker::Pod("client-1"), Asked::Pod("web-2", Protocol::Http, 8080)),
    no(Asker::Pod("client-1"), Asked::World(Protocol::Tcp, 9000), NOT_LET_OUT),
];

const HOST_ENTITY_EGRESS: &[Question] = &[
    yes(Asker::Pod("client-1"), Asked::HostOf("client-1", Protocol::Tcp, 9000)),
    no(Asker::Pod("client-1"), Asked::Pod("web-1", Protocol::Http, 8080), NOT_LET_OUT),
    no(Asker::Pod("client-1"), Asked::HostOf("client-2", Protocol::Tcp, 9000), NOT_LET_OUT),
];

const HOST_ENTITY_INGRESS: &[Question] = &[
    yes(Asker::HostOf("web-1"), Asked::Pod("web-1", Protocol::Http, 8080)),
    no(Asker::Pod("client-1"), Asked::Pod("web-1", Protocol::Http, 8080), NOT_LET_IN),
];

const CLIENT_INGRESS_ICMP: &[Question] = &[
    yes(Asker::Pod("client-2"), Asked::Pod("client-1", Protocol::Icmp, 0)),
    no(Asker::Pod("client-2"), Asked::Pod("client-1", Protocol::Http, 8080), NOT_LET_IN),
    no(Asker::Pod("web-1"), Asked::Pod("client-1", Protocol::Icmp, 0), NOT_LET_IN),
];

const ECHO_INGRESS_FROM_OTHER_CLIENT_DENY: &[Question] = &[
    yes(Asker::Pod("client-1"), Asked::Pod("web-1", Protocol::Http, 8080)),
    yes(Asker::Pod("client-1"), Asked::Pod("web-2", Protocol::Http, 8080)),
    no(Asker::Pod("client-2"), Asked::Pod("web-1", Protocol::Http, 8080), DENIED_IN),
    no(Asker::Pod("client-2"), Asked::Pod("web-2", Protocol::Http, 8080), DENIED_IN),
];

const CLIENT_INGRESS_FROM_OTHER_CLIENT_ICMP_DENY: &[Question] = &[
    no(Asker::Pod("client-2"), Asked::Pod("client-1", Protocol::Icmp, 0), DENIED_IN),
    yes(Asker::Pod("client-2"), Asked::Pod("client-1", Protocol::Http, 8080)),
    yes(Asker::Pod("web-1"), Asked::Pod("client-1", Protocol::Icmp, 0)),
];

const CLIENT_EGRESS_TO_ECHO_DENY: &[Question] = &[
    no(Asker::Pod("client-1"), Asked::Pod("web-1", Protocol::Http, 8080), DENIED_OUT),
    no(Asker::Pod("client-1"), Asked::Pod("web-2", Protocol::Http, 8080), DENIED_OUT),
    yes(Asker::Pod("client-1"), Asked::Pod("web-1", Protocol::Tcp, 9000)),
    yes(Asker::Pod("client-1"), Asked::Pod("echo-1", Protocol::Http, 8080)),
];

const CLIENT_EGRESS_TO_ECHO_EXPRESSION_DENY: &[Question] = &[
    no(Asker::Pod("client-1"), Asked::Pod("web-2", Protocol::Http, 8080), DENIED_OUT),
    yes(Asker::Pod("client-2"), Asked::Pod("web-2", Protocol::Http, 8080)),
    yes(Asker::Pod("client-1"), Asked::Pod("echo-1", Protocol::Http, 8080)),
];

const CLIENT_EGRESS_TO_CIDR_DENY_DEFAULT: &[Question] = &[
    no(Asker::Pod("client-1"), Asked::World(Protocol::Tcp, 9000), DENIED_OUT),
    no(Asker::Pod("client-1"), Asked::Pod("web-1", Protocol::Http, 8080), NOT_LET_OUT),
];

const CLIENT_INGRESS_TO_ECHO_NAMED_PORT_DENY: &[Question] = &[
    no(Asker::Pod("client-1"), Asked::Pod("web-1", Protocol::Http, 8080), DENIED_IN),
    no(Asker::Pod("client-2"), Asked::Pod("web-1", Protocol::Http, 8080), DENIED_IN),
    yes(Asker::Pod("client-1"), Asked::Pod("web-1", Protocol::Tcp, 9000)),
    yes(Asker::Pod("echo-1"), Asked::Pod("web-1", Protocol::Http, 8080)),
];

const TO_SERVICE_ACCOUNT: &[Question] = &[
    yes(Asker::Pod("client-1"), Asked::Pod("web-1", Protocol::Http, 8080)),
    yes(Asker::Pod("client-2"), Asked::Pod("web-1", Protocol::Http, 8080)),
    no(Asker::Pod("client-1"), Asked::Pod("web-2", Protocol::Http, 8080), NOT_LET_OUT),
];

const TO_SERVICE_ACCOUNT_DENY: &[Question] = &[
    no(Asker::Pod("client-1"), Asked::Pod("web-1", Protocol::Http, 8080), DENIED_OUT),
    no(Asker::Pod("client-2"), Asked::Pod("web-1", Protocol::Http, 8080), DENIED_OUT),
    yes(Asker::Pod("client-1"), Asked::Pod("web-2", Protocol::Http, 8080)),
];

const OF_SERVICE_ACCOUNT: &[Question] = &[
    yes(Asker::Pod("client-1"), Asked::Pod("web-2", Protocol::Http, 8080)),
    no(Asker::Pod("client-1"), Asked::Pod("echo-1", Protocol::Http, 8080), NOT_LET_OUT),
    yes(Asker::Pod("client-2"), Asked::Pod("echo-1", Protocol::Http, 8080)),
];

const OF_SERVICE_ACCOUNT_DENY: &[Question] = &[
    no(Asker::Pod("client-1"), Asked::Pod("web-2", Protocol::Http, 8080), DENIED_OUT),
    yes(Asker::Pod("client-1"), Asked::Pod("echo-1", Protocol::Http, 8080)),
    yes(Asker::Pod("client-2"), Asked::Pod("web-2", Protocol::Http, 8080)),
];

/// A plan whose manifest has its name.
macro_rules! plan {
    ($name:literal, $subjects:expr, [$($question:expr),* $(,)?]) => {
        plan!($name, $subjects, &[$($question),*])
    };
    ($name:literal, $subjects:expr, $questions:expr) => {
        Plan {
            name: $name,
            manifest: include_str!(concat!("manifests/", $name, ".yaml")),
            subjects: $subjects,
            questions: $questions,
        }
    };
}

/// All of them.
pub const SCENARIOS: &[Plan] = &[
    plan!("client-ingress", CLIENTS, CLIENT_INGRESS),
    plan!("client-ingress-knp", CLIENTS, CLIENT_INGRESS),
    plan!("client-ingress-ccnp", CLIENTS, CLIENT_INGRESS),
    plan!("client-egress", CLIENTS, CLIENT_EGRESS),
    plan!("client-egress-port-range", CLIENTS, CLIENT_EGRESS),
    plan!("client-egress-knp", CLIENTS, CLIENT_EGRESS),
    plan!("client-egress-ccnp", CLIENTS, CLIENT_EGRESS),
    plan!("echo-ingress", WEBS, ECHO_INGRESS),
    plan!("echo-ingress-knp", WEBS, ECHO_INGRESS),
    plan!("echo-ingress-ccnp", WEBS, ECHO_INGRESS),
    plan!("client-egress-expression", &["client-1"], CLIENT_EGRESS_EXPRESSION),
    plan!("client-egress-expression-ccnp", &["client-1"], CLIENT_EGRESS_EXPRESSION),
    plan!("client-egress-expression-knp", &["client-1"], CLIENT_EGRESS_EXPRESSION),
    plan!("client-ingress-icmp", CLIENTS, CLIENT_INGRESS_ICMP),
    plan!("client-ingress-icmp-ccnp", CLIENTS, CLIENT_INGRESS_ICMP),
    plan!("client-ingress-from-other-client-icmp-deny", CLIENTS, CLIENT_INGRESS_FROM_OTHER_CLIENT_ICMP_DENY),
    plan!(
        "client-ingress-from-other-client-icmp-deny-ccnp",
        CLIENTS,
        CLIENT_INGRESS_FROM_OTHER_CLIENT_ICMP_DENY
    ),
    plan!("all-ingress-deny", ALL, ALL_INGRESS_DENY),
    plan!("all-ingress-deny-ccnp", ALL, ALL_INGRESS_DENY),
    plan!("all-ingress-deny-knp", ALL, ALL_INGRESS_DENY),
    plan!("all-egress-deny", ALL, ALL_EGRESS_DENY),
    plan!("all-egress-deny-ccnp", ALL, ALL_EGRESS_DENY),
    plan!("all-egress-deny-knp", ALL, ALL_EGRESS_DENY),
    plan!(
        "all-entities-deny",
        ALL,
        [
            no(Asker::Pod("client-1"), Asked::Pod("web-1", Protocol::Http, 8080), DENIED_OUT),
            no(Asker::Pod("client-1"), Asked::Pod("web-2", Protocol::Http, 8080), DENIED_OUT),
            no(Asker::Pod("client-1"), Asked::World(Protocol::Tcp, 9000), DENIED_OUT)
        ]
    ),
    plan!("cluster-entity", CLIENTS, CLUSTER_ENTITY),
    plan!("cluster-entity-ccnp", CLIENTS, CLUSTER_ENTITY),
    plan!("cluster-entity-multi-cluster", CLIENTS, POLICY_LOCAL_CLUSTER_EGRESS),
    plan!("allow-all-except-world", ALL, ALLOW_ALL_EXCEPT_WORLD),
    plan!("allow-all-except-world-ccnp", ALL, ALLOW_ALL_EXCEPT_WORLD),
    plan!("to-entities-world", CLIENTS, TO_CIDR_EXTERNAL),
    plan!("to-entities-world-ccnp", CLIENTS, TO_CIDR_EXTERNAL),
    plan!("host-entity-egress", CLIENTS, HOST_ENTITY_EGRESS),
    plan!("host-entity-egress-ccnp", CLIENTS, HOST_ENTITY_EGRESS),
    plan!("host-entity-ingress", WEBS, HOST_ENTITY_INGRESS),
    plan!("host-entity-ingress-ccnp", WEBS, HOST_ENTITY_INGRESS),
    plan!("echo-ingress-from-other-client-deny", WEBS, ECHO_INGRESS_FROM_OTHER_CLIENT_DENY),
    plan!("echo-ingress-from-other-client-deny-ccnp", WEBS, ECHO_INGRESS_FROM_OTHER_CLIENT_DENY),
    plan!("client-egress-to-echo-deny", &["client-1"], CLIENT_EGRESS_TO_ECHO_DENY),
    plan!("client-egress-to-echo-deny-ccnp", &["client-1"], CLIENT_EGRESS_TO_ECHO_DENY),
    plan!("client-egress-to-echo-expression-deny", &["client-1"], CLIENT_EGRESS_TO_ECHO_EXPRESSION_DENY),
    plan!("client-egress-to-echo-expression-deny-ccnp", &["client-1"], CLIENT_EGRESS_TO_ECHO_EXPRESSION_DENY),
    plan!("client-ingress-to-echo-named-port-deny", WEBS, CLIENT_INGRESS_TO_ECHO_NAMED_PORT_DENY),
    plan!("client-ingress-to-echo-named-port-deny-ccnp", WEBS, CLIENT_INGRESS_TO_ECHO_NAMED_PORT_DENY),
    plan!(
        "client-egress-to-echo-all-deny",
        CLIENTS,
        [
            no(Asker::Pod("client-1"), Asked::Pod("web-1", Protocol::Http, 8080), DENIED_OUT),
            yes(Asker::Pod("client-1"), Asked::Pod("echo-1", Protocol::Http, 8080)),
            yes(Asker::Pod("client-1"), Asked::World(Protocol::Tcp, 9000))
        ]
    ),
    plan!("policy-local-cluster-egress", CLIENTS, POLICY_LOCAL_CLUSTER_EGRESS),
    plan!(
        "ingress-from-specific-namespace-ccnp",
        WEBS,
        [
            yes(Asker::Pod("guarded/target"), Asked::Pod("web-1", Protocol::Http, 8080)),
            no(Asker::Pod("client-1"), Asked::Pod("web-1", Protocol::Http, 8080), NOT_LET_IN),
            no(Asker::Pod("client-2"), Asked::Pod("web-2", Protocol::Http, 8080), NOT_LET_IN)
        ]
    ),
    plan!(
        "egress-to-specific-namespace-ccnp",
        CLIENTS,
        [
            yes(Asker::Pod("client-1"), Asked::Pod("guarded/target", Protocol::Http, 8080)),
            no(Asker::Pod("client-1"), Asked::Pod("web-1", Protocol::Http, 8080), NOT_LET_OUT)
        ]
    ),
    plan!("ingress-ccnp-egress-cnp", BOTH, INGRESS_CCNP_EGRESS_CNP),
    plan!("ingress-cnp-egress-ccnp", BOTH, INGRESS_CCNP_EGRESS_CNP),
    plan!(
        "admin-network-policy",
        WEBS,
        [
            yes(Asker::Pod("client-2"), Asked::Pod("web-1", Protocol::Http, 8080)),
            yes(Asker::Pod("client-2"), Asked::Pod("web-2", Protocol::Http, 8080)),
            no(Asker::Pod("client-1"), Asked::Pod("web-1", Protocol::Http, 8080), DENIED_IN),
            no(Asker::Pod("echo-1"), Asked::Pod("web-2", Protocol::Http, 8080), DENIED_IN)
        ]
    ),
    plan!("to-cidr-external", CLIENTS, TO_CIDR_EXTERNAL),
    plan!("to-cidr-external-ccnp", CLIENTS, TO_CIDR_EXTERNAL),
    plan!("to-cidr-external-knp", CLIENTS, TO_CIDR_EXTERNAL),
    plan!("client-egress-to-cidr-deny", CLIENTS, CLIENT_EGRESS_TO_CIDR_DENY),
    plan!("client-egress-to-cidr-deny-ccnp", CLIENTS, CLIENT_EGRESS_TO_CIDR_DENY),
    plan!("client-egress-to-cidr-deny-default", CLIENTS, CLIENT_EGRESS_TO_CIDR_DENY_DEFAULT),
    plan!("client-egress-to-cidr-deny-default-ccnp", CLIENTS, CLIENT_EGRESS_TO_CIDR_DENY_DEFAULT),
    plan!("client-egress-to-cidrgroup-deny", CLIENTS, CLIENT_EGRESS_TO_CIDR_DENY),
    plan!("client-egress-to-cidrgroup-deny-by-label", CLIENTS, CLIENT_EGRESS_TO_CIDR_DENY),
    plan!(
        "client-egress-to-echo-all-allow",
        CLIENTS,
        [
            yes(Asker::Pod("client-1"), Asked::Pod("web-1", Protocol::Http, 8080)),
            yes(Asker::Pod("client-2"), Asked::Pod("web-2", Protocol::Http, 8080)),
            no(Asker::Pod("client-1"), Asked::Pod("echo-1", Protocol::Http, 8080), NOT_LET_OUT)
        ]
    ),
    plan!(
        "clustermesh-policy-cnp",
        CLIENTS,
        [
            yes(Asker::Pod("client-1"), Asked::OtherCluster("web-1", Protocol::Http, 8080)),
            yes(Asker::Pod("client-2"), Asked::Pod("web-1", Protocol::Http, 8080)),
            no(Asker::Pod("client-1"), Asked::World(Protocol::Tcp, 9000), NOT_LET_OUT)
        ]
    ),
    plan!(
        "echo-ingress-from-outside",
        WEBS,
        [
            yes(Asker::Outside, Asked::Pod("web-1", Protocol::Http, 8080)),
            yes(Asker::Outside, Asked::Pod("web-2", Protocol::Http, 8080)),
            no(Asker::Outside, Asked::Pod("web-1", Protocol::Tcp, 9000), NOT_LET_IN),
            no(Asker::Pod("client-1"), Asked::Pod("web-1", Protocol::Http, 8080), NOT_LET_IN)
        ]
    ),
    plan!(
        "all-ingress-deny-from-outside",
        ALL,
        [
            no(Asker::Outside, Asked::Pod("web-1", Protocol::Http, 8080), NOT_LET_IN),
            no(Asker::Outside, Asked::Pod("web-2", Protocol::Http, 8080), NOT_LET_IN)
        ]
    ),
    plan!(
        "host-firewall-ingress",
        HOSTS,
        [
            yes(Asker::Pod("client-2"), Asked::HostOf("client-2", Protocol::Tcp, 9000)),
            yes(Asker::Pod("client-2"), Asked::HostOf("client-1", Protocol::Tcp, 9000)),
            yes(Asker::HostOf("client-2"), Asked::Pod("web-1", Protocol::Http, 8080)),
            no(Asker::Pod("client-1"), Asked::HostOf("client-1", Protocol::Tcp, 9000), NOT_LET_IN),
            no(Asker::Pod("client-1"), Asked::HostOf("client-2", Protocol::Tcp, 9000), NOT_LET_IN)
        ]
    ),
    plan!(
        "host-firewall-egress",
        HOSTS,
        [
            yes(Asker::HostOf("client-1"), Asked::Pod("web-1", Protocol::Http, 8080)),
            yes(Asker::HostOf("client-1"), Asked::Pod("web-2", Protocol::Http, 8080)),
            yes(Asker::Pod("client-1"), Asked::HostOf("client-1", Protocol::Tcp, 9000)),
            no(Asker::HostOf("client-1"), Asked::Pod("echo-1", Protocol::Http, 8080), NOT_LET_OUT)
        ]
    ),
    plan!("client-egress-to-echo-service-account", CLIENTS, TO_SERVICE_ACCOUNT),
    plan!("client-egress-to-echo-service-account-ccnp", CLIENTS, TO_SERVICE_ACCOUNT),
    plan!("client-egress-to-echo-service-account-deny", CLIENTS, TO_SERVICE_ACCOUNT_DENY),
    plan!("client-egress-to-echo-service-account-deny-ccnp", CLIENTS, TO_SERVICE_ACCOUNT_DENY),
    plan!("client-with-service-account-egress-to-echo", &["client-1"], OF_SERVICE_ACCOUNT),
    plan!("client-with-service-account-egress-to-echo-ccnp", &["client-1"], OF_SERVICE_ACCOUNT),
    plan!("client-with-service-account-egress-to-echo-deny", &["client-1"], OF_SERVICE_ACCOUNT_DENY),
    plan!("client-with-service-account-egress-to-echo-deny-ccnp", &["client-1"], OF_SERVICE_ACCOUNT_DENY),
    plan!(
        "from-cidr-host-netns",
        WEBS,
        [
            yes(Asker::Outside, Asked::Pod("web-1", Protocol::Http, 8080)),
            yes(Asker::Outside, Asked::Pod("web-2", Protocol::Http, 8080)),
            no(Asker::Outside, Asked::Pod("web-1", Protocol::Tcp, 9000), NOT_LET_IN),
            no(Asker::Pod("client-1"), Asked::Pod("web-2", Protocol::Http, 8080), NOT_LET_IN)
        ]
    ),
    plan!(
        "allow-all-with-metrics-check",
        ALL,
        [
            yes(Asker::Pod("client-1"), Asked::Pod("web-1", Protocol::Http, 8080)),
            yes(Asker::Pod("client-1"), Asked::Pod("web-2", Protocol::Http, 8080)),
            yes(Asker::Pod("client-2"), Asked::World(Protocol::Tcp, 9000))
        ]
    ),
    plan!(
        "pod-to-controlplane-host",
        CLIENTS,
        [
            yes(Asker::Pod("client-1"), Asked::HostOf("client-1", Protocol::Tcp, 9000)),
            yes(Asker::Pod("client-2"), Asked::HostOf("client-1", Protocol::Icmp, 0)),
            no(Asker::Pod("client-1"), Asked::Pod("web-1", Protocol::Http, 8080), NOT_LET_OUT)
        ]
    ),
    plan!(
        "pod-to-controlplane-host-cidr",
        CLIENTS,
        [
            yes(Asker::Pod("client-1"), Asked::HostOf("client-1", Protocol::Tcp, 9000)),
            yes(Asker::Pod("client-2"), Asked::HostOf("client-1", Protocol::Tcp, 9000)),
            no(Asker::Pod("client-1"), Asked::HostOf("client-2", Protocol::Tcp, 9000), NOT_LET_OUT)
        ]
    ),
    plan!(
        "pod-to-k8s-on-controlplane",
        CLIENTS,
        [
            yes(Asker::Pod("client-1"), Asked::HostOf("client-1", Protocol::Http, 6443)),
            yes(Asker::Pod("client-2"), Asked::HostOf("client-1", Protocol::Http, 6443)),
            no(Asker::Pod("client-1"), Asked::HostOf("client-2", Protocol::Http, 6443), NOT_LET_OUT),
            no(Asker::Pod("client-2"), Asked::HostOf("client-2", Protocol::Http, 6443), NOT_LET_OUT),
            no(Asker::Pod("client-2"), Asked::HostOf("client-1", Protocol::Tcp, 9000), NOT_LET_OUT)
        ]
    ),
    plan!(
        "pod-to-k8s-on-controlplane-cidr",
        CLIENTS,
        [
            yes(Asker::Pod("client-1"), Asked::HostOf("client-1", Protocol::Http, 6443)),
            yes(Asker::Pod("client-2"), Asked::HostOf("client-1", Protocol::Http, 6443)),
            no(Asker::Pod("client-2"), Asked::HostOf("client-1", Protocol::Tcp, 9000), NOT_LET_OUT)
        ]
    ),
    plan!(
        "pod-to-node-cidrpolicy",
        CLIENTS,
        [
            yes(Asker::Pod("client-1"), Asked::HostOf("client-2", Protocol::Icmp, 0)),
            yes(Asker::Pod("client-2"), Asked::HostOf("client-2", Protocol::Tcp, 9000)),
            no(Asker::Pod("client-1"), Asked::HostOf("client-1", Protocol::Tcp, 9000), NOT_LET_OUT),
            no(Asker::Pod("client-1"), Asked::Pod("web-1", Protocol::Http, 8080), NOT_LET_OUT)
        ]
    ),
];
