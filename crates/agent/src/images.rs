//! From a container's `image` and `imagePullPolicy` to an image on disk; and room for images on the disk.
//!
//! Policies: `Never` takes what the node has, unpacked or pushed to its own registry; `IfNotPresent` pulls what the
//! node does not have; `Always` asks where the name points to each time, unless the image was loaded by hand: such
//! a name points to this node. What was pulled with a pod's credentials is another's only with credentials that did the
//! same (upstream: KubeletEnsureSecretPulledImages, images that were loaded are everybody's). Deliberately not here: the back-off between attempts (the decider's).

use crate::decide::outcome::{StartFailure, StartStep};
use crate::events::Recorder;
use crate::ops::Node;
use crate::pod::{ContainerView, PodView};
use client::ObjectKey;
use image::{DiskUse, GcHow, ImageError, Keyring, Lease, PullError, Puller, Reference};
use k8s_openapi::api::core::v1::Secret;
use k8s_schema::gvr::SECRETS;
use std::time::Duration;

/// How often the disk is looked at (the kubelet's figure).
const COLLECT_EVERY: Duration = Duration::from_secs(300);
/// Images go when the disk is fuller than this, in percent …
const HIGH_PERCENT: u64 = 85;
/// … until it is no fuller than this (the kubelet's figures).
const LOW_PERCENT: u64 = 80;
/// An image that was used or first seen less than this ago stays (the kubelet's figure).
const MIN_AGE: Duration = Duration::from_secs(120);
/// While an image is pulled: how often its pod is looked at, since a deleted one needs no image.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// An image that is there, and how the API names it.
pub struct Found {
    /// Keeps it on disk.
    pub lease: Lease,
    /// `status.image`.
    pub name: String,
    /// `status.imageID`.
    pub id: String,
}

impl Found {
    fn new(image: &str, lease: Lease) -> Found {
        let found = lease.image();
        let wanted = Reference::parse(image).ok();
        let name = wanted.as_ref().map(ToString::to_string).filter(|w| found.names.contains(w));
        let name = name.or_else(|| found.names.first().cloned()).unwrap_or_else(|| found.id.clone());
        let of_repository = |digest: &&String| {
            wanted
                .as_ref()
                .is_some_and(|w| digest.strip_prefix(&w.repository()).is_some_and(|d| d.starts_with('@')))
        };
        let id = found.digests.iter().find(of_repository).or(found.digests.first()).cloned();
        Found { id: id.unwrap_or_else(|| found.id.clone()), name, lease }
    }
}

/// What is to be done about an image.
enum Plan {
    Use(Lease),
    Pull(Reference),
}

fn failure(reason: &'static str, message: String) -> StartFailure {
    StartFailure { step: StartStep::Image, reason, message }
}

fn plan(puller: &Puller, image: &str, policy: Option<&str>) -> Result<Plan, StartFailure> {
    let reference = match Reference::parse(image) {
        Ok(reference) => reference,
        Err(error) => {
            // An image's id is no reference, but names an image.
            if let Some(lease) = puller.images().lease(image) {
                return Ok(Plan::Use(lease));
            }
            let text = format!("Failed to apply default image tag \"{image}\": {error}");
            return Err(failure("InvalidImageName", text));
        }
    };
    let here = puller.unpacked(&reference);
    match (policy, here) {
        (Some("Always"), Some(lease))
            if !puller.images().was_pulled(&reference) && !puller.is_pushed(&reference) =>
        {
            Ok(Plan::Use(lease))
        }
        (Some("Always"), _) => Ok(Plan::Pull(reference)),
        (_, Some(lease)) => Ok(Plan::Use(lease)),
        (Some("Never"), None) if !puller.is_pushed(&reference) => {
            let text = format!("Container image \"{image}\" is not present with pull policy of Never");
            Err(failure("ErrImageNeverPull", text))
        }
        (_, None) => Ok(Plan::Pull(reference)),
    }
}

/// Finds or pulls a container's image, with the events that this is worth.
pub async fn ensure(node: &Node, pod: &PodView, container: &ContainerView) -> Result<Found, StartFailure> {
    let policy = container.spec.image_pull_policy.as_deref();
    ensure_named(node, pod, container.name(), (container.image(), policy)).await
}

/// What keeps the image of a pod's volume, among its containers' images.
pub fn volume_key(volume: &str) -> String {
    format!("volume/{volume}")
}

/// The same for an image and its policy; the container is "" for an image of the pod.
pub async fn ensure_named(
    node: &Node,
    pod: &PodView,
    name: &str,
    (image, policy): (&str, Option<&str>),
) -> Result<Found, StartFailure> {
    let (puller, text, wanted) = (node.puller.clone(), image.to_string(), policy.map(str::to_string));
    let planned = crate::ops::blocking(move || plan(&puller, &text, wanted.as_deref())).await;
    let mut planned = planned.map_err(|e| failure("ErrImagePull", e))??;
    let mut known_keys = None;
    if let Plan::Use(lease) = &planned
        && !lease.image().marks.is_empty()
    {
        let name = Reference::parse(image).ok();
        let keys = keys(node, pod).await;
        let marks = name.as_ref().map(|name| keys.marks(name)).unwrap_or_default();
        if !lease.image().is_for(name.as_ref(), &marks) {
            planned = not_theirs(image, name, policy)?;
        }
        known_keys = Some(keys);
    }
    let reference = match planned {
        Plan::Use(lease) => {
            let text = format!(
                "Container image \"{image}\" already present on machine and can be accessed by the pod"
            );
            node.note(pod, "Pulled", name, text);
            return Ok(Found::new(image, lease));
        }
        Plan::Pull(reference) => reference,
    };
    node.note(pod, "Pulling", name, format!("Pulling image \"{image}\""));
    let keys = match known_keys {
        Some(keys) => keys,
        None if node.puller.is_pushed(&reference) => Keyring::default(),
        None => keys(node, pod).await,
    };
    let pulled = tokio::select! {
        pulled = node.puller.pull(&reference, &keys) => pulled,
        () = deleted(node, pod) => return Err(failure("ErrImagePull", "context canceled".into())),
    };
    let pulled = pulled.map_err(|error| failure("ErrImagePull", told(&reference, &error)))?;
    let size = pulled.lease.image().size_bytes;
    crate::stats::own::pulled(size, pulled.took);
    *node.pulling.lock().entry(pod.uid().into()).or_default() += pulled.waited;
    let (took, waited) = (go_duration(pulled.took), go_duration(pulled.waited));
    let text = format!(
        "Successfully pulled image \"{image}\" in {took} ({waited} including waiting). Image size: {size} bytes."
    );
    node.note(pod, "Pulled", name, text);
    Ok(Found::new(image, pulled.lease))
}

/// What is to be done where others' credentials brought an image: the registry says whether these may have it too.
fn not_theirs(image: &str, name: Option<Reference>, policy: Option<&str>) -> Result<Plan, StartFailure> {
    match name {
        Some(name) if policy != Some("Never") => Ok(Plan::Pull(name)),
        _ => {
            let text = format!("Container image \"{image}\" is not present with pull policy of Never");
            Err(failure("ErrImageNeverPull", text))
        }
    }
}

/// Comes back when the pod is gone or going.
async fn deleted(node: &Node, pod: &PodView) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = node.pod(pod.key());
        let stays = now.is_some_and(|o| o.uid() == pod.uid() && o.meta().deletion_timestamp.is_none());
        if !stays {
            return;
        }
    }
}

/// An error in containerd's words.
fn told(reference: &Reference, error: &PullError) -> String {
    let resolving = matches!(
        error,
        PullError::NotFound
            | PullError::Denied(_)
            | PullError::Auth(_)
            | PullError::Net(_)
            | PullError::Status { .. }
    );
    let about = match error {
        PullError::NotFound => format!("{reference}: "),
        _ => String::new(),
    };
    let step =
        if resolving { format!("failed to resolve reference \"{reference}\": ") } else { String::new() };
    format!("failed to pull and unpack image \"{reference}\": {step}{about}{error}")
}

/// The credentials of the pod's `imagePullSecrets` (those of its service account were copied there on admission).
async fn keys(node: &Node, pod: &PodView) -> Keyring {
    let mut keys = Keyring::default();
    for reference in pod.spec().image_pull_secrets.iter().flatten().filter(|r| !r.name.is_empty()) {
        let key = ObjectKey::new(pod.namespace(), reference.name.as_str());
        let added = match node.client.get(&SECRETS, &key).await {
            Ok(object) => match object.view::<Secret>() {
                Ok(secret) => add_secret(&mut keys, &secret),
                Err(error) => Err(error.to_string()),
            },
            Err(error) => Err(error.to_string()),
        };
        if let Err(why) = added {
            tracing::debug!(secret = %key, why, "pull secret not used");
            let text = format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                reference.name
            );
            node.recorder.pod(
                pod,
                crate::decide::Note {
                    warning: true,
                    reason: "FailedToRetrieveImagePullSecret",
                    message: text,
                    container: String::new(),
                },
            );
        }
    }
    keys
}

fn add_secret(keys: &mut Keyring, secret: &Secret) -> Result<(), String> {
    let data = |key: &str| secret.data.as_ref().and_then(|d| d.get(key)).map(|bytes| bytes.0.as_slice());
    match (data(".dockerconfigjson"), data(".dockercfg")) {
        (Some(text), _) => keys.add_config_json(text),
        (None, Some(text)) => keys.add_dockercfg(text),
        (None, None) => Err("it holds no Docker config".into()),
    }
}

/// Whole milliseconds as Go prints a duration: `153ms`, `1.2s`, `2m3.004s`.
fn go_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    if ms < 1000 {
        return format!("{ms}ms");
    }
    let (minutes, rest) = (ms / 60_000, ms % 60_000);
    let fraction = format!("{}.{:03}", rest / 1000, rest % 1000);
    let seconds = fraction.trim_end_matches('0').trim_end_matches('.');
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

/// Bytes to free, when the disk is too full.
fn to_free(disk: DiskUse) -> Option<u64> {
    (disk.percent() >= HIGH_PERCENT).then(|| disk.above(LOW_PERCENT)).filter(|bytes| *bytes > 0)
}

/// Looks at the images' disk now and then, and makes room when it is too full. Runs until dropped.
pub async fn collect(puller: Puller, recorder: Recorder, node_name: String) {
    loop {
        tokio::time::sleep(COLLECT_EVERY).await;
        let shared = puller.clone();
        let done = crate::ops::blocking(move || collect_once(&shared).map_err(|e| e.to_string())).await;
        match done.and_then(|result| result) {
            Ok(None) => {}
            Ok(Some((freed, wanted))) if freed >= wanted => {
                tracing::info!(freed, "images removed to free space")
            }
            Ok(Some((freed, wanted))) => {
                let text = format!(
                    "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only found {freed} bytes eligible to free."
                );
                recorder.node(&node_name, "FreeDiskSpaceFailed", text);
            }
            Err(error) => tracing::error!(error, "image garbage collection"),
        }
    }
}

/// What was freed of what was wanted, when room was wanted: the registry's garbage first, then unused images.
fn collect_once(puller: &Puller) -> Result<Option<(u64, u64)>, ImageError> {
    let wanted = to_free(puller.images().disk_use()?);
    if let Some(depot) = puller.depot() {
        depot.gc(if wanted.is_some() { GcHow::Untagged } else { GcHow::Unreferenced })?;
    }
    let Some(wanted) = wanted else { return Ok(None) };
    let still = puller.images().disk_use()?.above(LOW_PERCENT);
    let freed = puller.images().free(still, MIN_AGE)?;
    Ok(Some((wanted.saturating_sub(still) + freed, wanted)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{Images, PullConfig};

    #[test]
    fn absent_images_by_policy() {
        let dir = tempfile::tempdir().unwrap();
        let puller = Puller::new(Images::open(dir.path()).unwrap(), None, PullConfig::default());
        let of = |image: &str, policy| match plan(&puller, image, policy) {
            Ok(Plan::Pull(reference)) => ("Pull", reference.to_string()),
            Ok(Plan::Use(_)) => ("Use", String::new()),
            Err(failure) => (failure.reason, failure.message),
        };
        assert_eq!(of("nginx", Some("IfNotPresent")), ("Pull", "docker.io/library/nginx:latest".into()));
        assert_eq!(of("nginx", Some("Always")).0, "Pull");
        assert_eq!(of("x", Some("Never")).0, "ErrImageNeverPull");
        let (reason, message) = of("UPPER:case", None);
        assert_eq!(reason, "InvalidImageName");
        assert!(message.contains("couldn't parse image name"), "{message}");
    }

    #[test]
    fn present_images_by_policy() {
        let dir = tempfile::tempdir().unwrap();
        let images = Images::open(dir.path()).unwrap();
        let archive = testkit::image::ImageBuilder::new("web:1").file("x", b"x", 0o644).docker_archive();
        images.load_reader(&archive[..], &|_| {}).unwrap();
        let puller = Puller::new(images, None, PullConfig::default());
        for policy in [None, Some("Never"), Some("IfNotPresent"), Some("Always")] {
            let Ok(Plan::Use(lease)) = plan(&puller, "web:1", policy) else {
                panic!("{policy:?}: it is here")
            };
            assert_eq!(Found::new("web:1", lease).name, "docker.io/library/web:1");
        }
    }

    #[test]
    fn words() {
        let reference = Reference::parse("web:1").unwrap();
        let name = "docker.io/library/web:1";
        assert_eq!(
            told(&reference, &PullError::NotFound),
            format!(
                "failed to pull and unpack image \"{name}\": failed to resolve reference \"{name}\": {name}: not found"
            )
        );
        let of = |ms| go_duration(Duration::from_millis(ms));
        assert_eq!((of(153), of(1200), of(2000)), ("153ms".into(), "1.2s".into(), "2s".into()));
        assert_eq!((of(123_004), of(3_600_000)), ("2m3.004s".into(), "1h0m0s".into()));
    }

    #[test]
    fn thresholds() {
        let of = |free| to_free(DiskUse { total_bytes: 1000, free_bytes: free });
        assert_eq!((of(151), of(150), of(0)), (None, Some(50), Some(200)));
    }

    #[test]
    fn pull_secrets() {
        let secret = |key: &str, text: &str| Secret {
            data: Some([(key.to_string(), k8s_openapi::ByteString(text.into()))].into()),
            ..Secret::default()
        };
        let mut keys = Keyring::default();
        let auths = r#"{"r.io": {"username": "u", "password": "p"}}"#;
        add_secret(&mut keys, &secret(".dockercfg", auths)).unwrap();
        add_secret(&mut keys, &secret(".dockerconfigjson", &format!(r#"{{"auths": {auths}}}"#))).unwrap();
        assert!(add_secret(&mut keys, &secret(".dockerconfigjson", "7")).is_err());
        assert!(add_secret(&mut keys, &secret("password", "p")).is_err());
    }
}
