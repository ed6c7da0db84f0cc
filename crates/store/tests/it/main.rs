//! Integration tests of the store, in one binary.
//!
//! Some tests run this binary again as a child (to kill it, or to run it on a full disk): such
//! a test does nothing unless its parent set the environment variable that it works from.

#[cfg(test)]
mod corruption;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod embedded;
#[cfg(test)]
mod etcd;
#[cfg(test)]
mod full;
#[cfg(test)]
mod members;
#[cfg(test)]
mod suite;
#[cfg(test)]
mod tools;
