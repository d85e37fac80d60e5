//! What the files of a folder say together. Pure: contents in, row changes and problems out.
//!
//! Each file owns the objects it holds; one object in two files belongs to the file whose name sorts first, and the
//! other is told. A change of one file touches the rows of that file's objects only.

use crate::convert::ClusterIdentity;
use crate::document::{Parsed, Unknown, is_policy, parse};
use crate::object::{Object, ObjectId};
use crate::problem::Problem;
use crate::tables::Writers;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Bounds on what a folder may hold; past them the rest is refused with a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one file.
    pub file_bytes: u64,
    /// Files of the folder.
    pub files: usize,
    /// Objects of all files.
    pub objects: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { file_bytes: 4 << 20, files: 100_000, objects: 500_000 }
    }
}

#[derive(Debug, Default)]
struct File {
    objects: BTreeMap<ObjectId, Object>,
    problems: Vec<Problem>,
    unknown_kinds: BTreeMap<String, Unknown>,
}

/// The state of a folder.
#[derive(Debug)]
pub(crate) struct Folder {
    cluster: ClusterIdentity,
    limits: Limits,
    files: BTreeMap<PathBuf, File>,
    /// Which files hold an object; the first one's version is written.
    owners: BTreeMap<ObjectId, BTreeSet<PathBuf>>,
    /// Objects whose row may have to change.
    dirty: BTreeSet<ObjectId>,
    /// What is written, to know what to remove.
    written: BTreeMap<ObjectId, Object>,
    held: usize,
}

impl Folder {
    pub(crate) const fn new(cluster: ClusterIdentity, limits: Limits) -> Self {
        Self {
            cluster,
            limits,
            files: BTreeMap::new(),
            owners: BTreeMap::new(),
            dirty: BTreeSet::new(),
            written: BTreeMap::new(),
            held: 0,
        }
    }

    /// Takes a file's new text. True if all of it is understood.
    pub(crate) fn put(&mut self, path: &Path, text: &str) -> bool {
        let parsed = parse(path, text, &self.cluster);
        let good = parsed.is_good();
        let Parsed { mut objects, broken, nameless, mut problems, unknown_kinds } = parsed;
        let old = self.take(path);
        for (id, object) in old.objects {
            // What is broken now, or could be hidden in a document that has no name, keeps its last good version.
            if broken.contains(&id) || (nameless && !objects.contains_key(&id)) {
                objects.entry(id).or_insert(object);
            }
        }
        let room = self.limits.objects.saturating_sub(self.held);
        if objects.len() > room {
            let reason = format!("more than {} objects in the folder", self.limits.objects);
            problems.push(Problem::of_file(path, reason, "remove objects or raise the limit"));
            let kept = objects.into_iter().take(room);
            objects = kept.collect();
        }
        self.insert(path, File { objects, problems, unknown_kinds });
        good
    }

    /// Whether the file was put or failed before.
    pub(crate) fn knows(&self, path: &Path) -> bool {
        self.files.contains_key(path)
    }

    /// The file cannot be read: what it gave stays, and the problem is told.
    pub(crate) fn fail(&mut self, path: &Path, problem: Problem) {
        let old = self.take(path);
        self.insert(path, File { problems: vec![problem], ..old });
    }

    /// The file is gone.
    pub(crate) fn remove(&mut self, path: &Path) {
        self.take(path);
    }

    /// Files known now.
    pub(crate) fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.files.keys()
    }

    fn take(&mut self, path: &Path) -> File {
        let Some(file) = self.files.remove(path) else { return File::default() };
        for id in file.objects.keys() {
            self.dirty.insert(id.clone());
            if let Some(owners) = self.owners.get_mut(id) {
                owners.remove(path);
                if owners.is_empty() {
                    self.owners.remove(id);
                }
            }
        }
        self.held -= file.objects.len();
        file
    }

    fn insert(&mut self, path: &Path, file: File) {
        for id in file.objects.keys() {
            self.dirty.insert(id.clone());
            self.owners.entry(id.clone()).or_default().insert(path.to_owned());
        }
        self.held += file.objects.len();
        self.files.insert(path.to_owned(), file);
    }

    /// Writes the rows of objects that changed.
    pub(crate) fn write(&mut self, writers: &Writers) {
        for id in std::mem::take(&mut self.dirty) {
            let wanted = self
                .owners
                .get(&id)
                .and_then(|owners| owners.first())
                .and_then(|path| self.files.get(path))
                .and_then(|file| file.objects.get(&id));
            match (self.written.get(&id), wanted) {
                (Some(old), Some(new)) if old == new => {}
                (old, Some(new)) => {
                    new.write(old, writers);
                    self.written.insert(id, new.clone());
                }
                (Some(old), None) => {
                    old.remove(writers);
                    self.written.remove(&id);
                }
                (None, None) => {}
            }
        }
    }

    /// All findings, by file and line.
    pub(crate) fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<_> = self.files.values().flat_map(|file| file.problems.clone()).collect();
        for (id, owners) in self.owners.iter().filter(|(_, owners)| owners.len() > 1) {
            let Some(first) = owners.first() else { continue };
            for other in owners.iter().skip(1) {
                let reason = format!("the object also stands in {}, which is used", first.display());
                let mut problem = Problem::of_file(other, reason, "remove one of the two");
                problem.object = id.to_string();
                problems.push(problem);
            }
        }
        problems.sort();
        let (policies, others): (Vec<_>, Vec<_>) =
            self.ignored().into_iter().partition(|(kind, _)| is_policy(kind));
        // What is believed to be enforced and is not stands first.
        let told = |(_, problem)| problem;
        policies.into_iter().map(told).chain(problems).chain(others.into_iter().map(told)).collect()
    }

    /// One finding for each kind that is not used here, at its first document.
    fn ignored(&self) -> BTreeMap<String, Problem> {
        let mut kinds: BTreeMap<&String, (Unknown, &PathBuf)> = BTreeMap::new();
        for (path, file) in &self.files {
            for (kind, unknown) in &file.unknown_kinds {
                let (all, _) = kinds.entry(kind).or_insert((Unknown { count: 0, ..*unknown }, path));
                all.count += unknown.count;
            }
        }
        kinds.into_iter().map(|(kind, (all, path))| (kind.clone(), all.problem(kind, path))).collect()
    }

    /// Documents per `apiVersion/kind` that are not used here.
    pub(crate) fn unknown_kinds(&self) -> BTreeMap<String, u64> {
        let mut all = BTreeMap::new();
        for (kind, unknown) in self.files.values().flat_map(|file| &file.unknown_kinds) {
            *all.entry(kind.clone()).or_default() += unknown.count;
        }
        all
    }

    /// Objects written.
    pub(crate) fn objects(&self) -> usize {
        self.written.len()
    }

    /// The bounds.
    pub(crate) const fn limits(&self) -> &Limits {
        &self.limits
    }
}

#[cfg(test)]
#[path = "folder_tests.rs"]
mod tests;
