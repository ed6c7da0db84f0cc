//! The wire form of netlink: 4-byte aligned type-length-value attributes behind a 16-byte header.
//!
//! Invariants: encoding aligns and never truncates; decoding never reads past its slice and ends quietly
//! at the first malformed attribute (the kernel is trusted to be honest, not to be new enough).
//! Deliberately not here: sockets, sequence numbers (the socket stamps them).

/// Size of `struct nlmsghdr`.
pub(super) const HEADER: usize = 16;
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;

fn align(len: usize) -> usize {
    (len + 3) & !3
}

/// A run of attributes under construction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attrs(Vec<u8>);

impl Attrs {
    /// No attributes.
    pub fn new() -> Self {
        Self::default()
    }

    /// A run that is encoded already, as received.
    pub fn raw(encoded: &[u8]) -> Self {
        Self(encoded.to_vec())
    }

    /// Appends one attribute with the given value.
    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let len = u16::try_from(value.len() + 4).expect("callers split what does not fit one attribute");
        self.0.extend_from_slice(&len.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(align(self.0.len()), 0);
        self
    }

    /// Appends a number in host order.
    pub fn u8(self, kind: u16, value: u8) -> Self {
        self.bytes(kind, &[value])
    }

    /// Appends a number in host order (the routing family's way).
    pub fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Appends a number in network order (netfilter's way).
    pub fn be32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Appends a number in network order.
    pub fn be64(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Appends a NUL-terminated string.
    pub fn str(self, kind: u16, value: &str) -> Self {
        let mut text = Vec::with_capacity(value.len() + 1);
        text.extend_from_slice(value.as_bytes());
        text.push(0);
        self.bytes(kind, &text)
    }

    /// Appends a nest holding `inner`.
    pub fn nest(self, kind: u16, inner: Attrs) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    /// The encoded bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The encoded length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no attribute.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// One request: type, flags, fixed family header, attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub(super) kind: u16,
    pub(super) flags: u16,
    body: Vec<u8>,
}

impl Message {
    /// A request of this type with a fixed header (a multiple of 4 bytes) and attributes.
    pub fn new(kind: u16, flags: u16, header: &[u8], attrs: Attrs) -> Self {
        let mut body = Vec::with_capacity(header.len() + attrs.len());
        body.extend_from_slice(header);
        body.resize(align(body.len()), 0);
        body.extend_from_slice(attrs.as_bytes());
        Self { kind, flags, body }
    }

    /// Appends the wire form to `out`.
    pub(super) fn write(&self, out: &mut Vec<u8>, extra_flags: u16, seq: u32) {
        let len = u32::try_from(HEADER + self.body.len()).expect("a message is far below 4 GiB");
        out.extend_from_slice(&len.to_ne_bytes());
        out.extend_from_slice(&self.kind.to_ne_bytes());
        out.extend_from_slice(&(self.flags | extra_flags).to_ne_bytes());
        out.extend_from_slice(&seq.to_ne_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.body);
    }
}

/// One message from the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    pub(super) seq: u32,
    /// Everything behind the netlink header.
    pub body: Vec<u8>,
}

impl Reply {
    /// The attributes behind a family header of `header` bytes.
    pub fn attrs(&self, header: usize) -> impl Iterator<Item = (u16, &[u8])> {
        attrs(self.body.get(header..).unwrap_or_default())
    }
}

/// Splits one received datagram into messages.
pub(super) fn replies(mut data: &[u8]) -> Vec<Reply> {
    let mut out = Vec::new();
    while data.len() >= HEADER {
        let len = ne32(data) as usize;
        let Some(message) = data.get(..len).filter(|message| message.len() >= HEADER) else { break };
        out.push(Reply {
            kind: ne16(&message[4..]),
            flags: ne16(&message[6..]),
            seq: ne32(&message[8..]),
            body: message[HEADER..].to_vec(),
        });
        data = data.get(align(len)..).unwrap_or_default();
    }
    out
}

/// Iterates over attributes: type without its flag bits, value.
pub fn attrs(mut data: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        if data.len() < 4 {
            return None;
        }
        let len = usize::from(ne16(data));
        let value = data.get(4..len)?;
        let kind = ne16(&data[2..]) & TYPE_MASK;
        data = data.get(align(len)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn array<const N: usize>(data: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    let n = data.len().min(N);
    out[..n].copy_from_slice(&data[..n]);
    out
}

/// The first two bytes in host order; missing bytes count as zero.
pub fn ne16(data: &[u8]) -> u16 {
    u16::from_ne_bytes(array(data))
}

/// The first four bytes in host order; missing bytes count as zero.
pub fn ne32(data: &[u8]) -> u32 {
    u32::from_ne_bytes(array(data))
}

/// The first two bytes in network order; missing bytes count as zero.
pub fn be16(data: &[u8]) -> u16 {
    u16::from_be_bytes(array(data))
}

/// The first four bytes in network order; missing bytes count as zero.
pub fn be32(data: &[u8]) -> u32 {
    u32::from_be_bytes(array(data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_round_trip_aligned() {
        let inner = Attrs::new().u8(1, 7).str(2, "eth0");
        let run = Attrs::new().be32(3, 0x0102_0304).nest(4, inner.clone()).bytes(5, b"abc");
        assert_eq!(run.len() % 4, 0);
        let read: Vec<_> = attrs(run.as_bytes()).collect();
        assert_eq!(read, [(3, &[1, 2, 3, 4][..]), (4, inner.as_bytes()), (5, b"abc")]);
        let nested: Vec<_> = attrs(read[1].1).collect();
        assert_eq!(nested, [(1, &[7][..]), (2, b"eth0\0")]);
    }

    #[test]
    fn messages_round_trip() {
        let mut wire = Vec::new();
        Message::new(16, 1, &[9; 6], Attrs::new().u32(1, 5)).write(&mut wire, 4, 77);
        Message::new(17, 1, &[], Attrs::new()).write(&mut wire, 0, 78);
        let read = replies(&wire);
        assert_eq!((read[0].kind, read[0].flags, read[0].seq), (16, 5, 77));
        assert_eq!(read[0].attrs(8).map(|(kind, value)| (kind, ne32(value))).collect::<Vec<_>>(), [(1, 5)]);
        assert_eq!((read[1].kind, read[1].seq, read.len()), (17, 78, 2));
    }

    #[test]
    fn garbage_ends_quietly() {
        for len in 0..64 {
            for fill in [0u8, 1, 3, 4, 17, 255] {
                let data = vec![fill; len];
                let _ = attrs(&data).count();
                let _ = replies(&data).len();
            }
        }
    }
}
