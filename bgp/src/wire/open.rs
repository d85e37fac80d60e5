//! OPEN: who the speaker is and what it can do (RFC 4271 sections 4.2 and 6.2; extended parameters by RFC 9072).

use std::net::Ipv4Addr;

use super::as_path::AS_TRANS;
use super::capability::{AddPath, Capability, ExtendedNextHop, GracefulRestartCapability, LongLivedFamily};
use super::cursor::{Cursor, len8, len16};
use super::notification::{Notification, code};
use crate::family::Family;

const VERSION: u8 = 4;
const PARAMETER_CAPABILITIES: u8 = 2;
const PARAMETER_EXTENDED: u8 = 255;

/// A decoded OPEN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// The speaker's AS: the four-octet one if it was given.
    pub asn: u32,
    /// Proposed hold time in seconds; 0 or at least 3.
    pub hold_time_secs: u16,
    /// BGP identifier.
    pub router_id: Ipv4Addr,
    /// Capabilities in the order sent.
    pub capabilities: Vec<Capability>,
}

impl Open {
    /// Whether the speaker understands four-octet AS numbers.
    pub fn four_octet_as(&self) -> bool {
        self.capabilities.iter().any(|capability| matches!(capability, Capability::FourOctetAs(_)))
    }

    /// Whether the speaker understands ROUTE-REFRESH.
    pub fn route_refresh(&self) -> bool {
        self.capabilities.contains(&Capability::RouteRefresh)
    }

    /// Whether the speaker accepts messages over 4096 bytes (RFC 8654).
    pub fn extended_message(&self) -> bool {
        self.capabilities.contains(&Capability::ExtendedMessage)
    }

    /// Whether the speaker understands the demarcation of refreshes (RFC 7313).
    pub fn enhanced_refresh(&self) -> bool {
        self.capabilities.contains(&Capability::EnhancedRefresh)
    }

    /// What the speaker can do with several paths of a prefix (RFC 7911); the last entry of a family counts.
    pub fn add_path(&self, family: Family) -> Option<AddPath> {
        let lists = self.capabilities.iter().rev().filter_map(|capability| match capability {
            Capability::AddPath(list) => Some(list),
            _ => None,
        });
        lists.flat_map(|list| list.iter().rev()).find(|entry| entry.family == family).copied()
    }

    /// Whether routes of a family may come with IPv6 next hops (RFC 8950).
    pub fn extended_next_hop(&self, family: Family) -> bool {
        const AFI_IPV6: u16 = 2;
        let wanted = ExtendedNextHop { family, next_hop_afi: AFI_IPV6 };
        self.capabilities.iter().any(
            |capability| matches!(capability, Capability::ExtendedNextHop(list) if list.contains(&wanted)),
        )
    }

    /// The long-lived form of graceful restart for a family; the last entry counts. Without [`Self::graceful_restart`] it is void
    /// (RFC 9494 section 3.1).
    pub fn long_lived(&self, family: Family) -> Option<LongLivedFamily> {
        self.graceful_restart()?;
        let lists = self.capabilities.iter().rev().filter_map(|capability| match capability {
            Capability::LongLivedGracefulRestart(list) => Some(list),
            _ => None,
        });
        lists.flat_map(|list| list.iter().rev()).find(|entry| entry.family == family).copied()
    }

    /// Families offered. A speaker without any multiprotocol capability offers IPv4 unicast (RFC 4760 section 8).
    pub fn families(&self) -> Vec<Family> {
        const MULTIPROTOCOL: u8 = 1;
        let unknown_family = self
            .capabilities
            .iter()
            .any(|capability| matches!(capability, Capability::Unknown { code: MULTIPROTOCOL, .. }));
        let mut families: Vec<Family> = self
            .capabilities
            .iter()
            .filter_map(|capability| match capability {
                Capability::Multiprotocol(family) => Some(*family),
                _ => None,
            })
            .collect();
        if families.is_empty() && !unknown_family {
            families.push(Family::Ipv4Unicast);
        }
        families.sort_unstable();
        families.dedup();
        families
    }

    /// The graceful restart capability; the last one counts (RFC 4724 section 3).
    pub fn graceful_restart(&self) -> Option<&GracefulRestartCapability> {
        self.capabilities.iter().rev().find_map(|capability| match capability {
            Capability::GracefulRestart(restart) => Some(restart),
            _ => None,
        })
    }

    /// Decodes and checks everything that does not depend on configuration.
    pub(crate) fn decode(body: &[u8]) -> Result<Self, Notification> {
        let mut cursor = Cursor::new(body);
        let unspecific = || Notification::new(code::OPEN, 0);
        let version = cursor.u8().ok_or_else(unspecific)?;
        if version != VERSION {
            return Err(Notification::with_data(code::OPEN, 1, &u16::from(VERSION).to_be_bytes()));
        }
        let two_octet_asn = cursor.u16().ok_or_else(unspecific)?;
        let hold_time_secs = cursor.u16().ok_or_else(unspecific)?;
        let router_id = Ipv4Addr::from(cursor.u32().ok_or_else(unspecific)?);
        let capabilities = optional_parameters(&mut cursor)?;
        let asn = capabilities
            .iter()
            .find_map(|capability| match capability {
                Capability::FourOctetAs(asn) => Some(*asn),
                _ => None,
            })
            .unwrap_or_else(|| u32::from(two_octet_asn));
        if asn == 0 || two_octet_asn == 0 {
            return Err(Notification::with_data(code::OPEN, 2, &two_octet_asn.to_be_bytes()));
        }
        if matches!(hold_time_secs, 1 | 2) {
            return Err(Notification::with_data(code::OPEN, 6, &hold_time_secs.to_be_bytes()));
        }
        if router_id.is_unspecified() {
            return Err(Notification::with_data(code::OPEN, 3, &router_id.octets()));
        }
        Ok(Self { asn, hold_time_secs, router_id, capabilities })
    }

    pub(crate) fn encode_body(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        out.extend(u16::try_from(self.asn).unwrap_or(AS_TRANS).to_be_bytes());
        out.extend(self.hold_time_secs.to_be_bytes());
        out.extend(self.router_id.octets());
        let mut capabilities = Vec::new();
        self.capabilities.iter().for_each(|capability| capability.encode(&mut capabilities));
        if capabilities.is_empty() {
            out.push(0);
        } else if capabilities.len() + 2 <= usize::from(u8::MAX) {
            out.extend([len8(capabilities.len() + 2), PARAMETER_CAPABILITIES, len8(capabilities.len())]);
            out.extend(capabilities);
        } else {
            // RFC 9072: 255, 255, then two-octet lengths.
            out.extend([u8::MAX, PARAMETER_EXTENDED]);
            out.extend(len16(capabilities.len() + 3).to_be_bytes());
            out.push(PARAMETER_CAPABILITIES);
            out.extend(len16(capabilities.len()).to_be_bytes());
            out.extend(capabilities);
        }
    }
}

fn optional_parameters(cursor: &mut Cursor<'_>) -> Result<Vec<Capability>, Notification> {
    let malformed = || Notification::new(code::OPEN, 0);
    let mut len = usize::from(cursor.u8().ok_or_else(malformed)?);
    let extended = cursor.rest().first() == Some(&PARAMETER_EXTENDED) && len != 0;
    if extended {
        cursor.u8().ok_or_else(malformed)?;
        len = usize::from(cursor.u16().ok_or_else(malformed)?);
    }
    if cursor.rest().len() != len {
        return Err(malformed());
    }
    let mut capabilities = Vec::new();
    while !cursor.is_empty() {
        let kind = cursor.u8().ok_or_else(malformed)?;
        let len = if extended { cursor.u16().map(usize::from) } else { cursor.u8().map(usize::from) };
        let value = cursor.take(len.ok_or_else(malformed)?).ok_or_else(malformed)?;
        if kind != PARAMETER_CAPABILITIES {
            return Err(Notification::new(code::OPEN, 4));
        }
        Capability::decode_all(value, &mut capabilities).ok_or_else(malformed)?;
    }
    Ok(capabilities)
}

#[cfg(test)]
mod tests {
    use super::super::capability::GracefulRestartFamily;
    use super::*;

    fn sample() -> Open {
        Open {
            asn: 4_200_000_001,
            hold_time_secs: 90,
            router_id: Ipv4Addr::new(10, 0, 0, 1),
            capabilities: vec![
                Capability::Multiprotocol(Family::Ipv4Unicast),
                Capability::Multiprotocol(Family::Ipv6Unicast),
                Capability::RouteRefresh,
                Capability::FourOctetAs(4_200_000_001),
                Capability::GracefulRestart(GracefulRestartCapability {
                    restarted: true,
                    notification: true,
                    restart_time_secs: 120,
                    families: vec![GracefulRestartFamily {
                        family: Family::Ipv6Unicast,
                        forwarding_preserved: true,
                    }],
                }),
                Capability::Fqdn { host: "host".to_owned(), domain: "domain".to_owned() },
                Capability::ExtendedNextHop(vec![ExtendedNextHop {
                    family: Family::Ipv4Unicast,
                    next_hop_afi: 2,
                }]),
                Capability::Unknown { code: 201, value: vec![1, 2, 3] },
            ],
        }
    }

    #[test]
    fn open_round_trips_with_unknown_capabilities() {
        let mut body = Vec::new();
        sample().encode_body(&mut body);
        assert_eq!(body[1..3], AS_TRANS.to_be_bytes());
        assert_eq!(Open::decode(&body).unwrap(), sample());
    }

    #[test]
    fn more_than_255_bytes_use_extended_parameters() {
        let mut open = sample();
        open.capabilities.push(Capability::Unknown { code: 200, value: vec![7; 255] });
        let mut body = Vec::new();
        open.encode_body(&mut body);
        assert_eq!(body[9..11], [255, 255]);
        assert_eq!(Open::decode(&body).unwrap(), open);
    }

    #[test]
    fn each_bad_field_has_its_subcode() {
        let mut body = Vec::new();
        sample().encode_body(&mut body);
        let changed = |at: usize, bytes: &[u8]| {
            let mut wire = body.clone();
            wire[at..at + bytes.len()].copy_from_slice(bytes);
            Open::decode(&wire).unwrap_err()
        };
        assert_eq!(changed(0, &[3]), Notification::with_data(2, 1, &[0, 4]));
        assert_eq!(changed(1, &[0, 0]).subcode, 2);
        assert_eq!(changed(3, &[0, 2]).subcode, 6);
        assert_eq!(changed(5, &[0, 0, 0, 0]).subcode, 3);
        assert_eq!(changed(9, &[3]).subcode, 0);
        assert_eq!(changed(10, &[1]).subcode, 4);
    }

    #[test]
    fn no_multiprotocol_capability_means_ipv4() {
        let open = Open { capabilities: vec![Capability::RouteRefresh], ..sample() };
        assert_eq!(open.families(), [Family::Ipv4Unicast]);
        let other = Capability::Unknown { code: 1, value: vec![0, 99, 0, 1] };
        assert_eq!(Open { capabilities: vec![other], ..sample() }.families(), []);
    }

    #[test]
    fn what_was_offered_is_found() {
        let v4 = Family::Ipv4Unicast;
        let paths = AddPath { family: v4, receive: true, send: false };
        let stale = LongLivedFamily { family: v4, forwarding_preserved: false, stale_time_secs: 9 };
        let mut open = sample();
        open.capabilities.extend([
            Capability::ExtendedMessage,
            Capability::EnhancedRefresh,
            Capability::AddPath(vec![paths]),
            Capability::LongLivedGracefulRestart(vec![stale]),
        ]);
        assert!(open.extended_message() && open.enhanced_refresh() && open.extended_next_hop(v4));
        assert_eq!((open.add_path(v4), open.add_path(Family::Ipv6Unicast)), (Some(paths), None));
        assert_eq!(open.long_lived(v4), Some(stale));
        open.capabilities.retain(|capability| !matches!(capability, Capability::GracefulRestart(_)));
        assert_eq!(open.long_lived(v4), None, "void without graceful restart");
    }

    #[test]
    fn exactly_255_bytes_of_parameters_need_no_extension() {
        // RFC 9072 section 2: the plain form is kept as long as it can say it.
        let filled = |len| {
            let capabilities = vec![Capability::Unknown { code: 200, value: vec![7; len] }];
            let mut body = Vec::new();
            Open { capabilities, ..sample() }.encode_body(&mut body);
            body
        };
        assert_eq!(filled(251)[9..13], [255, 2, 253, 200]);
        assert_eq!(filled(252)[9..16], [255, 255, 1, 1, 2, 0, 254]);
        // The extended form is accepted whatever the plain length says, if it is not 0.
        let mut short = filled(252);
        short[9] = 4;
        assert_eq!(Open::decode(&short).unwrap().capabilities.len(), 1);
    }
}
