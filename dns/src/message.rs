//! Packets: what a client asks, and what it gets. Everything that arrives is hostile; nothing here panics on it.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Record, RecordType};

/// Bytes of a header.
pub const HEADER_BYTES: usize = 12;
/// Largest answer over UDP that is sent, whatever the client says it takes: what passes everywhere (DNS flag day 2020).
pub const MAX_UDP_BYTES: u16 = 1232;
/// Largest answer over UDP to a client that says nothing.
const PLAIN_UDP_BYTES: u16 = 512;
/// Records beside the question that a query may carry: EDNS, a signature, and some room.
const MAX_ADDITIONALS: u16 = 4;

/// How a question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// In a datagram.
    Udp,
    /// In a stream.
    Tcp,
}

/// A question that can be answered.
#[derive(Clone, Debug)]
pub struct Request {
    id: u16,
    recursion_desired: bool,
    checking_disabled: bool,
    edns: Option<(u16, bool)>,
    /// What is asked.
    pub query: Query,
    /// Largest answer.
    pub limit: usize,
}

/// What came of a packet.
#[derive(Clone, Debug)]
pub enum Parsed {
    /// Not a question: nothing is sent.
    Ignore,
    /// A question that is refused with this packet and code.
    Reject(Vec<u8>, ResponseCode),
    /// A question.
    Request(Box<Request>),
}

/// What is answered.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// Whether it is of a zone of ours.
    pub authoritative: bool,
    /// Whether other names could be asked for.
    pub recursion: bool,
    /// Code.
    pub code: ResponseCode,
    /// Answers.
    pub answers: Vec<Record>,
    /// The zone's SOA, where there is no answer.
    pub authority: Option<Record>,
    /// What will be asked for next.
    pub additionals: Vec<Record>,
}

fn number(packet: &[u8], at: usize) -> u16 {
    let byte = |at| packet.get(at).copied().unwrap_or(0);
    u16::from_be_bytes([byte(at), byte(at.saturating_add(1))])
}

/// Reads a packet.
#[must_use]
pub fn parse(packet: &[u8], transport: Transport) -> Parsed {
    let flags = packet.get(2).copied().unwrap_or(0);
    if packet.len() < HEADER_BYTES || flags & 0x80 != 0 {
        return Parsed::Ignore;
    }
    let id = number(packet, 0);
    let op_code = OpCode::from_u8((flags >> 3) & 15);
    let reject = |code| {
        let mut message = Message::error_msg(id, op_code, code);
        message.metadata.recursion_desired = flags & 1 != 0;
        message.to_vec().map_or(Parsed::Ignore, |packet| Parsed::Reject(packet, code))
    };
    if op_code != OpCode::Query {
        return reject(ResponseCode::NotImp);
    }
    // Checked before anything is read, so that counts cannot make work.
    let counts = [4, 6, 8, 10].map(|at| number(packet, at));
    if !matches!(counts, [1, 0, 0, additionals] if additionals <= MAX_ADDITIONALS) {
        return reject(ResponseCode::FormErr);
    }
    let Ok(message) = Message::from_vec(packet) else { return reject(ResponseCode::FormErr) };
    let Some(query) = message.queries.first().cloned() else { return reject(ResponseCode::FormErr) };
    let edns = message.edns.as_ref().map(|edns| (edns.max_payload(), edns.flags().dnssec_ok));
    let limit = match transport {
        Transport::Udp => {
            edns.map_or(PLAIN_UDP_BYTES, |(bytes, _)| bytes.clamp(PLAIN_UDP_BYTES, MAX_UDP_BYTES))
        }
        Transport::Tcp => u16::MAX,
    };
    let request = Request {
        id,
        recursion_desired: message.metadata.recursion_desired,
        checking_disabled: message.metadata.checking_disabled,
        edns,
        query,
        limit: usize::from(limit),
    };
    let refused = match (message.edns.as_ref().map_or(0, Edns::version), request.query.query_class()) {
        (1.., _) => Some(ResponseCode::BADVERS),
        (_, DNSClass::IN) => None,
        _ => Some(ResponseCode::Refused),
    };
    // Whole zones are not handed out, and "everything of a name" is what only attackers ask for (RFC 8482).
    let refused = refused.or(match request.query.query_type() {
        RecordType::AXFR | RecordType::IXFR => Some(ResponseCode::Refused),
        RecordType::ANY => Some(ResponseCode::NotImp),
        _ => None,
    });
    match refused {
        Some(code) => Parsed::Reject(request.respond(Reply { code, ..Reply::default() }), code),
        None => Parsed::Request(Box::new(request)),
    }
}

impl Request {
    /// The packet of a reply. What does not fit into a datagram is left out and said so; over TCP as much as fits is sent.
    #[must_use]
    pub fn respond(&self, reply: Reply) -> Vec<u8> {
        let mut message = Message::new(self.id, MessageType::Response, OpCode::Query);
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.checking_disabled = self.checking_disabled;
        message.metadata.recursion_available = reply.recursion;
        message.metadata.authoritative = reply.authoritative;
        message.metadata.response_code = reply.code;
        message.queries = vec![self.query.clone()];
        message.answers = reply.answers;
        message.authorities = reply.authority.into_iter().collect();
        message.additionals = reply.additionals;
        if let Some((_, dnssec_ok)) = self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_UDP_BYTES).set_version(0).set_dnssec_ok(dnssec_ok);
            edns.set_rcode_high(reply.code.high());
            message.set_edns(edns);
        }
        let fits = |message: &Message| message.to_vec().ok().filter(|packet| packet.len() <= self.limit);
        if let Some(packet) = fits(&message) {
            return packet;
        }
        // What the client did not ask for goes first.
        message.additionals.clear();
        if let Some(packet) = fits(&message) {
            return packet;
        }
        if self.limit == usize::from(u16::MAX) {
            while message.answers.len() > 1 {
                message.answers.truncate(message.answers.len() / 2);
                if let Some(packet) = fits(&message) {
                    return packet;
                }
            }
        }
        fits(&message.truncate()).unwrap_or_default()
    }

    /// An answer of somebody else, as it is if the client takes it.
    #[must_use]
    pub fn pass(&self, packet: Vec<u8>) -> Vec<u8> {
        if packet.len() <= self.limit {
            return packet;
        }
        let mut message = Message::new(self.id, MessageType::Response, OpCode::Query);
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.recursion_available = true;
        message.metadata.truncation = true;
        message.queries = vec![self.query.clone()];
        message.to_vec().unwrap_or_default()
    }
}

/// The bytes of a packet's question, as far as they can be told; names in questions are not compressed.
#[must_use]
pub fn question(packet: &[u8]) -> Option<&[u8]> {
    let mut at = HEADER_BYTES;
    loop {
        let length = usize::from(*packet.get(at)?);
        at = at.checked_add(length)?.checked_add(1)?;
        match length {
            0 => return packet.get(HEADER_BYTES..at.checked_add(4)?),
            1..=63 => {}
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::{Name, RData};

    fn query(kind: RecordType, change: impl FnOnce(&mut Message)) -> Vec<u8> {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii("web.demo.svc.cluster.local.").unwrap(), kind));
        change(&mut message);
        message.to_vec().unwrap()
    }

    fn edns(bytes: u16, version: u8) -> impl FnOnce(&mut Message) {
        move |message| {
            let mut edns = Edns::new();
            edns.set_max_payload(bytes).set_version(version);
            message.set_edns(edns);
        }
    }

    fn code(packet: &[u8]) -> Option<ResponseCode> {
        match parse(packet, Transport::Udp) {
            Parsed::Reject(packet, code) => {
                let answer = Message::from_vec(&packet).unwrap();
                assert_eq!((answer.metadata.id, answer.metadata.message_type), (7, MessageType::Response));
                Some(code)
            }
            Parsed::Request(_) => None,
            Parsed::Ignore => Some(ResponseCode::Unknown(0)),
        }
    }

    #[test]
    fn what_is_no_question_is_refused_or_ignored() {
        let plain = query(RecordType::A, |_| {});
        assert_eq!(code(&plain), None);
        assert_eq!(code(&[0; 11]), Some(ResponseCode::Unknown(0)));
        let mut answer = plain.clone();
        answer[2] |= 0x80;
        assert_eq!(code(&answer), Some(ResponseCode::Unknown(0)), "an answer to an answer would never end");
        assert_eq!(code(plain.get(..20).unwrap()), Some(ResponseCode::FormErr));
        let mut two = plain.clone();
        two[5] = 2;
        assert_eq!(code(&two), Some(ResponseCode::FormErr));
        let mut notify = plain;
        notify[2] |= 4 << 3;
        assert_eq!(code(&notify), Some(ResponseCode::NotImp));
        assert_eq!(code(&query(RecordType::A, edns(1232, 1))), Some(ResponseCode::BADVERS));
        assert_eq!(code(&query(RecordType::AXFR, |_| {})), Some(ResponseCode::Refused));
        assert_eq!(code(&query(RecordType::ANY, |_| {})), Some(ResponseCode::NotImp));
        let chaos = query(RecordType::TXT, |m| {
            m.queries[0].set_query_class(DNSClass::CH);
        });
        assert_eq!(code(&chaos), Some(ResponseCode::Refused));
    }

    #[test]
    fn what_does_not_fit_is_cut_and_said_so() {
        let request = |packet: &[u8], transport| match parse(packet, transport) {
            Parsed::Request(request) => request,
            other => panic!("{other:?}"),
        };
        let name = Name::from_ascii("web.demo.svc.cluster.local.").unwrap();
        let record =
            |n: u32| Record::from_rdata(name.clone(), 5, RData::A(std::net::Ipv4Addr::from(n).into()));
        let reply =
            |n: u32| Reply { answers: (0..n).map(record).collect(), authoritative: true, ..Reply::default() };
        let plain = query(RecordType::A, |_| {});
        for (packet, transport, fits) in [
            (&plain, Transport::Udp, 512),
            (&query(RecordType::A, edns(4096, 0)), Transport::Udp, 1232),
            (&query(RecordType::A, edns(100, 0)), Transport::Udp, 512),
        ] {
            let request = request(packet, transport);
            assert_eq!(request.limit, fits);
            let small = Message::from_vec(&request.respond(reply(5))).unwrap();
            assert!(!small.metadata.truncation && small.metadata.authoritative && small.answers.len() == 5);
            let sent = request.respond(reply(500));
            let large = Message::from_vec(&sent).unwrap();
            assert!(sent.len() <= fits && large.metadata.truncation && large.answers.is_empty());
            assert_eq!(large.queries.len(), 1);
        }
        let stream = request(&plain, Transport::Tcp);
        // The library gives up shortening names after some hundreds.
        assert_eq!(Message::from_vec(&stream.respond(reply(1000))).unwrap().answers.len(), 1000);
        let sent = stream.respond(reply(9000));
        let most = Message::from_vec(&sent).unwrap();
        assert!(sent.len() <= 65535 && most.answers.len() > 1000, "{}", most.answers.len());
        let over = request(&plain, Transport::Udp).pass(vec![0; 600]);
        assert!(Message::from_vec(&over).unwrap().metadata.truncation);
    }

    #[test]
    fn a_question_is_found_in_its_packet() {
        let packet = query(RecordType::A, |_| {});
        assert_eq!(question(&packet).unwrap().len(), packet.len() - HEADER_BYTES);
        assert_eq!(question(&packet[..packet.len() - 1]), None);
        let mut compressed = packet;
        compressed[HEADER_BYTES] = 0xc0;
        assert_eq!(question(&compressed), None);
    }
}
