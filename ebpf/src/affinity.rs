//! Session affinity: which backends a client may be sent to again. Whom it met the programs write by themselves.

use crate::abi;
use crate::datapath::{Datapath, lock};
use crate::error::DatapathError;
use crate::sets::Sets;
use crate::tables::Tables;
use std::collections::BTreeSet;

/// Backends that take new flows, by number and scope of their frontend.
pub(crate) type Members = Sets<(u32, u8), u32>;

/// The members that an earlier life left.
pub(crate) fn recover(tables: &Tables) -> Result<Members, DatapathError> {
    let rows = tables.members.dump()?.into_iter();
    let member = |key: abi::MemberKey| Some(((key.rev_nat, u8::try_from(key.scope).ok()?), key.backend));
    Ok(Sets::recover(rows.filter_map(|(key, _)| member(key))))
}

impl Datapath {
    /// Notes the backends that new flows of a frontend may go to, before its row says that it has affinity.
    pub(crate) fn join(&self, owner: (u32, u8), wanted: &BTreeSet<u32>) -> Result<(), DatapathError> {
        let write = |backend| self.tables.members.upsert(member(owner, backend), 1);
        lock(&self.members).widen(owner, wanted, write)
    }

    /// Forgets the others, once they are in no slot any more: their clients choose anew.
    pub(crate) fn leave(&self, owner: (u32, u8), wanted: &BTreeSet<u32>) -> Result<(), DatapathError> {
        let delete = |backend| self.tables.members.delete(member(owner, backend));
        lock(&self.members).narrow(&owner, wanted, delete)
    }
}

fn member((rev_nat, scope): (u32, u8), backend: u32) -> abi::MemberKey {
    abi::MemberKey { rev_nat, backend, scope: scope.into() }
}
