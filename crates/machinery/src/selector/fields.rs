//! Field selectors: `a=b,c!=d` with backslash escapes.
//!
//! Which labels a kind supports is its row's business (`kinds`): [`FieldSelector::check`] asks it.

use super::SelectorError;

/// One `field = value` or `field != value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldRequirement {
    /// The field label, such as `metadata.name`.
    pub field: String,
    /// `!=`?
    pub negated: bool,
    /// The value asked for.
    pub value: String,
}

/// All requirements must hold; none: everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    /// In the order written.
    pub requirements: Vec<FieldRequirement>,
}

impl FieldSelector {
    /// Parses the query form.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for part in split_terms(text) {
            if part.is_empty() {
                continue;
            }
            let Some((field, negated, raw)) = split_term(part) else {
                return Err(SelectorError(format!("invalid selector: '{text}'; can't understand '{part}'")));
            };
            requirements.push(FieldRequirement { field: field.into(), negated, value: unescape(raw)? });
        }
        Ok(FieldSelector { requirements })
    }

    /// Does it select everything?
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Do the values that `lookup` gives (absent: empty) satisfy all requirements?
    pub fn matches(&self, mut lookup: impl FnMut(&str) -> Option<String>) -> bool {
        self.requirements.iter().all(|r| (lookup(&r.field).unwrap_or_default() == r.value) != r.negated)
    }

    /// The value that `field` must equal, when the selector pins it.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.requirements.iter().find(|r| r.field == field && !r.negated).map(|r| r.value.as_str())
    }
}

impl std::fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let op = if r.negated { "!=" } else { "=" };
            write!(f, "{comma}{}{op}{}", r.field, escape(&r.value))?;
        }
        Ok(())
    }
}

/// Splits at commas that no backslash protects.
fn split_terms(text: &str) -> Vec<&str> {
    let (mut terms, mut start, mut escaped) = (Vec::new(), 0, false);
    for (i, b) in text.bytes().enumerate() {
        match b {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b',' => {
                terms.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    let at = term.find("!=").into_iter().chain(term.find('=')).min()?;
    let rest = &term[at..];
    let (op, negated) = match rest {
        _ if rest.starts_with("!=") => (2, true),
        _ if rest.starts_with("==") => (2, false),
        _ => (1, false),
    };
    Some((&term[..at], negated, &rest[op..]))
}

fn unescape(text: &str) -> Result<String, SelectorError> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(next @ ('\\' | ',' | '=')) => out.push(next),
                next => {
                    let tail = next.map(String::from).unwrap_or_default();
                    return Err(SelectorError(format!(
                        "invalid field selector: invalid escape sequence: \\{tail}"
                    )));
                }
            },
            ',' | '=' => {
                return Err(SelectorError(format!(
                    "invalid field selector: unescaped character in value: {c}"
                )));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parses() {
        let s = FieldSelector::parse(r"metadata.name=a\,b,status.phase!=Running,x==").unwrap();
        assert_eq!(s.exact("metadata.name"), Some("a,b"));
        assert_eq!(s.exact("status.phase"), None);
        assert_eq!(s.exact("x"), Some(""));
        assert_eq!(s.to_string(), r"metadata.name=a\,b,status.phase!=Running,x=");
        assert!(s.matches(|f| (f == "metadata.name").then(|| "a,b".into())));
        assert!(!s.matches(|f| (f == "status.phase").then(|| "Running".into())));
    }

    #[test]
    fn refuses() {
        for (text, words) in [
            ("a", "invalid selector: 'a'; can't understand 'a'"),
            (r"a=\x", r"invalid field selector: invalid escape sequence: \x"),
            ("a=b=c", "invalid field selector: unescaped character in value: ="),
            (r"a=b\", r"invalid field selector: invalid escape sequence: \"),
        ] {
            assert_eq!(FieldSelector::parse(text).unwrap_err().0, words);
        }
    }

    proptest! {
        #[test]
        fn never_panics_and_round_trips(text in ".{0,40}") {
            if let Ok(s) = FieldSelector::parse(&text) {
                prop_assert_eq!(FieldSelector::parse(&s.to_string()).unwrap(), s);
            }
        }

        #[test]
        fn values_round_trip(value in r"[a-c\\,=!]{0,8}", negated: bool) {
            let r = FieldRequirement { field: "f".into(), negated, value };
            let s = FieldSelector { requirements: vec![r] };
            prop_assert_eq!(FieldSelector::parse(&s.to_string()).unwrap(), s);
        }
    }
}
