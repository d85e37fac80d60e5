//! Those beside the sessions: the message log, the collectors of BMP, and the RPKI caches.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Input;
use super::bmp::{self, StationNews};
use super::rpki;
use crate::config::SpeakerConfig;
use crate::core::tap::{Passed, TapPeer, messages};
use crate::core::{Core, StationId, StationOutput};
use crate::error::Error;
use crate::mrt::{Happened, SessionEntry, Writer};
use crate::rpki::{CacheReport, RpkiTable};

/// Longest wait for collectors to take the last messages.
const CLOSE_MAX: Duration = Duration::from_secs(2);

pub(super) struct Monitor {
    log: Option<Writer>,
    queues: BTreeMap<StationId, mpsc::UnboundedSender<Bytes>>,
    /// Aborted when this is dropped.
    stations: JoinSet<()>,
    cancel: CancellationToken,
    /// What each RPKI cache says.
    payloads: Vec<Arc<RpkiTable>>,
    /// Aborted when this is dropped.
    _caches: JoinSet<()>,
}

impl Monitor {
    /// Starts what the settings ask for.
    pub(super) fn start(
        config: &SpeakerConfig,
        core: &mut Core,
        inputs: &mpsc::Sender<Input>,
        reports: Vec<watch::Sender<CacheReport>>,
    ) -> Result<Self, Error> {
        let start = |settings: &crate::mrt::MessageLog| {
            Writer::start(settings.clone())
                .map_err(|source| Error::MessageLog { folder: settings.folder.clone(), source })
        };
        let log = config.message_log.as_ref().map(start).transpose()?;
        if log.is_some() {
            core.open_tap();
        }
        core.set_stations(&config.stations);
        let (mut stations, cancel) = (JoinSet::new(), CancellationToken::new());
        for (id, settings) in config.stations.iter().enumerate() {
            stations.spawn(bmp::run(id, settings.clone(), inputs.clone(), cancel.clone()));
        }
        let (mut caches, mut payloads) = (JoinSet::new(), Vec::new());
        for ((number, settings), report) in config.caches.iter().enumerate().zip(reports) {
            payloads.push(Arc::default());
            caches.spawn(rpki::run(number, settings.clone(), inputs.clone(), report));
        }
        Ok(Self { log, queues: BTreeMap::new(), stations, cancel, payloads, _caches: caches })
    }

    /// Hands on what has passed and changed since the last call.
    pub(super) fn take(&mut self, core: &mut Core) {
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        for (id, output) in core.pump_stations(at) {
            match output {
                // If the connection has ended, its report is on the way.
                StationOutput::Send(bytes) => {
                    drop(self.queues.get(&id).map(|queue| queue.send(bytes)));
                }
                StationOutput::Restart => drop(self.queues.remove(&id)),
            }
        }
        let Some(log) = &mut self.log else { return };
        let (passed, lost) = core.take_tapped();
        log.lost(lost);
        for (peer, passed) in passed {
            entries(at, &peer, passed, |entry| log.log(&peer.config.name, entry));
        }
    }

    /// An RPKI cache has other payloads.
    pub(super) fn payloads(&mut self, core: &mut Core, cache: usize, table: Arc<RpkiTable>) {
        if let Some(known) = self.payloads.get_mut(cache) {
            *known = table;
            core.set_rpki(rpki::together(&self.payloads));
        }
    }

    /// News of a collector.
    pub(super) fn station(&mut self, core: &mut Core, id: StationId, news: StationNews) {
        match news {
            StationNews::Up(queue) => {
                self.queues.insert(id, queue);
                core.station_up(id);
            }
            StationNews::Drained(bytes) => core.station_drained(id, bytes),
            StationNews::Statistics => core.station_statistics(id),
            StationNews::Down => {
                self.queues.remove(&id);
                core.station_down(id);
            }
        }
    }

    /// Says goodbye to the collectors, and waits a little until that is sent.
    pub(super) async fn close(&mut self, core: &mut Core, inbox: &mut mpsc::Receiver<Input>) {
        core.stop_stations();
        self.take(core);
        self.cancel.cancel();
        self.queues.clear();
        let stations = &mut self.stations;
        let ended = async {
            loop {
                tokio::select! {
                    ended = stations.join_next() => if ended.is_none() { break },
                    Some(_) = inbox.recv() => {}
                }
            }
        };
        if tokio::time::timeout(CLOSE_MAX, ended).await.is_err() {
            tracing::warn!("Some BMP collectors did not take the last messages in time.");
        }
    }
}

/// Turns what passed into entries of the log.
pub(crate) fn entries(at: Duration, peer: &TapPeer, passed: Passed, mut each: impl FnMut(SessionEntry)) {
    let entry = |what| SessionEntry {
        at,
        peer_asn: peer.peer_asn,
        local_asn: peer.local_asn,
        peer_address: peer.config.address,
        local_address: peer.local_address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        what,
    };
    match passed {
        Passed::State { from, to } => each(entry(Happened::State { from, to })),
        Passed::Messages { sent, bytes } => {
            for message in messages(&bytes) {
                each(entry(Happened::Message {
                    sent,
                    four_octet_as: !peer.two_octet,
                    add_path: peer.add_path,
                    bytes: bytes.slice_ref(message),
                }));
            }
        }
    }
}
