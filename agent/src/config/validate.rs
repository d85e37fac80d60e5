//! What the types cannot say: numbers that must fit each other, things that must be there.

use super::{Config, Etcd, Identity, PortRange};
use std::fmt;
use std::path::{Path, PathBuf};
use tombolo_base::ids::ClusterId;
use tombolo_kubernetes::LabelFilter;

/// Longest stale time of RFC 9494: 24 bits.
const LONG_LIVED_SECS_MAX: u32 = 0x00ff_ffff;

/// One mistake in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Problem {
    /// The layer it is in; `None` if it is in none of several, as a key that is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) file: Option<PathBuf>,
    /// Key path; empty for the whole file.
    pub(crate) place: String,
    /// What is wrong.
    pub(crate) reason: String,
    /// What to do.
    pub(crate) remedy: String,
}

impl Problem {
    /// A mistake that concerns a whole file.
    pub(crate) fn file(file: &Path, reason: &str, remedy: &str) -> Self {
        Self { file: Some(file.to_owned()), ..Self::key("", reason, remedy) }
    }

    /// A mistake at a key.
    pub(crate) fn key(path: &str, reason: &str, remedy: &str) -> Self {
        Self { file: None, place: path.to_owned(), reason: reason.to_owned(), remedy: remedy.to_owned() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}: ", file.display())?;
        }
        if !self.place.is_empty() {
            write!(f, "{}: ", self.place)?;
        }
        write!(f, "{} ({})", self.reason, self.remedy)
    }
}

/// Checks the whole; the identity only if everything it needs is there.
pub(crate) fn validate(config: &Config, problems: &mut Vec<Problem>) -> Option<Identity> {
    let told = |problems: &[Problem], place: &str| problems.iter().any(|problem| problem.place == place);
    let max_clusters = config.cluster.max_connected_clusters;
    if config.cluster.name.is_none() && !told(problems, "cluster.name") {
        problems.push(Problem::key(
            "cluster.name",
            "is missing",
            "give the cluster's name, unique in the mesh",
        ));
    }
    let cluster_id = ClusterId::new(config.cluster.id, max_clusters);
    if let Err(error) = &cluster_id {
        problems.push(Problem::key(
            "cluster.id",
            &error.to_string(),
            "give the cluster's number, unique in the mesh",
        ));
    }
    let node = node_name(&config.node.name, problems);
    let mut require = |missing: bool, key: &str, remedy: &str| {
        if missing && !told(problems, key) {
            problems.push(Problem::key(key, "is missing", remedy));
        }
    };
    require(
        config.node.underlay_interface.is_empty(),
        "node.underlay_interface",
        "name the interface towards the routers, as eth1",
    );
    require(
        config.manifests.folder.as_os_str().is_empty(),
        "manifests.folder",
        "name the folder of Kubernetes manifests",
    );
    require(config.etcd.is_none(), "etcd", "give endpoints, ca, cert and key of the cluster's own etcd");
    for flaw in config.etcd.iter().flat_map(Etcd::flaws) {
        if !told(problems, &flaw.key) {
            problems.push(Problem::key(&flaw.key, &flaw.reason, &flaw.remedy));
        }
    }
    for (place, reason) in LabelFilter::new(&config.identities.labels).err().into_iter().flatten() {
        problems.push(Problem::key(
            &format!("identities.labels[{place}]"),
            &reason,
            "write a regular expression for the start of label keys, with ! before it if they are not to count",
        ));
    }
    numbers(config, problems);
    Some(Identity { cluster: config.cluster.name?, cluster_id: cluster_id.ok()?, max_clusters, node: node? })
}

fn node_name(configured: &str, problems: &mut Vec<Problem>) -> Option<std::sync::Arc<str>> {
    let name = if configured.is_empty() {
        std::fs::read_to_string("/proc/sys/kernel/hostname")
            .map(|name| name.trim().to_owned())
            .unwrap_or_default()
    } else {
        configured.to_owned()
    };
    let fits = !name.is_empty()
        && name.len() <= 253
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b));
    if !fits {
        problems.push(Problem::key(
            "node.name",
            &format!("{name:?} is no node name"),
            "give the node's name in Kubernetes",
        ));
        return None;
    }
    Some(name.into())
}

fn dns(config: &Config, problems: &mut Vec<Problem>) {
    let dns = &config.dns;
    let label = |label: &str| {
        let letters = label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        letters && (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
    };
    for (domain, key) in
        [(&dns.cluster_domain, "cluster_domain"), (&dns.clusterset_domain, "clusterset_domain")]
    {
        if domain.len() > 200 || !domain.split('.').all(label) {
            let reason = format!("{domain:?} is no domain");
            problems.push(Problem::key(
                &format!("dns.{key}"),
                &reason,
                "write it as cluster.local, in lower case",
            ));
        }
    }
    let inside = |inner: &str, outer: &str| inner == outer || inner.ends_with(&format!(".{outer}"));
    let (one, other) = (&dns.cluster_domain, &dns.clusterset_domain);
    if inside(one, other) || inside(other, one) {
        let reason = format!("{one} and {other} lie in each other");
        problems.push(Problem::key(
            "dns.clusterset_domain",
            &reason,
            "give the two zones names of their own",
        ));
    }
    for (n, upstream) in dns.upstreams.iter().enumerate() {
        if upstream.port() == 0 || dns.listen.contains(upstream) {
            let reason = format!("{upstream} cannot be asked: it is this unit itself, or has no port");
            problems.push(Problem::key(
                &format!("dns.upstreams[{n}]"),
                &reason,
                "give address:53 of a resolver",
            ));
        }
    }
    if dns.ttl_secs > 3600 {
        let reason = format!("{} s: services change faster", dns.ttl_secs);
        problems.push(Problem::key("dns.ttl_secs", &reason, "give at most 3600"));
    }
}

/// Prefixes that the datapath has room for beside those of its own.
const MASQUERADE_CIDRS: usize = 1000;

fn numbers(config: &Config, problems: &mut Vec<Problem>) {
    let maps = &config.datapath.maps;
    for (value, name, least) in [
        (maps.conntrack, "conntrack", 1024),
        (maps.nat, "nat", 1024),
        (maps.policy, "policy", 256),
        (maps.policies, "policies", 16),
        (maps.endpoints, "endpoints", 16),
        (maps.nodes, "nodes", 16),
        (maps.prefixes, "prefixes", 256),
        (maps.services, "services", 16),
        (maps.backends, "backends", 16),
        (maps.maglev_slots, "maglev_slots", 65_521),
        (maps.source_ranges, "source_ranges", 16),
        (maps.egress, "egress", 16),
        (maps.affinity, "affinity", 256),
        (maps.sockets, "sockets", 256),
    ] {
        if !(least..=16_777_216).contains(&value) {
            let reason = format!("{value} entries: must be between {least} and 16777216");
            problems.push(Problem::key(
                &format!("datapath.maps.{name}"),
                &reason,
                "choose a size for what the mesh holds",
            ));
        }
    }
    let masquerade = &config.datapath.masquerade;
    if masquerade.native_cidrs.len() + masquerade.non_masquerade_cidrs.len() > MASQUERADE_CIDRS {
        let reason = format!("more than {MASQUERADE_CIDRS} prefixes with those of native_cidrs");
        let remedy = "give wider ones, or fewer";
        problems.push(Problem::key("datapath.masquerade.non_masquerade_cidrs", &reason, remedy));
    }
    let mesh = &config.clustermesh;
    for (value, name) in [(mesh.max_entries, "max_entries"), (mesh.max_mib, "max_mib")] {
        if value == 0 {
            problems.push(Problem::key(
                &format!("clustermesh.{name}"),
                "0: nothing of any cluster would be taken",
                "leave it out, or give a bound above what the largest cluster has",
            ));
        }
    }
    for (n, cidr) in mesh.clusterset_cidrs.iter().enumerate() {
        if mesh.clusterset_cidrs.iter().take(n).any(|other| other.overlaps(cidr)) {
            problems.push(Problem::key(
                &format!("clustermesh.clusterset_cidrs[{n}]"),
                &format!("{cidr} overlaps a range before it"),
                "give ranges that are nobody else's: no pods', no nodes', no services' and no pool's",
            ));
        }
    }
    dns(config, problems);
    for (port, key) in [
        (config.datapath.vxlan_port, "datapath.vxlan_port"),
        (config.datapath.wireguard_port, "datapath.wireguard_port"),
    ] {
        if port == 0 {
            problems.push(Problem::key(
                key,
                "port 0 is no port",
                "use Cilium's 8472 and 51871 unless they are taken",
            ));
        }
        let PortRange(snat) = &config.datapath.snat_ports;
        if snat.contains(&port) {
            let reason = format!("{}-{} has {key}, {port}", snat.start(), snat.end());
            let remedy = "give a range without it";
            problems.push(Problem::key("datapath.snat_ports", &reason, remedy));
        }
    }
    let encrypted = config.datapath.encryption != super::Encryption::None;
    if !encrypted && !config.datapath.strict_encryption.is_empty() {
        problems.push(Problem::key(
            "datapath.strict_encryption",
            "nothing is encrypted, so nothing could be strict",
            "set datapath.encryption: wireguard, or leave strict_encryption out",
        ));
    }
    if let Some(secs) = config.bgp.long_lived_secs
        && !(1..=LONG_LIVED_SECS_MAX).contains(&secs)
    {
        let reason = format!("{secs} s: must be between 1 and {LONG_LIVED_SECS_MAX}");
        let remedy = "give the seconds that stale routes may live, or leave it out for none";
        problems.push(Problem::key("bgp.long_lived_secs", &reason, remedy));
    }
    if let Some(log) = &config.bgp.message_log
        && (log.file_mib == 0 || log.files == 0)
    {
        problems.push(Problem::key(
            "bgp.message_log",
            "file_mib or files is 0: nothing could be kept",
            "give at least 1 of each, or leave message_log out",
        ));
    }
    for (n, allowed) in config.bgp.import.allow.iter().enumerate() {
        let longest = if allowed.prefix.is_ipv4() { 32 } else { 128 };
        let (ge, le) = (allowed.ge.unwrap_or(allowed.prefix.prefix_len()), allowed.le.unwrap_or(longest));
        if ge < allowed.prefix.prefix_len() || le > longest || ge > le {
            let reason = format!("{} ge {ge} le {le} allows nothing", allowed.prefix);
            problems.push(Problem::key(
                &format!("bgp.import.allow[{n}]"),
                &reason,
                "prefix length <= ge <= le",
            ));
        }
    }
}
