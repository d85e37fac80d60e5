//! The BPF objects of a lab, by their numbers in the kernel, so that `down` can tell whether any of them outlived it.
//!
//! What has no process and no pin any more can live on all the same: as long as something runs it that is not the lab's,
//! an interface of the host or a cgroup. A list of names in /sys/fs/bpf does not show that; the kernel's own list does.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use aya::maps::loaded_maps;
use aya::programs::links::PinnedLink;
use aya::programs::{loaded_links, loaded_programs};

/// The kernel frees programs and maps some time after their last user has gone, and tells nobody.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is asked.
const INTERVAL: Duration = Duration::from_millis(50);
/// Most pins that are looked at, of all nodes together.
const MAX_PINS: usize = 10_000;

/// Programs, maps and links: (`program`, `map` or `link`; id).
pub(super) type Objects = BTreeSet<(&'static str, u32)>;

/// What the processes `pids` hold, and what is pinned in the file systems they see.
pub(super) fn of_processes(pids: &[i32]) -> Objects {
    let mut pins = Vec::new();
    let mut seen = BTreeSet::new();
    for pid in pids {
        let place = format!("/proc/{pid}/root/sys/fs/bpf");
        // One file system a node, not one a process.
        if let Ok(meta) = std::fs::metadata(&place)
            && seen.insert(std::os::unix::fs::MetadataExt::dev(&meta))
        {
            open_pins(Path::new(&place), &mut pins);
        }
    }
    let mut objects = Objects::new();
    for pid in pids.iter().map(i32::to_string).chain(["self".to_owned()]) {
        held_by(&pid, &mut objects);
    }
    // Open until here: this process' own list of open files has told what they are.
    drop(pins);
    objects
}

/// Opens every pin below `place`. aya opens a pin of any kind as a link.
fn open_pins(place: &Path, pins: &mut Vec<PinnedLink>) {
    for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            open_pins(&entry.path(), pins);
        } else if pins.len() < MAX_PINS {
            pins.extend(PinnedLink::from_pin(entry.path()).ok());
        }
    }
}

/// Reads /proc/PID/fdinfo, where BPF objects show their ids.
fn held_by(pid: &str, objects: &mut Objects) {
    for entry in std::fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten() {
        let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
        objects.extend(text.lines().filter_map(object));
    }
}

/// `prog_id: 7` and its like.
fn object(line: &str) -> Option<(&'static str, u32)> {
    let (key, value) = line.split_once(':')?;
    let kind = match key {
        "prog_id" => "program",
        "map_id" => "map",
        "link_id" => "link",
        _ => return None,
    };
    // 0 stands for none.
    value.trim().parse().ok().filter(|id| *id != 0).map(|id| (kind, id))
}

/// Those of `objects` that the kernel still has, after it had time to free them.
pub(super) fn still_there(objects: &Objects) -> Objects {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let loaded = loaded();
        let left: Objects = objects.intersection(&loaded).copied().collect();
        if left.is_empty() || Instant::now() >= deadline {
            return left;
        }
        std::thread::sleep(INTERVAL);
    }
}

/// Everything the kernel has. Ids are not given again before all others were.
fn loaded() -> Objects {
    let programs = loaded_programs().flatten().map(|program| ("program", program.id()));
    let maps = loaded_maps().flatten().map(|map| ("map", map.id()));
    let links = loaded_links().flatten().map(|link| ("link", link.id()));
    programs.chain(maps).chain(links).collect()
}

#[cfg(test)]
mod tests {
    use super::object;

    #[test]
    fn ids_of_open_files() {
        assert_eq!(object("prog_id:\t12"), Some(("program", 12)));
        assert_eq!(object("map_id:\t3"), Some(("map", 3)));
        assert_eq!(object("link_id:\t4"), Some(("link", 4)));
        for line in ["map_id:\t0", "pos:\t0", "prog_tag:\tdeadbeef", "prog_id", "map_id:\tx"] {
            assert_eq!(object(line), None, "{line}");
        }
    }
}
