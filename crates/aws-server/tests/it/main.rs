//! The services' operation tables on a real API server over a real store: one folder of tests, one binary.

#![cfg(test)]

mod ecs;
mod front;
mod net;
