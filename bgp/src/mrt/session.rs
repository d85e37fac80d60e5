//! What happened on a session (RFC 6396 section 4.4, RFC 8050 section 3).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::record::{BGP4MP, BGP4MP_ET, Record};
use crate::fsm::State;
use crate::wire::cursor::Cursor;
use crate::wire::{AS_TRANS, EXTENDED_MESSAGE_MAX, Frame};

/// Subtypes without the bits that [`Form`] adds.
const STATE_CHANGE: u16 = 0;
const MESSAGE: u16 = 1;
const MESSAGE_AS4: u16 = 4;
const STATE_CHANGE_AS4: u16 = 5;
const MESSAGE_LOCAL: u16 = 6;
const MESSAGE_AS4_LOCAL: u16 = 7;
const MESSAGE_ADDPATH: u16 = 8;
const MESSAGE_AS4_ADDPATH: u16 = 9;
const MESSAGE_LOCAL_ADDPATH: u16 = 10;
const MESSAGE_AS4_LOCAL_ADDPATH: u16 = 11;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happened {
    /// A message passed.
    Message {
        /// By the speaker that wrote the file, not by its peer.
        sent: bool,
        /// Its paths have four octets for each AS.
        four_octet_as: bool,
        /// Its routes carry path identifiers (RFC 8050).
        add_path: bool,
        /// The message with its header.
        bytes: Bytes,
    },
    /// The state machine went from one state to another.
    State {
        /// Before.
        from: State,
        /// After.
        to: State,
    },
}

/// One entry of a message log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionEntry {
    /// Since 1970.
    pub at: Duration,
    /// The peer's AS, 0 while it is not known.
    pub peer_asn: u32,
    /// The writer's AS.
    pub local_asn: u32,
    /// The peer's address.
    pub peer_address: IpAddr,
    /// The writer's address; all zeros while it is not known.
    pub local_address: IpAddr,
    /// What happened.
    pub what: Happened,
}

const fn state_code(state: State) -> u16 {
    match state {
        State::Idle => 1,
        State::Connect => 2,
        State::Active => 3,
        State::OpenSent => 4,
        State::OpenConfirm => 5,
        State::Established => 6,
    }
}

const fn state_of(code: u16) -> Option<State> {
    Some(match code {
        1 => State::Idle,
        2 => State::Connect,
        3 => State::Active,
        4 => State::OpenSent,
        5 => State::OpenConfirm,
        6 => State::Established,
        _ => return None,
    })
}

/// The subtype of a message.
const fn subtype(sent: bool, four_octet_as: bool, add_path: bool) -> u16 {
    match (four_octet_as, sent, add_path) {
        (false, false, false) => MESSAGE,
        (true, false, false) => MESSAGE_AS4,
        (false, true, false) => MESSAGE_LOCAL,
        (true, true, false) => MESSAGE_AS4_LOCAL,
        (false, false, true) => MESSAGE_ADDPATH,
        (true, false, true) => MESSAGE_AS4_ADDPATH,
        (false, true, true) => MESSAGE_LOCAL_ADDPATH,
        (true, true, true) => MESSAGE_AS4_LOCAL_ADDPATH,
    }
}

/// Sent, four-octet, ADD-PATH of a subtype.
const fn form(subtype: u16) -> Option<(bool, bool, bool)> {
    Some(match subtype {
        MESSAGE => (false, false, false),
        MESSAGE_AS4 => (false, true, false),
        MESSAGE_LOCAL => (true, false, false),
        MESSAGE_AS4_LOCAL => (true, true, false),
        MESSAGE_ADDPATH => (false, false, true),
        MESSAGE_AS4_ADDPATH => (false, true, true),
        MESSAGE_LOCAL_ADDPATH => (true, false, true),
        MESSAGE_AS4_LOCAL_ADDPATH => (true, true, true),
        _ => return None,
    })
}

fn put_asn(asn: u32, four_octets: bool, out: &mut Vec<u8>) {
    if four_octets {
        out.extend(asn.to_be_bytes());
    } else {
        out.extend(u16::try_from(asn).unwrap_or(AS_TRANS).to_be_bytes());
    }
}

fn take_asn(cursor: &mut Cursor<'_>, four_octets: bool) -> Option<u32> {
    if four_octets { cursor.u32() } else { cursor.u16().map(u32::from) }
}

impl SessionEntry {
    /// The record that says it, time to the microsecond.
    pub fn record(&self) -> Record {
        let (subtype, four_octets) = match &self.what {
            Happened::Message { sent, four_octet_as, add_path, .. } => {
                (subtype(*sent, *four_octet_as, *add_path), *four_octet_as)
            }
            Happened::State { .. } => (STATE_CHANGE_AS4, true),
        };
        let mut body = Vec::with_capacity(64);
        put_asn(self.peer_asn, four_octets, &mut body);
        put_asn(self.local_asn, four_octets, &mut body);
        // Interface index: not known here, and not said.
        body.extend([0, 0]);
        match self.peer_address {
            IpAddr::V4(peer) => {
                let IpAddr::V4(local) = self.local_or(Ipv4Addr::UNSPECIFIED.into()) else {
                    return self.empty();
                };
                body.extend([0, 1]);
                body.extend(peer.octets());
                body.extend(local.octets());
            }
            IpAddr::V6(peer) => {
                let IpAddr::V6(local) = self.local_or(Ipv6Addr::UNSPECIFIED.into()) else {
                    return self.empty();
                };
                body.extend([0, 2]);
                body.extend(peer.octets());
                body.extend(local.octets());
            }
        }
        match &self.what {
            Happened::Message { bytes, .. } => body.extend(bytes),
            Happened::State { from, to } => {
                body.extend(state_code(*from).to_be_bytes());
                body.extend(state_code(*to).to_be_bytes());
            }
        }
        Record { at: self.at, kind: BGP4MP_ET, subtype, body }
    }

    /// Our address, if it is of the peer's family.
    fn local_or(&self, unknown: IpAddr) -> IpAddr {
        if self.local_address.is_ipv4() == self.peer_address.is_ipv4() { self.local_address } else { unknown }
    }

    /// Stands for what cannot be: addresses of two families are never joined above.
    const fn empty(&self) -> Record {
        Record { at: self.at, kind: BGP4MP_ET, subtype: STATE_CHANGE_AS4, body: Vec::new() }
    }

    /// What a record says, if it is one of a session and whole.
    pub fn of(record: &Record) -> Option<Self> {
        if !matches!(record.kind, BGP4MP | BGP4MP_ET) {
            return None;
        }
        let form = form(record.subtype);
        let four_octets = match record.subtype {
            STATE_CHANGE => false,
            STATE_CHANGE_AS4 => true,
            _ => form?.1,
        };
        let mut cursor = Cursor::new(&record.body);
        let peer_asn = take_asn(&mut cursor, four_octets)?;
        let local_asn = take_asn(&mut cursor, four_octets)?;
        cursor.u16()?;
        let (peer_address, local_address) = match cursor.u16()? {
            1 => (cursor.array::<4>()?.into(), cursor.array::<4>()?.into()),
            2 => (cursor.array::<16>()?.into(), cursor.array::<16>()?.into()),
            _ => return None,
        };
        let what = match form {
            Some((sent, four_octet_as, add_path)) => Happened::Message {
                sent,
                four_octet_as,
                add_path,
                bytes: Bytes::copy_from_slice(cursor.rest()),
            },
            None => Happened::State { from: state_of(cursor.u16()?)?, to: state_of(cursor.u16()?)? },
        };
        Some(Self { at: record.at, peer_asn, local_asn, peer_address, local_address, what })
    }

    /// The message the peer sent, ready for a state machine; none if it is no such entry, or its header is damaged.
    pub fn received(&self) -> Option<Frame> {
        match &self.what {
            Happened::Message { sent: false, bytes, .. } => {
                let mut buffer = BytesMut::from(&bytes[..]);
                let frame = Frame::next_within(&mut buffer, EXTENDED_MESSAGE_MAX).ok()??;
                buffer.is_empty().then_some(frame)
            }
            Happened::Message { sent: true, .. } | Happened::State { .. } => None,
        }
    }
}
