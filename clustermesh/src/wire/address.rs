//! Addresses, masks and CIDRs as Go writes them in JSON.

use super::json::{JsonError, Object, Value};
use super::reject::{Reason, Reject};
use base64::Engine;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use std::net::IpAddr;
use tombolo_base::prefix::Prefix;

/// Reads an address; a v4-mapped IPv6 address is the IPv4 address, as in Go.
pub(crate) fn parse_ip(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

/// An address field; `None` when absent or `""`.
pub(crate) fn ip_field(value: &Object<'_, '_>, name: &str) -> Result<Option<IpAddr>, JsonError> {
    match value.text(name)? {
        "" => Ok(None),
        text => parse_ip(text).map(Some).ok_or_else(|| JsonError::field(name, "expected an IP address")),
    }
}

/// Refuses what no remote cluster may own: it would capture traffic that is not the mesh's.
pub(crate) fn check_ownable(prefix: &Prefix) -> Result<(), Reject> {
    let address = prefix.address();
    let wrong = if prefix.prefix_len() == 0 {
        "a default route"
    } else if address.is_loopback() {
        "a loopback address"
    } else if address.is_multicast() {
        "a multicast address"
    } else if address.is_unspecified() {
        "the unspecified address"
    } else {
        return Ok(());
    };
    Err(Reject::new(Reason::Address, format!("{prefix} is {wrong}, which no cluster can own")))
}

/// The length of a raw mask; `None` for masks with holes or of a wrong size. As in Go, an IPv4 mask may be the end of
/// an IPv6 one.
fn mask_len(mask: &[u8], ipv4: bool) -> Option<u8> {
    let mask = if ipv4 { mask.strip_prefix(&[0xff; 12]).unwrap_or(mask) } else { mask };
    if mask.len() != if ipv4 { 4 } else { 16 } {
        return None;
    }
    let ones: u32 = mask.iter().map(|byte| byte.leading_ones()).take_while(|ones| *ones == 8).sum();
    let whole = usize::try_from(ones / 8).ok()?;
    let rest = mask.get(whole..)?;
    let last = rest.first().map_or(0, |byte| byte.leading_ones());
    let clean = rest
        .iter()
        .enumerate()
        .all(|(at, byte)| if at == 0 { byte.checked_shl(last).unwrap_or(0) == 0 } else { *byte == 0 });
    if clean { u8::try_from(ones + last).ok() } else { None }
}

/// Standard padded base64 of the mask of `len` bits.
pub(crate) fn mask_text(len: u8, ipv4: bool) -> String {
    let bytes: Vec<u8> = (0..if ipv4 { 4_u8 } else { 16 })
        .map(|at| {
            let ones = len.saturating_sub(at.saturating_mul(8)).min(8);
            0xff_u8.checked_shl(u32::from(8 - ones)).unwrap_or(0)
        })
        .collect();
    STANDARD.encode(bytes)
}

/// Go's decoder of base64 does not look at the bits past the last byte.
const GO_BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

/// Bytes as Go reads them: padded standard base64, in which line ends do not count, or an array of numbers.
fn bytes(value: &Value<'_>, name: &str) -> Result<Vec<u8>, JsonError> {
    let bad = || JsonError::field(name, "expected base64 or null");
    match value {
        Value::String(text) => {
            let text: Vec<u8> = text.bytes().filter(|byte| !matches!(byte, b'\r' | b'\n')).collect();
            GO_BASE64.decode(text).map_err(|_| bad())
        }
        Value::Array(elements) => elements
            .iter()
            .map(|element| u8::try_from(element.whole(name, u32::from(u8::MAX))?).map_err(|_| bad()))
            .collect(),
        _ => Err(bad()),
    }
}

/// A mask field: `None` when `null` or absent.
pub(crate) fn mask_field(value: &Object<'_, '_>, name: &str, ipv4: bool) -> Result<Option<u8>, Reject> {
    let Some(value) = value.last(name) else { return Ok(None) };
    mask_len(&bytes(value, name)?, ipv4)
        .map(Some)
        .ok_or_else(|| Reject::new(Reason::Address, format!("field {name} has holes or a wrong size")))
}

/// A CIDR written as `{"IP":..,"Mask":..}` or, by newer producers, as `"10.1.0.0/24"`.
pub(crate) fn cidr(value: &Value<'_>, name: &str) -> Result<Prefix, Reject> {
    let bad = || Reject::from(JsonError::field(name, "expected a CIDR as object or text"));
    let prefix = match value {
        Value::String(text) if text.contains('/') => text.parse::<Prefix>().map_err(|_| bad())?,
        Value::Object(_) => {
            let value = value.object(name)?;
            let address = ip_field(&value, "IP")?.ok_or_else(bad)?;
            let len = mask_field(&value, "Mask", address.is_ipv4())?.ok_or_else(bad)?;
            Prefix::new(address, len).ok_or_else(bad)?
        }
        _ => return Err(bad()),
    };
    check_ownable(&prefix)?;
    Ok(prefix)
}

/// A CIDR of an address and a mask in base64, if nothing is wrong with it.
pub(crate) fn plain_cidr(ip: &str, mask: &str) -> Option<Prefix> {
    let address = parse_ip(ip)?;
    let len = mask_len(&GO_BASE64.decode(mask).ok()?, address.is_ipv4())?;
    Prefix::new(address, len).filter(|prefix| check_ownable(prefix).is_ok())
}

/// Writes a prefix as Go writes `*net.IPNet`.
pub(crate) struct GoCidr<'a>(pub(crate) &'a Prefix);

impl Serialize for GoCidr<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut record = serializer.serialize_struct("IPNet", 2)?;
        record.serialize_field("IP", &self.0.address())?;
        record.serialize_field("Mask", &mask_text(self.0.prefix_len(), self.0.is_ipv4()))?;
        record.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_in_both_families() {
        assert_eq!(mask_text(24, true), "////AA==");
        assert_eq!(mask_text(64, false), "//////////8AAAAAAAAAAA==");
        for len in 0..=32 {
            let raw = STANDARD.decode(mask_text(len, true)).unwrap();
            assert_eq!(mask_len(&raw, true), Some(len));
        }
        for len in 0..=128 {
            let raw = STANDARD.decode(mask_text(len, false)).unwrap();
            assert_eq!(mask_len(&raw, false), Some(len));
        }
        assert_eq!(mask_len(&[255, 0, 255, 0], true), None);
        assert_eq!(mask_len(&[255, 253, 0, 0], true), None);
        let six = [[255; 12].as_slice(), &[255, 255, 255, 0]].concat();
        assert_eq!((mask_len(&six, true), mask_len(&six, false)), (Some(24), Some(120)));
        assert_eq!(mask_len(&[255, 255, 255, 0], false), None);
    }

    #[test]
    fn what_no_cluster_may_own() {
        for bad in ["0.0.0.0/0", "::/0", "127.0.0.0/8", "::1", "224.0.0.1", "ff02::1", "0.0.0.0"] {
            assert!(check_ownable(&bad.parse().unwrap()).is_err(), "{bad}");
        }
        assert!(check_ownable(&"10.0.0.0/8".parse().unwrap()).is_ok());
    }
    #[test]
    fn masks_in_every_form_that_go_reads() {
        let mask = |text: &str| {
            let value = super::super::json::parse(text.as_bytes()).unwrap();
            mask_field(&value.object("test").unwrap(), "Mask", true)
        };
        assert_eq!(mask(r#"{"Mask":"////AA=="}"#), Ok(Some(24)));
        assert_eq!(mask(r#"{"Mask":"////AB=="}"#), Ok(Some(24)), "bits past the last byte");
        assert_eq!(mask(r#"{"Mask":"////\r\nAA=="}"#), Ok(Some(24)), "line ends");
        assert_eq!(mask(r#"{"Mask":[255,255,0,0]}"#), Ok(Some(16)), "an array of numbers");
        assert_eq!(mask(r#"{"Mask":"AAAAAA==","mask":null}"#), Ok(None), "null empties");
        for bad in [r#""////AA""#, r#""////AA=""#, r#""_____w==""#, r#""""#, "[256]", "7", "[null]"] {
            assert!(mask(&format!("{{\"Mask\":{bad}}}")).is_err(), "{bad}");
        }
    }
}
