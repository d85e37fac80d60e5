//! Connections to etcd: Cilium's client file, mutual TLS with certificates read anew each time, errors told apart.

use crate::certificate::{self, Certificates, one_line};
use crate::error::MeshError;
use crate::follower::{Failure, FailureKind};
use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, TlsOptions};
use rand::seq::SliceRandom;
use serde::Deserialize;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::task::JoinSet;

/// Largest response that is taken (bytes); pages of 256 large values pass gRPC's default of 4 MiB.
pub const MAX_RESPONSE_BYTES: usize = 512 << 20;
/// Largest value that is written (bytes); etcd's default limit of a whole request is 1.5 MiB.
pub const MAX_VALUE_BYTES: usize = 1_500_000;
/// Longest a single request may take.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// Keys per page of a list.
pub const PAGE: i64 = 256;
const MAX_ENDPOINTS: usize = 64;
/// How long a member may take to answer before the next one is asked as well.
const NEXT_MEMBER: Duration = Duration::from_millis(500);

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
    /// Addresses of names in `endpoints` that need no resolver.
    #[serde(default, rename = "cilium-host-aliases")]
    pub host_aliases: Vec<HostAlias>,
}

/// A name and its addresses, as in a pod's `hostAliases`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct HostAlias {
    /// The name; the server's certificate must be for it.
    pub hostname: String,
    /// Where it is.
    pub ips: Vec<IpAddr>,
}

/// `https://host:port`, the host without brackets.
pub(crate) fn host_and_port(endpoint: &str) -> Option<(&str, u16)> {
    let rest = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    let authority = rest.split('/').next()?;
    let (host, port) = authority.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Some((host, port.parse().ok()?)).filter(|(host, _)| !host.is_empty())
}

impl EtcdConfig {
    /// Addresses of its members, as far as `endpoints` and `cilium-host-aliases` say them.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let hosts = self.endpoints.iter().filter_map(|endpoint| host_and_port(endpoint));
        let written = hosts.filter_map(|(host, _)| host.parse().ok());
        written.chain(self.host_aliases.iter().flat_map(|alias| alias.ips.iter().copied()))
    }
}

/// Where a member of an etcd is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    url: String,
    /// The name that its certificate must be for, if it is not the one in the URL.
    name: Option<String>,
}

/// One mistake in an etcd client configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// The key, as etcd's client file names it: `endpoints[0]`, `trusted-ca-file`, `cert-file`, `key-file`.
    pub key: String,
    /// What is wrong.
    pub reason: String,
    /// What to do.
    pub remedy: String,
}

impl std::fmt::Display for Flaw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}; {}", self.key, self.reason, self.remedy)
    }
}

/// Whether an endpoint is reached without TLS.
fn is_plain(endpoint: &str) -> bool {
    endpoint.starts_with("http://")
}

impl EtcdConfig {
    /// Reads the YAML text of `file`; relative paths count from its folder.
    ///
    /// # Errors
    /// [`MeshError::File`] with every mistake and what to write instead.
    pub fn parse(file: &Path, text: &str, allow_plaintext: bool) -> Result<Self, MeshError> {
        let bad = |reason: String| MeshError::File { file: file.display().to_string(), reason };
        let mut config: Self = serde_saphyr::from_str(text).map_err(|error| {
            let reason = one_line(&error.without_snippet().to_string());
            bad(format!("{reason}; write the keys endpoints, trusted-ca-file, cert-file and key-file"))
        })?;
        let folder = file.parent().unwrap_or_else(|| Path::new("."));
        for path in [&mut config.trusted_ca_file, &mut config.cert_file, &mut config.key_file] {
            if let Some(relative) = path.as_mut().filter(|path| path.is_relative()) {
                *relative = folder.join(&*relative);
            }
        }
        let flaws = config.check(allow_plaintext);
        if flaws.is_empty() {
            return Ok(config);
        }
        Err(bad(flaws.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ")))
    }

    /// Checks endpoints and the presence of certificates; every mistake is told.
    #[must_use]
    pub fn check(&self, allow_plaintext: bool) -> Vec<Flaw> {
        let mut flaws = Vec::new();
        let mut tell = |key: String, reason: String, remedy: &str| {
            flaws.push(Flaw { key, reason, remedy: remedy.to_owned() });
        };
        if self.endpoints.is_empty() || self.endpoints.len() > MAX_ENDPOINTS {
            let reason = format!("{} addresses", self.endpoints.len());
            tell("endpoints".to_owned(), reason, "name 1 to 64 addresses like https://host:2379");
        }
        for (at, endpoint) in self.endpoints.iter().enumerate().take(MAX_ENDPOINTS) {
            let key = format!("endpoints[{at}]");
            if is_plain(endpoint) && !allow_plaintext {
                let reason =
                    format!("{endpoint:?} is plaintext: anybody on the way reads and forges entries");
                let remedy = "use https://, or set allow_plaintext: true in agent.yaml to accept the risk";
                tell(key, reason, remedy);
            } else if !endpoint.starts_with("https://") && !is_plain(endpoint) {
                tell(key, format!("{endpoint:?} is no URL"), "write https://host:2379");
            }
        }
        if self.endpoints.is_empty() || self.endpoints.iter().any(|endpoint| !is_plain(endpoint)) {
            for (key, path) in [
                ("trusted-ca-file", &self.trusted_ca_file),
                ("cert-file", &self.cert_file),
                ("key-file", &self.key_file),
            ] {
                if path.is_none() {
                    tell(key.to_owned(), "is missing".to_owned(), "name the PEM file; mutual TLS needs it");
                }
            }
        }
        flaws
    }

    /// The addresses that stand for a name.
    pub(crate) fn aliases(&self, host: &str) -> Option<&[IpAddr]> {
        let alias = self.host_aliases.iter().find(|alias| alias.hostname.eq_ignore_ascii_case(host));
        alias.map(|alias| alias.ips.as_slice()).filter(|ips| !ips.is_empty())
    }

    /// Where to connect to: the endpoints, those with aliases once for each address.
    fn members(&self) -> Vec<Member> {
        let of = |endpoint: &String| -> Vec<Member> {
            let plain = || vec![Member { url: endpoint.clone(), name: None }];
            let Some((host, port)) = host_and_port(endpoint) else { return plain() };
            let Some(ips) = self.aliases(host) else { return plain() };
            let scheme = endpoint.split_once("://").map_or("https", |(scheme, _)| scheme);
            let at = |ip: &IpAddr| Member {
                url: format!("{scheme}://{}", SocketAddr::new(*ip, port)),
                name: Some(host.to_owned()),
            };
            ips.iter().map(at).collect()
        };
        self.endpoints.iter().flat_map(of).take(MAX_ENDPOINTS).collect()
    }

    /// Whether any endpoint is reached without TLS.
    #[must_use]
    pub fn is_plaintext(&self) -> bool {
        self.endpoints.iter().any(|endpoint| is_plain(endpoint))
    }

    /// The certificate files, read now and judged; `None` if no endpoint needs them.
    ///
    /// # Errors
    /// [`MeshError::Read`] or [`MeshError::Certificate`], naming the file.
    pub async fn certificates(&self) -> Result<Option<Certificates>, MeshError> {
        match (&self.trusted_ca_file, &self.cert_file, &self.key_file) {
            (Some(ca), Some(cert), Some(key))
                if !self.endpoints.iter().all(|endpoint| is_plain(endpoint)) =>
            {
                certificate::load(ca, cert, key).await.map(Some)
            }
            _ => Ok(None),
        }
    }

    /// A client with freshly read certificates, and these. Endpoints are dialled when the first request is made.
    ///
    /// # Errors
    /// [`MeshError::Read`] or [`MeshError::Certificate`] for certificate files, [`MeshError::Request`] when the endpoints
    /// are unusable.
    pub async fn client(&self) -> Result<(Client, Option<Certificates>), MeshError> {
        let options = ConnectOptions::new()
            .with_connect_timeout(Duration::from_secs(5))
            .with_keep_alive(Duration::from_secs(15), Duration::from_secs(25))
            .with_keep_alive_while_idle(false)
            // A member that is cut off from the majority ends watches instead of staying silent.
            .with_require_leader(true);
        let certificates = self.certificates().await?;
        let tls = certificates.as_ref().map(|files| {
            let identity = Identity::from_pem(&files.cert, &files.key);
            TlsOptions::new().ca_certificate(Certificate::from_pem(&files.ca)).identity(identity)
        });
        let mut members = self.members();
        members.shuffle(&mut rand::rng());
        let client = connect_any(members, &options, tls.as_ref()).await.map_err(|error| self.blame(error))?;
        Ok((client, certificates))
    }

    /// Names the certificate file that a failed handshake is about.
    pub(crate) fn blame(&self, error: MeshError) -> MeshError {
        let MeshError::Request { why, .. } = &error else { return error };
        let lower = why.to_lowercase();
        let at = self.endpoints.join(" ");
        let signer = ["unknownissuer", "badsignature"].iter().any(|word| lower.contains(word));
        let (file, reason, remedy) = if lower.contains("invalid peer certificate") && signer {
            let reason = format!("no CA in this file signed the certificate of the server at {at} ({why})");
            (&self.trusted_ca_file, reason, "copy the CA of that cluster's etcd there")
        } else if lower.contains("received fatal alert") {
            let reason = format!("the server at {at} refuses this client certificate ({why})");
            let remedy =
                "issue it by a CA that the server trusts (etcd's --trusted-ca-file), and compare both clocks";
            (&self.cert_file, reason, remedy)
        } else {
            return error;
        };
        match file {
            Some(file) => MeshError::Certificate { file: file.clone(), reason, remedy: remedy.to_owned() },
            None => error,
        }
    }

    /// Tells whether a renewal needs a new connection.
    pub(crate) async fn fingerprint(&self) -> [u8; 32] {
        let files = [&self.trusted_ca_file, &self.cert_file, &self.key_file];
        certificate::fingerprint(files.map(Option::as_ref)).await
    }
}

/// A client of one member: the first that answers and has a leader, else the first that answers. The members are asked one after
/// the other, the next one when the last has not answered for a moment; so one that is dead or cut off costs that moment. (A
/// client of all at once would send each request to another, and one dead member would fail every third of three.)
async fn connect_any(
    members: Vec<Member>,
    options: &ConnectOptions,
    tls: Option<&TlsOptions>,
) -> Result<Client, MeshError> {
    let options_of = |member: &Member| match (tls, &member.name) {
        (None, _) => options.clone(),
        (Some(tls), None) => options.clone().with_tls(tls.clone()),
        (Some(tls), Some(name)) => options.clone().with_tls(tls.clone().domain_name(name)),
    };
    if let [only] = members.as_slice() {
        // The first request says how it is.
        let client = Client::connect(&[&only.url], Some(options_of(only))).await;
        return client.map_err(|error| request_error(format!("connecting to {}", only.url), &error));
    }
    let mut waiting = members.into_iter();
    let mut asked = JoinSet::new();
    let (mut leaderless, mut failed) = (None, None);
    loop {
        if let Some(member) = waiting.next() {
            let options = options_of(&member);
            asked.spawn(ask(member.url, options));
        }
        let more = waiting.len() > 0;
        let answer = tokio::select! {
            answer = asked.join_next() => answer,
            () = tokio::time::sleep(NEXT_MEMBER), if more => continue,
        };
        match answer {
            Some(Ok(Ok((client, true)))) => return Ok(client),
            Some(Ok(Ok((client, false)))) => leaderless = leaderless.or(Some(client)),
            Some(Ok(Err(error))) => failed = failed.or(Some(error)),
            // A task that was ended says nothing of its member.
            Some(Err(_)) => {}
            None if more => {}
            None => {
                return leaderless.map(Ok).unwrap_or_else(|| {
                    Err(failed.unwrap_or_else(|| MeshError::Request {
                        what: "connecting".to_owned(),
                        why: "there is no endpoint".to_owned(),
                        kind: FailureKind::Other,
                    }))
                });
            }
        }
    }
}

/// Connects to one member and asks whether it has a leader.
async fn ask(url: String, options: ConnectOptions) -> Result<(Client, bool), MeshError> {
    let what = || format!("connecting to {url}");
    let client = Client::connect(&[&url], Some(options)).await;
    let client = client.map_err(|error| request_error(what(), &error))?;
    let mut maintenance = client.maintenance_client();
    let status = request(what, maintenance.status()).await?;
    Ok((client, status.leader() != 0))
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

/// A connection that is of no use any more: what failed on it, and why, with what to try.
pub(crate) const fn broken(what: String, why: String) -> MeshError {
    MeshError::Request { what, why, kind: FailureKind::Transport }
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

/// What to try when a majority of an etcd's members is missing.
pub(crate) const NO_LEADER: &str = "; a majority of that etcd's members is down or cut off: bring them back, what is known stays in use until then";
/// What etcd says then.
const NO_LEADER_TEXTS: [&str; 3] =
    ["etcdserver: no leader", "etcdserver: leader changed", "due to no leader"];

/// Tells failures apart by what etcd says; the client library does not.
pub(crate) fn kind_of(text: &str) -> FailureKind {
    if text.contains("permission denied") {
        FailureKind::Denied
    } else if text.contains("has been compacted") {
        FailureKind::Compacted
    } else if text.contains("message length too large") {
        FailureKind::TooLarge
    } else if NO_LEADER_TEXTS.iter().any(|known| text.contains(known)) {
        FailureKind::NoLeader
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
    } else if kind == FailureKind::NoLeader {
        NO_LEADER
    } else if lower.contains("refused") {
        "; check that etcd runs and listens there"
    } else if lower.contains("certificate") && lower.contains("expired") {
        "; the server's certificate has expired: renew it there, or correct this node's clock"
    } else if lower.contains("not valid for name") || lower.contains("notvalidforname") {
        "; the server's certificate is for other names: correct the endpoint, or issue it for this name or address"
    } else if ["certificate", "tls", "handshake", "alert"].iter().any(|word| lower.contains(word)) {
        "; does etcd speak TLS there, and is its certificate in order?"
    } else if lower.contains("dns") || lower.contains("lookup") {
        "; check the endpoint's name"
    } else if lower.contains("unreachable") || lower.contains("timed out") {
        "; check routes and firewalls on the way"
    } else if lower.contains("nospace") || lower.contains("space exceeded") {
        "; etcd is out of quota: compact, defragment and disarm its alarm"
    } else if lower.contains("lease not found") {
        "; it ended before it was kept alive: what hung on it is written again, if that goes on look at etcd's load"
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
            parse("endpoints: [https://a:1]\n", false).unwrap_err().contains("trusted-ca-file: is missing")
        );
        assert!(parse("endpoints: []\n", false).unwrap_err().contains("1 to 64"));
        assert!(parse("endpoints: [a:1]\n", false).unwrap_err().contains("https://"));
        for torn in ["{", "endpoints: [\n- a\n", "endpoints: 3\ncert-file: [\n", "\ttabs: 1\n", ""] {
            let text = parse(torn, false).unwrap_err();
            assert!(text.contains("west.yaml") && !text.contains('\n'), "{torn:?}: {text}");
        }
        let both = parse("endpoints: [http://a:1, b]\n", false).unwrap_err();
        for key in ["endpoints[0]", "endpoints[1]", "trusted-ca-file", "cert-file", "key-file"] {
            assert!(both.contains(key), "{key}: {both}");
        }
    }

    #[test]
    fn aliases_stand_for_names() {
        let text = "endpoints: ['https://west.mesh.cilium.io:2379', 'https://192.0.2.9:2379']\ncilium-host-aliases: [{hostname: West.mesh.cilium.io, ips: [192.0.2.1, '2001:db8::1']}, {hostname: other, ips: []}]\n";
        let config: EtcdConfig = serde_saphyr::from_str(text).unwrap();
        let member =
            |url: &str, name: Option<&str>| Member { url: url.to_owned(), name: name.map(str::to_owned) };
        let name = Some("west.mesh.cilium.io");
        let wanted = [
            member("https://192.0.2.1:2379", name),
            member("https://[2001:db8::1]:2379", name),
            member("https://192.0.2.9:2379", None),
        ];
        assert_eq!(config.members(), wanted);
    }

    #[test]
    fn failures_are_told_apart() {
        assert_eq!(kind_of("etcdserver: permission denied"), FailureKind::Denied);
        let text = "etcdserver: mvcc: required revision has been compacted";
        assert_eq!(kind_of(text), FailureKind::Compacted);
        assert_eq!(kind_of("etcdserver: mvcc: required revision is a future revision"), FailureKind::Other);
        for text in ["etcdserver: no leader", "etcdserver: request timed out, possibly due to no leader"] {
            assert_eq!(kind_of(text), FailureKind::NoLeader);
        }
    }
}
