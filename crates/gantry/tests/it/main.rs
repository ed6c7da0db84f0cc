//! End-to-end tests: real kubectl and clients against a whole instance, each in a network namespace of its own.

mod api;
mod crash;
mod samples;

use testkit::cluster::Cluster;

/// A fresh instance.
fn cluster() -> Cluster {
    Cluster::start(env!("CARGO_BIN_EXE_gantry"), &[]).expect("an instance starts")
}
