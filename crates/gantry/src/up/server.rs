//! `gantry server`: a control plane without a node; where several share an etcd, any of them can be lost.
//!
//! All servers of a cluster have one authority: `data-dir/pki` of the first one is copied to the others before their
//! first start (a server whose authority is another one does not start). Each serves the API; the controllers run in
//! the one that holds the lease (`leader`).

use super::{Component, aws, control, door, ecs, events, exec, logs, metering, serve};
use crate::config::Config;
use crate::join::publish;
use crate::preflight;
use anyhow::Result;

/// Its components, in the order they start.
const COMPONENTS: &[Component] = &[
    ("store", |i| Box::pin(control::store(i))),
    ("certificates", |i| Box::pin(control::certificates(i))),
    ("API server", |i| Box::pin(control::api(i))),
    ("controllers", |i| Box::pin(control::controllers(i))),
    ("AWS account", |i| Box::pin(aws::account(i))),
    ("joining information", |i| Box::pin(publish::start(i))),
    ("logs", |i| Box::pin(logs::open(i))),
    ("exec", |i| Box::pin(exec::start(i))),
    ("events", |i| Box::pin(events::open(i))),
    ("AWS endpoint", |i| Box::pin(aws::endpoint(i))),
    ("event deliveries", |i| Box::pin(events::start(i))),
    ("ECS controllers", |i| Box::pin(ecs::controllers(i))),
    ("nodes' door", |i| Box::pin(door::open(i))),
    ("metering", |i| Box::pin(metering::start(i))),
    ("admin socket", |i| Box::pin(control::admin(i))),
];

/// Runs until told to stop.
pub fn run(config: Config, _: &[String]) -> Result<()> {
    preflight::check_server(&config)?;
    serve(config, COMPONENTS, None)
}
