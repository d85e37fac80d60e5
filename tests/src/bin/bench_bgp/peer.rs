//! One BGP session of the bench: sends prepared bytes, and keeps account of what it hears.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Protocol, Socket, Type};

use crate::Failure;
use crate::table::Prefix;

/// Longest prefix that is accounted for.
const LENGTH_MAX: u8 = 24;
const HOLD_SECS: u16 = 240;
/// A session that sends nothing else says that it lives this often.
const ALIVE_EVERY: Duration = Duration::from_secs(20);
const READ_SIZE: usize = 1 << 20;
/// How long a daemon may take to accept a session.
const CONNECT_MAX: Duration = Duration::from_secs(60);
const TRY_EVERY: Duration = Duration::from_millis(50);
const KEEPALIVE: [u8; 19] =
    [255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 19, 4];

/// What a session has heard.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    established: bool,
    /// A bit for each prefix that is there.
    bits: Vec<u64>,
    /// Prefixes that are there, each counted once.
    pub(crate) present: usize,
    /// UPDATEs that announced something.
    pub(crate) updates: usize,
    /// When the last route came or went.
    pub(crate) last: Option<Instant>,
    /// A prefix whose every UPDATE is noted.
    pub(crate) watched: Option<Prefix>,
    pub(crate) noted: Vec<Instant>,
    failure: Option<String>,
}

impl Heard {
    /// Takes the whole messages off the front of `buffer`; how many bytes that were.
    fn messages(&mut self, buffer: &[u8], now: Instant) -> usize {
        let mut at = 0;
        while let Some([head @ .., high, low, kind]) = buffer.get(at..at + 19) {
            let len = usize::from(u16::from_be_bytes([*high, *low]));
            if head.len() != 16 || len < 19 {
                self.failure = Some(format!("a message of {len} bytes"));
                return at;
            }
            let Some(body) = buffer.get(at + 19..at + len) else { break };
            match kind {
                2 if self.update(body, now).is_none() => self.failure = Some("an unreadable UPDATE".into()),
                3 => self.failure = Some(format!("NOTIFICATION {body:?}")),
                4 => self.established = true,
                _ => {}
            }
            at += len;
        }
        at
    }

    fn update(&mut self, body: &[u8], now: Instant) -> Option<()> {
        let (withdrawn, rest) = sized(body)?;
        let (_, announced) = sized(rest)?;
        self.prefixes(withdrawn, now, false)?;
        self.prefixes(announced, now, true)?;
        if !(withdrawn.is_empty() && announced.is_empty()) {
            self.last = Some(now);
        }
        self.updates += usize::from(!announced.is_empty());
        Some(())
    }

    fn prefixes(&mut self, bytes: &[u8], now: Instant, there: bool) -> Option<()> {
        let mut rest = bytes;
        while let [len, tail @ ..] = rest {
            let octets = usize::from(len.div_ceil(8));
            let (net, tail) = tail.split_at_checked(octets)?;
            let mut address = [0; 4];
            address.get_mut(..octets)?.copy_from_slice(net);
            self.prefix((u32::from_be_bytes(address), *len), now, there)?;
            rest = tail;
        }
        Some(())
    }

    fn prefix(&mut self, prefix: Prefix, now: Instant, there: bool) -> Option<()> {
        if self.watched == Some(prefix) {
            self.noted.push(now);
        }
        let (address, len) = prefix;
        if !(1..=LENGTH_MAX).contains(&len) {
            return None;
        }
        // The prefixes of one length follow those of the lengths below it.
        let number = (1u32 << len) + (address >> (32 - u32::from(len)));
        let word = self.bits.get_mut(usize::try_from(number >> 6).ok()?)?;
        let bit = 1u64 << (number & 63);
        match (there, *word & bit != 0) {
            (true, false) => self.present += 1,
            (false, true) => self.present -= 1,
            _ => return Some(()),
        }
        *word ^= bit;
        Some(())
    }
}

fn sized(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let ([high, low], rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes([*high, *low])))
}

#[derive(Debug)]
struct Shared {
    heard: Mutex<Heard>,
    changed: Condvar,
}

impl Shared {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An established session; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Peer {
    stream: Arc<Mutex<TcpStream>>,
    shared: Arc<Shared>,
    end: TcpStream,
}

impl Drop for Peer {
    fn drop(&mut self) {
        // The reader ends with the connection; that the daemon ended it first is as good.
        drop(self.end.shutdown(std::net::Shutdown::Both));
    }
}

/// Where a session is and whom it is with.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) namespace: String,
    pub(crate) local: Ipv4Addr,
    pub(crate) remote: Ipv4Addr,
    pub(crate) asn: u32,
}

impl Peer {
    /// Opens a session, however long the daemon takes to listen.
    pub(crate) fn establish(place: &Place) -> Result<Self, Failure> {
        let until = Instant::now() + CONNECT_MAX;
        loop {
            match Self::attempt(place) {
                Ok(peer) => return Ok(peer),
                Err(error) if Instant::now() > until => {
                    return Err(
                        format!("no session from {} with {}: {error}", place.local, place.remote).into()
                    );
                }
                Err(_) => std::thread::sleep(TRY_EVERY),
            }
        }
    }

    fn attempt(place: &Place) -> Result<Self, Failure> {
        let stream = connect(place)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ALIVE_EVERY))?;
        (&stream).write_all(&open(place))?;
        (&stream).write_all(&KEEPALIVE)?;
        let bits = vec![0; 1 << (LENGTH_MAX - 5)];
        let heard = Mutex::new(Heard { bits, ..Heard::default() });
        let shared = Arc::new(Shared { heard, changed: Condvar::new() });
        let peer =
            Self { end: stream.try_clone()?, stream: Arc::new(Mutex::new(stream.try_clone()?)), shared };
        let (writer, shared) = (Arc::clone(&peer.stream), Arc::clone(&peer.shared));
        std::thread::spawn(move || read(stream, &writer, &shared));
        peer.wait("session", TRY_EVERY * 40, |heard| heard.established.then_some(()))?;
        Ok(peer)
    }

    /// Sends bytes, as fast as the daemon takes them.
    pub(crate) fn send(&self, bytes: &[u8]) -> Result<(), Failure> {
        Ok(self.stream.lock().unwrap_or_else(PoisonError::into_inner).write_all(bytes)?)
    }

    /// Waits until `found` finds what it looks for.
    pub(crate) fn wait<T>(
        &self,
        what: &str,
        patience: Duration,
        found: impl Fn(&Heard) -> Option<T>,
    ) -> Result<T, Failure> {
        let until = Instant::now() + patience;
        let mut heard = self.shared.heard();
        loop {
            if let Some(failure) = &heard.failure {
                return Err(format!("the daemon: {failure}").into());
            }
            if let Some(found) = found(&heard) {
                return Ok(found);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!(
                    "no {what} within {} s; {} prefixes are there",
                    patience.as_secs(),
                    heard.present
                )
                .into());
            }
            (heard, _) =
                self.shared.changed.wait_timeout(heard, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Looks at, or changes, what is kept.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut Heard) -> T) -> T {
        look(&mut self.shared.heard())
    }
}

/// A connection out of a namespace. A thread enters it: the socket stays there, the thread ends.
fn connect(place: &Place) -> Result<TcpStream, Failure> {
    let place = place.clone();
    let thread = std::thread::spawn(move || -> std::io::Result<TcpStream> {
        let namespace = std::fs::File::open(format!("/run/netns/{}", place.namespace))?;
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::from((place.local, 0)).into())?;
        socket.connect_timeout(&SocketAddr::from((place.remote, 179)).into(), TRY_EVERY * 20)?;
        Ok(socket.into())
    });
    Ok(thread.join().map_err(|_| "the connecting thread panicked")??)
}

/// OPEN with IPv4 unicast, route refresh and four-octet AS numbers.
fn open(place: &Place) -> Vec<u8> {
    let asn = place.asn.to_be_bytes();
    let short = u16::try_from(place.asn).unwrap_or(23_456).to_be_bytes();
    let mut capabilities = vec![1, 4, 0, 1, 0, 1, 2, 0, 65, 4];
    capabilities.extend(asn);
    let len = u8::try_from(capabilities.len()).unwrap_or(u8::MAX);
    let mut out = vec![0xff; 16];
    out.extend([0, 29 + 2 + len, 1, 4]);
    out.extend(short);
    out.extend(HOLD_SECS.to_be_bytes());
    out.extend(place.local.octets());
    out.extend([len + 2, 2, len]);
    out.extend(capabilities);
    out
}

/// Reads until the connection ends.
fn read(mut stream: TcpStream, writer: &Mutex<TcpStream>, shared: &Shared) {
    let mut buffer = vec![0; READ_SIZE];
    let (mut filled, mut alive) = (0, Instant::now());
    loop {
        let Some(room) = buffer.get_mut(filled..) else { return };
        let outcome = stream.read(room);
        let now = Instant::now();
        let failure = match outcome {
            Ok(0) => Some("closed the connection".to_owned()),
            Ok(count) => {
                filled += count;
                let taken = shared.heard().messages(buffer.get(..filled).unwrap_or_default(), now);
                buffer.copy_within(taken..filled, 0);
                filled -= taken;
                None
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
            Err(error) => Some(error.to_string()),
        };
        let ended = failure.is_some();
        if ended {
            shared.heard().failure = failure;
        }
        shared.changed.notify_all();
        if ended {
            return;
        }
        // A writer that holds the lock sends, and so says that the session lives.
        if now.duration_since(alive) >= ALIVE_EVERY
            && let Ok(mut writer) = writer.try_lock()
        {
            alive = now;
            if writer.write_all(&KEEPALIVE).is_err() {
                return;
            }
        }
    }
}
