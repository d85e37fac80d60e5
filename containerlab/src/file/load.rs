//! From a path to a resolved topology.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::definition::Definition;
use super::links;
use super::report::{Error, Problem, Report, Warning};
use super::resolve::{self, Context, Head, KIND};
use super::substitute::substitute;
use super::topology::{Endpoint, Link, LinkType, Mgmt, Topology};
use super::tree::{self, Item};

/// Largest topology file that is read, in bytes.
pub const MAX_BYTES: u64 = 4 << 20;
/// Most nodes of one topology.
pub const MAX_NODES: usize = 2_000;
/// Most links of one topology.
pub const MAX_LINKS: usize = 10_000;
/// Linux allows 15 bytes for an interface name; containerlab takes longer ones and shortens them.
pub(super) const MAX_INTERFACE_BYTES: usize = 15;

/// Reads, checks and resolves a topology file. `env` holds the variables that the file may refer to (normally the
/// process's own). Everything wrong is found in one go; warnings are things containerlab or this runner ignores.
///
/// # Errors
/// Every error of the file with line, key and what is allowed there; at least one.
pub fn load(path: &Path, env: &BTreeMap<String, String>) -> Result<(Topology, Vec<Warning>), Vec<Error>> {
    let whole =
        |message: String| vec![Problem { file: path.to_owned(), line: 0, key: String::new(), message }];
    let failed =
        |error| whole(format!("the topology file cannot be read: {error}; name a *.clab.yml file with -t"));
    let bytes = std::fs::metadata(path).map_err(failed)?.len();
    if bytes > MAX_BYTES {
        return Err(whole(format!("has {bytes} bytes, more than {MAX_BYTES}; is this the right file?")));
    }
    if path.extension().is_some_and(|extension| extension == "gotmpl") {
        let message = "is a Go template; render it with containerlab first, this runner does not";
        return Err(whole(message.to_owned()));
    }
    let path = path.canonicalize().map_err(failed)?;
    let text = std::fs::read_to_string(&path).map_err(failed)?;
    parse(&path, &text, env)
}

/// As [`load`], for text already read from `path` (absolute).
///
/// # Errors
/// As [`load`].
pub fn parse(
    path: &Path,
    text: &str,
    env: &BTreeMap<String, String>,
) -> Result<(Topology, Vec<Warning>), Vec<Error>> {
    let mut report = Report::new(path);
    let (text, missing) = substitute(text, env);
    for (line, name) in missing {
        report.warning(
            line,
            "",
            format!("the variable {name} is not set and has no default; left as it stands"),
        );
    }
    let topology = match tree::parse(&text) {
        Ok(root) => read(&mut report, &root, path, env),
        Err((line, message)) => {
            let directive = (1_u64..).zip(text.lines()).find(|(_, text)| text.trim_start().starts_with("{{"));
            let hint = directive.map(|(line, _)| {
                format!(
                    "; line {line} holds a Go template directive: render the file with containerlab first"
                )
            });
            report.error(line, "", format!("not valid YAML: {message}{}", hint.unwrap_or_default()));
            None
        }
    };
    match topology {
        Some(topology) if report.errors.is_empty() => Ok((topology, report.warnings)),
        _ => {
            if report.errors.is_empty() {
                report.error(0, "", "has no topology");
            }
            report.errors.sort_by_key(|error| error.line);
            Err(report.errors)
        }
    }
}

/// The lab's own directory: its name and the topology file's path (by hash) make it unique, so that two clones of the
/// same lab never collide.
pub fn lab_dir(file: &Path, name: &str) -> PathBuf {
    let hash = Sha256::digest(file.as_os_str().as_encoded_bytes());
    let hash: String = hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    Path::new("/run/tombolo-lab").join(format!("{name}-{hash}"))
}

/// The keys of the file itself.
pub(super) const FILE_KEYS: &[&str] = &["name", "prefix", "mgmt", "settings", "topology", "debug"];
/// The keys of `topology`.
pub(super) const TOPOLOGY_KEYS: &[&str] = &["defaults", "kinds", "groups", "nodes", "links"];
/// The keys of `mgmt`.
pub(super) const MGMT_KEYS: &[&str] = &[
    "network",
    "bridge",
    "ipv4-subnet",
    "ipv6-subnet",
    "ipv4-gw",
    "ipv6-gw",
    "ipv4-range",
    "ipv6-range",
    "mtu",
    "external-access",
    "skip-when-unused",
    "driver-opts",
];
/// The keys of `settings.certificate-authority`, the only setting there is.
pub(super) const AUTHORITY_KEYS: &[&str] = &["cert", "key", "key-size", "validity-duration"];

fn read(report: &mut Report, root: &Item, file: &Path, env: &BTreeMap<String, String>) -> Option<Topology> {
    let mut name = None;
    let mut prefix = "clab".to_owned();
    let (mut mgmt, mut settings, mut body) = (None, None, None);
    for (key, line, value) in report.map(root, "") {
        match key.as_str() {
            "name" => name = report.text(value, key).map(|text| (text, value.line)),
            // `prefix:` with nothing behind it is the empty prefix.
            "prefix" => prefix = report.text(value, key).unwrap_or_default(),
            "mgmt" => mgmt = Some(read_mgmt(report, *line, value)),
            "settings" => {
                read_settings(report, value);
                settings = Some(*line);
            }
            "topology" => body = Some(value),
            "debug" => {}
            _ => report.unknown(*line, key, FILE_KEYS),
        }
    }
    let name = lab_name(report, name)?;
    let lab_dir = lab_dir(file, &name);
    let Some(body) = body else {
        report.error(root.line, "topology", "missing; needs a map with nodes");
        return None;
    };
    let context = Context { folder: file.parent().unwrap_or(Path::new("/")), lab_dir: &lab_dir, env };
    let mut topology = Topology {
        file: file.to_owned(),
        lab_dir: lab_dir.clone(),
        name,
        prefix,
        mgmt,
        settings_line: settings,
        nodes: BTreeMap::new(),
        links: Vec::new(),
    };
    read_body(report, body, &context, &mut topology);
    check_links(report, &topology);
    check_waits(report, &topology);
    Some(topology)
}

fn lab_name(report: &mut Report, name: Option<(String, u64)>) -> Option<String> {
    const GIT: [&str; 2] = ["__gitBranch__", "__gitHash__"];
    let Some((name, line)) = name.filter(|(name, _)| !name.is_empty()) else {
        report.error(0, "name", "missing; needs a name for the lab, such as \"two-clusters\"");
        return None;
    };
    if GIT.iter().any(|variable| name.contains(variable)) {
        report.warning(line, "name", "the Git variables are not looked up here; they become \"none\"");
    }
    let name = GIT.iter().fold(name, |name, variable| name.replace(variable, "none"));
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'));
    if !plain || !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || name.len() > 64 {
        let message = format!(
            "{name:?}: use at most 64 letters, digits, '-', '.' and '_', starting with a letter or digit"
        );
        report.error(line, "name", message);
        return None;
    }
    Some(name)
}

fn read_settings(report: &mut Report, item: &Item) {
    for (name, line, value) in report.map(item, "settings") {
        let key = format!("settings.{name}");
        if name != "certificate-authority" {
            report.unknown(*line, &key, &["certificate-authority"]);
            continue;
        }
        for (name, line, _) in report.map(value, &key) {
            if !AUTHORITY_KEYS.contains(&name.as_str()) {
                report.unknown(*line, &format!("{key}.{name}"), AUTHORITY_KEYS);
            }
        }
    }
}

fn read_mgmt(report: &mut Report, line: u64, item: &Item) -> Mgmt {
    let mut mgmt = Mgmt { line, ..Mgmt::default() };
    for (name, line, value) in report.map(item, "mgmt") {
        let key = format!("mgmt.{name}");
        match name.as_str() {
            "driver-opts" => {
                for (option, text) in report.text_map(value, &key) {
                    mgmt.options.insert(format!("driver-opts.{option}"), text);
                }
            }
            "mtu" => {
                report.number(value, &key, 1, 65_535);
            }
            "external-access" | "skip-when-unused" => {
                report.boolean(value, &key);
            }
            // Underscores are how containerlab used to spell two of them.
            "ipv4_subnet" | "ipv6_subnet" => {}
            known if MGMT_KEYS.contains(&known) => {}
            _ => report.unknown(*line, &key, MGMT_KEYS),
        }
        if name != "driver-opts"
            && let Some(text) = report.text(value, &key)
        {
            mgmt.options.insert(name.replace('_', "-"), text);
        }
    }
    mgmt.network = mgmt.options.get("network").cloned();
    mgmt.bridge = mgmt.options.get("bridge").cloned();
    mgmt
}

fn read_body(report: &mut Report, body: &Item, context: &Context<'_>, topology: &mut Topology) {
    let mut defaults = Definition::default();
    let (mut kinds, mut groups, mut nodes) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let mut links = None;
    for (key, line, value) in report.map(body, "topology") {
        let path = format!("topology.{key}");
        match key.as_str() {
            "defaults" => defaults = Definition::read(report, value, &path),
            "kinds" => kinds = read_levels(report, value, &path),
            "groups" => groups = read_levels(report, value, &path),
            "nodes" => nodes = read_levels(report, value, &path),
            "links" => links = Some(value),
            _ => report.unknown(*line, &path, TOPOLOGY_KEYS),
        }
    }
    if nodes.is_empty() {
        report.error(body.line, "topology.nodes", "missing; needs at least one node");
    }
    if nodes.len() > MAX_NODES {
        report.error(body.line, "topology.nodes", format!("{} nodes, more than {MAX_NODES}", nodes.len()));
        return;
    }
    let nothing = Definition::default();
    for (name, (line, own)) in &nodes {
        check_node_name(report, name, *line);
        let named_group =
            |level: &Definition| level.text("group").and_then(|group| groups.get(group)).map(|(_, g)| g);
        let kind = own
            .text("kind")
            .or_else(|| named_group(own).and_then(|group| group.text("kind")))
            .or_else(|| named_group(&defaults).and_then(|group| group.text("kind")))
            .or_else(|| defaults.text("kind"))
            .unwrap_or_default();
        let of_kind = kinds.get(kind).map_or(&nothing, |(_, kind)| kind);
        let group = [own, of_kind, &defaults].into_iter().find_map(|level| level.text("group"));
        let of_group = group.and_then(|group| groups.get(group)).map_or(&nothing, |(_, group)| group);
        let merged = Definition::merge([&defaults, of_kind, of_group, own]);
        let head = Head { name, line: *line, kind: kind.to_ascii_lowercase() };
        let node = resolve::node(report, context, head, &merged);
        if node.kind.is_empty() {
            let message = "no kind, neither here nor in its group or the defaults; use \"kind: linux\" for a plain host";
            report.error(*line, &format!("topology.nodes.{name}.kind"), message);
        }
        topology.nodes.insert(name.clone(), node);
    }
    read_links(report, links, topology);
}

/// `kinds`, `groups` and `nodes`: definitions by name, with the line of each.
fn read_levels(report: &mut Report, item: &Item, key: &str) -> BTreeMap<String, (u64, Definition)> {
    report
        .map(item, key)
        .iter()
        .map(|(name, line, value)| {
            (name.clone(), (*line, Definition::read(report, value, &format!("{key}.{name}"))))
        })
        .collect()
}

fn check_node_name(report: &mut Report, name: &str, line: u64) {
    let fits = name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.len() <= 63
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '|'));
    if !fits || matches!(name, "host" | "mgmt-net" | "macvlan") {
        let allowed = "use at most 63 letters, digits, '-', '.' and '_', starting with a letter or digit, and none of host, mgmt-net, macvlan";
        report.error(line, "topology.nodes", format!("the node name {name:?} cannot be used; {allowed}"));
    }
}

fn read_links(report: &mut Report, links: Option<&Item>, topology: &mut Topology) {
    let Some(item) = links else { return };
    let entries = report.list(item, "topology.links");
    if entries.len() > MAX_LINKS {
        report.error(item.line, "topology.links", format!("{} links, more than {MAX_LINKS}", entries.len()));
        return;
    }
    for (index, entry) in entries.iter().enumerate() {
        topology.links.extend(links::read(report, entry, index));
    }
}

/// Links must end in nodes that exist, on interfaces used once.
fn check_links(report: &mut Report, topology: &Topology) {
    let mut used: BTreeSet<(&str, &str)> = BTreeSet::new();
    for link in &topology.links {
        for end in link.endpoints() {
            check_endpoint(report, topology, link, end);
            if !used.insert((&end.node, &end.interface)) {
                let message = format!("{}:{} is already used by another link", end.node, end.interface);
                report.error(link.line, "topology.links", message);
            }
        }
        if let LinkType::Host { host_interface, .. } | LinkType::MgmtNet { host_interface, .. } =
            &link.link_type
        {
            check_interface(report, link.line, host_interface);
            if !used.insert(("", host_interface)) {
                let message =
                    format!("the host's interface {host_interface} is already used by another link");
                report.error(link.line, "topology.links", message);
            }
        }
    }
}

fn check_endpoint(report: &mut Report, topology: &Topology, link: &Link, end: &Endpoint) {
    let Some(node) = topology.nodes.get(&end.node) else {
        let known: Vec<&str> = topology.nodes.keys().map(String::as_str).take(20).collect();
        let message = format!("there is no node {:?}; known: {}", end.node, known.join(", "));
        report.error(link.line, "topology.links", message);
        return;
    };
    // Other kinds have names of their own (Ethernet1/1) that containerlab translates.
    if node.kind == KIND {
        check_interface(report, link.line, &end.interface);
    }
}

fn check_interface(report: &mut Report, line: u64, name: &str) {
    let fits = !matches!(name, "." | ".." | "lo")
        && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
    if !fits {
        let message = format!("{name:?} is no interface name: no '/', ':' or blanks, and not lo");
        report.error(line, "topology.links", message);
    }
}

fn check_waits(report: &mut Report, topology: &Topology) {
    for node in topology.nodes.values() {
        for wait in node.stages.values().flat_map(|stage| &stage.wait_for) {
            if !topology.nodes.contains_key(&wait.node) {
                let key = format!("topology.nodes.{}.stages", node.name);
                report.error(node.line, &key, format!("waits for {:?}, which is no node", wait.node));
            }
        }
    }
}
