//! The controllers on a real API server over a real store: one folder of tests, one binary.

#![cfg(test)]

mod collection;
mod extender;
mod harness;
mod kubectl;
mod kubectl_sets;
mod preemption;
mod quota;
mod scheduler;
mod sets;
mod volumes;
mod workloads;
