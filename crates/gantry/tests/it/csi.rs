//! CSI end to end with a driver in a pod: a claim's volume is made, attached, staged and published, outlives its pods,
//! grows and is deleted; block volumes, inline volumes; a killed agent; nothing stays mounted.

use crate::{busy, csi_driver, has, logged, pod, ready};
use anyhow::{Result, ensure};
use testkit::cluster::Cluster;

#[test]
fn drivers_serve_volumes() {
    let mut cluster = busy();
    scenario(&mut cluster).unwrap();
}

fn claim(name: &str, mode: &str) -> String {
    format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\nspec:\n  accessModes: [ReadWriteOnce]\n  \
         volumeMode: {mode}\n  storageClassName: folders\n  resources: {{requests: {{storage: 4Mi}}}}\n---\n"
    )
}

fn user(name: &str, claim: &str, script: &str) -> String {
    let volume = format!("volumes:\n- {{name: v, persistentVolumeClaim: {{claimName: {claim}}}}}");
    pod(name, script, "volumeMounts: [{name: v, mountPath: /v}]", &volume)
}

fn scenario(cluster: &mut Cluster) -> Result<()> {
    let data = cluster.folder().join("volumes-of-driver");
    cluster.apply(&csi_driver::manifest(&data))?;
    cluster.eventually("the driver is registered", || {
        let drivers =
            cluster.kubectl(&["get", "csinode", "node-1", "-o", "jsonpath={.spec.drivers[*].name}"])?;
        has(&drivers, &[csi_driver::NAME])
    })?;
    cluster.eventually("its zone is a label", || {
        let labels = cluster.kubectl(&["get", "node", "node-1", "-o", "jsonpath={.metadata.labels}"])?;
        has(&labels, &["topology.test.gantry.dev/zone"])
    })?;
    room(cluster)?;
    cluster.apply(&(claim("c", "Filesystem") + &user("a", "c", "echo one > /v/f; exec sleep 1000")))?;
    ready(cluster, "a")?;
    let volume = cluster.field(&["pvc", "c"], "/spec/volumeName")?;
    let held = cluster.kubectl(&["get", "pv", &volume, "-o", "jsonpath={.metadata.finalizers}"])?;
    has(&held, &["external-provisioner.volume.kubernetes.io/finalizer"])?;
    let attached =
        cluster.kubectl(&["get", "volumeattachment", "-o", "jsonpath={.items[*].status.attached}"])?;
    ensure!(attached == "true", "{attached}");
    let unique = format!("kubernetes.io/csi/{}^{volume}", csi_driver::NAME);
    cluster.eventually("the node tells of it", || {
        let node = cluster.kubectl(&["get", "node", "node-1", "-o", "jsonpath={.status}"])?;
        has(&node, &["volumesInUse", "volumesAttached", &unique])
    })?;
    cluster.kubectl(&["delete", "pod", "a"])?;
    cluster.apply(&user("b", "c", "cat /v/f; exec sleep 1000"))?;
    logged(cluster, "b", &["one"])?;
    grow(cluster)?;
    copies(cluster)?;
    cluster.kill9()?;
    cluster.up()?;
    others(cluster)?;
    cluster.kubectl(&["delete", "pod", "b", "block", "inline", "clone", "restored"])?;
    cluster.kubectl(&["delete", "volumesnapshot", "s"])?;
    cluster.kubectl(&["delete", "pvc", "c", "d", "clone", "restored"])?;
    cluster.eventually("all is gone", || {
        let left =
            cluster.kubectl(&["get", "pv,pvc,volumeattachment,volumeattributesclass", "-o", "name"])?;
        let mounts = cluster.sh(&format!(
            "grep -c '{}/kubelet/p.*csi' /proc/self/mountinfo; true",
            cluster.folder().display()
        ))?;
        let files = cluster.sh(&format!("ls {}", data.display()))?;
        ensure!(left.is_empty() && mounts.trim() == "0" && files.is_empty(), "{left} {mounts} {files}");
        Ok(())
    })
}

/// What the driver has room for is told, and a pod that wants more waits.
fn room(cluster: &Cluster) -> Result<()> {
    let path = "jsonpath={range .items[*]}{.storageClassName} {.capacity} {.nodeTopology.matchLabels}{end}";
    cluster.eventually("the driver's room is told", || {
        let told = cluster.kubectl(&["get", "csistoragecapacity", "-n", "kube-system", "-o", path])?;
        has(&told, &["folders 5Gi", r#"{"topology.test.gantry.dev/zone":"z1"}"#])
    })?;
    let large = claim("large", "Filesystem").replace("4Mi", "6Gi");
    cluster.apply(&(large + &user("large", "large", "exec sleep 1000")))?;
    cluster.eventually("the large claim's pod waits", || {
        let why =
            cluster.kubectl(&["get", "pod", "large", "-o", "jsonpath={.status.conditions[0].message}"])?;
        has(&why, &["node(s) did not have enough free storage"])
    })?;
    cluster.kubectl(&["delete", "pod/large", "pvc/large"]).map(drop)
}

fn grow(cluster: &Cluster) -> Result<()> {
    let more = r#"{"spec": {"resources": {"requests": {"storage": "8Mi"}}}}"#;
    cluster.kubectl(&["patch", "pvc", "c", "-p", more])?;
    cluster.eventually("the claim has grown", || {
        let size = cluster.field(&["pvc", "c"], "/status/capacity/storage")?;
        ensure!(size == "8Mi", "{size}");
        Ok(())
    })?;
    called(cluster, &["NodeExpandVolume"])?;
    let used = r#"kubelet_volume_stats_used_bytes{namespace="default",persistentvolumeclaim="c"} 400"#;
    cluster.eventually("what it uses", || {
        has(&cluster.kubectl(&["get", "--raw", "/api/v1/nodes/node-1/proxy/metrics"])?, &[used])
    })
}

/// Waits until the driver's log has these words.
fn called(cluster: &Cluster, words: &[&str]) -> Result<()> {
    cluster.eventually("the driver was called", || {
        has(&cluster.kubectl(&["logs", "-n", "kube-system", "driver"])?, words)
    })
}

/// Definitions as upstream's, but for their schemas.
fn definition(kind: &str, plural: &str, scope: &str) -> String {
    format!(
        "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {{name: {plural}.snapshot.storage.k8s.io, \
         annotations: {{api-approved.kubernetes.io: 'https://github.com/kubernetes-csi/external-snapshotter/pull/814'}}}}\nspec:\n  \
         group: snapshot.storage.k8s.io\n  names: {{kind: {kind}, plural: {plural}, singular: {}}}\n  scope: {scope}\n  versions:\n  \
         - {{name: v1, served: true, storage: true, subresources: {{status: {{}}}}, schema: {{openAPIV3Schema: {{type: object, \
         x-kubernetes-preserve-unknown-fields: true}}}}}}\n---\n",
        kind.to_lowercase()
    )
}

/// A claim's clone, a snapshot and a claim from it, and other attributes.
fn copies(cluster: &Cluster) -> Result<()> {
    cluster.apply(
        &(definition("VolumeSnapshot", "volumesnapshots", "Namespaced")
            + &definition("VolumeSnapshotContent", "volumesnapshotcontents", "Cluster")
            + &definition("VolumeSnapshotClass", "volumesnapshotclasses", "Cluster")),
    )?;
    let name = csi_driver::NAME;
    let class = format!(
        "apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshotClass\nmetadata: {{name: s}}\ndriver: {name}\ndeletionPolicy: Delete\n---\n\
         apiVersion: storage.k8s.io/v1\nkind: VolumeAttributesClass\nmetadata: {{name: gold}}\ndriverName: {name}\nparameters: {{mode: shiny}}\n---\n\
         apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshot\nmetadata: {{name: s}}\nspec: {{source: {{persistentVolumeClaimName: c}}, volumeSnapshotClassName: s}}\n"
    );
    cluster.eventually("the kinds are served", || cluster.apply(&class))?;
    let from = |name: &str, source: &str| {
        let claim = claim(name, "Filesystem");
        claim.replace("  resources:", &format!("  dataSource: {source}\n  resources:"))
            + &user(name, name, "cat /v/f; exec sleep 1000")
            + "---\n"
    };
    let clone = from("clone", "{kind: PersistentVolumeClaim, name: c}");
    let restored = from("restored", "{apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: s}");
    cluster.apply(&(clone + &restored))?;
    logged(cluster, "clone", &["one"])?;
    logged(cluster, "restored", &["one"])?;
    let change = r#"{"spec": {"volumeAttributesClassName": "gold"}}"#;
    cluster.kubectl(&["patch", "pvc", "c", "-p", change])?;
    cluster.eventually("the volume has other attributes", || {
        let current = cluster.field(&["pvc", "c"], "/status/currentVolumeAttributesClassName")?;
        ensure!(current == "gold", "{current}");
        Ok(())
    })?;
    called(cluster, &["ControllerModifyVolume", "shiny"])?;
    // It stays until the claim that has it is gone, which is looked at in the end.
    cluster.kubectl(&["delete", "volumeattributesclass", "gold", "--wait=false"])?;
    cluster.kubectl(&["get", "volumeattributesclass", "gold"]).map(drop)
}

/// A device, and a volume of a pod's own.
fn others(cluster: &Cluster) -> Result<()> {
    let script =
        "echo word | dd of=/dev/disk bs=512 conv=sync; echo read $(head -c 4 /dev/disk); exec sleep 1000";
    let volume = "volumes:\n- {name: v, persistentVolumeClaim: {claimName: d}}";
    let block = pod("block", script, "volumeDevices: [{name: v, devicePath: /dev/disk}]", volume);
    let volume = format!(
        "volumes:\n- name: v\n  csi: {{driver: {}, nodePublishSecretRef: {{name: s}}}}",
        csi_driver::NAME
    );
    let inline =
        pod("inline", "cat /v/pod; exec sleep 1000", "volumeMounts: [{name: v, mountPath: /v}]", &volume);
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {word: hidden}\n---\n";
    cluster.apply(&(claim("d", "Block") + &block + "---\n" + secret + &inline))?;
    logged(cluster, "block", &["read word"])?;
    logged(cluster, "inline", &["inline hidden"])
}
