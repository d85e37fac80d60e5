//! Exports and imports of the Multi-Cluster Services API: the task that runs the pure planner, and what the elected agent
//! says for all.

use super::backend::Texts;
use super::drive::Driver;
use super::tables::Intent;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::PoisonError;
use tombolo_base::ids::{ClusterId, ClusterName, MaxClusters};
use tombolo_base::source::{Source, SourceState};
use tombolo_base::table::{Snapshot, Table};
use tombolo_clustermesh::MeshError;
use tombolo_clustermesh::certificate::unix_now;
use tombolo_clustermesh::publisher::{Desired, PublisherHandle};
use tombolo_clustermesh::rows;
use tombolo_clustermesh::wire::{Kind, Layout, Remote, ServiceExport};
use tombolo_kubernetes::{NamespaceRow, Tables};
use tombolo_service::mcs::{self, ExportRow, ImportRequest, ImportRow, InputChanges, Inputs, RemoteExport};
use tombolo_service::pools::Assigned;
use tombolo_service::{LbAssignment, ServiceName};

/// Addresses by service, as they were given before.
type Given = BTreeMap<ServiceName, BTreeSet<IpAddr>>;

/// Namespaces as the planner reads them.
fn namespaces(table: &Snapshot<NamespaceRow>) -> mcs::Namespaces {
    table.iter().map(|row| (row.name.clone(), row.global)).collect()
}

/// Runs the planner until cancelled.
pub(crate) async fn planner(
    driver: Driver,
    mut planner: mcs::Planner,
    intent: Intent,
    out: mcs::Outputs,
    problems: Texts,
) {
    let kube = &intent.kube;
    let (mut exports, mut requests) = (kube.exports.changes(), kube.imports.changes());
    let (mut services, mut slices) = (kube.services.changes(), kube.slices.changes());
    let (mut remote, mut addresses) = (intent.exports.changes(), intent.addresses.changes());
    let mut spaces = kube.namespaces.changes();
    loop {
        let mut changes = InputChanges::default();
        tokio::select! {
            () = driver.cancel.cancelled() => return,
            batch = exports.next() => changes.exports = Some(batch),
            batch = requests.next() => changes.requests = Some(batch),
            batch = services.next() => changes.services = Some(batch),
            batch = slices.next() => changes.slices = Some(batch),
            batch = remote.next() => changes.remote = Some(batch),
            batch = addresses.next() => changes.addresses = Some(batch),
            batch = spaces.next() => changes.namespaces = Some(namespaces(&batch.snapshot)),
            () = driver.clock.sleep_until(planner.next_deadline()) => {}
        }
        changes.exports = changes.exports.or_else(|| exports.drain());
        changes.requests = changes.requests.or_else(|| requests.drain());
        changes.services = changes.services.or_else(|| services.drain());
        changes.slices = changes.slices.or_else(|| slices.drain());
        changes.remote = changes.remote.or_else(|| remote.drain());
        changes.addresses = changes.addresses.or_else(|| addresses.drain());
        let spaces = spaces.drain().map(|batch| namespaces(&batch.snapshot));
        changes.namespaces = changes.namespaces.or(spaces);
        planner.step(changes, driver.clock.now(), &out);
        *problems.lock().unwrap_or_else(PoisonError::into_inner) = planner.problems();
    }
}

/// What the elected agent needs to speak of exports and imports.
pub(crate) struct Speaker {
    /// This cluster's name.
    pub(crate) cluster: ClusterName,
    /// The range of clusterset IPs.
    pub(crate) range: mcs::ClusterSetRange,
    /// Exports in etcd, as this node learned them, also from an earlier life.
    pub(crate) exports: Table<RemoteExport>,
    /// Imports, as planned here.
    pub(crate) imports: Table<ImportRow>,
    /// When each export was published first: known in this term.
    pub(crate) created: BTreeMap<ServiceName, i64>,
}

impl Speaker {
    /// Reads when each export was published first. The elected agent asks etcd itself: its own follower waits for canaries,
    /// which it is this agent's task to write. An etcd that was wiped has nothing; what this node remembers is as good.
    pub(crate) async fn learn(
        &mut self,
        publisher: &PublisherHandle,
        (id, max): (ClusterId, MaxClusters),
    ) -> Result<(), MeshError> {
        let prefix = Kind::ServiceExports.prefix(Layout::State, self.cluster.as_str());
        let listed = publisher.key_values().list(&prefix).await?;
        let remote = Remote { name: self.cluster, id, max, own: true };
        let own = Source::Cluster(self.cluster);
        let known = self.exports.snapshot();
        let known = known.by_source(&own).map(|row| (row.name.clone(), row.created_unix_secs));
        self.created = known.collect();
        for (key, value) in &listed {
            let Some(name) = key.strip_prefix(&prefix) else { continue };
            match ServiceExport::decode(&remote, name, value) {
                Ok(export) => {
                    let row = rows::remote_export(&own, &export);
                    self.created.insert(row.name, row.created_unix_secs);
                }
                Err(reject) => {
                    tracing::warn!(key = %key.escape_debug(), %reject, "an export's time cannot be read; it counts as new");
                }
            }
        }
        Ok(())
    }

    /// The entries of this cluster's exports.
    pub(crate) fn entries(&mut self, tables: &Tables) -> Vec<Result<Desired, MeshError>> {
        let inputs = Inputs {
            exports: tables.exports.snapshot(),
            services: tables.services.snapshot(),
            namespaces: namespaces(&tables.namespaces.snapshot()),
            ..Inputs::default()
        };
        let exports = mcs::own_exports(&inputs, &self.created, unix_now());
        self.created = exports.iter().map(|(name, created, _)| (name.clone(), *created)).collect();
        let entry = |(name, created, spec): &(ServiceName, i64, mcs::ExportSpec)| {
            Desired::export(&rows::export_entry(&self.cluster, name, *created, spec))
        };
        exports.iter().map(entry).collect()
    }

    /// Clusterset IPs, given `present` ones; `lb` are the addresses of LoadBalancer services. As long as a cluster has not said
    /// what it exports, what was given stays.
    pub(crate) fn assign(&self, tables: &Tables, lb: &[LbAssignment], present: &Given) -> Assigned {
        let imports = self.imports.snapshot();
        let services = tables.services.snapshot();
        let own = services.by_source(&Source::Manifests);
        let own = own.flat_map(|row| row.addresses().map(|ip| (*ip, row.name.clone())));
        let lb = lb.iter().flat_map(|row| row.addresses.iter().map(|ip| (*ip, row.name.clone())));
        let others: BTreeMap<IpAddr, ServiceName> = lb.chain(own).collect();
        let mut assigned = mcs::assign(mcs::Round {
            own: self.cluster.as_str(),
            range: &self.range,
            imports: &imports,
            requests: &tables.imports.snapshot(),
            taken: others.clone(),
            present,
        });
        let confirmed = imports.source_state(&Source::Planner) == Some(SourceState::Initialized);
        if !(confirmed && self.exports.snapshot().is_complete()) {
            let decided: BTreeSet<ServiceName> = assigned.rows.iter().map(|row| row.name.clone()).collect();
            let taken: BTreeSet<IpAddr> =
                assigned.rows.iter().flat_map(|row| &row.addresses).copied().collect();
            let held = present.iter().filter(|(name, addresses)| {
                let free = |ip: &IpAddr| !taken.contains(ip) && !others.contains_key(ip);
                mcs::is_derived(name) && !decided.contains(name) && addresses.iter().all(free)
            });
            assigned.rows.extend(held.map(|(name, addresses)| LbAssignment {
                source: Source::Planner,
                name: name.clone(),
                addresses: addresses.clone(),
                pools: BTreeSet::new(),
            }));
        }
        assigned
    }
}

/// Changes that matter to the elected agent, beside those of services.
pub(crate) struct News {
    exports: tombolo_base::table::Changes<ExportRow>,
    requests: tombolo_base::table::Changes<ImportRequest>,
    imports: tombolo_base::table::Changes<ImportRow>,
}

impl News {
    /// From now on.
    pub(crate) fn of(tables: &Tables, speaker: &Speaker) -> Self {
        Self {
            exports: tables.exports.changes(),
            requests: tables.imports.changes(),
            imports: speaker.imports.changes(),
        }
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.exports.next() => {}
            _ = self.requests.next() => {}
            _ = self.imports.next() => {}
        }
    }
}

/// Waits for the next change; for ever where there is no export at all.
pub(crate) async fn next(news: &mut Option<News>) {
    match news {
        Some(news) => news.next().await,
        None => std::future::pending().await,
    }
}
