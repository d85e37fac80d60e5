//! The certificate by which a cluster reads the others expires while connections stand; they break; it is renewed.

use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::super::known;
use super::super::scene::{Etcd, RESYNC_PATIENCE, SETTLE, Scene};
use super::node;
use crate::checks::access::Place;
use crate::checks::check::{CheckResult, Failure};
use crate::checks::context::Context;
use crate::checks::poll;
use crate::pki;

/// Life of the certificate that expires: the agents look at their files once a minute, and must take it up alive.
const LIFE: Duration = Duration::from_secs(90);
/// How long agents may take to take up a changed certificate, and to tell of one that has expired.
const NOTICE: Duration = Duration::from_secs(75);
/// The renewed one's: longer than any clock of the lab is set on.
const LONG: Duration = Duration::from_secs(20 * 365 * 86_400);

/// A certificate that was made short; renewed when dropped.
struct Short<'a> {
    context: &'a Context,
    name: String,
    due: bool,
}

impl Short<'_> {
    fn issue(&self, life: Duration) -> Result<(), Failure> {
        let certificates = &self.context.inventory.certificates;
        let what = format!("issuing {} anew", self.name);
        let failed = |why: String| Failure::tool(&what, why, "the lab's pki folder");
        let wanted =
            certificates.issue.get(&self.name).ok_or_else(|| failed("lab.yaml names none".to_owned()))?;
        let folder = self.context.inventory.lab_dir.join("pki");
        pki::reissue_until(&certificates.ca, &self.name, wanted, &folder, SystemTime::now() + life)
            .map_err(|error| failed(error.to_string()))
    }
}

impl Drop for Short<'_> {
    fn drop(&mut self) {
        if self.due
            && let Err(failure) = self.issue(LONG)
        {
            eprintln!("the lab stays broken: {failure}");
        }
    }
}

/// Fails unless a node reads a cluster with a certificate that ends then.
async fn in_use_until(context: &Context, reader: &str, cluster: &str, end: u64) -> Result<(), Failure> {
    let (place, argv) = (Place::node(reader), ["tombolo", "mesh", "status", "-o", "json"]);
    let all: Vec<Value> = context.access.json(&place, &argv, NOTICE).await?;
    let remote = all.iter().find(|remote| remote["name"] == cluster);
    let shown = remote.and_then(|remote| remote["certificate-expires-unix-secs"].as_u64());
    // Written in whole seconds, a moment after the end was reckoned.
    if shown.is_some_and(|at| at <= end + 5) {
        return Ok(());
    }
    Err(Failure::new(
        format!("{reader} reads {cluster} with the certificate that ends at {end}"),
        format!("one that ends at {shown:?}"),
        context.access.shown(&place, &argv),
    ))
}

fn unix_secs(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

pub(super) async fn expires(context: &Context, cluster: &str) -> CheckResult {
    let reader = node(context, cluster)?;
    let other = context.inventory.other(cluster);
    let other = other.ok_or_else(|| Failure::new("another cluster", "none", "lab.yaml"))?;
    let scene = Scene::set(context, &other.name).await?;
    let loads = scene.loads().await?;
    let mut short = Short { context, name: format!("remote-{cluster}"), due: true };
    let end = unix_secs(SystemTime::now() + LIFE);
    short.issue(LIFE)?;
    let place = Place::node(reader);
    // It must be in use before it expires: a file that nobody took up is another fault.
    poll::until(NOTICE, || in_use_until(context, reader, &other.name, end)).await?;
    let says = |wanted: bool| async move {
        let argv = ["tombolo", "mesh", "status", "-o", "json"];
        let all: Vec<Value> = context.access.json(&place.clone(), &argv, NOTICE).await?;
        // Not `last-failure`, which stays.
        let now = |remote: &Value| format!("{} {}", remote["status"], remote["warnings"]);
        let text = all.iter().map(now).collect::<Vec<_>>().join("; ");
        if text.contains("expired") == wanted {
            return Ok(());
        }
        let what =
            format!("{reader} says {} that a certificate has expired", if wanted { "" } else { "no longer" });
        Err(Failure::new(what, text, context.access.shown(&Place::node(reader), &argv)))
    };
    let (_, noticed) = poll::until(LIFE + NOTICE, || says.clone()(true)).await?;
    // The connection that stands is kept.
    scene.unchanged().await?;
    // Now it breaks, and cannot be made again.
    context.access.verb("kill-agent", &other.etcd).await?;
    poll::until(SETTLE, || async {
        let remote = known::remote(context, reader, &other.name).await?;
        if !remote.connected && remote.status.contains("expired") {
            return Ok(());
        }
        Err(Failure::new(
            format!("{reader} says why {} is not read", other.name),
            remote.status,
            "tombolo mesh status",
        ))
    })
    .await?;
    let changed = scene.change()?;
    scene.hold().await?;
    short.issue(LONG)?;
    short.due = false;
    scene.applied(1).await?;
    let took = scene.resync(RESYNC_PATIENCE, Etcd::Same).await?;
    poll::until(NOTICE, || says.clone()(false)).await?;
    changed.restore()?;
    scene.applied(2).await?;
    let sum =
        scene.unharmed(loads, &format!("while the certificate of {cluster} expires and is renewed")).await?;
    Ok(vec![
        format!(
            "told {:.1} s after it was taken up; in sync {:.1} s after its renewal",
            noticed.as_secs_f64(),
            took.as_secs_f64()
        ),
        super::kept(&scene),
        sum,
    ])
}
