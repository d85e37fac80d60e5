//! What the elected agent does: configuration, heartbeat, global services, sweep, canaries.

use super::beat::Beat;
use super::desired::{Desired, DesiredSet};
use super::election::Won;
use super::gate::Gate;
use super::identity::Collector;
use super::lease::LeasePool;
use super::scope::{Area, ScopeWriter};
use super::{Context, at, sweep};
use crate::error::MeshError;
use crate::etcd::broken;
use crate::operations::{Operation, operate};
use crate::rfc3339;
use crate::wire::{ClusterConfig, Kind, Layout, key};
use etcd_client::{Client, PutOptions};
use std::convert::Infallible;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// Runs until the election or the connection is lost.
pub(super) async fn lead(context: &Context, client: &Client, won: &Won) -> MeshError {
    match try_lead(context, client, won).await {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

async fn try_lead(context: &Context, client: &Client, won: &Won) -> Result<Infallible, MeshError> {
    let cluster = context.config.cluster.as_str();
    let mut pool = LeasePool::open(context, client, "cluster").await?;
    let heartbeat_lease = pool.assign().await?;
    let areas = vec![
        Area::Key(key::cluster_config(cluster)),
        Area::Whole(key::synced_prefix(cluster)),
        Area::Whole(Kind::Services.prefix(Layout::State, cluster)),
        // Also when they are not announced: what an earlier setting left there goes in time.
        Area::Whole(Kind::EndpointSlices.prefix(Layout::State, cluster)),
        Area::Whole(Kind::ServiceExports.prefix(Layout::State, cluster)),
        Area::Whole(key::ASSIGNMENTS.to_owned()),
    ];
    let writer = ScopeWriter::new(client.clone(), pool, areas, Some(won.fence()));
    let mut writer = writer.counted(context.cluster_writes.clone());
    writer.spare(given_up(context));
    let mut given_up_until = None;
    writer.resync().await?;
    let mut watch = writer.watch().await?;
    context.set_leader(true);
    let _beat = Beat::start(client, heartbeat_lease, context.config.beat);
    let mut heartbeat = interval(context.config.heartbeat);
    let mut keep_alive = interval(context.config.keep_alive());
    let mut audit = interval(context.config.audit);
    let mut collect = interval(context.config.identity_gc);
    for timer in [&mut heartbeat, &mut keep_alive, &mut audit, &mut collect] {
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    let mut wanted = context.cluster_keys.subscribe();
    let mut gate = Gate::open(context, client).await?;
    let since = rfc3339::now();
    let mut swept = false;
    let mut collector = Collector::default();
    loop {
        context.contested(&writer.take_contested());
        let config = Desired::config(cluster, &own_config(context))?;
        let mut desired = DesiredSet::from([(config.key.clone(), config)]);
        let given = wanted.borrow_and_update().clone();
        // Until the services are known only the configuration is written and nothing is removed.
        let known = given.is_some();
        desired.extend(given.iter().flat_map(|set| set.iter()).map(|(name, d)| (name.clone(), d.clone())));
        let complete = known && gate.passed();
        if complete && !gate.was_complete() {
            // Services first; a canary is the last word.
            writer.reconcile(&desired, false).await?;
        }
        if complete {
            if !swept {
                sweep::sweep(context, client, won.lease).await?;
                swept = true;
            }
            let canary = |kind: Kind| Desired::text(kind.canary(Layout::State, cluster), &since);
            let canaries = context.config.forms().canaries().map(canary);
            desired.extend(canaries.map(|canary| (canary.key.clone(), canary)));
        }
        writer.reconcile(&desired, known).await?;
        if complete && given_up_until.is_none() {
            given_up_until = Some(Instant::now() + context.config.form_grace);
        }
        context.update(|status| {
            status.canaries = complete;
            status.cluster_keys = writer.written();
        });
        tokio::select! {
            _ = heartbeat.tick() => {
                let options = PutOptions::new().with_lease(heartbeat_lease);
                let mut kv = client.kv_client();
                let put = kv.put(key::HEARTBEAT, rfc3339::now(), Some(options));
                operate(Operation::Update, key::HEARTBEAT, || format!("writing {}", key::HEARTBEAT), put).await?;
            }
            _ = keep_alive.tick() => {
                if writer.pool.keep_alive().await? {
                    let why = "one of them ended before it was kept alive; its keys are written again on the next connection, if that goes on look at etcd's load";
                    return Err(broken("keeping the cluster's leases".to_owned(), why.to_owned()));
                }
            }
            _ = audit.tick() => writer.resync().await?,
            _ = collect.tick() => {
                let removed = collector.pass(client, won.lease).await?;
                context.update(|status| status.collected += removed);
            }
            () = at(given_up_until), if writer.is_sparing() => writer.spare(Vec::new()),
            foreign = watch.foreign(&writer) => {
                foreign?;
                writer.resync().await?;
            }
            changed = wanted.changed() => changed.map_err(|_| MeshError::Stopped)?,
            news = gate.news(), if !complete => news?,
        }
    }
}

/// The form of backends that an earlier setting published and this one does not. Readers that have not looked at the
/// configuration since have nothing else, so it stays as it stands until they have. Exports have no other form: those that are not
/// announced any more go at once.
fn given_up(context: &Context) -> Vec<String> {
    let (forms, cluster) = (context.config.forms(), context.config.cluster.as_str());
    let kinds = [Kind::Services, Kind::EndpointSlices].into_iter().filter(|kind| !forms.writes(*kind));
    kinds
        .flat_map(|kind| [kind.prefix(Layout::State, cluster), kind.canary(Layout::State, cluster)])
        .collect()
}

/// What this cluster says about itself: it waits for nobody's exports and announces no capability it lacks.
fn own_config(context: &Context) -> ClusterConfig {
    let config = &context.config;
    ClusterConfig {
        id: u32::from(config.cluster_id.get()),
        capabilities: config.forms().capabilities(config.max),
    }
}
