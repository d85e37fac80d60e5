//! Relay.
mod mirror;
#[cfg(test)]
mod mirror_tests;
