//! Unstructured patterns: `word "a phrase" -without`, `?either ?or`, `%regex%`.

use super::PatternError;
use super::lex::Cursor;
use super::value::regex;
use regex::Regex;

#[derive(Clone, Debug)]
enum Term {
    Text(String),
    Regex(Regex),
}

impl Term {
    fn is_in(&self, message: &str) -> bool {
        match self {
            Term::Text(text) => message.contains(text.as_str()),
            Term::Regex(regex) => regex.is_match(message),
        }
    }
}

/// Terms by their part.
#[derive(Clone, Debug, Default)]
pub(super) struct Terms {
    all: Vec<Term>,
    any: Vec<Term>,
    none: Vec<Term>,
}

pub(super) fn parse(text: &str) -> Result<Terms, PatternError> {
    let mut cursor = Cursor(text);
    let mut terms = Terms::default();
    while !cursor.is_empty() {
        let list = match (cursor.take("?"), cursor.0.starts_with('-')) {
            (true, _) => &mut terms.any,
            (false, true) => {
                cursor.0 = &cursor.0[1..];
                &mut terms.none
            }
            (false, false) => &mut terms.all,
        };
        list.push(if cursor.0.starts_with('"') {
            Term::Text(cursor.quoted()?)
        } else if cursor.take("%") {
            let text = cursor.until(&['%']);
            if !cursor.take("%") {
                return Err(PatternError);
            }
            Term::Regex(regex(text)?)
        } else {
            match cursor.until(&[' ', '\t', '\n']) {
                "" => return Err(PatternError),
                word => Term::Text(word.into()),
            }
        });
    }
    Ok(terms)
}

impl Terms {
    /// `?` terms count only where they stand alone, as CloudWatch says.
    pub(super) fn matches(&self, message: &str) -> bool {
        let is_in = |term: &Term| term.is_in(message);
        let alone = self.all.is_empty() && self.none.is_empty();
        self.all.iter().all(is_in)
            && !self.none.iter().any(is_in)
            && (!alone || self.any.is_empty() || self.any.iter().any(is_in))
    }
}
