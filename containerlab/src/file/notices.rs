//! What a file says that this runner understands but does not do, said plainly before anything is deployed.

use super::load::MAX_INTERFACE_BYTES;
use super::topology::{LinkType, Node, Notice, Topology};

/// Everything of the topology that will not be deployed or has no effect here, in the order of the file.
pub fn undeployable(topology: &Topology) -> Vec<Notice> {
    let mut notices = Vec::new();
    if topology.mgmt.is_some() {
        notices.push(Notice {
            line: 0,
            subject: "mgmt".to_owned(),
            message: "no management network is made; reach nodes with `tombolo lab exec`".to_owned(),
            skips: false,
        });
    }
    if topology.settings.is_some() {
        notices.push(Notice {
            line: 0,
            subject: "settings".to_owned(),
            message: "containerlab's own certificate authority is not used; lab.yaml lists certificates"
                .to_owned(),
            skips: false,
        });
    }
    for node in topology.nodes.values() {
        node_notices(node, &mut notices);
    }
    for link in &topology.links {
        let ends: Vec<String> =
            link.endpoints().iter().map(|end| format!("{}:{}", end.node, end.interface)).collect();
        let host_interface = match &link.link_type {
            LinkType::Host { host_interface, .. } => Some(host_interface),
            _ => None,
        };
        let mut names = link.endpoints().into_iter().map(|end| &end.interface).chain(host_interface);
        let too_long = names.any(|name| name.len() > MAX_INTERFACE_BYTES);
        let reason = match &link.link_type {
            LinkType::Veth { .. } | LinkType::Host { .. } if too_long => {
                "an interface name of more than 15 bytes is not shortened here; choose a shorter one"
            }
            LinkType::Veth { .. } | LinkType::Host { .. } => continue,
            LinkType::VethStitch { .. } => "stitched links are not deployed; a plain veth link is",
            LinkType::MgmtNet { .. } => "there is no management network to join",
            LinkType::Macvlan { .. } => "a lab never touches interfaces of the host",
            LinkType::Vxlan { .. } => "a lab never opens tunnels out of the machine",
            LinkType::Dummy { .. } => "dummy links are not deployed",
        };
        let subject = format!("link {} ({})", ends.join(" - "), link.link_type.name());
        notices.push(Notice { line: link.line, subject, message: reason.to_owned(), skips: true });
    }
    notices.sort_by_key(|notice| notice.line);
    notices
}

fn node_notices(node: &Node, notices: &mut Vec<Notice>) {
    let subject = format!("node {}", node.name);
    if node.kind != "linux" {
        let message =
            format!("kind {:?} is not deployed; only linux is, its image mapped by lab.yaml", node.kind);
        notices.push(Notice { line: node.line, subject, message, skips: true });
        return;
    }
    let ignored = [
        ("ports", !node.ports.is_empty(), "nothing is published on the host"),
        ("startup-config", node.startup_config.is_some(), "kind linux has none; bind the file instead"),
        ("license", node.license.is_some(), "kind linux needs none"),
        (
            "mgmt-ipv4/mgmt-ipv6",
            node.mgmt_ipv4.is_some() || node.mgmt_ipv6.is_some(),
            "there is no management network",
        ),
        ("user", node.user.is_some(), "commands run as root of the node"),
        (
            "network-mode",
            node.network_mode.as_deref().is_some_and(|mode| mode != "none"),
            "every node has a network namespace of its own",
        ),
        ("runtime", node.runtime.is_some(), "namespaces are the only runtime"),
        ("volumes", !node.volumes.is_empty(), "use binds"),
        ("devices", !node.devices.is_empty(), "the host's devices are seen as they are"),
        (
            "cpu/cpu-set/memory",
            node.cpu.is_some() || node.cpu_set.is_some() || node.memory.is_some(),
            "nothing is limited",
        ),
        ("shm-size/tmpfs", node.shm_size.is_some() || !node.tmpfs.is_empty(), "not mounted"),
        ("healthcheck", node.healthcheck.is_some(), "not run; `ready` in lab.yaml is"),
        ("stages", !node.stages.is_empty(), "all nodes start at once"),
        ("dns", node.dns.is_some(), "not configured"),
        (
            "pid-mode/cgroupns-mode/cgroup-parent",
            node.pid_mode.is_some() || node.cgroupns_mode.is_some() || node.cgroup_parent.is_some(),
            "every node has namespaces of its own",
        ),
        ("security-opts", !node.security_opts.is_empty(), "not applied"),
        ("image-pull-policy", node.image_pull_policy.is_some(), "no images are pulled"),
    ];
    for (key, present, message) in ignored {
        if present {
            let message = format!("{key} has no effect here: {message}");
            notices.push(Notice { line: node.line, subject: subject.clone(), message, skips: false });
        }
    }
    for key in node.other.keys() {
        let message = format!("{key} has no effect here");
        notices.push(Notice { line: node.line, subject: subject.clone(), message, skips: false });
    }
}
