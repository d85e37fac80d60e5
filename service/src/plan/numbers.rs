//! Numbers of frontends: 65,535 for all services of a node, kept as long as the frontend lives.

use crate::numbers::Numbers;
use crate::rows::{FrontendKey, Scope, ServiceName};
use std::collections::{BTreeMap, BTreeSet};

/// Numbers that frontends of imports may have together: other clusters decide how many imports there are, and Services of
/// this cluster shall have theirs whatever those do.
const IMPORTED_MAX: usize = 32_768;

/// Both scopes of an address and port share one number: an answer is translated back whoever asked.
const fn number_key(key: FrontendKey) -> FrontendKey {
    FrontendKey { scope: Scope::Internal, ..key }
}

/// Who has which number, and who has none.
pub(super) struct FrontendNumbers {
    numbers: Numbers<FrontendKey>,
    /// Those of imports.
    imported: BTreeSet<FrontendKey>,
    /// Services some of whose frontends have none, with whether they carry an import.
    without: BTreeMap<ServiceName, bool>,
    /// Whether one was given back since [`Self::waiting`] was asked.
    freed: bool,
}

impl FrontendNumbers {
    pub(super) const fn new() -> Self {
        Self {
            numbers: Numbers::new(u16::MAX as u32),
            imported: BTreeSet::new(),
            without: BTreeMap::new(),
            freed: false,
        }
    }

    /// Takes over a pair found in the datapath.
    pub(super) fn restore(&mut self, key: FrontendKey, number: u16) {
        self.numbers.restore(number_key(key), u32::from(number));
    }

    /// The number of a frontend, if there is one for it.
    pub(super) fn of(&mut self, key: FrontendKey, import: bool) -> Option<u16> {
        let key = number_key(key);
        if import && !self.imported.contains(&key) && self.imported.len() >= IMPORTED_MAX {
            return None;
        }
        let number = u16::try_from(self.numbers.of(&key)?).ok()?;
        if import {
            self.imported.insert(key);
        }
        Some(number)
    }

    /// Gives back the number of a frontend that goes, unless another one of the service's, `staying`, has it too.
    pub(super) fn release(&mut self, key: FrontendKey, staying: &BTreeSet<FrontendKey>) {
        let key = number_key(key);
        if !staying.iter().any(|other| number_key(*other) == key) {
            self.imported.remove(&key);
            self.freed |= self.numbers.release(&key).is_some();
        }
    }

    /// Gives back every number that none of the `planned` has.
    pub(super) fn retain<'a>(&mut self, planned: impl Iterator<Item = &'a FrontendKey>) {
        let planned: BTreeSet<FrontendKey> = planned.copied().map(number_key).collect();
        self.numbers.retain(|key| planned.contains(key));
        self.imported.retain(|key| planned.contains(key));
        self.freed = true;
    }

    /// Notes whether a service lacks numbers.
    pub(super) fn note(&mut self, service: &ServiceName, import: bool, lacks: bool) {
        if lacks {
            self.without.insert(service.clone(), import);
        } else {
            self.without.remove(service);
        }
    }

    /// Services that may have a number now that they lacked.
    pub(super) fn waiting(&mut self) -> Vec<ServiceName> {
        let freed = std::mem::take(&mut self.freed);
        self.without.keys().filter(|_| freed).cloned().collect()
    }

    /// What is not served, and why.
    pub(super) fn problems(&self) -> Vec<String> {
        let text = |import: bool, why: &str| {
            let mut names = self.without.iter().filter(|(_, other)| **other == import).map(|(name, _)| name);
            let first = names.next()?;
            let count = names.count() + 1;
            Some(format!("services without frontends for all ports: {count}, {first} the first: {why}"))
        };
        let own =
            "all 65535 numbers of frontends (an address with a port) are in use; remove ports or services";
        let imported = format!(
            "imports have {IMPORTED_MAX} numbers of frontends (an address with a port) at most, or all are in use; export \
             fewer ports in the other clusters"
        );
        text(false, own).into_iter().chain(text(true, &imported)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::Protocol;

    fn key(address: u32, port: u16, scope: Scope) -> FrontendKey {
        let address = std::net::Ipv4Addr::from(address).into();
        FrontendKey { address, port, protocol: Protocol::Tcp, scope }
    }

    /// Other clusters cannot take this cluster's numbers, and who went without is told and has the next one.
    #[test]
    fn imports_leave_numbers_for_services() {
        let mut numbers = FrontendNumbers::new();
        let internal = |address, n: u32| key(address, u16::try_from(n).unwrap(), Scope::Internal);
        let imports = (1..=40_000).filter(|n| numbers.of(internal(1, *n), true).is_some()).count();
        assert_eq!(imports, IMPORTED_MAX);
        let name = |name: &str| ServiceName { namespace: "shop".into(), name: name.into() };
        numbers.note(&name("derived-a"), true, true);
        let own = (1..=65_535).filter(|n| numbers.of(internal(2, *n), false).is_some()).count();
        assert_eq!(own, 65_535 - IMPORTED_MAX);
        numbers.note(&name("web"), false, true);
        let problems = numbers.problems();
        assert!(problems[0].contains("shop/web") && problems[1].contains("shop/derived-a"), "{problems:?}");
        assert!(numbers.waiting().is_empty());
        // The other scope has the number still.
        let outside = key(2, 1, Scope::External);
        assert_eq!(numbers.of(outside, false), numbers.of(internal(2, 1), false));
        numbers.release(internal(2, 1), &[outside].into());
        assert!(numbers.waiting().is_empty());
        numbers.release(outside, &BTreeSet::new());
        assert_eq!(numbers.waiting(), [name("derived-a"), name("web")]);
        assert_eq!(numbers.of(internal(1, 39_999), true), None, "imports have all of theirs");
        assert!(numbers.of(internal(3, 1), false).is_some() && numbers.of(internal(3, 2), false).is_none());
        numbers.note(&name("web"), false, false);
        numbers.retain([internal(1, 1)].iter());
        assert_eq!((numbers.waiting(), numbers.problems().len()), (vec![name("derived-a")], 1));
        assert!(numbers.of(internal(1, 39_999), true).is_some());
    }
}
