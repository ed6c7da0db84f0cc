//! The front end over real HTTP: every modelled operation, signatures, bodies, credentials.

mod credentials;
mod operations;
mod policies;
mod signatures;
mod slices;
mod world;
