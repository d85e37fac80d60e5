//! The gate of the CNI plugin: a pod gets its identity, and ADD returns only when the datapath is in place.

use super::drive::{Applied, Driver};
use super::interfaces::InterfaceRow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use tombolo_base::ids::{ClusterName, IdentityId};
use tombolo_base::labels::Labels;
use tombolo_base::prefix::Prefix;
use tombolo_base::table::Table;
use tombolo_clustermesh::MeshError;
use tombolo_clustermesh::publisher::{IdentityAllocator, PublisherStatus};
use tombolo_cni::{DatapathGate, EndpointSpec, EndpointStore, GateError, Identity};
use tombolo_kubernetes::{LabelFilter, NamespaceRow, PodRow, Tables, identity_labels};
use tombolo_topology::{EndpointRow, EndpointState, NodeIndex, PrefixEntry};

/// What the gate looks at.
pub(crate) struct Gate {
    /// This cluster.
    pub(crate) cluster: ClusterName,
    /// Which labels make identities.
    pub(crate) filter: Arc<LabelFilter>,
    /// Pods of the manifests.
    pub(crate) pods: Table<PodRow>,
    /// Namespaces of the manifests.
    pub(crate) namespaces: Table<NamespaceRow>,
    /// Who uses which identity.
    pub(crate) uses: Uses,
    /// This node's pods, for the identity of one that comes.
    pub(crate) endpoints: Table<EndpointRow>,
    /// What the datapath holds of interfaces.
    pub(crate) interfaces: Applied<InterfaceRow>,
    /// What the datapath holds of prefixes.
    pub(crate) prefixes: Applied<PrefixEntry>,
}

/// Which endpoint uses which label set: each is one use of its identity, however often it is asked for, and only what was
/// taken is given back.
#[derive(Clone)]
pub(crate) struct Uses {
    identities: IdentityAllocator,
    held: Arc<Mutex<BTreeMap<u16, Labels>>>,
}

impl Uses {
    /// No uses yet.
    pub(crate) fn new(identities: IdentityAllocator) -> Self {
        Self { identities, held: Arc::default() }
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<u16, Labels>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `labels` what the endpoint uses, and gives back what it used before.
    async fn take(&self, endpoint: u16, labels: &Labels) -> Result<IdentityId, MeshError> {
        let id = self.identities.allocate(labels).await?;
        let before = self.held().insert(endpoint, labels.clone());
        before.iter().for_each(|labels| self.identities.release(labels));
        Ok(id)
    }

    fn give_back(&self, endpoint: u16) {
        let before = self.held().remove(&endpoint);
        before.iter().for_each(|labels| self.identities.release(labels));
    }

    fn has(&self, endpoint: u16) -> bool {
        self.held().contains_key(&endpoint)
    }
}

impl Gate {
    /// Labels and identity of a pod.
    async fn identity_of(&self, endpoint: &EndpointSpec) -> Result<Identity, GateError> {
        let (namespace, pod) = (endpoint.namespace.as_str(), endpoint.pod.as_str());
        let key = (namespace.into(), pod.into());
        let row = self.pods.snapshot().get(&key).cloned().ok_or_else(|| {
            GateError::retry(format!(
                "pod {namespace}/{pod} is not among the manifests yet; it is looked up again"
            ))
        })?;
        let namespaces = self.namespaces.snapshot();
        let labels = identity_labels(&row, namespaces.get(&row.namespace), &self.cluster, &self.filter);
        let taken = self.uses.take(endpoint.id, &labels).await;
        let id = taken.map_err(|error| GateError::retry(error.to_string()))?;
        Ok(Identity { id, labels })
    }
}

impl DatapathGate for Gate {
    async fn identify(&self, endpoint: &EndpointSpec) -> Result<Identity, GateError> {
        if endpoint.pod.is_empty() {
            return Err(GateError::fatal(
                "the runtime gave no K8S_POD_NAMESPACE and K8S_POD_NAME in CNI_ARGS; without them the pod has no labels",
            ));
        }
        self.identity_of(endpoint).await
    }

    fn mac(&self, namespace: &str, pod: &str) -> Option<[u8; 6]> {
        self.pods.snapshot().get(&(namespace.into(), pod.into())).and_then(|row| row.mac)
    }

    async fn apply(&self, endpoint: &EndpointSpec) -> Result<(), GateError> {
        let identity = self.endpoints.snapshot().get(&endpoint.id).and_then(|row| row.identity);
        let identity = identity.ok_or_else(|| GateError::retry("the endpoint has no identity yet"))?;
        // The address may have been another pod's a moment ago: an entry with that one's identity does not count.
        let known = |row: Option<&PrefixEntry>| {
            row.is_some_and(|row| row.node == NodeIndex::LOCAL && row.identity == identity)
        };
        for address in &endpoint.addresses {
            self.prefixes.wait(&Prefix::host(*address), known).await;
        }
        let open = |row: Option<&InterfaceRow>| {
            row.is_some_and(|row| row.ready && row.endpoint == endpoint.id && row.identity == identity.0)
        };
        self.interfaces.wait(&endpoint.ifindex, open).await;
        Ok(())
    }

    async fn remove(&self, endpoint: &EndpointSpec) -> Result<(), GateError> {
        let gone = |row: Option<&InterfaceRow>| row.is_none_or(|row| row.endpoint != endpoint.id);
        self.interfaces.wait(&endpoint.ifindex, gone).await;
        // Nobody gets the address while it still means this pod's identity.
        let forgotten = |row: Option<&PrefixEntry>| row.is_none_or(|row| row.node != NodeIndex::LOCAL);
        for address in &endpoint.addresses {
            self.prefixes.wait(&Prefix::host(*address), forgotten).await;
        }
        self.uses.give_back(endpoint.id);
        Ok(())
    }

    async fn check(&self, endpoint: &EndpointSpec) -> Result<(), GateError> {
        match self.interfaces.get(&endpoint.ifindex) {
            Some(row) if row.ready && row.endpoint == endpoint.id && row.addresses == endpoint.addresses => {
                Ok(())
            }
            Some(row) if !row.ready => {
                Err(GateError::fatal("the datapath drops: identity or policy is not applied"))
            }
            Some(_) => Err(GateError::fatal("the datapath holds another endpoint on this interface")),
            None => Err(GateError::fatal("the datapath knows nothing of the interface")),
        }
    }
}

/// What keeps identities in step with labels.
pub(crate) struct LabelFollower {
    /// Which labels make identities.
    pub(crate) filter: Arc<LabelFilter>,
    /// Where an endpoint's identity is kept.
    pub(crate) store: Arc<EndpointStore<Gate>>,
    /// Pods and namespaces of the manifests.
    pub(crate) tables: Tables,
    /// This node's pods.
    pub(crate) endpoints: Table<EndpointRow>,
    /// Who uses which identity.
    pub(crate) uses: Uses,
}

/// Keeps identities in step with pods' and namespaces' labels, until cancelled. Restored endpoints are counted as users
/// of their identities first, or as soon as etcd can be asked.
pub(crate) async fn follow_labels(
    driver: Driver,
    labels: LabelFollower,
    mut publisher: watch::Receiver<PublisherStatus>,
) {
    let (mut pods, mut namespaces) = (labels.tables.pods.changes(), labels.tables.namespaces.changes());
    let mut renumbered = labels.uses.identities.renumbered();
    let mut connected = false;
    loop {
        labels.count_restored().await;
        labels.compare().await;
        // Etcd came back: what could not be allocated without it may be now.
        let came_back = async {
            loop {
                let now = publisher.borrow_and_update().connected;
                if std::mem::replace(&mut connected, now) != now && now {
                    return;
                }
                if publisher.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! {
            () = driver.cancel.cancelled() => return,
            _ = pods.next() => {}
            _ = namespaces.next() => {}
            () = came_back => {}
            changed = renumbered.changed() => if changed.is_err() { return },
        }
    }
}

impl LabelFollower {
    /// The living endpoints that have an identity.
    fn identified(&self) -> Vec<EndpointRow> {
        let rows = self.endpoints.snapshot();
        let identified = |row: &&EndpointRow| row.identity.is_some() && row.state != EndpointState::Deleting;
        rows.iter().filter(identified).cloned().collect()
    }

    async fn count_restored(&self) {
        for endpoint in self.identified().iter().filter(|row| !self.uses.has(row.id)) {
            if let Err(error) = self.uses.take(endpoint.id, &endpoint.labels).await {
                tracing::warn!(pod = %endpoint.pod, %error,
                    "a restored endpoint's identity cannot be confirmed yet; it is tried again when etcd is there");
            } else if !self.identified().iter().any(|row| row.id == endpoint.id) {
                // Deleted meanwhile, before there was anything to give back.
                self.uses.give_back(endpoint.id);
            }
        }
        // Before that a reference in etcd may be that of an endpoint which has not been looked at yet.
        if self.identified().iter().all(|row| self.uses.has(row.id)) {
            self.uses.identities.all_counted();
        }
    }

    /// Gives every endpoint whose pod's labels have changed another identity.
    async fn compare(&self) {
        let (pods, namespaces) = (self.tables.pods.snapshot(), self.tables.namespaces.snapshot());
        for endpoint in &self.identified() {
            let Some(pod) = pods.get(&(endpoint.namespace.clone(), endpoint.pod.clone())) else { continue };
            let cluster = endpoint.labels.cluster().and_then(|name| name.parse().ok());
            let Some(cluster) = cluster else { continue };
            let labels = identity_labels(pod, namespaces.get(&pod.namespace), &cluster, &self.filter);
            if labels != endpoint.labels || self.uses.identities.lookup(&labels) != endpoint.identity {
                self.relabel(endpoint, labels).await;
            }
        }
    }

    async fn relabel(&self, endpoint: &EndpointRow, labels: Labels) {
        let id = match self.uses.take(endpoint.id, &labels).await {
            Ok(id) => id,
            Err(error) => {
                tracing::warn!(pod = %endpoint.pod, %error, "the pod keeps its identity until the new labels get one");
                return;
            }
        };
        tracing::info!(pod = %endpoint.pod, identity = id.0, "labels changed, the pod has another identity");
        if let Err(error) = self.store.relabel(endpoint.id, &Identity { id, labels }) {
            tracing::warn!(pod = %endpoint.pod, %error, "the new identity could not be stored");
        }
    }
}
