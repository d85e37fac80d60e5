//! The prefixes: a hash table for each family, so that a key takes no more bytes than it needs.

use std::collections::HashMap;

use foldhash::fast::FixedState;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Destination;

/// Both families' prefixes.
#[derive(Debug)]
pub(super) struct Tables {
    v4: HashMap<Ipv4Net, Destination, FixedState>,
    v6: HashMap<Ipv6Net, Destination, FixedState>,
}

impl Tables {
    /// Empty tables. The seed keeps peers from choosing prefixes that collide.
    pub(super) fn new(seed: u64) -> Self {
        let state = FixedState::with_seed(seed);
        Self { v4: HashMap::with_hasher(state.clone()), v6: HashMap::with_hasher(state) }
    }

    pub(super) fn get(&self, prefix: &IpNet) -> Option<&Destination> {
        match prefix {
            IpNet::V4(prefix) => self.v4.get(prefix),
            IpNet::V6(prefix) => self.v6.get(prefix),
        }
    }

    pub(super) fn get_mut(&mut self, prefix: &IpNet) -> Option<&mut Destination> {
        match prefix {
            IpNet::V4(prefix) => self.v4.get_mut(prefix),
            IpNet::V6(prefix) => self.v6.get_mut(prefix),
        }
    }

    /// The destination, made if there is none.
    pub(super) fn entry(&mut self, prefix: IpNet) -> &mut Destination {
        match prefix {
            IpNet::V4(prefix) => self.v4.entry(prefix).or_default(),
            IpNet::V6(prefix) => self.v6.entry(prefix).or_default(),
        }
    }

    pub(super) fn remove(&mut self, prefix: &IpNet) {
        match prefix {
            IpNet::V4(prefix) => drop(self.v4.remove(prefix)),
            IpNet::V6(prefix) => drop(self.v6.remove(prefix)),
        }
    }

    /// In no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (IpNet, &Destination)> {
        let v4 = self.v4.iter().map(|(prefix, destination)| (IpNet::V4(*prefix), destination));
        v4.chain(self.v6.iter().map(|(prefix, destination)| (IpNet::V6(*prefix), destination)))
    }

    /// In no order.
    pub(super) fn for_each_mut(&mut self, mut each: impl FnMut(IpNet, &mut Destination)) {
        self.v4.iter_mut().for_each(|(prefix, destination)| each(IpNet::V4(*prefix), destination));
        self.v6.iter_mut().for_each(|(prefix, destination)| each(IpNet::V6(*prefix), destination));
    }
}
