//! Next-hop objects and groups of them (RTM_NEWNEXTHOP, Linux 5.3): a route names a group by its number, so that one message changes the ways of
//! every route through it.
//!
//! The messages are written here; the crate that knows the others' layouts does not know these.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::StreamExt;
use nix::libc;
use rtnetlink::packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use rtnetlink::proto::ConnectionHandle;
use rtnetlink::sys::{SocketAddr, protocols::NETLINK_ROUTE};

use crate::batch::Write;
use crate::connection::Refusal;
use crate::{Error, Netlink};

const NEW_NEXT_HOP: u16 = 104;
const DEL_NEXT_HOP: u16 = 105;
const GET_NEXT_HOP: u16 = 106;
const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
/// Bytes of `struct nhmsg`.
const HEADER_LEN: usize = 8;
/// RTNH_F_ONLINK.
const ON_LINK: u32 = 4;
/// Masks NLA_F_NESTED and NLA_F_NET_BYTEORDER out of an attribute's type.
const TYPE_MASK: u16 = 0x3fff;

/// One way out, or several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NextHopKind {
    /// A neighbour on a link, taken to be there whether or not the interface's prefixes say so.
    Single {
        /// The neighbour.
        via: IpAddr,
        /// Index of the interface.
        link: u32,
    },
    /// Single objects by number, with their share, 1 to 256.
    Group(BTreeMap<u32, u16>),
}

/// A next-hop object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHopObject {
    /// Its number, not 0; one space for singles and groups.
    pub id: u32,
    /// Who owns it (RTPROT_*).
    pub protocol: u8,
    /// What it is.
    pub kind: NextHopKind,
}

/// A message of the next-hop family, as bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Raw {
    kind: u16,
    body: Vec<u8>,
}

impl NetlinkSerializable for Raw {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.body.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.iter_mut().zip(&self.body).for_each(|(to, from)| *to = *from);
    }
}

impl NetlinkDeserializable for Raw {
    type Error = io::Error;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, io::Error> {
        Ok(Self { kind: header.message_type, body: payload.to_vec() })
    }
}

/// A handle on the next-hop objects of one namespace: a socket of its own. Clones share it.
#[derive(Clone, Debug)]
pub struct NextHopObjects {
    handle: ConnectionHandle<Raw>,
    netlink: Netlink,
}

impl Netlink {
    /// Opens a socket for next-hop objects in this handle's namespace.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the socket cannot be opened, [`Error::Namespace`] when the namespace is gone.
    pub fn next_hop_objects(&self) -> Result<NextHopObjects, Error> {
        let handle = self.open_here("open", "a netlink socket for next hops", || {
            let (mut connection, handle, unsolicited) =
                rtnetlink::proto::new_connection::<Raw>(NETLINK_ROUTE)?;
            connection.set_forward_ack(true);
            connection.set_forward_done(true);
            drop(unsolicited);
            tokio::spawn(connection);
            Ok(handle)
        })?;
        Ok(NextHopObjects { handle, netlink: self.clone() })
    }
}

impl NextHopObjects {
    /// Makes the object or replaces the one of its number, in one message whatever refers to it. A group stays a group and a single one a
    /// single one.
    ///
    /// # Errors
    /// [`Error::Kernel`], for example when the link is down or a member does not exist.
    pub async fn replace(&self, object: &NextHopObject) -> Result<(), Error> {
        self.netlink.write(Write::ReplaceNextHop(object.clone())).await.map(drop)
    }

    /// Deletes an object; the kernel deletes what refers to it. True if it was there.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses.
    pub async fn delete(&self, id: u32) -> Result<bool, Error> {
        self.netlink.write(Write::DeleteNextHop(id)).await
    }

    /// The objects of one owner, by number.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses to tell.
    pub async fn list(&self, protocol: u8) -> Result<BTreeMap<u32, NextHopObject>, Error> {
        let found = self.dump().await.map_err(|refusal| refusal.on("list", "the next hops"))?;
        let objects = found.iter().filter_map(|raw| decode(&raw.body));
        Ok(objects.filter(|object| object.protocol == protocol).map(|object| (object.id, object)).collect())
    }

    async fn dump(&self) -> Result<Vec<Raw>, Refusal> {
        let mut request = NetlinkMessage::from(Raw { kind: GET_NEXT_HOP, body: header(0, 0, 0) });
        request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let kernel = SocketAddr::new(0, 0);
        let mut answers = self.handle.request(request, kernel).map_err(|_| Refusal::Closed)?;
        let mut found = Vec::new();
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => found.push(message),
                NetlinkPayload::Error(error) => return Err(Refusal::Errno(error.to_io())),
                NetlinkPayload::Done(_) => return Ok(found),
                _ => {}
            }
        }
        Err(Refusal::Closed)
    }
}

impl From<Raw> for NetlinkPayload<Raw> {
    fn from(raw: Raw) -> Self {
        Self::InnerMessage(raw)
    }
}

/// What asks for an object, or for it to be replaced.
pub(crate) fn request(object: &NextHopObject) -> Raw {
    Raw { kind: NEW_NEXT_HOP, body: encode(object) }
}

/// What asks for an object to be deleted.
pub(crate) fn deletion(id: u32) -> Raw {
    let mut body = header(0, 0, 0);
    attribute(NHA_ID, &id.to_ne_bytes(), &mut body);
    Raw { kind: DEL_NEXT_HOP, body }
}

fn header(family: u8, protocol: u8, flags: u32) -> Vec<u8> {
    let mut bytes = vec![family, 0, protocol, 0];
    bytes.extend(flags.to_ne_bytes());
    bytes
}

fn attribute(kind: u16, value: &[u8], out: &mut Vec<u8>) {
    let len = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    out.extend(len.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn encode(object: &NextHopObject) -> Vec<u8> {
    let family = |address: &IpAddr| if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    match &object.kind {
        NextHopKind::Single { via, link } => {
            let family = u8::try_from(family(via)).unwrap_or(0);
            let mut body = header(family, object.protocol, ON_LINK);
            attribute(NHA_ID, &object.id.to_ne_bytes(), &mut body);
            attribute(NHA_OIF, &link.to_ne_bytes(), &mut body);
            match via {
                IpAddr::V4(via) => attribute(NHA_GATEWAY, &via.octets(), &mut body),
                IpAddr::V6(via) => attribute(NHA_GATEWAY, &via.octets(), &mut body),
            }
            body
        }
        NextHopKind::Group(members) => {
            let mut body = header(0, object.protocol, 0);
            attribute(NHA_ID, &object.id.to_ne_bytes(), &mut body);
            let mut group = Vec::new();
            for (id, weight) in members {
                group.extend(id.to_ne_bytes());
                group.extend([u8::try_from(weight.saturating_sub(1)).unwrap_or(u8::MAX), 0, 0, 0]);
            }
            attribute(NHA_GROUP, &group, &mut body);
            body
        }
    }
}

/// Reads what the kernel says; none for kinds that this crate does not make (blackhole, encapsulation without a gateway).
fn decode(body: &[u8]) -> Option<NextHopObject> {
    let protocol = *body.get(2)?;
    let mut rest = body.get(HEADER_LEN..)?;
    let (mut id, mut link, mut via, mut group) = (None, None, None, None);
    while let [low, high, kind_low, kind_high, ..] = *rest {
        let len = usize::from(u16::from_ne_bytes([low, high]));
        let value = rest.get(4..len)?;
        match u16::from_ne_bytes([kind_low, kind_high]) & TYPE_MASK {
            NHA_ID => id = Some(u32::from_ne_bytes(value.try_into().ok()?)),
            NHA_OIF => link = Some(u32::from_ne_bytes(value.try_into().ok()?)),
            NHA_GATEWAY => via = address(value),
            NHA_GROUP => group = Some(members(value)),
            _ => {}
        }
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    let kind = match (group, via, link) {
        (Some(members), ..) => NextHopKind::Group(members),
        (None, Some(via), Some(link)) => NextHopKind::Single { via, link },
        _ => return None,
    };
    Some(NextHopObject { id: id?, protocol, kind })
}

fn address(value: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(value).map(|bytes| Ipv4Addr::from(bytes).into());
    v4.or_else(|_| <[u8; 16]>::try_from(value).map(|bytes| Ipv6Addr::from(bytes).into())).ok()
}

fn members(value: &[u8]) -> BTreeMap<u32, u16> {
    let entry = |entry: &[u8]| match *entry {
        [a, b, c, d, weight, ..] => Some((u32::from_ne_bytes([a, b, c, d]), u16::from(weight) + 1)),
        _ => None,
    };
    value.chunks_exact(8).filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back_and_damage_is_no_object() {
        let single = |via: &str| NextHopKind::Single { via: via.parse().unwrap(), link: 7 };
        let group = NextHopKind::Group([(5, 1), (6, 256)].into());
        for kind in [single("192.0.2.1"), single("2001:db8::1"), group] {
            let object = NextHopObject { id: 9, protocol: 0x54, kind };
            let body = encode(&object);
            assert_eq!(decode(&body), Some(object));
            for end in 0..body.len() {
                let _cut = decode(&body[..end]);
            }
        }
        assert_eq!(decode(&[0; 12]), None, "an attribute of no length");
    }
}
