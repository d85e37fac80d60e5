//! Any interleaving of writes, failures, sources coming and going and restarts ends in target == desired.

use super::*;
use crate::source::SourceState;
use crate::table::tests::{Cell, cluster};
use crate::table::{Changes, Table, Writer};
use proptest::prelude::*;

type Key = (Source, u8);

/// A target that can fail, keep half of what it was told all the same, and survives the reconciler.
#[derive(Default)]
struct Shelf {
    cells: BTreeMap<Key, u8>,
    failing: u8,
}

impl Shelf {
    /// The outcome of each row, or of the prune; every call of the shelf's may fail.
    fn carry_out(&mut self, action: &Action<Cell>) -> Vec<Result<(), String>> {
        match action {
            Action::Rows(changes) => changes.iter().map(|change| self.change(change)).collect(),
            Action::Prune { keep, held } => {
                let outcome = self.try_once();
                let unwanted = |key: &&Key| !keep.contains_key(*key) && !held.contains(&key.0);
                let gone: Vec<Key> = self.cells.keys().filter(unwanted).cloned().collect();
                // A failing prune stops half way.
                let reached = if outcome.is_err() { gone.len() / 2 } else { gone.len() };
                gone.iter().take(reached).for_each(|key| {
                    self.cells.remove(key);
                });
                vec![outcome]
            }
        }
    }

    fn try_once(&mut self) -> Result<(), String> {
        let fails = self.failing > 0;
        self.failing = self.failing.saturating_sub(1);
        if fails { Err("the shelf is stuck".into()) } else { Ok(()) }
    }

    fn change(&mut self, change: &Change<Cell>) -> Result<(), String> {
        let outcome = self.try_once();
        // A failing write may have arrived all the same.
        if outcome.is_ok() || change.row().value.is_multiple_of(2) {
            match change {
                Change::Update(row) => drop(self.cells.insert(row.key(), row.value)),
                Change::Delete(row) => drop(self.cells.remove(&row.key())),
            }
        }
        outcome
    }
}

/// How many sources there are; the last is announced late or never.
const SOURCES: u8 = 4;
const ANNOUNCED: u8 = SOURCES - 1;

#[derive(Debug, Clone)]
enum Step {
    Upsert(u8, u8, u8),
    Remove(u8, u8),
    /// Announced anew, as after a change of a cluster's id.
    Pending(u8),
    Stale(u8),
    Initialize(u8),
    Drain(u8),
    /// Somebody else takes a cell away, puts a strange value there, or adds one; then a full pass is asked for.
    Disturb(u8, u8, Option<u8>),
    Fail(u8),
    Run(u8),
    /// How many rows the target takes at once from now on.
    Batch(u8),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let name = || (0..SOURCES, 0u8..5);
    prop_oneof![
        6 => (0..SOURCES, 0u8..5, 0u8..4).prop_map(|(s, n, v)| Step::Upsert(s, n, v)),
        4 => name().prop_map(|(s, n)| Step::Remove(s, n)),
        1 => (0..SOURCES).prop_map(Step::Pending),
        1 => (0..SOURCES).prop_map(Step::Stale),
        2 => (0..SOURCES).prop_map(Step::Initialize),
        1 => (0..SOURCES).prop_map(Step::Drain),
        1 => (0..SOURCES, 0u8..5, prop::option::of(0u8..4)).prop_map(|(s, n, v)| Step::Disturb(s, n, v)),
        2 => (1u8..4).prop_map(Step::Fail),
        6 => (1u8..6).prop_map(Step::Run),
        1 => (1u8..8).prop_map(Step::Batch),
        1 => Just(Step::Restart),
    ]
}

struct World {
    writer: Writer<Cell>,
    changes: Changes<Cell>,
    reconciler: Reconciler<Cell>,
    shelf: Shelf,
    now: Moment,
    rows_max: usize,
    /// What an earlier life left of sources that were announced at start and have not spoken: must stay.
    protected: BTreeSet<Key>,
}

impl World {
    fn new(shelf: Shelf) -> Self {
        let (table, writer) = Table::new();
        let changes = table.changes();
        (0..ANNOUNCED).for_each(|n| writer.set_source(&cluster(n), SourceState::Pending));
        let silent: BTreeSet<Source> = (0..ANNOUNCED).map(cluster).collect();
        let protected = shelf.cells.keys().filter(|key| silent.contains(&key.0)).cloned().collect();
        Self {
            writer,
            changes,
            reconciler: Reconciler::new(7),
            shelf,
            now: Moment::ZERO,
            rows_max: 1,
            protected,
        }
    }

    fn set(&mut self, n: u8, state: SourceState) {
        if state == SourceState::Initialized {
            self.spoken(n);
        }
        self.writer.set_source(&cluster(n), state);
    }

    fn spoken(&mut self, n: u8) {
        self.protected.retain(|key| key.0 != cluster(n));
    }

    fn observe(&mut self) {
        if let Some(batch) = self.changes.drain() {
            self.reconciler.observe(batch, self.now);
        }
    }

    fn run(&mut self, actions: u8) {
        self.observe();
        for _ in 0..actions {
            self.now = self.now.after(Duration::from_millis(10));
            let Some(action) = self.reconciler.next(self.now, self.rows_max) else { continue };
            let result = self.shelf.carry_out(&action);
            self.reconciler.finish(result, self.now);
        }
    }

    fn settle(&mut self) {
        for _ in 0..800 {
            self.run(1);
            if let Some(deadline) = self.reconciler.next_deadline() {
                self.now = self.now.max(deadline);
            }
        }
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Upsert(s, name, value) => {
                // A wish may replace what was left, and may be withdrawn.
                self.protected.remove(&(cluster(s), name));
                self.writer.upsert(Cell { source: cluster(s), name, value });
            }
            Step::Remove(s, name) => drop(self.writer.remove(&(cluster(s), name))),
            Step::Pending(s) => self.set(s, SourceState::Pending),
            Step::Stale(s) => self.set(s, SourceState::Stale),
            Step::Initialize(s) => self.set(s, SourceState::Initialized),
            Step::Drain(s) => {
                self.spoken(s);
                self.writer.drain_source(&cluster(s));
            }
            Step::Disturb(s, name, value) => {
                let key = (cluster(s), name);
                // Who disturbs may do so while an action is under way.
                let action = self.reconciler.next(self.now, self.rows_max);
                let result = action.map(|action| self.shelf.carry_out(&action));
                match value {
                    Some(value) => self.shelf.cells.insert(key, value),
                    None => self.shelf.cells.remove(&key),
                };
                self.protected.remove(&key);
                self.reconciler.resync(self.now);
                if let Some(result) = result {
                    self.reconciler.finish(result, self.now);
                }
            }
            Step::Fail(times) => self.shelf.failing = times,
            Step::Run(actions) => self.run(actions),
            Step::Batch(rows) => self.rows_max = rows.into(),
            // The agent dies: tables and reconciler are gone, the target stays.
            Step::Restart => *self = Self::new(std::mem::take(&mut self.shelf)),
        }
    }

    fn desired(&self) -> BTreeMap<Key, u8> {
        self.writer.table().snapshot().iter().map(|row| (row.key(), row.value)).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn target_ends_equal_to_desired(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new(Shelf::default());
        for step in &steps {
            world.take(step);
            // Nothing that an earlier life left is pruned before its source has spoken.
            for key in &world.protected {
                prop_assert!(world.shelf.cells.contains_key(key), "{key:?} after {step:?}");
            }
        }
        world.shelf.failing = 0;
        (0..ANNOUNCED).for_each(|n| world.set(n, SourceState::Initialized));
        if world.writer.table().snapshot().source_state(&cluster(ANNOUNCED)).is_some() {
            world.set(ANNOUNCED, SourceState::Initialized);
        }
        world.settle();
        prop_assert_eq!(&world.shelf.cells, &world.desired());
        prop_assert!(world.reconciler.is_settled());
        prop_assert!(world.reconciler.progress().pruned);
    }

    /// With every source initialised from the start, each life ends in step by itself, whoever disturbs it.
    #[test]
    fn a_source_that_falls_silent_later_holds_nothing(steps in prop::collection::vec(step(), 1..60), silent in 0..ANNOUNCED) {
        let mut world = World::new(Shelf::default());
        (0..ANNOUNCED).for_each(|n| world.set(n, SourceState::Initialized));
        world.settle();
        for step in steps.iter().filter(|step| !matches!(step, Step::Restart | Step::Pending(_) | Step::Stale(_) | Step::Drain(_))) {
            world.take(step);
        }
        world.set(silent, SourceState::Stale);
        world.shelf.failing = 0;
        world.settle();
        prop_assert_eq!(&world.shelf.cells, &world.desired());
        prop_assert!(world.reconciler.progress().pruned);
    }
}

fn row(n: u8, name: u8, value: u8) -> Cell {
    Cell { source: cluster(n), name, value }
}

#[test]
fn a_silent_source_keeps_its_leftovers_and_blocks_nobody() {
    for silent in [SourceState::Pending, SourceState::Stale] {
        let mut shelf = Shelf::default();
        shelf.cells.insert((cluster(0), 1), 1);
        shelf.cells.insert((cluster(1), 1), 1);
        let mut world = World::new(shelf);
        world.set(0, SourceState::Initialized);
        world.set(1, silent);
        world.set(2, SourceState::Initialized);
        world.settle();
        assert!(!world.shelf.cells.contains_key(&(cluster(0), 1)), "the live source's leftover goes");
        assert!(
            world.shelf.cells.contains_key(&(cluster(1), 1)),
            "what a {silent:?} source's list does not name may be newer than the list"
        );
        assert!(!world.reconciler.progress().pruned);
        world.set(1, SourceState::Initialized);
        world.settle();
        assert!(world.shelf.cells.is_empty());
        assert!(world.reconciler.progress().pruned);
    }
}

#[test]
fn a_source_that_comes_and_goes_costs_no_further_prune() {
    let mut world = World::new(Shelf::default());
    (0..ANNOUNCED).for_each(|n| world.set(n, SourceState::Initialized));
    world.settle();
    for state in [SourceState::Stale, SourceState::Initialized] {
        world.set(1, state);
        world.observe();
        assert_eq!(world.reconciler.next(world.now, 1), None, "{state:?}: every leftover is gone already");
        assert!(world.reconciler.progress().pruned);
    }
}

#[test]
fn failures_back_off_and_are_reported() {
    let mut world = World::new(Shelf { failing: 2, ..Shelf::default() });
    world.writer.upsert(row(0, 1, 1));
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
    world.writer.upsert(row(0, 1, 1));
    world.settle();
    world.shelf.failing = 1;
    world.writer.upsert(row(0, 1, 2));
    world.run(1);
    world.writer.upsert(row(0, 1, 1));
    world.settle();
    assert_eq!(world.shelf.cells.get(&row(0, 1, 1).key()), Some(&1));
}

#[test]
fn a_failed_delete_that_arrived_is_made_good_when_the_wish_returns() {
    let mut world = World::new(Shelf::default());
    world.writer.upsert(row(0, 1, 2));
    world.settle();
    world.shelf.failing = 1;
    world.writer.remove(&row(0, 1, 2).key());
    world.run(1);
    assert!(world.shelf.cells.is_empty(), "the delete arrived, its answer did not");
    world.writer.upsert(row(0, 1, 2));
    world.settle();
    assert_eq!(world.shelf.cells.get(&row(0, 1, 2).key()), Some(&2));
}

#[test]
fn a_row_removed_during_a_resync_is_removed_at_the_target() {
    let mut world = World::new(Shelf::default());
    world.writer.upsert(row(0, 1, 1));
    world.settle();
    world.reconciler.resync(world.now);
    world.writer.remove(&row(0, 1, 1).key());
    world.settle();
    assert!(world.shelf.cells.is_empty(), "its source has not spoken, but this life put it there");
}

#[test]
fn one_key_is_checked_again_and_no_other() {
    let mut world = World::new(Shelf::default());
    world.set(0, SourceState::Initialized);
    for name in 0..3 {
        world.writer.upsert(row(0, name, 1));
    }
    world.settle();
    world.shelf.cells.clear();
    world.reconciler.recheck([row(0, 1, 1).key(), row(0, 4, 1).key()]);
    world.settle();
    assert_eq!(world.shelf.cells.keys().map(|key| key.1).collect::<Vec<_>>(), [1]);
}

#[test]
fn one_bad_row_of_a_batch_fails_alone_and_a_silent_target_has_failed() {
    let mut world = World::new(Shelf::default());
    for name in 0..5 {
        world.writer.upsert(row(0, name, 1));
    }
    world.observe();
    let Some(Action::Rows(changes)) = world.reconciler.next(world.now, 4) else { panic!("rows") };
    assert_eq!(changes.len(), 4, "as many as the target takes");
    assert_eq!(world.reconciler.progress().pending, 5);
    world.reconciler.finish([Ok(()), Err("no way".into()), Ok(())], world.now);
    let failed: Vec<(u8, &str)> =
        world.reconciler.failures().iter().map(|(key, failure)| (key.1, failure.error.as_str())).collect();
    assert_eq!(failed, [(1, "no way"), (3, "the target did not say how it went")]);
    // What is left, and the two again once their time has come.
    let mut names = Vec::new();
    for _ in 0..2 {
        let Some(Action::Rows(changes)) = world.reconciler.next(world.now, 4) else { panic!("rows") };
        names.extend(changes.iter().map(|change| change.row().name));
        world.reconciler.finish(changes.iter().map(|_| Ok(())), world.now);
        world.now = world.now.after(BACKOFF_MIN * 2);
    }
    assert_eq!(names, [4, 1, 3]);
    assert!(world.reconciler.is_settled());
}
