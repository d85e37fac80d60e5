//! The gate of the CNI plugin: a pod gets its identity, and ADD returns only when the datapath is in place.

use super::drive::{Applied, Driver};
use super::interfaces::InterfaceRow;
use std::sync::Arc;
use tombolo_base::ids::ClusterName;
use tombolo_base::prefix::Prefix;
use tombolo_base::table::Table;
use tombolo_clustermesh::publisher::IdentityAllocator;
use tombolo_cni::{DatapathGate, EndpointSpec, EndpointStore, GateError, Identity};
use tombolo_kubernetes::{NamespaceRow, PodRow, Tables, identity_labels};
use tombolo_topology::{EndpointRow, PrefixEntry};

/// What the gate looks at.
pub(crate) struct Gate {
    /// This cluster.
    pub(crate) cluster: ClusterName,
    /// Pods of the manifests.
    pub(crate) pods: Table<PodRow>,
    /// Namespaces of the manifests.
    pub(crate) namespaces: Table<NamespaceRow>,
    /// Allocates identities in etcd.
    pub(crate) identities: IdentityAllocator,
    /// This node's pods, for the labels of one that goes.
    pub(crate) endpoints: Table<EndpointRow>,
    /// What the datapath holds of interfaces.
    pub(crate) interfaces: Applied<InterfaceRow>,
    /// What the datapath holds of prefixes.
    pub(crate) prefixes: Applied<PrefixEntry>,
}

impl Gate {
    /// Labels and identity of a pod by name.
    pub(crate) async fn identity_of(&self, namespace: &str, pod: &str) -> Result<Identity, GateError> {
        let key = (namespace.into(), pod.into());
        let row = self.pods.snapshot().get(&key).cloned().ok_or_else(|| {
            GateError::retry(format!(
                "pod {namespace}/{pod} is not among the manifests yet; it is looked up again"
            ))
        })?;
        let namespaces = self.namespaces.snapshot();
        let labels = identity_labels(&row, namespaces.get(&row.namespace), &self.cluster);
        let id =
            self.identities.allocate(&labels).await.map_err(|error| GateError::retry(error.to_string()))?;
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
        self.identity_of(&endpoint.namespace, &endpoint.pod).await
    }

    async fn apply(&self, endpoint: &EndpointSpec) -> Result<(), GateError> {
        for address in &endpoint.addresses {
            self.prefixes.wait(&Prefix::host(*address), |row| row.is_some()).await;
        }
        let open =
            |row: Option<&InterfaceRow>| row.is_some_and(|row| row.ready && row.endpoint == endpoint.id);
        self.interfaces.wait(&endpoint.ifindex, open).await;
        Ok(())
    }

    async fn remove(&self, endpoint: &EndpointSpec) -> Result<(), GateError> {
        let gone = |row: Option<&InterfaceRow>| row.is_none_or(|row| row.endpoint != endpoint.id);
        self.interfaces.wait(&endpoint.ifindex, gone).await;
        if let Some(row) = self.endpoints.snapshot().get(&endpoint.id)
            && row.identity.is_some()
        {
            self.identities.release(&row.labels);
        }
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

/// Keeps identities in step with pods' and namespaces' labels, until cancelled. Restored endpoints are counted as users
/// of their identities first.
pub(crate) async fn follow_labels(
    driver: Driver,
    store: Arc<EndpointStore<Gate>>,
    tables: Tables,
    endpoints: Table<EndpointRow>,
    identities: IdentityAllocator,
) {
    let mut counted = false;
    let (mut pods, mut namespaces) = (tables.pods.changes(), tables.namespaces.changes());
    let mut renumbered = identities.renumbered();
    loop {
        tokio::select! {
            () = driver.cancel.cancelled() => return,
            _ = pods.next() => {}
            _ = namespaces.next() => {}
            changed = renumbered.changed() => if changed.is_err() { return },
        }
        let (pods, namespaces) = (tables.pods.snapshot(), tables.namespaces.snapshot());
        for endpoint in endpoints.snapshot().iter().filter(|row| row.identity.is_some()) {
            if !counted && let Err(error) = identities.allocate(&endpoint.labels).await {
                tracing::warn!(pod = %endpoint.pod, %error, "a restored endpoint's identity cannot be confirmed yet");
            }
            let Some(pod) = pods.get(&(endpoint.namespace.clone(), endpoint.pod.clone())) else { continue };
            let cluster = endpoint.labels.cluster().and_then(|name| name.parse().ok());
            let Some(cluster) = cluster else { continue };
            let labels = identity_labels(pod, namespaces.get(&pod.namespace), &cluster);
            if labels == endpoint.labels && identities.lookup(&labels) == endpoint.identity {
                continue;
            }
            match identities.allocate(&labels).await {
                Ok(id) => {
                    tracing::info!(pod = %endpoint.pod, identity = id.0, "labels changed, the pod has another identity");
                    if let Err(error) = store.relabel(endpoint.id, &Identity { id, labels }) {
                        tracing::warn!(pod = %endpoint.pod, %error, "the new identity could not be stored");
                    }
                    identities.release(&endpoint.labels);
                }
                Err(error) => {
                    tracing::warn!(pod = %endpoint.pod, %error, "the pod keeps its identity until the new labels get one")
                }
            }
        }
        counted = true;
    }
}
