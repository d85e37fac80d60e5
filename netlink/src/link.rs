//! Interfaces: veth pairs, VXLAN devices, and the settings all interfaces share.

use std::os::fd::AsRawFd;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};
use nix::libc;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};

use crate::connection::{Netlink, Refusal};
use crate::{Error, MacAddr, NetNs};

/// The longest interface name in bytes (IFNAMSIZ less the closing zero).
pub const NAME_MAX_BYTES: usize = 15;

/// An interface as the kernel reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Index in its namespace.
    pub index: u32,
    /// Name, at most 15 bytes.
    pub name: String,
    /// `veth`, `vxlan`, `tun`, `wireguard`, ...; none for loopback and physical interfaces.
    pub kind: Option<String>,
    /// Ethernet address; none for L3 devices.
    pub mac: Option<MacAddr>,
    /// In bytes.
    pub mtu: u32,
    /// Administratively up (IFF_UP).
    pub up: bool,
    /// Carrier is there (IFF_LOWER_UP).
    pub carrier: bool,
    /// Operationally up (IFF_RUNNING): packets can be sent. Follows the carrier with a short delay.
    pub running: bool,
    /// No address resolution (IFF_NOARP).
    pub no_arp: bool,
    /// The interface is the loopback.
    pub loopback: bool,
    /// The other end of a veth pair: its index, in its own namespace.
    pub peer_index: Option<u32>,
    /// The bridge or bond above, if any.
    pub controller: Option<u32>,
    /// Set for VXLAN devices.
    pub vxlan: Option<VxlanSettings>,
    /// Counters since the interface was made.
    pub stats: LinkStats,
}

/// What distinguishes one VXLAN device from another here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct VxlanSettings {
    /// UDP destination port.
    pub port: u16,
    /// Collect-metadata mode (`external` in `ip link`): the tunnel key travels with each packet.
    pub collect_metadata: bool,
}

/// Counters of an interface (struct rtnl_link_stats64).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the kernel's own names")]
pub struct LinkStats {
    pub rx_packets: u64,
    pub tx_packets: u64,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub rx_errors: u64,
    pub tx_errors: u64,
    pub rx_dropped: u64,
    pub tx_dropped: u64,
}

/// One end of a veth pair to be made.
#[derive(Clone, Debug, Default)]
pub struct VethEnd {
    /// Interface name, at most 15 bytes.
    pub name: String,
    /// Where the end shall live; none = the namespace of the handle.
    pub namespace: Option<NetNs>,
    /// Ethernet address; none = the kernel chooses.
    pub mac: Option<MacAddr>,
    /// In bytes; none = 1500.
    pub mtu: Option<u32>,
}

/// A VXLAN device in collect-metadata mode to be made.
#[derive(Clone, Debug)]
pub struct VxlanSpec {
    /// Interface name, at most 15 bytes.
    pub name: String,
    /// UDP destination port (8472 in the lab, 4789 by IANA).
    pub port: u16,
    /// In bytes.
    pub mtu: u32,
    /// Ethernet address; none = the kernel chooses.
    pub mac: Option<MacAddr>,
}

/// Settings to change on an interface; what is `None` stays.
#[derive(Clone, Debug, Default)]
pub struct LinkSettings {
    /// New name (some kernels want the interface down).
    pub name: Option<String>,
    /// In bytes.
    pub mtu: Option<u32>,
    /// Ethernet address.
    pub mac: Option<MacAddr>,
    /// Address resolution off (true) or on (false).
    pub no_arp: Option<bool>,
    /// Whether the kernel makes itself an IPv6 link-local address when the interface comes up.
    pub ipv6_link_local: Option<bool>,
    /// Put the interface under this bridge; `Some(0)` takes it out.
    pub controller: Option<u32>,
    /// Up or down.
    pub up: Option<bool>,
}

impl Netlink {
    /// The interface of that name.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub async fn link(&self, name: &str) -> Result<Link, Error> {
        self.find_link(name).await?.ok_or_else(|| self.no_interface(name))
    }

    /// The interface of that name, or none.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses to tell.
    pub async fn find_link(&self, name: &str) -> Result<Option<Link>, Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.one_link(message, || format!("interface {name}")).await
    }

    /// The interface of that index, or none.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses to tell.
    pub async fn find_link_by_index(&self, index: u32) -> Result<Option<Link>, Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.one_link(message, || format!("interface index {index}")).await
    }

    async fn one_link(
        &self,
        message: LinkMessage,
        object: impl Fn() -> String,
    ) -> Result<Option<Link>, Error> {
        match self.get(RouteNetlinkMessage::GetLink(message)).await {
            Ok(RouteNetlinkMessage::NewLink(found)) => Ok(Link::from_message(&found)),
            Ok(_) => Ok(None),
            Err(refusal) if refusal.errno() == Some(libc::ENODEV) => Ok(None),
            Err(refusal) => Err(refusal.on("look up", object())),
        }
    }

    /// All interfaces, by index.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses to tell.
    pub async fn links(&self) -> Result<Vec<Link>, Error> {
        let found = self
            .dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))
            .await
            .map_err(|refusal| refusal.on("list", "the interfaces"))?;
        let mut links: Vec<Link> = found
            .iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewLink(link) => Link::from_message(link),
                _ => None,
            })
            .collect();
        links.sort_by_key(|link| link.index);
        Ok(links)
    }

    /// Makes a veth pair, each end straight in its namespace. If the pair is there already (both names, one pair),
    /// its addresses and MTUs are set as asked. Returns (this end, peer end). Both ends are left down.
    ///
    /// # Errors
    /// [`Error::Conflict`] when one of the names is taken by something else, else [`Error::Kernel`].
    pub async fn create_veth(&self, end: &VethEnd, peer: &VethEnd) -> Result<(Link, Link), Error> {
        const WHAT: &str = "create the veth pair";
        let object = format!("{} <-> {}", end.name, peer.name);
        check_name(WHAT, &end.name)?;
        check_name(WHAT, &peer.name)?;
        let mut message = end.message();
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer.message()))),
        ]));
        let made = self.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL).await;
        let exists = match made {
            Ok(()) => false,
            Err(refusal) if refusal.errno() == Some(libc::EEXIST) => true,
            Err(refusal) => return Err(refusal.on(WHAT, object)),
        };
        let (here, there) = (self.at(end)?, self.at(peer)?);
        let conflict = |found: String| Error::Conflict { what: WHAT, object: object.clone(), found };
        let this_link =
            here.find_link(&end.name).await?.ok_or_else(|| conflict(format!("no {}", end.name)))?;
        let peer_link =
            there.find_link(&peer.name).await?.ok_or_else(|| conflict(format!("no {}", peer.name)))?;
        if !exists {
            return Ok((this_link, peer_link));
        }
        let paired = |one: &Link, other: &Link| {
            one.kind.as_deref() == Some("veth") && one.peer_index == Some(other.index)
        };
        if !paired(&this_link, &peer_link) || !paired(&peer_link, &this_link) {
            return Err(conflict(format!("{} and {} are not one veth pair", this_link.name, peer_link.name)));
        }
        here.adopt(&this_link, end.mtu, end.mac).await?;
        there.adopt(&peer_link, peer.mtu, peer.mac).await?;
        Ok((here.link(&end.name).await?, there.link(&peer.name).await?))
    }

    /// A handle on the namespace an end of a pair lives in.
    fn at(&self, end: &VethEnd) -> Result<Self, Error> {
        end.namespace.as_ref().map_or_else(|| Ok(self.clone()), Self::in_namespace)
    }

    /// Makes a VXLAN device in collect-metadata mode (no VNI of its own, no learning, UDP checksums zero allowed
    /// over IPv6 so that both families behave alike). If a VXLAN device of that name with that port and mode is
    /// there, its MTU and address are set as asked.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the name is taken by something else, else [`Error::Kernel`].
    pub async fn create_vxlan(&self, spec: &VxlanSpec) -> Result<Link, Error> {
        const WHAT: &str = "create the VXLAN device";
        check_name(WHAT, &spec.name)?;
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(spec.name.clone()));
        message.attributes.push(LinkAttribute::Mtu(spec.mtu));
        if let Some(mac) = spec.mac {
            message.attributes.push(LinkAttribute::Address(mac.octets().to_vec()));
        }
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(vec![
                InfoVxlan::CollectMetadata(true),
                InfoVxlan::Learning(false),
                InfoVxlan::Port(spec.port),
                InfoVxlan::UDPZeroCsumTX(true),
                InfoVxlan::UDPZeroCsumRX(true),
            ])),
        ]));
        match self.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL).await {
            Ok(()) => self.link(&spec.name).await,
            Err(refusal) if refusal.errno() == Some(libc::EEXIST) => self.adopt_vxlan(spec, refusal).await,
            Err(refusal) => Err(refusal.on(WHAT, spec.name.clone())),
        }
    }

    /// Takes over a VXLAN device that exists, if it is the one meant.
    async fn adopt_vxlan(&self, spec: &VxlanSpec, refusal: Refusal) -> Result<Link, Error> {
        const WHAT: &str = "create the VXLAN device";
        let Some(found) = self.find_link(&spec.name).await? else {
            // EEXIST without our name: another device holds the port in this mode.
            return Err(refusal.on(WHAT, format!("{} (UDP port {})", spec.name, spec.port)));
        };
        let wanted = VxlanSettings { port: spec.port, collect_metadata: true };
        if found.vxlan != Some(wanted) {
            let found = format!("kind {:?}, {:?}", found.kind, found.vxlan);
            return Err(Error::Conflict { what: WHAT, object: spec.name.clone(), found });
        }
        self.adopt(&found, Some(spec.mtu), spec.mac).await?;
        self.link(&spec.name).await
    }

    /// Sets MTU and address of an interface that was found, if they differ: a live one is not disturbed for nothing.
    async fn adopt(&self, found: &Link, mtu: Option<u32>, mac: Option<MacAddr>) -> Result<(), Error> {
        let settings = LinkSettings {
            mtu: mtu.filter(|mtu| *mtu != found.mtu),
            mac: mac.filter(|mac| Some(*mac) != found.mac),
            ..LinkSettings::default()
        };
        if settings.mtu.is_none() && settings.mac.is_none() {
            return Ok(());
        }
        self.set_link(found.index, &settings).await
    }

    /// Makes a WireGuard device of the kernel's own. One of that name is fine.
    ///
    /// # Errors
    /// [`Error::Kernel`] with EOPNOTSUPP where the kernel has no WireGuard; [`Error::Conflict`] when the name is taken by
    /// something else.
    pub async fn create_wireguard(&self, name: &str) -> Result<Link, Error> {
        const WHAT: &str = "create the WireGuard device";
        check_name(WHAT, name)?;
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Wireguard)]));
        match self.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL).await {
            Ok(()) => self.link(name).await,
            Err(refusal) if refusal.errno() == Some(libc::EEXIST) => match self.link(name).await? {
                link if link.kind.as_deref() == Some("wireguard") => Ok(link),
                other => {
                    let found = format!("kind {:?}", other.kind);
                    Err(Error::Conflict { what: WHAT, object: name.to_owned(), found })
                }
            },
            Err(refusal) => Err(refusal.on(WHAT, name)),
        }
    }

    /// Changes settings of an interface; only what is `Some` is touched. Name, MTU, address and IPv6 mode are set
    /// before the interface goes up.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses (an MTU out of range, the interface gone).
    pub async fn set_link(&self, index: u32, settings: &LinkSettings) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let attributes = &mut message.attributes;
        if let Some(name) = &settings.name {
            check_name("rename", name)?;
            attributes.push(LinkAttribute::IfName(name.clone()));
        }
        if let Some(mtu) = settings.mtu {
            attributes.push(LinkAttribute::Mtu(mtu));
        }
        if let Some(mac) = settings.mac {
            attributes.push(LinkAttribute::Address(mac.octets().to_vec()));
        }
        if let Some(link_local) = settings.ipv6_link_local {
            let mode = if link_local { In6AddrGenMode::Eui64 } else { In6AddrGenMode::None };
            let inet6 = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(mode)]);
            attributes.push(LinkAttribute::AfSpecUnspec(vec![inet6]));
        }
        if let Some(controller) = settings.controller {
            attributes.push(LinkAttribute::Controller(controller));
        }
        let header = &mut message.header;
        if let Some(no_arp) = settings.no_arp {
            header.change_mask |= LinkFlags::Noarp;
            header.flags.set(LinkFlags::Noarp, no_arp);
        }
        if let Some(up) = settings.up {
            header.change_mask |= LinkFlags::Up;
            header.flags.set(LinkFlags::Up, up);
        }
        self.change(RouteNetlinkMessage::SetLink(message), 0)
            .await
            .map_err(|refusal| refusal.on("change", format!("interface index {index} ({settings:?})")))
    }

    /// Brings an interface up.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub async fn set_up(&self, index: u32) -> Result<(), Error> {
        self.set_link(index, &LinkSettings { up: Some(true), ..LinkSettings::default() }).await
    }

    /// Takes an interface down.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub async fn set_down(&self, index: u32) -> Result<(), Error> {
        self.set_link(index, &LinkSettings { up: Some(false), ..LinkSettings::default() }).await
    }

    /// Moves an interface into another namespace; its name and MAC go with it, addresses and routes do not.
    ///
    /// # Errors
    /// [`Error::Kernel`], for example when the name is taken there.
    pub async fn move_link(&self, index: u32, namespace: &NetNs) -> Result<(), Error> {
        use std::os::fd::AsFd;
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::NetNsFd(namespace.as_fd().as_raw_fd()));
        self.change(RouteNetlinkMessage::SetLink(message), 0).await.map_err(|refusal| {
            refusal.on("move", format!("interface index {index} to {}", namespace.description()))
        })
    }

    /// Deletes the interface of that name (of a veth pair: both ends). True if it was there.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses.
    pub async fn delete_link(&self, name: &str) -> Result<bool, Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.change(RouteNetlinkMessage::DelLink(message), 0).await {
            Ok(()) => Ok(true),
            Err(refusal) if refusal.errno() == Some(libc::ENODEV) => Ok(false),
            Err(refusal) => Err(refusal.on("delete", format!("interface {name}"))),
        }
    }

    fn no_interface(&self, name: &str) -> Error {
        Error::NotFound { object: format!("interface {name}"), namespace: self.namespace_name().to_owned() }
    }
}

impl VethEnd {
    /// An end in the namespace of the handle, MAC and MTU left to the kernel.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    fn message(&self) -> LinkMessage {
        use std::os::fd::AsFd;
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(self.name.clone()));
        if let Some(mtu) = self.mtu {
            message.attributes.push(LinkAttribute::Mtu(mtu));
        }
        if let Some(mac) = self.mac {
            message.attributes.push(LinkAttribute::Address(mac.octets().to_vec()));
        }
        if let Some(namespace) = &self.namespace {
            message.attributes.push(LinkAttribute::NetNsFd(namespace.as_fd().as_raw_fd()));
        }
        message
    }
}

impl Link {
    /// Reads the kernel's message; none if it names no interface.
    pub(crate) fn from_message(message: &LinkMessage) -> Option<Self> {
        let flags = message.header.flags;
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            kind: None,
            mac: None,
            mtu: 0,
            up: flags.contains(LinkFlags::Up),
            carrier: flags.contains(LinkFlags::LowerUp),
            running: flags.contains(LinkFlags::Running),
            no_arp: flags.contains(LinkFlags::Noarp),
            loopback: flags.contains(LinkFlags::Loopback),
            peer_index: None,
            controller: None,
            vxlan: None,
            stats: LinkStats::default(),
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Address(address) => link.mac = MacAddr::try_from(address.as_slice()).ok(),
                LinkAttribute::Link(index) => link.peer_index = Some(*index),
                LinkAttribute::Controller(index) => link.controller = Some(*index),
                LinkAttribute::LinkInfo(infos) => link.read_info(infos),
                LinkAttribute::Stats64(s) => {
                    link.stats = LinkStats {
                        rx_packets: s.rx_packets,
                        tx_packets: s.tx_packets,
                        rx_bytes: s.rx_bytes,
                        tx_bytes: s.tx_bytes,
                        rx_errors: s.rx_errors,
                        tx_errors: s.tx_errors,
                        rx_dropped: s.rx_dropped,
                        tx_dropped: s.tx_dropped,
                    };
                }
                _ => {}
            }
        }
        (!link.name.is_empty()).then_some(link)
    }

    fn read_info(&mut self, infos: &[LinkInfo]) {
        for info in infos {
            match info {
                LinkInfo::Kind(kind) => self.kind = Some(kind.to_string()),
                LinkInfo::Data(InfoData::Vxlan(settings)) => {
                    let mut vxlan = VxlanSettings::default();
                    for setting in settings {
                        match setting {
                            InfoVxlan::Port(port) => vxlan.port = *port,
                            InfoVxlan::CollectMetadata(on) => vxlan.collect_metadata = *on,
                            _ => {}
                        }
                    }
                    self.vxlan = Some(vxlan);
                }
                _ => {}
            }
        }
    }
}

fn check_name(what: &'static str, name: &str) -> Result<(), Error> {
    let wrong = name.is_empty()
        || name.len() > NAME_MAX_BYTES
        || name == "."
        || name == ".."
        || name.bytes().any(|byte| byte == b'/' || byte == b':' || byte.is_ascii_whitespace() || byte == 0);
    if wrong {
        let reason =
            format!("interface names have 1 to {NAME_MAX_BYTES} bytes, without slash, colon or space");
        return Err(Error::Invalid { what, object: format!("`{name}`"), reason });
    }
    Ok(())
}
