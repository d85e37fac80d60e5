//! Every scenario of Cilium's list and its state: `docs/acceptance.md`.

use super::COVERED;

/// How far a scenario is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// One of [`super::SCENARIOS`], [`super::COVERED`] or [`super::Final`], seen green.
    Green,
    /// One of them, not yet seen green, and why.
    Written(&'static str),
    /// It needs what is not to be built here.
    Waits(&'static str),
    /// It is not there.
    Open(&'static str),
}

/// Group, name and state, in the order of the list.
pub const LIST: &[(&str, &str, State)] = &[
    ("Connectivity", "no-policies", State::Green),
    ("Connectivity", "no-policies-extra", State::Green),
    ("Connectivity", "no-policies-from-outside", State::Green),
    ("Connectivity", "pod-to-itself-via-service", State::Green),
    ("Connectivity", "pod-to-pod-no-frag", State::Green),
    ("Connectivity", "north-south-loadbalancing", State::Green),
    ("Connectivity", "l7-lb", State::Waits("L7")),
    ("Connectivity", "health", State::Open("there is no health endpoint")),
    ("Connectivity", "multicast", State::Open("no multicast between pods")),
    ("Connectivity", "allow-all-with-metrics-check", State::Green),
    ("Connectivity", "hubble-workload", State::Green),
    ("Connectivity", "pod-mac", State::Green),
    ("Connectivity", "fqdn-restore", State::Waits("FQDN")),
    ("Connectivity", "standalone-dns-proxy", State::Waits("FQDN")),
    ("Policy L3/L4", "allow-all-except-world", State::Green),
    ("Policy L3/L4", "allow-all-except-world-ccnp", State::Green),
    ("Policy L3/L4", "client-ingress", State::Green),
    ("Policy L3/L4", "client-ingress-knp", State::Green),
    ("Policy L3/L4", "client-ingress-ccnp", State::Green),
    ("Policy L3/L4", "client-egress", State::Green),
    ("Policy L3/L4", "client-egress-port-range", State::Green),
    ("Policy L3/L4", "client-egress-knp", State::Green),
    ("Policy L3/L4", "client-egress-ccnp", State::Green),
    ("Policy L3/L4", "echo-ingress", State::Green),
    ("Policy L3/L4", "echo-ingress-knp", State::Green),
    ("Policy L3/L4", "echo-ingress-ccnp", State::Green),
    ("Policy L3/L4", "client-egress-expression", State::Green),
    ("Policy L3/L4", "client-egress-expression-ccnp", State::Green),
    ("Policy L3/L4", "client-egress-expression-knp", State::Green),
    ("Policy L3/L4", "client-ingress-icmp", State::Green),
    ("Policy L3/L4", "client-ingress-icmp-ccnp", State::Green),
    ("Policy L3/L4", "client-ingress-from-other-client-icmp-deny", State::Green),
    ("Policy L3/L4", "client-ingress-from-other-client-icmp-deny-ccnp", State::Green),
    ("Policy L3/L4", "all-ingress-deny", State::Green),
    ("Policy L3/L4", "all-ingress-deny-ccnp", State::Green),
    ("Policy L3/L4", "all-ingress-deny-knp", State::Green),
    ("Policy L3/L4", "all-ingress-deny-from-outside", State::Green),
    ("Policy L3/L4", "all-egress-deny", State::Green),
    ("Policy L3/L4", "all-egress-deny-ccnp", State::Green),
    ("Policy L3/L4", "all-egress-deny-knp", State::Green),
    ("Policy L3/L4", "all-entities-deny", State::Green),
    ("Policy L3/L4", "cluster-entity", State::Green),
    ("Policy L3/L4", "cluster-entity-ccnp", State::Green),
    ("Policy L3/L4", "cluster-entity-multi-cluster", State::Green),
    ("Policy L3/L4", "host-entity-egress", State::Green),
    ("Policy L3/L4", "host-entity-egress-ccnp", State::Green),
    ("Policy L3/L4", "host-entity-ingress", State::Green),
    ("Policy L3/L4", "host-entity-ingress-ccnp", State::Green),
    ("Policy L3/L4", "to-entities-world", State::Green),
    ("Policy L3/L4", "to-entities-world-ccnp", State::Green),
    ("Policy L3/L4", "client-egress-to-echo-service-account", State::Green),
    ("Policy L3/L4", "client-egress-to-echo-service-account-ccnp", State::Green),
    ("Policy L3/L4", "client-egress-to-echo-service-account-deny", State::Green),
    ("Policy L3/L4", "client-egress-to-echo-service-account-deny-ccnp", State::Green),
    ("Policy L3/L4", "client-with-service-account-egress-to-echo", State::Green),
    ("Policy L3/L4", "client-with-service-account-egress-to-echo-ccnp", State::Green),
    ("Policy L3/L4", "client-with-service-account-egress-to-echo-deny", State::Green),
    ("Policy L3/L4", "client-with-service-account-egress-to-echo-deny-ccnp", State::Green),
    ("Policy L3/L4", "to-cidr-external", State::Green),
    ("Policy L3/L4", "to-cidr-external-ccnp", State::Green),
    ("Policy L3/L4", "to-cidr-external-knp", State::Green),
    ("Policy L3/L4", "from-cidr-host-netns", State::Green),
    ("Policy L3/L4", "echo-ingress-from-outside", State::Green),
    ("Policy L3/L4", "client-egress-to-cidr-deny", State::Green),
    ("Policy L3/L4", "client-egress-to-cidr-deny-ccnp", State::Green),
    ("Policy L3/L4", "client-egress-to-cidr-deny-default", State::Green),
    ("Policy L3/L4", "client-egress-to-cidr-deny-default-ccnp", State::Green),
    ("Policy L3/L4", "client-egress-to-cidrgroup-deny", State::Green),
    ("Policy L3/L4", "client-egress-to-cidrgroup-deny-by-label", State::Green),
    ("Policy L3/L4", "echo-ingress-from-other-client-deny", State::Green),
    ("Policy L3/L4", "echo-ingress-from-other-client-deny-ccnp", State::Green),
    ("Policy L3/L4", "client-egress-to-echo-deny", State::Green),
    ("Policy L3/L4", "client-egress-to-echo-deny-ccnp", State::Green),
    ("Policy L3/L4", "client-egress-to-echo-expression-deny", State::Green),
    ("Policy L3/L4", "client-egress-to-echo-expression-deny-ccnp", State::Green),
    ("Policy L3/L4", "client-ingress-to-echo-named-port-deny", State::Green),
    ("Policy L3/L4", "client-ingress-to-echo-named-port-deny-ccnp", State::Green),
    ("Policy L3/L4", "pod-to-controlplane-host", State::Green),
    ("Policy L3/L4", "pod-to-controlplane-host-cidr", State::Green),
    ("Policy L3/L4", "pod-to-k8s-on-controlplane", State::Green),
    ("Policy L3/L4", "pod-to-k8s-on-controlplane-cidr", State::Green),
    ("Policy L3/L4", "pod-to-node-cidrpolicy", State::Green),
    ("Policy L3/L4", "policy-local-cluster-egress", State::Green),
    ("Policy L3/L4", "egress-to-specific-namespace-ccnp", State::Green),
    ("Policy L3/L4", "ingress-from-specific-namespace-ccnp", State::Green),
    ("Policy L3/L4", "ingress-ccnp-egress-cnp", State::Green),
    ("Policy L3/L4", "ingress-cnp-egress-ccnp", State::Green),
    ("Policy L3/L4", "client-egress-to-echo-all-allow", State::Green),
    ("Policy L3/L4", "client-egress-to-echo-all-deny", State::Green),
    ("Policy L3/L4", "echo-ingress-from-client-tiered-wildcard-pass-l7", State::Waits("L7")),
    ("Own, of the tiers of Kubernetes", "admin-network-policy", State::Green),
    ("Host firewall", "host-firewall-ingress", State::Green),
    ("Host firewall", "host-firewall-egress", State::Green),
    ("Host firewall", "host-firewall-egress-to-fqdns", State::Waits("FQDN")),
    ("Host firewall", "host-firewall-l7-ingress", State::Waits("L7")),
    ("L7 HTTP", "echo-ingress-l7", State::Waits("L7")),
    ("L7 HTTP", "echo-ingress-l7-named-port", State::Waits("L7")),
    ("L7 HTTP", "echo-ingress-l7-via-hostport", State::Waits("L7")),
    ("L7 HTTP", "client-egress-l7", State::Waits("L7")),
    ("L7 HTTP", "client-egress-l7-method", State::Waits("L7")),
    ("L7 HTTP", "client-egress-l7-named-port", State::Waits("L7")),
    ("L7 HTTP", "client-egress-l7-set-header", State::Waits("L7")),
    ("L7 HTTP", "client-egress-l7-connect", State::Waits("L7")),
    ("L7 HTTP", "client-egress-tls-sni", State::Waits("L7 (TLS)")),
    ("L7 HTTP", "client-egress-tls-sni-denied", State::Waits("L7 (TLS)")),
    ("L7 HTTP", "client-egress-tls-sni-wildcard", State::Waits("L7 (TLS)")),
    ("L7 HTTP", "client-egress-tls-sni-wildcard-denied", State::Waits("L7 (TLS)")),
    ("L7 HTTP", "client-egress-tls-sni-random-wildcard", State::Waits("L7 (TLS)")),
    ("L7 HTTP", "client-egress-tls-sni-random-wildcard-denied", State::Waits("L7 (TLS)")),
    ("L7 HTTP", "client-egress-tls-sni-double-wildcard", State::Waits("L7 (TLS)")),
    ("L7 HTTP", "client-egress-tls-sni-double-wildcard-denied", State::Waits("L7 (TLS)")),
    ("L7 HTTP", "client-egress-l7-tls-headers", State::Waits("L7 (TLS)")),
    ("L7 HTTP", "client-egress-l7-extra-tls-headers", State::Waits("L7 (TLS)")),
    ("L7 HTTP", "client-egress-l7-tls-deny-without-headers", State::Waits("L7 (TLS)")),
    ("L7 HTTP", "client-egress-l7-tls-headers-sni", State::Waits("L7 (TLS)")),
    ("L7 HTTP", "client-egress-l7-tls-headers-other-sni", State::Waits("L7 (TLS)")),
    ("L7 HTTP", "north-south-loadbalancing-with-l7-policy", State::Waits("L7")),
    ("L7 HTTP", "pod-to-ingress-service", State::Waits("L7")),
    ("L7 HTTP", "pod-to-ingress-service-allow-ingress-identity", State::Waits("L7")),
    ("L7 HTTP", "pod-to-ingress-service-deny-all", State::Waits("L7")),
    ("L7 HTTP", "pod-to-ingress-service-deny-backend-service", State::Waits("L7")),
    ("L7 HTTP", "pod-to-ingress-service-deny-ingress-identity", State::Waits("L7")),
    ("L7 HTTP", "pod-to-ingress-service-deny-source-egress-other-node", State::Waits("L7")),
    ("L7 HTTP", "outside-to-ingress-service", State::Waits("L7")),
    ("L7 HTTP", "outside-to-ingress-service-deny-all-ingress", State::Waits("L7")),
    ("L7 HTTP", "outside-to-ingress-service-deny-cidr", State::Waits("L7")),
    ("L7 HTTP", "outside-to-ingress-service-deny-world-identity", State::Waits("L7")),
    ("L7 HTTP", "echo-ingress-auth-always-fail", State::Waits("L7")),
    ("L7 HTTP", "echo-ingress-mutual-auth-spiffe", State::Waits("L7")),
    ("DNS/FQDN", "dns-only", State::Waits("FQDN")),
    ("DNS/FQDN", "to-fqdns", State::Waits("FQDN")),
    ("DNS/FQDN", "to-fqdns-with-proxy", State::Waits("FQDN")),
    ("DNS/FQDN", "to-fqdns-with-ccec-listener", State::Waits("FQDN")),
    ("Encryption", "pod-to-pod-encryption", State::Green),
    ("Encryption", "pod-to-pod-encryption-v2", State::Green),
    ("Encryption", "pod-to-pod-with-l7-policy-encryption", State::Waits("L7")),
    ("Encryption", "pod-to-pod-with-l7-policy-encryption-v2", State::Waits("L7")),
    ("Encryption", "node-to-node-encryption", State::Green),
    ("Encryption", "strict-mode-encryption", State::Green),
    ("Encryption", "strict-mode-encryption-v2", State::Green),
    ("Encryption", "ipsec-key-derivation-validation", State::Waits("IPsec")),
    ("Encryption", "no-ipsec-xfrm-errors", State::Waits("IPsec")),
    ("Encryption", "ztunnel-pod-to-pod-encryption", State::Waits("ztunnel")),
    ("Egress gateway", "egress-gateway", State::Green),
    ("Egress gateway", "egress-gateway-multigateway", State::Green),
    ("Egress gateway", "egress-gateway-excluded-cidrs", State::Green),
    ("Egress gateway", "egress-gateway-with-l7-policy", State::Waits("L7")),
    ("Local redirect", "local-redirect-policy", State::Waits("local redirect policies")),
    ("Local redirect", "local-redirect-policy-with-node-dns", State::Waits("local redirect policies")),
    ("Cluster mesh", "clustermesh-endpointslice-sync", State::Green),
    ("Cluster mesh", "clustermesh-policy-cnp", State::Green),
    (
        "Cluster mesh",
        "clustermesh-ns-not-global",
        State::Open("the annotation keeps services back; no scenario yet"),
    ),
    (
        "Cluster mesh",
        "clustermesh-ns-not-global-pod-to-pod",
        State::Open("identities and addresses of such namespaces are still shared"),
    ),
    ("BGP", "bgp-control-plane-v2", State::Green),
    ("Upgrade", "no-interrupted-connections", State::Green),
    ("Final", "no-unexpected-packet-drops", State::Green),
    ("Final", "check-log-errors", State::Green),
    ("Performance", "network-perf", State::Waits("the benchmarks")),
    (
        "Performance",
        "network-bandwidth-limit",
        State::Open("`ebpf/tests/rates.rs` shows it with real TCP; the lab has no limited pod"),
    ),
    (
        "Performance",
        "network-qos",
        State::Open(
            "no queue of this kernel minds priorities; `ebpf/tests/rates.rs` shows that packets bear them",
        ),
    ),
];

/// The text of `docs/acceptance.md`.
#[must_use]
pub fn render() -> String {
    let count = |wanted: fn(&State) -> bool| LIST.iter().filter(|(.., state)| wanted(state)).count();
    let green = count(|state| matches!(state, State::Green));
    let written = count(|state| matches!(state, State::Written(_)));
    let mut out = format!(
        "# Acceptance\n\nThe scenarios of `cilium connectivity test` by their names, and where this repository stands. Written by \
         `TOMBOLO_BLESS=1 cargo test acceptance`; a test compares it with the list in \
         `containerlab/src/checks/scenarios/acceptance.rs`. Run them with `tombolo lab test --only scenario/`.\n\n\
         {} scenarios: {green} green, {written} written.\n\n\
         * green: seen so. With policies: `scenario/NAME/CLUSTER`; each asks first without its policies, then with them, IPv4 and IPv6: answers, flow events, drop reasons (133 no rule, 181 denied). \
         With checks beside it: `scenario/NAME`, as good as the worst of these checks, which run once for all.\n\
         * written: it is there and has not been seen green.\n",
        LIST.len()
    );
    let mut group = "";
    for (of, name, state) in LIST {
        if *of != group {
            group = of;
            out.push_str(&format!("\n## {group}\n\n| Scenario | State | |\n|---|---|---|\n"));
        }
        let (state, more) = match state {
            State::Green => ("green", checks(name)),
            State::Written(why) => ("written", format!("{why} {}", checks(name)).trim_end().to_owned()),
            State::Waits(what) => ("waits", format!("for {what}")),
            State::Open(why) => ("not yet", (*why).to_owned()),
        };
        out.push_str(&format!("| {name} | {state} | {more} |\n"));
    }
    out
}

/// The checks that a scenario is made of, if it is made of checks.
fn checks(name: &str) -> String {
    let covered = COVERED.iter().find(|covered| covered.name == name);
    let parts: Vec<String> =
        covered.iter().flat_map(|covered| covered.parts).map(|part| format!("`{part}…`")).collect();
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::super::{Final, Question, SCENARIOS};
    use super::*;
    use crate::checks::inventory::documents;
    use std::collections::BTreeSet;

    #[test]
    fn acceptance_table_is_what_the_list_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/acceptance.md");
        if std::env::var_os("TOMBOLO_BLESS").is_some() {
            std::fs::write(path, render()).expect("written");
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(committed, render(), "TOMBOLO_BLESS=1 cargo test acceptance writes it");
    }

    #[test]
    fn acceptance_list_names_each_scenario_once_and_no_other() {
        let names: BTreeSet<&str> = LIST.iter().map(|(_, name, _)| *name).collect();
        assert_eq!(names.len(), LIST.len(), "a name stands twice");
        let listed = LIST.iter().filter(|(.., state)| matches!(state, State::Green | State::Written(_)));
        let listed: BTreeSet<&str> = listed.map(|(_, name, _)| *name).collect();
        let plans = SCENARIOS.iter().map(|plan| plan.name);
        let covered = COVERED.iter().map(|covered| covered.name);
        assert_eq!(listed, plans.chain(covered).chain(Final::ALL.map(Final::name)).collect());
    }

    #[test]
    fn acceptance_plans_can_fail_and_are_named_apart() {
        let mut all = BTreeSet::new();
        for plan in SCENARIOS {
            let can_fail = plan.allows_all() || plan.questions.iter().any(Question::can_fail);
            assert!(can_fail, "{}", plan.name);
            assert!(
                plan.questions.iter().any(|question| question.denied.is_none()) || plan.name.contains("deny")
            );
            for document in documents(plan.manifest).expect("YAML") {
                let name = document.pointer("/metadata/name").and_then(|name| name.as_str()).expect("a name");
                assert!(name.starts_with("scenario-"), "{name}");
                assert!(all.insert(name.to_owned()), "{name} stands twice");
            }
        }
    }
}
