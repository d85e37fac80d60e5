//! What a collector is to be told, and how it is reached.

use std::net::SocketAddr;
use std::time::Duration;

/// A collector of BMP, called the monitoring station.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BmpStation {
    /// Where it listens.
    pub address: SocketAddr,
    /// Tell what peers sent, as they sent it.
    pub pre_policy: bool,
    /// Tell what import policy made of it; what it refused is not there.
    pub post_policy: bool,
    /// Tell the best path of each prefix (RFC 9069); what this speaker itself originates is not among them.
    pub loc_rib: bool,
    /// Tell what peers are sent, after export policy (RFC 8671).
    pub adj_rib_out: bool,
    /// Time between statistics of each peer; zero sends none.
    pub statistics_every: Duration,
    /// Wait after the first failed attempt to connect; doubled each time.
    pub retry_first: Duration,
    /// Longest such wait.
    pub retry_longest: Duration,
    /// Name of this system as it is told (sysName of RFC 1213).
    pub system_name: String,
    /// Description of this system as it is told (sysDescr of RFC 1213).
    pub system_description: String,
}

impl BmpStation {
    /// A station that is told all there is but what peers are sent, with the waits of RFC 7854 section 3.2 and statistics once a minute.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            pre_policy: true,
            post_policy: true,
            loc_rib: true,
            adj_rib_out: false,
            statistics_every: Duration::from_secs(60),
            retry_first: Duration::from_secs(30),
            retry_longest: Duration::from_secs(720),
            system_name: String::new(),
            system_description: concat!("tombolo ", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}
