//! Carrying out what was decided for a service, and writing down what came of it.
//!
//! Order: what was done is in the status before anything that follows from it is done (`afterwards`), so that a crash
//! in between is made good by the next look.

use super::decide::{Act, named, unplaced};
use super::rollout::{number, wanted};
use super::targets::{self, Member};
use super::view::Seen;
use super::{Controller, DRAIN_MAX_MS, Scene};
use crate::gone_is_fine;
use client::{DeleteOptions, Object, ObjectKey};
use ecs_model::discovery::{instance, service_id};
use ecs_model::doc::{Doc, object};
use ecs_model::names::AWS_NAMESPACE;
use ecs_model::service::{SERVICE_DEPLOYMENT, STOP_REQUEST};
use ecs_model::service_record::{self, deployment_id, deployment_object, revision_object};
use ecs_model::task::is_stopped;
use k8s_schema::{Gvr, gvr};
use machinery::kinds::get::{list, set, text};
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Service deployments that are kept of a service, the newest ones.
const RECORDS_MAX: usize = 20;

/// A merge patch that makes `new` of `old`.
pub fn difference(old: &Value, new: &Value) -> Value {
    let (Value::Object(before), Value::Object(after)) = (old, new) else { return new.clone() };
    let mut patch = serde_json::Map::new();
    for (member, value) in after {
        match before.get(member) {
            Some(same) if same == value => {}
            Some(other) => drop(patch.insert(member.clone(), difference(other, value))),
            None => drop(patch.insert(member.clone(), value.clone())),
        }
    }
    for member in before.keys().filter(|m| !after.contains_key(*m)) {
        patch.insert(member.clone(), Value::Null);
    }
    Value::Object(patch)
}

impl Controller {
    /// One step; what events tell of it.
    pub(super) async fn carry_out(
        &self,
        scene: &Scene,
        tasks: &[Seen],
        act: &Act,
    ) -> Result<Vec<String>, ApiError> {
        match act {
            Act::Start(count, instances) => Ok(self.launch(scene, tasks, *count, instances).await),
            Act::Stop(all) => self.stop_all(scene, all).await,
            // Afterwards, when the status says why.
            Act::RollBack(_) | Act::Close | Act::Heard => Ok(Vec::new()),
        }
    }

    async fn launch(&self, scene: &Scene, tasks: &[Seen], count: usize, on: &[String]) -> Vec<String> {
        let mut order = self.order(scene);
        let mut zones: BTreeMap<&str, u64> = BTreeMap::new();
        let mut running: BTreeMap<&str, u64> = BTreeMap::new();
        let current = |t: &&Seen| t.wanted && t.deployment == wanted(&scene.spec);
        for task in tasks.iter().filter(current) {
            *zones.entry(&task.zone).or_default() += 1;
            *running.entry(&task.provider).or_default() += 1;
        }
        order["zones"] = json!(zones);
        order["running"] = json!(running);
        order["count"] = json!(count);
        if !on.is_empty() {
            order["containerInstances"] = json!(on);
        }
        let answer = self.launcher.ask(&scene.place, "gantry:StartServiceTasks", order).await;
        let answer = answer
            .unwrap_or_else(|why| json!({"failures": [{"arn": scene.spec["clusterArn"], "reason": why}]}));
        let arns = list(&answer, "/tasks").iter().map(|t| text(t, "/taskArn"));
        let ids: Vec<&str> = arns.filter_map(|arn| arn.rsplit('/').next()).collect();
        let failed = ids.len() < if on.is_empty() { count } else { on.len() };
        let mut told = Vec::new();
        if !ids.is_empty() {
            told.push(format!("has started {} tasks: {}.", ids.len(), named(ids.iter().copied())));
        }
        let mut kept = self.kept.lock();
        let kept = kept.entry(scene.key.clone()).or_default();
        kept.expected.extend(ids.iter().map(ToString::to_string));
        kept.memory.blocked_ms = failed.then_some(scene.now_ms);
        if failed {
            let words = unplaced(list(&answer, "/failures"));
            let full = format!("(service {}) {words}", scene.name());
            // The same words again tell nothing.
            if !list(&scene.status, "/events").iter().take(3).any(|e| text(e, "/message") == full) {
                told.push(words);
            }
        }
        told
    }

    async fn stop_all(&self, scene: &Scene, all: &[(String, String)]) -> Result<Vec<String>, ApiError> {
        let (mut told, mut draining, mut stopped) = (Vec::new(), Vec::new(), Vec::new());
        for (id, reason) in all {
            let drains = self.stop(scene, id, reason).await?;
            if drains { &mut draining } else { &mut stopped }.push(id.as_str());
            if let Some(group) = reason.strip_prefix("Task failed ELB health checks in ") {
                told.push(format!(
                    "(task {id}) is unhealthy in {group} due to (reason Health checks failed)."
                ));
            } else if reason.starts_with("Task failed container health checks") {
                told.push(format!("(task {id}) failed container health checks."));
            }
        }
        if !draining.is_empty() {
            told.push(format!("has begun draining connections on {} tasks.", draining.len()));
        }
        let all = draining.into_iter().chain(stopped);
        let all: Vec<&str> = all.collect();
        told.push(format!("has stopped {} running tasks: {}.", all.len(), named(all.into_iter())));
        Ok(told)
    }

    /// Says that a task shall stop; `true`: it leaves its load balancers first.
    pub(super) async fn stop(&self, scene: &Scene, task: &str, reason: &str) -> Result<bool, ApiError> {
        let id = task.rsplit('/').next().unwrap_or_default();
        let key = ObjectKey::new(scene.key.namespace.clone(), id);
        let Some(object) = self.tasks.get(&key) else { return Ok(false) };
        let doc = object.view::<Doc>().map_err(ApiError::internal)?;
        if text(doc.spec(), "/desiredStatus") == "STOPPED" {
            return Ok(false);
        }
        let arn = text(doc.spec(), "/taskArn");
        let registered = |d: &Arc<Doc>| list(d.spec(), "/targets").iter().any(|t| text(t, "/owner") == arn);
        let runs = matches!(text(doc.status(), "/lastStatus"), "ACTIVATING" | "RUNNING");
        let drains = runs && self.group_docs().iter().any(registered);
        let mut spec = json!({"desiredStatus": "STOPPED", "stopCode": "ServiceSchedulerInitiated", "stoppedReason": reason});
        if drains {
            spec["deactivating"] = json!(scene.now_ms as f64 / 1000.0);
        }
        let patch = json!({"spec": spec});
        if let Some(written) = gone_is_fine(self.client.merge_patch(&gvr::ECS_TASKS, &key, patch).await)? {
            self.tasks.observe(written);
        }
        Ok(drains)
    }

    fn members<'a>(&self, scene: &'a Scene, instances: &'a [Option<Arc<Doc>>]) -> Vec<Member<'a>> {
        let both = scene.tasks.iter().zip(instances);
        let member = |(task, instance): (&'a Arc<Doc>, &'a Option<Arc<Doc>>)| Member {
            spec: task.spec(),
            status: task.status(),
            current: scene.is_current(task.spec()),
            instance_id: instance.as_ref().map(|i| text(i.spec(), "/ec2InstanceId")),
        };
        both.map(member).collect()
    }

    fn instances(&self, scene: &Scene) -> Vec<Option<Arc<Doc>>> {
        scene.tasks.iter().map(|t| self.instance(&scene.key.namespace, t.spec())).collect()
    }

    /// Brings the target groups up to date; what events tell of it.
    pub(super) async fn register(&self, scene: &Scene) -> Result<Vec<String>, ApiError> {
        let instances = self.instances(scene);
        let members = self.members(scene, &instances);
        let arns: Vec<&str> = members.iter().map(|m| text(m.spec, "/taskArn")).collect();
        let mine = |arn: &str| scene.balancers().iter().any(|b| text(b, "/targetGroupArn") == arn);
        let stale = |owner: &str| {
            let mut parts = owner.rsplit('/');
            let (id, here) = (parts.next().unwrap_or_default(), owner.contains(":task/"));
            here && arns.iter().all(|a| *a != owner)
                && text(&scene.spec, "/clusterArn").rsplit('/').next() == parts.next()
                && self.tasks.get(&ObjectKey::new(scene.key.namespace.clone(), id)).is_none()
        };
        let mut told = Vec::new();
        for object in self.groups.list() {
            let doc = object.view::<Doc>().map_err(ApiError::internal)?;
            let (group, arn) = (doc.spec(), text(doc.spec(), "/TargetGroupArn"));
            let held = list(group, "/targets").iter().any(|t| arns.contains(&text(t, "/owner")));
            if !held && !mine(arn) {
                continue;
            }
            let Some(change) = targets::change(group, scene.balancers(), &members, stale) else { continue };
            let patch = json!({"metadata": {"resourceVersion": object.revision.to_string()},
                "spec": {"targets": change.targets}});
            let written = self.client.merge_patch(&gvr::ELB_TARGET_GROUPS, &object.key, patch).await;
            if let Some(written) = gone_is_fine(written)? {
                self.groups.observe(written);
            }
            for (what, n) in [("registered", change.added), ("deregistered", change.removed)] {
                if n > 0 {
                    told.push(format!("{what} {n} targets in (target-group {arn})"));
                }
            }
        }
        Ok(told)
    }

    /// Brings Cloud Map up to date.
    pub(super) async fn discover(&self, scene: &Scene) -> Result<(), ApiError> {
        let mut wanted: BTreeMap<ObjectKey, Value> = BTreeMap::new();
        let instances = self.instances(scene);
        for registry in list(&scene.spec, "/serviceRegistries") {
            let Some(service) = service_id(text(registry, "/registryArn")) else { continue };
            for member in self.members(scene, &instances).iter().filter(|m| m.is_up()) {
                let node = self.node_address(text(member.spec, "/nodeName"));
                let Some(attributes) = targets::attributes(registry, member, node.as_deref()) else {
                    continue;
                };
                let id = text(member.spec, "/taskArn").rsplit('/').next().unwrap_or_default();
                let mut body = instance((&scene.place, &self.config.defaults), service, id, &attributes);
                let sick = text(member.status, "/healthStatus") == "UNHEALTHY";
                body["spec"]["health"] = json!(if sick { "UNHEALTHY" } else { "HEALTHY" });
                wanted.insert(ObjectKey::new(AWS_NAMESPACE, text(&body, "/metadata/name")), body);
            }
        }
        let ids: Vec<&str> =
            scene.tasks.iter().filter_map(|t| text(t.spec(), "/taskArn").rsplit('/').next()).collect();
        for object in self.registry.list() {
            let doc = object.view::<Doc>().map_err(ApiError::internal)?;
            if ids.contains(&text(doc.spec(), "/Id")) && !wanted.contains_key(&object.key) {
                let options = DeleteOptions::default();
                gone_is_fine(self.client.delete(&gvr::DISCOVERY_INSTANCES, &object.key, options).await)?;
            }
        }
        for (key, body) in wanted {
            self.put(&gvr::DISCOVERY_INSTANCES, self.registry.get(&key), body).await?;
        }
        Ok(())
    }

    fn node_address(&self, node: &str) -> Option<String> {
        let node = self.nodes.get(&ObjectKey::cluster(node))?.view::<Doc>().ok()?;
        let all = list(node.status(), "/addresses").iter();
        all.filter(|a| a["type"] == "InternalIP").map(|a| text(a, "/address").to_string()).next()
    }

    /// Makes an object be so: created, or its spec replaced where it differs.
    async fn put(&self, gvr: &Gvr, old: Option<Arc<Object>>, body: Value) -> Result<(), ApiError> {
        let key = ObjectKey::new(text(&body, "/metadata/namespace"), text(&body, "/metadata/name"));
        let old = match old {
            Some(old) => Some(old),
            None => match self.client.create(gvr, body.clone()).await {
                Ok(_) => return Ok(()),
                Err(error) if error.is_already_exists() => gone_is_fine(self.client.get(gvr, &key).await)?,
                Err(error) => return Err(error),
            },
        };
        let Some(old) = old else { return Ok(()) };
        let doc = old.view::<Doc>().map_err(ApiError::internal)?;
        let patch = difference(doc.spec(), &body["spec"]);
        if patch.as_object().is_none_or(|p| !p.is_empty()) {
            gone_is_fine(self.client.merge_patch(gvr, &key, json!({"spec": patch})).await)?;
        }
        Ok(())
    }

    /// Tasks that joined their load balancers and Cloud Map run from now on.
    pub(super) async fn activate(&self, scene: &Scene) -> Result<(), ApiError> {
        let joined = |t: &&Arc<Doc>| {
            !t.spec()["activating"].is_null() && text(t.status(), "/lastStatus") == "ACTIVATING"
        };
        for task in scene.tasks.iter().filter(joined) {
            self.settle(scene, text(task.spec(), "/taskArn"), "activating").await?;
        }
        Ok(())
    }

    /// Takes a mark from a task's spec.
    async fn settle(&self, scene: &Scene, arn: &str, mark: &str) -> Result<(), ApiError> {
        let key = ObjectKey::new(scene.key.namespace.clone(), arn.rsplit('/').next().unwrap_or_default());
        let patch = json!({"spec": {mark: null}});
        if let Some(written) = gone_is_fine(self.client.merge_patch(&gvr::ECS_TASKS, &key, patch).await)? {
            self.tasks.observe(written);
        }
        Ok(())
    }

    /// Tasks that left their load balancers may stop now.
    pub(super) async fn release_drained(&self, scene: &Scene) -> Result<(), ApiError> {
        let docs = self.group_docs();
        let groups: BTreeMap<String, &Value> =
            docs.iter().map(|d| (text(d.spec(), "/TargetGroupArn").to_string(), &d.0)).collect();
        let instances = self.instances(scene);
        for member in self.members(scene, &instances) {
            if member.spec["deactivating"].is_null() || is_stopped(member.status) {
                continue;
            }
            let known = targets::targets_of(&member, scene.balancers());
            let since = member.spec["deactivating"].as_f64().unwrap_or(0.0) * 1000.0;
            let late = scene.now_ms as f64 - since > DRAIN_MAX_MS;
            let arn = text(member.spec, "/taskArn");
            if late || targets::is_drained(arn, &known, &groups) {
                self.settle(scene, arn, "deactivating").await?;
            }
        }
        Ok(())
    }

    /// The primary's revision is on record before its first task.
    pub(super) async fn revision(&self, scene: &Scene, status: &Value) -> Result<(), ApiError> {
        let number = number(wanted(&scene.spec));
        let new = text(&scene.status, "/deployments/0/id") != text(status, "/deployments/0/id");
        if number.is_empty() || !new || !text(&scene.spec["deployment"], "/reason").is_empty() {
            return Ok(());
        }
        let definition = self.definition(&scene.place, text(&scene.spec, "/taskDefinition")).await?;
        let definition = definition.as_ref().map_or(&Value::Null, |d| d.spec());
        let spec =
            service_record::revision(&scene.spec, definition, number, &scene.spec["deployment"]["createdAt"]);
        let body = object("ServiceRevision", &scene.key.namespace, &revision_object(number), spec);
        match self.client.create(&gvr::ECS_SERVICE_REVISIONS, body).await {
            Err(error) if !error.is_already_exists() => Err(error),
            _ => Ok(()),
        }
    }

    /// Writes the status, where it changed, and the service deployment.
    pub(super) async fn write(&self, scene: &Scene, status: &Value) -> Result<(), ApiError> {
        if *status == scene.status {
            return Ok(());
        }
        let patch = json!({"status": difference(&scene.status, status)});
        let written = self.client.merge_patch_status(&gvr::ECS_SERVICES, &scene.key, patch).await;
        let Some(written) = gone_is_fine(written)? else { return Ok(()) };
        self.services.observe(written);
        let record = &status[SERVICE_DEPLOYMENT];
        if *record == scene.status[SERVICE_DEPLOYMENT] && record["finishedAt"].is_number() {
            return Ok(());
        }
        if record.is_object() {
            let before = text(&scene.status[SERVICE_DEPLOYMENT], "/id");
            if !before.is_empty() && before != text(record, "/id") {
                self.supersede(scene).await?;
            }
            self.put_record(scene, record, list(status, "/deployments")).await?;
        }
        Ok(())
    }

    async fn put_record(&self, scene: &Scene, record: &Value, deployments: &[Value]) -> Result<(), ApiError> {
        let name = deployment_object(&deployment_id(text(&scene.spec, "/serviceArn"), text(record, "/id")));
        let spec = service_record::deployment(&scene.spec, record, deployments);
        let body = object("ServiceDeployment", &scene.key.namespace, &name, spec);
        let key = ObjectKey::new(scene.key.namespace.clone(), &*name);
        let old = gone_is_fine(self.client.get(&gvr::ECS_SERVICE_DEPLOYMENTS, &key).await)?;
        self.put(&gvr::ECS_SERVICE_DEPLOYMENTS, old, body).await
    }

    /// A newer one took the place of a service deployment that was not over; the oldest records go.
    async fn supersede(&self, scene: &Scene) -> Result<(), ApiError> {
        let mut record = scene.status[SERVICE_DEPLOYMENT].clone();
        if record["finishedAt"].is_null() {
            let now = scene.now_ms as f64 / 1000.0;
            let words = "A newer service deployment took its place.";
            for (member, value) in [
                ("status", json!("STOPPED")),
                ("statusReason", json!(words)),
                ("finishedAt", json!(now)),
                ("stoppedAt", json!(now)),
                ("updatedAt", json!(now)),
            ] {
                set(&mut record, member, value);
            }
            self.put_record(scene, &record, list(&scene.status, "/deployments")).await?;
        }
        let options =
            client::ListOptions { namespace: Some(scene.key.namespace.to_string()), ..Default::default() };
        let all = self.client.list(&gvr::ECS_SERVICE_DEPLOYMENTS, &options).await?;
        let mut own = Vec::new();
        for object in &all.items {
            let doc = object.view::<Doc>().map_err(ApiError::internal)?;
            if doc.spec()["serviceArn"] == scene.spec["serviceArn"] {
                let made = (doc.spec()["createdAt"].as_f64().unwrap_or(0.0) * 1000.0) as i64;
                let target = text(doc.spec(), "/targetServiceRevision/arn")
                    .rsplit('/')
                    .next()
                    .unwrap_or_default()
                    .to_string();
                own.push((made, object.key.clone(), target));
            }
        }
        own.sort();
        let surplus = own.len().saturating_sub(RECORDS_MAX);
        for (_, key, target) in own.drain(..surplus) {
            gone_is_fine(
                self.client.delete(&gvr::ECS_SERVICE_DEPLOYMENTS, &key, DeleteOptions::default()).await,
            )?;
            let in_use = list(&scene.status, "/deployments").iter().any(|d| number(text(d, "/id")) == target)
                || number(text(&scene.status, "/lastCompleted/id")) == target;
            if !in_use {
                let revision = ObjectKey::new(scene.key.namespace.clone(), revision_object(&target));
                gone_is_fine(
                    self.client
                        .delete(&gvr::ECS_SERVICE_REVISIONS, &revision, DeleteOptions::default())
                        .await,
                )?;
            }
        }
        Ok(())
    }

    /// Changes of the service's own spec, once the status tells why.
    pub(super) async fn afterwards(&self, scene: &Scene, acts: &[Act]) -> Result<(), ApiError> {
        let mut spec = serde_json::Map::new();
        for act in acts {
            match act {
                Act::Heard => drop(spec.insert(STOP_REQUEST.into(), Value::Null)),
                Act::Close => drop(spec.insert("status".into(), json!("INACTIVE"))),
                Act::RollBack(to) => {
                    let name = revision_object(number(text(to, "/id")));
                    let key = ObjectKey::new(scene.key.namespace.clone(), name);
                    let revision = self.client.get(&gvr::ECS_SERVICE_REVISIONS, &key).await?;
                    let doc = revision.view::<Doc>().map_err(ApiError::internal)?;
                    if let Value::Object(members) = service_record::restore(doc.spec()) {
                        spec.extend(members);
                    }
                    spec.insert("deployment".into(), to.clone());
                }
                Act::Start(..) | Act::Stop(_) => {}
            }
        }
        let Some(object) = scene.object.as_ref().filter(|_| !spec.is_empty()) else { return Ok(()) };
        // The status write made a new revision of the object; the spec must still be the one that was looked at.
        let current = self.services.get(&scene.key).unwrap_or_else(|| object.clone());
        let doc = current.view::<Doc>().map_err(ApiError::internal)?;
        if *doc.spec() != scene.spec {
            return Err(ApiError::internal("the service changed meanwhile"));
        }
        let patch = json!({"metadata": {"resourceVersion": current.revision.to_string()}, "spec": spec});
        let written = self.client.merge_patch(&gvr::ECS_SERVICES, &scene.key, patch).await;
        if let Some(written) = gone_is_fine(written)? {
            self.services.observe(written);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_makes_one_of_the_other() {
        let old = json!({"a": {"x": 1, "y": 2}, "b": [1], "c": 1});
        let new = json!({"a": {"x": 1, "z": 3}, "b": [2]});
        let patch = difference(&old, &new);
        assert_eq!(patch, json!({"a": {"y": null, "z": 3}, "b": [2], "c": null}));
        let mut made = old;
        machinery::patch::merge(&mut made, &patch);
        assert_eq!(made, new);
    }
}
