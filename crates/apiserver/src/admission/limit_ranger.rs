//! LimitRanger: containers get the namespace's default requests and limits; what is outside its bounds is refused.
//!
//! Pods are looked at when they are made or resized (their resources do not change otherwise), claims always.

use super::{Attempt, Operation};
use client::Object;
use k8s_schema::Gvr;
use machinery::kinds::get::{list, text};
use machinery::quantity::Quantity;
use machinery::status::ApiError;
use machinery::usage::{self, Amounts};
use serde_json::{Value, json};
use std::sync::Arc;

const LIMIT_RANGES: Gvr = Gvr::new("", "v1", "limitranges");
const NOTE: &str = "kubernetes.io/limit-ranger";

/// The ranges that are about this write.
fn ranges(attempt: &Attempt<'_>) -> Vec<Arc<Object>> {
    let call = attempt.call;
    let about = match (attempt.operation, call.subresource.as_str()) {
        (Operation::Create, "") => {
            call.resource.is("", "pods") || call.resource.is("", "persistentvolumeclaims")
        }
        (Operation::Update, "") => call.resource.is("", "persistentvolumeclaims"),
        (Operation::UpdatePart, "resize") => call.resource.is("", "pods"),
        _ => false,
    };
    let going = attempt.old.is_some_and(|old| old["metadata"]["deletionTimestamp"].is_string());
    if about && !going { attempt.api.cached_in(&LIMIT_RANGES, &attempt.key.namespace) } else { Vec::new() }
}

/// Gives the containers of a new pod the defaults.
pub(super) fn admit(attempt: &Attempt<'_>, pod: &mut Value) -> Result<(), ApiError> {
    if attempt.creates_pod() && pod["spec"].is_object() {
        for range in ranges(attempt) {
            defaults(pod, &range.value().map_err(ApiError::internal)?);
        }
    }
    Ok(())
}

/// Refuses what is out of bounds.
pub(super) fn judge(attempt: &Attempt<'_>, object: &Value, _: &mut Vec<String>) -> Result<(), ApiError> {
    for range in ranges(attempt) {
        let range = range.value().map_err(ApiError::internal)?;
        let complaints = match attempt.call.resource.name() {
            "pods" => pod_complaints(object, &range),
            _ => claim_complaints(object, &range),
        };
        let why = match complaints.as_slice() {
            [] => continue,
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        return Err(ApiError::forbidden(attempt.call.resource.gvr(), &attempt.key.name, &why));
    }
    Ok(())
}

fn defaults(pod: &mut Value, range: &Value) {
    let (mut requests, mut limits) = (json!({}), json!({}));
    for limit in list(range, "/spec/limits").iter().filter(|l| text(l, "/type") == "Container") {
        for (from, to) in [("defaultRequest", &mut requests), ("default", &mut limits)] {
            for (name, amount) in limit[from].as_object().into_iter().flatten() {
                to[name] = amount.clone();
            }
        }
    }
    let mut notes = Vec::new();
    for (key, kind) in [("containers", "container"), ("initContainers", "init container")] {
        for container in pod["spec"]
            .get_mut(key)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
            .filter(|c| c.is_object())
        {
            for (side, given, word) in [("requests", &requests, "request"), ("limits", &limits, "limit")] {
                let set = fill(container, side, given);
                if !set.is_empty() {
                    notes.push(format!("{} {word} for {kind} {}", set.join(", "), text(container, "/name")));
                }
            }
        }
    }
    if !notes.is_empty() {
        pod["metadata"]["annotations"][NOTE] = json!(format!("LimitRanger plugin set: {}", notes.join("; ")));
    }
}

/// Fills in what the container does not say; the names of what was.
fn fill(container: &mut Value, side: &str, given: &Value) -> Vec<String> {
    let mut set = Vec::new();
    for (name, amount) in given.as_object().into_iter().flatten() {
        if container["resources"][side][name].is_null() {
            container["resources"][side][name] = amount.clone();
            set.push(name.clone());
        }
    }
    set
}

/// Bounds of one kind of thing, and what one thing asks for.
struct Bounds<'a> {
    limit: &'a Value,
    requests: Amounts,
    limits: Amounts,
}

impl Bounds<'_> {
    fn complaints(&self, out: &mut Vec<String>) {
        let of = |key: &str| usage::amounts(self.limit, &format!("/{key}"));
        let kind = text(self.limit, "/type");
        let sides = |name: &String| (self.requests.get(name).copied(), self.limits.get(name).copied());
        out.extend(of("min").iter().filter_map(|(name, bound)| below(kind, name, *bound, sides(name))));
        // A claim has no limit: its request is bounded alone.
        let (bounded, word) = if kind == "PersistentVolumeClaim" {
            (&self.requests, "request")
        } else {
            (&self.limits, "limit")
        };
        for (name, bound) in &of("max") {
            let sides = (self.requests.get(name).copied(), bounded.get(name).copied());
            out.extend(above(&format!("maximum {name} usage per {kind} is {bound}"), word, *bound, sides));
        }
        let ratios = of("maxLimitRequestRatio");
        out.extend(ratios.iter().filter_map(|(name, bound)| wide(kind, name, *bound, sides(name))));
    }
}

type Sides = (Option<Quantity>, Option<Quantity>);

fn below(kind: &str, name: &str, bound: Quantity, (request, limit): Sides) -> Option<String> {
    let start = format!("minimum {name} usage per {kind} is {bound}");
    match (request, limit) {
        (None, _) => Some(format!("{start}.  No request is specified")),
        (Some(request), _) if request < bound => Some(format!("{start}, but request is {request}")),
        (_, Some(limit)) if limit < bound => Some(format!("{start}, but limit is {limit}")),
        _ => None,
    }
}

fn above(start: &str, word: &str, bound: Quantity, (request, bounded): Sides) -> Option<String> {
    match (request, bounded) {
        (_, None) => Some(format!("{start}.  No {word} is specified")),
        (_, Some(bounded)) if bounded > bound => Some(format!("{start}, but {word} is {bounded}")),
        (Some(request), _) if request > bound => Some(format!("{start}, but request is {request}")),
        _ => None,
    }
}

#[expect(clippy::cast_precision_loss, reason = "upstream compares floating-point ratios, and shows them")]
fn wide(kind: &str, name: &str, bound: Quantity, (request, limit): Sides) -> Option<String> {
    let start = format!("{name} max limit to request ratio per {kind} is {bound}");
    let some = |q: Option<Quantity>| q.filter(|q| q.sign() != 0);
    let Some(request) = some(request) else {
        return Some(format!("{start}, but no request is specified or request is 0"));
    };
    let Some(limit) = some(limit) else {
        return Some(format!("{start}, but no limit is specified or limit is 0"));
    };
    let ratio = limit.milli() as f64 / request.milli() as f64;
    (ratio * 1000.0 > bound.milli() as f64).then(|| format!("{start}, but provided ratio is {ratio:.6}"))
}

fn pod_complaints(pod: &Value, range: &Value) -> Vec<String> {
    let mut out = Vec::new();
    for limit in list(range, "/spec/limits") {
        match text(limit, "/type") {
            "Container" => {
                for container in list(pod, "/spec/containers").iter().chain(list(pod, "/spec/initContainers"))
                {
                    let of = |side: &str| usage::amounts(container, &format!("/resources/{side}"));
                    Bounds { limit, requests: of("requests"), limits: of("limits") }.complaints(&mut out);
                }
            }
            "Pod" => {
                let (requests, limits) = (usage::requests(pod), usage::limits(pod));
                Bounds { limit, requests, limits }.complaints(&mut out);
            }
            _ => {}
        }
    }
    out
}

fn claim_complaints(claim: &Value, range: &Value) -> Vec<String> {
    let mut out = Vec::new();
    for limit in list(range, "/spec/limits").iter().filter(|l| text(l, "/type") == "PersistentVolumeClaim") {
        let requests = usage::amounts(claim, "/spec/resources/requests");
        Bounds { limit, requests, limits: Amounts::new() }.complaints(&mut out);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(limit: Value) -> Value {
        json!({"spec": {"limits": [limit]}})
    }

    fn pod(resources: Value) -> Value {
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "resources": resources}]}})
    }

    #[test]
    fn defaults_are_filled_in_and_noted() {
        let range = range(json!({"type": "Container", "default": {"cpu": "500m", "memory": "1Gi"},
            "defaultRequest": {"cpu": "100m"}}));
        let mut some = pod(json!({"limits": {"memory": "2Gi"}}));
        defaults(&mut some, &range);
        assert_eq!(
            some["spec"]["containers"][0]["resources"],
            json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "500m", "memory": "2Gi"}})
        );
        assert_eq!(
            some["metadata"]["annotations"][NOTE],
            "LimitRanger plugin set: cpu request for container c; cpu limit for container c"
        );
        let mut full = some.clone();
        defaults(&mut full, &range);
        assert_eq!(full, some);
        let mut none = pod(json!({}));
        defaults(&mut none, &self::range(json!({"type": "Pod"})));
        assert_eq!(none, pod(json!({})));
    }

    #[test]
    fn bounds() {
        for (limit, resources, expected) in [
            (
                json!({"type": "Container", "min": {"cpu": "100m"}}),
                json!({}),
                "minimum cpu usage per Container is 100m.  No request is specified",
            ),
            (
                json!({"type": "Pod", "min": {"cpu": "100m"}}),
                json!({"requests": {"cpu": "50m"}}),
                "minimum cpu usage per Pod is 100m, but request is 50m",
            ),
            (
                json!({"type": "Container", "max": {"cpu": "1"}}),
                json!({"limits": {"cpu": "2"}}),
                "maximum cpu usage per Container is 1, but limit is 2",
            ),
            (
                json!({"type": "Container", "max": {"cpu": "1"}}),
                json!({}),
                "maximum cpu usage per Container is 1.  No limit is specified",
            ),
            (
                json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}}),
                json!({"limits": {"cpu": "3"}, "requests": {"cpu": "1"}}),
                "cpu max limit to request ratio per Container is 2, but provided ratio is 3.000000",
            ),
        ] {
            assert_eq!(pod_complaints(&pod(resources), &range(limit)), [expected]);
        }
        let fine = json!({"limits": {"cpu": "1"}, "requests": {"cpu": "500m"}});
        let limit = json!({"type": "Container", "min": {"cpu": "500m"}, "max": {"cpu": "1"},
            "maxLimitRequestRatio": {"cpu": "2"}});
        assert_eq!(pod_complaints(&pod(fine), &range(limit)), Vec::<String>::new());
        let claim = json!({"spec": {"resources": {"requests": {"storage": "3Gi"}}}});
        let limit = json!({"type": "PersistentVolumeClaim", "max": {"storage": "2Gi"}});
        assert_eq!(
            claim_complaints(&claim, &range(limit)),
            ["maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi"]
        );
    }
}
