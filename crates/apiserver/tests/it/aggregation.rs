//! Group versions that another server answers: a small TLS server behind a service, and an APIService.

use crate::harness::{PATIENCE, Server, server, server_with};
use auth::{Ca, Identity};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::net::TcpListener;

const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
const NAME: &str = "v1alpha1.wardle.example.com";
const HOST: &str = "wardle.default.svc";

/// What the extension server says: its resources, its documents, an echo of what it was told, misbehaviour.
async fn extension(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_string();
    let told: Vec<String> = request
        .headers()
        .iter()
        .filter(|(k, _)| ["x-remote", "auth", "imper"].iter().any(|p| k.as_str().starts_with(p)))
        .map(|(k, v)| format!("{k}={}", v.to_str().unwrap()))
        .collect();
    let body = match path.as_str() {
        "/apis/wardle.example.com/v1alpha1" => json!({"kind": "APIResourceList", "apiVersion": "v1",
            "groupVersion": "wardle.example.com/v1alpha1",
            "resources": [{"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder",
                "verbs": ["get", "list"]}]}),
        "/openapi/v2" => json!({"swagger": "2.0", "paths": {
            "/apis/wardle.example.com/v1alpha1/flunders": {"get": {"operationId": "x", "responses": {}}}},
            "definitions": {"com.example.Flunder": {"type": "object"}}}),
        "/openapi/v3" => json!({"paths": {"apis/wardle.example.com/v1alpha1":
            {"serverRelativeURL": "/openapi/v3/apis/wardle.example.com/v1alpha1?hash=9"}}}),
        p if p.ends_with("/elsewhere") => {
            let answer = Response::builder().status(302).header("location", "https://169.254.169.254/");
            return Ok(answer.body(Full::default()).unwrap());
        }
        _ => json!({"told": told, "path": request.uri().to_string()}),
    };
    Ok(Response::new(Full::from(body.to_string())))
}

/// Starts the server; its port and the PEM of who signed it.
async fn start() -> (u16, String, Arc<Ca>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let ca = Arc::new(Ca::load_or_create(folder.path(), SystemTime::now()).unwrap());
    let issued = ca.issue_server("wardle", &[HOST.into()], &[], SystemTime::now()).unwrap();
    let config = auth::server_config(&issued, ca.cert_pem(), &["http/1.1"]).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(config);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let http = hyper::server::conn::http1::Builder::new();
                let _ = http.serve_connection(TokioIo::new(stream), service_fn(extension)).await;
            });
        }
    });
    (port, ca.cert_pem().to_string(), ca, folder)
}

async fn register(server: &Server, port: u16, ca_pem: &str) {
    let api_service = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": NAME},
        "spec": {"group": "wardle.example.com", "version": "v1alpha1", "groupPriorityMinimum": 2000,
            "versionPriority": 200, "caBundle": BASE64_STANDARD.encode(ca_pem),
            "service": {"name": "wardle", "namespace": "default", "port": port}}});
    server.post(SERVICES, &api_service).await.expect(201);
}

/// A service that leads to this machine. (Endpoints may not have loopback addresses.)
async fn service(server: &Server, host: &str, port: u16) {
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "wardle"},
        "spec": {"type": "ExternalName", "externalName": host, "ports": [{"port": port}]}});
    server.post("/api/v1/namespaces/default/services", &service).await.expect(201);
}

/// Waits until the condition has this reason.
async fn reason(server: &Server, name: &str, wanted: &str) -> Value {
    let found = async {
        loop {
            let reply = server.get(&format!("{SERVICES}/{name}")).await;
            let condition =
                if reply.code == 200 { reply.json()["status"]["conditions"][0].clone() } else { Value::Null };
            if condition["reason"] == wanted {
                return condition;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("{name} never became {wanted}"))
}

#[tokio::test]
async fn own_group_versions_are_always_available() {
    let server = server().await;
    let condition = reason(&server, "v1.apps", "Local").await;
    assert_eq!(condition["message"], "Local APIServices are always available");
    reason(&server, "v1.", "Local").await;
    let crd = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "foos.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "foos", "kind": "Foo", "singular": "foo", "listKind": "FooList"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object"}}}]}});
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    server.post(path, &crd).await.expect(201);
    reason(&server, "v1.example.com", "Local").await;
}

#[tokio::test]
async fn another_server_answers_its_group_version() {
    let (port, pem, _ca, _folder) = start().await;
    let server = server().await;
    register(&server, port, &pem).await;
    reason(&server, NAME, "ServiceNotFound").await;
    let flunders = "/apis/wardle.example.com/v1alpha1/namespaces/default/flunders";
    let refused = server.get(flunders).await;
    assert_eq!((refused.code, &refused.body[..]), (503, &b"service unavailable\n"[..]));
    service(&server, "localhost", port).await;
    reason(&server, NAME, "Passed").await;

    let echoed = server
        .call(
            "GET",
            &format!("{flunders}?watch=1&x=y"),
            &[("authorization", "Bearer t"), ("x-remote-user", "root")],
            "",
        )
        .await
        .expect(200);
    let told: Vec<&str> = echoed["told"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    let wanted =
        ["x-remote-user=admin", "x-remote-group=system:masters", "x-remote-group=system:authenticated"];
    assert_eq!(told, wanted);
    assert_eq!(echoed["path"], format!("{flunders}?watch=1&x=y"));

    let redirect = server.get("/apis/wardle.example.com/v1alpha1/elsewhere").await;
    assert_eq!(redirect.code, 502);
    assert!(redirect.headers.get("location").is_none());

    let nobody = server.with_identity(Identity::new("eve", ["system:authenticated"]));
    nobody.get(flunders).await.fails(403, "Forbidden");

    let groups = server.get("/apis").await.expect(200);
    assert!(groups["groups"].as_array().unwrap().iter().any(|g| g["name"] == "wardle.example.com"));
    let listed = server.get("/apis/wardle.example.com/v1alpha1").await.expect(200);
    assert_eq!(listed["resources"][0]["name"], "flunders");
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let all = server.call("GET", "/apis", &[("accept", accept)], "").await.expect(200);
    let found =
        all["items"].as_array().unwrap().iter().find(|g| g["metadata"]["name"] == "wardle.example.com");
    assert_eq!(found.unwrap()["versions"][0]["resources"][0]["responseKind"]["kind"], "Flunder");
}

#[tokio::test]
async fn documents_are_joined_and_go_again() {
    let (port, pem, _ca, _folder) = start().await;
    let server = server().await;
    register(&server, port, &pem).await;
    service(&server, "localhost", port).await;
    reason(&server, NAME, "Passed").await;
    let joined = async {
        loop {
            let index = server.get("/openapi/v3").await.expect(200);
            if index["paths"]["apis/wardle.example.com/v1alpha1"].is_object() {
                return server.get("/openapi/v2").await.expect(200);
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let v2 = tokio::time::timeout(PATIENCE, joined).await.unwrap();
    assert_eq!(v2["definitions"]["com.example.Flunder"], json!({"type": "object"}));
    server.delete(&format!("{SERVICES}/{NAME}")).await.expect(200);
    let gone = async {
        while server.get("/apis/wardle.example.com/v1alpha1").await.code != 404 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
    assert!(server.get("/openapi/v2").await.expect(200)["definitions"]["com.example.Flunder"].is_null());
}

#[tokio::test]
async fn a_wrong_certificate_is_refused() {
    let (port, _, _ca, _folder) = start().await;
    let (_, other_pem, _other, _other_folder) = start().await;
    let server = server().await;
    register(&server, port, &other_pem).await;
    service(&server, "localhost", port).await;
    reason(&server, NAME, "FailedDiscoveryCheck").await;
}

struct Metadata;

#[async_trait::async_trait]
impl apiserver::NameResolver for Metadata {
    async fn resolve(&self, _: &str) -> Result<Vec<std::net::IpAddr>, String> {
        Ok(vec!["169.254.169.254".parse().unwrap()])
    }
}

#[tokio::test]
async fn addresses_of_one_link_are_never_dialled() {
    let server = server_with(|c| c.resolver = Some(Arc::new(Metadata))).await;
    register(&server, 80, "").await;
    service(&server, "metadata.example", 80).await;
    let condition = reason(&server, NAME, "FailedDiscoveryCheck").await;
    assert!(condition["message"].as_str().unwrap().ends_with("no address"), "{condition}");
}

/// Over real TLS: headers count only when the front proxy's certificate stands behind them.
#[tokio::test]
async fn front_proxies_speak_for_others_and_nobody_else_does() {
    let folder = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let (ca, front) =
        (Ca::load_or_create(folder.path(), now).unwrap(), Ca::named(folder.path(), "front", now).unwrap());
    let proxy = apiserver::FrontProxy {
        client_ca_pem: ca.cert_pem().into(),
        ca_pem: front.cert_pem().into(),
        client: front.issue_client(apiserver::FRONT_PROXY_CLIENT, None, now).unwrap(),
    };
    let server = server_with(|c| c.front_proxy = Some(proxy)).await;
    let served = ca.issue_server("api", &["localhost".into()], &[], now).unwrap();
    let both = format!("{}{}", ca.cert_pem(), front.cert_pem());
    let tls = auth::server_config(&served, &both, &["http/1.1"]).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    tokio::spawn(server.api.clone().serve(listener, tls, stopped));
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let ask = async |client: auth::Issued, user: Option<&str>| -> (u16, String) {
        let config = auth::client_config(&client, ca.cert_pem()).unwrap();
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
        let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut request = Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews")
            .header("host", "localhost")
            .header("content-type", "application/json");
        if let Some(user) = user {
            request = request.header("x-remote-user", user).header("x-remote-group", "dev");
        }
        let answer = sender
            .send_request(request.body(Full::<Bytes>::from(review.to_string())).unwrap())
            .await
            .unwrap();
        let code = answer.status().as_u16();
        let body = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
        let value: Value = serde_json::from_slice(&body).unwrap();
        (code, value["status"]["userInfo"]["username"].as_str().unwrap_or_default().to_string())
    };
    let proxy = || front.issue_client(apiserver::FRONT_PROXY_CLIENT, None, now).unwrap();
    assert_eq!(ask(proxy(), Some("alice")).await, (201, "alice".into()));
    assert_eq!(ask(proxy(), None).await.0, 401);
    let bob = ca.issue_client("bob", None, now).unwrap();
    assert_eq!(ask(bob, Some("alice")).await, (201, "bob".into()), "an ordinary client is itself");
    let impostor = ca.issue_client(apiserver::FRONT_PROXY_CLIENT, None, now).unwrap();
    assert_eq!(ask(impostor, Some("alice")).await.1, apiserver::FRONT_PROXY_CLIENT);
    let misnamed = front.issue_client("system:admin", Some("system:masters"), now).unwrap();
    assert_ne!(ask(misnamed, Some("alice")).await.0, 201, "the front proxy's authority makes no users");
    let published = async {
        loop {
            let path = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";
            let map = server.get(path).await;
            if map.code == 200 {
                return map.json();
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let map = tokio::time::timeout(PATIENCE, published).await.expect("the authorities are published");
    assert_eq!(map["data"]["requestheader-allowed-names"], "[\"front-proxy-client\"]");
    stop.send_replace(true);
}
