//! What a cluster says it can do, what follows for who reads it, and what a producer has to write.
//!
//! Only capabilities decide; nobody announces a version. Read from the other side ([`Capabilities::reader`]) they say
//! where its entries lie, whether lists wait for canaries, and which kinds exist. Of our own side ([`ProducerForms`])
//! they say what peers will expect: each kind announced has its prefix kept and its canary written, even when empty.

use super::key::{KINDS, Kind, Layout};
use serde::{Serialize, Serializer};
use tombolo_base::ids::MaxClusters;

/// `endpointSlicesExportMode`: how the backends of global services are published (Cilium 1.20).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ExportMode {
    /// As services; the field is absent (up to 1.19).
    #[default]
    Services,
    /// Twice, as services and as endpoint slices (1.20).
    ServicesAndSlices,
    /// As endpoint slices; there are no services. Such a cluster also reads slices only.
    SlicesOnly,
}

impl ExportMode {
    /// The word in the configuration; `""` is left out.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Services => "",
            Self::ServicesAndSlices => "services-and-endpointslices",
            Self::SlicesOnly => "endpointslices-only",
        }
    }

    /// The mode of a word; a reader refuses a cluster with any other.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Services, Self::ServicesAndSlices, Self::SlicesOnly]
            .into_iter()
            .find(|mode| mode.word() == word)
    }

    /// Whether services are published.
    #[must_use]
    pub const fn services(self) -> bool {
        !matches!(self, Self::SlicesOnly)
    }

    /// Whether endpoint slices are published.
    #[must_use]
    pub const fn slices(self) -> bool {
        !matches!(self, Self::Services)
    }

    /// The mode that serves all these readers: services unless every one of them reads slices only, slices as soon as
    /// one of them knows slices (what it prefers, it does not say).
    pub fn for_readers<'a>(readers: impl IntoIterator<Item = &'a Capabilities>) -> Self {
        let modes: Vec<Self> = readers.into_iter().map(|reader| reader.export_mode).collect();
        if modes.iter().all(|mode| *mode == Self::Services) {
            Self::Services
        } else if modes.iter().all(|mode| *mode == Self::SlicesOnly) {
            Self::SlicesOnly
        } else {
            Self::ServicesAndSlices
        }
    }
}

impl Serialize for ExportMode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
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
    /// Present from 1.17 on: whether MCS exports are published. Absent means that nobody writes their canary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_exports_enabled: Option<bool>,
    /// Present from 1.20 on.
    #[serde(rename = "endpointSlicesExportMode", skip_serializing_if = "is_services")]
    pub export_mode: ExportMode,
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

#[allow(clippy::trivially_copy_pass_by_ref)]
const fn is_services(mode: &ExportMode) -> bool {
    matches!(mode, ExportMode::Services)
}

/// Which form of a global service's backends a reader takes where a cluster publishes both (Cilium's
/// `clustermesh-service-v2`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ServicePreference {
    /// Services where there are any (`prefer-legacy`, the default of 1.20).
    #[default]
    Services,
    /// Slices where there are any (`prefer-endpointslice`).
    Slices,
    /// Slices and nothing else (`only-endpointslice`): a cluster with services only has no backends.
    OnlySlices,
}

impl ServicePreference {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Services, Self::Slices, Self::OnlySlices];

    /// Cilium's word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Services => "prefer-legacy",
            Self::Slices => "prefer-endpointslice",
            Self::OnlySlices => "only-endpointslice",
        }
    }
}

/// How one cluster is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReaderForms {
    /// Where its entries lie.
    pub layout: Layout,
    /// Whether a list is complete only once its canary stands.
    pub gated: bool,
    /// [`Kind::Services`] or [`Kind::EndpointSlices`]: where backends come from; `None` when there are none for us.
    pub backends: Option<Kind>,
    /// Whether it may have MCS exports.
    pub exports: bool,
}

impl ReaderForms {
    /// Whether entries of this kind are read; of the others no canary may be waited for.
    #[must_use]
    pub fn reads(&self, kind: Kind) -> bool {
        match kind {
            Kind::Identities | Kind::Nodes | Kind::Ips => true,
            Kind::Services | Kind::EndpointSlices => self.backends == Some(kind),
            Kind::ServiceExports => self.exports,
            Kind::Assignments => false,
        }
    }
}

impl Capabilities {
    /// Whether a cluster that says this has entries of a kind, and writes their canary.
    #[must_use]
    pub const fn publishes(&self, kind: Kind) -> bool {
        match kind {
            Kind::Identities | Kind::Nodes | Kind::Ips => true,
            Kind::Services => self.export_mode.services(),
            Kind::EndpointSlices => self.export_mode.slices(),
            Kind::ServiceExports => self.service_exports_enabled.is_some(),
            Kind::Assignments => false,
        }
    }

    /// How a cluster that says this is read.
    #[must_use]
    pub const fn reader(&self, preference: ServicePreference) -> ReaderForms {
        let backends = match (preference, self.export_mode) {
            (ServicePreference::OnlySlices, ExportMode::Services) => None,
            (ServicePreference::Services, ExportMode::ServicesAndSlices) | (_, ExportMode::Services) => {
                Some(Kind::Services)
            }
            (_, ExportMode::ServicesAndSlices | ExportMode::SlicesOnly) => Some(Kind::EndpointSlices),
        };
        ReaderForms {
            layout: if self.cached { Layout::Cache } else { Layout::State },
            gated: self.synced_canaries,
            backends,
            exports: self.service_exports_enabled.is_some(),
        }
    }

    /// The oldest release of Cilium that says this.
    #[must_use]
    pub const fn oldest_release(&self) -> Release {
        match (self.export_mode, self.service_exports_enabled) {
            (ExportMode::ServicesAndSlices | ExportMode::SlicesOnly, _) => Release::V1_20,
            (ExportMode::Services, Some(_)) => Release::V1_17,
            (ExportMode::Services, None) => Release::V1_16,
        }
    }
}

/// A minor release of Cilium, as far as the wire differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Release {
    /// 1.16: the cluster configuration is mandatory.
    V1_16,
    /// 1.17: MCS exports.
    V1_17,
    /// 1.18.
    V1_18,
    /// 1.19: exports name their IP families.
    V1_19,
    /// 1.20: endpoint slices.
    V1_20,
}

/// What a producer writes: one switch for each capability.
///
/// The default is what every peer from 1.16 on understands and none waits for: state layout, canaries, services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerForms {
    /// Where the entries are written; the cache layout is announced as `cached`.
    pub layout: Layout,
    /// Whether canaries are written and announced. Without them readers take the first list as complete.
    pub canaries: bool,
    /// MCS exports: `None` says nothing (as up to 1.16), `Some(false)` that there are none, `Some(true)` that there may
    /// be some. With either `Some` readers wait for the canary.
    pub service_exports: Option<bool>,
    /// How backends are written.
    pub backends: ExportMode,
}

impl Default for ProducerForms {
    fn default() -> Self {
        Self::of(Release::V1_16)
    }
}

impl ProducerForms {
    /// What the clustermesh-apiserver of a release writes by default.
    #[must_use]
    pub const fn of(release: Release) -> Self {
        let (service_exports, backends) = match release {
            Release::V1_16 => (None, ExportMode::Services),
            Release::V1_17 | Release::V1_18 | Release::V1_19 => (Some(false), ExportMode::Services),
            Release::V1_20 => (Some(false), ExportMode::ServicesAndSlices),
        };
        Self { layout: Layout::State, canaries: true, service_exports, backends }
    }

    /// What is announced.
    #[must_use]
    pub const fn capabilities(&self, max: MaxClusters) -> Capabilities {
        Capabilities {
            synced_canaries: self.canaries,
            cached: matches!(self.layout, Layout::Cache),
            max_connected_clusters: max.max(),
            service_exports_enabled: self.service_exports,
            export_mode: self.backends,
        }
    }

    /// The kinds whose canaries are written, each once its entries stand. Services have theirs also when only slices
    /// are written: a reader that wants services finds none instead of waiting for ever.
    pub fn canaries(&self) -> impl Iterator<Item = Kind> + use<> {
        let exports = self.service_exports.map(|_| Kind::ServiceExports);
        let slices = self.backends.slices().then_some(Kind::EndpointSlices);
        let kinds = self.canaries.then_some(KINDS.into_iter().chain(exports).chain(slices));
        kinds.into_iter().flatten()
    }

    /// Whether entries of this kind are written.
    #[must_use]
    pub fn writes(&self, kind: Kind) -> bool {
        match kind {
            Kind::Identities | Kind::Nodes | Kind::Ips | Kind::Assignments => true,
            Kind::Services => self.backends.services(),
            Kind::EndpointSlices => self.backends.slices(),
            Kind::ServiceExports => self.service_exports == Some(true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ClusterConfig;

    const RELEASES: [(Release, &str); 5] = [
        (Release::V1_16, r#"{"syncedCanaries":true,"maxConnectedClusters":255}"#),
        (
            Release::V1_17,
            r#"{"syncedCanaries":true,"maxConnectedClusters":255,"serviceExportsEnabled":false}"#,
        ),
        (
            Release::V1_18,
            r#"{"syncedCanaries":true,"maxConnectedClusters":255,"serviceExportsEnabled":false}"#,
        ),
        (
            Release::V1_19,
            r#"{"syncedCanaries":true,"maxConnectedClusters":255,"serviceExportsEnabled":false}"#,
        ),
        (
            Release::V1_20,
            r#"{"syncedCanaries":true,"maxConnectedClusters":255,"serviceExportsEnabled":false,"endpointSlicesExportMode":"services-and-endpointslices"}"#,
        ),
    ];

    #[test]
    fn what_each_release_announces_is_written_and_read() {
        for (release, text) in RELEASES {
            let capabilities = ProducerForms::of(release).capabilities(MaxClusters::C255);
            let config = ClusterConfig { id: 1, capabilities };
            let whole = format!("{{\"id\":1,\"capabilities\":{text}}}");
            assert_eq!(String::from_utf8(config.encode().unwrap()).unwrap(), whole);
            assert_eq!(ClusterConfig::decode(whole.as_bytes()).unwrap(), config);
            assert!(config.capabilities.oldest_release() <= release);
        }
        let oldest = RELEASES
            .map(|(release, _)| ProducerForms::of(release).capabilities(MaxClusters::C511).oldest_release());
        assert_eq!(oldest, [Release::V1_16, Release::V1_17, Release::V1_17, Release::V1_17, Release::V1_20]);
        assert_eq!(ProducerForms::default(), ProducerForms::of(Release::V1_16));
    }

    /// Mode, preference, and where backends come from.
    #[test]
    fn where_backends_are_read() {
        use ExportMode as Mode;
        use ServicePreference as Preference;
        let (services, slices) = (Some(Kind::Services), Some(Kind::EndpointSlices));
        for (mode, preference, backends) in [
            (Mode::Services, Preference::Services, services),
            (Mode::Services, Preference::Slices, services),
            (Mode::Services, Preference::OnlySlices, None),
            (Mode::ServicesAndSlices, Preference::Services, services),
            (Mode::ServicesAndSlices, Preference::Slices, slices),
            (Mode::ServicesAndSlices, Preference::OnlySlices, slices),
            (Mode::SlicesOnly, Preference::Services, slices),
            (Mode::SlicesOnly, Preference::Slices, slices),
            (Mode::SlicesOnly, Preference::OnlySlices, slices),
        ] {
            let capabilities = Capabilities { export_mode: mode, ..Capabilities::default() };
            let forms = capabilities.reader(preference);
            assert_eq!(forms.backends, backends, "{mode:?} {preference:?}");
            assert_eq!(forms.reads(Kind::Services), backends == services);
            assert_eq!(forms.reads(Kind::EndpointSlices), backends == slices);
            assert!(!forms.gated && !forms.exports && forms.layout == Layout::State);
        }
    }

    /// A reader waits for the canary of everything it reads, so whatever a producer announces it must write.
    #[test]
    fn no_reader_waits_for_what_no_producer_writes() {
        for (layout, canaries) in [(Layout::State, true), (Layout::Cache, true), (Layout::State, false)] {
            for service_exports in [None, Some(false), Some(true)] {
                for backends in [ExportMode::Services, ExportMode::ServicesAndSlices, ExportMode::SlicesOnly]
                {
                    let forms = ProducerForms { layout, canaries, service_exports, backends };
                    let capabilities = forms.capabilities(MaxClusters::C255);
                    for preference in [
                        ServicePreference::Services,
                        ServicePreference::Slices,
                        ServicePreference::OnlySlices,
                    ] {
                        let reader = capabilities.reader(preference);
                        assert_eq!((reader.layout, reader.gated), (layout, canaries));
                        let written: Vec<Kind> = forms.canaries().collect();
                        for kind in [KINDS.as_slice(), &[Kind::EndpointSlices, Kind::ServiceExports]].concat()
                        {
                            let waits = reader.gated && reader.reads(kind);
                            assert!(!waits || written.contains(&kind), "{forms:?} {preference:?} {kind}");
                        }
                        assert!(reader.backends.is_none_or(|kind| forms.writes(kind)));
                    }
                    assert_eq!(forms.writes(Kind::ServiceExports), service_exports == Some(true));
                    assert_eq!(forms.canaries().next().is_some(), canaries);
                }
            }
        }
    }

    #[test]
    fn the_mode_that_serves_all_readers() {
        let mode = |modes: &[ExportMode]| {
            let readers: Vec<Capabilities> = modes
                .iter()
                .map(|mode| Capabilities { export_mode: *mode, ..Capabilities::default() })
                .collect();
            ExportMode::for_readers(&readers)
        };
        use ExportMode::{Services, ServicesAndSlices, SlicesOnly};
        assert_eq!(mode(&[]), Services);
        assert_eq!(mode(&[Services, Services]), Services);
        assert_eq!(mode(&[Services, ServicesAndSlices]), ServicesAndSlices);
        assert_eq!(mode(&[Services, SlicesOnly]), ServicesAndSlices);
        assert_eq!(mode(&[SlicesOnly, SlicesOnly]), SlicesOnly);
    }
}
