//! Bytes from a network to a file: hashed, bounded, written off the async threads while the next ones come.

use crate::digest::{Digest, Hasher};
use crate::error::ImageError;
use crate::fs::free_bytes;
use crate::limits::SPACE_CHECK_BYTES;
use bytes::Bytes;
use std::fs::File;
use std::io::{Seek, Write};
use std::ops::DerefMut;
use std::path::Path;

/// So much is written at once: fewer hand-overs to other threads, and the memory that one transfer costs (twice).
const BATCH_BYTES: usize = 1 << 20;

/// A file in the making. Invariant: hash, offset and file agree as long as no append failed.
pub struct Writing {
    file: File,
    hash: Hasher,
    offset: u64,
    unchecked: u64,
    limit_bytes: u64,
    floor_bytes: u64,
    failed: bool,
}

impl Writing {
    pub(crate) fn new(file: File, limit_bytes: u64, floor_bytes: u64) -> Writing {
        let (hash, unchecked) = (Hasher::default(), SPACE_CHECK_BYTES);
        Writing { file, hash, offset: 0, unchecked, limit_bytes, floor_bytes, failed: false }
    }

    /// Bytes so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The digest so far.
    pub(crate) fn digest(&self) -> Digest {
        self.hash.digest()
    }

    pub(crate) fn failed(&self) -> bool {
        self.failed
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn into_file(self) -> File {
        self.file
    }

    /// Forgets what was written.
    pub(crate) fn restart(&mut self) -> Result<(), ImageError> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.rewind());
        emptied.map_err(ImageError::io("empty", Path::new("a download")))?;
        (self.hash, self.offset) = (Hasher::default(), 0);
        Ok(())
    }

    /// Appends. After an error the file is of no use any more.
    ///
    /// # Errors
    /// The disk (or too little room on it), or more bytes than allowed.
    pub fn append(&mut self, pieces: &[Bytes]) -> Result<(), ImageError> {
        let appended = self.try_append(pieces);
        self.failed |= appended.is_err();
        appended
    }

    fn try_append(&mut self, pieces: &[Bytes]) -> Result<(), ImageError> {
        let error = || ImageError::io("write", Path::new("a blob"));
        if self.failed {
            return Err(ImageError::document("blob", "an earlier write failed"));
        }
        for piece in pieces {
            let n = piece.len() as u64;
            if self.offset + n > self.limit_bytes {
                return Err(ImageError::too_big("a blob", format!("{} bytes", self.limit_bytes)));
            }
            self.unchecked += n;
            if self.unchecked > SPACE_CHECK_BYTES {
                self.unchecked = 0;
                if free_bytes(&self.file).map_err(error())? < self.floor_bytes + SPACE_CHECK_BYTES {
                    return Err(ImageError::NoSpace { floor_bytes: self.floor_bytes });
                }
            }
            self.file.write_all(piece).map_err(error())?;
            self.hash.update(piece);
            self.offset += n;
        }
        Ok(())
    }
}

/// Where bytes come from.
pub trait Pieces: Send {
    /// Why no more come.
    type Error: Send;
    /// The next bytes; `None` at the end.
    fn next(&mut self) -> impl Future<Output = Result<Option<Bytes>, Self::Error>> + Send;
}

/// Why a transfer ended early.
#[derive(Debug)]
pub enum PumpError<E> {
    /// The network. All that came before is written.
    Input(E),
    /// The disk, or a limit.
    Disk(ImageError),
}

/// Writes all pieces. The file comes back, unless its thread died. Cancel safe: a write under way ends by itself.
pub async fn pump<G, P>(writing: G, pieces: &mut P) -> (Option<G>, Result<(), PumpError<P::Error>>)
where
    G: DerefMut<Target = Writing> + Send + 'static,
    P: Pieces,
{
    let mut idle = Some(writing);
    let mut busy: Option<tokio::task::JoinHandle<(G, Result<(), ImageError>)>> = None;
    let mut end = None;
    while end.is_none() || busy.is_some() {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while end.is_none() && bytes < BATCH_BYTES {
            match pieces.next().await {
                Ok(Some(piece)) => {
                    bytes += piece.len();
                    batch.push(piece);
                }
                Ok(None) => end = Some(Ok(())),
                Err(error) => end = Some(Err(PumpError::Input(error))),
            }
        }
        if let Some(task) = busy.take() {
            match task.await {
                Ok((writing, Ok(()))) => idle = Some(writing),
                Ok((writing, Err(error))) => return (Some(writing), Err(PumpError::Disk(error))),
                Err(_) => return (None, Err(PumpError::Disk(ImageError::Cancelled))),
            }
        }
        if let Some(mut writing) = idle.take_if(|_| !batch.is_empty()) {
            busy = Some(tokio::task::spawn_blocking(move || {
                let written = writing.append(&batch);
                (writing, written)
            }));
        }
    }
    (idle, end.unwrap_or(Ok(())))
}
