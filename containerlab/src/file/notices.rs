//! What a file says that this runner understands but does not do, said plainly before anything is deployed. The plan
//! leaves out exactly what a notice here says is skipped: there is no second place where that is decided.

use std::collections::{BTreeMap, BTreeSet};

use super::load::MAX_INTERFACE_BYTES;
use super::resolve::KIND;
use super::topology::{About, Link, LinkType, Node, Notice, Topology};

/// Everything of the topology that will not be deployed or has no effect here, in the order of the file. `runs` tells
/// whether an image runs on this host.
pub fn undeployable(topology: &Topology, runs: &dyn Fn(&str) -> bool) -> Vec<Notice> {
    let mut notices = lab_notices(topology);
    let mut skipped = BTreeSet::new();
    let mut settings: BTreeMap<(u64, String), Vec<&Node>> = BTreeMap::new();
    for node in topology.nodes.values() {
        if let Some(message) = node_skipped(node, runs) {
            skipped.insert(node.name.as_str());
            let about = About::Node(node.name.clone());
            let subject = format!("node {}", node.name);
            notices.push(Notice { line: node.line, about, subject, message, skips: true });
            continue;
        }
        for (line, message) in ignored(node) {
            settings.entry((line, message)).or_default().push(node);
        }
    }
    // A line of a group speaks of many nodes, but needs to be spoken of once.
    for ((line, message), nodes) in settings {
        let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
        let (about, word) = match names.as_slice() {
            [one] => (About::Node((*one).to_owned()), "node"),
            _ => (About::Lab, "nodes"),
        };
        let subject = format!("{word} {}", names.join(", "));
        notices.push(Notice { line, about, subject, message, skips: false });
    }
    for (position, link) in topology.links.iter().enumerate() {
        if let Some((message, skips)) = link_notice(link, &skipped) {
            let (about, subject) = (About::Link(position), describe(link));
            notices.push(Notice { line: link.line, about, subject, message, skips });
        }
    }
    notices.sort_by_key(|notice| notice.line);
    notices
}

fn lab_notices(topology: &Topology) -> Vec<Notice> {
    let mut notices = Vec::new();
    let mut say = |line, subject: &str, message: &str| {
        let (subject, message) = (subject.to_owned(), message.to_owned());
        notices.push(Notice { line, about: About::Lab, subject, message, skips: false });
    };
    if let Some(mgmt) = &topology.mgmt {
        say(mgmt.line, "mgmt", "no management network is made; reach nodes with `tombolo lab exec`");
    }
    if let Some(line) = topology.settings_line {
        let message = "containerlab's own certificate authority is not used; lab.yaml lists certificates";
        say(line, "settings", message);
    }
    notices
}

/// Why a node is not deployed.
fn node_skipped(node: &Node, runs: &dyn Fn(&str) -> bool) -> Option<String> {
    if node.kind != KIND {
        let kind = &node.kind;
        return Some(format!("kind {kind:?} is not deployed; only {KIND} is, its image mapped by lab.yaml"));
    }
    let image = node.image.as_deref().filter(|image| !runs(image))?;
    Some(format!(
        "image {image:?} is not in the image table, so the node is not deployed; add it under `images:` of lab.yaml \
         beside the topology file"
    ))
}

/// Why a link is not deployed (then true), or how it differs.
fn link_notice(link: &Link, skipped: &BTreeSet<&str>) -> Option<(String, bool)> {
    let reason = match &link.link_type {
        LinkType::MgmtNet { .. } => "there is no management network to join",
        LinkType::Macvlan { .. } => "a lab never touches interfaces of the host",
        LinkType::Vxlan { .. } => "a lab never opens tunnels out of the machine",
        LinkType::Dummy { .. } => "dummy links are not deployed",
        LinkType::Veth { .. } | LinkType::VethStitch { .. } | LinkType::Host { .. } => "",
    };
    if !reason.is_empty() {
        return Some((reason.to_owned(), true));
    }
    if let Some(end) = link.endpoints().into_iter().find(|end| skipped.contains(end.node.as_str())) {
        return Some((format!("its node {} is not deployed", end.node), true));
    }
    let host_interface = match &link.link_type {
        LinkType::Host { host_interface, .. } => Some(host_interface),
        _ => None,
    };
    let mut names = link.endpoints().into_iter().map(|end| &end.interface).chain(host_interface);
    if let Some(name) = names.find(|name| name.len() > MAX_INTERFACE_BYTES) {
        let message = format!(
            "the interface name {name:?} has more than {MAX_INTERFACE_BYTES} bytes and is not shortened here; choose \
             a shorter one"
        );
        return Some((message, true));
    }
    let stitched = matches!(link.link_type, LinkType::VethStitch { .. });
    stitched
        .then(|| ("deployed as a plain veth link, without ends to capture at in between".to_owned(), false))
}

fn describe(link: &Link) -> String {
    let ends: Vec<String> =
        link.endpoints().iter().map(|end| format!("{}:{}", end.node, end.interface)).collect();
    format!("link {} ({})", ends.join(" - "), link.link_type.name())
}

/// The keys of a deployed node that have no effect, each with its line and why.
fn ignored(node: &Node) -> Vec<(u64, String)> {
    let confined = node.network_mode.as_deref().is_some_and(|mode| mode != "none");
    let startup = "kind linux has no startup configuration; bind the file instead";
    let own_namespaces = "every node has namespaces of its own";
    let all_root = "every node has all of root's capabilities";
    let asked = |list: &[String]| !list.is_empty();
    let keys = [
        ("type", node.node_type.is_some(), "kind linux has no types"),
        ("ports", !node.ports.is_empty(), "nothing is published on the host"),
        ("startup-config", node.startup_config.is_some(), startup),
        ("enforce-startup-config", node.enforce_startup_config, startup),
        ("suppress-startup-config", node.suppress_startup_config, startup),
        ("license", node.license.is_some(), "kind linux needs none"),
        ("mgmt-ipv4", node.mgmt_ipv4.is_some(), "there is no management network"),
        ("mgmt-ipv6", node.mgmt_ipv6.is_some(), "there is no management network"),
        ("aliases", asked(&node.aliases), "there is no management network that would resolve them"),
        ("user", node.user.is_some(), "commands run as root of the node"),
        ("network-mode", confined, "every node has a network namespace of its own"),
        ("runtime", node.runtime.is_some(), "namespaces are the only runtime"),
        (
            "volumes",
            !node.volumes.is_empty(),
            "a node keeps its disk as long as the lab runs; to share, use binds",
        ),
        ("devices", asked(&node.devices), "the host's devices are seen as they are"),
        ("cap-add", asked(&node.cap_add), all_root),
        ("privileged", !node.privileged, all_root),
        ("security-opts", asked(&node.security_opts), "not applied"),
        ("cpu", node.cpu.is_some(), "nothing is limited"),
        ("cpu-set", node.cpu_set.is_some(), "nothing is limited"),
        ("memory", node.memory.is_some(), "nothing is limited"),
        ("shm-size", node.shm_size.is_some(), "/dev/shm is the node's own, of the usual size"),
        ("tmpfs", !node.tmpfs.is_empty(), "not mounted; a node's disk is in memory anyway"),
        ("healthcheck", node.healthcheck.is_some(), "not run; `ready` in lab.yaml is"),
        ("stages", !node.stages.is_empty(), "all nodes start at once"),
        ("dns", node.dns.is_some(), "not configured"),
        ("pid-mode", node.pid_mode.is_some(), own_namespaces),
        ("cgroupns-mode", node.cgroupns_mode.is_some(), own_namespaces),
        ("cgroup-parent", node.cgroup_parent.is_some(), own_namespaces),
        ("image-pull-policy", node.image_pull_policy.is_some(), "no images are pulled"),
        ("position", node.position.is_some(), "only containerlab's own graph draws it"),
        ("link-apply-mode", node.link_apply_mode.is_some(), "changed links rebuild the lab"),
    ];
    let line = |key: &str| node.lines.get(key).copied().unwrap_or(node.line);
    let told = keys.into_iter().filter(|(_, present, _)| *present);
    let told = told.map(|(key, _, why)| (line(key), format!("{key} has no effect here: {why}")));
    let unread = node.other.keys().map(|key| (line(key), format!("{key} has no effect here")));
    told.chain(unread).collect()
}
