//! BGPPeerPolicy, our own kind: what the `cilium.io` kinds have no field for.

use super::bgp::{MAX_ASN, MAX_ENTRIES, at_most, opt};
use super::{number, prefix, selector};
use crate::crd;
use crate::object::{Object, ObjectId};
use crate::problem::{Issue, shorten};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;
use tombolo_base::source::Source;
use tombolo_topology::bgp::{BfdProfile, PeerMatch, PeerPolicyRow, PeerTuning, PrefixRange};

/// Longest interval that a BFD packet's field holds, in milliseconds.
const BFD_MAX_MS: i64 = 4_294_000;
/// Most next hops of one kernel route that anybody asks for.
const MAX_PATHS: i64 = 256;

fn peers(entries: Vec<crd::PolicyPeer>) -> Result<Vec<PeerMatch>, Issue> {
    if entries.is_empty() {
        return Err(Issue::new("spec.peers", "no peer is selected", "name a peerConfigRef, an instance or a peer"));
    }
    at_most("spec.peers", &entries, MAX_ENTRIES)?;
    let mut out = Vec::new();
    for (position, entry) in entries.into_iter().enumerate() {
        let text = |text: Option<String>| text.filter(|text| !text.is_empty()).map(Arc::from);
        let one = PeerMatch {
            peer_config: text(entry.peer_config_ref.map(|reference| reference.name)),
            instance: text(entry.instance),
            peer: text(entry.peer),
        };
        if one.peer_config.is_none() && one.instance.is_none() && one.peer.is_none() {
            let remedy = "give peerConfigRef.name, instance or peer";
            return Err(Issue::new(format!("spec.peers[{position}]"), "it selects nothing", remedy));
        }
        out.push(one);
    }
    Ok(out)
}

fn bfd(entry: crd::PolicyBfd) -> Result<BfdProfile, Issue> {
    let interval = |key: &str, value: Option<i64>, low, default| {
        number(format!("spec.bfd.{key}IntervalMilliseconds"), value.unwrap_or(default), low, BFD_MAX_MS)
    };
    Ok(BfdProfile {
        transmit_ms: interval("transmit", entry.transmit_interval_milliseconds, 1, 300)?,
        receive_ms: interval("receive", entry.receive_interval_milliseconds, 1, 300)?,
        echo_receive_ms: interval("echoReceive", entry.echo_receive_interval_milliseconds, 0, 0)?,
        detect_multiplier: number("spec.bfd.detectMultiplier", entry.detect_multiplier.unwrap_or(3), 1, 255)?,
        passive: entry.passive.unwrap_or(false),
    })
}

fn ranges(at: &str, entries: &[crd::AllowedRange]) -> Result<Vec<PrefixRange>, Issue> {
    at_most(at, entries, MAX_ENTRIES)?;
    let mut out = Vec::new();
    for (position, entry) in entries.iter().enumerate() {
        let at = format!("{at}[{position}]");
        let covering = prefix(format!("{at}.prefix"), &entry.prefix)?;
        let longest = if covering.is_ipv4() { 32 } else { 128 };
        let (own, most) = (i64::from(covering.prefix_len()), i64::from(longest));
        let min_len = opt(entry.ge, |ge| number(format!("{at}.ge"), ge, own, most))?;
        let min_len = min_len.unwrap_or(covering.prefix_len());
        let max_len = opt(entry.le, |le| number(format!("{at}.le"), le, i64::from(min_len), most))?;
        out.push(PrefixRange { prefix: covering, min_len, max_len: max_len.unwrap_or(longest) });
    }
    Ok(out)
}

fn next_hop<A: FromStr>(at: &str, text: Option<String>, family: &str) -> Result<Option<A>, Issue> {
    let read = |text: String| {
        text.parse().map_err(|_| {
            let reason = format!("{:?} is no {family} address", shorten(&text));
            Issue::new(at, reason, format!("write an {family} address of this node"))
        })
    };
    text.map(read).transpose()
}

fn tuning(spec: crd::PeerPolicySpec) -> Result<PeerTuning, Issue> {
    let mut tuning = PeerTuning::default();
    if let Some(session) = spec.session {
        tuning.passive = session.passive.unwrap_or(false);
        tuning.extended_messages = session.extended_messages.unwrap_or(false);
        tuning.any_first_as = !session.enforce_first_as.unwrap_or(true);
    }
    tuning.bfd = spec.bfd.map(bfd).transpose()?;
    tuning.max_prefixes =
        opt(spec.max_prefixes, |most| number("spec.maxPrefixes", most, 1, i64::from(u32::MAX)))?;
    if let Some(multipath) = spec.multipath {
        tuning.max_paths = Some(number("spec.multipath.maxPaths", multipath.max_paths, 1, MAX_PATHS)?);
    }
    if let Some(import) = spec.import {
        tuning.import = Some(ranges("spec.import.allow", &import.allow)?);
    }
    if let Some(export) = spec.export {
        tuning.med = opt(export.med, |med| number("spec.export.med", med, 0, MAX_ASN))?;
        tuning.next_hop_ipv4 = next_hop::<Ipv4Addr>("spec.export.nextHopIPv4", export.next_hop_ipv4, "IPv4")?;
        tuning.next_hop_ipv6 = next_hop::<Ipv6Addr>("spec.export.nextHopIPv6", export.next_hop_ipv6, "IPv6")?;
    }
    Ok(tuning)
}

pub(super) fn peer_policy(id: &ObjectId, mut spec: crd::PeerPolicySpec) -> Result<Object, Issue> {
    Ok(Object::PeerPolicy(Box::new(PeerPolicyRow {
        source: Source::Manifests,
        name: id.name.clone(),
        node_selector: selector("spec.nodeSelector", spec.node_selector.take().unwrap_or_default())?,
        peers: peers(std::mem::take(&mut spec.peers))?,
        tuning: tuning(spec)?,
    })))
}
