//! A pod's status, written into its own manifest.

use std::net::IpAddr;
use std::path::Path;

use serde_json::{Value, json};

use super::manifests::PodSpec;
use super::{Shared, is_pod};
use crate::controllers::folder::Folder;
use crate::runner::plan::MANIFESTS_IN_NODE;

/// What is reported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) phase: &'static str,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) ready: bool,
    pub(super) reason: Option<String>,
    /// Containers: name, running, ready, restarts.
    pub(super) containers: Vec<(String, bool, bool, u32)>,
}

/// Writes the status into the manifest; an equal one is not written again.
pub(super) async fn write(shared: &Shared, spec: &PodSpec, status: &Status) {
    let _one = shared.writing.lock().await;
    if let Err(error) = try_write(Path::new(MANIFESTS_IN_NODE), spec, status) {
        tracing::warn!(pod = %spec.name, file = %spec.file, %error, "the pod's status cannot be written");
    }
}

fn try_write(place: &Path, spec: &PodSpec, status: &Status) -> std::io::Result<()> {
    let text = match std::fs::read_to_string(place.join(&spec.file)) {
        // The manifest was removed meanwhile: there is nobody to tell.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let mut documents: Vec<Value> = serde_saphyr::from_multiple(&text).map_err(std::io::Error::other)?;
    documents.retain(|document| !document.is_null());
    let mut changed = false;
    for document in documents.iter_mut().filter(|document| is_pod(document, spec)) {
        changed |= set(document, status);
    }
    if !changed {
        return Ok(());
    }
    let texts: Result<Vec<String>, _> = documents.iter().map(serde_saphyr::to_string).collect();
    let text = texts.map_err(std::io::Error::other)?.join("---\n");
    Folder::new(place).write(&spec.file, &text)?;
    Ok(())
}

/// Sets the fields that a kubelet owns; the rest of the status stays. Whether anything changed.
fn set(document: &mut Value, status: &Status) -> bool {
    let before = document.clone();
    let Some(root) = document.as_object_mut() else { return false };
    let entry = root.entry("status").or_insert_with(|| json!({}));
    let Some(fields) = entry.as_object_mut() else { return false };
    let truth = |yes: bool| if yes { "True" } else { "False" };
    let mut ready = json!({"type": "Ready", "status": truth(status.ready)});
    let mut containers_ready = json!({"type": "ContainersReady", "status": truth(status.ready)});
    if let Some(reason) = &status.reason {
        for condition in [&mut ready, &mut containers_ready] {
            if let Some(condition) = condition.as_object_mut() {
                condition.insert("reason".to_owned(), json!("ContainersNotReady"));
                condition.insert("message".to_owned(), json!(reason));
            }
        }
    }
    let ips: Vec<Value> = status.addresses.iter().map(|address| json!({"ip": address.to_string()})).collect();
    fields.insert("phase".to_owned(), json!(status.phase));
    fields.insert("conditions".to_owned(), json!([ready, containers_ready]));
    if let Some(first) = status.addresses.first() {
        fields.insert("podIP".to_owned(), json!(first.to_string()));
        fields.insert("podIPs".to_owned(), json!(ips));
    } else {
        fields.remove("podIP");
        fields.remove("podIPs");
    }
    let containers: Vec<Value> = status
        .containers
        .iter()
        .map(|(name, running, ready, restarts)| {
            json!({"name": name, "image": "", "imageID": "", "started": running, "ready": ready,
                   "restartCount": restarts})
        })
        .collect();
    fields.insert("containerStatuses".to_owned(), json!(containers));
    before != *document
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_status_is_written_once_and_leaves_the_rest_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pod.yaml");
        let text = "kind: Pod\nmetadata: {name: web, labels: {access: \"yes\", n: \"1\", empty: \"\"}}\nspec: {nodeName: n1, containers: [{name: c, command: [a, \"8080\"]}]}\n---\nkind: Service\nmetadata: {name: web}\n";
        std::fs::write(&path, text).unwrap();
        let spec = PodSpec {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
            uid: "u".to_owned(),
            file: "pod.yaml".to_owned(),
            init_containers: Vec::new(),
            containers: Vec::new(),
            restart: crate::runner::plan::Restart::Always,
            grace: Duration::ZERO,
            refused: None,
        };
        let status = Status {
            phase: "Running",
            addresses: vec!["10.1.1.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            ready: true,
            ..Status::default()
        };
        try_write(folder.path(), &spec, &status).unwrap();
        let before: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
        let after: Vec<Value> =
            serde_saphyr::from_multiple(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(after[0]["spec"], before[0]["spec"]);
        assert_eq!(after[0]["metadata"], before[0]["metadata"]);
        assert_eq!(after[1], before[1]);
        assert_eq!(after[0]["status"]["podIPs"], json!([{"ip": "10.1.1.2"}, {"ip": "fd00::2"}]));
        assert_eq!(after[0]["status"]["conditions"][0], json!({"type": "Ready", "status": "True"}));
        let written = std::fs::metadata(&path).unwrap().modified().unwrap();
        try_write(folder.path(), &spec, &status).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), written);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "a temporary file is left");
    }
}
