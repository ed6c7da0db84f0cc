//! Which claims' devices are ready for which pods, and what they are for containers: pure.

use k8s_openapi::api::core::v1 as core;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// A device that a driver made ready.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    pub pool: String,
    pub device: String,
    /// The claim's requests that it is for; none: all.
    pub requests: Vec<String>,
    /// Its CDI names.
    pub cdi: Vec<String>,
}

impl Device {
    /// Reads a driver's `Device`.
    pub fn read(value: &Value) -> Device {
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_string();
        let texts = |key: &str| {
            let all = value[key].as_array().into_iter().flatten().filter_map(Value::as_str);
            all.map(str::to_string).collect()
        };
        let (requests, cdi) = (texts("request_names"), texts("cdi_device_ids"));
        Device { pool: text("pool_name"), device: text("device_name"), requests, cdi }
    }

    /// Is it for this request ("" is every one)? Drivers name an alternative with its request, or the request alone.
    pub fn is_for(&self, request: &str) -> bool {
        let base = |name: &str| name.split('/').next().unwrap_or_default().to_string();
        request.is_empty()
            || self.requests.is_empty()
            || self.requests.iter().any(|own| own == request || base(own) == request)
    }
}

/// A claim whose devices are, or may be, ready.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    pub uid: String,
    /// UIDs of the pods that use it.
    pub pods: BTreeSet<String>,
    /// What each driver made ready.
    pub drivers: BTreeMap<String, Vec<Device>>,
    /// Have all drivers said so to this agent? One that is started anew asks again.
    #[serde(skip)]
    pub ready: bool,
}

/// Namespace and name of a claim, with a slash between.
pub type ClaimKey = String;

/// The claims, as kept on disk.
pub type Claims = BTreeMap<ClaimKey, Held>;

/// The key of a claim.
pub fn key(namespace: &str, name: &str) -> ClaimKey {
    format!("{namespace}/{name}")
}

/// The claims that a pod's containers may use, by the pod's name for them ("" for the one of its extended resources);
/// `None`: one is not made yet.
pub fn claims_of(pod: &core::Pod) -> Option<Vec<(String, String)>> {
    let status = pod.status.as_ref();
    let told = status.and_then(|s| s.resource_claim_statuses.as_ref());
    let mut all = Vec::new();
    for claim in pod.spec.iter().flat_map(|s| s.resource_claims.iter().flatten()) {
        let name = match &claim.resource_claim_name {
            Some(name) => Some(name.clone()),
            None => told?.iter().find(|t| t.name == claim.name)?.resource_claim_name.clone(),
        };
        all.extend(name.map(|name| (claim.name.clone(), name)));
    }
    let extended = status.and_then(|s| s.extended_resource_claim_status.as_ref());
    all.extend(extended.map(|e| (String::new(), e.resource_claim_name.clone())));
    Some(all)
}

/// The claims and requests that a container uses: the claim's name and the request, "" for all.
pub fn used_by(pod: &core::Pod, container: &core::Container) -> Vec<(String, String)> {
    let claims = claims_of(pod).unwrap_or_default();
    let wanted = container.resources.as_ref().and_then(|r| r.claims.as_ref());
    let mut used = Vec::new();
    for wanted in wanted.into_iter().flatten() {
        let named = claims.iter().filter(|(own, _)| *own == wanted.name);
        used.extend(named.map(|(_, claim)| (claim.clone(), wanted.request.clone().unwrap_or_default())));
    }
    let extended = pod.status.as_ref().and_then(|s| s.extended_resource_claim_status.as_ref());
    for mapping in extended.into_iter().flat_map(|e| &e.request_mappings) {
        if mapping.container_name == container.name
            && let Some(claim) = extended.map(|e| e.resource_claim_name.clone())
        {
            used.push((claim, mapping.request_name.clone()));
        }
    }
    used
}

/// The devices of a container: claim, driver and device.
fn devices<'a>(
    claims: &'a Claims,
    pod: &core::Pod,
    container: &core::Container,
) -> Vec<(String, &'a str, &'a Device)> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut all = Vec::new();
    for (claim, request) in used_by(pod, container) {
        let Some(held) = claims.get(&key(namespace, &claim)) else { continue };
        for (driver, own) in &held.drivers {
            let wanted = own.iter().filter(|d| d.is_for(&request));
            all.extend(wanted.map(|d| (claim.clone(), driver.as_str(), d)));
        }
    }
    all
}

/// The CDI names of a container's devices, each once.
pub fn cdi_names(claims: &Claims, pod: &core::Pod, container: &core::Container) -> Vec<String> {
    let mut names = Vec::new();
    for name in devices(claims, pod, container).into_iter().flat_map(|(_, _, d)| &d.cdi) {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}

/// `DynamicResource`s of a container, for those who ask which pod has what.
pub fn told(claims: &Claims, pod: &core::Pod, container: &core::Container) -> Vec<Value> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut by_claim: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for (claim, driver, device) in devices(claims, pod, container) {
        let cdi: Vec<Value> = device.cdi.iter().map(|name| json!({"name": name})).collect();
        let told = json!({"cdi_devices": cdi, "driver_name": driver, "pool_name": device.pool,
            "device_name": device.device});
        let own = by_claim.entry(claim).or_default();
        if !own.contains(&told) {
            own.push(told);
        }
    }
    let one = |(claim, resources): (String, Vec<Value>)| json!({"claim_name": claim, "claim_namespace": namespace, "claim_resources": resources});
    by_claim.into_iter().map(one).collect()
}

/// May the pod use the claim, and which drivers must make it ready?
///
/// # Errors
/// Why not, in the kubelet's words.
pub fn drivers_of(claim: &Value, pod: &core::Pod, own: bool) -> Result<BTreeSet<String>, String> {
    let (meta, status) = (&claim["metadata"], &claim["status"]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let (name, uid) = (text(&meta["name"]), pod.metadata.uid.clone().unwrap_or_default());
    let pod_name = pod.metadata.name.clone().unwrap_or_default();
    let owners = meta["ownerReferences"].as_array();
    let is_owner = owners.is_some_and(|o| o.iter().any(|o| o["uid"] == uid && o["controller"] == true));
    if own && !is_owner {
        let namespace = text(&meta["namespace"]);
        return Err(format!(
            "ResourceClaim {namespace}/{name} was not created for Pod {namespace}/{pod_name} (Pod is not owner)"
        ));
    }
    let mut reserved = status["reservedFor"].as_array().into_iter().flatten();
    if !reserved.any(|r| r["uid"] == uid) {
        let claim_uid = text(&meta["uid"]);
        return Err(format!(
            "pod {pod_name} ({uid}) is not allowed to use ResourceClaim {name} ({claim_uid})"
        ));
    }
    if !status["allocation"].is_object() {
        return Err(format!("ResourceClaim {name}: not allocated"));
    }
    let results = status["allocation"]["devices"]["results"].as_array().into_iter().flatten();
    Ok(results.map(|r| text(&r["driver"])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> core::Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [
                {"name": "a", "resources": {"claims": [{"name": "own", "request": "r1"}]}},
                {"name": "b", "resources": {"claims": [{"name": "own"}, {"name": "shared"}]}}, {"name": "c"}],
                "resourceClaims": [{"name": "own", "resourceClaimTemplateName": "t"},
                    {"name": "shared", "resourceClaimName": "s"}]},
            "status": {"resourceClaimStatuses": [{"name": "own", "resourceClaimName": "p-own-1"}],
                "extendedResourceClaimStatus": {"resourceClaimName": "e", "requestMappings":
                    [{"containerName": "c", "resourceName": "x.io/gpu", "requestName": "r"}]}}}))
        .unwrap()
    }

    #[test]
    fn containers_see_what_they_name() {
        let device = |name: &str, requests: &[&str]| Device {
            device: name.into(),
            requests: requests.iter().map(|r| r.to_string()).collect(),
            cdi: vec![format!("x.io/d={name}")],
            ..Device::default()
        };
        let held =
            |devices: Vec<Device>| Held { drivers: [("x.io".into(), devices)].into(), ..Held::default() };
        let claims: Claims = [
            (
                "n/p-own-1".into(),
                held(vec![device("d1", &["r1/sub"]), device("d2", &["r2"]), device("d0", &[])]),
            ),
            ("n/s".into(), held(vec![device("d3", &[])])),
            ("n/e".into(), held(vec![device("d4", &["r"]), device("d5", &["q"])])),
        ]
        .into();
        let pod = pod();
        let names =
            |at: usize| cdi_names(&claims, &pod, &pod.spec.as_ref().unwrap().containers[at]).join(" ");
        assert_eq!(names(0), "x.io/d=d1 x.io/d=d0");
        assert_eq!(names(1), "x.io/d=d1 x.io/d=d2 x.io/d=d0 x.io/d=d3");
        assert_eq!(names(2), "x.io/d=d4");
        let told = told(&claims, &pod, &pod.spec.as_ref().unwrap().containers[2]);
        assert_eq!(told[0]["claim_resources"][0]["cdi_devices"], json!([{"name": "x.io/d=d4"}]));
        let mut early = pod.clone();
        early.status = None;
        assert_eq!(claims_of(&early), None, "a claim is not made yet");
    }

    #[test]
    fn who_may_use_a_claim() {
        let mut claim = json!({"metadata": {"name": "c", "namespace": "n", "uid": "cu"}});
        let said = |claim: &Value, own| drivers_of(claim, &pod(), own).unwrap_err();
        assert_eq!(said(&claim, true), "ResourceClaim n/c was not created for Pod n/p (Pod is not owner)");
        assert_eq!(said(&claim, false), "pod p (u) is not allowed to use ResourceClaim c (cu)");
        claim["status"] = json!({"reservedFor": [{"uid": "u"}]});
        assert_eq!(said(&claim, false), "ResourceClaim c: not allocated");
        claim["status"]["allocation"] = json!({"devices": {"results": [{"driver": "x.io"}]}});
        assert_eq!(drivers_of(&claim, &pod(), false), Ok(["x.io".to_string()].into()));
    }
}
