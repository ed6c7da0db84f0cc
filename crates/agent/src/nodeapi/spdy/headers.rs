//! SPDY/3.1 header blocks: name-value pairs, deflated in one stream a direction, with a preset dictionary.
//!
//! Invariant: a block inflates to at most [`BLOCK_MAX`] bytes, whatever it claims.

use super::SpdyError;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use std::sync::LazyLock;

/// Name-value pairs of a stream, names in lower case.
pub(in crate::nodeapi) type Headers = Vec<(String, String)>;

/// Largest block, inflated: a port-forward stream needs 100 bytes.
const BLOCK_MAX: usize = 64 << 10;
/// Most pairs in a block.
const PAIRS_MAX: u32 = 256;

/// The words of the dictionary in the specification's order; each stands there behind its length in four bytes.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
    accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
    content-length content-location content-md5 content-range content-type date etag expect expires from host \
    if-match if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
    proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
    user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie \
    keep-alive origin";

/// The rest of the dictionary: plain text.
const TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 \
    Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
    404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug \
    Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
    application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdch\
    charset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut dictionary = Vec::new();
    for word in WORDS.split_whitespace() {
        put(&mut dictionary, &word.replace('_', " "));
    }
    dictionary.extend_from_slice(TEXT.as_bytes());
    dictionary
});

fn put(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&u32::try_from(text.len()).expect("texts here are short").to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Inflates the blocks of one direction.
pub(super) struct Inflater(Decompress);

impl Inflater {
    pub(super) fn new() -> Inflater {
        Inflater(Decompress::new(true))
    }

    /// The pairs of one block.
    pub(super) fn headers(&mut self, block: &[u8]) -> Result<Headers, SpdyError> {
        parse(&self.inflate(block)?)
    }

    fn inflate(&mut self, mut block: &[u8]) -> Result<Vec<u8>, SpdyError> {
        let mut out = Vec::with_capacity(1024);
        loop {
            let before = self.0.total_in();
            let result = self.0.decompress_vec(block, &mut out, FlushDecompress::Sync);
            block = &block[(self.0.total_in() - before) as usize..];
            match result {
                Err(e) if e.needs_dictionary().is_some() => {
                    self.0
                        .set_dictionary(&DICTIONARY)
                        .map_err(|_| SpdyError("another compression dictionary"))?;
                }
                Err(_) => return Err(SpdyError("bad header compression")),
                Ok(Status::StreamEnd) => return Err(SpdyError("header compression ended")),
                Ok(_) if block.is_empty() && out.len() < out.capacity() => return Ok(out),
                Ok(_) if out.len() >= BLOCK_MAX => return Err(SpdyError("header block too large")),
                Ok(_) if out.len() == out.capacity() => out.reserve(out.len()),
                Ok(Status::BufError) => return Err(SpdyError("bad header compression")),
                Ok(_) => {}
            }
        }
    }
}

/// Deflates the blocks of one direction.
pub(super) struct Deflater(Compress);

impl Deflater {
    pub(super) fn new() -> Deflater {
        let mut compress = Compress::new(Compression::fast(), true);
        compress.set_dictionary(&DICTIONARY).expect("a fresh stream takes a dictionary");
        Deflater(compress)
    }

    /// Appends one block.
    pub(super) fn deflate(&mut self, headers: &Headers, out: &mut Vec<u8>) {
        let mut plain = Vec::new();
        plain.extend_from_slice(&u32::try_from(headers.len()).expect("few headers").to_be_bytes());
        for (name, value) in headers {
            put(&mut plain, name);
            put(&mut plain, value);
        }
        let mut rest = plain.as_slice();
        loop {
            out.reserve(256);
            let before = self.0.total_in();
            self.0
                .compress_vec(rest, out, FlushCompress::Sync)
                .expect("deflating into free space cannot fail");
            rest = &rest[(self.0.total_in() - before) as usize..];
            // Space left over means that the flush is complete.
            if rest.is_empty() && out.len() < out.capacity() {
                return;
            }
        }
    }
}

fn parse(mut block: &[u8]) -> Result<Headers, SpdyError> {
    let truncated = || SpdyError("truncated header block");
    let number = |block: &mut &[u8]| {
        let (head, rest) = block.split_first_chunk::<4>().ok_or_else(truncated)?;
        *block = rest;
        Ok(u32::from_be_bytes(*head))
    };
    let text = |block: &mut &[u8]| {
        let length = number(block)? as usize;
        let (text, rest) = block.split_at_checked(length).ok_or_else(truncated)?;
        *block = rest;
        String::from_utf8(text.to_vec()).map_err(|_| SpdyError("header is not text"))
    };
    let count = number(&mut block)?;
    if count > PAIRS_MAX {
        return Err(SpdyError("too many headers"));
    }
    (0..count).map(|_| Ok((text(&mut block)?.to_ascii_lowercase(), text(&mut block)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Length and Adler-32 (the id that zlib puts into the stream) as in the specification of SPDY/3.
    #[test]
    fn the_dictionary_is_spdys() {
        let (mut a, mut b) = (1u32, 0u32);
        for byte in DICTIONARY.iter() {
            a = (a + u32::from(*byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!((DICTIONARY.len(), (b << 16) | a), (1423, 0xe3c6_a7c2));
    }

    proptest! {
        #[test]
        fn blocks_round_trip_in_one_stream(
            blocks in prop::collection::vec(prop::collection::vec(("[a-z-]{1,20}", "\\PC{0,300}"), 0..20), 1..5)
        ) {
            let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
            for headers in blocks {
                let mut block = Vec::new();
                deflater.deflate(&headers, &mut block);
                prop_assert_eq!(inflater.headers(&block).unwrap(), headers);
            }
        }

        #[test]
        fn garbage_is_an_error_not_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Inflater::new().headers(&bytes);
            let _ = parse(&bytes);
        }
    }

    #[test]
    fn bombs_are_bounded() {
        let headers = vec![("a".to_string(), "x".repeat(1 << 20))];
        let mut block = Vec::new();
        Deflater::new().deflate(&headers, &mut block);
        assert!(Inflater::new().headers(&block).is_err());
    }
}
