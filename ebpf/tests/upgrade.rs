//! Maps of another size or schema, under load: connections live on, whatever was made anew.
#![cfg(test)]

mod support;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use support::space::*;
use support::*;
use tombolo_ebpf::*;

/// Longer than any pause that is not a loss: a SYN is repeated after one second.
const PATIENCE: Duration = Duration::from_secs(3);

/// Echoes what every connection sends, until it ends.
fn echo(server: &Space, at: SocketAddr) {
    let listener = server.inside(|| TcpListener::bind(at)).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok(read @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..read]).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

fn ask(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut answer = [0; 4];
    stream.write_all(b"ping")?;
    stream.read_exact(&mut answer)
}

fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Conversations that never end, and new ones all the time, from a pod to a service of another.
struct Load {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(client: &Space, to: SocketAddr) -> Self {
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut load = Self { stop, rounds, threads: Vec::new() };
        for lasting in [true, true, false] {
            let (stop, rounds) = (load.stop.clone(), load.rounds.clone());
            let there = std::fs::File::open(format!("/proc/{}/ns/net", client.pid())).unwrap();
            load.threads.push(std::thread::spawn(move || {
                nix::sched::setns(there, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                let mut lost = Vec::new();
                let mut stream = connect(to);
                while !stop.load(Ordering::Relaxed) && lost.len() < 5 {
                    // Some questions each, so that the flows of this test find room in its small tables.
                    let asked = stream.as_mut().map_err(|e| e.to_string());
                    let asked = asked
                        .and_then(|stream| (0..50).try_for_each(|_| ask(stream)).map_err(|e| e.to_string()));
                    rounds.fetch_add(1, Ordering::Relaxed);
                    if let Err(error) = &asked {
                        lost.push(format!("{to}, {}: {error}", if lasting { "lasting" } else { "new" }));
                    }
                    if !lasting || asked.is_err() {
                        stream = connect(to);
                    }
                }
                lost
            }));
        }
        load
    }

    /// Waits until some more questions were answered.
    fn go_on(&self) {
        let limit = Instant::now() + Duration::from_secs(30);
        let enough = self.rounds.load(Ordering::Relaxed) + 20;
        while self.rounds.load(Ordering::Relaxed) < enough {
            assert!(Instant::now() < limit, "nothing is answered any more");
            std::thread::yield_now();
        }
    }

    fn end(self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let lost = self.threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        (self.rounds.load(Ordering::Relaxed), lost)
    }
}

fn config(bpffs: &Path, attach: Attach, sizes: MapSizes, schema: u32) -> DatapathConfig {
    DatapathConfig { bpffs: bpffs.to_owned(), sizes, attach, schema }
}

/// A may open connections to B, B may answer, and that is all: an answer whose flow is not known is dropped.
fn policies(datapath: &Datapath) {
    let rule = |identity| RuleEntry {
        identity: Some(identity),
        protocol: Some(6),
        port: Some(8080.into()),
        ..RuleEntry::default()
    };
    let client = PolicySet {
        ingress: PolicySide::only(vec![]),
        egress: PolicySide::only(vec![rule(ID_B)]),
        audit: false,
    };
    let server = PolicySet {
        ingress: PolicySide::only(vec![rule(ID_A)]),
        egress: PolicySide::only(vec![]),
        audit: false,
    };
    datapath.set_policy(1, &client).unwrap();
    datapath.set_policy(2, &server).unwrap();
    for (ifindex, mut row) in datapath.interfaces().unwrap() {
        row.policy_id = if row.identity == ID_A { 1 } else { 2 };
        datapath.upsert_interface(ifindex, &row).unwrap();
    }
}

fn lives_through_changes(attach: Attach) {
    let bpffs = isolate();
    let datapath = open(attach, bpffs.path());
    prepare_node(&datapath, 1);
    datapath.set_config(&host_config()).unwrap();
    let a = add_pod(&datapath, 1, 2, ID_A, 1500);
    let b = add_pod(&datapath, 1, 3, ID_B, 1500);
    policies(&datapath);
    let mut loads = Vec::new();
    for f in FAMILIES {
        let id = u32::try_from(f).unwrap() + 1;
        let backend = Backend { ip: ip(POD_B[f]), port: 8080, protocol: 6 };
        datapath.upsert_backend(id, &backend).unwrap();
        let frontend = Frontend { ip: ip(CLUSTER_IP[f]), port: 80, protocol: 6, scope: Scope::Internal };
        let entry = ServiceEntry { rev_nat: id, maglev: vec![id; 7], ..ServiceEntry::default() };
        datapath.set_service(&frontend, &entry).unwrap();
        echo(&b.space, (ip(POD_B[f]), 8080).into());
        loads.push(Load::start(&a.space, (ip(CLUSTER_IP[f]), 80).into()));
    }
    drop(datapath);

    let small = MapSizes { conntrack: 16_384, conntrack_half: 4096, ..small_sizes() };
    let larger = MapSizes {
        conntrack: 32_768,
        conntrack_half: 8192,
        services: 8192,
        backends: 16_384,
        maglev_slots: small.maglev_slots * 2,
        endpoints: 2048,
        rules: 2048,
        ..small.clone()
    };
    let own = DatapathConfig::default().schema;
    // Another size, the next schema, back to the former, and the first size: an upgrade and a downgrade.
    let changes = [(&larger, own), (&larger, own + 1), (&small, own + 1), (&small, own), (&larger, own)];
    for (sizes, schema) in changes {
        loads.iter().for_each(Load::go_on);
        // Dropped at once: the agent dies, and what it hooked goes on.
        drop(Datapath::open(&config(bpffs.path(), attach, sizes.clone(), schema)).unwrap());
        let pinned: Vec<_> = std::fs::read_dir(bpffs.path().join("tombolo")).unwrap().collect();
        assert_eq!(pinned.len(), 1, "no other schema is left: {pinned:?}");
        loads.iter().for_each(Load::go_on);
    }
    let last = Datapath::open(&config(bpffs.path(), attach, larger.clone(), own)).unwrap();
    let answered = || last.conntrack().unwrap().iter().map(|flow| flow.packets[1]).sum::<u64>();
    let before = answered();
    loads.iter().for_each(Load::go_on);
    assert!(answered() > before, "it is these maps that packets find");
    for load in loads {
        let (rounds, lost) = load.end();
        assert!(lost.is_empty(), "of {rounds} rounds of 50 questions were lost: {lost:?}");
        assert!(rounds >= 200, "{rounds}");
    }
    nix::mount::umount2(bpffs.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
}

#[test]
fn connections_live_through_other_sizes_and_schemas_with_tcx() {
    lives_through_changes(Attach::Tcx);
}

#[test]
fn connections_live_through_other_sizes_and_schemas_with_clsact() {
    lives_through_changes(Attach::Clsact);
}

/// The programs, after a change of their header.
fn object_with(folder: &Path, change: impl FnOnce(String) -> String) -> std::path::PathBuf {
    let bpf = Path::new(env!("CARGO_MANIFEST_DIR")).join("bpf");
    for entry in std::fs::read_dir(&bpf).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    let header = std::fs::read_to_string(folder.join("abi.h")).unwrap();
    std::fs::write(folder.join("abi.h"), change(header)).unwrap();
    let object = folder.join("changed.o");
    let include = format!("/usr/include/{}-linux-gnu", std::env::consts::ARCH);
    sh(&format!(
        "${{BPF_CLANG:-clang-19}} -target bpf -mcpu=v3 -O2 -g -I {folder} -idirafter {include} -c {folder}/datapath.bpf.c -o {object}",
        folder = folder.display(),
        object = object.display(),
    ));
    object
}

/// The programs as a later schema may have them: fields moved and added.
fn later_object(folder: &Path) -> std::path::PathBuf {
    object_with(folder, |header| {
        let later = header.replacen("struct tb_ct {", "struct tb_ct {\n\t__u64 added_ns;", 1).replacen(
            "struct tb_service {",
            "struct tb_service {\n\t__u32 added[2];",
            1,
        );
        assert!(later.contains("added_ns;") && later.contains("added[2];"));
        let layouts_of_today = |line: &&str| line.starts_with("_Static_assert");
        later.lines().filter(|line| !layouts_of_today(line)).map(|line| format!("{line}\n")).collect()
    })
}

/// An agent that died, or could not load, after it had begun to make maps of another size.
#[test]
fn an_unfinished_change_loses_nothing_whatever_size_comes_next() {
    for next in [small_sizes(), MapSizes { conntrack: 4096, ..small_sizes() }] {
        let node = Node::new();
        node.run("from_endpoint", node.a, &tcp((POD_A[0], 4000), (POD_B[0], 80), "S"));
        node.run("from_endpoint", node.b, &tcp((POD_B[0], 80), (POD_A[0], 4000), "SA"));
        node.run("from_endpoint", node.a, &tcp((POD_A[0], 4000), (POD_B[0], 80), "A"));
        let established = |datapath: &Datapath| {
            let flows = datapath.conntrack().unwrap();
            flows.iter().filter(|flow| flow.established).count()
        };
        assert_eq!(established(&node.datapath), 2);

        let maps = folder_of(&node, 1);
        std::fs::rename(maps.join("tb_ct"), maps.join("tb_ct-old")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let half_way = aya::EbpfLoader::new()
            .default_map_pin_directory(&maps)
            .map_max_entries("tb_ct", 2048)
            .load_file(object_with(folder.path(), |header| header))
            .unwrap();
        drop(half_way);

        let second = node.reopen(Attach::Auto, next);
        assert_eq!(established(&second), 2, "found in what gave way, not in its empty copy");
        assert!(!maps.join("tb_ct-old").exists());
    }
}

#[test]
fn rows_of_another_layout_are_carried_by_field() {
    let mut node = Node::new();
    node.service(CLUSTER_IP[0], 80, Scope::Internal, 10, &[(1, POD_B[0], 8080)]);
    node.run("from_endpoint", node.a, &tcp((POD_A[0], 4000), (CLUSTER_IP[0], 80), "S"));
    node.run("from_endpoint", node.b, &tcp((POD_B[0], 8080), (POD_A[0], 4000), "SA"));
    node.run("from_endpoint", node.a, &tcp((POD_A[0], 4000), (CLUSTER_IP[0], 80), "A"));
    node.events();
    let seen = |datapath: &Datapath| {
        let mut flows = datapath.conntrack().unwrap();
        flows.retain(|flow| flow.established);
        flows.sort_by_key(|flow| format!("{:?} {:?}", flow.kind, flow.source));
        let services = datapath.services().unwrap();
        let services: Vec<_> = services.iter().map(|(frontend, entry)| (frontend, entry.rev_nat)).collect();
        format!("{flows:?} {services:?}")
    };
    let before = seen(&node.datapath);
    assert!(before.contains("established: true") && before.contains("rev_nat: 10"), "{before}");

    // The maps of a later program, filled by hand.
    let folder = tempfile::tempdir().unwrap();
    let later = folder_of(&node, 9);
    std::fs::create_dir_all(&later).unwrap();
    let object = aya::EbpfLoader::new()
        .default_map_pin_directory(&later)
        .load_file(later_object(folder.path()))
        .unwrap();
    move_rows::<40, 112, 120>(&folder_of(&node, 1), &later, "tb_ct", 8);
    move_rows::<24, 24, 32>(&folder_of(&node, 1), &later, "tb_services", 8);
    drop(object);
    std::fs::remove_dir_all(folder_of(&node, 1)).unwrap();

    let back = node.reopen(Attach::Auto, small_sizes());
    let after = seen(&back);
    assert_eq!(after, before);
    assert!(!later.exists());
}

fn folder_of(node: &Node, schema: u32) -> std::path::PathBuf {
    node.bpffs.path().join("tombolo").join(format!("v{schema}"))
}

/// Copies a map's rows as a program would whose values have `added` more bytes in front.
fn move_rows<const K: usize, const V: usize, const W: usize>(
    from: &Path,
    to: &Path,
    map: &str,
    added: usize,
) {
    let open =
        |folder: &Path| aya::maps::Map::HashMap(aya::maps::MapData::from_pin(folder.join(map)).unwrap());
    let old = aya::maps::HashMap::<_, [u8; K], [u8; V]>::try_from(open(from)).unwrap();
    let mut new = aya::maps::HashMap::<_, [u8; K], [u8; W]>::try_from(open(to)).unwrap();
    for row in old.iter() {
        let (key, value) = row.unwrap();
        let mut wider = [0xff; W];
        wider[added..].copy_from_slice(&value);
        new.insert(key, wider, 0).unwrap();
    }
}
