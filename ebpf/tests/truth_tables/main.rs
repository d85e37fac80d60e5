//! Truth tables of NetworkPolicy: three namespaces of three pods, and for every case who reaches whom on which port, over
//! IPv4 and IPv6.
//!
//! Each cell is answered three times: as written down beside the case, by the specification (`model`), and by the programs
//! under the compiled policies, with a packet of a flow of its own. The cases are those that the e2e suite of Kubernetes
//! knows; SCTP is not among the packets, since the programs pass no SCTP yet.

#![cfg(test)]

mod cases;
#[path = "../support/mod.rs"]
mod support;
mod world;

use cases::CASES;
use world::{Cell, FAMILIES, World};

#[test]
fn every_case_reaches_whom_it_says() {
    let mut world = World::new();
    let mut wrong = Vec::new();
    let mut asked = 0;
    for case in CASES {
        world.begin();
        for step in case.steps {
            world.apply(step.manifests, step.gone);
            for cell in Cell::all() {
                for family in FAMILIES {
                    asked += 1;
                    let written = (step.reaches)(&cell);
                    let specified = world.specified(&cell, family);
                    let found = world.found(&cell, family);
                    if written != specified.is_ok() || specified != found {
                        wrong.push(format!(
                            "{}, {}: {cell} IPv{family}: written {written}, specified {specified:?}, the programs {found:?}",
                            case.name, step.name
                        ));
                    }
                }
            }
        }
    }
    println!("{} cases, {asked} questions", CASES.len());
    assert!(
        wrong.is_empty(),
        "{} of {asked} wrong:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(20)].join("\n")
    );
}

/// A table in which everybody reaches everybody, or nobody anybody, would show little.
#[test]
fn the_tables_differ() {
    let table = |reaches: fn(&Cell) -> bool| Cell::all().map(|cell| reaches(&cell)).collect::<Vec<_>>();
    let mut all = std::collections::BTreeSet::new();
    for step in CASES.iter().flat_map(|case| case.steps) {
        all.insert(table(step.reaches));
    }
    assert!(all.len() > 20, "{} different tables", all.len());
}
