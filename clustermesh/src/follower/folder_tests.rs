//! What happens to followed clusters when their folder and its files change or break. No etcd is needed: nothing
//! listens at the endpoints.

use super::*;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;
use tombolo_base::source::SourceState;

const LIMIT: Duration = Duration::from_secs(20);
const GOOD: &str = "endpoints: [https://127.0.0.1:1]\ntrusted-ca-file: ca\ncert-file: c\nkey-file: k\n";

/// Clusters that are gone, in order, and the states of the others.
type Seen = (Vec<String>, BTreeMap<String, SourceState>);

/// Remembers which clusters were taken away and what was said of the others.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Seen>>);

impl MeshSink for Sink {
    fn apply(&self, _: &ClusterName, _: Vec<Change>) {}

    fn state(&self, cluster: &ClusterName, state: SourceState) {
        self.0.lock().unwrap().1.insert(cluster.to_string(), state);
    }

    fn gone(&self, cluster: &ClusterName) {
        self.0.lock().unwrap().0.push(cluster.to_string());
    }
}

struct Rig {
    folder: tempfile::TempDir,
    sink: Sink,
    mesh: MeshHandle,
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

impl Rig {
    async fn start(folder: tempfile::TempDir) -> Self {
        let config = MeshConfig {
            cluster: ClusterName::new("east").unwrap(),
            cluster_id: Some(ClusterId::new(1, MaxClusters::C255).unwrap()),
            max: MaxClusters::C255,
            folder: folder.path().join("remotes"),
            snapshots: Some(folder.path().join("snapshots")),
            allow_plaintext: false,
            own: None,
            timers: Timers::default(),
            limits: Limits::default(),
            exports: true,
            preference: Default::default(),
            mirror: false,
            relay: None,
        };
        let (sink, cancel) = (Sink::default(), CancellationToken::new());
        let (mesh, task) = start(config, Arc::new(sink.clone()), cancel.clone()).await;
        Self { folder, sink, mesh, cancel, task }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join("remotes").join(name)
    }

    /// Asks for the status until it is as wanted; ten times a second, as a busy scraper would.
    async fn until(&self, what: &str, wanted: impl Fn(&BTreeMap<String, ClusterStatus>) -> bool) {
        let look = async {
            loop {
                let all = self.mesh.status().await;
                if wanted(&all.into_iter().map(|status| (status.name.clone(), status)).collect()) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        if tokio::time::timeout(LIMIT, look).await.is_err() {
            panic!("never seen: {what}; there is {:?}", self.mesh.status().await);
        }
    }

    fn gone(&self) -> Vec<String> {
        self.sink.0.lock().unwrap().0.clone()
    }

    async fn stop(self) -> tempfile::TempDir {
        self.cancel.cancel();
        self.task.await.unwrap();
        self.folder
    }
}

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("remotes")).unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join("remotes").join(name), text).unwrap();
    }
    folder
}

fn write_snapshot(folder: &Path, cluster: &str, id: u32) {
    std::fs::create_dir_all(folder.join("snapshots")).unwrap();
    let text = format!(r#"{{"version":1,"cluster":"{cluster}","id":{id},"entries":{{}}}}"#);
    std::fs::write(folder.join("snapshots").join(format!("{cluster}.json")), text).unwrap();
}

#[tokio::test]
async fn only_a_file_that_is_missing_from_the_folder_drains_its_cluster() {
    let rig = Rig::start(folder(&[("west.yaml", GOOD), ("north", GOOD), ("south.yaml", GOOD)])).await;
    rig.until("three clusters", |all| ["north", "south", "west"].iter().all(|name| all.contains_key(*name)))
        .await;
    // Not text any more, cut off in the middle of being written, a link that leads nowhere.
    std::fs::write(rig.file("west.yaml"), [b'e', 0xff, 0xfe]).unwrap();
    std::fs::write(rig.file("north"), "").unwrap();
    std::fs::remove_file(rig.file("south.yaml")).unwrap();
    std::os::unix::fs::symlink("nowhere", rig.file("south.yaml")).unwrap();
    let told = |all: &BTreeMap<String, ClusterStatus>, name: &str, text: &str| {
        all.get(name).is_some_and(|status| status.status.contains(text))
    };
    rig.until("what is wrong with each file", |all| {
        told(all, "west", "UTF-8") && told(all, "north", "endpoints") && told(all, "south", "south.yaml")
    })
    .await;
    assert!(rig.gone().is_empty(), "{:?}", rig.gone());
    std::fs::remove_file(rig.file("north")).unwrap();
    rig.until("the removal of one", |all| !all.contains_key("north")).await;
    assert_eq!(rig.gone(), ["north"]);
    rig.stop().await;
}

#[tokio::test]
async fn a_folder_that_vanishes_or_is_none_is_told_and_drains_nothing() {
    let rig = Rig::start(folder(&[("west.yaml", GOOD)])).await;
    rig.until("west", |all| all.contains_key("west")).await;
    let (remotes, away) = (rig.folder.path().join("remotes"), rig.folder.path().join("away"));
    let place = remotes.display().to_string();
    std::fs::rename(&remotes, &away).unwrap();
    rig.until("the loss", |all| all.get(&place).is_some_and(|status| status.status.contains("create"))).await;
    std::fs::write(&remotes, "a file").unwrap();
    std::fs::remove_file(&remotes).unwrap();
    std::fs::rename(&away, &remotes).unwrap();
    std::fs::write(rig.file("north.yaml"), GOOD).unwrap();
    rig.until("its return", |all| all.contains_key("north") && !all.contains_key(&place)).await;
    assert!(rig.gone().is_empty(), "{:?}", rig.gone());
    rig.stop().await;
}

#[tokio::test]
async fn asking_for_the_status_hides_no_change() {
    let rig = Rig::start(folder(&[])).await;
    rig.until("an empty mesh", BTreeMap::is_empty).await;
    std::fs::write(rig.file("west.yaml"), GOOD).unwrap();
    let asked = std::time::Instant::now();
    rig.until("west", |all| all.contains_key("west")).await;
    assert!(asked.elapsed() < Duration::from_secs(10), "seen after {:?} only", asked.elapsed());
    rig.stop().await;
}

#[tokio::test]
async fn a_file_or_folder_broken_at_a_restart_keeps_what_the_last_life_knew() {
    let broken = folder(&[("west.yaml", "endpoints: [")]);
    write_snapshot(broken.path(), "west", 2);
    write_snapshot(broken.path(), "left", 3);
    let rig = Rig::start(broken).await;
    let stale = |rig: &Rig, name: &str| rig.sink.0.lock().unwrap().1.get(name) == Some(&SourceState::Stale);
    rig.until("what west was", |_| stale(&rig, "west")).await;
    rig.until("why", |all| all.get("west").is_some_and(|west| west.status.contains("west.yaml"))).await;
    assert!(!rig.folder.path().join("snapshots/left.json").exists(), "its file is gone, so is its snapshot");
    std::fs::write(rig.file("west.yaml"), GOOD).unwrap();
    rig.until("a repaired file", |all| {
        all.get("west").is_some_and(|west| {
            west.endpoints == ["https://127.0.0.1:1"] && !west.status.contains("west.yaml")
        })
    })
    .await;
    assert!(rig.gone().is_empty());
    let folder = rig.stop().await;
    std::fs::rename(folder.path().join("remotes"), folder.path().join("away")).unwrap();
    let rig = Rig::start(folder).await;
    rig.until("west without any folder", |all| all.contains_key("west") && stale(&rig, "west")).await;
    std::fs::create_dir(rig.folder.path().join("remotes")).unwrap();
    rig.until("the empty folder", |all| all.is_empty()).await;
    assert_eq!(rig.gone(), ["west"], "now it is known to be removed");
    rig.stop().await;
}
