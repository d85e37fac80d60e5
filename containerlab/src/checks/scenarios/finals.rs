//! What must hold of the whole lab and run, looked at when traffic and policies are through and before anything is broken.

use crate::checks::access::Place;
use crate::checks::ask::{DENIED, NO_RULE, UNENCRYPTED};
use crate::checks::check::{CheckResult, Failure};
use crate::checks::context::Context;

use super::Packets;

/// Drops that the run itself asks for: policies deny, and packets are sent that are one byte too long (136).
const ASKED_FOR: [u32; 3] = [NO_RULE, DENIED, 136];
/// Lines of a log that are told of one node.
const TOLD: usize = 3;

/// Such a scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Final {
    /// Nothing was dropped but what the run asked for.
    NoUnexpectedPacketDrops,
    /// No agent has logged an error.
    CheckLogErrors,
    /// Pods have the Ethernet addresses that they ask for.
    PodMac,
}

impl Final {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::PodMac, Self::NoUnexpectedPacketDrops, Self::CheckLogErrors];

    /// As in Cilium's list.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoUnexpectedPacketDrops => "no-unexpected-packet-drops",
            Self::CheckLogErrors => "check-log-errors",
            Self::PodMac => "pod-mac",
        }
    }

    /// Runs it over all nodes of all clusters.
    ///
    /// # Errors
    /// What was dropped, or logged.
    pub(in crate::checks) async fn run(self, context: &Context) -> CheckResult {
        let clusters = context.inventory.clusters.values();
        let nodes: Vec<&String> = clusters.flat_map(|cluster| cluster.nodes.keys()).collect();
        match self {
            Self::NoUnexpectedPacketDrops => drops(context, &nodes).await,
            Self::CheckLogErrors => logs(context, &nodes).await,
            Self::PodMac => macs(context).await,
        }
    }
}

/// That such pods answer, and that flows tell of it, is asked with all others (`pod-to-itself-via-service`).
async fn macs(context: &Context) -> CheckResult {
    let pods = context.inventory.clusters.values().flat_map(|cluster| cluster.pods.values());
    let mut seen = 0;
    for pod in pods {
        let Some(wanted) = &pod.mac else { continue };
        let (place, argv) = (context.inside(pod), ["ip", "-o", "link", "show", "dev", "eth0"]);
        let found = context.access.text(&place, &argv).await?;
        if !found.contains(&format!("link/ether {}", wanted.to_lowercase())) {
            let what = format!("eth0 of {} has the address {wanted}", pod.key());
            return Err(Failure::new(what, found.trim(), context.access.shown(&place, &argv)));
        }
        seen += 1;
    }
    if seen == 0 {
        let look = "the Pod manifests";
        return Err(Failure::new("a pod annotated with cni.cilium.io/mac-address", "none", look));
    }
    Ok(vec![format!("{seen} pods")])
}

async fn drops(context: &Context, nodes: &[&String]) -> CheckResult {
    let now = Packets::of(&context.access, nodes.iter().copied()).await?;
    // With encryption pods send to where nobody is, too.
    let strict = context.variant.encrypted().then_some(UNENCRYPTED);
    let reasons = ASKED_FOR.into_iter().chain(strict);
    let expected: Vec<u8> = reasons.filter_map(|reason| u8::try_from(reason).ok()).collect();
    let (dropped, counted) = now.dropped(&context.packets_before, &expected);
    let look = "`tombolo show packets` and `tombolo flows` in the node";
    if !counted {
        return Err(Failure::new("packets counted since the run began", "none", look));
    }
    if dropped.is_empty() {
        return Ok(vec![format!("no drop but for {expected:?} on {} nodes", nodes.len())]);
    }
    Err(Failure::new(format!("no drop but for {expected:?}"), dropped.join("; "), look))
}

async fn logs(context: &Context, nodes: &[&String]) -> CheckResult {
    let (mut lines, mut wrong) = (0, Vec::new());
    for node in nodes {
        let text = context.access.log(node).await?;
        lines += text.lines().count();
        let errors: Vec<&str> = text.lines().filter(|line| is_error(line)).collect();
        if !errors.is_empty() {
            wrong.push(format!(
                "{} on {node}: {}",
                errors.len(),
                errors.get(..TOLD).unwrap_or(&errors).join(" | ")
            ));
        }
    }
    let look = context.access.shown(&Place::node("NODE"), &["tombolo", "status"]);
    if lines == 0 {
        return Err(Failure::new("agents that write logs", "no line at all", look));
    }
    if wrong.is_empty() {
        return Ok(vec![format!("no error in {lines} lines")]);
    }
    Err(Failure::new("no line of level ERROR, and no panic, in the agents' logs", wrong.join("; "), look))
}

/// Whether a line of a log is of level ERROR, or tells of a panic.
fn is_error(line: &str) -> bool {
    // Time, level, and what it is about.
    line.split_whitespace().nth(1) == Some("ERROR") || line.contains("panicked at")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_by_their_level() {
        assert!(is_error("2026-11-28T10:00:00.1Z ERROR tombolo::x: it failed"));
        assert!(is_error("thread 'main' panicked at agent/src/x.rs:1:1:"));
        assert!(!is_error("2026-11-28T10:00:00.1Z  WARN tombolo::x: ERROR is a word here"));
        assert!(!is_error("") && !is_error("2026-11-28T10:00:00.1Z  INFO error: none"));
    }
}
