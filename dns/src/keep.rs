//! What is known, on disk: a unit that starts while no agent is there answers as the one before.

use crate::line::Line;
use crate::zones::Zones;
use std::io::Write;
use std::path::Path;

/// Largest file that is read: a million names are some 200 MiB.
const MAX_BYTES: u64 = 1 << 30;

/// Reads what an earlier life has kept. What cannot be read is told and left out.
pub(crate) fn load(file: &Path) -> Zones {
    let mut zones = Zones::default();
    match read(file) {
        Ok(Some(lines)) => drop(zones.take(lines)),
        Ok(None) => {}
        Err(error) => {
            let path = file.display();
            tracing::warn!(%path, %error, "what was known before cannot be read; the agent will tell");
        }
    }
    zones
}

fn read(file: &Path) -> std::io::Result<Option<Vec<Line>>> {
    let opened = match std::fs::File::open(file) {
        Ok(opened) => opened,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if opened.metadata()?.len() > MAX_BYTES {
        return Err(std::io::Error::other("the file is too large"));
    }
    Ok(Some(serde_json::from_reader(std::io::BufReader::new(opened))?))
}

/// Writes everything, so that a reader sees the old file or the new one.
pub(crate) fn save(file: &Path, lines: &[Line]) -> std::io::Result<()> {
    let folder = file.parent().unwrap_or_else(|| Path::new("."));
    std::fs::create_dir_all(folder)?;
    let fresh = file.with_extension("new");
    let mut writer = std::io::BufWriter::new(std::fs::File::create(&fresh)?);
    serde_json::to_writer(&mut writer, lines)?;
    writer.flush()?;
    writer.get_ref().sync_all()?;
    drop(writer);
    std::fs::rename(&fresh, file)
}
