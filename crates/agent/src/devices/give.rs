//! Giving a pod its devices: the free ones are chosen, as the plug-in prefers if it has a say, and the plug-in is asked
//! to make them ready; and what it does before each start of a container.

use super::Devices;
use super::state::{Choice, Grant, Ids, Wish};
use crate::pod::{PodView, Role};
use grpc::{Answer, Call, DEVICES};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// For a plug-in's answer while a pod waits. (The kubelet waits for ever.)
const CALL_MAX: Duration = Duration::from_secs(60);

fn ids_of(list: &Value) -> Ids {
    list.as_array().into_iter().flatten().filter_map(|id| id.as_str().map(Into::into)).collect()
}

impl Devices {
    /// Gives a pod what it asks for, and writes it down. `holding`: the pods that are not over; what others had is free.
    ///
    /// # Errors
    /// Why it cannot have it, in the kubelet's words; it has nothing then.
    pub async fn give(&self, pod: PodView, holding: BTreeSet<String>) -> Result<(), String> {
        let _one = self.giving.lock().await;
        self.state.lock().grants.retain(|uid, _| uid == pod.uid() || holding.contains(uid));
        let wishes = self.state.lock().wishes(&pod);
        let mut reusable: BTreeMap<&str, Ids> = BTreeMap::new();
        let mut given = Ok(());
        for wish in wishes {
            let reused = reusable.entry(wish.resource).or_default();
            given = self.give_one(pod.uid(), &wish, reused).await;
            if given.is_err() {
                break;
            }
            let own = self.ids(pod.uid(), &wish);
            match wish.role {
                // Init containers end before the others begin.
                Role::Init => reused.extend(own),
                _ => reused.retain(|id| !own.contains(id)),
            }
        }
        if given.is_ok() {
            given = self.save().await;
        }
        if given.is_err() {
            self.state.lock().grants.remove(pod.uid());
        }
        given.map_err(|why| format!("Allocate failed due to {why}, which is unexpected"))
    }

    fn ids(&self, uid: &str, wish: &Wish) -> Ids {
        let state = self.state.lock();
        let own =
            state.grants.get(uid).and_then(|p| p.get(wish.container)).and_then(|c| c.get(wish.resource));
        own.map(|grant| grant.ids.clone()).unwrap_or_default()
    }

    async fn give_one(&self, uid: &str, wish: &Wish<'_>, reusable: &Ids) -> Result<(), String> {
        let Some(choice) = self.state.lock().choice(uid, wish, reusable)? else { return Ok(()) };
        let ids = choice.take(&self.preferred(wish.resource, &choice).await);
        let request = json!({"container_requests": [{"devices_ids": ids}]});
        let answer = self.call(wish.resource, "Allocate", &request).await.map_err(|e| e.to_string())?;
        let answer = answer["container_responses"][0].clone();
        let mut state = self.state.lock();
        let containers = state.grants.entry(uid.into()).or_default();
        let own = containers.entry(wish.container.into()).or_default();
        own.insert(wish.resource.into(), Grant { ids, answer });
        Ok(())
    }

    /// What the plug-in prefers; nothing if it has no say, or no answer.
    async fn preferred(&self, resource: &str, choice: &Choice) -> Ids {
        if !self.option(resource, "get_preferred_allocation_available") || choice.free.is_empty() {
            return Ids::new();
        }
        let all: Ids = choice.free.union(&choice.must).cloned().collect();
        let request = json!({"container_requests": [{"available_deviceIDs": all,
            "must_include_deviceIDs": choice.must, "allocation_size": choice.count}]});
        match self.call(resource, "GetPreferredAllocation", &request).await {
            Ok(answer) => ids_of(&answer["container_responses"][0]["deviceIDs"]),
            Err(error) => {
                tracing::warn!(resource, %error, "the plug-in prefers no device");
                Ids::new()
            }
        }
    }

    fn option(&self, resource: &str, name: &str) -> bool {
        self.state.lock().pools.get(resource).is_some_and(|p| p.options[name] == true)
    }

    async fn call(&self, resource: &str, method: &str, request: &Value) -> Answer {
        let socket = self.state.lock().pools.get(resource).map(|p| p.socket.clone()).unwrap_or_default();
        Call { schema: &DEVICES, socket: &socket, within: CALL_MAX }.call(method, request).await
    }

    /// Before each start of a container: plug-ins that asked for it may reset its devices.
    ///
    /// # Errors
    /// A plug-in's.
    pub async fn before_start(&self, uid: &str, container: &str) -> Result<(), String> {
        let own: Vec<(String, Ids)> = {
            let state = self.state.lock();
            let own = state.grants.get(uid).and_then(|p| p.get(container)).into_iter().flatten();
            own.map(|(resource, grant)| (resource.clone(), grant.ids.clone())).collect()
        };
        for (resource, ids) in own {
            if self.option(&resource, "pre_start_required") {
                let request = json!({"devices_ids": ids});
                self.call(&resource, "PreStartContainer", &request).await.map_err(|e| e.to_string())?;
            }
        }
        Ok(())
    }
}
