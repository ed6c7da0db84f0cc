//! What a request's path means: Kubernetes' RequestInfo.
//!
//! Pure text: whether the resource exists is decided later.

/// A request to a resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourcePath {
    /// "" is core.
    pub group: String,
    /// `v1`.
    pub version: String,
    /// Plural.
    pub resource: String,
    /// "" when none.
    pub namespace: String,
    /// "" for the collection.
    pub name: String,
    /// "" when none.
    pub subresource: String,
    /// What follows the subresource, with its leading slash (proxies).
    pub rest: String,
    /// The old `/watch/` form.
    pub watch: bool,
}

/// A parsed path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Path {
    /// About resources.
    Resource(ResourcePath),
    /// Anything else.
    Other(String),
}

/// Parses a path that is already split from its query (still percent-encoded).
pub fn parse(path: &str) -> Path {
    resource_path(path).map_or_else(|| Path::Other(path.to_string()), Path::Resource)
}

fn resource_path(path: &str) -> Option<ResourcePath> {
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let (group, version, mut rest) = match segments.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return None,
    };
    let trailing = rest.iter().rposition(|s| !s.is_empty()).map_or(0, |i| i + 1);
    let watch = rest.first() == Some(&"watch") && trailing > 1;
    if watch {
        rest = &rest[1..];
    }
    let trailing = trailing - usize::from(watch);
    if trailing == 0 || version.is_empty() || rest.first().is_some_and(|r| r.is_empty()) {
        return None;
    }
    let mut out =
        ResourcePath { group: decode(group), version: decode(version), watch, ..Default::default() };
    let parts: &[&str] = match rest {
        // `namespaces/x/status` and `/finalize` are subresources of the namespace itself.
        ["namespaces", namespace, what, tail @ ..]
            if trailing > 2 && !is_namespace_subresource(what, tail) =>
        {
            out.namespace = decode(namespace);
            &rest[2..]
        }
        ["namespaces", namespace, ..] => {
            out.namespace = decode(namespace);
            rest
        }
        _ => rest,
    };
    let mut parts = parts.iter();
    out.resource = decode(parts.next()?);
    out.name = parts.next().map(|s| decode(s)).unwrap_or_default();
    out.subresource = parts.next().map(|s| decode(s)).unwrap_or_default();
    let rest: Vec<&str> = parts.copied().collect();
    if !rest.is_empty() {
        out.rest = format!("/{}", rest.join("/"));
    }
    Some(out)
}

fn is_namespace_subresource(what: &str, tail: &[&str]) -> bool {
    matches!(what, "status" | "finalize") && tail.iter().all(|s| s.is_empty())
}

/// Percent-decoding; broken escapes stay as they are, broken UTF-8 is replaced.
pub fn decode(text: &str) -> String {
    if !text.contains('%') {
        return text.to_string();
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while let Some(&byte) = bytes.get(i) {
        let hex = bytes.get(i + 1..i + 3).and_then(|h| std::str::from_utf8(h).ok());
        match hex.filter(|_| byte == b'%').and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(decoded) => {
                out.push(decoded);
                i += 3;
            }
            None => {
                out.push(byte);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The parameters of a query string, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Parses a query string.
    pub fn parse(text: &str) -> Query {
        let pairs = text.split('&').filter(|p| !p.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(&key.replace('+', " ")), decode(&value.replace('+', " ")))
        });
        Query(pairs.collect())
    }

    /// The first value of a parameter; "" when absent.
    pub fn get(&self, key: &str) -> &str {
        self.find(key).unwrap_or_default()
    }

    /// The first value of a parameter.
    pub fn find(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// Every value of a parameter.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// All parameters.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// A flag as Go reads one: present and neither "false" nor "0".
    pub fn flag(&self, key: &str) -> bool {
        self.find(key).is_some_and(|v| !matches!(v, "false" | "0" | "False" | "FALSE" | "f" | "F"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// group/version resource namespace name subresource rest, as one line.
    fn show(path: &str) -> String {
        match parse(path) {
            Path::Other(path) => format!("other {path}"),
            Path::Resource(r) => format!(
                "{}{}/{} {} ns={} name={} sub={} rest={}",
                if r.watch { "watch " } else { "" },
                r.group,
                r.version,
                r.resource,
                r.namespace,
                r.name,
                r.subresource,
                r.rest
            ),
        }
    }

    #[test]
    fn paths() {
        for (path, want) in [
            ("/api/v1/pods", "/v1 pods ns= name= sub= rest="),
            ("/api/v1/namespaces/d/pods", "/v1 pods ns=d name= sub= rest="),
            ("/api/v1/namespaces/d/pods/", "/v1 pods ns=d name= sub= rest="),
            ("/api/v1/namespaces/d/pods/a/log", "/v1 pods ns=d name=a sub=log rest="),
            ("/api/v1/namespaces", "/v1 namespaces ns= name= sub= rest="),
            ("/api/v1/namespaces/d", "/v1 namespaces ns=d name=d sub= rest="),
            ("/api/v1/namespaces/d/status", "/v1 namespaces ns=d name=d sub=status rest="),
            ("/api/v1/namespaces/d/finalize", "/v1 namespaces ns=d name=d sub=finalize rest="),
            (
                "/apis/apps/v1/namespaces/d/deployments/x/scale",
                "apps/v1 deployments ns=d name=x sub=scale rest=",
            ),
            ("/api/v1/watch/pods", "watch /v1 pods ns= name= sub= rest="),
            ("/api/v1/watch/namespaces/d/pods/a", "watch /v1 pods ns=d name=a sub= rest="),
            ("/api/v1/nodes/n/proxy/metrics/x", "/v1 nodes ns= name=n sub=proxy rest=/metrics/x"),
            ("/api/v1/nodes/a%2Fb", "/v1 nodes ns= name=a/b sub= rest="),
            ("/api/v1", "other /api/v1"),
            ("/apis/apps/v1/", "other /apis/apps/v1/"),
            ("/healthz", "other /healthz"),
            ("", "other "),
            ("/api", "other /api"),
        ] {
            assert_eq!(show(path), want, "{path}");
        }
    }

    #[test]
    fn queries() {
        let query = Query::parse("labelSelector=a%3Db&command=ls&command=-l&watch=1&x&pretty=false&s=a+b");
        assert_eq!(query.get("labelSelector"), "a=b");
        assert_eq!(query.all("command").collect::<Vec<_>>(), ["ls", "-l"]);
        assert!(query.flag("watch") && query.flag("x") && !query.flag("pretty") && !query.flag("no"));
        assert_eq!(query.get("s"), "a b");
        assert_eq!(decode("%zz%4"), "%zz%4");
    }

    proptest::proptest! {
        #[test]
        fn never_panics(path in "[/a-z%.]{0,40}") {
            let _ = parse(&path);
            let _ = Query::parse(&path);
        }
    }
}
