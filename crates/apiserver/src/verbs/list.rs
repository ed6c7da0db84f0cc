//! Get and list: fresh reads, pages, revisions.

use super::Call;
use crate::Api;
use crate::computed::is_computed;
use crate::path::Query;
use crate::resources::Resource;
use crate::select::Selection;
use crate::storage::store_error;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use client::Object;
use machinery::field_errors::FieldErrors;
use machinery::status::ApiError;
use serde_json::json;
use std::sync::Arc;
use store::{RangeOptions, Revision, StoreError};

/// Records read from the store at once when pages are filtered.
const CHUNK: usize = 500;

/// Upstream's words for a continue token whose revision is gone.
const CONTINUE_EXPIRED: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

/// How fresh a list must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Freshness {
    /// As new as every acknowledged write.
    #[default]
    Current,
    /// Whatever is at hand.
    Any,
    /// At least this revision.
    NotOlderThan(u64),
    /// Exactly this revision.
    Exactly(u64),
}

/// Paging and freshness of a list.
#[derive(Clone, Debug, Default)]
pub struct Paging {
    /// At most so many; 0 is all.
    pub limit: usize,
    /// Token of the page before.
    pub token: String,
    /// Freshness of a first page.
    pub freshness: Freshness,
}

/// One page.
pub struct Page {
    /// Objects in the stored version.
    pub items: Vec<Arc<Object>>,
    /// Revision of the listing.
    pub revision: u64,
    /// Token of the next page; "" at the end.
    pub next: String,
    /// Objects behind this page, where it is known.
    pub remaining: Option<usize>,
}

/// Where a page begins.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Token {
    /// 0: inconsistent continuation, at the present revision.
    revision: u64,
    after: String,
}

impl Token {
    fn encode(&self) -> String {
        let text = json!({"v": "gantry/v1", "rv": self.revision, "after": self.after}).to_string();
        URL_SAFE_NO_PAD.encode(text)
    }

    fn decode(text: &str) -> Result<Self, ApiError> {
        let bad = || ApiError::bad_request("invalid continue token: continue key is not valid");
        let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|_| bad())?;
        let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(|_| bad())?;
        match (value["v"].as_str(), value["rv"].as_u64(), value["after"].as_str()) {
            (Some("gantry/v1"), Some(revision), Some(after)) => Ok(Token { revision, after: after.into() }),
            _ => Err(bad()),
        }
    }
}

/// A resourceVersion parameter as a number; `None` when it is not given.
pub fn parse_revision(resource: &Resource, text: &str) -> Result<Option<u64>, ApiError> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        let why = format!("strconv.ParseUint: parsing {text:?}: invalid syntax");
        let mut errors = FieldErrors::new();
        errors.invalid("resourceVersion", text, &why);
        let kind = &resource.row.kind;
        errors.into_result(resource.group(), kind, "").err().unwrap_or_else(|| ApiError::bad_request(why))
    })
}

/// A parameter that is a whole number; `None` when it is not given.
pub fn number(query: &Query, name: &str) -> Result<Option<i64>, ApiError> {
    let text = query.get(name);
    let bad = |_| ApiError::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"));
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(bad) }
}

/// Reads limit, continue, resourceVersion and resourceVersionMatch.
pub fn parse_paging(resource: &Resource, query: &Query) -> Result<Paging, ApiError> {
    let limit = number(query, "limit")?.unwrap_or(0);
    number(query, "timeoutSeconds")?;
    let token = query.get("continue").to_string();
    let (version, matching) = (query.get("resourceVersion"), query.get("resourceVersionMatch"));
    let mut errors = FieldErrors::new();
    let field = "resourceVersionMatch";
    if !matching.is_empty() {
        if version.is_empty() {
            errors.forbidden(field, "resourceVersionMatch is forbidden unless resourceVersion is provided");
        }
        if !token.is_empty() {
            errors.forbidden(field, "resourceVersionMatch is forbidden when continue is provided");
        }
        if !matches!(matching, "Exact" | "NotOlderThan") {
            errors.not_supported(field, matching, &["Exact", "NotOlderThan", ""]);
        }
        if matching == "Exact" && version == "0" {
            errors.forbidden(field, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
        }
    }
    if query.find("sendInitialEvents").is_some() {
        errors.forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list");
    }
    errors.into_result("meta.k8s.io", "ListOptions", "")?;
    if !token.is_empty() && !matches!(version, "" | "0") {
        return Err(ApiError::bad_request("specifying resource version is not allowed when using continue"));
    }
    let freshness = match parse_revision(resource, version)? {
        None => Freshness::Current,
        Some(0) => Freshness::Any,
        Some(n) if matching == "Exact" || (matching.is_empty() && limit > 0) => Freshness::Exactly(n),
        Some(n) => Freshness::NotOlderThan(n),
    };
    Ok(Paging { limit: limit.max(0) as usize, token, freshness })
}

impl Api {
    /// One object in the stored version; `any` takes whatever is at hand.
    pub async fn get(&self, call: &Call, freshness: Freshness) -> Result<Arc<Object>, ApiError> {
        if is_computed(call.resource.gvr()) {
            return self.compute_one(call).await;
        }
        match freshness {
            Freshness::Any => {}
            Freshness::Current => self.storage.cache.wait_fresh().await?,
            Freshness::NotOlderThan(n) | Freshness::Exactly(n) => self.storage.cache.wait_for(n).await?,
        }
        let suffix = call.resource.suffix(&call.key.namespace, &call.key.name);
        let found = self.storage.cache.get(&call.resource.prefix, &suffix).ok_or_else(|| call.not_found())?;
        self.one_in_served(&call.resource, found).await
    }

    /// One page of a list.
    pub async fn list(&self, selection: &Selection, paging: &Paging) -> Result<Page, ApiError> {
        if is_computed(selection.resource.gvr()) {
            let items = self.compute(selection).await;
            return Ok(page(selection, items, self.storage.cache.revision(), 0));
        }
        let early = selection.early();
        let mut page = self.list_stored(early.as_ref().unwrap_or(selection), paging).await?;
        page.items = self.in_served(&selection.resource, page.items).await?;
        if early.is_some() {
            page.items.retain(|object| selection.matches(object));
            page.remaining = None;
        }
        Ok(page)
    }

    async fn list_stored(&self, selection: &Selection, paging: &Paging) -> Result<Page, ApiError> {
        if !paging.token.is_empty() {
            let token = Token::decode(&paging.token)?;
            return self.list_from(selection, paging.limit, token).await;
        }
        match paging.freshness {
            Freshness::Current => self.storage.cache.wait_fresh().await?,
            Freshness::Any => {}
            Freshness::NotOlderThan(n) => self.storage.cache.wait_for(n).await?,
            Freshness::Exactly(revision) => {
                self.storage.cache.wait_for(revision).await?;
                let after = String::new();
                return self
                    .list_at(selection, paging.limit, Token { revision, after })
                    .await
                    .map_err(|e| store_error(&e));
            }
        }
        Ok(self.list_now(selection, paging.limit, ""))
    }

    fn list_now(&self, selection: &Selection, limit: usize, after: &str) -> Page {
        let snapshot = self.storage.cache.snapshot(&selection.resource.prefix);
        let mut selected = selection.filter(&snapshot.objects, after);
        let items: Vec<Arc<Object>> = match limit {
            0 => selected.by_ref().cloned().collect(),
            limit => selected.by_ref().take(limit).cloned().collect(),
        };
        let remaining = match limit {
            0 => 0,
            _ if selection.is_selective() => usize::from(selected.next().is_some()),
            _ => selected.count(),
        };
        page(selection, items, snapshot.revision, remaining)
    }

    async fn list_from(&self, selection: &Selection, limit: usize, token: Token) -> Result<Page, ApiError> {
        if token.revision == 0 {
            self.storage.cache.wait_fresh().await?;
            return Ok(self.list_now(selection, limit, &token.after));
        }
        let after = token.after.clone();
        match self.list_at(selection, limit, token).await {
            Ok(page) => Ok(page),
            Err(StoreError::Compacted { .. }) => {
                let mut error = ApiError::expired(CONTINUE_EXPIRED);
                error.continue_token = Token { revision: 0, after }.encode().into();
                Err(error)
            }
            Err(error) => Err(store_error(&error)),
        }
    }

    /// A page at an older revision, from the store's history.
    async fn list_at(&self, selection: &Selection, limit: usize, token: Token) -> Result<Page, StoreError> {
        let resource = &selection.resource;
        let namespace = selection.namespace.as_ref().filter(|_| resource.row.namespaced);
        let prefix = format!("{}{}", resource.prefix, namespace.map(|n| format!("{n}/")).unwrap_or_default());
        let mut after: Option<Arc<str>> =
            (!token.after.is_empty()).then(|| format!("{}{}", resource.prefix, token.after).into());
        let mut items = Vec::new();
        loop {
            let chunk = if selection.is_selective() || limit == 0 { CHUNK } else { limit };
            let options =
                RangeOptions { at: Some(Revision(token.revision)), limit: chunk, after: after.clone() };
            let range = self.storage.store.range(&prefix, options).await?;
            after = range.records.last().map(|r| r.key.clone());
            let objects = range.records.iter().filter_map(|r| self.storage.object(resource, r));
            let read = range.records.len();
            for (nth, object) in objects.enumerate() {
                if selection.matches(&object) {
                    items.push(object);
                    if items.len() == limit {
                        let remaining = range.remaining + (read - nth - 1);
                        return Ok(page(selection, items, token.revision, remaining));
                    }
                }
            }
            if range.remaining == 0 || after.is_none() {
                return Ok(page(selection, items, token.revision, 0));
            }
        }
    }
}

/// A page with its token, when something is left behind it.
fn page(selection: &Selection, items: Vec<Arc<Object>>, revision: u64, remaining: usize) -> Page {
    let last = items.last().filter(|_| remaining > 0);
    let next = last.map_or(String::new(), |object| {
        let after = selection.resource.suffix(&object.key.namespace, &object.key.name);
        Token { revision, after }.encode()
    });
    let remaining = (remaining > 0 && !selection.is_selective()).then_some(remaining);
    Page { items, revision, next, remaining }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip_and_junk_is_refused() {
        let token = Token { revision: 7, after: "default/a".into() };
        assert_eq!(Token::decode(&token.encode()).unwrap(), token);
        for junk in ["x", "e30", "%%%", "eyJ2IjoxfQ"] {
            assert_eq!(Token::decode(junk).unwrap_err().code, 400);
        }
    }
}
