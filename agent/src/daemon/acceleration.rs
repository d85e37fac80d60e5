//! Services from outside before socket buffers are made: whether the uplink's driver takes the program.

use super::status::Part;
use crate::config::{self, Acceleration};
use tombolo_ebpf::{Acceleration as How, Datapath};

/// What was made of `datapath.load_balancer.acceleration` at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Accelerated {
    /// It is `disabled`.
    Off,
    /// The program is hooked to the interface of this index.
    At(u32, How),
    /// It is not; why, and whether it had to be.
    Without {
        /// The kernel's or the driver's word.
        reason: String,
        /// `native` was asked for, or `generic`.
        demanded: bool,
    },
}

/// Hooks the program to the uplink, or takes it away. Without it the programs behind do the same, so nothing here ends the
/// start.
pub(crate) fn attach(
    config: &config::LoadBalancer,
    datapath: &Datapath,
    uplink: u32,
) -> anyhow::Result<Accelerated> {
    let (how, demanded) = match config.acceleration {
        Acceleration::Disabled => {
            datapath.detach_xdp(uplink)?;
            return Ok(Accelerated::Off);
        }
        Acceleration::Native => (How::Native, true),
        Acceleration::BestEffort => (How::Native, false),
        Acceleration::Generic => (How::Generic, true),
    };
    Ok(match datapath.attach_xdp(uplink, how) {
        Ok(()) => Accelerated::At(uplink, how),
        Err(error) => {
            let reason = error.to_string();
            tracing::warn!(reason, "services from outside are not accelerated");
            Accelerated::Without { reason, demanded }
        }
    })
}

/// The part of the status: `running` is the kernel's word on how the program runs now.
pub(crate) fn part(made: &Accelerated, running: Option<How>) -> Part {
    let name = "acceleration";
    let remedy = "use a driver with native XDP, or set datapath.load_balancer.acceleration: best-effort";
    match made {
        Accelerated::Off => Part::ready(name, "off: services from outside are served by tc"),
        Accelerated::At(_, How::Native) if running == Some(How::Native) => Part::ready(
            name,
            "XDP in the uplink's driver, for backends that are reached by the uplink in clear",
        ),
        Accelerated::At(_, How::Generic) if running == Some(How::Generic) => {
            Part::ready(name, "generic XDP on the uplink: for tests, it makes nothing faster")
        }
        Accelerated::At(..) => Part::failing(
            name,
            "the XDP program is missing on the uplink: services from outside are served by tc",
            "restart the agent, which hooks it again; find out who removed it",
        ),
        Accelerated::Without { reason, demanded: true } => Part::failing(
            name,
            format!("no XDP on the uplink, services from outside are served by tc: {reason}"),
            remedy,
        ),
        Accelerated::Without { reason, demanded: false } => Part::ready(
            name,
            format!("no XDP on the uplink, services from outside are served by tc: {reason}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_is_said_and_why_not() {
        assert!(part(&Accelerated::Off, None).ready);
        let native = Accelerated::At(2, How::Native);
        assert!(part(&native, Some(How::Native)).ready && !part(&native, None).ready);
        assert!(!part(&native, Some(How::Generic)).ready);
        let without = |demanded| Accelerated::Without { reason: "the driver has none".into(), demanded };
        assert!(!part(&without(true), None).ready && part(&without(false), None).ready);
        assert!(part(&without(false), None).detail.contains("the driver has none"));
    }
}
