//! Digests: their text form, and readers that compute them on the way.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::io::{self, Read};
use std::rc::Rc;

/// A SHA-256 digest, `sha256:<64 lower-case hex digits>`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(String);

impl Digest {
    /// Takes the text form; `None` for another algorithm or another shape.
    pub fn parse(text: &str) -> Option<Digest> {
        is_hex64(text.strip_prefix("sha256:")?).then(|| Digest(text.into()))
    }

    /// From bare hex digits.
    pub fn from_hex(hex: &str) -> Option<Digest> {
        is_hex64(hex).then(|| Digest(format!("sha256:{hex}")))
    }

    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest::from_hash(&Sha256::digest(bytes))
    }

    /// The hex digits alone: a file name.
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }

    /// The text form.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn from_hash(hash: &[u8]) -> Digest {
        use fmt::Write;
        let mut text = String::from("sha256:");
        for byte in hash {
            write!(text, "{byte:02x}").expect("writing to a String cannot fail");
        }
        Digest(text)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Digest::parse(&text).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no digest")))
    }
}

/// Takes bytes as they come.
#[derive(Clone, Default)]
pub struct Hasher(Sha256);

impl Hasher {
    /// The next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all bytes so far; more may follow.
    pub fn digest(&self) -> Digest {
        Digest::from_hash(&self.0.clone().finalize())
    }
}

pub(crate) fn is_hex64(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// What a [`HashRead`] saw so far; outlives the reader that it is taken from.
#[derive(Clone, Default)]
pub(crate) struct Meter {
    hash: Rc<RefCell<Sha256>>,
    bytes: Rc<Cell<u64>>,
}

impl Meter {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::from_hash(&self.hash.borrow().clone().finalize())
    }
}

/// Passes bytes through and meters them.
pub(crate) struct HashRead<R> {
    inner: R,
    meter: Meter,
}

impl<R: Read> HashRead<R> {
    pub(crate) fn new(inner: R) -> (HashRead<R>, Meter) {
        let meter = Meter::default();
        (HashRead { inner, meter: meter.clone() }, meter)
    }
}

impl<R: Read> Read for HashRead<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.meter.hash.borrow_mut().update(&buffer[..n]);
        self.meter.bytes.set(self.meter.bytes.get() + n as u64);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_forms() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").as_str(), empty);
        assert_eq!(Digest::parse(empty), Some(Digest::of(b"")));
        assert_eq!(Digest::from_hex(&empty[7..]), Some(Digest::of(b"")));
        for bad in [&empty[7..], &empty[..70], "sha512:00", "sha256:../../etc/passwd", ""] {
            assert_eq!(Digest::parse(bad), None, "{bad}");
        }
        assert_eq!(Digest::parse(&empty.to_uppercase()), None);
    }

    #[test]
    fn meter_sees_what_was_read() {
        let (mut reader, meter) = HashRead::new(&b"abcdef"[..]);
        let mut half = [0; 3];
        reader.read_exact(&mut half).unwrap();
        assert_eq!((meter.bytes(), meter.digest()), (3, Digest::of(b"abc")));
    }
}
