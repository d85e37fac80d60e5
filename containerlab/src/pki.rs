//! The lab's own certificate authority: one CA per lab, certificates as `lab.yaml` lists them, written to `pki/` in
//! the lab directory. For labs only: the CA's key lies beside the certificates (mode 0600) and goes with the lab.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};
use sha2::{Digest, Sha256};

use crate::settings::{Certificate, Certificates, Usage};

/// Why keys or certificates could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("the lab's certificates: {operation} {path}: {source}; is the lab directory writable?")]
    File {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A key or certificate could not be generated or parsed.
    #[error(
        "the lab's certificates: {what}: {source}; if the pki folder was edited, remove it and bring the lab up again"
    )]
    Certificate {
        /// What was tried, on which certificate.
        what: String,
        /// Why it failed.
        source: rcgen::Error,
    },
}

/// Issues everything `lab.yaml` asks for into `pki_dir`: `ca.crt`, `ca.key`, and `NAME.crt`, `NAME.key` each. What is
/// there already and was issued by the same CA for the same names stays, so that running programs keep working;
/// returns the names issued anew.
///
/// # Errors
/// A file cannot be read or written, or a key or certificate cannot be made.
pub fn issue_all(certificates: &Certificates, pki_dir: &Path) -> Result<Vec<String>, PkiError> {
    if certificates.ca.is_empty() {
        return Ok(Vec::new());
    }
    fs::create_dir_all(pki_dir).map_err(|source| PkiError::File {
        operation: "making the folder",
        path: pki_dir.to_owned(),
        source,
    })?;
    let ca = Authority::load_or_create(&certificates.ca, pki_dir)?;
    let mut issued = Vec::new();
    for (name, certificate) in &certificates.issue {
        if ca.issue(name, certificate, pki_dir)? {
            issued.push(name.clone());
        }
    }
    Ok(issued)
}

/// Issues one certificate anew that is good until `not_after` only, over the one that is there: in place, since nodes have
/// the files themselves bound.
///
/// # Errors
/// As [`issue_all`].
pub fn reissue_until(
    ca: &str,
    name: &str,
    certificate: &Certificate,
    pki_dir: &Path,
    not_after: SystemTime,
) -> Result<(), PkiError> {
    let ca = Authority::load_or_create(ca, pki_dir)?;
    let key = KeyPair::generate().map_err(failed(&format!("generating the key of {name}")))?;
    let mut params = leaf_params(certificate).map_err(failed(&format!("the names of {name}")))?;
    params.not_after = not_after.into();
    let cert = params.signed_by(&key, &ca.issuer).map_err(failed(&format!("signing {name}")))?;
    write_over(&pki_dir.join(format!("{name}.key")), key.serialize_pem().as_bytes())?;
    write_over(&pki_dir.join(format!("{name}.crt")), cert.pem().as_bytes())
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Hash of the CA certificate; part of what makes an issued certificate still good.
    fingerprint: String,
}

impl Authority {
    fn load_or_create(common_name: &str, pki_dir: &Path) -> Result<Self, PkiError> {
        let (cert_path, key_path) = (pki_dir.join("ca.crt"), pki_dir.join("ca.key"));
        if !cert_path.exists() || !key_path.exists() {
            let key = KeyPair::generate().map_err(failed("generating the CA's key"))?;
            let cert =
                ca_params(common_name).self_signed(&key).map_err(failed("signing the CA's certificate"))?;
            write(&key_path, key.serialize_pem().as_bytes(), 0o600)?;
            write(&cert_path, cert.pem().as_bytes(), 0o644)?;
        }
        let cert = read(&cert_path)?;
        let key = KeyPair::from_pem(&read(&key_path)?).map_err(failed("reading ca.key"))?;
        let issuer = Issuer::from_ca_cert_pem(&cert, key).map_err(failed("reading ca.crt"))?;
        Ok(Self { issuer, fingerprint: hex(&Sha256::digest(cert.as_bytes())) })
    }

    /// Returns whether the certificate was made anew.
    fn issue(&self, name: &str, certificate: &Certificate, pki_dir: &Path) -> Result<bool, PkiError> {
        let (cert_path, key_path) =
            (pki_dir.join(format!("{name}.crt")), pki_dir.join(format!("{name}.key")));
        let request_path = pki_dir.join(format!(".{name}.request"));
        let request = format!("{} {certificate:?}\n", self.fingerprint);
        let same = fs::read_to_string(&request_path).is_ok_and(|old| old == request);
        if same && cert_path.exists() && key_path.exists() {
            return Ok(false);
        }
        let key = KeyPair::generate().map_err(failed(&format!("generating the key of {name}")))?;
        let params = leaf_params(certificate).map_err(failed(&format!("the names of {name}")))?;
        let cert = params.signed_by(&key, &self.issuer).map_err(failed(&format!("signing {name}")))?;
        write(&key_path, key.serialize_pem().as_bytes(), 0o600)?;
        write(&cert_path, cert.pem().as_bytes(), 0o644)?;
        write(&request_path, request.as_bytes(), 0o644)?;
        Ok(true)
    }
}

fn ca_params(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity(&mut params);
    params
}

fn leaf_params(certificate: &Certificate) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(certificate.dns.clone())?;
    params.distinguished_name = name(&certificate.common_name);
    params.subject_alt_names.extend(certificate.addresses.iter().map(|address| SanType::IpAddress(*address)));
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = certificate
        .usages
        .iter()
        .map(|usage| match usage {
            Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
        })
        .collect();
    validity(&mut params);
    Ok(params)
}

fn name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// A lab lives for hours; a fixed span needs no clock and survives machines whose clock is off.
fn validity(params: &mut CertificateParams) {
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2049, 12, 31);
}

fn failed(what: &str) -> impl FnOnce(rcgen::Error) -> PkiError {
    let what = what.to_owned();
    move |source| PkiError::Certificate { what, source }
}

fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(|source| PkiError::File {
        operation: "reading",
        path: path.to_owned(),
        source,
    })
}

/// Writes beside and renames, so that a reader never sees half a key.
fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), PkiError> {
    let fail = |source| PkiError::File { operation: "writing", path: path.to_owned(), source };
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary).map_err(fail)?;
    file.write_all(content).map_err(fail)?;
    fs::rename(&temporary, path).map_err(fail)
}

/// Writes over a file that is there: nodes have the file itself bound, not its folder.
fn write_over(path: &Path, content: &[u8]) -> Result<(), PkiError> {
    fs::write(path, content).map_err(|source| PkiError::File {
        operation: "writing",
        path: path.to_owned(),
        source,
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn wanted() -> Certificates {
        let mut certificates = Certificates { ca: "lab CA".into(), ..Certificates::default() };
        let server = Certificate {
            common_name: "east-etcd".into(),
            dns: vec!["east-etcd".into(), "localhost".into()],
            addresses: vec!["172.20.19.2".parse().unwrap(), "fd00:20:19::2".parse().unwrap()],
            usages: vec![Usage::Server, Usage::Client],
        };
        let client = Certificate {
            common_name: "agent-east".into(),
            dns: Vec::new(),
            addresses: Vec::new(),
            usages: vec![Usage::Client],
        };
        certificates.issue.insert("etcd-east".into(), server);
        certificates.issue.insert("agent-east".into(), client);
        certificates
    }

    #[test]
    fn issues_once_and_again_only_what_changed() {
        let dir = tempfile::tempdir().unwrap();
        let mut certificates = wanted();
        assert_eq!(issue_all(&certificates, dir.path()).unwrap(), ["agent-east", "etcd-east"]);
        assert!(issue_all(&certificates, dir.path()).unwrap().is_empty());
        certificates.issue.get_mut("etcd-east").unwrap().dns.push("other".into());
        assert_eq!(issue_all(&certificates, dir.path()).unwrap(), ["etcd-east"]);
        fs::remove_file(dir.path().join("ca.key")).unwrap();
        assert_eq!(issue_all(&certificates, dir.path()).unwrap().len(), 2, "a new CA makes all anew");
        let mode = fs::metadata(dir.path().join("agent-east.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_broken_ca_is_reported_with_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        issue_all(&wanted(), dir.path()).unwrap();
        fs::write(dir.path().join("ca.crt"), "nonsense").unwrap();
        let error = issue_all(&wanted(), dir.path()).unwrap_err().to_string();
        assert!(error.contains("ca.crt") && error.contains("bring the lab up again"), "{error}");
    }

    #[test]
    fn no_ca_no_files() {
        let dir = tempfile::tempdir().unwrap();
        assert!(issue_all(&Certificates::default(), dir.path()).unwrap().is_empty());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
