//! Validation of a pod's volumes.

use crate::kinds::get::entries;
use crate::kinds::meta;
use crate::kinds::spot::Spot;
use crate::name;
use crate::quantity::Quantity;
use std::collections::BTreeSet;

/// Every volume source of the API; each volume has exactly one.
const SOURCES: [&str; 30] = [
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "gitRepo",
    "glusterfs",
    "hostPath",
    "image",
    "iscsi",
    "nfs",
    "persistentVolumeClaim",
    "photonPersistentDisk",
    "portworxVolume",
    "projected",
    "quobyte",
    "rbd",
    "scaleIO",
    "secret",
    "storageos",
    "vsphereVolume",
];
const PROJECTIONS: [&str; 6] =
    ["clusterTrustBundle", "configMap", "downwardAPI", "podCertificate", "secret", "serviceAccountToken"];
const HOST_PATH_TYPES: [&str; 7] =
    ["BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
/// Fields of a pod that its own files and variables may show.
pub const POD_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// Fields of a pod that a volume's files may show.
const VOLUME_FIELDS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
const MODE_WORDS: &str = "must be a number between 0 and 0777 (octal), both inclusive";

/// Checks all volumes; gives their names, for the mounts.
pub fn validate<'a>(spec: &Spot<'a>) -> BTreeSet<&'a str> {
    let mut names = BTreeSet::new();
    for volume in spec.each("volumes") {
        source(&volume);
        if let Some(own) = volume.need("name") {
            volume.like("name", name::dns1123_label);
            volume.unique("name", own, &mut names);
        }
    }
    names
}

fn source(volume: &Spot) {
    let given = volume.given(&SOURCES);
    if given.is_empty() {
        volume.required("", "must specify a volume type");
    }
    for (n, kind) in given.iter().enumerate() {
        let v = volume.key(kind);
        if n > 0 {
            v.forbidden("", "may not specify more than 1 volume type");
            continue;
        }
        match *kind {
            "emptyDir" => empty_dir(&v),
            "hostPath" => {
                if v.need("path").is_some() {
                    no_back_steps(&v.key("path"));
                }
                v.one_of_opt("type", &HOST_PATH_TYPES);
            }
            "secret" => named_files(&v, "secretName"),
            "configMap" => named_files(&v, "name"),
            "downwardAPI" => {
                mode(&v, "defaultMode");
                downward_files(&v);
            }
            "projected" => projected(&v),
            "image" => {
                v.need("reference");
                v.one_of_opt("pullPolicy", &["Always", "IfNotPresent", "Never"]);
            }
            "nfs" => {
                v.need("server");
                if v.need("path").is_some_and(|dir| !dir.starts_with('/')) {
                    v.wrong("path", "must be an absolute path");
                }
            }
            "ephemeral" => match v.opt("volumeClaimTemplate") {
                Some(template) => claim_template(&template),
                None => v.required("volumeClaimTemplate", ""),
            },
            other => plain(other, &v),
        }
    }
}

/// The claim that an ephemeral volume makes.
fn claim_template(t: &Spot) {
    let metadata = t.key("metadata");
    for (key, _) in entries(metadata.v, "").filter(|(k, _)| !matches!(*k, "labels" | "annotations")) {
        metadata.forbidden(key, "may not be set");
    }
    meta::labels(&metadata.key("labels"));
    meta::annotations(&metadata.key("annotations"));
    crate::kinds::storage::claim(&t.key("spec"));
}

/// What must be given of volumes of little else. Plug-ins that no node has any more are still checked, as upstream does.
const NEEDED: [(&str, &[&str]); 17] = [
    ("awsElasticBlockStore", &["volumeID"]),
    ("azureDisk", &["diskName", "diskURI"]),
    ("azureFile", &["secretName", "shareName"]),
    ("cinder", &["volumeID"]),
    ("csi", &["driver"]),
    ("flexVolume", &["driver"]),
    ("gcePersistentDisk", &["pdName"]),
    ("gitRepo", &["repository"]),
    ("glusterfs", &["endpoints", "path"]),
    ("iscsi", &["targetPortal", "iqn"]),
    ("persistentVolumeClaim", &["claimName"]),
    ("photonPersistentDisk", &["pdID"]),
    ("portworxVolume", &["volumeID"]),
    ("quobyte", &["registry", "volume"]),
    ("rbd", &["image"]),
    ("scaleIO", &["gateway", "system", "volumeName"]),
    ("vsphereVolume", &["volumePath"]),
];

fn plain(kind: &str, v: &Spot) {
    let fields = NEEDED.iter().find(|(k, _)| *k == kind).map_or(&[][..], |(_, fields)| fields);
    for key in fields {
        v.need(key);
    }
    match kind {
        "cephfs" | "rbd" if v.list("monitors").is_empty() => v.required("monitors", ""),
        "fc" => fibre(v),
        "flocker" => match (v.text("datasetName"), v.text("datasetUUID")) {
            ("", "") => v.required("", "one of datasetName and datasetUUID is required"),
            ("", _) | (_, "") => {}
            _ => {
                let words = "datasetName and datasetUUID can not be specified simultaneously";
                v.invalid("", "resource", words);
            }
        },
        "gitRepo" if !v.text("directory").is_empty() => local_path(&v.key("directory")),
        "iscsi" => v.within_or_zero("lun", 0..=255, &name::range_words(0, 255)),
        "awsElasticBlockStore" | "gcePersistentDisk" => {
            v.within("partition", 0..=255, &name::range_words(0, 255));
        }
        _ => {}
    }
}

fn fibre(v: &Spot) {
    let (names, ids) = (!v.list("targetWWNs").is_empty(), !v.list("wwids").is_empty());
    if !names && !ids {
        v.required("targetWWNs", "must specify either targetWWNs or wwids, but not both");
    }
    if names && ids {
        v.wrong("targetWWNs", "targetWWNs and wwids can not be specified simultaneously");
    }
    if names && v.int("lun").is_none() {
        v.required("lun", "lun is required if targetWWNs is specified");
    } else if names {
        v.within("lun", 0..=255, &name::range_words(0, 255));
    }
}

fn empty_dir(v: &Spot) {
    if let Some(Some(Ok(limit))) = v.v.get("sizeLimit").map(Quantity::from_json)
        && limit.sign() < 0
    {
        v.forbidden("sizeLimit", "SizeLimit field must be a valid resource quantity");
    }
}

fn no_back_steps(s: &Spot) {
    if s.text("").split('/').any(|step| step == "..") {
        s.wrong("", "must not contain '..'");
    }
}

/// A path below some directory.
pub fn local_path(s: &Spot) {
    if s.text("").starts_with('/') {
        s.wrong("", "must be a relative path");
    }
    no_back_steps(s);
}

/// The path of a file in a volume.
fn file_path(v: &Spot) {
    let Some(given) = v.need("path") else { return };
    local_path(&v.key("path"));
    if given.starts_with("..") && !given.split('/').any(|step| step == "..") {
        v.wrong("path", "must not start with '..'");
    }
}

fn mode(v: &Spot, key: &str) {
    v.within(key, 0..=0o777, MODE_WORDS);
}

/// A Secret or ConfigMap, by name, with `items` and `defaultMode`.
fn named_files(v: &Spot, key: &str) {
    v.need(key);
    mode(v, "defaultMode");
    for item in v.each("items") {
        item.need("key");
        file_path(&item);
        mode(&item, "mode");
    }
}

fn downward_files(v: &Spot) {
    for item in v.each("items") {
        file_path(&item);
        match (item.opt("fieldRef"), item.opt("resourceFieldRef")) {
            (Some(_), Some(_)) => {
                let words = "fieldRef and resourceFieldRef can not be specified simultaneously";
                item.invalid("", "resource", words);
            }
            (Some(field), None) => field_ref(&field, &VOLUME_FIELDS),
            (None, Some(resource)) => {
                resource.need("containerName");
                resource_ref(&resource);
            }
            (None, None) => item.required("", "one of fieldRef and resourceFieldRef is required"),
        }
        mode(&item, "mode");
    }
}

fn projected(v: &Spot) {
    mode(v, "defaultMode");
    for source in v.each("sources") {
        let given = source.given(&PROJECTIONS);
        for (n, kind) in given.iter().enumerate() {
            let own = source.key(kind);
            match *kind {
                _ if n > 0 => own.forbidden("", "may not specify more than 1 volume type"),
                "secret" | "configMap" => named_files(&own, "name"),
                "downwardAPI" => downward_files(&own),
                "serviceAccountToken" => {
                    let words = "may not specify a duration less than 10 minutes";
                    own.within("expirationSeconds", 600..=i64::MAX, words);
                    file_path(&own);
                }
                _ => {}
            }
        }
        if given.is_empty() {
            source.required("", "must specify a projection");
        }
    }
}

/// A `fieldRef`: known fields, or one label or annotation by key.
pub fn field_ref(r: &Spot, fields: &[&str]) {
    r.need("apiVersion");
    let Some(field) = r.need("fieldPath") else { return };
    let Some((map, key)) = field.strip_suffix("']").and_then(|f| f.split_once("['")) else {
        return r.known("fieldPath", fields);
    };
    match map {
        "metadata.labels" => r.invalid_all("fieldPath", key, name::qualified_name(key)),
        "metadata.annotations" => {
            r.invalid_all("fieldPath", key, name::qualified_name(&key.to_lowercase()));
        }
        _ => r.wrong("fieldPath", "does not support subscript"),
    }
}

/// A `resourceFieldRef`.
pub fn resource_ref(r: &Spot) {
    const RESOURCES: [&str; 6] = [
        "limits.cpu",
        "limits.ephemeral-storage",
        "limits.memory",
        "requests.cpu",
        "requests.ephemeral-storage",
        "requests.memory",
    ];
    const UNITS: [&str; 15] =
        ["", "0", "1", "1E", "1Ei", "1G", "1Gi", "1k", "1Ki", "1M", "1Mi", "1P", "1Pi", "1T", "1Ti"];
    let Some(resource) = r.need("resource") else { return };
    let pages = ["limits.hugepages-", "requests.hugepages-"].iter().any(|p| resource.starts_with(p));
    if !pages {
        r.known("resource", &RESOURCES);
    }
    let (allowed, shown, kind) = if resource.ends_with(".cpu") {
        (&["", "0", "1", "1m"][..], "1m and 1 are", "cpu")
    } else {
        (&UNITS[..], "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are", "memory")
    };
    if !allowed.contains(&r.text("divisor")) {
        let words = format!("only divisor's values {shown} supported with the {kind} resource");
        r.invalid("divisor", r.text("divisor"), &words);
    }
}

/// Mounts of one container.
pub fn mounts(container: &Spot, volumes: &BTreeSet<&str>) {
    let mut points = BTreeSet::new();
    for mount in container.each("volumeMounts") {
        if let Some(own) = mount.need("name").filter(|own| !volumes.contains(own)) {
            mount.not_found("name", own);
        }
        if mount.need("mountPath").is_some_and(|point| !points.insert(point)) {
            mount.wrong("mountPath", "must be unique");
        }
        let given: Vec<&str> =
            ["subPath", "subPathExpr"].into_iter().filter(|k| !mount.text(k).is_empty()).collect();
        if given.len() > 1 {
            mount.wrong("subPathExpr", "subPathExpr and subPath are mutually exclusive");
        }
        given.iter().for_each(|key| local_path(&mount.key(key)));
        mount.one_of_opt("mountPropagation", &["Bidirectional", "HostToContainer", "None"]);
        mount.one_of_opt("recursiveReadOnly", &["Disabled", "Enabled", "IfPossible"]);
        let propagation = mount.text("mountPropagation");
        if matches!(mount.text("recursiveReadOnly"), "Enabled" | "IfPossible") {
            if !mount.flag("readOnly") {
                mount.forbidden("recursiveReadOnly", "may only be specified when readOnly is true");
            }
            if !matches!(propagation, "" | "None") {
                let words = "may only be specified when mountPropagation is None or not specified";
                mount.forbidden("recursiveReadOnly", words);
            }
        }
        if propagation == "Bidirectional" && !container.flag("securityContext.privileged") {
            let words = "Bidirectional mount propagation is available only to privileged containers";
            mount.forbidden("mountPropagation", words);
        }
    }
}
