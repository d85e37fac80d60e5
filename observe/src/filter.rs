//! Picks flows.

use crate::flow::{Flow, Peer};
use serde::{Deserialize, Serialize};

/// What a flow must be; every given condition must hold.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Filter {
    /// `namespace/pod` or `pod`: either end.
    pub pod: Option<String>,
    /// Namespace of either end.
    pub namespace: Option<String>,
    /// Address of either end, or before translation.
    pub ip: Option<String>,
    /// Port of either end, or before translation.
    pub port: Option<u16>,
    /// Protocol name, any case.
    pub protocol: Option<String>,
    /// `FORWARDED` or `DROPPED`, any case.
    pub verdict: Option<String>,
    /// Drop reason number.
    pub reason: Option<u8>,
    /// Identity of either end.
    pub identity: Option<u32>,
    /// A label of either end: `key=value` or `key`, with its source (`k8s:key=value`) or of any.
    pub label: Option<String>,
    /// Cluster of either end.
    pub cluster: Option<String>,
    /// `namespace/name` or `name` of the service.
    pub service: Option<String>,
    /// Not older than this many nanoseconds since the epoch.
    pub since: Option<u64>,
}

/// A key says nothing of the value, and a label without a source is any source's.
fn has_label(peer: &Peer, wanted: &str) -> bool {
    let named = |label: &str| label == wanted || label.split_once('=').is_some_and(|(key, _)| key == wanted);
    peer.labels.iter().any(|label| {
        named(label) || label.split_once(':').is_some_and(|(_, without_source)| named(without_source))
    })
}

impl Filter {
    /// Whether the flow is wanted.
    #[must_use]
    pub fn matches(&self, flow: &Flow) -> bool {
        let ends = [&flow.source, &flow.destination];
        let either = |test: &dyn Fn(&Peer) -> bool| ends.iter().any(|peer| test(peer));
        let original = flow.original_destination.as_ref();
        let same = |wanted: &str, namespace: Option<&str>, name: &str| match wanted.split_once('/') {
            Some((ns, n)) => namespace == Some(ns) && name == n,
            None => name == wanted,
        };
        let pod = |peer: &Peer, wanted: &str| {
            peer.pod.as_deref().is_some_and(|name| same(wanted, peer.namespace.as_deref(), name))
        };
        self.since.is_none_or(|since| flow.time >= since)
            && self.pod.as_ref().is_none_or(|wanted| either(&|peer| pod(peer, wanted)))
            && self.namespace.as_ref().is_none_or(|ns| either(&|peer| peer.namespace.as_ref() == Some(ns)))
            && self.ip.as_ref().is_none_or(|ip| {
                either(&|peer| peer.ip == *ip) || original.is_some_and(|original| original.ip == *ip)
            })
            && self.port.is_none_or(|port| {
                either(&|peer| peer.port == port) || original.is_some_and(|original| original.port == port)
            })
            && self.protocol.as_ref().is_none_or(|wanted| flow.l4.protocol.eq_ignore_ascii_case(wanted))
            && self.verdict.as_ref().is_none_or(|wanted| flow.verdict.eq_ignore_ascii_case(wanted))
            && self.reason.is_none_or(|reason| flow.drop_reason == reason)
            && self.identity.is_none_or(|id| either(&|peer| peer.identity == id))
            && self.label.as_ref().is_none_or(|wanted| either(&|peer| has_label(peer, wanted)))
            && self.cluster.as_ref().is_none_or(|name| either(&|peer| peer.cluster.as_ref() == Some(name)))
            && self.service.as_ref().is_none_or(|wanted| {
                flow.service.as_ref().is_some_and(|s| same(wanted, Some(&s.namespace), &s.name))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_match_with_and_without_source_and_value() {
        let labels = ["k8s:app=web", "k8s:example.org/tier=a:b", "reserved:host"].map(str::to_owned).to_vec();
        let peer = Peer { labels, ..Peer::default() };
        for wanted in
            ["app=web", "app", "k8s:app=web", "k8s:app", "example.org/tier=a:b", "reserved:host", "host"]
        {
            assert!(has_label(&peer, wanted), "{wanted}");
        }
        for wanted in ["web", "app=", "app=we", "any:app=web", "tier", "k8s", ""] {
            assert!(!has_label(&peer, wanted), "{wanted}");
        }
    }
}
