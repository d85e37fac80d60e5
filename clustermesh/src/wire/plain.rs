//! A quick reader for addresses of pods in the form that every producer writes: the fields as they are named, each once,
//! no escapes, no mask. Whatever is different is left to the reader that knows all of Go's JSON; this one refuses nothing.

use super::Remote;
use super::address;
use super::ip::IpEntry;
use std::net::IpAddr;
use tombolo_base::prefix::Prefix;
use tombolo_base::residence::Residence;
use tombolo_base::text::shared;

/// The fields of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Plain<'a> {
    ip: Option<&'a str>,
    mask: Option<()>,
    host: Option<&'a str>,
    id: Option<u32>,
    key: Option<u32>,
    metadata: Option<&'a str>,
    namespace: Option<&'a str>,
    pod: Option<&'a str>,
    service_account: Option<&'a str>,
}

/// Reads what is written plainly, from left to right.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) const fn new(value: &'a [u8]) -> Self {
        Self { rest: value }
    }

    pub(super) const fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    /// What stands there and nothing else; otherwise nothing is read.
    pub(super) fn take(&mut self, expected: &[u8]) -> Option<()> {
        self.rest = self.rest.strip_prefix(expected)?;
        Some(())
    }

    /// Text between quotes, of printable ASCII.
    pub(super) fn text(&mut self) -> Option<&'a str> {
        self.take(b"\"")?;
        let plain = |byte: &u8| matches!(byte, b' '..=b'~') && *byte != b'\\' && *byte != b'"';
        let end = self.rest.iter().position(|byte| !plain(byte))?;
        let (text, rest) = self.rest.split_at_checked(end)?;
        self.rest = rest;
        self.take(b"\"")?;
        std::str::from_utf8(text).ok()
    }

    /// Digits without a leading zero.
    pub(super) fn number(&mut self) -> Option<u32> {
        let end = self.rest.iter().position(|byte| !byte.is_ascii_digit())?;
        let (digits, rest) = self.rest.split_at_checked(end)?;
        self.rest = rest;
        if digits.len() > 1 && digits.first() == Some(&b'0') {
            return None;
        }
        std::str::from_utf8(digits).ok()?.parse().ok()
    }

    /// What stands between brackets, item by item.
    pub(super) fn items(
        &mut self,
        open: &[u8],
        close: &[u8],
        mut item: impl FnMut(&mut Self) -> Option<()>,
    ) -> Option<()> {
        self.take(open)?;
        if self.take(close).is_some() {
            return Some(());
        }
        loop {
            item(self)?;
            if self.take(close).is_some() {
                return Some(());
            }
            self.take(b",")?;
        }
    }
}

/// Fills a field; one that stands twice is not plain.
pub(super) fn once<T>(field: &mut Option<T>, value: Option<T>) -> Option<()> {
    field.replace(value?).is_none().then_some(())
}

impl<'a> Plain<'a> {
    pub(super) fn read(value: &'a [u8]) -> Option<Self> {
        let mut reader = Reader::new(value);
        let mut plain = Self::default();
        reader.items(b"{", b"}", |reader| {
            let name = reader.text()?;
            reader.take(b":")?;
            match name {
                "IP" => once(&mut plain.ip, reader.text()),
                "Mask" => once(&mut plain.mask, reader.take(b"null")),
                "HostIP" => once(&mut plain.host, reader.text()),
                "ID" => once(&mut plain.id, reader.number()),
                "Key" => once(&mut plain.key, reader.number()),
                "Metadata" => once(&mut plain.metadata, reader.text()),
                "K8sNamespace" => once(&mut plain.namespace, reader.text()),
                "K8sPodName" => once(&mut plain.pod, reader.text()),
                "K8sServiceAccount" => once(&mut plain.service_account, reader.text()),
                _ => None,
            }
        })?;
        reader.is_at_end().then_some(plain)
    }

    /// The entry, if nothing is wrong with it.
    pub(super) fn entry(self, remote: &Remote, key_name: &str) -> Option<IpEntry> {
        let text = self.ip.filter(|text| *text == key_name)?;
        let ip: IpAddr = text.parse().ok()?;
        // IPv6 has many ways to write an address, of which one is right.
        if ip.is_ipv6() && (ip.to_canonical() != ip || ip.to_string() != text) {
            return None;
        }
        let prefix = Prefix::host(ip);
        address::check_ownable(&prefix).ok()?;
        let host = match self.host.unwrap_or_default() {
            "" => None,
            text => Some(address::parse_ip(text)?),
        };
        Some(IpEntry {
            prefix,
            masked: false,
            identity: remote.check_ip_identity(self.id.unwrap_or_default()).ok()?,
            residence: Residence::of(
                host.filter(|address| !address.is_unspecified()),
                u8::try_from(self.key.unwrap_or_default()).ok()?,
                self.namespace.unwrap_or_default(),
            ),
            pod: self.pod.unwrap_or_default().into(),
            service_account: shared(self.service_account.unwrap_or_default()),
            named_ports: Vec::new(),
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use tombolo_base::ids::{ClusterId, ClusterName, MaxClusters};

    pub(crate) fn remote() -> Remote {
        let max = MaxClusters::C255;
        let name = ClusterName::new("c1").unwrap();
        Remote { name, id: ClusterId::new(1, max).unwrap(), max, own: false }
    }

    const TEXTS: [&str; 4] = [
        r#"{"IP":"10.1.0.7","Mask":null,"HostIP":"192.0.2.1","ID":66001,"Key":255,"Metadata":"","K8sNamespace":"shop","K8sPodName":"web-1"}"#,
        r#"{"IP":"fd00:10:1::7","Mask":null,"HostIP":"2001:db8::1","ID":66001,"Key":0,"Metadata":"","K8sNamespace":"shop","K8sPodName":"web-1","K8sServiceAccount":"default"}"#,
        r#"{"ID":6,"IP":"10.1.0.7","HostIP":""}"#,
        r#"{"IP":"10.1.0.7","HostIP":"::ffff:192.0.2.1","ID":1}"#,
    ];

    fn name(text: &str) -> &'static str {
        if text.contains("fd00") { "fd00:10:1::7" } else { "10.1.0.7" }
    }

    #[test]
    fn what_producers_write_is_read_quickly() {
        for text in TEXTS {
            let quick = Plain::read(text.as_bytes()).and_then(|plain| plain.entry(&remote(), name(text)));
            assert_eq!(quick, IpEntry::decode_any(&remote(), name(text), text.as_bytes()).unwrap(), "{text}");
            assert!(quick.is_some(), "{text}");
        }
    }

    /// Small damage of all sorts to some of the texts.
    pub(crate) fn damage(texts: &[&'static str], times: usize, mut look: impl FnMut(&[u8], &'static str)) {
        let pieces: [&[u8]; 16] = [
            b"\"",
            b"\\",
            b"0",
            b"9",
            b",",
            b"}",
            b"]",
            b"{",
            b"null",
            b" ",
            b"IP",
            b"ip",
            b":",
            b"\x80",
            b"\"ID\":7,",
            b"::",
        ];
        let mut seed = 0x5eed_u64;
        let mut random = |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(seed >> 33).unwrap() % below
        };
        for _ in 0..times {
            let text = texts[random(texts.len())];
            let mut value = text.as_bytes().to_vec();
            for _ in 0..=random(2) {
                let (at, piece) = (random(value.len()), pieces[random(pieces.len())]);
                let until = if random(2) == 0 { at } else { value.len().min(at + 1 + random(3)) };
                value.splice(at..until, piece.iter().copied());
            }
            look(&value, text);
        }
    }

    /// It may say less than the other reader, and never something else.
    #[test]
    fn damaged_values_are_read_alike_or_left_alone() {
        let mut read = 0;
        damage(&TEXTS, 60_000, |value, text| {
            let quick = Plain::read(value).and_then(|plain| plain.entry(&remote(), name(text)));
            if let Some(entry) = quick {
                read += 1;
                let slow = IpEntry::decode_any(&remote(), name(text), value);
                assert_eq!(slow, Ok(Some(entry)), "{}", String::from_utf8_lossy(value));
            }
        });
        assert!(read > 1000, "{read}");
    }
}
