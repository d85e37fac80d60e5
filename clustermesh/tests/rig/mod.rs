//! A real etcd with mutual TLS and roles on a random loopback port, restarted, wiped and compacted at will.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod agent;
pub(crate) mod reader;
pub(crate) mod recorder;
pub(crate) mod relay;

use etcd_client::{
    Certificate, Client, ConnectOptions, Identity, Permission, PermissionType, RoleAddResponse, TlsOptions,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tombolo_clustermesh::etcd::EtcdConfig;
use tombolo_clustermesh::operations::Operations;
use tombolo_clustermesh::own::ConnectionTimers;

/// The connection to an own etcd, looked at often and made again soon.
pub(crate) fn connection() -> ConnectionTimers {
    ConnectionTimers {
        spread: Duration::from_millis(100),
        certificates: Duration::from_millis(200),
        ..ConnectionTimers::default()
    }
}

/// Certificates of one mesh, in a folder.
pub(crate) struct Pki {
    folder: tempfile::TempDir,
    ca: Issuer<'static, KeyPair>,
}

impl Pki {
    fn authority(name: &str) -> (CertificateParams, KeyPair, rcgen::Certificate) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        (params, key, certificate)
    }

    /// Issues by a new CA from now on, and gives its certificate; who trusts it is the caller's.
    pub(crate) fn renew_ca(&mut self) -> String {
        let (params, key, certificate) = Self::authority("mesh test CA, the second");
        self.ca = Issuer::new(params, key);
        certificate.pem()
    }

    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (params, key, certificate) = Self::authority("mesh test CA");
        std::fs::write(folder.path().join("ca.key"), key.serialize_pem()).unwrap();
        std::fs::write(folder.path().join("ca.crt"), certificate.pem()).unwrap();
        let pki = Self { folder, ca: Issuer::new(params, key) };
        pki.issue("server", &["localhost", "127.0.0.1", "a.mesh.invalid"]);
        for user in ["root", "admin-a", "admin-b", "remote", "local-a", "nobody"] {
            pki.issue(user, &[]);
        }
        pki
    }

    pub(crate) fn issue(&self, name: &str, alternatives: &[&str]) {
        self.issue_with(name, alternatives, |_| {});
    }

    pub(crate) fn issue_with(
        &self,
        name: &str,
        alternatives: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) {
        let names: Vec<String> = alternatives.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.ca).unwrap();
        std::fs::write(self.path(&format!("{name}.crt")), certificate.pem()).unwrap();
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// One etcd process; killed and waited for when dropped.
pub(crate) struct Etcd {
    process: Option<Child>,
    folder: tempfile::TempDir,
    pub(crate) port: u16,
    peer_port: u16,
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
    cluster: String,
    /// Arguments besides the usual ones.
    arguments: Vec<String>,
}

/// What this process has asked of etcds, and how long that took, as it is scraped.
pub(crate) fn operations() -> String {
    let (mut registry, mut text) = (prometheus_client::registry::Registry::default(), String::new());
    Operations::of_process().register(&mut registry, "cilium_kvstore");
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    text
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Etcd {
    /// A started etcd of cluster `a` or `b` with the users and roles of a Cilium mesh.
    pub(crate) async fn start(pki: &Pki, cluster: &str) -> Self {
        Self::start_with(pki, cluster, &[]).await
    }

    pub(crate) async fn start_with(pki: &Pki, cluster: &str, arguments: &[&str]) -> Self {
        let mut etcd = Self {
            process: None,
            folder: tempfile::tempdir().unwrap(),
            port: free_port(),
            peer_port: free_port(),
            ca: pki.path("ca.crt"),
            certificate: pki.path("server.crt"),
            key: pki.path("server.key"),
            cluster: cluster.to_owned(),
            arguments: arguments.iter().map(|text| (*text).to_owned()).collect(),
        };
        etcd.spawn();
        etcd.grant(pki).await;
        etcd
    }

    fn spawn(&mut self) {
        let (client, peer) =
            (format!("https://127.0.0.1:{}", self.port), format!("http://127.0.0.1:{}", self.peer_port));
        let log = std::fs::File::create(self.folder.path().join("log")).unwrap();
        let process = Command::new("etcd")
            .args(["--name", "test", "--logger", "zap", "--log-level", "warn", "--client-cert-auth"])
            .arg("--data-dir")
            .arg(self.folder.path().join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("test={peer}")])
            .arg("--trusted-ca-file")
            .arg(&self.ca)
            .arg("--cert-file")
            .arg(&self.certificate)
            .arg("--key-file")
            .arg(&self.key)
            .args(&self.arguments)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("etcd must be installed (apt-get install etcd-server)");
        self.process = Some(process);
    }

    pub(crate) fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    pub(crate) async fn restart(&mut self, pki: &Pki) {
        self.stop();
        self.spawn();
        let mut client = self.client(pki, "root").await;
        until("etcd to answer", async || client.get("x", None).await.is_ok()).await;
    }

    /// Stops it, empties it, and starts it again with its users.
    pub(crate) async fn wipe(&mut self, pki: &Pki) {
        self.stop();
        std::fs::remove_dir_all(self.folder.path().join("data")).unwrap();
        self.spawn();
        self.grant(pki).await;
    }

    /// Writes all it holds into a file, from where [`Self::restore`] takes it.
    pub(crate) fn snapshot(&self, pki: &Pki) -> PathBuf {
        let file = self.folder.path().join("snapshot.db");
        let status = Command::new("etcdctl")
            .args(["--endpoints", &format!("https://127.0.0.1:{}", self.port)])
            .arg("--cacert")
            .arg(pki.path("ca.crt"))
            .arg("--cert")
            .arg(pki.path("root.crt"))
            .arg("--key")
            .arg(pki.path("root.key"))
            .args(["snapshot", "save"])
            .arg(&file)
            .env_clear()
            .env("ETCDCTL_API", "3")
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .expect("etcdctl must be installed (apt-get install etcd-client)");
        assert!(status.success(), "etcdctl snapshot save: {status}");
        file
    }

    /// Stops it and starts it again with what a snapshot holds, as an administrator would after a disaster.
    pub(crate) async fn restore(&mut self, pki: &Pki, snapshot: &Path) {
        self.stop();
        let data = self.folder.path().join("data");
        std::fs::remove_dir_all(&data).unwrap();
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let status = Command::new("etcdctl")
            .args(["snapshot", "restore"])
            .arg(snapshot)
            .args(["--name", "test", "--initial-cluster", &format!("test={peer}")])
            .args(["--initial-advertise-peer-urls", &peer, "--data-dir"])
            .arg(&data)
            .env_clear()
            .env("ETCDCTL_API", "3")
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "etcdctl snapshot restore: {status}");
        self.restart(pki).await;
    }

    pub(crate) fn config(&self, pki: &Pki, user: &str) -> EtcdConfig {
        EtcdConfig {
            endpoints: vec![format!("https://127.0.0.1:{}", self.port)],
            trusted_ca_file: Some(pki.path("ca.crt")),
            cert_file: Some(pki.path(&format!("{user}.crt"))),
            key_file: Some(pki.path(&format!("{user}.key"))),
            host_aliases: Vec::new(),
        }
    }

    /// Writes the remote file for readers.
    pub(crate) fn write_file(&self, pki: &Pki, user: &str, file: &Path) {
        std::fs::write(file, self.file_text(pki, user)).unwrap();
    }

    pub(crate) fn file_text(&self, pki: &Pki, user: &str) -> String {
        format!(
            "endpoints:\n- https://127.0.0.1:{}\ntrusted-ca-file: {}\ncert-file: {}\nkey-file: {}\n",
            self.port,
            pki.path("ca.crt").display(),
            pki.path(&format!("{user}.crt")).display(),
            pki.path(&format!("{user}.key")).display(),
        )
    }

    pub(crate) async fn client(&self, pki: &Pki, user: &str) -> Client {
        let pem = |name: String| std::fs::read(pki.path(&name)).unwrap();
        let tls = TlsOptions::new()
            .ca_certificate(Certificate::from_pem(pem("ca.crt".to_owned())))
            .identity(Identity::from_pem(pem(format!("{user}.crt")), pem(format!("{user}.key"))));
        let options = ConnectOptions::new().with_tls(tls).with_connect_timeout(Duration::from_secs(2));
        Client::connect([format!("https://127.0.0.1:{}", self.port)], Some(options)).await.unwrap()
    }

    /// Users and roles as the Cilium chart makes them, authentication switched on last.
    async fn grant(&self, pki: &Pki) {
        let mut client = self.client(pki, "root").await;
        until("etcd to answer", async || client.status().await.is_ok()).await;
        let admin = format!("admin-{}", self.cluster);
        for user in ["root", &admin] {
            let options = etcd_client::UserAddOptions::new().with_no_pwd();
            client.user_add(user, "", Some(options)).await.unwrap();
        }
        let _: RoleAddResponse = client.role_add("root").await.unwrap();
        for user in ["root", &admin] {
            client.user_grant_role(user, "root").await.unwrap();
        }
        let prefix = |name: &str| Permission::read(name).with_prefix();
        let own = self.cluster.as_str();
        let remote = vec![
            prefix("cilium/.heartbeat"),
            prefix("cilium/state/"),
            Permission::new(PermissionType::Read, format!("cilium/cluster-config/{own}")),
            prefix(&format!("cilium/synced/{own}/")),
        ];
        let options = etcd_client::UserAddOptions::new().with_no_pwd();
        client.user_add("remote", "", Some(options)).await.unwrap();
        client.role_add("remote").await.unwrap();
        for permission in remote {
            client.role_grant_permission("remote", permission).await.unwrap();
        }
        client.user_grant_role("remote", "remote").await.unwrap();
        client.auth_enable().await.unwrap();
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Polls a condition that no event announces (another process's state); fails after 60 s.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < Duration::from_secs(60), "waited 60 s in vain for {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
