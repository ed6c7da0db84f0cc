//! Lists: repositories, tags (both in pages), referrers.

use crate::reply::{self, ApiError, Reply, set};
use crate::route::Query;
use http::Uri;
use http::header::{CONTENT_TYPE, HeaderName, LINK};
use image::{Depot, Digest};
use serde_json::{Value, json};

/// Entries of a page when the client does not say, and at most.
const PAGE_MAX: usize = 1000;
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");

/// The page that a query asks for: after what, and how many.
fn page(query: &Query) -> Result<(&str, usize), ApiError> {
    let count = match query.get("n") {
        None => PAGE_MAX,
        Some(text) => text.parse::<usize>().map_err(|_| ApiError::Page)?.min(PAGE_MAX),
    };
    Ok((query.get("last").unwrap_or_default(), count))
}

fn link(reply: &mut Reply, path: &str, count: usize, (list, more): (&[String], bool)) {
    if let Some(last) = list.last().filter(|_| more) {
        let last = last.replace('/', "%2F");
        set(reply, LINK, &format!("<{path}?n={count}&last={last}>; rel=\"next\""));
    }
}

pub(crate) fn catalog(depot: &Depot, uri: &Uri) -> Result<Reply, ApiError> {
    let query = Query::of(uri);
    let (last, count) = page(&query)?;
    let (list, more) = depot.repositories(last, count);
    let mut reply = reply::json(&json!({"repositories": list}));
    link(&mut reply, "/v2/_catalog", count, (&list, more));
    Ok(reply)
}

pub(crate) fn tags(depot: &Depot, name: &str, uri: &Uri) -> Result<Reply, ApiError> {
    let query = Query::of(uri);
    let (last, count) = page(&query)?;
    let (list, more) = depot.tags(name, last, count)?;
    let mut reply = reply::json(&json!({"name": name, "tags": list}));
    link(&mut reply, &format!("/v2/{name}/tags/list"), count, (&list, more));
    Ok(reply)
}

pub(crate) fn referrers(
    depot: &Depot,
    name: &str,
    digest: &Digest,
    query: &Query,
) -> Result<Reply, ApiError> {
    let wanted = query.get("artifactType").filter(|t| !t.is_empty());
    let row = |r: image::Referrer| {
        let mut row = json!({
            "mediaType": r.media_type, "digest": r.digest, "size": r.size, "artifactType": r.artifact_type,
        });
        if !r.annotations.is_empty() {
            row["annotations"] = json!(r.annotations);
        }
        row
    };
    let rows: Vec<Value> = depot.referrers(name, digest, wanted)?.into_iter().map(row).collect();
    let mut reply = reply::json(&json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": rows}));
    set(&mut reply, CONTENT_TYPE, INDEX);
    if wanted.is_some() {
        set(&mut reply, FILTERS, "artifactType");
    }
    Ok(reply)
}
