//! The front end over real HTTP: every modelled operation, signatures, bodies, credentials.

mod credentials;
mod operations;
mod signatures;
mod slices;
mod world;
