//! The image store as its callers use it: good images in every format, hostile ones, crashes, sharing.

use image::{ImageError, Images, Limits, Platform, Sweep};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use testkit::image::{ImageBuilder, digest, gzip, pack};

struct Bench {
    folder: tempfile::TempDir,
    images: Images,
}

impl Bench {
    fn new() -> Bench {
        Bench::with(Limits::default())
    }

    fn with(limits: Limits) -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let images = Images::open_with(folder.path().join("store"), limits, Platform::host()).unwrap();
        Bench { folder, images }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn load(&self, archive: &[u8]) -> Result<Vec<image::Loaded>, ImageError> {
        self.images.load_reader(archive, &|_| {})
    }

    fn fails(&self, archive: &[u8]) -> String {
        let error = self.load(archive).expect_err("must be refused").to_string();
        self.is_empty();
        error
    }

    /// A layer made of raw tar entries; what unpacking it says.
    fn layer(&self, tar: Vec<u8>) -> Result<PathBuf, String> {
        let image = ImageBuilder::new("raw:1").raw(tar);
        self.load(&image.docker_archive()).map_err(|e| e.to_string())?;
        Ok(self.images.get("raw:1").unwrap().layers[0].clone())
    }

    fn is_empty(&self) {
        for part in ["layers", "tmp", "blobs/sha256"] {
            let left: Vec<_> = fs::read_dir(self.path("store").join(part)).unwrap().collect();
            assert!(left.iter().all(|_| part == "layers"), "{part} holds {left:?}");
        }
        assert!(self.images.list().is_empty());
        let canary = fs::read_dir(self.folder.path()).unwrap().count();
        assert_eq!(canary, 1, "something stands beside the store");
    }
}

type Files = BTreeMap<String, Vec<u8>>;
type Row<'a> = (tar::EntryType, &'a str, &'a str, &'a [u8]);

/// A tar stream with names exactly as given (the tar crate would refuse to write them).
fn raw_tar(rows: &[Row<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (kind, path, link, data) in rows {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o4755);
        header.set_uid(1234);
        header.set_gid(5678);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        let _ = header.set_device_major(0);
        let _ = header.set_device_minor(if path.contains("null") { 3 } else { 0 });
        header.set_cksum();
        builder.append(&header, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

const FILE: tar::EntryType = tar::EntryType::Regular;
const DIR: tar::EntryType = tar::EntryType::Directory;
const LINK: tar::EntryType = tar::EntryType::Link;
const SYMLINK: tar::EntryType = tar::EntryType::Symlink;
const CHAR: tar::EntryType = tar::EntryType::Char;

fn web() -> ImageBuilder {
    ImageBuilder::busybox("web:1")
        .env("A", "b")
        .user("nobody")
        .entrypoint(["/bin/httpd", "-f"])
        .cmd(["-p", "80"])
        .expose("80/tcp")
        .volume("/data")
        .label("k", "v")
        .stop_signal("SIGQUIT")
        .working_dir("/srv")
        .layer()
        .file("srv/index.html", b"hello", 0o640)
        .whiteout("etc/group")
}

#[test]
fn every_format_gives_the_same_image() {
    let archive = web().docker_archive();
    let oci = web().oci_archive();
    let bench = Bench::new();
    let layout = web().write_oci_layout(&bench.path("layout"));
    let file = bench.path("web.tar");
    fs::write(&file, &archive).unwrap();
    let mut seen = Vec::new();
    for n in 0..5 {
        let store = Images::open(bench.path(&format!("s{n}"))).unwrap();
        let loaded = match n {
            0 => store.load(&file, &|_| {}),
            1 => store.load_reader(&gzip(&archive)[..], &|_| {}),
            2 => store.load_reader(&oci[..], &|_| {}),
            3 => store.load_reader(&gzip(&oci)[..], &|_| {}),
            _ => store.load(&layout, &|_| {}),
        };
        let loaded = loaded.unwrap();
        assert_eq!(loaded[0].id, web().id());
        assert_eq!(loaded[0].names, ["docker.io/library/web:1"]);
        let image = store.get("web:1").unwrap();
        assert_eq!(image.digests.len(), usize::from(n > 1));
        for digest in &image.digests {
            assert_eq!(store.get(digest).unwrap().id, image.id);
        }
        assert_eq!(fs::read(image.layers[0].join("srv/index.html")).unwrap(), b"hello");
        let whiteout = fs::symlink_metadata(image.layers[0].join("etc/group")).unwrap();
        assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
        assert_eq!(fs::read_link(image.layers[1].join("bin/sh")).unwrap(), Path::new("busybox"));
        assert_eq!(fs::metadata(image.layers[1].join("tmp")).unwrap().permissions().mode() & 0o7777, 0o1777);
        seen.push((image.id.clone(), image.config.clone(), image.size_bytes, loaded));
    }
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]));
    let config = &seen[0].1;
    assert_eq!(config.entrypoint, ["/bin/httpd", "-f"]);
    assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("nobody", "/srv"));
    assert_eq!((config.exposed_ports.join(","), config.volumes.join(",")), ("80/tcp".into(), "/data".into()));
    assert_eq!((config.labels["k"].as_str(), config.stop_signal.as_str()), ("v", "SIGQUIT"));
    assert_eq!(config.env.last().unwrap(), "A=b");
}

/// Skopeo, an implementation that is not ours, converts; the image must stay the same.
#[test]
fn skopeo_agrees() {
    let bench = Bench::new();
    let from = web().write_docker_archive(&bench.path("web.tar"));
    for (kind, extra) in
        [("oci-archive", "gzip"), ("oci-archive", "zstd"), ("oci", "gzip"), ("docker-archive", "gzip")]
    {
        let to = bench.path(&format!("{kind}-{extra}"));
        let mut command = Command::new("skopeo");
        command.args(["copy", "--quiet", "--insecure-policy"]);
        if kind != "docker-archive" {
            command.args(["--dest-compress-format", extra]);
        }
        let output = command
            .args([format!("docker-archive:{}", from.display()), format!("{kind}:{}:other:2", to.display())])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let store = Images::open(bench.path(&format!("store-{kind}-{extra}"))).unwrap();
        let loaded = store.load(&to, &|_| {}).unwrap();
        assert_eq!(loaded[0].names, ["docker.io/library/other:2"], "{kind} {extra}");
        let image = store.get("other:2").unwrap();
        assert_eq!(fs::read(image.layers[0].join("srv/index.html")).unwrap(), b"hello");
        if kind == "docker-archive" {
            continue;
        }
        let asked = format!("{kind}:{}:other:2", to.display());
        let output =
            Command::new("skopeo").args(["inspect", "--format", "{{.Digest}}", &asked]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let digest = String::from_utf8(output.stdout).unwrap();
        assert_eq!(image.digests, [format!("docker.io/library/other@{}", digest.trim())]);
    }
}

#[test]
fn attributes_survive() {
    let bench = Bench::new();
    let mut builder = tar::Builder::new(Vec::new());
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let extensions: [(&str, &[u8]); 3] = [
        ("SCHILY.xattr.security.capability", &capability),
        ("SCHILY.xattr.user.note", b"x"),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/../../etc"),
    ];
    builder.append_pax_extensions(extensions).unwrap();
    let mut tar = builder.into_inner().unwrap();
    tar.truncate(tar.len() - 1024);
    tar.extend(raw_tar(&[
        (FILE, "su", "", b"#!"),
        (LINK, "su2", "su", b""),
        (SYMLINK, "abs", "/etc/passwd", b""),
        (tar::EntryType::Fifo, "pipe", "", b""),
        (CHAR, "null", "", b""),
        (CHAR, "gone", "", b""),
        (DIR, "d/", "", b""),
        (FILE, "d/f", "", b""),
    ]));
    let root = bench.layer(tar).unwrap();
    let su = fs::metadata(root.join("su")).unwrap();
    assert_eq!((su.mode() & 0o7777, su.uid(), su.gid(), su.mtime()), (0o4755, 1234, 5678, 1_000_000_000));
    assert_eq!((su.nlink(), su.ino()), (2, fs::metadata(root.join("su2")).unwrap().ino()));
    let mut space = [0; 64];
    let n = rustix::fs::getxattr(root.join("su"), "security.capability", &mut space[..]).unwrap();
    assert_eq!(&space[..n], capability);
    assert_eq!(rustix::fs::getxattr(root.join("su"), "user.note", &mut space[..]).unwrap(), 1);
    assert!(rustix::fs::getxattr(root.join("su"), "trusted.overlay.redirect", &mut space[..]).is_err());
    assert_eq!(fs::read_link(root.join("abs")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(fs::symlink_metadata(root.join("abs")).unwrap().uid(), 1234);
    assert!(fs::metadata(root.join("pipe")).unwrap().file_type().is_fifo());
    assert!(fs::symlink_metadata(root.join("null")).is_err(), "device nodes are left out");
    assert_eq!(fs::symlink_metadata(root.join("gone")).unwrap().rdev(), 0);
    assert_eq!(fs::metadata(root.join("d")).unwrap().mtime(), 1_000_000_000, "set after the children");
}

/// The kernel's overlay is the judge of what our whiteouts mean.
#[test]
fn overlay_shows_the_merged_image() {
    let bench = Bench::new();
    let lower = ImageBuilder::new("m:1").file("a", b"low", 0o644).file("gone", b"", 0o644).dir("o", 0o755);
    let lower = lower.file("o/old", b"", 0o644).dir("r", 0o755).file("r/old", b"", 0o644);
    let upper = lower.file("dir/x", b"", 0o644).layer().whiteout("gone").file("a", b"high", 0o644);
    let upper = upper.file("o/.wh..wh..opq", b"", 0o644).file("o/new", b"", 0o644);
    // A folder removed and made anew: whatever the order, nothing of the lower one shows.
    let image = upper.whiteout("r").file("r/new", b"", 0o644).dir("dir", 0o755).whiteout("dir");
    bench.load(&image.docker_archive()).unwrap();
    let image = bench.images.get("m:1").unwrap();
    let list: Vec<String> = image.layers.iter().map(|path| path.display().to_string()).collect();
    let mount = bench.path("mnt");
    fs::create_dir(&mount).unwrap();
    let script = format!(
        "mount -t overlay o -o lowerdir={} {m} && cd {m} && find . | sort | tr '\\n' ' ' && cat a",
        list.join(":"),
        m = mount.display()
    );
    let output = Command::new("unshare").args(["-m", "sh", "-c", &script]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text, ". ./a ./dir ./o ./o/new ./r ./r/new high");
}

#[test]
fn paths_cannot_leave_the_layer() {
    let bench = Bench::new();
    let outside = bench.path("store").join("outside");
    let hostile: [(&str, &[Row<'_>]); 9] = [
        ("dotdot", &[(FILE, "../outside", "", b"x")]),
        ("inner dotdot", &[(FILE, "a/../../outside", "", b"x")]),
        ("hard link out", &[(LINK, "l", "../../images.json", b"")]),
        ("hard link to nothing", &[(LINK, "l", "/etc/passwd", b"")]),
        ("whiteout of dotdot", &[(FILE, ".wh...", "", b"")]),
        ("whiteout of nothing", &[(FILE, ".wh.", "", b"")]),
        ("file as parent", &[(FILE, "f", "", b""), (FILE, "f/x", "", b"")]),
        ("link loop as parent", &[(SYMLINK, "l", "l", b""), (FILE, "l/x", "", b"")]),
        ("root as a file", &[(FILE, "./", "", b"")]),
    ];
    for (what, rows) in hostile {
        let result = bench.layer(raw_tar(rows));
        // A trailing slash makes a folder of it: harmless.
        if what == "root as a file" {
            assert!(result.is_ok());
            bench.images.remove("raw:1").unwrap();
            bench.images.gc(&BTreeSet::new(), Sweep::Unused).unwrap();
            continue;
        }
        let error = result.expect_err(what);
        assert!(error.contains("refused"), "{what}: {error}");
        bench.is_empty();
        assert!(!outside.exists());
    }
    // Symbolic links may say what they want; they lead nowhere but into the layer.
    let root = bench
        .layer(raw_tar(&[
            (DIR, "etc", "", b""),
            (SYMLINK, "up", "../../../../../../../../etc", b""),
            (FILE, "up/gantry-was-here", "", b"x"),
            (SYMLINK, "abs", "/etc", b""),
            (FILE, "abs/gantry-too", "", b"x"),
            (FILE, "/absolute", "", b"x"),
            (SYMLINK, "abs", "/", b""),
            (LINK, "abs/hard", "up/gantry-too", b""),
            (FILE, "target", "", b"old"),
            (SYMLINK, "w", "target", b""),
            (FILE, "w", "", b"new"),
        ]))
        .unwrap();
    for inside in ["etc/gantry-was-here", "etc/gantry-too", "absolute", "hard"] {
        assert!(fs::symlink_metadata(root.join(inside)).unwrap().is_file(), "{inside}");
        assert!(fs::symlink_metadata(Path::new("/").join(inside)).is_err());
    }
    assert_eq!(
        fs::read(root.join("target")).unwrap(),
        b"old",
        "a file entry replaces a link, never follows it"
    );
}

#[test]
fn lies_are_refused() {
    let bench = Bench::new();
    let files = |change: &dyn Fn(&mut Files)| {
        let mut files = web().oci_files();
        change(&mut files);
        pack(&files)
    };
    let blobs: Vec<String> = web().oci_files().into_keys().filter(|k| k.starts_with("blobs/")).collect();
    assert_eq!(blobs.len(), 4);
    for blob in &blobs {
        let error = bench.fails(&files(&|files| files.get_mut(blob).unwrap().push(b' ')));
        assert!(error.contains("the image promises sha256:"), "{error}");
        let error = bench.fails(&files(&|files| drop(files.remove(blob))));
        assert!(error.contains("not in the archive"), "{error}");
    }
    // The config's diff-ids are checked for docker-archives too, which have no other digest of a layer.
    let mut docker = web().docker_archive();
    let at = docker.windows(5).position(|w| w == b"hello").unwrap();
    docker[at] = b'j';
    assert!(bench.fails(&docker).contains("unpacked layer"));
    let text = |text: &str| BTreeMap::from([("manifest.json".to_string(), text.as_bytes().to_vec())]);
    for (json, wanted) in [
        ("[", "bad manifest.json"),
        ("[]", "lists no image"),
        (r#"[{"Config":"../../../etc/passwd","Layers":[]}]"#, "not in the archive"),
        (r#"[{"Config":"x","Layers":[]}]"#, "not in the archive"),
        (r#"{"a":1}"#, "bad manifest.json"),
    ] {
        let error = bench.fails(&pack(&text(json)));
        assert!(error.contains(wanted), "{json}: {error}");
    }
    let deep = "[".repeat(100_000);
    assert!(bench.fails(&pack(&text(&deep))).contains("bad manifest.json"));
    let wrong_count = web().docker_archive();
    let mut twice = wrong_count[..wrong_count.len() - 1024].to_vec();
    twice.extend(pack(&text("[]")));
    assert!(bench.fails(&twice).contains("two members"));
    assert!(bench.fails(b"certainly no tar file").contains("not a container image"));
    assert!(bench.fails(&[0; 4096]).contains("not a container image"));
    assert!(bench.fails(&gzip(&web().docker_archive())[..9000]).contains("cannot spool"));
    assert!(bench.load(&web().also_named("Not A Name").docker_archive()).is_err());
}

#[test]
fn limits_hold() {
    let tight = |change: fn(&mut Limits)| {
        let mut limits = Limits { ratio_slack_bytes: 1 << 20, ratio: 100, ..Limits::default() };
        change(&mut limits);
        Bench::with(limits)
    };
    let zeros = ImageBuilder::new("bomb:1").file("zeros", &vec![0; 8 << 20], 0o644);
    let error = tight(|_| {}).fails(&zeros.oci_archive());
    assert!(error.contains("decompression bomb"), "{error}");
    let error = tight(|l| l.layer_bytes = 1 << 20).fails(&zeros.docker_archive());
    assert!(error.contains("a layer exceeds"), "{error}");
    let error = tight(|l| l.archive_bytes = 1 << 20).fails(&gzip(&zeros.docker_archive()));
    assert!(error.contains("the archive exceeds"), "{error}");
    let error = tight(|l| l.entries = 100).fails(&web().docker_archive());
    assert!(error.contains("entries of a layer"), "{error}");
    let error = tight(|l| l.layers = 1).fails(&web().docker_archive());
    assert!(error.contains("layers of an image"), "{error}");
    let error = tight(|l| l.document_bytes = 100).fails(&web().docker_archive());
    assert!(error.contains("100 bytes"), "{error}");
    let error = tight(|l| l.free_floor_bytes = 1 << 60).fails(&web().docker_archive());
    assert!(error.contains("left free"), "{error}");
    let long = format!("{}x", "d/".repeat(3000));
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_pax_extensions([("path", long.as_bytes())]).unwrap();
    builder.append(&tar::Header::new_gnu(), &b""[..]).unwrap_or_default();
    let tar = builder.into_inner().unwrap();
    assert!(Bench::new().layer(tar).is_err());
}

#[test]
fn an_index_is_searched_for_our_platform() {
    let bench = Bench::new();
    let host = Platform::host();
    let foreign = if host.architecture == "arm64" { "amd64" } else { "arm64" };
    let (ours, theirs) = (web(), ImageBuilder::new("web:1").architecture(foreign).file("x", b"", 0o644));
    let mut files = theirs.oci_files();
    let index = |files: &BTreeMap<String, Vec<u8>>| -> serde_json::Value {
        serde_json::from_slice(&files["index.json"]).unwrap()
    };
    let (first, second) =
        (index(&files)["manifests"][0].clone(), index(&ours.oci_files())["manifests"][0].clone());
    files.extend(ours.oci_files());
    let nested = serde_json::json!({"manifests": [first, second]}).to_string().into_bytes();
    for list in [
        nested.clone(),
        serde_json::json!({"manifests": [{"digest": digest(&nested), "size": nested.len(),
            "annotations": {"io.containerd.image.name": "docker.io/library/web:1"}}]})
        .to_string()
        .into_bytes(),
    ] {
        files.insert(format!("blobs/{}", digest(&nested).replace(':', "/")), nested.clone());
        files.insert("index.json".into(), list);
        let loaded = bench.load(&pack(&files)).unwrap();
        assert_eq!((loaded.len(), &loaded[0].id), (1, &ours.id()));
        assert_eq!(bench.images.get("web:1").unwrap().platform, host);
    }
    let error = Bench::new().fails(&theirs.oci_archive());
    assert!(error.contains(&format!("no image for platform {host}")) && error.contains(foreign), "{error}");
}

#[test]
fn names_leases_and_gc() {
    let bench = Bench::new();
    let changes = bench.images.subscribe();
    let old = ImageBuilder::new("app:1").file("same", b"", 0o644).layer().file("v", b"1", 0o644);
    let new = ImageBuilder::new("app:1").file("same", b"", 0o644).layer().file("v", b"2", 0o644);
    bench.load(&old.docker_archive()).unwrap();
    let lease = bench.images.lease("app:1").unwrap();
    bench.load(&new.docker_archive()).unwrap();
    assert_eq!(bench.images.get("app:1").unwrap().id, new.id());
    assert!(bench.images.get(&old.id()).unwrap().names.is_empty());
    assert_eq!(lease.image().layers[1], bench.images.get("app:1").unwrap().layers[1], "shared");
    let none = BTreeSet::new();
    assert!(bench.images.gc(&none, Sweep::Nameless).unwrap().is_empty(), "leased");
    assert!(lease.image().layers[0].join("v").exists());
    let second = lease.clone();
    drop(lease);
    assert!(bench.images.gc(&none, Sweep::Nameless).unwrap().is_empty(), "a clone of the lease holds it too");
    drop(second);
    assert!(bench.images.gc(&BTreeSet::from([old.id()]), Sweep::Unused).unwrap().contains(&new.id()));
    assert!(bench.images.get(&old.id()).unwrap().layers[0].join("v").exists());
    assert_eq!(bench.images.gc(&none, Sweep::Nameless).unwrap(), [old.id()]);
    assert_eq!(fs::read_dir(bench.path("store/layers")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(bench.path("store/blobs/sha256")).unwrap().count(), 0);

    bench.load(&new.docker_archive()).unwrap();
    assert!(bench.images.tag("app:1", "r.io/team/app:prod").unwrap());
    assert!(bench.images.remove("app:1").unwrap());
    assert!(!bench.images.remove("app:1").unwrap());
    assert_eq!(bench.images.get("r.io/team/app:prod").unwrap().names, ["r.io/team/app:prod"]);
    assert!(bench.images.gc(&none, Sweep::Nameless).unwrap().is_empty());
    assert!(bench.images.get(new.id().strip_prefix("sha256:").unwrap()).is_some());
    wait_for(|| changes.has_changed().unwrap());
}

fn wait_for(mut condition: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(120);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "timed out");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn another_process_is_noticed() {
    let bench = Bench::new();
    // A second handle shares nothing with the first but the folder.
    let other = Images::open(bench.path("store")).unwrap();
    let changes = bench.images.subscribe();
    other.load_reader(&web().docker_archive()[..], &|_| {}).unwrap();
    assert!(bench.images.get("web:1").is_some());
    wait_for(|| changes.has_changed().unwrap());
}

#[test]
fn what_a_crash_leaves_is_swept() {
    let bench = Bench::new();
    bench.load(&web().docker_archive()).unwrap();
    let store = bench.path("store");
    let hex = "ab".repeat(32);
    fs::create_dir_all(store.join("tmp/123-0/half")).unwrap();
    fs::create_dir_all(store.join("layers").join(&hex).join("unlisted")).unwrap();
    fs::write(store.join("blobs/sha256").join(&hex), b"unlisted").unwrap();
    fs::write(store.join(".images.json.1.x"), b"{").unwrap();
    let again = Images::open(&store).unwrap();
    assert!(again.get("web:1").is_some());
    assert_eq!(fs::read_dir(store.join("tmp")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(store.join("layers")).unwrap().count(), 2);
    assert_eq!(fs::read_dir(store.join("blobs/sha256")).unwrap().count(), 1);
    // A layer that vanished takes its image out of sight, not the store down; loading again repairs it.
    fs::remove_dir_all(&again.get("web:1").unwrap().layers[0]).unwrap();
    let again = Images::open(&store).unwrap();
    assert!(again.get("web:1").is_none());
    again.load_reader(&web().docker_archive()[..], &|_| {}).unwrap();
    assert!(again.get("web:1").is_some());
}

#[test]
fn loads_at_once_share_layers() {
    let bench = Bench::new();
    let archive = web().docker_archive();
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| bench.load(&archive).unwrap());
        }
    });
    assert_eq!(bench.images.list().len(), 1);
    assert_eq!(fs::read_dir(bench.path("store/layers")).unwrap().count(), 2);
    assert_eq!(fs::read_dir(bench.path("store/tmp")).unwrap().count(), 0);
}
