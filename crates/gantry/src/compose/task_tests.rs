//! What compose says and what ECS is told.

use super::*;

fn options(fargate: bool) -> Options {
    Options {
        project: "shop".into(),
        fargate,
        region: "us-east-1".into(),
        account: "123456789012".into(),
        env_files: [("web.env".to_string(), "A=file\nB=file\n".to_string())].into(),
    }
}

fn made(text: &str, fargate: bool) -> Result<(Value, Vec<String>)> {
    definition(&super::super::file::parse(text, &BTreeMap::new())?, &options(fargate))
}

const SHOP: &str = "
services:
  web:
    image: localhost:5000/web
    command: serve --port 80 'two words'
    entrypoint: [sh, -c]
    ports: ['8080:80', '53/udp', {target: 443, published: 8443}]
    environment: {A: own, N: 5}
    env_file: web.env
    depends_on:
      db: {condition: service_healthy}
      init: {condition: service_completed_successfully}
    volumes: ['data:/data:ro', /srv/www:/www, /cache]
    deploy:
      replicas: 3
      resources: {limits: {cpus: '0.25', memory: 128M}, reservations: {memory: 64M}}
    stop_grace_period: 1m30s
    cap_drop: [CAP_NET_RAW]
    ulimits: {nofile: {soft: 10, hard: 20}, nproc: 5}
    sysctls: [net.core.somaxconn=77]
    tmpfs: /run:size=16m
    restart: on-failure
    read_only: true
    labels: [a=b]
    extra_hosts: ['other:10.0.0.9']
  db:
    image: redis
    healthcheck: {test: redis-cli ping, interval: 2s, timeout: 5s, retries: 3, start_period: 10s}
    mem_limit: 64m
  init: {image: busybox, command: 'true', cpus: 0.1}
volumes: {data: {}}
";

#[test]
fn a_file_becomes_a_task_on_instances() {
    let (task, notes) = made(SHOP, false).unwrap();
    assert_eq!((text(&task, "/family"), text(&task, "/networkMode"), notes.len()), ("shop", "bridge", 0));
    let container =
        |name: &str| list(&task, "/containerDefinitions").iter().find(|c| c["name"] == name).unwrap();
    let web = container("web");
    assert_eq!(web["command"], json!(["serve", "--port", "80", "two words"]));
    assert_eq!(web["entryPoint"], json!(["sh", "-c"]));
    assert_eq!(
        web["portMappings"],
        json!([{"containerPort": 80, "hostPort": 8080}, {"containerPort": 53, "hostPort": 0, "protocol": "udp"},
            {"containerPort": 443, "hostPort": 8443}])
    );
    let environment =
        json!([{"name": "A", "value": "own"}, {"name": "B", "value": "file"}, {"name": "N", "value": "5"}]);
    assert_eq!(web["environment"], environment);
    let waits = json!([{"containerName": "db", "condition": "HEALTHY"}, {"containerName": "init", "condition": "SUCCESS"}]);
    assert_eq!(web["dependsOn"], waits);
    assert_eq!(
        (&web["cpu"], &web["memory"], &web["memoryReservation"]),
        (&json!(256), &json!(128), &json!(64))
    );
    assert_eq!((&web["stopTimeout"], &web["readonlyRootFilesystem"]), (&json!(90), &json!(true)));
    assert_eq!(web["linuxParameters"]["capabilities"], json!({"add": [], "drop": ["NET_RAW"]}));
    assert_eq!(web["linuxParameters"]["tmpfs"], json!([{"containerPath": "/run", "size": 16}]));
    assert_eq!(web["ulimits"][1], json!({"name": "nproc", "softLimit": 5, "hardLimit": 5}));
    assert_eq!(web["restartPolicy"]["ignoredExitCodes"], json!([0]));
    assert_eq!(web["dockerLabels"], json!({"a": "b"}));
    let mounts: Vec<_> = list(web, "/mountPoints").iter().map(|m| text(m, "/sourceVolume")).collect();
    assert_eq!(mounts, ["shop_data", "host-1", "web-2"]);
    assert_eq!(web["mountPoints"][0]["readOnly"], true);
    assert_eq!(task["volumes"][0], json!({"name": "host-1", "host": {"sourcePath": "/srv/www"}}));
    let db = container("db");
    let health = json!({"command": ["CMD-SHELL", "redis-cli ping"], "interval": 5, "timeout": 5, "retries": 3, "startPeriod": 10});
    assert_eq!((&db["healthCheck"], &db["memory"]), (&health, &json!(64)));
    assert_eq!(db["logConfiguration"]["options"]["awslogs-group"], "/compose/shop");
    assert_eq!((&container("init")["essential"], &container("init")["memory"]), (&json!(false), &json!(512)));
    // The names of all are known to all.
    let hosts: Vec<_> =
        list(&task, "/containerDefinitions").iter().flat_map(|c| list(c, "/extraHosts")).collect();
    assert!(
        ["web", "db", "init", "other"].iter().all(|n| hosts.iter().any(|h| h["hostname"] == *n)),
        "{hosts:?}"
    );
    assert_eq!(replicas(&super::super::file::parse(SHOP, &BTreeMap::new()).unwrap()), 3);
}

#[test]
fn on_fargate_a_size_is_found() {
    let file = "services: {web: {image: w, ports: ['8080:80'], cpus: 0.4, mem_limit: 900m}, db: {image: d}}";
    let (task, notes) = made(file, true).unwrap();
    assert_eq!((&task["cpu"], &task["memory"]), (&json!("512"), &json!("1024")));
    assert_eq!(task["containerDefinitions"][1]["portMappings"], json!([{"containerPort": 80}]));
    assert_eq!(task["executionRoleArn"], "arn:aws:iam::123456789012:role/ecsTaskExecutionRole");
    assert_eq!(notes.len(), 2, "{notes:?}");
    for (file, words) in [
        ("services: {a: {image: x, mem_limit: 900g}}", "no Fargate size"),
        ("services: {a: {image: x, volumes: ['/srv:/srv']}}", "Fargate has no folders of the host"),
        ("services: {a: {image: x, extra_hosts: ['a:1.2.3.4']}}", "not supported on Fargate"),
    ] {
        let error = format!("{:#}", made(file, true).unwrap_err());
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn what_cannot_be_is_said() {
    for (service, words) in [
        ("ports: ['127.0.0.1:80:80']", "services.a: ports: 127.0.0.1:80:80: an address"),
        ("ports: ['80-90']", "ranges are not supported"),
        ("ports: ['http']", "is no port"),
        ("volumes: ['./here:/x']", "is not absolute"),
        ("volumes: ['data:/x']", "is not among the file's volumes"),
        ("volumes: ['/srv:relative']", "no absolute path"),
        ("depends_on: [b]", "there is no service b"),
        ("healthcheck: {test: [RUN, x]}", "CMD or CMD-SHELL"),
        ("healthcheck: {test: x, interval: soon}", "is no duration"),
        ("mem_limit: much", "is no amount of memory"),
        ("cpus: many", "is no number"),
        ("restart: sometimes", "restart: sometimes is not supported"),
        ("command: 'a \"b'", "a quote is open"),
        ("env_file: other.env", "was not read"),
    ] {
        let error = format!(
            "{:#}",
            made(&format!("services:\n  a:\n    image: x\n    {service}"), false).unwrap_err()
        );
        assert!(error.contains(words), "{service}: {error}");
    }
}

#[test]
fn amounts_times_and_words() {
    let memory = |text: &str| bytes(&json!(text)).unwrap().map(mib);
    assert_eq!(
        (memory("64m"), memory("1.5g"), memory("1GB"), memory("512k")),
        (Some(64), Some(1536), Some(1024), Some(1))
    );
    let time = |text: &str| seconds(&json!(text)).unwrap();
    assert_eq!(
        (time("90"), time("1m30s"), time("500ms"), time("1h")),
        (Some(90), Some(90), Some(1), Some(3600))
    );
    assert_eq!(split(r#"a 'b c' "d \" e" f\ g ''"#).unwrap(), ["a", "b c", "d \" e", "f g", ""]);
}
