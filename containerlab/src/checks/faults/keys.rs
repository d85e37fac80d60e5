//! A cluster's etcd while a fault lasts: every change of its keys, from etcd's own watch.

use std::time::Duration;

use super::follow::Follow;
use crate::checks::access::Place;
use crate::checks::check::Failure;
use crate::checks::context::Context;
use crate::checks::inventory::Cluster;
use crate::checks::poll;

/// How long the watch may take to begin, and to tell of the probe.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long one probe is waited for while the watch begins.
const PROBE_PATIENCE: Duration = Duration::from_secs(2);
/// Keys that peers read; what else lies in etcd (`tombolo/`) may come and go.
const PUBLISHED: &str = "cilium/";
/// The key of the probe.
const PROBE: &str = "tombolo/lab/probe";
/// etcdctl as root, as on the etcd nodes of the lab.
pub(super) const ETCDCTL: &str = "ETCDCTL_API=3 exec etcdctl --endpoints https://127.0.0.1:2379 --cacert /etc/etcd/pki/ca.crt \
                       --cert /etc/etcd/pki/root.crt --key /etc/etcd/pki/root.key";

/// What etcdctl answers as root on a node that runs a member.
///
/// # Errors
/// When it fails.
pub(super) async fn etcdctl(context: &Context, node: &str, request: &str) -> Result<String, Failure> {
    context.access.text(&Place::node(node), &["sh", "-c", &format!("{ETCDCTL} {request}")]).await
}

/// Notes every change of the keys of a cluster's etcd.
pub(super) struct KeyWatch {
    cluster: String,
    place: Place,
    watch: Follow,
}

/// A change of a key: etcdctl prints it as three lines.
#[derive(Debug, PartialEq, Eq)]
enum Event<'a> {
    Put(&'a str),
    Delete(&'a str),
}

impl KeyWatch {
    /// Starts watching and waits until a key of its own was seen to come and go.
    ///
    /// # Errors
    /// When etcdctl cannot be started there or tells nothing.
    pub(super) async fn start(context: &Context, cluster: &Cluster) -> Result<Self, Failure> {
        let place = Place::node(&cluster.etcd);
        let script = format!("{ETCDCTL} watch --prefix ''");
        let what = format!("the watch on the etcd of {}", cluster.name);
        let watch = Follow::start(context, &place, &["sh", "-c", &script], &what)?;
        let started = Self { cluster: cluster.name.clone(), place, watch };
        // A probe written before the watch stands is not told: it is written again.
        poll::until(PATIENCE, || started.probe(context, PROBE_PATIENCE)).await?;
        Ok(started)
    }

    /// Writes and deletes a key and waits until the watch has told both: then it is alive, sees deletions, and has
    /// told every change that came before.
    async fn probe(&self, context: &Context, patience: Duration) -> Result<(), Failure> {
        let gone = |lines: &[String]| events(lines).filter(|event| *event == Event::Delete(PROBE)).count();
        let before = gone(&self.watch.said().lines);
        for verb in [format!("put {PROBE} x"), format!("del {PROBE}")] {
            etcdctl(context, &self.place.node, &verb).await?;
        }
        self.watch.wait_for(patience, |lines| gone(lines) > before).await
    }

    /// Fails when a published key was deleted; returns how many changes of published keys there were.
    ///
    /// # Errors
    /// The keys; or that the watch did not live to the end.
    pub(super) async fn judge(&self, context: &Context) -> Result<usize, Failure> {
        self.probe(context, PATIENCE).await?;
        self.watch.alive()?;
        let lines = self.watch.said().lines;
        let gone: Vec<&str> = events(&lines)
            .filter_map(|event| match event {
                Event::Delete(key) => key.starts_with(PUBLISHED).then_some(key),
                Event::Put(_) => None,
            })
            .collect();
        if gone.is_empty() {
            let put = |event: &Event| matches!(event, Event::Put(key) if key.starts_with(PUBLISHED));
            return Ok(events(&lines).filter(put).count());
        }
        let what = format!("no entry of cluster {} is withdrawn from its etcd", self.cluster);
        let got = format!("{} deletions: {}", gone.len(), gone.join(", "));
        Err(Failure::new(what, got, self.watch.look()))
    }
}

/// The changes that etcdctl printed: `PUT` or `DELETE`, the key, and the value (an empty line for a deletion).
fn events(lines: &[String]) -> impl Iterator<Item = Event<'_>> {
    let mut lines = lines.iter().map(String::as_str);
    std::iter::from_fn(move || {
        loop {
            match lines.next()? {
                "PUT" => {
                    let key = lines.next()?;
                    lines.next()?;
                    return Some(Event::Put(key));
                }
                "DELETE" => {
                    let key = lines.next()?;
                    lines.next()?;
                    return Some(Event::Delete(key));
                }
                // A value of several lines: go on at the next change.
                _ => {}
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_read_in_threes() {
        let lines: Vec<String> =
            ["PUT", "a", "DELETE", "DELETE", "a", "", "PUT", "b", "{", "}", "DELETE", "b", "", "PUT", "c"]
                .map(str::to_owned)
                .into();
        let all: Vec<Event> = events(&lines).collect();
        assert_eq!(all, [Event::Put("a"), Event::Delete("a"), Event::Put("b"), Event::Delete("b")]);
    }
}
