//! A real etcd with mutual TLS, in memory, filled with the clusters of the bench.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use etcd_client::{Certificate, Client, ConnectOptions, Identity, KvClient, TlsOptions, Txn, TxnOp};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use crate::Failure;
use crate::world::{Cluster, Entry, Size};

/// Where its data lies: memory, so that no disk is measured.
const MEMORY: &str = "/dev/shm";
/// Keys written in one transaction.
const TXN_OPS: usize = 1000;
/// Longest wait for its first answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Certificates in a folder: CA, server, one client.
pub(crate) struct Pki(TempDir);

impl Pki {
    fn new() -> Result<Self, Failure> {
        let folder = tempfile::tempdir()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, "bench CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        std::fs::write(folder.path().join("ca.crt"), certificate.pem())?;
        let ca = Issuer::new(params, key);
        for name in ["server", "reader"] {
            let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?;
            params.distinguished_name.push(DnType::CommonName, name);
            params.extended_key_usages =
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            let key = KeyPair::generate()?;
            let certificate = params.signed_by(&key, &ca)?;
            std::fs::write(folder.path().join(format!("{name}.crt")), certificate.pem())?;
            std::fs::write(folder.path().join(format!("{name}.key")), key.serialize_pem())?;
        }
        Ok(Self(folder))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// One etcd; killed and its data removed when dropped.
pub(crate) struct Etcd {
    process: Option<Child>,
    data: TempDir,
    pki: Pki,
    port: u16,
    peer_port: u16,
    metrics_port: u16,
}

fn free_port() -> Result<u16, Failure> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Etcd {
    /// One that answers.
    pub(crate) async fn start() -> Result<Self, Failure> {
        let data = tempfile::Builder::new().prefix("bench-mesh-").tempdir_in(MEMORY)?;
        let pki = Pki::new()?;
        let mut etcd = Self {
            process: None,
            data,
            pki,
            port: free_port()?,
            peer_port: free_port()?,
            metrics_port: free_port()?,
        };
        etcd.run().await?;
        Ok(etcd)
    }

    /// Starts the process with what its folder holds, and waits for its first answer.
    pub(crate) async fn run(&mut self) -> Result<(), Failure> {
        let client = format!("https://127.0.0.1:{}", self.port);
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let log = std::fs::File::create(self.data.path().join("log"))?;
        let mut command = Command::new("etcd");
        command
            .args(["--name", "bench", "--logger", "zap", "--log-level", "error", "--client-cert-auth"])
            .args([
                "--quota-backend-bytes",
                "8589934592",
                "--max-txn-ops",
                "1024",
                "--max-request-bytes",
                "8388608",
            ])
            .args([
                "--snapshot-count",
                "10000",
                "--listen-metrics-urls",
                &format!("http://127.0.0.1:{}", self.metrics_port),
            ])
            .arg("--data-dir")
            .arg(self.data.path().join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("bench={peer}")])
            .arg("--trusted-ca-file")
            .arg(self.pki.path("ca.crt"))
            .arg("--cert-file")
            .arg(self.pki.path("server.crt"))
            .arg("--key-file")
            .arg(self.pki.path("server.key"))
            .env_clear()
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let process =
            command.spawn().map_err(|error| format!("etcd (apt-get install etcd-server): {error}"))?;
        self.process = Some(process);
        let end = Instant::now() + PATIENCE;
        let mut client = self.client().await?;
        while let Err(error) = client.get("x", None).await {
            if Instant::now() > end {
                return Err(format!("etcd does not answer: {error}").into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Where its counters are.
    pub(crate) const fn metrics_port(&self) -> u16 {
        self.metrics_port
    }

    /// Kills it; its data stays.
    pub(crate) fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It is gone already, or it is ours to kill.
            process.kill().ok();
            process.wait().ok();
        }
    }

    /// The client file that leads to it.
    pub(crate) fn file(&self) -> String {
        format!(
            "endpoints:\n- https://127.0.0.1:{}\ntrusted-ca-file: {}\ncert-file: {}\nkey-file: {}\n",
            self.port,
            self.pki.path("ca.crt").display(),
            self.pki.path("reader.crt").display(),
            self.pki.path("reader.key").display(),
        )
    }

    /// A connection with the rights of an administrator.
    pub(crate) async fn client(&self) -> Result<Client, Failure> {
        let pem = |name: &str| std::fs::read(self.pki.path(name));
        let tls = TlsOptions::new()
            .ca_certificate(Certificate::from_pem(pem("ca.crt")?))
            .identity(Identity::from_pem(pem("reader.crt")?, pem("reader.key")?));
        let options = ConnectOptions::new().with_tls(tls).with_connect_timeout(Duration::from_secs(2));
        Ok(Client::connect([format!("https://127.0.0.1:{}", self.port)], Some(options)).await?)
    }

    /// Fills it with clusters. Returns how many entries there are.
    pub(crate) async fn fill(&self, size: Size) -> Result<usize, Failure> {
        let mut kv = self.client().await?.kv_client();
        let mut count = 0;
        kv.put(tombolo_clustermesh::wire::key::HEARTBEAT, "2026-11-27T00:00:00Z", None).await?;
        let mut waiting: Vec<Entry> = Vec::new();
        for number in 1..=size.clusters {
            waiting.extend(Cluster::new(number, size)?.entries()?);
            while waiting.len() >= TXN_OPS {
                let rest = waiting.split_off(TXN_OPS);
                count += waiting.len();
                put(&mut kv, std::mem::replace(&mut waiting, rest)).await?;
            }
            if number.is_multiple_of(50) {
                eprint!(".");
            }
        }
        count += waiting.len();
        put(&mut kv, waiting).await?;
        Ok(count)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn put(kv: &mut KvClient, entries: Vec<Entry>) -> Result<(), Failure> {
    let ops: Vec<TxnOp> = entries.into_iter().map(|(key, value)| TxnOp::put(key, value, None)).collect();
    if !ops.is_empty() {
        kv.txn(Txn::new().and_then(ops)).await?;
    }
    Ok(())
}

/// Writes the client file of every cluster into a folder.
pub(crate) fn write_files(etcd: &Etcd, folder: &Path, size: Size) -> Result<(), Failure> {
    for number in 1..=size.clusters {
        std::fs::write(folder.join(format!("{}.yaml", crate::world::name(number))), etcd.file())?;
    }
    Ok(())
}
