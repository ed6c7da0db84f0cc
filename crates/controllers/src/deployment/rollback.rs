//! Going back to the template of an earlier revision, as old clients ask for it by an annotation. Pure.

use super::model::{self, Deployment, NOT_COPIED, ROLLBACK_TO, Set};
use client::events::EventType;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// A Deployment to be written, and what to tell about it.
#[derive(Debug, PartialEq)]
pub struct Rollback {
    /// The whole Deployment, without the wish.
    pub body: Value,
    /// Type, reason and message.
    pub event: (EventType, &'static str, String),
}

/// What to do about the wish to go back; `None` without one, and while the Deployment is paused or going.
pub fn decide(deployment: &Deployment, sets: &[Set], mut body: Value) -> Option<Rollback> {
    let wanted =
        deployment.annotations.get(ROLLBACK_TO).filter(|_| !deployment.paused && !deployment.going)?;
    let name = &deployment.name;
    let not_found = |what: &str| {
        let reason = "DeploymentRollbackRevisionNotFound";
        (EventType::Warning, reason, format!("Unable to find {what}."))
    };
    let revision = wanted.parse().ok().filter(|n| *n != 0).or_else(|| last_revision(sets));
    let set = revision.and_then(|n| sets.iter().find(|s| s.revision() == n));
    let event = match (revision, set) {
        (None, _) => not_found("last revision"),
        (Some(_), None) => not_found("the revision to rollback to"),
        (Some(_), Some(set)) if set.template == model::without_hash(deployment.template.clone()) => {
            let reason = "DeploymentRollbackTemplateUnchanged";
            let why = "The rollback revision contains the same template as current deployment";
            (EventType::Warning, reason, format!("{why} {name:?}"))
        }
        (Some(revision), Some(set)) => {
            body["spec"]["template"] = set.template.clone();
            body["metadata"]["annotations"] = json!(annotations(deployment, set));
            let message = format!("Rolled back deployment {name:?} to revision {revision}");
            (EventType::Normal, "DeploymentRollback", message)
        }
    };
    if let Some(annotations) = body["metadata"]["annotations"].as_object_mut() {
        annotations.remove(ROLLBACK_TO);
    }
    Some(Rollback { body, event })
}

/// The revision before the newest one.
fn last_revision(sets: &[Set]) -> Option<i64> {
    let revisions: BTreeSet<i64> = sets.iter().map(Set::revision).collect();
    revisions.into_iter().rev().nth(1).filter(|n| *n > 0)
}

/// Those of the old set, but for what only the Deployment has.
fn annotations(deployment: &Deployment, set: &Set) -> Map<String, Value> {
    let own = deployment.annotations.iter().filter(|(k, _)| NOT_COPIED.contains(&k.as_str()));
    let of_set = set.annotations.iter().filter(|(k, _)| !NOT_COPIED.contains(&k.as_str()));
    own.chain(of_set).map(|(k, v)| (k.clone(), json!(v))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::object;

    fn rollback(to: &str, revisions: &[(&str, &str)]) -> Option<Rollback> {
        let template = |image: &str| json!({"spec": {"containers": [{"image": image}]}});
        let body = json!({"metadata": {"name": "d", "namespace": "n",
                "annotations": {ROLLBACK_TO: to, "why": "three", model::REVISION: "3"}},
            "spec": {"template": template("three")}});
        let sets: Vec<Set> = revisions
            .iter()
            .map(|(revision, image)| {
                let annotations = json!({model::REVISION: revision, "why": image});
                Set::read(&object(
                    json!({"metadata": {"name": image, "namespace": "n", "annotations": annotations},
                    "spec": {"template": template(image)}}),
                ))
                .unwrap()
            })
            .collect();
        decide(&Deployment::read(&object(body.clone())).unwrap(), &sets, body)
    }

    #[test]
    fn an_annotation_asks_to_go_back() {
        let history = [("1", "one"), ("2", "two"), ("3", "three")];
        for (to, image) in [("0", "two"), ("1", "one")] {
            let back = rollback(to, &history).unwrap();
            assert_eq!(back.body["spec"]["template"]["spec"]["containers"][0]["image"], image);
            assert_eq!(back.body["metadata"]["annotations"], json!({"why": image, model::REVISION: "3"}));
            assert_eq!(back.event.1, "DeploymentRollback");
        }
        let told = |to: &str, history: &[(&str, &str)]| {
            let back = rollback(to, history).unwrap();
            assert_eq!(back.body["metadata"]["annotations"], json!({"why": "three", model::REVISION: "3"}));
            back.event.2
        };
        assert_eq!(told("9", &history), "Unable to find the revision to rollback to.");
        assert_eq!(told("0", &history[2..]), "Unable to find last revision.");
        let same = "The rollback revision contains the same template as current deployment \"d\"";
        assert_eq!(told("3", &history), same);
    }
}
