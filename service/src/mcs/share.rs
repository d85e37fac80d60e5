//! What one cluster may bring. Numbers of frontends and clusterset IPs are shared by all: exports beyond a cluster's part
//! are left out, the last ones by name, so that it harms its own imports only.

use crate::rows::ServiceName;
use std::collections::{BTreeMap, BTreeSet};
use tombolo_base::source::Source;

/// Ports of one export that are used.
pub(super) const PORTS_OF_EXPORT_MAX: usize = 128;
/// Ports of all exports of a cluster that are used: with two families an eighth of all numbers of frontends. An export
/// without ports counts as one.
pub(super) const PORTS_OF_CLUSTER_MAX: usize = 4096;

/// What each of the other clusters exports, and how far that goes.
#[derive(Debug)]
pub(super) struct Shares {
    ports_max: usize,
    by_cluster: BTreeMap<Source, Share>,
    touched: BTreeSet<Source>,
}

#[derive(Debug, Default)]
struct Share {
    ports: BTreeMap<ServiceName, usize>,
    sum: usize,
    /// The first export that is left out; all after it are too.
    cut: Option<ServiceName>,
}

impl Share {
    fn first_beyond(&self, ports_max: usize) -> Option<ServiceName> {
        if self.sum <= ports_max {
            return None;
        }
        let mut sum = 0;
        let beyond = |(_, ports): &(&ServiceName, &usize)| {
            sum += **ports;
            sum > ports_max
        };
        self.ports.iter().find(beyond).map(|(name, _)| name.clone())
    }
}

impl Shares {
    /// Each cluster may bring `ports_max` ports.
    pub(super) const fn new(ports_max: usize) -> Self {
        Self { ports_max, by_cluster: BTreeMap::new(), touched: BTreeSet::new() }
    }

    /// A cluster's export with so many ports came, changed, or (`None`) went.
    pub(super) fn note(&mut self, name: &ServiceName, cluster: Source, ports: Option<usize>) {
        let share = self.by_cluster.entry(cluster).or_default();
        share.sum -= share.ports.remove(name).unwrap_or_default();
        if let Some(ports) = ports {
            let ports = ports.clamp(1, PORTS_OF_EXPORT_MAX);
            share.sum += ports;
            share.ports.insert(name.clone(), ports);
        }
        self.touched.insert(cluster);
    }

    /// The names whose exports are left out now or are not any more, after all that was noted.
    pub(super) fn settle(&mut self) -> BTreeSet<ServiceName> {
        let mut moved = BTreeSet::new();
        for cluster in std::mem::take(&mut self.touched) {
            let Some(share) = self.by_cluster.get_mut(&cluster) else { continue };
            let cut = share.first_beyond(self.ports_max);
            let from = [&cut, &share.cut].into_iter().flatten().min();
            let until = cut.as_ref().zip(share.cut.as_ref()).map(|(new, old)| new.max(old));
            if let Some(from) = from.filter(|_| cut != share.cut) {
                let between = share.ports.range(from..).map(|(name, _)| name);
                moved.extend(between.take_while(|name| until.is_none_or(|until| *name < until)).cloned());
            }
            share.cut = cut;
            if share.ports.is_empty() {
                self.by_cluster.remove(&cluster);
            }
        }
        moved
    }

    /// Whether a cluster's export of a name counts.
    pub(super) fn admits(&self, name: &ServiceName, cluster: &Source) -> bool {
        let cut = self.by_cluster.get(cluster).and_then(|share| share.cut.as_ref());
        cut.is_none_or(|cut| name < cut)
    }

    /// Clusters that export more than counts.
    pub(super) fn problems(&self) -> Vec<String> {
        let text = |(cluster, share): (&Source, &Share)| {
            let cut = share.cut.as_ref()?;
            let count = share.ports.range(cut..).count();
            Some(format!(
                "{cluster}: {count} of its {} exports are left out, {cut} and all after it by name: it may bring {} ports \
                 in all; export less there",
                share.ports.len(),
                self.ports_max
            ))
        };
        self.by_cluster.iter().filter_map(text).collect()
    }
}
