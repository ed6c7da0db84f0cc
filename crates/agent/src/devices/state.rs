//! Which devices there are, and which container has which: pure.
//!
//! A resource that a plug-in once told of stays, without devices, when the plug-in is gone for good: the Node says 0
//! then, as the kubelet's does.

use crate::pod::{PodView, Role};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Names of devices.
pub type Ids = BTreeSet<String>;

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub healthy: bool,
    /// `TopologyInfo`, or null.
    pub topology: Value,
}

/// The devices of a resource.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    /// The plug-in's socket.
    pub socket: PathBuf,
    /// `DevicePluginOptions`.
    pub options: Value,
    pub devices: BTreeMap<String, Device>,
}

/// What a container has of a resource.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Grant {
    pub ids: Ids,
    /// `ContainerAllocateResponse`.
    pub answer: Value,
}

/// By pod (UID), container and resource.
pub type Grants = BTreeMap<String, BTreeMap<String, BTreeMap<String, Grant>>>;

/// Capacity and what is healthy of it, by resource.
pub type Amounts = BTreeMap<String, (usize, usize)>;

/// What a container asks for.
#[derive(Clone, Debug)]
pub struct Wish<'a> {
    pub container: &'a str,
    pub role: Role,
    pub resource: &'a str,
    pub count: usize,
}

/// What a plug-in is asked before one chooses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Must be among those chosen: an init container before had them.
    pub must: Ids,
    /// Free and healthy; `must` is not in it.
    pub free: Ids,
    /// How many in all.
    pub count: usize,
}

impl Choice {
    /// The devices; those that the plug-in prefers first.
    pub fn take(&self, preferred: &Ids) -> Ids {
        let mut chosen: Ids = self.must.iter().take(self.count).cloned().collect();
        for from in [preferred, &self.free] {
            let known: Vec<&String> = from.iter().filter(|id| self.free.contains(*id)).collect();
            for id in known {
                if chosen.len() < self.count {
                    chosen.insert(id.clone());
                }
            }
        }
        chosen
    }
}

/// All of it.
#[derive(Default)]
pub struct State {
    pub pools: BTreeMap<String, Pool>,
    pub grants: Grants,
}

/// What is kept over a restart.
#[derive(Default, Serialize, Deserialize)]
pub struct Checkpoint {
    pub grants: Grants,
    pub resources: BTreeSet<String>,
}

impl State {
    /// What an agent before left.
    pub fn restore(checkpoint: Checkpoint) -> State {
        let pools = checkpoint.resources.into_iter().map(|name| (name, Pool::default())).collect();
        State { pools, grants: checkpoint.grants }
    }

    /// What is to be kept.
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint { grants: self.grants.clone(), resources: self.pools.keys().cloned().collect() }
    }

    /// For the Node.
    pub fn amounts(&self) -> Amounts {
        let healthy = |pool: &Pool| pool.devices.values().filter(|d| d.healthy).count();
        self.pools.iter().map(|(name, p)| (name.clone(), (p.devices.len(), healthy(p)))).collect()
    }

    /// What a pod asks for of plug-ins, in the order in which its containers get it.
    pub fn wishes<'a>(&self, pod: &'a PodView) -> Vec<Wish<'a>> {
        let mut all = Vec::new();
        let roles: [&[Role]; 2] = [&[Role::Init, Role::Sidecar], &[Role::Main]];
        for role in roles {
            for c in pod.containers.iter().filter(|c| role.contains(&c.role)) {
                let limits = c.spec.resources.as_ref().and_then(|r| r.limits.as_ref());
                for (resource, amount) in limits.into_iter().flatten() {
                    let count = amount.0.parse::<machinery::quantity::Quantity>().map_or(0, |q| q.units());
                    let count = usize::try_from(count).unwrap_or(0);
                    if count > 0 && self.pools.contains_key(resource) {
                        all.push(Wish { container: c.name(), role: c.role, resource, count });
                    }
                }
            }
        }
        all
    }

    fn of_pod(&self, uid: &str, resource: &str) -> impl Iterator<Item = &Grant> {
        let containers = self.grants.get(uid).into_iter().flat_map(BTreeMap::values);
        let resource = resource.to_string();
        containers.filter_map(move |c| c.get(&resource))
    }

    /// What a container may choose from; `None`: it has its devices. `reusable`: what init containers before had.
    ///
    /// # Errors
    /// The kubelet's words for what is missing.
    pub fn choice(&self, uid: &str, wish: &Wish, reusable: &Ids) -> Result<Option<Choice>, String> {
        let (resource, count) = (wish.resource, wish.count);
        let own = self.grants.get(uid).and_then(|p| p.get(wish.container)).and_then(|c| c.get(resource));
        if let Some(own) = own {
            let had = own.ids.len();
            return if had == count {
                Ok(None)
            } else {
                let container = wish.container;
                Err(format!(
                    "pod {uid:?} container {container:?} changed request for resource {resource:?} from {had} to {count}"
                ))
            };
        }
        let unknown = || format!("cannot allocate unregistered device {resource}");
        let pool = self.pools.get(resource).ok_or_else(unknown)?;
        let healthy: Ids = pool.devices.iter().filter(|(_, d)| d.healthy).map(|(id, _)| id.clone()).collect();
        if healthy.is_empty() {
            return Err(format!("no healthy devices present; cannot allocate unhealthy devices {resource}"));
        }
        let must: Ids = reusable.intersection(&healthy).take(count).cloned().collect();
        let taken: Ids = self
            .grants
            .keys()
            .flat_map(|uid| self.of_pod(uid, resource))
            .flat_map(|g| g.ids.clone())
            .collect();
        let free: Ids = healthy.iter().filter(|id| !taken.contains(*id)).cloned().collect();
        let needed = count - must.len();
        if free.len() < needed {
            return Err(format!(
                "requested number of devices unavailable for {resource}. Requested: {needed}, Available: {}",
                free.len()
            ));
        }
        Ok(Some(Choice { must, free, count }))
    }

    /// Do its devices work? One entry a resource for each container's status.
    pub fn health(&self, uid: &str, container: &str) -> Option<Value> {
        let of = |pool: Option<&Pool>, id: &String| match pool.and_then(|p| p.devices.get(id)) {
            Some(Device { healthy: true, .. }) => "Healthy",
            Some(_) => "Unhealthy",
            None => "Unknown",
        };
        let one = |(resource, grant): (&String, &Grant)| {
            let pool = self.pools.get(resource);
            let ids = grant.ids.iter().map(|id| json!({"resourceID": id, "health": of(pool, id)}));
            json!({"name": resource, "resources": ids.collect::<Vec<_>>()})
        };
        let own = self.grants.get(uid)?.get(container)?;
        Some(own.iter().map(one).collect())
    }

    /// `ContainerDevices` of a container.
    pub fn container_devices(&self, uid: &str, container: &str) -> Vec<Value> {
        let own = self.grants.get(uid).and_then(|p| p.get(container));
        let of = |(resource, grant): (&String, &Grant)| -> Vec<Value> {
            let pool = self.pools.get(resource);
            let topology = |id: &String| {
                pool.and_then(|p| p.devices.get(id)).map(|d| d.topology.clone()).unwrap_or_default()
            };
            grant.ids.iter().map(|id| container_device(resource, id, topology(id))).collect()
        };
        own.into_iter().flatten().flat_map(of).collect()
    }

    /// `ContainerDevices` of everything that works.
    pub fn allocatable(&self) -> Vec<Value> {
        let of = |(resource, pool): (&String, &Pool)| -> Vec<Value> {
            let healthy = pool.devices.iter().filter(|(_, d)| d.healthy);
            healthy.map(|(id, d)| container_device(resource, id, d.topology.clone())).collect()
        };
        self.pools.iter().flat_map(of).collect()
    }
}

fn container_device(resource: &str, id: &str, topology: Value) -> Value {
    json!({"resource_name": resource, "device_ids": [id], "topology": topology})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod;

    fn ids(list: &[&str]) -> Ids {
        list.iter().map(|i| i.to_string()).collect()
    }

    fn state() -> State {
        let device = |healthy| Device { healthy, topology: Value::Null };
        let devices = [("a", true), ("b", true), ("c", false), ("d", true)];
        let devices = devices.map(|(id, healthy)| (id.to_string(), device(healthy))).into();
        let mut state = State::default();
        state.pools.insert("x.io/y".into(), Pool { devices, ..Pool::default() });
        let grant = Grant { ids: ids(&["b"]), answer: Value::Null };
        state.grants.insert("other".into(), [("c".into(), [("x.io/y".into(), grant)].into())].into());
        state
    }

    fn wish(count: usize) -> Wish<'static> {
        Wish { container: "m", role: Role::Main, resource: "x.io/y", count }
    }

    #[test]
    fn only_what_is_free_and_works_is_given() {
        let mut state = state();
        assert_eq!(state.amounts()["x.io/y"], (4, 3));
        let choice = state.choice("u", &wish(2), &Ids::new()).unwrap().unwrap();
        assert_eq!(choice, Choice { must: ids(&[]), free: ids(&["a", "d"]), count: 2 });
        let one = Choice { count: 1, ..choice };
        assert_eq!(one.take(&ids(&["d"])), ids(&["d"]), "as preferred");
        assert_eq!(one.take(&ids(&["b", "c", "z"])), ids(&["a"]), "but never what is not free");
        let said = state.choice("u", &wish(3), &Ids::new()).unwrap_err();
        assert_eq!(said, "requested number of devices unavailable for x.io/y. Requested: 3, Available: 2");
        let choice = state.choice("u", &wish(3), &ids(&["b"])).unwrap().unwrap();
        assert_eq!(choice.take(&Ids::new()), ids(&["a", "b", "d"]), "an init container had b");
        assert_eq!(state.choice("other", &Wish { container: "c", ..wish(1) }, &Ids::new()), Ok(None));
        assert!(state.choice("other", &Wish { container: "c", ..wish(2) }, &Ids::new()).is_err());
        state.pools.get_mut("x.io/y").unwrap().devices.clear();
        let said = state.choice("u", &wish(1), &Ids::new()).unwrap_err();
        assert_eq!(said, "no healthy devices present; cannot allocate unhealthy devices x.io/y");
    }

    #[test]
    fn what_is_told_of_devices() {
        let state = state();
        let told = |id: &str, health: &str| json!([{"name": "x.io/y", "resources": [{"resourceID": id, "health": health}]}]);
        assert_eq!(state.health("other", "c"), Some(told("b", "Healthy")));
        assert_eq!(state.health("other", "d"), None);
        let kept: Checkpoint =
            serde_json::from_str(&serde_json::to_string(&state.checkpoint()).unwrap()).unwrap();
        let restored = State::restore(kept);
        assert_eq!(restored.health("other", "c"), Some(told("b", "Unknown")), "until its plug-in is back");
        assert_eq!(restored.amounts()["x.io/y"], (0, 0));
        assert_eq!(state.allocatable().len(), 3);
    }

    #[test]
    fn init_containers_come_first_and_foreign_resources_are_left() {
        let asks = |name: &str, n: &str| json!({"name": name, "image": "i", "resources": {"limits": {"x.io/y": n, "x.io/other": "1", "cpu": "1"}}});
        let pod = pod(json!({"containers": [asks("m", "2")], "initContainers": [asks("i", "1")]}));
        let list: Vec<(String, usize)> =
            state().wishes(&pod).iter().map(|w| (w.container.to_string(), w.count)).collect();
        assert_eq!(list, [("i".to_string(), 1), ("m".to_string(), 2)]);
    }
}
