//! Processes of the bench: this program with another first word.

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};

use tombolo_tests::usage::Usage;

use crate::Failure;

/// A process that says things line by line; killed and waited for when dropped.
pub(crate) struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    pub(crate) fn start(arguments: &[&str]) -> Result<Self, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut child = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().ok_or("a child without output")?;
        Ok(Self { child, lines: BufReader::new(stdout).lines() })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage::of(self.id())
    }

    /// The next line that begins with `word`: what stands behind it, as numbers.
    pub(crate) fn says(&mut self, word: &str) -> Result<Vec<f64>, Failure> {
        loop {
            let line = self.lines.next().ok_or_else(|| format!("ended before it said {word:?}"))??;
            if let Some(rest) = line.strip_prefix(word) {
                return Ok(rest.split_whitespace().filter_map(|number| number.parse().ok()).collect());
            }
        }
    }

    /// Lets it go on.
    pub(crate) fn go(&mut self) -> Result<(), Failure> {
        writeln!(self.child.stdin.as_mut().ok_or("a child without input")?)?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
