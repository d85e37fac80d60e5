//! Host-local address management: the node hands out the addresses of its own pod CIDRs. Pure.
//!
//! An address that was released is not handed out again while others are free, so that what still remembers it (a
//! client's connection, a remote node's table) does not meet another pod.

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use tombolo_base::prefix::Prefix;

/// Released addresses that are remembered per pod CIDR; in a larger CIDR the oldest are forgotten first, and there the
/// cursor keeps clear of them long enough.
const QUARANTINE_MAX: usize = 4096;

/// Why no address can be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    /// Too small for a gateway and a pod.
    #[error("the pod CIDR {0} is too small: it needs at least two usable addresses (/30 or /126)")]
    TooSmall(Prefix),
    /// Two CIDRs of the node overlap.
    #[error("the pod CIDRs {0} and {1} overlap; give the node disjoint ones in spec.podCIDRs")]
    Overlap(Prefix, Prefix),
    /// All addresses are in use.
    #[error(
        "no free {family} address in the node's pod CIDRs ({cidrs}); delete pods or give the node a larger CIDR"
    )]
    Full {
        /// "IPv4" or "IPv6".
        family: &'static str,
        /// The CIDRs searched.
        cidrs: String,
    },
    /// The node has no pod CIDR at all.
    #[error("the node has no pod CIDR; set spec.podCIDRs in its manifest")]
    NoCidr,
}

/// The node's own address in a pod CIDR, which is the pods' gateway: the first usable one. None if the CIDR is too small.
#[must_use]
pub fn gateway(cidr: &Prefix) -> Option<IpAddr> {
    let host_bits = bits(cidr) - cidr.prefix_len();
    (host_bits >= 2).then(|| at(cidr, 1))
}

/// What outlives the agent besides the endpoints themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolMemory {
    cidr: Option<Prefix>,
    next: u128,
    quarantine: VecDeque<IpAddr>,
}

/// What came of claiming an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is the claimant's.
    Taken,
    /// It lies in no pool: the node's pod CIDRs have changed.
    Foreign,
    /// Somebody else has it.
    InUse,
}

/// The addresses of one pod CIDR.
#[derive(Clone, Debug)]
struct Pool {
    cidr: Prefix,
    used: BTreeSet<IpAddr>,
    memory: PoolMemory,
}

/// The addresses of all pod CIDRs of this node.
#[derive(Clone, Debug)]
pub struct Ipam {
    pools: Vec<Pool>,
}

impl Ipam {
    /// Pools of the node's pod CIDRs; one pod gets one address of each family that has a CIDR.
    ///
    /// # Errors
    /// [`IpamError`] when a CIDR is too small, two overlap, or there is none.
    pub fn new(cidrs: &[Prefix], memory: &[PoolMemory]) -> Result<Self, IpamError> {
        let mut pools: Vec<Pool> = Vec::new();
        for cidr in cidrs {
            if gateway(cidr).is_none() {
                return Err(IpamError::TooSmall(*cidr));
            }
            if let Some(other) = pools.iter().find(|pool| pool.cidr.overlaps(cidr)) {
                return Err(IpamError::Overlap(other.cidr, *cidr));
            }
            let kept = memory.iter().find(|memory| memory.cidr == Some(*cidr)).cloned();
            let memory =
                kept.unwrap_or(PoolMemory { cidr: Some(*cidr), next: 2, quarantine: VecDeque::new() });
            pools.push(Pool { cidr: *cidr, used: BTreeSet::new(), memory });
        }
        if pools.is_empty() { Err(IpamError::NoCidr) } else { Ok(Self { pools }) }
    }

    /// Takes one address of each family, or none at all.
    ///
    /// # Errors
    /// [`IpamError::Full`].
    pub fn allocate(&mut self) -> Result<Vec<IpAddr>, IpamError> {
        let mut taken = Vec::new();
        for (v4, family) in [(true, "IPv4"), (false, "IPv6")] {
            let mut cidrs = Vec::new();
            let mut found = None;
            for pool in self.pools.iter_mut().filter(|pool| pool.cidr.is_ipv4() == v4) {
                cidrs.push(pool.cidr.to_string());
                found = found.or_else(|| pool.take());
            }
            match found {
                Some(address) => taken.push(address),
                None if cidrs.is_empty() => {}
                None => {
                    taken.into_iter().for_each(|address| self.put_back(address));
                    return Err(IpamError::Full { family, cidrs: cidrs.join(", ") });
                }
            }
        }
        Ok(taken)
    }

    /// Marks an address of a restored endpoint as used.
    pub fn claim(&mut self, address: IpAddr) -> Claim {
        match self.pools.iter_mut().find(|pool| pool.cidr.contains(address)) {
            None => Claim::Foreign,
            Some(pool) => match pool.used.insert(address) {
                true => Claim::Taken,
                false => Claim::InUse,
            },
        }
    }

    /// Puts an address aside that an endpoint of an earlier life had: others may still remember it.
    pub fn quarantine(&mut self, address: IpAddr) {
        if self.claim(address) == Claim::Taken {
            self.release(address);
        }
    }

    /// Gives an address back. It is the last to be handed out again. An unknown one is ignored.
    pub fn release(&mut self, address: IpAddr) {
        for pool in self.pools.iter_mut().filter(|pool| pool.cidr.contains(address)) {
            if pool.used.remove(&address) {
                pool.memory.quarantine.push_back(address);
                if pool.memory.quarantine.len() > QUARANTINE_MAX {
                    pool.memory.quarantine.pop_front();
                }
            }
        }
    }

    /// Gives back an address that nobody has seen: no quarantine.
    fn put_back(&mut self, address: IpAddr) {
        for pool in self.pools.iter_mut().filter(|pool| pool.cidr.contains(address)) {
            pool.used.remove(&address);
        }
    }

    /// The gateway of the pool that an address comes from.
    #[must_use]
    pub fn gateway_of(&self, address: IpAddr) -> Option<IpAddr> {
        self.pools.iter().find(|pool| pool.cidr.contains(address)).and_then(|pool| gateway(&pool.cidr))
    }

    /// What must be kept on disk so that a restart does not hand out fresh releases.
    #[must_use]
    pub fn memory(&self) -> Vec<PoolMemory> {
        self.pools.iter().map(|pool| pool.memory.clone()).collect()
    }

    /// (in use, usable) by CIDR; usable is capped at `u64::MAX`.
    #[must_use]
    pub fn usage(&self) -> Vec<(Prefix, usize, u64)> {
        let count = |pool: &Pool| u64::try_from(pool.last() - 1).unwrap_or(u64::MAX);
        self.pools.iter().map(|pool| (pool.cidr, pool.used.len(), count(pool))).collect()
    }
}

impl Pool {
    /// Offset of the last usable address: IPv4 keeps the broadcast address out.
    fn last(&self) -> u128 {
        let host_bits = u32::from(bits(&self.cidr) - self.cidr.prefix_len());
        let all = 1u128.checked_shl(host_bits).map_or(u128::MAX, |size| size - 1);
        if self.cidr.is_ipv4() { all - 1 } else { all }
    }

    /// The next address that is neither used nor fresh; else the one released longest ago.
    fn take(&mut self) -> Option<IpAddr> {
        let last = self.last();
        let fresh: BTreeSet<IpAddr> = self.memory.quarantine.iter().copied().collect();
        // Offsets 2..=last are handed out; among one more candidate than there are taken ones is a free one.
        let tries = u128::try_from(self.used.len() + fresh.len()).unwrap_or(u128::MAX).saturating_add(1);
        let mut offset = self.memory.next.clamp(2, last);
        for _ in 0..tries.min(last - 1) {
            let candidate = at(&self.cidr, offset);
            offset = if offset >= last { 2 } else { offset + 1 };
            if !self.used.contains(&candidate) && !fresh.contains(&candidate) {
                self.memory.next = offset;
                self.used.insert(candidate);
                return Some(candidate);
            }
        }
        while let Some(oldest) = self.memory.quarantine.pop_front() {
            if self.used.insert(oldest) {
                return Some(oldest);
            }
        }
        None
    }
}

fn bits(cidr: &Prefix) -> u8 {
    if cidr.is_ipv4() { 32 } else { 128 }
}

/// The address at an offset from the CIDR's first.
fn at(cidr: &Prefix, offset: u128) -> IpAddr {
    match cidr.address() {
        IpAddr::V4(base) => {
            let offset = u32::try_from(offset).unwrap_or(u32::MAX);
            Ipv4Addr::from(u32::from(base).saturating_add(offset)).into()
        }
        IpAddr::V6(base) => Ipv6Addr::from(u128::from(base).saturating_add(offset)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn dual() -> Ipam {
        Ipam::new(&[cidr("10.1.1.0/29"), cidr("fd00:10:1:1::/64")], &[]).unwrap()
    }

    #[test]
    fn the_first_usable_address_is_the_gateway_and_pods_begin_behind_it() {
        let mut ipam = dual();
        assert_eq!(ipam.allocate().unwrap(), [ip("10.1.1.2"), ip("fd00:10:1:1::2")]);
        assert_eq!(ipam.allocate().unwrap(), [ip("10.1.1.3"), ip("fd00:10:1:1::3")]);
        assert_eq!(ipam.gateway_of(ip("10.1.1.3")), Some(ip("10.1.1.1")));
        assert_eq!(ipam.gateway_of(ip("fd00:10:1:1::3")), Some(ip("fd00:10:1:1::1")));
        assert_eq!(ipam.usage(), [(cidr("10.1.1.0/29"), 2, 5), (cidr("fd00:10:1:1::/64"), 2, u64::MAX - 1)]);
    }

    #[test]
    fn a_released_address_comes_last_even_after_a_restart() {
        let mut ipam = Ipam::new(&[cidr("10.1.1.0/29")], &[]).unwrap();
        let first = ipam.allocate().unwrap();
        let second = ipam.allocate().unwrap();
        ipam.release(first[0]);
        let mut restarted = Ipam::new(&[cidr("10.1.1.0/29")], &ipam.memory()).unwrap();
        assert_eq!(restarted.claim(second[0]), Claim::Taken);
        let mut order: Vec<IpAddr> = (0..4).map(|_| restarted.allocate().unwrap()[0]).collect();
        assert_eq!(order.pop(), Some(ip("10.1.1.2")), "only when all others are used");
        assert_eq!(order, [ip("10.1.1.4"), ip("10.1.1.5"), ip("10.1.1.6")]);
        assert!(matches!(restarted.allocate(), Err(IpamError::Full { family: "IPv4", .. })));
    }

    #[test]
    fn releases_come_back_in_the_order_in_which_they_were_made() {
        let mut ipam = Ipam::new(&[cidr("10.1.1.0/29")], &[]).unwrap();
        let all: Vec<IpAddr> = (0..5).map(|_| ipam.allocate().unwrap()[0]).collect();
        for index in [3, 0, 4] {
            ipam.release(all[index]);
        }
        let again: Vec<IpAddr> = (0..3).map(|_| ipam.allocate().unwrap()[0]).collect();
        assert_eq!(again, [all[3], all[0], all[4]]);
    }

    #[test]
    fn a_family_that_is_full_takes_nothing_from_the_other() {
        let mut ipam = Ipam::new(&[cidr("10.1.1.0/24"), cidr("fd00::/126")], &[]).unwrap();
        ipam.allocate().unwrap();
        ipam.allocate().unwrap();
        assert!(matches!(ipam.allocate(), Err(IpamError::Full { family: "IPv6", .. })));
        assert_eq!(ipam.usage()[0].1, 2);
    }

    #[test]
    fn wrong_cidrs_are_refused_with_their_name() {
        assert_eq!(Ipam::new(&[], &[]).unwrap_err(), IpamError::NoCidr);
        assert_eq!(
            Ipam::new(&[cidr("10.0.0.0/31")], &[]).unwrap_err(),
            IpamError::TooSmall(cidr("10.0.0.0/31"))
        );
        let overlap = Ipam::new(&[cidr("10.0.0.0/16"), cidr("10.0.1.0/24")], &[]);
        assert!(matches!(overlap, Err(IpamError::Overlap(..))));
        assert_eq!(gateway(&cidr("10.0.0.0/30")), Some(ip("10.0.0.1")));
        assert_eq!(gateway(&cidr("::/0")), Some(ip("::1")));
    }

    #[test]
    fn claims_of_foreign_or_used_addresses_are_refused() {
        let mut ipam = dual();
        assert_eq!(ipam.claim(ip("10.1.1.4")), Claim::Taken);
        assert_eq!(ipam.claim(ip("10.1.1.4")), Claim::InUse);
        assert_eq!(ipam.claim(ip("10.9.9.9")), Claim::Foreign);
        ipam.quarantine(ip("10.1.1.4"));
        ipam.quarantine(ip("10.9.9.9"));
        ipam.release(ip("10.9.9.9"));
        let taken: Vec<_> = (0..4).map(|_| ipam.allocate().unwrap()[0]).collect();
        assert!(!taken.contains(&ip("10.1.1.4")), "{taken:?}");
    }

    /// Any order of takes and releases: never one address twice, never the gateway, and a fresh release only when
    /// nothing else is free.
    #[test]
    fn random_histories_keep_the_promises() {
        for seed in 1..200u64 {
            let mut state = seed;
            let mut next = move || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                usize::try_from(state >> 40).unwrap()
            };
            let mut ipam = Ipam::new(&[cidr("10.1.1.0/28"), cidr("fd00::/124")], &[]).unwrap();
            let mut held: Vec<Vec<IpAddr>> = Vec::new();
            let mut released: Vec<IpAddr> = Vec::new();
            for _ in 0..200 {
                if next() % 2 == 0 && !held.is_empty() {
                    let gone = held.swap_remove(next() % held.len());
                    for address in gone {
                        ipam.release(address);
                        released.push(address);
                    }
                } else if let Ok(taken) = ipam.allocate() {
                    for address in &taken {
                        assert!(!held.iter().flatten().any(|other| other == address), "seed {seed}");
                        assert!(
                            ![ip("10.1.1.1"), ip("fd00::1"), ip("10.1.1.0"), ip("10.1.1.15")]
                                .contains(address)
                        );
                        if released.last() == Some(address) {
                            let family = |a: &&IpAddr| a.is_ipv4() == address.is_ipv4();
                            let usable = if address.is_ipv4() { 13 } else { 14 };
                            assert!(
                                held.iter().flatten().filter(family).count() + 1 == usable,
                                "seed {seed}"
                            );
                        }
                    }
                    held.push(taken);
                }
            }
        }
    }
}
