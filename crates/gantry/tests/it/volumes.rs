//! Claims end to end: a database's data outlive its pod and go with its claim; volumes of images; generic ephemeral
//! volumes; what cannot be mounted says so.

use crate::{busy, has, logged, pod, ready};
use anyhow::{Result, ensure};
use testkit::cluster::Cluster;

const DATABASE: &str = "
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  selector: {matchLabels: {app: db}}
  persistentVolumeClaimRetentionPolicy: {whenDeleted: Delete}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 0
      securityContext: {runAsUser: 1000, fsGroup: 2000}
      containers:
      - name: c
        image: busybox
        imagePullPolicy: IfNotPresent
        command: [sh, -c, 'echo started >> /data/log; exec sleep 1000']
        volumeMounts: [{name: data, mountPath: /data, subPathExpr: $(NAME)/db}]
        env: [{name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
";

#[test]
fn data_outlive_pods_and_go_with_claims() {
    let mut cluster = busy();
    scenario(&mut cluster).unwrap();
}

fn folders(cluster: &Cluster) -> Result<usize> {
    Ok(cluster.sh(&format!("ls {}/claims 2>/dev/null; true", cluster.folder().display()))?.lines().count())
}

/// A volume with the policy `Recycle` is emptied and free again when its claim is gone.
fn recycled(cluster: &Cluster) -> Result<()> {
    let folder = cluster.folder().join("recycled");
    std::fs::create_dir_all(folder.join("deep"))?;
    std::fs::write(folder.join(".hidden"), "x")?;
    let size = "accessModes: [ReadWriteOnce], storageClassName: old";
    let volume = format!(
        "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: old}}\nspec: {{{size}, capacity: {{storage: 1Gi}}, \
         persistentVolumeReclaimPolicy: Recycle, hostPath: {{path: {}}}}}\n---\napiVersion: v1\n\
         kind: PersistentVolumeClaim\nmetadata: {{name: old}}\nspec: {{{size}, resources: {{requests: {{storage: 1Mi}}}}}}\n",
        folder.display()
    );
    cluster.apply(&volume)?;
    cluster.wait_field(&["pvc", "old"], "/status/phase", "Bound")?;
    cluster.kubectl(&["delete", "pvc", "old"])?;
    cluster.wait_field(&["pv", "old"], "/status/phase", "Available")?;
    ensure!(std::fs::read_dir(&folder)?.next().is_none(), "it is empty");
    cluster.kubectl(&["delete", "pv", "old"]).map(drop)
}

fn scenario(cluster: &mut Cluster) -> Result<()> {
    recycled(cluster)?;
    cluster.apply(DATABASE)?;
    let log = |cluster: &Cluster| cluster.kubectl(&["exec", "db-0", "--", "cat", "/data/log"]);
    let lines = |cluster: &Cluster, count: usize| {
        cluster.eventually(&format!("{count} starts"), || {
            let said = log(cluster)?;
            ensure!(said.lines().count() == count, "{said}");
            Ok(())
        })
    };
    lines(cluster, 1)?;
    cluster.kubectl(&["delete", "pod", "db-0"])?;
    lines(cluster, 2)?;
    cluster.kill9()?;
    cluster.up()?;
    cluster.kubectl(&["delete", "pod", "db-0"])?;
    lines(cluster, 3)?;
    ensure!(folders(cluster)? == 1, "one folder");
    cluster.kubectl(&["delete", "statefulset", "db"])?;
    cluster.eventually("claim, volume and folder are gone", || {
        let left = cluster.kubectl(&["get", "pvc,pv", "-o", "name"])?;
        ensure!(left.trim().is_empty() && folders(cluster)? == 0, "{left}");
        Ok(())
    })?;
    others(cluster)
}

/// An image as a volume, a volume of the pod's own, and one of a kind that no node has.
fn others(cluster: &Cluster) -> Result<()> {
    let volumes = "volumes:
- {name: i, image: {reference: busybox, pullPolicy: IfNotPresent}}
- {name: e, ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}}}}";
    let mounts = "volumeMounts:
- {name: i, mountPath: /image}
- {name: i, mountPath: /part, subPath: bin}
- {name: e, mountPath: /own}";
    let script = "ls /image/bin/busybox /part/busybox; touch /image/x; /part/busybox true; touch /own/f && echo written; exec sleep 1000";
    cluster.apply(&pod("other", script, mounts, volumes))?;
    ready(cluster, "other")?;
    logged(
        cluster,
        "other",
        &["/image/bin/busybox", "/part/busybox", "Read-only file system", "Permission denied", "written"],
    )?;
    cluster.kubectl(&["delete", "pod", "other"])?;
    cluster.eventually("the pod's own volume is gone", || {
        let left = cluster.kubectl(&["get", "pvc,pv", "-o", "name"])?;
        ensure!(left.trim().is_empty() && folders(cluster)? == 0, "{left}");
        Ok(())
    })?;
    let nfs = "apiVersion: v1\nkind: PersistentVolume\nmetadata: {name: far}\nspec:\n  \
        capacity: {storage: 1Gi}\n  accessModes: [ReadWriteMany]\n  nfs: {server: 192.0.2.1, path: /}\n---\n\
        apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: far}\nspec:\n  \
        accessModes: [ReadWriteMany]\n  storageClassName: ''\n  volumeName: far\n  \
        resources: {requests: {storage: 1Gi}}\n";
    cluster.apply(nfs)?;
    let claim = "volumes:\n- {name: v, persistentVolumeClaim: {claimName: far}}";
    cluster.apply(&pod("far", "true", "volumeMounts: [{name: v, mountPath: /v}]", claim))?;
    cluster.eventually("the refusal is told", || {
        has(
            &cluster.kubectl(&["describe", "pod", "far"])?,
            &["volume type nfs is not supported on this node"],
        )
    })
}
