//! Configurations as values: each rule with the smallest pod that shows it.

use super::*;
use crate::facts::tests::facts;
use crate::pod::tests::{pod, pod_from};
use serde_json::{Value, json};
use std::path::Path;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102::/:/bin/false\n";
const GROUP: &str = "root:x:0:\nweb:x:102:\naudio:x:29:web\n";

fn object(body: Value) -> Arc<Object> {
    Arc::new(Object::parse(serde_json::to_vec(&body).unwrap().into()).unwrap())
}

fn image(config: Value) -> ImageConfig {
    let list = |key: &str| -> Vec<String> { serde_json::from_value(config[key].clone()).unwrap_or_default() };
    let text = |key: &str| config[key].as_str().unwrap_or_default().to_string();
    ImageConfig {
        env: list("env"),
        entrypoint: list("entrypoint"),
        cmd: list("cmd"),
        working_dir: text("dir"),
        user: text("user"),
        stop_signal: text("stop"),
        ..ImageConfig::default()
    }
}

struct Case {
    pod: PodView,
    image: ImageConfig,
    objects: Objects,
    services: Vec<Arc<Object>>,
    edits: edits::Edits,
    armour: Option<BTreeSet<String>>,
    labels: bool,
}

fn case(container: Value) -> Case {
    let mut body = json!({"name": "a", "image": "i"});
    body.as_object_mut().unwrap().extend(container.as_object().unwrap().clone());
    let objects = [
        (
            (RefKind::ConfigMap, "cm".to_string()),
            object(json!({"metadata": {"name": "cm"}, "data": {"k": "v", "a=b": "x"}})),
        ),
        (
            (RefKind::Secret, "s".to_string()),
            object(json!({"metadata": {"name": "s"}, "data": {"p": "aHVzaA=="}})),
        ),
    ];
    Case {
        pod: pod(json!({"containers": [body], "serviceAccountName": "sa"})),
        image: image(json!({"entrypoint": ["/e"], "cmd": ["c"], "env": ["PATH=/img", "X=img"]})),
        objects: objects.into(),
        services: Vec::new(),
        edits: edits::Edits::default(),
        armour: None,
        labels: false,
    }
}

impl Case {
    fn build(&self) -> Result<Configured, ConfigError> {
        let facts = facts(Path::new("/x"));
        let input = ContainerInput {
            pod: &self.pod,
            container: &self.pod.containers[0],
            image: &self.image,
            passwd: PASSWD,
            group: GROUP,
            objects: &self.objects,
            files: &|volume, path| (volume == "v" && path == "a.env").then(|| "K='from file'\n".to_string()),
            services: &self.services,
            pod_ips: &["10.0.0.9".parse().unwrap()],
            facts: &facts,
            devices: Vec::new(),
            mounts: Vec::new(),
            host_devices: Vec::new(),
            task_devices: Vec::new(),
            edits: self.edits.clone(),
            local_seccomp: None,
            armour: self.armour.clone(),
            labels: self.labels,
        };
        let env = env::environment(&input)?;
        container(input, env)
    }

    fn spec(&self) -> oci::Spec {
        self.build().unwrap().spec
    }

    fn error(&self) -> String {
        self.build().unwrap_err().to_string()
    }
}

#[test]
fn command_and_args_override_the_image_as_documented() {
    let args = |container: Value| case(container).spec().process.args;
    assert_eq!(args(json!({})), ["/e", "c"]);
    assert_eq!(args(json!({"args": ["d"]})), ["/e", "d"]);
    assert_eq!(args(json!({"command": ["/x"]})), ["/x"]);
    let container = json!({"command": ["/x"], "args": ["$(V)"], "env": [{"name": "V", "value": "1"}]});
    assert_eq!(args(container), ["/x", "1"]);
    let mut none = case(json!({}));
    none.image = ImageConfig::default();
    assert_eq!(none.error(), "no command specified");
}

#[test]
fn environment_of_every_source() {
    let mut it = case(json!({
        "envFrom": [{"prefix": "P_", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "no", "optional": true}}],
        "env": [
            {"name": "A", "value": "$(P_k)-$(FOO_SERVICE_HOST)-$(NO)"},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "SA", "valueFrom": {"fieldRef": {"fieldPath": "spec.serviceAccountName"}}},
            {"name": "K", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}},
            {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "p"}}},
            {"name": "O", "valueFrom": {"secretKeyRef": {"name": "s", "key": "no", "optional": true}}},
            {"name": "M", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
            {"name": "C", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}],
        "resources": {"limits": {"cpu": "1500m"}}}));
    it.services = vec![
        object(json!({"metadata": {"namespace": "n", "name": "foo"},
            "spec": {"clusterIP": "10.96.0.7", "ports": [{"name": "web", "port": 80, "protocol": "TCP"}]}})),
        object(
            json!({"metadata": {"namespace": "n", "name": "headless"}, "spec": {"clusterIP": "None", "ports": [{"port": 1}]}}),
        ),
        object(
            json!({"metadata": {"namespace": "other", "name": "bar"}, "spec": {"clusterIP": "10.96.0.8", "ports": [{"port": 1}]}}),
        ),
    ];
    assert_eq!(
        it.spec().process.env,
        [
            "A=v-10.96.0.7-$(NO)",
            "C=2",
            "FOO_PORT=tcp://10.96.0.7:80",
            "FOO_PORT_80_TCP=tcp://10.96.0.7:80",
            "FOO_PORT_80_TCP_ADDR=10.96.0.7",
            "FOO_PORT_80_TCP_PORT=80",
            "FOO_PORT_80_TCP_PROTO=tcp",
            "FOO_SERVICE_HOST=10.96.0.7",
            "FOO_SERVICE_PORT=80",
            "FOO_SERVICE_PORT_WEB=80",
            "HOSTNAME=p",
            "IP=10.0.0.9",
            "K=v",
            "M=4096",
            "PATH=/img",
            "P_k=v",
            "S=hush",
            "SA=sa",
            "X=img",
        ]
    );
}

#[test]
fn missing_references_in_upstreams_words() {
    let with = |source: Value| case(json!({"env": [{"name": "A", "valueFrom": source}]})).error();
    assert_eq!(with(json!({"configMapKeyRef": {"name": "x", "key": "k"}})), "configmap \"x\" not found");
    assert_eq!(with(json!({"secretKeyRef": {"name": "s", "key": "k"}})), "couldn't find key k in Secret n/s");
    let all = case(json!({"envFrom": [{"secretRef": {"name": "x"}}]}));
    assert_eq!(all.error(), "secret \"x\" not found");
    let file = |path: &str, key: &str| json!({"fileKeyRef": {"volumeName": "v", "path": path, "key": key}});
    assert_eq!(with(file("b", "K")), "file \"b\" of volume \"v\": no such file");
    assert_eq!(with(file("a.env", "L")), "file \"a.env\" of volume \"v\": no key \"L\"");
    let mut maybe = file("a.env", "L");
    maybe["fileKeyRef"]["optional"] = json!(true);
    let env = json!([{"name": "A", "valueFrom": file("a.env", "K")}, {"name": "B", "valueFrom": maybe}]);
    let env = case(json!({"env": env})).spec().process.env;
    assert!(env.contains(&"A=from file".to_string()) && !env.iter().any(|e| e.starts_with("B=")), "{env:?}");
}

#[test]
fn identities() {
    let of = |container: Value, user: &str| {
        let mut it = case(container);
        it.image.user = user.into();
        it.build().map(|c| (c.user.uid, c.user.gid, c.user.groups)).map_err(|e| e.to_string())
    };
    assert_eq!(of(json!({}), ""), Ok((0, 0, vec![0])), "the first group is among them");
    assert_eq!(of(json!({}), "web"), Ok((101, 102, vec![29, 102])));
    assert_eq!(of(json!({}), "7:audio"), Ok((7, 29, vec![29])));
    assert_eq!(of(json!({"securityContext": {"runAsUser": 101}}), "root"), Ok((101, 102, vec![29, 102])));
    assert_eq!(of(json!({"securityContext": {"runAsUser": 5, "runAsGroup": 6}}), ""), Ok((5, 6, vec![6])));
    let non_root = json!({"securityContext": {"runAsNonRoot": true}});
    let text = "container has runAsNonRoot and image will run as root (pod: \"p_n(u)\", container: a)";
    assert_eq!(of(non_root.clone(), ""), Err(text.into()));
    assert!(of(non_root.clone(), "web").unwrap_err().contains("has non-numeric user (web)"));
    assert_eq!(of(non_root, "101"), Ok((101, 102, vec![29, 102])));
}

#[test]
fn security_contexts() {
    let of = |context: Value| case(json!({"securityContext": context})).spec();
    let caps = |spec: &oci::Spec| spec.process.capabilities.clone().unwrap().bounding;
    let plain = of(json!({}));
    assert_eq!(caps(&plain).len(), 14);
    assert!(plain.linux.seccomp.is_none() && !plain.process.no_new_privileges);
    assert_eq!(
        caps(&of(json!({"capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]}}))),
        ["CAP_NET_ADMIN"]
    );
    assert!(!caps(&of(json!({"capabilities": {"drop": ["chown"]}}))).contains(&"CAP_CHOWN".to_string()));
    assert_eq!(caps(&of(json!({"capabilities": {"add": ["ALL"]}}))).len(), 41);
    let strict = of(json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
        "seccompProfile": {"type": "RuntimeDefault"}}));
    assert!(strict.process.no_new_privileges && strict.root.readonly && strict.linux.seccomp.is_some());
    let open = of(json!({"privileged": true}));
    assert!(open.linux.masked_paths.is_empty() && open.linux.seccomp.is_none());
    assert!(
        open.mounts
            .iter()
            .any(|m| m.destination == Path::new("/sys") && m.options.contains(&"rw".to_string()))
    );
    let local =
        case(json!({"securityContext": {"seccompProfile": {"type": "Localhost", "localhostProfile": "x"}}}));
    assert!(local.error().contains("cannot load seccomp profile"));
}

#[test]
fn selinux_labels_where_the_kernel_has_them() {
    let of = |labels: bool, context: Value| {
        let spec = Case { labels, ..case(json!({"securityContext": context})) }.build().unwrap().spec;
        (spec.process.selinux_label, spec.linux.mount_label)
    };
    let none = (String::new(), String::new());
    let asked = json!({"seLinuxOptions": {"type": "web_t", "level": "s0:c1,c2"}});
    assert_eq!((of(false, asked.clone()), of(true, json!({}))), (none.clone(), none.clone()));
    let both = ("system_u:system_r:web_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2");
    assert_eq!(of(true, asked), (both.0.into(), both.1.into()));
    assert_eq!(of(true, json!({"privileged": true, "seLinuxOptions": {"type": "web_t"}})), none);
}

#[test]
fn apparmor_profiles_must_be_loaded() {
    let of = |profile: Option<Value>, loaded: Option<&str>| {
        let context = profile.map_or(json!({}), |p| json!({"securityContext": {"appArmorProfile": p}}));
        let armour = loaded.map(|name| BTreeSet::from([name.to_string()]));
        Case { armour, ..case(context) }.build().map(|c| c.spec.process.apparmor_profile)
    };
    let local = || Some(json!({"type": "Localhost", "localhostProfile": "mine"}));
    let default = || Some(json!({"type": "RuntimeDefault"}));
    assert_eq!(of(None, None).unwrap(), "", "no AppArmor");
    assert_eq!(of(local(), Some("mine")).unwrap(), "mine");
    assert_eq!(of(local(), Some("other")).unwrap_err().to_string(), "apparmor profile not found mine");
    assert_eq!(of(default(), Some("docker-default")).unwrap(), "docker-default");
    assert!(of(default(), Some("mine")).is_err());
    assert_eq!(of(None, Some("docker-default")).unwrap(), "docker-default", "as containerd");
    assert_eq!(of(Some(json!({"type": "Unconfined"})), Some("docker-default")).unwrap(), "unconfined");
}

#[test]
fn resources_and_scores() {
    let of = |resources: Value| {
        let spec = case(json!({"resources": resources})).spec();
        let r = spec.linux.resources;
        (r.cpu.shares, r.cpu.quota, r.memory.limit, spec.process.oom_score_adj)
    };
    assert_eq!(of(json!({})), (Some(2), None, None, Some(1000)));
    assert_eq!(of(json!({"requests": {"cpu": "500m", "memory": "2Gi"}})), (Some(512), None, None, Some(500)));
    let both = json!({"limits": {"cpu": "1500m", "memory": "64Mi"}});
    assert_eq!(of(both), (Some(1536), Some(150_000), Some(64 << 20), Some(-997)));
    let view = pod(
        json!({"initContainers": [{"name": "i", "image": "i", "resources": {"limits": {"cpu": "3", "memory": "1Mi"}}}],
        "containers": [{"name": "a", "image": "i", "resources": {"limits": {"cpu": "1", "memory": "4Mi"}}},
                       {"name": "b", "image": "i", "resources": {"limits": {"cpu": "1", "memory": "4Mi"}}}]}),
    );
    let all = resources::pod(&view, &facts(Path::new("/x")));
    assert_eq!((all.cpu.shares, all.cpu.quota, all.memory.limit), (Some(3072), Some(300_000), Some(8 << 20)));
}

#[test]
fn files_below_etc() {
    let facts = facts(Path::new("/x"));
    let view = pod(json!({"containers": [], "hostname": "h", "subdomain": "s",
        "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["x", "y"]}],
        "dnsConfig": {"nameservers": ["9.9.9.9"], "searches": ["my"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}));
    let hosts = files::hosts(&view, &facts, &["10.0.0.9".parse().unwrap()]);
    assert!(hosts.contains("10.0.0.9\th.s.n.svc.cluster.local\th\n"), "{hosts}");
    assert!(hosts.ends_with("# Entries added by HostAliases.\n1.2.3.4\tx\ty\n"), "{hosts}");
    assert_eq!(
        files::resolv_conf(&view, &facts),
        "search n.svc.cluster.local svc.cluster.local cluster.local example.org my\n\
         nameserver 10.96.0.10\nnameserver 9.9.9.9\noptions ndots:2 edns0\n"
    );
    let host = pod(json!({"containers": [], "hostNetwork": true}));
    assert_eq!(
        files::resolv_conf(&host, &facts),
        "search example.org\nnameserver 192.0.2.53\noptions timeout:1\n"
    );
    assert_eq!(files::hostname(&host, &facts), "host-1");
    let none = pod(json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"]}}));
    assert_eq!(files::resolv_conf(&none, &facts), "nameserver 1.1.1.1\n");
    let long = "x".repeat(70);
    let view = pod_from(
        json!({"metadata": {"namespace": "n", "name": long, "uid": "u"}, "spec": {"containers": []}}),
    );
    assert_eq!(files::hostname(&view, &facts).len(), 63);
}

#[test]
fn fields_of_the_downward_api() {
    let view = pod_from(
        json!({"metadata": {"namespace": "n", "name": "p", "uid": "u", "labels": {"b": "2", "a": "x\"y"}},
        "spec": {"containers": []}}),
    );
    let facts = facts(Path::new("/x"));
    let of = |path: &str| fields::field(&view, path, &facts, &[]);
    assert_eq!(of("metadata.labels").unwrap(), "a=\"x\\\"y\"\nb=\"2\"");
    assert_eq!(of("metadata.labels['b']").unwrap(), "2");
    assert_eq!(of("status.hostIP").unwrap(), "192.0.2.1");
    assert_eq!(of("spec.nodeName").unwrap(), "node-1");
    assert!(of("spec.secret").is_err());
}

#[test]
fn volume_mounts() {
    let facts = facts(Path::new("/x"));
    let view = pod(json!({"containers": [{"name": "a", "image": "i", "volumeMounts": [
        {"name": "v", "mountPath": "/v", "readOnly": true},
        {"name": "v", "mountPath": "/etc/hosts", "subPath": "h"},
        {"name": "v", "mountPath": "/w", "subPathExpr": "d-$(A)", "mountPropagation": "HostToContainer"}]}]}));
    let volumes =
        [("v".to_string(), MountedVolume { path: "/data/v".into(), ..MountedVolume::default() })].into();
    let env = [("A".to_string(), "1".to_string())].into();
    let made = mounts::mounts(&view, &view.containers[0], 0, &volumes, (&facts, &env)).unwrap();
    let shown: Vec<String> = made
        .list
        .iter()
        .map(|m| format!("{} {} {}", m.destination.display(), m.source.display(), m.options.join(",")))
        .collect();
    assert_eq!(
        shown,
        [
            "/v /data/v rbind,rprivate,ro",
            "/etc/hosts /data/v rbind,rprivate,rw,x-gantry.subpath=h",
            "/w /data/v rbind,rslave,rw,x-gantry.subpath=d-1",
            "/etc/hostname /x/data/pods/u/etc/hostname rbind,rprivate,rw",
            "/etc/resolv.conf /x/data/pods/u/etc/resolv.conf rbind,rprivate,rw",
            "/dev/termination-log /x/data/pods/u/containers/a/termination-0 rbind,rprivate,rw",
        ]
    );
    assert_eq!(
        made.sub_paths.iter().map(|s| s.below.display().to_string()).collect::<Vec<_>>(),
        ["h", "d-1"]
    );
    for bad in ["../x", "/x", "a/../../b"] {
        assert!(mounts::checked_sub_path(bad).is_err(), "{bad}");
    }
}

use mounts::MountedVolume;

#[test]
fn sandboxes() {
    let facts = facts(Path::new("/x"));
    let view = pod(json!({"containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}],
        "securityContext": {"sysctls": [{"name": "net.ipv4.tcp_syncookies", "value": "1"}]},
        "volumes": [{"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}, {"name": "d", "emptyDir": {}}]}));
    let spec = sandbox::pod_spec(&view, &facts, None).unwrap();
    assert_eq!(spec.cgroup, "besteffort/podu");
    assert_eq!(spec.sysctls["net.ipv4.ip_unprivileged_port_start"], "0");
    assert_eq!(spec.sysctls["net.ipv4.tcp_syncookies"], "1");
    let tmpfs: Vec<(String, u64)> =
        spec.tmpfs.iter().map(|t| (t.path.display().to_string(), t.size_bytes)).collect();
    assert_eq!(tmpfs, [("/x/data/pods/u/volumes/m".to_string(), 1 << 20)]);
    let bad = pod(
        json!({"containers": [], "securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}),
    );
    let error = sandbox::pod_spec(&bad, &facts, None).unwrap_err();
    assert_eq!(error, "forbidden sysctl: \"kernel.msgmax\" not allowlisted");
}

#[test]
fn devices_add_to_a_container() {
    let mut case = case(json!({"env": [{"name": "A", "value": "own"}], "volumeMounts": []}));
    let device =
        oci::Device { kind: "c".into(), path: "/dev/x".into(), major: 9, minor: 8, ..Default::default() };
    case.edits = edits::Edits {
        strong_env: [("A".into(), "device's".into()), ("B".into(), "2".into())].into(),
        mounts: vec![oci::Mount { destination: "/m".into(), source: "/s".into(), ..oci::Mount::default() }],
        devices: vec![(device.clone(), "r".into())],
        groups: vec![44],
        annotations: [("k".into(), "v".into())].into(),
        ..edits::Edits::default()
    };
    let spec = case.spec();
    let of =
        |name: &str| spec.process.env.iter().filter(|e| e.starts_with(name)).cloned().collect::<Vec<_>>();
    assert_eq!((of("A="), of("B=")), (vec!["A=device's".to_string()], vec!["B=2".to_string()]));
    assert!(spec.linux.devices.contains(&device) && spec.process.user.additional_gids.contains(&44));
    let rule = spec.linux.resources.devices.last().unwrap();
    assert_eq!((rule.allow, rule.major, rule.minor, rule.access.as_str()), (true, Some(9), Some(8), "r"));
    assert!(spec.mounts.iter().any(|m| m.destination == Path::new("/m")));
    assert_eq!(spec.annotations["k"], "v");
}
