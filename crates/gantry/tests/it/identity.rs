//! Who may do what: tokens inside pods, users with certificates, roles, tokens in secrets, a node's own rights.

use crate::{all, busy, has, pod, ready, refusal};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use testkit::cluster::{Cluster, Kubectl, NODE_IP, run};

#[test]
fn everybody_has_his_own_rights() {
    let cluster = busy();
    all(
        &cluster,
        &[
            ("inside_a_pod", inside_a_pod),
            ("pods_without", pods_without),
            ("missing_account", missing_account),
            ("users", users),
            ("reviews", reviews),
            ("token_secrets", token_secrets),
            ("nodes", nodes),
            ("components", components),
        ],
    );
    let refused = cluster.output();
    let refused: Vec<&str> =
        refused.lines().filter(|l| l.contains("a component of this process was refused")).collect();
    // What fails because a namespace goes or an account comes late is admission's; these are gaps in roles.
    assert!(refused.is_empty(), "{refused:#?}");
}

/// A program that ends when it is told to.
const UNTIL_TERM: &str = "trap exit TERM; while :; do sleep 1; done";

/// The kubectl of this machine, mounted into a pod: its in-cluster client reads the token and checks the certificate.
fn with_kubectl(name: &str, more: &str) -> String {
    let container = "volumeMounts: [{name: k, mountPath: /bin/kubectl}]";
    let path = fs::canonicalize("/usr/bin/kubectl").unwrap_or_else(|_| "/usr/bin/kubectl".into());
    let volumes =
        format!("volumes: [{{name: k, hostPath: {{path: {}, type: File}}}}]\n{more}", path.display());
    pod(name, "sleep 1000", container, &volumes)
}

fn inside_a_pod(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["create", "namespace", "inside"])?;
    let in_it = |args: &[&str]| cluster.kubectl(&[&["-n", "inside"], args].concat());
    in_it(&["create", "serviceaccount", "reader"])?;
    in_it(&["create", "rolebinding", "reader", "--clusterrole=view", "--serviceaccount=inside:reader"])?;
    let manifest = with_kubectl("reader", "serviceAccountName: reader");
    cluster.kubectl_stdin(Kubectl::Newest, &["apply", "-n", "inside", "-f", "-"], &manifest)?;
    in_it(&["wait", "pod/reader", "--for=condition=Ready", "--timeout=280s"])?;
    let exec = |args: &[&str]| in_it(&[&["exec", "reader", "--"], args].concat());
    let folder = "/var/run/secrets/kubernetes.io/serviceaccount";
    ensure!(exec(&["cat", &format!("{folder}/namespace")])? == "inside");
    has(&exec(&["cat", &format!("{folder}/ca.crt")])?, &["BEGIN CERTIFICATE"])?;
    let kubectl = |args: &[&str]| {
        exec(
            &[
                &["env", "KUBERNETES_SERVICE_HOST=kubernetes.default.svc", "kubectl", "--cache-dir=/tmp/k"],
                args,
            ]
            .concat(),
        )
    };
    cluster.eventually("the API's name in a pod", || {
        has(&kubectl(&["auth", "whoami"])?, &["system:serviceaccount:inside:reader", "pod-name", "node-1"])
    })?;
    cluster
        .eventually("the view role is filled", || has(&kubectl(&["get", "pods"])?, &["reader", "Running"]))?;
    has(
        &refusal(kubectl(&["delete", "pod", "reader"]))?,
        &[
            "pods \"reader\" is forbidden: User \"system:serviceaccount:inside:reader\" cannot delete resource \"pods\" in API group \"\" in the namespace \"inside\"",
        ],
    )?;
    has(&refusal(kubectl(&["get", "secrets"]))?, &["cannot list resource \"secrets\""])?;
    has(&refusal(kubectl(&["get", "pods", "-n", "default"]))?, &["in the namespace \"default\""])?;
    let claims = claims(&exec(&["cat", &format!("{folder}/token")])?)?;
    ensure!(
        claims["kubernetes.io"]["pod"]["name"] == "reader"
            && claims["kubernetes.io"]["node"]["name"] == "node-1"
    );
    ensure!(
        claims["iss"] == "https://kubernetes.default.svc.cluster.local"
            && claims["kubernetes.io"]["warnafter"].is_i64()
    );
    // A token of a pod that is gone is worth nothing.
    let token = exec(&["cat", &format!("{folder}/token")])?;
    ensure!(code(cluster, &token, "/api/v1/namespaces/inside/pods")? == "200");
    in_it(&["delete", "pod", "reader", "--now"])?;
    cluster.eventually("the token is refused", || {
        ensure!(code(cluster, &token, "/api/v1/namespaces/inside/pods")? == "401");
        Ok(())
    })
}

fn claims(token: &str) -> Result<Value> {
    let body = token.split('.').nth(1).context("three parts")?.replace('-', "+").replace('_', "/");
    let padded = format!("{body}{}", "=".repeat((4 - body.len() % 4) % 4));
    let script = format!("printf %s '{padded}' | base64 -d");
    Ok(serde_json::from_str(&run(std::process::Command::new("sh").args(["-c", &script]))?)?)
}

/// The HTTP code that a bearer of the token gets.
fn code(cluster: &Cluster, token: &str, path: &str) -> Result<String> {
    cluster.sh(&format!(
        "curl -sk -o /dev/null -w '%{{http_code}}' -H 'Authorization: Bearer {token}' https://{NODE_IP}:6443{path}"
    ))
}

fn pods_without(cluster: &Cluster) -> Result<()> {
    cluster.apply(&pod("without", "sleep 1000", "", "automountServiceAccountToken: false"))?;
    ready(cluster, "without")?;
    ensure!(cluster.field(&["pod", "without"], "/spec/volumes")?.is_empty());
    cluster.kubectl(&["exec", "without", "--", "sh", "-c", "test ! -e /var/run/secrets"])?;
    Ok(())
}

fn missing_account(cluster: &Cluster) -> Result<()> {
    let manifest = pod("orphaned", "sleep 1", "", "serviceAccountName: late");
    has(
        &refusal(cluster.apply(&manifest))?,
        &["error looking up service account default/late: serviceaccount \"late\" not found"],
    )?;
    cluster.kubectl(&["create", "deployment", "late", "--image=busybox", "--", "sh", "-c", UNTIL_TERM])?;
    let patch = r#"{"spec":{"template":{"spec":{"serviceAccountName":"late"}}}}"#;
    cluster.kubectl(&["patch", "deployment", "late", "-p", patch])?;
    cluster.eventually("the event says why", || {
        let events = cluster.kubectl(&["get", "events", "--field-selector=reason=FailedCreate"])?;
        has(&events, &["error looking up service account default/late"])
    })?;
    cluster.kubectl(&["create", "serviceaccount", "late"])?;
    cluster.wait_field(&["deployment", "late"], "/status/updatedReplicas", "1")?;
    cluster.kubectl(&["delete", "deployment", "late", "--wait=false"])?;
    Ok(())
}

/// kubectl as a user whose kubeconfig `gantry kubeconfig` prints.
fn as_user<'a>(
    cluster: &'a Cluster,
    user: &str,
    group: &str,
) -> Result<impl Fn(&[&str]) -> Result<String> + use<'a>> {
    let text = cluster.gantry(&["kubeconfig", "--user", user, "--group", group])?;
    let path = cluster.folder().join(format!("{}.kubeconfig", user.replace(':', "-")));
    fs::write(&path, text)?;
    Ok(move |args: &[&str]| cluster.kubectl(&[&["--kubeconfig", &path.to_string_lossy()], args].concat()))
}

fn users(cluster: &Cluster) -> Result<()> {
    let alice = as_user(cluster, "alice", "dev")?;
    has(&alice(&["auth", "whoami"])?, &["alice", "dev", "system:authenticated"])?;
    has(&refusal(alice(&["get", "pods"]))?, &["User \"alice\" cannot list resource \"pods\""])?;
    cluster.kubectl(&["create", "namespace", "shop"])?;
    cluster.kubectl(&["create", "rolebinding", "dev", "-n", "shop", "--clusterrole=view", "--group=dev"])?;
    cluster.eventually("alice sees", || alice(&["get", "pods,deployments,services", "-n", "shop"]))?;
    has(&alice(&["auth", "can-i", "list", "pods", "-n", "shop"])?, &["yes"])?;
    has(&refusal(alice(&["auth", "can-i", "create", "pods", "-n", "shop"]))?, &["no"])?;
    has(&alice(&["auth", "can-i", "--list", "-n", "shop"])?, &["deployments.apps", "selfsubjectreviews"])?;
    let create = ["create", "configmap", "a", "-n", "shop"];
    has(&refusal(alice(&create))?, &["User \"alice\" cannot create resource \"configmaps\""])?;
    cluster.kubectl(&[
        "create",
        "rolebinding",
        "edit",
        "-n",
        "shop",
        "--clusterrole=edit",
        "--user=alice",
    ])?;
    cluster.eventually("alice edits", || alice(&create))?;
    let own = ["create", "rolebinding", "own", "-n", "shop", "--clusterrole=cluster-admin", "--user=alice"];
    has(&refusal(alice(&own))?, &["cannot create resource \"rolebindings\""])?;
    cluster.kubectl(&[
        "create",
        "rolebinding",
        "admin",
        "-n",
        "shop",
        "--clusterrole=admin",
        "--user=alice",
    ])?;
    cluster.eventually("alice may bind, but no more than she has", || {
        has(&refusal(alice(&own))?, &["is attempting to grant RBAC permissions not currently held"])
    })?;
    let other = ["create", "rolebinding", "bob", "-n", "shop", "--clusterrole=view", "--user=bob"];
    alice(&other)?;
    has(
        &refusal(alice(&["get", "pods", "--as=bob"]))?,
        &["cannot impersonate-on:user-info:list resource \"pods\""],
    )?;
    cluster.eventually("bob sees", || cluster.kubectl(&["get", "pods", "-n", "shop", "--as=bob"]))?;
    has(&refusal(cluster.kubectl(&["get", "pods", "--as=bob"]))?, &["User \"bob\" cannot list"])?;
    Ok(())
}

fn reviews(cluster: &Cluster) -> Result<()> {
    let token = cluster.kubectl(&["create", "token", "default", "--duration=10m"])?;
    let review = serde_json::json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token.trim()}});
    let ask = |body: &Value| {
        cluster.kubectl_stdin(Kubectl::Newest, &["create", "-o", "json", "-f", "-"], &body.to_string())
    };
    has(&ask(&review)?, &["system:serviceaccount:default:default", "\"authenticated\": true"])?;
    let short = cluster.kubectl(&["create", "token", "default", "--duration=1m"]);
    has(&refusal(short)?, &["may not specify a duration less than 10 minutes"])?;
    let document = cluster.kubectl(&["get", "--raw", "/.well-known/openid-configuration"])?;
    has(&document, &["https://kubernetes.default.svc.cluster.local/openid/v1/jwks", "RS256"])
}

fn token_secrets(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["create", "serviceaccount", "robot"])?;
    cluster.kubectl(&[
        "create",
        "clusterrolebinding",
        "robot",
        "--clusterrole=view",
        "--serviceaccount=default:robot",
    ])?;
    cluster.apply(
        "apiVersion: v1\nkind: Secret\nmetadata:\n  name: robot\n  annotations: {kubernetes.io/service-account.name: robot}\n\
         type: kubernetes.io/service-account-token\n",
    )?;
    let token = cluster.eventually("the secret has a token", || {
        let encoded = cluster.field(&["secret", "robot"], "/data/token")?;
        ensure!(!encoded.is_empty());
        run(std::process::Command::new("sh").args(["-c", &format!("printf %s '{encoded}' | base64 -d")]))
    })?;
    ensure!(!cluster.field(&["secret", "robot"], "/data/ca.crt")?.is_empty());
    cluster.eventually("the token works", || {
        let code = code(cluster, &token, "/api/v1/pods")?;
        ensure!(code == "200", "{code}");
        Ok(())
    })?;
    cluster.kubectl(&["delete", "secret", "robot"])?;
    cluster.eventually("the token is refused", || {
        ensure!(code(cluster, &token, "/api/v1/pods")? == "401");
        Ok(())
    })
}

fn nodes(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["create", "secret", "generic", "apart", "--from-literal=a=b"])?;
    let node = as_user(cluster, "system:node:node-1", "system:nodes")?;
    node(&["get", "node", "node-1"])?;
    node(&["get", "pods", "-A", "--field-selector=spec.nodeName=node-1"])?;
    has(
        &refusal(node(&["get", "pods", "-A"]))?,
        &["can only list/watch pods with spec.nodeName field selector"],
    )?;
    has(
        &refusal(node(&["get", "secret", "apart"]))?,
        &["no relationship found between node 'node-1' and this object"],
    )?;
    has(&refusal(node(&["run", "x", "--image=busybox"]))?, &["can only create mirror pods"])?;
    let other = as_user(cluster, "system:node:node-2", "system:nodes")?;
    has(
        &refusal(other(&["label", "node", "node-1", "a=b"]))?,
        &["node \"node-2\" is not allowed to modify node"],
    )?;
    has(&refusal(other(&["delete", "node", "node-1"]))?, &["forbidden"])
}

/// What the roles of Gantry's own parts must allow is shown by everything above and here; see the end of the test.
fn components(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["create", "namespace", "parts"])?;
    let in_it = |args: &[&str]| cluster.kubectl(&[&["-n", "parts"], args].concat());
    in_it(&["create", "deployment", "web", "--image=busybox", "--replicas=2", "--", "sh", "-c", UNTIL_TERM])?;
    in_it(&["expose", "deployment", "web", "--port=80", "--type=LoadBalancer"])?;
    in_it(&["create", "job", "once", "--image=busybox", "--", "true"])?;
    in_it(&["rollout", "status", "deployment/web", "--timeout=280s"])?;
    in_it(&["rollout", "restart", "deployment/web"])?;
    in_it(&["wait", "job/once", "--for=condition=Complete", "--timeout=280s"])?;
    in_it(&["rollout", "status", "deployment/web", "--timeout=280s"])?;
    cluster.kubectl(&["delete", "namespace", "parts", "--timeout=280s"])?;
    Ok(())
}
