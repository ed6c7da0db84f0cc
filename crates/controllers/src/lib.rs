//! The built-in controllers, one file each: a pure decision and a shell that acts on it.
//!
//! Each is a row of [`CONTROLLERS`]; all are clients of the API and share one set of caches.
//! Invariants: level-triggered (a wake-up says "look again"); idle costs nothing; whole objects are never written
//! back from typed views, which would drop fields they do not know.
//! Deliberately not here: scheduling decisions (`sched`), anything on a node (`agent`).

mod autoscaler;
mod bootstrap_tokens;
mod cluster_dns;
pub mod context;
mod cron_job;
mod csr;
mod custom_kinds;
mod daemon_set;
mod deployment;
mod disruption;
mod endpoints;
mod gc;
mod job;
mod namespace;
mod node_lifecycle;
mod owner;
mod pod_gc;
mod proportional;
mod replica_set;
mod resourcequota;
mod revision;
mod role_aggregation;
mod scheduler;
mod service_account;
mod service_lb;
mod stateful_set;
mod taint_eviction;
#[cfg(test)]
mod testing;
mod token_secrets;
mod volumes;
mod workload;

pub use context::{Context, ControllersConfig, Drivers, Informers, PortCheck, Reach};
pub use scheduler::{Scheduler, SchedulerConfig, SchedulerMetrics};

use client::ApiClient;
use client::events::Recorder;
use jiff::Timestamp;
use std::sync::Arc;
use tokio::task::JoinHandle;

/// A controller: its name and how it starts.
type Row = (&'static str, fn(&Context) -> Vec<JoinHandle<()>>);

/// All controllers.
const CONTROLLERS: &[Row] = &[
    ("cluster-dns", cluster_dns::start),
    ("horizontalpodautoscaler", autoscaler::start),
    ("cronjob", cron_job::start),
    ("daemonset", daemon_set::start),
    ("disruption", disruption::start),
    ("endpoints", endpoints::start),
    ("garbage-collector", gc::start),
    ("job", job::start),
    ("namespace", namespace::start),
    ("nodelifecycle", node_lifecycle::start),
    ("podgc", pod_gc::start),
    ("proportional-autoscaler", proportional::start),
    ("bootstrap-tokens", bootstrap_tokens::start),
    ("taint-eviction", taint_eviction::start),
    ("service-lb", service_lb::start),
    ("deployment", deployment::start),
    ("replicaset", replica_set::start),
    ("replicationcontroller", replica_set::start_replication),
    ("resourcequota", resourcequota::start),
    ("statefulset", stateful_set::start),
    ("clusterrole-aggregation", role_aggregation::start),
    ("serviceaccount", service_account::start),
    ("token-secrets", token_secrets::start),
    ("csr", csr::start),
    ("volumes", volumes::start),
];

/// The running controllers; they stop when this is dropped.
pub struct Controllers {
    tasks: Vec<JoinHandle<()>>,
}

impl Controllers {
    /// Starts all of them as one identity.
    pub fn start(
        client: ApiClient,
        config: ControllersConfig,
        clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    ) -> Controllers {
        let context = Context {
            informers: Informers::new(client.clone()),
            recorder: Recorder::start(client.clone(), "kube-controller-manager", "", clock.clone()),
            client,
            config: Arc::new(config),
            clock,
        };
        Controllers { tasks: CONTROLLERS.iter().flat_map(|(_, start)| start(&context)).collect() }
    }
}

impl Drop for Controllers {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}
