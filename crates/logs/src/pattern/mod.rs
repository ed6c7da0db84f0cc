//! CloudWatch Logs' filter patterns: terms, JSON conditions, space-delimited fields. Pure.
//!
//! A pattern is parsed once and asked about many messages. Depth and size are bounded.

mod json;
mod lex;
mod space;
mod terms;
mod value;

use json::Condition;
use space::Layout;
use terms::Terms;

/// Longest pattern (CloudWatch's).
pub const PATTERN_MAX: usize = 1_024;
/// Deepest nesting of parentheses.
const DEPTH_MAX: usize = 32;

/// The text is no filter pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Invalid filter pattern")]
pub struct PatternError;

#[derive(Clone, Debug)]
enum Kind {
    All,
    Terms(Terms),
    Json(Condition),
    Fields(Layout),
}

/// A parsed pattern.
#[derive(Clone, Debug)]
pub struct Pattern(Kind);

impl Pattern {
    /// Reads a pattern; an empty one takes everything.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Pattern, PatternError> {
        if text.len() > PATTERN_MAX {
            return Err(PatternError);
        }
        let text = text.trim();
        Ok(Pattern(match text.as_bytes() {
            [] => Kind::All,
            [b'{', .., b'}'] => Kind::Json(json::parse(&text[1..text.len() - 1])?),
            [b'[', .., b']'] => Kind::Fields(space::parse(&text[1..text.len() - 1])?),
            [b'{' | b'[', ..] => return Err(PatternError),
            _ => Kind::Terms(terms::parse(text)?),
        }))
    }

    /// Does the message match?
    pub fn matches(&self, message: &str) -> bool {
        match &self.0 {
            Kind::All => true,
            Kind::Terms(terms) => terms.matches(message),
            Kind::Json(condition) => condition.matches(message),
            Kind::Fields(layout) => layout.matches(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(pattern: &str, yes: &[&str], no: &[&str]) {
        let parsed = Pattern::parse(pattern).unwrap_or_else(|_| panic!("{pattern}"));
        for message in yes {
            assert!(parsed.matches(message), "{pattern} should match {message}");
        }
        for message in no {
            assert!(!parsed.matches(message), "{pattern} should not match {message}");
        }
    }

    #[test]
    fn terms() {
        check("", &["", "x"], &[]);
        check("ERROR", &["an ERROR", "[ERROR]"], &["error", ""]);
        check("ERROR ARGUMENTS", &["ERROR bad ARGUMENTS"], &["ERROR", "ARGUMENTS"]);
        check("\"two words\"", &["here two words"], &["two  words"]);
        check(r#""say \"hi\"""#, &[r#"they say "hi""#], &["say hi"]);
        check("?ERROR ?WARN", &["ERROR", "WARN x"], &["INFO"]);
        check("ERROR -Exiting", &["ERROR"], &["ERROR Exiting", "x"]);
        check("-x", &["a"], &["x"]);
        check("%ERR[0-9]+%", &["xERR12"], &["ERR"]);
    }

    #[test]
    fn json_conditions() {
        let login = r#"{"eventType":"UpdateTrail","n":12.5,"ok":true,"none":null,"list":[{"id":7},"x"],
            "user":{"name":"alice-dev","a.b":1},"code":"404"}"#;
        let yes = [
            r#"{ $.eventType = "UpdateTrail" }"#,
            "{ $.eventType = Update* }",
            r#"{ $.eventType != "Other" }"#,
            "{ $.n > 12 && $.n <= 1.25e1 }",
            "{ $.n = 12.5 || $.x = 1 }",
            "{ $.ok IS TRUE }",
            "{ $.none IS NULL }",
            "{ $.nope NOT EXISTS }",
            "{ $.list[0].id = 7 }",
            "{ $.list[*] = \"x\" }",
            "{ $.user.name = \"*-dev\" }",
            "{ $.user.['a.b'] = 1 }",
            "{ ($.n = 1 || $.n = 12.5) && ($.ok IS TRUE) }",
            "{ $.code = 404 }",
            "{ $.eventType = %^Up.*l$% }",
            "{ $.eventType = \"UpdateTrail\" && ($.n = 1 || ($.n > 3 && $.code = 4*)) }",
        ];
        let no = [
            r#"{ $.eventType = "updatetrail" }"#,
            "{ $.n > 12.5 }",
            "{ $.ok IS FALSE }",
            "{ $.nope IS NULL }",
            "{ $.nope != 3 }",
            "{ $.ok NOT EXISTS }",
            "{ $.list[5].id = 7 }",
        ];
        for pattern in yes {
            check(pattern, &[login], &["no json", "[]"]);
        }
        for pattern in no {
            check(pattern, &[], &[login]);
        }
    }

    #[test]
    fn space_delimited() {
        let line = r#"127.0.0.1 Prod frank [10/Oct/2000:13:25:15 -0700] "GET /index.html HTTP/1.0" 404 1534"#;
        let yes = [
            "[ip, user, username, timestamp, request, status_code, bytes]",
            "[ip, user, username, timestamp, request, status_code=4*, bytes]",
            "[ip, user, username, timestamp, request=\"*html*\", status_code=404, bytes > 1000]",
            "[..., status_code = 404 || status_code = 410, bytes]",
            "[ip != 10.*, ..., bytes]",
            "[..., bytes >= 1534 && bytes < 1535]",
        ];
        for pattern in yes {
            check(pattern, &[line], &["a"]);
        }
        check("[w1=ERROR || w1=%WARN%, w2]", &["ERROR x", "WARNING y"], &["INFO x", "ERROR", "ERROR a b"]);
        check("[ip, user, ..., bytes < 1534]", &[], &[line]);
    }

    #[test]
    fn no_patterns() {
        let deep = format!("{{ {}$.a = 1{} }}", "(".repeat(100), ")".repeat(100));
        for text in [
            "{",
            "{ }",
            "{ $.a }",
            "{ $.a = }",
            "{ x = 1 }",
            "{ $.a = 1 && }",
            "[a, ..., b, ...]",
            "[a=]",
            "\"open",
            "{ $.a = 1 ) }",
            "%[%",
            &deep,
            &"x".repeat(1_025),
        ] {
            assert!(Pattern::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in r#"[\{\[]?[ $.a-c\[\]\(\)"'=<>!&|*%?0-9,-]{0,40}[\}\]]?"#, message: String) {
            if let Ok(pattern) = Pattern::parse(&text) {
                pattern.matches(&message);
                pattern.matches(r#"{"a":[1,{"b":"c"}]}"#);
            }
        }
    }
}
