//! A command of the lab whose output is followed line by line while a fault lasts.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::Child;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::checks::access::Place;
use crate::checks::check::Failure;
use crate::checks::context::Context;

/// Most lines kept of one command; one that says more has not been read to its end.
const MAX_LINES: usize = 200_000;

/// What a command has said so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Said {
    /// Lines of its standard output.
    pub lines: Vec<String>,
    /// Lines of its error output.
    pub errors: Vec<String>,
    /// Whether its standard output has ended.
    pub ended: bool,
    /// Lines that found no room.
    pub dropped: usize,
}

/// A running command. Dropping it ends it.
pub(super) struct Follow {
    what: String,
    look: String,
    said: watch::Receiver<Said>,
    readers: [JoinHandle<()>; 2],
    _child: Child,
}

impl Drop for Follow {
    fn drop(&mut self) {
        self.readers.iter().for_each(JoinHandle::abort);
    }
}

impl Follow {
    /// Starts `argv` at `place`; `what` names it in messages.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(super) fn start(
        context: &Context,
        place: &Place,
        argv: &[&str],
        what: &str,
    ) -> Result<Self, Failure> {
        let look = context.access.shown(place, argv);
        let mut child = context.access.spawn(place, argv)?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(Failure::tool(what, "its output could not be opened", look));
        };
        let (tell, said) = watch::channel(Said::default());
        let errors = tell.clone();
        let readers = [
            tokio::spawn(async move {
                read(stdout, |line| tell.send_modify(|said| keep(&mut said.lines, &mut said.dropped, line)))
                    .await;
                tell.send_modify(|said| said.ended = true);
            }),
            tokio::spawn(read(stderr, move |line| {
                errors.send_modify(|said| keep(&mut said.errors, &mut said.dropped, line));
            })),
        ];
        Ok(Self { what: what.to_owned(), look, said, readers, _child: child })
    }

    /// The command line, for messages.
    #[must_use]
    pub(super) fn look(&self) -> &str {
        &self.look
    }

    /// What it has said so far.
    #[must_use]
    pub(super) fn said(&self) -> Said {
        self.said.borrow().clone()
    }

    /// Waits until its lines are as wanted.
    ///
    /// # Errors
    /// When they are not in time, or the command ended before: then it saw nothing of what came later.
    pub(super) async fn wait_for(
        &self,
        patience: Duration,
        good: impl Fn(&[String]) -> bool,
    ) -> Result<(), Failure> {
        let mut said = self.said.clone();
        let wanted = said.wait_for(|said| said.ended || good(&said.lines));
        let why = match tokio::time::timeout(patience, wanted).await {
            Ok(Ok(said)) if good(&said.lines) => return Ok(()),
            Ok(_) => "it ended".to_owned(),
            Err(_) => format!("silent about it for {} s", patience.as_secs()),
        };
        let said = self.said();
        let why = format!("{why} after {} lines; it complains {:?}", said.lines.len(), said.errors);
        Err(Failure::tool(&self.what, why, &self.look))
    }

    /// Fails when it ended, complained, or said more than could be kept: it may have missed something.
    ///
    /// # Errors
    /// What happened to it.
    pub(super) fn alive(&self) -> Result<(), Failure> {
        let said = self.said.borrow();
        if !said.ended && said.errors.is_empty() && said.dropped == 0 {
            return Ok(());
        }
        let why = format!(
            "ended: {}, complaints: {:?}, lines without room: {}",
            said.ended, said.errors, said.dropped
        );
        Err(Failure::tool(&format!("{} until the end of the fault", self.what), why, &self.look))
    }
}

fn keep(lines: &mut Vec<String>, dropped: &mut usize, line: String) {
    if lines.len() < MAX_LINES { lines.push(line) } else { *dropped += 1 }
}

async fn read(from: impl AsyncRead + Unpin, mut tell: impl FnMut(String)) {
    let mut lines = BufReader::new(from).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        tell(line);
    }
}
