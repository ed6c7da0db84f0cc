//! `kubectl rollout` and friends, of every kubectl on this machine, against the controllers.

use crate::harness::{Cluster, cluster};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::process::Command;

pub const PROGRAMS: [&str; 2] = ["/usr/bin/kubectl", "/work/tools/kubectl-1.20/usr/bin/kubectl"];
/// How long one command may take.
const PATIENCE: Duration = Duration::from_secs(180);

/// Plays the node agents until dropped.
struct Agents(tokio::task::JoinHandle<()>);

impl Agents {
    fn start(cluster: Arc<Cluster>) -> Agents {
        Agents(tokio::spawn(async move {
            loop {
                cluster.play_agents().await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }))
    }
}

impl Drop for Agents {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs a command; whether it succeeded, and all it said.
pub async fn run(program: &str, folder: &Path, args: &str) -> (bool, String) {
    let mut command = Command::new(program);
    std::fs::write(folder.join("web.yaml"), MANIFEST).unwrap();
    command
        .current_dir(folder)
        .args(args.split(' '))
        .env("KUBECONFIG", folder.join("kubeconfig"))
        .env("HOME", folder);
    let output = command.kill_on_drop(true).output();
    let output = tokio::time::timeout(PATIENCE, output).await.expect("kubectl in time").unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

const MANIFEST: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: i, image: 'i:1'}]}
";

pub type Step = (&'static str, &'static str);

const STEPS: &[Step] = &[
    ("create -f web.yaml", "deployment.apps/web created"),
    ("rollout status deploy/web --timeout=30s", "successfully rolled out"),
    ("set image deploy/web i=i:2", "image updated"),
    ("rollout status deploy/web --timeout=30s", "successfully rolled out"),
    ("rollout history deploy/web", "1         <none>\n2         <none>"),
    ("rollout history deploy/web --revision=2", "i:2"),
    ("rollout undo deploy/web", "rolled back"),
    ("rollout status deploy/web --timeout=30s", "successfully rolled out"),
    ("rollout history deploy/web", "2         <none>\n3         <none>"),
    ("get deploy web -o jsonpath={.spec.template.spec.containers[0].image}", "i:1"),
    ("rollout undo deploy/web --to-revision=2", "rolled back"),
    ("rollout status deploy/web --timeout=30s", "successfully rolled out"),
    ("rollout pause deploy/web", "paused"),
    ("set image deploy/web i=i:3", "image updated"),
    ("rollout resume deploy/web", "resumed"),
    ("rollout status deploy/web --timeout=30s", "successfully rolled out"),
    ("rollout restart deploy/web", "restarted"),
    ("rollout status deploy/web --timeout=30s", "successfully rolled out"),
    ("scale deploy/web --replicas=5", "scaled"),
    ("rollout status deploy/web --timeout=30s", "successfully rolled out"),
    ("wait deploy/web --for=condition=Available --timeout=30s", "condition met"),
    ("get deploy web", "web    5/5     5            5"),
    ("describe deploy web", "Scaled up replica set web-"),
    ("get rs", "5         5         5"),
    ("delete deploy web --timeout=30s", "deleted"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollouts_by_kubectl() {
    for program in PROGRAMS.into_iter().filter(|p| Path::new(p).exists()) {
        let c = Arc::new(cluster().await);
        let _scheduler = c.scheduler();
        c.node("one", "4").await;
        let (folder, _stop) = c.serve().await;
        let _agents = Agents::start(c.clone());
        for (args, expected) in STEPS {
            let (succeeded, text) = run(program, folder.path(), args).await;
            assert!(succeeded && text.contains(expected), "{program} {args}: {text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_rollout_fails_kubectl() {
    for program in PROGRAMS.into_iter().filter(|p| Path::new(p).exists()) {
        let c = cluster().await;
        let (folder, _stop) = c.serve().await;
        for args in ["create -f web.yaml", "patch deploy web -p {\"spec\":{\"progressDeadlineSeconds\":1}}"] {
            assert!(run(program, folder.path(), args).await.0, "{program} {args}");
        }
        let (succeeded, text) = run(program, folder.path(), "rollout status deploy/web --timeout=30s").await;
        assert!(!succeeded && text.contains("exceeded its progress deadline"), "{program}: {text}");
    }
}
