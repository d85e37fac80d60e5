//! Which agent writes what belongs to the whole cluster: the holder of one key on a short lease.

use super::lease::{give_back, short_lease};
use super::scope::lost_election;
use super::watching::until_event;
use crate::error::MeshError;
use crate::etcd::{broken, request_error};
use crate::operations::{Operation, operate};
use etcd_client::{
    Client, Compare, CompareOp, EventType, PutOptions, ResponseHeader, Txn, TxnOp, TxnOpResponse, TxnResponse,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Who stands: a name, and this process among those that bear it.
pub(crate) struct Candidate {
    name: Arc<str>,
    /// Tells this process from another one of the same name.
    nonce: u64,
    /// It was elected before: another holder of its name is no earlier life of it, but somebody who lives.
    elected: AtomicBool,
}

/// Who holds a seat, for one who stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    /// This process, on an earlier connection.
    Itself,
    /// An earlier life of it.
    EarlierLife,
    /// Another process of the same name, that lives.
    Namesake,
    /// Somebody else.
    Other,
}

impl Candidate {
    pub(crate) fn new(name: Arc<str>) -> Self {
        Self { name, nonce: rand::random(), elected: AtomicBool::new(false) }
    }

    /// What it writes as the holder.
    fn value(&self) -> String {
        format!("{} {:016x}", self.name, self.nonce)
    }

    fn judge(&self, value: &[u8]) -> Holder {
        let text = String::from_utf8_lossy(value);
        let is_name = |name: &str| name == &*self.name;
        // Programs before this one wrote the name alone.
        let is_nonce = |nonce: &str| nonce.len() == 16 && u64::from_str_radix(nonce, 16).is_ok();
        match text.rsplit_once(' ') {
            _ if text == self.value() => Holder::Itself,
            Some((name, nonce)) if is_nonce(nonce) && is_name(name) => self.judge_namesake(),
            _ if is_name(&text) => self.judge_namesake(),
            _ => Holder::Other,
        }
    }

    fn judge_namesake(&self) -> Holder {
        if self.elected.load(Ordering::Relaxed) { Holder::Namesake } else { Holder::EarlierLife }
    }
}

/// What is stood for, and by whom.
pub(crate) struct Seat<'a> {
    /// The key whose holder is elected.
    pub(crate) key: &'static str,
    /// Who stands.
    pub(crate) candidate: &'a Candidate,
    /// Life of the election without its holder.
    pub(crate) ttl: Duration,
    /// Is told, before it is waited for, whether the holder is a living namesake.
    pub(crate) namesake: &'a (dyn Fn(bool) + Send + Sync),
}

/// An election that was won: the lease that holds the key.
pub(crate) struct Won {
    pub(crate) lease: i64,
    key: &'static str,
    ttl: Duration,
    /// When it was won.
    revision: i64,
}

/// Waits until this agent is elected.
pub(crate) async fn campaign(seat: &Seat<'_>, client: &Client) -> Result<Won, MeshError> {
    loop {
        let lease = short_lease(client, i64::try_from(seat.ttl.as_secs()).unwrap_or(15).max(1)).await?;
        let attempt = seat.take(client, lease).await?;
        if let Attempt::Won(won) = attempt {
            seat.candidate.elected.store(true, Ordering::Relaxed);
            (seat.namesake)(false);
            return Ok(won);
        }
        // Nobody keeps it alive meanwhile, and waiting may take days.
        give_back(client, lease).await?;
        if let Attempt::Held { revision, by } = attempt {
            (seat.namesake)(by == Holder::Namesake);
            until_event(client, seat.key, revision, |event| event == EventType::Delete).await?;
        }
    }
}

/// What came of standing once.
enum Attempt {
    Won(Won),
    /// Somebody else is elected, as of that revision.
    Held {
        revision: i64,
        by: Holder,
    },
    /// The holder changed meanwhile.
    Changed,
}

impl Seat<'_> {
    async fn take(&self, client: &Client, lease: i64) -> Result<Attempt, MeshError> {
        let key = self.key;
        let put = || {
            let options = PutOptions::new().with_lease(lease);
            TxnOp::put(key, self.candidate.value(), Some(options))
        };
        let revision = |answer: &TxnResponse| answer.header().map_or(0, ResponseHeader::revision);
        let won = |answer| Attempt::Won(Won { lease, key, ttl: self.ttl, revision: revision(answer) });
        let txn = Txn::new()
            .when([Compare::create_revision(key, CompareOp::Equal, 0)])
            .and_then([put()])
            .or_else([TxnOp::get(key, None)]);
        let what = || format!("standing for {key}");
        let answer = operate(Operation::CreateOnly, key, what, client.kv_client().txn(txn)).await?;
        if answer.succeeded() {
            return Ok(won(&answer));
        }
        let holder = answer.op_responses().into_iter().find_map(|op| match op {
            TxnOpResponse::Get(mut get) => get.take_kvs().into_iter().next(),
            _ => None,
        });
        let Some(holder) = holder else { return Ok(Attempt::Changed) };
        let by = self.candidate.judge(holder.value());
        // One agent runs per node, and one relay of a name: what an earlier life holds need not end first. Two that live
        // would take it from each other for ever, so who was elected once waits.
        if matches!(by, Holder::Namesake | Holder::Other) {
            return Ok(Attempt::Held { revision: revision(&answer), by });
        }
        let same = Compare::mod_revision(key, CompareOp::Equal, holder.mod_revision());
        let txn = Txn::new().when([same]).and_then([put()]);
        let what = || format!("taking over {key}");
        let taken = operate(Operation::Update, key, what, client.kv_client().txn(txn)).await?;
        Ok(if taken.succeeded() { won(&taken) } else { Attempt::Changed })
    }
}

impl Won {
    /// What must hold for every write: the key stands on our lease.
    pub(crate) fn fence(&self) -> (String, i64) {
        (self.key.to_owned(), self.lease)
    }

    /// Holds the key; returns when it is lost or can no longer be proved.
    pub(crate) async fn hold(&self, client: &Client) -> MeshError {
        tokio::select! {
            error = self.keep_alive(client) => error,
            // Also by a namesake, whose taking over leaves the lease alive.
            taken = until_event(client, self.key, self.revision, |_| true) => match taken {
                Ok(()) => lost_election(),
                Err(error) => error,
            }
        }
    }

    async fn keep_alive(&self, client: &Client) -> MeshError {
        let mut proved = Instant::now();
        loop {
            tokio::time::sleep(self.ttl / 3).await;
            let mut leases = client.lease_client();
            let left = (self.ttl * 2 / 3).saturating_sub(proved.elapsed());
            match tokio::time::timeout(left, leases.keep_alive(self.lease)).await {
                Ok(Ok(_)) => proved = Instant::now(),
                Ok(Err(error)) => return request_error("keeping the election".to_owned(), &error),
                Err(_) => {
                    let why = "no answer in time; another one may be elected, so this one stops writing for the cluster";
                    return broken("keeping the election".to_owned(), why.to_owned());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_elected_takes_nothing_from_a_living_namesake() {
        let (one, two) = (Candidate::new("relay one".into()), Candidate::new("relay one".into()));
        // One that starts takes over from whoever has its name: its earlier life, also that of an older program.
        for value in [two.value(), "relay one".to_owned()] {
            assert_eq!(one.judge(value.as_bytes()), Holder::EarlierLife, "{value}");
        }
        assert_eq!(one.judge(one.value().as_bytes()), Holder::Itself);
        one.elected.store(true, Ordering::Relaxed);
        assert_eq!(one.judge(two.value().as_bytes()), Holder::Namesake);
        assert_eq!(one.judge(one.value().as_bytes()), Holder::Itself);
        for other in ["relay", "relay two 0123456789abcdef", "relay two", ""] {
            assert_eq!(one.judge(other.as_bytes()), Holder::Other, "{other}");
        }
    }
}
