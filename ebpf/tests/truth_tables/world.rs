//! Nine pods on one node, an address outside in each of two networks, and what the policies of a case make of them.

use crate::support::{self, MAC_A, Node, Ran, SHOT, index, ip, sh, small_sizes, tcp, udp};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use tombolo_base::ids::{ClusterId, ClusterName, IdentityId, MaxClusters};
use tombolo_base::labels::Labels;
use tombolo_base::source::Source;
use tombolo_base::table::Table;
use tombolo_ebpf::{
    EventKind, LocalAddress, MapSizes, PolicySet, PolicySide, PortPrefix, PrefixEntry, RuleAction, RuleEntry,
    RuleTier,
};
use tombolo_kubernetes::{ClusterIdentity, LabelFilter, identity_labels, read_manifests};
use tombolo_model::policy::{Outcome, Party, Policies, Question};
use tombolo_policy::compile::{Change, Compiler, Inputs};
use tombolo_policy::{Action, Direction, Landmarks, NamedPort, PolicyRow, Tier};
use tombolo_topology::{EndpointRow, EndpointState, IdentityRow};

pub(crate) const FAMILIES: [u8; 2] = [4, 6];
const NAMESPACES: [&str; 3] = ["x", "y", "z"];
const PODS: [&str; 3] = ["a", "b", "c"];
/// One address in each of two halves of a network outside.
const OUTSIDE: [[&str; 2]; 2] = [["192.0.2.10", "2001:db8:2::10"], ["192.0.2.200", "2001:db8:2:8000::10"]];
const TCP: u8 = 6;
const UDP: u8 = 17;

/// One end of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The number of a namespace, and of a pod in it.
    Pod(usize, usize),
    /// The number of an address outside.
    Outside(usize),
}

/// A question of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) from: End,
    pub(crate) to: End,
    pub(crate) protocol: u8,
    pub(crate) port: u16,
}

impl End {
    fn all() -> impl Iterator<Item = Self> {
        let pods = (0..3).flat_map(|namespace| (0..3).map(move |pod| Self::Pod(namespace, pod)));
        pods.chain((0..OUTSIDE.len()).map(Self::Outside))
    }

    /// Whether it is the pod, or one of the namespace, of this name (`x/a`, `x`), or outside (`out`, `out/0`).
    pub(crate) fn is(self, name: &str) -> bool {
        let own = self.to_string();
        own == name || own.split_once('/').is_some_and(|(first, _)| first == name)
    }

    /// Whether it is a pod of this name in any namespace.
    pub(crate) fn pod(self, name: &str) -> bool {
        matches!(self, Self::Pod(_, pod) if PODS[pod] == name)
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(namespace, pod) => write!(f, "{}/{}", NAMESPACES[*namespace], PODS[*pod]),
            Self::Outside(number) => write!(f, "out/{number}"),
        }
    }
}

impl Cell {
    /// Every pair, port and protocol. What a pod says to itself never passes a policy, nor does what is outside at both ends.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let pairs = End::all().flat_map(|from| End::all().map(move |to| (from, to)));
        let outside = |end: &End| matches!(end, End::Outside(_));
        let pairs = pairs.filter(move |(from, to)| from != to && !(outside(from) && outside(to)));
        pairs.flat_map(|(from, to)| {
            let asked = [(TCP, 80), (TCP, 81), (UDP, 80), (UDP, 81)];
            asked.map(|(protocol, port)| Self { from, to, protocol, port })
        })
    }

    pub(crate) fn tcp(&self, port: u16) -> bool {
        self.protocol == TCP && self.port == port
    }

    pub(crate) fn udp(&self, port: u16) -> bool {
        self.protocol == UDP && self.port == port
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = if self.protocol == TCP { "TCP" } else { "UDP" };
        write!(f, "{} -> {} {protocol} {}", self.from, self.to, self.port)
    }
}

/// The node, and the policies of a case in force on it.
pub(crate) struct World {
    node: Node,
    interfaces: Vec<u32>,
    /// Manifests by object: what a later step says of one takes the place of what was said before.
    manifests: BTreeMap<String, String>,
    identities: BTreeMap<String, IdentityId>,
    held: Held,
    compiler: Compiler,
    /// Each question is a flow of its own.
    next_port: u16,
}

/// What the manifests come to.
struct Held {
    tables: tombolo_kubernetes::Tables,
    /// By number of a pod.
    labels: Vec<Labels>,
}

fn cluster() -> ClusterIdentity {
    let name = ClusterName::new("east").expect("a name");
    ClusterIdentity { name, id: ClusterId::new(1, MaxClusters::default()).expect("a number") }
}

fn number(end: End) -> Option<usize> {
    match end {
        End::Pod(namespace, pod) => Some(namespace * 3 + pod),
        End::Outside(_) => None,
    }
}

fn address(end: End, family: u8) -> String {
    match (end, family) {
        (End::Outside(number), _) => OUTSIDE[number][usize::from(family == 6)].to_owned(),
        (End::Pod(namespace, pod), 4) => format!("10.1.{}.{}", 10 + namespace, 10 + pod),
        (End::Pod(namespace, pod), _) => format!("fd00:10:1:1::{}:{}", 10 + namespace, 10 + pod),
    }
}

fn base() -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    for (n, namespace) in NAMESPACES.iter().enumerate() {
        let text = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: '{namespace}', labels: {{ns: '{namespace}'}}}}\n"
        );
        out.insert(format!("Namespace {namespace}"), text);
        for (p, pod) in PODS.iter().enumerate() {
            let (v4, v6) = (address(End::Pod(n, p), 4), address(End::Pod(n, p), 6));
            let text = format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: {pod}, namespace: '{namespace}', labels: {{pod: {pod}}}}}\n\
                 spec:\n  nodeName: n1\n  containers:\n    - name: c\n      ports:\n        \
                 - {{name: serve-80-tcp, containerPort: 80, protocol: TCP}}\n        \
                 - {{name: serve-81-tcp, containerPort: 81, protocol: TCP}}\n        \
                 - {{name: serve-80-udp, containerPort: 80, protocol: UDP}}\n\
                 status: {{podIPs: [{{ip: {v4}}}, {{ip: \"{v6}\"}}]}}\n"
            );
            out.insert(format!("Pod {namespace}/{pod}"), text);
        }
    }
    out
}

/// `Kind namespace/name` of a document.
fn title(text: &str) -> String {
    let field = |name: &str| {
        let at = text.find(&format!("{name}: ")).map(|at| at + name.len() + 2)?;
        text[at..].split([',', '}', '\n']).next().map(|word| word.trim().trim_matches('\'').to_owned())
    };
    let kind = field("kind").expect("a kind");
    let name = field("name").expect("a name");
    if kind == "Namespace" {
        format!("{kind} {name}")
    } else {
        format!("{kind} {}/{name}", field("namespace").expect("a namespace"))
    }
}

impl World {
    pub(crate) fn new() -> Self {
        let sizes = MapSizes { conntrack: 8192, conntrack_half: 8192, rules: 4096, ..small_sizes() };
        let node = Node::with_sizes(sizes);
        sh(
            "for n in 0 1 2 3 4 5 6 7 8; do ip link add t$n type veth peer name u$n; ip link set t$n up; ip link set u$n up; done",
        );
        let interfaces = (0..9).map(|n| index(&format!("t{n}"))).collect();
        let (held, compiler) = (read(&base()), Compiler::new(cluster().name));
        let identities = BTreeMap::new();
        let mut world =
            Self { node, interfaces, manifests: base(), identities, held, compiler, next_port: 1024 };
        world.begin();
        world
    }

    /// Begins a case.
    pub(crate) fn begin(&mut self) {
        self.manifests = base();
        self.enforce();
    }

    /// Takes in manifests, and takes away objects by their titles.
    pub(crate) fn apply(&mut self, manifests: &str, gone: &[&str]) {
        for text in manifests.split("---\n").filter(|text| !text.trim().is_empty()) {
            self.manifests.insert(title(text), text.to_owned());
        }
        for gone in gone {
            assert!(self.manifests.remove(*gone).is_some(), "{gone} is not there");
        }
        self.enforce();
    }

    /// Puts everything in force, as the agent does: policies, then prefixes, then the pods' rows.
    fn enforce(&mut self) {
        self.held = read(&self.manifests);
        let (identities, endpoints) = (Table::new(), Table::new());
        let mut named_ports: BTreeMap<IdentityId, BTreeSet<NamedPort>> = BTreeMap::new();
        let mut subjects = Vec::new();
        for (n, labels) in self.held.labels.iter().enumerate() {
            let next = IdentityId(70_000 + u32::try_from(self.identities.len()).expect("few"));
            let id = *self.identities.entry(format!("{labels:?}")).or_insert(next);
            subjects.push(id);
            identities.1.upsert(IdentityRow { source: Source::Manifests, id, labels: labels.clone() });
            endpoints.1.upsert(endpoint(u16::try_from(n + 1).expect("few"), id, labels.clone()));
            named_ports.entry(id).or_default().extend(ports());
        }
        let inputs = Inputs {
            rules: &self.held.tables.rules.snapshot(),
            groups: &self.held.tables.cidr_groups.snapshot(),
            identities: &identities.0.snapshot(),
            endpoints: &endpoints.0.snapshot(),
            named_ports: &named_ports,
            may_shrink: true,
        };
        let delta = self.compiler.update(&inputs, &Change::Everything);
        assert!(self.compiler.problems().is_empty(), "{:?}", self.compiler.problems());
        for row in &delta.policies {
            self.node.datapath.set_policy(row.id, &set(row)).expect("written");
        }
        for (prefix, identity) in &delta.prefixes {
            let entry = PrefixEntry { identity: identity.0, ..PrefixEntry::default() };
            self.node.datapath.upsert_prefix(prefix.net(), &entry).expect("written");
        }
        let policies: BTreeMap<IdentityId, u32> =
            self.compiler.policies().map(|row| (row.subject, row.id)).collect();
        for (n, id) in subjects.iter().enumerate() {
            let end = End::Pod(n / 3, n % 3);
            let addresses = [address(end, 4), address(end, 6)];
            let endpoint = u16::try_from(n + 1).expect("few");
            let mut row = support::pod([&addresses[0], &addresses[1]], id.0, endpoint, MAC_A);
            row.policy_id = policies.get(id).copied().unwrap_or(0);
            self.node.datapath.upsert_interface(self.interfaces[n], &row).expect("written");
            for text in addresses {
                let place = LocalAddress::Pod(self.interfaces[n]);
                self.node.datapath.upsert_local_address(ip(&text), place).expect("written");
            }
        }
        for prefix in &delta.removed_prefixes {
            self.node.datapath.delete_prefix(prefix.net()).expect("removed");
        }
        for id in delta.removed_policies {
            self.node.datapath.delete_policy(id).expect("removed");
        }
    }

    /// What the specification says: nothing, or the reason of the drop.
    pub(crate) fn specified(&self, cell: &Cell, family: u8) -> Result<(), u8> {
        let rules: Vec<_> = self.held.tables.rules.snapshot().iter().cloned().collect();
        let groups: Vec<_> = self.held.tables.cidr_groups.snapshot().iter().cloned().collect();
        let (cluster, node, landmarks) = (cluster().name, Labels::default(), Landmarks::default());
        let policies = Policies {
            cluster: &cluster,
            rules: &rules,
            groups: &groups,
            node: &node,
            landmarks: &landmarks,
        };
        let party = |end: End| match number(end) {
            Some(n) => {
                Party::Pod { labels: self.held.labels[n].clone(), ports: ports().into_iter().collect() }
            }
            None => Party::Address(address(end, family).parse::<IpAddr>().expect("literal")),
        };
        let (from, to) = (party(cell.from), party(cell.to));
        for (direction, subject, peer) in [(Direction::Egress, &from, &to), (Direction::Ingress, &to, &from)]
        {
            if matches!(subject, Party::Address(_)) {
                continue;
            }
            let question = Question { direction, subject, peer, protocol: cell.protocol, port: cell.port };
            match policies.answer(&question).outcome {
                Outcome::Allowed(_) | Outcome::Open => {}
                Outcome::Denied(_) => return Err(181),
                Outcome::Unsaid => return Err(133),
            }
        }
        Ok(())
    }

    /// What the programs make of the first packet of a flow.
    pub(crate) fn found(&mut self, cell: &Cell, family: u8) -> Result<(), u8> {
        let (source, destination) = (address(cell.from, family), address(cell.to, family));
        self.next_port = if self.next_port == u16::MAX { 1024 } else { self.next_port + 1 };
        let ends = ((source.as_str(), self.next_port), (destination.as_str(), cell.port));
        let packet = if cell.protocol == TCP { tcp(ends.0, ends.1, "S") } else { udp(ends.0, ends.1, 10) };
        let (program, interface) = match number(cell.from) {
            Some(n) => ("from_endpoint", self.interfaces[n]),
            None => ("from_uplink", self.node.uplink),
        };
        let Ran { action, .. } = self.node.run(program, interface, &packet);
        let events = self.node.events();
        if action != SHOT {
            return Ok(());
        }
        let drop = events.iter().find(|event| event.kind == EventKind::Drop);
        Err(drop.map_or(0, |event| event.flow.drop_reason))
    }
}

fn read(manifests: &BTreeMap<String, String>) -> Held {
    let text = manifests.values().cloned().collect::<Vec<_>>().join("---\n");
    let (tables, problems) = read_manifests(Path::new("case.yaml"), &text, &cluster());
    assert!(problems.is_empty(), "{problems:?}\n{text}");
    let (pods, namespaces) = (tables.pods.snapshot(), tables.namespaces.snapshot());
    let labels = End::all().filter(|end| number(*end).is_some()).map(|end| {
        let title = end.to_string();
        let (namespace, pod) = title.split_once('/').expect("both");
        let row = pods.get(&(namespace.into(), pod.into())).expect("a pod");
        identity_labels(row, namespaces.get(&namespace.into()), &cluster().name, &LabelFilter::default())
    });
    let labels = labels.collect();
    Held { tables, labels }
}

fn ports() -> [NamedPort; 3] {
    [("serve-80-tcp", TCP, 80), ("serve-81-tcp", TCP, 81), ("serve-80-udp", UDP, 80)]
        .map(|(name, protocol, port)| NamedPort { name: name.into(), protocol, port })
}

fn endpoint(id: u16, identity: IdentityId, labels: Labels) -> EndpointRow {
    EndpointRow {
        id,
        namespace: "x".into(),
        pod: format!("p{id}").into(),
        container_id: "c".into(),
        addresses: vec![],
        host_interface: "t".into(),
        ifindex: 1,
        mac: [0; 6],
        host_mac: [0; 6],
        identity: Some(identity),
        labels,
        state: EndpointState::Ready,
        port_mappings: BTreeSet::new(),
        queued: false,
    }
}

/// A compiled policy as the datapath takes it.
fn set(row: &PolicyRow) -> PolicySet {
    let side = |direction, enforced| {
        let entries = row.entries.iter().filter(|(key, _)| key.direction == direction);
        let entries = entries.map(|(key, verdict)| RuleEntry {
            tier: match key.tier {
                Tier::Admin => RuleTier::Admin,
                Tier::Normal => RuleTier::Normal,
                Tier::Baseline => RuleTier::Baseline,
            },
            identity: (key.identity.0 != 0).then_some(key.identity.0),
            protocol: (key.protocol != 0).then_some(key.protocol),
            port: (key.port_bits != 0).then_some(PortPrefix { first: key.port, bits: key.port_bits }),
            action: match verdict.precedence.action() {
                Action::Pass => RuleAction::Pass,
                Action::Allow => RuleAction::Allow,
                Action::Deny => RuleAction::Deny,
            },
            priority: verdict.precedence.priority(),
            cookie: verdict.cookie,
        });
        PolicySide { enforced, entries: entries.collect() }
    };
    PolicySet {
        ingress: side(Direction::Ingress, row.ingress_enforced),
        egress: side(Direction::Egress, row.egress_enforced),
        audit: row.audit,
    }
}
