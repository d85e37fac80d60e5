//! From the text of a file to objects and problems. Pure.
//!
//! Documents are split before they are parsed, so that one with broken syntax does not hide those after it.

use crate::convert::{self, ClusterIdentity};
use crate::locate::line_of;
use crate::object::{Object, ObjectId};
use crate::problem::{Issue, Problem, Severity, shorten};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

/// Documents of one file that are read; more are refused.
pub(crate) const MAX_DOCUMENTS: usize = 10_000;
/// Warnings about unknown keys reported for one document.
pub(crate) const MAX_UNKNOWN_KEYS: usize = 8;

/// What a file holds.
#[derive(Debug, Default)]
pub(crate) struct Parsed {
    /// Good objects in the order written.
    pub(crate) objects: BTreeMap<ObjectId, Object>,
    /// Objects that are in the file but broken: their last good version stays.
    pub(crate) broken: BTreeSet<ObjectId>,
    /// A document could not even be named: nothing the file gave before may be dropped.
    pub(crate) nameless: bool,
    /// Findings.
    pub(crate) problems: Vec<Problem>,
    /// Documents of kinds that are not used here.
    pub(crate) unknown_kinds: BTreeMap<String, Unknown>,
}

impl Parsed {
    /// Whether every document of the file is understood: such a text can be fallen back to.
    pub(crate) fn is_good(&self) -> bool {
        self.broken.is_empty() && !self.nameless
    }
}

/// Documents of a kind that is not used here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unknown {
    /// How many.
    pub(crate) count: u64,
    /// Line of the first.
    pub(crate) line: u64,
}

impl Unknown {
    /// What to tell about `kind` (`apiVersion/kind`), first met in `file`.
    pub(crate) fn problem(self, kind: &str, file: &Path) -> Problem {
        let (are, many) = if self.count == 1 { ("is", "") } else { ("are", "s") };
        let (use_of, remedy) = if kind.ends_with("/CiliumBGPNodeConfig") {
            let remedy = "remove it; `tombolo show bgp-node-configs` has what was computed and its status";
            ("a control plane writes it, and here it is computed from the other BGP objects", remedy)
        } else if is_policy(kind) {
            (
                "its rules are NOT enforced",
                "check apiVersion and kind; docs/policy.md has those that are enforced",
            )
        } else {
            (
                "this kind is not used here",
                "check apiVersion and kind; nothing is to be done if the object is for another program",
            )
        };
        Problem {
            line: self.line,
            path: "kind".to_owned(),
            severity: Severity::Warning,
            ..Problem::of_file(
                file,
                format!("{} document{many} of {kind} {are} ignored: {use_of}", self.count),
                remedy,
            )
        }
    }
}

/// Whether somebody relies on the kind for what may talk to what.
pub(crate) fn is_policy(kind: &str) -> bool {
    kind.ends_with("NetworkPolicy")
}

/// One document of a file.
struct Document<'a> {
    text: &'a str,
    /// Lines of the file before it.
    offset: u64,
}

/// Cuts a YAML stream at lines that begin with `---`. In block scalars such a line is indented, so it never matches.
fn split(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut position) = (0, 0, 0);
    for (number, line) in (0u64..).zip(text.split_inclusive('\n')) {
        let marker = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\n', '\r', '\t']));
        if marker && position > start {
            documents.push(Document { text: text.get(start..position).unwrap_or(""), offset: start_line });
            (start, start_line) = (position, number);
        }
        position += line.len();
    }
    documents.push(Document { text: text.get(start..).unwrap_or(""), offset: start_line });
    documents
}

fn is_blank(text: &str) -> bool {
    text.lines().all(|line| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#') || line == "---" || line == "..." || line.starts_with('%')
    })
}

/// Reads all documents of a file.
pub(crate) fn parse(file: &Path, text: &str, cluster: &ClusterIdentity) -> Parsed {
    let mut reader = Reader { file, cluster, parsed: Parsed::default() };
    let documents = split(text);
    if documents.len() > MAX_DOCUMENTS {
        let reason = format!("{} documents in one file; at most {MAX_DOCUMENTS} are read", documents.len());
        reader.parsed.problems.push(Problem::of_file(file, reason, "split the file"));
        reader.parsed.nameless = true;
    }
    let json = file.extension().is_some_and(|extension| extension == "json");
    for document in documents.iter().take(MAX_DOCUMENTS).filter(|document| !is_blank(document.text)) {
        reader.document(document, json);
    }
    reader.parsed
}

struct Reader<'a> {
    file: &'a Path,
    cluster: &'a ClusterIdentity,
    parsed: Parsed,
}

impl Reader<'_> {
    fn document(&mut self, document: &Document<'_>, json: bool) {
        let value = if json {
            serde_json::from_str::<Value>(document.text)
                .map_err(|error| (u64::try_from(error.line()).unwrap_or(0), error.to_string()))
        } else {
            // Kubernetes reads YAML 1.1: `yes` is true, 0644 is octal.
            let options = serde_saphyr::options! { with_snippet: false, legacy_octal_numbers: true };
            serde_saphyr::from_str_with_options::<Value>(document.text, options).map_err(|error| {
                let line = error.location().map_or(1, |location| location.line());
                (line, error.without_snippet().to_string())
            })
        };
        match value {
            Ok(Value::Null) => {}
            Ok(value) => self.value(document, "", value, 0),
            Err((line, reason)) => {
                self.parsed.nameless = true;
                let issue = Issue::new(
                    "",
                    format!("the document cannot be parsed: {}", shorten(&reason)),
                    "mend the syntax at or just above this line (indentation, quotes, brackets)",
                );
                self.problem(document.offset + line.max(1), String::new(), issue, Severity::Error);
            }
        }
    }

    /// One object, or a list of them at key path `prefix` of the document.
    fn value(&mut self, document: &Document<'_>, prefix: &str, value: Value, depth: u8) {
        let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
        let (api, kind) = (text("apiVersion"), text("kind"));
        if kind.ends_with("List") && value.get("items").is_some_and(Value::is_array) && depth == 0 {
            return self.list(document, &api, &kind, value);
        }
        let name = value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("").to_owned();
        let described = if name.is_empty() { kind.clone() } else { format!("{kind} {name}") };
        if kind.is_empty() || api.is_empty() {
            self.parsed.nameless = true;
            let key = if kind.is_empty() { "kind" } else { "apiVersion" };
            let issue =
                Issue::new(key, format!("{key} is missing"), "every manifest needs apiVersion and kind");
            return self.refuse(document, prefix, described, issue);
        }
        let Some(known) = convert::known_kind(&api, &kind) else {
            let line = self.line(document, prefix, "kind");
            let first = Unknown { count: 0, line };
            self.parsed.unknown_kinds.entry(shorten(&format!("{api}/{kind}"))).or_insert(first).count += 1;
            return;
        };
        if name.is_empty() || name.len() > 253 {
            self.parsed.nameless = true;
            let issue = Issue::new(
                "metadata.name",
                "the name is missing, no text, or longer than 253 characters",
                "give the object a name; y, n, on, off, yes, no and numbers need quotes to be text",
            );
            return self.refuse(document, prefix, described, issue);
        }
        let namespace = match value.pointer("/metadata/namespace").and_then(Value::as_str) {
            _ if !known.namespaced => Arc::from(""),
            Some(namespace) if !namespace.is_empty() => Arc::from(namespace),
            _ => Arc::from("default"),
        };
        let id = ObjectId { kind: known.kind, namespace, name: name.into() };
        if self.parsed.objects.contains_key(&id) || self.parsed.broken.contains(&id) {
            let issue =
                Issue::new("metadata.name", "the object stands twice in this file", "remove one of the two");
            return self.refuse(document, prefix, id.to_string(), issue);
        }
        match (known.convert)(&id, value, self.cluster) {
            Ok((object, doubts)) => {
                for issue in doubts {
                    let line = self.line(document, prefix, &issue.path);
                    self.problem(line, id.to_string(), issue, Severity::Warning);
                }
                self.parsed.objects.insert(id, object);
            }
            Err(issue) => {
                self.refuse(document, prefix, id.to_string(), issue);
                self.parsed.broken.insert(id);
            }
        }
    }

    fn list(&mut self, document: &Document<'_>, api: &str, kind: &str, mut value: Value) {
        let Some(Value::Array(items)) = value.get_mut("items").map(Value::take) else { return };
        for (position, mut item) in items.into_iter().enumerate() {
            if let (Some(map), true) = (item.as_object_mut(), kind != "List") {
                // Items of a typed list may leave out what the list says already.
                map.entry("apiVersion").or_insert_with(|| api.into());
                map.entry("kind").or_insert_with(|| kind.trim_end_matches("List").into());
            }
            self.value(document, &format!("items[{position}]"), item, 1);
        }
    }

    fn line(&self, document: &Document<'_>, prefix: &str, path: &str) -> u64 {
        let whole = if prefix.is_empty() { path.to_owned() } else { format!("{prefix}.{path}") };
        document.offset + line_of(document.text, &whole).unwrap_or(1)
    }

    fn refuse(&mut self, document: &Document<'_>, prefix: &str, object: String, issue: Issue) {
        let line = self.line(document, prefix, &issue.path);
        self.problem(line, object, issue, Severity::Error);
    }

    fn problem(&mut self, line: u64, object: String, issue: Issue, severity: Severity) {
        self.parsed.problems.push(Problem {
            file: self.file.to_owned(),
            line,
            object: shorten(&object),
            path: shorten(&issue.path),
            reason: issue.reason,
            remedy: issue.remedy,
            severity,
        });
    }
}

/// Reads a value as `T`; also says which keys of it `T` does not know.
pub(crate) fn typed<T: DeserializeOwned + Serialize>(value: Value) -> Result<(T, Vec<String>), Issue> {
    let original = value.clone();
    let object: T = serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let path = if path == "." { String::new() } else { path };
        let remedy = "compare with the Kubernetes reference of this kind (a number or true/false that shall be text \
                      needs quotes)";
        Issue::new(path, shorten(&error.into_inner().to_string()), remedy)
    })?;
    let mut unknown = Vec::new();
    if let Ok(understood) = serde_json::to_value(&object) {
        unknown_keys(&original, &understood, "", &mut unknown);
    }
    Ok((object, unknown))
}

fn unknown_keys(original: &Value, understood: &Value, path: &str, out: &mut Vec<String>) {
    match (original, understood) {
        (Value::Object(original), Value::Object(understood)) => {
            for (key, value) in original.iter().filter(|(_, value)| !is_empty(value)) {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                match understood.get(key) {
                    Some(inner) => unknown_keys(value, inner, &path, out),
                    None => out.push(path),
                }
            }
        }
        (Value::Array(original), Value::Array(understood)) => {
            for (position, (value, inner)) in original.iter().zip(understood).enumerate() {
                unknown_keys(value, inner, &format!("{path}[{position}]"), out);
            }
        }
        _ => {}
    }
}

/// Empty values say nothing, and Kubernetes' types leave them out when written.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
#[path = "bgp_tests.rs"]
mod bgp_tests;
#[cfg(test)]
#[path = "egress_tests.rs"]
mod egress_tests;
#[cfg(test)]
#[path = "pod_tests.rs"]
mod pod_tests;
#[cfg(test)]
#[path = "policy_tests.rs"]
mod policy_tests;
#[cfg(test)]
#[path = "service_tests.rs"]
mod service_tests;
#[cfg(test)]
#[path = "document_tests.rs"]
mod tests;
