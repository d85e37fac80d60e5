//! Orders and etcd's answers in every order that they can come in.

use super::*;
use crate::wire::Kind;

/// The number of watches that etcd refuses.
const REFUSED: i64 = -1;
const DENIED: &str = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";

fn watch(ticket: Ticket) -> Watch {
    Watch { ticket, scope: Scope::Entries(Kind::Nodes), prefix: format!("p{ticket}/"), revision: 1 }
}

fn answer(number: i64) -> Answer {
    Answer {
        number,
        created: false,
        canceled: false,
        compacted: false,
        reason: String::new(),
        header: Ok(Header { etcd: 7, revision: 9, term: 2 }),
        last: None,
        events: Vec::new(),
    }
}

fn created(number: i64) -> Answer {
    Answer { created: true, ..answer(number) }
}

fn refused() -> Answer {
    Answer { created: true, canceled: true, reason: DENIED.to_owned(), ..answer(REFUSED) }
}

fn cancelled_by_us(number: i64) -> Answer {
    Answer { canceled: true, ..answer(number) }
}

/// What was sent since the last look: prefixes of watches, and numbers of those that were cancelled.
fn sent(watches: &mut Watches) -> Vec<String> {
    let text = |request| match request {
        Request::Watch(prefix, _) => prefix,
        Request::Cancel(number) => format!("cancel {number}"),
    };
    std::mem::take(&mut watches.requests).into_iter().map(text).collect()
}

/// The ticket of a watch that ended, and why.
fn ended(input: Option<Input>) -> Option<(Ticket, FailureKind)> {
    match input? {
        Input::WatchEnded(ticket, _, failure) => Some((ticket, failure.kind)),
        _ => None,
    }
}

/// The ticket of a watch that tells something.
fn told(input: Option<Input>) -> Option<Ticket> {
    match input? {
        Input::Events { ticket, .. } => Some(ticket),
        _ => None,
    }
}

#[test]
fn watches_are_asked_for_one_after_the_other() {
    let mut watches = Watches::new(watch(1));
    watches.carry_out(Order::Begin(watch(2)));
    watches.carry_out(Order::Begin(watch(3)));
    assert!(sent(&mut watches).is_empty());
    assert_eq!(told(watches.take(created(10))), Some(1));
    assert_eq!(sent(&mut watches), ["p2/"]);
    assert_eq!(told(watches.take(answer(10))), Some(1));
    assert!(sent(&mut watches).is_empty(), "that was no answer to the second");
    assert_eq!(ended(watches.take(refused())), Some((2, FailureKind::Denied)));
    assert_eq!(sent(&mut watches), ["p3/"]);
    assert_eq!(told(watches.take(created(11))), Some(3));
    let open: Vec<Ticket> = watches.into_open().map(|watch| watch.ticket).collect();
    assert_eq!(open, [1, 3]);
}

/// Nobody wants it any more, and etcd refuses it at that moment: nothing is cancelled, and refusals that come later are those of other
/// watches.
#[test]
fn a_watch_that_is_refused_while_it_is_given_up_hides_no_later_refusal() {
    let mut watches = Watches::new(watch(1));
    watches.carry_out(Order::End(1));
    watches.carry_out(Order::Begin(watch(2)));
    watches.carry_out(Order::Begin(watch(3)));
    assert_eq!(ended(watches.take(refused())), Some((1, FailureKind::Denied)));
    assert_eq!(sent(&mut watches), ["p2/"], "the refused one has ended by itself");
    assert_eq!(ended(watches.take(refused())), Some((2, FailureKind::Denied)));
    assert_eq!(sent(&mut watches), ["p3/"]);
    assert_eq!(told(watches.take(created(12))), Some(3));
}

#[test]
fn a_watch_that_stands_when_it_is_given_up_is_cancelled_and_says_no_more() {
    let mut watches = Watches::new(watch(1));
    watches.carry_out(Order::End(1));
    watches.carry_out(Order::Begin(watch(2)));
    watches.take(created(10));
    assert_eq!(sent(&mut watches), ["cancel 10", "p2/"]);
    assert_eq!(told(watches.take(answer(10))), None);
    // The word on it is not the answer to the next one.
    assert_eq!(ended(watches.take(cancelled_by_us(10))), None);
    assert_eq!(told(watches.take(created(11))), Some(2));
    watches.carry_out(Order::End(2));
    assert_eq!(sent(&mut watches), ["cancel 11"]);
    assert_eq!(ended(watches.take(cancelled_by_us(11))), None);
    assert_eq!(watches.into_open().count(), 0);
}

#[test]
fn one_that_waits_is_given_up_without_a_word() {
    let mut watches = Watches::new(watch(1));
    watches.carry_out(Order::Begin(watch(2)));
    watches.carry_out(Order::End(2));
    assert_eq!(told(watches.take(created(10))), Some(1));
    assert!(sent(&mut watches).is_empty());
}

#[test]
fn a_compacted_watch_says_so_and_the_next_one_is_asked_for() {
    let mut watches = Watches::new(watch(1));
    watches.carry_out(Order::Begin(watch(2)));
    watches.take(created(10));
    let compacted = Answer { canceled: true, compacted: true, ..answer(10) };
    assert_eq!(ended(watches.take(compacted)), Some((1, FailureKind::Compacted)));
    assert_eq!(told(watches.take(created(11))), Some(2));
}
