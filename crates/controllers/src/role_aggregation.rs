//! ClusterRoles with an `aggregationRule` hold the rules of the ClusterRoles that it selects.

use crate::context::{Context, Outcome, Reconcile, enqueue, run};
use async_trait::async_trait;
use client::cache::Cache;
use client::queue::Queue;
use client::{Object, ObjectKey};
use k8s_schema::gvr;
use machinery::selector::LabelSelector;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::task::JoinHandle;

/// There is one job, whatever changed: look at every aggregate.
const ALL: &str = "all";

struct Controller {
    context: Context,
    roles: Arc<Cache>,
}

/// Starts it.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    let queue = Arc::new(Queue::default());
    let roles = context.informers.of(&gvr::CLUSTER_ROLES);
    enqueue(&roles, &queue, |_| vec![ObjectKey::cluster(ALL)]);
    let controller = Controller { context: context.clone(), roles: roles.clone() };
    run("clusterrole-aggregation", vec![roles], queue, 1, Arc::new(controller))
}

/// The rules that an aggregate should hold and does not: those of every selected role, in order of name, each once.
fn wanted(role: &Value, all: &[(Arc<Object>, Value)]) -> Option<Value> {
    let selectors = role["aggregationRule"]["clusterRoleSelectors"].as_array()?;
    let selectors: Vec<LabelSelector> =
        selectors.iter().filter_map(|s| LabelSelector::from_json(Some(s)).ok()).collect();
    let mut rules: Vec<&Value> = Vec::new();
    for (object, value) in all {
        let chosen = selectors.iter().any(|s| s.matches(&object.meta().labels));
        if chosen && value["metadata"]["name"] != role["metadata"]["name"] {
            for rule in value["rules"].as_array().into_iter().flatten() {
                if !rules.contains(&rule) {
                    rules.push(rule);
                }
            }
        }
    }
    let rules = json!(rules);
    (role["rules"] != rules).then_some(rules)
}

#[async_trait]
impl Reconcile for Controller {
    async fn reconcile(&self, _: &ObjectKey) -> Outcome {
        let all: Vec<(Arc<Object>, Value)> =
            self.roles.list().into_iter().filter_map(|o| Some((o.clone(), o.value().ok()?))).collect();
        for (object, role) in &all {
            if let Some(rules) = wanted(role, &all) {
                let patch =
                    json!({"rules": rules, "metadata": {"resourceVersion": object.revision.to_string()}});
                let written =
                    self.context.client.merge_patch(&gvr::CLUSTER_ROLES, &object.key, patch).await?;
                self.roles.observe(written);
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::object;

    fn role(name: &str, label: &str, verb: &str) -> (Arc<Object>, Value) {
        let value =
            json!({"metadata": {"name": name, "labels": {label: "true"}}, "rules": [{"verbs": [verb]}]});
        (object(value.clone()), value)
    }

    #[test]
    fn an_aggregate_holds_what_it_selects() {
        let mut view = json!({"metadata": {"name": "view", "labels": {"v": "true"}}, "rules": [],
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"v": "true"}}]}});
        let all = [
            role("a", "v", "get"),
            role("b", "v", "list"),
            role("c", "v", "get"),
            role("d", "w", "x"),
            (object(view.clone()), view.clone()),
        ];
        let rules = wanted(&view, &all).unwrap();
        assert_eq!(rules, json!([{"verbs": ["get"]}, {"verbs": ["list"]}]));
        view["rules"] = rules;
        assert_eq!(wanted(&view, &all), None, "settled");
        assert_eq!(wanted(&all[0].1, &all), None, "no aggregate");
    }
}
