//! `kubectl` on StatefulSets, DaemonSets, Jobs and CronJobs: every kubectl on this machine, against the controllers.

use crate::harness::cluster;
use crate::kubectl::{PROGRAMS, Step, run};
use crate::sets::play;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const MANIFEST: &str = "
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: web}
spec:
  replicas: 3
  serviceName: web
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: 'i:1'}]}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: d}
spec:
  selector: {matchLabels: {app: d}}
  template:
    metadata: {labels: {app: d}}
    spec: {containers: [{name: c, image: 'i:1'}]}
---
apiVersion: batch/v1
kind: Job
metadata: {name: j}
spec:
  completions: 3
  template:
    spec: {restartPolicy: Never, containers: [{name: c, image: done}]}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: c}
spec:
  schedule: '0 0 1 1 *'
  jobTemplate:
    spec:
      template:
        spec: {restartPolicy: OnFailure, containers: [{name: c, image: done}]}
";

const STEPS: &[Step] = &[
    ("apply -f sets.yaml", "cronjob.batch/c created"),
    ("rollout status sts/web --timeout=30s", "partitioned roll out complete: 3 new pods have been updated"),
    ("set image sts/web c=i:2", "image updated"),
    ("rollout status sts/web --timeout=30s", "partitioned roll out complete: 3 new pods have been updated"),
    ("rollout history sts/web --revision=1", "i:1"),
    ("rollout undo sts/web", "rolled back"),
    ("rollout status sts/web --timeout=30s", "partitioned roll out complete: 3 new pods have been updated"),
    ("get sts web -o jsonpath={.spec.template.spec.containers[0].image}", "i:1"),
    ("rollout restart sts/web", "restarted"),
    ("rollout status sts/web --timeout=30s", "partitioned roll out complete: 3 new pods have been updated"),
    ("scale sts/web --replicas=1", "scaled"),
    ("wait pod/web-2 pod/web-1 --for=delete --timeout=30s", ""),
    ("get sts web", "web    1/1"),
    ("describe sts web", "create Pod web-0 in StatefulSet web successful"),
    ("rollout status ds/d --timeout=30s", "successfully rolled out"),
    ("set image ds/d c=i:2", "image updated"),
    ("rollout status ds/d --timeout=30s", "successfully rolled out"),
    ("rollout history ds/d", "1         <none>\n2         <none>"),
    ("rollout history ds/d --revision=2", "i:2"),
    ("rollout undo ds/d --to-revision=1", "rolled back"),
    ("rollout status ds/d --timeout=30s", "successfully rolled out"),
    ("get ds d", "d      2         2         2       2            2"),
    ("wait job/j --for=condition=complete --timeout=30s", "condition met"),
    ("get job j", "3/3"),
    ("describe job j", "Job completed"),
    ("delete job j --timeout=30s", "deleted"),
    ("wait pod -l job-name=j --for=delete --timeout=30s", ""),
    ("get pods -l job-name=j --no-headers", "No resources found"),
    ("get cj c", "0 0 1 1 *"),
    ("create job manual --from=cronjob/c", "job.batch/manual created"),
    ("wait job/manual --for=condition=complete --timeout=30s", "condition met"),
    ("delete sts/web ds/d cj/c --timeout=30s", "deleted"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sets_and_jobs_by_kubectl() {
    for program in PROGRAMS.into_iter().filter(|p| Path::new(p).exists()) {
        let c = Arc::new(cluster().await);
        let _scheduler = c.scheduler();
        c.node("one", "4").await;
        c.node("two", "4").await;
        let (folder, _stop) = c.serve().await;
        std::fs::write(folder.path().join("sets.yaml"), MANIFEST).unwrap();
        let agents = tokio::spawn({
            let c = c.clone();
            async move {
                loop {
                    let fate = |pod: &serde_json::Value| match pod["spec"]["containers"][0]["image"].as_str()
                    {
                        Some("done") => "Succeeded",
                        _ => "Running",
                    };
                    play(&c, fate).await;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        });
        // A kubectl of 1.20 has no type for batch/v1 CronJobs, from which it could make a Job.
        let old = program.contains("1.20");
        for (args, expected) in STEPS.iter().filter(|(args, _)| !(old && args.contains("manual"))) {
            let (succeeded, text) = run(program, folder.path(), args).await;
            let gone = args.starts_with("wait pod")
                && (text.contains("not found") || text.contains("no matching resources"));
            assert!((succeeded && text.contains(expected)) || gone, "{program} {args}: {text}");
        }
        agents.abort();
    }
}
