//! Do devices of claims work? What drivers' instances said last, how long it counts, and what a pod's status says of it:
//! pure.
//!
//! An instance tells of all its devices at once; one that it leaves out counts on until its time is over. What nobody
//! says, or said too long ago, is unknown. Of several instances the last one counts that says anything of a device.

use super::state::{Claims, claims_of, key};
use k8s_openapi::api::core::v1 as core;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// How long a report counts where the driver sets no time (the kubelet's figure).
const COUNTS_FOR: Duration = Duration::from_secs(30);
/// Longest time that a driver may set, in seconds: a year.
const SECONDS_MAX: i64 = 365 * 24 * 3600;
/// Characters of a message; a longer one is cut and ends in [`CUT`] (the kubelet's figures).
const MESSAGE_MAX: usize = 1024;
const CUT: &str = "...";
/// Most devices that are kept of an instance: more is a driver gone mad.
const DEVICES_MAX: usize = 4096;
/// `HealthStatus` by number, and what a number without a name, or no report, is.
const NAMES: [&str; 3] = [UNKNOWN, "Healthy", "Unhealthy"];
const UNKNOWN: &str = "Unknown";

/// What was said of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Report {
    health: &'static str,
    message: String,
    until: Instant,
}

impl Report {
    fn read(value: &Value, now: Instant) -> Report {
        let number = value["health"].as_u64().and_then(|n| usize::try_from(n).ok());
        let health = number.and_then(|n| NAMES.get(n)).copied().unwrap_or(UNKNOWN);
        let seconds = value["health_check_timeout_seconds"].as_i64().unwrap_or_default().min(SECONDS_MAX);
        let counts = u64::try_from(seconds).ok().filter(|s| *s > 0).map_or(COUNTS_FOR, Duration::from_secs);
        let mut message = value["message"].as_str().unwrap_or_default().to_string();
        if message.chars().nth(MESSAGE_MAX).is_some() {
            message = message.chars().take(MESSAGE_MAX - CUT.len()).chain(CUT.chars()).collect();
        }
        Report { health, message, until: now + counts }
    }
}

/// What an instance of a driver said, by pool and device.
#[derive(Debug, Default)]
struct Instance {
    driver: String,
    devices: BTreeMap<(String, String), Report>,
}

/// What all of them said.
#[derive(Debug, Default)]
pub struct Health {
    instances: BTreeMap<u64, Instance>,
    /// The number of the newest one.
    newest: u64,
}

impl Health {
    /// A driver's instance comes; its number.
    pub fn enter(&mut self, driver: &str) -> u64 {
        self.newest += 1;
        self.instances.insert(self.newest, Instance { driver: driver.into(), ..Instance::default() });
        self.newest
    }

    /// An instance is gone for good. True: something that was said is lost.
    pub fn leave(&mut self, instance: u64) -> bool {
        self.instances.remove(&instance).is_some_and(|i| !i.devices.is_empty())
    }

    /// An instance says no more. True: something that was said is lost.
    pub fn clear(&mut self, instance: u64) -> bool {
        let devices = self.instances.get_mut(&instance).map(|i| std::mem::take(&mut i.devices));
        devices.is_some_and(|d| !d.is_empty())
    }

    /// Takes an instance's `NodeWatchResourcesResponse`. True: it says something new.
    pub fn take(&mut self, instance: u64, list: &Value, now: Instant) -> bool {
        let mut changed = self.expire(instance, now);
        let Some(Instance { devices, .. }) = self.instances.get_mut(&instance) else { return false };
        for told in list["devices"].as_array().into_iter().flatten().take(DEVICES_MAX) {
            let text = |key: &str| told["device"][key].as_str().unwrap_or_default().to_string();
            let key = (text("pool_name"), text("device_name"));
            if devices.len() >= DEVICES_MAX && !devices.contains_key(&key) {
                continue;
            }
            let report = Report::read(told, now);
            let said = (report.health, report.message.clone());
            let before = devices.insert(key, report);
            changed |= before.is_none_or(|b| (b.health, b.message) != said);
        }
        changed
    }

    /// Forgets what counts no more. True: there was something.
    pub fn expire(&mut self, instance: u64, now: Instant) -> bool {
        let Some(Instance { devices, .. }) = self.instances.get_mut(&instance) else { return false };
        let before = devices.len();
        devices.retain(|_, report| report.until > now);
        devices.len() < before
    }

    /// When something of an instance counts no more.
    pub fn expires(&self, instance: u64) -> Option<Instant> {
        self.instances.get(&instance)?.devices.values().map(|report| report.until).min()
    }

    fn of(&self, driver: &str, device: &(String, String), now: Instant) -> Option<&Report> {
        let instances = self.instances.values().rev().filter(|i| i.driver == driver);
        let mut reports = instances.filter_map(|i| i.devices.get(device));
        reports.find(|report| report.until > now)
    }
}

/// `ResourceStatus`es of a container: one for each of its claims that has devices.
pub fn told(
    health: &Health,
    claims: &Claims,
    (pod, container): (&core::Pod, &core::Container),
    now: Instant,
) -> Vec<Value> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let named = claims_of(pod).unwrap_or_default();
    let wanted = container.resources.iter().flat_map(|r| r.claims.iter().flatten());
    let mut all = Vec::new();
    for wanted in wanted {
        let held = named.iter().find(|(own, _)| *own == wanted.name);
        let Some(held) = held.and_then(|(_, claim)| claims.get(&key(namespace, claim))) else { continue };
        let request = wanted.request.as_deref().unwrap_or_default();
        let mut resources: BTreeMap<String, Value> = BTreeMap::new();
        for (driver, devices) in &held.drivers {
            for device in devices.iter().filter(|d| d.is_for(request)) {
                let at = (device.pool.clone(), device.device.clone());
                let plain = || format!("{driver}/{}/{}", device.pool, device.device);
                let id = device.cdi.first().cloned().unwrap_or_else(plain);
                let report = health.of(driver, &at, now);
                let mut told = json!({"resourceID": id, "health": report.map_or(UNKNOWN, |r| r.health)});
                if let Some(message) = report.map(|r| r.message.as_str()).filter(|m| !m.is_empty()) {
                    told["message"] = message.into();
                }
                resources.entry(id).or_insert(told);
            }
        }
        if !resources.is_empty() {
            let slash = if request.is_empty() { "" } else { "/" };
            let resources: Vec<Value> = resources.into_values().collect();
            all.push(
                json!({"name": format!("claim:{}{slash}{request}", wanted.name), "resources": resources}),
            );
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::super::state::{Device, Held};
    use super::*;

    fn list(devices: &[(&str, u64, i64, &str)]) -> Value {
        let one = |(name, health, seconds, message): &(&str, u64, i64, &str)| {
            json!({"device": {"pool_name": "p", "device_name": name}, "health": health,
                "health_check_timeout_seconds": seconds, "message": message})
        };
        json!({"devices": devices.iter().map(one).collect::<Vec<_>>()})
    }

    fn of(health: &Health, device: &str, now: Instant) -> String {
        let report = health.of("x.io", &("p".into(), device.into()), now);
        report.map_or(UNKNOWN.into(), |r| format!("{} {}", r.health, r.message))
    }

    #[test]
    fn reports_count_for_their_time() {
        let (mut health, t0) = (Health::default(), Instant::now());
        let at = |seconds: u64| t0 + Duration::from_secs(seconds);
        let one = health.enter("x.io");
        assert_eq!(health.expires(one), None, "nobody waits for nothing");
        assert!(health.take(one, &list(&[("a", 1, 0, ""), ("b", 1, 60, ""), ("c", 7, -5, "")]), t0));
        assert_eq!(of(&health, "a", at(29)), "Healthy ");
        assert_eq!(of(&health, "a", at(30)), UNKNOWN);
        assert_eq!(of(&health, "b", at(59)), "Healthy ");
        assert_eq!(of(&health, "c", t0), "Unknown ");
        assert_eq!(health.expires(one), Some(at(30)));
        assert!(!health.take(one, &list(&[("a", 1, 0, "")]), at(20)), "nothing new");
        assert!(health.take(one, &list(&[("a", 2, 0, "hot")]), at(21)));
        assert!(health.take(one, &list(&[("a", 2, 0, "very hot")]), at(22)), "a new message");
        assert_eq!(of(&health, "b", at(22)), "Healthy ", "left out, but its time is not over");
        assert!(health.expire(one, at(30)), "c");
        assert!(!health.expire(one, at(51)));
        assert!(health.expire(one, at(52)), "a");
        assert!(health.take(one, &list(&[]), at(61)), "b");
        assert_eq!(health.expires(one), None);
    }

    #[test]
    fn the_last_instance_counts() {
        let (mut health, now) = (Health::default(), Instant::now());
        let (one, two) = (health.enter("x.io"), health.enter("x.io"));
        let other = health.enter("y.io");
        assert!(health.take(one, &list(&[("a", 1, 0, ""), ("b", 1, 0, "")]), now));
        assert!(health.take(two, &list(&[("a", 2, i64::MAX, "")]), now));
        assert!(health.take(other, &list(&[("b", 2, 0, "")]), now));
        assert_eq!((of(&health, "a", now), of(&health, "b", now)), ("Unhealthy ".into(), "Healthy ".into()));
        assert!(health.clear(two) && !health.clear(two));
        assert_eq!(of(&health, "a", now), "Healthy ");
        assert!(health.leave(one) && !health.leave(two));
        assert_eq!(of(&health, "a", now), UNKNOWN);
        assert!(!health.take(one, &list(&[("a", 1, 0, "")]), now), "it is gone");
        assert_eq!(of(&health, "a", now), UNKNOWN);
    }

    #[test]
    fn long_messages_are_cut() {
        let (mut health, now) = (Health::default(), Instant::now());
        let one = health.enter("x.io");
        let fits = "ü".repeat(MESSAGE_MAX);
        assert!(health.take(one, &list(&[("a", 1, 0, &fits), ("b", 1, 0, &format!("{fits}!"))]), now));
        assert_eq!(of(&health, "a", now), format!("Healthy {fits}"));
        assert_eq!(of(&health, "b", now), format!("Healthy {}...", "ü".repeat(MESSAGE_MAX - 3)));
    }

    #[test]
    fn what_a_status_says() {
        let pod: core::Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"},
            "spec": {"containers": [{"name": "a", "resources": {"claims": [{"name": "own", "request": "r"}, {"name": "s"}]}},
                {"name": "b", "resources": {"claims": [{"name": "lost"}]}}, {"name": "c"}],
                "resourceClaims": [{"name": "own", "resourceClaimTemplateName": "t"},
                    {"name": "s", "resourceClaimName": "shared"}, {"name": "lost", "resourceClaimName": "lost"}]},
            "status": {"resourceClaimStatuses": [{"name": "own", "resourceClaimName": "p-own-1"}]}}))
        .unwrap();
        let device = |name: &str, request: &str, cdi: &[&str]| Device {
            pool: "p".into(),
            device: name.into(),
            requests: vec![request.into()],
            cdi: cdi.iter().map(|c| c.to_string()).collect(),
        };
        let held =
            |devices: Vec<Device>| Held { drivers: [("x.io".into(), devices)].into(), ..Held::default() };
        let own = held(vec![device("a", "r/sub", &["x.io/d=a", "x.io/d=z"]), device("b", "q", &[])]);
        let shared = held(vec![device("b", "q", &[]), device("c", "q", &[])]);
        let claims = [("n/p-own-1".into(), own), ("n/shared".into(), shared)].into();
        let (mut health, now) = (Health::default(), Instant::now());
        let one = health.enter("x.io");
        health.take(one, &list(&[("a", 2, 0, "hot"), ("b", 1, 0, "")]), now);
        let said =
            |at: usize| told(&health, &claims, (&pod, &pod.spec.as_ref().unwrap().containers[at]), now);
        let own = json!({"name": "claim:own/r",
            "resources": [{"resourceID": "x.io/d=a", "health": "Unhealthy", "message": "hot"}]});
        let shared = json!({"name": "claim:s", "resources": [{"resourceID": "x.io/p/b", "health": "Healthy"},
            {"resourceID": "x.io/p/c", "health": "Unknown"}]});
        assert_eq!(said(0), [own, shared]);
        assert_eq!((said(1), said(2)), (vec![], vec![]));
    }
}
