//! The API server over a real store, spoken to by HTTP: one folder of tests, one binary.

#![cfg(test)]

mod admission;
mod aggregation;
mod attacks;
mod audit;
mod bad_input;
mod conversion;
mod custom;
mod every_kind;
mod fairness;
mod figures;
mod harness;
mod identity;
mod joining;
mod kubectl;
mod lists;
mod negotiation;
mod outside;
mod owners;
mod pod_security_policy;
mod policies;
mod protobuf;
mod proxying;
mod running;
mod special;
mod two_servers;
mod usage;
mod verbs;
mod watches;
