//! Policy routing rules.

use ipnet::IpNet;
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::libc;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};

use crate::Error;
use crate::connection::Netlink;

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A rule that sends matching packets to a routing table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// The family whose packets it looks at.
    pub family: Family,
    /// Lower is asked first; 0, 32766 and 32767 are the kernel's own.
    pub priority: u32,
    /// The table to look in.
    pub table: u32,
    /// Mark and mask: matches when `packet mark & mask == mark`.
    pub mark: Option<(u32, u32)>,
    /// Source prefix.
    pub from: Option<IpNet>,
    /// Destination prefix.
    pub to: Option<IpNet>,
    /// Name of the interface the packet came in by.
    pub input_link: Option<String>,
    /// Match everything but this.
    pub invert: bool,
    /// Who owns the rule (RTPROT_*).
    pub protocol: u8,
}

impl Rule {
    /// A rule without conditions, owned by "static".
    #[must_use]
    pub fn new(family: Family, priority: u32, table: u32) -> Self {
        Self {
            family,
            priority,
            table,
            mark: None,
            from: None,
            to: None,
            input_link: None,
            invert: false,
            protocol: crate::PROTOCOL_STATIC,
        }
    }

    fn message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        let header = &mut message.header;
        header.family = match self.family {
            Family::V4 => AddressFamily::Inet,
            Family::V6 => AddressFamily::Inet6,
        };
        header.action = RuleAction::ToTable;
        header.flags.set(RuleFlags::Invert, self.invert);
        header.table = u8::try_from(self.table).unwrap_or(0);
        let attributes = &mut message.attributes;
        attributes.push(RuleAttribute::Table(self.table));
        attributes.push(RuleAttribute::Priority(self.priority));
        attributes.push(RuleAttribute::Protocol(RouteProtocol::from(self.protocol)));
        if let Some((mark, mask)) = self.mark {
            attributes.push(RuleAttribute::FwMark(mark));
            attributes.push(RuleAttribute::FwMask(mask));
        }
        if let Some(from) = self.from {
            header.src_len = from.prefix_len();
            attributes.push(RuleAttribute::Source(from.network()));
        }
        if let Some(to) = self.to {
            header.dst_len = to.prefix_len();
            attributes.push(RuleAttribute::Destination(to.network()));
        }
        if let Some(name) = &self.input_link {
            attributes.push(RuleAttribute::Iifname(name.clone()));
        }
        message
    }

    fn from_message(message: &RuleMessage) -> Option<Self> {
        let header = &message.header;
        let family = match header.family {
            AddressFamily::Inet => Family::V4,
            AddressFamily::Inet6 => Family::V6,
            _ => return None,
        };
        if header.action != RuleAction::ToTable {
            return None;
        }
        let mut rule = Self::new(family, 0, u32::from(header.table));
        rule.invert = header.flags.contains(RuleFlags::Invert);
        rule.protocol = 0;
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Table(table) => rule.table = *table,
                RuleAttribute::Priority(priority) => rule.priority = *priority,
                RuleAttribute::Protocol(protocol) => rule.protocol = (*protocol).into(),
                RuleAttribute::FwMark(mark) => {
                    rule.mark = Some((*mark, rule.mark.map_or(u32::MAX, |(_, mask)| mask)))
                }
                RuleAttribute::FwMask(mask) => {
                    rule.mark = Some((rule.mark.map_or(0, |(mark, _)| mark), *mask))
                }
                RuleAttribute::Source(address) => rule.from = IpNet::new(*address, header.src_len).ok(),
                RuleAttribute::Destination(address) => rule.to = IpNet::new(*address, header.dst_len).ok(),
                RuleAttribute::Iifname(name) => rule.input_link = Some(name.clone()),
                _ => {}
            }
        }
        Some(rule)
    }
}

impl Netlink {
    /// Adds a rule; an equal one that is there is fine.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses.
    pub async fn add_rule(&self, rule: &Rule) -> Result<(), Error> {
        match self.change(RouteNetlinkMessage::NewRule(rule.message()), NLM_F_CREATE | NLM_F_EXCL).await {
            Ok(()) => Ok(()),
            Err(refusal) if refusal.errno() == Some(libc::EEXIST) => Ok(()),
            Err(refusal) => Err(refusal.on("add the rule", format!("{rule:?}"))),
        }
    }

    /// Deletes a rule. True if it was there.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses.
    pub async fn delete_rule(&self, rule: &Rule) -> Result<bool, Error> {
        match self.change(RouteNetlinkMessage::DelRule(rule.message()), 0).await {
            Ok(()) => Ok(true),
            Err(refusal) if matches!(refusal.errno(), Some(libc::ENOENT | libc::ESRCH)) => Ok(false),
            Err(refusal) => Err(refusal.on("delete the rule", format!("{rule:?}"))),
        }
    }

    /// The rules of both families that send to a table, by family and priority.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses to tell.
    pub async fn rules(&self) -> Result<Vec<Rule>, Error> {
        let mut rules = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RuleMessage::default();
            message.header.family = family;
            let found = self
                .dump(RouteNetlinkMessage::GetRule(message))
                .await
                .map_err(|refusal| refusal.on("list", "the rules"))?;
            rules.extend(found.iter().filter_map(|message| match message {
                RouteNetlinkMessage::NewRule(rule) => Rule::from_message(rule),
                _ => None,
            }));
        }
        rules.sort();
        Ok(rules)
    }
}
