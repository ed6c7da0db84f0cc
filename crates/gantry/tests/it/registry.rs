//! The registry as people use it: `skopeo copy` and `kubectl apply`, with no network outside.

use crate::{all, cluster, has, logged, pod, ready, refusal, told};
use anyhow::{Result, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use testkit::cluster::Cluster;
use testkit::image::ImageBuilder;

#[test]
fn what_is_pushed_runs() {
    let cluster = cluster();
    all(
        &cluster,
        &[
            ("pushed", pushed),
            ("short_names", short_names),
            ("waiting", waiting),
            ("moved_tag", moved_tag),
            ("there_and_back", there_and_back),
            ("survives", deleted),
            ("buildah", buildah),
            ("private", private),
        ],
    );
}

#[test]
fn what_was_pushed_outlives_a_crash() {
    let mut cluster = cluster();
    push(&cluster, "kept", &image("kept:1", "one"), "localhost:5000/kept:1").unwrap();
    cluster.kill9().unwrap();
    cluster.up().unwrap();
    run(&cluster, "kept", "localhost:5000/kept:1", "Always").unwrap();
    logged(&cluster, "kept", &["one"]).unwrap();
}

fn image(name: &str, word: &str) -> ImageBuilder {
    ImageBuilder::busybox(name).layer().file("word", format!("{word}\n").as_bytes(), 0o644)
}

/// Pushes with skopeo, as a docker-archive.
fn push(cluster: &Cluster, file: &str, image: &ImageBuilder, to: &str) -> Result<String> {
    let archive = image.write_docker_archive(&cluster.folder().join(format!("{file}.tar")));
    let from = format!("docker-archive:{}", archive.display());
    cluster.sh(&format!("skopeo copy --insecure-policy --dest-tls-verify=false {from} docker://{to}"))
}

/// Runs a pod that says its image's word.
fn run(cluster: &Cluster, name: &str, image: &str, policy: &str) -> Result<()> {
    let text = pod(name, "cat /word; exec sleep 1000", "", "");
    let text = text.replace("image: busybox", &format!("image: {image}"));
    cluster.apply(&text.replace("IfNotPresent", policy))?;
    ready(cluster, name)
}

fn pushed(cluster: &Cluster) -> Result<()> {
    push(cluster, "web", &image("web:1", "pushed"), "localhost:5000/team/web:1")?;
    run(cluster, "pushed", "localhost:5000/team/web:1", "IfNotPresent")?;
    logged(cluster, "pushed", &["pushed"])?;
    let status = cluster.get(&["pod", "pushed"])?["status"]["containerStatuses"][0].clone();
    ensure!(status["image"] == "localhost:5000/team/web:1", "{status}");
    has(status["imageID"].as_str().unwrap_or_default(), &["localhost:5000/team/web@sha256:"])?;
    let words = [
        "Pulling image \"localhost:5000/team/web:1\"",
        "Successfully pulled image",
        "including waiting). Image size:",
    ];
    told(cluster, "pushed", &words)?;
    run(cluster, "never", "localhost:5000/team/web:1", "Never")?;
    told(cluster, "never", &["already present on machine"])
}

/// What is pushed as `library/nginx`, or as `web`, is `nginx`, or `web`, to a pod.
fn short_names(cluster: &Cluster) -> Result<()> {
    push(cluster, "nginx", &image("nginx:1.7.9", "short"), "localhost:5000/library/nginx:1.7.9")?;
    run(cluster, "nginx", "nginx:1.7.9", "IfNotPresent")?;
    push(cluster, "bare", &image("bare:1", "bare"), "localhost:5000/bare:1")?;
    run(cluster, "bare", "bare:1", "Always")?;
    push(cluster, "pause", &image("pause:3", "pause"), "localhost:5000/registry.k8s.io/pause:3")?;
    run(cluster, "pause", "registry.k8s.io/pause:3", "IfNotPresent")?;
    logged(cluster, "nginx", &["short"])?;
    logged(cluster, "bare", &["bare"])?;
    logged(cluster, "pause", &["pause"])
}

/// A pod that waits for an image starts when it is pushed, before its back-off is over.
fn waiting(cluster: &Cluster) -> Result<()> {
    let text = pod("waits", "cat /word; exec sleep 1000", "", "");
    cluster.apply(&text.replace("image: busybox", "image: localhost:5000/late:1"))?;
    let reason = "/status/containerStatuses/0/state/waiting/reason";
    cluster.wait_field(&["pod", "waits"], reason, "ImagePullBackOff")?;
    let message = cluster.field(&["pod", "waits"], "/status/containerStatuses/0/state/waiting/message")?;
    has(&message, &["failed to pull and unpack image \"localhost:5000/late:1\"", "not found"])?;
    push(cluster, "late", &image("late:1", "late"), "localhost:5000/late:1")?;
    ready(cluster, "waits")
}

/// A tag that moved means the new image to the next pod.
fn moved_tag(cluster: &Cluster) -> Result<()> {
    push(cluster, "m1", &image("m:1", "first"), "localhost:5000/moved:1")?;
    run(cluster, "moved-one", "localhost:5000/moved:1", "IfNotPresent")?;
    push(cluster, "m2", &image("m:1", "second"), "localhost:5000/moved:1")?;
    run(cluster, "moved-two", "localhost:5000/moved:1", "IfNotPresent")?;
    logged(cluster, "moved-one", &["first"])?;
    logged(cluster, "moved-two", &["second"])
}

/// What is pushed comes back byte for byte, in both families of formats.
fn there_and_back(cluster: &Cluster) -> Result<()> {
    let builder = image("back:1", "back");
    let folder = cluster.folder().join("layout");
    builder.write_oci_layout(&folder);
    let skopeo = |args: &str| cluster.sh(&format!("skopeo --insecure-policy {args}"));
    let layout = format!("oci:{}:back:1", folder.display());
    skopeo(&format!(
        "copy --preserve-digests --dest-tls-verify=false {layout} docker://localhost:5000/back:1"
    ))?;
    let raw = skopeo("inspect --raw --tls-verify=false docker://localhost:5000/back:1")?;
    let index: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.join("index.json"))?)?;
    let digest = index["manifests"][0]["digest"].as_str().unwrap_or_default();
    ensure!(testkit::image::digest(raw.trim_end_matches('\n').as_bytes()) == digest, "{raw}");
    skopeo(
        "copy --src-tls-verify=false --dest-tls-verify=false --format v2s2 docker://localhost:5000/back:1 docker://localhost:5000/other/back:2",
    )?;
    let out = cluster.folder().join("out");
    skopeo(&format!(
        "copy --src-tls-verify=false docker://localhost:5000/other/back:2 oci:{}:x",
        out.display()
    ))?;
    has(&skopeo("list-tags --tls-verify=false docker://localhost:5000/other/back")?, &["\"2\""])?;
    run(cluster, "back", "localhost:5000/other/back:2", "Always")
}

/// buildah, from its Debian packages, kept under `target/tools`.
fn buildah_tool() -> Result<PathBuf> {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools");
    let home = tools.join("buildah");
    if !home.exists() {
        std::fs::create_dir_all(&tools)?;
        let work = tempfile::tempdir_in(&tools)?;
        let script = "apt-get download -qq buildah libsubid4 && for p in *.deb; do dpkg -x $p root; done";
        testkit::cluster::run(Command::new("sh").args(["-c", script]).current_dir(work.path()))?;
        std::fs::rename(work.path().join("root"), &home)?;
    }
    Ok(home)
}

/// A push by buildah, layers compressed by zstd.
fn buildah(cluster: &Cluster) -> Result<()> {
    let home = buildah_tool()?;
    let archive = image("bu:1", "buildah").write_docker_archive(&cluster.folder().join("bu.tar"));
    let policy = cluster.folder().join("policy.json");
    std::fs::write(&policy, r#"{"default": [{"type": "insecureAcceptAnything"}]}"#)?;
    let (folder, home) = (cluster.folder().display(), home.display());
    let flags = format!("--storage-driver vfs --root {folder}/bu/root --runroot {folder}/bu/run");
    let tool = format!("LD_LIBRARY_PATH={home}/usr/lib/x86_64-linux-gnu {home}/usr/bin/buildah {flags}");
    let policy = format!("--signature-policy {}", policy.display());
    let id = cluster.sh(&format!("{tool} pull -q {policy} docker-archive:{}", archive.display()))?;
    let to = "docker://localhost:5000/bu:1";
    cluster.sh(&format!(
        "{tool} push -q {policy} --tls-verify=false --compression-format zstd --format oci {} {to}",
        id.trim()
    ))?;
    has(&cluster.sh(&format!("skopeo inspect --raw --tls-verify=false {to}"))?, &["tar+zstd"])?;
    run(cluster, "bu", "localhost:5000/bu:1", "IfNotPresent")?;
    logged(cluster, "bu", &["buildah"])
}

/// A registry that wants a name and a password gets those of the pod's secret; without them the pod says so.
fn private(cluster: &Cluster) -> Result<()> {
    push(cluster, "private", &image("private:1", "private"), "localhost:5000/private:1")?;
    let script = r#"
import base64, http.server, urllib.request, urllib.error
class Guard(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"
    def do_GET(self):
        if self.headers.get("Authorization") != "Basic " + base64.b64encode(b"user:pass").decode():
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="x"')
            self.end_headers()
            return
        try:
            answer = urllib.request.urlopen("http://127.0.0.1:5000" + self.path.replace("/v2/guarded", "/v2/private"))
        except urllib.error.HTTPError as e:
            answer = e
        body = answer.read()
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("127.0.0.1", 5443), Guard).serve_forever()
"#;
    let mut guard = cluster.inside("python3").args(["-c", script]).stderr(Stdio::null()).spawn()?;
    let checked = pull_guarded(cluster);
    guard.kill()?;
    guard.wait()?;
    checked
}

fn pull_guarded(cluster: &Cluster) -> Result<()> {
    let text = pod("guarded", "cat /word; exec sleep 1000", "", "");
    let text = text.replace("image: busybox", "image: 127.0.0.1:5443/guarded:1");
    cluster.apply(&text)?;
    told(cluster, "guarded", &["no basic auth credentials", "ErrImagePull"])?;
    cluster.kubectl(&["delete", "pod", "guarded", "--now"])?;
    cluster.kubectl(&[
        "create",
        "secret",
        "docker-registry",
        "key",
        "--docker-server=127.0.0.1:5443",
        "--docker-username=user",
        "--docker-password=pass",
    ])?;
    cluster.apply(&text.replace("spec:\n", "spec:\n  imagePullSecrets: [{name: key}]\n"))?;
    ready(cluster, "guarded")?;
    logged(cluster, "guarded", &["private"])
}

/// A deleted image is gone from the registry, and runs on where it runs.
fn deleted(cluster: &Cluster) -> Result<()> {
    push(cluster, "gone", &image("gone:1", "gone"), "localhost:5000/gone:1")?;
    run(cluster, "gone", "localhost:5000/gone:1", "Always")?;
    cluster.sh("skopeo delete --tls-verify=false docker://localhost:5000/gone:1")?;
    has(
        &refusal(cluster.sh("skopeo inspect --tls-verify=false docker://localhost:5000/gone:1"))?,
        &["unknown"],
    )?;
    cluster.kubectl(&["exec", "gone", "--", "cat", "/word"]).map(drop)
}
