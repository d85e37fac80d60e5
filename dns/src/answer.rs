//! From a question to its answer, pure: what the Kubernetes DNS specification (1.1.0) and that of the Multi-Cluster
//! Services API (1.0.0) say.

use crate::zones::{Owner, Zones};
use hickory_proto::rr::rdata::{CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use tombolo_service::names::{NameAnswer, NameEndpoint, NameEntry, NamePort, NameZone};
use tombolo_service::rows::Protocol;

/// Versions of the specifications that the zones follow.
const VERSIONS: (&str, &str) = ("1.1.0", "1.0.0");
/// Records of one name at most; more would not fit into a message over TCP.
const MAX_RECORDS: usize = 2000;

/// The zones that are answered for.
#[derive(Clone, Debug)]
pub struct Domains {
    cluster: Vec<String>,
    clusterset: Vec<String>,
    /// Addresses of this server, for its own name.
    servers: Vec<IpAddr>,
    ttl_secs: u32,
}

/// What comes of a question.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Records, and others that will be asked for next.
    Records(Vec<Record>, Vec<Record>),
    /// Another name: its record, and where to go on.
    Alias(Record, Name),
    /// The name exists, without such records. The zone's SOA.
    NoData(Record),
    /// There is no such name. The zone's SOA.
    NxDomain(Record),
    /// Not known yet.
    Unknown,
    /// A name of somebody else.
    NotOurs,
}

/// What a name in a zone is, before its type is looked at.
enum Found {
    /// A name without records, above others that have some.
    Empty,
    Apex,
    Version,
    Server,
    Addresses(Vec<IpAddr>),
    Services(Vec<(u16, Name, Vec<IpAddr>)>),
    Alias(Name),
    Missing,
    Unknown,
}

fn labels(domain: &str) -> Vec<String> {
    domain.trim_matches('.').split('.').map(str::to_ascii_lowercase).collect()
}

impl Domains {
    /// Zones by their domains; `servers` are this server's own addresses.
    #[must_use]
    pub fn new(cluster: &str, clusterset: &str, servers: Vec<IpAddr>, ttl_secs: u32) -> Self {
        Self { cluster: labels(cluster), clusterset: labels(clusterset), servers, ttl_secs }
    }

    /// Which of the zones a name is in, for counting: `cluster`, `clusterset`, `reverse` or `other`.
    #[must_use]
    pub fn zone_of(&self, name: &Name) -> &'static str {
        match self.split(name) {
            Some((NameZone::Cluster, _)) => "cluster",
            Some((NameZone::ClusterSet, _)) => "clusterset",
            None if name.parse_arpa_name().is_ok() => "reverse",
            None => "other",
        }
    }

    /// The zone, and the labels before it in lower case; labels that are no text are `None`.
    fn split(&self, name: &Name) -> Option<(NameZone, Option<Vec<String>>)> {
        let all: Vec<&[u8]> = name.iter().collect();
        let tail = |domain: &[String]| {
            let start = all.len().checked_sub(domain.len())?;
            let same = |(label, wanted): (&&[u8], &String)| label.eq_ignore_ascii_case(wanted.as_bytes());
            let (head, tail) = all.split_at_checked(start)?;
            tail.iter().zip(domain).all(same).then_some(head)
        };
        let text = |label: &&[u8]| std::str::from_utf8(label).ok().map(str::to_ascii_lowercase);
        let of = |zone, head: &[&[u8]]| (zone, head.iter().map(text).collect());
        let cluster = tail(&self.cluster).map(|head| of(NameZone::Cluster, head));
        cluster.or_else(|| tail(&self.clusterset).map(|head| of(NameZone::ClusterSet, head)))
    }

    fn domain(&self, zone: NameZone) -> &[String] {
        match zone {
            NameZone::Cluster => &self.cluster,
            NameZone::ClusterSet => &self.clusterset,
        }
    }

    /// A name in a zone.
    fn name(&self, zone: NameZone, head: &[&str]) -> Option<Name> {
        let labels = head.iter().copied().chain(self.domain(zone).iter().map(String::as_str));
        let mut name = Name::from_labels(labels.map(str::as_bytes)).ok()?;
        name.set_fqdn(true);
        Some(name)
    }

    fn soa(&self, zone: NameZone, serial: u32) -> Option<Record> {
        let server = self.name(zone, &["ns", "dns"])?;
        let people = self.name(zone, &["hostmaster"])?;
        let soa = SOA::new(server, people, serial, 7200, 1800, 86_400, self.ttl_secs);
        Some(Record::from_rdata(self.name(zone, &[])?, self.ttl_secs, RData::SOA(soa)))
    }

    /// Answers a question.
    #[must_use]
    pub fn answer(&self, zones: &Zones, name: &Name, kind: RecordType) -> Outcome {
        let Some((zone, head)) = self.split(name) else { return self.reverse(zones, name, kind) };
        let Some(soa) = self.soa(zone, zones.serial()) else { return Outcome::Unknown };
        let found = match &head {
            Some(head) => {
                let head: Vec<&str> = head.iter().map(String::as_str).collect();
                self.find(zones, zone, &head)
            }
            None => Found::Missing,
        };
        let record = |rdata| Record::from_rdata(name.clone(), self.ttl_secs, rdata);
        let records = |list: Vec<Record>, more: Vec<Record>| match list.is_empty() {
            true => Outcome::NoData(soa.clone()),
            false => Outcome::Records(list, more),
        };
        match found {
            Found::Missing => Outcome::NxDomain(soa),
            Found::Unknown => Outcome::Unknown,
            Found::Empty => Outcome::NoData(soa),
            Found::Alias(target) if kind == RecordType::CNAME => {
                Outcome::Records(vec![record(RData::CNAME(CNAME(target)))], Vec::new())
            }
            Found::Alias(target) => Outcome::Alias(record(RData::CNAME(CNAME(target.clone()))), target),
            Found::Apex => records(
                match kind {
                    RecordType::SOA => vec![soa.clone()],
                    RecordType::NS => self
                        .name(zone, &["ns", "dns"])
                        .map(|server| record(RData::NS(NS(server))))
                        .into_iter()
                        .collect(),
                    _ => Vec::new(),
                },
                Vec::new(),
            ),
            Found::Version => {
                let version = if zone == NameZone::Cluster { VERSIONS.0 } else { VERSIONS.1 };
                let text =
                    (kind == RecordType::TXT).then(|| record(RData::TXT(TXT::new(vec![version.to_owned()]))));
                records(text.into_iter().collect(), Vec::new())
            }
            Found::Server => records(self.addresses(name, kind, &self.servers), Vec::new()),
            Found::Addresses(ips) => records(self.addresses(name, kind, &ips), Vec::new()),
            Found::Services(services) if kind == RecordType::SRV => {
                let weight = u16::try_from(100 / services.len().max(1)).unwrap_or(1).max(1);
                let mut more = Vec::new();
                let mut list = Vec::new();
                for (port, target, ips) in services.into_iter().take(MAX_RECORDS) {
                    more.extend(self.addresses(&target, RecordType::A, &ips));
                    more.extend(self.addresses(&target, RecordType::AAAA, &ips));
                    list.push(record(RData::SRV(SRV::new(0, weight, port, target))));
                }
                records(list, more)
            }
            Found::Services(_) => Outcome::NoData(soa),
        }
    }

    /// Records of the addresses of a type.
    fn addresses(&self, name: &Name, kind: RecordType, ips: &[IpAddr]) -> Vec<Record> {
        let rdata = |ip: &IpAddr| match (ip, kind) {
            (IpAddr::V4(v4), RecordType::A) => Some(RData::A((*v4).into())),
            (IpAddr::V6(v6), RecordType::AAAA) => Some(RData::AAAA((*v6).into())),
            _ => None,
        };
        let data = ips.iter().filter_map(rdata).take(MAX_RECORDS);
        data.map(|rdata| Record::from_rdata(name.clone(), self.ttl_secs, rdata)).collect()
    }

    fn find(&self, zones: &Zones, zone: NameZone, head: &[&str]) -> Found {
        match head {
            [] => Found::Apex,
            ["dns-version"] => Found::Version,
            ["ns", "dns"] => Found::Server,
            ["dns"] | ["svc"] => Found::Empty,
            ["pod"] if zone == NameZone::Cluster => Found::Empty,
            [namespace, "svc"] => namespace_at(zones, zone, namespace),
            [namespace, "pod"] if zone == NameZone::Cluster => namespace_at(zones, zone, namespace),
            [dashed, namespace, "pod"] if zone == NameZone::Cluster => pod(zones, dashed, namespace),
            [below @ .., name, namespace, "svc"] => match zones.get(zone, namespace, name) {
                Some(entry) => self.below(zones, entry, below),
                // Nothing is imported into a namespace that is not here, whatever others export.
                None if zones.is_known(NameZone::Cluster) && !zones.has_namespace(zone, namespace) => {
                    Found::Missing
                }
                None => missing(zones, zone),
            },
            _ => Found::Missing,
        }
    }

    /// A service's own name, or one below it.
    fn below(&self, zones: &Zones, entry: &NameEntry, below: &[&str]) -> Found {
        let base = [entry.name.as_ref(), entry.namespace.as_ref(), "svc"];
        match (&entry.answer, below) {
            (NameAnswer::Alias { target }, []) => alias(target),
            (NameAnswer::Alias { .. }, _) => Found::Missing,
            // An import that was given no address yet.
            (NameAnswer::Service { addresses, .. }, _)
                if addresses.is_empty() && entry.zone == NameZone::ClusterSet =>
            {
                Found::Unknown
            }
            (NameAnswer::Service { addresses, .. }, []) => {
                Found::Addresses(addresses.iter().copied().collect())
            }
            (NameAnswer::Service { ports, .. }, [protocol]) if ports.iter().any(|p| speaks(p, protocol)) => {
                Found::Empty
            }
            (NameAnswer::Service { addresses, ports }, [port, protocol]) => {
                let ports = ports.iter().filter(|p| speaks(p, protocol) && is_named(p, port));
                let target = self.name(entry.zone, &base);
                let addresses: Vec<IpAddr> = addresses.iter().copied().collect();
                services(ports.filter_map(|p| Some((p.port, target.clone()?, addresses.clone()))).collect())
            }
            (NameAnswer::Service { .. }, _) => Found::Missing,
            // An endpoint that is not there may be of a cluster that has not spoken.
            (NameAnswer::Headless { endpoints }, below) => match self.endpoint(entry, endpoints, below) {
                Found::Missing => missing(zones, entry.zone),
                found => found,
            },
        }
    }

    /// A headless service's name, or one of its endpoints'.
    fn endpoint(&self, entry: &NameEntry, endpoints: &[NameEndpoint], below: &[&str]) -> Found {
        let ips = |keep: &dyn Fn(&NameEndpoint) -> bool| {
            let ips: BTreeSet<IpAddr> = endpoints.iter().filter(|e| keep(e)).map(|e| e.address).collect();
            if ips.is_empty() { Found::Missing } else { Found::Addresses(ips.into_iter().collect()) }
        };
        let ports =
            || endpoints.iter().flat_map(|endpoint| endpoint.ports.iter().map(move |port| (endpoint, port)));
        let set = entry.zone == NameZone::ClusterSet;
        match below {
            // Nobody who is ready: both specifications want NXDOMAIN.
            [] => ips(&|_| true),
            [protocol] if protocol.starts_with('_') => {
                if ports().any(|(_, port)| speaks(port, protocol)) {
                    Found::Empty
                } else {
                    Found::Missing
                }
            }
            [port, protocol] if protocol.starts_with('_') => {
                let asked = ports().filter(|(_, p)| speaks(p, protocol) && is_named(p, port));
                let target = |endpoint: &NameEndpoint| {
                    let (name, namespace) = (entry.name.as_ref(), entry.namespace.as_ref());
                    let (host, cluster) = (endpoint.hostname.as_ref(), endpoint.cluster.as_ref());
                    match set {
                        true => self.name(entry.zone, &[host, cluster, name, namespace, "svc"]),
                        false => self.name(entry.zone, &[host, name, namespace, "svc"]),
                    }
                };
                services(asked.filter_map(|(e, p)| Some((p.port, target(e)?, vec![e.address]))).collect())
            }
            [cluster] if set && endpoints.iter().any(|e| &*e.cluster == *cluster) => Found::Empty,
            [host, cluster] if set => ips(&|e| &*e.hostname == *host && &*e.cluster == *cluster),
            [host] if !set => ips(&|e| &*e.hostname == *host),
            _ => Found::Missing,
        }
    }

    fn reverse(&self, zones: &Zones, name: &Name, kind: RecordType) -> Outcome {
        let Ok(net) = name.parse_arpa_name() else { return Outcome::NotOurs };
        if net.prefix_len() != net.max_prefix_len() {
            return Outcome::NotOurs;
        }
        let mut owners = zones.owners(net.addr()).peekable();
        let Some(first) = owners.peek() else { return Outcome::NotOurs };
        let zone = first.zone;
        if kind != RecordType::PTR {
            return self.soa(zone, zones.serial()).map_or(Outcome::Unknown, Outcome::NoData);
        }
        let target = |owner: &Owner| {
            let base = [owner.name.as_ref(), owner.namespace.as_ref(), "svc"];
            match (&owner.endpoint, owner.zone) {
                (None, _) => self.name(owner.zone, &base),
                (Some((host, _)), NameZone::Cluster) => {
                    self.name(owner.zone, &[&[host.as_ref()], base.as_slice()].concat())
                }
                (Some((host, cluster)), NameZone::ClusterSet) => {
                    self.name(owner.zone, &[&[host.as_ref(), cluster.as_ref()], base.as_slice()].concat())
                }
            }
        };
        let record = |target| Record::from_rdata(name.clone(), self.ttl_secs, RData::PTR(PTR(target)));
        Outcome::Records(owners.filter_map(target).take(MAX_RECORDS).map(record).collect(), Vec::new())
    }
}

/// A name that is not there: nowhere, or not known yet.
fn missing(zones: &Zones, zone: NameZone) -> Found {
    if zones.is_known(zone) { Found::Missing } else { Found::Unknown }
}

fn namespace_at(zones: &Zones, zone: NameZone, namespace: &str) -> Found {
    // Namespaces are known with the cluster's own names.
    if zones.has_namespace(zone, namespace) { Found::Empty } else { missing(zones, NameZone::Cluster) }
}

/// `<a>-<b>-<c>-<d>.<namespace>.pod`: the address is the name.
fn pod(zones: &Zones, dashed: &str, namespace: &str) -> Found {
    if !zones.has_namespace(NameZone::Cluster, namespace) {
        return missing(zones, NameZone::Cluster);
    }
    let v4 = Ipv4Addr::from_str(&dashed.replace('-', ".")).map(IpAddr::from);
    let ip = v4.or_else(|_| Ipv6Addr::from_str(&dashed.replace('-', ":")).map(IpAddr::from));
    ip.map_or(Found::Missing, |ip| Found::Addresses(vec![ip]))
}

fn alias(target: &str) -> Found {
    let name = Name::from_ascii(target).map(|mut name| {
        name.set_fqdn(true);
        name
    });
    name.map_or(Found::Missing, Found::Alias)
}

fn services(found: Vec<(u16, Name, Vec<IpAddr>)>) -> Found {
    if found.is_empty() { Found::Missing } else { Found::Services(found) }
}

fn speaks(port: &NamePort, label: &str) -> bool {
    let protocol = match port.protocol {
        Protocol::Tcp => "_tcp",
        Protocol::Udp => "_udp",
        Protocol::Sctp => "_sctp",
    };
    label == protocol
}

fn is_named(port: &NamePort, label: &str) -> bool {
    label.strip_prefix('_').is_some_and(|name| port.name.eq_ignore_ascii_case(name))
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
