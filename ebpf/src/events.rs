//! The ring of events, as plain flow events.

use crate::abi;
use crate::error::DatapathError;
use crate::sys;
use aya::maps::{MapData, RingBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tombolo_base::flow::{Capture, FlowEnd, FlowEvent, Verdict};

/// What the record was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A packet was dropped.
    Drop,
    /// A packet was seen: the first of a flow, a change of TCP flags, or the interval's report.
    Trace,
    /// A policy decided on a new flow.
    Verdict,
}

/// A record of the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatapathEvent {
    /// What it was made for.
    pub kind: EventKind,
    /// The cookie of the policy entry that decided ([`EventKind::Verdict`]), else 0.
    pub cookie: u32,
    /// The number of the reverse translation; 0: not translated.
    pub rev_nat: u32,
    /// The event.
    pub flow: FlowEvent,
}

/// The ring's reader. Needs a tokio runtime.
pub struct EventReader {
    ring: AsyncFd<RingBuf<MapData>>,
    clock_offset_ns: u64,
    malformed: u64,
}

impl EventReader {
    pub(crate) fn new(ring: RingBuf<MapData>) -> Result<Self, DatapathError> {
        // Registering panics outside a runtime; say it instead.
        tokio::runtime::Handle::try_current()
            .map_err(|e| DatapathError::Events(std::io::Error::other(e.to_string())))?;
        #[allow(
            deprecated,
            reason = "the successor is unsafe; RingBuf owns its descriptor, which is what it asks for"
        )]
        let ring = AsyncFd::with_interest(ring, Interest::READABLE).map_err(DatapathError::Events)?;
        let clock_offset_ns = sys::realtime_ns().saturating_sub(sys::monotonic_ns());
        Ok(Self { ring, clock_offset_ns, malformed: 0 })
    }

    /// The next event. Cancel safe: an event is taken from the ring only when it is returned.
    ///
    /// # Errors
    /// The ring cannot be polled.
    pub async fn next(&mut self) -> Result<DatapathEvent, DatapathError> {
        loop {
            if let Some(event) = self.try_next() {
                return Ok(event);
            }
            let mut ready = self.ring.readable_mut().await.map_err(DatapathError::Events)?;
            ready.clear_ready();
            // Records that arrived before the readiness was cleared raise no new edge.
            drop(ready);
            if let Some(event) = self.try_next() {
                return Ok(event);
            }
        }
    }

    /// The next event if one is there.
    pub fn try_next(&mut self) -> Option<DatapathEvent> {
        loop {
            let item = self.ring.get_mut().next()?;
            match decode(&item, self.clock_offset_ns) {
                Some(event) => return Some(event),
                None => self.malformed += 1,
            }
        }
    }

    /// Records that could not be read (of another version).
    #[must_use]
    pub const fn malformed(&self) -> u64 {
        self.malformed
    }
}

/// The observation points at which packets out of the tunnel, and those of a device without link layer, begin.
const FROM_OVERLAY: u8 = 9;
const FROM_CRYPTO: u8 = 12;

/// The packet behind the event, if it was captured.
fn captured(bytes: &[u8]) -> Option<Capture> {
    let raw: abi::Capture = abi::read(bytes)?;
    let start = size_of::<abi::Capture>();
    let data = bytes.get(start..start.checked_add(raw.length.into())?).filter(|data| !data.is_empty())?;
    let mut frame = Vec::with_capacity(data.len() + 14);
    if raw.event.hook == FROM_CRYPTO {
        frame.extend([0; 12]);
        frame.extend(if data.first()? >> 4 == 6 { [0x86, 0xdd] } else { [0x08, 0x00] });
    }
    frame.extend(data);
    // Where nothing was cut off, the header does not know of padding.
    let header = u32::try_from(frame.len().saturating_sub(data.len())).ok()?;
    let whole = raw.event.length.saturating_add(14).max(header + u32::from(raw.length));
    Some(Capture {
        point: raw.event.hook,
        ifindex: raw.event.ifindex,
        mark: raw.mark,
        segment: raw.gso_size,
        length: whole,
        tunnel: (raw.event.hook == FROM_OVERLAY).then(|| (raw.tunnel_src.ip(), raw.tunnel_id)),
        frame,
    })
}

pub(crate) fn decode(bytes: &[u8], clock_offset_ns: u64) -> Option<DatapathEvent> {
    let raw: abi::Event = abi::read(bytes).filter(|raw: &abi::Event| raw.version == abi::EVENT_VERSION)?;
    let has = |flag: u16| raw.flags & flag != 0;
    let end = |addr: abi::Addr, port: u16, identity, endpoint_id| FlowEnd {
        ip: addr.ip(),
        port: u16::from_be(port),
        identity,
        endpoint_id,
    };
    let kind = match raw.kind {
        abi::EV_DROP => EventKind::Drop,
        abi::EV_VERDICT => EventKind::Verdict,
        _ => EventKind::Trace,
    };
    let flow = FlowEvent {
        time_ns: raw.time_ns.saturating_add(clock_offset_ns),
        verdict: match raw.reason {
            0 => Verdict::Forwarded,
            _ if has(abi::EVF_AUDITED) => Verdict::Audit,
            _ => Verdict::Dropped,
        },
        drop_reason: raw.reason,
        site: raw.site,
        trace_point: raw.point,
        source: end(raw.src, raw.sport, raw.src_identity, raw.src_endpoint),
        destination: end(raw.dst, raw.dport, raw.dst_identity, raw.dst_endpoint),
        protocol: raw.proto,
        tcp_flags: raw.tcp_flags,
        icmp: (raw.icmp_type, raw.icmp_code),
        reply: has(abi::EVF_REPLY),
        new: has(abi::EVF_NEW),
        encrypted: has(abi::EVF_ENCRYPTED),
        ifindex: raw.ifindex,
        length: raw.length,
        original_destination: has(abi::EVF_TRANSLATED)
            .then(|| (raw.orig_dst.ip(), u16::from_be(raw.orig_dport))),
        egress: has(abi::EVF_EGRESS),
        matched: raw.matched,
        error: raw.error,
        capture: captured(bytes).map(Box::new),
    };
    Some(DatapathEvent { kind, cookie: raw.cookie, rev_nat: raw.rev_nat, flow })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_foreign_records_are_refused() {
        assert_eq!(decode(&[0; 111], 0), None);
        assert_eq!(decode(&[0; 112], 0), None, "version 0");
        let mut record = [0_u8; 112];
        record[0] = 2;
        record[4] = 133;
        let event = decode(&record, 5).unwrap();
        assert_eq!(event.flow.verdict, Verdict::Dropped);
        assert_eq!(event.flow.time_ns, 5);
        assert_eq!(event.flow.capture, None);
    }

    #[test]
    fn a_captured_packet_gets_the_header_that_its_device_has_not() {
        let mut record = vec![0_u8; 144];
        record[0] = 2;
        record.extend([0x60, 1, 2, 3]);
        let capture = |record: &[u8]| decode(record, 0).unwrap().flow.capture;
        assert_eq!(capture(&record), None, "of no bytes");
        record[140] = 4;
        assert_eq!(capture(&record).unwrap().frame, [0x60, 1, 2, 3]);
        record[99] = FROM_CRYPTO;
        assert_eq!(capture(&record).unwrap().frame[12..], [0x86, 0xdd, 0x60, 1, 2, 3]);
        record[140] = 5;
        assert_eq!(capture(&record), None, "cut short");
    }
}
