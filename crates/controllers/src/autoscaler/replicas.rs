//! From what pods use to how many there should be.
//!
//! Pure. Rules and words are upstream's (`podautoscaler/replica_calculator.go`, Kubernetes v1.36): pods that are not
//! ready count as idle when growing, pods without figures as busy when shrinking, and neither turns the direction.
//! Deliberately not here: windows and rates ([`super::rules`]), how figures are read ([`super::readings`]).

use jiff::{SignedDuration, Timestamp};
use machinery::kinds::get::{int, list, text};
use machinery::quantity::Quantity;
use machinery::time;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// A change smaller than this part of the target is none, where the autoscaler does not say.
const TOLERANCE: f64 = 0.1;
/// After its start a pod's CPU figures count only while it is ready.
const CPU_INITIALIZATION: SignedDuration = SignedDuration::from_secs(300);
/// A pod that became unready this early has never been ready.
const INITIAL_READINESS: SignedDuration = SignedDuration::from_secs(30);

/// What one pod uses or tells.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Thousandths.
    pub milli: i64,
    /// When it was read.
    pub at: Timestamp,
    /// Over which time.
    pub window: SignedDuration,
}

/// By pod name.
pub type Samples = BTreeMap<String, Sample>;

/// How much a ratio may differ from 1 without being acted on.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    up: f64,
    down: f64,
}

impl Tolerance {
    /// Of `spec.behavior`.
    pub fn of(behavior: &Value) -> Tolerance {
        let side = |key: &str| {
            let given = behavior[key].get("tolerance").and_then(Quantity::from_json);
            given.and_then(Result::ok).map_or(TOLERANCE, |q| float(q.milli()) / 1000.0)
        };
        Tolerance { up: side("scaleUp"), down: side("scaleDown") }
    }

    fn holds(self, ratio: f64) -> bool {
        (1.0 - self.down) <= ratio && ratio <= (1.0 + self.up)
    }
}

/// A target and its pods at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// Its pods.
    pub pods: &'a [Value],
    /// `spec.replicas` of its scale.
    pub replicas: i64,
    /// See [`Tolerance`].
    pub tolerance: Tolerance,
    /// Now.
    pub now: Timestamp,
}

/// What to compare with.
#[derive(Clone, Copy, Debug)]
pub enum Goal<'a> {
    /// So many thousandths a pod.
    Average(i64),
    /// Percent of what pods request of this resource, of one container or of all.
    Utilization {
        /// Percent.
        percent: i64,
        /// `cpu`, `memory`.
        resource: &'a str,
        /// Only this container.
        container: Option<&'a str>,
    },
}

/// A size, and what the status tells: utilisation in percent where asked for, thousandths a pod.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// Proposed size.
    pub replicas: i64,
    /// Percent of the requests.
    pub utilization: Option<i64>,
    /// Thousandths: a pod's average, or the whole value of an object.
    pub milli: i64,
}

#[expect(clippy::cast_precision_loss, reason = "counts and thousandths, far below 2^52")]
fn float(n: i64) -> f64 {
    n as f64
}

#[expect(clippy::cast_possible_truncation, reason = "float to integer saturates")]
fn ceil(x: f64) -> i64 {
    (x.ceil() as i64).min(i64::from(i32::MAX))
}

/// The pods of a scene, by what their figures are worth.
struct Groups {
    ready: i64,
    /// Not ready: idle when growing.
    unready: BTreeSet<String>,
    /// Without figures.
    missing: BTreeSet<String>,
    /// Going or failed: not counted at all.
    ignored: BTreeSet<String>,
}

fn group(scene: &Scene<'_>, samples: &Samples, cpu: bool) -> Groups {
    let mut groups =
        Groups { ready: 0, unready: BTreeSet::new(), missing: BTreeSet::new(), ignored: BTreeSet::new() };
    for pod in scene.pods {
        let name = text(pod, "/metadata/name").to_string();
        let phase = text(pod, "/status/phase");
        if !text(pod, "/metadata/deletionTimestamp").is_empty() || phase == "Failed" {
            groups.ignored.insert(name);
        } else if phase == "Pending" {
            groups.unready.insert(name);
        } else {
            match samples.get(&name) {
                None => drop(groups.missing.insert(name)),
                Some(sample) if cpu && starting(pod, sample, scene.now) => drop(groups.unready.insert(name)),
                Some(_) => groups.ready += 1,
            }
        }
    }
    groups
}

/// Do a pod's CPU figures tell of its start rather than of its work?
fn starting(pod: &Value, sample: &Sample, now: Timestamp) -> bool {
    let ready = list(pod, "/status/conditions").iter().find(|c| text(c, "/type") == "Ready");
    let since = ready.and_then(|c| time::parse(text(c, "/lastTransitionTime")).ok());
    let (Some(ready), Some(since), Ok(start)) = (ready, since, time::parse(text(pod, "/status/startTime")))
    else {
        return true;
    };
    let unready = text(ready, "/status") == "False";
    match now.duration_since(start) < CPU_INITIALIZATION {
        true => unready || sample.at.duration_since(since) < sample.window,
        false => unready && since.duration_since(start) < INITIAL_READINESS,
    }
}

/// What each pod requests, in thousandths.
fn requests(
    pods: &[Value],
    resource: &str,
    container: Option<&str>,
) -> Result<BTreeMap<String, i64>, String> {
    let given =
        |at: &Value| at.pointer("/resources/requests")?.get(resource).and_then(Quantity::from_json)?.ok();
    let one = |pod: &Value| -> Result<(String, i64), String> {
        let name = text(pod, "/metadata/name");
        if container.is_none()
            && let Some(whole) = given(&pod["spec"])
        {
            return Ok((name.to_string(), whole.milli()));
        }
        let sidecars =
            list(pod, "/spec/initContainers").iter().filter(|c| text(c, "/restartPolicy") == "Always");
        let counted = list(pod, "/spec/containers").iter().chain(sidecars);
        let mut sum = None;
        for c in counted.filter(|c| container.is_none_or(|only| only == text(c, "/name"))) {
            let missing =
                || format!("missing request for {resource} in container {} of Pod {name}", text(c, "/name"));
            sum = Some(sum.unwrap_or(0) + given(c).ok_or_else(missing)?.milli());
        }
        let absent = || format!("container {} not found in Pod {name}", container.unwrap_or_default());
        Ok((name.to_string(), sum.ok_or_else(absent)?))
    };
    pods.iter().map(one).collect()
}

/// How far the pods are from the goal: the ratio, percent of requests, thousandths a pod.
fn ratio(
    samples: &BTreeMap<String, i64>,
    wanted: &BTreeMap<String, i64>,
    goal: &Goal<'_>,
) -> Result<(f64, Option<i64>, i64), String> {
    match goal {
        Goal::Average(target) => {
            let count = i64::try_from(samples.len()).unwrap_or(i64::MAX).max(1);
            let average = samples.values().sum::<i64>() / count;
            Ok((float(average) / float(*target), None, average))
        }
        Goal::Utilization { percent, .. } => {
            let known = || samples.iter().filter_map(|(name, used)| Some((*used, *wanted.get(name)?)));
            let (used, asked) = known().fold((0_i64, 0_i64), |sum, one| (sum.0 + one.0, sum.1 + one.1));
            if asked == 0 {
                return Err("no metrics returned matched known pods".to_string());
            }
            let count = i64::try_from(known().count()).unwrap_or(i64::MAX).max(1);
            let utilization = used.saturating_mul(100) / asked;
            Ok((float(utilization) / float(*percent), Some(utilization), used / count))
        }
    }
}

/// The size by figures of every pod.
pub fn by_pods(scene: &Scene<'_>, samples: &Samples, goal: &Goal<'_>) -> Result<Found, String> {
    if scene.pods.is_empty() {
        return Err("no pods returned by selector while calculating replica count".to_string());
    }
    let cpu = matches!(goal, Goal::Utilization { resource: "cpu", .. });
    let groups = group(scene, samples, cpu);
    let wanted = match goal {
        Goal::Average(_) => BTreeMap::new(),
        Goal::Utilization { resource, container, .. } => requests(scene.pods, resource, *container)?,
    };
    let counted = |name: &String| !groups.ignored.contains(name) && !groups.unready.contains(name);
    let mut used: BTreeMap<String, i64> =
        samples.iter().filter(|(name, _)| counted(name)).map(|(name, s)| (name.clone(), s.milli)).collect();
    if used.is_empty() {
        return Err("did not receive metrics for any ready pods".to_string());
    }
    let (first, utilization, milli) = ratio(&used, &wanted, goal)?;
    let found = |replicas| Ok(Found { replicas, utilization, milli });
    let with_unready = !groups.unready.is_empty() && first > 1.0;
    if !with_unready && groups.missing.is_empty() {
        let same = scene.tolerance.holds(first);
        return found(if same { scene.replicas } else { ceil(first * float(groups.ready)) });
    }
    for name in &groups.missing {
        if first < 1.0 {
            let all = match goal {
                Goal::Average(target) => *target,
                Goal::Utilization { percent, .. } => {
                    wanted.get(name).map_or(0, |w| w * (*percent).max(100) / 100)
                }
            };
            used.insert(name.clone(), all);
        } else if first > 1.0 {
            used.insert(name.clone(), 0);
        }
    }
    if with_unready {
        used.extend(groups.unready.iter().map(|name| (name.clone(), 0)));
    }
    let (second, _, _) = ratio(&used, &wanted, goal)?;
    let turned = (first < 1.0 && second > 1.0) || (first > 1.0 && second < 1.0);
    if scene.tolerance.holds(second) || turned {
        return found(scene.replicas);
    }
    let replicas = ceil(second * float(i64::try_from(used.len()).unwrap_or(i64::MAX)));
    let backwards =
        (second < 1.0 && replicas > scene.replicas) || (second > 1.0 && replicas < scene.replicas);
    found(if backwards { scene.replicas } else { replicas })
}

/// The size by one number that stands for all pods together.
pub fn by_value(scene: &Scene<'_>, milli: i64, target: i64) -> Result<Found, String> {
    let found = |replicas| Ok(Found { replicas, utilization: None, milli });
    let ratio = float(milli) / float(target);
    if scene.replicas == 0 {
        return found(ceil(ratio));
    }
    if scene.tolerance.holds(ratio) {
        return found(scene.replicas);
    }
    if scene.pods.is_empty() {
        return Err(
            "unable to calculate ready pods: no pods returned by selector while calculating replica count"
                .to_string(),
        );
    }
    let ready = |pod: &&Value| {
        text(pod, "/status/phase") == "Running" && machinery::kinds::pod::condition(pod, "Ready") == "True"
    };
    let ready = i64::try_from(scene.pods.iter().filter(ready).count()).unwrap_or(i64::MAX);
    found(ceil(ratio * float(ready)))
}

/// The size by one number that is shared out among the pods there are (`status.replicas` of the scale).
pub fn by_share(scene: &Scene<'_>, milli: i64, target: i64, there: i64) -> Found {
    let ratio = float(milli) / (float(target) * float(there));
    let replicas = if scene.tolerance.holds(ratio) { there } else { ceil(float(milli) / float(target)) };
    let share = if there == 0 { milli } else { ceil(float(milli) / float(there)) };
    Found { replicas, utilization: None, milli: share }
}

/// `spec.minReplicas`, or its default.
pub fn min_of(autoscaler: &Value) -> i64 {
    int(autoscaler, "/spec/minReplicas").unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{at, stamp};
    use serde_json::json;

    fn pod(name: &str, phase: &str, ready: &str, since: i64) -> Value {
        json!({"metadata": {"name": name},
            "spec": {"containers": [{"name": "a", "resources": {"requests": {"cpu": "500m"}}},
                {"name": "b", "resources": {"requests": {"cpu": "500m"}}}]},
            "status": {"phase": phase, "startTime": stamp(0),
                "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": stamp(since)}]}})
    }

    fn samples(values: &[(&str, i64)]) -> Samples {
        let sample = |milli| Sample { milli, at: at(900), window: SignedDuration::from_secs(15) };
        values.iter().map(|(name, milli)| ((*name).to_string(), sample(*milli))).collect()
    }

    fn scene(pods: &[Value], replicas: i64) -> Scene<'_> {
        Scene { pods, replicas, tolerance: Tolerance::of(&Value::Null), now: at(1000) }
    }

    fn half() -> Goal<'static> {
        Goal::Utilization { percent: 50, resource: "cpu", container: None }
    }

    #[test]
    fn ready_pods_are_scaled_by_their_ratio() {
        let pods = [pod("x", "Running", "True", 1), pod("y", "Running", "True", 1)];
        let found = by_pods(&scene(&pods, 2), &samples(&[("x", 1000), ("y", 800)]), &half()).unwrap();
        assert_eq!(found, Found { replicas: 4, utilization: Some(90), milli: 900 });
        let same = by_pods(&scene(&pods, 2), &samples(&[("x", 540), ("y", 540)]), &half()).unwrap();
        assert_eq!((same.replicas, same.utilization), (2, Some(54)), "within a tenth");
        let finer =
            Scene { tolerance: Tolerance::of(&json!({"scaleUp": {"tolerance": "0.05"}})), ..scene(&pods, 2) };
        assert_eq!(by_pods(&finer, &samples(&[("x", 540), ("y", 540)]), &half()).unwrap().replicas, 3);
        let only = Goal::Utilization { percent: 50, resource: "cpu", container: Some("b") };
        assert_eq!(
            by_pods(&scene(&pods, 2), &samples(&[("x", 500), ("y", 500)]), &only).unwrap().replicas,
            4
        );
    }

    #[test]
    fn who_tells_nothing_is_busy_when_shrinking_and_idle_when_growing() {
        let pods: Vec<Value> = ["w", "x", "y", "z"].map(|n| pod(n, "Running", "True", 1)).into();
        let low = samples(&[("w", 100), ("x", 100), ("y", 100)]);
        assert_eq!(by_pods(&scene(&pods, 4), &low, &half()).unwrap().replicas, 3, "0.65 of 4 pods");
        let high = samples(&[("w", 800), ("x", 800), ("y", 800)]);
        assert_eq!(by_pods(&scene(&pods, 4), &high, &half()).unwrap().replicas, 5, "1.2 of 4 pods");
        let alone = samples(&[("w", 700)]);
        assert_eq!(by_pods(&scene(&pods, 4), &alone, &half()).unwrap().replicas, 4, "no turn to shrinking");
    }

    #[test]
    fn pods_that_start_count_as_idle_and_going_ones_not_at_all() {
        let mut pods = vec![
            pod("x", "Running", "True", 1),
            pod("y", "Pending", "False", 1),
            pod("z", "Failed", "False", 1),
        ];
        let found = by_pods(&scene(&pods, 2), &samples(&[("x", 2000), ("z", 9000)]), &half()).unwrap();
        assert_eq!((found.replicas, found.utilization), (4, Some(200)));
        pods.truncate(1);
        let fresh = Scene { now: at(10), ..scene(&pods, 1) };
        let early = BTreeMap::from([(
            "x".to_string(),
            Sample { milli: 2000, at: at(10), window: SignedDuration::from_secs(15) },
        )]);
        let none = by_pods(&fresh, &early, &half()).unwrap_err();
        assert_eq!(none, "did not receive metrics for any ready pods");
        let memory = Goal::Average(1000);
        assert_eq!(by_pods(&fresh, &early, &memory).unwrap().replicas, 2, "only CPU is untrue at the start");
    }

    #[test]
    fn requests_must_be_known() {
        let mut one = pod("x", "Running", "True", 1);
        one["spec"]["containers"][1]["resources"] = json!({});
        let pods = [one];
        let why = by_pods(&scene(&pods, 1), &samples(&[("x", 1)]), &half()).unwrap_err();
        assert_eq!(why, "missing request for cpu in container b of Pod x");
        let mut whole = pods[0].clone();
        whole["spec"]["resources"] = json!({"requests": {"cpu": "1"}});
        let pods = [whole];
        assert_eq!(by_pods(&scene(&pods, 1), &samples(&[("x", 1000)]), &half()).unwrap().replicas, 2);
    }

    #[test]
    fn single_numbers() {
        let pods = [pod("x", "Running", "True", 1), pod("y", "Running", "False", 1)];
        assert_eq!(by_value(&scene(&pods, 2), 3000, 1000).unwrap().replicas, 3, "three times one ready pod");
        assert_eq!(by_value(&scene(&[], 0), 2500, 1000).unwrap().replicas, 3);
        assert_eq!(
            by_share(&scene(&pods, 2), 10_000, 2000, 2),
            Found { replicas: 5, utilization: None, milli: 5000 }
        );
        assert_eq!(by_share(&scene(&pods, 2), 4100, 2000, 2).replicas, 2);
    }
}
