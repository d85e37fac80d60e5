//! All watches of one follower, on one stream: a stream costs etcd, and this side, tens of kilobytes, and there are seven
//! ranges of a cluster, hundreds of clusters, and thousands of readers.
//!
//! Watches are asked for one after the other: an etcd that refuses one does not always say which.

use super::event::{Failure, FailureKind, Header, Input, KeyEvent, Scope, Ticket};
use super::requests::{MAX_ANSWER_BYTES, header};
use crate::error::MeshError;
use crate::etcd::{NO_LEADER, kind_of, request, request_error};
use crate::wire::key;
use etcd_client::{Client, EventType, WatchOptions, WatchRequestSender, WatchResponse, WatchStream};
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

/// What is to be sent to etcd.
#[derive(Debug)]
enum Request {
    Watch(String, WatchOptions),
    Cancel(i64),
}

/// What etcd sent, of one watch.
#[derive(Debug)]
struct Answer {
    number: i64,
    created: bool,
    canceled: bool,
    compacted: bool,
    reason: String,
    header: Result<Header, MeshError>,
    /// The revision of the last event.
    last: Option<i64>,
    events: Vec<KeyEvent>,
}

impl From<&WatchResponse> for Answer {
    fn from(response: &WatchResponse) -> Self {
        let last = response.events().last().and_then(|event| event.kv());
        Self {
            number: response.watch_id(),
            created: response.created(),
            canceled: response.canceled(),
            compacted: response.compact_revision() != 0,
            reason: response.cancel_reason().to_owned(),
            header: header(response.header(), "watching"),
            last: last.map(etcd_client::KeyValue::mod_revision),
            events: response.events().iter().map(event).collect(),
        }
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
            Ok(stream) => follow(Watches::new(first), stream, &mut orders, &tell).await,
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

/// Follows a stream to its end; false if nobody listens any more.
async fn follow<T: Future<Output = bool>>(
    mut watches: Watches,
    stream: WatchStream,
    orders: &mut mpsc::UnboundedReceiver<Order>,
    tell: &impl Fn(Input) -> T,
) -> bool {
    let (mut requests, mut responses) = stream.split();
    let failure = loop {
        tokio::select! {
            order = orders.recv() => match order {
                Some(order) => watches.carry_out(order),
                None => return false,
            },
            response = responses.message() => match response {
                Ok(Some(response)) => {
                    if let Some(input) = watches.take(Answer::from(&response))
                        && !tell(input).await
                    {
                        return false;
                    }
                }
                Ok(None) => {
                    let text = "etcd closed the stream of the watches; it is probably stopping".to_owned();
                    break Failure { kind: FailureKind::Transport, text };
                }
                Err(error) => break Failure::from(&request_error("watching".to_owned(), &error)),
            },
        }
        if let Err(error) = send(&mut watches, &mut requests).await {
            break Failure::from(&request_error("asking for a watch".to_owned(), &error));
        }
    };
    for watch in watches.into_open() {
        if !tell(watch.ended(failure.clone())).await {
            return false;
        }
    }
    true
}

async fn send(watches: &mut Watches, stream: &mut WatchRequestSender) -> Result<(), etcd_client::Error> {
    while let Some(request) = watches.requests.pop_front() {
        match request {
            Request::Watch(prefix, options) => stream.watch(prefix, Some(options)).await?,
            Request::Cancel(number) => stream.cancel(number).await?,
        }
    }
    Ok(())
}

/// The watches of a stream, without the stream.
struct Watches {
    /// What is to be sent, in this order.
    requests: VecDeque<Request>,
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
    /// Those of a stream that was opened with the first one.
    const fn new(first: Watch) -> Self {
        Self {
            requests: VecDeque::new(),
            known: BTreeMap::new(),
            given_up: BTreeSet::new(),
            asked: Some(first),
            unwanted: false,
            waiting: VecDeque::new(),
        }
    }

    /// Those that end with the stream.
    fn into_open(self) -> impl Iterator<Item = Watch> {
        self.known.into_values().chain(self.asked).chain(self.waiting)
    }

    fn carry_out(&mut self, order: Order) {
        match order {
            Order::Begin(watch) => {
                self.waiting.push_back(watch);
                self.ask_next();
            }
            Order::End(ticket) => {
                self.waiting.retain(|watch| watch.ticket != ticket);
                if self.asked.as_ref().is_some_and(|watch| watch.ticket == ticket) {
                    // Its number is known when etcd has answered.
                    self.unwanted = true;
                    return;
                }
                let number = self.known.iter().find(|(_, watch)| watch.ticket == ticket).map(|(id, _)| *id);
                number.into_iter().for_each(|number| self.end(number));
            }
        }
    }

    fn end(&mut self, number: i64) {
        self.known.remove(&number);
        self.given_up.insert(number);
        self.requests.push_back(Request::Cancel(number));
    }

    fn ask_next(&mut self) {
        if self.asked.is_none()
            && let Some(watch) = self.waiting.pop_front()
        {
            self.requests.push_back(Request::Watch(watch.prefix.clone(), watch.options()));
            self.asked = Some(watch);
        }
    }

    /// Takes in what etcd sent, and does what an answer to the one that was asked for makes possible.
    fn take(&mut self, answer: Answer) -> Option<Input> {
        let number = answer.number;
        let input = self.input(answer);
        // One that was refused has ended by itself, and perhaps without a number of its own.
        if self.asked.is_none() && std::mem::take(&mut self.unwanted) && self.known.contains_key(&number) {
            self.end(number);
        }
        self.ask_next();
        input
    }

    /// What an answer says; `None` if it is of a watch that nobody wants any more.
    fn input(&mut self, answer: Answer) -> Option<Input> {
        let number = answer.number;
        if answer.canceled && self.given_up.remove(&number) {
            return None;
        }
        let answers = answer.created || (answer.canceled && !self.known.contains_key(&number));
        if answers && let Some(watch) = self.asked.take() {
            self.known.insert(number, watch);
        }
        let watch = self.known.get(&number)?;
        if answer.canceled {
            let watch = self.known.remove(&number)?;
            return Some(watch.ended(cancelled(&watch.what(), &answer)));
        }
        let header = match answer.header {
            Ok(header) => header,
            Err(error) => return Some(watch.ended(Failure::from(&error))),
        };
        // Up to which revision the watch has told everything; 0 when that is not said.
        let seen = answer.last.unwrap_or(if answer.created { 0 } else { header.revision });
        let (ticket, scope) = (watch.ticket, watch.scope);
        Some(Input::Events { ticket, scope, header, seen, events: answer.events })
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
fn cancelled(what: &str, answer: &Answer) -> Failure {
    let reason = answer.reason.as_str();
    let kind = if answer.compacted { FailureKind::Compacted } else { kind_of(reason) };
    let remedy = match kind {
        FailureKind::Denied => "; give the certificate's user a role that covers this range",
        FailureKind::Compacted => "; the list starts over",
        FailureKind::NoLeader => NO_LEADER,
        FailureKind::Transport | FailureKind::TooLarge | FailureKind::Other => "",
    };
    let reason = if reason.is_empty() { "no reason given" } else { reason };
    Failure { kind, text: format!("{what}: cancelled by etcd: {reason}{remedy}") }
}

#[cfg(test)]
#[path = "watches_tests.rs"]
mod tests;
