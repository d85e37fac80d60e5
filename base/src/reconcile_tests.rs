//! Any interleaving of writes, failures, sources coming and going and restarts ends in target == desired.

use super::*;
use crate::source::SourceState;
use crate::table::tests::{Cell, cluster};
use crate::table::{Changes, Table, Writer};
use proptest::prelude::*;

/// A target that can fail, keep half of an update, and survives the reconciler.
#[derive(Default)]
struct Shelf {
    cells: BTreeMap<(Source, u8), u8>,
    failing: u8,
}

impl Shelf {
    fn carry_out(&mut self, action: &Action<Cell>) -> Result<(), String> {
        let fails = self.failing > 0;
        self.failing = self.failing.saturating_sub(1);
        match action {
            // A failing update may have arrived all the same.
            Action::Update(row) if !fails || row.value % 2 == 0 => {
                self.cells.insert(row.key(), row.value);
            }
            Action::Delete(row) if !fails => {
                self.cells.remove(&row.key());
            }
            Action::Prune { keep, held } if !fails => {
                self.cells.retain(|key, _| keep.contains_key(key) || held.contains(&key.0));
            }
            _ => {}
        }
        if fails { Err("the shelf is stuck".into()) } else { Ok(()) }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Upsert(u8, u8, u8),
    Remove(u8, u8),
    Announce(u8),
    Initialize(u8),
    Fail(u8),
    Run(u8),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..3, 0u8..5, 0u8..4).prop_map(|(s, n, v)| Step::Upsert(s, n, v)),
        2 => (0u8..3, 0u8..5).prop_map(|(s, n)| Step::Remove(s, n)),
        1 => (0u8..3).prop_map(Step::Announce),
        2 => (0u8..3).prop_map(Step::Initialize),
        1 => (1u8..4).prop_map(Step::Fail),
        4 => (1u8..6).prop_map(Step::Run),
        1 => Just(Step::Restart),
    ]
}

struct World {
    writer: Writer<Cell>,
    changes: Changes<Cell>,
    reconciler: Reconciler<Cell>,
    shelf: Shelf,
    now: Moment,
}

impl World {
    fn new(shelf: Shelf) -> Self {
        let (table, writer) = Table::new();
        let changes = table.changes();
        (0..3).for_each(|n| writer.set_source(&cluster(n), SourceState::Pending));
        Self { writer, changes, reconciler: Reconciler::new(7), shelf, now: Moment::ZERO }
    }

    fn run(&mut self, actions: u8) {
        if let Some(batch) = self.changes.drain() {
            self.reconciler.observe(batch, self.now);
        }
        for _ in 0..actions {
            self.now = self.now.after(Duration::from_millis(10));
            let Some(action) = self.reconciler.next(self.now) else { continue };
            if let Action::Prune { held, .. } = &action {
                assert_eq!(*held, self.writer.table().snapshot().pending_sources());
            }
            let result = self.shelf.carry_out(&action);
            self.reconciler.finish(result, self.now);
        }
    }

    fn settle(&mut self) {
        for _ in 0..500 {
            self.run(1);
            if let Some(deadline) = self.reconciler.next_deadline() {
                self.now = self.now.max(deadline);
            }
        }
    }
}

proptest! {
    #[test]
    fn target_ends_equal_to_desired(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new(Shelf::default());
        let mut leftovers: BTreeSet<(Source, u8)> = BTreeSet::new();
        let mut initialized: BTreeSet<u8> = BTreeSet::new();
        let mut touched: BTreeSet<(Source, u8)> = BTreeSet::new();
        for step in steps {
            match step {
                Step::Upsert(s, name, value) => { touched.insert((cluster(s), name)); world.writer.upsert(Cell { source: cluster(s), name, value }); }
                Step::Remove(s, name) => { world.writer.remove(&(cluster(s), name)); }
                Step::Announce(s) => if !initialized.contains(&s) { world.writer.set_source(&cluster(s), SourceState::Pending) },
                Step::Initialize(s) => { initialized.insert(s); world.writer.set_source(&cluster(s), SourceState::Initialized); }
                Step::Fail(times) => world.shelf.failing = times,
                Step::Run(actions) => world.run(actions),
                Step::Restart => {
                    // The agent dies: tables and reconciler are gone, the target stays.
                    leftovers = world.shelf.cells.keys().cloned().collect();
                    initialized.clear();
                    touched.clear();
                    world = World::new(std::mem::take(&mut world.shelf));
                }
            }
            // Nothing that an earlier life left is pruned before its source has spoken (an explicit removal may go).
            for key in &leftovers {
                let name_of = (0..3).find(|n| cluster(*n) == key.0).unwrap();
                if !initialized.contains(&name_of) && !touched.contains(key) {
                    prop_assert!(world.shelf.cells.contains_key(key));
                }
            }
        }
        world.shelf.failing = 0;
        (0..3).for_each(|n| world.writer.set_source(&cluster(n), SourceState::Initialized));
        world.settle();
        let desired: BTreeMap<_, _> = world.writer.table().snapshot().iter().map(|row| (row.key(), row.value)).collect();
        prop_assert_eq!(&world.shelf.cells, &desired);
        prop_assert!(world.reconciler.is_settled());
        prop_assert!(world.reconciler.progress().pruned);
    }
}

#[test]
fn a_pending_source_keeps_its_leftovers_and_blocks_nobody() {
    let mut shelf = Shelf::default();
    shelf.cells.insert((cluster(0), 1), 1);
    shelf.cells.insert((cluster(1), 1), 1);
    let mut world = World::new(shelf);
    world.writer.set_source(&cluster(0), SourceState::Initialized);
    world.writer.set_source(&cluster(2), SourceState::Initialized);
    world.settle();
    assert!(!world.shelf.cells.contains_key(&(cluster(0), 1)), "the live source's leftover goes");
    assert!(world.shelf.cells.contains_key(&(cluster(1), 1)), "the dead source's leftover stays");
    world.writer.set_source(&cluster(1), SourceState::Initialized);
    world.settle();
    assert!(world.shelf.cells.is_empty());
}

#[test]
fn failures_back_off_and_are_reported() {
    let mut world = World::new(Shelf { failing: 2, ..Shelf::default() });
    world.writer.upsert(Cell { source: cluster(0), name: 1, value: 1 });
    world.run(1);
    let progress = world.reconciler.progress();
    assert_eq!((progress.failed, progress.pending), (1, 1));
    assert!(progress.example.unwrap().contains("the shelf is stuck"));
    let deadline = world.reconciler.next_deadline().unwrap();
    assert!(deadline >= world.now.after(BACKOFF_MIN) || world.reconciler.prune_due.is_some());
    world.settle();
    assert!(world.reconciler.is_settled());
}

#[test]
fn a_half_arrived_update_is_undone_when_the_wish_returns() {
    let mut world = World::new(Shelf::default());
    let row = |value| Cell { source: cluster(0), name: 1, value };
    world.writer.upsert(row(1));
    world.settle();
    world.shelf.failing = 1;
    world.writer.upsert(row(2));
    world.run(1);
    world.writer.upsert(row(1));
    world.settle();
    assert_eq!(world.shelf.cells.get(&row(1).key()), Some(&1));
}
