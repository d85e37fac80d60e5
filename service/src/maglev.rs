//! Maglev tables (Eisenbud et al., NSDI 2016, section 3.4) with a fixed hash: the same table on every node.

use std::net::IpAddr;
use std::sync::Arc;

/// Table sizes, primes; the smallest with at least a hundred slots a backend is taken, so that a backend that goes
/// moves at most about one in a hundred of the other flows.
pub const SIZES: [u16; 7] = [251, 509, 1021, 2039, 4093, 8191, 16381];

/// What identifies a backend in the hash: the same on every node and over restarts.
pub type Identity = (IpAddr, u16, u8);

/// The table size for a number of backends.
#[must_use]
pub fn table_size(backends: usize) -> u16 {
    let wanted = backends.saturating_mul(100);
    SIZES.into_iter().find(|size| usize::from(*size) >= wanted).unwrap_or(16381)
}

/// Positions into `backends`, one per slot; empty for fewer than two backends. At most 65,535 backends take part.
#[must_use]
pub fn table(backends: &[Identity]) -> Arc<[u16]> {
    let count = u16::try_from(backends.len()).unwrap_or(u16::MAX);
    if count < 2 {
        return Arc::from([]);
    }
    let size = u64::from(table_size(usize::from(count)));
    let mut permutations: Vec<_> =
        (0..count).zip(backends).map(|(n, id)| Permutation::new(n, id, size)).collect();
    let mut slots: Vec<Option<u16>> = vec![None; usize::try_from(size).unwrap_or(0)];
    let mut free = slots.len();
    // Each backend in turn takes its next free preferred slot; every permutation visits every slot, so this ends.
    while free > 0 {
        for permutation in &mut permutations {
            if free > 0 && permutation.take_next(&mut slots) {
                free -= 1;
            }
        }
    }
    slots.into_iter().map(|slot| slot.unwrap_or(0)).collect()
}

/// A backend's preference list: every slot once, from `offset` in steps of `skip`.
struct Permutation {
    position: u16,
    next: u64,
    skip: u64,
    size: u64,
}

impl Permutation {
    fn new(position: u16, id: &Identity, size: u64) -> Self {
        let (next, skip) = (hash(id, 0x746f_6d62) % size, hash(id, 0x6f6c_6f21) % (size - 1) + 1);
        Self { position, next, skip, size }
    }

    fn take_next(&mut self, slots: &mut [Option<u16>]) -> bool {
        for _ in 0..self.size {
            let at = usize::try_from(self.next).unwrap_or(0);
            self.next = (self.next + self.skip) % self.size;
            if let Some(slot @ None) = slots.get_mut(at) {
                *slot = Some(self.position);
                return true;
            }
        }
        false
    }
}

/// FNV-1a over address, port and protocol, finished with the murmur3 mixer. Fixed for ever: flows depend on it.
fn hash(id: &Identity, seed: u64) -> u64 {
    let mut bytes = [0u8; 19];
    let address = match id.0 {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let tail = [id.1.to_be_bytes()[0], id.1.to_be_bytes()[1], id.2];
    bytes.iter_mut().zip(address.into_iter().chain(tail)).for_each(|(to, from)| *to = from);
    let mut state = 0xcbf2_9ce4_8422_2325 ^ seed;
    for byte in bytes {
        state = (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    state = (state ^ (state >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    state = (state ^ (state >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    state ^ (state >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backends(n: u8) -> Vec<Identity> {
        (0..n).map(|i| (IpAddr::from([10, 1, 1, i]), 8080, 6)).collect()
    }

    #[test]
    fn golden_table() {
        let table = table(&backends(3));
        assert_eq!(table.len(), 509);
        // Written down once: another hash would move every flow of every running mesh.
        let head: Vec<u16> = table.iter().take(16).copied().collect();
        assert_eq!(head, GOLDEN);
    }

    const GOLDEN: [u16; 16] = [2, 2, 2, 1, 2, 0, 0, 2, 0, 2, 2, 1, 0, 0, 0, 2];

    #[test]
    fn shares_are_even_and_a_removal_moves_little() {
        let all = backends(20);
        let before = table(&all);
        for n in 0..20u16 {
            let share = before.iter().filter(|slot| **slot == n).count();
            assert!((before.len() / 20 - 2..=before.len() / 20 + 2).contains(&share), "{n}: {share}");
        }
        let fewer: Vec<_> = all.iter().copied().filter(|id| id.0 != IpAddr::from([10, 1, 1, 7])).collect();
        let after = table(&fewer);
        assert_eq!(before.len(), after.len());
        let moved = before.iter().zip(after.iter()).filter(|(old, new)| {
            let old = all[usize::from(**old)];
            old.0 != IpAddr::from([10, 1, 1, 7]) && old != fewer[usize::from(**new)]
        });
        let moved = moved.count();
        assert!(moved * 100 <= before.len() * 4, "{moved} of {}", before.len());
    }

    #[test]
    fn sizes() {
        assert_eq!(
            (table_size(1), table_size(3), table_size(163), table_size(60_000)),
            (251, 509, 16381, 16381)
        );
        assert!(table(&backends(1)).is_empty());
    }
}
