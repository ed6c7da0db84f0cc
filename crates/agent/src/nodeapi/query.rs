//! Query strings, decoded. Pure.

/// The pairs of a query string, in order.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(text: &str) -> Query {
        let pair = |pair: &str| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        };
        Query(text.split('&').filter(|pair| !pair.is_empty()).map(pair).collect())
    }

    /// The first value of `key`.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.all(key).next()
    }

    /// All values of `key`.
    pub(super) fn all<'a>(&'a self, key: &str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// Is a switch on? The kubelet's own calls say `1`, the API's options say `true`.
    pub(super) fn is_on(&self, keys: &[&str]) -> bool {
        keys.iter()
            .filter_map(|key| self.get(key))
            .any(|value| matches!(value, "1" | "true" | "t" | "True" | "TRUE"))
    }
}

/// Percent and plus decoding; what is no escape stays as it is, what is no UTF-8 is replaced.
pub(super) fn decode(text: &str) -> String {
    let hex = |byte: Option<&u8>| byte.and_then(|b| char::from(*b).to_digit(16));
    let (bytes, mut out, mut at) = (text.as_bytes(), Vec::with_capacity(text.len()), 0);
    while let Some(byte) = bytes.get(at) {
        at += 1;
        match (byte, hex(bytes.get(at)), hex(bytes.get(at + 1))) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 2;
            }
            (b'+', _, _) => out.push(b' '),
            _ => out.push(*byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes() {
        let query = Query::parse("command=sh&command=-c&command=echo+%22%E2%82%AC%22&tty=1&x&y=%zz%4");
        assert_eq!(query.all("command").collect::<Vec<_>>(), ["sh", "-c", "echo \"€\""]);
        assert!(query.is_on(&["tty"]) && !query.is_on(&["x"]) && !query.is_on(&["none"]));
        assert_eq!(query.get("y"), Some("%zz%4"));
        assert!(Query::parse("").get("").is_none());
    }
}
