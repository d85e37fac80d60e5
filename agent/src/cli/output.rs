//! Tables for people.

use comfy_table::{ContentArrangement, Table, presets};
use std::io::IsTerminal;

/// Prints a table; on a terminal it fits the width.
pub(crate) fn table<C: ToString>(columns: &[C], rows: impl IntoIterator<Item = Vec<String>>) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let arrangement = if std::io::stdout().is_terminal() {
        ContentArrangement::Dynamic
    } else {
        ContentArrangement::Disabled
    };
    table.set_content_arrangement(arrangement);
    table.set_header(columns.iter().map(ToString::to_string));
    for row in rows {
        table.add_row(row);
    }
    println!("{table}");
}

/// Whether colour is wanted: a terminal, and `NO_COLOR` unset.
pub(crate) fn colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// `ok` or `NOT READY`, coloured on a terminal.
pub(crate) fn mark(ready: bool) -> String {
    match (ready, colour()) {
        (true, true) => "\u{1b}[32mok\u{1b}[0m".to_owned(),
        (false, true) => "\u{1b}[31mNOT READY\u{1b}[0m".to_owned(),
        (true, false) => "ok".to_owned(),
        (false, false) => "NOT READY".to_owned(),
    }
}
