//! The connection to the own etcd, of whoever writes there: made, lost and made again after a wait; and exchanged for a
//! second one when the certificate files were renewed.
//!
//! Nothing that works is given up for files that do not: the second connection has to be answered first.

use crate::certificate::Expiry;
use crate::error::MeshError;
use crate::etcd::EtcdConfig;
use crate::follower::open;
use etcd_client::Client;
use rand::Rng;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Durations of a connection to the own etcd.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionTimers {
    /// First wait before connecting again; doubled each time until a connection has lasted, half of it random.
    pub backoff_min: Duration,
    /// Longest wait, without the spread.
    pub backoff_max: Duration,
    /// Added to every wait, uniform in `0..spread`: a thousand agents that lost one etcd at the same moment do not come
    /// back, and list, at the same moment.
    pub spread: Duration,
    /// A connection that worked for as long ends the backoff. An answer does not: an etcd that is full, or a user without
    /// the right to write, answers reads, and whatever comes next fails again at once.
    pub lasting: Duration,
    /// How often certificate files are looked at for a renewal.
    pub certificates: Duration,
}

impl Default for ConnectionTimers {
    fn default() -> Self {
        Self {
            backoff_min: Duration::from_millis(250),
            backoff_max: Duration::from_secs(15),
            spread: Duration::from_secs(3),
            lasting: Duration::from_secs(20),
            certificates: Duration::from_secs(60),
        }
    }
}

/// The waits between connections.
#[derive(Debug, Default)]
struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// The wait after a connection that lasted so long; `random` gives something below its argument.
    fn next(
        &mut self,
        lasted: Duration,
        timers: &ConnectionTimers,
        random: impl FnOnce(Duration) -> Duration,
    ) -> Duration {
        if lasted >= timers.lasting {
            self.attempts = 0;
        }
        let doubled = timers.backoff_min.saturating_mul(1 << self.attempts.min(16)).min(timers.backoff_max);
        self.attempts = self.attempts.saturating_add(1);
        doubled / 2 + random((doubled / 2).saturating_add(timers.spread))
    }
}

fn below(range: Duration) -> Duration {
    if range.is_zero() { range } else { rand::rng().random_range(Duration::ZERO..range) }
}

/// A connection that was answered once.
pub(crate) struct Opened {
    pub(crate) client: Client,
    /// The certificate that ends first.
    pub(crate) expiry: Option<Expiry>,
    /// What its certificate files were.
    files: [u8; 32],
}

async fn open_own(etcd: &EtcdConfig) -> Result<Opened, MeshError> {
    // Taken first: a renewal while connecting must not look like the files in use.
    let files = etcd.fingerprint().await;
    let (client, certificates) = open(etcd).await?;
    Ok(Opened { client, expiry: certificates.map(|files| files.expiry), files })
}

/// Where the own etcd is, and how its connection is kept.
pub(crate) struct OwnEtcd<'a> {
    pub(crate) etcd: &'a EtcdConfig,
    pub(crate) timers: ConnectionTimers,
    /// The end of it all.
    pub(crate) cancel: &'a CancellationToken,
    /// Is told why renewed certificate files are not used.
    pub(crate) renewal: &'a (dyn Fn(Option<String>) + Send + Sync),
}

/// What is done on the connection, and without it.
pub(crate) trait Work {
    /// A connection stands from now on, perhaps in place of another one.
    fn connected(&mut self, opened: &Opened);
    /// Works until something fails, or until the program stops.
    fn session(&mut self, client: &Client) -> impl Future<Output = MeshError> + Send;
    /// The session is over, also when the next one follows at once.
    fn ended(&mut self);
    /// There is no connection any more, or none came about.
    fn lost(&mut self, error: &MeshError, why: &str);
    /// Done until the next connection; never ends.
    fn idle(&mut self, why: &str) -> impl Future<Output = ()> + Send;
}

/// One connection after the other, until it is cancelled.
pub(crate) async fn keep(own: &OwnEtcd<'_>, work: &mut impl Work) {
    let cancel = own.cancel;
    let mut backoff = Backoff::default();
    loop {
        let opened = tokio::select! {
            () = cancel.cancelled() => return,
            opened = open_own(own.etcd) => opened,
        };
        let since = Instant::now();
        let error = match opened {
            Ok(opened) => serve(own, work, opened).await,
            Err(error) => error,
        };
        if cancel.is_cancelled() {
            return;
        }
        let why = error.to_string();
        work.lost(&error, &why);
        let wait = backoff.next(since.elapsed(), &own.timers, below);
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
            () = work.idle(&why) => {}
        }
    }
}

/// Works on a connection, and on those that take its place, until something fails.
async fn serve(own: &OwnEtcd<'_>, work: &mut impl Work, mut opened: Opened) -> MeshError {
    loop {
        work.connected(&opened);
        let next = tokio::select! {
            error = work.session(&opened.client) => Err(error),
            next = renewed(own, opened.files) => Ok(next),
        };
        work.ended();
        match next {
            Ok(next) => {
                tracing::info!(
                    "own etcd: connected with the renewed certificate files; the old connection is closed"
                );
                opened = next;
            }
            Err(error) => return error,
        }
    }
}

/// Waits until the certificate files were renewed and a second connection was answered with them. Why changed ones are not
/// used is told.
async fn renewed(own: &OwnEtcd<'_>, used: [u8; 32]) -> Opened {
    loop {
        tokio::time::sleep(own.timers.certificates).await;
        if own.etcd.fingerprint().await == used {
            (own.renewal)(None);
            continue;
        }
        match open_own(own.etcd).await {
            Ok(opened) => return opened,
            Err(error) => (own.renewal)(Some(format!(
                "changed certificate files are not used, the connection with the old ones is kept: {error}"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shortest and the longest wait after a connection.
    fn waits(backoff: &mut Backoff, lasted: Duration) -> (u128, u128) {
        let mut longest = Duration::ZERO;
        let shortest = backoff.next(lasted, &ConnectionTimers::default(), |range| {
            longest = range;
            Duration::ZERO
        });
        (shortest.as_millis(), (shortest + longest).as_millis())
    }

    #[test]
    fn waits_grow_until_a_connection_has_lasted_however_it_was_answered() {
        let mut backoff = Backoff::default();
        // Not connected at all, or answered and then refused: the same.
        let failing = [0, 1, 19, 0, 0, 0, 0, 0].map(|secs| waits(&mut backoff, Duration::from_secs(secs)));
        let half = [125, 250, 500, 1000, 2000, 4000, 7500, 7500];
        assert_eq!(failing, half.map(|half| (half, half * 2 + 3000)));
        assert_eq!(waits(&mut backoff, Duration::from_secs(20)), (125, 3250));
        assert_eq!(waits(&mut backoff, Duration::ZERO), (250, 3500));
    }

    #[test]
    fn there_may_be_no_spread_and_no_wait() {
        assert_eq!(below(Duration::ZERO), Duration::ZERO);
        assert!(below(Duration::from_secs(1)) < Duration::from_secs(1));
    }
}
