//! The node's WireGuard key on disk: made once, readable by root only.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use tombolo_topology::WireguardKey;
use wireguard_control::Key;
use x25519_dalek::{PublicKey, StaticSecret};

use crate::error::WireguardError;

/// The node's private key. Not printed.
#[derive(Clone)]
pub struct PrivateKey([u8; 32]);

impl PrivateKey {
    /// The public key that belongs to it (RFC 7748 §6.1).
    #[must_use]
    pub fn public(&self) -> WireguardKey {
        WireguardKey(PublicKey::from(&StaticSecret::from(self.0)).to_bytes())
    }

    pub(crate) fn octets(&self) -> [u8; 32] {
        self.0
    }
}

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PrivateKey(of {})", self.public())
    }
}

/// Reads the node's key, or makes it if there is none: base64 in a file of mode 0600, as `wg genkey` writes. A file that
/// others can read, or that holds no key, is refused rather than replaced: peers know this node by it.
///
/// # Errors
/// [`WireguardError::Key`].
pub fn load_or_create(path: &Path) -> Result<PrivateKey, WireguardError> {
    let fail = |reason: String, remedy| WireguardError::Key { path: path.to_owned(), reason, remedy };
    match fs::File::open(path) {
        Ok(file) => read(file).map_err(|(reason, remedy)| fail(reason, remedy)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create(path).map_err(|error| fail(error.to_string(), "check that the directory is writable"))
        }
        Err(error) => Err(fail(error.to_string(), "check the rights of the file")),
    }
}

fn read(file: fs::File) -> Result<PrivateKey, (String, &'static str)> {
    let metadata = file.metadata().map_err(|error| (error.to_string(), "check the file system"))?;
    if metadata.mode() & 0o077 != 0 {
        let reason = format!("its mode is {:03o}, so others can read it", metadata.mode() & 0o777);
        return Err((reason, "chmod 600 it, or delete it to get a new key"));
    }
    let mut text = String::new();
    file.take(256)
        .read_to_string(&mut text)
        .map_err(|error| (error.to_string(), "delete the file to get a new key"))?;
    let wrong = |_| ("it holds no base64 key of 32 bytes".to_owned(), "delete the file to get a new key");
    Key::from_base64(text.trim()).map(|key| PrivateKey(key.0)).map_err(wrong)
}

/// Written under another name and linked into place, so that there is never half a key and never a second one.
fn create(path: &Path) -> io::Result<PrivateKey> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let key = Key::generate_private();
    let temporary = path.with_extension(format!("new.{}", std::process::id()));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let written = writeln!(file, "{}", key.to_base64())
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::hard_link(&temporary, path));
    fs::remove_file(&temporary)?;
    written.map(|()| PrivateKey(key.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_key_is_made_once_and_kept_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state/wireguard.key");
        let made = load_or_create(&path).unwrap();
        assert_eq!(load_or_create(&path).unwrap().octets(), made.octets());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
        assert!(!format!("{made:?}").contains(&Key(made.octets()).to_base64()));
    }

    #[test]
    fn a_key_that_others_can_read_or_that_is_none_is_refused_and_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("wireguard.key");
        load_or_create(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(load_or_create(&path).unwrap_err().to_string().contains("644"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "no key").unwrap();
        assert!(load_or_create(&path).unwrap_err().to_string().contains("base64"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "no key");
    }

    /// RFC 7748 §6.1, Alice's key pair.
    #[test]
    fn the_public_key_is_that_of_the_rfc() {
        let hex = "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a";
        let private = Key::from_hex(hex).unwrap();
        assert_eq!(
            PrivateKey(private.0).public().to_string(),
            "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
        );
    }
}
