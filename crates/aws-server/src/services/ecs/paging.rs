//! Pages of lists: a token holds the last key shown and a print of the question, so that it fits its own question only.

use crate::service::{AwsError, Call};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// What most lists show at most, and by default.
pub const PAGE_MAX: usize = 100;
/// No token of ours is longer.
const TOKEN_MAX: usize = 1024;
const PRINT_BYTES: usize = 12;

/// The page that a call asks for.
pub struct Page {
    after: Option<String>,
    limit: usize,
    print: Vec<u8>,
}

impl Page {
    /// Reads `nextToken` and `maxResults`; `most` is also the default.
    pub fn of(call: &Call, most: usize) -> Result<Page, AwsError> {
        let parameter = |words: String| AwsError::client("InvalidParameterException", words);
        let limit = match call.input["maxResults"].as_i64() {
            None => most,
            Some(n) => usize::try_from(n)
                .ok()
                .filter(|n| (1..=most).contains(n))
                .ok_or_else(|| parameter(format!("maxResults should be between 1 and {most}.")))?,
        };
        let print = print(call);
        let after = match call.input["nextToken"].as_str() {
            None => None,
            Some(token) => Some(read(token, &print).ok_or_else(|| parameter("Invalid token.".into()))?),
        };
        Ok(Page { after, limit, print })
    }

    /// Cuts the page out of all rows (in the order of their keys) and names the next one.
    pub fn cut<T>(&self, rows: impl IntoIterator<Item = (String, T)>) -> (Vec<T>, Option<String>) {
        let mut rows =
            rows.into_iter().filter(|(key, _)| self.after.as_ref().is_none_or(|after| key > after));
        let mut out = Vec::new();
        let mut last = String::new();
        for (key, row) in rows.by_ref().take(self.limit) {
            out.push(row);
            last = key;
        }
        let next = rows.next().map(|_| {
            let mut bytes = self.print.clone();
            bytes.extend(last.as_bytes());
            BASE64_URL_SAFE_NO_PAD.encode(bytes)
        });
        (out, next)
    }

    /// A list's answer: `member` holds the rows.
    pub fn answer(&self, member: &str, rows: impl IntoIterator<Item = (String, Value)>) -> Value {
        let (rows, next) = self.cut(rows);
        let mut out = serde_json::json!({ member: rows });
        if let Some(next) = next {
            out["nextToken"] = next.into();
        }
        out
    }
}

fn print(call: &Call) -> Vec<u8> {
    let mut input = call.input.clone();
    if let Some(members) = input.as_object_mut() {
        members.remove("nextToken");
        members.remove("maxResults");
    }
    let question = format!("{}/{}/{}/{input}", call.operation, call.caller.account, call.region);
    Sha256::digest(question.as_bytes())[..PRINT_BYTES].to_vec()
}

fn read(token: &str, print: &[u8]) -> Option<String> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(token).ok().filter(|_| token.len() <= TOKEN_MAX)?;
    String::from_utf8(bytes.strip_prefix(print)?.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::Caller;
    use serde_json::json;

    fn call(input: Value) -> Call {
        let caller = Caller {
            account: "123456789012".into(),
            access_key: "testing".into(),
            arn: "arn:aws:iam::123456789012:root".into(),
            user_id: "123456789012".into(),
        };
        Call {
            caller,
            region: "us-east-1".into(),
            operation: "ListTasks",
            input,
            request_id: "r".into(),
            now_ms: 0,
            endpoint: "http://localhost:4566".into(),
        }
    }

    fn rows() -> Vec<(String, Value)> {
        ["a", "b", "c", "d", "e"].iter().map(|k| (k.to_string(), json!(k))).collect()
    }

    #[test]
    fn pages_follow_each_other() {
        let mut input = json!({"cluster": "c", "maxResults": 2});
        let mut seen = Vec::new();
        for turn in 0..3 {
            let answer = Page::of(&call(input.clone()), PAGE_MAX).unwrap().answer("x", rows());
            seen.extend(answer["x"].as_array().unwrap().clone());
            assert_eq!(answer.get("nextToken").is_some(), turn < 2);
            input["nextToken"] = answer["nextToken"].clone();
        }
        assert_eq!(json!(seen), json!(["a", "b", "c", "d", "e"]));
    }

    #[test]
    fn foreign_and_absurd_tokens_are_refused() {
        let first = Page::of(&call(json!({"maxResults": 1})), PAGE_MAX).unwrap().answer("x", rows());
        let token = first["nextToken"].as_str().unwrap();
        let other = json!({"cluster": "other", "nextToken": token});
        let long = json!({"nextToken": "A".repeat(100_000)});
        for input in
            [other, long, json!({"nextToken": "ä"}), json!({"nextToken": ""}), json!({"nextToken": "AAAA"})]
        {
            let error = Page::of(&call(input), PAGE_MAX).err().unwrap();
            assert_eq!((&*error.code, &*error.message), ("InvalidParameterException", "Invalid token."));
        }
        for max in [0, -1, 101] {
            assert!(Page::of(&call(json!({"maxResults": max})), PAGE_MAX).is_err());
        }
    }
}
