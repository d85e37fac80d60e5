//! Counts what a lab has left on the host after it went down.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::Path;

use super::bpf::{self, Objects};
use super::cgroup;
use super::layout::Layout;
use super::plan::Plan;

/// What is left of a lab; each entry says what and where.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Residue {
    /// Processes in the lab's cgroup or named after the lab.
    pub processes: Vec<String>,
    /// Namespaces of the lab that something still holds.
    pub namespaces: Vec<String>,
    /// Mounts below the lab directory or of its namespaces.
    pub mounts: Vec<String>,
    /// Interfaces of the lab in the host's namespace.
    pub interfaces: Vec<String>,
    /// Cgroups.
    pub cgroups: Vec<String>,
    /// BPF programs, maps and links that the lab's processes held or had pinned, and that the kernel still has.
    pub bpf: Vec<String>,
    /// Pinned BPF objects named after the lab in the host's own file system.
    pub pins: Vec<String>,
    /// Files and directories.
    pub files: Vec<String>,
}

impl Residue {
    /// Nothing is left.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.count() == 0
    }

    /// How many things are left.
    #[must_use]
    pub fn count(&self) -> usize {
        self.kinds().iter().map(|(_, found)| found.len()).sum()
    }

    fn kinds(&self) -> [(&'static str, &[String]); 8] {
        [
            ("processes", &self.processes),
            ("namespaces", &self.namespaces),
            ("mounts", &self.mounts),
            ("interfaces", &self.interfaces),
            ("cgroups", &self.cgroups),
            ("BPF objects", &self.bpf),
            ("BPF pins", &self.pins),
            ("files", &self.files),
        ]
    }
}

impl fmt::Display for Residue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (name, found)) in self.kinds().iter().enumerate() {
            let separator = if position == 0 { "" } else { ", " };
            write!(f, "{separator}{} {name}", found.len())?;
        }
        for (name, found) in self.kinds() {
            for what in found {
                write!(f, "\n  {name}: {what}")?;
            }
        }
        Ok(())
    }
}

/// What is known of the lab before it goes: what it has recorded about itself, and what is seen of it now.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// `kind inode` of its namespaces.
    namespaces: BTreeSet<String>,
    /// Interfaces it could leave in the host's namespace.
    interfaces: BTreeSet<String>,
    /// Its BPF objects.
    bpf: Objects,
}

impl Known {
    /// Reads the records, of which a lab that never came up has none, and looks at every process of the lab. The records
    /// alone would do for a lab whose supervisor was killed; the look finds what came later, the pods' namespaces say.
    #[must_use]
    pub fn read(layout: &Layout) -> Self {
        let text = std::fs::read_to_string(layout.namespaces()).unwrap_or_default();
        let plan = std::fs::read(layout.plan()).ok();
        let plan: Option<Plan> = plan.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let ends = plan.iter().flat_map(|plan| &plan.links).flat_map(|link| [&link.a, &link.b]);
        let pids = lab_processes(&cgroup::name(layout));
        let mut namespaces: BTreeSet<String> = text.lines().map(str::to_owned).collect();
        namespaces.extend(pids.iter().flat_map(|(pid, in_node)| namespaces_of(*pid, *in_node)));
        let pids: Vec<i32> = pids.into_iter().map(|(pid, _)| pid).collect();
        Self {
            namespaces,
            interfaces: ends.filter(|end| end.node.is_none()).map(|end| end.interface.clone()).collect(),
            bpf: bpf::of_processes(&pids),
        }
    }
}

/// The processes in a lab's cgroup, and whether each is in one below it: a node's.
fn lab_processes(cgroup: &str) -> Vec<(i32, bool)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let text = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        let below =
            text.lines().find_map(|line| line.split_once(&format!("/{cgroup}")).map(|(_, below)| below));
        match below {
            Some("") => found.push((pid, false)),
            Some(below) if below.starts_with('/') => found.push((pid, true)),
            _ => {}
        }
    }
    found
}

/// `kind inode` of a process' namespaces, but for those it shares with whoever asks.
fn namespaces_of(pid: i32, in_node: bool) -> Vec<String> {
    // The supervisor shares the other kinds with whoever brought the lab up.
    let kinds: &[&str] =
        if in_node { &["net", "mnt", "pid", "uts", "ipc", "cgroup"] } else { &["net", "mnt", "pid"] };
    let read = |pid: &str, kind: &str| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
    let foreign = kinds.iter().filter_map(|kind| {
        let target = read(&pid.to_string(), kind)?;
        (Some(&target) != read("self", kind).as_ref()).then_some(target)
    });
    // net:[4026531840]
    let entry = |target: std::path::PathBuf| {
        let text = target.to_string_lossy().into_owned();
        text.split_once(":[").map(|(kind, inode)| format!("{kind} {}", inode.trim_end_matches(']')))
    };
    foreign.filter_map(entry).collect()
}

/// Counts what is left of the lab of `layout`.
///
/// # Errors
/// /proc or the cgroup tree cannot be read.
pub fn residue(layout: &Layout, known: &Known) -> io::Result<Residue> {
    let mut left = Residue::default();
    processes(layout, known, &mut left)?;
    let lab_dir = layout.dir().display().to_string();
    for line in std::fs::read_to_string("/proc/self/mountinfo")?.lines() {
        let of_namespace = known.namespaces.iter().any(|entry| {
            entry.split_once(' ').is_some_and(|(kind, inode)| line.contains(&format!("{kind}:[{inode}]")))
        });
        if line.contains(&lab_dir) || of_namespace {
            left.mounts.push(line.to_owned());
        }
    }
    for interface in &known.interfaces {
        if Path::new("/sys/class/net").join(interface).exists() {
            left.interfaces.push(interface.clone());
        }
    }
    left.cgroups = cgroup::with_tree(layout, |cgroup| {
        let count = cgroup::count(cgroup)?;
        Ok((0..count).map(|_| cgroup.display().to_string()).collect())
    })?;
    let bpf = bpf::still_there(&known.bpf);
    left.bpf = bpf
        .iter()
        .map(|(kind, id)| format!("{kind} {id}; see `bpftool {} show id {id}`", word(kind)))
        .collect();
    if let Ok(entries) = std::fs::read_dir("/sys/fs/bpf") {
        let names = entries.flatten().map(|entry| entry.path().display().to_string());
        left.pins = names.filter(|name| name.contains(&layout.id())).collect();
    }
    if layout.dir().exists() {
        left.files.push(lab_dir);
    }
    Ok(left)
}

/// What bpftool calls a kind of object.
fn word(kind: &str) -> &str {
    if kind == "program" { "prog" } else { kind }
}

/// Processes of the lab, and processes that hold one of its namespaces.
fn processes(layout: &Layout, known: &Known, left: &mut Residue) -> io::Result<()> {
    let cgroup = cgroup::name(layout);
    let own = std::process::id().to_string();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let pid = entry.file_name().to_string_lossy().into_owned();
        if pid == own || !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let path = entry.path();
        let read = |name: &str| std::fs::read(path.join(name)).unwrap_or_default();
        let cgroups = String::from_utf8_lossy(&read("cgroup")).into_owned();
        // A dead process whose parent has not asked for its exit holds nothing.
        if String::from_utf8_lossy(&read("stat")).contains(") Z ") {
            continue;
        }
        let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let internal = ["lab-supervisor", "lab-init", "lab-enter"].iter().any(|word| command.contains(word));
        if cgroups.contains(&cgroup) || (internal && command.contains(&layout.dir().display().to_string())) {
            left.processes.push(format!("{pid} {}", command.trim()));
        }
        for namespace in &known.namespaces {
            let Some((kind, inode)) = namespace.split_once(' ') else { continue };
            let target = std::fs::read_link(path.join("ns").join(kind)).unwrap_or_default();
            if target.to_string_lossy() == format!("{kind}:[{inode}]") {
                left.namespaces.push(format!("{kind}:[{inode}] held by {pid} {}", command.trim()));
            }
        }
    }
    Ok(())
}
