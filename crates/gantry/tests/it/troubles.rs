//! Pods that cannot start say why, in Kubernetes' words, and start once the cause is gone; host network and ports;
//! runtime classes.

use crate::{all, busy, has, pod, ready, refusal, told};
use anyhow::{Context, Result, ensure};
use testkit::cluster::Cluster;
use testkit::image::ImageBuilder;

#[test]
fn what_blocks_a_pod_is_said_and_can_be_mended() {
    let cluster = busy();
    all(
        &cluster,
        &[
            ("image", image),
            ("never_pull", never_pull),
            ("config_map", config_map),
            ("command", command),
            ("volume", volume),
            ("unschedulable", unschedulable),
            ("host_network", host_network),
            ("host_port", host_port),
            ("runtime_class", runtime_class),
            ("static_words", describe),
        ],
    );
}

const WAITING: &str = "/status/containerStatuses/0/state/waiting/reason";

fn image(cluster: &Cluster) -> Result<()> {
    let text =
        pod("noimage", "echo up; exec sleep 1000", "", "").replace("image: busybox", "image: missing:v1");
    cluster.apply(&text)?;
    // (The other word, ErrImagePull, is there for a second only: events keep it.)
    cluster.wait_field(&["pod", "noimage"], WAITING, "ImagePullBackOff")?;
    let words =
        ["Pulling image \"missing:v1\"", "Failed to pull image \"missing:v1\"", "Error: ErrImagePull"];
    told(cluster, "noimage", &words)?;
    let archive = cluster.folder().join("missing.tar");
    cluster.load_image(&ImageBuilder::busybox("missing:v1").write_docker_archive(&archive))?;
    ready(cluster, "noimage")?;
    let status = cluster.get(&["pod", "noimage"])?["status"]["containerStatuses"][0].clone();
    ensure!(status["restartCount"] == 0, "{status}");
    has(status["imageID"].as_str().unwrap_or_default(), &["sha256:"])
}

fn never_pull(cluster: &Cluster) -> Result<()> {
    let text = pod("neverpull", "true", "", "").replace("image: busybox", "image: missing:v2");
    cluster.apply(&text.replace("IfNotPresent", "Never"))?;
    cluster.wait_field(&["pod", "neverpull"], WAITING, "ErrImageNeverPull")?;
    let bad = pod("badname", "true", "", "").replace("image: busybox", "image: 'Not A Name'");
    cluster.apply(&bad)?;
    cluster.wait_field(&["pod", "badname"], WAITING, "InvalidImageName")
}

fn config_map(cluster: &Cluster) -> Result<()> {
    let env = "env: [{name: A, valueFrom: {configMapKeyRef: {name: later, key: a}}}]";
    cluster.apply(&pod("noconfig", "echo $A; exec sleep 1000", env, ""))?;
    cluster.wait_field(&["pod", "noconfig"], WAITING, "CreateContainerConfigError")?;
    let message = cluster.field(&["pod", "noconfig"], "/status/containerStatuses/0/state/waiting/message")?;
    ensure!(message == "configmap \"later\" not found", "{message}");
    cluster.kubectl(&["create", "cm", "later", "--from-literal=b=1"])?;
    cluster.wait_field(
        &["pod", "noconfig"],
        "/status/containerStatuses/0/state/waiting/message",
        "couldn't find key a in ConfigMap default/later",
    )?;
    cluster.kubectl(&["patch", "cm", "later", "-p", r#"{"data":{"a":"now"}}"#])?;
    ready(cluster, "noconfig")?;
    crate::logged(cluster, "noconfig", &["now"])
}

fn command(cluster: &Cluster) -> Result<()> {
    let text =
        pod("nocommand", "x", "", "").replace("command: [sh, -c, \"x\"]", "command: [/no/such/program]");
    cluster.apply(&text)?;
    cluster.eventually("RunContainerError or its crash loop", || {
        let status = cluster.get(&["pod", "nocommand"])?["status"]["containerStatuses"][0].clone();
        has(&status.to_string(), &["/no/such/program", "no such file or directory"])?;
        let end =
            if status["state"]["terminated"].is_object() { &status["state"] } else { &status["lastState"] };
        ensure!(
            end["terminated"]["exitCode"] == 128 && end["terminated"]["reason"] == "StartError",
            "{status}"
        );
        Ok(())
    })?;
    told(cluster, "nocommand", &["Failed", "Error: exec: \"/no/such/program\""])
}

fn volume(cluster: &Cluster) -> Result<()> {
    let more = "volumes: [{name: v, configMap: {name: volume-later}}, {name: s, secret: {secretName: here}}]";
    let mounts = "volumeMounts: [{name: v, mountPath: /v}, {name: s, mountPath: /s}]";
    cluster.apply(&pod("novolume", "cat /v/*; echo; exec sleep 1000", mounts, more))?;
    cluster.kubectl(&["create", "secret", "generic", "here", "--from-literal=a=b"])?;
    let words = "MountVolume.SetUp failed for volume \"v\" : configmap \"volume-later\" not found";
    told(cluster, "novolume", &["FailedMount", words])?;
    cluster.kubectl(&["create", "cm", "volume-later", "--from-literal=a=mounted"])?;
    ready(cluster, "novolume")?;
    crate::logged(cluster, "novolume", &["mounted"])
}

fn unschedulable(cluster: &Cluster) -> Result<()> {
    cluster.apply(&pod("toobig", "true", "resources: {requests: {cpu: 1000}}", ""))?;
    told(cluster, "toobig", &["FailedScheduling", "0/1 nodes are available: 1 Insufficient cpu"])?;
    cluster.apply(&pod("nowhere", "exec sleep 1000", "", "nodeSelector: {disk: ssd}"))?;
    told(cluster, "nowhere", &["node(s) didn't match Pod's node affinity/selector"])?;
    cluster.kubectl(&["label", "node", "node-1", "disk=ssd"])?;
    ready(cluster, "nowhere")
}

fn host_network(cluster: &Cluster) -> Result<()> {
    let container = "ports: [{containerPort: 8123}]";
    let script = "hostname > /www/index.html; exec httpd -f -p 8123 -h /www";
    cluster.apply(&pod("hostnet", script, container, "hostNetwork: true"))?;
    ready(cluster, "hostnet")?;
    let pod = cluster.get(&["pod", "hostnet"])?;
    ensure!(
        pod["status"]["podIP"] == "10.99.0.1" && pod["status"]["hostIP"] == "10.99.0.1",
        "{}",
        pod["status"]
    );
    ensure!(pod["spec"]["containers"][0]["ports"][0]["hostPort"] == 8123, "{}", pod["spec"]);
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    cluster.eventually("it serves on the host", || {
        let said = cluster.sh("curl -sS --max-time 5 http://127.0.0.1:8123/")?;
        ensure!(said == host, "{said} is not the host's name {host}");
        Ok(())
    })?;
    let links = cluster.kubectl(&["exec", "hostnet", "--", "ls", "/sys/class/net"])?;
    has(&links, &["eth0", "outside"])
}

fn host_port(cluster: &Cluster) -> Result<()> {
    let container = "ports: [{containerPort: 80, hostPort: 8124}]";
    let script = "echo by host port > /www/index.html; exec httpd -f -p 80 -h /www";
    cluster.apply(&pod("hostport", script, container, ""))?;
    ready(cluster, "hostport")?;
    for address in ["10.99.0.1", "127.0.0.1"] {
        cluster.eventually("the host port answers", || {
            let said = cluster.sh(&format!("curl -sS --max-time 2 http://{address}:8124/"))?;
            ensure!(said == "by host port\n", "{address}: {said}");
            Ok(())
        })?;
    }
    cluster.apply(&pod("hostport2", script, container, ""))?;
    told(cluster, "hostport2", &["node(s) didn't have free ports for the requested pod ports"])?;
    cluster.kubectl(&["delete", "pod", "hostport"])?;
    ready(cluster, "hostport2")
}

fn runtime_class(cluster: &Cluster) -> Result<()> {
    let class = |name: &str, handler: &str| {
        format!(
            "apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {{name: {name}}}\nhandler: {handler}\n"
        )
    };
    cluster.apply(&class("by-crun", "crun"))?;
    cluster.apply(&class("by-nobody", "nobody"))?;
    let script = "echo by crun; exec sleep 1000";
    cluster.apply(&pod("crun", script, "", "runtimeClassName: by-crun"))?;
    ready(cluster, "crun")?;
    crate::logged(cluster, "crun", &["by crun"])?;
    ensure!(cluster.kubectl(&["exec", "crun", "--", "echo", "inside"])? == "inside\n", "exec");
    has(
        &refusal(cluster.apply(&pod("unclass", "true", "", "runtimeClassName: unknown")))?,
        &["pods \"unclass\" is forbidden: pod rejected: RuntimeClass \"unknown\" not found"],
    )?;
    cluster.apply(&pod("nohandler", "true", "", "runtimeClassName: by-nobody"))?;
    told(cluster, "nohandler", &["FailedCreatePodSandBox", "no runtime for \"nobody\" is configured"])
}

fn describe(cluster: &Cluster) -> Result<()> {
    cluster.apply(&pod("told", "exec sleep 1000", "", ""))?;
    ready(cluster, "told")?;
    let words = [
        "Status:           Running",
        "Scheduled",
        "Successfully assigned default/told to node-1",
        "Container image \"busybox\" already present on machine and can be accessed by the pod",
        "Created",
        "Started",
        "QoS Class:",
    ];
    cluster.eventually("all is told", || has(&cluster.kubectl(&["describe", "pod", "told"])?, &words))?;
    let wide = cluster.kubectl(&["get", "pod", "told", "-o", "wide"])?;
    let line = wide.lines().nth(1).context("a row")?;
    has(line, &["1/1", "Running", "node-1", "10.244."])
}
