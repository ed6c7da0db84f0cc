//! The manifests under `examples/`, as the README and their comments use them.

use crate::{cluster, has};
use anyhow::{Result, ensure};
use std::path::Path;
use testkit::cluster::{Cluster, NODE_IP};
use testkit::debian;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

fn example(name: &str) -> String {
    format!("{ROOT}/examples/{name}.yaml")
}

fn with_image(name: &str) -> Result<Cluster> {
    let folder = Path::new(ROOT).join("target/images");
    std::fs::create_dir_all(&folder)?;
    let recipe = debian::RECIPES.iter().find(|r| r.name == name).expect("a recipe of that name");
    let archive = debian::archive(recipe, &folder)?;
    let cluster = cluster();
    cluster.load_image(&archive)?;
    Ok(cluster)
}

#[test]
fn nginx_behind_a_load_balancer() -> Result<()> {
    let cluster = with_image("nginx")?;
    cluster.kubectl(&["apply", "-f", &example("nginx")])?;
    cluster.kubectl(&["rollout", "status", "deployment/nginx", "--timeout=280s"])?;
    cluster.wait_field(&["service", "nginx"], "/status/loadBalancer/ingress/0/ip", NODE_IP)?;
    let page =
        cluster.eventually("the page", || cluster.sh(&format!("curl -sf --max-time 5 http://{NODE_IP}/")))?;
    ensure!(page.contains("Welcome to nginx!"), "{page}");
    // (The static busybox's wget crashes now and then.)
    let wget = ["exec", "deploy/nginx", "--", "busybox", "wget", "-q", "-O", "-", "http://nginx"];
    cluster.eventually("the page by name", || has(&cluster.kubectl(&wget)?, &["Welcome to nginx!"]))
}

#[test]
fn guestbook_restricted_and_microservices() -> Result<()> {
    let cluster = with_image("redis")?;
    for name in ["guestbook", "restricted", "microservices"] {
        cluster.kubectl(&["apply", "-f", &example(name)])?;
    }
    for (namespace, workload) in [
        ("default", "deployment/frontend"),
        ("restricted", "deployment/redis"),
        ("shop", "deployment/catalogue"),
        ("shop", "deployment/stock"),
        ("shop", "deployment/shop"),
    ] {
        cluster.kubectl(&["-n", namespace, "rollout", "status", workload, "--timeout=280s"])?;
    }
    let entry = format!("curl -sf --max-time 5 'http://{NODE_IP}:8080/cgi-bin/guestbook?hello'");
    let entries = cluster.eventually("the guestbook", || cluster.sh(&entry))?;
    ensure!(entries.contains("hello"), "{entries}");
    let shop = [
        "-n",
        "shop",
        "exec",
        "deploy/shop",
        "--",
        "busybox",
        "wget",
        "-q",
        "-O",
        "-",
        "http://shop:8080/cgi-bin/shop",
    ];
    let words = [r#"["apple","pear"]"#, r#""apple":3"#];
    cluster.eventually("the shop", || has(&cluster.kubectl(&shop)?, &words))?;
    let status = ["-n", "restricted", "exec", "deploy/redis", "--", "busybox", "cat", "/proc/self/status"];
    let status = cluster.kubectl(&status)?;
    ensure!(status.contains("CapEff:\t0000000000000000") && status.contains("NoNewPrivs:\t1"), "{status}");
    Ok(())
}

#[test]
fn an_auditor_sees_and_cannot_change() -> Result<()> {
    let cluster = cluster();
    cluster.kubectl(&["apply", "-f", &example("microservices")])?;
    let file = cluster.folder().join("auditor.kubeconfig");
    std::fs::write(&file, cluster.gantry(&["kubeconfig", "--user", "auditor"])?)?;
    let as_auditor = |args: &[&str]| {
        let file = file.display().to_string();
        cluster.kubectl(&[&["--kubeconfig", &file, "-n", "shop"], args].concat())
    };
    cluster.eventually("the role counts", || has(&as_auditor(&["get", "deployments"])?, &["catalogue"]))?;
    for args in
        [&["delete", "deployment", "stock"][..], &["get", "secrets"], &["-n", "default", "get", "pods"]]
    {
        let error = format!("{:#}", as_auditor(args).expect_err("the auditor may not"));
        ensure!(error.contains("forbidden"), "{args:?}: {error}");
    }
    Ok(())
}
