//! Requests as clients send them, over a store in a folder.

use super::*;
use bytes::Bytes;

fn ask(method: &str, at: &str, headers: &[(&str, &str)], body: &'static [u8]) -> Ask {
    let (path, query) = at.split_once('?').unwrap_or((at, ""));
    let own = |(n, v): &(&str, &str)| (n.to_string(), v.to_string());
    Ask {
        method: method.into(),
        path: path.into(),
        query: query.into(),
        headers: headers.iter().map(own).collect(),
        body: Bytes::from_static(body),
        account: "1".into(),
        region: "eu-west-1".into(),
        now_ms: 1_795_176_000_250,
    }
}

fn told(store: &Store, ask: &Ask) -> (u16, String) {
    match run(store, ask) {
        Ok(reply) => (reply.status, String::from_utf8(reply.body).unwrap()),
        Err(error) => (error.status, error.code),
    }
}

fn world() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_path_buf()).unwrap();
    assert_eq!(told(&store, &ask("PUT", "/conf", &[], b"")).0, 200);
    (folder, store)
}

#[test]
fn buckets_have_rules() {
    let (_folder, store) = world();
    let code = |method: &str, at: &str| told(&store, &ask(method, at, &[], b""));
    assert_eq!(code("PUT", "/conf"), (409, "BucketAlreadyOwnedByYou".into()));
    for bad in ["/Upper", "/ab", "/-ab", "/10.0.0.1", "/a..b"] {
        assert_eq!(code("PUT", bad), (400, "InvalidBucketName".into()), "{bad}");
    }
    assert_eq!(code("GET", "/none"), (404, "NoSuchBucket".into()));
    assert!(code("GET", "/").1.contains("<Name>conf</Name><CreationDate>2026-11-20T12:00:00.250Z"));
    assert!(code("GET", "/conf?location").1.contains(">eu-west-1<"));
    for more in ["/conf?versioning", "/conf/x?acl", "/conf/x?partNumber=1&uploadId=2"] {
        assert_eq!(code("GET", more), (501, "NotImplemented".into()), "{more}");
    }
    let stranger = Ask { account: "2".into(), ..ask("GET", "/conf", &[], b"") };
    assert_eq!(told(&store, &stranger), (403, "AccessDenied".into()));
    assert_eq!(told(&store, &Ask { method: "PUT".into(), ..stranger }), (409, "BucketAlreadyExists".into()));
}

#[test]
fn objects_come_and_go() {
    let (_folder, store) = world();
    let put = |at: &str, headers: &[(&str, &str)]| told(&store, &ask("PUT", at, headers, b"123456789"));
    assert_eq!(
        put("/conf/a%20b/%C3%BC", &[("x-amz-checksum-crc32", "y/Q5Jg=="), ("x-amz-meta-who", "me")]).0,
        200
    );
    assert_eq!(put("/conf/x", &[("x-amz-checksum-crc32", "AAAAAA==")]), (400, "BadDigest".into()));
    assert_eq!(put("/conf/a%20b/%C3%BC", &[("if-none-match", "*")]), (412, "PreconditionFailed".into()));
    // The bucket in the host's name.
    let host = [("host", "conf.localhost:4566"), ("range", "bytes=2-4")];
    let reply = run(&store, &ask("GET", "/a%20b/%C3%BC", &host, b"")).unwrap();
    assert_eq!((reply.status, reply.body.as_slice()), (206, b"345".as_slice()));
    let head =
        run(&store, &ask("HEAD", "/conf/a%20b/%C3%BC", &[("x-amz-checksum-mode", "ENABLED")], b"")).unwrap();
    let header = |name: &str| head.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    assert_eq!(header("content-length"), Some("9"));
    assert_eq!(header("etag"), Some("\"25f9e794323b453885f5181f1b624d0b\""));
    assert_eq!(header("x-amz-meta-who"), Some("me"));
    assert_eq!(header("x-amz-checksum-crc32"), Some("y/Q5Jg=="));
    assert_eq!(header("last-modified"), Some("Fri, 20 Nov 2026 12:00:00 GMT"));
    assert_eq!(put("/conf/copy", &[("x-amz-copy-source", "conf/a%20b/%C3%BC")]).0, 200);
    assert_eq!(told(&store, &ask("GET", "/conf/copy", &[], b"")), (200, "123456789".into()));
    assert_eq!(told(&store, &ask("DELETE", "/conf", &[], b"")), (409, "BucketNotEmpty".into()));
    for key in ["/conf/copy", "/conf/a%20b/%C3%BC", "/conf/never"] {
        assert_eq!(told(&store, &ask("DELETE", key, &[], b"")).0, 204);
    }
    assert_eq!(told(&store, &ask("GET", "/conf/copy", &[], b"")), (404, "NoSuchKey".into()));
    assert_eq!(told(&store, &ask("DELETE", "/conf", &[], b"")).0, 204);
}

/// Every key and prefix, page by page.
fn pages(store: &Store, query: &str, max: usize) -> Vec<String> {
    let (mut out, mut token) = (Vec::new(), String::new());
    loop {
        let at = format!("/conf?list-type=2&max-keys={max}&{query}{token}");
        let (status, body) = told(store, &ask("GET", &at, &[], b""));
        assert_eq!(status, 200, "{body}");
        let texts = |from: &str| {
            let parts = body.split(from).skip(1).map(|p| p.split('<').next().unwrap().to_string());
            parts.collect::<Vec<_>>()
        };
        let (keys, prefixes) = (texts("<Contents><Key>"), texts("<CommonPrefixes><Prefix>"));
        assert!(keys.len() + prefixes.len() <= max);
        out.extend(keys.into_iter().chain(prefixes));
        match texts("<NextContinuationToken>").first() {
            Some(next) => token = format!("&continuation-token={next}"),
            None => return out,
        }
    }
}

#[test]
fn lists_are_whole_whatever_the_page() {
    let (_folder, store) = world();
    for key in ["a", "d/1", "d/2", "d/e/3", "f/4", "z"] {
        assert_eq!(told(&store, &ask("PUT", &format!("/conf/{key}"), &[], b"")).0, 200);
    }
    for max in 1..8 {
        let sorted = |query: &str| {
            let mut all = pages(&store, query, max);
            all.sort();
            all
        };
        assert_eq!(sorted(""), ["a", "d/1", "d/2", "d/e/3", "f/4", "z"], "{max}");
        assert_eq!(sorted("delimiter=%2F"), ["a", "d/", "f/", "z"], "{max}");
        assert_eq!(sorted("prefix=d%2F&delimiter=%2F"), ["d/1", "d/2", "d/e/"], "{max}");
        assert_eq!(sorted("start-after=d%2F2"), ["d/e/3", "f/4", "z"], "{max}");
    }
}
