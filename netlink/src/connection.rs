//! The handle: one netlink socket, opened inside its namespace, shared by all clones.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt;
use netlink_packet_route::RouteNetlinkMessage;
use nix::libc;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};

use crate::batch::Batches;
use crate::{Error, NetNs};

/// How often a dump is taken anew when the kernel says that it changed meanwhile (NLM_F_DUMP_INTR).
const DUMP_ATTEMPTS: u32 = 5;

/// A handle on the rtnetlink of one network namespace. Clones share the socket. See the crate's page for the verbs.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: rtnetlink::Handle,
    namespace: Option<NetNs>,
    /// A socket carries one dump at a time; the kernel answers a second one with EBUSY.
    dumps: Arc<tokio::sync::Mutex<()>>,
    /// The socket of [`Netlink::write_all`]: one batch at a time.
    pub(crate) batches: Arc<tokio::sync::Mutex<Option<Batches>>>,
    dumped: Arc<AtomicU64>,
}

/// Why a request got no good answer; the verbs add what was tried on what.
pub(crate) enum Refusal {
    Errno(io::Error),
    Closed,
}

impl Refusal {
    pub(crate) fn errno(&self) -> Option<i32> {
        match self {
            Self::Errno(source) => source.raw_os_error(),
            Self::Closed => None,
        }
    }

    pub(crate) fn on(self, what: &'static str, object: impl Into<String>) -> Error {
        match self {
            Self::Errno(source) => Error::Kernel { what, object: object.into(), source },
            Self::Closed => Error::Closed { what, object: object.into() },
        }
    }
}

impl Netlink {
    /// Opens the netlink of the namespace this process runs in. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the socket cannot be opened.
    pub fn here() -> Result<Self, Error> {
        Ok(Self::over(open_socket().map_err(socket_error)?, None))
    }

    /// Opens the netlink of another namespace: the socket is made by a thread inside it, and used from here.
    /// Needs a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Namespace`] when it cannot be entered, [`Error::Kernel`] when the socket cannot be opened.
    pub fn in_namespace(namespace: &NetNs) -> Result<Self, Error> {
        let runtime = tokio::runtime::Handle::current();
        let handle = namespace
            .run(move || {
                let _context = runtime.enter();
                open_socket()
            })?
            .map_err(socket_error)?;
        Ok(Self::over(handle, Some(namespace.clone())))
    }

    fn over(handle: rtnetlink::Handle, namespace: Option<NetNs>) -> Self {
        Self { handle, namespace, dumps: Arc::default(), batches: Arc::default(), dumped: Arc::default() }
    }

    /// Opens something else in this handle's namespace, with the runtime entered.
    pub(crate) fn open_here<T: Send>(
        &self,
        what: &'static str,
        object: impl Into<String>,
        open: impl FnOnce() -> io::Result<T> + Send,
    ) -> Result<T, Error> {
        let runtime = tokio::runtime::Handle::current();
        let open = move || {
            let _context = runtime.enter();
            open()
        };
        let opened = match &self.namespace {
            Some(namespace) => namespace.run(open)?,
            None => open(),
        };
        opened.map_err(|source| Error::Kernel { what, object: object.into(), source })
    }

    /// The namespace, unless it is this process's own.
    #[must_use]
    pub fn namespace(&self) -> Option<&NetNs> {
        self.namespace.as_ref()
    }

    /// The namespace in words, for messages.
    #[must_use]
    pub fn namespace_name(&self) -> &str {
        self.namespace.as_ref().map_or("of this process", NetNs::description)
    }

    /// Objects that the kernel listed so far for this handle and its clones, wanted or not: what lists cost. For tests and metrics.
    #[must_use]
    pub fn listed(&self) -> u64 {
        self.dumped.load(Ordering::Relaxed)
    }

    /// Sends a request that changes something and waits for the kernel's acknowledgement.
    pub(crate) async fn change(&self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Refusal> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut answers = self.handle.clone().request(request).map_err(|_| Refusal::Closed)?;
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::Error(ack) if ack.code.is_none() => return Ok(()),
                NetlinkPayload::Error(error) => return Err(Refusal::Errno(error.to_io())),
                _ => {}
            }
        }
        Err(Refusal::Closed)
    }

    /// Asks for one object.
    pub(crate) async fn get(&self, message: RouteNetlinkMessage) -> Result<RouteNetlinkMessage, Refusal> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST;
        let mut answers = self.handle.clone().request(request).map_err(|_| Refusal::Closed)?;
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => return Ok(message),
                NetlinkPayload::Error(error) => return Err(Refusal::Errno(error.to_io())),
                _ => {}
            }
        }
        Err(Refusal::Closed)
    }

    /// Asks for all objects that match. Taken anew while the kernel reports that the list changed under it. Dumps of
    /// one socket wait for each other; one whose caller went away is read to its end, since the kernel would refuse the
    /// next until then.
    pub(crate) async fn dump(
        &self,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Refusal> {
        self.dump_where(message, |_| true).await
    }

    /// As [`Self::dump`], for lists that are long and of which little is kept.
    pub(crate) async fn dump_where(
        &self,
        message: RouteNetlinkMessage,
        keep: fn(&RouteNetlinkMessage) -> bool,
    ) -> Result<Vec<RouteNetlinkMessage>, Refusal> {
        let (handle, dumps, dumped) = (self.handle.clone(), self.dumps.clone(), self.dumped.clone());
        let work = tokio::spawn(async move {
            let _turn = dumps.lock_owned().await;
            let mut attempt = 1;
            loop {
                let mut dump = Dump { keep, found: Vec::new(), interrupted: false, listed: 0 };
                let outcome = dump.take(handle.clone(), message.clone()).await;
                dumped.fetch_add(dump.listed, Ordering::Relaxed);
                outcome?;
                if !dump.interrupted || attempt >= DUMP_ATTEMPTS {
                    return Ok(dump.found);
                }
                attempt += 1;
            }
        });
        work.await.unwrap_or(Err(Refusal::Closed))
    }
}

/// One dump.
struct Dump {
    keep: fn(&RouteNetlinkMessage) -> bool,
    found: Vec<RouteNetlinkMessage>,
    /// The list changed meanwhile.
    interrupted: bool,
    listed: u64,
}

impl Dump {
    async fn take(
        &mut self,
        mut handle: rtnetlink::Handle,
        message: RouteNetlinkMessage,
    ) -> Result<(), Refusal> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let mut answers = handle.request(request).map_err(|_| Refusal::Closed)?;
        while let Some(answer) = answers.next().await {
            self.interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => {
                    self.listed += 1;
                    self.found.extend(Some(message).filter(self.keep));
                }
                // With strict checking a table that nothing was ever put in does not exist yet.
                NetlinkPayload::Error(error) if error.raw_code() == -libc::ENOENT => return Ok(()),
                NetlinkPayload::Error(error) => return Err(Refusal::Errno(error.to_io())),
                NetlinkPayload::Done(done) if done.code == 0 || done.code == -libc::ENOENT => return Ok(()),
                NetlinkPayload::Done(done) => {
                    return Err(Refusal::Errno(io::Error::from_raw_os_error(done.code.saturating_neg())));
                }
                _ => {}
            }
        }
        Err(Refusal::Closed)
    }
}

fn socket_error(source: io::Error) -> Error {
    Error::Kernel { what: "open", object: "a netlink socket".into(), source }
}

/// Opens a socket in the namespace of the calling thread and drives it from the entered runtime. The driver
/// ends when the last handle is dropped.
fn open_socket() -> io::Result<rtnetlink::Handle> {
    let (mut connection, handle, unsolicited) = rtnetlink::new_connection_with_strict_check()?;
    // Without the acknowledgement in hand, a socket that died would look like success.
    connection.set_forward_ack(true);
    connection.set_forward_done(true);
    drop(unsolicited);
    tokio::spawn(connection);
    Ok(handle)
}
