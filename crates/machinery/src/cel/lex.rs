//! From text to tokens.

use super::Issue;

/// Longer expressions than this nobody writes (upstream's limit in code points).
const TEXT_MAX: usize = 100_000;

/// A token and where it begins, in characters.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    pub at: u32,
    pub what: What,
}

/// What a token is.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    Ident(String),
    /// `` `a-b` ``
    Quoted(String),
    /// Without sign: one above `i64::MAX` is fine behind a minus.
    Int(u64),
    Uint(u64),
    Double(f64),
    String(String),
    Bytes(Vec<u8>),
    Sign(&'static str),
    End,
}

/// Longest first.
const SIGNS: [&str; 26] = [
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "!", "+", "-", "*", "/", "%", "?", ":", ".", ",", "(", ")",
    "[", "]", "{", "}", "=", ";",
];

struct Lexer<'a> {
    text: &'a [char],
    at: usize,
}

/// All tokens, with an `End` behind them.
pub fn tokens(text: &str) -> Result<Vec<Token>, Issue> {
    let chars: Vec<char> = text.chars().collect();
    if chars.len() > TEXT_MAX {
        let message =
            format!("expression code point size exceeds limit: size: {}, limit {TEXT_MAX}", chars.len());
        return Err(Issue { at: 0, message });
    }
    let mut lexer = Lexer { text: &chars, at: 0 };
    let mut all = Vec::new();
    loop {
        lexer.skip_space();
        let at = lexer.at as u32;
        let what = lexer.token()?;
        let end = what == What::End;
        all.push(Token { at, what });
        if end {
            return Ok(all);
        }
    }
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> char {
        self.text.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn starts(&self, with: &str) -> bool {
        with.chars().enumerate().all(|(i, c)| self.peek(i) == c)
    }

    fn issue<T>(&self, message: impl Into<String>) -> Result<T, Issue> {
        Err(Issue { at: self.at as u32, message: format!("Syntax error: {}", message.into()) })
    }

    fn skip_space(&mut self) {
        loop {
            if self.at < self.text.len() && self.peek(0).is_whitespace() {
                self.at += 1;
            } else if self.starts("//") {
                while self.at < self.text.len() && self.peek(0) != '\n' {
                    self.at += 1;
                }
            } else {
                return;
            }
        }
    }

    fn take_while(&mut self, of: impl Fn(char) -> bool) -> String {
        let from = self.at;
        while self.at < self.text.len() && of(self.peek(0)) {
            self.at += 1;
        }
        self.text[from..self.at].iter().collect()
    }

    fn token(&mut self) -> Result<What, Issue> {
        if self.at >= self.text.len() {
            return Ok(What::End);
        }
        let first = self.peek(0);
        if first.is_ascii_digit() || (first == '.' && self.peek(1).is_ascii_digit()) {
            return self.number();
        }
        if let Some((raw, bytes, length)) = self.string_prefix() {
            self.at += length;
            return self.string(raw, bytes);
        }
        if first.is_ascii_alphabetic() || first == '_' {
            return Ok(What::Ident(self.take_while(|c| c.is_ascii_alphanumeric() || c == '_')));
        }
        if first == '`' {
            self.at += 1;
            let name = self.take_while(|c| c.is_ascii_alphanumeric() || "_.-/ ".contains(c));
            if self.peek(0) != '`' {
                return self.issue("token recognition error at: '`'");
            }
            self.at += 1;
            return Ok(What::Quoted(name));
        }
        match SIGNS.iter().find(|s| self.starts(s)) {
            Some(sign) => {
                self.at += sign.len();
                Ok(What::Sign(sign))
            }
            None => self.issue(format!("token recognition error at: '{first}'")),
        }
    }

    fn number(&mut self) -> Result<What, Issue> {
        let bad = |l: &Self| l.issue("invalid int literal");
        if self.starts("0x") || self.starts("0X") {
            self.at += 2;
            let digits = self.take_while(|c| c.is_ascii_hexdigit());
            let Ok(n) = u64::from_str_radix(&digits, 16) else { return bad(self) };
            return Ok(self.whole(n));
        }
        let mut text = self.take_while(|c| c.is_ascii_digit());
        let mut double = false;
        if self.peek(0) == '.' && self.peek(1).is_ascii_digit() {
            double = true;
            self.at += 1;
            text = format!("{text}.{}", self.take_while(|c| c.is_ascii_digit()));
        }
        let signed = usize::from(matches!(self.peek(1), '+' | '-'));
        if matches!(self.peek(0), 'e' | 'E') && self.peek(1 + signed).is_ascii_digit() {
            double = true;
            let sign = if self.peek(1) == '-' { "-" } else { "" };
            self.at += 1 + signed;
            text = format!("{text}e{sign}{}", self.take_while(|c| c.is_ascii_digit()));
        }
        if double {
            return Ok(What::Double(text.parse().unwrap_or(f64::INFINITY)));
        }
        match text.parse() {
            Ok(n) => Ok(self.whole(n)),
            Err(_) => bad(self),
        }
    }

    fn whole(&mut self, n: u64) -> What {
        if matches!(self.peek(0), 'u' | 'U') {
            self.at += 1;
            return What::Uint(n);
        }
        What::Int(n)
    }

    /// Raw?, bytes?, length of the prefix; `None` when no string begins here.
    fn string_prefix(&self) -> Option<(bool, bool, usize)> {
        let (mut raw, mut bytes, mut length) = (false, false, 0);
        loop {
            match self.peek(length) {
                '"' | '\'' => return Some((raw, bytes, length)),
                'r' | 'R' if !raw => raw = true,
                'b' | 'B' if !bytes => bytes = true,
                _ => return None,
            }
            length += 1;
        }
    }

    fn string(&mut self, raw: bool, bytes: bool) -> Result<What, Issue> {
        let quote = self.peek(0);
        let triple: String = std::iter::repeat_n(quote, 3).collect();
        let end = if self.starts(&triple) { triple } else { quote.to_string() };
        self.at += end.len();
        let (mut text, mut raw_bytes) = (String::new(), Vec::new());
        let mut put = |c: char, text: &mut String, as_byte: bool| {
            text.push(c);
            match u8::try_from(u32::from(c)) {
                Ok(byte) if as_byte => raw_bytes.push(byte),
                _ => raw_bytes.extend(c.to_string().as_bytes()),
            }
        };
        loop {
            if self.starts(&end) {
                self.at += end.len();
                break;
            }
            let c = self.peek(0);
            if self.at >= self.text.len() || (end.len() == 1 && matches!(c, '\n' | '\r')) {
                return self.issue(format!("token recognition error at: '{quote}{text}'"));
            }
            self.at += 1;
            if c != '\\' || raw {
                put(c, &mut text, false);
                continue;
            }
            let (c, as_byte) = self.escape(bytes)?;
            put(c, &mut text, as_byte);
        }
        Ok(if bytes { What::Bytes(raw_bytes) } else { What::String(text) })
    }

    /// What follows a backslash; true when it stands for one byte.
    fn escape(&mut self, bytes: bool) -> Result<(char, bool), Issue> {
        let c = self.peek(0);
        self.at += 1;
        let plain = match c {
            'a' => '\u{7}',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\u{b}',
            '\\' | '?' | '"' | '\'' | '`' => c,
            'x' | 'X' => return self.code(2, 16).map(|c| (c, bytes)),
            'u' => return self.code(4, 16).map(|c| (c, false)),
            'U' => return self.code(8, 16).map(|c| (c, false)),
            '0'..='3' => {
                self.at -= 1;
                return self.code(3, 8).map(|c| (c, bytes));
            }
            _ => return self.issue("unable to unescape string"),
        };
        Ok((plain, false))
    }

    fn code(&mut self, digits: usize, radix: u32) -> Result<char, Issue> {
        let text: String = (0..digits).map(|i| self.peek(i)).collect();
        let code = u32::from_str_radix(&text, radix).ok().and_then(char::from_u32);
        let Some(c) = code else { return self.issue("unable to unescape string") };
        self.at += digits;
        Ok(c)
    }
}
