//! Renders `docs/interop.md` from what the tests of `make interop` have recorded; that runs this last. `TOMBOLO_BLESS=1` writes the file.

#![cfg(test)]

use tombolo_tests::matrix::{Peer, proved, render};

#[test]
#[ignore = "needs the records of the other tests: the last step of `make interop`"]
fn every_cell_is_proved_or_excused_and_the_table_says_so() {
    let text = render(&proved().unwrap(), Peer::version).unwrap();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/interop.md");
    if std::env::var_os("TOMBOLO_BLESS").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(
        committed, text,
        "docs/interop.md is not what was proved; TOMBOLO_BLESS=1 make interop writes it"
    );
}
