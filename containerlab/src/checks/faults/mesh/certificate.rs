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

/// Life of the certificate that expires: the agents look at their files once a minute, and must see it alive.
const LIFE: Duration = Duration::from_secs(5);
/// How long agents may take to tell of an expired certificate.
const NOTICE: Duration = Duration::from_secs(90);
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

pub(super) async fn expires(context: &Context, cluster: &str) -> CheckResult {
    let reader = node(context, cluster)?;
    let other = context.inventory.other(cluster);
    let other = other.ok_or_else(|| Failure::new("another cluster", "none", "lab.yaml"))?;
    let scene = Scene::set(context, &other.name).await?;
    let loads = scene.loads().await?;
    let mut short = Short { context, name: format!("remote-{cluster}"), due: true };
    short.issue(LIFE)?;
    let place = Place::node(reader);
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
    let (_, noticed) = poll::until(NOTICE, || says.clone()(true)).await?;
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
            "told after {:.1} s; in sync {:.1} s after its renewal",
            noticed.as_secs_f64(),
            took.as_secs_f64()
        ),
        super::kept(&scene),
        sum,
    ])
}
