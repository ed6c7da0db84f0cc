//! ECS as values: names, task definitions, sizes, placement, lowering a Task to a Pod and raising Pod status to task
//! status. Pure: no I/O, no clock, no random.

pub mod annotation;
pub mod doc;
pub mod names;
pub mod refusal;
pub mod task;
pub mod units;
