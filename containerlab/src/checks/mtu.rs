//! The largest packet of a path passes unfragmented, and one byte more is answered with too-big: never silence.
//!
//! Two places answer. A pod's own stack refuses what is larger than its interface; that protects most programs. What is
//! larger than the path but not than the interface must be answered by the node: shown by raising the MTU of the pods'
//! interfaces for the time of the check. What must pass is computed here, from the links' MTU, and not asked of the agent.

mod outside;
mod path;

use super::ask::{self, PodRef};
use super::check::{CheckResult, Failure, Family, Variant};
use super::context::Context;
use super::inventory::PodFacts;
pub(super) use outside::OutsideMtu;
use path::{Fate, Mode, Path};

/// Cilium's number for a packet that is larger than its path.
const FRAGMENTATION_NEEDED: u32 = 136;
/// By how much the pods' interfaces are raised above the links, in bytes: enough that no path is the interface's.
const RAISE_BYTES: u32 = 100;

/// A path from a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MtuCheck {
    /// The sending pod.
    pub from: PodRef,
    /// The receiving pod; `None` for the outside client.
    pub to: Option<PodRef>,
    /// Family.
    pub family: Family,
}

impl MtuCheck {
    /// Runs the check.
    ///
    /// # Errors
    /// The first packet length whose fate is wrong.
    pub async fn run(&self, context: &Context, name: &str) -> CheckResult {
        let from = context.pod(&self.from.cluster, &self.from.key)?;
        let (to, target) = match &self.to {
            Some(to) => {
                let pod = context.pod(&to.cluster, &to.key)?;
                (Some((pod, to.cluster.as_str())), context.pod_address(pod, self.family)?)
            }
            None => (None, ask::client_address(context, self.family).await?),
        };
        let link = link_mtu(context)?;
        let families = underlays(context, from)?;
        let largest = match to {
            // Both nodes have an address of the first family that carries tunnels; of two, IPv4 is taken.
            Some(_) => families.first().map_or(link, |underlay| carried(link, context.variant, *underlay)),
            None => link,
        };
        let interface =
            families.iter().map(|family| carried(link, context.variant, *family)).min().unwrap_or(link);
        let token = context.token(name, to.is_some_and(|(to, _)| to.node != from.node));
        let path = Path { context, family: self.family, place: context.inside(from), target, token };
        let alone = context.raised_mtu.lock().await;
        let result = self.both_answers(&path, from, to, interface, largest).await;
        drop(alone);
        result?;
        Ok(vec![format!("the pod's stack refuses {}, the path {}", interface + 1, largest + 1)])
    }

    async fn both_answers(
        &self,
        path: &Path<'_>,
        from: &PodFacts,
        to: Option<(&PodFacts, &str)>,
        interface: u32,
        largest: u32,
    ) -> Result<(), Failure> {
        path.forget().await?;
        path.interface_is(interface).await?;
        path.want(interface, Mode::Do, Fate::Passed).await?;
        path.want(interface + 1, Mode::Do, Fate::TooBig { mtu: Some(interface), from: None }).await?;
        let pods: Vec<&PodFacts> = std::iter::once(from).chain(to.map(|(to, _)| to)).collect();
        let raised = link_mtu(path.context)? + RAISE_BYTES;
        let mut result = Ok(());
        for pod in &pods {
            result = result.and(path::set_mtu(path.context, pod, raised).await);
        }
        if result.is_ok() {
            result = self.path_answers(path, from, to, largest).await;
        }
        // Put back whatever happened, and say so if that fails: later checks would judge the raised interface.
        for pod in &pods {
            result = result.and(path::set_mtu(path.context, pod, interface).await);
        }
        result.and(path.forget().await)
    }

    /// With interfaces that take more than the path: it carries exactly `largest`, and the node says so.
    async fn path_answers(
        &self,
        path: &Path<'_>,
        from: &PodFacts,
        to: Option<(&PodFacts, &str)>,
        largest: u32,
    ) -> Result<(), Failure> {
        path.want(largest, Mode::Probe, Fate::Passed).await?;
        let gateway = internal(path.context, &from.node, self.family)?;
        let since_ns = super::flows::now_ns();
        let answer = Fate::TooBig { mtu: Some(largest), from: Some(gateway) };
        path.want(largest + 1, Mode::Probe, answer).await?;
        let source = path.end(from, &self.from.cluster).await?;
        let destination = match to {
            Some((to, cluster)) => path.end(to, cluster).await?,
            None => super::flows::WantEnd { ip: Some(path.target), ..Default::default() },
        };
        path.dropped(&from.node, since_ns, source, destination).await?;
        // The sender has learned it: what obeys the path's MTU now fails at once, with that MTU.
        path.want(largest + 1, Mode::Do, Fate::TooBig { mtu: Some(largest), from: None }).await?;
        path.want(largest, Mode::Do, Fate::Passed).await
    }
}

/// The MTU of the lab's links.
fn link_mtu(context: &Context) -> Result<u32, Failure> {
    context.inventory.link_mtu.ok_or_else(|| {
        Failure::new(
            "an mtu on every link",
            "a link leaves it to the runner",
            context.access.topology().display().to_string(),
        )
    })
}

/// The underlay families of a pod's node, IPv4 first.
fn underlays(context: &Context, pod: &PodFacts) -> Result<Vec<Family>, Failure> {
    let families: Vec<Family> = Family::BOTH
        .into_iter()
        .filter(|family| ask::underlay(context, &pod.node, *family).is_ok())
        .collect();
    if families.is_empty() {
        Err(Failure::new(format!("an underlay address of {}", pod.node), "none", "its Node manifest"))
    } else {
        Ok(families)
    }
}

/// A node's internal address: its pods' gateway, which answers for the path.
fn internal(context: &Context, node: &str, family: Family) -> Result<std::net::IpAddr, Failure> {
    let cluster = context.inventory.cluster_of(node);
    let address =
        cluster.and_then(|cluster| cluster.nodes.get(node)).and_then(|facts| facts.internal(family));
    address
        .ok_or_else(|| Failure::new(format!("an {family} pod CIDR of {node}"), "none", "its Node manifest"))
}

/// The largest IP packet of a pod that a link of `link` bytes carries between nodes.
///
/// WireGuard takes outer IP, UDP (8), header (16) and tag (16), and pads what it encrypts to multiples of 16. VXLAN takes
/// outer IP, UDP (8), its header (8) and the inner Ethernet header (14); RFC 7348, section 5.
fn carried(link: u32, variant: Variant, underlay: Family) -> u32 {
    let ip = underlay.header_bytes();
    let outer = if variant.encrypted() { (link - ip - 8 - 32) / 16 * 16 } else { link };
    match variant {
        Variant::Overlay | Variant::OverlayWireguard => outer - ip - 8 - 8 - 14,
        Variant::Direct | Variant::DirectWireguard => outer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_link_carries_is_what_the_headers_leave() {
        let of = |variant| Family::BOTH.map(|underlay| carried(1500, variant, underlay));
        assert_eq!(of(Variant::Direct), [1500, 1500]);
        assert_eq!(of(Variant::Overlay), [1500 - 50, 1500 - 70]);
        assert_eq!(of(Variant::DirectWireguard), [1440, 1408]);
        assert_eq!(of(Variant::OverlayWireguard), [1390, 1338]);
    }
}
