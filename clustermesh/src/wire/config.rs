//! `cilium/cluster-config/<name>`: a cluster's number and what it can do.

use super::json::{self, JsonError};
use super::key::Layout;
use serde::Serialize;
use tombolo_base::ids::{ClusterId, MaxClusters};

/// A cluster's configuration as published.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ClusterConfig {
    /// The cluster's number; 0 means none was given.
    #[serde(skip_serializing_if = "is_zero")]
    pub id: u32,
    /// What the producer can do.
    pub capabilities: Capabilities,
}

/// The capabilities within a cluster's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Capabilities {
    /// Readers must wait for the canary of a prefix before they take its list as complete.
    #[serde(skip_serializing_if = "is_false")]
    pub synced_canaries: bool,
    /// The entries lie in the cache layout.
    #[serde(skip_serializing_if = "is_false")]
    pub cached: bool,
    /// 255 or 511; 0 when not said.
    #[serde(skip_serializing_if = "is_zero")]
    pub max_connected_clusters: u32,
    /// Present from 1.17 on: whether MCS exports are published.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_exports_enabled: Option<bool>,
    /// Present from 1.20 on; empty when services only.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub endpoint_slices_export_mode: String,
}

// serde passes references.
#[allow(clippy::trivially_copy_pass_by_ref)]
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[allow(clippy::trivially_copy_pass_by_ref)]
const fn is_false(flag: &bool) -> bool {
    !*flag
}

/// Why a remote cluster's configuration cannot be used. Each message says what to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not readable.
    #[error("the cluster configuration is malformed ({0}); check which program writes it")]
    Malformed(#[from] JsonError),
    /// Number 0 or none.
    #[error("the remote cluster has no id; set its cluster id to 1..{0}")]
    NoId(u32),
    /// Larger than this mesh allows.
    #[error(
        "the remote cluster's id {id} is larger than {max}, the largest of this mesh; renumber it or set max_connected_clusters alike everywhere"
    )]
    IdTooLarge {
        /// The remote's id.
        id: u32,
        /// The mesh's largest.
        max: u32,
    },
    /// The same number as ours.
    #[error(
        "the remote cluster has our own id {0}; every cluster of a mesh needs its own, renumber one of them"
    )]
    OwnId(u32),
    /// The same number as another remote's.
    #[error("the remote cluster's id {id} is already used by cluster {other}; renumber one of them")]
    Taken {
        /// The id.
        id: u32,
        /// Who has it.
        other: String,
    },
    /// Mesh sizes differ.
    #[error(
        "the remote cluster says max_connected_clusters {theirs}, ours is {ours}; it must be the same in the whole mesh"
    )]
    MaxDiffers {
        /// What the remote says; 0 when nothing.
        theirs: u32,
        /// Ours.
        ours: u32,
    },
    /// An export mode we do not know.
    #[error("the remote cluster exports endpoint slices in an unknown mode {0:?}; update this agent")]
    Mode(String),
}

impl ClusterConfig {
    /// Reads the value of a cluster-config key.
    ///
    /// # Errors
    /// [`ConfigError::Malformed`].
    pub fn decode(value: &[u8]) -> Result<Self, ConfigError> {
        let root = json::parse(value)?;
        root.members("cluster config")?;
        let none = json::Value::Null;
        let capabilities = root.get("capabilities").unwrap_or(&none);
        capabilities.members("capabilities")?;
        Ok(Self {
            id: root.number("id", u32::MAX)?,
            capabilities: Capabilities {
                synced_canaries: capabilities.flag("syncedCanaries")?.unwrap_or(false),
                cached: capabilities.flag("cached")?.unwrap_or(false),
                max_connected_clusters: capabilities.number("maxConnectedClusters", u32::MAX)?,
                service_exports_enabled: capabilities.flag("serviceExportsEnabled")?,
                endpoint_slices_export_mode: capabilities.text("endpointSlicesExportMode")?.to_owned(),
            },
        })
    }

    /// The value to publish.
    ///
    /// # Errors
    /// Those of the JSON encoder.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        json::write(self)
    }

    /// Checks what does not depend on other remote clusters.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self, own: Option<ClusterId>, max: MaxClusters) -> Result<ClusterId, ConfigError> {
        if self.id == 0 {
            return Err(ConfigError::NoId(max.max()));
        }
        let id = ClusterId::new(self.id, max)
            .map_err(|_| ConfigError::IdTooLarge { id: self.id, max: max.max() })?;
        if Some(id) == own {
            return Err(ConfigError::OwnId(self.id));
        }
        let theirs = self.capabilities.max_connected_clusters;
        if max == MaxClusters::C511 && theirs != max.max() {
            return Err(ConfigError::MaxDiffers { theirs, ours: max.max() });
        }
        match self.capabilities.endpoint_slices_export_mode.as_str() {
            "" | "services-and-endpointslices" | "endpointslices-only" => Ok(id),
            other => Err(ConfigError::Mode(other.chars().take(80).collect())),
        }
    }

    /// Where the entries lie.
    #[must_use]
    pub const fn layout(&self) -> Layout {
        if self.capabilities.cached { Layout::Cache } else { Layout::State }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Option<ClusterId> {
        ClusterId::new(9, MaxClusters::C255).ok()
    }

    #[test]
    fn golden_config() {
        let text = br#"{"id":1,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255}}"#;
        let config = ClusterConfig::decode(text).unwrap();
        assert_eq!(config.encode().unwrap(), text);
        assert_eq!(config.check(own(), MaxClusters::C255).unwrap().get(), 1);
        let newest = br#"{"id":1,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255,"serviceExportsEnabled":false,"endpointSlicesExportMode":"services-and-endpointslices"}}"#;
        let config = ClusterConfig::decode(newest).unwrap();
        assert_eq!(config.encode().unwrap(), newest);
        assert!(config.check(own(), MaxClusters::C255).is_ok());
        assert_eq!(config.layout(), Layout::State);
    }

    #[test]
    fn configs_that_must_be_refused() {
        let check = |text: &str, max| ClusterConfig::decode(text.as_bytes())?.check(own(), max);
        let small = MaxClusters::C255;
        assert_eq!(check(r#"{"capabilities":{}}"#, small), Err(ConfigError::NoId(255)));
        assert_eq!(check(r#"{"id":256}"#, small), Err(ConfigError::IdTooLarge { id: 256, max: 255 }));
        assert_eq!(check(r#"{"id":9}"#, small), Err(ConfigError::OwnId(9)));
        assert!(check(r#"{"id":5,"capabilities":{"maxConnectedClusters":511}}"#, small).is_ok());
        assert_eq!(
            check(r#"{"id":1,"capabilities":{"maxConnectedClusters":255}}"#, MaxClusters::C511),
            Err(ConfigError::MaxDiffers { theirs: 255, ours: 511 })
        );
        assert!(matches!(
            check(r#"{"id":1,"capabilities":{"endpointSlicesExportMode":"bogus"}}"#, small),
            Err(ConfigError::Mode(_))
        ));
        assert!(matches!(check(r#"{"id":"1"}"#, small), Err(ConfigError::Malformed(_))));
        assert!(matches!(check("[]", small), Err(ConfigError::Malformed(_))));
    }
}
