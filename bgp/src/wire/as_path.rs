//! AS_PATH: the autonomous systems a route came through (RFC 4271 section 4.3, four octets by RFC 6793).

use std::fmt;

use serde::{Serialize, Serializer};
use smallvec::{SmallVec, smallvec};

use super::cursor::{Cursor, len8};

/// Stands for an AS number that does not fit two octets (RFC 6793).
pub const AS_TRANS: u16 = 23456;
/// AS numbers one segment can hold.
const SEGMENT_MAX: usize = 255;

/// What a segment is (RFC 4271 section 4.3, RFC 5065 section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SegmentKind {
    /// Unordered; counts as one hop.
    Set,
    /// Ordered.
    Sequence,
    /// Member ASes of the local confederation, ordered; no hop.
    ConfedSequence,
    /// Member ASes of the local confederation, unordered; no hop.
    ConfedSet,
}

impl SegmentKind {
    const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Set,
            2 => Self::Sequence,
            3 => Self::ConfedSequence,
            4 => Self::ConfedSet,
            _ => return None,
        })
    }

    const fn code(self) -> u8 {
        match self {
            Self::Set => 1,
            Self::Sequence => 2,
            Self::ConfedSequence => 3,
            Self::ConfedSet => 4,
        }
    }

    /// Whether it belongs to the local confederation.
    pub const fn is_confederation(self) -> bool {
        matches!(self, Self::ConfedSequence | Self::ConfedSet)
    }
}

/// One segment of a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Segment {
    /// Ordered or not.
    pub kind: SegmentKind,
    /// AS numbers, nearest first. Few enough lie in the segment itself.
    pub asns: SmallVec<[u32; 4]>,
}

impl Segment {
    fn hops(&self) -> usize {
        match self.kind {
            SegmentKind::Set => 1,
            SegmentKind::Sequence => self.asns.len(),
            SegmentKind::ConfedSequence | SegmentKind::ConfedSet => 0,
        }
    }
}

/// A whole path, nearest AS first.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AsPath {
    /// The segments in order. Nearly every path has one.
    pub segments: SmallVec<[Segment; 1]>,
}

impl AsPath {
    /// A path of one ordered segment; empty if no AS is given.
    pub fn sequence(asns: &[u32]) -> Self {
        if asns.is_empty() {
            return Self::default();
        }
        Self { segments: smallvec![Segment { kind: SegmentKind::Sequence, asns: asns.into() }] }
    }

    /// Length for the decision process: a set counts as one (RFC 4271 section 9.1.2.2 a), a confederation's segments as none
    /// (RFC 5065 section 5.3).
    pub fn hops(&self) -> usize {
        self.segments.iter().map(Segment::hops).sum()
    }

    /// Whether there are segments of a confederation, which only its members may send (RFC 5065 section 5).
    pub fn has_confederation(&self) -> bool {
        self.segments.iter().any(|segment| segment.kind.is_confederation())
    }

    /// The path without the segments of a confederation, as it leaves one (RFC 5065 section 4.1).
    pub fn without_confederation(mut self) -> Self {
        self.segments.retain(|segment| !segment.kind.is_confederation());
        self
    }

    /// Whether the path goes through an AS.
    pub fn contains(&self, asn: u32) -> bool {
        self.segments.iter().any(|segment| segment.asns.contains(&asn))
    }

    /// The AS the route was received from, if the path starts with a sequence (of whichever kind).
    pub fn first(&self) -> Option<u32> {
        let segment = self.segments.first()?;
        matches!(segment.kind, SegmentKind::Sequence | SegmentKind::ConfedSequence)
            .then(|| segment.asns.first().copied())
            .flatten()
    }

    /// The AS that originated the route: the last of the path, if it ends with a sequence; `own` if the path is empty or has only segments of the
    /// confederation (RFC 6811 section 2).
    pub fn origin(&self, own: u32) -> Option<u32> {
        match self.segments.iter().rev().find(|segment| !segment.kind.is_confederation()) {
            None => Some(own),
            Some(segment) if segment.kind == SegmentKind::Sequence => segment.asns.last().copied(),
            Some(_) => None,
        }
    }

    /// Puts one more AS in front (RFC 4271 section 5.1.2).
    pub fn prepend(&mut self, asn: u32) {
        match self.segments.first_mut() {
            Some(first) if first.kind == SegmentKind::Sequence && first.asns.len() < SEGMENT_MAX => {
                first.asns.insert(0, asn);
            }
            _ => self.segments.insert(0, Segment { kind: SegmentKind::Sequence, asns: smallvec![asn] }),
        }
    }

    /// Decodes; `None` if malformed: unknown segment, empty segment, bytes missing or left over (RFC 7606 section 7.2), or AS 0
    /// (RFC 7607 section 2).
    pub(crate) fn decode(bytes: &[u8], four_octet_as: bool) -> Option<Self> {
        let mut cursor = Cursor::new(bytes);
        let mut segments = SmallVec::new();
        while !cursor.is_empty() {
            let kind = SegmentKind::from_code(cursor.u8()?)?;
            let count = usize::from(cursor.u8()?);
            let width = if four_octet_as { 4 } else { 2 };
            let mut numbers = Cursor::new(cursor.take(count * width)?);
            let mut asns = SmallVec::with_capacity(count);
            while !numbers.is_empty() {
                asns.push(if four_octet_as { numbers.u32()? } else { u32::from(numbers.u16()?) });
            }
            if asns.is_empty() || asns.contains(&0) {
                return None;
            }
            segments.push(Segment { kind, asns });
        }
        Some(Self { segments })
    }

    pub(crate) fn encode(&self, four_octet_as: bool, out: &mut Vec<u8>) {
        for segment in &self.segments {
            for chunk in segment.asns.chunks(SEGMENT_MAX) {
                out.extend([segment.kind.code(), len8(chunk.len())]);
                for asn in chunk {
                    if four_octet_as {
                        out.extend(asn.to_be_bytes());
                    } else {
                        out.extend(u16::try_from(*asn).unwrap_or(AS_TRANS).to_be_bytes());
                    }
                }
            }
        }
    }

    /// Whether two-octet peers need AS4_PATH beside it.
    pub(crate) fn needs_four_octets(&self) -> bool {
        self.segments.iter().any(|segment| segment.asns.iter().any(|asn| *asn > u32::from(u16::MAX)))
    }

    /// The AS4_PATH to send beside it: without the confederation's segments (RFC 6793 section 4.2.2).
    pub(crate) fn encode_as4(&self, out: &mut Vec<u8>) {
        let outside = self.segments.iter().filter(|segment| !segment.kind.is_confederation()).cloned();
        Self { segments: outside.collect() }.encode(true, out);
    }

    /// Rebuilds the true path from what an old speaker passed on (RFC 6793 section 4.2.3): as many leading hops of the old path as
    /// AS4_PATH lacks, with the confederation's segments among or next to them, then AS4_PATH.
    pub(crate) fn merged(self, as4_path: &Self) -> Self {
        let (old, new) = (self.hops(), as4_path.hops());
        if old < new {
            return self;
        }
        let mut missing = old - new;
        let mut segments: SmallVec<[Segment; 1]> = SmallVec::new();
        for mut segment in self.segments {
            match segment.kind {
                SegmentKind::ConfedSequence | SegmentKind::ConfedSet => {}
                _ if missing == 0 => break,
                SegmentKind::Set => missing -= 1,
                SegmentKind::Sequence => {
                    segment.asns.truncate(missing);
                    missing -= segment.asns.len();
                }
            }
            segments.push(segment);
        }
        for segment in &as4_path.segments {
            match segments.last_mut() {
                Some(last) if last.kind == SegmentKind::Sequence && segment.kind == SegmentKind::Sequence => {
                    last.asns.extend_from_slice(&segment.asns);
                }
                _ => segments.push(segment.clone()),
            }
        }
        Self { segments }
    }
}

impl fmt::Display for AsPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, segment) in self.segments.iter().enumerate() {
            let asns: Vec<String> = segment.asns.iter().map(ToString::to_string).collect();
            let gap = if index == 0 { "" } else { " " };
            match segment.kind {
                SegmentKind::Set => write!(f, "{gap}{{{}}}", asns.join(" "))?,
                SegmentKind::Sequence => write!(f, "{gap}{}", asns.join(" "))?,
                SegmentKind::ConfedSequence => write!(f, "{gap}({})", asns.join(" "))?,
                SegmentKind::ConfedSet => write!(f, "{gap}[{}]", asns.join(" "))?,
            }
        }
        Ok(())
    }
}

impl Serialize for AsPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_is_segment_type_two() {
        let mut out = Vec::new();
        AsPath::sequence(&[65001, 70000]).encode(true, &mut out);
        assert_eq!(out, [2, 2, 0, 0, 0xfd, 0xe9, 0, 1, 0x11, 0x70]);
        assert_eq!(AsPath::decode(&out, true), Some(AsPath::sequence(&[65001, 70000])));
    }

    #[test]
    fn malformed_paths_are_refused() {
        for bytes in [
            &[2u8, 0][..],
            &[9, 1, 0, 1],
            &[2, 2, 0, 1],
            &[2, 1, 0, 1, 7],
            &[5, 1, 0, 1],
            &[2, 1, 0, 0],
            &[2],
        ] {
            assert_eq!(AsPath::decode(bytes, false), None, "{bytes:?}");
        }
    }

    #[test]
    fn as4_path_replaces_as_trans() {
        let mut wire = Vec::new();
        AsPath::sequence(&[100, 70000, 70001]).encode(false, &mut wire);
        let old = AsPath::decode(&wire, false).unwrap();
        assert_eq!(old.to_string(), "100 23456 23456");
        assert_eq!(old.clone().merged(&AsPath::sequence(&[70000, 70001])).to_string(), "100 70000 70001");
        assert_eq!(old.clone().merged(&AsPath::sequence(&[1, 2, 3, 4])), old);
    }

    #[test]
    fn a_set_counts_once() {
        let mut path = AsPath::sequence(&[1, 2]);
        path.segments.push(Segment { kind: SegmentKind::Set, asns: smallvec![3, 4, 5] });
        assert_eq!(path.hops(), 3);
        assert_eq!(path.first(), Some(1));
        path.prepend(9);
        assert_eq!(path.to_string(), "9 1 2 {3 4 5}");
    }

    #[test]
    fn confederation_segments_are_no_hops_and_stay_at_home() {
        let wire = [3u8, 2, 0, 1, 0, 2, 4, 1, 0, 3, 2, 1, 0, 4];
        let path = AsPath::decode(&wire, false).unwrap();
        assert_eq!((path.to_string().as_str(), path.hops(), path.first()), ("(1 2) [3] 4", 1, Some(1)));
        let mut again = Vec::new();
        path.encode(false, &mut again);
        assert_eq!(again, wire);
        let mut as4 = Vec::new();
        path.encode_as4(&mut as4);
        assert_eq!(as4, [2, 1, 0, 0, 0, 4]);
        assert!(path.has_confederation() && !path.without_confederation().has_confederation());
    }

    #[test]
    fn merging_keeps_leading_confederation_segments() {
        let old = AsPath::decode(&[3, 1, 0, 9, 2, 2, 0, 100, 0x5b, 0xa0], false).unwrap();
        assert_eq!(old.clone().merged(&AsPath::sequence(&[70000])).to_string(), "(9) 100 70000");
        // Nothing is missing, but the segment still leads.
        assert_eq!(old.merged(&AsPath::sequence(&[100, 70000])).to_string(), "(9) 100 70000");
    }
}
