//! Small things every crate may use and that know no domain word.
//!
//! Invariants: nothing here does I/O; nothing here has a single user (then it belongs to that user).
//! Deliberately not here: error types, collections, anything about Kubernetes, AWS or Linux.

pub mod accept;
pub mod backoff;
mod newtype;

/// A table of facts beside the code (`include_str!`): a row a line, cells between `|`, trimmed; cells that a row does
/// not have are "". Empty lines separate.
pub fn rows<const N: usize>(table: &'static str) -> impl Iterator<Item = [&'static str; N]> {
    table.lines().filter(|line| !line.is_empty()).map(|line| {
        let mut cells = line.splitn(N, '|').map(str::trim);
        std::array::from_fn(|_| cells.next().unwrap_or_default())
    })
}

/// Reports a broken invariant without stopping a server: panics in debug builds (so tests see it),
/// logs an error in release builds. Use as `if never!(x < y) { return … }`: the value is the condition.
#[macro_export]
macro_rules! never {
    ($cond:expr) => { $crate::never!($cond, "never: {}", stringify!($cond)) };
    ($cond:expr, $($fmt:tt)*) => {{
        let broken = $cond;
        if broken {
            if cfg!(debug_assertions) { panic!($($fmt)*) }
            $crate::reexport::tracing::error!($($fmt)*);
        }
        broken
    }};
}

/// Re-exports for this crate's macros.
#[doc(hidden)]
pub mod reexport {
    pub use tracing;
}

/// Percent-encodes a text: ASCII letters, digits and those in `plain` stay.
pub fn percent(text: &str, plain: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte.is_ascii_alphanumeric() || plain.contains(&byte) {
            true => out.push(char::from(byte)),
            false => out += &format!("%{byte:02X}"),
        }
    }
    out
}

/// What RFC 3986 calls unreserved, beside letters and digits: [`percent`] for a value of a query.
pub const UNRESERVED: &[u8] = b"-._~";

#[cfg(test)]
mod tests {
    #[test]
    fn all_but_the_plain_is_encoded() {
        assert_eq!(super::percent("a/ü ~", super::UNRESERVED), "a%2F%C3%BC%20~");
        assert_eq!(super::percent("a/b,~", b"/"), "a/b%2C%7E");
    }

    #[test]
    fn rows_have_their_cells() {
        let rows: Vec<[&str; 3]> = super::rows("a | b | c | d\n\nx\ny | | z\n").collect();
        assert_eq!(rows, [["a", "b", "c | d"], ["x", "", ""], ["y", "", "z"]]);
    }
}
