//! Capabilities (RFC 5492): what each side says it can do. Unknown ones are kept as they came and can be sent again.

use serde::Serialize;

use super::cursor::{Cursor, len8};
use crate::family::Family;

/// Capability codes (IANA "Capability Codes").
pub(crate) mod kind {
    pub(crate) const MULTIPROTOCOL: u8 = 1;
    pub(crate) const ROUTE_REFRESH: u8 = 2;
    pub(crate) const EXTENDED_NEXT_HOP: u8 = 5;
    pub(crate) const EXTENDED_MESSAGE: u8 = 6;
    pub(crate) const ROLE: u8 = 9;
    pub(crate) const GRACEFUL_RESTART: u8 = 64;
    pub(crate) const FOUR_OCTET_AS: u8 = 65;
    pub(crate) const ADD_PATH: u8 = 69;
    pub(crate) const ENHANCED_REFRESH: u8 = 70;
    pub(crate) const LONG_LIVED: u8 = 71;
    pub(crate) const FQDN: u8 = 73;
    pub(crate) const SOFTWARE_VERSION: u8 = 75;
}
/// The largest restart time the 12-bit field holds, in seconds.
pub(crate) const RESTART_TIME_MAX: u16 = 0x0fff;
/// The largest long-lived stale time the 24-bit field holds, in seconds.
pub(crate) const STALE_TIME_MAX: u32 = 0x00ff_ffff;
/// R bit (RFC 4724 section 3) and N bit (RFC 8538 section 2) of graceful restart.
const RESTARTED: u16 = 0x8000;
const NOTIFICATION: u16 = 0x4000;
/// F bit of a family in graceful restart and in its long-lived form.
const FORWARDING: u8 = 0x80;

/// One capability.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Capability {
    /// A family (RFC 4760).
    Multiprotocol(Family),
    /// ROUTE-REFRESH is understood (RFC 2918).
    RouteRefresh,
    /// Families whose routes may come with next hops of another family (RFC 8950).
    ExtendedNextHop(Vec<ExtendedNextHop>),
    /// Messages of up to 65535 bytes are accepted (RFC 8654).
    ExtendedMessage,
    /// What the speaker is to the other side (RFC 9234): 0 provider, 1 route server, 2 its client, 3 customer, 4 peer.
    Role(u8),
    /// Graceful restart (RFC 4724, RFC 8538).
    GracefulRestart(GracefulRestartCapability),
    /// Four-octet AS numbers, with the speaker's own (RFC 6793).
    FourOctetAs(u32),
    /// More than one path of a prefix (RFC 7911).
    AddPath(Vec<AddPath>),
    /// ROUTE-REFRESH says where a refresh begins and ends (RFC 7313).
    EnhancedRefresh,
    /// Long-lived graceful restart (RFC 9494).
    LongLivedGracefulRestart(Vec<LongLivedFamily>),
    /// Host and domain name of the speaker (draft-walton-bgp-hostname-capability), for operators' eyes only.
    Fqdn {
        /// Host name.
        host: String,
        /// Domain name, may be empty.
        domain: String,
    },
    /// Software and version (draft-ietf-idr-bgp-version), for operators' eyes only.
    SoftwareVersion(String),
    /// Anything else, and families and values this codec does not know.
    Unknown {
        /// Capability code.
        code: u8,
        /// Value as received.
        value: Vec<u8>,
    },
}

/// What the graceful restart capability says (RFC 4724 section 3).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GracefulRestartCapability {
    /// R bit: the speaker has restarted; do not wait for its End-of-RIB before sending.
    pub restarted: bool,
    /// N bit: routes are kept through a NOTIFICATION as well, unless it is a hard reset (RFC 8538).
    pub notification: bool,
    /// Seconds the other side should keep routes while the session is away (12 bits).
    pub restart_time_secs: u16,
    /// Families covered.
    pub families: Vec<GracefulRestartFamily>,
}

/// One family of the graceful restart capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct GracefulRestartFamily {
    /// The family.
    pub family: Family,
    /// F bit: packets were forwarded all the while.
    pub forwarding_preserved: bool,
}

/// One family of the long-lived graceful restart capability (RFC 9494 section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LongLivedFamily {
    /// The family.
    pub family: Family,
    /// F bit: packets were forwarded all the while.
    pub forwarding_preserved: bool,
    /// Seconds the other side should keep routes as long-lived stale (24 bits).
    pub stale_time_secs: u32,
}

/// One family of the ADD-PATH capability (RFC 7911 section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct AddPath {
    /// The family.
    pub family: Family,
    /// The speaker can receive several paths.
    pub receive: bool,
    /// The speaker would send several paths.
    pub send: bool,
}

/// One entry of the extended next hop capability (RFC 8950 section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ExtendedNextHop {
    /// Routes of this family
    pub family: Family,
    /// may have next hops of this AFI (2 is IPv6).
    pub next_hop_afi: u16,
}

impl Capability {
    /// Decodes one; a known capability with a value that makes no sense is kept as unknown, which is the same as not having it.
    fn decode(code: u8, value: &[u8]) -> Self {
        let known = match code {
            kind::MULTIPROTOCOL => multiprotocol(value),
            kind::ROUTE_REFRESH if value.is_empty() => Some(Self::RouteRefresh),
            kind::EXTENDED_NEXT_HOP => extended_next_hop(value),
            kind::EXTENDED_MESSAGE if value.is_empty() => Some(Self::ExtendedMessage),
            kind::ROLE => <[u8; 1]>::try_from(value).ok().map(|[role]| Self::Role(role)),
            kind::FOUR_OCTET_AS => {
                value.try_into().ok().map(|asn| Self::FourOctetAs(u32::from_be_bytes(asn)))
            }
            kind::GRACEFUL_RESTART => graceful_restart(value),
            kind::ADD_PATH => add_path(value),
            kind::ENHANCED_REFRESH if value.is_empty() => Some(Self::EnhancedRefresh),
            kind::LONG_LIVED => long_lived(value),
            kind::FQDN => fqdn(value),
            kind::SOFTWARE_VERSION => software_version(value),
            _ => None,
        };
        known.unwrap_or_else(|| Self::Unknown { code, value: value.to_vec() })
    }

    /// Decodes the value of a Capabilities optional parameter. `None` if a length overruns.
    pub(crate) fn decode_all(bytes: &[u8], out: &mut Vec<Self>) -> Option<()> {
        let mut cursor = Cursor::new(bytes);
        while !cursor.is_empty() {
            let code = cursor.u8()?;
            let len = usize::from(cursor.u8()?);
            out.push(Self::decode(code, cursor.take(len)?));
        }
        Some(())
    }

    /// The capability's code.
    pub const fn code(&self) -> u8 {
        match self {
            Self::Multiprotocol(_) => kind::MULTIPROTOCOL,
            Self::RouteRefresh => kind::ROUTE_REFRESH,
            Self::ExtendedNextHop(_) => kind::EXTENDED_NEXT_HOP,
            Self::ExtendedMessage => kind::EXTENDED_MESSAGE,
            Self::Role(_) => kind::ROLE,
            Self::GracefulRestart(_) => kind::GRACEFUL_RESTART,
            Self::FourOctetAs(_) => kind::FOUR_OCTET_AS,
            Self::AddPath(_) => kind::ADD_PATH,
            Self::EnhancedRefresh => kind::ENHANCED_REFRESH,
            Self::LongLivedGracefulRestart(_) => kind::LONG_LIVED,
            Self::Fqdn { .. } => kind::FQDN,
            Self::SoftwareVersion(_) => kind::SOFTWARE_VERSION,
            Self::Unknown { code, .. } => *code,
        }
    }

    /// Appends code, length and value: also the data of a NOTIFICATION about an unsupported capability (RFC 5492 section 5).
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut value = Vec::new();
        self.encode_value(&mut value);
        value.truncate(usize::from(u8::MAX));
        out.extend([self.code(), len8(value.len())]);
        out.extend(value);
    }

    fn encode_value(&self, out: &mut Vec<u8>) {
        match self {
            Self::RouteRefresh | Self::ExtendedMessage | Self::EnhancedRefresh => {}
            Self::Multiprotocol(family) => {
                out.extend(family.afi().to_be_bytes());
                out.extend([0, family.safi()]);
            }
            Self::ExtendedNextHop(entries) => {
                for entry in entries.iter().take(usize::from(u8::MAX) / 6) {
                    out.extend(entry.family.afi().to_be_bytes());
                    out.extend([0, entry.family.safi()]);
                    out.extend(entry.next_hop_afi.to_be_bytes());
                }
            }
            Self::Role(role) => out.push(*role),
            Self::FourOctetAs(asn) => out.extend(asn.to_be_bytes()),
            Self::GracefulRestart(restart) => encode_restart(restart, out),
            Self::AddPath(entries) => {
                for entry in entries.iter().take(usize::from(u8::MAX) / 4) {
                    family(entry.family, out);
                    out.push(u8::from(entry.receive) | u8::from(entry.send) << 1);
                }
            }
            Self::LongLivedGracefulRestart(entries) => {
                for entry in entries.iter().take(usize::from(u8::MAX) / 7) {
                    family(entry.family, out);
                    out.push(if entry.forwarding_preserved { FORWARDING } else { 0 });
                    let [_, time @ ..] = entry.stale_time_secs.min(STALE_TIME_MAX).to_be_bytes();
                    out.extend(time);
                }
            }
            Self::Fqdn { host, domain } => {
                // Both with their lengths must fit the value: 64 bytes of host are what a node's name may have (RFC 1035: 63).
                let (host, domain) = (cut(host, 64), cut(domain, usize::from(u8::MAX) - 66));
                for name in [host, domain] {
                    out.push(len8(name.len()));
                    out.extend(name.as_bytes());
                }
            }
            Self::SoftwareVersion(version) => {
                let version = cut(version, usize::from(u8::MAX) - 1);
                out.push(len8(version.len()));
                out.extend(version.as_bytes());
            }
            Self::Unknown { value, .. } => out.extend(value),
        }
    }
}

fn family(family: Family, out: &mut Vec<u8>) {
    out.extend(family.afi().to_be_bytes());
    out.push(family.safi());
}

/// The longest beginning of a text that has at most `max` bytes.
fn cut(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

fn encode_restart(restart: &GracefulRestartCapability, out: &mut Vec<u8>) {
    let mut head = restart.restart_time_secs.min(RESTART_TIME_MAX);
    head |= if restart.restarted { RESTARTED } else { 0 };
    head |= if restart.notification { NOTIFICATION } else { 0 };
    out.extend(head.to_be_bytes());
    for entry in restart.families.iter().take((usize::from(u8::MAX) - 2) / 4) {
        family(entry.family, out);
        out.push(if entry.forwarding_preserved { FORWARDING } else { 0 });
    }
}

fn multiprotocol(value: &[u8]) -> Option<Capability> {
    let mut cursor = Cursor::new(value);
    // RFC 4760 section 8: the reserved octet is ignored.
    let (afi, _reserved, safi) = (cursor.u16()?, cursor.u8()?, cursor.u8()?);
    if !cursor.is_empty() {
        return None;
    }
    Family::from_codes(afi, safi).map(Capability::Multiprotocol)
}

/// Reads entries to the end; `None` if one is cut off. Families the codec does not know are left out, as each RFC asks.
fn entries<T>(
    cursor: &mut Cursor<'_>,
    mut entry: impl FnMut(&mut Cursor<'_>) -> Option<Option<T>>,
) -> Option<Vec<T>> {
    let mut list = Vec::new();
    while !cursor.is_empty() {
        list.extend(entry(cursor)?);
    }
    Some(list)
}

fn known_family(cursor: &mut Cursor<'_>) -> Option<Option<Family>> {
    let (afi, safi) = (cursor.u16()?, cursor.u8()?);
    Some(Family::from_codes(afi, safi))
}

fn extended_next_hop(value: &[u8]) -> Option<Capability> {
    let list = entries(&mut Cursor::new(value), |cursor| {
        let (afi, safi, next_hop_afi) = (cursor.u16()?, cursor.u16()?, cursor.u16()?);
        let family = u8::try_from(safi).ok().and_then(|safi| Family::from_codes(afi, safi));
        Some(family.map(|family| ExtendedNextHop { family, next_hop_afi }))
    })?;
    Some(Capability::ExtendedNextHop(list))
}

fn graceful_restart(value: &[u8]) -> Option<Capability> {
    let mut cursor = Cursor::new(value);
    let head = cursor.u16()?;
    let families = entries(&mut cursor, |cursor| {
        let (family, flags) = (known_family(cursor)?, cursor.u8()?);
        let forwarding_preserved = flags & FORWARDING != 0;
        Some(family.map(|family| GracefulRestartFamily { family, forwarding_preserved }))
    })?;
    Some(Capability::GracefulRestart(GracefulRestartCapability {
        restarted: head & RESTARTED != 0,
        notification: head & NOTIFICATION != 0,
        restart_time_secs: head & RESTART_TIME_MAX,
        families,
    }))
}

fn add_path(value: &[u8]) -> Option<Capability> {
    let list = entries(&mut Cursor::new(value), |cursor| {
        let (family, mode) = (known_family(cursor)?, cursor.u8()?);
        // RFC 7911 section 4: an entry with another value is ignored.
        let entry = family.filter(|_| matches!(mode, 1..=3));
        Some(entry.map(|family| AddPath { family, receive: mode & 1 != 0, send: mode & 2 != 0 }))
    })?;
    Some(Capability::AddPath(list))
}

fn long_lived(value: &[u8]) -> Option<Capability> {
    let list = entries(&mut Cursor::new(value), |cursor| {
        let (family, flags) = (known_family(cursor)?, cursor.u8()?);
        let [high, middle, low] = cursor.array::<3>()?;
        let stale_time_secs = u32::from_be_bytes([0, high, middle, low]);
        let forwarding_preserved = flags & FORWARDING != 0;
        Some(family.map(|family| LongLivedFamily { family, forwarding_preserved, stale_time_secs }))
    })?;
    Some(Capability::LongLivedGracefulRestart(list))
}

fn text(cursor: &mut Cursor<'_>) -> Option<String> {
    let len = usize::from(cursor.u8()?);
    String::from_utf8(cursor.take(len)?.to_vec()).ok()
}

fn fqdn(value: &[u8]) -> Option<Capability> {
    let mut cursor = Cursor::new(value);
    let (host, domain) = (text(&mut cursor)?, text(&mut cursor)?);
    (cursor.is_empty() && host.len() <= 64).then_some(Capability::Fqdn { host, domain })
}

fn software_version(value: &[u8]) -> Option<Capability> {
    let mut cursor = Cursor::new(value);
    let version = text(&mut cursor)?;
    cursor.is_empty().then_some(Capability::SoftwareVersion(version))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a capability is on the wire and what it says: both ways.
    fn golden(wire: &[u8], said: &Capability) {
        let mut decoded = Vec::new();
        Capability::decode_all(wire, &mut decoded).unwrap();
        assert_eq!(decoded, std::slice::from_ref(said));
        let mut encoded = Vec::new();
        said.encode(&mut encoded);
        assert_eq!(encoded, wire, "{said:?}");
    }

    #[test]
    fn each_capability_has_its_bytes() {
        let v4 = Family::Ipv4Unicast;
        golden(&[1, 4, 0, 25, 0, 70], &Capability::Multiprotocol(Family::L2vpnEvpn));
        golden(&[2, 0], &Capability::RouteRefresh);
        let hop = ExtendedNextHop { family: v4, next_hop_afi: 2 };
        golden(&[5, 6, 0, 1, 0, 1, 0, 2], &Capability::ExtendedNextHop(vec![hop]));
        golden(&[6, 0], &Capability::ExtendedMessage);
        golden(&[9, 1, 3], &Capability::Role(3));
        let restart = GracefulRestartCapability {
            restarted: true,
            notification: true,
            restart_time_secs: 120,
            families: vec![GracefulRestartFamily { family: v4, forwarding_preserved: true }],
        };
        golden(&[64, 6, 0xc0, 120, 0, 1, 1, 0x80], &Capability::GracefulRestart(restart));
        golden(&[65, 4, 0, 1, 0x11, 0x70], &Capability::FourOctetAs(70_000));
        let both = AddPath { family: v4, receive: true, send: true };
        let send = AddPath { family: Family::Ipv6Unicast, receive: false, send: true };
        golden(&[69, 8, 0, 1, 1, 3, 0, 2, 1, 2], &Capability::AddPath(vec![both, send]));
        golden(&[70, 0], &Capability::EnhancedRefresh);
        let stale = LongLivedFamily { family: v4, forwarding_preserved: true, stale_time_secs: 86_400 };
        golden(&[71, 7, 0, 1, 1, 0x80, 1, 0x51, 0x80], &Capability::LongLivedGracefulRestart(vec![stale]));
        let name = Capability::Fqdn { host: "tor1".to_owned(), domain: "lab".to_owned() };
        golden(b"\x49\x09\x04tor1\x03lab", &name);
        golden(b"\x4b\x05\x04v1.2", &Capability::SoftwareVersion("v1.2".to_owned()));
        golden(&[200, 2, 7, 8], &Capability::Unknown { code: 200, value: vec![7, 8] });
    }

    #[test]
    fn values_that_make_no_sense_are_kept_raw() {
        for wire in [
            &[1u8, 3, 0, 1, 0][..],
            &[1, 4, 0, 99, 0, 1],
            &[2, 1, 0],
            &[5, 5, 0, 1, 0, 1, 0],
            &[6, 1, 0],
            &[9, 0],
            &[64, 1, 0],
            &[64, 3, 0, 120, 0],
            &[65, 3, 0, 0, 1],
            &[69, 3, 0, 1, 1],
            &[71, 4, 0, 1, 1, 0],
            &[73, 3, 9, b'a', 0],
            &[73, 2, 0, 9],
            &[75, 2, 1, 0xff],
        ] {
            let code = wire[0];
            golden(wire, &Capability::Unknown { code, value: wire[2..].to_vec() });
        }
    }

    #[test]
    fn entries_of_unknown_families_and_modes_are_left_out() {
        let mut list = Vec::new();
        Capability::decode_all(&[69, 8, 0, 1, 1, 4, 0, 99, 1, 3], &mut list).unwrap();
        assert_eq!(list, [Capability::AddPath(vec![])]);
        list.clear();
        Capability::decode_all(&[64, 10, 0, 9, 0, 99, 1, 0, 0, 2, 1, 0], &mut list).unwrap();
        let [Capability::GracefulRestart(restart)] = &list[..] else { panic!("{list:?}") };
        assert_eq!((restart.restart_time_secs, restart.families.len()), (9, 1));
    }

    #[test]
    fn names_too_long_are_cut_and_stay_readable() {
        let long = Capability::Fqdn { host: "ü".repeat(200), domain: "d".repeat(300) };
        let mut wire = Vec::new();
        long.encode(&mut wire);
        let mut back = Vec::new();
        Capability::decode_all(&wire, &mut back).unwrap();
        assert!(
            matches!(&back[..], [Capability::Fqdn { host, .. }] if host.chars().count() == 32),
            "{back:?}"
        );
    }
}
