//! The CNI specification's JSON (1.0.0, 1.1.0), and what the plugin and the agent say to each other.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tombolo_topology::HostPort;

/// The versions of the CNI specification this plugin speaks, oldest first.
pub const SUPPORTED_VERSIONS: [&str; 2] = ["1.0.0", "1.1.0"];
/// Where the agent listens unless the network configuration says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/tombolo/agent.sock";
/// The largest network configuration or message that is read, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 1024 * 1024;

/// Error codes of the CNI specification, and our own from 100 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    /// The configuration's version is not one of [`SUPPORTED_VERSIONS`].
    IncompatibleVersion = 1,
    /// The configuration asks for something this plugin does not do.
    UnsupportedField = 2,
    /// The container is not known, or not any more.
    UnknownContainer = 3,
    /// A CNI_* variable is missing or wrong.
    InvalidEnvironment = 4,
    /// Reading or writing failed.
    Io = 5,
    /// The JSON cannot be read.
    Decode = 6,
    /// The network configuration is not valid.
    InvalidConfiguration = 7,
    /// The agent is not up, or not ready yet: the runtime shall call again.
    TryAgainLater = 11,
    /// STATUS: the plugin cannot serve ADD requests now.
    NotAvailable = 50,
    /// Interfaces, addresses or routes could not be set up.
    Interface = 100,
    /// The pod CIDR has no free address.
    NoAddress = 101,
    /// Identity or datapath were not applied.
    Datapath = 102,
    /// CHECK found a difference.
    Mismatch = 103,
    /// The endpoint's state could not be kept on disk.
    State = 104,
}

/// A CNI error as it is printed on standard output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{msg}: {details} (CNI error {code})")]
pub struct CniError {
    /// The version the configuration asked for.
    #[serde(rename = "cniVersion", default)]
    pub cni_version: String,
    /// See [`Code`].
    pub code: u32,
    /// One line: what was tried.
    pub msg: String,
    /// Why it failed and what to try.
    #[serde(default)]
    pub details: String,
}

impl CniError {
    /// An error; the version is filled in by the plugin when it prints it.
    pub fn new(code: Code, msg: impl Into<String>, details: impl Into<String>) -> Self {
        Self { cni_version: String::new(), code: code as u32, msg: msg.into(), details: details.into() }
    }
}

/// The part of the network configuration that this plugin reads; all else is left alone.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NetworkConfiguration {
    /// Version of the specification the result must follow.
    #[serde(rename = "cniVersion", default)]
    pub cni_version: String,
    /// Name of the network.
    #[serde(default)]
    pub name: String,
    /// Path of the agent's socket.
    #[serde(default = "default_socket")]
    pub socket: String,
    /// Whether plugins behind this one keep traffic in queues of the host's interface, as `bandwidth` does.
    #[serde(default)]
    pub queues: bool,
    /// What the runtime says of this pod, of the capabilities that the configuration names.
    #[serde(rename = "runtimeConfig", default)]
    pub runtime: RuntimeConfig,
    /// The result of the plugins before this one, or (CHECK, DEL) of the whole chain's ADD.
    #[serde(rename = "prevResult", default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Value>,
    /// GC: the attachments that are still wanted.
    #[serde(rename = "cni.dev/valid-attachments", default, skip_serializing_if = "Option::is_none")]
    pub valid_attachments: Option<Vec<Attachment>>,
}

/// What the runtime says of a pod by capabilities.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RuntimeConfig {
    /// Ports of the node that shall lead to the pod.
    #[serde(rename = "portMappings", default, deserialize_with = "or_default")]
    pub port_mappings: Vec<PortMapping>,
}

/// One entry of `portMappings`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// The node's port; 0: none.
    #[serde(default)]
    pub host_port: u16,
    /// The pod's port.
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`, in whatever case; TCP if it is not there.
    #[serde(default)]
    pub protocol: String,
    /// The node's address that has it; empty: all.
    #[serde(rename = "hostIP", default)]
    pub host_ip: String,
}

impl PortMapping {
    /// What it asks for; nothing without a port of the node.
    ///
    /// # Errors
    /// [`Code::InvalidConfiguration`] for a word or an address that is none.
    pub fn host_port(&self) -> Result<Option<HostPort>, CniError> {
        let wrong = |what: &str| {
            let details = format!("{what} in {}", serde_json::to_string(self).unwrap_or_default());
            CniError::new(
                Code::InvalidConfiguration,
                "cannot use an entry of runtimeConfig.portMappings",
                details,
            )
        };
        if self.host_port == 0 {
            return Ok(None);
        }
        if self.container_port == 0 {
            return Err(wrong("there is no containerPort"));
        }
        let protocol = match self.protocol.to_ascii_lowercase().as_str() {
            "" | "tcp" => 6,
            "udp" => 17,
            "sctp" => 132,
            _ => return Err(wrong("protocol is none of tcp, udp and sctp")),
        };
        let host = match self.host_ip.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| wrong("hostIP is no IP address"))?),
        };
        Ok(Some(HostPort { host, host_port: self.host_port, protocol, port: self.container_port }))
    }
}

/// A null counts as absent: runtimes write one for an empty list.
fn or_default<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(
    from: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

fn default_socket() -> String {
    DEFAULT_SOCKET.to_owned()
}

/// What names an attachment: the runtime's sandbox and the interface in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attachment {
    /// The runtime's id of the sandbox.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The interface's name inside the sandbox.
    pub ifname: String,
}

/// What the plugin posts to the agent for ADD, DEL and CHECK.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_IFNAME.
    pub ifname: String,
    /// CNI_NETNS: a path; may be missing for DEL.
    #[serde(default)]
    pub netns: Option<String>,
    /// CNI_ARGS, taken apart: `K8S_POD_NAMESPACE`, `K8S_POD_NAME`, ...
    #[serde(default)]
    pub args: BTreeMap<String, String>,
    /// The network configuration.
    pub configuration: NetworkConfiguration,
}

impl Request {
    /// The attachment it is about.
    #[must_use]
    pub fn attachment(&self) -> Attachment {
        Attachment { container_id: self.container_id.clone(), ifname: self.ifname.clone() }
    }
}

/// The result of ADD.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AddResult {
    /// Version of the specification it follows.
    #[serde(rename = "cniVersion")]
    pub cni_version: String,
    /// The host's end first, then the pod's.
    pub interfaces: Vec<ResultInterface>,
    /// The pod's addresses.
    pub ips: Vec<ResultIp>,
    /// The pod's routes.
    pub routes: Vec<ResultRoute>,
    /// Name service; empty: the cluster's is not ours to say.
    pub dns: BTreeMap<String, Value>,
}

/// An interface that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultInterface {
    /// Its name.
    pub name: String,
    /// Its Ethernet address.
    pub mac: String,
    /// In bytes; new in 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The namespace's path; none for the host's end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
}

/// An address of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultIp {
    /// With prefix length: /32 or /128.
    pub address: String,
    /// The node's internal address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Index into the result's interfaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
}

/// A route of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultRoute {
    /// Destination.
    pub dst: String,
    /// Next hop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// In bytes; new in 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

/// Takes CNI_ARGS (`KEY=VALUE;KEY=VALUE`) apart. A part without `=` is an error.
///
/// # Errors
/// [`Code::InvalidEnvironment`].
pub fn parse_args(text: &str) -> Result<BTreeMap<String, String>, CniError> {
    text.split(';')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (key, value) = part.split_once('=').ok_or_else(|| {
                let details = format!("`{part}` has no `=`; write KEY=VALUE;KEY=VALUE");
                CniError::new(Code::InvalidEnvironment, "cannot read CNI_ARGS", details)
            })?;
            Ok((key.to_owned(), value.to_owned()))
        })
        .collect()
}

/// Whether the text may be a sandbox id: a letter or digit, then letters, digits, `_`, `.`, `-`.
#[must_use]
pub fn is_container_id(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    text.len() <= 256
        && text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
        && text.bytes().all(inner)
}

/// Whether the text may be an interface name inside a pod.
#[must_use]
pub fn is_interface_name(text: &str) -> bool {
    (1..=tombolo_netlink::NAME_MAX_BYTES).contains(&text.len())
        && text != "."
        && text != ".."
        && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn args_are_taken_apart() {
        let args = parse_args("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web=1;").unwrap();
        assert_eq!(args["K8S_POD_NAME"], "web=1");
        assert_eq!(parse_args("").unwrap(), BTreeMap::new());
        let error = parse_args("K8S_POD_NAME").unwrap_err();
        assert_eq!(error.code, 4);
    }

    #[test]
    fn ids_and_names_that_could_escape_a_path_are_refused() {
        assert!(is_container_id("0a1b-c.d_e"));
        for wrong in ["", "../x", "a/b", "-a", "a b", &"a".repeat(257)] {
            assert!(!is_container_id(wrong), "{wrong}");
        }
        assert!(is_interface_name("eth0"));
        for wrong in ["", ".", "..", "a/b", "a:b", "a b", "sixteen-bytes-xx"] {
            assert!(!is_interface_name(wrong), "{wrong}");
        }
    }

    #[test]
    fn port_mappings_are_read_as_runtimes_write_them() {
        let read = |mappings: &str| {
            let text = format!(r#"{{"runtimeConfig":{{"portMappings":{mappings}}}}}"#);
            let configuration: NetworkConfiguration = serde_json::from_str(&text).unwrap();
            let mappings = configuration.runtime.port_mappings;
            mappings.iter().map(PortMapping::host_port).collect::<Result<Vec<_>, _>>()
        };
        assert_eq!(read("null").unwrap(), []);
        let found = read(
            r#"[{"hostPort":8080,"containerPort":80,"protocol":"tcp","hostIP":""},{"hostPort":0,"containerPort":81},
                {"hostPort":53,"containerPort":5353,"protocol":"UDP","hostIP":"fd00::1"}]"#,
        );
        let port = |host, host_port, protocol, port| Some(HostPort { host, host_port, protocol, port });
        let second = port(Some("fd00::1".parse().unwrap()), 53, 17, 5353);
        assert_eq!(found.unwrap(), [port(None, 8080, 6, 80), None, second]);
        for wrong in [
            r#"[{"hostPort":1,"containerPort":0}]"#,
            r#"[{"hostPort":1,"containerPort":1,"protocol":"icmp"}]"#,
            r#"[{"hostPort":1,"containerPort":1,"hostIP":"here"}]"#,
        ] {
            assert_eq!(read(wrong).unwrap_err().code, 7, "{wrong}");
        }
    }

    #[test]
    fn a_configuration_with_foreign_keys_is_read() {
        let text = r#"{"cniVersion":"1.1.0","name":"tombolo","type":"tombolo-cni","mystery":{"a":1}}"#;
        let configuration: NetworkConfiguration = serde_json::from_str(text).unwrap();
        assert_eq!((configuration.socket.as_str(), configuration.name.as_str()), (DEFAULT_SOCKET, "tombolo"));
    }
}
