use super::*;
use crate::Tables;
use std::fs;
use tombolo_base::ids::{ClusterId, ClusterName, MaxClusters};
use tombolo_base::table::{Row, Table};

const LIMIT: Duration = Duration::from_secs(20);

fn east() -> ClusterIdentity {
    let id = ClusterId::new(1, MaxClusters::C255).unwrap();
    ClusterIdentity { name: ClusterName::new("east").unwrap(), id }
}

fn namespace(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n")
}

/// Waits until the table shows exactly these keys.
async fn until<R: Row>(table: &Table<R>, wanted: &[&str], key: impl Fn(&R) -> String) {
    let mut changes = table.changes();
    let look = async {
        loop {
            let batch = changes.next().await;
            let keys: Vec<_> = batch.snapshot.iter().map(&key).collect();
            if keys == wanted && batch.snapshot.is_complete() {
                return;
            }
        }
    };
    tokio::time::timeout(LIMIT, look).await.expect("the table never showed what was written");
}

#[tokio::test]
async fn follows_a_folder_through_every_kind_of_change() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("a.yaml"), namespace("a")).unwrap();
    fs::write(at(".hidden.yaml"), namespace("hidden")).unwrap();
    fs::write(at("notes.txt"), "kind: [").unwrap();
    let (tables, writers) = Tables::new();
    let stop = CancellationToken::new();
    let source = FolderSource::start(FolderConfig::new(dir.path(), east()), writers, stop.clone()).unwrap();
    assert!(tables.pods.snapshot().unconfirmed_sources().contains(&Source::Manifests));
    let name = |row: &crate::NamespaceRow| row.name.to_string();
    until(&tables.namespaces, &["a"], name).await;
    let mut reports = source.reports();
    tokio::time::timeout(LIMIT, reports.wait_for(|report| report.complete)).await.expect("complete").unwrap();
    assert!(tables.pods.snapshot().is_complete());
    // Atomic replacement, as the lab's controllers write.
    fs::write(at(".b.tmp"), namespace("b")).unwrap();
    fs::rename(at(".b.tmp"), at("b.yml")).unwrap();
    until(&tables.namespaces, &["a", "b"], name).await;
    fs::rename(at("b.yml"), at("c.json")).unwrap();
    fs::write(
        at("c.json"),
        "{\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {\"name\": \"c\"}}",
    )
    .unwrap();
    until(&tables.namespaces, &["a", "c"], name).await;
    fs::remove_file(at("a.yaml")).unwrap();
    until(&tables.namespaces, &["c"], name).await;
    stop.cancel();
    tokio::time::timeout(LIMIT, source.stopped()).await.unwrap();
}

#[tokio::test]
async fn a_folder_that_vanishes_keeps_its_rows_until_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("manifests");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("a.yaml"), namespace("a")).unwrap();
    let (tables, writers) = Tables::new();
    let stop = CancellationToken::new();
    let source = FolderSource::start(FolderConfig::new(&folder, east()), writers, stop.clone()).unwrap();
    let name = |row: &crate::NamespaceRow| row.name.to_string();
    until(&tables.namespaces, &["a"], name).await;
    fs::rename(&folder, dir.path().join("away")).unwrap();
    let mut reports = source.reports();
    let told = reports.wait_for(|report| report.problems.iter().any(|p| p.reason.contains("cannot list")));
    tokio::time::timeout(LIMIT, told).await.expect("the loss is told").unwrap();
    assert_eq!(tables.namespaces.snapshot().len(), 1);
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("b.yaml"), namespace("b")).unwrap();
    until(&tables.namespaces, &["b"], name).await;
    stop.cancel();
    source.stopped().await;
}

#[test]
fn files_that_cannot_be_read_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let binary = dir.path().join("a.yaml");
    fs::write(&binary, [b'a', 0xff]).unwrap();
    assert!(check_file(&binary, &east())[0].reason.contains("not UTF-8 from byte 1"));
    assert!(read_text(&binary, 1).unwrap_err().reason.contains("larger than 1"));
    assert_eq!(check_file(&dir.path().join("none.yaml"), &east()).len(), 1);
    let good = dir.path().join("b.yaml");
    fs::write(&good, namespace("b")).unwrap();
    assert!(check_file(&good, &east()).is_empty());
}

#[test]
fn a_missing_folder_is_an_error_with_a_remedy() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (_, writers) = Tables::new();
    let started = runtime.block_on(async {
        FolderSource::start(FolderConfig::new("/nonexistent/x", east()), writers, CancellationToken::new())
    });
    assert!(started.unwrap_err().to_string().contains("create the folder"));
}

#[tokio::test]
async fn a_manifest_broken_at_a_restart_keeps_its_last_good_version() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("manifests");
    fs::create_dir(&folder).unwrap();
    let at = |name: &str| folder.join(name);
    for name in ["a", "b", "c"] {
        fs::write(at(&format!("{name}.yaml")), namespace(name)).unwrap();
    }
    let config = FolderConfig { keep: Some(dir.path().join("kept")), ..FolderConfig::new(&folder, east()) };
    let name = |row: &crate::NamespaceRow| row.name.to_string();
    for broken in [false, true] {
        let (tables, writers) = Tables::new();
        let stop = CancellationToken::new();
        let source = FolderSource::start(config.clone(), writers, stop.clone()).unwrap();
        if broken {
            // The first look is complete only with what the broken files said in the life before.
            let mut changes = tables.namespaces.changes();
            let complete = async {
                loop {
                    let batch = changes.next().await;
                    if batch.snapshot.is_complete() {
                        return batch.snapshot.iter().map(name).collect::<Vec<_>>();
                    }
                }
            };
            let shown = tokio::time::timeout(LIMIT, complete).await.expect("complete");
            assert_eq!(shown, ["a", "b", "d"], "c was removed, d is new");
            let mut reports = source.reports();
            let told = reports.wait_for(|report| report.complete);
            tokio::time::timeout(LIMIT, told).await.expect("told").unwrap();
            assert_eq!(source.problems().len(), 2, "{:?}", source.problems());
            fs::remove_file(at("a.yaml")).unwrap();
            until(&tables.namespaces, &["b", "d"], name).await;
        } else {
            until(&tables.namespaces, &["a", "b", "c"], name).await;
        }
        stop.cancel();
        source.stopped().await;
        if !broken {
            fs::write(at("a.yaml"), "kind: [").unwrap();
            fs::write(at("b.yaml"), [b'k', 0xff]).unwrap();
            fs::remove_file(at("c.yaml")).unwrap();
            fs::write(at("d.yaml"), namespace("d")).unwrap();
        }
    }
    let kept: Vec<_> =
        fs::read_dir(dir.path().join("kept")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!kept.iter().any(|name| name == "a.yaml" || name == "c.yaml"), "{kept:?}");
}
