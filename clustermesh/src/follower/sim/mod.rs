//! A seeded simulation of the follower's core: several clusters, each with a model of its etcd, and every fault.
//!
//! After each stretch of faults all is quiet, and the tables must equal what the etcds hold. At every moment, entries are
//! the cluster's own, and nothing goes that neither an event nor a complete list took away.
//!
//! `TOMBOLO_SIM_STEPS` says how many steps (default one million; `make soak`: ten million), `TOMBOLO_SEED` from where: a run that
//! fails prints the seed that repeats it.

mod etcd;
mod random;
mod site;
mod world;

pub(crate) use site::Site;
pub(crate) use world::{Fault, World, identity, ip, service};

use crate::follower::Limits;
use std::collections::BTreeMap;

/// Steps of one world; a failure is repeated by running its world alone.
const WORLD_STEPS: u64 = 20_000;
/// Steps between two silences.
const STRETCH: u64 = 500;

/// A number from the environment.
fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => default,
    }
}

/// Says how to repeat a run that fails.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "repeat with TOMBOLO_SEED={} TOMBOLO_SIM_STEPS={WORLD_STEPS} cargo test -p tombolo-clustermesh after_any_faults",
                self.0
            );
        }
    }
}

#[test]
fn after_any_faults_what_is_known_is_the_truth() {
    let seed = setting("TOMBOLO_SEED", 1);
    let total = setting("TOMBOLO_SIM_STEPS", 1_000_000);
    println!("seed {seed}, {total} steps");
    let (mut done, mut run) = (0, seed);
    let mut faults: BTreeMap<Fault, u64> = BTreeMap::new();
    let (mut resumed, mut listed, mut withheld) = (0, 0, 0);
    while done < total {
        let told = Told(run);
        let mut world = World::new(run, 3, Limits::default());
        if total <= WORLD_STEPS {
            world.sites.iter_mut().for_each(Site::keep_trace);
        }
        for at in 0..world.sites.len() {
            for _ in 0..30 {
                world.change(at);
            }
        }
        let mut steps = 0;
        while steps < WORLD_STEPS {
            for _ in 0..STRETCH {
                world.step(true);
                withheld += u64::from(world.sites.iter().any(|site| !site.core.withheld.is_empty()));
            }
            steps += STRETCH + world.settle();
        }
        done += steps;
        run = run.wrapping_add(1);
        for (fault, count) in world.faults {
            *faults.entry(fault).or_default() += count;
        }
        resumed += world.sites.iter().map(|site| site.resumed).sum::<u64>();
        listed += world.sites.iter().map(|site| site.listed).sum::<u64>();
        drop(told);
    }
    println!(
        "{done} steps: {faults:?}; watches resumed {resumed}, lists {listed}, steps with services withheld {withheld}"
    );
    // A simulation in which something never happens says nothing about it.
    if total >= 1_000_000 {
        assert_eq!(faults.len(), 16, "{faults:?}");
        assert!(resumed > 1_000 && withheld > 100, "resumed {resumed}, withheld {withheld}");
    }
}
