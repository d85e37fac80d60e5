//! What conditions compare with, as operators write it: number spans, prefix ranges, communities with wildcards.

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::config::AllowedPrefix;
use crate::wire::{Community, LargeCommunity};

/// Reads from and writes to a string by [`FromStr`] and [`fmt::Display`].
macro_rules! as_text {
    ($($name:ident),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                text(deserializer)?.parse().map_err(D::Error::custom)
            }
        }
    )*};
}

as_text!(
    AsSpan,
    PrefixRange,
    CommunityPattern,
    LargeCommunityPattern,
    ExtendedCommunityPattern,
    ExtendedCommunity
);

/// A string, or a number where a YAML author left the quotes out.
pub(super) fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Word {
        Text(String),
        Number(u64),
    }
    Ok(match Word::deserialize(deserializer)? {
        Word::Text(text) => text,
        Word::Number(number) => number.to_string(),
    })
}

/// Numbers from `min` to `max`, written `5`, `5-9` or `*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Span {
    min: u32,
    max: u32,
}

impl Span {
    const ALL: Self = Self { min: 0, max: u32::MAX };

    const fn contains(self, value: u32) -> bool {
        self.min <= value && value <= self.max
    }

    fn parse(text: &str, most: u32) -> Option<Self> {
        if text == "*" {
            return Some(Self::ALL);
        }
        let number = |text: &str| text.parse::<u32>().ok().filter(|number| *number <= most);
        let (min, max) = match text.split_once('-') {
            Some((min, max)) => (number(min)?, number(max)?),
            None => (number(text)?, number(text)?),
        };
        (min <= max).then_some(Self { min, max })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self { min: 0, max: u32::MAX } => f.write_str("*"),
            Self { min, max } if min == max => write!(f, "{min}"),
            Self { min, max } => write!(f, "{min}-{max}"),
        }
    }
}

/// AS numbers: one (`65000`), a range (`64512-65534`) or all (`*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AsSpan(Span);

impl AsSpan {
    /// Whether an AS is among them.
    pub const fn contains(self, asn: u32) -> bool {
        self.0.contains(asn)
    }
}

impl From<u32> for AsSpan {
    fn from(asn: u32) -> Self {
        Self(Span { min: asn, max: asn })
    }
}

impl FromStr for AsSpan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Span::parse(text, u32::MAX).map(Self).ok_or_else(|| {
            format!("{text:?} is no AS number: write one such as 65000, a range such as 64512-65534, or *")
        })
    }
}

impl fmt::Display for AsSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Prefixes within one, of certain lengths: `10.0.0.0/8` alone, `10.0.0.0/8 ge 16 le 24`, `10.0.0.0/8 orlonger`. As usual `ge` alone reaches up to the
/// longest length, `le` alone down to the prefix's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixRange(pub AllowedPrefix);

impl From<AllowedPrefix> for PrefixRange {
    fn from(range: AllowedPrefix) -> Self {
        Self(AllowedPrefix { prefix: range.prefix.trunc(), ..range })
    }
}

impl FromStr for PrefixRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad =
            || format!("{text:?} is no prefix range: write PREFIX, PREFIX ge N le M, or PREFIX orlonger");
        let mut words = text.split_whitespace();
        let prefix: IpNet = words.next().and_then(|word| word.parse().ok()).ok_or_else(bad)?;
        let prefix = prefix.trunc();
        let (own, longest) = (prefix.prefix_len(), prefix.max_prefix_len());
        let (mut min, mut max) = (None, None);
        while let Some(word) = words.next() {
            let bound = match word {
                "orlonger" => {
                    max = Some(longest);
                    continue;
                }
                "ge" => &mut min,
                "le" => &mut max,
                _ => return Err(bad()),
            };
            *bound = Some(words.next().and_then(|word| word.parse().ok()).ok_or_else(bad)?);
        }
        let min_len = min.unwrap_or(own);
        let max_len = max.unwrap_or(if min.is_some() { longest } else { own });
        if own <= min_len && min_len <= max_len && max_len <= longest {
            Ok(Self(AllowedPrefix { prefix, min_len, max_len }))
        } else {
            Err(format!("{text:?}: lengths must rise from /{own} over ge and le to at most /{longest}"))
        }
    }
}

impl fmt::Display for PrefixRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AllowedPrefix { prefix, min_len, max_len } = self.0;
        let (own, longest) = (prefix.prefix_len(), prefix.max_prefix_len());
        write!(f, "{prefix}")?;
        if min_len != own {
            write!(f, " ge {min_len}")?;
        }
        let implied = if min_len == own { own } else { longest };
        if max_len != implied {
            write!(f, " le {max_len}")?;
        }
        Ok(())
    }
}

/// Standard communities (RFC 1997): `65000:1`, `65000:*`, `65000:100-199`, `*:666`, or a well-known name such as `no-export`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommunityPattern {
    high: Span,
    low: Span,
}

impl CommunityPattern {
    /// Whether it stands for a community.
    pub const fn matches(&self, community: Community) -> bool {
        self.high.contains(community.0 >> 16) && self.low.contains(community.0 & 0xffff)
    }
}

impl From<Community> for CommunityPattern {
    fn from(Community(value): Community) -> Self {
        let exact = |value| Span { min: value, max: value };
        Self { high: exact(value >> 16), low: exact(value & 0xffff) }
    }
}

impl FromStr for CommunityPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(community) = text.parse::<Community>() {
            return Ok(community.into());
        }
        let span = |part: &str| Span::parse(part, u32::from(u16::MAX));
        let parsed =
            text.split_once(':').and_then(|(high, low)| Some(Self { high: span(high)?, low: span(low)? }));
        parsed.ok_or_else(|| {
            format!("{text:?} is no community: write ASN:VALUE, each a number up to 65535, a range or *, or a well-known name")
        })
    }
}

impl fmt::Display for CommunityPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { high, low } = self;
        if high.min == high.max && low.min == low.max {
            return Community((high.min << 16) | (low.min & 0xffff)).fmt(f);
        }
        write!(f, "{high}:{low}")
    }
}

/// Large communities (RFC 8092): `65000:1:*`, each part a number, a range or `*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LargeCommunityPattern([Span; 3]);

impl LargeCommunityPattern {
    /// Whether it stands for a community.
    pub fn matches(&self, community: &LargeCommunity) -> bool {
        let [global, local1, local2] = self.0;
        global.contains(community.global)
            && local1.contains(community.local1)
            && local2.contains(community.local2)
    }
}

impl From<LargeCommunity> for LargeCommunityPattern {
    fn from(community: LargeCommunity) -> Self {
        let parts = [community.global, community.local1, community.local2];
        Self(parts.map(|value| Span { min: value, max: value }))
    }
}

impl FromStr for LargeCommunityPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Option<Vec<Span>> = text.split(':').map(|part| Span::parse(part, u32::MAX)).collect();
        parts.and_then(|parts| parts.try_into().ok()).map(Self).ok_or_else(|| {
            format!("{text:?} is no large community: write ASN:VALUE:VALUE, each a number, a range or *")
        })
    }
}

impl fmt::Display for LargeCommunityPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [global, local1, local2] = &self.0;
        write!(f, "{global}:{local1}:{local2}")
    }
}

/// What the administrator field of an extended community is (RFC 4360 section 3.1, RFC 5668).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Administrator {
    Asn(u32),
    Address(std::net::Ipv4Addr),
}

/// Kinds of extended communities with a name: sub-type and name.
const EXTENDED_KINDS: [(u8, &str); 3] = [(0x02, "rt"), (0x03, "soo"), (0x04, "lb")];
/// Types (RFC 4360 section 3): the administrator is a two-octet AS, an address, a four-octet AS; and the bit that keeps it in its AS.
const TWO_OCTET: u8 = 0;
const ADDRESS: u8 = 1;
const FOUR_OCTET: u8 = 2;
const NON_TRANSITIVE: u8 = 0x40;

/// An extended community (RFC 4360): `rt:65000:1`, `soo:192.0.2.1:7`, `lb:65000:125000000` (link bandwidth in bytes per second), or all eight octets as
/// `0x0002fde800000001`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExtendedCommunity(pub u64);

impl ExtendedCommunity {
    /// Type, sub-type, administrator and local part, if it is of a kind that has them.
    fn parts(self) -> Option<(u8, u8, Administrator, u32)> {
        let [kind, subtype, a, b, c, d, e, f] = self.0.to_be_bytes();
        let wide = u32::from_be_bytes([a, b, c, d]);
        Some(match kind & !NON_TRANSITIVE {
            TWO_OCTET => {
                let asn = Administrator::Asn(u32::from(u16::from_be_bytes([a, b])));
                (kind, subtype, asn, u32::from_be_bytes([c, d, e, f]))
            }
            ADDRESS => {
                (kind, subtype, Administrator::Address(wide.into()), u32::from(u16::from_be_bytes([e, f])))
            }
            FOUR_OCTET => (kind, subtype, Administrator::Asn(wide), u32::from(u16::from_be_bytes([e, f]))),
            _ => return None,
        })
    }

    /// Bytes per second, if it is a link bandwidth (draft-ietf-idr-link-bandwidth), transitive or not.
    pub fn link_bandwidth(self) -> Option<f32> {
        let (kind, subtype, _, local) = self.parts()?;
        let bytes = f32::from_bits(local);
        (kind & !NON_TRANSITIVE == TWO_OCTET && subtype == 4 && bytes.is_finite() && bytes >= 0.0)
            .then_some(bytes)
    }

    fn build(subtype: u8, administrator: &str, local: &str) -> Option<Self> {
        let octets = |kind, [a, b, c, d]: [u8; 4], [e, f]: [u8; 2]| {
            Some(Self(u64::from_be_bytes([kind, subtype, a, b, c, d, e, f])))
        };
        if let Ok(address) = administrator.parse::<std::net::Ipv4Addr>() {
            return octets(ADDRESS, address.octets(), local.parse::<u16>().ok()?.to_be_bytes());
        }
        let asn: u32 = administrator.parse().ok()?;
        let two = u16::try_from(asn);
        if subtype == 4 {
            let [c, d, e, f] = local.parse::<f32>().ok().filter(|bytes| *bytes >= 0.0)?.to_be_bytes();
            let [a, b] = two.unwrap_or(crate::wire::AS_TRANS).to_be_bytes();
            return octets(TWO_OCTET | NON_TRANSITIVE, [a, b, c, d], [e, f]);
        }
        match two {
            Ok(two) => {
                let ([a, b], [c, d, e, f]) = (two.to_be_bytes(), local.parse::<u32>().ok()?.to_be_bytes());
                octets(TWO_OCTET, [a, b, c, d], [e, f])
            }
            Err(_) => octets(FOUR_OCTET, asn.to_be_bytes(), local.parse::<u16>().ok()?.to_be_bytes()),
        }
    }
}

impl FromStr for ExtendedCommunity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok().map(Self),
            None => kind_and_rest(text)
                .and_then(|(subtype, administrator, local)| Self::build(subtype, administrator, local)),
        };
        parsed.ok_or_else(|| {
            format!("{text:?} is no extended community: write rt:ASN:VALUE, soo:ASN:VALUE, lb:ASN:BYTES-PER-SECOND or eight octets as 0x...")
        })
    }
}

impl fmt::Display for ExtendedCommunity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = self.parts().and_then(|(kind, subtype, administrator, local)| {
            let name = EXTENDED_KINDS.iter().find(|(known, _)| *known == subtype)?.1;
            let local = if subtype == 4 { f32::from_bits(local).to_string() } else { local.to_string() };
            // What would not read back as the same octets is shown as they are.
            let text = match administrator {
                Administrator::Asn(asn) => format!("{name}:{asn}:{local}"),
                Administrator::Address(address) => format!("{name}:{address}:{local}"),
            };
            (text.parse() == Ok(*self)).then_some(text).filter(|_| kind & 0x80 == 0)
        });
        match named {
            Some(text) => f.write_str(&text),
            None => write!(f, "0x{:016x}", self.0),
        }
    }
}

fn kind_and_rest(text: &str) -> Option<(u8, &str, &str)> {
    let (name, rest) = text.split_once(':')?;
    let (administrator, local) = rest.rsplit_once(':')?;
    let subtype = EXTENDED_KINDS.iter().find(|(_, known)| *known == name)?.0;
    Some((subtype, administrator, local))
}

/// Extended communities: `rt:65000:*`, `soo:192.0.2.1:1-9`, `lb:*:*`, or eight octets as `0x...`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ExtendedCommunityPattern {
    /// Exactly one.
    Exact(ExtendedCommunity),
    /// Of a kind whose parts are within bounds.
    Parts(ExtendedParts),
}

/// Bounds of the parts of an extended community.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExtendedParts {
    subtype: u8,
    asn: Option<Span>,
    address: Option<std::net::Ipv4Addr>,
    local: Span,
}

impl ExtendedCommunityPattern {
    /// Whether it stands for a community.
    pub fn matches(&self, community: ExtendedCommunity) -> bool {
        match self {
            Self::Exact(exact) => *exact == community,
            Self::Parts(wanted) => community.parts().is_some_and(|(_, subtype, administrator, local)| {
                let administrator = match administrator {
                    Administrator::Asn(asn) => wanted.asn.is_some_and(|span| span.contains(asn)),
                    Administrator::Address(address) => {
                        wanted.address == Some(address) || wanted.asn == Some(Span::ALL)
                    }
                };
                subtype == wanted.subtype && administrator && wanted.local.contains(local)
            }),
        }
    }
}

impl FromStr for ExtendedCommunityPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let exact = text.parse::<ExtendedCommunity>();
        if let Ok(exact) = exact {
            return Ok(Self::Exact(exact));
        }
        let parts = kind_and_rest(text).and_then(|(subtype, administrator, local)| {
            let address = administrator.parse().ok();
            let asn = if address.is_none() { Some(Span::parse(administrator, u32::MAX)?) } else { None };
            Some(Self::Parts(ExtendedParts { subtype, asn, address, local: Span::parse(local, u32::MAX)? }))
        });
        parts.ok_or_else(|| exact.err().unwrap_or_default())
    }
}

impl fmt::Display for ExtendedCommunityPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(exact) => exact.fmt(f),
            Self::Parts(parts) => {
                let name = EXTENDED_KINDS.iter().find(|(known, _)| *known == parts.subtype);
                f.write_str(name.map_or("", |(_, name)| name))?;
                match (parts.address, parts.asn) {
                    (Some(address), _) => write!(f, ":{address}")?,
                    (None, asn) => write!(f, ":{}", asn.unwrap_or(Span::ALL))?,
                }
                write!(f, ":{}", parts.local)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round<T: FromStr<Err = String> + fmt::Display>(text: &str) -> T {
        let parsed: T = text.parse().unwrap();
        assert_eq!(parsed.to_string(), text);
        parsed
    }

    #[test]
    fn ranges_are_read_as_operators_write_them() {
        for (text, prefix, allowed) in [
            ("10.0.0.0/8", "10.0.0.0/8", true),
            ("10.0.0.0/8", "10.0.0.0/9", false),
            ("10.0.0.0/8 ge 16 le 24", "10.1.0.0/16", true),
            ("10.0.0.0/8 ge 16 le 24", "10.1.1.0/25", false),
            ("10.0.0.0/8 ge 16", "10.1.1.1/32", true),
            ("10.0.0.0/8 le 24", "10.0.0.0/8", true),
            ("2001:db8::/32 le 48", "2001:db8:1::/48", true),
            ("::/0 le 128", "10.0.0.0/8", false),
        ] {
            let range: PrefixRange = round(text);
            assert_eq!(range.0.allows(&prefix.parse().unwrap()), allowed, "{text} {prefix}");
        }
        assert_eq!("10.0.0.0/8 orlonger".parse::<PrefixRange>().unwrap().to_string(), "10.0.0.0/8 le 32");
        for bad in
            ["10.0.0.0/8 ge 7", "10.0.0.0/8 le 33", "10.0.0.0/8 ge 20 le 16", "10.0.0.0/8 up", "10/8 ge", ""]
        {
            assert!(bad.parse::<PrefixRange>().is_err(), "{bad}");
        }
    }

    #[test]
    fn communities_match_with_wildcards() {
        let community = |text: &str| text.parse::<Community>().unwrap();
        let pattern: CommunityPattern = round("65000:*");
        assert!(pattern.matches(community("65000:7")) && !pattern.matches(community("65001:7")));
        let pattern: CommunityPattern = round("*:100-199");
        assert!(pattern.matches(community("1:150")) && !pattern.matches(community("1:200")));
        assert!(round::<CommunityPattern>("no-export").matches(Community::NO_EXPORT));
        assert!(
            "65536:1".parse::<CommunityPattern>().is_err() && "5-3:1".parse::<CommunityPattern>().is_err()
        );
        let large: LargeCommunityPattern = round("4200000001:*:5-9");
        assert!(large.matches(&"4200000001:3:7".parse().unwrap()));
        assert!(!large.matches(&"4200000001:3:10".parse().unwrap()));
        assert!("1:2".parse::<LargeCommunityPattern>().is_err());
    }

    #[test]
    fn extended_communities_have_their_octets() {
        for (text, octets) in [
            ("rt:65000:1", 0x0002_fde8_0000_0001),
            ("soo:192.0.2.1:7", 0x0103_c000_0201_0007),
            ("rt:4200000001:9", 0x0202_fa56_ea01_0009),
            ("lb:65000:125000000", 0x4004_fde8_4cee_6b28),
            ("0x4002fde800000001", 0x4002_fde8_0000_0001),
            ("0x8006000000000000", 0x8006_0000_0000_0000),
        ] {
            assert_eq!(round::<ExtendedCommunity>(text).0, octets, "{text}");
        }
        let bandwidth = ExtendedCommunity(0x4004_fde8_4cee_6b28).link_bandwidth();
        assert_eq!(bandwidth, Some(125_000_000.0));
        assert_eq!(ExtendedCommunity(0x4004_fde8_7fc0_0000).link_bandwidth(), None, "not a number");
        let pattern: ExtendedCommunityPattern = round("rt:65000:*");
        assert!(pattern.matches("rt:65000:1".parse().unwrap()));
        assert!(!pattern.matches("soo:65000:1".parse().unwrap()));
        let pattern: ExtendedCommunityPattern = round("rt:*:1-3");
        assert!(
            pattern.matches("rt:192.0.2.1:2".parse().unwrap())
                && pattern.matches("rt:4200000001:3".parse().unwrap())
        );
        assert!(!pattern.matches("rt:192.0.2.1:4".parse().unwrap()));
        assert!("xx:1:1".parse::<ExtendedCommunityPattern>().is_err());
    }
}
