//! Image references as Docker and Kubernetes read them: `nginx:1.7.9` is `docker.io/library/nginx:1.7.9`.
//!
//! Pure. Grammar: the distribution project's reference grammar; errors in the kubelet's words.
//! Deliberately not here: short-name search lists, mirrors.

use crate::digest::is_hex64;
use std::fmt;

/// Longest repository name, domain included.
const NAME_MAX: usize = 255;
/// Longest tag.
const TAG_MAX: usize = 128;
/// The registry that names without one mean.
const DEFAULT_DOMAIN: &str = "docker.io";

/// A text that is not an image reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("couldn't parse image name \"{name}\": {why}")]
pub struct ReferenceError {
    /// The text.
    pub name: String,
    /// `invalid reference format` and its variants.
    pub why: String,
}

/// A checked, normalised image reference. With neither tag nor digest given, the tag is `latest`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// Registry, with its port when it has one.
    pub domain: String,
    /// Repository path in the registry.
    pub path: String,
    /// Tag; `None` only when there is a digest.
    pub tag: Option<String>,
    /// `sha256:…` of the manifest; decides over the tag.
    pub digest: Option<String>,
}

impl Reference {
    /// Reads and normalises `text`.
    pub fn parse(text: &str) -> Result<Reference, ReferenceError> {
        let fail = |why: String| ReferenceError { name: text.into(), why };
        let invalid = || fail("invalid reference format".into());
        if is_hex64(text) {
            return Err(fail(format!(
                "invalid repository name ({text}), cannot specify 64-byte hexadecimal strings"
            )));
        }
        let (domain, rest) = split_domain(text);
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (rest, None),
        };
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            let why = format!("invalid reference format: repository name ({path}) must be lowercase");
            return Err(fail(why));
        }
        let path = match domain {
            DEFAULT_DOMAIN if !path.contains('/') => format!("library/{path}"),
            _ => path.to_string(),
        };
        let good = is_domain(domain)
            && path.split('/').all(is_component)
            && tag.is_none_or(is_tag)
            && digest.is_none_or(is_digest);
        if !good {
            return Err(invalid());
        }
        if domain.len() + 1 + path.len() > NAME_MAX {
            return Err(fail(format!("repository name must not be more than {NAME_MAX} characters")));
        }
        let tag = match (tag, digest) {
            (None, None) => Some("latest".to_string()),
            (tag, _) => tag.map(str::to_string),
        };
        Ok(Reference { domain: domain.into(), path, tag, digest: digest.map(str::to_string) })
    }

    /// Domain and path: what names a repository.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// The first component is a domain when it could not be anything else.
fn split_domain(text: &str) -> (&str, &str) {
    match text.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (if first == "index.docker.io" { DEFAULT_DOMAIN } else { first }, rest)
        }
        _ => (DEFAULT_DOMAIN, text),
    }
}

fn is_domain(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let port_good = port.is_none_or(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()));
    let host_good = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(v6) => !v6.is_empty() && v6.bytes().all(|b| b.is_ascii_hexdigit() || b == b':'),
        None => host.split('.').all(|label| {
            let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
            !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
        }),
    };
    port_good && host_good
}

/// May a repository of a registry have this name?
pub fn is_repository(text: &str) -> bool {
    text.len() <= NAME_MAX && text.split('/').all(is_component)
}

/// Lower-case letters and digits, joined by `.`, `_`, `__` or any number of `-`.
fn is_component(text: &str) -> bool {
    let word = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let Some((first, last)) = bytes.first().zip(bytes.last()) else { return false };
    word(first)
        && word(last)
        && bytes
            .split(word)
            .all(|gap| matches!(gap, b"" | b"." | b"_" | b"__") || gap.iter().all(|b| *b == b'-'))
}

/// Is this a tag?
pub fn is_tag(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    !text.is_empty() && text.len() <= TAG_MAX && text.bytes().all(inner) && !text.starts_with(['.', '-'])
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(is_hex64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn canonical(text: &str) -> String {
        Reference::parse(text).map_or_else(|e| e.to_string(), |r| r.to_string())
    }

    #[test]
    fn normalises_as_docker_does() {
        let hex = "a".repeat(64);
        for (text, wanted) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.7.9", "docker.io/library/nginx:1.7.9"),
            ("user/app:v1", "docker.io/user/app:v1"),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/team/x:1", "localhost:5000/team/x:1"),
            ("registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.9"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
            ("a__b/c--d_e.f", "docker.io/a__b/c--d_e.f:latest"),
            ("Reg.io/x", "Reg.io/x:latest"),
        ] {
            assert_eq!(canonical(text), wanted, "{text}");
        }
        let by_digest = format!("nginx@sha256:{hex}");
        assert_eq!(canonical(&by_digest), format!("docker.io/library/{by_digest}"));
        let both = format!("r.io/x:1@sha256:{hex}");
        assert_eq!(canonical(&both), both);
    }

    #[test]
    fn refuses_in_the_kubelets_words() {
        for text in [
            "",
            ":",
            "a:",
            "a b",
            "a//b",
            "/a",
            "a/",
            "-a",
            "a..b",
            "a___b",
            "x@sha256:12",
            "a:b:c",
            "a.io:x/y",
        ] {
            let wanted = format!("couldn't parse image name \"{text}\": invalid reference format");
            assert_eq!(canonical(text), wanted);
        }
        assert!(canonical("nGinx").ends_with("repository name (nGinx) must be lowercase"));
        assert!(canonical(&"a".repeat(300)).ends_with("must not be more than 255 characters"));
        assert!(canonical(&"a".repeat(64)).ends_with("cannot specify 64-byte hexadecimal strings"));
        assert!(canonical(&format!("a:{}", "b".repeat(129))).ends_with("invalid reference format"));
    }

    proptest! {
        #[test]
        fn canonical_form_is_a_fixed_point(text in "[a-zA-Z0-9._:/@-]{0,40}") {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(Reference::parse(&reference.to_string()), Ok(reference));
            }
        }
    }
}
