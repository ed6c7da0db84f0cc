//! Request bodies: read with a limit, and out of gzip.

use crate::service::AwsError;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use std::io::Read;
use std::time::Duration;

/// A signed request's body, as sent: an image layer's part in base64 is the largest thing that comes.
pub const SIGNED_MAX: usize = 32 << 20;
/// An unsigned one's: web-identity tokens are a few kilobytes.
pub const UNSIGNED_MAX: usize = 64 << 10;
/// A compressed body, unpacked.
const UNPACKED_MAX: u64 = 32 << 20;
/// For all of a body to come.
const TIME_MAX: Duration = Duration::from_secs(120);

/// All of a body.
///
/// # Errors
/// It is too long, too slow, or cut off.
pub async fn read(body: Incoming, max: usize) -> Result<Bytes, AwsError> {
    let read = tokio::time::timeout(TIME_MAX, Limited::new(body, max).collect()).await;
    match read {
        Err(_) => Err(AwsError {
            status: 408,
            ..AwsError::client("RequestTimeout", "The body did not come in time")
        }),
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let text = format!("Request body is larger than {max} bytes");
            Err(AwsError { status: 413, ..AwsError::client("RequestEntityTooLargeException", text) })
        }
        Ok(Err(_)) => Err(AwsError::client("IncompleteBody", "The body was cut off")),
    }
}

/// The body out of its `Content-Encoding`.
///
/// # Errors
/// It is not gzip, or too long inside.
pub fn unpacked(body: Bytes, encoding: &str) -> Result<Bytes, AwsError> {
    let mut names =
        encoding.split(',').map(str::trim).filter(|e| !matches!(*e, "" | "identity" | "aws-chunked"));
    match (names.next(), names.next()) {
        (None, _) => Ok(body),
        (Some("gzip"), None) => {
            let mut out = Vec::new();
            let read = flate2::read::GzDecoder::new(&body[..]).take(UNPACKED_MAX + 1).read_to_end(&mut out);
            match read {
                Ok(length) if length as u64 <= UNPACKED_MAX => Ok(out.into()),
                Ok(_) => {
                    let text = "The unpacked body is too large";
                    Err(AwsError { status: 413, ..AwsError::client("RequestEntityTooLargeException", text) })
                }
                Err(_) => Err(AwsError::client("SerializationException", "The body is not gzip")),
            }
        }
        _ => Err(AwsError::client(
            "UnsupportedMediaTypeException",
            format!("Content-Encoding {encoding} is not known"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn gzip_is_unpacked_within_limits() {
        let pack = |bytes: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            encoder.write_all(bytes).unwrap();
            Bytes::from(encoder.finish().unwrap())
        };
        assert_eq!(unpacked(pack(b"hello"), "gzip").unwrap(), "hello");
        assert_eq!(unpacked(Bytes::from_static(b"x"), "aws-chunked").unwrap(), "x");
        assert_eq!(unpacked(pack(&vec![0; UNPACKED_MAX as usize + 1]), "gzip").unwrap_err().status, 413);
        assert_eq!(unpacked(Bytes::from_static(b"x"), "gzip").unwrap_err().code, "SerializationException");
        assert_eq!(
            unpacked(Bytes::from_static(b"x"), "br").unwrap_err().code,
            "UnsupportedMediaTypeException"
        );
    }
}
