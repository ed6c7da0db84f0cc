//! The registry from elsewhere: by TLS, for those it knows; and a node that joined pulls what was pushed to the first.

use crate::two_nodes::{Machine, joining_words, with_machine};
use crate::{has, pod, refusal};
use anyhow::{Result, ensure};
use testkit::cluster::Cluster;
use testkit::image::ImageBuilder;

const ROLE: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: pusher}
rules:
- {apiGroups: [registry.gantry.dev], resources: [repositories], resourceNames: [team/app], verbs: [get, create]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: pusher}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: pusher}
subjects: [{kind: ServiceAccount, name: default, namespace: default}]
"#;

#[test]
fn what_is_pushed_to_one_node_runs_on_another() {
    let users = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(users.path(), "ann:secret\nrobot:pw:pull\n").unwrap();
    let flags = ["--registry-users", users.path().to_str().unwrap()];
    let cluster = Cluster::start(env!("CARGO_BIN_EXE_gantry"), &flags).unwrap();
    with_machine(cluster, scenario);
}

fn scenario(cluster: &mut Cluster, machine: &mut Machine) -> Result<()> {
    let image = ImageBuilder::busybox("app:1").layer().file("word", b"pushed\n", 0o644);
    let archive = image.write_docker_archive(&cluster.folder().join("app.tar"));
    let from = format!("docker-archive:{}", archive.display());
    // What clients trust: the cluster's authority, as Docker's tools read it.
    let trusted = cluster.folder().join("certs");
    std::fs::create_dir(&trusted)?;
    std::fs::copy(cluster.folder().join("pki/ca.crt"), trusted.join("ca.crt"))?;
    let trusted = trusted.display();
    let push = |who: &str, to: &str| {
        let options = format!("--insecure-policy copy --dest-cert-dir {trusted} {who}");
        machine.sh(&format!("skopeo {options} {from} docker://10.99.0.1:5000/{to}"))
    };
    push("--dest-creds ann:secret", "team/app:1")?;
    push("--dest-creds ann:secret", "library/nginx:1.7.9")?;
    refused(cluster, &push)?;
    machine.join(cluster, &joining_words(cluster)?)?;
    for (name, image, policy) in [
        ("own", "localhost:5000/team/app:1", "IfNotPresent"),
        ("short", "nginx:1.7.9", "IfNotPresent"),
        ("address", "10.99.0.1:5000/team/app:1", "Always"),
    ] {
        let text = pod(name, "cat /word; exec sleep 1000", "", "nodeName: node-2");
        let text = text.replace("image: busybox", &format!("image: {image}"));
        cluster.apply(&text.replace("IfNotPresent", policy))?;
        cluster.eventually(image, || has(&cluster.kubectl(&["logs", name])?, &["pushed"]))?;
    }
    let text = pod("absent", "true", "", "nodeName: node-2");
    cluster.apply(&text.replace("image: busybox", "image: localhost:5000/absent:1"))?;
    cluster.eventually("an image that nobody pushed", || {
        let told = cluster.get(&["pod", "absent"])?["status"]["containerStatuses"][0]["state"].to_string();
        has(&told, &["failed to pull and unpack image", "localhost:5000/absent:1: not found"])
    })
}

/// Strangers, wrong passwords and those with fewer rights.
fn refused(cluster: &Cluster, push: &dyn Fn(&str, &str) -> Result<String>) -> Result<()> {
    let ca = cluster.folder().join("pki/ca.crt");
    let curl = |more: &str, path: &str| {
        let options = format!("-sS --cacert {} -w ' %{{http_code}}'", ca.display());
        cluster.sh(&format!("curl {options} {more} https://10.99.0.1:5000/v2/{path}"))
    };
    has(
        &curl("-i", "")?,
        &["401", "www-authenticate: Basic", "UNAUTHORIZED", "docker-distribution-api-version"],
    )?;
    has(&curl("-u ann:wrong", "")?, &["UNAUTHORIZED", " 401"])?;
    has(&curl("-u robot:pw", "team/app/tags/list")?, &["\"1\"", " 200"])?;
    has(&curl("-u robot:pw", "_catalog")?, &["DENIED", " 403"])?;
    has(&curl("-u ann:secret", "_catalog")?, &["library/nginx", " 200"])?;
    has(&curl("-u robot:pw -X POST", "team/app/blobs/uploads/")?, &["DENIED", " 403"])?;
    has(&refusal(push("--dest-creds robot:pw", "team/app:2"))?, &["denied"])?;
    // The name under which AWS's tools would come.
    let ecr = "000000000000.dkr.ecr.us-east-1.amazonaws.com";
    let said = cluster.sh(&format!(
        "curl -sS --cacert {} --resolve {ecr}:5000:10.99.0.1 -u ann:secret https://{ecr}:5000/v2/",
        ca.display()
    ))?;
    ensure!(said.trim() == "{}", "{said}");
    // A service account has what a role gives it, by bearer token or as a password.
    let token = cluster.kubectl(&["create", "token", "default"])?;
    let bearer = format!("-H 'Authorization: Bearer {}'", token.trim());
    has(&curl(&bearer, "team/app/tags/list")?, &["DENIED", " 403"])?;
    cluster.apply(ROLE)?;
    cluster
        .eventually("the role counts", || has(&curl(&bearer, "team/app/tags/list")?, &["\"1\"", " 200"]))?;
    has(&curl(&bearer, "library/nginx/tags/list")?, &["DENIED", " 403"])?;
    has(&curl("-H 'Authorization: Bearer a.b.c'", "team/app/tags/list")?, &["UNAUTHORIZED", " 401"])?;
    push(&format!("--dest-creds token:{}", token.trim()), "team/app:3").map(drop)
}
