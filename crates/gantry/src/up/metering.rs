//! Metering, beside the controllers: in one of several servers, which has the records of its time.

use super::Instance;
use super::control::private_folder;
use super::leader;
use crate::cost;
use anyhow::Result;
use auth::{Identity, SYSTEM_MASTERS};
use ecs::metering::Metering;
use jiff::Timestamp;
use std::sync::Arc;

/// The lease of the meter, where servers share a store.
const LEASE: &str = "gantry-metering";

/// Starts it.
pub async fn start(instance: &mut Instance) -> Result<()> {
    let folder = cost::folder(&instance.config.data_dir);
    private_folder(&folder)?;
    let client = instance.control.client(Identity::new("system:gantry-metering", [SYSTEM_MASTERS]))?;
    let asks = client.clone();
    let begin = move || Metering::start(asks.clone(), folder.clone(), Arc::new(Timestamp::now));
    leader::in_turn(instance, LEASE, client, begin);
    Ok(())
}
