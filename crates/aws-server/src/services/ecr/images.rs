//! Images: manifests of a repository, by digest and tag.

use super::State;
use super::repositories::{PAGES, find};
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::{items, text};
use image::{Digest, Listed, ManifestRef};
use serde_json::{Value, json};
use std::time::UNIX_EPOCH;

fn name(call: &Call) -> &str {
    call.text("repositoryName")
}

/// All manifests of the caller's repository.
async fn listed(state: &State, call: &Call) -> Result<Vec<Listed>, AwsError> {
    find(state, call, name(call)).await?;
    let place = state.place(call, name(call));
    Ok(state.on_disk(move |depot| Ok(depot.list(&place))).await?.unwrap_or_default())
}

/// Does the filter of the call want images with (or without) tags?
fn wanted(call: &Call, image: &Listed) -> bool {
    match text(&call.input["filter"], "tagStatus") {
        "TAGGED" => !image.tags.is_empty(),
        "UNTAGGED" => image.tags.is_empty(),
        _ => true,
    }
}

pub(super) async fn list(state: &State, call: &Call) -> Outcome {
    let mut ids = Vec::new();
    for image in listed(state, call).await?.iter().filter(|i| wanted(call, i)) {
        let digest = image.digest.as_str();
        match image.tags.is_empty() {
            true => ids.push(json!({"imageDigest": digest})),
            false => ids.extend(image.tags.iter().map(|t| json!({"imageDigest": digest, "imageTag": t}))),
        }
    }
    let key = |id: &Value| format!("{} {}", text(id, "imageDigest"), text(id, "imageTag"));
    ids.sort_by_key(key);
    let (found, token) = PAGES.cut(call, &ids, key)?;
    Ok(PAGES.shown("imageIds", found, token))
}

/// Why an image id means nothing.
struct Failure(&'static str, String);

/// The image that an id means.
fn pick<'a>(images: &'a [Listed], id: &Value) -> Result<&'a Listed, Failure> {
    let (digest, tag) = (id["imageDigest"].as_str(), id["imageTag"].as_str());
    let by = |image: &&Listed| match (digest, tag) {
        (Some(digest), _) => image.digest.as_str() == digest,
        (None, Some(tag)) => image.tags.iter().any(|t| t == tag),
        (None, None) => false,
    };
    if digest.is_none() && tag.is_none() {
        let text = "Invalid request parameters: both tag and digest cannot be null";
        return Err(Failure("MissingDigestAndTag", text.into()));
    }
    if digest.is_some_and(|d| Digest::parse(d).is_none()) {
        let text = "Invalid request parameters: image digest should satisfy the regex '[a-zA-Z0-9-_+.]+:[a-fA-F0-9]+'";
        return Err(Failure("InvalidImageDigest", text.into()));
    }
    let missing = || Failure("ImageNotFound", "Requested image not found".into());
    let found = images.iter().find(by).ok_or_else(missing)?;
    match (digest, tag) {
        (Some(_), Some(tag)) if !found.tags.iter().any(|t| t == tag) => {
            Err(Failure("ImageTagDoesNotMatchDigest", "Requested image not found".into()))
        }
        _ => Ok(found),
    }
}

/// Bytes of an image as it is stored: its configuration and layers.
fn stored_bytes(manifest: &[u8]) -> u64 {
    let document: Value = serde_json::from_slice(manifest).unwrap_or_default();
    let layers = items(&document["layers"]).iter().chain(std::iter::once(&document["config"]));
    layers.filter_map(|l| l["size"].as_u64()).sum()
}

pub(super) async fn describe(state: &State, call: &Call) -> Outcome {
    let images = listed(state, call).await?;
    let ids = call.items("imageIds");
    let mut picked: Vec<Listed> = Vec::new();
    for id in ids {
        let image = pick(&images, id).map_err(|Failure(_, _)| {
            let shown = [("imageDigest", "null"), ("imageTag", "null")].map(|(m, none)| {
                format!("{m}:'{}'", id[m].as_str().unwrap_or(none))
            });
            let text = format!(
                "The image with imageId {{{}}} does not exist within the repository with name '{}' in the registry with id '{}'",
                shown.join(", "),
                name(call),
                call.caller.account
            );
            AwsError::client("ImageNotFoundException", text)
        })?;
        picked.push(image.clone());
    }
    if ids.is_empty() {
        picked = images.into_iter().filter(|i| wanted(call, i)).collect();
    }
    let (place, registry, repository) =
        (state.place(call, name(call)), call.caller.account.clone(), name(call).to_string());
    let details = state.on_disk(move |depot| {
        let mut details = Vec::new();
        for image in picked {
            let manifest = depot.manifest(&place, &ManifestRef::Digest(image.digest.clone()))?;
            let pushed = image.pushed.and_then(|t| t.duration_since(UNIX_EPOCH).ok());
            details.push(json!({
                "registryId": registry,
                "repositoryName": repository,
                "imageDigest": image.digest.as_str(),
                "imageTags": if image.tags.is_empty() { Value::Null } else { json!(image.tags) },
                "imageSizeInBytes": stored_bytes(&manifest.bytes),
                "imagePushedAt": pushed.map(|p| p.as_secs_f64()),
                "imageManifestMediaType": image.media_type,
                "subjectManifestDigest": image.subject.map(|s| s.as_str().to_string()),
            }));
        }
        Ok(details)
    });
    let details = details.await?;
    PAGES.answer(call, "imageDetails", details, "imageDigest")
}

fn failure(id: &Value, Failure(code, reason): Failure) -> Value {
    json!({"imageId": id, "failureCode": code, "failureReason": reason})
}

pub(super) async fn batch_get(state: &State, call: &Call) -> Outcome {
    let images = listed(state, call).await?;
    let (mut found, mut failures) = (Vec::new(), Vec::new());
    for id in call.items("imageIds") {
        let image = match pick(&images, id) {
            Ok(image) => image.clone(),
            Err(why) => {
                failures.push(failure(id, why));
                continue;
            }
        };
        let (place, digest) = (state.place(call, name(call)), image.digest.clone());
        let manifest =
            state.on_disk(move |depot| depot.manifest(&place, &ManifestRef::Digest(digest))).await?;
        found.push(json!({
            "registryId": call.caller.account,
            "repositoryName": name(call),
            "imageId": {"imageDigest": image.digest.as_str(), "imageTag": id["imageTag"]},
            "imageManifest": String::from_utf8_lossy(&manifest.bytes),
            "imageManifestMediaType": manifest.media_type,
        }));
    }
    Ok(json!({"images": found, "failures": failures}))
}

pub(super) async fn batch_delete(state: &State, call: &Call) -> Outcome {
    let images = listed(state, call).await?;
    let (mut deleted, mut failures) = (Vec::new(), Vec::new());
    for id in call.items("imageIds") {
        let image = match pick(&images, id) {
            Ok(image) => image,
            Err(why) => {
                failures.push(failure(id, why));
                continue;
            }
        };
        // A tag alone takes the tag away, and the image only when it was its last.
        let last = image.tags.len() <= 1;
        let reference = match (id["imageTag"].as_str(), id["imageDigest"].as_str()) {
            (Some(tag), None) if !last => ManifestRef::Tag(tag.into()),
            _ => ManifestRef::Digest(image.digest.clone()),
        };
        let place = state.place(call, name(call));
        state.on_disk(move |depot| depot.remove_manifest(&place, &reference)).await?;
        deleted.push(json!({"imageDigest": image.digest.as_str(), "imageTag": id["imageTag"]}));
    }
    Ok(json!({"imageIds": deleted, "failures": failures}))
}

pub(super) async fn put(state: &State, call: &Call) -> Outcome {
    let spec = find(state, call, name(call)).await?;
    let images = listed(state, call).await?;
    let bytes = call.text("imageManifest").as_bytes().to_vec();
    let (digest, tag) = (Digest::of(&bytes), call.input["imageTag"].as_str().map(String::from));
    if call.input["imageDigest"].as_str().is_some_and(|said| said != digest.as_str()) {
        let text =
            "The specified image digest does not match the digest that Amazon ECR calculated for the image.";
        return Err(AwsError::client("ImageDigestDoesNotMatchException", text));
    }
    let where_ =
        format!("in the repository with name '{}' in registry with id '{}'", name(call), call.caller.account);
    if let Some(tag) = &tag {
        let holder = images.iter().find(|i| i.tags.contains(tag));
        if holder.is_some_and(|i| i.digest == digest) {
            let text = format!("Image with digest '{digest}' and tag '{tag}' already exists {where_}");
            return Err(AwsError::client("ImageAlreadyExistsException", text));
        }
        if holder.is_some() && text(&spec, "imageTagMutability").starts_with("IMMUTABLE") {
            let text = format!(
                "The image tag '{tag}' already exists {where_} and cannot be overwritten because the tag is immutable."
            );
            return Err(AwsError::client("ImageTagAlreadyExistsException", text));
        }
    }
    let reference = match &tag {
        Some(tag) => ManifestRef::parse(tag).map_err(super::failed)?,
        None => ManifestRef::Digest(digest.clone()),
    };
    let media_type = call.input["imageManifestMediaType"].as_str().map(String::from);
    let (place, manifest) = (state.place(call, name(call)), bytes.clone());
    state
        .on_disk(move |depot| depot.put_manifest(&place, &reference, media_type.as_deref(), &manifest))
        .await?;
    Ok(json!({"image": {
        "registryId": call.caller.account,
        "repositoryName": name(call),
        "imageId": {"imageDigest": digest.as_str(), "imageTag": tag},
        "imageManifest": String::from_utf8_lossy(&bytes),
        "imageManifestMediaType": call.input["imageManifestMediaType"],
    }}))
}
