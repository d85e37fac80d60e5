//! The cases: manifests, and beside each who reaches whom, written by hand.
//!
//! Pods are `x/a` to `z/c`, labelled `pod: a` to `pod: c`; namespaces are labelled `ns: x` to `ns: z`; `out/0` and `out/1` are
//! outside, in two halves of 192.0.2.0/24 and of 2001:db8:2::/48. Ports 80 and 81 are named `serve-PORT-PROTOCOL`.

use crate::world::Cell;

/// A case: its steps in order; what a step says stays for the next.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) steps: &'static [Step],
}

/// Manifests that are added or take the place of others, titles of those that go, and what holds then.
pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) manifests: &'static str,
    pub(crate) gone: &'static [&'static str],
    pub(crate) reaches: fn(&Cell) -> bool,
}

const fn step(name: &'static str, manifests: &'static str, reaches: fn(&Cell) -> bool) -> Step {
    Step { name, manifests, gone: &[], reaches }
}

/// A NetworkPolicy by its name, its namespace, and the rest of its spec in flow style.
macro_rules! policy {
    ($name:literal in $namespace:literal, $spec:literal) => {
        concat!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: ",
            $name,
            ", namespace: '",
            $namespace,
            "'}\nspec: {",
            $spec,
            "}\n---\n"
        )
    };
}

/// A case of one step.
macro_rules! case {
    ($name:literal, $manifests:expr, $reaches:expr) => {
        Case { name: $name, steps: &[step("at once", $manifests, $reaches)] }
    };
}

const DENY_INGRESS: &str = policy!("deny" in "x", "podSelector: {}, policyTypes: [Ingress]");
const DENY_EGRESS: &str = policy!("deny" in "x", "podSelector: {}, policyTypes: [Egress]");

pub(crate) const CASES: &[Case] = &[
    case!("no policy", "", |_| true),
    case!("default deny of ingress", DENY_INGRESS, |cell| !cell.to.is("x")),
    case!("default deny of egress", DENY_EGRESS, |cell| !cell.from.is("x")),
    case!(
        "default deny of both",
        policy!("deny" in "x", "podSelector: {}, policyTypes: [Ingress, Egress]"),
        |cell| !cell.to.is("x") && !cell.from.is("x")
    ),
    case!(
        "types by default: ingress always, egress if it has rules",
        concat!(
            policy!("in" in "x", "podSelector: {matchLabels: {pod: a}}"),
            policy!("out" in "y", "podSelector: {matchLabels: {pod: a}}, egress: [{to: [{podSelector: {}}]}], ingress: [{}]")
        ),
        |cell| !cell.to.is("x/a") && (!cell.from.is("y/a") || cell.to.is("y"))
    ),
    case!("allow all", policy!("allow" in "x", "podSelector: {}, ingress: [{}]"), |_| true),
    case!(
        "an allow of all beside a default deny",
        concat!(
            policy!("deny" in "x", "podSelector: {}, policyTypes: [Ingress]"),
            policy!("allow" in "x", "podSelector: {}, ingress: [{}]")
        ),
        |_| true
    ),
    case!(
        "a peer by its labels is of the policy's own namespace",
        policy!("p" in "x", "podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]"),
        |cell| !cell.to.is("x/a") || cell.from.is("x/b")
    ),
    case!(
        "an empty selector of pods is the own namespace",
        policy!("p" in "x", "podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {}}]}]"),
        |cell| !cell.to.is("x/a") || cell.from.is("x")
    ),
    case!(
        "an empty selector of namespaces is all pods, and nobody outside",
        policy!("p" in "x", "podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {}}]}]"),
        |cell| !cell.to.is("x/a") || !cell.from.is("out")
    ),
    case!(
        "a namespace by its labels",
        policy!("p" in "x", "podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: 'y'}}}]}]"),
        |cell| !cell.to.is("x/a") || cell.from.is("y")
    ),
    case!(
        "a namespace by the label of its name",
        policy!("p" in "x", "podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: z}}}]}]"),
        |cell| !cell.to.is("x") || cell.from.is("z")
    ),
    case!(
        "namespaces by an expression",
        policy!("p" in "x", "podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: ns, operator: In, values: [x, 'y']}]}}]}]"),
        |cell| !cell.to.is("x/a") || cell.from.is("x") || cell.from.is("y")
    ),
    case!(
        "all namespaces but one",
        policy!("p" in "x", "podSelector: {}, ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [x]}]}}]}]"),
        |cell| !cell.to.is("x") || cell.from.is("y") || cell.from.is("z")
    ),
    case!(
        "pods by expressions",
        policy!("p" in "x", "podSelector: {matchExpressions: [{key: pod, operator: In, values: [a, c]}]}, ingress: [{from: [{podSelector: {matchExpressions: [{key: pod, operator: NotIn, values: [b]}]}}]}]"),
        |cell| !(cell.to.is("x/a") || cell.to.is("x/c")) || cell.from.is("x/a") || cell.from.is("x/c")
    ),
    case!(
        "a label that must be there, and one that must not",
        policy!("p" in "x", "podSelector: {matchExpressions: [{key: pod, operator: Exists}]}, ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: gone, operator: DoesNotExist}]}, podSelector: {matchLabels: {pod: c}}}]}]"),
        |cell| !cell.to.is("x") || cell.from.pod("c")
    ),
    case!(
        "namespace and pod in one peer: both must hold",
        policy!("p" in "x", "podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: 'y'}}, podSelector: {matchLabels: {pod: b}}}]}]"),
        |cell| !cell.to.is("x") || cell.from.is("y/b")
    ),
    case!(
        "namespace and pod in two peers: either",
        policy!("p" in "x", "podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: 'y'}}}, {podSelector: {matchLabels: {pod: b}}}]}]"),
        |cell| !cell.to.is("x") || cell.from.is("y") || cell.from.is("x/b")
    ),
    case!(
        "no peer and an empty list of ports",
        policy!("p" in "x", "podSelector: {}, ingress: [{from: [], ports: []}]"),
        |_| true
    ),
    case!(
        "one port of everybody",
        policy!("p" in "x", "podSelector: {}, ingress: [{ports: [{port: 81, protocol: TCP}]}]"),
        |cell| !cell.to.is("x") || cell.tcp(81)
    ),
    case!(
        "without a protocol it is TCP",
        policy!("p" in "x", "podSelector: {}, ingress: [{ports: [{port: 80}]}]"),
        |cell| !cell.to.is("x") || cell.tcp(80)
    ),
    case!(
        "without a port it is all of the protocol",
        policy!("p" in "x", "podSelector: {}, ingress: [{ports: [{protocol: UDP}]}]"),
        |cell| !cell.to.is("x") || cell.udp(80) || cell.udp(81)
    ),
    case!(
        "two ports of two protocols",
        policy!("p" in "x", "podSelector: {}, ingress: [{ports: [{port: 80, protocol: TCP}, {port: 81, protocol: UDP}]}]"),
        |cell| !cell.to.is("x") || cell.tcp(80) || cell.udp(81)
    ),
    case!(
        "a range of ports",
        policy!("p" in "x", "podSelector: {}, ingress: [{ports: [{port: 81, endPort: 90, protocol: TCP}]}]"),
        |cell| !cell.to.is("x") || cell.tcp(81)
    ),
    case!(
        "a port by its name, to the pods",
        policy!("p" in "x", "podSelector: {}, ingress: [{ports: [{port: serve-80-tcp, protocol: TCP}]}]"),
        |cell| !cell.to.is("x") || cell.tcp(80)
    ),
    case!(
        "a port by its name, from the pods",
        policy!("p" in "x", "podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: serve-81-tcp, protocol: TCP}]}]"),
        |cell| !cell.from.is("x") || cell.tcp(81) && !cell.to.is("out")
    ),
    case!(
        "a name of one protocol says nothing of another",
        policy!("p" in "x", "podSelector: {}, ingress: [{ports: [{port: serve-80-udp, protocol: UDP}]}]"),
        |cell| !cell.to.is("x") || cell.udp(80)
    ),
    case!(
        "a port of one namespace",
        policy!("p" in "x", "podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: 'y'}}}], ports: [{port: 80, protocol: TCP}]}]"),
        |cell| !cell.to.is("x") || cell.from.is("y") && cell.tcp(80)
    ),
    case!(
        "several rules: each has its own peers and ports",
        policy!("p" in "x", "podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: 'y'}}}], ports: [{port: 80}]}, {from: [{namespaceSelector: {matchLabels: {ns: z}}}], ports: [{port: 81}]}]"),
        |cell| !cell.to.is("x") || cell.from.is("y") && cell.tcp(80) || cell.from.is("z") && cell.tcp(81)
    ),
    case!(
        "policies that overlap add up",
        concat!(
            policy!("one" in "x", "podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: 'y'}}}], ports: [{port: 80}]}]"),
            policy!("two" in "x", "podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: z}}}], ports: [{port: 81}]}]")
        ),
        |cell| !cell.to.is("x")
            || cell.from.is("z") && cell.tcp(81)
            || cell.to.is("x/a") && cell.from.is("y") && cell.tcp(80)
    ),
    case!(
        "egress to a pod of the own namespace",
        policy!("p" in "x", "podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {pod: b}}}]}]"),
        |cell| !cell.from.is("x/a") || cell.to.is("x/b")
    ),
    case!(
        "egress to another namespace's pods, on one port",
        policy!("p" in "x", "podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {ns: 'y'}}, podSelector: {matchLabels: {pod: a}}}], ports: [{port: 80}]}]"),
        |cell| !cell.from.is("x/a") || cell.to.is("y/a") && cell.tcp(80)
    ),
    case!(
        "several egress policies add up",
        concat!(
            policy!("one" in "x", "podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {ns: 'y'}}}]}]"),
            policy!("two" in "x", "podSelector: {matchLabels: {pod: b}}, policyTypes: [Egress], egress: [{ports: [{port: 81, protocol: UDP}]}]")
        ),
        |cell| !cell.from.is("x") || cell.to.is("y") || cell.from.is("x/b") && cell.udp(81)
    ),
    case!(
        "both ends must agree",
        concat!(
            policy!("out" in "x", "podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {ns: 'y'}}}]}]"),
            policy!("in" in "y", "podSelector: {}, ingress: [{from: [{podSelector: {}}]}]")
        ),
        |cell| if cell.to.is("y") { cell.from.is("y") } else { !cell.from.is("x") }
    ),
    case!(
        "ingress and egress of one policy",
        policy!("p" in "x", "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress, Egress], ingress: [{from: [{namespaceSelector: {matchLabels: {ns: 'y'}}}]}], egress: [{to: [{namespaceSelector: {matchLabels: {ns: z}}}]}]"),
        |cell| (!cell.to.is("x/a") || cell.from.is("y")) && (!cell.from.is("x/a") || cell.to.is("z"))
    ),
    case!(
        "egress to a block of addresses takes no pods",
        policy!("p" in "x", "podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: '::/0'}}]}]"),
        |cell| !cell.from.is("x") || cell.to.is("out")
    ),
    case!(
        "a block with a hole",
        policy!("p" in "x", "podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}}, {ipBlock: {cidr: '2001:db8:2::/48', except: ['2001:db8:2:8000::/49']}}]}]"),
        |cell| !cell.from.is("x") || cell.to.is("out/0")
    ),
    case!(
        "what one block cuts out another one allows",
        concat!(
            policy!("hole" in "x", "podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}}, {ipBlock: {cidr: '2001:db8:2::/48', except: ['2001:db8:2:8000::/49']}}]}]"),
            policy!("filled" in "x", "podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 192.0.2.200/32}}, {ipBlock: {cidr: '2001:db8:2:8000::10/128'}}], ports: [{port: 80}]}]")
        ),
        |cell| !cell.from.is("x")
            || cell.to.is("out/0")
            || cell.from.is("x/a") && cell.to.is("out/1") && cell.tcp(80)
    ),
    case!(
        "ingress from a block of addresses",
        policy!("p" in "x", "podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.128/25}}, {ipBlock: {cidr: '2001:db8:2:8000::/49'}}], ports: [{port: 81}]}]"),
        |cell| !cell.to.is("x") || cell.from.is("out/1") && cell.tcp(81)
    ),
    Case {
        name: "a policy that changes",
        steps: &[
            step("closed", DENY_INGRESS, |cell| !cell.to.is("x")),
            step(
                "one namespace",
                policy!("deny" in "x", "podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {matchLabels: {ns: 'y'}}}]}]"),
                |cell| !cell.to.is("x") || cell.from.is("y"),
            ),
            step(
                "another, and other pods",
                policy!("deny" in "x", "podSelector: {matchLabels: {pod: b}}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {matchLabels: {ns: z}}}]}]"),
                |cell| !cell.to.is("x/b") || cell.from.is("z"),
            ),
            Step { name: "none", manifests: "", gone: &["NetworkPolicy x/deny"], reaches: |_| true },
        ],
    },
    Case {
        name: "a namespace whose labels change",
        steps: &[
            step(
                "before",
                policy!("p" in "x", "podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: blue}}}]}]"),
                |cell| !cell.to.is("x"),
            ),
            step(
                "labelled",
                "apiVersion: v1\nkind: Namespace\nmetadata: {name: 'y', labels: {ns: 'y', team: blue}}\n",
                |cell| !cell.to.is("x") || cell.from.is("y"),
            ),
            step(
                "no more",
                "apiVersion: v1\nkind: Namespace\nmetadata: {name: 'y', labels: {ns: 'y'}}\n",
                |cell| !cell.to.is("x"),
            ),
        ],
    },
    Case {
        name: "a pod whose labels change",
        steps: &[
            step(
                "before",
                policy!("p" in "x", "podSelector: {matchLabels: {role: guarded}}, ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}]}]"),
                |_| true,
            ),
            step(
                "the subject is labelled",
                "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: 'x', labels: {pod: a, role: guarded}}\nspec: {nodeName: n1}\n",
                |cell| !cell.to.is("x/a"),
            ),
            step(
                "the peer is",
                "apiVersion: v1\nkind: Pod\nmetadata: {name: b, namespace: 'x', labels: {pod: b, role: friend}}\nspec: {nodeName: n1}\n",
                |cell| !cell.to.is("x/a") || cell.from.is("x/b"),
            ),
        ],
    },
];
