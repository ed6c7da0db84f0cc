//! ECS as values: names, task definitions, sizes, placement, lowering a Task to a Pod and raising Pod status to task
//! status. Pure: no I/O, no clock, no random.

pub mod annotation;
pub mod capacity;
pub mod discovery;
pub mod doc;
pub mod env_file;
pub mod ledger;
pub mod lower;
pub mod names;
pub mod overrides;
pub mod placement;
pub mod query;
pub mod raise;
pub mod refusal;
pub mod secret;
pub mod service;
pub mod service_record;
pub mod targets;
pub mod task;
pub mod taskdef;
pub mod units;
