//! Network namespaces and daemons for tests that need root. Everything is removed when its guard is dropped.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long [`eventually`] waits.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Time between two looks at a daemon that offers no events.
const LOOK_EVERY: Duration = Duration::from_millis(100);

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A suffix no other run has: process, time and a counter.
pub fn unique() -> String {
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.subsec_nanos());
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{:x}{:x}{count:x}", std::process::id(), nanos & 0xffff)
}

/// Runs a program to its end and returns what it printed; panics with its complaint if it failed.
#[expect(clippy::panic, reason = "a test cannot go on without it")]
pub fn run(program: &str, arguments: &[&str]) -> String {
    match Command::new(program).args(arguments).output() {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
        Ok(output) => panic!(
            "{program} {arguments:?} failed with {}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout)
        ),
        Err(error) => panic!("cannot run {program}: {error}; is it installed, and are you root?"),
    }
}

/// Waits until `look` finds something; panics with `what` and the last thing seen if it does not.
#[expect(clippy::panic, reason = "a test fails this way")]
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) if Instant::now() >= end => {
                panic!("{what}: not within {PATIENCE:?}; last seen:\n{seen}")
            }
            Err(_) => std::thread::sleep(LOOK_EVERY),
        }
    }
}

/// A network namespace with its loopback up.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one; `role` is part of its name.
    pub fn new(role: &str) -> Self {
        let name = format!("tbt-{role}-{}", unique());
        run("ip", &["netns", "add", &name]);
        let namespace = Self { name };
        namespace.ip(&["link", "set", "lo", "up"]);
        namespace
    }

    /// The name under /run/netns.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `ip` in this namespace.
    pub fn ip(&self, arguments: &[&str]) -> String {
        run("ip", &[&["-n", self.name.as_str()], arguments].concat())
    }

    /// Runs a program here to its end.
    pub fn run(&self, arguments: &[&str]) -> String {
        run("ip", &[&["netns", "exec", self.name.as_str()], arguments].concat())
    }

    /// Starts a program here that runs until the guard is dropped.
    pub fn spawn(&self, program: &str, arguments: &[&str]) -> Daemon {
        self.start(program, arguments, Stdio::inherit())
    }

    /// The same, without what it says on standard error.
    pub fn spawn_quiet(&self, program: &str, arguments: &[&str]) -> Daemon {
        self.start(program, arguments, Stdio::null())
    }

    #[expect(clippy::panic, reason = "a test cannot go on without it")]
    fn start(&self, program: &str, arguments: &[&str], errors: Stdio) -> Daemon {
        // `ip netns exec` replaces itself, so the child is the program.
        let child = Command::new("ip")
            .args(["netns", "exec", &self.name, program])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn();
        match child {
            Ok(child) => Daemon::new(program, child),
            Err(error) => panic!("cannot start {program}: {error}"),
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // In a drop after a failed test there is nobody to tell but the log.
        if let Err(error) = Command::new("ip").args(["netns", "del", &self.name]).status() {
            eprintln!("cannot remove namespace {}: {error}", self.name);
        }
    }
}

/// Joins two namespaces by a veth pair named `eth1` on both sides, with the addresses given (prefix lengths included).
pub fn join(a: &Namespace, a_addresses: &[&str], b: &Namespace, b_addresses: &[&str]) {
    join_by([a, b], ["eth1", "eth1"], [a_addresses, b_addresses]);
}

/// The same with interfaces of other names.
pub fn join_by([a, b]: [&Namespace; 2], [a_name, b_name]: [&str; 2], addresses: [&[&str]; 2]) {
    a.ip(&["link", "add", a_name, "type", "veth", "peer", "name", b_name, "netns", b.name()]);
    for ((namespace, name), addresses) in [(a, a_name), (b, b_name)].into_iter().zip(addresses) {
        for address in addresses {
            let nodad: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
            namespace.ip(&[&["addr", "add", address, "dev", name], nodad].concat());
        }
        namespace.ip(&["link", "set", name, "up"]);
    }
}

/// A running program; killed with SIGKILL and reaped when dropped.
#[derive(Debug)]
pub struct Daemon {
    program: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
    seen: Vec<String>,
}

impl Daemon {
    fn new(program: &str, mut child: Child) -> Self {
        let (sender, lines) = mpsc::channel();
        if let Some(stdout) = child.stdout.take() {
            std::thread::spawn(move || forward(stdout, &sender));
        }
        let stdin = child.stdin.take();
        Self { program: program.to_owned(), child, stdin, lines, seen: Vec::new() }
    }

    /// Writes one line to its standard input.
    #[expect(clippy::panic, reason = "a test cannot go on without it")]
    pub fn tell(&mut self, line: &str) {
        let Some(stdin) = &mut self.stdin else { panic!("{} has no standard input", self.program) };
        if let Err(error) = writeln!(stdin, "{line}") {
            panic!("{} takes no more input: {error}; it said {:?}", self.program, self.seen);
        }
    }

    /// Waits for a line of its output that `wanted` accepts; lines before it are kept in [`Daemon::seen`].
    #[expect(clippy::panic, reason = "a test fails this way")]
    pub fn wait_for<T>(&mut self, what: &str, wanted: impl Fn(&str) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("{}: no {what}; it said:\n{}", self.program, self.seen.join("\n"));
            };
            let found = wanted(&line);
            self.seen.push(line);
            if let Some(found) = found {
                return found;
            }
        }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has printed so far.
    pub fn seen(&mut self) -> &[String] {
        self.seen.extend(self.lines.try_iter());
        &self.seen
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait().map(drop)) {
            eprintln!("cannot kill {}: {error}", self.program);
        }
    }

    /// Waits until it ends by itself; true if it ended well.
    pub fn wait(&mut self) -> bool {
        self.child.wait().is_ok_and(|status| status.success())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

fn forward(stdout: ChildStdout, sender: &mpsc::Sender<String>) {
    for line in BufReader::new(stdout.take(u64::MAX)).lines() {
        let Ok(line) = line else { return };
        if sender.send(line).is_err() {
            return;
        }
    }
}
