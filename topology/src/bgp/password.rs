//! A password that goes to the kernel and nowhere else: not into tables, logs or JSON.

use serde::{Serialize, Serializer};
use std::fmt;
use std::sync::Arc;

/// The key of TCP MD5 (RFC 2385).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Password(Arc<str>);

impl Password {
    /// The longest key the kernel takes, in bytes (TCP_MD5SIG_MAXKEYLEN).
    pub const MAX_BYTES: usize = 80;

    /// A password of 1 to 80 bytes; none otherwise.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        (1..=Self::MAX_BYTES).contains(&text.len()).then(|| Self(text.into()))
    }

    /// The text, for the socket.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(set)")
    }
}

impl Serialize for Password {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("set")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_never_printed_and_has_bounds() {
        let password = Password::new("hunter2").unwrap();
        assert_eq!(format!("{password:?} {:?}", Some(&password)), "Password(set) Some(Password(set))");
        assert_eq!(password.expose(), "hunter2");
        assert!(Password::new("").is_none() && Password::new(&"x".repeat(81)).is_none());
        assert!(Password::new(&"x".repeat(80)).is_some());
    }
}
