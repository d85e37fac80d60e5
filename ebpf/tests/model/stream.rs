//! Runs a stream through programs and model.

use crate::kept::{self, TOLERANCE_NS};
use crate::reach::Reach;
use crate::steps::{Hook, Load, Step};
use crate::support::{HOST_MAC, MAC_A, MAC_B, OK, REDIRECT, Ran, SHOT};
use crate::wire;
use crate::world::{A, B, World, at, fits, host};
use proptest::test_runner::{TestCaseError, TestCaseResult};
use std::cell::RefCell;
use std::fmt::Write;
use std::time::Duration;
use tombolo_ebpf::{EventKind, site};
use tombolo_model::{Fragment, Outcome, Packet, Payload, TcpFlags, To};

/// A packet that was sent, and what became of it.
struct Sent {
    hook: Hook,
    packet: Packet,
    outcome: Outcome,
}

/// What has happened, to be told if it comes to that.
enum Line {
    Row(Step),
    Packet(usize),
}

/// What the programs made of a packet.
struct Seen {
    decision: Result<To, u8>,
    bytes: Vec<u8>,
    site: u16,
}

struct Stream<'a> {
    world: &'a mut World,
    sent: Vec<Sent>,
    lines: Vec<Line>,
}

/// Runs the steps from a clean start. A stream that the machine held up is not judged.
pub fn run(world: &mut World, steps: &[Step], reach: &RefCell<Reach>) -> TestCaseResult {
    world.reset();
    let mut stream = Stream { world, sent: Vec::new(), lines: Vec::new() };
    let result = steps.iter().try_for_each(|step| stream.take(step)).and_then(|()| stream.finish());
    if stream.world.age_ns() >= TOLERANCE_NS {
        return Err(TestCaseError::reject("the stream took too long for its clock"));
    }
    result.map_err(|difference| TestCaseError::fail(format!("{}{difference}", stream.story())))?;
    let mut reach = reach.borrow_mut();
    reach.stream();
    for sent in &stream.sent {
        reach.count(sent.hook, &sent.packet, &sent.outcome);
    }
    Ok(())
}

impl Stream<'_> {
    fn take(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Send { hook, from, to, v6, ports, load, hops, fragment, names } => {
                let family = usize::from(*v6);
                let payload = match load {
                    Load::Tcp(flags) => Payload::Tcp { ports: *ports, flags: *flags },
                    Load::Udp => Payload::Udp { ports: *ports },
                    Load::Sctp => Payload::Sctp { ports: *ports },
                    Load::Echo(request) => Payload::Echo { id: ports.0.max(1), request: *request },
                    Load::Other => Payload::Other(47),
                };
                let frontend = names.map(|(at, port)| (host(at, family), port));
                let packet = wire::packet(host(*from, family), host(*to, family), *hops, payload);
                self.send(*hook, wire::measured(Packet { fragment: *fragment, frontend, ..packet }))
            }
            Step::Again { of, flags } => match self.earlier(*of) {
                Some(sent) => {
                    let (hook, packet) = (sent.hook, again(&sent.packet, *flags));
                    self.send(hook, packet)
                }
                None => Ok(()),
            },
            Step::Answer { of, flags } => match self.passed(*of) {
                Some((hook, packet)) => {
                    answer(&packet, *flags).map_or(Ok(()), |answer| self.send(hook, answer))
                }
                None => Ok(()),
            },
            Step::Complain { of, router, stray, forged } => match self.passed(*of) {
                Some((hook, packet)) => self.send(hook, complaint(packet, *router, *stray, *forged)),
                None => Ok(()),
            },
            row => {
                self.write(row);
                self.lines.push(Line::Row(row.clone()));
                Ok(())
            }
        }
    }

    fn write(&mut self, row: &Step) {
        let world = &mut *self.world;
        match row {
            Step::Wait(seconds) => world.wait(Duration::from_secs(*seconds)),
            Step::Policy(number, policy) => world.policy(*number, policy.as_ref()),
            Step::Assign { pod, policy, ready, renamed } => world.assign(*pod, *policy, *ready, *renamed),
            Step::Identity { v6, direct, identity } => world.identity(usize::from(*v6), *direct, *identity),
            Step::Forget(pod) => world.forget(*pod),
            Step::Service { v6, service, backends } => {
                let fitting = |backends: &Vec<usize>| -> Vec<usize> {
                    backends.iter().copied().filter(|backend| fits(*service, *backend)).collect()
                };
                world.service(usize::from(*v6), *service, backends.as_ref().map(fitting).as_deref());
            }
            Step::Backend { v6, backend, shift } => world.backend(usize::from(*v6), *backend, *shift),
            Step::Configure(switches) => world.configure(*switches),
            Step::Remote(reached) => world.remote(*reached),
            Step::Leave { v6, pod, wide, way } => world.leaving(usize::from(*v6), *pod, *wide, *way),
            Step::Collect => world.collect(),
            Step::Retire => world.retire(),
            Step::Send { .. } | Step::Again { .. } | Step::Answer { .. } | Step::Complain { .. } => {}
        }
    }

    /// One of the last packets, counted from the end.
    fn earlier(&self, of: usize) -> Option<&Sent> {
        self.sent.iter().rev().nth(of).or(self.sent.last())
    }

    /// One of the last packets as it was passed on, and the hook where an answer to it comes in.
    fn passed(&self, of: usize) -> Option<(Hook, Packet)> {
        let sent = self.earlier(of)?;
        let Outcome::Pass { to, packet } = &sent.outcome else { return None };
        let hook = match (to, sent.hook) {
            (To::Pod(ifindex), _) => Hook::FromPod(if *ifindex == self.world.rows.real.a { A } else { B }),
            // What comes out of the tunnel has a key that no test run can give it; behind that the paths are one.
            (To::Overlay | To::Network | To::WireGuard, _) => Hook::FromUplink,
            (To::Kernel, Hook::FromPod(pod)) => Hook::ToPod(pod),
            (To::Kernel, Hook::ToPod(pod)) => Hook::FromPod(pod),
            (To::Kernel, Hook::FromUplink) => Hook::ToUplink,
            (To::Kernel, Hook::ToUplink | Hook::ToOverlay) => Hook::FromUplink,
        };
        Some((hook, packet.clone()))
    }

    /// Runs a packet through both.
    fn send(&mut self, hook: Hook, packet: Packet) -> Result<(), String> {
        let now = self.world.tick();
        let ifindex = self.ifindex(hook);
        let model = &mut self.world.rows.model;
        let outcome = match hook {
            Hook::FromPod(_) => model.from_endpoint(now, ifindex, &packet),
            Hook::ToPod(_) => model.to_endpoint(now, ifindex, &packet),
            Hook::FromUplink => model.from_uplink(now, &packet),
            Hook::ToUplink => model.to_uplink(now, &packet),
            Hook::ToOverlay => model.to_overlay(now, &packet),
        };
        let difference = match self.programs(hook, ifindex, &packet) {
            Ok(seen) => difference(&outcome, &seen),
            Err(nonsense) => Some(nonsense),
        };
        self.lines.push(Line::Packet(self.sent.len()));
        self.sent.push(Sent { hook, packet, outcome });
        difference.map_or(Ok(()), Err)
    }

    fn ifindex(&self, hook: Hook) -> u32 {
        let real = &self.world.rows.real;
        match hook {
            Hook::FromPod(A) | Hook::ToPod(A) => real.a,
            Hook::FromPod(_) | Hook::ToPod(_) => real.b,
            Hook::FromUplink | Hook::ToUplink => real.uplink,
            Hook::ToOverlay => real.overlay,
        }
    }

    fn programs(&mut self, hook: Hook, ifindex: u32, packet: &Packet) -> Result<Seen, String> {
        let program = match hook {
            Hook::FromPod(_) => "from_endpoint",
            Hook::ToPod(_) => "to_endpoint",
            Hook::FromUplink => "from_uplink",
            Hook::ToUplink => "to_uplink",
            Hook::ToOverlay => "to_overlay",
        };
        let real = &mut self.world.rows.real;
        let ran = real.run(program, ifindex, &wire::frame(packet));
        let drops = real.events().into_iter().filter(|event| event.kind == EventKind::Drop);
        let drops: Vec<_> = drops.map(|event| (event.flow.drop_reason, event.flow.site)).collect();
        let decision = match (ran.action, drops.as_slice()) {
            (SHOT, [(reason, _)]) => Err(*reason),
            // The dropped packet has become the answer that says so (`refusals.rs`).
            (REDIRECT, [(158, _)]) if wire::is_refusal(&ran.packet) => Err(158),
            (OK, []) => Ok(To::Kernel),
            (REDIRECT, []) => Ok(target(hook, &ran, real.a, real.b)),
            (action, drops) => {
                return Err(format!("but {program} returns {action} with the drops {drops:?}"));
            }
        };
        let site = drops.first().map_or(0, |(_, site)| *site);
        Ok(Seen { decision, bytes: ran.packet, site })
    }

    /// What is kept at the end.
    fn finish(&mut self) -> Result<(), String> {
        let kept = self.world.kept.take();
        let differences = kept::compare(kept, &self.world.rows.model);
        if differences.is_empty() {
            return Ok(());
        }
        Err(format!("The tables differ at the end:\n{}", differences.join("\n")))
    }

    /// All that happened, by the model.
    fn story(&self) -> String {
        let mut text = String::from("model and programs differ:\n");
        for line in &self.lines {
            let written = match line {
                Line::Row(row) => writeln!(text, "  {row:?}"),
                Line::Packet(position) => {
                    let Sent { hook, packet, outcome } = &self.sent[*position];
                    match outcome {
                        Outcome::Pass { to, packet: after } => {
                            writeln!(text, "  {hook:?}: {packet}\n      => {to:?}: {after}")
                        }
                        Outcome::Drop(reason) => {
                            writeln!(
                                text,
                                "  {hook:?}: {packet}\n      => dropped, {reason:?} {}",
                                reason.number()
                            )
                        }
                    }
                }
            };
            written.unwrap();
        }
        text
    }
}

/// Where a packet was redirected: of the programs' words for it each leaves its trace.
fn target(hook: Hook, ran: &Ran, a: u32, b: u32) -> To {
    match ran.macs() {
        _ if hook == Hook::ToUplink => To::WireGuard,
        _ if ran.mark & 0x1f00 == 0x0f00 => To::Overlay,
        (MAC_A, HOST_MAC) => To::Pod(a),
        (MAC_B, HOST_MAC) => To::Pod(b),
        _ => To::Network,
    }
}

/// How the programs' word on a packet differs from the model's.
fn difference(model: &Outcome, programs: &Seen) -> Option<String> {
    let Seen { decision, bytes, site: id } = programs;
    let same = match (model, decision) {
        (Outcome::Drop(reason), Err(number)) => reason.number() == *number,
        (Outcome::Pass { to, packet }, Ok(target)) => {
            to == target && wire::frame(packet)[wire::ETHERNET..] == bytes[wire::ETHERNET..]
        }
        _ => false,
    };
    if same {
        return None;
    }
    let mut text = String::from("but the programs say of the last one:\n      => ");
    match decision {
        Err(number) => {
            let place = site(*id).map_or(String::new(), |site| format!(" ({}:{})", site.file, site.line));
            write!(text, "dropped, {number}{place}").unwrap();
        }
        Ok(to) => {
            write!(text, "{to:?}: {}", hex(bytes)).unwrap();
            if let Outcome::Pass { packet, .. } = model {
                write!(text, "\n   model: {}", hex(&wire::frame(packet))).unwrap();
            }
        }
    }
    Some(text)
}

/// The IP packet in a frame.
fn hex(frame: &[u8]) -> String {
    let words = frame[wire::ETHERNET..].chunks(4);
    words.map(|word| word.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + " ").collect()
}

/// The same with other flags; of a first fragment, the next one.
fn again(packet: &Packet, other: TcpFlags) -> Packet {
    let mut packet = packet.clone();
    match (packet.fragment, &mut packet.payload) {
        (Fragment::First(id), _) => packet.fragment = Fragment::Later(id),
        (_, Payload::Tcp { flags, .. }) => *flags = other,
        _ => {}
    }
    wire::measured(packet)
}

/// What the receiver answers; nobody answers an error.
fn answer(packet: &Packet, flags: TcpFlags) -> Option<Packet> {
    let payload = match packet.payload {
        Payload::Tcp { ports, .. } => Payload::Tcp { ports: (ports.1, ports.0), flags },
        Payload::Udp { ports } => Payload::Udp { ports: (ports.1, ports.0) },
        Payload::Sctp { ports } => Payload::Sctp { ports: (ports.1, ports.0) },
        Payload::Echo { id, request } => Payload::Echo { id, request: !request },
        Payload::Other(protocol) => Payload::Other(protocol),
        Payload::Error(_) | Payload::Broken { .. } => return None,
    };
    Some(wire::packet(packet.destination, packet.source, 64, payload))
}

/// An ICMP error about a packet, from its receiver or a router.
fn complaint(mut packet: Packet, router: bool, stray: bool, forged: bool) -> Packet {
    let family = usize::from(packet.source.is_ipv6());
    let (mut to, from) = (packet.source, packet.destination);
    packet.fragment = Fragment::Whole;
    // What a router says of a packet that a node has named a frontend in goes to the client.
    packet.frontend = None;
    if stray
        && let Payload::Tcp { ports, .. } | Payload::Udp { ports } | Payload::Sctp { ports } =
            &mut packet.payload
    {
        ports.0 = ports.0.wrapping_add(1);
    }
    if forged {
        to = host(A, family);
    }
    let from = if router { host(at::REMOTE_NODE, family) } else { from };
    wire::packet(from, to, 64, Payload::Error(Box::new(packet)))
}
