//! The ECS controllers on a real API server over a real store, with nodes that are simulated: they bind and run what
//! they see at once.

#![cfg(test)]

mod harness;
mod metering;
mod services;
mod tasks;
