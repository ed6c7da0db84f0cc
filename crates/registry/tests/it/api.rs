//! Manifests, lists, deletion, ranges, and what is not part of the API.

use crate::http::{Bench, Reply};
use serde_json::{Value, json};
use testkit::image::digest;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// An image without layers; `note` makes it another one.
fn manifest(bench: &Bench, name: &str, note: &str) -> Value {
    let config = bench.push(name, b"{}");
    json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "annotations": {"note": note},
        "config": {"mediaType": "application/vnd.example.config", "digest": config, "size": 2}, "layers": [],
    })
}

fn put(bench: &Bench, path: &str, kind: &str, document: &Value) -> Reply {
    bench.ask("PUT", path, &[("content-type", kind)], document.to_string().as_bytes())
}

#[test]
fn base_and_strangers() {
    let bench = Bench::new();
    let reply = bench.get("/v2/");
    assert_eq!((reply.status, reply.header("docker-distribution-api-version")), (200, "registry/2.0"));
    assert_eq!(bench.get("/").error(), (404, "UNSUPPORTED".into()));
    assert_eq!(bench.ask("PATCH", "/v2/a/tags/list", &[], b"").error(), (405, "UNSUPPORTED".into()));
    assert_eq!(bench.get("/v2/A/tags/list").error(), (400, "NAME_INVALID".into()));
    assert_eq!(bench.get("/v2/none/tags/list").error(), (404, "NAME_UNKNOWN".into()));
    assert_eq!(bench.get("/v2/none/manifests/1").error(), (404, "MANIFEST_UNKNOWN".into()));
    let head = bench.ask("HEAD", "/v2/none/manifests/1", &[], b"");
    assert_eq!((head.status, head.body.len()), (404, 0));
}

#[test]
fn manifests_byte_for_byte() {
    let bench = Bench::new();
    let document = manifest(&bench, "a", "");
    // Spaces of its own: no other spelling comes back.
    let text = format!(" {document}\n");
    let reply = bench.ask("PUT", "/v2/a/manifests/1", &[("content-type", MANIFEST)], text.as_bytes());
    assert_eq!(
        (reply.status, reply.header("docker-content-digest")),
        (201, digest(text.as_bytes()).as_str())
    );
    for path in ["/v2/a/manifests/1", reply.header("location")] {
        let back = bench.get(path);
        assert_eq!(
            (back.status, back.header("content-type"), back.body.as_slice()),
            (200, MANIFEST, text.as_bytes())
        );
        let head = bench.ask("HEAD", path, &[], b"");
        assert_eq!(head.header("content-length"), text.len().to_string());
        assert_eq!(head.header("docker-content-digest"), digest(text.as_bytes()));
    }
    let mut docker = document.clone();
    docker["mediaType"] = json!(DOCKER);
    assert_eq!(put(&bench, "/v2/a/manifests/2", DOCKER, &docker).status, 201);
    let list = json!({"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.list.v2+json",
        "manifests": [{"mediaType": DOCKER, "digest": digest(docker.to_string().as_bytes()), "size": docker.to_string().len()}]});
    let kind = list["mediaType"].as_str().unwrap();
    assert_eq!(put(&bench, "/v2/a/manifests/all", kind, &list).status, 201);
    assert_eq!(bench.get("/v2/a/manifests/all").header("content-type"), kind);
}

#[test]
fn hostile_manifests() {
    let bench = Bench::new();
    let good = manifest(&bench, "a", "");
    let code = |reply: Reply| reply.error();
    let invalid = (400, "MANIFEST_INVALID".to_string());
    assert_eq!(code(put(&bench, "/v2/a/manifests/1", "text/plain", &good)), invalid);
    assert_eq!(code(put(&bench, "/v2/a/manifests/1", INDEX, &good)), invalid);
    let mut both = good.clone();
    both["manifests"] = json!([]);
    assert_eq!(code(put(&bench, "/v2/a/manifests/1", MANIFEST, &both)), invalid);
    let unknown = json!({"schemaVersion": 1, "name": "a", "fsLayers": []});
    assert_eq!(
        code(put(
            &bench,
            "/v2/a/manifests/1",
            "application/vnd.docker.distribution.manifest.v1+json",
            &unknown
        )),
        invalid
    );
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let reply = bench.ask("PUT", "/v2/a/manifests/1", &[("content-type", MANIFEST)], deep.as_bytes());
    assert_eq!(code(reply), invalid);
    let giant = vec![b' '; (4 << 20) + 1];
    let reply = bench.ask("PUT", "/v2/a/manifests/1", &[("content-type", MANIFEST)], &giant);
    assert_eq!(code(reply), (413, "SIZE_INVALID".into()));
    let mut missing = good.clone();
    missing["layers"] = json!([{"digest": digest(b"no"), "size": 2}]);
    let reply = put(&bench, "/v2/a/manifests/1", MANIFEST, &missing);
    assert_eq!(reply.json()["errors"][0]["detail"]["digest"], digest(b"no"));
    assert_eq!(code(reply), (400, "MANIFEST_BLOB_UNKNOWN".into()));
    let other = format!("/v2/a/manifests/{}", digest(b"other"));
    assert_eq!(code(put(&bench, &other, MANIFEST, &good)), (400, "DIGEST_INVALID".into()));
    // A blob of another repository is not this one's.
    assert_eq!(
        code(put(&bench, "/v2/b/manifests/1", MANIFEST, &good)),
        (400, "MANIFEST_BLOB_UNKNOWN".into())
    );
    assert_eq!(bench.get("/v2/a/tags/list").json()["tags"], json!([]));
}

#[test]
fn pages() {
    let bench = Bench::new();
    let document = manifest(&bench, "a", "");
    for tag in ["c", "a", "b", "A"] {
        assert_eq!(put(&bench, &format!("/v2/a/manifests/{tag}"), MANIFEST, &document).status, 201);
    }
    manifest(&bench, "b/c", "");
    let list = |path: &str| {
        let reply = bench.get(path);
        (reply.json(), reply.header("link").to_string())
    };
    assert_eq!(list("/v2/a/tags/list"), (json!({"name": "a", "tags": ["A", "a", "b", "c"]}), String::new()));
    let (first, link) = list("/v2/a/tags/list?n=2");
    assert_eq!(first["tags"], json!(["A", "a"]));
    let next = link.strip_prefix('<').unwrap().split('>').next().unwrap();
    assert_eq!(list(next), (json!({"name": "a", "tags": ["b", "c"]}), String::new()));
    assert_eq!(list("/v2/a/tags/list?n=0").0["tags"], json!([]));
    assert_eq!(bench.get("/v2/a/tags/list?n=-1").error(), (400, "PAGINATION_NUMBER_INVALID".into()));
    let (catalog, link) = list("/v2/_catalog?n=1");
    assert_eq!(catalog, json!({"repositories": ["a"]}));
    assert!(link.contains("last=a>; rel=\"next\""), "{link}");
    assert_eq!(list("/v2/_catalog?last=a").0, json!({"repositories": ["b/c"]}));
}

#[test]
fn referrers() {
    let bench = Bench::new();
    let subject = manifest(&bench, "a", "subject");
    let subject_digest = digest(subject.to_string().as_bytes());
    let path = format!("/v2/a/referrers/{subject_digest}");
    assert_eq!(bench.get(&path).json()["manifests"], json!([]));
    for (kind, note) in [("application/x-sbom", "one"), ("", "two")] {
        let mut about = manifest(&bench, "a", note);
        about["subject"] = json!({"mediaType": MANIFEST, "digest": subject_digest, "size": 1});
        if !kind.is_empty() {
            about["artifactType"] = json!(kind);
        }
        let path = format!("/v2/a/manifests/{}", digest(about.to_string().as_bytes()));
        let reply = put(&bench, &path, MANIFEST, &about);
        assert_eq!((reply.status, reply.header("oci-subject")), (201, subject_digest.as_str()));
    }
    put(&bench, "/v2/a/manifests/1", MANIFEST, &subject);
    let reply = bench.get(&path);
    assert_eq!((reply.header("content-type"), reply.json()["mediaType"].as_str()), (INDEX, Some(INDEX)));
    let rows = reply.json()["manifests"].as_array().unwrap().clone();
    let mut kinds: Vec<&str> = rows.iter().filter_map(|r| r["artifactType"].as_str()).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["application/vnd.example.config", "application/x-sbom"]);
    let reply = bench.get(&format!("{path}?artifactType=application%2Fx-sbom"));
    assert_eq!(reply.header("oci-filters-applied"), "artifactType");
    let rows = reply.json()["manifests"].clone();
    assert_eq!((rows.as_array().unwrap().len(), &rows[0]["annotations"]["note"]), (1, &json!("one")));
    assert_eq!(bench.get("/v2/a/referrers/x").error(), (400, "DIGEST_INVALID".into()));
}

#[test]
fn deletion() {
    let bench = Bench::new();
    let document = manifest(&bench, "a", "");
    for tag in ["1", "2"] {
        put(&bench, &format!("/v2/a/manifests/{tag}"), MANIFEST, &document);
    }
    let delete = |path: &str| bench.ask("DELETE", path, &[], b"");
    let blob = format!("/v2/a/blobs/{}", digest(b"{}"));
    assert_eq!(delete(&blob).error(), (403, "DENIED".into()));
    assert_eq!(delete("/v2/a/manifests/1").status, 202);
    assert_eq!(delete("/v2/a/manifests/1").error(), (404, "MANIFEST_UNKNOWN".into()));
    assert_eq!(bench.get("/v2/a/manifests/2").status, 200);
    let by_digest = format!("/v2/a/manifests/{}", digest(document.to_string().as_bytes()));
    assert_eq!(delete(&by_digest).status, 202);
    assert_eq!(bench.get("/v2/a/manifests/2").status, 404);
    assert_eq!(delete(&blob).status, 202);
    assert_eq!(delete(&blob).status, 404);
}

#[test]
fn parts_of_blobs() {
    let bench = Bench::new();
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let path = format!("/v2/a/blobs/{}", bench.push("a", &bytes));
    assert_eq!(bench.get(&path).body, bytes);
    let part = |range: &str| bench.ask("GET", &path, &[("range", range)], b"");
    let reply = part("bytes=5-1500000");
    assert_eq!((reply.status, reply.header("content-range")), (206, "bytes 5-1500000/3000000"));
    assert_eq!(reply.body, bytes[5..=1_500_000]);
    assert_eq!(part("bytes=-10").body, bytes[bytes.len() - 10..]);
    let none = part("bytes=3000000-");
    assert_eq!((none.status, none.header("content-range")), (416, "bytes */3000000"));
    assert_eq!(part("bytes=0-1,3-4").status, 200);
}
