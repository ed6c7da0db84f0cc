//! Layers: blobs of a repository, uploaded in parts.

use super::repositories::find;
use super::{State, failed, invalid};
use crate::service::{AwsError, Call, Outcome};
use base64::Engine;
use bytes::Bytes;
use image::Digest;
use serde_json::{Value, json};

/// What clients should send at once, in bytes (AWS's figure).
const PART_BYTES: u64 = 10 << 20;

fn name(call: &Call) -> &str {
    call.text("repositoryName")
}

fn digest(text: &str) -> Result<Digest, AwsError> {
    Digest::parse(text).ok_or_else(|| {
        invalid(format!("Invalid parameter at 'layerDigest' failed to satisfy constraint: 'must be a sha256 digest' ({text})"))
    })
}

pub(super) async fn check(state: &State, call: &Call) -> Outcome {
    find(state, call, name(call)).await?;
    let (depot, place) = (&state.registry()?.depot, state.place(call, name(call)));
    let (mut layers, mut failures) = (Vec::new(), Vec::new());
    for asked in call.items("layerDigests").iter().filter_map(Value::as_str) {
        let found = Digest::parse(asked).map(|digest| depot.blob_size(&place, &digest));
        match found {
            None => failures.push(json!({"layerDigest": asked, "failureCode": "InvalidLayerDigest",
                "failureReason": "The digest is not a sha256 digest"})),
            Some(None) => layers.push(json!({"layerDigest": asked, "layerAvailability": "UNAVAILABLE"})),
            Some(Some(size)) => layers.push(json!({"layerDigest": asked, "layerAvailability": "AVAILABLE",
                "layerSize": size, "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip"})),
        }
    }
    Ok(json!({"layers": layers, "failures": failures}))
}

pub(super) async fn download_url(state: &State, call: &Call) -> Outcome {
    find(state, call, name(call)).await?;
    let (registry, place) = (state.registry()?, state.place(call, name(call)));
    let digest = digest(call.text("layerDigest"))?;
    if registry.depot.blob_size(&place, &digest).is_none() {
        let text = format!(
            "The layer with digest '{digest}' does not exist in the repository with name '{}'",
            name(call)
        );
        return Err(AwsError::client("LayersNotFoundException", text));
    }
    let url = format!("http://{}/v2/{place}/blobs/{digest}", registry.host);
    Ok(json!({"downloadUrl": url, "layerDigest": digest.as_str()}))
}

pub(super) async fn initiate(state: &State, call: &Call) -> Outcome {
    find(state, call, name(call)).await?;
    let place = state.place(call, name(call));
    let id = state.on_disk(move |depot| Ok(depot.begin(&place)?.id.clone())).await?;
    Ok(json!({"uploadId": id, "partSize": PART_BYTES}))
}

fn no_upload(call: &Call) -> AwsError {
    let text = format!(
        "The upload with id '{}' does not exist in the repository with name '{}'",
        call.text("uploadId"),
        name(call)
    );
    AwsError::client("UploadNotFoundException", text)
}

pub(super) async fn part(state: &State, call: &Call) -> Outcome {
    let place = state.place(call, name(call));
    let upload =
        state.registry()?.depot.upload(&place, call.text("uploadId")).map_err(|_| no_upload(call))?;
    let bytes = base64::prelude::BASE64_STANDARD.decode(call.text("layerPartBlob"));
    let bytes = Bytes::from(bytes.map_err(|_| invalid("Invalid parameter at 'layerPartBlob': not base64"))?);
    let range = (call.input["partFirstByte"].as_u64(), call.input["partLastByte"].as_u64());
    let mut writing = upload.lock().await;
    let offset = writing.offset();
    let last = (offset + bytes.len() as u64).saturating_sub(1);
    if range != (Some(offset), Some(last)) || bytes.is_empty() {
        let mut error = AwsError::client(
            "InvalidLayerPartException",
            format!("The layer part must begin at byte {offset} and end where its bytes do"),
        );
        error.more.insert("lastValidByteReceived".into(), offset.saturating_sub(1).into());
        return Err(error);
    }
    let appended = tokio::task::spawn_blocking(move || writing.append(&[bytes])).await;
    appended
        .map_err(|_| AwsError::server("ServerException", "The registry did not answer"))?
        .map_err(|error| failed(error.into()))?;
    Ok(json!({
        "registryId": call.caller.account,
        "repositoryName": name(call),
        "uploadId": upload.id,
        "lastByteReceived": last,
    }))
}

pub(super) async fn complete(state: &State, call: &Call) -> Outcome {
    let place = state.place(call, name(call));
    let digest = digest(call.items("layerDigests").first().and_then(Value::as_str).unwrap_or_default())?;
    let depot = &state.registry()?.depot;
    let upload = depot.upload(&place, call.text("uploadId")).map_err(|_| no_upload(call))?;
    let mut writing = upload.lock().await;
    if writing.offset() == 0 {
        return Err(AwsError::client(
            "EmptyUploadException",
            "The specified layer upload does not contain any layer parts.",
        ));
    }
    let (ending, wanted) = (upload.clone(), digest.clone());
    state.on_disk(move |depot| depot.commit(&ending, &mut writing, &wanted)).await?;
    Ok(json!({
        "registryId": call.caller.account,
        "repositoryName": name(call),
        "uploadId": upload.id,
        "layerDigest": digest.as_str(),
    }))
}
