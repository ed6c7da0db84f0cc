//! Tests of the whole decision: a dumb twin on random clusters, recorded transcripts.

mod chance;
mod transcript;
mod twin;
