//! Router advertisements and solicitations as bytes (RFC 4861 sections 4.1, 4.2, 6.1).

use std::net::Ipv6Addr;

pub(super) const SOLICITATION: u8 = 133;
pub(super) const ADVERTISEMENT: u8 = 134;
/// A packet that was forwarded has less: it cannot be from this link (RFC 4861 section 6.1.2).
pub(super) const HOP_LIMIT: u8 = 255;
/// Fixed bytes of both, before the options.
const ADVERTISEMENT_LEN: usize = 16;
const SOLICITATION_LEN: usize = 8;

/// What came, if it is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// A router says that it is there.
    Advertisement,
    /// Somebody asks routers to say so.
    Solicitation,
}

/// Our advertisement: a router of lifetime 0, which no host takes for its default router, and nothing else. The kernel fills in the checksum.
pub(super) const fn advertisement() -> [u8; ADVERTISEMENT_LEN] {
    [ADVERTISEMENT, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
}

/// Our solicitation, without options.
pub(super) const fn solicitation() -> [u8; SOLICITATION_LEN] {
    [SOLICITATION, 0, 0, 0, 0, 0, 0, 0]
}

/// Checks a message as RFC 4861 sections 6.1.1 and 6.1.2 ask; the kernel has checked the checksum.
pub(super) fn heard(source: Ipv6Addr, hop_limit: u8, bytes: &[u8]) -> Option<Heard> {
    let (what, fixed) = match *bytes.first()? {
        ADVERTISEMENT => (Heard::Advertisement, ADVERTISEMENT_LEN),
        SOLICITATION => (Heard::Solicitation, SOLICITATION_LEN),
        _ => return None,
    };
    let from_router = source.is_unicast_link_local() || what == Heard::Solicitation;
    let code = *bytes.get(1)?;
    if hop_limit != HOP_LIMIT || code != 0 || !from_router {
        return None;
    }
    let mut options = bytes.get(fixed..)?;
    while !options.is_empty() {
        // In units of eight octets, at least one.
        let len = usize::from(*options.get(1)?) * 8;
        if len == 0 {
            return None;
        }
        options = options.get(len..)?;
    }
    Some(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

    #[test]
    fn our_own_are_valid() {
        assert_eq!(heard(ROUTER, 255, &advertisement()), Some(Heard::Advertisement));
        assert_eq!(heard(ROUTER, 255, &solicitation()), Some(Heard::Solicitation));
        assert_eq!(heard(Ipv6Addr::UNSPECIFIED, 255, &solicitation()), Some(Heard::Solicitation));
    }

    #[test]
    fn what_is_not_from_this_link_or_malformed_is_dropped() {
        let plain = advertisement();
        let with = |more: &[u8]| [&plain[..], more].concat();
        let option = [1, 1, 2, 0, 0, 0, 0, 1];
        assert_eq!(heard(ROUTER, 255, &with(&option)), Some(Heard::Advertisement));
        let mut code = plain;
        code[1] = 1;
        for (source, hops, bytes) in [
            (ROUTER, 254, plain.to_vec()),
            ("2001:db8::1".parse().unwrap(), 255, plain.to_vec()),
            (Ipv6Addr::UNSPECIFIED, 255, plain.to_vec()),
            (ROUTER, 255, code.to_vec()),
            (ROUTER, 255, plain[..15].to_vec()),
            (ROUTER, 255, with(&[1])),
            (ROUTER, 255, with(&[1, 0, 0, 0, 0, 0, 0, 0])),
            (ROUTER, 255, with(&[1, 2, 0, 0, 0, 0, 0, 0])),
            (ROUTER, 255, vec![136, 0, 0, 0]),
            (ROUTER, 255, Vec::new()),
        ] {
            assert_eq!(heard(source, hops, &bytes), None, "{source} {hops} {bytes:?}");
        }
    }

    #[test]
    fn any_bytes_are_survived() {
        let mut random = crate::fsm::Jitter::new(7);
        for _ in 0..20_000 {
            let len = usize::try_from(random.next() % 64).unwrap();
            let mut bytes: Vec<u8> = (0..len).map(|_| random.next().to_le_bytes()[0]).collect();
            if let Some(first) = bytes.first_mut() {
                *first = 133 + *first % 2;
            }
            heard(ROUTER, 255, &bytes);
        }
    }
}
