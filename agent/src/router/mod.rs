//! `tombolo router`: a BGP router without pods, datapath or etcd: a ToR, a route reflector, a route server.
//!
//! ```text
//!  router.yaml ──► peers, adverts ──► reconcilers ──► speaker ──► learned ──► routes ──► reconciler ──► kernel
//!  netlink ──────► connected prefixes ┘
//! ```
//! The same adapter, tables, reconcilers and local API as in the agent. SIGTERM withdraws and says why; after SIGKILL peers
//! that restart gracefully keep the routes, and so does the kernel until the next life has heard all peers.

mod api;
mod config;
mod reload;
mod routes;
mod rows;

pub(crate) use config::is_router;

use crate::daemon::bgp::{self, Session};
use crate::daemon::drive::{Applied, Board, Clock, Driver, Resync};
use crate::daemon::network::{self, Seen};
use crate::daemon::show::Catalogue;
use crate::daemon::tasks::{Roll, Tasks};
use crate::daemon::{Signals, api as local_api};
use anyhow::Context;
use config::RouterConfig;
use reload::{Announced, Reload};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tombolo_base::source::{Source, SourceState};
use tombolo_base::table::{Row, Table, Writer};
use tombolo_bgp_node::{Settings, Ways};
use tombolo_netlink::Netlink;
use tombolo_topology::bgp::{AdvertRow, PeerRow};
use tombolo_topology::{LearnedRoute, RouteEntry};
use tombolo_tunnel::{DEFAULT_PROTOCOL, Disturbances, KernelRoutes, RouteSettings};

/// How long the tasks may take to end after a stop was asked for.
const STOP: std::time::Duration = std::time::Duration::from_secs(10);
/// Tables whose first pass must be done before End-of-RIB.
const BEFORE_END_OF_RIB: &[&str] = &[PeerRow::TABLE, AdvertRow::TABLE];

/// A configuration that was read and understood.
pub(crate) struct Checked {
    file: PathBuf,
    config: RouterConfig,
    rows: rows::Rows,
}

impl Checked {
    /// How to log.
    pub(crate) const fn log(&self) -> &crate::config::Log {
        &self.config.log
    }
}

/// Reads a configuration file.
///
/// # Errors
/// All mistakes.
pub(crate) fn load(file: &Path) -> Result<Checked, Vec<String>> {
    let config = config::load(file).map_err(|problem| vec![problem])?;
    let told = |problems: Vec<String>| {
        problems.into_iter().map(|problem| format!("{}: {problem}", file.display())).collect::<Vec<_>>()
    };
    let rows = rows::rows(&config).map_err(told)?;
    Ok(Checked { file: file.to_owned(), config, rows })
}

/// Runs the router until SIGTERM or SIGINT.
///
/// # Errors
/// What could not be started, why, and what to try.
pub(crate) async fn run(checked: Checked) -> anyhow::Result<()> {
    let cancel = CancellationToken::new();
    let mut signals = Signals::new()?;
    let roll = Roll::default();
    let tasks = start(checked, &cancel, roll.clone()).await?;
    sd_notify::notify(&[sd_notify::NotifyState::Ready]).ok();
    tracing::info!("ready");
    let running = tokio::spawn({
        let cancel = cancel.clone();
        async move { tasks.ended(&cancel).await }
    });
    signals.wait().await;
    tracing::info!("stopping: routes are withdrawn first, the kernel's stay");
    sd_notify::notify(&[sd_notify::NotifyState::Stopping]).ok();
    cancel.cancel();
    match tokio::time::timeout(STOP, running).await {
        Ok(ended) => ended.context("the router's tasks broke off; this is a bug, please report the log"),
        Err(_) => anyhow::bail!(
            "not stopped within {} s, so it is broken off; still running: {}",
            STOP.as_secs(),
            roll.running().join(", ")
        ),
    }
}

/// The tables of a router, left to right.
struct Tables {
    peers: Table<PeerRow>,
    adverts: Table<AdvertRow>,
    learned: Table<LearnedRoute>,
    routes: Table<RouteEntry>,
}

async fn start(checked: Checked, cancel: &CancellationToken, roll: Roll) -> anyhow::Result<Tasks> {
    let config = &checked.config;
    let driver = Driver {
        clock: Clock::start(),
        board: Board::default(),
        cancel: cancel.clone(),
        seed: u64::from(u32::from(config.router_id)),
        resync: Resync::default(),
    };
    let mut tasks = Tasks::new(roll.clone());
    let netlink = Netlink::here()?;
    let kernel = KernelRoutes::new(netlink.clone(), RouteSettings::default());
    let restarting = !kernel.next_hops().await.context("cannot read the kernel's routes")?.is_empty();

    let (peers, adverts, learned, routes) = (Table::new(), Table::new(), Table::new(), Table::new());
    let learned_writer: Arc<Writer<LearnedRoute>> = Arc::new(learned.1);
    // What BGP taught an earlier life stays until it has been taught again.
    learned_writer.set_source(&bgp::starting(), SourceState::Pending);
    let tables = Tables { peers: peers.0, adverts: adverts.0, learned: learned.0, routes: routes.0 };

    let (seen, network) = watch::channel(None);
    tasks.spawn("network", network::follow(driver.clone(), netlink.clone(), seen));
    let (reload, announced, problems) = Reload::new(&checked, peers.1)?;
    tasks.spawn("reload", reload.follow(driver.clone()));
    let plan = plan_adverts(driver.clone(), announced, network.clone(), adverts.1);
    tasks.spawn("planner/adverts", plan);

    let run = config.api.socket.parent().unwrap_or_else(|| Path::new("/run/tombolo"));
    let settings = Settings {
        restarting: restarting && config.install_routes,
        listen: config.listen.clone(),
        max_paths: usize::from(config.max_paths),
        cluster_id: config.cluster_id,
        jitter_seed: driver.seed,
        bfd: Some(tombolo_bgp::bfd::client::Unit::of_this_program(run)),
        shutdowns: Some(config.state_dir.0.join(bgp::SHUTDOWNS)),
        message_log: config.message_log.as_ref().map(bgp::message_log),
        stations: config
            .bmp
            .iter()
            .map(|collector| bgp::station(collector, &config.router_id.to_string()))
            .collect(),
        caches: config.rpki.iter().map(bgp::cache).collect(),
        ways: config.track_next_hops.then(|| Ways { netlink: netlink.clone(), protocol: DEFAULT_PROTOCOL }),
        ..Settings::default()
    };
    let session = Session {
        settings,
        before_end_of_rib: BEFORE_END_OF_RIB,
        stop_text: "the router was stopped",
        kernel: config.install_routes.then(|| kernel.clone()),
    };
    let bgp = bgp::start(&driver, session, (&tables.peers, &tables.adverts), learned_writer, &mut tasks);
    if config.install_routes {
        let plan = routes::plan(driver.clone(), tables.learned.clone(), network, routes.1);
        tasks.spawn("planner/routes", plan);
        let carry = driver.clone().run(tables.routes.clone(), kernel, Applied::default());
        tasks.spawn(RouteEntry::TABLE, carry);
        tasks.spawn("watch", watch_routes(driver.clone(), netlink, tables.routes.clone()));
    }

    let mut catalogue = Catalogue::default();
    catalogue.add(&tables.peers);
    catalogue.add(&tables.adverts);
    catalogue.add(&tables.learned);
    catalogue.add(&tables.routes);
    let backend = api::Router::new(config, driver, bgp, catalogue, roll, problems);
    let listener = local_api::listen(&config.api.socket)?;
    tasks.spawn("api", local_api::serve(listener, Arc::new(backend), cancel.clone()));
    Ok(tasks)
}

/// Announces the networks of the configuration, and the prefixes of interfaces as they come and go.
async fn plan_adverts(
    driver: Driver,
    mut announced: watch::Receiver<Announced>,
    mut network: watch::Receiver<Option<Arc<Seen>>>,
    out: Writer<AdvertRow>,
) {
    loop {
        let seen = network.borrow_and_update().clone();
        if let Some(seen) = seen {
            let Announced { networks, interfaces } = announced.borrow_and_update().clone();
            let connected = rows::connected(&seen, &interfaces);
            // A prefix that is written counts as such, whatever interface is in it.
            let rows: std::collections::BTreeMap<_, _> =
                connected.into_iter().chain(networks).map(|row| (row.prefix, row)).collect();
            out.commit(|txn| {
                txn.replace_source(&Source::Local, rows.into_values());
                txn.set_source(&Source::Local, SourceState::Initialized);
            });
        }
        tokio::select! {
            () = driver.cancel.cancelled() => return,
            changed = network.changed() => if changed.is_err() { return },
            changed = announced.changed() => if changed.is_err() { return },
        }
    }
}

/// Has routes that somebody else took away written again.
async fn watch_routes(driver: Driver, netlink: Netlink, routes: Table<RouteEntry>) {
    let mut disturbances =
        Disturbances::listen(netlink, RouteSettings::default(), std::collections::BTreeSet::new()).await;
    loop {
        let is_wanted = |prefix| routes.snapshot().get(&prefix).is_some();
        tokio::select! {
            () = driver.cancel.cancelled() => return,
            found = disturbances.next(is_wanted) => if found.routes {
                driver.resync.ask(&[RouteEntry::TABLE]);
            }
        }
    }
}
