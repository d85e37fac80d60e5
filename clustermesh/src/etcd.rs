//! Connections to etcd: Cilium's client file, mutual TLS with certificates read anew each time, errors told apart.

use crate::error::MeshError;
use crate::follower::{Failure, FailureKind};
use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, TlsOptions};
use rand::seq::SliceRandom;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Largest response that is taken (bytes); pages of 256 large values pass gRPC's default of 4 MiB.
pub const MAX_RESPONSE_BYTES: usize = 512 << 20;
/// Largest value that is written (bytes); etcd's default limit of a whole request is 1.5 MiB.
pub const MAX_VALUE_BYTES: usize = 1_500_000;
/// Longest a single request may take.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// Keys per page of a list.
pub const PAGE: i64 = 256;
const MAX_ENDPOINTS: usize = 64;

/// An etcd client file in the form of etcd's own client (`endpoints`, `trusted-ca-file`, `cert-file`, `key-file`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct EtcdConfig {
    /// `https://host:port`, tried in random order.
    pub endpoints: Vec<String>,
    /// The CA that signed the server's certificate.
    #[serde(default)]
    pub trusted_ca_file: Option<PathBuf>,
    /// Our certificate.
    #[serde(default)]
    pub cert_file: Option<PathBuf>,
    /// Its private key.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
}

impl EtcdConfig {
    /// Reads the YAML text of `file`; relative paths count from its folder.
    ///
    /// # Errors
    /// [`MeshError::File`] with what to write instead.
    pub fn parse(file: &Path, text: &str, allow_plaintext: bool) -> Result<Self, MeshError> {
        let bad = |reason: String| MeshError::File { file: file.display().to_string(), reason };
        let mut config: Self = serde_saphyr::from_str(text).map_err(|error| {
            bad(format!("{error}; expected endpoints, trusted-ca-file, cert-file and key-file"))
        })?;
        let folder = file.parent().unwrap_or_else(|| Path::new("."));
        for path in [&mut config.trusted_ca_file, &mut config.cert_file, &mut config.key_file] {
            if let Some(relative) = path.as_mut().filter(|path| path.is_relative()) {
                *relative = folder.join(&*relative);
            }
        }
        config.check(allow_plaintext).map_err(bad)?;
        Ok(config)
    }

    /// Checks endpoints and certificates' presence.
    ///
    /// # Errors
    /// What is wrong and what to write instead.
    pub fn check(&self, allow_plaintext: bool) -> Result<(), String> {
        if self.endpoints.is_empty() || self.endpoints.len() > MAX_ENDPOINTS {
            return Err(format!("endpoints must name 1 to {MAX_ENDPOINTS} addresses like https://host:2379"));
        }
        for endpoint in &self.endpoints {
            if endpoint.starts_with("http://") && !allow_plaintext {
                return Err(format!(
                    "endpoint {endpoint} is plaintext; use https://, or set allow_plaintext to accept the risk"
                ));
            }
            if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
                return Err(format!("endpoint {endpoint} must start with https://"));
            }
        }
        let missing = [
            ("trusted-ca-file", &self.trusted_ca_file),
            ("cert-file", &self.cert_file),
            ("key-file", &self.key_file),
        ];
        let secure = self.endpoints.iter().any(|endpoint| endpoint.starts_with("https://"));
        match missing.iter().find(|(_, path)| path.is_none()) {
            Some((name, _)) if secure => Err(format!("{name} is missing; mutual TLS needs it")),
            _ => Ok(()),
        }
    }

    async fn tls(&self) -> Result<Option<TlsOptions>, MeshError> {
        let (Some(ca), Some(cert), Some(key)) = (&self.trusted_ca_file, &self.cert_file, &self.key_file)
        else {
            return Ok(None);
        };
        let ca = read("CA file", ca).await?;
        let cert = read("certificate", cert).await?;
        let key = read("private key", key).await?;
        Ok(Some(
            TlsOptions::new()
                .ca_certificate(Certificate::from_pem(ca))
                .identity(Identity::from_pem(cert, key)),
        ))
    }

    /// A client with freshly read certificates. Endpoints are dialled when the first request is made.
    ///
    /// # Errors
    /// [`MeshError::Read`] for certificate files, [`MeshError::Request`] when they or the endpoints are unusable.
    pub async fn client(&self) -> Result<Client, MeshError> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(Duration::from_secs(5))
            .with_keep_alive(Duration::from_secs(15), Duration::from_secs(25))
            .with_keep_alive_while_idle(false);
        if self.endpoints.iter().any(|endpoint| endpoint.starts_with("https://"))
            && let Some(tls) = self.tls().await?
        {
            options = options.with_tls(tls);
        }
        let mut endpoints = self.endpoints.clone();
        endpoints.shuffle(&mut rand::rng());
        Client::connect(&endpoints, Some(options))
            .await
            .map_err(|error| request_error(format!("connecting to {}", endpoints.join(" ")), &error))
    }

    /// When our certificate ends, in seconds since 1970; `None` if there is none or it cannot be read.
    pub async fn certificate_expiry(&self) -> Option<i64> {
        let pem = tokio::fs::read(self.cert_file.as_ref()?).await.ok()?;
        let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).ok()?;
        pem.parse_x509().ok().map(|certificate| certificate.validity().not_after.timestamp())
    }

    /// The bytes of all certificate files: tells whether a renewal needs a new connection.
    pub(crate) async fn certificates(&self) -> Vec<u8> {
        let mut all = Vec::new();
        for path in [&self.trusted_ca_file, &self.cert_file, &self.key_file].into_iter().flatten() {
            all.extend(tokio::fs::read(path).await.unwrap_or_default());
        }
        all
    }
}

async fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, MeshError> {
    tokio::fs::read(path).await.map_err(|source| MeshError::Read { what, path: path.to_owned(), source })
}

/// Bounds the time of a request and turns its error into text with a remedy.
pub(crate) async fn request<T>(
    what: impl Fn() -> String,
    call: impl Future<Output = Result<T, Error>>,
) -> Result<T, MeshError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(request_error(what(), &error)),
        Err(_) => Err(MeshError::Request {
            what: what(),
            why: format!(
                "no answer within {} s; check the network and etcd's load",
                REQUEST_TIMEOUT.as_secs()
            ),
            kind: FailureKind::Transport,
        }),
    }
}

pub(crate) fn request_error(what: String, error: &Error) -> MeshError {
    let (kind, why) = explain(error);
    MeshError::Request { what, why, kind }
}

impl From<&MeshError> for Failure {
    fn from(error: &MeshError) -> Self {
        let kind = match error {
            MeshError::Request { kind, .. } => *kind,
            _ => FailureKind::Other,
        };
        Self { kind, text: error.to_string() }
    }
}

/// Tells failures apart by what etcd says; the client library does not.
pub(crate) fn kind_of(text: &str) -> FailureKind {
    if text.contains("permission denied") {
        FailureKind::Denied
    } else if text.contains("has been compacted") {
        FailureKind::Compacted
    } else {
        FailureKind::Other
    }
}

fn explain(error: &Error) -> (FailureKind, String) {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    if let Error::GRpcStatus(status) = error {
        text = format!("{:?}: {}", status.code(), status.message());
        cause = std::error::Error::source(status);
    } else if let Error::TransportError(transport) = error {
        text = transport.to_string();
        cause = std::error::Error::source(transport);
    }
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    let kind = match (error, kind_of(&text)) {
        (Error::GRpcStatus(_), FailureKind::Other) if text.contains("etcdserver: ") => FailureKind::Other,
        (_, FailureKind::Other) => FailureKind::Transport,
        (_, known) => known,
    };
    let lower = text.to_lowercase();
    let remedy = if kind == FailureKind::Denied {
        "; give the certificate's user a role that covers this range"
    } else if lower.contains("refused") {
        "; check that etcd runs and listens there"
    } else if ["certificate", "tls", "handshake", "alert"].iter().any(|word| lower.contains(word)) {
        "; check the CA, the client certificate and their dates"
    } else if lower.contains("dns") || lower.contains("lookup") {
        "; check the endpoint's name"
    } else if lower.contains("unreachable") || lower.contains("timed out") {
        "; check routes and firewalls on the way"
    } else if lower.contains("nospace") || lower.contains("space exceeded") {
        "; etcd is out of quota: compact, defragment and disarm its alarm"
    } else {
        ""
    };
    (kind, format!("{text}{remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_files() {
        let file = Path::new("/etc/mesh/west.yaml");
        let parse =
            |text: &str, plain| EtcdConfig::parse(file, text, plain).map_err(|error| error.to_string());
        let good = "endpoints: [https://192.0.2.1:2379]\ntrusted-ca-file: ca.crt\ncert-file: /a/c.crt\nkey-file: /a/c.key\ncilium-host-aliases: []\n";
        let config = parse(good, false).unwrap();
        assert_eq!(config.trusted_ca_file.as_deref(), Some(Path::new("/etc/mesh/ca.crt")));
        assert_eq!(config.cert_file.as_deref(), Some(Path::new("/a/c.crt")));
        let plain = "endpoints:\n- http://192.0.2.1:2379\n";
        assert!(parse(plain, true).is_ok());
        assert!(parse(plain, false).unwrap_err().contains("plaintext"));
        assert!(
            parse("endpoints: [https://a:1]\n", false).unwrap_err().contains("trusted-ca-file is missing")
        );
        assert!(parse("endpoints: []\n", false).unwrap_err().contains("1 to 64"));
        assert!(parse("endpoints: [a:1]\n", false).unwrap_err().contains("https://"));
        assert!(parse("{", false).unwrap_err().contains("west.yaml"));
    }

    #[test]
    fn failures_are_told_apart() {
        assert_eq!(kind_of("etcdserver: permission denied"), FailureKind::Denied);
        let text = "etcdserver: mvcc: required revision has been compacted";
        assert_eq!(kind_of(text), FailureKind::Compacted);
        assert_eq!(kind_of("etcdserver: mvcc: required revision is a future revision"), FailureKind::Other);
    }
}
