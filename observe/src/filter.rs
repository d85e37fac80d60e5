//! Picks flows.

use crate::flow::{Flow, Peer};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use tombolo_base::prefix::Prefix;

/// What an end of a flow must be. Every given condition must hold; of one condition's values any will do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct End {
    /// `namespace/pod` or `pod`.
    pub pod: Vec<String>,
    /// Its namespace.
    pub namespace: Vec<String>,
    /// Its address, or a prefix around it.
    pub ip: Vec<String>,
    /// Its port.
    pub port: Vec<u16>,
    /// Its identity.
    pub identity: Vec<u32>,
    /// A label: `key=value` or `key`, with its source (`k8s:key=value`) or of any.
    pub label: Vec<String>,
    /// Its cluster.
    pub cluster: Vec<String>,
    /// The node, if it is one.
    pub node: Vec<String>,
    /// `namespace/name` or `name` of the service that this end stands for.
    pub service: Vec<String>,
}

/// What a flow must be; every given condition must hold, of one condition's values any will do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// Either end, or the address and port before translation. All conditions must hold of one end, but for the service.
    pub either: End,
    /// Who sent the packet.
    pub from: End,
    /// To whom.
    pub to: End,
    /// Protocol name, any case; `icmp` is that of both families.
    pub protocol: Vec<String>,
    /// `FORWARDED`, `DROPPED` or `AUDIT`, any case.
    pub verdict: Vec<String>,
    /// Drop reason number.
    pub reason: Vec<u8>,
    /// `drop`, `trace` or `policy-verdict`.
    pub kind: Vec<String>,
    /// Observation point, as `to-endpoint`.
    pub point: Vec<String>,
    /// `ingress` or `egress`.
    pub direction: Option<String>,
    /// Answers only, or none of them.
    pub reply: Option<bool>,
    /// The flow of that number.
    pub id: Option<u64>,
    /// Not older than this many nanoseconds since the epoch.
    pub since: Option<u64>,
    /// Not younger.
    pub until: Option<u64>,
}

/// A key says nothing of the value, and a label without a source is any source's.
fn has_label(peer: &Peer, wanted: &str) -> bool {
    let named = |label: &str| label == wanted || label.split_once('=').is_some_and(|(key, _)| key == wanted);
    peer.labels.iter().any(|label| {
        named(label) || label.split_once(':').is_some_and(|(_, without_source)| named(without_source))
    })
}

/// `namespace/name`, or a name in any namespace.
fn is_named(wanted: &str, namespace: Option<&str>, name: &str) -> bool {
    match wanted.split_once('/') {
        Some((ns, n)) => namespace == Some(ns) && name == n,
        None => name == wanted,
    }
}

/// An address, or a prefix around it.
fn is_at(wanted: &str, ip: &str) -> bool {
    let around = || {
        let (prefix, address) = (wanted.parse::<Prefix>().ok()?, ip.parse::<IpAddr>().ok()?);
        Some(prefix.contains(address))
    };
    wanted == ip || around().unwrap_or(false)
}

/// No value given, or one of them fits.
fn any<T>(values: &[T], fits: impl Fn(&T) -> bool) -> bool {
    values.is_empty() || values.iter().any(fits)
}

impl End {
    fn matches(&self, peer: &Peer) -> bool {
        let is = |wanted: &String, is: &Option<String>| is.as_ref() == Some(wanted);
        any(&self.pod, |wanted| {
            peer.pod.as_deref().is_some_and(|pod| is_named(wanted, peer.namespace.as_deref(), pod))
        }) && any(&self.namespace, |wanted| is(wanted, &peer.namespace))
            && any(&self.ip, |wanted| is_at(wanted, &peer.ip))
            && any(&self.port, |wanted| *wanted == peer.port)
            && any(&self.identity, |wanted| *wanted == peer.identity)
            && any(&self.label, |wanted| has_label(peer, wanted))
            && any(&self.cluster, |wanted| is(wanted, &peer.cluster))
            && any(&self.node, |wanted| is(wanted, &peer.node))
    }

    /// Whether the flow's service is one of these; only at the end that it stands for.
    fn serves(&self, flow: &Flow, stands_here: bool) -> bool {
        any(&self.service, |wanted| {
            let service = flow.service.as_ref().filter(|_| stands_here);
            service.is_some_and(|service| is_named(wanted, Some(&service.namespace), &service.name))
        })
    }
}

impl Filter {
    /// Whether the flow is wanted.
    #[must_use]
    pub fn matches(&self, flow: &Flow) -> bool {
        self.ends(flow)
            && any(&self.protocol, |wanted| {
                let wanted = wanted.to_ascii_lowercase();
                let protocol = flow.l4.protocol.to_ascii_lowercase();
                protocol == wanted || (wanted == "icmp" && protocol.starts_with("icmp"))
            })
            && any(&self.verdict, |wanted| flow.verdict.eq_ignore_ascii_case(wanted))
            && any(&self.reason, |wanted| *wanted == flow.drop_reason)
            && any(&self.kind, |wanted| flow.event.eq_ignore_ascii_case(wanted))
            && any(&self.point, |wanted| flow.trace_point.eq_ignore_ascii_case(wanted))
            && self.direction.as_ref().is_none_or(|wanted| flow.direction.eq_ignore_ascii_case(wanted))
            && self.reply.is_none_or(|reply| flow.reply == reply)
            && self.id.is_none_or(|id| flow.id == id)
            && self.since.is_none_or(|since| flow.time >= since)
            && self.until.is_none_or(|until| flow.time <= until)
    }

    fn ends(&self, flow: &Flow) -> bool {
        // What the client asked for is an end of the flow, too.
        let asked = flow.original_destination.as_ref().map(|original| {
            let server = if flow.reply { &flow.source } else { &flow.destination };
            Peer { ip: original.ip.clone(), port: original.port, ..server.clone() }
        });
        let fits = |wanted: &End, here: &Peer, stands: bool| {
            wanted.serves(flow, stands)
                && (wanted.matches(here)
                    || asked.as_ref().is_some_and(|asked| stands && wanted.matches(asked)))
        };
        let either = self.either.matches(&flow.source)
            || self.either.matches(&flow.destination)
            || asked.as_ref().is_some_and(|asked| self.either.matches(asked));
        either
            && self.either.serves(flow, true)
            && fits(&self.from, &flow.source, flow.reply)
            && fits(&self.to, &flow.destination, !flow.reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{L4, Original, ServiceRef};

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

    fn peer(ip: &str, port: u16, namespace: &str, pod: &str) -> Peer {
        Peer {
            ip: ip.into(),
            port,
            identity: u32::from(port),
            namespace: Some(namespace.into()),
            pod: Some(pod.into()),
            cluster: Some("east".into()),
            labels: vec![format!("k8s:app={pod}")],
            ..Peer::default()
        }
    }

    /// A client asks a service, and is answered by web.
    fn flow(reply: bool) -> Flow {
        let (client, web) = (peer("10.1.1.2", 4000, "demo", "client"), peer("10.2.1.3", 8080, "shop", "web"));
        let (source, destination) = if reply { (web, client) } else { (client, web) };
        Flow {
            id: 7,
            time: 100,
            event: "trace".into(),
            verdict: "FORWARDED".into(),
            trace_point: "to-endpoint".into(),
            direction: "egress".into(),
            source,
            destination,
            l4: L4 { protocol: "TCP".into(), ..L4::default() },
            service: Some(ServiceRef { namespace: "shop".into(), name: "web".into() }),
            original_destination: Some(Original { ip: "10.101.0.9".into(), port: 80 }),
            reply,
            ..Flow::default()
        }
    }

    fn texts(values: &[&str]) -> Vec<String> {
        values.iter().map(|value| (*value).to_owned()).collect()
    }

    fn pick(filter: &Filter) -> (bool, bool) {
        (filter.matches(&flow(false)), filter.matches(&flow(true)))
    }

    #[test]
    fn an_end_is_either_or_one_of_both() {
        let of = |end: End| {
            [
                Filter { either: end.clone(), ..Filter::default() },
                Filter { from: end.clone(), ..Filter::default() },
                Filter { to: end, ..Filter::default() },
            ]
        };
        let client = [
            End { pod: texts(&["client"]), ..End::default() },
            End { pod: texts(&["demo/client", "none"]), ..End::default() },
            End { namespace: texts(&["demo"]), ..End::default() },
            End { ip: texts(&["10.1.1.2"]), ..End::default() },
            End { ip: texts(&["10.1.0.0/16"]), ..End::default() },
            End { port: vec![1, 4000], ..End::default() },
            End { identity: vec![4000], ..End::default() },
            End { label: texts(&["app=client"]), ..End::default() },
        ];
        for end in client {
            let [either, from, to] = of(end).map(|filter| pick(&filter));
            assert_eq!((either, from, to), ((true, true), (true, false), (false, true)));
        }
        let server = [
            End { service: texts(&["shop/web"]), ..End::default() },
            End { service: texts(&["web"]), port: vec![8080], ..End::default() },
            End { ip: texts(&["10.101.0.9"]), port: vec![80], ..End::default() },
        ];
        for end in server {
            let [either, from, to] = of(end).map(|filter| pick(&filter));
            assert_eq!((either, from, to), ((true, true), (false, true), (true, false)));
        }
        let nobody = [
            End { pod: texts(&["shop/client"]), ..End::default() },
            End { pod: texts(&["client"]), port: vec![8080], ..End::default() },
            End { ip: texts(&["10.3.0.0/16"]), ..End::default() },
            End { cluster: texts(&["west"]), ..End::default() },
            End { service: texts(&["demo/web"]), ..End::default() },
            End { node: texts(&["n1"]), ..End::default() },
        ];
        for end in nobody {
            for filter in of(end) {
                assert_eq!(pick(&filter), (false, false), "{filter:?}");
            }
        }
    }

    #[test]
    fn all_else_is_of_the_flow() {
        let of = |change: fn(&mut Filter)| {
            let mut filter = Filter::default();
            change(&mut filter);
            pick(&filter)
        };
        assert_eq!(of(|_| {}), (true, true));
        assert_eq!(of(|f| f.reply = Some(true)), (false, true));
        assert_eq!(of(|f| f.direction = Some("Egress".into())), (true, true));
        assert_eq!(of(|f| f.direction = Some("ingress".into())), (false, false));
        assert_eq!(of(|f| f.kind = vec!["drop".into()]), (false, false));
        assert_eq!(of(|f| f.kind = vec!["drop".into(), "trace".into()]), (true, true));
        assert_eq!(of(|f| f.point = vec!["to-overlay".into()]), (false, false));
        assert_eq!(of(|f| f.protocol = vec!["tcp".into()]), (true, true));
        assert_eq!(of(|f| f.protocol = vec!["icmp".into()]), (false, false));
        assert_eq!(of(|f| f.verdict = vec!["forwarded".into()]), (true, true));
        assert_eq!(of(|f| f.reason = vec![133]), (false, false));
        assert_eq!(of(|f| (f.since, f.until) = (Some(100), Some(100))), (true, true));
        assert_eq!(of(|f| f.until = Some(99)), (false, false));
        assert_eq!(of(|f| f.id = Some(8)), (false, false));
        let mut ping = flow(false);
        ping.l4.protocol = "ICMPv6".into();
        assert!(Filter { protocol: texts(&["ICMP"]), ..Filter::default() }.matches(&ping));
    }
}
