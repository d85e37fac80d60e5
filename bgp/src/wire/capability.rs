//! Capabilities (RFC 5492): what each side says it can do. Unknown ones are kept as they came.

use serde::Serialize;

use super::cursor::{Cursor, len8};
use crate::family::Family;

const MULTIPROTOCOL: u8 = 1;
const ROUTE_REFRESH: u8 = 2;
const GRACEFUL_RESTART: u8 = 64;
const FOUR_OCTET_AS: u8 = 65;
/// The largest restart time the 12-bit field holds, in seconds.
pub(crate) const RESTART_TIME_MAX: u16 = 0x0fff;

/// One capability.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Capability {
    /// A family (RFC 4760).
    Multiprotocol(Family),
    /// ROUTE-REFRESH is understood (RFC 2918).
    RouteRefresh,
    /// Graceful restart (RFC 4724).
    GracefulRestart(GracefulRestartCapability),
    /// Four-octet AS numbers, with the speaker's own (RFC 6793).
    FourOctetAs(u32),
    /// Anything else, and families this speaker does not carry.
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

impl Capability {
    /// Decodes one; a known capability with a value that makes no sense is kept as unknown, which is the same as not having it.
    fn decode(code: u8, value: &[u8]) -> Self {
        let known = match code {
            MULTIPROTOCOL => multiprotocol(value),
            ROUTE_REFRESH if value.is_empty() => Some(Self::RouteRefresh),
            FOUR_OCTET_AS => value.try_into().ok().map(|asn| Self::FourOctetAs(u32::from_be_bytes(asn))),
            GRACEFUL_RESTART => graceful_restart(value),
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

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let mut value = Vec::new();
        let code = match self {
            Self::Multiprotocol(family) => {
                value.extend(family.afi().to_be_bytes());
                value.extend([0, family.safi()]);
                MULTIPROTOCOL
            }
            Self::RouteRefresh => ROUTE_REFRESH,
            Self::FourOctetAs(asn) => {
                value.extend(asn.to_be_bytes());
                FOUR_OCTET_AS
            }
            Self::GracefulRestart(restart) => {
                let flag = if restart.restarted { 0x8000 } else { 0 };
                value.extend((flag | restart.restart_time_secs.min(RESTART_TIME_MAX)).to_be_bytes());
                for entry in &restart.families {
                    value.extend(entry.family.afi().to_be_bytes());
                    value.extend([entry.family.safi(), if entry.forwarding_preserved { 0x80 } else { 0 }]);
                }
                GRACEFUL_RESTART
            }
            Self::Unknown { code, value: raw } => {
                value.extend(raw.iter().take(usize::from(u8::MAX)));
                *code
            }
        };
        out.extend([code, len8(value.len())]);
        out.extend(value);
    }
}

fn multiprotocol(value: &[u8]) -> Option<Capability> {
    let mut cursor = Cursor::new(value);
    let (afi, _reserved, safi) = (cursor.u16()?, cursor.u8()?, cursor.u8()?);
    if !cursor.is_empty() {
        return None;
    }
    Family::from_codes(afi, safi).map(Capability::Multiprotocol)
}

fn graceful_restart(value: &[u8]) -> Option<Capability> {
    let mut cursor = Cursor::new(value);
    let head = cursor.u16()?;
    let mut families = Vec::new();
    while !cursor.is_empty() {
        let (afi, safi, flags) = (cursor.u16()?, cursor.u8()?, cursor.u8()?);
        if let Some(family) = Family::from_codes(afi, safi) {
            families.push(GracefulRestartFamily { family, forwarding_preserved: flags & 0x80 != 0 });
        }
    }
    Some(Capability::GracefulRestart(GracefulRestartCapability {
        restarted: head & 0x8000 != 0,
        restart_time_secs: head & RESTART_TIME_MAX,
        families,
    }))
}
