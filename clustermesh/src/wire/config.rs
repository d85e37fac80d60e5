//! `cilium/cluster-config/<name>`: a cluster's number and what it can do.

use super::capability::{Capabilities, ExportMode};
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

// serde passes references.
#[allow(clippy::trivially_copy_pass_by_ref)]
const fn is_zero(number: &u32) -> bool {
    *number == 0
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
    /// [`ConfigError::Malformed`], [`ConfigError::Mode`].
    pub fn decode(value: &[u8]) -> Result<Self, ConfigError> {
        let value = json::parse(value)?;
        let root = value.object("cluster config")?;
        let capabilities = root.structure("capabilities")?;
        let mode = capabilities.text("endpointSlicesExportMode")?;
        Ok(Self {
            id: root.number("id", u32::MAX)?,
            capabilities: Capabilities {
                synced_canaries: capabilities.flag("syncedCanaries")?,
                cached: capabilities.flag("cached")?,
                max_connected_clusters: capabilities.number("maxConnectedClusters", u32::MAX)?,
                service_exports_enabled: capabilities.optional_flag("serviceExportsEnabled")?,
                export_mode: ExportMode::parse(mode)
                    .ok_or_else(|| ConfigError::Mode(mode.chars().take(80).collect()))?,
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
        Ok(id)
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
        assert_eq!(check("null", small), Err(ConfigError::NoId(255)));
        assert_eq!(check(r#"{"id":0}"#, small), Err(ConfigError::NoId(255)));
        assert_eq!(check(r#"{"id":256}"#, small), Err(ConfigError::IdTooLarge { id: 256, max: 255 }));
        assert_eq!(
            check(r#"{"id":512}"#, MaxClusters::C511),
            Err(ConfigError::IdTooLarge { id: 512, max: 511 })
        );
        assert_eq!(check(r#"{"id":9}"#, small), Err(ConfigError::OwnId(9)));
        for (text, theirs) in [
            (r#"{"id":1,"capabilities":{"maxConnectedClusters":255}}"#, 255),
            (r#"{"id":1,"capabilities":{"maxConnectedClusters":512}}"#, 512),
            (r#"{"id":1}"#, 0),
        ] {
            assert_eq!(check(text, MaxClusters::C511), Err(ConfigError::MaxDiffers { theirs, ours: 511 }));
        }
        assert_eq!(
            check(r#"{"id":1,"capabilities":{"endpointSlicesExportMode":"bogus"}}"#, small),
            Err(ConfigError::Mode("bogus".to_owned()))
        );
        for bad in [
            r#"{"id":"1"}"#,
            r#"{"id":1.0}"#,
            r#"{"id":-1}"#,
            r#"{"id":4294967296}"#,
            "[]",
            "",
            "{",
            r#"{"id":1}x"#,
            r#"{"id":1,"capabilities":7}"#,
            r#"{"id":1,"capabilities":{"cached":1}}"#,
            r#"{"id":1,"capabilities":{"serviceExportsEnabled":"no"}}"#,
            r#"{"id":1,"capabilities":{"endpointSlicesExportMode":true}}"#,
        ] {
            assert!(matches!(check(bad, small), Err(ConfigError::Malformed(_))), "{bad}");
        }
    }

    #[test]
    fn configs_that_must_be_accepted() {
        let check = |text: &str, max| ClusterConfig::decode(text.as_bytes())?.check(own(), max);
        for (text, max, id) in [
            (r#"{"id":1}"#, MaxClusters::C255, 1),
            (r#"{"ID":255,"Capabilities":null,"new":[{}]}"#, MaxClusters::C255, 255),
            // At 255 the remote's figure is not compared; at 511 it is.
            (r#"{"id":5,"capabilities":{"maxConnectedClusters":511}}"#, MaxClusters::C255, 5),
            (r#"{"id":511,"capabilities":{"maxConnectedClusters":511,"later":1}}"#, MaxClusters::C511, 511),
        ] {
            assert_eq!(check(text, max).map(|id| id.get()), Ok(id), "{text}");
        }
    }

    #[test]
    fn duplicates_and_nulls_are_taken_as_go_takes_them() {
        let read = |text: &str| ClusterConfig::decode(text.as_bytes()).unwrap();
        let merged = read(
            r#"{"id":1,"capabilities":{"cached":true},"CAPABILITIES":{"syncedCanaries":true},"id":null}"#,
        );
        assert!(merged.id == 1 && merged.capabilities.cached && merged.capabilities.synced_canaries);
        assert!(read(r#"{"capabilities":{"cached":true},"capabilities":null}"#).capabilities.cached);
        // A pointer is emptied by null, a plain flag is not.
        let text = r#"{"capabilities":{"serviceExportsEnabled":true,"serviceExportsEnabled":null,"cached":true,"cached":null}}"#;
        let capabilities = read(text).capabilities;
        assert_eq!((capabilities.service_exports_enabled, capabilities.cached), (None, true));
        assert!(ClusterConfig::decode(br#"{"id":"x","id":1}"#).is_err(), "every occurrence has to fit");
    }
}
