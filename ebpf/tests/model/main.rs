//! Model and programs agree over streams of random packets: verdict, drop reason, every byte of what goes on, and at the
//! end of each stream the flows and translations that are kept.
//!
//! `TOMBOLO_CASES` says how many packets (default 50,000, the twentieth part of the million of `make soak-datapath`),
//! `TOMBOLO_SEED` from where: each stream has a seed of its own, one more than that of the stream before. A stream on
//! which they differ is made as short as it can be and printed.

#![cfg(test)]
#![allow(unreachable_pub)]

mod kept;
mod reach;
mod rows;
mod steps;
mod stream;
#[path = "../support/mod.rs"]
mod support;
mod wire;
mod world;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use reach::Reach;
use std::cell::RefCell;
use steps::Step;
use world::World;

fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text}: give a number")),
        Err(_) => default,
    }
}

fn runner(seed: u64) -> TestRunner {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { failure_persistence: None, max_shrink_iters: 20_000, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

/// Leaves out steps as long as they still differ: steps that name earlier ones become needless when others have become
/// simpler, and proptest does not look back.
fn shortest(world: &mut World, mut steps: Vec<Step>, reach: &RefCell<Reach>) -> Option<String> {
    let mut difference = None;
    let mut position = 0;
    while position < steps.len() {
        let mut fewer = steps.clone();
        fewer.remove(position);
        match stream::run(world, &fewer, reach) {
            Err(TestCaseError::Fail(reason)) => {
                (steps, difference, position) = (fewer, Some(reason.to_string()), 0);
            }
            _ => position += 1,
        }
    }
    difference
}

#[test]
fn model_and_programs_agree() {
    let (wanted, first) = (setting("TOMBOLO_CASES", 50_000), setting("TOMBOLO_SEED", 1));
    println!("TOMBOLO_SEED={first} TOMBOLO_CASES={wanted}");
    let world = RefCell::new(World::new());
    let reach = RefCell::new(Reach::default());
    let mut held_up = 0;
    for seed in first.. {
        let mut runner = runner(seed);
        let tree = steps::stream().new_tree(&mut runner).unwrap();
        let done = runner.run_one(tree, |steps| stream::run(&mut world.borrow_mut(), &steps, &reach));
        match done {
            Ok(true) => {}
            Ok(false) => held_up += 1,
            Err(TestError::Fail(difference, steps)) => {
                let shorter = shortest(&mut world.borrow_mut(), steps, &reach);
                let difference = shorter.unwrap_or_else(|| difference.to_string());
                panic!("{difference}\nrepeat with TOMBOLO_SEED={seed} TOMBOLO_CASES=1")
            }
            Err(abort) => panic!("TOMBOLO_SEED={seed}: {abort}"),
        }
        assert!(held_up < 100, "the machine is too busy: {held_up} streams took seconds");
        if reach.borrow().packets >= wanted {
            break;
        }
    }
    let reach = reach.into_inner();
    println!("{reach}");
    if wanted >= 50_000 {
        assert!(
            reach.missing().is_empty(),
            "{:?}: streams that never lead there show nothing",
            reach.missing()
        );
    }
}
