//! The result of ADD, and the comparison of an earlier one with what is there.

use std::net::IpAddr;

use serde_json::Value;

use crate::interface::PodInterface;
use crate::protocol::{AddResult, ResultInterface, ResultIp, ResultRoute};

/// The result of ADD in the version that was asked for.
pub(crate) fn of(interface: &PodInterface, netns: &str, version: &str) -> AddResult {
    // The MTU fields came with 1.1.0.
    let mtu = (version != "1.0.0").then_some(interface.mtu);
    let host = ResultInterface {
        name: interface.host_name.clone(),
        mac: interface.host_mac.to_string(),
        mtu,
        sandbox: None,
    };
    let pod = ResultInterface {
        name: interface.pod_name.clone(),
        mac: interface.pod_mac.to_string(),
        mtu,
        sandbox: Some(netns.to_owned()),
    };
    let ips = interface.addresses.iter().map(|(address, gateway)| ResultIp {
        address: format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 }),
        gateway: Some(*gateway),
        interface: Some(1),
    });
    let routes = interface.addresses.iter().map(|(_, gateway)| ResultRoute {
        dst: if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" }.to_owned(),
        gw: Some(*gateway),
        mtu: mtu.and(interface.route_mtu),
    });
    AddResult {
        cni_version: version.to_owned(),
        interfaces: vec![host, pod],
        ips: ips.collect(),
        routes: routes.collect(),
        dns: Default::default(),
    }
}

/// CHECK: our addresses that an earlier result does not have; it may have more, from other plugins.
pub(crate) fn missing_addresses(previous: Option<&Value>, addresses: &[IpAddr]) -> Vec<String> {
    let Some(ips) = previous.and_then(|result| result.get("ips")).and_then(Value::as_array) else {
        return Vec::new();
    };
    let listed: Vec<IpAddr> =
        ips.iter().filter_map(|ip| ip.get("address")?.as_str()?.split('/').next()?.parse().ok()).collect();
    let missing = addresses.iter().filter(|address| !listed.contains(address));
    missing.map(|address| format!("the runtime's result lacks {address}")).collect()
}
