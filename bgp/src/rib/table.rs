//! The prefixes: a hash table for each family, so that a key takes no more bytes than it needs. Prefixes that follow each other lie side by
//! side in it ([`Key`]): speakers send them so, and a big table costs mostly what it costs to fetch its memory.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher};

use foldhash::fast::FixedState;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Destination;

/// Prefixes of one length that lie side by side: their numbers differ in this many bits only.
const NEAR_BITS: u32 = 4;
const NEAR: u8 = (1 << NEAR_BITS) - 1;

/// A prefix as a key: hashed as the block of 16 prefixes that it is in, then its place there. A place holds one prefix only, so nobody can
/// choose prefixes that crowd more than a block does, without knowing the seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key<N>(N);

impl Hash for Key<Ipv4Net> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let len = self.0.prefix_len();
        let number = self.0.addr().to_bits().checked_shr(32 - u32::from(len)).unwrap_or_default();
        state.write_u64(u64::from(len) << 32 | u64::from(number >> NEAR_BITS));
        let [.., last] = number.to_be_bytes();
        state.write_u8(last & NEAR);
    }
}

impl Hash for Key<Ipv6Net> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let len = self.0.prefix_len();
        let number = self.0.addr().to_bits().checked_shr(128 - u32::from(len)).unwrap_or_default();
        state.write_u128(number >> NEAR_BITS);
        state.write_u64(u64::from(len));
        let [.., last] = number.to_be_bytes();
        state.write_u8(last & NEAR);
    }
}

/// Hashes [`Key`]s: blocks anywhere, the prefixes of a block one after another.
#[derive(Clone, Debug)]
struct SideBySide(FixedState);

impl BuildHasher for SideBySide {
    type Hasher = Place<<FixedState as BuildHasher>::Hasher>;

    fn build_hasher(&self) -> Self::Hasher {
        Place { block: self.0.build_hasher(), near: 0 }
    }
}

struct Place<H> {
    block: H,
    near: u8,
}

impl<H: Hasher> Hasher for Place<H> {
    fn finish(&self) -> u64 {
        let near = u64::from(self.near);
        // The table takes the place from the low bits, and tells prefixes in one place apart by the high ones.
        self.block.finish().wrapping_add(near) ^ near << (64 - NEAR_BITS)
    }

    fn write(&mut self, bytes: &[u8]) {
        self.block.write(bytes);
    }

    fn write_u64(&mut self, word: u64) {
        self.block.write_u64(word);
    }

    fn write_u128(&mut self, word: u128) {
        self.block.write_u128(word);
    }

    fn write_u8(&mut self, near: u8) {
        self.near = near;
    }
}

/// Both families' prefixes.
#[derive(Debug)]
pub(super) struct Tables {
    v4: HashMap<Key<Ipv4Net>, Destination, SideBySide>,
    v6: HashMap<Key<Ipv6Net>, Destination, SideBySide>,
}

impl Tables {
    /// Empty tables. The seed keeps peers from choosing prefixes that collide.
    pub(super) fn new(seed: u64) -> Self {
        let state = SideBySide(FixedState::with_seed(seed));
        Self { v4: HashMap::with_hasher(state.clone()), v6: HashMap::with_hasher(state) }
    }

    pub(super) fn get(&self, prefix: &IpNet) -> Option<&Destination> {
        match prefix {
            IpNet::V4(prefix) => self.v4.get(&Key(*prefix)),
            IpNet::V6(prefix) => self.v6.get(&Key(*prefix)),
        }
    }

    pub(super) fn get_mut(&mut self, prefix: &IpNet) -> Option<&mut Destination> {
        match prefix {
            IpNet::V4(prefix) => self.v4.get_mut(&Key(*prefix)),
            IpNet::V6(prefix) => self.v6.get_mut(&Key(*prefix)),
        }
    }

    /// The destination, made if there is none.
    pub(super) fn entry(&mut self, prefix: IpNet) -> &mut Destination {
        match prefix {
            IpNet::V4(prefix) => self.v4.entry(Key(prefix)).or_default(),
            IpNet::V6(prefix) => self.v6.entry(Key(prefix)).or_default(),
        }
    }

    pub(super) fn remove(&mut self, prefix: &IpNet) {
        match prefix {
            IpNet::V4(prefix) => drop(self.v4.remove(&Key(*prefix))),
            IpNet::V6(prefix) => drop(self.v6.remove(&Key(*prefix))),
        }
    }

    /// In no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (IpNet, &Destination)> {
        let v4 = self.v4.iter().map(|(prefix, destination)| (IpNet::V4(prefix.0), destination));
        v4.chain(self.v6.iter().map(|(prefix, destination)| (IpNet::V6(prefix.0), destination)))
    }

    /// In no order.
    pub(super) fn for_each_mut(&mut self, mut each: impl FnMut(IpNet, &mut Destination)) {
        self.v4.iter_mut().for_each(|(prefix, destination)| each(IpNet::V4(prefix.0), destination));
        self.v6.iter_mut().for_each(|(prefix, destination)| each(IpNet::V6(prefix.0), destination));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn places(hasher: &SideBySide, prefixes: impl Iterator<Item = Ipv4Net>) -> BTreeSet<u64> {
        prefixes.map(|prefix| hasher.hash_one(Key(prefix))).collect()
    }

    #[test]
    fn neighbours_lie_side_by_side_and_others_do_not() {
        let hasher = SideBySide(FixedState::with_seed(7));
        let nets = |first: u32, len: u8, count: u32| {
            (0..count).filter_map(move |at| Ipv4Net::new((first + (at << (32 - len))).into(), len).ok())
        };
        let low =
            |hashes: &BTreeSet<u64>| hashes.iter().map(|hash| hash & 0xffff_ffff).collect::<BTreeSet<_>>();
        let block = low(&places(&hasher, nets(0x0a00_0000, 24, 16)));
        assert_eq!(block.len(), 16);
        assert_eq!(block.last().unwrap() - block.first().unwrap(), 15);
        for len in [8, 16, 20, 24, 28, 32] {
            let all = places(&hasher, nets(0x0a00_0000, len, 200));
            assert_eq!(all.len(), 200, "prefixes of {len} bits collide");
        }
        // One address, every length: nothing crowds.
        let nested =
            (0..=32).filter_map(|len| Ipv4Net::new(0x0a00_0000.into(), len).ok().map(|net| net.trunc()));
        assert_eq!(low(&places(&hasher, nested)).len(), 33);
        let seeds = (0..100).map(|seed| SideBySide(FixedState::with_seed(seed)));
        let one: BTreeSet<u64> = seeds.flat_map(|hasher| places(&hasher, nets(0x0a00_0000, 24, 1))).collect();
        assert_eq!(one.len(), 100);
    }

    #[test]
    fn prefixes_are_found_again() {
        let mut tables = Tables::new(3);
        let text = [
            "0.0.0.0/0",
            "10.0.0.0/8",
            "10.0.0.0/24",
            "10.0.1.0/24",
            "192.0.2.1/32",
            "::/0",
            "2001:db8::/48",
            "2001:db8::1/128",
        ];
        let all: BTreeSet<IpNet> = text.iter().map(|text| text.parse().unwrap()).collect();
        all.iter().for_each(|prefix| drop(std::mem::take(tables.entry(*prefix))));
        assert_eq!(tables.iter().map(|(prefix, _)| prefix).collect::<BTreeSet<_>>(), all);
        for prefix in &all {
            assert!(tables.get(prefix).is_some());
            tables.remove(prefix);
            assert!(tables.get_mut(prefix).is_none());
        }
    }
}
