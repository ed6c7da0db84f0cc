//! A cursor over a pattern's text.

use super::PatternError;
use super::value::{OPERATORS, Operator, Wanted, regex};

/// What is left to read.
pub(super) struct Cursor<'a>(pub(super) &'a str);

impl<'a> Cursor<'a> {
    pub(super) fn skip_space(&mut self) {
        self.0 = self.0.trim_start();
    }

    /// Takes `text` when it comes next.
    pub(super) fn take(&mut self, text: &str) -> bool {
        self.skip_space();
        match self.0.strip_prefix(text) {
            Some(rest) => {
                self.0 = rest;
                true
            }
            None => false,
        }
    }

    /// Takes a word of letters, whatever their case, when it comes next.
    pub(super) fn take_word(&mut self, word: &str) -> bool {
        self.skip_space();
        let found = self.0.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word))
            && !self.0[word.len()..].starts_with(|c: char| c.is_alphanumeric());
        if found {
            self.0 = &self.0[word.len()..];
        }
        found
    }

    /// Takes everything up to a character of `stops`; may be empty.
    pub(super) fn until(&mut self, stops: &[char]) -> &'a str {
        let end = self.0.find(stops).unwrap_or(self.0.len());
        let (taken, rest) = self.0.split_at(end);
        self.0 = rest;
        taken
    }

    pub(super) fn is_empty(&mut self) -> bool {
        self.skip_space();
        self.0.is_empty()
    }

    /// A text in double quotes, whose opening one comes next.
    pub(super) fn quoted(&mut self) -> Result<String, PatternError> {
        if !self.take("\"") {
            return Err(PatternError);
        }
        let mut text = String::new();
        let mut characters = self.0.char_indices();
        while let Some((at, c)) = characters.next() {
            match c {
                '"' => {
                    self.0 = &self.0[at + 1..];
                    return Ok(text);
                }
                '\\' => text.push(characters.next().ok_or(PatternError)?.1),
                _ => text.push(c),
            }
        }
        Err(PatternError)
    }

    pub(super) fn operator(&mut self) -> Option<Operator> {
        OPERATORS.iter().find(|(text, _)| self.take(text)).map(|(_, operator)| *operator)
    }

    /// The right-hand side of an operator.
    pub(super) fn wanted(&mut self, stops: &[char]) -> Result<Wanted, PatternError> {
        self.skip_space();
        if self.0.starts_with('"') {
            return Ok(Wanted::Text(self.quoted()?));
        }
        if self.take("%") {
            let text = self.until(&['%']);
            return if self.take("%") { Ok(Wanted::Regex(regex(text)?)) } else { Err(PatternError) };
        }
        match self.until(stops) {
            "" => Err(PatternError),
            text => Ok(Wanted::bare(text)),
        }
    }
}
