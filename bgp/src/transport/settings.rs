//! What a peer's TCP connections are told.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::sockopt::KEY_MAX;

/// A key. It is never printed and never written by serde.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// A key of 1 to 80 bytes.
    pub const fn new(key: String) -> Self {
        Self(key)
    }

    pub(super) const fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    const fn fits(&self) -> bool {
        !self.0.is_empty() && self.0.len() <= KEY_MAX
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

/// Message authentication codes of TCP-AO (RFC 5926).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AoAlgorithm {
    /// HMAC-SHA-1-96.
    #[default]
    HmacSha1,
    /// AES-128-CMAC-96.
    AesCmac,
    /// HMAC-SHA-256, an extension that Linux and other implementations offer.
    HmacSha256,
}

impl AoAlgorithm {
    /// The kernel's name.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::HmacSha1 => "hmac(sha1)",
            Self::AesCmac => "cmac(aes128)",
            Self::HmacSha256 => "hmac(sha256)",
        }
    }
}

/// A TCP-AO master key tuple (RFC 5925 section 3.1).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct AoKey {
    /// The master key.
    pub key: Secret,
    /// KeyID of what we send.
    pub send_id: u8,
    /// KeyID of what we receive.
    pub receive_id: u8,
    /// How segments are authenticated.
    #[serde(default)]
    pub algorithm: AoAlgorithm,
}

/// How the TCP connections of a peer are made and kept safe.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Transport {
    /// Key of the TCP MD5 signature option (RFC 2385), 1 to 80 bytes. A new key is put on the running session; both sides have the hold
    /// time to change theirs. Setting or removing it starts a new session.
    #[serde(skip_serializing)]
    pub md5: Option<Secret>,
    /// Key of the TCP authentication option (RFC 5925), in place of `md5`. Needs a kernel that has it.
    #[serde(skip_serializing)]
    pub ao: Option<AoKey>,
    /// Generalized TTL security (RFC 5082): everything is sent with a time-to-live of 255, and what has come over more than this many hops
    /// is dropped. 1 to 254; 1 means directly connected. Takes the place of `ebgp_multihop`.
    pub gtsm_hops: Option<u8>,
    /// Connect from the first address of this interface that has the peer's family. `PeerConfig::local_address` wins.
    pub source_interface: Option<String>,
}

impl Transport {
    pub(crate) fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let keys = self.md5.iter().chain(self.ao.as_ref().map(|ao| &ao.key));
        if !keys.into_iter().all(Secret::fits) {
            return Err(("a TCP key is empty or over 80 bytes", "give a key of 1 to 80 bytes"));
        }
        if self.md5.is_some() && self.ao.is_some() {
            return Err(("both TCP MD5 and TCP-AO are set", "use one of them; RFC 5925 forbids both"));
        }
        if matches!(self.gtsm_hops, Some(0 | 255)) {
            return Err(("the GTSM hop count is 0 or 255", "use 1 for a direct neighbour, at most 254"));
        }
        Ok(())
    }

    /// What a session depends on: a changed MD5 key needs no new one.
    pub(crate) fn of_session(&self) -> Self {
        Self { md5: self.md5.as_ref().map(|_| Secret::default()), ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_never_told() {
        let key = || Secret::new("s3cr3t-of-the-tor".to_owned());
        let ao = AoKey { key: key(), send_id: 1, receive_id: 2, algorithm: AoAlgorithm::HmacSha1 };
        let transport = Transport { md5: Some(key()), ao: Some(ao), ..Transport::default() };
        let told = format!("{transport:?} {}", serde_json::to_string(&transport).unwrap());
        assert!(!told.contains("s3cr3t") && told.contains("hidden"), "{told}");
        let read: Transport = serde_json::from_str(r#"{"md5": "s3cr3t-of-the-tor"}"#).unwrap();
        assert_eq!(read.md5, Some(key()), "they can be read");
    }

    #[test]
    fn a_changed_key_is_no_new_session_and_a_removed_one_is() {
        let with = |key: Option<&str>| Transport {
            md5: key.map(|key| Secret::new(key.to_owned())),
            ..Transport::default()
        };
        assert_eq!(with(Some("a")).of_session(), with(Some("b")).of_session());
        assert_ne!(with(Some("a")).of_session(), with(None).of_session());
        assert!(with(Some("")).check().is_err());
        assert!(with(Some(&"x".repeat(81))).check().is_err());
        with(Some(&"x".repeat(80))).check().unwrap();
        let mut both = with(Some("a"));
        both.ao = Some(AoKey {
            key: Secret::new("b".into()),
            send_id: 0,
            receive_id: 0,
            algorithm: AoAlgorithm::AesCmac,
        });
        assert!(both.check().is_err());
    }
}
