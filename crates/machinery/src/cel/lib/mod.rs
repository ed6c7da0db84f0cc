//! The libraries: rows of functions, a file each.

pub mod authz;
pub mod core;
pub mod formats;
mod lists;
mod math;
pub mod net;
mod numbers;
mod optional;
mod printf;
mod quantity;
pub mod semver;
mod strings;
pub mod time;
pub mod url;

use super::table::Row;

/// All rows.
pub static ROWS: &[&[Row]] = &[
    numbers::ROWS,
    core::ROWS,
    time::ROWS,
    strings::ROWS,
    lists::ROWS,
    math::ROWS,
    optional::ROWS,
    url::ROWS,
    net::ROWS,
    quantity::ROWS,
    semver::ROWS,
    formats::ROWS,
    authz::ROWS,
];
