//! The registry's content: what is kept, what is garbage, and pulling from it.

use bytes::Bytes;
use image::{
    Depot, DepotError, Digest, GcHow, Images, Keyring, Limits, ManifestRef, PullConfig, Puller, Reference,
};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use testkit::image::ImageBuilder;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn open(folder: &Path) -> Depot {
    Depot::open(folder, Limits::default()).unwrap()
}

async fn blob(depot: &Depot, name: &str, bytes: &[u8]) -> Value {
    let digest = Digest::of(bytes);
    let upload = depot.begin(name).unwrap();
    let mut writing = upload.lock().await;
    writing.append(&[Bytes::copy_from_slice(bytes)]).unwrap();
    assert_eq!(depot.commit(&upload, &mut writing, &digest).unwrap().size, bytes.len() as u64);
    json!({"mediaType": "x", "digest": digest, "size": bytes.len()})
}

fn put(depot: &Depot, name: &str, reference: &str, document: &Value) -> Result<Digest, DepotError> {
    let bytes = document.to_string().into_bytes();
    let digest = Digest::of(&bytes);
    let reference = match reference {
        "" => ManifestRef::Digest(digest),
        tag => ManifestRef::parse(tag)?,
    };
    depot.put_manifest(name, &reference, None, &bytes).map(|put| put.digest)
}

fn blobs(folder: &Path) -> Vec<PathBuf> {
    let list = std::fs::read_dir(folder.join("blobs/sha256")).unwrap();
    list.map(|entry| entry.unwrap().path()).collect()
}

/// Makes everything older than any age that protects it.
fn age(folder: &Path) {
    let long_ago = SystemTime::now() - Duration::from_secs(86_400);
    for path in blobs(folder) {
        std::fs::File::open(path).unwrap().set_modified(long_ago).unwrap();
    }
}

async fn push(depot: &Depot, name: &str, tag: &str, image: &ImageBuilder) -> Digest {
    let files = image.oci_files();
    let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
    let top = index["manifests"][0]["digest"].as_str().unwrap().to_string();
    let mut manifest = Vec::new();
    for (path, bytes) in files.iter().filter(|(path, _)| path.starts_with("blobs/")) {
        match top.ends_with(path.rsplit('/').next().unwrap()) {
            true => manifest = bytes.clone(),
            false => drop(blob(depot, name, bytes).await),
        }
    }
    depot.put_manifest(name, &ManifestRef::Tag(tag.into()), Some(MANIFEST), &manifest).unwrap().digest
}

#[tokio::test]
async fn stays_over_a_restart_and_is_alone() {
    let folder = tempfile::tempdir().unwrap();
    let depot = open(folder.path());
    let config = blob(&depot, "a/b", b"{}").await;
    let manifest = json!({"mediaType": MANIFEST, "config": config, "layers": []});
    let digest = put(&depot, "a/b", "1", &manifest).unwrap();
    depot.begin("a/b").unwrap();
    assert!(Depot::open(folder.path(), Limits::default()).is_err(), "one process has the folder");
    drop(depot);
    let depot = open(folder.path());
    assert_eq!(std::fs::read_dir(folder.path().join("uploads")).unwrap().count(), 0);
    assert_eq!(depot.resolve("a/b", "1"), Some(digest.clone()));
    let back = depot.manifest("a/b", &ManifestRef::Digest(digest)).unwrap();
    assert_eq!((back.media_type.as_str(), back.bytes), (MANIFEST, manifest.to_string().into_bytes()));
    assert_eq!(depot.repositories("", 10), (vec!["a/b".to_string()], false));
}

#[tokio::test]
async fn uploads_end_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let depot = open(folder.path());
    let upload = depot.begin("a").unwrap();
    let mut writing = upload.lock().await;
    writing.append(&[Bytes::from_static(b"abc")]).unwrap();
    let wrong = depot.commit(&upload, &mut writing, &Digest::of(b"abd"));
    assert!(matches!(wrong, Err(DepotError::DigestInvalid(_))));
    assert!(depot.upload("a", &upload.id).is_err(), "a wrong digest ends it");
    let again = depot.commit(&upload, &mut writing, &Digest::of(b"abc"));
    assert!(matches!(again, Err(DepotError::UploadUnknown(_))));
    drop((writing, upload));
    assert_eq!(std::fs::read_dir(folder.path().join("uploads")).unwrap().count(), 0);
    assert!(blobs(folder.path()).is_empty());
    assert!(matches!(depot.begin("A"), Err(DepotError::NameInvalid(_))));
    let small = tempfile::tempdir().unwrap();
    let small = Depot::open(small.path(), Limits { layer_bytes: 10, ..Limits::default() }).unwrap();
    let upload = small.begin("a").unwrap();
    assert!(upload.lock().await.append(&[Bytes::from_static(b"12345678901")]).is_err());
    let many: Vec<_> = (0..300).map(|_| depot.begin("a").unwrap().id.clone()).collect();
    let left = many.iter().filter(|id| depot.upload("a", id).is_ok()).count();
    assert!((100..=128).contains(&left), "{left} uploads are open");
}

#[tokio::test]
async fn manifests_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    let depot = open(folder.path());
    let config = blob(&depot, "a", b"{}").await;
    let layer = blob(&depot, "b", b"of b").await;
    let good = json!({"mediaType": MANIFEST, "config": config, "layers": []});
    put(&depot, "a", "1", &good).unwrap();
    let foreign = json!({"mediaType": MANIFEST, "config": config, "layers": [layer]});
    assert!(
        matches!(put(&depot, "a", "1", &foreign), Err(DepotError::ManifestBlobUnknown(list)) if list.len() == 1)
    );
    assert!(depot.mount("a", &Digest::of(b"of b"), Some("b")).unwrap());
    assert!(!depot.mount("a", &Digest::of(b"none"), None).unwrap());
    put(&depot, "a", "2", &foreign).unwrap();
    let mut size = good.clone();
    size["config"]["size"] = json!(3);
    let mut kind = good.clone();
    kind["mediaType"] = json!("application/vnd.example");
    let mut both = good.clone();
    both["manifests"] = json!([]);
    let index = json!({"mediaType": INDEX, "config": config, "layers": []});
    let mut digest = good.clone();
    digest["config"]["digest"] = json!("sha512:00");
    for (n, bad) in [size, kind, both, index, digest, json!({}), json!([]), json!({"mediaType": INDEX})]
        .iter()
        .enumerate()
    {
        let refused = put(&depot, "a", "bad", bad);
        assert!(matches!(refused, Err(DepotError::ManifestInvalid(_))), "{n}: {refused:?}");
    }
    let text = good.to_string();
    let lied = depot.put_manifest("a", &ManifestRef::Tag("x".into()), Some(INDEX), text.as_bytes());
    assert!(matches!(lied, Err(DepotError::ManifestInvalid(_))));
    let other = ManifestRef::Digest(Digest::of(b"x"));
    assert!(matches!(
        depot.put_manifest("a", &other, None, text.as_bytes()),
        Err(DepotError::DigestInvalid(_))
    ));
    let long = vec![b' '; (4 << 20) + 1];
    assert!(matches!(depot.put_manifest("a", &other, None, &long), Err(DepotError::TooBig(_))));
    assert_eq!(depot.tags("a", "", 10).unwrap().0, ["1", "2"]);
    assert!(matches!(depot.remove_blob("a", &Digest::of(b"{}")), Err(DepotError::Denied(_))));
}

#[tokio::test]
async fn garbage_goes_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let depot = open(folder.path());
    let config = blob(&depot, "a", b"{}").await;
    let manifest = |note: &str| json!({"mediaType": MANIFEST, "config": config, "layers": [], "annotations": {"n": note}});
    let tagged = put(&depot, "a", "1", &manifest("tagged")).unwrap();
    let child = put(&depot, "a", "", &manifest("child")).unwrap();
    let size = manifest("child").to_string().len();
    let index = json!({"mediaType": INDEX, "manifests": [{"digest": child, "size": size}]});
    put(&depot, "a", "all", &index).unwrap();
    let mut about = manifest("about");
    about["subject"] = json!({"mediaType": MANIFEST, "digest": tagged, "size": 1});
    let about = put(&depot, "a", "", &about).unwrap();
    let lost = put(&depot, "a", "", &manifest("lost")).unwrap();
    blob(&depot, "a", b"unreferenced").await;
    assert_eq!(depot.gc(GcHow::Untagged).unwrap().blobs, 0, "all of it is young");
    age(folder.path());
    let open_file = depot.blob("a", &Digest::of(b"{}")).unwrap().file;
    age(folder.path());
    assert_eq!(depot.gc(GcHow::Unreferenced).unwrap().blobs, 1);
    assert!(depot.blob("a", &Digest::of(b"unreferenced")).is_err());
    assert!(depot.has_manifest("a", &ManifestRef::Digest(lost.clone())));
    assert_eq!(depot.gc(GcHow::Untagged).unwrap().blobs, 1);
    let stays = |digest: &Digest| depot.has_manifest("a", &ManifestRef::Digest(digest.clone()));
    assert!(stays(&tagged) && stays(&child) && stays(&about) && !stays(&lost));
    assert_eq!(depot.referrers("a", &tagged, None).unwrap().len(), 1);
    for reference in ["1", "all"] {
        depot.remove_manifest("a", &ManifestRef::parse(reference).unwrap()).unwrap();
    }
    depot.gc(GcHow::Untagged).unwrap();
    assert!(blobs(folder.path()).is_empty() && depot.repositories("", 9).0.is_empty());
    let mut text = String::new();
    std::io::Read::read_to_string(&mut &open_file, &mut text).unwrap();
    assert_eq!(text, "{}", "what is open stays readable");
}

/// A blob that two repositories have goes with the last.
#[tokio::test]
async fn shared_blobs() {
    let folder = tempfile::tempdir().unwrap();
    let depot = open(folder.path());
    blob(&depot, "a", b"x").await;
    assert!(depot.mount("b", &Digest::of(b"x"), Some("a")).unwrap());
    depot.remove_blob("a", &Digest::of(b"x")).unwrap();
    depot.gc(GcHow::Unreferenced).unwrap();
    assert!(depot.blob("a", &Digest::of(b"x")).is_err());
    assert!(depot.blob("b", &Digest::of(b"x")).is_ok());
    depot.remove_blob("b", &Digest::of(b"x")).unwrap();
    depot.gc(GcHow::Unreferenced).unwrap();
    assert!(blobs(folder.path()).is_empty());
}

#[tokio::test]
async fn pulls_from_itself() {
    let folder = tempfile::tempdir().unwrap();
    let depot = open(&folder.path().join("registry"));
    let images = Images::open(folder.path().join("images")).unwrap();
    let mut config = PullConfig::default();
    config.own.insert("localhost:5000".into());
    let puller = Puller::new(images, Some(depot.clone()), config);
    let image = |word: &str| ImageBuilder::new("x").file("word", word.as_bytes(), 0o644);
    let first = push(&depot, "web", "1", &image("one")).await;
    push(&depot, "library/nginx", "1.7.9", &image("two")).await;
    let keys = Keyring::default();
    for (name, word) in [
        ("localhost:5000/web:1", "one"),
        ("web:1", "one"),
        ("quay.io/web:1", "one"),
        ("nginx:1.7.9", "two"),
        ("localhost:5000/library/nginx:1.7.9", "two"),
    ] {
        let reference = Reference::parse(name).unwrap();
        assert!(puller.is_pushed(&reference), "{name}");
        let pulled = puller.pull(&reference, &keys).await.unwrap();
        let read = std::fs::read_to_string(pulled.lease.image().layers[0].join("word")).unwrap();
        assert_eq!(read, word, "{name}");
    }
    let own = Reference::parse("localhost:5000/web:1").unwrap();
    assert!(puller.unpacked(&own).is_some());
    push(&depot, "web", "1", &image("three")).await;
    assert!(puller.unpacked(&own).is_none(), "the name means what was pushed last");
    let pinned = Reference::parse(&format!("localhost:5000/web@{first}")).unwrap();
    assert!(puller.unpacked(&pinned).is_some());
    let absent = Reference::parse("localhost:5000/nginx:1.7.9").unwrap();
    let error = puller.pull(&absent, &keys).await.err().unwrap();
    assert_eq!(error.to_string(), "not found", "own names are not looked for elsewhere");
}

/// Pulls at the same time share layers that none of them has listed yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pulls_that_share_a_layer() {
    for _ in 0..5 {
        let folder = tempfile::tempdir().unwrap();
        let depot = open(&folder.path().join("registry"));
        let mut config = PullConfig::default();
        config.own.insert("localhost:5000".into());
        let puller =
            Puller::new(Images::open(folder.path().join("images")).unwrap(), Some(depot.clone()), config);
        let mut base = ImageBuilder::new("x");
        for n in 0..300 {
            base = base.file(&format!("f{n}"), b"shared", 0o644);
        }
        let mut pulls = tokio::task::JoinSet::new();
        for n in 0..8 {
            let image = base.clone().layer().file("own", &[n], 0o644);
            push(&depot, &format!("i{n}"), "1", &image).await;
        }
        for n in 0..8 {
            let (puller, name) = (puller.clone(), format!("localhost:5000/i{n}:1"));
            pulls.spawn(async move {
                tokio::time::sleep(Duration::from_millis(n * 3)).await;
                puller.pull(&Reference::parse(&name).unwrap(), &Keyring::default()).await.map(drop)
            });
        }
        while let Some(pulled) = pulls.join_next().await {
            pulled.unwrap().unwrap();
        }
    }
}

/// A registry takes any bytes for a layer; what is hostile in them is refused when a container needs them.
#[tokio::test]
async fn hostile_layers_that_were_pushed() {
    let folder = tempfile::tempdir().unwrap();
    let depot = open(&folder.path().join("registry"));
    let store = folder.path().join("images");
    let mut config = PullConfig::default();
    config.own.insert("localhost:5000".into());
    let puller = Puller::new(Images::open(&store).unwrap(), Some(depot.clone()), config);
    let escape = |kind: tar::EntryType, path: &str, link: &str| {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(0);
        header.set_cksum();
        let mut builder = tar::Builder::new(Vec::new());
        builder.append(&header, &b""[..]).unwrap();
        builder.into_inner().unwrap()
    };
    let rows = [
        ("up", escape(tar::EntryType::Regular, "../../up", ""), "`..` in its path"),
        ("hard", escape(tar::EntryType::Link, "x", "../../../etc/passwd"), "`..` in its path"),
        ("out", escape(tar::EntryType::Link, "x", "/etc/passwd"), "layer entry \"x\" refused"),
        ("cut", vec![7; 700], "bad tar stream"),
    ];
    for (tag, layer, words) in rows {
        push(&depot, "evil", tag, &ImageBuilder::new("x").raw(layer)).await;
        let reference = Reference::parse(&format!("localhost:5000/evil:{tag}")).unwrap();
        let error = puller.pull(&reference, &Keyring::default()).await.err().unwrap().to_string();
        assert!(error.contains(words), "{tag}: {error}");
        for part in ["layers", "tmp", "blobs/sha256"] {
            assert_eq!(std::fs::read_dir(store.join(part)).unwrap().count(), 0, "{tag}: {part}");
        }
    }
    assert!(!folder.path().join("up").exists() && puller.images().list().is_empty());
}

#[tokio::test]
async fn room_is_made_by_the_longest_unused() {
    let folder = tempfile::tempdir().unwrap();
    let images = Images::open(folder.path()).unwrap();
    let load = |name: &str| {
        let archive = ImageBuilder::new(name).file(name, &vec![1; 1 << 20], 0o644).docker_archive();
        images.load_reader(&archive[..], &|_| {}).unwrap();
    };
    ["a", "b", "c"].into_iter().for_each(load);
    let held = images.lease("c").unwrap();
    drop(images.lease("a"));
    assert_eq!(images.free(1, Duration::from_secs(60)).unwrap(), 0, "too young");
    drop(images.lease("b"));
    images.free(1, Duration::ZERO).unwrap();
    let left = |name: &str| images.get(name).is_some();
    assert!(!left("a") && left("b") && left("c"), "a was used before b");
    images.free(u64::MAX, Duration::ZERO).unwrap();
    assert!(!left("b") && left("c"), "c is in use");
    drop(held);
}
