//! The kubectl that is installed, against this server: a front that answers for the API server what kubectl asks
//! first, and tunnels the rest. A kubectl that knows WebSockets (1.30 on) is made to use both; an older one ignores
//! the switch.

use super::{Bench, in_time, shouting};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Output, Stdio};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

const POD: &str = r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"p","namespace":"default"},
    "spec":{"containers":[{"name":"c","image":"i","stdin":true},{"name":"open","image":"i","stdin":true}]},"status":{"phase":"Running"}}"#;
const API: &str = r#"{"kind":"APIVersions","versions":["v1"]}"#;
const APIS: &str = r#"{"kind":"APIGroupList","apiVersion":"v1","groups":[]}"#;
const V1: &str = r#"{"kind":"APIResourceList","groupVersion":"v1","resources":[{"name":"pods","singularName":"",
    "namespaced":true,"kind":"Pod","verbs":["get","list"],"shortNames":["po"]}]}"#;
/// API sub-resource, the node's path.
const ROUTES: [(&str, &str); 4] =
    [("exec", "exec"), ("attach", "attach"), ("portforward", "portForward"), ("log", "containerLogs")];

async fn front(bench: &'static Bench, websockets: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve(socket, bench, websockets));
        }
    });
    address
}

async fn serve(mut socket: TcpStream, bench: &Bench, websockets: &str) {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match socket.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        let head = String::from_utf8(head).unwrap();
        let is_websocket = head.to_lowercase().contains("upgrade: websocket");
        assert!(!is_websocket || websockets == "true", "kubectl was told not to");
        let (line, headers) = head.split_once("\r\n").unwrap();
        let parts: Vec<&str> = line.split(' ').collect();
        let (path, query) = parts[1].split_once('?').unwrap_or((parts[1], ""));
        let body = match path {
            "/api" => API,
            "/apis" => APIS,
            "/api/v1" => V1,
            "/api/v1/namespaces/default/pods/p" => POD,
            path => {
                let name = path.rsplit('/').next().unwrap();
                let Some((_, node)) = ROUTES.iter().find(|(api, _)| *api == name) else {
                    let gone = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
                    socket.write_all(gone.as_bytes()).await.unwrap();
                    continue;
                };
                let named = query.split('&').find_map(|p| p.strip_prefix("container="));
                let container = match *node {
                    "portForward" => String::new(),
                    _ => format!("/{}", named.unwrap_or("c")),
                };
                let request = format!("{} /{node}/default/p{container}?{query} HTTP/1.1\r\n", parts[0]);
                let rest = headers.trim_end_matches("\r\n").to_string() + "\r\n";
                let mut node = bench.send(&bench.connector, &(request + &rest)).await;
                let _ = tokio::io::copy_bidirectional(&mut socket, &mut node).await;
                return;
            }
        };
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        socket.write_all(answer.as_bytes()).await.unwrap();
    }
}

/// A front's address and whether kubectl may use WebSockets.
#[derive(Clone, Copy)]
struct Way(SocketAddr, &'static str);

fn kubectl(Way(server, websockets): Way, home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("kubectl");
    command
        .arg(format!("--server=http://{server}"))
        .arg(format!("--cache-dir={}", home.display()))
        .args(args);
    command.env("HOME", home).env("KUBECONFIG", "/dev/null").kill_on_drop(true);
    command
        .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets)
        .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

async fn run(way: Way, home: &Path, args: &[&str], input: &[u8]) -> Output {
    let mut child = kubectl(way, home, args).spawn().expect("kubectl is installed");
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    tokio::spawn(async move {
        let _ = stdin.write_all(&input).await;
    });
    in_time(child.wait_with_output()).await.unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_installed_kubectl_works_by_spdy() {
    everything("false").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_installed_kubectl_works_by_websocket() {
    everything("true").await;
}

async fn everything(websockets: &'static str) {
    let home = tempfile::tempdir().unwrap();
    let log = home.path().join("0.log");
    std::fs::write(&log, "2026-01-01T00:00:00.000000000Z stdout F from the log\n").unwrap();
    let bench: &'static Bench = Box::leak(Box::new(Bench::new(log).await));
    let way = Way(front(bench, websockets).await, websockets);
    let run = |args: Vec<&'static str>, input: Vec<u8>| {
        let home = home.path().to_path_buf();
        async move { run(way, &home, &args, &input).await }
    };
    assert_eq!(stdout(&run(vec!["exec", "p", "--", "echo", "hello"], vec![]).await), "hello\n");

    let failed = run(vec!["exec", "p", "--", "sh", "-c", "echo out; echo err >&2; exit 42"], vec![]).await;
    assert_eq!(failed.status.code(), Some(42));
    assert_eq!(String::from_utf8_lossy(&failed.stdout), "out\n");
    let stderr = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(stderr.contains("err\n") && stderr.contains("exit code 42"), "{stderr}");

    let big: Vec<u8> = (0..5_000_000u32).map(|n| (n % 251) as u8).collect();
    let copied = run(vec!["exec", "-i", "p", "--", "cat"], big.clone()).await;
    assert!(copied.status.success() && copied.stdout == big, "cat gives back {} bytes", copied.stdout.len());

    let head = run(vec!["exec", "-i", "p", "--", "head", "-c", "100000"], big.clone()).await;
    assert!(head.status.success() && head.stdout == big[..100_000], "head gives {} bytes", head.stdout.len());

    // The one ends with its input, the other waits for another client's.
    for container in ["c", "open"] {
        let attached = run(vec!["attach", "-i", "p", "-c", container], b"typed".to_vec()).await;
        assert_eq!(stdout(&attached), "attached\ntyped", "{container}");
    }
    assert_eq!(stdout(&run(vec!["logs", "p"], vec![]).await), "from the log\n");

    let missing = run(vec!["exec", "p", "--", "no-such-thing"], vec![]).await;
    assert!(String::from_utf8_lossy(&missing.stderr).contains("executable file not found"));
    forwards(way, home.path()).await;
    copies(way, home.path()).await;
}

async fn forwards(way: Way, home: &Path) {
    let port = shouting().await;
    let ports = format!(":{port}");
    let mut child =
        kubectl(way, home, &["port-forward", "p", &ports, "--address=127.0.0.1"]).spawn().unwrap();
    let mut line = Vec::new();
    let mut out = child.stdout.take().unwrap();
    in_time(async {
        while !line.ends_with(b"\n") {
            line.push(out.read_u8().await.expect("kubectl says where it listens"));
        }
        // Forwarding from 127.0.0.1:40001 -> 40000
        let line = String::from_utf8(line.clone()).unwrap();
        let address =
            line.split_whitespace().find(|word| word.starts_with("127.0.0.1:")).unwrap().to_string();
        for n in 0..5 {
            let mut socket = TcpStream::connect(&address).await.unwrap();
            socket.write_all(format!("hello {n}").as_bytes()).await.unwrap();
            socket.shutdown().await.unwrap();
            let mut text = String::new();
            socket.read_to_string(&mut text).await.unwrap();
            assert_eq!(text, format!("HELLO {n}"));
        }
    })
    .await;
    child.kill().await.unwrap();
}

async fn copies(way: Way, home: &Path) {
    let (from, to, back) = (home.join("from"), home.join("to"), home.join("back"));
    std::fs::write(&from, vec![7; 1_000_000]).unwrap();
    let remote = format!("p:{}", to.display());
    for args in [["cp", from.to_str().unwrap(), &remote], ["cp", &remote, back.to_str().unwrap()]] {
        let output = run(way, home, &args, &[]).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(std::fs::read(&back).unwrap() == std::fs::read(&from).unwrap());
}
