//! Targets are looked at again: at once when the kernel tells that a route or device was disturbed, and now and then.
//!
//! Devices first: what is gone is made anew as at start, the userspace WireGuard unit with it, and the datapath is told
//! the new numbers. Then the reconcilers compare and write what differs.

use super::drive::Driver;
use super::node;
use crate::config::{Config, Encryption, Identity};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tombolo_base::table::{Row, Table};
use tombolo_ebpf::Datapath;
use tombolo_netlink::Netlink;
use tombolo_topology::{NodeRow, RouteEntry, WireguardPeer};
use tombolo_tunnel as tunnel;

/// How often everything is looked at without a reason, up to a quarter more or less.
const AUDIT: Duration = Duration::from_secs(300);
/// First and last wait before devices that cannot be made are tried again.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// What it takes to make the node's devices again.
pub(crate) struct Watcher {
    /// The configuration.
    pub(crate) config: Config,
    /// Who this node is.
    pub(crate) identity: Identity,
    /// Its Node object.
    pub(crate) own: NodeRow,
    /// The datapath.
    pub(crate) datapath: Arc<Datapath>,
    /// The kernel of this namespace.
    pub(crate) netlink: Netlink,
    /// WireGuard, if packets are encrypted.
    pub(crate) wireguard: Option<tunnel::Wireguard>,
    /// The routes that are to be there.
    pub(crate) routes: Table<RouteEntry>,
}

impl Watcher {
    fn devices(&self) -> BTreeSet<String> {
        let overlay = self.config.datapath.has_tunnel().then_some(tunnel::VXLAN_DEVICE);
        let wireguard =
            (self.config.datapath.encryption == Encryption::Wireguard).then_some(tunnel::WIREGUARD_DEVICE);
        let own = [tunnel::HOST_DEVICE, tunnel::NET_DEVICE].into_iter().chain(overlay).chain(wireguard);
        own.chain([self.config.node.underlay_interface.as_str()]).map(str::to_owned).collect()
    }

    /// Watches until cancelled.
    pub(crate) async fn run(self, driver: Driver) {
        let settings = tunnel::RouteSettings::default();
        let mut disturbances =
            tunnel::Disturbances::listen(self.netlink.clone(), settings, self.devices()).await;
        let mut audit = Instant::now() + spread(driver.seed, 0);
        let mut audits = 0;
        // What happened before anybody listened is not known.
        let mut retry = self.repair(&driver, None).await;
        loop {
            let again = retry.map_or(audit, |(at, _)| at.min(audit));
            let is_wanted = |prefix| self.routes.snapshot().get(&prefix).is_some();
            let check_devices = tokio::select! {
                () = driver.cancel.cancelled() => return,
                found = disturbances.next(is_wanted) => {
                    if found.routes {
                        driver.resync.ask(&[RouteEntry::TABLE]);
                    }
                    found.devices
                }
                () = tokio::time::sleep_until(again) => true,
            };
            if check_devices {
                retry = self.repair(&driver, retry).await;
            }
            if Instant::now() >= audit {
                audits += 1;
                audit = Instant::now() + spread(driver.seed, audits);
                driver.resync.ask_all();
            }
        }
    }

    /// Makes devices that are gone; when to try again if that fails.
    async fn repair(
        &self,
        driver: &Driver,
        failed: Option<(Instant, Duration)>,
    ) -> Option<(Instant, Duration)> {
        match self.is_in_place().await {
            Ok(()) => return None,
            Err(what) => {
                tracing::warn!(what, "the node's devices are not as they were made; they are made again")
            }
        }
        match node::set_up(&self.config, &self.identity, &self.own, &self.datapath).await {
            Ok(_) => {
                driver.resync.ask(&[RouteEntry::TABLE, WireguardPeer::TABLE]);
                None
            }
            Err(error) => {
                let wait = failed.map_or(RETRY_MIN, |(_, wait)| (wait * 2).min(RETRY_MAX));
                tracing::error!(
                    error = format!("{error:#}"),
                    "the node's devices cannot be made; it is tried again"
                );
                Some((Instant::now() + wait, wait))
            }
        }
    }

    /// Whether every device is there, up, and the one the datapath knows; else what is not.
    async fn is_in_place(&self) -> Result<(), String> {
        let known = self.datapath.config().map_err(|error| error.to_string())?;
        for name in self.devices() {
            let link = self.netlink.find_link(&name).await.map_err(|error| error.to_string())?;
            let link = link.ok_or_else(|| format!("{name} is gone"))?;
            let expected = match name.as_str() {
                tunnel::VXLAN_DEVICE => known.overlay_ifindex,
                tunnel::WIREGUARD_DEVICE => known.wireguard_ifindex,
                tunnel::HOST_DEVICE | tunnel::NET_DEVICE => link.index,
                // The uplink is the administrator's: it may be down.
                _ if link.index == known.uplink_ifindex => continue,
                _ => known.uplink_ifindex,
            };
            if link.index != expected {
                return Err(format!("{name} is another device than before"));
            }
            if !link.up {
                return Err(format!("{name} is down"));
            }
        }
        match &self.wireguard {
            // A userspace unit that does not answer is started again.
            Some(wireguard) => wireguard.state().await.map(drop).map_err(|error| error.to_string()),
            None => Ok(()),
        }
    }
}

/// [`AUDIT`] give or take a quarter, so that nodes do not do it in step.
fn spread(seed: u64, round: u64) -> Duration {
    let mixed = seed.wrapping_add(round).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
    let share = f64::from(u8::try_from(mixed).unwrap_or(0)) / 255.0;
    AUDIT.mul_f64(0.75 + share / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn audits_are_spread_around_five_minutes() {
        let all: BTreeSet<Duration> = (0..100).map(|round| spread(7, round)).collect();
        assert!(all.len() > 50);
        assert!(
            all.iter().all(|wait| *wait >= Duration::from_secs(225) && *wait <= Duration::from_secs(376))
        );
    }
}
