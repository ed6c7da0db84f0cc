//! Where an image's blobs are read from: the members of a tar file, or the files of a folder.
//!
//! A compressed or unseekable archive is first spooled to one temporary file; members are then read in place, in
//! parallel, and never copied. Names are data: they are looked up in a table, never given to the file system.

use crate::digest::Digest;
use crate::error::ImageError;
use crate::fs::{anonymous, free_bytes};
use crate::limits::{Limits, MEMBER_LINKS, MEMBER_NAME_BYTES, SPACE_CHECK_BYTES};
use crate::tarball::{Kind, TarReader};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A set of named blobs.
pub(crate) enum Source {
    Tar {
        file: File,
        members: BTreeMap<String, Member>,
    },
    Folder(PathBuf),
    /// Open files by the names that they would have in an OCI layout.
    Blobs(BTreeMap<String, File>),
}

/// A member of a tar file.
pub(crate) enum Member {
    Data { offset: u64, size: u64 },
    Link(String),
}

/// Bytes of a member or file. `Send`, positioned by itself: several can read one file.
pub(crate) struct Range {
    file: File,
    at: u64,
    end: u64,
}

impl Read for Range {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.end - self.at).unwrap_or(usize::MAX));
        let n = self.file.read_at(&mut buffer[..wanted], self.at)?;
        if n == 0 && wanted > 0 {
            return Err(ImageError::Tar("the archive became shorter while it was read".into()).into_io());
        }
        self.at += n as u64;
        Ok(n)
    }
}

impl Source {
    /// Opens a folder, or a tar file, compressed or not.
    pub(crate) fn open(path: &Path, spool: &Path, limits: &Limits) -> Result<Source, ImageError> {
        let open = || ImageError::io("open", path);
        let kind = std::fs::metadata(path).map_err(open())?;
        if kind.is_dir() {
            return Ok(Source::Folder(path.into()));
        }
        let mut file = File::open(path).map_err(open())?;
        let mut magic = [0; 4];
        let plain = kind.is_file() && {
            let n = file.read(&mut magic).map_err(open())?;
            file.rewind().map_err(open())?;
            compression(&magic[..n]) == Compression::None
        };
        match plain {
            true => Source::index(file, path, limits),
            false => Source::spooled(file, spool, limits),
        }
    }

    /// Copies a stream, decompressed, to an anonymous file below `spool`, and opens that.
    pub(crate) fn spooled(reader: impl Read, spool: &Path, limits: &Limits) -> Result<Source, ImageError> {
        let error = || ImageError::io("spool the archive to", spool);
        let mut file = anonymous(spool).map_err(error())?;
        let mut reader = decompressed(reader).map_err(error())?;
        let (mut buffer, mut total, mut unchecked) = (vec![0; 128 << 10], 0u64, SPACE_CHECK_BYTES);
        loop {
            let n = reader.read(&mut buffer).map_err(error())?;
            if n == 0 {
                break;
            }
            (total, unchecked) = (total + n as u64, unchecked + n as u64);
            if total > limits.archive_bytes {
                return Err(ImageError::too_big("the archive", format!("{} bytes", limits.archive_bytes)));
            }
            if unchecked > SPACE_CHECK_BYTES {
                unchecked = 0;
                if free_bytes(&file).map_err(error())? < limits.free_floor_bytes + SPACE_CHECK_BYTES {
                    return Err(ImageError::NoSpace { floor_bytes: limits.free_floor_bytes });
                }
            }
            file.write_all(&buffer[..n]).map_err(error())?;
        }
        file.rewind().map_err(error())?;
        Source::index(file, spool, limits)
    }

    fn index(file: File, path: &Path, limits: &Limits) -> Result<Source, ImageError> {
        let error = || ImageError::io("read", path);
        let length = file.metadata().map_err(error())?.len();
        let reader = BufReader::new(file.try_clone().map_err(error())?);
        let mut tar = TarReader::new(reader, |reader, n| {
            let n = i64::try_from(n).map_err(|_| ImageError::Tar("size out of range".into()).into_io())?;
            reader.seek_relative(n)
        });
        let mut members = BTreeMap::new();
        let (mut entries, mut name_bytes) = (0, 0);
        loop {
            let entry = tar.next_entry().map_err(|e| match ImageError::io("read", path)(e) {
                // Nothing sensible before the first entry: this is no tar file at all.
                ImageError::Tar(why) if entries == 0 => ImageError::NotAnImage(why),
                other => other,
            })?;
            let Some(entry) = entry else { break };
            entries += 1;
            name_bytes += entry.path.len() + entry.link.len();
            if entries > limits.entries || name_bytes > MEMBER_NAME_BYTES {
                return Err(ImageError::too_big("the number of members of the archive", limits.entries));
            }
            if entry.offset.checked_add(entry.size).is_none_or(|end| end > length) {
                return Err(ImageError::Tar("truncated".into()));
            }
            let Some(name) = normal(&String::from_utf8_lossy(&entry.path), "") else { continue };
            let link = String::from_utf8_lossy(&entry.link);
            let member = match entry.kind {
                Kind::File => Member::Data { offset: entry.offset, size: entry.size },
                Kind::Symlink => {
                    match normal(&link, name.rsplit_once('/').map_or("", |(folder, _)| folder)) {
                        Some(target) => Member::Link(target),
                        None => continue,
                    }
                }
                Kind::Hardlink => match normal(&link, "") {
                    Some(target) => Member::Link(target),
                    None => continue,
                },
                _ => continue,
            };
            // Of two members with one name a reader could take either: that is an attack, not an image.
            if members.insert(name.clone(), member).is_some() {
                return Err(ImageError::Tar(format!("two members are named {name:?}")));
            }
        }
        Ok(Source::Tar { file, members })
    }

    /// The bytes called `name`; `None` when there are none.
    pub(crate) fn open_blob(&self, name: &str) -> Result<Option<Range>, ImageError> {
        match self {
            Source::Folder(folder) => {
                let path = folder.join(name);
                match std::fs::metadata(&path) {
                    Ok(kind) if kind.is_file() => {}
                    _ => return Ok(None),
                }
                let file = File::open(&path).map_err(ImageError::io("open", &path))?;
                let end = (&file).seek(SeekFrom::End(0)).map_err(ImageError::io("read", &path))?;
                Ok(Some(Range { file, at: 0, end }))
            }
            Source::Blobs(files) => {
                let Some(file) = files.get(name) else { return Ok(None) };
                let read = || ImageError::io("read", Path::new(name));
                let end = file.metadata().map_err(read())?.len();
                Ok(Some(Range { file: file.try_clone().map_err(read())?, at: 0, end }))
            }
            Source::Tar { file, members } => {
                let mut name = name;
                for _ in 0..=MEMBER_LINKS {
                    match members.get(name) {
                        None => return Ok(None),
                        Some(Member::Link(target)) => name = target,
                        Some(Member::Data { offset, size }) => {
                            let file = file.try_clone().map_err(ImageError::io("read", Path::new(name)))?;
                            return Ok(Some(Range { file, at: *offset, end: offset + size }));
                        }
                    }
                }
                Err(ImageError::Tar(format!("too many links at {name:?}")))
            }
        }
    }

    /// A whole small blob.
    pub(crate) fn document(&self, name: &str, limits: &Limits) -> Result<Option<Vec<u8>>, ImageError> {
        let Some(range) = self.open_blob(name)? else { return Ok(None) };
        if range.end - range.at > limits.document_bytes {
            return Err(ImageError::too_big(name, format!("{} bytes", limits.document_bytes)));
        }
        let mut bytes = Vec::new();
        range
            .take(limits.document_bytes)
            .read_to_end(&mut bytes)
            .map_err(ImageError::io("read", Path::new(name)))?;
        Ok(Some(bytes))
    }

    /// A whole small blob by its digest, in the layout of OCI images; checked.
    pub(crate) fn checked(&self, digest: &Digest, limits: &Limits) -> Result<Option<Vec<u8>>, ImageError> {
        let Some(bytes) = self.document(&blob_name(digest), limits)? else { return Ok(None) };
        let found = Digest::of(&bytes);
        if found != *digest {
            let what = blob_name(digest);
            return Err(ImageError::Digest { what, wanted: digest.to_string(), found: found.to_string() });
        }
        Ok(Some(bytes))
    }
}

/// Where an OCI layout keeps a blob.
pub(crate) fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// `name`, seen from `folder`, without `.` and `..`; `None` when it leaves the archive or is its root.
pub(crate) fn normal(name: &str, folder: &str) -> Option<String> {
    let mut parts: Vec<&str> = folder.split('/').filter(|p| !p.is_empty()).collect();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

/// By the first bytes: media types lie, and docker-archives have none.
fn compression(magic: &[u8]) -> Compression {
    match magic {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        _ => Compression::None,
    }
}

/// The plain bytes of a stream that may be compressed.
pub(crate) fn decompressed<'a>(mut reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = Vec::with_capacity(4);
    reader.by_ref().take(4).read_to_end(&mut magic)?;
    let kind = compression(&magic);
    let whole = io::Cursor::new(magic).chain(reader);
    Ok(match kind {
        Compression::None => Box::new(whole),
        Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        Compression::Zstd => Box::new(Zstd::Between(Some(BufReader::new(whole)))),
    })
}

/// All frames of a zstd stream, one behind the other.
enum Zstd<R: Read> {
    Between(Option<BufReader<R>>),
    Frame(Box<ruzstd::decoding::StreamingDecoder<BufReader<R>, ruzstd::decoding::FrameDecoder>>),
}

impl<R: Read> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use std::io::BufRead;
        loop {
            match self {
                Zstd::Between(reader) => {
                    let Some(mut reader) = reader.take() else { return Ok(0) };
                    if reader.fill_buf()?.is_empty() {
                        return Ok(0);
                    }
                    let decoder = ruzstd::decoding::StreamingDecoder::new(reader)
                        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("zstd: {e}")))?;
                    *self = Zstd::Frame(Box::new(decoder));
                }
                Zstd::Frame(decoder) => match decoder.read(buffer)? {
                    0 if !buffer.is_empty() => {
                        let Zstd::Frame(decoder) = std::mem::replace(self, Zstd::Between(None)) else {
                            return Ok(0);
                        };
                        *self = Zstd::Between(Some(decoder.into_inner()));
                    }
                    n => return Ok(n),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside() {
        assert_eq!(normal("./a//b", ""), Some("a/b".into()));
        assert_eq!(normal("../x/layer.tar", "y"), Some("x/layer.tar".into()));
        assert_eq!(normal("../../etc/passwd", "y"), None);
        assert_eq!(normal("/", ""), None);
    }

    #[test]
    fn compressed_streams_of_several_parts() {
        use std::io::Write;
        let gzip = |text: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(text).unwrap();
            encoder.finish().unwrap()
        };
        let zstd = |text: &[u8]| {
            ruzstd::encoding::compress_to_vec(text, ruzstd::encoding::CompressionLevel::Fastest)
        };
        let twice = |one: Vec<u8>, two: Vec<u8>| [one, two].concat();
        for bytes in
            [twice(gzip(b"abc"), gzip(b"def")), twice(zstd(b"abc"), zstd(b"def")), b"abcdef".to_vec()]
        {
            let mut plain = String::new();
            decompressed(&bytes[..]).unwrap().read_to_string(&mut plain).unwrap();
            assert_eq!(plain, "abcdef");
        }
    }
}
