//! Certificate files, judged before they are used: what is wrong names the file, the reason, and what to do.

use crate::error::MeshError;
use crate::rfc3339;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Largest certificate or key file that is read, in bytes.
const MAX_BYTES: usize = 1 << 20;
/// Warned of so long before the end, or in the last quarter of a shorter life.
const NOTICE_SECS: i64 = 14 * 86_400;

/// CA, certificate and key of a client, good at the moment they were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificates {
    /// The CA file, PEM.
    pub(crate) ca: Vec<u8>,
    /// The certificate and what signed it, PEM.
    pub(crate) cert: Vec<u8>,
    /// Its key, PEM.
    pub(crate) key: Vec<u8>,
    /// What ends first of them.
    pub expiry: Expiry,
}

/// The life of the certificate that ends first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Expiry {
    /// Its file.
    pub file: PathBuf,
    /// Begin, seconds since 1970.
    pub not_before_unix_secs: i64,
    /// End, seconds since 1970.
    pub not_after_unix_secs: i64,
}

impl Expiry {
    /// What to tell the operator `now` (seconds since 1970); `None` while the end is far.
    #[must_use]
    pub fn warning(&self, now: i64) -> Option<String> {
        let left = self.not_after_unix_secs.saturating_sub(now);
        let life = self.not_after_unix_secs.saturating_sub(self.not_before_unix_secs);
        let (file, end) = (self.file.display(), date(self.not_after_unix_secs));
        if left <= 0 {
            return Some(format!(
                "certificate {file} expired at {end}; renew it, a new connection cannot be made with it"
            ));
        }
        let left = match left {
            left if left >= NOTICE_SECS.min(life / 4) => return None,
            left if left >= 2 * 86_400 => format!("{} days", left / 86_400),
            left if left >= 2 * 3600 => format!("{} hours", left / 3600),
            left => format!("{} minutes", left / 60),
        };
        Some(format!(
            "certificate {file} expires in {left}, at {end}; renew it, the file is read again by itself"
        ))
    }

    /// What a table shows `now`: the days that are left.
    #[must_use]
    pub fn short(&self, now: i64) -> String {
        match self.not_after_unix_secs.saturating_sub(now) {
            left if left <= 0 => "expired".to_owned(),
            left if left < 2 * 86_400 => format!("{}h", left / 3600),
            left => format!("{}d", left / 86_400),
        }
    }
}

/// Seconds since 1970.
#[must_use]
pub fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// A moment as RFC 3339 has it, in UTC.
#[must_use]
pub fn date(unix_secs: i64) -> String {
    rfc3339::text(unix_secs)
}

fn bad(file: &Path, reason: impl Into<String>, remedy: &str) -> MeshError {
    MeshError::Certificate { file: file.to_owned(), reason: reason.into(), remedy: remedy.to_owned() }
}

/// Reads and judges the three files.
///
/// # Errors
/// [`MeshError::Read`] or [`MeshError::Certificate`], naming the file.
pub async fn load(ca: &Path, cert: &Path, key: &Path) -> Result<Certificates, MeshError> {
    let files =
        (read("CA file", ca).await?, read("certificate", cert).await?, read("private key", key).await?);
    judge((ca, files.0), (cert, files.1), (key, files.2), unix_now())
}

async fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, MeshError> {
    let unreadable = |source| MeshError::Read { what, path: path.to_owned(), source };
    // Looked at first: opening a named pipe would wait for its other end.
    let meta = tokio::fs::metadata(path).await.map_err(unreadable)?;
    if !meta.is_file() {
        return Err(bad(path, "is no regular file", "name a PEM file"));
    }
    let bytes = tokio::fs::read(path).await.map_err(unreadable)?;
    if bytes.len() > MAX_BYTES {
        return Err(bad(path, format!("has {} bytes", bytes.len()), "name a PEM file of some KiB"));
    }
    Ok(bytes)
}

/// A fingerprint of all files as they are now, readable or not: tells whether something was renewed.
pub(crate) async fn fingerprint(files: [Option<&PathBuf>; 3]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for file in files.into_iter().flatten() {
        let bytes = tokio::fs::read(file).await.unwrap_or_default();
        hash.update(u64::try_from(bytes.len()).unwrap_or(0).to_be_bytes());
        hash.update(bytes);
    }
    hash.finalize().into()
}

type Named<'a> = (&'a Path, Vec<u8>);

fn judge(ca: Named<'_>, cert: Named<'_>, key: Named<'_>, now: i64) -> Result<Certificates, MeshError> {
    let issuers = lives(&ca, "copy the certificate of the CA there (-----BEGIN CERTIFICATE-----)")?;
    // Of several CAs one that is valid is enough.
    let issuer = issuers.into_iter().max_by_key(|life| (life.valid(now), life.not_after));
    let chain = lives(&cert, "copy our client certificate there (-----BEGIN CERTIFICATE-----)")?;
    let mut ends = Vec::new();
    for (file, life) in
        issuer.map(|life| (ca.0, life)).into_iter().chain(chain.into_iter().map(|life| (cert.0, life)))
    {
        life.check(file, now)?;
        ends.push(Expiry {
            file: file.to_owned(),
            not_before_unix_secs: life.not_before,
            not_after_unix_secs: life.not_after,
        });
    }
    matches(&cert, &key)?;
    let expiry = ends.into_iter().min_by_key(|end| end.not_after_unix_secs);
    let expiry =
        expiry.ok_or_else(|| bad(cert.0, "has no certificate", "copy our client certificate there"))?;
    Ok(Certificates { ca: ca.1, cert: cert.1, key: key.1, expiry })
}

#[derive(Clone, Copy)]
struct Life {
    not_before: i64,
    not_after: i64,
}

impl Life {
    const fn valid(&self, now: i64) -> bool {
        self.not_before <= now && now < self.not_after
    }

    fn check(&self, file: &Path, now: i64) -> Result<(), MeshError> {
        if now >= self.not_after {
            let reason = format!("the certificate expired at {}", date(self.not_after));
            return Err(bad(file, reason, "renew it; the file is read again at the next try"));
        }
        if now < self.not_before {
            let reason = format!("the certificate is not valid before {}", date(self.not_before));
            return Err(bad(file, reason, "correct this node's clock, or issue the certificate anew"));
        }
        Ok(())
    }
}

/// The end of a certificate, seconds since 1970; `None` if it is none.
pub(crate) fn not_after(der: &[u8]) -> Option<i64> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

/// The certificate of a public key (SubjectPublicKeyInfo, DER) among those of a PEM text: a CA that is being replaced stands
/// there beside the next one.
pub(crate) fn of_key(pem: &str, public: &[u8]) -> Option<CertificateDer<'static>> {
    let is_its = |der: &CertificateDer<'_>| {
        x509_parser::parse_x509_certificate(der).is_ok_and(|(_, found)| found.public_key().raw == public)
    };
    CertificateDer::pem_slice_iter(pem.as_bytes()).filter_map(Result::ok).find(is_its)
}

/// The certificates of a PEM file, at least one.
fn pem(file: &Named<'_>, remedy: &str) -> Result<Vec<CertificateDer<'static>>, MeshError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&file.1).collect();
    match found {
        Ok(found) if found.is_empty() => Err(bad(file.0, "holds no certificate in PEM form", remedy)),
        Ok(found) => Ok(found),
        Err(error) => Err(bad(file.0, format!("is no PEM file: {}", one_line(&error.to_string())), remedy)),
    }
}

fn lives(file: &Named<'_>, remedy: &str) -> Result<Vec<Life>, MeshError> {
    let of = |(at, der): (usize, &CertificateDer<'_>)| match x509_parser::parse_x509_certificate(der) {
        Ok((_, certificate)) => {
            let validity = certificate.validity();
            Ok(Life {
                not_before: validity.not_before.timestamp(),
                not_after: validity.not_after.timestamp(),
            })
        }
        Err(error) => {
            let reason =
                format!("block {} is no X.509 certificate: {}", at + 1, one_line(&error.to_string()));
            Err(bad(file.0, reason, remedy))
        }
    };
    pem(file, remedy)?.iter().enumerate().map(of).collect()
}

/// Whether the key is usable and belongs to the first certificate.
fn matches(cert: &Named<'_>, key: &Named<'_>) -> Result<(), MeshError> {
    let remedy = "copy the key of the client certificate there (-----BEGIN PRIVATE KEY-----)";
    let der = PrivateKeyDer::from_pem_slice(&key.1).map_err(|error| match error {
        rustls::pki_types::pem::Error::NoItemsFound => bad(key.0, "holds no private key in PEM form", remedy),
        other => bad(key.0, format!("is no PEM file: {}", one_line(&other.to_string())), remedy),
    })?;
    let signing = rustls::crypto::ring::sign::any_supported_type(&der).map_err(|error| {
        let reason = format!("the key cannot be used: {}", one_line(&error.to_string()));
        bad(key.0, reason, "use an RSA key of 2048 bits or more, an ECDSA key on P-256 or P-384, or Ed25519")
    })?;
    match CertifiedKey::new(pem(cert, remedy)?, signing).keys_match() {
        Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            let reason = format!("is not the key of {}", cert.0.display());
            Err(bad(key.0, reason, "copy the key that the certificate was issued for, or issue both anew"))
        }
        // What cannot be compared is left to the handshake.
        _ => Ok(()),
    }
}

/// An error's text on one line.
pub(crate) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};

    const NOW: i64 = 1_767_323_045; // 2026-01-02

    fn issuer() -> (String, Issuer<'static, KeyPair>) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2049, 1, 1);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        (pem, Issuer::new(params, key))
    }

    fn leaf(ca: &Issuer<'static, KeyPair>, from: (i32, u8, u8), to: (i32, u8, u8)) -> (String, String) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.not_before = date_time_ymd(from.0, from.1, from.2);
        params.not_after = date_time_ymd(to.0, to.1, to.2);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, ca).unwrap().pem(), key.serialize_pem())
    }

    fn verdict(ca: &str, cert: &str, key: &str) -> Result<Certificates, String> {
        let named = |name: &'static str, text: &str| (Path::new(name), text.as_bytes().to_vec());
        judge(named("/p/ca.crt", ca), named("/p/c.crt", cert), named("/p/c.key", key), NOW)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn every_fault_names_its_file_on_one_line_with_a_remedy() {
        let (ca, issuer) = issuer();
        let (cert, key) = leaf(&issuer, (2025, 1, 1), (2027, 1, 1));
        let good = verdict(&ca, &cert, &key).unwrap();
        assert_eq!(
            (good.expiry.file.as_path(), good.expiry.short(NOW)),
            (Path::new("/p/c.crt"), "363d".to_owned())
        );
        let (expired, expired_key) = leaf(&issuer, (2024, 1, 1), (2025, 1, 1));
        let (future, future_key) = leaf(&issuer, (2027, 1, 1), (2028, 1, 1));
        let other = leaf(&issuer, (2025, 1, 1), (2027, 1, 1)).1;
        let torn = format!("{}garbage", &cert[..cert.len() / 2]);
        let hollow = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (verdict, file, reason) in [
            (verdict("garbage", &cert, &key), "/p/ca.crt", "no certificate"),
            (verdict(hollow, &cert, &key), "/p/ca.crt", "block 1 is no X.509"),
            (verdict(&ca, "", &key), "/p/c.crt", "no certificate"),
            (verdict(&ca, &torn, &key), "/p/c.crt", "no PEM"),
            (verdict(&ca, &expired, &expired_key), "/p/c.crt", "expired at 2025-01-01"),
            (verdict(&ca, &future, &future_key), "/p/c.crt", "not valid before 2027"),
            (verdict(&ca, &cert, "garbage"), "/p/c.key", "no private key"),
            (verdict(&ca, &cert, &cert), "/p/c.key", "no private key"),
            (verdict(&ca, &cert, &other), "/p/c.key", "is not the key of /p/c.crt"),
        ] {
            let text = verdict.unwrap_err();
            assert!(text.starts_with(file) && text.contains(reason), "{file} {reason}: {text}");
            assert!(text.contains("; ") && !text.contains('\n'), "{text}");
        }
    }

    #[test]
    fn the_end_is_told_in_time() {
        let day = 86_400;
        let end = |days: i64, life_days: i64| Expiry {
            file: "/p/c.crt".into(),
            not_before_unix_secs: NOW + (days - life_days) * day,
            not_after_unix_secs: NOW + days * day,
        };
        assert_eq!(end(15, 365).warning(NOW), None);
        assert!(end(13, 365).warning(NOW).unwrap().contains("in 13 days"));
        assert_eq!(end(13, 20).warning(NOW), None, "a short life is warned of in its last quarter only");
        assert!(end(1, 20).warning(NOW).unwrap().contains("in 24 hours"));
        assert!(end(-1, 365).warning(NOW).unwrap().contains("/p/c.crt expired at 2026-01-01"));
        assert_eq!(end(-1, 365).short(NOW), "expired");
    }
}
