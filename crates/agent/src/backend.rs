//! The agent as the node API sees it: exec, attach, logs and port-forward over the runtime.

use crate::csi;
use crate::nodeapi::{AttachSpec, Duplex, LogSource, Metrics, NodeBackend, Session, Target};
use crate::ops::Node;
use crate::stats::summary::{self, Readings, Source};
use crate::stats::{self, DiskCache, Stats};
use crate::stream::FdStream;
use async_trait::async_trait;
use client::{Object, ObjectKey};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_schema::gvr::PODS;
use machinery::status::ApiError;
use machinery::zpages::Page;
use parking_lot::Mutex;
use runtime::RuntimeError;
use runtime::api::{ContainerInfo, ContainerState, ExecSpec, PodInfo};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::{Value, json};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// A port-forward that does not connect by then fails.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// Usage is told against figures that are at least as old as the second, at most as the first …
const READINGS_MAX_MS: i64 = 300_000;
const READINGS_MIN_MS: i64 = 10_000;
/// … or, when there are none, against some from so long ago.
const FIRST_WINDOW: Duration = Duration::from_millis(500);

/// The agent's side of the node API.
pub struct Backend {
    node: Arc<Node>,
    /// CPU time lately, as told in the summary.
    readings: Mutex<Readings>,
    disk: Arc<DiskCache>,
}

/// A running container.
struct Found {
    uid: String,
    id: String,
}

fn failed(error: &RuntimeError) -> ApiError {
    match error {
        RuntimeError::NoPod(_) | RuntimeError::NoContainer(_) => {
            ApiError::new(404, "NotFound", error.to_string())
        }
        _ => ApiError::internal(error),
    }
}

fn stream(fd: OwnedFd) -> Result<FdStream, ApiError> {
    FdStream::new(fd).map_err(ApiError::internal)
}

impl Backend {
    /// Over these parts.
    pub fn new(node: Arc<Node>) -> Backend {
        Backend { node, readings: Mutex::default(), disk: Arc::default() }
    }

    async fn gather(&self) -> Stats {
        let node = self.node.clone();
        // Nothing in it panics; without figures there are none to show.
        crate::ops::blocking(move || stats::gather(&node)).await.unwrap_or_default()
    }

    fn pod(&self, target: &Target) -> Result<Arc<Object>, ApiError> {
        let key = ObjectKey::new(target.namespace.as_str(), target.pod.as_str());
        let pod = self.node.pod(&key).filter(|p| target.uid.as_deref().is_none_or(|uid| uid == p.uid()));
        pod.ok_or_else(|| ApiError::not_found(&PODS, &target.pod))
    }

    fn instance(&self, uid: &str, container: &str) -> Option<ContainerInfo> {
        let live = self.node.runtime.pod(uid)?;
        live.containers.into_iter().filter(|c| c.spec.name == container).max_by_key(|c| c.spec.attempt)
    }

    fn running(&self, target: &Target) -> Result<Found, ApiError> {
        let pod = self.pod(target)?;
        let missing =
            || ApiError::new(404, "NotFound", format!("container not found (\"{}\")", target.container));
        let info = self.instance(pod.uid(), &target.container);
        let runs = |info: &ContainerInfo| matches!(info.state, ContainerState::Running { .. });
        let info = info.filter(runs).ok_or_else(missing)?;
        Ok(Found { uid: pod.uid().into(), id: info.spec.id })
    }

    /// True while the container runs; the task ends with its container or its listener.
    fn watch_running(&self, uid: &str, id: &str) -> watch::Receiver<bool> {
        let (node, uid, id) = (self.node.clone(), uid.to_string(), id.to_string());
        let runs = move |node: &Node| {
            let live = node.runtime.pod(&uid);
            let info = live.and_then(|l| l.containers.into_iter().find(|c| c.spec.id == id));
            info.is_some_and(|c| !matches!(c.state, ContainerState::Exited { .. }))
        };
        let mut exits = node.exits.subscribe();
        let (sender, receiver) = watch::channel(runs(&node));
        spawn(async move {
            while runs(&node) {
                tokio::select! {
                    changed = exits.changed() => if changed.is_err() { break },
                    () = sender.closed() => return,
                }
            }
            sender.send_replace(false);
        });
        receiver
    }

    fn log_path(
        &self,
        target: &Target,
        pod: &Object,
        previous: bool,
    ) -> Result<(PathBuf, Option<String>), ApiError> {
        let node = &self.node;
        let folder = node.facts.log_folder(&target.namespace, &target.pod, pod.uid()).join(&target.container);
        let live = self.instance(pod.uid(), &target.container);
        let newest = live.as_ref().map(|c| c.spec.attempt).or_else(|| newest_log(&folder));
        let name = format!("container \"{}\" in pod \"{}\"", target.container, target.pod);
        let Some(newest) = newest else {
            return Err(ApiError::bad_request(format!(
                "{name} is waiting to start: {}",
                waiting(pod, target)
            )));
        };
        let attempt = if previous { newest.checked_sub(1) } else { Some(newest) };
        let path = attempt.map(|n| folder.join(format!("{n}.log")));
        match path {
            Some(path) if !previous || path.exists() => {
                Ok((path, live.map(|c| c.spec.id).filter(|_| !previous)))
            }
            _ => Err(ApiError::bad_request(format!("previous terminated {name} not found"))),
        }
    }
}

/// Watchers only, that end with what they watch.
fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

fn newest_log(folder: &Path) -> Option<u32> {
    let entries = std::fs::read_dir(folder).ok()?.flatten();
    let number = |name: &str| name.strip_suffix(".log")?.parse().ok();
    entries.filter_map(|e| number(e.file_name().to_str()?)).max()
}

fn status_of(pod: &Object, name: &str) -> Option<ContainerStatus> {
    let pod = pod.view::<Pod>().ok()?;
    let status = pod.status.as_ref()?;
    let lists =
        [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    lists.into_iter().flatten().flatten().find(|c| c.name == name).cloned()
}

/// Is the end of the first client's input the end of the container's?
fn takes_one_client(pod: &Object, name: &str) -> bool {
    let Ok(pod) = pod.view::<Pod>() else { return false };
    let Some(spec) = &pod.spec else { return false };
    let init = spec.init_containers.iter().flatten();
    let usual = spec.containers.iter().chain(init).map(|c| (&c.name, c.stdin_once));
    let late = spec.ephemeral_containers.iter().flatten().map(|c| (&c.name, c.stdin_once));
    usual.chain(late).any(|(own, once)| own == name && once == Some(true))
}

fn waiting(pod: &Object, target: &Target) -> String {
    let state = status_of(pod, &target.container).and_then(|s| s.state).and_then(|s| s.waiting);
    match state {
        Some(waiting) => waiting.message.or(waiting.reason).unwrap_or_default(),
        None => "ContainerCreating".into(),
    }
}

/// Connects to a port on the loopback of a network namespace: on a thread of its own, which ends.
fn connect_inside(netns: &Path, port: u16) -> io::Result<TcpStream> {
    let netns = netns.to_path_buf();
    let work = move || {
        let ns = std::fs::File::open(netns)?;
        sys::process::set_ns(ns.as_fd(), sys::process::ns::NET)?;
        connect_loopback(port)
    };
    let thread = std::thread::Builder::new().name("port-forward".into()).spawn(work)?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the connecting thread died")))
}

fn connect_loopback(port: u16) -> io::Result<TcpStream> {
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpStream::connect_timeout(&v4, CONNECT_WITHIN).or_else(|first| {
        let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
        TcpStream::connect_timeout(&v6, CONNECT_WITHIN).map_err(|_| first)
    })
}

#[async_trait]
impl NodeBackend for Backend {
    async fn check(&self, target: &Target) -> Result<(), ApiError> {
        if target.container.is_empty() { self.pod(target).map(drop) } else { self.running(target).map(drop) }
    }

    async fn exec(&self, target: &Target, spec: ExecSpec) -> Result<Session, ApiError> {
        let found = self.running(target)?;
        let mut session =
            self.node.runtime.exec(&found.uid, &found.id, spec).await.map_err(|e| failed(&e))?;
        let (stdin, stdout, stderr) = (session.stdin.take(), session.stdout.take(), session.stderr.take());
        // Only a terminal has a size; for a pipe the call fails and nothing happens.
        let terminal = stdout.as_ref().or(stdin.as_ref()).and_then(|fd| fd.try_clone().ok());
        let resize = terminal.map(|fd| {
            let set = move |columns, rows| {
                let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
                let _ = tcsetwinsize(&fd, size);
            };
            Box::new(set) as Box<dyn Fn(u16, u16) + Send + Sync>
        });
        Ok(Session {
            stdin: stdin.map(stream).transpose()?.map(|s| Box::new(s) as _),
            stdout: stdout.map(stream).transpose()?.map(|s| Box::new(s) as _),
            stderr: stderr.map(stream).transpose()?.map(|s| Box::new(s) as _),
            resize,
            ends_with_input: false,
            done: Box::pin(async move { Ok(session.wait().await) }),
        })
    }

    async fn attach(&self, target: &Target, spec: AttachSpec) -> Result<Session, ApiError> {
        let found = self.running(target)?;
        let pod = self.pod(target)?;
        let once = takes_one_client(&pod, &target.container);
        let runtime = self.node.runtime.clone();
        let session = runtime.attach(&found.uid, &found.id, spec.stdin).await.map_err(|e| failed(&e))?;
        let mut running = self.watch_running(&found.uid, &found.id);
        let resize = session.tty.then(|| {
            let set = move |columns: u16, rows: u16| {
                let (runtime, uid, id) = (runtime.clone(), found.uid.clone(), found.id.clone());
                spawn(async move {
                    let _ = runtime.resize_tty(&uid, &id, columns, rows).await;
                });
            };
            Box::new(set) as Box<dyn Fn(u16, u16) + Send + Sync>
        });
        let wants_error = spec.stderr;
        Ok(Session {
            stdin: session.stdin.map(stream).transpose()?.map(|s| Box::new(s) as _),
            stdout: Some(Box::new(stream(session.stdout)?))
                .filter(|_| spec.stdout || session.tty)
                .map(|s| s as _),
            stderr: session.stderr.filter(|_| wants_error).map(stream).transpose()?.map(|s| Box::new(s) as _),
            resize,
            ends_with_input: !once || session.tty,
            done: Box::pin(async move {
                // An error means that the watcher is gone, and with it the container.
                let _ = running.wait_for(|running| !*running).await;
                Ok(0)
            }),
        })
    }

    async fn logs(&self, target: &Target, previous: bool) -> Result<LogSource, ApiError> {
        let pod = self.pod(target)?;
        let known = pod.view::<Pod>().map_err(ApiError::internal)?;
        let spec = known.spec.as_ref();
        let names = spec.into_iter().flat_map(|s| {
            let init = s.init_containers.iter().flatten().map(|c| c.name.as_str());
            let ephemeral = s.ephemeral_containers.iter().flatten().map(|c| c.name.as_str());
            s.containers.iter().map(|c| c.name.as_str()).chain(init).chain(ephemeral).collect::<Vec<_>>()
        });
        if !names.into_iter().any(|name| name == target.container) {
            let text = format!("container {} is not valid for pod {}", target.container, target.pod);
            return Err(ApiError::bad_request(text));
        }
        let (path, id) = self.log_path(target, &pod, previous)?;
        let running = match id {
            Some(id) => self.watch_running(pod.uid(), &id),
            None => watch::channel(false).1,
        };
        Ok(LogSource { path, running })
    }

    async fn port_forward(&self, target: &Target, port: u16) -> Result<Box<dyn Duplex>, ApiError> {
        let pod = self.pod(target)?;
        let gone = || ApiError::bad_request(format!("pod {} is not running", target.pod));
        let live = self.node.runtime.pod(pod.uid()).ok_or_else(gone)?;
        let netns = PathBuf::from(format!("/proc/{}/ns/net", live.shim_pid));
        let host = live.spec.host_network;
        let work = move || if host { connect_loopback(port) } else { connect_inside(&netns, port) };
        let connected = crate::ops::blocking(work).await.map_err(ApiError::internal)?;
        let failed = |e: io::Error| {
            let text =
                format!("failed to connect to localhost:{port} inside the pod's network namespace: {e}");
            ApiError::new(500, "InternalError", text)
        };
        let connected = connected.map_err(failed)?;
        connected.set_nonblocking(true).map_err(failed)?;
        let _ = connected.set_nodelay(true);
        Ok(Box::new(tokio::net::TcpStream::from_std(connected).map_err(failed)?))
    }

    async fn pods(&self) -> Value {
        let items: Vec<Value> = self.node.all_pods().iter().filter_map(|p| p.value().ok()).collect();
        json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
    }

    fn running_pods(&self) -> Value {
        let pod = |pod: PodInfo| {
            let containers: Vec<Value> = pod
                .containers
                .iter()
                .filter(|c| matches!(c.state, ContainerState::Running { .. }))
                .map(|c| json!({"name": c.spec.name, "image": stats::image(c), "resources": {}}))
                .collect();
            json!({"metadata": {"name": pod.spec.name, "namespace": pod.spec.namespace, "uid": pod.spec.uid},
                "spec": {"containers": containers}, "status": {}})
        };
        let items: Vec<Value> = self.node.runtime.pods().into_iter().map(pod).collect();
        json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
    }

    fn config(&self) -> Value {
        self.node.facts.as_configuration()
    }

    fn page(&self, path: &str) -> Option<Page> {
        self.node.facts.page(path, jiff::Timestamp::now())
    }

    async fn stats_summary(&self) -> Value {
        let mut before = self.readings.lock().clone();
        if stats::now_ms() - before.at_ms > READINGS_MAX_MS {
            before = Readings::of(&self.gather().await);
            tokio::time::sleep(FIRST_WINDOW).await;
        }
        let stats = self.gather().await;
        if stats.machine.at_ms - self.readings.lock().at_ms > READINGS_MIN_MS {
            *self.readings.lock() = Readings::of(&stats);
        }
        let (node, disk) = (self.node.clone(), self.disk.clone());
        let document = move || {
            summary::document(&Source {
                stats: &stats,
                before: &before,
                facts: &node.facts,
                images: node.images.folder(),
                image_bytes: node.images.list().iter().map(|i| i.size_bytes).sum(),
                pods: &node.all_pods().into_iter().map(|p| (p.uid().to_string(), p)).collect(),
                disk: &disk,
            })
        };
        crate::ops::blocking(document).await.unwrap_or_default()
    }

    async fn csi(&self, driver: &str, method: &str, request: &Value) -> grpc::Answer {
        if driver == crate::claims::AGENT {
            let (facts, method, request) = (self.node.facts.clone(), method.to_string(), request.clone());
            let done = crate::ops::blocking(move || crate::claims::serve(&facts, &method, &request)).await;
            return done
                .and_then(|r| r)
                .map(|()| json!({}))
                .map_err(|e| grpc::Status::new(grpc::code::INTERNAL, e));
        }
        self.node.csi.relay(driver, method, request).await
    }

    async fn metrics(&self, which: Metrics) -> String {
        match which {
            Metrics::Own => stats::own::text(&self.node) + &csi::metrics(&self.node).await,
            Metrics::Probes => stats::own::probes(&self.node.runtime.pods(), &self.node.probed.lock()),
            Metrics::Resource => stats::resource::text(&self.gather().await),
            Metrics::Cadvisor => stats::cadvisor::text(&self.gather().await, self.node.runtime.cgroup_root()),
        }
    }
}
