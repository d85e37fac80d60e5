//! TCP segments that had to be sent again. In a pod the kernel's count of each connection of the loads: its namespace also has
//! the kubelet's probes, of which a FIN sent again to a socket that waits (TIME-WAIT) looks like a loss. The outside client
//! speaks with nobody else and opens a connection for each request: there the namespace's count.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::try_join_all;

use crate::checks::access::Place;
use crate::checks::check::Failure;
use crate::checks::context::Context;
use crate::checks::poll;

/// The kernel's counters of one network namespace.
const COUNTERS: [&str; 3] = ["cat", "/proc/net/snmp", "/proc/net/netstat"];
/// The kernel's TCP sockets of one network namespace.
const SOCKETS: [&str; 3] = ["cat", "/proc/net/tcp", "/proc/net/tcp6"];
/// The open connections of the loads, a line each, with what the kernel knows of them.
const CONNECTIONS: [&str; 5] = ["ss", "-tinHO", "state", "established", "( sport = :9000 or dport = :9000 )"];
/// How long sockets of earlier checks may take to give up: the kernel's own patience with a FIN that nobody acknowledges.
const PATIENCE: Duration = Duration::from_secs(120);

/// Counters of one connection, or of a whole network namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counters {
    /// Segments sent again, for whatever reason.
    again: u64,
    /// Of these, those that the peer says it had already (DSACK, RFC 2883): nothing was lost.
    needless: u64,
}

/// The counters at several places at one time, by connection (both ends); by no connection where they are those of a namespace.
pub(super) struct Segments(BTreeMap<(Place, String), Counters>);

impl Segments {
    /// Reads the counters of all places.
    ///
    /// # Errors
    /// When one cannot be read.
    pub(super) async fn read(
        context: &Context,
        places: impl Iterator<Item = Place>,
    ) -> Result<Self, Failure> {
        let one = |place: Place| async move {
            let text = context.access.text(&place, command(&place)).await?;
            if place.pod.is_some() {
                let all = connections(&text);
                return Ok(all.map(|(ends, counters)| ((place.clone(), ends), counters)).collect());
            }
            let counters = parse(&text).ok_or_else(|| {
                Failure::tool("reading TCP's counters", "RetransSegs is not there", look(context, &place))
            })?;
            Ok::<Vec<_>, Failure>(vec![((place, String::new()), counters)])
        };
        Ok(Self(try_join_all(places.map(one)).await?.into_iter().flatten().collect()))
    }

    /// Fails when a segment was lost since `before`: sent again, and the peer did not have it. Returns how many were
    /// sent again without need.
    ///
    /// # Errors
    /// Where, and how many.
    pub(super) fn none_lost_since(
        &self,
        before: &Self,
        context: &Context,
        during: &str,
    ) -> Result<u64, Failure> {
        if self.0.keys().all(|(_, ends)| ends.is_empty()) {
            let look = self.0.keys().next().map_or_else(String::new, |(place, _)| look(context, place));
            return Err(Failure::tool("counting by connection", "no load has an open one", look));
        }
        let mut lost = Vec::new();
        let mut needless = 0;
        for (key @ (place, ends), now) in &self.0 {
            let then = before.0.get(key).copied().unwrap_or_default();
            let (again, had) =
                (now.again.saturating_sub(then.again), now.needless.saturating_sub(then.needless));
            needless += had;
            if again > had {
                lost.push((
                    place,
                    format!("{place} {ends} sent {again} segments again, {had} of them without need"),
                ));
            }
        }
        let Some((first, _)) = lost.first() else { return Ok(needless) };
        let words: Vec<&str> = lost.iter().map(|(_, words)| words.as_str()).collect();
        let what = format!("no TCP segment is lost {during}");
        Err(Failure::new(what, words.join("; "), look(context, first)))
    }
}

/// Waits until no socket of any place has anything under way that it could send again: what an earlier check left behind
/// would be counted as the loss of the next.
///
/// # Errors
/// Where something is still under way.
pub(super) async fn quiet(context: &Context, places: impl Iterator<Item = Place>) -> Result<(), Failure> {
    let places: Vec<Place> = places.collect();
    let all = || async {
        for place in &places {
            let text = context.access.text(place, &SOCKETS).await?;
            if let Some(socket) = text.lines().find(|line| waits(line)) {
                let look = context.access.shown(place, &SOCKETS);
                return Err(Failure::new(
                    "sockets that have nothing under way before the fault",
                    socket.trim(),
                    look,
                ));
            }
        }
        Ok(())
    };
    poll::until(PATIENCE, all).await.map(|_| ())
}

/// Whether a line of `/proc/net/tcp` is a socket whose timer is that of a segment that was sent (1) or of a window that is
/// closed (4): the sixth column is `timer:when` (Documentation/networking/proc_net_tcp.rst).
fn waits(line: &str) -> bool {
    let timer = line.split_whitespace().nth(5).and_then(|column| column.split_once(':'));
    matches!(timer, Some(("01" | "04", _)))
}

fn look(context: &Context, place: &Place) -> String {
    context.access.shown(place, command(place))
}

/// What tells the counters of a place.
fn command(place: &Place) -> &'static [&'static str] {
    if place.pod.is_some() { &CONNECTIONS } else { &COUNTERS }
}

/// Both ends and the counters of each line of `ss -tinHO` (`... LOCAL PEER ... retrans:NOW/TOTAL ... dsack_dups:N ...`; what is
/// zero is left out).
fn connections(text: &str) -> impl Iterator<Item = (String, Counters)> {
    text.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, _, local, peer, info @ ..] = words.as_slice() else { return None };
        let value = |name: &str| info.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix(':'));
        let again = value("retrans").and_then(|both| both.split_once('/')).map(|(_, total)| total);
        let number = |text: Option<&str>| text.and_then(|text| text.parse().ok()).unwrap_or(0);
        let counters = Counters { again: number(again), needless: number(value("dsack_dups")) };
        Some((format!("{local} {peer}"), counters))
    })
}

/// Finds the counters in the two files: lines of names, each followed by one of numbers.
fn parse(text: &str) -> Option<Counters> {
    let lines: Vec<&str> = text.lines().collect();
    let value = |group: &str, name: &str| {
        let pairs = lines.iter().zip(lines.iter().skip(1));
        let (names, numbers) = pairs
            .filter(|(names, _)| names.split(' ').next() == Some(group))
            .map(|(a, b)| (*a, *b))
            .next()?;
        let at = names.split(' ').position(|word| word == name)?;
        numbers.split(' ').nth(at)?.parse::<u64>().ok()
    };
    let needless = |name| value("TcpExt:", name).unwrap_or(0);
    Some(Counters {
        again: value("Tcp:", "RetransSegs")?,
        needless: needless("TCPDSACKRecv") + needless("TCPDSACKOfoRecv"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_with_a_segment_under_way_waits() {
        let line = |timer: &str| {
            format!(
                "   1: 0100007F:1F90 0100007F:D1F2 01 00000000:00000000 {timer}:00000014 00000000     0        0 5 1 0 20 4 0 10 -1"
            )
        };
        assert!(waits(&line("01")) && waits(&line("04")));
        assert!(!waits(&line("00")) && !waits(&line("02")) && !waits(&line("03")));
        assert!(!waits(
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"
        ));
    }

    #[test]
    fn each_connection_has_its_counters() {
        let text = "0      0      10.1.1.5:9000 10.2.1.3:56810 cubic wscale:10,10 rto:204 retrans:0/3 dsack_dups:1 rcv_space:14600\n\
                    0      0      [fd00::5]:41 [fd00::3]:9000 cubic wscale:10,10 rto:204\n\n";
        let all: Vec<_> = connections(text).collect();
        let expected = [
            ("10.1.1.5:9000 10.2.1.3:56810".to_owned(), Counters { again: 3, needless: 1 }),
            ("[fd00::5]:41 [fd00::3]:9000".to_owned(), Counters::default()),
        ];
        assert_eq!(all, expected);
    }

    #[test]
    fn the_counters_are_found_by_name() {
        let text = "Ip: Forwarding\nIp: 1\nTcp: InSegs RetransSegs InErrs\nTcp: 124 7 0\nTcpExt: A TCPDSACKRecv TCPDSACKOfoRecv\nTcpExt: 1 2 3\n";
        assert_eq!(parse(text), Some(Counters { again: 7, needless: 5 }));
        assert_eq!(parse("Tcp: InSegs\nTcp: 4\n"), None);
        assert_eq!(parse(""), None);
    }
}
