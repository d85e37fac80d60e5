//! Messages by their bytes: nothing here comes from the encoder under test.

/// AS of the peer that is played here.
pub const PEER_ASN: u16 = 65001;
/// AS of the speaker.
pub const OWN_ASN: u16 = 65111;

pub const ORIGIN: &[u8] = &[0x40, 1, 1, 0];
/// 65001
pub const AS_PATH: &[u8] = &[0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xe9];
pub const NEXT_HOP: &[u8] = &[0x40, 3, 4, 10, 0, 0, 2];
/// 2001:db8:1::/48 by 2001:db8::1
pub const MP_REACH: &[u8] = &[
    0x80, 14, 28, 0, 2, 1, 16, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 48, 0x20, 1, 0xd,
    0xb8, 0, 1,
];
/// 10.1.0.0/16
pub const NLRI: &[u8] = &[16, 10, 1];

pub const MULTIPROTOCOL_V4: &[u8] = &[1, 4, 0, 1, 0, 1];
pub const MULTIPROTOCOL_V6: &[u8] = &[1, 4, 0, 2, 0, 1];

/// A message with the right marker and length.
pub fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let len = u16::try_from(19 + body.len()).unwrap().to_be_bytes();
    [&[0xff; 16][..], &len, &[kind], body].concat()
}

/// A KEEPALIVE whose header has other bytes from `at` on.
pub fn header(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut wire = message(4, &[]);
    wire[at..at + bytes.len()].copy_from_slice(bytes);
    wire
}

/// A message that says it is so long, with as many bytes.
pub fn of_length(kind: u8, len: u16) -> Vec<u8> {
    let mut wire = header(16, &len.to_be_bytes());
    wire[18] = kind;
    wire.resize(usize::from(len).max(19), 0);
    wire
}

/// The fields of an OPEN.
#[derive(Clone)]
pub struct Opening {
    pub version: u8,
    pub asn: u16,
    pub hold: u16,
    pub router_id: [u8; 4],
    pub capabilities: Vec<u8>,
}

impl Opening {
    /// Both families, route refresh with its ends marked, and four-octet AS numbers.
    pub fn new(asn: u16) -> Self {
        let number = asn.to_be_bytes();
        let four = [65, 4, 0, 0, number[0], number[1]];
        let capabilities = [MULTIPROTOCOL_V4, MULTIPROTOCOL_V6, &[2, 0], &[70, 0], &four].concat();
        Self { version: 4, asn, hold: 90, router_id: [10, 0, 0, 2], capabilities }
    }

    pub fn wire(&self) -> Vec<u8> {
        let len = u8::try_from(self.capabilities.len()).unwrap();
        let parameters = if len == 0 { vec![] } else { [&[2, len][..], &self.capabilities].concat() };
        self.with_parameters(u8::try_from(parameters.len()).unwrap(), &parameters)
    }

    pub fn with_parameters(&self, len: u8, parameters: &[u8]) -> Vec<u8> {
        let (asn, hold) = (self.asn.to_be_bytes(), self.hold.to_be_bytes());
        message(1, &[&[self.version][..], &asn, &hold, &self.router_id, &[len], parameters].concat())
    }
}

/// An UPDATE whose lengths fit.
pub fn update(withdrawn: &[u8], attributes: &[&[u8]], nlri: &[u8]) -> Vec<u8> {
    let attributes = attributes.concat();
    let len = |field: &[u8]| u16::try_from(field.len()).unwrap().to_be_bytes();
    message(2, &[&len(withdrawn)[..], withdrawn, &len(&attributes), &attributes, nlri].concat())
}

/// 10.1.0.0/16 with one more attribute, or another one in place of its own.
pub fn route_with(attribute: &[u8]) -> Vec<u8> {
    let own = [ORIGIN, AS_PATH, NEXT_HOP].into_iter().filter(|own| attribute.get(1) != Some(&own[1]));
    let attributes: Vec<&[u8]> = own.chain([attribute]).collect();
    update(&[], &attributes, NLRI)
}

/// A NOTIFICATION.
pub fn notification(code: u8, subcode: u8, data: &[u8]) -> Vec<u8> {
    message(3, &[&[code, subcode][..], data].concat())
}

/// A ROUTE-REFRESH for IPv6 unicast, of a subtype.
pub fn refresh(subtype: u8) -> Vec<u8> {
    message(5, &[0, 2, subtype, 1])
}
