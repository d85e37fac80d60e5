//! Keys: what lies where in a cluster's etcd, in the state and in the cache layout.

use std::fmt;

/// Liveness of the producer; read as a prefix, written leased once a minute.
pub const HEARTBEAT: &str = "cilium/.heartbeat";
/// The time in nanoseconds since 1970, written by an elected agent of ours every few seconds. It lies in the range of the heartbeat, which every
/// reader watches and may read.
pub const BEAT: &str = "cilium/.heartbeat/tombolo";
/// Longest key name below a prefix that is looked at (bytes).
pub const MAX_NAME_BYTES: usize = 16 * 1024;

/// The kinds of entries that a cluster publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Nodes: addresses, pod CIDRs, keys.
    Nodes,
    /// Global services with their backends.
    Services,
    /// Numeric identity to label text.
    Identities,
    /// Address to identity and node.
    Ips,
    /// EndpointSlices of global services, from Cilium 1.20 on.
    EndpointSlices,
    /// Services exported by the Multi-Cluster Services API, from Cilium 1.17 on.
    ServiceExports,
    /// Key and value pairs of our own below `tombolo/lb/`; read from the own cluster's etcd only.
    Assignments,
}

/// The kinds every cluster publishes; the others are announced by [`super::Capabilities`].
pub const KINDS: [Kind; 4] = [Kind::Identities, Kind::Nodes, Kind::Ips, Kind::Services];

/// Where a cluster's etcd holds its entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// `cilium/state/...`: the cluster's own etcd.
    #[default]
    State,
    /// `cilium/cache/...`: a mirror, everything below the cluster's name.
    Cache,
}

impl Layout {
    const fn word(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Cache => "cache",
        }
    }
}

impl Kind {
    /// The prefix, with its trailing slash, below which the entries of `cluster` lie.
    #[must_use]
    pub fn prefix(self, layout: Layout, cluster: &str) -> String {
        let word = layout.word();
        match (self, layout) {
            (Self::Nodes, _) => format!("cilium/{word}/nodes/v1/{cluster}/"),
            (Self::Services, _) => format!("cilium/{word}/services/v1/{cluster}/"),
            (Self::EndpointSlices, _) => format!("cilium/{word}/endpointslices/v1/{cluster}/"),
            (Self::ServiceExports, _) => format!("cilium/{word}/serviceexports/v1/{cluster}/"),
            (Self::Identities, Layout::State) => "cilium/state/identities/v1/id/".to_owned(),
            (Self::Identities, Layout::Cache) => format!("cilium/cache/identities/v1/{cluster}/id/"),
            (Self::Ips, Layout::State) => "cilium/state/ip/v1/default/".to_owned(),
            (Self::Ips, Layout::Cache) => format!("cilium/cache/ip/v1/{cluster}/"),
            (Self::Assignments, _) => ASSIGNMENTS.to_owned(),
        }
    }

    /// The canary of this kind: once it is there, a list is complete. It names the store without the cluster, and
    /// without the last element of the prefixes of identities and addresses.
    #[must_use]
    pub fn canary(self, layout: Layout, cluster: &str) -> String {
        let store = match self {
            Self::Nodes => "nodes",
            // Assignments are written by the same agent, before this canary.
            Self::Services | Self::Assignments => "services",
            Self::EndpointSlices => "endpointslices",
            Self::ServiceExports => "serviceexports",
            Self::Identities => "identities",
            Self::Ips => "ip",
        };
        format!("{}cilium/{}/{store}/v1", synced_prefix(cluster), layout.word())
    }

    /// The whole key of the entry `name` of `cluster`.
    #[must_use]
    pub fn key(self, layout: Layout, cluster: &str, name: &str) -> String {
        let mut key = self.prefix(layout, cluster);
        key.push_str(name);
        key
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nodes => "nodes",
            Self::Services => "services",
            Self::Identities => "identities",
            Self::Ips => "ips",
            Self::EndpointSlices => "endpointslices",
            Self::ServiceExports => "serviceexports",
            Self::Assignments => "assignments",
        })
    }
}

/// Load-balancer assignments and other small cluster-wide values in folder mode.
pub const ASSIGNMENTS: &str = "tombolo/lb/";
/// Below it each agent says, leased, that all its keys are written.
pub const PUBLISHED: &str = "tombolo/published/";
/// Below it each agent names its leases, before it writes anything with them.
pub const LEASES: &str = "tombolo/leases/";
/// The key whose holder writes the cluster-wide entries.
pub const ELECTION: &str = "tombolo/election/cluster";
/// Below it a relay says of each cluster what it mirrors: [`relay_status`] and [`relay_leases`].
pub const RELAY: &str = "tombolo/relay/";
/// The key whose holder mirrors the other clusters.
pub const RELAY_ELECTION: &str = "tombolo/election/relay";
/// Slave keys of identity allocation lie below it: `<labels>/<node>` to a decimal number.
pub const IDENTITY_VALUES: &str = "cilium/state/identities/v1/value/";
/// Locks of identity allocation.
pub const IDENTITY_LOCKS: &str = "cilium/state/identities/v1/locks/";

/// Below it lie the clusters' configurations.
pub const CLUSTER_CONFIGS: &str = "cilium/cluster-config/";
/// Below it lie the clusters' canaries.
pub const SYNCED: &str = "cilium/synced/";

/// The key of a cluster's configuration.
#[must_use]
pub fn cluster_config(cluster: &str) -> String {
    format!("{CLUSTER_CONFIGS}{cluster}")
}

/// The prefix of a cluster's canaries.
#[must_use]
pub fn synced_prefix(cluster: &str) -> String {
    format!("{SYNCED}{cluster}/")
}

/// The prefix of what a relay says of a cluster.
#[must_use]
pub fn relay_prefix(cluster: &str) -> String {
    format!("{RELAY}{cluster}/")
}

/// How far the elected relay reads a cluster; goes with its election.
#[must_use]
pub fn relay_status(cluster: &str) -> String {
    format!("{RELAY}{cluster}/status")
}

/// The leases that a cluster's mirror hangs on. Hangs on none itself: where it stands, a relay wrote or writes a mirror.
#[must_use]
pub fn relay_leases(cluster: &str) -> String {
    format!("{RELAY}{cluster}/leases")
}

/// Whether a key name is safe to use: not empty, bounded, no empty, `.` or `..` element, no control characters.
#[must_use]
pub fn name_is_sound(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_NAME_BYTES
        && !name.chars().any(|c| c.is_control() || c == char::REPLACEMENT_CHARACTER)
        && name.split('/').all(|element| !matches!(element, "" | "." | ".."))
}

/// The end of the range of all keys that start with `prefix`.
#[must_use]
pub fn range_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of section 1.0 of the wire's description: kind, prefix and canary in the state and in the cache layout.
    const TABLE: [(Kind, [&str; 4]); 6] = [
        (
            Kind::Nodes,
            [
                "cilium/state/nodes/v1/c1/",
                "cilium/synced/c1/cilium/state/nodes/v1",
                "cilium/cache/nodes/v1/c1/",
                "cilium/synced/c1/cilium/cache/nodes/v1",
            ],
        ),
        (
            Kind::Identities,
            [
                "cilium/state/identities/v1/id/",
                "cilium/synced/c1/cilium/state/identities/v1",
                "cilium/cache/identities/v1/c1/id/",
                "cilium/synced/c1/cilium/cache/identities/v1",
            ],
        ),
        (
            Kind::Ips,
            [
                "cilium/state/ip/v1/default/",
                "cilium/synced/c1/cilium/state/ip/v1",
                "cilium/cache/ip/v1/c1/",
                "cilium/synced/c1/cilium/cache/ip/v1",
            ],
        ),
        (
            Kind::Services,
            [
                "cilium/state/services/v1/c1/",
                "cilium/synced/c1/cilium/state/services/v1",
                "cilium/cache/services/v1/c1/",
                "cilium/synced/c1/cilium/cache/services/v1",
            ],
        ),
        (
            Kind::ServiceExports,
            [
                "cilium/state/serviceexports/v1/c1/",
                "cilium/synced/c1/cilium/state/serviceexports/v1",
                "cilium/cache/serviceexports/v1/c1/",
                "cilium/synced/c1/cilium/cache/serviceexports/v1",
            ],
        ),
        (
            Kind::EndpointSlices,
            [
                "cilium/state/endpointslices/v1/c1/",
                "cilium/synced/c1/cilium/state/endpointslices/v1",
                "cilium/cache/endpointslices/v1/c1/",
                "cilium/synced/c1/cilium/cache/endpointslices/v1",
            ],
        ),
    ];

    #[test]
    fn prefixes_and_canaries_of_both_layouts() {
        for (kind, texts) in TABLE {
            let both = |layout| [kind.prefix(layout, "c1"), kind.canary(layout, "c1")];
            assert_eq!([both(Layout::State), both(Layout::Cache)].concat(), texts, "{kind}");
            assert_eq!(kind.key(Layout::Cache, "c1", "x/y"), format!("{}x/y", texts[2]));
            // What a list of a cluster's prefix shows is never another cluster's.
            assert!(!kind.prefix(Layout::Cache, "c10").starts_with(texts[2]));
        }
        assert_eq!(cluster_config("c1"), "cilium/cluster-config/c1");
        assert_eq!(HEARTBEAT, "cilium/.heartbeat");
        assert!(KINDS.iter().all(|kind| TABLE.iter().any(|(known, _)| known == kind)));
    }

    #[test]
    fn names_that_would_leave_their_prefix_are_unsound() {
        assert!(name_is_sound("shop/web") && name_is_sound("10.1.0.0/24") && name_is_sound("a..b"));
        for bad in ["", "/", "a/", "/a", "a//b", "..", "../../x", "a/./b", "a\nb"] {
            assert!(!name_is_sound(bad), "{bad:?}");
        }
        assert!(!name_is_sound(&"x".repeat(MAX_NAME_BYTES + 1)));
        assert_eq!(range_end("cilium/"), b"cilium0");
    }
}
