//! Protocol Buffers on the wire, as much as etcd's messages need: varints and length-delimited fields.
//!
//! Invariant: whatever bytes come in, reading ends with fields or with [`Malformed`], never past the end.
//! Deliberately not here: what the fields mean (`messages`).

use bytes::{Buf, Bytes};

/// Not a message of the kind that was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("etcd sent a malformed message")]
pub(crate) struct Malformed;

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const DELIMITED: u64 = 2;
const FIXED32: u64 = 5;

/// A message in the making.
#[derive(Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    pub fn number(mut self, field: u64, value: u64) -> Self {
        self.varint(field << 3 | VARINT);
        self.varint(value);
        self
    }

    /// Empty bytes are left out, as the format has it: etcd takes the end of a range that is there and empty as
    /// "no end", while without one the range is a single key.
    pub fn bytes(self, field: u64, value: &[u8]) -> Self {
        if value.is_empty() { self } else { self.delimited(field, value) }
    }

    pub fn message(self, field: u64, message: Writer) -> Self {
        self.delimited(field, &message.0)
    }

    fn delimited(mut self, field: u64, value: &[u8]) -> Self {
        self.varint(field << 3 | DELIMITED);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// The value of one field.
pub(crate) enum Field {
    Number(u64),
    Bytes(Bytes),
}

impl Field {
    pub fn number(self) -> Result<u64, Malformed> {
        if let Field::Number(value) = self { Ok(value) } else { Err(Malformed) }
    }

    pub fn bytes(self) -> Result<Bytes, Malformed> {
        if let Field::Bytes(value) = self { Ok(value) } else { Err(Malformed) }
    }

    pub fn text(self) -> Result<String, Malformed> {
        Ok(String::from_utf8_lossy(&self.bytes()?).into_owned())
    }
}

fn varint(message: &mut Bytes) -> Result<u64, Malformed> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = message.try_get_u8().map_err(|_| Malformed)?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(Malformed)
}

fn take(message: &mut Bytes, length: u64) -> Result<Bytes, Malformed> {
    let length = usize::try_from(length).map_err(|_| Malformed)?;
    if length <= message.len() { Ok(message.split_to(length)) } else { Err(Malformed) }
}

/// Calls `each` with every field of a message, in the order they stand there.
pub(crate) fn fields(
    mut message: Bytes,
    mut each: impl FnMut(u64, Field) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        let value = match tag & 7 {
            VARINT => Field::Number(varint(&mut message)?),
            DELIMITED => {
                let length = varint(&mut message)?;
                Field::Bytes(take(&mut message, length)?)
            }
            FIXED64 => Field::Bytes(take(&mut message, 8)?),
            FIXED32 => Field::Bytes(take(&mut message, 4)?),
            _ => return Err(Malformed),
        };
        each(tag >> 3, value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A field and its number or bytes.
    type Found = (u64, Result<u64, Vec<u8>>);

    /// What `fields` finds.
    fn read(message: &[u8]) -> Result<Vec<Found>, Malformed> {
        let mut found = Vec::new();
        fields(Bytes::copy_from_slice(message), |field, value| {
            found.push((
                field,
                match value {
                    Field::Number(number) => Ok(number),
                    Field::Bytes(bytes) => Err(bytes.to_vec()),
                },
            ));
            Ok(())
        })?;
        Ok(found)
    }

    #[test]
    fn known_bytes() {
        // The examples of the format's public description: field 1 = 150, field 2 = "testing".
        let message = Writer::default().number(1, 150).bytes(2, b"testing").finish();
        assert_eq!(message, b"\x08\x96\x01\x12\x07testing");
        assert_eq!(read(&message).unwrap(), [(1, Ok(150)), (2, Err(b"testing".to_vec()))]);
        assert_eq!(Writer::default().bytes(1, b"").message(2, Writer::default()).finish(), b"\x12\x00");
        assert_eq!(read(b"\x0d1234\x09abcdefgh\x10\x01").unwrap().len(), 3, "fixed widths are skipped over");
        for bad in [
            &b"\x08"[..],
            b"\x08\x80",
            b"\x12\x05abc",
            b"\x0b",
            b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        ] {
            assert_eq!(read(bad), Err(Malformed), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(written in prop::collection::vec((1u64..5000, prop_oneof![
            any::<u64>().prop_map(Ok), prop::collection::vec(any::<u8>(), 1..300).prop_map(Err)]), 0..20)) {
            let message = written.iter().fold(Writer::default(), |message, (field, value)| match value {
                Ok(number) => message.number(*field, *number),
                Err(bytes) => message.bytes(*field, bytes),
            });
            prop_assert_eq!(read(&message.finish()).unwrap(), written);
        }

        #[test]
        fn noise_is_read_or_refused(noise in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&noise);
        }
    }
}
