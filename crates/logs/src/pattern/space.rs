//! `[ip, user, ..., status = 4* && status != 404, bytes > 1000]`: a message as fields between spaces.
//!
//! A text in quotation marks or brackets is one field, without them.

use super::PatternError;
use super::lex::Cursor;
use super::value::{Operator, Wanted};

const NAME_STOPS: [char; 10] = [' ', '\t', ',', '=', '!', '<', '>', '&', '|', ')'];
const VALUE_STOPS: [char; 5] = [' ', '\t', ',', '&', '|'];

/// Alternatives of tests that must all hold; none: any text.
type Field = Vec<Vec<(Operator, Wanted)>>;

/// The fields before and after an ellipsis.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    before: Vec<Field>,
    after: Option<Vec<Field>>,
}

pub(super) fn parse(text: &str) -> Result<Layout, PatternError> {
    let mut cursor = Cursor(text);
    let mut layout = Layout { before: Vec::new(), after: None };
    loop {
        if cursor.take("...") {
            if layout.after.replace(Vec::new()).is_some() {
                return Err(PatternError);
            }
        } else {
            let field = field(&mut cursor)?;
            layout.after.as_mut().unwrap_or(&mut layout.before).push(field);
        }
        if cursor.is_empty() {
            return Ok(layout);
        }
        if !cursor.take(",") {
            return Err(PatternError);
        }
    }
}

fn field(cursor: &mut Cursor) -> Result<Field, PatternError> {
    let mut alternatives: Field = vec![Vec::new()];
    loop {
        cursor.skip_space();
        // The name is for people; every test in a field is about that field.
        cursor.until(&NAME_STOPS);
        let operator = cursor.operator();
        match operator {
            Some(operator) => {
                let wanted = cursor.wanted(&VALUE_STOPS)?;
                alternatives.last_mut().expect("there is always one").push((operator, wanted));
            }
            None if alternatives.len() == 1 && alternatives[0].is_empty() => return Ok(Vec::new()),
            None => return Err(PatternError),
        }
        if cursor.take("||") {
            alternatives.push(Vec::new());
        } else if !cursor.take("&&") {
            return Ok(alternatives);
        }
    }
}

fn split(message: &str) -> Vec<&str> {
    let mut fields = Vec::new();
    let mut rest = message.trim_start();
    while let Some(first) = rest.chars().next() {
        let closing = match first {
            '"' => Some('"'),
            '[' => Some(']'),
            _ => None,
        };
        let closed = closing.and_then(|c| rest[1..].find(c));
        let (field, next) = match closed {
            Some(end) => (&rest[1..=end], &rest[end + 2..]),
            None => rest.split_at(rest.find(char::is_whitespace).unwrap_or(rest.len())),
        };
        fields.push(field);
        rest = next.trim_start();
    }
    fields
}

fn holds(field: &Field, text: &str) -> bool {
    let test = |(operator, wanted): &(Operator, Wanted)| wanted.compare(*operator, text);
    field.is_empty() || field.iter().any(|tests| tests.iter().all(test))
}

impl Layout {
    pub(super) fn matches(&self, message: &str) -> bool {
        let fields = split(message);
        let after = self.after.as_deref().unwrap_or_default();
        let needed = self.before.len() + after.len();
        let fits = if self.after.is_some() { fields.len() >= needed } else { fields.len() == needed };
        let hold = |wanted: &[Field], texts: &[&str]| wanted.iter().zip(texts).all(|(f, t)| holds(f, t));
        fits && hold(&self.before, &fields) && hold(after, &fields[fields.len() - after.len()..])
    }
}
