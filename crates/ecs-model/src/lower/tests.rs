//! What comes out for what goes in.

use super::*;

const UID: &str = "11111111-2222-3333-4444-555555555555";

fn settings() -> Settings {
    Settings {
        volumes_root: "/data/volumes".into(),
        own_registries: vec!["localhost:5000".into()],
        ..Settings::default()
    }
}

fn run(definition: Value, mut task: Value) -> Result<Lowered, LowerError> {
    task["taskArn"] = json!("arn:aws:ecs:eu-west-1:123456789012:task/prod/0123456789abcdef0123456789abcdef");
    let subject =
        Subject { namespace: "ecs-prod", id: "0123456789abcdef0123456789abcdef", uid: UID, spec: &task };
    let used = [("tcp".to_string(), DYNAMIC_FIRST)].into();
    lower(&Input {
        task: subject,
        definition: &definition,
        node: None,
        used_ports: &used,
        settings: &settings(),
    })
}

fn note(lowered: &Lowered) -> TaskNote {
    TaskNote::parse(lowered.pod["metadata"]["annotations"][annotation::KEY].as_str().unwrap()).unwrap()
}

fn env(container: &Value) -> BTreeMap<String, Value> {
    items(&container["env"]).iter().map(|e| (text(&e["name"]).to_string(), e.clone())).collect()
}

#[test]
fn a_fargate_task_is_limited_as_a_whole() {
    let definition = json!({"family": "web", "revision": 3, "networkMode": "awsvpc", "taskRoleArn": "arn:aws:iam::1:role/r",
        "containerDefinitions": [
            {"name": "nginx", "image": "nginx", "cpu": 100, "memory": 300, "memoryReservation": 200, "essential": true,
             "portMappings": [{"containerPort": 80, "hostPort": 80, "protocol": "tcp"}]},
            {"name": "Side_Car", "image": "localhost:5000/side:1", "cpu": 0, "essential": false}]});
    let task = json!({"launchType": "FARGATE", "cpu": "256", "memory": "512", "group": "service:web"});
    let lowered = run(definition, task).unwrap();
    let (meta, spec) = (&lowered.pod["metadata"], &lowered.pod["spec"]);
    assert_eq!(spec["resources"]["limits"], json!({"cpu": "250m", "memory": "512Mi"}));
    assert_eq!(spec["restartPolicy"], "Never");
    assert_eq!(spec["automountServiceAccountToken"], false);
    assert_eq!(spec["terminationGracePeriodSeconds"], 30);
    let nginx = &spec["containers"][0];
    assert_eq!(
        nginx["resources"],
        json!({"requests": {"cpu": "97m", "memory": "200Mi"}, "limits": {"memory": "300Mi"}})
    );
    assert_eq!(nginx["ports"], json!([{"containerPort": 80, "protocol": "TCP"}]));
    assert!(nginx["imagePullPolicy"].is_null());
    assert_eq!(spec["containers"][1]["imagePullPolicy"], "Always");
    let side = spec["containers"][1]["name"].as_str().unwrap();
    assert!(side.starts_with("side-car-"), "{side}");
    assert_eq!(note(&lowered).containers[side].ecs_name(side), "Side_Car");
    assert!(!note(&lowered).containers[side].essential);
    assert_eq!(meta["labels"][SERVICE_LABEL], "web");
    assert_eq!(meta["ownerReferences"][0]["uid"], UID);
    let vars = env(nginx);
    assert_eq!(vars["AWS_REGION"]["value"], "eu-west-1");
    assert_eq!(vars["AWS_EXECUTION_ENV"]["value"], "AWS_ECS_FARGATE");
    let path = vars["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"]["value"].as_str().unwrap();
    assert_eq!(path.strip_prefix("/v2/credentials/"), Some(note(&lowered).task.credentials_id.as_str()));
    let uri = vars["ECS_CONTAINER_METADATA_URI_V4"]["value"].as_str().unwrap();
    assert_eq!(uri, format!("http://169.254.170.2/v4/{}", note(&lowered).containers["nginx"].metadata_id));
    assert_ne!(note(&lowered).containers["nginx"].metadata_id, note(&lowered).containers[side].metadata_id);
}

#[test]
fn bridge_ports_are_the_ones_asked_for_or_free_ones() {
    let definition = json!({"family": "f", "revision": 1, "containerDefinitions": [{"name": "a", "image": "i",
        "portMappings": [{"containerPort": 80}, {"containerPort": 81, "hostPort": 32769}, {"containerPort": 82, "hostPort": 0},
            {"containerPort": 53, "protocol": "udp"}]}]});
    let lowered = run(definition, json!({"launchType": "EC2"})).unwrap();
    let ports: Vec<u64> = items(&lowered.pod["spec"]["containers"][0]["ports"])
        .iter()
        .map(|p| p["hostPort"].as_u64().unwrap())
        .collect();
    assert_eq!(ports, [32770, 32769, 32771, 32768]);
    assert_eq!(used_ports([&lowered.pod].into_iter()).len(), 4);
    let all: BTreeSet<(String, u16)> = (DYNAMIC_FIRST..=60_999).map(|p| ("tcp".to_string(), p)).collect();
    let definition = json!({"containerDefinitions": [{"portMappings": [{"containerPort": 80}]}]});
    assert_eq!(ports::assign(&definition, NetworkMode::Bridge, &all), Err(LowerError::Ports));
}

#[test]
fn overrides_win_and_dollars_stay() {
    let definition = json!({"family": "f", "revision": 1, "containerDefinitions": [{"name": "a", "image": "i",
        "entryPoint": ["sh", "-c"], "command": ["echo old"], "environment": [{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)"}],
        "cpu": 10, "secrets": [{"name": "S", "valueFrom": "arn:aws:ssm:eu-west-1:1:parameter/p"}]}]});
    let overrides = json!({"containerOverrides": [{"name": "a", "command": ["echo $(date) $$ $HOME"], "cpu": 512,
        "environment": [{"name": "A", "value": "2"}]}]});
    let lowered = run(definition, json!({"launchType": "EC2", "overrides": overrides})).unwrap();
    let container = &lowered.pod["spec"]["containers"][0];
    assert_eq!(container["command"], json!(["sh", "-c"]));
    assert_eq!(container["args"], json!(["echo $$(date) $$$$ $$HOME"]));
    assert_eq!(container["resources"]["requests"]["cpu"], "500m");
    let vars = env(container);
    assert_eq!((&vars["A"]["value"], &vars["B"]["value"]), (&json!("2"), &json!("$$(A)")));
    assert_eq!(vars["S"]["valueFrom"]["secretKeyRef"]["key"], "0.0");
    assert_eq!(lowered.secrets[0].from, "arn:aws:ssm:eu-west-1:1:parameter/p");
}

#[test]
fn volumes_are_shared_kept_and_copied() {
    let definition = json!({"family": "f", "revision": 1,
        "volumes": [{"name": "tmp", "host": {}}, {"name": "logs", "host": {"sourcePath": "/var/log/x"}},
            {"name": "data", "dockerVolumeConfiguration": {"scope": "shared", "driver": "local"}}],
        "containerDefinitions": [
            {"name": "a", "image": "i", "mountPoints": [{"sourceVolume": "tmp", "containerPath": "/t"},
                {"sourceVolume": "data", "containerPath": "/d", "readOnly": true}],
             "linuxParameters": {"sharedMemorySize": 64, "tmpfs": [{"containerPath": "/run", "size": 8, "mountOptions": ["ro"]}]}},
            {"name": "b", "image": "i", "volumesFrom": [{"sourceContainer": "a", "readOnly": true}],
             "mountPoints": [{"sourceVolume": "logs", "containerPath": "/t"}]}]});
    let spec = run(definition.clone(), json!({"launchType": "EC2"})).unwrap().pod["spec"].clone();
    assert_eq!(spec["volumes"][1]["hostPath"]["path"], "/var/log/x");
    assert_eq!(spec["volumes"][2]["hostPath"]["path"], "/data/volumes/data");
    let mounts = |c: usize| -> Vec<(String, String, bool)> {
        let list = items(&spec["containers"][c]["volumeMounts"]).iter();
        list.map(|m| (text(&m["name"]).into(), text(&m["mountPath"]).into(), m["readOnly"] == true)).collect()
    };
    let m = |name: &str, path: &str, ro| (name.to_string(), path.to_string(), ro);
    assert_eq!(mounts(0), [m("v0", "/t", false), m("v2", "/d", true)]);
    assert_eq!(mounts(1), [m("v1", "/t", false), m("v2", "/d", true)]);
    let mut bad = definition;
    bad["volumes"] = json!([{"name": "efs", "efsVolumeConfiguration": {"fileSystemId": "fs-1"}}]);
    assert!(matches!(run(bad.clone(), json!({})), Err(LowerError::Unsupported(_))));
    bad["volumes"] = json!([{"name": "../etc", "dockerVolumeConfiguration": {"scope": "shared"}}]);
    assert!(matches!(run(bad, json!({})), Err(LowerError::Invalid(_))));
}

#[test]
fn the_note_holds_what_a_pod_cannot_say() {
    let definition = json!({"family": "f", "revision": 1, "networkMode": "host", "pidMode": "task", "containerDefinitions": [
        {"name": "db", "image": "i", "stopTimeout": 5, "healthCheck": {"command": ["CMD-SHELL", "exit 0"], "startPeriod": 9, "retries": 2}},
        {"name": "web", "image": "i", "stopTimeout": 10, "user": "www:www", "dependsOn": [{"containerName": "db", "condition": "HEALTHY"}],
         "ulimits": [{"name": "nofile", "softLimit": 10, "hardLimit": 20}], "restartPolicy": {"enabled": true, "ignoredExitCodes": [3]},
         "logConfiguration": {"logDriver": "awslogs", "options": {"awslogs-group": "g"}}, "portMappings": [{"containerPort": 80}],
         "dnsServers": ["10.0.0.2"], "systemControls": [{"namespace": "net.core.somaxconn", "value": "100"}]}]});
    let lowered = run(definition, json!({"launchType": "EC2"})).unwrap();
    let spec = &lowered.pod["spec"];
    let web = note(&lowered).containers["web"].clone();
    assert_eq!(web.depends_on, [Dependency { container: "db".into(), condition: Condition::Healthy }]);
    assert_eq!(web.ulimits, [Ulimit { name: "nofile".into(), soft: 10, hard: 20 }]);
    assert_eq!(web.restart, Some(Restart { ignored_exit_codes: vec![3], attempt_period: 300 }));
    assert_eq!((web.user.as_str(), note(&lowered).containers["db"].start_period), ("www:www", 9));
    assert_eq!(web.log.unwrap().options["awslogs-group"], "g");
    // web stops first, then db.
    assert_eq!(spec["terminationGracePeriodSeconds"], 15);
    assert_eq!(
        spec["containers"][0]["readinessProbe"]["exec"]["command"],
        json!(["/bin/sh", "-c", "exit 0"])
    );
    assert_eq!(spec["containers"][1]["ports"][0]["hostPort"], 80);
    assert_eq!((&spec["hostNetwork"], &spec["shareProcessNamespace"]), (&json!(true), &json!(true)));
    assert_eq!(
        (&spec["dnsPolicy"], &spec["dnsConfig"]["nameservers"][0]),
        (&json!("None"), &json!("10.0.0.2"))
    );
    assert_eq!(spec["securityContext"]["sysctls"][0]["name"], "net.core.somaxconn");
}

#[test]
fn links_lead_to_the_task_itself_and_an_init_process_to_a_shared_namespace() {
    let definition = json!({"family": "f", "revision": 1, "containerDefinitions": [
        {"name": "db", "image": "i", "linuxParameters": {"initProcessEnabled": true}},
        {"name": "web", "image": "i", "links": ["db:database"], "extraHosts": [{"hostname": "x", "ipAddress": "10.0.0.1"}]}]});
    let spec = run(definition, json!({"launchType": "EC2"})).unwrap().pod["spec"].clone();
    let wanted =
        json!([{"ip": "10.0.0.1", "hostnames": ["x"]}, {"ip": "127.0.0.1", "hostnames": ["db", "database"]}]);
    assert_eq!(spec["hostAliases"], wanted);
    assert_eq!(spec["shareProcessNamespace"], true);
}

#[test]
fn what_linux_is_asked_for_goes_along() {
    let definition = json!({"family": "f", "revision": 1, "containerDefinitions": [{"name": "a", "image": "i",
        "environmentFiles": [{"type": "s3", "value": "arn:aws:s3:::b/1.env"}],
        "dockerSecurityOptions": ["no-new-privileges", "seccomp:unconfined", "label:disable"],
        "linuxParameters": {"sharedMemorySize": 64, "maxSwap": 0, "swappiness": 60,
            "tmpfs": [{"containerPath": "/run", "size": 8, "mountOptions": ["exec", "mode=700"]}],
            "devices": [{"hostPath": "/dev/fuse"}, {"hostPath": "/dev/x", "containerPath": "/dev/y", "permissions": ["read"]}]}}]});
    let overrides = json!({"containerOverrides": [{"name": "a", "environmentFiles": [
        {"type": "s3", "value": "arn:aws:s3:::b/2.env"}, {"type": "s3", "value": "arn:aws:s3:::b/3.env"}]}]});
    let lowered = run(definition, json!({"overrides": overrides})).unwrap();
    let own = note(&lowered).containers["a"].clone();
    let device = |host: &str, path: &str, access: &str| Device {
        host: host.into(),
        path: path.into(),
        access: access.into(),
    };
    assert_eq!(own.devices, [device("/dev/fuse", "/dev/fuse", "rwm"), device("/dev/x", "/dev/y", "r")]);
    let tmpfs = |path: &str, options: &str| Tmpfs {
        path: path.into(),
        options: options.split(',').map(str::to_string).collect(),
    };
    let shm = tmpfs("/dev/shm", "nosuid,nodev,noexec,mode=1777,size=64m");
    assert_eq!(own.tmpfs, [shm, tmpfs("/run", "nosuid,nodev,noexec,exec,mode=700,size=8m")]);
    assert_eq!((own.max_swap, own.swappiness), (Some(0), Some(60)));
    let container = &lowered.pod["spec"]["containers"][0];
    assert_eq!(container["securityContext"], json!({"allowPrivilegeEscalation": false}));
    // The run's files stand for the definition's.
    let (secret, files) = &lowered.env_files[0];
    assert_eq!(container["envFrom"], json!([{"secretRef": {"name": secret}}]));
    assert_eq!(files, &["arn:aws:s3:::b/2.env", "arn:aws:s3:::b/3.env"]);
}

#[test]
fn a_router_gets_the_configuration_that_the_ecs_agent_would_write() {
    let app = |options: Value| {
        json!({"name": "app", "image": "i", "logConfiguration": {
        "logDriver": "awsfirelens", "options": options, "secretOptions": [{"name": "apikey", "valueFrom": "key"}]}})
    };
    let router = |kind: &str, options: Value| {
        json!({"name": "log", "image": "r", "firelensConfiguration": {
        "type": kind, "options": options}})
    };
    let made = |kind: &str, mode: &str, more: Value, options: Value| {
        let definition = json!({"family": "f", "revision": 1, "networkMode": mode,
            "containerDefinitions": [router(kind, more), app(options)]});
        run(definition, json!({"clusterArn": "arn:aws:ecs:eu-west-1:1:cluster/prod"}))
    };
    let options = json!({"Name": "http", "Host": "10.0.0.1", "exclude-pattern": "^GET /ping", "log-driver-buffer-limit": "9"});
    let lowered = made(
        "fluentbit",
        "awsvpc",
        json!({"config-file-type": "file", "config-file-value": "/x.conf"}),
        options,
    )
    .unwrap();
    let text = |lowered: &Lowered| {
        lowered.pod["metadata"]["annotations"]["ecs.gantry.dev/router-0"].as_str().unwrap().to_string()
    };
    let wanted = "[INPUT]\n    Name forward\n    unix_path /var/run/fluent.sock\n\n\
        [INPUT]\n    Name forward\n    Listen 127.0.0.1\n    Port 24224\n\n\
        [FILTER]\n    Name record_modifier\n    Match *\n    Record ecs_cluster prod\n    Record ecs_task_arn \
        arn:aws:ecs:eu-west-1:123456789012:task/prod/0123456789abcdef0123456789abcdef\n    Record ecs_task_definition f:1\n\n\
        @INCLUDE /x.conf\n\n\
        [FILTER]\n    Name grep\n    Match app-firelens*\n    Exclude log ^GET /ping\n\n\
        [OUTPUT]\n    Name http\n    Match app-firelens*\n    Host 10.0.0.1\n    apikey ${apikey_1}\n\n";
    assert_eq!(text(&lowered), wanted);
    assert_eq!((lowered.secrets[0].key.as_str(), lowered.secrets[0].from.as_str()), ("0.router.0", "key"));
    let container = &lowered.pod["spec"]["containers"][0];
    assert_eq!(env(container)["apikey_1"]["valueFrom"]["secretKeyRef"]["key"], "0.router.0");
    let paths: Vec<&str> =
        items(&container["volumeMounts"]).iter().map(|m| super::text(&m["mountPath"])).collect();
    assert_eq!(paths, ["/fluent-bit/etc/fluent-bit.conf", "/var/run"]);
    let s3 = json!({"config-file-type": "s3", "config-file-value": "arn:aws:s3:::b/f.conf", "enable-ecs-log-metadata": "false"});
    let lowered = made("fluentd", "bridge", s3, json!({"@type": "stdout", "include-pattern": "x"})).unwrap();
    let wanted = "<source>\n    @type unix\n    path /var/run/fluent.sock\n</source>\n\n\
        <source>\n    @type forward\n    bind 0.0.0.0\n    port 24224\n</source>\n\n\
        @include /fluentd/etc/external.conf\n\n\
        <filter app-firelens**>\n    @type grep\n    <regexp> \n    key log\n    pattern /x/\n    </regexp> \n</filter>\n\n\
        <match app-firelens**>\n    @type stdout\n    apikey \"#{ENV['apikey_1']}\"\n</match>\n\n";
    assert_eq!(text(&lowered), wanted);
    assert_eq!(lowered.secrets[1].from, "arn:aws:s3:::b/f.conf");
    let missing = made("fluentbit", "host", json!({}), json!({"Host": "h"}));
    assert!(missing.unwrap_err().to_string().contains("missing output key Name"));
}

#[test]
fn gpus_are_an_extended_resource() {
    let gpus = |n: &str| json!([{"type": "GPU", "value": n}]);
    let definition = json!({"family": "f", "revision": 1,
        "containerDefinitions": [{"name": "a", "image": "i", "resourceRequirements": gpus("2")}]});
    let limit = |task: Value| {
        let lowered = run(definition.clone(), task).unwrap();
        lowered.pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"].clone()
    };
    assert_eq!(limit(json!({})), "2");
    let own = json!({"containerOverrides": [{"name": "a", "resourceRequirements": gpus("1")}]});
    assert_eq!(limit(json!({"overrides": own})), "1");
}

#[test]
fn what_cannot_be_done_is_refused() {
    for part in [
        json!({"dockerSecurityOptions": ["apparmor:mine"]}),
        json!({"dockerSecurityOptions": ["credentialspec:file"]}),
        json!({"firelensConfiguration": {"type": "fluentbit", "options": {"config-file-type": "ftp"}}}),
        json!({"resourceRequirements": [{"type": "InferenceAccelerator", "value": "a"}]}),
        json!({"mountPoints": [{"sourceVolume": "none", "containerPath": "/x"}]}),
    ] {
        let mut container = part;
        container["name"] = json!("a");
        container["image"] = json!("i");
        let definition = json!({"family": "f", "revision": 1, "containerDefinitions": [container]});
        assert!(run(definition.clone(), json!({})).is_err(), "{definition}");
    }
}

use crate::annotation::{Condition, Dependency, Device, Restart, Tmpfs, Ulimit};
