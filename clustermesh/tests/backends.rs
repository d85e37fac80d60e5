//! Backends of another cluster over a real etcd, from slices with conditions to the frontends of this cluster's node: tiers,
//! overflow, what terminates, and an etcd that is gone for too long.
#![cfg(test)]

mod rig;

use etcd_client::GetOptions;
use rig::agent::{id, name};
use rig::reader::reading;
use rig::{Etcd, Pki, until};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tombolo_base::clock::Moment;
use tombolo_base::ids::MaxClusters;
use tombolo_base::source::{Source, SourceState};
use tombolo_base::table::{Changes, Table, Writer};
use tombolo_clustermesh::follower::{self, Limits, MeshConfig};
use tombolo_clustermesh::publisher::{self, Desired, PublisherConfig, PublisherHandle};
use tombolo_clustermesh::rows::{RemoteSlices, TableSink, service_entry, slice_entry};
use tombolo_clustermesh::wire::{ExportMode, Kind, Layout};
use tombolo_service::plan::{InputChanges, Outputs, Planner};
use tombolo_service::rows::{
    BackendRow, BackendState, FrontendRow, Protocol, RemoteService, ServiceName, ServicePort, ServiceRow,
    SliceEndpoint, SlicePort, SliceRow,
};
use tombolo_service::spread::Spread;

fn web() -> ServiceName {
    ServiceName { namespace: "shop".into(), name: "web".into() }
}

fn service() -> ServiceRow {
    ServiceRow {
        cluster_ips: vec!["10.102.0.10".parse().unwrap(), "fd00:102::10".parse().unwrap()],
        ports: vec![ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None }],
        families_ipv4: vec![true, false],
        global: true,
        shared: true,
        ..ServiceRow::new(Source::Manifests, web())
    }
}

/// `10.1.0.<n>` or `fd00:1::<n>` each; `r` ready, `s` terminating but serving, `n` not ready.
fn slices(net4: &str, net6: &str, states: &str) -> [SliceRow; 2] {
    [("web-4", net4), ("web-6", net6)].map(|(slice, net)| {
        let endpoint = |(n, state): (usize, char)| SliceEndpoint {
            addresses: vec![format!("{net}{}", n + 1).parse().unwrap()],
            ready: state == 'r',
            serving: state != 'n',
            terminating: state == 's',
            node: Some("n1".into()),
            zone: Some("z1".into()),
            ..SliceEndpoint::default()
        };
        SliceRow {
            source: Source::Manifests,
            name: ServiceName { namespace: "shop".into(), name: slice.into() },
            service: web(),
            ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
            endpoints: states.chars().enumerate().map(endpoint).collect(),
        }
    })
}

/// A node of cluster b: what it follows of a, its own service, and the planner.
struct Node {
    planner: Planner,
    out: Outputs,
    remote: Changes<RemoteService>,
    services: (Changes<ServiceRow>, Writer<ServiceRow>),
    slices: (Changes<SliceRow>, Writer<SliceRow>),
}

impl Node {
    fn new(remote: &Table<RemoteService>) -> Self {
        let (services, service_writer) = Table::new();
        let (slices, slice_writer) = Table::new();
        service_writer.set_source(&Source::Manifests, SourceState::Initialized);
        slice_writer.set_source(&Source::Manifests, SourceState::Initialized);
        Self {
            planner: Planner::new("n1".into(), Moment::ZERO).in_cluster("b"),
            out: Outputs { frontends: Table::new().1, backends: Table::new().1 },
            remote: remote.changes(),
            services: (services.changes(), service_writer),
            slices: (slices.changes(), slice_writer),
        }
    }

    /// Frontend and percent of the new flows by backend, as `10.1.0.1:50 …`; both families must agree.
    fn look(&mut self) -> String {
        let changes = InputChanges {
            remote: self.remote.drain(),
            services: self.services.0.drain(),
            slices: self.slices.0.drain(),
            ..InputChanges::default()
        };
        self.planner.step(changes, Moment::from_origin(Duration::from_secs(61)), &self.out);
        let (frontends, backends) =
            (self.out.frontends.table().snapshot(), self.out.backends.table().snapshot());
        let text = |row: &FrontendRow| {
            let slots: Vec<u32> = row.slots().collect();
            let share = |id: &u32| {
                let found = slots.iter().filter(|slot| *slot == id).count();
                let percent = (found as f64 * 20.0 / slots.len() as f64).round() * 5.0;
                let ip = backends.get(id).unwrap().address.to_string();
                format!("{}:{percent}", ip.replace("fd00:1::", "10.1.0.").replace("fd00:2::", "10.2.0."))
            };
            row.backends.iter().map(share).collect::<Vec<_>>().join(" ")
        };
        let mut texts: Vec<String> = frontends.iter().map(text).collect();
        texts.dedup();
        texts.join(" | ")
    }

    async fn sees(&mut self, wanted: &str) {
        until(wanted, async || self.look() == wanted).await;
    }

    fn states(&self) -> Vec<(String, BackendState)> {
        let row = |row: &BackendRow| (row.address.to_string(), row.state);
        self.out.backends.table().snapshot().iter().filter(|row| row.address.is_ipv4()).map(row).collect()
    }
}

/// The elected agent of cluster a, which publishes its backends in one form.
struct Publisher {
    handle: PublisherHandle,
    task: JoinHandle<()>,
    mode: ExportMode,
}

impl Publisher {
    async fn start(
        etcd: &Etcd,
        pki: &Pki,
        state: &Path,
        mode: ExportMode,
        cancel: &CancellationToken,
    ) -> Self {
        Self::keeping(etcd, pki, state, (mode, Duration::from_secs(180)), cancel).await
    }

    /// One that keeps what is not published any more for that long.
    async fn keeping(
        etcd: &Etcd,
        pki: &Pki,
        state: &Path,
        (mode, form_grace): (ExportMode, Duration),
        cancel: &CancellationToken,
    ) -> Self {
        let etcd = etcd.config(pki, "admin-a");
        let mut config = PublisherConfig::new(name("a"), id(1), "n1".into(), etcd, state.join("n1"));
        (config.backends, config.form_grace) = (mode, form_grace);
        let (handle, task) = publisher::start(config, cancel.clone());
        handle.set_nodes([Arc::from("n1")]);
        handle.set_node([Desired::node(&tombolo_clustermesh::wire::Node::new("a", 1, "n1")).unwrap()]);
        handle.leader().wait_for(|leads| *leads).await.unwrap();
        Self { handle, task, mode }
    }

    fn publish(&self, states: &str) {
        let (rows, row) = (slices("10.1.0.", "fd00:1::", states), service());
        let entries: Vec<Desired> = if self.mode.slices() {
            let entry = |slice| Desired::slice(&slice_entry(&name("a"), id(1), &row, slice)).unwrap();
            rows.iter().map(entry).collect()
        } else {
            vec![Desired::service(&service_entry(&name("a"), id(1), &row, &rows)).unwrap()]
        };
        assert!(self.handle.set_cluster(entries));
    }
}

/// A follower of cluster b, and the table that it writes. What is not confirmed for 3 s is not used.
async fn follow(folder: &Path, cancel: &CancellationToken) -> (Table<RemoteService>, JoinHandle<()>) {
    let (table, writer) = Table::new();
    let sink = TableSink {
        nodes: Arc::new(Table::new().1),
        identities: Arc::new(Table::new().1),
        prefixes: Arc::new(Table::new().1),
        services: Arc::new(writer),
        slices: RemoteSlices::default(),
        exports: Arc::new(Table::new().1),
        assignments: Arc::new(Table::new().1),
        own: name("b"),
        max: MaxClusters::C255,
    };
    let limits = Limits { services_stale: Some(Duration::from_secs(3)), ..Limits::default() };
    let config = MeshConfig { limits, ..reading(folder) };
    let (_, task) = follower::start(config, Arc::new(sink), cancel.clone()).await;
    (table, task)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_cluster_says_of_its_backends_decides_here() {
    for mode in [ExportMode::SlicesOnly, ExportMode::Services] {
        let (pki, folder, cancel) = (Pki::new(), tempfile::tempdir().unwrap(), CancellationToken::new());
        let mut etcd = Etcd::start(&pki, "a").await;
        let other = Publisher::start(&etcd, &pki, folder.path(), mode, &cancel).await;
        other.publish("rrrr");
        let remotes = folder.path().join("remotes");
        std::fs::create_dir_all(&remotes).unwrap();
        etcd.write_file(&pki, "remote", &remotes.join("a.yaml"));
        let (table, following) = follow(&remotes, &cancel).await;
        let mut node = Node::new(&table);
        // First a, and b as far as a falls below 60 %.
        let tiers = Spread::parse_tiers("a;local").unwrap();
        let spread = Spread { tiers, overflow: Some(60), ..Spread::default() };
        node.services.1.upsert(ServiceRow { spread, ..service() });
        for slice in slices("10.2.0.", "fd00:2::", "r") {
            node.slices.1.upsert(slice);
        }
        node.sees("10.1.0.1:25 10.1.0.2:25 10.1.0.3:25 10.1.0.4:25").await;
        if mode.slices() {
            conditions(&other, &mut node).await;
        } else {
            // A service says only who is there: who is ready, or if nobody is, who serves.
            other.publish("rrsn");
            node.sees("10.1.0.1:50 10.1.0.2:50").await;
            other.publish("sn");
            node.sees("10.1.0.1:100").await;
            other.publish("rr");
            node.sees("10.1.0.1:50 10.1.0.2:50").await;
        }
        // The other cluster's etcd is gone for longer than its services are trusted.
        etcd.stop();
        node.sees("10.2.0.1:100").await;
        etcd.restart(&pki).await;
        node.sees("10.1.0.1:50 10.1.0.2:50").await;
        cancel.cancel();
        other.task.await.unwrap();
        following.await.unwrap();
    }
}

/// Readers look at the configuration now and then: those that do not know of the new form yet keep their backends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_form_that_is_given_up_stays_until_readers_have_looked() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let etcd = Etcd::start(&pki, "a").await;
    let client = etcd.config(&pki, "admin-a").client().await.unwrap().0;
    let found = async |kind: Kind| {
        let prefix = kind.prefix(Layout::State, "a");
        let answer = client.kv_client().get(prefix, Some(GetOptions::new().with_prefix())).await.unwrap();
        answer.kvs().iter().map(|kv| kv.value().to_vec()).collect::<Vec<_>>()
    };
    let (services, slices) =
        ((ExportMode::Services, Kind::Services), (ExportMode::SlicesOnly, Kind::EndpointSlices));
    let long = Duration::from_secs(3600);
    for ((mode, kind), before, grace) in [
        (services, None, long),
        (slices, Some(Kind::Services), long),
        (services, Some(Kind::EndpointSlices), long),
        (services, Some(Kind::EndpointSlices), Duration::ZERO),
    ] {
        let cancel = CancellationToken::new();
        let publisher = Publisher::keeping(&etcd, &pki, folder.path(), (mode, grace), &cancel).await;
        publisher.publish("rr");
        until("all of the new form", async || publisher.handle.status().borrow().canaries).await;
        let whole = found(kind).await;
        // What is written next comes after what was to be deleted with the canaries.
        publisher.publish("rrr");
        until("the next change", async || !whole.is_empty() && found(kind).await != whole).await;
        match before {
            Some(before) if grace.is_zero() => {
                until("the old form to go", async || found(before).await.is_empty()).await;
            }
            Some(before) => assert!(!found(before).await.is_empty(), "{before}"),
            None => {}
        }
        cancel.cancel();
        publisher.task.await.unwrap();
    }
}

/// What slices say of each endpoint.
async fn conditions(other: &Publisher, node: &mut Node) {
    let numbers =
        |node: &Node| node.out.backends.table().snapshot().iter().map(|row| row.id).collect::<Vec<_>>();
    // Half of a is well where 60 % are asked for: it takes five sixths, b the rest.
    other.publish("rrnn");
    node.sees("10.1.0.1:40 10.1.0.2:40 10.2.0.1:15").await;
    let known = node.states();
    assert_eq!(known.len(), 5, "those that are not ready keep their flows: {known:?}");
    // What terminates is not missing, takes nothing new, and keeps its number and flows.
    let before = numbers(node);
    other.publish("rrss");
    node.sees("10.1.0.1:50 10.1.0.2:50").await;
    assert_eq!(numbers(node), before);
    assert_eq!(node.states().iter().filter(|(_, state)| *state == BackendState::Serving).count(), 2);
}
