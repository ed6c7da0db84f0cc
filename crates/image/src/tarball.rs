//! Reads tar streams (ustar, pax, GNU long names) from an enemy, in bounded memory.
//!
//! Own code because extended headers must not be read without a limit, and because pax sizes, xattrs and raw
//! offsets are needed together. Invariant: no more than one extended header of each kind is held at a time.
//! Deliberately not here: sparse files (refused by name), what a path may be (`unpack` decides).

use crate::error::ImageError;
use crate::limits::EXTENDED_HEADER_BYTES;
use std::io::{self, Read};

const BLOCK: usize = 512;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Hardlink,
    Symlink,
    Char,
    Block,
    Folder,
    Fifo,
    /// A type that we do not know; the data is skipped.
    Other(u8),
}

/// One entry's header, extended headers applied.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    pub(crate) size: u64,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
    /// Where the data starts in the stream.
    pub(crate) offset: u64,
}

/// How to get past bytes that nobody wants: by reading, or by seeking.
pub(crate) type Skip<R> = fn(&mut R, u64) -> io::Result<()>;

/// Skips by reading.
pub(crate) fn skip_by_reading<R: Read>(reader: &mut R, n: u64) -> io::Result<()> {
    match io::copy(&mut reader.take(n), &mut io::sink())? {
        copied if copied == n => Ok(()),
        _ => Err(bad("truncated")),
    }
}

/// A tar stream; as a `Read` it gives the current entry's data.
pub(crate) struct TarReader<R> {
    inner: R,
    skip: Skip<R>,
    position: u64,
    data_left: u64,
    padding: u64,
}

/// Extended headers that wait for their entry.
#[derive(Default)]
struct Pending {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl<R: Read> TarReader<R> {
    pub(crate) fn new(inner: R, skip: Skip<R>) -> TarReader<R> {
        TarReader { inner, skip, position: 0, data_left: 0, padding: 0 }
    }

    /// The stream below, wherever it stands.
    pub(crate) fn into_inner(self) -> R {
        self.inner
    }

    /// The next entry, or `None` at the end of the archive.
    pub(crate) fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        let mut pending = Pending::default();
        loop {
            self.finish_entry()?;
            let Some(block) = self.block()? else { return Ok(None) };
            if block.iter().all(|b| *b == 0) {
                return Ok(None);
            }
            check_sum(&block)?;
            let size = number(&block[124..136])?;
            match block[156] {
                b'L' => pending.path = Some(trimmed(self.extended(size)?)),
                b'K' => pending.link = Some(trimmed(self.extended(size)?)),
                b'x' => pending.pax(&self.extended(size)?)?,
                b'g' => drop(self.extended(size)?),
                b'S' => return Err(bad("sparse files are not supported")),
                kind => return self.entry(&block, kind, size, pending).map(Some),
            }
        }
    }

    fn entry(&mut self, block: &[u8; BLOCK], kind: u8, size: u64, pending: Pending) -> io::Result<Entry> {
        let path = pending.path.unwrap_or_else(|| ustar_path(block));
        let kind = match kind {
            b'0' | 0 | b'7' if path.ends_with(b"/") => Kind::Folder,
            b'0' | 0 | b'7' => Kind::File,
            b'1' => Kind::Hardlink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Char,
            b'4' => Kind::Block,
            b'5' => Kind::Folder,
            b'6' => Kind::Fifo,
            other => Kind::Other(other),
        };
        // Only these carry data; a size on any other type is a leftover, as in every tar reader.
        let size = match kind {
            Kind::File | Kind::Other(_) => pending.size.unwrap_or(size),
            _ => 0,
        };
        self.expect_data(size);
        let id = |from: Option<u32>, field: &[u8]| match from {
            Some(id) => Ok(id),
            None => number(field).and_then(|n| u32::try_from(n).map_err(|_| bad("owner id out of range"))),
        };
        let device = |field: &[u8]| number(field).map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        let has_device = matches!(kind, Kind::Char | Kind::Block);
        Ok(Entry {
            link: pending.link.unwrap_or_else(|| until_nul(&block[157..257]).to_vec()),
            kind,
            mode: (number(&block[100..108])? & 0o7777) as u32,
            uid: id(pending.uid, &block[108..116])?,
            gid: id(pending.gid, &block[116..124])?,
            mtime: match pending.mtime {
                Some(mtime) => mtime,
                None => (i64::try_from(number(&block[136..148])?).unwrap_or(0), 0),
            },
            size,
            device: if has_device { (device(&block[329..337])?, device(&block[337..345])?) } else { (0, 0) },
            xattrs: pending.xattrs,
            offset: self.position,
            path,
        })
    }

    fn expect_data(&mut self, size: u64) {
        self.data_left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    fn finish_entry(&mut self) -> io::Result<()> {
        let rest = self.data_left.checked_add(self.padding).ok_or_else(|| bad("size out of range"))?;
        if rest > 0 {
            (self.skip)(&mut self.inner, rest)?;
            self.position = self.position.checked_add(rest).ok_or_else(|| bad("size out of range"))?;
            self.expect_data(0);
        }
        Ok(())
    }

    /// A whole block; `None` at the very end of the stream.
    fn block(&mut self) -> io::Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(bad("truncated")),
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.position += BLOCK as u64;
        Ok(Some(block))
    }

    fn extended(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > EXTENDED_HEADER_BYTES {
            return Err(ImageError::too_big("an extended tar header", EXTENDED_HEADER_BYTES).into_io());
        }
        self.expect_data(size);
        let mut data = Vec::new();
        self.read_to_end(&mut data)?;
        Ok(data)
    }
}

impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.data_left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let wanted = buffer.len().min(usize::try_from(self.data_left).unwrap_or(usize::MAX));
        match self.inner.read(&mut buffer[..wanted])? {
            0 => Err(bad("truncated")),
            n => {
                self.data_left -= n as u64;
                self.position += n as u64;
                Ok(n)
            }
        }
    }
}

impl Pending {
    /// Records of the form `<length> <key>=<value>\n`.
    fn pax(&mut self, mut data: &[u8]) -> io::Result<()> {
        let malformed = || bad("malformed pax header");
        while !data.is_empty() {
            let space = data.iter().position(|b| *b == b' ').ok_or_else(malformed)?;
            let length: usize = text_number(&data[..space]).ok_or_else(malformed)?;
            if length <= space + 1 || length > data.len() || data[length - 1] != b'\n' {
                return Err(malformed());
            }
            let record = &data[space + 1..length - 1];
            data = &data[length..];
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(malformed)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            self.record(key, value).ok_or_else(malformed)?;
            if key.starts_with(b"GNU.sparse.") {
                return Err(bad("sparse files are not supported"));
            }
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(text_number(value)?),
            b"uid" => self.uid = Some(text_number(value)?),
            b"gid" => self.gid = Some(text_number(value)?),
            b"mtime" => self.mtime = Some(timestamp(value)?),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((String::from_utf8(name.to_vec()).ok()?, value.to_vec()));
                }
            }
        }
        Some(())
    }
}

fn bad(why: &str) -> io::Error {
    ImageError::Tar(why.into()).into_io()
}

fn check_sum(block: &[u8; BLOCK]) -> io::Result<()> {
    let sum: u64 = block
        .iter()
        .enumerate()
        .map(|(i, b)| u64::from(if (148..156).contains(&i) { b' ' } else { *b }))
        .sum();
    if number(&block[148..156])? == sum { Ok(()) } else { Err(bad("header checksum does not match")) }
}

/// Octal text, or base-256 when the first bit is set.
fn number(field: &[u8]) -> io::Result<u64> {
    let out_of_range = || bad("number out of range");
    if field[0] & 0x80 != 0 {
        // The top bits mark base-256 (0x80) or a negative number (0xff), which nothing here may be.
        let first = u64::from(field[0] & 0x7f);
        return field[1..]
            .iter()
            .try_fold(first, |n, b| n.checked_mul(256).map(|n| n | u64::from(*b)))
            .ok_or_else(out_of_range);
    }
    let digits = field.iter().skip_while(|b| **b == b' ').take_while(|b| !matches!(**b, b' ' | 0));
    digits.copied().try_fold(0u64, |n, b| match b {
        b'0'..=b'7' => n.checked_mul(8).map(|n| n + u64::from(b - b'0')).ok_or_else(out_of_range),
        _ => Err(bad("malformed number")),
    })
}

fn text_number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds with an optional fraction; the fraction is cut to nanoseconds.
fn timestamp(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = seconds.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos: u32 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    match (text.starts_with('-'), nanos) {
        (true, 1..) => Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos)),
        _ => Some((seconds, nanos)),
    }
}

fn ustar_path(block: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_nul(&block[..100]);
    // GNU archives ("ustar  ") keep times where POSIX keeps the prefix.
    let prefix = if &block[257..263] == b"ustar\0" { until_nul(&block[345..500]) } else { b"" };
    match prefix {
        b"" => name.to_vec(),
        prefix => [prefix, b"/", name].concat(),
    }
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

fn trimmed(mut data: Vec<u8>) -> Vec<u8> {
    data.truncate(until_nul(&data).len());
    data
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn archive(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        builder.into_inner().unwrap()
    }

    fn header(size: u64) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.set_size(size);
        header.set_mode(0o4755);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1234);
        header
    }

    fn read_all(bytes: &[u8]) -> io::Result<Vec<(Entry, Vec<u8>)>> {
        let mut reader = TarReader::new(bytes, skip_by_reading);
        let mut all = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            let mut data = Vec::new();
            reader.read_to_end(&mut data)?;
            all.push((entry, data));
        }
        Ok(all)
    }

    #[test]
    fn reads_what_the_tar_crate_writes() {
        let long = format!("{}/file", "d".repeat(180));
        let bytes = archive(|b| {
            b.append_data(&mut header(3), "a/b", &b"abc"[..]).unwrap();
            b.append_pax_extensions([("SCHILY.xattr.user.x", &b"\0y"[..]), ("mtime", b"5.25")]).unwrap();
            b.append_data(&mut tar::Header::new_gnu(), &long, &b""[..]).unwrap();
        });
        let all = read_all(&bytes).unwrap();
        let (first, data) = &all[0];
        assert_eq!((first.path.as_slice(), data.as_slice(), first.offset), (&b"a/b"[..], &b"abc"[..], 512));
        assert_eq!((first.mode, first.uid, first.gid, first.mtime), (0o4755, 7, 8, (1234, 0)));
        assert_eq!(all[1].0.path, long.as_bytes());
        assert_eq!(all[1].0.mtime, (5, 250_000_000));
        assert_eq!(all[1].0.xattrs, [("user.x".to_string(), b"\0y".to_vec())]);
    }

    #[test]
    fn refuses_broken_streams() {
        let good = archive(|b| b.append_data(&mut header(600), "f", &[1; 600][..]).unwrap());
        let text = |bytes: &[u8]| read_all(bytes).unwrap_err().to_string();
        assert!(text(&good[..700]).contains("truncated"));
        assert!(text(&good[..100]).contains("truncated"));
        let mut wrong_sum = good.clone();
        wrong_sum[0] ^= 1;
        assert!(text(&wrong_sum).contains("checksum"));
        let giant = archive(|b| {
            let mut h = header(EXTENDED_HEADER_BYTES + 1);
            h.set_entry_type(tar::EntryType::GNULongName);
            h.set_cksum();
            b.append(&h, io::repeat(b'a').take(EXTENDED_HEADER_BYTES + 1)).unwrap();
        });
        assert!(text(&giant).contains("extended tar header"));
        let sparse = archive(|b| {
            let mut h = header(0);
            h.set_entry_type(tar::EntryType::GNUSparse);
            h.set_cksum();
            b.append(&h, io::empty()).unwrap();
        });
        assert!(text(&sparse).contains("sparse"));
    }

    #[test]
    fn times_and_numbers() {
        assert_eq!(timestamp(b"-1.5"), Some((-2, 500_000_000)));
        assert_eq!(timestamp(b"7"), Some((7, 0)));
        assert_eq!(timestamp(b"1.1234567899"), Some((1, 123_456_789)));
        assert_eq!(timestamp(b"1.x"), None);
        assert_eq!(number(b" 0000644\0").unwrap(), 0o644);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1]).unwrap(), (2 << 32) + 1);
        assert!(number(&[0xff; 12]).is_err());
        assert!(number(b"12x").is_err());
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            let _ = read_all(&bytes);
        }

        #[test]
        fn never_panics_on_pax(bytes in "[0-9 =a-z\n]{0,60}") {
            let _ = Pending::default().pax(bytes.as_bytes());
        }
    }
}
