//! A verified request, and the bucket and key that it means: in the path, or the bucket in the host's name. Pure.

use auth::sigv4::unescape;
use bytes::Bytes;

/// A request.
#[derive(Clone, Debug)]
pub struct Ask {
    /// `PUT`.
    pub method: String,
    /// As sent, without query.
    pub path: String,
    /// Without `?`.
    pub query: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// Without chunks, not unpacked.
    pub body: Bytes,
    /// The caller's.
    pub account: String,
    /// Of the credential scope.
    pub region: String,
    /// Milliseconds since 1970.
    pub now_ms: u64,
}

/// What a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// The account's buckets.
    Service,
    /// One.
    Bucket(String),
    /// An object of one.
    Object(String, String),
}

/// Query parameters that are no operation of their own.
const PLAIN: &str = "continuation-token delimiter encoding-type fetch-owner list-type location marker \
    max-buckets max-keys prefix start-after";
/// Headers that ask for what is not done here.
const REFUSED: &str = "x-amz-copy-source-range x-amz-server-side-encryption-customer-algorithm \
    x-amz-object-lock-mode x-amz-website-redirect-location";

impl Ask {
    /// A header's value.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.query.split('&').filter(|p| !p.is_empty()).map(|p| p.split_once('=').unwrap_or((p, "")))
    }

    /// A query parameter's value, decoded.
    pub(super) fn query(&self, name: &str) -> Option<String> {
        self.pairs().find(|(n, _)| *n == name).map(|(_, v)| unescape(v))
    }

    /// Is there such a query parameter?
    pub(super) fn has(&self, name: &str) -> bool {
        self.pairs().any(|(n, _)| n == name)
    }

    /// Does it ask for more than the operations that are here?
    pub(super) fn asks_more(&self, target: &Target) -> bool {
        let listing = matches!(target, Target::Service | Target::Bucket(_));
        let fine = |name: &str| {
            name == "x-id"
                || name.to_ascii_lowercase().starts_with("x-amz-")
                || (listing && PLAIN.split(' ').any(|plain| plain == name))
                || (!listing && name.starts_with("response-"))
        };
        self.pairs().any(|(name, _)| !fine(name))
            || REFUSED.split(' ').any(|name| self.header(name).is_some())
    }

    /// The bucket that the host's name begins with: `b.s3.amazonaws.com`, `b.localhost`, `b.<any name>` of one that
    /// is there (or is being made, which says nothing of it in the path).
    fn host_bucket(&self, is_there: impl Fn(&str) -> bool) -> Option<String> {
        let host = self.header("host").unwrap_or_default();
        let host = host.rsplit_once(':').map_or(host, |(name, _)| name).to_ascii_lowercase();
        if host.parse::<std::net::IpAddr>().is_ok() || host.starts_with('[') {
            return None;
        }
        let cut = [".s3.", ".s3-"]
            .iter()
            .find_map(|at| host.find(at))
            .or_else(|| host.strip_suffix(".localhost").map(str::len));
        if let Some(cut) = cut {
            return Some(host[..cut].to_string());
        }
        let dots = host.match_indices('.').map(|(at, _)| &host[..at]);
        let known = dots.clone().find(|name| is_there(name)).map(str::to_string);
        let made =
            || (self.method == "PUT" && self.path == "/").then(|| dots.clone().next().map(str::to_string));
        known.or_else(|| made().flatten())
    }

    pub(super) fn target(&self, is_there: impl Fn(&str) -> bool) -> Target {
        let path = unescape(self.path.strip_prefix('/').unwrap_or(&self.path));
        let (bucket, key) = match self.host_bucket(is_there) {
            Some(bucket) => (bucket, path),
            None => match path.split_once('/') {
                Some((bucket, key)) => (bucket.to_string(), key.to_string()),
                None => (path, String::new()),
            },
        };
        match (bucket.is_empty(), key.is_empty()) {
            (true, _) => Target::Service,
            (false, true) => Target::Bucket(bucket),
            (false, false) => Target::Object(bucket, key),
        }
    }
}
