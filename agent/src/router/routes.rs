//! From learned routes to kernel routes: one each, but for the prefixes that the router's own links are in.

use crate::daemon::drive::Driver;
use crate::daemon::network::Seen;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::watch;
use tombolo_base::prefix::Prefix;
use tombolo_base::source::Source;
use tombolo_base::table::{Batch, Snapshot, Table, Writer};
use tombolo_topology::{LearnedRoute, RouteEntry, RouteOrigin};

/// Plans until cancelled. The cost follows what changed.
pub(crate) async fn plan(
    driver: Driver,
    learned: Table<LearnedRoute>,
    mut network: watch::Receiver<Option<Arc<Seen>>>,
    out: Writer<RouteEntry>,
) {
    let mut changes = learned.changes();
    let mut own = BTreeSet::new();
    loop {
        tokio::select! {
            () = driver.cancel.cancelled() => return,
            batch = changes.next() => step(&batch, &own, &out),
            changed = network.changed() => {
                if changed.is_err() {
                    return;
                }
                let seen = network.borrow_and_update().clone();
                let now = seen.as_deref().map(links).unwrap_or_default();
                let touched: BTreeSet<Prefix> = own.symmetric_difference(&now).copied().collect();
                own = now;
                write(&touched, &learned.snapshot(), &own, &out);
            }
        }
    }
}

/// The prefixes that the router's links are in: the kernel has routes to them, which none that is learned may replace.
fn links(seen: &Seen) -> BTreeSet<Prefix> {
    seen.addresses.iter().filter_map(|a| Prefix::new(a.address.addr(), a.address.prefix_len())).collect()
}

fn step(batch: &Batch<LearnedRoute>, own: &BTreeSet<Prefix>, out: &Writer<RouteEntry>) {
    let touched: BTreeSet<Prefix> = batch.keys.iter().map(|(prefix, _)| *prefix).collect();
    write(&touched, &batch.snapshot, own, out);
    if !batch.sources_changed {
        return;
    }
    // A source is ready after its rows, and one that is gone holds nothing.
    out.commit(|txn| {
        let known: Vec<Source> = txn.current().sources().map(|(source, _)| *source).collect();
        for source in known.iter().filter(|source| batch.snapshot.source_state(source).is_none()) {
            txn.drain_source(source);
        }
        for (source, state) in batch.snapshot.sources() {
            txn.set_source(source, state);
        }
    });
}

fn write(
    touched: &BTreeSet<Prefix>,
    learned: &Snapshot<LearnedRoute>,
    own: &BTreeSet<Prefix>,
    out: &Writer<RouteEntry>,
) {
    out.commit(|txn| {
        for prefix in touched {
            match entry(*prefix, learned).filter(|_| !own.contains(prefix)) {
                Some(row) => drop(txn.upsert(row)),
                None => drop(txn.remove(prefix)),
            }
        }
    });
}

fn entry(prefix: Prefix, learned: &Snapshot<LearnedRoute>) -> Option<RouteEntry> {
    let row = learned.from_key(&(prefix, Source::Manifests)).next().filter(|row| row.prefix == prefix)?;
    Some(RouteEntry {
        source: row.source,
        prefix,
        origin: RouteOrigin::Bgp,
        next_hops: row.next_hops.clone(),
        device: None,
        source_address: None,
        mtu: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tombolo_base::source::SourceState;
    use tombolo_topology::LearnedNextHop;

    fn learned(prefix: &str, via: &str) -> LearnedRoute {
        LearnedRoute {
            source: Source::Peer("router".into()),
            prefix: prefix.parse().unwrap(),
            next_hops: [LearnedNextHop::new(via.parse().unwrap(), None)].into(),
            stale: false,
        }
    }

    #[test]
    fn learned_routes_become_kernel_routes_but_for_own_links() {
        let (table, writer) = Table::new();
        let (routes, out) = Table::new();
        let mut changes = table.changes();
        let source = Source::Peer("router".into());
        writer.set_source(&source, SourceState::Pending);
        writer.upsert(learned("10.1.0.0/24", "172.20.11.2"));
        writer.upsert(learned("172.20.11.0/24", "172.20.101.1"));
        let mut own: BTreeSet<Prefix> = ["172.20.11.0/24".parse().unwrap()].into();
        step(&changes.drain().unwrap(), &own, &out);
        let shown = || routes.snapshot().iter().map(|row| row.prefix.to_string()).collect::<Vec<_>>();
        assert_eq!(shown(), ["10.1.0.0/24"]);
        assert_eq!(routes.snapshot().source_state(&source), Some(SourceState::Pending));
        // The link goes: what was taught of its prefix counts.
        let touched = std::mem::take(&mut own);
        write(&touched, &table.snapshot(), &own, &out);
        assert_eq!(shown(), ["10.1.0.0/24", "172.20.11.0/24"]);
        writer.remove(&("10.1.0.0/24".parse().unwrap(), source));
        writer.set_source(&source, SourceState::Initialized);
        step(&changes.drain().unwrap(), &own, &out);
        assert_eq!(shown(), ["172.20.11.0/24"]);
        assert_eq!(routes.snapshot().source_state(&source), Some(SourceState::Initialized));
        writer.drain_source(&source);
        step(&changes.drain().unwrap(), &own, &out);
        assert!(shown().is_empty() && routes.snapshot().source_state(&source).is_none());
    }
}
