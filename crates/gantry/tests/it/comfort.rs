//! Events by AWS's Python client, a compose file as a service, and what it all cost, also after the death of Gantry.

use crate::{busy, feed, has};
use anyhow::{Context, Result, ensure};
use std::path::Path;
use testkit::cluster::{Cluster, NODE_IP};

const COMPOSE: &str = "
services:
  web:
    image: busybox
    entrypoint: [sh, -c]
    command: [\"echo $${WHO} serves; echo ${WHOM:-world} > /www/x; exec httpd -f -h /www -p 80\"]
    ports: ['80']
    environment: {WHO: web}
    depends_on: {init: {condition: service_completed_successfully}}
    stop_grace_period: 2s
  init: {image: busybox, command: 'true'}
";

fn compose(cluster: &Cluster, words: &str) -> Result<String> {
    let folder = cluster.folder().display();
    cluster.sh(&format!(
        "cd {folder}/shop && {} compose {words} --data-dir {folder} 2>&1",
        env!("CARGO_BIN_EXE_gantry")
    ))
}

/// Items of a group in `gantry cost`.
fn items(cluster: &Cluster, by: &str, group: &str) -> Result<(u64, f64)> {
    let said = cluster.gantry(&["cost", "--by", by, "--format", "json"])?;
    let said: serde_json::Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    let rows = said["groups"].as_array().context("groups")?;
    let row = rows.iter().find(|r| r["group"] == group).with_context(|| format!("no {group}: {said}"))?;
    Ok((row["items"].as_u64().unwrap_or(0), row["cost"].as_f64().unwrap_or(0.0)))
}

#[test]
fn events_compose_and_cost() -> Result<()> {
    let mut cluster = busy();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // `./dev test` makes this environment.
    let python = root.join("../../target/tools/boto3/bin/python");
    ensure!(python.exists(), "{} is missing: run ./dev test", python.display());
    let output =
        feed(cluster.inside("timeout").arg("300").arg(python).arg(root.join("tests/it/comfort.py")), b"")?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.contains("comfort is content"), "{said}\n{}", cluster.output());

    let folder = cluster.folder().join("shop");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("compose.yaml"), COMPOSE)?;
    std::fs::write(folder.join(".env"), "WHOM=everybody\n")?;
    has(
        &compose(&cluster, "configure --cluster shop")?,
        &["\"family\": \"shop\"", "\"networkMode\": \"bridge\""],
    )?;
    let words = ["cluster shop created", "task definition shop:1 registered", "service shop: 1 running"];
    has(&compose(&cluster, "up")?, &words)?;
    let again = compose(&cluster, "up")?;
    ensure!(!again.contains("registered"), "an unchanged file makes no revision: {again}");
    has(&compose(&cluster, "scale 2")?, &["service shop: 2 running"])?;
    let shown = compose(&cluster, "ps")?;
    let ports: Vec<&str> =
        shown.lines().filter_map(|l| l.split("->80/tcp").next()?.split(' ').next_back()).collect();
    let ports: Vec<u16> = ports.iter().filter_map(|p| p.parse().ok()).collect();
    ensure!(ports.len() == 2 && ports[0] != ports[1], "{shown}");
    for port in ports {
        let page = format!("curl -sf --max-time 5 http://{NODE_IP}:{port}/x");
        has(&cluster.eventually("the page", || cluster.sh(&page))?, &["everybody"])?;
    }
    cluster.eventually("logs", || has(&compose(&cluster, "logs")?, &["web-", " | web serves"]))?;

    // A task of Fargate has its price from the first second on: a minute at least, more where the machine is slow.
    let minute = (0.25 * 0.04048 + 0.5 * 0.004445) / 60.0;
    cluster.eventually("what it cost", || {
        let (count, cost) = items(&cluster, "cluster", "comfort")?;
        ensure!(count == 1 && cost > minute * 0.999 && cost < minute * 30.0, "{count} {cost}");
        ensure!(items(&cluster, "service", "shop/shop")?.0 == 2);
        Ok(())
    })?;
    cluster.kill9()?;
    ensure!(items(&cluster, "service", "shop/shop")?.0 == 2, "records need no server");
    cluster.up()?;
    has(&compose(&cluster, "stop")?, &["service shop: 0 running"])?;
    has(&compose(&cluster, "delete")?, &["service shop deleted"])?;
    // Each counts once, whoever saw it.
    ensure!(items(&cluster, "service", "shop/shop")?.0 == 2);
    ensure!(items(&cluster, "cluster", "comfort")?.0 == 1);
    Ok(())
}
