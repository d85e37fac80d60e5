//! Counts what a lab has left on the host after it went down.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::Path;

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
    /// Pinned BPF objects named after the lab.
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

    fn kinds(&self) -> [(&'static str, &[String]); 7] {
        [
            ("processes", &self.processes),
            ("namespaces", &self.namespaces),
            ("mounts", &self.mounts),
            ("interfaces", &self.interfaces),
            ("cgroups", &self.cgroups),
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

/// What the lab has recorded about itself while it ran.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// `kind inode` of its namespaces.
    namespaces: BTreeSet<String>,
    /// Interfaces it could leave in the host's namespace.
    interfaces: BTreeSet<String>,
}

impl Known {
    /// Reads the records; a lab that never came up has none.
    #[must_use]
    pub fn read(layout: &Layout) -> Self {
        let text = std::fs::read_to_string(layout.namespaces()).unwrap_or_default();
        let plan = std::fs::read(layout.plan()).ok();
        let plan: Option<Plan> = plan.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let ends = plan.iter().flat_map(|plan| &plan.links).flat_map(|link| [&link.a, &link.b]);
        Self {
            namespaces: text.lines().map(str::to_owned).collect(),
            interfaces: ends.filter(|end| end.node.is_none()).map(|end| end.interface.clone()).collect(),
        }
    }
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
    if let Ok(entries) = std::fs::read_dir("/sys/fs/bpf") {
        let names = entries.flatten().map(|entry| entry.path().display().to_string());
        left.pins = names.filter(|name| name.contains(&layout.id())).collect();
    }
    if layout.dir().exists() {
        left.files.push(lab_dir);
    }
    Ok(left)
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
