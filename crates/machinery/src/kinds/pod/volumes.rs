//! Validation of a pod's volumes.

use crate::field_errors::FieldErrors;
use crate::kinds::get::{entries, enumerated_opt, has, int, list, required, text};
use crate::name;
use crate::quantity::Quantity;
use serde_json::Value;
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
pub fn validate<'a>(spec: &'a Value, path: &str, errors: &mut FieldErrors) -> BTreeSet<&'a str> {
    let mut names = BTreeSet::new();
    for (i, volume) in list(spec, "/volumes").iter().enumerate() {
        let path = format!("{path}[{i}]");
        source(volume, &path, errors);
        let name_path = format!("{path}.name");
        let own = text(volume, "/name");
        if own.is_empty() {
            errors.required(&name_path, "");
            continue;
        }
        errors.invalid_all(&name_path, own, name::dns1123_label(own));
        if !names.insert(own) {
            errors.duplicate(&name_path, own);
        }
    }
    names
}

fn source(volume: &Value, path: &str, errors: &mut FieldErrors) {
    let given: Vec<&str> = SOURCES.iter().filter(|s| has(volume, &format!("/{s}"))).copied().collect();
    if given.is_empty() {
        errors.required(path, "must specify a volume type");
    }
    for (n, kind) in given.iter().enumerate() {
        let path = format!("{path}.{kind}");
        if n > 0 {
            errors.forbidden(&path, "may not specify more than 1 volume type");
            continue;
        }
        let v = &volume[*kind];
        match *kind {
            "emptyDir" => empty_dir(v, &path, errors),
            "hostPath" => host_path(v, &path, errors),
            "secret" => {
                required(v, &path, "secretName", errors);
                files(v, &path, errors);
            }
            "configMap" => {
                required(v, &path, "name", errors);
                files(v, &path, errors);
            }
            "downwardAPI" => {
                mode(v, &path, "defaultMode", errors);
                downward_files(v, &path, errors);
            }
            "projected" => projected(v, &path, errors),
            "persistentVolumeClaim" => drop(required(v, &path, "claimName", errors)),
            "csi" => drop(required(v, &path, "driver", errors)),
            "image" => {
                required(v, &path, "reference", errors);
                enumerated_opt(v, &path, "pullPolicy", &["Always", "IfNotPresent", "Never"], errors);
            }
            "nfs" => nfs(v, &path, errors),
            "ephemeral" if !has(v, "/volumeClaimTemplate") => {
                errors.required(&format!("{path}.volumeClaimTemplate"), "");
            }
            "ephemeral" => claim_template(&v["volumeClaimTemplate"], &path, errors),
            other => retired(other, v, &path, errors),
        }
    }
}

/// The claim that an ephemeral volume makes.
fn claim_template(t: &Value, path: &str, errors: &mut FieldErrors) {
    let path = format!("{path}.volumeClaimTemplate");
    let metadata = format!("{path}.metadata");
    for (key, _) in entries(t, "/metadata").filter(|(k, _)| !matches!(*k, "labels" | "annotations")) {
        errors.forbidden(&format!("{metadata}.{key}"), "may not be set");
    }
    crate::kinds::meta::labels(t, "/metadata/labels", &format!("{metadata}.labels"), errors);
    crate::kinds::meta::annotations(t, "/metadata/annotations", &format!("{metadata}.annotations"), errors);
    crate::kinds::storage::claim_at(&t["spec"], &format!("{path}.spec"), errors);
}

/// Plug-ins that no node has any more: their fields are still checked, as upstream does.
const RETIRED: [(&str, &[&str]); 16] = [
    ("awsElasticBlockStore", &["volumeID"]),
    ("azureDisk", &["diskName", "diskURI"]),
    ("azureFile", &["secretName", "shareName"]),
    ("cinder", &["volumeID"]),
    ("flexVolume", &["driver"]),
    ("gcePersistentDisk", &["pdName"]),
    ("gitRepo", &["repository"]),
    ("glusterfs", &["endpoints", "path"]),
    ("photonPersistentDisk", &["pdID"]),
    ("portworxVolume", &["volumeID"]),
    ("quobyte", &["registry", "volume"]),
    ("rbd", &["image"]),
    ("scaleIO", &["gateway", "system", "volumeName"]),
    ("vsphereVolume", &["volumePath"]),
    ("iscsi", &["targetPortal", "iqn"]),
    ("cephfs", &[]),
];

fn retired(kind: &str, v: &Value, path: &str, errors: &mut FieldErrors) {
    let fields = RETIRED.iter().find(|(k, _)| *k == kind).map_or(&[][..], |(_, fields)| fields);
    for key in fields {
        required(v, path, key, errors);
    }
    match kind {
        "cephfs" | "rbd" if list(v, "/monitors").is_empty() => {
            errors.required(&format!("{path}.monitors"), "");
        }
        "fc" => fibre(v, path, errors),
        "flocker" => match (text(v, "/datasetName"), text(v, "/datasetUUID")) {
            ("", "") => errors.required(path, "one of datasetName and datasetUUID is required"),
            (a, b) if !a.is_empty() && !b.is_empty() => {
                errors.invalid(
                    path,
                    "resource",
                    "datasetName and datasetUUID can not be specified simultaneously",
                );
            }
            _ => {}
        },
        "gitRepo" => {
            let dir = text(v, "/directory");
            if !dir.is_empty() {
                local_path(dir, &format!("{path}.directory"), errors);
            }
        }
        "iscsi" => {
            let lun = int(v, "/lun").unwrap_or(0);
            if !(0..=255).contains(&lun) {
                errors.invalid(&format!("{path}.lun"), lun, &name::range_words(0, 255));
            }
        }
        "awsElasticBlockStore" | "gcePersistentDisk" => {
            if let Some(n) = int(v, "/partition").filter(|n| !(0..=255).contains(n)) {
                errors.invalid(&format!("{path}.partition"), n, &name::range_words(0, 255));
            }
        }
        _ => {}
    }
}

fn fibre(v: &Value, path: &str, errors: &mut FieldErrors) {
    let (names, ids) = (!list(v, "/targetWWNs").is_empty(), !list(v, "/wwids").is_empty());
    if !names && !ids {
        let words = "must specify either targetWWNs or wwids, but not both";
        errors.required(&format!("{path}.targetWWNs"), words);
    }
    if names && ids {
        let words = "targetWWNs and wwids can not be specified simultaneously";
        errors.invalid(&format!("{path}.targetWWNs"), v["targetWWNs"].clone(), words);
    }
    if names {
        match int(v, "/lun") {
            None => errors.required(&format!("{path}.lun"), "lun is required if targetWWNs is specified"),
            Some(lun) if !(0..=255).contains(&lun) => {
                errors.invalid(&format!("{path}.lun"), lun, &name::range_words(0, 255));
            }
            Some(_) => {}
        }
    }
}

fn empty_dir(v: &Value, path: &str, errors: &mut FieldErrors) {
    if let Some(Some(Ok(limit))) = v.get("sizeLimit").map(Quantity::from_json)
        && limit.sign() < 0
    {
        let words = "SizeLimit field must be a valid resource quantity";
        errors.forbidden(&format!("{path}.sizeLimit"), words);
    }
}

fn host_path(v: &Value, path: &str, errors: &mut FieldErrors) {
    if let Some(dir) = required(v, path, "path", errors) {
        no_back_steps(dir, &format!("{path}.path"), errors);
    }
    enumerated_opt(v, path, "type", &HOST_PATH_TYPES, errors);
}

fn nfs(v: &Value, path: &str, errors: &mut FieldErrors) {
    required(v, path, "server", errors);
    if let Some(dir) = required(v, path, "path", errors)
        && !dir.starts_with('/')
    {
        errors.invalid(&format!("{path}.path"), dir, "must be an absolute path");
    }
}

fn no_back_steps(given: &str, path: &str, errors: &mut FieldErrors) {
    if given.split('/').any(|step| step == "..") {
        errors.invalid(path, given, "must not contain '..'");
    }
}

/// A path below some directory.
pub fn local_path(given: &str, path: &str, errors: &mut FieldErrors) {
    if given.starts_with('/') {
        errors.invalid(path, given, "must be a relative path");
    }
    no_back_steps(given, path, errors);
}

fn local_file(given: &str, path: &str, errors: &mut FieldErrors) {
    local_path(given, path, errors);
    if given.starts_with("..") && !given.split('/').any(|step| step == "..") {
        errors.invalid(path, given, "must not start with '..'");
    }
}

fn mode(v: &Value, path: &str, key: &str, errors: &mut FieldErrors) {
    if let Some(bits) = int(v, &format!("/{key}"))
        && !(0..=0o777).contains(&bits)
    {
        errors.invalid(&format!("{path}.{key}"), bits, MODE_WORDS);
    }
}

/// `items` and `defaultMode` of a Secret or ConfigMap source.
fn files(v: &Value, path: &str, errors: &mut FieldErrors) {
    mode(v, path, "defaultMode", errors);
    for (i, item) in list(v, "/items").iter().enumerate() {
        let path = format!("{path}.items[{i}]");
        required(item, &path, "key", errors);
        if let Some(file) = required(item, &path, "path", errors) {
            local_file(file, &format!("{path}.path"), errors);
        }
        mode(item, &path, "mode", errors);
    }
}

fn downward_files(v: &Value, path: &str, errors: &mut FieldErrors) {
    for (i, item) in list(v, "/items").iter().enumerate() {
        let path = format!("{path}.items[{i}]");
        if let Some(file) = required(item, &path, "path", errors) {
            local_file(file, &format!("{path}.path"), errors);
        }
        match (has(item, "/fieldRef"), has(item, "/resourceFieldRef")) {
            (true, true) => {
                errors.invalid(
                    &path,
                    "resource",
                    "fieldRef and resourceFieldRef can not be specified simultaneously",
                );
            }
            (true, false) => {
                field_ref(&item["fieldRef"], &format!("{path}.fieldRef"), &VOLUME_FIELDS, errors)
            }
            (false, true) => {
                required(
                    &item["resourceFieldRef"],
                    &format!("{path}.resourceFieldRef"),
                    "containerName",
                    errors,
                );
                resource_ref(&item["resourceFieldRef"], &format!("{path}.resourceFieldRef"), errors);
            }
            (false, false) => errors.required(&path, "one of fieldRef and resourceFieldRef is required"),
        }
        mode(item, &path, "mode", errors);
    }
}

fn projected(v: &Value, path: &str, errors: &mut FieldErrors) {
    mode(v, path, "defaultMode", errors);
    for (i, source) in list(v, "/sources").iter().enumerate() {
        let path = format!("{path}.sources[{i}]");
        let given: Vec<&str> =
            PROJECTIONS.iter().filter(|s| has(source, &format!("/{s}"))).copied().collect();
        for (n, kind) in given.iter().enumerate() {
            let own = format!("{path}.{kind}");
            if n > 0 {
                errors.forbidden(&own, "may not specify more than 1 volume type");
                continue;
            }
            match *kind {
                "secret" | "configMap" => {
                    required(&source[*kind], &own, "name", errors);
                    files(&source[*kind], &own, errors);
                }
                "downwardAPI" => downward_files(&source[*kind], &own, errors),
                "serviceAccountToken" => {
                    token(&source[*kind], &own, errors);
                }
                _ => {}
            }
        }
        if given.is_empty() {
            errors.required(&path, "must specify a projection");
        }
    }
}

fn token(v: &Value, path: &str, errors: &mut FieldErrors) {
    if int(v, "/expirationSeconds").is_some_and(|s| s < 600) {
        let given = int(v, "/expirationSeconds").unwrap_or(0);
        errors.invalid(
            &format!("{path}.expirationSeconds"),
            given,
            "may not specify a duration less than 10 minutes",
        );
    }
    if let Some(file) = required(v, path, "path", errors) {
        local_file(file, &format!("{path}.path"), errors);
    }
}

/// A `fieldRef`: known fields, or one label or annotation by key.
pub fn field_ref(r: &Value, path: &str, fields: &[&str], errors: &mut FieldErrors) {
    required(r, path, "apiVersion", errors);
    let Some(field) = required(r, path, "fieldPath", errors) else { return };
    let path = format!("{path}.fieldPath");
    let Some((map, key)) = field.strip_suffix("']").and_then(|f| f.split_once("['")) else {
        errors.one_of(&path, field, fields);
        return;
    };
    match map {
        "metadata.labels" => errors.invalid_all(&path, key, name::qualified_name(key)),
        "metadata.annotations" => errors.invalid_all(&path, key, name::qualified_name(&key.to_lowercase())),
        _ => errors.invalid(&path, field, "does not support subscript"),
    }
}

/// A `resourceFieldRef`.
pub fn resource_ref(r: &Value, path: &str, errors: &mut FieldErrors) {
    const RESOURCES: [&str; 6] = [
        "limits.cpu",
        "limits.ephemeral-storage",
        "limits.memory",
        "requests.cpu",
        "requests.ephemeral-storage",
        "requests.memory",
    ];
    let Some(resource) = required(r, path, "resource", errors) else { return };
    let pages = ["limits.hugepages-", "requests.hugepages-"].iter().any(|p| resource.starts_with(p));
    if !pages {
        errors.one_of(&format!("{path}.resource"), resource, &RESOURCES);
    }
    let divisor = text(r, "/divisor");
    let allowed: &[&str] = if resource.ends_with(".cpu") {
        &["", "0", "1", "1m"]
    } else {
        &["", "0", "1", "1E", "1Ei", "1G", "1Gi", "1k", "1Ki", "1M", "1Mi", "1P", "1Pi", "1T", "1Ti"]
    };
    if !allowed.contains(&divisor) {
        let what = if resource.ends_with(".cpu") {
            "1m and 1 are"
        } else {
            "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are"
        };
        let words = format!(
            "only divisor's values {what} supported with the {} resource",
            if resource.ends_with(".cpu") { "cpu" } else { "memory" }
        );
        errors.invalid(&format!("{path}.divisor"), divisor, &words);
    }
}

/// Mounts of one container.
pub fn mounts(container: &Value, volumes: &BTreeSet<&str>, path: &str, errors: &mut FieldErrors) {
    let mut points = BTreeSet::new();
    for (i, mount) in list(container, "/volumeMounts").iter().enumerate() {
        let path = format!("{path}.volumeMounts[{i}]");
        if let Some(own) = required(mount, &path, "name", errors)
            && !volumes.contains(own)
        {
            errors.not_found(&format!("{path}.name"), own);
        }
        if let Some(point) = required(mount, &path, "mountPath", errors)
            && !points.insert(point)
        {
            errors.invalid(&format!("{path}.mountPath"), point, "must be unique");
        }
        let (sub, expr) = (text(mount, "/subPath"), text(mount, "/subPathExpr"));
        if !sub.is_empty() && !expr.is_empty() {
            errors.invalid(
                &format!("{path}.subPathExpr"),
                expr,
                "subPathExpr and subPath are mutually exclusive",
            );
        }
        for (key, given) in [("subPath", sub), ("subPathExpr", expr)] {
            if !given.is_empty() {
                local_path(given, &format!("{path}.{key}"), errors);
            }
        }
        enumerated_opt(
            mount,
            &path,
            "mountPropagation",
            &["Bidirectional", "HostToContainer", "None"],
            errors,
        );
        let modes = ["Disabled", "Enabled", "IfPossible"];
        enumerated_opt(mount, &path, "recursiveReadOnly", &modes, errors);
        if matches!(text(mount, "/recursiveReadOnly"), "Enabled" | "IfPossible") {
            let path = format!("{path}.recursiveReadOnly");
            if !crate::kinds::get::flag(mount, "/readOnly") {
                errors.forbidden(&path, "may only be specified when readOnly is true");
            }
            if !matches!(text(mount, "/mountPropagation"), "" | "None") {
                let words = "may only be specified when mountPropagation is None or not specified";
                errors.forbidden(&path, words);
            }
        }
        if text(mount, "/mountPropagation") == "Bidirectional"
            && !crate::kinds::get::flag(container, "/securityContext/privileged")
        {
            errors.forbidden(
                &format!("{path}.mountPropagation"),
                "Bidirectional mount propagation is available only to privileged containers",
            );
        }
    }
}

/// Keys and string values of a map must be valid labels (`nodeSelector`).
pub fn label_map(v: &Value, key: &str, path: &str, errors: &mut FieldErrors) {
    for (key, value) in entries(v, &format!("/{key}")) {
        errors.invalid_all(path, key, name::qualified_name(key));
        let value = value.as_str().unwrap_or_default();
        errors.invalid_all(path, value, name::label_value(value));
    }
}
