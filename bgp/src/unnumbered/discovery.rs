//! When to advertise and who is on the other end, without I/O (RFC 4861 sections 6.2.4, 6.2.6 and 10).

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use super::advert::{self, Heard};
use crate::fsm::Jitter;

/// Advertisements sent quickly at the start.
const INITIAL: u32 = 3;
/// MIN_DELAY_BETWEEN_RAS: advertisements to all nodes are at least this far apart.
const MIN_DELAY: Duration = Duration::from_secs(3);
/// Longest time between two. A router that comes back is found as quickly.
const INTERVAL: Duration = Duration::from_secs(10);
/// Solicitations sent until a router is heard, and the time between them (RTR_SOLICITATION_INTERVAL).
const SOLICITATIONS: u32 = 3;
const SOLICITATION_INTERVAL: Duration = Duration::from_secs(4);
/// A router that was not heard for so long, one of our intervals and a half, may be replaced by another on the link: it may be the same one
/// with a new address. One that advertises more rarely stays as long as no other is heard.
const SILENT_AFTER: Duration = Duration::from_secs(15);
/// A router that is heard is told of at most this often.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// What is to be sent, to all nodes or all routers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    Advertisement,
    Solicitation,
}

/// The state of one interface.
#[derive(Debug)]
pub(super) struct Discovery {
    router: Option<Router>,
    advertise_at: Instant,
    advertised_at: Option<Instant>,
    advertised: u32,
    solicit_at: Option<Instant>,
    solicited: u32,
    jitter: Jitter,
}

#[derive(Clone, Copy, Debug)]
struct Router {
    address: Ipv6Addr,
    heard_at: Instant,
    told_at: Instant,
}

impl Discovery {
    pub(super) const fn new(now: Instant, seed: u64) -> Self {
        Self {
            router: None,
            advertise_at: now,
            advertised_at: None,
            advertised: 0,
            solicit_at: Some(now),
            solicited: 0,
            jitter: Jitter::new(seed),
        }
    }

    pub(super) fn next_deadline(&self) -> Instant {
        self.solicit_at.map_or(self.advertise_at, |at| at.min(self.advertise_at))
    }

    /// What is due.
    pub(super) fn due(&mut self, now: Instant) -> Option<Message> {
        if self.solicit_at.is_some_and(|at| at <= now) {
            self.solicited += 1;
            self.solicit_at = (self.solicited < SOLICITATIONS).then(|| now + SOLICITATION_INTERVAL);
            return Some(Message::Solicitation);
        }
        if self.advertise_at > now {
            return None;
        }
        self.advertised += 1;
        self.advertised_at = Some(now);
        let wait = if self.advertised < INITIAL { MIN_DELAY } else { self.jitter.shorten(INTERVAL) };
        self.advertise_at = now + wait;
        Some(Message::Advertisement)
    }

    /// A message that came. Gives the router to tell of.
    pub(super) fn heard(
        &mut self,
        now: Instant,
        source: Ipv6Addr,
        hop_limit: u8,
        bytes: &[u8],
    ) -> Option<Ipv6Addr> {
        match advert::heard(source, hop_limit, bytes)? {
            Heard::Solicitation => {
                self.answer(now);
                None
            }
            Heard::Advertisement => self.router(now, source),
        }
    }

    /// Advertises as soon as the rate allows.
    fn answer(&mut self, now: Instant) {
        let earliest = self.advertised_at.map_or(now, |at| (at + MIN_DELAY).max(now));
        self.advertise_at = self.advertise_at.min(earliest);
    }

    fn router(&mut self, now: Instant, address: Ipv6Addr) -> Option<Ipv6Addr> {
        self.solicit_at = None;
        match &mut self.router {
            Some(known) if known.address == address => {
                known.heard_at = now;
                if now < known.told_at + TELL_EVERY {
                    return None;
                }
                known.told_at = now;
            }
            // The first router on the link is the peer, until it is silent.
            Some(known) if now < known.heard_at + SILENT_AFTER => return None,
            other => {
                *other = Some(Router { address, heard_at: now, told_at: now });
                // It may be waiting for ours.
                self.answer(now);
            }
        }
        Some(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    const B: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

    fn run(discovery: &mut Discovery, from: Instant, secs: u64) -> Vec<(Message, f64)> {
        let mut sent = Vec::new();
        while discovery.next_deadline() <= from + Duration::from_secs(secs) {
            let at = discovery.next_deadline();
            let message = discovery.due(at).unwrap();
            sent.push((message, (at - from).as_secs_f64()));
        }
        sent
    }

    #[test]
    fn advertisements_are_frequent_and_never_closer_than_three_seconds() {
        let now = Instant::now();
        let mut discovery = Discovery::new(now, 1);
        let sent = run(&mut discovery, now, 600);
        let times = |wanted| sent.iter().filter(move |(message, _)| *message == wanted).map(|(_, at)| *at);
        assert_eq!(times(Message::Solicitation).collect::<Vec<_>>(), [0.0, 4.0, 8.0]);
        let adverts: Vec<f64> = times(Message::Advertisement).collect();
        let gaps: Vec<f64> = adverts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(adverts[0] == 0.0 && gaps.iter().all(|gap| (3.0..=10.0).contains(gap)), "{gaps:?}");
        assert!(adverts.len() > 60);
    }

    #[test]
    fn solicitations_are_answered_within_the_rate() {
        let now = Instant::now();
        let mut discovery = Discovery::new(now, 1);
        run(&mut discovery, now, 60);
        let last = discovery.advertised_at.unwrap();
        for _ in 0..1000 {
            assert_eq!(discovery.heard(last, A, 255, &advert::solicitation()), None);
        }
        assert_eq!(discovery.next_deadline(), last + MIN_DELAY);
    }

    #[test]
    fn the_first_router_stays_until_it_is_silent() {
        let now = Instant::now();
        let later = |secs| now + Duration::from_secs(secs);
        let mut discovery = Discovery::new(now, 1);
        let advert = advert::advertisement();
        assert_eq!(discovery.heard(now, A, 255, &advert), Some(A));
        assert_eq!(discovery.heard(now, A, 255, &advert), None, "told once");
        assert_eq!(discovery.heard(later(2), A, 255, &advert), Some(A));
        assert_eq!(discovery.heard(later(16), B, 255, &advert), None);
        assert_eq!(discovery.heard(later(18), B, 64, &advert), None, "not from this link");
        assert_eq!(discovery.heard(later(18), B, 255, &advert), Some(B));
        assert!(run(&mut discovery, now, 20).iter().all(|(message, _)| *message == Message::Advertisement));
    }
}
