//! `topology.links`: the brief form (`endpoints: ["n1:eth1", "n2:eth1"]`) and the extended ones (`type: ...`).

use std::collections::BTreeMap;

use super::report::Report;
use super::topology::{Endpoint, Link, LinkType};
use super::tree::{Item, Value};

pub(super) const TYPES: &[&str] =
    &["veth", "veth-stitch", "host", "mgmt-net", "macvlan", "vxlan", "vxlan-stitch", "dummy", "brief"];
pub(super) const MACVLAN_MODES: &[&str] = &["private", "vepa", "bridge", "passthru", "source"];
pub(super) const KEYS: &[&str] = &[
    "type",
    "endpoints",
    "endpoint",
    "mtu",
    "labels",
    "vars",
    "ipv4",
    "ipv6",
    "host-interface",
    "mode",
    "remote",
    "vni",
    "dst-port",
    "src-port",
];

/// The keys of an endpoint that is a map.
pub(super) const ENDPOINT_KEYS: &[&str] = &["node", "interface", "mac", "ipv4", "ipv6", "vars"];

/// The keys of one link, not yet given a meaning.
struct Fields<'a> {
    key: String,
    line: u64,
    items: BTreeMap<&'a str, &'a Item>,
}

impl<'a> Fields<'a> {
    fn get(&self, name: &str) -> Option<&'a Item> {
        self.items.get(name).copied()
    }

    fn path(&self, name: &str) -> String {
        format!("{}.{name}", self.key)
    }

    fn required(&self, report: &mut Report, name: &str, allowed: &str) -> Option<&'a Item> {
        let found = self.get(name);
        if found.is_none() {
            report.error(self.line, &self.path(name), format!("missing; needs {allowed}"));
        }
        found
    }

    fn text(&self, report: &mut Report, name: &str, allowed: &str) -> Option<String> {
        let item = self.required(report, name, allowed)?;
        report.text(item, &self.path(name)).filter(|text| !text.is_empty()).or_else(|| {
            report.error(item.line, &self.path(name), format!("empty; needs {allowed}"));
            None
        })
    }
}

/// Reads one link; `None` if it is wrong (reported).
pub(super) fn read(report: &mut Report, item: &Item, index: usize) -> Option<Link> {
    let key = format!("topology.links[{index}]");
    let mut items = BTreeMap::new();
    for (name, line, value) in report.map(item, &key) {
        if KEYS.contains(&name.as_str()) {
            items.insert(name.as_str(), value);
        } else {
            report.unknown(*line, &format!("{key}.{name}"), KEYS);
        }
    }
    let fields = Fields { key, line: item.line, items };
    let kind = match fields.get("type") {
        Some(item) => report.text(item, &fields.path("type")).unwrap_or_default().trim().to_ascii_lowercase(),
        None => "brief".to_owned(),
    };
    let link_type = match kind.as_str() {
        "" | "brief" => brief(report, &fields),
        "veth" => extended_veth(report, &fields).map(|(a, b)| LinkType::Veth { a, b }),
        "veth-stitch" => extended_veth(report, &fields).map(|(a, b)| LinkType::VethStitch { a, b }),
        "host" | "mgmt-net" | "macvlan" | "dummy" => single(report, &fields, &kind),
        "vxlan" | "vxlan-stitch" => vxlan(report, &fields, kind == "vxlan-stitch"),
        _ => {
            report.error(
                fields.line,
                &fields.path("type"),
                format!("{kind:?} is not one of {}", TYPES.join(", ")),
            );
            None
        }
    };
    let mtu = fields.get("mtu").and_then(|item| report.number(item, &fields.path("mtu"), 68, 65_535));
    let labels =
        fields.get("labels").map(|item| report.text_map(item, &fields.path("labels"))).unwrap_or_default();
    Some(Link {
        line: fields.line,
        link_type: link_type?,
        mtu: mtu.and_then(|mtu| u32::try_from(mtu).ok()),
        labels: labels.into_iter().collect(),
        vars: fields.get("vars").map(|item| vars(report, item, &fields.path("vars"))).unwrap_or_default(),
    })
}

fn vars(report: &mut Report, item: &Item, key: &str) -> BTreeMap<String, serde_json::Value> {
    report.map(item, key).iter().map(|(name, _, value)| (name.clone(), value.json())).collect()
}

/// `endpoints: ["n1:eth1", "n2:eth1"]`, where `host:`, `mgmt-net:` and `macvlan:` stand for the other types.
fn brief(report: &mut Report, fields: &Fields<'_>) -> Option<LinkType> {
    let item = fields.required(report, "endpoints", "two texts of the form NODE:INTERFACE")?;
    let key = fields.path("endpoints");
    let texts = report.texts(item, &key);
    let [(first, first_line), (second, second_line)] = texts.as_slice() else {
        report.error(
            item.line,
            &key,
            format!("needs exactly two endpoints NODE:INTERFACE, has {}", texts.len()),
        );
        return None;
    };
    let mut split = |text: &str, line: u64| match text.split_once(':') {
        Some((node, interface)) if !node.is_empty() && !interface.is_empty() => {
            Some((node.to_owned(), interface.to_owned()))
        }
        _ => {
            report.error(line, &key, format!("{text:?} is not of the form NODE:INTERFACE"));
            None
        }
    };
    let (a, b) = (split(first, *first_line), split(second, *second_line));
    let mut ends = [plain(a?), plain(b?)];
    addresses(report, fields, &mut ends);
    let [a, b] = ends;
    for (special, other) in [(&a, &b), (&b, &a)] {
        let (endpoint, host_interface) = (other.clone(), special.interface.clone());
        match special.node.as_str() {
            "host" => return Some(LinkType::Host { endpoint, host_interface }),
            "mgmt-net" => return Some(LinkType::MgmtNet { endpoint, host_interface }),
            "macvlan" => {
                return Some(LinkType::Macvlan { endpoint, host_interface, mode: "bridge".to_owned() });
            }
            _ => {}
        }
    }
    Some(LinkType::Veth { a, b })
}

fn plain((node, interface): (String, String)) -> Endpoint {
    Endpoint { node, interface, mac: None, ipv4: None, ipv6: None, vars: BTreeMap::new() }
}

/// `ipv4` and `ipv6` of the brief form: one entry for each endpoint in their order, empty for none.
fn addresses(report: &mut Report, fields: &Fields<'_>, ends: &mut [Endpoint; 2]) {
    for family in ["ipv4", "ipv6"] {
        let Some(item) = fields.get(family) else { continue };
        let key = fields.path(family);
        let texts = report.texts(item, &key);
        if texts.len() > 2 {
            report.error(
                item.line,
                &key,
                format!("needs at most one address for each of two endpoints, has {}", texts.len()),
            );
        }
        for (end, (text, line)) in ends.iter_mut().zip(&texts) {
            set_address(report, end, family, text, *line, &key);
        }
    }
}

fn set_address(report: &mut Report, end: &mut Endpoint, family: &str, text: &str, line: u64, key: &str) {
    if text.is_empty() {
        return;
    }
    let has_length = text.contains('/');
    let wrong = if family == "ipv4" {
        end.ipv4 = text.parse().ok().filter(|_| has_length);
        end.ipv4.is_none().then_some("an IPv4 address with prefix length such as 192.0.2.1/24")
    } else {
        end.ipv6 = text.parse().ok().filter(|_| has_length);
        end.ipv6.is_none().then_some("an IPv6 address with prefix length such as 2001:db8::1/64")
    };
    if let Some(allowed) = wrong {
        report.error(line, key, format!("needs {allowed}, has {text:?}"));
    }
}

fn extended_veth(report: &mut Report, fields: &Fields<'_>) -> Option<(Endpoint, Endpoint)> {
    let item = fields.required(report, "endpoints", "two entries with node and interface")?;
    let key = fields.path("endpoints");
    let entries = report.list(item, &key);
    let [first, second] = entries else {
        report.error(item.line, &key, format!("needs exactly two endpoints, has {}", entries.len()));
        return None;
    };
    let a = endpoint(report, first, &format!("{key}[0]"));
    let b = endpoint(report, second, &format!("{key}[1]"));
    let mut ends = [a?, b?];
    addresses(report, fields, &mut ends);
    let [a, b] = ends;
    Some((a, b))
}

fn endpoint(report: &mut Report, item: &Item, key: &str) -> Option<Endpoint> {
    if let Value::Scalar(scalar) = &item.value {
        // Seen in the field: the brief text inside an extended link.
        let (node, interface) =
            scalar.text.split_once(':').filter(|(n, i)| !n.is_empty() && !i.is_empty()).or_else(|| {
                report.error(
                    item.line,
                    key,
                    format!("{:?} is neither NODE:INTERFACE nor a map with node and interface", scalar.text),
                );
                None
            })?;
        return Some(plain((node.to_owned(), interface.to_owned())));
    }
    let mut end = plain((String::new(), String::new()));
    for (name, line, value) in report.map(item, key) {
        let path = format!("{key}.{name}");
        match name.as_str() {
            "node" => end.node = report.text(value, &path).unwrap_or_default(),
            "interface" => end.interface = report.text(value, &path).unwrap_or_default(),
            "mac" => {
                let text = report.text(value, &path).unwrap_or_default();
                end.mac = mac(&text);
                if end.mac.is_none() && !text.is_empty() {
                    report.error(
                        value.line,
                        &path,
                        format!("needs a MAC address such as 02:00:00:00:00:01, has {text:?}"),
                    );
                }
            }
            "ipv4" | "ipv6" => {
                let text = report.text(value, &path).unwrap_or_default();
                set_address(report, &mut end, name, &text, value.line, &path);
            }
            "vars" => end.vars = vars(report, value, &path),
            _ => report.unknown(*line, &path, ENDPOINT_KEYS),
        }
    }
    if end.node.is_empty() || end.interface.is_empty() {
        report.error(item.line, key, "needs both node and interface");
        return None;
    }
    Some(end)
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Vec<u8> = text
        .split([':', '-'])
        .map(|part| if part.len() == 2 { u8::from_str_radix(part, 16).ok() } else { None })
        .collect::<Option<_>>()?;
    bytes.try_into().ok()
}

fn single(report: &mut Report, fields: &Fields<'_>, kind: &str) -> Option<LinkType> {
    let item = fields.required(report, "endpoint", "a map with node and interface");
    let endpoint = item.and_then(|item| endpoint(report, item, &fields.path("endpoint")));
    if kind == "dummy" {
        return Some(LinkType::Dummy { endpoint: endpoint? });
    }
    let host_interface = fields.text(report, "host-interface", "the name of an interface on the host");
    let mode = match fields.get("mode") {
        Some(item) => report.text(item, &fields.path("mode")).unwrap_or_default(),
        None => "bridge".to_owned(),
    };
    if kind == "macvlan" && !MACVLAN_MODES.contains(&mode.as_str()) {
        report.error(
            fields.line,
            &fields.path("mode"),
            format!("{mode:?} is not one of {}", MACVLAN_MODES.join(", ")),
        );
    }
    let (endpoint, host_interface) = (endpoint?, host_interface?);
    Some(match kind {
        "host" => LinkType::Host { endpoint, host_interface },
        "mgmt-net" => LinkType::MgmtNet { endpoint, host_interface },
        _ => LinkType::Macvlan { endpoint, host_interface, mode },
    })
}

fn vxlan(report: &mut Report, fields: &Fields<'_>, stitched: bool) -> Option<LinkType> {
    let item = fields.required(report, "endpoint", "a map with node and interface");
    let endpoint = item.and_then(|item| endpoint(report, item, &fields.path("endpoint")));
    let remote = fields.text(report, "remote", "the address of the other tunnel endpoint");
    let remote = remote.and_then(|text| {
        let parsed = text.parse().ok();
        if parsed.is_none() {
            report.error(
                fields.line,
                &fields.path("remote"),
                format!("needs an IPv4 or IPv6 address, has {text:?}"),
            );
        }
        parsed
    });
    let number = |report: &mut Report, name: &str, max: u64, needed: bool| {
        let item = if needed {
            fields.required(report, name, &format!("a number from 1 to {max}"))
        } else {
            fields.get(name)
        };
        item.and_then(|item| report.number(item, &fields.path(name), 1, max))
    };
    let vni = number(report, "vni", 16_777_215, true);
    let dst_port = number(report, "dst-port", 65_535, true);
    let src_port = number(report, "src-port", 65_535, false);
    Some(LinkType::Vxlan {
        endpoint: endpoint?,
        remote: remote?,
        vni: u32::try_from(vni?).ok()?,
        dst_port: u16::try_from(dst_port?).ok()?,
        src_port: src_port.and_then(|port| u16::try_from(port).ok()),
        stitched,
    })
}
