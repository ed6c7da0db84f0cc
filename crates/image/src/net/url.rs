//! Addresses of documents: `http` and `https` only. Pure.

use http::Uri;

/// An absolute URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Url {
    pub(crate) tls: bool,
    /// Without the brackets of an IPv6 address.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Path and query, beginning with a slash.
    pub(crate) path: String,
}

impl Url {
    /// `http[s]://host[:port][/path]`; `None` for anything else.
    pub(crate) fn parse(text: &str) -> Option<Url> {
        let uri: Uri = text.split('#').next()?.parse().ok()?;
        let tls = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let authority = uri.authority()?;
        let host = uri.host()?.trim_start_matches('[').trim_end_matches(']');
        // User information in a URL is how one host passes for another.
        if host.is_empty() || authority.as_str().contains('@') {
            return None;
        }
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        Some(Url { tls, host: host.to_ascii_lowercase(), port, path: path.into() })
    }

    /// Where a `Location` header leads from here.
    pub(crate) fn join(&self, location: &str) -> Option<Url> {
        if location.contains("://") {
            return Url::parse(location);
        }
        let path = match location.strip_prefix('/') {
            Some(rest) if rest.starts_with('/') => {
                let scheme = if self.tls { "https:" } else { "http:" };
                return Url::parse(&format!("{scheme}{location}"));
            }
            Some(_) => location.to_string(),
            None => {
                let folder = self.path.split('?').next().unwrap_or_default();
                let folder = folder.rsplit_once('/').map_or("", |(folder, _)| folder);
                format!("{folder}/{location}")
            }
        };
        Some(Url { path, ..self.clone() })
    }

    /// The same server and protocol?
    pub(crate) fn same_origin(&self, other: &Url) -> bool {
        (self.tls, &self.host, self.port) == (other.tls, &other.host, other.port)
    }

    /// What goes into a `Host` header.
    pub(crate) fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let usual = if self.tls { 443 } else { 80 };
        if self.port == usual { host } else { format!("{host}:{}", self.port) }
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}{}", if self.tls { "https" } else { "http" }, self.authority(), self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_joins() {
        let url = Url::parse("https://R.io/v2/a?x=1").unwrap();
        assert_eq!(url.to_string(), "https://r.io/v2/a?x=1");
        assert_eq!(Url::parse("http://[::1]:5000").unwrap().to_string(), "http://[::1]:5000/");
        for bad in ["ftp://x/", "r.io/v2", "https://", "https://good@evil.io/", "file:///etc/passwd"] {
            assert_eq!(Url::parse(bad), None, "{bad}");
        }
        let joined = |location: &str| url.join(location).unwrap().to_string();
        assert_eq!(joined("/b"), "https://r.io/b");
        assert_eq!(joined("b"), "https://r.io/v2/b");
        assert_eq!(joined("//s3.io/b"), "https://s3.io/b");
        assert_eq!(joined("http://s3.io/b"), "http://s3.io/b");
        assert!(!url.same_origin(&url.join("http://r.io/b").unwrap()));
    }
}
