//! Secret: the password of BGP sessions, and nothing else. No message says what a Secret holds.

use crate::object::{Object, ObjectId};
use crate::problem::Issue;
use serde_json::Value;
use tombolo_base::source::Source;
use tombolo_topology::bgp::Password;
use tombolo_topology::bgp::intent::SecretRow;

/// The key that holds the password.
const KEY: &str = "password";

fn text<'a>(value: &'a Value, block: &str) -> Result<Option<&'a str>, Issue> {
    let at = format!("{block}.{KEY}");
    match value.get(block).and_then(|block| block.get(KEY)) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Issue::new(at, "the value is no text", "put it in quotes")),
    }
}

/// Base64 with the alphabet of RFC 4648 section 4; white space is passed over as YAML blocks bring it.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let bytes: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let digits = bytes.iter().position(|byte| *byte == b'=').unwrap_or(bytes.len());
    let padding = bytes.get(digits..).unwrap_or_default();
    if !bytes.len().is_multiple_of(4) || padding.len() > 2 || padding.iter().any(|byte| *byte != b'=') {
        return None;
    }
    let (mut out, mut held, mut bits) = (Vec::new(), 0_u32, 0_u32);
    for byte in bytes.get(..digits).unwrap_or_default() {
        held = (held << 6) | u32::from(digit(*byte)?);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push(u8::try_from((held >> bits) & 0xff).ok()?);
            held &= (1 << bits) - 1;
        }
    }
    Some(out)
}

pub(super) fn secret(id: &ObjectId, value: &Value) -> Result<Object, Issue> {
    let password = match (text(value, "stringData")?, text(value, "data")?) {
        (Some(plain), _) => Some(("stringData.password", plain.as_bytes().to_vec())),
        (None, Some(encoded)) => {
            let bytes = base64(encoded).ok_or_else(|| {
                Issue::new("data.password", "the value is no base64", "encode it, or use stringData")
            })?;
            Some(("data.password", bytes))
        }
        (None, None) => None,
    };
    let password = password.map(|(at, bytes)| {
        std::str::from_utf8(&bytes).ok().and_then(Password::new).ok_or_else(|| {
            let reason = format!("{} bytes that are no key for TCP MD5", bytes.len());
            Issue::new(at, reason, format!("use 1 to {} bytes of text (UTF-8)", Password::MAX_BYTES))
        })
    });
    Ok(Object::Secret(SecretRow {
        source: Source::Manifests,
        namespace: id.namespace.clone(),
        name: id.name.clone(),
        password: password.transpose()?,
    }))
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_as_the_rfc_has_it() {
        // RFC 4648 section 10.
        for (text, expected) in
            [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9v\nYmFy\n", "foobar")]
        {
            assert_eq!(base64(text).as_deref(), Some(expected.as_bytes()), "{text}");
        }
        for broken in ["Z", "Zg", "Zg=", "Z===", "Zg==Zg==", "Zm9*", "====", "=Zg="] {
            assert_eq!(base64(broken), None, "{broken}");
        }
        assert_eq!(base64("//79").unwrap(), [0xff, 0xfe, 0xfd]);
    }
}
