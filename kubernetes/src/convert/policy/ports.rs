//! `toPorts` and `icmps` of Cilium's policies.

use super::closed::{Fault, Reader, port_name, port_range, unsupported};
use crate::convert::core::PROTOCOLS;
use crate::convert::{number, word};
use crate::crd_policy::{CiliumPort, CiliumPorts, CiliumRule, IcmpField};
use crate::problem::{Issue, shorten};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;
use std::collections::BTreeSet;
use tombolo_policy::{PortMatch, PortRule};

/// Ports of one entry of `toPorts`, and fields of one of `icmps`: as in Cilium.
const MAX_LISTED: usize = 40;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// Protocols without ports.
const PORTLESS: [(&str, u8); 9] = [
    ("ICMP", ICMP),
    ("ICMPV6", ICMPV6),
    ("IGMP", 2),
    ("IPIP", 4),
    ("IPV6", 41),
    ("GRE", 47),
    ("ESP", 50),
    ("AH", 51),
    ("VRRP", 112),
];

const ICMP_TYPES: [(&str, u8); 14] = [
    ("EchoReply", 0),
    ("DestinationUnreachable", 3),
    ("Redirect", 5),
    ("Echo", 8),
    ("EchoRequest", 8),
    ("RouterAdvertisement", 9),
    ("RouterSelection", 10),
    ("TimeExceeded", 11),
    ("ParameterProblem", 12),
    ("Timestamp", 13),
    ("TimestampReply", 14),
    ("Photuris", 40),
    ("ExtendedEchoRequest", 42),
    ("ExtendedEchoReply", 43),
];

const ICMPV6_TYPES: [(&str, u8); 27] = [
    ("DestinationUnreachable", 1),
    ("PacketTooBig", 2),
    ("TimeExceeded", 3),
    ("ParameterProblem", 4),
    ("EchoRequest", 128),
    ("EchoReply", 129),
    ("MulticastListenerQuery", 130),
    ("MulticastListenerReport", 131),
    ("MulticastListenerDone", 132),
    ("RouterSolicitation", 133),
    ("RouterAdvertisement", 134),
    ("NeighborSolicitation", 135),
    ("NeighborAdvertisement", 136),
    ("RedirectMessage", 137),
    ("RouterRenumbering", 138),
    ("ICMPNodeInformationQuery", 139),
    ("ICMPNodeInformationResponse", 140),
    ("InverseNeighborDiscoverySolicitation", 141),
    ("InverseNeighborDiscoveryAdvertisement", 142),
    ("HomeAgentAddressDiscoveryRequest", 144),
    ("HomeAgentAddressDiscoveryReply", 145),
    ("MobilePrefixSolicitation", 146),
    ("MobilePrefixAdvertisement", 147),
    ("DuplicateAddressRequestCodeSuffix", 157),
    ("DuplicateAddressConfirmationCodeSuffix", 158),
    ("ExtendedEchoRequest", 160),
    ("ExtendedEchoReply", 161),
];

/// The ports of a rule; `None` = all. A list of entries that name no port is none, as in Cilium.
pub(super) fn ports(
    reader: &mut Reader<'_>,
    at: &str,
    rule: &CiliumRule,
) -> Result<Option<BTreeSet<PortRule>>, Fault> {
    let listed = rule.to_ports.as_deref().unwrap_or_default();
    let icmps = rule.icmps.as_deref().unwrap_or_default();
    if listed.is_empty() && icmps.is_empty() {
        return Ok(None);
    }
    if !listed.is_empty() && !icmps.is_empty() {
        let remedy = "write icmps and toPorts as two rules";
        return Err(Issue::new(format!("{at}.icmps"), "icmps stand beside toPorts", remedy).into());
    }
    let mut out = BTreeSet::new();
    for (position, entry) in listed.iter().enumerate() {
        let at = format!("{at}.toPorts[{position}]");
        needs_proxy(&at, entry)?;
        bounded(reader, &format!("{at}.ports"), entry.ports.len())?;
        for (position, port) in entry.ports.iter().enumerate() {
            add_port(&mut out, &format!("{at}.ports[{position}]"), port)?;
        }
    }
    for (position, entry) in icmps.iter().enumerate() {
        let at = format!("{at}.icmps[{position}].fields");
        bounded(reader, &at, entry.fields.len())?;
        for (position, field) in entry.fields.iter().enumerate() {
            out.insert(icmp(&format!("{at}[{position}]"), field)?);
        }
    }
    Ok(Some(out))
}

fn bounded(reader: &mut Reader<'_>, at: &str, count: usize) -> Result<(), Issue> {
    if count > MAX_LISTED {
        let remedy = format!("use at most {MAX_LISTED}, or endPort for a range");
        return Err(Issue::new(at, format!("{count} entries"), remedy));
    }
    reader.entries(at, count)
}

/// What looks into the traffic needs a proxy, and there is none.
fn needs_proxy(at: &str, entry: &CiliumPorts) -> Result<(), Fault> {
    // Rules of a protocol that are not there ask for nothing.
    let rules = entry.rules.as_object().is_none_or(|rules| !rules.values().all(is_nothing));
    let parts = [
        ("rules", "a rule about what is inside the traffic (http, dns, kafka, l7)", &entry.rules, rules),
        ("listener", "a listener", &entry.listener, true),
        ("terminatingTLS", "the end of a TLS connection", &entry.terminating_tls, true),
        ("originatingTLS", "the start of a TLS connection", &entry.originating_tls, true),
        ("serverNames", "a rule about names in TLS", &entry.server_names, true),
    ];
    match parts.into_iter().find(|(_, _, value, counts)| *counts && !is_nothing(value)) {
        None => Ok(()),
        Some((key, what, ..)) => {
            let remedy = format!("remove {key} to let the ports through whole");
            Err(unsupported(&format!("{at}.{key}"), what, &remedy))
        }
    }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        _ => false,
    }
}

fn add_port(out: &mut BTreeSet<PortRule>, at: &str, entry: &CiliumPort) -> Result<(), Issue> {
    let protocol = entry.protocol.to_ascii_uppercase();
    let any = matches!(protocol.as_str(), "" | "ANY");
    let port = port_match(at, entry)?;
    if let Some((name, number)) = PORTLESS.iter().find(|(name, _)| *name == protocol) {
        if port.is_some_and(|port| port != PortMatch::All) {
            let remedy = "leave the port out, or write 0";
            return Err(Issue::new(format!("{at}.port"), format!("{name} has no ports"), remedy));
        }
        out.insert(PortRule { protocol: *number, port: PortMatch::All });
        return Ok(());
    }
    let Some(port) = port else {
        return Err(Issue::new(
            format!("{at}.port"),
            "the port is missing",
            "name or number it; 0 means all",
        ));
    };
    match (any, port) {
        (true, PortMatch::All) => drop(out.insert(PortRule { protocol: 0, port: PortMatch::All })),
        (true, port) => {
            out.extend(PROTOCOLS.map(|(_, protocol)| PortRule { protocol, port: port.clone() }));
        }
        (false, port) => {
            let protocol = word(format!("{at}.protocol"), &protocol, &PROTOCOLS)?;
            out.insert(PortRule { protocol, port });
        }
    }
    Ok(())
}

/// Port or range; `None` without one.
fn port_match(at: &str, entry: &CiliumPort) -> Result<Option<PortMatch>, Issue> {
    let path = format!("{at}.port");
    // Cilium takes 0 for no end.
    let end = entry.end_port.filter(|end| *end != 0);
    let end_path = format!("{at}.endPort");
    let no_range = |reason: &str| Issue::new(end_path.clone(), reason, "endPort needs a numeric port");
    if entry.port.is_empty() {
        return if end.is_some() { Err(no_range("there is no port to start from")) } else { Ok(None) };
    }
    let digits = entry.port.bytes().all(|byte| byte.is_ascii_digit());
    if !digits {
        let name = port_name(&path, &entry.port)?;
        return if end.is_some() {
            Err(no_range("a name starts no range"))
        } else {
            Ok(Some(PortMatch::Named(name)))
        };
    }
    let first: u16 = entry.port.parse().map_err(|_| {
        let reason = format!("{:?} is out of range", shorten(&entry.port));
        Issue::new(path.clone(), reason, "use a number from 0 to 65535")
    })?;
    Ok(Some(match (first, end) {
        (0, None) => PortMatch::All,
        // From 0 is from the first port there is.
        (first, Some(end)) => port_range((path, i64::from(first.max(1))), (end_path, end))?,
        (first, None) => PortMatch::Range(first, first),
    }))
}

fn icmp(at: &str, field: &IcmpField) -> Result<PortRule, Issue> {
    let families = [("", false), ("IPv4", false), ("IPv6", true)];
    let v6 = word(format!("{at}.family"), &field.family, &families)?;
    let at = format!("{at}.type");
    let names: &[(&str, u8)] = if v6 { &ICMPV6_TYPES } else { &ICMP_TYPES };
    let kind = match &field.kind {
        IntOrString::Int(value) => number(at, *value, 0, 255)?,
        IntOrString::String(text) => match text.parse::<i64>() {
            Ok(value) => number(at, value, 0, 255)?,
            Err(_) => word(at, text, names)?,
        },
    };
    Ok(PortRule { protocol: if v6 { ICMPV6 } else { ICMP }, port: PortMatch::IcmpType(kind) })
}
