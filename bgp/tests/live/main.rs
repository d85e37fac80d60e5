//! A speaker on real TCP before a peer that says everything wrong: each error of RFC 4271 section 6 has its NOTIFICATION, each of RFC 7606
//! the least treatment, and nothing else ends a session or makes the process grow.

#![cfg(test)]
#![allow(unreachable_pub)]

mod cease;
mod client;
mod damaged;
mod errors;
mod messages;
mod openings;
#[path = "../support/mod.rs"]
mod support;
mod treatments;
