//! Resource amounts as integers, and what a pod asks for.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus, ResourceRequirements};
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

/// What of a pod is counted.
#[derive(Clone, Copy)]
pub enum Basis<'a> {
    /// What it asks for.
    Asked,
    /// The larger of that and what its containers have; where its node can never give more, what they have.
    AskedOrHad(&'a PodStatus),
    /// What its containers have: a resize has not been granted.
    Had(&'a PodStatus),
}

impl Basis<'_> {
    /// A container's requests.
    fn of(self, container: &Container) -> Resources {
        let asked = requests(container.resources.as_ref());
        let (status, only) = match self {
            Basis::Asked => return asked,
            Basis::AskedOrHad(status) => (status, is_hopeless(status)),
            Basis::Had(status) => (status, true),
        };
        let lists = [&status.container_statuses, &status.init_container_statuses];
        let own = lists.into_iter().flat_map(|list| list.iter().flatten()).find(|c| c.name == container.name);
        let Some((own, has)) = own.and_then(|own| Some((own, own.resources.as_ref()?))) else { return asked };
        let wish = container.resources.as_ref().and_then(|r| r.requests.as_ref());
        if has.requests.as_ref() == wish && own.allocated_resources.as_ref() == wish {
            return asked;
        }
        let mut had = requests(Some(has));
        had.raise_to(&own.allocated_resources.as_ref().map(Resources::read).unwrap_or_default());
        if !only {
            had.raise_to(&asked);
        }
        had
    }
}

/// Did its node say that it can never give what is asked for?
fn is_hopeless(status: &PodStatus) -> bool {
    let mut pending = status.conditions.iter().flatten().filter(|c| c.type_ == "PodResizePending");
    pending.any(|c| c.status == "True" && c.reason.as_deref() == Some("Infeasible"))
}

/// What a pod takes: the larger of its running containers together and any init step, plus overhead; requests
/// on the pod itself take precedence. Restartable init containers count from their start on.
pub fn of_pod(spec: &PodSpec, basis: Basis) -> Resources {
    let mut running = Resources::default();
    for container in &spec.containers {
        running.add(&basis.of(container));
    }
    let mut sidecars = Resources::default();
    let mut peak = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let own = basis.of(container);
        let mut step = sidecars.clone();
        step.add(&own);
        peak.raise_to(&step);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars = step;
        }
    }
    running.add(&sidecars);
    running.raise_to(&peak);
    let given = match basis {
        Basis::Had(status) => status.allocated_resources.as_ref(),
        Basis::AskedOrHad(status) if is_hopeless(status) => status.allocated_resources.as_ref(),
        _ => None,
    };
    if let Some(whole) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()) {
        let list = given.unwrap_or(whole);
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

/// What a pod on a node takes of it.
pub fn of_placed(pod: &Pod) -> Resources {
    let Some(spec) = &pod.spec else { return Resources::default() };
    of_pod(spec, pod.status.as_ref().map_or(Basis::Asked, Basis::AskedOrHad))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn what_was_not_granted_is_not_taken() {
        let cpu = |asked: &str, has: Value, allocated: &str, reason: &str| {
            let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {
                    "containers": [{"name": "c", "resources": {"requests": {"cpu": asked}}}]},
                "status": {"conditions": [{"type": "PodResizePending", "status": "True", "reason": reason}],
                    "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                        "resources": has, "allocatedResources": {"cpu": allocated}}]}})).unwrap();
            let had = of_pod(pod.spec.as_ref().unwrap(), Basis::Had(pod.status.as_ref().unwrap()));
            (of_placed(&pod).milli_cpu, had.milli_cpu)
        };
        let has = |cpu: &str| json!({"requests": {"cpu": cpu}});
        assert_eq!(cpu("1", has("1"), "1", ""), (1000, 1000));
        assert_eq!(cpu("2", has("1"), "1", "Deferred"), (2000, 1000), "its place is kept for it");
        assert_eq!(cpu("100", has("1"), "1", "Infeasible"), (1000, 1000));
        assert_eq!(cpu("1", has("2"), "1", ""), (2000, 2000), "it still has more than it asks for");
        assert_eq!(cpu("3", Value::Null, "1", "Infeasible"), (3000, 3000), "nobody told what it has");
    }
}
