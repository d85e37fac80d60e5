//! Runs the list of checks, phase by phase, variant by variant.

use std::io::IsTerminal;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::process::Child;

use super::access::{Access, Place};
use super::check::{Check, CheckResult, Failure, Phase, Row, Status, Task, Variant};
use super::context::Context;
use super::faults::Fault;
use super::flows::Flows;
use super::inventory::Inventory;
use super::scenarios::{Covered, Packets};
use super::{CheckError, Summary, TestArgs, catalog, ready, sessions, wire};

/// Where the lab's API servers answer.
const APISERVER_PORT: &str = "6443";
/// Name of the row that tells whether the lab was ready for the others.
const READY: &str = "lab-ready";

/// Runs every check asked for and returns all rows.
///
/// # Errors
/// When the lab does not run at all, or no check has a name as asked for.
pub async fn run(args: &TestArgs, topology: &Path) -> Result<Summary, CheckError> {
    let access = Access::new(topology).map_err(CheckError::Program)?;
    access.running().await.map_err(|failure| CheckError::Lab(Box::new(failure)))?;
    let progress = Progress::new();
    let mut rows = Vec::new();
    if args.all_variants {
        for variant in Variant::ALL {
            variant_rows(args, &access, Some(variant), &progress, &mut rows).await;
        }
    } else {
        variant_rows(args, &access, args.variant, &progress, &mut rows).await;
    }
    if rows.iter().all(|row| row.check == READY && matches!(row.status, Status::Passed { .. })) {
        return Err(CheckError::NoSuchCheck(args.only.join(", ")));
    }
    progress.finish();
    Ok(Summary::new(rows))
}

/// Brings the lab into a variant and runs its checks.
async fn variant_rows(
    args: &TestArgs,
    access: &Access,
    wanted: Option<Variant>,
    progress: &Progress,
    rows: &mut Vec<Row>,
) {
    let start = Instant::now();
    progress.say(&format!(
        "waiting until the lab is ready{}",
        wanted.map(|v| format!(" as {v}")).unwrap_or_default()
    ));
    let prepared = prepare(args, access, wanted).await;
    let variant = prepared.as_ref().map_or(wanted.unwrap_or(Variant::Overlay), |scene| scene.context.variant);
    let (status, scene) = match prepared {
        Ok(scene) => (scene.status.clone(), Some(scene)),
        Err(failure) => (Status::Failed(failure), None),
    };
    let row = Row { variant, check: READY.to_owned(), duration_ms: millis(start), status };
    progress.row(&row);
    rows.push(row);
    let Some(mut scene) = scene else { return };
    let checks = chosen(args, &scene.context.inventory, variant);
    progress.begin(checks.len());
    for phase in Phase::ALL {
        let of_phase: Vec<&Check> = checks.iter().filter(|check| check.phase == phase).collect();
        scene.phase(args, phase, &of_phase, progress, rows).await;
    }
    scene.end().await;
}

fn chosen(args: &TestArgs, inventory: &Inventory, variant: Variant) -> Vec<Check> {
    let belongs = |check: &Check| match (&check.task, check.phase) {
        // What it is made of may not belong here.
        (Task::Covered(covered), _) if covered.parts.iter().all(|part| part.starts_with("fault/")) => {
            args.scenarios_in(variant) && args.faults_in(variant).is_some()
        }
        (Task::Covered(covered), _) if covered.encrypted => args.encryption_scenarios_in(variant),
        (_, Phase::Faults) => args.faults_in(variant).is_some(),
        (_, Phase::Scenarios | Phase::Finals | Phase::Covered) => args.scenarios_in(variant),
        (_, Phase::Traffic | Phase::Routers | Phase::Wire) => true,
    };
    let all: Vec<Check> = catalog::checks(inventory, variant).into_iter().filter(belongs).collect();
    let asked = |check: &&Check| args.wants(&check.name);
    let covered: Vec<Covered> = all
        .iter()
        .filter(asked)
        .filter_map(|check| match check.task {
            Task::Covered(covered) => Some(covered),
            _ => None,
        })
        .collect();
    // A scenario brings the checks along that it is made of.
    let needed = |check: &Check| covered.iter().any(|covered| covered.holds(&check.name));
    all.into_iter().filter(|check| args.wants(&check.name) || needed(check)).collect()
}

/// A lab ready to be checked.
struct Scene {
    context: Context,
    echoes: Vec<Child>,
    status: Status,
}

async fn prepare(args: &TestArgs, access: &Access, wanted: Option<Variant>) -> Result<Scene, Failure> {
    if let Some(wanted) = wanted {
        let runs = current(access).await;
        if runs != Some(wanted) {
            access.up(wanted).await?;
        }
    }
    let (inventory, variant) = ready::wait(access, access.topology(), wanted).await?;
    let nodes: Vec<String> =
        inventory.clusters.values().flat_map(|cluster| cluster.nodes.keys().cloned()).collect();
    let flows = Flows::follow(access, &nodes);
    let prefix = format!("tombolo-check-{:08x}-", run_id());
    let down = Duration::from_secs(args.etcd_down_secs);
    let packets = Packets::of(access, nodes.iter()).await?;
    let context = Context::new(access.clone(), inventory, variant, flows, prefix, packets, down);
    let echoes = start_echoes(&context)?;
    let status = match ready::routers(&context).await {
        Ok(took) => {
            Status::Passed { notes: vec![format!("routers settled after {:.1} s", took.as_secs_f64())] }
        }
        // The other checks still tell something: go on.
        Err(failure) => Status::Failed(failure),
    };
    Ok(Scene { context, echoes, status })
}

/// The variant that runs now, if any agent answers.
async fn current(access: &Access) -> Option<Variant> {
    let inventory = Inventory::read(access.topology()).ok()?;
    let node = inventory.clusters.values().find_map(|cluster| cluster.nodes.keys().next())?;
    let status = ready::status(access, node).await.ok()?;
    Variant::from_config(&status.path, &status.encryption)
}

/// The outside client and the nodes run nothing by themselves: echo servers for the checks that pods send to them.
fn start_echoes(context: &Context) -> Result<Vec<Child>, Failure> {
    let client = context.inventory.client.as_deref();
    let mut children = client
        .map(|client| start_echo(context, client, "", &[]))
        .transpose()?
        .into_iter()
        .collect::<Vec<_>>();
    for cluster in context.inventory.clusters.values() {
        for (node, facts) in &cluster.nodes {
            // On each address by itself: the kernel would answer a datagram from the address nearest to the pod.
            children.push(start_echo(context, node, &cluster.name, &facts.underlay)?);
        }
    }
    Ok(children)
}

fn start_echo(context: &Context, node: &str, cluster: &str, listen: &[IpAddr]) -> Result<Child, Failure> {
    let (http, tcp, udp) =
        (catalog::HTTP_PORT.to_string(), catalog::TCP_PORT.to_string(), catalog::UDP_PORT.to_string());
    let listen: Vec<String> = listen.iter().map(ToString::to_string).collect();
    let mut argv = vec!["tombolo", "lab-echo", "--until-eof", "--node", node, "--cluster", cluster];
    argv.extend(["--http", &http, "--tcp", &tcp, "--udp", &udp]);
    if !cluster.is_empty() {
        // On one of the nodes it is the API server: Service default/kubernetes says which.
        argv.extend(["--http", APISERVER_PORT]);
    }
    argv.extend(listen.iter().flat_map(|address| ["--listen", address]));
    let mut child = context.access.spawn(&Place::node(node), &argv)?;
    // It says nothing; a closed pipe is enough.
    drop((child.stdout.take(), child.stderr.take()));
    Ok(child)
}

/// A number that differs between runs, for tokens.
fn run_id() -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let nanos = u32::try_from(now.as_nanos() % u128::from(u32::MAX)).unwrap_or(0);
    nanos ^ std::process::id().rotate_left(16)
}

fn millis(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl Scene {
    async fn phase(
        &mut self,
        args: &TestArgs,
        phase: Phase,
        checks: &[&Check],
        progress: &Progress,
        rows: &mut Vec<Row>,
    ) {
        if checks.is_empty() {
            return;
        }
        match phase {
            Phase::Faults => self.faults(args, checks, progress, rows).await,
            Phase::Traffic => {
                match wire::start(&self.context).await {
                    Ok(wiretap) => *self.context.wiretap.lock().await = Some(wiretap),
                    // The wire check fails for want of captures; this says why.
                    Err(failure) => progress.say(&format!("no captures: {failure}")),
                }
                self.several(phase, checks, progress, rows).await;
            }
            Phase::Covered => self.covered(checks, progress, rows),
            Phase::Routers | Phase::Wire | Phase::Scenarios | Phase::Finals => {
                self.several(phase, checks, progress, rows).await;
            }
        }
    }

    /// Checks of one phase, some at once; rows in the order of the list.
    async fn several(&self, phase: Phase, checks: &[&Check], progress: &Progress, rows: &mut Vec<Row>) {
        let running = checks.iter().enumerate().map(|(position, check)| async move {
            let row = self.one(check).await;
            progress.row(&row);
            (position, row)
        });
        let mut done: Vec<(usize, Row)> =
            futures_util::stream::iter(running).buffer_unordered(phase.concurrency()).collect().await;
        done.sort_by_key(|(position, _)| *position);
        rows.extend(done.into_iter().map(|(_, row)| row));
    }

    /// What the rows of this variant come to.
    fn covered(&self, checks: &[&Check], progress: &Progress, rows: &mut Vec<Row>) {
        let variant = self.context.variant;
        for check in checks {
            let Task::Covered(covered) = &check.task else { continue };
            let status = covered.judge(rows.iter().filter(|row| row.variant == variant));
            let row = Row { variant, check: check.name.clone(), duration_ms: 0, status };
            progress.row(&row);
            rows.push(row);
        }
    }

    async fn faults(&mut self, args: &TestArgs, checks: &[&Check], progress: &Progress, rows: &mut Vec<Row>) {
        let variant = self.context.variant;
        for check in checks {
            let row = match args.faults_in(variant) {
                Some(Ok(())) => self.one(check).await,
                other => {
                    let why = other.and_then(Result::err).unwrap_or("not in this variant").to_owned();
                    Row {
                        variant,
                        check: check.name.clone(),
                        duration_ms: 0,
                        status: Status::Skipped { why },
                    }
                }
            };
            progress.row(&row);
            let ran = !matches!(row.status, Status::Skipped { .. });
            rows.push(row);
            // Pods that came back have other addresses.
            if ran && let Ok(fresh) = Inventory::read(self.context.access.topology()) {
                self.context.inventory = fresh;
            }
        }
    }

    async fn one(&self, check: &Check) -> Row {
        let start = Instant::now();
        let result: CheckResult = match &check.task {
            Task::Ask(ask) => ask.run(&self.context, &check.name).await,
            Task::Mtu(mtu) => mtu.run(&self.context, &check.name).await,
            Task::OutsideMtu(mtu) => mtu.run(&self.context, &check.name).await,
            Task::Names(names) => names.run(&self.context).await,
            Task::EtcdRoles(roles) => roles.run(&self.context).await,
            Task::Missing(what) => Err(Failure::new(
                format!("the lab has {what}"),
                "none",
                format!("the lab's files, beside {}", self.context.access.topology().display()),
            )),
            Task::Router(router) => router.run(&self.context).await,
            Task::Sessions { node } => sessions::check(&self.context, node).await,
            Task::Wire => wire::judge(&self.context).await,
            Task::Scenario(scenario) => scenario.run(&self.context).await,
            Task::Final(last) => last.run(&self.context).await,
            Task::Covered(covered) => Err(Failure::tool(
                covered.name,
                "it is judged by the rows of its checks",
                "the phase it is in",
            )),
            Task::Fault(fault) => self.fault(fault).await,
        };
        let status = match result {
            Ok(notes) => Status::Passed { notes },
            Err(failure) => Status::Failed(failure),
        };
        Row { variant: self.context.variant, check: check.name.clone(), duration_ms: millis(start), status }
    }

    /// A fault with captures around it: what is encrypted stays so while something is broken.
    async fn fault(&self, fault: &Fault) -> CheckResult {
        if self.context.inventory.routers.is_empty() {
            // Nowhere to capture: the lab is about something else.
            return fault.run(&self.context).await;
        }
        let wiretap = wire::start(&self.context).await?;
        let result = fault.run(&self.context).await;
        let seen = wire::judge_tap(&self.context, wiretap).await;
        match (result, seen) {
            (Ok(mut notes), Ok(seen)) => {
                notes.extend(seen);
                Ok(notes)
            }
            // One often explains the other.
            (Err(mut failure), Err(seen)) => {
                failure.got = format!("{}; and expected {}; got {}", failure.got, seen.expected, seen.got);
                Err(failure)
            }
            (Err(failure), Ok(_)) | (Ok(_), Err(failure)) => Err(failure),
        }
    }

    /// Ends what the run itself has started in the lab.
    async fn end(mut self) {
        for echo in &mut self.echoes {
            drop(echo.stdin.take());
        }
        for echo in &mut self.echoes {
            // If it does not end by itself, dropping the child kills its entry into the node.
            drop(tokio::time::timeout(Duration::from_secs(5), echo.wait()).await);
        }
    }
}

/// A bar on a terminal, plain lines elsewhere; always on standard error.
struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("[{elapsed_precise}] {bar:30} {pos}/{len} {msg}");
            ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self { bar }
    }

    fn begin(&self, checks: usize) {
        if let Some(bar) = &self.bar {
            bar.set_length(u64::try_from(checks).unwrap_or(0));
            bar.set_position(0);
        }
    }

    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None => eprintln!("{text}"),
        }
    }

    fn row(&self, row: &Row) {
        let result = match &row.status {
            Status::Passed { .. } => "ok",
            Status::Failed(_) => "FAILED",
            Status::Skipped { .. } => "skipped",
        };
        let seconds = row.duration_ms / 1000;
        match &self.bar {
            Some(bar) => {
                bar.set_message(row.check.clone());
                bar.inc(1);
                if let Status::Failed(failure) = &row.status {
                    bar.println(format!("FAILED {} ({}): {failure}", row.check, row.variant));
                }
            }
            None => eprintln!("{result:7} {} ({}) {seconds} s", row.check, row.variant),
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
