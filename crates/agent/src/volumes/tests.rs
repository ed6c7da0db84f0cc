//! Volumes in temporary folders.

use super::*;
use crate::facts::tests::facts;
use crate::pod::tests::pod;
use client::Object;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::Arc;

fn objects(list: &[(RefKind, &str, Value)]) -> Objects {
    let one = |(kind, name, body): &(RefKind, &str, Value)| {
        let mut body = body.clone();
        body["metadata"] = json!({"name": name, "namespace": "n"});
        let object = Object::parse(serde_json::to_vec(&body).unwrap().into()).unwrap();
        ((*kind, name.to_string()), Arc::new(object))
    };
    list.iter().map(one).collect()
}

struct Fixture {
    _dir: tempfile::TempDir,
    facts: NodeFacts,
    tokens: BTreeMap<TokenNeed, Result<Token, String>>,
    claims: Claims,
    images: ImageLayers,
}

impl Fixture {
    fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let facts = facts(dir.path());
        Fixture {
            _dir: dir,
            facts,
            tokens: BTreeMap::new(),
            claims: Claims::new(),
            images: ImageLayers::new(),
        }
    }

    fn mount(&self, spec: Value, objects: &Objects) -> Result<BTreeMap<String, MountedVolume>, String> {
        let view = pod(spec);
        let ips = ["10.0.0.9".parse().unwrap()];
        let context = Context {
            pod: &view,
            facts: &self.facts,
            objects,
            tokens: &self.tokens,
            claims: &self.claims,
            drivers: &PublishedVolumes::new(),
            images: &self.images,
            pod_ips: &ips,
            shim_root: None,
        };
        mount_all(&context)
    }
}

fn claimed(spec: Value) -> Bound {
    Bound { name: "pv".into(), spec: serde_json::from_value(spec).unwrap() }
}

fn volume(source: Value) -> Value {
    let mut body = json!({"name": "v"});
    body.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
    json!({"containers": [], "volumes": [body]})
}

#[test]
fn config_maps_are_swapped_as_a_whole() {
    let it = Fixture::new();
    let spec = volume(json!({"configMap": {"name": "cm", "defaultMode": 0o400}}));
    let old = objects(&[(
        RefKind::ConfigMap,
        "cm",
        json!({"data": {"a": "1", "b": "2"}, "binaryData": {"c": "AAE="}}),
    )]);
    let path = it.mount(spec.clone(), &old).unwrap()["v"].path.clone();
    assert_eq!(fs::read(path.join("a")).unwrap(), b"1");
    assert_eq!(fs::read(path.join("c")).unwrap(), [0, 1]);
    assert_eq!(fs::metadata(path.join("a")).unwrap().permissions().mode() & 0o777, 0o400);
    assert_eq!(fs::read_link(path.join("a")).unwrap(), Path::new("..data/a"));
    let stamp = fs::read_link(path.join("..data")).unwrap();
    it.mount(spec.clone(), &old).unwrap();
    assert_eq!(fs::read_link(path.join("..data")).unwrap(), stamp, "unchanged data is not written again");
    // A crash between writing and swapping leaves a folder: the next change sweeps it.
    fs::create_dir(path.join("..1_0")).unwrap();
    let new = objects(&[(RefKind::ConfigMap, "cm", json!({"data": {"a": "9", "d": "4"}}))]);
    it.mount(spec, &new).unwrap();
    assert_eq!(fs::read(path.join("a")).unwrap(), b"9");
    let mut names: Vec<_> =
        fs::read_dir(&path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let stamp = fs::read_link(path.join("..data")).unwrap();
    assert_eq!(names, [stamp.to_str().unwrap(), "..data", "a", "d"]);
}

#[test]
fn secrets_items_modes_and_groups() {
    let it = Fixture::new();
    let mut spec =
        volume(json!({"secret": {"secretName": "s", "items": [{"key": "p", "path": "x/y", "mode": 0o600}]}}));
    spec["securityContext"] = json!({"fsGroup": 4242});
    let there = objects(&[(RefKind::Secret, "s", json!({"data": {"p": "aHVzaA=="}}))]);
    let path = it.mount(spec, &there).unwrap()["v"].path.clone();
    let meta = fs::metadata(path.join("x/y")).unwrap();
    assert_eq!((meta.gid(), meta.permissions().mode() & 0o777), (4242, 0o640));
    assert_eq!(fs::read_to_string(path.join("x/y")).unwrap(), "hush");
}

#[test]
fn failures_in_upstreams_words() {
    let it = Fixture::new();
    let none = Objects::new();
    let error = |source: Value, objects: &Objects| it.mount(volume(source), objects).unwrap_err();
    let prefix = "MountVolume.SetUp failed for volume \"v\" : ";
    assert_eq!(
        error(json!({"configMap": {"name": "x"}}), &none),
        format!("{prefix}configmap \"x\" not found")
    );
    let there = objects(&[(RefKind::ConfigMap, "cm", json!({"data": {"a": "1"}}))]);
    assert_eq!(
        error(json!({"configMap": {"name": "cm", "items": [{"key": "z", "path": "z"}]}}), &there),
        format!("{prefix}configmap references non-existent config key: z")
    );
    assert!(
        error(json!({"configMap": {"name": "cm", "items": [{"key": "a", "path": "../z"}]}}), &there)
            .contains("invalid path")
    );
    assert_eq!(
        error(json!({"nfs": {"server": "s", "path": "/"}}), &none),
        format!("{prefix}volume type nfs is not supported yet")
    );
    assert!(it.mount(volume(json!({"configMap": {"name": "x", "optional": true}})), &none).is_ok());
}

#[test]
fn projected_joins_all_sources() {
    let mut it = Fixture::new();
    let need = TokenNeed { audience: String::new(), seconds: 600 };
    let token =
        Token { text: "t0ken".into(), refresh_at: Timestamp::UNIX_EPOCH, expires_at: Timestamp::UNIX_EPOCH };
    let spec = volume(json!({"projected": {"sources": [
        {"configMap": {"name": "cm", "items": [{"key": "a", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "ns", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}}]}}));
    assert_eq!(token_needs(&pod(spec.clone())), std::slice::from_ref(&need));
    let there = objects(&[(RefKind::ConfigMap, "cm", json!({"data": {"a": "1"}}))]);
    it.tokens.insert(need.clone(), Err("no".into()));
    assert!(it.mount(spec.clone(), &there).unwrap_err().ends_with("failed to fetch token: no"));
    it.tokens.insert(need, Ok(token));
    let path = it.mount(spec, &there).unwrap()["v"].path.clone();
    let read = |name: &str| fs::read_to_string(path.join(name)).unwrap();
    assert_eq!((read("ca.crt"), read("ns"), read("token")), ("1".into(), "n".into(), "t0ken".into()));
}

#[test]
fn what_is_secret_goes_to_memory() {
    let it = Fixture::new();
    let secret = json!({"name": "s", "secret": {"secretName": "s"}});
    let field = json!({"path": "n", "fieldRef": {"fieldPath": "metadata.name"}});
    let sources = json!([{"downwardAPI": {"items": [field]}}, {"secret": {"name": "s"}}]);
    let view = pod(json!({"containers": [], "volumes": [secret, {"name": "c", "configMap": {"name": "c"}},
        {"name": "p", "projected": {"sources": sources}}]}));
    assert_eq!(memory_sources(&view), 3);
    let there = objects(&[
        (RefKind::Secret, "s", json!({"data": {"k": "eA=="}})),
        (RefKind::ConfigMap, "c", json!({"data": {"k": "y"}})),
    ]);
    let shim = tempfile::tempdir().unwrap();
    let (ips, tokens) = ([], BTreeMap::new());
    let context = Context {
        pod: &view,
        facts: &it.facts,
        objects: &there,
        tokens: &tokens,
        claims: &it.claims,
        drivers: &PublishedVolumes::new(),
        images: &it.images,
        pod_ips: &ips,
        shim_root: Some(shim.path()),
    };
    let mounted = mount_all(&context).unwrap();
    let inside = |name: &str| shim.path().join(mounted[name].path.strip_prefix("/").unwrap());
    assert_eq!(mounted["s"].path, it.facts.memory_dir("u").join("s"));
    assert_eq!(fs::read(inside("s").join("k")).unwrap(), b"x");
    assert_eq!(fs::read(inside("p").join("n")).unwrap(), b"p");
    assert_eq!(fs::read(mounted["c"].path.join("k")).unwrap(), b"y");
    assert!(!mounted["s"].path.exists() && !it.facts.volume_dir("u", "s").exists(), "nothing on the disk");
}

#[test]
fn empty_dirs_and_host_paths() {
    let it = Fixture::new();
    let mut spec = volume(json!({"emptyDir": {}}));
    spec["securityContext"] = json!({"fsGroup": 77});
    let path = it.mount(spec.clone(), &Objects::new()).unwrap()["v"].path.clone();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.gid(), meta.permissions().mode() & 0o7777), (77, 0o2777));
    fs::write(path.join("kept"), "x").unwrap();
    it.mount(spec, &Objects::new()).unwrap();
    assert!(path.join("kept").exists());
    let host = it.facts.data_dir.join("host");
    let of =
        |kind: &str| it.mount(volume(json!({"hostPath": {"path": host, "type": kind}})), &Objects::new());
    assert!(of("Directory").unwrap_err().ends_with("is not a directory"));
    assert_eq!(of("DirectoryOrCreate").unwrap()["v"].path, host);
    assert!(of("File").unwrap_err().ends_with("is not a file"));
    assert!(of("Socket").unwrap_err().ends_with("is not a socket file"));
}

#[test]
fn claims_are_folders_of_the_node() {
    let mut it = Fixture::new();
    let mut spec = volume(json!({"persistentVolumeClaim": {"claimName": "c"}}));
    let mut bound = |source: Value| {
        it.claims.insert("v".into(), Ok(claimed(source)));
        it.mount(spec.clone(), &Objects::new()).map(|m| m["v"].path.clone())
    };
    let own = json!({"csi": {"driver": DRIVER, "volumeHandle": "pvc-1"}});
    let path = bound(own.clone()).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o777);
    assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o7777, 0o700);
    let no = |answer: Result<PathBuf, String>, words: &str| {
        assert!(answer.unwrap_err().ends_with(words), "{words}")
    };
    no(bound(json!({"csi": {"driver": DRIVER, "volumeHandle": "../x"}})), "is no name");
    no(bound(json!({"csi": {"driver": "d", "volumeHandle": "x"}})), "was not published");
    no(bound(json!({"nfs": {"server": "s", "path": "/"}})), "volume type nfs is not supported on this node");
    no(bound(json!({"volumeMode": "Block", "local": {"path": "/"}})), "/ is no block device");
    no(bound(json!({"local": {"path": "/no/such"}})), "does not exist");
    assert_eq!(bound(json!({"local": {"path": "/"}})).unwrap(), Path::new("/"));
    // A group gets all that is there, links excepted; what a pod has is not walked again.
    fs::create_dir(path.join("sub")).unwrap();
    fs::write(path.join("sub/f"), "").unwrap();
    fs::set_permissions(path.join("sub/f"), fs::Permissions::from_mode(0o600)).unwrap();
    let outside = it.facts.data_dir.join("outside");
    fs::write(&outside, "").unwrap();
    let before = fs::metadata(&outside).unwrap();
    symlink(&outside, path.join("link")).unwrap();
    spec["securityContext"] = json!({"fsGroup": 4242});
    it.claims.insert("v".into(), Ok(claimed(own)));
    let marker = it.facts.volume_dir("u", "v");
    fs::remove_dir(&marker).unwrap();
    it.mount(spec.clone(), &Objects::new()).unwrap();
    let of = |p: &Path| (fs::metadata(p).unwrap().gid(), fs::metadata(p).unwrap().mode() & 0o7777);
    assert_eq!(of(&path.join("sub/f")), (4242, 0o660));
    assert_eq!(of(&path.join("sub")).1 & 0o2770, 0o2770);
    let after = fs::metadata(&outside).unwrap();
    assert_eq!((after.gid(), after.mode()), (before.gid(), before.mode()));
    fs::set_permissions(path.join("sub/f"), fs::Permissions::from_mode(0o600)).unwrap();
    it.mount(spec.clone(), &Objects::new()).unwrap();
    assert_eq!(of(&path.join("sub/f")).1, 0o600, "once a pod");
    fs::remove_dir(&marker).unwrap();
    spec["securityContext"]["fsGroupChangePolicy"] = json!("OnRootMismatch");
    it.mount(spec.clone(), &Objects::new()).unwrap();
    assert_eq!(of(&path.join("sub/f")).1, 0o600, "the root says that all is done");
    it.claims.insert("v".into(), Err("error processing PVC n/c: PVC is not bound".into()));
    assert!(it.mount(spec, &Objects::new()).unwrap_err().ends_with("PVC is not bound"));
}

#[test]
fn sub_paths_never_leave_the_volume() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("v");
    fs::create_dir_all(root.join("in")).unwrap();
    fs::write(dir.path().join("outside"), "secret").unwrap();
    symlink("/", root.join("slash")).unwrap();
    symlink("../../outside", root.join("up")).unwrap();
    symlink("in", root.join("fine")).unwrap();
    let stat = |fd: OwnedFd| {
        let meta = fs::File::from(fd).metadata().unwrap();
        (meta.dev(), meta.ino())
    };
    let of = |path: &Path| {
        let meta = fs::metadata(path).unwrap();
        (meta.dev(), meta.ino())
    };
    let open = |below: &str, create| subpath::open(&root, Path::new(below), create);
    assert_eq!(stat(open("fine", false).unwrap()), of(&root.join("in")));
    symlink("../", root.join("back")).unwrap();
    symlink("../in", root.join("in/round")).unwrap();
    assert_eq!(stat(open("in/round", false).unwrap()), of(&root.join("in")));
    for out in ["slash", "up", "back", "slash/new"] {
        assert!(open(out, true).is_err(), "{out}");
    }
    assert!(open("no", false).is_err());
    assert_eq!(stat(open("a/b/c", true).unwrap()), of(&root.join("a/b/c")));
    fs::set_permissions(&root, fs::Permissions::from_mode(0o3777)).unwrap();
    assert_eq!(stat(open("fine/new", true).unwrap()), of(&root.join("in/new")));
    assert_eq!(fs::metadata(root.join("in/new")).unwrap().mode() & 0o7777, 0o3777, "as the volume's");
    assert_eq!(subpath::read_text(&root, "up", 100), None);
}

use std::os::fd::OwnedFd;
