//! All watches of one follower, on one stream: a stream costs etcd, and this side, tens of kilobytes, and there are seven
//! ranges of a cluster, hundreds of clusters, and thousands of readers.
//!
//! Watches are asked for one after the other: an etcd that refuses one does not always say which.

use super::event::{Failure, FailureKind, Header, Input, KeyEvent, Scope, Ticket};
use super::requests::{MAX_ANSWER_BYTES, header};
use crate::error::MeshError;
use crate::etcd::{NO_LEADER, kind_of, request, request_error};
use crate::wire::key;
use etcd_client::{
    Client, EventType, WatchOptions, WatchRequestSender, WatchResponse, WatchResponseStream, WatchStream,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use tokio::sync::mpsc;

/// A range to be watched.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) ticket: Ticket,
    pub(super) scope: Scope,
    pub(super) prefix: String,
    pub(super) revision: i64,
}

/// What the driver wants of the stream. There is one order for each list that begins or ends, so few can wait.
#[derive(Debug)]
pub(super) enum Order {
    Begin(Watch),
    /// Nobody wants the watch of that ticket any more.
    End(Ticket),
}

impl Watch {
    fn options(&self) -> WatchOptions {
        // Progress notifications move the position of a quiet prefix on, so that it is not compacted away.
        WatchOptions::new()
            .with_range(key::range_end(&self.prefix))
            .with_start_revision(self.revision)
            .with_progress_notify()
    }

    fn what(&self) -> String {
        format!("watching {}", self.prefix)
    }

    fn ended(&self, failure: Failure) -> Input {
        Input::WatchEnded(self.ticket, self.scope, failure)
    }
}

/// Carries orders out until nobody gives any, or listens, any more.
pub(super) async fn run<T: Future<Output = bool>>(
    client: Client,
    mut orders: mpsc::UnboundedReceiver<Order>,
    tell: impl Fn(Input) -> T,
) {
    while let Some(order) = orders.recv().await {
        let Order::Begin(first) = order else { continue };
        // In a future of its own: what opening a stream needs is large in this library, and the stream lasts.
        let opening = Box::pin(open(client.clone(), &first));
        let told = match opening.await {
            Ok(stream) => {
                let (requests, responses) = stream.split();
                Watches::new(requests, first).follow(responses, &mut orders, &tell).await
            }
            Err(error) => tell(first.ended(Failure::from(&error))).await,
        };
        if !told {
            return;
        }
    }
}

async fn open(client: Client, watch: &Watch) -> Result<WatchStream, MeshError> {
    let mut watches = client.watch_client().max_decoding_message_size(MAX_ANSWER_BYTES);
    request(|| watch.what(), watches.watch(watch.prefix.as_str(), Some(watch.options()))).await
}

struct Watches {
    requests: WatchRequestSender,
    /// By etcd's number.
    known: BTreeMap<i64, Watch>,
    /// Numbers of watches that were given up, until etcd says that they are.
    given_up: BTreeSet<i64>,
    /// The one that etcd has not answered yet.
    asked: Option<Watch>,
    /// Whether nobody wants that one any more.
    unwanted: bool,
    waiting: VecDeque<Watch>,
}

impl Watches {
    const fn new(requests: WatchRequestSender, first: Watch) -> Self {
        Self {
            requests,
            known: BTreeMap::new(),
            given_up: BTreeSet::new(),
            asked: Some(first),
            unwanted: false,
            waiting: VecDeque::new(),
        }
    }

    /// Follows the stream to its end; false if nobody listens any more.
    async fn follow<T: Future<Output = bool>>(
        mut self,
        mut responses: WatchResponseStream,
        orders: &mut mpsc::UnboundedReceiver<Order>,
        tell: &impl Fn(Input) -> T,
    ) -> bool {
        let failure = loop {
            let carried_out = tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => self.carry_out(order).await,
                    None => return false,
                },
                response = responses.message() => match response {
                    Ok(Some(response)) => {
                        if let Some(input) = self.input(&response)
                            && !tell(input).await
                        {
                            return false;
                        }
                        self.settle(&response).await
                    }
                    Ok(None) => {
                        let text = "etcd closed the stream of the watches; it is probably stopping".to_owned();
                        break Failure { kind: FailureKind::Transport, text };
                    }
                    Err(error) => break Failure::from(&request_error("watching".to_owned(), &error)),
                },
            };
            if let Err(error) = carried_out {
                break Failure::from(&request_error("asking for a watch".to_owned(), &error));
            }
        };
        for watch in self.known.values().chain(&self.asked).chain(&self.waiting) {
            if !tell(watch.ended(failure.clone())).await {
                return false;
            }
        }
        true
    }

    async fn carry_out(&mut self, order: Order) -> Result<(), etcd_client::Error> {
        match order {
            Order::Begin(watch) => {
                self.waiting.push_back(watch);
                self.ask_next().await
            }
            Order::End(ticket) => {
                self.waiting.retain(|watch| watch.ticket != ticket);
                if self.asked.as_ref().is_some_and(|watch| watch.ticket == ticket) {
                    // Its number is known when etcd has answered.
                    self.unwanted = true;
                    return Ok(());
                }
                let number = self.known.iter().find(|(_, watch)| watch.ticket == ticket).map(|(id, _)| *id);
                match number {
                    Some(number) => self.end(number).await,
                    None => Ok(()),
                }
            }
        }
    }

    async fn end(&mut self, number: i64) -> Result<(), etcd_client::Error> {
        self.known.remove(&number);
        self.given_up.insert(number);
        self.requests.cancel(number).await
    }

    /// What an answer to the one that was asked for makes possible.
    async fn settle(&mut self, response: &WatchResponse) -> Result<(), etcd_client::Error> {
        if self.asked.is_none() && std::mem::take(&mut self.unwanted) {
            // One that was refused has ended by itself, and perhaps without a number of its own.
            let number = response.watch_id();
            if self.known.contains_key(&number) {
                self.end(number).await?;
            }
        }
        self.ask_next().await
    }

    async fn ask_next(&mut self) -> Result<(), etcd_client::Error> {
        if self.asked.is_none()
            && let Some(watch) = self.waiting.pop_front()
        {
            self.requests.watch(watch.prefix.as_str(), Some(watch.options())).await?;
            self.asked = Some(watch);
        }
        Ok(())
    }

    /// What a response says; `None` if it is of a watch that nobody wants any more.
    fn input(&mut self, response: &WatchResponse) -> Option<Input> {
        let number = response.watch_id();
        if response.canceled() && self.given_up.remove(&number) {
            return None;
        }
        let answers = response.created() || (response.canceled() && !self.known.contains_key(&number));
        if answers && let Some(watch) = self.asked.take() {
            self.known.insert(number, watch);
        }
        let watch = self.known.get(&number)?;
        if response.canceled() {
            let watch = self.known.remove(&number)?;
            return Some(watch.ended(cancelled(&watch.what(), response)));
        }
        let header = match header(response.header(), "watching") {
            Ok(header) => header,
            Err(error) => return Some(watch.ended(Failure::from(&error))),
        };
        let events = response.events().iter().map(event).collect();
        let seen = seen(response, header);
        Some(Input::Events { ticket: watch.ticket, scope: watch.scope, header, seen, events })
    }
}

/// Up to which revision the watch has told everything with this response; 0 when it does not say.
fn seen(response: &WatchResponse, header: Header) -> i64 {
    let last = response.events().last().and_then(|event| event.kv());
    match last {
        Some(kv) => kv.mod_revision(),
        None if response.created() => 0,
        None => header.revision,
    }
}

fn event(event: &etcd_client::Event) -> KeyEvent {
    let (key, value) = event.kv().map(|kv| (kv.key().to_vec(), kv.value().to_vec())).unwrap_or_default();
    match event.event_type() {
        EventType::Put => KeyEvent::Put(key, value),
        EventType::Delete => KeyEvent::Delete(key),
    }
}

/// A cancelled watch is an answer, not a broken connection: it says whether to list again or to give up.
fn cancelled(what: &str, response: &WatchResponse) -> Failure {
    let reason = response.cancel_reason();
    let kind = if response.compact_revision() != 0 { FailureKind::Compacted } else { kind_of(reason) };
    let remedy = match kind {
        FailureKind::Denied => "; give the certificate's user a role that covers this range",
        FailureKind::Compacted => "; the list starts over",
        FailureKind::NoLeader => NO_LEADER,
        FailureKind::Transport | FailureKind::TooLarge | FailureKind::Other => "",
    };
    let reason = if reason.is_empty() { "no reason given" } else { reason };
    Failure { kind, text: format!("{what}: cancelled by etcd: {reason}{remedy}") }
}
