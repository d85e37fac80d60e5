//! Two writers of one key: told, so that it does not look like a network that flaps.

use serde::Serialize;
use std::collections::BTreeMap;

/// Most keys that are remembered; the one not seen for longest goes first.
pub(super) const MOST: usize = 64;
/// A key that was changed this often has two writers: once or twice may be an administrator.
const TIMES: u64 = 3;
/// How long ago the last time may be, in seconds: three audits.
const SECS: i64 = 900;

/// How often somebody else wrote a key of ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Contest {
    /// Times it was found changed or deleted.
    pub times: u64,
    /// The last time, in seconds since 1970.
    pub last_unix_secs: i64,
}

/// Keys of ours that somebody else wrote, at most 64.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Contested(BTreeMap<String, Contest>);

impl Contested {
    /// The keys, and how often each was written.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Contest)> {
        self.0.iter().map(|(key, contest)| (key.as_str(), *contest))
    }

    /// They were found changed `now` (seconds since 1970).
    pub(super) fn note(&mut self, keys: &[String], now: i64) {
        for key in keys {
            if self.0.len() >= MOST && !self.0.contains_key(key) {
                let oldest = self.0.iter().min_by_key(|(_, contest)| contest.last_unix_secs);
                if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                    self.0.remove(&oldest);
                }
            }
            let contest = self.0.entry(key.clone()).or_default();
            contest.times = contest.times.saturating_add(1);
            contest.last_unix_secs = now;
        }
    }

    /// What to say of it `now`.
    pub(super) fn warning(&self, now: i64) -> Option<String> {
        let fought = |(_, contest): &(&str, Contest)| {
            contest.times >= TIMES && now.saturating_sub(contest.last_unix_secs) <= SECS
        };
        let mut keys = self.iter().filter(fought);
        let (key, contest) = keys.next()?;
        let more = match keys.count() {
            0 => String::new(),
            more => format!(" (and {more} other keys)"),
        };
        Some(format!(
            "somebody else writes {}{more}, {} times so far; is there another agent of this node name, or another cluster of this name, in the same etcd?",
            key.escape_debug(),
            contest.times
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_again_and_again_is_told_until_it_ends() {
        let (mut contested, keys) = (Contested::default(), ["a/node".to_owned()]);
        for now in [100, 200] {
            contested.note(&keys, now);
            assert_eq!(contested.warning(now), None, "once or twice may be an administrator");
        }
        contested.note(&keys, 300);
        let told = contested.warning(300).unwrap();
        assert!(told.contains("a/node, 3 times"), "{told}");
        assert_eq!(contested.warning(300 + SECS + 1), None);
        // Bounded: the oldest goes.
        let many: Vec<String> = (0..MOST).map(|number| format!("b/{number}")).collect();
        contested.note(&many, 400);
        assert_eq!(
            (contested.iter().count(), contested.iter().any(|(key, _)| key == "a/node")),
            (MOST, false)
        );
    }
}
