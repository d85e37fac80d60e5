//! Who is where: pods' interfaces, local addresses, prefixes and nodes.

use crate::abi::{self, Addr};
use crate::datapath::Datapath;
use crate::error::DatapathError;
use crate::rows::{Interface, Limits, LocalAddress, NodeEntry, NodePath, PrefixEntry, is_host_prefix};
use ipnet::IpNet;
use std::net::IpAddr;

const fn plain(row: abi::Prefix) -> PrefixEntry {
    PrefixEntry {
        identity: row.identity,
        node: row.node,
        encrypt: row.flags & abi::PFX_ENCRYPT != 0,
        remote_cluster: row.flags & abi::PFX_REMOTE_CLUSTER != 0,
        skip_tunnel: row.flags & abi::PFX_SKIP_TUNNEL != 0,
        strict: row.flags & abi::PFX_STRICT != 0,
    }
}

impl Datapath {
    /// Writes a pod's row, keyed by the host end's ifindex, and its rates before it.
    ///
    /// # Errors
    /// A map is full or cannot be written.
    pub fn upsert_interface(&self, ifindex: u32, row: &Interface) -> Result<(), DatapathError> {
        let flag = |on: bool, bit: u32| if on { bit } else { 0 };
        self.set_rates(ifindex, &row.limits)?;
        let row = abi::Iface {
            flags: flag(row.ready, abi::IF_READY)
                | flag(row.limits.egress.is_some(), abi::IF_LIMIT_OUT)
                | flag(row.limits.ingress.is_some(), abi::IF_LIMIT_IN)
                | flag(row.limits.priority.is_some(), abi::IF_PRIORITY)
                | flag(row.queued, abi::IF_QUEUED),
            identity: row.identity,
            policy_id: row.policy_id,
            endpoint_id: row.endpoint_id,
            addr4: row.v4.into(),
            addr6: row.v6.into(),
            mac: row.mac,
            host_mac: row.host_mac,
            priority: row.limits.priority.unwrap_or(0),
            ..abi::Iface::default()
        };
        self.tables.ifaces.upsert(ifindex, row)
    }

    /// Writes the rates that differ: a row that is written anew forgets what its pod has sent already.
    fn set_rates(&self, ifindex: u32, limits: &Limits) -> Result<(), DatapathError> {
        let ways = [
            (abi::RATE_IN, limits.ingress),
            (abi::RATE_OUT, limits.egress),
            (abi::RATE_PACED, limits.egress),
        ];
        for (way, wanted) in ways {
            let key = abi::RateKey { ifindex, way };
            let present = self.tables.rates.get(key)?.map(|row| row.bytes_per_sec);
            match wanted {
                _ if wanted == present => {}
                Some(bytes_per_sec) => {
                    self.tables.rates.upsert(key, abi::Rate { bytes_per_sec, next_ns: 0 })?
                }
                None => self.tables.rates.delete(key)?,
            }
        }
        Ok(())
    }

    /// Deletes a pod's row; its hook drops from then on.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn delete_interface(&self, ifindex: u32) -> Result<(), DatapathError> {
        self.tables.ifaces.delete(ifindex)?;
        self.set_rates(ifindex, &Limits::default())
    }

    /// All pods' rows.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn interfaces(&self) -> Result<Vec<(u32, Interface)>, DatapathError> {
        let plain = |(ifindex, row): (u32, abi::Iface)| {
            let rate = |bit: u32, way: u32| -> Result<Option<u64>, DatapathError> {
                if row.flags & bit == 0 {
                    return Ok(None);
                }
                Ok(self.tables.rates.get(abi::RateKey { ifindex, way })?.map(|rate| rate.bytes_per_sec))
            };
            let limits = Limits {
                egress: rate(abi::IF_LIMIT_OUT, abi::RATE_OUT)?,
                ingress: rate(abi::IF_LIMIT_IN, abi::RATE_IN)?,
                priority: (row.flags & abi::IF_PRIORITY != 0).then_some(row.priority),
            };
            let interface = Interface {
                ready: row.flags & abi::IF_READY != 0,
                identity: row.identity,
                policy_id: row.policy_id,
                endpoint_id: row.endpoint_id,
                v4: row.addr4.v4(),
                v6: row.addr6.v6(),
                mac: row.mac,
                host_mac: row.host_mac,
                limits,
                queued: row.flags & abi::IF_QUEUED != 0,
            };
            Ok((ifindex, interface))
        };
        self.tables.ifaces.dump()?.into_iter().map(plain).collect()
    }

    /// Says where a local address lives: a pod's address, or one of the node's own.
    ///
    /// # Errors
    /// The map is full or cannot be written.
    pub fn upsert_local_address(&self, ip: IpAddr, place: LocalAddress) -> Result<(), DatapathError> {
        let row = match place {
            LocalAddress::Pod(ifindex) => abi::Endpoint { ifindex, flags: 0 },
            LocalAddress::Host => abi::Endpoint { ifindex: 0, flags: abi::EP_HOST },
        };
        self.tables.endpoints.upsert(Addr::from(ip), row)
    }

    /// Deletes a local address.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn delete_local_address(&self, ip: IpAddr) -> Result<(), DatapathError> {
        self.tables.endpoints.delete(Addr::from(ip))
    }

    /// All local addresses.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn local_addresses(&self) -> Result<Vec<(IpAddr, LocalAddress)>, DatapathError> {
        let place = |row: abi::Endpoint| match row.flags & abi::EP_HOST {
            0 => LocalAddress::Pod(row.ifindex),
            _ => LocalAddress::Host,
        };
        Ok(self.tables.endpoints.dump()?.into_iter().map(|(addr, row)| (addr.ip(), place(row))).collect())
    }

    /// Says what lies behind a prefix.
    ///
    /// # Errors
    /// The map is full or cannot be written.
    pub fn upsert_prefix(&self, prefix: IpNet, entry: &PrefixEntry) -> Result<(), DatapathError> {
        let flag = |on: bool, bit: u32| if on { bit } else { 0 };
        let row = abi::Prefix {
            identity: entry.identity,
            node: entry.node,
            flags: flag(entry.encrypt, abi::PFX_ENCRYPT)
                | flag(entry.remote_cluster, abi::PFX_REMOTE_CLUSTER)
                | flag(entry.skip_tunnel, abi::PFX_SKIP_TUNNEL)
                | flag(entry.strict, abi::PFX_STRICT),
        };
        let addr = Addr::from(prefix.network());
        if is_host_prefix(prefix) {
            self.tables.hosts.upsert(addr, row)
        } else {
            self.tables.prefixes.upsert(trie_length(prefix), addr.0, row)
        }
    }

    /// Forgets a prefix.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn delete_prefix(&self, prefix: IpNet) -> Result<(), DatapathError> {
        let addr = Addr::from(prefix.network());
        if is_host_prefix(prefix) {
            self.tables.hosts.delete(addr)
        } else {
            self.tables.prefixes.delete(trie_length(prefix), addr.0)
        }
    }

    /// What is said of a prefix itself, not of those around it.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn prefix(&self, prefix: IpNet) -> Result<Option<PrefixEntry>, DatapathError> {
        let addr = Addr::from(prefix.network());
        if is_host_prefix(prefix) {
            return Ok(self.tables.hosts.get(addr)?.map(plain));
        }
        let all = self.tables.prefixes.dump()?.into_iter();
        let found = all.filter_map(|(length, addr, row)| Some((trie_prefix(length, addr)?, row)));
        Ok(found.filter(|(other, _)| *other == prefix).map(|(_, row)| plain(row)).next())
    }

    /// What is said of the longest prefix around an address.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn prefix_around(&self, ip: IpAddr) -> Result<Option<PrefixEntry>, DatapathError> {
        let addr = Addr::from(ip);
        let row = match self.tables.hosts.get(addr)? {
            Some(row) => Some(row),
            None => self.tables.prefixes.around(128, addr.0)?,
        };
        Ok(row.map(plain))
    }

    /// All prefixes.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn prefixes(&self) -> Result<Vec<(IpNet, PrefixEntry)>, DatapathError> {
        let hosts = self.tables.hosts.dump()?.into_iter();
        let mut all: Vec<(IpNet, PrefixEntry)> =
            hosts.map(|(addr, row)| (IpNet::from(addr.ip()), plain(row))).collect();
        for (length, addr, row) in self.tables.prefixes.dump()? {
            all.extend(trie_prefix(length, addr).map(|prefix| (prefix, plain(row))));
        }
        Ok(all)
    }

    /// Says how a node is reached. Index 0 is this node and needs no row.
    ///
    /// # Errors
    /// The map is full or cannot be written.
    pub fn upsert_node(&self, index: u32, node: &NodeEntry) -> Result<(), DatapathError> {
        let row = abi::Node {
            tunnel: node.tunnel.map_or_else(Addr::default, Addr::from),
            path: match node.path {
                NodePath::Local => 0,
                NodePath::Overlay => 1,
                NodePath::Direct => 2,
            },
            flags: if node.encrypt { abi::NODE_ENCRYPT } else { 0 },
            mtu: node.mtu,
            pad0: 0,
        };
        self.tables.nodes.upsert(index, row)
    }

    /// Forgets a node.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn delete_node(&self, index: u32) -> Result<(), DatapathError> {
        self.tables.nodes.delete(index)
    }

    /// All nodes.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn nodes(&self) -> Result<Vec<(u32, NodeEntry)>, DatapathError> {
        Ok(self.tables.nodes.dump()?.into_iter().map(|(index, row)| (index, node(row))).collect())
    }

    /// The node of that number.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn node(&self, index: u32) -> Result<Option<NodeEntry>, DatapathError> {
        Ok(self.tables.nodes.get(index)?.map(node))
    }
}

fn node(row: abi::Node) -> NodeEntry {
    NodeEntry {
        tunnel: row.tunnel.some_ip(),
        path: match row.path {
            1 => NodePath::Overlay,
            2 => NodePath::Direct,
            _ => NodePath::Local,
        },
        encrypt: row.flags & abi::NODE_ENCRYPT != 0,
        mtu: row.mtu,
    }
}

/// A prefix's length in the tries.
pub(crate) fn trie_length(prefix: IpNet) -> u32 {
    let length = u32::from(prefix.prefix_len());
    if prefix.addr().is_ipv4() { length + 96 } else { length }
}

/// The prefix behind a trie's length and address.
pub(crate) fn trie_prefix(length: u32, addr: [u8; 16]) -> Option<IpNet> {
    let ip = Addr(addr).ip();
    let length = if ip.is_ipv4() { length.checked_sub(96)? } else { length };
    IpNet::new(ip, u8::try_from(length).ok()?).ok()
}
