//! What a stream is made of.

use crate::world::{A, B, BACKEND_COUNT, HOSTS, Leaving, POLICIES, Reached, SERVICE_COUNT, Switches, at};
use proptest::prelude::*;
use tombolo_ebpf::LbMode;
use tombolo_model::{Action, Fragment, Policy, Rule, Side, TcpFlags, Tier};

/// Where a packet meets a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// The pod sends: position in `HOSTS`.
    FromPod(usize),
    /// The stack sends to the pod.
    ToPod(usize),
    FromUplink,
    ToUplink,
    ToOverlay,
}

/// What a packet carries, as far as it does not follow from its ends.
#[derive(Clone, Copy, Debug)]
pub enum Load {
    Tcp(TcpFlags),
    Udp,
    Sctp,
    Echo(bool),
    Other,
}

#[derive(Clone, Debug)]
pub enum Step {
    /// A packet between two of `HOSTS`.
    Send {
        hook: Hook,
        from: usize,
        to: usize,
        v6: bool,
        ports: (u16, u16),
        load: Load,
        hops: u8,
        fragment: Fragment,
        /// The frontend that it names: position in `HOSTS`, and port.
        names: Option<(usize, u16)>,
    },
    /// The same as an earlier one, with other flags; of a first fragment, another of the datagram.
    Again {
        of: usize,
        flags: TcpFlags,
    },
    /// The answer to one that was passed on, from where it went.
    Answer {
        of: usize,
        flags: TcpFlags,
    },
    /// An error about one that was passed on: from where it went, or from a router; about another port, or for somebody
    /// else.
    Complain {
        of: usize,
        router: bool,
        stray: bool,
        forged: bool,
    },
    /// Seconds.
    Wait(u64),
    Policy(u32, Option<Policy>),
    Assign {
        pod: usize,
        policy: u32,
        ready: bool,
        renamed: bool,
    },
    /// A service without backends, or with some, or none at all.
    Service {
        v6: bool,
        service: usize,
        backends: Option<Vec<usize>>,
    },
    /// The identity of one of the remote pods.
    Identity {
        v6: bool,
        direct: bool,
        identity: u32,
    },
    /// User space forgets a pod's flows.
    Forget(usize),
    Backend {
        v6: bool,
        backend: usize,
        shift: Option<u16>,
    },
    Configure(Switches),
    Remote(Reached),
    /// How a pod leaves the mesh for everywhere, or for some.
    Leave {
        v6: bool,
        pod: usize,
        wide: bool,
        way: Option<Leaving>,
    },
    /// User space collects what is over.
    Collect,
    /// All services go, and user space collects what nobody needs.
    Retire,
}

fn flags() -> impl Strategy<Value = TcpFlags> {
    let (syn, ack) = (TcpFlags::SYN, TcpFlags::ACK);
    prop_oneof![
        6 => Just(syn),
        4 => Just(syn | ack),
        8 => Just(ack),
        3 => Just(TcpFlags::FIN | ack),
        1 => Just(TcpFlags::RST),
        1 => Just(TcpFlags::RST | ack),
        1 => Just(TcpFlags(0)),
        1 => (0_u8..32).prop_map(TcpFlags),
    ]
}

fn load() -> impl Strategy<Value = Load> {
    prop_oneof![
        8 => flags().prop_map(Load::Tcp),
        4 => Just(Load::Udp),
        2 => Just(Load::Sctp),
        2 => any::<bool>().prop_map(Load::Echo),
        1 => Just(Load::Other),
    ]
}

fn pod() -> impl Strategy<Value = usize> {
    prop_oneof![Just(A), Just(B)]
}

/// A hook, and who sends there.
fn sender() -> impl Strategy<Value = (Hook, usize)> {
    let anybody = 0..HOSTS.len();
    prop_oneof![
        10 => Just((Hook::FromPod(A), A)),
        6 => Just((Hook::FromPod(B), B)),
        1 => (pod(), anybody.clone()).prop_map(|(pod, from)| (Hook::FromPod(pod), from)),
        2 => (pod(), anybody.clone()).prop_map(|(pod, from)| (Hook::ToPod(pod), from)),
        // Remote pods and a client.
        6 => (2_usize..5).prop_map(|from| (Hook::FromUplink, from)),
        5 => Just((Hook::FromUplink, at::CLIENT)),
        1 => anybody.clone().prop_map(|from| (Hook::FromUplink, from)),
        2 => anybody.clone().prop_map(|from| (Hook::ToUplink, from)),
        1 => anybody.prop_map(|from| (Hook::ToOverlay, from)),
    ]
}

fn send() -> impl Strategy<Value = Step> {
    let to = prop_oneof![4 => Just(A), 3 => Just(B), 6 => Just(at::CLUSTER_IP), 8 => Just(at::VIP), 10 => 0..HOSTS.len()];
    let port = || {
        prop_oneof![
            6 => Just(80_u16), 3 => Just(81), 1 => Just(82), 3 => Just(8080), 1 => Just(8472),
            1 => Just(8081), 1 => Just(0)
        ]
    };
    let source = prop_oneof![8 => 4000_u16..4003, 1 => port()];
    let hops = prop_oneof![30 => Just(64_u8), 1 => Just(1), 1 => Just(2)];
    let fragment = prop_oneof![
        24 => Just(Fragment::Whole),
        3 => (1_u32..4).prop_map(Fragment::First),
        1 => (1_u32..4).prop_map(Fragment::Later),
    ];
    let front = prop::sample::select(vec![at::VIP, at::VIP, at::VIP, at::CLUSTER_IP]);
    let names = prop::option::weighted(0.15, (front, prop::sample::select(vec![80_u16, 80, 81, 82])));
    let header = (hops, fragment, names, any::<bool>());
    (sender(), to, any::<bool>(), (source, port()), load(), header).prop_map(
        |((hook, from), to, v6, ports, load, (hops, fragment, names, aimed))| {
            // As a node sends it that an outside client has asked.
            let aimed = aimed && names.is_some();
            let (hook, from) = if aimed { (Hook::FromUplink, at::CLIENT) } else { (hook, from) };
            let (to, ports) = if aimed { (A, (ports.0, 8080)) } else { (to, ports) };
            Step::Send { hook, from, to, v6, ports, load, hops, fragment, names }
        },
    )
}

fn rule() -> impl Strategy<Value = Rule> {
    let identity = [66_001, 66_002, 66_003, 66_004, 1, 2, 6, 9, 10];
    let identity = prop::option::of(prop::sample::select(identity.to_vec()));
    // Whole ports, prefixes that take some of them, and types of ICMP; a port needs a protocol.
    let ports = [(80, 16), (81, 16), (8080, 16), (8081, 16), (80, 15), (64, 10), (8080, 15), (0, 1)];
    let of = |protocol: u8, ports: &[(u16, u8)]| {
        let any_port = std::iter::once(None);
        let some = ports.iter().copied().map(Some);
        prop::sample::select(any_port.chain(some).map(|port| (Some(protocol), port)).collect::<Vec<_>>())
    };
    let what = prop_oneof![
        2 => Just((None, None)),
        3 => of(6, &ports),
        1 => of(17, &ports),
        1 => of(1, &[(8 << 8, 8), (0, 8)]),
        1 => of(58, &[(128 << 8, 8), (129 << 8, 8)]),
    ];
    let tier =
        prop::sample::select(vec![Tier::Admin, Tier::Normal, Tier::Normal, Tier::Normal, Tier::Baseline]);
    let action = prop::sample::select(vec![Action::Allow, Action::Allow, Action::Deny, Action::Pass]);
    let priority = prop::sample::select(vec![0_u32, 0, 1, 0xFF_FFFE]);
    (tier, identity, what, action, priority).prop_map(
        |(tier, identity, (protocol, port), action, priority)| Rule {
            tier,
            identity,
            protocol,
            port,
            action,
            priority,
        },
    )
}

fn policy() -> impl Strategy<Value = Policy> {
    let rules = || prop::collection::vec(rule(), 0..5);
    let side =
        move || (prop::bool::weighted(0.6), rules()).prop_map(|(enforced, rules)| Side { enforced, rules });
    (side(), side(), prop::bool::weighted(0.05)).prop_map(|(ingress, egress, audit)| Policy {
        ingress,
        egress,
        audit,
    })
}

fn switches() -> impl Strategy<Value = Switches> {
    let mostly = || prop::bool::weighted(0.95);
    let host = prop::option::weighted(0.4, POLICIES).prop_map(Option::unwrap_or_default);
    let lb_mode = prop::sample::select(vec![LbMode::Snat, LbMode::Dsr, LbMode::Dsr, LbMode::Hybrid]);
    (mostly(), any::<bool>(), mostly(), any::<bool>(), 1_u16..5, host, (lb_mode, any::<bool>())).prop_map(
        |(ready, encrypt, overlay, wireguard, ports, host, (lb_mode, masquerade))| Switches {
            ready,
            encrypt,
            overlay,
            wireguard,
            ports,
            host,
            lb_mode,
            masquerade,
        },
    )
}

fn leaving() -> impl Strategy<Value = Leaving> {
    use Leaving::{Excluded, Here, Nameless, Nowhere, Remote, Unknown};
    prop::sample::select(vec![Nowhere, Excluded, Remote, Unknown, Here, Here, Here, Nameless])
}

fn row() -> impl Strategy<Value = Step> {
    let backends = prop::collection::vec(0..BACKEND_COUNT, 0..4);
    prop_oneof![
        6 => (POLICIES, prop::option::weighted(0.95, policy())).prop_map(|(n, policy)| Step::Policy(n, policy)),
        4 => (pod(), 0..POLICIES.end, prop::bool::weighted(0.95), prop::bool::weighted(0.1)).prop_map(
            |(pod, policy, ready, renamed)| Step::Assign { pod, policy, ready, renamed }
        ),
        5 => (any::<bool>(), 0..SERVICE_COUNT, prop::option::weighted(0.7, backends))
            .prop_map(|(v6, service, backends)| Step::Service { v6, service, backends }),
        1 => (any::<bool>(), any::<bool>(), prop::sample::select(vec![2, 66_003, 66_004]))
            .prop_map(|(v6, direct, identity)| Step::Identity { v6, direct, identity }),
        1 => pod().prop_map(Step::Forget),
        2 => (any::<bool>(), 0..BACKEND_COUNT, prop::option::weighted(0.8, 0_u16..2))
            .prop_map(|(v6, backend, shift)| Step::Backend { v6, backend, shift }),
        4 => switches().prop_map(Step::Configure),
        1 => (any::<bool>(), prop::bool::weighted(0.8), any::<bool>())
            .prop_map(|(direct, tunnel, encrypt)| Step::Remote(Reached { direct, tunnel, encrypt })),
        3 => (any::<bool>(), pod(), any::<bool>(), prop::option::weighted(0.9, leaving()))
            .prop_map(|(v6, pod, wide, way)| Step::Leave { v6, pod, wide, way }),
        3 => Just(Step::Collect),
        1 => Just(Step::Retire),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    // The lives of flows, a bit less and a bit more.
    let seconds = vec![5_u64, 10, 15, 55, 60, 65, 115, 120, 125, 7995, 8000, 8005];
    let of = || 0_usize..12;
    prop_oneof![
        16 => send(),
        12 => (of(), flags()).prop_map(|(of, flags)| Step::Again { of, flags }),
        20 => (of(), flags()).prop_map(|(of, flags)| Step::Answer { of, flags }),
        4 => (of(), any::<bool>(), prop::bool::weighted(0.1), prop::bool::weighted(0.1))
            .prop_map(|(of, router, stray, forged)| Step::Complain { of, router, stray, forged }),
        3 => prop::sample::select(seconds).prop_map(Step::Wait),
        4 => row(),
    ]
}

/// A stream: what it changes first, and what follows.
pub fn stream() -> impl Strategy<Value = Vec<Step>> {
    let first = prop::collection::vec(row(), 0..8);
    let then = prop::collection::vec(step(), 1..120);
    (first, then).prop_map(|(first, then)| first.into_iter().chain(then).collect())
}
