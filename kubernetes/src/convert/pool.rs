//! CiliumLoadBalancerIPPool.

use super::{address, labels, number, optional_selector, prefix, word};
use crate::crd::{self, Block, PodPoolSpec, PoolSpec};
use crate::object::{Object, ObjectId};
use crate::problem::Issue;
use std::collections::BTreeSet;
use std::net::IpAddr;
use tombolo_base::prefix::Prefix;
use tombolo_base::source::Source;
use tombolo_service::pools::{LbPool, PoolBlock};
use tombolo_topology::bgp::intent::PodPoolRow;

/// Blocks of one pool; far above what anybody writes by hand.
const MAX_BLOCKS: usize = 1024;

fn shift(ip: IpAddr, up: bool) -> IpAddr {
    match ip {
        IpAddr::V4(v4) if up => IpAddr::V4(u32::from(v4).saturating_add(1).into()),
        IpAddr::V4(v4) => IpAddr::V4(u32::from(v4).saturating_sub(1).into()),
        IpAddr::V6(v6) if up => IpAddr::V6(u128::from(v6).saturating_add(1).into()),
        IpAddr::V6(v6) => IpAddr::V6(u128::from(v6).saturating_sub(1).into()),
    }
}

/// First and last address of a CIDR; both are cut off when `all` is false and more than two remain.
fn of_cidr(net: &Prefix, all: bool) -> PoolBlock {
    let (first, last) = (net.net().network(), net.net().broadcast());
    let bits_left = if net.is_ipv4() { 32 } else { 128 } - net.prefix_len();
    if all || bits_left < 2 {
        PoolBlock { first, last }
    } else {
        PoolBlock { first: shift(first, true), last: shift(last, false) }
    }
}

fn block(at: &str, entry: &Block, all: bool) -> Result<PoolBlock, Issue> {
    match (&entry.cidr, &entry.start, &entry.stop) {
        (Some(text), None, None) => Ok(of_cidr(&prefix(format!("{at}.cidr"), text)?, all)),
        (None, Some(start), stop) => {
            let first = address(format!("{at}.start"), start)?;
            let last = match stop {
                Some(stop) => address(format!("{at}.stop"), stop)?,
                None => first,
            };
            if first.is_ipv4() != last.is_ipv4() || first > last {
                let reason = format!("{first} to {last} is no range");
                return Err(Issue::new(at, reason, "start and stop need one family, start first"));
            }
            Ok(PoolBlock { first, last })
        }
        _ => Err(Issue::new(at, "the block is neither a cidr nor a range", "write cidr, or start and stop")),
    }
}

pub(super) fn pool(id: &ObjectId, spec: PoolSpec) -> Result<Object, Issue> {
    let words = [("Yes", true), ("No", false)];
    let all = word("spec.allowFirstLastIPs", spec.allow_first_last_ips.as_deref().unwrap_or("Yes"), &words)?;
    if spec.blocks.len() + spec.cidrs.len() > MAX_BLOCKS {
        let reason = format!("{} blocks", spec.blocks.len() + spec.cidrs.len());
        return Err(Issue::new("spec.blocks", reason, format!("use at most {MAX_BLOCKS}")));
    }
    let mut blocks = Vec::new();
    for (key, entries) in [("blocks", &spec.blocks), ("cidrs", &spec.cidrs)] {
        for (position, entry) in entries.iter().enumerate() {
            blocks.push(block(&format!("spec.{key}[{position}]"), entry, all)?);
        }
    }
    Ok(Object::Pool(Box::new(LbPool {
        source: Source::Manifests,
        name: id.name.clone(),
        blocks,
        selector: optional_selector("spec.serviceSelector", spec.service_selector)?,
        disabled: spec.disabled.unwrap_or(false),
    })))
}

/// CiliumPodIPPool: what its prefixes are decides which of a node's are advertised as the pool's.
pub(super) fn pod_pool(id: &ObjectId, object: crd::Object<PodPoolSpec>) -> Result<Object, Issue> {
    let mut cidrs = BTreeSet::new();
    for (family, entry, ipv4) in [("ipv4", object.spec.ipv4, true), ("ipv6", object.spec.ipv6, false)] {
        let Some(entry) = entry else { continue };
        if entry.cidrs.is_empty() || entry.cidrs.len() > MAX_BLOCKS {
            let reason = format!("{} prefixes", entry.cidrs.len());
            return Err(Issue::new(format!("spec.{family}.cidrs"), reason, format!("use 1 to {MAX_BLOCKS}")));
        }
        number::<u8>(format!("spec.{family}.maskSize"), entry.mask_size, 1, if ipv4 { 32 } else { 128 })?;
        for (position, text) in entry.cidrs.iter().enumerate() {
            let at = format!("spec.{family}.cidrs[{position}]");
            let cidr = prefix(at.clone(), text)?;
            if cidr.is_ipv4() != ipv4 {
                return Err(Issue::new(
                    at,
                    format!("{cidr} is of the other family"),
                    "put it under the other key",
                ));
            }
            cidrs.insert(cidr);
        }
    }
    Ok(Object::PodPool(Box::new(PodPoolRow {
        source: Source::Manifests,
        name: id.name.clone(),
        labels: labels(object.metadata.labels),
        cidrs,
    })))
}
