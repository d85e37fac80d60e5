//! One path and the packets sent along it.

use std::net::IpAddr;

use serde_json::Value;

use crate::checks::access::{COMMAND_TIMEOUT, Place};
use crate::checks::check::{Failure, Family};
use crate::checks::context::Context;
use crate::checks::flows::{Want, WantEnd};
use crate::checks::inventory::PodFacts;
use crate::workload::Outcome;

/// Length of an ICMP or ICMPv6 echo header, in bytes.
const ECHO_HEADER_BYTES: u32 = 8;

/// What became of one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It arrived whole.
    Passed,
    /// Too big, with the MTU that was named, and who on the path said it (`None`: the sender's own stack).
    TooBig {
        /// In bytes.
        mtu: Option<u32>,
        /// Who.
        from: Option<IpAddr>,
    },
    /// Nothing came back.
    Silence,
}

/// How a packet is sent: obeying the path MTU the sender's stack knows, or only its interface's.
#[derive(Debug, Clone, Copy)]
pub(super) enum Mode {
    Do,
    Probe,
}

/// From a place to an address.
pub(super) struct Path<'a> {
    pub(super) context: &'a Context,
    pub(super) family: Family,
    pub(super) place: Place,
    pub(super) target: IpAddr,
    pub(super) token: String,
}

impl Path<'_> {
    fn argv(&self, packet_bytes: u32, mode: Mode) -> Vec<String> {
        let headers = self.family.header_bytes() + ECHO_HEADER_BYTES;
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
                Some(Outcome::Reply { from, .. }) if *from == self.target => Fate::Passed,
                Some(Outcome::TooBig { mtu, from }) => Fate::TooBig { mtu: *mtu, from: *from },
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

    /// Sends a packet that must meet exactly this fate.
    pub(super) async fn want(&self, packet_bytes: u32, mode: Mode, wanted: Fate) -> Result<(), Failure> {
        let fate = self.fate(packet_bytes, mode).await?;
        if fate == wanted {
            return Ok(());
        }
        let what = format!("a packet of {packet_bytes} bytes to {} ({mode:?}): {wanted:?}", self.target);
        Err(Failure::new(what, format!("{fate:?}"), self.look(packet_bytes, mode)))
    }

    /// The sender's own stack takes packets of this length and refuses one byte more at once.
    pub(super) async fn stack_stops_at(&self, mtu: u32) -> Result<(), Failure> {
        self.want(mtu, Mode::Do, Fate::Passed).await?;
        self.want(mtu + 1, Mode::Do, Fate::TooBig { mtu: Some(mtu), from: None }).await
    }

    /// The sender's eth0 has exactly this MTU.
    pub(super) async fn interface_is(&self, wanted: u32) -> Result<(), Failure> {
        let argv = ["ip", "-j", "link", "show", "dev", "eth0"];
        let links: Value = self.context.access.json(&self.place, &argv, COMMAND_TIMEOUT).await?;
        let mtu = links.pointer("/0/mtu").and_then(Value::as_u64);
        if mtu == Some(wanted.into()) {
            return Ok(());
        }
        let what = format!("eth0 of {} has an MTU of {wanted}, that of the links", self.place);
        Err(Failure::new(what, format!("{mtu:?}"), self.context.access.shown(&self.place, &argv)))
    }

    /// Forgets the path MTUs that the sender's stack has learned, so that the next packet is judged by the path.
    pub(super) async fn forget(&self) -> Result<(), Failure> {
        for family in ["-4", "-6"] {
            self.context.access.text(&self.place, &["ip", family, "route", "flush", "cache"]).await?;
        }
        Ok(())
    }

    /// A pod as an end of a flow.
    pub(super) async fn end(&self, pod: &PodFacts, cluster: &str) -> Result<WantEnd, Failure> {
        Ok(WantEnd {
            ip: Some(self.context.pod_address(pod, self.family)?),
            identity: Some(self.context.identity(pod, cluster).await?),
            pod: Some(pod.key()),
            cluster: Some(cluster.to_owned()),
            port: None,
            workload: None,
        })
    }

    /// Waits until `node` has reported that it dropped a packet which is larger than its path.
    pub(super) async fn dropped(
        &self,
        node: &str,
        since_ns: u64,
        source: WantEnd,
        destination: WantEnd,
    ) -> Result<(), Failure> {
        let want = Want {
            since_ns,
            source,
            destination,
            drop_reason: super::FRAGMENTATION_NEEDED,
            ..Want::default()
        };
        self.context.flows.expect(node, &want).await.map(drop)
    }
}

/// Sets the MTU of both ends of a pod's interface: a packet larger than that of the node's end would be lost there.
pub(super) async fn set_mtu(context: &Context, pod: &PodFacts, mtu: u32) -> Result<(), Failure> {
    let outside = context.endpoint(pod).await?.host_interface;
    let mtu = mtu.to_string();
    let ends = [(Place::node(&pod.node), outside.as_str()), (context.inside(pod), "eth0")];
    for (place, device) in ends {
        context.access.text(&place, &["ip", "link", "set", "dev", device, "mtu", &mtu]).await?;
    }
    Ok(())
}
