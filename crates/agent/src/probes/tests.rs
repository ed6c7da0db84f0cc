//! Network checks against small servers on loopback.

use super::*;
use crate::pod::tests::pod;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

fn check(probe: Value, container: Value) -> Result<Check, String> {
    let mut body = json!({"name": "a", "image": "i", "readinessProbe": probe});
    body.as_object_mut().unwrap().extend(container.as_object().unwrap().clone());
    let view = pod(json!({"containers": [body]}));
    let container = &view.containers[0];
    Check::of_probe(container.spec.readiness_probe.as_ref().unwrap(), container, "127.0.0.1")
}

/// Serves so many connections; answers by path.
async fn server(answers: &'static [(&'static str, &'static str)]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 2048];
            let n = stream.read(&mut request).await.unwrap_or(0);
            let text = String::from_utf8_lossy(&request[..n]).into_owned();
            let path = text.split(' ').nth(1).unwrap_or_default().to_string();
            let answer = answers.iter().find(|(p, _)| *p == path).map_or("404 Not Found\r\n", |(_, a)| *a);
            if answer == "hang" {
                std::future::pending::<()>().await;
            }
            let _ = stream.write_all(format!("HTTP/1.1 {answer}content-length: 0\r\n\r\n").as_bytes()).await;
        }
    });
    port
}

async fn ask(port: u16, path: &str) -> Result<(), String> {
    let Check::Http(get) = check(json!({"httpGet": {"path": path, "port": port}}), json!({})).unwrap() else {
        panic!()
    };
    http_get::get(&get).await
}

#[tokio::test]
async fn http_statuses_and_redirects() {
    let port = server(&[
        ("/ok", "200 OK\r\n"),
        ("/bad", "500 Oh\r\n"),
        ("/to-bad", "302 Found\r\nlocation: /bad\r\n"),
        ("/away", "302 Found\r\nlocation: http://192.0.2.9/x\r\n"),
        ("/loop", "302 Found\r\nlocation: /loop\r\n"),
    ])
    .await;
    assert_eq!(ask(port, "/ok").await, Ok(()));
    assert_eq!(ask(port, "ok").await, Ok(()));
    assert_eq!(ask(port, "/bad").await.unwrap_err(), "HTTP probe failed with statuscode: 500");
    assert_eq!(ask(port, "/none").await.unwrap_err(), "HTTP probe failed with statuscode: 404");
    assert_eq!(ask(port, "/to-bad").await.unwrap_err(), "HTTP probe failed with statuscode: 500");
    assert_eq!(ask(port, "/away").await, Ok(()));
    assert!(ask(port, "/loop").await.unwrap_err().contains("stopped after 10 redirects"));
}

#[tokio::test]
async fn a_closed_port_in_gos_words() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let expected =
        format!("Get \"http://127.0.0.1:{port}/x\": dial tcp 127.0.0.1:{port}: connect: connection refused");
    assert_eq!(ask(port, "/x").await.unwrap_err(), expected);
}

#[test]
fn ports_by_name() {
    let container = json!({"ports": [{"name": "web", "containerPort": 8080}]});
    assert_eq!(
        check(json!({"tcpSocket": {"port": "web"}}), container.clone()),
        Ok(Check::Tcp { host: "127.0.0.1".into(), port: 8080 })
    );
    assert!(
        check(json!({"tcpSocket": {"port": "no"}}), container.clone())
            .unwrap_err()
            .contains("couldn't find port")
    );
    assert!(check(json!({"tcpSocket": {"port": 70000}}), container).unwrap_err().contains("invalid port"));
    assert!(check(json!({}), json!({})).is_err());
}

#[tokio::test]
async fn https_takes_any_certificate() {
    let pair = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec!["other".into()]).unwrap().self_signed(&pair).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(pair.serialize_der().into());
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = async move {
        let (stream, _) = listener.accept().await.unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
        let mut stream = acceptor.accept(stream).await.unwrap();
        let mut request = [0; 1024];
        let n = stream.read(&mut request).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        stream.shutdown().await.unwrap();
        String::from_utf8_lossy(&request[..n]).into_owned()
    };
    let headers = json!([{"name": "Host", "value": "me"}, {"name": "X-A", "value": "b"}]);
    let probe = json!({"httpGet": {"port": port, "scheme": "HTTPS", "httpHeaders": headers}});
    let Check::Http(get) = check(probe, json!({})).unwrap() else { panic!() };
    let (request, asked) = tokio::join!(serve, http_get::get(&get));
    assert_eq!(asked, Ok(()));
    let request = request.to_lowercase();
    assert!(request.contains("host: me\r\n") && request.contains("x-a: b\r\n"), "{request}");
}

#[tokio::test]
async fn grpc_health() {
    use bytes::Bytes;
    use http_body_util::{BodyExt, Full};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service =
                hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    let asked = request.into_body().collect().await.unwrap().to_bytes();
                    // SERVING for the whole server, NOT_SERVING for every named service.
                    let state = if asked.len() == 5 { 1 } else { 2 };
                    let mut trailers = http::HeaderMap::new();
                    trailers.insert("grpc-status", "0".parse().unwrap());
                    let body = Full::new(Bytes::from(vec![0, 0, 0, 0, 2, 8, state]))
                        .with_trailers(std::future::ready(Some(Ok::<_, std::convert::Infallible>(trailers))));
                    Ok::<_, std::convert::Infallible>(http::Response::new(body))
                });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    assert_eq!(grpc::check("127.0.0.1", port, "").await, Ok(()));
    let error = grpc::check("127.0.0.1", port, "x").await.unwrap_err();
    assert_eq!(error, "service unhealthy (responded with \"NOT_SERVING\")");
}
