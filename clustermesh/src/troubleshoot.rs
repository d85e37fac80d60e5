//! Walks the way to another cluster step by step, from its file to its canaries, and says which step fails and what to do.

use crate::certificate::{self, Certificates, date, one_line, unix_now};
use crate::error::MeshError;
use crate::etcd::{EtcdConfig, host_and_port, request};
use crate::follower::FailureKind;
use crate::rfc3339;
use crate::wire::relay::RelayReport;
use crate::wire::{ClusterConfig, KINDS, Kind, Layout, ServicePreference, key};
use etcd_client::{Client, GetOptions, KeyValue};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tombolo_base::ids::{ClusterId, ClusterName, MaxClusters};

/// Longest a step may take.
const STEP: Duration = Duration::from_secs(5);
/// A heartbeat older than this is that of a writer that has stopped, in seconds.
const HEARTBEAT_SECS: i64 = 120;

/// Who looks.
#[derive(Clone, Debug)]
pub struct Viewpoint {
    /// The folder of cluster files.
    pub folder: PathBuf,
    /// The cluster that looks, which is not walked to.
    pub own: ClusterName,
    /// Its number; `None` for a reader that is of no cluster.
    pub own_id: Option<ClusterId>,
    /// The size of the mesh.
    pub max: MaxClusters,
    /// Accept `http://` endpoints.
    pub allow_plaintext: bool,
    /// Which form of backends is read where a cluster publishes both.
    pub preference: ServicePreference,
    /// The etcd that a relay mirrors the clusters in: all are read from there, and the files only name them.
    pub relay: Option<EtcdConfig>,
}

/// Where a cluster is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// In its own etcd.
    Direct,
    /// In a mirror.
    Mirror,
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Mirror => "mirror",
        })
    }
}

/// The way to one cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Walk {
    /// Its name.
    pub cluster: String,
    /// Which way was walked.
    pub way: Way,
    /// In the order they were taken; those behind a failing one are not taken.
    pub steps: Vec<Step>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// `file`, `certificates`, `name`, `tcp`, `tls`, `etcd`, `heartbeat`, `relay`, `configuration`, `canaries`.
    pub step: String,
    /// What it was taken at: a folder, a file, an endpoint, a key.
    pub at: String,
    /// Whether it succeeded.
    pub ok: bool,
    /// What was found, or what is wrong and what to do.
    pub detail: String,
}

impl Walk {
    fn new(cluster: String, from: &Viewpoint) -> Self {
        let way = if from.relay.is_some() { Way::Mirror } else { Way::Direct };
        Self { cluster, way, steps: Vec::new() }
    }

    /// Whether every step succeeded.
    #[must_use]
    pub fn ok(&self) -> bool {
        self.steps.iter().all(|step| step.ok)
    }

    /// Takes note of a step; its value if it succeeded.
    fn take<T>(
        &mut self,
        step: &str,
        at: impl Into<String>,
        outcome: Result<(T, String), String>,
    ) -> Option<T> {
        let (value, detail) = match outcome {
            Ok((value, detail)) => (Some(value), detail),
            Err(reason) => (None, reason),
        };
        let ok = value.is_some();
        self.steps.push(Step { step: step.to_owned(), at: at.into(), ok, detail: one_line(&detail) });
        value
    }
}

/// Walks to every cluster of the folder, or to one of them, one after the other.
///
/// # Errors
/// [`MeshError::File`] when the folder cannot be listed.
pub async fn walk(from: &Viewpoint, only: Option<&str>) -> Result<Vec<Walk>, MeshError> {
    let scan = crate::follower::scan(&from.folder, &from.own, from.allow_plaintext)
        .await
        .map_err(|reason| MeshError::File { file: from.folder.display().to_string(), reason })?;
    let folder = || from.folder.display().to_string();
    let wanted = |name: &str| only.is_none_or(|only| only == name);
    let mut walks = Vec::new();
    for (name, reason) in scan.broken.into_iter().filter(|(name, _)| wanted(name)) {
        let mut walk = Walk::new(name, from);
        walk.take::<()>("file", folder(), Err(reason));
        walks.push(walk);
    }
    for (cluster, (etcd, _)) in scan.remotes.into_iter().filter(|(name, _)| wanted(name.as_str())) {
        let mut walk = Walk::new(cluster.to_string(), from);
        let (etcd, told) = match &from.relay {
            None => (etcd, ""),
            Some(relay) => (relay.clone(), "only names the cluster, which is read through the relay at "),
        };
        walk.take("file", folder(), Ok(((), format!("{told}{}", etcd.endpoints.join(" ")))));
        walk_to(&mut walk, from, &cluster, etcd).await;
        walks.push(walk);
    }
    if let Some(only) = only.filter(|_| walks.is_empty()) {
        let mut walk = Walk::new(only.to_owned(), from);
        let reason = format!("there is no file for it; write {only}.yaml there, an etcd client file");
        walk.take::<()>("file", folder(), Err(reason));
        walks.push(walk);
    }
    walks.sort_by(|left, right| left.cluster.cmp(&right.cluster));
    Ok(walks)
}

async fn walk_to(walk: &mut Walk, from: &Viewpoint, cluster: &ClusterName, etcd: EtcdConfig) {
    let certificates = match etcd.certificates().await {
        Ok(Some(files)) => {
            let end = date(files.expiry.not_after_unix_secs);
            let detail = format!("good until {end} ({})", files.expiry.short(unix_now()));
            let at = files.expiry.file.display().to_string();
            walk.take("certificates", at, Ok((Some(files), detail)))
        }
        Ok(None) => walk.take(
            "certificates",
            "-",
            Ok((None, "none: plaintext, anybody on the way reads and forges".to_owned())),
        ),
        Err(error) => walk.take("certificates", "-", Err(error.to_string())),
    };
    let Some(certificates) = certificates else { return };
    let mut reached = None;
    for endpoint in &etcd.endpoints {
        if reach(walk, endpoint, &etcd, certificates.as_ref()).await {
            reached.get_or_insert_with(|| endpoint.clone());
        }
    }
    if let Some(endpoint) = reached {
        // Past one that does not answer: the agents' client tries all of them.
        let etcd = EtcdConfig { endpoints: vec![endpoint], ..etcd };
        ask(walk, from, cluster, &etcd).await;
    }
}

/// Name, TCP and TLS of one endpoint.
async fn reach(
    walk: &mut Walk,
    endpoint: &str,
    etcd: &EtcdConfig,
    certificates: Option<&Certificates>,
) -> bool {
    let Some((host, port)) = host_and_port(endpoint) else {
        let reason = "is no address; write https://host:2379 in the file".to_owned();
        walk.take::<()>("name", endpoint, Err(reason));
        return false;
    };
    let resolved = resolve(host, port, etcd.aliases(host)).await;
    let Some(addresses) = walk.take("name", host, resolved) else { return false };
    let mut stream = None;
    for address in addresses.iter().take(8) {
        let connected = connect(*address).await;
        stream = walk.take("tcp", address.to_string(), connected).or(stream);
    }
    let Some(stream) = stream else { return false };
    match certificates.filter(|_| endpoint.starts_with("https://")) {
        None => true,
        Some(files) => {
            let outcome = handshake(stream, host, files).await;
            walk.take("tls", endpoint, outcome).is_some()
        }
    }
}

/// The addresses of a host, from the file's aliases or the resolver, and how they are told.
async fn resolve(
    host: &str,
    port: u16,
    aliases: Option<&[IpAddr]>,
) -> Result<(Vec<SocketAddr>, String), String> {
    let shown = |all: &[SocketAddr]| all.iter().map(|at| at.ip().to_string()).collect::<Vec<_>>().join(" ");
    if let Some(ips) = aliases {
        let all: Vec<_> = ips.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
        let text = format!("{} by cilium-host-aliases", shown(&all));
        return Ok((all, text));
    }
    match tokio::time::timeout(STEP, tokio::net::lookup_host((host, port))).await {
        Ok(Ok(found)) => {
            let all: Vec<_> = found.collect();
            let text = shown(&all);
            Ok((all, text))
        }
        Ok(Err(error)) => Err(format!("{error}; check the name in the file, and this node's resolver")),
        Err(_) => Err("the resolver does not answer within 5 s; check /etc/resolv.conf".to_owned()),
    }
}

async fn connect(address: SocketAddr) -> Result<(TcpStream, String), String> {
    let start = Instant::now();
    match tokio::time::timeout(STEP, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => {
            let micros = start.elapsed().as_micros();
            Ok((stream, format!("answers after {}.{:03} ms", micros / 1000, micros % 1000)))
        }
        Ok(Err(error)) => Err(format!(
            "{error}; does etcd run and listen there, and do routes and firewalls let us through?"
        )),
        Err(_) => Err("no answer within 5 s; check routes and firewalls on the way".to_owned()),
    }
}

async fn handshake(stream: TcpStream, host: &str, files: &Certificates) -> Result<((), String), String> {
    let wrong = |error: rustls::Error| error.to_string();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&files.ca).filter_map(Result::ok));
    let chain = CertificateDer::pem_slice_iter(&files.cert).filter_map(Result::ok).collect();
    let key = PrivateKeyDer::from_pem_slice(&files.key).map_err(|error| error.to_string())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(wrong)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(wrong)?;
    let name = ServerName::try_from(host.to_owned()).map_err(|error| format!("{host:?}: {error}"))?;
    let connector = TlsConnector::from(Arc::new(config));
    match tokio::time::timeout(STEP, connector.connect(name, stream)).await {
        Ok(Ok(stream)) => {
            let (_, session) = stream.get_ref();
            let version = session.protocol_version().and_then(|version| version.as_str()).unwrap_or("TLS");
            let server = session.peer_certificates().and_then(<[_]>::first);
            let end = server.and_then(|der| certificate::not_after(der));
            let end =
                end.map_or_else(String::new, |end| format!(", server certificate good until {}", date(end)));
            Ok(((), format!("{version}{end}")))
        }
        Ok(Err(error)) => {
            let text = error.to_string();
            let lower = text.to_lowercase();
            let remedy = if lower.contains("unknownissuer") || lower.contains("badsignature") {
                "no CA in trusted-ca-file signed the server's certificate: copy the CA of that cluster's etcd there"
            } else if lower.contains("notvalidforname") || lower.contains("not valid for name") {
                "the server's certificate is for other names: correct the endpoint, or issue it for this name or address"
            } else if lower.contains("expired") {
                "the server's certificate has expired: renew it there, or correct this node's clock"
            } else {
                "does etcd speak TLS there?"
            };
            Err(format!("{text}; {remedy}"))
        }
        Err(_) => Err("no answer within 5 s; does etcd speak TLS there?".to_owned()),
    }
}

/// What etcd answers: rights, heartbeat, configuration, canaries.
async fn ask(walk: &mut Walk, from: &Viewpoint, cluster: &ClusterName, etcd: &EtcdConfig) {
    let client = match etcd.client().await {
        Ok((client, _)) => client,
        Err(error) => {
            walk.take::<()>("etcd", etcd.endpoints.join(" "), Err(error.to_string()));
            return;
        }
    };
    let told = |error| etcd.blame(error).to_string();
    let found = first(&client, key::HEARTBEAT).await.map_err(told);
    let Some(heartbeat) = walk.take("etcd", key::HEARTBEAT, found.map(|kv| (kv, "may be read".to_owned())))
    else {
        return;
    };
    walk.take("heartbeat", key::HEARTBEAT, age(heartbeat.as_ref(), unix_now()));
    if from.relay.is_some() {
        take_report(walk, cluster, &client).await;
    }
    let name = key::cluster_config(cluster.as_str());
    let config = match get(&client, &name).await.map_err(told) {
        Ok(Some(kv)) => judge(&kv, from),
        Ok(None) if from.relay.is_some() => Err("is not there: no relay has mirrored this cluster; does `tombolo relay` run, and does `tombolo relay status` know it?".to_owned()),
        Ok(None) => Err("is not there; is that the etcd of this cluster, is the file named after it, and does its agent (Cilium: clustermesh-apiserver) run?".to_owned()),
        Err(reason) => Err(reason),
    };
    let Some(config) = walk.take("configuration", name, config) else { return };
    if from.relay.is_none() && config.layout() == Layout::Cache {
        walk.way = Way::Mirror;
        take_report(walk, cluster, &client).await;
    }
    for kind in read_of(&config, from.preference) {
        let prefix = kind.prefix(config.layout(), cluster.as_str());
        let found = first(&client, &prefix).await.map_err(told);
        let found = found.map(|kv| {
            ((), if kv.is_some() { "may be read" } else { "may be read, holds nothing" }.to_owned())
        });
        walk.take("etcd", prefix, found);
        if config.capabilities.synced_canaries {
            let canary = kind.canary(config.layout(), cluster.as_str());
            let found = match get(&client, &canary).await.map_err(told) {
                Ok(Some(kv)) => {
                    Ok(((), format!("since {}", String::from_utf8_lossy(kv.value()).escape_debug())))
                }
                Ok(None) => Err(missing(kind, config.layout())),
                Err(reason) => Err(reason),
            };
            walk.take("canaries", canary, found);
        }
    }
}

/// What the relay that writes a mirror says of the cluster.
async fn take_report(walk: &mut Walk, cluster: &ClusterName, client: &Client) {
    let (status, leases) = (key::relay_status(cluster.as_str()), key::relay_leases(cluster.as_str()));
    let found = match get(client, &status).await {
        Ok(Some(kv)) => match RelayReport::decode(kv.value()) {
            Some(report) if report.ready => Ok(format!("the relay {} confirms the mirror", report.relay)),
            Some(report) => Err(format!("the relay {} does not confirm it: {}", report.relay, report.status)),
            None => Err("cannot be read; run relays and agents of one version".to_owned()),
        },
        Ok(None) => match get(client, &leases).await {
            Ok(Some(_)) => {
                Err("no relay is elected, so the mirror is not kept up; start `tombolo relay`".to_owned())
            }
            Ok(None) => {
                Ok("nothing is there: a mirror would be another program's, and is taken as it is".to_owned())
            }
            Err(error) => Err(error.to_string()),
        },
        // Agents read the mirror all the same.
        Err(MeshError::Request { kind: FailureKind::Denied, .. }) => {
            Ok(format!("not known: this user may not read {}", key::RELAY))
        }
        Err(error) => Err(error.to_string()),
    };
    walk.take("relay", status, found.map(|text| ((), text)));
}

/// The kinds that agents read of a cluster: of the form of backends that it lacks no canary may ever come.
fn read_of(config: &ClusterConfig, preference: ServicePreference) -> impl Iterator<Item = Kind> + use<> {
    let forms = config.capabilities.reader(preference);
    KINDS
        .into_iter()
        .chain([Kind::EndpointSlices, Kind::ServiceExports])
        .filter(move |kind| forms.reads(*kind))
}

fn missing(kind: Kind, layout: Layout) -> String {
    let who = match layout {
        Layout::State => "its writer (our elected agent, Cilium's clustermesh-apiserver)",
        Layout::Cache => "the relay there (Cilium: kvstoremesh)",
    };
    format!(
        "is not there, so the list of {kind} is not complete yet; {who} writes it when everything else is written: look at its log"
    )
}

fn judge(kv: &KeyValue, from: &Viewpoint) -> Result<(ClusterConfig, String), String> {
    let config = ClusterConfig::decode(kv.value()).map_err(|error| error.to_string())?;
    let id = config.check(from.own_id, from.max).map_err(|error| error.to_string())?;
    let layout = match config.layout() {
        Layout::State => "state",
        Layout::Cache => "cache",
    };
    let canaries = if config.capabilities.synced_canaries { "with" } else { "without" };
    let detail = format!("id {id}, {layout} layout, {canaries} canaries");
    Ok((config, detail))
}

/// The age of a heartbeat by its writer's clock.
fn age(heartbeat: Option<&KeyValue>, now: i64) -> Result<((), String), String> {
    let Some(kv) = heartbeat else {
        return Err(
            "is not there; its writer (our elected agent, Cilium's clustermesh-apiserver) does not run"
                .to_owned(),
        );
    };
    let text = String::from_utf8_lossy(kv.value());
    let Some(written) = rfc3339::parse(&text) else {
        // What it says is nobody's business: agents look at when it changes.
        return Ok((
            (),
            format!("is there, and says no time: {:?}", text.chars().take(80).collect::<String>()),
        ));
    };
    let secs = now.saturating_sub(written);
    if secs > HEARTBEAT_SECS {
        return Err(format!(
            "was written {secs} s ago, by its writer's clock: it has stopped, or the clocks differ"
        ));
    }
    if secs < -HEARTBEAT_SECS {
        return Err(format!("was written {} s in the future: the clocks differ", secs.saturating_neg()));
    }
    Ok(((), format!("written {} s ago", secs.max(0))))
}

async fn get(client: &Client, name: &str) -> Result<Option<KeyValue>, MeshError> {
    let mut kv = client.kv_client();
    let mut answer = request(|| format!("reading {name}"), kv.get(name, None)).await?;
    Ok(answer.take_kvs().into_iter().next())
}

/// The first key of a prefix, if there is one: shows whether it may be read.
async fn first(client: &Client, prefix: &str) -> Result<Option<KeyValue>, MeshError> {
    let mut kv = client.kv_client();
    let options = GetOptions::new().with_prefix().with_limit(1);
    let mut answer = request(|| format!("reading {prefix}"), kv.get(prefix, Some(options))).await?;
    Ok(answer.take_kvs().into_iter().next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_agents_read_is_looked_for() {
        let kinds_by = |mode: &str, preference| {
            let text = format!(r#"{{"id":1,"capabilities":{{"endpointSlicesExportMode":"{mode}"}}}}"#);
            read_of(&ClusterConfig::decode(text.as_bytes()).unwrap(), preference).collect::<Vec<_>>()
        };
        let kinds = |mode| kinds_by(mode, ServicePreference::default());
        assert_eq!(kinds(""), KINDS);
        assert_eq!(kinds("services-and-endpointslices"), KINDS);
        assert!(!kinds_by("", ServicePreference::OnlySlices).contains(&Kind::Services));
        assert!(
            kinds_by("services-and-endpointslices", ServicePreference::Slices)
                .contains(&Kind::EndpointSlices)
        );
        let slices = kinds("endpointslices-only");
        assert!(slices.contains(&Kind::EndpointSlices) && !slices.contains(&Kind::Services), "{slices:?}");
    }

    #[test]
    fn endpoints_are_taken_apart() {
        for (endpoint, expected) in [
            ("https://a.mesh.cilium.io:2379", Some(("a.mesh.cilium.io", 2379))),
            ("https://[2001:db8::1]:32379/", Some(("2001:db8::1", 32379))),
            ("http://192.0.2.1:1/x", Some(("192.0.2.1", 1))),
            ("https://host", None),
            ("https://:2379", None),
            ("https://host:99999", None),
        ] {
            assert_eq!(host_and_port(endpoint), expected, "{endpoint}");
        }
    }
}
