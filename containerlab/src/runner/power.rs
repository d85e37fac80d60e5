//! What can be done to one running node: off, on, and its command.

use tombolo_netlink::{LinkSettings, NetNs, Netlink};

use super::deploy::{Fabric, Failure, RunningNode};
use super::plan::Plan;
use super::protocol::{InitRequest, NodeAction};

/// Does `action` to a node; answers what was done.
///
/// # Errors
/// The node's reason.
pub(super) async fn act(
    fabric: &Fabric,
    plan: &Plan,
    node: &mut RunningNode,
    action: NodeAction,
) -> Result<String, Failure> {
    let name = node.name.clone();
    let request = match action {
        NodeAction::PowerOff => return off(fabric, plan, node).await,
        NodeAction::PowerOn => return on(fabric, plan, node).await,
        NodeAction::KillCommand { stay_down } => InitRequest::Kill { stay_down },
        NodeAction::StopCommand => InitRequest::Stop,
        NodeAction::StartCommand => InitRequest::StartCommand,
        NodeAction::CniCheck => InitRequest::CniCheck,
        NodeAction::Wipe => InitRequest::Wipe,
    };
    if !node.is_on() {
        return Err(Failure::new(&name, "the node is off; power it on first (power-on)"));
    }
    let notes = fabric.tell(&name, &request).await?;
    let notes: String = notes.iter().map(|note| format!("\n  {note}")).collect();
    Ok(format!("{name}: {action:?} done{notes}"))
}

/// Cuts the node's links, so that its neighbours see their carrier go, then kills it.
///
/// The node's ends wait in the enclosing namespace: the neighbours keep their interfaces and addresses, as a
/// switch keeps its port.
async fn off(fabric: &Fabric, plan: &Plan, node: &mut RunningNode) -> Result<String, Failure> {
    if !node.is_on() {
        node.off = true;
        return Ok(format!("{}: was off", node.name));
    }
    let failed = |error: tombolo_netlink::Error| Failure::new("cut the links", &error.to_string());
    let inside = Netlink::in_namespace(node.namespace()).map_err(failed)?;
    let here = NetNs::current().map_err(failed)?;
    let interfaces: Vec<String> = interfaces(plan, &node.name).collect();
    let mut found = Vec::new();
    for interface in interfaces {
        if let Some(link) = inside.find_link(&interface).await.map_err(failed)? {
            inside.set_down(link.index).await.map_err(failed)?;
            found.push((link.index, interface));
        }
    }
    node.parked.clear();
    for (position, (index, interface)) in found.into_iter().enumerate() {
        let parked = parked_name(plan, &node.name, position);
        let settings = LinkSettings { name: Some(parked.clone()), ..LinkSettings::default() };
        inside.set_link(index, &settings).await.map_err(failed)?;
        inside.move_link(index, &here).await.map_err(failed)?;
        node.parked.push((parked, interface));
    }
    fabric.kill(node).await?;
    node.off = true;
    Ok(format!("{}: off", node.name))
}

/// Starts a node again on the disk it had and gives it its links back.
///
/// # Errors
/// Its links are gone, or the node's reason.
pub(super) async fn on(fabric: &Fabric, plan: &Plan, node: &mut RunningNode) -> Result<String, Failure> {
    if node.is_on() {
        return Ok(format!("{}: was on", node.name));
    }
    let Some(spec) = plan.nodes.get(&node.name) else {
        return Err(Failure::new(&node.name, "the node is not in the plan"));
    };
    let failed = |error: tombolo_netlink::Error| Failure::new("reconnect the links", &error.to_string());
    if node.parked.is_empty() && interfaces(plan, &node.name).next().is_some() {
        let reason = "its links went with its init; take the lab down and up again";
        return Err(Failure::new(&node.name, reason));
    }
    let fresh = fabric.boot(spec).await?;
    let parked = std::mem::take(&mut node.parked);
    let inside = Netlink::in_namespace(fresh.namespace()).map_err(failed)?;
    for (waiting, interface) in parked {
        let link = fabric.netlink.link(&waiting).await.map_err(failed)?;
        fabric.netlink.move_link(link.index, fresh.namespace()).await.map_err(failed)?;
        let moved = inside.link(&waiting).await.map_err(failed)?;
        let settings = LinkSettings { name: Some(interface), ..LinkSettings::default() };
        inside.set_link(moved.index, &settings).await.map_err(failed)?;
    }
    *node = fresh;
    if let Err(failure) = fabric.start(spec).await {
        // A node half started would be taken for one that runs.
        if let Err(left) = off(fabric, plan, node).await {
            tracing::warn!(node = %node.name, %left, "a node that did not start cannot be switched off");
        }
        return Err(failure);
    }
    Ok(format!("{}: on", node.name))
}

/// The interfaces of a node that are ends of links.
fn interfaces(plan: &Plan, node: &str) -> impl Iterator<Item = String> {
    plan.links
        .iter()
        .flat_map(|link| [&link.a, &link.b])
        .filter(move |end| end.node.as_deref() == Some(node))
        .map(|end| end.interface.clone())
}

/// A name of at most 15 bytes, unique in the lab, for an interface that waits: the node's position and its own.
fn parked_name(plan: &Plan, node: &str, position: usize) -> String {
    let number = plan.nodes.keys().position(|name| name == node).unwrap_or_default();
    format!("off{number:x}.{position:x}")
}
