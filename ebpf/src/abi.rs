//! The Rust side of `bpf/abi.h`: same layout, asserted here and compared with the object's BTF by [`crate::layout`].
//!
//! Nothing of this module leaves the crate; the rows of [`crate::rows`] do.
#![allow(unsafe_code, reason = "aya::Pod is an unsafe marker")]

use std::mem::{offset_of, size_of};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The schema number, which is part of the pins' path (`TB_SCHEMA`).
pub(crate) const SCHEMA: u32 = 1;
/// The version of the event record (`TB_EVENT_VERSION`).
pub(crate) const EVENT_VERSION: u16 = 2;

pub(crate) const CFG_READY: u32 = 1;
pub(crate) const CFG_ENCRYPT: u32 = 2;
pub(crate) const CFG_VERDICTS: u32 = 4;
pub(crate) const CFG_CSUM6: u32 = 8;
pub(crate) const CFG_CAPTURE: u32 = 1 << 4;
pub(crate) const CFG_CAPTURE_ALL: u32 = 1 << 5;
pub(crate) const AGG_FLOWS: u8 = 0;
pub(crate) const AGG_SENT: u8 = 1;
pub(crate) const AGG_NONE: u8 = 2;
pub(crate) const CFG_SOCK_HOST: u32 = 1 << 8;
pub(crate) const CFG_SOCK_PODS: u32 = 1 << 9;
pub(crate) const CFG_DSR_TCP: u32 = 1 << 10;
pub(crate) const CFG_DSR_UDP: u32 = 1 << 11;
pub(crate) const CFG_MASQ4: u32 = 1 << 16;
pub(crate) const CFG_MASQ6: u32 = 1 << 17;
pub(crate) const CFG_PACED: u32 = 1 << 24;
pub(crate) const CFG_HOST_SERVES: u32 = 1 << 25;
pub(crate) const IF_READY: u32 = 1;
pub(crate) const IF_LIMIT_OUT: u32 = 2;
pub(crate) const IF_LIMIT_IN: u32 = 4;
pub(crate) const IF_PRIORITY: u32 = 8;
pub(crate) const IF_QUEUED: u32 = 16;
pub(crate) const RATE_IN: u32 = 0;
pub(crate) const RATE_OUT: u32 = 1;
pub(crate) const RATE_PACED: u32 = 2;
pub(crate) const EP_HOST: u32 = 1;
pub(crate) const PFX_ENCRYPT: u32 = 1;
pub(crate) const PFX_REMOTE_CLUSTER: u32 = 2;
pub(crate) const PFX_SKIP_TUNNEL: u32 = 4;
pub(crate) const PFX_STRICT: u32 = 8;
pub(crate) const NODE_ENCRYPT: u32 = 1;
pub(crate) const EGW_LOCAL: u32 = 1;
pub(crate) const EGW_EXCLUDED: u32 = 2;
pub(crate) const SVC_LOCAL_ONLY: u32 = 1;
pub(crate) const SVC_NODEPORT: u32 = 2;
pub(crate) const SVC_HOSTPORT: u32 = 16;
pub(crate) const SVC_SOURCE_RANGE: u32 = 64;
pub(crate) const SOCK_FRONTEND: u8 = 0;
pub(crate) const CT_EGRESS: u8 = 0;
pub(crate) const CT_INGRESS: u8 = 1;
pub(crate) const CT_SERVICE: u8 = 2;
pub(crate) const CT_HOST_IN: u8 = 5;
pub(crate) const CT_HOST_OUT: u8 = 6;
pub(crate) const NAT_IN: u8 = 4;
pub(crate) const CTF_CLOSING: u16 = 2 | 4;
pub(crate) const CTF_LOOPBACK: u16 = 8;
pub(crate) const CTF_ONE_SIDED: u16 = 1 << 6;
pub(crate) const CTF_NAMED: u16 = 1 << 7;
pub(crate) const CTF_BY_STACK: u16 = 1 << 11;
pub(crate) const POL_INGRESS: u32 = 1;
pub(crate) const POL_EGRESS: u32 = 2;
pub(crate) const SHAPE_ID: u32 = 1;
pub(crate) const SHAPE_PROTO: u32 = 2;
pub(crate) const SHAPE_PORT: u32 = 4;
pub(crate) const POL_AUDIT: u32 = 4;
pub(crate) const RULE_DENY: u32 = 1;
pub(crate) const RULE_PASS: u32 = 2;
pub(crate) const TIER_NORMAL: u8 = 0;
pub(crate) const TIER_ADMIN: u8 = 1;
pub(crate) const TIER_BASELINE: u8 = 2;
pub(crate) const LOST_FULL: u32 = 0;
pub(crate) const LOST_LIMITED: u32 = 1;
pub(crate) const EV_DROP: u8 = 1;
pub(crate) const EV_VERDICT: u8 = 5;
pub(crate) const EVF_REPLY: u16 = 1;
pub(crate) const EVF_NEW: u16 = 2;
pub(crate) const EVF_EGRESS: u16 = 64;
pub(crate) const EVF_ENCRYPTED: u16 = 4;
pub(crate) const EVF_TRANSLATED: u16 = 32;
pub(crate) const EVF_AUDITED: u16 = 128;

/// An address: IPv4 as `::ffff:a.b.c.d`. Aligned like the C union.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(8))]
pub(crate) struct Addr(pub(crate) [u8; 16]);

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self(v4.to_ipv6_mapped().octets()),
            IpAddr::V6(v6) => Self(v6.octets()),
        }
    }
}

impl From<Option<Ipv4Addr>> for Addr {
    fn from(ip: Option<Ipv4Addr>) -> Self {
        ip.map_or_else(Self::default, |v4| Self::from(IpAddr::V4(v4)))
    }
}

impl From<Option<Ipv6Addr>> for Addr {
    fn from(ip: Option<Ipv6Addr>) -> Self {
        ip.map_or_else(Self::default, |v6| Self::from(IpAddr::V6(v6)))
    }
}

impl Addr {
    /// The plain address; IPv4-mapped ones come back as IPv4.
    pub(crate) fn ip(self) -> IpAddr {
        let v6 = Ipv6Addr::from(self.0);
        v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
    }

    /// The plain address, `None` for all zero.
    pub(crate) fn some_ip(self) -> Option<IpAddr> {
        (self.0 != [0; 16]).then(|| self.ip())
    }

    pub(crate) fn v4(self) -> Option<Ipv4Addr> {
        match self.some_ip() {
            Some(IpAddr::V4(v4)) => Some(v4),
            _ => None,
        }
    }

    pub(crate) fn v6(self) -> Option<Ipv6Addr> {
        match self.some_ip() {
            Some(IpAddr::V6(v6)) => Some(v6),
            _ => None,
        }
    }
}

macro_rules! abi {
    ($($(#[$doc:meta])* $name:ident = $size:literal { $($field:ident : $type:ty = $offset:literal),* $(,)? })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
            #[repr(C)]
            pub(crate) struct $name { $(pub(crate) $field: $type),* }
            const _: () = assert!(size_of::<$name>() == $size);
            $(const _: () = assert!(offset_of!($name, $field) == $offset);)*
            // SAFETY: repr(C), only integers and byte arrays, and the offsets asserted above leave no padding
            // because each field starts where the one before it ends and the last ends at the size.
            unsafe impl aya::Pod for $name {}
        )*
        /// C name, size and (field, offset) of every struct of the ABI.
        pub(crate) const LAYOUTS: &[(&str, usize, &[(&str, usize)])] = &[
            $((stringify!($name), $size, &[$((stringify!($field), $offset)),*])),*
        ];
    };
}

// SAFETY: 16 bytes, no padding, any bit pattern is valid.
unsafe impl aya::Pod for Addr {}

abi! {
    /// `struct tb_config`
    Config = 160 {
        schema: u32 = 0, flags: u32 = 4, cluster_id: u32 = 8, uplink_ifindex: u32 = 12,
        overlay_ifindex: u32 = 16, wireguard_ifindex: u32 = 20, snat_port_min: u16 = 24,
        snat_port_max: u16 = 26, vxlan_port: u16 = 28, pad0: u16 = 30, report_interval_ns: u64 = 32,
        internal4: Addr = 40, internal6: Addr = 56, underlay4: Addr = 72, underlay6: Addr = 88,
        clock_offset_ns: u64 = 104, host_policy_id: u32 = 112, wireguard_port: u16 = 116, pad1: u16 = 118,
        netns_cookie: u64 = 120, events_per_sec: u32 = 128, snat_walk: u32 = 132, report_flags: u8 = 136,
        aggregation: u8 = 137, spare: [u8; 22] = 138,
    }
    /// `struct tb_iface`
    Iface = 64 {
        flags: u32 = 0, identity: u32 = 4, policy_id: u32 = 8, endpoint_id: u16 = 12, pad0: u16 = 14,
        addr4: Addr = 16, addr6: Addr = 32, mac: [u8; 6] = 48, host_mac: [u8; 6] = 54,
        priority: u32 = 60,
    }
    /// `struct tb_rate_key`
    RateKey = 8 { ifindex: u32 = 0, way: u32 = 4 }
    /// `struct tb_rate`
    Rate = 16 { bytes_per_sec: u64 = 0, next_ns: u64 = 8 }
    /// `struct tb_endpoint`
    Endpoint = 8 { ifindex: u32 = 0, flags: u32 = 4 }
    /// `struct tb_lpm_key`, as aya's `Key<[u8; 16]>` writes it.
    LpmKey = 20 { prefixlen: u32 = 0, addr: [u8; 16] = 4 }
    /// `struct tb_prefix`
    Prefix = 12 { identity: u32 = 0, node: u32 = 4, flags: u32 = 8 }
    /// `struct tb_node`
    Node = 32 { tunnel: Addr = 0, path: u32 = 16, flags: u32 = 20, mtu: u32 = 24, pad0: u32 = 28 }
    /// `struct tb_egw_key`, as aya's `Key<[u8; 32]>` writes it.
    EgwKey = 36 { prefixlen: u32 = 0, src: [u8; 16] = 4, dst: [u8; 16] = 20 }
    /// `struct tb_egw`
    Egw = 32 { address: Addr = 0, node: u32 = 16, ifindex: u32 = 20, flags: u32 = 24, pad0: u32 = 28 }
    /// `struct tb_service_key`
    ServiceKey = 24 { addr: Addr = 0, port: u16 = 16, proto: u8 = 18, scope: u8 = 19, pad0: u32 = 20 }
    /// `struct tb_service`
    Service = 24 {
        rev_nat: u32 = 0, count: u32 = 4, maglev_offset: u32 = 8, maglev_size: u32 = 12, flags: u32 = 16,
        affinity_secs: u32 = 20,
    }
    /// `struct tb_range_key`, as aya's `Key<[u8; 20]>` writes it.
    RangeKey = 24 { prefixlen: u32 = 0, rev_nat: u32 = 4, addr: [u8; 16] = 8 }
    /// `struct tb_front_key`
    FrontKey = 24 { addr: Addr = 0, port: u16 = 16, proto: u8 = 18, pad0: u8 = 19, rev_nat: u32 = 20 }
    /// `struct tb_affinity_key`
    AffinityKey = 24 { client: Addr = 0, rev_nat: u32 = 16, by_cookie: u32 = 20 }
    /// `struct tb_affinity`
    Affinity = 32 {
        last_ns: u64 = 0, backend: u32 = 8, port: u16 = 12, pad0: u16 = 14, addr: Addr = 16,
    }
    /// `struct tb_member_key`
    MemberKey = 12 { rev_nat: u32 = 0, backend: u32 = 4, scope: u32 = 8 }
    /// `struct tb_backend`
    Backend = 24 { addr: Addr = 0, port: u16 = 16, proto: u8 = 18, flags: u8 = 19, pad0: u32 = 20 }
    /// `struct tb_sock_key`
    SockKey = 32 { cookie: u64 = 0, addr: Addr = 8, port: u16 = 24, proto: u8 = 26, kind: u8 = 27, pad0: u32 = 28 }
    /// `struct tb_sock`
    Sock = 40 {
        addr: Addr = 0, port: u16 = 16, pad0: u16 = 18, rev_nat: u32 = 20, backend: u32 = 24, pad1: u32 = 28,
        netns: u64 = 32,
    }
    /// `struct tb_rev_nat`
    RevNat = 24 { addr: Addr = 0, port: u16 = 16, pad0: u16 = 18, pad1: u32 = 20 }
    /// `struct tb_tuple`
    Tuple = 40 {
        src: Addr = 0, dst: Addr = 16, sport: u16 = 32, dport: u16 = 34, proto: u8 = 36, kind: u8 = 37,
        pad0: u16 = 38,
    }
    /// `struct tb_ct`
    Ct = 112 {
        expires_ns: u64 = 0, created_ns: u64 = 8, packets: [u64; 2] = 16, bytes: [u64; 2] = 32,
        reported_ns: [u64; 2] = 48, identity: u32 = 64, rev_nat: u32 = 68, policy_id: u32 = 72,
        policy_revision: u32 = 76, backend: u32 = 80, ifindex: u32 = 84, endpoint_id: u16 = 88,
        flags: u16 = 90, tcp_seen: [u8; 2] = 92, backend_port: u16 = 94, backend_addr: Addr = 96,
    }
    /// `struct tb_nat`
    Nat = 48 {
        created_ns: u64 = 0, addr: Addr = 8, port: u16 = 24, flags: u16 = 26, rev_nat: u32 = 28,
        expires_ns: u64 = 32, spare: [u8; 8] = 40,
    }
    /// `struct tb_policy`
    Policy = 64 {
        flags: u32 = 0, shapes_ingress: u32 = 4, shapes_egress: u32 = 8, revision: u32 = 12,
        widths: [u32; 2] = 16, admin: [u32; 4] = 24, baseline: [u32; 4] = 40, spare: [u32; 2] = 56,
    }
    /// `struct tb_rule_key`
    RuleKey = 16 {
        policy_id: u32 = 0, identity: u32 = 4, port: u16 = 8, proto: u8 = 10, dir: u8 = 11, tier: u8 = 12,
        open_bits: u8 = 13, pad0: u16 = 14,
    }
    /// `struct tb_rule`
    Rule = 16 { flags: u32 = 0, cookie: u32 = 4, priority: u32 = 8, spare: u32 = 12 }
    /// `struct tb_site_key`
    SiteKey = 4 { site: u16 = 0, dir: u16 = 2 }
    /// `struct tb_metric_key`
    MetricKey = 4 { reason: u16 = 0, dir: u16 = 2 }
    /// `struct tb_metric`
    Metric = 16 { packets: u64 = 0, bytes: u64 = 8 }
    /// `struct tb_event`
    Event = 112 {
        version: u16 = 0, kind: u8 = 2, point: u8 = 3, reason: u8 = 4, proto: u8 = 5, site: u16 = 6,
        time_ns: u64 = 8, src: Addr = 16, dst: Addr = 32, orig_dst: Addr = 48, src_identity: u32 = 64,
        dst_identity: u32 = 68, sport: u16 = 72, dport: u16 = 74, orig_dport: u16 = 76, flags: u16 = 78,
        src_endpoint: u16 = 80, dst_endpoint: u16 = 82, ifindex: u32 = 84, rev_nat: u32 = 88,
        length: u32 = 92, tcp_flags: u8 = 96, icmp_type: u8 = 97, icmp_code: u8 = 98, hook: u8 = 99,
        cookie: u32 = 100, error: u16 = 104, matched: u8 = 106, pad0: u8 = 107, pad1: u32 = 108,
    }
    /// `struct tb_capture`
    Capture = 144 {
        event: Event = 0, tunnel_src: Addr = 112, tunnel_id: u32 = 128, mark: u32 = 132, gso_size: u32 = 136,
        length: u16 = 140, pad0: u16 = 142,
    }
}

/// Reads the struct at the start of a record.
pub(crate) fn read<T: aya::Pod>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: the length was checked, any bit pattern is a valid T, and the read is unaligned.
    Some(unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast::<T>()) })
}
