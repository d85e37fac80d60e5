//! What the unit needs to know.

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;

/// The standard port.
pub const PORT: u16 = 53;

/// The unit's settings. The agent hands them over in a file; by itself the unit makes them of agent.yaml.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where it listens, UDP and TCP.
    pub listen: Vec<SocketAddr>,
    /// The zone of this cluster's Services, as `cluster.local`.
    pub cluster_domain: String,
    /// The zone of imports.
    pub clusterset_domain: String,
    /// Who is asked for other names, in turn; without any they are refused.
    pub upstreams: Vec<SocketAddr>,
    /// Life of an answer, in seconds.
    pub ttl_secs: u32,
    /// The agent's local API.
    pub agent_socket: PathBuf,
    /// Where the unit says how it is.
    pub control_socket: PathBuf,
    /// Where it keeps what it knows.
    pub state_file: PathBuf,
    /// Where Prometheus may scrape; nothing is opened without it.
    pub metrics: Option<SocketAddr>,
    /// The program's version: another one takes the place of this one.
    pub version: String,
}
