//! The entries of one kind, small: a million addresses are ordinary.
//!
//! Addresses are kept field by field, without the names of their keys, and with texts that the tables share. Everything
//! else is kept as the record that the tables share.

use crate::wire::ip::{self, IpEntry, NamedPort};
use crate::wire::{Kind, Node, Record};
use std::borrow::Cow;
use std::sync::Arc;
use tombolo_base::ids::IdentityId;
use tombolo_base::labels::Labels;
use tombolo_base::prefix::Prefix;
use tombolo_base::residence::Residence;
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
    Node(Arc<Node>),
    Identity(IdentityId, Labels),
    /// Boxed: most entries are addresses, and other records are larger.
    Other(Box<(Arc<str>, Record)>),
}

impl What {
    fn new(name: &str, record: &Record) -> Self {
        match record {
            Record::Ip(entry) => Self::Ip(Ip::new(entry)),
            Record::Node(node) => Self::Node(node.clone()),
            Record::Identity(id, labels) => Self::Identity(*id, labels.clone()),
            // A raw record has the name already.
            Record::Raw(raw) => Self::Other(Box::new((raw.name.clone(), record.clone()))),
            _ => Self::Other(Box::new((name.into(), record.clone()))),
        }
    }

    fn is(&self, record: &Record) -> bool {
        match (self, record) {
            (Self::Ip(known), Record::Ip(entry)) => *known == Ip::new(entry),
            (Self::Node(known), Record::Node(node)) => known == node,
            (Self::Identity(id, labels), Record::Identity(other, others)) => id == other && labels == others,
            (Self::Other(known), record) => known.1 == *record,
            _ => false,
        }
    }

    fn sought(&self) -> Sought<'_> {
        match self {
            Self::Ip(ip) => Sought::Ip(ip.prefix, ip.masked),
            Self::Node(node) => Sought::Name(&node.name),
            Self::Identity(id, _) => Sought::Number(*id),
            Self::Other(known) => Sought::Name(&known.0),
        }
    }
}

/// An [`IpEntry`], with what few have set apart.
#[derive(Clone, Debug, PartialEq)]
struct Ip {
    prefix: Prefix,
    masked: bool,
    identity: IdentityId,
    /// One copy, for the row as well.
    residence: Arc<Residence>,
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
            identity: entry.identity,
            residence: entry.residence.clone(),
            pod: entry.pod.clone(),
            rare: is_rare.then(|| Box::new(rare())),
        }
    }

    fn entry(&self) -> IpEntry {
        let rare = self.rare.as_deref();
        IpEntry {
            prefix: self.prefix,
            masked: self.masked,
            identity: self.identity,
            residence: self.residence.clone(),
            pod: self.pod.clone(),
            service_account: rare.map_or_else(|| shared(""), |rare| rare.service_account.clone()),
            named_ports: rare.map_or_else(Vec::new, |rare| rare.named_ports.clone()),
        }
    }
}

/// What an entry is sought by: the name of its key, or what that means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Sought<'a> {
    Ip(Prefix, bool),
    Number(IdentityId),
    Name(&'a str),
}

impl<'a> Sought<'a> {
    /// The place of a record that was accepted under a name: the name is the one that the record would be given.
    pub(super) const fn record(name: &'a str, record: &Record) -> Self {
        match record {
            Record::Ip(entry) => Self::Ip(entry.prefix, entry.masked),
            Record::Identity(id, _) => Self::Number(*id),
            _ => Self::Name(name),
        }
    }

    /// The place that records of a kind have under that name.
    fn named(kind: Option<Kind>, name: &'a str) -> Self {
        let exact = match kind {
            Some(Kind::Ips) => ip::parse_name(name).map(|(prefix, masked)| Self::Ip(prefix, masked)),
            Some(Kind::Identities) => name.parse().ok().map(|id| Self::Number(IdentityId(id))),
            _ => None,
        };
        exact.unwrap_or(Self::Name(name))
    }
}

impl Entry {
    /// The record.
    pub(super) fn record(&self) -> Cow<'_, Record> {
        match &self.what {
            What::Ip(ip) => Cow::Owned(Record::Ip(ip.entry())),
            What::Node(node) => Cow::Owned(Record::Node(node.clone())),
            What::Identity(id, labels) => Cow::Owned(Record::Identity(*id, labels.clone())),
            What::Other(known) => Cow::Borrowed(&known.1),
        }
    }

    /// Takes the record of the same key over if it is another. True if it was.
    pub(super) fn change(&mut self, name: &str, record: &Record) -> bool {
        let changed = !self.what.is(record);
        if changed {
            self.what = What::new(name, record);
        }
        changed
    }

    fn name(&self) -> Cow<'_, str> {
        match self.what.sought() {
            Sought::Ip(prefix, masked) => Cow::Owned(ip::name_of(prefix, masked)),
            Sought::Number(id) => Cow::Owned(id.0.to_string()),
            Sought::Name(name) => Cow::Borrowed(name),
        }
    }

    /// Whether it is a single address with a mask.
    fn is_masked_host(&self) -> bool {
        matches!(&self.what, What::Ip(ip) if ip.masked && ip.prefix.is_host())
    }
}

/// Entries by the names of their keys.
#[derive(Clone, Debug)]
pub(super) struct Entries {
    /// Whose names mean something; none of raw entries do.
    kind: Option<Kind>,
    tree: Tree<Entry>,
    /// Single addresses with a mask: hardly any producer writes them.
    masked_hosts: usize,
    /// Entries that came since the tree was packed.
    loose: usize,
}

impl Entries {
    pub(super) fn new(kind: Option<Kind>) -> Self {
        Self { kind, tree: Tree::default(), masked_hosts: 0, loose: 0 }
    }

    pub(super) const fn len(&self) -> usize {
        self.tree.len()
    }

    /// The place of a key.
    pub(super) fn sought<'a>(&self, name: &'a str) -> Sought<'a> {
        Sought::named(self.kind, name)
    }

    /// The other key that would mean the same address, if it may be there.
    pub(super) fn alias(&self, sought: Sought<'_>) -> Option<Sought<'static>> {
        match sought {
            Sought::Ip(prefix, masked) if prefix.is_host() && (masked || self.masked_hosts > 0) => {
                Some(Sought::Ip(prefix, !masked))
            }
            _ => None,
        }
    }

    pub(super) fn get(&self, sought: Sought<'_>) -> Option<&Entry> {
        self.tree.get(|entry| entry.what.sought().cmp(&sought))
    }

    pub(super) fn get_mut(&mut self, sought: Sought<'_>) -> Option<&mut Entry> {
        self.tree.get_mut(|entry| entry.what.sought().cmp(&sought))
    }

    /// Puts an entry in that is not there.
    pub(super) fn insert(
        &mut self,
        (name, sought): (&str, Sought<'_>),
        record: &Record,
        seen: u32,
        bytes: u32,
    ) {
        let entry = Entry { what: What::new(name, record), seen, bytes };
        self.masked_hosts += usize::from(entry.is_masked_host());
        self.loose += 1;
        self.tree.insert(entry, |entry| entry.what.sought().cmp(&sought));
    }

    pub(super) fn remove(&mut self, sought: Sought<'_>) -> Option<Entry> {
        let entry = self.tree.remove(|entry| entry.what.sought().cmp(&sought))?;
        self.masked_hosts -= usize::from(entry.is_masked_host());
        Some(entry)
    }

    /// A list is over, in the order of names and not of what they mean: if it brought much, less room is enough.
    pub(super) fn pack(&mut self) {
        if self.loose > self.tree.len() / 2 {
            self.tree.pack();
            self.loose = 0;
        }
    }

    /// Takes out what a list did not show.
    pub(super) fn take_unseen(&mut self, generation: u32) -> Vec<Entry> {
        let unseen: Vec<Entry> = self.tree.iter().filter(|entry| entry.seen != generation).cloned().collect();
        for entry in &unseen {
            self.remove(entry.what.sought());
        }
        unseen
    }

    /// Takes everything out.
    pub(super) fn take_all(&mut self) -> Vec<Entry> {
        self.masked_hosts = 0;
        std::mem::take(&mut self.tree).iter().cloned().collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, Record>)> {
        self.tree.iter().map(|entry| (entry.name(), entry.record()))
    }
}
