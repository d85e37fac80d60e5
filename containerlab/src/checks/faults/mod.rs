//! Faults: something is broken on purpose under load, what happens is measured, and the lab is mended again.

mod agent;
mod backends;
mod etcd;
mod fib;
mod follow;
mod keys;
mod known;
mod load;
mod mend;
mod mesh;
mod power;
mod scene;
mod segments;

pub(super) use mesh::MeshFault;

use super::check::{CheckResult, Failure, Family};
use super::context::Context;
use super::inventory::{Cluster, PodFacts};
use super::names;
use super::ready;

/// A fault and where it strikes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The pods behind the global service are deleted in one cluster.
    BackendsDeleted {
        /// The cluster.
        cluster: String,
    },
    /// The backends of the service with external traffic policy Local go, node by node.
    LocalEndpointsGone {
        /// The cluster.
        cluster: String,
    },
    /// The agent is killed with SIGKILL and started again.
    AgentKilled {
        /// The node.
        node: String,
    },
    /// The same, while pods ask for names.
    NamesWithoutAgent {
        /// The node.
        node: String,
    },
    /// A cluster's etcd is stopped for a while.
    EtcdStopped {
        /// The cluster.
        cluster: String,
    },
    /// A cluster's etcd loses all its data.
    EtcdWiped {
        /// The cluster.
        cluster: String,
    },
    /// A node loses its links and its power.
    NodePoweredOff {
        /// The node.
        node: String,
    },
    /// Something happens to the etcds of a mesh.
    Mesh(MeshFault),
}

impl Fault {
    /// Runs the fault and waits until the lab is whole again.
    ///
    /// # Errors
    /// What broke that must not, or did not come back.
    pub async fn run(&self, context: &Context) -> CheckResult {
        let result = match self {
            Self::BackendsDeleted { cluster } => backends::deleted(context, cluster).await,
            Self::LocalEndpointsGone { cluster } => backends::local_endpoints_gone(context, cluster).await,
            Self::AgentKilled { node } => agent::killed(context, node).await,
            Self::NamesWithoutAgent { node } => names::without_agent(context, node).await,
            Self::EtcdStopped { cluster } => etcd::stopped(context, cluster).await,
            Self::EtcdWiped { cluster } => etcd::wiped(context, cluster).await,
            Self::NodePoweredOff { node } => power::off(context, node).await,
            Self::Mesh(fault) => fault.run(context).await,
        };
        // The lab must be whole again before the next fault, whatever this one found.
        let mended = ready::wait(&context.access, context.access.topology(), Some(context.variant)).await;
        let routed = ready::routers(context).await;
        let notes = result?;
        mended?;
        routed?;
        Ok(notes)
    }
}

/// A pod of a namespace's app on a node (any node without one).
fn pod_of<'a>(cluster: &'a Cluster, app: &str, node: Option<&str>) -> Result<&'a PodFacts, Failure> {
    let wanted = |pod: &&PodFacts| {
        pod.labels.get("app").map(String::as_str) == Some(app) && node.is_none_or(|node| pod.node == node)
    };
    cluster.pods.values().find(wanted).ok_or_else(|| {
        let place = node.map(|node| format!(" on {node}")).unwrap_or_default();
        Failure::new(
            format!("a pod labelled app={app}{place} in {}", cluster.name),
            "none",
            cluster.manifests.display().to_string(),
        )
    })
}

/// Any cluster but this one.
fn other<'a>(context: &'a Context, cluster: &str) -> Result<&'a Cluster, Failure> {
    context
        .inventory
        .other(cluster)
        .ok_or_else(|| Failure::new("a second cluster", "the lab has one only", "lab.yaml"))
}

/// A service's cluster address.
fn cluster_ip(
    context: &Context,
    cluster: &str,
    service: &str,
    family: Family,
) -> Result<std::net::IpAddr, Failure> {
    let facts = context.service(cluster, service)?;
    facts.cluster_ip(family).ok_or_else(|| {
        Failure::new(
            format!("an {family} address of {service}"),
            "none",
            format!("its manifest in {cluster}"),
        )
    })
}
