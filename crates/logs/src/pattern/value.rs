//! Comparing a text or number with what a pattern names: wildcards, numbers, regular expressions.

use super::PatternError;
use regex::{Regex, RegexBuilder};

/// Compiled size of a regular expression, so that no pattern takes much memory.
const REGEX_BYTES_MAX: usize = 64 << 10;

/// How to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

/// Spellings, longer ones first.
pub(super) const OPERATORS: [(&str, Operator); 7] = [
    ("!=", Operator::NotEqual),
    ("<=", Operator::LessEqual),
    (">=", Operator::GreaterEqual),
    ("==", Operator::Equal),
    ("=", Operator::Equal),
    ("<", Operator::Less),
    (">", Operator::Greater),
];

/// The right-hand side.
#[derive(Clone, Debug)]
pub(super) enum Wanted {
    Text(String),
    Number(f64, String),
    Regex(Regex),
}

/// A regular expression between per cent signs.
pub(super) fn regex(text: &str) -> Result<Regex, PatternError> {
    RegexBuilder::new(text).size_limit(REGEX_BYTES_MAX).build().map_err(|_| PatternError)
}

impl Wanted {
    pub(super) fn bare(text: &str) -> Wanted {
        match text.parse::<f64>() {
            Ok(number) if number.is_finite() => Wanted::Number(number, text.into()),
            _ => Wanted::Text(text.into()),
        }
    }

    /// Does `text` (as a number, where it is one) stand in that relation?
    pub(super) fn compare(&self, operator: Operator, text: &str) -> bool {
        let equal = match self {
            Wanted::Text(wanted) => glob(wanted, text),
            Wanted::Regex(regex) => regex.is_match(text),
            Wanted::Number(wanted, written) => match text.parse::<f64>() {
                Ok(number) => return ordered(operator, number, *wanted),
                Err(_) => written == text,
            },
        };
        match operator {
            Operator::Equal => equal,
            Operator::NotEqual => !equal,
            _ => false,
        }
    }
}

fn ordered(operator: Operator, a: f64, b: f64) -> bool {
    match operator {
        Operator::Equal => a == b,
        Operator::NotEqual => a != b,
        Operator::Less => a < b,
        Operator::LessEqual => a <= b,
        Operator::Greater => a > b,
        Operator::GreaterEqual => a >= b,
    }
}

/// `*` stands for any text.
pub(super) fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::glob;

    #[test]
    fn globs() {
        for (pattern, text, expected) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "ab", true),
            ("*b", "ab", true),
            ("*a*", "xax", true),
            ("a*a", "a", false),
            ("a*b*c", "a1b2c", true),
            ("a*b*c", "a1c2b", false),
            ("*", "", true),
        ] {
            assert_eq!(glob(pattern, text), expected, "{pattern} {text}");
        }
    }
}
