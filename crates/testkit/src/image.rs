//! Builds small container images for tests: busybox with all its applets, files, a config; in three formats.
//!
//! Same calls, same bytes: no clock, no random, so digests are stable. Errors end the test (`expect`): this is test
//! code. Deliberately not here: anything hostile beyond [`ImageBuilder::raw`], which takes a layer as it is.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Where package busybox-static puts its one static binary.
const BUSYBOX: &str = "/bin/busybox";

/// One layer: plain entries, or a finished tar stream.
#[derive(Clone, Default)]
struct Layer {
    tar: Option<Vec<u8>>,
    entries: Vec<Entry>,
}

#[derive(Clone)]
struct Entry {
    path: String,
    kind: tar::EntryType,
    mode: u32,
    link: String,
    data: Vec<u8>,
}

/// An image in the making. Methods add to the uppermost layer.
#[derive(Clone)]
pub struct ImageBuilder {
    names: Vec<String>,
    layers: Vec<Layer>,
    config: Value,
    architecture: String,
}

impl ImageBuilder {
    /// An empty image with one layer and that name (as it shall stand in the archive; "" for none).
    pub fn new(name: &str) -> ImageBuilder {
        ImageBuilder {
            names: [name].into_iter().filter(|n| !n.is_empty()).map(String::from).collect(),
            layers: vec![Layer::default()],
            config: json!({"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}),
            architecture: if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }.into(),
        }
    }

    /// A bootable-looking busybox: `/bin/busybox`, a link for each applet, `/etc/passwd`, `/etc/group`, `/tmp`.
    pub fn busybox(name: &str) -> ImageBuilder {
        let binary = std::fs::read(BUSYBOX).expect("package busybox-static is installed");
        let list = std::process::Command::new(BUSYBOX).arg("--list").output().expect("busybox runs");
        let mut builder = ImageBuilder::new(name).dir("bin", 0o755).file("bin/busybox", &binary, 0o755);
        for applet in String::from_utf8_lossy(&list.stdout).lines().filter(|a| *a != "busybox") {
            builder = builder.symlink(&format!("bin/{applet}"), "busybox");
        }
        builder
            .dir("etc", 0o755)
            .file(
                "etc/passwd",
                b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
                0o644,
            )
            .file("etc/group", b"root:x:0:\nnogroup:x:65534:\n", 0o644)
            .dir("root", 0o700)
            .dir("tmp", 0o1777)
            .dir("var", 0o755)
            .cmd(["/bin/sh"])
    }

    /// One more name.
    pub fn also_named(mut self, name: &str) -> Self {
        self.names.push(name.into());
        self
    }

    /// Go's name of another processor than the host's.
    pub fn architecture(mut self, architecture: &str) -> Self {
        self.architecture = architecture.into();
        self
    }

    /// Starts another layer on top.
    pub fn layer(mut self) -> Self {
        self.layers.push(Layer::default());
        self
    }

    /// Starts another layer on top: this tar stream, whatever it is.
    pub fn raw(mut self, tar: Vec<u8>) -> Self {
        self.layers.retain(|layer| layer.tar.is_some() || !layer.entries.is_empty());
        self.layers.push(Layer { tar: Some(tar), entries: Vec::new() });
        self
    }

    /// A regular file.
    pub fn file(self, path: &str, data: &[u8], mode: u32) -> Self {
        self.entry(path, (tar::EntryType::Regular, mode), "", data)
    }

    /// A folder.
    pub fn dir(self, path: &str, mode: u32) -> Self {
        self.entry(path, (tar::EntryType::Directory, mode), "", b"")
    }

    /// A symbolic link.
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(path, (tar::EntryType::Symlink, 0o777), target, b"")
    }

    /// A hard link to a path of the same layer.
    pub fn hardlink(self, path: &str, target: &str) -> Self {
        self.entry(path, (tar::EntryType::Link, 0o644), target, b"")
    }

    /// Hides what lower layers have at `path`.
    pub fn whiteout(self, path: &str) -> Self {
        let (folder, name) = path.rsplit_once('/').map_or(("", path), |(folder, name)| (folder, name));
        let slash = if folder.is_empty() { "" } else { "/" };
        self.entry(&format!("{folder}{slash}.wh.{name}"), (tar::EntryType::Regular, 0o644), "", b"")
    }

    fn entry(mut self, path: &str, (kind, mode): (tar::EntryType, u32), link: &str, data: &[u8]) -> Self {
        let entry = Entry { path: path.into(), kind, mode, link: link.into(), data: data.to_vec() };
        self.layers.last_mut().expect("there is always a layer").entries.push(entry);
        self
    }

    /// Adds an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        let list = self.config["Env"].as_array_mut().expect("made as an array");
        list.push(format!("{name}={value}").into());
        self
    }

    /// Sets the entrypoint.
    pub fn entrypoint<S: Into<String>>(self, args: impl IntoIterator<Item = S>) -> Self {
        self.set("Entrypoint", args.into_iter().map(Into::into).collect::<Vec<String>>().into())
    }

    /// Sets the default arguments.
    pub fn cmd<S: Into<String>>(self, args: impl IntoIterator<Item = S>) -> Self {
        self.set("Cmd", args.into_iter().map(Into::into).collect::<Vec<String>>().into())
    }

    /// Sets the user.
    pub fn user(self, user: &str) -> Self {
        self.set("User", user.into())
    }

    /// Sets the working folder.
    pub fn working_dir(self, path: &str) -> Self {
        self.set("WorkingDir", path.into())
    }

    /// Sets the stop signal.
    pub fn stop_signal(self, signal: &str) -> Self {
        self.set("StopSignal", signal.into())
    }

    /// Adds a label.
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.config["Labels"][name] = value.into();
        self
    }

    /// Declares a port (`80/tcp`).
    pub fn expose(mut self, port: &str) -> Self {
        self.config["ExposedPorts"][port] = json!({});
        self
    }

    /// Declares an anonymous volume.
    pub fn volume(mut self, path: &str) -> Self {
        self.config["Volumes"][path] = json!({});
        self
    }

    fn set(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    fn layer_tars(&self) -> Vec<Vec<u8>> {
        self.layers.iter().map(Layer::to_tar).collect()
    }

    /// The config document; its digest is the image's id.
    pub fn config_json(&self) -> Vec<u8> {
        let diff_ids: Vec<String> = self.layer_tars().iter().map(|tar| digest(tar)).collect();
        let config = json!({
            "architecture": self.architecture, "os": "linux", "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        serde_json::to_vec(&config).expect("a Value serializes")
    }

    /// The image's id, `sha256:…`.
    pub fn id(&self) -> String {
        digest(&self.config_json())
    }

    /// The image as `docker save` writes it.
    pub fn docker_archive(&self) -> Vec<u8> {
        let config = self.config_json();
        let config_name = format!("{}.json", hex(&config));
        let (mut files, mut layers) = (BTreeMap::new(), Vec::new());
        for tar in self.layer_tars() {
            let name = format!("{}/layer.tar", hex(&tar));
            layers.push(name.clone());
            files.insert(name, tar);
        }
        let manifest = json!([{"Config": config_name, "RepoTags": self.names, "Layers": layers}]);
        files.insert(config_name, config);
        files.insert("manifest.json".into(), manifest.to_string().into_bytes());
        pack(&files)
    }

    /// The image as an OCI layout, packed.
    pub fn oci_archive(&self) -> Vec<u8> {
        pack(&self.oci_files())
    }

    /// The files of an OCI layout by their paths; layers are gzip'd.
    pub fn oci_files(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut put = |media_type: &str, bytes: Vec<u8>| {
            let descriptor = json!({"mediaType": media_type, "digest": digest(&bytes), "size": bytes.len()});
            files.insert(format!("blobs/sha256/{}", hex(&bytes)), bytes);
            descriptor
        };
        let kind = |kind: &str| format!("application/vnd.oci.image.{kind}");
        let layers: Vec<Value> =
            self.layer_tars().iter().map(|tar| put(&kind("layer.v1.tar+gzip"), gzip(tar))).collect();
        let config = put(&kind("config.v1+json"), self.config_json());
        let manifest = json!({
            "schemaVersion": 2, "mediaType": kind("manifest.v1+json"), "config": config, "layers": layers,
        });
        let mut image = put(&kind("manifest.v1+json"), manifest.to_string().into_bytes());
        image["platform"] = json!({"os": "linux", "architecture": self.architecture});
        let named = |name: &String| {
            let mut image = image.clone();
            image["annotations"] = json!({"org.opencontainers.image.ref.name": name});
            image
        };
        let images: Vec<Value> =
            if self.names.is_empty() { vec![image.clone()] } else { self.names.iter().map(named).collect() };
        files.insert(
            "index.json".into(),
            json!({"schemaVersion": 2, "manifests": images}).to_string().into_bytes(),
        );
        files.insert("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
        files
    }

    /// Writes the docker-archive to `path`.
    pub fn write_docker_archive(&self, path: &Path) -> PathBuf {
        std::fs::write(path, self.docker_archive()).expect("the test folder is writable");
        path.into()
    }

    /// Writes the oci-archive to `path`.
    pub fn write_oci_archive(&self, path: &Path) -> PathBuf {
        std::fs::write(path, self.oci_archive()).expect("the test folder is writable");
        path.into()
    }

    /// Writes the OCI layout into the folder `path`.
    pub fn write_oci_layout(&self, path: &Path) -> PathBuf {
        for (name, bytes) in self.oci_files() {
            let file = path.join(name);
            std::fs::create_dir_all(file.parent().expect("below path")).expect("the test folder is writable");
            std::fs::write(file, bytes).expect("the test folder is writable");
        }
        path.into()
    }
}

impl Layer {
    fn to_tar(&self) -> Vec<u8> {
        if let Some(tar) = &self.tar {
            return tar.clone();
        }
        let mut builder = tar::Builder::new(Vec::new());
        for entry in &self.entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(entry.kind);
            header.set_mode(entry.mode);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(1_500_000_000);
            header.set_size(entry.data.len() as u64);
            let written = match entry.link.as_str() {
                "" => builder.append_data(&mut header, &entry.path, entry.data.as_slice()),
                link => builder.append_link(&mut header, &entry.path, link),
            };
            written.expect("a Vec takes everything");
        }
        builder.into_inner().expect("a Vec takes everything")
    }
}

/// Packs files by name, like `docker save`.
pub fn pack(files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let mut layer = Layer::default();
    for (path, data) in files {
        let kind = tar::EntryType::Regular;
        layer.entries.push(Entry {
            path: path.clone(),
            kind,
            mode: 0o644,
            link: String::new(),
            data: data.clone(),
        });
    }
    layer.to_tar()
}

/// Compresses with gzip, always to the same bytes.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("a Vec takes everything")
}

/// `sha256:…` of some bytes.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(bytes))
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
