//! Probes backends of other clusters for services that ask for it: the sans-IO schedule's sockets.

use super::drive::Driver;
use http_body_util::Empty;
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tombolo_base::ids::ClusterName;
use tombolo_base::source::Source;
use tombolo_base::table::{Snapshot, Table, Writer};
use tombolo_service::probe::{Ask, Prober, Target, Verdict, targets};
use tombolo_service::spread::Probe;
use tombolo_service::{FailedProbe, RemoteService, ServiceName, ServiceRow};
use tombolo_topology::NodeRow;

/// Backends that are probed and those that fail, for `tombolo status`.
pub(crate) type Counts = Arc<Mutex<(usize, usize)>>;

/// The tables that say who is probed.
pub(crate) struct Inputs {
    /// Services of this cluster.
    pub(crate) services: Table<ServiceRow>,
    /// What other clusters share.
    pub(crate) remote: Table<RemoteService>,
    /// Nodes: those of this cluster probe the same backends.
    pub(crate) nodes: Table<NodeRow>,
    /// This cluster.
    pub(crate) cluster: ClusterName,
}

/// Probes until cancelled.
pub(crate) async fn run(driver: Driver, inputs: Inputs, out: Arc<Writer<FailedProbe>>, counts: Counts) {
    let (mut services, mut remote) = (inputs.services.changes(), inputs.remote.changes());
    let mut nodes = inputs.nodes.changes();
    let mut prober = Prober::new(driver.seed);
    let mut probes: JoinSet<(Target, Result<(), String>)> = JoinSet::new();
    loop {
        let mut verdicts = Vec::new();
        tokio::select! {
            () = driver.cancel.cancelled() => return,
            batch = services.next() => {
                let others = inputs.remote.snapshot();
                for name in &batch.keys {
                    verdicts.extend(wants(&mut prober, name, &batch.snapshot, &others, &driver));
                }
            }
            batch = remote.next() => {
                let own = inputs.services.snapshot();
                for (name, _) in &batch.keys {
                    verdicts.extend(wants(&mut prober, name, &own, &batch.snapshot, &driver));
                }
            }
            batch = nodes.next() => {
                let own = batch.snapshot.by_source(&Source::Manifests);
                prober.set_nodes(own.filter(|row| row.cluster == inputs.cluster).count());
            }
            Some(done) = probes.join_next() => match done {
                Ok((target, outcome)) => verdicts.extend(prober.finish(&target, outcome, driver.clock.now())),
                // A panic was reported by the runtime; the room it took stays taken.
                Err(error) => tracing::error!(%error, "a probe broke off; this is a bug, please report the log"),
            },
            () = driver.clock.sleep_until(prober.next_deadline()) => {}
        }
        while let Some(ask) = prober.next(driver.clock.now()) {
            probes.spawn(probe(ask));
        }
        write(&out, verdicts);
        *counts.lock().unwrap_or_else(PoisonError::into_inner) = prober.counts();
    }
}

/// What a service wants probed now.
fn wants(
    prober: &mut Prober,
    name: &ServiceName,
    services: &Snapshot<ServiceRow>,
    remote: &Snapshot<RemoteService>,
    driver: &Driver,
) -> Vec<Verdict> {
    let service = services.get(name).and_then(|row| Some((row, row.spread.probe.clone()?)));
    let wanted = service.map(|(row, probe)| (probe, targets(row, remote.by_index(name))));
    prober.set_service(name, wanted, driver.clock.now())
}

fn write(out: &Writer<FailedProbe>, verdicts: Vec<Verdict>) {
    if verdicts.is_empty() {
        return;
    }
    out.commit(|txn| {
        for verdict in verdicts {
            match verdict {
                Verdict::Out((service, backend), failure) => {
                    tracing::info!(%service, backend = %backend.0, port = backend.1, %failure, "a backend does not answer probes: new flows go elsewhere");
                    txn.upsert(FailedProbe { source: Source::Local, service, backend, failure });
                }
                Verdict::In(target) => drop(txn.remove(&target)),
            }
        }
    });
}

async fn probe(ask: Ask) -> (Target, Result<(), String>) {
    let (ip, port, _) = ask.target.1;
    let address = SocketAddr::new(ip, port);
    let outcome = match tokio::time::timeout(ask.probe.timeout, answers(address, &ask.probe)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("no answer within {} s", ask.probe.timeout.as_secs())),
    };
    (ask.target, outcome)
}

/// Whether a backend takes a connection, and answers well if it is asked by HTTP.
async fn answers(address: SocketAddr, probe: &Probe) -> Result<(), String> {
    let stream = TcpStream::connect(address).await.map_err(|error| format!("connect: {error}"))?;
    let Some(path) = &probe.path else { return Ok(()) };
    let http = |error: hyper::Error| format!("HTTP: {error}");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
    let request = Request::get(path.as_str())
        .header(hyper::header::HOST, address.to_string())
        .header(hyper::header::USER_AGENT, concat!("tombolo-probe/", env!("CARGO_PKG_VERSION")))
        .header(hyper::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| format!("{path}: {error}"))?;
    let answer = sender.send_request(request);
    tokio::pin!(answer);
    // The connection is driven here, so that it ends with the probe; the body is not read. One that ends by itself may have
    // brought the answer just before.
    let response = tokio::select! {
        response = &mut answer => response,
        ended = connection => {
            ended.map_err(http)?;
            answer.await
        }
    };
    let status = response.map_err(http)?.status();
    if status.is_success() || status.is_redirection() { Ok(()) } else { Err(format!("HTTP {status}")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::drive::{Board, Clock, Resync};
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_util::sync::CancellationToken;
    use tombolo_base::table::Row;
    use tombolo_service::{Protocol, RemoteBackend, RemotePort, ServicePort, Spread};

    /// A server that says `status` to everybody, in each family.
    async fn server(address: &str, status: &'static str) -> SocketAddr {
        let listener = TcpListener::bind(address).await.unwrap();
        let bound = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut head = [0; 1024];
                    let read = stream.read(&mut head).await.unwrap_or(0);
                    let asked =
                        String::from_utf8_lossy(&head[..read]).starts_with("GET /healthz?x=1 HTTP/1.1\r\n");
                    let status = if asked { status } else { "400 Bad Request" };
                    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                    stream.write_all(answer.as_bytes()).await.ok();
                });
            }
        });
        bound
    }

    async fn ask(address: SocketAddr, text: &str) -> Result<(), String> {
        let name = ServiceName { namespace: "shop".into(), name: "web".into() };
        let target = (name, (address.ip(), address.port(), Protocol::Tcp));
        probe(Ask { target, probe: Spread::parse_probe(text).unwrap() }).await.1
    }

    #[tokio::test]
    async fn a_probe_tells_who_answers_well() {
        for loopback in ["127.0.0.1:0", "[::1]:0"] {
            let good = server(loopback, "204 No Content").await;
            assert_eq!(ask(good, "tcp").await, Ok(()));
            assert_eq!(ask(good, "http:/healthz?x=1").await, Ok(()));
            assert_eq!(ask(good, "http:/other").await, Err("HTTP 400 Bad Request".to_owned()));
            let bad = server(loopback, "503 Service Unavailable").await;
            assert_eq!(ask(bad, "tcp").await, Ok(()));
            assert_eq!(ask(bad, "http:/healthz?x=1").await, Err("HTTP 503 Service Unavailable".to_owned()));
            // Nobody listens there any more.
            let gone = TcpListener::bind(loopback).await.unwrap().local_addr().unwrap();
            assert!(ask(gone, "tcp").await.unwrap_err().starts_with("connect: "));
            // One that takes the connection and says nothing.
            let mute = TcpListener::bind(loopback).await.unwrap();
            let silent = ask(mute.local_addr().unwrap(), "http:/ period=1s timeout=1s").await;
            assert_eq!(silent, Err("no answer within 1 s".to_owned()));
        }
    }

    fn service() -> ServiceRow {
        ServiceRow {
            ports: vec![ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None }],
            families_ipv4: vec![true],
            global: true,
            shared: true,
            spread: Spread {
                probe: Some(Spread::parse_probe("tcp period=1s timeout=1s").unwrap()),
                ..Spread::default()
            },
            ..ServiceRow::new(Source::Manifests, ServiceName { namespace: "shop".into(), name: "web".into() })
        }
    }

    /// The task with real tables and sockets: a backend that refuses gets a row, and loses it when the service stops asking.
    #[tokio::test]
    async fn a_backend_that_refuses_is_in_the_table_until_nobody_asks() {
        let good = server("127.0.0.1:0", "200 OK").await;
        let bad = TcpListener::bind("[::1]:0").await.unwrap().local_addr().unwrap();
        let backend = |address: SocketAddr| {
            let port = RemotePort { name: "".into(), protocol: Protocol::Tcp, port: address.port() };
            (address.ip(), RemoteBackend { ports: Arc::new([port].into()), ..RemoteBackend::default() })
        };
        let source = Source::Cluster(ClusterName::new("west").unwrap());
        let row = service();
        let remote_row =
            RemoteService { source, name: row.name.clone(), backends: [backend(good), backend(bad)].into() };
        let (services, service_writer) = Table::new();
        let (remote, remote_writer) = Table::new();
        let (nodes, _node_writer) = Table::new();
        let (failed, out) = Table::<FailedProbe>::new();
        let (cancel, counts) = (CancellationToken::new(), Counts::default());
        let driver = Driver {
            clock: Clock::start(),
            board: Board::default(),
            cancel: cancel.clone(),
            seed: 1,
            resync: Resync::default(),
        };
        let inputs = Inputs { services, remote, nodes, cluster: ClusterName::new("east").unwrap() };
        let task = tokio::spawn(run(driver, inputs, Arc::new(out), counts.clone()));
        let mut changes = failed.changes();
        service_writer.upsert(row.clone());
        remote_writer.upsert(remote_row);
        let patience = Duration::from_secs(60);
        let batch = tokio::time::timeout(patience, changes.next()).await.unwrap();
        let found: Vec<_> = batch.snapshot.iter().map(|row| row.backend.0).collect();
        assert_eq!(found, [bad.ip()]);
        assert!(batch.snapshot.iter().all(|row| row.failure.starts_with("connect: ")));
        service_writer.upsert(ServiceRow { global: false, ..row });
        let batch = tokio::time::timeout(patience, changes.next()).await.unwrap();
        assert!(batch.snapshot.is_empty(), "{:?}", batch.snapshot.iter().map(Row::cells).collect::<Vec<_>>());
        cancel.cancel();
        task.await.unwrap();
    }
}
