//! Starting a container; and what is done to a running one: hooks, probes, signals.

use super::prepare::{Start, config_failure, prepare};
use super::{Mounted, Node, blocking, instance_id, pod_ip};
use crate::config::ConfigError;
use crate::cpus;
use crate::decide::outcome::{Outcome, StartFailure, StartStep};
use crate::decide::{HookKind, Signal};
use crate::images;
use crate::pod::{ContainerView, PodView};
use crate::probes::{Check, Subject};
use crate::state::{Facts, ProbeKind, Terminated};
use crate::stats::own::{self, Made};
use crate::volumes::references;
use jiff::{SignedDuration, Timestamp};
use runtime::api::ContainerState;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A hook without a deadline of its own ends then.
const HOOK_MAX: Duration = Duration::from_secs(3600);
/// A hook that overruns is no longer waited for, but ends with its container, which is killed within this time.
const HOOK_LEFT: Duration = Duration::from_secs(5);

/// The instance to start.
pub struct Instance {
    /// The pod.
    pub pod: PodView,
    /// The container's name.
    pub container: String,
    /// Number of the instance.
    pub attempt: u32,
    /// How the one before ended.
    pub last: Option<Terminated>,
    /// How often all containers of the pod were made to start anew.
    pub round: u32,
    /// The pod's volumes.
    pub mounted: Mounted,
    /// The pod's addresses.
    pub ips: Vec<IpAddr>,
}

/// Resolves the image, creates and starts the instance.
pub async fn start(node: Arc<Node>, instance: Instance) -> Outcome {
    let (container, attempt) = (instance.container.clone(), instance.attempt);
    let result = match instance.pod.container(&container).cloned() {
        Some(view) => {
            let (begun, made) = (Instant::now(), Made::Container(view.role));
            let result = try_start(&node, instance, view).await;
            own::done(made, begun, &result);
            result
        }
        None => Err(config_failure(ConfigError::Config("the pod has no such container".into()))),
    };
    Outcome::Started { container, attempt, result }
}

async fn try_start(
    node: &Arc<Node>,
    instance: Instance,
    container: ContainerView,
) -> Result<(Facts, Timestamp), StartFailure> {
    let pod = instance.pod.clone();
    let name = container.name().to_string();
    let found = images::ensure(node, &pod, &container).await?;
    let reset = node.devices.before_start(pod.uid(), &name).await;
    reset.map_err(|message| StartFailure {
        step: StartStep::Config,
        reason: "PreStartHookError",
        message,
    })?;
    let objects = node.objects.snapshot(pod.namespace(), &references(&pod)).await;
    let objects = objects.map_err(|e| config_failure(ConfigError::Config(e)))?;
    if let Some(logging) = node.logging() {
        logging.prepare(&pod, &name).await.map_err(|why| config_failure(ConfigError::Config(why)))?;
    }
    if !node.is_static(&pod.object) {
        // A static pod may be what brings the API: it gets the services that are known.
        node.services.wait_synced().await;
    }
    let mut services = node.services.list_in(pod.namespace());
    if pod.namespace() != "default" {
        services.extend(node.services.get(&client::ObjectKey::new("default", "kubernetes")));
    }
    let _permit = node.making.acquire().await;
    let work = Start { instance, container, objects, services, found };
    let shared = node.clone();
    let prepared = blocking(move || prepare(&shared, work)).await;
    let (mut spec, facts) = prepared.map_err(|e| config_failure(ConfigError::Create(e)))??;
    let (uid, id) = (pod.uid(), spec.id.clone());
    spec.config.linux.resources.cpu.cpus = node.cpus.of(uid, &name);
    let before: Vec<String> = node.live(uid).map_or_else(Vec::new, |live| {
        let same = live.containers.into_iter().filter(|c| c.spec.name == name);
        same.map(|c| c.spec.id).collect()
    });
    if before.contains(&id) {
        // A former agent died between creating and starting it.
        node.runtime.remove_container(uid, &id).await.map_err(|e| create_failure(&e))?;
    }
    node.runtime.create_container(uid, spec).await.map_err(|e| create_failure(&e))?;
    // Others may have got CPUs meanwhile.
    cpus::confine(node, uid, (&id, &name)).await;
    node.note(&pod, "Created", &name, "Container created".into());
    if let Err(error) = node.runtime.start_container(uid, &id).await {
        return Err(StartFailure {
            step: StartStep::Run,
            reason: "RunContainerError",
            message: error.to_string(),
        });
    }
    let started_at = started_at(node, uid, &id).unwrap_or_else(Timestamp::now);
    node.note(&pod, "Started", &name, "Container started".into());
    for old in before.into_iter().filter(|old| *old != id) {
        if let Err(error) = node.runtime.remove_container(uid, &old).await {
            tracing::warn!(uid, container = old, %error, "old instance not removed");
        }
    }
    Ok((facts, started_at))
}

fn create_failure(error: &dyn std::fmt::Display) -> StartFailure {
    config_failure(ConfigError::Create(error.to_string()))
}

fn started_at(node: &Node, uid: &str, id: &str) -> Option<Timestamp> {
    let live = node.live(uid)?;
    let info = live.containers.iter().find(|c| c.spec.id == id)?;
    match info.state {
        ContainerState::Created => None,
        ContainerState::Running { started_at_ns, .. } | ContainerState::Exited { started_at_ns, .. } => {
            Timestamp::from_nanosecond(i128::from(started_at_ns)).ok()
        }
    }
}

/// A container and one of its instances.
pub struct Which {
    /// The pod.
    pub pod: PodView,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// The container's name.
    pub container: String,
    /// Number of the instance.
    pub attempt: u32,
}

/// Runs a hook once.
pub async fn hook(node: Arc<Node>, which: Which, kind: HookKind, within: Option<SignedDuration>) -> Outcome {
    let result = run_hook(&node, &which, kind, within).await;
    Outcome::Hook { container: which.container, kind, result }
}

async fn run_hook(
    node: &Arc<Node>,
    which: &Which,
    kind: HookKind,
    within: Option<SignedDuration>,
) -> Result<(), String> {
    let Some(container) = which.pod.container(&which.container) else { return Ok(()) };
    let lifecycle = container.spec.lifecycle.as_ref();
    let handler = lifecycle.and_then(|l| match kind {
        HookKind::PostStart => l.post_start.as_ref(),
        HookKind::PreStop => l.pre_stop.as_ref(),
    });
    let Some(handler) = handler else { return Ok(()) };
    let within = match within {
        Some(time) => Duration::try_from(time).unwrap_or(Duration::ZERO),
        None => HOOK_MAX,
    };
    let check = Check::of_hook(handler, container, &pod_ip(node, &which.pod, &which.ips))?;
    let id = instance_id(&which.container, which.attempt);
    let (node, uid) = (node.clone(), which.pod.uid().to_string());
    let hook = tokio::spawn(async move {
        let subject = Subject { uid: &uid, id: &id };
        check.run(&node.runtime, &subject, within.saturating_add(HOOK_LEFT)).await
    });
    match tokio::time::timeout(within, hook).await {
        Ok(Ok(result)) => result,
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the hook did not end in time".into()),
    }
}

/// Runs a probe once.
pub async fn probe(node: Arc<Node>, which: Which, kind: ProbeKind) -> Outcome {
    let result = run_probe(&node, &which, kind).await;
    let of = (which.container.clone(), kind, result.is_ok());
    *node.probed.lock().entry(which.pod.uid().into()).or_default().entry(of).or_default() += 1;
    Outcome::Probe { container: which.container, attempt: which.attempt, kind, result }
}

async fn run_probe(node: &Node, which: &Which, kind: ProbeKind) -> Result<(), String> {
    let Some(container) = which.pod.container(&which.container) else { return Ok(()) };
    let probe = match kind {
        ProbeKind::Startup => &container.spec.startup_probe,
        ProbeKind::Liveness => &container.spec.liveness_probe,
        ProbeKind::Readiness => &container.spec.readiness_probe,
    };
    let Some(probe) = probe else { return Ok(()) };
    let seconds = u64::try_from(probe.timeout_seconds.unwrap_or(1).max(1)).unwrap_or(1);
    let within = Duration::from_secs(seconds);
    let check = Check::of_probe(probe, container, &pod_ip(node, &which.pod, &which.ips))?;
    let id = instance_id(&which.container, which.attempt);
    check.run(&node.runtime, &Subject { uid: which.pod.uid(), id: &id }, within).await
}

/// Linux' numbers of the signals that images and specs name.
const SIGNALS: &[(&str, i32)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ABRT", 6),
    ("KILL", 9),
    ("USR1", 10),
    ("USR2", 12),
    ("ALRM", 14),
    ("TERM", 15),
    ("CONT", 18),
    ("STOP", 19),
    ("WINCH", 28),
    ("PWR", 30),
];

/// The number of `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`; SIGTERM for what is none.
fn signal_number(text: &str) -> i32 {
    const RTMIN: i32 = 34;
    const TERM: i32 = 15;
    let name = text.trim().to_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        return RTMIN + offset.trim_start_matches('+').parse().unwrap_or(0);
    }
    let known = SIGNALS.iter().find(|(n, _)| *n == name).map(|(_, number)| *number);
    known.or_else(|| name.parse().ok()).filter(|n| (1..=64).contains(n)).unwrap_or(TERM)
}

/// Sends a signal; a container that is gone needs none.
pub async fn signal(node: Arc<Node>, which: Which, signal: Signal, stop_signal: String) {
    let number = match signal {
        Signal::Stop => signal_number(&stop_signal),
        Signal::Kill => signal_number("KILL"),
    };
    let id = instance_id(&which.container, which.attempt);
    if let Err(error) = node.runtime.signal(which.pod.uid(), &id, number).await {
        tracing::debug!(uid = which.pod.uid(), container = id, %error, "signal not sent");
    }
}

#[cfg(test)]
mod tests {
    use super::signal_number;

    #[test]
    fn signals_by_name_and_number() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("quit", 3),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("RTMIN", 34),
            ("", 15),
            ("NOPE", 15),
            ("99", 15),
        ] {
            assert_eq!(signal_number(text), number, "{text}");
        }
    }
}
