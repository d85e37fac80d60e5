//! Which reverse translations may go. A service's row outlives the service: flows that live on need it for their answers.

use crate::abi;
use crate::datapath::{Datapath, lock};
use crate::error::DatapathError;
use crate::tables::Tables;
use std::collections::BTreeSet;

/// Numbers that no service may have any more, while their row is still there.
pub(crate) type Released = BTreeSet<u32>;

/// Numbers that an earlier life left without a service.
pub(crate) fn recover(tables: &Tables) -> Result<Released, DatapathError> {
    let served = served(tables)?;
    let rows = tables.rev_nat.dump()?.into_iter().map(|(number, _)| number);
    Ok(rows.filter(|number| !served.contains(number)).collect())
}

fn served(tables: &Tables) -> Result<BTreeSet<u32>, DatapathError> {
    Ok(tables.services.dump()?.into_iter().map(|(_, row)| row.rev_nat).collect())
}

impl Datapath {
    /// Writes the row of a service that is about to be written.
    pub(crate) fn keep_rev_nat(&self, number: u32, row: abi::RevNat) -> Result<(), DatapathError> {
        // The lock is held over both: a sweep deletes nothing that a service has taken since.
        let mut released = lock(&self.released);
        released.remove(&number);
        self.tables.rev_nat.upsert(number, row)
    }

    /// A service let go of the number. Another scope of it may still have it: the sweep looks.
    pub(crate) fn release_rev_nat(&self, number: u32) {
        lock(&self.released).insert(number);
    }

    /// Whether a sweep has anything to look for.
    pub(crate) fn has_released(&self) -> bool {
        !lock(&self.released).is_empty()
    }

    /// Deletes rows of numbers that neither a service nor a flow names; `named` are those of all live flows and address
    /// translations.
    pub(crate) fn sweep_rev_nats(&self, named: &BTreeSet<u32>) -> Result<(), DatapathError> {
        let candidates = lock(&self.released).clone();
        let served = served(&self.tables)?;
        for number in candidates {
            let mut released = lock(&self.released);
            if served.contains(&number) {
                // It is released again when that service goes.
                released.remove(&number);
            } else if !named.contains(&number) && released.contains(&number) {
                self.tables.rev_nat.delete(number)?;
                released.remove(&number);
            }
        }
        Ok(())
    }
}
