//! From policies, nodes and pods to rows. Pure.

use super::{EgressGatewayRow, EgressPolicyRow, EgressRow, EgressWay, GatewayIntent};
use crate::bgp::network::is_global;
use crate::rows::{NodeIndex, NodePath, NodeRow, PathKind};
use crate::selector::LabelSelector;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_base::ids::{ClusterName, IdentityId};
use tombolo_base::labels::Labels;
use tombolo_base::prefix::Prefix;
use tombolo_base::source::Source;

/// An interface of this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its addresses, in the kernel's order.
    pub addresses: Vec<IpAddr>,
}

/// What a gateway must know of its machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Interfaces by name.
    pub links: BTreeMap<Arc<str>, Link>,
    /// The interface of the default route of IPv4 and IPv6: what a gateway uses that names none.
    pub default_link: [Option<Arc<str>>; 2],
}

fn family(ipv4: bool) -> usize {
    usize::from(!ipv4)
}

impl Machine {
    fn address(&self, link: &str, ipv4: bool) -> Option<IpAddr> {
        let addresses = self.links.get(link).into_iter().flat_map(|link| &link.addresses);
        addresses.copied().find(|address| address.is_ipv4() == ipv4 && is_global(address))
    }

    fn holder(&self, address: IpAddr) -> Option<&Arc<str>> {
        self.links.iter().find(|(_, link)| link.addresses.contains(&address)).map(|(name, _)| name)
    }

    /// Where packets of a family leave by this gateway, and under which address.
    fn way(&self, gateway: &GatewayIntent, ipv4: bool) -> Option<(Arc<str>, IpAddr)> {
        if let Some(address) = gateway.address {
            let link = gateway.interface.as_ref().or_else(|| self.holder(address))?;
            return (address.is_ipv4() == ipv4).then(|| (link.clone(), address));
        }
        let link = gateway
            .interface
            .as_ref()
            .or_else(|| self.default_link.get(family(ipv4)).and_then(Option::as_ref))?;
        Some((link.clone(), self.address(link, ipv4)?))
    }
}

/// A gateway that a policy has at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Gateway {
    node: Arc<str>,
    way: EgressWay,
    /// Of this node, for IPv6; the other is for IPv4.
    way6: EgressWay,
    here: bool,
}

impl Gateway {
    const fn way(&self, ipv4: bool) -> EgressWay {
        if ipv4 { self.way } else { self.way6 }
    }
}

struct Choice {
    policy: EgressPolicyRow,
    gateways: Vec<Gateway>,
}

/// A pod as the plan sees it.
#[derive(Clone, Copy, Debug)]
pub struct Pod<'a> {
    /// The address.
    pub address: IpAddr,
    /// Its identity.
    pub identity: IdentityId,
    /// The labels behind the identity.
    pub labels: &'a Labels,
    /// The node it is on, if that is known.
    pub node: Option<&'a NodeRow>,
    /// Whether that is this one.
    pub local: bool,
}

/// Policies with the gateways that they have now.
pub struct Planner {
    cluster: ClusterName,
    node: Arc<str>,
    choices: Vec<Choice>,
}

/// The value of a label written `source:key`.
fn value<'a>(labels: &'a Labels, key: &str) -> Option<&'a str> {
    let (source, key) = key.split_once(':')?;
    let label = labels.label(key)?;
    (source == "any" || label.source.as_ref() == source).then_some(label.value.as_ref())
}

fn selects(policy: &EgressPolicyRow, pod: &Pod<'_>) -> bool {
    let on = |nodes: &LabelSelector| pod.node.is_some_and(|node| nodes.matches_texts(&node.labels));
    policy.selectors.iter().any(|selector| {
        selector.pods.matches(|key| value(pod.labels, key)) && selector.nodes.as_ref().is_none_or(on)
    })
}

/// How well a gateway suits a pod: all nodes rank alike, and one that goes takes only its own pods' choice along (rendezvous
/// hashing, by FNV-1a).
fn rank(pod: IpAddr, node: &str) -> u64 {
    let octets = match pod {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let bytes = octets.iter().copied().chain(node.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    // The last bytes are mixed less than the first.
    (hash ^ hash >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Planner {
    /// Of this node, without policies yet.
    #[must_use]
    pub const fn new(cluster: ClusterName, node: Arc<str>) -> Self {
        Self { cluster, node, choices: Vec::new() }
    }

    /// Finds the gateways of all policies anew, and says what it found.
    pub fn resolve<'a>(
        &mut self,
        policies: impl Iterator<Item = &'a EgressPolicyRow>,
        nodes: &[NodeRow],
        paths: &[NodePath],
        machine: &Machine,
    ) -> Vec<EgressGatewayRow> {
        let mut told = Vec::new();
        self.choices = policies
            .map(|policy| {
                let mut gateways: Vec<Gateway> = Vec::new();
                for (position, intent) in policy.gateways.iter().enumerate() {
                    let (gateway, row) =
                        self.gateway(&policy.name, position, intent, (nodes, paths, machine));
                    told.push(row);
                    // A node that several entries take is one gateway.
                    gateways
                        .extend(gateway.filter(|new| gateways.iter().all(|known| known.node != new.node)));
                }
                Choice { policy: policy.clone(), gateways }
            })
            .collect();
        told
    }

    fn gateway(
        &self,
        policy: &Arc<str>,
        position: usize,
        intent: &GatewayIntent,
        (nodes, paths, machine): (&[NodeRow], &[NodePath], &Machine),
    ) -> (Option<Gateway>, EgressGatewayRow) {
        let mut row = EgressGatewayRow {
            source: Source::Planner,
            policy: policy.clone(),
            position,
            node: None,
            interface: None,
            addresses: Vec::new(),
            problem: String::new(),
        };
        let taken = nodes.iter().filter(|node| node.cluster == self.cluster && node.ready != Some(false));
        let taken = taken.filter(|node| intent.nodes.matches_texts(&node.labels)).map(|node| &node.name);
        let Some(name) = taken.min() else {
            row.problem = "no ready node has the labels of nodeSelector; label one".to_owned();
            return (None, row);
        };
        row.node = Some(name.clone());
        if *name != self.node {
            let path = |path: &&NodePath| path.cluster == self.cluster && path.node == *name;
            let index: Option<NodeIndex> = paths
                .iter()
                .find(path)
                .filter(|path| path.path != PathKind::Local && path.underlay.is_some())
                .map(|path| path.index);
            let Some(index) = index else {
                row.problem = "the way to this node is not known yet; tombolo show paths".to_owned();
                return (None, row);
            };
            let way = EgressWay::Node(index);
            return (Some(Gateway { node: name.clone(), way, way6: way, here: false }), row);
        }
        let ways = [true, false].map(|ipv4| machine.way(intent, ipv4));
        let here = |way: &Option<(Arc<str>, IpAddr)>| EgressWay::Here {
            address: way.as_ref().map(|(_, address)| *address),
            ifindex: way.as_ref().and_then(|(link, _)| machine.links.get(link)).map_or(0, |link| link.index),
        };
        let [way, way6] = [0, 1].map(|family| ways.get(family).map_or(EgressWay::Nowhere, here));
        let found = || ways.iter().flatten();
        row.interface = found().next().map(|(link, _)| link.clone());
        row.addresses = found().map(|(_, address)| *address).collect();
        if row.addresses.is_empty() {
            row.problem = match (intent.address, &intent.interface) {
                (Some(address), _) => format!("no interface here has the egressIP {address}; add it to one"),
                (None, Some(link)) => format!("the interface {link} has no address here; give it one"),
                (None, None) => "there is no default route here; name the interface in the policy".to_owned(),
            };
        }
        (Some(Gateway { node: name.clone(), way, way6, here: true }), row)
    }

    /// How the packets of a pod leave; `None` if this node has nothing to do with it.
    #[must_use]
    pub fn row(&self, pod: &Pod<'_>) -> Option<EgressRow> {
        let ipv4 = pod.address.is_ipv4();
        let mut ways: BTreeMap<Prefix, EgressWay> = BTreeMap::new();
        let mut concerned = pod.local;
        // Policies come by name; of those that say something of one destination the first counts.
        for Choice { policy, gateways } in self.choices.iter().filter(|choice| selects(&choice.policy, pod)) {
            let way = if pod.local {
                let best = gateways.iter().max_by_key(|gateway| rank(pod.address, &gateway.node));
                best.map_or(EgressWay::Nowhere, |gateway| gateway.way(ipv4))
            } else {
                // Whoever may be chosen takes the pod's packets: nodes learn of each other's state at different moments.
                let here = gateways.iter().find(|gateway| gateway.here);
                concerned |= here.is_some();
                here.map_or(EgressWay::Nowhere, |gateway| gateway.way(ipv4))
            };
            let of_family = |prefix: &&Prefix| prefix.is_ipv4() == ipv4;
            for prefix in policy.excluded.iter().filter(of_family) {
                ways.entry(*prefix).or_insert(EgressWay::Excluded);
            }
            for prefix in policy.destinations.iter().filter(of_family) {
                ways.entry(*prefix).or_insert(way);
            }
        }
        concerned.then_some(EgressRow {
            source: Source::Planner,
            pod: pod.address,
            identity: pod.identity,
            ways,
        })
    }

    /// Whether there is any policy.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.choices.is_empty()
    }
}
