//! Lists: buckets, and a bucket's objects by prefix, delimiter and page (both versions of the call).

use super::store::{Bucket, Meta, Store};
use super::{Answer, Ask, HEAD, Reply, answer, iso, refused, xml};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

/// Entries of one page, as in AWS.
const PAGE_MAX: usize = 1_000;
const NAMESPACE: &str = "http://s3.amazonaws.com/doc/2006-03-01/";

fn tag(name: &str, text: &str) -> String {
    format!("<{name}>{}</{name}>", xml::escape(text))
}

/// The caller's buckets.
pub fn buckets(store: &Store, ask: &Ask) -> Reply {
    let mut body = format!("{HEAD}<ListAllMyBucketsResult xmlns=\"{NAMESPACE}\"><Owner>");
    body += &(tag("ID", &ask.account) + "</Owner><Buckets>");
    let prefix = ask.query("prefix").unwrap_or_default();
    for (name, bucket) in store.buckets() {
        if bucket.owner == ask.account && name.starts_with(&prefix) {
            let created = tag("CreationDate", &iso(bucket.created_ms));
            body += &format!(
                "<Bucket>{}{created}{}</Bucket>",
                tag("Name", &name),
                tag("BucketRegion", &bucket.region)
            );
        }
    }
    answer(200, body + "</Buckets></ListAllMyBucketsResult>")
}

/// Where a bucket is; the oldest region has no name here.
pub fn location(bucket: &Bucket) -> Reply {
    let region = if bucket.region == "us-east-1" { "" } else { &bucket.region };
    answer(200, format!("{HEAD}<LocationConstraint xmlns=\"{NAMESPACE}\">{region}</LocationConstraint>"))
}

/// A page: objects and common prefixes in order, and the last of them where more follow.
struct Page {
    objects: Vec<Meta>,
    prefixes: Vec<String>,
    last: Option<String>,
}

fn page(store: &Store, bucket: &str, (prefix, delimiter): (&str, &str), after: &str, max: usize) -> Page {
    let mut page = Page { objects: Vec::new(), prefixes: Vec::new(), last: None };
    let mut at = after.to_string();
    loop {
        let found = store.list(bucket, prefix, &at, max.saturating_add(1));
        let ended = found.len() <= max;
        for meta in found {
            let rest = meta.key[prefix.len()..].find(delimiter).filter(|_| !delimiter.is_empty());
            let common = rest.map(|end| meta.key[..prefix.len() + end + delimiter.len()].to_string());
            at.clone_from(&meta.key);
            // A prefix that was told already, on this page or the one before.
            if common
                .as_ref()
                .is_some_and(|c| page.prefixes.last() == Some(c) || after.starts_with(c.as_str()))
            {
                continue;
            }
            if page.objects.len() + page.prefixes.len() == max {
                return page;
            }
            page.last = Some(common.clone().unwrap_or_else(|| meta.key.clone()));
            match common {
                Some(common) => page.prefixes.push(common),
                None => page.objects.push(meta),
            }
        }
        if ended {
            page.last = None;
            return page;
        }
    }
}

/// What a client decodes again where it asked for that.
fn encoder(ask: &Ask) -> impl Fn(&str) -> String + use<> {
    let encoded = ask.query("encoding-type").as_deref() == Some("url");
    move |text: &str| match encoded {
        false => text.to_string(),
        true => stdx::percent(text, b"-._/*"),
    }
}

/// Objects of a bucket.
pub fn objects(store: &Store, ask: &Ask, bucket: &str) -> Answer {
    let given = |name: &str| ask.query(name).unwrap_or_default();
    let second = given("list-type") == "2";
    let (prefix, delimiter) = (given("prefix"), given("delimiter"));
    let invalid = |words: &str| refused(400, "InvalidArgument", words);
    let asked = match ask.query("max-keys").map(|n| n.parse::<i32>()) {
        None => PAGE_MAX,
        Some(Ok(n)) if n >= 0 => usize::try_from(n).unwrap_or(PAGE_MAX).min(PAGE_MAX),
        Some(_) => return Err(invalid("Argument maxKeys must be an integer between 0 and 2147483647")),
    };
    let after = match (second, ask.query("continuation-token")) {
        (false, _) => given("marker"),
        (true, None) => given("start-after"),
        (true, Some(token)) => {
            let bytes = BASE64_URL_SAFE_NO_PAD.decode(&token).ok();
            let text = bytes.and_then(|b| String::from_utf8(b).ok());
            text.ok_or_else(|| invalid("The continuation token provided is incorrect"))?
        }
    };
    let page = match asked {
        0 => Page { objects: Vec::new(), prefixes: Vec::new(), last: None },
        max => page(store, bucket, (&prefix, &delimiter), &after, max),
    };
    let coded = encoder(ask);
    let mut body = format!("{HEAD}<ListBucketResult xmlns=\"{NAMESPACE}\">") + &tag("Name", bucket);
    body += &(tag("Prefix", &coded(&prefix)) + &tag("MaxKeys", &asked.to_string()));
    body += &tag("IsTruncated", if page.last.is_some() { "true" } else { "false" });
    for (name, value) in [("Delimiter", &delimiter), ("EncodingType", &given("encoding-type"))] {
        if !value.is_empty() {
            body += &tag(name, &coded(value));
        }
    }
    if second {
        body += &tag("KeyCount", &(page.objects.len() + page.prefixes.len()).to_string());
        ask.query("continuation-token").iter().for_each(|t| body += &tag("ContinuationToken", t));
        page.last
            .iter()
            .for_each(|l| body += &tag("NextContinuationToken", &BASE64_URL_SAFE_NO_PAD.encode(l)));
    } else {
        body += &tag("Marker", &coded(&after));
        page.last.iter().for_each(|l| body += &tag("NextMarker", &coded(l)));
    }
    for meta in &page.objects {
        body += "<Contents>";
        body += &(tag("Key", &coded(&meta.key)) + &tag("LastModified", &iso(meta.modified_ms)));
        body += &(tag("ETag", &format!("\"{}\"", meta.etag)) + &tag("Size", &meta.size.to_string()));
        body += "<StorageClass>STANDARD</StorageClass></Contents>";
    }
    for common in &page.prefixes {
        body += &format!("<CommonPrefixes>{}</CommonPrefixes>", tag("Prefix", &coded(common)));
    }
    Ok(answer(200, body + "</ListBucketResult>"))
}
