//! Services: frontends, backends, reverse translation, and the Maglev slots, written as differences.

use crate::abi::{self, Addr};
use crate::datapath::{Datapath, lock};
use crate::error::DatapathError;
use crate::rows::{Backend, Frontend, Scope, ServiceEntry};
use std::collections::{BTreeMap, BTreeSet};

impl Frontend {
    fn key(&self) -> abi::ServiceKey {
        abi::ServiceKey {
            addr: Addr::from(self.ip),
            port: self.port.to_be(),
            proto: self.protocol,
            scope: match self.scope {
                Scope::External => 0,
                Scope::Internal => 1,
            },
            pad0: 0,
        }
    }

    fn from_key(key: &abi::ServiceKey) -> Self {
        Self {
            ip: key.addr.ip(),
            port: u16::from_be(key.port),
            protocol: key.proto,
            scope: if key.scope == 0 { Scope::External } else { Scope::Internal },
        }
    }
}

/// The backends that a client of a frontend with affinity may be sent to again.
fn members(entry: &ServiceEntry) -> BTreeSet<u32> {
    let slots = entry.maglev.iter().copied();
    slots.filter(|_| entry.affinity_secs > 0).collect()
}

impl Datapath {
    /// Writes a backend. Write it before the services that name it.
    ///
    /// # Errors
    /// The map is full or cannot be written.
    pub fn upsert_backend(&self, id: u32, backend: &Backend) -> Result<(), DatapathError> {
        let row = abi::Backend {
            addr: Addr::from(backend.ip),
            port: backend.port.to_be(),
            proto: backend.protocol,
            ..abi::Backend::default()
        };
        self.tables.backends.upsert(id, row)?;
        lock(&self.fronts).name(id, Some((row.addr, row.port)));
        Ok(())
    }

    /// Deletes a backend. Delete it after the services that named it were rewritten; flows to it choose anew.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn delete_backend(&self, id: u32) -> Result<(), DatapathError> {
        self.tables.backends.delete(id)?;
        lock(&self.fronts).name(id, None);
        self.left.notify_one();
        Ok(())
    }

    /// All backends.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn backends(&self) -> Result<BTreeMap<u32, Backend>, DatapathError> {
        let plain = |row: abi::Backend| Backend {
            ip: row.addr.ip(),
            port: u16::from_be(row.port),
            protocol: row.proto,
        };
        Ok(self.tables.backends.dump()?.into_iter().map(|(id, row)| (id, plain(row))).collect())
    }

    /// Writes a service. Only Maglev slots that differ are written; a table of another size goes to a new stretch and the
    /// frontend's row is flipped afterwards, so that packets always meet a whole table of one size.
    ///
    /// # Errors
    /// No room for the slots, a map that is full, or a row without a reverse translation number.
    pub fn set_service(&self, frontend: &Frontend, entry: &ServiceEntry) -> Result<(), DatapathError> {
        self.write_service(frontend, entry, None).map(drop)
    }

    /// As [`Self::set_service`], for a service that was last written as `before`: slots are compared with that instead of
    /// being read back, which costs a call of the kernel each. Says how many were written.
    ///
    /// # Errors
    /// As [`Self::set_service`].
    pub fn change_service(
        &self,
        frontend: &Frontend,
        before: &ServiceEntry,
        entry: &ServiceEntry,
    ) -> Result<usize, DatapathError> {
        self.write_service(frontend, entry, Some(before))
    }

    fn write_service(
        &self,
        frontend: &Frontend,
        entry: &ServiceEntry,
        before: Option<&ServiceEntry>,
    ) -> Result<usize, DatapathError> {
        let wildcard = frontend.port == 0 && frontend.protocol == 0;
        if entry.rev_nat == 0 && !wildcard {
            let what = format!("service {}:{}", frontend.ip, frontend.port);
            return Err(DatapathError::Invalid { what, why: "its reverse translation number must not be 0" });
        }
        let key = frontend.key();
        let old = self.tables.services.get(key)?;
        let size = u32::try_from(entry.maglev.len()).unwrap_or(u32::MAX);
        // A stretch of a larger array of an earlier life may lie behind the end of this one.
        let fits = |row: &abi::Service| row.maglev_offset.saturating_add(size) <= self.tables.maglev.len();
        let reuse = old.filter(|row| row.maglev_size == size && size > 0 && fits(row));
        let reuse = reuse.map(|row| row.maglev_offset);
        let offset = match reuse {
            Some(offset) => offset,
            None => self.take_slots(frontend, size)?,
        };
        let before = before.filter(|before| before.maglev.len() == entry.maglev.len());
        let written = self.write_slots(offset, &entry.maglev, reuse.map(|_| before))?;
        if !wildcard {
            let rev = abi::RevNat { addr: key.addr, port: key.port, ..abi::RevNat::default() };
            self.keep_rev_nat(entry.rev_nat, rev)?;
        }
        let members = members(entry);
        self.join((entry.rev_nat, key.scope), &members)?;
        let external = frontend.scope == Scope::External;
        let behind = if external { self.behind(&entry.maglev) } else { BTreeSet::new() };
        self.front((entry.rev_nat, key.proto), &behind)?;
        let ranges = entry.source_ranges.as_ref().filter(|_| external);
        if external {
            self.admit(entry.rev_nat, ranges)?;
        }
        let flag = |on: bool, bit: u32| if on { bit } else { 0 };
        let row = abi::Service {
            rev_nat: entry.rev_nat,
            count: size,
            maglev_offset: offset,
            maglev_size: size,
            flags: flag(entry.local_only, abi::SVC_LOCAL_ONLY)
                | flag(entry.node_port, abi::SVC_NODEPORT)
                | flag(entry.host_port, abi::SVC_HOSTPORT)
                | flag(ranges.is_some(), abi::SVC_SOURCE_RANGE),
            affinity_secs: entry.affinity_secs,
        };
        if old != Some(row) {
            self.tables.services.upsert(key, row)?;
        }
        self.leave((entry.rev_nat, key.scope), &members)?;
        if external {
            self.admit_only(entry.rev_nat, ranges)?;
            self.front_only((entry.rev_nat, key.proto), &behind)?;
        }
        if let Some(old) = old.filter(|old| old.rev_nat != entry.rev_nat) {
            self.let_go(&key, old.rev_nat)?;
        }
        if let Some(old) = old.filter(|old| reuse.is_none() && old.maglev_size > 0) {
            lock(&self.maglev).free(old.maglev_offset);
        }
        Ok(written)
    }

    fn take_slots(&self, frontend: &Frontend, size: u32) -> Result<u32, DatapathError> {
        if size == 0 {
            return Ok(0);
        }
        lock(&self.maglev).take(size).ok_or_else(|| DatapathError::MaglevFull {
            service: format!("{}:{}/{}", frontend.ip, frontend.port, frontend.protocol),
            slots: usize::try_from(size).unwrap_or(usize::MAX),
        })
    }

    /// Writes slots: all into a new stretch (`None`), else those that differ from what is known or else read.
    fn write_slots(
        &self,
        offset: u32,
        slots: &[u32],
        present: Option<Option<&ServiceEntry>>,
    ) -> Result<usize, DatapathError> {
        let mut written = 0;
        for (position, (index, backend)) in (offset..).zip(slots).enumerate() {
            let same = match present {
                None => false,
                Some(Some(before)) => before.maglev.get(position) == Some(backend),
                Some(None) => self.tables.maglev.get(index)? == *backend,
            };
            if !same {
                self.tables.maglev.set(index, *backend)?;
                written += 1;
            }
        }
        Ok(written)
    }

    /// Deletes a service. Its reverse translation stays as long as flows need it: [`Self::gc`] deletes it then.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn delete_service(&self, frontend: &Frontend) -> Result<(), DatapathError> {
        let key = frontend.key();
        let old = self.tables.services.get(key)?;
        self.tables.services.delete(key)?;
        let Some(old) = old else { return Ok(()) };
        self.left.notify_one();
        self.let_go(&key, old.rev_nat)?;
        if old.maglev_size > 0 {
            lock(&self.maglev).free(old.maglev_offset);
        }
        Ok(())
    }

    /// What else is kept under the number of a row that is gone.
    fn let_go(&self, key: &abi::ServiceKey, number: u32) -> Result<(), DatapathError> {
        self.leave((number, key.scope), &BTreeSet::new())?;
        if Frontend::from_key(key).scope == Scope::External {
            self.admit_only(number, None)?;
            self.front_only((number, key.proto), &BTreeSet::new())?;
        }
        self.release_rev_nat(number);
        Ok(())
    }

    /// All services with their Maglev tables.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn services(&self) -> Result<BTreeMap<Frontend, ServiceEntry>, DatapathError> {
        let rows = self.tables.services.dump()?.into_iter();
        rows.map(|(key, row)| Ok((Frontend::from_key(&key), self.service_entry(&row)?))).collect()
    }

    /// The service of a frontend, with its Maglev table.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn service(&self, frontend: &Frontend) -> Result<Option<ServiceEntry>, DatapathError> {
        self.tables.services.get(frontend.key())?.map(|row| self.service_entry(&row)).transpose()
    }

    fn service_entry(&self, row: &abi::Service) -> Result<ServiceEntry, DatapathError> {
        let end = row.maglev_offset.saturating_add(row.maglev_size);
        let slots: Result<Vec<u32>, DatapathError> =
            (row.maglev_offset..end).map(|index| self.tables.maglev.get(index)).collect();
        Ok(ServiceEntry {
            rev_nat: row.rev_nat,
            maglev: slots?,
            local_only: row.flags & abi::SVC_LOCAL_ONLY != 0,
            source_ranges: (row.flags & abi::SVC_SOURCE_RANGE != 0).then(|| self.admitted(row.rev_nat)),
            affinity_secs: row.affinity_secs,
            node_port: row.flags & abi::SVC_NODEPORT != 0,
            host_port: row.flags & abi::SVC_HOSTPORT != 0,
        })
    }
}
