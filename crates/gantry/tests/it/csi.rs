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
    let label = cluster.kubectl(&["get", "node", "node-1", "-o", "jsonpath={.metadata.labels}"])?;
    has(&label, &["topology.test.gantry.dev/zone"])?;
    cluster.apply(&(claim("c", "Filesystem") + &user("a", "c", "echo one > /v/f; exec sleep 1000")))?;
    ready(cluster, "a")?;
    let volume = cluster.field(&["pvc", "c"], "/spec/volumeName")?;
    let attached =
        cluster.kubectl(&["get", "volumeattachment", "-o", "jsonpath={.items[*].status.attached}"])?;
    ensure!(attached == "true", "{attached}");
    let node = cluster.kubectl(&["get", "node", "node-1", "-o", "jsonpath={.status}"])?;
    let unique = format!("kubernetes.io/csi/{}^{volume}", csi_driver::NAME);
    has(&node, &["volumesInUse", "volumesAttached", &unique])?;
    cluster.kubectl(&["delete", "pod", "a"])?;
    cluster.apply(&user("b", "c", "cat /v/f; exec sleep 1000"))?;
    logged(cluster, "b", &["one"])?;
    grow(cluster)?;
    cluster.kill9()?;
    cluster.up()?;
    others(cluster)?;
    cluster.kubectl(&["delete", "pod", "b", "block", "inline"])?;
    cluster.kubectl(&["delete", "pvc", "c", "d"])?;
    cluster.eventually("all is gone", || {
        let left = cluster.kubectl(&["get", "pv,pvc,volumeattachment", "-o", "name"])?;
        let mounts = cluster.sh(&format!(
            "grep -c '{}/kubelet/p.*csi' /proc/self/mountinfo; true",
            cluster.folder().display()
        ))?;
        let files = cluster.sh(&format!("ls {}", data.display()))?;
        ensure!(left.is_empty() && mounts.trim() == "0" && files.is_empty(), "{left} {mounts} {files}");
        Ok(())
    })
}

fn grow(cluster: &Cluster) -> Result<()> {
    let more = r#"{"spec": {"resources": {"requests": {"storage": "8Mi"}}}}"#;
    cluster.kubectl(&["patch", "pvc", "c", "-p", more])?;
    cluster.eventually("the claim has grown", || {
        let size = cluster.field(&["pvc", "c"], "/status/capacity/storage")?;
        ensure!(size == "8Mi", "{size}");
        Ok(())
    })?;
    has(&cluster.kubectl(&["logs", "-n", "kube-system", "driver"])?, &["NodeExpandVolume"])
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
