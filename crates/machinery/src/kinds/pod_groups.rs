//! Workload and PodGroup (`scheduling.k8s.io/v1alpha2`): pods that are placed together. In the words of upstream's
//! declarative validation.
//!
//! Deliberately not here: what belongs to gates that are not in `k8s_schema::gates` (the group's own priority and
//! disruption, claims of the group): dropped, as upstream does with those gates off.

use super::get::{at, each, remove};
use super::spot::Spot;
use super::{Behaviour, COUNTED, UNCHECKED};
use crate::name;
use serde_json::Value;
use std::collections::BTreeSet;

const GROUP: &str = "scheduling.k8s.io";
/// Templates of one Workload.
const TEMPLATES_MAX: usize = 8;
/// Topology constraints of one group.
const CONSTRAINTS_MAX: usize = 1;
/// Fields of gates that are off here.
const DROPPED: [&str; 4] = ["disruptionMode", "priority", "priorityClassName", "resourceClaims"];

const KIND: Behaviour = Behaviour { group: GROUP, ..COUNTED };

/// Rows of this family.
pub static ROWS: &[Behaviour] = &[
    Behaviour {
        resource: "podgroups",
        prepare_create: |obj| at(obj, "/spec", drop_fields),
        prepare_update: |obj, _| at(obj, "/spec", drop_fields),
        validate: |s| pod_group(&s.key("spec")),
        validate_update: UNCHECKED,
        immutable: &["spec.podGroupTemplateRef", "spec.schedulingPolicy", "spec.schedulingConstraints"],
        ..KIND
    },
    Behaviour {
        resource: "workloads",
        prepare_create: |obj| each(obj, "/spec/podGroupTemplates", drop_fields),
        prepare_update: |obj, _| each(obj, "/spec/podGroupTemplates", drop_fields),
        validate: |s| workload(&s.key("spec")),
        validate_update: UNCHECKED,
        immutable: &["spec.controllerRef", "spec.podGroupTemplates"],
        ..KIND
    },
];

fn drop_fields(spec: &mut Value) {
    for key in DROPPED {
        remove(spec, key);
    }
}

/// Exactly one of the members must be there.
fn union(s: &Spot, members: &[&str]) {
    let all: Vec<String> = members.iter().map(|m| format!("`{m}`")).collect();
    let given = s.given(members);
    match given.len() {
        0 => s.invalid("", "", &format!("must specify one of: {}", all.join(", "))),
        1 => {}
        _ => {
            let words = format!("must specify exactly one of: {}", all.join(", "));
            s.invalid("", format!("{{{}}}", given.join(", ")), &words);
        }
    }
}

fn pod_group(spec: &Spot) {
    if let Some(reference) = spec.opt("podGroupTemplateRef") {
        union(&reference, &["workload"]);
        if let Some(workload) = reference.opt("workload") {
            workload.need_like("workloadName", name::dns1123_subdomain);
            workload.need_like("podGroupTemplateName", name::dns1123_label);
        }
    }
    policy(spec);
    constraints(spec);
}

fn policy(spec: &Spot) {
    let policy = spec.key("schedulingPolicy");
    union(&policy, &["basic", "gang"]);
    let Some(gang) = policy.opt("gang") else { return };
    match gang.int("minCount").unwrap_or(0) {
        0 => gang.required("minCount", ""),
        _ => gang.within("minCount", 1..=i64::MAX, "must be greater than or equal to 1"),
    }
}

fn constraints(spec: &Spot) {
    for constraint in spec.bounded("schedulingConstraints.topology", CONSTRAINTS_MAX) {
        constraint.need_like("key", name::qualified_name);
    }
}

fn workload(spec: &Spot) {
    if let Some(controller) = spec.opt("controllerRef") {
        controller.like_opt("apiGroup", name::dns1123_subdomain);
        controller.need_like("kind", name::path_segment);
        controller.need_like("name", name::path_segment);
    }
    if spec.list("podGroupTemplates").is_empty() {
        return spec.required("podGroupTemplates", "");
    }
    let mut seen = BTreeSet::new();
    for template in spec.bounded("podGroupTemplates", TEMPLATES_MAX) {
        template.unique("", template.text("name"), &mut seen);
        template.need_like("name", name::dns1123_label);
        policy(&template);
        constraints(&template);
    }
}

/// The group that a pod says it is of.
pub fn scheduling_group(spec: &Spot) {
    if let Some(group) = spec.opt("schedulingGroup") {
        union(&group, &["podGroupName"]);
        group.opt("podGroupName").iter().for_each(|name| name.like("", name::dns1123_subdomain));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field_errors::FieldErrors;
    use serde_json::json;

    fn complaints(check: fn(&Spot), spec: Value) -> Vec<String> {
        let mut errors = FieldErrors::new();
        check(&Spot::new(&spec, "spec", &mut errors));
        errors.causes().iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
    }

    #[test]
    fn groups_are_checked_in_upstreams_words() {
        let gang = |n: i64| json!({"schedulingPolicy": {"gang": {"minCount": n}}});
        assert_eq!(complaints(pod_group, gang(2)), [""; 0]);
        assert_eq!(complaints(pod_group, gang(0)), ["spec.schedulingPolicy.gang.minCount: Required value"]);
        let none = complaints(pod_group, json!({"podGroupTemplateRef": {}}));
        assert_eq!(
            none,
            [
                "spec.podGroupTemplateRef: Invalid value: \"\": must specify one of: `workload`",
                "spec.schedulingPolicy: Invalid value: \"\": must specify one of: `basic`, `gang`",
            ]
        );
        let both = json!({"schedulingPolicy": {"basic": {}, "gang": {"minCount": -1}},
            "schedulingConstraints": {"topology": [{"key": "a b"}]}});
        let both = complaints(pod_group, both);
        assert_eq!(
            both[0],
            "spec.schedulingPolicy: Invalid value: \"{basic, gang}\": must specify exactly one of: `basic`, `gang`"
        );
        assert!(
            both[1].ends_with("must be greater than or equal to 1")
                && both[2].starts_with("spec.schedulingConstraints.topology[0].key: Invalid")
        );
    }

    #[test]
    fn workloads_have_one_to_eight_templates_of_different_names() {
        let template = |name: &str| json!({"name": name, "schedulingPolicy": {"basic": {}}});
        assert_eq!(complaints(workload, json!({})), ["spec.podGroupTemplates: Required value"]);
        let many: Vec<Value> = (0..9).map(|i| template(&format!("t{i}"))).collect();
        let many = complaints(workload, json!({"podGroupTemplates": many}));
        assert_eq!(many, ["spec.podGroupTemplates: Too many: 9: must have at most 8 items"]);
        let bad =
            json!({"controllerRef": {"kind": "Job"}, "podGroupTemplates": [template("a"), template("a")]});
        let bad = complaints(workload, bad);
        assert_eq!(
            bad,
            ["spec.controllerRef.name: Required value", "spec.podGroupTemplates[1]: Duplicate value: \"a\"",]
        );
    }

    #[test]
    fn a_pod_names_its_group() {
        let of = |spec: Value| {
            let mut errors = FieldErrors::new();
            scheduling_group(&Spot::new(&spec, "spec", &mut errors));
            errors.causes().len()
        };
        assert_eq!(of(json!({"schedulingGroup": {"podGroupName": "g"}})), 0);
        assert_eq!((of(json!({})), of(json!({"schedulingGroup": {}}))), (0, 1));
        assert_eq!(of(json!({"schedulingGroup": {"podGroupName": "A_b"}})), 1);
    }
}
