//! Which clusters an earlier life has left snapshots of.

use super::confirmed;
use std::path::Path;
use tombolo_base::ids::ClusterName;

/// The clusters with a snapshot, in name order.
pub(super) async fn names(folder: Option<&Path>) -> Vec<ClusterName> {
    let Some(folder) = folder else { return Vec::new() };
    let mut names = Vec::new();
    // Without a folder there is nothing left of an earlier life.
    let Ok(mut entries) = tokio::fs::read_dir(folder).await else { return names };
    while let Ok(Some(entry)) = entries.next_entry().await {
        let name = entry.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(".json").and_then(|name| ClusterName::new(name).ok()));
    }
    names.sort();
    names
}

/// Removes the snapshots of clusters that are not followed any more.
pub(super) async fn remove_others(folder: Option<&Path>, followed: &[ClusterName]) {
    let Some(folder) = folder else { return };
    for name in names(Some(folder)).await.into_iter().filter(|name| !followed.contains(name)) {
        tracing::info!(cluster = %name, "its file was removed while the agent was away: its snapshot is removed");
        if let Err(error) = tokio::fs::remove_file(folder.join(format!("{name}.json"))).await {
            tracing::warn!(cluster = %name, %error, "its snapshot cannot be removed");
        }
        // Without a snapshot it says nothing.
        drop(tokio::fs::remove_file(confirmed::beside(&folder.join(format!("{name}.json")))).await);
    }
}
