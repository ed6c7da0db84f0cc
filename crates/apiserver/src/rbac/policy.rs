//! The roles and bindings that a cluster has from the start: `policy.txt`, read and reconciled.
//!
//! [`objects`] is pure. What is there already and says `autoupdate: "true"` gets the rules and subjects that it
//! lacks; nothing is taken away from it, as upstream does it.

use super::rules::{self, Rule};
use super::{GROUP, RESOURCES};
use k8s_schema::Gvr;
use serde_json::{Value, json};

const TEXT: &str = include_str!("policy.txt");
/// The annotation that keeps an object under this table's care.
pub const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
const READ: &str = "get,list,watch";
const WRITE: &str = "create,delete,deletecollection,patch,update";

/// One object of the table: its resource and body.
pub type Entry = (&'static Gvr, Value);

/// All objects of the table.
pub fn objects() -> Vec<Entry> {
    let mut all: Vec<Entry> = Vec::new();
    for line in TEXT.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        if line.starts_with(' ') {
            let last = all.iter_mut().rev().find(|(_, body)| body["rules"].is_array());
            if let (Some((_, body)), Some(list)) = (last, rules_of_line(&words).as_array())
                && let Some(rules) = body["rules"].as_array_mut()
            {
                rules.extend(list.iter().cloned());
            }
        } else {
            all.extend(head(&words));
        }
    }
    join_controllers(&mut all);
    all
}

/// The rules of one ClusterRole of the table.
pub fn rules_of(cluster_role: &str) -> Vec<Rule> {
    let of = |(gvr, body): &Entry| *gvr == RESOURCES[0] && body["metadata"]["name"] == cluster_role;
    objects().into_iter().find(of).map(|(_, body)| typed(&body["rules"])).unwrap_or_default()
}

/// `rules` of a body, typed.
pub fn typed(rules: &Value) -> Vec<Rule> {
    serde_json::from_value(rules.clone()).unwrap_or_default()
}

fn object(kind: &str, namespace: &str, name: &str) -> Value {
    let mut body = json!({"apiVersion": format!("{GROUP}/v1"), "kind": kind, "metadata": {"name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}, "annotations": {AUTOUPDATE: "true"}}});
    if !namespace.is_empty() {
        body["metadata"]["namespace"] = json!(namespace);
    }
    body
}

/// The objects that a line without indentation begins.
fn head(words: &[&str]) -> Vec<Entry> {
    let [cluster_roles, roles, cluster_bindings, bindings] = RESOURCES;
    match words {
        ["clusterrole", name, options @ ..] => vec![(cluster_roles, cluster_role(name, options))],
        ["controller", name] => {
            let (full, account) =
                (format!("system:controller:{name}"), format!("ServiceAccount:kube-system/{name}"));
            let bound = binding("", &full, ("ClusterRole", &full), &[&account]);
            vec![(cluster_bindings, bound), (cluster_roles, cluster_role(&full, &[]))]
        }
        ["role", namespace, name] => {
            let mut body = object("Role", namespace, name);
            body["rules"] = json!([]);
            vec![(roles, body)]
        }
        ["clusterbinding", name, role, subjects @ ..] => {
            vec![(cluster_bindings, binding("", name, ("ClusterRole", role), subjects))]
        }
        ["binding", namespace, name, role, subjects @ ..] => {
            let role = role.split_once(':').unwrap_or(("Role", role));
            vec![(bindings, binding(namespace, name, role, subjects))]
        }
        _ => Vec::new(),
    }
}

fn cluster_role(name: &str, options: &[&str]) -> Value {
    let mut body = object("ClusterRole", "", name);
    body["rules"] = json!([]);
    for (key, value) in options.iter().filter_map(|o| o.split_once('=')) {
        let label = format!("{GROUP}/aggregate-to-{value}");
        match key {
            "label" => body["metadata"]["labels"][label] = json!("true"),
            "aggregate" => {
                body["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]});
            }
            _ => {}
        }
    }
    body
}

fn binding(namespace: &str, name: &str, (kind, role): (&str, &str), subjects: &[&str]) -> Value {
    let mut body =
        object(if namespace.is_empty() { "ClusterRoleBinding" } else { "RoleBinding" }, namespace, name);
    body["roleRef"] = json!({"apiGroup": GROUP, "kind": kind, "name": role});
    let subject = |text: &&str| match text.split_once(':') {
        Some(("ServiceAccount", account)) => {
            let (namespace, name) = account.split_once('/').unwrap_or_default();
            json!({"kind": "ServiceAccount", "namespace": namespace, "name": name})
        }
        Some((kind, name)) => json!({"kind": kind, "apiGroup": GROUP, "name": name}),
        None => Value::Null,
    };
    if !subjects.is_empty() {
        body["subjects"] = subjects.iter().map(subject).collect();
    }
    body
}

fn rules_of_line(words: &[&str]) -> Value {
    let list = |text: &str| text.split(',').map(String::from).collect::<Vec<_>>();
    match words {
        ["EVENTS"] => json!([{"apiGroups": ["", "events.k8s.io"], "resources": ["events"],
            "verbs": ["create", "patch", "update"]}]),
        [verbs, "url", paths @ ..] => json!([{"nonResourceURLs": paths, "verbs": list(verbs)}]),
        [verbs, groups, things @ ..] => {
            let mut verbs = list(&verbs.replace("READ", READ).replace("WRITE", WRITE));
            verbs.sort();
            let (names, resources): (Vec<&str>, Vec<&str>) =
                things.iter().partition(|t| t.starts_with("names="));
            let mut rule = json!({"apiGroups": list(&groups.replace("core", "")), "resources": resources,
                "verbs": verbs});
            if let Some(names) = names.first().and_then(|n| n.strip_prefix("names=")) {
                rule["resourceNames"] = json!(list(names));
            }
            json!([rule])
        }
        _ => json!([]),
    }
}

/// Gantry's one controller identity has the rules of every controller.
fn join_controllers(all: &mut [Entry]) {
    let is_controllers = |name: &Value| name.as_str().is_some_and(|n| n.starts_with("system:controller:"));
    let of_controllers =
        all.iter().filter(|(g, b)| *g == RESOURCES[0] && is_controllers(&b["metadata"]["name"]));
    let mut joined: Vec<Value> = Vec::new();
    for rule in of_controllers.flat_map(|(_, b)| b["rules"].as_array().into_iter().flatten()) {
        if !joined.contains(rule) {
            joined.push(rule.clone());
        }
    }
    let own = all.iter_mut().find(|(_, body)| body["metadata"]["name"] == "gantry:controller-manager");
    if let Some(rules) = own.and_then(|(_, body)| body["rules"].as_array_mut()) {
        rules.extend(joined);
    }
}

/// What an object that is there becomes, when it lacks something of the table's.
pub fn reconciled(present: &Value, wanted: &Value) -> Option<Value> {
    if present["metadata"]["annotations"][AUTOUPDATE] != "true" {
        return None;
    }
    let mut new = present.clone();
    if wanted["roleRef"] != present["roleRef"] {
        return Some(wanted.clone());
    }
    for (key, value) in wanted["metadata"]["labels"].as_object().into_iter().flatten() {
        new["metadata"]["labels"][key] = value.clone();
    }
    if wanted["aggregationRule"].is_object() {
        new["aggregationRule"] = wanted["aggregationRule"].clone();
    } else if let Ok(lacking) = rules::missing(&typed(&present["rules"]), &typed(&wanted["rules"]))
        && !lacking.is_empty()
    {
        let mut list = typed(&present["rules"]);
        list.extend(lacking);
        new["rules"] = json!(list);
    }
    let key = |s: &Value| [s["kind"].clone(), s["namespace"].clone(), s["name"].clone()];
    let mut subjects = present["subjects"].as_array().cloned().unwrap_or_default();
    for subject in wanted["subjects"].as_array().into_iter().flatten() {
        if !subjects.iter().any(|s| key(s) == key(subject)) {
            subjects.push(subject.clone());
            new["subjects"] = json!(subjects);
        }
    }
    (new != *present).then_some(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::Attributes;

    #[test]
    fn every_line_of_the_table_counts() {
        let all = objects();
        let lines = TEXT.lines().filter(|l| l.starts_with("  ")).count();
        let mut rules = 0;
        for (gvr, body) in &all {
            let name = body["metadata"]["name"].as_str().unwrap();
            if *gvr == RESOURCES[0] || *gvr == RESOURCES[1] {
                let typed = typed(&body["rules"]);
                assert!(!typed.is_empty() || body["aggregationRule"].is_object(), "{name} allows nothing");
                assert!(typed.iter().all(|r| !r.verbs.is_empty()), "{name}");
                rules += if name == "gantry:controller-manager" { 0 } else { typed.len() };
            } else {
                let role = &body["roleRef"]["name"];
                assert!(all.iter().any(|(_, b)| b["metadata"]["name"] == *role), "{name} gives {role}");
            }
        }
        let own = TEXT.split("clusterrole gantry:controller-manager").nth(1).unwrap();
        let own = own.lines().skip(1).take_while(|l| l.starts_with("  ")).count();
        assert_eq!(rules + own, lines);
        let mut names: Vec<String> = all
            .iter()
            .map(|(g, b)| format!("{}/{}/{}", g.resource, b["metadata"]["namespace"], b["metadata"]["name"]))
            .collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all.len(), "no name twice");
    }

    #[test]
    fn the_table_reads_as_written() {
        let may = |role: &str, verb: &str, group: &str, resource: &str, name: &str| {
            let (resource, sub) = resource.split_once('/').unwrap_or((resource, ""));
            let text = |t: &str| t.to_string();
            let a = Attributes {
                verb: text(verb),
                group: text(group),
                resource: text(resource),
                subresource: text(sub),
                name: text(name),
                ..Attributes::default()
            };
            rules_of(role).iter().any(|r| r.allows(&a))
        };
        assert!(
            may("system:aggregate-to-view", "list", "", "pods", "")
                && !may("system:aggregate-to-view", "list", "", "secrets", "")
        );
        assert!(may("system:aggregate-to-edit", "deletecollection", "apps", "deployments", ""));
        assert!(!may("system:aggregate-to-edit", "create", GROUP, "roles", ""));
        assert!(may("system:aggregate-to-admin", "create", GROUP, "roles", ""));
        assert!(may(
            "system:kube-controller-manager",
            "update",
            "coordination.k8s.io",
            "leases",
            "kube-controller-manager"
        ));
        assert!(!may(
            "system:kube-controller-manager",
            "update",
            "coordination.k8s.io",
            "leases",
            "kube-scheduler"
        ));
        assert!(
            may("system:node", "create", "events.k8s.io", "events", "")
                && may("system:node", "create", "", "pods", "")
        );
        assert!(may("gantry:controller-manager", "escalate", GROUP, "clusterroles", "view"));
        assert!(may("gantry:controller-manager", "create", "", "services", ""));
    }

    #[test]
    fn what_lacks_something_gets_it_and_keeps_its_own() {
        let (_, wanted) =
            objects().into_iter().find(|(_, b)| b["metadata"]["name"] == "system:basic-user").unwrap();
        assert_eq!(reconciled(&wanted, &wanted), None);
        let mut present = wanted.clone();
        present["rules"] = json!([{"apiGroups": ["x"], "resources": ["y"], "verbs": ["get"]}]);
        let new = reconciled(&present, &wanted).unwrap();
        assert!(rules::missing(&typed(&new["rules"]), &typed(&wanted["rules"])).unwrap().is_empty());
        assert_eq!(new["rules"][0]["apiGroups"][0], "x");
        present["metadata"]["annotations"][AUTOUPDATE] = json!("false");
        assert_eq!(reconciled(&present, &wanted), None);
        let (_, bound) = objects()
            .into_iter()
            .find(|(_, b)| b["metadata"]["name"] == "system:discovery" && b["roleRef"].is_object())
            .unwrap();
        let mut present = bound.clone();
        present["subjects"] = json!([{"kind": "User", "name": "me"}]);
        assert_eq!(reconciled(&present, &bound).unwrap()["subjects"].as_array().unwrap().len(), 2);
    }
}
