//! custom.metrics.k8s.io and external.metrics.k8s.io from what pods tell Prometheus, with nothing installed.
//!
//! Pods with the annotations `prometheus.io/scrape: "true"`, `port`, `path`, `scheme` are asked when somebody asks us
//! about them, no earlier and no others (`scrape`). Names, sums and rates are those that metrics adapters give with
//! their usual rules:
//! - a figure of a **pod** is the sum of its series; counters are rates per second, under their name without `_total`;
//! - of a **service** the sum over the pods that it selects, of a **namespace** over all its pods, of **any other
//!   object** over the series that name it in a label called as its kind (`ingress="x"`), of pods in its namespace;
//! - an **external** metric is the sum of the series that its labels select, of all pods in the asker's namespace and of
//!   those elsewhere that say [`EXTERNAL_NOTE`]: nobody reads another namespace's pods unasked.
//!
//! **Components in this process** list them by `client::Client`: resource `pods/*/<metric>`, `<resource>/<name>/<metric>`
//! or, external, `<metric>`; all may end in `?metricLabelSelector=…`. Where an APIService names another server for one
//! version of the group, that server answers for all.
//! Deliberately not here: figures of nodes and containers (`node_metrics`), what follows from them (autoscalers).

mod exposition;
mod scrape;

use crate::Api;
use crate::aggregation::{GroupVersion, Remote, Remotes, discovery};
use crate::http::Inbound;
use crate::http::respond::{self, Body};
use crate::path::{Path, Query};
use crate::resources::Resource;
use crate::verbs::{no_such_resource, not_allowed};
use ::http::{Method, Response};
use client::{ListOptions, Object, ObjectKey, ObjectList};
use k8s_schema::{Gvr, gvr};
use machinery::quantity::Quantity;
use machinery::selector::{LabelSelector, Op, Requirement};
use machinery::status::ApiError;
use machinery::time;
use parking_lot::Mutex;
use scrape::{Reading, Scraper};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Figures of objects.
const CUSTOM: &str = "custom.metrics.k8s.io";
/// Figures of anything else.
const EXTERNAL: &str = "external.metrics.k8s.io";
/// What is served, preferred versions first.
const SERVED: [(&str, &str); 3] = [(CUSTOM, "v1beta2"), (CUSTOM, "v1beta1"), (EXTERNAL, "v1beta1")];
/// A pod whose figures are external metrics of every namespace.
const EXTERNAL_NOTE: &str = "autoscaling.gantry.dev/external-metrics";
/// Names that discovery lists.
const LISTED_MAX: usize = 2_000;
/// As of the usual adapter's APIServices.
const PRIORITY: i64 = 100;

/// What is remembered between questions.
#[derive(Default)]
pub struct PodFigures {
    scraper: Scraper,
    known: Mutex<Arc<BTreeSet<String>>>,
    listed: Mutex<Option<Listed>>,
}

/// Other servers' group versions, the names that are known, and both together.
type Listed = (Arc<Remotes>, Arc<BTreeSet<String>>, Arc<Remotes>);

/// One thing's figure.
struct Figure {
    described: Value,
    at_ms: i64,
    window: Option<u64>,
    sum: f64,
}

/// What is asked about.
struct Asked<'a> {
    namespace: &'a str,
    /// `pods`, `ingresses.networking.k8s.io`.
    resource: &'a str,
    /// Or `*`.
    name: &'a str,
    metric: &'a str,
    labels: LabelSelector,
    /// Of series.
    series: LabelSelector,
}

fn selector(text: &str) -> Result<LabelSelector, ApiError> {
    LabelSelector::parse(text).map_err(|e| ApiError::bad_request(e.to_string()))
}

fn missing(what: &str) -> ApiError {
    ApiError::new(404, "NotFound", format!("the server could not find the metric {what}"))
}

/// The series of a reading that are meant, added up; `None` when there is none.
fn sum<'a>(
    readings: impl IntoIterator<Item = &'a Reading>,
    series: &LabelSelector,
) -> Option<(i64, Option<u64>, f64)> {
    let mut out: Option<(i64, Option<u64>, f64)> = None;
    for reading in readings {
        for value in reading.series.iter().filter(|(l, v)| v.is_finite() && series.matches(l)).map(|(_, v)| v)
        {
            let (at, window, sum) = out.unwrap_or((reading.at_ms, reading.window, 0.0));
            out = Some((at.min(reading.at_ms), window.max(reading.window), sum + value));
        }
    }
    out
}

#[expect(clippy::cast_possible_truncation, reason = "a float cast saturates")]
fn quantity(value: f64) -> String {
    Quantity::from_milli((value * 1000.0).round() as i64).to_string()
}

impl Figure {
    fn of(described: Value, (at_ms, window, sum): (i64, Option<u64>, f64)) -> Figure {
        Figure { described, at_ms, window, sum }
    }

    /// As an item of a list.
    fn item(&self, (group, version): (&str, &str), metric: &str, series: &LabelSelector) -> Value {
        let at = time::format(jiff::Timestamp::from_millisecond(self.at_ms).unwrap_or_default());
        let mut item = json!({"timestamp": at, "value": quantity(self.sum)});
        if let Some(seconds) = self.window {
            item["windowSeconds"] = json!(seconds);
        }
        let selector = if series.is_everything() { Value::Null } else { series_json(series) };
        match (group, version) {
            (CUSTOM, "v1beta2") => item["metric"] = json!({"name": metric, "selector": selector}),
            (CUSTOM, _) => {
                item["metricName"] = json!(metric);
                item["selector"] = selector;
            }
            _ => {
                item["metricName"] = json!(metric);
                item["metricLabels"] = json!({});
                return item;
            }
        }
        item["describedObject"] = self.described.clone();
        item
    }
}

/// A selector as objects hold it.
fn series_json(selector: &LabelSelector) -> Value {
    let expression = |r: &Requirement| {
        let operator = match r.op {
            Op::In | Op::Equals => "In",
            Op::NotIn | Op::NotEquals => "NotIn",
            Op::Exists => "Exists",
            Op::DoesNotExist => "DoesNotExist",
            Op::GreaterThan => "Gt",
            Op::LessThan => "Lt",
        };
        json!({"key": r.key, "operator": operator, "values": r.values})
    };
    json!({"matchExpressions": selector.requirements.iter().map(expression).collect::<Vec<_>>()})
}

fn described(resource: &Resource, object: &Object) -> Value {
    let row = &resource.row;
    let mut described =
        json!({"kind": &*row.kind, "name": &*object.key.name, "apiVersion": row.api_version()});
    if !object.key.namespace.is_empty() {
        described["namespace"] = json!(&*object.key.namespace);
    }
    described
}

/// What of the readings is about an object.
fn readings_of(resource: &Resource, object: &Object, readings: &[(&Arc<Object>, Reading)]) -> Vec<Reading> {
    let of = |chosen: &dyn Fn(&Object) -> bool| -> Vec<Reading> {
        readings.iter().filter(|(p, _)| chosen(p)).map(|(_, reading)| reading.clone()).collect()
    };
    match (resource.group(), resource.name()) {
        ("", "pods") => of(&|p| p.key == object.key),
        ("", "namespaces") => of(&|p| p.key.namespace == object.key.name),
        ("", "services") => {
            let value = object.value().unwrap_or_default();
            let chosen = value["spec"]["selector"].as_object().into_iter().flatten();
            let chosen = LabelSelector::from_map(chosen.filter_map(|(k, v)| Some((k.as_str(), v.as_str()?))));
            of(&|p| !chosen.is_everything() && chosen.matches(&p.meta().labels))
        }
        _ => {
            let mut all = of(&|_| true);
            let singular = &*resource.row.singular;
            for reading in &mut all {
                reading
                    .series
                    .retain(|labels, _| labels.get(singular).is_some_and(|l| **l == *object.key.name));
            }
            all
        }
    }
}

impl Api {
    /// Is this group version answered here? Not where another server is named for the group.
    pub(crate) fn serves_figures(&self, group: &str, version: &str) -> bool {
        SERVED.contains(&(group, version)) && self.figures_elsewhere(group).is_none()
    }

    /// The version of a group of figures that another server answers.
    pub(crate) fn figures_elsewhere(&self, group: &str) -> Option<String> {
        let ours = group == CUSTOM || group == EXTERNAL;
        let remotes = self.aggregator.now();
        ours.then(|| remotes.keys().rev().find(|(g, _)| g == group).map(|(_, v)| v.clone())).flatten()
    }

    /// Pods of a namespace, "" for all.
    fn pods_in(&self, namespace: &str) -> Vec<Arc<Object>> {
        let all = self.cached_all(&gvr::PODS);
        all.values().filter(|p| namespace.is_empty() || *p.key.namespace == *namespace).cloned().collect()
    }

    async fn custom_figures(&self, asked: &Asked<'_>) -> Result<Vec<Figure>, ApiError> {
        let (metric, resource) = (asked.metric, asked.resource);
        let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
        let registry = self.registry.now();
        let found = registry.all().find(|r| r.is(group, plural) && !r.row.legacy);
        let found = found.ok_or_else(|| missing(&format!("{metric} for {resource}")))?;
        let place = if found.row.namespaced { asked.namespace } else { "" };
        let objects: Vec<Arc<Object>> = match asked.name {
            "*" => {
                let here = |o: &&Arc<Object>| place.is_empty() || *o.key.namespace == *place;
                let all = self.cached_all(found.gvr());
                all.values()
                    .filter(here)
                    .filter(|o| asked.labels.matches(&o.meta().labels))
                    .cloned()
                    .collect()
            }
            name => self.cached(found.gvr(), place, name).into_iter().collect(),
        };
        let is_pods = found.is("", "pods");
        let own = if found.is("", "namespaces") { asked.name.trim_matches('*') } else { place };
        let pods = if is_pods { objects.clone() } else { self.pods_in(own) };
        let readings = self.figures.scraper.read(self, &pods, metric).await;
        let named = |series: &str| {
            let one = if asked.name == "*" { String::new() } else { format!(" {}{series}", asked.name) };
            missing(&format!("{metric} for {resource}{one}"))
        };
        if readings.is_empty() {
            return Err(named(""));
        }
        self.figures.learn(metric);
        let figure = |object: &Arc<Object>| {
            Some(Figure::of(
                described(found, object),
                sum(&readings_of(found, object, &readings), &asked.series)?,
            ))
        };
        let figures: Vec<Figure> = objects.iter().filter_map(figure).collect();
        if figures.is_empty() && asked.name != "*" {
            let chosen = &asked.series;
            let with =
                if chosen.is_everything() { String::new() } else { format!(" with selector {chosen}") };
            return Err(named(&with));
        }
        Ok(figures)
    }

    async fn external_figures(
        &self,
        namespace: &str,
        metric: &str,
        series: &LabelSelector,
    ) -> Result<Vec<Figure>, ApiError> {
        let mut pods = self.pods_in("");
        let open = |p: &Object| p.meta().annotations.get(EXTERNAL_NOTE).is_some_and(|v| v == "true");
        pods.retain(|p| namespace.is_empty() || *p.key.namespace == *namespace || open(p));
        let readings = self.figures.scraper.read(self, &pods, metric).await;
        if readings.is_empty() {
            return Err(missing(&format!("{metric} for namespaces")));
        }
        self.figures.learn(metric);
        let sum = sum(readings.iter().map(|(_, r)| r), series);
        Ok(sum.map(|s| Figure::of(Value::Null, s)).into_iter().collect())
    }

    /// The items of a list, by what follows the namespace in its path.
    async fn figures_of(
        &self,
        at: (&str, &str),
        namespace: &str,
        rest: &[&str],
        (labels, series): (&str, &str),
    ) -> Result<Vec<Value>, ApiError> {
        let (metric, series, figures) = match (at.0, rest) {
            (CUSTOM, [resource, name, metric]) => {
                let (labels, series) = (selector(labels)?, selector(series)?);
                let asked = Asked { namespace, resource, name, metric, labels, series };
                let figures = self.custom_figures(&asked).await?;
                (*metric, asked.series, figures)
            }
            (EXTERNAL, [metric]) => {
                let series = selector(labels)?;
                let figures = self.external_figures(namespace, metric, &series).await?;
                (*metric, series, figures)
            }
            _ => return Err(no_such_resource()),
        };
        Ok(figures.iter().map(|f| f.item(at, metric, &series)).collect())
    }

    /// A list for a component of this process.
    pub(crate) async fn list_figures(
        &self,
        gvr: &Gvr,
        options: &ListOptions,
    ) -> Result<ObjectList, ApiError> {
        let (path, query) = gvr.resource.split_once('?').unwrap_or((&gvr.resource, ""));
        let (namespace, rest): (&str, Vec<&str>) =
            (options.namespace.as_deref().unwrap_or_default(), path.split('/').collect());
        let query = Query::parse(query);
        let selectors = (options.label_selector.as_str(), query.get("metricLabelSelector"));
        let items = self.figures_of((&gvr.group, &gvr.version), namespace, &rest, selectors).await?;
        let object = |item| crate::storage::unstored(&ObjectKey::cluster(""), 0, item);
        Ok(ObjectList { items: items.into_iter().map(object).collect(), revision: 0 })
    }

    /// Answers an authorized request; `None`: it is not about figures that are served here.
    pub(crate) async fn answer_figures(
        &self,
        inbound: &Inbound,
        path: &Path,
    ) -> Option<Result<Response<Body>, ApiError>> {
        let answered = match path {
            Path::Resource(p) if self.serves_figures(&p.group, &p.version) => {
                let at = (p.group.as_str(), p.version.as_str());
                let series = inbound.query.get("metricLabelSelector");
                let labels = inbound.query.get("labelSelector");
                // `namespaces/x/metrics/m` is about the namespace.
                let (namespace, rest) = match (p.resource.as_str(), p.name.as_str(), p.subresource.as_str()) {
                    ("metrics", metric, "") if at.0 == CUSTOM => {
                        ("", vec!["namespaces", &p.namespace, metric])
                    }
                    (metric, "", "") => (p.namespace.as_str(), vec![metric]),
                    (resource, name, metric) => (p.namespace.as_str(), vec![resource, name, metric]),
                };
                let kind = if at.0 == CUSTOM { "MetricValueList" } else { "ExternalMetricValueList" };
                let items = match *inbound.request.method() {
                    Method::GET | Method::HEAD
                        if !p.watch && p.rest.is_empty() && !inbound.query.flag("watch") =>
                    {
                        self.figures_of(at, namespace, &rest, (labels, series)).await
                    }
                    _ => Err(not_allowed()),
                };
                items.map(|items| {
                    json!({"kind": kind, "apiVersion": format!("{}/{}", at.0, at.1), "metadata": {}, "items": items})
                })
            }
            Path::Resource(_) => return None,
            Path::Other(path) => {
                let segments: Vec<&str> = path.split('/').filter(|s| !s.is_empty()).collect();
                match segments.as_slice() {
                    ["apis", group]
                        if SERVED.iter().any(|(g, v)| g == group && self.serves_figures(g, v)) =>
                    {
                        discovery::group(None, &own_remotes(&BTreeSet::new()), group)
                            .ok_or_else(no_such_resource)
                    }
                    ["apis", group, version] if self.serves_figures(group, version) => {
                        let names = self.figures.scraper.names(self, &self.pods_in("")).await;
                        self.figures.set_known(names.into_iter().take(LISTED_MAX).collect());
                        Ok(resource_list((group, version), &self.figures.known.lock()))
                    }
                    _ => return None,
                }
            }
        };
        let wishes = inbound.wishes();
        Some(answered.map(|value| respond::json_value(200, "application/json", &value, wishes)))
    }

    /// What discovery lists beside this server's own resources: other servers' group versions, and those of figures
    /// while any are known. (A group version without resources is an error to many clients.)
    pub(crate) fn listed_remotes(&self) -> Arc<Remotes> {
        let (remotes, known) = (self.aggregator.now(), self.figures.known.lock().clone());
        if known.is_empty() {
            return remotes;
        }
        let mut listed = self.figures.listed.lock();
        if let Some((r, k, both)) = &*listed
            && Arc::ptr_eq(r, &remotes)
            && Arc::ptr_eq(k, &known)
        {
            return both.clone();
        }
        let mut both = Remotes::clone(&remotes);
        both.extend(own_remotes(&known).into_iter().filter(|((g, v), _)| self.serves_figures(g, v)));
        let both = Arc::new(both);
        *listed = Some((remotes, known, both.clone()));
        both
    }
}

/// Our group versions as if another server had told their resources; nothing is ever sent there.
fn own_remotes(known: &BTreeSet<String>) -> Remotes {
    let own = |at: (&str, &str)| -> (GroupVersion, Arc<Remote>) {
        ((at.0.into(), at.1.into()), Arc::new(Remote::listed(PRIORITY, resource_list(at, known))))
    };
    SERVED.into_iter().map(own).collect()
}

/// The metrics that are known, as resources.
fn resource_list((group, version): (&str, &str), known: &BTreeSet<String>) -> Value {
    let row = |name: String, namespaced: bool, kind: &str| json!({"name": name, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": ["get"]});
    let resources: Vec<Value> = match group {
        CUSTOM => {
            let of = |(what, namespaced): (&str, bool)| {
                known
                    .iter()
                    .map(move |m| row(format!("{what}/{m}"), namespaced, "MetricValueList"))
                    .collect::<Vec<_>>()
            };
            [("namespaces", false), ("pods", true)].into_iter().flat_map(of).collect()
        }
        _ => known.iter().map(|m| row(m.clone(), true, "ExternalMetricValueList")).collect(),
    };
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("{group}/{version}"),
        "resources": resources})
}

impl PodFigures {
    /// A metric was found.
    fn learn(&self, metric: &str) {
        let mut known = self.known.lock();
        if !known.contains(metric) && known.len() < LISTED_MAX {
            Arc::make_mut(&mut *known).insert(metric.to_string());
        }
    }

    fn set_known(&self, names: BTreeSet<String>) {
        let mut known = self.known.lock();
        if **known != names {
            *known = Arc::new(names);
        }
    }
}
