//! C4: from a runtime's ADD to the first packet that a policy allows, of pods one by one and of many at once.
//!
//! The store and the interfaces are the agent's, the gate writes the rows and hooks as the agent does; identities and policy stand
//! already, so neither etcd nor a planner is in it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tombolo_base::ids::IdentityId;
use tombolo_base::labels::Labels;
use tombolo_base::table::Table;
use tombolo_cni::{DatapathGate, EndpointSpec, EndpointStore, GateError, Identity, StoreConfig};
use tombolo_ebpf::{Datapath, Interface, LocalAddress};
use tombolo_netlink::Netlink;
use tombolo_tests::load::{self, Kind, Load};
use tombolo_tests::netns::Namespace;
use tombolo_tests::report::{Figure, Goal, Report, percentile};

use crate::Failure;
use crate::spaces::{Host, Joined, Ours, inside};
use crate::ways::{serving, sizes};

/// The policy that [`Ours`] has written: default deny, datagrams to the server allowed.
const POLICY: u32 = 1;

struct Gate(Arc<Datapath>);

impl Gate {
    fn open(&self, endpoint: &EndpointSpec) -> Result<(), Failure> {
        let v4 = endpoint
            .addresses
            .iter()
            .find_map(|ip| if let std::net::IpAddr::V4(ip) = ip { Some(*ip) } else { None });
        let v6 = endpoint
            .addresses
            .iter()
            .find_map(|ip| if let std::net::IpAddr::V6(ip) = ip { Some(*ip) } else { None });
        let row = Interface {
            ready: true,
            identity: 70_000 + u32::from(endpoint.id),
            policy_id: POLICY,
            endpoint_id: endpoint.id,
            v4,
            v6,
            mac: endpoint.mac,
            host_mac: endpoint.host_mac,
            ..Interface::default()
        };
        for address in &endpoint.addresses {
            self.0.upsert_local_address(*address, LocalAddress::Pod(endpoint.ifindex))?;
        }
        self.0.upsert_interface(endpoint.ifindex, &row)?;
        Ok(self.0.attach_endpoint(endpoint.ifindex)?)
    }
}

impl DatapathGate for Gate {
    async fn identify(&self, endpoint: &EndpointSpec) -> Result<Identity, GateError> {
        let id = IdentityId(70_000 + u32::from(endpoint.id));
        Ok(Identity { id, labels: Labels::k8s([("app", "bench")]) })
    }

    fn mac(&self, _: &str, _: &str) -> Option<[u8; 6]> {
        None
    }

    async fn apply(&self, endpoint: &EndpointSpec) -> Result<(), GateError> {
        self.open(endpoint).map_err(|error| GateError::fatal(error.to_string()))
    }

    async fn remove(&self, endpoint: &EndpointSpec) -> Result<(), GateError> {
        let removed =
            self.0.detach(endpoint.ifindex).and_then(|()| self.0.delete_interface(endpoint.ifindex));
        removed.map_err(|error| GateError::fatal(error.to_string()))
    }

    async fn check(&self, _: &EndpointSpec) -> Result<(), GateError> {
        Ok(())
    }
}

/// Milliseconds until the pod has its answer.
async fn add(store: &Arc<EndpointStore<Gate>>, pod: &Namespace, load: Load) -> Result<f64, Failure> {
    let request = serde_json::json!({
        "containerId": pod.name(), "ifname": "eth0", "netns": format!("/run/netns/{}", pod.name()),
        "args": {"K8S_POD_NAMESPACE": "default", "K8S_POD_NAME": pod.name()},
        "configuration": {"cniVersion": "1.1.0", "name": "tombolo"},
    });
    let begun = Instant::now();
    let reply = store.serve("add", request.to_string().as_bytes()).await;
    if reply.status != 200 {
        return Err(format!("ADD: {}", String::from_utf8_lossy(&reply.body)).into());
    }
    let name = pod.name().to_owned();
    // A thread of its own: it stays in the pod's namespace.
    let asking = move || {
        let thread = std::thread::spawn(move || {
            load::enter(&name)?;
            load::run(&load)
        });
        thread.join().map_err(|_| std::io::Error::other("the pod's thread panicked"))?
    };
    let done = tokio::task::spawn_blocking(asking).await??;
    let took = begun.elapsed().as_secs_f64() * 1e3;
    if done.failed > 0 {
        return Err(format!("the first packet was lost: {:?}", done.failure).into());
    }
    Ok(took)
}

async fn pods(ours: &Ours, load: Load, count: usize) -> Result<[Vec<f64>; 2], Failure> {
    let folder = tempfile::tempdir()?;
    let config = StoreConfig {
        state_dir: folder.path().to_owned(),
        pod_cidrs: vec!["10.1.8.0/22".parse()?, "fd00:10:1:8::/64".parse()?],
        pod_mtu: 1450,
        path_mtu: 1450,
        apply_timeout: Duration::from_secs(30),
    };
    let store =
        EndpointStore::open(config, Netlink::here()?, Gate(ours.datapath.clone()), Table::new().1).await?;
    let spaces: Vec<Namespace> = (0..count * 2).map(|_| Namespace::new("cni")).collect();
    let (singly, together) = spaces.split_at(count);
    let mut one_by_one = Vec::new();
    for pod in singly {
        one_by_one.push(add(&store, pod, load).await?);
    }
    let at_once =
        futures_util::future::try_join_all(together.iter().map(|pod| add(&store, pod, load))).await?;
    Ok([one_by_one, at_once])
}

pub(crate) fn bench(report: &mut Report, short: bool) -> Result<(), Failure> {
    let count = if short { 3 } else { 100 };
    let ours = Ours::new(serving(Host::new(1, 1, Joined::Routed))?, sizes())?;
    let target = ours.host.pods.last().ok_or("a host without pods")?.at()?;
    // One datagram and its answer: the load's time is over by then.
    let load = Load { kind: Kind::Udp, target, duration: Duration::from_nanos(1), rate: None };
    let [mut single, mut burst] = inside(&ours.host.space, || {
        // The store's calls are made where the node's interfaces are.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(pods(&ours, load, count))
    })?;
    let [p50, p99] = [50, 99].map(|percent| percentile(&mut single, percent));
    let [burst50, burst99] = [50, 99].map(|percent| percentile(&mut burst, percent));
    let text = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}"));
    let note =
        format!("p99 {} ms; {count} at once: p50 {} ms; without etcd and planners", text(p99), text(burst50));
    let what = "CNI ADD to the first allowed packet, p50";
    report.add_noted(
        &Figure { id: "C4", what, unit: "ms", ours: p50, peer: None, goal: Goal::Most(30.0) },
        &note,
    );
    let what = format!("the same, {count} at once, p99");
    report.add(&Figure {
        id: "C4-burst",
        what: &what,
        unit: "ms",
        ours: burst99,
        peer: None,
        goal: Goal::Most(150.0),
    });
    Ok(())
}
