//! The entries of one kind, small: a million addresses are ordinary.
//!
//! Addresses are kept field by field, without the names of their keys, and with texts that the tables share. Everything
//! else is kept as the record that the tables share.

use crate::wire::Record;
use crate::wire::ip::{self, IpEntry, NamedPort};
use std::borrow::Cow;
use std::cmp::Ordering;
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_base::ids::IdentityId;
use tombolo_base::prefix::Prefix;
use tombolo_base::text::shared;
use tombolo_base::tree::Tree;

/// One entry that is known.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    what: What,
    /// The list in which the key was seen last.
    pub(super) seen: u32,
    /// Bytes of name and value.
    pub(super) bytes: u32,
}

#[derive(Clone, Debug, PartialEq)]
enum What {
    Ip(Ip),
    Other(Arc<str>, Record),
}

/// An [`IpEntry`], with what few have set apart.
#[derive(Clone, Debug, PartialEq)]
struct Ip {
    prefix: Prefix,
    masked: bool,
    host_ip: Option<IpAddr>,
    encryption_key: u8,
    identity: IdentityId,
    namespace: Arc<str>,
    pod: Arc<str>,
    rare: Option<Box<Rare>>,
}

#[derive(Clone, Debug, PartialEq)]
struct Rare {
    service_account: Arc<str>,
    named_ports: Vec<NamedPort>,
}

impl Ip {
    fn new(entry: &IpEntry) -> Self {
        let rare = || Rare {
            service_account: entry.service_account.clone(),
            named_ports: entry.named_ports.clone(),
        };
        let is_rare = !entry.service_account.is_empty() || !entry.named_ports.is_empty();
        Self {
            prefix: entry.prefix,
            masked: entry.masked,
            host_ip: entry.host_ip,
            encryption_key: entry.encryption_key,
            identity: entry.identity,
            namespace: entry.namespace.clone(),
            pod: entry.pod.clone(),
            rare: is_rare.then(|| Box::new(rare())),
        }
    }

    fn entry(&self) -> IpEntry {
        let rare = self.rare.as_deref();
        IpEntry {
            prefix: self.prefix,
            masked: self.masked,
            host_ip: self.host_ip,
            identity: self.identity,
            encryption_key: self.encryption_key,
            namespace: self.namespace.clone(),
            pod: self.pod.clone(),
            service_account: rare.map_or_else(|| shared(""), |rare| rare.service_account.clone()),
            named_ports: rare.map_or_else(Vec::new, |rare| rare.named_ports.clone()),
        }
    }
}

/// What an entry is sought by.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sought<'a> {
    Ip(Prefix, bool),
    Name(&'a str),
}

impl<'a> Sought<'a> {
    fn of(name: &'a str, ips: bool) -> Self {
        let exact = ips.then(|| ip::parse_name(name)).flatten();
        exact.map_or(Self::Name(name), |(prefix, masked)| Self::Ip(prefix, masked))
    }

    /// The other key that would mean the same address, if it is one.
    pub(super) fn alias(self) -> Option<Sought<'static>> {
        match self {
            Self::Ip(prefix, masked) if prefix.is_host() => Some(Sought::Ip(prefix, !masked)),
            Self::Ip(..) | Self::Name(_) => None,
        }
    }

    fn order(self, entry: &Entry) -> Ordering {
        match (&entry.what, self) {
            (What::Ip(ip), Self::Ip(prefix, masked)) => {
                ip.prefix.cmp(&prefix).then_with(|| ip.masked.cmp(&masked))
            }
            (What::Other(known, _), Self::Name(name)) => known.as_ref().cmp(name),
            (What::Ip(_), Self::Name(_)) => Ordering::Less,
            (What::Other(..), Self::Ip(..)) => Ordering::Greater,
        }
    }
}

impl Entry {
    /// The record.
    pub(super) fn record(&self) -> Cow<'_, Record> {
        match &self.what {
            What::Ip(ip) => Cow::Owned(Record::Ip(ip.entry())),
            What::Other(_, record) => Cow::Borrowed(record),
        }
    }

    /// Takes the record over if it is another. True if it was.
    pub(super) fn change(&mut self, record: &Record) -> bool {
        let same = match (&self.what, record) {
            (What::Ip(known), Record::Ip(entry)) => *known == Ip::new(entry),
            (What::Other(_, known), record) => known == record,
            (What::Ip(_), _) => false,
        };
        if !same {
            self.what = match (record, &self.what) {
                (Record::Ip(entry), _) => What::Ip(Ip::new(entry)),
                (record, What::Other(name, _)) => What::Other(name.clone(), record.clone()),
                (record, What::Ip(_)) => What::Other(record.key_name().into(), record.clone()),
            };
        }
        !same
    }

    fn sought(&self) -> Sought<'_> {
        match &self.what {
            What::Ip(ip) => Sought::Ip(ip.prefix, ip.masked),
            What::Other(name, _) => Sought::Name(name),
        }
    }

    fn name(&self) -> Cow<'_, str> {
        match &self.what {
            What::Ip(ip) => Cow::Owned(ip::name_of(ip.prefix, ip.masked)),
            What::Other(name, _) => Cow::Borrowed(name),
        }
    }
}

/// Entries by the names of their keys.
#[derive(Clone, Debug)]
pub(super) struct Entries {
    /// Whether the names are addresses.
    ips: bool,
    tree: Tree<Entry>,
}

impl Entries {
    pub(super) fn new(ips: bool) -> Self {
        Self { ips, tree: Tree::default() }
    }

    pub(super) const fn len(&self) -> usize {
        self.tree.len()
    }

    /// The place of a key.
    pub(super) fn sought<'a>(&self, name: &'a str) -> Sought<'a> {
        Sought::of(name, self.ips)
    }

    pub(super) fn get(&self, sought: Sought<'_>) -> Option<&Entry> {
        self.tree.get(|entry| sought.order(entry))
    }

    pub(super) fn get_mut(&mut self, sought: Sought<'_>) -> Option<&mut Entry> {
        self.tree.get_mut(|entry| sought.order(entry))
    }

    pub(super) fn insert(
        &mut self,
        (name, sought): (&str, Sought<'_>),
        record: &Record,
        seen: u32,
        bytes: u32,
    ) {
        let what = match (record, sought) {
            (Record::Ip(entry), Sought::Ip(..)) => What::Ip(Ip::new(entry)),
            _ => What::Other(name.into(), record.clone()),
        };
        self.tree.insert(Entry { what, seen, bytes }, |entry| sought.order(entry));
    }

    pub(super) fn remove(&mut self, sought: Sought<'_>) -> Option<Entry> {
        self.tree.remove(|entry| sought.order(entry))
    }

    /// Takes out what a list did not show.
    pub(super) fn take_unseen(&mut self, generation: u32) -> Vec<Entry> {
        let unseen: Vec<Entry> = self.tree.iter().filter(|entry| entry.seen != generation).cloned().collect();
        for entry in &unseen {
            let sought = entry.sought();
            self.tree.remove(|other| sought.order(other));
        }
        unseen
    }

    /// Takes everything out.
    pub(super) fn take_all(&mut self) -> Vec<Entry> {
        std::mem::take(&mut self.tree).iter().cloned().collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, Record>)> {
        self.tree.iter().map(|entry| (entry.name(), entry.record()))
    }
}
