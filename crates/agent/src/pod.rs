//! A pod as the agent reads it: the API object plus its containers in one list with their roles.
//!
//! Pure readings only. Deliberately not here: anything observed on the node (`state`).

use client::{Object, ObjectKey};
use ecs_model::annotation::{self, TaskNote};
use k8s_openapi::api::core::v1::{self as core, Pod, PodSpec};
use std::sync::Arc;

/// What part a container plays in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Runs to completion before the next one.
    Init,
    /// A restartable init container: started in order, then runs as long as the pod.
    Sidecar,
    /// A regular container.
    Main,
    /// Added by `kubectl debug`; never restarted, never counted.
    Ephemeral,
}

/// A container with its role.
#[derive(Clone, Debug)]
pub struct ContainerView {
    /// Its role.
    pub role: Role,
    /// Its specification (an ephemeral container's common part).
    pub spec: core::Container,
}

impl ContainerView {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }
    /// The image it asks for.
    pub fn image(&self) -> &str {
        self.spec.image.as_deref().unwrap_or_default()
    }
}

/// A pod and its containers: init containers first, then regular ones, then ephemeral ones.
#[derive(Clone)]
pub struct PodView {
    /// The API object.
    pub object: Arc<Object>,
    /// Its typed reading.
    pub pod: Arc<Pod>,
    /// Its containers.
    pub containers: Vec<ContainerView>,
    /// What ECS asks for, when the pod is a task's.
    pub task: Option<Arc<TaskNote>>,
    /// Why that cannot be read: the pod is not run then.
    pub task_error: Option<String>,
}

/// Quality of service class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    /// Every container's limits equal its requests.
    Guaranteed,
    /// Some request or limit.
    Burstable,
    /// None.
    BestEffort,
}

impl Qos {
    /// The API's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Qos::Guaranteed => "Guaranteed",
            Qos::Burstable => "Burstable",
            Qos::BestEffort => "BestEffort",
        }
    }
}

impl PodView {
    /// Reads an object; fails when it is not a pod with a spec.
    pub fn new(object: Arc<Object>) -> Result<PodView, serde_json::Error> {
        let pod = object.view::<Pod>()?;
        let mut containers = Vec::new();
        if let Some(spec) = &pod.spec {
            for spec in spec.init_containers.iter().flatten() {
                let sidecar = spec.restart_policy.as_deref() == Some("Always");
                let role = if sidecar { Role::Sidecar } else { Role::Init };
                containers.push(ContainerView { role, spec: spec.clone() });
            }
            containers
                .extend(spec.containers.iter().map(|c| ContainerView { role: Role::Main, spec: c.clone() }));
            for ephemeral in spec.ephemeral_containers.iter().flatten() {
                let spec = serde_json::from_value(serde_json::to_value(ephemeral)?)?;
                containers.push(ContainerView { role: Role::Ephemeral, spec });
            }
        }
        let note = object.meta().annotations.get(annotation::KEY).map(|text| TaskNote::parse(text));
        let (task, task_error) = match note {
            None => (None, None),
            Some(Ok(note)) => (Some(Arc::new(note)), None),
            Some(Err(error)) => (None, Some(error.to_string())),
        };
        Ok(PodView { object, pod, containers, task, task_error })
    }

    /// The spec (the API server stores no pod without one; an empty one then).
    pub fn spec(&self) -> &PodSpec {
        static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
        self.pod.spec.as_ref().unwrap_or(&EMPTY)
    }

    /// Why a container waits that nothing holds up, as the kubelet words it: by the pod, not by the container.
    pub fn creating_reason(&self) -> &'static str {
        let has_init = self.containers.iter().any(|c| matches!(c.role, Role::Init | Role::Sidecar));
        if has_init { "PodInitializing" } else { "ContainerCreating" }
    }

    /// UID.
    pub fn uid(&self) -> &str {
        self.object.uid()
    }

    /// Namespace and name.
    pub fn key(&self) -> &ObjectKey {
        &self.object.key
    }

    /// Namespace.
    pub fn namespace(&self) -> &str {
        &self.object.key.namespace
    }

    /// Name.
    pub fn name(&self) -> &str {
        &self.object.key.name
    }

    /// The account that it runs as.
    pub fn service_account(&self) -> &str {
        self.spec().service_account_name.as_deref().filter(|n| !n.is_empty()).unwrap_or("default")
    }

    /// `name_namespace(uid)`, as messages name a pod.
    pub fn full_name(&self) -> String {
        format!("{}_{}({})", self.name(), self.namespace(), self.uid())
    }

    /// The container of that name.
    pub fn container(&self, name: &str) -> Option<&ContainerView> {
        self.containers.iter().find(|c| c.name() == name)
    }

    /// Is its deletion asked for?
    pub fn deleting(&self) -> bool {
        self.object.meta().deletion_timestamp.is_some()
    }

    /// Seconds that its containers get to stop when nobody says otherwise.
    pub fn spec_grace(&self) -> i64 {
        self.spec().termination_grace_period_seconds.unwrap_or(30)
    }

    /// Its restart policy.
    pub fn restart_policy(&self) -> &str {
        self.spec().restart_policy.as_deref().unwrap_or("Always")
    }

    /// In the node's network namespace?
    pub fn host_network(&self) -> bool {
        self.spec().host_network.unwrap_or(false)
    }

    /// Has an agent begun with it?
    pub fn started(&self) -> bool {
        self.pod.status.as_ref().is_some_and(|s| s.start_time.is_some())
    }

    /// The phase that the API has.
    pub fn stored_phase(&self) -> &str {
        self.pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
    }

    /// Does the API call it done?
    pub fn stored_phase_is_terminal(&self) -> bool {
        matches!(self.stored_phase(), "Succeeded" | "Failed")
    }

    /// Its quality of service class: the stored one, else computed from requests and limits of cpu and memory.
    pub fn qos(&self) -> Qos {
        match self.pod.status.as_ref().and_then(|s| s.qos_class.as_deref()) {
            Some("Guaranteed") => return Qos::Guaranteed,
            Some("Burstable") => return Qos::Burstable,
            Some("BestEffort") => return Qos::BestEffort,
            _ => {}
        }
        let (mut any, mut all_equal) = (false, true);
        let of_containers =
            self.containers.iter().filter(|c| c.role != Role::Ephemeral).map(|c| c.spec.resources.as_ref());
        // Resources of the pod as a whole decide alone.
        let of_pod = self.spec().resources.as_ref();
        let all: Vec<_> = if of_pod.is_some() { vec![of_pod] } else { of_containers.collect() };
        for resources in all {
            for name in ["cpu", "memory"] {
                let of =
                    |list: Option<&std::collections::BTreeMap<_, _>>| list.and_then(|l| l.get(name)).cloned();
                let limit = of(resources.and_then(|r| r.limits.as_ref()));
                let request = of(resources.and_then(|r| r.requests.as_ref()));
                any |= limit.is_some() || request.is_some();
                all_equal &= limit.is_some() && (request.is_none() || request == limit);
            }
        }
        match (any, all_equal) {
            (false, _) => Qos::BestEffort,
            (true, true) => Qos::Guaranteed,
            (true, false) => Qos::Burstable,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A pod named `p` in namespace `n` with UID `u`, from its spec.
    pub fn pod(spec: Value) -> PodView {
        pod_from(
            json!({"metadata": {"namespace": "n", "name": "p", "uid": "u", "generation": 1}, "spec": spec}),
        )
    }

    /// A pod from its whole body.
    pub fn pod_from(body: Value) -> PodView {
        let object = Object::parse(serde_json::to_vec(&body).unwrap().into()).unwrap();
        PodView::new(Arc::new(object)).unwrap()
    }

    #[test]
    fn qos_classes() {
        let of = |resources: Value| {
            pod(json!({"containers": [{"name": "a", "image": "i", "resources": resources}]})).qos()
        };
        assert_eq!(of(json!({})), Qos::BestEffort);
        assert_eq!(of(json!({"requests": {"cpu": "1"}})), Qos::Burstable);
        assert_eq!(of(json!({"limits": {"cpu": "1", "memory": "1Gi"}})), Qos::Guaranteed);
        assert_eq!(of(json!({"limits": {"cpu": "1"}, "requests": {"cpu": "1"}})), Qos::Burstable);
    }
}
