//! The controller's side of CSI drivers, built in: making and deleting volumes, attaching, growing and changing them,
//! what they have room for, snapshots. And upstream's own part, which external helpers rely on: VolumeAttachments.
//!
//! A driver is called where its node service is registered and offers its controller service too
//! ([`drivers::Csi::place`] says where, and when upstream's helper containers have the role instead). Names, annotations
//! and events are those of upstream's helpers, so that either may take over from the other: a volume's name comes from
//! its claim's UID, so what both begin is made once.

mod attach;
mod attacher;
mod capacity;
mod drivers;
mod provision;
mod resize;
mod snapshot;
mod topology;

use super::{ATTRIBUTES_CLASSES, CSI_DRIVERS, CSI_NODES};
use crate::context::Context;
use k8s_schema::Gvr;
use tokio::task::JoinHandle;

const ATTACHMENTS: Gvr = Gvr::new("storage.k8s.io", "v1", "volumeattachments");

/// Starts all of it.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    let csi = drivers::Csi::new(context);
    let mut tasks = attach::start(context);
    tasks.extend(attacher::start(&csi));
    tasks.extend(provision::start(&csi));
    tasks.extend(capacity::start(&csi));
    tasks.extend(resize::start(&csi));
    tasks.extend(snapshot::start(&csi));
    tasks
}
