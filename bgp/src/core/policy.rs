//! Policies at run time: those of exports, each kept once, and what follows when one, or what it goes by, changes. No session is reset for it.

use std::cmp::Ordering;
use std::sync::{Arc, Weak};

use ipnet::IpNet;

use super::Core;
use super::import::{Import, Setting, source};
use crate::error::Error;
use crate::family::NextHop;
use crate::policy::{Evaluation, Policy, Source, Subject};
use crate::rib::PeerId;
use crate::rpki::RpkiTable;
use crate::wire::Attributes;

/// An export policy with what it goes by. Equal ones are one, and are known by their number: peers that share it can share messages.
#[derive(Debug)]
pub(super) struct ExportPolicy {
    serial: u64,
    pub(super) policy: Arc<Policy>,
    pub(super) rpki: Arc<RpkiTable>,
}

impl PartialEq for ExportPolicy {
    fn eq(&self, other: &Self) -> bool {
        self.serial == other.serial
    }
}

impl Eq for ExportPolicy {}

impl PartialOrd for ExportPolicy {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ExportPolicy {
    fn cmp(&self, other: &Self) -> Ordering {
        self.serial.cmp(&other.serial)
    }
}

/// The export policies in use.
#[derive(Debug, Default)]
pub(super) struct Policies {
    known: Vec<Weak<ExportPolicy>>,
    next_serial: u64,
}

impl Policies {
    /// The one shared copy of a policy.
    pub(super) fn export(&mut self, policy: &Arc<Policy>, rpki: &Arc<RpkiTable>) -> Arc<ExportPolicy> {
        let same = |known: &Arc<ExportPolicy>| {
            (Arc::ptr_eq(&known.policy, policy) || known.policy == *policy) && Arc::ptr_eq(&known.rpki, rpki)
        };
        if let Some(known) = self.known.iter().filter_map(Weak::upgrade).find(same) {
            return known;
        }
        self.known.retain(|known| known.strong_count() > 0);
        self.next_serial += 1;
        let new =
            ExportPolicy { serial: self.next_serial, policy: Arc::clone(policy), rpki: Arc::clone(rpki) };
        let new = Arc::new(new);
        self.known.push(Arc::downgrade(&new));
        new
    }
}

/// A route that does not exist, to be tried on a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyQuestion {
    /// The peer whose policy is asked.
    pub peer: String,
    /// Its import policy, as if the route came from it; else its export policy, as if the route were to be told to it.
    pub import: bool,
    /// For an export: the peer that the route is from; none: this speaker originates it.
    pub from: Option<String>,
    /// The prefix.
    pub prefix: IpNet,
    /// The next hop, if there is one yet.
    pub next_hop: Option<NextHop>,
    /// Its attributes.
    pub attributes: Attributes,
}

impl Core {
    /// What a route would meet at a policy, and which statement decides.
    pub(crate) fn try_policy(&self, question: &PolicyQuestion) -> Result<Evaluation, Error> {
        let config = |name: &str| {
            let id = self.by_name(name)?;
            self.peers
                .get(&id)
                .map(|peer| &peer.config)
                .ok_or_else(|| Error::NoSuchPeer { peer: name.to_owned() })
        };
        let asked = config(&question.peer)?;
        let from = match (&question.from, question.import) {
            (_, true) => Some(asked),
            (Some(name), false) => Some(config(name)?),
            (None, false) => None,
        };
        let source = from.map_or(Source::Own, |config| source(config, config.peer_asn != self.identity.asn));
        let rules = if question.import { asked.import_rules() } else { asked.export_rules() };
        Ok(rules.evaluate(&Subject {
            prefix: question.prefix,
            attributes: &question.attributes,
            next_hop: question.next_hop,
            source,
            local_asn: self.identity.asn,
            rpki: &self.rpki,
        }))
    }

    /// Judges everything a peer sent by its import policy as it is now.
    pub(super) fn rejudge(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let session = peer.session.as_ref().map(|(_, session)| session);
        let setting = Setting {
            identity: self.identity,
            cluster_id: self.cluster_id,
            own_address: session.map(|session| session.local_address),
            ebgp: session.map_or(peer.config.peer_asn != self.identity.asn, |session| session.ebgp),
            peer_asn: session.map_or(peer.config.peer_asn, |session| session.peer_asn),
            rpki: &self.rpki,
        };
        let (import, sets) = (&mut peer.import, &mut self.sets);
        self.rib.rejudge(id, |prefix, set| match import.refusal(&setting, set) {
            Some(refused) => (Arc::clone(set), Some(refused)),
            None => import.judge(&setting, sets, prefix, set),
        });
    }

    /// Takes another table for origin validation: what policies say by it is said anew.
    pub(crate) fn set_rpki(&mut self, table: Arc<RpkiTable>) {
        if *self.rpki == *table {
            return;
        }
        self.rpki = table;
        let ids: Vec<PeerId> = self.peers.keys().copied().collect();
        for id in &ids {
            let Some(peer) = self.peers.get_mut(id).filter(|peer| peer.import.looks_at_rpki()) else {
                continue;
            };
            peer.import = Import::new(Arc::clone(&peer.config));
            self.rejudge(*id);
        }
        // What peers were told so far follows from the table before, which their views still have.
        self.log_changes();
        for id in ids {
            let export = self.peers.get(&id).and_then(|peer| peer.config.export_policy.as_ref());
            if export.is_some_and(|policy| policy.looks_at_rpki()) {
                self.view_changed(id);
            }
        }
        self.propagate();
    }

    /// Tells all peers that the paths through this speaker go away soon, or that they stay after all (RFC 8326 section 4.1).
    pub(crate) fn set_draining(&mut self, draining: bool) {
        if std::mem::replace(&mut self.draining, draining) != draining {
            let ids: Vec<PeerId> = self.peers.keys().copied().collect();
            ids.into_iter().for_each(|id| self.view_changed(id));
            self.propagate();
        }
    }
}
