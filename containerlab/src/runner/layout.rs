//! Where the files of a lab are.

use std::path::{Path, PathBuf};

/// Paths below a lab directory, by meaning.
#[derive(Clone, Debug)]
pub struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// The layout below `lab_dir`.
    #[must_use]
    pub fn new(lab_dir: &Path) -> Self {
        Self { dir: lab_dir.to_owned() }
    }

    /// The lab directory itself.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the lab is called in the cgroup tree and in messages: the directory's own name.
    #[must_use]
    pub fn id(&self) -> String {
        self.dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// The supervisor's socket.
    #[must_use]
    pub fn supervisor_socket(&self) -> PathBuf {
        self.dir.join("supervisor.sock")
    }

    /// The supervisor's log.
    #[must_use]
    pub fn supervisor_log(&self) -> PathBuf {
        self.dir.join("supervisor.log")
    }

    /// Certificates and keys.
    #[must_use]
    pub fn pki(&self) -> PathBuf {
        self.dir.join("pki")
    }

    /// The plan that was deployed last.
    #[must_use]
    pub fn plan(&self) -> PathBuf {
        self.dir.join("plan.json")
    }

    /// Inode numbers of the lab's namespaces, one a line: `down` looks whether any is left.
    #[must_use]
    pub fn namespaces(&self) -> PathBuf {
        self.dir.join("namespaces")
    }

    /// Where the supervisor mounts the file system that holds what nodes write.
    #[must_use]
    pub fn disks(&self) -> PathBuf {
        self.dir.join(".disks")
    }

    /// What one node has written.
    #[must_use]
    pub fn disk(&self, node: &str) -> PathBuf {
        self.disks().join(node)
    }

    /// The directory of one node (`__clabNodeDir__`).
    #[must_use]
    pub fn node(&self, node: &str) -> PathBuf {
        self.dir.join(node)
    }

    /// What a node's init is started with.
    #[must_use]
    pub fn boot(&self, node: &str) -> PathBuf {
        self.node(node).join("boot.json")
    }

    /// The control socket of a node's init.
    #[must_use]
    pub fn control(&self, node: &str) -> PathBuf {
        self.node(node).join("control.sock")
    }

    /// What the node's command, its exec lines and its pods' containers wrote.
    #[must_use]
    pub fn log(&self, node: &str) -> PathBuf {
        self.node(node).join("node.log")
    }

    /// What the node's init wrote.
    #[must_use]
    pub fn init_log(&self, node: &str) -> PathBuf {
        self.node(node).join("init.log")
    }

    /// The folder of the pods' container logs of a node.
    #[must_use]
    pub fn pod_logs(&self, node: &str) -> PathBuf {
        self.node(node).join("pods")
    }
}

/// The last `lines` lines of a log, at most 16 KiB; empty if it cannot be read.
#[must_use]
pub fn tail(path: &Path, lines: usize) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let read = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(16 * 1024)))?;
        let mut bytes = Vec::new();
        file.take(16 * 1024).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
}
