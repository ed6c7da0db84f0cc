//! Objects of one kind in namespace `aws`, as services without controllers keep their things: `spec` is the
//! service's own document, labels say account and region. Changes are compare-and-swap, tried again on conflict.

use crate::service::{AwsError, Call, Outcome, Shared};
use client::{ApiClient, DeleteOptions, ListOptions, ObjectKey};
pub(crate) use ecs_model::doc::copy;
use ecs_model::names::{AWS_NAMESPACE, Place, object_name};
use k8s_schema::Gvr;
use machinery::status::ApiError;
use serde_json::{Value, json};

const ACCOUNT_LABEL: &str = "aws.gantry.dev/account";
const REGION_LABEL: &str = "aws.gantry.dev/region";
/// Writers of one object that meet more often than this are told to come again.
const TRIES_MAX: usize = 16;

/// Whose things: services like IAM have no region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// An account's, in a region.
    Regional,
    /// An account's, everywhere.
    Global,
}

/// A kind of objects.
#[derive(Clone)]
pub(crate) struct Kept {
    client: ApiClient,
    home: Place,
    gvr: Gvr,
    kind: &'static str,
    reach: Reach,
}

impl Kept {
    pub(crate) fn new(shared: &Shared, gvr: Gvr, kind: &'static str, reach: Reach) -> Kept {
        let home = Place::new(&shared.account, &shared.region);
        Kept { client: shared.client.clone(), home, gvr, kind, reach }
    }

    fn region<'a>(&'a self, call: &'a Call) -> &'a str {
        match self.reach {
            Reach::Regional => &call.region,
            Reach::Global => &self.home.region,
        }
    }

    fn key(&self, account: &str, region: &str, name: &str) -> ObjectKey {
        ObjectKey::new(AWS_NAMESPACE, object_name(account, region, &self.home, name))
    }

    /// One's `spec`.
    pub(crate) async fn get(&self, call: &Call, name: &str) -> Result<Option<Value>, AwsError> {
        self.get_of(&call.caller.account, self.region(call), name).await
    }

    /// The same of any account.
    pub(crate) async fn get_of(
        &self,
        account: &str,
        region: &str,
        name: &str,
    ) -> Result<Option<Value>, AwsError> {
        Ok(self.whole_of(account, region, name).await?.map(|mut object| object["spec"].take()))
    }

    /// One with its `metadata` and `status`.
    pub(crate) async fn get_whole(&self, call: &Call, name: &str) -> Result<Option<Value>, AwsError> {
        self.whole_of(&call.caller.account, self.region(call), name).await
    }

    async fn whole_of(&self, account: &str, region: &str, name: &str) -> Result<Option<Value>, AwsError> {
        let found = there(self.client.get(&self.gvr, &self.key(account, region, name)).await)?;
        found.map(|object| object.value().map_err(broken)).transpose()
    }

    /// Stores a new one. False: there is one of that name.
    pub(crate) async fn create(&self, call: &Call, name: &str, spec: Value) -> Result<bool, AwsError> {
        let (account, region) = (&call.caller.account, self.region(call));
        let key = self.key(account, region, name);
        let body = json!({
            "apiVersion": format!("{}/{}", self.gvr.group, self.gvr.version), "kind": self.kind,
            "metadata": {"namespace": &*key.namespace, "name": &*key.name,
                "labels": {ACCOUNT_LABEL: account, REGION_LABEL: region}},
            "spec": spec,
        });
        match self.client.create(&self.gvr, body).await {
            Ok(_) => Ok(true),
            Err(error) if error.reason == "AlreadyExists" => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    /// Changes one; `None`: there is none of that name. The change may run several times.
    pub(crate) async fn change<T>(
        &self,
        call: &Call,
        name: &str,
        mut change: impl FnMut(&mut Value) -> Result<T, AwsError>,
    ) -> Result<Option<T>, AwsError> {
        let key = self.key(&call.caller.account, self.region(call), name);
        for _ in 0..TRIES_MAX {
            let Some(object) = there(self.client.get(&self.gvr, &key).await)? else { return Ok(None) };
            let mut body = object.value().map_err(broken)?;
            let answer = change(&mut body["spec"])?;
            match self.client.update(&self.gvr, &key, body).await {
                Err(error) if error.reason == "Conflict" => {}
                written => return Ok(there(written)?.map(|_| answer)),
            }
        }
        Err(AwsError {
            status: 503,
            ..AwsError::server("ServiceUnavailable", "Too many changes at once; try again")
        })
    }

    /// Removes one. False: there is none of that name.
    pub(crate) async fn remove(&self, call: &Call, name: &str) -> Result<bool, AwsError> {
        let key = self.key(&call.caller.account, self.region(call), name);
        Ok(there(self.client.delete(&self.gvr, &key, DeleteOptions::default()).await)?.is_some())
    }

    /// All of the caller's, here.
    pub(crate) async fn list(&self, call: &Call) -> Result<Vec<Value>, AwsError> {
        Ok(self.list_whole(call).await?.into_iter().map(|mut o| o["spec"].take()).collect())
    }

    /// The same with `metadata` and `status`, by object name.
    pub(crate) async fn list_whole(&self, call: &Call) -> Result<Vec<Value>, AwsError> {
        let label_selector =
            format!("{ACCOUNT_LABEL}={},{REGION_LABEL}={}", call.caller.account, self.region(call));
        let options =
            ListOptions { namespace: Some(AWS_NAMESPACE.into()), label_selector, ..ListOptions::default() };
        let list = self.client.list(&self.gvr, &options).await.map_err(failed)?;
        list.items.iter().map(|o| o.value().map_err(broken)).collect()
    }
}

/// `None`: there is no such object.
fn there<T>(asked: Result<T, ApiError>) -> Result<Option<T>, AwsError> {
    match asked {
        Err(error) if error.code == 404 => Ok(None),
        other => other.map(Some).map_err(failed),
    }
}

fn failed(error: ApiError) -> AwsError {
    tracing::warn!(%error, "an AWS object could not be read or written");
    AwsError::server("InternalFailure", "The request could not be completed; Gantry's log says more")
}

fn broken(error: serde_json::Error) -> AwsError {
    tracing::error!(%error, "a stored AWS object is no JSON");
    AwsError::server("InternalFailure", "A stored object cannot be read")
}

/// A text member of a document; "" where it is unset.
pub(crate) fn text<'a>(document: &'a Value, member: &str) -> &'a str {
    document[member].as_str().unwrap_or_default()
}

/// The members of a list; none where it is unset.
pub(crate) fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// One page of a list that is sorted by a text: what comes after `token`, at most `max`; and the next token.
fn page<T: Clone>(
    list: &[T],
    name: impl Fn(&T) -> String,
    token: &str,
    max: usize,
) -> Result<(Vec<T>, Option<String>), PageError> {
    use base64::Engine;
    use base64::prelude::BASE64_URL_SAFE_NO_PAD;
    let after = match token {
        "" => None,
        token => {
            let bytes = BASE64_URL_SAFE_NO_PAD.decode(token).map_err(|_| PageError)?;
            let text = String::from_utf8(bytes).map_err(|_| PageError)?;
            Some(text.strip_prefix(TOKEN_MARK).ok_or(PageError)?.to_string())
        }
    };
    let mut rest = list.iter().filter(|item| after.as_ref().is_none_or(|a| name(item) > *a));
    let page: Vec<T> = rest.by_ref().take(max).cloned().collect();
    let more = rest.next().is_some();
    let last = page.last().filter(|_| more).map(&name);
    Ok((page, last.map(|last| BASE64_URL_SAFE_NO_PAD.encode(format!("{TOKEN_MARK}{last}")))))
}

/// How a service's lists come in pages.
pub(crate) struct Pages {
    /// Members of inputs: how many rows, and after which token.
    pub asks: (&'static str, &'static str),
    /// The member of answers with the next token.
    pub next: &'static str,
    /// Rows, unless asked for fewer.
    pub rows: usize,
    /// Code and words for a token that was not given out.
    pub refusal: (&'static str, &'static str),
}

impl Pages {
    /// The call's page of rows that are sorted by a text, and the next token.
    pub(crate) fn cut<T: Clone>(
        &self,
        call: &Call,
        rows: &[T],
        name: impl Fn(&T) -> String,
    ) -> Result<(Vec<T>, Option<String>), AwsError> {
        let refused = |_| AwsError::client(self.refusal.0, self.refusal.1);
        page(rows, name, text(&call.input, self.asks.1), call.count(self.asks.0, self.rows)).map_err(refused)
    }

    /// A list's answer: the call's page of rows, which get sorted by the member `by`.
    pub(crate) fn answer(&self, call: &Call, member: &str, mut rows: Vec<Value>, by: &str) -> Outcome {
        rows.sort_by(|a, b| text(a, by).cmp(text(b, by)));
        let (rows, next) = self.cut(call, &rows, |row| text(row, by).to_string())?;
        Ok(self.shown(member, rows, next))
    }

    /// A list's answer of these rows.
    pub(crate) fn shown(&self, member: &str, rows: Vec<Value>, next: Option<String>) -> Value {
        let mut out = json!({ member: rows });
        if let Some(next) = next {
            out[self.next] = next.into();
        }
        out
    }
}

/// What tells our tokens from arbitrary text.
const TOKEN_MARK: &str = "after:";

/// Not a token that was given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PageError;

/// Seconds since 1970, with milliseconds, as documents hold times.
pub(crate) fn now(call: &Call) -> Value {
    Value::from(call.now_ms as f64 / 1_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_end_and_foreign_tokens_are_refused() {
        let list: Vec<String> = ["a", "b", "c"].map(String::from).into();
        let (first, token) = page(&list, String::clone, "", 2).unwrap();
        assert_eq!(first, ["a", "b"]);
        let (second, end) = page(&list, String::clone, &token.unwrap(), 2).unwrap();
        assert_eq!((second, end), (vec!["c".to_string()], None));
        for bad in ["x", "?", "YWJj", &"A".repeat(10_000)] {
            assert_eq!(page(&list, String::clone, bad, 2), Err(PageError), "{bad}");
        }
    }
}
