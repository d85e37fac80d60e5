//! Counters in Prometheus' form. Label values are bounded: zones, transports, codes.

use crate::message::Transport;
use crate::zones::Zones;
use hickory_proto::op::ResponseCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::time::Duration;
use tombolo_service::names::NameZone;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    zone: &'static str,
    transport: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CodeLabels {
    rcode: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ZoneLabels {
    zone: &'static str,
}

/// What the unit counts.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    responses: Family<CodeLabels, Counter>,
    seconds: Histogram,
    pub(crate) forward_failures: Counter,
    pub(crate) agent_connections: Counter,
    pub(crate) agent_connected: Gauge,
    pub(crate) lines_refused: Counter,
    names: Family<ZoneLabels, Gauge>,
    known: Family<ZoneLabels, Gauge>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("tombolo_dns");
        let requests = Family::default();
        registry.register("requests", "Questions by zone and transport", requests.clone());
        let responses = Family::default();
        registry.register("responses", "Answers by code", responses.clone());
        let seconds = Histogram::new([0.000_01, 0.000_1, 0.001, 0.01, 0.1, 1.0, 5.0]);
        registry.register("request_duration_seconds", "From question to answer", seconds.clone());
        let forward_failures = Counter::default();
        registry.register(
            "forward_failures",
            "Questions that no upstream answered",
            forward_failures.clone(),
        );
        let agent_connections = Counter::default();
        registry.register("agent_connections", "Conversations with an agent", agent_connections.clone());
        let agent_connected = Gauge::default();
        registry.register("agent_connected", "Whether an agent speaks now", agent_connected.clone());
        let lines_refused = Counter::default();
        registry.register("lines_refused", "Lines of an agent that were left out", lines_refused.clone());
        let names = Family::default();
        registry.register("names", "Known names by zone", names.clone());
        let known = Family::default();
        registry.register("zone_known", "Whether a zone was told in full", known.clone());
        Self {
            registry,
            requests,
            responses,
            seconds,
            forward_failures,
            agent_connections,
            agent_connected,
            lines_refused,
            names,
            known,
        }
    }

    pub(crate) fn asked(&self, zone: &'static str, transport: Transport) {
        let transport = match transport {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
        };
        self.requests.get_or_create(&RequestLabels { zone, transport }).inc();
    }

    pub(crate) fn answered(&self, code: ResponseCode, took: Duration) {
        self.responses.get_or_create(&CodeLabels { rcode: name(code) }).inc();
        self.seconds.observe(took.as_secs_f64());
    }

    /// Answers so far, by code.
    pub(crate) fn by_code(&self) -> Vec<(&'static str, u64)> {
        let count = |rcode| (rcode, self.responses.get_or_create(&CodeLabels { rcode }).get());
        CODES.iter().map(|code| count(name(*code))).collect()
    }

    pub(crate) fn text(&self, zones: &Zones) -> String {
        for (zone, label) in [(NameZone::Cluster, "cluster"), (NameZone::ClusterSet, "clusterset")] {
            let number = i64::try_from(zones.len(zone)).unwrap_or(i64::MAX);
            self.names.get_or_create(&ZoneLabels { zone: label }).set(number);
            self.known.get_or_create(&ZoneLabels { zone: label }).set(i64::from(zones.is_known(zone)));
        }
        let mut text = String::new();
        // Writing to a string cannot fail.
        encode(&mut text, &self.registry).ok();
        text
    }
}

const CODES: [ResponseCode; 6] = [
    ResponseCode::NoError,
    ResponseCode::NXDomain,
    ResponseCode::ServFail,
    ResponseCode::Refused,
    ResponseCode::FormErr,
    ResponseCode::NotImp,
];

const fn name(code: ResponseCode) -> &'static str {
    match code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::Refused => "REFUSED",
        ResponseCode::FormErr => "FORMERR",
        ResponseCode::NotImp => "NOTIMP",
        _ => "OTHER",
    }
}
