//! Who is meant by an address, a pod's name or an identity, as policies know parties.

use super::policy::named_ports;
use super::tables::{Desired, Intent};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use tombolo_base::ids::{ClusterName, IdentityId};
use tombolo_base::labels::Labels;
use tombolo_base::prefix::Prefix;
use tombolo_base::source::Source;
use tombolo_base::table::Snapshot;
use tombolo_model::policy::Party;
use tombolo_policy::compile::NamedPorts;
use tombolo_policy::{CidrGroupRow, Landmarks, PolicyRow, RuleRow};
use tombolo_topology::{CidrIdentity, EndpointRow, IdentityRow, PrefixEntry, PrefixRow};

/// The tables at one moment.
pub(crate) struct Tables {
    pub(crate) cluster: ClusterName,
    pub(crate) rules: Vec<RuleRow>,
    pub(crate) groups: Vec<CidrGroupRow>,
    pub(crate) policies: Snapshot<PolicyRow>,
    pub(crate) cookies: Snapshot<tombolo_policy::CookieRow>,
    endpoints: Snapshot<EndpointRow>,
    identities: Snapshot<IdentityRow>,
    prefixes: Snapshot<PrefixRow>,
    entries: Snapshot<PrefixEntry>,
    cidrs: Snapshot<CidrIdentity>,
    ports: NamedPorts,
    /// What this node is labelled with.
    pub(crate) node: Labels,
    /// Where the API server and the nodes are.
    pub(crate) landmarks: Landmarks,
}

/// Somebody, with the identity that the datapath knows them by.
#[derive(Clone, Debug)]
pub(crate) struct End {
    /// For people.
    pub(crate) name: String,
    pub(crate) identity: IdentityId,
    pub(crate) party: Party,
    /// A pod of this node, or the node itself.
    pub(crate) here: bool,
}

impl Tables {
    /// As they are now.
    pub(crate) fn read(
        cluster: ClusterName,
        (node, landmarks): (Labels, Landmarks),
        intent: &Intent,
        desired: &Desired,
    ) -> Self {
        Self {
            cluster,
            node,
            landmarks,
            rules: intent.kube.rules.snapshot().iter().cloned().collect(),
            groups: intent.kube.cidr_groups.snapshot().iter().cloned().collect(),
            policies: desired.policies.snapshot(),
            cookies: desired.policy_rules.snapshot(),
            endpoints: intent.endpoints.snapshot(),
            identities: intent.identities.snapshot(),
            prefixes: intent.prefixes.snapshot(),
            entries: desired.entries.snapshot(),
            cidrs: desired.cidrs.snapshot(),
            ports: named_ports(&intent.endpoints, &intent.kube.pods),
        }
    }

    /// Reads `namespace/pod`, an address or an entity.
    ///
    /// # Errors
    /// What is not known, and what to give instead.
    pub(crate) fn end(&self, text: &str) -> Result<End, String> {
        if let Ok(address) = text.parse() {
            return Ok(self.at(address));
        }
        if let Some((namespace, pod)) = text.split_once('/') {
            return self.pod(namespace, pod).ok_or_else(|| {
                format!(
                    "no pod {text} is known here; tombolo show endpoints and tombolo show prefixes list them"
                )
            });
        }
        let world = |address: IpAddr| Ok(self.at(address));
        match text {
            "world" | "world-ipv4" => return world(Ipv4Addr::UNSPECIFIED.into()),
            "world-ipv6" => return world(Ipv6Addr::UNSPECIFIED.into()),
            _ => {}
        }
        let fixed = (1..IdentityId::FIRST_ALLOCATABLE).map(IdentityId);
        let found = fixed.take(8).find(|id| id.reserved_name() == Some(text));
        let identity = found.ok_or_else(|| {
            format!("{text:?} is no address, no namespace/pod and no entity (host, remote-node, world, world-ipv6, ...)")
        })?;
        Ok(self.of_identity(identity))
    }

    fn pod(&self, namespace: &str, pod: &str) -> Option<End> {
        let local = self.endpoints.iter().find(|row| *row.namespace == *namespace && *row.pod == *pod);
        if let Some(row) = local {
            return Some(End { here: true, ..self.member(row.identity?, &row.labels) });
        }
        let here = |row: &&PrefixRow| {
            row.pod.as_deref() == Some(pod) && row.residence.namespace.as_deref() == Some(namespace)
        };
        Some(self.of_identity(self.prefixes.iter().find(here)?.identity))
    }

    /// Whoever has an address.
    pub(crate) fn at(&self, address: IpAddr) -> End {
        if let Some(row) = self.endpoints.by_index(&address).next()
            && let Some(identity) = row.identity
        {
            return End { here: true, ..self.member(identity, &row.labels) };
        }
        let lengths = (0..=Prefix::host(address).prefix_len()).rev();
        let mut around = lengths.filter_map(|length| Prefix::new(address, length));
        let entry = around.find_map(|prefix| self.entries.get(&prefix));
        match entry.filter(|entry| entry.source != Source::Planner) {
            Some(entry) if self.landmarks.nodes.contains(&address) => End {
                name: format!("{address}"),
                identity: entry.identity,
                party: Party::Node(address),
                here: false,
            },
            Some(entry) => End { name: format!("{address}"), ..self.of_identity(entry.identity) },
            None => self.outside(address),
        }
    }

    /// An address outside the mesh.
    fn outside(&self, address: IpAddr) -> End {
        let lengths = (1..=Prefix::host(address).prefix_len()).rev();
        let mut around = lengths.filter_map(|length| Prefix::new(address, length));
        let known = around.find_map(|prefix| self.cidrs.get(&prefix)).map(|row| row.identity);
        let world = if address.is_ipv4() { IdentityId::WORLD_IPV4 } else { IdentityId::WORLD_IPV6 };
        End {
            name: address.to_string(),
            identity: known.unwrap_or(world),
            party: Party::Address(address),
            here: false,
        }
    }

    /// Whoever has an identity of the mesh; one that nobody named has no labels.
    pub(crate) fn of_identity(&self, identity: IdentityId) -> End {
        if let Some(name) = identity.reserved_name() {
            let here = identity == IdentityId::HOST;
            return End { name: name.to_owned(), identity, party: Party::Fixed(identity), here };
        }
        let row = self.identities.from_key(&(identity, Source::Manifests)).next();
        let labels = row.filter(|row| row.id == identity).map(|row| row.labels.clone()).unwrap_or_default();
        self.member(identity, &labels)
    }

    /// A flow's end: by its identity, or its address if that is the world's.
    pub(crate) fn seen(&self, ip: &str, identity: u32) -> Option<End> {
        let id = IdentityId(identity);
        let outside = tombolo_policy::cidrs::is_cidr(id)
            || [IdentityId::WORLD, IdentityId::WORLD_IPV4, IdentityId::WORLD_IPV6].contains(&id);
        match identity {
            0 => Some(self.at(ip.parse().ok()?)),
            _ if id.is_node() => Some(self.at(ip.parse().ok()?)),
            _ if outside => Some(self.outside(ip.parse().ok()?)),
            _ => Some(self.of_identity(id)),
        }
    }

    fn member(&self, identity: IdentityId, labels: &Labels) -> End {
        let ports = self.ports.get(&identity).cloned().unwrap_or_default();
        let cell = |key: &str| labels.get(key).unwrap_or("?").to_owned();
        let namespace = cell(tombolo_base::labels::NAMESPACE_KEY);
        let name = format!("pods {identity} of namespace {namespace}");
        End { name, identity, party: Party::Pod { labels: labels.clone(), ports }, here: false }
    }

    /// Whether policies of this cluster are about it, as this node knows them: its own pods, and the node itself.
    pub(crate) fn is_subject(&self, end: &End) -> bool {
        match &end.party {
            Party::Pod { labels, .. } => labels.cluster().is_none_or(|name| name == self.cluster.as_str()),
            Party::Fixed(IdentityId::HOST) => true,
            _ => false,
        }
    }
}
