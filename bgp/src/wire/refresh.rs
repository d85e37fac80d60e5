//! ROUTE-REFRESH: asking for routes again, and saying where the answer begins and ends (RFC 2918, RFC 7313, RFC 5291).

use super::cursor::Cursor;
use super::notification::{Notification, code};
use super::{MARKER, MessageType};
use crate::family::Family;

/// Bytes of the body without an ORF.
const BODY_LEN: usize = 4;
const BEGIN: u8 = 1;
const END: u8 = 2;

/// What a ROUTE-REFRESH says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RefreshKind {
    /// Send all routes again (RFC 2918).
    Request,
    /// All routes follow; what is not among them is gone (RFC 7313 BoRR).
    Begin,
    /// All routes have been sent again (RFC 7313 EoRR).
    End,
    /// A request with outbound route filters, which this speaker never offers (RFC 5291): the filters as they came.
    Filters(Vec<u8>),
    /// A subtype this codec does not know; to be ignored (RFC 7313 section 5).
    Unknown(u8),
}

/// A decoded ROUTE-REFRESH.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteRefresh {
    /// Address family identifier.
    pub afi: u16,
    /// Subsequent address family identifier.
    pub safi: u8,
    /// What is said about the family.
    pub kind: RefreshKind,
}

impl RouteRefresh {
    /// Says something about a family.
    pub const fn new(family: Family, kind: RefreshKind) -> Self {
        Self { afi: family.afi(), safi: family.safi(), kind }
    }

    /// The family, if this codec knows it. Others are ignored (RFC 2918 section 4).
    pub const fn family(&self) -> Option<Family> {
        Family::from_codes(self.afi, self.safi)
    }

    /// The family whose routes are asked for. Filters were not offered, so they filter nothing.
    pub const fn requested(&self) -> Option<Family> {
        match self.kind {
            RefreshKind::Request | RefreshKind::Filters(_) => self.family(),
            _ => None,
        }
    }

    /// Decodes a body. The data of an error is the whole message (RFC 7313 section 5).
    pub(crate) fn decode(body: &[u8]) -> Result<Self, Notification> {
        let bad_length = || {
            let total = u16::try_from(super::HEADER_LEN + body.len()).unwrap_or(u16::MAX);
            let mut message = MARKER.to_vec();
            message.extend(total.to_be_bytes());
            message.push(MessageType::RouteRefresh.code());
            message.extend(body);
            Notification::with_data(code::ROUTE_REFRESH, 1, &message)
        };
        let mut cursor = Cursor::new(body);
        let (Some(afi), Some(subtype), Some(safi)) = (cursor.u16(), cursor.u8(), cursor.u8()) else {
            return Err(bad_length());
        };
        let kind = match subtype {
            0 if cursor.is_empty() => RefreshKind::Request,
            0 => RefreshKind::Filters(cursor.rest().to_vec()),
            BEGIN | END if body.len() != BODY_LEN => return Err(bad_length()),
            BEGIN => RefreshKind::Begin,
            END => RefreshKind::End,
            other => RefreshKind::Unknown(other),
        };
        Ok(Self { afi, safi, kind })
    }

    pub(crate) fn encode_body(&self, out: &mut Vec<u8>) {
        let (subtype, filters): (u8, &[u8]) = match &self.kind {
            RefreshKind::Request => (0, &[]),
            RefreshKind::Begin => (BEGIN, &[]),
            RefreshKind::End => (END, &[]),
            RefreshKind::Filters(filters) => (0, filters),
            RefreshKind::Unknown(subtype) => (*subtype, &[]),
        };
        out.extend(self.afi.to_be_bytes());
        out.extend([subtype, self.safi]);
        let room = super::MESSAGE_MAX - super::HEADER_LEN - BODY_LEN;
        out.extend(filters.iter().take(room));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subtypes_have_their_bytes() {
        let family = Family::Ipv6Unicast;
        for (kind, wire) in [
            (RefreshKind::Request, &[0u8, 2, 0, 1][..]),
            (RefreshKind::Begin, &[0, 2, 1, 1]),
            (RefreshKind::End, &[0, 2, 2, 1]),
            (RefreshKind::Filters(vec![1, 2, 3]), &[0, 2, 0, 1, 1, 2, 3]),
            (RefreshKind::Unknown(9), &[0, 2, 9, 1]),
        ] {
            let message = RouteRefresh::new(family, kind);
            let mut body = Vec::new();
            message.encode_body(&mut body);
            assert_eq!(body, wire);
            assert_eq!(RouteRefresh::decode(wire), Ok(message));
        }
    }

    #[test]
    fn only_requests_ask_and_only_for_families_we_know() {
        let asked = |body: &[u8]| RouteRefresh::decode(body).unwrap().requested();
        assert_eq!(asked(&[0, 1, 0, 1]), Some(Family::Ipv4Unicast));
        assert_eq!(asked(&[0, 1, 0, 1, 1, 64, 0, 0]), Some(Family::Ipv4Unicast));
        assert_eq!(asked(&[0, 1, 1, 1]), None);
        assert_eq!(asked(&[0, 99, 0, 1]), None);
    }

    #[test]
    fn a_demarcation_of_the_wrong_length_is_told_whole() {
        let error = RouteRefresh::decode(&[0, 1, 1, 1, 7]).unwrap_err();
        assert_eq!((error.code, error.subcode), (7, 1));
        let mut message = vec![0xff; 16];
        message.extend([0, 24, 5, 0, 1, 1, 1, 7]);
        assert_eq!(error.data, message);
    }
}
