//! The figures that autoscalers compare: from `metrics.k8s.io`, `custom.metrics.k8s.io` and `external.metrics.k8s.io`.
//!
//! Whoever serves these groups is asked through the API. Words are upstream's (`podautoscaler/metrics/client.go`,
//! Kubernetes v1.36). Deliberately not here: what follows from the figures.

use super::replicas::{Sample, Samples};
use client::remote::percent_encoded;
use client::{ApiClient, ListOptions};
use jiff::{SignedDuration, Timestamp};
use k8s_schema::{Gvr, gvr};
use machinery::kinds::get::{list, text};
use machinery::quantity::Quantity;
use machinery::selector::LabelSelector;
use machinery::time;
use serde_json::Value;

/// The version of custom metrics that is asked for.
const CUSTOM: (&str, &str) = ("custom.metrics.k8s.io", "v1beta2");
/// The version of external metrics.
const EXTERNAL: (&str, &str) = ("external.metrics.k8s.io", "v1beta1");
/// The time that a figure without one stands for.
const WINDOW: SignedDuration = SignedDuration::from_secs(60);

/// Where figures are asked for.
pub struct Readings<'a> {
    /// The API.
    pub client: &'a ApiClient,
    /// The autoscaler's namespace.
    pub namespace: &'a str,
    /// The target's pods, as its scale selects them.
    pub pods: &'a str,
    /// For figures without a time.
    pub now: Timestamp,
}

fn milli(value: &Value) -> Option<i64> {
    Some(Quantity::from_json(value)?.ok()?.milli())
}

fn moment(item: &Value, now: Timestamp) -> Timestamp {
    time::parse(text(item, "/timestamp")).unwrap_or(now)
}

/// `15.012s`, `1m0s`: seconds with a fraction are what our own servers write.
fn window(item: &Value) -> SignedDuration {
    match item.get("windowSeconds").and_then(Value::as_i64) {
        Some(seconds) => SignedDuration::from_secs(seconds),
        None => text(item, "/window").parse().unwrap_or(WINDOW),
    }
}

impl Readings<'_> {
    async fn items(&self, gvr: &Gvr, labels: &str) -> Result<Vec<Value>, String> {
        let options = ListOptions {
            namespace: Some(self.namespace.to_string()),
            label_selector: labels.to_string(),
            ..ListOptions::default()
        };
        let found = self.client.list(gvr, &options).await.map_err(|e| e.to_string())?;
        found.items.iter().map(|o| o.value().map_err(|e| e.to_string())).collect()
    }

    /// What each pod uses of a resource, in all containers or in one.
    pub async fn resource(&self, resource: &str, container: Option<&str>) -> Result<Samples, String> {
        let failed = |e| format!("unable to fetch metrics from resource metrics API: {e}");
        let items = self.items(&gvr::POD_METRICS, self.pods).await.map_err(failed)?;
        if items.is_empty() {
            return Err("no metrics returned from resource metrics API".to_string());
        }
        let mut samples = Samples::new();
        for item in &items {
            let name = text(item, "/metadata/name");
            let containers = list(item, "/containers");
            let counted: Vec<&Value> =
                containers.iter().filter(|c| container.is_none_or(|only| only == text(c, "/name"))).collect();
            if let (Some(only), true) = (container, counted.is_empty()) {
                let place = format!("{}/{name}", self.namespace);
                return Err(format!("container {only} not present in metrics for pod {place}"));
            }
            // A container without the figure makes the pod's unknown.
            let sum: Option<i64> = counted.iter().map(|c| milli(&c["usage"][resource])).sum();
            if let Some(sum) = sum {
                let sample = Sample { milli: sum, at: moment(item, self.now), window: window(item) };
                samples.insert(name.to_string(), sample);
            }
        }
        Ok(samples)
    }

    async fn custom(&self, what: &str, metric: &Value, labels: &str) -> Result<Vec<Value>, String> {
        let mut resource = format!("{what}/{}", text(metric, "/name"));
        if let Some(selector) = metric.get("selector").filter(|s| !s.is_null()) {
            let series = LabelSelector::from_json(Some(selector)).map_err(|e| e.to_string())?;
            resource += &format!("?metricLabelSelector={}", percent_encoded(&series.to_string()));
        }
        let gvr = Gvr { group: CUSTOM.0.into(), version: CUSTOM.1.into(), resource: resource.into() };
        self.items(&gvr, labels)
            .await
            .map_err(|e| format!("unable to fetch metrics from custom metrics API: {e}"))
    }

    /// A figure that every pod tells.
    pub async fn pods(&self, metric: &Value) -> Result<Samples, String> {
        let items = self.custom("pods/*", metric, self.pods).await?;
        if items.is_empty() {
            return Err("no metrics returned from custom metrics API".to_string());
        }
        let sample = |item: &Value| {
            let sample =
                Sample { milli: milli(&item["value"])?, at: moment(item, self.now), window: window(item) };
            Some((text(item, "/describedObject/name").to_string(), sample))
        };
        Ok(items.iter().filter_map(sample).collect())
    }

    /// A figure of one object, `what` being its resource with its group (`ingresses.networking.k8s.io`).
    pub async fn object(&self, what: &str, name: &str, metric: &Value) -> Result<i64, String> {
        let items = self.custom(&format!("{what}/{name}"), metric, "").await?;
        let value = items.first().and_then(|item| milli(&item["value"]));
        value.ok_or_else(|| "no metrics returned from custom metrics API".to_string())
    }

    /// The sum of an external figure's series.
    pub async fn external(&self, metric: &Value) -> Result<i64, String> {
        let labels = LabelSelector::from_json(metric.get("selector")).map_err(|e| e.to_string())?;
        let labels = if metric["selector"].is_null() { String::new() } else { labels.to_string() };
        let resource = text(metric, "/name").to_string();
        let gvr = Gvr { group: EXTERNAL.0.into(), version: EXTERNAL.1.into(), resource: resource.into() };
        let failed = |e| format!("unable to fetch metrics from external metrics API: {e}");
        let items = self.items(&gvr, &labels).await.map_err(failed)?;
        if items.is_empty() {
            return Err("no metrics returned from external metrics API".to_string());
        }
        let values: Option<Vec<i64>> = items.iter().map(|item| milli(&item["value"])).collect();
        values.map(|v| v.iter().sum()).ok_or_else(|| "a value is no quantity".to_string())
    }
}
