//! Log groups, streams and events on disk: append-only segments that survive kill -9.
//!
//! Pure: [`record`], [`index`], [`scan`], [`batch`], [`pattern`]. I/O: [`store`] and what it is made of.
//! Invariants: an acknowledged put is on disk; a torn tail is cut at the next open; reading a page needs memory for the
//! page and one chunk, however many events there are. Deliberately not here: names of accounts, retention in days,
//! anything of HTTP (`aws-server`).

pub mod batch;
mod committer;
pub mod index;
pub mod pattern;
pub mod record;
pub mod scan;
pub mod store;
mod stream;

pub use pattern::{Pattern, PatternError};
pub use record::Event;
pub use scan::{Found, Page, Position};
pub use store::{Appended, Limits, LogsError, Read, Store, StreamInfo};
