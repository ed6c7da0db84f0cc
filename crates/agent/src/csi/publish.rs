//! Staging and publishing a pod's volumes: from claims and inline volumes to paths on this node.
//!
//! A record is on disk before a driver is called, so that what was begun is undone whatever happens. A volume that was
//! published is left alone, unless its driver wants to be called again and again.

use super::place::{Record, hash, write};
use super::{ATTACHMENTS, DRIVERS, Plugins, ability, grow, report_in_use};
use crate::config::mounts::MountedVolume;
use crate::ops::{Node, token};
use crate::pod::PodView;
use crate::volumes::{Bound, Claims, DRIVER, TokenNeed, block_device, fs_group};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use client::ObjectKey;
use grpc::code;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{CSIPersistentVolumeSource, Volume};
use k8s_schema::gvr::SECRETS;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// How long a volume may take to be attached.
const ATTACH_MAX: Duration = Duration::from_secs(120);
/// Between two looks whether it is: a node may only get attachments, not watch them.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// How often drivers that want it are called again.
const REPUBLISH: SignedDuration = SignedDuration::from_secs(60);

/// A volume that a driver mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublishedVolume {
    /// Where.
    pub mounted: MountedVolume,
    /// Is its group to be set by us?
    pub group: bool,
    /// The driver and its handle.
    pub(super) record: Record,
    /// Namespace and name of the claim, where it has one.
    pub(super) claim: Option<(String, String)>,
}

/// A pod's volumes of drivers, or why there is none, by the pod's name for them.
pub type PublishedVolumes = BTreeMap<String, Result<PublishedVolume, String>>;

/// A volume to be published.
pub(super) struct Wanted {
    pub(super) record: Record,
    /// A claim's: what its PersistentVolume says.
    pub(super) source: CSIPersistentVolumeSource,
    /// Its capability, without a group.
    pub(super) capability: Capability,
    read_only: bool,
    claim: Option<(String, String)>,
}

/// How a volume is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Capability {
    pub(super) block: bool,
    pub(super) fs_type: String,
    pub(super) flags: Vec<String>,
    pub(super) modes: Vec<String>,
}

impl Capability {
    /// `VolumeCapability`; `finely`: the driver tells one writer from one node's writers.
    pub(super) fn message(&self, finely: bool, group: Option<u32>) -> Value {
        let mode = match self.modes.first().map(String::as_str) {
            Some("ReadOnlyMany") => 3,
            Some("ReadWriteMany") => 5,
            Some("ReadWriteOncePod") if finely => 6,
            _ if finely => 7,
            _ => 1,
        };
        let mut message = json!({"access_mode": {"mode": mode}});
        if self.block {
            message["block"] = json!({});
        } else {
            let group = group.map_or_else(String::new, |g| g.to_string());
            message["mount"] =
                json!({"fs_type": self.fs_type, "mount_flags": self.flags, "volume_mount_group": group});
        }
        message
    }
}

/// What a CSIDriver object says; without one all is as by default.
struct Traits {
    attach: bool,
    pod_info: bool,
    republish: bool,
    group_policy: String,
    modes: Vec<String>,
    tokens: Vec<TokenNeed>,
    in_secrets: bool,
}

impl Traits {
    fn read(object: &Value) -> Traits {
        let spec = &object["spec"];
        let tokens = spec["tokenRequests"].as_array().into_iter().flatten().map(|t| TokenNeed {
            audience: t["audience"].as_str().unwrap_or_default().into(),
            // As for projected tokens.
            seconds: t["expirationSeconds"].as_i64().unwrap_or(3600),
        });
        let modes = spec["volumeLifecycleModes"].as_array().into_iter().flatten();
        Traits {
            attach: spec["attachRequired"].as_bool().unwrap_or(true),
            pod_info: spec["podInfoOnMount"].as_bool().unwrap_or(false),
            republish: spec["requiresRepublish"].as_bool().unwrap_or(false),
            group_policy: spec["fsGroupPolicy"].as_str().unwrap_or("ReadWriteOnceWithFSType").into(),
            modes: modes.filter_map(|m| m.as_str().map(str::to_string)).collect(),
            tokens: tokens.collect(),
            in_secrets: spec["serviceAccountTokenInSecrets"].as_bool().unwrap_or(false),
        }
    }

    /// Is the volume's group set by us, after it is mounted?
    fn sets_group(&self, wanted: &Wanted) -> bool {
        if wanted.read_only || wanted.record.block {
            return false;
        }
        match self.group_policy.as_str() {
            "None" => false,
            "File" => true,
            _ => {
                let once = |m: &String| m == "ReadWriteOnce";
                let inline = wanted.record.volume_lifecycle_mode == "Ephemeral";
                let capability = &wanted.capability;
                !capability.fs_type.is_empty() && (inline || capability.modes.iter().any(once))
            }
        }
    }
}

/// The volume of a claim, if a driver has it.
pub(super) fn of_claim(bound: &Bound, read_only: bool, node: &str) -> Option<Wanted> {
    let source = bound.spec.csi.clone().filter(|c| c.driver != DRIVER)?;
    let block = bound.spec.volume_mode.as_deref() == Some("Block");
    let record = Record {
        driver_name: source.driver.clone(),
        volume_handle: source.volume_handle.clone(),
        spec_vol_id: bound.name.clone(),
        attachment_id: format!("csi-{}", hash(&format!("{}{}{node}", source.volume_handle, source.driver))),
        volume_lifecycle_mode: "Persistent".into(),
        block,
    };
    let capability = Capability {
        block,
        fs_type: source.fs_type.clone().unwrap_or_default(),
        flags: bound.spec.mount_options.clone().unwrap_or_default(),
        modes: bound.spec.access_modes.clone().unwrap_or_default(),
    };
    let claim = bound.spec.claim_ref.as_ref().and_then(|c| Some((c.namespace.clone()?, c.name.clone()?)));
    Some(Wanted { record, source, capability, read_only, claim })
}

fn inline(pod: &PodView, volume: &Volume) -> Option<Wanted> {
    let source = volume.csi.clone()?;
    let record = Record {
        driver_name: source.driver.clone(),
        volume_handle: format!("csi-{}", hash(&format!("{}{}", pod.uid(), volume.name))),
        spec_vol_id: volume.name.clone(),
        volume_lifecycle_mode: "Ephemeral".into(),
        ..Record::default()
    };
    let reference = source.node_publish_secret_ref.map(|s| {
        let namespace = Some(pod.namespace().to_string());
        k8s_openapi::api::core::v1::SecretReference { name: Some(s.name), namespace }
    });
    let capability = Capability {
        fs_type: source.fs_type.unwrap_or_default(),
        modes: vec!["ReadWriteOnce".into()],
        ..Capability::default()
    };
    let source = CSIPersistentVolumeSource {
        driver: source.driver,
        volume_handle: record.volume_handle.clone(),
        volume_attributes: source.volume_attributes,
        node_publish_secret_ref: reference,
        ..CSIPersistentVolumeSource::default()
    };
    let read_only = volume.csi.as_ref()?.read_only.unwrap_or(false);
    Some(Wanted { record, source, capability, read_only, claim: None })
}

/// Publishes what drivers have of a pod's volumes; the time says when to come again.
pub async fn publish(
    node: &Node,
    pod: &PodView,
    claims: &Claims,
) -> (PublishedVolumes, Option<SignedDuration>) {
    let (mut all, mut again) = (PublishedVolumes::new(), None);
    for volume in pod.spec().volumes.iter().flatten() {
        let name = &node.facts.node_name;
        let read_only = volume.persistent_volume_claim.as_ref().and_then(|c| c.read_only).unwrap_or(false);
        let claimed = claims.get(&volume.name).and_then(|c| c.as_ref().ok());
        let wanted = match claimed {
            Some(bound) => of_claim(bound, read_only, name),
            None => inline(pod, volume),
        };
        let Some(wanted) = wanted else { continue };
        let done = one(node, pod, &volume.name, wanted).await;
        let done = done.map(|(published, republish)| {
            again = again.or(republish.then_some(REPUBLISH));
            published
        });
        all.insert(volume.name.clone(), done);
    }
    (all, again)
}

/// Publishes one; says whether it is to be done again.
async fn one(
    node: &Node,
    pod: &PodView,
    name: &str,
    mut wanted: Wanted,
) -> Result<(PublishedVolume, bool), String> {
    let plugins = &node.csi;
    let (driver, handle) = (wanted.record.driver_name.clone(), wanted.record.volume_handle.clone());
    plugins.driver(&driver).map_err(|e| e.message)?;
    let traits = traits(node, &driver, &wanted.record).await?;
    let slot = (pod.uid().to_string(), name.to_string());
    let before = plugins.published.lock().get(&slot).cloned();
    if let Some(before) = before.filter(|_| !traits.republish) {
        return Ok((before, false));
    }
    if !traits.attach || wanted.record.volume_lifecycle_mode == "Ephemeral" {
        wanted.record.attachment_id.clear();
    }
    let _lock = plugins.lock(&driver, &handle).await;
    let abilities = plugins.abilities(&driver).await.map_err(|e| e.to_string())?;
    let place = &plugins.place;
    let folder = place.volume(pod.uid(), &wanted.record);
    write(&folder, &wanted.record).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut context = Value::Null;
    if !wanted.record.attachment_id.is_empty() {
        report_in_use(node).await?;
        context = attached(node, pod, &wanted.record).await?;
    }
    let has = |ability: i64| abilities.contains(&ability);
    let by_driver = fs_group(pod).filter(|_| has(ability::MOUNT_GROUP));
    let capability = wanted.capability.message(has(ability::MULTI_WRITER), by_driver);
    let persistent = wanted.record.volume_lifecycle_mode == "Persistent";
    let staging = (has(ability::STAGE) && persistent).then(|| place.staging(&wanted.record));
    if let Some(staging) = &staging {
        stage(node, &wanted, (&capability, &context), staging).await?;
    }
    let request = request(node, pod, &wanted, &traits).await?;
    let mut request = Value::Object(request);
    request["publish_context"] = context;
    request["volume_capability"] = capability;
    if let Some(staging) = &staging {
        request["staging_target_path"] = json!(place.shown(staging));
    }
    let target = place.target(pod.uid(), &wanted.record);
    make_parent(&target)?;
    let failed = |e: grpc::Status| format!("kubernetes.io/csi: mounter.SetUpAt failed: {e}");
    plugins.call(&driver, "NodePublishVolume", &request).await.map_err(failed)?;
    let mounted = MountedVolume {
        device: if wanted.record.block { Some(block_device(&target)?) } else { None },
        path: target,
        read_only: wanted.read_only,
        ..MountedVolume::default()
    };
    let group = by_driver.is_none() && traits.sets_group(&wanted);
    let published =
        PublishedVolume { mounted, group, record: wanted.record.clone(), claim: wanted.claim.clone() };
    plugins.published.lock().insert(slot, published.clone());
    if persistent && has(ability::EXPAND) {
        grow::at_mount(node, &wanted, &published.mounted.path).await;
    }
    Ok((published, traits.republish))
}

async fn traits(node: &Node, driver: &str, record: &Record) -> Result<Traits, String> {
    let found = node.client.get(&DRIVERS, &ObjectKey::cluster(driver)).await;
    let traits = match found {
        Ok(object) => Traits::read(&object.value().map_err(|e| e.to_string())?),
        Err(error) if error.is_not_found() => Traits::read(&Value::Null),
        Err(error) => return Err(error.to_string()),
    };
    let mode = &record.volume_lifecycle_mode;
    let persistent_alone = traits.modes.is_empty() && mode == "Persistent";
    if !persistent_alone && !traits.modes.contains(mode) {
        let supported = if traits.modes.is_empty() { vec!["Persistent".into()] } else { traits.modes };
        return Err(format!(
            "kubernetes.io/csi: mounter.SetUpAt failed to check volume lifecycle mode: volume mode {mode:?} not supported by driver {driver} (only supports {supported:?})"
        ));
    }
    Ok(traits)
}

/// Waits until the volume is attached here; what the driver's controller said about it.
async fn attached(node: &Node, pod: &PodView, record: &Record) -> Result<Value, String> {
    let key = ObjectKey::cluster(record.attachment_id.as_str());
    let begin = tokio::time::Instant::now();
    loop {
        let status = match node.client.get(&ATTACHMENTS, &key).await {
            Ok(object) => object.value().map_err(|e| e.to_string())?["status"].take(),
            Err(error) if error.is_not_found() => Value::Null,
            Err(error) => return Err(error.to_string()),
        };
        if status["attached"] == true {
            return Ok(status["attachmentMetadata"].clone());
        }
        if let Some(error) = status["attachError"]["message"].as_str() {
            if status["attachError"]["errorCode"] == code::RESOURCE_EXHAUSTED {
                node.csi.full.lock().insert(record.driver_name.clone());
                node.csi.filled.notify_one();
            }
            return Err(format!("volume attachment {} failed: {error}", record.attachment_id));
        }
        let here = node.pods.get(pod.key()).filter(|p| p.uid() == pod.uid());
        if here.is_none_or(|p| p.meta().deletion_timestamp.is_some()) {
            return Err("the pod is being deleted".into());
        }
        if begin.elapsed() > ATTACH_MAX {
            return Err(format!(
                "timed out waiting for external-attacher of {} CSI driver to attach volume {}",
                record.driver_name, record.volume_handle
            ));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn make_parent(path: &Path) -> Result<(), String> {
    let parent = path.parent().unwrap_or(path);
    std::fs::create_dir_all(parent).map_err(|e| format!("mkdir {}: {e}", parent.display()))
}

async fn stage(
    node: &Node,
    wanted: &Wanted,
    (capability, context): (&Value, &Value),
    staging: &Path,
) -> Result<(), String> {
    let Plugins { place, .. } = &node.csi;
    let record = &wanted.record;
    let folder = place.staged(record);
    write(&folder, record).map_err(|e| format!("{}: {e}", folder.display()))?;
    // Drivers find the folder there.
    std::fs::create_dir_all(staging).map_err(|e| format!("mkdir {}: {e}", staging.display()))?;
    let source = &wanted.source;
    let request = json!({"volume_id": record.volume_handle, "publish_context": context,
        "staging_target_path": place.shown(staging), "volume_capability": capability,
        "secrets": secrets(node, source.node_stage_secret_ref.as_ref()).await?,
        "volume_context": source.volume_attributes});
    let done = node.csi.call(&record.driver_name, "NodeStageVolume", &request).await;
    done.map(drop).map_err(|e| format!("kubernetes.io/csi: attacher.MountDevice failed: {e}"))
}

type SecretReference = k8s_openapi::api::core::v1::SecretReference;

/// A secret's texts.
pub(super) async fn secrets(node: &Node, of: Option<&SecretReference>) -> Result<Value, String> {
    let Some(of) = of else { return Ok(Value::Null) };
    let (namespace, name) =
        (of.namespace.as_deref().unwrap_or_default(), of.name.as_deref().unwrap_or_default());
    let found = node.client.get(&SECRETS, &ObjectKey::new(namespace, name)).await;
    let failed = |e: &dyn std::fmt::Display| {
        format!("failed to find the secret {name} in the namespace {namespace} with error: {e}")
    };
    let value = found.map_err(|e| failed(&e))?.value().map_err(|e| failed(&e))?;
    let mut texts = Map::new();
    for (key, data) in value["data"].as_object().into_iter().flatten() {
        let bytes = STANDARD.decode(data.as_str().unwrap_or_default()).map_err(|e| failed(&e))?;
        texts.insert(key.clone(), json!(String::from_utf8_lossy(&bytes)));
    }
    Ok(Value::Object(texts))
}

/// `NodePublishVolume`'s request, as far as it hangs on the pod.
async fn request(
    node: &Node,
    pod: &PodView,
    wanted: &Wanted,
    traits: &Traits,
) -> Result<Map<String, Value>, String> {
    let record = &wanted.record;
    let mut context: BTreeMap<String, String> = wanted.source.volume_attributes.clone().unwrap_or_default();
    let mut put =
        |key: &str, value: &str| drop(context.insert(format!("csi.storage.k8s.io/{key}"), value.into()));
    if traits.pod_info {
        put("pod.name", pod.name());
        put("pod.namespace", pod.namespace());
        put("pod.uid", pod.uid());
        put("serviceAccount.name", pod.service_account());
        put("ephemeral", if record.volume_lifecycle_mode == "Ephemeral" { "true" } else { "false" });
    }
    let mut secrets = secrets(node, wanted.source.node_publish_secret_ref.as_ref()).await?;
    let mut tokens = Map::new();
    for need in &traits.tokens {
        let token = token(node, pod, need).await?;
        let expires = machinery::time::format(token.expires_at);
        tokens.insert(need.audience.clone(), json!({"token": token.text, "expirationTimestamp": expires}));
    }
    if !tokens.is_empty() {
        let text = Value::Object(tokens).to_string();
        match traits.in_secrets {
            true => secrets["csi.storage.k8s.io/serviceAccount.tokens"] = json!(text),
            false => put("serviceAccount.tokens", &text),
        }
    }
    let target = node.csi.place.shown(&node.csi.place.target(pod.uid(), record));
    let request = json!({"volume_id": record.volume_handle, "target_path": target,
        "readonly": wanted.read_only, "volume_context": context, "secrets": secrets});
    let Value::Object(request) = request else { return Err("no request".into()) };
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod;

    fn bound(mode: &str, fs_type: Option<&str>) -> Bound {
        let spec =
            json!({"accessModes": [mode], "csi": {"driver": "d", "volumeHandle": "h", "fsType": fs_type}});
        Bound { name: "pv".into(), spec: serde_json::from_value(spec).unwrap() }
    }

    #[test]
    fn capabilities() {
        for (mode, coarse, fine) in [
            ("ReadWriteOnce", 1, 7),
            ("ReadOnlyMany", 3, 3),
            ("ReadWriteMany", 5, 5),
            ("ReadWriteOncePod", 1, 6),
        ] {
            let wanted = of_claim(&bound(mode, None), false, "n").unwrap();
            let of = |finely| wanted.capability.message(finely, Some(5))["access_mode"]["mode"].clone();
            assert_eq!((of(false), of(true)), (json!(coarse), json!(fine)), "{mode}");
            assert_eq!(wanted.capability.message(false, Some(5))["mount"]["volume_mount_group"], "5");
        }
        let own = json!({"csi": {"driver": DRIVER, "volumeHandle": "h"}});
        let own = Bound { name: "pv".into(), spec: serde_json::from_value(own).unwrap() };
        assert!(of_claim(&own, false, "n").is_none());
    }

    #[test]
    fn who_sets_the_group() {
        let of = |policy: &str| Traits::read(&json!({"spec": {"fsGroupPolicy": policy}}));
        let usual = Traits::read(&Value::Null);
        let case = |mode: &str, fs: Option<&str>, ro: bool| of_claim(&bound(mode, fs), ro, "n").unwrap();
        assert!(usual.sets_group(&case("ReadWriteOnce", Some("ext4"), false)));
        assert!(!usual.sets_group(&case("ReadWriteOnce", Some("ext4"), true)));
        assert!(!usual.sets_group(&case("ReadWriteOnce", None, false)));
        assert!(!usual.sets_group(&case("ReadWriteMany", Some("ext4"), false)));
        assert!(of("File").sets_group(&case("ReadWriteMany", None, false)));
        assert!(!of("None").sets_group(&case("ReadWriteOnce", Some("ext4"), false)));
        let view =
            pod(json!({"containers": [], "volumes": [{"name": "v", "csi": {"driver": "d", "fsType": "x"}}]}));
        let inline = inline(&view, &view.spec().volumes.as_ref().unwrap()[0]).unwrap();
        assert!(usual.sets_group(&inline));
    }
}
