//! (soon)
pub fn measure() {}
