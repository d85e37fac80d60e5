//! The largest packet of a path passes unfragmented, and one byte more is answered with too-big: never silence.

use std::net::IpAddr;

use serde_json::Value;

use super::access::{COMMAND_TIMEOUT, Place};
use super::ask::PodRef;
use super::check::{CheckResult, Failure, Family};
use super::context::Context;
use crate::workload::Outcome;

/// Length of an ICMP or ICMPv6 echo header, in bytes.
const ECHO_HEADER_BYTES: u32 = 8;

/// A path between two pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MtuCheck {
    /// The sending pod.
    pub from: PodRef,
    /// The receiving pod.
    pub to: PodRef,
    /// Family.
    pub family: Family,
}

/// What the path did with one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Passed,
    /// Too big, with the MTU that was named and whether a router on the path said it.
    TooBig {
        mtu: Option<u32>,
        remote: bool,
    },
    Silence,
}

/// How a packet is sent: obeying the path MTU the pod's stack knows, or only its interface's.
#[derive(Debug, Clone, Copy)]
enum Mode {
    Do,
    Probe,
}

impl MtuCheck {
    /// Runs the check.
    ///
    /// # Errors
    /// The first packet length whose fate is wrong.
    pub async fn run(&self, context: &Context, name: &str) -> CheckResult {
        let from = context.pod(&self.from.cluster, &self.from.key)?;
        let to = context.pod(&self.to.cluster, &self.to.key)?;
        let target = context.pod_address(to, self.family)?;
        let place = context.inside(from);
        let token = context.token(name, from.node != to.node);
        let path = Path { check: self, context, place, target, token };
        let reported = path.route_mtu().await?;
        path.want(reported, Mode::Do, |fate| fate == Fate::Passed, "passes unfragmented").await?;
        let too_big =
            |fate| matches!(fate, Fate::TooBig { mtu, .. } if mtu.is_none_or(|mtu| mtu == reported));
        path.want(reported + 1, Mode::Do, too_big, &format!("is answered with too-big, MTU {reported}"))
            .await?;
        let interface = path.interface_mtu().await?;
        let largest = path.boundary(reported, interface).await?;
        Ok(vec![format!("route MTU {reported}, interface MTU {interface}, largest that passes {largest}")])
    }
}

struct Path<'a> {
    check: &'a MtuCheck,
    context: &'a Context,
    place: Place,
    target: IpAddr,
    token: String,
}

impl Path<'_> {
    /// The MTU of the pod's route to the target: what the agent has set for this path, in bytes.
    async fn route_mtu(&self) -> Result<u32, Failure> {
        let target = self.target.to_string();
        let argv = ["ip", "-j", "route", "get", &target];
        let routes: Value = self.context.access.json(&self.place, &argv, COMMAND_TIMEOUT).await?;
        let named = routes.pointer("/0/metrics/0/mtu").and_then(Value::as_u64);
        match named.and_then(|mtu| u32::try_from(mtu).ok()) {
            Some(mtu) => Ok(mtu),
            None => self.interface_mtu().await,
        }
    }

    /// The MTU of the pod's eth0, in bytes.
    async fn interface_mtu(&self) -> Result<u32, Failure> {
        let argv = ["ip", "-j", "link", "show", "dev", "eth0"];
        let links: Value = self.context.access.json(&self.place, &argv, COMMAND_TIMEOUT).await?;
        let mtu = links.pointer("/0/mtu").and_then(Value::as_u64).and_then(|mtu| u32::try_from(mtu).ok());
        mtu.ok_or_else(|| {
            Failure::new("the MTU of eth0", links.to_string(), self.context.access.shown(&self.place, &argv))
        })
    }

    fn argv(&self, packet_bytes: u32, mode: Mode) -> Vec<String> {
        let headers = self.check.family.header_bytes() + ECHO_HEADER_BYTES;
        let size = packet_bytes.saturating_sub(headers).to_string();
        let df = match mode {
            Mode::Do => "--df=do",
            Mode::Probe => "--df=probe",
        };
        let target = self.target.to_string();
        ["ping", &target, "--size", &size, df, "--count", "1", "--token", &self.token]
            .map(str::to_owned)
            .to_vec()
    }

    /// Sends one echo in an IP packet of exactly `packet_bytes`; a lost one is sent once more, since silence must
    /// mean that the path swallows this length.
    async fn fate(&self, packet_bytes: u32, mode: Mode) -> Result<Fate, Failure> {
        let argv = self.argv(packet_bytes, mode);
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let mut fate = Fate::Silence;
        for _ in 0..2 {
            let report = self.context.probe(&self.place, &argv).await?;
            fate = match report.attempts.first().map(|attempt| &attempt.outcome) {
                Some(Outcome::Reply { .. }) => Fate::Passed,
                Some(Outcome::TooBig { mtu, from }) => Fate::TooBig { mtu: *mtu, remote: from.is_some() },
                Some(Outcome::Timeout) | None => Fate::Silence,
                Some(other) => {
                    let what = format!("a reply, a too-big or silence for {packet_bytes} bytes");
                    return Err(Failure::new(what, format!("{other:?}"), self.look(packet_bytes, mode)));
                }
            };
            if fate != Fate::Silence {
                break;
            }
        }
        Ok(fate)
    }

    fn look(&self, packet_bytes: u32, mode: Mode) -> String {
        let argv = self.argv(packet_bytes, mode);
        let mut full = vec!["tombolo", "lab-probe"];
        full.extend(argv.iter().map(String::as_str));
        format!("{}; `tombolo status` (MTU)", self.context.access.shown(&self.place, &full))
    }

    async fn want(
        &self,
        packet_bytes: u32,
        mode: Mode,
        good: impl Fn(Fate) -> bool,
        what: &str,
    ) -> Result<(), Failure> {
        let fate = self.fate(packet_bytes, mode).await?;
        if good(fate) {
            return Ok(());
        }
        let what = format!("a packet of {packet_bytes} bytes {what}");
        Err(Failure::new(what, format!("{fate:?}"), self.look(packet_bytes, mode)))
    }

    /// The largest packet that passes when only the interface's MTU is obeyed: at least the reported MTU, and what
    /// is larger is answered by someone, with this length as the MTU, all the way up to the interface's own.
    async fn boundary(&self, reported: u32, interface: u32) -> Result<u32, Failure> {
        let (mut passes, mut fails) = (reported, interface + 1);
        while fails - passes > 1 {
            let middle = passes + (fails - passes) / 2;
            match self.fate(middle, Mode::Probe).await? {
                Fate::Passed => passes = middle,
                Fate::TooBig { .. } => fails = middle,
                Fate::Silence => {
                    let what = format!("a packet of {middle} bytes passes or is answered with too-big");
                    return Err(Failure::new(what, "silence", self.look(middle, Mode::Probe)));
                }
            }
        }
        let answered = |fate| match fate {
            Fate::TooBig { mtu: Some(mtu), remote: true } => mtu >= reported && mtu <= passes,
            Fate::TooBig { .. } => true,
            _ => false,
        };
        let what = format!("is answered with too-big, MTU {reported} to {passes}");
        self.want(passes + 1, Mode::Probe, answered, &what).await?;
        Ok(passes)
    }
}
