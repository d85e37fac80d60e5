//! A load that runs beside a fault: `lab-probe hold` in a pod or on the client, its progress followed.

use std::net::IpAddr;
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::checks::access::Place;
use crate::checks::check::Failure;
use crate::checks::context::Context;
use crate::workload::LoadReport;

/// How long the first answer may take.
const BEGIN_PATIENCE: Duration = Duration::from_secs(15);
/// How long the last report may take after the order to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(20);
/// Progress lines (one a second) without a failure after which traffic counts as right again.
const QUIET_LINES: u32 = 5;

/// What a load is made of.
#[derive(Debug, Clone)]
pub(super) struct LoadPlan {
    /// What it stands for, in messages: `tcp client-1 -> web-2 ipv4`.
    pub name: String,
    /// Where it runs.
    pub place: Place,
    /// `tcp`, `udp`, `connect` or `http`.
    pub protocol: &'static str,
    /// Target address.
    pub target: IpAddr,
    /// Target port.
    pub port: u16,
    /// Connections; of `connect` and `http` the requests at once.
    pub connections: u32,
    /// Requests a second.
    pub rate: u32,
    /// Time for each request in milliseconds.
    pub timeout_ms: u32,
    /// Whether its packets must cross an underlay link: without encryption the captures must see them.
    pub crosses: bool,
}

/// A running load. Dropping it stops it.
pub(super) struct Load {
    plan: LoadPlan,
    look: String,
    input: Option<ChildStdin>,
    latest: watch::Receiver<Option<LoadReport>>,
    reader: JoinHandle<()>,
    _child: Child,
}

impl Drop for Load {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Load {
    /// Starts a load and waits until it is answered.
    ///
    /// # Errors
    /// When it is not: the fault has not struck yet.
    pub(super) async fn start(context: &Context, plan: LoadPlan) -> Result<Self, Failure> {
        let (target, port) = (plan.target.to_string(), plan.port.to_string());
        let (rate, timeout) = (plan.rate.to_string(), plan.timeout_ms.to_string());
        let connections = plan.connections.to_string();
        let token = context.token(&plan.name, plan.crosses);
        let argv = [
            "tombolo",
            "lab-probe",
            "hold",
            plan.protocol,
            &target,
            &port,
            "--rate",
            &rate,
            "--connections",
            &connections,
            "--timeout-ms",
            &timeout,
            "--token",
            &token,
            "--until-eof",
        ];
        let look = context.access.shown(&plan.place, &argv);
        let mut child = context.access.spawn(&plan.place, &argv)?;
        let (Some(stdout), input) = (child.stdout.take(), child.stdin.take()) else {
            return Err(Failure::tool(&plan.name, "its output could not be opened", look));
        };
        let (tell, latest) = watch::channel(None);
        let reader = tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                if let Ok(report) = serde_json::from_str::<LoadReport>(&line) {
                    tell.send_replace(Some(report));
                }
            }
        });
        let mut load = Self { plan, look, input, latest, reader, _child: child };
        load.next_where(BEGIN_PATIENCE, |report| report.answered > 0).await.map_err(|why| {
            Failure::new(format!("{} is answered before the fault", load.plan.name), why, &load.look)
        })?;
        Ok(load)
    }

    /// What the load stands for.
    #[must_use]
    pub(super) fn name(&self) -> &str {
        &self.plan.name
    }

    /// What it has seen so far.
    #[must_use]
    pub(super) fn latest(&self) -> Option<LoadReport> {
        self.latest.borrow().clone()
    }

    async fn next_where(
        &mut self,
        patience: Duration,
        good: impl Fn(&LoadReport) -> bool,
    ) -> Result<LoadReport, String> {
        let wanted = self.latest.wait_for(|report| report.as_ref().is_some_and(&good));
        let found = match tokio::time::timeout(patience, wanted).await {
            Ok(Ok(report)) => Some(report.clone()),
            Ok(Err(_)) => return Err("the load ended".to_owned()),
            Err(_) => None,
        };
        match found {
            Some(report) => report.ok_or_else(|| "no report".to_owned()),
            None => Err(self.latest.borrow().as_ref().map_or_else(
                || "no progress at all".to_owned(),
                |report| {
                    format!(
                        "{} sent, {} answered, errors {:?} after {} ms",
                        report.sent, report.answered, report.errors, report.elapsed_ms
                    )
                },
            )),
        }
    }

    /// Waits until requests have been answered for some seconds without any failure.
    ///
    /// # Errors
    /// When that does not happen in time.
    pub(super) async fn settled(&mut self, patience: Duration) -> Result<LoadReport, Failure> {
        let deadline = tokio::time::Instant::now() + patience;
        let mut quiet = 0;
        let mut before: Option<LoadReport> = None;
        loop {
            let next = tokio::time::timeout_at(deadline, self.latest.changed()).await;
            let report = self.latest.borrow_and_update().clone();
            if !matches!(next, Ok(Ok(()))) {
                let got =
                    report.map(|report| format!("errors {:?}, seconds without: {quiet}", report.errors));
                let what = format!("{} is right again within {} s", self.plan.name, patience.as_secs());
                return Err(Failure::new(what, got.unwrap_or_else(|| "the load ended".into()), &self.look));
            }
            let Some(report) = report else { continue };
            let better = before
                .as_ref()
                .is_some_and(|before| report.failed == before.failed && report.answered > before.answered);
            quiet = if better { quiet + 1 } else { 0 };
            if quiet >= QUIET_LINES {
                return Ok(report);
            }
            before = Some(report);
        }
    }

    /// Stops the load and returns its account.
    ///
    /// # Errors
    /// When the last report does not come.
    pub(super) async fn stop(mut self) -> Result<LoadReport, Failure> {
        drop(self.input.take());
        let last = self.next_where(STOP_PATIENCE, |report| report.is_final).await;
        last.map_err(|why| Failure::tool(&format!("the account of {}", self.plan.name), why, &self.look))
    }
}

/// Starts loads at the same time and waits until each is answered.
///
/// # Errors
/// When one is not; the others are stopped.
pub(super) async fn start_all(context: &Context, plans: Vec<LoadPlan>) -> Result<Vec<Load>, Failure> {
    try_join_all(plans.into_iter().map(|plan| Load::start(context, plan))).await
}

/// Waits until every load is right again, all at the same time; returns what each had seen then.
///
/// # Errors
/// The first that is not in time.
pub(super) async fn all_settled(loads: &mut [Load], patience: Duration) -> Result<Vec<LoadReport>, Failure> {
    // All of them to their end: one that fails must not cut short what another has to tell.
    join_all(loads.iter_mut().map(|load| load.settled(patience))).await.into_iter().collect()
}

/// Stops all loads and returns their accounts by name.
///
/// # Errors
/// When one gives none.
pub(super) async fn stop_all(loads: Vec<Load>) -> Result<Vec<(String, LoadReport)>, Failure> {
    let stopped = loads.into_iter().map(|load| async {
        let name = load.name().to_owned();
        Ok((name, load.stop().await?))
    });
    join_all(stopped).await.into_iter().collect()
}

/// Fails when a load lost a request or a connection.
///
/// # Errors
/// The loads that did.
pub(super) fn unharmed(reports: &[(String, LoadReport)], during: &str) -> Result<(), Failure> {
    let harmed: Vec<String> = reports
        .iter()
        .filter(|(_, report)| report.failed > 0 || report.broken_connections > 0)
        .map(|(name, report)| {
            format!(
                "{name}: {} of {} unanswered {:?}, {} connections broken, longest gap {} ms",
                report.failed, report.sent, report.errors, report.broken_connections, report.longest_gap_ms
            )
        })
        .collect();
    if harmed.is_empty() {
        return Ok(());
    }
    let what = format!("no connection breaks and no packet is lost {during}");
    Err(Failure::new(
        what,
        harmed.join("; "),
        "`tombolo flows` and `tombolo lab logs` of the nodes concerned",
    ))
}

/// One line about all loads.
#[must_use]
pub(super) fn sum(reports: &[(String, LoadReport)]) -> String {
    let sent: u64 = reports.iter().map(|(_, report)| report.sent).sum();
    let failed: u64 = reports.iter().map(|(_, report)| report.failed).sum();
    let broken: u64 = reports.iter().map(|(_, report)| report.broken_connections).sum();
    let gap = reports.iter().map(|(_, report)| report.longest_gap_ms).max().unwrap_or(0);
    format!(
        "{} loads: {sent} requests, {failed} unanswered, {broken} connections broken, longest gap {gap} ms",
        reports.len()
    )
}
