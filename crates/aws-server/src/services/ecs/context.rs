//! One call at work: whose names it speaks in, how it finds clusters, definitions and tasks, and how it writes.

use super::index::{Stored, Views};
use super::{Ecs, instance};
use crate::service::{AwsError, Call, Shared};
use client::{DeleteOptions, Object, ObjectKey};
use ecs_model::doc::{Doc, object};
use ecs_model::names::{ArnError, DEFAULT_CLUSTER, Place, Resource, Scope, family_revision};
use ecs_model::refusal::{Refusal, refuse_if};
use k8s_schema::{Gvr, gvr};
use machinery::kinds::get::text;
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Attempts at a compare-and-swap before the caller is told to try again.
const ATTEMPTS: usize = 10;
/// Patience with an object that somebody else is making.
const MADE_ATTEMPTS: u32 = 200;
const MADE_PAUSE: Duration = Duration::from_millis(5);
/// Patience with a namespace of the same name that is still going away.
const NAMESPACE_ATTEMPTS: u32 = 100;
const NAMESPACE_PAUSE: Duration = Duration::from_millis(100);

impl From<Refusal> for AwsError {
    fn from(refusal: Refusal) -> Self {
        AwsError::client(refusal.code, refusal.message)
    }
}

/// `InvalidParameterException`.
pub fn parameter(words: impl Into<String>) -> AwsError {
    AwsError::client("InvalidParameterException", words)
}

/// `ClientException`.
pub fn client_error(words: impl Into<String>) -> AwsError {
    AwsError::client("ClientException", words)
}

/// What our own API said no to that should have gone well.
pub fn internal(error: ApiError) -> AwsError {
    tracing::error!(%error, "ECS could not read or write its objects");
    AwsError::server("ServerException", "Service Unavailable. Please try again later.")
}

fn busy() -> AwsError {
    AwsError::server("ServerException", "Too many concurrent changes of the resource. Please try again.")
}

/// The document of an object.
pub fn doc(object: &Object) -> Result<Arc<Doc>, AwsError> {
    object.view::<Doc>().map_err(|e| internal(ApiError::internal(e)))
}

/// An entry of `failures`.
pub fn failure(arn: &str, reason: &str) -> Value {
    json!({"arn": arn, "reason": reason})
}

/// A cluster that a call found.
#[derive(Clone)]
pub struct Cluster {
    pub name: String,
    pub arn: String,
    pub namespace: String,
    pub doc: Arc<Doc>,
}

/// One call at work.
pub struct Context<'a> {
    pub shared: &'a Shared,
    pub views: &'a Views,
    pub call: &'a Call,
    pub scope: Scope,
}

impl Ecs {
    /// Starts work on a call.
    pub async fn enter<'a>(&'a self, call: &'a Call) -> Context<'a> {
        let place = Place::new(&*call.caller.account, &*call.region);
        let defaults = Place::new(&*self.shared.account, &*self.shared.region);
        Context { shared: &self.shared, views: self.views().await, call, scope: Scope { place, defaults } }
    }
}

impl Context<'_> {
    /// The same work for another call of the same caller.
    pub fn again<'b>(&'b self, call: &'b Call) -> Context<'b> {
        Context { shared: self.shared, views: self.views, call, scope: self.scope.clone() }
    }

    /// A text member of the input; "" when absent.
    pub fn text(&self, member: &str) -> &str {
        self.call.input[member].as_str().unwrap_or_default()
    }

    /// The text elements of a list member.
    pub fn texts(&self, member: &str) -> Vec<&str> {
        self.call.input[member].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
    }

    /// Does `include` name it?
    pub fn includes(&self, what: &str) -> bool {
        self.texts("include").contains(&what)
    }

    /// Does the service scheduler ask? (No request from outside can carry these names: they are in no model.)
    pub fn is_of_service(&self) -> bool {
        super::service_tasks::OPERATIONS.iter().any(|o| o.name == self.call.operation)
    }

    /// Seconds since 1970.
    pub fn now(&self) -> f64 {
        self.call.now_ms as f64 / 1000.0
    }

    /// Reads an ARN; another account's is denied as IAM does, another region's refused.
    pub fn parse_arn(&self, arn: &str) -> Result<Resource, AwsError> {
        self.scope.parse(arn).map_err(|error| match error {
            ArnError::Account => AwsError::client(
                "AccessDeniedException",
                format!(
                    "User: {} is not authorized to perform: ecs:{} on resource: {arn} because no resource-based policy \
                     allows the ecs:{} action",
                    self.call.caller.arn, self.call.operation, self.call.operation
                ),
            ),
            ArnError::Region => parameter(format!("Invalid region in ARN: {arn}")),
            ArnError::Malformed => parameter(format!("Invalid ARN: {arn}")),
        })
    }

    /// The cluster's name from a name or ARN; the default one for "".
    pub fn cluster_name(&self, given: &str) -> Result<String, AwsError> {
        if given.is_empty() {
            return Ok(DEFAULT_CLUSTER.to_string());
        }
        if !given.starts_with("arn:") {
            return Ok(given.to_string());
        }
        match self.parse_arn(given)? {
            Resource::Cluster(name) => Ok(name),
            _ => Err(parameter("Invalid identifier: Unexpected resource type in cluster identifier.")),
        }
    }

    /// The ARN of a cluster of this place.
    pub fn cluster_arn(&self, name: &str) -> String {
        self.scope.arn(&Resource::Cluster(name.to_string()))
    }

    /// The object key of a cluster.
    pub fn cluster_key(&self, name: &str) -> ObjectKey {
        ObjectKey::new(self.scope.cluster_namespace(name), self.scope.object_name(name))
    }

    /// A cluster by name, whatever its status.
    pub fn find_cluster(&self, name: &str) -> Result<Option<Cluster>, AwsError> {
        let Some(object) = self.views.clusters.get(&self.cluster_key(name)) else { return Ok(None) };
        let doc = doc(&object)?;
        let arn = self.cluster_arn(name);
        // A hash is a hash: the true name decides.
        if text(doc.spec(), "/clusterArn") != arn {
            return Ok(None);
        }
        Ok(Some(Cluster { name: name.to_string(), arn, namespace: self.scope.cluster_namespace(name), doc }))
    }

    /// The active cluster that the call's `cluster` member names. The default one is made when it is first used.
    pub async fn cluster(&self) -> Result<Cluster, AwsError> {
        let name = self.cluster_name(self.text("cluster"))?;
        let missing = || AwsError::client("ClusterNotFoundException", "Cluster not found.");
        match self.find_cluster(&name)? {
            Some(cluster) if text(cluster.doc.spec(), "/status") == "ACTIVE" => Ok(cluster),
            Some(_) => {
                Err(AwsError::client("ClusterNotFoundException", "The referenced cluster was inactive."))
            }
            None if name != DEFAULT_CLUSTER => Err(missing()),
            None => {
                super::cluster::make_default(self).await?;
                self.find_cluster(&name)?.ok_or_else(missing)
            }
        }
    }

    /// A task definition by family, `family:revision` or ARN; `None` where there is none. A family alone means its
    /// latest active revision.
    pub fn definition(&self, given: &str) -> Result<Option<Arc<Object>>, AwsError> {
        let (family, revision) = if given.starts_with("arn:") {
            match self.parse_arn(given)? {
                Resource::TaskDefinition(family, revision) => (family, Some(revision)),
                _ => {
                    return Err(parameter(
                        "Invalid identifier: Unexpected resource type in task definition ARN.",
                    ));
                }
            }
        } else {
            match family_revision(given) {
                Some((family, revision)) => (family.to_string(), revision),
                None => return Err(client_error(format!("Invalid revision number. Number: {given}"))),
            }
        };
        let place = &self.scope.place;
        let revisions = self.views.families.lock().revisions(&place.account, &place.region, &family);
        if let Some(revision) = revision {
            return Ok(revisions.get(&revision).cloned());
        }
        for object in revisions.values().rev() {
            if text(doc(object)?.spec(), "/status") == "ACTIVE" {
                return Ok(Some(object.clone()));
            }
        }
        Ok(None)
    }

    /// The name in a name or ARN of a `what` (`task`, `service`, `container instance`) of that cluster.
    pub fn named(&self, cluster: &Cluster, what: &str, given: &str) -> Result<String, AwsError> {
        if !given.starts_with("arn:") {
            return Ok(given.to_string());
        }
        let (within, name) = match (what, self.parse_arn(given)?) {
            ("task", Resource::Task(within, id)) => (within, id),
            ("service", Resource::Service(within, name)) => (within, name),
            ("container instance", Resource::ContainerInstance(within, id)) => (within, id),
            _ => {
                let words = format!("Invalid identifier: Unexpected resource type in {what} identifier.");
                return Err(parameter(words));
            }
        };
        let own = &cluster.name;
        refuse_if(within != *own, || {
            parameter(format!("Invalid identifier: Identifier is for {within}. Your cluster is {own}"))
        })?;
        Ok(name)
    }

    /// The id in a short or long task identifier; the long form must be of that cluster.
    pub fn task_id(&self, cluster: &Cluster, given: &str) -> Result<String, AwsError> {
        let id = self.named(cluster, "task", given)?;
        refuse_if(![32, 36].contains(&id.len()), || parameter("taskId length should be one of [32,36]"))?;
        Ok(id)
    }

    /// A task of a cluster.
    pub fn task(&self, cluster: &Cluster, id: &str) -> Option<Arc<Object>> {
        self.views.tasks.get(&ObjectKey::new(&*cluster.namespace, id))
    }

    /// The container instances of a cluster.
    pub fn instances(&self, cluster: &Cluster) -> Result<Vec<instance::Row>, AwsError> {
        instance::rows(self, cluster)
    }

    /// An object of our own API as it is stored now.
    pub async fn read(&self, gvr: &Gvr, key: &ObjectKey) -> Result<Option<Arc<Object>>, AwsError> {
        match self.shared.client.get(gvr, key).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(internal(error)),
        }
    }

    /// Deletes an object, if it is there.
    pub async fn delete(&self, gvr: &Gvr, key: &ObjectKey, options: DeleteOptions) -> Result<(), AwsError> {
        match self.shared.client.delete(gvr, key, options).await {
            Err(error) if !error.is_not_found() => Err(internal(error)),
            _ => Ok(()),
        }
    }

    /// Creates an object; `None` where one of that name is there.
    pub async fn create(&self, kept: &Stored, body: Value) -> Result<Option<Arc<Object>>, AwsError> {
        match self.shared.client.create(&kept.gvr, body).await {
            Ok(object) => {
                kept.observe(object.clone());
                Ok(Some(object))
            }
            Err(error) if error.is_already_exists() => Ok(None),
            Err(error) => Err(internal(error)),
        }
    }

    /// An object that somebody else is making or has just made. (A create is refused as soon as another one is on its
    /// way; the object can be read when that one is on disk.)
    pub async fn made_by_another(&self, kept: &Stored, key: &ObjectKey) -> Result<Arc<Object>, AwsError> {
        let mut pauses = 0;
        loop {
            match self.shared.client.get(&kept.gvr, key).await {
                Ok(object) => {
                    kept.observe(object.clone());
                    return Ok(object);
                }
                Err(error) if error.is_not_found() && pauses < MADE_ATTEMPTS => pauses += 1,
                Err(error) => return Err(internal(error)),
            }
            tokio::time::sleep(MADE_PAUSE).await;
        }
    }

    /// Changes an object: `edit` sees it and gives a merge patch (`None`: leave it), again whenever another writer was
    /// faster. `None` where there is no such object.
    pub async fn modify(
        &self,
        kept: &Stored,
        key: &ObjectKey,
        edit: impl Fn(&Doc) -> Result<Option<Value>, AwsError>,
    ) -> Result<Option<Arc<Object>>, AwsError> {
        let Some(mut object) = kept.get(key) else { return Ok(None) };
        for _ in 0..ATTEMPTS {
            let Some(mut patch) = edit(&*doc(&object)?)? else { return Ok(Some(object)) };
            patch["metadata"]["resourceVersion"] = json!(object.revision.to_string());
            match self.shared.client.merge_patch(&kept.gvr, key, patch).await {
                Ok(written) => {
                    kept.observe(written.clone());
                    return Ok(Some(written));
                }
                Err(error) if error.is_not_found() => return Ok(None),
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(internal(error)),
            }
            let Some(newer) = self.read(&kept.gvr, key).await? else { return Ok(None) };
            object = newer;
        }
        Err(busy())
    }

    /// Creates or changes an object: `edit` sees its spec so far (`base`, where there is none) and gives a merge patch.
    pub async fn put(
        &self,
        kept: &Stored,
        (kind, key): (&str, &ObjectKey),
        base: &Value,
        edit: impl Fn(&Value) -> Result<Value, AwsError>,
    ) -> Result<Arc<Object>, AwsError> {
        for _ in 0..ATTEMPTS {
            let patch = |doc: &Doc| Ok(Some(json!({"spec": edit(doc.spec())?})));
            if let Some(object) = self.modify(kept, key, patch).await? {
                return Ok(object);
            }
            self.ensure_namespace(&key.namespace).await?;
            let mut spec = base.clone();
            machinery::patch::merge(&mut spec, &edit(base)?);
            let body = object(kind, &key.namespace, &key.name, spec);
            if let Some(object) = self.create(kept, body).await? {
                return Ok(object);
            }
            self.made_by_another(kept, key).await?;
        }
        Err(busy())
    }

    /// Makes a namespace; waits while one of that name goes away.
    pub async fn ensure_namespace(&self, name: &str) -> Result<(), AwsError> {
        let client = &self.shared.client;
        for _ in 0..NAMESPACE_ATTEMPTS {
            match client.get(&gvr::NAMESPACES, &ObjectKey::cluster(name)).await {
                Ok(object) if object.meta().deletion_timestamp.is_none() => return Ok(()),
                Ok(_) => tokio::time::sleep(NAMESPACE_PAUSE).await,
                Err(error) if error.is_not_found() => {
                    let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
                    match client.create(&gvr::NAMESPACES, body).await {
                        Ok(_) => return Ok(()),
                        Err(error) if error.is_already_exists() => {}
                        Err(error) => return Err(internal(error)),
                    }
                }
                Err(error) => return Err(internal(error)),
            }
        }
        Err(AwsError::server(
            "ServerException",
            "A cluster of that name is still being deleted. Please try again.",
        ))
    }
}
