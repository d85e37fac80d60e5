//! Names of services: the task that runs their pure planner, and the stream that the DNS unit reads.

use super::drive::Driver;
use super::follow_names::Told;
use super::tables::Intent;
use tombolo_base::table::{Table, Writer};
use tombolo_service::mcs::ImportRow;
use tombolo_service::names::{InputChanges, NameRow, Planner};

/// Runs the planner until cancelled; without `imports` there are none, and that is known.
pub(crate) async fn planner(
    driver: Driver,
    mut planner: Planner,
    intent: Intent,
    imports: Option<Table<ImportRow>>,
    out: Writer<NameRow>,
    told: Told,
) {
    let (mut services, mut slices) = (intent.kube.services.changes(), intent.kube.slices.changes());
    let mut remote = intent.remote_services.changes();
    let mut imported = imports.as_ref().map(Table::changes);
    loop {
        let mut changes = InputChanges::default();
        let next_import = async {
            match &mut imported {
                Some(imported) => imported.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = driver.cancel.cancelled() => return,
            batch = services.next() => changes.services = Some(batch),
            batch = slices.next() => changes.slices = Some(batch),
            batch = remote.next() => changes.remote = Some(batch),
            batch = next_import => changes.imports = Some(batch),
            () = driver.clock.sleep_until(planner.next_deadline()) => {}
        }
        changes.services = changes.services.or_else(|| services.drain());
        changes.slices = changes.slices.or_else(|| slices.drain());
        changes.remote = changes.remote.or_else(|| remote.drain());
        changes.imports = changes.imports.or_else(|| imported.as_mut().and_then(|imported| imported.drain()));
        planner.step(changes, driver.clock.now(), &out);
        // After the rows: whoever sees this sees them.
        told.set_imports_known(imports.is_none() || planner.knows_imports());
    }
}
