//! The plaintext detector: captures on every router for the whole traffic phase, judged at its end, and around every
//! fault.
//!
//! Every underlay link of the lab ends at a router, so captures there see every one. With encryption off the
//! detector must find the tokens of all checks that cross nodes (that shows it works); with WireGuard none, and no
//! frame of the overlay or with a pod's address outside, but those of packets to and from the outside client, which
//! is no WireGuard peer. A capture that missed a frame proves nothing and fails.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Child;

use super::access::Place;
use super::ask;
use super::check::{CheckResult, Failure, Family};
use super::context::Context;
use crate::workload::{CaptureReport, Sighting};

/// How long a capture may take to begin, and to print its report.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// Running captures by router.
pub struct Wiretap {
    running: BTreeMap<String, Child>,
    /// Tokens that were given out before it began.
    old: BTreeSet<String>,
}

/// Port of the overlay (`vxlan_port` in the agents' configuration).
const OVERLAY_PORT: &str = "8472";

/// The capture's command line: tokens are always looked for; overlay frames and pods' addresses in the outer header
/// are flagged where encryption must hide them.
fn argv(context: &Context) -> Vec<String> {
    let mut words: Vec<String> =
        ["tombolo", "lab-probe", "capture", "--until-eof", "--prefix", &context.token_prefix]
            .map(str::to_owned)
            .into();
    if context.variant.encrypted() {
        words.extend(["--flag-udp", OVERLAY_PORT].map(str::to_owned));
        let nodes = context.inventory.clusters.values().flat_map(|cluster| cluster.nodes.values());
        for cidr in nodes.flat_map(|node| &node.pod_cidrs) {
            words.extend(["--flag-net".to_owned(), cidr.trunc().to_string()]);
        }
    }
    words
}

fn as_strs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

/// Starts a capture on every router and waits until each has begun.
///
/// # Errors
/// When one does not begin.
pub(super) async fn start(context: &Context) -> Result<Wiretap, Failure> {
    let mut running = BTreeMap::new();
    let old =
        context.tokens.lock().unwrap_or_else(std::sync::PoisonError::into_inner).keys().cloned().collect();
    let argv = argv(context);
    let argv = as_strs(&argv);
    for router in context.inventory.routers.keys() {
        let place = Place::node(router);
        let mut child = context.access.spawn(&place, &argv)?;
        let began = async {
            let stderr = child.stderr.take()?;
            let mut lines = BufReader::new(stderr).lines();
            let mut said = Vec::new();
            while let Ok(Some(line)) = lines.next_line().await {
                if line == "capturing" {
                    return Some(Ok(()));
                }
                said.push(line);
            }
            Some(Err(said.join(" ")))
        };
        let why = match tokio::time::timeout(PATIENCE, began).await {
            Ok(Some(Ok(()))) => None,
            Ok(Some(Err(said))) => Some(said),
            Ok(None) => Some("its error output could not be opened".to_owned()),
            Err(_) => Some(format!("it did not begin within {} s", PATIENCE.as_secs())),
        };
        if let Some(why) = why {
            let what = format!("the capture on {router}");
            return Err(Failure::tool(&what, why, context.access.shown(&place, &argv)));
        }
        running.insert(router.clone(), child);
    }
    Ok(Wiretap { running, old })
}

impl Wiretap {
    /// Ends every capture and collects the reports.
    async fn stop(self, context: &Context) -> Result<BTreeMap<String, CaptureReport>, Failure> {
        let mut reports = BTreeMap::new();
        let argv = argv(context);
        let argv = as_strs(&argv);
        for (router, mut child) in self.running {
            let failed = |why: String| {
                let what = format!("the report of the capture on {router}");
                Failure::tool(&what, why, context.access.shown(&Place::node(&router), &argv))
            };
            // Closing its input is the order to stop.
            drop(child.stdin.take());
            let mut stdout = child.stdout.take().ok_or_else(|| failed("no output".to_owned()))?;
            let mut text = Vec::new();
            let read = tokio::time::timeout(PATIENCE, stdout.read_to_end(&mut text)).await;
            read.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))?;
            let report = serde_json::from_slice(&text).map_err(|error| failed(error.to_string()))?;
            reports.insert(router, report);
        }
        Ok(reports)
    }
}

/// Judges what the captures of the traffic phase saw.
///
/// # Errors
/// With WireGuard: the first plaintext. Without: the checks whose tokens the detector missed.
pub(super) async fn judge(context: &Context) -> CheckResult {
    let Some(wiretap) = context.wiretap.lock().await.take() else {
        let look = "`tombolo lab test` without --only, which can leave out the traffic";
        return Err(Failure::new("captures of the traffic phase", "none were made", look));
    };
    if !crossed(context, &wiretap) {
        let look = "`tombolo lab test` without --only, which can leave out the traffic";
        return Err(Failure::new("checks that cross nodes ran before this one", "none did", look));
    }
    judge_tap(context, wiretap).await
}

/// Whether a token of packets that cross nodes was given out since the captures began.
fn crossed(context: &Context, wiretap: &Wiretap) -> bool {
    let tokens = context.tokens.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    tokens.iter().any(|(token, used)| used.between_nodes && !wiretap.old.contains(token))
}

/// Ends the captures around a fault and judges what they saw.
///
/// # Errors
/// As [`judge`]; and when a capture missed frames or could not list what it saw.
pub(super) async fn judge_tap(context: &Context, mut wiretap: Wiretap) -> CheckResult {
    let old = std::mem::take(&mut wiretap.old);
    let reports = wiretap.stop(context).await?;
    whole(context, &reports)?;
    let mut outside = BTreeSet::new();
    for family in Family::BOTH {
        outside.insert(ask::client_address(context, family).await?);
    }
    let frames: u64 = reports.values().map(|report| report.frames).sum();
    if frames == 0 {
        let look = "`tombolo lab exec ROUTER -- tcpdump -ni any`";
        return Err(Failure::new("frames on the underlay links", "the captures read none", look));
    }
    let plain = between_nodes(&reports, &outside, |report| &report.sightings);
    if context.variant.encrypted() {
        let flagged = between_nodes(&reports, &outside, |report| &report.flagged);
        judge_encrypted(context, frames, &plain, &flagged)
    } else {
        judge_plain(context, frames, &plain, &old)
    }
}

/// Fails when a capture did not see, or could not list, everything.
fn whole(context: &Context, reports: &BTreeMap<String, CaptureReport>) -> Result<(), Failure> {
    let lacking: Vec<String> = reports
        .iter()
        .filter(|(_, report)| report.missed > 0 || report.unlisted > 0)
        .map(|(router, report)| {
            format!(
                "{router}: {} frames dropped by the kernel and {} not listed, of {}",
                report.missed, report.unlisted, report.frames
            )
        })
        .collect();
    let Some(router) = reports.keys().next() else { return Ok(()) };
    if lacking.is_empty() {
        return Ok(());
    }
    let argv = argv(context);
    let look = context.access.shown(&Place::node(router), &as_strs(&argv));
    Err(Failure::new(
        "captures that see every frame",
        lacking.join("; "),
        format!("the machine's load; {look}"),
    ))
}

/// Sightings on a router, that are not of packets to or from the outside.
fn between_nodes<'a>(
    reports: &'a BTreeMap<String, CaptureReport>,
    outside: &BTreeSet<IpAddr>,
    list: impl Fn(&'a CaptureReport) -> &'a Vec<Sighting>,
) -> Vec<(&'a str, &'a Sighting)> {
    let is_outside = |address: Option<IpAddr>| address.is_some_and(|address| outside.contains(&address));
    reports
        .iter()
        .flat_map(|(router, report)| list(report).iter().map(move |sighting| (router.as_str(), sighting)))
        .filter(|(_, sighting)| !is_outside(sighting.source) && !is_outside(sighting.destination))
        .collect()
}

fn judge_encrypted(
    context: &Context,
    frames: u64,
    plain: &[(&str, &Sighting)],
    flagged: &[(&str, &Sighting)],
) -> CheckResult {
    let look = "`tombolo lab exec ROUTER -- tcpdump -ni INTERFACE -A` and `tombolo show nodes`";
    if !plain.is_empty() {
        let tokens = context.tokens.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let check = |token: &str| tokens.get(token).map_or("an unknown check", |used| &used.check).to_owned();
        let got = told(plain, check);
        return Err(Failure::new("no plaintext of any check on any underlay link", got, look));
    }
    if !flagged.is_empty() {
        let what = "no overlay frame and no pod's address outside of WireGuard on any underlay link";
        return Err(Failure::new(what, told(flagged, str::to_owned), look));
    }
    Ok(vec![format!("{frames} frames on the underlay, no plaintext")])
}

/// Some sightings in words.
fn told(seen: &[(&str, &Sighting)], name: impl Fn(&str) -> String) -> String {
    let some = seen.iter().take(5).map(|(router, seen)| {
        format!(
            "{} frames of {} on {router} {} ({:?} -> {:?}, protocol {:?} port {:?})",
            seen.frames,
            name(&seen.token),
            seen.interface,
            seen.source,
            seen.destination,
            seen.protocol,
            seen.destination_port
        )
    });
    format!("{} sightings: {}", seen.len(), some.collect::<Vec<_>>().join("; "))
}

/// The tokens given out since the capture began must have been found, of those that cross nodes.
fn judge_plain(
    context: &Context,
    frames: u64,
    plain: &[(&str, &Sighting)],
    old: &BTreeSet<String>,
) -> CheckResult {
    let seen: BTreeSet<&str> = plain.iter().map(|(_, sighting)| sighting.token.as_str()).collect();
    let tokens = context.tokens.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let crossing: Vec<_> =
        tokens.iter().filter(|(token, used)| used.between_nodes && !old.contains(*token)).collect();
    let missed: Vec<&str> = crossing
        .iter()
        .filter(|(token, _)| !seen.contains(token.as_str()))
        .map(|(_, used)| used.check.as_str())
        .collect();
    let look = "`tombolo lab exec ROUTER -- tombolo lab-probe capture --prefix TOKEN`";
    if !missed.is_empty() {
        let got = format!("nothing of {} of {}: {}", missed.len(), crossing.len(), missed.join(", "));
        return Err(Failure::new(
            "with encryption off the detector finds every check that crosses nodes",
            got,
            look,
        ));
    }
    Ok(vec![format!("{frames} frames, the plaintext of all {} crossing checks found", crossing.len())])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sighting(source: &str, destination: &str) -> Sighting {
        Sighting {
            token: "t".into(),
            interface: "eth1".into(),
            source: Some(source.parse().expect("literal")),
            destination: Some(destination.parse().expect("literal")),
            protocol: Some(17),
            destination_port: Some(8472),
            frames: 1,
        }
    }

    #[test]
    fn packets_of_the_outside_client_are_no_plaintext_between_nodes() {
        let report = CaptureReport {
            sightings: vec![sighting("172.20.200.10", "203.0.113.1"), sighting("172.20.11.2", "172.20.12.2")],
            ..CaptureReport::default()
        };
        let reports = BTreeMap::from([("east-tor".to_owned(), report)]);
        let outside = BTreeSet::from(["172.20.200.10".parse().expect("literal")]);
        let plain = between_nodes(&reports, &outside, |report| &report.sightings);
        assert_eq!(plain.len(), 1);
        assert_eq!(plain[0].1.source, Some("172.20.11.2".parse().expect("literal")));
    }
}
