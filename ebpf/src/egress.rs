//! How pods' packets leave the mesh: by egress gateways, and which destinations see pods' own addresses where the node
//! masquerades.

use crate::abi::{self, Addr};
use crate::datapath::Datapath;
use crate::error::DatapathError;
use crate::places::{trie_length, trie_prefix};
use crate::rows::EgressWay;
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// A pod, and where it sends.
type Departure = (IpAddr, IpNet);

/// The pod stands whole before the destination, so each pod has a trie of its own.
const POD_BITS: u32 = 128;

fn key(pod: IpAddr, destination: IpNet) -> (u32, [u8; 32]) {
    let mut bytes = [0; 32];
    let (front, back) = bytes.split_at_mut(16);
    front.copy_from_slice(&Addr::from(pod).0);
    back.copy_from_slice(&Addr::from(destination.network()).0);
    (POD_BITS + trie_length(destination), bytes)
}

fn from_key(length: u32, bytes: [u8; 32]) -> Option<(IpAddr, IpNet)> {
    let (front, back) = bytes.split_first_chunk::<16>()?;
    let destination = trie_prefix(length.checked_sub(POD_BITS)?, back.try_into().ok()?)?;
    Some((Addr(*front).ip(), destination))
}

fn row(way: EgressWay) -> abi::Egw {
    match way {
        EgressWay::Nowhere => abi::Egw::default(),
        EgressWay::Excluded => abi::Egw { flags: abi::EGW_EXCLUDED, ..abi::Egw::default() },
        EgressWay::Node(node) => abi::Egw { node, ..abi::Egw::default() },
        EgressWay::Here { address, ifindex } => abi::Egw {
            address: address.map_or_else(Addr::default, Addr::from),
            ifindex,
            flags: abi::EGW_LOCAL,
            ..abi::Egw::default()
        },
    }
}

fn plain(row: abi::Egw) -> EgressWay {
    if row.flags & abi::EGW_EXCLUDED != 0 {
        EgressWay::Excluded
    } else if row.flags & abi::EGW_LOCAL != 0 {
        EgressWay::Here { address: row.address.some_ip(), ifindex: row.ifindex }
    } else if row.node != 0 {
        EgressWay::Node(row.node)
    } else {
        EgressWay::Nowhere
    }
}

impl Datapath {
    /// Says which way a pod's packets to a prefix outside the mesh go; of several prefixes the longest counts. Pods of
    /// other nodes have rows where this node is their gateway.
    ///
    /// # Errors
    /// The families differ, or the map is full or cannot be written.
    pub fn upsert_egress(
        &self,
        pod: IpAddr,
        destination: IpNet,
        way: EgressWay,
    ) -> Result<(), DatapathError> {
        if pod.is_ipv4() != destination.addr().is_ipv4() {
            let why = "pod and destination are of two families; write a row for each family";
            return Err(DatapathError::Invalid { what: format!("egress of {pod} to {destination}"), why });
        }
        let (length, bytes) = key(pod, destination);
        self.tables.egress.upsert(length, bytes, row(way))
    }

    /// Forgets it.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn delete_egress(&self, pod: IpAddr, destination: IpNet) -> Result<(), DatapathError> {
        let (length, bytes) = key(pod, destination);
        self.tables.egress.delete(length, bytes)
    }

    /// All of them.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn egress(&self) -> Result<Vec<(Departure, EgressWay)>, DatapathError> {
        let rows = self.tables.egress.dump()?.into_iter();
        Ok(rows.filter_map(|(length, bytes, row)| Some((from_key(length, bytes)?, plain(row)))).collect())
    }

    /// Destinations that see pods' own addresses, whatever the node masquerades.
    pub(crate) fn unmasked(&self) -> Result<BTreeSet<IpNet>, DatapathError> {
        let rows = self.tables.unmasked.dump()?.into_iter();
        Ok(rows.filter_map(|(length, bytes, _)| trie_prefix(length, bytes)).collect())
    }

    /// Says which destinations see pods' own addresses although the node masquerades
    /// ([`NodeConfig::masquerade4`](crate::NodeConfig::masquerade4)); all others see the node's.
    ///
    /// # Errors
    /// The map is full or cannot be written.
    pub fn set_unmasked(&self, wanted: &BTreeSet<IpNet>) -> Result<(), DatapathError> {
        let wanted: BTreeSet<_> =
            wanted.iter().map(|net| (trie_length(*net), Addr::from(net.network()).0)).collect();
        let known = self.tables.unmasked.dump()?.into_iter();
        let known: BTreeSet<_> = known.map(|(length, bytes, _)| (length, bytes)).collect();
        for (length, bytes) in wanted.difference(&known) {
            self.tables.unmasked.upsert(*length, *bytes, 1)?;
        }
        for (length, bytes) in known.difference(&wanted) {
            self.tables.unmasked.delete(*length, *bytes)?;
        }
        Ok(())
    }
}
