//! How fast UPDATEs are read: 10 NLRI each, as in `make bench-bgp`. Prints; fails only below a fiftieth of the goal, as test machines are shared.

#![cfg(test)]

mod support;

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use tombolo_bgp::wire::{
    self, AsPath, AttributeSet, Attributes, EncodeContext, Update, UpdateContext, UpdateView, Verdict,
};
use tombolo_bgp::{Family, NextHop};

const PREFIXES: u32 = 100_000;
/// Prefixes a second and core (issue 3, part 1).
const GOAL: f64 = 1e6;

/// UPDATE bodies of `per` /24s each; the attributes of every `sets`-th are the same.
fn bodies(per: u32, sets: u32) -> Vec<Vec<u8>> {
    (0..PREFIXES / per)
        .map(|update| {
            let attributes = Attributes {
                as_path: AsPath::sequence(&[65002, 3356, 1299, 64_512 + update % sets]),
                med: Some(update % sets),
                communities: (0..3).map(|n| wire::Community(0xfde8_0000 + n)).collect(),
                ..Attributes::default()
            };
            let routes: Vec<ipnet::IpNet> = (0..per)
                .map(|n| {
                    ipnet::IpNet::new(std::net::Ipv4Addr::from((update * per + n) << 8).into(), 24).unwrap()
                })
                .collect();
            let hop = NextHop::new([10, 0, 0, 1].into());
            let mut out = Vec::new();
            wire::announce(
                &attributes,
                &hop,
                Family::Ipv4Unicast,
                &routes,
                EncodeContext::default(),
                &mut out,
            )
            .unwrap();
            out.split_off(wire::HEADER_LEN)
        })
        .collect()
}

/// A store as a RIB would keep: bytes to decoded set.
#[derive(Default)]
struct Store(HashMap<u64, Vec<Kept>>);

/// The bytes and what they say.
type Kept = (Vec<u8>, Arc<AttributeSet>);

impl Store {
    fn get(&mut self, view: &UpdateView<'_>, context: &UpdateContext) -> Arc<AttributeSet> {
        let bucket = self.0.entry(view.key().hash64(1)).or_default();
        if let Some((_, set)) = bucket.iter().find(|(bytes, _)| view.key().is(bytes)) {
            return Arc::clone(set);
        }
        let mut bytes = Vec::with_capacity(view.key().len());
        view.key().append_to(&mut bytes);
        let set = Arc::new(view.attributes(context));
        bucket.push((bytes, Arc::clone(&set)));
        set
    }
}

fn measure(name: &str, bodies: &[Vec<u8>], mut read: impl FnMut(&[u8]) -> usize) -> f64 {
    let best = (0..3)
        .map(|_| {
            let start = Instant::now();
            let count: usize = bodies.iter().map(|body| read(black_box(body))).sum();
            f64::from(u32::try_from(count).unwrap()) / start.elapsed().as_secs_f64()
        })
        .fold(0.0, f64::max);
    println!("{name}: {:.2} M prefixes/s", best / 1e6);
    best
}

#[test]
fn a_full_table_is_read_in_time() {
    let context = UpdateContext {
        four_octet_as: true,
        ebgp: true,
        families: Family::ALL.to_vec(),
        ..UpdateContext::default()
    };
    for (per, sets) in [(1, 1 << 20), (10, 1 << 20), (10, 1000), (100, 1 << 20)] {
        let bodies = bodies(per, sets);
        let mut store = Store::default();
        let shape = format!("{per} NLRI, {} sets", sets.min(PREFIXES / per));
        let viewed = measure(&format!("view and store, {shape}"), &bodies, |body| {
            let view = UpdateView::parse(body, &context).unwrap();
            let set = store.get(&view, &context);
            assert_eq!(view.judge(&set, &mut Vec::new()), Ok(Verdict::Accept));
            view.announced(&set)
                .flat_map(|run| run.nlri.routes())
                .fold(0, |count, route| count + usize::from(black_box(route).path_id == 0))
        });
        let decoded = measure(&format!("view and decode, {shape}"), &bodies, |body| {
            let view = UpdateView::parse(body, &context).unwrap();
            let set = view.attributes(&context);
            assert_eq!(view.judge(&set, &mut Vec::new()), Ok(Verdict::Accept));
            view.announced(&set)
                .flat_map(|run| run.nlri.routes())
                .fold(0, |count, route| count + usize::from(black_box(route).path_id == 0))
        });
        let owned = measure(&format!("owned Update, {shape}"), &bodies, |body| {
            Update::decode(body, &context)
                .unwrap()
                .reach
                .iter()
                .map(|reach| black_box(&reach.prefixes).len())
                .sum()
        });
        if per >= 10 {
            assert!(viewed.min(decoded).min(owned) > GOAL / 50.0, "{viewed} {decoded} {owned}");
        }
    }
}
