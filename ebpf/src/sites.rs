//! Why packets are dropped: Cilium's reason numbers, and our own sites that name file, line and remedy.

/// A place in the programs that drops, or counts what should not happen often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Site {
    /// The number in events.
    pub id: u16,
    /// The source file below `ebpf/bpf/`.
    pub file: &'static str,
    /// The line.
    pub line: u32,
    /// The reason's name in the source; `NOTE`: it is no drop.
    pub reason: &'static str,
    /// Cilium's number of the reason; 0: it is no drop.
    pub number: u8,
    /// Why it drops.
    pub why: &'static str,
    /// What to try.
    pub remedy: &'static str,
}

/// All sites, derived from the sources at build time, ordered by id.
pub static SITES: &[Site] = include!(concat!(env!("OUT_DIR"), "/sites.rs"));

/// The site with this number.
#[must_use]
pub fn site(id: u16) -> Option<&'static Site> {
    SITES.iter().find(|site| site.id == id)
}

/// Cilium's name of a drop reason.
#[must_use]
pub const fn reason_name(reason: u8) -> &'static str {
    match reason {
        0 => "forwarded",
        132 => "Invalid source ip",
        133 => "Policy denied",
        134 => "Invalid packet",
        135 => "CT: Truncated or invalid header",
        136 => "Fragmentation needed",
        139 => "Unsupported L3 protocol",
        141 => "Error writing to packet",
        142 => "CT: Unknown L4 protocol",
        147 => "No tunnel/encapsulation key",
        150 => "Unknown L3 target address",
        151 => "Stale or unroutable IP",
        155 => "CT: Map insertion failed",
        156 => "Invalid IPv6 extension header",
        158 => "Service backend not found",
        160 => "No tunnel/encapsulation endpoint",
        162 => "EDT departure time over drop horizon",
        163 => "Unknown connection tracking state",
        167 => "No mapping for NAT masquerade",
        168 => "Unsupported protocol for NAT masquerade",
        169 => "FIB lookup failed",
        170 => "Encapsulation traffic is prohibited",
        172 => "Unknown sender",
        175 => "First logical datagram fragment not found",
        176 => "Forbidden ICMPv6 message",
        177 => "Denied by LB src range check",
        181 => "Policy denied by denylist",
        194 => "No egress gateway found",
        195 => "Traffic is unencrypted",
        196 => "TTL exceeded",
        198 => "Rate limited",
        202 => "Host datapath not ready",
        203 => "Endpoint policy program not available",
        204 => "No egress IP configured",
        206 => "No device",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_site_explains_itself_once() {
        assert!(SITES.len() > 10);
        for site in SITES {
            assert_eq!(site.number == 0, site.reason == "NOTE", "{site:?}");
            assert!(site.number == 0 || reason_name(site.number) != "unknown", "{site:?}");
            assert!(site.why.len() > 5 && site.remedy.len() > 5, "{site:?}");
            assert_eq!(SITES.iter().filter(|other| other.id == site.id).count(), 1, "{site:?}");
        }
    }
}
