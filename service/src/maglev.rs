//! Maglev tables (Eisenbud et al., NSDI 2016, section 3.4) with a fixed hash: the same table on every node.

use std::net::IpAddr;
use std::sync::Arc;

/// Table sizes, primes; the smallest with at least a hundred slots a backend is taken.
pub const SIZES: [u16; 7] = [251, 509, 1021, 2039, 4093, 8191, 16381];

/// The size for more than [`MANY`] backends. Of the flows that a backend's end does not concern more move the fewer slots a
/// backend has: 1.6 % at a hundred slots, 0.7 % at four hundred. Of many backends one goes often, so they get those.
pub const LARGEST: u16 = 65521;

/// Up to so many backends the sizes are what they were before there was a larger one: nodes of both versions agree.
pub const MANY: usize = 100;

/// What identifies a backend in the hash: the same on every node and over restarts.
pub type Identity = (IpAddr, u16, u8);

/// The table size for a number of backends.
#[must_use]
pub fn table_size(backends: usize) -> u16 {
    if backends > MANY {
        return LARGEST;
    }
    let wanted = backends.saturating_mul(100);
    SIZES.into_iter().find(|size| usize::from(*size) >= wanted).unwrap_or(16381)
}

/// The table size for weights: the lightest backend gets about twenty slots, so that its share is met within a few
/// percent; never fewer than [`table_size`] gives.
#[must_use]
pub fn weighted_size(weights: &[u32]) -> u16 {
    let all: u64 = weights.iter().map(|weight| u64::from((*weight).max(1))).sum();
    let least = u64::from(weights.iter().copied().min().unwrap_or(1).max(1));
    let wanted = all.saturating_mul(20) / least;
    let by_weight = SIZES.into_iter().find(|size| u64::from(*size) >= wanted).unwrap_or(16381);
    by_weight.max(table_size(weights.len()))
}

/// Positions into `backends`, one per slot; empty for fewer than two backends. At most 65,535 backends take part.
///
/// A backend takes slots in proportion to its weight; without `weights` all are alike. A packet looks up one slot
/// whatever the weights are.
#[must_use]
pub fn table(backends: &[Identity], weights: &[u32]) -> Arc<[u16]> {
    let count = u16::try_from(backends.len()).unwrap_or(u16::MAX);
    if count < 2 {
        return Arc::from([]);
    }
    let size = if weights.is_empty() { table_size(usize::from(count)) } else { weighted_size(weights) };
    let heaviest = u64::from(weights.iter().copied().max().unwrap_or(1).max(1));
    let weights = weights.iter().copied().map(|weight| u64::from(weight.max(1)));
    let weights = weights.chain(std::iter::repeat(heaviest));
    let mut permutations: Vec<_> = (0..count)
        .zip(backends)
        .zip(weights)
        .map(|((n, id), weight)| (Permutation::new(n, id, u64::from(size)), weight, 0))
        .collect();
    let mut slots: Vec<Option<u16>> = vec![None; usize::from(size)];
    let mut free = slots.len();
    // Each backend in turn takes its next free preferred slot; every permutation visits every slot, so this ends. One
    // of half the greatest weight has its turn in every second round: with equal weights in every one.
    while free > 0 {
        for (permutation, weight, saved) in &mut permutations {
            *saved += *weight;
            if *saved >= heaviest {
                *saved -= heaviest;
                if free > 0 && permutation.take_next(&mut slots) {
                    free -= 1;
                }
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
        let table = table(&backends(3), &[]);
        assert_eq!(table.len(), 509);
        // Written down once: another hash would move every flow of every running mesh.
        let head: Vec<u16> = table.iter().take(16).copied().collect();
        assert_eq!(head, GOLDEN);
    }

    const GOLDEN: [u16; 16] = [2, 2, 2, 1, 2, 0, 0, 2, 0, 2, 2, 1, 0, 0, 0, 2];

    #[test]
    fn shares_are_even_and_a_removal_moves_little() {
        let all = backends(20);
        let before = table(&all, &[]);
        for n in 0..20u16 {
            let share = before.iter().filter(|slot| **slot == n).count();
            assert!((before.len() / 20 - 2..=before.len() / 20 + 2).contains(&share), "{n}: {share}");
        }
        let fewer: Vec<_> = all.iter().copied().filter(|id| id.0 != IpAddr::from([10, 1, 1, 7])).collect();
        let after = table(&fewer, &[]);
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
            (table_size(1), table_size(3), table_size(MANY), table_size(MANY + 1)),
            (251, 509, 16381, 65521)
        );
        assert!(table(&backends(1), &[]).is_empty());
    }

    /// Of the flows that one of 160 backends did not have at most 1 % get another when it goes, whoever it is.
    #[test]
    fn of_160_backends_one_that_goes_moves_at_most_one_percent() {
        for weights in [vec![], (0..160).map(|n| if n % 4 == 0 { 60 } else { 15 }).collect::<Vec<u32>>()] {
            let all = backends(160);
            let before = table(&all, &weights);
            assert_eq!(before.len(), usize::from(LARGEST));
            for gone in (0..160_u16).step_by(23) {
                let left = |n: &usize| *n != usize::from(gone);
                let fewer: Vec<_> = (0..160).filter(left).map(|n| all[n]).collect();
                let lighter: Vec<_> = (0..weights.len()).filter(left).map(|n| weights[n]).collect();
                let after = table(&fewer, &lighter);
                let others = before.iter().zip(after.iter()).filter(|(old, _)| **old != gone);
                let moved =
                    others.clone().filter(|(old, new)| all[usize::from(**old)] != fewer[usize::from(**new)]);
                let (moved, others) = (moved.count(), others.count());
                assert!(moved * 100 <= others, "{gone}: {moved} of {others}");
            }
        }
    }

    fn slots_of(table: &[u16], n: usize) -> usize {
        table.iter().filter(|slot| usize::from(**slot) == n).count()
    }

    #[test]
    fn equal_weights_are_no_weights() {
        for n in [2, 3, 20] {
            let all = backends(n);
            let weights = vec![7; usize::from(n)];
            assert_eq!(table(&all, &weights), table(&all, &[]));
        }
    }

    #[test]
    fn shares_follow_the_weights() {
        for weights in
            [vec![80, 20], vec![1, 99], vec![40, 40, 10, 10], vec![1, 1000], vec![3, 0, 5], vec![1; 30]]
        {
            let all = backends(u8::try_from(weights.len()).unwrap());
            let table = table(&all, &weights);
            let sum: u32 = weights.iter().map(|weight| (*weight).max(1)).sum();
            for (n, weight) in weights.iter().enumerate() {
                let wanted = table.len() as f64 * f64::from((*weight).max(1)) / f64::from(sum);
                let got = slots_of(&table, n) as f64;
                assert!((got - wanted).abs() <= 1.0 + wanted * 0.02, "{weights:?} {n}: {got} for {wanted}");
            }
        }
    }

    /// Slots that change hands although neither their old nor their new backend had to change.
    #[test]
    fn with_weights_too_a_removal_or_another_weight_moves_little() {
        let all = backends(12);
        let weights: Vec<u32> = (0..12).map(|n| if n < 4 { 60 } else { 15 }).collect();
        let before = table(&all, &weights);
        for gone in [1_u16, 7] {
            let left = |n: &usize| *n != usize::from(gone);
            let fewer: Vec<_> = (0..12).filter(left).map(|n| all[n]).collect();
            let lighter: Vec<_> = (0..12).filter(left).map(|n| weights[n]).collect();
            let after = table(&fewer, &lighter);
            assert_eq!(before.len(), after.len());
            let moved = before
                .iter()
                .zip(after.iter())
                .filter(|(old, new)| **old != gone && all[usize::from(**old)] != fewer[usize::from(**new)]);
            let moved = moved.count();
            assert!(moved * 100 <= before.len() * 8, "{gone}: {moved} of {}", before.len());
        }
        // 60 to 50 of 360: 10/360 of the slots must move.
        let mut other = weights.clone();
        other[0] = 50;
        let after = table(&all, &other);
        let moved = before.iter().zip(after.iter()).filter(|(old, new)| old != new).count();
        assert!(moved * 100 <= before.len() * 12, "{moved} of {}", before.len());
    }
}
