//! Events of the datapath become named flows: kept, counted, sent to whoever follows.

use super::drive::Driver;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::broadcast;
use tombolo_base::table::{Snapshot, Table};
use tombolo_ebpf::{Datapath, DatapathEvent, EventKind, EventReader, LostEvents};
use tombolo_kubernetes::PodRow;
use tombolo_observe::filter::Filter;
use tombolo_observe::flow::{Enricher, Flow, Names, ObjectNames, ServiceRef, Workload};
use tombolo_observe::metrics::Metrics;
use tombolo_observe::store::Store;
use tombolo_policy::CookieRow;
use tombolo_service::{FrontendKey, FrontendRow, Protocol, Scope};
use tombolo_topology::{EndpointRow, IdentityRow, NodeRow, PrefixRow};

/// Flows kept for `tombolo flows`; about 1 KiB each.
const KEPT: usize = 8192;
/// Flows a follower may be behind before it misses some.
const BEHIND: usize = 4096;
/// Events named with one look at the tables.
const BATCH: usize = 256;

/// The latest flows and those that follow.
#[derive(Clone)]
pub(crate) struct Flows {
    store: Arc<Mutex<Store>>,
    live: broadcast::Sender<Arc<Flow>>,
}

impl Flows {
    /// None yet.
    pub(crate) fn new() -> Self {
        Self { store: Arc::new(Mutex::new(Store::new(KEPT))), live: broadcast::channel(BEHIND).0 }
    }

    /// The latest that match, and the stream of those that follow; nothing falls between the two.
    pub(crate) fn read(
        &self,
        filter: &Filter,
        last: usize,
    ) -> (Vec<Arc<Flow>>, broadcast::Receiver<Arc<Flow>>) {
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        (store.latest(filter, last), self.live.subscribe())
    }

    fn push(&self, flow: Flow) {
        let flow = Arc::new(flow);
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        store.push(flow.clone());
        // Nobody following is fine.
        self.live.send(flow).ok();
    }
}

/// The tables names come from.
#[derive(Clone)]
pub(crate) struct NameTables {
    /// This node's pods.
    pub(crate) endpoints: Table<EndpointRow>,
    /// Everybody's addresses.
    pub(crate) prefixes: Table<PrefixRow>,
    /// Everybody's identities.
    pub(crate) identities: Table<IdentityRow>,
    /// Everybody's nodes.
    pub(crate) nodes: Table<NodeRow>,
    /// Frontends, for services' names.
    pub(crate) frontends: Table<FrontendRow>,
    /// Pods of the manifests, for what they are one of.
    pub(crate) pods: Table<PodRow>,
    /// What the numbers in policies' entries stand for.
    pub(crate) policy_rules: Table<CookieRow>,
}

/// What the record was made for, and which rules decided.
fn told(flow: Flow, event: &DatapathEvent, rules: &Snapshot<CookieRow>) -> Flow {
    let judged = event.kind == EventKind::Verdict || matches!(flow.drop_reason, 133 | 181);
    let by = rules.get(&event.cookie).filter(|_| judged);
    Flow {
        event: match event.kind {
            EventKind::Drop => "drop",
            EventKind::Trace => "trace",
            EventKind::Verdict => "policy-verdict",
        }
        .to_owned(),
        policies: by.map(|row| row.rules.iter().map(ToString::to_string).collect()).unwrap_or_default(),
        ..flow
    }
}

struct Objects {
    frontends: Snapshot<FrontendRow>,
    pods: Snapshot<PodRow>,
}

impl ObjectNames for Objects {
    fn workload(&self, namespace: &str, pod: &str) -> Option<Workload> {
        let row = self.pods.get(&(namespace.into(), pod.into()))?;
        let workload = row.workload.as_ref()?;
        Some(Workload { name: workload.name.to_string(), kind: workload.kind.to_string() })
    }

    fn service(&self, address: IpAddr, port: u16, protocol: u8) -> Option<ServiceRef> {
        let protocol =
            [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|p| p.number() == protocol)?;
        let find = |scope| self.frontends.get(&FrontendKey { address, port, protocol, scope });
        let row = find(Scope::Internal).or_else(|| find(Scope::External))?;
        Some(ServiceRef { namespace: row.service.namespace.to_string(), name: row.service.name.to_string() })
    }
}

/// What a site id of the programs means, for people.
pub(crate) fn site(id: u16) -> Option<String> {
    tombolo_ebpf::site(id).map(|site| format!("{} ({}:{}); {}", site.why, site.file, site.line, site.remedy))
}

/// Reads the ring until cancelled.
pub(crate) async fn run(
    driver: Driver,
    datapath: Arc<Datapath>,
    mut events: EventReader,
    enricher: Enricher,
    tables: NameTables,
    flows: Flows,
    metrics: Arc<Metrics>,
) {
    let mut lost_before = LostEvents::default();
    loop {
        let first = tokio::select! {
            () = driver.cancel.cancelled() => return,
            event = events.next() => event,
        };
        let event = match first {
            Ok(event) => event,
            Err(error) => {
                tracing::error!(%error, "the event ring cannot be read; flows are not shown until the agent restarts");
                return;
            }
        };
        let names = Names {
            endpoints: tables.endpoints.snapshot(),
            prefixes: tables.prefixes.snapshot(),
            identities: tables.identities.snapshot(),
            nodes: tables.nodes.snapshot(),
        };
        let objects = Objects { frontends: tables.frontends.snapshot(), pods: tables.pods.snapshot() };
        let rules = tables.policy_rules.snapshot();
        let more = std::iter::from_fn(|| events.try_next()).take(BATCH);
        for event in std::iter::once(event).chain(more) {
            let flow = enricher.enrich(&event.flow, &names, &objects);
            flows.push(told(flow, &event, &rules));
            metrics.flows.inc();
        }
        if let Ok(lost) = datapath.lost_events() {
            metrics.flows_lost.inc_by(lost.full.saturating_sub(lost_before.full));
            metrics.flows_limited.inc_by(lost.limited.saturating_sub(lost_before.limited));
            lost_before = lost;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tombolo_base::flow::{FlowEnd, FlowEvent, Verdict};
    use tombolo_base::source::Source;

    fn event(kind: EventKind, verdict: Verdict, drop_reason: u8) -> DatapathEvent {
        let end = FlowEnd { ip: [10, 0, 0, 1].into(), port: 1, identity: 1000, endpoint_id: 0 };
        let flow = FlowEvent {
            time_ns: 0,
            verdict,
            drop_reason,
            site: 0,
            trace_point: 0,
            source: end,
            destination: end,
            protocol: 6,
            tcp_flags: 2,
            icmp: (0, 0),
            reply: false,
            new: true,
            encrypted: false,
            ifindex: 1,
            length: 60,
            original_destination: None,
        };
        DatapathEvent { kind, cookie: 7, rev_nat: 0, flow }
    }

    #[test]
    fn what_a_policy_decided_names_its_rules() {
        let (table, writer) = Table::new();
        let rule = "NetworkPolicy shop/web ingress rule 0";
        writer.upsert(CookieRow { source: Source::Planner, cookie: 7, rules: [rule.into()].into() });
        let rules = table.snapshot();
        let enricher = Enricher { node: "n".into(), cluster: "c".into(), sites: |_| None };
        let objects = Objects { frontends: Table::new().0.snapshot(), pods: Table::new().0.snapshot() };
        let seen = |event: &DatapathEvent| {
            let flow = told(enricher.enrich(&event.flow, &Names::default(), &objects), event, &rules);
            (flow.event, flow.verdict, flow.policies.len())
        };
        for (kind, verdict, reason, expected) in [
            (EventKind::Drop, Verdict::Dropped, 181, ("drop", "DROPPED", 1)),
            (EventKind::Drop, Verdict::Dropped, 150, ("drop", "DROPPED", 0)),
            (EventKind::Trace, Verdict::Forwarded, 0, ("trace", "FORWARDED", 0)),
            (EventKind::Trace, Verdict::Audit, 181, ("trace", "AUDIT", 1)),
            (EventKind::Verdict, Verdict::Forwarded, 0, ("policy-verdict", "FORWARDED", 1)),
        ] {
            let (event, verdict, policies) = seen(&event(kind, verdict, reason));
            assert_eq!((event.as_str(), verdict.as_str(), policies), expected);
        }
    }
}
