//! `aws-chunked` bodies: `<hex length>[;chunk-signature=<hex>]\r\n<bytes>\r\n … 0…\r\n[trailers]\r\n`.

use super::{hex, unhex};
use ring::{digest, hmac};

/// Every chunk has a signature.
pub(super) const SIGNED: &str = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD";
/// The same, with signed trailers (which are dropped unread: nothing that we serve has one).
pub(super) const SIGNED_TRAILER: &str = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER";
/// Chunks without signatures.
pub(super) const UNSIGNED_TRAILER: &str = "STREAMING-UNSIGNED-PAYLOAD-TRAILER";
/// A chunk's head line: a length and a signature.
const LINE_MAX: usize = 256;

/// Why a chunked body is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// Not in chunks, or cut off.
    #[error("the chunked body is malformed")]
    Malformed,
    /// A chunk is not what was signed.
    #[error("a chunk's signature does not match")]
    Mismatch,
}

/// Reads chunks and checks their chain of signatures.
pub struct Chunks {
    key: Option<hmac::Key>,
    stamp: String,
    previous: String,
}

impl Chunks {
    pub(super) fn new(key: Option<hmac::Key>, stamp: String, seed: &[u8]) -> Chunks {
        Chunks { key, stamp, previous: hex(seed) }
    }

    /// The bytes of a whole chunked body.
    ///
    /// # Errors
    /// It is malformed, or a signature is wrong.
    pub fn read(mut self, mut body: &[u8]) -> Result<Vec<u8>, ChunkError> {
        let mut out = Vec::with_capacity(body.len());
        loop {
            let window = &body[..body.len().min(LINE_MAX)];
            let end = window.windows(2).position(|w| w == b"\r\n").ok_or(ChunkError::Malformed)?;
            let line = std::str::from_utf8(&body[..end]).map_err(|_| ChunkError::Malformed)?;
            let (length, extension) = line.split_once(';').unwrap_or((line, ""));
            let length = usize::from_str_radix(length.trim(), 16).map_err(|_| ChunkError::Malformed)?;
            let rest = &body[end + 2..];
            let data = rest.get(..length).ok_or(ChunkError::Malformed)?;
            self.check(data, extension)?;
            if length == 0 {
                return Ok(out);
            }
            out.extend_from_slice(data);
            body = rest[length..].strip_prefix(b"\r\n").ok_or(ChunkError::Malformed)?;
        }
    }

    fn check(&mut self, data: &[u8], extension: &str) -> Result<(), ChunkError> {
        let Some(key) = &self.key else { return Ok(()) };
        let said = extension.trim().strip_prefix("chunk-signature=").ok_or(ChunkError::Malformed)?;
        let hash = |bytes: &[u8]| hex(digest::digest(&digest::SHA256, bytes).as_ref());
        let text = format!(
            "AWS4-HMAC-SHA256-PAYLOAD\n{}\n{}\n{}\n{}",
            self.stamp,
            self.previous,
            hash(b""),
            hash(data)
        );
        let bytes = unhex(said).ok_or(ChunkError::Malformed)?;
        hmac::verify(key, text.as_bytes(), &bytes).map_err(|_| ChunkError::Mismatch)?;
        self.previous = said.to_string();
        Ok(())
    }
}
