//! Which backends an external frontend has: other nodes may send its clients to those of them that are here, and name the
//! frontend in the packet.

use crate::abi::{self, Addr};
use crate::datapath::{Datapath, lock};
use crate::error::DatapathError;
use crate::sets::Sets;
use crate::tables::Tables;
use std::collections::{BTreeMap, BTreeSet};

/// A backend as its packets have it: address, and port in network order.
type Socket = (Addr, u16);
/// The number of a frontend, and its protocol.
type Owner = (u32, u8);

/// What the map holds, and what backends' numbers mean, so that no change of a service reads all its backends.
pub(crate) struct Fronts {
    written: Sets<Owner, Socket>,
    backends: BTreeMap<u32, Socket>,
}

impl Fronts {
    /// What an earlier life left.
    pub(crate) fn recover(tables: &Tables) -> Result<Self, DatapathError> {
        let rows = tables.fronts.dump()?.into_iter();
        let written = Sets::recover(rows.map(|(key, _)| ((key.rev_nat, key.proto), (key.addr, key.port))));
        let rows = tables.backends.dump()?.into_iter();
        Ok(Self { written, backends: rows.map(|(number, row)| (number, (row.addr, row.port))).collect() })
    }

    /// A backend's number means this from now on; `None`: nobody.
    pub(crate) fn name(&mut self, number: u32, backend: Option<Socket>) {
        match backend {
            Some(backend) => drop(self.backends.insert(number, backend)),
            None => drop(self.backends.remove(&number)),
        }
    }
}

fn key((rev_nat, proto): Owner, (addr, port): Socket) -> abi::FrontKey {
    abi::FrontKey { addr, port, proto, pad0: 0, rev_nat }
}

impl Datapath {
    /// The backends in a table.
    pub(crate) fn behind(&self, maglev: &[u32]) -> BTreeSet<Socket> {
        let numbers: BTreeSet<u32> = maglev.iter().copied().collect();
        let fronts = lock(&self.fronts);
        numbers.iter().filter_map(|number| fronts.backends.get(number)).copied().collect()
    }

    /// Notes the backends of a frontend, before its row leads to them.
    pub(crate) fn front(&self, owner: Owner, wanted: &BTreeSet<Socket>) -> Result<(), DatapathError> {
        let write = |socket| self.tables.fronts.upsert(key(owner, socket), 1);
        lock(&self.fronts).written.widen(owner, wanted, write)
    }

    /// Forgets the others, after its row was written.
    pub(crate) fn front_only(&self, owner: Owner, wanted: &BTreeSet<Socket>) -> Result<(), DatapathError> {
        let delete = |socket| self.tables.fronts.delete(key(owner, socket));
        lock(&self.fronts).written.narrow(&owner, wanted, delete)
    }
}
