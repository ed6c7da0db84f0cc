//! Jobs, CronJobs, DaemonSets and StatefulSets on a real node.

use crate::{all, busy, has};
use anyhow::{Context, Result, ensure};
use testkit::cluster::Cluster;

#[test]
fn workloads_that_are_no_deployments() {
    let cluster = busy();
    all(
        &cluster,
        &[
            ("job", job),
            ("failing_job", failing_job),
            ("indexed_job", indexed_job),
            ("cron_job", cron_job),
            ("daemon_set", daemon_set),
            ("stateful_set", stateful_set),
            ("indexes_that_fail", indexes_that_fail),
            ("numbered_set", numbered_set),
        ],
    );
}

fn job(cluster: &Cluster) -> Result<()> {
    cluster.apply(
        r#"
apiVersion: batch/v1
kind: Job
metadata: {name: pi}
spec:
  completions: 3
  parallelism: 2
  template:
    spec:
      restartPolicy: Never
      containers: [{name: c, image: "busybox:1.36", command: [echo, "3.14"]}]
"#,
    )?;
    cluster.kubectl(&["wait", "job/pi", "--for=condition=Complete", "--timeout=280s"])?;
    let status = cluster.get(&["job", "pi"])?["status"].clone();
    ensure!(status["succeeded"] == 3 && status["failed"].is_null(), "{status}");
    has(&cluster.kubectl(&["logs", "job/pi"])?, &["3.14"])?;
    has(&cluster.kubectl(&["get", "job", "pi"])?, &["Complete", "3/3"])?;
    cluster.kubectl(&["delete", "job", "pi"])?;
    cluster.eventually("its pods go with it", || {
        let left = cluster.kubectl(&["get", "pods", "-l", "job-name=pi", "-o", "name"])?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })
}

fn failing_job(cluster: &Cluster) -> Result<()> {
    cluster.apply(
        r#"
apiVersion: batch/v1
kind: Job
metadata: {name: bad}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      containers: [{name: c, image: "busybox:1.36", command: [sh, -c, "exit 4"]}]
"#,
    )?;
    cluster.kubectl(&["wait", "job/bad", "--for=condition=Failed", "--timeout=280s"])?;
    let conditions = cluster.get(&["job", "bad"])?["status"]["conditions"].to_string();
    has(&conditions, &["BackoffLimitExceeded", "Job has reached the specified backoff limit"])
}

fn indexed_job(cluster: &Cluster) -> Result<()> {
    cluster.apply(
        r#"
apiVersion: batch/v1
kind: Job
metadata: {name: index}
spec:
  completions: 3
  parallelism: 3
  completionMode: Indexed
  template:
    spec:
      restartPolicy: Never
      containers: [{name: c, image: "busybox:1.36", command: [sh, -c, "echo number $JOB_COMPLETION_INDEX on $(hostname)"]}]
"#,
    )?;
    cluster.eventually("every index has logged", || {
        let logs = cluster.kubectl(&["logs", "-l", "job-name=index", "--max-log-requests=9"])?;
        has(&logs, &["number 0 on index-0", "number 1 on index-1", "number 2 on index-2"])
    })?;
    cluster.kubectl(&["patch", "job", "index", "-p", r#"{"spec": {"ttlSecondsAfterFinished": 1}}"#])?;
    cluster.eventually("it is cleaned up after its time", || {
        has(&crate::refusal(cluster.kubectl(&["get", "job", "index"]))?, &["not found"])
    })
}

fn cron_job(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&[
        "create",
        "cronjob",
        "tick",
        "--image=busybox:1.36",
        "--schedule=0 0 1 1 *",
        "--",
        "echo",
        "tock",
    ])?;
    cluster.kubectl(&["create", "job", "now", "--from=cronjob/tick"])?;
    cluster.kubectl(&["wait", "job/now", "--for=condition=Complete", "--timeout=280s"])?;
    has(&cluster.kubectl(&["logs", "job/now"])?, &["tock"])?;
    let owner = cluster.field(&["job", "now"], "/metadata/ownerReferences/0/name")?;
    ensure!(owner == "tick", "{owner}");
    Ok(())
}

fn daemon_set(cluster: &Cluster) -> Result<()> {
    cluster.apply(
        r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: everywhere}
spec:
  selector: {matchLabels: {app: everywhere}}
  template:
    metadata: {labels: {app: everywhere}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: c, image: "busybox:1.36", command: [sleep, "1000"], env: [{name: V, value: one}]}]
"#,
    )?;
    cluster.kubectl(&["rollout", "status", "daemonset/everywhere", "--timeout=280s"])?;
    let status = cluster.get(&["daemonset", "everywhere"])?["status"].clone();
    ensure!(status["desiredNumberScheduled"] == 1 && status["numberReady"] == 1, "{status}");
    cluster.kubectl(&["set", "env", "daemonset/everywhere", "V=two"])?;
    cluster.kubectl(&["rollout", "status", "daemonset/everywhere", "--timeout=280s"])?;
    cluster.kubectl(&["rollout", "undo", "daemonset/everywhere"])?;
    cluster.kubectl(&["rollout", "status", "daemonset/everywhere", "--timeout=280s"])?;
    let pods = cluster.get(&["pods", "-l", "app=everywhere"])?;
    let live: Vec<_> = pods["items"]
        .as_array()
        .context("a list")?
        .iter()
        .filter(|p| p["metadata"]["deletionTimestamp"].is_null())
        .collect();
    ensure!(live.len() == 1 && live[0]["spec"]["containers"][0]["env"][0]["value"] == "one", "{pods}");
    Ok(())
}

fn stateful_set(cluster: &Cluster) -> Result<()> {
    cluster.apply(
        r#"
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {name: c, image: "busybox:1.36", command: [sleep, "1000"], readinessProbe: {exec: {command: ["true"]}, periodSeconds: 1, timeoutSeconds: 20}}
"#,
    )?;
    cluster.kubectl(&["rollout", "status", "statefulset/db", "--timeout=280s"])?;
    let first = cluster.get(&["pod", "db-0"])?;
    let second = cluster.get(&["pod", "db-1"])?;
    let time = |pod: &serde_json::Value| pod["metadata"]["creationTimestamp"].as_str().map(str::to_string);
    ensure!(time(&first) <= time(&second), "in order");
    let ip = first["status"]["podIP"].as_str().context("an address")?.to_string();
    cluster.eventually("stable names", || {
        let said =
            cluster.kubectl(&["exec", "db-1", "--", "nslookup", "db-0.db.default.svc.cluster.local"])?;
        has(&said, &[&ip])
    })?;
    cluster.kubectl(&["delete", "pod", "db-0"])?;
    cluster.eventually("the same name comes back", || {
        let now = cluster.get(&["pod", "db-0"])?;
        ensure!(now["metadata"]["uid"] != first["metadata"]["uid"], "still the old one");
        ensure!(now["status"]["containerStatuses"][0]["ready"] == true, "not ready yet");
        Ok(())
    })?;
    cluster.kubectl(&["scale", "statefulset/db", "--replicas=1"])?;
    cluster.eventually("the last goes first", || {
        let left = cluster.kubectl(&["get", "pods", "-l", "app=db", "-o", "name"])?;
        ensure!(left == "pod/db-0\n", "{left}");
        Ok(())
    })
}

fn indexes_that_fail(cluster: &Cluster) -> Result<()> {
    cluster.apply(
        r#"
apiVersion: batch/v1
kind: Job
metadata: {name: odd}
spec:
  completions: 4
  parallelism: 4
  completionMode: Indexed
  backoffLimitPerIndex: 0
  template:
    spec:
      restartPolicy: Never
      containers: [{name: c, image: "busybox:1.36", command: [sh, -c, "exit $((JOB_COMPLETION_INDEX % 2))"]}]
"#,
    )?;
    cluster.kubectl(&["wait", "job/odd", "--for=condition=Failed", "--timeout=280s"])?;
    let status = cluster.get(&["job", "odd"])?["status"].clone();
    ensure!(status["failedIndexes"] == "1,3" && status["completedIndexes"] == "0,2", "{status}");
    has(&status.to_string(), &["FailedIndexes", "Job has failed indexes"])?;
    let lie = r#"{"status": {"conditions": [{"type": "Complete", "status": "True"}]}}"#;
    let patch = ["patch", "job", "odd", "--subresource=status", "--type=merge", "-p", lie];
    let said = crate::refusal(cluster.kubectl(&patch))?;
    has(&said, &["cannot disable the terminal Failed=True condition"])
}

fn numbered_set(cluster: &Cluster) -> Result<()> {
    cluster.apply(
        r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: numbered}
spec:
  serviceName: numbered
  replicas: 2
  ordinals: {start: 3}
  podManagementPolicy: Parallel
  persistentVolumeClaimRetentionPolicy: {whenScaled: Delete}
  selector: {matchLabels: {app: numbered}}
  template:
    metadata: {labels: {app: numbered}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {name: c, image: "busybox:1.36", command: [sleep, "1000"], volumeMounts: [{name: data, mountPath: /data}]}
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
"#,
    )?;
    cluster.kubectl(&["rollout", "status", "statefulset/numbered", "--timeout=280s"])?;
    let names = |what: &str| cluster.kubectl(&["get", what, "-l", "app=numbered", "-o", "name"]);
    ensure!(names("pods")? == "pod/numbered-3\npod/numbered-4\n", "{}", names("pods")?);
    cluster.kubectl(&["scale", "statefulset/numbered", "--replicas=1"])?;
    cluster.eventually("the claim goes with its pod", || {
        let left = names("pvc")?;
        ensure!(left == "persistentvolumeclaim/data-numbered-3\n", "{left}");
        Ok(())
    })
}
