//! A router's FIB while a fault lasts, from the kernel's own notifications.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::follow::Follow;
use crate::checks::access::Place;
use crate::checks::check::Failure;
use crate::checks::context::Context;
use crate::checks::poll;
use crate::checks::routers::{self, Ends, Routes};

/// Prefixes of documentation that no router of the lab has, one a family.
const PROBES: [&str; 2] = ["192.0.2.77", "2001:db8:77::1"];
/// How long the monitor may take to begin, and to tell of the probe.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long one probe is waited for while the monitor begins.
const PROBE_PATIENCE: Duration = Duration::from_secs(2);

/// Notes everything that happens to a router's FIB.
pub(super) struct FibWatch {
    router: String,
    ends: Arc<Ends>,
    monitor: Follow,
}

impl FibWatch {
    /// Starts watching one router and waits until the monitor has told of a probe route.
    ///
    /// # Errors
    /// When `ip monitor` cannot be started there or tells nothing.
    pub(super) async fn start(context: &Context, router: &str) -> Result<Self, Failure> {
        let place = Place::node(router);
        let monitor = Follow::start(
            context,
            &place,
            &["ip", "-o", "monitor", "route"],
            &format!("the FIB monitor on {router}"),
        )?;
        let ends = Ends::of_lab(context).await?;
        let watch = Self { router: router.to_owned(), ends, monitor };
        // A probe set before the monitor listens is not told: it is set again.
        poll::until(PATIENCE, || watch.probe(context, PROBE_PATIENCE)).await?;
        Ok(watch)
    }

    /// The router.
    #[must_use]
    pub(super) fn router(&self) -> &str {
        &self.router
    }

    /// Sets and removes a route of its own in both families and waits until the monitor has told of both: then it
    /// is alive and has told of everything that came before.
    async fn probe(&self, context: &Context, patience: Duration) -> Result<(), Failure> {
        let told = |lines: &[String], probe: &str| {
            let gone =
                |line: &&String| line.starts_with("Deleted") && line.split(' ').any(|word| word == probe);
            lines.iter().filter(gone).count()
        };
        let lines = self.monitor.said().lines;
        let before = PROBES.map(|probe| told(&lines, probe));
        let commands: Vec<String> = PROBES
            .iter()
            .map(|probe| {
                format!(
                    "ip route add unreachable {probe} proto 250 && ip route del unreachable {probe} proto 250"
                )
            })
            .collect();
        context.access.text(&Place::node(&self.router), &["sh", "-c", &commands.join(" && ")]).await?;
        let all =
            |lines: &[String]| PROBES.iter().zip(before).all(|(probe, before)| told(lines, probe) > before);
        self.monitor.wait_for(patience, all).await
    }

    /// Fails when one of the `expected` prefixes was deleted, or lost one of its next hops, even for a moment; returns
    /// how many notifications there were beside those of the probes.
    ///
    /// # Errors
    /// The notifications; or that the monitor did not live to the end.
    pub(super) async fn judge(&self, context: &Context, expected: &[&Routes]) -> Result<usize, Failure> {
        self.probe(context, PATIENCE).await?;
        self.monitor.alive()?;
        let lines = self.monitor.said().lines;
        let mut wrong = Vec::new();
        for routes in expected {
            wrong.extend(lines.iter().filter_map(|line| harm(line, (&self.ends, &self.router), routes)));
        }
        if wrong.is_empty() {
            let probe = |line: &&String| line.split(' ').any(|word| PROBES.contains(&word));
            return Ok(lines.iter().filter(|line| !probe(line)).count());
        }
        let what = format!("no route and no next hop leaves the FIB of {}", self.router);
        Err(Failure::new(what, wrong.join("; "), self.monitor.look()))
    }
}

/// What a notification takes away from the expected routes.
fn harm(line: &str, (ends, router): (&Ends, &str), expected: &Routes) -> Option<String> {
    let told = routers::notified(line, ends, router)?;
    let hops = expected.get(&told.prefix)?;
    let lost: BTreeSet<&IpAddr> = hops.difference(&told.hops).collect();
    if told.deleted {
        Some(format!("{} is deleted: {line:?}", told.prefix))
    } else if lost.is_empty() {
        None
    } else {
        Some(format!("{} loses {lost:?}: {line:?}", told.prefix))
    }
}

#[cfg(test)]
mod tests {
    use ipnet::IpNet;

    use super::*;

    #[test]
    fn deletions_and_lost_next_hops_are_harm() {
        let prefix = |text: &str| text.parse::<IpNet>().expect("literal");
        let hops = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("literal")).collect();
        let expected = Routes::from([
            (prefix("10.1.1.0/24"), hops(&["172.20.11.2"])),
            (prefix("203.0.113.1/32"), hops(&["172.20.11.2", "172.20.12.2"])),
            (prefix("fd00:10:1:1::/64"), hops(&["fd00:20:11::2"])),
        ]);
        let ends = Ends::of("n1", &["172.20.11.2/24", "fd00:20:11::2/64", "fe80::1/64"]);
        let harm = |line: &str| harm(line, (&ends, "tor"), &expected).is_some();
        assert!(harm("Deleted 10.1.1.0/24 via 172.20.11.2 dev eth1 proto bird "));
        assert!(harm("Deleted 203.0.113.1 nhid 14 proto bgp metric 20 "));
        assert!(harm("203.0.113.1 via 172.20.11.2 dev eth1 proto bird metric 32 "));
        assert!(harm("203.0.113.1 proto bird metric 32 \\\tnexthop via 172.20.11.2 dev eth1 weight 1 "));
        assert!(!harm(
            "203.0.113.1 nhid 14 proto bird metric 32 \\\tnexthop via 172.20.11.2 dev eth1 weight 1 \\\tnexthop via 172.20.12.2 dev eth2 weight 1 "
        ));
        assert!(harm("Deleted fd00:10:1:1::/64 via fd00:20:11::2 dev eth1 proto bird metric 32 pref medium"));
        assert!(!harm("fd00:10:1:1::/64 via fe80::1 dev eth1 proto bgp metric 20 pref medium"));
        assert!(!harm("10.1.1.0/24 via inet6 fe80::1 dev eth1 proto bird metric 32 "));
        assert!(harm("10.1.1.0/24 via inet6 fe80::2 dev eth1 proto bird metric 32 "));
        assert!(harm("unreachable 10.1.1.0/24 proto bird "));
        assert!(!harm("Deleted 10.9.0.0/16 via 172.20.11.2 dev eth1"));
        assert!(!harm("Deleted 10.1.1.0/24 via 172.20.11.2 dev eth1 table 77 proto bird "));
        assert!(!harm("Deleted default via x") && !harm("") && !harm("Deleted"));
    }
}
