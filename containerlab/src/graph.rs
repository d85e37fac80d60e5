//! `tombolo lab graph`: a topology as a Mermaid flowchart, which GitHub and most editors draw.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::file::{Endpoint, LinkType, Node, Topology};

/// Labels that name the box nodes are drawn in, the first that a node carries.
const GROUP_LABELS: &[&str] = &["graph-group", "tombolo.io/cluster"];

/// The topology as a Mermaid flowchart: nodes with name, role and image, boxed by cluster (label `tombolo.io/cluster`)
/// or `group`; links with their interfaces and addresses. The same topology always gives the same text.
pub fn mermaid(topology: &Topology) -> String {
    let mut out = String::from("flowchart TB\n");
    let ids: BTreeMap<&str, String> =
        topology.nodes.keys().enumerate().map(|(index, name)| (name.as_str(), format!("n{index}"))).collect();
    let mut boxes: BTreeMap<Option<&str>, Vec<&Node>> = BTreeMap::new();
    for node in topology.nodes.values() {
        boxes.entry(box_of(node)).or_default().push(node);
    }
    for (index, (title, nodes)) in boxes.iter().enumerate() {
        let indent = if title.is_some() { "        " } else { "    " };
        if let Some(title) = title {
            line(&mut out, "    ", &format!("subgraph g{index} [\"{}\"]", escape(title)));
        }
        for node in nodes {
            let id = ids.get(node.name.as_str()).map_or("", String::as_str);
            line(&mut out, indent, &format!("{id}[\"{}\"]", caption(node)));
        }
        if title.is_some() {
            line(&mut out, "    ", "end");
        }
    }
    let mut outside = BTreeMap::new();
    for link in &topology.links {
        let text = match &link.link_type {
            LinkType::Veth { a, b } | LinkType::VethStitch { a, b } => {
                edge(&ids, a, ids.get(b.node.as_str()).map_or("", String::as_str), &end_text(b))
            }
            LinkType::Host { endpoint, host_interface } => {
                outside.insert("host", "host");
                edge(&ids, endpoint, "host", &escape(host_interface))
            }
            LinkType::MgmtNet { endpoint, host_interface } => {
                outside.insert("mgmt", "management network");
                edge(&ids, endpoint, "mgmt", &escape(host_interface))
            }
            LinkType::Macvlan { endpoint, host_interface, .. } => {
                outside.insert("host", "host");
                edge(&ids, endpoint, "host", &format!("macvlan on {}", escape(host_interface)))
            }
            LinkType::Vxlan { endpoint, remote, vni, .. } => {
                outside.insert("remote", "remote VXLAN endpoints");
                edge(&ids, endpoint, "remote", &format!("{remote} VNI {vni}"))
            }
            LinkType::Dummy { .. } => continue,
        };
        line(&mut out, "    ", &text);
    }
    for (id, title) in outside {
        line(&mut out, "    ", &format!("{id}([\"{title}\"])"));
    }
    out
}

fn line(out: &mut String, indent: &str, text: &str) {
    // Writing to a String cannot fail.
    writeln!(out, "{indent}{text}").ok();
}

fn box_of(node: &Node) -> Option<&str> {
    GROUP_LABELS
        .iter()
        .find_map(|label| node.labels.get(*label).map(String::as_str))
        .or_else(|| node.group.as_deref().filter(|_| !node.labels.contains_key("tombolo.io/role")))
}

fn caption(node: &Node) -> String {
    let mut parts = vec![format!("<b>{}</b>", escape(&node.name))];
    if let Some(role) = node.labels.get("tombolo.io/role") {
        parts.push(escape(role));
    }
    if let Some(image) = &node.image {
        parts.push(format!("<i>{}</i>", escape(image)));
    }
    parts.join("<br/>")
}

fn edge(ids: &BTreeMap<&str, String>, from: &Endpoint, to: &str, to_text: &str) -> String {
    let id = ids.get(from.node.as_str()).map_or("", String::as_str);
    format!("{id} ---|\"{} ─ {to_text}\"| {to}", end_text(from))
}

fn end_text(end: &Endpoint) -> String {
    let mut text = escape(&end.interface);
    if let Some(address) = end.ipv4 {
        write!(text, " {}", address.addr()).ok();
    }
    if let Some(address) = end.ipv6 {
        write!(text, " {}", address.addr()).ok();
    }
    text
}

/// Mermaid reads HTML entities inside quotes; a quote would end the text.
fn escape(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .map(|c| match c {
            '"' => "#quot;".to_owned(),
            '<' => "#lt;".to_owned(),
            '>' => "#gt;".to_owned(),
            '#' => "#35;".to_owned(),
            other => other.to_string(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;

    #[test]
    fn nodes_in_boxes_and_links_with_addresses() {
        let text = "name: g\ntopology:\n  defaults: {kind: linux}\n  nodes:\n    a: {labels: {tombolo.io/cluster: east, \
                    tombolo.io/role: node}, image: 'x\"y'}\n    b: {group: edge}\n    c:\n  links:\n    - endpoints: \
                    [a:eth1, b:eth1]\n      ipv4: [192.0.2.1/24, 192.0.2.2/24]\n      ipv6: ['', '2001:db8::2/64']\n    \
                    - endpoints: [c:eth1, host:c-out]\n";
        let topology = crate::file::parse(Path::new("/g.clab.yml"), text, &BTreeMap::new()).unwrap().0;
        let expected = "flowchart TB\n    n2[\"<b>c</b>\"]\n    subgraph g1 [\"east\"]\n        \
                        n0[\"<b>a</b><br/>node<br/><i>x#quot;y</i>\"]\n    end\n    subgraph g2 [\"edge\"]\n        \
                        n1[\"<b>b</b>\"]\n    end\n    n0 ---|\"eth1 192.0.2.1 ─ eth1 192.0.2.2 2001:db8::2\"| n1\n    \
                        n2 ---|\"eth1 ─ c-out\"| host\n    host([\"host\"])\n";
        assert_eq!(mermaid(&topology), expected);
    }
}
