//! Resource amounts as integers, and what a pod asks for.

use k8s_openapi::api::core::v1::{PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// What the scorers assume of a container that asks for nothing: a tenth of a core, 200 MB (as upstream).
const ASSUMED_MILLI_CPU: i64 = 100;
const ASSUMED_MEMORY_BYTES: i64 = 200 << 20;

/// Amounts of every resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a core.
    pub milli_cpu: i64,
    /// Bytes.
    pub memory_bytes: i64,
    /// Bytes.
    pub ephemeral_bytes: i64,
    /// Everything else by name, in whole units.
    pub extended: BTreeMap<String, i64>,
}

type List = BTreeMap<String, Quantity>;

fn amount(name: &str, quantity: &Quantity) -> i64 {
    let parsed: Result<machinery::quantity::Quantity, _> = quantity.0.parse();
    parsed.map_or(0, |q| if name == "cpu" { q.milli() } else { q.units() })
}

impl Resources {
    /// Reads a resource list; `pods` is left out (see [`crate::NodeSpec`]). Unreadable quantities count as 0:
    /// the API server admits none.
    pub fn read(list: &List) -> Self {
        let mut resources = Resources::default();
        for (name, quantity) in list {
            let value = amount(name, quantity);
            match name.as_str() {
                "cpu" => resources.milli_cpu = value,
                "memory" => resources.memory_bytes = value,
                "ephemeral-storage" => resources.ephemeral_bytes = value,
                "pods" => {}
                _ => drop(resources.extended.insert(name.clone(), value)),
            }
        }
        resources
    }

    fn combine(&mut self, other: &Resources, op: fn(i64, i64) -> i64) {
        self.milli_cpu = op(self.milli_cpu, other.milli_cpu);
        self.memory_bytes = op(self.memory_bytes, other.memory_bytes);
        self.ephemeral_bytes = op(self.ephemeral_bytes, other.ephemeral_bytes);
        for (name, value) in &other.extended {
            let mine = self.extended.entry(name.clone()).or_default();
            *mine = op(*mine, *value);
        }
    }

    /// Adds, saturating.
    pub fn add(&mut self, other: &Resources) {
        self.combine(other, i64::saturating_add);
    }

    /// Subtracts, saturating.
    pub fn sub(&mut self, other: &Resources) {
        self.combine(other, i64::saturating_sub);
    }

    fn raise_to(&mut self, other: &Resources) {
        self.combine(other, i64::max);
    }

    /// The same with the scorers' assumption where nothing is asked for.
    pub(crate) fn or_assumed(mut self, containers: usize) -> Self {
        let containers = containers as i64;
        if self.milli_cpu == 0 {
            self.milli_cpu = ASSUMED_MILLI_CPU * containers;
        }
        if self.memory_bytes == 0 {
            self.memory_bytes = ASSUMED_MEMORY_BYTES * containers;
        }
        self
    }
}

fn requests(resources: Option<&ResourceRequirements>) -> Resources {
    resources.and_then(|r| r.requests.as_ref()).map(Resources::read).unwrap_or_default()
}

/// What a pod asks for: the larger of its running containers together and any init step, plus overhead; requests
/// on the pod itself take precedence. Restartable init containers count from their start on.
pub fn of_pod(spec: &PodSpec) -> Resources {
    let mut running = Resources::default();
    for container in &spec.containers {
        running.add(&requests(container.resources.as_ref()));
    }
    let mut sidecars = Resources::default();
    let mut peak = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let own = requests(container.resources.as_ref());
        let mut step = sidecars.clone();
        step.add(&own);
        peak.raise_to(&step);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars = step;
        }
    }
    running.add(&sidecars);
    running.raise_to(&peak);
    if let Some(list) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()) {
        let pod = Resources::read(list);
        for name in list.keys() {
            match name.as_str() {
                "cpu" => running.milli_cpu = pod.milli_cpu,
                "memory" => running.memory_bytes = pod.memory_bytes,
                _ => {}
            }
        }
    }
    if let Some(overhead) = &spec.overhead {
        running.add(&Resources::read(overhead));
    }
    running
}
