//! Cluster names, cluster ids and numeric identities, with the ranges Cilium's Cluster Mesh prescribes.

use crate::name::Name;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What is wrong with a name or number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// A cluster name outside the rules.
    #[error(
        "cluster name {0:?}: needs 1 to 32 characters, lower-case letters, digits and inner dashes; rename the cluster"
    )]
    ClusterName(String),
    /// The one name that Cilium keeps for clusters outside any mesh.
    #[error("cluster name \"default\": stands for a cluster without a mesh; rename the cluster")]
    DefaultName,
    /// A cluster id outside `1..=max`.
    #[error("cluster id {id}: must be between 1 and {max}")]
    ClusterId {
        /// The id given.
        id: u32,
        /// The largest id of this mesh.
        max: u32,
    },
    /// Neither 255 nor 511.
    #[error("max_connected_clusters {0}: must be 255 or 511, the same in the whole mesh")]
    MaxClusters(u32),
}

/// A cluster's name, unique in the mesh (1 to 32 characters of `[a-z0-9-]`, alphanumeric at both ends).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterName(Name);

impl ClusterName {
    /// Checks the name against Cilium's rules.
    ///
    /// # Errors
    /// [`IdError::ClusterName`] when a rule is broken, [`IdError::DefaultName`] for `default`: every cluster here has an id.
    pub fn new(name: &str) -> Result<Self, IdError> {
        if name == "default" {
            return Err(IdError::DefaultName);
        }
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let edges = name.bytes().next().is_some_and(inner) && name.bytes().last().is_some_and(inner);
        if name.len() <= 32 && edges && name.bytes().all(|byte| inner(byte) || byte == b'-') {
            Ok(Self(Name::new(name)))
        } else {
            Err(IdError::ClusterName(name.chars().take(64).collect()))
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for ClusterName {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::new(text)
    }
}

impl TryFrom<String> for ClusterName {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        Self::new(&text)
    }
}

impl From<ClusterName> for String {
    fn from(name: ClusterName) -> Self {
        name.as_str().to_owned()
    }
}

/// How many clusters a mesh can hold; decides how identity numbers are cut. The same in the whole mesh, for life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub enum MaxClusters {
    /// Cluster bits 16-23, 65,535 identities a cluster.
    #[default]
    C255,
    /// Cluster bits 15-23, 32,767 identities a cluster.
    C511,
}

impl MaxClusters {
    /// The largest cluster id.
    #[must_use]
    pub const fn max(self) -> u32 {
        match self {
            Self::C255 => 255,
            Self::C511 => 511,
        }
    }

    /// The position of the cluster id's lowest bit in an identity.
    #[must_use]
    pub const fn shift(self) -> u32 {
        match self {
            Self::C255 => 16,
            Self::C511 => 15,
        }
    }
}

impl TryFrom<u32> for MaxClusters {
    type Error = IdError;
    fn try_from(value: u32) -> Result<Self, IdError> {
        match value {
            255 => Ok(Self::C255),
            511 => Ok(Self::C511),
            other => Err(IdError::MaxClusters(other)),
        }
    }
}

impl From<MaxClusters> for u32 {
    fn from(max: MaxClusters) -> Self {
        max.max()
    }
}

/// A cluster's number, `1..=max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterId(u16);

impl ClusterId {
    /// Checks the number against the mesh's size.
    ///
    /// # Errors
    /// [`IdError::ClusterId`] for 0 and for numbers past the maximum.
    pub fn new(id: u32, max: MaxClusters) -> Result<Self, IdError> {
        match u16::try_from(id) {
            Ok(small) if id >= 1 && id <= max.max() => Ok(Self(small)),
            _ => Err(IdError::ClusterId { id, max: max.max() }),
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }

    /// First and last identity that belongs to this cluster.
    #[must_use]
    pub fn identity_range(self, max: MaxClusters) -> (IdentityId, IdentityId) {
        let first = u32::from(self.0) << max.shift();
        (IdentityId(first), IdentityId(first + ((1 << max.shift()) - 1)))
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A numeric security identity; 24 bits of it travel as the VXLAN network identifier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IdentityId(pub u32);

impl IdentityId {
    /// No identity known.
    pub const UNKNOWN: Self = Self(0);
    /// The node the datapath runs on.
    pub const HOST: Self = Self(1);
    /// Anything outside all clusters.
    pub const WORLD: Self = Self(2);
    /// An endpoint that is not under control.
    pub const UNMANAGED: Self = Self(3);
    /// The health endpoint.
    pub const HEALTH: Self = Self(4);
    /// A pod whose labels are not known yet.
    pub const INIT: Self = Self(5);
    /// Any other node of the mesh.
    pub const REMOTE_NODE: Self = Self(6);
    /// The Kubernetes API server.
    pub const KUBE_APISERVER: Self = Self(7);
    /// The ingress proxy.
    pub const INGRESS: Self = Self(8);
    /// The IPv4 addresses of the world: what `0.0.0.0/0` means in a policy's entry.
    pub const WORLD_IPV4: Self = Self(9);
    /// The IPv6 addresses of the world: what `::/0` means in a policy's entry.
    pub const WORLD_IPV6: Self = Self(10);
    /// The first number that a cluster may allocate within its range.
    pub const FIRST_ALLOCATABLE: u32 = 256;

    /// Whether the number is one that policies of a node have for another node's address.
    #[must_use]
    pub const fn is_node(self) -> bool {
        self.0 >> 24 == 2
    }

    /// Whether the number is one of the fixed ones below 256.
    #[must_use]
    pub const fn is_reserved(self) -> bool {
        self.0 < Self::FIRST_ALLOCATABLE
    }

    /// The cluster whose range the number lies in; `None` for reserved and node-local numbers.
    #[must_use]
    pub const fn cluster(self, max: MaxClusters) -> Option<u32> {
        if self.is_reserved() || self.0 >= 1 << 24 { None } else { Some((self.0 >> max.shift()) & max.max()) }
    }

    /// The name of a reserved identity as Cilium prints it (`host`, `world`, ...).
    #[must_use]
    pub const fn reserved_name(self) -> Option<&'static str> {
        Some(match self.0 {
            0 => "unknown",
            1 => "host",
            2 => "world",
            3 => "unmanaged",
            4 => "health",
            5 => "init",
            6 => "remote-node",
            7 => "kube-apiserver",
            8 => "ingress",
            9 => "world-ipv4",
            10 => "world-ipv6",
            _ => return None,
        })
    }
}

impl fmt::Display for IdentityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reserved_name() {
            Some(name) => write!(f, "{} ({name})", self.0),
            None => self.0.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_names_follow_ciliums_rules() {
        for good in ["a", "east", "c1", "a-b", &"x".repeat(32)] {
            assert!(ClusterName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "default", "-a", "a-", "East", "a.b", "a/b", &"x".repeat(33)] {
            assert!(ClusterName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn identity_ranges_of_both_mesh_sizes() {
        let one = ClusterId::new(1, MaxClusters::C255).unwrap();
        assert_eq!(one.identity_range(MaxClusters::C255), (IdentityId(65536), IdentityId(131071)));
        assert_eq!(one.identity_range(MaxClusters::C511), (IdentityId(32768), IdentityId(65535)));
        assert_eq!(IdentityId(66001).cluster(MaxClusters::C255), Some(1));
        assert_eq!(IdentityId::WORLD.cluster(MaxClusters::C255), None);
        assert!(ClusterId::new(256, MaxClusters::C255).is_err());
        assert!(ClusterId::new(0, MaxClusters::C511).is_err());
    }
}
