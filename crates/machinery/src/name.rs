//! Name rules: DNS labels and subdomains, qualified names, label values, ports, keys; upstream's words.
//!
//! Each check returns every complaint (empty: fine). Pure; byte-wise, no regular expressions.
//! Deliberately not here: which kind uses which rule (`kinds`).

const LABEL_MAX: usize = 63;
const SUBDOMAIN_MAX: usize = 253;
const PORT_NAME_MAX: usize = 15;

const LABEL_1123: (&str, &str) = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
    "[a-z0-9]([-a-z0-9]*[a-z0-9])?",
);
const SUBDOMAIN_1123: (&str, &str) = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
    r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*",
);
const LABEL_1035: (&str, &str) = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character",
    "[a-z]([-a-z0-9]*[a-z0-9])?",
);
const WILDCARD: (&str, &str) = (
    "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
    r"\*\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*",
);
const QUALIFIED: (&str, &str) = (
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
    "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]",
);
const LABEL_VALUE: (&str, &str) = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
    "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?",
);
const CONFIG_KEY: (&str, &str) =
    ("a valid config key must consist of alphanumeric characters, '-', '_' or '.'", "[-._a-zA-Z0-9]+");
const HTTP_HEADER: (&str, &str) =
    ("a valid HTTP header must consist of alphanumeric characters or '-'", "[-A-Za-z0-9]+");

/// `msg (e.g. 'a',  or 'b', regex used for validation is '…')`: upstream's odd punctuation included.
fn regex_words((msg, regex): (&str, &str), examples: &[&str]) -> String {
    let mut text = format!("{msg} (e.g. ");
    for (i, example) in examples.iter().enumerate() {
        text += if i > 0 { " or " } else { "" };
        text += &format!("'{example}', ");
    }
    text + &format!("regex used for validation is '{regex}')")
}

/// `must be no more than N bytes`.
pub fn max_len_words(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

/// `must be between A and B, inclusive`.
pub fn range_words(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

fn lower_alnum(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

/// Non-empty, `inner` everywhere, `edge` at both ends.
fn shaped(text: &str, edge: fn(u8) -> bool, inner: fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(&first), Some(&last)) => edge(first) && edge(last) && bytes.iter().all(|&b| inner(b)),
        _ => false,
    }
}

fn is_label(text: &str) -> bool {
    shaped(text, lower_alnum, |b| lower_alnum(b) || b == b'-')
}

fn is_subdomain(text: &str) -> bool {
    text.split('.').all(is_label)
}

fn is_qualified_part(text: &str) -> bool {
    shaped(text, |b| b.is_ascii_alphanumeric(), |b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn checked(text: &str, max: usize, ok: bool, words: impl FnOnce() -> String) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > max {
        errors.push(max_len_words(max));
    }
    if !ok {
        errors.push(words());
    }
    errors
}

/// RFC 1123 label.
pub fn dns1123_label(text: &str) -> Vec<String> {
    checked(text, LABEL_MAX, is_label(text), || regex_words(LABEL_1123, &["my-name", "123-abc"]))
}

/// RFC 1123 subdomain.
pub fn dns1123_subdomain(text: &str) -> Vec<String> {
    checked(text, SUBDOMAIN_MAX, is_subdomain(text), || regex_words(SUBDOMAIN_1123, &["example.com"]))
}

/// RFC 1035 label.
pub fn dns1035_label(text: &str) -> Vec<String> {
    let ok = is_label(text) && text.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
    checked(text, LABEL_MAX, ok, || regex_words(LABEL_1035, &["my-name", "abc-123"]))
}

/// `*.` and an RFC 1123 subdomain.
pub fn wildcard_dns1123_subdomain(text: &str) -> Vec<String> {
    let ok = text.strip_prefix("*.").is_some_and(is_subdomain);
    checked(text, SUBDOMAIN_MAX, ok, || regex_words(WILDCARD, &["*.example.com"]))
}

/// A path segment (RBAC names, node-specific kinds): anything but `.`, `..`, `/`, `%`.
pub fn path_segment(text: &str) -> Vec<String> {
    if text == "." || text == ".." {
        return vec![format!("may not be '{text}'")];
    }
    let bad = ["/", "%"].iter().filter(|c| text.contains(**c));
    bad.map(|c| format!("may not contain '{c}'")).collect()
}

/// A label key, annotation key, finalizer: `[prefix/]name`.
pub fn qualified_name(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    let parts: Vec<&str> = text.split('/').collect();
    let name = match parts[..] {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".to_string());
            } else {
                errors.extend(dns1123_subdomain(prefix).into_iter().map(|e| format!("prefix part {e}")));
            }
            name
        }
        _ => {
            let words = regex_words(QUALIFIED, &["MyName", "my.name", "123-abc"]);
            return vec![format!(
                "a qualified name {words} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".into());
    } else if name.len() > LABEL_MAX {
        errors.push(format!("name part {}", max_len_words(LABEL_MAX)));
    }
    if !is_qualified_part(name) {
        errors.push(format!("name part {}", regex_words(QUALIFIED, &["MyName", "my.name", "123-abc"])));
    }
    errors
}

/// A label value.
pub fn label_value(text: &str) -> Vec<String> {
    let ok = text.is_empty() || is_qualified_part(text);
    checked(text, LABEL_MAX, ok, || regex_words(LABEL_VALUE, &["MyValue", "my_value", "12345"]))
}

/// A key of a ConfigMap or Secret: a plain file name.
pub fn config_key(text: &str) -> Vec<String> {
    let ok = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    let mut errors =
        checked(text, SUBDOMAIN_MAX, ok, || regex_words(CONFIG_KEY, &["key.name", "KEY_NAME", "key-name"]));
    match text {
        "." | ".." => errors.push(format!("must not be '{text}'")),
        _ if text.starts_with("..") => errors.push("must not start with '..'".into()),
        _ => {}
    }
    errors
}

/// An environment variable name (printable ASCII but `=`).
pub fn env_var_name(text: &str) -> Vec<String> {
    if text.is_empty() {
        return vec!["environment variable name must be non-empty".into()];
    }
    if text.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
        return Vec::new();
    }
    vec![
        "a valid environment variable name must consist only of printable ASCII characters other than '='"
            .into(),
    ]
}

/// An HTTP header name.
pub fn http_header_name(text: &str) -> Vec<String> {
    let ok = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if ok { Vec::new() } else { vec![regex_words(HTTP_HEADER, &["X-Header-Name"])] }
}

/// A port number.
pub fn port_number(port: i64) -> Vec<String> {
    if (1..=65535).contains(&port) { Vec::new() } else { vec![range_words(1, 65535)] }
}

/// An IANA service name (container port names, target ports).
pub fn port_name(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > PORT_NAME_MAX {
        errors.push("must be no more than 15 characters".into());
    }
    if text.is_empty() || !text.bytes().all(|b| lower_alnum(b) || b == b'-') {
        errors.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        errors.push("must contain at least one letter (a-z)".into());
    }
    if text.contains("--") {
        errors.push("must not contain consecutive hyphens".into());
    }
    if text.starts_with('-') || text.ends_with('-') {
        errors.push("must not begin or end with a hyphen".into());
    }
    errors
}

/// An IPv4 or IPv6 address.
pub fn ip(text: &str) -> Vec<String> {
    match text.parse::<std::net::IpAddr>() {
        Ok(_) => Vec::new(),
        Err(_) => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into()],
    }
}

/// An IPv4 or IPv6 CIDR value.
pub fn cidr(text: &str) -> Vec<String> {
    let ok = text.split_once('/').is_some_and(|(addr, len)| {
        let max = match addr.parse::<std::net::IpAddr>() {
            Ok(std::net::IpAddr::V4(_)) => 32,
            Ok(std::net::IpAddr::V6(_)) => 128,
            Err(_) => return false,
        };
        len.bytes().all(|b| b.is_ascii_digit()) && len.parse::<u8>().is_ok_and(|n| n <= max)
    });
    if ok {
        Vec::new()
    } else {
        vec!["must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".into()]
    }
}

/// A percentage such as `25%`.
pub fn percent(text: &str) -> Vec<String> {
    let ok = text.strip_suffix('%').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    if ok {
        return Vec::new();
    }
    let rule = ("a valid percent string must be a numeric string followed by an ending '%'", "[0-9]+%");
    vec![regex_words(rule, &["1%", "93%"])]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_and_bad() {
        type Rule = fn(&str) -> Vec<String>;
        let rows: &[(Rule, &[&str], &[&str])] = &[
            (dns1123_label, &["a", "0-a"], &["", "A", "-a", "a-", "a.b", "a_b"]),
            (dns1123_subdomain, &["a", "a.b-c.0"], &["", ".a", "a..b", "a.", "A.b"]),
            (dns1035_label, &["a", "a-0"], &["", "0a", "a-"]),
            (qualified_name, &["a", "A_b.c", "x.io/Y"], &["", "/a", "a/", "a/b/c", "X.io/y", "a b"]),
            (label_value, &["", "a", "A_1"], &["-a", "a b", "ä"]),
            (config_key, &["a.b", "_x", ".x"], &["", ".", "..", "..a", "a/b"]),
            (port_name, &["http", "a-1"], &["", "1", "A", "a--b", "-a", "abcdefghijklmnop"]),
            (cidr, &["10.0.0.0/8", "fd00::/64"], &["", "10.0.0.0", "10.0.0.0/33", "x/8", "10.0.0.0/+8"]),
            (percent, &["1%"], &["%", "1", "a%"]),
            (env_var_name, &["A", "a b", "x.y"], &["", "a=b", "ü"]),
        ];
        for (n, (rule, good, bad)) in rows.iter().enumerate() {
            for text in *good {
                assert_eq!(rule(text), Vec::<String>::new(), "row {n} {text:?}");
            }
            for text in *bad {
                assert!(!rule(text).is_empty(), "row {n} {text:?}");
            }
        }
        assert_eq!(dns1123_label(&"a".repeat(64)), ["must be no more than 63 bytes"]);
    }

    #[test]
    fn words() {
        assert_eq!(
            dns1123_label("A"),
            [
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start \
              and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
              '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
            ]
        );
    }
}
