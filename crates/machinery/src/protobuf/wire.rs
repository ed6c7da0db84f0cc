//! Protobuf's wire format: tags, varints, lengths. Knows no message.

use crate::status::ApiError;
use std::borrow::Cow;

/// Nested groups that are skipped at most (nothing of Kubernetes uses them).
const GROUPS_MAX: usize = 100;

/// Bytes that are not what they should be. Small, because decoding recurses.
#[derive(Debug)]
pub struct Malformed(pub Cow<'static, str>);

impl From<Malformed> for ApiError {
    fn from(malformed: Malformed) -> Self {
        ApiError::bad_request(malformed.0)
    }
}

/// The error with Go's prefix.
pub fn malformed(why: impl std::fmt::Display) -> Malformed {
    Malformed(format!("proto: {why}").into())
}

/// One value as it stands on the wire.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Datum<'a> {
    /// An integer.
    Varint(u64),
    /// Eight bytes.
    Fixed64(u64),
    /// A text, bytes, or a message.
    Bytes(&'a [u8]),
    /// Four bytes.
    Fixed32(u32),
}

impl<'a> Datum<'a> {
    fn wrong(self) -> Malformed {
        let wire_type = match self {
            Datum::Varint(_) => 0,
            Datum::Fixed64(_) => 1,
            Datum::Bytes(_) => 2,
            Datum::Fixed32(_) => 5,
        };
        malformed(format!("wrong wireType = {wire_type}"))
    }

    /// A length-delimited value.
    pub fn bytes(self) -> Result<&'a [u8], Malformed> {
        match self {
            Datum::Bytes(bytes) => Ok(bytes),
            other => Err(other.wrong()),
        }
    }

    /// A varint.
    pub fn varint(self) -> Result<u64, Malformed> {
        match self {
            Datum::Varint(n) => Ok(n),
            other => Err(other.wrong()),
        }
    }

    /// A double.
    pub fn double(self) -> Result<f64, Malformed> {
        match self {
            Datum::Fixed64(bits) => Ok(f64::from_bits(bits)),
            other => Err(other.wrong()),
        }
    }
}

/// Reads the fields of one message.
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Of these bytes.
    pub fn new(rest: &'a [u8]) -> Self {
        Reader { rest }
    }

    /// Is everything read?
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next field that is no group: its number and value.
    pub fn field(&mut self) -> Result<Option<(u64, Datum<'a>)>, Malformed> {
        let mut groups = Vec::new();
        while !self.rest.is_empty() {
            let tag = self.varint()?;
            let number = tag >> 3;
            if number == 0 || tag > u64::from(u32::MAX) {
                return Err(malformed(format!("illegal tag {number} (wire type {})", tag & 7)));
            }
            let datum = match tag & 7 {
                0 => Datum::Varint(self.varint()?),
                1 => Datum::Fixed64(u64::from_le_bytes(self.array()?)),
                2 => {
                    let length = self.varint()?;
                    Datum::Bytes(self.take(usize::try_from(length).unwrap_or(usize::MAX))?)
                }
                3 if groups.len() < GROUPS_MAX => {
                    groups.push(number);
                    continue;
                }
                4 if groups.pop() == Some(number) => continue,
                5 => Datum::Fixed32(u32::from_le_bytes(self.array()?)),
                other => return Err(malformed(format!("illegal wireType {other}"))),
            };
            if groups.is_empty() {
                return Ok(Some((number, datum)));
            }
        }
        if groups.is_empty() { Ok(None) } else { Err(malformed("unexpected end of group")) }
    }

    /// One varint of at most ten bytes; what does not fit in 64 bits is cut off, as Go does.
    pub fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for shift in (0..70).step_by(7) {
            let [byte] = self.array()?;
            if shift < 64 {
                value |= u64::from(byte & 0x7f) << shift;
            }
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(malformed("integer overflow"))
    }

    /// One double of a packed list.
    pub fn double(&mut self) -> Result<f64, Malformed> {
        Ok(f64::from_le_bytes(self.array()?))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let Some((head, rest)) = self.rest.split_at_checked(length) else {
            return Err(malformed("unexpected EOF"));
        };
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| malformed("unexpected EOF"))
    }
}

/// Writes the fields of one message.
#[derive(Default)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    /// A text, bytes, or a message.
    pub fn bytes(&mut self, number: u16, bytes: &[u8]) {
        self.tag(number, 2);
        self.raw_varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    /// An integer.
    pub fn varint(&mut self, number: u16, value: u64) {
        self.tag(number, 0);
        self.raw_varint(value);
    }

    /// A double.
    pub fn double(&mut self, number: u16, value: f64) {
        self.tag(number, 1);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn tag(&mut self, number: u16, wire_type: u64) {
        self.raw_varint(u64::from(number) << 3 | wire_type);
    }

    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}
