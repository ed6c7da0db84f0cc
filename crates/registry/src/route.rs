//! From a path to what it names. Pure. Read from the end, because a repository's name may hold any of the words.

use crate::reply::ApiError;
use http::Uri;
use image::{DepotError, Digest, ManifestRef, is_repository};

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// `/v2/`
    Base,
    /// `/v2/_catalog`
    Catalog,
    /// `/v2/<name>/tags/list`
    Tags(String),
    /// `/v2/<name>/referrers/<digest>`
    Referrers(String, Digest),
    /// `/v2/<name>/manifests/<reference>`
    Manifest(String, ManifestRef),
    /// `/v2/<name>/blobs/<digest>`
    Blob(String, Digest),
    /// `/v2/<name>/blobs/uploads/`
    Uploads(String),
    /// `/v2/<name>/blobs/uploads/<id>`
    Upload(String, String),
}

impl Route {
    pub(crate) fn parse(path: &str) -> Result<Route, ApiError> {
        let Some(rest) = path.strip_prefix("/v2").filter(|r| r.is_empty() || r.starts_with('/')) else {
            return Err(ApiError::NoSuchPath);
        };
        let rest = rest.strip_prefix('/').unwrap_or(rest);
        match rest {
            "" => return Ok(Route::Base),
            "_catalog" => return Ok(Route::Catalog),
            _ => {}
        }
        let parts: Vec<&str> = rest.split('/').collect();
        let name = |parts: &[&str]| {
            let name = parts.join("/");
            if is_repository(&name) { Ok(name) } else { Err(DepotError::NameInvalid(name)) }
        };
        let digest = |text: &str| {
            let unsupported = || DepotError::DigestInvalid(format!("unsupported digest {text:?}"));
            Digest::parse(text).ok_or_else(unsupported)
        };
        Ok(match parts.as_slice() {
            [front @ .., "blobs", "uploads", ""] | [front @ .., "blobs", "uploads"] => {
                Route::Uploads(name(front)?)
            }
            [front @ .., "blobs", "uploads", id] => Route::Upload(name(front)?, (*id).into()),
            [front @ .., "blobs", text] => Route::Blob(name(front)?, digest(text)?),
            [front @ .., "manifests", text] => Route::Manifest(name(front)?, ManifestRef::parse(text)?),
            [front @ .., "tags", "list"] => Route::Tags(name(front)?),
            [front @ .., "referrers", text] => Route::Referrers(name(front)?, digest(text)?),
            _ => return Err(ApiError::NoSuchPath),
        })
    }
}

/// The query of a request, decoded.
#[derive(Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn of(uri: &Uri) -> Query {
        let pairs = uri.query().unwrap_or_default().split('&').filter(|p| !p.is_empty());
        let pair = |pair: &str| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(name), decoded(value))
        };
        Query(pairs.map(pair).collect())
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

fn decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let [byte, after @ ..] = rest {
        let hex = after.get(..2).filter(|_| *byte == b'%').and_then(|h| std::str::from_utf8(h).ok());
        match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(value) => {
                bytes.push(value);
                rest = &after[2..];
            }
            None => {
                bytes.push(if *byte == b'+' { b' ' } else { *byte });
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths() {
        let digest = Digest::of(b"");
        let of = |path: &str| Route::parse(path).unwrap();
        assert_eq!(of("/v2/"), Route::Base);
        assert_eq!(of("/v2"), Route::Base);
        assert_eq!(of("/v2/_catalog"), Route::Catalog);
        assert_eq!(of("/v2/a/tags/list"), Route::Tags("a".into()));
        assert_eq!(of(&format!("/v2/blobs/blobs/{digest}")), Route::Blob("blobs".into(), digest.clone()));
        assert_eq!(of("/v2/a/blobs/uploads/"), Route::Uploads("a".into()));
        assert_eq!(of("/v2/uploads/blobs/uploads"), Route::Uploads("uploads".into()));
        assert_eq!(of("/v2/a/b/blobs/uploads/x"), Route::Upload("a/b".into(), "x".into()));
        assert_eq!(
            of("/v2/a/manifests/manifests"),
            Route::Manifest("a".into(), ManifestRef::Tag("manifests".into()))
        );
        assert_eq!(of(&format!("/v2/a/referrers/{digest}")), Route::Referrers("a".into(), digest));
    }

    #[test]
    fn bad_paths_have_the_specifications_codes() {
        for (path, code) in [
            ("/v2/A/tags/list", "NAME_INVALID"),
            ("/v2/a..b/tags/list", "NAME_INVALID"),
            ("/v2/../manifests/x", "NAME_INVALID"),
            ("/v2/manifests/x", "NAME_INVALID"),
            ("/v2/a/blobs/sha256:12", "DIGEST_INVALID"),
            ("/v2/a/manifests/sha512:12", "DIGEST_INVALID"),
            ("/v2/a/manifests/.x", "MANIFEST_INVALID"),
            ("/v1/a", "UNSUPPORTED"),
            ("/v2/a/other/x", "UNSUPPORTED"),
            ("/v22", "UNSUPPORTED"),
        ] {
            assert_eq!(Route::parse(path).unwrap_err().code(), code, "{path}");
        }
    }

    #[test]
    fn queries() {
        let query = Query::of(&"/x?digest=sha256%3Aaa&n=5&e&p=a%2Fb+c%zz".parse().unwrap());
        assert_eq!(query.get("digest"), Some("sha256:aa"));
        assert_eq!((query.get("n"), query.get("e"), query.get("x")), (Some("5"), Some(""), None));
        assert_eq!(query.get("p"), Some("a/b c%zz"));
    }

    proptest! {
        #[test]
        fn survives_any_path(path in "/v2/[a-z/:._%-]{0,60}") {
            let _ = Route::parse(&path);
        }
    }
}
