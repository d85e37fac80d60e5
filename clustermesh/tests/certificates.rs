//! The drill of docs/clustermesh.md: certificates and the CA are renewed under connections that stand, and nothing is lost.
#![cfg(test)]

mod rig;

use rig::agent::{Agent, raw};
use rig::reader::{Reader, remembering};
use rig::{Etcd, Pki, until};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tombolo_clustermesh::follower::{ClusterStatus, MeshConfig, Timers};
use tombolo_clustermesh::publisher::PublisherStatus;
use tombolo_clustermesh::wire::Kind;

/// A reader of cluster b that looks at its certificates often.
/// A reader that looks at its certificates often.
fn watchful(folder: &Path) -> MeshConfig {
    let config = remembering(folder);
    MeshConfig { timers: Timers { certificates: Duration::from_millis(200), ..config.timers }, ..config }
}

/// Nothing was taken away so far, the services least of all.
async fn has_lost_nothing(reader: &Reader, when: &str) {
    let (view, status) = (reader.seen.view("a"), reader.status("a").await);
    assert_eq!((view.deletes, view.count(Kind::Services)), (0, 1), "{when}");
    assert!(status.withheld.is_empty() && view.count(Kind::Ips) >= 4, "{when}: {status:?}");
}

async fn uses(reader: &Reader, year: i32) {
    let end = rcgen::date_time_ymd(year, 1, 1).unix_timestamp();
    until("the renewed certificate", async || {
        let status = reader.status("a").await;
        status.ready && status.certificate_expires_unix_secs == Some(end)
    })
    .await;
}

/// Two agents of a, and a reader of b that has seen everything.
async fn mesh(pki: &Pki, etcd: &Etcd, folder: &Path) -> (Agent, Agent, Reader) {
    let one = Agent::start(etcd, pki, 1, folder, |_| {});
    let two = Agent::start(etcd, pki, 2, folder, |_| {});
    tokio::join!(one.publish(&["n1", "n2"]), two.publish(&["n1", "n2"]));
    std::fs::create_dir_all(folder.join("remotes")).unwrap();
    etcd.write_file(pki, "remote", &folder.join("remotes/a.yaml"));
    let reader = Reader::start(watchful(folder)).await;
    reader.ready("a").await;
    (one, two, reader)
}

/// Certificate and key of a user, which a stranger's took the place of.
struct Good {
    files: [(PathBuf, Vec<u8>); 2],
}

fn exchange(pki: &Pki, user: &str) -> Good {
    let stranger = Pki::new();
    let files = ["crt", "key"].map(|end| {
        let file = pki.path(&format!("{user}.{end}"));
        let good = std::fs::read(&file).unwrap();
        std::fs::copy(stranger.path(&format!("{user}.{end}")), &file).unwrap();
        (file, good)
    });
    Good { files }
}

impl Good {
    fn put_back(self) {
        self.files.iter().for_each(|(file, text)| std::fs::write(file, text).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_certificate_is_used_by_a_second_connection_before_the_first_is_closed() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let etcd = Etcd::start(&pki, "a").await;
    let (one, two, reader) = mesh(&pki, &etcd, folder.path()).await;
    let before = reader.status("a").await;
    pki.issue_with("remote", &[], |params| params.not_after = rcgen::date_time_ymd(2040, 1, 1));
    uses(&reader, 2040).await;
    let after = reader.status("a").await;
    assert_eq!((after.reconnections, &after.last_failure), (before.reconnections, &before.last_failure));
    assert_eq!(after.etcd_id, before.etcd_id);
    // What comes now comes over the new connection.
    let mut client = etcd.client(&pki, "admin-a").await;
    let ip = r#"{"IP":"10.1.9.9","Mask":null,"HostIP":"192.0.2.1","ID":2,"Key":0,"Metadata":""}"#;
    client.put("cilium/state/ip/v1/default/10.1.9.9", ip, None).await.unwrap();
    until("the new address", async || reader.seen.view("a").names(Kind::Ips).contains(&"10.1.9.9/32")).await;
    has_lost_nothing(&reader, "renewed").await;
    // One that the server does not take: the old connection stays, and the reader says so.
    let good = exchange(&pki, "remote");
    until("the refusal", async || {
        let warnings = reader.status("a").await.warnings;
        warnings
            .iter()
            .any(|text| text.contains("is kept") && text.contains("refuses this client certificate"))
    })
    .await;
    let status = reader.status("a").await;
    assert!(status.ready && status.reconnections == before.reconnections, "{status:?}");
    good.put_back();
    until("the warning to go", async || reader.status("a").await.warnings.is_empty()).await;
    has_lost_nothing(&reader, "after a bad renewal").await;
    reader.stop().await;
    tokio::join!(one.stop(), two.stop());
}

/// Who writes to the own etcd does the same: an agent, and so a relay, whose connection is kept by the same code.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_keeps_its_connection_until_the_renewed_certificate_is_answered() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let etcd = Etcd::start(&pki, "a").await;
    let one = Agent::start(&etcd, &pki, 1, folder.path(), |_| {});
    one.publish(&["n1"]).await;
    let mut status = one.handle.status();
    status.wait_for(|status| status.published && status.canaries).await.unwrap();
    pki.issue_with("admin-a", &[], |params| params.not_after = rcgen::date_time_ymd(2040, 1, 1));
    let end = rcgen::date_time_ymd(2040, 1, 1).unix_timestamp();
    let renewed = |status: &PublisherStatus| {
        let used = status.certificate.as_ref().is_some_and(|expiry| expiry.not_after_unix_secs == end);
        used && status.published && status.canaries
    };
    status.wait_for(renewed).await.unwrap();
    // One that etcd does not take: everything goes on over the connection that stands.
    let good = exchange(&pki, "admin-a");
    let refused = |status: &PublisherStatus| {
        status
            .renewal
            .as_ref()
            .is_some_and(|text| text.contains("is kept") && text.contains("refuses this client certificate"))
    };
    status.wait_for(refused).await.unwrap();
    one.handle.set_node([]);
    until("what it takes away", async || raw(&etcd, &pki, "cilium/state/nodes/v1/a/n1").await.is_empty())
        .await;
    good.put_back();
    status.wait_for(|status| status.renewal.is_none()).await.unwrap();
    let found = status.borrow().clone();
    assert!(found.connected && found.leader && found.canaries, "{found:?}");
    assert_eq!((found.reconnections, found.last_failure), (0, None));
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ca_is_renewed_over_a_bundle_of_both() {
    let (mut pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let mut etcd = Etcd::start(&pki, "a").await;
    let (one, two, reader) = mesh(&pki, &etcd, folder.path()).await;
    // 1. Everybody trusts both. etcd reads its trusted CAs at its start only.
    let old = std::fs::read_to_string(pki.path("ca.crt")).unwrap();
    let new = pki.renew_ca();
    std::fs::write(pki.path("ca.crt"), format!("{old}{new}")).unwrap();
    etcd.restart(&pki).await;
    reader.ready("a").await;
    has_lost_nothing(&reader, "old and new").await;
    // 2. New certificates for servers and clients; etcd takes its own at the next connection.
    pki.issue("server", &["localhost", "127.0.0.1"]);
    for user in ["root", "admin-a"] {
        pki.issue(user, &[]);
    }
    pki.issue_with("remote", &[], |params| params.not_after = rcgen::date_time_ymd(2041, 1, 1));
    uses(&reader, 2041).await;
    has_lost_nothing(&reader, "new certificates").await;
    // 3. Nobody trusts the old one any more.
    std::fs::write(pki.path("ca.crt"), &new).unwrap();
    etcd.restart(&pki).await;
    reader.ready("a").await;
    has_lost_nothing(&reader, "new").await;
    // The agents go on writing with theirs. (What somebody else wrote now, the next elected agent would sweep away.)
    one.handle.set_node([]);
    until("what an agent takes away", async || reader.seen.view("a").names(Kind::Nodes) == ["n2"]).await;
    reader.stop().await;
    tokio::join!(one.stop(), two.stop());
}

/// Connections of this machine to a port of its own that stand, from the side that made them.
fn connections_to(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let wanted = format!(":{port:04X}");
    let stands = |line: &&str| {
        let mut fields = line.split_whitespace().skip(2);
        fields.next().is_some_and(|remote| remote.ends_with(&wanted)) && fields.next() == Some("01")
    };
    table.lines().skip(1).filter(stands).count()
}

/// Two clusters in one etcd, as a relay holds them: their followers share a connection, and what becomes of one follower costs
/// the other nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_of_one_etcd_share_a_connection_until_one_gives_it_up() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let etcd = Etcd::start(&pki, "a").await;
    let client = etcd.client(&pki, "root").await;
    let put = async |entries: Vec<(String, String)>| {
        for (key, value) in entries {
            client.kv_client().put(key, value, None).await.unwrap();
        }
    };
    let node = |cluster: &str, n: u8| {
        let id = if cluster == "a" { 1 } else { 3 };
        let text = format!(r#"{{"Name":"n{n}","Cluster":"{cluster}","ClusterID":{id}}}"#);
        (format!("cilium/state/nodes/v1/{cluster}/n{n}"), text)
    };
    put(vec![("cilium/.heartbeat".to_owned(), "now".to_owned())]).await;
    for (cluster, id) in [("a", 1), ("c", 3)] {
        let config =
            format!(r#"{{"id":{id},"capabilities":{{"syncedCanaries":true,"maxConnectedClusters":255}}}}"#);
        put(vec![(format!("cilium/cluster-config/{cluster}"), config), node(cluster, 1)]).await;
        let canary = |kind| (format!("cilium/synced/{cluster}/cilium/state/{kind}/v1"), "now".to_owned());
        put(["nodes", "identities", "ip", "services"].map(canary).into()).await;
    }
    let remotes = folder.path().join("remotes");
    std::fs::create_dir_all(&remotes).unwrap();
    pki.issue("admin-a", &[]);
    let file = |cluster: &str| remotes.join(format!("{cluster}.yaml"));
    ["a", "c"].iter().for_each(|cluster| etcd.write_file(&pki, "admin-a", &file(cluster)));
    let ours = connections_to(etcd.port);
    let reader = Reader::start(watchful(folder.path())).await;
    let all = async || reader.mesh.status().await;
    let current = async |nodes: usize, connections: usize| {
        until("both followers and their connections", async || {
            let known = |cluster: &ClusterStatus| cluster.ready && cluster.counts[&Kind::Nodes] == nodes;
            all().await.iter().filter(|cluster| known(cluster)).count() == 2
                && connections_to(etcd.port) == ours + connections
        })
        .await;
        let lost: Vec<u64> = all().await.iter().map(|cluster| cluster.reconnections).collect();
        assert_eq!(lost, [0, 0], "nobody lost a connection");
    };
    current(1, 1).await;
    // The file of one changes and means the same: it connects anew, alone.
    let text = std::fs::read_to_string(file("c")).unwrap();
    std::fs::write(file("c"), format!("{text}# looked over\n")).unwrap();
    put(vec![node("a", 2), node("c", 2)]).await;
    current(2, 2).await;
    // Renewed certificates: one makes the new connection, the other one takes it, too.
    pki.issue("admin-a", &[]);
    put(vec![node("a", 3), node("c", 3)]).await;
    current(3, 1).await;
    reader.stop().await;
}
