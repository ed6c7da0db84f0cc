//! What a container gets: environment, arguments, identity and rights, limits, volumes.

use crate::{all, busy, has, pod, ready, refusal, told};
use anyhow::{Context, Result, ensure};
use testkit::cluster::Cluster;

#[test]
fn containers_get_what_their_spec_says() {
    let cluster = busy();
    all(
        &cluster,
        &[
            ("environment", environment),
            ("arguments", arguments),
            ("identity", identity),
            ("rights", rights),
            ("limits", limits),
            ("oom", oom),
            ("names", names),
            ("namespaces", namespaces),
            ("last_words", last_words),
            ("debug", debug),
        ],
    );
}

#[test]
fn volumes_hold_what_their_spec_says() {
    let cluster = busy();
    all(
        &cluster,
        &[
            ("empty_dirs", empty_dirs),
            ("live_update", live_update),
            ("payloads", payloads),
            ("host_paths", host_paths),
            ("sub_paths", sub_paths),
        ],
    );
}

/// What a pod that ends has logged.
fn output(cluster: &Cluster, name: &str) -> Result<String> {
    cluster.eventually(&format!("{name} has ended"), || {
        let phase = cluster.field(&["pod", name], "/status/phase")?;
        ensure!(phase == "Succeeded" || phase == "Failed", "it is {phase}");
        cluster.kubectl(&["logs", name, "--all-containers"])
    })
}

fn environment(cluster: &Cluster) -> Result<()> {
    cluster.apply(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: env}
data: {color: blue, data-1: dashed, key: from-map}
---
apiVersion: v1
kind: Secret
metadata: {name: env}
stringData: {word: hush}
---
apiVersion: v1
kind: Pod
metadata: {name: env, labels: {app: env, tier: x}, annotations: {note: "a b"}}
spec:
  restartPolicy: Never
  containers:
  - name: c
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [env]
    resources: {limits: {cpu: 500m, memory: 64Mi}, requests: {cpu: 250m, memory: 32Mi}}
    envFrom:
    - {prefix: P_, configMapRef: {name: env}}
    - {secretRef: {name: env}}
    - {configMapRef: {name: nowhere, optional: true}}
    env:
    - {name: PLAIN, value: "1"}
    - {name: DERIVED, value: "$(PLAIN)-$(COLOR)-$$(PLAIN)-$(NOPE)"}
    - {name: COLOR, valueFrom: {configMapKeyRef: {name: env, key: color}}}
    - {name: LATER, value: "$(COLOR)"}
    - {name: WORD2, valueFrom: {secretKeyRef: {name: env, key: word}}}
    - {name: ABSENT, valueFrom: {configMapKeyRef: {name: env, key: nope, optional: true}}}
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: SPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: HOST, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: ACCOUNT, valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}}
    - {name: TIER, valueFrom: {fieldRef: {fieldPath: "metadata.labels['tier']"}}}
    - {name: NOTE, valueFrom: {fieldRef: {fieldPath: "metadata.annotations['note']"}}}
    - {name: CPUS, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
    - {name: MILLI, valueFrom: {resourceFieldRef: {resource: requests.cpu, divisor: 1m}}}
    - {name: MIB, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
"#,
    )?;
    let said = output(cluster, "env")?;
    let ip = cluster.field(&["pod", "env"], "/status/podIP")?;
    ensure!(!ip.is_empty(), "no pod IP");
    let lines: Vec<&str> = said.lines().collect();
    for want in [
        "PLAIN=1",
        "COLOR=blue",
        "LATER=blue",
        "WORD2=hush",
        "word=hush",
        "P_color=blue",
        "P_data-1=dashed",
        "POD=env",
        "SPACE=default",
        &format!("IP={ip}"),
        "HOST=10.99.0.1",
        "NODE=node-1",
        "ACCOUNT=default",
        "TIER=x",
        "NOTE=a b",
        "CPUS=1",
        "MILLI=250",
        "MIB=64",
        "HOSTNAME=env",
        "KUBERNETES_SERVICE_HOST=10.96.0.1",
        "KUBERNETES_SERVICE_PORT=443",
        "KUBERNETES_PORT_443_TCP_ADDR=10.96.0.1",
        // Only what stands before is expanded; what is unknown stays.
        "DERIVED=1-$(COLOR)-$(PLAIN)-$(NOPE)",
    ] {
        ensure!(lines.contains(&want), "no {want} in\n{said}");
    }
    ensure!(!said.contains("ABSENT"), "{said}");
    Ok(())
}

fn arguments(cluster: &Cluster) -> Result<()> {
    cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: args}
spec:
  restartPolicy: Never
  containers:
  - name: both
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [echo, "$(A)"]
    args: ["$$(A)", "$(B)", "x y"]
    env: [{name: A, value: "1"}]
  - name: work
    image: busybox
    imagePullPolicy: IfNotPresent
    workingDir: /made/for/me
    command: [pwd]
  - name: args-only
    image: busybox
    imagePullPolicy: IfNotPresent
    args: [sh, -c, "echo by args; echo -n reason > /dev/termination-log; exit 3"]
"#,
    )?;
    let said = output(cluster, "args")?;
    has(&said, &["1 $(A) $(B) x y\n", "/made/for/me\n", "by args\n"])?;
    let pod = cluster.get(&["pod", "args"])?;
    let statuses = pod["status"]["containerStatuses"].as_array().context("statuses")?;
    let last = statuses.iter().find(|s| s["name"] == "args-only").context("a status")?;
    let end = &last["state"]["terminated"];
    ensure!(end["exitCode"] == 3 && end["message"] == "reason" && end["reason"] == "Error", "{last}");
    ensure!(pod["status"]["phase"] == "Failed", "{pod}");
    let done = &statuses.iter().find(|s| s["name"] == "both").context("a status")?["state"]["terminated"];
    ensure!(done["exitCode"] == 0 && done["reason"] == "Completed", "{done}");
    Ok(())
}

/// One value of `/proc/self/status`.
fn status_line<'a>(text: &'a str, key: &str) -> Result<Vec<&'a str>> {
    let line = text.lines().find_map(|l| l.strip_prefix(&format!("{key}:")));
    Ok(line.with_context(|| format!("no {key} in {text}"))?.split_whitespace().collect())
}

fn identity(cluster: &Cluster) -> Result<()> {
    let context = "securityContext: {runAsUser: 1000, runAsGroup: 2000, fsGroup: 4000, supplementalGroups: [3000]}\n\
                   restartPolicy: Never\nvolumes: [{name: v, emptyDir: {}}]";
    let script = "cat /proc/self/status; echo x > /v/f; stat -c 'file %u:%g' /v/f; stat -c 'dir %g %a' /v";
    cluster.apply(&pod("ident", script, "volumeMounts: [{name: v, mountPath: /v}]", context))?;
    let said = output(cluster, "ident")?;
    ensure!(status_line(&said, "Uid")? == ["1000"; 4], "{said}");
    ensure!(status_line(&said, "Gid")? == ["2000"; 4], "{said}");
    let groups = status_line(&said, "Groups")?;
    ensure!(groups.contains(&"3000") && groups.contains(&"4000"), "{groups:?}");
    ensure!(status_line(&said, "CapEff")? == ["0000000000000000"], "{said}");
    has(&said, &["file 1000:4000", "dir 4000 2777"])?;
    let root = "securityContext: {runAsNonRoot: true}\nrestartPolicy: Never";
    cluster.apply(&pod("nonroot", "true", "", root))?;
    let waiting = "/status/containerStatuses/0/state/waiting";
    cluster.wait_field(&["pod", "nonroot"], &format!("{waiting}/reason"), "CreateContainerConfigError")?;
    has(
        &cluster.field(&["pod", "nonroot"], &format!("{waiting}/message"))?,
        &["container has runAsNonRoot and image will run as root"],
    )
}

fn rights(cluster: &Cluster) -> Result<()> {
    let never = "restartPolicy: Never";
    let script = "cat /proc/self/status; touch /root/x 2>&1; ls /dev | wc -l | sed 's/^/devices /'; \
                  mount -t tmpfs x /tmp 2>&1 && echo mounted; cat /proc/mounts";
    let rows = [
        ("rights-plain", ""),
        ("rights-drop", "securityContext: {capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}}"),
        (
            "rights-no",
            "securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, seccompProfile: {type: RuntimeDefault}}",
        ),
        ("rights-all", "securityContext: {privileged: true}"),
    ];
    for (name, context) in rows {
        cluster.apply(&pod(name, script, context, never))?;
    }
    let plain = output(cluster, "rights-plain")?;
    ensure!(status_line(&plain, "CapEff")? == ["00000000a80425fb"], "{plain}");
    ensure!(status_line(&plain, "NoNewPrivs")? == ["0"], "{plain}");
    ensure!(status_line(&plain, "Seccomp")? == ["0"], "{plain}");
    ensure!(!plain.contains("mounted\n") && plain.contains("sysfs /sys sysfs ro"), "{plain}");
    let drop = output(cluster, "rights-drop")?;
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        ensure!(status_line(&drop, set)? == ["0000000000000400"], "{drop}");
    }
    let no = output(cluster, "rights-no")?;
    ensure!(status_line(&no, "NoNewPrivs")? == ["1"], "{no}");
    ensure!(status_line(&no, "Seccomp")? == ["2"], "{no}");
    has(&no, &["Read-only file system"])?;
    let privileged = output(cluster, "rights-all")?;
    let ours = std::fs::read_to_string("/proc/self/status")?;
    ensure!(status_line(&privileged, "CapEff")? == status_line(&ours, "CapEff")?, "{privileged}");
    has(&privileged, &["mounted\n"])?;
    let devices =
        |text: &str| text.lines().find_map(|l| l.strip_prefix("devices ")?.trim().parse::<u32>().ok());
    ensure!(devices(&privileged) > devices(&plain), "a privileged container sees the host's devices");
    Ok(())
}

fn limits(cluster: &Cluster) -> Result<()> {
    let resources = "resources: {limits: {cpu: 500m, memory: 64Mi}, requests: {cpu: 250m}}";
    let script = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes memory.max 2>/dev/null; \
                  cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us cpu.max 2>/dev/null | xargs echo quota; \
                  cat cpu/cpu.shares 2>/dev/null | sed 's/^/shares /'";
    cluster.apply(&pod("limits", script, resources, "restartPolicy: Never"))?;
    let said = output(cluster, "limits")?;
    has(&said, &["67108864\n", "quota 50000 100000\n"])?;
    ensure!(!said.contains("shares") || said.contains("shares 256\n"), "{said}");
    let class = |name: &str| cluster.field(&["pod", name], "/status/qosClass");
    ensure!(class("limits")? == "Burstable", "{}", class("limits")?);
    cluster.apply(&pod("besteffort", "true", "", "restartPolicy: Never"))?;
    ensure!(class("besteffort")? == "BestEffort", "{}", class("besteffort")?);
    Ok(())
}

fn oom(cluster: &Cluster) -> Result<()> {
    let script = "exec dd if=/dev/zero of=/dev/null bs=200M count=1";
    let limit = "resources: {limits: {memory: 20Mi}}";
    cluster.apply(&pod("oom", script, limit, "restartPolicy: Never"))?;
    cluster.wait_field(&["pod", "oom"], "/status/phase", "Failed")?;
    let status =
        cluster.get(&["pod", "oom"])?["status"]["containerStatuses"][0]["state"]["terminated"].clone();
    ensure!(status["reason"] == "OOMKilled" && status["exitCode"] == 137, "{status}");
    Ok(())
}

fn names(cluster: &Cluster) -> Result<()> {
    let more = "restartPolicy: Never\nhostname: given\nsubdomain: sub\ndnsPolicy: None\n\
                dnsConfig: {nameservers: [10.1.2.3], searches: [x.y], options: [{name: ndots, value: '3'}]}\n\
                hostAliases: [{ip: 10.9.8.7, hostnames: [alias.example]}]";
    cluster.apply(&pod("names", "hostname; hostname -f; cat /etc/resolv.conf /etc/hosts", "", more))?;
    let said = output(cluster, "names")?;
    has(
        &said,
        &[
            "given\n",
            "given.sub.default.svc.cluster.local",
            "nameserver 10.1.2.3",
            "search x.y",
            "ndots:3",
            "10.9.8.7\talias.example",
        ],
    )?;
    cluster.apply(&pod("names2", "cat /etc/resolv.conf; cat /etc/hosts", "", "restartPolicy: Never"))?;
    let said = output(cluster, "names2")?;
    has(
        &said,
        &[
            "nameserver 10.96.0.10",
            "search default.svc.cluster.local svc.cluster.local cluster.local",
            "ndots:5",
            "\tnames2",
        ],
    )
}

fn empty_dirs(cluster: &Cluster) -> Result<()> {
    cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: shared}
spec:
  restartPolicy: Never
  volumes:
  - {name: disk, emptyDir: {}}
  - {name: mem, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  containers:
  - name: writer
    image: busybox
    imagePullPolicy: IfNotPresent
    volumeMounts: [{name: disk, mountPath: /d}, {name: mem, mountPath: /m}]
    command: [sh, -c, "stat -c 'mode %a' /d; grep ' /m ' /proc/mounts; dd if=/dev/zero of=/m/big bs=1M count=3 2>&1; echo shared > /d/word.new; mv /d/word.new /d/word"]
  - name: reader
    image: busybox
    imagePullPolicy: IfNotPresent
    volumeMounts: [{name: disk, mountPath: /e, readOnly: true}]
    command: [sh, -c, "until cat /e/word; do sleep 0.1; done 2>/dev/null; touch /e/x 2>&1; true"]
"#,
    )?;
    let said = output(cluster, "shared")?;
    has(&said, &["mode 777", "tmpfs /m tmpfs rw", "No space left", "shared\n", "Read-only file system"])
}

fn live_update(cluster: &Cluster) -> Result<()> {
    cluster.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: live}\ndata: {a: one, gone: soon}")?;
    let more = "volumes:\n- {name: m, configMap: {name: live}}\n\
                - {name: d, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}\n\
                - {name: o, configMap: {name: comes-later, optional: true}}";
    let mounts =
        "volumeMounts: [{name: m, mountPath: /m}, {name: d, mountPath: /d}, {name: o, mountPath: /o}]";
    cluster.apply(&pod("live", "exec sleep 1000", mounts, more))?;
    ready(cluster, "live")?;
    let read = |script: &str| cluster.kubectl(&["exec", "live", "--", "sh", "-c", script]);
    ensure!(read("cat /m/a /m/gone; ls /o")? == "onesoon", "first content");
    cluster.kubectl(&["patch", "cm", "live", "-p", r#"{"data":{"a":"two","gone":null,"new":"here"}}"#])?;
    cluster.kubectl(&["label", "pod", "live", "tint=red"])?;
    cluster.kubectl(&["create", "cm", "comes-later", "--from-literal=k=v"])?;
    cluster.eventually("the volumes follow", || {
        let now = read("cat /m/*; echo; cat /d/labels; cat /o/k")?;
        ensure!(now.starts_with("twohere\n") && now.contains("tint=\"red\"") && now.ends_with('v'), "{now}");
        Ok(())
    })
}

fn payloads(cluster: &Cluster) -> Result<()> {
    cluster.apply(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: pay}
data: {a: text}
binaryData: {b: AAEC}
---
apiVersion: v1
kind: Secret
metadata: {name: pay}
stringData: {key: hush}
---
apiVersion: v1
kind: Pod
metadata: {name: pay, labels: {app: pay}, annotations: {x: "y"}}
spec:
  restartPolicy: Never
  volumes:
  - {name: s, secret: {secretName: pay, defaultMode: 0400, items: [{key: key, path: deep/er/key, mode: 0440}]}}
  - {name: s2, secret: {secretName: pay}}
  - {name: c, configMap: {name: pay, defaultMode: 0600}}
  - name: p
    projected:
      defaultMode: 0444
      sources:
      - configMap: {name: pay, items: [{key: a, path: conf/a}]}
      - secret: {name: pay}
      - downwardAPI:
          items:
          - {path: name, fieldRef: {fieldPath: metadata.name}}
          - {path: cpu, resourceFieldRef: {containerName: c, resource: limits.cpu, divisor: 1m}}
  containers:
  - name: c
    image: busybox
    imagePullPolicy: IfNotPresent
    resources: {limits: {cpu: 300m}}
    volumeMounts:
    - {name: s, mountPath: /s}
    - {name: s2, mountPath: /s2}
    - {name: c, mountPath: /c}
    - {name: p, mountPath: /p}
    command: [sh, -c, "stat -Lc '%n %a' /s/deep/er/key /s2/key /c/a /c/b /p/key; wc -c < /c/b; cat /p/conf/a /p/key /p/name /p/cpu; echo; touch /p/x 2>&1"]
"#,
    )?;
    let said = output(cluster, "pay")?;
    has(
        &said,
        &[
            "/s/deep/er/key 440\n",
            "/s2/key 644\n",
            "/c/a 600\n",
            "/c/b 600\n",
            "/p/key 444\n",
            "\n3\n",
            "texthushpay300\n",
            "Read-only file system",
        ],
    )
}

fn host_paths(cluster: &Cluster) -> Result<()> {
    let host = tempfile::tempdir()?;
    let base = host.path().display().to_string();
    std::fs::write(host.path().join("file"), "from host")?;
    let more = format!(
        "restartPolicy: Never\nvolumes:\n- {{name: d, hostPath: {{path: {base}/made, type: DirectoryOrCreate}}}}\n\
         - {{name: f, hostPath: {{path: {base}/file, type: File}}}}\n- {{name: new, hostPath: {{path: {base}/new, type: FileOrCreate}}}}"
    );
    let mounts =
        "volumeMounts: [{name: d, mountPath: /d}, {name: f, mountPath: /f}, {name: new, mountPath: /n}]";
    cluster.apply(&pod("hostpath", "cat /f; echo back > /d/back; echo new > /n", mounts, &more))?;
    ensure!(output(cluster, "hostpath")? == "from host", "the file");
    ensure!(std::fs::read_to_string(host.path().join("made/back"))? == "back\n", "written back");
    ensure!(std::fs::read_to_string(host.path().join("new"))? == "new\n", "made and written");
    let more = format!("volumes: [{{name: d, hostPath: {{path: {base}/none, type: Directory}}}}]");
    cluster.apply(&pod("hostless", "true", "volumeMounts: [{name: d, mountPath: /d}]", &more))?;
    told(cluster, "hostless", &["FailedMount", "hostPath type check failed", "is not a directory"])?;
    ensure!(cluster.field(&["pod", "hostless"], "/status/phase")? == "Pending", "it waits");
    std::fs::create_dir(host.path().join("none"))?;
    cluster.eventually("it starts once the folder is there", || {
        let count =
            cluster.field(&["pod", "hostless"], "/status/containerStatuses/0/state/waiting/reason")?;
        ensure!(count != "ContainerCreating", "{count}");
        Ok(())
    })?;
    cluster.kubectl(&["delete", "pod", "hostless", "--wait"]).map(drop)
}

fn sub_paths(cluster: &Cluster) -> Result<()> {
    cluster.apply(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: sub}
data: {one.conf: "first", two.conf: "second"}
---
apiVersion: v1
kind: Pod
metadata: {name: sub}
spec:
  restartPolicy: Never
  volumes: [{name: c, configMap: {name: sub}}, {name: e, emptyDir: {}}]
  containers:
  - name: c
    image: busybox
    imagePullPolicy: IfNotPresent
    env: [{name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
    volumeMounts:
    - {name: c, mountPath: /etc/one.conf, subPath: one.conf}
    - {name: e, mountPath: /a, subPath: deep/a}
    - {name: e, mountPath: /p, subPathExpr: "$(POD)"}
    - {name: e, mountPath: /all}
    command: [sh, -c, "cat /etc/one.conf; echo; ls /etc; touch /a/f /p/g; cd /all; find . | sort"]
"#,
    )?;
    let said = output(cluster, "sub")?;
    has(&said, &["first\n", "passwd", "./deep/a/f\n", "./sub/g\n"])?;
    let escape = "volumes: [{name: e, emptyDir: {}}]";
    let bad = pod("climb", "true", "volumeMounts: [{name: e, mountPath: /a, subPath: ../up}]", escape);
    has(&refusal(cluster.apply(&bad))?, &["must not contain '..'"])
}

/// Which namespaces are shared, sysctls, and the host's process and IPC namespaces.
fn namespaces(cluster: &Cluster) -> Result<()> {
    let never = "restartPolicy: Never";
    let script =
        "ps | grep -c '[s]leep 77'; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; echo pid $$$$";
    let side = format!(
        "{never}\nshareProcessNamespace: true\nsecurityContext: {{sysctls: [{{name: net.ipv4.ip_unprivileged_port_start, value: '80'}}]}}\n\
         initContainers: [{{name: s, image: 'busybox:1.36', restartPolicy: Always, command: [sleep, '77']}}]"
    );
    cluster.apply(&pod("share", script, "", &side))?;
    cluster.apply(&pod("own", script, "", never))?;
    cluster.apply(&pod(
        "host",
        "readlink /proc/self/ns/ipc; ps | grep -c [k]threadd",
        "",
        &format!("{never}\nhostPID: true\nhostIPC: true"),
    ))?;
    let wait = |name: &str| cluster.wait_field(&["pod", name], "/status/phase", "Succeeded");
    wait("share")?;
    let said = cluster.kubectl(&["logs", "share", "-c", "c"])?;
    ensure!(said.starts_with("1\n80\n") && !said.ends_with("pid 1\n"), "{said}");
    let said = output(cluster, "own")?;
    ensure!(said.starts_with("0\n") && said.ends_with("pid 1\n"), "{said}");
    let said = output(cluster, "host")?;
    let ipc = std::fs::read_link("/proc/self/ns/ipc")?.display().to_string();
    ensure!(said == format!("{ipc}\n1\n"), "{said}");
    Ok(())
}

fn last_words(cluster: &Cluster) -> Result<()> {
    let container = "terminationMessagePolicy: FallbackToLogsOnError";
    cluster.apply(&pod("words", "echo one; echo the reason; exit 1", container, "restartPolicy: Never"))?;
    cluster.wait_field(&["pod", "words"], "/status/phase", "Failed")?;
    let message = cluster.field(&["pod", "words"], "/status/containerStatuses/0/state/terminated/message")?;
    ensure!(message == "one\nthe reason\n", "{message:?}");
    Ok(())
}

/// `kubectl debug` adds an ephemeral container to a running pod.
fn debug(cluster: &Cluster) -> Result<()> {
    cluster.apply(&pod("patient", "exec sleep 1000", "", ""))?;
    ready(cluster, "patient")?;
    let args = ["debug", "patient", "--image=busybox:1.36", "--target=c", "-c", "doctor", "--", "sh", "-c"];
    cluster.kubectl(&[&args[..], &["ps; echo examined; exec sleep 1000"]].concat())?;
    cluster.eventually("the doctor looks", || {
        let said = cluster.kubectl(&["logs", "patient", "-c", "doctor"])?;
        has(&said, &["examined", "sleep 1000"])
    })?;
    let status = cluster.get(&["pod", "patient"])?["status"].clone();
    ensure!(status["ephemeralContainerStatuses"][0]["state"]["running"].is_object(), "{status}");
    ensure!(status["containerStatuses"][0]["restartCount"] == 0, "{status}");
    Ok(())
}
