//! ReplicaSet, Deployment, ReplicationController, StatefulSet, DaemonSet, ControllerRevision.

use super::get::{child, default, each, entries, has, int, list, same, set, text};
use super::pod::{self, defaults, scheduling::label_selector};
use super::service::selector_text;
use super::spot::Spot;
use super::{Behaviour, CHECKED, COUNTED, FieldKind, NameRule};
use crate::intstr::IntOrString;
use crate::selector::LabelSelector;
use crate::table::{Cell, Column, none_if_empty};
use serde_json::{Value, json};

/// The containers of a workload's template.
pub const CONTAINERS: Column =
    Column::wide("Containers", Cell::Fn(|v| template_texts(&v["spec"]["template"], "/name").into()));
/// The images of a workload's template.
pub const IMAGES: Column =
    Column::wide("Images", Cell::Fn(|v| template_texts(&v["spec"]["template"], "/image").into()));
const SELECTOR: Column = Column::wide("Selector", Cell::Fn(|v| selector(v).into()));

/// Names or images of a pod template's containers, comma separated.
pub fn template_texts(template: &Value, at: &str) -> String {
    let all = list(template, "/spec/containers").iter().map(|c| text(c, at));
    all.collect::<Vec<_>>().join(",")
}

/// A label selector as kubectl shows it.
pub fn selector(v: &Value) -> String {
    match LabelSelector::from_json(v.pointer("/spec/selector")) {
        Ok(s) => none_if_empty(&s.to_string()).to_string(),
        Err(_) => "<error>".into(),
    }
}

const REPLICAS: &[(&str, FieldKind)] = &[("status.replicas", FieldKind::Number("/status/replicas"))];

const REPLICA_COLUMNS: &[Column] = &[
    Column::NAME,
    Column::new("Desired", Cell::Int("/spec/replicas")),
    Column::new("Current", Cell::Int("/status/replicas")),
    Column::new("Ready", Cell::Int("/status/readyReplicas")),
    Column::AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

/// Rows of this family.
pub static ROWS: &[Behaviour] = &[
    Behaviour {
        group: "apps",
        resource: "replicasets",
        defaults: |obj| {
            default_in_spec(obj, "replicas", 1);
            each_template(obj);
        },
        prepare_create: |obj| set(obj, "status", json!({"replicas": 0})),
        validate: replica_set,
        immutable: &["spec.selector"],
        fields: REPLICAS,
        columns: REPLICA_COLUMNS,
        ..COUNTED
    },
    Behaviour {
        resource: "replicationcontrollers",
        defaults: controller_defaults,
        prepare_create: |obj| set(obj, "status", json!({"replicas": 0})),
        validate: controller,

        fields: REPLICAS,
        columns: &[
            Column::NAME,
            Column::new("Desired", Cell::Int("/spec/replicas")),
            Column::new("Current", Cell::Int("/status/replicas")),
            Column::new("Ready", Cell::Int("/status/readyReplicas")),
            Column::AGE,
            CONTAINERS,
            IMAGES,
            Column::wide("Selector", Cell::Fn(|v| selector_text(v, "/spec/selector").into())),
        ],
        ..COUNTED
    },
    Behaviour {
        group: "apps",
        resource: "deployments",
        annotations_count: true,
        defaults: deployment_defaults,
        prepare_create: |obj| set(obj, "status", json!({})),
        validate: deployment,
        immutable: &["spec.selector"],
        columns: &[
            Column::NAME,
            Column::new("Ready", Cell::Fn(ready_of_desired)),
            Column::new("Up-to-date", Cell::Int("/status/updatedReplicas")),
            Column::new("Available", Cell::Int("/status/availableReplicas")),
            Column::AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ],
        ..COUNTED
    },
    Behaviour {
        group: "apps",
        resource: "statefulsets",
        name: NameRule::Label,
        defaults: stateful_defaults,
        prepare_create: |obj| set(obj, "status", json!({"replicas": 0, "availableReplicas": 0})),
        validate: stateful_set,
        validate_update: Some(stateful_update),
        columns: &[
            Column::NAME,
            Column::new("Ready", Cell::Fn(ready_of_desired)),
            Column::AGE,
            CONTAINERS,
            IMAGES,
        ],
        ..COUNTED
    },
    Behaviour {
        group: "apps",
        resource: "daemonsets",
        defaults: daemon_defaults,
        prepare_create: |obj| {
            let zeros =
                ["currentNumberScheduled", "numberMisscheduled", "desiredNumberScheduled", "numberReady"];
            set(obj, "status", zeros.iter().map(|k| ((*k).to_string(), json!(0))).collect::<Value>());
        },
        validate: daemon_set,
        immutable: &["spec.selector"],
        columns: &[
            Column::NAME,
            Column::new("Desired", Cell::Int("/status/desiredNumberScheduled")),
            Column::new("Current", Cell::Int("/status/currentNumberScheduled")),
            Column::new("Ready", Cell::Int("/status/numberReady")),
            Column::new("Up-to-date", Cell::Int("/status/updatedNumberScheduled")),
            Column::new("Available", Cell::Int("/status/numberAvailable")),
            Column::new(
                "Node Selector",
                Cell::Fn(|d| selector_text(d, "/spec/template/spec/nodeSelector").into()),
            ),
            Column::AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ],
        ..COUNTED
    },
    Behaviour {
        group: "apps",
        resource: "controllerrevisions",
        validate: |s| s.non_negative(&["revision"]),
        immutable: &["data"],
        columns: &[
            Column::NAME,
            Column::new("Controller", Cell::Fn(|c| controller_name(c).into())),
            Column::new("Revision", Cell::Int("/revision")),
            Column::AGE,
        ],
        ..CHECKED
    },
];

fn controller_name(c: &Value) -> String {
    let owner = list(c, "/metadata/ownerReferences").iter().find(|o| super::get::flag(o, "/controller"));
    owner.map_or("<none>".into(), |o| {
        let group = text(o, "/apiVersion").split_once('/').map_or(String::new(), |(g, _)| format!(".{g}"));
        format!("{}{group}/{}", text(o, "/kind").to_lowercase(), text(o, "/name"))
    })
}

fn ready_of_desired(v: &Value) -> Value {
    let n = |at| int(v, at).unwrap_or(0);
    format!("{}/{}", n("/status/readyReplicas"), n("/spec/replicas")).into()
}

fn default_in_spec(obj: &mut Value, key: &str, value: impl Into<Value>) {
    if let Some(spec) = child(obj, "spec") {
        default(spec, key, value);
    }
}

fn each_template(obj: &mut Value) {
    if let Some(spec) = child(obj, "spec") {
        defaults::template(spec);
    }
}

fn controller_defaults(obj: &mut Value) {
    default_in_spec(obj, "replicas", 1);
    let labels = obj.pointer("/spec/template/metadata/labels").cloned();
    if let Some(labels) = labels.filter(|l| l.as_object().is_some_and(|m| !m.is_empty())) {
        for (parent, key) in [("spec", "selector"), ("metadata", "labels")] {
            if let Some(parent) = child(obj, parent)
                && entries(parent, &format!("/{key}")).next().is_none()
            {
                set(parent, key, labels.clone());
            }
        }
    }
    // Its template is a pointer upstream: absent stays absent.
    if has(obj, "/spec/template") {
        each_template(obj);
    }
}

fn deployment_defaults(obj: &mut Value) {
    let Some(spec) = child(obj, "spec") else { return };
    default(spec, "replicas", 1);
    if let Some(strategy) = child(spec, "strategy") {
        default(strategy, "type", "RollingUpdate");
        if text(strategy, "/type") == "RollingUpdate"
            && let Some(rolling) = child(strategy, "rollingUpdate")
        {
            default(rolling, "maxUnavailable", "25%");
            default(rolling, "maxSurge", "25%");
        }
    }
    default(spec, "revisionHistoryLimit", 10);
    default(spec, "progressDeadlineSeconds", 600);
    defaults::template(spec);
}

fn stateful_defaults(obj: &mut Value) {
    let Some(spec) = child(obj, "spec") else { return };
    default(spec, "podManagementPolicy", "OrderedReady");
    if let Some(strategy) = child(spec, "updateStrategy") {
        default(strategy, "type", "RollingUpdate");
        if text(strategy, "/type") == "RollingUpdate"
            && let Some(rolling) = child(strategy, "rollingUpdate")
        {
            default(rolling, "partition", 0);
            default(rolling, "maxUnavailable", 1);
        }
    }
    if let Some(policy) = child(spec, "persistentVolumeClaimRetentionPolicy") {
        default(policy, "whenDeleted", "Retain");
        default(policy, "whenScaled", "Retain");
    }
    default(spec, "replicas", 1);
    default(spec, "revisionHistoryLimit", 10);
    defaults::template(spec);
    each(spec, "/volumeClaimTemplates", |claim| {
        set(claim, "apiVersion", "v1");
        set(claim, "kind", "PersistentVolumeClaim");
        if let Some(spec) = child(claim, "spec") {
            default(spec, "volumeMode", "Filesystem");
        }
        if let Some(status) = child(claim, "status") {
            default(status, "phase", "Pending");
        }
    });
}

fn daemon_defaults(obj: &mut Value) {
    let Some(spec) = child(obj, "spec") else { return };
    if let Some(strategy) = child(spec, "updateStrategy") {
        default(strategy, "type", "RollingUpdate");
        if text(strategy, "/type") == "RollingUpdate"
            && let Some(rolling) = child(strategy, "rollingUpdate")
        {
            default(rolling, "maxUnavailable", 1);
            default(rolling, "maxSurge", 0);
        }
    }
    default(spec, "revisionHistoryLimit", 10);
    defaults::template(spec);
}

/// Selector and template of a workload: selector there, not empty, matching; template valid and restarting.
fn selector_and_template(spec: &Spot, what: &str) {
    match spec.opt("selector") {
        None => spec.required("selector", ""),
        Some(s) => {
            label_selector(&s);
            match LabelSelector::from_json(Some(s.v)) {
                Ok(p) if p.is_everything() => {
                    s.wrong("", &format!("empty selector is invalid for {what}"));
                }
                Ok(p) => matches_template(spec, &p),
                Err(_) => s.wrong("", "invalid label selector"),
            }
        }
    }
    template_of(spec);
}

fn matches_template(spec: &Spot, selector: &LabelSelector) {
    let labels = spec.v.pointer("/template/metadata/labels");
    if spec.has("template") && !selector.matches_json(labels) {
        let shown = labels.cloned().unwrap_or_else(|| json!({}));
        spec.invalid("template.metadata.labels", shown, "`selector` does not match template `labels`");
    }
}

/// A template whose pods run for ever.
fn template_of(spec: &Spot) {
    let Some(template) = spec.opt("template") else { return spec.required("template", "") };
    pod::template(&template);
    template.key("spec").one_of_opt("restartPolicy", &["Always"]);
    if template.has("spec.activeDeadlineSeconds") {
        let words = "activeDeadlineSeconds in ReplicaSet is not Supported";
        template.forbidden("spec.activeDeadlineSeconds", words);
    }
}

fn replica_set(obj: &Spot) {
    let spec = obj.key("spec");
    spec.non_negative(&["replicas", "minReadySeconds"]);
    selector_and_template(&spec, "deployment");
}

fn controller(obj: &Spot) {
    let spec = obj.key("spec");
    spec.non_negative(&["replicas", "minReadySeconds"]);
    let pairs: Vec<(&str, &str)> =
        entries(spec.v, "/selector").map(|(k, v)| (k, v.as_str().unwrap_or_default())).collect();
    if pairs.is_empty() {
        spec.required("selector", "");
    } else {
        matches_template(&spec, &LabelSelector::from_map(pairs));
    }
    template_of(&spec);
}

fn deployment(obj: &Spot) {
    let spec = obj.key("spec");
    spec.non_negative(&["replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"]);
    selector_and_template(&spec, "deployment");
    let strategy = spec.key("strategy");
    strategy.one_of("type", &["Recreate", "RollingUpdate"]);
    match strategy.text("type") {
        "Recreate" if strategy.has("rollingUpdate") => {
            let words = "may not be specified when strategy `type` is 'Recreate'";
            strategy.forbidden("rollingUpdate", words);
        }
        "RollingUpdate" => rolling(&strategy.key("rollingUpdate")),
        _ => {}
    }
    let ready = spec.int("minReadySeconds").unwrap_or(0);
    if let Some(deadline) = spec.int("progressDeadlineSeconds").filter(|n| (0..=ready).contains(n)) {
        spec.invalid("progressDeadlineSeconds", deadline, "must be greater than minReadySeconds");
    }
}

/// `maxUnavailable` and `maxSurge`: numbers or percentages, not both zero.
fn rolling(r: &Spot) {
    let zero = [pods_or_percent(r, "maxUnavailable"), pods_or_percent(r, "maxSurge")];
    if zero == [true, true] {
        let value = r.v.get("maxUnavailable").cloned().unwrap_or_else(|| json!(0));
        r.invalid("maxUnavailable", value, "may not be 0 when `maxSurge` is 0");
    }
}

/// A number of pods or a percentage; is it zero?
fn pods_or_percent(r: &Spot, key: &str) -> bool {
    let value = r.v.get(key).cloned().unwrap_or_else(|| json!(0));
    match IntOrString::from_json(&value) {
        Some(IntOrString::Int(n)) => {
            r.non_negative(&[key]);
            n == 0
        }
        Some(IntOrString::Str(s)) => {
            let words = crate::name::percent(&s);
            let percent = IntOrString::Str(s.clone()).percent();
            let zero = words.is_empty() && percent == Some(0);
            r.invalid_all(key, &s, words);
            if key == "maxUnavailable" && percent.is_some_and(|p| p > 100) {
                r.invalid(key, s, "must not be greater than 100%");
            }
            zero
        }
        None => false,
    }
}

fn stateful_set(obj: &Spot) {
    let spec = obj.key("spec");
    spec.one_of("podManagementPolicy", &["OrderedReady", "Parallel"]);
    let strategy = spec.key("updateStrategy");
    strategy.one_of("type", &["OnDelete", "RollingUpdate"]);
    let rolling = strategy.key("rollingUpdate");
    if strategy.text("type") == "OnDelete" && !rolling.v.is_null() {
        rolling.wrong("", "only allowed for updateStrategy 'RollingUpdate'");
    }
    rolling.non_negative(&["partition"]);
    if rolling.has("maxUnavailable") && pods_or_percent(&rolling, "maxUnavailable") {
        rolling.wrong("maxUnavailable", "cannot be 0");
    }
    for key in ["whenDeleted", "whenScaled"] {
        spec.key("persistentVolumeClaimRetentionPolicy").one_of(key, &["Delete", "Retain"]);
    }
    spec.non_negative(&["replicas", "minReadySeconds", "revisionHistoryLimit", "ordinals.start"]);
    let with_claims = with_claims(spec.v);
    spec.with(|_, path, errors| selector_and_template(&Spot::new(&with_claims, path, errors), "statefulset"));
}

/// The spec with a volume for each claim template that the pod template does not define itself: mounts may
/// name them.
fn with_claims(spec: &Value) -> Value {
    let mut spec = spec.clone();
    let names: Vec<String> =
        list(&spec, "/volumeClaimTemplates").iter().map(|c| text(c, "/metadata/name").to_string()).collect();
    let Some(pod) = spec.pointer_mut("/template/spec").filter(|p| p.is_object()) else { return spec };
    let own: Vec<String> = list(pod, "/volumes").iter().map(|v| text(v, "/name").to_string()).collect();
    if !has(pod, "/volumes") {
        set(pod, "volumes", json!([]));
    }
    if let Some(Value::Array(volumes)) = pod.get_mut("volumes") {
        for name in names.into_iter().filter(|n| !own.contains(n)) {
            volumes.push(json!({"name": name, "persistentVolumeClaim": {"claimName": name}}));
        }
    }
    spec
}

fn stateful_update(new: &Spot, old: &Value) {
    const FREE: [&str; 7] = [
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ];
    stateful_set(new);
    let fixed = |v: &Value| {
        let all = entries(v, "/spec").filter(|(k, _)| !FREE.contains(k));
        all.map(|(k, v)| (k.to_string(), v.clone())).collect::<Value>()
    };
    if !same(&fixed(new.v), &fixed(old)) {
        let words = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
            'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
        new.forbidden("spec", words);
    }
}

fn daemon_set(obj: &Spot) {
    let spec = obj.key("spec");
    spec.non_negative(&["minReadySeconds", "revisionHistoryLimit"]);
    selector_and_template(&spec, "daemonset");
    let strategy = spec.key("updateStrategy");
    strategy.one_of("type", &["OnDelete", "RollingUpdate"]);
    if strategy.text("type") == "RollingUpdate" {
        rolling(&strategy.key("rollingUpdate"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field_errors::FieldErrors;

    fn web() -> Value {
        let mut d = json!({"metadata": {"name": "web"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}}});
        deployment_defaults(&mut d);
        d
    }

    fn complaints(change: impl FnOnce(&mut Value)) -> Vec<String> {
        let mut d = web();
        change(&mut d);
        let mut errors = FieldErrors::new();
        deployment(&Spot::new(&d, "", &mut errors));
        errors.causes().iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
    }

    #[test]
    fn a_plain_deployment() {
        assert_eq!(complaints(|_| {}), Vec::<String>::new());
        let spec = &web()["spec"];
        assert_eq!(
            spec["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})
        );
        assert_eq!(
            (&spec["replicas"], &spec["revisionHistoryLimit"], &spec["progressDeadlineSeconds"]),
            (&json!(1), &json!(10), &json!(600))
        );
    }

    #[test]
    fn words_of_complaints() {
        for (pointer, value, words) in [
            (
                "/spec/replicas",
                json!(-1),
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
            ),
            (
                "/spec/selector",
                json!({}),
                "spec.selector: Invalid value: {}: empty selector is invalid for deployment",
            ),
            ("/spec/selector", json!(null), "spec.selector: Required value"),
            (
                "/spec/selector/matchLabels",
                json!({"a": "c"}),
                "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`",
            ),
            (
                "/spec/template/spec/restartPolicy",
                json!("Never"),
                "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
            ),
            (
                "/spec/strategy/type",
                json!("Recreate"),
                "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
            ),
            (
                "/spec/strategy/rollingUpdate",
                json!({"maxSurge": 0, "maxUnavailable": "0%"}),
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0",
            ),
            ("/spec/template/spec/containers", json!([]), "spec.template.spec.containers: Required value"),
            (
                "/spec/template/spec/containers/0/name",
                json!("A"),
                "spec.template.spec.containers[0].name: Invalid value: \"A\": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
            ),
            (
                "/spec/progressDeadlineSeconds",
                json!(0),
                "spec.progressDeadlineSeconds: Invalid value: 0: must be greater than minReadySeconds",
            ),
        ] {
            let all = complaints(|d| *d.pointer_mut(pointer).unwrap() = value.clone());
            assert_eq!(all, [words], "{pointer}");
        }
    }

    #[test]
    fn stateful_sets_mount_their_claims() {
        let mut s = json!({"spec": {"serviceName": "x", "selector": {"matchLabels": {"a": "b"}}, "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}],
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": "data", "mountPath": "/d"}]}]}}}});
        stateful_defaults(&mut s);
        let mut errors = FieldErrors::new();
        stateful_set(&Spot::new(&s, "", &mut errors));
        assert_eq!(errors, FieldErrors::new());
        let mut changed = s.clone();
        changed["spec"]["serviceName"] = json!("y");
        stateful_update(&Spot::new(&changed, "", &mut errors), &s);
        assert_eq!(errors.causes()[0].field, "spec");
    }
}
