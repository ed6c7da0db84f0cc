//! HorizontalPodAutoscalers: the size of a target follows figures of its pods.
//!
//! Every autoscaler is looked at once in [`SYNC`] and when its spec changes; without one nothing runs and nothing is
//! asked for. [`replicas`] computes the size that each metric asks for, [`rules`] what of it is done now; the shell here
//! reads the scale and the figures, writes the scale and tells in conditions and events, in upstream's words
//! (`podautoscaler/horizontal.go`, Kubernetes v1.36). Any kind with a `scale` subresource can be a target.
//! What is remembered (recent proposals and changes) is in memory only, as upstream: a restart shrinks nothing early.

mod readings;
mod replicas;
mod rules;

use crate::context::{Context, Outcome, Reconcile, run};
use crate::custom_kinds::Kinds;
use async_trait::async_trait;
use client::cache::Cache;
use client::events::{EventType, Subject};
use client::queue::Queue;
use client::{Object, ObjectKey, Verb, Write};
use jiff::Timestamp;
use k8s_schema::{Gvr, gvr};
use machinery::kinds::get::{int, list, text};
use machinery::quantity::Quantity;
use machinery::selector::LabelSelector;
use machinery::status::ApiError;
use machinery::time;
use parking_lot::Mutex;
use readings::Readings;
use replicas::{Found, Goal, Scene, Tolerance, by_pods, by_share, by_value, min_of};
use rules::{History, Proposal};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

const AUTOSCALERS: Gvr = Gvr::new("autoscaling", "v2", "horizontalpodautoscalers");
/// How often figures are compared, as upstream by default.
const SYNC: Duration = Duration::from_secs(15);
/// Autoscalers that are looked at concurrently: their time goes by waiting for figures.
const WORKERS: usize = 4;

struct Autoscaler {
    context: Context,
    autoscalers: Arc<Cache>,
    pods: Arc<Cache>,
    kinds: Arc<Kinds>,
    histories: Mutex<BTreeMap<ObjectKey, History>>,
    /// What each autoscaler selects, to find two that fight over the same pods.
    selectors: Mutex<BTreeMap<ObjectKey, LabelSelector>>,
}

/// Starts it.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    let queue = Arc::new(Queue::default());
    let controller = Autoscaler {
        context: context.clone(),
        autoscalers: context.informers.of(&AUTOSCALERS),
        pods: context.informers.of(&gvr::PODS),
        kinds: Kinds::start(&context.informers),
        histories: Mutex::default(),
        selectors: Mutex::default(),
    };
    // A status is our own work: looking again because of it would never end.
    // (An autoscaler has no generation, as upstream.)
    let waiting = queue.clone();
    controller.autoscalers.on_change(Box::new(move |old, new| {
        let spec = |object: &Arc<Object>| object.value().map(|v| v["spec"].clone()).unwrap_or_default();
        let same = old.zip(new).is_some_and(|(old, new)| old.uid() == new.uid() && spec(old) == spec(new));
        if let Some(object) = new.or(old).filter(|_| !same) {
            waiting.add(object.key.clone());
        }
    }));
    let caches = vec![controller.autoscalers.clone(), controller.pods.clone()];
    run("horizontalpodautoscaler", caches, queue, WORKERS, Arc::new(controller))
}

/// The target of an autoscaler as it is now.
struct Target {
    gvr: Gvr,
    key: ObjectKey,
    scale: Value,
    /// `spec.replicas`.
    current: i64,
    /// `status.replicas`.
    there: i64,
}

/// A reason and what it is about: of a condition, and of an event.
type Trouble = (&'static str, String);

/// What a metric asks for: the size, its name for people, its row in the status.
type Answer = (i64, String, Value);

/// What all metrics together ask for.
struct Asked {
    replicas: i64,
    /// The metric that asked for the most.
    by: String,
    /// Some metrics could not be read; the others count.
    trouble: Option<String>,
}

/// The status of an autoscaler while it is looked at.
struct Draft {
    status: Value,
    now: Timestamp,
}

impl Draft {
    fn of(autoscaler: &Value, now: Timestamp) -> Draft {
        let mut status = autoscaler["status"].clone();
        if !status.is_object() {
            status = json!({"desiredReplicas": 0});
        }
        Draft { status, now }
    }

    fn condition(&mut self, kind: &str, truth: bool, (reason, message): (&str, &str)) {
        let truth = if truth { "True" } else { "False" };
        let mut conditions = list(&self.status, "/conditions").to_vec();
        let old = conditions.iter_mut().find(|c| text(c, "/type") == kind);
        let since = old.as_ref().filter(|c| text(c, "/status") == truth);
        let since =
            since.map_or_else(|| time::format(self.now), |c| text(c, "/lastTransitionTime").to_string());
        let new = json!({"type": kind, "status": truth, "reason": reason, "message": message,
            "lastTransitionTime": since});
        match old {
            Some(old) => *old = new,
            None => conditions.push(new),
        }
        self.status["conditions"] = json!(conditions);
    }
}

impl Autoscaler {
    fn tell(&self, autoscaler: &Object, kind: EventType, reason: &str, message: impl Into<String>) {
        let subject = Subject::of("autoscaling/v2", "HorizontalPodAutoscaler", autoscaler);
        self.context.recorder.record(subject, kind, reason, message);
    }

    /// The served resource of a kind.
    fn resource(&self, reference: &Value) -> Result<Gvr, String> {
        let (api_version, kind) = (text(reference, "/apiVersion"), text(reference, "/kind"));
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        if let Some(row) = k8s_schema::resource_for_kind(group, version, kind) {
            return Ok(row.gvr.clone());
        }
        let custom = self.kinds.find(group, version, kind);
        custom.map(|k| k.gvr).ok_or_else(|| format!("no matches for kind \"{kind}\" in group \"{group}\""))
    }

    async fn target(&self, namespace: &str, spec: &Value) -> Result<Target, String> {
        let reference = &spec["scaleTargetRef"];
        let gvr = self.resource(reference)?;
        let key = ObjectKey::new(namespace, text(reference, "/name"));
        let scale = self.context.client.scale(&gvr, &key).await.map_err(|e| e.to_string())?;
        let scale = scale.value().map_err(|e| e.to_string())?;
        let number = |at| int(&scale, at).unwrap_or(0);
        Ok(Target { gvr, key, current: number("/spec/replicas"), there: number("/status/replicas"), scale })
    }

    /// The target's selector and its pods; trouble in a condition's and an event's words.
    fn selected(&self, own: &ObjectKey, target: &Target) -> Result<(LabelSelector, Vec<Value>), Trouble> {
        let selector = text(&target.scale, "/status/selector");
        if selector.is_empty() {
            return Err(("InvalidSelector", "the HPA target's scale is missing a selector".to_string()));
        }
        let parsed = LabelSelector::parse(selector).map_err(|e| {
            let words = "couldn't convert selector into a corresponding internal selector object";
            ("InvalidSelector", format!("{words}: {}", e.0))
        })?;
        let all = self.pods.list_in(&own.namespace);
        let pods: Vec<&Arc<Object>> = all.iter().filter(|p| parsed.matches(&p.meta().labels)).collect();
        let mut selectors = self.selectors.lock();
        selectors.insert(own.clone(), parsed.clone());
        let rivals: Vec<String> = selectors
            .iter()
            .filter(|(key, s)| {
                key.namespace == own.namespace && pods.iter().any(|p| s.matches(&p.meta().labels))
            })
            .map(|(key, _)| key.to_string())
            .collect();
        if rivals.len() > 1 {
            let words = format!(
                "pods by selector {selector} are controlled by multiple HPAs: [{}]",
                rivals.join(" ")
            );
            return Err(("AmbiguousSelector", words));
        }
        Ok((parsed, pods.iter().filter_map(|p| p.value().ok()).collect()))
    }

    async fn metric(
        &self,
        m: &Value,
        readings: &Readings<'_>,
        scene: &Scene<'_>,
        there: i64,
    ) -> Result<Answer, Trouble> {
        match text(m, "/type") {
            "Resource" => resource(&m["resource"], "Resource", readings, scene).await,
            "ContainerResource" => {
                resource(&m["containerResource"], "ContainerResource", readings, scene).await
            }
            "Pods" => pods(&m["pods"], readings, scene).await,
            "Object" => {
                let described = &m["object"]["describedObject"];
                let failed = |e| ("FailedGetObjectMetric", format!("failed to get object metric value: {e}"));
                let gvr = self.resource(described).map_err(failed)?;
                object(&m["object"], &gvr, readings, (scene, there)).await.map_err(failed)
            }
            "External" => external(&m["external"], readings, (scene, there)).await,
            other => Err(("InvalidMetricSourceType", format!("unknown metric source type \"{other}\""))),
        }
    }

    /// What the metrics ask for; trouble where not enough of them are known.
    async fn ask(
        &self,
        autoscaler: &Object,
        spec: &Value,
        target: &Target,
        draft: &mut Draft,
    ) -> Result<Asked, String> {
        let (selector, pods) = match self.selected(&autoscaler.key, target) {
            Ok(found) => found,
            Err((reason, words)) => {
                let event = if words.ends_with("missing a selector") { "SelectorRequired" } else { reason };
                self.tell(autoscaler, EventType::Warning, event, &words);
                draft.condition("ScalingActive", false, (reason, &words));
                return Err(words);
            }
        };
        let namespace = &*autoscaler.key.namespace;
        let selector = selector.to_string();
        let readings = Readings { client: &self.context.client, namespace, pods: &selector, now: draft.now };
        let tolerance = Tolerance::of(&spec["behavior"]);
        let scene = Scene { pods: &pods, replicas: target.current, tolerance, now: draft.now };
        let mut asked = Asked { replicas: 0, by: String::new(), trouble: None };
        let metrics = list(spec, "/metrics");
        let mut failed: Vec<Trouble> = Vec::new();
        let mut statuses = Vec::new();
        for m in metrics {
            match self.metric(m, &readings, &scene, target.there).await {
                Ok((replicas, by, status)) => {
                    statuses.push(status);
                    if asked.by.is_empty() || replicas > asked.replicas {
                        (asked.replicas, asked.by) = (replicas, by);
                    }
                }
                Err((reason, words)) => {
                    self.tell(autoscaler, EventType::Warning, reason, &words);
                    failed.push((reason, words));
                    // Readers look for a status at its metric's place.
                    statuses.push(json!({"type": ""}));
                }
            }
        }
        draft.status["currentMetrics"] = json!(statuses);
        if let Some((reason, first)) = failed.first() {
            let (count, all) = (failed.len(), metrics.len());
            let words = format!("invalid metrics ({count} invalid out of {all}), first error is: {first}");
            if count >= all || asked.replicas < target.current {
                let why = format!("the HPA was unable to compute the replica count: {first}");
                draft.condition("ScalingActive", false, (reason, &why));
                return Err(words);
            }
            asked.trouble = Some(words);
        }
        let words = format!("the HPA was able to successfully calculate a replica count from {}", asked.by);
        draft.condition("ScalingActive", true, ("ValidMetricFound", &words));
        Ok(asked)
    }

    /// The size to set and why; `None`: the size stays.
    async fn decide(
        &self,
        autoscaler: &Object,
        value: &Value,
        target: &Target,
        draft: &mut Draft,
    ) -> Result<Option<(i64, String)>, String> {
        let (min, max) = (min_of(value), int(value, "/spec/maxReplicas").unwrap_or(0));
        let current = target.current;
        draft.status["currentMetrics"] = Value::Null;
        if current == 0 && min != 0 {
            let words = "scaling is disabled since the replica count of the target is zero";
            draft.condition("ScalingActive", false, ("ScalingDisabled", words));
            return Ok(None);
        }
        if current > max {
            return Ok(Some((max, "Current number of replicas above Spec.MaxReplicas".to_string())));
        }
        if current < min {
            return Ok(Some((min, "Current number of replicas below Spec.MinReplicas".to_string())));
        }
        let asked = self.ask(autoscaler, &value["spec"], target, draft).await?;
        let reason = match asked.replicas > current {
            true => format!("{} above target", asked.by),
            false => "All metrics below target".to_string(),
        };
        let proposal = Proposal { current, wanted: asked.replicas, min, max, now: draft.now };
        let settled = {
            let mut histories = self.histories.lock();
            let history = histories.entry(autoscaler.key.clone()).or_default();
            history.settle(&value["spec"]["behavior"], proposal)
        };
        draft.condition("AbleToScale", true, settled.able);
        let (limited, why, words) = settled.limited;
        draft.condition("ScalingLimited", limited, (why, words));
        if let Some(trouble) = asked.trouble {
            tracing::info!(autoscaler = %autoscaler.key, trouble, "some metrics are not known");
        }
        Ok((settled.replicas != current).then_some((settled.replicas, reason)))
    }

    async fn rescale(
        &self,
        (autoscaler, behavior): (&Object, &Value),
        target: &Target,
        (size, reason): (i64, &str),
        draft: &mut Draft,
    ) -> Result<(), ApiError> {
        let mut scale = target.scale.clone();
        scale["spec"]["replicas"] = json!(size);
        let write = Write {
            gvr: target.gvr.clone(),
            key: target.key.clone(),
            subresource: "scale",
            verb: Verb::Update(scale),
        };
        if let Err(error) = self.context.client.write(write).await {
            let words = format!("New size: {size}; reason: {reason}; error: {error}");
            self.tell(autoscaler, EventType::Warning, "FailedRescale", words);
            let words = format!("the HPA controller was unable to update the target scale: {error}");
            draft.condition("AbleToScale", false, ("FailedUpdateScale", &words));
            return Err(error);
        }
        let words = format!("the HPA controller was able to update the target scale to {size}");
        draft.condition("AbleToScale", true, ("SucceededRescale", &words));
        let words = format!("New size: {size}; reason: {reason}");
        self.tell(autoscaler, EventType::Normal, "SuccessfulRescale", words);
        let mut histories = self.histories.lock();
        let history = histories.entry(autoscaler.key.clone()).or_default();
        history.changed(behavior, target.current, size, draft.now);
        draft.status["lastScaleTime"] = json!(time::format(draft.now));
        Ok(())
    }

    /// One look: what the status then is, and whether it went well.
    async fn look(&self, autoscaler: &Object, value: &Value) -> (Value, Result<(), ApiError>) {
        let mut draft = Draft::of(value, self.context.now());
        let target = match self.target(&autoscaler.key.namespace, &value["spec"]).await {
            Ok(target) => target,
            Err(why) => {
                self.tell(autoscaler, EventType::Warning, "FailedGetScale", &why);
                let words = format!("the HPA controller was unable to get the target's current scale: {why}");
                draft.condition("AbleToScale", false, ("FailedGetScale", &words));
                return (draft.status, Err(ApiError::internal(why)));
            }
        };
        let words = "the HPA controller was able to get the target's current scale";
        draft.condition("AbleToScale", true, ("SucceededGetScale", words));
        let begin = |mut histories: parking_lot::MutexGuard<'_, BTreeMap<ObjectKey, History>>| {
            histories.entry(autoscaler.key.clone()).or_default().begin(target.current, draft.now);
        };
        begin(self.histories.lock());
        draft.status["currentReplicas"] = json!(target.current);
        match self.decide(autoscaler, value, &target, &mut draft).await {
            Err(why) => {
                self.tell(autoscaler, EventType::Warning, "FailedComputeMetricsReplicas", &why);
                (draft.status, Err(ApiError::internal(why)))
            }
            Ok(None) => {
                draft.status["desiredReplicas"] = json!(target.current);
                (draft.status, Ok(()))
            }
            Ok(Some((size, reason))) => {
                let behavior = &value["spec"]["behavior"];
                let done = self.rescale((autoscaler, behavior), &target, (size, &reason), &mut draft).await;
                if done.is_ok() {
                    draft.status["desiredReplicas"] = json!(size);
                }
                (draft.status, done)
            }
        }
    }
}

#[async_trait]
impl Reconcile for Autoscaler {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let Some(autoscaler) = self.autoscalers.get(key) else {
            self.histories.lock().remove(key);
            self.selectors.lock().remove(key);
            return Ok(None);
        };
        let value = autoscaler.value().map_err(ApiError::internal)?;
        let (mut status, done) = self.look(&autoscaler, &value).await;
        if status["currentMetrics"].is_null()
            && let Some(fields) = status.as_object_mut()
        {
            fields.remove("currentMetrics");
        }
        if status != value["status"] {
            let mut whole = value;
            whole["status"] = status;
            self.context.client.update_status(&AUTOSCALERS, key, whole).await?;
        }
        if let Err(error) = done {
            tracing::debug!(autoscaler = %key, %error, "not scaled");
        }
        Ok(Some(SYNC))
    }
}

fn quantity(milli: i64) -> Value {
    json!(Quantity::from_milli(milli).to_string())
}

fn milli(value: Option<&Value>) -> Option<i64> {
    Some(Quantity::from_json(value?)?.ok()?.milli())
}

async fn resource(
    source: &Value,
    kind: &'static str,
    readings: &Readings<'_>,
    scene: &Scene<'_>,
) -> Result<Answer, Trouble> {
    let name = text(source, "/name");
    let (container, what, reason) = match kind {
        "Resource" => (None, "resource", "FailedGetResourceMetric"),
        _ => (Some(text(source, "/container")), "container", "FailedGetContainerResourceMetric"),
    };
    let failed = |e: String| (reason, format!("failed to get {name} {what} metric value: {e}"));
    let target = &source["target"];
    let (goal, doing, by) = match (milli(target.get("averageValue")), int(target, "/averageUtilization")) {
        (Some(average), _) => (Goal::Average(average), "usage", format!("{name} {what}")),
        (None, Some(percent)) => {
            let by = format!("{name} {what} utilization (percentage of request)");
            (Goal::Utilization { percent, resource: name, container }, "utilization", by)
        }
        (None, None) => {
            let words = "invalid resource metric source: neither an average utilization target nor an average value (usage) target was set";
            return Err(failed(words.to_string()));
        }
    };
    let samples = readings.resource(name, container).await.map_err(|e| {
        failed(format!("failed to get {name} {doing}: unable to get metrics for resource {name}: {e}"))
    })?;
    let found =
        by_pods(scene, &samples, &goal).map_err(|e| failed(format!("failed to get {name} {doing}: {e}")))?;
    let mut current = json!({"averageValue": quantity(found.milli)});
    if let Some(percent) = found.utilization {
        current["averageUtilization"] = json!(percent);
    }
    let mut row = json!({"name": name, "current": current});
    let field = if container.is_some() { "containerResource" } else { "resource" };
    if let Some(container) = container {
        row["container"] = json!(container);
    }
    Ok((found.replicas, by, json!({"type": kind, field: row})))
}

async fn pods(source: &Value, readings: &Readings<'_>, scene: &Scene<'_>) -> Result<Answer, Trouble> {
    let metric = &source["metric"];
    let name = text(metric, "/name");
    let failed = |e: String| ("FailedGetPodsMetric", format!("failed to get pods metric value: {e}"));
    let samples =
        readings.pods(metric).await.map_err(|e| failed(format!("unable to get metric {name}: {e}")))?;
    let average = milli(source["target"].get("averageValue")).unwrap_or(1);
    let found = by_pods(scene, &samples, &Goal::Average(average)).map_err(failed)?;
    let row = json!({"metric": metric, "current": {"averageValue": quantity(found.milli)}});
    Ok((found.replicas, format!("pods metric {name}"), json!({"type": "Pods", "pods": row})))
}

/// A size by one number: shared out (`averageValue`) or as a whole (`value`). The status names the same.
fn single(
    target: &Value,
    milli_now: i64,
    (scene, there): (&Scene<'_>, i64),
) -> Result<(Found, Value), String> {
    match (milli(target.get("averageValue")), milli(target.get("value"))) {
        (Some(average), _) => {
            let found = by_share(scene, milli_now, average, there);
            Ok((found, json!({"averageValue": quantity(found.milli)})))
        }
        (None, Some(value)) => {
            let found = by_value(scene, milli_now, value)?;
            Ok((found, json!({"value": quantity(found.milli)})))
        }
        (None, None) => Err("neither a value target nor an average value target was set".to_string()),
    }
}

async fn object(
    source: &Value,
    gvr: &Gvr,
    readings: &Readings<'_>,
    scene: (&Scene<'_>, i64),
) -> Result<Answer, String> {
    let (metric, described) = (&source["metric"], &source["describedObject"]);
    let (name, kind, own) = (text(metric, "/name"), text(described, "/kind"), text(described, "/name"));
    let what = match &*gvr.group {
        "" => gvr.resource.to_string(),
        group => format!("{}.{group}", gvr.resource),
    };
    let milli = readings
        .object(&what, own, metric)
        .await
        .map_err(|e| format!("unable to get metric {name}: {kind} on {} {own}/{e}", readings.namespace))?;
    let (found, current) = single(&source["target"], milli, scene)?;
    let row = json!({"metric": metric, "describedObject": described, "current": current});
    Ok((found.replicas, format!("{kind} metric {name}"), json!({"type": "Object", "object": row})))
}

async fn external(
    source: &Value,
    readings: &Readings<'_>,
    scene: (&Scene<'_>, i64),
) -> Result<Answer, Trouble> {
    let metric = &source["metric"];
    let name = text(metric, "/name");
    let failed =
        |e: String| ("FailedGetExternalMetric", format!("failed to get {name} external metric value: {e}"));
    let milli = readings
        .external(metric)
        .await
        .map_err(|e| failed(format!("unable to get external metric {}/{name}: {e}", readings.namespace)))?;
    let (found, current) = single(&source["target"], milli, scene).map_err(failed)?;
    let by = format!("external metric {name}({})", metric.get("selector").unwrap_or(&Value::Null));
    let row = json!({"metric": metric, "current": current});
    Ok((found.replicas, by, json!({"type": "External", "external": row})))
}
