//! Seeded damage to messages, and what the process weighs.

/// A seeded generator (xorshift).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % u64::try_from(bound.max(1)).unwrap()).try_into().unwrap()
    }

    pub fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[3]
    }
}

/// Damages a message in one to five places, with pieces of another.
pub fn mutate(message: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    for _ in 0..=random.below(4) {
        let at = random.below(message.len());
        match random.below(8) {
            0 | 1 => {
                if let Some(byte) = message.get_mut(at) {
                    *byte = random.byte();
                }
            }
            2 => {
                if let Some(byte) = message.get_mut(at) {
                    *byte = [0, 1, 0x7f, 0x80, 0xff][random.below(5)];
                }
            }
            3 => {
                if let Some(byte) = message.get_mut(at) {
                    *byte = byte.wrapping_add([1, 0xff, 2, 0xfe][random.below(4)]);
                }
            }
            4 => message.insert(at, random.byte()),
            5 if message.len() > 20 => {
                message.remove(at);
            }
            // A piece of another message, where lengths and contents disagree.
            6 => {
                let start = random.below(other.len());
                let piece: Vec<u8> = other.iter().skip(start).take(1 + random.below(24)).copied().collect();
                message.splice(at..at, piece);
            }
            _ => message.truncate(at.max(19)),
        }
    }
    // Half of the time the header and the length of an UPDATE's attributes are made right again, so that the damage reaches the decoders.
    if random.below(2) == 0 && message.len() >= 19 {
        message[..16].fill(0xff);
        let len = u16::try_from(message.len()).unwrap();
        message[16..18].copy_from_slice(&len.to_be_bytes());
        if random.below(2) == 0 && message[18] == 2 && message.len() >= 23 && message[19..21] == [0, 0] {
            message[21..23].copy_from_slice(&(len - 23).to_be_bytes());
        }
    }
}

/// Memory of this process, in KiB.
pub fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A number from the environment.
pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Damages one or two attributes of a whole UPDATE and leaves its framing right: what is wrong is for RFC 7606. False if it is something else.
pub fn mutate_attributes(message: &mut Vec<u8>, random: &mut Random) -> bool {
    let Some(Parts { head, mut attributes, nlri }) = dissect(message) else { return false };
    for _ in 0..=random.below(2) {
        let at = random.below(attributes.len());
        let Some(attribute) = attributes.get_mut(at) else { break };
        match random.below(8) {
            0 => {
                let byte = random.below(attribute.len());
                attribute[byte] = random.byte();
            }
            1 => {
                attributes.remove(at);
            }
            2 => {
                let again = attribute.clone();
                attributes.insert(random.below(attributes.len()), again);
            }
            3 => attribute[0] ^= [0x80, 0x40, 0x20, 0xc0][random.below(4)],
            4 => attributes.swap(at, 0),
            // Another value: bytes changed, cut or added, the length right.
            action => {
                let value_at = if attribute[0] & 0x10 == 0 { 3 } else { 4 };
                let mut value = attribute.split_off(value_at.min(attribute.len()));
                match action {
                    5 => value.truncate(random.below(value.len())),
                    6 => value.extend((0..=random.below(5)).map(|_| random.byte())),
                    _ => {
                        let byte = random.below(value.len());
                        value.iter_mut().skip(byte).take(1).for_each(|byte| *byte = random.byte());
                    }
                }
                let len = u16::try_from(value.len()).unwrap().to_be_bytes();
                attribute[0] |= if value.len() > 255 { 0x10 } else { 0 };
                attribute.truncate(2);
                attribute.extend(if attribute[0] & 0x10 == 0 { &len[1..] } else { &len[..] });
                attribute.extend(value);
            }
        }
    }
    let attributes = attributes.concat();
    *message = head;
    message.extend(u16::try_from(attributes.len()).unwrap().to_be_bytes());
    message.extend(attributes);
    message.extend(nlri);
    let len = u16::try_from(message.len()).unwrap();
    message[16..18].copy_from_slice(&len.to_be_bytes());
    true
}

/// An UPDATE: what stands before the length of the attributes, each of them, and what stands behind.
struct Parts {
    head: Vec<u8>,
    attributes: Vec<Vec<u8>>,
    nlri: Vec<u8>,
}

fn dissect(message: &[u8]) -> Option<Parts> {
    let number =
        |at: usize| Some(usize::from(u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?])));
    if message.get(18) != Some(&2) {
        return None;
    }
    let start = 21 + number(19)?;
    let mut at = start + 2;
    let end = at + number(start)?;
    let mut attributes = Vec::new();
    while at < end {
        let extended = message.get(at)? & 0x10 != 0;
        let whole = if extended { 4 + number(at + 2)? } else { 3 + usize::from(*message.get(at + 2)?) };
        attributes.push(message.get(at..at + whole)?.to_vec());
        at += whole;
    }
    Some(Parts { head: message.get(..start)?.to_vec(), attributes, nlri: message.get(end..)?.to_vec() })
}
