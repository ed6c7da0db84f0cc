//! `/v2/<name>/blobs/<digest>`: reading (whole or one range), deleting.

use crate::reply::{self, ApiError, DIGEST, Reply, set};
use bytes::Bytes;
use futures_util::stream::unfold;
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use image::{Depot, Digest};
use rustix::buffer::spare_capacity;
use rustix::io::pread;
use std::fs::File;
use std::io;
use std::sync::Arc;
use tokio::task::JoinHandle;

/// Read at once: large enough to amortise the hand-over to another thread. A client costs two of them in memory.
const PIECE_BYTES: u64 = 1 << 20;

pub(crate) async fn get(
    depot: Depot,
    name: String,
    digest: Digest,
    request: Request<Incoming>,
) -> Result<Reply, ApiError> {
    let wanted = digest.clone();
    let stored = crate::blocking(move || Ok(depot.blob(&name, &wanted)?)).await?;
    let head = request.method() == Method::HEAD;
    let range = request.headers().get(RANGE).filter(|_| !head).and_then(|r| r.to_str().ok());
    let (status, (from, to)) = match range.map(|range| wanted_range(range, stored.size)) {
        None | Some(Wanted::All) => (StatusCode::OK, (0, stored.size)),
        Some(Wanted::Part(from, to)) => (StatusCode::PARTIAL_CONTENT, (from, to)),
        Some(Wanted::Nothing) => {
            let mut reply = reply::empty(StatusCode::RANGE_NOT_SATISFIABLE);
            set(&mut reply, CONTENT_RANGE, &format!("bytes */{}", stored.size));
            return Ok(reply);
        }
    };
    let body = if head { reply::bytes("") } else { stream(stored.file, from, to) };
    let mut reply = reply::with_body(status, body);
    set(&mut reply, CONTENT_LENGTH, &(to - from).to_string());
    set(&mut reply, CONTENT_TYPE, "application/octet-stream");
    set(&mut reply, ACCEPT_RANGES, "bytes");
    set(&mut reply, DIGEST, digest.as_str());
    set(&mut reply, http::header::ETAG, &format!("\"{digest}\""));
    if status == StatusCode::PARTIAL_CONTENT {
        set(&mut reply, CONTENT_RANGE, &format!("bytes {from}-{}/{}", to - 1, stored.size));
    }
    Ok(reply)
}

#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    All,
    /// From, and one past the last.
    Part(u64, u64),
    Nothing,
}

/// One range of bytes (RFC 9110); what is malformed or a list is ignored, as the RFC allows.
fn wanted_range(header: &str, size: u64) -> Wanted {
    let Some((first, last)) = header.strip_prefix("bytes=").and_then(|r| r.split_once('-')) else {
        return Wanted::All;
    };
    let (from, to) = match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(from), Ok(last)) if last >= from => (from, last.saturating_add(1).min(size)),
        (Ok(from), Err(_)) if last.trim().is_empty() => (from, size),
        (Err(_), Ok(length)) if first.trim().is_empty() => (size.saturating_sub(length), size),
        _ => return Wanted::All,
    };
    if from < to { Wanted::Part(from, to) } else { Wanted::Nothing }
}

/// A file's bytes, each piece read while the one before is sent.
fn stream(file: File, from: u64, to: u64) -> reply::Body {
    let file = Arc::new(file);
    let first = read_piece(file.clone(), from, to);
    let pieces = unfold((file, from, first), move |(file, at, piece)| async move {
        let piece: JoinHandle<io::Result<Bytes>> = piece?;
        let piece = match piece.await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) => return Some((Err(error), (file, to, None))),
            Err(_) => return Some((Err(io::Error::other("cancelled")), (file, to, None))),
        };
        let at = at + piece.len() as u64;
        let next = read_piece(file.clone(), at, to);
        Some((Ok(Frame::data(piece)), (file, at, next)))
    });
    StreamBody::new(pieces).boxed()
}

fn read_piece(file: Arc<File>, at: u64, to: u64) -> Option<JoinHandle<io::Result<Bytes>>> {
    let length = usize::try_from((to - at).min(PIECE_BYTES)).ok().filter(|n| *n > 0)?;
    Some(tokio::task::spawn_blocking(move || {
        // Never zeroed first: that would cost a third of the whole.
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            let from = at + bytes.len() as u64;
            if pread(&*file, spare_capacity(&mut bytes), from)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        bytes.truncate(length);
        Ok(bytes.into())
    }))
}

pub(crate) fn delete(depot: &Depot, name: &str, digest: &Digest) -> Result<Reply, ApiError> {
    depot.remove_blob(name, digest)?;
    Ok(reply::empty(StatusCode::ACCEPTED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let of = |header: &str| wanted_range(header, 10);
        assert_eq!(of("bytes=0-3"), Wanted::Part(0, 4));
        assert_eq!(of("bytes=4-"), Wanted::Part(4, 10));
        assert_eq!(of("bytes=-3"), Wanted::Part(7, 10));
        assert_eq!(of("bytes=-30"), Wanted::Part(0, 10));
        assert_eq!(of("bytes=9-99999999999"), Wanted::Part(9, 10));
        assert_eq!(of("bytes=10-"), Wanted::Nothing);
        assert_eq!(of("bytes=-0"), Wanted::Nothing);
        for ignored in [
            "bytes=3-1",
            "bytes=a-b",
            "bytes=0-1,3-4",
            "lines=0-1",
            "bytes=-",
            "bytes=0-18446744073709551616",
        ] {
            assert_eq!(of(ignored), Wanted::All, "{ignored}");
        }
        assert_eq!(wanted_range("bytes=0-", 0), Wanted::Nothing);
    }
}
