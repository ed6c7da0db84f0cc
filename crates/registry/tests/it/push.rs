//! Uploads in every form, cut off at any byte, hostile.

use crate::http::{Bench, Reply, head};
use image::Limits;
use proptest::prelude::*;
use std::io::Write;
use std::time::{Duration, Instant};
use testkit::image::digest;

fn begin(bench: &Bench, name: &str) -> String {
    let reply = bench.ask("POST", &format!("/v2/{name}/blobs/uploads/"), &[], b"");
    assert_eq!((reply.status, reply.header("range")), (202, "0-0"), "{reply:?}");
    assert!(!reply.header("docker-upload-uuid").is_empty());
    reply.header("location").to_string()
}

fn finish(bench: &Bench, at: &str, bytes: &[u8], rest: &[u8]) -> Reply {
    bench.ask("PUT", &format!("{at}?digest={}", digest(bytes).replace(':', "%3A")), &[], rest)
}

#[test]
fn whole_in_one_and_in_two_requests() {
    let bench = Bench::new();
    let one = bench.push("a/b", b"in one");
    let at = begin(&bench, "a/b");
    let reply = finish(&bench, &at, b"in two", b"in two");
    assert_eq!((reply.status, reply.header("docker-content-digest")), (201, digest(b"in two").as_str()));
    let back = bench.get(reply.header("location"));
    assert_eq!((back.status, back.body.as_slice()), (200, &b"in two"[..]));
    let back = bench.ask("HEAD", &format!("/v2/a/b/blobs/{one}"), &[], b"");
    assert_eq!((back.status, back.header("content-length")), (200, "6"));
    assert_eq!(bench.get(&at).error(), (404, "BLOB_UPLOAD_UNKNOWN".into()));
    let empty = bench.push("a/b", b"");
    assert_eq!(bench.get(&format!("/v2/a/b/blobs/{empty}")).body, b"");
}

#[test]
fn chunks_in_order_and_out_of_it() {
    let bench = Bench::new();
    let at = begin(&bench, "a");
    let chunk = |range: &str, bytes: &[u8]| bench.ask("PATCH", &at, &[("content-range", range)], bytes);
    let reply = chunk("0-2", b"abc");
    assert_eq!((reply.status, reply.header("range")), (202, "0-2"));
    for range in ["0-2", "4-6"] {
        let reply = chunk(range, b"def");
        assert_eq!((reply.error(), reply.header("range")), ((416, "BLOB_UPLOAD_INVALID".into()), "0-2"));
    }
    assert_eq!(chunk("3-9", b"def").status, 400);
    let reply = bench.get(&at);
    assert_eq!((reply.status, reply.header("range"), reply.header("location")), (204, "0-2", at.as_str()));
    assert_eq!(bench.ask("PATCH", &at, &[], b"def").header("range"), "0-5");
    let last = [("content-range", "6-7")];
    let path = format!("{at}?digest={}", digest(b"abcdefgh"));
    assert_eq!(bench.ask("PUT", &path, &last, b"gh").status, 201);
    assert_eq!(bench.get(&format!("/v2/a/blobs/{}", digest(b"abcdefgh"))).body, b"abcdefgh");
    let other = begin(&bench, "a").replace("/v2/a/", "/v2/b/");
    assert_eq!(bench.get(&other).error(), (404, "BLOB_UPLOAD_UNKNOWN".into()), "of another repository");
}

#[test]
fn wrong_digests_leave_nothing() {
    let bench = Bench::new();
    let at = begin(&bench, "a");
    bench.ask("PATCH", &at, &[], b"abc");
    assert_eq!(finish(&bench, &at, b"abd", b"").error(), (400, "DIGEST_INVALID".into()));
    assert_eq!(bench.get(&at).status, 404);
    let wrong = format!("/v2/a/blobs/uploads/?digest={}", digest(b"x"));
    assert_eq!(bench.ask("POST", &wrong, &[], b"y").error(), (400, "DIGEST_INVALID".into()));
    for bad in ["", "?digest=", "?digest=sha512:00", "?digest=sha256:../../x"] {
        let at = begin(&bench, "a");
        assert_eq!(
            bench.ask("PUT", &format!("{at}{bad}"), &[], b"x").error(),
            (400, "DIGEST_INVALID".into())
        );
        assert_eq!(bench.ask("DELETE", &at, &[], b"").status, 204);
    }
    assert_eq!((bench.files("uploads"), bench.files("blobs/sha256"), bench.files("repositories")), (0, 0, 0));
}

#[test]
fn mounts_across_repositories() {
    let bench = Bench::new();
    let known = bench.push("from", b"shared");
    let mount = |query: &str| bench.ask("POST", &format!("/v2/to/blobs/uploads/?{query}"), &[], b"");
    assert_eq!(mount(&format!("mount={}&from=from", digest(b"none"))).status, 202);
    assert_eq!(mount(&format!("mount={known}&from=other")).status, 202);
    assert_eq!(bench.get(&format!("/v2/to/blobs/{known}")).error(), (404, "BLOB_UNKNOWN".into()));
    assert_eq!(mount(&format!("mount={known}&from=from")).status, 201);
    assert_eq!(bench.get(&format!("/v2/to/blobs/{known}")).body, b"shared");
    assert_eq!(mount(&format!("mount={known}&from=A")).error(), (400, "NAME_INVALID".into()));
    assert_eq!(mount("mount=x&from=from").error(), (400, "DIGEST_INVALID".into()));
}

#[test]
fn limits_answer_and_leave_nothing() {
    let bench = Bench::with(Limits { layer_bytes: 1 << 20, ..Limits::default() });
    let big = vec![7; (1 << 20) + 1];
    let at = begin(&bench, "a");
    assert_eq!(bench.ask("PATCH", &at, &[], &big).error(), (413, "SIZE_INVALID".into()));
    assert_eq!(bench.get(&at).status, 404);
    let full = Bench::with(Limits { free_floor_bytes: u64::MAX / 2, ..Limits::default() });
    let at = begin(&full, "a");
    assert_eq!(full.ask("PATCH", &at, &[], b"x").status, 507);
    for bench in [bench, full] {
        assert_eq!((bench.files("uploads"), bench.files("blobs/sha256")), (0, 0));
    }
}

/// Waits until the registry has seen that the client is gone, and says where the upload stands.
fn standing(bench: &Bench, at: &str, least: usize) -> usize {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let reply = bench.get(at);
        assert_eq!(reply.status, 204, "{reply:?}");
        let last: usize = reply.header("range").strip_prefix("0-").unwrap().parse().unwrap();
        let offset = if last == 0 { 0 } else { last + 1 };
        if offset >= least || Instant::now() > deadline {
            return offset;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// A push that is cut off at any byte, as often as one likes, goes on where it stopped; or leaves nothing.
    #[test]
    fn cut_off_pushes_resume(size in 1usize..300_000, cuts in proptest::collection::vec(0.0f64..1.0, 0..4), chunked: bool) {
        let bench = Bench::new();
        let bytes: Vec<u8> = (0..size).map(|n| (n * 31 % 251) as u8).collect();
        let at = begin(&bench, "cut");
        let mut offset = 0;
        for cut in cuts {
            let rest = &bytes[offset..];
            let sent = (rest.len() as f64 * cut) as usize;
            let mut stream = bench.connect();
            let range = format!("{offset}-{}", bytes.len() - 1);
            let headers: &[(&str, &str)] = if chunked { &[("content-range", &range)] } else { &[] };
            // `0-0` may mean one byte or none: the API has no other word for either.
            if rest.is_empty() || offset + sent == 1 {
                continue;
            }
            stream.write_all(head("PATCH", &at, headers, rest.len()).as_bytes()).unwrap();
            stream.write_all(&rest[..sent]).unwrap();
            drop(stream);
            let now = standing(&bench, &at, offset + sent);
            prop_assert_eq!(now, offset + sent);
            offset = now;
        }
        prop_assert_eq!(finish(&bench, &at, &bytes, &bytes[offset..]).status, 201);
        prop_assert_eq!(bench.get(&format!("/v2/cut/blobs/{}", digest(&bytes))).body, bytes);
        prop_assert_eq!((bench.files("uploads"), bench.files("blobs/sha256")), (0, 1));
    }
}

/// Cut off in the one request that was to do it all: nothing stays.
#[test]
fn a_cut_off_whole_push_leaves_nothing() {
    let bench = Bench::new();
    let bytes = vec![5; 2 << 20];
    for sent in [0, 1, 1 << 20, (2 << 20) - 1] {
        let mut stream = bench.connect();
        let path = format!("/v2/a/blobs/uploads/?digest={}", digest(&bytes));
        stream.write_all(head("POST", &path, &[], bytes.len()).as_bytes()).unwrap();
        stream.write_all(&bytes[..sent]).unwrap();
        drop(stream);
    }
    let deadline = Instant::now() + Duration::from_secs(120);
    while bench.files("uploads") > 0 {
        assert!(Instant::now() < deadline, "uploads stay");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(bench.files("blobs/sha256"), 0);
}
