//! Pulls from registries of every character: honest, guarded, moving, broken, hostile.

use crate::fake::{Answer, Body, Content, Fake, MANIFEST, Request};
use image::{Images, Keyring, Limits, Platform, PullConfig, Pulled, Puller, Reference};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use stdx::backoff::Backoff;
use testkit::image::{ImageBuilder, digest, gzip};

/// Nothing takes longer on a healthy machine, however busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where nobody listens. (A port that was free a moment ago may be another test's now.)
const NOBODY: &str = "127.0.0.1:1";

struct Bench {
    folder: tempfile::TempDir,
    puller: Puller,
}

fn quick() -> PullConfig {
    let millisecond = Duration::from_millis(1);
    let retry = Backoff { base: millisecond, factor: 1, max: millisecond };
    let mut config = PullConfig::default();
    config.retry = retry;
    config
}

/// Gives up soon, by these deadlines for an answer and for a look at a body's pace.
fn impatient(answer: Duration, window: Duration) -> Bench {
    let config = quick().with_deadlines(PATIENCE, answer, window);
    Bench::with(config, Limits::default())
}

impl Bench {
    fn new() -> Bench {
        Bench::with(quick(), Limits::default())
    }

    fn with(config: PullConfig, limits: Limits) -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let host = Platform { architecture: "amd64".into(), os: "linux".into(), variant: String::new() };
        let images = Images::open_with(folder.path().join("store"), limits, host).unwrap();
        Bench { folder, puller: Puller::new(images, None, config) }
    }

    async fn pull(&self, image: &str) -> Result<Pulled, String> {
        self.pull_with(image, &Keyring::default()).await
    }

    async fn pull_with(&self, image: &str, keys: &Keyring) -> Result<Pulled, String> {
        let reference = Reference::parse(image).unwrap();
        self.puller.pull(&reference, keys).await.map_err(|e| e.to_string())
    }

    /// The pull fails soon, with these words, and leaves nothing.
    async fn refused(&self, image: &str, words: &str) {
        let begun = Instant::now();
        let Err(error) = self.pull(image).await else { panic!("{words}: it was taken") };
        assert!(error.contains(words), "{words:?} not in {error:?}");
        assert!(begun.elapsed() < PATIENCE, "{words}: too slow");
        for part in ["layers", "tmp", "blobs/sha256"] {
            let left: Vec<_> =
                std::fs::read_dir(self.folder.path().join("store").join(part)).unwrap().collect();
            assert!(left.is_empty(), "{words}: {part} holds {left:?}");
        }
        assert!(self.puller.images().list().is_empty());
    }
}

/// An image with a layer that does not compress.
fn web() -> ImageBuilder {
    let noise: Vec<u8> =
        (0..300_000u64).flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()).collect();
    ImageBuilder::new("web:1")
        .architecture("amd64")
        .file("noise", &noise, 0o644)
        .layer()
        .file("a", b"a", 0o644)
}

fn honest(content: &Content) -> Fake {
    let content = content.clone();
    Fake::start(move |request| content.answer(request))
}

#[tokio::test]
async fn an_honest_registry() {
    let (bench, fake) = (Bench::new(), honest(&Content::of(&web(), "1")));
    let name = fake.image("team/web:1");
    let pulled = bench.pull(&name).await.unwrap();
    let image = pulled.lease.image();
    assert_eq!((image.id.as_str(), image.names.as_slice()), (web().id().as_str(), &[name.clone()][..]));
    assert_eq!(image.layers.len(), 2);
    assert!(bench.puller.images().was_pulled(&Reference::parse(&name).unwrap()));
    let blobs = fake.count("/blobs/");
    bench.pull(&name).await.unwrap();
    assert_eq!(fake.count("/blobs/"), blobs + 1, "the second time only the config is asked for");
    let pinned = format!("{}@{}", fake.image("team/web"), image.digests[0].split('@').nth(1).unwrap());
    assert!(bench.puller.unpacked(&Reference::parse(&pinned).unwrap()).is_some());
    let error = bench.pull(&fake.image("team/web:2")).await.err().unwrap();
    assert_eq!(error, "not found");
    // A name that is loaded by hand is this node's own again.
    let archive = ImageBuilder::new(&name).file("x", b"x", 0o644).docker_archive();
    bench.puller.images().load_reader(&archive[..], &|_| {}).unwrap();
    assert!(!bench.puller.images().was_pulled(&Reference::parse(&name).unwrap()));
}

#[tokio::test]
async fn an_index_and_zstd() {
    let layer = ImageBuilder::new("").file("z", b"zstd", 0o644).docker_archive();
    let packed = ruzstd::encoding::compress_to_vec(&layer[..], ruzstd::encoding::CompressionLevel::Fastest);
    let mut content = Content::default();
    let mut manifests = Vec::new();
    for architecture in ["arm64", "amd64"] {
        let config = json!({"architecture": architecture, "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]}});
        let config = content.blob(config.to_string().as_bytes());
        let layers = [content.blob(&packed)];
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        let mut row = content.manifest(manifest.to_string().as_bytes(), architecture);
        row["platform"] = json!({"architecture": architecture, "os": "linux"});
        manifests.push(row);
    }
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests});
    let index = content.manifest(index.to_string().as_bytes(), "1");
    let (bench, fake) = (Bench::new(), honest(&content));
    let pulled = bench.pull(&fake.image("multi:1")).await.unwrap();
    let image = pulled.lease.image();
    assert_eq!(image.platform.architecture, "amd64");
    let wanted = format!("{}@{}", fake.image("multi"), index["digest"].as_str().unwrap());
    assert_eq!(image.digests, [wanted], "the index is what the name means");
}

/// A guarded registry: a token for a name and password, blobs elsewhere.
#[tokio::test]
async fn tokens_and_redirects_keep_credentials_at_home() {
    let content = Content::of(&web(), "1");
    let elsewhere = honest(&content);
    let own = Arc::new(Mutex::new(String::new()));
    let (at, there) = (own.clone(), elsewhere.address);
    let fake = Fake::start(move |request: &Request| {
        let pass = request.headers.get("authorization").map(String::as_str).unwrap_or_default();
        if request.path.starts_with("/token?") {
            let wanted = "/token?service=s%20x&scope=repository:web:pull";
            return match (request.path.as_str() == wanted, pass) {
                (true, "Basic dXNlcjpwdw==") => Answer::ok(br#"{"token": "", "access_token": "T"}"#),
                _ => Answer::status(403),
            };
        }
        if pass != "Bearer T" {
            let realm = format!(r#"Bearer realm="http://{}/token",service="s x""#, at.lock().unwrap());
            return Answer::status(401).with("www-authenticate", &realm);
        }
        match request.path.contains("/blobs/") {
            true => Answer::status(307).with("location", &format!("http://{there}{}", request.path)),
            false => content.answer(request),
        }
    });
    *own.lock().unwrap() = fake.address.to_string();
    let mut keys = Keyring::default();
    let config = json!({"auths": {format!("127.0.0.1:{}", fake.address.port()): {"auth": "dXNlcjpwdw=="}}});
    keys.add_config_json(config.to_string().as_bytes()).unwrap();
    let bench = Bench::new();
    let error = bench.pull(&fake.image("web:1")).await.err().unwrap();
    assert!(error.contains("failed to fetch anonymous token"), "{error}");
    bench.pull_with(&fake.image("web:1"), &keys).await.unwrap();
    let seen = elsewhere.log.lock().unwrap();
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|r| !r.headers.contains_key("authorization")), "{seen:?}");
    assert_eq!(fake.count("/token"), 2, "one token serves the whole pull");
}

#[tokio::test]
async fn basic_credentials_are_tried_in_turn() {
    let content = Content::of(&web(), "1");
    let fake = Fake::start(move |request: &Request| {
        match request.headers.get("authorization").map(String::as_str) {
            Some("Basic Z29vZDpw") => content.answer(request),
            _ => Answer::status(401)
                .with("www-authenticate", "Basic realm=\"x\"")
                .body(Body::Whole(br#"{"errors":[{"code":"UNAUTHORIZED","message":"who?"}]}"#.to_vec())),
        }
    });
    let mut keys = Keyring::default();
    let host = format!("127.0.0.1:{}", fake.address.port());
    let row = |user: &str| json!({"username": user, "password": "p"});
    let bad = json!({"auths": {&host: row("bad")}});
    let bench = Bench::new();
    let error = bench.pull(&fake.image("web:1")).await.err().unwrap();
    assert!(error.contains("no basic auth credentials"), "{error}");
    keys.add_config_json(bad.to_string().as_bytes()).unwrap();
    let error = bench.pull_with(&fake.image("web:1"), &keys).await.err().unwrap();
    assert!(error.contains("pull access denied") && error.contains("unauthorized: who?"), "{error}");
    let others = keys.clone();
    keys.add_config_json(json!({"auths": {&host: row("good")}}).to_string().as_bytes()).unwrap();
    let pulled = bench.pull_with(&fake.image("web:1"), &keys).await.unwrap();
    // From now on the image is for whoever has these.
    let name = Reference::parse(&fake.image("web:1")).unwrap();
    let may = |keys: &Keyring, name: Option<&Reference>| {
        pulled.lease.image().is_for(name, &keys.marks(&Reference::parse(&fake.image("web:1")).unwrap()))
    };
    assert!(may(&keys, Some(&name)) && !may(&others, Some(&name)) && !may(&Keyring::default(), Some(&name)));
    assert!(!may(&keys, None), "by its id nobody can say");
    let elsewhere = Reference::parse("elsewhere.example/web:1").unwrap();
    assert!(may(&others, Some(&elsewhere)), "another registry's name was given by somebody who may");
}

/// Cut off again and again, a layer still arrives; ranges are used where there are any.
#[tokio::test]
async fn cut_off_blobs_go_on() {
    for with_ranges in [true, false] {
        let content = Content::of(&web(), "1");
        let (layer, tries) = (content.layer(), Arc::new(AtomicUsize::new(0)));
        let (wanted, count) = (layer.clone(), tries.clone());
        let fake = Fake::start(move |request: &Request| {
            let mut request = request.clone();
            if !with_ranges {
                request.headers.remove("range");
            }
            let answer = content.answer(&request);
            let Body::Whole(bytes) = &answer.body else { return answer };
            if !request.path.ends_with(&wanted) {
                return answer.clone();
            }
            let n = count.fetch_add(1, Ordering::Relaxed);
            let cut = if with_ranges { bytes.len().min(200_000) } else { bytes.len() * (n + 1).min(3) / 3 };
            answer.clone().body(Body::Cut(bytes.clone(), cut))
        });
        let bench = Bench::new();
        bench.pull(&fake.image("web:1")).await.unwrap();
        assert!(tries.load(Ordering::Relaxed) >= 3, "{tries:?}");
        let asked = fake.log.lock().unwrap().iter().filter(|r| r.headers.contains_key("range")).count();
        assert!(asked >= 2, "{asked}");
    }
}

#[tokio::test]
async fn overload_is_waited_for_and_errors_are_told() {
    let content = Content::of(&web(), "1");
    let tries = AtomicUsize::new(0);
    let fake = Fake::start(move |request: &Request| match tries.fetch_add(1, Ordering::Relaxed) {
        0 | 3 => Answer::status(503),
        1 => Answer::status(429).with("retry-after", "0"),
        _ => content.answer(request),
    });
    Bench::new().pull(&fake.image("web:1")).await.unwrap();
    let busy = Fake::start(|_| Answer::status(429).with("retry-after", "3600"));
    Bench::new().refused(&busy.image("web:1"), "429 Too Many Requests").await;
    assert_eq!(busy.count("/"), 1, "an hour is not waited for");
    let broken = Fake::start(|_| Answer::status(500));
    Bench::new().refused(&broken.image("web:1"), "500 Internal Server Error").await;
    assert_eq!(broken.count("/"), 4);
}

#[tokio::test]
async fn registries_that_hang_or_drip_are_given_up() {
    let content = Content::of(&web(), "1");
    let mute = Fake::start(|_| Answer::status(200).body(Body::Hang));
    impatient(Duration::from_millis(300), PATIENCE).refused(&mute.image("web:1"), "i/o timeout").await;
    let drip = Fake::start(move |request: &Request| match request.path.contains("/blobs/") {
        true => Answer::status(200).body(Body::Drip),
        false => content.answer(request),
    });
    impatient(PATIENCE, Duration::from_millis(300)).refused(&drip.image("web:1"), "only drips").await;
    Bench::new().refused(&format!("{NOBODY}/web:1"), "Connection refused").await;
}

#[tokio::test]
async fn redirects_are_bounded() {
    let round = Fake::start(|request| Answer::status(302).with("location", &format!("{}x", request.path)));
    Bench::new().refused(&round.image("web:1"), "more than 5 addresses").await;
    let odd = Fake::start(|_| Answer::status(302).with("location", "ftp://x/"));
    Bench::new().refused(&odd.image("web:1"), "redirect refused").await;
}

/// One lie each: refused within bounds, with nothing left.
#[tokio::test]
async fn liars_are_refused() {
    let content = Content::of(&web(), "1");
    let lie = |path: &str, bytes: &[u8]| {
        let mut content = content.clone();
        content.0.insert(path.into(), bytes.into());
        honest(&content)
    };
    let layer = content.layer();
    let truth = content.0[&layer].clone();
    let mut other = truth.clone();
    other[1000] ^= 1;
    Bench::new().refused(&lie(&layer, &other).image("web:1"), "has digest").await;
    Bench::new()
        .refused(&lie(&layer, &[truth.clone(), vec![0]].concat()).image("web:1"), "exceeds the limit")
        .await;
    Bench::new().refused(&lie(&layer, &truth[..5000]).image("web:1"), "unexpected EOF").await;
    let by_digest = format!("web@{}", digest(b"another"));
    let path = format!("manifests/{}", digest(b"another"));
    Bench::new().refused(&lie(&path, b"{}").image(&by_digest), "has digest").await;
    let claimed = Fake::start(|_| Answer::ok(b"{}").with("docker-content-digest", &digest(b"x")));
    Bench::new().refused(&claimed.image("web:1"), "has digest").await;
    let giant = Fake::start(|_| Answer::status(200).body(Body::Endless));
    Bench::new().refused(&giant.image("web:1"), "a manifest exceeds the limit of 4194304 bytes").await;
    let both = json!({"manifests": [], "config": {"digest": digest(b""), "size": 0}, "layers": []});
    Bench::new()
        .refused(&lie("manifests/1", both.to_string().as_bytes()).image("web:1"), "neither clearly")
        .await;
    Bench::new().refused(&lie("manifests/1", b"[[[").image("web:1"), "bad manifest").await;
    let missing = json!({"config": {"digest": digest(b"no"), "size": 2}, "layers": []});
    Bench::new()
        .refused(&lie("manifests/1", missing.to_string().as_bytes()).image("web:1"), "not found")
        .await;
}

/// Documents that ask for too much.
#[tokio::test]
async fn greedy_documents_are_refused() {
    let mut content = Content::default();
    let config = content.blob(br#"{"os":"linux","architecture":"amd64","rootfs":{"diff_ids":[]}}"#);
    let manifest = |config: &Value, layers: Vec<Value>| {
        json!({"mediaType": MANIFEST, "config": config, "layers": layers}).to_string().into_bytes()
    };
    let layer = json!({"digest": digest(b"l"), "size": 1});
    content.manifest(&manifest(&config, vec![layer.clone(); 501]), "many");
    content.manifest(&manifest(&config, vec![layer.clone()]), "odd");
    let mut huge = config.clone();
    huge["size"] = json!(1u64 << 40);
    content.manifest(&manifest(&huge, vec![]), "config");
    let mut layers = Vec::new();
    for n in 0..3 {
        layers.push(json!({"digest": digest(&[n]), "size": 60u64 << 30}));
    }
    let ids: Vec<String> = (0..3u8).map(|n| digest(&[n])).collect();
    let wide = json!({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": ids}});
    let wide = content.blob(wide.to_string().as_bytes());
    content.manifest(&manifest(&wide, layers.clone()), "sum");
    layers.iter_mut().for_each(|layer| layer["size"] = json!(1));
    layers[0]["size"] = json!(65u64 << 30);
    content.manifest(&manifest(&wide, layers), "layer");
    let mut deep = content.manifest(&manifest(&config, vec![]), "depth0");
    for n in 1..8 {
        let index = json!({"mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [deep]});
        deep = content.manifest(index.to_string().as_bytes(), &format!("depth{n}"));
    }
    let foreign = json!({"manifests": [{"digest": digest(b""), "size": 0, "platform": {"os": "plan9", "architecture": "mips"}}]});
    content.manifest(foreign.to_string().as_bytes(), "foreign");
    let fake = honest(&content);
    for (tag, words) in [
        ("many", "the number of layers of an image exceeds the limit of 500"),
        ("odd", "0 diff_ids for 1 layers"),
        ("config", "an image config exceeds"),
        ("sum", "an image exceeds the limit"),
        ("layer", "a layer exceeds the limit"),
        ("depth7", "the nesting of indexes exceeds the limit of 4"),
        ("foreign", "no image for platform linux/amd64 in the index (it has: plan9/mips)"),
    ] {
        Bench::new().refused(&fake.image(&format!("x:{tag}")), words).await;
    }
}

/// What is honest on the wire and hostile inside.
#[tokio::test]
async fn hostile_layers_are_refused() {
    let tar_of = |path: &str| {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_size(1);
        header.set_cksum();
        builder.append(&header, &b"x"[..]).unwrap();
        builder.into_inner().unwrap()
    };
    let up = ImageBuilder::new("x:1").architecture("amd64").raw(tar_of("../../escaped"));
    Bench::new().refused(&honest(&Content::of(&up, "1")).image("x:1"), "`..` in its path").await;
    let bomb = ImageBuilder::new("x:1").architecture("amd64").file("zeros", &vec![0; 8 << 20], 0o644);
    let limits = Limits { ratio: 100, ratio_slack_bytes: 1 << 20, ..Limits::default() };
    Bench::with(quick(), limits)
        .refused(&honest(&Content::of(&bomb, "1")).image("x:1"), "a decompression bomb?")
        .await;
    let mut content = Content::default();
    let config =
        json!({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": [digest(b"another tar")]}});
    let config = content.blob(config.to_string().as_bytes());
    let layer = content.blob(&gzip(&tar_of("fine")));
    content.manifest(json!({"config": config, "layers": [layer]}).to_string().as_bytes(), "1");
    Bench::new().refused(&honest(&content).image("x:1"), "unpacked layer").await;
    let limits = Limits { free_floor_bytes: u64::MAX / 2, ..Limits::default() };
    let full = honest(&Content::of(&web(), "1"));
    Bench::with(quick(), limits).refused(&full.image("x:1"), "left free on the disk").await;
}

/// The tag means another image from the second request on: what was begun is finished.
#[tokio::test]
async fn a_tag_that_moves_under_a_pull() {
    let (old, new) = (Content::of(&web(), "1"), Content::of(&web().file("b", b"b", 0o644), "1"));
    let mut both = new.clone();
    both.0.extend(old.0.clone().into_iter().filter(|(path, _)| path != "manifests/1"));
    let tries = AtomicUsize::new(0);
    let fake = Fake::start(move |request: &Request| match tries.fetch_add(1, Ordering::Relaxed) {
        0 => old.answer(request),
        _ => both.answer(request),
    });
    let bench = Bench::new();
    let pulled = bench.pull(&fake.image("web:1")).await.unwrap();
    assert_eq!(pulled.lease.image().id, web().id());
    let pulled = bench.pull(&fake.image("web:1")).await.unwrap();
    assert_ne!(pulled.lease.image().id, web().id());
}

#[tokio::test]
async fn one_flight_a_name() {
    let (bench, fake) = (Bench::new(), honest(&Content::of(&web(), "1")));
    let name = fake.image("web:1");
    let (a, b, c) = tokio::join!(bench.pull(&name), bench.pull(&name), bench.pull(&name));
    assert!(a.is_ok() && b.is_ok() && c.is_ok());
    assert_eq!(fake.count(&Content::of(&web(), "1").layer()), 1);
}

#[tokio::test]
async fn mirrors_go_first() {
    let mirror = honest(&Content::of(&web(), "1"));
    let mut config = quick();
    let addresses = vec![format!("http://{NOBODY}"), format!("http://{}/", mirror.address)];
    config.mirrors.insert("docker.io".into(), addresses);
    let bench = Bench::with(config, Limits::default());
    let pulled = bench.pull("web:1").await.unwrap();
    assert_eq!(pulled.lease.image().names, ["docker.io/library/web:1"]);
    let first = mirror.log.lock().unwrap()[0].path.clone();
    assert_eq!(first, "/v2/library/web/manifests/1?ns=docker.io");
}

/// TLS with an authority that only the operator knows; without it the certificate is refused.
#[tokio::test]
async fn tls_is_verified() {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_cert = ca.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let own =
        rcgen::CertificateParams::new(vec!["127.0.0.2".into()]).unwrap().signed_by(&key, &issuer).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let der = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let server = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let server =
        server.unwrap().with_no_client_auth().with_single_cert(vec![own.der().clone()], der).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
    let listener = tokio::net::TcpListener::bind("127.0.0.2:0").await.unwrap();
    let (at, plain) = (listener.local_addr().unwrap(), honest(&Content::of(&web(), "1")));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, there) = (acceptor.clone(), plain.address);
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut inner = tokio::net::TcpStream::connect(there).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut inner).await;
            });
        }
    });
    let name = format!("{at}/web:1");
    Bench::new().refused(&name, "tls: invalid peer certificate").await;
    let certs = tempfile::tempdir().unwrap();
    let own = certs.path().join(at.to_string());
    std::fs::create_dir(&own).unwrap();
    std::fs::write(own.join("ca.crt"), ca_cert.pem()).unwrap();
    let bench = Bench::with(quick().with_authorities(certs.path()), Limits::default());
    bench.pull(&name).await.unwrap();
}
