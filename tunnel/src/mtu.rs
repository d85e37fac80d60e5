//! How large a packet fits a path. Pure.
//!
//! | layer | takes |
//! |---|---|
//! | VXLAN over IPv4 | outer IP 20 + UDP 8 + VXLAN 8 + inner Ethernet 14 = 50 bytes (RFC 7348 §5) |
//! | VXLAN over IPv6 | outer IP 40 + UDP 8 + VXLAN 8 + inner Ethernet 14 = 70 bytes |
//! | WireGuard over IPv4 | outer IP 20 + UDP 8 + header 16 + tag 16 = 60 bytes, and what remains counts in steps of 16 |
//! | WireGuard over IPv6 | outer IP 40 + UDP 8 + header 16 + tag 16 = 80 bytes, and what remains counts in steps of 16 |
//!
//! WireGuard pads what it encrypts to a multiple of 16 bytes, so the largest packet is the largest such multiple that
//! fits: of 1500 bytes 1440 over IPv4 and 1408 over IPv6 (not 1420: 1420 would be padded to 1424, 4 too many, unless the
//! device's own MTU happened to stop the padding). In the overlay WireGuard carries VXLAN: the VXLAN packet must fit what WireGuard leaves.

/// IPv6's smallest MTU (RFC 8200 §5): a path below it cannot carry IPv6.
pub const IPV6_MIN_MTU: u16 = 1280;

const UDP: u16 = 8;
const VXLAN: u16 = 8;
const INNER_ETHERNET: u16 = 14;
const WIREGUARD_HEADER_AND_TAG: u16 = 32;
const WIREGUARD_BLOCK: u16 = 16;

/// The family of the outer addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Underlay {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Underlay {
    /// The family of an address.
    #[must_use]
    pub const fn of(address: std::net::IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    const fn header(self) -> u16 {
        match self {
            Self::V4 => 20,
            Self::V6 => 40,
        }
    }
}

/// What lies between a pod's packet and the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Wrapped in VXLAN.
    pub overlay: bool,
    /// Encrypted by WireGuard.
    pub wireguard: bool,
    /// The family of the outer addresses of both.
    pub underlay: Underlay,
}

/// A path too narrow to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a device MTU of {device_mtu} bytes leaves less than {IPV6_MIN_MTU} for pods ({path:?}); raise the underlay's MTU \
     or use direct routing or no encryption"
)]
pub struct TooNarrow {
    /// The underlay device's MTU.
    pub device_mtu: u16,
    /// The path.
    pub path: Path,
}

/// The largest packet that fits into VXLAN on a link of `mtu` bytes; 0 if none does.
#[must_use]
pub const fn inside_vxlan(mtu: u16, underlay: Underlay) -> u16 {
    mtu.saturating_sub(underlay.header() + UDP + VXLAN + INNER_ETHERNET)
}

/// The largest packet that fits into WireGuard on a link of `mtu` bytes, padding counted; 0 if none does. The MTU of the
/// WireGuard device.
#[must_use]
pub const fn inside_wireguard(mtu: u16, underlay: Underlay) -> u16 {
    let room = mtu.saturating_sub(underlay.header() + UDP + WIREGUARD_HEADER_AND_TAG);
    room - room % WIREGUARD_BLOCK
}

/// The largest packet of a pod that crosses `path` whole, on an underlay device of `device_mtu` bytes.
///
/// # Errors
/// [`TooNarrow`] below [`IPV6_MIN_MTU`].
pub const fn path_mtu(device_mtu: u16, path: Path) -> Result<u16, TooNarrow> {
    let after_wireguard =
        if path.wireguard { inside_wireguard(device_mtu, path.underlay) } else { device_mtu };
    let mtu = if path.overlay { inside_vxlan(after_wireguard, path.underlay) } else { after_wireguard };
    if mtu < IPV6_MIN_MTU { Err(TooNarrow { device_mtu, path }) } else { Ok(mtu) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mtu(device: u16, overlay: bool, wireguard: bool, underlay: Underlay) -> Result<u16, TooNarrow> {
        path_mtu(device, Path { overlay, wireguard, underlay })
    }

    #[test]
    fn each_path_of_a_1500_byte_link() {
        use Underlay::{V4, V6};
        assert_eq!(mtu(1500, false, false, V4), Ok(1500));
        assert_eq!(mtu(1500, true, false, V4), Ok(1450));
        assert_eq!(mtu(1500, true, false, V6), Ok(1430));
        assert_eq!(mtu(1500, false, true, V4), Ok(1440));
        assert_eq!(mtu(1500, false, true, V6), Ok(1408));
        assert_eq!(mtu(1500, true, true, V4), Ok(1390));
        assert_eq!(mtu(1500, true, true, V6), Ok(1338));
        assert_eq!(mtu(9000, true, true, V6), Ok(8842));
    }

    /// Rebuilds the packet on the wire from the layers' sizes and compares.
    #[test]
    fn the_largest_packet_fits_and_one_byte_more_does_not() {
        for device in (1400..=9000).step_by(7) {
            for underlay in [Underlay::V4, Underlay::V6] {
                let ip = if underlay == Underlay::V4 { 20u32 } else { 40 };
                for (overlay, wireguard) in [(true, false), (false, true), (true, true)] {
                    let Ok(largest) = mtu(device, overlay, wireguard, underlay) else { continue };
                    let wire = |packet: u32| {
                        let packet = if overlay { packet + 14 + 8 + 8 + ip } else { packet };
                        if wireguard { packet.next_multiple_of(16) + 32 + 8 + ip } else { packet }
                    };
                    assert!(wire(largest.into()) <= device.into(), "{device} {underlay:?}");
                    assert!(wire(u32::from(largest) + 1) > device.into(), "{device} {underlay:?}");
                }
            }
        }
    }

    #[test]
    fn paths_below_ipv6s_minimum_are_refused() {
        assert!(mtu(1280, true, false, Underlay::V4).is_err());
        assert!(mtu(0, true, true, Underlay::V6).is_err());
        assert!(mtu(1300, true, false, Underlay::V6).unwrap_err().to_string().contains("1300"));
    }
}
