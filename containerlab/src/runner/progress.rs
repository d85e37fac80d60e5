//! What a user sees while a lab comes up: a bar on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Tells the progress on standard error.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    quiet: bool,
    began: Instant,
}

impl Progress {
    /// A bar if standard error is a terminal, else lines.
    #[must_use]
    pub fn for_terminal() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            // Of none at all everything would be done.
            let bar = ProgressBar::new(1);
            if let Ok(style) = ProgressStyle::with_template("{elapsed:>4} [{bar:30}] {pos}/{len} {wide_msg}")
            {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self { bar, quiet: false, began: Instant::now() }
    }

    /// Says only warnings.
    #[must_use]
    pub fn quiet() -> Self {
        Self { bar: None, quiet: true, began: Instant::now() }
    }

    /// One more step of a known number is done.
    pub fn step(&mut self, what: &str, done: usize, total: usize) {
        match &self.bar {
            Some(bar) => {
                bar.set_length(u64::try_from(total).unwrap_or(u64::MAX));
                bar.set_position(u64::try_from(done).unwrap_or(u64::MAX));
                bar.set_message(what.to_owned());
            }
            None if self.quiet => {}
            None => self.line(&format!("[{done}/{total}] {what}")),
        }
    }

    /// Something to know.
    pub fn note(&mut self, text: &str) {
        if !self.quiet {
            self.line(text);
        }
    }

    /// Something that may be wrong.
    pub fn warn(&mut self, text: &str) {
        self.line(&format!("warning: {text}"));
    }

    /// No more steps.
    pub fn finish(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn line(&self, text: &str) {
        let line = format!("{:6.1}s {text}", self.began.elapsed().as_secs_f64());
        match &self.bar {
            Some(bar) => bar.println(line),
            // A closed standard error is no reason to stop.
            None => {
                writeln!(std::io::stderr(), "{line}").ok();
            }
        }
    }
}
