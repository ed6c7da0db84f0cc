//! ECS: what each operation answers, refuses and stores.

mod clusters;
mod definitions;
mod harness;
mod instances;
mod more;
mod services;
mod tasks;
