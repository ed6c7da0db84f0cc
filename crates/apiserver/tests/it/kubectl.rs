//! TLS on a loopback port, and kubectl against it where there is one.

use crate::harness::*;
use futures_util::StreamExt;
use k8s_schema::gvr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::sync::watch;

/// A server on TLS with a kubeconfig for its admin; stopped when it goes.
struct Tls {
    folder: tempfile::TempDir,
    port: u16,
    client: Arc<rustls::ClientConfig>,
    stop: watch::Sender<bool>,
    served: tokio::task::JoinHandle<()>,
}

async fn tls(server: &Server) -> Tls {
    let folder = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let ca = auth::Ca::load_or_create(folder.path(), now).unwrap();
    let issued = ca
        .issue_server("kube-apiserver", &["localhost".into()], &["127.0.0.1".parse().unwrap()], now)
        .unwrap();
    let config = auth::server_config(&issued, ca.cert_pem(), &["h2", "http/1.1"]).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (stop, stopped) = watch::channel(false);
    let served = tokio::spawn(server.api.clone().serve(listener, config, stopped));
    let admin = ca.issue_client("admin", Some("system:masters"), now).unwrap();
    let client = auth::client_config(&admin, ca.cert_pem()).unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("admin.crt", &admin.cert_pem);
    write("admin.key", &admin.key_pem);
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters:\n- name: c\n  cluster: {{server: 'https://127.0.0.1:{port}', certificate-authority: ca.crt}}\ncontexts:\n- name: c\n  context: {{cluster: c, user: u}}\nusers:\n- name: u\n  user: {{client-certificate: admin.crt, client-key: admin.key}}\n"
    );
    write("kubeconfig", &kubeconfig);
    Tls { folder, port, client, stop, served }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_identities_over_h1_and_h2() {
    let s = server().await;
    let tls = tls(&s).await;
    for protocol in ["h2", "http/1.1"] {
        let mut config = (*tls.client).clone();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", tls.port)).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = connector.connect("127.0.0.1".try_into().unwrap(), stream).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(protocol.as_bytes()));
        let io = hyper_util::rt::TokioIo::new(stream);
        let request = http::Request::builder()
            .method("POST")
            .uri(format!("https://127.0.0.1:{}/apis/authentication.k8s.io/v1/selfsubjectreviews", tls.port))
            .header("host", "127.0.0.1")
            .header("content-type", "application/json")
            .body(http_body_util::Full::new(bytes::Bytes::from_static(b"{}")))
            .unwrap();
        let response = if protocol == "h2" {
            let executor = hyper_util::rt::TokioExecutor::new();
            let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
            tokio::spawn(connection);
            sender.send_request(request).await.unwrap()
        } else {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
            tokio::spawn(connection);
            sender.send_request(request).await.unwrap()
        };
        let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
        let review: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(review["status"]["userInfo"]["username"], "admin", "{review}");
    }
    tls.stop.send_replace(true);
    tokio::time::timeout(PATIENCE, tls.served).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_remote_client_does_what_the_one_in_the_process_does() {
    let s = server().await;
    let tls = tls(&s).await;
    let path = |name: &str| tls.folder.path().join(name).display().to_string();
    let text = std::fs::read_to_string(path("kubeconfig")).unwrap();
    let text = ["ca.crt", "admin.crt", "admin.key"].iter().fold(text, |t, f| t.replace(f, &path(f)));
    let remote: client::ApiClient = Arc::new(client::remote::Remote::from_kubeconfig(&text).await.unwrap());
    let local = s.api.client(s.identity.clone());
    let mut events = remote.watch(&gvr::CONFIG_MAPS, &client::WatchOptions::default()).await.unwrap();
    assert_eq!(events.next().await.unwrap().unwrap().kind, client::EventKind::Bookmark);
    let mut body = config_map("a");
    body["metadata"]["namespace"] = "default".into();
    let made = remote.create(&gvr::CONFIG_MAPS, body.clone()).await.unwrap();
    let seen = events.next().await.unwrap().unwrap();
    assert_eq!((seen.kind, &seen.object.raw), (client::EventKind::Added, &made.raw));
    assert_eq!(local.get(&gvr::CONFIG_MAPS, &made.key).await.unwrap().raw, made.raw);
    let options = client::ListOptions { field_selector: "metadata.name=a".into(), ..Default::default() };
    for client in [&remote, &local] {
        let list = client.list(&gvr::CONFIG_MAPS, &options).await.unwrap();
        assert_eq!(list.items[0].raw, made.raw);
        let error = client.create(&gvr::CONFIG_MAPS, body.clone()).await.unwrap_err();
        assert!(error.is_already_exists(), "{error}");
        assert_eq!(error.message, "configmaps \"a\" already exists");
    }
    let patched = remote
        .merge_patch(&gvr::CONFIG_MAPS, &made.key, serde_json::json!({"data": {"b": "2"}}))
        .await
        .unwrap();
    assert_eq!(patched.value().unwrap()["data"]["b"], "2");
    remote.delete(&gvr::CONFIG_MAPS, &made.key, client::DeleteOptions::default()).await.unwrap();
    assert!(local.get(&gvr::CONFIG_MAPS, &made.key).await.unwrap_err().is_not_found());
    tls.stop.send_replace(true);
    tokio::time::timeout(PATIENCE, tls.served).await.unwrap().unwrap();
}

fn kubectls() -> Vec<PathBuf> {
    let known = ["/usr/bin/kubectl", "/work/tools/kubectl-1.20/usr/bin/kubectl"];
    known.iter().map(PathBuf::from).filter(|p| p.exists()).collect()
}

async fn kubectl(program: &Path, folder: &Path, input: &str, args: &str) -> String {
    let (success, text) = kubectl_tries(program, folder, input, args).await;
    assert!(success, "kubectl {args}: {text}");
    text
}

async fn kubectl_tries(program: &Path, folder: &Path, input: &str, args: &str) -> (bool, String) {
    let mut child = Command::new(program)
        .args(args.split(' '))
        .env("KUBECONFIG", folder.join("kubeconfig"))
        .env("HOME", folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stdin, input.as_bytes()).await.unwrap();
    drop(stdin);
    let output =
        tokio::time::timeout(PATIENCE * 3, child.wait_with_output()).await.expect("kubectl in time").unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), text)
}

const DEPLOYMENT: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: REPLICAS
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: 'nginx:1.7.9', ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80}]}
";

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_works_with_it() {
    for program in kubectls() {
        let s = server().await;
        let tls = tls(&s).await;
        let run = |input: &str, args: &str| {
            let (program, folder) = (program.clone(), tls.folder.path().to_path_buf());
            let (input, args) = (input.to_string(), args.to_string());
            async move { kubectl(&program, &folder, &input, &args).await }
        };
        let steps: &[(&str, &str, &str)] = &[
            ("1", "apply -f -", "deployment.apps/web created\nservice/web created\n"),
            ("1", "apply -f -", "deployment.apps/web unchanged\nservice/web unchanged\n"),
            ("3", "apply -f -", "deployment.apps/web configured\nservice/web unchanged\n"),
            ("", "get deploy", "web    0/3"),
            ("", "get svc web -o wide", "app=web"),
            ("", "scale deploy web --replicas=2", "scaled"),
            ("", "set image deploy/web web=nginx:1.9.1", "image updated"),
            (
                "",
                "get deploy web -o jsonpath={.spec.replicas}{.spec.template.spec.containers[0].image}",
                "2nginx:1.9.1",
            ),
            ("", "label deploy web tier=front", "labeled"),
            ("", "annotate svc web note=1", "annotated"),
            ("", "get ns", "kube-system"),
            ("", "run p --image=busybox --restart=Never", "pod/p created"),
            ("", "get pods -o wide", "p"),
            ("", "describe pod p", "busybox"),
            ("", "explain pod.spec.containers", "image"),
            ("m", "create -f -", "configmap/m created"),
            ("", "get all", "deployment.apps/web"),
            ("", "api-resources", "deployments"),
            ("", "patch cm m -p {\"data\":{\"c\":\"d\"}}", "patched"),
            ("", "get cm m -o yaml", "c: d"),
            ("", "delete pod p --grace-period=0 --force", "deleted"),
            ("", "delete deploy,svc web", "deleted"),
        ];
        for (replicas, args, want) in steps {
            let input = match *replicas {
                "" => String::new(),
                "m" => config_map("m").to_string(),
                replicas => DEPLOYMENT.replace("REPLICAS", replicas),
            };
            let output = run(&input, args).await;
            assert!(output.contains(want), "{}: kubectl {args}: {output}", program.display());
        }
        tls.stop.send_replace(true);
        tokio::time::timeout(PATIENCE, tls.served).await.unwrap().unwrap();
    }
}

/// What kubectl's typed clients send in protobuf (since 1.32), and what must come back.
const TYPED: &[(&str, &str)] = &[
    ("create deployment web --image=nginx --port=80", "deployment.apps/web created"),
    ("create job j --image=busybox -- sleep 1", "job.batch/j created"),
    ("create cronjob cj --image=busybox --schedule=@hourly -- date", "cronjob.batch/cj created"),
    ("create configmap cm --from-literal=a=b --from-literal=c=", "configmap/cm created"),
    ("create secret generic s --from-literal=p=q", "secret/s created"),
    ("create secret docker-registry dr --docker-username=u --docker-password=p", "secret/dr created"),
    ("create ingress in --rule=foo.example/bar*=web:80,tls=t", "ingress.networking.k8s.io/in created"),
    (
        "create role r --verb=get,list --resource=pods,deployments.apps",
        "role.rbac.authorization.k8s.io/r created",
    ),
    ("create rolebinding rb --role=r --serviceaccount=default:default", "/rb created"),
    ("create clusterrole cr --verb=get --non-resource-url=/healthz", "/cr created"),
    ("create clusterrole agg --aggregation-rule=x=y", "/agg created"),
    ("create clusterrolebinding crb --clusterrole=cr --user=u", "/crb created"),
    ("create quota q --hard=pods=10,cpu=1500m", "resourcequota/q created"),
    ("create pdb p --selector=app=web --max-unavailable=0", "poddisruptionbudget.policy/p created"),
    ("create priorityclass pc --value=0 --description=d", "priorityclass.scheduling.k8s.io/pc created"),
    ("create serviceaccount sa", "serviceaccount/sa created"),
    ("create namespace ns1", "namespace/ns1 created"),
    ("create service clusterip svc --tcp=80:8080", "service/svc created"),
    ("create service nodeport np --tcp=80", "service/np created"),
    ("create service externalname en --external-name=example.com", "service/en created"),
    ("run p --image=busybox --port=80 --expose", "pod/p created"),
    ("expose deployment web --port=80", "service/web exposed"),
    ("autoscale deployment web --min=1 --max=3 --cpu-percent=80", "/web autoscaled"),
    ("scale deployment web --replicas=0", "deployment.apps/web scaled"),
    ("rollout restart deployment web", "deployment.apps/web restarted"),
    ("auth can-i create pods", "yes"),
    ("auth whoami", "admin"),
    ("get deploy web -o jsonpath={.spec.replicas}/{.spec.strategy.rollingUpdate.maxSurge}", "0/25%"),
    ("get pdb p -o jsonpath={.spec.maxUnavailable}", "0"),
    ("get priorityclass pc -o jsonpath={.value}", "0"),
    ("delete ns ns1 --wait=false", "deleted"),
];

#[tokio::test(flavor = "multi_thread")]
async fn kubectls_typed_clients_work_with_it() {
    // Older ones send JSON, to group versions that are gone.
    for program in kubectls().into_iter().filter(|p| p.starts_with("/usr/bin")) {
        let s = server().await;
        let tls = tls(&s).await;
        for (args, want) in TYPED {
            let output = kubectl(&program, tls.folder.path(), "", args).await;
            assert!(output.contains(want), "kubectl {args}: {output}");
        }
        tls.stop.send_replace(true);
        tokio::time::timeout(PATIENCE, tls.served).await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_applies_on_the_server_side() {
    let program = PathBuf::from("/usr/bin/kubectl");
    if !program.exists() {
        return;
    }
    let s = server().await;
    let tls = tls(&s).await;
    let deployment = |replicas: &str| DEPLOYMENT.replace("REPLICAS", replicas);
    let map =
        |data: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: m}}\ndata: {{{data}}}\n");
    let replicas = "get deploy web -o jsonpath={.spec.replicas}";
    // Which of the two comes first depends on whether a second ended between them.
    let moved = "get deploy web -o jsonpath={.metadata.managedFields[?(@.manager=='kubectl-last-applied')].operation}";
    let owned = "get deploy web -o jsonpath={.metadata.managedFields[?(@.manager=='kubectl')].operation}";
    let steps: Vec<(String, &str, bool, &str)> = vec![
        (
            deployment("1"),
            "apply --server-side -f -",
            true,
            "deployment.apps/web serverside-applied\nservice/web serverside-applied\n",
        ),
        (deployment("1"), "apply --server-side -f -", true, "serverside-applied"),
        (
            String::new(),
            "get deploy web -o yaml --show-managed-fields",
            true,
            "manager: kubectl\n    operation: Apply",
        ),
        (String::new(), "scale deploy web --replicas=5", true, "scaled"),
        (
            deployment("1"),
            "apply --server-side -f -",
            false,
            "Apply failed with 1 conflict: conflict with \"kubectl\" with subresource \"scale\" using apps/v1: .spec.replicas",
        ),
        (String::new(), replicas, true, "5"),
        (deployment("2"), "apply --server-side --force-conflicts -f -", true, "serverside-applied"),
        (String::new(), replicas, true, "2"),
        (deployment("3"), "diff --server-side -f -", false, "+  replicas: 3"),
        (String::new(), "delete deploy,svc web", true, "deleted"),
        // From the client side to the server side: kubectl moves what it owned.
        (deployment("1"), "apply -f -", true, "created"),
        (deployment("4"), "apply --server-side -f -", true, "serverside-applied"),
        (String::new(), replicas, true, "4"),
        (String::new(), moved, true, "Apply"),
        (String::new(), owned, true, "Apply"),
        // And back again.
        (deployment("1"), "apply -f -", true, "configured"),
        (String::new(), replicas, true, "1"),
        (map("a: '1', b: '2'"), "apply --server-side --field-manager=x -f -", true, "applied"),
        (map("b: '2'"), "apply --server-side --field-manager=x -f -", true, "applied"),
        (String::new(), "get cm m -o jsonpath={.data}", true, "{\"b\":\"2\"}"),
        (map("b: '3'"), "apply --server-side --field-manager=y -f -", false, "conflict with \"x\": .data.b"),
        (map("b: [1]"), "apply --server-side --field-manager=y -f -", false, ".data.b: expected string, got"),
    ];
    for (input, args, succeeds, want) in steps {
        let (success, output) = kubectl_tries(&program, tls.folder.path(), &input, args).await;
        assert_eq!(success, succeeds, "kubectl {args}: {output}");
        assert!(output.contains(want), "kubectl {args}: {output}");
    }
    let shown = kubectl(&program, tls.folder.path(), "", "get deploy web -o yaml").await;
    assert!(!shown.contains("managedFields"), "{shown}");
    tls.stop.send_replace(true);
    tokio::time::timeout(PATIENCE, tls.served).await.unwrap().unwrap();
}
