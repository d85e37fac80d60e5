//! The unit over real sockets: datagrams, streams, upstreams, an agent that comes and goes, and damaged packets.
#![cfg(test)]

use axum::body::{Body, Bytes};
use axum::routing::get;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tombolo_dns::answer::Domains;
use tombolo_dns::client;
use tombolo_dns::forward::Forwarder;
use tombolo_dns::line::{Line, PATH};
use tombolo_dns::message::Transport;
use tombolo_dns::server::{self, Server};
use tombolo_dns::settings::Settings;
use tombolo_dns::zones::Zones;
use tombolo_service::names::{NameAnswer, NameEndpoint, NameEntry, NamePort, NameZone};
use tombolo_service::rows::Protocol;

fn entry(name: &str, answer: NameAnswer) -> Line {
    Line::Entry(NameEntry { zone: NameZone::Cluster, namespace: "demo".into(), name: name.into(), answer })
}

fn service(name: &str, ip: &str) -> Line {
    entry(name, NameAnswer::Service { addresses: [ip.parse().unwrap()].into(), ports: Vec::new() })
}

fn alias(name: &str, target: &str) -> Line {
    entry(name, NameAnswer::Alias { target: target.into() })
}

fn headless(name: &str, count: u8) -> Line {
    let ports = vec![NamePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }];
    let endpoint = |n: u8| NameEndpoint {
        hostname: format!("{name}-{n}").into(),
        cluster: "east".into(),
        address: IpAddr::from([10, 1, 1, n]),
        ports: ports.clone(),
    };
    entry(name, NameAnswer::Headless { endpoints: (1..=count).map(endpoint).collect() })
}

const WHOLE: Line = Line::State { cluster: true, clusterset: true };

/// A running server of a domain.
struct Running {
    address: SocketAddr,
    server: Arc<Server>,
    cancel: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

async fn start(domain: &str, lines: Vec<Line>, upstreams: Vec<SocketAddr>) -> Running {
    let mut zones = Zones::default();
    zones.begin();
    zones.take(lines.into_iter().chain([WHOLE]));
    let domains = Domains::new(domain, "clusterset.local", Vec::new(), 5);
    let server = Arc::new(Server::new(zones, domains, Forwarder::new(upstreams)));
    let cancel = CancellationToken::new();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let listener = TcpListener::bind(address).await.unwrap();
    tokio::spawn(server::udp(server.clone(), socket, cancel.clone()));
    tokio::spawn(server::tcp(server.clone(), listener, server::connections(), cancel.clone()));
    Running { address, server, cancel }
}

fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

async fn udp(address: SocketAddr, packet: &[u8]) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(address).await.unwrap();
    socket.send(packet).await.unwrap();
    let mut buffer = [0; 65535];
    let received = tokio::time::timeout(Duration::from_secs(20), socket.recv(&mut buffer));
    let length = received.await.expect("an answer").unwrap();
    let answer = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(packet[..2], buffer[..2], "the answer has the question's id");
    answer
}

async fn tcp(address: SocketAddr, packets: &[Vec<u8>]) -> Vec<Message> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    for packet in packets {
        stream.write_all(&u16::try_from(packet.len()).unwrap().to_be_bytes()).await.unwrap();
        stream.write_all(packet).await.unwrap();
    }
    let mut answers = Vec::new();
    for _ in packets {
        let length = usize::from(stream.read_u16().await.unwrap());
        let mut answer = vec![0; length];
        stream.read_exact(&mut answer).await.unwrap();
        answers.push(Message::from_vec(&answer).unwrap());
    }
    answers
}

async fn ask(address: SocketAddr, name: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
    let answer = udp(address, &question(name, kind)).await;
    let mut records: Vec<String> = answer.answers.iter().map(|record| record.data.to_string()).collect();
    records.sort();
    (answer.metadata.response_code, records)
}

fn ok(records: &[&str]) -> (ResponseCode, Vec<String>) {
    (ResponseCode::NoError, records.iter().map(ToString::to_string).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_are_cut_and_streams_are_whole() {
    let one =
        start("cluster.local", vec![service("web", "10.101.0.9"), headless("db", 200)], Vec::new()).await;
    assert_eq!(ask(one.address, "web.demo.svc.cluster.local.", RecordType::A).await, ok(&["10.101.0.9"]));
    let web = udp(one.address, &question("WeB.demo.svc.cluster.local.", RecordType::A)).await;
    assert_eq!(
        web.answers[0].name.to_ascii(),
        "WeB.demo.svc.cluster.local.",
        "letters stay as they were asked"
    );
    assert!(web.metadata.authoritative && !web.metadata.recursion_available);
    let none = udp(one.address, &question("no.demo.svc.cluster.local.", RecordType::A)).await;
    assert_eq!(none.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(none.authorities[0].record_type(), RecordType::SOA);

    let all = question("db.demo.svc.cluster.local.", RecordType::A);
    let cut = udp(one.address, &all).await;
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    let services = question("_http._tcp.db.demo.svc.cluster.local.", RecordType::SRV);
    let whole =
        tcp(one.address, &[all, question("web.demo.svc.cluster.local.", RecordType::A), services]).await;
    assert_eq!(whole.iter().map(|message| message.answers.len()).collect::<Vec<_>>(), [200, 1, 200]);
    assert!(!whole[0].metadata.truncation && whole[2].additionals.len() == 200);
    let first = |message: &Message| message.answers[0].data.clone();
    let again = tcp(one.address, &[question("db.demo.svc.cluster.local.", RecordType::A)]).await;
    assert_ne!(first(&whole[0]), first(&again[0]), "each question sees another address first");
    // With EDNS the answer says so too.
    let mut message = Message::from_vec(&question("web.demo.svc.cluster.local.", RecordType::A)).unwrap();
    message.set_edns(Edns::new());
    assert!(udp(one.address, &message.to_vec().unwrap()).await.edns.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_names_are_asked_from_the_next_upstream_that_answers() {
    let other =
        start("other.local", vec![service("far", "10.102.0.9"), headless("many", 200)], Vec::new()).await;
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let lines = vec![
        service("web", "10.101.0.9"),
        alias("near", "web.demo.svc.cluster.local"),
        alias("far", "far.demo.svc.other.local"),
        alias("lost", "nobody.demo.svc.other.local"),
        alias("many", "many.demo.svc.other.local"),
        alias("round", "round.demo.svc.cluster.local"),
    ];
    let upstreams = vec![silent.local_addr().unwrap(), other.address];
    let one = start("cluster.local", lines.clone(), upstreams).await;
    let (a, refused) = (RecordType::A, ResponseCode::Refused);
    let at = one.address;
    assert_eq!(ask(at, "far.demo.svc.other.local.", a).await, ok(&["10.102.0.9"]));
    assert_eq!(ask(at, "no.demo.svc.other.local.", a).await.0, ResponseCode::NXDomain);
    let cname = "far.demo.svc.other.local.";
    assert_eq!(ask(at, "far.demo.svc.cluster.local.", a).await, ok(&["10.102.0.9", cname]));
    assert_eq!(
        ask(at, "near.demo.svc.cluster.local.", a).await,
        ok(&["10.101.0.9", "web.demo.svc.cluster.local."])
    );
    assert_eq!(ask(at, "lost.demo.svc.cluster.local.", a).await.0, ResponseCode::NXDomain);
    assert_eq!(ask(at, "round.demo.svc.cluster.local.", a).await.0, ResponseCode::ServFail);
    // Names of ours are nobody else's, whatever is asked.
    assert_eq!(ask(at, "no.demo.svc.cluster.local.", a).await.0, ResponseCode::NXDomain);
    // Over TCP the upstream is asked over TCP; the silent one has no listener there.
    let whole =
        tcp(at, &[question("many.demo.svc.other.local.", a), question("many.demo.svc.cluster.local.", a)])
            .await;
    assert_eq!((whole[0].answers.len(), whole[1].answers.len()), (200, 201));
    assert!(udp(at, &question("many.demo.svc.other.local.", a)).await.metadata.truncation);

    let alone = start("cluster.local", lines.clone(), Vec::new()).await;
    assert_eq!(ask(alone.address, "far.demo.svc.other.local.", a).await.0, refused);
    assert_eq!(ask(alone.address, "far.demo.svc.cluster.local.", a).await, ok(&[cname]));
    // Nobody answers: said so in bounded time, and what is known is answered meanwhile.
    let dead = start("cluster.local", lines, vec![silent.local_addr().unwrap()]).await;
    let waiting = tokio::spawn(async move { ask(dead.address, "far.demo.svc.other.local.", a).await.0 });
    assert_eq!(ask(at, "web.demo.svc.cluster.local.", a).await, ok(&["10.101.0.9"]));
    assert_eq!(waiting.await.unwrap(), ResponseCode::ServFail);
}

/// An agent's side of the stream: what it is told to say, until it is dropped.
struct Agent {
    said: mpsc::Sender<Vec<u8>>,
    cancel: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Agent {
    fn start(socket: &Path) -> Self {
        std::fs::remove_file(socket).ok();
        let listener = tokio::net::UnixListener::bind(socket).unwrap();
        let (said, words) = mpsc::channel::<Vec<u8>>(8);
        let words = Arc::new(std::sync::Mutex::new(Some(words)));
        let router = axum::Router::new().route(
            PATH,
            get(move || async move {
                let words = words.lock().unwrap().take();
                Body::from_stream(spoken(words))
            }),
        );
        let cancel = CancellationToken::new();
        let ended = cancel.clone();
        let task = tokio::spawn(async move {
            tokio::select! {
                served = axum::serve(listener, router) => served.unwrap(),
                () = ended.cancelled() => {}
            }
        });
        Self { said, cancel, task }
    }

    async fn say(&self, lines: &[Line]) {
        let mut text = Vec::new();
        for line in lines {
            text.extend(serde_json::to_vec(line).unwrap());
            text.push(b'\n');
        }
        self.said.send(text).await.unwrap();
    }

    async fn die(self) {
        self.cancel.cancel();
        self.task.await.unwrap();
    }
}

fn spoken(
    words: Option<mpsc::Receiver<Vec<u8>>>,
) -> impl tokio_stream::Stream<Item = Result<Bytes, std::convert::Infallible>> {
    // A second unit hears nothing.
    let words = words.unwrap_or_else(|| mpsc::channel(1).1);
    let words = tokio_stream::wrappers::ReceiverStream::new(words);
    tokio_stream::StreamExt::map(words, |text| Ok(Bytes::from(text)))
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting)
        .await
        .unwrap_or_else(|_| panic!("waited for {what}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_unit_survives_its_agent_and_itself() {
    let folder = tempfile::tempdir().unwrap();
    let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let settings = Settings {
        listen: vec![free],
        cluster_domain: "cluster.local".to_owned(),
        clusterset_domain: "clusterset.local".to_owned(),
        upstreams: Vec::new(),
        ttl_secs: 5,
        agent_socket: folder.path().join("agent.sock"),
        control_socket: folder.path().join("dns.sock"),
        state_file: folder.path().join("state/names.json"),
        metrics: None,
        version: "test".to_owned(),
    };
    // What it gives up, it gives up for its own threads only.
    let unit = |settings: &Settings| {
        let settings = settings.clone();
        std::thread::spawn(move || tombolo_dns::unit::run(&settings).map_err(|error| error.to_string()))
    };
    let status = async || client::status(&settings.control_socket).await.ok();
    let agent = Agent::start(&settings.agent_socket);
    let first = unit(&settings);
    until("the unit", async || status().await.is_some()).await;
    let (a, web) = (RecordType::A, "web.demo.svc.cluster.local.");
    assert_eq!(ask(free, web, a).await.0, ResponseCode::ServFail, "nobody has told it anything");
    agent.say(&[service("web", "10.101.0.9"), service("old", "10.101.0.10"), WHOLE]).await;
    until("the names", async || ask(free, web, a).await == ok(&["10.101.0.9"])).await;
    assert!(status().await.unwrap().ready);
    assert!(unit(&settings).join().unwrap().unwrap_err().contains("is another unit running"));

    // The agent dies; everything stays, and what is not there is nowhere.
    agent.die().await;
    until("the end of the talk", async || status().await.is_some_and(|status| status.agent_secs.is_none()))
        .await;
    assert_eq!(ask(free, web, a).await, ok(&["10.101.0.9"]));
    assert_eq!(ask(free, "no.demo.svc.cluster.local.", a).await.0, ResponseCode::NXDomain);

    // The unit itself starts again, without an agent.
    client::stop(&settings.control_socket).await.unwrap();
    first.join().unwrap().unwrap();
    let second = unit(&settings);
    until("the unit", async || status().await.is_some()).await;
    assert_eq!(ask(free, web, a).await, ok(&["10.101.0.9"]));

    // The next agent begins, and takes away only when it has said all.
    let agent = Agent::start(&settings.agent_socket);
    agent.say(&[service("web", "10.101.0.11"), Line::State { cluster: false, clusterset: false }]).await;
    until("the change", async || ask(free, web, a).await == ok(&["10.101.0.11"])).await;
    let old = "old.demo.svc.cluster.local.";
    assert_eq!(ask(free, old, a).await, ok(&["10.101.0.10"]));
    agent.say(&[WHOLE]).await;
    until("the sweep", async || ask(free, old, a).await.0 == ResponseCode::NXDomain).await;
    let seen = status().await.unwrap();
    assert!(seen.agent_secs.is_some() && seen.answers["NXDOMAIN"] >= 1, "{seen:?}");
    agent.die().await;
    client::stop(&settings.control_socket).await.unwrap();
    second.join().unwrap().unwrap();
    assert!(!settings.control_socket.exists());
}

/// Whatever arrives, nothing panics, and what is sent back can be read and answers the question's id.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_packets_are_answered_or_ignored() {
    let seed = std::env::var("TOMBOLO_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(7);
    let rounds: u32 =
        std::env::var("TOMBOLO_DNS_MUTATIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(200_000);
    println!("TOMBOLO_SEED={seed}, {rounds} packets");
    let mut random = StdRng::seed_from_u64(seed);
    let lines =
        vec![service("web", "10.101.0.9"), headless("db", 9), alias("near", "web.demo.svc.cluster.local")];
    let one = start("cluster.local", lines, Vec::new()).await;
    let mut edns = Message::from_vec(&question("web.demo.svc.cluster.local.", RecordType::AAAA)).unwrap();
    edns.set_edns(Edns::new());
    let whole = [
        question("web.demo.svc.cluster.local.", RecordType::A),
        question("_http._tcp.db.demo.svc.cluster.local.", RecordType::SRV),
        question("9.0.101.10.in-addr.arpa.", RecordType::PTR),
        question("near.demo.svc.cluster.local.", RecordType::A),
        question("10-1-1-5.demo.pod.cluster.local.", RecordType::A),
        edns.to_vec().unwrap(),
    ];
    let (mut answered, mut found) = (0, 0);
    for _ in 0..rounds {
        let mut packet = whole[random.random_range(0..whole.len())].clone();
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..packet.len());
            match random.random_range(0..5) {
                0 => packet[at] ^= 1 << random.random_range(0..8),
                1 => packet[at] = random.random(),
                2 => packet.truncate(at.max(1)),
                3 => packet.insert(at, random.random()),
                _ => packet[at] = [0, 0xc0, 0xff, 63, 64][random.random_range(0..5)],
            }
        }
        let transport = if random.random() { Transport::Udp } else { Transport::Tcp };
        if let Some(answer) = one.server.handle(&packet, transport).await {
            let message = Message::from_vec(&answer)
                .unwrap_or_else(|error| panic!("{error}: {packet:?} -> {answer:?}"));
            assert_eq!((&packet[..2], message.metadata.message_type), (&answer[..2], MessageType::Response));
            answered += 1;
            found += u32::from(message.answers.iter().any(|record| !matches!(record.data, RData::NULL(_))));
        }
    }
    // Most damage leaves something that can be answered, and some of it leaves the question whole.
    assert!(answered > rounds / 2 && found > rounds / 50, "{answered} answered, {found} with records");
}

/// Questions per second of one server over loopback, from as many clients as there are processors.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: cargo test -p tombolo-dns --test serve -- --ignored --nocapture questions_per_second"]
async fn questions_per_second() {
    let names = (0..20_000).map(|n: u32| service(&format!("s{n}"), &std::net::Ipv4Addr::from(n).to_string()));
    let one = start("cluster.local", names.collect(), Vec::new()).await;
    let packets: Vec<_> =
        (0..1000).map(|n| question(&format!("s{}.demo.svc.cluster.local.", n * 20), RecordType::A)).collect();
    let start = std::time::Instant::now();
    for packet in packets.iter().cycle().take(200_000) {
        assert!(one.server.handle(packet, Transport::Udp).await.is_some());
    }
    let core = 200_000.0 / start.elapsed().as_secs_f64();
    let (until, mut clients) = (std::time::Instant::now() + Duration::from_secs(5), Vec::new());
    for _ in 0..2 {
        let (address, packets) = (one.address, packets.clone());
        clients.push(tokio::spawn(async move {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            socket.connect(address).await.unwrap();
            let (mut count, mut buffer) = (0_u64, [0; 512]);
            // Thirty-two under way, as many clients would have.
            for packet in packets.iter().take(32) {
                socket.send(packet).await.unwrap();
            }
            for packet in packets.iter().cycle() {
                let received =
                    tokio::time::timeout(Duration::from_millis(200), socket.recv(&mut buffer)).await;
                count += u64::from(received.is_ok());
                if std::time::Instant::now() > until {
                    return count;
                }
                socket.send(packet).await.unwrap();
            }
            count
        }));
    }
    let mut all = 0;
    for client in clients {
        all += client.await.unwrap();
    }
    println!(
        "{core:.0} questions/s without sockets (one thread); {} /s over UDP, clients on the same processors",
        all / 5
    );
}
