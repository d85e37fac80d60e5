//! What was broken is mended, whatever becomes of the check: also when it fails half way or is interrupted.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::checks::check::Failure;
use crate::checks::context::Context;
use crate::checks::inventory;

/// A node on which a verb of the lab (`power-on`, `start-cmd`) is still due.
pub(super) struct Mend<'a> {
    context: &'a Context,
    verb: &'static str,
    node: &'a str,
    due: bool,
}

impl<'a> Mend<'a> {
    /// `verb` is due on `node` from now on.
    pub(super) fn by(context: &'a Context, verb: &'static str, node: &'a str) -> Self {
        Self { context, verb, node, due: true }
    }

    /// Does it now.
    ///
    /// # Errors
    /// When the verb fails; it is tried once more when this is dropped.
    pub(super) async fn now(mut self) -> Result<(), Failure> {
        self.context.access.verb(self.verb, self.node).await?;
        self.due = false;
        Ok(())
    }
}

impl Drop for Mend<'_> {
    fn drop(&mut self) {
        if !self.due {
            return;
        }
        let mut command: Command = self.context.access.verb_command(self.verb, self.node);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        match command.status() {
            Ok(status) if status.success() => {}
            other => eprintln!(
                "the lab stays broken: {} of {} failed ({other:?}); try {}",
                self.verb,
                self.node,
                self.context.access.verb_shown(self.verb, self.node)
            ),
        }
    }
}

/// Manifests taken out of a cluster's folder or changed in it; put back by [`Away::restore`], or when dropped.
#[derive(Default)]
pub(super) struct Away {
    files: Vec<(PathBuf, String)>,
}

impl Away {
    /// Takes the files out.
    ///
    /// # Errors
    /// When one cannot be read or removed; those taken before are put back.
    pub(super) fn take<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Result<Self, Failure> {
        let mut away = Self::default();
        for path in paths {
            if away.files.iter().any(|(taken, _)| taken == path) {
                continue;
            }
            let failed = |error: std::io::Error| {
                Failure::tool("deleting a manifest", error, path.display().to_string())
            };
            let text = std::fs::read_to_string(path).map_err(failed)?;
            // Noted first: a file that is gone although removing it failed is put back as well.
            away.files.push((path.to_owned(), text));
            std::fs::remove_file(path).map_err(failed)?;
        }
        Ok(away)
    }

    /// Changes the first document of a file.
    ///
    /// # Errors
    /// When it cannot be read, understood or written.
    pub(super) fn change(path: &Path, change: impl FnOnce(&mut Value)) -> Result<Self, Failure> {
        let failed = |why: String| Failure::tool("changing a manifest", why, path.display().to_string());
        let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        let mut documents = inventory::documents(&text).map_err(failed)?;
        let Some(first) = documents.first_mut() else { return Err(failed("it is empty".to_owned())) };
        change(first);
        let away = Self { files: vec![(path.to_owned(), text)] };
        write(path, documents.iter().map(Value::to_string)).map_err(failed)?;
        Ok(away)
    }

    /// Writes the manifests again, without the status of what is gone.
    ///
    /// # Errors
    /// The first that cannot be written; the others are.
    pub(super) fn restore(mut self) -> Result<(), Failure> {
        self.put_back()
    }

    fn put_back(&mut self) -> Result<(), Failure> {
        let mut result = Ok(());
        for (path, text) in std::mem::take(&mut self.files) {
            let written = inventory::documents(&text)
                .and_then(|documents| write(&path, documents.into_iter().map(without_status)));
            if let Err(why) = written
                && result.is_ok()
            {
                result = Err(Failure::tool("restoring a manifest", why, path.display().to_string()));
            }
        }
        result
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        if let Err(failure) = self.put_back() {
            eprintln!("the lab stays broken: {failure}; take it down and up again");
        }
    }
}

/// Writes documents by rename: no reader sees half.
fn write(path: &Path, documents: impl Iterator<Item = String>) -> Result<(), String> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let hidden = path.with_file_name(format!(".{name}.new"));
    let text: Vec<String> = documents.collect();
    std::fs::write(&hidden, text.join("\n---\n")).map_err(|error| error.to_string())?;
    std::fs::rename(&hidden, path).map_err(|error| error.to_string())
}

/// A document without its status; JSON, which is YAML.
fn without_status(mut document: Value) -> String {
    if let Some(fields) = document.as_object_mut() {
        fields.remove("status");
    }
    document.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "kind: Pod\nmetadata: {name: web-1}\nstatus: {podIPs: [{ip: 10.1.1.9}]}\n";

    fn back(file: &Path) -> Vec<Value> {
        inventory::documents(&std::fs::read_to_string(file).expect("there")).expect("YAML")
    }

    #[test]
    fn manifests_leave_and_come_back_without_status() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("pod-demo-web-1.yaml");
        std::fs::write(&file, TEXT).expect("written");
        let away = Away::take([file.as_path(), file.as_path()]).expect("taken once");
        assert!(!file.exists());
        away.restore().expect("restored");
        let back = back(&file);
        assert_eq!(back.len(), 1);
        assert_eq!(back[0]["metadata"]["name"], "web-1");
        assert!(back[0].get("status").is_none());
        assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 1, "no hidden file is left");
    }

    #[test]
    fn what_was_taken_comes_back_when_the_rest_fails() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("pod.yaml");
        std::fs::write(&file, TEXT).expect("written");
        let missing = folder.path().join("missing.yaml");
        assert!(Away::take([file.as_path(), missing.as_path()]).is_err());
        assert!(file.exists(), "put back when the half done work was dropped");
        assert!(!missing.exists());
    }

    #[test]
    fn a_change_is_taken_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("pod.yaml");
        std::fs::write(&file, TEXT).expect("written");
        let changed = Away::change(&file, |pod| pod["metadata"]["name"] = "other".into()).expect("changed");
        assert_eq!(back(&file)[0]["metadata"]["name"], "other");
        drop(changed);
        assert_eq!(back(&file)[0]["metadata"]["name"], "web-1");
    }
}
