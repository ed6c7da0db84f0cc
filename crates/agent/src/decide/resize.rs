//! In-place resize: running containers get the resources that their pod now asks for. Pure.
//!
//! What an instance was started with is in its facts, what it was given since in its record; where the specification
//! says otherwise, a resize is pending. The worker says whether the node has room (`PodState::resize.refusal`). The
//! pod's cgroup and all containers that may stay are changed by one operation; containers whose policy asks for it
//! are restarted afterwards, and start with the new amounts.

use super::{Action, Input, Plan, SETUP_RETRY, after, delay, stop};
use crate::pod::{ContainerView, PodView, Role};
use crate::state::{ContainerRecord, PodState, Resize};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ResourceRequirements;
use machinery::quantity::Quantity;
use serde_json::{Value, json};
use std::collections::BTreeSet;

const STARTED: &str = "ResizeStarted";
const COMPLETED: &str = "ResizeCompleted";
/// Resources that are changed in place.
const MUTABLE: [&str; 2] = ["cpu", "memory"];

/// What a running instance has; `None` where nobody knows.
pub fn actuated(record: &ContainerRecord) -> Option<&ResourceRequirements> {
    record.resources.as_ref().or_else(|| record.facts.as_ref()?.resources.as_deref())
}

fn wanted(container: &ContainerView) -> ResourceRequirements {
    container.spec.resources.clone().unwrap_or_default()
}

/// The resources whose amounts differ.
fn changed(a: &ResourceRequirements, b: &ResourceRequirements) -> Vec<&'static str> {
    let amount = |r: &ResourceRequirements, limit: bool, name: &str| {
        let list = if limit { &r.limits } else { &r.requests };
        list.as_ref()?.get(name)?.0.parse::<Quantity>().ok()
    };
    let differs = |name: &&str| [true, false].iter().any(|l| amount(a, *l, name) != amount(b, *l, name));
    MUTABLE.into_iter().filter(differs).collect()
}

/// Running containers that have not what they should, with what is to change.
fn unequal<'a>(state: &PodState, pod: &'a PodView) -> Vec<(&'a ContainerView, Vec<&'static str>)> {
    let resizable = pod.containers.iter().filter(|c| matches!(c.role, Role::Main | Role::Sidecar));
    let unequal = resizable.filter_map(|container| {
        let record = state.containers.get(container.name()).filter(|r| r.running())?;
        let changed = changed(actuated(record)?, &wanted(container));
        (!changed.is_empty()).then_some((container, changed))
    });
    unequal.collect()
}

/// Resources of the pod as a whole: nothing but the generation says whether its cgroup has them.
fn whole_changed(state: &PodState, pod: &PodView) -> bool {
    pod.spec().resources.is_some()
        && state.resize.settled != pod.object.meta().generation
        && state.containers.values().any(ContainerRecord::running)
}

/// Does the pod wait for a resize?
pub fn pending(state: &PodState, pod: &PodView) -> bool {
    // A pod that was found running has what it had.
    let whole = state.resize.settled > 0 && whole_changed(state, pod);
    state.ending.is_none() && (state.resize.again || whole || !unequal(state, pod).is_empty())
}

fn restarts(container: &ContainerView, changed: &[&str]) -> bool {
    let policies = container.spec.resize_policy.iter().flatten();
    policies
        .filter(|p| p.restart_policy == "RestartContainer")
        .any(|p| changed.contains(&p.resource_name.as_str()))
}

/// An event about the resize, once a generation.
fn tell(state: &mut PodState, pod: &PodView, reason: &'static str, error: &str, plan: &mut Plan) {
    let generation = pod.object.meta().generation;
    if state.resize.told.replace((reason, generation)) == Some((reason, generation)) {
        return;
    }
    let of = |c: &ContainerView| json!({"name": c.name(), "resources": wanted(c)});
    let list =
        |is: fn(Role) -> bool| -> Value { pod.containers.iter().filter(|c| is(c.role)).map(of).collect() };
    let init = list(|r| matches!(r, Role::Init | Role::Sidecar));
    let parts = [
        ("initContainers", init),
        ("containers", list(|r| r == Role::Main)),
        ("generation", json!(generation)),
        ("error", json!(error)),
    ];
    // In upstream's order, and what is empty is left out.
    let parts =
        parts.iter().filter(|(_, v)| *v != json!([]) && *v != "").map(|(k, v)| format!("\"{k}\":{v}"));
    let about = format!("{{{}}}", parts.collect::<Vec<_>>().join(","));
    let what = match reason {
        "ResizeDeferred" | "ResizeInfeasible" => reason.trim_start_matches("Resize").to_string(),
        _ => reason.trim_start_matches("Resize").to_lowercase(),
    };
    let warning = !matches!(reason, STARTED | COMPLETED);
    plan.note(warning, reason, "", format!("Pod resize {what}: {about}"));
}

/// Tells what became of a resize: it waits, failed, or is done.
fn tell_state(state: &mut PodState, pod: &PodView, plan: &mut Plan) {
    let generation = pod.object.meta().generation;
    if let Some(refusal) = state.resize.refusal.clone() {
        let reason = if refusal.reason == "Deferred" { "ResizeDeferred" } else { "ResizeInfeasible" };
        tell(state, pod, reason, &refusal.message, plan);
    } else if !state.resize.error.is_empty() {
        let error = state.resize.error.clone();
        tell(state, pod, "ResizeError", &error, plan);
    } else if matches!(state.resize.told, Some((STARTED | "ResizeError", g)) if g == generation)
        && !state.resize.busy
        && !pending(state, pod)
    {
        tell(state, pod, COMPLETED, "", plan);
    }
}

/// Carries on with a resize that the node has room for.
pub(super) fn drive(state: &mut PodState, input: &Input, plan: &mut Plan) {
    tell_state(state, input.pod, plan);
    let todo = unequal(state, input.pod);
    // Instances that stop have the old amounts, and no child may have more than its pod.
    let again =
        state.resize.again && !state.containers.values().any(|r| r.restart_now || r.stopping.is_some());
    let whole = whole_changed(state, input.pod);
    if (todo.is_empty() && !again && !whole) || state.resize.refusal.is_some() || state.resize.busy {
        return;
    }
    if let Some(at) = state.resize.retry_at.filter(|at| *at > input.now) {
        return plan.wake_at(at);
    }
    let generation = input.pod.object.meta().generation;
    let (restarting, in_place): (Vec<_>, Vec<_>) =
        todo.into_iter().partition(|(container, changed)| restarts(container, changed));
    if again || !in_place.is_empty() || state.resize.settled != generation {
        if pending(state, input.pod) && state.resize.error.is_empty() {
            tell(state, input.pod, STARTED, "", plan);
        }
        state.resize.busy = true;
        let attempt = |name: &str| state.containers[name].attempt;
        let mut names: BTreeSet<&str> = in_place.iter().map(|(c, _)| c.name()).collect();
        if whole {
            // The pod's limits are those of containers that have none.
            let stays = |c: &&ContainerView| !restarting.iter().any(|(r, _)| r.name() == c.name());
            let all = input.pod.containers.iter().filter(stays);
            names.extend(
                all.map(|c| c.name()).filter(|n| state.containers.get(*n).is_some_and(|r| r.running())),
            );
        }
        let containers = names.into_iter().map(|n| (n.to_string(), attempt(n))).collect();
        return plan.act(Action::Resize { containers, generation, part: !restarting.is_empty() });
    }
    let restarting: Vec<ContainerView> = restarting.into_iter().map(|(c, _)| c.clone()).collect();
    state.resize.again = true;
    for container in restarting {
        let Some(record) = state.containers.get_mut(container.name()) else { continue };
        if record.stopping.is_some() {
            continue;
        }
        record.restart_now = true;
        let message = format!("Container {} resize requires restart", container.name());
        let reason = stop::Reason { message, grace: input.pod.spec_grace() };
        stop::begin(record, &container, reason, input.now, plan);
    }
}

/// What the shell reports of a resize: the containers it changed, with what they have now.
pub type Resized = Vec<(String, u32, ResourceRequirements)>;

/// Books the end of a resize operation.
pub(super) fn book(state: &mut PodState, generation: i64, result: Result<Resized, String>, now: Timestamp) {
    state.resize.busy = false;
    match result {
        Ok(done) => {
            for (name, attempt, resources) in done {
                let record = state.containers.get_mut(&name).filter(|r| r.attempt == attempt);
                if let Some(record) = record {
                    record.resources = Some(resources);
                }
            }
            state.resize = Resize { settled: generation, told: state.resize.told, ..Resize::default() };
        }
        Err(error) => {
            state.resize.retry_at = Some(after(now, delay(SETUP_RETRY, state.resize.failures)));
            state.resize.failures = state.resize.failures.saturating_add(1);
            state.resize.error = error;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::step;
    use crate::pod::tests::pod_from;
    use crate::state::{Facts, Phase, Refusal};

    fn view(cpu: &str, policy: &str, generation: i64) -> PodView {
        pod_from(json!({"metadata": {"namespace": "n", "name": "p", "uid": "u", "generation": generation},
            "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}},
                "resizePolicy": [{"resourceName": "cpu", "restartPolicy": policy}]}]}}))
    }

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    /// A pod that runs with 100m.
    fn running() -> PodState {
        let before = view("100m", "NotRequired", 1);
        let mut state = crate::decide::seed::seed(&before, None, now(), now());
        state.initialized = true;
        state.sandbox.setup.ready = true;
        state.volumes.ready = true;
        let record = state.containers.get_mut("c").unwrap();
        record.phase = Phase::Running { started_at: now() };
        record.started = true;
        record.facts = Some(Facts {
            spec_image: "i".into(),
            resources: before.containers[0].spec.resources.clone().map(Box::new),
            ..Facts::default()
        });
        state
    }

    fn actions(state: &mut PodState, pod: &PodView) -> Vec<Action> {
        let input = Input { pod, present: true, node_down: false, now: now(), wall: now() };
        let mut all = step(state, &input).actions;
        all.retain(|a| !matches!(a, Action::Note(_)));
        all
    }

    #[test]
    fn in_place_once() {
        let (mut state, pod) = (running(), view("0.2", "NotRequired", 2));
        assert!(pending(&state, &pod) && !pending(&state, &view("0.1", "NotRequired", 2)));
        let resize = Action::Resize { containers: vec![("c".into(), 0)], generation: 2, part: false };
        assert_eq!(actions(&mut state, &pod), [resize]);
        assert_eq!(actions(&mut state, &pod), [], "under way");
        book(&mut state, 2, Err("busy".into()), now());
        assert_eq!(state.resize.error, "busy");
        assert_eq!(actions(&mut state, &pod), [], "after a while");
        let given = pod.containers[0].spec.resources.clone().unwrap();
        book(&mut state, 2, Ok(vec![("c".into(), 0, given)]), now());
        assert!(!pending(&state, &pod) && state.resize.error.is_empty());
        assert_eq!(actions(&mut state, &pod), []);
    }

    #[test]
    fn a_restart_where_the_policy_says_so() {
        let (mut state, pod) = (running(), view("200m", "RestartContainer", 2));
        let whole = |part| Action::Resize { containers: vec![], generation: 2, part };
        assert_eq!(actions(&mut state, &pod), [whole(true)]);
        book(&mut state, 2, Ok(Vec::new()), now());
        let all = actions(&mut state, &pod);
        assert!(all.iter().any(|a| matches!(a, Action::Signal { .. })), "{all:?}");
        assert!(state.containers["c"].restart_now);
        assert_eq!(actions(&mut state, &pod), [], "while the old instance stops");
        // The new one runs: the pod's own amounts may shrink now.
        let record = state.containers.get_mut("c").unwrap();
        (record.restart_now, record.stopping) = (false, None);
        record.facts.as_mut().unwrap().resources = pod.containers[0].spec.resources.clone().map(Box::new);
        assert!(pending(&state, &pod));
        assert_eq!(actions(&mut state, &pod), [whole(false)]);
        book(&mut state, 2, Ok(Vec::new()), now());
        assert!(!pending(&state, &pod) && actions(&mut state, &pod).is_empty());
    }

    #[test]
    fn events_say_how_it_goes() {
        let (mut state, pod) = (running(), view("200m", "NotRequired", 2));
        let told = |state: &mut PodState| {
            let input = Input { pod: &pod, present: true, node_down: false, now: now(), wall: now() };
            let notes = step(state, &input).actions.into_iter().filter_map(|a| match a {
                Action::Note(note) => {
                    let (what, about) = note.message.split_once(": ").unwrap();
                    assert!(
                        about.starts_with("{\"containers\":[{\"name\":\"c\",\"resources\":{\""),
                        "{about}"
                    );
                    let ends =
                        if note.warning { ",\"generation\":2,\"error\":\"" } else { ",\"generation\":2}" };
                    assert!(about.contains(ends), "{about}");
                    Some((note.reason, what.to_string()))
                }
                _ => None,
            });
            notes.collect::<Vec<_>>()
        };
        let is = |reason: &'static str, what: &str| vec![(reason, format!("Pod resize {what}"))];
        state.resize.refusal = Some(Refusal { reason: "Deferred", message: "no room".into() });
        assert_eq!(told(&mut state), is("ResizeDeferred", "Deferred"));
        assert_eq!(told(&mut state), [], "once");
        state.resize.refusal = None;
        assert_eq!(told(&mut state), is("ResizeStarted", "started"));
        book(&mut state, 2, Err("busy".into()), now());
        assert_eq!(told(&mut state), is("ResizeError", "error"));
        let given = pod.containers[0].spec.resources.clone().unwrap();
        book(&mut state, 2, Ok(vec![("c".into(), 0, given)]), now());
        assert_eq!(told(&mut state), is("ResizeCompleted", "completed"));
        assert_eq!(told(&mut state), []);
    }

    #[test]
    fn nothing_while_the_node_has_no_room() {
        let (mut state, pod) = (running(), view("8", "NotRequired", 2));
        state.resize.refusal = Some(Refusal { reason: "Infeasible", message: "no".into() });
        assert_eq!(actions(&mut state, &pod), []);
    }
}
