//! DeviceTaintRules: taints that an administrator puts on devices, and what their status tells of the eviction, in
//! upstream's words. With the effect `None` a rule only tells once what would happen. [`condition`] is pure.

use super::{Controller, Dated, Device, stays_for};
use crate::context::Outcome;
use client::{Object, ObjectKey};
use jiff::Timestamp;
use k8s_schema::Gvr;
use machinery::kinds::get::{int, list, text};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

/// The rules.
pub const RULES: Gvr = Gvr::new("resource.k8s.io", "v1beta2", "devicetaintrules");
/// A rule's status is looked at so long after the rule, and again while pods are to go (upstream's figure).
const PERIOD: Duration = Duration::from_secs(10);
const CONDITION: &str = "EvictionInProgress";

/// One rule.
#[derive(Clone)]
pub struct Rule {
    /// Its name.
    pub key: ObjectKey,
    /// Its UID.
    pub uid: String,
    /// Since when its taint counts.
    pub since: Timestamp,
    rule: sched::dra::Rule,
}

/// The device that a claim's result names.
pub fn place(result: &Value) -> Device {
    ["/driver", "/pool", "/device"].map(|field| text(result, field).to_string())
}

impl Rule {
    /// Reads one. A taint without a time counts from now.
    pub fn read(object: &Object, now: Timestamp) -> Option<Rule> {
        let value = object.value().ok()?;
        let since = machinery::time::parse(text(&value, "/spec/taint/timeAdded")).unwrap_or(now);
        let rule = sched::dra::Rule::read(&value);
        Some(Rule { key: object.key.clone(), uid: object.uid().into(), since, rule })
    }

    /// Its taint.
    pub fn taint(&self) -> &sched::Taint {
        &self.rule.taint
    }

    fn selects(&self, [driver, pool, device]: &Device) -> bool {
        self.rule.selects([driver, pool, device])
    }

    /// Does it drive pods off this device?
    pub fn drives(&self, device: &Device) -> bool {
        self.taint().effect == "NoExecute" && self.selects(device)
    }

    /// The same, as if it drove pods away.
    fn driving(&self) -> Rule {
        let mut other = self.clone();
        other.rule.taint.effect = "NoExecute".into();
        other
    }
}

/// What a rule does.
#[derive(Default)]
struct Extent {
    /// Devices in slices.
    published: usize,
    /// Devices that claims have.
    allocated: BTreeSet<Device>,
    /// Pods (namespace and name) that must go, or would have to.
    pods: BTreeSet<ObjectKey>,
    /// Pods that went.
    evicted: usize,
}

fn counted(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// Status, reason and message.
fn condition(effect: &str, extent: &Extent) -> (&'static str, String, String) {
    let namespaces: BTreeSet<_> = extent.pods.iter().map(|p| &p.namespace).collect();
    let namespaces = counted(namespaces.len(), "namespace", "different namespaces");
    let (waiting, gone) = (extent.pods.len(), extent.evicted);
    let (status, reason, mut message) = match effect {
        "NoExecute" if waiting > 0 => {
            let pods = counted(waiting, "pod needs", "pods need");
            ("True", "PodsPendingEviction", format!("{pods} to be evicted in {namespaces}."))
        }
        "NoExecute" if gone > 0 => ("False", "Completed", String::new()),
        "NoExecute" => ("False", "NotStarted", String::new()),
        "None" => {
            let published = counted(extent.published, "published device", "published devices");
            let allocated = counted(extent.allocated.len(), "allocated device", "allocated devices");
            let pods = counted(waiting, "pod", "pods");
            let message = format!(
                "{published} selected. {allocated} selected. {pods} would be evicted in {namespaces} if the effect \
                 was NoExecute. This information will not be updated again. Recreate the DeviceTaintRule to trigger \
                 an update."
            );
            ("False", "NoEffect", message)
        }
        _ => ("False", "OtherEffect", "Eviction only happens for the NoExecute effect.".into()),
    };
    if gone > 0 {
        let space = if message.is_empty() { "" } else { " " };
        message += &format!("{space}{} evicted since starting the controller.", counted(gone, "pod", "pods"));
    }
    (status, reason.into(), message)
}

impl Controller {
    /// What the rule does now.
    fn extent(&self, rule: &Rule) -> Extent {
        let mut extent = Extent::default();
        for slice in self.slices.list().iter().filter_map(|s| s.value().ok()) {
            let of = |field| text(&slice, field).to_string();
            let names = list(&slice, "/spec/devices").iter().map(|d| text(d, "/name").to_string());
            let devices = names.map(|name| [of("/spec/driver"), of("/spec/pool/name"), name]);
            extent.published += devices.filter(|device| rule.selects(device)).count();
        }
        let driving = [rule.driving()];
        for claim in self.claims.list() {
            let Ok(value) = claim.value() else { continue };
            let results = list(&value, "/status/allocation/devices/results");
            extent.allocated.extend(results.iter().map(place).filter(|device| rule.selects(device)));
            let (left, _) = stays_for(&value, &Dated::new(), &driving, self.context.now());
            if left.is_some() {
                let users = self.users(&value, &claim.key.namespace);
                extent.pods.extend(users.iter().map(|pod| pod.key.clone()));
            }
        }
        extent.evicted = self.evicted.lock().get(&rule.uid).map_or(0, BTreeSet::len);
        extent
    }

    /// Brings a rule's status up to date.
    pub(super) async fn tell(&self, key: &ObjectKey) -> Outcome {
        let Some(object) = self.rules.as_ref().and_then(|rules| rules.get(key)) else { return Ok(None) };
        let now = self.context.now();
        let (Some(rule), Ok(value)) = (Rule::read(&object, now), object.value()) else { return Ok(None) };
        let before = list(&value, "/status/conditions").iter().find(|c| text(c, "/type") == CONDITION);
        let effect = &rule.taint().effect;
        let generation = int(&value, "/metadata/generation").unwrap_or(0);
        let known = before.is_some_and(|c| int(c, "/observedGeneration") == Some(generation));
        if known && effect == "None" {
            return Ok(None);
        }
        let (status, reason, message) = condition(effect, &self.extent(&rule));
        let mut wanted = json!({"type": CONDITION, "status": status, "reason": reason, "message": message,
            "observedGeneration": generation});
        let same = |c: &&Value| wanted.as_object().into_iter().flatten().all(|(field, v)| c[field] == *v);
        if before.filter(same).is_none() {
            wanted["lastTransitionTime"] = json!(machinery::time::format(now));
            let patch = json!({"metadata": {"uid": rule.uid}, "status": {"conditions": [wanted]}});
            match self.context.client.merge_patch_status(&RULES, key, patch).await {
                Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error),
                _ => {}
            }
        }
        Ok((status == "True").then_some(PERIOD))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{at, object, stamp};
    use std::time::Duration;

    fn rule(effect: &str) -> Rule {
        let body = json!({"apiVersion": "resource.k8s.io/v1beta2", "kind": "DeviceTaintRule",
            "metadata": {"name": "r", "uid": "ru"}, "spec": {"deviceSelector": {"driver": "d"},
                "taint": {"key": "k", "effect": effect, "timeAdded": stamp(10)}}});
        Rule::read(&object(body), at(0)).unwrap()
    }

    #[test]
    fn a_rule_drives_pods_off_the_devices_that_it_selects() {
        let claim = |driver: &str, tolerations: Value| {
            json!({"status": {"allocation": {"devices": {"results": [
                {"driver": driver, "pool": "p", "device": "gpu", "tolerations": tolerations}]}}}})
        };
        let of = |effect: &str, claim: &Value| stays_for(claim, &Dated::new(), &[rule(effect)], at(30));
        let (left, by) = of("NoExecute", &claim("d", json!([])));
        assert_eq!((left, by), (Some(Duration::ZERO), ["ru".to_string()].into()));
        assert_eq!(of("NoExecute", &claim("other", json!([]))).0, None);
        assert_eq!(of("None", &claim("d", json!([]))).0, None, "that only tells");
        let minute = json!([{"operator": "Exists", "tolerationSeconds": 60}]);
        assert_eq!(of("NoExecute", &claim("d", minute)).0, Some(Duration::from_secs(40)));
    }

    #[test]
    fn what_a_rule_tells() {
        let said = |effect: &str, pods: &[(&str, &str)], evicted| {
            let pods = pods.iter().map(|(ns, name)| ObjectKey::new(*ns, *name)).collect();
            let (status, reason, message) =
                condition(effect, &Extent { published: 3, pods, evicted, ..Extent::default() });
            format!("{status} {reason} {message}")
        };
        assert_eq!(
            said("NoExecute", &[("a", "p"), ("b", "p")], 1),
            "True PodsPendingEviction 2 pods need to be evicted in 2 different namespaces. \
             1 pod evicted since starting the controller."
        );
        let words = "False Completed 2 pods evicted since starting the controller.";
        assert_eq!(said("NoExecute", &[], 2), words);
        assert_eq!(said("NoExecute", &[], 0), "False NotStarted ");
        assert!(said("None", &[("a", "p")], 0).starts_with(
            "False NoEffect 3 published devices selected. 0 allocated devices selected. 1 pod would be evicted in 1 \
             namespace if the effect was NoExecute."
        ));
        let words = "False OtherEffect Eviction only happens for the NoExecute effect.";
        assert_eq!(said("NoSchedule", &[], 0), words);
    }
}
