//! The life of a pod: init containers, sidecars, hooks, probes, restarts and back-off, grace and force.

use crate::{all, busy, has, logged, pod, ready, told};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::time::{Duration, Instant};
use testkit::cluster::Cluster;

#[test]
fn pods_live_and_die_by_their_spec() {
    let cluster = busy();
    all(
        &cluster,
        &[
            ("init", init),
            ("init_failure", init_failure),
            ("sidecar", sidecar),
            ("policies", policies),
            ("crash_loop", crash_loop),
            ("grace", grace),
            ("force", force),
            ("hooks", hooks),
            ("failing_hook", failing_hook),
            ("deadline", deadline),
        ],
    );
}

#[test]
fn probes_decide() {
    let cluster = busy();
    all(
        &cluster,
        &[("liveness", liveness), ("readiness", readiness), ("startup", startup), ("kinds", kinds)],
    );
}

fn status(cluster: &Cluster, name: &str) -> Result<Value> {
    Ok(cluster.get(&["pod", name])?["status"].clone())
}

fn phase(cluster: &Cluster, name: &str, want: &str) -> Result<()> {
    cluster.wait_field(&["pod", name], "/status/phase", want)
}

fn init(cluster: &Cluster) -> Result<()> {
    cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: init}
spec:
  restartPolicy: Never
  volumes: [{name: v, emptyDir: {}}]
  initContainers:
  - {name: one, image: busybox:1.36, volumeMounts: [{name: v, mountPath: /v}], command: [sh, -c, "sleep 0.5; echo one >> /v/order"]}
  - {name: two, image: busybox:1.36, volumeMounts: [{name: v, mountPath: /v}], command: [sh, -c, "echo two >> /v/order"]}
  containers:
  - {name: main, image: busybox:1.36, volumeMounts: [{name: v, mountPath: /v}], command: [cat, /v/order]}
"#,
    )?;
    phase(cluster, "init", "Succeeded")?;
    ensure!(cluster.kubectl(&["logs", "init", "-c", "main"])? == "one\ntwo\n", "order");
    let status = status(cluster, "init")?;
    for n in 0..2 {
        let init = &status["initContainerStatuses"][n];
        ensure!(init["ready"] == true && init["state"]["terminated"]["reason"] == "Completed", "{init}");
    }
    let initialized = status["conditions"].as_array().context("conditions")?;
    ensure!(initialized.iter().any(|c| c["type"] == "Initialized" && c["status"] == "True"), "{status}");
    Ok(())
}

fn init_failure(cluster: &Cluster) -> Result<()> {
    let init = "initContainers: [{name: i, image: 'busybox:1.36', command: [sh, -c, 'exit 7']}]";
    cluster.apply(&pod("init-never", "echo no", "", &format!("restartPolicy: Never\n{init}")))?;
    cluster.apply(&pod("init-again", "echo no", "", init))?;
    phase(cluster, "init-never", "Failed")?;
    let status = status(cluster, "init-never")?;
    ensure!(status["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 7, "{status}");
    has(&cluster.kubectl(&["get", "pod", "init-never"])?, &["Init:Error"])?;
    cluster.eventually("the words of an init crash loop", || {
        has(&cluster.kubectl(&["get", "pod", "init-again"])?, &["Init:CrashLoopBackOff"])
    })?;
    let main = cluster.field(&["pod", "init-again"], "/status/containerStatuses/0/state/waiting/reason")?;
    ensure!(main == "PodInitializing", "{main}");
    Ok(())
}

fn sidecar(cluster: &Cluster) -> Result<()> {
    let side = "restartPolicy: Never\ninitContainers:\n- name: side\n  image: busybox:1.36\n  restartPolicy: Always\n  \
                command: [sh, -c, 'trap \"echo bye; exit 0\" TERM; echo up > /tmp/up; while :; do sleep 0.1; done']\n  \
                startupProbe: {exec: {command: [cat, /tmp/up]}, periodSeconds: 1, timeoutSeconds: 60, failureThreshold: 60}\n\
                - {name: after, image: 'busybox:1.36', command: [echo, after-side]}";
    cluster.apply(&pod("sidecar", "echo main", "", side).replace("Seconds: 1\n", "Seconds: 120\n"))?;
    phase(cluster, "sidecar", "Succeeded")?;
    let status = status(cluster, "sidecar")?;
    let side = &status["initContainerStatuses"][0];
    ensure!(side["state"]["terminated"]["exitCode"] == 0 && side["started"] != true, "{side}");
    ensure!(
        cluster.kubectl(&["logs", "sidecar", "-c", "side"])? == "bye\n",
        "the sidecar ends last, by TERM"
    );
    Ok(())
}

fn policies(cluster: &Cluster) -> Result<()> {
    for (name, script, policy) in [
        ("never-ok", "exit 0", "Never"),
        ("never-bad", "exit 3", "Never"),
        ("onfail-ok", "exit 0", "OnFailure"),
        ("onfail-bad", "exit 3", "OnFailure"),
        ("always-ok", "exit 0", "Always"),
    ] {
        cluster.apply(&pod(name, script, "", &format!("restartPolicy: {policy}")))?;
    }
    phase(cluster, "never-ok", "Succeeded")?;
    phase(cluster, "never-bad", "Failed")?;
    phase(cluster, "onfail-ok", "Succeeded")?;
    for name in ["onfail-bad", "always-ok"] {
        cluster.eventually("it was restarted", || {
            let count = status(cluster, name)?["containerStatuses"][0]["restartCount"].as_u64();
            ensure!(count >= Some(1), "{count:?}");
            Ok(())
        })?;
        ensure!(status(cluster, name)?["phase"] == "Running", "{name}");
    }
    ensure!(status(cluster, "never-bad")?["containerStatuses"][0]["restartCount"] == 0, "never restarts");
    has(&cluster.kubectl(&["get", "pods", "never-ok", "never-bad"])?, &["Completed", "Error"])
}

fn crash_loop(cluster: &Cluster) -> Result<()> {
    cluster.apply(&pod("crash", "echo crashed; exit 9", "", ""))?;
    cluster.eventually("the words of a crash loop", || {
        let container = status(cluster, "crash")?["containerStatuses"][0].clone();
        let waiting = &container["state"]["waiting"];
        ensure!(waiting["reason"] == "CrashLoopBackOff", "{container}");
        let message = waiting["message"].as_str().unwrap_or_default();
        has(message, &["back-off", "restarting failed container=c pod=crash_default("])?;
        ensure!(container["lastState"]["terminated"]["exitCode"] == 9, "{container}");
        ensure!(container["restartCount"].as_u64() >= Some(1), "{container}");
        Ok(())
    })?;
    // It is tried anew now and then.
    cluster.eventually("the table's word", || {
        has(&cluster.kubectl(&["get", "pod", "crash"])?, &["CrashLoopBackOff"])
    })?;
    logged(cluster, "crash", &["crashed"])?;
    told(cluster, "crash", &["BackOff", "Back-off restarting failed container c in pod crash_default("])
}

/// Deletes a pod and tells how long that took. (A command has less time than the long graces here.)
fn delete(cluster: &Cluster, name: &str, more: &[&str]) -> Result<Duration> {
    let began = Instant::now();
    cluster.kubectl(&[&["delete", "pod", name], more].concat())?;
    Ok(began.elapsed())
}

fn grace(cluster: &Cluster) -> Result<()> {
    let polite = "trap 'echo term > /h/$WHO; exit 0' TERM; echo up > /h/$WHO; while :; do sleep 0.1; done";
    let deaf = "trap '' TERM; echo deaf > /h/$WHO; while :; do sleep 0.1; done";
    let host = tempfile::tempdir()?;
    let more = format!(
        "terminationGracePeriodSeconds: 600\nvolumes: [{{name: h, hostPath: {{path: {}}}}}]",
        host.path().display()
    );
    for (name, script) in [("polite", polite), ("deaf", deaf)] {
        let container =
            format!("volumeMounts: [{{name: h, mountPath: /h}}]\nenv: [{{name: WHO, value: {name}}}]");
        let text = pod(name, script, &container, &more).replace("  terminationGracePeriodSeconds: 1\n", "");
        cluster.apply(&text)?;
    }
    ready(cluster, "polite")?;
    ready(cluster, "deaf")?;
    for name in ["polite", "deaf"] {
        cluster.eventually("the trap is set", || Ok(std::fs::metadata(host.path().join(name))?))?;
    }
    delete(cluster, "polite", &[])?;
    ensure!(std::fs::read_to_string(host.path().join("polite"))? == "term\n", "it got SIGTERM");
    let took = delete(cluster, "deaf", &["--grace-period=2"])?;
    ensure!(took >= Duration::from_millis(1800), "{took:?}");
    Ok(())
}

fn force(cluster: &Cluster) -> Result<()> {
    let script = "trap '' TERM; while :; do sleep 0.1; done";
    let more = "terminationGracePeriodSeconds: 600";
    cluster.apply(&pod("forced", script, "", more).replace("  terminationGracePeriodSeconds: 1\n", ""))?;
    ready(cluster, "forced")?;
    delete(cluster, "forced", &["--force", "--grace-period=0"])?;
    cluster.apply(&pod("forced", "echo second; exec sleep 1000", "", ""))?;
    ready(cluster, "forced")?;
    logged(cluster, "forced", &["second"])
}

fn hooks(cluster: &Cluster) -> Result<()> {
    let host = tempfile::tempdir()?;
    let more = format!("volumes: [{{name: h, hostPath: {{path: {}}}}}]", host.path().display());
    let container = "volumeMounts: [{name: h, mountPath: /h}]\nlifecycle:\n  \
                     postStart: {exec: {command: [sh, -c, 'echo started >> /h/log']}}\n  \
                     preStop: {exec: {command: [sh, -c, 'sleep 0.3; echo stopping >> /h/log']}}";
    let script = "trap 'echo term >> /h/log; exit 0' TERM; touch /h/trap; while :; do sleep 0.1; done";
    let text = pod("hooks", script, container, &more).replace("Seconds: 1\n", "Seconds: 200\n");
    cluster.apply(&text)?;
    ready(cluster, "hooks")?;
    cluster.eventually("the trap is set", || Ok(std::fs::metadata(host.path().join("trap"))?))?;
    delete(cluster, "hooks", &[])?;
    let log = std::fs::read_to_string(host.path().join("log"))?;
    ensure!(log == "started\nstopping\nterm\n", "{log}");
    Ok(())
}

fn failing_hook(cluster: &Cluster) -> Result<()> {
    let hook = "lifecycle: {postStart: {exec: {command: [sh, -c, 'echo sad; exit 3']}}}";
    cluster.apply(&pod("badhook", "exec sleep 1000", hook, ""))?;
    told(cluster, "badhook", &["FailedPostStartHook", "Killing"])?;
    cluster.eventually("a restart", || {
        ensure!(
            status(cluster, "badhook")?["containerStatuses"][0]["lastState"]["terminated"].is_object(),
            "killed"
        );
        Ok(())
    })
}

fn deadline(cluster: &Cluster) -> Result<()> {
    cluster.apply(&pod("late", "exec sleep 1000", "", "activeDeadlineSeconds: 2"))?;
    phase(cluster, "late", "Failed")?;
    let status = status(cluster, "late")?;
    ensure!(status["reason"] == "DeadlineExceeded", "{status}");
    ensure!(status["message"] == "Pod was active on the node longer than the specified deadline", "{status}");
    Ok(())
}

fn liveness(cluster: &Cluster) -> Result<()> {
    let probe = "livenessProbe: {exec: {command: [cat, /tmp/alive]}, periodSeconds: 1, failureThreshold: 1, initialDelaySeconds: 2, timeoutSeconds: 60}";
    cluster.apply(&pod("liveness", "touch /tmp/alive; sleep 3; rm /tmp/alive; sleep 1000", probe, ""))?;
    cluster.eventually("liveness restarts it", || {
        let container = status(cluster, "liveness")?["containerStatuses"][0].clone();
        ensure!(container["restartCount"].as_u64() >= Some(1), "{container}");
        ensure!(container["lastState"]["terminated"]["exitCode"] == 137, "{container}");
        Ok(())
    })?;
    told(
        cluster,
        "liveness",
        &[
            "Unhealthy",
            "Liveness probe failed",
            "can't open '/tmp/alive'",
            "Container c failed liveness probe, will be restarted",
        ],
    )
}

fn readiness(cluster: &Cluster) -> Result<()> {
    let probe =
        "readinessProbe: {exec: {command: [test, -e, /tmp/ready]}, periodSeconds: 1, timeoutSeconds: 20}";
    cluster.apply(&pod("gate", "exec sleep 1000", probe, ""))?;
    cluster.kubectl(&["expose", "pod", "gate", "--port=80"])?;
    phase(cluster, "gate", "Running")?;
    let addresses = || cluster.field(&["endpoints", "gate"], "/subsets/0/addresses/0/ip");
    cluster.eventually("it is listed as not ready", || {
        let waiting = cluster.field(&["endpoints", "gate"], "/subsets/0/notReadyAddresses/0/ip")?;
        ensure!(!waiting.is_empty() && addresses()?.is_empty(), "{waiting}");
        Ok(())
    })?;
    cluster.kubectl(&["exec", "gate", "--", "touch", "/tmp/ready"])?;
    ready(cluster, "gate")?;
    let ip = cluster.field(&["pod", "gate"], "/status/podIP")?;
    cluster.wait_field(&["endpoints", "gate"], "/subsets/0/addresses/0/ip", &ip)?;
    cluster.kubectl(&["exec", "gate", "--", "rm", "/tmp/ready"])?;
    cluster.wait_field(&["endpoints", "gate"], "/subsets/0/addresses/0/ip", "")?;
    ensure!(
        status(cluster, "gate")?["containerStatuses"][0]["restartCount"] == 0,
        "readiness restarts nothing"
    );
    Ok(())
}

fn startup(cluster: &Cluster) -> Result<()> {
    let probes = "startupProbe: {exec: {command: [test, -e, /tmp/up]}, periodSeconds: 1, failureThreshold: 60, timeoutSeconds: 60}\n\
                  livenessProbe: {exec: {command: [test, -e, /tmp/up]}, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 60}";
    cluster.apply(&pod("slow", "sleep 3; touch /tmp/up; exec sleep 1000", probes, ""))?;
    phase(cluster, "slow", "Running")?;
    ready(cluster, "slow")?;
    let container = &status(cluster, "slow")?["containerStatuses"][0];
    ensure!(container["started"] == true && container["restartCount"] == 0, "{container}");
    let began = container["state"]["running"]["startedAt"].as_str().context("started")?.to_string();
    let conditions = status(cluster, "slow")?["conditions"].clone();
    let ready =
        conditions.as_array().into_iter().flatten().find(|c| c["type"] == "Ready").context("Ready")?;
    ensure!(
        ready["lastTransitionTime"].as_str() > Some(began.as_str()),
        "ready only after the start: {ready}"
    );
    Ok(())
}

fn kinds(cluster: &Cluster) -> Result<()> {
    let script = "echo ok > /www/ok; exec httpd -f -p 8080 -h /www";
    let http = |path: &str, port: &str| {
        format!(
            "ports: [{{name: web, containerPort: 8080}}]\nreadinessProbe: {{httpGet: {{path: {path}, port: {port}}}, periodSeconds: 1}}"
        )
    };
    cluster.apply(&pod("http-ok", script, &http("/ok", "web"), ""))?;
    cluster.apply(&pod("http-bad", script, &http("/nope", "8080"), ""))?;
    cluster.apply(&pod(
        "tcp-ok",
        script,
        "readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}",
        "",
    ))?;
    cluster.apply(&pod(
        "tcp-bad",
        script,
        "readinessProbe: {tcpSocket: {port: 8081}, periodSeconds: 1}",
        "",
    ))?;
    ready(cluster, "http-ok")?;
    ready(cluster, "tcp-ok")?;
    for (name, words) in [
        ("http-bad", "Readiness probe failed: HTTP probe failed with statuscode: 404"),
        ("tcp-bad", "connect: connection refused"),
    ] {
        told(cluster, name, &["Unhealthy", words])?;
        ensure!(status(cluster, name)?["containerStatuses"][0]["ready"] == false, "{name}");
    }
    Ok(())
}
