//! The hash by which the programs choose a Maglev slot (`flow_hash` in `ebpf/bpf/lb.h`), so that user space can tell which
//! backend a flow will get.

use crate::packet::{Protocol, Socket};
use std::net::IpAddr;

fn mix(hash: u32, word: u32) -> u32 {
    let word = word.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
    (hash ^ word).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64)
}

/// Hash of a flow to a frontend: source and destination with ports, and the IP protocol. The slot is this modulo the
/// table's size.
#[must_use]
pub fn flow_hash(source: Socket, destination: Socket, protocol: Protocol) -> u32 {
    let words = |ip: IpAddr| {
        let mapped = match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        let bytes = u128::from(mapped);
        [96, 64, 32, 0].map(|shift| u32::try_from(bytes >> shift & 0xffff_ffff).unwrap_or_default())
    };
    let ports = u32::from(source.1) << 16 | u32::from(destination.1);
    let tail = [ports, u32::from(protocol)];
    let all = words(source.0).into_iter().chain(words(destination.0)).chain(tail);
    let mut hash = all.fold(0x746f_6d62, mix);
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}
