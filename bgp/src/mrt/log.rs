//! The message log: a file for each peer, bounded in size, written by a thread of its own so that a slow disk never holds a session up.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use super::session::SessionEntry;

/// Entries that may wait for the disk; more are lost, and counted.
const QUEUE: usize = 16 * 1024;
/// Files open at once; the one that was written to longest ago is closed first.
const OPEN_MAX: usize = 64;

/// Where messages are logged, and how much of them is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageLog {
    /// The folder; made if it is not there. A peer's newest messages are in `NAME.mrt`, older ones in `NAME.mrt.1` and so on.
    pub folder: PathBuf,
    /// Bytes in a file before the next is begun; at least 64 KiB are used.
    pub file_bytes_max: u64,
    /// Files kept for each peer, the one written to included; at least 1.
    pub files: usize,
}

/// Hands entries to the thread that writes them.
#[derive(Debug)]
pub(crate) struct Writer {
    entries: SyncSender<(String, SessionEntry)>,
    lost: u64,
}

impl Writer {
    /// Makes the folder and starts the thread, which ends with the writer.
    pub(crate) fn start(settings: MessageLog) -> io::Result<Self> {
        fs::create_dir_all(&settings.folder)?;
        let (entries, inbox) = sync_channel(QUEUE);
        std::thread::Builder::new()
            .name("bgp-messages".to_owned())
            .spawn(move || Files::new(settings).run(&inbox))?;
        Ok(Self { entries, lost: 0 })
    }

    /// Logs an entry of a peer; if the disk is too slow it is lost.
    pub(crate) fn log(&mut self, peer: &str, entry: SessionEntry) {
        match self.entries.try_send((peer.to_owned(), entry)) {
            Ok(()) if self.lost > 0 => {
                tracing::warn!(lost = self.lost, "The disk was too slow for the BGP message log.");
                self.lost = 0;
            }
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => self.lost += 1,
        }
    }

    /// Counts entries that were lost before they came here.
    pub(crate) const fn lost(&mut self, count: u64) {
        self.lost += count;
    }
}

struct Open {
    file: BufWriter<File>,
    bytes: u64,
    /// The number of the last entry written.
    used: u64,
}

struct Files {
    settings: MessageLog,
    open: BTreeMap<String, Open>,
    clock: u64,
    failed: bool,
}

impl Files {
    const fn new(settings: MessageLog) -> Self {
        Self { settings, open: BTreeMap::new(), clock: 0, failed: false }
    }

    fn run(mut self, inbox: &Receiver<(String, SessionEntry)>) {
        while let Ok(first) = inbox.recv() {
            let mut next = Some(first);
            while let Some((peer, entry)) = next {
                let result = self.write(&peer, &entry);
                self.judge(result);
                next = inbox.try_recv().ok();
            }
            // Nothing waits: what was written should be there for whoever looks.
            let result = self.open.values_mut().try_for_each(|open| open.file.flush());
            self.judge(result);
        }
    }

    /// Says once that the log cannot be written, and once that it can be again.
    fn judge(&mut self, result: io::Result<()>) {
        match result {
            Ok(()) => self.failed = false,
            Err(error) => {
                if !std::mem::replace(&mut self.failed, true) {
                    let folder = self.settings.folder.display();
                    tracing::warn!(%folder, %error, "The BGP message log cannot be written; is the disk full?");
                }
                self.open.clear();
            }
        }
    }

    fn write(&mut self, peer: &str, entry: &SessionEntry) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(128);
        entry.record().encode(&mut bytes);
        let name = file_name(peer);
        let limit = self.settings.file_bytes_max.max(64 * 1024);
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if self.open.get(&name).is_some_and(|open| open.bytes.saturating_add(len) > limit) {
            if let Some(mut old) = self.open.remove(&name) {
                old.file.flush()?;
            }
            rotate(&self.settings.folder.join(&name), self.settings.files)?;
        }
        self.clock += 1;
        let open = self.opened(name)?;
        open.file.write_all(&bytes)?;
        open.bytes += len;
        Ok(())
    }

    fn opened(&mut self, name: String) -> io::Result<&mut Open> {
        if !self.open.contains_key(&name) && self.open.len() >= OPEN_MAX {
            let oldest = self.open.iter().min_by_key(|(_, open)| open.used).map(|(name, _)| name.clone());
            if let Some(mut open) = oldest.and_then(|name| self.open.remove(&name)) {
                open.file.flush()?;
            }
        }
        let clock = self.clock;
        let open = match self.open.entry(name) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                let path = self.settings.folder.join(entry.key());
                let file = File::options().create(true).append(true).open(path)?;
                let bytes = file.metadata()?.len();
                entry.insert(Open { file: BufWriter::new(file), bytes, used: clock })
            }
        };
        open.used = clock;
        Ok(open)
    }
}

/// A peer's name as that of a file: whatever could leave the folder is replaced.
fn file_name(peer: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.:".contains(letter);
    let name: String = peer.chars().map(|letter| if plain(letter) { letter } else { '_' }).collect();
    format!("{}.mrt", name.trim_start_matches('.'))
}

/// `NAME` becomes `NAME.1`, that `NAME.2`, and the oldest goes.
fn rotate(newest: &Path, files: usize) -> io::Result<()> {
    let numbered = |number: usize| match number {
        0 => newest.to_owned(),
        _ => {
            let mut path = newest.as_os_str().to_owned();
            path.push(format!(".{number}"));
            PathBuf::from(path)
        }
    };
    let absent = |error: io::Error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) };
    let last = files.clamp(1, 1000) - 1;
    if last == 0 {
        return fs::remove_file(newest).or_else(absent);
    }
    for number in (0..last).rev() {
        fs::rename(numbered(number), numbered(number + 1)).or_else(absent)?;
    }
    Ok(())
}
