//! Logs, exec, attach, cp and port-forward, with an old kubectl (SPDY) and a new one (WebSocket).

use crate::{all, busy, feed, has, logged, ready, refusal};
use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use testkit::cluster::{Cluster, Kubectl};

/// Two containers that end on SIGTERM; `b` reads lines from its stdin once.
const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: s, labels: {app: s}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: a
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "echo first; echo second >&2; echo page > /www/index.html; exec httpd -f -p 80 -h /www"]
  - name: b
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "echo only; exec sleep 1000"]
---
apiVersion: v1
kind: Pod
metadata: {name: short, labels: {app: short}}
spec:
  restartPolicy: Never
  containers:
  - name: c
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "for i in 1 2 3 4 5; do echo line $i; sleep 0.3; done"]
---
apiVersion: v1
kind: Pod
metadata: {name: again, labels: {app: again}}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{name: v, emptyDir: {}}]
  initContainers: [{name: done, image: busybox, imagePullPolicy: IfNotPresent, command: ["true"]}]
  containers:
  - name: c
    image: busybox
    imagePullPolicy: IfNotPresent
    volumeMounts: [{name: v, mountPath: /v}]
    command: [sh, -c, "echo x >> /v/runs; echo run $(wc -l < /v/runs); [ $(wc -l < /v/runs) = 2 ] && exec sleep 1000; exit 4"]
---
apiVersion: v1
kind: Service
metadata: {name: s}
spec: {selector: {app: s}, ports: [{port: 8000, targetPort: 80}]}
"#;

const BOTH: [Kubectl; 2] = [Kubectl::Debian, Kubectl::Newest];

#[test]
fn streams_with_two_kubectls() {
    let cluster = busy();
    cluster.apply(PODS).unwrap();
    ready(&cluster, "s").unwrap();
    all(
        &cluster,
        &[
            ("logs", logs),
            ("follow", follow),
            ("previous", previous),
            ("exec", exec),
            ("terminal", terminal),
            ("attach", attach),
            ("run", run),
            ("copy", copy),
            ("forward", forward),
        ],
    );
}

fn logs(cluster: &Cluster) -> Result<()> {
    for kubectl in BOTH {
        let logs = |args: &[&str]| cluster.kubectl_of(kubectl, &[&["logs"], args].concat());
        let both = cluster.eventually("both lines", || {
            let text = logs(&["s", "-c", "a"])?;
            ensure!(text.lines().count() == 2, "{text}");
            Ok(text)
        })?;
        has(&both, &["first\n", "second\n"])?;
        cluster.eventually("the other container's line", || has(&logs(&["s", "-c", "b"])?, &["only\n"]))?;
        ensure!(logs(&["s", "-c", "a", "--tail=1"])?.lines().count() == 1, "--tail");
        ensure!(logs(&["s", "-c", "a", "--tail=0"])?.is_empty(), "--tail=0");
        ensure!(logs(&["s", "-c", "a", "--limit-bytes=3"])?.len() == 3, "--limit-bytes");
        ensure!(logs(&["s", "-c", "b", "--since=1h"])? == "only\n", "--since");
        let stamped = logs(&["s", "-c", "b", "--timestamps"])?;
        let (stamp, rest) = stamped.split_once(' ').context("a stamp and a line")?;
        ensure!(stamp.len() == 30 && stamp.ends_with('Z') && rest == "only\n", "{stamped:?}");
        has(&logs(&["s", "--all-containers", "--prefix"])?, &["[pod/s/a] first", "[pod/s/b] only"])?;
        ensure!(logs(&["-l", "app=s", "--all-containers"])?.lines().count() == 3, "by label");
        has(&refusal(logs(&["s", "-c", "x"]))?, &["container x is not valid for pod s"])?;
    }
    let unnamed = refusal(cluster.kubectl_of(Kubectl::Debian, &["logs", "s"]))?;
    has(&unnamed, &["a container name must be specified for pod s, choose one of: [a b]"])
}

fn follow(cluster: &Cluster) -> Result<()> {
    let logs = |kubectl| cluster.kubectl_of(kubectl, &["logs", "-f", "short"]);
    for kubectl in BOTH {
        let text = cluster.eventually("the container has started", || logs(kubectl))?;
        ensure!(text == "line 1\nline 2\nline 3\nline 4\nline 5\n", "{kubectl:?}: {text:?}");
    }
    Ok(())
}

fn previous(cluster: &Cluster) -> Result<()> {
    cluster.wait_field(&["pod", "again"], "/status/containerStatuses/0/restartCount", "1")?;
    let status = cluster.get(&["pod", "again"])?["status"]["containerStatuses"][0].clone();
    ensure!(status["lastState"]["terminated"]["exitCode"] == 4, "{status}");
    for kubectl in BOTH {
        ensure!(cluster.kubectl_of(kubectl, &["logs", "-p", "again"])? == "run 1\n", "{kubectl:?} previous");
        let now = cluster.eventually("the second run logs", || {
            let text = cluster.kubectl_of(kubectl, &["logs", "again"])?;
            ensure!(!text.is_empty(), "no line yet");
            Ok(text)
        })?;
        ensure!(now == "run 2\n", "{kubectl:?}: {now:?}");
        let none = refusal(cluster.kubectl_of(kubectl, &["logs", "-p", "s", "-c", "b"]))?;
        has(&none, &[r#"previous terminated container "b" in pod "s" not found"#])?;
    }
    Ok(())
}

fn exec(cluster: &Cluster) -> Result<()> {
    for kubectl in BOTH {
        let exec = |args: &[&str], stdin: &[u8]| {
            let mut command = cluster.inside(kubectl.path());
            feed(command.args(["exec", "s", "-c", "a"]).args(args), stdin)
        };
        let output = exec(&["--", "sh", "-c", "echo out; echo err >&2; exit 3"], b"")?;
        ensure!(output.stdout == b"out\n" && output.status.code() == Some(3), "{kubectl:?}: {output:?}");
        has(&String::from_utf8_lossy(&output.stderr), &["err\n", "command terminated with exit code 3"])?;
        let big: Vec<u8> = (0..3_000_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
        let output = exec(&["-i", "--", "cat"], &big)?;
        ensure!(
            output.stdout == big,
            "{kubectl:?}: {} bytes came back, {:?}",
            output.stdout.len(),
            output.status
        );
        let output = exec(&["--", "/no/such"], b"")?;
        ensure!(!output.status.success(), "{output:?}");
        has(&String::from_utf8_lossy(&output.stderr), &["/no/such"])?;
        let output = exec(&["--", "sh", "-c", "kill -9 $$"], b"")?;
        ensure!(output.status.code() == Some(137), "{kubectl:?}: {output:?}");
        let unknown = refusal(cluster.kubectl_of(kubectl, &["exec", "s", "-c", "x", "--", "true"]))?;
        has(&unknown, &["container x is not valid for pod s"])?;
        cluster.eventually("a container that has ended is not found", || {
            let ended = cluster.kubectl_of(kubectl, &["exec", "again", "-c", "done", "--", "true"]);
            has(&refusal(ended)?, &["container not found (\"done\")"])
        })?;
    }
    Ok(())
}

/// `-it` under a real terminal: the container sees one too, with its size, and ^C and ^D reach it.
fn terminal(cluster: &Cluster) -> Result<()> {
    for kubectl in BOTH {
        let line = format!(
            "stty rows 33 cols 77; {} exec -it s -c a -- sh -c 'tty; until stty size | grep \"33 77\"; do sleep 0.1; done; \
             trap \"echo INT\" INT; cat; echo end'",
            kubectl.path().display()
        );
        let mut command = cluster.inside("timeout");
        command
            .args(["--foreground", "300", "script", "-qec", &line, "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let mut stdin = child.stdin.take().context("stdin is piped")?;
        let mut said = String::new();
        for bytes in BufReader::new(child.stdout.take().context("stdout is piped")?).split(b'\n') {
            let text = String::from_utf8_lossy(&bytes?).into_owned();
            if text.contains("33 77") {
                std::io::Write::write_all(&mut stdin, b"typed\r\x04")?;
            }
            said += &(text + "\n");
        }
        ensure!(child.wait()?.success(), "{said}");
        has(&said, &["/dev/pts/", "33 77", "typed\r\ntyped", "end"])?;
    }
    Ok(())
}

fn attach(cluster: &Cluster) -> Result<()> {
    for (kubectl, name) in [(Kubectl::Debian, "att-old"), (Kubectl::Newest, "att-new")] {
        let script = "while read l; do echo got $l; done; echo closed";
        let more = "restartPolicy: Never";
        cluster.apply(&crate::pod(name, script, "stdin: true\nstdinOnce: true", more))?;
        ready(cluster, name)?;
        let output = feed(cluster.inside(kubectl.path()).args(["attach", "-i", name]), b"one\ntwo\n")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        has(&text, &["got one\ngot two\n"]).with_context(|| format!("{kubectl:?} {output:?}"))?;
        cluster.wait_field(&["pod", name], "/status/phase", "Succeeded")?;
        logged(cluster, name, &["got two\nclosed\n"])?;
    }
    Ok(())
}

fn run(cluster: &Cluster) -> Result<()> {
    for (kubectl, name) in [(Kubectl::Debian, "run-old"), (Kubectl::Newest, "run-new")] {
        let args = ["run", name, "--image=busybox:1.36", "--restart=Never", "-i", "--rm", "--", "sh", "-c"];
        let mut command = cluster.inside(kubectl.path());
        let output = feed(command.args(args).arg("read x; echo answer $x; exit 5"), b"42\n")?;
        let text = format!("{output:?}");
        has(&text, &["answer 42", "deleted"])?;
        ensure!(output.status.code() == Some(5), "{kubectl:?}: {text}");
        cluster.eventually("it is gone", || {
            has(&refusal(cluster.kubectl(&["get", "pod", name]))?, &["not found"])
        })?;
    }
    Ok(())
}

fn copy(cluster: &Cluster) -> Result<()> {
    for (kubectl, name) in [(Kubectl::Debian, "old"), (Kubectl::Newest, "new")] {
        let here = tempfile::tempdir()?;
        let folder = here.path().join("tree");
        std::fs::create_dir_all(folder.join("deep"))?;
        let big: Vec<u8> = (0..1_000_000u32).map(|i| (i ^ (i >> 7)) as u8).collect();
        std::fs::write(folder.join("deep/big"), &big)?;
        std::fs::write(folder.join("small"), name)?;
        let there = format!("s:/tmp/{name}");
        let from = folder.display().to_string();
        cluster.kubectl_of(kubectl, &["cp", &from, &there, "-c", "a"])?;
        let back = here.path().join("back").display().to_string();
        cluster.kubectl_of(kubectl, &["cp", "-c", "a", &there, &back])?;
        ensure!(std::fs::read(here.path().join("back/deep/big"))? == big, "{kubectl:?}: the copy differs");
        ensure!(std::fs::read_to_string(here.path().join("back/small"))? == name, "{kubectl:?}: small");
    }
    Ok(())
}

struct Forward(Child);

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn forward(cluster: &Cluster) -> Result<()> {
    for (kubectl, target, port) in [
        (Kubectl::Debian, "pod/s", "18080:80"),
        (Kubectl::Newest, "pod/s", "18081:80"),
        (Kubectl::Newest, "svc/s", "18082:8000"),
        (Kubectl::Debian, "svc/s", "18083:8000"),
    ] {
        let mut command = cluster.inside(kubectl.path());
        command.args(["port-forward", target, port]).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = Forward(command.spawn()?);
        let mut line = String::new();
        // Kept open: kubectl goes on writing to it.
        let mut said = BufReader::new(child.0.stdout.take().context("stdout is piped")?);
        said.read_line(&mut line)?;
        has(&line, &["Forwarding from"])?;
        let local = port.split(':').next().unwrap_or_default();
        let script =
            format!("for i in 1 2 3 4 5; do curl -sS --max-time 60 http://127.0.0.1:{local}/ & done; wait");
        let said = cluster.sh(&script).with_context(|| format!("{kubectl:?} {target}"))?;
        ensure!(said == "page\n".repeat(5), "{kubectl:?} {target}: {said}");
    }
    Ok(())
}
