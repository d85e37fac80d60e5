//! Lets somebody read this cluster's etcd: an etcd user with the least rights, its certificate, and the file that agents need;
//! and takes that back.

use crate::certificate::{self, date, unix_now};
use crate::error::MeshError;
use crate::etcd::{EtcdConfig, request};
use crate::follower::FailureKind;
use crate::wire::key;
use etcd_client::{Client, Compare, CompareOp, Permission, Txn, TxnOp, UserAddOptions};
use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
};
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use time::OffsetDateTime;
use tombolo_base::ids::ClusterName;

/// Below it lies what a cluster publishes.
const STATE: &str = "cilium/state/";
/// Below it lies what a relay mirrors.
const CACHE: &str = "cilium/cache/";
/// Longest life of a partner's certificate, in days.
pub const MAX_DAYS: u32 = 3650;
/// A certificate is good a little before it was made: clocks differ.
const BACKDATED_SECS: i64 = 86_400;

/// What is read, which decides the role. Both have Cilium's names, so that a Cilium chart's roles are used where there are some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// What this cluster publishes: another cluster's agents or relay.
    Published,
    /// What a relay mirrors here of other clusters: this cluster's own agents, as readers that need not be trusted with more.
    Mirrors,
}

impl Reads {
    const fn role(self) -> &'static str {
        match self {
            Self::Published => "remote",
            Self::Mirrors => "local",
        }
    }

    /// The etcd user of a cluster.
    #[must_use]
    pub fn user(self, of: &ClusterName) -> String {
        format!("{}-{of}", self.role())
    }

    /// What may be read, and no write: of what is published (2.1 of Cilium's scheme) the state layout, this cluster's
    /// configuration, its canaries and the heartbeat, nothing of other clusters; of mirrors the cache layout, all clusters'
    /// configurations and canaries, and what the relay says of them.
    fn permissions(self, cluster: &ClusterName) -> Vec<Permission> {
        let below = |prefix: &str| Permission::read(prefix).with_prefix();
        match self {
            Self::Published => vec![
                below(key::HEARTBEAT),
                below(STATE),
                Permission::read(key::cluster_config(cluster.as_str())),
                below(&key::synced_prefix(cluster.as_str())),
            ],
            Self::Mirrors => {
                [key::HEARTBEAT, CACHE, key::CLUSTER_CONFIGS, key::SYNCED, key::RELAY].map(below).into()
            }
        }
    }

    /// What must not be readable.
    const fn hidden(self) -> [&'static str; 2] {
        match self {
            Self::Published => ["tombolo/", CACHE],
            Self::Mirrors => ["tombolo/", STATE],
        }
    }
}

/// Who is let in, where, and for how long.
#[derive(Clone, Debug)]
pub struct Invitation {
    /// This cluster.
    pub cluster: ClusterName,
    /// The cluster that is to read: another one, or for mirrors this one itself.
    pub partner: ClusterName,
    /// What it reads.
    pub reads: Reads,
    /// Our etcd, as a user with etcd's role `root`.
    pub etcd: EtcdConfig,
    /// Where the partner reaches our etcd.
    pub endpoints: Vec<String>,
    /// The key of the CA that our etcd trusts clients by; its certificate is `etcd`'s `trusted-ca-file`.
    pub ca_key: PathBuf,
    /// Life of the certificate, in days.
    pub days: u32,
    /// Where the files go.
    pub out: PathBuf,
    /// The folder where the partner will keep them: paths in its file are absolute then. `None` writes names alone, which our
    /// agents look up beside the file and Cilium's do not.
    pub folder_there: Option<PathBuf>,
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invited {
    /// The etcd user, which is the certificate's common name.
    pub user: String,
    /// The end of the certificate, seconds since 1970.
    pub not_after_unix_secs: i64,
    /// The files written, the partner's etcd client file first.
    pub files: Vec<PathBuf>,
}

/// Makes role, user, certificate and files, and proves that the certificate reads what it should and nothing else. Doing it
/// again makes a new certificate; the old one stays good until it ends.
///
/// # Errors
/// What could not be done and what to try. Files are written only when the proof has succeeded.
pub async fn invite(invitation: &Invitation) -> Result<Invited, MeshError> {
    let theirs = EtcdConfig { endpoints: invitation.endpoints.clone(), ..invitation.etcd.clone() };
    if let Some(flaw) = theirs.check(false).first() {
        return Err(MeshError::File {
            file: format!("the file for {}", invitation.partner),
            reason: flaw.to_string(),
        });
    }
    let user = invitation.reads.user(&invitation.partner);
    let issued = issue(invitation, &user).await?;
    let (client, _) = invitation.etcd.client().await?;
    grant(&client, invitation, &user).await.map_err(|error| invitation.etcd.blame(error))?;
    // Written where nobody looks for them, proved, and only then given their names.
    let staged = tempfile::tempdir_in(parent(&invitation.out)?)
        .map_err(|source| written("folder for the partner", &invitation.out, source))?;
    let names = Names::of(&invitation.cluster);
    let there = |name: &str| match &invitation.folder_there {
        Some(folder) => folder.join(name).display().to_string(),
        None => name.to_owned(),
    };
    let text = client_file(&invitation.endpoints, &names, there);
    let contents = [
        (&names.file, text.as_bytes(), 0o644),
        (&names.ca, issued.ca.as_bytes(), 0o644),
        (&names.cert, issued.cert.as_bytes(), 0o644),
        (&names.key, issued.key.as_bytes(), 0o600),
    ];
    for (name, content, mode) in contents {
        write(&staged.path().join(name), content, mode)?;
    }
    prove(invitation, staged.path(), &names, &user).await?;
    std::fs::create_dir_all(&invitation.out)
        .map_err(|source| written("folder for the partner", &invitation.out, source))?;
    let mut files = Vec::new();
    for (name, ..) in contents {
        let file = invitation.out.join(name);
        std::fs::rename(staged.path().join(name), &file)
            .map_err(|source| written("file for the partner", &file, source))?;
        files.push(file);
    }
    Ok(Invited { user, not_after_unix_secs: issued.not_after, files })
}

/// Takes a partner's user away: its next requests are refused. False if there was none.
///
/// # Errors
/// [`MeshError`] with what to try.
pub async fn uninvite(etcd: &EtcdConfig, reads: Reads, partner: &ClusterName) -> Result<bool, MeshError> {
    let (mut client, _) = etcd.client().await?;
    let user = reads.user(partner);
    match request(|| format!("removing user {user}"), client.user_delete(user.as_str())).await {
        Ok(_) => Ok(true),
        Err(error) if error.to_string().contains("user name not found") => Ok(false),
        Err(error) => Err(etcd.blame(error)),
    }
}

/// Role and user, whatever of them is there already.
async fn grant(client: &Client, invitation: &Invitation, user: &str) -> Result<(), MeshError> {
    let (mut client, role) = (client.clone(), invitation.reads.role());
    let known = |error: &MeshError| error.to_string().contains("already exists");
    match request(|| format!("adding role {role}"), client.role_add(role)).await {
        Err(error) if !known(&error) => return Err(error),
        _ => {}
    }
    for permission in invitation.reads.permissions(&invitation.cluster) {
        let range = String::from_utf8_lossy(permission.key()).into_owned();
        let call = client.role_grant_permission(role, permission);
        request(|| format!("granting {range} to role {role}"), call).await?;
    }
    let options = UserAddOptions::new().with_no_pwd();
    match request(|| format!("adding user {user}"), client.user_add(user, "", Some(options))).await {
        Err(error) if !known(&error) => return Err(error),
        _ => {}
    }
    request(|| format!("giving role {role} to {user}"), client.user_grant_role(user, role)).await.map(drop)
}

struct Issued {
    ca: String,
    cert: String,
    key: String,
    not_after: i64,
}

async fn issue(invitation: &Invitation, user: &str) -> Result<Issued, MeshError> {
    let ca_file = invitation.etcd.trusted_ca_file.clone().unwrap_or_default();
    let read = async |what, path: &Path| {
        let text = tokio::fs::read_to_string(path).await;
        text.map_err(|source| MeshError::Read { what, path: path.to_owned(), source })
    };
    let ca = read("CA certificate", &ca_file).await?;
    let ca_key = read("CA key", &invitation.ca_key).await?;
    let wrong = |file: &Path, remedy: &str| {
        let (file, remedy) = (file.to_owned(), remedy.to_owned());
        move |error: rcgen::Error| MeshError::Certificate { file, reason: error.to_string(), remedy }
    };
    let key = KeyPair::from_pem(&ca_key)
        .map_err(wrong(&invitation.ca_key, "name the PEM file of the CA's private key"))?;
    // Told here: a server that refuses the certificate may do so without a word.
    let ca_cert = certificate::of_key(&ca, &key.subject_public_key_info()).ok_or_else(|| MeshError::Certificate {
        file: invitation.ca_key.clone(),
        reason: format!("is not the key of any certificate in {}", ca_file.display()),
        remedy: "name the key of the CA that etcd trusts clients by (--trusted-ca-file), and its certificate in etcd.ca".to_owned(),
    })?;
    let issuer =
        Issuer::from_ca_cert_der(&ca_cert, key).map_err(wrong(&ca_file, "name the CA's certificate"))?;
    let now = unix_now();
    let not_after = now.saturating_add(i64::from(invitation.days.min(MAX_DAYS)) * 86_400);
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, user);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let life = day(now.saturating_sub(BACKDATED_SECS)).zip(day(not_after));
    (params.not_before, params.not_after) = life.ok_or_else(|| MeshError::Certificate {
        file: invitation.out.clone(),
        reason: format!("no certificate can begin {now} s after 1970"),
        remedy: "correct this machine's clock".to_owned(),
    })?;
    let remedy = "is it the key of that CA?";
    let key = KeyPair::generate().map_err(wrong(&invitation.ca_key, remedy))?;
    let cert = params.signed_by(&key, &issuer).map_err(wrong(&invitation.ca_key, remedy))?;
    Ok(Issued { ca, cert: cert.pem(), key: key.serialize_pem(), not_after: not_after / 86_400 * 86_400 })
}

/// Midnight of the day of a moment, in the certificate library's form.
fn day(unix_secs: i64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(unix_secs / 86_400 * 86_400).ok()
}

/// Names of the files, as Cilium's secret has them.
struct Names {
    file: String,
    ca: String,
    cert: String,
    key: String,
}

impl Names {
    fn of(cluster: &ClusterName) -> Self {
        let name = |what: &str| format!("{cluster}.etcd-client{what}");
        Self { file: cluster.to_string(), ca: name("-ca.crt"), cert: name(".crt"), key: name(".key") }
    }
}

fn client_file(endpoints: &[String], names: &Names, there: impl Fn(&str) -> String) -> String {
    let mut text = "endpoints:\n".to_owned();
    for endpoint in endpoints {
        // Writing to a String cannot fail.
        _ = writeln!(text, "- {}", serde_json::Value::from(endpoint.as_str()));
    }
    let files = [("trusted-ca-file", &names.ca), ("cert-file", &names.cert), ("key-file", &names.key)];
    for (key, name) in files {
        _ = writeln!(text, "{key}: {}", serde_json::Value::from(there(name)));
    }
    text
}

/// Uses the new certificate: it must read the cluster's configuration, and must not read our own keys nor write any.
async fn prove(invitation: &Invitation, folder: &Path, names: &Names, user: &str) -> Result<(), MeshError> {
    let file = |name: &String| Some(folder.join(name));
    let etcd = EtcdConfig {
        endpoints: invitation.etcd.endpoints.clone(),
        trusted_ca_file: file(&names.ca),
        cert_file: file(&names.cert),
        key_file: file(&names.key),
        ..invitation.etcd.clone()
    };
    let (client, _) = etcd.client().await?;
    let config = key::cluster_config(invitation.cluster.as_str());
    let mut kv = client.kv_client();
    let read = kv.get(config.as_str(), None);
    let read = request(|| format!("reading {config} as {user}"), read);
    let refused = |name: &str, what: &str| refused(name, user, invitation.reads.role(), what);
    if is_denied(read.await)? {
        return Err(refused(&config, "cannot be read with the new certificate"));
    }
    for name in invitation.reads.hidden() {
        let read = request(|| format!("reading {name} as {user}"), kv.get(name, None)).await;
        if !is_denied(read)? {
            return Err(refused(name, "can be read with the new certificate"));
        }
    }
    let probes = [STATE, CACHE, key::RELAY, "tombolo/"].map(|prefix| format!("{prefix}probe"));
    for name in probes.into_iter().chain([config]) {
        // Never carried out: no key has revision -1. Whether it would be allowed is asked first.
        let never = Compare::create_revision(name.as_str(), CompareOp::Equal, -1);
        let txn = Txn::new().when([never]).and_then([TxnOp::put(name.as_str(), "", None)]);
        let write = request(|| format!("writing {name} as {user}"), kv.txn(txn)).await;
        if !is_denied(write)? {
            return Err(refused(&name, "can be written with the new certificate"));
        }
    }
    Ok(())
}

/// Whether etcd refused a request for want of rights. An answer that did not come proves nothing.
fn is_denied<T>(answer: Result<T, MeshError>) -> Result<bool, MeshError> {
    match answer {
        Ok(_) => Ok(false),
        Err(MeshError::Request { kind: FailureKind::Denied, .. }) => Ok(true),
        Err(other) => Err(other),
    }
}

fn refused(name: &str, user: &str, role: &str, what: &str) -> MeshError {
    MeshError::Request {
        what: format!("proving the rights of {user}"),
        why: format!(
            "{name} {what}; is authentication on in this etcd (etcdctl auth enable), with client certificates (--client-cert-auth), and has nobody given {user} or role {role} more?"
        ),
        kind: FailureKind::Denied,
    }
}

fn parent(path: &Path) -> Result<PathBuf, MeshError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(|source| written("folder for the partner", parent, source))?;
    Ok(parent.to_owned())
}

fn written(what: &'static str, path: &Path, source: std::io::Error) -> MeshError {
    MeshError::Write { what, path: path.to_owned(), source }
}

fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), MeshError> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(mode);
    let done = options.open(path).and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()));
    done.map_err(|source| written("file for the partner", path, source))
}

impl Invited {
    /// The last day of the certificate.
    #[must_use]
    pub fn until(&self) -> String {
        date(self.not_after_unix_secs)
    }
}
