//! Small things every crate may use and that know no domain word.
//!
//! Invariants: nothing here does I/O; nothing here has a single user (then it belongs to that user).
//! Deliberately not here: error types, collections, anything about Kubernetes, AWS or Linux.

pub mod backoff;
mod newtype;

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
