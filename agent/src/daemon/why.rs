//! `tombolo why`: what the model and the real programs make of a packet, in words.

use super::flows::{Flows, Objects, site};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_base::flow::{Capture, FlowEnd, digits};
use tombolo_base::ids::IdentityId;
use tombolo_base::table::Snapshot;
use tombolo_ebpf::{Datapath, Explained, LocalAddress};
use tombolo_model::ct::Kind;
use tombolo_model::{Direction, Frame, Place, Scope, Step, To, Tuple};
use tombolo_observe::filter::Filter;
use tombolo_observe::flow::{Enricher, Flow, Names, ObjectNames};
use tombolo_observe::names;
use tombolo_policy::CookieRow;
use tombolo_topology::EndpointRow;

/// Packets that are explained in one answer.
const MOST: usize = 20;
const ETHERNET: usize = 14;

/// What is asked.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct WhyQuery {
    /// The latest that match, if there is no packet. Only what was captured can be explained.
    pub(crate) filter: Filter,
    /// How many of them.
    pub(crate) last: usize,
    /// A frame or an IP packet, in hexadecimal digits.
    pub(crate) packet: Option<String>,
    /// Where it comes from: `namespace/pod`, `uplink`, `overlay`, `wireguard` or `node`.
    pub(crate) from: Option<String>,
    /// `overlay`: the identity that the tunnel says.
    pub(crate) identity: Option<u32>,
    /// `overlay`: the node that sends it.
    pub(crate) outer: Option<IpAddr>,
}

/// One packet, explained.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Why {
    /// The flow's number; 0 for a packet that was given.
    pub(crate) flow: u64,
    /// When it was seen, in nanoseconds since the epoch; 0 for a packet that was given.
    pub(crate) time: u64,
    /// What became of it then.
    pub(crate) was: Option<Outcome>,
    /// The packet.
    pub(crate) packet: String,
    /// The program that it meets.
    pub(crate) program: String,
    /// The decisions.
    pub(crate) steps: Vec<Told>,
    /// What becomes of it now, by the model.
    pub(crate) model: Outcome,
    /// The same, by the programs that the kernel runs.
    pub(crate) programs: Outcome,
    /// Whether both agree.
    pub(crate) agree: bool,
    /// Where they do not.
    pub(crate) difference: Option<String>,
    /// What a reader should know.
    pub(crate) notes: Vec<String>,
}

/// A decision.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Told {
    /// What is decided, in a word.
    pub(crate) step: String,
    /// How.
    pub(crate) text: String,
    /// The rules that decide.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) by: Vec<String>,
}

/// What becomes of a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// `to …`, or `dropped …`.
    pub(crate) text: String,
    /// Cilium's number; 0 if it goes on.
    pub(crate) reason: u8,
    /// Why and where in the programs, and what to try.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) why: String,
}

/// What words are made of.
pub(crate) struct Words {
    pub(crate) enricher: Enricher,
    pub(crate) names: Names,
    pub(crate) objects: Objects,
    pub(crate) rules: Snapshot<CookieRow>,
}

/// Explains; walks tables of the kernel, and runs programs: on a blocking thread.
///
/// # Errors
/// What is wrong with the question, or what the kernel said.
pub(crate) fn why(
    datapath: &Datapath,
    flows: &Flows,
    words: &Words,
    query: &WhyQuery,
) -> Result<Vec<Why>, String> {
    let captures = match &query.packet {
        Some(packet) => vec![(None, given(datapath, words, query, packet)?)],
        None => captured(flows, query)?,
    };
    let mut replayer = datapath.replayer().map_err(|error| error.to_string())?;
    let explain = |(flow, capture): (Option<Arc<Flow>>, Capture)| {
        let explained = datapath.explain(&mut replayer, &capture).map_err(|error| error.to_string())?;
        Ok(words.tell(flow.as_deref(), explained))
    };
    captures.into_iter().map(explain).collect()
}

/// A packet, and the flow that it was seen in.
type Seen = (Option<Arc<Flow>>, Capture);

fn captured(flows: &Flows, query: &WhyQuery) -> Result<Vec<Seen>, String> {
    let (found, _) = flows.read(&query.filter, usize::MAX);
    let seen = found.len();
    let with = |flow: Arc<Flow>| {
        let capture = *flow.capture.clone()?;
        Some((Some(flow), capture))
    };
    let mut captures: Vec<_> = found.into_iter().filter_map(with).collect();
    if captures.is_empty() {
        return Err(if seen == 0 {
            "no such flow is kept; tombolo flows shows those that are, with their numbers".to_owned()
        } else {
            format!(
                "{seen} flows match, but none was captured: drops are, others with datapath.capture: all; or give --packet"
            )
        });
    }
    let last = query.last.clamp(1, MOST);
    Ok(captures.split_off(captures.len().saturating_sub(last)))
}

/// The packet that the question brings.
fn given(datapath: &Datapath, words: &Words, query: &WhyQuery, packet: &str) -> Result<Capture, String> {
    let mut frame = digits::read(packet).map_err(|error| format!("--packet: {error}"))?;
    let is_ip = matches!(frame.get(12..ETHERNET), Some([0x08, 0x00] | [0x86, 0xdd]));
    if !is_ip {
        let header: &[u8] = match frame.first().map(|first| first >> 4) {
            Some(4) => &[0x08, 0x00],
            Some(6) => &[0x86, 0xdd],
            _ => return Err("--packet: neither an Ethernet frame with IP in it nor an IP packet".to_owned()),
        };
        frame = [&[0; 12][..], header, &frame].concat();
    }
    let Frame::Ip(ip) = Frame::read(&frame, 0) else {
        return Err("--packet: neither an Ethernet frame with IP in it nor an IP packet".to_owned());
    };
    let text = |error: tombolo_ebpf::DatapathError| error.to_string();
    let config = datapath.config().map_err(text)?;
    let from = query
        .from
        .as_deref()
        .ok_or("--packet needs --from: namespace/pod, uplink, overlay, wireguard or node")?;
    let mut tunnel = None;
    let (point, ifindex) = match from {
        "uplink" => (10, config.uplink_ifindex),
        "wireguard" => (12, config.wireguard_ifindex),
        "overlay" => {
            tunnel = Some(sender(datapath, query, ip.packet.source)?);
            (9, config.overlay_ifindex)
        }
        "node" => {
            let local = datapath.local_addresses().map_err(text)?;
            let to = local.iter().find(|(address, _)| *address == ip.packet.destination);
            match to {
                Some((_, LocalAddress::Pod(ifindex))) => (7, *ifindex),
                _ => (11, config.uplink_ifindex),
            }
        }
        pod => (5, interface_of(&words.names.endpoints, datapath, pod)?),
    };
    let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
    Ok(Capture { point, ifindex, mark: 0, segment: 0, length, tunnel, frame })
}

/// Which node sends a packet through the tunnel, and what identity it says.
fn sender(datapath: &Datapath, query: &WhyQuery, source: IpAddr) -> Result<(IpAddr, u32), String> {
    let text = |error: tombolo_ebpf::DatapathError| error.to_string();
    let row = datapath.prefix_around(source).map_err(text)?;
    let node = row.map(|row| datapath.node(row.node).map_err(text)).transpose()?.flatten();
    let outer = query.outer.or(node.and_then(|node| node.tunnel));
    let outer = outer.ok_or_else(|| format!("no node is known for {source}; give --outer ADDRESS"))?;
    Ok((outer, query.identity.or(row.map(|row| row.identity)).unwrap_or_default()))
}

fn interface_of(endpoints: &Snapshot<EndpointRow>, datapath: &Datapath, pod: &str) -> Result<u32, String> {
    let (namespace, name) = pod.split_once('/').unwrap_or(("default", pod));
    let row = endpoints.iter().find(|row| *row.namespace == *namespace && *row.pod == *name);
    let row = row.ok_or_else(|| {
        format!("no pod {namespace}/{name} on this node; tombolo show endpoints lists them, or give uplink, overlay, wireguard or node")
    })?;
    let local = datapath.local_addresses().map_err(|error| error.to_string())?;
    let of_pod = |(address, place): &(IpAddr, LocalAddress)| match place {
        LocalAddress::Pod(ifindex) => {
            let owner = endpoints.by_index(address).next();
            owner
                .is_some_and(|owner| owner.namespace == row.namespace && owner.pod == row.pod)
                .then_some(*ifindex)
        }
        LocalAddress::Host => None,
    };
    local
        .iter()
        .find_map(of_pod)
        .ok_or_else(|| format!("the datapath does not know {pod} yet; tombolo status"))
}

impl Words {
    fn tell(&self, flow: Option<&Flow>, explained: Explained) -> Why {
        let packet = match &explained.frame {
            Frame::Ip(ip) => ip.packet.to_string(),
            Frame::Foreign => "no IP".to_owned(),
        };
        let model = match &explained.model {
            Ok((to, _)) => Outcome { text: way_out(to), ..Outcome::default() },
            Err(reason) => dropped(reason.number(), 0),
        };
        let programs = match &explained.programs {
            Ok(to) => Outcome { text: way_out(to), ..Outcome::default() },
            Err((reason, site)) => dropped(*reason, *site),
        };
        let was = flow.map(|flow| match flow.drop_reason {
            0 => Outcome { text: format!("to {}", flow.trace_point), ..Outcome::default() },
            reason => Outcome { why: flow.why.clone(), ..dropped(reason, 0) },
        });
        let mut notes: Vec<String> = explained.notes.iter().map(ToString::to_string).collect();
        if was.as_ref().is_some_and(|was| was.reason != programs.reason) {
            notes.push("it went otherwise when it was seen: rows or flows have changed since".to_owned());
        }
        Why {
            flow: flow.map_or(0, |flow| flow.id),
            time: flow.map_or(0, |flow| flow.time),
            was,
            packet,
            program: explained.program.to_owned(),
            steps: explained.steps.iter().map(|(step, cookie)| self.step(step, *cookie)).collect(),
            model,
            programs,
            agree: explained.difference.is_none(),
            difference: explained.difference,
            notes,
        }
    }

    /// A name for an address, with the address.
    fn whom(&self, ip: IpAddr) -> String {
        let peer = self.enricher.peer(
            &FlowEnd { ip, port: 0, identity: 0, endpoint_id: 0 },
            &self.names,
            &self.objects,
        );
        match (&peer.namespace, &peer.pod, &peer.node) {
            (Some(namespace), Some(pod), _) => format!("{ip} ({namespace}/{pod})"),
            (_, _, Some(node)) => format!("{ip} (node {node})"),
            _ => ip.to_string(),
        }
    }

    fn end(&self, (ip, port): (IpAddr, u16)) -> String {
        if port == 0 { self.whom(ip) } else { format!("{} port {port}", self.whom(ip)) }
    }

    fn identity(&self, number: u32) -> String {
        let nobody = FlowEnd { ip: IpAddr::from([0, 0, 0, 0]), port: 0, identity: number, endpoint_id: 0 };
        let name = IdentityId(number).reserved_name().map(str::to_owned);
        let labels = || {
            let labels = self.enricher.peer(&nobody, &self.names, &self.objects).labels;
            labels.into_iter().filter(|label| !label.contains("io.cilium.k8s")).collect::<Vec<_>>().join(",")
        };
        format!("{number} ({})", name.unwrap_or_else(labels))
    }

    fn flow(&self, flow: &Tuple) -> String {
        let protocol = names::protocol(flow.protocol);
        format!("{protocol} {} -> {}", self.end(flow.source), self.end(flow.destination))
    }

    fn step(&self, step: &Step, cookie: u32) -> Told {
        let told = |step: &str, text: String| Told { step: step.to_owned(), text, by: Vec::new() };
        match step {
            Step::Read { flow, error, broken } => {
                let of = if *error { "an ICMP error, which is judged as an answer of " } else { "" };
                let but = broken.map(|reason| format!("; it cannot be tracked ({})", reason.number()));
                told("packet", format!("{of}{}{}", self.flow(flow), but.unwrap_or_default()))
            }
            Step::Sender { address, identity, believed } => {
                let whether = if *believed { "may send under it here" } else { "may not send under it here" };
                let identity = self.identity(*identity);
                told("source", format!("{}: identity {identity}, {whether}", self.whom(*address)))
            }
            Step::Flow { kind, flow, known, answer } => {
                let about = match kind {
                    Kind::Egress => "opened by a pod of this node",
                    Kind::Ingress => "opened to a pod of this node",
                    Kind::Service => "to a service",
                    Kind::HostIn => "opened to the node",
                    Kind::HostOut => "opened by the node",
                };
                let known = match known {
                    Some(true) => "known, half-open",
                    Some(false) => "known, established",
                    None => "not known",
                };
                let what = if *answer { "is it an answer to" } else { "is it of" };
                told("conntrack", format!("{what} a flow {about}, {}: {known}", self.flow(flow)))
            }
            Step::Service { frontend, scope, backend, remembered } => {
                let scope = if *scope == Scope::Internal { "for pods" } else { "from outside" };
                let name = [6, 17, 132]
                    .into_iter()
                    .find_map(|protocol| self.objects.service(frontend.0, frontend.1, protocol));
                let name = name.map(|s| format!(" {}/{}", s.namespace, s.name)).unwrap_or_default();
                let asked = self.end(*frontend);
                told(
                    "service",
                    match backend {
                        Some(backend) => {
                            let how = if *remembered { "as before" } else { "chosen by the flow's hash" };
                            format!("{asked} {scope} is service{name}; backend {}, {how}", self.end(*backend))
                        }
                        None => format!("{asked} {scope} is no service's"),
                    },
                )
            }
            Step::Place { address, place, identity } => {
                let at = match place {
                    Place::Host => "this node itself".to_owned(),
                    Place::Pod(ifindex) => format!("a pod of this node, at interface {ifindex}"),
                    Place::Away(0) => "outside: no node's".to_owned(),
                    Place::Away(node) => format!("behind node number {node} (tombolo show paths)"),
                };
                let identity = self.identity(*identity);
                told("destination", format!("{} is {at}, identity {identity}", self.whom(*address)))
            }
            Step::Policy { policy: 0, question, .. } => {
                let direction = way(question.direction);
                told("policy", format!("{direction}: none applies, allowed"))
            }
            Step::Policy { policy, question, verdict, rule } => {
                let said = match (verdict, rule) {
                    (Ok(()), Some(_)) => "allowed".to_owned(),
                    (Ok(()), None) => "allowed: nothing is said of it".to_owned(),
                    (Err(reason), Some(_)) => format!("denied ({})", reason.number()),
                    (Err(reason), None) => format!("no rule allows it ({})", reason.number()),
                };
                let protocol = names::protocol(question.protocol);
                let text = format!(
                    "{} policy {policy}: peer {}, {protocol} port {}: {said}",
                    way(question.direction),
                    self.identity(question.identity),
                    question.port
                );
                let by =
                    self.rules.get(&cookie).map(|row| row.rules.iter().map(ToString::to_string).collect());
                Told { by: by.unwrap_or_default(), ..told("policy", text) }
            }
            Step::Snat { from, to } => {
                told("nat", format!("the source {} becomes {}", self.end(*from), self.end(*to)))
            }
            Step::Unsnat { to } => {
                told("nat", format!("an answer to a flow of {}: it goes back there", self.end(*to)))
            }
            Step::Unmask { frontend } => {
                told("nat", format!("the answer leaves under the service's address {}", self.end(*frontend)))
            }
        }
    }
}

fn way_out(to: &To) -> String {
    match to {
        To::Kernel => "to the kernel, which goes on with it".to_owned(),
        To::Pod(ifindex) => format!("to the pod at interface {ifindex}"),
        To::Overlay => "to the overlay: into the VXLAN tunnel".to_owned(),
        To::Network => "to the network: along the routing table".to_owned(),
        To::WireGuard => "to WireGuard: it leaves encrypted".to_owned(),
    }
}

const fn way(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

fn dropped(reason: u8, id: u16) -> Outcome {
    let text = match reason {
        0 => "dropped, counted before".to_owned(),
        reason => format!("dropped {reason} {}", names::drop_reason(reason)),
    };
    Outcome { text, reason, why: site(id).unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tombolo_base::source::Source;
    use tombolo_base::table::Table;
    use tombolo_model::{Action, Packet, Payload, Question, Reason, Rule, TcpFlags, Tier};

    fn words() -> Words {
        let (rules, writer) = Table::new();
        let rule = "NetworkPolicy shop/web ingress rule 0";
        writer.upsert(CookieRow { source: Source::Planner, cookie: 7, rules: [rule.into()].into() });
        Words {
            enricher: Enricher { node: "n".into(), cluster: "c".into(), sites: site },
            names: Names::default(),
            objects: Objects { frontends: Table::new().0.snapshot(), pods: Table::new().0.snapshot() },
            rules: rules.snapshot(),
        }
    }

    fn explained(difference: Option<&str>) -> Explained {
        let (source, destination) = ("10.1.1.2".parse().unwrap(), "10.1.1.3".parse().unwrap());
        let payload = Payload::Tcp { ports: (4000, 80), flags: TcpFlags::SYN };
        let fragment = tombolo_model::Fragment::Whole;
        let packet = Packet { source, destination, hops: 64, length: 40, fragment, frontend: None, payload };
        let flow = Tuple { source: (source, 4000), destination: (destination, 80), protocol: 6 };
        let question =
            Question { direction: Direction::Ingress, identity: 1000, protocol: 6, port: 80, ipv4: true };
        let rule = Rule {
            tier: Tier::Normal,
            identity: None,
            protocol: None,
            port: None,
            action: Action::Deny,
            priority: 0,
        };
        let verdict = Err(Reason::PolicyDeny);
        let place = tombolo_ebpf::SITES.iter().find(|site| site.number == 181).unwrap();
        Explained {
            program: "from_endpoint",
            frame: Frame::Ip(tombolo_model::Ip { packet, link: None, whole: None }),
            steps: vec![
                (Step::Read { flow, error: false, broken: None }, 0),
                (Step::Policy { policy: 3, question, verdict, rule: Some(rule) }, 7),
            ],
            model: Err(Reason::PolicyDeny),
            programs: Err((181, place.id)),
            after: Vec::new(),
            event: None,
            difference: difference.map(str::to_owned),
            notes: vec!["a note"],
        }
    }

    #[test]
    fn decisions_are_told_in_words_with_the_rules_that_decide() {
        let flow = Flow { id: 4, drop_reason: 133, ..Flow::default() };
        let why = words().tell(Some(&flow), explained(None));
        assert_eq!((why.flow, why.program.as_str(), why.agree), (4, "from_endpoint", true));
        let [read, policy] = why.steps.as_slice() else { panic!("{why:#?}") };
        assert_eq!(
            (read.step.as_str(), read.text.as_str()),
            ("packet", "TCP 10.1.1.2 port 4000 -> 10.1.1.3 port 80")
        );
        assert!(
            policy.text.starts_with("ingress policy 3: peer 1000") && policy.text.ends_with("denied (181)")
        );
        assert_eq!(policy.by, ["NetworkPolicy shop/web ingress rule 0"]);
        assert_eq!((why.model.reason, why.programs.reason), (181, 181));
        assert!(
            why.programs.text.contains("POLICY_DENY") && why.programs.why.contains("policy.h:"),
            "{why:?}"
        );
        assert!(why.notes.iter().any(|note| note.contains("went otherwise")), "it was 133: {why:?}");
    }

    #[test]
    fn a_difference_is_not_hidden() {
        let why = words().tell(None, explained(Some("both say something else")));
        assert!(!why.agree && why.difference.is_some() && why.was.is_none());
    }

    #[test]
    fn what_was_not_captured_is_said() {
        let flows = Flows::new();
        let query = WhyQuery::default();
        assert!(captured(&flows, &query).unwrap_err().contains("tombolo flows"));
        flows.push(Flow::default());
        assert!(captured(&flows, &query).unwrap_err().contains("datapath.capture: all"));
        let capture = Capture {
            point: 5,
            ifindex: 1,
            mark: 0,
            segment: 0,
            length: 60,
            tunnel: None,
            frame: vec![0; 60],
        };
        for _ in 0..3 {
            flows.push(Flow { capture: Some(Box::new(capture.clone())), ..Flow::default() });
        }
        let ids = |last| -> Vec<u64> {
            let found = captured(&flows, &WhyQuery { last, ..WhyQuery::default() }).unwrap();
            found.iter().map(|(flow, _)| flow.as_ref().unwrap().id).collect()
        };
        assert_eq!((ids(2), ids(0), ids(9)), (vec![3, 4], vec![4], vec![2, 3, 4]));
    }
}
