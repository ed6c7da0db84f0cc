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
mod device_taints;
mod disruption;
mod endpoints;
mod figures;
mod gc;
mod job;
mod leader_election;
mod legacy_tokens;
mod namespace;
mod node_lifecycle;
mod node_ttl;
mod owner;
mod pod_gc;
mod pod_group;
mod proportional;
mod replica_set;
mod resource_claims;
mod resourcequota;
mod revision;
mod role_aggregation;
mod scheduler;
mod service_account;
mod service_lb;
mod service_ranges;
mod stateful_set;
mod taint_eviction;
#[cfg(test)]
mod testing;
mod token_secrets;
mod volumes;
mod workload;

pub use context::{Context, ControllersConfig, Drivers, Informers, PortCheck, Reach};
pub use scheduler::{Call, Scheduler, SchedulerConfig, SchedulerMetrics};

use client::ApiClient;
use client::events::Recorder;
use jiff::Timestamp;
use std::sync::Arc;
use tokio::task::JoinHandle;

/// A controller: the source of its events, as upstream names it, and how it starts.
type Row = (&'static str, fn(&Context) -> Vec<JoinHandle<()>>);

/// All controllers.
const CONTROLLERS: &[Row] = &[
    ("cluster-dns", cluster_dns::start),
    ("horizontal-pod-autoscaler", autoscaler::start),
    ("cronjob-controller", cron_job::start),
    ("daemonset-controller", daemon_set::start),
    ("device-taint-eviction", device_taints::start),
    ("controllermanager", disruption::start),
    ("endpoint-slice-mirroring-controller", endpoints::start),
    ("garbage-collector-controller", gc::start),
    ("job-controller", job::start),
    ("leader-election-controller", leader_election::start),
    ("legacy-service-account-token-cleaner", legacy_tokens::start),
    ("namespace-controller", namespace::start),
    ("node-controller", node_lifecycle::start),
    ("node-controller", node_ttl::start),
    ("pod-garbage-collector", pod_gc::start),
    ("podgroup-protection-controller", pod_group::start),
    ("proportional-autoscaler", proportional::start),
    ("bootstrap-tokens", bootstrap_tokens::start),
    ("taint-eviction-controller", taint_eviction::start),
    ("service-controller", service_lb::start),
    ("service-cidr-controller", service_ranges::start),
    ("deployment-controller", deployment::start),
    ("replicaset-controller", replica_set::start),
    ("replication-controller", replica_set::start_replication),
    ("resource_claim", resource_claims::start),
    ("resourcequota-controller", resourcequota::start),
    ("statefulset-controller", stateful_set::start),
    ("clusterrole-aggregation", role_aggregation::start),
    ("serviceaccount", service_account::start),
    ("token-secrets", token_secrets::start),
    ("csr", csr::start),
    ("persistentvolume-controller", volumes::start),
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
        let start = |(component, start): &Row| {
            start(&Context { recorder: context.recorder.named(component), ..context.clone() })
        };
        Controllers { tasks: CONTROLLERS.iter().flat_map(start).collect() }
    }
}

impl Drop for Controllers {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}
