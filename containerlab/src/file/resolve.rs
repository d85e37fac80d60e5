//! From merged definitions to nodes: values parsed, paths made absolute, variables of containerlab replaced.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::definition::Definition;
use super::report::Report;
use super::topology::{Bind, Dns, Healthcheck, Node, Port, Stage, StageExec, WaitFor};
use super::tree::{Item, Value};

/// The kind of node that is deployed here.
pub(super) const KIND: &str = "linux";
/// The stages of a node's deployment.
pub(super) const STAGES: &[&str] = &["create", "create-links", "configure", "healthy", "exit"];

pub(super) const DNS_KEYS: &[&str] = &["servers", "search", "options"];
pub(super) const HEALTHCHECK_KEYS: &[&str] = &["test", "interval", "retries", "timeout", "start-period"];

/// What values of a node may refer to.
pub(super) struct Context<'a> {
    /// Absolute path of the topology file's folder.
    pub(super) folder: &'a Path,
    pub(super) lab_dir: &'a Path,
    pub(super) env: &'a BTreeMap<String, String>,
}

/// What is known of a node before its definition is looked into.
pub(super) struct Head<'a> {
    pub(super) name: &'a str,
    pub(super) line: u64,
    /// In lower case.
    pub(super) kind: String,
}

impl Context<'_> {
    /// `__clabDir__` and its like replaced.
    fn variables(&self, text: &str, node: &str) -> String {
        let lab = self.lab_dir.file_name().unwrap_or_default().to_string_lossy();
        text.replace("__clabNodeDir__", &self.lab_dir.join(node).to_string_lossy())
            .replace("__clabDir__", &self.lab_dir.to_string_lossy())
            .replace("__clabLabName__", &lab)
            .replace("__clabNodeName__", node)
    }

    /// An absolute path: `~` is the home directory, relative ones start at the topology file's folder.
    fn path(&self, text: &str, node: &str) -> PathBuf {
        let text = self.variables(text, node);
        let home = self.env.get("HOME").map_or("/root", String::as_str);
        let text = match text.strip_prefix('~') {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("{home}{rest}"),
            _ => text,
        };
        clean(&self.folder.join(text))
    }

    /// A path that must exist, unless it lies in the lab directory, which is made later, or the node is of a kind that
    /// is not deployed here: then it is another machine's business.
    fn existing(&self, report: &mut Report, text: &str, line: u64, key: &str, head: &Head<'_>) -> PathBuf {
        let path = self.path(text, head.name);
        if head.kind != KIND {
            return path;
        }
        if !path.starts_with(self.lab_dir) && !path.exists() {
            let message = format!(
                "{} does not exist; relative paths start at {}, __clabDir__ is {}",
                path.display(),
                self.folder.display(),
                self.lab_dir.display()
            );
            report.error(line, key, message);
        }
        path
    }
}

/// Removes `.` and `..` by text alone: the path may not exist yet.
fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            std::path::Component::ParentDir => {
                out.pop();
            }
            std::path::Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}

/// The node that the merged definition describes.
pub(super) fn node(report: &mut Report, context: &Context<'_>, head: Head<'_>, merged: &Definition) -> Node {
    let name = head.name;
    let key = format!("topology.nodes.{name}");
    let variables = |text: &str| context.variables(text, name);
    let mut stages = BTreeMap::new();
    for tree in merged.trees("stages") {
        read_stages(report, tree, &format!("{key}.stages"), &mut stages, &variables);
    }
    let (env_files, env) = environment(report, context, name, &key, merged);
    Node {
        name: name.to_owned(),
        line: head.line,
        lines: merged.lines(),
        node_type: merged.text("type").map(|text| text.trim().to_owned()),
        group: merged.owned("group"),
        image: merged.owned("image"),
        image_pull_policy: merged.owned("image-pull-policy"),
        license: merged.text("license").map(|text| file_or_text(context, text, name)),
        startup_config: merged.text("startup-config").map(|text| file_or_text(context, text, name)),
        startup_delay_secs: merged.parsed("startup-delay").unwrap_or(0),
        enforce_startup_config: merged.parsed("enforce-startup-config").unwrap_or(false),
        suppress_startup_config: merged.parsed("suppress-startup-config").unwrap_or(false),
        auto_remove: merged.parsed("auto-remove").unwrap_or(false),
        restart_policy: merged.owned("restart-policy"),
        hostname: merged.owned("hostname"),
        entrypoint: command(report, merged, "entrypoint", &key, &variables),
        cmd: command(report, merged, "cmd", &key, &variables),
        exec: merged.list("exec").iter().map(|(text, _)| variables(text)).collect(),
        binds: binds(report, context, &head, &key, merged),
        volumes: volumes(report, name, &key, merged, context),
        ports: ports(report, &key, merged),
        env,
        env_files,
        labels: merged.map("labels"),
        user: merged.owned("user"),
        network_mode: network_mode(report, &key, merged),
        mgmt_ipv4: address(report, merged, "mgmt-ipv4", &key, "an IPv4 address such as 172.20.20.11"),
        mgmt_ipv6: address(report, merged, "mgmt-ipv6", &key, "an IPv6 address such as 3fff:172:20:20::11"),
        runtime: merged.owned("runtime"),
        cpu: merged.parsed("cpu"),
        cpu_set: merged.owned("cpu-set"),
        memory: merged.owned("memory"),
        sysctls: merged.map("sysctls"),
        cap_add: merged.strings("cap-add"),
        privileged: merged.parsed("privileged").unwrap_or(true),
        devices: merged.strings("devices"),
        security_opts: merged.strings("security-opts"),
        shm_size: merged.owned("shm-size"),
        tmpfs: merged.map("tmpfs"),
        cgroupns_mode: merged.owned("cgroupns-mode"),
        cgroup_parent: merged.owned("cgroup-parent"),
        pid_mode: merged.owned("pid-mode"),
        aliases: merged.strings("aliases"),
        position: merged.owned("position"),
        link_apply_mode: merged.owned("link-apply-mode"),
        dns: merged.trees("dns").last().map(|tree| dns(report, tree, &format!("{key}.dns"))),
        healthcheck: merged
            .trees("healthcheck")
            .last()
            .map(|t| healthcheck(report, t, &format!("{key}.healthcheck"))),
        stages,
        other: other(merged),
        kind: head.kind,
    }
}

fn command(
    report: &mut Report,
    merged: &Definition,
    field: &str,
    key: &str,
    variables: &dyn Fn(&str) -> String,
) -> Option<String> {
    let (text, line) = merged.text_line(field)?;
    let text = variables(text);
    if let Err(message) = super::split_words(&text) {
        report.error(line, &format!("{key}.{field}"), message);
    }
    Some(text)
}

/// Absolute path of a file; URLs and configuration written in place stay as they are.
fn file_or_text(context: &Context<'_>, text: &str, node: &str) -> String {
    if text.contains('\n') || text.contains("://") {
        return text.to_owned();
    }
    context.path(text, node).to_string_lossy().into_owned()
}

fn address<T: std::str::FromStr>(
    report: &mut Report,
    merged: &Definition,
    field: &str,
    key: &str,
    allowed: &str,
) -> Option<T> {
    let (text, line) = merged.text_line(field)?;
    let parsed = text.parse().ok();
    if parsed.is_none() {
        report.error(line, &format!("{key}.{field}"), format!("needs {allowed}, has {text:?}"));
    }
    parsed
}

fn network_mode(report: &mut Report, key: &str, merged: &Definition) -> Option<String> {
    let (text, line) = merged.text_line("network-mode")?;
    let fits = matches!(text, "host" | "none" | "bridge")
        || text.strip_prefix("container:").is_some_and(|name| !name.is_empty());
    if !fits {
        let message = format!("{text:?} is not one of host, none, bridge, container:NAME");
        report.error(line, &format!("{key}.network-mode"), message);
    }
    Some(text.to_owned())
}

fn binds(
    report: &mut Report,
    context: &Context<'_>,
    head: &Head<'_>,
    key: &str,
    merged: &Definition,
) -> Vec<Bind> {
    let key = format!("{key}.binds");
    let mut binds = BTreeMap::new();
    for (text, line) in merged.list("binds") {
        let parts: Vec<&str> = text.split(':').collect();
        let (source, destination, options) = match parts.as_slice() {
            [source, destination] => (*source, *destination, ""),
            [source, destination, options] => (*source, *destination, *options),
            _ => {
                report.error(
                    *line,
                    &key,
                    format!("{text:?}: needs SOURCE:DESTINATION or SOURCE:DESTINATION:OPTIONS"),
                );
                continue;
            }
        };
        let destination = context.variables(destination, head.name);
        if source.is_empty() || !destination.starts_with('/') {
            report.error(
                *line,
                &key,
                format!("{text:?}: needs a source, and a destination that starts with \"/\""),
            );
            continue;
        }
        let source = context.existing(report, source, *line, &key, head).to_string_lossy().into_owned();
        let options = options.split(',').filter(|option| !option.is_empty()).map(str::to_owned).collect();
        binds.insert(destination.clone(), Bind { source, destination, options });
    }
    binds.into_values().collect()
}

fn volumes(
    report: &mut Report,
    name: &str,
    key: &str,
    merged: &Definition,
    context: &Context<'_>,
) -> Vec<Bind> {
    let key = format!("{key}.volumes");
    let mut volumes = BTreeMap::new();
    for (text, line) in merged.list("volumes") {
        let parts: Vec<&str> = text.split(':').collect();
        let (source, destination, options) = match parts.as_slice() {
            [destination] => ("", *destination, ""),
            [source, destination] => (*source, *destination, ""),
            [source, destination, options] => (*source, *destination, *options),
            _ => ("", "", ""),
        };
        if !destination.starts_with('/') {
            report.error(
                *line,
                &key,
                format!("{text:?}: needs DESTINATION, NAME:DESTINATION or NAME:DESTINATION:OPTIONS"),
            );
            continue;
        }
        let options = options.split(',').filter(|option| !option.is_empty()).map(str::to_owned).collect();
        let bind =
            Bind { source: context.variables(source, name), destination: destination.to_owned(), options };
        volumes.insert(destination.to_owned(), bind);
    }
    volumes.into_values().collect()
}

fn environment(
    report: &mut Report,
    context: &Context<'_>,
    name: &str,
    key: &str,
    merged: &Definition,
) -> (Vec<PathBuf>, BTreeMap<String, String>) {
    let own = merged.map("env");
    let mut env = BTreeMap::new();
    if own.get("__IMPORT_ENVS").is_some_and(|value| value == "true") {
        env.extend(context.env.clone());
    }
    let mut files = Vec::new();
    let key = format!("{key}.env-files");
    for (text, line) in merged.list("env-files") {
        let path = context.path(text, name);
        match std::fs::read_to_string(&path) {
            Ok(content) => env.extend(content.lines().filter_map(assignment)),
            Err(error) => report.error(*line, &key, format!("reading {}: {error}", path.display())),
        }
        files.push(path);
    }
    env.extend(own);
    env.remove("__IMPORT_ENVS");
    (files, env)
}

/// `[export] NAME=VALUE` of an environment file; comments and empty lines give nothing.
fn assignment(line: &str) -> Option<(String, String)> {
    let line = line.trim();
    let line = line.strip_prefix("export ").unwrap_or(line);
    let (name, value) = line.split_once('=').filter(|_| !line.starts_with('#'))?;
    let value = value.trim();
    let quoted = |quote: char| value.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
    let value = match quoted('"').or_else(|| quoted('\'')) {
        Some(inside) => inside,
        None => value.split(" #").next().unwrap_or(value).trim_end(),
    };
    Some((name.trim().to_owned(), value.to_owned()))
}

fn ports(report: &mut Report, key: &str, merged: &Definition) -> Vec<Port> {
    let mut ports = Vec::new();
    for (text, line) in merged.list("ports") {
        match port(text) {
            Some(mut parsed) => ports.append(&mut parsed),
            None => {
                let allowed = "[HOST-ADDRESS:][HOST-PORT:]NODE-PORT[/tcp|udp|sctp], ports from 1 to 65535 or ranges of equal length";
                report.error(*line, &format!("{key}.ports"), format!("{text:?} is not {allowed}"));
            }
        }
    }
    ports
}

fn port(text: &str) -> Option<Vec<Port>> {
    let (text, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    if !matches!(protocol, "tcp" | "udp" | "sctp") {
        return None;
    }
    let (rest, node) = text.rsplit_once(':').unwrap_or(("", text));
    let (host_ip, host) = match rest.rsplit_once(':') {
        Some((ip, port)) => (Some(ip.trim_matches(['[', ']']).parse::<IpAddr>().ok()?), port),
        None => (None, rest),
    };
    let range = |text: &str| -> Option<Vec<u16>> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (first.parse::<u16>().ok()?, last.parse::<u16>().ok()?);
        (first > 0 && first <= last).then(|| (first..=last).collect())
    };
    let node_ports = range(node)?;
    let host_ports = if host.is_empty() {
        vec![None; node_ports.len()]
    } else {
        range(host)?.into_iter().map(Some).collect()
    };
    (host_ports.len() == node_ports.len()).then(|| {
        let pairs = host_ports.into_iter().zip(node_ports);
        pairs
            .map(|(host_port, node_port)| Port {
                host_ip,
                host_port,
                node_port,
                protocol: protocol.to_owned(),
            })
            .collect()
    })
}

fn dns(report: &mut Report, item: &Item, key: &str) -> Dns {
    let mut dns = Dns::default();
    for (name, line, value) in report.map(item, key) {
        let path = format!("{key}.{name}");
        let texts =
            |report: &mut Report| report.texts(value, &path).into_iter().map(|(text, _)| text).collect();
        match name.as_str() {
            "servers" => dns.servers = texts(report),
            "search" => dns.search = texts(report),
            "options" => dns.options = texts(report),
            _ => report.unknown(*line, &path, DNS_KEYS),
        }
    }
    dns
}

fn healthcheck(report: &mut Report, item: &Item, key: &str) -> Healthcheck {
    let mut check = Healthcheck { interval_secs: 30, retries: 3, timeout_secs: 30, ..Healthcheck::default() };
    for (name, line, value) in report.map(item, key) {
        let path = format!("{key}.{name}");
        let number = |report: &mut Report, old: u32| {
            report.number(value, &path, 0, 86_400).and_then(|n| u32::try_from(n).ok()).unwrap_or(old)
        };
        match name.as_str() {
            "test" => check.test = report.texts(value, &path).into_iter().map(|(text, _)| text).collect(),
            "interval" => check.interval_secs = number(report, check.interval_secs),
            "retries" => check.retries = number(report, check.retries),
            "timeout" => check.timeout_secs = number(report, check.timeout_secs),
            "start-period" => check.start_period_secs = number(report, check.start_period_secs),
            _ => report.unknown(*line, &path, HEALTHCHECK_KEYS),
        }
    }
    check
}

fn read_stages(
    report: &mut Report,
    item: &Item,
    key: &str,
    stages: &mut BTreeMap<String, Stage>,
    variables: &dyn Fn(&str) -> String,
) {
    for (name, line, value) in report.map(item, key) {
        let path = format!("{key}.{name}");
        if !STAGES.contains(&name.as_str()) {
            report.unknown(*line, &path, STAGES);
            continue;
        }
        let stage = stages.entry(name.clone()).or_default();
        for (name, line, value) in report.map(value, &path) {
            let path = format!("{path}.{name}");
            match name.as_str() {
                "wait-for" => wait_for(report, value, &path, stage),
                "exec" => stage_exec(report, value, &path, stage, variables),
                _ => report.unknown(*line, &path, &["wait-for", "exec"]),
            }
        }
    }
}

fn wait_for(report: &mut Report, item: &Item, key: &str, stage: &mut Stage) {
    for entry in report.list(item, key) {
        let (mut node, mut until) = (None, None);
        for (name, line, value) in report.map(entry, key) {
            match name.as_str() {
                "node" => node = report.text(value, key),
                "stage" => until = report.text(value, key),
                _ => report.unknown(*line, &format!("{key}.{name}"), &["node", "stage"]),
            }
        }
        match (node, until) {
            (Some(node), Some(until)) if STAGES.contains(&until.as_str()) => {
                let wait = WaitFor { node, stage: until };
                if !stage.wait_for.contains(&wait) {
                    stage.wait_for.push(wait);
                }
            }
            _ => {
                let message = format!("needs a node and a stage that is one of {}", STAGES.join(", "));
                report.error(entry.line, key, message);
            }
        }
    }
}

fn stage_exec(
    report: &mut Report,
    item: &Item,
    key: &str,
    stage: &mut Stage,
    variables: &dyn Fn(&str) -> String,
) {
    if let Value::Map(entries) = &item.value {
        for (phase, line, value) in entries {
            if !matches!(phase.as_str(), "on-enter" | "on-exit") {
                report.unknown(*line, &format!("{key}.{phase}"), &["on-enter", "on-exit"]);
                continue;
            }
            for (command, _) in report.texts(value, key) {
                let (command, phase) = (variables(&command), phase.clone());
                stage.exec.push(StageExec { command, target: "container".into(), phase });
            }
        }
        return;
    }
    for entry in report.list(item, key) {
        let mut exec =
            StageExec { command: String::new(), target: "container".into(), phase: "on-enter".into() };
        for (name, line, value) in report.map(entry, key) {
            let text = report.text(value, key).unwrap_or_default();
            match name.as_str() {
                "command" => exec.command = variables(&text),
                "target" => exec.target = text,
                "phase" => exec.phase = text,
                _ => report.unknown(*line, &format!("{key}.{name}"), &["command", "target", "phase"]),
            }
        }
        let fits = !exec.command.is_empty()
            && matches!(exec.target.as_str(), "container" | "host")
            && matches!(exec.phase.as_str(), "on-enter" | "on-exit");
        if fits {
            stage.exec.push(exec);
        } else {
            let message = "needs a command, a target (container or host) and a phase (on-enter or on-exit)";
            report.error(entry.line, key, message);
        }
    }
}

/// Keys nothing here reads, as they stand: maps of several levels merged key by key.
fn other(merged: &Definition) -> BTreeMap<String, serde_json::Value> {
    let mut other = BTreeMap::new();
    for field in ["certificate", "credentials", "extras", "config", "components"] {
        let mut joined: Option<serde_json::Value> = None;
        for tree in merged.trees(field) {
            let value = tree.json();
            match (&mut joined, value) {
                (Some(serde_json::Value::Object(old)), serde_json::Value::Object(new)) => deepen(old, new),
                (_, value) => joined = Some(value),
            }
        }
        if let Some(value) = joined.filter(|value| !value.is_null()) {
            other.insert(field.to_owned(), value);
        }
    }
    other
}

/// Merges `config.vars` of several levels: one map deep, as containerlab does.
fn deepen(
    old: &mut serde_json::Map<String, serde_json::Value>,
    new: serde_json::Map<String, serde_json::Value>,
) {
    for (key, value) in new {
        match (old.get_mut(&key), value) {
            (Some(serde_json::Value::Object(old)), serde_json::Value::Object(new)) => old.extend(new),
            (_, value) => {
                old.insert(key, value);
            }
        }
    }
}
