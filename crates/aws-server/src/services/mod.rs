//! One module a service: its shared state, its operation table, and a file a family of operations.
