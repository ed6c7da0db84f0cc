//! Log groups, streams and events on disk: append-only segments that survive kill -9.
