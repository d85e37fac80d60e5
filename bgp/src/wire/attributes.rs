//! Path attributes as the RIB keeps them: everything but the next hop, so that equal sets can be shared.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::as_path::AsPath;

/// ORIGIN (RFC 4271 section 5.1.1); lower is preferred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Interior to the originating AS.
    #[default]
    Igp,
    /// Learned by EGP.
    Egp,
    /// Learned in another way.
    Incomplete,
}

/// A community (RFC 1997), printed as `65000:1` or by its well-known name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Community(pub u32);

/// Well-known communities by the names operators use (RFC 1997, 3765, 7611, 7999, 8326, 9494).
const WELL_KNOWN: [(&str, u32); 15] = [
    ("internet", 0x0000_0000),
    ("graceful-shutdown", 0xffff_0000),
    // Its name in drafts, which some still write.
    ("planned-shut", 0xffff_0000),
    ("accept-own", 0xffff_0001),
    ("route-filter-translated-v4", 0xffff_0002),
    ("route-filter-v4", 0xffff_0003),
    ("route-filter-translated-v6", 0xffff_0004),
    ("route-filter-v6", 0xffff_0005),
    ("llgr-stale", 0xffff_0006),
    ("no-llgr", 0xffff_0007),
    ("blackhole", 0xffff_029a),
    ("no-export", 0xffff_ff01),
    ("no-advertise", 0xffff_ff02),
    ("no-export-subconfed", 0xffff_ff03),
    ("no-peer", 0xffff_ff04),
];

impl Community {
    /// The path goes away soon (RFC 8326).
    pub const GRACEFUL_SHUTDOWN: Self = Self(0xffff_0000);
    /// Packets to the prefix are to be discarded (RFC 7999).
    pub const BLACKHOLE: Self = Self(0xffff_029a);
    /// Not to be sent to external peers.
    pub const NO_EXPORT: Self = Self(0xffff_ff01);
    /// Not to be sent to anybody.
    pub const NO_ADVERTISE: Self = Self(0xffff_ff02);
    /// Long-lived stale: less preferred than any route without it (RFC 9494).
    pub const LLGR_STALE: Self = Self(0xffff_0006);
    /// Not to be kept as long-lived stale (RFC 9494).
    pub const NO_LLGR: Self = Self(0xffff_0007);
    /// Not to be sent to external peers, confederation members included.
    pub const NO_EXPORT_SUBCONFED: Self = Self(0xffff_ff03);
}

impl fmt::Display for Community {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match WELL_KNOWN.iter().find(|(_, value)| *value == self.0) {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "{}:{}", self.0 >> 16, self.0 & 0xffff),
        }
    }
}

impl FromStr for Community {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((_, value)) = WELL_KNOWN.iter().find(|(name, _)| *name == text) {
            return Ok(Self(*value));
        }
        let parsed = match text.split_once(':') {
            Some((high, low)) => high
                .parse::<u16>()
                .ok()
                .zip(low.parse::<u16>().ok())
                .map(|(high, low)| (u32::from(high) << 16) | u32::from(low)),
            None => text.parse().ok(),
        };
        parsed.map(Self).ok_or_else(|| {
            format!("{text:?} is not a community: write ASN:VALUE, each at most 65535, or a well-known name")
        })
    }
}

impl<'de> Deserialize<'de> for Community {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl Serialize for Community {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A large community (RFC 8092), printed as `65000:1:2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LargeCommunity {
    /// Global administrator, an AS number.
    pub global: u32,
    /// First local part.
    pub local1: u32,
    /// Second local part.
    pub local2: u32,
}

impl fmt::Display for LargeCommunity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.global, self.local1, self.local2)
    }
}

impl FromStr for LargeCommunity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<u32> = text.split(':').map_while(|part| part.parse().ok()).collect();
        match (parts.as_slice(), text.matches(':').count()) {
            (&[global, local1, local2], 2) => Ok(Self { global, local1, local2 }),
            _ => Err(format!("{text:?} is not a large community: write three numbers, ASN:VALUE:VALUE")),
        }
    }
}

impl<'de> Deserialize<'de> for LargeCommunity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl Serialize for LargeCommunity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// AGGREGATOR (RFC 4271 section 5.1.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Aggregator {
    /// AS that aggregated.
    pub asn: u32,
    /// Router that aggregated.
    pub address: Ipv4Addr,
}

/// An optional transitive attribute this speaker only passes on, with the partial bit set if it does not know it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct RawAttribute {
    /// Flags as they go out: optional, transitive, and partial.
    pub flags: u8,
    /// Type code.
    pub code: u8,
    /// Value as received.
    pub value: Vec<u8>,
}

/// Which known attributes came with the partial bit: somebody on the way did not know them (RFC 4271 section 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Partial(u64);

impl Partial {
    /// Marks a type code; those of 64 and over are not known, so their bit is set anyway.
    pub fn insert(&mut self, code: u8) {
        self.0 |= 1u64.checked_shl(u32::from(code)).unwrap_or_default();
    }

    /// Whether a type code is marked.
    pub fn contains(self, code: u8) -> bool {
        self.0 & 1u64.checked_shl(u32::from(code)).unwrap_or_default() != 0
    }

    /// Whether none is marked.
    pub const fn is_empty(&self) -> bool {
        self.0 == 0
    }
}

/// The attributes of a route, in canonical form.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Attributes {
    /// ORIGIN.
    pub origin: Origin,
    /// AS_PATH.
    pub as_path: AsPath,
    /// MULTI_EXIT_DISC; lower is preferred.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub med: Option<u32>,
    /// LOCAL_PREF; higher is preferred; only between internal peers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_pref: Option<u32>,
    /// ATOMIC_AGGREGATE.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub atomic_aggregate: bool,
    /// AGGREGATOR.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aggregator: Option<Aggregator>,
    /// COMMUNITIES, sorted, each once.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub communities: Vec<Community>,
    /// EXTENDED COMMUNITIES as they came (RFC 4360), sorted, each once.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub extended_communities: Vec<u64>,
    /// LARGE_COMMUNITY, sorted, each once.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub large_communities: Vec<LargeCommunity>,
    /// ORIGINATOR_ID (RFC 4456); only from internal peers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub originator_id: Option<Ipv4Addr>,
    /// CLUSTER_LIST (RFC 4456); only from internal peers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cluster_list: Vec<Ipv4Addr>,
    /// Known attributes that go out with the partial bit.
    #[serde(skip_serializing_if = "Partial::is_empty")]
    pub partial: Partial,
    /// Transitive attributes this speaker only passes on, by type code.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<RawAttribute>,
}

/// Only to Customer (RFC 9234 section 5): its type code, and its flags where this speaker adds it.
const OTC: u8 = 35;
const OTC_FLAGS: u8 = 0xc0;

impl Attributes {
    /// The AS that marked the route as one for customers only (OTC, RFC 9234). It is kept among what is passed on.
    pub fn only_to_customer(&self) -> Option<u32> {
        let raw = self.unknown.iter().find(|raw| raw.code == OTC)?;
        raw.value.as_slice().try_into().ok().map(u32::from_be_bytes)
    }

    /// Marks the route as one for customers only.
    pub fn set_only_to_customer(&mut self, asn: u32) {
        self.unknown.retain(|raw| raw.code != OTC);
        let raw = RawAttribute { flags: OTC_FLAGS, code: OTC, value: asn.to_be_bytes().to_vec() };
        self.unknown.push(raw);
        self.unknown.sort_unstable_by_key(|raw| raw.code);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn communities_parse_as_operators_write_them() {
        assert_eq!("65000:100".parse(), Ok(Community(0xfde8_0064)));
        assert_eq!("no-export".parse(), Ok(Community::NO_EXPORT));
        assert_eq!(Community(0xffff_029a).to_string(), "blackhole");
        let shutdown: Community = "planned-shut".parse().unwrap();
        assert_eq!(
            (shutdown, shutdown.to_string().as_str()),
            (Community::GRACEFUL_SHUTDOWN, "graceful-shutdown")
        );
        assert!("65536:1".parse::<Community>().is_err());
        assert!("a".parse::<Community>().unwrap_err().contains("ASN:VALUE"));
        assert_eq!("1:2:3".parse::<LargeCommunity>().unwrap().to_string(), "1:2:3");
        for bad in ["1:2", "1:2:3:4", "1:2:x", "1:2:3:x", "4294967296:1:1"] {
            assert!(bad.parse::<LargeCommunity>().is_err(), "{bad}");
        }
    }
}
