//! The registry's content as its callers use it.
