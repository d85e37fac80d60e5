//! Sysctls below `net/`: /proc/sys shows each thread those of its own network namespace.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::{Error, NetNs, Netlink};

impl Netlink {
    /// Sets sysctls in the handle's namespace, in order. Keys are written with slashes, since interface names may
    /// contain dots: `net/ipv4/conf/eth0/rp_filter`. A value that stands already is not written again.
    ///
    /// # Errors
    /// [`Error::Sysctl`] at the first that fails; a key that this kernel does not have fails with ENOENT.
    pub async fn set_sysctls(&self, settings: &[(String, String)]) -> Result<(), Error> {
        let settings = settings.to_vec();
        let name = self.namespace_name().to_owned();
        let work = move || settings.iter().try_for_each(|(key, value)| write(&name, key, value));
        match self.namespace() {
            Some(namespace) => namespace.call(work).await?,
            // Writes to /proc/sys/net do not block; a thread for them would cost more.
            None => work(),
        }
    }

    /// Sets one sysctl; see [`Netlink::set_sysctls`].
    ///
    /// # Errors
    /// [`Error::Sysctl`].
    pub async fn set_sysctl(&self, key: &str, value: &str) -> Result<(), Error> {
        self.set_sysctls(&[(key.to_owned(), value.to_owned())]).await
    }

    /// Reads one sysctl, without the closing newline.
    ///
    /// # Errors
    /// [`Error::Sysctl`].
    pub async fn sysctl(&self, key: &str) -> Result<String, Error> {
        let (key, name) = (key.to_owned(), self.namespace_name().to_owned());
        let work = move || read(&name, &key);
        match self.namespace() {
            Some(namespace) => namespace.call(work).await?,
            None => work(),
        }
    }
}

/// Sets one sysctl in the calling thread's namespace, or in `namespace`; for code without a netlink handle.
///
/// # Errors
/// [`Error::Sysctl`], [`Error::Namespace`].
pub fn set_sysctl(namespace: Option<&NetNs>, key: &str, value: &str) -> Result<(), Error> {
    match namespace {
        Some(ns) => ns.run(|| write(ns.description(), key, value))?,
        None => write("of this process", key, value),
    }
}

fn write(namespace: &str, key: &str, value: &str) -> Result<(), Error> {
    let fail = |source| Error::Sysctl {
        what: format!("set to {value}"),
        key: key.to_owned(),
        namespace: namespace.to_owned(),
        source,
    };
    let path = path(key).map_err(fail)?;
    // Where /proc/sys is read-only, a value that is right already must not be an error.
    if fs::read_to_string(&path).is_ok_and(|now| now.trim_end() == value) {
        return Ok(());
    }
    fs::write(&path, value).map_err(fail)
}

fn read(namespace: &str, key: &str) -> Result<String, Error> {
    let fail = |source| Error::Sysctl {
        what: "read".into(),
        key: key.to_owned(),
        namespace: namespace.to_owned(),
        source,
    };
    let path = path(key).map_err(fail)?;
    Ok(fs::read_to_string(path).map_err(fail)?.trim_end().to_owned())
}

/// The file of a key. Only keys below `net/` are of a network namespace; all others are refused.
fn path(key: &str) -> io::Result<PathBuf> {
    let relative = Path::new(key);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    if !plain || !relative.starts_with("net") {
        let text = "the key must be a plain path that begins with net/, like net/ipv4/ip_forward";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    Ok(Path::new("/proc/sys").join(relative))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_below_net() {
        assert_eq!(path("net/ipv4/ip_forward").unwrap(), Path::new("/proc/sys/net/ipv4/ip_forward"));
        for wrong in
            ["", "/net/ipv4/ip_forward", "net/../kernel/core_pattern", "kernel/core_pattern", "network/x"]
        {
            assert!(path(wrong).is_err(), "{wrong}");
        }
    }
}
