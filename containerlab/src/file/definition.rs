//! What `defaults`, a kind, a group or a node may say, and how the four are merged.
//!
//! Of single values the most specific that is set wins (node, group, kind, defaults). Lists are joined from the least
//! specific to the most, without repetition; for `binds` and `volumes` a later entry with the same destination replaces
//! an earlier one. Maps are merged key by key, the more specific winning.

use std::collections::BTreeMap;

use super::report::Report;
use super::tree::Item;

/// What a key holds, and with it what is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// Any text, taken as it was written.
    Text,
    /// One of these, in any case.
    OneOf(&'static [&'static str]),
    /// A whole number up to this.
    Whole(u64),
    /// A decimal number, not negative.
    Decimal,
    /// `true` or `false`.
    Boolean,
    /// A list of texts.
    Texts,
    /// A map of texts.
    TextMap,
    /// Looked into only after merging.
    Tree,
}

/// How a key of several levels becomes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Merge {
    /// The most specific level that sets it.
    MostSpecific,
    /// All levels together.
    All,
    /// Only the node itself; elsewhere it means nothing.
    NodeOnly,
}

use Merge::{All, MostSpecific, NodeOnly};
use Shape::{Boolean, Decimal, OneOf, Text, TextMap, Texts, Tree, Whole};

/// Every key of a node definition.
pub(super) const FIELDS: &[(&str, Shape, Merge)] = &[
    ("kind", Text, MostSpecific),
    ("group", Text, MostSpecific),
    ("type", Text, MostSpecific),
    ("image", Text, MostSpecific),
    ("image-pull-policy", OneOf(&["always", "never", "ifnotpresent"]), MostSpecific),
    ("restart-policy", OneOf(&["no", "on-failure", "always", "unless-stopped"]), MostSpecific),
    ("license", Text, MostSpecific),
    ("startup-config", Text, MostSpecific),
    ("startup-delay", Whole(86_400), MostSpecific),
    ("enforce-startup-config", Boolean, MostSpecific),
    ("suppress-startup-config", Boolean, MostSpecific),
    ("auto-remove", Boolean, MostSpecific),
    ("position", Text, MostSpecific),
    ("hostname", Text, MostSpecific),
    ("entrypoint", Text, MostSpecific),
    ("cmd", Text, MostSpecific),
    ("exec", Texts, All),
    ("binds", Texts, All),
    ("volumes", Texts, All),
    ("devices", Texts, All),
    ("cap-add", Texts, All),
    ("security-opts", Texts, All),
    ("env-files", Texts, All),
    ("ports", Texts, MostSpecific),
    ("aliases", Texts, NodeOnly),
    ("env", TextMap, All),
    ("labels", TextMap, All),
    ("sysctls", TextMap, All),
    ("tmpfs", TextMap, All),
    ("privileged", Boolean, MostSpecific),
    ("cgroupns-mode", OneOf(&["host", "private"]), MostSpecific),
    ("cgroup-parent", Text, MostSpecific),
    ("pid-mode", Text, MostSpecific),
    ("shm-size", Text, MostSpecific),
    ("mgmt-ipv4", Text, NodeOnly),
    ("mgmt-ipv6", Text, NodeOnly),
    ("user", Text, MostSpecific),
    ("network-mode", Text, MostSpecific),
    ("runtime", Text, MostSpecific),
    ("cpu", Decimal, MostSpecific),
    ("cpu-set", Text, MostSpecific),
    ("memory", Text, MostSpecific),
    ("link-apply-mode", OneOf(&["live", "restart", "recreate"]), MostSpecific),
    ("dns", Tree, MostSpecific),
    ("healthcheck", Tree, MostSpecific),
    ("certificate", Tree, All),
    ("stages", Tree, All),
    ("credentials", Tree, MostSpecific),
    ("extras", Tree, MostSpecific),
    ("config", Tree, All),
    ("components", Tree, MostSpecific),
];

/// Keys below those that nothing here reads: only their spelling is checked.
pub(super) const BELOW: &[(&str, &[&str])] = &[
    ("certificate", &["issue", "sans", "key-size", "validity-duration"]),
    ("credentials", &["username", "password", "identity-file"]),
    ("extras", &["ceos-copy-to-flash", "srl-agents", "mysocket-proxy", "k8s_kind"]),
    ("config", &["vars"]),
];

/// Keys that containerlab once had or spells otherwise, and what took their place.
const FORMER: &[(&str, &str)] = &[
    ("mgmt_ipv4", "mgmt-ipv4"),
    ("mgmt_ipv6", "mgmt-ipv6"),
    ("wait-for", "stages.create.wait-for"),
    ("publish", "ports"),
    ("SANs", "certificate.sans"),
    ("sandbox", "nothing (the ignite runtime is gone)"),
    ("kernel", "nothing (the ignite runtime is gone)"),
    ("startup_config", "startup-config"),
    ("username", "credentials.username"),
    ("password", "credentials.password"),
];

/// The levels of one node, least specific first.
pub(super) type Levels<'a> = [&'a Definition; 4];

/// What one level says, by key.
#[derive(Debug, Clone, Default)]
pub(super) struct Definition {
    texts: BTreeMap<&'static str, (String, u64)>,
    lists: BTreeMap<&'static str, Vec<(String, u64)>>,
    maps: BTreeMap<&'static str, BTreeMap<String, String>>,
    trees: BTreeMap<&'static str, Vec<Item>>,
    /// The line of each key that is set.
    lines: BTreeMap<&'static str, u64>,
}

impl Definition {
    /// Reads one level; everything wrong goes to the report, the rest is kept.
    pub(super) fn read(report: &mut Report, item: &Item, key: &str) -> Self {
        let mut definition = Self::default();
        for (name, line, value) in report.map(item, key) {
            let path = format!("{key}.{name}");
            if let Some((field, shape, _)) = FIELDS.iter().find(|(field, ..)| field == name) {
                definition.lines.insert(field, *line);
                definition.read_field(report, field, *shape, value, &path);
            } else if let Some((_, instead)) = FORMER.iter().find(|(former, _)| former == name) {
                report.warning(
                    *line,
                    &path,
                    format!("no longer a key of containerlab, ignored; use {instead}"),
                );
            } else {
                let known: Vec<&str> = FIELDS.iter().map(|(field, ..)| *field).collect();
                report.unknown(*line, &path, &known);
            }
        }
        definition
    }

    fn read_field(&mut self, report: &mut Report, field: &'static str, shape: Shape, item: &Item, key: &str) {
        let text = match shape {
            Text => report.text(item, key),
            OneOf(allowed) => report.text(item, key).map(|text| text.to_ascii_lowercase()).filter(|text| {
                let fits = text.is_empty() || allowed.contains(&text.as_str());
                if !fits {
                    report.error(item.line, key, format!("{text:?} is not one of {}", allowed.join(", ")));
                }
                fits
            }),
            Whole(max) => report.number(item, key, 0, max).filter(|n| *n > 0).map(|n| n.to_string()),
            Boolean => report.boolean(item, key).map(|b| b.to_string()),
            Decimal => report.text(item, key).filter(|text| {
                let fits = text.parse::<f64>().is_ok_and(|n| n.is_finite() && n >= 0.0);
                if !fits {
                    report.error(item.line, key, format!("needs a number such as 1.5, has {text:?}"));
                }
                fits
            }),
            Texts => {
                let texts = report.texts(item, key);
                self.lists.insert(field, texts);
                None
            }
            TextMap => {
                let map = report.text_map(item, key).into_iter().collect();
                self.maps.insert(field, map);
                None
            }
            Tree => {
                self.trees.insert(field, vec![item.clone()]);
                if let Some((_, known)) = BELOW.iter().find(|(above, _)| *above == field) {
                    for (name, line, _) in report.map(item, key) {
                        if !known.contains(&name.as_str()) {
                            report.unknown(*line, &format!("{key}.{name}"), known);
                        }
                    }
                }
                None
            }
        };
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            self.texts.insert(field, (text, item.line));
        }
    }

    /// Merges the levels of one node.
    pub(super) fn merge(levels: Levels<'_>) -> Self {
        let mut merged = Self::default();
        let [.., node] = levels;
        for (field, shape, merge) in FIELDS {
            let levels = if *merge == NodeOnly { [node].to_vec() } else { levels.to_vec() };
            for level in levels {
                merged.lines.extend(level.lines.get_key_value(field));
                match shape {
                    Texts => merged.add_list(field, level, *merge == All),
                    TextMap => {
                        if let Some(map) = level.maps.get(field) {
                            merged.maps.entry(field).or_default().extend(map.clone());
                        }
                    }
                    Tree => {
                        if let Some(tree) = level.trees.get(field) {
                            let trees = merged.trees.entry(field).or_default();
                            if *merge != All {
                                trees.clear();
                            }
                            trees.extend(tree.clone());
                        }
                    }
                    _ => {
                        if let Some(text) = level.texts.get(field) {
                            merged.texts.insert(field, text.clone());
                        }
                    }
                }
            }
        }
        merged
    }

    fn add_list(&mut self, field: &'static str, level: &Self, join: bool) {
        let Some(list) = level.lists.get(field).filter(|list| !list.is_empty()) else { return };
        let merged = self.lists.entry(field).or_default();
        if !join {
            merged.clear();
        }
        for entry in list {
            if !merged.iter().any(|(text, _)| *text == entry.0) {
                merged.push(entry.clone());
            }
        }
    }

    /// A single value.
    pub(super) fn text(&self, field: &str) -> Option<&str> {
        self.texts.get(field).map(|(text, _)| text.as_str())
    }

    /// A single value, owned.
    pub(super) fn owned(&self, field: &str) -> Option<String> {
        self.text(field).map(str::to_owned)
    }

    /// A single value and its line.
    pub(super) fn text_line(&self, field: &str) -> Option<(&str, u64)> {
        self.texts.get(field).map(|(text, line)| (text.as_str(), *line))
    }

    /// A single value parsed; what does not parse was reported when it was read.
    pub(super) fn parsed<T: std::str::FromStr>(&self, field: &str) -> Option<T> {
        self.text(field)?.parse().ok()
    }

    /// A list with lines.
    pub(super) fn list(&self, field: &str) -> &[(String, u64)] {
        self.lists.get(field).map_or(&[], Vec::as_slice)
    }

    /// A list without lines.
    pub(super) fn strings(&self, field: &str) -> Vec<String> {
        self.list(field).iter().map(|(text, _)| text.clone()).collect()
    }

    /// A map.
    pub(super) fn map(&self, field: &str) -> BTreeMap<String, String> {
        self.maps.get(field).cloned().unwrap_or_default()
    }

    /// The line of each key that some level sets, the most specific one's.
    pub(super) fn lines(&self) -> BTreeMap<&'static str, u64> {
        self.lines.clone()
    }

    /// The trees of one key, least specific first.
    pub(super) fn trees(&self, field: &str) -> &[Item] {
        self.trees.get(field).map_or(&[], Vec::as_slice)
    }
}
